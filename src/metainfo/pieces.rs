//! Which hash a piece must have, and checking a piece against it block by block.
//!
//! v1 has one SHA-1 per piece. v2 (BEP 52) has a Merkle root per piece: out of the file's piece layer, or the
//! root of the file itself when it fits in one piece. Layers are kept once however many files share one, so
//! the memory is bounded by the input and not by the sizes that it claims.

use bytes::Bytes;

use super::geometry::{BLOCK_LEN, PieceIndex};
use crate::hash::{self, Node, Sha1, Sha256};

/// The hashes of all pieces of a torrent.
#[derive(Debug, Clone)]
pub enum PieceHashes {
    /// 20 bytes for each piece (v1, hybrid).
    V1(Bytes),
    /// The pieces of each file that isn't empty, in order (v2).
    V2(Vec<FileHashes>),
}

/// The hashes of the pieces of one file of a v2 torrent.
#[derive(Debug, Clone)]
pub struct FileHashes {
    /// Its first piece.
    pub first: PieceIndex,
    /// 32 bytes for each piece.
    pub roots: Bytes,
    /// Leaves in the tree of each of its pieces; a power of two.
    pub leaves: u32,
}

impl PieceHashes {
    /// What the piece must hash to; none for a piece that doesn't exist.
    pub fn piece(&self, piece: PieceIndex) -> Option<PieceHash> {
        match self {
            Self::V1(hashes) => hashes.as_chunks().0.get(piece.0 as usize).copied().map(PieceHash::V1),
            Self::V2(files) => {
                let after = files.partition_point(|file| file.first <= piece);
                let file = files.get(after.checked_sub(1)?)?;
                let root = *file.roots.as_chunks().0.get((piece.0 - file.first.0) as usize)?;
                Some(PieceHash::V2 { root, leaves: file.leaves })
            }
        }
    }

    /// Number of pieces that have a hash.
    pub fn len(&self) -> usize {
        match self {
            Self::V1(hashes) => hashes.len() / 20,
            Self::V2(files) => files.iter().map(|file| file.roots.len() / 32).sum(),
        }
    }

    /// Whether there is no piece at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What one piece must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceHash {
    /// The SHA-1 of its bytes.
    V1([u8; 20]),
    /// The root over its blocks.
    V2 {
        /// The root.
        root: Node,
        /// Leaves in the tree, padding included; a power of two.
        leaves: u32,
    },
}

impl PieceHash {
    /// Whether the piece that these slices make up, in order, is the right one. They may be cut anywhere.
    pub fn verify(&self, blocks: &[impl AsRef<[u8]>]) -> bool {
        let mut check = self.check();
        for block in blocks {
            check.update(block.as_ref());
        }
        check.finish()
    }

    /// Begins a check that takes the piece in parts.
    pub fn check(&self) -> PieceCheck {
        let state = match self {
            Self::V1(_) => State::V1(Sha1::new()),
            Self::V2 { .. } => State::V2 { done: Vec::new(), leaf: Sha256::new(), filled: 0 },
        };
        PieceCheck { want: *self, state }
    }
}

/// A check of one piece that takes its bytes in order, as they are read.
pub struct PieceCheck {
    want: PieceHash,
    state: State,
}

enum State {
    V1(Sha1),
    /// The finished leaves, and the one being filled with its number of bytes.
    V2 {
        done: Vec<Node>,
        leaf: Sha256,
        filled: usize,
    },
}

impl PieceCheck {
    /// Takes in the next bytes of the piece.
    pub fn update(&mut self, mut data: &[u8]) {
        match &mut self.state {
            State::V1(hash) => hash.update(data),
            State::V2 { done, leaf, filled } => {
                while !data.is_empty() {
                    let room = BLOCK_LEN as usize - *filled;
                    let (now, later) = data.split_at(room.min(data.len()));
                    leaf.update(now);
                    *filled += now.len();
                    data = later;
                    if *filled == BLOCK_LEN as usize {
                        done.push(std::mem::take(leaf).finish());
                        *filled = 0;
                    }
                }
            }
        }
    }

    /// Whether what was taken in is the piece.
    pub fn finish(self) -> bool {
        match (self.state, self.want) {
            (State::V1(hash), PieceHash::V1(want)) => hash.finish() == want,
            (State::V2 { mut done, leaf, filled }, PieceHash::V2 { root, leaves }) => {
                if filled > 0 {
                    done.push(leaf.finish());
                }
                done.len() <= leaves as usize && hash::merkle_root(&done, leaves) == root
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn v1_pieces() {
        let hashes = [hash::sha1(b"one"), hash::sha1(b"two")].concat();
        let hashes = PieceHashes::V1(hashes.into());
        assert_eq!(hashes.len(), 2);
        assert!(hashes.piece(PieceIndex(0)).unwrap().verify(&["o", "ne"]));
        assert!(!hashes.piece(PieceIndex(0)).unwrap().verify(&["two"]));
        assert!(hashes.piece(PieceIndex(1)).unwrap().verify(&[b"two"]));
        assert_eq!(hashes.piece(PieceIndex(2)), None);
        assert_eq!(hashes.piece(PieceIndex(u32::MAX)), None);
    }

    #[test]
    fn v2_pieces_of_two_files() {
        let block = vec![7u8; BLOCK_LEN as usize];
        let leaf = hash::sha256(&block);
        let end = hash::sha256(b"end");
        let whole = hash::merkle_root(&[leaf, leaf], 2);
        let short = hash::merkle_root(&[end], 2);
        let hashes = PieceHashes::V2(vec![
            FileHashes { first: PieceIndex(0), roots: [whole, short].concat().into(), leaves: 2 },
            FileHashes { first: PieceIndex(2), roots: end.to_vec().into(), leaves: 1 },
        ]);
        assert_eq!(hashes.len(), 3);
        let first = hashes.piece(PieceIndex(0)).unwrap();
        assert!(first.verify(&[&block, &block]));
        assert!(first.verify(&[&block[..5], &block[5..], &block[..1], &block[1..]]));
        assert!(!first.verify(&[&block]));
        assert!(!first.verify(&[&block, &block, &block]));
        assert!(hashes.piece(PieceIndex(1)).unwrap().verify(&["end"]));
        assert!(hashes.piece(PieceIndex(2)).unwrap().verify(&["end"]));
        assert_eq!(hashes.piece(PieceIndex(2)), Some(PieceHash::V2 { root: end, leaves: 1 }));
        assert_eq!(hashes.piece(PieceIndex(3)), None);
        assert!(!hashes.piece(PieceIndex(2)).unwrap().verify(&[[0u8; 0]; 0]));
    }
}
