//! Hole punching (BEP 55), as far as it is decided: whom to ask for an introduction, whom to introduce, and whether to dial
//! when told to. Pure.
//!
//! All of it serves strangers, so all of it is bounded: who is asked, how often, and that nobody can have us send anything
//! to where he couldn't himself.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::effects::Effect;
use super::relations::Peer;
use super::swarm::Swarm;
use crate::net::hosts::is_private;
use crate::net::transport::Kind as Over;
use crate::peer::PeerKey;
use crate::peer::holepunch::{Holepunch, Kind, Refusal};

/// Between two tries to be introduced to one address: routers forget, and people come home.
const AGAIN: Duration = Duration::from_secs(600);
/// Between two introductions for one peer, and two dials on the word of one: it has no more than so many to reach.
const PAUSE: Duration = Duration::from_secs(1);
/// Addresses of which it is remembered who told of them, and when they were tried.
const KEPT: usize = 512;
/// Dials under way on the word of others.
const DIALS: usize = 4;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Punches {
    /// Who told of an address, last, and the how manieth word it was.
    told: HashMap<SocketAddr, (PeerKey, u64)>,
    words: u64,
    /// Dials under way on the word of others.
    dials: HashSet<SocketAddr>,
    /// When an introduction was asked for.
    tried: HashMap<SocketAddr, Instant>,
    /// When a peer last had something of us: that we introduce it, and that we dial on its word.
    served: HashMap<(PeerKey, bool), Instant>,
}

impl Punches {
    /// A peer is connected to who is at this address.
    pub fn told(&mut self, addr: SocketAddr, by: PeerKey) {
        self.words += 1;
        self.told.insert(addr, (by, self.words));
        if self.told.len() > KEPT
            && let Some(oldest) = self.told.iter().min_by_key(|(_, (_, word))| *word).map(|(addr, _)| *addr)
        {
            self.told.remove(&oldest);
        }
    }

    /// Whether one more may be dialled on the word of others: who names places where nobody is keeps only few dials busy.
    pub fn may_dial(&self) -> bool {
        self.dials.len() < DIALS
    }

    /// An address is dialled on the word of others.
    pub fn dialled(&mut self, addr: SocketAddr) {
        self.dials.insert(addr);
    }

    /// A dial has ended.
    pub fn ended(&mut self, addr: SocketAddr) {
        self.dials.remove(&addr);
    }

    /// A peer is gone.
    pub fn gone(&mut self, key: PeerKey) {
        self.told.retain(|_, (by, _)| *by != key);
        self.served.retain(|(by, _), _| *by != key);
    }

    /// An address couldn't be reached: who may introduce us, unless it was tried not long ago.
    pub fn failed(&mut self, addr: SocketAddr, now: Instant) -> Option<PeerKey> {
        let (by, _) = *self.told.get(&addr)?;
        self.tried.retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        if self.tried.contains_key(&addr) || self.tried.len() >= KEPT {
            return None;
        }
        self.tried.insert(addr, now);
        Some(by)
    }

    /// Whether a peer may have this of us now.
    fn serve(&mut self, key: PeerKey, dial: bool, now: Instant) -> bool {
        let may = self.served.get(&(key, dial)).is_none_or(|at| now.saturating_duration_since(*at) >= PAUSE);
        if may {
            self.served.insert((key, dial), now);
        }
        may
    }
}

/// One of two who are to be introduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// Who it is.
    pub key: PeerKey,
    /// Where the other has to dial it.
    pub at: SocketAddr,
    /// Its number for these messages; `None` when it takes none.
    pub id: Option<u8>,
}

/// Whether one who asks may be introduced to another, who is connected or isn't.
///
/// # Errors
/// Why not, for who asked.
pub fn introduce(asks: Side, target: Option<Side>) -> Result<(Side, Side), Refusal> {
    let target = target.ok_or(Refusal::NotConnected)?;
    if target.key == asks.key {
        return Err(Refusal::NoSelf);
    }
    if target.id.is_none() || asks.id.is_none() {
        return Err(Refusal::NoSupport);
    }
    // Neither is led from outside into the network of the other.
    let private = |side: Side| is_private(side.at.ip().to_canonical());
    if private(asks) != private(target) || asks.at.is_ipv4() != target.at.is_ipv4() {
        return Err(Refusal::NoSuchPeer);
    }
    Ok((asks, target))
}

impl Swarm {
    /// Whether holes are punched here: over uTP alone, and never for a private torrent, whose peers don't introduce each
    /// other (BEP 27).
    pub(super) fn punches(&self) -> bool {
        self.settings.punch && self.pex()
    }

    fn side(&self, key: PeerKey, peer: &Peer) -> Side {
        // What it sends from over UDP is what its router knows; of TCP's port nothing follows for UDP.
        let at =
            if peer.who.kind == Over::Utp { peer.who.addr } else { peer.listens.unwrap_or(peer.who.addr) };
        Side { key, at, id: peer.extension.as_ref().and_then(|e| e.ut_holepunch) }
    }

    /// An address couldn't be reached: who told of it is asked for an introduction.
    pub(super) fn ask_for_introduction(&mut self, addr: SocketAddr, now: Instant, fx: &mut Vec<Effect>) {
        if !self.punches() {
            return;
        }
        let Some(by) = self.punching.failed(addr, now) else { return };
        let id = self.peers.get(&by).and_then(|peer| peer.extension.as_ref()?.ut_holepunch);
        if let Some(id) = id {
            let message = Holepunch { kind: Kind::Rendezvous, addr };
            fx.push(Effect::Extended(by, id, message.encode()));
        }
    }

