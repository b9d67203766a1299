//! One tracker over the wire: HTTP through the shared client, or UDP.
//!
//! [`Tracker::announce`] does one announce, with all its tries, and sends the peers on as soon as they are
//! here. It is the same for all events: a tracker that hasn't heard of us hears `started`, whatever was asked.
//! UDP announces to both address families when the host has both, each with its own socket, connection id and
//! registration. Through a proxy there is one way, and the proxy knows by which family. Dropping the future at any await
//! leaves the tracker usable.
//!
//! Not here: when to announce (`schedule`), bytes (`http`, `udp`).

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{Answer, Ask, Event, TrackerError};
use super::{TrackerOptions, http, udp};
use crate::discovery::{FoundPeers, PeerSource};
use crate::net::hosts::{self, Clients, LookupError, PrivateHost, Reach};
use crate::net::proxy::{Association, ProxyKind, Target};
use crate::net::sockets::Sockets;
use crate::sync::timeouts::{
    TRACKER_HTTP, TRACKER_UDP_CONNECTION, TRACKER_UDP_FIRST, TRACKER_UDP_OTHER, TRACKER_UDP_TRIES,
};

/// The longest tracker URL: browsers and servers take about as much.
const MAX_URL: usize = 2048;

/// A tracker that can be announced to.
pub struct Tracker {
    /// For logs: scheme, host and port. The rest may hold the user's passkey.
    pub name: String,
    transport: Transport,
}

enum Transport {
    Http(HttpTracker),
    Udp(Box<UdpTracker>),
}

struct HttpTracker {
    clients: Arc<Clients>,
    reach: Reach,
    /// The user named it, so its own host may be in the local network.
    named: bool,
    url: Url,
    /// Given by the tracker, sent back to it.
    id: Option<Vec<u8>>,
    registered: bool,
}

struct UdpTracker {
    sockets: Sockets,
    host: String,
    port: u16,
    reach: Reach,
    url_data: String,
    v4: Family,
    v6: Family,
}

/// A UDP tracker by one address family.
#[derive(Default)]
struct Family {
    /// In a row; picks the host's next address.
    failures: usize,
    /// Where it knows us.
    registered: Option<Target>,
    endpoint: Option<Endpoint>,
}

/// An open socket to a tracker. It is connected, so that the kernel drops what others send, and kept while its
/// connection id is good, since some trackers bind the id to our port.
struct Endpoint {
    remote: Target,
    line: Line,
    /// The id and its last moment.
    connection: Option<(u64, Instant)>,
}

/// How packets go there.
enum Line {
    Direct(UdpSocket),
    Proxied(Association),
}

impl Tracker {
    /// A tracker by its URL.
    ///
    /// # Errors
    /// [`TrackerError::BadUrl`], for what isn't a URL of a protocol that is spoken here.
    pub fn new(url: &str, options: &TrackerOptions) -> Result<Self, TrackerError> {
        let bad = |why: &str| TrackerError::BadUrl(why.to_owned());
        let named = options.named.iter().any(|named| named.trim() == url);
        if url.len() > MAX_URL {
            return Err(bad("its URL is too long"));
        }
        let url = Url::parse(url).map_err(|error| TrackerError::BadUrl(format!("not a URL: {error}")))?;
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad("its URL names no host"))?;
        let host = host.to_owned();
        let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
        let name = format!("{}://{host}{port}", url.scheme());
        let transport = match url.scheme() {
            "http" | "https" => {
                let (clients, reach) = (options.http.clone(), options.reach);
                Transport::Http(HttpTracker { clients, reach, named, url, id: None, registered: false })
            }
            "udp" => {
                let port = url.port().ok_or_else(|| bad("a UDP tracker's URL must name a port"))?;
                let path = if url.path() == "/" && url.query().is_none() { "" } else { url.path() };
                let url_data = url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
                if url_data.len() > udp::MAX_URL_DATA {
                    return Err(bad("its URL is too long"));
                }
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let (v4, v6) = (Family::default(), Family::default());
                let reach = if named { Reach::Any } else { options.reach };
                let sockets = options.http.sockets().clone();
                Transport::Udp(Box::new(UdpTracker { sockets, host, port, reach, url_data, v4, v6 }))
            }
            other => return Err(TrackerError::BadUrl(format!("the protocol {other} is not supported"))),
        };
        Ok(Self { name, transport })
    }

    /// It may be in the local network from now on. False if it could before.
    pub fn widen(&mut self) -> bool {
        let reach = match &mut self.transport {
            Transport::Http(tracker) => &mut tracker.reach,
            Transport::Udp(tracker) => &mut tracker.reach,
        };
        std::mem::replace(reach, Reach::Any) != Reach::Any
    }

    /// Whether it knows us, and so is to hear of it when we stop.
    pub fn registered(&self) -> bool {
        match &self.transport {
            Transport::Http(tracker) => tracker.registered,
            Transport::Udp(tracker) => tracker.v4.registered.is_some() || tracker.v6.registered.is_some(),
        }
    }

    /// One announce with all its tries: 15 s at most over HTTP, about 90 s over UDP, and as long as `found` is
    /// full. Peers are sent to `found` as they come; the answer's own list is then empty.
    ///
    /// # Errors
    /// Why no answer came; over UDP, why none came by any address family.
    pub async fn announce(
        &mut self,
        ask: &Ask,
        found: &mpsc::Sender<FoundPeers>,
    ) -> Result<Answer, TrackerError> {
        match &mut self.transport {
            Transport::Http(tracker) => tracker.announce(ask, found).await,
            Transport::Udp(tracker) => tracker.announce(ask, found).await,
        }
    }

    /// When a socket that is no longer of use can be closed with [`Tracker::release_idle`].
    pub fn idle_at(&self) -> Option<Instant> {
        let Transport::Udp(tracker) = &self.transport else { return None };
        [&tracker.v4, &tracker.v6].into_iter().filter_map(Family::idle_at).min()
    }

    /// Closes sockets whose connection id has run out by `now`.
    pub fn release_idle(&mut self, now: Instant) {
        let Transport::Udp(tracker) = &mut self.transport else { return };
        for family in [&mut tracker.v4, &mut tracker.v6] {
            if family.idle_at().is_some_and(|at| at <= now) {
                family.endpoint = None;
            }
        }
    }
}

