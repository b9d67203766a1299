//! Which way a port is mapped, and what is told of it. Pure.
//!
//! For IPv4 there are two ways, of which one maps at a time, since most routers keep one table for both, and what one
//! way takes back the other would miss. The router's own protocols ([`Control`]) have the first turn; UPnP ([`Igd`])
//! searches meanwhile, and has its turn when they fail. When both have failed, and when the way that had worked no longer
//! does, all begins again after a pause that grows. For IPv6 there is PCP alone, which opens the firewall.
//!
//! With another router or another address of ours ([`Plan::moved`]) a family begins anew, and the other one isn't touched.
//! What counts there is taken along: nonces, and the ports that a router over UPnP may still map.
//!
//! Flow: [`Plan::poll`] gives what is to be sent, [`Plan::due`] when to poll again; what comes is given to
//! [`Plan::received`], [`Plan::found`] and [`Plan::answered`]. After [`Plan::stop`] what is ours is taken away, until
//! [`Plan::is_stopped`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::control::Control;
use super::http::Response;
use super::igd::{self, Igd, Left};
use super::{Dice, Ports, Protocol, Standing, Status};
use crate::net::hosts::is_private;

/// The pause after nothing has worked, first and at most: a router is seldom taught anything, but the user may.
const RETRY: [Duration; 2] = [Duration::from_secs(2 * 60), Duration::from_secs(3600)];

/// One of the two families: which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To the router of this family, at its port for such orders.
    Control(Line, Vec<u8>),
    /// As [`igd::Ask::Search`].
    Search(Vec<Vec<u8>>),
    /// As [`igd::Ask::Http`]. One is under way at a time, and [`Plan::answered`] is to be called for it.
    Http {
        /// To whom.
        to: SocketAddr,
        /// All of it.
        request: Vec<u8>,
    },
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Where {
    /// In IPv4: our address, and the router's.
    pub v4: Option<(Ipv4Addr, Ipv4Addr)>,
    /// In IPv6, likewise.
    pub v6: Option<(Ipv6Addr, SocketAddrV6)>,
    /// In IPv4 there is nothing to ask for: our address is one of the internet.
    pub direct: bool,
    /// Where to search for UPnP.
    pub group: SocketAddr,
}

/// See the module's text.
#[derive(Debug)]
pub struct Plan {
    ports: Ports,
    place: Where,
    v4: Option<Four>,
    v6: Option<Six>,
    /// Of the last router over UPnP, while there is none.
    left: Option<Left>,
    /// From which the nonces follow.
    secret: u64,
    dice: Dice,
    stopping: bool,
}

#[derive(Debug)]
struct Four {
    control: Control,
    igd: Igd,
    turn: Turn,
    pause: Pause,
    /// Why the first way has failed this time.
    first: String,
    /// Why all has failed, the last time that it did.
    why: Option<String>,
}

#[derive(Debug)]
struct Six {
    control: Control,
    pause: Pause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Control,
    Igd,
}

/// Until all begins again.
#[derive(Debug)]
struct Pause {
    next: Duration,
    until: Option<Instant>,
}

impl Pause {
    fn new() -> Self {
        Self { next: RETRY[0], until: None }
    }

    fn begin(&mut self, now: Instant) {
        self.until = Some(now + self.next);
        self.next = (self.next * 2).min(RETRY[1]);
    }

    /// It is over: true once.
    fn is_over(&mut self, now: Instant) -> bool {
        self.until.take_if(|until| *until <= now).is_some()
    }
}

impl Plan {
    /// Begins with the first [`Plan::poll`]. Who knows the seed knows what says that mappings are ours.
    pub fn new(ports: Ports, place: Where, seed: u64, now: Instant) -> Self {
        let mut dice = Dice::new(seed);
        let nowhere = Where { v4: None, v6: None, ..place };
        let secret = dice.roll();
        let (v4, v6, left) = (None, None, None);
        let mut plan = Self { ports, place: nowhere, v4, v6, left, secret, dice, stopping: false };
        plan.moved(place, now);
        plan
    }

