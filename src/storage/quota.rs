//! How much data may be kept, and how much is: an account for all torrents together. Pure arithmetic by atomics.
//!
//! **Goal.** What is kept never exceeds the bound, nothing is counted twice or forgotten, and the disk isn't filled
//! beyond what is to stay free on it.
//!
//! **Parts.** [`Quota`], the account; [`Reservation`], room for something that is about to be written: kept when it
//! was, given back when it is dropped; [`PassThrough`], the share of files that the kernel reads by itself.
//!
//! **Flow.** What is found at the start is charged, whatever it is. Room for each piece is reserved before it is
//! written. What is given back on the disk is released. Whoever looks at the disk says how much may still be written
//! ([`Quota::set_headroom`]); in between it is counted down here, so that looking now and then is enough.
//!
//! **Not here.** Waiting for room (`torrent::room`), looking at the disk, and who has to go (`client::keeper`).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Of a bounded cache, a file that is larger than this part of it isn't opened through passthrough: it would hold all
/// its pieces for as long as it is open.
const ONE_PART: u64 = 4;
/// No more than this part of a bounded cache is held by such files together: the rest is for everybody else.
const ALL_PARTS: u64 = 2;

/// The account. Nothing here waits.
pub struct Quota {
    bound: Option<u64>,
    /// Bytes that are charged or reserved.
    used: AtomicU64,
    /// Bytes that were reserved since the start and not given back unwritten…
    granted: AtomicU64,
    /// …and how far that may grow, by the last look at the disk.
    limit: AtomicU64,
    /// Bytes reserved and not yet written.
    unwritten: AtomicU64,
    /// How many reservations were kept.
    kept: AtomicU64,
    /// Bytes of the files open through passthrough.
    passed: AtomicU64,
    /// Called when there is more room.
    freed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes used of {:?}", self.used(), self.bound)
    }
}

/// What was granted at a moment before a look at the disk.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    granted: u64,
    unwritten: u64,
}

impl Quota {
    /// Nothing is used. `bound` in bytes; `None` for none. The disk has all the room there is, until somebody says
    /// otherwise.
    pub fn new(bound: Option<u64>) -> Self {
        Self {
            bound,
            used: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            unwritten: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            freed: OnceLock::new(),
        }
    }

    /// What may be used at most, in bytes.
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }

    /// Bytes that are charged or reserved. Above the bound only when more than it was found at the start.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Bytes used beyond the bound.
    pub fn excess(&self) -> u64 {
        self.bound.map_or(0, |bound| self.used().saturating_sub(bound))
    }

    /// Bytes that could be reserved now.
    pub fn room(&self) -> u64 {
        let bounded = self.bound.map_or(u64::MAX, |bound| bound.saturating_sub(self.used()));
        bounded.min(self.headroom())
    }

    /// Bytes that the disk takes now, by the last look at it.
    pub fn headroom(&self) -> u64 {
        match self.limit.load(Ordering::Acquire) {
            u64::MAX => u64::MAX,
            limit => limit.saturating_sub(self.granted.load(Ordering::Acquire)),
        }
    }

    /// Whether so many bytes could be reserved now.
    pub fn has_free(&self, bytes: u64) -> bool {
        bytes <= self.room()
    }

    /// Room for `bytes` bytes that are about to be written; `None` when the bound or the disk has none. What takes no
    /// room always has it.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        if bytes > 0 {
            if bytes > self.headroom() {
                return None;
            }
            let bound = self.bound.unwrap_or(u64::MAX);
            let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= bound);
            self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
            // In this order: a mark taken in between counts it as unwritten at the worst twice, never not at all.
            self.unwritten.fetch_add(bytes, Ordering::AcqRel);
            self.granted.fetch_add(bytes, Ordering::AcqRel);
        }
        Some(Reservation { quota: self.clone(), bytes })
    }

    /// Counts what is there already, whether it fits or not.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What was charged, or reserved and kept, isn't there any more.
    pub fn release(&self, bytes: u64) {
        less(&self.used, bytes);
        self.tell();
    }

    /// How many reservations were kept so far: what could be written.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    /// To be taken before a look at the disk, for [`Quota::set_headroom`].
    pub fn mark(&self) -> Mark {
        // In this order: see `reserve`.
        let granted = self.granted.load(Ordering::Acquire);
        Mark { granted, unwritten: self.unwritten.load(Ordering::Acquire) }
    }

    /// The disk has so much room beyond what is to stay free, by a look that began after `mark`; `None` for no bound.
    /// What was reserved before and not written yet is taken off.
    pub fn set_headroom(&self, mark: Mark, bytes: Option<u64>) {
        let limit = bytes.map_or(u64::MAX, |bytes| {
            let written = mark.granted.saturating_sub(mark.unwritten);
            written.saturating_add(bytes).min(u64::MAX - 1)
        });
        self.limit.store(limit, Ordering::Release);
    }

    /// Nothing more is reserved until the next [`Quota::set_headroom`].
    pub fn shut(&self) {
        self.limit.store(0, Ordering::Release);
    }

    /// A file of this size is to be opened through passthrough, which holds all its pieces until this is dropped;
    /// `None` when too much of the bound would be held.
    pub fn pass_through(self: &Arc<Self>, file_len: u64) -> Option<PassThrough> {
        if !self.may_pass_through(file_len) {
            return None;
        }
        let most = self.bound.map_or(u64::MAX, |bound| bound / ALL_PARTS);
        let fits = |passed: u64| passed.checked_add(file_len).filter(|sum| *sum <= most);
        self.passed.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(PassThrough { quota: self.clone(), bytes: file_len })
    }

    /// Whether a file of this size can ever be opened through passthrough.
    pub fn may_pass_through(&self, file_len: u64) -> bool {
        self.bound.is_none_or(|bound| file_len <= bound / ONE_PART)
    }

    /// From now on `told` is called whenever there is more room, by whoever made it: it must not wait. The first one
    /// stays.
    pub fn on_freed(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.freed.set(Box::new(told));
    }

    fn tell(&self) {
        if let Some(told) = self.freed.get() {
            told();
        }
    }
}

/// Takes off; never below nothing.
fn less(from: &AtomicU64, bytes: u64) {
    let before = from.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(bytes)));
    debug_assert!(before.is_ok_and(|n| n >= bytes), "given back what wasn't there");
}

/// Room for something that is about to be written. Dropping it gives the room back.
#[derive(Debug)]
#[must_use = "dropping it gives the room back"]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Reservation {
    /// It was written: charged from now on, until [`Quota::release`].
    pub fn keep(mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        less(&self.quota.unwritten, bytes);
        self.quota.kept.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            less(&self.quota.granted, self.bytes);
            less(&self.quota.unwritten, self.bytes);
            self.quota.release(self.bytes);
        }
    }
}

/// A file's share of what is held by files open through passthrough. Dropping it gives it back.
#[derive(Debug)]
pub struct PassThrough {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Drop for PassThrough {
    fn drop(&mut self) {
        less(&self.quota.passed, self.bytes);
    }
}
