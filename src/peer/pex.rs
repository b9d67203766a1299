//! Peer exchange (BEP 11): peers tell each other whom they are connected to. Pure; off for private torrents.
//!
//! Parts: [`PexMessage`] and its codec; [`PexState`], one for each connection, which knows what that peer was
//! told already and when.
//!
//! Flow: about once a minute the session asks [`PexState::next`] with the torrent's connections and sends what
//! it gives. A message that comes in is taken if [`PexState::admit`] says so, and its addresses go to the
//! torrent's [`crate::torrent::peers::PeerBook`], which judges them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::metainfo::bencode::{self, Encoder, Value};
use crate::peer::extension::{ExtensionError, MESSAGE_LIMITS};

/// Between two messages to one peer (BEP 11: once a minute at most).
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Addresses added, and addresses dropped, in one message we send (BEP 11).
pub const MAX_SENT: usize = 50;
/// Addresses of each kind that we take from one message: BEP 11 allows 50, and clients send more in their first.
pub const MAX_TAKEN: usize = 200;
/// Messages that we take from a peer in one [`INTERVAL`]: one is right; room for clients whose clock is loose.
const MAX_ADMITTED: u32 = 3;

/// What is known of an address (BEP 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PexFlags(pub u8);

impl PexFlags {
    /// It prefers encrypted connections.
    pub const ENCRYPTION: Self = Self(0x01);
    /// It is a seed, or only uploads.
    pub const SEED: Self = Self(0x02);
    /// It speaks uTP.
    pub const UTP: Self = Self(0x04);
    /// It takes part in introductions (BEP 55).
    pub const HOLEPUNCH: Self = Self(0x08);
    /// It was reached by dialling it.
    pub const REACHABLE: Self = Self(0x10);

    /// Both's flags.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether all of the other's flags are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// An address that a peer is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PexPeer {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What is known of it.
    pub flags: PexFlags,
}

/// One message of the peer exchange.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PexMessage {
    /// New connections of the sender.
    pub added: Vec<PexPeer>,
    /// Connections that the sender no longer has.
    pub dropped: Vec<SocketAddr>,
}

impl PexMessage {
    /// The payload of the extended message.
    pub fn encode(&self) -> Bytes {
        let (mut added, mut added6) = (Vec::new(), Vec::new());
        let (mut flags, mut flags6) = (Vec::new(), Vec::new());
        for peer in &self.added {
            let (to, flags) =
                if peer.addr.is_ipv4() { (&mut added, &mut flags) } else { (&mut added6, &mut flags6) };
            put_compact(to, peer.addr);
            flags.push(peer.flags.0);
        }
        let (mut dropped, mut dropped6) = (Vec::new(), Vec::new());
        for addr in &self.dropped {
            put_compact(if addr.is_ipv4() { &mut dropped } else { &mut dropped6 }, *addr);
        }
        let mut out = Encoder::new();
        out.dict_begin();
        let fields = [
            ("added", &added),
            ("added.f", &flags),
            ("added6", &added6),
            ("added6.f", &flags6),
            ("dropped", &dropped),
            ("dropped6", &dropped6),
        ];
        for (key, bytes) in fields.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            out.key(key).bytes(bytes);
        }
        out.end();
        out.finish().into()
    }

    /// Reads a message: [`MAX_TAKEN`] addresses of each kind and family at most, the rest is left out. Missing
    /// flags count as none. Whether an address makes sense isn't judged here.
    ///
    /// # Errors
    /// It isn't a bencoded dictionary, or a list of addresses isn't a whole number of them.
    pub fn decode(payload: &[u8]) -> Result<Self, ExtensionError> {
        let dict = bencode::parse_with(payload, MESSAGE_LIMITS).map_err(ExtensionError::Bencode)?;
        if !dict.is_dict() {
            return Err(ExtensionError::NotDict);
        }
        let mut message = Self::default();
        for (key, flags_key, entry) in [("added", "added.f", 6), ("added6", "added6.f", 18)] {
            let flags = dict.get(flags_key).and_then(Value::as_bytes).unwrap_or_default();
            let flags = flags.iter().copied().chain(std::iter::repeat(0));
            let peers = addresses(dict, key, entry)?.zip(flags);
            message.added.extend(peers.map(|(addr, flags)| PexPeer { addr, flags: PexFlags(flags) }));
        }
        for (key, entry) in [("dropped", 6), ("dropped6", 18)] {
            message.dropped.extend(addresses(dict, key, entry)?);
        }
        Ok(message)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }
}

