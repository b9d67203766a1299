//! The one place where sockets are made.
//!
//! Stand-in: the part of the seams' `net/sockets.rs` that local service discovery needs.

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
    /// Those of a device, or of an address of this machine, or of all.
    pub fn new(device: Option<&str>, source: Option<IpAddr>) -> Self {
        Self { device: device.map(Into::into), source: source.filter(|ip| !ip.is_unspecified()) }
    }

    /// The interfaces that may be used, of each the addresses that may be. Loopback only when it was asked for.
    pub fn interfaces(&self) -> Vec<Interface> {
        let mut all = addresses::interfaces();
        for interface in &mut all {
            interface.addrs.retain(|addr| self.source.is_none_or(|source| source == *addr));
        }
        all.retain(|interface| {
            let asked_for = self.source.is_some() || self.device.is_some();
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
