//! The blocks of a piece that is being fetched.
//!
//! A block is a slice of the socket buffer it arrived in, so it isn't copied on its way to the hash and to
//! the disk. Several peers may deliver the same block; the first wins and the rest see that they were late.
//! Who was first stands beside the bytes, written in the same step: who is blamed for a bad piece must be the
//! one whose bytes were hashed, whatever order the owner learns of the deliveries in.

use std::sync::OnceLock;

use bytes::Bytes;

use super::PeerKey;
use crate::metainfo::geometry::{BlockIndex, PieceIndex};

/// Room for the blocks of one piece. Shared between the owner, the peers that deliver, and the verifier.
#[derive(Debug)]
pub struct PieceBuffer {
    piece: PieceIndex,
    blocks: Box<[OnceLock<(PeerKey, Bytes)>]>,
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

    /// Puts a block in that `from` sent; false if it was there already or doesn't exist. The caller has checked
    /// its length.
    pub fn put(&self, block: BlockIndex, data: Bytes, from: PeerKey) -> bool {
        self.blocks.get(block.0 as usize).is_some_and(|slot| slot.set((from, data)).is_ok())
    }

    /// Whose bytes lie in a block; `None` while it is empty.
    pub fn sender(&self, block: BlockIndex) -> Option<PeerKey> {
        self.blocks.get(block.0 as usize)?.get().map(|(from, _)| *from)
    }

    /// A block's bytes; `None` while it is empty.
    pub fn block(&self, block: BlockIndex) -> Option<&Bytes> {
        self.blocks.get(block.0 as usize)?.get().map(|(_, data)| data)
    }

    /// All blocks in order, or `None` while one is missing.
    pub fn blocks(&self) -> Option<Vec<&Bytes>> {
        self.blocks.iter().map(|slot| slot.get().map(|(_, data)| data)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_delivery_wins() {
        let buffer = PieceBuffer::new(PieceIndex(3), 2);
        let (one, two) = (PeerKey(1), PeerKey(2));
        assert!(buffer.put(BlockIndex(1), Bytes::from_static(b"b"), one));
        assert!(!buffer.put(BlockIndex(1), Bytes::from_static(b"x"), two));
        assert!(!buffer.put(BlockIndex(2), Bytes::from_static(b"x"), two));
        assert_eq!((buffer.sender(BlockIndex(1)), buffer.sender(BlockIndex(0))), (Some(one), None));
        assert!(buffer.blocks().is_none());
        assert!(buffer.put(BlockIndex(0), Bytes::from_static(b"a"), two));
        assert_eq!(buffer.blocks().expect("whole"), [&b"a"[..], &b"b"[..]]);
    }
}
