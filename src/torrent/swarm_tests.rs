//! Tests of a torrent's state: what each event leads to, who is to blame, and random histories of peers, readers,
//! disks and bad data, after each of which what is wanted is on its way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::discovery::{FoundPeers, PeerSource};
use crate::hash;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, FileIndex, Geometry};
use crate::net::transport::Kind;
use crate::peer::buffer::PieceBuffer;
use crate::peer::event::Connected;
use crate::peer::metadata::MetadataMessage;
use crate::peer::mse::{Cover, Policy};
use crate::peer::session::REQUESTS_MAX;
use crate::peer::wire::Message;
use crate::torrent::admission;
use crate::torrent::blame::Digest;
use crate::torrent::effects::{Looked, Verdict};
use crate::torrent::inbox::Demand;
use crate::torrent::picker::Assignment;
use crate::torrent::track::Reach;

const S: Duration = Duration::from_secs(1);
const PIECE: u32 = 2 * BLOCK_LEN;

fn settings() -> Settings {
    Settings {
        info_hash: [1; 20],
        peer_id: *b"-TF0001-ourselves---",
        listen_port: Some(6881).into(),
        max_peers: 80,
        connections: Default::default(),
        punch: true,
        encryption: Policy::Off,
        read_timeout: Some(300 * S),
        filter: Arc::default(),
        upload: true,
        goals: crate::torrent::goal::Goals::default(),
        pex: true,
        check_all: false,
        prefetch: Prefetch::None,
        memory: Memory::default(),
        quota: std::sync::Arc::new(crate::storage::quota::Quota::new(None)),
        check_invariants: true,
    }
}

fn torrent(pieces: u32) -> Arc<Info> {
    let size = pieces * PIECE - 1000;
    let mut builder = TorrentBuilder::new("t", PIECE);
    builder.single_file(size.into()).data(&vec![7; size as usize]);
    Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap())
}

/// A torrent of several files.
fn torrent_of(sizes: &[u64]) -> Arc<Info> {
    let mut builder = TorrentBuilder::new("t", PIECE);
    for (n, size) in sizes.iter().enumerate() {
        builder.file(format!("{n}"), *size);
    }
    builder.data(&vec![7; sizes.iter().sum::<u64>() as usize]);
    Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap())
}

fn addr(n: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_000 + n as u16))
}

fn who(n: u64, fast: bool) -> Connected {
    let mut peer_id = [b'x'; 20];
    peer_id[..8].copy_from_slice(&n.to_be_bytes());
    let (cover, kind) = (Cover::Plain, Kind::Tcp);
    Connected { addr: addr(n), incoming: false, peer_id, fast, extensions: true, cover, kind }
}

/// A torrent, what its peers were asked for and what its workers were given. Peers and workers do what the test
/// says.
struct World {
    swarm: Swarm,
    info: Arc<Info>,
    table: Arc<PieceTable>,
    now: Instant,
    asked: Vec<Assignment>,
    /// Requests that were taken back; the block may come all the same.
    late: Vec<Assignment>,
    hashing: Vec<(Arc<PieceBuffer>, bool)>,
    checking: Vec<PieceIndex>,
    /// Those of them that count as complete.
    recorded: BTreeSet<PieceIndex>,
    /// Everything else that was to be done, as it came.
    fx: Vec<Effect>,
    reaches: u64,
}

impl World {
    /// Without metadata.
    fn resolving(pieces: u32, settings: Settings) -> Self {
        Self {
            swarm: Swarm::new(settings),
            info: torrent(pieces),
            table: Arc::new(PieceTable::new(pieces, PieceState::Missing)),
            now: Instant::now(),
            asked: Vec::new(),
            late: Vec::new(),
            hashing: Vec::new(),
            checking: Vec::new(),
            recorded: BTreeSet::new(),
            fx: Vec::new(),
            reaches: 0,
        }
    }

    fn live(pieces: u32) -> Self {
        let mut world = Self::resolving(pieces, settings());
        world.go_live();
        world
    }

    fn go_live(&mut self) {
        let (info, table) = (self.info.clone(), self.table.clone());
        self.apply(Event::Metadata { info, table });
    }

