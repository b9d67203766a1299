//! How much may be kept: an account of bytes, for all torrents together. Pure, and without a lock.
//!
//! **Goal.** What the data takes never exceeds `--cache-size`, and what must stay free on the disk stays free, however
//! many threads write; and nothing is counted twice or forgotten.
//!
//! **Flow.** Room is reserved before a piece is written ([`Quota::reserve`]); a reservation is given back on being
//! dropped, and becomes a lasting charge when the piece is there ([`Reservation::keep`]). What is given back on the
//! disk is released ([`Quota::release`]). How much the disk has beyond what must stay free is told now and then
//! ([`Quota::disk_has`]); in between, what is reserved is taken off it and what is released added. What changes while
//! the disk is being looked at counts against us, so that no look grants what isn't there.
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
    /// Ever reserved, without what was given back unused.
    granted: AtomicI64,
    /// Ever released.
    released: AtomicI64,
    /// How far what was granted may go beyond what was released; [`i64::MAX`] for no end.
    limit: AtomicI64,
    /// How many reservations were kept: writes that worked.
    kept: AtomicU64,
    /// What open files hold of what is kept; see [`Quota::hold`].
    held: AtomicU64,
}

/// How the account stood before a look at the disk; see [`Quota::disk_has`].
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    granted: i64,
    pending: u64,
}

