//! What a running mount tells of itself. Plain values; `docs/CONTROL.md` and `status --json` show them as they are.
//!
//! Sizes are bytes, rates bytes a second, times seconds. What may be missing in an older version has a default.

use serde::{Deserialize, Serialize};

/// A running mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Its process id, as it sees itself.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The socket that this came over.
    pub socket: String,
    /// Seconds since it was mounted.
    pub uptime: u64,
    /// The port where peers reach it.
    pub port: u16,
    /// Whether connections to peers are encrypted: `prefer`, `require` or `off`.
    pub encryption: String,
    /// Whether peers are reached over uTP, too.
    pub utp: bool,
    /// What is kept.
    pub cache: Cache,
    /// Payload bytes a second received, all torrents together.
    pub rate_down: u64,
    /// Payload bytes a second sent.
    pub rate_up: u64,
    /// Payload bytes received since it was mounted.
    pub downloaded: u64,
    /// Payload bytes sent since then.
    pub uploaded: u64,
    /// Its torrents, in the order in which they were added.
    pub torrents: Vec<Torrent>,
}

/// What is kept, and how much may be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// The folder.
    pub dir: String,
    /// Bytes of data kept, of all torrents that are in the cache.
    pub kept: u64,
    /// Bytes that may be kept (`--cache-size`); `None` for no bound.
    pub bound: Option<u64>,
    /// Bytes free on its disk; `None` when that couldn't be told in time.
    pub free: Option<u64>,
}

/// A torrent in a mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Torrent {
    /// Its name as shown in the mount.
    pub name: String,
    /// Its info-hash in hex: v1, or v2 where there is no v1.
    pub infohash: String,
    /// The word for what it does, as in the attribute `user.torrentfs.state`.
    pub state: String,
    /// Bytes here, verified.
    pub here: u64,
    /// Bytes in all; 0 while the metadata isn't known.
    pub size: u64,
    /// Bytes of metadata here and in all, while it is being fetched and once a peer said how many.
    pub metadata: Option<Metadata>,
    /// Payload bytes a second received.
    pub rate_down: u64,
    /// Payload bytes a second sent.
    pub rate_up: u64,
    /// Payload bytes received since it was added.
    pub downloaded: u64,
    /// Payload bytes sent since then.
    pub uploaded: u64,
    /// Connected peers.
    pub peers: u64,
    /// How many of them are connected with encryption, of the handshake at least.
    pub encrypted: u64,
    /// How many of them are connected over uTP.
    pub utp: u64,
    /// Peers that are being dialled.
    pub connecting: u64,
    /// Peers that are kept out since they sent bad data.
    pub banned: u64,
    /// Its trackers.
    pub trackers: Vec<Tracker>,
    /// Its webseeds, also those that aren't asked any more.
    pub webseeds: Vec<Webseed>,
    /// Reads that wait, longest first; the first few of them.
    pub waiting: Vec<Waiting>,
    /// How many reads wait in all.
    pub waiting_count: u64,
    /// Why it can't go on.
    pub error: Option<String>,
}

/// Metadata that is being fetched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Bytes here.
    pub here: u64,
    /// Bytes in all.
    pub size: u64,
}

/// A tracker of a torrent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tracker {
    /// Its URL up to the port: what follows may be a secret of the user.
    pub url: String,
    /// `idle`, `announcing`, `working`, `failed` or `disabled`.
    pub state: String,
    /// Why the last announce failed, or why there is none.
    pub reason: Option<String>,
}

/// A webseed of a torrent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Webseed {
    /// Its URL, without a user's name and password.
    pub url: String,
    /// `idle`, `fetching`, `waiting` or `dropped`.
    pub state: String,
    /// When waiting: for how many seconds it isn't asked.
    pub seconds: Option<u64>,
    /// What was wrong last, if nothing went well since; for one that was dropped, why.
    pub reason: Option<String>,
    /// How many files it won't serve, or isn't believed about.
    pub refused_files: u64,
    /// Requests made of it.
    pub requests: u64,
    /// Payload bytes received from it.
    pub downloaded: u64,
}

/// A read that waits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// The file, by its path within the torrent.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// For how many seconds.
    pub seconds: u64,
}
