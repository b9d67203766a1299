//! How sockets of multicast are made: on which interfaces, and shared with other clients of this machine.
//!
//! Parts: [`Sockets`], which knows what the user lets us use.
//!
//! Not here: connections of peers and trackers, which go where the system's routes lead.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::addresses::{self, Interface};

/// How far multicast goes: over a router or two within a house, not into a provider's network.
const HOPS: u32 = 4;

/// How sockets are made.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    device: Option<Arc<str>>,
    source: Option<IpAddr>,
}

impl Sockets {
    /// Those of a device, or of an address of this machine, or of all. Of the address that is all of a family's
    /// (`0.0.0.0`), those of that family: nobody listens on the other one.
    pub fn new(device: Option<&str>, source: Option<IpAddr>) -> Self {
        Self { device: device.map(Into::into), source }
    }

    /// Whether an address of this machine may be used.
    fn allows(&self, addr: IpAddr) -> bool {
        self.source.is_none_or(|source| match source.is_unspecified() {
            true => source.is_ipv4() == addr.is_ipv4(),
            false => source == addr,
        })
    }

    /// The interfaces that may be used, of each the addresses that may be. Loopback only when it was asked for.
    pub fn interfaces(&self) -> Vec<Interface> {
        let mut all = addresses::interfaces();
        for interface in &mut all {
            interface.addrs.retain(|addr| self.allows(*addr));
        }
        all.retain(|interface| {
            let asked_for = self.source.is_some_and(|ip| !ip.is_unspecified()) || self.device.is_some();
            !interface.addrs.is_empty()
                && self.device.as_deref().is_none_or(|device| device == interface.name)
                && (asked_for || !interface.loopback)
        });
        all
    }

    /// A socket that hears what is sent to a group on one interface, and sends to that group there. Others may have the
    /// same: other clients of this machine, and further mounts.
    ///
    /// # Errors
    /// The system's.
    pub fn multicast(&self, group: SocketAddr, interface: &Interface) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
        // Some clients set the one, some the other, and all have to set the same to share the port.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        match group {
            SocketAddr::V4(group) => {
                let v4 = |addr: &IpAddr| match addr {
                    IpAddr::V4(addr) => Some(*addr),
                    IpAddr::V6(_) => None,
                };
                let addr = interface.addrs.iter().find_map(v4).ok_or(io::ErrorKind::AddrNotAvailable)?;
                socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(interface.index))?;
                socket.set_multicast_if_v4(&addr)?;
                socket.set_multicast_ttl_v4(HOPS)?;
                socket.set_multicast_loop_v4(true)?;
                // Else it hears what comes on interfaces that other sockets of this machine have joined.
                socket.set_multicast_all_v4(false)?;
            }
            SocketAddr::V6(group) => {
                socket.set_only_v6(true)?;
                socket.join_multicast_v6(group.ip(), interface.index)?;
                socket.set_multicast_if_v6(interface.index)?;
                socket.set_multicast_hops_v6(HOPS)?;
                socket.set_multicast_loop_v6(true)?;
                socket.set_multicast_all_v6(false)?;
            }
        }
        // To the group's own address: what is sent to us alone isn't heard.
        socket.bind(&group.into())?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn addresses_that_nobody_listens_on_are_left_out() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (source, allowed, not) in [
            (None, vec!["10.0.0.1", "fd00::1"], vec![]),
            (Some("0.0.0.0"), vec!["10.0.0.1", "10.0.0.2"], vec!["fd00::1"]),
            (Some("::"), vec!["fd00::1", "fe80::1"], vec!["10.0.0.1"]),
            (Some("10.0.0.1"), vec!["10.0.0.1"], vec!["10.0.0.2", "fd00::1"]),
        ] {
            let sockets = Sockets::new(None, source.map(ip));
            assert!(allowed.into_iter().all(|addr| sockets.allows(ip(addr))), "{source:?}");
            assert!(!not.into_iter().any(|addr| sockets.allows(ip(addr))), "{source:?}");
        }
    }

    #[test]
    fn loopback_is_used_only_when_it_was_asked_for() {
        let loopback = |sockets: Sockets| sockets.interfaces().iter().any(|interface| interface.loopback);
        for asked in [Sockets::new(Some("lo"), None), Sockets::new(None, Some([127, 0, 0, 1].into()))] {
            assert!(loopback(asked));
        }
        for not in [None, Some([0, 0, 0, 0].into())] {
            assert!(!loopback(Sockets::new(None, not)));
        }
    }
}
