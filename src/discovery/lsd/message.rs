//! The one message of local service discovery (BEP 14): somebody at the packet's address and this port has these
//! torrents. Pure.
//!
//! It looks like HTTP. Clients write its headers in any case and order, some end lines by a line feed alone, and some
//! read the first `Infohash` only.

use std::fmt::Write;
use std::net::SocketAddr;

/// Packets we send are no longer: they pass every network in one piece.
const SENT_MAX: usize = 1400;
/// Longer packets are none of ours.
pub const PACKET_MAX: usize = 1500;
/// Longer cookies are no cookies.
const COOKIE_MAX: usize = 64;
/// `Infohash: `, 40 digits and the line's end.
const HASH_LINE: usize = 52;
/// Info-hashes in one packet at most.
pub const HASHES_MAX: usize = (SENT_MAX - 150) / HASH_LINE;

/// What somebody says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Where they listen; never 0.
    pub port: u16,
    /// What they have or look for; at least one, each once.
    pub hashes: Vec<[u8; 20]>,
    /// By it a sender knows its own packets.
    pub cookie: Option<String>,
}

/// The packet that says so; of more than [`HASHES_MAX`] torrents it says the first.
pub fn announce(group: SocketAddr, port: u16, hashes: &[[u8; 20]], cookie: &str) -> Vec<u8> {
    let mut text = format!("BT-SEARCH * HTTP/1.1\r\nHost: {group}\r\nPort: {port}\r\n");
    for hash in hashes.iter().take(HASHES_MAX) {
        text.push_str("Infohash: ");
        for byte in hash {
            // Writing to a string doesn't fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str("\r\n");
    }
    let cookie = cookie.get(..COOKIE_MAX).unwrap_or(cookie);
    // Two blank lines at the end: the document has it so, and some clients look for them.
    let _ = write!(text, "cookie: {cookie}\r\n\r\n\r\n");
    text.into_bytes()
}

/// Reads a packet; `None` when it isn't one, or says nothing of use.
pub fn parse(packet: &[u8]) -> Option<Search> {
    if packet.len() > PACKET_MAX {
        return None;
    }
    let mut lines = packet.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let start = lines.next()?;
    let mut words = start.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is = |word: Option<&[u8]>, what: &[u8]| word.is_some_and(|word| word.eq_ignore_ascii_case(what));
    let version =
        |word: Option<&[u8]>| word.and_then(|word| word.get(..5)).is_some_and(|v| is(Some(v), b"HTTP/"));
    if !(is(words.next(), b"BT-SEARCH") && is(words.next(), b"*") && version(words.next())) {
        return None;
    }
    let mut search = Search { port: 0, hashes: Vec::new(), cookie: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"port") && search.port == 0 {
            search.port = number(value)?;
        } else if name.eq_ignore_ascii_case(b"infohash") {
            if let Some(hash) = info_hash(value).filter(|hash| !search.hashes.contains(hash)) {
                search.hashes.push(hash);
            }
        } else if name.eq_ignore_ascii_case(b"cookie") && value.len() <= COOKIE_MAX {
            search.cookie = std::str::from_utf8(value).ok().map(str::to_owned);
        }
    }
    (search.port != 0 && !search.hashes.is_empty()).then_some(search)
}

/// A port in decimal; not 0.
fn number(text: &[u8]) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let port = std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()?;
    (port != 0).then_some(port)
}

