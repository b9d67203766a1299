//! The Port Control Protocol (RFC 6887), its MAP and ANNOUNCE: packets to bytes and back. Pure; hostile input welcome.
//!
//! One codec for both address families: for IPv4 the router maps a port, for IPv6 it opens its firewall for one. Addresses
//! are 16 bytes on the wire, those of IPv4 mapped.
//!
//! Not here: when to ask for what ([`super::control`]), options, and peers that are told apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Protocol;

/// The version that is spoken here.
pub const VERSION: u8 = 2;
/// The longest packet that the protocol allows.
pub const MAX_PACKET: usize = 1100;
/// Set in the operation of answers.
const ANSWER: u8 = 128;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
const HEAD: usize = 24;

/// What says that a mapping is ours: who doesn't know it can't renew it or take it away.
pub type Nonce = [u8; 12];

/// What is asked of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Our address, which has to be where the packet comes from.
    pub client: IpAddr,
    /// In seconds; 0 takes the mapping away.
    pub lifetime: u32,
    /// `None` only asks whether it is still there, and since when.
    pub map: Option<Map>,
}

/// A mapping, as wished for or as made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Whose it is.
    pub nonce: Nonce,
    /// Of what.
    pub protocol: Protocol,
    /// Our port.
    pub internal: u16,
    /// The port outside; 0 for any.
    pub external: u16,
    /// The address outside; unspecified for any.
    pub address: IpAddr,
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Why it did nothing for us.
    pub refused: Option<Refusal>,
    /// In seconds: of the mapping, or of the refusal.
    pub lifetime: u32,
    /// Seconds since it forgot its mappings.
    pub epoch: u32,
    /// The mapping; in a refusal the one that was asked for, if it is told. `None` answers an ANNOUNCE.
    pub map: Option<Map>,
}

/// Why a router does nothing for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It speaks another version, so perhaps the protocol that came before this one.
    #[error("the router speaks another version of PCP")]
    Version,
    /// It could, and the user told it not to.
    #[error("the router is set up to map no ports")]
    NotAuthorized,
    /// It doesn't map ports.
    #[error("the router doesn't know what was asked")]
    Operation,
    /// It has no address itself.
    #[error("the router has no connection")]
    Network,
    /// Its table is full, or our share of it.
    #[error("the router has no room for another mapping")]
    Resources,
    /// The packet came from another address than we think that we have: there is a router in between.
    #[error("there is another router between it and us")]
    Address,
    /// Something else.
    #[error("the router refused with code {0}")]
    Other(u8),
}

impl Refusal {
    fn of(code: u8) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::NotAuthorized,
            4 | 9 => Self::Operation,
            7 => Self::Network,
            8 | 10 => Self::Resources,
            12 => Self::Address,
            other => Self::Other(other),
        }
    }
}

/// As it stands on the wire.
fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn narrow(octets: [u8; 16]) -> IpAddr {
    let ip = Ipv6Addr::from(octets);
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}

/// Any address of the family of another.
pub fn any_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Map {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&[self.protocol.number(), 0, 0, 0]);
        out.extend_from_slice(&self.internal.to_be_bytes());
        out.extend_from_slice(&self.external.to_be_bytes());
        out.extend_from_slice(&wide(self.address));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (nonce, rest) = bytes.split_first_chunk::<12>()?;
        let (&[protocol, _, _, _, a, b, c, d], rest) = rest.split_first_chunk::<8>()?;
        let protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return None,
        };
        Some(Self {
            nonce: *nonce,
            protocol,
            internal: u16::from_be_bytes([a, b]),
            external: u16::from_be_bytes([c, d]),
            address: narrow(*rest.first_chunk::<16>()?),
        })
    }
}

impl Request {
    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(60);
        out.extend_from_slice(&[VERSION, if self.map.is_some() { MAP } else { ANNOUNCE }, 0, 0]);
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        out.extend_from_slice(&wide(self.client));
        if let Some(map) = &self.map {
            map.encode(&mut out);
        }
        out
    }
}

