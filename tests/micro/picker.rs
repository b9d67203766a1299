//! The picker: what one change, one block, one look at late blocks and one peer cost. But for one row every piece
//! of the torrent is wanted, which is the worst case.
//!
//! All rows begin with [`World::new`]; what they call of the picker besides is `want`, `unwant`, `schedule`,
//! `received`, `completed`, `hedge`, `add_peer` and `remove_peer`. The clock is an argument and goes by the
//! swarm's rate, so the peers look as fast as they were measured.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::{Bencher, black_box};
use torrentfs::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, Geometry, PieceIndex};
use torrentfs::peer::PeerKey;
use torrentfs::torrent::load::{Has, PeerLoad};
use torrentfs::torrent::memory::Memory;
use torrentfs::torrent::picker::{Assignment, DemandId, Picker};

use crate::{RATE, SCALES, Scale};

/// 16 blocks: the smallest that large torrents come in, so whole pieces are frequent.
const PIECE: u32 = 256 * 1024;
/// Bytes of pieces in the making: what the program allows.
const BUDGET: u64 = 64 << 20;
/// Apart in deadlines: as one reader reads on at 256 MiB/s.
const APART: Duration = Duration::from_millis(1);
/// Who wants all pieces.
const ALL: DemandId = DemandId::Stream(1);

/// A seed that lets us in and has delivered `rate` bytes per second for the ten seconds before `now`.
fn seed(now: Instant, rate: u64) -> PeerLoad {
    let tenth = Duration::from_millis(100);
    let start = now - tenth * 100;
    let mut load = PeerLoad::new(start);
    *load.has_mut() = Has::All;
    load.set_choked(false);
    load.set_limit(512);
    let block = BlockRef { piece: PieceIndex(u32::MAX), block: BlockIndex(0) };
    for i in 1..=100 {
        let at = start + tenth * i;
        load.request(block, at - tenth);
        load.delivered(block, (rate / 10) as u32, at);
    }
    load
}

/// Pieces that are wanted at a time: as many as the smallest torrent has.
const WANTED: u32 = 1000;

/// A picker with its peers, and the requests that are on their way, oldest first.
struct World {
    picker: Picker,
    asked: VecDeque<Assignment>,
    now: Instant,
    /// The next deadline behind all others.
    last: Instant,
    scale: Scale,
    at: u32,
}

impl World {
    /// As much is wanted as readers' windows hold, all over the torrent.
    fn new(scale: Scale) -> Self {
        let mut world = Self::idle(scale, BUDGET);
        world.want_all();
        world
    }

    /// Nothing is wanted yet. `budget` in bytes of pieces in the making.
    fn idle(scale: Scale, budget: u64) -> Self {
        let now = Instant::now();
        let size = u64::from(PIECE) * u64::from(scale.pieces);
        let mut picker = Picker::new(Arc::new(Geometry::contiguous(PIECE, &[size])), Memory::new(budget));
        for key in 0..scale.peers {
            picker.add_peer(PeerKey(key), seed(now, RATE / scale.peers));
        }
        Self { picker, asked: VecDeque::new(), now, last: now, scale, at: 0 }
    }

    fn want_all(&mut self) {
        let apart = self.scale.pieces / WANTED;
        for n in 0..WANTED {
            self.picker.want(PieceIndex(n * apart), ALL, self.last);
            self.last += APART;
        }
    }

    fn schedule(&mut self) {
        self.asked.extend(self.picker.schedule(self.now));
    }

    /// The oldest request is answered; a piece that is whole is wanted again, after all others.
    fn deliver(&mut self) {
        self.now += Duration::from_nanos(1_000_000_000 * u64::from(BLOCK_LEN) / RATE);
        let from = self.asked.pop_front().expect("blocks are on their way");
        from.buffer.put(from.block.block, Bytes::from_static(b"data"), from.peer);
        let arrival = self.picker.received(from.peer, from.block, &from.buffer, self.now);
        if arrival.whole.is_some() {
            self.picker.completed(from.block.piece);
            self.picker.want(from.block.piece, ALL, self.last);
            self.last += APART;
        }
    }

    /// Another piece each time, spread over the torrent.
    fn any_piece(&mut self) -> PieceIndex {
        self.at = (self.at + 7919) % self.scale.pieces;
        PieceIndex(self.at)
    }
}

fn change(bencher: Bencher, mut world: World) {
    bencher.bench_local(|| {
        let piece = world.any_piece();
        world.picker.want(piece, DemandId::Waiter(1), world.now);
        black_box(world.picker.unwant(piece, DemandId::Waiter(1)));
    });
}

/// A read begins to wait for a piece, any one, and gives up.
#[divan::bench(args = SCALES.into_iter().filter(|s| s.peers == 4))]
fn want_and_unwant(bencher: Bencher, scale: Scale) {
    change(bencher, World::new(scale));
}

/// The same where nothing else is wanted.
#[divan::bench(args = SCALES.into_iter().filter(|s| s.peers == 4))]
fn want_and_unwant_alone(bencher: Bencher, scale: Scale) {
    change(bencher, World::idle(scale, BUDGET));
}

/// A block comes and the next ones are asked for. A sample is four pieces, so that each has as many that end.
#[divan::bench(args = SCALES, sample_size = 64)]
fn received_and_schedule(bencher: Bencher, scale: Scale) {
    let mut world = World::new(scale);
    world.schedule();
    bencher.bench_local(|| {
        world.deliver();
        world.schedule();
    });
}

/// Nothing came, and somebody asks whether there is anything to give out: all peers have what they can take.
#[divan::bench(args = SCALES)]
fn schedule_for_nothing(bencher: Bencher, scale: Scale) {
    let mut world = World::new(scale);
    world.schedule();
    bencher.bench_local(|| black_box(world.picker.schedule(world.now)).len());
}

/// Reads wait for 64 pieces, none of their blocks is late, and each peer could take more.
#[divan::bench(args = SCALES)]
fn hedge_64_waited_pieces(bencher: Bencher, scale: Scale) {
    // The budget lets in what is waited for and nothing else.
    let mut world = World::idle(scale, 64 * u64::from(PIECE));
    for id in 0..64 {
        let piece = world.any_piece();
        world.picker.want(piece, DemandId::Waiter(id), world.now);
    }
    world.schedule();
    assert_eq!(world.asked.len(), 64 * (PIECE / BLOCK_LEN) as usize, "all of it is on its way");
    world.want_all();
    world.now += Duration::from_millis(10);
    bencher.bench_local(|| black_box(world.picker.hedge(world.now)).len());
}

/// One more seed joins, and leaves.
#[divan::bench(args = SCALES)]
fn seeder_joins_and_leaves(bencher: Bencher, scale: Scale) {
    let mut world = World::new(scale);
    world.schedule();
    bencher.with_inputs(|| seed(world.now, RATE / scale.peers)).bench_local_values(|load| {
        world.picker.add_peer(PeerKey(u64::MAX), load);
        world.picker.remove_peer(PeerKey(u64::MAX));
    });
}
