//! Who sent bad data. Pure.
//!
//! A piece that fails its hash and came from one sender alone, a peer or a webseed, convicts that one. With several
//! contributors the digests of their blocks are kept, the piece is fetched again from one of them alone (see
//! [`super::picker::Picker::failed`]), and when it passes, whoever's block differs is convicted.
//! Nobody is convicted on suspicion: an honest peer that shared a piece with a bad one stays.
//! What a conviction leads to: a peer is banned, for a webseed see [`super::webseeds`].

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::metainfo::geometry::PieceIndex;
use crate::peer::PeerKey;

/// The SHA-1 of a block.
pub type Digest = [u8; 20];

/// Who sent a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// A peer at this address.
    Peer(SocketAddr),
    /// A webseed.
    Webseed(PeerKey),
}

/// Failed pieces whose blocks are remembered; with 1 MiB pieces about a megabyte. Beyond it, the next failed
/// piece isn't remembered, and its senders are found out at another.
const REMEMBERED: usize = 256;

/// What is remembered of failed pieces.
#[derive(Debug, Default)]
pub struct Blame {
    /// By piece: for each block who sent it, and its digest.
    suspects: HashMap<PieceIndex, Vec<(usize, Sender, Digest)>>,
}

impl Blame {
    /// Whether the digests of this piece's blocks are wanted when it passes.
    pub fn wants_digests(&self, piece: PieceIndex) -> bool {
        self.suspects.contains_key(&piece)
    }

    /// A piece failed; `from` says who sent each block. Returns the one that did it, if it was alone.
    pub fn failed(
        &mut self,
        piece: PieceIndex,
        from: &[Option<Sender>],
        digests: &[Digest],
    ) -> Option<Sender> {
        let first = from.first().copied().flatten();
        if first.is_some() && from.iter().all(|sender| *sender == first) {
            return first;
        }
        if self.suspects.len() < REMEMBERED || self.suspects.contains_key(&piece) {
            let blocks = from.iter().zip(digests).enumerate();
            let known = blocks.filter_map(|(i, (sender, digest))| sender.map(|s| (i, s, *digest)));
            self.suspects.entry(piece).or_default().extend(known);
        }
        None
    }

    /// A piece passed. Returns who sent other blocks for it before, each with the numbers of these blocks.
    pub fn passed(&mut self, piece: PieceIndex, digests: &[Digest]) -> BTreeMap<Sender, Vec<usize>> {
        let mut guilty: BTreeMap<Sender, Vec<usize>> = BTreeMap::new();
        for (block, sender, digest) in self.suspects.remove(&piece).unwrap_or_default() {
            if digests.get(block).is_some_and(|good| *good != digest) {
                guilty.entry(sender).or_default().push(block);
            }
        }
        guilty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Sender {
        Sender::Peer(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn alone_is_convicted_at_once() {
        let mut blame = Blame::default();
        for sender in [peer(1), Sender::Webseed(PeerKey(1))] {
            assert_eq!(blame.failed(PieceIndex(0), &[Some(sender); 2], &[[0; 20]; 2]), Some(sender));
            assert!(!blame.wants_digests(PieceIndex(0)));
        }
        assert_eq!(blame.failed(PieceIndex(0), &[Some(peer(1)), None], &[[0; 20]; 2]), None);
        assert_eq!(blame.failed(PieceIndex(0), &[None; 2], &[[0; 20]; 2]), None);
    }

    #[test]
    fn of_several_only_those_whose_blocks_differ() {
        let mut blame = Blame::default();
        let from = [Some(peer(1)), Some(Sender::Webseed(PeerKey(2))), Some(peer(3))];
        assert_eq!(blame.failed(PieceIndex(7), &from, &[[1; 20], [9; 20], [3; 20]]), None);
        assert!(blame.wants_digests(PieceIndex(7)));
        let guilty = blame.passed(PieceIndex(7), &[[1; 20], [2; 20], [3; 20]]);
        assert_eq!(guilty.into_iter().collect::<Vec<_>>(), [(Sender::Webseed(PeerKey(2)), vec![1])]);
        assert!(blame.passed(PieceIndex(7), &[[1; 20], [2; 20], [3; 20]]).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut blame = Blame::default();
        for piece in 0..10_000 {
            blame.failed(PieceIndex(piece), &[Some(peer(1)), Some(peer(2))], &[[0; 20]; 2]);
        }
        assert_eq!(blame.suspects.len(), REMEMBERED);
    }
}
