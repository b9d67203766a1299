//! Names of nodes, how far apart they are, and which address a name may have (BEP 5, 42).
//!
//! Parts: [`NodeId`]; [`Family`], since IPv4 and IPv6 are two networks (BEP 32); [`Contact`], a name with its
//! address; and what an address tells: [`is_local`], [`network`], [`may_name`].
//!
//! By BEP 42 the first 21 bits of a name follow from its address, so that nobody can choose to stand beside an
//! info-hash. Addresses of local networks are exempt: there is nobody to keep out, and few addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::draw::Draw;
use crate::hash::crc32c;

/// Bytes of a name.
pub const LEN: usize = 20;
/// Bits of a name.
pub const BITS: usize = LEN * 8;

/// The name of a node: a place among the info-hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; LEN]);

/// A distance between names; the smaller, the nearer.
pub type Distance = [u8; LEN];

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl NodeId {
    /// A name that has nothing to do with an address.
    pub fn random(draw: &mut Draw) -> Self {
        Self(draw.bytes())
    }

    /// The name that a node at `ip` has by BEP 42: `r` chooses among those of the address, `rest` fills what is free.
    pub fn for_ip(ip: IpAddr, r: u8, rest: [u8; LEN]) -> Self {
        let crc = prescribed(ip, r).to_be_bytes();
        let mut id = rest;
        id[0] = crc[0];
        id[1] = crc[1];
        id[2] = (crc[2] & 0xf8) | (rest[2] & 0x07);
        id[LEN - 1] = r;
        Self(id)
    }

    /// Whether a node at `ip` may have this name.
    pub fn fits(&self, ip: IpAddr) -> bool {
        if is_local(ip) {
            return true;
        }
        let crc = prescribed(ip, self.0[LEN - 1]).to_be_bytes();
        self.0[0] == crc[0] && self.0[1] == crc[1] && (self.0[2] ^ crc[2]) & 0xf8 == 0
    }

    /// How far it is to another name, or an info-hash.
    pub fn distance(&self, to: &[u8; LEN]) -> Distance {
        std::array::from_fn(|at| self.0[at] ^ to[at])
    }

    /// How many of the first bits are those of `other`.
    pub fn shared(&self, other: &[u8; LEN]) -> usize {
        let mut bits = 0;
        for byte in self.distance(other) {
            bits += byte.leading_zeros() as usize;
            if byte != 0 {
                break;
            }
        }
        bits
    }

    /// A place that shares exactly the first `shared` bits with this name, and is otherwise as `filler`.
    pub fn apart(&self, shared: usize, filler: [u8; LEN]) -> NodeId {
        let mut id = filler;
        for bit in 0..=shared.min(BITS - 1) {
            let mask = 0x80u8 >> (bit % 8);
            let own = self.0[bit / 8] & mask;
            let wanted = if bit == shared { own ^ mask } else { own };
            id[bit / 8] = (id[bit / 8] & !mask) | wanted;
        }
        Self(id)
    }
}

/// The checksum whose first 21 bits a node at `ip` has; `r` is the last byte of its name.
fn prescribed(ip: IpAddr, r: u8) -> u32 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let masked = (u32::from(v4) & 0x030f_3fff) | (u32::from(r & 7) << 29);
            crc32c(&masked.to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let upper = (u128::from(v6) >> 64) as u64;
            let masked = (upper & 0x0103_070f_1f3f_7fff) | (u64::from(r & 7) << 61);
            crc32c(&masked.to_be_bytes())
        }
    }
}

/// A family of addresses. Each has its own table; nodes of the one name nodes of the other when asked (BEP 32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which things of each are kept.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// That of an address.
    pub fn of(addr: &SocketAddr) -> Self {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// That of an address without a port; IPv4 within IPv6 is IPv4.
    pub fn of_ip(ip: IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Its place in [`Family::BOTH`].
    pub fn index(self) -> usize {
        match self {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }
}

/// A node as others name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Contact {
    /// Its name.
    pub id: NodeId,
    /// Where it is.
    pub addr: SocketAddr,
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{}", self.id, self.addr)
    }
}

/// Whether an address belongs to a local network, or to this machine alone.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local(),
    }
}

/// Whether an address can be a host's on the internet.
pub fn is_public(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 != 0x2000,
    };
    !special && !is_local(ip) && !ip.is_unspecified() && !ip.is_multicast()
}

/// What addresses have in common that one person may have many of: the first 24 bits of IPv4, 48 of IPv6. None for
/// addresses of local networks, where many nodes on one host are as it should be.
pub fn network(ip: IpAddr) -> Option<u64> {
    match ip.to_canonical() {
        _ if is_local(ip) => None,
        IpAddr::V4(v4) => Some(u64::from(u32::from(v4) >> 8)),
        // Above all of IPv4's.
        IpAddr::V6(v6) => Some((u128::from(v6) >> 80) as u64 | 1 << 63),
    }
}

