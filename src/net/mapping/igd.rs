//! A router over UPnP: finding it, what to ask it, and when. Pure.
//!
//! Flow: a search goes out in rounds; who answers is described, and of the connections that a description names the first
//! one is taken that is connected. That much happens by itself; ports are mapped only from [`Igd::allow`] on, so that the
//! quick protocols have their turn first. A port that another machine has is left alone, and another one asked for, the
//! same for TCP and UDP; one that leads to us already is ours. Routers that know no end of a mapping get one without, and
//! that one above all is taken away in [`Igd::stop`]. Now and then it is looked whether the mapping still stands.
//!
//! What was mapped when the router was lost, or when our address changed ([`Igd::leave`]), may still be, or be another's by
//! now: it is looked at, and taken away or kept if it is ours.
//!
//! One question is under way at a time: [`Igd::poll`] gives it, and [`Igd::answered`] must be called for each that goes
//! over HTTP.
//!
//! Not here: sockets; IPv6, for which routers have PCP.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::http::{Place, Response, get};
use super::soap::{Action, Fault, Service, Values, services};
use super::{Dice, LEASE, LOOK, Mapping, Method, Ports, Protocol, RENEW_MIN, Standing, ssdp};
use crate::net::hosts::is_private;

/// Until the next round of the search, and after the last one until it is over: devices answer within 2 s.
const ROUNDS: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(3)];
/// From the beginning of one search to that of the next, at least: a router that comes and goes isn't run after.
const SEARCH_PAUSE: Duration = Duration::from_secs(30);
/// What each round looks for, of [`ssdp::TARGETS`].
const TARGETS: [usize; 3] = [2, 4, 5];
/// Devices that are looked at: a network with more has a joker in it.
const MAX_DEVICES: usize = 8;
/// Lives of a mapping that are asked for, in seconds: as we like it; without end; the longest of version 2, whose routers
/// know no mapping without end.
const LIVES: [u32; 3] = [LEASE.as_secs() as u32, 0, 604_800];
/// Ports that are tried when the first is taken.
const CONFLICTS: u32 = 8;
/// Routers that went away in the midst of being asked, in a row.
const LOSSES: u32 = 3;
/// Until a mapping is asked for again that was refused beside one that wasn't.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// Ports that others than us may be known by aren't taken.
const FIRST_FREE_PORT: u16 = 10_000;

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To the group.
    Search(Vec<Vec<u8>>),
    /// To a router; wants an answer.
    Http {
        /// To whom.
        to: SocketAddr,
        /// All of it.
        request: Vec<u8>,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Igd {
    local: Ipv4Addr,
    gateway: Ipv4Addr,
    group: SocketAddr,
    stage: Stage,
    allowed: bool,
    /// The round, and when it begins.
    search: Option<(usize, Instant)>,
    /// When the last search began.
    searched: Option<Instant>,
    seen: Vec<Place>,
    places: VecDeque<Place>,
    candidates: VecDeque<Service>,
    /// One that doesn't say whether it is connected.
    doubtful: Option<Service>,
    chosen: Option<Service>,
    /// The last one that was chosen: who is searched for anew may still hold our ports.
    known: Option<Service>,
    asked: Option<Step>,
    /// What follows from the last answer.
    next: Option<(Step, Action)>,
    leases: Vec<Lease>,
    /// The port outside that is tried.
    port: u16,
    conflicts: u32,
    /// Which of [`LIVES`].
    life: usize,
    /// The router was asked to choose a port itself.
    asked_any: bool,
    /// Ports that are ours and no longer wanted.
    stale: Vec<(Protocol, u16)>,
    /// Ports that were ours, and may be still.
    past: Vec<Past>,
    address: Option<IpAddr>,
    look: Instant,
    look_address: Instant,
    losses: u32,
    dice: Dice,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Off,
    On,
    Failed(String),
    Stopping,
    Stopped,
}

#[derive(Debug)]
struct Lease {
    protocol: Protocol,
    internal: u16,
    held: Option<Held>,
    /// `None` for one without end.
    due: Option<Instant>,
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    external: u16,
    until: Option<Instant>,
}

/// A port that was mapped for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Past {
    protocol: Protocol,
    external: u16,
    /// Where it led.
    client: (Ipv4Addr, u16),
    until: Option<Instant>,
}

