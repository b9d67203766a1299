//! The peers of one torrent that we know the address of: whom to dial next, and when again. Pure.
//!
//! Parts: [`PeerBook`], a bounded table of addresses with what became of each; [`DialLimits`].
//!
//! Flow: discovery adds addresses ([`PeerBook::add`]); after each event the torrent's owner asks
//! [`PeerBook::next_dials`], dials, and reports every outcome: [`PeerBook::connected`] or [`PeerBook::failed`],
//! later [`PeerBook::disconnected`]. [`PeerBook::next_wakeup`] says when a pause ends.
//!
//! Addresses come from strangers. So the table is bounded, the worst is thrown out first, and what a tracker
//! named outlives what a peer claimed. Only those the user named stay whatever happens, and are tried at least
//! every [`NAMED_RETRY_MAX`].
//!
//! Deliberately not here: dialling, the sessions, and the addresses of incoming connections, whose ports say
//! nothing of where the peer listens.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::discovery::{PeerSource, canonical_peer, usable_peer};
use crate::net::filter::Filter;
use crate::peer::pex::{PexFlags, PexPeer};
use crate::sync::timeouts::{PEER_RETRY_FIRST, PEER_RETRY_MAX};

/// Addresses kept for one torrent. Ten times what is ever connected leaves plenty to choose from in the largest
/// swarm, at some 200 KB.
pub const MAX_KNOWN: usize = 2000;
/// Longest pause between two tries of a peer that the user named: they expect it to be there, and wait.
pub const NAMED_RETRY_MAX: Duration = Duration::from_secs(10);
/// How often a peer that has delivered is tried again at the second pause before pauses grow: it restarts, or our line was
/// away for some seconds, and a reader waits.
const USEFUL_TRIES: u32 = 6;
/// Banned addresses kept; the oldest is forgotten first. A ban needs a bad piece, which needs a real peer.
const MAX_BANNED: usize = 4096;
/// Our own addresses kept: a machine has a handful, each with one port.
const MAX_OWN: usize = 64;

/// For so long after our address has changed…
const MOVING: Duration = Duration::from_secs(10);
/// …no pause is longer: routes come some time after addresses.
const MOVING_PAUSE: Duration = Duration::from_millis(500);
/// Hosts with addresses of both families that are kept as one peer: the user names a handful.
const MAX_OTHERS: usize = 256;

/// How a peer is best dialled, as far as the book knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hints {
    /// Its address in the other family: tried as well if the first takes long.
    pub other: Option<SocketAddr>,
    /// The last dial came to nothing, or it left.
    pub failed: bool,
    /// It speaks uTP, others say.
    pub utp: bool,
    /// It prefers encryption, others say.
    pub encryption: bool,
    /// It dials us at this moment (BEP 55).
    pub punch: bool,
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialLimits {
    /// Dials under way at once: enough that the dead ones don't matter, few enough for a home router.
    pub dials: usize,
    /// Connections, dials under way included.
    pub connected: usize,
}