    fn apply(&mut self, event: Event) {
        for effect in self.swarm.apply(event, self.now) {
            match effect {
                Effect::Request(assignments) => self.asked.extend(assignments),
                Effect::Cancel(peer, block) => {
                    let same = |a: &Assignment| (a.peer, a.block) == (peer, block);
                    while let Some(at) = self.asked.iter().position(same) {
                        self.late.push(self.asked.swap_remove(at));
                    }
                }
                Effect::Verify { buffer, digests } => self.hashing.push((buffer, digests)),
                Effect::Check(piece) => self.checking.push(piece),
                Effect::Sweep { piece, recorded } => {
                    self.checking.push(piece);
                    self.recorded.extend(recorded.then_some(piece));
                }
                other => self.fx.push(other),
            }
        }
        if let Some(live) = &self.swarm.live {
            live.picker.check().unwrap();
        }
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.fx)
    }

    fn connect(&mut self, n: u64, fast: bool) {
        self.apply(Event::Connected { key: PeerKey(n), peer: who(n, fast) });
    }

    fn say(&mut self, n: u64, items: Vec<Item>) {
        self.apply(Event::Said { key: PeerKey(n), items });
    }

    /// A seed that lets us in.
    fn seed(&mut self, n: u64) {
        self.connect(n, true);
        self.say(n, vec![Item::HaveAll, Item::Choked(false)]);
    }

    fn gone(&mut self, n: u64) {
        self.asked.retain(|a| a.peer.0 != n);
        self.late.retain(|a| a.peer.0 != n);
        self.apply(Event::Gone { key: PeerKey(n), reason: "the test".into() });
    }

    fn tick(&mut self, after: Duration) {
        self.now += after;
        self.apply(Event::Tick);
    }

    fn open(&mut self, stream: u64) {
        self.apply(Event::Demands(vec![Demand::Open { stream, file: FileIndex(0) }]));
    }

    fn want(&mut self, waiter: u64, pieces: &[u32]) {
        let pieces = pieces.iter().map(|p| PieceIndex(*p)).collect();
        let want = Demand::Want {
            waiter,
            stream: 0,
            file: FileIndex(0),
            offset: 0,
            all: 0..0,
            pieces,
            since: self.now,
        };
        self.apply(Event::Demands(vec![want]));
    }

    /// The reader of a handle is at `position` and has read `run` bytes in sequence.
    fn moved(&mut self, stream: u64, position: u64, run: u64) {
        self.reaches += 1;
        let reach = Reach { position, run, number: self.reaches };
        self.apply(Event::Demands(vec![Demand::Moved { stream, reach }]));
    }

    fn hand_over(&mut self, assignment: &Assignment, good: bool) {
        let data: &'static [u8] = if good { b"good" } else { b"bad" };
        assignment.buffer.put(assignment.block.block, Bytes::from_static(data), assignment.peer);
        let item = Item::Block { block: assignment.block, buffer: assignment.buffer.clone() };
        self.say(assignment.peer.0, vec![item]);
    }

    /// Each peer delivers what it was asked for, those in `liars` badly.
    fn deliver_all(&mut self, liars: &[u64]) {
        for assignment in std::mem::take(&mut self.asked) {
            self.hand_over(&assignment, !liars.contains(&assignment.peer.0));
        }
    }

    /// The workers hash a piece and write it, if the disk can.
    fn hash_one(&mut self, written: bool) -> bool {
        let Some((buffer, wanted)) = self.hashing.pop() else { return false };
        let blocks = buffer.blocks().expect("a whole piece");
        let good = blocks.iter().all(|b| b.as_ref() == b"good");
        let digests: Vec<Digest> =
            if wanted || !good { blocks.iter().map(|b| hash::sha1(b)).collect() } else { Vec::new() };
        let verdict = match (good, written) {
            (true, true) => Verdict::Good,
            (true, false) => Verdict::Unwritten(ReadError::Io("the test's disk".into())),
            (false, _) => Verdict::Bad,
        };
        self.apply(Event::Verified { piece: buffer.piece(), verdict, digests });
        true
    }

    fn check_one(&mut self, good: bool) -> bool {
        let Some(piece) = self.checking.pop() else { return false };
        let recorded = self.recorded.remove(&piece);
        let looked = if recorded { Looked::Recorded(good) } else { Looked::Unsure(good) };
        self.apply(Event::Checked { piece, looked });
        true
    }

    fn disconnected(&self) -> Vec<u64> {
        let keys = self
            .fx
            .iter()
            .filter_map(|e| if let Effect::Disconnect(key, _) = e { Some(key.0) } else { None });
        keys.collect()
    }

    fn failed(&self) -> Vec<u64> {
        self.fx.iter().filter_map(|e| if let Effect::Fail(id, _) = e { Some(*id) } else { None }).collect()
    }

    fn count(&self, which: impl Fn(&Effect) -> bool) -> usize {
        self.fx.iter().filter(|e| which(e)).count()
    }

    fn interested(&self, n: u64) -> Vec<bool> {
        let said = self.fx.iter().filter_map(|e| match e {
            Effect::Interested(key, yes) if key.0 == n => Some(*yes),
            _ => None,
        });
        said.collect()
    }
}