impl Quota {
    /// An empty account. With `bound`, no more than so many bytes; until told otherwise the disk has room for all.
    pub fn new(bound: Option<u64>) -> Self {
        Self {
            bound,
            used: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            granted: AtomicI64::new(0),
            released: AtomicI64::new(0),
            limit: AtomicI64::new(i64::MAX),
            kept: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// How many bytes may be kept, if that is bounded.
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }

    /// Bytes charged and reserved.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// How many reservations were kept so far: writes that worked.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    /// Takes room for `bytes`, if there is any. Never waits. What takes no room always has it.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        if bytes > 0 {
            let bound = self.bound.unwrap_or(u64::MAX);
            let fits = |used: u64| used.checked_add(bytes).filter(|after| *after <= bound);
            self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
            // Pending before granted: a mark taken in between counts it twice at the worst, and never not at all.
            self.pending.fetch_add(bytes, Ordering::AcqRel);
            let fits = |granted: i64| {
                let after = granted.checked_add_unsigned(bytes)?;
                let most = self.limit.load(Ordering::Acquire);
                let most = most.saturating_add(self.released.load(Ordering::Acquire));
                (after <= most).then_some(after)
            };
            if self.granted.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
                less(&self.pending, bytes);
                less(&self.used, bytes);
                return None;
            }
        }
        Some(Reservation { quota: self.clone(), bytes })
    }

    /// Counts what is there already, also if it is more than may be.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What was charged is not there any more.
    pub fn release(&self, bytes: u64) {
        less(&self.used, bytes);
        self.released.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    /// What was charged as `before` bytes is charged as `now` from here on, whoever counted it first.
    pub fn recount(&self, before: u64, now: u64) {
        match now.checked_sub(before) {
            Some(more) => self.charge(more),
            None => less(&self.used, before - now),
        }
    }

    /// How the account stands, to be taken before a look at the disk.
    pub fn mark(&self) -> Mark {
        // In this order: see `reserve`.
        let granted = self.granted.load(Ordering::Acquire);
        Mark { granted, pending: self.pending.load(Ordering::Acquire) }
    }

    /// The disk has `free` bytes, of which `floor` are to stay free, by a look that began after `mark`.
    pub fn disk_has(&self, mark: Mark, free: u64, floor: u64) {
        let left = i64::try_from(free).unwrap_or(i64::MAX).saturating_sub_unsigned(floor);
        // What was granted after the mark may or may not have been on the disk: it counts as if it wasn't. What was
        // released by now may or may not be in what is free: it counts as if it was.
        let limit = mark.granted.saturating_sub_unsigned(mark.pending).saturating_add(left);
        let limit = limit.saturating_sub(self.released.load(Ordering::Acquire));
        self.limit.store(limit.min(i64::MAX - 1), Ordering::Release);
    }

    /// The disk has nothing more, whatever it said; until the next look, or until something is released.
    pub fn disk_is_full(&self) {
        if self.headroom() > 0 {
            let granted = self.granted.load(Ordering::Acquire);
            let limit = granted.saturating_sub(self.released.load(Ordering::Acquire));
            self.limit.store(limit, Ordering::Release);
        }
    }

    /// What may still be written to the disk; below zero when it has less free than it is to have.
    fn headroom(&self) -> i64 {
        match self.limit.load(Ordering::Acquire) {
            i64::MAX => i64::MAX,
            limit => {
                let spent = self
                    .granted
                    .load(Ordering::Acquire)
                    .saturating_sub(self.released.load(Ordering::Acquire));
                limit.saturating_sub(spent)
            }
        }
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
        let left = self.headroom();
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

    /// Counts so many bytes of what is kept as held, so that they can't go: `None` for what [`Quota::may_hold`] says no
    /// to, when all that is held would be more than half the bound, and while less is free on the disk than is to be.
    /// Never waits.
    pub fn hold(self: &Arc<Self>, bytes: u64) -> Option<Holding> {
        if !self.may_hold(bytes) || self.headroom() < 0 {
            return None;
        }
        let most = self.bound.map_or(u64::MAX, |bound| bound / 2);
        let fits = |held: u64| held.checked_add(bytes).filter(|after| *after <= most);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(Holding { quota: self.clone(), bytes })
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }
}

/// Bytes that are held; dropping it lets go of them.
#[derive(Debug)]
pub struct Holding {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Drop for Holding {
    fn drop(&mut self) {
        less(&self.quota.held, self.bytes);
    }
}

/// Takes off; never below nothing.
fn less(from: &AtomicU64, bytes: u64) {
    let take = |n: u64| {
        debug_assert!(n >= bytes, "{bytes} bytes were never there");
        Some(n.saturating_sub(bytes))
    };
    // Always some: never an error.
    let _ = from.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
}

/// Room that was taken and isn't used yet; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the room back"]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Reservation {
    /// How much it is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it was for is there: it stays charged.
    pub fn keep(mut self) {
        less(&self.quota.pending, std::mem::take(&mut self.bytes));
        self.quota.kept.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let bytes = i64::try_from(self.bytes).unwrap_or(i64::MAX);
            // Granted before pending: the other way round as in `reserve`, for the same reason.
            self.quota.granted.fetch_sub(bytes, Ordering::AcqRel);
            less(&self.quota.pending, self.bytes);
            less(&self.quota.used, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn look(quota: &Quota, free: u64, floor: u64) {
        quota.disk_has(quota.mark(), free, floor);
    }

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
        assert_eq!((small.kept(), large.kept()), (1, 0));
    }

    #[test]
    fn what_the_disk_has_counts_as_well() {
        let quota = Arc::new(Quota::new(None));
        assert!(quota.has_free(u64::MAX / 4));
        look(&quota, 100, 40);
        let first = quota.reserve(50).unwrap();
        assert!(quota.reserve(11).is_none());
        assert_eq!((quota.lacking(11), quota.lacking_by_bound(11), quota.lacking_on_disk(11)), (1, 0, 1));
        // Looked at again before the first was written: it is still to come.
        look(&quota, 100, 40);
        assert!(quota.reserve(11).is_none());
        drop(first);
        assert!(quota.reserve(60).is_some());
        look(&quota, 30, 40);
        assert_eq!(quota.lacking(5), 15, "too little is free as it is");
        quota.disk_is_full();
        assert_eq!(quota.lacking(5), 15, "it can't be better than it was");
        look(&quota, 100, 0);
        quota.disk_is_full();
        assert!(quota.reserve(1).is_none() && quota.reserve(0).is_some());
        quota.charge(7);
        quota.release(7);
        assert!(quota.reserve(8).is_none() && quota.reserve(7).is_some(), "what was given back is there");
    }

    #[test]
    fn what_changes_during_a_look_at_the_disk_is_not_granted_twice() {
        let quota = Arc::new(Quota::new(None));
        look(&quota, 100, 0);
        quota.charge(60);
        // Reserved, and perhaps written, after the disk had said that it has 100.
        let mark = quota.mark();
        quota.reserve(30).unwrap().keep();
        // Given back before it said so, or after.
        quota.release(20);
        quota.disk_has(mark, 100, 0);
        assert!(quota.reserve(71).is_none() && quota.reserve(70).is_some());
        // The next look knows.
        look(&quota, 90, 0);
        assert!(quota.reserve(91).is_none() && quota.reserve(90).is_some());
        quota.release(5);
        assert!(quota.reserve(96).is_none() && quota.reserve(95).is_some());
    }

    #[test]
    fn who_counts_it_first_does_not_matter() {
        let quota = Quota::new(Some(10));
        quota.charge(30);
        quota.recount(30, 40);
        assert_eq!((quota.used(), quota.lacking(0)), (40, 30));
        quota.recount(40, 8);
        assert_eq!((quota.used(), quota.lacking(2), quota.lacking(3)), (8, 0, 1));
    }

    #[test]
    fn large_files_are_not_held_under_a_bound() {
        for (bound, len, may) in [(None, u64::MAX, true), (Some(100), 25, true), (Some(100), 26, false)] {
            assert_eq!(Quota::new(bound).may_hold(len), may, "{bound:?} {len}");
        }
    }

    #[test]
    fn what_is_held_never_fills_the_bound() {
        let quota = Arc::new(Quota::new(Some(100)));
        let first = quota.hold(25).unwrap();
        assert!(quota.hold(26).is_none(), "more than a quarter");
        let second = quota.hold(24).unwrap();
        assert!(quota.hold(2).is_none() && quota.held() == 49, "more than half in all");
        drop(first);
        let third = quota.hold(25).unwrap();
        assert!(quota.hold(0).is_some());
        drop((second, third));
        assert_eq!((quota.held(), quota.used()), (0, 0));
        // Without a bound, as long as the disk has what it is to have.
        let quota = Arc::new(Quota::new(None));
        let all = quota.hold(u64::MAX).unwrap();
        assert!(quota.hold(1).is_none(), "there are no more bytes");
        drop(all);
        quota.disk_is_full();
        assert!(quota.hold(1).is_some(), "nothing has to go");
        look(&quota, 30, 40);
        assert!(quota.hold(1).is_none(), "something has to");
        look(&quota, 41, 40);
        assert!(quota.hold(1).is_some());
    }

    #[test]
    fn s2_threads_never_exceed_the_bound() {
        // With a bound, and with a disk that has as much.
        for (bound, free) in [(Some(100), 1 << 40), (None, 100)] {
            let quota = Arc::new(Quota::new(bound));
            look(&quota, free, 0);
            std::thread::scope(|scope| {
                for n in 1..=4u64 {
                    let quota = &quota;
                    scope.spawn(move || {
                        for turn in 0..5000u64 {
                            let Some(room) = quota.reserve(n * 9 + turn % 7) else { continue };
                            assert!(bound.is_none() || quota.used() <= 100);
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
            assert!(quota.reserve(101).is_none() && quota.reserve(100).is_some());
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Reserve(u64),
        Keep,
        Drop,
        Release,
        Charge(u64),
        Recount(u64),
        Disk(u64),
        Full,
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
                    1 => (0..80u64).prop_map(Op::Recount),
                    1 => (0..300u64).prop_map(Op::Disk),
                    1 => Just(Op::Full),
                ],
                1..60,
            ),
        ) {
            const FLOOR: i128 = 50;
            let quota = Arc::new(Quota::new(bound));
            let (mut reserved, mut kept) = (Vec::new(), Vec::new());
            // What the disk still takes, by a model that knows everything.
            let mut left: Option<i128> = None;
            for op in ops {
                let all: u64 = reserved.iter().map(|(_, bytes)| bytes).chain(&kept).sum();
                match op {
                    Op::Reserve(bytes) => {
                        let fits = bound.is_none_or(|bound| all + bytes <= bound)
                            && left.is_none_or(|left| i128::from(bytes) <= left);
                        prop_assert_eq!(quota.lacking(bytes) == 0, fits);
                        let room = quota.reserve(bytes);
                        prop_assert_eq!(room.is_some(), fits || bytes == 0);
                        if room.is_some() {
                            left = left.map(|left| left - i128::from(bytes));
                        }
                        reserved.extend(room.map(|room| (room, bytes)));
                    }
                    Op::Keep => {
                        if let Some((room, bytes)) = reserved.pop() {
                            room.keep();
                            kept.push(bytes);
                        }
                    }
                    Op::Drop => {
                        if let Some((room, bytes)) = reserved.pop() {
                            drop(room);
                            left = left.map(|left| left + i128::from(bytes));
                        }
                    }
                    Op::Release => {
                        if let Some(bytes) = kept.pop() {
                            quota.release(bytes);
                            left = left.map(|left| left + i128::from(bytes));
                        }
                    }
                    Op::Charge(bytes) => {
                        quota.charge(bytes);
                        kept.push(bytes);
                    }
                    Op::Recount(now) => {
                        if let Some(before) = kept.last_mut() {
                            quota.recount(*before, now);
                            *before = now;
                        }
                    }
                    Op::Disk(free) => {
                        look(&quota, free, FLOOR as u64);
                        let pending: u64 = reserved.iter().map(|(_, bytes)| bytes).sum();
                        left = Some(i128::from(free) - FLOOR - i128::from(pending));
                    }
                    Op::Full => {
                        quota.disk_is_full();
                        left = Some(left.map_or(0, |left| left.min(0)));
                    }
                }
                let all: u64 = reserved.iter().map(|(_, bytes)| bytes).chain(&kept).sum();
                prop_assert_eq!(quota.used(), all);
            }
        }
    }
}