impl Default for DialLimits {
    fn default() -> Self {
        Self { dials: 30, connected: 80 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not to be dialled before this moment.
    Idle {
        not_before: Instant,
    },
    Dialing,
    Connected,
}

#[derive(Debug, Clone)]
struct Entry {
    source: PeerSource,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// It gave us something once.
    useful: bool,
    /// When it was last found not to be worth it.
    failed_at: Option<Instant>,
    /// What others say of it (BEP 11).
    flags: PexFlags,
    /// Where else it is, in the other family of addresses.
    other: Option<SocketAddr>,
    /// Order of arrival.
    number: u64,
}

/// Whether the user named the peer.
pub(super) fn named(source: PeerSource) -> bool {
    matches!(source, PeerSource::CommandLine | PeerSource::Magnet)
}

/// Whether the source shows that the peer is alive: it spoke itself.
fn alive(source: PeerSource) -> bool {
    matches!(source, PeerSource::Lsd | PeerSource::Incoming)
}

/// How much an address of this source is worth before it was tried; less is better. Incoming and local ones
/// exist; trackers name who announced; the DHT and, most of all, other peers repeat what they were told.
fn rank(source: PeerSource) -> u8 {
    match source {
        PeerSource::CommandLine => 0,
        PeerSource::Magnet => 1,
        PeerSource::Lsd => 2,
        PeerSource::Incoming => 3,
        PeerSource::Tracker => 4,
        PeerSource::Dht => 5,
        PeerSource::Pex => 6,
    }
}

impl Entry {
    /// Notes a failure and begins the pause after it, which is stretched or cut by this factor.
    fn fail(&mut self, now: Instant, factor: f64) {
        let failures = if self.useful && self.failures > 1 {
            self.failures.saturating_sub(USEFUL_TRIES).max(1)
        } else {
            self.failures
        };
        let doubled = PEER_RETRY_FIRST.saturating_mul(1 << failures.min(16));
        let longest = if named(self.source) { NAMED_RETRY_MAX } else { PEER_RETRY_MAX };
        let pause = doubled.min(longest).mul_f64(factor);
        let pause = if named(self.source) { pause.min(longest) } else { pause };
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.state = State::Idle { not_before: now + pause };
    }

    /// What goes first when there is no room, the largest first: what failed most, then what nobody vouches for.
    fn badness(&self) -> (u32, bool, u8, Reverse<u64>) {
        (self.failures, !self.useful, rank(self.source), Reverse(self.number))
    }
}

/// The peers of one torrent by the address where they listen.
#[derive(Debug, Clone, Default)]
pub struct PeerBook {
    entries: HashMap<SocketAddr, Entry>,
    /// Addresses that are never dialled, whoever names them.
    filter: Arc<Filter>,
    next_number: u64,
    /// When our address last changed.
    moved: Option<Instant>,
    /// What pauses are stretched by; without one they aren't.
    jitter: Option<u64>,
    /// Of hosts with addresses of both families, by which they stand in the table, by the other.
    others: HashMap<SocketAddr, SocketAddr>,
    own: HashSet<SocketAddr>,
    banned: HashSet<Banned>,
    /// In the order of the bans.
    ban_order: VecDeque<Banned>,
}

/// What a ban is for: on loopback, where every test swarm lives, one address is many peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Banned {
    Ip(IpAddr),
    Loopback(SocketAddr),
}

fn banned_key(addr: SocketAddr) -> Banned {
    let addr = canonical_peer(addr);
    if addr.ip().is_loopback() { Banned::Loopback(addr) } else { Banned::Ip(addr.ip()) }
}

impl PeerBook {
    /// An empty one that takes in nothing that the filter blocks.
    pub fn new(filter: Arc<Filter>) -> Self {
        Self { filter, ..Self::default() }
    }

    /// The same, whose pauses are up to a quarter shorter or longer than they would be, each by its own: when a line comes
    /// back, not all who were on it are dialled in one second.
    pub fn with_jitter(self, seed: u64) -> Self {
        Self { jitter: Some(seed), ..self }
    }

    fn factor(&self, addr: SocketAddr, failures: u32) -> f64 {
        let Some(seed) = self.jitter else { return 1.0 };
        let mut hasher = DefaultHasher::new();
        (seed, addr, failures).hash(&mut hasher);
        0.75 + (hasher.finish() % 1000) as f64 / 2000.0
    }

    /// As what an address stands in the table.
    fn at(&self, addr: SocketAddr) -> SocketAddr {
        let addr = canonical_peer(addr);
        self.others.get(&addr).copied().unwrap_or(addr)
    }

    fn entry(&mut self, addr: SocketAddr) -> Option<&mut Entry> {
        self.entries.get_mut(&self.at(addr))
    }

