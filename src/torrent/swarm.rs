//! The state of one torrent and what every event does to it: `apply(event, now)` and the effects. Pure.
//!
//! The owner's task calls [`Swarm::apply`] and carries the effects out after it has returned; nothing else
//! changes a torrent. Parts: the peers; what readers want ([`super::demands`]); the [`Picker`]; who is to
//! blame for bad pieces; the addresses to connect to; the metadata while it is still being fetched
//! ([`super::resolve`]); and the [`super::relations`] with peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::background::Prefetch;
use super::blame::{Blame, Digest};
use super::choker;
use super::demands::Demands;
use super::effects::{Effect, Event, Verdict};
use super::inbox::Demand;
use super::load::{Has, PeerLoad};
use super::peers::{DialLimits, PeerBook};
use super::picker::{DemandId, Picker};
use super::reads::ReadError;
use super::resolve::Resolve;
use super::table::{PieceState, PieceTable};
use crate::discovery::PeerSource;
use crate::metainfo::geometry::PieceIndex;
use crate::metainfo::info::Info;
use crate::peer::PeerKey;
use crate::peer::event::{Connected, Item};
use crate::peer::extension::{self, ExtHandshake};
use crate::peer::pex::{PexMessage, PexState};
use crate::peer::wire::Message;

/// Bytes of pieces being fetched, hashed and written. Twice the window of one reader, so that two can run
/// ahead at full rate.
const MAKING_MAX: u64 = 64 << 20;
/// How often late blocks and waiting reads are looked at while there are any.
const LOOK: Duration = Duration::from_millis(250);
/// Pieces of a full check hashed at a time: one keeps the disk busy while the other is hashed.
const SWEEPING: usize = 2;
/// Pieces a peer may announce before we know how many there are; it would take metadata of over 20 MB to
/// describe more.
const EARLY_PIECES: u32 = 1 << 24;

/// Peers that are gone and whose address is remembered, so that what they sent is blamed on them: as many as
/// can have had a part in the pieces being made.
const DEPARTED_MAX: usize = 512;
/// Banned addresses shown. Each took a bad piece, so it isn't reached unless somebody works at it.
const BANNED_MAX: usize = 1024;

/// What doesn't change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The info-hash as it stands in the handshake.
    pub info_hash: [u8; 20],
    /// Our peer id.
    pub peer_id: [u8; 20],
    /// The port where we take connections, if any.
    pub listen_port: Option<u16>,
    /// Most connected peers.
    pub max_peers: usize,
    /// Since the last block of a piece that a read waits for; `None` waits for ever.
    pub read_timeout: Option<Duration>,
    /// Whether peers may have blocks of us.
    pub upload: bool,
    /// Whether peers may introduce others.
    pub pex: bool,
    /// Whether all data on disk is hashed at the start, in the background. What is recorded as complete is
    /// served meanwhile; whether it is recorded is another question (see [`super::prepare::prepare`]).
    pub check_all: bool,
    /// What is fetched beyond what readers want.
    pub prefetch: Prefetch,
}

/// One connected peer.
pub(super) struct Peer {
    pub(super) who: Connected,
    /// Where it can be connected to, if that is known: for an incoming one only its own word.
    pub(super) listens: Option<SocketAddr>,
    /// Before the metadata is known: what it said that it has.
    early: Has,
    early_seed: bool,
    pub(super) extension: Option<ExtHandshake>,
    pub(super) pex: PexState,
    pub(super) interested_in_us: bool,
    /// We told it that we are interested.
    pub(super) interested: bool,
    pub(super) choking: bool,
    pub(super) let_in: Option<Instant>,
    /// It has, as far as we know, something that we lack.
    pub(super) useful: bool,
}

/// What is there once the metadata is known.
pub(super) struct Live {
    pub(super) info: Arc<Info>,
    pub(super) table: Arc<PieceTable>,
    pub(super) picker: Picker,
    pub(super) demands: Demands,
    blame: Blame,
    /// The next piece that the full check looks at, while there is one going on.
    sweep: Option<u32>,
    /// When a reader last wanted anything, or the torrent began.
    pub(super) wanted: Instant,
    /// Pieces of the full check that are being hashed.
    sweeping: BTreeSet<PieceIndex>,
}