impl Reply {
    /// Reads a packet. `None` for what is no answer of this protocol. One of another version is a refusal if it says so,
    /// also one of NAT-PMP.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        if packet.len() > MAX_PACKET {
            return None;
        }
        let &[version, operation, high, code] = packet.first_chunk::<4>()?;
        if operation < ANSWER {
            return None;
        }
        if version != VERSION {
            // What came before has the code in two bytes, and what comes after may have anything else behind it.
            let refused = Some(Refusal::Version);
            let reply = Self { refused, lifetime: 0, epoch: 0, map: None };
            return (high == 0 && code == 1).then_some(reply);
        }
        let (head, rest) = packet.split_first_chunk::<HEAD>()?;
        let &[_, _, _, _, l0, l1, l2, l3, e0, e1, e2, e3, ..] = head;
        let refused = (code != 0).then(|| Refusal::of(code));
        let map = match operation - ANSWER {
            MAP => Map::decode(rest),
            ANNOUNCE => None,
            _ => return None,
        };
        if operation == ANSWER + MAP && refused.is_none() && map.is_none() {
            return None;
        }
        let lifetime = u32::from_be_bytes([l0, l1, l2, l3]);
        Some(Self { refused, lifetime, epoch: u32::from_be_bytes([e0, e1, e2, e3]), map })
    }

    /// The packet of an answer, as a router would send it.
    #[cfg(test)]
    pub fn encode(&self) -> Vec<u8> {
        let code = match self.refused {
            None => 0,
            Some(Refusal::Version) => 1,
            Some(Refusal::NotAuthorized) => 2,
            Some(Refusal::Operation) => 4,
            Some(Refusal::Network) => 7,
            Some(Refusal::Resources) => 8,
            Some(Refusal::Address) => 12,
            Some(Refusal::Other(code)) => code,
        };
        let operation = if self.map.is_some() { MAP } else { ANNOUNCE };
        let mut out = vec![VERSION, ANSWER + operation, 0, code];
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.resize(HEAD, 0);
        if let Some(map) = &self.map {
            map.encode(&mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn map() -> Map {
        Map {
            nonce: *b"abcdefghijkl",
            protocol: Protocol::Tcp,
            internal: 6881,
            external: 0x1234,
            address: Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    #[test]
    fn requests_are_as_the_rfc_has_them() {
        let client = "192.168.1.2".parse().unwrap();
        let packet = Request { client, lifetime: 3600, map: Some(map()) }.encode();
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x0e, 0x10];
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2]);
        expected.extend_from_slice(b"abcdefghijkl");
        expected.extend_from_slice(&[6, 0, 0, 0, 0x1a, 0xe1, 0x12, 0x34]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(packet, expected);
        assert_eq!(packet.len(), 60);

        let client = "2001:db8::2".parse().unwrap();
        let packet = Request { client, lifetime: 0, map: None }.encode();
        assert_eq!(packet.len(), HEAD);
        assert_eq!(packet[..2], [2, 0]);
        assert_eq!(packet[8..12], [0x20, 1, 0x0d, 0xb8]);
    }

    #[test]
    fn answers_are_read() {
        let good = Reply { refused: None, lifetime: 120, epoch: 5, map: Some(map()) };
        assert_eq!(Reply::decode(&good.encode()), Some(good));
        assert_eq!(good.encode()[..12], [2, 129, 0, 0, 0, 0, 0, 120, 0, 0, 0, 5]);
        for (length, read) in [(60, true), (59, false), (24, false), (3, false), (0, false)] {
            assert_eq!(Reply::decode(&good.encode()[..length]).is_some(), read, "{length}");
        }
        let mut long = good.encode();
        long.resize(MAX_PACKET + 1, 0);
        assert_eq!(Reply::decode(&long), None);
        // What a refusal is about may be left out.
        let refused = Reply { refused: Some(Refusal::Resources), ..good };
        assert_eq!(Reply::decode(&refused.encode()), Some(refused));
        assert_eq!(Reply::decode(&refused.encode()[..24]), Some(Reply { map: None, ..refused }));
        let announce = Reply { map: None, ..good };
        assert_eq!(Reply::decode(&announce.encode()), Some(announce));
        // NAT-PMP's answer, one of a version that is still to come, a request, an operation that we never ask for.
        let version = Some(Refusal::Version);
        assert_eq!(Reply::decode(&[0, 128, 0, 1, 0, 0, 0, 0]).unwrap().refused, version);
        assert_eq!(Reply::decode(&[3, 129, 0, 1]).unwrap().refused, version);
        assert_eq!(Reply::decode(&[0, 128, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Reply::decode(&[2, 1, 0, 0]), None);
        let mut peer = good.encode();
        peer[1] = 128 + 2;
        assert_eq!(Reply::decode(&peer), None);
        let mut icmp = good.encode();
        icmp[36] = 1;
        assert_eq!(Reply::decode(&icmp), None);
    }

    #[test]
    fn addresses_are_of_their_own_family() {
        for ip in ["1.2.3.4", "0.0.0.0", "2001:db8::1", "::"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(narrow(wide(ip)), ip);
            assert!(any_like(ip).is_unspecified() && any_like(ip).is_ipv4() == ip.is_ipv4());
        }
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(mut packet in proptest::collection::vec(any::<u8>(), 0..80), ours: bool) {
            if let (true, [version, operation, ..]) = (ours, &mut packet[..]) {
                (*version, *operation) = (VERSION, ANSWER + MAP);
            }
            if let Some(reply) = Reply::decode(&packet) {
                let again = Reply::decode(&reply.encode());
                // A refusal without a mapping is told as one of an ANNOUNCE.
                prop_assert_eq!(again, Some(reply));
            }
        }
    }
}
