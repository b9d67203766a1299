//! What is done for each piece and each read of it: its hash, and a look at the table of pieces.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use torrentfs::metainfo::PieceHash;
use torrentfs::metainfo::geometry::{BLOCK_LEN, PieceIndex};
use torrentfs::torrent::table::{PieceState, PieceTable};

/// 1 MiB in the blocks that it came in.
fn blocks() -> Vec<Bytes> {
    (0..64).map(|i| Bytes::from(vec![i; BLOCK_LEN as usize])).collect()
}

fn hash(bencher: Bencher, of: PieceHash) {
    let blocks = blocks();
    bencher.counter(BytesCount::new(1usize << 20)).bench(|| of.verify(black_box(&blocks)));
}

/// SHA-1 over 64 blocks.
#[divan::bench]
fn hash_1_mib_v1(bencher: Bencher) {
    hash(bencher, PieceHash::V1([0; 20]));
}

/// The Merkle tree of SHA-256 over 64 blocks (BEP 52).
#[divan::bench]
fn hash_1_mib_v2(bencher: Bencher) {
    hash(bencher, PieceHash::V2 { root: [0; 32], leaves: 64 });
}

/// Whether a range of so many pieces is here; it is.
#[divan::bench(args = [1, 32, 333_333])]
fn all_complete(bencher: Bencher, count: u32) {
    let table = PieceTable::new(1_000_000, PieceState::Complete);
    table.set(PieceIndex(999_999), PieceState::Missing);
    bencher.bench(|| table.all_complete(black_box(1000..1000 + count)));
}
