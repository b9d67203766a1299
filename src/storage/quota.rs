//! How much may be kept: an account of bytes, for all torrents together. Pure, and without a lock.
//!
//! **Goal.** What the data takes never exceeds `--cache-size`, and what must stay free on the disk stays free, however
//! many threads write; and nothing is counted twice or forgotten.
//!
//! **Flow.** Room is reserved before a piece is written ([`Quota::reserve`]); a reservation is given back on being
//! dropped, and becomes a lasting charge when the piece is there ([`Reservation::keep`]). What is given back on the
//! disk is released ([`Quota::release`]). How much the disk has beyond what must stay free is told now and then
//! ([`Quota::disk_has`]); in between, what is reserved is taken off it and what is released added.
//!
//! **Not here.** Which pieces go, and when the disk is looked at: that is the keeper's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub struct Quota {
    bound: Option<u64>,
    /// Charged and reserved.
    used: AtomicU64,
    /// Reserved and neither kept nor given back: what may not be on the disk yet.
    pending: AtomicU64,
    /// What may still be written to the disk; below zero when it has less free than it is to have.
    disk: AtomicI64,
}

impl Quota {
    /// An empty account. With `bound`, no more than so many bytes; until told otherwise the disk has room for all.
    pub fn new(bound: Option<u64>) -> Self {
        Self { bound, used: AtomicU64::new(0), pending: AtomicU64::new(0), disk: AtomicI64::new(i64::MAX) }
    }

    /// How many bytes may be kept, if that is bounded.
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }

    /// Bytes charged and reserved.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes room for `bytes`, if there is any. Never waits.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let disk = |left: i64| left.checked_sub_unsigned(bytes).filter(|left| *left >= 0 || bytes == 0);
        self.disk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, disk).ok()?;
        let fits = |used: u64| {
            let after = used.checked_add(bytes)?;
            (bytes == 0 || self.bound.is_none_or(|bound| after <= bound)).then_some(after)
        };
        if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            self.disk_gains(bytes);
            return None;
        }
        self.pending.fetch_add(bytes, Ordering::Relaxed);
        Some(Reservation { quota: self.clone(), bytes })
    }

    /// Counts what is there already, also if it is more than may be.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was charged is not there any more.
    pub fn release(&self, bytes: u64) {
        self.give_back(bytes);
        self.disk_gains(bytes);
    }

    /// What was charged is counted no longer, though it is still there.
    pub fn forget(&self, bytes: u64) {
        self.give_back(bytes);
    }

    fn give_back(&self, bytes: u64) {
        let less = |used: u64| {
            debug_assert!(used >= bytes, "{bytes} bytes were never charged");
            Some(used.saturating_sub(bytes))
        };
        // Always some: never an error.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn disk_gains(&self, bytes: u64) {
        let more = |left: i64| Some(left.saturating_add_unsigned(bytes));
        let _ = self.disk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// The disk has `free` bytes, of which `floor` are to stay free.
    pub fn disk_has(&self, free: u64, floor: u64) {
        let left = i64::try_from(free).unwrap_or(i64::MAX).saturating_sub_unsigned(floor);
        let pending = self.pending.load(Ordering::Relaxed);
        self.disk.store(left.saturating_sub_unsigned(pending), Ordering::Relaxed);
    }

    /// The disk has nothing more, whatever it said.
    pub fn disk_is_full(&self) {
        let none = |left: i64| Some(left.min(0));
        let _ = self.disk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, none);
    }

    /// Whether so much could be reserved now.
    pub fn has_free(&self, bytes: u64) -> bool {
        self.lacking(bytes) == 0
    }

    /// How many bytes have to go before so much can be reserved; 0 when it can be.
    pub fn lacking(&self, bytes: u64) -> u64 {
        self.lacking_by_bound(bytes).max(self.lacking_on_disk(bytes))
    }

    /// As [`Quota::lacking`], for the bound alone.
    pub fn lacking_by_bound(&self, bytes: u64) -> u64 {
        self.bound.map_or(0, |bound| self.used().saturating_add(bytes).saturating_sub(bound))
    }

    /// As [`Quota::lacking`], for the disk alone.
    pub fn lacking_on_disk(&self, bytes: u64) -> u64 {
        let left = self.disk.load(Ordering::Relaxed);
        match u64::try_from(left) {
            Ok(left) => bytes.saturating_sub(left),
            Err(_) => left.unsigned_abs().saturating_add(bytes),
        }
    }

    /// Whether a complete file of this length may be opened in a way that holds all of it as long as it is open: under
    /// a bound no file that is larger than a quarter of it, or what is held would fill the bound.
    pub fn may_hold(&self, len: u64) -> bool {
        self.bound.is_none_or(|bound| len <= bound / 4)
    }
}

