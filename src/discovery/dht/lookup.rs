//! One walk through the network towards a place (BEP 5), for one family. Pure: it says whom to ask next, and is told
//! what came of it.
//!
//! It keeps the [`KEPT`] nearest nodes that it heard of, and asks the nearest that weren't asked, [`ALPHA`] at a time. A
//! node that is silent for a while no longer counts as being asked, so that dead ones don't hold up the walk; its answer
//! is still taken. The walk is over when the [`K`] nearest that answer are known: nothing nearer is left to ask.
//!
//! Nodes lie. A node whose name doesn't fit its address (BEP 42) is asked after those whose name does, and its answer
//! used, but it doesn't count towards the end, and gets no announce; few of them are kept in mind, and none that has
//! answered, so that made-up names near the place push nobody out. Neither do nodes that don't answer. Of one network ([`network`]) one node is asked, so that nobody surrounds a
//! place with addresses of his own. A walk that is led on and on ends after [`ASKED`] questions, or [`LASTS`].

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::id::{Contact, Distance, LEN, NodeId, network};
use super::krpc::Token;
use super::table::K;

/// Questions under way at a time.
const ALPHA: usize = 4;
/// Nodes that are kept in mind; only the nearest matter.
const KEPT: usize = 64;
/// Those among them whose name doesn't fit and who haven't answered.
const MISFITS: usize = 16;
/// So many of those are asked.
const MISFITS_ASKED: usize = 48;
/// Questions of one walk: it takes 20 to 40.
pub const ASKED: usize = 160;
/// Nodes that a walk hears of; more are made up.
const SEEN: usize = 1024;
/// How long a walk lasts at most.
const LASTS: Duration = Duration::from_secs(45);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    New,
    Asked,
    /// Asked, and silent for a while.
    Slow,
    Answered(Option<Token>),
}

/// A node on the way.
#[derive(Debug)]
struct Candidate {
    /// None of an entry to the network, whose name isn't known before it answers.
    id: Option<NodeId>,
    /// Entries come first.
    distance: Distance,
    addr: SocketAddr,
    state: State,
    /// Whether its name fits its address, as far as it has one.
    fits: bool,
}

/// A walk.
#[derive(Debug)]
pub struct Lookup {
    target: [u8; LEN],
    /// The nearest first.
    candidates: Vec<Candidate>,
    /// Whom it heard of: each is asked once, by address, and one of each network.
    seen: HashSet<SocketAddr>,
    networks: HashSet<u64>,
    asked: usize,
    misfits_asked: usize,
    heard: usize,
    began: Instant,
}

impl Lookup {
    /// One that begins with nodes that are known.
    pub fn new(target: [u8; LEN], known: &[Contact], now: Instant) -> Self {
        let mut lookup = Self {
            target,
            candidates: Vec::new(),
            seen: HashSet::new(),
            networks: HashSet::new(),
            asked: 0,
            misfits_asked: 0,
            heard: 0,
            began: now,
        };
        lookup.heard_of(known);
        lookup
    }

    /// Where it goes.
    pub fn target(&self) -> [u8; LEN] {
        self.target
    }

    /// Entries to the network, of which only the address is known.
    pub fn enter_by(&mut self, addrs: &[SocketAddr]) {
        addrs.iter().for_each(|addr| self.add(None, *addr));
    }

    /// Nodes that somebody named. Who names an address decides about nothing but that it is asked.
    pub fn heard_of(&mut self, contacts: &[Contact]) {
        contacts.iter().for_each(|contact| self.add(Some(contact.id), contact.addr));
    }

