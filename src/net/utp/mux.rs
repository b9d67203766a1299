//! All uTP connections of one socket: which packet belongs to which, who may open one, who is told that there is none.
//! Pure: `now` is an argument, packets go out through what is passed in, random numbers come from outside.
//!
//! A connection is found by the other side's address and the number that its packets carry. A SYN makes one that counts as
//! *half-open* until its sender has shown that it gets our answers; only then is it worth an [`Event::Opened`]. Of half-open ones
//! there are [`Limits::half_open`], and [`Limits::per_address`] for one address, which can be invented; when there are too
//! many a SYN is dropped, to be sent again, unless another has been half-open for long.
//!
//! Who sends something else that belongs to no connection is told so by a RESET, so that it needn't find out by
//! time-outs: never in answer to a RESET, in no more bytes than it sent, and a bounded number in a second. Strangers whose
//! addresses are filtered get no answer at all.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::{Conn, End, Setup, State};
use super::packet::{Packet, Type};
use super::seq::Seq;
use crate::net::filter::Filter;

/// Bytes of a datagram to an IPv4 address: fits through everything that carries the web, tunnels of tunnels included.
pub const PACKET_V4: usize = 1402;
/// To an IPv6 address, and to who got none of the larger ones: every IPv6 link carries it.
pub const PACKET_NARROW: usize = 1232;
/// Addresses that larger packets don't reach.
const NARROW_KEPT: usize = 256;
/// A half-open connection that has had this long gives its place up: a round trip, and a SYN sent again.
const STALE: Duration = Duration::from_secs(2);

/// Our own number for a connection, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Half-open ones.
    pub half_open: usize,
    /// Half-open ones of one address (of a /64 in IPv6); this machine's may have all.
    pub per_address: usize,
    /// RESETs a second.
    pub resets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, half_open: 256, per_address: 8, resets: 50 }
    }
}

/// What a packet brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    None,
    /// Something happened to this connection: poll it.
    Happened(Key),
    /// As before, and it is one that the other side opened.
    Opened(Key),
}

/// Takes a datagram for an address, or says false when the network takes none just now.
pub type Sender<'a> = dyn FnMut(&[u8], SocketAddr) -> bool + 'a;

struct Entry {
    conn: Conn,
    addr: SocketAddr,
    wake: Option<Instant>,
}

/// The connections of a socket.
pub struct Mux {
    limits: Limits,
    filter: Arc<Filter>,
    numbers: Box<dyn FnMut() -> u16 + Send>,
    epoch: Instant,
    next: u64,
    conns: HashMap<Key, Entry>,
    by_wire: HashMap<(SocketAddr, u16), Key>,
    wakes: BTreeSet<(Instant, Key)>,
    /// Half-open ones, oldest first.
    greeting: VecDeque<(Instant, Key, IpAddr)>,
    narrow: VecDeque<IpAddr>,
    resets: u32,
    resets_since: Instant,
}

/// What counts as one address: who has an IPv6 address has 2⁶⁴.
fn host(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
    }
}

impl Mux {
    /// No connection yet. Who is in `filter` opens none. `numbers` gives random ones.
    pub fn new(
        limits: Limits,
        filter: Arc<Filter>,
        numbers: Box<dyn FnMut() -> u16 + Send>,
        now: Instant,
    ) -> Self {
        Self {
            limits,
            filter,
            numbers,
            epoch: now,
            next: 1,
            conns: HashMap::new(),
            by_wire: HashMap::new(),
            wakes: BTreeSet::new(),
            greeting: VecDeque::new(),
            narrow: VecDeque::new(),
            resets: 0,
            resets_since: now,
        }
    }

