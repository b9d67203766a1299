//! One torrent's state: what a batch of blocks costs it, and a seeder that joins.
//!
//! Reads wait for [`WAITED`] pieces at any time, spread over the torrent. What `apply` says is to be done is
//! carried out outside the measured call: requests are answered, hashes are good, and a finished piece becomes
//! missing again so that the torrent never ends.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::Bencher;
use torrentfs::metainfo::geometry::{BLOCK_LEN, FileIndex, PieceIndex};
use torrentfs::metainfo::{Info, TorrentBuilder};
use torrentfs::net::transport::Kind;
use torrentfs::peer::PeerKey;
use torrentfs::peer::event::{Connected, Item};
use torrentfs::peer::mse::{Cover, Policy};
use torrentfs::torrent::background::Prefetch;
use torrentfs::torrent::effects::{Effect, Event, Verdict};
use torrentfs::torrent::goal::Goals;
use torrentfs::torrent::inbox::Demand;
use torrentfs::torrent::memory::Memory;
use torrentfs::torrent::picker::Assignment;
use torrentfs::torrent::swarm::{Settings, Swarm};
use torrentfs::torrent::table::{PieceState, PieceTable};

use crate::{RATE, SCALES, Scale};

const PIECE: u32 = 256 * 1024;
/// Blocks of one batch: what a socket read of 256 KiB brings.
const BATCH: usize = 8;
/// Messages of one batch that are no blocks, at most.
const HAVES: usize = 1024;
/// Pieces that reads wait for: 64 MiB, enough to keep each of 80 peers busy.
const WAITED: u32 = 256;

struct World {
    swarm: Swarm,
    table: Arc<PieceTable>,
    now: Instant,
    /// What each peer was asked for and has not sent.
    asked: BTreeMap<PeerKey, Vec<Assignment>>,
    /// What `apply` said was to be done, not looked at yet.
    todo: Vec<Effect>,
    waiter: u64,
    at: u32,
}

fn peer(n: u64) -> Connected {
    let mut peer_id = [b'x'; 20];
    peer_id[..8].copy_from_slice(&n.to_be_bytes());
    let addr = SocketAddr::from(([127, 0, 0, 1], 10_000 + n as u16));
    Connected {
        addr,
        incoming: false,
        peer_id,
        fast: true,
        extensions: false,
        cover: Cover::Plain,
        kind: Kind::Tcp,
    }
}

impl World {
    fn new(scale: Scale) -> Self {
        let mut builder = TorrentBuilder::new("t", PIECE);
        builder.single_file(u64::from(PIECE) * u64::from(scale.pieces));
        builder.piece_hashes((0..scale.pieces).map(|_| [0; 20]));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let table = Arc::new(PieceTable::new(scale.pieces, PieceState::Missing));
        let settings = Settings {
            info_hash: [1; 20],
            peer_id: *b"-TF0001-ourselves---",
            listen_port: None.into(),
            max_peers: 200,
            connections: Default::default(),
            punch: true,
            read_timeout: None,
            filter: Arc::default(),
            upload: true,
            goals: Goals::default(),
            pex: false,
            encryption: Policy::Off,
            check_all: false,
            prefetch: Prefetch::None,
            memory: Memory::default(),
            quota: std::sync::Arc::new(torrentfs::storage::quota::Quota::new(None)),
            check_invariants: false,
        };
        let (swarm, now) = (Swarm::new(settings), Instant::now());
        let (asked, todo) = (BTreeMap::new(), Vec::new());
        let mut world = Self { swarm, table: table.clone(), now, asked, todo, waiter: 0, at: 0 };
        world.apply(Event::Metadata { info, table });
        for key in 0..scale.peers {
            world.join(key);
        }
        world.apply(Event::Demands(vec![Demand::Open { stream: 1, file: FileIndex(0) }]));
        (0..WAITED).for_each(|_| world.want_another());
        world.carry_out();
        world
    }

    fn apply(&mut self, event: Event) {
        let effects = self.swarm.apply(event, self.now);
        self.todo.extend(effects);
    }

    fn join(&mut self, n: u64) {
        self.apply(Event::Connected { key: PeerKey(n), peer: peer(n) });
        self.apply(Event::Said { key: PeerKey(n), items: vec![Item::HaveAll, Item::Choked(false)] });
    }

