//! The UDP tracker protocol (BEP 15), with IPv6 answers and the URL data option (BEP 41): packets to bytes and
//! back. Pure; hostile input welcome.

use std::time::Duration;

use super::message::{Answer, Ask, Event, clean_text, compact_v4, compact_v6};

/// Begins the connect request, so that other protocols aren't taken for it.
const MAGIC: u64 = 0x0417_2710_1980;
const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const ERROR: u32 = 3;
/// Option type of BEP 41: up to 255 bytes of the URL's path and query.
const URL_DATA: u8 = 2;
/// The longest path and query that is sent: with it, the packet stays below the smallest common MTU.
pub const MAX_URL_DATA: usize = 1000;
/// The largest answer that is read: a datagram of more peers than this was fragmented many times over.
pub const MAX_ANSWER: usize = 16 << 10;

/// A tracker's packet. Whoever reads it checks the transaction id first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To a connect request.
    Connect {
        /// To be used in announces for a minute.
        connection: u64,
    },
    /// To an announce.
    Announce(Answer),
    /// A refusal, with the tracker's words made printable.
    Error(String),
}

/// The connect request.
pub fn connect_request(transaction: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.extend_from_slice(&MAGIC.to_be_bytes());
    out.extend_from_slice(&CONNECT.to_be_bytes());
    out.extend_from_slice(&transaction.to_be_bytes());
    out
}

