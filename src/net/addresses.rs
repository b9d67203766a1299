//! The interfaces of this machine and their addresses, as they are at the moment of asking.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number, from 1.
    pub index: u32,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
    /// It is the machine's own.
    pub loopback: bool,
    /// It carries multicast.
    pub multicast: bool,
}

/// The interfaces that are up and have an address. None when the kernel doesn't tell.
pub fn interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs().into_iter().flatten() {
        let Some(address) = entry.address.filter(|_| entry.flags.contains(InterfaceFlags::IFF_UP)) else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let Some(addr) = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()))) else {
            continue;
        };
        if let Some(known) = found.iter_mut().find(|known| known.name == entry.interface_name) {
            known.addrs.push(addr);
        } else if let Ok(index) = if_nametoindex(entry.interface_name.as_str()) {
            found.push(Interface {
                name: entry.interface_name,
                index,
                addrs: vec![addr],
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                multicast: entry.flags.contains(InterfaceFlags::IFF_MULTICAST),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn loopback_is_there() {
        let all = interfaces();
        let lo = all.iter().find(|i| i.loopback).expect("every machine has one");
        assert!(lo.index > 0 && lo.addrs.contains(&"127.0.0.1".parse().unwrap()), "{lo:?}");
    }
}
