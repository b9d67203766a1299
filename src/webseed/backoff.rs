//! When a server that failed is asked again: exponential, with jitter, and not before it wants to be. Pure.
//!
//! One [`Backoff`] stands for one server and is kept while it waits, so that all who ask that server wait together
//! (row W3). What several requests under way tell of the same trouble counts once.

use std::time::Instant;

use super::fault::{Fault, Meaning};
use crate::sync::timeouts::{WEBSEED_RETRY_FIRST, WEBSEED_RETRY_LONGEST, WEBSEED_RETRY_MAX};

/// How a server has been doing.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    /// In a row, those under way at once counted as one.
    failures: u32,
    /// One that may be tried again at once has been.
    retried: bool,
    until: Option<Instant>,
}

impl Backoff {
    /// A request failed. `jitter` is random, from 0 to 1: it spreads those who wait. Faults that concern one file or
    /// the torrent say nothing about the server.
    pub fn failed(&mut self, now: Instant, fault: &Fault, jitter: f64) {
        let least = match fault.means() {
            Meaning::DropFile | Meaning::DropSeed => return,
            Meaning::Retry if !self.retried => {
                self.retried = true;
                return;
            }
            Meaning::Retry => None,
            Meaning::Wait(least) => least,
        };
        let jitter = jitter.clamp(0.0, 1.0);
        let waiting = self.until.filter(|until| now < *until);
        if waiting.is_none() {
            self.failures = self.failures.saturating_add(1);
        }
        let doubled = 1u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let own = WEBSEED_RETRY_FIRST.saturating_mul(doubled.max(1)).min(WEBSEED_RETRY_MAX);
        let pause = match least {
            // Never sooner than the server wants.
            Some(least) => {
                least.min(WEBSEED_RETRY_LONGEST).max(own.mul_f64(0.5)) + WEBSEED_RETRY_FIRST.mul_f64(jitter)
            }
            None => own.mul_f64(0.5 + 0.5 * jitter),
        };
        self.until = match waiting {
            // Who was asked before the trouble began has nothing to add, unless the server names a time.
            Some(until) if least.is_none() => Some(until),
            waiting => waiting.max(now.checked_add(pause)),
        };
    }

    /// A request succeeded. A wait that has begun meanwhile stays: the server may have asked for it.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.retried = false;
    }

    /// Whether nothing of it need be remembered.
    pub fn is_clean(&self) -> bool {
        self.failures == 0 && !self.retried && self.until.is_none()
    }

    /// Until when it is to be left alone; past or none when it may be asked.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use super::super::fault::Phase;
    use super::*;

    const BUSY: Fault = Fault::Busy { status: 503, after: None };
    const LATE: Fault = Fault::TimedOut(Phase::FirstByte);

    fn after(seconds: u64) -> Fault {
        Fault::Busy { status: 429, after: Some(Duration::from_secs(seconds)) }
    }

    /// Fails again as soon as it may be asked; the pauses.
    fn pauses(faults: &[&Fault], jitter: f64) -> Vec<f64> {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for fault in faults {
            backoff.failed(now, fault, jitter);
            let until = backoff.until().unwrap_or(now).max(now);
            pauses.push((until - now).as_secs_f64());
            now = until;
        }
        pauses
    }

    #[test]
    fn w3_pauses_double_up_to_a_bound_and_jitter_only_shortens_them() {
        let faults = [&BUSY, &LATE, &BUSY, &BUSY, &BUSY, &BUSY, &BUSY, &BUSY, &BUSY];
        assert_eq!(pauses(&faults, 1.0), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
        assert_eq!(pauses(&faults, 0.0), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        let many = vec![&BUSY; 200];
        assert_eq!(*pauses(&many, 1.0).last().unwrap(), 60.0);
    }

    #[test]
    fn w3_what_a_server_asks_for_is_honoured() {
        for (asked, jitter, pause) in
            [(10, 0.0, 10.0), (10, 1.0, 11.0), (0, 0.0, 0.5), (u64::MAX, 0.0, 24.0 * 3600.0)]
        {
            assert_eq!(pauses(&[&after(asked)], jitter), [pause], "{asked}");
        }
    }

    #[test]
    fn w3_siblings_that_fail_at_once_count_once() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.failed(now, &LATE, 1.0);
        }
        assert_eq!(backoff.until(), Some(now + Duration::from_secs(1)));
        // One of them was told a time: all wait for it. A success among them ends no wait.
        backoff.failed(now, &after(30), 0.0);
        backoff.failed(now, &after(3), 0.0);
        backoff.succeeded();
        assert_eq!(backoff.until(), Some(now + Duration::from_secs(30)));
        // Afterwards it begins anew.
        let later = now + Duration::from_secs(31);
        backoff.failed(later, &LATE, 1.0);
        assert_eq!(backoff.until(), Some(later + Duration::from_secs(1)));
    }

    #[test]
    fn a_connection_that_breaks_is_tried_again_at_once_but_not_for_ever() {
        let broken = Fault::Broken("reset".to_owned());
        assert_eq!(pauses(&[&broken, &broken, &broken], 1.0), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn faults_of_a_file_are_none_of_the_server() {
        assert_eq!(pauses(&[&Fault::Status(404), &Fault::Corrupt, &Fault::Distrusted], 1.0), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn w3_attempts_in_a_minute_are_few() {
        // Sixteen who ask whenever they may, and a server that is down.
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        let (mut now, mut attempts) = (begun, 0);
        while now < begun + Duration::from_secs(60) {
            for _ in 0..16 {
                backoff.failed(now, &LATE, 0.0);
            }
            attempts += 1;
            now = backoff.until().unwrap().max(now);
        }
        assert!(attempts <= 8, "{attempts} rounds");
    }
}
