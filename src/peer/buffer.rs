//! The blocks of a piece that is being fetched.
//!
//! A block is a slice of the socket buffer it arrived in, so it isn't copied on its way to the hash and to
//! the disk. Several peers may deliver the same block; the first wins and the rest see that they were late.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::metainfo::geometry::{BlockIndex, PieceIndex};

/// Room for the blocks of one piece. Shared between the owner, the peers that deliver, and the verifier.
#[derive(Debug)]
pub struct PieceBuffer {
    piece: PieceIndex,
    blocks: Box<[OnceLock<Bytes>]>,
}

impl PieceBuffer {
    /// An empty buffer of `blocks` blocks.
    pub fn new(piece: PieceIndex, blocks: u32) -> Self {
        Self { piece, blocks: (0..blocks).map(|_| OnceLock::new()).collect() }
    }

    /// The piece it is for.
    pub fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// Puts a block in; false if it was there already or doesn't exist. The caller has checked its length.
    pub fn put(&self, block: BlockIndex, data: Bytes) -> bool {
        self.blocks.get(block.0 as usize).is_some_and(|slot| slot.set(data).is_ok())
    }

    /// All blocks in order, or `None` while one is missing.
    pub fn blocks(&self) -> Option<Vec<&Bytes>> {
        self.blocks.iter().map(OnceLock::get).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_delivery_wins() {
        let buffer = PieceBuffer::new(PieceIndex(3), 2);
        assert!(buffer.put(BlockIndex(1), Bytes::from_static(b"b")));
        assert!(!buffer.put(BlockIndex(1), Bytes::from_static(b"x")));
        assert!(!buffer.put(BlockIndex(2), Bytes::from_static(b"x")));
        assert!(buffer.blocks().is_none());
        assert!(buffer.put(BlockIndex(0), Bytes::from_static(b"a")));
        assert_eq!(buffer.blocks().expect("whole"), [&b"a"[..], &b"b"[..]]);
    }
}
