//! A torrent as its owner knows it, for a person who looks for what hangs: who waits for which piece, what has come
//! of it, which peers have it, and what is queued where. Pure, and plain values.
//!
//! The owner answers [`super::Command::Describe`] with a [`Description`]; the text is made elsewhere
//! (`run::diagnose`). What is listed is bounded, whatever the swarm: the owner has other things to do. It looks and
//! changes nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::load::{Has, PeerLoad};
use super::picker::PartsView;
use super::status::PeerStatus;
use super::swarm::{Live, Swarm};
use super::table::PieceState;
use super::webseeds::Webseed;
use crate::discovery::PeerSource;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::peer::PeerKey;

/// Waiting reads that are listed, longest first: whoever reads the list wants the oldest.
pub const WAITS_MAX: usize = 64;
/// Pieces that are listed, of the reads that are: each costs a look at every peer.
pub const PIECES_MAX: usize = 64;

/// What a torrent's owner knows.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// What the deciding part knows.
    pub swarm: SwarmView,
    /// What is under way and queued around it.
    pub desk: DeskView,
}

/// What the deciding part of a torrent knows.
#[derive(Debug, Clone, Default)]
pub struct SwarmView {
    /// The connected peers, in the order in which they came.
    pub peers: Vec<PeerView>,
    /// The webseeds, in the same order.
    pub webseeds: Vec<WebseedView>,
    /// Connections being made.
    pub dialing: usize,
    /// Addresses known.
    pub addresses: usize,
    /// When the next of them is tried, if one is to be.
    pub next_dial: Option<Duration>,
    /// Peers that sent bad data.
    pub banned: Vec<SocketAddr>,
    /// Pieces by state: unknown, missing, requested, verifying, complete. `None` without metadata.
    pub states: Option<[u32; 5]>,
    /// How many reads wait.
    pub waiting: usize,
    /// The first [`WAITS_MAX`] of them, longest first.
    pub waits: Vec<WaitView>,
    /// The first [`PIECES_MAX`] pieces that those wait for.
    pub pieces: Vec<PieceView>,
    /// Open handles.
    pub streams: usize,
    /// Pieces that somebody wants.
    pub wanted: usize,
    /// Those of them with blocks that nobody was asked for.
    pub open: usize,
    /// Pieces on disk that are being looked at because somebody wants them.
    pub checks: usize,
    /// Pieces that fail at once for whoever wants them.
    pub failing: usize,
    /// Bytes of memory that its pieces in the making take.
    pub held: u64,
    /// Since when no block has come, if one ever has.
    pub last_block: Option<Duration>,
    /// Why it can't go on, or why nothing can be kept.
    pub error: Option<String>,
    /// Bytes of metadata that are here, and in all, while it is being fetched.
    pub metadata: Option<(u32, u32)>,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Where it is.
    pub addr: SocketAddr,
    /// Whether it connected to us.
    pub incoming: bool,
    /// Pieces that it has; `None` for all.
    pub has: Option<u32>,
    /// It chokes us.
    pub chokes_us: bool,
    /// We told it that we are interested.
    pub interesting: bool,
    /// We choke it.
    pub choked: bool,
    /// It is interested in us.
    pub interested: bool,
    /// Blocks asked of it and not here yet.
    pub in_flight: usize,
    /// Of these, what its session hasn't sent yet.
    pub unsent: usize,
    /// Bytes per second, as last measured.
    pub rate: u64,
    /// Bytes of blocks that it delivered.
    pub delivered: u64,
    /// It owed blocks for long and sent none.
    pub snubbed: bool,
}

/// A webseed.
#[derive(Debug, Clone)]
pub struct WebseedView {
    /// Where it is, as people may see it.
    pub url: String,
    /// What it does and why, in words: its own word for it.
    pub doing: String,
    /// Pieces that it has; `None` for all.
    pub has: Option<u32>,
    /// It backs off.
    pub waits: bool,
    /// Nothing is asked of it any more.
    pub dropped: bool,
    /// Blocks asked of it and not here yet.
    pub in_flight: usize,
    /// Of these, what it hasn't taken in hand yet.
    pub unsent: usize,
    /// Bytes per second, as last measured.
    pub rate: u64,
    /// Bytes of blocks that it delivered.
    pub delivered: u64,
    /// It owed blocks for long and sent none.
    pub snubbed: bool,
}

