//! The listener: takes connections of peers and hands each to the torrent it asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Client, ClientError};
use crate::peer::connect;
use crate::storage::cache::CacheDir;

/// BitTorrent's traditional port, tried first when none was asked for.
const FIRST_PORT: u16 = 6881;
/// Ports tried from there on.
const PORTS: u16 = 64;
/// Connections that have not said yet what they want. More wait in the kernel's queue.
const GREETINGS: usize = 64;
/// After an error of `accept` (no descriptors left): long enough not to spin, short enough not to be felt.
const PAUSE: Duration = Duration::from_millis(200);
/// The name under which the port is kept for the next run.
const PORT_VALUE: &str = "port";

/// Bound sockets of one port.
pub struct Listener {
    sockets: Vec<TcpListener>,
    port: u16,
}

impl Listener {
    /// Binds a port on IPv4 and IPv6, or on the one address given. Without a port: the one of the last run,
    /// 6881, or the next free one.
    ///
    /// # Errors
    /// When the port asked for is taken, or the address isn't one of this machine.
    pub async fn bind(
        addr: Option<IpAddr>,
        port: Option<u16>,
        cache: &CacheDir,
    ) -> Result<Self, ClientError> {
        let listener = match port {
            Some(port) => Self::bind_port(addr, port)?,
            None => {
                let last = cache.value(PORT_VALUE).and_then(|v| v.parse::<u16>().ok());
                let candidates = last.into_iter().chain(FIRST_PORT..FIRST_PORT + PORTS);
                let mut result = None;
                for port in candidates {
                    match Self::bind_port(addr, port) {
                        Ok(listener) => {
                            result = Some(Ok(listener));
                            break;
                        }
                        Err(error) => result = Some(Err(error)),
                    }
                }
                match result {
                    Some(result) => result?,
                    None => Self::bind_port(addr, 0)?,
                }
            }
        };
        if port.is_none()
            && let Err(error) = cache.set_value(PORT_VALUE, &listener.port.to_string())
        {
            tracing::warn!("the port could not be kept for the next time: {error}");
        }
        Ok(listener)
    }

    fn bind_port(addr: Option<IpAddr>, port: u16) -> Result<Self, ClientError> {
        let failed = |addr: SocketAddr| move |source| ClientError::Listen { addr: addr.to_string(), source };
        if let Some(ip) = addr {
            let at = SocketAddr::new(ip, port);
            let socket = open(at).map_err(failed(at))?;
            let port = socket.local_addr().map_err(failed(at))?.port();
            return Ok(Self { sockets: vec![socket], port });
        }
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let socket = open(v4).map_err(failed(v4))?;
        let port = socket.local_addr().map_err(failed(v4))?.port();
        let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let mut sockets = vec![socket];
        match open(v6) {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(failed(v6)(error)),
            // A machine without IPv6.
            Err(error) => tracing::debug!("not listening on IPv6: {error}"),
        }
        Ok(Self { sockets, port })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes connections in tasks of the client's scope, until that is cancelled.
    pub(super) fn run(self, client: &Arc<Client>) {
        let greetings = Arc::new(Semaphore::new(GREETINGS));
        let policy = client.options.encryption;
        for socket in self.sockets {
            let weak = Arc::downgrade(client);
            let (greetings, filter) = (greetings.clone(), client.options.filter.clone());
            let scope = client.scope.child("listener");
            let name = socket.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
            client.scope.spawn(&format!("listen {name}"), async move {
                loop {
                    let Ok(permit) = greetings.clone().acquire_owned().await else { return };
                    let (mut stream, addr) = match socket.accept().await {
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
                    let weak = weak.clone();
                    scope.spawn(&format!("greet {addr}"), async move {
                        let _permit = permit;
                        // Small messages go at once; without it a session is only slower.
                        let _ = stream.set_nodelay(true);
                        // The client isn't kept for as long as the peer takes.
                        let skey_of = |name: &_| weak.upgrade()?.find_obscured(name);
                        let (theirs, line) = match connect::greet(&mut stream, policy, skey_of).await {
                            Ok(greeted) => greeted,
                            Err(error) => return tracing::debug!(peer = %addr, "an incoming connection failed: {error}"),
                        };
                        let Some(client) = weak.upgrade() else { return };
                        if let Some(torrent) = client.find(theirs.info_hash) {
                            let addr = crate::discovery::canonical_peer(addr);
                            torrent.sessions.accept(stream, line, addr, theirs);
                        }
                    });
                }
            });
        }
    }
}

fn open(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A port in its time-wait state after a restart is ours to take again.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}