/// Appends address and port in the compact form: 6 or 18 bytes (BEP 23, 7).
fn put_compact(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
    out.extend(addr.port().to_be_bytes());
}

/// The addresses of a compact list whose entries have `entry` bytes: 6 or 18.
fn addresses<'a>(
    dict: Value<'a>,
    key: &'static str,
    entry: usize,
) -> Result<impl Iterator<Item = SocketAddr> + use<'a>, ExtensionError> {
    let bytes = match dict.get(key) {
        Some(value) => value.as_bytes().ok_or(ExtensionError::Field(key))?,
        None => &[],
    };
    if bytes.len() % entry != 0 {
        return Err(ExtensionError::Field(key));
    }
    Ok(bytes.chunks_exact(entry).take(MAX_TAKEN).filter_map(|compact| {
        let (ip, port) = compact.split_last_chunk::<2>()?;
        let ip: IpAddr = match ip.first_chunk::<16>() {
            Some(v6) => Ipv6Addr::from(*v6).into(),
            None => Ipv4Addr::from(*ip.first_chunk::<4>()?).into(),
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
    }))
}

/// What one peer was told, and how often it talks to us.
#[derive(Debug, Clone)]
pub struct PexState {
    /// The peer itself, which needs no telling.
    receiver: SocketAddr,
    /// What it believes we are connected to; at most as many as we ever have connections.
    told: BTreeSet<SocketAddr>,
    last_sent: Option<Instant>,
    /// Begin of the interval in which messages are counted, and how many came.
    window: Option<(Instant, u32)>,
}

impl PexState {
    /// The state of a new connection to the peer that listens at `receiver`.
    pub fn new(receiver: SocketAddr) -> Self {
        Self { receiver, told: BTreeSet::new(), last_sent: None, window: None }
    }

    /// The next message to this peer, given the torrent's connections by the addresses where they listen:
    /// what came and went since the last one, [`MAX_SENT`] each. `None` when it is too early, or there is no
    /// news. What it gives counts as sent.
    pub fn next(&mut self, connected: impl IntoIterator<Item = PexPeer>, now: Instant) -> Option<PexMessage> {
        if self.wait(now) > Duration::ZERO {
            return None;
        }
        let mut current = BTreeSet::new();
        let mut message = PexMessage::default();
        for peer in connected {
            // An address that two connections share is told once.
            if peer.addr == self.receiver || !current.insert(peer.addr) || self.told.contains(&peer.addr) {
                continue;
            }
            if message.added.len() < MAX_SENT {
                message.added.push(peer);
            }
        }
        message.dropped.extend(self.told.difference(&current).take(MAX_SENT));
        if message.is_empty() {
            return None;
        }
        for addr in &message.dropped {
            self.told.remove(addr);
        }
        self.told.extend(message.added.iter().map(|peer| peer.addr));
        self.last_sent = Some(now);
        Some(message)
    }

    /// How long until [`PexState::next`] may speak again; zero when it may now.
    pub fn wait(&self, now: Instant) -> Duration {
        self.last_sent.map_or(Duration::ZERO, |at| (at + INTERVAL).saturating_duration_since(now))
    }

