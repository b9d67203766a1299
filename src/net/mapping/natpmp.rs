//! NAT-PMP (RFC 6886): packets to bytes and back. Pure; hostile input welcome.
//!
//! Not here: when to ask for what ([`super::control`]), and the announcements that a router multicasts when its address
//! changes: we look now and then instead.

use std::net::Ipv4Addr;

use super::Protocol;

/// The version of all its packets.
pub const VERSION: u8 = 0;
/// Set in the operation of answers.
const ANSWER: u8 = 128;
const ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const MAP_TCP: u8 = 2;

/// What is asked of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Its address in the internet.
    Address,
    /// A mapping, or, with a lifetime of 0, to take ours away.
    Map {
        /// Of what.
        protocol: Protocol,
        /// Our port.
        internal: u16,
        /// The port that we would like to have outside; 0 for any.
        external: u16,
        /// In seconds.
        lifetime: u32,
    },
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// No.
    Refused(Refusal),
    /// Its address.
    Address {
        /// Seconds since it forgot its mappings.
        epoch: u32,
        /// In the internet; 0.0.0.0 while it has none.
        address: Ipv4Addr,
    },
    /// A mapping stands, or, with a lifetime of 0, is gone.
    Map {
        /// Seconds since it forgot its mappings.
        epoch: u32,
        /// Of what.
        protocol: Protocol,
        /// Our port.
        internal: u16,
        /// The port outside, which needn't be the one that was asked for.
        external: u16,
        /// In seconds.
        lifetime: u32,
    },
}

/// Why a router does nothing for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It speaks another version, so perhaps the protocol that came after this one.
    #[error("the router speaks another version of NAT-PMP")]
    Version,
    /// It could, and the user told it not to.
    #[error("the router is set up to map no ports")]
    NotAuthorized,
    /// It has no address itself.
    #[error("the router has no connection")]
    Network,
    /// Its table is full.
    #[error("the router has no room for another mapping")]
    Resources,
    /// It doesn't know what that is.
    #[error("the router doesn't know what was asked")]
    Operation,
    /// Something else.
    #[error("the router refused with code {0}")]
    Other(u16),
}

impl Refusal {
    fn of(code: u16) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::NotAuthorized,
            3 => Self::Network,
            4 => Self::Resources,
            5 => Self::Operation,
            other => Self::Other(other),
        }
    }
}

impl Request {
    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Address => vec![VERSION, ADDRESS],
            Self::Map { protocol, internal, external, lifetime } => {
                let operation = match protocol {
                    Protocol::Udp => MAP_UDP,
                    Protocol::Tcp => MAP_TCP,
                };
                let mut out = vec![VERSION, operation, 0, 0];
                out.extend_from_slice(&internal.to_be_bytes());
                out.extend_from_slice(&external.to_be_bytes());
                out.extend_from_slice(&lifetime.to_be_bytes());
                out
            }
        }
    }
}

impl Reply {
    /// Reads a packet. `None` for what is no answer of this protocol.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (head, rest) = packet.split_first_chunk::<4>()?;
        let [version, operation, code @ ..] = *head;
        if version != VERSION || operation < ANSWER {
            return None;
        }
        // A refusal may end here: some leave out what follows.
        match u16::from_be_bytes(code) {
            0 => {}
            code => return Some(Self::Refused(Refusal::of(code))),
        }
        let (epoch, rest) = rest.split_first_chunk::<4>()?;
        let epoch = u32::from_be_bytes(*epoch);
        match operation - ANSWER {
            ADDRESS => {
                let address = Ipv4Addr::from(*rest.first_chunk::<4>()?);
                Some(Self::Address { epoch, address })
            }
            operation @ (MAP_UDP | MAP_TCP) => {
                let protocol = if operation == MAP_TCP { Protocol::Tcp } else { Protocol::Udp };
                let [a, b, c, d, lifetime @ ..] = *rest.first_chunk::<8>()?;
                let (internal, external) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                Some(Self::Map {
                    epoch,
                    protocol,
                    internal,
                    external,
                    lifetime: u32::from_be_bytes(lifetime),
                })
            }
            _ => None,
        }
    }

    /// The packet of an answer, as a router would send it.
    #[cfg(test)]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Refused(refusal) => {
                let code: u16 = match refusal {
                    Refusal::Version => 1,
                    Refusal::NotAuthorized => 2,
                    Refusal::Network => 3,
                    Refusal::Resources => 4,
                    Refusal::Operation => 5,
                    Refusal::Other(code) => code,
                };
                let [a, b] = code.to_be_bytes();
                vec![VERSION, ANSWER, a, b, 0, 0, 0, 0]
            }
            Self::Address { epoch, address } => {
                let mut out = vec![VERSION, ANSWER + ADDRESS, 0, 0];
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&address.octets());
                out
            }
            Self::Map { epoch, protocol, internal, external, lifetime } => {
                let operation = if protocol == Protocol::Tcp { MAP_TCP } else { MAP_UDP };
                let mut out = vec![VERSION, ANSWER + operation, 0, 0];
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&internal.to_be_bytes());
                out.extend_from_slice(&external.to_be_bytes());
                out.extend_from_slice(&lifetime.to_be_bytes());
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_as_the_rfc_has_them() {
        assert_eq!(Request::Address.encode(), [0, 0]);
        let map = Request::Map { protocol: Protocol::Tcp, internal: 6881, external: 0x1234, lifetime: 3600 };
        assert_eq!(map.encode(), [0, 2, 0, 0, 0x1a, 0xe1, 0x12, 0x34, 0, 0, 0x0e, 0x10]);
        let gone = Request::Map { protocol: Protocol::Udp, internal: 1, external: 0, lifetime: 0 };
        assert_eq!(gone.encode(), [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn answers_are_read() {
        let map = |protocol| Reply::Map { epoch: 7, protocol, internal: 1, external: 2, lifetime: 3 };
        for (packet, expected) in [
            (
                &[0, 128, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4][..],
                Some(Reply::Address { epoch: 9, address: [1, 2, 3, 4].into() }),
            ),
            (&[0, 129, 0, 0, 0, 0, 0, 7, 0, 1, 0, 2, 0, 0, 0, 3], Some(map(Protocol::Udp))),
            // More than there should be is left alone.
            (&[0, 130, 0, 0, 0, 0, 0, 7, 0, 1, 0, 2, 0, 0, 0, 3, 99], Some(map(Protocol::Tcp))),
            (&[0, 130, 0, 0, 0, 0, 0, 7, 0, 1, 0, 2, 0, 0, 0], None),
            (&[0, 128, 0, 1], Some(Reply::Refused(Refusal::Version))),
            (&[0, 130, 0, 2, 0, 0, 0, 0], Some(Reply::Refused(Refusal::NotAuthorized))),
            (&[0, 130, 1, 0, 0, 0, 0, 0], Some(Reply::Refused(Refusal::Other(256)))),
            // A request isn't an answer, nor is another version, or an operation that we never ask for.
            (&[0, 2, 0, 0, 0, 0, 0, 7, 0, 1, 0, 2, 0, 0, 0, 3], None),
            (&[2, 128, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4], None),
            (&[0, 131, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4, 0, 0, 0, 0], None),
            (&[0, 128, 0, 0, 0, 0], None),
            (&[], None),
        ] {
            assert_eq!(Reply::decode(packet), expected, "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(reply) = Reply::decode(&packet) && !matches!(reply, Reply::Refused(_)) {
                let again = reply.encode();
                prop_assert_eq!(Reply::decode(&again), Some(reply));
                prop_assert!(packet.starts_with(&again));
            }
        }
    }
}
