//! Where a reader is and how much it has read in sequence: what the torrent's owner is told of an open handle. Pure.
//!
//! It lies with the reader, since each read moves it and most are answered without the owner. What follows from
//! it, how much is fetched ahead, is the owner's to decide ([`super::streams`]).

use std::time::{Duration, Instant};

/// How far off a read may lie from the last and still count as going on: one read of a program becomes several
/// requests of up to 1 MiB, and four threads take them, so they come out of order.
pub const SLACK: u64 = 2 << 20;
/// A step back of no more than this is neither a seek nor progress: players do it.
const STEP_BACK: u64 = 4 << 20;
/// The owner is told when a reader has moved by an eighth of its run, at least this…
const STEP_MIN: u64 = 16 << 10;
/// …and at most this: a few hundred times a second at full rate.
const STEP_MAX: u64 = 1 << 20;

/// A reader that moves is heard of at least so often, however slow it is.
const TELL: Duration = Duration::from_millis(500);

/// What the owner is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// First byte after what was read last, in the torrent's linear space.
    pub position: u64,
    /// Bytes read in sequence up to there.
    pub run: u64,
    /// Grows with each time the owner is told: of two that pass each other on the way the later one counts.
    pub number: u64,
}

/// Follows the reads of one handle.
#[derive(Debug, Clone)]
pub struct Track {
    at: Reach,
    /// Bytes behind the position that were skipped, and count when they are read after all.
    skipped: u64,
    told: Reach,
    told_at: Option<Instant>,
}

impl Track {
    /// A handle on a file that begins at `start`; nothing was read yet.
    pub fn new(start: u64) -> Self {
        let at = Reach { position: start, run: 0, number: 0 };
        Self { at, skipped: 0, told: at, told_at: None }
    }

    /// A read of `len` bytes at `offset`. Returns where the reader is, when that has changed by enough to be worth
    /// telling, or wasn't told for a while.
    pub fn on_read(&mut self, offset: u64, len: u64, now: Instant) -> Option<Reach> {
        let end = offset + len;
        let at = &mut self.at;
        let near = offset <= at.position + SLACK && offset + STEP_BACK >= at.position;
        if near && end > at.position {
            self.skipped = (self.skipped + offset.saturating_sub(at.position)).min(SLACK);
            at.run += len.min(end - at.position);
            at.position = end;
        } else if near {
            let late = len.min(self.skipped);
            self.skipped -= late;
            at.run += late;
        } else {
            // One read proves nothing: random ones are all alone.
            *at = Reach { position: end, run: 0, number: at.number };
            self.skipped = 0;
        }
        let step = (at.run / 8).clamp(STEP_MIN, STEP_MAX);
        let moved = at.position.saturating_sub(self.told.position) >= step;
        // What comes out of order counts late, and may be all there is of it.
        let grown = at.run.saturating_sub(self.told.run) >= step;
        let late = self.told_at.is_none_or(|told| now.saturating_duration_since(told) >= TELL);
        let late = late && at.position != self.told.position;
        if !near || moved || grown || late {
            at.number += 1;
            self.told = *at;
            self.told_at = Some(now);
            return Some(*at);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;

    #[test]
    fn reads_in_sequence_add_up_in_whatever_order_they_come() {
        let now = Instant::now();
        let mut track = Track::new(10 * MIB);
        let mut told = Vec::new();
        for n in 0..8 {
            told.extend(track.on_read(10 * MIB + n * 128 * KIB, 128 * KIB, now));
        }
        assert_eq!(told.last(), Some(&Reach { position: 11 * MIB, run: MIB, number: told.len() as u64 }));
        // A program's next MiB, in requests of 128 KiB, the last first.
        for n in (0..8).rev() {
            told.extend(track.on_read(11 * MIB + n * 128 * KIB, 128 * KIB, now));
        }
        assert_eq!((track.at.position, track.at.run), (12 * MIB, 2 * MIB));
        assert!(told.last().is_some_and(|r| r.position == 12 * MIB && r.run + 256 * KIB > 2 * MIB));
        assert!(told.iter().all(|r| r.run <= r.position - 10 * MIB));
    }

    #[test]
    fn a_small_step_back_changes_nothing_and_a_seek_begins_anew() {
        let now = Instant::now();
        let mut track = Track::new(0);
        for n in 0..16 {
            track.on_read(n * MIB, MIB, now);
        }
        assert_eq!(track.on_read(14 * MIB, 4096, now), None);
        let seek = track.on_read(500 * MIB, 4096, now).unwrap();
        assert_eq!((seek.position, seek.run), (500 * MIB + 4096, 0));
        let back = track.on_read(0, 4096, now).unwrap();
        assert_eq!((back.position, back.run), (4096, 0));
        assert!(back.number > seek.number);
    }

    #[test]
    fn f5_hops_forward_count_only_what_they_read() {
        let now = Instant::now();
        let mut track = Track::new(0);
        for n in 0..500 {
            track.on_read(n * MIB, 4096, now);
            assert!(track.at.run <= (n + 1) * 4096, "hop {n}: {:?}", track.at);
        }
    }

    #[test]
    fn the_owner_is_told_seldom() {
        let now = Instant::now();
        let mut track = Track::new(0);
        let told = (0..8192).filter(|n| track.on_read(n * 128 * KIB, 128 * KIB, now).is_some()).count();
        assert!(told < 1100, "{told} times for a GiB");
        // Small reads from the start: at once, then with the run.
        let mut track = Track::new(0);
        let told = (0..256).filter(|n| track.on_read(n * 4096, 4096, now).is_some()).count();
        assert!((8..40).contains(&told), "{told} times for a MiB");
    }

    #[test]
    fn a_slow_reader_is_heard_of_all_the_same() {
        // 64 KiB each second, after as much as makes the steps large.
        let mut now = Instant::now();
        let mut track = Track::new(0);
        (0..16).for_each(|n| _ = track.on_read(n * MIB, MIB, now));
        for n in 0..16 {
            now += Duration::from_secs(1);
            assert!(track.on_read(16 * MIB + n * 64 * KIB, 64 * KIB, now).is_some(), "{n}");
        }
    }
}
