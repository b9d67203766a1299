//! The state of a torrent as a person or a program sees it. Published by the owner; a plain value.

use std::net::SocketAddr;
use std::time::Instant;

use crate::discovery::PeerSource;
use crate::metainfo::geometry::FileIndex;
use crate::net::transport::Kind;
use crate::peer::mse::Cover;
use crate::webseed::{SeedState, SeedStatus};

/// What a torrent is doing (the values of the xattr `user.torrentfs.state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Its metadata isn't here yet.
    #[default]
    Resolving,
    /// Data on disk is being hashed.
    Checking,
    /// Incomplete, and nobody wants more.
    Idle,
    /// Blocks are being fetched.
    Downloading,
    /// Someone waits and no block came for ten seconds.
    Stalled,
    /// Everything is here.
    Complete,
    /// It can't go on; see the reason.
    Error,
}

/// What a torrent's state follows from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// It can't go on.
    pub failed: bool,
    /// Its metadata and its storage are here.
    pub live: bool,
    /// Every piece of it is.
    pub complete: bool,
    /// Data on disk is being hashed.
    pub checking: bool,
    /// Somebody waits, and no block came for a while.
    pub stalled: bool,
    /// Blocks are on their way, or asked for.
    pub fetching: bool,
}

impl State {
    /// What is shown of all that holds at once: what a person has to know first.
    pub fn of(facts: Facts) -> Self {
        match facts {
            Facts { failed: true, .. } => Self::Error,
            Facts { live: false, .. } => Self::Resolving,
            Facts { complete: true, .. } => Self::Complete,
            Facts { checking: true, .. } => Self::Checking,
            Facts { stalled: true, .. } => Self::Stalled,
            Facts { fetching: true, .. } => Self::Downloading,
            _ => Self::Idle,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Checking => "checking",
            Self::Idle => "idle",
            Self::Downloading => "downloading",
            Self::Stalled => "stalled",
            Self::Complete => "complete",
            Self::Error => "error",
        }
    }
}

/// What a webseed does, in a word.
pub fn seed_word(state: SeedState) -> &'static str {
    match state {
        SeedState::Idle => "idle",
        SeedState::Fetching => "fetching",
        SeedState::Waiting { .. } => "waiting",
        SeedState::Dropped => "dropped",
    }
}

/// What a webseed does, and why, in words: `waiting 12 s: the server answered 503`.
pub fn seed_words(seed: &SeedStatus) -> String {
    let mut words = seed_word(seed.state).to_owned();
    if let SeedState::Waiting { seconds } = seed.state {
        words += &format!(" {seconds} s");
    }
    match seed.refused_files {
        0 => {}
        1 => words += ", without one file",
        files => words += &format!(", without {files} files"),
    }
    if let Some(reason) = &seed.reason {
        words += ": ";
        words += reason;
    }
    words
}

/// A read that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The file.
    pub file: FileIndex,
    /// Where in the torrent's linear space, in bytes.
    pub offset: u64,
    /// Since when.
    pub since: Instant,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The other end.
    pub addr: SocketAddr,
    /// What it says it is, if it says so: made harmless, and short.
    pub client: Option<String>,
    /// What the connection runs over.
    pub kind: Kind,
    /// How much of it is hidden.
    pub cover: Cover,
    /// Where its address came from, as far as that is still known; [`PeerSource::Incoming`] for who connected to us.
    pub source: Option<PeerSource>,
    /// Payload bytes per second received, as last measured.
    pub rate_down: u64,
    /// Payload bytes per second sent, over the choker's last round.
    pub rate_up: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Payload bytes sent.
    pub uploaded: u64,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// What it does.
    pub state: State,
    /// Bytes of complete pieces.
    pub have: u64,
    /// Bytes in all; 0 while resolving.
    pub size: u64,
    /// Bytes of metadata here, and in all, while resolving and once a peer said how many.
    pub metadata: Option<(u32, u32)>,
    /// Payload bytes per second received.
    pub rate_down: u64,
    /// Payload bytes per second sent.
    pub rate_up: u64,
    /// Payload bytes received since the start.
    pub downloaded: u64,
    /// Payload bytes sent since the start.
    pub uploaded: u64,
    /// Connected peers.
    pub peers: usize,
    /// How many of them are connected with encryption, of the handshake at least.
    pub encrypted: usize,
    /// How many of them are connected over uTP.
    pub utp: usize,
    /// The first [`Status::CONNECTED_MAX`] of the connected, in the order in which they came.
    pub connected: Vec<PeerStatus>,
    /// Connections being made.
    pub connecting: usize,
    /// Why nothing is sent any more, when enough was given back.
    pub seeded: Option<String>,
    /// Peers that sent bad data.
    pub banned: Vec<SocketAddr>,
    /// Reads that wait, longest first; at most [`Status::WAITING_MAX`] of them.
    pub waiting: Vec<Waiting>,
    /// How many reads wait in all.
    pub waiting_count: usize,
    /// Why it can't go on, or why the last read failed that was given up, until something comes.
    pub error: Option<String>,
}

impl Status {
    /// Waiting reads named in a status: thousands may wait.
    pub const WAITING_MAX: usize = 16;
    /// Peers named in a status: more than a person looks at, and it is made four times a second.
    pub const CONNECTED_MAX: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_what_a_person_has_to_know_first() {
        let none = Facts::default();
        let live = Facts { live: true, ..none };
        let busy = Facts { fetching: true, ..live };
        for (facts, word) in [
            (none, "resolving"),
            (Facts { failed: true, ..none }, "error"),
            // Metadata is fetched, too.
            (Facts { fetching: true, ..none }, "resolving"),
            (live, "idle"),
            (busy, "downloading"),
            (Facts { stalled: true, ..live }, "stalled"),
            (Facts { stalled: true, ..busy }, "stalled"),
            (Facts { checking: true, ..live }, "checking"),
            (Facts { checking: true, stalled: true, ..busy }, "checking"),
            (Facts { complete: true, ..live }, "complete"),
            (Facts { complete: true, checking: true, ..busy }, "complete"),
            (Facts { failed: true, complete: true, checking: true, stalled: true, ..busy }, "error"),
        ] {
            assert_eq!(State::of(facts).as_str(), word, "{facts:?}");
        }
    }

    #[test]
    fn what_a_webseed_does_in_words() {
        let seed = |state, reason: Option<&str>, refused_files| SeedStatus {
            url: "http://a/".into(),
            state,
            reason: reason.map(str::to_owned),
            refused_files,
            requests: 1,
            bytes: 2,
        };
        for (seed, words) in [
            (seed(SeedState::Idle, None, 0), "idle"),
            (seed(SeedState::Fetching, Some("it was slow"), 1), "fetching, without one file: it was slow"),
            (seed(SeedState::Waiting { seconds: 12 }, Some("503"), 3), "waiting 12 s, without 3 files: 503"),
            (seed(SeedState::Dropped, Some("bad data"), 0), "dropped: bad data"),
        ] {
            assert_eq!(seed_words(&seed), words);
        }
    }
}
