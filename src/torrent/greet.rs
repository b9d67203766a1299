//! Who comes and who goes: which connections of a torrent are taken, what is said first, and what is kept of those that are
//! over. A part of the [`Swarm`]'s `apply`, and as pure as the rest of it. Who stays when there is no room is decided by
//! [`super::admission`].

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::admission::{self, Admission, Resident, Verdict};
use super::choker;
use super::effects::{Dial, Effect};
use super::load::{Has, PeerLoad};
use super::peers::{self, DialLimits, Hints};
use super::priority::canonical;
use super::relations::Peer;
use super::swarm::{DEPARTED_MAX, Swarm};
use crate::discovery::{PeerSource, canonical_peer};
use crate::net::hosts::is_private;
use crate::peer::PeerKey;
use crate::peer::event::Connected;
use crate::peer::extension;
use crate::peer::pex::PexState;
use crate::peer::wire::Message;

/// Connections that a torrent keeps when others need some.
const KEPT: usize = 4;
/// How soon it is tried again to dial, when the program had no room, and when somebody waits for it.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_SOON: Duration = Duration::from_millis(200);

impl Swarm {
    /// The torrent turned out to be private: its peers come from its trackers and the user alone (BEP 27).
    pub(super) fn leave_strangers(&mut self, fx: &mut Vec<Effect>) {
        let stranger = |source| matches!(source, PeerSource::Dht | PeerSource::Pex | PeerSource::Lsd);
        for (key, peer) in &self.peers {
            if peer.listens.and_then(|addr| self.book.source(addr)).is_some_and(stranger) {
                fx.push(Effect::Disconnect(*key, "the torrent is private, and no tracker named it".into()));
            }
        }
        self.book.retain(|source| !stranger(source));
    }

    /// A connection stands, and is taken or not.
    pub(super) fn connected(&mut self, key: PeerKey, who: Connected, now: Instant, fx: &mut Vec<Effect>) {
        if !who.incoming {
            self.dialing = self.dialing.saturating_sub(1);
            self.punching.ended(who.addr);
        }
        let refuse = self.refusal(&who, now, fx);
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
            since: now,
            sent: 0,
            sent_before: 0,
            sent_at_turn: 0,
            takes: 0,
            useful: false,
            leaving: refuse.is_some(),
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

    /// A connection, or a webseed, is over.
    pub(super) fn gone(&mut self, key: PeerKey, reason: &str, now: Instant, fx: &mut Vec<Effect>) {
        let Some(peer) = self.peers.remove(&key) else { return self.webseed_gone(key, reason, fx) };
        if self.departed.len() >= DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back((key, peer.who.addr));
        let mut useful = peer.extension.is_some();
        if let Some(live) = &mut self.live {
            useful = live.picker.load(key).is_some_and(|p| p.delivered_total() > 0);
            live.forget(key, fx);
        }
        self.resolve.remove_peer(key);
        self.punching.gone(key);
        tracing::debug!(peer = %peer.who.addr, "gone: {reason}");
        if let Some(addr) = peer.listens {
            // Of two connections to one peer the other is still there.
            let there = self.residents().any(|(_, other)| other.listens == Some(addr));
            match there {
                true => self.book.connected(addr),
                false => self.book.disconnected(addr, now, useful),
            }
        }
        if self.resolve.is_wanted() {
            self.resolve.ask(now, fx);
        }
    }

    /// Those who are connected and stay.
    fn residents(&self) -> impl Iterator<Item = (&PeerKey, &Peer)> {
        self.peers.iter().filter(|(_, peer)| !peer.leaving)
    }

    /// Why a connection isn't wanted, if it isn't. Where it is, another may have to go for it.
    fn refusal(&mut self, who: &Connected, now: Instant, fx: &mut Vec<Effect>) -> Option<&'static str> {
        // The end of ours changes with our address.
        if who.peer_id.first_chunk::<16>() == self.settings.peer_id.first_chunk::<16>() {
            self.book.add_self(who.addr);
            return Some("it is ourselves");
        }
        if self.book.is_banned(who.addr) {
            return Some("it is banned");
        }
        if self.book.is_filtered(who.addr) {
            return Some("it is in --ip-filter");
        }
        if self.residents().any(|(_, p)| p.who.addr == who.addr && p.who.peer_id != who.peer_id) {
            return Some("its address is connected already");
        }
        let first = self.residents().find(|(_, p)| p.who.peer_id == who.peer_id);
        if let Some((key, incoming, since)) = first.map(|(key, p)| (*key, p.who.incoming, p.since)) {
            let (ours, age) = (&self.settings.peer_id, now.saturating_duration_since(since));
            if admission::rival(ours, &who.peer_id, incoming, who.incoming, age) {
                self.dismiss(key, "it is connected once more", fx);
                return None;
            }
            // Where it was dialled somebody is, and it is this one: it needn't be dialled again.
            if let Some(first) = self.peers.get_mut(&key).filter(|first| first.who.addr.ip() == who.addr.ip())
                && !who.incoming
            {
                first.listens.get_or_insert(who.addr);
            }
            return Some("it is connected already");
        }
        if admission::crowds(who.addr.ip(), self.residents().map(|(_, p)| p.who.addr.ip())) {
            return Some("its address has enough connections");
        }
        if self.residents().count() < self.settings.max_peers {
            return None;
        }
        let priority = self.priority(who.addr);
        let worth = self.worth();
        match self.admission.full(priority, worth.into_iter(), now) {
            Verdict::Replace(key) => {
                self.dismiss(key, "another takes its place", fx);
                None
            }
            Verdict::Refuse => Some("there are enough peers"),
        }
    }