    /// Takes in a host that the user named, with all of its addresses. Of both families one each is one peer, IPv6 first;
    /// what is left are others.
    pub fn add_host(&mut self, addrs: &[SocketAddr], source: PeerSource, now: Instant) {
        let of = |v6| addrs.iter().copied().map(canonical_peer).find(|addr| addr.is_ipv6() == v6);
        if let (Some(first), Some(other)) = (of(true), of(false))
            && self.others.len() < MAX_OTHERS
            && usable_peer(other)
            && !(self.is_self(other) || self.is_banned(other) || self.is_filtered(other))
            && !self.entries.contains_key(&other)
        {
            self.add(first, source, now);
            if let Some(entry) = self.entries.get_mut(&first) {
                entry.other = Some(other);
                self.others.insert(other, first);
            }
        }
        for addr in addrs {
            self.add(*addr, source, now);
        }
    }

    /// Takes in an address that a peer told of, with what it says of it.
    pub fn add_told(&mut self, peer: PexPeer, now: Instant) {
        self.add(peer.addr, PeerSource::Pex, now);
        if let Some(entry) = self.entry(peer.addr) {
            entry.flags = peer.flags;
        }
    }

    /// Cuts the pause that has just begun, if our address changed a moment ago.
    fn shorten(&mut self, addr: SocketAddr, now: Instant) {
        let just = self.moved.is_some_and(|at| now.saturating_duration_since(at) < MOVING);
        if let Some(entry) = self.entry(addr)
            && let State::Idle { not_before } = &mut entry.state
            && just
        {
            *not_before = (*not_before).min(now + MOVING_PAUSE);
        }
    }

    /// What others say of an address.
    pub fn flags(&self, addr: SocketAddr) -> PexFlags {
        self.entries.get(&self.at(addr)).map_or_else(PexFlags::default, |entry| entry.flags)
    }

    /// How the peer with this address is dialled.
    pub fn hints(&self, addr: SocketAddr) -> Hints {
        let entry = self.entries.get(&self.at(addr));
        entry.map_or_else(Hints::default, |entry| Hints {
            other: entry.other,
            failed: entry.failures > 0,
            utp: entry.flags.has(PexFlags::UTP),
            encryption: entry.flags.has(PexFlags::ENCRYPTION),
            punch: false,
        })
    }

