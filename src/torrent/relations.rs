//! Relations with peers: how we introduce ourselves, whom we are interested in, whom we let in, and whom we
//! introduce to each other. A part of the [`Swarm`]'s `apply`, and as pure as the rest of it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::choker::{self, Candidate};
use super::effects::Effect;
use super::swarm::{Peer, Swarm};
use crate::net::transport::Kind;
use crate::peer::PeerKey;
use crate::peer::extension::{self, ExtHandshake};
use crate::peer::mse::{Cover, Policy};
use crate::peer::pex::{PexFlags, PexPeer};
use crate::peer::session::REQUESTS_MAX;

/// How long we stay interested in peers after the last handle was closed, and after the start. Who reads one
/// file often reads the next, and an unchoke can take ten seconds and more (measured: transmission lets in at
/// its ten-second round only, so a tree of small files took ten seconds a file).
const LINGER: Duration = Duration::from_secs(120);

impl Swarm {
    /// Our extension handshake for a peer (BEP 10), as things stand.
    pub(super) fn hello(&self, peer: &Peer) -> Bytes {
        let live = self.live.as_ref();
        ExtHandshake {
            ut_metadata: Some(extension::OUR_UT_METADATA),
            ut_pex: self.pex().then_some(extension::OUR_UT_PEX),
            lt_donthave: Some(extension::OUR_LT_DONTHAVE),
            metadata_size: live.map(|l| l.info.raw.len() as u32).filter(|n| *n > 0),
            reqq: Some(REQUESTS_MAX as u32),
            client: Some(format!("torrentfs {}", env!("CARGO_PKG_VERSION"))),
            port: self.settings.listen_port,
            your_ip: Some(peer.who.addr.ip()),
            encryption: self.settings.encryption == Policy::Require,
            upload_only: live.is_some_and(|l| l.table.complete_count() == l.table.len()),
        }
        .encode()
    }

    pub(super) fn choke_round(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.next_round = Some(now + choker::ROUND);
        let live = match &mut self.live {
            Some(live) if self.settings.upload => live,
            _ => return,
        };
        let mut candidates = Vec::new();
        for (key, peer) in &self.peers {
            let rate = live.picker.peer(*key).map_or(0, |p| p.rate(now));
            if peer.interested_in_us {
                candidates.push(Candidate { key: *key, rate, last: peer.let_in });
            }
        }
        let seeding = live.table.complete_count() == live.table.len();
        let chosen = choker::choose(candidates, seeding);
        for (key, peer) in &mut self.peers {
            let choke = !chosen.contains(key);
            if choke != peer.choking {
                peer.choking = choke;
                if !choke {
                    peer.let_in = Some(now);
                }
                fx.push(Effect::Choke(*key, choke));
            }
        }
    }

    /// Introduces the peers to each other (BEP 11), once a minute each.
    pub(super) fn exchange(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if !self.pex() {
            return;
        }
        let flags = |p: &Peer| {
            let said = p.extension.as_ref().is_some_and(|e| e.encryption);
            let prefers = said || p.who.cover != Cover::Plain;
            let flag = |on: bool, flag| if on { flag } else { PexFlags::default() };
            let utp = flag(p.who.kind == Kind::Utp, PexFlags::UTP);
            flag(!p.who.incoming, PexFlags::REACHABLE).with(flag(prefers, PexFlags::ENCRYPTION)).with(utp)
        };
        let known: Vec<PexPeer> =
            self.peers.values().filter_map(|p| Some(PexPeer { addr: p.listens?, flags: flags(p) })).collect();
        for (key, peer) in &mut self.peers {
            let Some(id) = peer.extension.as_ref().and_then(|e| e.ut_pex) else { continue };
            let others = known.iter().filter(|o| Some(o.addr) != peer.listens).copied();
            if let Some(message) = peer.pex.next(others, now) {
                fx.push(Effect::Extended(*key, id, message.encode()));
            }
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
