//! Magnet links (BEP 9, 52, 53): read and written. Pure.
//!
//! What identifies the torrent must be right, or the link is refused; what only helps to find it (trackers,
//! webseeds, peers, the selection) is skipped when it is malformed, since the rest may be enough.

use std::fmt;
use std::ops::RangeInclusive;

use super::id::{Id20, InfoHash, hex, unhex};
use super::{MAX_URL, MAX_URLS, MAX_WEBSEEDS, is_host, path, webseed_url};

/// The longest link that is read, in bytes. Two hundred trackers fit.
const MAX_LINK: usize = 64 * 1024;

/// Multihash: SHA-256 (0x12), 32 bytes (0x20).
const MULTIHASH_SHA256: &str = "1220";

/// A magnet link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Magnet {
    /// `xt`: one hash at least. A link may have only a v2 one (`btmh`).
    pub info_hash: InfoHash,
    /// `dn`: the name to show until the real one is known. As it stands in the link: not made safe.
    pub name: Option<String>,
    /// `tr`, each once.
    pub trackers: Vec<String>,
    /// `ws` (BEP 19): those that [`webseed_url`] takes, at most 50.
    pub webseeds: Vec<String>,
    /// `x.pe`: `host:port` or `[IPv6]:port`, the port not 0.
    pub peers: Vec<String>,
    /// `so` (BEP 53): numbers of the files that are meant.
    pub select_only: Option<Vec<RangeInclusive<u32>>>,
}

/// Why a magnet link can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// It begins otherwise.
    #[error("not a magnet link: it does not begin with \"magnet:?\"")]
    NotMagnet,
    /// It is far longer than links are.
    #[error("the magnet link is longer than {MAX_LINK} bytes")]
    TooLong,
    /// No `xt` of BitTorrent.
    #[error("the magnet link names no torrent: it has no \"xt=urn:btih:\" or \"xt=urn:btmh:\"")]
    NoHash,
    /// A `btih` of another length, or with other digits.
    #[error("the magnet link's info-hash \"{0}\" is neither 40 hex digits nor 32 base32 digits")]
    BadBtih(String),
    /// A `btmh` of another kind or length.
    #[error("the magnet link's v2 info-hash \"{0}\" is not \"1220\" and 64 hex digits")]
    BadBtmh(String),
    /// Two different hashes of one version.
    #[error("the magnet link names two torrents at once")]
    TwoTorrents,
}

impl Magnet {
    /// A link that has nothing but a hash.
    pub fn new(info_hash: InfoHash) -> Self {
        Self { info_hash, ..Self::default() }
    }

    /// Reads a link.
    ///
    /// # Errors
    /// It isn't a magnet link, or its hash is missing or malformed.
    pub fn parse(link: &str) -> Result<Magnet, MagnetError> {
        let link = link.trim();
        if link.len() > MAX_LINK {
            return Err(MagnetError::TooLong);
        }
        let (scheme, rest) = link.split_at_checked(8).ok_or(MagnetError::NotMagnet)?;
        if !scheme.eq_ignore_ascii_case("magnet:?") {
            return Err(MagnetError::NotMagnet);
        }
        let mut magnet = Magnet::default();
        for pair in rest.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // "tr.1" and "xt.2" are how several of a kind are numbered.
            let key = match key.rsplit_once('.') {
                Some((key, number)) if number.bytes().all(|b| b.is_ascii_digit()) => key,
                _ => key,
            };
            match key.to_ascii_lowercase().as_str() {
                "xt" => magnet.add_topic(&decode(value, false))?,
                "dn" if magnet.name.is_none() => {
                    magnet.name = Some(decode(value, true)).filter(|name| !name.trim().is_empty());
                }
                "tr" => add_url(&mut magnet.trackers, decode(value, false), MAX_URLS),
                "ws" => {
                    let url = decode(value, false);
                    if webseed_url(&url).is_ok() {
                        add_url(&mut magnet.webseeds, url, MAX_WEBSEEDS);
                    }
                }
                "x.pe" => {
                    let peer = decode(value, false);
                    if is_endpoint(&peer) {
                        add_url(&mut magnet.peers, peer, MAX_URLS);
                    }
                }
                "so" if magnet.select_only.is_none() => magnet.select_only = selection(&decode(value, false)),
                _ => {}
            }
        }
        if magnet.info_hash == InfoHash::default() {
            return Err(MagnetError::NoHash);
        }
        Ok(magnet)
    }

    fn add_topic(&mut self, topic: &str) -> Result<(), MagnetError> {
        let Some((urn, hash)) = topic.split_at_checked("urn:btih:".len()) else { return Ok(()) };
        if urn.eq_ignore_ascii_case("urn:btih:") {
            let hash: Id20 = hash.parse().map_err(|_| MagnetError::BadBtih(path::printable(hash)))?;
            set(&mut self.info_hash.v1, hash.0)
        } else if urn.eq_ignore_ascii_case("urn:btmh:") {
            let digest = hash.strip_prefix(MULTIHASH_SHA256).and_then(unhex);
            let digest = digest.ok_or_else(|| MagnetError::BadBtmh(path::printable(hash)))?;
            set(&mut self.info_hash.v2, digest)
        } else {
            // Other networks' hashes may stand beside ours.
            Ok(())
        }
    }
}

