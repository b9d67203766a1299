//! The owner of a torrent: one task that feeds events to the [`Swarm`] and carries its effects out.
//!
//! Flow: wait for something (peers, readers, workers, discovery, commands, time); `apply` it; carry out
//! what it led to; publish the status. The owner never waits for a peer, a disk or a reader: peers have an outbox,
//! blocking work goes to the storage workers and comes back as an answer, readers are answered by workers.
//! All its channels are bounded; what fills them up is said where they are made ([`start`]).

mod finding;
mod keeping;
mod publishing;
mod seeding;
mod seeds;
mod telling;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::crowd::Crowd;
use super::effects::{Effect, Event};
use super::inbox::Inbox;
use super::memory::Memory;
use super::prepare::{Home, Means, Opening};
use super::rate::Rate;
use super::reads::{ReadError, Shared};
use super::recent::Recent;
use super::records::Records;
use super::room::{Membership, Room};
use super::sessions::Sessions;
use super::status::{State, Status};
use super::swarm::{Settings, Swarm};
use super::table::ReadClock;
use super::unrecorded::Unrecorded;
use super::work::{self, Ready, Work};
use super::{Command, Torrent, Turns};
use crate::discovery::dht::Dht;
use crate::discovery::lsd::Lsd;
use crate::discovery::tracker::{TrackerOptions, Trackers};
use crate::discovery::{Following, FoundPeers};
use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, Geometry, PieceIndex};
use crate::metainfo::id::InfoHash;
use crate::metainfo::info::Info;
use crate::net::hosts::Reach;
use crate::net::limit::{Limits, RateLimit};
use crate::net::ours::Ours;
use crate::peer::PeerKey;
use crate::peer::connect::Ways;
use crate::peer::event::{BlockSource, Counters, Known, PeerEvent};
use crate::peer::mse;
use crate::peer::outbox::{Outbox, Wanted};
use crate::peer::wire::BlockRequest;
use crate::storage::pool::Workers;
use crate::storage::tally::Tally;
use crate::sync::tasks::TaskScope;
use crate::webseed::{Hub, Seed};

/// What a reader learns when the owner's task died of a bug.
const PANICKED: &str =
    "an internal error stopped the fetching of this torrent; please report it, and mount again";
/// How soon work is tried again that the workers had no room for, if none of this torrent's ends before.
const BACKLOG: Duration = Duration::from_millis(100);

/// What a torrent begins with.
pub struct Plan {
    /// Its number, from 1.
    pub slot: u32,
    /// What it is.
    pub info_hash: InfoHash,
    /// Its name while the metadata isn't known.
    pub hint: String,
    /// Seconds since the epoch when it was added.
    pub added: i64,
    /// Seconds since the epoch when the torrent was made, if it says so.
    pub created: Option<i64>,
    /// The metadata, if known.
    pub info: Option<Arc<Info>>,
    /// Trackers by tier.
    pub trackers: Vec<Vec<String>>,
    /// Those of them that the user named.
    pub named_trackers: Vec<String>,
    /// How far the hosts may be that the torrent names.
    pub reach: Reach,
    /// The webseeds that the user names.
    pub webseeds: Vec<Seed>,
    /// Addresses known from the start.
    pub peers: Vec<FoundPeers>,
    /// What earlier runs have given back, for its goals.
    pub past: Tally,
    /// Bytes that are charged for what is kept of it, until that is known.
    pub charged: u64,
    /// Where its data is kept.
    pub home: Home,
    /// How its storage is opened.
    pub opening: Opening,
    /// What doesn't change.
    pub settings: Settings,
}

/// What all torrents of the program share.
#[derive(Clone)]
pub struct Environment {
    /// Who does blocking work.
    pub workers: Arc<Workers>,
    /// How peers are connected to.
    pub ways: Ways,
    /// The pieces kept in memory, of all torrents.
    pub recent: Arc<Recent>,
    /// How trackers are announced to; `None` when they are off.
    pub trackers: Option<TrackerOptions>,
    /// For webseeds.
    pub hub: Arc<Hub>,
    /// `None` when it is off.
    pub dht: Option<Arc<Dht>>,
    /// The same.
    pub lsd: Option<Arc<Lsd>>,
    /// Our own addresses.
    pub ours: Ours,
    /// Wakes whoever watches the set of torrents.
    pub changed: Arc<Notify>,
    /// Limits on what is received and sent, for the whole program.
    pub limits: (RateLimit, RateLimit),
    /// Peers of the local network are under no limit.
    pub spare_local: bool,
    /// What the pieces in the making may take.
    pub memory: Memory,
    /// How much may be kept.
    pub room: Room,
    /// What counts reads.
    pub clock: ReadClock,
}

