//! Finding peers: who may have a torrent's data, before anyone was spoken to.
//!
//! Parts: [`tracker`] announces to HTTP and UDP trackers; [`dht`] is a node of our own in the mainline DHT, behind
//! the [`PeerDiscovery`] trait; [`lsd`], behind the same, listens and speaks to the local network.
//! Flow: every source sends [`FoundPeers`] into one bounded channel of the torrent's owner. When it is full the
//! source waits (a torrent that can't take more addresses needs none), and stays cancellable while it does.
//!
//! Not here: dialling, remembering and banning peers (the torrent's owner), PEX (a message between peers), and
//! the rule that a private torrent uses trackers only (BEP 27): the caller doesn't start the others.

pub mod dht;
pub mod lsd;
pub mod tracker;

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::sync::tasks::TaskScope;

/// Addresses at which a torrent's peers may listen, and who named them. Never empty when sent, and each is
/// [usable](usable_peer); the same address may come again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPeers {
    /// Who named them.
    pub source: PeerSource,
    /// Where they listen; of those that the user named, the addresses of one host.
    pub addrs: Vec<SocketAddr>,
}

/// Where an address came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerSource {
    /// A tracker's answer (BEP 3, 15).
    Tracker,
    /// The DHT (BEP 5).
    Dht,
    /// Another peer (BEP 11).
    Pex,
    /// A multicast on the local network (BEP 14).
    Lsd,
    /// `x.pe` of a magnet link (BEP 9).
    Magnet,
    /// `--peer`.
    CommandLine,
    /// It connected to us.
    Incoming,
}

impl PeerSource {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Dht => "dht",
            Self::Pex => "pex",
            Self::Lsd => "lsd",
            Self::Magnet | Self::CommandLine => "named",
            Self::Incoming => "incoming",
        }
    }
}

/// What we tell trackers, the DHT and the local network about ourselves; the same for the life of a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    /// The info-hash; of a v2-only torrent, its first 20 bytes (BEP 52).
    pub info_hash: [u8; 20],
    /// Our peer id (BEP 20).
    pub peer_id: [u8; 20],
    /// The TCP port where peers reach us, in this machine; trackers and the DHT are told the one that the router shows.
    pub port: u16,
    /// Random, the same in all announces: by it a tracker knows us when our address changes (BEP 7).
    pub key: u32,
    /// Whether peers may come encrypted.
    pub crypto: Crypto,
}

/// What HTTP trackers are told of encrypted connections, so that they name peers that suit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Crypto {
    /// There are none.
    #[default]
    None,
    /// They are taken.
    Supported,
    /// No others are.
    Required,
}

/// What was transferred in this session, in bytes, as trackers count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sent to peers.
    pub uploaded: u64,
    /// Received from peers.
    pub downloaded: u64,
    /// Still missing. Before the metadata is here, anything but 0, which would make us a seeder.
    pub left: u64,
}

/// Asks for the progress as it is now. Called on a runtime worker: it must not wait.
pub type ProgressFn = Arc<dyn Fn() -> Progress + Send + Sync>;

/// A network that can be searched for peers of an info-hash, and where we can be found.
pub trait PeerDiscovery: Send + Sync {
    /// What its finds are marked with.
    fn source(&self) -> PeerSource;

    /// Searches for peers and announces us (unless `announce.port` is 0), again and again, in a task of
    /// `scope`, until the scope is cancelled, the returned handle is dropped, or `found` is closed. Returns at
    /// once. Not for private torrents (BEP 27).
    fn follow(&self, scope: &TaskScope, announce: Announce, found: mpsc::Sender<FoundPeers>) -> Following;
}

/// One info-hash that is being followed; dropping it ends that.
#[derive(Debug)]
pub struct Following {
    wanted: watch::Sender<bool>,
}

impl Following {
    /// A handle, and what its task watches: whether peers are wanted now. A closed channel means the end.
    pub fn new() -> (Self, watch::Receiver<bool>) {
        let (wanted, watched) = watch::channel(false);
        (Self { wanted }, watched)
    }

    /// Says whether more peers are wanted now: then searches come sooner. Cheap, doesn't wait.
    pub fn want_peers(&self, wanted: bool) {
        self.wanted.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }
}

/// Whether an address that a stranger named can be dialled at all: a port, and an address of one host. Private
/// and loopback addresses pass: peers on one network name them rightly.
pub fn usable_peer(addr: SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// The address as peers are known by: IPv4 within IPv6 becomes IPv4, so that one peer isn't two. A link-local one keeps
/// the interface that it is on: without that nobody could dial it.
pub fn canonical_peer(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()))
        }
        _ => SocketAddr::new(addr.ip().to_canonical(), addr.port()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn only_addresses_of_one_host_pass() {
        for (addr, usable) in [
            ("10.0.0.1:6881", true),
            ("127.0.0.1:1", true),
            ("[::1]:6881", true),
            ("[2001:db8::1]:6881", true),
            ("10.0.0.1:0", false),
            ("0.0.0.0:6881", false),
            ("[::]:6881", false),
            ("[::ffff:0.0.0.0]:6881", false),
            ("224.0.0.1:6881", false),
            ("[ff02::1]:6881", false),
            ("255.255.255.255:6881", false),
        ] {
            assert_eq!(usable_peer(addr.parse().unwrap()), usable, "{addr}");
        }
        let mapped = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(canonical_peer(mapped), "10.0.0.1:5".parse().unwrap());
        let of = |ip: &str, scope| SocketAddr::V6(SocketAddrV6::new(ip.parse().unwrap(), 5, 7, scope));
        assert_eq!(canonical_peer(of("fe80::1", 3)), "[fe80::1%3]:5".parse().unwrap());
        assert_eq!(canonical_peer(of("2001:db8::1", 3)), "[2001:db8::1]:5".parse().unwrap());
    }
}
