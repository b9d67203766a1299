//! Which router is asked: the way out of this machine, as the kernel lists it.
//!
//! [`Routes::read`] looks at `/proc/net/route` and `/proc/net/ipv6_route`; the rest is pure. Only the address of the router
//! is told: which of our own it sees is told by the socket that is connected to it.
//!
//! Not here: policies with several tables. Whoever has those names the device (`--interface`).

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The most that is read of a table: hosts have a few lines, and a router of the internet isn't what this is for.
const MAX_TABLE: u64 = 1 << 20;
/// The route is up, and leads to a router (`RTF_UP`, `RTF_GATEWAY`).
const UP_GATEWAY: u32 = 0x3;

/// The routers of the two address families; the ports are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routes {
    /// For IPv4.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6, with its link if its address is of a link.
    pub v6: Option<SocketAddrV6>,
}

impl Routes {
    /// What the kernel says now; through `device` alone if there is one. Reads two files of the kernel that are there at
    /// once.
    pub fn read(device: Option<&str>) -> Self {
        let table = |path: &str| -> io::Result<String> {
            let mut text = String::new();
            std::fs::File::open(path)?.take(MAX_TABLE).read_to_string(&mut text)?;
            Ok(text)
        };
        let v4 = table("/proc/net/route").ok().and_then(|text| default_v4(&text, device));
        let v6 = table("/proc/net/ipv6_route").ok().and_then(|text| default_v6(&text, device));
        let v6 = v6.map(|(router, link)| {
            let scope = if router.is_unicast_link_local() { index_of(&link) } else { 0 };
            SocketAddrV6::new(router, 0, 0, scope)
        });
        Self { v4, v6 }
    }

    /// Both, to be called.
    pub fn routers(&self) -> impl Iterator<Item = SocketAddr> {
        let v4 = self.v4.map(|ip| SocketAddr::V4(SocketAddrV4::new(ip, 0)));
        v4.into_iter().chain(self.v6.map(SocketAddr::V6))
    }
}

/// The number of a link; 0 when it has gone.
fn index_of(link: &str) -> u32 {
    let path = format!("/sys/class/net/{link}/ifindex");
    let text = if link.contains('/') { None } else { std::fs::read_to_string(path).ok() };
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The router of the default route with the lowest metric.
fn default_v4(table: &str, device: Option<&str>) -> Option<Ipv4Addr> {
    let route = |line: &str| -> Option<(u32, Ipv4Addr)> {
        let mut fields = line.split_ascii_whitespace();
        let link = fields.next()?;
        let [target, router, flags, _, _, metric, mask] = take(&mut fields)?;
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        // Addresses stand in the order of this machine's bytes.
        let router = Ipv4Addr::from(hex(router)?.to_ne_bytes());
        let fits = hex(target)? == 0 && hex(mask)? == 0 && hex(flags)? & UP_GATEWAY == UP_GATEWAY;
        let fits = fits && device.is_none_or(|device| device == link) && !router.is_unspecified();
        fits.then_some((metric.parse().ok()?, router))
    };
    table.lines().filter_map(route).min_by_key(|(metric, _)| *metric).map(|(_, router)| router)
}

/// The router of the default route with the lowest metric, and its link.
fn default_v6(table: &str, device: Option<&str>) -> Option<(Ipv6Addr, String)> {
    let route = |line: &str| -> Option<(u32, Ipv6Addr, String)> {
        let mut fields = line.split_ascii_whitespace();
        let [target, bits, _, _, router, metric, _, _, flags, link] = take(&mut fields)?;
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        let address = |text: &str| u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from);
        let router = address(router)?;
        let fits =
            address(target)?.is_unspecified() && hex(bits)? == 0 && hex(flags)? & UP_GATEWAY == UP_GATEWAY;
        let fits = fits && device.is_none_or(|device| device == link) && !router.is_unspecified();
        fits.then_some((hex(metric)?, router, link.to_owned()))
    };
    let best = table.lines().filter_map(route).min_by_key(|(metric, ..)| *metric);
    best.map(|(_, router, link)| (router, link))
}

fn take<'a, const N: usize>(fields: &mut impl Iterator<Item = &'a str>) -> Option<[&'a str; N]> {
    let mut all = [""; N];
    for field in &mut all {
        *field = fields.next()?;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_default_route_of_ipv4_is_found() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let table = format!(
            "{head}wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
             tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
             tun1\t00000000\t0103A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"
        );
        for (device, router) in [
            (None, Some([192, 168, 2, 1])),
            (Some("wlan0"), Some([192, 168, 1, 1])),
            (Some("tun0"), None),
            (Some("tun1"), None),
        ] {
            assert_eq!(default_v4(&table, device), router.map(Ipv4Addr::from), "{device:?}");
        }
        assert_eq!(default_v4(head, None), None);
        assert_eq!(default_v4("", None), None);
    }

    #[test]
    fn the_default_route_of_ipv6_is_found() {
        let (any, router) = ("0".repeat(32), "fe80000000000000021122fffe334455");
        let table = format!(
            "{any} 00 {any} 00 {router} 00000400 00000001 00000000 00450003     eth0\n\
             {any} 00 {any} 00 {any} ffffffff 00000001 00000000 00200200       lo\n\
             fe800000000000000000000000000000 40 {any} 00 {any} 00000100 00000001 00000000 00000001     eth0\n"
        );
        let expected = ("fe80::211:22ff:fe33:4455".parse().unwrap(), "eth0".to_owned());
        assert_eq!(default_v6(&table, None), Some(expected.clone()));
        assert_eq!(default_v6(&table, Some("eth0")), Some(expected));
        assert_eq!(default_v6(&table, Some("lo")), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        for router in Routes::read(None).routers() {
            assert!(!router.ip().is_unspecified() && router.port() == 0);
        }
        assert_eq!(Routes::read(Some("no such device")), Routes::default());
        assert_eq!(index_of("../lo"), 0);
    }

    proptest! {
        #[test]
        fn no_table_is_too_strange(table in "([0-9a-fA-FxZ\t ]{0,40}\n?){0,20}") {
            let _ = (default_v4(&table, None), default_v6(&table, None));
        }
    }
}
