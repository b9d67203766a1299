//! The world around one [`Swarm`]: its peers and webseeds, its owner, its workers, and the loop that lets time pass.
//!
//! Flow: take what happens next from the agenda, or tick when the swarm asked for it; apply it; carry the effects
//! out as the torrent's owner and the sessions do. Requests and cancels take a link's delay to the peer; blocks
//! come back as the peer's [`Link`] sends them; a whole piece is verified after the time that hashing takes.
//! Readers are in [`super::reading`]. Nothing here decides what is fetched: that is what is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use torrentfs::discovery::{FoundPeers, PeerSource};
use torrentfs::metainfo::geometry::{BlockRef, Geometry};
use torrentfs::metainfo::info::Info;
use torrentfs::net::transport::Kind;
use torrentfs::peer::PeerKey;
use torrentfs::peer::buffer::PieceBuffer;
use torrentfs::peer::event::{Connected, Item};
use torrentfs::peer::extension::{self, ExtHandshake};
use torrentfs::peer::mse::{Cover, Policy};
use torrentfs::torrent::background::Prefetch;
use torrentfs::torrent::effects::{Effect, Event, Verdict};
use torrentfs::torrent::memory::Memory;
use torrentfs::torrent::swarm::{Settings, Swarm};
use torrentfs::torrent::table::{PieceState, PieceTable};

use super::clock::{Agenda, Rng, Time};
use super::link::{Holds, Link, PeerSpec};
use super::reading::{Fuse, Process};
use super::webseed::{Webseed, WebseedSpec};

/// Hashing and writing: so much for each piece, and as much for each MiB of it.
const VERIFY: Duration = Duration::from_millis(1);
/// What blocks hold: nobody looks at it.
pub static ZEROS: [u8; 16384] = [0; 16384];

/// What happens.
pub enum Happening {
    /// A peer can be found.
    Found(usize),
    /// A connection to a peer is made, or can't be.
    Dialed(usize),
    /// A message of ours arrives at a peer.
    ToPeer(usize, PeerKey, Ours),
    /// A peer's send buffer has room.
    Pull(usize),
    /// A message of a peer arrives.
    FromPeer(usize, PeerKey, Theirs),
    /// A peer lets us in, if we are still interested.
    LetIn(usize),
    /// A peer chokes us for a while, or stops doing so.
    Choke(usize, bool),
    /// A peer leaves.
    Leave(usize),
    /// We notice that a connection is gone.
    Gone(usize, PeerKey),
    /// A piece was hashed, and written if it was right.
    Verified(Arc<PieceBuffer>),
    /// A webseed takes part.
    WebseedJoins(usize),
    /// Something of a webseed's response came, or is about to.
    Webseed(usize),
    /// A webseed may be asked again after a failure.
    WebseedBack(usize),
    /// A request of the kernel is answered.
    Answer(u64),
    /// A program goes on.
    Go(usize, super::programs::Woken, u64),
}

/// What we say to a peer.
pub enum Ours {
    /// Send this block.
    Request(BlockRef, u32),
    /// Don't.
    Cancel(BlockRef),
    /// We are interested, or no longer.
    Interested(bool),
}

/// What a peer says.
pub enum Theirs {
    /// A block; its length, and when its last byte left.
    Block(BlockRef, u32, Time),
    /// It won't send this block.
    Reject(BlockRef),
    /// It chokes us, or no longer.
    Choked(bool),
}

/// A peer, at both ends.
pub struct Peer {
    /// Its end.
    pub link: Link,
    addr: SocketAddr,
    /// It is gone for good.
    left: bool,
    /// It knows that we are interested.
    interested: bool,
    /// It chokes us whatever its rule says.
    refusing: bool,
    /// Nothing of ours arrives before what we said earlier.
    last_arrival: Time,
    /// When its send buffer is looked at again.
    pull_at: Option<Time>,
    rng: Rng,
    /// Our end.
    pub session: Option<Session>,
}

/// Our end of a connection, as the session keeps it.
pub struct Session {
    key: PeerKey,
    /// What was asked for, and where it goes.
    asked: BTreeMap<BlockRef, (Arc<PieceBuffer>, u32)>,
    /// Cancels that the peer has yet to answer.
    unanswered: BTreeMap<BlockRef, (u32, Weak<PieceBuffer>)>,
    /// Taken back before they were said.
    unsent: Vec<BlockRef>,
    /// Not said yet: cancels, then requests.
    cancels: Vec<BlockRef>,
    requests: Vec<(BlockRef, u32, Arc<PieceBuffer>)>,
}