    /// We may be somewhere else: whoever is asked now is asked as if nothing were known of him.
    pub fn moved(&mut self, place: Where, now: Instant) {
        let before = std::mem::replace(&mut self.place, place);
        if before.v4 != place.v4 {
            self.left = self.v4.take().map(|four| four.igd.leave()).or(self.left.take());
            self.v4 = place.v4.map(|(local, gateway)| {
                let mut control = Control::new(local.into(), self.ports, self.secret, now);
                let mut igd = Igd::new(local, gateway, place.group, self.ports, &mut self.dice, now);
                if let Some(left) = self.left.take() {
                    igd.follow(left);
                }
                control.start(now);
                igd.start(now);
                let (pause, first) = (Pause::new(), String::new());
                Four { control, igd, turn: Turn::Control, pause, first, why: None }
            });
        }
        if before.v6 != place.v6 {
            self.v6 = place.v6.map(|(local, _)| {
                let mut control = Control::new(local.into(), self.ports, self.secret, now);
                control.start(now);
                Six { control, pause: Pause::new() }
            });
        }
    }

    /// Looks again at what is mapped, and begins again where nothing is: something may have changed.
    pub fn renew(&mut self, now: Instant) {
        if let Some(four) = &mut self.v4 {
            four.control.renew(now);
            four.igd.renew(now);
            four.pause.next = RETRY[0];
            four.pause.until = four.pause.until.map(|_| now);
        }
        if let Some(six) = &mut self.v6 {
            six.control.renew(now);
            six.pause.next = RETRY[0];
            six.pause.until = six.pause.until.map(|_| now);
        }
    }

    /// From now on what is ours is taken away, and nothing else asked.
    pub fn stop(&mut self) {
        self.stopping = true;
        if let Some(four) = &mut self.v4 {
            four.control.stop();
            four.igd.stop();
        }
        if let Some(six) = &mut self.v6 {
            six.control.stop();
        }
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether nothing is left to be done after [`Plan::stop`], and a poll after it.
    pub fn is_stopped(&self) -> bool {
        let four = self.v4.as_ref().is_none_or(|four| four.control.is_stopped() && four.igd.is_stopped());
        self.stopping && four && self.v6.as_ref().is_none_or(|six| six.control.is_stopped())
    }

    /// When to poll again, if nothing comes. May have passed.
    pub fn due(&self) -> Option<Instant> {
        let pause = |pause: &Pause| pause.until.filter(|_| !self.stopping);
        let four = self.v4.iter().flat_map(|four| [four.control.due(), four.igd.due(), pause(&four.pause)]);
        let six = self.v6.iter().flat_map(|six| [six.control.due(), pause(&six.pause)]);
        four.chain(six).flatten().min()
    }

    /// What is to be sent now.
    pub fn poll(&mut self, now: Instant) -> Vec<Ask> {
        let mut asks = Vec::new();
        if let Some(four) = &mut self.v4 {
            four.poll(self.stopping, now, &mut asks);
        }
        if let Some(six) = &mut self.v6 {
            six.poll(self.stopping, now, &mut asks);
        }
        asks
    }

    /// A packet of the router's.
    pub fn received(&mut self, line: Line, packet: &[u8], now: Instant) {
        if let Some(control) = self.control(line) {
            control.received(packet, now);
        }
    }

    /// There is nobody at the router's port.
    pub fn unreachable(&mut self, line: Line, now: Instant) {
        if let Some(control) = self.control(line) {
            control.unreachable(now);
        }
    }

    fn control(&mut self, line: Line) -> Option<&mut Control> {
        match line {
            Line::V4 => self.v4.as_mut().map(|four| &mut four.control),
            Line::V6 => self.v6.as_mut().map(|six| &mut six.control),
        }
    }

    /// A packet that may answer a search.
    pub fn found(&mut self, packet: &[u8], from: SocketAddr) {
        if let Some(four) = &mut self.v4 {
            four.igd.found(packet, from);
        }
    }

    /// What came of the question over HTTP.
    pub fn answered(&mut self, answer: Result<Response, String>, now: Instant) {
        if let Some(four) = &mut self.v4 {
            four.igd.answered(answer, now);
        }
    }

    /// What is mapped now, and why nothing is.
    pub fn status(&self) -> Status {
        let four = self.v4.iter().flat_map(|four| four.control.mappings().chain(four.igd.mappings()));
        let six = self.v6.iter().flat_map(|six| six.control.mappings());
        let mappings: Vec<_> = four.chain(six).collect();
        let mapped_v4 =
            |address: &IpAddr| address.is_ipv4() && (address.is_unspecified() || is_private(*address));
        let double_nat = mappings.iter().filter_map(|mapping| mapping.address).find(mapped_v4);
        let trouble = match (&self.v4, double_nat) {
            (None, _) if self.v6.is_none() && !self.place.direct => Some("there is no router".to_owned()),
            (_, Some(address)) if address.is_unspecified() => Some("the router has no connection".to_owned()),
            (_, Some(address)) => Some(format!(
                "the router's own address, {address}, is a private one: another router stands before it"
            )),
            (Some(four), None) if mappings.is_empty() => four.why.clone(),
            _ => None,
        };
        Status { mappings, trouble, direct: self.place.direct }
    }
}

impl Four {
    fn poll(&mut self, stopping: bool, now: Instant, asks: &mut Vec<Ask>) {
        loop {
            if self.pause.is_over(now) && !stopping {
                self.turn = Turn::Control;
                self.control.start(now);
                self.igd.start(now);
            }
            while let Some(packet) = self.control.poll(now) {
                asks.push(Ask::Control(Line::V4, packet));
            }
            while let Some(ask) = self.igd.poll(now) {
                asks.push(match ask {
                    igd::Ask::Search(packets) => Ask::Search(packets),
                    igd::Ask::Http { to, request } => Ask::Http { to, request },
                });
            }
            if stopping || self.pause.until.is_some() || !self.turned(now) {
                return;
            }
        }
    }

