//! When enough was given back: at a ratio, after a time, or at whichever comes first. Pure.
//!
//! The ratio is what was sent by what was received, or by what is here where that is more: data that was here already
//! counts as if it had been fetched. It holds at any moment: who reads on has to give back for that, too. The time is
//! that in which nothing was fetched and something was here to be had. Both count over all runs that had such a goal.
//!
//! Deliberately not here: what follows (the [`swarm`](super::swarm) lets nobody in), and where the sums are kept
//! ([`crate::storage::tally`]).

use std::fmt;
use std::time::{Duration, Instant};

use crate::storage::tally::Tally;

/// How much was sent for what was received, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(pub u32);

impl Ratio {
    /// One to one.
    pub const ONE: Self = Self(1000);
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        let short = text.trim_end_matches('0');
        f.write_str(if short.ends_with('.') { text.get(..short.len() + 1).unwrap_or(short) } else { short })
    }
}

/// What is enough. With none of both, nothing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Goals {
    /// So much for what was received.
    pub ratio: Option<Ratio>,
    /// So long.
    pub time: Option<Duration>,
}

impl Goals {
    /// Whether anything is ever enough.
    pub fn is_any(self) -> bool {
        self.ratio.is_some() || self.time.is_some()
    }
}

/// Which of the goals was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The ratio.
    Ratio(Ratio),
    /// The time.
    Time(Duration),
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(ratio) => write!(f, "the ratio {ratio} is reached"),
            Self::Time(time) => write!(f, "it was seeded for {} s", time.as_secs_f64()),
        }
    }
}

/// What a torrent has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Payload bytes sent in this run.
    pub up: u64,
    /// And received.
    pub down: u64,
    /// Bytes that are here.
    pub have: u64,
    /// Nothing is fetched, and peers can have something.
    pub seeding: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Goal {
    goals: Goals,
    /// Of the runs before.
    past: Tally,
    moved: Moved,
    seeded: Duration,
    /// Up to when that is counted.
    counted: Instant,
    reached: Option<Reached>,
}

impl Goal {
    /// Nothing has moved in this run.
    pub fn new(goals: Goals, past: Tally, now: Instant) -> Self {
        let seeded = Duration::ZERO;
        Self { goals, past, moved: Moved::default(), seeded, counted: now, reached: None }
    }

    /// Takes in how things stand now, as they have stood since the last time; returns what is reached.
    pub fn look(&mut self, moved: Moved, now: Instant) -> Option<Reached> {
        let counts = self.goals.time.is_some_and(|time| self.in_all() < time);
        if self.moved.seeding && counts {
            self.seeded += now.saturating_duration_since(self.counted);
        }
        (self.moved, self.counted) = (moved, now);
        let sums = self.tally();
        let of = sums.down.max(moved.have);
        let ratio = self.goals.ratio.filter(|ratio| {
            of > 0 && u128::from(sums.up) * u128::from(Ratio::ONE.0) >= u128::from(of) * u128::from(ratio.0)
        });
        let time = self.goals.time.filter(|time| self.in_all() >= *time);
        self.reached = ratio.map(Reached::Ratio).or(time.map(Reached::Time));
        self.reached
    }

    /// What was reached when it was looked at last.
    pub fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// In how long the time is up, if things stay as they are.
    pub fn next(&self) -> Option<Duration> {
        let time = self.goals.time.filter(|_| self.moved.seeding && self.reached.is_none())?;
        Some(time.saturating_sub(self.in_all()))
    }

    /// The sums of all runs.
    pub fn tally(&self) -> Tally {
        Tally {
            up: self.past.up.saturating_add(self.moved.up),
            down: self.past.down.saturating_add(self.moved.down),
            seeded: self.in_all(),
        }
    }