/// What to tell someone who knows us, or doesn't.
fn event_for(registered: bool, event: Event) -> Event {
    if registered || event == Event::Stopped { event } else { Event::Started }
}

/// Sends an answer's peers on; waits while the channel is full. A closed one means that nobody wants them.
async fn deliver(answer: &mut Answer, event: Event, found: &mpsc::Sender<FoundPeers>) {
    let addrs = std::mem::take(&mut answer.peers);
    if !addrs.is_empty() && event != Event::Stopped {
        let _ = found.send(FoundPeers { source: PeerSource::Tracker, addrs }).await;
    }
}

impl HttpTracker {
    async fn announce(
        &mut self,
        ask: &Ask,
        found: &mpsc::Sender<FoundPeers>,
    ) -> Result<Answer, TrackerError> {
        let ask = Ask { event: event_for(self.registered, ask.event), ..*ask };
        let url = http::announce_url(&self.url, &ask, self.id.as_deref());
        let fetched = timeout(TRACKER_HTTP, self.fetch(url.clone())).await;
        let fetched = match fetched {
            // The user's own word for this very host, not for where a host of the internet redirects to.
            Ok(Err(TrackerError::Private(private))) if self.named && !private.redirected => {
                self.reach = Reach::Any;
                timeout(TRACKER_HTTP, self.fetch(url)).await
            }
            fetched => fetched,
        };
        let mut answer = fetched.map_err(|_| TrackerError::TimedOut(TRACKER_HTTP))??;
        // Noted before the wait below, so that whoever drops us there doesn't forget to say goodbye.
        self.registered = ask.event != Event::Stopped;
        if answer.tracker_id.is_some() {
            self.id.clone_from(&answer.tracker_id);
        }
        deliver(&mut answer, ask.event, found).await;
        Ok(answer)
    }

    async fn fetch(&self, url: Url) -> Result<Answer, TrackerError> {
        let client = self.clients.of(self.reach).map_err(network_error)?;
        let sent = client.get(url.clone())?.send().await;
        let mut response = sent.map_err(|error| match hosts::refused(&error, &url) {
            Some(private) => private.into(),
            None => network_error(error),
        })?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(network_error)? {
            if body.len() + chunk.len() > http::MAX_ANSWER {
                return Err(TrackerError::TooLarge(http::MAX_ANSWER));
            }
            body.extend_from_slice(&chunk);
        }
        // A refusal often comes with a status of its own, but its words say more.
        match http::parse_answer(&body) {
            Err(TrackerError::Refused { reason, retry }) => Err(TrackerError::Refused { reason, retry }),
            _ if !status.is_success() => Err(TrackerError::Status(status.as_u16())),
            result => result,
        }
    }
}

