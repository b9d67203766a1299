//! The listener: takes connections of peers, over TCP and uTP, and hands each to the torrent it asks for. It binds the UDP
//! port, too, which has the same number.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Client, ClientError};
use crate::discovery::canonical_peer;
use crate::net::connections::Greeting;
use crate::net::sockets::Sockets;
use crate::net::transport::Link;
use crate::net::udp::SharedUdp;
use crate::net::utp;
use crate::peer::connect;
use crate::storage::cache::CacheDir;

/// BitTorrent's traditional port, tried first when none was asked for.
const FIRST_PORT: u16 = 6881;
/// Ports tried from there on.
const PORTS: u16 = 64;
/// Ports of the kernel's choice that are tried until one is free for TCP and UDP.
const ANY_TRIES: usize = 16;
/// Connections that have not said yet what they want. More wait in the kernel's queue.
const GREETINGS: usize = 64;
/// After an error of `accept` (no descriptors left): long enough not to spin, short enough not to be felt.
const PAUSE: Duration = Duration::from_millis(200);
/// The name under which the port is kept for the next run.
const PORT_VALUE: &str = "listen-port";

/// Bound sockets of one port.
pub struct Listener {
    sockets: Vec<TcpListener>,
    udp: Option<Arc<SharedUdp>>,
    port: u16,
}

impl Listener {
    /// Binds a port on IPv4 and IPv6, or on the one address given: for TCP, and if `udp` says so for UDP, too. Without a
    /// port: the one of the last run, 6881, or the next that is free for all of it. UDP alone failing is no failure.
    ///
    /// # Errors
    /// When the port asked for is taken, or the address isn't one of this machine.
    pub async fn bind(
        sockets: &Sockets,
        addr: Option<IpAddr>,
        port: Option<u16>,
        udp: bool,
        cache: &CacheDir,
    ) -> Result<Self, ClientError> {
        let wish = Wish { sockets, addrs: addrs(addr), udp };
        match port {
            Some(0) => return wish.any(),
            Some(port) => return wish.exactly(port),
            None => {}
        }
        let last = cache.value(PORT_VALUE).and_then(|v| v.parse::<u16>().ok()).filter(|port| *port != 0);
        let mut bound = wish.all(last.unwrap_or(FIRST_PORT));
        for port in FIRST_PORT..FIRST_PORT + PORTS {
            if bound.is_ok() {
                break;
            }
            bound = wish.all(port);
        }
        let listener = bound?;
        if let Err(error) = cache.set_value(PORT_VALUE, &listener.port.to_string()) {
            tracing::warn!("the port could not be kept for the next time: {error}");
        }
        Ok(listener)
    }

    /// One that takes nothing.
    pub fn closed() -> Self {
        Self { sockets: Vec::new(), udp: None, port: 0 }
    }

    /// The same port for UDP, or another if that was taken; `None` when none was asked for, or there is none.
    pub fn udp(&self) -> Option<&Arc<SharedUdp>> {
        self.udp.as_ref()
    }