    /// Takes in an address; it may be dialled from now on. True when it is new. Refused are addresses that can't
    /// be dialled, our own, banned and filtered ones, and, when the book is full, ones no better than the worst in it. A known
    /// one gets the better of both sources; a sign of life ends its pause.
    pub fn add(&mut self, addr: SocketAddr, source: PeerSource, now: Instant) -> bool {
        let addr = self.at(addr);
        if !usable_peer(addr) || self.is_self(addr) || self.is_banned(addr) || self.is_filtered(addr) {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(&addr) {
            if rank(source) < rank(entry.source) {
                entry.source = source;
            }
            if let State::Idle { not_before } = &mut entry.state {
                let pause = if named(source) { NAMED_RETRY_MAX } else { PEER_RETRY_FIRST };
                if alive(source) || named(source) {
                    let soonest = entry.failed_at.map_or(now, |at| at + pause);
                    *not_before = soonest.min(*not_before);
                }
            }
            return false;
        }
        let number = self.next_number;
        let entry = Entry {
            source,
            state: State::Idle { not_before: now },
            failures: 0,
            useful: false,
            failed_at: None,
            flags: PexFlags::default(),
            other: None,
            number,
        };
        if self.entries.len() >= MAX_KNOWN && !self.make_room(&entry) {
            return false;
        }
        self.next_number += 1;
        self.entries.insert(addr, entry);
        true
    }

    /// Throws out the worst address if it is worse than the new one.
    fn make_room(&mut self, new: &Entry) -> bool {
        let idle = self.entries.iter().filter(|(_, e)| matches!(e.state, State::Idle { .. }));
        let worst = idle
            .filter(|(_, e)| !named(e.source))
            .max_by_key(|(_, e)| e.badness())
            .map(|(addr, e)| (*addr, e.badness()));
        match worst {
            // Of two that are equal but for their age the older one stays, or a flood would wash all away.
            Some((addr, (failures, useless, rank, _)))
                if named(new.source) || {
                    let (new_failures, new_useless, new_rank, _) = new.badness();
                    (failures, useless, rank) > (new_failures, new_useless, new_rank)
                } =>
            {
                self.entries.remove(&addr);
                true
            }
            _ => false,
        }
    }

    /// Whom to dial now, best first; each counts as being dialled until its outcome is reported. `in_progress`
    /// are the dials under way, `connected` the connections, incoming ones included.
    pub fn next_dials(
        &mut self,
        now: Instant,
        in_progress: usize,
        connected: usize,
        limits: DialLimits,
    ) -> Vec<SocketAddr> {
        let room = limits.connected.saturating_sub(in_progress.saturating_add(connected));
        let room = room.min(limits.dials.saturating_sub(in_progress));
        if room == 0 {
            return Vec::new();
        }
        let ready = self.entries.iter().filter(|(_, e)| match e.state {
            State::Idle { not_before } => not_before <= now,
            State::Dialing | State::Connected => false,
        });
        let mut ready: Vec<_> = ready
            .map(|(&addr, e)| ((!named(e.source), !e.useful, e.failures, rank(e.source), e.number), addr))
            .collect();
        ready.sort_unstable();
        ready.truncate(room);
        let chosen: Vec<SocketAddr> = ready.into_iter().map(|(_, addr)| addr).collect();
        for addr in &chosen {
            if let Some(entry) = self.entries.get_mut(addr) {
                entry.state = State::Dialing;
            }
        }
        chosen
    }

    /// Whether somebody may be dialled now, if there is room.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.entries.values().any(|e| matches!(e.state, State::Idle { not_before } if not_before <= now))
    }

    /// An address is dialled out of turn; false when it isn't known, or is dialled or connected already.
    pub fn begin(&mut self, addr: SocketAddr) -> bool {
        let idle = self.entry(addr).filter(|entry| matches!(entry.state, State::Idle { .. }));
        idle.map(|entry| entry.state = State::Dialing).is_some()
    }

    /// One that was chosen isn't dialled after all.
    pub fn put_back(&mut self, addr: SocketAddr, now: Instant) {
        if let Some(entry) = self.entry(addr) {
            entry.state = State::Idle { not_before: now };
        }
    }

    /// A connection to this address stands: the handshake was right. Ignored for unknown addresses.
    pub fn connected(&mut self, addr: SocketAddr) {
        if let Some(entry) = self.entry(addr) {
            entry.state = State::Connected;
        }
    }

    /// A dial failed, in connecting or in the handshake: a pause begins, twice as long at each failure. Ignored
    /// for unknown addresses and for those that are connected by another way.
    pub fn failed(&mut self, addr: SocketAddr, now: Instant) {
        let failures = self.entries.get(&self.at(addr)).map_or(0, |entry| entry.failures);
        let factor = self.factor(addr, failures);
        if let Some(entry) = self.entry(addr)
            && entry.state != State::Connected
        {
            entry.fail(now, factor);
            self.shorten(addr, now);
        }
    }

    /// A connection ended. A peer that was `useful` is tried again soon; for another it counts as a failure.
    pub fn disconnected(&mut self, addr: SocketAddr, now: Instant, useful: bool) {
        let failures = self.entries.get(&self.at(addr)).map_or(0, |entry| entry.failures);
        let factor = self.factor(addr, failures);
        if let Some(entry) = self.entry(addr) {
            entry.useful |= useful;
            if useful {
                entry.failures = 0;
            }
            entry.fail(now, factor);
            self.shorten(addr, now);
        }
    }

    /// Our address has changed: all pauses end, and for a moment those that begin are short, since connections break now
    /// that are worth making anew.
    pub fn moved(&mut self, now: Instant) {
        self.moved = Some(now);
        for entry in self.entries.values_mut() {
            if let State::Idle { not_before } = &mut entry.state {
                *not_before = now.min(*not_before);
            }
        }
    }