/// See the module's text.
pub struct World {
    base: Instant,
    /// Now.
    pub now: Time,
    /// What happens later.
    pub agenda: Agenda<Happening>,
    tick: Time,
    swarm: Swarm,
    /// The torrent.
    pub info: Arc<Info>,
    /// The states of its pieces.
    pub table: Arc<PieceTable>,
    /// All peers of the scenario.
    pub peers: Vec<Peer>,
    /// All its webseeds.
    pub webseeds: Vec<Webseed>,
    keys: BTreeMap<PeerKey, usize>,
    next_key: u64,
    /// The programs.
    pub processes: Vec<Process>,
    /// Requests of the kernel that are not answered.
    pub fuses: BTreeMap<u64, Fuse>,
    /// The last number given to a stream or a waiting read.
    pub last_id: u64,
    /// Pages of files, as the kernel keeps them.
    pub pages: BTreeMap<u32, super::kernel::Pages>,
    /// Pieces in which something was read.
    pub touched: BTreeSet<u32>,
    came: BTreeSet<BlockRef>,
    /// Bytes of blocks that came.
    pub fetched: u64,
    /// Of those, what had come before.
    pub duplicate: u64,
    /// Bytes that the filesystem gave.
    pub read: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Peers that we threw out.
    pub thrown_out: u64,
    /// Events applied.
    pub events: u64,
    /// Effects carried out.
    pub effects: u64,
    /// Real time spent in the swarm, for scenarios about cost; nothing else depends on it.
    pub spent: Duration,
    trace: bool,
}

fn settings() -> Settings {
    Settings {
        info_hash: [1; 20],
        peer_id: *b"-TF0001-ourselves---",
        listen_port: Some(6881).into(),
        max_peers: 80,
        connections: Default::default(),
        punch: true,
        read_timeout: Some(Duration::from_secs(300)),
        filter: Arc::default(),
        upload: true,
        goals: torrentfs::torrent::goal::Goals::default(),
        pex: true,
        encryption: Policy::Off,
        check_all: false,
        prefetch: Prefetch::None,
        memory: Memory::default(),
        quota: std::sync::Arc::new(torrentfs::storage::quota::Quota::new(None)),
        check_invariants: cfg!(debug_assertions),
    }
}

