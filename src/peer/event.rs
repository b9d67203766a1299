//! What a session tells the owner of its torrent, and what it shares with it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::PeerKey;
use super::buffer::PieceBuffer;
use super::mse::Cover;
use super::outbox::Outbox;
use super::wire::BlockRequest;
use crate::metainfo::geometry::{BlockRef, FileIndex, Geometry, PieceIndex};
use crate::net::transport::Kind;

/// Something a peer said, checked against the geometry where that is known.
#[derive(Debug, Clone)]
pub enum Item {
    /// A block that we asked for came, and lies in this buffer unless another peer was faster.
    Block {
        /// The block.
        block: BlockRef,
        /// The buffer it was requested for.
        buffer: Arc<PieceBuffer>,
    },
    /// It has one piece more.
    Have(PieceIndex),
    /// What it has.
    Bitfield(Bytes),
    /// It has everything.
    HaveAll,
    /// It has nothing.
    HaveNone,
    /// It chokes us, or no longer.
    Choked(bool),
    /// It is interested in us, or no longer.
    Interested(bool),
    /// It won't send this block.
    Rejected(BlockRef),
    /// A block that we took back won't come: the peer has taken notice, or was never asked.
    Recalled(BlockRef),
    /// It serves this piece although it chokes us.
    AllowedFast(PieceIndex),
    /// An extension message, by our own number for it.
    Extended(u8, Bytes),
}

/// A connection that has passed the handshake.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The other end.
    pub addr: SocketAddr,
    /// Whether it connected to us.
    pub incoming: bool,
    /// The peer id it gave.
    pub peer_id: [u8; 20],
    /// It speaks the fast extension (BEP 6).
    pub fast: bool,
    /// It speaks the extension protocol (BEP 10).
    pub extensions: bool,
    /// How much of the connection is hidden from who looks at the line.
    pub cover: Cover,
    /// What it runs over.
    pub kind: Kind,
}

/// What happens to a peer.
pub enum PeerEvent {
    /// It is there; the owner answers through the outbox.
    Connected {
        /// Its key.
        key: PeerKey,
        /// Who it is.
        peer: Connected,
        /// The address of ours that the connection is bound to, if that is known.
        local: Option<IpAddr>,
        /// Where to say what it should be told.
        outbox: Arc<Outbox>,
        /// Its counters.
        counters: Arc<Counters>,
    },
    /// It said something.
    Said {
        /// Its key.
        key: PeerKey,
        /// What, in order; one batch per socket read.
        items: Vec<Item>,
    },
    /// Its session is over. Sent once for each that was connected, whatever ended it.
    Gone {
        /// Its key.
        key: PeerKey,
        /// Why.
        reason: String,
    },
    /// A webseed takes part: an HTTP server that has everything, asked through the outbox like any peer. What
    /// comes of it is told by `Said`, its end by `Gone`.
    Webseed {
        /// Its key.
        key: PeerKey,
        /// Where to say what is wanted of it.
        outbox: Arc<Outbox>,
        /// Its counters.
        counters: Arc<Counters>,
    },
    /// A webseed won't serve these files, for as long as it takes part.
    Refuses {
        /// Its key.
        key: PeerKey,
        /// The files.
        files: Vec<FileIndex>,
    },
    /// It could not be reached.
    Unreachable {
        /// Who.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Bytes moved with one peer.
#[derive(Debug, Default)]
pub struct Counters {
    /// Payload bytes received that were asked for.
    pub down: AtomicU64,
    /// Payload bytes sent.
    pub up: AtomicU64,
    /// Payload bytes received that nobody waited for any more.
    pub wasted: AtomicU64,
}

/// What is known of a torrent once its metadata is here.
pub struct Known {
    /// Its geometry.
    pub geometry: Arc<Geometry>,
    /// Who gives the blocks that peers ask for.
    pub source: Arc<dyn BlockSource>,
}

/// Set once, when the metadata has come; sessions that began before see it.
pub type KnownCell = Arc<OnceLock<Known>>;

/// Gives blocks to serve.
pub trait BlockSource: Send + Sync {
    /// Reads a block that passed the geometry's check and sends it through `to`, or `None` if it isn't here.
    /// Returns at once; `to` has room reserved for the answer by the caller. False if it can't be taken now.
    fn fetch(&self, request: BlockRequest, to: mpsc::Sender<(BlockRequest, Option<Bytes>)>) -> bool;
}