#[test]
fn the_first_message_says_what_we_have() {
    // Complete pieces of 10, whether the peer speaks the fast extension, and what it is told first.
    let bits = |n| Some(Message::Bitfield(Bytes::from_static(n)));
    let rows = [
        (0, true, Some(Message::HaveNone)),
        (0, false, None),
        (3, true, bits(&[0xe0, 0])),
        (3, false, bits(&[0xe0, 0])),
        (10, true, Some(Message::HaveAll)),
        (10, false, bits(&[0xff, 0xc0])),
    ];
    for (complete, fast, first) in rows {
        let mut world = World::resolving(10, settings());
        (0..complete).for_each(|p| world.table.set(PieceIndex(p), PieceState::Complete));
        world.go_live();
        world.take();
        world.connect(1, fast);
        let said =
            world.fx.iter().find_map(|e| if let Effect::First(_, m) = e { Some(m.clone()) } else { None });
        assert_eq!(said, first, "{complete} {fast}");
        let extended: Vec<_> = world
            .fx
            .iter()
            .filter_map(
                |e| if let Effect::Extended(_, 0, payload) = e { Some(payload.clone()) } else { None },
            )
            .collect();
        assert_eq!(extended.len(), 1);
        let ours = ExtHandshake::decode(&extended[0]).unwrap();
        assert_eq!(ours.metadata_size, Some(world.info.raw.len() as u32));
        assert_eq!((ours.port, ours.reqq), (Some(6881), Some(REQUESTS_MAX as u32)));
        assert_eq!(ours.upload_only, complete == 10);
    }
}

#[test]
fn whoever_should_not_be_connected_is_refused_once() {
    let mut world = World::live(2);
    world.seed(1);
    let rows = [
        ("the same address", Connected { peer_id: [9; 20], ..who(1, true) }),
        ("the same peer id", Connected { addr: addr(50), ..who(1, true) }),
        ("ourselves", Connected { peer_id: settings().peer_id, ..who(51, true) }),
    ];
    for (key, (row, peer)) in (100..).zip(rows) {
        world.take();
        world.apply(Event::Connected { key: PeerKey(key), peer });
        assert_eq!(world.disconnected(), [key], "{row}");
        assert_eq!(world.fx.len(), 1, "{row}: {:?}", world.fx);
        // What it still says changes nothing.
        world.say(key, vec![Item::HaveAll, Item::Choked(false)]);
        assert!(world.asked.is_empty());
        world.gone(key);
    }
    let mut full = World::resolving(2, Settings { max_peers: 1, ..settings() });
    full.go_live();
    full.seed(1);
    full.connect(2, true);
    assert_eq!(full.disconnected(), [2]);
}

#[test]
fn we_are_interested_while_a_handle_is_open_and_it_has_what_we_lack() {
    let mut world = World::live(2);
    world.seed(1);
    world.connect(2, true);
    world.say(2, vec![Item::HaveNone]);
    world.take();
    world.open(1);
    world.tick(S);
    assert!(world.swarm.peers[&PeerKey(1)].interested);
    assert!(!world.swarm.peers[&PeerKey(2)].interested, "it has nothing");
    world.say(2, vec![Item::Have(PieceIndex(1))]);
    assert_eq!(world.interested(2), [true]);
    world.say(2, vec![Item::Have(PieceIndex(1)), Item::Have(PieceIndex(0))]);
    assert_eq!(world.interested(2), [true], "said once");
    world.take();
    // The reader seeks and waits: no new unchoke is needed.
    world.want(7, &[0, 1]);
    assert!(world.interested(1).is_empty() && !world.asked.is_empty());
    world.apply(Event::Demands(vec![Demand::Close { stream: 1 }]));
    assert!(world.swarm.peers[&PeerKey(1)].interested, "the read still waits");
    world.deliver_all(&[]);
    while world.hash_one(true) {}
    assert_eq!(world.interested(1), [false], "there is nothing left to want");
}