/// Room that was taken and isn't used yet; dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Reservation {
    /// What it was for is there: it stays charged.
    pub fn keep(mut self) {
        self.quota.pending.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.quota.pending.fetch_sub(self.bytes, Ordering::Relaxed);
            self.quota.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn s2_two_bounds_in_one_process_know_nothing_of_each_other() {
        let (small, large) = (Arc::new(Quota::new(Some(10))), Arc::new(Quota::new(Some(100))));
        let kept = small.reserve(10).unwrap();
        assert!(small.reserve(1).is_none() && large.reserve(90).is_some());
        kept.keep();
        assert_eq!((small.used(), large.used()), (10, 0));
        assert!(small.reserve(0).is_some(), "nothing is always there");
        small.release(10);
        assert!(small.reserve(11).is_none() && small.reserve(10).is_some());
    }

    #[test]
    fn what_the_disk_has_counts_as_well() {
        let quota = Arc::new(Quota::new(None));
        assert!(quota.has_free(u64::MAX / 4));
        quota.disk_has(100, 40);
        let first = quota.reserve(50).unwrap();
        assert!(quota.reserve(11).is_none());
        assert_eq!((quota.lacking(11), quota.lacking_by_bound(11), quota.lacking_on_disk(11)), (1, 0, 1));
        // Looked at again before the first was written: it is still to come.
        quota.disk_has(100, 40);
        assert!(quota.reserve(11).is_none());
        drop(first);
        assert!(quota.reserve(60).is_some());
        quota.disk_has(30, 40);
        assert_eq!(quota.lacking(5), 15, "too little is free as it is");
        quota.disk_has(100, 0);
        quota.disk_is_full();
        assert!(quota.reserve(1).is_none() && quota.reserve(0).is_some());
    }

    #[test]
    fn large_files_are_not_held_under_a_bound() {
        for (bound, len, may) in [(None, u64::MAX, true), (Some(100), 25, true), (Some(100), 26, false)] {
            assert_eq!(Quota::new(bound).may_hold(len), may, "{bound:?} {len}");
        }
    }

    #[test]
    fn s2_threads_never_exceed_the_bound() {
        let quota = Arc::new(Quota::new(Some(100)));
        std::thread::scope(|scope| {
            for n in 1..=4u64 {
                let quota = &quota;
                scope.spawn(move || {
                    for turn in 0..5000u64 {
                        let Some(room) = quota.reserve(n * 9 + turn % 7) else { continue };
                        assert!(quota.used() <= 100);
                        let bytes = room.bytes;
                        if turn % 3 == 0 {
                            room.keep();
                            quota.release(bytes);
                        }
                    }
                });
            }
        });
        assert_eq!((quota.used(), quota.pending.load(Ordering::Relaxed)), (0, 0));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Reserve(u64),
        Keep,
        Drop,
        Release,
        Charge(u64),
        Disk(u64),
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
        #[test]
        fn the_account_is_right_after_any_history(
            bound in proptest::option::of(0..200u64),
            ops in proptest::collection::vec(
                prop_oneof![
                    4 => (0..80u64).prop_map(Op::Reserve),
                    2 => Just(Op::Keep),
                    1 => Just(Op::Drop),
                    2 => Just(Op::Release),
                    1 => (0..80u64).prop_map(Op::Charge),
                    1 => (0..300u64).prop_map(Op::Disk),
                ],
                1..60,
            ),
        ) {
            let quota = Arc::new(Quota::new(bound));
            let (mut reserved, mut kept) = (Vec::new(), Vec::new());
            for op in ops {
                let lacking = |bytes| quota.lacking(bytes);
                match op {
                    Op::Reserve(bytes) => {
                        let expected = lacking(bytes) == 0 || bytes == 0;
                        let room = quota.reserve(bytes);
                        prop_assert_eq!(room.is_some(), expected);
                        reserved.extend(room.map(|room| (room, bytes)));
                    }
                    Op::Keep => {
                        if let Some((room, bytes)) = reserved.pop() {
                            room.keep();
                            kept.push(bytes);
                        }
                    }
                    Op::Drop => drop(reserved.pop()),
                    Op::Release => {
                        if let Some(bytes) = kept.pop() {
                            quota.release(bytes);
                        }
                    }
                    Op::Charge(bytes) => {
                        quota.charge(bytes);
                        kept.push(bytes);
                    }
                    Op::Disk(free) => quota.disk_has(free, 50),
                }
                let all: u64 = reserved.iter().map(|(_, bytes)| bytes).chain(&kept).sum();
                prop_assert_eq!(quota.used(), all);
            }
        }
    }
}
