//! Written data that isn't synced and recorded yet, and when it is due to be. Pure.
//!
//! It is bounded in age, so that a crash costs little, and in bytes, so that recording at the end is quick and that what
//! comes while the disk syncs doesn't wait for long.

use std::time::{Duration, Instant};

/// So much is recorded at once.
const MOST: u64 = 64 << 20;
/// What was written is recorded when it is so old…
const AGE: Duration = Duration::from_secs(5);
/// …or so old if there was no record for that long: who fetches little now and then loses little.
const SOON: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug, Default)]
pub struct Unrecorded {
    bytes: u64,
    since: Option<Instant>,
    /// When a record was begun last.
    last: Option<Instant>,
}

impl Unrecorded {
    /// So much was written.
    pub fn wrote(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        self.since.get_or_insert(now);
    }

    /// How much there is, and since when.
    pub fn amount(&self) -> (u64, Option<Instant>) {
        (self.bytes, self.since)
    }

    /// When it is due by its age, if there is any.
    pub fn due(&self) -> Option<Instant> {
        let since = self.since?;
        let soon = self.last.map_or(since, |last| last + AGE).max(since + SOON);
        Some(soon.min(since + AGE))
    }

    /// Whether it is due by its age or its amount.
    pub fn is_due(&self, now: Instant) -> bool {
        self.bytes >= MOST || self.due().is_some_and(|at| now >= at)
    }

    /// It is to be recorded from now on.
    pub fn take(&mut self, now: Instant) {
        (self.bytes, self.since, self.last) = (0, None, Some(now));
    }

    /// It couldn't be asked for: it is due again.
    pub fn refused(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_due_by_its_age() {
        let start = Instant::now();
        let mut written = Unrecorded::default();
        assert_eq!((written.due(), written.is_due(start)), (None, false));
        written.wrote(1, start);
        written.wrote(2, start + SOON / 2);
        assert_eq!(
            (written.amount(), written.due()),
            ((3, Some(start)), Some(start + SOON)),
            "the first in a while"
        );
        assert!(written.is_due(start + SOON) && !written.is_due(start + SOON / 2));
        written.take(start + SOON);
        assert_eq!((written.amount(), written.due()), ((0, None), None));
        // Not more often than that, and not later either.
        let again = start + SOON + SOON / 2;
        written.wrote(1, again);
        assert_eq!(written.due(), Some(start + SOON + AGE));
        written.take(start + 100 * AGE);
        written.wrote(1, start + 100 * AGE);
        assert_eq!(written.due(), Some(start + 101 * AGE));
    }

    #[test]
    fn what_is_written_is_due_by_its_amount() {
        let start = Instant::now();
        let mut written = Unrecorded::default();
        written.wrote(MOST - 1, start);
        assert!(!written.is_due(start));
        written.wrote(1, start);
        assert!(written.is_due(start));
        written.take(start);
        assert!(!written.is_due(start));
        // What was refused is tried again, though nothing was written since.
        written.refused(start);
        assert_eq!(written.due(), Some(start + AGE));
    }
}
