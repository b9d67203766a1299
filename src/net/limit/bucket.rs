//! A token bucket that may go into debt: how much may pass now, or how long until something may. Pure.
//!
//! Tokens come in at the rate, up to [`BURST`] of them; who takes passes as soon as the balance isn't negative, and
//! pays afterwards with the ones that come next. So any amount can be taken, the long-term rate is exact, a wait is
//! never longer than the debt, and a pause earns no more than the burst. What was taken and isn't used can be given
//! back.
//!
//! Not here: waiting, and who is next ([`super::RateLimit`]).

use std::time::Duration;

use tokio::time::Instant;

/// How much of a pause can be made up for: enough for a timer that fires late, too little to be seen in a rate.
pub const BURST: Duration = Duration::from_millis(50);
/// The longest sleep at once. A longer debt (a byte a second) is slept off in several, so that no sum overflows.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
const NANOS: i128 = 1_000_000_000;

/// Tokens, at a rate that can change.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Bytes per second.
    rate: Option<u64>,
    /// In billionths of a byte, so that nothing is lost to rounding; negative is a debt.
    balance: i128,
    counted: Instant,
}

impl Bucket {
    /// An empty one, of a rate in bytes per second. `None` is no limit; 0 lets nothing pass.
    pub fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate, balance: 0, counted: now }
    }

    /// The rate.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// What the burst is at this rate.
    fn full(&self) -> i128 {
        BURST.as_nanos() as i128 * i128::from(self.rate.unwrap_or(0))
    }

    /// Brings the balance up to date.
    fn count(&mut self, now: Instant) {
        let rate = i128::from(self.rate.unwrap_or(0));
        let earned = now.saturating_duration_since(self.counted).as_nanos() as i128;
        self.balance = self.balance.saturating_add(earned.saturating_mul(rate)).min(self.full());
        self.counted = self.counted.max(now);
    }

    /// Changes the rate. What was taken before is paid off at the new one.
    pub fn set(&mut self, rate: Option<u64>, now: Instant) {
        self.count(now);
        self.rate = rate;
        if rate.is_none() {
            self.balance = 0;
        }
    }

    /// Takes `n` bytes. True when they count: without a limit they pass uncounted.
    ///
    /// # Errors
    /// How long it will be until they can be taken; `None` is until the rate changes.
    pub fn take(&mut self, n: u64, now: Instant) -> Result<bool, Option<Duration>> {
        let Some(rate) = self.rate else { return Ok(false) };
        self.count(now);
        if rate == 0 {
            return Err(None);
        }
        if self.balance >= 0 {
            self.balance = self.balance.saturating_sub(i128::from(n) * NANOS);
            return Ok(true);
        }
        let debt = self.balance.unsigned_abs().div_ceil(u128::from(rate));
        Err(Some(u64::try_from(debt).map_or(LONGEST_SLEEP, Duration::from_nanos).min(LONGEST_SLEEP)))
    }

    /// Gives back what was taken and not used. It makes up for no more than a pause would.
    pub fn give_back(&mut self, n: u64) {
        if self.rate.is_some() {
            let more = self.balance.saturating_add(i128::from(n) * NANOS);
            self.balance = more.min(self.full()).max(self.balance);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_taken_is_paid_by_who_comes_next() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let wait = |millis| Err(Some(Duration::from_millis(millis)));
        let mut bucket = Bucket::new(Some(1000), start);
        assert_eq!(bucket.take(500, at(0)), Ok(true));
        assert_eq!(bucket.take(1, at(0)), wait(500));
        assert_eq!(bucket.take(1, at(499)), wait(1));
        bucket.give_back(100);
        assert_eq!(bucket.take(1000, at(400)), Ok(true), "a look back changes nothing");
        bucket.set(Some(2000), at(499));
        assert_eq!(bucket.take(1, at(499)), wait(475), "paid off at the new rate");
        bucket.set(Some(0), at(499));
        assert_eq!(bucket.take(1, at(99_999)), Err(None));
        bucket.set(None, at(99_999));
        assert_eq!(bucket.take(u64::MAX, at(99_999)), Ok(false));
        bucket.give_back(u64::MAX);
        bucket.set(Some(1000), at(99_999));
        assert_eq!(
            (bucket.take(1, at(99_999)), bucket.take(1, at(99_999))),
            (Ok(true), wait(1)),
            "nothing was owed"
        );
    }

    #[test]
    fn giving_back_earns_no_more_than_a_pause() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1000), start);
        bucket.give_back(1_000_000);
        // The burst of 50 bytes, and one beyond it.
        assert_eq!(bucket.take(51, start), Ok(true));
        assert_eq!(bucket.take(1, start), Err(Some(Duration::from_millis(1))));
    }

    proptest! {
        /// Over any sequence of takes, gifts and pauses: no more passes than the rate, the burst and one take beyond it
        /// allow; and who waits as long as he is told passes.
        #[test]
        fn the_rate_is_kept(
            rate in 1u64..2_000_000,
            steps in prop::collection::vec((1u64..100_000, 0u64..100_000, 0u64..200), 1..100),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(Some(rate), start);
            let (mut passed, mut largest) = (0u64, 0u64);
            for (n, back, pause) in steps {
                now += Duration::from_millis(pause);
                if let Err(wait) = bucket.take(n, now) {
                    now += wait.unwrap();
                    prop_assert_eq!(bucket.take(n, now), Ok(true));
                }
                let back = back.min(n);
                bucket.give_back(back);
                passed += n - back;
                largest = largest.max(n);
                let may = (now - start + BURST).as_nanos() * u128::from(rate) / 1_000_000_000;
                prop_assert!(u128::from(passed) <= may + u128::from(largest) + 1, "{passed} of {may}");
            }
        }

        #[test]
        fn no_number_overflows(rates in prop::collection::vec(any::<Option<u64>>(), 1..10), n: u64, secs in 0u64..1 << 33) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(Some(1), now);
            for rate in rates {
                bucket.set(rate, now);
                _ = bucket.take(n, now);
                now += Duration::from_secs(secs);
                _ = bucket.take(u64::MAX, now);
                bucket.give_back(n);
            }
        }
    }
}