struct Link {
    outbox: Arc<Outbox>,
    counters: Arc<Counters>,
    /// From which address to which; none for a webseed.
    ends: Option<finding::Ends>,
}

/// Bytes moved, for the announces.
#[derive(Default)]
struct Totals {
    up: AtomicU64,
    down: AtomicU64,
    left: AtomicU64,
}

struct Owner {
    torrent: Arc<Torrent>,
    swarm: Swarm,
    scope: TaskScope,
    env: Environment,
    settings: Settings,
    charged: u64,
    home: Home,
    opening: Opening,
    /// The storage is being opened, or is open.
    preparing: bool,
    inbox: Arc<Inbox>,
    /// To peers and webseeds.
    links: HashMap<PeerKey, Link>,
    seeds: seeds::Seeds,
    work: mpsc::Sender<Work>,
    /// Blocking work that the workers had no room for; tried again when something ends.
    backlog: VecDeque<Effect>,
    found: mpsc::Sender<FoundPeers>,
    tiers: Vec<Vec<String>>,
    named_trackers: Vec<String>,
    reach: Reach,
    /// Known to be private when the search for peers began.
    private: bool,
    trackers: Option<Trackers>,
    /// In the DHT and the local network.
    following: Vec<Following>,
    totals: Arc<Totals>,
    /// Of peers that are gone.
    past: (u64, u64),
    seen: (u64, u64),
    rates: (Rate, Rate),
    /// What was written since the last record.
    unrecorded: Unrecorded,
    /// What is recorded; known with the metadata.
    records: Option<Records>,
    /// When something failed to be recorded.
    record_failed: Option<Instant>,
    /// Pieces that are being hashed or written, and whether a sync has failed meanwhile: it may have lost them.
    writing: HashMap<PieceIndex, bool>,
    /// Files that are being opened anew: nothing is written or checked meanwhile.
    mending: usize,
    /// What waits for room.
    crowd: Crowd,
    /// Its pieces may be evicted.
    membership: Option<Membership>,
    /// What the workers had no room for giving back.
    undiscarded: Vec<PieceIndex>,
    /// Discards under way.
    discarding: usize,
    /// What couldn't be given back, and is tried again.
    stubborn: keeping::Stubborn,
    /// Missing pieces that take room all the same, since it can't be given back; it is charged.
    charged_still: HashSet<PieceIndex>,
    checking: usize,
    published: Option<Instant>,
    /// Whether the published status is out of date, or about to be: a rate falls though nothing happens.
    stale: bool,
    failed: Option<String>,
    persisted: Vec<oneshot::Sender<()>>,
    /// It is about to end: nothing more is opened.
    closing: bool,
    /// Who waits for that, until what is being opened or kept is.
    closers: Vec<oneshot::Sender<()>>,
    /// Its metadata is being kept.
    keeping: bool,
    /// Until when it is served; `None` when there is no end to it.
    seeding: Option<seeding::Seeding>,
}

