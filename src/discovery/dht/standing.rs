//! Whether we take part or only ask (BEP 43).
//!
//! A node that can't be reached by strangers does harm in their tables: each question to it is lost. So we begin
//! read-only: our questions say `ro`, nobody remembers us, and we answer nobody. Now and then we try without, on
//! *probation*: others then take us into their tables, and those who were never asked by us find us, or don't. Two that
//! do make us a full node. A full node that nobody unasked has come to for long is on probation again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// From the start to the first probation: first we must know somebody who can tell of us.
const FIRST: Duration = Duration::from_secs(2 * 60);
/// How long a probation takes.
const PROBATION: Duration = Duration::from_secs(10 * 60);
/// From a probation that failed to the next.
const PAUSE: Duration = Duration::from_secs(50 * 60);
/// How long a full node may be left alone before it must show again that it is reached.
const LEFT_ALONE: Duration = Duration::from_secs(3600);
/// So many that we never asked must come.
const CALLERS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    ReadOnly { until: Instant },
    Probation { until: Instant },
    Full { called: Instant },
}

/// Our part in the network, for one family.
#[derive(Debug)]
pub struct Standing {
    role: Role,
    /// Full in any case: a network of one's own.
    always: bool,
    /// It is known that we can be reached: a public address, or a port that is mapped.
    public: bool,
    callers: Vec<IpAddr>,
}

impl Standing {
    /// As at a start. `always`: a full node without being asked.
    pub fn new(always: bool, now: Instant) -> Self {
        Self { role: Role::ReadOnly { until: now + FIRST }, always, public: false, callers: Vec::new() }
    }

    /// Whether we answer nobody, and say so.
    pub fn is_read_only(&self) -> bool {
        !self.always && matches!(self.role, Role::ReadOnly { .. })
    }

    /// Whether it is known that we can be reached.
    pub fn set_public(&mut self, public: bool, now: Instant) {
        self.public = public;
        if public && matches!(self.role, Role::ReadOnly { .. }) {
            self.role = Role::Probation { until: now + PROBATION };
        }
    }

    /// Somebody at `ip`, whom we never asked anything, asks us.
    pub fn called(&mut self, ip: IpAddr, now: Instant) {
        if let Role::Full { called } = &mut self.role {
            *called = now;
            return;
        }
        if !self.callers.contains(&ip) {
            self.callers.push(ip);
        }
        if self.callers.len() >= CALLERS {
            self.callers.clear();
            self.role = Role::Full { called: now };
        }
    }

    /// Time has gone on.
    pub fn tick(&mut self, now: Instant) {
        self.role = match self.role {
            Role::ReadOnly { until } if now >= until => {
                self.callers.clear();
                Role::Probation { until: now + PROBATION }
            }
            Role::Probation { until } if now >= until && !self.public => {
                Role::ReadOnly { until: now + PAUSE }
            }
            Role::Full { called } if now >= called + LEFT_ALONE => Role::Probation { until: now + PROBATION },
            role => role,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_answer_only_while_we_may_be_reached() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let caller = |host| IpAddr::from([9, 9, 9, host]);
        let mut standing = Standing::new(false, start);
        let mut step = |minutes, from: Option<u8>| {
            if let Some(host) = from {
                standing.called(caller(host), at(minutes));
            }
            standing.tick(at(minutes));
            standing.is_read_only()
        };
        for (minute, from, read_only, why) in [
            (0, None, true, "at the start"),
            (1, None, true, "nobody knows us yet"),
            (2, None, false, "on probation"),
            (11, None, false, "still"),
            (12, None, true, "nobody came"),
            (61, None, true, "paused"),
            (62, None, false, "the next probation"),
            (63, Some(1), false, "one is not enough"),
            (64, Some(1), false, "nor the same twice"),
            (65, Some(2), false, "full"),
            (120, None, false, "left alone, but not for long"),
            (121, Some(3), false, "called"),
            (180, None, false, "still full"),
            (181, None, false, "on probation again"),
            (191, None, true, "nobody came"),
        ] {
            assert_eq!(step(minute, from), read_only, "minute {minute}: {why}");
        }
    }

    #[test]
    fn a_public_address_is_no_proof_but_a_reason() {
        let start = Instant::now();
        let mut standing = Standing::new(false, start);
        standing.set_public(true, start);
        assert!(!standing.is_read_only());
        standing.tick(start + PROBATION * 3);
        assert!(!standing.is_read_only());
        standing.set_public(false, start);
        standing.tick(start + PROBATION * 4);
        assert!(standing.is_read_only());
        assert!(!Standing::new(true, start).is_read_only());
    }
}
