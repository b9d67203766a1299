//! Our address as others see it: who says what, and when that is believed. Pure.
//!
//! Anybody may say anything, so an address counts when [`QUORUM`] agree who are far from each other: of different /16 in
//! IPv4, of different /32 in IPv6. Each has one vote, its last; a vote is forgotten after a while, and when there is no
//! room. What a router says by itself ([`crate::net::mapping`]) is no vote: it knows.
//!
//! Not here: who asks. The DHT (`ip`), the extension handshake (`yourip`) and trackers (`external ip`) tell.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Voters that have to agree.
pub const QUORUM: usize = 3;
/// Votes that are kept.
pub const VOTES: usize = 64;
/// After so long a vote counts no longer.
const LIFE: Duration = Duration::from_secs(2 * 3600);

/// The votes of one address family or of both.
#[derive(Debug, Default)]
pub struct Votes {
    /// The oldest first.
    votes: Vec<Vote>,
    believed: [Option<IpAddr>; 2],
}

#[derive(Debug)]
struct Vote {
    area: Area,
    says: IpAddr,
    at: Instant,
}

/// Who has one vote together, since one may have all of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    V4([u8; 2]),
    V6([u16; 2]),
}

impl Area {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                Self::V4([a, b])
            }
            IpAddr::V6(ip) => {
                let [a, b, ..] = ip.segments();
                Self::V6([a, b])
            }
        }
    }
}

impl Votes {
    /// `by` says that we are `ip`. Returns the address if that is news: now believed, and not before.
    pub fn saw(&mut self, ip: IpAddr, by: IpAddr, now: Instant) -> Option<IpAddr> {
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return None;
        }
        let area = Area::of(by);
        let family = |ip: IpAddr| usize::from(ip.is_ipv6());
        // Of one area the last word on each family.
        self.votes.retain(|vote| {
            let said_before = vote.area == area && family(vote.says) == family(ip);
            !said_before && now.saturating_duration_since(vote.at) < LIFE
        });
        if self.votes.len() >= VOTES {
            self.votes.remove(0);
        }
        self.votes.push(Vote { area, says: ip, at: now });
        let agree = self.votes.iter().filter(|vote| vote.says == ip).count();
        // An address that half of those who speak of another still see isn't given up for three.
        let of_family = self.votes.iter().filter(|vote| family(vote.says) == family(ip));
        let other = self.believed.get(family(ip)).copied().flatten();
        let against = of_family.filter(|vote| Some(vote.says) == other && vote.says != ip).count();
        if agree < QUORUM || agree <= against {
            return None;
        }
        let believed = self.believed.get_mut(family(ip))?;
        (believed.replace(ip) != Some(ip)).then_some(ip)
    }

    /// What is believed, of each family.
    pub fn believed(&self) -> impl Iterator<Item = IpAddr> {
        self.believed.iter().copied().flatten()
    }

    /// The network is another one now: all begins anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn three_far_from_each_other_are_believed() {
        let mut votes = Votes::default();
        let now = Instant::now();
        for (says, by, believed) in [
            ("9.9.9.9", "1.1.0.1", None),
            // Neighbours, and the same one again.
            ("9.9.9.9", "1.1.7.7", None),
            ("9.9.9.9", "1.1.0.1", None),
            ("9.9.9.9", "1.2.0.1", None),
            ("8.8.8.8", "1.3.0.1", None),
            ("::ffff:9.9.9.9", "::ffff:1.4.0.1", Some("9.9.9.9")),
            // No news.
            ("9.9.9.9", "1.5.0.1", None),
            // Another one needs more who say so than there are of this one.
            ("8.8.8.8", "1.6.0.1", None),
            ("8.8.8.8", "1.7.0.1", None),
            ("8.8.8.8", "1.8.0.1", None),
            ("8.8.8.8", "1.9.0.1", Some("8.8.8.8")),
            ("0.0.0.0", "1.10.0.1", None),
            ("127.0.0.1", "1.11.0.1", None),
            ("2001:db8::1", "1.1.0.1", None),
            ("2001:db8::1", "1.2.0.1", None),
            ("2001:db8::1", "2001:db9::1", Some("2001:db8::1")),
        ] {
            assert_eq!(votes.saw(ip(says), ip(by), now), believed.map(ip), "{says} {by}");
        }
        assert_eq!(votes.believed().collect::<Vec<_>>(), [ip("8.8.8.8"), ip("2001:db8::1")]);
        votes.reset();
        assert_eq!(votes.believed().count(), 0);
    }

    #[test]
    fn votes_grow_old() {
        let mut votes = Votes::default();
        let now = Instant::now();
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("1.1.0.1"), now), None);
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("1.2.0.1"), now), None);
        let later = now + LIFE;
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("1.3.0.1"), later), None);
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("1.4.0.1"), later), None);
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("1.5.0.1"), later), Some(ip("9.9.9.9")));
    }

    proptest! {
        #[test]
        fn two_areas_never_decide(words in proptest::collection::vec((any::<[u8; 4]>(), 0..2u8, any::<[u8; 2]>()), 0..300)) {
            let mut votes = Votes::default();
            let now = Instant::now();
            for (says, area, rest) in words {
                prop_assert_eq!(votes.saw(says.into(), [area, 1, rest[0], rest[1]].into(), now), None);
                prop_assert!(votes.votes.len() <= VOTES);
            }
        }
    }
}
