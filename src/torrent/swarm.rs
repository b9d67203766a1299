//! The state of one torrent and what every event does to it: `apply(event, now)` and the effects. Pure.
//!
//! The owner's task calls [`Swarm::apply`] and carries the effects out after it has returned; nothing else
//! changes a torrent. Parts: the peers, and the webseeds ([`super::webseeds`]); what readers want ([`super::demands`]); what is fetched beyond that
//! ([`super::background`]); the [`Picker`]; who is to blame for bad pieces; the addresses to connect to; the metadata while it is still being fetched
//! ([`super::resolve`]); and the [`super::relations`] with peers.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::Admission;
use super::background::{Background, Prefetch};
use super::blame::Blame;
use super::choker::{self, Choker};
use super::demands::Demands;
use super::effects::{Blocked, Effect, Event};
use super::goal::Goals;
use super::load::{Has, PeerLoad};
use super::memory::Memory;
use super::peers::{self, PeerBook};
use super::picker::{DemandId, Picker};
use super::punch::Punches;
use super::reads::ReadError;
use super::relations::Peer;
use super::resolve::Resolve;
use super::table::{PieceState, PieceTable};
use super::verdicts::Sweep;
use super::webseeds::Webseed;
use crate::metainfo::geometry::{BlockRef, FileIndex, PieceIndex};
use crate::metainfo::info::Info;
use crate::net::connections::Connections;
use crate::net::filter::Filter;
use crate::net::mapping::port::OurPort;
use crate::net::transport::Kind;
use crate::peer::PeerKey;
use crate::peer::buffer::PieceBuffer;
use crate::peer::event::Item;
use crate::peer::extension::{self, ExtHandshake};
use crate::peer::mse::{Cover, Policy};
use crate::peer::pex::{PexFlags, PexMessage};
use crate::storage::quota::Quota;

/// How often what is late is looked at while anything is being fetched…
const LOOK: Duration = Duration::from_millis(250);
/// …and while a read waits.
const LOOK_CLOSELY: Duration = Duration::from_millis(100);
/// Looks at what is late are at least so far apart, also those that events lead to.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Stands for the whole torrent where a file is named: no torrent has so many.
pub const EVERYTHING: FileIndex = FileIndex(u32::MAX);
/// Pieces a peer may announce one by one before we know how many there are: more than torrents have. They take 128 KiB;
/// without a bound nine bytes that name the last of all would take half a gigabyte.
const EARLY_PIECES: u32 = 1 << 20;

/// Peers that are gone and whose address is remembered, so that what they sent is blamed on them: as many as
/// can have had a part in the pieces being made.
pub(super) const DEPARTED_MAX: usize = 512;
/// What doesn't change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The info-hash as it stands in the handshake.
    pub info_hash: [u8; 20],
    /// Our peer id.
    pub peer_id: [u8; 20],
    /// The port where we take connections, if any.
    pub listen_port: OurPort,
    /// Most connected peers.
    pub max_peers: usize,
    /// Those of all torrents.
    pub connections: Connections,
    /// Since the last block of a piece that a read waits for; `None` waits for ever.
    pub read_timeout: Option<Duration>,
    /// Addresses whose peers are never spoken to.
    pub filter: Arc<Filter>,
    /// Whether peers may have blocks of us.
    pub upload: bool,
    /// When enough was given back.
    pub goals: Goals,
    /// Whether peers may introduce others.
    pub pex: bool,
    /// Whether holes are punched: where there is uTP.
    pub punch: bool,
    /// Whether connections to peers are encrypted.
    pub encryption: Policy,
    /// Whether all data on disk is hashed at the start, in the background. What is recorded as complete is
    /// served meanwhile; whether it is recorded is another question (see [`super::prepare::prepare`]).
    pub check_all: bool,
    /// What is fetched beyond what is read.
    pub prefetch: Prefetch,
    /// What the pieces in the making of all torrents may take.
    pub memory: Memory,
    /// What may be kept of all torrents.
    pub quota: Arc<Quota>,
    /// Whether the invariants are checked after each event, at a cost that grows with what is going on. What is
    /// broken is reported, never a reason to stop.
    pub check_invariants: bool,
}