/// What is left of one that was given up: see [`Igd::leave`].
#[derive(Debug)]
pub struct Left {
    gateway: Ipv4Addr,
    known: Option<Service>,
    past: Vec<Past>,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Describe(Place),
    Status(Service),
    Address,
    Add {
        at: usize,
        any: bool,
    },
    /// Whether a port that is taken is so by us.
    Whose(usize),
    Look(usize),
    /// Whether a port that was ours is so still.
    Past(Past),
    Delete,
}

impl Igd {
    /// Does nothing before [`Igd::start`]. `gateway` is preferred to others that answer; `group` is where to search.
    pub fn new(
        local: Ipv4Addr,
        gateway: Ipv4Addr,
        group: SocketAddr,
        ports: Ports,
        dice: &mut Dice,
        now: Instant,
    ) -> Self {
        let lease =
            |(protocol, internal)| Lease { protocol, internal, held: None, due: Some(now), refused: None };
        Self {
            local,
            gateway,
            group,
            stage: Stage::Off,
            allowed: false,
            search: None,
            searched: None,
            seen: Vec::new(),
            places: VecDeque::new(),
            candidates: VecDeque::new(),
            doubtful: None,
            chosen: None,
            known: None,
            asked: None,
            next: None,
            leases: ports.each().map(lease).collect(),
            port: ports.tcp,
            conflicts: 0,
            life: 0,
            asked_any: false,
            stale: Vec::new(),
            past: Vec::new(),
            address: None,
            look: now,
            look_address: now,
            losses: 0,
            dice: Dice::new(dice.roll()),
        }
    }