/// The link, with all that the value holds.
impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs = Vec::new();
        pairs.extend(self.info_hash.v1.map(|v1| format!("xt=urn:btih:{}", hex(&v1))));
        pairs.extend(self.info_hash.v2.map(|v2| format!("xt=urn:btmh:{MULTIHASH_SHA256}{}", hex(&v2))));
        pairs.extend(self.name.iter().map(|name| format!("dn={}", encode(name))));
        pairs.extend(self.trackers.iter().map(|url| format!("tr={}", encode(url))));
        pairs.extend(self.webseeds.iter().map(|url| format!("ws={}", encode(url))));
        pairs.extend(self.peers.iter().map(|peer| format!("x.pe={}", encode(peer))));
        pairs.extend(self.select_only.iter().map(|ranges| {
            let ranges = ranges.iter().map(|range| match (range.start(), range.end()) {
                (a, b) if a == b => a.to_string(),
                (a, b) => format!("{a}-{b}"),
            });
            format!("so={}", ranges.collect::<Vec<_>>().join(","))
        }));
        write!(f, "magnet:?{}", pairs.join("&"))
    }
}

/// The same hash twice is fine, another one isn't.
fn set<const N: usize>(slot: &mut Option<[u8; N]>, hash: [u8; N]) -> Result<(), MagnetError> {
    if slot.replace(hash).is_some_and(|old| old != hash) { Err(MagnetError::TwoTorrents) } else { Ok(()) }
}

fn add_url(list: &mut Vec<String>, url: String, most: usize) {
    let url = url.trim();
    let usable = !url.is_empty() && url.len() <= MAX_URL && !url.contains(char::is_control);
    if usable && list.len() < most && !list.iter().any(|known| known == url) {
        list.push(url.to_owned());
    }
}

/// Whether text is `host:port` or `[IPv6]:port`.
fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(address) => address.is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()),
        None => is_host(host) && !host.contains(':'),
    };
    host && port
}

/// `0,2,4-6` (BEP 53).
fn selection(text: &str) -> Option<Vec<RangeInclusive<u32>>> {
    let ranges = text.split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    });
    ranges.collect()
}

