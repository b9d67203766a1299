//! The extension protocol's handshake (BEP 10): what a peer can do beyond the old messages. Pure.
//!
//! Parts: [`ExtHandshake`], read with [`ExtHandshake::decode`] and, when a peer sends a second one,
//! [`ExtHandshake::update`]; our own message ids; [`ExtensionError`], shared by the extensions' codecs.
//!
//! Flow: both sides send one right after the BitTorrent handshake. Each names, for every extension, the id under
//! which it wants to receive that extension's messages: a peer's ids are for what we send, [`OUR_UT_METADATA`],
//! [`OUR_UT_PEX`], [`OUR_LT_DONTHAVE`] and [`OUR_UT_HOLEPUNCH`] for what we receive.
//!
//! A field of the wrong type or out of its bounds counts as absent: clients differ much here, and none of the
//! fields is needed to exchange blocks. Only what isn't a dictionary at all is an error.
//!
//! Deliberately not here: the extensions' own messages, see [`crate::peer::metadata`] and [`crate::peer::pex`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use thiserror::Error;

use crate::metainfo::bencode::{self, BencodeError, Encoder, Limits, Value};
use crate::metainfo::geometry::PieceIndex;
use crate::peer::wire::MAX_EXTENDED;

/// The id of the extension handshake itself (BEP 10).
pub const HANDSHAKE_ID: u8 = 0;
/// The id under which peers send us metadata messages (BEP 9).
pub const OUR_UT_METADATA: u8 = 1;
/// The id under which peers send us peer exchange messages (BEP 11).
pub const OUR_UT_PEX: u8 = 2;
/// Our id for `lt_donthave` (BEP 54): the sender no longer has a piece.
pub const OUR_LT_DONTHAVE: u8 = 3;

/// Our id for `ut_holepunch` (BEP 55): introductions of peers that nobody can dial.
pub const OUR_UT_HOLEPUNCH: u8 = 4;

/// The most metadata that we believe in, in bytes: three million pieces of hashes. The largest seen in the wild
/// is about 10 MiB.
pub const MAX_METADATA: u32 = 64 << 20;
/// The longest client name kept, in characters: it ends up on a terminal's line.
const MAX_CLIENT: usize = 48;
/// What a message of an extension may hold: a handshake has about 30 values and nests twice.
pub(crate) const MESSAGE_LIMITS: Limits = Limits { size: MAX_EXTENDED, depth: 8, tokens: 4096 };

/// Why a message of an extension can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExtensionError {
    /// It isn't bencode, or more of it than makes sense.
    #[error("the peer sent an extension message that isn't bencode: {0}")]
    Bencode(BencodeError),
    /// It isn't a dictionary.
    #[error("the peer sent an extension message that isn't a dictionary")]
    NotDict,
    /// A field is absent, of the wrong type, or out of its bounds.
    #[error("the peer sent an extension message whose field \"{0}\" is missing or wrong")]
    Field(&'static str),
}

/// A peer's extension handshake (BEP 10, with the fields of BEP 9, 11 and 21). An absent field is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtHandshake {
    /// Id for metadata messages to the sender; `None` when it doesn't take them.
    pub ut_metadata: Option<u8>,
    /// Id for peer exchange messages to the sender; `None` when it doesn't take them.
    pub ut_pex: Option<u8>,
    /// The sender's id for `lt_donthave` (BEP 54): it wants to hear of pieces that we no longer have.
    pub lt_donthave: Option<u8>,
    /// The sender's id for `ut_holepunch` (BEP 55): it takes part in introductions.
    pub ut_holepunch: Option<u8>,
    /// Bytes of the metadata, from 1 to [`MAX_METADATA`]; `None` when the sender doesn't have it.
    pub metadata_size: Option<u32>,
    /// How many requests the sender keeps in its queue before it drops some.
    pub reqq: Option<u32>,
    /// The sender's name and version; printable, and cut to a line's part.
    pub client: Option<String>,
    /// The TCP port on which the sender listens.
    pub port: Option<u16>,
    /// The receiver's address as the sender sees it; a mapped IPv4 address is given as IPv4.
    pub your_ip: Option<IpAddr>,
    /// The sender would rather be connected with encryption (`e`).
    pub encryption: bool,
    /// The sender wants nothing (BEP 21).
    pub upload_only: bool,
}

