//! The memory that pieces in the making may take, shared by all torrents: a count, no memory itself.
//!
//! A piece takes its whole length when its first block is asked for and gives it back when it is complete or
//! dropped. Who gets none asks for no new piece, so the peers' sockets fill and they stop sending: that is the
//! back-pressure. Nobody waits here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// For all pieces in the making, of all torrents, in bytes. At 250 MiB/s it is a tenth of a second's work, which
/// is more than hashing and writing lag behind; and it leaves room for buffers below 64 MiB in all.
pub const MAKING_MAX: u64 = 24 << 20;

/// A share in a budget; clones share the same one.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    max: u64,
    used: AtomicU64,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MAKING_MAX)
    }
}

impl Memory {
    /// A budget of `max` bytes.
    pub fn new(max: u64) -> Self {
        Self(Arc::new(Budget { max, used: AtomicU64::new(0) }))
    }

    /// Takes `bytes` if they fit; false, and nothing taken, if they don't. What nobody else uses may be taken
    /// even if it is more than all: a piece may be larger than the budget.
    pub fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| (used == 0 || used + bytes <= self.0.max).then_some(used + bytes);
        self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Takes `bytes` though they don't fit.
    pub fn take_anyway(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken.
    pub fn release(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes in all.
    pub fn max(&self) -> u64 {
        self.0.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_and_comes_back() {
        let memory = Memory::new(100);
        let other = memory.clone();
        // A row is what is asked for and whether it is given.
        for (bytes, given) in [(60, true), (41, false), (40, true), (1, false)] {
            assert_eq!(other.take(bytes), given, "{bytes}");
        }
        memory.release(100);
        assert!(memory.take(1000), "the only piece may be larger than all");
        assert!(!memory.take(1));
        memory.take_anyway(1);
        assert_eq!((memory.used(), memory.max()), (1001, 100));
    }
}