impl World {
    /// A torrent of which nothing is here, and peers that will be found.
    pub fn new(info: Arc<Info>, specs: &[PeerSpec], webseeds: &[WebseedSpec], seed: u64) -> Self {
        let table = Arc::new(PieceTable::new(info.geometry.pieces(), PieceState::Missing));
        let mut rng = Rng::new(seed);
        let peers: Vec<Peer> = specs
            .iter()
            .enumerate()
            .map(|(n, spec)| Peer {
                link: Link::new(spec.clone(), rng.any()),
                addr: SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8 + 1], 6881)),
                left: false,
                interested: false,
                refusing: false,
                last_arrival: Time::ZERO,
                pull_at: None,
                rng: Rng::new(rng.any()),
                session: None,
            })
            .collect();
        let mut agenda = Agenda::new();
        for (n, spec) in specs.iter().enumerate() {
            agenda.put(spec.joins, Happening::Found(n));
            if let Some(at) = spec.leaves {
                agenda.put(at, Happening::Leave(n));
            }
            for &(at, lasts) in &spec.chokes {
                agenda.put(at, Happening::Choke(n, true));
                agenda.put(at + lasts, Happening::Choke(n, false));
            }
        }
        for (n, spec) in webseeds.iter().enumerate() {
            agenda.put(spec.joins, Happening::WebseedJoins(n));
        }
        let mut world = Self {
            base: Instant::now(),
            now: Time::ZERO,
            agenda,
            tick: Time::ZERO,
            swarm: Swarm::new(settings()),
            info,
            table,
            peers,
            webseeds: webseeds.iter().cloned().map(Webseed::new).collect(),
            keys: BTreeMap::new(),
            next_key: 1,
            processes: Vec::new(),
            fuses: BTreeMap::new(),
            last_id: 0,
            pages: BTreeMap::new(),
            touched: BTreeSet::new(),
            came: BTreeSet::new(),
            fetched: 0,
            duplicate: 0,
            read: 0,
            failed: 0,
            thrown_out: 0,
            events: 0,
            effects: 0,
            spent: Duration::ZERO,
            trace: std::env::var_os("SIMULATION_TRACE").is_some(),
        };
        world.apply(Event::Metadata { info: world.info.clone(), table: world.table.clone() });
        world
    }

    /// The torrent's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.info.geometry
    }

    /// Lets time pass until all programs have done or `until` has come.
    pub fn run(&mut self, until: Time) {
        while self.processes.iter().any(Process::is_running) {
            let next = self.agenda.next_at().filter(|at| *at <= self.tick);
            if next.unwrap_or(self.tick) > until {
                break;
            }
            match self.agenda.take_if(next.is_some()) {
                Some((at, what)) => {
                    self.now = at;
                    self.happen(what);
                }
                None => {
                    self.now = self.tick;
                    self.apply(Event::Tick);
                }
            }
        }
    }

    /// A moment as the swarm knows it.
    pub fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Applies an event and carries out what it led to. The tick is due when the swarm says, counted from now, as
    /// the owner's loop counts it.
    pub fn apply(&mut self, event: Event) {
        self.events += 1;
        let now = self.instant();
        let real = Instant::now();
        let effects = self.swarm.apply(event, now);
        self.spent += real.elapsed();
        self.effects += effects.len() as u64;
        for effect in effects {
            self.carry_out(effect);
        }
        for n in 0..self.peers.len() {
            self.flush(n);
        }
        for n in 0..self.webseeds.len() {
            self.webseed_goes_on(n);
        }
        self.tick = self.now + self.swarm.next_tick(now);
    }

    fn session(&mut self, key: PeerKey) -> Option<&mut Session> {
        let peer = self.keys.get(&key).and_then(|n| self.peers.get_mut(*n))?;
        peer.session.as_mut().filter(|s| s.key == key)
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Request(assignments) => {
                for a in assignments {
                    self.log(|| format!("ask {} for {}/{}", a.peer.0, a.block.piece.0, a.block.block.0));
                    if let Some(seed) = self.webseed(a.peer) {
                        seed.ask((a.block, a.len, a.buffer), a.urgent);
                    } else if let Some(session) = self.session(a.peer) {
                        session.requests.push((a.block, a.len, a.buffer));
                    }
                }
            }
            Effect::Cancel(key, block) => {
                self.log(|| format!("cancel at {} {}/{}", key.0, block.piece.0, block.block.0));
                if let Some(seed) = self.webseed(key) {
                    seed.cancel(block);
                } else if let Some(session) = self.session(key) {
                    let before = session.requests.len();
                    session.requests.retain(|(b, ..)| *b != block);
                    if session.requests.len() == before {
                        session.cancels.push(block);
                    } else {
                        session.unsent.push(block);
                    }
                }
            }
            Effect::Hurry(key, block) => {
                if let Some(seed) = self.webseed(key) {
                    seed.hurry(block);
                }
            }
            Effect::Interested(key, yes) => {
                if let Some(&n) = self.keys.get(&key) {
                    self.tell(n, key, Ours::Interested(yes));
                }
            }
            Effect::Disconnect(key, reason) => {
                self.log(|| format!("throw {} out: {reason}", key.0));
                self.thrown_out += 1;
                if let Some(seed) = self.webseed(key) {
                    seed.key = None;
                    return self.apply(Event::Gone { key, reason });
                }
                if let Some(&n) = self.keys.get(&key) {
                    self.agenda.put(self.now, Happening::Gone(n, key));
                }
            }
            Effect::Seen { .. } => {}
            Effect::Dial(dial) => {
                if let Some(n) = self.peers.iter().position(|p| p.addr == dial.addr) {
                    // A round trip for the connection, another for the handshakes.
                    let takes = self.peers[n].link.spec.delay * 4;
                    self.agenda.put(self.now + takes, Happening::Dialed(n));
                }
            }
            Effect::Verify { buffer, .. } => {
                let piece = buffer.piece();
                assert!(buffer.blocks().is_some(), "piece {} is to be verified and isn't whole", piece.0);
                let len = u64::from(self.geometry().piece_len(piece));
                let takes = VERIFY + Duration::from_nanos((VERIFY.as_nanos() as u64 * len) >> 20);
                self.agenda.put(self.now + takes, Happening::Verified(buffer));
            }
            Effect::Distrust(key, file) => {
                self.log(|| format!("file {} is not believed of {}", file.0, key.0));
                if let Some(seed) = self.webseed(key) {
                    seed.distrusted.push(file.0);
                }
            }
            Effect::Wake(piece) => {
                self.log(|| format!("piece {} is here", piece.0));
                self.wake(piece);
            }
            Effect::Fail(id, error) => {
                self.log(|| format!("read {id} failed: {error}"));
                self.fail(id);
            }
            Effect::Check(piece) | Effect::Sweep { piece, .. } => {
                unreachable!("piece {} is known to be missing", piece.0)
            }
            Effect::Mend(_) | Effect::Doubt(_) | Effect::Discard(_) => {
                unreachable!("the disk is good and large")
            }
            Effect::GotMetadata(_) => unreachable!("the metadata was known"),
            // Nobody here downloads from us or asks for metadata.
            Effect::Choke(..)
            | Effect::First(..)
            | Effect::Extended(..)
            | Effect::Have(..)
            | Effect::AllowFast(..)
            | Effect::AllowNothing(..)
            | Effect::DontHave(..)
            | Effect::Finished => {}
        }
    }

    /// Says what a session has to say: cancels, then requests, as the outbox does.
    fn flush(&mut self, n: usize) {
        let Some(session) = &mut self.peers[n].session else { return };
        if session.cancels.is_empty() && session.requests.is_empty() && session.unsent.is_empty() {
            return;
        }
        let key = session.key;
        let unsent = std::mem::take(&mut session.unsent);
        let mut messages = Vec::new();
        for block in std::mem::take(&mut session.cancels) {
            if let Some((buffer, _)) = session.asked.remove(&block) {
                let taken_back = session.unanswered.entry(block).or_insert((0, Weak::new()));
                *taken_back = (taken_back.0 + 1, Arc::downgrade(&buffer));
                messages.push(Ours::Cancel(block));
            }
        }
        for (block, len, buffer) in std::mem::take(&mut session.requests) {
            session.asked.insert(block, (buffer, len));
            messages.push(Ours::Request(block, len));
        }
        for message in messages {
            self.tell(n, key, message);
        }
        if !unsent.is_empty() {
            let items = unsent.into_iter().map(Item::Recalled).collect();
            self.apply(Event::Said { key, items });
        }
    }

    /// A message of ours goes to a peer.
    fn tell(&mut self, n: usize, key: PeerKey, message: Ours) {
        let peer = &mut self.peers[n];
        let spec = &peer.link.spec;
        let arrives = self.now + spec.delay + peer.rng.duration(spec.jitter);
        peer.last_arrival = arrives.max(peer.last_arrival);
        self.agenda.put(peer.last_arrival, Happening::ToPeer(n, key, message));
    }

    /// A peer says something short.
    fn answer(&mut self, n: usize, message: Theirs) {
        let peer = &mut self.peers[n];
        let Some(key) = peer.session.as_ref().map(|s| s.key) else { return };
        let arrives = peer.link.say(self.now);
        self.agenda.put(arrives, Happening::FromPeer(n, key, message));
    }

    /// A peer or webseed said something.
    pub fn said(&mut self, key: PeerKey, item: Item) {
        self.apply(Event::Said { key, items: vec![item] });
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Found(n) => {
                let found = FoundPeers { source: PeerSource::Tracker, addrs: vec![self.peers[n].addr] };
                self.apply(Event::Found(found));
            }
            Happening::Dialed(n) => self.dialed(n),
            Happening::ToPeer(n, key, message) => self.heard(n, key, message),
            Happening::Pull(n) => self.pull(n),
            Happening::FromPeer(n, key, message) => self.comes(n, key, message),
            Happening::LetIn(n) => self.let_in(n),
            Happening::Choke(n, choke) => {
                self.peers[n].refusing = choke;
                match choke {
                    true => self.choke(n),
                    false => self.let_in(n),
                }
            }
            Happening::Leave(n) => {
                let peer = &mut self.peers[n];
                peer.left = true;
                if let Some(session) = &peer.session {
                    let arrives = self.now + peer.link.spec.delay;
                    self.agenda.put(arrives, Happening::Gone(n, session.key));
                }
            }
            Happening::Gone(n, key) => {
                if self.session(key).is_some() {
                    self.peers[n].session = None;
                    self.keys.remove(&key);
                    self.apply(Event::Gone { key, reason: "the connection is gone".into() });
                }
            }
            Happening::Verified(buffer) => self.verified(&buffer),
            Happening::WebseedJoins(n) => self.webseed_joins(n),
            Happening::Webseed(n) => self.webseed_goes_on(n),
            Happening::WebseedBack(n) => self.webseed_back(n),
            Happening::Answer(id) => self.answered(id),
            Happening::Go(process, why, number) => self.go_on(process, why, number),
        }
    }

    /// A piece was hashed. Good ones hold zeros.
    fn verified(&mut self, buffer: &PieceBuffer) {
        let blocks = buffer.blocks().expect("a whole piece");
        let is_good = |block: &&Bytes| block.first().is_none_or(|byte| *byte == 0);
        let verdict = if blocks.iter().all(is_good) { Verdict::Good } else { Verdict::Bad };
        // What they hold is all the same, so this tells them apart.
        let digests = blocks.iter().map(|block| [block.first().copied().unwrap_or(0); 20]).collect();
        self.apply(Event::Verified { piece: buffer.piece(), verdict, digests });
    }

    /// A key that nobody had.
    pub fn new_key(&mut self) -> PeerKey {
        self.next_key += 1;
        PeerKey(self.next_key - 1)
    }

    /// A block came, wanted or not.
    pub fn count(&mut self, block: BlockRef, len: u32) {
        self.fetched += u64::from(len);
        if !self.came.insert(block) {
            self.duplicate += u64::from(len);
            self.log(|| format!("again: {}/{}", block.piece.0, block.block.0));
        }
    }

    fn dialed(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        let addr = peer.addr;
        if peer.left || peer.session.is_some() {
            return self.apply(Event::Unreachable { addr });
        }
        let key = self.new_key();
        self.keys.insert(key, n);
        let peer = &mut self.peers[n];
        peer.session = Some(Session {
            key,
            asked: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            unsent: Vec::new(),
            cancels: Vec::new(),
            requests: Vec::new(),
        });
        let mut peer_id = [b'x'; 20];
        peer_id[..8].copy_from_slice(&key.0.to_be_bytes());
        let spec = &peer.link.spec;
        let who = Connected {
            addr,
            incoming: false,
            peer_id,
            fast: spec.fast,
            extensions: true,
            cover: Cover::Plain,
            kind: Kind::Tcp,
        };
        let hello = ExtHandshake { reqq: Some(spec.reqq), ..ExtHandshake::default() }.encode();
        let has = match &spec.holds {
            Holds::All if spec.fast => Item::HaveAll,
            Holds::All | Holds::Some(_) => {
                let pieces = self.info.geometry.pieces();
                let mut bits = vec![0u8; (pieces as usize).div_ceil(8)];
                for piece in (0..pieces).filter(|p| spec.has(*p)) {
                    bits[piece as usize / 8] |= 0x80 >> (piece % 8);
                }
                Item::Bitfield(bits.into())
            }
        };
        self.log(|| format!("peer {n} is connected as {}", key.0));
        self.apply(Event::Connected { key, peer: who });
        self.apply(Event::Said { key, items: vec![Item::Extended(extension::HANDSHAKE_ID, hello), has] });
    }

    /// A message of ours arrives at a peer.
    fn heard(&mut self, n: usize, key: PeerKey, message: Ours) {
        let peer = &mut self.peers[n];
        if peer.left || peer.session.as_ref().is_none_or(|s| s.key != key) {
            return;
        }
        let fast = peer.link.spec.fast;
        match message {
            Ours::Request(block, len) => {
                if peer.link.request(block, len) {
                    self.pull(n);
                } else if fast {
                    self.answer(n, Theirs::Reject(block));
                }
            }
            Ours::Cancel(block) => {
                if peer.link.cancel(block) && fast {
                    self.answer(n, Theirs::Reject(block));
                }
            }
            Ours::Interested(true) => {
                peer.interested = true;
                let at = self.now + peer.link.spec.lets_in_after;
                self.agenda.put(at, Happening::LetIn(n));
            }
            Ours::Interested(false) => {
                peer.interested = false;
                self.choke(n);
            }
        }
    }

    fn let_in(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        if peer.interested && !peer.refusing && peer.link.choking {
            peer.link.choking = false;
            self.answer(n, Theirs::Choked(false));
        }
    }

    fn choke(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        if std::mem::replace(&mut peer.link.choking, true) {
            return;
        }
        let dropped = peer.link.drop_requests();
        let fast = peer.link.spec.fast;
        self.answer(n, Theirs::Choked(true));
        for block in dropped.into_iter().filter(|_| fast) {
            self.answer(n, Theirs::Reject(block));
        }
    }

    /// Blocks go from a peer's queue into its send buffer.
    fn pull(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        let Some(key) = peer.session.as_ref().map(|s| s.key) else { return };
        if peer.left {
            return;
        }
        let (sent, again) = peer.link.pull(self.now);
        for s in sent {
            let block = Theirs::Block(s.block, s.len, s.left);
            self.agenda.put(s.arrives, Happening::FromPeer(n, key, block));
        }
        if let Some(at) = again.filter(|at| peer.pull_at != Some(*at)) {
            peer.pull_at = Some(at);
            self.agenda.put(at, Happening::Pull(n));
        }
    }

    /// A message of a peer arrives: what its session makes of it.
    fn comes(&mut self, n: usize, key: PeerKey, message: Theirs) {
        let (leaves, fast) = (self.peers[n].link.spec.leaves, self.peers[n].link.spec.fast);
        let Some(session) = self.peers[n].session.as_mut().filter(|s| s.key == key) else { return };
        match message {
            // It went before the block was out.
            Theirs::Block(_, _, left) if leaves.is_some_and(|at| at < left) => {}
            Theirs::Block(block, len, _) => {
                let taken_back = answers_a_cancel(session, block);
                let wanted = session.asked.remove(&block).map(|(buffer, _)| buffer);
                let wanted = wanted.or_else(|| taken_back.and_then(|buffer| buffer.upgrade()));
                self.count(block, len);
                if let Some(buffer) = wanted {
                    buffer.put(block.block, Bytes::from_static(&ZEROS[..len as usize]), key);
                    self.said(key, Item::Block { block, buffer });
                } else {
                    self.log(|| format!("too late from {}: {}/{}", key.0, block.piece.0, block.block.0));
                }
            }
            Theirs::Reject(block) => {
                if answers_a_cancel(session, block).is_some() {
                    self.said(key, Item::Recalled(block));
                } else if session.asked.remove(&block).is_some() {
                    self.said(key, Item::Rejected(block));
                }
            }
            Theirs::Choked(choked) => {
                if choked && !fast {
                    session.asked.clear();
                }
                self.log(|| format!("{} chokes us: {choked}", key.0));
                self.said(key, Item::Choked(choked));
            }
        }
    }

    /// Bytes per second that the connected peers can send.
    pub fn swarm_rate(&self) -> u64 {
        let peers = self.peers.iter().filter(|p| p.session.is_some()).map(|p| p.link.spec.rate);
        let webseeds = self.webseeds.iter().filter(|seed| seed.key.is_some()).map(|seed| seed.spec.rate);
        peers.chain(webseeds).sum()
    }

    /// The longest round trip to a connected peer.
    pub fn round_trip(&self) -> Duration {
        let connected = self.peers.iter().filter(|p| p.session.is_some());
        let peers = connected.map(|p| p.link.spec.delay * 2);
        let webseeds = self.webseeds.iter().filter(|seed| seed.key.is_some()).map(|seed| seed.spec.delay * 2);
        peers.chain(webseeds).max().unwrap_or_default()
    }

    /// Bytes that were asked for and have not come.
    pub fn in_flight(&self) -> u64 {
        let sessions = self.peers.iter().filter_map(|p| p.session.as_ref());
        sessions.flat_map(|s| s.asked.values()).map(|(_, len)| u64::from(*len)).sum()
    }

    /// Prints a line when the run is traced (`SIMULATION_TRACE=1`).
    pub fn log(&self, line: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now.as_secs_f64() * 1000.0, line());
        }
    }
}

/// Where the block goes if an answer for it is the one to a request that was cancelled, as in the session.
fn answers_a_cancel(session: &mut Session, block: BlockRef) -> Option<Weak<PieceBuffer>> {
    let (count, buffer) = session.unanswered.get_mut(&block)?;
    *count -= 1;
    let (last, buffer) = (*count == 0, buffer.clone());
    if last {
        session.unanswered.remove(&block);
    }
    Some(buffer)
}