    /// How many connections there are, and how many of them are half-open.
    pub fn len(&self) -> (usize, usize) {
        (self.conns.len(), self.greeting.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// A connection.
    pub fn conn(&mut self, key: Key) -> Option<&mut Conn> {
        self.conns.get_mut(&key).map(|entry| &mut entry.conn)
    }

    /// The other side of a connection.
    pub fn addr(&self, key: Key) -> Option<SocketAddr> {
        self.conns.get(&key).map(|entry| entry.addr)
    }

    /// All connections.
    pub fn keys(&self) -> Vec<Key> {
        self.conns.keys().copied().collect()
    }

    fn setup(&self, to: SocketAddr) -> Setup {
        let packet = match to.ip() {
            IpAddr::V4(_) if !self.narrow.contains(&to.ip()) => PACKET_V4,
            _ => PACKET_NARROW,
        };
        Setup { packet, epoch: self.epoch }
    }

    fn insert(&mut self, conn: Conn, addr: SocketAddr) -> Key {
        let key = Key(self.next);
        self.next += 1;
        self.by_wire.insert((addr, conn.receive_id()), key);
        self.conns.insert(key, Entry { conn, addr, wake: None });
        key
    }

    /// Opens a connection; it dials when it is polled. `None` if there are too many.
    pub fn connect(&mut self, to: SocketAddr, now: Instant) -> Option<Key> {
        if self.conns.len() >= self.limits.connections {
            return None;
        }
        // There are 65,536 numbers for each address and a thousand connections.
        let id = (0..16).map(|_| (self.numbers)()).find(|&id| !self.by_wire.contains_key(&(to, id)))?;
        let seq = Seq((self.numbers)());
        let conn = Conn::dial(id, seq, self.setup(to), now);
        Some(self.insert(conn, to))
    }

    /// A datagram came.
    pub fn received(&mut self, bytes: &[u8], from: SocketAddr, now: Instant, send: &mut Sender<'_>) -> Event {
        let Ok(packet) = Packet::decode(bytes) else { return Event::None };
        let found = match packet.kind {
            Type::Syn => self.by_wire.get(&(from, packet.id.wrapping_add(1))).copied(),
            Type::Reset => return self.reset(&packet, from, now),
            _ => self.by_wire.get(&(from, packet.id)).copied(),
        };
        match found.and_then(|key| Some((key, self.conns.get_mut(&key)?))) {
            Some((key, entry)) => {
                let before = entry.conn.state();
                entry.conn.received(&packet, now);
                if before == State::Greeting && entry.conn.state() == State::Open {
                    self.greeting.retain(|(_, other, _)| *other != key);
                    return Event::Opened(key);
                }
                Event::Happened(key)
            }
            None if self.filter.blocks(from.ip()) => Event::None,
            None if packet.kind == Type::Syn => self.syn(&packet, from, now),
            None => {
                self.refuse(&packet, from, now, send);
                Event::None
            }
        }
    }

    /// Some write the number of the packets they got into it, others that of those they send.
    fn reset(&mut self, packet: &Packet<'_>, from: SocketAddr, now: Instant) -> Event {
        for id in [packet.id, packet.id.wrapping_sub(1), packet.id.wrapping_add(1)] {
            if let Some(&key) = self.by_wire.get(&(from, id))
                && let Some(entry) = self.conns.get_mut(&key)
                && (id == packet.id || entry.conn.send_id() == packet.id)
            {
                entry.conn.received(packet, now);
                return Event::Happened(key);
            }
        }
        Event::None
    }

    fn syn(&mut self, syn: &Packet<'_>, from: SocketAddr, now: Instant) -> Event {
        let host = host(from.ip());
        let of_host = || self.greeting.iter().filter(|(.., other)| *other == host).count();
        if self.conns.len() >= self.limits.connections
            || self.by_wire.contains_key(&(from, syn.id.wrapping_add(1)))
            || (!from.ip().is_loopback() && of_host() >= self.limits.per_address)
        {
            return Event::None;
        }
        if self.greeting.len() >= self.limits.half_open {
            match self.greeting.front() {
                Some(&(since, oldest, _)) if now.saturating_duration_since(since) >= STALE => {
                    self.remove(oldest)
                }
                _ => return Event::None,
            }
        }
        let seq = Seq((self.numbers)());
        let conn = Conn::accept(syn, seq, self.setup(from), now);
        let key = self.insert(conn, from);
        self.greeting.push_back((now, key, host));
        Event::Happened(key)
    }

    /// Tells a stranger that it is none of ours.
    fn refuse(&mut self, packet: &Packet<'_>, from: SocketAddr, now: Instant, send: &mut Sender<'_>) {
        if now.saturating_duration_since(self.resets_since) >= Duration::from_secs(1) {
            (self.resets, self.resets_since) = (0, now);
        }
        if self.resets >= self.limits.resets {
            return;
        }
        self.resets += 1;
        let seq = Seq((self.numbers)());
        send(&Packet::reset(packet.id, seq, packet.seq), from);
    }

    /// Polls a connection; what is over is still there, to be read from, until it is removed. `None` if there is none, else
    /// where it is, and whether the network took not everything.
    pub fn poll(&mut self, key: Key, now: Instant, send: &mut Sender<'_>) -> Option<(State, bool)> {
        let entry = self.conns.get_mut(&key)?;
        let addr = entry.addr;
        let next = entry.conn.poll(now, &mut |bytes| send(bytes, addr));
        // Only when the network takes something again is there a point in looking again.
        let wake =
            next.wake.map(|wake| if next.blocked { wake.max(now + Duration::from_millis(1)) } else { wake });
        if wake != entry.wake {
            if let Some(before) = entry.wake.take() {
                self.wakes.remove(&(before, key));
            }
            entry.wake = wake;
            self.wakes.extend(wake.map(|wake| (wake, key)));
        }
        if next.state == State::Ended(End::Narrow) && !self.narrow.contains(&addr.ip()) {
            if self.narrow.len() >= NARROW_KEPT {
                self.narrow.pop_front();
            }
            self.narrow.push_back(addr.ip());
        }
        Some((next.state, next.blocked))
    }

    /// When the first of all connections is to be polled.
    pub fn due(&self) -> Option<Instant> {
        self.wakes.first().map(|(wake, _)| *wake)
    }

    /// A connection whose time has come; it has to be polled.
    pub fn pop_due(&mut self, now: Instant) -> Option<Key> {
        let (wake, key) = self.wakes.first().copied().filter(|(wake, _)| *wake <= now)?;
        self.wakes.remove(&(wake, key));
        if let Some(entry) = self.conns.get_mut(&key) {
            entry.wake = None;
        }
        Some(key)
    }

    /// Gives a connection up at once: the other side is told, once, unless it ended by itself.
    pub fn abort(&mut self, key: Key, send: &mut Sender<'_>) {
        if let Some(entry) = self.conns.get(&key)
            && entry.conn.state() == State::Open
        {
            send(&entry.conn.farewell(), entry.addr);
        }
        self.remove(key);
    }

    /// Forgets a connection.
    pub fn remove(&mut self, key: Key) {
        let Some(entry) = self.conns.remove(&key) else { return };
        self.by_wire.remove(&(entry.addr, entry.conn.receive_id()));
        if let Some(wake) = entry.wake {
            self.wakes.remove(&(wake, key));
        }
        self.greeting.retain(|(_, other, _)| *other != key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn mux(limits: Limits) -> Mux {
        let mut last = 100u16;
        let numbers = Box::new(move || {
            last = last.wrapping_mul(31_421).wrapping_add(6927);
            last
        });
        Mux::new(limits, Arc::default(), numbers, Instant::now())
    }

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 6881))
    }

    /// A packet that says nothing beyond its kind and its numbers.
    fn packet(kind: Type, id: u16, seq: u16, ack: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (seq, ack) = (Seq(seq), Seq(ack));
        Packet { kind, id, stamp: 1, diff: 0, window: 1 << 20, seq, ack, sack: None, payload: &[] }
            .encode(&mut bytes);
        bytes
    }

    /// Hands a datagram over, polls what it concerns, and gives what was sent.
    fn give(mux: &mut Mux, bytes: &[u8], from: SocketAddr, now: Instant) -> (Event, Vec<Vec<u8>>) {
        let mut sent = Vec::new();
        let event = mux.received(bytes, from, now, &mut |bytes, _| {
            sent.push(bytes.to_vec());
            true
        });
        if let Event::Happened(key) | Event::Opened(key) = event {
            mux.poll(key, now, &mut |bytes, _| {
                sent.push(bytes.to_vec());
                true
            });
        }
        (event, sent)
    }

    #[test]
    fn a_syn_is_answered_and_opens_with_what_follows() {
        let mut mux = mux(Limits::default());
        let now = Instant::now();
        let (event, sent) = give(&mut mux, &packet(Type::Syn, 500, 1, 0), addr(1), now);
        let Event::Happened(key) = event else { panic!("{event:?}") };
        let answer = Packet::decode(&sent[0]).unwrap();
        assert_eq!((sent.len(), answer.kind, answer.id, answer.ack), (1, Type::State, 500, Seq(1)));
        assert_eq!(mux.len(), (1, 1));
        // The SYN again: the same answer.
        let (event, sent) = give(&mut mux, &packet(Type::Syn, 500, 1, 0), addr(1), now);
        assert_eq!(event, Event::Happened(key));
        assert_eq!(Packet::decode(&sent[0]).unwrap().seq, answer.seq);
        // Somebody guesses.
        let (event, _) = give(&mut mux, &packet(Type::Data, 501, 2, 77), addr(1), now);
        assert_eq!((event, mux.len()), (Event::Happened(key), (1, 1)));
        let ack = answer.seq.minus(1).0;
        let (event, _) = give(&mut mux, &packet(Type::State, 501, 2, ack), addr(1), now);
        assert_eq!((event, mux.len()), (Event::Opened(key), (1, 0)));
        // Who has the number but not the address has nothing.
        let (event, sent) = give(&mut mux, &packet(Type::Data, 501, 2, ack), addr(2), now);
        assert_eq!(event, Event::None);
        assert_eq!(Packet::decode(&sent[0]).unwrap().kind, Type::Reset);
    }

    #[test]
    fn resets_end_a_connection_under_either_number_and_from_its_address_alone() {
        let now = Instant::now();
        for (from, id_off, ack_off, ends) in
            [(1, 0, 0, true), (1, 1, 0, true), (1, 2, 0, false), (2, 0, 0, false), (1, 0, 5, false)]
        {
            let mut mux = mux(Limits::default());
            let key = mux.connect(addr(1), now).unwrap();
            let mut syn = Vec::new();
            mux.poll(key, now, &mut |bytes, _| {
                syn = bytes.to_vec();
                true
            });
            let syn = Packet::decode(&syn).unwrap();
            let bytes = packet(Type::Reset, syn.id + id_off, 0, syn.seq.0 + ack_off);
            let (_, sent) = give(&mut mux, &bytes, addr(from), now);
            assert!(sent.is_empty(), "a reset is never answered");
            let state = mux.conn(key).unwrap().state();
            assert_eq!(state == State::Ended(End::Reset), ends, "{from} {id_off} {ack_off}: {state:?}");
        }
    }

    #[test]
    fn a_flood_of_syns_leaves_few_connections_and_honest_ones_get_in() {
        let limits = Limits::default();
        let mut mux = mux(limits);
        let start = Instant::now();
        for n in 0..10_000 {
            give(&mut mux, &packet(Type::Syn, n, 1, 0), addr(7), start);
        }
        assert_eq!(mux.len(), (limits.per_address, limits.per_address), "one address");
        for n in 0..10_000 {
            give(&mut mux, &packet(Type::Syn, n, 1, 0), addr(n), start);
        }
        assert_eq!(mux.len(), (limits.half_open, limits.half_open), "many addresses");
        let later = start + STALE;
        let (event, _) = give(&mut mux, &packet(Type::Syn, 1, 1, 0), addr(60_000), later);
        assert!(matches!(event, Event::Happened(_)));
        assert_eq!(mux.len(), (limits.half_open, limits.half_open));
        // Nobody goes on; all is forgotten.
        let end = later + crate::net::utp::conn::GREETING;
        while let Some(key) = mux.pop_due(end) {
            if let Some((State::Ended(_), _)) = mux.poll(key, end, &mut |_, _| true) {
                mux.remove(key);
            }
        }
        assert_eq!((mux.len(), mux.due()), ((0, 0), None));
        assert!(mux.by_wire.is_empty() && mux.wakes.is_empty());
    }

    #[test]
    fn strangers_are_told_in_bounded_number() {
        let mut mux = mux(Limits::default());
        let start = Instant::now();
        let told = |mux: &mut Mux, kind, now| {
            (0..1000).filter(|&n| !give(mux, &packet(kind, n, 1, 0), addr(n), now).1.is_empty()).count()
        };
        assert_eq!(told(&mut mux, Type::Data, start), 50);
        assert_eq!(told(&mut mux, Type::Fin, start), 0);
        let later = start + Duration::from_secs(1);
        assert_eq!(told(&mut mux, Type::Reset, later), 0);
        assert_eq!(told(&mut mux, Type::State, later), 50);
        assert!(mux.is_empty());
    }

    #[test]
    fn who_is_filtered_opens_nothing_and_hears_nothing() {
        let mut mux = mux(Limits::default());
        mux.filter = Arc::new(Filter::read(&b"10.0.0.1 - 10.0.0.5\n"[..]).unwrap().0);
        let now = Instant::now();
        for kind in [Type::Syn, Type::Data, Type::State, Type::Fin, Type::Reset] {
            assert_eq!(give(&mut mux, &packet(kind, 7, 1, 0), addr(5), now), (Event::None, Vec::new()));
        }
        assert!(mux.is_empty());
        let (event, sent) = give(&mut mux, &packet(Type::Syn, 7, 1, 0), addr(6), now);
        assert!(matches!(event, Event::Happened(_)) && sent.len() == 1);
    }

    #[test]
    fn connections_are_bounded_both_ways() {
        let mut mux = mux(Limits { connections: 3, ..Limits::default() });
        let now = Instant::now();
        assert!(mux.connect(addr(1), now).is_some() && mux.connect(addr(1), now).is_some());
        give(&mut mux, &packet(Type::Syn, 9, 1, 0), addr(2), now);
        assert_eq!(mux.len(), (3, 1));
        assert!(mux.connect(addr(1), now).is_none());
        assert_eq!(give(&mut mux, &packet(Type::Syn, 9, 1, 0), addr(3), now).0, Event::None);
    }

    #[test]
    fn a_host_is_an_address_or_a_network_of_ipv6() {
        let of = |text: &str| host(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