    /// Searches, as if nothing were known.
    pub fn start(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Stopping | Stage::Stopped) {
            return;
        }
        (self.stage, self.allowed, self.losses, self.life) = (Stage::On, false, 0, 0);
        (self.conflicts, self.asked_any) = (0, false);
        self.let_go();
        // Who was told the port that we had finds us there again.
        let had = self.past.first().map(|past| past.external);
        self.port = had.or(self.leases.first().map(|lease| lease.internal)).unwrap_or_default();
        for lease in &mut self.leases {
            (lease.due, lease.refused) = (Some(now), None);
        }
        self.search_again(now);
    }

    /// Gives it up, since our address or the router is another one: what it mapped is for the one that follows.
    pub fn leave(mut self) -> Left {
        self.let_go();
        let asked = match self.asked {
            Some(Step::Add { at, any: false }) => {
                self.leases.get(at).map(|lease| (lease.protocol, self.port))
            }
            _ => None,
        };
        for (protocol, external) in std::mem::take(&mut self.stale).into_iter().chain(asked) {
            let lease = self.leases.iter().find(|lease| lease.protocol == protocol);
            self.past.extend(lease.map(|lease| Past {
                protocol,
                external,
                client: (self.local, lease.internal),
                until: None,
            }));
        }
        Left { gateway: self.gateway, known: self.known, past: self.past }
    }

    /// Follows one that was given up. Only the same router has ports of ours.
    pub fn follow(&mut self, left: Left) {
        if left.gateway == self.gateway {
            (self.known, self.past) = (left.known, left.past);
        }
    }

    /// What is held counts no more, though the router may have it.
    fn let_go(&mut self) {
        let held = self.leases.iter_mut().filter_map(|lease| {
            let Held { external, until } = lease.held.take()?;
            let client = (self.local, lease.internal);
            Some(Past { protocol: lease.protocol, external, client, until })
        });
        self.past.extend(held);
    }

    fn search_again(&mut self, now: Instant) {
        let soonest = self.searched.map_or(now, |searched| searched + SEARCH_PAUSE);
        self.search = Some((0, now.max(soonest)));
        self.seen.clear();
        self.places.clear();
        self.candidates.clear();
        (self.doubtful, self.chosen, self.next) = (None, None, None);
    }

    /// From now on ports may be mapped.
    pub fn allow(&mut self) {
        self.allowed = true;
    }

    /// Nothing more is asked; nothing is mapped yet.
    pub fn off(&mut self) {
        if matches!(self.stage, Stage::On | Stage::Failed(_)) {
            self.stage = Stage::Off;
        }
    }

    /// Whether it was never started, or is off again.
    pub fn is_off(&self) -> bool {
        self.stage == Stage::Off
    }

    /// All that is mapped is asked for again: something may have changed.
    pub fn renew(&mut self, now: Instant) {
        for lease in &mut self.leases {
            lease.due = Some(now);
        }
        self.look_address = now;
    }

    /// From now on all that is ours is taken away, and nothing else asked.
    pub fn stop(&mut self) {
        let is_left = self.is_holding() || !self.stale.is_empty() || !self.past.is_empty();
        self.stage = match self.stage {
            Stage::On | Stage::Stopping => Stage::Stopping,
            Stage::Off | Stage::Failed(_) if is_left => Stage::Stopping,
            _ => Stage::Stopped,
        };
    }

    /// Whether nothing is left to be done after [`Igd::stop`].
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
        self.leases.iter().filter_map(|lease| {
            Some(Mapping {
                method: Method::Upnp,
                protocol: lease.protocol,
                internal: lease.internal,
                external: lease.held?.external,
                address: self.address,
            })
        })
    }

    /// When to poll again, if nothing comes. May have passed.
    pub fn due(&self) -> Option<Instant> {
        if self.asked.is_some() || self.stage != Stage::On {
            return None;
        }
        if self.chosen.is_none() {
            return self.search.map(|(_, at)| at);
        }
        let leases = self.leases.iter().filter_map(|lease| lease.due);
        let looks = self.is_holding().then_some(self.look.min(self.look_address));
        self.allowed.then(|| leases.chain(looks).min()).flatten()
    }

    /// The next thing to be sent, if it is time for one. To be called until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Ask> {
        for lease in &mut self.leases {
            lease.held = lease.held.filter(|held| held.until.is_none_or(|until| now < until));
        }
        self.past.retain(|past| past.until.is_none_or(|until| now < until));
        if self.asked.is_some() {
            return None;
        }
        match self.stage {
            Stage::On if self.chosen.is_none() => self.look_around(now),
            Stage::On if self.allowed => self.keep(now),
            Stage::Stopping => self.take_away(),
            _ => None,
        }
    }

    /// On the way to a connection.
    fn look_around(&mut self, now: Instant) -> Option<Ask> {
        if let Some(service) = self.candidates.pop_front() {
            let ask = ask(&service, Action::Status);
            self.asked = Some(Step::Status(service));
            return Some(ask);
        }
        // Others than the gateway only when it has had its time to answer.
        let patient = self.search.is_some_and(|(round, _)| round < ROUNDS.len());
        let gateway = IpAddr::V4(self.gateway);
        if self.places.front().is_some_and(|place| !patient || place.at.ip() == gateway)
            && let Some(place) = self.places.pop_front()
        {
            let ask = Ask::Http { to: place.at, request: get(&place) };
            self.asked = Some(Step::Describe(place));
            return Some(ask);
        }
        match self.search {
            Some((_, at)) if now < at => None,
            Some((round, _)) if let (Some(wait), Some(targets)) = (ROUNDS.get(round), TARGETS.get(round)) => {
                if round == 0 {
                    self.searched = Some(now);
                }
                self.search = Some((round + 1, now + *wait));
                let targets = ssdp::TARGETS.iter().take(*targets);
                Some(Ask::Search(targets.map(|target| ssdp::search(self.group, target)).collect()))
            }
            _ => {
                self.search = None;
                if !self.places.is_empty() {
                    return self.look_around(now);
                }
                match self.doubtful.take() {
                    Some(service) => {
                        self.choose(service, now);
                        if self.allowed { self.keep(now) } else { None }
                    }
                    None => {
                        let why =
                            if self.seen.is_empty() { "no router answers" } else { "no router is connected" };
                        self.fail(why);
                        None
                    }
                }
            }
        }
    }

    fn choose(&mut self, service: Service, now: Instant) {
        self.known = Some(service.clone());
        self.chosen = Some(service);
        self.search = None;
        (self.look, self.look_address) = (now + LOOK, now);
    }

    /// With a connection: what is due.
    fn keep(&mut self, now: Instant) -> Option<Ask> {
        let step = if let Some(next) = self.next.take() {
            next
        } else if let Some((protocol, external)) = self.stale.pop() {
            (Step::Delete, Action::Delete { protocol, external })
        } else if let Some(past) = self.past.first() {
            past.look()
        } else if let Some(at) = self.leases.iter().position(|lease| lease.due.is_some_and(|due| due <= now))
        {
            (Step::Add { at, any: false }, self.add(at, false)?)
        } else if self.is_holding() && self.look_address <= now {
            (Step::Address, Action::Address)
        } else if self.look <= now
            && let Some((at, lease, held)) =
                self.leases.iter().enumerate().find_map(|(at, lease)| Some((at, lease, lease.held?)))
        {
            (Step::Look(at), Action::Look { protocol: lease.protocol, external: held.external })
        } else {
            return None;
        };
        self.ask(step.0, step.1)
    }

    fn ask(&mut self, step: Step, action: Action) -> Option<Ask> {
        let ask = ask(self.chosen.as_ref().or(self.known.as_ref())?, action);
        self.asked = Some(step);
        Some(ask)
    }

    fn add(&self, at: usize, any: bool) -> Option<Action> {
        let lease = self.leases.get(at)?;
        Some(Action::Add {
            protocol: lease.protocol,
            external: self.port,
            client: self.local,
            internal: lease.internal,
            lease: LIVES.get(self.life).copied().unwrap_or_default(),
            any,
        })
    }

    fn take_away(&mut self) -> Option<Ask> {
        let leases = &mut self.leases;
        let held = || leases.iter_mut().find_map(|lease| Some((lease.protocol, lease.held.take()?.external)));
        let delete = |(protocol, external)| (Step::Delete, Action::Delete { protocol, external });
        let next = self.stale.pop().or_else(held).map(delete).or_else(|| self.past.first().map(Past::look));
        let ask = next.and_then(|(step, action)| self.ask(step, action));
        if ask.is_none() {
            self.stage = Stage::Stopped;
        }
        ask
    }

    fn is_holding(&self) -> bool {
        self.leases.iter().any(|lease| lease.held.is_some())
    }

    /// An answer to a search. What can't be a router of this network is left alone.
    pub fn found(&mut self, packet: &[u8], from: SocketAddr) {
        let searching = self.stage == Stage::On && self.chosen.is_none();
        let is_gateway = from.ip() == IpAddr::V4(self.gateway);
        if !searching || self.seen.len() >= MAX_DEVICES || !is_gateway && !is_private(from.ip()) {
            return;
        }
        let Some(place) = ssdp::answer(packet, from).filter(|place| !self.seen.contains(place)) else {
            return;
        };
        self.seen.push(place.clone());
        if is_gateway {
            self.places.push_front(place);
        } else {
            self.places.push_back(place);
        }
    }

    /// What came of the question that is under way.
    pub fn answered(&mut self, answer: Result<Response, String>, now: Instant) {
        let Some(step) = self.asked.take() else { return };
        let values = |answer: &Result<Response, String>| match answer {
            Ok(response) => Ok(Values::read(response)),
            Err(why) => Err(why.clone()),
        };
        if self.stage == Stage::Stopping {
            match (step, values(&answer)) {
                // One that is mapped only now is to be taken away with the others.
                (Step::Add { at, any }, Ok(Ok(values))) => self.added(at, any, &values, now),
                (Step::Past(past), values) => self.looked_back(&past, values, now),
                _ => {}
            }
            return;
        }
        if self.stage != Stage::On {
            return;
        }
        match step {
            Step::Describe(place) => match answer {
                Ok(response) if response.status == 200 => {
                    self.candidates.extend(services(&response.text(), &place));
                }
                _ => {}
            },
            Step::Status(service) => match values(&answer) {
                Ok(Ok(values)) if values.connected() == Some(true) => self.choose(service, now),
                Ok(Ok(values)) if values.connected() == Some(false) => {}
                Ok(_) => self.doubtful = self.doubtful.take().or(Some(service)),
                Err(_) => {}
            },
            Step::Delete => {}
            Step::Address => {
                self.look_address = now + LOOK;
                if let Ok(Ok(values)) = values(&answer) {
                    self.address = values.address();
                }
            }
            Step::Add { at, any } => match values(&answer) {
                Ok(Ok(values)) => self.added(at, any, &values, now),
                Ok(Err(fault)) => self.not_added(at, any, &fault, now),
                Err(why) => self.lost(at, &why, now),
            },
            Step::Whose(at) => match values(&answer) {
                Ok(Ok(values)) if self.is_ours(at, &values) => {
                    self.mapped(at, values.lease().unwrap_or(0), now)
                }
                Ok(_) => self.other_port(at, now),
                Err(why) => self.lost(at, &why, now),
            },
            Step::Past(past) => self.looked_back(&past, values(&answer), now),
            Step::Look(at) => {
                self.look = now + LOOK;
                match values(&answer) {
                    Ok(Ok(values)) if self.is_ours(at, &values) => {}
                    // It was taken away, or given to another.
                    Ok(Ok(_)) | Ok(Err(Fault::Upnp { code: 713 | 714, .. })) => {
                        for lease in &mut self.leases {
                            (lease.held, lease.due) = (None, Some(now));
                        }
                    }
                    // It doesn't know how to tell.
                    Ok(Err(_)) => {}
                    Err(why) => self.lost(at, &why, now),
                }
            }
        }
    }

    fn is_ours(&self, at: usize, values: &Values) -> bool {
        let ours = self.leases.get(at).map(|lease| (self.local, lease.internal));
        ours.is_some() && values.client() == ours
    }

    /// What became of a port that was ours. One of which that can't be told is left alone.
    fn looked_back(&mut self, past: &Past, values: Result<Result<Values, Fault>, String>, now: Instant) {
        self.past.retain(|other| other != past);
        let Ok(Ok(values)) = values else { return };
        if values.client() != Some(past.client) {
            return;
        }
        let wanted = self
            .leases
            .iter()
            .position(|lease| (lease.protocol, (self.local, lease.internal)) == (past.protocol, past.client));
        match wanted {
            Some(at) if self.stage == Stage::On && past.external == self.port => {
                self.mapped(at, values.lease().unwrap_or(0), now);
            }
            _ => self.stale.push((past.protocol, past.external)),
        }
    }

    /// A router that was to choose the port itself says which.
    fn added(&mut self, at: usize, any: bool, values: &Values, now: Instant) {
        if any {
            let Some(port) = values.reserved() else { return self.other_port(at, now) };
            self.port = port;
        }
        self.mapped(at, LIVES.get(self.life).copied().unwrap_or_default(), now);
    }

    fn mapped(&mut self, at: usize, life: u32, now: Instant) {
        self.losses = 0;
        let port = self.port;
        // The other protocol has another port outside: it gets this one, so that one is all that peers need to know.
        for (other, lease) in self.leases.iter_mut().enumerate() {
            if other != at
                && let Some(held) = lease.held.filter(|held| held.external != port)
            {
                self.stale.push((lease.protocol, held.external));
                (lease.held, lease.due) = (None, Some(now));
            }
        }
        let Some(lease) = self.leases.get_mut(at) else { return };
        self.past.retain(|past| (past.protocol, past.external) != (lease.protocol, port));
        if let Some(held) = lease.held.filter(|held| held.external != port) {
            self.stale.push((lease.protocol, held.external));
        }
        let life = (life > 0).then(|| Duration::from_secs(life.into()));
        lease.held = Some(Held { external: port, until: life.map(|life| now + life) });
        lease.due = life.map(|life| now + (life / 2).clamp(RENEW_MIN, LEASE / 2));
        lease.refused = None;
    }

    fn not_added(&mut self, at: usize, any: bool, fault: &Fault, now: Instant) {
        match fault.code() {
            // Only mappings without end; arguments that it doesn't like; failed, whatever that means.
            Some(725) if self.life == 0 => self.life = 1,
            Some(402 | 501) if !any && self.life + 1 < LIVES.len() => self.life += 1,
            Some(718) if !any => {
                let look = self.leases.get(at).map(|lease| lease.protocol);
                if let Some(protocol) = look {
                    let external = self.port;
                    self.next = Some((Step::Whose(at), Action::Look { protocol, external }));
                }
            }
            _ if any => self.other_port(at, now),
            _ => self.refused(at, &fault.to_string(), now),
        }
    }

    /// The port is another machine's.
    fn other_port(&mut self, at: usize, now: Instant) {
        self.conflicts += 1;
        if self.conflicts > CONFLICTS {
            return self.refused(at, "all ports that were tried are taken", now);
        }
        let finds_port = self.chosen.as_ref().is_some_and(|service| service.finds_port);
        if finds_port && at == 0 && !self.asked_any {
            self.asked_any = true;
            if let Some(action) = self.add(at, true) {
                self.next = Some((Step::Add { at, any: true }, action));
            }
            return;
        }
        let ports = u64::from(u16::MAX - FIRST_FREE_PORT);
        self.port = FIRST_FREE_PORT + (self.dice.roll() % ports) as u16;
        if let Some(lease) = self.leases.get_mut(at) {
            lease.due = Some(now);
        }
    }

    fn refused(&mut self, at: usize, why: &str, now: Instant) {
        let Some(lease) = self.leases.get_mut(at) else { return };
        lease.refused = Some(why.to_owned());
        lease.due = Some(match lease.held.and_then(|held| held.until) {
            Some(until) => now + (until.saturating_duration_since(now) / 2).max(RENEW_MIN),
            None => now + REFUSED,
        });
        (self.conflicts, self.asked_any, self.life) = (0, false, 0);
        if !self.is_holding() && self.leases.iter().all(|lease| lease.refused.is_some()) {
            self.fail(why);
        }
    }

    fn fail(&mut self, why: &str) {
        self.stage = Stage::Failed(why.to_owned());
        self.let_go();
    }

    /// The router doesn't answer any more where it did. It may have started anew, and be somewhere else now.
    fn lost(&mut self, at: usize, why: &str, now: Instant) {
        self.losses += 1;
        if self.losses >= LOSSES {
            self.losses = 0;
            self.refused(at, why, now);
        } else if self.stage == Stage::On {
            for lease in &mut self.leases {
                lease.due = Some(now);
            }
            self.search_again(now);
        }
    }
}

impl Past {
    fn look(&self) -> (Step, Action) {
        (Step::Past(*self), Action::Look { protocol: self.protocol, external: self.external })
    }
}

/// What is asked of a connection.
fn ask(service: &Service, action: Action) -> Ask {
    Ask::Http { to: service.control.at, request: action.request(service) }
}
