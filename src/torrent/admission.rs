//! Who stays when a torrent has all the connections it may have and somebody comes, and which of two connections to one peer.
//! Pure.
//!
//! A full torrent isn't closed: among those that it has may be some that are of no use, and a swarm in which who is first
//! stays for ever is one in which newcomers find no door. So the least of those who are connected may give way
//! ([`Admission::full`]). Among equals the canonical priority decides ([`super::priority`]), so that both ends of a
//! connection mean the same. A flood of newcomers gains little: one connection is given up every [`PAUSE`].
//!
//! Two peers may dial each other at the same moment. Of the two connections both ends keep the same one ([`rival`]), or
//! each would close what the other keeps.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::connections::household;
use crate::net::hosts::is_private;
use crate::peer::PeerKey;

/// Between two connections that are given up for others: time to see what the newcomer is worth, and a bound on what a
/// crowd of strangers can do to those who are there.
pub const PAUSE: Duration = Duration::from_secs(10);
/// So long nobody gives way: it takes a moment to say what one has, and a choker's round or two to be let in.
pub const TRIAL: Duration = Duration::from_secs(30);
/// Connections of one address to one torrent: a household, or a few people behind a provider's router. One who opens more
/// wants more than a share. Addresses of local networks aren't counted: a router between two may show all as one.
pub const PER_ADDRESS: usize = 5;

/// One who is connected.
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    /// Its key.
    pub key: PeerKey,
    /// It has something that we lack, or wants something of us.
    pub useful: bool,
    /// It was asked, and has been silent for too long.
    pub snubbed: bool,
    /// It has delivered a block.
    pub delivered: bool,
    /// A block is on its way that a read waits for, or the user named it.
    pub needed: bool,
    /// Since when it is connected.
    pub since: Instant,
    /// See [`super::priority`]; `None` where it can't be told.
    pub priority: Option<u32>,
}

impl Resident {
    /// What it is worth, the least first.
    fn worth(&self) -> (bool, bool, bool, Option<u32>) {
        (self.useful, !self.snubbed, self.delivered, self.priority)
    }
}

/// What becomes of somebody who comes when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes again.
    Refuse,
    /// It stays, and this one goes.
    Replace(PeerKey),
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Admission {
    /// When somebody last gave way.
    last: Option<Instant>,
}

impl Admission {
    /// Who is to go when all connections of the program are taken and another torrent needs some, if anybody can be spared.
    pub fn spare(residents: impl Iterator<Item = Resident>) -> Option<PeerKey> {
        let least = residents.filter(|r| !r.needed).min_by_key(|r| (r.worth(), r.key));
        least.map(|r| r.key)
    }

    /// Somebody comes whose connection has this priority, and there is no room. Without a priority, since our own address
    /// isn't known, nobody gives way: then it would be whoever comes last that stays.
    pub fn full(
        &mut self,
        priority: Option<u32>,
        residents: impl Iterator<Item = Resident>,
        now: Instant,
    ) -> Verdict {
        let lately = self.last.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        if lately || priority.is_none() {
            return Verdict::Refuse;
        }
        // Of a newcomer the best is thought, but for what only a block would show.
        let newcomer = (true, true, false, priority);
        let tried = residents.filter(|r| !r.needed && now.saturating_duration_since(r.since) >= TRIAL);
        match tried.min_by_key(|r| (r.worth(), r.key)).filter(|least| least.worth() < newcomer) {
            Some(least) => {
                self.last = Some(now);
                Verdict::Replace(least.key)
            }
            None => Verdict::Refuse,
        }
    }
}

/// Of two connections to one peer, whether the one that came last stays in the place of the first. `first` is whether that
/// one was dialled by the peer, `last` the same of the other; `age`, how long the first has been there.
///
/// It does if both ends have dialled each other at the same moment, and it was dialled by who has the higher peer id. An
/// older connection stays whatever comes: whoever has heard a peer's id could otherwise put himself in its place.
pub fn rival(ours: &[u8; 20], theirs: &[u8; 20], first: bool, last: bool, age: Duration) -> bool {
    let by_the_higher = |incoming: bool| incoming == (theirs > ours);
    age < TRIAL && first != last && by_the_higher(last)
}

