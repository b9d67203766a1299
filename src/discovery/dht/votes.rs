//! Which address of ours others see (BEP 42's `ip`), by vote.
//!
//! Each answer tells where it went. One liar must not give us a name of his choice, so it takes several, from
//! different networks, that say the same; and who would take an address from us needs more than hold to it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::id::is_public;

/// So many of different networks must agree.
const AGREE: usize = 3;
/// Votes that are kept, one of each network; the oldest goes.
const KEPT: usize = 64;
/// How long a vote counts: an address of a line at home changes each day at most.
const COUNTS: Duration = Duration::from_secs(2 * 3600);

#[derive(Debug)]
struct Vote {
    by: u64,
    said: IpAddr,
    at: Instant,
}

/// What others said of our address, for one family.
#[derive(Debug, Default)]
pub struct Votes {
    votes: VecDeque<Vote>,
    elected: Option<IpAddr>,
}

/// Whose vote it is: all of one /16, or of one /32 of IPv6, are one voter.
fn voter(by: IpAddr) -> u64 {
    match by.to_canonical() {
        IpAddr::V4(v4) => u64::from(u32::from(v4) >> 16),
        IpAddr::V6(v6) => (u128::from(v6) >> 96) as u64 | 1 << 63,
    }
}

impl Votes {
    /// Somebody at `by` says that we are at `said`. Gives the address when it is another than before now.
    pub fn saw(&mut self, said: IpAddr, by: IpAddr, now: Instant) -> Option<IpAddr> {
        let said = said.to_canonical();
        if !is_public(said) || said.is_ipv4() != by.to_canonical().is_ipv4() {
            return None;
        }
        let by = voter(by);
        self.votes.retain(|vote| vote.by != by && now.saturating_duration_since(vote.at) < COUNTS);
        if self.votes.len() >= KEPT {
            self.votes.pop_front();
        }
        self.votes.push_back(Vote { by, said, at: now });
        if self.elected == Some(said) {
            return None;
        }
        let held = self.elected.map_or(0, |elected| self.count(elected));
        let count = self.count(said);
        (count >= AGREE && count > held).then(|| {
            self.elected = Some(said);
            said
        })
    }

    fn count(&self, said: IpAddr) -> usize {
        self.votes.iter().filter(|vote| vote.said == said).count()
    }

    /// The address that others see.
    pub fn elected(&self) -> Option<IpAddr> {
        self.elected
    }

    /// Our address may have changed: what was said before counts no longer.
    pub fn reset(&mut self) {
        self.votes.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn three_networks_elect_and_more_unseat() {
        let now = Instant::now();
        let mut votes = Votes::default();
        let (one, two) = (ip("9.9.9.9"), ip("7.7.7.7"));
        // One network may say it as often as it likes.
        for host in 1..=9 {
            assert_eq!(votes.saw(one, IpAddr::from([20, 1, 2, host]), now), None);
        }
        assert_eq!(votes.saw(one, ip("21.1.1.1"), now), None);
        assert_eq!(votes.saw(one, ip("22.1.1.1"), now), Some(one));
        assert_eq!(votes.saw(one, ip("23.1.1.1"), now), None);
        // As many aren't enough.
        for net in 30..34 {
            assert_eq!(votes.saw(two, IpAddr::from([net, 1, 1, 1]), now), None);
        }
        assert_eq!(votes.saw(two, ip("34.1.1.1"), now), Some(two));
        assert_eq!(votes.elected(), Some(two));
        votes.reset();
        assert_eq!((votes.elected(), votes.saw(one, ip("1.1.1.1"), now)), (Some(two), None));
    }

    #[test]
    fn nonsense_doesnt_count_and_old_votes_neither() {
        let now = Instant::now();
        let mut votes = Votes::default();
        for said in ["10.0.0.1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "2001:db8::1"] {
            for net in 20..30 {
                assert_eq!(votes.saw(ip(said), IpAddr::from([net, 1, 1, 1]), now), None);
            }
        }
        votes.saw(ip("9.9.9.9"), ip("20.1.1.1"), now);
        votes.saw(ip("9.9.9.9"), ip("21.1.1.1"), now);
        assert_eq!(votes.saw(ip("9.9.9.9"), ip("22.1.1.1"), now + COUNTS), None);
        for net in 0..500u16 {
            let [high, low] = net.to_be_bytes();
            votes.saw(ip("9.9.9.9"), IpAddr::from([20 + high, low, 1, 1]), now);
        }
        assert_eq!(votes.votes.len(), KEPT);
    }
}