/// Who may have a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A peer at this address.
    Peer(SocketAddr),
    /// A webseed, by its URL as people may see it.
    Webseed(String),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(addr) => addr.fmt(f),
            Self::Webseed(url) => write!(f, "webseed {url}"),
        }
    }
}

/// A read that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitView {
    /// The file it reads.
    pub file: FileIndex,
    /// From where, in the torrent's linear space.
    pub offset: u64,
    /// The pieces that it still waits for.
    pub pieces: Vec<PieceIndex>,
    /// How long it has waited.
    pub waited: Duration,
}

/// A piece that a read waits for.
#[derive(Debug, Clone)]
pub struct PieceView {
    /// Which.
    pub piece: PieceIndex,
    /// Its state.
    pub state: PieceState,
    /// Its blocks, once any of it was asked for.
    pub parts: Option<PartsView>,
    /// How long ago a block of it came.
    pub last_block: Option<Duration>,
    /// Why it fails at once, if so.
    pub failing: Option<String>,
    /// The webseeds and peers that have it, or were asked for some of it.
    pub holders: Vec<HolderView>,
}

/// A peer or webseed, as far as one piece is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderView {
    /// Who it is.
    pub who: Holder,
    /// It has the piece.
    pub has: bool,
    /// It would send it now, if asked.
    pub serves: bool,
    /// It chokes us; a webseed backs off.
    pub chokes_us: bool,
    /// We told it that we are interested, or needn't.
    pub interesting: bool,
    /// It owed blocks for long and sent none.
    pub snubbed: bool,
    /// Blocks of this piece that it was asked for and that aren't here yet.
    pub asked: usize,
    /// Blocks of all pieces that it was asked for.
    pub in_flight: usize,
}

/// What is under way around the deciding part, and what waits.
#[derive(Debug, Clone, Default)]
pub struct DeskView {
    /// What the workers had no room for.
    pub backlog: usize,
    /// Pieces that are being hashed or written.
    pub writing: usize,
    /// Pieces on disk that are being hashed.
    pub checking: usize,
    /// Files that are being opened anew.
    pub mending: usize,
    /// Answers of the storage workers that weren't taken yet.
    pub answers: usize,
    /// Findings of trackers and the DHT that weren't taken yet.
    pub finds: usize,
    /// Pieces that were fetched and wait for room, and their bytes.
    pub crowd: (usize, u64),
    /// Why there is no room, if there will be none for now.
    pub stuck: Option<String>,
    /// Bytes written since the last record.
    pub dirty: u64,
    /// How old the oldest of them are.
    pub dirty_age: Option<Duration>,
    /// What goes on with the record, in words.
    pub record: String,
    /// How long ago a record couldn't be written, if the last couldn't.
    pub record_failed: Option<Duration>,
}

impl Swarm {
    /// What there is to know. Costs a look at each peer, and at each of the listed pieces for each peer.
    pub fn describe(&self, now: Instant) -> SwarmView {
        let mut view = SwarmView {
            peers: self.peers.keys().filter_map(|key| self.peer_view(*key)).collect(),
            webseeds: self.webseeds.iter().map(|(key, seed)| self.webseed_view(*key, seed)).collect(),
            dialing: self.dialing(),
            addresses: self.book.len(),
            next_dial: self.book.next_wakeup(now),
            banned: self.banned().to_vec(),
            error: self.error().map(str::to_owned),
            metadata: self.metadata_progress(),
            ..SwarmView::default()
        };
        let Some(live) = &self.live else { return view };
        let mut states = [0; 5];
        for piece in (0..live.table.len()).map(PieceIndex) {
            if let Some(count) = states.get_mut(live.table.state(piece) as usize) {
                *count += 1;
            }
        }
        let waits = live.demands.waits();
        view.states = Some(states);
        view.waiting = waits.len();
        let waited = |since| now.saturating_duration_since(since);
        view.waits = waits
            .into_iter()
            .take(WAITS_MAX)
            .map(|w| WaitView { file: w.file, offset: w.offset, pieces: w.pieces, waited: waited(w.since) })
            .collect();
        let mut pieces: Vec<PieceIndex> = Vec::new();
        for piece in view.waits.iter().flat_map(|w| &w.pieces) {
            if pieces.len() >= PIECES_MAX {
                break;
            }
            if !pieces.contains(piece) {
                pieces.push(*piece);
            }
        }
        view.pieces = pieces.into_iter().map(|piece| self.piece_view(live, piece, now)).collect();
        (view.streams, view.checks, view.failing) = live.demands.counts();
        (view.wanted, view.open) = live.picker.counts();
        view.held = live.picker.held();
        view.last_block = live.demands.last_block().map(waited);
        view
    }

