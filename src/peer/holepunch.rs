//! Hole punching's messages (BEP 55): two peers that nobody can dial are introduced by a third who knows both, and dial each
//! other at the same moment. Pure.
//!
//! Flow: who wants to reach a peer asks one that is connected to it, by [`Kind::Rendezvous`] with the peer's address. That
//! one tells both to [`Kind::Connect`], each with the other's address, or says why not ([`Kind::Error`]). What may be asked,
//! and of whom, is decided by the torrent (`torrent::punch`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

/// Why somebody isn't introduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The address is none that a peer can have.
    NoSuchPeer,
    /// Nobody is connected from there.
    NotConnected,
    /// It doesn't take part in this.
    NoSupport,
    /// It is who asked.
    NoSelf,
    /// A number that we don't know.
    Other(u32),
}

impl Refusal {
    fn number(self) -> u32 {
        match self {
            Self::NoSuchPeer => 1,
            Self::NotConnected => 2,
            Self::NoSupport => 3,
            Self::NoSelf => 4,
            Self::Other(number) => number,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            1 => Self::NoSuchPeer,
            2 => Self::NotConnected,
            3 => Self::NoSupport,
            4 => Self::NoSelf,
            number => Self::Other(number),
        }
    }
}

/// What is said of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Introduce me to who is there.
    Rendezvous,
    /// Dial who is there, now: he dials you.
    Connect,
    /// Nobody was introduced.
    Error(Refusal),
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holepunch {
    /// What it says.
    pub kind: Kind,
    /// Of whom.
    pub addr: SocketAddr,
}

impl Holepunch {
    /// The payload of the extended message.
    pub fn encode(&self) -> Bytes {
        let (kind, error) = match self.kind {
            Kind::Rendezvous => (0, 0),
            Kind::Connect => (1, 0),
            Kind::Error(refusal) => (2, refusal.number()),
        };
        let mut out = vec![kind, u8::from(self.addr.is_ipv6())];
        match self.addr.ip() {
            IpAddr::V4(ip) => out.extend(ip.octets()),
            IpAddr::V6(ip) => out.extend(ip.octets()),
        }
        out.extend(self.addr.port().to_be_bytes());
        out.extend(u32::to_be_bytes(error));
        out.into()
    }

    /// Reads a message; `None` for what is none. Some leave the number of the error out where there is no error.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let ([kind, family], rest) = payload.split_first_chunk::<2>()?;
        let (ip, rest): (IpAddr, _) = match family {
            0 => {
                let (ip, rest) = rest.split_first_chunk::<4>()?;
                (Ipv4Addr::from(*ip).into(), rest)
            }
            1 => {
                let (ip, rest) = rest.split_first_chunk::<16>()?;
                (Ipv6Addr::from(*ip).into(), rest)
            }
            _ => return None,
        };
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let addr = SocketAddr::new(ip, u16::from_be_bytes(*port));
        let kind = match kind {
            0 => Kind::Rendezvous,
            1 => Kind::Connect,
            2 => Kind::Error(Refusal::of(rest.first_chunk().map_or(0, |error| u32::from_be_bytes(*error)))),
            _ => return None,
        };
        Some(Self { kind, addr })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_have_their_bytes() {
        let rows: [(Kind, &str, &[u8]); 5] = [
            (Kind::Rendezvous, "1.2.3.4:258", &[0, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 0]),
            (Kind::Connect, "1.2.3.4:258", &[1, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 0]),
            (
                Kind::Connect,
                "[::1]:3",
                &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0],
            ),
            (Kind::Error(Refusal::NoSupport), "1.2.3.4:258", &[2, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 3]),
            (Kind::Error(Refusal::Other(9)), "1.2.3.4:258", &[2, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 9]),
        ];
        for (kind, addr, bytes) in rows {
            let message = Holepunch { kind, addr: addr.parse().unwrap() };
            assert_eq!(message.encode(), bytes);
            assert_eq!(Holepunch::decode(bytes), Some(message));
        }
        // Without the number of no error, and with more behind.
        let connect = Holepunch::decode(&[1, 0, 1, 2, 3, 4, 1, 2]).unwrap();
        assert_eq!((connect.kind, connect.addr), (Kind::Connect, "1.2.3.4:258".parse().unwrap()));
        assert!(Holepunch::decode(&[0, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 0, 7]).is_some());
        for bad in [
            &[][..],
            &[0],
            &[0, 0, 1, 2, 3, 4, 1],
            &[3, 0, 1, 2, 3, 4, 1, 2],
            &[0, 2, 1, 2, 3, 4, 1, 2],
            &[0, 1, 1, 2, 3, 4, 1, 2],
        ] {
            assert_eq!(Holepunch::decode(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(message) = Holepunch::decode(&bytes) {
                prop_assert_eq!(Holepunch::decode(&message.encode()), Some(message));
            }
        }
    }
}
