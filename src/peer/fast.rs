//! The allowed-fast set (BEP 6): pieces that a peer may ask for although it is choked, so that one that has next to
//! nothing has something to give soon. Pure.
//!
//! Which ones follows from the torrent and the peer's network: who connects again and again, or with a neighbour's
//! address, gets the same few.

use std::net::Ipv4Addr;

use crate::hash::sha1;
use crate::metainfo::geometry::PieceIndex;

/// Pieces in a set, and how many a peer must have to need none: what BEP 6 suggests.
pub const SIZE: usize = 10;

/// The set of a peer at this address: `size` pieces, or all of `pieces` if there are no more.
pub fn allowed_set(info_hash: &[u8; 20], ip: Ipv4Addr, pieces: u32, size: usize) -> Vec<PieceIndex> {
    let size = size.min(pieces as usize);
    let mut set: Vec<PieceIndex> = Vec::with_capacity(size);
    let [a, b, c, _] = ip.octets();
    let mut seed = [&[a, b, c, 0], &info_hash[..]].concat();
    while set.len() < size {
        let digest = sha1(&seed);
        for chunk in digest.as_chunks::<4>().0 {
            let piece = PieceIndex(u32::from_be_bytes(*chunk) % pieces);
            if set.len() < size && !set.contains(&piece) {
                set.push(piece);
            }
        }
        seed = digest.to_vec();
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_the_bep() {
        let set = |size| {
            let set = allowed_set(&[0xaa; 20], Ipv4Addr::new(80, 4, 4, 200), 1313, size);
            set.into_iter().map(|piece| piece.0).collect::<Vec<_>>()
        };
        assert_eq!(set(7), [1059, 431, 808, 1217, 287, 376, 1188]);
        assert_eq!(set(9), [1059, 431, 808, 1217, 287, 376, 1188, 353, 508]);
    }

    #[test]
    fn a_small_torrent_is_allowed_whole_and_neighbours_share_a_set() {
        let mut all = allowed_set(&[7; 20], Ipv4Addr::LOCALHOST, 4, SIZE);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3].map(PieceIndex));
        assert!(allowed_set(&[7; 20], Ipv4Addr::LOCALHOST, 0, SIZE).is_empty());
        let at = |last| allowed_set(&[7; 20], Ipv4Addr::new(10, 0, 0, last), 1000, SIZE);
        assert_eq!(at(1), at(200));
    }
}
