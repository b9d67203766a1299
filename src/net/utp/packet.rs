//! uTP packets on the wire (BEP 29): a header of 20 bytes, extensions in a chain, the payload.
//!
//! [`Packet::decode`] borrows from the datagram and allocates nothing; whatever it is given, it reads no further than
//! the datagram is long, and a chain of extensions ends with it. Of the extensions the selective acknowledgement is
//! understood, others are passed over.

use super::seq::Seq;

/// Bytes of the header.
pub const HEADER: usize = 20;
/// Bytes of a selective acknowledgement that are looked at: a thousand packets, more than anybody has on the way to us.
pub const SACK_MAX: usize = 128;
const VERSION: u8 = 1;
const EXTENSION_SACK: u8 = 1;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// Carries payload.
    Data,
    /// The last packet of its direction.
    Fin,
    /// An acknowledgement, without a number of its own.
    State,
    /// The sender knows nothing of this connection, or gave it up.
    Reset,
    /// The first packet of who dials.
    Syn,
}

impl Type {
    fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Data,
            1 => Self::Fin,
            2 => Self::State,
            3 => Self::Reset,
            4 => Self::Syn,
            _ => return None,
        })
    }

    fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Fin => 1,
            Self::State => 2,
            Self::Reset => 3,
            Self::Syn => 4,
        }
    }
}

/// Which packets beyond the acknowledged ones have come: bit `i` is for the one of number `ack + 2 + i`, the lowest
/// bit of a byte first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sack<'a>(&'a [u8]);

impl<'a> Sack<'a> {
    /// Of a mask; what is beyond [`SACK_MAX`] is left out.
    pub fn new(mask: &'a [u8]) -> Self {
        Self(mask.get(..SACK_MAX).unwrap_or(mask))
    }

    /// The positions of the bits that are set, ascending.
    pub fn positions(self) -> impl Iterator<Item = u16> + 'a {
        self.0.iter().zip(0u16..).flat_map(|(&byte, at)| {
            (0..8u16).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
        })
    }

    /// As it goes over the wire.
    pub fn mask(self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for Sack<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.positions()).finish()
    }
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What it is for.
    pub kind: Type,
    /// The connection, as its receiver numbers it (in a SYN: as its sender does).
    pub id: u16,
    /// When it was sent, in microseconds of the sender's clock.
    pub stamp: u32,
    /// How long the last packet from the receiver took to the sender, by both clocks; 0 is unknown.
    pub diff: u32,
    /// Bytes that the sender of this has room for.
    pub window: u32,
    /// Its number; of one without a number, the number that the next will have.
    pub seq: Seq,
    /// The last number up to which everything has come.
    pub ack: Seq,
    /// What has come beyond it.
    pub sack: Option<Sack<'a>>,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Why a datagram is no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than a header.
    #[error("shorter than a header")]
    Short,
    /// Another version, or no uTP at all.
    #[error("not version 1")]
    Version,
    /// A type that doesn't exist.
    #[error("of unknown type {0}")]
    Type(u8),
    /// An extension is longer than what is left.
    #[error("an extension runs past its end")]
    Extension,
}