/// Starts a torrent in tasks of `scope` and returns its handle at once.
pub fn start(scope: TaskScope, plan: Plan, env: Environment) -> Arc<Torrent> {
    // Full when the owner lags: the sessions wait, and so do the peers behind their sockets.
    let (peer_events, peer_inbox) = mpsc::channel(256);
    // Never full: each kind of work has fewer jobs under way than this (see `Class::bound`, twice).
    let (work, done) = mpsc::channel(4096);
    // Full when the owner lags: whoever found more waits.
    let (found, finds) = mpsc::channel(64);
    // Full when commands come faster than they are carried out: the caller waits.
    let (commands, orders) = mpsc::channel(8);
    let known = Arc::new(OnceLock::new());
    let private = plan.info.as_ref().is_some_and(|info| info.private);
    let sessions = Sessions::new(
        scope.child("peers"),
        plan.settings.info_hash,
        plan.settings.peer_id,
        known,
        peer_events.clone(),
        Limits::of_program(env.limits.clone(), env.spare_local),
        env.ways.clone(),
    );
    let sessions = Arc::new(sessions.with_dht(env.dht.clone(), private));
    let now = Instant::now();
    let torrent = Arc::new(Torrent {
        slot: plan.slot,
        info_hash: plan.info_hash,
        obscured: mse::obscured(&plan.settings.info_hash),
        hint: plan.hint,
        added: plan.created.unwrap_or(plan.added),
        live: OnceLock::new(),
        status: RankedMutex::new(Rank::Leaf, "torrent status", Arc::default()),
        sessions,
        changed: env.changed.clone(),
        commands,
        settled: watch::Sender::new(false),
        turns: Turns::new(now),
        webseeds: RankedMutex::new(Rank::Leaf, "webseeds of a torrent", Vec::new()),
        trackers: RankedMutex::new(Rank::Leaf, "trackers of a torrent", None),
        named: AtomicBool::new(false),
        eager: AtomicBool::new(true),
        scope: scope.clone(),
        charged: plan.charged,
    });
    let seeding = seeding::Seeding::new(plan.settings.goals, plan.past, now);
    let mut owner = Owner {
        torrent: torrent.clone(),
        swarm: Swarm::new(plan.settings.clone()),
        scope: scope.clone(),
        settings: plan.settings,
        charged: plan.charged,
        home: plan.home,
        opening: plan.opening,
        preparing: false,
        inbox: Arc::default(),
        links: HashMap::new(),
        seeds: seeds::Seeds::new(scope.child("webseeds"), peer_events),
        work,
        backlog: VecDeque::new(),
        found,
        tiers: plan.trackers,
        named_trackers: plan.named_trackers,
        reach: plan.reach,
        private,
        trackers: None,
        following: Vec::new(),
        totals: Arc::default(),
        past: (0, 0),
        seen: (0, 0),
        rates: (Rate::new(now), Rate::new(now)),
        unrecorded: Unrecorded::default(),
        records: None,
        record_failed: None,
        writing: HashMap::new(),
        mending: 0,
        crowd: Crowd::new(plan.slot, &env.room),
        undiscarded: Vec::new(),
        discarding: 0,
        stubborn: keeping::Stubborn::default(),
        charged_still: HashSet::new(),
        membership: None,
        checking: 0,
        published: None,
        stale: true,
        failed: None,
        persisted: Vec::new(),
        closing: false,
        closers: Vec::new(),
        keeping: false,
        seeding,
        env,
    };
    owner.totals.left.store(u64::MAX >> 1, Ordering::Relaxed);
    // Listed at once, started when there is something to ask for.
    owner.plant(plan.webseeds, seeds::By::User);
    scope.spawn_graceful("owner", owner.run(plan.info, plan.peers, peer_inbox, done, finds, orders));
    torrent
}

impl Owner {
    async fn run(
        mut self,
        info: Option<Arc<Info>>,
        peers: Vec<FoundPeers>,
        mut peer_events: mpsc::Receiver<PeerEvent>,
        mut done: mpsc::Receiver<Work>,
        mut finds: mpsc::Receiver<FoundPeers>,
        mut orders: mpsc::Receiver<Command>,
    ) {
        let token = self.scope.token().clone();
        let inbox = self.inbox.clone();
        let _end = End { torrent: self.torrent.clone() };
        match info {
            Some(info) => self.prepare(info),
            None => self.recall(),
        }
        for found in peers {
            self.apply(Event::Found(found));
        }
        self.discover(self.private);
        let mut ours = self.env.ours.known();
        ours.mark_changed();
        let mut batch = Vec::new();
        loop {
            let now = Instant::now();
            self.record_if_due(now);
            self.give_back_if_due(now);
            self.publish_if_due(now);
            let next = now + self.swarm.next_tick(now).min(self.next_chore(now));
            self.torrent.turns.will(next);
            let next = tokio::time::Instant::from_std(next);
            tokio::select! {
                () = token.cancelled() => break,
                n = peer_events.recv_many(&mut batch, 64) => {
                    if n == 0 {
                        break;
                    }
                    for event in batch.drain(..) {
                        self.peer_event(event);
                    }
                }
                () = inbox.posted() => self.apply(Event::Demands(inbox.take())),
                Some(work) = done.recv() => self.work_ended(work),
                Some(found) = finds.recv() => self.apply(Event::Found(found)),
                Some(command) = orders.recv() => self.command(command),
                () = self.crowd.changed() => self.room_changed(),
                Ok(()) = ours.changed() => {
                    let known = ours.borrow_and_update().clone();
                    self.apply(Event::Ours(known));
                }
                () = tokio::time::sleep_until(next) => {
                    // What has ended by now has ended in time, however late we look.
                    while let Ok(work) = done.try_recv() {
                        self.work_ended(work);
                    }
                    self.try_backlog();
                    if self.swarm.round_is_due(Instant::now()) {
                        let sent = |l: &Link| l.counters.up.load(Ordering::Relaxed);
                        self.apply(Event::Sent(self.links.iter().map(|(key, l)| (*key, sent(l))).collect()));
                    }
                    self.apply(Event::Tick);
                }
            }
        }
    }

