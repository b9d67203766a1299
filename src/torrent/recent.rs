//! The pieces that were verified last, kept in memory for who reads close behind the fetching.
//!
//! **Goal.** What is written isn't left in the page cache (see `storage::file`), and a reader that follows the
//! swarm wants it at once: it is copied from the blocks that are in memory anyhow, with no disk in between.
//!
//! **Parts.** [`Recent`], one for the whole program, with a bound in bytes; [`Member`], a torrent's part of it;
//! [`copy`], which takes bytes out of a piece's blocks.
//!
//! **Flow.** A worker keeps a piece once it is written. A reader looks its pieces up, which clones the `Arc`s out
//! under a leaf lock, and copies with no lock held. The oldest go first, whichever torrent they are of; what
//! goes is dropped outside the lock, for that may give memory back to the system. A torrent that is dropped takes
//! its pieces along.
//!
//! **Not here.** Whether a piece may be served: only the piece table says so. Reading what isn't kept.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use torrentfs_fs::lock::{Rank, RankedMutex};

use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, PieceIndex};
use crate::peer::buffer::PieceBuffer;

/// Bytes of pieces that the program keeps. Enough for what several peers complete out of order in front of a
/// reader at full rate. A block keeps the socket buffer it came in, with blocks of its neighbours, so up to twice
/// this is held: a quarter of what the whole program may take.
pub const KEPT: usize = 8 * 1024 * 1024;

/// See the module. Dropping it drops the pieces.
#[derive(Debug)]
pub struct Recent {
    budget: usize,
    members: AtomicU64,
    kept: RankedMutex<Kept>,
}

/// A torrent's number and a piece of it.
type Key = (u64, PieceIndex);

#[derive(Debug, Default)]
struct Kept {
    /// By age: numbers only grow.
    by_age: BTreeMap<u64, (Key, usize, Arc<PieceBuffer>)>,
    by_piece: HashMap<Key, u64>,
    bytes: usize,
    next: u64,
}

impl Kept {
    fn take(&mut self, key: Key) -> Option<Arc<PieceBuffer>> {
        let age = self.by_piece.remove(&key)?;
        let (_, bytes, buffer) = self.by_age.remove(&age)?;
        self.bytes -= bytes;
        Some(buffer)
    }
}

impl Recent {
    /// Keeps nothing yet, and never more than `budget` bytes of pieces.
    pub fn new(budget: usize) -> Arc<Self> {
        let kept = RankedMutex::new(Rank::Leaf, "recent pieces", Kept::default());
        Arc::new(Self { budget, members: AtomicU64::new(0), kept })
    }

    /// The part of one more torrent.
    pub fn member(self: &Arc<Self>) -> Member {
        Member { recent: self.clone(), torrent: self.members.fetch_add(1, Ordering::Relaxed) }
    }
}

/// A torrent's part. Dropping it drops the torrent's pieces.
#[derive(Debug)]
pub struct Member {
    recent: Arc<Recent>,
    torrent: u64,
}

impl Member {
    /// Keeps a whole piece of `bytes` bytes, and drops the oldest for it; one that is larger than all that may be
    /// kept is not. Takes the place of what was kept of the same piece. Never waits.
    pub fn keep(&self, buffer: &Arc<PieceBuffer>, bytes: usize) {
        let key = (self.torrent, buffer.piece());
        let mut gone = Vec::new();
        {
            let mut kept = self.recent.kept.lock();
            gone.extend(kept.take(key));
            if bytes <= self.recent.budget {
                while kept.bytes + bytes > self.recent.budget {
                    let Some((_, (key, bytes, buffer))) = kept.by_age.pop_first() else { break };
                    kept.by_piece.remove(&key);
                    kept.bytes -= bytes;
                    gone.push(buffer);
                }
                let age = kept.next;
                kept.next += 1;
                kept.bytes += bytes;
                kept.by_piece.insert(key, age);
                kept.by_age.insert(age, (key, bytes, buffer.clone()));
            }
        }
        drop(gone);
    }

    /// Those of `pieces` that are kept, in order. Never waits.
    pub fn find(&self, pieces: Range<u32>) -> Vec<Arc<PieceBuffer>> {
        let kept = self.recent.kept.lock();
        if kept.by_piece.is_empty() {
            return Vec::new();
        }
        let one = |piece| {
            let age = kept.by_piece.get(&(self.torrent, PieceIndex(piece)))?;
            Some(kept.by_age.get(age)?.2.clone())
        };
        pieces.filter_map(one).collect()
    }
}

