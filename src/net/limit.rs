//! Limits on rates of bytes: whoever wants to send or receive asks first, and waits its turn.
//!
//! Parts: [`RateLimit`], one limit, shared by all who hold a clone; [`Chain`], the limits that somebody is under at the
//! same time (a torrent's and the program's), and [`Limits`], which knows those of a torrent's peers; [`Intake`], which
//! reads from a peer no more than was taken before. What a limit says at a moment is [`bucket::Bucket`]'s to know.
//!
//! Flow: [`Chain::take`] before each block of an upload, and after each chunk of a webseed; [`Intake::read`] for what
//! peers send. [`RateLimit::set`] when the user changes a limit, which also holds for who is waiting already.
//!
//! Takers pass each limit in the order in which they came, the lowest limit first. Who waits at a higher one has had its
//! turn at those below, so it holds nobody up who has another way; and who is dropped while it waits has taken nothing
//! of any of them.
//!
//! What counts is what the peers' connections carry, not what the network puts around it. Deliberately not here:
//! priorities among takers, and shares for each of them.

pub mod bucket;
mod chain;
mod intake;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use torrentfs_fs::lock::{Rank, RankedMutex};

use bucket::Bucket;
pub use chain::{Chain, Limits};
pub use intake::Intake;

/// How long a portion takes at the rate. Everybody in line waits for the portions before, so small ones are fair in the
/// short run; smaller ones than this cost more than the bytes do.
const PORTION: Duration = Duration::from_millis(5);
/// Bounds of a portion: not less than what a timer and a system call are worth, not more than is read at once.
const PORTION_MIN: u64 = 1024;
const PORTION_MAX: u64 = 64 * 1024;

/// A shared limit; a clone is a handle on the same one.
#[derive(Clone)]
pub struct RateLimit {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: RankedMutex<Bucket>,
    /// Whether the bucket has a rate. So nobody meets at the lock while there is none.
    limited: AtomicBool,
    /// One permit: the turn of the taker at the head. Its waiters are served in order, and one that is dropped
    /// leaves the line.
    turn: Semaphore,
    /// The limit was changed, or something given back: the taker at the head looks again.
    changed: Notify,
}

impl RateLimit {
    /// A limit in bytes per second. `None` is no limit; 0 lets nothing pass until [`RateLimit::set`] changes it.
    pub fn new(rate: Option<u64>) -> Self {
        let bucket = Bucket::new(rate, Instant::now());
        Self {
            inner: Arc::new(Inner {
                bucket: RankedMutex::new(Rank::Leaf, "rate limit", bucket),
                limited: AtomicBool::new(rate.is_some()),
                turn: Semaphore::new(1),
                changed: Notify::new(),
            }),
        }
    }

    /// Changes the limit, also for who is waiting. What was taken before is paid off at the new rate.
    pub fn set(&self, rate: Option<u64>) {
        {
            let mut bucket = self.inner.bucket.lock();
            bucket.set(rate, Instant::now());
            self.inner.limited.store(rate.is_some(), Ordering::Relaxed);
        }
        // One waiter at most, the one whose turn it is; a permit is kept for one that is just about to wait.
        self.inner.changed.notify_one();
    }

    /// The limit now, in bytes per second.
    pub fn rate(&self) -> Option<u64> {
        self.inner.bucket.lock().rate()
    }

    /// Whether there is a limit now.
    pub fn is_limited(&self) -> bool {
        self.inner.limited.load(Ordering::Relaxed)
    }

    /// How much to take at once for what comes bit by bit; `None` without a limit.
    fn portion(&self) -> Option<u64> {
        let bytes = |rate: u64| u128::from(rate) * PORTION.as_nanos() / 1_000_000_000;
        let rate = self.is_limited().then(|| self.rate()).flatten()?;
        Some(u64::try_from(bytes(rate)).unwrap_or(PORTION_MAX).clamp(PORTION_MIN, PORTION_MAX))
    }

    /// Waits until `n` bytes may pass: not at all without a limit, else until those before are paid for (with a
    /// limit of 0, for ever). Dropping it leaves the line; nothing was taken then.
    pub async fn take(&self, n: u64) {
        self.pass(n).await;
    }

    /// As [`RateLimit::take`]; says whether the bytes were counted, and so can be given back.
    async fn pass(&self, n: u64) -> bool {
        if !self.is_limited() {
            return false;
        }
        // The permit is the turn, held while asleep. It is never closed; were it, passing would be right.
        let _turn = self.inner.turn.acquire().await;
        loop {
            let tried = self.inner.bucket.lock().take(n, Instant::now());
            let changed = self.inner.changed.notified();
            match tried {
                Ok(counted) => return counted,
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

    /// Gives back what was taken and isn't used.
    pub fn give_back(&self, n: u64) {
        if n > 0 && self.is_limited() {
            self.inner.bucket.lock().give_back(n);
            self.inner.changed.notify_one();
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