    fn next_chore(&self, now: Instant) -> Duration {
        let again = self.record_failed.map(|at| at + keeping::RECORD_PAUSE);
        let persist = self.unrecorded.due().into_iter().chain(again).chain(self.stubborn.again).min();
        let goal = self.seeding.as_ref().and_then(|seeding| seeding.next(now));
        let persist = persist.map(|at| at.saturating_duration_since(now)).into_iter().chain(goal).min();
        let publish = if self.stale { publishing::PUBLISH } else { Duration::from_secs(60) };
        let backlog = if self.backlog.is_empty() { publish } else { BACKLOG };
        persist.unwrap_or(publish).min(publish).min(backlog)
    }

    fn apply(&mut self, event: Event) {
        self.stale |= !matches!(event, Event::Tick);
        let effects = self.swarm.apply(event, Instant::now());
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Connected { key, peer, local, outbox, counters } => {
                let ends = Some(finding::Ends { local, peer: peer.addr.ip() });
                self.links.insert(key, Link { outbox, counters, ends });
                tracing::debug!(peer = %peer.addr, incoming = peer.incoming, over = ?peer.kind, "connected");
                self.apply(Event::Connected { key, peer });
            }
            PeerEvent::Said { key, items } => self.apply(Event::Said { key, items }),
            PeerEvent::Gone { key, reason } => {
                self.unlink(key);
                self.seed_gone(key, &reason);
                self.apply(Event::Gone { key, reason });
            }
            PeerEvent::Webseed { key, outbox, counters } => self.seed_joins(key, outbox, counters),
            PeerEvent::Refuses { key, files } => self.seed_refuses(key, files),
            PeerEvent::Unreachable { addr, reason } => {
                tracing::debug!(peer = %addr, "unreachable: {reason}");
                self.apply(Event::Unreachable { addr });
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Request(assignments) => {
                let mut by_peer: HashMap<PeerKey, Vec<Wanted>> = HashMap::new();
                for a in assignments {
                    let begin = a.block.block.0 * BLOCK_LEN;
                    let request = BlockRequest { piece: a.block.piece, begin, len: a.len };
                    by_peer.entry(a.peer).or_default().push(Wanted {
                        request,
                        buffer: a.buffer,
                        urgent: a.urgent,
                    });
                }
                for (peer, wanted) in by_peer {
                    if let Some(link) = self.links.get(&peer) {
                        link.outbox.request(wanted);
                    }
                }
            }
            Effect::Cancel(peer, block) => {
                if let (Some(link), Some(request)) = (self.links.get(&peer), self.request(block)) {
                    link.outbox.cancel(request);
                }
            }
            Effect::Hurry(peer, block) => {
                if let (Some(link), Some(request)) = (self.links.get(&peer), self.request(block)) {
                    link.outbox.hurry(request);
                }
            }
            Effect::Interested(peer, yes) => self.tell(peer, |o| o.interested(yes)),
            Effect::Choke(peer, yes) => self.tell(peer, |o| o.choke(yes)),
            Effect::AllowFast(peer, pieces) => self.tell(peer, |o| o.allow(pieces)),
            Effect::AllowNothing(peer) => self.tell(peer, |o| o.allow_nothing()),
            Effect::First(peer, message) => self.tell(peer, |o| o.first(message)),
            Effect::Extended(peer, id, payload) => self.tell(peer, |o| o.extended(id, payload)),
            Effect::Distrust(peer, file) => self.tell(peer, |o| o.distrust(file)),
            Effect::Disconnect(peer, reason) => self.goes(peer, reason),
            Effect::Have(peers, pieces) => {
                peers.into_iter().for_each(|peer| self.tell(peer, |o| o.have(&pieces)));
            }
            Effect::Dial(dial) => self.torrent.sessions.dial(dial),
            Effect::Seen { ip, by } => self.env.ours.saw(ip, by, Instant::now()),
            Effect::Verify { buffer, digests } => self.verify(buffer, digests),
            Effect::Check(piece) => self.check(piece, work::Check::Wanted),
            Effect::Sweep { piece, recorded: true } => self.check(piece, work::Check::Recorded),
            Effect::Sweep { piece, recorded: false } => self.check(piece, work::Check::Unknown),
            Effect::Mend(files) => self.mend(files),
            Effect::Discard(pieces) => {
                if let Some(records) = &mut self.records {
                    records.gone(&pieces);
                }
                self.record();
            }
            Effect::Doubt(pieces) => {
                if let Some(records) = &mut self.records {
                    records.doubt(&pieces);
                }
                self.record();
            }
            Effect::DontHave(peers, piece) => {
                for (peer, id) in peers {
                    self.tell(peer, |o| o.dont_have(id, piece));
                }
            }
            Effect::Wake(piece) => {
                if let Some(shared) = self.torrent.live() {
                    let len = shared.info.geometry.piece_len(piece);
                    self.unrecorded.wrote(len.into(), Instant::now());
                    shared.wake(piece);
                }
            }
            Effect::Fail(id, error) => {
                if let Some(shared) = self.torrent.live() {
                    shared.fail_id(id, &error);
                }
            }
            Effect::GotMetadata(raw) => self.got_metadata(raw),
            Effect::Finished => {
                tracing::info!(torrent = %self.torrent.name(), "complete");
                if let Some(trackers) = &self.trackers {
                    trackers.completed();
                }
                self.published = None;
            }
        }
    }

