//! Eviction: what it costs to find the piece that was read longest ago, to take it away and to have another in its
//! place, in steady state and with looks at all pieces included.
//!
//! One call is [`PIECES`] evictions, whatever the number of pieces that are kept, so that the looks are spread over
//! those that they serve; so the rows can be set against each other.

use std::fmt;

use divan::Bencher;
use divan::counter::ItemsCount;
use torrentfs::metainfo::geometry::PieceIndex;
use torrentfs::storage::lru::Victims;
use torrentfs::torrent::table::{PieceState, PieceTable};

/// Evictions in one call: as many as one look at a million pieces serves.
const PIECES: u32 = 65_536;

/// How many pieces are kept.
#[derive(Clone, Copy)]
struct Kept(u32);

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-pieces", self.0)
    }
}

/// The oldest goes, and is fetched again: then it is the youngest.
#[divan::bench(args = [Kept(1_000), Kept(333_333), Kept(1_000_000)])]
fn evict_65536(bencher: Bencher, kept: Kept) {
    let table = PieceTable::new(kept.0, PieceState::Complete);
    // Read in an order that isn't that of the pieces; 7919 is a prime that divides none of the numbers.
    for n in 0..u64::from(kept.0) {
        table.touch(PieceIndex((n * 7919 % u64::from(kept.0)) as u32));
    }
    let mut victims = Victims::default();
    bencher.counter(ItemsCount::new(PIECES)).bench_local(|| {
        for _ in 0..PIECES {
            let victim = loop {
                if let Some(victim) = victims.pop(|v| Some(table.stamp(v.piece))) {
                    break victim;
                }
                victims.fill(table.victims(1), 1);
            };
            assert!(table.evict(victim.piece));
            table.set(victim.piece, PieceState::Complete);
            table.touch(victim.piece);
        }
    });
}
