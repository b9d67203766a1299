//! Relations with peers: how we introduce ourselves, whom we are interested in, whom we let in, and whom we
//! introduce to each other. A part of the [`Swarm`]'s `apply`, and as pure as the rest of it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::choker::{self, Candidate};
use super::effects::Effect;
use super::load::Has;
use super::swarm::Swarm;
use crate::net::transport::Kind;
use crate::peer::PeerKey;
use crate::peer::event::Connected;
use crate::peer::extension::{self, ExtHandshake};
use crate::peer::fast;
use crate::peer::mse::{Cover, Policy};
use crate::peer::pex::{PexFlags, PexPeer, PexState};
use crate::peer::session::REQUESTS_MAX;

/// How long we stay interested in peers after the last handle was closed, and after the start. Who reads one
/// file often reads the next, and an unchoke can take ten seconds and more (measured: transmission lets in at
/// its ten-second round only, so a tree of small files took ten seconds a file).
const LINGER: Duration = Duration::from_secs(120);

/// One connected peer.
pub(super) struct Peer {
    pub(super) who: Connected,
    /// Where it can be connected to, if that is known: for an incoming one only its own word.
    pub(super) listens: Option<SocketAddr>,
    /// Before the metadata is known: what it said that it has.
    pub(super) early: Has,
    pub(super) early_seed: bool,
    pub(super) extension: Option<ExtHandshake>,
    pub(super) pex: PexState,
    pub(super) interested_in_us: bool,
    /// We told it that we are interested.
    pub(super) interested: bool,
    pub(super) choking: bool,
    pub(super) let_in: Option<Instant>,
    /// Since when it is connected.
    pub(super) since: Instant,
    /// Payload bytes it was sent; by the last round, and by when it was let in.
    pub(super) sent: u64,
    pub(super) sent_before: u64,
    pub(super) sent_at_turn: u64,
    /// Payload bytes a second it took over the last round.
    pub(super) takes: u64,
    /// It has, as far as we know, something that we lack; seen at once when it gets something, and each round when we do.
    pub(super) useful: bool,
    /// It was told to go, and isn't counted any more.
    pub(super) leaving: bool,
}

impl Peer {
    /// Whether it would take what we have. Who says that it only uploads (BEP 21) is interested by mistake.
    pub(super) fn wants_of_us(&self) -> bool {
        self.interested_in_us && !self.extension.as_ref().is_some_and(|e| e.upload_only)
    }

    /// It is choked, or let in.
    pub(super) fn choke(&mut self, choke: bool, now: Instant) {
        self.choking = choke;
        if !choke {
            (self.let_in, self.sent_at_turn) = (Some(now), self.sent);
        }
    }

    /// By which number it wants to hear of pieces that we no longer have (BEP 54).
    pub(super) fn takes_dont_have(&self) -> Option<u8> {
        self.extension.as_ref().and_then(|e| e.lt_donthave)
    }
}

impl Swarm {
    /// Our extension handshake for a peer (BEP 10), as things stand.
    pub(super) fn hello(&self, peer: &Peer) -> Bytes {
        let live = self.live.as_ref();
        ExtHandshake {
            ut_metadata: Some(extension::OUR_UT_METADATA),
            ut_pex: self.pex().then_some(extension::OUR_UT_PEX),
            lt_donthave: Some(extension::OUR_LT_DONTHAVE),
            ut_holepunch: self.punches().then_some(extension::OUR_UT_HOLEPUNCH),
            metadata_size: live.map(|l| l.info.raw.len() as u32).filter(|n| *n > 0),
            reqq: Some(REQUESTS_MAX as u32),
            client: Some(format!("torrentfs {}", env!("CARGO_PKG_VERSION"))),
            port: self.settings.listen_port.seen_by(peer.who.addr.ip()),
            your_ip: Some(peer.who.addr.ip()),
            encryption: self.settings.encryption == Policy::Require,
            upload_only: live.is_some_and(|l| l.table.complete_count() == l.table.len()),
        }
        .encode()
    }

    /// Whether the next tick is a round of the choker, which wants to know what peers took.
    pub fn round_is_due(&self, now: Instant) -> bool {
        self.serves && self.next_round.is_some_and(|at| at <= now)
    }

