//! Measures how fast bytes come, from the moments at which they came. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// Weight of the past falls to 1/e over this time: long enough to ride over bursts of a limiter that hands
/// out quota twice a second, short enough to follow a peer that slows down.
const MEMORY: f64 = 2.0;
/// At first there is less of a past, and it counts for less: a peer's rate doubles with each round trip while
/// its queue is being filled, and is to be followed. In seconds.
const MEMORY_FIRST: f64 = 0.1;

/// An exponentially weighted rate in bytes per second.
#[derive(Debug, Clone)]
pub struct Rate {
    per_second: f64,
    /// Seconds that were measured.
    measured: f64,
    since: Instant,
    pending: u64,
    total: u64,
}

impl Rate {
    /// Nothing measured yet.
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, measured: 0.0, since: now, pending: 0, total: 0 }
    }

    /// `bytes` came at `now`.
    pub fn add(&mut self, bytes: u64, now: Instant) {
        self.pending += bytes;
        self.total += bytes;
        self.settle(now, Duration::from_millis(50));
    }

    /// The rate at `now`, which decays while nothing comes.
    pub fn get(&mut self, now: Instant) -> u64 {
        self.settle(now, Duration::from_millis(250));
        self.per_second as u64
    }

    /// Work begins again at `now` after idling: the idle time says nothing about the peer.
    pub fn resume(&mut self, now: Instant) {
        self.since = now;
        self.pending = 0;
    }

    /// The rate as last settled, without letting time count against it.
    pub fn last(&self) -> u64 {
        self.per_second as u64
    }

    /// All bytes ever counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Folds what is pending into the rate once it spans at least `span`: shorter ones say nothing.
    fn settle(&mut self, now: Instant, span: Duration) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < span {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let fresh = self.pending as f64 / seconds;
        let memory = self.measured.clamp(MEMORY_FIRST, MEMORY);
        let keep = if self.per_second == 0.0 { 0.0 } else { (-seconds / memory).exp() };
        self.measured = (self.measured + seconds).min(MEMORY);
        self.per_second = self.per_second * keep + fresh * (1.0 - keep);
        if self.per_second < 1.0 {
            self.per_second = 0.0;
        }
        self.since = now;
        self.pending = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_a_steady_stream_and_decays() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for i in 1..=100u64 {
            rate.add(100_000, start + Duration::from_millis(100 * i));
        }
        let at = start + Duration::from_secs(10);
        assert!((900_000..1_100_000).contains(&rate.get(at)));
        assert_eq!(rate.total(), 10_000_000);
        assert!(rate.get(at + Duration::from_secs(20)) < 1000);
    }
}