/// The innermost reason, without the URL, which may hold a passkey.
fn network_error(error: reqwest::Error) -> TrackerError {
    if error.is_redirect() {
        return TrackerError::Network("it redirects too often".into());
    }
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    TrackerError::Network(reason)
}

impl UdpTracker {
    async fn announce(
        &mut self,
        ask: &Ask,
        found: &mpsc::Sender<FoundPeers>,
    ) -> Result<Answer, TrackerError> {
        let Self { sockets, host, port, reach, url_data, v4, v6 } = self;
        let (targets4, targets6) = if let Some(proxy) = sockets.proxy() {
            (vec![through(proxy.proxy().kind, host, *port, *reach)?], Vec::new())
        } else {
            // At the end only those who know us are told, and no time is lost with names.
            let known = [&v4.registered, &v6.registered].into_iter().flatten().cloned().collect();
            let found = match ask.event {
                Event::Stopped => known,
                _ => resolve(host, *port, *reach).await?.into_iter().map(Target::Addr).collect::<Vec<_>>(),
            };
            let ours = |target: &Target| target.ip().is_some_and(|ip| sockets.allows(ip));
            if !found.iter().any(ours) && !found.is_empty() {
                return Err(TrackerError::Network(hosts::NOT_FROM_OURS.into()));
            }
            found.into_iter().filter(ours).partition(|target| target.ip().is_some_and(|ip| ip.is_ipv4()))
        };

        let mut running = FuturesUnordered::new();
        for (family, targets) in [(v4, targets4), (v6, targets6)] {
            if !targets.is_empty() {
                running.push(family.announce(sockets, targets, ask, url_data));
            }
        }
        let mut best: Option<Answer> = None;
        let mut error = TrackerError::Network("no address to reach it at".into());
        let mut deadline = None;
        loop {
            let next = match deadline {
                None => running.next().await,
                Some(deadline) => timeout_at(deadline, running.next()).await.ok().flatten(),
            };
            match next {
                Some(Ok(mut answer)) => {
                    deliver(&mut answer, ask.event, found).await;
                    deadline = deadline.or(Some(Instant::now() + TRACKER_UDP_OTHER));
                    best = Some(match best {
                        Some(first) => merge(first, answer),
                        None => answer,
                    });
                }
                Some(Err(why)) => error = why,
                None => return best.ok_or(error),
            }
        }
    }
}

/// Two address families of one tracker: most of their peers are the same ones.
fn merge(first: Answer, second: Answer) -> Answer {
    Answer {
        interval: first.interval.max(second.interval),
        seeders: first.seeders.max(second.seeders),
        leechers: first.leechers.max(second.leechers),
        ..first
    }
}

/// A tracker as a proxy is told of it. By address it must be within reach; a name is the proxy's to look up.
fn through(kind: ProxyKind, host: &str, port: u16, reach: Reach) -> Result<Target, TrackerError> {
    if kind == ProxyKind::Http {
        return Err(TrackerError::Network("an HTTP proxy carries no packets".into()));
    }
    let target = Target::of(host, port);
    match target.ip() {
        Some(ip) if !reach.allows(ip) => Err(PrivateHost::new(host).into()),
        _ => Ok(target),
    }
}

async fn resolve(host: &str, port: u16, reach: Reach) -> Result<Vec<SocketAddr>, TrackerError> {
    hosts::lookup(host, port, reach).await.map_err(|error| match error {
        LookupError::Private(private) => private.into(),
        other => TrackerError::Resolve { host: host.to_owned(), why: other.to_string() },
    })
}

impl Family {
    /// When the endpoint's connection id runs out.
    fn idle_at(&self) -> Option<Instant> {
        self.endpoint.as_ref()?.connection.map(|(_, until)| until)
    }

    /// Announces where it knows us, if that is still one of `targets`; after a failure, at the next of them.
    async fn announce(
        &mut self,
        sockets: &Sockets,
        targets: Vec<Target>,
        ask: &Ask,
        url_data: &str,
    ) -> Result<Answer, TrackerError> {
        let turn = self.failures % targets.len().max(1);
        let known = self.registered.as_ref().filter(|known| self.failures == 0 && targets.contains(known));
        let Some(remote) = known.or(targets.get(turn)).cloned() else {
            return Err(TrackerError::Network("no address to reach it at".into()));
        };
        let ask = Ask { event: event_for(self.registered.as_ref() == Some(&remote), ask.event), ..*ask };
        let opened = match self.endpoint.take() {
            Some(endpoint) if endpoint.remote == remote => Ok(endpoint),
            _ => Endpoint::open(sockets, remote.clone()).await,
        };
        let result = match opened {
            Ok(mut endpoint) => {
                let result = endpoint.announce(&ask, url_data).await;
                self.endpoint = Some(endpoint).filter(|_| result.is_ok());
                result
            }
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => {
                self.failures = 0;
                self.registered = Some(remote).filter(|_| ask.event != Event::Stopped);
            }
            Err(_) => self.failures = self.failures.wrapping_add(1),
        }
        result
    }
}