/// What is there once the metadata is known.
pub(super) struct Live {
    pub(super) info: Arc<Info>,
    pub(super) table: Arc<PieceTable>,
    pub(super) picker: Picker,
    pub(super) demands: Demands,
    pub(super) background: Background,
    pub(super) blame: Blame,
    /// The full check.
    pub(super) sweep: Sweep,
    /// Pieces that were being written or looked at when somebody was found to have been at their file.
    pub(super) tainted: HashSet<PieceIndex>,
    /// When a reader last wanted anything, or the torrent began.
    pub(super) wanted: Instant,
}

/// See the module's text.
pub struct Swarm {
    pub(super) settings: Settings,
    /// Everything is to be fetched when the metadata is here: somebody asked for it, beside the settings.
    pub(super) whole: bool,
    pub(super) live: Option<Live>,
    pub(super) resolve: Resolve,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    pub(super) webseeds: BTreeMap<PeerKey, Webseed>,
    /// There was one, perhaps one that is gone.
    pub(super) had_webseeds: bool,
    pub(super) book: PeerBook,
    /// Peers that are gone, the oldest first.
    pub(super) departed: VecDeque<(PeerKey, SocketAddr)>,
    pub(super) dialing: usize,
    pub(super) admission: Admission,
    pub(super) punching: Punches,
    /// Our own addresses as others see them, as far as known.
    pub(super) ours: Vec<IpAddr>,
    /// The book was changed by what a peer said: look whom to dial.
    look_at_book: bool,
    /// When a pause in the book ends.
    pub(super) next_dial: Option<Instant>,
    pub(super) next_round: Option<Instant>,
    pub(super) last_round: Option<Instant>,
    pub(super) choker: Choker,
    /// When what is late is looked at next, and when it was last.
    next_look: Option<Instant>,
    last_look: Option<Instant>,
    /// When late blocks of what is waited for were last asked of others.
    pub(super) last_hedge: Option<Instant>,
    /// Why the torrent can't go on, for the user.
    pub(super) error: Option<String>,
    /// Why nothing can be kept, while that is so: then nothing is asked for.
    pub(super) blocked: Option<Blocked>,
    /// Pieces in a row that could not be written.
    pub(super) faults: u32,
    /// Syncs that failed one after another.
    pub(super) lost_syncs: u32,
    pub(super) banned: Vec<SocketAddr>,
    pub(super) finished: bool,
    /// Peers may have blocks of us: not when they never may, and not when enough was given back.
    pub(super) serves: bool,
    /// How often it was decided who is asked for what, and how often the invariants were checked: for tests.
    pub(super) scheduled: u64,
    pub(super) invariants_checked: u64,
}

impl Swarm {
    /// No metadata, no peers.
    pub fn new(settings: Settings) -> Self {
        Self {
            resolve: Resolve::new(settings.info_hash),
            live: None,
            peers: BTreeMap::new(),
            webseeds: BTreeMap::new(),
            had_webseeds: false,
            book: PeerBook::new(settings.filter.clone()).with_jitter(seed(&settings.peer_id)),
            departed: VecDeque::new(),
            dialing: 0,
            admission: Admission::default(),
            punching: Punches::default(),
            ours: Vec::new(),
            look_at_book: false,
            next_dial: None,
            next_round: None,
            last_round: None,
            choker: Choker::default(),
            next_look: None,
            last_look: None,
            last_hedge: None,
            error: None,
            blocked: None,
            faults: 0,
            lost_syncs: 0,
            banned: Vec::new(),
            finished: false,
            serves: settings.upload,
            scheduled: 0,
            invariants_checked: 0,
            settings,
            whole: false,
        }
    }