    /// The port; 0 if there is none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes connections in tasks of the client's scope, until that is cancelled: its own, and those over uTP.
    pub(super) fn run(self, client: &Arc<Client>, utp: Option<utp::Incoming>) {
        let greetings = Arc::new(Semaphore::new(GREETINGS));
        if let Some(mut utp) = utp {
            let (weak, greetings) = (Arc::downgrade(client), greetings.clone());
            let connections = client.connections.clone();
            let scope = client.scope.child("listener");
            client.scope.spawn("listen uTP", async move {
                // Others than over TCP wait nowhere, so who comes when too many say nothing is let go.
                while let Some(stream) = utp.accept().await {
                    let Ok(permit) = greetings.clone().try_acquire_owned() else { continue };
                    let addr = stream.peer_addr();
                    let Some(greeting) = connections.greet(addr.ip()) else { continue };
                    let greet = greet(weak.clone(), Link::Utp(stream), addr, (permit, greeting));
                    scope.spawn(&format!("greet {addr} over uTP"), greet);
                }
            });
        }
        for socket in self.sockets {
            let weak = Arc::downgrade(client);
            let (greetings, filter) = (greetings.clone(), client.options.filter.clone());
            let connections = client.connections.clone();
            let scope = client.scope.child("listener");
            let name = socket.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
            client.scope.spawn(&format!("listen {name}"), async move {
                loop {
                    let Ok(permit) = greetings.clone().acquire_owned().await else { return };
                    let (stream, addr) = match socket.accept().await {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            tracing::debug!("accepting a connection failed: {error}");
                            tokio::time::sleep(PAUSE).await;
                            continue;
                        }
                    };
                    if filter.blocks(addr.ip()) {
                        tracing::debug!(peer = %addr, "an incoming connection of --ip-filter was closed");
                        continue;
                    }
                    let Some(greeting) = connections.greet(addr.ip()) else {
                        tracing::debug!(peer = %addr, "one of too many that say nothing was closed");
                        continue;
                    };
                    // Small messages go at once; without it a session is only slower.
                    let _ = stream.set_nodelay(true);
                    let greet = greet(weak.clone(), Link::Tcp(stream), addr, (permit, greeting));
                    scope.spawn(&format!("greet {addr}"), greet);
                }
            });
        }
    }
}

/// Hears for which torrent a peer has connected, and hands it over.
async fn greet(
    client: Weak<Client>,
    mut stream: Link,
    addr: SocketAddr,
    _counted: (OwnedSemaphorePermit, Greeting),
) {
    // The client isn't kept for as long as the peer takes.
    let Some(policy) = client.upgrade().map(|client| client.options.encryption) else { return };
    let skey_of = |name: &_| client.upgrade()?.find_obscured(name);
    let (theirs, line) = match connect::greet(&mut stream, policy, skey_of).await {
        Ok(greeted) => greeted,
        Err(error) => return tracing::debug!(peer = %addr, "an incoming connection failed: {error}"),
    };
    let Some(client) = client.upgrade() else { return };
    if let Some(torrent) = client.find(theirs.info_hash) {
        let eager = torrent.eager.load(Ordering::Relaxed);
        match client.connections.accept(eager, Instant::now()) {
            Some(open) => torrent.sessions.accept(stream, line, canonical_peer(addr), theirs, open),
            None => tracing::debug!(peer = %addr, "there are enough connections"),
        }
    }
}