impl Endpoint {
    async fn open(sockets: &Sockets, remote: Target) -> Result<Self, TrackerError> {
        let line = match (sockets.proxy(), &remote) {
            (Some(proxy), _) => {
                let opened = proxy.associate().await;
                Line::Proxied(opened.map_err(|error| TrackerError::Network(error.to_string()))?)
            }
            (None, Target::Addr(addr)) => Line::Direct(sockets.udp_to(*addr).await.map_err(io_error)?),
            (None, Target::Name(..)) => return Err(TrackerError::Network("its name isn't looked up".into())),
        };
        Ok(Self { remote, line, connection: None })
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        match &self.line {
            Line::Direct(socket) => socket.send(packet).await.map(|_| ()),
            Line::Proxied(association) => association.send(&self.remote, packet).await,
        }
    }

    /// The next packet, and whether it came over IPv6, as who sent it says: of a name that isn't known before.
    async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let is_v6 = |target: &Target| target.ip().is_some_and(|ip| ip.is_ipv6());
        match &mut self.line {
            Line::Direct(socket) => Ok((socket.recv(buffer).await?, is_v6(&self.remote))),
            Line::Proxied(association) => {
                let (len, from) = association.recv(buffer).await?;
                Ok((len, is_v6(&from)))
            }
        }
    }

    /// Connects unless a connection id is still good, and announces; asks again after 3 s, 6 s, and so on.
    async fn announce(&mut self, ask: &Ask, url_data: &str) -> Result<Answer, TrackerError> {
        // The same ids in all tries, so that a late answer to an earlier one counts.
        let (connecting, announcing) = (rand::random(), rand::random());
        let mut patience = TRACKER_UDP_FIRST;
        let mut waited = Duration::ZERO;
        for _ in 0..TRACKER_UDP_TRIES {
            let wait = patience;
            patience *= 2;
            let now = Instant::now();
            let (id, is_old) = match self.connection.filter(|(_, until)| now < *until) {
                Some((id, _)) => (id, true),
                None => match self.ask(&udp::connect_request(connecting), connecting, now + wait).await? {
                    Some(udp::Reply::Connect { connection }) => {
                        self.connection = Some((connection, Instant::now() + TRACKER_UDP_CONNECTION));
                        (connection, false)
                    }
                    Some(udp::Reply::Error(reason)) => {
                        return Err(TrackerError::Refused { reason, retry: None });
                    }
                    Some(udp::Reply::Announce(_)) | None => {
                        waited += now.elapsed();
                        continue;
                    }
                },
            };
            let packet = udp::announce_request(id, announcing, ask, url_data);
            match self.ask(&packet, announcing, Instant::now() + wait).await? {
                Some(udp::Reply::Announce(answer)) => return Ok(answer),
                // It may just have forgotten an id that it gave us a while ago.
                Some(udp::Reply::Error(reason)) if !is_old => {
                    return Err(TrackerError::Refused { reason, retry: None });
                }
                Some(_) | None => self.connection = None,
            }
            waited += now.elapsed();
        }
        Err(TrackerError::TimedOut(waited))
    }

    /// Sends a packet and waits for the one with its transaction id, until `deadline`.
    async fn ask(
        &mut self,
        packet: &[u8],
        transaction: u32,
        deadline: Instant,
    ) -> Result<Option<udp::Reply>, TrackerError> {
        self.send(packet).await.map_err(io_error)?;
        let mut buffer = vec![0; udp::MAX_ANSWER];
        loop {
            let Ok(received) = timeout_at(deadline, self.recv(&mut buffer)).await else {
                return Ok(None);
            };
            let (len, is_v6) = received.map_err(io_error)?;
            let packet = buffer.get(..len).unwrap_or_default();
            match udp::parse_reply(packet, is_v6) {
                Some((id, reply)) if id == transaction => return Ok(Some(reply)),
                // Late, or forged.
                _ => {}
            }
        }
    }
}

fn io_error(error: io::Error) -> TrackerError {
    TrackerError::Network(error.to_string())
}