/// Whether one more connection of an address would be too many, where there are these already.
pub fn crowds(ip: IpAddr, connected: impl Iterator<Item = IpAddr>) -> bool {
    let house = household(ip);
    !is_private(ip.to_canonical())
        && connected.filter(|other| household(*other) == house).count() >= PER_ADDRESS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn resident(key: u64, since: Instant) -> Resident {
        Resident {
            key: PeerKey(key),
            useful: true,
            snubbed: false,
            delivered: true,
            needed: false,
            since,
            priority: Some(100),
        }
    }

    #[test]
    fn the_least_gives_way() {
        let began = Instant::now();
        let now = began + 60 * S;
        let good = |key| resident(key, began);
        let rows: [(&str, Vec<Resident>, Option<u32>, Verdict); 11] = [
            ("all are good", vec![good(1), good(2)], Some(900), Verdict::Refuse),
            (
                "one is useless",
                vec![good(1), Resident { useful: false, ..good(2) }],
                Some(1),
                Verdict::Replace(PeerKey(2)),
            ),
            (
                "one is snubbed",
                vec![Resident { snubbed: true, ..good(1) }, good(2)],
                Some(1),
                Verdict::Replace(PeerKey(1)),
            ),
            (
                "useless before snubbed",
                vec![Resident { snubbed: true, ..good(1) }, Resident { useful: false, ..good(2) }],
                Some(1),
                Verdict::Replace(PeerKey(2)),
            ),
            (
                "not delivered, lower",
                vec![Resident { delivered: false, ..good(1) }],
                Some(101),
                Verdict::Replace(PeerKey(1)),
            ),
            (
                "not delivered, higher",
                vec![Resident { delivered: false, ..good(1) }],
                Some(99),
                Verdict::Refuse,
            ),
            (
                "not delivered, equal",
                vec![Resident { delivered: false, ..good(1) }],
                Some(100),
                Verdict::Refuse,
            ),
            ("needed", vec![Resident { useful: false, needed: true, ..good(1) }], Some(900), Verdict::Refuse),
            (
                "new",
                vec![Resident { useful: false, since: now - 29 * S, ..good(1) }],
                Some(900),
                Verdict::Refuse,
            ),
            ("our address isn't known", vec![Resident { useful: false, ..good(1) }], None, Verdict::Refuse),
            (
                "a priority that can't be told is the least",
                vec![
                    Resident { delivered: false, ..good(1) },
                    Resident { delivered: false, priority: None, ..good(2) },
                ],
                Some(1),
                Verdict::Replace(PeerKey(2)),
            ),
        ];
        for (row, residents, priority, want) in rows {
            assert_eq!(Admission::default().full(priority, residents.into_iter(), now), want, "{row}");
        }
    }

    #[test]
    fn one_gives_way_in_a_while() {
        let began = Instant::now();
        let mut admission = Admission::default();
        let mut at = |now| {
            let useless = Resident { useful: false, ..resident(1, began) };
            admission.full(Some(1), [useless].into_iter(), now) != Verdict::Refuse
        };
        let now = began + 60 * S;
        let rows = [(0, true), (0, false), (9, false), (10, true), (19, false), (20, true)];
        for (after, want) in rows {
            assert_eq!(at(now + after * S), want, "{after}");
        }
    }

    #[test]
    fn both_ends_keep_the_same_of_two() {
        let (low, high) = ([1; 20], [2; 20]);
        // The one that the higher dialled is seen by the higher as dialled, by the lower as incoming; in either order.
        for first_by_high in [true, false] {
            let keeps_last_at_high = rival(&high, &low, !first_by_high, first_by_high, S);
            let keeps_last_at_low = rival(&low, &high, first_by_high, !first_by_high, S);
            assert_eq!(keeps_last_at_high, keeps_last_at_low);
            assert_eq!(keeps_last_at_high, !first_by_high, "that of the higher stays");
        }
        for same in [true, false] {
            assert!(!rival(&low, &high, same, same, S), "of two that one has dialled, the first");
        }
        assert!(rival(&low, &high, false, true, TRIAL - S));
        assert!(!rival(&low, &high, false, true, TRIAL), "it has been there for long");
    }

    #[test]
    fn an_address_has_so_many() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (who, others, want) in [
            ("1.2.3.4", ["1.2.3.4"; 5], true),
            ("1.2.3.4", ["1.2.3.4", "1.2.3.4", "1.2.3.4", "1.2.3.4", "1.2.3.5"], false),
            ("::ffff:1.2.3.4", ["1.2.3.4"; 5], true),
            (
                "2001:db8::1",
                ["2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5", "2001:db8::ffff:0:0:6"],
                true,
            ),
            ("2001:db8::1", ["2001:db8:0:1::1"; 5], false),
            ("127.0.0.1", ["127.0.0.1"; 5], false),
            ("192.168.0.1", ["192.168.0.1"; 5], false),
        ] {
            assert_eq!(crowds(ip(who), others.into_iter().map(ip)), want, "{who}");
        }
    }
}