    /// Takes in what happened and returns what is to be done about it.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut fx = Vec::new();
        // Looking through the book costs as much as it is long: not for every block.
        let frequent = matches!(
            event,
            Event::Said { .. }
                | Event::Demands(_)
                | Event::Verified { .. }
                | Event::Checked { .. }
                | Event::Sent(_)
        );
        self.look_at_book |= !frequent;
        match event {
            Event::Metadata { info, table } => self.metadata(info, table, now, &mut fx),
            Event::Connected { key, peer } => self.connected(key, peer, now, &mut fx),
            Event::Said { key, items } => self.said(key, items, now, &mut fx),
            Event::Gone { key, reason } => self.gone(key, &reason, now, &mut fx),
            Event::Webseed { key, url } => self.webseed(key, url, now),
            Event::Refuses { key, files } => self.refuses(key, &files, &mut fx),
            Event::Sent(sums) => {
                for (key, sum) in sums {
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.sent = sum;
                    }
                }
            }
            Event::Unreachable { addr } => {
                self.dialing = self.dialing.saturating_sub(1);
                self.punching.ended(addr);
                self.book.failed(addr, now);
                self.ask_for_introduction(addr, now, &mut fx);
            }
            Event::Found(found) => {
                if peers::named(found.source) {
                    self.book.add_host(&found.addrs, found.source, now);
                } else {
                    found.addrs.iter().for_each(|addr| _ = self.book.add(*addr, found.source, now));
                }
            }
            Event::Ours(ours) => self.know_ours(ours),
            Event::Moved { lost } => self.moved(lost, now, &mut fx),
            Event::Demands(demands) => self.demanded(demands, now, &mut fx),
            Event::Prefetch { files, on } => self.prefetch(&files, on, now, &mut fx),
            Event::Verified { piece, verdict, digests } => {
                self.verified(piece, verdict, &digests, now, &mut fx)
            }
            Event::Checked { piece, looked } => self.checked(piece, looked, now, &mut fx),
            Event::Evict { pieces, younger_than } => self.evict(&pieces, younger_than, &mut fx),
            Event::Lost(pieces) => self.lost(&pieces, now, &mut fx),
            Event::Synced => self.kept(),
            Event::Blocked(blocked) => self.blocked = blocked,
            Event::Serve(on) => self.serve(on, now, &mut fx),
            Event::Tick => self.tick(now, &mut fx),
        }
        if std::mem::take(&mut self.look_at_book) {
            self.dial(now, &mut fx);
        }
        self.schedule(now, &mut fx);
        // What was to be looked at then still is, however much happens meanwhile.
        let look = now + self.pace();
        self.next_look = Some(self.next_look.map_or(look, |at| at.min(look)));
        if self.settings.check_invariants {
            self.check_invariants();
        }
        fx
    }

    /// Whether peers may introduce others: never those of a private torrent (BEP 27).
    pub(super) fn pex(&self) -> bool {
        self.settings.pex && self.live.as_ref().is_none_or(|l| !l.info.private)
    }

    fn metadata(&mut self, info: Arc<Info>, table: Arc<PieceTable>, now: Instant, fx: &mut Vec<Effect>) {
        let pieces = table.len();
        let geometry = Arc::new(info.geometry.clone());
        let piece_length = geometry.piece_length();
        let mut picker = Picker::new(geometry, self.settings.memory.clone());
        self.finished = table.complete_count() == pieces;
        self.resolve.finish();
        for (key, peer) in &mut self.peers {
            let mut load = PeerLoad::new(now);
            if let Some(reqq) = peer.extension.as_ref().and_then(|e| e.reqq) {
                load.set_limit(reqq);
            }
            load.set_choked(self.resolve.is_choked(*key));
            *load.has_mut() = match std::mem::replace(&mut peer.early, Has::None) {
                _ if peer.early_seed => Has::All,
                Has::Bits(mut bits) => {
                    bits.truncate((pieces as usize).div_ceil(8));
                    Has::Bits(bits)
                }
                has => has,
            };
            peer.useful = useful(load.has(), &table);
            picker.add_peer(*key, load);
        }
        // What we have, piece by piece: a bitfield may only come first.
        let ours: Vec<PieceIndex> = (0..pieces).map(PieceIndex).filter(|p| table.is_complete(*p)).collect();
        if !ours.is_empty() && !self.peers.is_empty() {
            fx.push(Effect::Have(self.peers.keys().copied().collect(), ours));
        }
        self.live = Some(Live {
            demands: Demands::new(self.settings.read_timeout, piece_length, self.settings.quota.bound()),
            background: Background::new(pieces, seed(&self.settings.peer_id)),
            blame: Blame::default(),
            info,
            table,
            picker,
            wanted: now,
            sweep: Sweep::new(self.settings.check_all),
            tainted: HashSet::new(),
        });
        if let Some(live) = &mut self.live {
            self.webseeds.keys().for_each(|key| live.webseed(*key, now));
        }
        self.sweep(now, fx);
        for (key, peer) in self.peers.iter().filter(|(_, p)| p.who.extensions) {
            // Now we have the metadata too, for who lacks it (BEP 10 allows a further handshake).
            fx.push(Effect::Extended(*key, extension::HANDSHAKE_ID, self.hello(peer)));
        }
        if self.live.as_ref().is_some_and(|l| l.info.private) {
            self.leave_strangers(fx);
        }
        if self.whole || self.settings.prefetch == Prefetch::All {
            self.prefetch(&[EVERYTHING], true, now, fx);
        }
        self.all_interests(now, fx);
    }

    fn said(&mut self, key: PeerKey, items: Vec<Item>, now: Instant, fx: &mut Vec<Effect>) {
        if self.webseeds.contains_key(&key) {
            return self.webseed_said(key, items, now, fx);
        }
        let mut interests = false;
        let mut came = false;
        for item in items {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match item {
                Item::Block { block, buffer } => self.block_came(key, block, &buffer, now, fx),
                Item::Have(piece) => {
                    let Some(live) = &mut self.live else {
                        peer.early.add(piece, EARLY_PIECES);
                        continue;
                    };
                    if live.picker.have(key, piece) {
                        live.background.have(piece);
                        peer.useful |= !live.table.is_complete(piece);
                        live.demands.peer_has(|p| p == piece);
                        interests = true;
                    }
                }
                Item::Bitfield(bits) => {
                    let Some(live) = &mut self.live else {
                        peer.early = Has::Bits(bits.to_vec());
                        continue;
                    };
                    if let Some(load) = live.picker.peer(key) {
                        // It may have been said before the number of pieces was known, and so be of any length.
                        let mut bits = bits.to_vec();
                        bits.resize((live.table.len() as usize).div_ceil(8), 0);
                        live.background.count(load.has(), false);
                        *load.has_mut() = Has::Bits(bits);
                        live.background.count(load.has(), true);
                        peer.useful = useful(load.has(), &live.table);
                        live.demands.peer_has(|p| load.has().has(p));
                    }
                    self.allow_fast(key, fx);
                    interests = true;
                }
                Item::HaveAll | Item::HaveNone => {
                    let has = if matches!(item, Item::HaveAll) { Has::All } else { Has::None };
                    let Some(live) = &mut self.live else {
                        peer.early_seed = matches!(has, Has::All);
                        continue;
                    };
                    if let Some(load) = live.picker.peer(key) {
                        peer.useful = useful(&has, &live.table);
                        live.demands.peer_has(|p| has.has(p));
                        live.background.count(load.has(), false);
                        *load.has_mut() = has;
                    }
                    self.allow_fast(key, fx);
                    interests = true;
                }
                Item::Choked(choked) => match &mut self.live {
                    None => self.resolve.set_choked(key, choked),
                    Some(live) => {
                        live.choked(key, choked);
                        // With the fast extension each request is rejected by name (BEP 6).
                        if choked && !peer.who.fast {
                            live.release(key, fx);
                        }
                    }
                },
                Item::Interested(interested) => {
                    peer.interested_in_us = interested;
                    came |= interested;
                }
                Item::Rejected(block) => self.rejected(key, block, now),
                Item::Recalled(block) => self.recalled(key, block),
                Item::AllowedFast(piece) => {
                    if let Some(load) = self.live.as_mut().and_then(|l| l.picker.peer(key)) {
                        load.allow_fast(piece);
                    }
                }
                Item::Extended(id, payload) => self.extended(key, id, &payload, now, fx),
            }
        }
        if interests {
            self.interest(key, now, fx);
        }
        if came {
            self.let_in(key, now, fx);
        }
    }

    /// A block came from a peer or a webseed.
    pub(super) fn block_came(
        &mut self,
        key: PeerKey,
        block: BlockRef,
        buffer: &Arc<PieceBuffer>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let Some(live) = &mut self.live else { return };
        let arrival = live.picker.received(key, block, buffer, now);
        fx.extend(arrival.losers.into_iter().map(|p| Effect::Cancel(p, block)));
        if let Some(buffer) = arrival.whole {
            live.table.set(block.piece, PieceState::Verifying);
            fx.push(Effect::Verify { digests: live.blame.wants_digests(block.piece), buffer });
        }
        live.demands.block_came(block.piece, now);
    }

    /// A block that was asked for won't come.
    pub(super) fn rejected(&mut self, key: PeerKey, block: BlockRef, now: Instant) {
        if let Some(live) = &mut self.live {
            live.picker.rejected(key, block, now);
        }
    }

    /// A block that was taken back won't come.
    pub(super) fn recalled(&mut self, key: PeerKey, block: BlockRef) {
        if let Some(live) = &mut self.live {
            live.picker.settled(key, block);
        }
    }

    fn extended(&mut self, key: PeerKey, id: u8, payload: &Bytes, now: Instant, fx: &mut Vec<Effect>) {
        let pex = self.pex();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match id {
            0 => {
                let theirs = match ExtHandshake::decode(payload) {
                    Ok(theirs) => theirs,
                    Err(error) => return fx.push(Effect::Disconnect(key, error.to_string())),
                };
                if let (Some(port), None) = (theirs.port, peer.listens) {
                    let listens = SocketAddr::new(peer.who.addr.ip(), port);
                    peer.listens = Some(listens);
                    // It is here already: it needn't be dialled.
                    self.book.connected(listens);
                }
                if let Some(reqq) = theirs.reqq
                    && let Some(load) = self.live.as_mut().and_then(|l| l.picker.peer(key))
                {
                    load.set_limit(reqq);
                }
                if let (Some(id), Some(size)) = (theirs.ut_metadata, theirs.metadata_size) {
                    self.resolve.add_peer(key, size, id);
                }
                if let Some(ip) = theirs.your_ip {
                    fx.push(Effect::Seen { ip, by: peer.who.addr.ip() });
                }
                peer.extension = Some(theirs);
                self.resolve.ask(now, fx);
            }
            extension::OUR_UT_METADATA => {
                let raw = self.live.as_ref().map(|l| &l.info.raw);
                let their_id = peer.extension.as_ref().and_then(|e| e.ut_metadata);
                self.resolve.said(key, payload, raw, their_id, now, fx);
            }
            extension::OUR_LT_DONTHAVE => {
                // Of the wrong length: as if it hadn't been said.
                let Some(piece) = extension::parse_dont_have(payload) else { return };
                let Some(live) = &mut self.live else { return };
                if let Some(load) = live.picker.peer(key).filter(|load| load.has().has(piece)) {
                    let seeder = matches!(load.has(), Has::All);
                    load.has_mut().remove(piece, live.table.len());
                    match seeder {
                        true => live.background.count(load.has(), true),
                        false => live.background.have_not(piece),
                    }
                    self.interest(key, now, fx);
                }
            }
            extension::OUR_UT_HOLEPUNCH => self.punch(key, payload, now, fx),
            extension::OUR_UT_PEX if pex && peer.pex.admit(now) => match PexMessage::decode(payload) {
                Ok(message) => {
                    for added in message.added {
                        if added.flags.has(PexFlags::HOLEPUNCH) {
                            self.punching.told(added.addr, key);
                        }
                        self.book.add_told(added, now);
                    }
                    self.look_at_book = true;
                }
                Err(error) => fx.push(Effect::Disconnect(key, error.to_string())),
            },
            _ => {}
        }
    }

    fn tick(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.next_look = None;
        self.last_look = Some(now);
        if let Some(live) = &mut self.live {
            for (key, blocks) in live.picker.snub(now) {
                tracing::debug!(
                    peer = key.0,
                    blocks = blocks.len(),
                    "silent for too long: its requests go to others"
                );
                fx.extend(blocks.into_iter().map(|b| Effect::Cancel(key, b)));
            }
            live.picker.settle_old(now);
            if !live.demands.is_waiting() {
                let hedged = live.picker.hedge(now);
                if !hedged.is_empty() {
                    fx.push(Effect::Request(hedged));
                }
            }
            live.recall_background(fx);
            live.picker.drop_orphans();
            live.demands.idle(&live.table, &mut live.picker, now, fx);
            let why = || match (&self.blocked, self.peers.len(), self.webseeds.len()) {
                (Some(Blocked { disk: true, .. }), ..) => ReadError::Full,
                (Some(blocked), ..) => timed_out(&blocked.reason),
                (None, 0, 0) if self.had_webseeds => {
                    timed_out("none of its webseeds is left, and no peer is connected to send the data")
                }
                (None, 0, 0) => timed_out("no peer is connected to send the data"),
                (None, 1, 0) => timed_out("the peer that is connected sent nothing of the data"),
                (None, peers, 0) => timed_out(&format!("none of the {peers} connected peers sent the data")),
                (None, 0, _) => timed_out("no webseed sent the data, and no peer is connected"),
                (None, ..) => timed_out("no webseed and none of the connected peers sent the data"),
            };
            live.demands.time_out(why, &live.table, &mut live.picker, now, fx);
        }
        self.sweep(now, fx);
        if self.resolve.is_wanted() {
            self.resolve.ask(now, fx);
        }
        if self.next_round.is_some_and(|at| at <= now) {
            self.look_who_is_useful();
            self.choke_round(now, fx);
            self.exchange(now, fx);
            self.make_way(now, fx);
        }
        self.all_interests(now, fx);
    }

    /// How often what is late is looked at.
    fn pace(&self) -> Duration {
        let live = self.live.as_ref();
        if live.is_some_and(|l| l.demands.is_waiting()) {
            LOOK_CLOSELY
        } else if self.resolve.is_waiting() || live.is_some_and(|l| l.picker.is_busy()) {
            LOOK
        } else {
            choker::ROUND
        }
    }

    /// In how long [`Event::Tick`] should come next, from `now` on.
    pub fn next_tick(&self, now: Instant) -> Duration {
        let sweep = self.live.as_ref().and_then(|live| live.sweep.resumes());
        let next = [self.next_look, self.next_dial, self.next_round, sweep].into_iter().flatten().min();
        let next = next.unwrap_or(now + choker::ROUND);
        // Never a spin, whatever the parts say.
        let soonest = self.last_look.map_or(now, |last| last + LOOK_PAUSE);
        next.max(soonest).saturating_duration_since(now)
    }

    /// Peers that are connected with encryption, of the handshake at least.
    pub fn encrypted_count(&self) -> usize {
        self.peers.values().filter(|peer| peer.who.cover != Cover::Plain).count()
    }

    /// Peers that are connected over uTP.
    pub fn utp_count(&self) -> usize {
        self.peers.values().filter(|peer| peer.who.kind == Kind::Utp).count()
    }

    /// The peers that are connected.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Their numbers, in order.
    pub fn keys(&self) -> impl Iterator<Item = PeerKey> + '_ {
        self.peers.keys().copied()
    }

    /// The webseeds, in the same way.
    pub fn webseed_keys(&self) -> impl Iterator<Item = PeerKey> + '_ {
        self.webseeds.keys().copied()
    }

    /// Connections being made.
    pub fn dialing(&self) -> usize {
        self.dialing
    }

    /// Why the torrent can't go on, if it can't.
    pub fn error(&self) -> Option<&str> {
        let blocked = self.blocked.as_ref().map(|b| b.reason.as_str());
        self.error.as_deref().or(blocked)
    }

    /// Why nothing can be kept, while that is so.
    pub fn blocked(&self) -> Option<&Blocked> {
        self.blocked.as_ref()
    }

    /// The reads that wait, and since when the oldest has waited in vain; `None` without metadata.
    pub fn demands(&self) -> Option<&Demands> {
        self.live.as_ref().map(|l| &l.demands)
    }

    /// Bytes of the metadata that are here, and in all, while it is being fetched.
    pub fn metadata_progress(&self) -> Option<(u32, u32)> {
        self.resolve.progress()
    }

    /// Peers that sent bad data.
    pub fn banned(&self) -> &[SocketAddr] {
        &self.banned
    }

    /// Whether anything is being fetched.
    pub fn is_fetching(&self) -> bool {
        self.live.as_ref().is_some_and(|l| l.picker.is_busy())
    }
}

/// A number of our own out of our peer id, which is random at its end.
fn seed(peer_id: &[u8; 20]) -> u64 {
    peer_id.iter().fold(0, |seed: u64, byte| seed.rotate_left(7) ^ u64::from(*byte))
}

/// Whether a peer has anything that we lack.
fn useful(has: &Has, table: &PieceTable) -> bool {
    match has {
        Has::None => false,
        Has::All => table.complete_count() < table.len(),
        Has::Bits(_) => (0..table.len()).map(PieceIndex).any(|p| has.has(p) && !table.is_complete(p)),
    }
}

/// The demand of a waiting read.
pub(super) fn waiter(id: u64) -> DemandId {
    DemandId::Waiter(id)
}

/// The reason given to reads that waited too long.
pub(super) fn timed_out(peers: &str) -> ReadError {
    ReadError::TimedOut(peers.to_owned())
}

#[cfg(test)]
#[path = "swarm_tests.rs"]
mod tests;