#[test]
fn a_peer_that_alone_sent_a_bad_piece_is_banned_at_once() {
    let mut world = World::live(2);
    world.seed(1);
    world.want(7, &[0]);
    world.deliver_all(&[1]);
    assert!(world.hash_one(true));
    assert_eq!(world.disconnected(), [1]);
    assert_eq!(world.swarm.banned(), [addr(1)]);
    assert!(world.asked.is_empty(), "nothing more is asked of it, though it is still connected");
    world.gone(1);
    world.connect(1, true);
    assert_eq!(world.disconnected(), [1, 1], "nor is it let in again");
    world.gone(1);
    world.seed(2);
    world.deliver_all(&[]);
    world.hash_one(true);
    assert!(world.table.is_complete(PieceIndex(0)));
}

#[test]
fn of_two_the_bad_one_is_banned_and_the_good_one_stays() {
    for liar in [1, 2] {
        let mut world = World::live(1);
        world.seed(1);
        world.seed(2);
        world.want(7, &[0]);
        let senders: BTreeSet<u64> = world.asked.iter().map(|a| a.peer.0).collect();
        assert_eq!(senders.len(), 2);
        for _ in 0..3 {
            world.deliver_all(&[liar]);
            world.hash_one(true);
            for gone in world.disconnected() {
                world.gone(gone);
            }
            world.take();
        }
        assert_eq!(world.swarm.banned(), [addr(liar)]);
        assert!(world.table.is_complete(PieceIndex(0)));
    }
}

#[test]
fn a_bad_peer_that_leaves_before_the_hash_is_known_is_banned_all_the_same() {
    let mut world = World::live(1);
    world.seed(1);
    world.want(7, &[0]);
    world.deliver_all(&[1]);
    world.gone(1);
    world.hash_one(true);
    assert_eq!(world.swarm.banned(), [addr(1)]);
}

#[test]
fn an_honest_peer_is_not_framed_by_one_that_left_its_bytes_behind() {
    // The bad one's session ended in the same socket read in which its block came: nobody was told of it.
    let mut world = World::live(1);
    world.seed(1);
    world.want(7, &[0]);
    let bad = world.asked.clone();
    for assignment in &bad {
        assignment.buffer.put(assignment.block.block, Bytes::from_static(b"bad"), assignment.peer);
    }
    world.gone(1);
    world.seed(2);
    assert!(!world.asked.is_empty());
    for _ in 0..3 {
        world.deliver_all(&[]);
        world.hash_one(true);
    }
    assert_eq!(world.swarm.banned(), [addr(1)]);
    assert!(world.table.is_complete(PieceIndex(0)));
}

#[test]
fn what_was_said_before_the_metadata_came_is_kept() {
    let mut world = World::resolving(20, settings());
    for n in 1..=5 {
        world.connect(n, true);
    }
    world.say(1, vec![Item::HaveAll, Item::Choked(false)]);
    world.say(2, vec![Item::Bitfield(Bytes::from_static(&[0x80, 0, 0]))]);
    world.say(3, vec![Item::HaveNone, Item::Have(PieceIndex(5)), Item::Choked(false)]);
    world.say(4, vec![Item::Have(PieceIndex(u32::MAX)), Item::Choked(false), Item::Choked(true)]);
    // Of a length that no torrent of 20 pieces has: nobody could know.
    world.say(5, vec![Item::Bitfield(Bytes::from_static(&[0xff])), Item::Choked(false)]);
    world.go_live();
    let picker = &mut world.swarm.live.as_mut().unwrap().picker;
    let serves = |picker: &mut Picker, n: u64| -> Vec<u32> {
        (0..20).filter(|p| picker.peer(PeerKey(n)).unwrap().can_serve(PieceIndex(*p))).collect()
    };
    assert_eq!(serves(picker, 1), (0..20).collect::<Vec<_>>());
    assert!(picker.peer(PeerKey(2)).unwrap().has().has(PieceIndex(0)));
    assert!(serves(picker, 2).is_empty(), "it chokes us");
    assert_eq!(serves(picker, 3), [5]);
    assert!(serves(picker, 4).is_empty());
    assert_eq!(serves(picker, 5), [0, 1, 2, 3, 4, 5, 6, 7]);
    world.say(5, vec![Item::Have(PieceIndex(19))]);
    assert!(serves(&mut world.swarm.live.as_mut().unwrap().picker, 5).contains(&19));
}

