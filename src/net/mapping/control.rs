//! One router over port 5351: what to ask it in PCP, or in NAT-PMP if it doesn't speak that, and when. Pure.
//!
//! Flow: [`Control::poll`] gives the next packet for the router, [`Control::received`] takes what it sends, and
//! [`Control::due`] says when to poll again. One question is under way at a time (RFC 6886 wants it so), and is repeated
//! with growing pauses. A mapping is asked for again at half its life. Now and then the router is asked since when it
//! knows what it knows: one that has forgotten is told again.
//!
//! A router that says nothing at all fails, and so does one that refuses everything; whether it is asked once more is the
//! matter of [`super::plan`]. After [`Control::stop`] all that is ours is taken away.
//!
//! Not here: sockets. Whose packets are given to [`Control::received`] is the caller's matter: those of the router alone.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::natpmp::{self, Refusal as NatPmpRefusal};
use super::pcp::{self, Nonce, Refusal as PcpRefusal};
use super::{Dice, LEASE, LOOK, Mapping, Method, Ports, Protocol, RENEW_MIN, Standing};

/// The first wait for an answer: the router is next to us. Doubled each time.
const FIRST: Duration = Duration::from_millis(250);
/// How often a router is asked that hasn't answered yet: 3.75 s in all, for each of the two protocols.
const TRIES: u32 = 4;
/// How often one that did: 32 s. It may be starting anew.
const TRIES_KNOWN: u32 = 7;
/// How often one is asked to take a mapping away: 1.75 s, while the program wants to end.
const TRIES_LAST: u32 = 3;
/// Until a mapping is asked for again that was refused beside one that wasn't, at least and at most.
const REFUSED: [Duration; 2] = [Duration::from_secs(5 * 60), Duration::from_secs(3600)];
/// The longest life of a mapping that is believed.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// See the module's text.
#[derive(Debug)]
pub struct Control {
    local: IpAddr,
    dialect: Dialect,
    leases: Vec<Lease>,
    flight: Option<Flight>,
    /// Since when the router knows what it knows, as it said, and when it said so.
    epoch: Option<(u32, Instant)>,
    address: Option<IpAddr>,
    /// When to look whether all is as it was.
    look: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Pcp,
    NatPmp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Off,
    On,
    Failed(String),
    Stopping,
    Stopped,
}

/// A port that is to be mapped.
#[derive(Debug)]
struct Lease {
    protocol: Protocol,
    internal: u16,
    nonce: Nonce,
    held: Option<Held>,
    /// It was asked for, so the router may have it, whatever was heard of it.
    asked: bool,
    due: Instant,
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    external: u16,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Map(usize),
    Look,
    Remove(usize),
}

/// A question that is under way.
#[derive(Debug)]
struct Flight {
    job: Job,
    packet: Vec<u8>,
    tries: u32,
    wait: Duration,
    until: Instant,
}

impl Control {
    /// Asks nothing before [`Control::start`]. `local` is our address as the router sees it. Nonces follow from the secret,
    /// so that who comes back to a router has those that it knows.
    pub fn new(local: IpAddr, ports: Ports, secret: u64, now: Instant) -> Self {
        let lease = |(protocol, internal)| {
            let nonce = nonce(secret, local.is_ipv6(), protocol, internal);
            Lease { protocol, internal, nonce, held: None, asked: false, due: now, refused: None }
        };
        Self {
            local,
            dialect: Dialect::Pcp,
            leases: ports.each().map(lease).collect(),
            flight: None,
            epoch: None,
            address: None,
            look: now,
            stage: Stage::Off,
        }
    }

