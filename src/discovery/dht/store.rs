//! What others leave with us: peers of torrents, and the tokens by which we know that they are where they say.
//!
//! Parts: [`Tokens`] hashes an address with a secret that changes every five minutes, so nothing is remembered of who
//! asked; [`Peers`] keeps who announced, for half an hour (BEP 5), within bounds of its own. When it is full, the
//! torrent with the fewest peers goes, the longest unannounced first: a flood of made-up torrents then drives out
//! made-up torrents.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::id::LEN;
use super::krpc::Token;
use crate::hash::sha1;

/// How long a secret is used; the one before counts as well, so a token holds for 5 to 10 minutes.
const SECRET: Duration = Duration::from_secs(5 * 60);
/// Bytes of a token: none can be guessed before its secret is gone.
const TOKEN: usize = 8;

/// How long a peer is kept after it announced itself.
const KEEP: Duration = Duration::from_secs(30 * 60);
/// Torrents with peers.
const HASHES: usize = 2000;
/// Peers of one torrent; the oldest goes. An answer holds a hundred at most.
const PEERS: usize = 500;
/// Peers of all torrents: 3 MiB.
const ALL: usize = 50_000;
/// Between two looks for old ones when it is full: each goes through all.
const SWEEP: Duration = Duration::from_secs(60);
/// Peers of one torrent at one address, by port: some share one line. In a local network as many as there are.
const SAME: usize = 4;

/// Hands out tokens and knows them again.
pub struct Tokens {
    secret: [u8; LEN],
    before: [u8; LEN],
    turned: Instant,
}

impl Tokens {
    /// With new secrets.
    pub fn new(draw: &mut Draw, now: Instant) -> Self {
        Self { secret: draw.bytes(), before: draw.bytes(), turned: now }
    }

    /// Changes the secret, if it is time.
    pub fn tick(&mut self, draw: &mut Draw, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if age >= SECRET {
            self.before = if age >= SECRET * 2 { draw.bytes() } else { self.secret };
            self.secret = draw.bytes();
            self.turned = now;
        }
    }

    /// The token of an address.
    pub fn give(&self, ip: IpAddr) -> Option<Token> {
        Token::new(&seal(&self.secret, ip))
    }

    /// Whether that is a token that we gave to this address lately.
    pub fn knows(&self, ip: IpAddr, token: &Token) -> bool {
        [&self.secret, &self.before].iter().any(|secret| token.bytes() == seal(secret, ip))
    }
}