    /// A peer became interested: it is let in at once when there is a slot, else the next round decides. A round
    /// for each who asks would let one peer turn all the others out as often as it likes.
    pub(super) fn let_in(&mut self, key: PeerKey, now: Instant, fx: &mut Vec<Effect>) {
        let served = self.peers.values().filter(|p| !p.choking).count();
        if self.live.is_none() || !self.serves || served >= self.choker.slots() {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.wants_of_us()
            && peer.choking
        {
            peer.choke(false, now);
            fx.push(Effect::Choke(key, false));
        }
    }

    /// A peer has said what it has: one with next to nothing may ask for some pieces although it is choked.
    pub(super) fn allow_fast(&mut self, key: PeerKey, fx: &mut Vec<Effect>) {
        let (Some(live), Some(peer)) = (&self.live, self.peers.get(&key)) else { return };
        let IpAddr::V4(ip) = peer.who.addr.ip() else { return };
        let poor = live.picker.load(key).is_some_and(|load| load.has().count() < fast::SIZE as u32);
        if !self.serves || !peer.who.fast || !poor {
            return;
        }
        let mut set = fast::allowed_set(&self.settings.info_hash, ip, live.table.len(), fast::SIZE);
        set.retain(|piece| live.table.is_complete(*piece));
        if !set.is_empty() {
            fx.push(Effect::AllowFast(key, set));
        }
    }

    /// From now on peers may have blocks of us, or may not.
    pub(super) fn serve(&mut self, on: bool, now: Instant, fx: &mut Vec<Effect>) {
        self.serves = on && self.settings.upload;
        if self.serves {
            // The other things that are done each round keep their time.
            let next = self.next_round;
            self.choke_round(now, fx);
            self.next_round = next.or(self.next_round);
            return;
        }
        for (key, peer) in &mut self.peers {
            peer.takes = 0;
            fx.push(Effect::AllowNothing(*key));
            if !peer.choking {
                peer.choke(true, now);
                fx.push(Effect::Choke(*key, true));
            }
        }
    }

    pub(super) fn choke_round(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.next_round = Some(now + choker::ROUND);
        let live = match &mut self.live {
            Some(live) if self.serves => live,
            _ => return,
        };
        let past = self.last_round.replace(now).map_or(choker::ROUND, |at| now.saturating_duration_since(at));
        let mut candidates = Vec::new();
        for (key, peer) in &mut self.peers {
            let gives = live.picker.peer(*key).filter(|p| !p.is_snubbed()).map_or(0, |p| p.rate(now));
            let took = peer.sent - std::mem::replace(&mut peer.sent_before, peer.sent);
            peer.takes = (took as f64 / past.as_secs_f64().max(0.001)) as u64;
            if peer.wants_of_us() {
                candidates.push(Candidate {
                    key: *key,
                    gives,
                    takes: peer.takes,
                    taken: peer.sent - peer.sent_at_turn,
                    since: peer.since,
                    let_in: peer.let_in,
                    is_in: !peer.choking,
                });
            }
        }
        let seeding = live.table.complete_count() == live.table.len();
        let chosen = self.choker.choose(candidates, seeding, now);
        for (key, peer) in &mut self.peers {
            let choke = !chosen.contains(key);
            if choke != peer.choking {
                peer.choke(choke, now);
                fx.push(Effect::Choke(*key, choke));
            }
        }
    }

    /// Introduces the peers to each other (BEP 11), once a minute each.
    pub(super) fn exchange(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if !self.pex() {
            return;
        }
        let flags = |key: &PeerKey, p: &Peer| {
            let said = p.extension.as_ref().is_some_and(|e| e.encryption);
            let prefers = said || p.who.cover != Cover::Plain;
            let flag = |on: bool, flag| if on { flag } else { PexFlags::default() };
            let told = p.listens.map_or_else(PexFlags::default, |addr| self.book.flags(addr));
            let utp = p.who.kind == Kind::Utp || told.has(PexFlags::UTP);
            let gives = p.extension.as_ref().is_some_and(|e| e.upload_only);
            let has = self.live.as_ref().and_then(|l| Some((l.picker.load(*key)?.has(), l.table.len())));
            let whole = has.is_some_and(|(has, pieces)| match has {
                Has::All => true,
                has => has.count() >= pieces,
            });
            [
                (prefers, PexFlags::ENCRYPTION),
                (gives || whole || p.early_seed, PexFlags::SEED),
                (utp, PexFlags::UTP),
                (p.extension.as_ref().is_some_and(|e| e.ut_holepunch.is_some()), PexFlags::HOLEPUNCH),
                (!p.who.incoming, PexFlags::REACHABLE),
            ]
            .into_iter()
            .fold(PexFlags::default(), |all, (on, one)| all.with(flag(on, one)))
        };
        let known: Vec<PexPeer> = self
            .peers
            .iter()
            .filter_map(|(key, p)| Some(PexPeer { addr: p.listens?, flags: flags(key, p) }))
            .collect();
        for (key, peer) in &mut self.peers {
            let Some(id) = peer.extension.as_ref().and_then(|e| e.ut_pex) else { continue };
            let others = known.iter().filter(|o| Some(o.addr) != peer.listens).copied();
            if let Some(message) = peer.pex.next(others, now) {
                fx.push(Effect::Extended(*key, id, message.encode()));
            }
        }
    }

    /// Who has nothing any more that we lack is found: it would keep a slot for us in vain.
    pub(super) fn look_who_is_useful(&mut self) {
        let Some(live) = &self.live else { return };
        let mut ours: Option<Vec<u8>> = None;
        for (key, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.useful) {
            peer.useful = match live.picker.load(*key).map(|load| load.has()) {
                None | Some(Has::None) => false,
                Some(Has::All) => live.table.complete_count() < live.table.len(),
                Some(Has::Bits(theirs)) => {
                    let ours = ours.get_or_insert_with(|| live.table.bitfield());
                    theirs.iter().zip(ours.iter()).any(|(theirs, ours)| theirs & !ours != 0)
                }
            };
        }
    }

    pub(super) fn interest(&mut self, key: PeerKey, now: Instant, fx: &mut Vec<Effect>) {
        let wanting = self.live.as_ref().is_some_and(|l| {
            l.demands.is_wanting()
                || l.background.is_active()
                || now.saturating_duration_since(l.wanted) < LINGER
        });
        if let Some(peer) = self.peers.get_mut(&key) {
            let interested = wanting && peer.useful;
            if interested != peer.interested {
                peer.interested = interested;
                fx.push(Effect::Interested(key, interested));
            }
        }
    }

    pub(super) fn all_interests(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.interest(key, now, fx);
        }
    }
}
