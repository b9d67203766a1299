//! Asking the router to let peers through: PCP, NAT-PMP and UPnP.
//!
//! Parts: [`PortMapping`] is the handle, and its task `portmap` the only one with sockets. [`plan`] decides whom to ask
//! and when; [`control`] is one router over PCP ([`pcp`]) or NAT-PMP ([`natpmp`]), [`igd`] one over UPnP ([`ssdp`],
//! [`soap`] over [`http`] and [`xml`]): all pure. [`gateway`] finds the router. [`port`] is what others are told.
//! Flow: the task carries packets between the plan and the network, and publishes what the plan has come to. Nothing waits
//! for it: a mount is ready before the router has answered, and what was learnt later is told to trackers and to the DHT
//! by whoever watches [`PortMapping::changed`].
//!
//! Routers are strangers' work, and what answers in the local network may be anybody: each answer is bounded in bytes and
//! time, is believed only from the address that was asked, and leads nowhere else.
//!
//! Where we are is looked at now and then, and whenever our addresses change: a router is asked from the address that it is
//! to send peers to, which is the one of `--listen` if there is one, and what was asked from another begins anew.
//!
//! A machine whose own address is one of the internet asks nobody: there is no router to ask, and a provider's network is
//! no place to search in.
//!
//! Not here: what others see of our address.

pub mod control;
#[cfg(test)]
pub(super) mod for_tests;
pub mod gateway;
pub mod http;
pub mod igd;
pub mod natpmp;
pub mod pcp;
pub mod plan;
pub mod port;
pub mod soap;
pub mod ssdp;
pub mod xml;

use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep_until, timeout};

use self::gateway::Routes;
use self::http::Response;
use self::plan::{Ask, Line, Plan, Where};
use super::hosts::is_private;
use super::sockets::Sockets;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::MAPPING_HTTP;

/// How long a mapping is asked for. It is renewed at half of that; one that we leave behind is gone by the end of it, unless
/// the router knows no end.
const LEASE: Duration = Duration::from_secs(3600);
/// Between two looks whether all is as it was.
const LOOK: Duration = Duration::from_secs(5 * 60);
/// The shortest time until a mapping is renewed, however short its life.
const RENEW_MIN: Duration = Duration::from_secs(5);
/// Between two looks at the way out of this machine.
const ROUTES_LOOK: Duration = Duration::from_secs(30);
/// Where routers take orders (PCP, NAT-PMP).
const CONTROL_PORT: u16 = 5351;
/// A place in the internet that is nobody's (RFC 3849): only the way there is looked at.
const SOMEWHERE: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9, 0, 0));
/// The longest packet that is read: PCP's own bound, and more than any answer to a search has.
const MAX_PACKET: usize = 2048;

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As the internet numbers it.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// How a port was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The Port Control Protocol.
    Pcp,
    /// NAT-PMP.
    NatPmp,
    /// UPnP.
    Upnp,
}

impl Method {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// Our ports that peers are to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Of the listener.
    pub tcp: u16,
    /// Of uTP and the DHT, if either is in use.
    pub udp: Option<u16>,
}

impl Ports {
    fn each(self) -> impl Iterator<Item = (Protocol, u16)> {
        [(Protocol::Tcp, self.tcp)].into_iter().chain(self.udp.map(|port| (Protocol::Udp, port)))
    }
}

/// A port that the router lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// How.
    pub method: Method,
    /// Of what.
    pub protocol: Protocol,
    /// Our port.
    pub internal: u16,
    /// The port outside. The router's choice, if ours was taken.
    pub external: u16,
    /// The address outside, as the router says.
    pub address: Option<IpAddr>,
}

/// What has come of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// What is mapped.
    pub mappings: Vec<Mapping>,
    /// Why nothing is, or why it is of no use; for the user.
    pub trouble: Option<String>,
    /// Our address is one of the internet: there is nothing to ask for.
    pub direct: bool,
}

/// How one way is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Not known yet.
    Trying,
    /// A port is mapped.
    Mapped,
    /// Nothing is, and why.
    Failed(&'a str),
}