    /// Bans a peer that proved bad: every port of its IP address, on loopback this one only. Its addresses are
    /// forgotten and refused from now on, also those that the user named.
    pub fn ban(&mut self, addr: SocketAddr) {
        let key = banned_key(addr);
        self.entries.retain(|addr, _| banned_key(*addr) != key);
        if self.banned.insert(key) {
            self.ban_order.push_back(key);
        }
        while self.ban_order.len() > MAX_BANNED {
            if let Some(oldest) = self.ban_order.pop_front() {
                self.banned.remove(&oldest);
            }
        }
    }

    /// Whether the peer was banned.
    pub fn is_banned(&self, addr: SocketAddr) -> bool {
        self.banned.contains(&banned_key(addr))
    }

    /// Whether the user's list has it.
    pub fn is_filtered(&self, addr: SocketAddr) -> bool {
        self.filter.blocks(addr.ip())
    }

    /// Notes an address as our own, after a handshake with our own peer id or from what we listen on. It is
    /// forgotten and refused from now on.
    pub fn add_self(&mut self, addr: SocketAddr) {
        let addr = canonical_peer(addr);
        self.entries.remove(&addr);
        if self.own.len() < MAX_OWN {
            self.own.insert(addr);
        }
    }

    /// Whether the address is known to be our own.
    pub fn is_self(&self, addr: SocketAddr) -> bool {
        self.own.contains(&canonical_peer(addr))
    }

    /// How long until the next pause ends, and with it [`PeerBook::next_dials`] may have more. What may be
    /// dialled already isn't counted: it waits for room, and room is an event.
    pub fn next_wakeup(&self, now: Instant) -> Option<Duration> {
        let pauses = self.entries.values().filter_map(|e| match e.state {
            State::Idle { not_before } if not_before > now => Some(not_before - now),
            _ => None,
        });
        pauses.min()
    }

    /// Addresses known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no address is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets every address whose source isn't to be kept.
    pub fn retain(&mut self, keep: impl Fn(PeerSource) -> bool) {
        self.entries.retain(|_, entry| keep(entry.source));
    }

    /// Who named this address; `None` for unknown ones.
    pub fn source(&self, addr: SocketAddr) -> Option<PeerSource> {
        self.entries.get(&self.at(addr)).map(|e| e.source)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const LIMITS: DialLimits = DialLimits { dials: 30, connected: 80 };

    fn addr(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }
    /// The n-th of many addresses.
    fn nth(n: u32) -> SocketAddr {
        SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 6881)
    }
    fn book(n: u32, source: PeerSource, now: Instant) -> PeerBook {
        let mut book = PeerBook::new(Arc::default());
        (0..n).for_each(|i| assert!(book.add(nth(i), source, now)));
        book
    }