impl Member {
    /// Drops the torrent's pieces. Never waits.
    pub fn clear(&self) {
        let mut gone = Vec::new();
        {
            let mut kept = self.recent.kept.lock();
            let own: Vec<Key> = kept.by_piece.keys().filter(|key| key.0 == self.torrent).copied().collect();
            gone.extend(own.into_iter().map(|key| kept.take(key)));
        }
        drop(gone);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Fills `to` with a piece's bytes from `begin`; false when they aren't all there.
pub fn copy(buffer: &PieceBuffer, begin: u64, to: &mut [u8]) -> bool {
    let (mut rest, mut at) = (to, begin);
    while !rest.is_empty() {
        let (block, within) = (at / u64::from(BLOCK_LEN), (at % u64::from(BLOCK_LEN)) as usize);
        let block = u32::try_from(block).ok().and_then(|n| buffer.block(BlockIndex(n)));
        let Some(from) = block.and_then(|b| b.get(within..)).filter(|from| !from.is_empty()) else {
            return false;
        };
        let len = from.len().min(rest.len());
        let (part, others) = rest.split_at_mut(len);
        part.copy_from_slice(&from[..len]);
        (rest, at) = (others, at + len as u64);
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use bytes::Bytes;

    use super::*;
    use crate::peer::PeerKey;

    const BLOCK: usize = BLOCK_LEN as usize;

    /// A piece of `len` bytes that depend on their place and on the piece.
    fn piece(index: u32, len: usize) -> (Arc<PieceBuffer>, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251 + index as usize) as u8).collect();
        let buffer = PieceBuffer::new(PieceIndex(index), len.div_ceil(BLOCK) as u32);
        for (n, block) in bytes.chunks(BLOCK).enumerate() {
            assert!(buffer.put(BlockIndex(n as u32), Bytes::copy_from_slice(block), PeerKey(1)));
        }
        (Arc::new(buffer), bytes)
    }

    /// Who keeps which piece of which size, and what the one and the other have then.
    type Row<'a> = (&'a Member, u32, usize, &'a [u32], &'a [u32]);

    fn kept(member: &Member) -> Vec<u32> {
        member.find(0..100).iter().map(|b| b.piece().0).collect()
    }

    #[test]
    fn the_oldest_go_first_whosever_they_are() {
        let recent = Recent::new(10);
        let (one, two) = (recent.member(), recent.member());
        let rows: [Row<'_>; 9] = [
            (&one, 5, 4, &[5], &[]),
            (&two, 5, 4, &[5], &[5]),
            (&one, 3, 2, &[3, 5], &[5]),
            (&one, 4, 1, &[3, 4], &[5]),
            // Kept again: younger than before.
            (&two, 5, 4, &[3, 4], &[5]),
            (&one, 6, 4, &[4, 6], &[5]),
            (&two, 1, 11, &[4, 6], &[5]),
            (&two, 2, 10, &[], &[2]),
            // Larger than all by now: what was kept of it goes too.
            (&two, 2, 11, &[], &[]),
        ];
        for (n, (who, index, bytes, ones, twos)) in rows.into_iter().enumerate() {
            who.keep(&piece(index, 20).0, bytes);
            assert_eq!((kept(&one), kept(&two)), (ones.to_vec(), twos.to_vec()), "row {n}");
            let kept = recent.kept.lock();
            assert_eq!(kept.bytes, kept.by_age.values().map(|(_, bytes, _)| bytes).sum::<usize>());
            assert!(kept.bytes <= 10 && kept.by_age.len() == kept.by_piece.len());
        }
    }

    #[test]
    fn a_torrent_takes_its_pieces_along() {
        let recent = Recent::new(10);
        let (one, two) = (recent.member(), recent.member());
        let buffer = piece(1, 20).0;
        one.keep(&buffer, 3);
        two.keep(&piece(1, 20).0, 3);
        assert_eq!(Arc::strong_count(&buffer), 2);
        drop(one);
        assert_eq!(Arc::strong_count(&buffer), 1);
        assert_eq!((kept(&two), recent.kept.lock().bytes), (vec![1], 3));
        two.clear();
        assert_eq!((kept(&two), recent.kept.lock().bytes), (vec![], 0));
    }

    #[test]
    fn nothing_is_kept_without_a_budget() {
        let member = Recent::new(0).member();
        member.keep(&piece(1, 20).0, 20);
        assert!(kept(&member).is_empty());
    }

    #[test]
    fn the_bytes_are_those_of_the_piece() {
        let len = 3 * BLOCK + 100;
        let (buffer, bytes) = piece(7, len);
        for begin in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 7, 3 * BLOCK, len - 1, len] {
            for count in [0, 1, 2, BLOCK, BLOCK + 1, len] {
                let count = count.min(len - begin);
                let mut to = vec![0xee; count];
                assert!(copy(&buffer, begin as u64, &mut to));
                assert_eq!(to, bytes[begin..begin + count], "{count} from {begin}");
            }
            assert!(
                !copy(&buffer, begin as u64, &mut vec![0; len - begin + 1]),
                "no further than it reaches"
            );
        }
        let lacking = PieceBuffer::new(PieceIndex(0), 2);
        lacking.put(BlockIndex(0), Bytes::from(vec![1; BLOCK]), PeerKey(1));
        assert!(copy(&lacking, 5, &mut [0; 10]));
        assert!(!copy(&lacking, BLOCK as u64 - 5, &mut [0; 10]));
        assert!(!copy(&lacking, u64::MAX, &mut [0; 10]));
    }
}
