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
    /// How the network is.
    pub network: Network,
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

/// How the network is, and how a mount takes part in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// The port at which the internet reaches it: another than its own where a router maps another.
    pub port_outside: u16,
    /// Its node in the DHT; `None` without one.
    pub dht: Option<Dht>,
    /// Whether peers are looked for in the local network.
    pub lsd: bool,
    /// Ports that routers let peers through to.
    pub mapped: Vec<Mapped>,
    /// Why none is mapped, or why that is of no use.
    pub unmapped: Option<String>,
    /// The proxy that all goes through, without its user.
    pub proxy: Option<String>,
    /// What is wrong with that.
    pub proxy_trouble: Option<String>,
    /// Parts that don't run.
    pub off: Vec<Off>,
}

/// A node in the DHT.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dht {
    /// `starting`, `running` or `failed`.
    pub state: String,
    /// Nodes that it knows and that answer, by IPv4.
    pub nodes: u64,
    /// The same by IPv6.
    pub nodes6: u64,
    /// Whether it only asks: nobody has been seen to reach it.
    pub read_only: bool,
    /// Why it failed.
    pub reason: Option<String>,
}

/// A port that a router lets peers through to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mapped {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// By which protocol the router was asked: `PCP`, `NAT-PMP` or `UPnP`.
    pub by: String,
    /// The port of this machine.
    pub internal: u16,
    /// That of the router.
    pub external: u16,
    /// The router's address, as it says.
    pub address: Option<String>,
}

/// A part of the network that doesn't run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Off {
    /// Which.
    pub part: String,
    /// The option that says so.
    pub why: String,
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
    /// Why nothing is sent any more, when enough was given back.
    pub seeded: Option<String>,
    /// The first 64 of the connected, in the order in which they came.
    pub connected: Vec<Peer>,
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

/// A connected peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// `ADDRESS:PORT` of its end.
    pub address: String,
    /// What it says it is, if it says so.
    pub client: Option<String>,
    /// `tcp` or `utp`.
    pub transport: String,
    /// How much is hidden from who looks at the line: `plain` for nothing, `handshake`, or `rc4` for everything.
    pub encryption: String,
    /// Where its address came from: `tracker`, `dht`, `pex`, `lsd`, `named` (by the user), or `incoming` when it
    /// connected to us.
    pub source: Option<String>,
    /// Payload bytes a second received.
    pub rate_down: u64,
    /// Payload bytes a second sent.
    pub rate_up: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Payload bytes sent.
    pub uploaded: u64,
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