    fn in_all(&self) -> Duration {
        self.past.seeded.saturating_add(self.seeded)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn moved(up: u64, down: u64, have: u64, seeding: bool) -> Moved {
        Moved { up, down, have, seeding }
    }

    fn goal(ratio: Option<u32>, time: Option<u64>, past: Tally, now: Instant) -> Goal {
        Goal::new(Goals { ratio: ratio.map(Ratio), time: time.map(Duration::from_secs) }, past, now)
    }

    #[test]
    fn the_ratio_is_of_what_was_received_or_is_here() {
        let now = Instant::now();
        let reached = Some(Reached::Ratio(Ratio(1500)));
        for (past, up, down, have, wanted) in [
            ((0, 0), 0, 0, 0, None),
            // What nobody received for nothing needs not be given back.
            ((0, 0), 5, 0, 0, None),
            ((0, 0), 149, 100, 100, None),
            ((0, 0), 150, 100, 100, reached),
            // It was here before, or some of it has gone since.
            ((0, 0), 150, 0, 101, None),
            ((0, 0), 150, 0, 100, reached),
            ((0, 0), 150, 101, 3, None),
            // With the runs before.
            ((100, 50), 50, 50, 10, reached),
            ((100, 50), 49, 50, 10, None),
            ((u64::MAX, u64::MAX), 1, 1, 1, None),
        ] {
            let past = Tally { up: past.0, down: past.1, ..Tally::default() };
            let mut goal = goal(Some(1500), None, past, now);
            assert_eq!(goal.look(moved(up, down, have, true), now), wanted, "{past:?} {up} {down} {have}");
            assert_eq!(goal.reached(), wanted);
        }
    }

    #[test]
    fn who_reads_on_gives_back_for_that_too() {
        let now = Instant::now();
        let mut goal = goal(Some(1000), None, Tally::default(), now);
        assert!(goal.look(moved(100, 100, 100, true), now).is_some());
        assert_eq!(goal.look(moved(100, 101, 101, false), now), None);
        assert!(goal.look(moved(101, 101, 101, true), now).is_some());
    }

    #[test]
    fn the_time_counts_while_nothing_is_fetched() {
        let start = Instant::now();
        let past = Tally { seeded: 4 * SECOND, ..Tally::default() };
        let mut goal = goal(None, Some(10), past, start);
        assert_eq!(goal.next(), None, "it doesn't seed yet");
        assert_eq!(goal.look(moved(0, 0, 5, true), start + 100 * SECOND), None);
        assert_eq!(goal.next(), Some(6 * SECOND));
        assert_eq!(goal.look(moved(0, 0, 5, false), start + 105 * SECOND), None);
        assert_eq!(goal.next(), None, "it is fetched");
        assert_eq!(goal.look(moved(0, 9, 9, true), start + 200 * SECOND), None);
        assert_eq!(goal.next(), Some(SECOND));
        let reached = goal.look(moved(0, 9, 9, true), start + 201 * SECOND);
        assert_eq!(reached, Some(Reached::Time(10 * SECOND)));
        assert_eq!((goal.next(), goal.tally().seeded), (None, 10 * SECOND));
        // That time has passed, whatever is read from now on.
        assert_eq!(goal.look(moved(0, 99, 99, false), start + 202 * SECOND), reached);
    }

    #[test]
    fn whichever_comes_first() {
        let start = Instant::now();
        let mut ratio_first = goal(Some(500), Some(10), Tally::default(), start);
        assert!(matches!(ratio_first.look(moved(1, 2, 2, true), start), Some(Reached::Ratio(_))));
        let mut time_first = goal(Some(500), Some(10), Tally::default(), start);
        assert_eq!(time_first.look(moved(0, 2, 2, true), start), None);
        let later = start + 10 * SECOND;
        assert!(matches!(time_first.look(moved(0, 2, 2, true), later), Some(Reached::Time(_))));
        let mut neither = goal(None, None, Tally::default(), start);
        assert_eq!(neither.look(moved(99, 1, 1, true), later), None);
        assert!(!Goals::default().is_any());
    }

    #[test]
    fn in_words() {
        for (ratio, words) in [(1500, "1.5"), (2000, "2.0"), (1, "0.001"), (12_340, "12.34")] {
            assert_eq!(Ratio(ratio).to_string(), words);
        }
        assert_eq!(Reached::Ratio(Ratio(1500)).to_string(), "the ratio 1.5 is reached");
        assert_eq!(Reached::Time(90 * SECOND).to_string(), "it was seeded for 90 s");
    }
}