    /// Counts a message that came, and says whether to take it: a peer that sends far more often than it should
    /// isn't listened to until its minute is over.
    pub fn admit(&mut self, now: Instant) -> bool {
        let (begin, count) = match self.window {
            Some((begin, count)) if now.saturating_duration_since(begin) < INTERVAL => (begin, count),
            _ => (now, 0),
        };
        self.window = Some((begin, count.saturating_add(1)));
        count < MAX_ADMITTED
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn addr(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }
    fn peer(s: &str) -> PexPeer {
        PexPeer { addr: addr(s), flags: PexFlags::default() }
    }
    fn many(range: std::ops::Range<u16>) -> Vec<PexPeer> {
        range.map(|port| peer(&format!("10.0.0.1:{port}"))).collect()
    }

    #[test]
    fn messages_have_their_bytes() {
        let message = PexMessage {
            added: vec![
                PexPeer { addr: addr("1.2.3.4:258"), flags: PexFlags::SEED.with(PexFlags::REACHABLE) },
                PexPeer { addr: addr("[::1]:3"), flags: PexFlags::UTP },
            ],
            dropped: vec![addr("5.6.7.8:1")],
        };
        let wanted = b"d5:added6:\x01\x02\x03\x04\x01\x027:added.f1:\x12\
            6:added618:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x038:added6.f1:\x04\
            7:dropped6:\x05\x06\x07\x08\0\x01e";
        assert_eq!(&message.encode()[..], &wanted[..]);
        assert_eq!(PexMessage::decode(wanted), Ok(message));
        assert_eq!(PexMessage::decode(b"de"), Ok(PexMessage::default()));
        assert!(PexFlags::SEED.with(PexFlags::UTP).has(PexFlags::UTP));
        assert!(!PexFlags::SEED.has(PexFlags::SEED.with(PexFlags::UTP)));
    }

    #[test]
    fn broken_messages_are_refused_and_long_ones_cut() {
        let rows: [(&[u8], ExtensionError); 4] = [
            (b"le", ExtensionError::NotDict),
            (b"d5:added5:abcdee", ExtensionError::Field("added")),
            (b"d5:addedi1ee", ExtensionError::Field("added")),
            (b"d8:dropped617:12345678901234567e", ExtensionError::Field("dropped6")),
        ];
        for (bytes, error) in rows {
            assert_eq!(PexMessage::decode(bytes), Err(error));
        }
        let long = PexMessage { added: many(1..1000), dropped: Vec::new() };
        let taken = PexMessage::decode(&long.encode()).unwrap();
        assert_eq!(taken.added, long.added[..MAX_TAKEN]);
        let unflagged = PexMessage::decode(b"d5:added6:abcdef7:added.f0:e").unwrap();
        assert_eq!(unflagged.added[0].flags, PexFlags(0));
    }

    #[test]
    fn each_message_tells_the_news_once_a_minute() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut state = PexState::new(addr("10.9.9.9:9"));
        let first = vec![peer("10.0.0.1:1"), peer("10.0.0.2:2"), peer("10.9.9.9:9"), peer("10.0.0.1:1")];
        let message = state.next(first.clone(), at(0)).unwrap();
        assert_eq!(message.added, first[..2], "not the peer itself, and nobody twice");
        assert_eq!(message.dropped, []);

        let second = vec![peer("10.0.0.2:2"), peer("10.0.0.3:3")];
        assert_eq!(state.next(second.clone(), at(59)), None);
        assert_eq!(state.wait(at(59)), Duration::from_secs(1));
        let message = state.next(second.clone(), at(60)).unwrap();
        assert_eq!(
            message,
            PexMessage { added: vec![peer("10.0.0.3:3")], dropped: vec![addr("10.0.0.1:1")] }
        );

        assert_eq!(state.next(second, at(200)), None, "no news");
        assert_eq!(state.wait(at(200)), Duration::ZERO, "which doesn't delay the next");
        assert_eq!(state.next([], at(201)).unwrap().dropped.len(), 2);
    }

    #[test]
    fn no_message_holds_more_than_fifty() {
        let start = Instant::now();
        let mut state = PexState::new(addr("10.9.9.9:9"));
        let mut told = Vec::new();
        for minute in 0..4 {
            let now = start + INTERVAL * minute;
            told.push(state.next(many(1..121), now).map_or(0, |m| m.added.len()));
        }
        assert_eq!(told, [50, 50, 20, 0]);
        let gone: Vec<_> =
            (4..8).map(|m| state.next([], start + INTERVAL * m).map_or(0, |m| m.dropped.len())).collect();
        assert_eq!(gone, [50, 50, 20, 0]);
    }

    #[test]
    fn a_peer_that_talks_too_much_is_not_heard() {
        let start = Instant::now();
        let mut state = PexState::new(addr("10.9.9.9:9"));
        let heard = (0..100).filter(|_| state.admit(start)).count();
        assert_eq!(heard, MAX_ADMITTED as usize);
        assert!(state.admit(start + INTERVAL));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            _ = PexMessage::decode(&bytes);
        }
    }
}