    /// From now on the router is asked, as if nothing were known of it.
    pub fn start(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Stopping | Stage::Stopped) {
            return;
        }
        (self.stage, self.dialect, self.flight, self.epoch) = (Stage::On, Dialect::Pcp, None, None);
        for lease in &mut self.leases {
            (lease.held, lease.due, lease.refused) = (None, now, None);
        }
    }

    /// All that is mapped is asked for again: something may have changed.
    pub fn renew(&mut self, now: Instant) {
        for lease in &mut self.leases {
            lease.due = now;
        }
    }

    /// From now on all that is ours is taken away, and nothing else asked.
    pub fn stop(&mut self) {
        self.flight = None;
        self.stage = match self.stage {
            Stage::On | Stage::Stopping => Stage::Stopping,
            _ => Stage::Stopped,
        };
    }

    /// Whether nothing is left to be done after [`Control::stop`].
    pub fn is_stopped(&self) -> bool {
        self.stage == Stage::Stopped
    }

    /// How it stands.
    pub fn standing(&self) -> Standing<'_> {
        match &self.stage {
            Stage::Failed(why) => Standing::Failed(why),
            _ if self.is_holding() => Standing::Mapped,
            _ => Standing::Trying,
        }
    }

    /// What is mapped.
    pub fn mappings(&self) -> impl Iterator<Item = Mapping> {
        let method = match self.dialect {
            Dialect::Pcp => Method::Pcp,
            Dialect::NatPmp => Method::NatPmp,
        };
        self.leases.iter().filter_map(move |lease| {
            Some(Mapping {
                method,
                protocol: lease.protocol,
                internal: lease.internal,
                external: lease.held?.external,
                address: self.address,
            })
        })
    }

    /// When to poll again, if nothing comes. May have passed.
    pub fn due(&self) -> Option<Instant> {
        if let Some(flight) = &self.flight {
            return Some(flight.until);
        }
        let leases = self.leases.iter().map(|lease| lease.due);
        let look = self.is_holding().then_some(self.look);
        (self.stage == Stage::On).then(|| leases.chain(look).min()).flatten()
    }

    /// The next packet for the router, if it is time for one. To be called until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        for lease in &mut self.leases {
            lease.held = lease.held.filter(|held| now < held.until);
        }
        if let Some(flight) = &mut self.flight {
            if now < flight.until {
                return None;
            }
            flight.tries = flight.tries.saturating_sub(1);
            if flight.tries > 0 {
                flight.wait *= 2;
                flight.until = now + flight.wait;
                return Some(flight.packet.clone());
            }
            let job = flight.job;
            self.flight = None;
            self.silent(job, now);
        }
        let job = self.next(now)?;
        let tries = match job {
            Job::Remove(_) => TRIES_LAST,
            _ if self.is_holding() => TRIES_KNOWN,
            _ => TRIES,
        };
        let packet = self.packet(job);
        if let Job::Map(at) = job
            && let Some(lease) = self.leases.get_mut(at)
        {
            lease.asked = true;
        }
        self.flight = Some(Flight { job, packet: packet.clone(), tries, wait: FIRST, until: now + FIRST });
        Some(packet)
    }

    fn next(&mut self, now: Instant) -> Option<Job> {
        match self.stage {
            Stage::On => {
                let map = self.leases.iter().position(|lease| lease.due <= now).map(Job::Map);
                map.or_else(|| (self.is_holding() && self.look <= now).then_some(Job::Look))
            }
            Stage::Stopping => {
                // Those that the router is known to have first: there isn't much time.
                let held = self.leases.iter().position(|lease| lease.held.is_some());
                let next = held.or_else(|| self.leases.iter().position(|lease| lease.asked));
                if next.is_none() {
                    self.stage = Stage::Stopped;
                }
                next.map(Job::Remove)
            }
            Stage::Off | Stage::Failed(_) | Stage::Stopped => None,
        }
    }

    fn packet(&self, job: Job) -> Vec<u8> {
        let lifetime = if matches!(job, Job::Remove(_)) { 0 } else { LEASE.as_secs() as u32 };
        let lease = match job {
            Job::Map(at) | Job::Remove(at) => self.leases.get(at),
            Job::Look => None,
        };
        // The port that it has; one that the other protocol has got already; our own.
        let wish = |lease: &Lease| {
            let other = self.leases.iter().find_map(|lease| lease.held);
            let wish = lease.held.or(other).map_or(lease.internal, |held| held.external);
            if lifetime == 0 { 0 } else { wish }
        };
        match (self.dialect, lease) {
            (Dialect::Pcp, lease) => {
                let map = lease.map(|lease| pcp::Map {
                    nonce: lease.nonce,
                    protocol: lease.protocol,
                    internal: lease.internal,
                    external: wish(lease),
                    address: pcp::any_like(self.local),
                });
                let lifetime = if map.is_some() { lifetime } else { 0 };
                pcp::Request { client: self.local, lifetime, map }.encode()
            }
            (Dialect::NatPmp, None) => natpmp::Request::Address.encode(),
            (Dialect::NatPmp, Some(lease)) => {
                let (protocol, internal) = (lease.protocol, lease.internal);
                natpmp::Request::Map { protocol, internal, external: wish(lease), lifetime }.encode()
            }
        }
    }

    fn is_holding(&self) -> bool {
        self.leases.iter().any(|lease| lease.held.is_some())
    }

    /// The router has said nothing, for as long as it was waited for.
    fn silent(&mut self, job: Job, now: Instant) {
        match job {
            Job::Map(_) if self.dialect == Dialect::Pcp && self.local.is_ipv4() && !self.is_holding() => {
                self.dialect = Dialect::NatPmp;
            }
            _ => self.failed(job, "the router doesn't answer", REFUSED[0], now),
        }
    }

    /// There is nobody at the router's port: no need to wait any longer.
    pub fn unreachable(&mut self, now: Instant) {
        if self.is_holding() && self.stage == Stage::On {
            // It may be starting anew.
            return;
        }
        if let Some(flight) = self.flight.take() {
            self.failed(flight.job, "the router takes no such orders", REFUSED[0], now);
        }
    }

    fn failed(&mut self, job: Job, why: &str, again: Duration, now: Instant) {
        match job {
            Job::Look => self.look = now + LOOK,
            Job::Remove(at) => self.removed(at),
            Job::Map(at) => {
                let Some(lease) = self.leases.get_mut(at) else { return };
                lease.refused = Some(why.to_owned());
                lease.due = match lease.held {
                    Some(held) => now + (held.until.saturating_duration_since(now) / 2).max(RENEW_MIN),
                    None => now + again,
                };
                // One that has done nothing for us yet won't do the next thing either.
                let all = self.leases.iter().all(|lease| lease.refused.is_some());
                if !self.is_holding() && (all || self.epoch.is_none()) {
                    self.stage = Stage::Failed(why.to_owned());
                }
            }
        }
    }

    /// A packet of the router's. What answers no question of ours is left alone.
    pub fn received(&mut self, packet: &[u8], now: Instant) {
        let Some(job) = self.flight.as_ref().map(|flight| flight.job) else { return };
        match self.dialect {
            Dialect::Pcp => self.received_pcp(job, packet, now),
            Dialect::NatPmp => self.received_natpmp(job, packet, now),
        }
    }

    fn received_pcp(&mut self, job: Job, packet: &[u8], now: Instant) {
        let Some(reply) = pcp::Reply::decode(packet) else { return };
        if matches!(reply.refused, Some(PcpRefusal::Version | PcpRefusal::Operation)) && self.local.is_ipv4()
        {
            self.flight = None;
            if self.is_holding() {
                // It doesn't know how to look, or has become another one.
                return self.failed(job, "the router speaks another version of PCP", REFUSED[0], now);
            }
            self.dialect = Dialect::NatPmp;
            return;
        }
        let lease = match job {
            Job::Map(at) | Job::Remove(at) => self.leases.get(at),
            Job::Look => None,
        };
        let ours = |map: &pcp::Map, lease: &Lease| {
            (map.nonce, map.protocol, map.internal) == (lease.nonce, lease.protocol, lease.internal)
        };
        let answers = match (&reply.map, lease) {
            (Some(map), Some(lease)) => ours(map, lease),
            (None, Some(_)) => reply.refused.is_some(),
            (map, None) => map.is_none(),
        };
        if !answers || reply.refused.is_none() && is_late(job, reply.lifetime) {
            return;
        }
        self.flight = None;
        if let Some(why) = reply.refused {
            let [least, most] = REFUSED;
            let again = match why {
                PcpRefusal::Network => Duration::from_secs(60),
                _ => Duration::from_secs(reply.lifetime.into()).clamp(least, most),
            };
            return self.failed(job, &why.to_string(), again, now);
        }
        self.told_epoch(reply.epoch, now);
        match (job, reply.map) {
            (Job::Map(at), Some(map)) => {
                self.address = Some(map.address);
                self.mapped(at, map.external, reply.lifetime, now);
            }
            (Job::Remove(at), _) => self.removed(at),
            _ => self.look = now + LOOK,
        }
    }

    fn received_natpmp(&mut self, job: Job, packet: &[u8], now: Instant) {
        let Some(reply) = natpmp::Reply::decode(packet) else { return };
        match (reply, job) {
            // It answers what we asked in PCP, which may have been more than once, and by its operation that can't be told
            // from an answer to what is under way. To its own version it doesn't say that.
            (natpmp::Reply::Refused(NatPmpRefusal::Version), _) => {}
            (natpmp::Reply::Refused(why), _) => {
                self.flight = None;
                let again = if why == NatPmpRefusal::Network { Duration::from_secs(60) } else { REFUSED[0] };
                self.failed(job, &why.to_string(), again, now);
            }
            (natpmp::Reply::Address { epoch, address }, Job::Look) => {
                self.flight = None;
                self.address = Some(address.into());
                self.look = now + LOOK;
                self.told_epoch(epoch, now);
            }
            (
                natpmp::Reply::Map { epoch, protocol, internal, external, lifetime },
                Job::Map(at) | Job::Remove(at),
            ) => {
                let Some(lease) = self.leases.get(at) else { return };
                if (lease.protocol, lease.internal) != (protocol, internal) || is_late(job, lifetime) {
                    return;
                }
                self.flight = None;
                self.told_epoch(epoch, now);
                if matches!(job, Job::Remove(_)) {
                    return self.removed(at);
                }
                if !self.is_holding() {
                    // Its address is told by another question.
                    self.look = now;
                }
                self.mapped(at, external, lifetime, now);
            }
            _ => {}
        }
    }

    fn mapped(&mut self, at: usize, external: u16, lifetime: u32, now: Instant) {
        if external == 0 || lifetime == 0 {
            return self.failed(Job::Map(at), "the router's answer isn't understood", REFUSED[0], now);
        }
        if self.dialect == Dialect::Pcp && !self.is_holding() {
            self.look = now + LOOK;
        }
        let Some(lease) = self.leases.get_mut(at) else { return };
        let life = Duration::from_secs(lifetime.into()).clamp(2 * RENEW_MIN, LONGEST);
        lease.held = Some(Held { external, until: now + life });
        lease.due = now + (life / 2).max(RENEW_MIN);
        lease.refused = None;
    }

    fn removed(&mut self, at: usize) {
        if let Some(lease) = self.leases.get_mut(at) {
            (lease.held, lease.asked) = (None, false);
        }
    }

    /// The router's clock counts from when it forgot all: one that is behind what it must show has forgotten since. Its
    /// own pace is allowed for, as RFC 6886 has it.
    fn told_epoch(&mut self, epoch: u32, now: Instant) {
        let Some((before, then)) = self.epoch.replace((epoch, now)) else { return };
        let passed = now.saturating_duration_since(then).as_secs().saturating_mul(7) / 8;
        if u64::from(epoch) + 2 < u64::from(before) + passed {
            self.renew(now);
        }
    }
}

/// What says that a mapping is ours.
fn nonce(secret: u64, is_ipv6: bool, protocol: Protocol, internal: u16) -> Nonce {
    let which = u64::from(is_ipv6) << 32 | u64::from(protocol.number()) << 16 | u64::from(internal);
    let mut dice = Dice::new(secret ^ which);
    let mut nonce = Nonce::default();
    for part in nonce.chunks_mut(4) {
        part.copy_from_slice(&dice.roll().to_be_bytes()[..4]);
    }
    nonce
}

/// Whether an answer is to the question for a mapping that is to be taken away by now.
fn is_late(job: Job, lifetime: u32) -> bool {
    matches!(job, Job::Remove(_)) && lifetime > 0
}
