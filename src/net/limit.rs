//! A limit on a rate of bytes: whoever wants to send or receive asks first, and waits its turn.
//!
//! A token bucket that may go into debt. Tokens come in at the rate, up to [`BURST`] of them; who takes passes
//! as soon as the balance isn't negative, and pays afterwards with the ones that come next. So any amount can
//! be taken, the long-term rate is exact, a wait is never longer than the debt, and a pause earns no more than
//! the burst. Takers pass in the order in which they came.
//!
//! Flow: [`RateLimit::take`] before each block of an upload or each read of a download; [`RateLimit::set`] when
//! the user changes the limit, which also holds for who is waiting already.
//!
//! Deliberately not here: priorities among takers, and shares for each torrent or peer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use torrentfs_fs::lock::{Rank, RankedMutex};

/// How much of a pause can be made up for: enough for a timer that fires late, too little to be seen in a rate.
const BURST: Duration = Duration::from_millis(50);
/// The longest sleep at once. A longer debt (a byte a second) is slept off in several, so that no sum overflows.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
const NANOS: i128 = 1_000_000_000;

/// A shared limit; a clone is a handle on the same one.
#[derive(Clone)]
pub struct RateLimit {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: RankedMutex<Bucket>,
    /// One permit: the turn of the taker at the head. Its waiters are served in order, and one that is dropped
    /// leaves the line.
    turn: Semaphore,
    /// The limit was changed: the taker at the head looks again.
    changed: Notify,
}

struct Bucket {
    /// Bytes per second.
    rate: Option<u64>,
    /// In billionths of a byte, so that nothing is lost to rounding; negative is a debt.
    balance: i128,
    counted: Instant,
}

impl Bucket {
    /// Brings the balance up to date.
    fn count(&mut self, now: Instant) {
        let rate = i128::from(self.rate.unwrap_or(0));
        let earned = now.saturating_duration_since(self.counted).as_nanos() as i128;
        let full = BURST.as_nanos() as i128 * rate;
        self.balance = self.balance.saturating_add(earned.saturating_mul(rate)).min(full);
        self.counted = now;
    }

    /// Takes `n` bytes, or says how long it will be until they can be taken; `None` is until a change.
    fn try_take(&mut self, n: u64, now: Instant) -> Result<(), Option<Duration>> {
        let Some(rate) = self.rate else { return Ok(()) };
        self.count(now);
        if rate == 0 {
            return Err(None);
        }
        if self.balance >= 0 {
            self.balance = self.balance.saturating_sub(i128::from(n) * NANOS);
            return Ok(());
        }
        let debt = self.balance.unsigned_abs().div_ceil(u128::from(rate));
        Err(Some(u64::try_from(debt).map_or(LONGEST_SLEEP, Duration::from_nanos).min(LONGEST_SLEEP)))
    }
}

impl RateLimit {
    /// A limit in bytes per second. `None` is no limit; 0 lets nothing pass until [`RateLimit::set`] changes it.
    pub fn new(rate: Option<u64>) -> Self {
        let bucket = Bucket { rate, balance: 0, counted: Instant::now() };
        Self {
            inner: Arc::new(Inner {
                bucket: RankedMutex::new(Rank::Leaf, "rate limit", bucket),
                turn: Semaphore::new(1),
                changed: Notify::new(),
            }),
        }
    }

    /// Changes the limit, also for who is waiting. What was taken before is paid off at the new rate.
    pub fn set(&self, rate: Option<u64>) {
        {
            let mut bucket = self.inner.bucket.lock();
            bucket.count(Instant::now());
            bucket.rate = rate;
            if rate.is_none() {
                bucket.balance = 0;
            }
        }
        // One waiter at most, the one whose turn it is; a permit is kept for one that is just about to wait.
        self.inner.changed.notify_one();
    }

    /// The limit now, in bytes per second.
    pub fn rate(&self) -> Option<u64> {
        self.inner.bucket.lock().rate
    }

