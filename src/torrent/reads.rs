//! Reads of a torrent's bytes: at once from what is here, or later when the pieces have come.
//!
//! A read that must wait follows three steps in this order: the waiter is registered with the
//! [`Notifier`], *then* completion is checked again, *then* the owner is told what is wanted. A piece that
//! completes in between is seen by the check or wakes the waiter; none is missed. No thread waits: when the
//! last piece has come, a storage worker reads and answers.
//! Dropping a [`ReadTicket`] withdraws the demand.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::inbox::{Demand, Inbox};
use super::table::PieceTable;
use super::window::Window;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::info::Info;
use crate::storage::pool::{Class, Workers};
use crate::storage::{StorageError, Store};

/// Why a read gave no bytes.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    /// No block of a piece it waits for came within the read time-out.
    #[error("no data came within the read time-out: {0}")]
    TimedOut(String),
    /// The disk failed, or the torrent is in an error state.
    #[error("{0}")]
    Io(String),
    /// The disk is full.
    #[error("the disk that holds the cache is full")]
    Full,
    /// The torrent is closing.
    #[error("the torrent is closing")]
    Closed,
}

impl From<StorageError> for ReadError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::Full,
            StorageError::Closed => Self::Closed,
            other => Self::Io(other.to_string()),
        }
    }
}

/// Called once with all bytes, or the reason there are none, on a storage worker or the owner's task.
pub type Done = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// Everything of a torrent with known metadata that is shared for reading.
pub struct Shared {
    /// The metadata.
    pub info: Arc<Info>,
    /// The state of each piece.
    pub table: Arc<PieceTable>,
    /// The data.
    pub store: Arc<dyn Store>,
    /// Who does blocking work.
    pub workers: Arc<Workers>,
    /// Who waits for which piece.
    pub notifier: Notifier,
    /// The way to the owner.
    pub inbox: Arc<Inbox>,
    next: AtomicU64,
}

impl Shared {
    /// Nobody reads yet.
    pub fn new(
        info: Arc<Info>,
        table: Arc<PieceTable>,
        store: Arc<dyn Store>,
        workers: Arc<Workers>,
        inbox: Arc<Inbox>,
    ) -> Self {
        Self { info, table, store, workers, notifier: Notifier::new(), inbox, next: AtomicU64::new(1) }
    }

    /// Bytes of a file that are here, verified. Costs a look at each of its pieces.
    pub fn bytes_here(&self, file: FileIndex) -> u64 {
        let geometry = &self.info.geometry;
        let Some(extent) = geometry.files().get(file.0 as usize) else { return 0 };
        if self.table.complete_count() == self.table.len() {
            return extent.len;
        }
        let end = extent.offset + extent.len;
        geometry
            .file_pieces(file)
            .map(PieceIndex)
            .filter(|p| self.table.is_complete(*p))
            .map(|p| {
                let from = geometry.piece_offset(p).max(extent.offset);
                let to = (geometry.piece_offset(p) + u64::from(geometry.piece_len(p))).min(end);
                to.saturating_sub(from)
            })
            .sum()
    }

    /// Reads what is complete, with a storage worker.
    fn read_now(self: &Arc<Self>, offset: u64, len: usize, done: Done) {
        let shared = self.clone();
        let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
            let buf = scratch.buffer(len);
            match shared.store.read_at(offset, buf) {
                Ok(()) => done(Ok(buf)),
                Err(error) => {
                    tracing::warn!(torrent = %shared.info.name, "reading failed: {error}");
                    done(Err(error.into()));
                }
            }
        });
        if self.workers.submit(Class::Read, job).is_err() {
            // The job, and with it `done`, is dropped: the reader gets EIO. Only at shutdown, or beyond as
            // many waiting reads as the kernel can have.
            tracing::debug!("a read was refused: the storage workers are closed or full");
        }
    }
}

/// A read that waits for pieces.
pub struct Waiter {
    /// Its number.
    pub id: u64,
    /// Which file it reads.
    pub file: FileIndex,
    /// From where in the torrent's linear space.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    /// Since when it waits.
    pub since: Instant,
    /// Registrations with pieces that have not come yet.
    left: AtomicU32,
    done: RankedMutex<Option<Done>>,
}

/// Who waits for which piece.
pub struct Notifier {
    by_piece: RankedMutex<HashMap<PieceIndex, Vec<Arc<Waiter>>>>,
}

impl Notifier {
    fn new() -> Self {
        Self { by_piece: RankedMutex::new(Rank::Leaf, "piece notifier", HashMap::new()) }
    }

    fn register(&self, pieces: &[PieceIndex], waiter: &Arc<Waiter>) {
        let mut map = self.by_piece.lock();
        for piece in pieces {
            map.entry(*piece).or_default().push(waiter.clone());
        }
    }

    /// Takes a waiter off a piece; true if it was there. Who takes it counts it down.
    fn take_one(&self, piece: PieceIndex, id: u64) -> bool {
        let mut map = self.by_piece.lock();
        let Some(list) = map.get_mut(&piece) else { return false };
        let before = list.len();
        list.retain(|w| w.id != id);
        let taken = list.len() < before;
        if list.is_empty() {
            map.remove(&piece);
        }
        taken
    }

    fn take_all(&self, piece: PieceIndex) -> Vec<Arc<Waiter>> {
        self.by_piece.lock().remove(&piece).unwrap_or_default()
    }

    /// All waiters, each once: for diagnostics and for the end.
    pub fn waiters(&self) -> Vec<Arc<Waiter>> {
        let mut all: Vec<Arc<Waiter>> = self.by_piece.lock().values().flatten().cloned().collect();
        all.sort_by_key(|w| w.id);
        all.dedup_by_key(|w| w.id);
        all
    }
}

