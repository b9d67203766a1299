//! Micro-benchmarks: what single operations cost, over the library's public interface.
//!
//! Run and compared by `scripts/micro`; the baseline stands in `docs/BENCHMARKS.md`. Parts: [`picker`],
//! [`swarm`] (one torrent's state), [`wire`] (the protocol between peers), [`reads`] (the read path), [`meta`]
//! (bencode and metainfo), [`pieces`] (hashing and the piece table), [`eviction`] (which pieces go), [`locks`] (writing down
//! who holds one).
//!
//! A row is `file::function::argument`. An argument that begins with a number of pieces is a scale: the script
//! sets it against the row of 1000 pieces. A sample is many calls, and what is compared is the median of the
//! samples, so a preempted sample changes nothing.
//!
//! Not here: whole transfers (`scripts/bench`), and any judgement of the figures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark whose setup fails ends by panicking"
)]

mod eviction;
mod locks;
mod meta;
mod picker;
mod pieces;
mod reads;
mod swarm;
mod wire;

use std::fmt;
use std::time::Duration;

/// Each row goes on at least for this long, so that its samples come from more than one time slice.
const MIN_TIME: Duration = Duration::from_millis(400);
/// Sixty rows of this, and their setup, are about a minute.
const MAX_TIME: Duration = Duration::from_millis(800);

/// How large a torrent and its swarm are.
#[derive(Clone, Copy)]
struct Scale {
    pieces: u32,
    peers: u64,
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-pieces-{}-peers", self.pieces, self.peers)
    }
}

/// Bytes per second of all peers together: what each row's paused clock goes by.
const RATE: u64 = 128 << 20;

/// Few pieces, as many as the largest torrents have, and more.
const SCALES: [Scale; 6] = [
    Scale { pieces: 1_000, peers: 4 },
    Scale { pieces: 1_000, peers: 80 },
    Scale { pieces: 333_333, peers: 4 },
    Scale { pieces: 333_333, peers: 80 },
    Scale { pieces: 1_000_000, peers: 4 },
    Scale { pieces: 1_000_000, peers: 80 },
];

fn main() {
    // The command line comes last, so that it wins over what stands here.
    divan::Divan::default().min_time(MIN_TIME).max_time(MAX_TIME).config_with_args().main();
}