    fn tell(&self, peer: PeerKey, what: impl FnOnce(&Outbox)) {
        if let Some(link) = self.links.get(&peer) {
            what(&link.outbox);
        }
    }

    fn request(&self, block: BlockRef) -> Option<BlockRequest> {
        let geometry: &Geometry = &self.torrent.live()?.info.geometry;
        let len = geometry.block_len(block);
        Some(BlockRequest { piece: block.piece, begin: block.block.0 * BLOCK_LEN, len })
    }

    /// Metadata kept from an earlier run: read by a worker.
    fn recall(&mut self) {
        work::recall(&self.env.workers, &self.home, &self.work);
    }

    fn got_metadata(&mut self, raw: Vec<u8>) {
        match Info::parse(&raw, None) {
            Ok(info) => {
                tracing::info!(torrent = %info.name, "metadata came from peers");
                self.keeping = true;
                work::keep_metadata(&self.env.workers, &self.home, raw, &self.work);
                self.prepare(Arc::new(info));
            }
            Err(error) => self.fail(format!("its metadata can't be used: {error}")),
        }
    }

    /// Opens the storage, once: metadata may be found in the cache and come from peers at the same time.
    fn prepare(&mut self, info: Arc<Info>) {
        if self.closing || std::mem::replace(&mut self.preparing, true) {
            return;
        }
        let env = &self.env;
        let means = Means {
            workers: env.workers.clone(),
            inbox: self.inbox.clone(),
            recent: env.recent.clone(),
            clock: env.clock.clone(),
        };
        if !work::prepare(&self.home, self.opening, info, means, &self.work) {
            self.fail("the storage workers take no more work".into());
        }
    }

    fn fail(&mut self, why: String) {
        tracing::error!(torrent = %self.torrent.name(), "{why}");
        self.failed = Some(why);
        self.published = None;
        self.torrent.settled.send_replace(true);
        self.torrent.changed.notify_one();
    }

    fn work_ended(&mut self, ended: Work) {
        match ended {
            Work::Prepared(Ok(ready)) => self.go_live(ready),
            Work::Prepared(Err(error)) => self.fail(format!("its storage can't be opened: {error}")),
            Work::Recalled(Some(raw)) if self.torrent.live().is_none() => match Info::parse(&raw, None) {
                Ok(info) if self.torrent.info_hash.matches(&raw) => {
                    self.prepare(Arc::new(info));
                }
                _ => {
                    tracing::warn!(torrent = %self.torrent.hint, "the kept metadata isn't that of the torrent");
                    self.torrent.settled.send_replace(true);
                }
            },
            Work::Recalled(_) => {
                self.torrent.settled.send_replace(true);
            }
            Work::Verified { piece, verdict, digests } => self.hashed(piece, verdict, digests),
            Work::Checked { piece, looked } => {
                self.checking = self.checking.saturating_sub(1);
                self.apply(Event::Checked { piece, looked });
            }
            Work::Synced(result) => self.synced(result),
            Work::Recorded(result) => self.recorded(&result),
            Work::Discarded { freed, kept, never } => self.discarded(&freed, kept, never),
            Work::Mended => self.mending = self.mending.saturating_sub(1),
            Work::Kept => self.keeping = false,
            Work::Tallied => self.tallied(),
        }
        self.try_backlog();
        self.close_if_may();
    }

