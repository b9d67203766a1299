//! The torrents' numbers, which are the upper half of their entries' inode numbers.
//!
//! A number follows from the info-hash, so that it is the same after a restart, whatever else is mounted and in whatever
//! order: programs that remember inode numbers (incremental backups above all) find their files again. It is never
//! given twice in the life of the process, also not to the same torrent when that was removed and is added again: the
//! kernel may still know nodes of the number.

use std::collections::HashSet;

use torrentfs_fs::lock::{Rank, RankedMutex};

/// Numbers are below this: the highest bit tells a torrent that is still resolving.
const END: u32 = 1 << 31;

/// The numbers that were given.
pub(super) struct Slots(RankedMutex<HashSet<u32>>);

impl Default for Slots {
    fn default() -> Self {
        Self(RankedMutex::new(Rank::Leaf, "numbers of torrents", HashSet::new()))
    }
}

impl Slots {
    /// A number for a torrent with this info-hash, from 1: that which follows from it, or the next that was never given.
    pub(super) fn take(&self, wire: [u8; 20]) -> u32 {
        let [a, b, c, d, ..] = wire;
        let mut slot = (u32::from_be_bytes([a, b, c, d]) % END).max(1);
        let mut given = self.0.lock();
        while !given.insert(slot) {
            slot = ((slot + 1) % END).max(1);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(first: u32) -> [u8; 20] {
        let mut hash = [7; 20];
        hash[..4].copy_from_slice(&first.to_be_bytes());
        hash
    }

    #[test]
    fn a_number_follows_from_the_hash_and_is_never_given_twice() {
        let slots = Slots::default();
        // The hash's beginning, the number.
        let rows = [
            (0x1234_5678, 0x1234_5678),
            (0x9234_5678, 0x1234_5679),
            (0x1234_5678, 0x1234_567a),
            (0, 1),
            (0x8000_0000, 2),
            (1, 3),
            (0x7fff_ffff, 0x7fff_ffff),
            // Round the end.
            (0xffff_ffff, 4),
        ];
        for (first, slot) in rows {
            assert_eq!(slots.take(hash(first)), slot, "{first:x}");
        }
        assert_eq!(Slots::default().take(hash(0x9234_5678)), 0x1234_5678, "the same after a restart");
    }
}