    /// What each of those is worth.
    fn worth(&self) -> Vec<Resident> {
        let waiting = self.live.as_ref().is_some_and(|l| l.demands.is_waiting());
        let resident = |(key, peer): (&PeerKey, &Peer)| {
            let load = self.live.as_ref().and_then(|l| l.picker.load(*key));
            let named = peer.listens.and_then(|addr| self.book.source(addr)).is_some_and(peers::named);
            let awaited = waiting && load.is_some_and(|load| load.in_flight().next().is_some());
            Resident {
                key: *key,
                // Before the metadata is known anybody may have it.
                useful: peer.useful || peer.wants_of_us() || self.live.is_none(),
                snubbed: load.is_some_and(|load| load.is_snubbed()),
                delivered: load.is_some_and(|load| load.delivered_total() > 0),
                needed: named || awaited,
                since: peer.since,
                priority: self.priority(peer.listens.unwrap_or(peer.who.addr)),
            }
        };
        self.residents().map(resident).collect()
    }

    /// All connections of the program are taken, and another torrent needs some: of one that doesn't one goes, as long as
    /// there are a few.
    pub(super) fn make_way(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if !self.settings.connections.pressed(now) || self.is_eager() || self.residents().count() <= KEPT {
            return;
        }
        if let Some(key) = Admission::spare(self.worth().into_iter()) {
            self.dismiss(key, "a torrent that is read needs its place", fx);
        }
    }

    /// Whether somebody waits for what its peers have.
    pub(super) fn is_eager(&self) -> bool {
        self.live.as_ref().is_none_or(|l| l.demands.is_wanting() || l.demands.is_waiting())
    }

    /// Whom to dial, as far as there is room in the torrent and in the program.
    pub(super) fn dial(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.next_dial = None;
        if self.finished && self.live.is_some() {
            return;
        }
        let eager = self.is_eager();
        let own = DialLimits { connected: self.settings.max_peers, ..DialLimits::default() };
        let room = self.settings.connections.may_dial(eager, now);
        let limits = DialLimits { dials: own.dials.min(self.dialing + room), ..own };
        let (mut begun, connected) = (0, self.peers.len());
        for addr in self.book.next_dials(now, self.dialing, connected, limits) {
            match self.settings.connections.dial(eager, now) {
                Some(token) => {
                    begun += 1;
                    let hints = self.book.hints(addr);
                    fx.push(Effect::Dial(Dial { addr, hints, token }));
                }
                // Another torrent was faster.
                None => self.book.put_back(addr, now),
            }
        }
        self.dialing += begun;
        self.next_dial = self.book.next_wakeup(now).map(|pause| now + pause);
        let more = self.dialing < own.dials && self.dialing + connected < own.connected;
        if begun >= room && more && self.book.is_ready(now) {
            if eager {
                self.settings.connections.press(now);
            }
            // Nobody tells when there is room in the program again.
            let again = now + if eager { AGAIN_SOON } else { AGAIN };
            self.next_dial = Some(self.next_dial.map_or(again, |at| at.min(again)));
        }
    }

    /// Somebody dials us at this moment and is dialled too, so that the routers of both let the other through. It is the word
    /// of a stranger: where there is no room now it isn't waited for.
    pub(super) fn dial_now(&mut self, addr: SocketAddr, now: Instant, fx: &mut Vec<Effect>) {
        let (addr, eager) = (canonical_peer(addr), self.is_eager());
        let enough = self.residents().count() >= self.settings.max_peers
            || self.dialing >= DialLimits::default().dials
            || self.settings.connections.may_dial(eager, now) == 0;
        if enough || !self.punching.may_dial() {
            return;
        }
        self.book.add(addr, PeerSource::Pex, now);
        if !self.book.begin(addr) {
            return;
        }
        match self.settings.connections.dial(eager, now) {
            Some(token) => {
                self.punching.dialled(addr);
                self.dialing += 1;
                let hints = Hints { punch: true, ..self.book.hints(addr) };
                fx.push(Effect::Dial(Dial { addr, hints, token }));
            }
            None => self.book.put_back(addr, now),
        }
    }

    /// Our addresses are known.
    pub(super) fn know_ours(&mut self, ours: Vec<IpAddr>) {
        let port = &self.settings.listen_port;
        for ip in &ours {
            // Behind a router that maps our port, the same number outside may be our neighbour's.
            let inside = port.inside().filter(|_| is_private(*ip) || !port.is_mapped());
            for port in inside.into_iter().chain(port.outside()) {
                self.book.add_self(SocketAddr::new(*ip, port));
            }
        }
        self.ours = ours;
    }

    /// Our addresses have changed: connections from those that are gone are over, though nobody says so, and who couldn't
    /// be reached may be from here.
    pub(super) fn moved(&mut self, lost: Vec<PeerKey>, now: Instant, fx: &mut Vec<Effect>) {
        for key in lost {
            self.dismiss(key, "our address is gone", fx);
        }
        self.book.moved(now);
    }

    /// Ends a connection; what is still said over it is heard until it is gone.
    fn dismiss(&mut self, key: PeerKey, why: &str, fx: &mut Vec<Effect>) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.leaving = true;
            fx.push(Effect::Disconnect(key, why.into()));
        }
    }

    /// The canonical priority of a connection to this address; `None` while our own isn't known.
    fn priority(&self, theirs: SocketAddr) -> Option<u32> {
        // Between neighbours that of the local network.
        let private = is_private(theirs.ip().to_canonical());
        let ours =
            self.ours.iter().find(|ip| ip.is_ipv4() == theirs.is_ipv4() && is_private(**ip) == private)?;
        let port = self.settings.listen_port.seen_by(theirs.ip()).unwrap_or(0);
        canonical(SocketAddr::new(*ours, port), theirs)
    }
}
