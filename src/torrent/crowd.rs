//! What of a torrent waits for room to be kept in, and who waits for room that it gives back. The owner's own part of
//! [`super::room`].
//!
//! **Flow.** A piece that was fetched and for which there is no room waits here, with its blocks; they count as
//! memory of pieces in the making, so that no more are begun than that holds: memory stays bounded while nothing can
//! be kept. The room is told how much is needed, and since when the longest waiting reader waits for it. When
//! something changes, all are tried again, first those that readers wait for.
//!
//! **Not here.** Whose pieces go: [`super::room`] and the client's keeper.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::effects::Blocked;
use super::room::{Need, Room, RoomState};
use crate::metainfo::geometry::PieceIndex;
use crate::peer::buffer::PieceBuffer;

/// See the module. Dropping it takes back what was asked for.
pub(super) struct Crowd {
    slot: u32,
    room: Room,
    state: watch::Receiver<RoomState>,
    pieces: Vec<Waiting>,
    /// Since when the read has waited that has waited longest, for whatever piece: of readers that hold what others
    /// need, one must get on.
    oldest: Option<Instant>,
    evictions: Vec<Eviction>,
}

struct Waiting {
    buffer: Arc<PieceBuffer>,
    digests: bool,
    bytes: u64,
    /// Since when a read has waited for it.
    since: Option<Instant>,
}

/// Pieces that were evicted, and who is to hear when their room is there.
struct Eviction {
    /// Those that aren't there yet, with what they take in bytes.
    pieces: HashMap<PieceIndex, u64>,
    /// Bytes of those that are.
    freed: u64,
    done: oneshot::Sender<u64>,
}

impl Crowd {
    /// Nothing of the torrent with this number waits.
    pub(super) fn new(slot: u32, room: &Room) -> Self {
        Self {
            slot,
            state: room.watch(),
            room: room.clone(),
            pieces: Vec::new(),
            oldest: None,
            evictions: Vec::new(),
        }
    }

    /// A piece waits for `bytes` of room; a read has waited for it `since` then, and for whatever piece since `oldest`.
    pub(super) fn wait(
        &mut self,
        buffer: Arc<PieceBuffer>,
        digests: bool,
        bytes: u64,
        since: Option<Instant>,
        oldest: Option<Instant>,
    ) {
        self.oldest = oldest;
        self.pieces.push(Waiting { buffer, digests, bytes, since });
        self.ask();
    }

    fn ask(&self) {
        let bytes = self.pieces.iter().map(|w| w.bytes).sum();
        let largest = self.pieces.iter().map(|w| w.bytes).max().unwrap_or(0);
        self.room.ask(self.slot, Need { bytes, largest, since: self.oldest });
    }

    /// Takes out all that waits, to be tried again: what readers have waited for longest first.
    pub(super) fn take(&mut self) -> Vec<(Arc<PieceBuffer>, bool)> {
        if self.pieces.is_empty() {
            return Vec::new();
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        self.room.withdraw(self.slot);
        pieces.sort_by_key(|w| (w.since.is_none(), w.since));
        pieces.into_iter().map(|w| (w.buffer, w.digests)).collect()
    }

    /// Why there is no room and will be none for now, if so.
    pub(super) fn stuck(&self) -> Option<Blocked> {
        let state = self.state.borrow();
        state.stuck.as_ref().map(|s| Blocked { reason: s.reason.to_string(), disk: s.disk })
    }

    /// Waits until something has changed. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // The program ends: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// These pieces were evicted; `done` is told how many bytes that gave when they are given back.
    pub(super) fn evicted(&mut self, pieces: Vec<(PieceIndex, u64)>, done: oneshot::Sender<u64>) {
        let pieces: HashMap<PieceIndex, u64> = pieces.into_iter().collect();
        if pieces.is_empty() {
            // Whoever asked has gone: so be it.
            let _ = done.send(0);
        } else {
            self.evictions.push(Eviction { pieces, freed: 0, done });
        }
    }

    /// What these pieces took was given back.
    pub(super) fn discarded(&mut self, pieces: &[PieceIndex]) {
        for eviction in &mut self.evictions {
            eviction.freed += pieces.iter().filter_map(|p| eviction.pieces.remove(p)).sum::<u64>();
        }
        self.answer();
    }

    /// What these pieces take can't be given back.
    pub(super) fn given_up(&mut self, pieces: &[PieceIndex]) {
        for eviction in &mut self.evictions {
            pieces.iter().for_each(|p| _ = eviction.pieces.remove(p));
        }
        self.answer();
    }

    fn answer(&mut self) {
        for over in self.evictions.extract_if(.., |e| e.pieces.is_empty()) {
            let _ = over.done.send(over.freed);
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.room.withdraw(self.slot);
    }
}
