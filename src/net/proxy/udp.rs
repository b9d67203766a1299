//! Packets through a SOCKS5 proxy: an association, which lives as long as its connection.
//!
//! Not here: opening one anew. Who has one that is closed asks the [`super::Dialer`] for another.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};

use super::Target;
use super::socks5::{MAX_HEAD, unwrap, wrap};
use crate::net::hosts::is_private;
use crate::net::sockets::Sockets;

/// An association with a proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Association {
    socket: UdpSocket,
    stream: TcpStream,
    relay: SocketAddr,
}

/// Where the proxy takes packets: as it says, unless that can't be it. A name isn't looked up, and an address that says
/// nothing, or is one of the proxy's own network where we aren't, stands for the one at which we reached it.
pub(super) fn relay(bound: &Target, proxy: SocketAddr) -> SocketAddr {
    match bound {
        Target::Addr(addr) => {
            let ip = addr.ip().to_canonical();
            let elsewhere =
                is_private(ip) && !is_private(proxy.ip()) || ip.is_loopback() && !proxy.ip().is_loopback();
            if ip.is_unspecified() || ip.is_multicast() || elsewhere {
                with_port(proxy, addr.port())
            } else {
                SocketAddr::new(ip, addr.port())
            }
        }
        Target::Name(_, port) => with_port(proxy, *port),
    }
}

fn with_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
    addr.set_port(port);
    addr
}

impl Association {
    /// With the connection over which it was made.
    pub(super) async fn new(sockets: &Sockets, stream: TcpStream, relay: SocketAddr) -> io::Result<Self> {
        // Connected, so that the kernel drops what others send.
        let socket = sockets.udp_to(relay).await?;
        Ok(Self { socket, stream, relay })
    }

    /// Where the proxy takes packets.
    pub fn relay(&self) -> SocketAddr {
        self.relay
    }

    /// Sends a packet to a target. Cancel-safe.
    ///
    /// # Errors
    /// Of the network, or of a target whose name is too long.
    pub async fn send(&self, to: &Target, packet: &[u8]) -> io::Result<()> {
        let wrapped = wrap(to, packet).map_err(io::Error::other)?;
        self.socket.send(&wrapped).await.map(|_| ())
    }

    /// The next packet: its length, and from whom. One that is longer than `buffer` is cut, as by any socket. Cancel-safe.
    ///
    /// # Errors
    /// Of the network; `UnexpectedEof` when the association is closed.
    pub async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Target)> {
        let mut whole = vec![0; buffer.len() + MAX_HEAD];
        let mut ignored = [0; 64];
        loop {
            let n = tokio::select! {
                biased;
                n = self.socket.recv(&mut whole) => n?,
                // The proxy says nothing more here: its end is the association's.
                n = self.stream.read(&mut ignored) => match n? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => continue,
                },
            };
            let Some((from, payload)) = unwrap(whole.get(..n).unwrap_or_default()) else { continue };
            let length = payload.len().min(buffer.len());
            if let (Some(to), Some(payload)) = (buffer.get_mut(..length), payload.get(..length)) {
                to.copy_from_slice(payload);
            }
            return Ok((length, from));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_relay_is_where_the_proxy_means() {
        for (bound, proxy, expected) in [
            ("1.2.3.4:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("1.2.3.5:9", "1.2.3.4:1080", "1.2.3.5:9"),
            ("0.0.0.0:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("[::]:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("[::ffff:0.0.0.0]:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("10.0.0.1:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("127.0.0.1:9", "1.2.3.4:1080", "1.2.3.4:9"),
            ("127.0.0.1:9", "10.0.0.1:1080", "10.0.0.1:9"),
            ("10.0.0.2:9", "10.0.0.1:1080", "10.0.0.2:9"),
            ("127.0.0.2:9", "127.0.0.1:1080", "127.0.0.2:9"),
            ("[2001:db8::1]:9", "[2001:db8::2]:1080", "[2001:db8::1]:9"),
            ("224.0.0.1:9", "10.0.0.1:1080", "10.0.0.1:9"),
        ] {
            let bound = Target::Addr(bound.parse().unwrap());
            assert_eq!(relay(&bound, proxy.parse().unwrap()), expected.parse().unwrap(), "{bound} {proxy}");
        }
        let proxy = "1.2.3.4:1080".parse().unwrap();
        for name in ["", "relay.example"] {
            assert_eq!(relay(&Target::Name(name.into(), 9), proxy), "1.2.3.4:9".parse().unwrap());
        }
    }
}
