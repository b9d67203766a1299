//! The HTTP tracker protocol (BEP 3, 7, 23, 27, 31): the announce URL, and the answer. Pure; hostile input welcome.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Url;

use super::message::{
    Answer, Ask, Event, Retry, TrackerError, clean_text, compact_v4, compact_v6, keep_peer,
};
use crate::discovery::Crypto;
use crate::metainfo::bencode::{self, Limits, Value};

/// Bytes of an answer that are read; 2,000 peers in the long form take 200 KiB.
pub const MAX_ANSWER: usize = 1 << 20;
/// A tracker id is sent back in the URL, so it must be short.
const MAX_TRACKER_ID: usize = 512;

/// The URL to GET for an announce: `base`, its own query kept (passkeys live there), its fragment dropped.
pub fn announce_url(base: &Url, ask: &Ask, tracker_id: Option<&[u8]>) -> Url {
    let mut query = base.query().filter(|q| !q.is_empty()).map(|q| format!("{q}&")).unwrap_or_default();
    query.push_str("info_hash=");
    percent_encode(&ask.announce.info_hash, &mut query);
    query.push_str("&peer_id=");
    percent_encode(&ask.announce.peer_id, &mut query);
    // Writing to a string can't fail.
    let _ = write!(
        query,
        "&port={}&uploaded={}&downloaded={}&left={}&compact=1&no_peer_id=1&numwant={}&key={:08x}",
        ask.announce.port,
        ask.progress.uploaded,
        ask.progress.downloaded,
        ask.progress.left,
        ask.num_want,
        ask.announce.key
    );
    match ask.event {
        Event::None => {}
        Event::Completed => query.push_str("&event=completed"),
        Event::Started => query.push_str("&event=started"),
        Event::Stopped => query.push_str("&event=stopped"),
    }
    match ask.announce.crypto {
        Crypto::None => {}
        Crypto::Supported => query.push_str("&supportcrypto=1"),
        Crypto::Required => query.push_str("&requirecrypto=1"),
    }
    if let Some(id) = tracker_id {
        query.push_str("&trackerid=");
        percent_encode(id, &mut query);
    }
    let mut url = base.clone();
    url.set_fragment(None);
    url.set_query(Some(&query));
    url
}

/// Appends bytes as the value of a query parameter.
fn percent_encode(bytes: &[u8], out: &mut String) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// Reads the body of an answer.
///
/// # Errors
/// [`TrackerError::Refused`] with the tracker's reason, [`TrackerError::Malformed`] for what isn't an answer.
pub fn parse_answer(body: &[u8]) -> Result<Answer, TrackerError> {
    let limits = Limits { size: MAX_ANSWER, ..Limits::MESSAGE };
    // Some trackers end their answer with a line break.
    let (value, _) = bencode::parse_prefix_with(body, limits)
        .map_err(|error| TrackerError::Malformed(error.to_string()))?;
    if !value.is_dict() {
        return Err(TrackerError::Malformed("it is not a dictionary".into()));
    }
    if let Some(reason) = value.get("failure reason") {
        let reason = reason.as_bytes().map(clean_text).unwrap_or_default();
        return Err(TrackerError::Refused { reason, retry: value.get("retry in").and_then(retry_in) });
    }
    let mut answer = Answer {
        interval: seconds(value, "interval"),
        min_interval: seconds(value, "min interval"),
        seeders: count(value, "complete"),
        leechers: count(value, "incomplete"),
        warning: value.get("warning message").and_then(Value::as_bytes).map(clean_text),
        tracker_id: value
            .get("tracker id")
            .and_then(Value::as_bytes)
            .filter(|id| !id.is_empty() && id.len() <= MAX_TRACKER_ID)
            .map(<[u8]>::to_vec),
        peers: Vec::new(),
    };
    let peers = value.get("peers");
    let peers6 = value.get("peers6").and_then(Value::as_bytes);
    if let Some(bytes) = peers.and_then(Value::as_bytes) {
        compact_v4(bytes, &mut answer.peers);
    }
    for peer in peers.and_then(Value::list).into_iter().flatten() {
        if let Some(addr) = long_peer(peer) {
            keep_peer(&mut answer.peers, addr);
        }
    }
    compact_v6(peers6.unwrap_or_default(), &mut answer.peers);
    Ok(answer)
}

/// A peer in the long form (BEP 3). One that is named by a host name is left out: trackers name addresses, and
/// looking up names that a stranger chose helps nobody.
fn long_peer(peer: Value<'_>) -> Option<SocketAddr> {
    let ip: IpAddr = peer.get("ip")?.as_str()?.parse().ok()?;
    let port = u16::try_from(peer.get("port")?.as_int()?).ok()?;
    Some(SocketAddr::new(ip, port))
}

fn seconds(value: Value<'_>, key: &str) -> Option<Duration> {
    value.get(key)?.as_int()?.try_into().ok().map(Duration::from_secs)
}

fn count(value: Value<'_>, key: &str) -> Option<u32> {
    value.get(key)?.as_int()?.try_into().ok()
}