    fn add(&mut self, id: Option<NodeId>, addr: SocketAddr) {
        let distance = id.map_or([0; LEN], |id| id.distance(&self.target));
        let fits = id.is_none_or(|id| id.fits(addr.ip()));
        let at = self.candidates.partition_point(|other| other.distance <= distance);
        if at >= KEPT || self.seen.len() >= SEEN || self.seen.contains(&addr) {
            return;
        }
        if !fits {
            let misfits = self.candidates.iter().filter(|other| !other.fits).count();
            let farther = self.candidates.iter().rposition(|other| !other.fits && other.state == State::New);
            match farther {
                _ if misfits < MISFITS => {}
                Some(farther) if farther >= at => _ = self.candidates.remove(farther),
                _ => return,
            }
        }
        if let Some(network) = network(addr.ip())
            && !self.networks.insert(network)
        {
            return;
        }
        self.seen.insert(addr);
        self.candidates.insert(at, Candidate { id, distance, addr, state: State::New, fits });
        self.candidates.truncate(KEPT);
    }

    /// Whom to ask next, if it is time to ask somebody. Whoever is named counts as asked.
    pub fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        let under_way = self.candidates.iter().filter(|other| other.state == State::Asked).count();
        if under_way >= ALPHA || self.asked >= ASKED || self.is_over(now) {
            return None;
        }
        let until = self.horizon();
        let near = self.candidates.get_mut(..until)?;
        let misfits = self.misfits_asked < MISFITS_ASKED;
        let is_new = |fits| move |other: &Candidate| other.state == State::New && other.fits == fits;
        let next = near.iter().position(is_new(true));
        let next = next.or_else(|| near.iter().position(is_new(false)).filter(|_| misfits))?;
        let next = near.get_mut(next)?;
        next.state = State::Asked;
        self.asked += 1;
        self.misfits_asked += usize::from(!next.fits);
        Some(next.addr)
    }

    /// How many of the candidates matter: those up to the [`K`]th that answered and fits.
    fn horizon(&self) -> usize {
        let mut answered =
            self.candidates.iter().enumerate().filter(|(_, other)| matches!(other.state, State::Answered(_)));
        answered.nth(K - 1).map_or(self.candidates.len(), |(at, _)| at + 1)
    }

    /// Whether nobody is left to be asked or waited for.
    pub fn is_over(&self, now: Instant) -> bool {
        if now.saturating_duration_since(self.began) >= LASTS {
            return true;
        }
        let near = self.candidates.get(..self.horizon()).unwrap_or_default();
        let answered = near.iter().filter(|other| matches!(other.state, State::Answered(_))).count();
        near.iter().all(|other| match other.state {
            State::New => self.asked >= ASKED || (!other.fits && self.misfits_asked >= MISFITS_ASKED),
            State::Asked => false,
            // With fewer than enough there is nobody better than those that are slow.
            State::Slow => answered >= K,
            State::Answered(_) => true,
        })
    }

    /// Somebody answered, by that name. His candidate gets the place of his name, whatever he was called before.
    pub fn answered(&mut self, from: SocketAddr, id: NodeId, token: Option<Token>, nodes: &[Contact]) {
        if let Some(at) = self.candidates.iter().position(|candidate| candidate.addr == from) {
            let mut candidate = self.candidates.remove(at);
            self.heard += 1;
            if id.fits(from.ip()) {
                candidate.id = Some(id);
                candidate.distance = id.distance(&self.target);
                candidate.state = State::Answered(token);
                candidate.fits = true;
                let at = self.candidates.partition_point(|other| other.distance <= candidate.distance);
                self.candidates.insert(at, candidate);
            }
        }
        self.heard_of(nodes);
    }

    /// Somebody has been silent for a while.
    pub fn is_slow(&mut self, from: SocketAddr) {
        let asked = |other: &&mut Candidate| other.addr == from && other.state == State::Asked;
        if let Some(candidate) = self.candidates.iter_mut().find(asked) {
            candidate.state = State::Slow;
        }
    }

    /// Somebody doesn't answer, or not with what was asked for.
    pub fn failed(&mut self, from: SocketAddr) {
        self.candidates
            .retain(|other| other.addr != from || !matches!(other.state, State::Asked | State::Slow));
    }

    /// The [`K`] nearest that answered: those with a token are to be told of us.
    pub fn to_announce(&self) -> Vec<(SocketAddr, Token)> {
        let answered = self.candidates.iter().filter_map(|candidate| match &candidate.state {
            State::Answered(token) => Some((candidate.addr, token.clone())),
            _ => None,
        });
        answered.take(K).filter_map(|(addr, token)| Some((addr, token?))).collect()
    }

    /// How many were asked.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// How many answered.
    pub fn heard(&self) -> usize {
        self.heard
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const TARGET: [u8; LEN] = [0; LEN];

    /// A node of a local network, whose name may be anything: the smaller the number, the nearer.
    fn node(number: u8) -> Contact {
        let mut id = [0; LEN];
        id[0] = number;
        Contact { id: NodeId(id), addr: SocketAddr::from(([10, 0, 0, number], 1)) }
    }

    fn asked(lookup: &mut Lookup, now: Instant) -> Vec<u8> {
        let last = |addr: SocketAddr| addr.to_string().split(['.', ':']).nth(3).unwrap().parse().unwrap();
        std::iter::from_fn(|| lookup.next(now).map(last)).collect()
    }

    fn token() -> Option<Token> {
        Token::new(b"token")
    }

    #[test]
    fn the_nearest_are_asked_until_nothing_nearer_is_left() {
        let now = Instant::now();
        let known: Vec<_> = (100..110).map(node).collect();
        let mut lookup = Lookup::new(TARGET, &known, now);
        assert_eq!(asked(&mut lookup, now), [100, 101, 102, 103]);
        assert!(!lookup.is_over(now));
        // Nearer ones are asked before those that were known.
        let nearer: Vec<_> = (10..20).map(node).collect();
        lookup.answered(node(100).addr, node(100).id, token(), &nearer);
        assert_eq!(asked(&mut lookup, now), [10]);
        lookup.is_slow(node(101).addr);
        lookup.failed(node(102).addr);
        assert_eq!(asked(&mut lookup, now), [11, 12]);
        for number in 10..18 {
            lookup.answered(node(number).addr, node(number).id, token(), &nearer);
            asked(&mut lookup, now);
        }
        assert!(lookup.is_over(now), "the eight nearest answered");
        let announced: Vec<_> = lookup.to_announce().into_iter().map(|(addr, _)| addr).collect();
        assert_eq!(announced, (10..18).map(|number| node(number).addr).collect::<Vec<_>>());
    }

    #[test]
    fn of_a_small_network_all_are_asked_and_the_slow_waited_for() {
        let now = Instant::now();
        let mut lookup = Lookup::new(TARGET, &[node(1), node(2)], now);
        assert_eq!(asked(&mut lookup, now), [1, 2]);
        lookup.answered(node(1).addr, node(1).id, token(), &[]);
        lookup.is_slow(node(2).addr);
        assert!(!lookup.is_over(now));
        lookup.answered(node(2).addr, node(2).id, None, &[]);
        assert!(lookup.is_over(now));
        assert_eq!(lookup.to_announce().len(), 1, "who gave no token isn't announced to");
        assert!(Lookup::new(TARGET, &[], now).is_over(now));
    }

    #[test]
    fn a_name_that_doesnt_fit_its_address_doesnt_count() {
        let now = Instant::now();
        let liar =
            |number: u8| Contact { id: node(number).id, addr: SocketAddr::from(([9, number, 0, 1], 1)) };
        let liars: Vec<_> = (1..200).map(liar).collect();
        let mut lookup = Lookup::new(TARGET, &liars, now);
        lookup.heard_of(&[node(200)]);
        assert_eq!(lookup.candidates.len(), MISFITS + 1);
        assert_eq!(lookup.next(now), Some(node(200).addr), "first whose name fits");
        lookup.answered(node(200).addr, node(200).id, token(), &[]);
        let mut asked = 0;
        while let Some(addr) = lookup.next(now) {
            asked += 1;
            let liar = liars.iter().find(|liar| liar.addr == addr).unwrap();
            lookup.answered(addr, liar.id, token(), &liars);
        }
        assert!(lookup.is_over(now));
        assert_eq!(lookup.to_announce(), [(node(200).addr, token().unwrap())]);
        assert_eq!((asked, lookup.heard()), (MISFITS_ASKED, MISFITS_ASKED + 1));
    }

    #[test]
    fn of_one_network_one_is_asked_and_by_one_name() {
        let now = Instant::now();
        let mut lookup = Lookup::new(TARGET, &[], now);
        for host in 1..=200 {
            let addr = SocketAddr::from(([9, 9, 9, host], 1));
            lookup.heard_of(&[Contact { id: node(host).id, addr }, Contact { id: node(0).id, addr }]);
        }
        assert_eq!(lookup.candidates.len(), 1);
    }

    #[test]
    fn an_entry_comes_first_and_takes_its_place_by_its_name() {
        let now = Instant::now();
        let mut lookup = Lookup::new(TARGET, &[node(5)], now);
        lookup.enter_by(&[node(50).addr]);
        assert_eq!(asked(&mut lookup, now), [50, 5]);
        lookup.answered(node(50).addr, node(50).id, token(), &[node(6)]);
        let order: Vec<_> = lookup.candidates.iter().map(|candidate| candidate.addr).collect();
        assert_eq!(order, [node(5).addr, node(6).addr, node(50).addr]);
    }

    #[test]
    fn who_is_led_on_and_on_stops() {
        let now = Instant::now();
        let mut lookup = Lookup::new(TARGET, &[], now);
        let node = |number: u32| {
            let mut id = [0xff; LEN];
            id[..4].copy_from_slice(&(u32::MAX - number).to_be_bytes());
            Contact { id: NodeId(id), addr: SocketAddr::from(([10, 0, 0, 0], number as u16)) }
        };
        lookup.heard_of(&[node(1)]);
        let mut number = 1;
        while lookup.next(now).is_some() {
            let nearer: Vec<_> = (1..=8).map(|step| node(number + step)).collect();
            lookup.answered(node(number).addr, node(number).id, token(), &nearer);
            number += 8;
            assert!(lookup.candidates.len() <= KEPT + 1);
        }
        assert!(lookup.asked() <= ASKED);
        let mut lookup = Lookup::new(TARGET, &[node(1)], now);
        lookup.next(now);
        assert!(!lookup.is_over(now) && lookup.is_over(now + LASTS));
        assert_eq!(lookup.next(now + LASTS), None);
    }

    proptest! {
        /// Whatever is answered, a walk ends, asks nobody twice, and no more than it may.
        #[test]
        fn a_walk_ends(
            start in proptest::collection::vec(any::<u8>(), 1..20),
            answers in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..400),
        ) {
            let now = Instant::now();
            let known: Vec<_> = start.into_iter().map(node).collect();
            let mut lookup = Lookup::new(TARGET, &known, now);
            let (mut asked, mut open) = (HashSet::new(), Vec::new());
            for (how, nodes) in answers {
                while let Some(addr) = lookup.next(now) {
                    prop_assert!(asked.insert(addr));
                    open.push(addr);
                }
                if open.is_empty() {
                    break;
                }
                let from = open[usize::from(how) % open.len()];
                let nodes: Vec<_> = nodes.into_iter().map(node).collect();
                match how % 4 {
                    0 => lookup.is_slow(from),
                    1 => {
                        lookup.failed(from);
                        open.retain(|addr| *addr != from);
                    }
                    _ => {
                        lookup.answered(from, node(how).id, None, &nodes);
                        open.retain(|addr| *addr != from);
                    }
                }
                prop_assert!(lookup.candidates.is_sorted_by_key(|candidate| candidate.distance));
            }
            for addr in open {
                lookup.failed(addr);
            }
            while let Some(addr) = lookup.next(now) {
                prop_assert!(asked.insert(addr));
                lookup.failed(addr);
            }
            prop_assert!(lookup.is_over(now));
            prop_assert!(asked.len() == lookup.asked() && asked.len() <= ASKED);
        }
    }
}
