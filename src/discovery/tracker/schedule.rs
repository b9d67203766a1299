//! When a tracker is announced to next. Pure: `now` and the jitter are arguments.
//!
//! After a success: at the tracker's interval, or sooner while peers are wanted, but never before its minimum.
//! After a failure: exponential back-off with jitter, or what the tracker asked for (BEP 31).
//! A pending event (`completed`) is due at once, but doesn't break the back-off of a tracker that fails.

use std::time::{Duration, Instant};

use super::message::Retry;
use crate::sync::timeouts::{TRACKER_RETRY_FIRST, TRACKER_RETRY_MAX};

/// When a tracker names no interval: what most of them name.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// The shortest interval we obey; a tracker that names less is in error, or wants us to flood someone.
const INTERVAL_MIN: Duration = Duration::from_secs(10);
/// The longest one; a tracker that names more would make us forget it.
const INTERVAL_MAX: Duration = Duration::from_secs(6 * 3600);
/// The first early announce to a tracker that names no minimum; doubled at each one after it. A minute is what
/// other clients allow a user who asks for peers by hand.
const EARLY_FIRST: Duration = Duration::from_secs(60);
/// The longest that a tracker may send us away with `retry in`.
const RETRY_IN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is known about when to announce.
#[derive(Debug, Clone)]
pub struct Schedule {
    state: State,
    /// Failures in a row.
    failures: u32,
    /// Early announces in a row.
    early: u32,
}

#[derive(Debug, Clone)]
enum State {
    /// Never tried: due since then.
    New(Instant),
    /// The last try succeeded.
    Waiting { since: Instant, earliest: Instant, regular: Instant },
    /// The last try failed.
    Failing { until: Instant },
    /// The tracker doesn't want us.
    Never,
}

impl Schedule {
    /// Due at once.
    pub fn new(now: Instant) -> Self {
        Self { state: State::New(now), failures: 0, early: 0 }
    }

    /// When to announce next; in the past means now, `None` means not again. `wanted`: more peers are wanted.
    /// `event`: something is to be told.
    pub fn due(&self, wanted: bool, event: bool) -> Option<Instant> {
        match self.state {
            State::New(at) => Some(at),
            State::Waiting { since, .. } if event => Some(since),
            State::Waiting { earliest, .. } if wanted => Some(earliest),
            State::Waiting { regular, .. } => Some(regular),
            State::Failing { until } => Some(until),
            State::Never => None,
        }
    }

    /// Something is to be told at once. Who wants us no more isn't told.
    pub fn hurry(&mut self, now: Instant) {
        match &mut self.state {
            State::Waiting { earliest, regular, .. } => (*earliest, *regular) = (now, now),
            State::Failing { until } => *until = now,
            State::New(_) | State::Never => {}
        }
    }

    /// Notes an answer that came now, with the intervals that it named.
    pub fn succeeded(&mut self, now: Instant, interval: Option<Duration>, min_interval: Option<Duration>) {
        let was_early = matches!(self.state, State::Waiting { regular, .. } if now < regular);
        self.early = if was_early { self.early.saturating_add(1) } else { 0 };
        self.failures = 0;
        let interval = interval.unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let earliest = match min_interval {
            Some(min) => min.clamp(INTERVAL_MIN, interval),
            None => doubled(EARLY_FIRST, self.early, interval),
        };
        self.state = State::Waiting { since: now, earliest: now + earliest, regular: now + interval };
    }

    /// Notes a failure now. `jitter` is random in 0..1, so that clients don't come back all at once.
    pub fn failed(&mut self, now: Instant, retry: Option<Retry>, jitter: f64) {
        let wait = back_off(self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        self.state = match retry {
            Some(Retry::Never) => State::Never,
            Some(Retry::After(asked)) => State::Failing { until: now + asked.min(RETRY_IN_MAX).max(wait) },
            None => State::Failing { until: now + wait },
        };
    }
}

/// The pause after the failure number `failures` (from 0): doubled each time, ±25 %, never over the longest.
fn back_off(failures: u32, jitter: f64) -> Duration {
    let base = doubled(TRACKER_RETRY_FIRST, failures, TRACKER_RETRY_MAX);
    base.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0)).min(TRACKER_RETRY_MAX)
}

/// `first * 2^times`, `max` at most.
fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    2u32.checked_pow(times).and_then(|factor| first.checked_mul(factor)).map_or(max, |wait| wait.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn back_off_doubles_with_jitter_up_to_its_bound() {
        for (failures, low, high) in [
            (0, 3.75, 6.25),
            (1, 7.5, 12.5),
            (5, 120.0, 200.0),
            (9, 1350.0, 1800.0),
            (u32::MAX, 1350.0, 1800.0),
        ] {
            assert_eq!(back_off(failures, 0.0).as_secs_f64(), low, "{failures}");
            assert_eq!(back_off(failures, 1.0).as_secs_f64(), high, "{failures}");
            assert_eq!(back_off(failures, f64::from(7)).as_secs_f64(), high, "{failures}");
        }
    }

    #[test]
    fn intervals_are_obeyed_and_bounded() {
        // (interval, min interval) as named → (when calm, when peers are wanted)
        for (interval, min, regular, early) in [
            (None, None, 1800, 60),
            (Some(S(900)), None, 900, 60),
            (Some(S(900)), Some(S(300)), 900, 300),
            (Some(S(900)), Some(S(9000)), 900, 900),
            (Some(S(30)), None, 30, 30),
            (Some(S(0)), Some(S(0)), 10, 10),
            (Some(S(u64::MAX)), Some(S(u64::MAX)), 21600, 21600),
        ] {
            let now = Instant::now();
            let mut schedule = Schedule::new(now);
            assert_eq!(schedule.due(false, false), Some(now));
            schedule.succeeded(now, interval, min);
            assert_eq!(schedule.due(false, false), Some(now + S(regular)), "{interval:?} {min:?}");
            assert_eq!(schedule.due(true, false), Some(now + S(early)), "{interval:?} {min:?}");
            assert_eq!(schedule.due(false, true), Some(now), "an event is told at once");
        }
    }

    #[test]
    fn early_announces_get_rarer_until_a_regular_one() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..7 {
            schedule.succeeded(now, Some(S(900)), None);
            let next = schedule.due(true, false).unwrap_or(now);
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [60, 120, 240, 480, 900, 60, 120]);
    }

    #[test]
    fn failures_and_what_a_refusal_asks_for() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.failed(now, None, 0.5);
        assert_eq!(
            schedule.due(true, true),
            Some(now + S(5)),
            "neither hunger nor an event breaks the back-off"
        );
        schedule.failed(now, Some(Retry::After(S(300))), 0.5);
        assert_eq!(schedule.due(false, false), Some(now + S(300)));
        schedule.failed(now, Some(Retry::After(S(0))), 0.5);
        assert_eq!(
            schedule.due(false, false),
            Some(now + S(20)),
            "asking for less than the back-off gets it"
        );
        schedule.failed(now, Some(Retry::After(Duration::MAX)), 0.5);
        assert_eq!(schedule.due(false, false), Some(now + RETRY_IN_MAX));
        schedule.succeeded(now, None, None);
        schedule.failed(now, None, 0.5);
        assert_eq!(schedule.due(false, false), Some(now + S(5)), "a success forgives");
        schedule.failed(now, Some(Retry::Never), 0.5);
        assert_eq!(schedule.due(true, true), None);
    }
}