/// Numbers that nobody guesses who doesn't know the first: for nonces and ports.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a number that is chosen at random, or in tests isn't.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What the task is started with.
#[derive(Clone)]
pub struct Setup {
    /// What to map.
    pub ports: Ports,
    /// The routers, looked up anew each time: it must not block.
    pub routes: Arc<dyn Fn() -> Routes + Send + Sync>,
    /// Where routers take orders.
    pub control_port: u16,
    /// Where to search for UPnP.
    pub group: SocketAddr,
}

impl Setup {
    /// For the routers of this machine; through `device` alone if there is one.
    pub fn new(ports: Ports, device: Option<&str>) -> Self {
        let device = device.map(str::to_owned);
        let routes = Arc::new(move || Routes::read(device.as_deref()));
        Self { ports, routes, control_port: CONTROL_PORT, group: ssdp::GROUP }
    }
}

/// The ports that the router maps for us. [`PortMapping::remove`] takes them back; so does dropping this, without being
/// waited for.
pub struct PortMapping {
    status: watch::Receiver<Status>,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
    refresh: Arc<Notify>,
}

impl PortMapping {
    /// Starts the task `portmap` in `scope`. Waits for nothing.
    pub fn start(scope: &TaskScope, sockets: Sockets, setup: Setup) -> Arc<Self> {
        let (tell, status) = watch::channel(Status::default());
        let (stop, stopping) = watch::channel(false);
        let (told_stopped, stopped) = watch::channel(false);
        let refresh = Arc::new(Notify::new());
        let task =
            Task { sockets, setup, tell, stop: stopping, stopped: told_stopped, refresh: refresh.clone() };
        scope.spawn("portmap", task.run());
        Arc::new(Self { status, stop, stopped, refresh })
    }

    /// What has come of it so far. Takes no lock for longer than a copy.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Tells when that changes.
    pub fn changed(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// An address or the way out of this machine has changed: looks at once instead of within half a minute.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Takes the mappings back, and ends the task; `limit` at most. True if all was taken back. Cancel-safe.
    pub async fn remove(&self, limit: Duration) -> bool {
        self.stop.send_replace(true);
        let mut stopped = self.stopped.clone();
        // An error is the end of the task, which something else has ended.
        timeout(limit, stopped.wait_for(|stopped| *stopped)).await.is_ok_and(|told| told.is_ok())
    }
}

struct Task {
    sockets: Sockets,
    setup: Setup,
    tell: watch::Sender<Status>,
    stop: watch::Receiver<bool>,
    stopped: watch::Sender<bool>,
    refresh: Arc<Notify>,
}

/// A question over HTTP that is under way.
type Asking = Pin<Box<dyn Future<Output = Result<Response, String>> + Send>>;

/// The sockets to the routers of the moment.
#[derive(Default)]
struct Lines {
    /// With our address, and the router's.
    v4: Option<(UdpSocket, Ipv4Addr, Ipv4Addr)>,
    search: Option<UdpSocket>,
    v6: Option<(UdpSocket, Ipv6Addr, SocketAddrV6)>,
    /// Our address is one of the internet.
    direct: bool,
}

/// What happened.
enum Came {
    Control(Line, io::Result<usize>),
    Found(io::Result<(usize, SocketAddr)>),
    Answer(Result<Response, String>),
    Stop,
    Refresh,
    Due,
}

impl Task {
    async fn run(mut self) {
        self.keep().await;
        self.stopped.send_replace(true);
    }