impl ExtHandshake {
    /// The payload of the message with id [`HANDSHAKE_ID`].
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        out.dict_begin();
        if self.encryption {
            out.key("e").int(1);
        }
        out.key("m").dict_begin();
        if let Some(id) = self.lt_donthave {
            out.key("lt_donthave").int(id.into());
        }
        if let Some(id) = self.ut_holepunch {
            out.key("ut_holepunch").int(id.into());
        }
        if let Some(id) = self.ut_metadata {
            out.key("ut_metadata").int(id.into());
        }
        if let Some(id) = self.ut_pex {
            out.key("ut_pex").int(id.into());
        }
        out.end();
        if let Some(size) = self.metadata_size {
            out.key("metadata_size").int(size.into());
        }
        if let Some(port) = self.port {
            out.key("p").int(port.into());
        }
        if let Some(reqq) = self.reqq {
            out.key("reqq").int(reqq.into());
        }
        if self.upload_only {
            out.key("upload_only").int(1);
        }
        if let Some(client) = &self.client {
            out.key("v").bytes(client);
        }
        match self.your_ip {
            Some(IpAddr::V4(ip)) => _ = out.key("yourip").bytes(ip.octets()),
            Some(IpAddr::V6(ip)) => _ = out.key("yourip").bytes(ip.octets()),
            None => {}
        }
        out.end();
        out.finish().into()
    }

    /// Reads a peer's first extension handshake.
    ///
    /// # Errors
    /// It isn't a bencoded dictionary, or a far too long one.
    pub fn decode(payload: &[u8]) -> Result<Self, ExtensionError> {
        let mut handshake = Self::default();
        handshake.update(payload)?;
        Ok(handshake)
    }

    /// Applies a later extension handshake of the same peer: what it doesn't name stays as it was, and an
    /// extension with id 0 is switched off (BEP 10).
    ///
    /// # Errors
    /// As [`ExtHandshake::decode`]; nothing is changed then.
    pub fn update(&mut self, payload: &[u8]) -> Result<(), ExtensionError> {
        let dict = bencode::parse_with(payload, MESSAGE_LIMITS).map_err(ExtensionError::Bencode)?;
        if !dict.is_dict() {
            return Err(ExtensionError::NotDict);
        }
        if let Some(m) = dict.get("m") {
            set_id(&mut self.ut_metadata, m, "ut_metadata");
            set_id(&mut self.ut_pex, m, "ut_pex");
            set_id(&mut self.lt_donthave, m, "lt_donthave");
            set_id(&mut self.ut_holepunch, m, "ut_holepunch");
        }
        let int = |key: &str| dict.get(key).and_then(Value::as_int);
        // A magnet's client without metadata says 0, or says nothing.
        let size = int("metadata_size").and_then(|n| u32::try_from(n).ok());
        self.metadata_size = size.filter(|n| (1..=MAX_METADATA).contains(n)).or(self.metadata_size);
        self.reqq = int("reqq").and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0).or(self.reqq);
        self.port = int("p").and_then(|n| u16::try_from(n).ok()).filter(|&n| n > 0).or(self.port);
        self.encryption = int("e").map_or(self.encryption, |n| n > 0);
        self.upload_only = int("upload_only").map_or(self.upload_only, |n| n > 0);
        if let Some(name) = dict.get("v").and_then(Value::as_bytes).and_then(printable) {
            self.client = Some(name);
        }
        self.your_ip = dict.get("yourip").and_then(Value::as_bytes).and_then(address).or(self.your_ip);
        Ok(())
    }
}

/// The payload of an `lt_donthave` message (BEP 54).
pub fn dont_have(piece: PieceIndex) -> Bytes {
    Bytes::copy_from_slice(&piece.0.to_be_bytes())
}

/// The piece that an `lt_donthave` message names; `None` for one of another length.
pub fn parse_dont_have(payload: &[u8]) -> Option<PieceIndex> {
    payload.try_into().ok().map(|bytes| PieceIndex(u32::from_be_bytes(bytes)))
}

/// Takes over an extension's id from the dictionary `m`, if it is there.
fn set_id(id: &mut Option<u8>, m: Value<'_>, key: &str) {
    if let Some(n) = m.get(key).and_then(Value::as_int).and_then(|n| u8::try_from(n).ok()) {
        *id = (n != 0).then_some(n);
    }
}

