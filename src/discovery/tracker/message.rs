//! What is said between us and a tracker, whatever carries it. Pure.
//!
//! [`Ask`] is an announce, [`Answer`] what comes back, [`TrackerError`] why nothing did. Peers in compact form
//! (BEP 23, BEP 7) are read here, since HTTP and UDP share it. What a tracker says in words is made
//! [printable](clean_text) before anyone sees it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::discovery::{Announce, Progress, canonical_peer, usable_peer};
use crate::net::hosts::PrivateHost;

/// Addresses taken from one answer; trackers send 50 to 200, and a hostile one could fill a megabyte.
pub const MAX_PEERS: usize = 2000;
/// Characters kept of a tracker's words: what a status line can show.
const MAX_TEXT: usize = 200;

/// What happened to us, as a tracker wants to know it (BEP 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing: a regular announce.
    None,
    /// The last missing piece came, in this session.
    Completed,
    /// The first announce of this session.
    Started,
    /// The last one.
    Stopped,
}

/// One announce.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Who we are.
    pub announce: Announce,
    /// How far we are.
    pub progress: Progress,
    /// What happened.
    pub event: Event,
    /// How many peers we would like; 0 with [`Event::Stopped`].
    pub num_want: u32,
}

/// What a tracker answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// When it wants to hear of us again; not yet bounded.
    pub interval: Option<Duration>,
    /// How soon it may hear of us at all (HTTP only); not yet bounded.
    pub min_interval: Option<Duration>,
    /// Peers, [usable](usable_peer), at most [`MAX_PEERS`].
    pub peers: Vec<SocketAddr>,
    /// Peers that have everything.
    pub seeders: Option<u32>,
    /// Peers that don't.
    pub leechers: Option<u32>,
    /// What the tracker wants the user to know, printable.
    pub warning: Option<String>,
    /// To be sent back in later announces (BEP 3).
    pub tracker_id: Option<Vec<u8>>,
}

/// When a tracker that refused wants to be asked again (BEP 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After this long.
    After(Duration),
    /// Not at all.
    Never,
}

/// Why an announce failed. The texts are for users: they follow "tracker X: ".
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// Not a URL that we can announce to.
    #[error("{0}")]
    BadUrl(String),
    /// The tracker answered that it won't.
    #[error("refused: {reason}")]
    Refused {
        /// Its words, printable.
        reason: String,
        /// When to ask again, if it said so.
        retry: Option<Retry>,
    },
    /// No answer.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The name can't be looked up.
    #[error("the host name {host} can't be resolved: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's reason.
        why: String,
    },
    /// It is in the local network, and the torrent came from elsewhere.
    #[error(transparent)]
    Private(#[from] PrivateHost),
    /// The network says no.
    #[error("{0}")]
    Network(String),
    /// An HTTP status other than success, without a tracker's answer in it.
    #[error("HTTP status {0}")]
    Status(u16),
    /// Not a tracker's answer.
    #[error("the answer is not a tracker's: {0}")]
    Malformed(String),
    /// More than we are ready to read.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

impl TrackerError {
    /// When the tracker said it wants to be asked again.
    pub fn retry(&self) -> Option<Retry> {
        match self {
            Self::Refused { retry, .. } => *retry,
            Self::BadUrl(_) => Some(Retry::Never),
            _ => None,
        }
    }
}

/// Adds an address to those of an answer, if it is usable and there is room.
pub fn keep_peer(peers: &mut Vec<SocketAddr>, addr: SocketAddr) {
    if peers.len() < MAX_PEERS && usable_peer(addr) {
        peers.push(canonical_peer(addr));
    }
}

/// Reads compact IPv4 peers, 6 bytes each (BEP 23); an incomplete last one is left out.
pub fn compact_v4(bytes: &[u8], peers: &mut Vec<SocketAddr>) {
    for chunk in bytes.as_chunks::<6>().0 {
        let [a, b, c, d, p, q] = *chunk;
        keep_peer(peers, SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p, q]))));
    }
}

/// Reads compact IPv6 peers, 18 bytes each (BEP 7); an incomplete last one is left out.
pub fn compact_v6(bytes: &[u8], peers: &mut Vec<SocketAddr>) {
    for chunk in bytes.as_chunks::<18>().0 {
        let Some((ip, port)) = chunk.split_first_chunk::<16>() else { continue };
        let Some(port) = port.first_chunk::<2>() else { continue };
        keep_peer(peers, SocketAddr::from((Ipv6Addr::from(*ip), u16::from_be_bytes(*port))));
    }
}

/// A stranger's words, fit for a terminal and a log: one line, no control characters, not long.
pub fn clean_text(bytes: &[u8]) -> String {
    let shown = bytes.get(..MAX_TEXT * 4).unwrap_or(bytes);
    let text = String::from_utf8_lossy(shown);
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|w| !w.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(MAX_TEXT).collect();
    if cut.len() < line.len() { cut + "…" } else { cut }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn compact_peers_of_any_bytes() {
        let mut peers = Vec::new();
        compact_v4(&[10, 0, 0, 1, 0x1a, 0xe1, 0, 0, 0, 0, 0, 1, 10, 0, 0, 2, 0, 0, 9, 9], &mut peers);
        assert_eq!(
            peers,
            ["10.0.0.1:6881".parse().unwrap()],
            "unspecified, port 0 and the rest are left out"
        );
        let mut six = [0u8; 40];
        six[0] = 0x20;
        six[15] = 1;
        six[17] = 80;
        compact_v6(&six, &mut peers);
        assert_eq!(peers[1..], ["[2000::1]:80".parse().unwrap()]);
        peers.clear();
        compact_v4(&[1; 6 * (MAX_PEERS + 7)], &mut peers);
        assert_eq!(peers.len(), MAX_PEERS);
    }

    #[test]
    fn words_are_made_printable() {
        for (bytes, text) in [
            (&b"unregistered torrent"[..], "unregistered torrent"),
            (b"a\x1b[31mred\r\nline", "a [31mred line"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"", ""),
        ] {
            assert_eq!(clean_text(bytes), text);
        }
        assert_eq!(clean_text(&[b'x'; 100_000]).chars().count(), MAX_TEXT + 1);
    }
}