fn u16_at(bytes: &[u8; HEADER], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<'a> Packet<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// It is none of uTP.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (head, mut rest) = bytes.split_first_chunk::<HEADER>().ok_or(PacketError::Short)?;
        if head[0] & 0x0f != VERSION {
            return Err(PacketError::Version);
        }
        let code = head[0] >> 4;
        let kind = Type::of(code).ok_or(PacketError::Type(code))?;
        let mut sack = None;
        let mut extension = head[1];
        while extension != 0 {
            let (&[next, len], after) = rest.split_first_chunk::<2>().ok_or(PacketError::Extension)?;
            let (body, after) = after.split_at_checked(len.into()).ok_or(PacketError::Extension)?;
            if extension == EXTENSION_SACK {
                sack = Some(Sack::new(body));
            }
            (extension, rest) = (next, after);
        }
        Ok(Self {
            kind,
            id: u16_at(head, 2),
            stamp: u32_at(head, 4),
            diff: u32_at(head, 8),
            window: u32_at(head, 12),
            seq: Seq(u16_at(head, 16)),
            ack: Seq(u16_at(head, 18)),
            sack,
            payload: rest,
        })
    }

    /// The datagram that says that there is no such connection.
    pub fn reset(id: u16, seq: Seq, ack: Seq) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        Packet { kind: Type::Reset, id, stamp: 0, diff: 0, window: 0, seq, ack, sack: None, payload: &[] }
            .encode(&mut bytes);
        bytes
    }

    /// Appends it as a datagram.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // A mask of nothing says nothing; one byte holds the length of any that `Sack::new` lets through.
        let sack = self.sack.map(Sack::mask).filter(|mask| !mask.is_empty());
        out.reserve(HEADER + 2 + SACK_MAX + self.payload.len());
        out.push(self.kind.code() << 4 | VERSION);
        out.push(if sack.is_some() { EXTENSION_SACK } else { 0 });
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.stamp.to_be_bytes());
        out.extend_from_slice(&self.diff.to_be_bytes());
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&self.seq.0.to_be_bytes());
        out.extend_from_slice(&self.ack.0.to_be_bytes());
        if let Some(mask) = sack {
            out.extend_from_slice(&[0, mask.len() as u8]);
            out.extend_from_slice(mask);
        }
        out.extend_from_slice(self.payload);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SYN: [u8; 20] = [0x41, 0, 0x12, 0x34, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0];

    #[test]
    fn a_syn_byte_for_byte() {
        let syn = Packet::decode(&SYN).unwrap();
        let expected = Packet {
            kind: Type::Syn,
            id: 0x1234,
            stamp: 7,
            diff: 0,
            window: 1 << 20,
            seq: Seq(1),
            ack: Seq(0),
            sack: None,
            payload: &[],
        };
        assert_eq!(syn, expected);
        let mut out = Vec::new();
        syn.encode(&mut out);
        assert_eq!(out, SYN);
    }

    /// A header of this type with this first extension, and what comes behind it.
    fn with(first: u8, extension: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SYN.to_vec();
        (bytes[0], bytes[1]) = (first, extension);
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn extensions_are_a_chain_that_ends_with_the_datagram() {
        type Read<'a> = Result<(Vec<u16>, &'a [u8]), PacketError>;
        let rows: [(u8, &[u8], Read<'_>); 11] = [
            (0, &[1, 2, 3], Ok((vec![], &[1, 2, 3]))),
            (1, &[0, 4, 1, 0, 0, 0x80, 9], Ok((vec![0, 31], &[9]))),
            (1, &[0, 0, 9], Ok((vec![], &[9]))),
            (2, &[0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9], Ok((vec![], &[9]))),
            (2, &[1, 1, 0xff, 0, 4, 2, 0, 0, 0, 9], Ok((vec![1], &[9]))),
            (3, &[0, 4, 0, 0, 0, 1], Ok((vec![], &[]))),
            (200, &[0, 0], Ok((vec![], &[]))),
            (1, &[], Err(PacketError::Extension)),
            (1, &[0], Err(PacketError::Extension)),
            (1, &[0, 5, 0, 0, 0, 0], Err(PacketError::Extension)),
            (1, &[1, 0, 1, 0, 1, 0, 1, 0], Err(PacketError::Extension)),
        ];
        for (extension, rest, expected) in rows {
            let bytes = with(0x01, extension, rest);
            let read = Packet::decode(&bytes)
                .map(|p| (p.sack.map(|s| s.positions().collect()).unwrap_or_default(), p.payload));
            assert_eq!(read, expected, "{extension} {rest:?}");
        }
        let mut long = vec![0, 255];
        long.extend([0xff; 255]);
        let bytes = with(0x21, 1, &long);
        let sack = Packet::decode(&bytes).unwrap().sack.unwrap();
        assert_eq!(sack.positions().max(), Some(SACK_MAX as u16 * 8 - 1));
    }

    #[test]
    fn what_is_not_utp_is_refused() {
        for (bytes, error) in [
            (vec![], PacketError::Short),
            (SYN[..19].to_vec(), PacketError::Short),
            (with(0x42, 0, &[]), PacketError::Version),
            (with(0x51, 0, &[]), PacketError::Type(5)),
            (b"d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae".to_vec(), PacketError::Version),
        ] {
            assert_eq!(Packet::decode(&bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in vec(any::<u8>(), 0..400)) {
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert!(packet.payload.len() + HEADER <= bytes.len());
                prop_assert!(packet.sack.is_none_or(|s| s.mask().len() <= SACK_MAX));
            }
        }

        #[test]
        fn what_is_written_is_read_again(
            code in 0u8..5, id: u16, stamp: u32, diff: u32, window: u32, seq: u16, ack: u16,
            mask in vec(any::<u8>(), 0..=SACK_MAX), payload in vec(any::<u8>(), 0..2000),
        ) {
            let sack = (!mask.is_empty()).then(|| Sack::new(&mask));
            let packet = Packet {
                kind: Type::of(code).unwrap(), id, stamp, diff, window, seq: Seq(seq), ack: Seq(ack), sack,
                payload: &payload,
            };
            let mut out = Vec::new();
            packet.encode(&mut out);
            prop_assert_eq!(Packet::decode(&out), Ok(packet));
            for cut in 0..out.len() {
                let _ = Packet::decode(&out[..cut]);
            }
        }
    }
}