/// See the module's text.
pub struct Swarm {
    pub(super) settings: Settings,
    pub(super) live: Option<Live>,
    pub(super) resolve: Resolve,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    book: PeerBook,
    /// Peers that are gone, the oldest first.
    departed: VecDeque<(PeerKey, SocketAddr)>,
    dialing: usize,
    /// The book was changed by what a peer said: look whom to dial.
    look_at_book: bool,
    /// When a pause in the book ends.
    next_dial: Option<Instant>,
    pub(super) next_round: Option<Instant>,
    /// Why the torrent can't go on, for the user.
    error: Option<String>,
    banned: Vec<SocketAddr>,
    finished: bool,
}

impl Swarm {
    /// No metadata, no peers.
    pub fn new(settings: Settings) -> Self {
        Self {
            resolve: Resolve::new(settings.info_hash),
            live: None,
            peers: BTreeMap::new(),
            book: PeerBook::default(),
            departed: VecDeque::new(),
            dialing: 0,
            look_at_book: false,
            next_dial: None,
            next_round: None,
            error: None,
            banned: Vec::new(),
            finished: false,
            settings,
        }
    }

    /// Takes in what happened and returns what is to be done about it.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut fx = Vec::new();
        // Looking through the book costs as much as it is long: not for every block.
        let frequent = matches!(
            event,
            Event::Said { .. } | Event::Demand(_) | Event::Verified { .. } | Event::Checked { .. }
        );
        self.look_at_book |= !frequent;
        match event {
            Event::Metadata { info, table } => self.metadata(info, table, now, &mut fx),
            Event::Connected { key, peer } => self.connected(key, peer, now, &mut fx),
            Event::Said { key, items } => self.said(key, items, now, &mut fx),
            Event::Gone { key, reason } => self.gone(key, &reason, now, &mut fx),
            Event::Unreachable { addr } => {
                self.dialing = self.dialing.saturating_sub(1);
                self.book.failed(addr, now);
            }
            Event::Found(found) => {
                for addr in found.addrs {
                    self.book.add(addr, found.source, now);
                }
            }
            Event::Demand(Demand::Unreadable { reason }) => self.error = Some(reason),
            Event::Demand(demand) => {
                if let Some(live) = &mut self.live {
                    live.demands.apply(demand, &live.table, &mut live.picker, now, &mut fx);
                    live.wanted = now;
                    self.all_interests(now, &mut fx);
                }
            }
            Event::Verified { piece, verdict, digests } => {
                self.verified(piece, verdict, &digests, now, &mut fx)
            }
            Event::Checked { piece, good } => self.checked(piece, good, now, &mut fx),
            Event::Tick => self.tick(now, &mut fx),
        }
        if std::mem::take(&mut self.look_at_book) {
            self.dial(now, &mut fx);
        }
        if let Some(live) = &mut self.live {
            fx.extend(live.picker.take_void().into_iter().map(|(peer, block)| Effect::Cancel(peer, block)));
            let requests = live.picker.schedule(now);
            for request in &requests {
                live.table.set(request.block.piece, PieceState::Requested);
            }
            if !requests.is_empty() {
                fx.push(Effect::Request(requests));
            }
            #[cfg(debug_assertions)]
            if live.table.len() < 4096
                && let Err(broken) = live.picker.check()
            {
                tracing::error!(
                    "the picker's invariant is broken: {broken}; this is a bug, please report it"
                );
            }
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
        let mut picker = Picker::new(geometry, MAKING_MAX);
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
            // What we have, piece by piece: a bitfield may only come first.
            for piece in (0..pieces).map(PieceIndex).filter(|p| table.is_complete(*p)) {
                fx.push(Effect::Have(vec![*key], piece));
            }
        }
        self.live = Some(Live {
            demands: Demands::new(self.settings.read_timeout),
            blame: Blame::default(),
            info,
            table,
            picker,
            wanted: now,
            sweep: self.settings.check_all.then_some(0),
            sweeping: BTreeSet::new(),
        });
        self.sweep(fx);
        for (key, peer) in self.peers.iter().filter(|(_, p)| p.who.extensions) {
            // Now we have the metadata too, for who lacks it (BEP 10 allows a further handshake).
            fx.push(Effect::Extended(*key, extension::HANDSHAKE_ID, self.hello(peer)));
        }
        if self.live.as_ref().is_some_and(|l| l.info.private) {
            self.leave_strangers(fx);
        }
        self.all_interests(now, fx);
    }

    /// The torrent turned out to be private: its peers come from its trackers and the user alone (BEP 27).
    fn leave_strangers(&mut self, fx: &mut Vec<Effect>) {
        let stranger = |source| matches!(source, PeerSource::Dht | PeerSource::Pex | PeerSource::Lsd);
        for (key, peer) in &self.peers {
            if peer.listens.and_then(|addr| self.book.source(addr)).is_some_and(stranger) {
                fx.push(Effect::Disconnect(*key, "the torrent is private, and no tracker named it".into()));
            }
        }
        self.book.retain(|source| !stranger(source));
    }

    fn connected(&mut self, key: PeerKey, who: Connected, now: Instant, fx: &mut Vec<Effect>) {
        if !who.incoming {
            self.dialing = self.dialing.saturating_sub(1);
        }
        let known = self.peers.values().any(|p| p.who.addr == who.addr || p.who.peer_id == who.peer_id);
        let refuse = if who.peer_id == self.settings.peer_id {
            self.book.add_self(who.addr);
            Some("it is ourselves")
        } else if self.book.is_banned(who.addr) {
            Some("it is banned")
        } else if known {
            Some("it is connected already")
        } else if self.peers.len() >= self.settings.max_peers {
            Some("there are enough peers")
        } else {
            None
        };
        if !who.incoming {
            self.book.connected(who.addr);
        }
        let peer = Peer {
            listens: (!who.incoming).then_some(who.addr),
            early: Has::None,
            early_seed: false,
            extension: None,
            pex: PexState::new(who.addr),
            interested_in_us: false,
            interested: false,
            choking: true,
            let_in: None,
            useful: false,
            who,
        };
        if let Some(why) = refuse {
            // It stays in the table until its session says that it is gone.
            fx.push(Effect::Disconnect(key, why.into()));
            self.peers.insert(key, peer);
            return;
        }
        let have = self.live.as_ref().map_or(0, |l| l.table.complete_count());
        let all = self.live.as_ref().is_some_and(|l| have == l.table.len());
        if peer.who.fast && have == 0 {
            fx.push(Effect::First(key, Message::HaveNone));
        } else if peer.who.fast && all {
            fx.push(Effect::First(key, Message::HaveAll));
        } else if let Some(live) = self.live.as_ref().filter(|_| have > 0) {
            fx.push(Effect::First(key, Message::Bitfield(live.table.bitfield().into())));
        }
        if peer.who.extensions {
            fx.push(Effect::Extended(key, extension::HANDSHAKE_ID, self.hello(&peer)));
        }
        if let Some(live) = &mut self.live {
            live.picker.add_peer(key, PeerLoad::new(now));
        }
        self.next_round.get_or_insert(now + choker::ROUND);
        self.peers.insert(key, peer);
    }

    fn gone(&mut self, key: PeerKey, reason: &str, now: Instant, fx: &mut Vec<Effect>) {
        let Some(peer) = self.peers.remove(&key) else { return };
        if self.departed.len() >= DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back((key, peer.who.addr));
        let mut useful = peer.extension.is_some();
        if let Some(live) = &mut self.live {
            useful = live.picker.peer(key).is_some_and(|p| p.delivered_total() > 0);
            live.picker.remove_peer(key);
        }
        self.resolve.remove_peer(key);
        tracing::debug!(peer = %peer.who.addr, "gone: {reason}");
        if let Some(addr) = peer.listens {
            self.book.disconnected(addr, now, useful);
        }
        if self.resolve.is_wanted() {
            self.resolve.ask(now, fx);
        }
    }

    fn said(&mut self, key: PeerKey, items: Vec<Item>, now: Instant, fx: &mut Vec<Effect>) {
        let mut interests = false;
        let mut came = false;
        for item in items {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match item {
                Item::Block { block, buffer } => {
                    let Some(live) = &mut self.live else { continue };
                    let arrival = live.picker.received(key, block, &buffer, now);
                    fx.extend(arrival.losers.into_iter().map(|p| Effect::Cancel(p, block)));
                    if let Some(buffer) = arrival.whole {
                        live.table.set(block.piece, PieceState::Verifying);
                        fx.push(Effect::Verify { digests: live.blame.wants_digests(block.piece), buffer });
                    }
                    live.demands.block_came(block.piece, now);
                }
                Item::Have(piece) => {
                    let Some(live) = &mut self.live else {
                        peer.early.add(piece, EARLY_PIECES);
                        continue;
                    };
                    if let Some(load) = live.picker.peer(key) {
                        load.has_mut().add(piece, live.table.len());
                    }
                    peer.useful |= piece.0 < live.table.len() && !live.table.is_complete(piece);
                    live.demands.peer_has(|p| p == piece);
                    interests = true;
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
                        *load.has_mut() = Has::Bits(bits);
                        peer.useful = useful(load.has(), &live.table);
                        live.demands.peer_has(|p| load.has().has(p));
                    }
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
                        *load.has_mut() = has;
                    }
                    interests = true;
                }
                Item::Choked(choked) => match &mut self.live {
                    None => self.resolve.set_choked(key, choked),
                    Some(live) => {
                        if let Some(load) = live.picker.peer(key) {
                            load.set_choked(choked);
                        }
                        // With the fast extension each request is rejected by name (BEP 6).
                        if choked && !peer.who.fast {
                            // Those that were not sent yet mustn't be sent any more.
                            let released = live.picker.release_all(key);
                            fx.extend(released.into_iter().map(|b| Effect::Cancel(key, b)));
                        }
                    }
                },
                Item::Interested(interested) => {
                    peer.interested_in_us = interested;
                    came |= interested;
                }
                Item::Rejected(block) => {
                    if let Some(live) = &mut self.live {
                        live.picker.rejected(key, block, now);
                    }
                }
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

    /// A peer became interested: it is let in at once when there is a slot, else the next round decides. A round
    /// for each who asks would let one peer turn all the others out as often as it likes.
    fn let_in(&mut self, key: PeerKey, now: Instant, fx: &mut Vec<Effect>) {
        let served = self.peers.values().filter(|p| !p.choking).count();
        if self.live.is_none() || !self.settings.upload || served >= choker::SLOTS {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.interested_in_us
            && peer.choking
        {
            peer.choking = false;
            peer.let_in = Some(now);
            fx.push(Effect::Choke(key, false));
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
                    peer.listens = Some(SocketAddr::new(peer.who.addr.ip(), port));
                }
                if let Some(reqq) = theirs.reqq
                    && let Some(load) = self.live.as_mut().and_then(|l| l.picker.peer(key))
                {
                    load.set_limit(reqq);
                }
                if let (Some(id), Some(size)) = (theirs.ut_metadata, theirs.metadata_size) {
                    self.resolve.add_peer(key, size, id);
                }
                peer.extension = Some(theirs);
                self.resolve.ask(now, fx);
            }
            extension::OUR_UT_METADATA => {
                let raw = self.live.as_ref().map(|l| &l.info.raw);
                let their_id = peer.extension.as_ref().and_then(|e| e.ut_metadata);
                self.resolve.said(key, payload, raw, their_id, now, fx);
            }
            extension::OUR_UT_PEX if pex => match PexMessage::decode(payload) {
                Ok(message) => {
                    if peer.pex.admit(now) {
                        for added in message.added {
                            self.book.add(added.addr, PeerSource::Pex, now);
                        }
                        self.look_at_book = true;
                    }
                }
                Err(error) => fx.push(Effect::Disconnect(key, error.to_string())),
            },
            _ => {}
        }
    }

    fn verified(
        &mut self,
        piece: PieceIndex,
        verdict: Verdict,
        digests: &[Digest],
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let Some(live) = &mut self.live else { return };
        match verdict {
            Verdict::Good => {
                self.error = None;
                for addr in live.blame.passed(piece, digests) {
                    self.ban(addr, fx);
                }
                self.complete(piece, now, fx);
            }
            Verdict::Bad => {
                let from = live.picker.failed(piece, true);
                live.table.set(piece, PieceState::Missing);
                let address = |key: PeerKey| {
                    let here = self.peers.get(&key).map(|p| p.who.addr);
                    here.or_else(|| self.departed.iter().find(|(k, _)| *k == key).map(|(_, addr)| *addr))
                };
                let from: Vec<Option<SocketAddr>> = from.iter().map(|k| k.and_then(address)).collect();
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "a piece failed its hash; fetching it again");
                if let Some(addr) = live.blame.failed(piece, &from, digests) {
                    self.ban(addr, fx);
                }
            }
            Verdict::Unwritten(error) => {
                live.picker.failed(piece, false);
                live.table.set(piece, PieceState::Missing);
                self.error = Some(error.to_string());
                live.demands.give_up(piece, &error, &live.table, &mut live.picker, now, fx);
            }
        }
    }

    fn checked(&mut self, piece: PieceIndex, good: bool, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        live.sweeping.remove(&piece);
        if good && live.table.is_complete(piece) {
            // As recorded.
        } else if good {
            live.demands.check_ended(piece);
            self.complete(piece, now, fx);
        } else {
            if live.table.is_complete(piece) {
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "recorded as complete, and its data is wrong: it is fetched again when wanted");
                self.finished = false;
                // Who was of no use any more, or never, may be now.
                for (key, peer) in &mut self.peers {
                    peer.useful |= live.picker.peer(*key).is_some_and(|p| p.has().has(piece));
                }
            }
            live.table.set(piece, PieceState::Missing);
            for (id, due) in live.demands.check_ended(piece) {
                live.picker.want(piece, id, due.min(now));
            }
        }
        self.sweep(fx);
    }

    /// Has the next pieces of the full check hashed, a few at a time, so that readers come first.
    fn sweep(&mut self, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        while live.sweeping.len() < SWEEPING
            && let Some(next) = live.sweep
        {
            live.sweep = (next + 1 < live.table.len()).then_some(next + 1);
            let piece = PieceIndex(next);
            match live.table.state(piece) {
                PieceState::Unknown => {
                    live.demands.check_begins(piece);
                    live.table.set(piece, PieceState::Verifying);
                }
                PieceState::Complete => {}
                PieceState::Missing | PieceState::Requested | PieceState::Verifying => continue,
            }
            live.sweeping.insert(piece);
            fx.push(Effect::Check(piece));
        }
    }

    /// A piece is here, verified and written.
    fn complete(&mut self, piece: PieceIndex, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        live.table.set(piece, PieceState::Complete);
        live.picker.completed(piece);
        live.demands.completed(piece, now);
        fx.push(Effect::Wake(piece));
        let lacking: Vec<PeerKey> = self
            .peers
            .keys()
            .filter(|k| live.picker.peer(**k).is_some_and(|p| !p.has().has(piece)))
            .copied()
            .collect();
        if !lacking.is_empty() {
            fx.push(Effect::Have(lacking, piece));
        }
        if live.table.complete_count() == live.table.len() && !self.finished {
            self.finished = true;
            fx.push(Effect::Finished);
            for peer in self.peers.values_mut() {
                peer.useful = false;
            }
            self.all_interests(now, fx);
        }
    }

    fn ban(&mut self, addr: SocketAddr, fx: &mut Vec<Effect>) {
        tracing::warn!(peer = %addr, "banned: it sent bad data");
        if !self.banned.contains(&addr) && self.banned.len() < BANNED_MAX {
            self.banned.push(addr);
        }
        self.book.ban(addr);
        for (key, peer) in &self.peers {
            if self.book.is_banned(peer.who.addr) {
                // Nothing more is asked of it, and nothing more of it counts, while it is being disconnected.
                if let Some(live) = &mut self.live {
                    live.picker.remove_peer(*key);
                }
                fx.push(Effect::Disconnect(*key, "banned: it sent bad data".into()));
            }
        }
    }

    fn tick(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if let Some(live) = &mut self.live {
            for (key, blocks) in live.picker.snub(now) {
                tracing::debug!(
                    peer = key.0,
                    blocks = blocks.len(),
                    "silent for too long: its requests go to others"
                );
                fx.extend(blocks.into_iter().map(|b| Effect::Cancel(key, b)));
            }
            let hedged = live.picker.hedge(now);
            if !hedged.is_empty() {
                fx.push(Effect::Request(hedged));
            }
            live.demands.time_out(&live.table, &mut live.picker, now, fx);
        }
        if self.resolve.is_wanted() {
            self.resolve.ask(now, fx);
        }
        if self.next_round.is_some_and(|at| at <= now) {
            self.choke_round(now, fx);
            self.exchange(now, fx);
        }
        self.all_interests(now, fx);
    }

    fn dial(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.next_dial = None;
        if self.finished && self.live.is_some() {
            return;
        }
        let limits = DialLimits { connected: self.settings.max_peers, ..DialLimits::default() };
        for addr in self.book.next_dials(now, self.dialing, self.peers.len(), limits) {
            self.dialing += 1;
            fx.push(Effect::Dial(addr));
        }
        self.next_dial = self.book.next_wakeup(now).map(|pause| now + pause);
    }

    /// When [`Event::Tick`] should come next.
    pub fn next_tick(&self, now: Instant) -> Duration {
        let busy = self.resolve.is_waiting()
            || self.live.as_ref().is_some_and(|l| l.demands.is_waiting() || l.picker.is_busy());
        let mut next = if busy { LOOK } else { choker::ROUND };
        if let Some(dial) = self.next_dial {
            next = next.min(dial.saturating_duration_since(now));
        }
        if let Some(round) = self.next_round {
            next = next.min(round.saturating_duration_since(now));
        }
        // Never a spin, whatever the parts say.
        next.max(Duration::from_millis(20))
    }

    /// The peers that are connected.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Connections being made.
    pub fn dialing(&self) -> usize {
        self.dialing
    }

    /// Why the torrent can't go on, if it can't.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
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
