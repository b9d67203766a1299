//! Who sent bad data. Pure.
//!
//! A piece that fails its hash and came from one peer alone convicts that peer. With several contributors the
//! digests of their blocks are kept, the piece is fetched again from one peer alone (see
//! [`super::picker::Picker::failed`]), and when it passes, whoever's block differs is convicted.
//! Nobody is convicted on suspicion: an honest peer that shared a piece with a bad one stays.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use crate::metainfo::geometry::PieceIndex;

/// The SHA-1 of a block.
pub type Digest = [u8; 20];

/// Failed pieces whose blocks are remembered; with 1 MiB pieces about a megabyte. Beyond it, the next failed
/// piece isn't remembered, and its senders are found out at another.
const REMEMBERED: usize = 256;

/// What is remembered of failed pieces.
#[derive(Debug, Default)]
pub struct Blame {
    /// By piece: for each block who sent it, and its digest.
    suspects: HashMap<PieceIndex, Vec<(usize, SocketAddr, Digest)>>,
}

impl Blame {
    /// Whether the digests of this piece's blocks are wanted when it passes.
    pub fn wants_digests(&self, piece: PieceIndex) -> bool {
        self.suspects.contains_key(&piece)
    }

    /// A piece failed; `from` says who sent each block. Returns the peer that did it, if it was alone.
    pub fn failed(
        &mut self,
        piece: PieceIndex,
        from: &[Option<SocketAddr>],
        digests: &[Digest],
    ) -> Option<SocketAddr> {
        let senders: BTreeSet<SocketAddr> = from.iter().flatten().copied().collect();
        if senders.len() == 1 && from.iter().all(Option::is_some) {
            return senders.first().copied();
        }
        if self.suspects.len() < REMEMBERED || self.suspects.contains_key(&piece) {
            let blocks = from.iter().zip(digests).enumerate();
            let known = blocks.filter_map(|(i, (addr, digest))| addr.map(|a| (i, a, *digest)));
            self.suspects.entry(piece).or_default().extend(known);
        }
        None
    }

    /// A piece passed. Returns the peers that sent other blocks for it before.
    pub fn passed(&mut self, piece: PieceIndex, digests: &[Digest]) -> Vec<SocketAddr> {
        let Some(suspects) = self.suspects.remove(&piece) else { return Vec::new() };
        let guilty: BTreeSet<SocketAddr> = suspects
            .into_iter()
            .filter(|(block, _, digest)| digests.get(*block).is_some_and(|good| good != digest))
            .map(|(_, addr, _)| addr)
            .collect();
        guilty.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn alone_is_convicted_at_once() {
        let mut blame = Blame::default();
        let from = [Some(addr(1)), Some(addr(1))];
        assert_eq!(blame.failed(PieceIndex(0), &from, &[[0; 20]; 2]), Some(addr(1)));
        assert!(!blame.wants_digests(PieceIndex(0)));
    }

    #[test]
    fn of_several_only_the_one_whose_block_differs() {
        let mut blame = Blame::default();
        let from = [Some(addr(1)), Some(addr(2)), Some(addr(3))];
        assert_eq!(blame.failed(PieceIndex(7), &from, &[[1; 20], [9; 20], [3; 20]]), None);
        assert!(blame.wants_digests(PieceIndex(7)));
        assert_eq!(blame.passed(PieceIndex(7), &[[1; 20], [2; 20], [3; 20]]), [addr(2)]);
        assert!(blame.passed(PieceIndex(7), &[[1; 20], [2; 20], [3; 20]]).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut blame = Blame::default();
        for piece in 0..10_000 {
            blame.failed(PieceIndex(piece), &[Some(addr(1)), Some(addr(2))], &[[0; 20]; 2]);
        }
        assert_eq!(blame.suspects.len(), REMEMBERED);
    }
}
