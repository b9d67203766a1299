//! The identity of a torrent: its info-hashes, and the 20 bytes that go over the wire.

use std::fmt;
use std::str::FromStr;

use crate::hash;

/// What names a torrent: a v1 hash, a v2 hash, or both (hybrid). One at least is there in a torrent that was
/// parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct InfoHash {
    /// SHA-1 of the info dictionary (BEP 3).
    pub v1: Option<[u8; 20]>,
    /// SHA-256 of the info dictionary (BEP 52).
    pub v2: Option<[u8; 32]>,
}

impl InfoHash {
    /// A v1 one.
    pub fn from_v1(hash: [u8; 20]) -> Self {
        Self { v1: Some(hash), v2: None }
    }

    /// A v2 one.
    pub fn from_v2(hash: [u8; 32]) -> Self {
        Self { v1: None, v2: Some(hash) }
    }

    /// What handshakes, announces and the DHT carry: the v1 hash, or the first 20 bytes of the v2 hash.
    pub fn wire(&self) -> Id20 {
        match (self.v1, self.v2) {
            (Some(v1), _) => Id20(v1),
            (None, Some(v2)) => Id20(*v2.first_chunk().unwrap_or(&[0; 20])),
            (None, None) => Id20([0; 20]),
        }
    }

    /// The first 8 hex digits of [`InfoHash::wire`], which tell torrents of one name apart.
    pub fn short8(&self) -> String {
        self.to_string().chars().take(8).collect()
    }

    /// Whether `info`, the bytes of an info dictionary as a peer sent them (BEP 9), has every hash this names.
    /// False if it names none.
    pub fn matches(&self, info: &[u8]) -> bool {
        (self.v1.is_some() || self.v2.is_some())
            && self.v1.is_none_or(|v1| v1 == hash::sha1(info))
            && self.v2.is_none_or(|v2| v2 == hash::sha256(info))
    }
}

/// Hex: of the v1 hash (40 digits), or else of the v2 hash (64).
impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v1, self.v2) {
            (None, Some(v2)) => f.write_str(&hex(&v2)),
            _ => f.write_str(&hex(&self.wire().0)),
        }
    }
}

/// 20 bytes that name something on the wire: an info-hash, a peer or a DHT node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id20(pub [u8; 20]);

impl fmt::Display for Id20 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Id20 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<[u8; 20]> for Id20 {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

/// Neither 40 hex digits nor 32 base32 digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash has 40 hex digits or 32 base32 digits")]
pub struct BadId;

impl FromStr for Id20 {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let id = match text.len() {
            40 => unhex(text),
            32 => unbase32(text),
            _ => None,
        };
        id.map(Id20).ok_or(BadId)
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String doesn't fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Exactly `2 * N` hex digits of either case.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let nibble = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let mut out = [0; N];
    for (to, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *to = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

/// 32 digits of base32 (RFC 4648, either case): 160 bits, so there is no padding.
fn unbase32(text: &str) -> Option<[u8; 20]> {
    if text.len() != 32 {
        return None;
    }
    let mut out = [0; 20];
    for (to, digits) in out.as_chunks_mut::<5>().0.iter_mut().zip(text.as_bytes().as_chunks::<8>().0) {
        let mut bits = 0u64;
        for digit in digits {
            let value = match digit {
                b'a'..=b'z' => digit - b'a',
                b'A'..=b'Z' => digit - b'A',
                b'2'..=b'7' => digit - b'2' + 26,
                _ => return None,
            };
            bits = bits << 5 | u64::from(value);
        }
        to.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn ids_are_read_in_hex_and_base32() {
        let id = Id20(*b"0123456789abcdefghij");
        for text in [
            "303132333435363738396162636465666768696a",
            "303132333435363738396162636465666768696A",
            "GAYTEMZUGU3DOOBZMFRGGZDFMZTWQ2LK",
            "gaytemzugu3doobzmfrggzdfmztwq2lk",
        ] {
            assert_eq!(text.parse::<Id20>(), Ok(id), "{text}");
        }
        for text in [
            "",
            "30",
            "x03132333435363738396162636465666768696a",
            "1AYTEMZUGU3DOOBZMFRGGZDFMZTWQ2LK",
            "éééééééééééééééééééé",
        ] {
            assert_eq!(text.parse::<Id20>(), Err(BadId), "{text}");
        }
        assert_eq!(id.to_string(), "303132333435363738396162636465666768696a");
    }

    #[test]
    fn the_wire_carries_v1_or_a_part_of_v2() {
        let (v1, v2) = ([1; 20], [2; 32]);
        assert_eq!(InfoHash { v1: Some(v1), v2: Some(v2) }.wire(), Id20(v1));
        assert_eq!(InfoHash::from_v2(v2).wire(), Id20([2; 20]));
        assert_eq!(InfoHash::from_v2(v2).to_string(), "02".repeat(32));
        assert_eq!(InfoHash::from_v1(v1).short8(), "01010101");
    }

    #[test]
    fn metadata_must_have_every_hash_that_is_named() {
        let (v1, v2) = (Some(hash::sha1(b"de")), Some(hash::sha256(b"de")));
        for (name, yes) in [
            (InfoHash { v1, v2 }, true),
            (InfoHash { v1, v2: None }, true),
            (InfoHash { v1: None, v2 }, true),
            (InfoHash { v1, v2: Some([0; 32]) }, false),
            (InfoHash::default(), false),
        ] {
            assert_eq!(name.matches(b"de"), yes, "{name:?}");
        }
    }
}