/// Undoes percent-encoding; what isn't UTF-8 is replaced. `plus`: a `+` is a blank, as forms write it (names).
fn decode(text: &str, plus: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escape =
            after.first_chunk::<2>().and_then(|digits| unhex::<1>(std::str::from_utf8(digits).ok()?));
        match (byte, escape) {
            (b'%', Some([decoded])) => {
                out.push(decoded);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _) if plus => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex(&[byte]).to_ascii_uppercase());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "303132333435363738396162636465666768696a";

    #[test]
    fn reads_all_that_a_link_can_have() {
        let v2 = "ab".repeat(32);
        let link = format!(
            "MAGNET:?xt=urn:btih:{HEX}&dn=A+b%20%c3%a9&xt.2=urn:btmh:1220{v2}&tr=http%3A%2F%2Ft%2Fa&tr.1=udp://u:1\
             &tr=udp://u:1&ws=http://w/&x.pe=1.2.3.4:5&x.pe=[::1]:6&x.pe=host.name:7&x.pe=bad&so=0,2,4-6&xt=urn:sha1:X&xl=5"
        );
        let magnet = Magnet::parse(&link).unwrap();
        assert_eq!(
            magnet,
            Magnet {
                info_hash: InfoHash { v1: Some(*b"0123456789abcdefghij"), v2: Some([0xab; 32]) },
                name: Some("A b é".to_owned()),
                trackers: vec!["http://t/a".to_owned(), "udp://u:1".to_owned()],
                webseeds: vec!["http://w/".to_owned()],
                peers: vec!["1.2.3.4:5".to_owned(), "[::1]:6".to_owned(), "host.name:7".to_owned()],
                select_only: Some(vec![0..=0, 2..=2, 4..=6]),
            }
        );
        assert_eq!(Magnet::parse(&magnet.to_string()).unwrap(), magnet);
    }

    #[test]
    fn base32_and_v2_alone() {
        let magnet = Magnet::parse("magnet:?xt=urn:btih:GAYTEMZUGU3DOOBZMFRGGZDFMZTWQ2LK").unwrap();
        assert_eq!(magnet.to_string(), format!("magnet:?xt=urn:btih:{HEX}"));
        let magnet = Magnet::parse(&format!("magnet:?xt=urn:btmh:1220{}", "ab".repeat(32))).unwrap();
        assert_eq!(magnet.info_hash, InfoHash::from_v2([0xab; 32]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (link, error) in [
            ("", MagnetError::NotMagnet),
            ("magnet", MagnetError::NotMagnet),
            ("http://x", MagnetError::NotMagnet),
            ("magnet:?", MagnetError::NoHash),
            ("magnet:?dn=x", MagnetError::NoHash),
            ("magnet:?xt=urn:sha1:abc", MagnetError::NoHash),
            ("magnet:?xt=urn:btih:123", MagnetError::BadBtih("123".to_owned())),
            ("magnet:?xt=urn:btih:%0a", MagnetError::BadBtih("\\n".to_owned())),
            ("magnet:?xt=urn:btmh:1220ab", MagnetError::BadBtmh("1220ab".to_owned())),
        ] {
            assert_eq!(Magnet::parse(link), Err(error), "{link}");
        }
        let two = format!("magnet:?xt=urn:btih:{HEX}&xt=urn:btih:{}", "0".repeat(40));
        assert_eq!(Magnet::parse(&two), Err(MagnetError::TwoTorrents));
        let long = format!("magnet:?xt=urn:btih:{HEX}&dn={}", "x".repeat(MAX_LINK));
        assert_eq!(Magnet::parse(&long), Err(MagnetError::TooLong));
    }

    #[test]
    fn malformed_helpers_are_skipped() {
        for pair in [
            "so=1-",
            "so=5-2",
            "so=99999999999",
            "so=",
            "x.pe=a:0",
            "x.pe=:5",
            "x.pe=[a]:5",
            "x.pe=a:+5",
            "tr=",
            "tr=%0A",
            "ws=w",
            "ws=/x",
            "ws=ftp://w/",
            "ws=http://",
            "dn=",
        ] {
            let magnet = Magnet::parse(&format!("magnet:?xt=urn:btih:{HEX}&{pair}")).unwrap();
            assert_eq!(magnet, Magnet::new(magnet.info_hash), "{pair}");
        }
        assert_eq!(decode("100%", false), "100%");
        assert_eq!(decode("%zz%4", false), "%zz%4");
        assert_eq!(decode("%é", false), "%é");
    }

    proptest! {
        #[test]
        fn no_link_panics(rest in ".{0,60}", garbage in any::<String>()) {
            let _ = Magnet::parse(&garbage);
            let _ = Magnet::parse(&format!("magnet:?xt=urn:btih:{HEX}&{rest}"));
            let _ = Magnet::parse(&format!("magnet:?xt=urn:{rest}"));
        }

        #[test]
        fn names_come_back(name in "[^\\s].{0,30}") {
            let mut magnet = Magnet::new(InfoHash::from_v1([7; 20]));
            magnet.name = Some(name);
            prop_assert_eq!(Magnet::parse(&magnet.to_string()).unwrap(), magnet);
        }
    }
}