/// The addresses to listen at: the one that was asked for, or all of IPv4 and all of IPv6.
fn addrs(addr: Option<IpAddr>) -> Vec<IpAddr> {
    match addr {
        Some(addr) => vec![addr],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// What is to be bound.
struct Wish<'a> {
    sockets: &'a Sockets,
    addrs: Vec<IpAddr>,
    udp: bool,
}

impl Wish<'_> {
    /// This port, free for all that is wanted.
    fn all(&self, port: u16) -> Result<Listener, ClientError> {
        let (sockets, port) = self.tcp(port)?;
        let udp = match self.udp(port) {
            Err(source) if source.kind() == ErrorKind::AddrInUse => {
                return Err(ClientError::Listen { addr: format!("UDP port {port}"), source });
            }
            Err(error) => {
                tracing::warn!("no UDP, so neither uTP nor the DHT is there: {error}");
                None
            }
            Ok(udp) => udp,
        };
        Ok(Listener { sockets, udp, port })
    }

    /// Any port. The kernel gives one that is free for the first socket, and the others may find it taken.
    fn any(&self) -> Result<Listener, ClientError> {
        let mut bound = self.all(0);
        for _ in 0..ANY_TRIES {
            match &bound {
                Err(ClientError::Listen { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
                    bound = self.all(0);
                }
                _ => break,
            }
        }
        bound
    }

    /// This port, as the user said: for UDP another one if it must be.
    fn exactly(&self, port: u16) -> Result<Listener, ClientError> {
        let (sockets, port) = self.tcp(port)?;
        let mut udp = self.udp(port);
        if let Err(error) = &udp {
            tracing::warn!("another UDP port than {port} is used, since that can't be: {error}");
            udp = self.udp(0);
        }
        let udp = udp.unwrap_or_else(|error| {
            tracing::warn!("no UDP, so neither uTP nor the DHT is there: {error}");
            None
        });
        Ok(Listener { sockets, udp, port })
    }

    fn tcp(&self, mut port: u16) -> Result<(Vec<TcpListener>, u16), ClientError> {
        let mut sockets = Vec::new();
        for ip in &self.addrs {
            let at = SocketAddr::new(*ip, port);
            let failed = |source| ClientError::Listen { addr: at.to_string(), source };
            match self.sockets.listen(at) {
                Ok(socket) => {
                    port = socket.local_addr().map_err(failed)?.port();
                    sockets.push(socket);
                }
                Err(error) if sockets.is_empty() || error.kind() == ErrorKind::AddrInUse => {
                    return Err(failed(error));
                }
                // A machine without IPv6.
                Err(error) => tracing::debug!("not listening on IPv6: {error}"),
            }
        }
        Ok((sockets, port))
    }

    fn udp(&self, mut port: u16) -> io::Result<Option<Arc<SharedUdp>>> {
        if !self.udp {
            return Ok(None);
        }
        let [mut v4, mut v6] = [None, None];
        for ip in &self.addrs {
            match self.sockets.udp(SocketAddr::new(*ip, port)) {
                Ok(socket) => {
                    port = socket.local_addr()?.port();
                    *(if ip.is_ipv4() { &mut v4 } else { &mut v6 }) = Some(socket);
                }
                Err(error) if v4.is_none() || error.kind() == ErrorKind::AddrInUse => return Err(error),
                Err(error) => tracing::debug!("no UDP on IPv6: {error}"),
            }
        }
        Ok(Some(SharedUdp::new(v4, v6)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn cache(dir: &tempfile::TempDir) -> CacheDir {
        CacheDir::open(dir.path()).unwrap()
    }

    #[tokio::test]
    async fn tcp_and_udp_have_one_port_in_both_families() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&Sockets::default(), None, Some(0), true, &cache(&dir)).await.unwrap();
        let udp = listener.udp().unwrap();
        for (socket, v6) in listener.sockets.iter().zip([false, true]) {
            let at = socket.local_addr().unwrap();
            assert_eq!((at.port(), at.is_ipv6(), udp.local_addr(v6)), (listener.port(), v6, Some(at)));
        }
        let without =
            Listener::bind(&Sockets::default(), Some(HERE), Some(0), false, &cache(&dir)).await.unwrap();
        assert!(without.udp().is_none());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_for_udp_is_passed_over_unless_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, sockets) = (cache(&dir), Sockets::default());
        let taken = sockets.udp(SocketAddr::new(HERE, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let asked = Listener::bind(&sockets, Some(HERE), Some(port), true, &cache).await.unwrap();
        let other = asked.udp().unwrap().local_addr(false).unwrap().port();
        assert_eq!(asked.port(), port);
        assert!(other != port && other != 0);
        drop(asked);
        // That of the last run isn't as good as asked for.
        cache.set_value(PORT_VALUE, &port.to_string()).unwrap();
        let found = Listener::bind(&sockets, Some(HERE), None, true, &cache).await.unwrap();
        assert_ne!(found.port(), port);
        assert_eq!(found.udp().unwrap().local_addr(false).unwrap().port(), found.port());
        assert_eq!(cache.value(PORT_VALUE), Some(found.port().to_string()));
        // And for TCP it is an error.
        let twice = Listener::bind(&sockets, Some(HERE), Some(found.port()), true, &cache).await;
        assert!(matches!(twice, Err(ClientError::Listen { .. })));
    }
}