#[test]
fn a_bitfield_that_was_under_way_when_the_metadata_came_is_cut_to_size() {
    let mut world = World::live(20);
    world.connect(1, false);
    world.say(
        1,
        vec![Item::Bitfield(Bytes::from_static(&[0x80])), Item::Have(PieceIndex(19)), Item::Choked(false)],
    );
    world.want(7, &[19]);
    assert!(!world.asked.is_empty(), "what it said later isn't lost");
}

#[test]
fn metadata_is_asked_for_and_given_once() {
    let info = torrent(3);
    let mut world = World::resolving(3, Settings { info_hash: hash::sha1(&info.raw), ..settings() });
    let theirs = ExtHandshake {
        ut_metadata: Some(9),
        metadata_size: Some(info.raw.len() as u32),
        ..ExtHandshake::default()
    };
    world.connect(1, true);
    world.take();
    world.say(1, vec![Item::Extended(0, theirs.encode())]);
    let request = MetadataMessage::Request(0).encode();
    assert_eq!(world.count(|e| matches!(e, Effect::Extended(PeerKey(1), 9, p) if *p == request)), 1);
    let data = crate::peer::metadata::serve(Some(&info.raw), 0).encode();
    world.say(1, vec![Item::Extended(extension::OUR_UT_METADATA, data.clone())]);
    world.say(1, vec![Item::Extended(extension::OUR_UT_METADATA, data)]);
    assert_eq!(world.count(|e| matches!(e, Effect::GotMetadata(raw) if *raw == info.raw)), 1);
    // From then on we serve it.
    world.go_live();
    world.take();
    world.say(1, vec![Item::Extended(extension::OUR_UT_METADATA, request)]);
    assert_eq!(world.count(|e| matches!(e, Effect::Extended(PeerKey(1), 9, _))), 1);
}

