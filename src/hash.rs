//! SHA-1 and SHA-256, and the Merkle trees of BEP 52; and the checksum that BEP 40 and 42 make of addresses. Pure.
//!
//! Everything that hashes goes through here, so that the library underneath (aws-lc) is named in one place;
//! the tests hold it against the `sha1` and `sha2` crates. Both hashes come whole ([`sha1`], [`sha256`]) and
//! piecemeal ([`Sha1`], [`Sha256`]), so that a piece is hashed block by block without being put together.
//!
//! A tree of BEP 52 is binary and as wide as a power of two. Its leaves are the hashes of 16 KiB blocks, and
//! leaves behind the end of the file are 32 zero bytes. [`merkle_root`] never writes the padding out: a level
//! is as long as its data, and what is missing is the [`pad_hash`] of that level.
//!
//! Not here: which piece has which hash (`metainfo::pieces`), and on which thread one hashes.

use aws_lc_rs::digest;

/// The SHA-1 of `data`.
pub fn sha1(data: &[u8]) -> [u8; 20] {
    let mut hash = Sha1::new();
    hash.update(data);
    hash.finish()
}

/// The SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(data);
    hash.finish()
}

/// CRC-32C (Castagnoli), bit by bit: for a few bytes of addresses.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// A SHA-1 being computed.
#[derive(Clone)]
pub struct Sha1(digest::Context);

impl Sha1 {
    /// Of nothing so far.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY))
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> [u8; 20] {
        fixed(self.0.finish().as_ref())
    }
}

impl Default for Sha1 {
    fn default() -> Self {
        Self::new()
    }
}

/// A SHA-256 being computed.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// Of nothing so far.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> [u8; 32] {
        fixed(self.0.finish().as_ref())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// The digest as an array; its length is the algorithm's.
fn fixed<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(digest) {
        *to = *from;
    }
    out
}

/// A node of a Merkle tree (BEP 52).
pub type Node = [u8; 32];

/// The hash of a subtree that holds nothing but padding: `layer` 0 is a leaf.
pub fn pad_hash(layer: u32) -> Node {
    (0..layer).fold([0; 32], |below, _| parent(&below, &below))
}

/// The root of the tree of `width` leaves (rounded up to a power of two) that begins with `leaves`; the rest
/// is padding. Leaves beyond `width` widen the tree.
pub fn merkle_root(leaves: &[Node], width: u32) -> Node {
    root_above(leaves.to_vec(), u64::from(width), [0; 32])
}

/// The root of a file's tree from its piece layer (BEP 52, `piece layers`): the hashes of its pieces, 32
/// bytes each, every piece being a tree of `leaves_per_piece` leaves.
pub fn piece_layer_root(layer: &[u8], leaves_per_piece: u32) -> Node {
    let nodes: Vec<Node> = layer.as_chunks().0.to_vec();
    root_above(nodes, 1, pad_hash(leaves_per_piece.next_power_of_two().trailing_zeros()))
}

/// Folds a level upwards until it is as high as `width` asks, filling it up with `pad`.
fn root_above(mut level: Vec<Node>, width: u64, mut pad: Node) -> Node {
    let mut width = width.max(level.len() as u64).next_power_of_two();
    while width > 1 {
        level = level
            .chunks(2)
            .filter_map(|pair| Some(parent(pair.first()?, pair.get(1).unwrap_or(&pad))))
            .collect();
        pad = parent(&pad, &pad);
        width /= 2;
    }
    level.first().copied().unwrap_or(pad)
}

/// The node above two.
fn parent(left: &Node, right: &Node) -> Node {
    let mut hash = Sha256::new();
    hash.update(left);
    hash.update(right);
    hash.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    #[test]
    fn known_answers() {
        assert_eq!(sha1(b"abc")[..4], [0xa9, 0x99, 0x3e, 0x36]);
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(sha1(b"")[..4], [0xda, 0x39, 0xa3, 0xee]);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracles(data in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0usize..3000) {
            let cut = cut.min(data.len());
            prop_assert_eq!(&sha1(&data)[..], &sha1::Sha1::digest(&data)[..]);
            prop_assert_eq!(&sha256(&data)[..], &sha2::Sha256::digest(&data)[..]);
            let (mut a, mut b) = (Sha1::new(), Sha256::new());
            for part in [&data[..cut], &data[cut..]] {
                a.update(part);
                b.update(part);
            }
            prop_assert_eq!(a.finish(), sha1(&data));
            prop_assert_eq!(b.finish(), sha256(&data));
        }

        #[test]
        fn padding_need_not_be_written_out(n in 0usize..40, wide in 0u32..7) {
            let leaves: Vec<Node> = (0..n).map(|i| sha256(&[i as u8])).collect();
            let width = (1u32 << wide).max(n as u32).next_power_of_two();
            let mut whole = leaves.clone();
            whole.resize(width as usize, [0; 32]);
            while whole.len() > 1 {
                whole = whole.chunks(2).map(|p| sha256(&[p[0], p[1]].concat())).collect();
            }
            prop_assert_eq!(merkle_root(&leaves, 1 << wide), whole[0]);
        }

        #[test]
        fn the_piece_layer_has_the_root_of_the_leaves(n in 1usize..70, per_piece in 0u32..4) {
            let leaves: Vec<Node> = (0..n).map(|i| sha256(&[i as u8])).collect();
            let per_piece = 1u32 << per_piece;
            let layer: Vec<u8> = leaves.chunks(per_piece as usize).flat_map(|p| merkle_root(p, per_piece)).collect();
            prop_assert_eq!(piece_layer_root(&layer, per_piece), merkle_root(&leaves, per_piece));
        }
    }

    #[test]
    fn pads_are_trees_of_zeros() {
        for layer in 0..5 {
            assert_eq!(pad_hash(layer), merkle_root(&vec![[0; 32]; 1 << layer], 1));
        }
        assert_eq!(merkle_root(&[], 8), pad_hash(3));
    }
}