    /// Keeps ports mapped until it is to end, and all is taken back.
    async fn keep(&mut self) {
        let mut lines = self.look().await;
        let mut plan = Plan::new(self.setup.ports, lines.place(self.setup.group), rand::random(), now());
        let mut asking: Option<Asking> = None;
        let mut look = now() + ROUTES_LOOK;
        let (mut buffers, mut found) = ([[0; MAX_PACKET]; 2], [0; MAX_PACKET]);
        loop {
            for ask in plan.poll(now()) {
                match ask {
                    Ask::Control(line, packet) => lines.send(line, &packet).await,
                    Ask::Search(packets) => lines.search(self.setup.group, &packets).await,
                    Ask::Http { to, request } => {
                        asking = Some(Box::pin(exchange(self.sockets.clone(), to, request)));
                    }
                }
            }
            if !plan.is_stopping() {
                self.publish(plan.status());
            }
            if plan.is_stopped() {
                return;
            }
            let wake = plan.due().map_or(look, |due| due.min(look));
            let [first, second] = &mut buffers;
            let came = tokio::select! {
                () = told(&mut self.stop), if !plan.is_stopping() => Came::Stop,
                () = self.refresh.notified() => Came::Refresh,
                answer = answered(&mut asking) => Came::Answer(answer),
                n = receive(lines.v4.as_ref().map(|(socket, ..)| socket), first) => Came::Control(Line::V4, n),
                n = receive(lines.v6.as_ref().map(|(socket, ..)| socket), second) => Came::Control(Line::V6, n),
                n = receive_from(lines.search.as_ref(), &mut found) => Came::Found(n),
                () = sleep_until(wake.into()) => Came::Due,
            };
            let now = now();
            match came {
                Came::Control(line, Ok(n)) => {
                    let packet = if line == Line::V4 { first.get(..n) } else { second.get(..n) };
                    plan.received(line, packet.unwrap_or_default(), now);
                }
                Came::Control(line, Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                    plan.unreachable(line, now);
                }
                Came::Found(Ok((n, from))) => plan.found(found.get(..n).unwrap_or_default(), from),
                Came::Control(_, Err(error)) | Came::Found(Err(error)) => {
                    tracing::debug!("a router couldn't be heard: {error}");
                }
                Came::Answer(answer) => {
                    asking = None;
                    plan.answered(answer, now);
                }
                Came::Stop => plan.stop(),
                Came::Due if now < look => {}
                Came::Due | Came::Refresh => {
                    look = now + ROUTES_LOOK;
                    if plan.is_stopping() {
                        continue;
                    }
                    if lines.replace(self.look().await) {
                        // It went to a router, or from an address, that isn't ours any more.
                        asking = None;
                    }
                    plan.moved(lines.place(self.setup.group), now);
                    if matches!(came, Came::Refresh) {
                        plan.renew(now);
                    }
                }
            }
        }
    }

    /// Where we are now. Sends nothing.
    async fn look(&self) -> Lines {
        let routes = (self.setup.routes)();
        Lines::open(&self.sockets, self.setup.control_port, &routes).await
    }

    /// Says what has come of it, if that is something else than before.
    fn publish(&self, status: Status) {
        self.tell.send_if_modified(|before| {
            if *before == status {
                return false;
            }
            for mapping in status.mappings.iter().filter(|mapping| !before.mappings.contains(mapping)) {
                let Mapping { method, protocol, internal, external, address } = mapping;
                // Where the address has to be asked for it is known a moment later.
                let Some(address) = address else { continue };
                tracing::info!(
                    "the router lets peers through to port {internal} ({}, by {}), from its port {external} of {address}",
                    protocol.name(),
                    method.name()
                );
            }
            match &status.trouble {
                Some(trouble) if before.trouble.as_ref() != Some(trouble) => {
                    tracing::info!("peers may not reach us through the router: {trouble}");
                }
                _ => {}
            }
            *before = status;
            true
        });
    }
}

/// The clock that the sleeps follow.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Lines {
    /// Sockets to these routers. One that can't be had is left out.
    async fn open(sockets: &Sockets, control_port: u16, routes: &Routes) -> Self {
        let mut lines = Self::default();
        for router in routes.routers() {
            let mut at = router;
            at.set_port(control_port);
            let Some(from) = outward(sockets, router).await else { continue };
            match (connected(sockets, from, at).await, router) {
                // Nothing stands between us and the internet; and whom we would search for isn't ours to search for.
                (Ok((_, IpAddr::V4(local))), _) if !is_private(local.into()) => lines.direct = true,
                (Ok((socket, IpAddr::V4(local))), SocketAddr::V4(router)) => {
                    // Where the kernel sends what goes to a group follows from where it comes from.
                    lines.search = sockets.udp(SocketAddrV4::new(local, 0).into()).ok();
                    lines.v4 = Some((socket, local, *router.ip()));
                }
                (Ok((socket, IpAddr::V6(local))), SocketAddr::V6(router)) => {
                    lines.v6 = Some((socket, local, router));
                }
                // Both ends are of one family.
                (Ok(_), _) => {}
                (Err(error), _) => tracing::debug!("the router {router} can't be asked: {error}"),
            }
        }
        lines
    }