#[test]
fn a_read_times_out_sticks_and_is_lifted() {
    type Lift = (&'static str, fn(&mut World));
    let lifts: [Lift; 4] = [
        ("ten seconds", |w| w.tick(11 * S)),
        ("a peer has it", |w| w.seed(2)),
        ("a peer gets it", |w| {
            w.connect(2, true);
            w.say(2, vec![Item::Have(PieceIndex(0))]);
        }),
        ("a peer that we know has it after all", |w| {
            w.say(1, vec![Item::Bitfield(Bytes::from_static(&[0x80]))])
        }),
    ];
    for (row, lift) in lifts {
        let mut world = World::live(4);
        world.connect(1, true);
        world.want(7, &[0, 1]);
        world.tick(299 * S);
        assert!(world.failed().is_empty());
        world.tick(S);
        assert_eq!(world.failed(), [7]);
        assert!(!world.swarm.demands().unwrap().is_waiting());
        world.want(8, &[0]);
        assert_eq!(world.failed(), [7, 8], "{row}: at once");
        world.want(9, &[2]);
        assert_eq!(world.failed(), [7, 8], "another piece has its own time");
        lift(&mut world);
        world.want(10, &[0]);
        assert_eq!(world.failed(), [7, 8], "{row}");
    }
    // Somebody who has something else lifts nothing.
    let mut world = World::live(4);
    world.want(7, &[0]);
    world.tick(300 * S);
    world.connect(3, true);
    world.say(3, vec![Item::HaveNone, Item::Have(PieceIndex(3))]);
    world.apply(Event::Found(FoundPeers { source: PeerSource::Dht, addrs: vec![addr(60)] }));
    world.want(8, &[0]);
    assert_eq!(world.failed(), [7, 8]);
}

#[test]
fn o3_why_a_read_was_given_up_is_told_until_something_comes() {
    let why = |world: &World| world.swarm.demands().unwrap().gave_up().map(ToString::to_string);
    for (peers, words) in [
        (0, "no peer is connected"),
        (1, "the peer that is connected sent nothing"),
        (2, "none of the 2 connected peers sent"),
    ] {
        let mut world = World::live(4);
        // They have nothing of what is wanted.
        for peer in 1..=peers {
            world.connect(peer, true);
            world.say(peer, vec![Item::HaveNone]);
        }
        world.want(7, &[0]);
        world.tick(299 * S);
        assert_eq!(why(&world), None, "{peers} peers: it waits");
        world.tick(S);
        assert_eq!(world.failed(), [7]);
        assert!(why(&world).unwrap().contains(words), "{:?}", why(&world));
        // A peer alone doesn't take it away, a block does.
        world.seed(9);
        world.want(8, &[0]);
        assert!(why(&world).is_some());
        let asked = std::mem::take(&mut world.asked);
        world.hand_over(&asked[0], true);
        assert_eq!(why(&world), None, "{peers} peers");
    }
}

#[test]
fn the_time_of_a_read_counts_from_the_last_block_of_its_pieces() {
    // A block of a piece that later fails its hash, a piece that is completed: both show that it goes on.
    for bad in [false, true] {
        let mut world = World::live(2);
        world.seed(1);
        world.seed(2);
        world.want(7, &[0, 1]);
        world.now += 200 * S;
        let (first, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut world.asked).into_iter().partition(|a| a.block.piece.0 == 0);
        world.asked = rest;
        for assignment in &first {
            world.hand_over(assignment, !bad);
        }
        world.hash_one(true);
        world.asked.clear();
        world.tick(150 * S);
        assert!(world.failed().is_empty(), "{bad}: 150 s after the last block");
        world.tick(150 * S);
        assert_eq!(world.failed(), [7], "{bad}");
    }
}

#[test]
fn a_piece_of_unknown_state_is_looked_at_on_demand_and_then_fetched() {
    for good in [true, false] {
        let mut world = World::resolving(2, settings());
        world.table = Arc::new(PieceTable::new(2, PieceState::Unknown));
        world.go_live();
        world.seed(1);
        assert!(world.checking.is_empty(), "nobody wants it");
        world.want(7, &[0]);
        world.want(8, &[0]);
        assert_eq!(world.checking, [PieceIndex(0)], "once");
        world.check_one(good);
        assert_eq!(world.asked.is_empty(), good);
        if good {
            assert_eq!(world.count(|e| matches!(e, Effect::Wake(PieceIndex(0)))), 1);
            assert!(!world.swarm.demands().unwrap().is_waiting());
        }
    }
}

#[test]
fn a_full_check_that_finds_bad_data_makes_it_fetchable() {
    let mut world = World::resolving(3, Settings { check_all: true, ..settings() });
    world.table = Arc::new(PieceTable::new(3, PieceState::Complete));
    world.go_live();
    world.seed(1);
    world.open(1);
    for piece in 0..3 {
        assert_eq!(world.checking, [PieceIndex(piece)], "one at a time");
        world.now += S;
        assert!(world.check_one(piece != 1));
        assert!(world.checking.is_empty(), "a pause");
        world.tick(2 * S + S / 2);
        assert!(world.checking.is_empty());
        assert!(piece == 2 || world.swarm.next_tick(world.now) <= S / 2);
        world.tick(S / 2);
    }
    assert!(world.checking.is_empty());
    world.want(7, &[1]);
    assert!(world.swarm.peers[&PeerKey(1)].interested, "the seed is of use again");
    world.deliver_all(&[]);
    world.hash_one(true);
    assert_eq!(world.table.complete_count(), 3);
}

#[test]
fn what_a_check_says_of_a_piece_that_went_meanwhile_changes_nothing() {
    for good in [true, false] {
        let mut world = World::resolving(3, Settings { check_all: true, ..settings() });
        world.table = Arc::new(PieceTable::new(3, PieceState::Complete));
        world.go_live();
        world.seed(1);
        world.open(1);
        world.apply(Event::Evict { pieces: vec![PieceIndex(0)], younger_than: None });
        world.want(7, &[0]);
        world.take();
        assert!(world.check_one(good));
        assert_eq!(world.table.state(PieceIndex(0)), PieceState::Requested);
        assert_eq!(world.count(|e| matches!(e, Effect::Wake(_) | Effect::Discard(_))), 0);
        world.deliver_all(&[]);
        world.hash_one(true);
        assert!(world.table.is_complete(PieceIndex(0)));
    }
}

#[test]
fn what_cannot_be_read_back_is_shown_until_something_was_written() {
    let mut world = World::live(2);
    world.seed(1);
    world.apply(Event::Demands(vec![Demand::Unreadable { reason: "it was cut".into() }]));
    assert_eq!(world.swarm.error(), Some("it was cut"));
    world.want(1, &[0]);
    world.deliver_all(&[]);
    assert_eq!(world.swarm.error(), Some("it was cut"), "blocks in memory say nothing of the disk");
    while world.hash_one(true) {}
    assert_eq!(world.swarm.error(), None);
}

#[test]
fn l1_effects_exactly_once_on_every_path() {
    let mut world = World::live(2);
    world.apply(Event::Found(FoundPeers {
        source: PeerSource::Tracker,
        addrs: vec![addr(1), addr(2), addr(3)],
    }));
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 3);
    world.tick(S);
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 3, "each address once");
    world.seed(1);
    world.connect(2, false);
    world.say(2, vec![Item::Choked(false)]);
    world.apply(Event::Unreachable { addr: addr(3) });
    world.take();
    world.open(1);
    for waiter in 10..20 {
        world.want(waiter, &[0]);
    }
    world.want(20, &[0, 1]);
    world.deliver_all(&[]);
    while world.hash_one(true) {}
    for piece in 0..2 {
        assert_eq!(world.count(|e| matches!(e, Effect::Wake(p) if p.0 == piece)), 1);
        // The seed isn't told; the other is.
        assert_eq!(
            world.count(
                |e| matches!(e, Effect::Have(k, p) if p[..] == [PieceIndex(piece)] && k[..] == [PeerKey(2)])
            ),
            1
        );
    }
    assert_eq!(world.count(|e| matches!(e, Effect::Finished)), 1);
    world.take();
    // Late answers, again: nothing is woken or told twice but what the answer itself says.
    world.tick(S);
    world.apply(Event::Verified { piece: PieceIndex(0), verdict: Verdict::Bad, digests: Vec::new() });
    assert_eq!(world.count(|e| matches!(e, Effect::Wake(_) | Effect::Finished | Effect::Fail(..))), 0);

    // A time-out and a withdrawal of the same read: one of them counts.
    let mut world = World::live(2);
    world.want(1, &[0]);
    world.want(2, &[0]);
    world.apply(Event::Demands(vec![Demand::Withdraw { waiter: 1 }]));
    world.tick(300 * S);
    world.apply(Event::Demands(vec![Demand::Withdraw { waiter: 2 }]));
    world.tick(300 * S);
    assert_eq!(world.failed(), [2]);

    // The early returns: a peer that broke the protocol, that is gone, that was never there.
    let mut world = World::live(2);
    world.connect(1, true);
    world.take();
    world.say(1, vec![Item::Extended(0, Bytes::from_static(b"x")), Item::HaveAll, Item::Choked(false)]);
    assert_eq!(world.disconnected(), [1]);
    world.gone(1);
    world.take();
    world.gone(1);
    world.say(1, vec![Item::HaveAll]);
    world.say(99, vec![Item::Interested(true), Item::Choked(false)]);
    assert!(world.fx.is_empty(), "{:?}", world.fx);
}