    /// Waits until `n` bytes may pass: not at all without a limit, else until those before are paid for (with a
    /// limit of 0, for ever). Dropping it leaves the line; nothing was taken then.
    pub async fn take(&self, n: u64) {
        if self.rate().is_none() {
            return;
        }
        // The permit is the turn, held while asleep. It is never closed; were it, passing would be right.
        let _turn = self.inner.turn.acquire().await;
        loop {
            let tried = self.inner.bucket.lock().try_take(n, Instant::now());
            let changed = self.inner.changed.notified();
            match tried {
                Ok(()) => return,
                Err(None) => changed.await,
                Err(Some(wait)) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use futures_util::future::join_all;
    use futures_util::{FutureExt, poll};

    const BLOCK: u64 = 16 * 1024;

    async fn timed(future: impl Future) -> Duration {
        let start = Instant::now();
        future.await;
        start.elapsed()
    }

    fn about(took: Duration, millis: u64) {
        let wanted = Duration::from_millis(millis);
        let margin = Duration::from_millis(10);
        assert!(took + margin >= wanted && took <= wanted + margin, "{took:?} where {wanted:?} is right");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let limit = RateLimit::new(None);
        for _ in 0..10_000 {
            assert!(limit.take(u64::MAX).now_or_never().is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_whatever_is_taken_at_once() {
        // (rate, bytes in one take, takes, milliseconds): the first take passes at once, and is paid by the next.
        for (rate, n, takes, millis) in [
            (BLOCK * 10, BLOCK, 101, 10_000),
            (1_000_000, 1, 2001, 2),
            (1_000_000, 10_000_000, 3, 20_000),
            (1024, BLOCK, 3, 32_000),
            (1_000_000_000, BLOCK, 61_036, 1000),
        ] {
            let limit = RateLimit::new(Some(rate));
            let took = timed(async {
                for _ in 0..takes {
                    limit.take(n).await;
                }
            })
            .await;
            about(took, millis);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_smooth() {
        let limit = RateLimit::new(Some(BLOCK * 20));
        for i in 0..20 {
            let took = timed(limit.take(BLOCK)).await;
            about(took, if i == 0 { 0 } else { 50 });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_no_more_than_the_burst() {
        let limit = RateLimit::new(Some(1_000_000));
        limit.take(1).await;
        tokio::time::advance(Duration::from_secs(1000)).await;
        let took = timed(async {
            for _ in 0..101 {
                limit.take(10_000).await;
            }
        })
        .await;
        about(took, 1000 - 50);
    }

    #[tokio::test(start_paused = true)]
    async fn takers_pass_in_the_order_they_came() {
        let limit = RateLimit::new(Some(1000));
        let order = RankedMutex::new(Rank::Leaf, "order", Vec::new());
        join_all((0..10u64).map(|i| {
            let (limit, order) = (&limit, &order);
            async move {
                // The later ones want less, and don't overtake for it.
                limit.take(1000 - i * 90).await;
                order.lock().push(i);
            }
        }))
        .await;
        assert_eq!(order.into_inner(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_took_nothing() {
        let limit = RateLimit::new(Some(1000));
        limit.take(1000).await;
        let mut dropped: Vec<_> = (0..5).map(|_| Box::pin(limit.take(1_000_000))).collect();
        for taker in &mut dropped {
            assert!(poll!(taker).is_pending());
        }
        let mut last = Box::pin(limit.take(1));
        assert!(poll!(&mut last).is_pending());
        drop(dropped);
        about(timed(last).await, 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_holds_for_who_is_waiting() {
        let limit = RateLimit::new(Some(1));
        limit.take(10_000).await;
        let mut taker = Box::pin(limit.take(1));
        assert!(poll!(&mut taker).is_pending());
        limit.set(Some(10_000));
        assert_eq!(limit.rate(), Some(10_000));
        about(timed(&mut taker).await, 1000);

        limit.set(Some(0));
        let mut taker = Box::pin(limit.take(1));
        assert!(poll!(&mut taker).is_pending());
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert!(poll!(&mut taker).is_pending(), "0 lets nothing pass");
        limit.set(None);
        about(timed(taker).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_overflows() {
        for rate in [1, u64::MAX] {
            let limit = RateLimit::new(Some(rate));
            limit.take(u64::MAX).await;
            let mut taker = Box::pin(limit.take(u64::MAX));
            _ = poll!(&mut taker);
            tokio::time::advance(Duration::from_secs(86_400 * 365)).await;
            _ = poll!(&mut taker);
            limit.set(Some(u64::MAX));
        }
    }
}