    /// Where they begin and lead to.
    fn place(&self, group: SocketAddr) -> Where {
        Where { v4: self.ends_v4(), v6: self.ends_v6(), direct: self.direct, group }
    }

    fn ends_v4(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        self.v4.as_ref().map(|(_, local, gateway)| (*local, *gateway))
    }

    fn ends_v6(&self) -> Option<(Ipv6Addr, SocketAddrV6)> {
        self.v6.as_ref().map(|(_, local, router)| (*local, *router))
    }

    /// Takes of others those of a family that has moved. True if that is IPv4.
    fn replace(&mut self, others: Self) -> bool {
        let moved = self.ends_v4() != others.ends_v4();
        self.direct = others.direct;
        if self.ends_v6() != others.ends_v6() {
            self.v6 = others.v6;
        }
        if moved {
            (self.v4, self.search) = (others.v4, others.search);
        }
        moved
    }

    /// One that can't be sent is lost, as others are on the way.
    async fn send(&self, line: Line, packet: &[u8]) {
        let socket = match line {
            Line::V4 => self.v4.as_ref().map(|(socket, ..)| socket),
            Line::V6 => self.v6.as_ref().map(|(socket, ..)| socket),
        };
        let Some(socket) = socket else { return };
        if let Err(error) = socket.send(packet).await {
            tracing::debug!("a router couldn't be asked: {error}");
        }
    }

    async fn search(&self, group: SocketAddr, packets: &[Vec<u8>]) {
        let Some(socket) = &self.search else { return };
        for packet in packets {
            if let Err(error) = socket.send_to(packet, group).await {
                tracing::debug!("routers couldn't be searched for: {error}");
            }
        }
    }
}

/// From where a router is asked: what it lets through leads there, so it is where we listen. `None` in a family in which we
/// don't, and in IPv6 without an address of the internet: a router of IPv6 is known by an address of its link, and would see
/// ours of that link, which is of no use.
async fn outward(sockets: &Sockets, router: SocketAddr) -> Option<SocketAddr> {
    let from = SocketAddr::new(sockets.listens(router.is_ipv6())?, 0);
    if router.is_ipv4() || router.ip().is_loopback() {
        return Some(from);
    }
    // Connecting sends nothing: it has the kernel choose.
    let (_, ours) = connected(sockets, from, SOMEWHERE).await.ok()?;
    (!is_private(ours)).then_some(SocketAddr::new(ours, 0))
}

/// A socket from one address to another, and ours as seen from there. The kernel drops what others send.
async fn connected(sockets: &Sockets, from: SocketAddr, to: SocketAddr) -> io::Result<(UdpSocket, IpAddr)> {
    let socket = sockets.udp(from)?;
    socket.connect(to).await?;
    let local = socket.local_addr()?.ip();
    Ok((socket, local))
}

/// Waits for the word to stop; the end of who could say it is one.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(buffer).await,
        None => pending().await,
    }
}

async fn receive_from(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => pending().await,
    }
}

async fn answered(asking: &mut Option<Asking>) -> Result<Response, String> {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

/// One question over HTTP, on a connection of its own. Bounded in time and bytes.
async fn exchange(sockets: Sockets, to: SocketAddr, request: Vec<u8>) -> Result<Response, String> {
    let talk = async {
        let mut stream = sockets.connect(to).await.map_err(|error| error.to_string())?;
        stream.write_all(&request).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        loop {
            let mut some = [0; 4096];
            let n = stream.read(&mut some).await.map_err(|error| error.to_string())?;
            answer.extend_from_slice(some.get(..n).unwrap_or_default());
            if let Some(response) = Response::read(&answer, n == 0).map_err(|error| error.to_string())? {
                return Ok(response);
            }
        }
    };
    match timeout(MAPPING_HTTP, talk).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", MAPPING_HTTP.as_secs())),
    }
}

#[cfg(test)]
mod tests;