/// A name without what could play with a terminal; `None` when nothing is left.
fn printable(name: &[u8]) -> Option<String> {
    // A character has 4 bytes at most: no need to look at the rest of a long lie.
    let head = name.get(..4 * MAX_CLIENT).unwrap_or(name);
    let clean: String =
        String::from_utf8_lossy(head).chars().filter(|c| !c.is_control()).take(MAX_CLIENT).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// An address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::from(Ipv6Addr::from(v6)).to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn full() -> ExtHandshake {
        ExtHandshake {
            ut_metadata: Some(OUR_UT_METADATA),
            ut_holepunch: None,
            ut_pex: Some(OUR_UT_PEX),
            lt_donthave: Some(OUR_LT_DONTHAVE),
            metadata_size: Some(6_700_000),
            reqq: Some(500),
            client: Some("torrentfs 0.1".into()),
            port: Some(6881),
            your_ip: Some("1.2.3.4".parse().unwrap()),
            encryption: true,
            upload_only: true,
        }
    }

    #[test]
    fn a_full_handshake_has_its_bytes() {
        let wanted = b"d1:ei1e1:md11:lt_donthavei3e11:ut_metadatai1e6:ut_pexi2ee13:metadata_sizei6700000e1:pi6881e4:reqqi500e\
            11:upload_onlyi1e1:v13:torrentfs 0.16:yourip4:\x01\x02\x03\x04e";
        assert_eq!(&full().encode()[..], &wanted[..]);
        assert_eq!(ExtHandshake::decode(wanted), Ok(full()));
        let empty = ExtHandshake::default();
        assert_eq!(&empty.encode()[..], b"d1:mdee");
        assert_eq!(ExtHandshake::decode(b"d1:mdee"), Ok(empty.clone()));
        assert_eq!(ExtHandshake::decode(b"de"), Ok(empty));
    }

    #[test]
    fn odd_fields_count_as_absent() {
        let none = ExtHandshake::default;
        #[rustfmt::skip]
        let rows: Vec<(&[u8], ExtHandshake)> = vec![
            (b"d1:mi1ee", none()),
            (b"d1:md11:ut_metadatai0e6:ut_pexi256eee", none()),
            (b"d1:md11:ut_metadata1:xee", none()),
            (b"d1:md12:ut_holepunchi4eee", ExtHandshake { ut_holepunch: Some(4), ..none() }),
            (b"d1:md11:ut_metadatai255eee", ExtHandshake { ut_metadata: Some(255), ..none() }),
            (b"d13:metadata_sizei0ee", none()),
            (b"d13:metadata_sizei-5ee", none()),
            (b"d13:metadata_sizei67108864ee", ExtHandshake { metadata_size: Some(64 << 20), ..none() }),
            (b"d13:metadata_sizei67108865ee", none()),
            (b"d13:metadata_sizei9223372036854775807ee", none()),
            (b"d1:pi0ee", none()),
            (b"d1:pi65536ee", none()),
            (b"d4:reqqi-1ee", none()),
            (b"d1:v3:a\x1bbe", ExtHandshake { client: Some("ab".into()), ..none() }),
            (b"d1:v2:\xff\xfee", ExtHandshake { client: Some("\u{fffd}\u{fffd}".into()), ..none() }),
            (b"d1:v2:\n e", none()),
            (b"d6:yourip3:abce", none()),
            (b"d6:yourip16:\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x01e",
                ExtHandshake { your_ip: Some("127.0.0.1".parse().unwrap()), ..none() }),
        ];
        for (bytes, wanted) in rows {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(ExtHandshake::decode(bytes), Ok(wanted), "{shown}");
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let name = "é".repeat(40_000);
        let payload = format!("d1:v{}:{name}e", name.len());
        assert!(ExtHandshake::decode(payload.as_bytes()).is_err(), "longer than any extended message");
        let payload = format!("d1:v{}:{}e", 2 * 9_000, "é".repeat(9_000));
        let client = ExtHandshake::decode(payload.as_bytes()).unwrap().client.unwrap();
        assert_eq!(client, "é".repeat(MAX_CLIENT));
    }

    #[test]
    fn a_second_handshake_changes_what_it_names() {
        let mut handshake = full();
        handshake.update(b"d1:md6:ut_pexi0eee").unwrap();
        assert_eq!(handshake, ExtHandshake { ut_pex: None, ..full() });
        handshake.update(b"d11:upload_onlyi0ee").unwrap();
        assert!(!handshake.upload_only);
        assert_eq!(handshake.update(b"le"), Err(ExtensionError::NotDict));
        assert!(matches!(handshake.update(b"d1:m"), Err(ExtensionError::Bencode(_))));
        assert!(handshake.update(&b"d".repeat(200_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            _ = ExtHandshake::decode(&bytes);
        }
    }
}