impl Shared {
    /// A piece is complete: whoever waited for it last is answered. An effect: called without any lock.
    pub fn wake(self: &Arc<Self>, piece: PieceIndex) {
        for waiter in self.notifier.take_all(piece) {
            self.count_down(&waiter);
        }
    }

    fn count_down(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        if waiter.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let done = waiter.done.lock().take();
            if let Some(done) = done {
                self.read_now(waiter.offset, waiter.len, done);
            }
        }
    }

    /// Ends a waiting read with an error. An effect: called without any lock.
    pub fn fail(&self, waiter: &Waiter, error: ReadError) {
        let done = waiter.done.lock().take();
        self.forget(waiter);
        if let Some(done) = done {
            done(Err(error));
        }
    }

    /// Ends the waiting read of this number with an error, if it still waits.
    pub fn fail_id(&self, id: u64, error: &ReadError) {
        for waiter in self.notifier.waiters().iter().filter(|w| w.id == id) {
            self.fail(waiter, error.clone());
        }
    }

    /// Ends every waiting read with an error.
    pub fn fail_all(&self, error: &ReadError) {
        for waiter in self.notifier.waiters() {
            self.fail(&waiter, error.clone());
        }
    }

    fn forget(&self, waiter: &Waiter) {
        for piece in self.info.geometry.pieces_of(waiter.offset, waiter.len as u64) {
            self.notifier.take_one(PieceIndex(piece), waiter.id);
        }
    }
}

/// Holds a waiting read; dropping it withdraws the demand. Never blocks.
pub struct ReadTicket {
    shared: Arc<Shared>,
    waiter: Option<Arc<Waiter>>,
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        let done = waiter.done.lock().take();
        if done.is_some() {
            self.shared.forget(&waiter);
            self.shared.inbox.post(Demand::Withdraw { waiter: waiter.id });
        }
    }
}

/// An open reader of one file.
pub struct Reader {
    shared: Arc<Shared>,
    id: u64,
    file: FileIndex,
    /// First byte of the file in the torrent's linear space.
    base: u64,
    size: u64,
    window: RankedMutex<Window>,
}

impl Reader {
    /// Opens a file of the torrent. Never waits.
    pub fn open(shared: Arc<Shared>, file: FileIndex) -> Option<Self> {
        let extent = *shared.info.geometry.files().get(file.0 as usize)?;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let range: Range<u64> = extent.offset..extent.offset + extent.len;
        let window = Window::new(range, shared.info.geometry.piece_length());
        shared.inbox.post(Demand::Open { stream: id, file });
        Some(Self {
            id,
            file,
            base: extent.offset,
            size: extent.len,
            window: RankedMutex::new(Rank::Leaf, "stream window", window),
            shared,
        })
    }

    /// Tells the window of a read; what is to be fetched ahead goes to the owner.
    fn advance(&self, offset: u64, len: usize) {
        if self.shared.table.complete_count() == self.shared.table.len() {
            return;
        }
        let changed = self.window.lock().on_read(offset, len as u64);
        if let Some(pieces) = changed {
            self.shared.inbox.post(Demand::Ahead { stream: self.id, pieces });
        }
    }

    fn clamp(&self, offset: u64, len: usize) -> Option<u64> {
        let end = offset.checked_add(len as u64)?;
        (end <= self.size).then_some(self.base + offset)
    }

    /// Fills `buf` from `offset` in the file, if all of it is complete and in the page cache.
    ///
    /// # Errors
    /// When the disk fails. Never waits.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let Some(at) = self.clamp(offset, buf.len()) else { return Ok(false) };
        let pieces = self.shared.info.geometry.pieces_of(at, buf.len() as u64);
        if !self.shared.table.all_complete(pieces) || !self.shared.store.try_read(at, buf)? {
            return Ok(false);
        }
        self.advance(at, buf.len());
        Ok(true)
    }

    /// Reads `len` bytes from `offset` in the file, which lie within it. Returns at once; `done` is called
    /// when the bytes are here, unless the ticket is dropped before.
    pub fn read(&self, offset: u64, len: usize, done: Done) -> ReadTicket {
        let shared = self.shared.clone();
        let Some(at) = self.clamp(offset, len) else {
            done(Err(ReadError::Io("a read beyond the end of the file".into())));
            return ReadTicket { shared, waiter: None };
        };
        let missing: Vec<PieceIndex> = shared
            .info
            .geometry
            .pieces_of(at, len as u64)
            .map(PieceIndex)
            .filter(|p| !shared.table.is_complete(*p))
            .collect();
        if missing.is_empty() {
            shared.read_now(at, len, done);
            self.advance(at, len);
            return ReadTicket { shared, waiter: None };
        }
        let waiter = Arc::new(Waiter {
            id: shared.next.fetch_add(1, Ordering::Relaxed),
            file: self.file,
            offset: at,
            len,
            since: Instant::now(),
            // One more than the pieces, so that it can't reach zero before the second look is over.
            left: AtomicU32::new(missing.len() as u32 + 1),
            done: RankedMutex::new(Rank::Leaf, "waiting read", Some(done)),
        });
        shared.notifier.register(&missing, &waiter);
        for piece in &missing {
            if shared.table.is_complete(*piece) && shared.notifier.take_one(*piece, waiter.id) {
                shared.count_down(&waiter);
            }
        }
        shared.count_down(&waiter);
        shared.inbox.post(Demand::Want {
            waiter: waiter.id,
            file: self.file,
            offset: at,
            pieces: missing,
            since: waiter.since,
        });
        self.advance(at, len);
        ReadTicket { shared, waiter: Some(waiter) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.inbox.post(Demand::Close { stream: self.id });
    }
}
