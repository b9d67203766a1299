//! What the torrent's state decides and the owner carries out, after `apply` has returned.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::inbox::Demand;
use super::peers::Hints;
use super::picker::Assignment;
use super::reads::ReadError;
use crate::discovery::FoundPeers;
use crate::metainfo::geometry::{BlockRef, FileIndex, PieceIndex};
use crate::metainfo::info::Info;
use crate::net::connections::Dialing;
use crate::peer::PeerKey;
use crate::peer::buffer::PieceBuffer;
use crate::peer::event::{Connected, Item};
use crate::peer::wire::Message;
use crate::torrent::blame::Digest;
use crate::torrent::table::PieceTable;

/// Everything that can happen to a torrent. Closed: what isn't here can't change it.
pub enum Event {
    /// The metadata is known.
    Metadata {
        /// What it says.
        info: Arc<Info>,
        /// The states of its pieces.
        table: Arc<PieceTable>,
    },
    /// A peer is connected.
    Connected {
        /// Its key.
        key: PeerKey,
        /// Who it is.
        peer: Connected,
    },
    /// A peer or webseed said something.
    Said {
        /// Its key.
        key: PeerKey,
        /// What, in order.
        items: Vec<Item>,
    },
    /// A peer or webseed is gone.
    Gone {
        /// Its key.
        key: PeerKey,
        /// Why.
        reason: String,
    },
    /// A webseed takes part.
    Webseed {
        /// Its key: one as peers have.
        key: PeerKey,
        /// What it is called, for people.
        url: String,
    },
    /// A webseed won't serve these files.
    Refuses {
        /// Its key.
        key: PeerKey,
        /// The files.
        files: Vec<FileIndex>,
    },
    /// Payload bytes that peers were sent so far, each: told before a round of the choker ([`super::swarm::Swarm::round_is_due`]).
    Sent(Vec<(PeerKey, u64)>),
    /// A peer could not be reached.
    Unreachable {
        /// Who.
        addr: SocketAddr,
    },
    /// Addresses of peers were found.
    Found(FoundPeers),
    /// These are our own addresses, as others see them.
    Ours(Vec<IpAddr>),
    /// Our addresses have changed.
    Moved {
        /// Peers that were connected from one that is gone.
        lost: Vec<PeerKey>,
    },
    /// Readers want something, or no longer: all that came in since they were last looked at.
    Demands(Vec<Demand>),
    /// Files are to be fetched whole in the background, or no longer.
    Prefetch {
        /// The files; [`super::swarm::EVERYTHING`] alone stands for all.
        files: Vec<FileIndex>,
        /// Whether they are.
        on: bool,
    },
    /// A received piece was hashed.
    Verified {
        /// The piece.
        piece: PieceIndex,
        /// What came of it.
        verdict: Verdict,
        /// The digests of its blocks: always when it failed, when asked for otherwise.
        digests: Vec<Digest>,
    },
    /// Room is needed: pieces that nobody holds are to go.
    Evict {
        /// The pieces.
        pieces: Vec<PieceIndex>,
        /// Also those that waiting reads will need, of reads that have waited less long than since then.
        younger_than: Option<Instant>,
    },
    /// A sync failed: what was written of these pieces is lost, or can't be believed.
    Lost(Vec<PieceIndex>),
    /// A sync was good.
    Synced,
    /// There is no room for more data, or there is again.
    Blocked(Option<Blocked>),
    /// Enough was given back, or not any more.
    Serve(bool),
    /// A piece on disk was to be hashed.
    Checked {
        /// The piece.
        piece: PieceIndex,
        /// What came of it.
        looked: Looked,
    },
    /// Time has passed.
    Tick,
}

/// What came of looking at a piece on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// Nobody knew whether it is here: whether it is, and right.
    Unsure(bool),
    /// It counted as complete, and was held as such: whether it is right.
    Recorded(bool),
    /// It had gone before its turn came, or the end came: that says nothing.
    Nothing,
}

/// What came of hashing and writing a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is right, and written.
    Good,
    /// Its hash is wrong.
    Bad,
    /// It is right, and could not be written.
    Unwritten(ReadError),
    /// It is right, and could not be written since somebody was at the file, which is opened anew.
    Harmed,
}

/// Why nothing can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// For the user.
    pub reason: String,
    /// Whether it is the disk that is full.
    pub disk: bool,
}

/// A peer to connect to.
#[derive(Debug)]
pub struct Dial {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What is known of how it is reached.
    pub hints: Hints,
    /// Stands for it where connections are counted.
    pub token: Dialing,
}

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Ask peers for blocks.
    Request(Vec<Assignment>),
    /// Take a request back.
    Cancel(PeerKey, BlockRef),
    /// A peer may ask for these pieces although we choke it (BEP 6).
    AllowFast(PeerKey, Vec<PieceIndex>),
    /// A choked peer may ask for nothing any more, whatever it was told.
    AllowNothing(PeerKey),
    /// A read waits now for what a webseed was asked for before.
    Hurry(PeerKey, BlockRef),
    /// Tell a peer whether we are interested.
    Interested(PeerKey, bool),
    /// Choke or unchoke a peer.
    Choke(PeerKey, bool),
    /// The first message to a peer.
    First(PeerKey, Message),
    /// An extension message, by the peer's number for it.
    Extended(PeerKey, u8, Bytes),
    /// Tell these peers that we have these pieces.
    Have(Vec<PeerKey>, Vec<PieceIndex>),
    /// A file isn't asked of a webseed any more: what it sent of it was bad.
    Distrust(PeerKey, FileIndex),
    /// Close a connection, or end a webseed.
    Disconnect(PeerKey, String),
    /// Connect to a peer.
    Dial(Dial),
    /// A peer sees us at this address.
    Seen {
        /// The address.
        ip: IpAddr,
        /// That of the peer.
        by: IpAddr,
    },
    /// Hash and write a piece.
    Verify {
        /// Its blocks.
        buffer: Arc<PieceBuffer>,
        /// Whether to return the digests of its blocks when it is right.
        digests: bool,
    },
    /// Hash a piece that may be on disk, and that somebody wants.
    Check(PieceIndex),
    /// Hash a piece that may be on disk, when nothing else is to be done.
    Sweep {
        /// The piece.
        piece: PieceIndex,
        /// Whether it counts as complete meanwhile, and may go.
        recorded: bool,
    },
    /// Files of which nothing is certain, and no piece complete any more: they are to be taken as they are now.
    Mend(Vec<FileIndex>),
    /// Pieces that no record is to call complete, until they are complete again.
    Doubt(Vec<PieceIndex>),
    /// Pieces that aren't here any more: what they take is to be given back, once no record names them.
    Discard(Vec<PieceIndex>),
    /// Tell these peers, by their numbers for it, that we don't have a piece any more (BEP 54).
    DontHave(Vec<(PeerKey, u8)>, PieceIndex),
    /// A piece is complete: wake who waits for it.
    Wake(PieceIndex),
    /// End a waiting read with an error.
    Fail(u64, ReadError),
    /// The exact bytes of the info dictionary have come from peers and their hash is right.
    GotMetadata(Vec<u8>),
    /// Everything is here, and wasn't when we began.
    Finished,
}