    /// The connected peers, in the order in which they came, but for the bytes that were moved with them.
    pub fn connected_peers(&self) -> impl Iterator<Item = (PeerKey, PeerStatus)> + '_ {
        self.peers.iter().map(|(key, peer)| {
            let load = self.live.as_ref().and_then(|live| live.picker.load(*key));
            let source = match peer.who.incoming {
                true => Some(PeerSource::Incoming),
                false => self.book.source(peer.who.addr),
            };
            let peer = PeerStatus {
                addr: peer.who.addr,
                client: peer.extension.as_ref().and_then(|e| e.client.clone()),
                kind: peer.who.kind,
                cover: peer.who.cover,
                source,
                rate_down: load.map_or(0, |load| load.last_rate()),
                rate_up: peer.takes,
                downloaded: 0,
                uploaded: 0,
            };
            (*key, peer)
        })
    }

    fn peer_view(&self, key: PeerKey) -> Option<PeerView> {
        let peer = self.peers.get(&key)?;
        let load = self.live.as_ref().and_then(|live| live.picker.load(key));
        Some(PeerView {
            addr: peer.who.addr,
            incoming: peer.who.incoming,
            has: load.map_or(Some(0), pieces_of),
            chokes_us: load.map_or_else(|| self.resolve.is_choked(key), |load| load.is_choked()),
            interesting: peer.interested,
            choked: peer.choking,
            interested: peer.interested_in_us,
            in_flight: load.map_or(0, |load| load.in_flight().count()),
            unsent: 0,
            rate: load.map_or(0, |load| load.last_rate()),
            delivered: load.map_or(0, |load| load.delivered_total()),
            snubbed: load.is_some_and(|load| load.is_snubbed()),
        })
    }

    fn webseed_view(&self, key: PeerKey, seed: &Webseed) -> WebseedView {
        let load = self.live.as_ref().and_then(|live| live.picker.load(key));
        WebseedView {
            url: seed.url.clone(),
            doing: String::new(),
            has: load.map_or(Some(0), pieces_of),
            waits: load.is_some_and(|load| load.is_choked()),
            dropped: seed.dropped,
            in_flight: load.map_or(0, |load| load.in_flight().count()),
            unsent: 0,
            rate: load.map_or(0, |load| load.last_rate()),
            delivered: load.map_or(0, |load| load.delivered_total()),
            snubbed: load.is_some_and(|load| load.is_snubbed()),
        }
    }

    fn piece_view(&self, live: &Live, piece: PieceIndex, now: Instant) -> PieceView {
        let parts = live.picker.parts_view(piece);
        let asked = |key| {
            let asked = parts.as_ref().map(|p| p.asked.iter().filter(|(peer, _)| *peer == key));
            asked.into_iter().flatten().map(|(_, blocks)| blocks).sum::<usize>()
        };
        let holder = |key: PeerKey, who: Holder, interesting: bool| {
            let load = live.picker.load(key)?;
            let (has, asked) = (load.has().has(piece), asked(key));
            (has || asked > 0).then(|| HolderView {
                who,
                has,
                serves: load.can_serve(piece),
                chokes_us: load.is_choked(),
                interesting,
                snubbed: load.is_snubbed(),
                asked,
                in_flight: load.in_flight().count(),
            })
        };
        let webseeds = self.webseeds.iter();
        let webseeds =
            webseeds.filter_map(|(key, seed)| holder(*key, Holder::Webseed(seed.url.clone()), true));
        let peers = self.peers.iter();
        let peers =
            peers.filter_map(|(key, peer)| holder(*key, Holder::Peer(peer.who.addr), peer.interested));
        PieceView {
            piece,
            state: live.table.state(piece),
            holders: webseeds.chain(peers).collect(),
            last_block: live.picker.last_block(piece).map(|at| now.saturating_duration_since(at)),
            failing: live.demands.failing(piece, now),
            parts,
        }
    }
}

/// How many pieces it has; `None` for all.
fn pieces_of(load: &PeerLoad) -> Option<u32> {
    match load.has() {
        Has::None => Some(0),
        Has::All => None,
        Has::Bits(bits) => Some(bits.iter().map(|byte| byte.count_ones()).sum()),
    }
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