    fn try_backlog(&mut self) {
        let again = std::mem::take(&mut self.undiscarded);
        self.discard(again);
        for _ in 0..self.backlog.len().min(4) {
            if let Some(effect) = self.backlog.pop_front() {
                self.carry_out(effect);
            }
        }
    }

    fn go_live(&mut self, ready: Ready) {
        let shared = ready.shared;
        let piece = ready.dearest;
        if self.env.room.quota().bound().is_some_and(|bound| piece > bound) {
            // Nothing of it could ever be kept, and waiting for that would hold all others up.
            return self.fail(format!(
                "its pieces of {} don't fit into --cache-size; raise it to several of them",
                crate::storage::size::bytes(shared.info.geometry.piece_length().into())
            ));
        }
        if self.torrent.live.set(shared.clone()).is_err() {
            return;
        }
        self.env.room.quota().recount(self.charged, ready.kept);
        shared.charge(ready.kept);
        self.membership = Some(self.env.room.join(self.torrent.slot, shared.clone()));
        self.records = Some(Records::new(shared.store.is_durable(), ready.recorded, ready.clean));
        let geometry = Arc::new(shared.info.geometry.clone());
        let source = Arc::new(Serving(shared.clone()));
        let _ = self.torrent.sessions.known().set(Known { geometry, source });
        if shared.info.private && !self.private {
            // BEP 27: from here on its trackers alone, tier by tier.
            self.following.clear();
            self.torrent.sessions.turned_private();
            self.trackers = None;
            self.discover(true);
        }
        self.apply(Event::Metadata { info: shared.info.clone(), table: shared.table.clone() });
        self.start_seeds();
        // What a clean end left has to be taken back before anything is written.
        self.record();
        let end = shared.info.geometry.end();
        self.totals.left.store(end, Ordering::Relaxed);
        self.publish(Instant::now());
        self.torrent.settled.send_replace(true);
        self.torrent.changed.notify_one();
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Persist { clean, done } => self.persist(clean, done),
            Command::Close { done } => {
                self.closing = true;
                self.closers.push(done);
                self.close_if_may();
            }
            Command::Evict { pieces, younger_than, done } => self.evict(pieces, younger_than, done),
            Command::Extend { trackers, reach, webseeds, peers } => {
                self.extend(trackers, reach, webseeds, peers);
            }
            Command::Watched { webseeds } => self.replant(webseeds),
            Command::Moved { lost } => self.moved(&lost),
            Command::Prefetch { files, on } => self.apply(Event::Prefetch { files, on }),
            Command::Describe { done } => {
                // Whoever asked may have stopped waiting.
                let _ = done.send(Box::new(self.describe(Instant::now())));
            }
            Command::Leave { limit, done } => {
                let trackers = self.trackers.take();
                self.following.clear();
                self.scope.spawn("leave", async move {
                    if let Some(trackers) = trackers {
                        trackers.stop(limit).await;
                    }
                    let _ = done.send(());
                });
            }
            #[cfg(test)]
            Command::Panic => std::panic::panic_any("a planned panic of an owner"),
        }
    }
}

/// Ends every read when the owner does, whatever ended it: nobody would wake them any more. What is complete can
/// still be read.
struct End {
    torrent: Arc<Torrent>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.torrent.turns.end();
        let panicked = std::thread::panicking();
        if let Some(shared) = self.torrent.live() {
            shared.fail_all(&match panicked {
                true => ReadError::Io(PANICKED.into()),
                false => ReadError::Closed,
            });
        }
        if panicked {
            let error = Some(PANICKED.to_owned());
            let last = self.torrent.status();
            self.torrent.publish(Status { state: State::Error, error, ..Status::clone(&last) });
        }
    }
}

/// Gives peers the blocks that are here.
struct Serving(Arc<Shared>);

impl BlockSource for Serving {
    fn fetch(&self, request: BlockRequest, to: mpsc::Sender<(BlockRequest, Option<bytes::Bytes>)>) -> bool {
        work::serve(&self.0, request, to)
    }
}