    fn leave(&mut self, n: u64) {
        self.asked.remove(&PeerKey(n));
        self.apply(Event::Gone { key: PeerKey(n), reason: String::new() });
    }

    /// A read begins to wait for a piece that no other waits for.
    fn want_another(&mut self) {
        self.at = (self.at + 379) % self.table.len();
        self.waiter += 1;
        self.apply(Event::Demands(vec![Demand::Want {
            waiter: self.waiter,
            stream: 1,
            file: FileIndex(0),
            offset: u64::from(self.at) * u64::from(PIECE),
            all: self.at..self.at + 1,
            pieces: vec![PieceIndex(self.at)],
            since: self.now,
        }]));
    }

    fn carry_out(&mut self) {
        while !self.todo.is_empty() {
            for effect in std::mem::take(&mut self.todo) {
                match effect {
                    Effect::Request(more) => {
                        more.into_iter().for_each(|a| self.asked.entry(a.peer).or_default().push(a));
                    }
                    Effect::Cancel(key, block) => {
                        self.asked.entry(key).or_default().retain(|a| a.block != block);
                    }
                    Effect::Verify { buffer, .. } => {
                        let (piece, verdict) = (buffer.piece(), Verdict::Good);
                        self.apply(Event::Verified { piece, verdict, digests: Vec::new() });
                        self.table.set(piece, PieceState::Missing);
                        self.want_another();
                    }
                    _ => {}
                }
            }
        }
    }

    /// The peer that owes most sends a batch, or all it owes.
    fn batch(&mut self) -> Event {
        self.now += Duration::from_nanos(1_000_000_000 * u64::from(BLOCK_LEN) * BATCH as u64 / RATE);
        self.carry_out();
        let (key, asked) = self.asked.iter_mut().max_by_key(|(_, asked)| asked.len()).expect("peers");
        assert!(!asked.is_empty(), "some peer owes something");
        let sent = asked.drain(..asked.len().min(BATCH)).map(|a| {
            a.buffer.put(a.block.block, Bytes::from_static(b"data"), *key);
            Item::Block { block: a.block, buffer: a.buffer }
        });
        Event::Said { key: *key, items: sent.collect() }
    }
}

/// Up to eight blocks of one peer come in one batch.
#[divan::bench(args = SCALES, sample_size = 1)]
fn apply_a_batch(bencher: Bencher, scale: Scale) {
    let world = RefCell::new(World::new(scale));
    bencher.with_inputs(|| world.borrow_mut().batch()).bench_local_values(|batch| {
        world.borrow_mut().apply(batch);
    });
}

/// A seed connects and lets us in, while all that is wanted is on its way already or asked of it.
#[divan::bench(args = SCALES, sample_size = 1)]
fn seeder_joins(bencher: Bencher, scale: Scale) {
    let world = RefCell::new(World::new(scale));
    let restore = || {
        let mut world = world.borrow_mut();
        world.carry_out();
        world.leave(scale.peers);
        world.carry_out();
    };
    bencher.with_inputs(restore).bench_local_values(|()| world.borrow_mut().join(scale.peers));
}

/// A peer that had nothing says of each piece, one by one and in no order, that it has it: as many messages as there are
/// pieces, in the batches in which a session hands them on.
#[divan::bench(args = SCALES, sample_size = 1)]
fn all_pieces_by_haves(bencher: Bencher, scale: Scale) {
    let world = RefCell::new(World::new(scale));
    let key = PeerKey(scale.peers);
    let joins = || {
        let mut world = world.borrow_mut();
        world.carry_out();
        world.leave(scale.peers);
        world.apply(Event::Connected { key, peer: peer(scale.peers) });
        world.apply(Event::Said { key, items: vec![Item::HaveNone] });
        world.carry_out();
        let pieces: Vec<_> =
            (0..scale.pieces).map(|n| Item::Have(PieceIndex((n * 379) % scale.pieces))).collect();
        let mut batches = Vec::new();
        let mut pieces = pieces.into_iter().peekable();
        while pieces.peek().is_some() {
            batches.push(pieces.by_ref().take(HAVES).collect::<Vec<_>>());
        }
        batches
    };
    bencher.with_inputs(joins).bench_local_values(|batches| {
        let mut world = world.borrow_mut();
        for items in batches {
            world.apply(Event::Said { key, items });
        }
    });
}