/// The announce request. `url_data`: path and query of the tracker's URL, empty for none, cut at
/// [`MAX_URL_DATA`].
pub fn announce_request(connection: u64, transaction: u32, ask: &Ask, url_data: &str) -> Vec<u8> {
    let url_data = url_data.as_bytes();
    let url_data = url_data.get(..MAX_URL_DATA).unwrap_or(url_data);
    let mut out = Vec::with_capacity(98 + url_data.len() + 8);
    out.extend_from_slice(&connection.to_be_bytes());
    out.extend_from_slice(&ANNOUNCE.to_be_bytes());
    out.extend_from_slice(&transaction.to_be_bytes());
    out.extend_from_slice(&ask.announce.info_hash);
    out.extend_from_slice(&ask.announce.peer_id);
    for bytes in [ask.progress.downloaded, ask.progress.left, ask.progress.uploaded] {
        // Trackers read these as signed numbers.
        out.extend_from_slice(&bytes.min(i64::MAX as u64).to_be_bytes());
    }
    let event: u32 = match ask.event {
        Event::None => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    };
    out.extend_from_slice(&event.to_be_bytes());
    // Our address: 0 means the one that the packet came from.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&ask.announce.key.to_be_bytes());
    out.extend_from_slice(&ask.num_want.min(i32::MAX as u32).to_be_bytes());
    out.extend_from_slice(&ask.announce.port.to_be_bytes());
    for chunk in url_data.chunks(usize::from(u8::MAX)) {
        out.push(URL_DATA);
        out.push(u8::try_from(chunk.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(chunk);
    }
    out
}

/// Reads a packet: its transaction id and what it says. `ipv6`: it came over IPv6, so its peers are IPv6 ones.
/// `None` for what is no tracker's packet.
pub fn parse_reply(packet: &[u8], ipv6: bool) -> Option<(u32, Reply)> {
    let (action, rest) = take_u32(packet)?;
    let (transaction, rest) = take_u32(rest)?;
    let reply = match action {
        CONNECT => Reply::Connect { connection: u64::from_be_bytes(*rest.first_chunk()?) },
        ANNOUNCE => {
            let (interval, rest) = take_u32(rest)?;
            let (leechers, rest) = take_u32(rest)?;
            let (seeders, rest) = take_u32(rest)?;
            let signed = |n: u32| i32::try_from(n).ok().map(i32::unsigned_abs);
            let mut answer = Answer {
                interval: signed(interval).map(|s| Duration::from_secs(s.into())),
                seeders: signed(seeders),
                leechers: signed(leechers),
                ..Answer::default()
            };
            let read = if ipv6 { compact_v6 } else { compact_v4 };
            read(rest, &mut answer.peers);
            Reply::Announce(answer)
        }
        ERROR => Reply::Error(clean_text(rest)),
        _ => return None,
    };
    Some((transaction, reply))
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::discovery::{Announce, Crypto, Progress};

    fn ask() -> Ask {
        Ask {
            announce: Announce {
                info_hash: [1; 20],
                peer_id: [2; 20],
                port: 0x1ae1,
                key: 0x0a0b_0c0d,
                crypto: Crypto::None,
            },
            progress: Progress { uploaded: 3, downloaded: 4, left: u64::MAX },
            event: Event::Started,
            num_want: u32::MAX,
        }
    }

    #[test]
    fn requests_are_laid_out_as_the_bep_says() {
        assert_eq!(connect_request(7), [0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 0, 0, 0, 7]);
        let plain = announce_request(9, 7, &ask(), "");
        assert_eq!(plain.len(), 98);
        for (at, bytes) in [
            (0, &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 7][..]),
            (16, &[1; 20]),
            (36, &[2; 20]),
            (56, &[0, 0, 0, 0, 0, 0, 0, 4]),
            (64, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            (72, &[0, 0, 0, 0, 0, 0, 0, 3]),
            (80, &[0, 0, 0, 2, 0, 0, 0, 0]),
            (88, &[0x0a, 0x0b, 0x0c, 0x0d, 0x7f, 0xff, 0xff, 0xff, 0x1a, 0xe1]),
        ] {
            assert_eq!(&plain[at..at + bytes.len()], bytes, "at {at}");
        }
        let with_path = announce_request(9, 7, &ask(), "/a?k");
        assert_eq!(&with_path[98..], b"\x02\x04/a?k");
        let long = announce_request(9, 7, &ask(), &"x".repeat(300));
        assert_eq!(
            (long.len(), long[98..100].to_vec(), long[355..357].to_vec()),
            (402, vec![2, 255], vec![2, 45])
        );
        assert!(announce_request(9, 7, &ask(), &"x".repeat(100_000)).len() <= 98 + MAX_URL_DATA + 8);
    }

    #[test]
    fn replies_of_any_bytes() {
        let connect = parse_reply(&[0, 0, 0, 0, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9], false);
        assert_eq!(connect, Some((7, Reply::Connect { connection: 0x0102_0304_0506_0708 })));
        let head = [0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 7, 8, 0, 0, 0, 2, 0, 0, 0, 3];
        let v4 = parse_reply(&[&head[..], &[10, 0, 0, 1, 0, 80, 99]].concat(), false);
        let mut answer = Answer {
            interval: Some(Duration::from_secs(1800)),
            leechers: Some(2),
            seeders: Some(3),
            peers: vec!["10.0.0.1:80".parse().unwrap()],
            ..Answer::default()
        };
        assert_eq!(v4, Some((7, Reply::Announce(answer.clone()))));
        let v6 = parse_reply(&[&head[..], &[0x20; 16], &[0, 80]].concat(), true);
        answer.peers = vec!["[2020:2020:2020:2020:2020:2020:2020:2020]:80".parse().unwrap()];
        assert_eq!(v6, Some((7, Reply::Announce(answer))));
        let error = parse_reply(b"\0\0\0\x03\0\0\0\x07no \x1bsuch", false);
        assert_eq!(error, Some((7, Reply::Error("no such".into()))));

        let negative = [[0, 0, 0, 1, 0, 0, 0, 7].as_slice(), &[0xff; 12]].concat();
        assert_eq!(parse_reply(&negative, false), Some((7, Reply::Announce(Answer::default()))));
        for short in 0..20 {
            assert_eq!(parse_reply(&head[..short], false), None, "{short}");
        }
        assert_eq!(parse_reply(&[0, 0, 0, 0, 0, 0, 0, 7, 1, 2, 3], false), None);
        assert_eq!(parse_reply(&[0xff; 64], false), None);
    }
}