/// Whether who is at `from` may send us to a node at `to`: a host's address with a port, and into a local network, or
/// to this machine, only from there. Otherwise strangers would aim our questions at our neighbours.
pub fn may_name(from: IpAddr, to: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    if to.port() == 0 {
        return false;
    }
    if ip.is_loopback() {
        return from.to_canonical().is_loopback();
    }
    if is_local(ip) { is_local(from) } else { is_public(ip) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_from_addresses() {
        // The vectors of BEP 42; three bits of the third byte are free.
        for (ip, r, first) in [
            ("124.31.75.21", 1, [0x5f, 0xbf, 0xbf]),
            ("21.75.31.124", 86, [0x5a, 0x3c, 0xe9]),
            ("65.23.51.170", 22, [0xa5, 0xd4, 0x32]),
            ("84.124.73.14", 65, [0x1b, 0x03, 0x21]),
            ("43.213.53.83", 90, [0xe5, 0x6f, 0x6c]),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut rest = [7; LEN];
            rest[2] = first[2];
            let id = NodeId::for_ip(ip, r, rest);
            assert_eq!(
                (id.0[0], id.0[1], id.0[2] & 0xf8, id.0[19]),
                (first[0], first[1], first[2] & 0xf8, r)
            );
            assert!(id.fits(ip));
            assert!(!id.fits("8.8.8.8".parse().unwrap()));
        }
    }

    #[test]
    fn what_an_address_tells() {
        for (ip, local, public, net) in [
            ("127.0.0.1", true, false, None),
            ("10.1.2.3", true, false, None),
            ("192.168.0.1", true, false, None),
            ("169.254.1.1", true, false, None),
            ("8.8.8.8", false, true, Some(0x0008_0808)),
            ("8.8.8.200", false, true, Some(0x0008_0808)),
            ("0.0.0.1", false, false, Some(0)),
            ("255.255.255.255", false, false, Some(0x00ff_ffff)),
            ("224.0.0.1", false, false, Some(0x00e0_0000)),
            ("::1", true, false, None),
            ("fe80::1", true, false, None),
            ("fd00::1", true, false, None),
            ("2001:db8:1:2::3", false, true, Some(0x2001_0db8_0001 | 1 << 63)),
            ("2001:db8:1:ffff::3", false, true, Some(0x2001_0db8_0001 | 1 << 63)),
            ("ff02::1", false, false, Some(0xff02_0000_0000 | 1 << 63)),
            ("::ffff:10.0.0.1", true, false, None),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!((is_local(ip), is_public(ip), network(ip)), (local, public, net), "{ip}");
        }
    }

    #[test]
    fn strangers_name_strangers_only() {
        for (from, to, may) in [
            ("8.8.8.8", "9.9.9.9:1", true),
            ("8.8.8.8", "9.9.9.9:0", false),
            ("8.8.8.8", "10.0.0.1:5", false),
            ("8.8.8.8", "127.0.0.1:5", false),
            ("8.8.8.8", "0.0.0.0:5", false),
            ("10.0.0.2", "10.0.0.1:5", true),
            ("10.0.0.2", "127.0.0.1:5", false),
            ("10.0.0.2", "9.9.9.9:5", true),
            ("127.0.0.1", "127.0.0.1:5", true),
            ("127.0.0.1", "10.0.0.1:5", true),
            ("::1", "[::1]:5", true),
            ("2001:db8::1", "[fe80::1]:5", false),
            ("2001:db8::1", "[ff02::1]:5", false),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(may_name(from, to), may, "{from} {to}");
        }
    }

    proptest! {
        #[test]
        fn a_name_made_for_an_address_fits(v4: u32, v6: u128, r: u8, rest: [u8; LEN], bit in 0usize..21) {
            for ip in [IpAddr::from(v4.to_be_bytes()), IpAddr::from(v6.to_be_bytes())] {
                let id = NodeId::for_ip(ip, r, rest);
                prop_assert!(id.fits(ip));
                let mut wrong = id;
                wrong.0[bit / 8] ^= 0x80 >> (bit % 8);
                prop_assert!(is_local(ip) || !wrong.fits(ip));
            }
        }

        #[test]
        fn apart_is_exactly_so_far_away(own: [u8; LEN], filler: [u8; LEN], shared in 0usize..BITS) {
            let own = NodeId(own);
            let other = own.apart(shared, filler);
            prop_assert_eq!(own.shared(&other.0), shared);
            prop_assert_eq!(own.shared(&own.0), BITS);
            prop_assert_eq!(own.distance(&other.0), other.distance(&own.0));
        }
    }
}