#[test]
fn o1_a_hundred_reads_of_one_piece_cause_one_fetch() {
    let mut world = World::live(4);
    world.seed(1);
    world.seed(2);
    for waiter in 0..100 {
        world.want(waiter, &[2]);
    }
    assert_eq!(world.asked.len(), 2, "its two blocks");
    world.deliver_all(&[]);
    assert_eq!(world.hashing.len(), 1);
    world.hash_one(true);
    assert_eq!(world.count(|e| matches!(e, Effect::Wake(_))), 1);
    assert!(!world.swarm.demands().unwrap().is_waiting() && world.asked.is_empty());
}

#[test]
fn blocks_do_not_make_us_look_through_the_address_book() {
    // The book may hold thousands of addresses; it is looked at when it or the connections change.
    let mut world = World::live(4);
    world.seed(1);
    world.want(7, &[0, 1, 2, 3]);
    world.swarm.book.add(addr(9), PeerSource::Tracker, world.now);
    world.deliver_all(&[]);
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 0);
    world.tick(S);
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 1);
}

#[path = "swarm_property_tests.rs"]
mod properties;

#[path = "swarm_effects_tests.rs"]
mod effects_outside_locks;
#[path = "swarm_greet_tests.rs"]
mod greeting;

#[path = "swarm_storage_tests.rs"]
mod storage;

#[path = "swarm_prefetch_tests.rs"]
mod prefetching;

#[path = "swarm_cost_tests.rs"]
mod costs;

#[path = "swarm_webseed_tests.rs"]
mod webseeds;

#[path = "swarm_serving_tests.rs"]
mod serving;
#[path = "swarm_state_tests.rs"]
mod states;