fn seal(secret: &[u8; LEN], ip: IpAddr) -> [u8; TOKEN] {
    let mut text = [0; LEN + 16];
    text[..LEN].copy_from_slice(secret);
    match ip.to_canonical() {
        IpAddr::V4(v4) => text[LEN..LEN + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => text[LEN..].copy_from_slice(&v6.octets()),
    }
    let mut token = [0; TOKEN];
    token.copy_from_slice(&sha1(&text)[..TOKEN]);
    token
}

/// A peer that announced itself.
#[derive(Debug)]
struct Peer {
    addr: SocketAddr,
    at: Instant,
}

/// Peers by torrent.
#[derive(Debug, Default)]
pub struct Peers {
    /// Of each torrent those who announced themselves, the latest last.
    torrents: HashMap<[u8; LEN], VecDeque<Peer>>,
    all: usize,
    /// When the old ones went last.
    swept: Option<Instant>,
}

impl Peers {
    /// A peer announces itself.
    pub fn add(&mut self, hash: [u8; LEN], addr: SocketAddr, now: Instant) {
        let full = |peers: &Self| {
            peers.all >= ALL || (peers.torrents.len() >= HASHES && !peers.torrents.contains_key(&hash))
        };
        if full(self) && self.swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
            self.expire(now);
        }
        while full(self) {
            let fewest =
                self.torrents.iter().min_by_key(|(_, peers)| (peers.len(), peers.back().map(|peer| peer.at)));
            let Some(fewest) = fewest.map(|(hash, _)| *hash) else { break };
            self.all -= self.torrents.remove(&fewest).map_or(0, |peers| peers.len());
        }
        let peers = self.torrents.entry(hash).or_default();
        let before = peers.len();
        peers.retain(|peer| peer.addr != addr);
        let same = |peer: &Peer| peer.addr.ip() == addr.ip() && !super::id::is_local(addr.ip());
        if peers.iter().filter(|peer| same(peer)).count() >= SAME
            && let Some(oldest) = peers.iter().position(same)
        {
            peers.remove(oldest);
        }
        if peers.len() >= PEERS {
            peers.pop_front();
        }
        peers.push_back(Peer { addr, at: now });
        self.all = self.all + peers.len() - before;
    }

    /// Up to `most` peers of a torrent in one family, another choice each time.
    pub fn some(
        &self,
        hash: &[u8; LEN],
        is_ipv4: bool,
        most: usize,
        draw: &mut Draw,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let Some(peers) = self.torrents.get(hash) else { return Vec::new() };
        let fresh =
            |peer: &&Peer| peer.addr.is_ipv4() == is_ipv4 && now.saturating_duration_since(peer.at) < KEEP;
        let first = if peers.len() > most { draw.below(peers.len()) } else { 0 };
        let turned = peers.iter().skip(first).chain(peers.iter().take(first));
        turned.filter(fresh).take(most).map(|peer| peer.addr).collect()
    }

    /// Lets go of those that didn't announce themselves again.
    pub fn expire(&mut self, now: Instant) {
        self.torrents.retain(|_, peers| {
            peers.retain(|peer| now.saturating_duration_since(peer.at) < KEEP);
            !peers.is_empty()
        });
        self.all = self.torrents.values().map(VecDeque::len).sum();
        self.swept = Some(now);
    }

    /// Torrents and peers that are kept.
    pub fn count(&self) -> (usize, usize) {
        (self.torrents.len(), self.all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_holds_for_its_address_and_for_a_while() {
        let start = Instant::now();
        let mut draw = Draw::new([3; 32]);
        let mut tokens = Tokens::new(&mut draw, start);
        let (one, two) = (IpAddr::from([9, 9, 9, 9]), IpAddr::from([9, 9, 9, 8]));
        let token = tokens.give(one).unwrap();
        assert!(tokens.knows(one, &token) && !tokens.knows(two, &token));
        assert!(!tokens.knows(one, &Token::new(b"aoeusnth").unwrap()));
        tokens.tick(&mut draw, start + Duration::from_secs(299));
        assert_eq!(tokens.give(one), Some(token.clone()));
        tokens.tick(&mut draw, start + Duration::from_secs(300));
        assert_ne!(tokens.give(one), Some(token.clone()));
        assert!(tokens.knows(one, &token));
        tokens.tick(&mut draw, start + Duration::from_secs(600));
        assert!(!tokens.knows(one, &token));
        let token = tokens.give(one).unwrap();
        tokens.tick(&mut draw, start + Duration::from_secs(6000));
        assert!(!tokens.knows(one, &token), "after a sleep");
    }

    fn addr(host: u32, port: u16) -> SocketAddr {
        SocketAddr::from(((0x0900_0000 + host).to_be_bytes(), port))
    }

    fn hash(number: u32) -> [u8; LEN] {
        let mut hash = [0; LEN];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        hash
    }

    #[test]
    fn peers_are_found_until_they_are_old() {
        let now = Instant::now();
        let mut draw = Draw::new([3; 32]);
        let mut peers = Peers::default();
        peers.add(hash(1), addr(1, 1), now);
        peers.add(hash(1), addr(1, 1), now);
        peers.add(hash(1), addr(2, 1), now + Duration::from_secs(60));
        peers.add(hash(1), "[2001:db8::1]:7".parse().unwrap(), now);
        let mut at = |is_ipv4, seconds| {
            peers.some(&hash(1), is_ipv4, 100, &mut draw, now + Duration::from_secs(seconds))
        };
        assert_eq!(at(true, 61), [addr(1, 1), addr(2, 1)]);
        assert_eq!(at(false, 61), ["[2001:db8::1]:7".parse().unwrap()]);
        assert_eq!(at(true, 1800), [addr(2, 1)]);
        assert!(at(true, 1860).is_empty());
        assert!(peers.some(&hash(2), true, 100, &mut draw, now).is_empty());
        peers.expire(now + Duration::from_secs(1800));
        assert_eq!(peers.count(), (1, 1));
    }

    #[test]
    fn a_large_swarm_is_told_in_parts() {
        let now = Instant::now();
        let mut draw = Draw::new([3; 32]);
        let mut peers = Peers::default();
        for host in 0..2000 {
            peers.add(hash(1), addr(host, 1), now);
        }
        assert_eq!(peers.count(), (1, PEERS));
        let told: std::collections::HashSet<_> =
            (0..100).flat_map(|_| peers.some(&hash(1), true, 50, &mut draw, now)).collect();
        assert!(told.len() > 400, "{}", told.len());
        for port in 1..100 {
            peers.add(hash(2), addr(7, port), now);
        }
        let one_host = peers.some(&hash(2), true, 100, &mut draw, now);
        assert_eq!(one_host, [96, 97, 98, 99].map(|port| addr(7, port)));
    }

    #[test]
    fn a_flood_drives_out_the_flood() {
        let now = Instant::now();
        let mut draw = Draw::new([3; 32]);
        let mut peers = Peers::default();
        peers.add(hash(0), addr(1, 1), now);
        peers.add(hash(0), addr(2, 1), now);
        for number in 1..10_000 {
            peers.add(hash(number), addr(number, 1), now);
        }
        assert_eq!(peers.count(), (HASHES, HASHES + 1));
        assert_eq!(peers.some(&hash(0), true, 9, &mut draw, now).len(), 2);
        for number in 0..1000 {
            (0..100).for_each(|host| peers.add(hash(number), addr(host, 2), now));
        }
        assert!(peers.count().1 <= ALL);
        peers.expire(now + KEEP);
        assert_eq!(peers.count(), (0, 0));
    }

    proptest! {
        #[test]
        fn the_count_is_the_sum(adds in proptest::collection::vec((0u32..6, 0u32..9, 1u16..9, 0u64..4000), 0..300)) {
            let start = Instant::now();
            let mut peers = Peers::default();
            let mut now = start;
            for (number, host, port, seconds) in adds {
                now += Duration::from_secs(seconds / 20);
                peers.add(hash(number), addr(host, port), now);
                if seconds % 7 == 0 {
                    peers.expire(now);
                }
                let sum: usize = peers.torrents.values().map(VecDeque::len).sum();
                prop_assert_eq!(peers.count(), (peers.torrents.len(), sum));
                prop_assert!(peers.torrents.values().all(|peers| !peers.is_empty()));
                prop_assert!(peers.torrents.values().all(|peers| peers.iter().is_sorted_by_key(|peer| peer.at)));
            }
        }
    }
}