    /// A peer says something of hole punching.
    pub(super) fn punch(&mut self, key: PeerKey, payload: &[u8], now: Instant, fx: &mut Vec<Effect>) {
        let Some(Holepunch { kind, addr }) = Holepunch::decode(payload) else { return };
        let Some(peer) = self.peers.get(&key).filter(|peer| !peer.leaving && self.punches()) else { return };
        match kind {
            Kind::Rendezvous => {
                let asks = self.side(key, peer);
                if !self.punching.serve(key, false, now) {
                    return;
                }
                let found = self
                    .peers
                    .iter()
                    .find(|(_, p)| !p.leaving && (p.listens == Some(addr) || p.who.addr == addr));
                let target = found.map(|(key, peer)| self.side(*key, peer));
                let mut say = |to: Side, kind, addr| {
                    if let Some(id) = to.id {
                        fx.push(Effect::Extended(to.key, id, Holepunch { kind, addr }.encode()));
                    }
                };
                match introduce(asks, target) {
                    Ok((asks, target)) => {
                        say(target, Kind::Connect, asks.at);
                        say(asks, Kind::Connect, target.at);
                    }
                    Err(refusal) => say(asks, Kind::Error(refusal), addr),
                }
            }
            Kind::Connect => {
                // Strangers don't lead us into our own network.
                let led =
                    is_private(addr.ip().to_canonical()) && !is_private(peer.who.addr.ip().to_canonical());
                let known = self.peers.values().any(|p| p.listens == Some(addr) || p.who.addr == addr);
                if !led && !known && self.punching.serve(key, true, now) {
                    self.dial_now(addr, now, fx);
                }
            }
            Kind::Error(refusal) => tracing::debug!(peer = %addr, "not introduced: {refusal:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn side(key: u64, addr: &str, id: Option<u8>) -> Side {
        Side { key: PeerKey(key), at: at(addr), id }
    }

    #[test]
    fn who_is_introduced_to_whom() {
        let asks = side(1, "1.1.1.1:1", Some(3));
        let neighbour = side(1, "10.0.0.1:1", Some(3));
        for (row, asks, target, refusal) in [
            ("both can", asks, Some(side(2, "2.2.2.2:2", Some(4))), None),
            ("nobody is there", asks, None, Some(Refusal::NotConnected)),
            ("itself", asks, Some(asks), Some(Refusal::NoSelf)),
            ("the other can't", asks, Some(side(2, "2.2.2.2:2", None)), Some(Refusal::NoSupport)),
            ("into a network", asks, Some(side(2, "192.168.0.1:2", Some(4))), Some(Refusal::NoSuchPeer)),
            ("out of one", neighbour, Some(side(2, "2.2.2.2:2", Some(4))), Some(Refusal::NoSuchPeer)),
            ("neighbours", neighbour, Some(side(2, "10.0.0.2:2", Some(4))), None),
            ("another family", asks, Some(side(2, "[2001:db8::1]:2", Some(4))), Some(Refusal::NoSuchPeer)),
        ] {
            assert_eq!(introduce(asks, target).err(), refusal, "{row}");
        }
    }

    #[test]
    fn who_told_of_an_address_is_asked_once_in_a_while() {
        let now = Instant::now();
        let mut punches = Punches::default();
        let (one, other) = (at("1.1.1.1:1"), at("2.2.2.2:2"));
        assert_eq!(punches.failed(one, now), None, "nobody told of it");
        punches.told(one, PeerKey(1));
        punches.told(other, PeerKey(2));
        assert_eq!(punches.failed(one, now), Some(PeerKey(1)));
        assert_eq!(punches.failed(one, now + AGAIN / 2), None);
        assert_eq!(punches.failed(one, now + AGAIN), Some(PeerKey(1)));
        punches.gone(PeerKey(2));
        assert_eq!(punches.failed(other, now), None);
        for n in 0..2000u16 {
            punches.told(SocketAddr::from(([1, 2, (n >> 8) as u8, n as u8], 1)), PeerKey(3));
        }
        assert_eq!(punches.told.len(), KEPT);
        let last = SocketAddr::from(([1, 2, 7, 207], 1));
        assert_eq!(
            (punches.failed(one, now + 2 * AGAIN), punches.failed(last, now)),
            (None, Some(PeerKey(3)))
        );
    }

    #[test]
    fn few_dials_are_begun_on_the_word_of_others() {
        let mut punches = Punches::default();
        let addrs = (1..=DIALS as u8).map(|n| SocketAddr::from(([1, 1, 1, n], 1))).collect::<Vec<_>>();
        for addr in &addrs {
            assert!(punches.may_dial());
            punches.dialled(*addr);
        }
        assert!(!punches.may_dial());
        punches.ended(at("2.2.2.2:2"));
        assert!(!punches.may_dial());
        punches.ended(addrs[0]);
        assert!(punches.may_dial());
    }

    #[test]
    fn nobody_is_served_more_than_once_a_second() {
        let now = Instant::now();
        let mut punches = Punches::default();
        for (key, dial, after, may) in [
            (1, false, 0, true),
            (1, false, 999, false),
            (1, true, 999, true),
            (2, false, 999, true),
            (1, false, 1000, true),
        ] {
            let at = now + Duration::from_millis(after);
            assert_eq!(punches.serve(PeerKey(key), dial, at), may, "{key} {dial} {after}");
        }
        punches.gone(PeerKey(1));
        assert_eq!(punches.served.len(), 1);
    }
}