    /// Whether something has changed that wants another poll.
    fn turned(&mut self, now: Instant) -> bool {
        match (self.turn, self.control.standing(), self.igd.standing()) {
            (Turn::Control, Standing::Mapped, _) => {
                self.worked();
                self.igd.off();
                false
            }
            (Turn::Control, Standing::Failed(why), _) => {
                self.first = why.to_owned();
                self.turn = Turn::Igd;
                if self.igd.is_off() {
                    self.igd.start(now);
                }
                self.igd.allow();
                true
            }
            (Turn::Igd, _, Standing::Mapped) => {
                self.worked();
                false
            }
            (Turn::Igd, _, Standing::Failed(why)) => {
                self.why = Some(format!("PCP and NAT-PMP: {}; UPnP: {why}", self.first));
                self.pause.begin(now);
                false
            }
            _ => false,
        }
    }

    fn worked(&mut self) {
        self.why = None;
        self.pause.next = RETRY[0];
    }
}

impl Six {
    fn poll(&mut self, stopping: bool, now: Instant, asks: &mut Vec<Ask>) {
        if self.pause.is_over(now) && !stopping {
            self.control.start(now);
        }
        while let Some(packet) = self.control.poll(now) {
            asks.push(Ask::Control(Line::V6, packet));
        }
        match self.control.standing() {
            Standing::Failed(_) if !stopping && self.pause.until.is_none() => self.pause.begin(now),
            Standing::Mapped => self.pause.next = RETRY[0],
            Standing::Failed(_) | Standing::Trying => {}
        }
    }
}

impl Status {
    /// The port at which the internet reaches `protocol` of ours over IPv4, if it is mapped.
    pub fn port(&self, protocol: Protocol) -> Option<u16> {
        let v4 = |mapping: &&super::Mapping| mapping.address.is_none_or(|address| address.is_ipv4());
        self.mappings
            .iter()
            .filter(v4)
            .find(|mapping| mapping.protocol == protocol)
            .map(|mapping| mapping.external)
    }

    /// The addresses that routers say are ours, as far as the internet can reach them.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.mappings.iter().filter_map(|mapping| mapping.address).collect();
        all.retain(|address| !is_private(*address));
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