/// `retry in` (BEP 31): minutes, as a number or as its digits, or `never`.
fn retry_in(value: Value<'_>) -> Option<Retry> {
    if value.as_bytes() == Some(b"never") {
        return Some(Retry::Never);
    }
    let minutes: u64 = match value.as_str() {
        Some(digits) => digits.parse().ok()?,
        None => value.as_int()?.try_into().ok()?,
    };
    Some(Retry::After(Duration::from_secs(minutes.saturating_mul(60))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::discovery::tracker::message::MAX_PEERS;
    use crate::discovery::{Announce, Progress};

    fn ask(event: Event) -> Ask {
        let mut info_hash = *b"\x00\xff &=%+#abcdefghij./";
        info_hash[19] = b'~';
        Ask {
            announce: Announce {
                info_hash,
                peer_id: *b"-TF0001-0123456789ab",
                port: 6881,
                key: 0xab,
                crypto: Crypto::None,
            },
            progress: Progress { uploaded: 1, downloaded: 2, left: u64::MAX },
            event,
            num_want: 80,
        }
    }

    #[test]
    fn the_url_keeps_passkeys_and_encodes_every_byte() {
        let url = announce_url(
            &Url::parse("http://t.example:80/announce?passkey=a%20b#x").unwrap(),
            &ask(Event::Started),
            Some(b"i\x01"),
        );
        assert_eq!(
            url.as_str(),
            "http://t.example/announce?passkey=a%20b&info_hash=%00%FF%20%26%3D%25%2B%23abcdefghij.~\
             &peer_id=-TF0001-0123456789ab&port=6881&uploaded=1&downloaded=2&left=18446744073709551615\
             &compact=1&no_peer_id=1&numwant=80&key=000000ab&event=started&trackerid=i%01"
        );
        for (base, event, part) in [
            ("http://t/a", Event::None, "/a?info_hash=%00"),
            ("http://t/a?", Event::Stopped, "/a?info_hash=%00"),
            ("http://t/a", Event::Stopped, "&event=stopped"),
            ("http://t/a", Event::Completed, "&event=completed"),
        ] {
            let url = announce_url(&Url::parse(base).unwrap(), &ask(event), None);
            assert!(url.as_str().contains(part), "{url}");
            assert_eq!(url.as_str().contains("event="), event != Event::None);
        }
        for (crypto, part) in
            [(Crypto::Supported, "&supportcrypto=1"), (Crypto::Required, "&requirecrypto=1")]
        {
            let mut ask = ask(Event::None);
            ask.announce.crypto = crypto;
            let url = announce_url(&Url::parse("http://t/a").unwrap(), &ask, None);
            assert!(url.as_str().ends_with(part), "{url}");
        }
    }

    #[test]
    fn answers_in_all_their_forms() {
        let compact = parse_answer(
            b"d8:completei5e10:incompletei7e8:intervali1800e12:min intervali900e5:peers6:\x0a\0\0\x01\x1a\xe16:peers618:\
              \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe110:tracker id2:id15:warning message3:ow\ne\r\n",
        )
        .unwrap();
        assert_eq!(
            compact,
            Answer {
                interval: Some(Duration::from_secs(1800)),
                min_interval: Some(Duration::from_secs(900)),
                peers: vec!["10.0.0.1:6881".parse().unwrap(), "[2001:db8::1]:6881".parse().unwrap()],
                seeders: Some(5),
                leechers: Some(7),
                warning: Some("ow".into()),
                tracker_id: Some(b"id".to_vec()),
            }
        );
        let long = parse_answer(
            b"d5:peersld2:ip8:10.0.0.17:peer id20:xxxxxxxxxxxxxxxxxxxx4:porti1eed2:ip3:::14:porti2eed2:ip4:a.bc4:porti3ee\
              d2:ip8:10.0.0.14:porti99999eed4:porti1eei7eee",
        )
        .unwrap();
        assert_eq!(long.peers, ["10.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    }

    #[test]
    fn refusals_say_why_and_when() {
        for (body, words, when) in [
            (&b"d14:failure reason4:gonee"[..], "gone", None),
            (b"d14:failure reason4:gone8:retry in5:nevere", "gone", Some(Retry::Never)),
            (b"d14:failure reason4:gone8:retry ini5ee", "gone", Some(Retry::After(Duration::from_secs(300)))),
            (b"d14:failure reason4:gone8:retry in1:5e", "gone", Some(Retry::After(Duration::from_secs(300)))),
            (b"d14:failure reason4:gone8:retry ini-5ee", "gone", None),
            (b"d14:failure reasoni5ee", "", None),
        ] {
            match parse_answer(body).unwrap_err() {
                TrackerError::Refused { reason, retry } => {
                    assert_eq!((reason.as_str(), retry), (words, when))
                }
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn hostile_answers_end_in_an_error_or_in_nothing() {
        let deep = [b"l".repeat(200_000), b"e".repeat(200_000)].concat();
        let huge = [&b"d5:peers"[..], b"9999999999:"].concat();
        for body in [&b""[..], b"<html>", b"i5e", b"le", b"d", b"d5:peers", &deep, &huge, &[b'l'; 2 << 20]] {
            assert!(matches!(parse_answer(body), Err(TrackerError::Malformed(_))));
        }
        for body in [
            &b"de"[..],
            b"d5:peers0:e",
            b"d5:peers5:abcdee",
            b"d5:peersi5ee",
            b"d8:intervali-5e12:min intervali-1e8:completei-1e10:incompletei99999999999e6:peers61:ae",
        ] {
            assert_eq!(parse_answer(body).unwrap(), Answer::default());
        }
        let many = [b"d5:peers600000:".to_vec(), vec![7; 600_000], b"e".to_vec()].concat();
        assert_eq!(parse_answer(&many).unwrap().peers.len(), MAX_PEERS);
        let long_id = [b"d10:tracker id1000:".to_vec(), vec![7; 1000], b"e".to_vec()].concat();
        assert_eq!(parse_answer(&long_id).unwrap().tracker_id, None);
    }
}