    #[test]
    fn addresses_that_are_no_peers_are_refused() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default());
        for bad in ["1.2.3.4:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1"] {
            assert!(!book.add(addr(bad), PeerSource::Tracker, now), "{bad}");
        }
        assert!(book.add(addr("[::ffff:1.2.3.4]:5"), PeerSource::Tracker, now));
        assert!(!book.add(addr("1.2.3.4:5"), PeerSource::Tracker, now), "the same one");
        assert_eq!(book.next_dials(now, 0, 0, LIMITS), [addr("1.2.3.4:5")]);
    }

    #[test]
    fn pauses_are_spread() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default()).with_jitter(7);
        let pauses: HashSet<Duration> = (0..100)
            .map(|n| {
                book.add(nth(n), PeerSource::Tracker, now);
                book.next_dials(now, 0, 0, LIMITS);
                book.failed(nth(n), now);
                let State::Idle { not_before } = book.entries[&nth(n)].state else { panic!("it waits") };
                not_before - now
            })
            .collect();
        assert!(pauses.len() > 50, "{}", pauses.len());
        let (least, most) = (PEER_RETRY_FIRST.mul_f64(0.75), PEER_RETRY_FIRST.mul_f64(1.25));
        assert!(pauses.iter().all(|pause| (least..=most).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn pauses_end_when_our_address_changes() {
        let now = Instant::now();
        let mut book = book(2, PeerSource::Tracker, now);
        for _ in 0..5 {
            book.failed(nth(0), now);
        }
        assert!(book.next_wakeup(now).unwrap() > 10 * S);
        book.moved(now);
        assert_eq!(book.next_dials(now, 0, 0, LIMITS).len(), 2);
        book.failed(nth(0), now + S);
        assert_eq!(book.next_wakeup(now + S), Some(MOVING_PAUSE));
        book.failed(nth(1), now + MOVING);
        let pauses = book.entries.values().map(|e| e.state).collect::<Vec<_>>();
        assert!(pauses.contains(&State::Idle { not_before: now + MOVING + PEER_RETRY_FIRST }), "{pauses:?}");
    }

    #[test]
    fn a_host_with_both_families_is_one_peer() {
        let now = Instant::now();
        let (v4, v6) = (addr("1.2.3.4:5"), addr("[2001:db8::1]:5"));
        let mut book = PeerBook::new(Arc::default());
        book.add_host(&[v4, v6, addr("1.2.3.9:5")], PeerSource::CommandLine, now);
        // Whoever else names the one or the other names the same.
        assert!(!book.add(v4, PeerSource::Pex, now));
        assert_eq!(book.next_dials(now, 0, 0, LIMITS), [v6, addr("1.2.3.9:5")]);
        assert_eq!(book.hints(v6), Hints { other: Some(v4), ..Hints::default() });
        book.connected(v4);
        book.failed(v6, now);
        assert_eq!(book.next_wakeup(now), None, "it is connected");
        book.disconnected(v4, now, true);
        assert_eq!(book.next_dials(now + 20 * S, 0, 0, LIMITS), [v6]);
        // Of one family each address is a peer.
        let mut book = PeerBook::new(Arc::default());
        book.add_host(&[v4, addr("1.2.3.5:5")], PeerSource::Magnet, now);
        assert_eq!(book.len(), 2);
        assert!(!book.hints(v4).failed);
    }

    #[test]
    fn what_others_say_of_a_peer_is_kept() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default());
        let flags = PexFlags::UTP.with(PexFlags::ENCRYPTION);
        book.add(nth(1), PeerSource::Tracker, now);
        book.add_told(PexPeer { addr: nth(1), flags }, now);
        assert_eq!((book.flags(nth(1)), book.source(nth(1))), (flags, Some(PeerSource::Tracker)));
        book.next_dials(now, 0, 0, LIMITS);
        book.failed(nth(1), now);
        assert_eq!(
            book.hints(nth(1)),
            Hints { failed: true, utp: true, encryption: true, ..Hints::default() }
        );
        assert_eq!(book.hints(nth(2)), Hints::default());
    }

    #[test]
    fn what_the_user_filters_is_refused_whoever_names_it() {
        let now = Instant::now();
        let (filter, _) = Filter::read(&b"1.2.3.0/24\n2001:db8::/32\n"[..]).unwrap();
        let mut book = PeerBook::new(Arc::new(filter));
        for source in [PeerSource::CommandLine, PeerSource::Tracker, PeerSource::Pex, PeerSource::Lsd] {
            for bad in ["1.2.3.4:5", "[::ffff:1.2.3.4]:5", "[2001:db8::1]:5"] {
                assert!(!book.add(addr(bad), source, now), "{bad}");
                assert!(book.is_filtered(addr(bad)), "{bad}");
            }
        }
        assert!(book.add(addr("1.2.4.4:5"), PeerSource::Pex, now));
    }

    #[test]
    fn dials_keep_to_the_limits() {
        let now = Instant::now();
        #[rustfmt::skip]
        let rows = [(0, 0, 30), (10, 0, 20), (30, 0, 0), (40, 0, 0), (0, 80, 0), (0, 100, 0), (0, 70, 10), (5, 70, 5)];
        for (in_progress, connected, wanted) in rows {
            let mut book = book(100, PeerSource::Tracker, now);
            let got = book.next_dials(now, in_progress, connected, LIMITS).len();
            assert_eq!(got, wanted, "{in_progress} dials, {connected} connections");
        }
        let mut book = book(100, PeerSource::Tracker, now);
        let mut all: Vec<_> = (0..5).flat_map(|_| book.next_dials(now, 0, 0, LIMITS)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100, "nobody twice");
    }

    #[test]
    fn the_best_are_dialled_first() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default());
        let order = [
            ("10.0.0.1:1", PeerSource::CommandLine),
            ("10.0.0.2:1", PeerSource::Magnet),
            ("10.0.0.3:1", PeerSource::Dht),
            ("10.0.0.4:1", PeerSource::Lsd),
            ("10.0.0.5:1", PeerSource::Tracker),
            ("10.0.0.6:1", PeerSource::Pex),
            ("10.0.0.7:1", PeerSource::Tracker),
        ];
        for (a, source) in order.iter().rev() {
            book.add(addr(a), *source, now);
        }
        // One from the DHT was useful, one from a tracker failed.
        book.connected(addr("10.0.0.3:1"));
        book.disconnected(addr("10.0.0.3:1"), now, true);
        book.failed(addr("10.0.0.7:1"), now);
        let later = now + S * 2;
        let dials = book.next_dials(later, 0, 0, LIMITS);
        let wanted: Vec<_> = order.iter().map(|(a, _)| addr(a)).collect();
        // Since it went, the useful one counts as failed once, and still comes before the untried.
        assert_eq!(dials, wanted);
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        for (source, pauses) in [
            (PeerSource::Tracker, &[2u32, 4, 8, 16, 32, 64, 128, 256, 300, 300][..]),
            (PeerSource::CommandLine, &[2, 4, 8, 10, 10, 10]),
            (PeerSource::Magnet, &[2, 4, 8, 10, 10, 10]),
        ] {
            let mut now = Instant::now();
            let mut book = book(1, source, now);
            for pause in pauses {
                assert_eq!(book.next_wakeup(now), None, "it may be dialled now");
                assert_eq!(book.next_dials(now, 0, 0, LIMITS).len(), 1);
                assert_eq!(book.next_wakeup(now), None, "it is being dialled");
                book.failed(nth(0), now);
                assert_eq!(book.next_wakeup(now), Some(S * *pause));
                now += S * *pause;
                assert_eq!(book.next_dials(now - Duration::from_millis(1), 0, 0, LIMITS), []);
            }
        }
    }

    #[test]
    fn outcomes_lead_to_what_they_should() {
        let now = Instant::now();
        let mut book = book(1, PeerSource::Tracker, now);
        book.next_dials(now, 0, 0, LIMITS);
        book.connected(nth(0));
        book.failed(nth(0), now);
        assert_eq!(book.next_dials(now + S * 1000, 0, 0, LIMITS), [], "connected by another way");
        for _ in 0..5 {
            book.disconnected(nth(0), now, false);
        }
        assert_eq!(book.next_wakeup(now), Some(S * 32), "useless ones are failures");
        book.disconnected(nth(0), now, true);
        assert_eq!(book.next_wakeup(now), Some(S * 2), "useful ones are tried soon");
        assert_eq!(book.next_dials(now + S * 2, 0, 0, LIMITS).len(), 1);
        // Away for half a minute, then for long.
        let mut at = now + S * 2;
        let pauses = (0..10).map(|_| {
            book.next_dials(at, 0, 0, LIMITS);
            book.failed(nth(0), at);
            let pause = book.next_wakeup(at).unwrap();
            at += pause;
            pause.as_secs()
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [4, 4, 4, 4, 4, 4, 4, 8, 16, 32]);
        // Outcomes of strangers are ignored.
        book.connected(nth(7));
        book.failed(nth(7), now);
        book.disconnected(nth(7), now, true);
        assert_eq!(book.len(), 1);
    }

    #[test]
    fn a_sign_of_life_ends_a_pause() {
        let now = Instant::now();
        for (source, wanted) in [
            (PeerSource::Tracker, 256),
            (PeerSource::Pex, 256),
            (PeerSource::Lsd, 2),
            (PeerSource::Incoming, 2),
            (PeerSource::CommandLine, 10),
        ] {
            let mut book = book(1, PeerSource::Dht, now);
            (0..8).for_each(|_| book.failed(nth(0), now));
            assert!(!book.add(nth(0), source, now));
            assert_eq!(book.next_wakeup(now), Some(S * wanted), "{source:?}");
        }
    }

    #[test]
    fn bans_hold_for_an_ip_and_on_loopback_for_one_peer() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default());
        for a in ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "127.0.0.1:1", "127.0.0.1:2"] {
            book.add(addr(a), PeerSource::CommandLine, now);
        }
        book.ban(addr("[::ffff:10.0.0.1]:7"));
        book.ban(addr("127.0.0.1:1"));
        let mut left = book.next_dials(now, 0, 0, LIMITS);
        left.sort_unstable();
        assert_eq!(left, [addr("10.0.0.2:1"), addr("127.0.0.1:2")]);
        assert!(book.is_banned(addr("10.0.0.1:9")));
        assert!(!book.is_banned(addr("127.0.0.1:2")));
        assert!(!book.add(addr("10.0.0.1:3"), PeerSource::CommandLine, now));
        (0..10_000).for_each(|n| book.ban(nth(n)));
        assert_eq!((book.banned.len(), book.ban_order.len()), (MAX_BANNED, MAX_BANNED));
    }

    #[test]
    fn our_own_address_is_recognised() {
        let now = Instant::now();
        let mut book = book(2, PeerSource::Tracker, now);
        book.add_self(nth(0));
        assert!(book.is_self(nth(0)));
        assert!(!book.add(nth(0), PeerSource::Tracker, now));
        assert_eq!(book.next_dials(now, 0, 0, LIMITS), [nth(1)]);
        (0..10_000).for_each(|n| book.add_self(nth(n)));
        assert_eq!(book.own.len(), MAX_OWN);
    }

    #[test]
    fn a_full_book_throws_out_the_worst() {
        let now = Instant::now();
        let full = MAX_KNOWN as u32;
        let mut book = book(full, PeerSource::Dht, now);
        let new = |n| nth(full + n);
        assert!(!book.add(new(0), PeerSource::Pex, now), "no better than any in it");
        assert!(!book.add(new(0), PeerSource::Dht, now), "the older stays");
        assert!(book.add(new(1), PeerSource::Tracker, now));
        book.failed(nth(5), now);
        assert!(book.add(new(2), PeerSource::Pex, now), "in place of one that failed");
        assert_eq!(book.source(nth(5)), None);
        assert_eq!(book.len(), MAX_KNOWN);
    }

    #[test]
    fn those_the_user_named_and_those_in_use_are_never_thrown_out() {
        let now = Instant::now();
        let mut book = PeerBook::new(Arc::default());
        for n in 0..10 {
            book.add(nth(n), PeerSource::CommandLine, now);
            book.failed(nth(n), now);
        }
        for n in 10..20 {
            book.add(nth(n), PeerSource::Pex, now);
            book.connected(nth(n));
        }
        for n in 20..10_000 {
            book.add(nth(n), PeerSource::Tracker, now);
        }
        assert_eq!(book.len(), MAX_KNOWN);
        assert!((0..20).all(|n| book.source(nth(n)).is_some()));
        assert!(book.add(nth(20_000), PeerSource::Magnet, now), "there is room for the user's");
    }
}