/// 40 hex digits; or 64 of a v2 torrent, of which peers know the first 40 (BEP 52).
fn info_hash(text: &[u8]) -> Option<[u8; 20]> {
    if !matches!(text.len(), 40 | 64) || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 20];
    for (byte, digits) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    const A: &str = "0123456789abcdef0123456789ABCDEF01234567";
    const B: &str = "ffffffffffffffffffffffffffffffffffffffff";

    fn hash(text: &str) -> [u8; 20] {
        info_hash(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_packet_is_as_the_document_has_it() {
        let group: SocketAddr = "239.192.152.143:6771".parse().unwrap();
        let packet = announce(group, 6881, &[hash(A), hash(B)], "c0ffee");
        let want = "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n\
                    Infohash: 0123456789abcdef0123456789abcdef01234567\r\n\
                    Infohash: ffffffffffffffffffffffffffffffffffffffff\r\ncookie: c0ffee\r\n\r\n\r\n";
        assert_eq!(String::from_utf8(packet).unwrap(), want);
        let group: SocketAddr = "[ff15::efc0:988f]:6771".parse().unwrap();
        let long = announce(group, 65535, &[[7; 20]; 100], &"c".repeat(100));
        assert!(long.len() <= SENT_MAX, "{}", long.len());
        assert!(String::from_utf8(long).unwrap().contains("Host: [ff15::efc0:988f]:6771\r\n"));
    }

    #[test]
    fn packets_of_others_are_read_and_what_is_of_no_use_is_not() {
        let said = |port, hashes: &[&str], cookie: Option<&str>| {
            let hashes = hashes.iter().map(|text| hash(text)).collect();
            Some(Search { port, hashes, cookie: cookie.map(str::to_owned) })
        };
        let rows: Vec<(String, Option<Search>)> = vec![
            (
                format!(
                    "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 51413\r\nInfohash: {A}\r\n\r\n\r\n"
                ),
                said(51413, &[A], None),
            ),
            // Any case, any order, blanks, a line feed alone, no blank line at the end, an older version.
            (
                format!("bt-search  *  http/1.0\nINFOHASH:{A}\ncookie:x\nx: y\nport:  1 "),
                said(1, &[A], Some("x")),
            ),
            (
                format!(
                    "BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {A}\r\nInfohash: {B}\r\nInfohash: {A}\r\n\r\n"
                ),
                said(5, &[A, B], None),
            ),
            // Of v2; a bad one beside a good one.
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {A}{}\r\n\r\n", "0".repeat(24)),
                said(5, &[A], None),
            ),
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: zz\r\nInfohash: {B}\r\n\r\n"),
                said(5, &[B], None),
            ),
            // What stands behind the blank line isn't of it.
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {A}\r\n\r\nInfohash: {B}\r\n"),
                said(5, &[A], None),
            ),
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nPort: 6\r\nInfohash: {A}\r\n\r\n"),
                said(5, &[A], None),
            ),
            (
                format!(
                    "BT-SEARCH * HTTP/1.1\r\nPort: 5\r\ncookie: {}\r\nInfohash: {A}\r\n\r\n",
                    "c".repeat(65)
                ),
                said(5, &[A], None),
            ),
            // Nothing of use.
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: 0\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: 65536\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: +5\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH * HTTP/1.1\r\nInfohash: {A}\r\n\r\n"), None),
            ("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\n\r\n".to_owned(), None),
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {}\r\n\r\n", &A[1..]), None),
            (format!("M-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH / HTTP/1.1\r\nPort: 5\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH * SSDP/1.1\r\nPort: 5\r\nInfohash: {A}\r\n\r\n"), None),
            (format!("BT-SEARCH *\r\nPort: 5\r\nInfohash: {A}\r\n\r\n"), None),
            (
                format!(
                    "BT-SEARCH * HTTP/1.1\r\nPort: 5\r\nInfohash: {A}\r\nx: {}\r\n",
                    "x".repeat(PACKET_MAX)
                ),
                None,
            ),
            (String::new(), None),
            ("\n".to_owned(), None),
        ];
        for (packet, want) in rows {
            assert_eq!(parse(packet.as_bytes()), want, "{packet}");
        }
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(port in 1u16.., hashes in prop::collection::btree_set(any::<[u8; 20]>(), 1..=HASHES_MAX), cookie in "[0-9a-f]{1,16}") {
            let hashes: Vec<_> = hashes.into_iter().collect();
            let packet = announce("239.192.152.143:6771".parse().unwrap(), port, &hashes, &cookie);
            prop_assert!(packet.len() <= SENT_MAX);
            prop_assert_eq!(parse(&packet), Some(Search { port, hashes, cookie: Some(cookie) }));
        }

        #[test]
        fn no_packet_makes_it_panic(start in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[a-zA-Z0-9:\r\n *]{0,200}") {
            let prefix: &[u8] = if start { b"BT-SEARCH * HTTP/1.1\r\n" } else { b"" };
            for rest in [&bytes[..], text.as_bytes()] {
                let said = parse(&[prefix, rest].concat());
                prop_assert!(said.is_none_or(|said| said.port != 0 && !said.hashes.is_empty()));
            }
        }
    }
}
