//! How many questions of others are answered: so many a second of one address, and of all.
//!
//! A node that answers anything can be made to flood whoever is written as the sender. What goes beyond the quota isn't
//! answered at all. The memory is that of one second: no larger than what all may ask in it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::id::is_local;

/// Answers a second to one address; a lookup asks a node once.
const EACH: u16 = 20;
/// Answers a second to all: a node that is much asked gets some ten.
const ALL: usize = 250;

/// Who is counted as one: an address, or the /64 that one host has of IPv6. In a local network each port counts for
/// itself, since nodes of one machine share its address.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Asker(u64, u16);

impl Asker {
    fn of(from: SocketAddr) -> Self {
        let ip = from.ip().to_canonical();
        let port = if is_local(ip) { from.port() } else { 0 };
        match ip {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4)), port),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 64) as u64, port),
        }
    }
}

/// Counts what is answered.
#[derive(Debug)]
pub struct Quota {
    second: Instant,
    given: HashMap<Asker, u16>,
    all: usize,
}

impl Quota {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { second: now, given: HashMap::new(), all: 0 }
    }

    /// Whether a question from there is answered; then it counts.
    pub fn admits(&mut self, from: SocketAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.given.clear();
            self.all = 0;
        }
        if self.all >= ALL {
            return false;
        }
        let given = self.given.entry(Asker::of(from)).or_default();
        if *given >= EACH {
            return false;
        }
        *given += 1;
        self.all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn one_address_gets_its_share_and_all_get_theirs() {
        let now = Instant::now();
        let mut quota = Quota::new(now);
        let from = |net: u8, host: u8, port| SocketAddr::from(([9, 9, net, host], port));
        let answered = (0..100).filter(|port| quota.admits(from(1, 1, 1000 + port), now)).count();
        assert_eq!(answered, 20);
        let answered = (0..=255).filter(|host| quota.admits(from(2, *host, 1), now)).count();
        assert_eq!((answered, quota.given.len()), (230, 231));
        for host in 0..=255 {
            assert!(!quota.admits(from(3, host, 1), now));
        }
        assert_eq!(quota.given.len(), 231, "who is refused isn't remembered");
        assert!(quota.admits(from(1, 1, 1), now + Duration::from_secs(1)));

        let mut quota = Quota::new(now);
        let answered = (0..100).filter(|host| {
            let from = format!("[2001:db8::{host:x}]:5").parse().unwrap();
            quota.admits(from, now)
        });
        assert_eq!(answered.count(), 20, "a /64 is one host");
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!((1..=100).all(|port| quota.admits(local(port), now)), "nodes of one machine");
    }
}
