//! Reads of a torrent's bytes: at once from what is here, or later when the pieces have come.
//!
//! A read that must wait is put on the [`Notifier`], which sees to it that no piece comes unseen. No thread waits:
//! when the last piece has come, a storage worker reads and answers. What is read comes from the pieces that are kept in
//! memory ([`super::recent`]), and from the store where it isn't there.
//! Dropping a [`ReadTicket`] withdraws the demand.
//!
//! Whoever reads holds the pieces it reads ([`PieceTable::pin`]), so that none is evicted meanwhile. A read that
//! finds one gone waits for it again; so does one whose bytes the store can't give (the disk failed, a file was cut,
//! removed or changed), after it has told the owner which pieces are suspect.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::inbox::{Demand, Inbox};
use super::notifier::{self, Desk, Notifier};
use super::recent::{self, Member, Recent};
use super::table::{PieceTable, Pins};
use super::track::Track;
use super::work::Right;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::info::{FileKind, Info};
use crate::storage::combine::WriteQueue;
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
    /// It isn't here, and nothing is fetched for this reader.
    #[error("it isn't here")]
    NotHere,
    /// The torrent was removed.
    #[error("the torrent was removed")]
    Removed,
}

/// How often a read has the pieces checked whose bytes the store couldn't give, before it fails.
const TRIES: u32 = 3;

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
    pub notifier: Notifier<Shared>,
    /// The way to the owner.
    pub inbox: Arc<Inbox>,
    /// Verified pieces on their way to the store.
    pub(super) writes: WriteQueue<Right>,
    /// Those that were written last.
    pub(super) recent: Member,
    next: AtomicU64,
    /// It isn't one of the client's torrents any more.
    removed: AtomicBool,
    /// What is charged for what is kept of it, in bytes.
    charged: AtomicU64,
    /// Bytes of all files that are shown: pad files are not.
    size: u64,
}

impl Shared {
    /// Nobody reads yet. Keeps no pieces in memory: see [`Shared::keeping`].
    pub fn new(
        info: Arc<Info>,
        table: Arc<PieceTable>,
        store: Arc<dyn Store>,
        workers: Arc<Workers>,
        inbox: Arc<Inbox>,
    ) -> Self {
        let (notifier, next) = (Notifier::default(), AtomicU64::new(1));
        let size = info.files.iter().filter(|f| f.kind == FileKind::Regular).map(|f| f.size).sum();
        let (writes, recent) = (WriteQueue::new(), Recent::new(0).member());
        let (removed, charged) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { info, table, store, workers, notifier, inbox, writes, recent, next, removed, charged, size }
    }

    /// Keeps pieces in memory, as far as there is room beside those of other torrents.
    pub fn keeping(self, recent: &Arc<Recent>) -> Self {
        Self { recent: recent.member(), ..self }
    }

    /// What keeping a piece takes, in bytes; 0 when it can't be given back.
    pub fn cost(&self, piece: PieceIndex) -> u64 {
        let start = self.info.geometry.piece_offset(piece);
        self.store.room(start..start + u64::from(self.info.geometry.piece_len(piece)))
    }

    /// So many bytes more are charged for it.
    pub(super) fn charge(&self, bytes: u64) {
        self.charged.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many bytes of what was charged for it were released.
    pub(super) fn uncharge(&self, bytes: u64) {
        let less = |charged: u64| Some(charged.saturating_sub(bytes));
        // Always some: never an error.
        let _ = self.charged.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// What is charged for it, in bytes, from now on by somebody else.
    pub(super) fn take_charge(&self) -> u64 {
        self.charged.swap(0, Ordering::AcqRel)
    }

    /// Whether it was removed: nobody is to read it any more, whatever is here of it.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// It is removed: each read that waits ends with [`ReadError::Removed`], and so does each later one. An effect:
    /// called without any lock.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.fail_all(&ReadError::Removed);
        self.recent.clear();
    }

    /// Bytes of all files that are shown: pad files are not.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of them that are here, verified. Costs a look at each file, unless all or none is here.
    pub fn have(&self) -> u64 {
        match self.table.complete_count() {
            0 => 0,
            all if all == self.table.len() => self.size,
            _ => {
                let files = self.info.files.iter().enumerate().filter(|(_, f)| f.kind == FileKind::Regular);
                files.map(|(index, _)| self.bytes_here(FileIndex(index as u32))).sum()
            }
        }
    }

    /// Bytes of a file that are here, verified. Costs as much as [`PieceTable::complete_in`].
    pub fn bytes_here(&self, file: FileIndex) -> u64 {
        let geometry = &self.info.geometry;
        let Some(extent) = geometry.files().get(file.0 as usize) else { return 0 };
        if self.table.complete_count() == self.table.len() {
            return extent.len;
        }
        let pieces = geometry.file_pieces(file);
        let Some(last) = pieces.end.checked_sub(1).filter(|last| *last >= pieces.start) else { return 0 };
        let end = extent.offset + extent.len;
        // At either end it may share a piece with others, or have a short one.
        let edge = |piece: u32| {
            let piece = PieceIndex(piece);
            let start = geometry.piece_offset(piece);
            let to = (start + u64::from(geometry.piece_len(piece))).min(end);
            let here = self.table.is_complete(piece);
            if here { to.saturating_sub(start.max(extent.offset)) } else { 0 }
        };
        let inner = u64::from(self.table.complete_in(pieces.start + 1..last.max(pieces.start + 1)));
        let edges = edge(pieces.start) + if last > pieces.start { edge(last) } else { 0 };
        (inner * u64::from(geometry.piece_length()) + edges).min(extent.len)
    }

    /// Whether all of a file is here. Costs as much as [`PieceTable::complete_in`].
    pub fn is_here(&self, file: FileIndex) -> bool {
        let pieces = self.info.geometry.file_pieces(file);
        self.table.complete_in(pieces.clone()) == pieces.len() as u32
    }

    /// Fills `buf` from what is complete: with what is kept in memory, and with `store` where it isn't, until that
    /// says false.
    fn fill(
        &self,
        offset: u64,
        buf: &mut [u8],
        mut store: impl FnMut(u64, &mut [u8]) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let geometry = &self.info.geometry;
        let end = offset + buf.len() as u64;
        let (mut rest, mut at) = (buf, offset);
        for buffer in self.recent.find(geometry.pieces_of(offset, end - offset)) {
            let first = geometry.piece_offset(buffer.piece());
            let from = first.max(at);
            let to = (first + u64::from(geometry.piece_len(buffer.piece()))).min(end);
            // They come in order, and each lies within what is read, at least in part.
            let (before, others) = rest.split_at_mut((from - at) as usize);
            let (part, others) = others.split_at_mut(to.saturating_sub(from) as usize);
            if !before.is_empty() && !store(at, before)? {
                return Ok(false);
            }
            if !recent::copy(&buffer, from - first, part) && !store(from, part)? {
                return Ok(false);
            }
            at = from + part.len() as u64;
            rest = others;
        }
        Ok(rest.is_empty() || store(at, rest)?)
    }

    /// Fills `buf` from what is complete. May wait for a disk.
    ///
    /// # Errors
    /// As [`Store::read_at`].
    fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.fill(offset, buf, |at, part| self.store.read_at(at, part).map(|()| true)).map(|_| ())
    }

    /// As [`Shared::fetch`], for a peer: others will ask for the same.
    pub(super) fn fetch_to_serve(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.fill(offset, buf, |at, part| self.store.read_to_serve(at, part).map(|()| true)).map(|_| ())
    }

    /// Fills `buf` if all of it is complete and in memory. Never waits.
    pub fn try_here(&self, offset: u64, buf: &mut [u8]) -> bool {
        let pieces = self.info.geometry.pieces_of(offset, buf.len() as u64);
        let Some(pins) = self.table.pin(pieces) else { return false };
        let read = self.fill(offset, buf, |at, part| self.store.try_read(at, part)).unwrap_or(false);
        read && pins.undisturbed()
    }

    /// Reads what is verified: with `read`, while `hold` holds the pieces. Eviction passes over what is held; but what a
    /// disk turns out to have lost, or somebody to have changed, goes under the reader's hands, and then it is read anew.
    /// `None` when they can't be held, since some aren't complete.
    pub(super) fn while_held<'a, T>(
        &self,
        hold: impl Fn() -> Option<Pins<'a>>,
        mut read: impl FnMut() -> T,
    ) -> Option<T> {
        loop {
            let pins = hold()?;
            let result = read();
            if pins.undisturbed() {
                return Some(result);
            }
        }
    }

    /// Reads what is complete with a storage worker, for a reader for whom nothing is fetched.
    pub fn read_here(self: &Arc<Self>, offset: u64, len: usize, done: Done) {
        let shared = self.clone();
        let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
            let pieces = shared.info.geometry.pieces_of(offset, len as u64);
            let buf = scratch.buffer(len);
            match shared.while_held(|| shared.table.pin(pieces.clone()), || shared.fetch(offset, buf)) {
                None => done(Err(ReadError::NotHere)),
                Some(Ok(())) => done(Ok(buf)),
                Some(Err(error)) => {
                    shared.suspect(offset, len, &error);
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

    /// As [`Shared::suspect`], when something else was done to a range and it turned out that somebody was at its file.
    pub(super) fn heed(&self, offset: u64, len: u64, error: &StorageError) {
        if let StorageError::Changed { .. } = error {
            self.suspect(offset, len as usize, error);
        }
    }

    /// Has the pieces of a range checked, whose bytes the store couldn't give.
    pub(super) fn suspect(&self, offset: u64, len: usize, error: &StorageError) {
        let geometry = &self.info.geometry;
        let files = match error {
            // Somebody was at the file: what else is in it nobody knows.
            StorageError::Short { .. } | StorageError::Changed { .. } => {
                geometry.spans(offset, len as u64).map(|span| span.file).collect()
            }
            StorageError::Io { .. } | StorageError::Full { .. } | StorageError::Unsupported { .. } => {
                Vec::new()
            }
            // Nothing is wrong with the data.
            StorageError::Closed
            | StorageError::OutOfRange { .. }
            | StorageError::Layout { .. }
            | StorageError::Unsynced { .. }
            | StorageError::ReadOnly { .. } => return,
        };
        tracing::warn!(torrent = %self.info.name, "its pieces are checked: {error}");
        let pieces = geometry.pieces_of(offset, len as u64);
        self.inbox.post(Demand::Suspect { pieces, files });
    }
}

/// What a waiting read reads.
pub struct Request {
    /// Which file.
    pub file: FileIndex,
    /// From where in the torrent's linear space.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    /// Since when it waits.
    pub since: Instant,
    stream: u64,
    /// How often its bytes couldn't be read.
    failures: AtomicU32,
}

/// A read that waits for pieces, or for a storage worker.
pub type Waiter = notifier::Waiter<Shared>;

impl Desk for Shared {
    type Read = Request;
    type Done = Done;
    type Error = ReadError;

    fn pieces(&self, read: &Request) -> Range<u32> {
        self.info.geometry.pieces_of(read.offset, read.len as u64)
    }

    fn is_complete(&self, piece: PieceIndex) -> bool {
        self.table.is_complete(piece)
    }

    fn come(self: &Arc<Self>, waiter: Arc<Waiter>) {
        let mut queued = Queued { shared: self.clone(), waiter, begun: false };
        let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
            queued.shared.answer(&queued.waiter, scratch);
            queued.begun = true;
        });
        // Refused: dropped, and so answered.
        let _ = self.workers.submit(Class::Read, job);
    }

    fn want(&self, waiter: &Waiter, pieces: Vec<PieceIndex>) {
        let read = &waiter.read;
        self.inbox.post(Demand::Want {
            waiter: waiter.id,
            stream: read.stream,
            file: read.file,
            offset: read.offset,
            all: self.pieces(read),
            pieces,
            since: read.since,
        });
    }

    fn withdraw(&self, id: u64) {
        self.inbox.post(Demand::Withdraw { waiter: id });
    }

    fn refuse(&self, done: Done, error: ReadError) {
        done(Err(error));
    }
}

/// A read in a worker's queue; dropping it fails the read, unless it was answered or waits again.
struct Queued {
    shared: Arc<Shared>,
    waiter: Arc<Waiter>,
    begun: bool,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let done = if self.begun { None } else { self.waiter.take() };
        if let Some(done) = done {
            // Only at shutdown, beyond as many waiting reads as the kernel can have, or after a panic.
            tracing::debug!("a read was dropped: the storage workers are closed or full");
            done(Err(ReadError::Io("the storage workers took no more work".into())));
        }
    }
}

impl Shared {
    /// Takes a read up: a worker reads when all its pieces are complete, otherwise it waits for those that aren't.
    fn take_up(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        let pieces = self.pieces(&waiter.read);
        let missing: Vec<PieceIndex> =
            pieces.map(PieceIndex).filter(|p| !self.table.is_complete(*p)).collect();
        if missing.is_empty() {
            return self.come(waiter.clone());
        }
        self.notifier.wait(self, waiter, missing);
    }

    /// Reads and answers; or waits again, when something of it was evicted or can't be read. On a worker.
    fn answer(self: &Arc<Self>, waiter: &Arc<Waiter>, scratch: &mut crate::storage::pool::Scratch) {
        if waiter.is_taken() {
            return;
        }
        let read = &waiter.read;
        let (offset, pieces) = (read.offset, self.pieces(read));
        let buf = scratch.buffer(read.len);
        let fetched = self.while_held(|| self.table.pin(pieces.clone()), || self.fetch(offset, buf));
        let Some(fetched) = fetched else { return self.take_up(waiter) };
        let result = match fetched {
            Ok(()) => Ok(&*buf),
            Err(StorageError::Closed) if self.is_removed() => Err(ReadError::Removed),
            Err(StorageError::Closed) => Err(ReadError::Closed),
            Err(error) => {
                if read.failures.fetch_add(1, Ordering::Relaxed) + 1 < TRIES {
                    let pieces: Vec<PieceIndex> = pieces.map(PieceIndex).collect();
                    // They still count as complete: no second look before the owner has heard of it. Registered before
                    // that: it may have them checked, and wake, at once.
                    self.notifier.register(waiter, &pieces);
                    self.suspect(offset, read.len, &error);
                    return self.notifier.demand(self, waiter, pieces);
                }
                self.suspect(offset, read.len, &error);
                self.inbox.post(Demand::Unreadable { reason: error.to_string() });
                Err(error.into())
            }
        };
        if let Some(done) = waiter.take() {
            done(result);
        }
    }
}

impl Shared {
    /// A piece is complete: whoever waited for it last is answered. An effect: called without any lock.
    pub fn wake(self: &Arc<Self>, piece: PieceIndex) {
        self.notifier.wake(self, piece);
    }

    /// Ends the waiting read of this number with an error, if it still waits. An effect, as all that may answer.
    pub fn fail_id(&self, id: u64, error: &ReadError) {
        self.notifier.fail_id(self, id, error.clone());
    }

    /// Ends every waiting read with an error, and each later one that would have to wait: nobody looks at
    /// demands any more.
    pub fn fail_all(&self, error: &ReadError) {
        self.notifier.fail_all(self, error);
    }
}

/// Holds a waiting read; dropping it withdraws the demand. Never blocks.
pub struct ReadTicket {
    shared: Arc<Shared>,
    waiter: Option<Arc<Waiter>>,
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.shared.notifier.withdraw(&self.shared, &waiter);
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
    track: RankedMutex<Track>,
    /// The owner was told of it.
    told: AtomicBool,
}

impl Reader {
    /// Opens a file of the torrent; `None` when there is none, or the torrent was removed. Never waits. The owner isn't
    /// told of a file that is here: it has nothing to do for its reader, and opening small files would wake it each time.
    pub fn open(shared: Arc<Shared>, file: FileIndex) -> Option<Self> {
        let extent = *shared.info.geometry.files().get(file.0 as usize).filter(|_| !shared.is_removed())?;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let pieces = shared.info.geometry.file_pieces(file);
        let here = shared.table.complete_in(pieces.clone()) as usize == pieces.len();
        let reader = Self {
            id,
            file,
            base: extent.offset,
            size: extent.len,
            track: RankedMutex::new(Rank::Leaf, "stream track", Track::new(extent.offset)),
            told: AtomicBool::new(false),
            shared,
        };
        if !here {
            reader.tell();
        }
        Some(reader)
    }

    /// Tells the owner that there is this reader, once, before anything else is said of it.
    fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.shared.inbox.post(Demand::Open { stream: self.id, file: self.file });
        }
    }

    /// Whether its torrent was removed: it reads nothing any more.
    pub fn is_removed(&self) -> bool {
        self.shared.is_removed()
    }

    /// Follows a read; the owner is told where the reader is, for what is to be fetched ahead.
    fn advance(&self, offset: u64, len: usize) {
        if self.shared.table.complete_count() == self.shared.table.len() {
            return;
        }
        let moved = self.track.lock().on_read(offset, len as u64, Instant::now());
        if let Some(reach) = moved {
            self.tell();
            self.shared.inbox.post(Demand::Moved { stream: self.id, reach });
        }
    }

    fn clamp(&self, offset: u64, len: usize) -> Option<u64> {
        let end = offset.checked_add(len as u64)?;
        (end <= self.size).then_some(self.base + offset)
    }

    /// Fills `buf` from `offset` in the file, if all of it is complete and in memory.
    /// Otherwise, also when the disk fails or the torrent was removed: false. Never waits.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(at) = self.clamp(offset, buf.len()).filter(|_| !self.is_removed()) else { return false };
        // Whoever may wait for the disk finds out why it fails.
        let read = self.shared.try_here(at, buf);
        if read {
            self.advance(at, buf.len());
        }
        read
    }

    /// Reads `len` bytes from `offset` in the file, which lie within it. Returns at once; `done` is called
    /// when the bytes are here, unless the ticket is dropped before.
    pub fn read(&self, offset: u64, len: usize, done: Done) -> ReadTicket {
        let shared = self.shared.clone();
        let Some(at) = self.clamp(offset, len) else {
            done(Err(ReadError::Io("a read beyond the end of the file".into())));
            return ReadTicket { shared, waiter: None };
        };
        if self.is_removed() {
            done(Err(ReadError::Removed));
            return ReadTicket { shared, waiter: None };
        }
        let (since, failures) = (Instant::now(), AtomicU32::new(0));
        let request = Request { file: self.file, offset: at, len, since, stream: self.id, failures };
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let waiter = Arc::new(Waiter::new(id, request, done));
        if !shared.table.all_complete(shared.pieces(&waiter.read)) {
            self.tell();
        }
        shared.take_up(&waiter);
        self.advance(at, len);
        ReadTicket { shared, waiter: Some(waiter) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.told.load(Ordering::Acquire) {
            self.shared.inbox.post(Demand::Close { stream: self.id });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::IoSlice;
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::metainfo::build::TorrentBuilder;
    use crate::metainfo::geometry::BlockIndex;
    use crate::peer::PeerKey;
    use crate::peer::buffer::PieceBuffer;
    use crate::torrent::table::PieceState;

    const PIECE: u32 = 16 * 1024;
    const LONG: Duration = Duration::from_secs(20);

    /// A store all of whose bytes are 7.
    struct Sevens;

    impl Store for Sevens {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            Ok(())
        }
        fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            buf.fill(7);
            Ok(())
        }
        fn try_read(&self, _: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
            buf.fill(7);
            Ok(true)
        }
        fn sync(&self) -> Result<(), StorageError> {
            Ok(())
        }
        fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
            Ok(())
        }
        fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
            Ok(Vec::new())
        }
        fn close(&self) {}
    }

    fn shared(workers: &Arc<Workers>, pieces: u32) -> Arc<Shared> {
        let size = u64::from(pieces * PIECE);
        let mut builder = TorrentBuilder::new("t", PIECE);
        builder.single_file(size).piece_hashes((0..pieces).map(|_| [0; 20]));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let table = Arc::new(PieceTable::new(pieces, PieceState::Missing));
        Arc::new(Shared::new(info, table, Arc::new(Sevens), workers.clone(), Arc::default()))
    }

    /// A read whose answers are sent on: its ticket, and the answers.
    fn read(reader: &Reader, offset: u64, len: usize) -> (ReadTicket, Receiver<Result<Vec<u8>, ReadError>>) {
        let (told, answers) = channel();
        let ticket = reader.read(offset, len, Box::new(move |r| _ = told.send(r.map(<[u8]>::to_vec))));
        (ticket, answers)
    }

    fn complete(shared: &Arc<Shared>, piece: u32) {
        shared.table.set(PieceIndex(piece), PieceState::Complete);
        shared.wake(PieceIndex(piece));
    }

    #[test]
    fn bytes_of_a_file_are_counted_as_if_piece_by_piece() {
        let workers = Workers::start(1).unwrap();
        let piece = u64::from(PIECE);
        // Within a piece, over its end, nothing, exactly a piece, many pieces, the short rest.
        let sizes = [100, piece, 0, piece - 100, piece, 1500 * piece + 7, 3, 40];
        let total: u64 = sizes.iter().sum();
        let mut builder = TorrentBuilder::new("t", PIECE);
        (0..).zip(sizes).for_each(|(n, size)| _ = builder.file(format!("{n}"), size));
        builder.piece_hashes((0..total.div_ceil(piece)).map(|_| [0; 20]));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let geometry = info.geometry.clone();
        let table = Arc::new(PieceTable::new(geometry.pieces(), PieceState::Missing));
        let shared = Arc::new(Shared::new(info, table, Arc::new(Sevens), workers.clone(), Arc::default()));
        for here in [|_| false, |p| p == 0, |p| p % 3 != 0, |p| p > 700, |p| p != 900, |_| true] {
            for piece in geometry.all_pieces() {
                let state = if here(piece.0) { PieceState::Complete } else { PieceState::Missing };
                shared.table.set(piece, state);
            }
            for (index, extent) in (0..).zip(geometry.files()) {
                let byte_here = |at: u64| here((at / piece) as u32);
                let expected =
                    (extent.offset..extent.offset + extent.len).filter(|at| byte_here(*at)).count();
                let file = FileIndex(index);
                assert_eq!(shared.bytes_here(file), expected as u64, "file {index}");
                assert_eq!(shared.is_here(file), expected as u64 == extent.len, "file {index}");
            }
        }
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn f9_a_removed_torrent_answers_whoever_waits_and_whoever_comes() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, 4);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        complete(&shared, 3);
        // Removals race with reads: each is answered, once.
        std::thread::scope(|scope| {
            let comes = scope.spawn(|| {
                let reads = (0..200).map(|n| read(&reader, n * 4, 4)).collect::<Vec<_>>();
                reads.into_iter().filter(|(_ticket, answers)| answers.recv_timeout(LONG).is_ok()).count()
            });
            scope.spawn(|| shared.remove());
            assert_eq!(comes.join().unwrap(), 200);
        });
        assert!(shared.notifier.waiters().is_empty());
        for offset in [0, u64::from(3 * PIECE)] {
            let (_ticket, answers) = read(&reader, offset, 10);
            assert_eq!(answers.recv_timeout(LONG).unwrap(), Err(ReadError::Removed), "{offset}");
            assert!(!reader.try_read(offset, &mut [0; 10]));
        }
        // A piece that comes all the same changes nothing; and the owner's end neither.
        complete(&shared, 0);
        shared.fail_all(&ReadError::Closed);
        let (_ticket, answers) = read(&reader, 0, 10);
        assert_eq!(answers.recv_timeout(LONG).unwrap(), Err(ReadError::Removed));
        assert!(Reader::open(shared.clone(), FileIndex(0)).is_none());
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn a_read_over_several_pieces_is_answered_by_the_last() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, 4);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        complete(&shared, 2);
        let (_ticket, answers) = read(&reader, 100, 3 * PIECE as usize);
        for piece in [3, 0] {
            complete(&shared, piece);
            assert!(answers.recv_timeout(Duration::from_millis(1)).is_err());
        }
        complete(&shared, 1);
        assert_eq!(answers.recv_timeout(LONG).unwrap().unwrap(), vec![7; 3 * PIECE as usize]);
        assert!(answers.recv_timeout(LONG).is_err(), "once");
        assert!(shared.notifier.waiters().is_empty());
        let (_ticket, beyond) = read(&reader, u64::from(4 * PIECE) - 1, 2);
        assert!(matches!(beyond.recv_timeout(LONG).unwrap(), Err(ReadError::Io(_))));
        let (_ticket, nothing) = read(&reader, 5, 0);
        assert_eq!(nothing.recv_timeout(LONG).unwrap().unwrap(), Vec::<u8>::new());
        let mut buf = [0; 10];
        assert!(reader.try_read(0, &mut buf));
        assert_eq!(buf, [7; 10]);
        workers.stop(LONG);
    }

    #[test]
    fn s1_what_goes_under_the_readers_hands_is_not_answered() {
        /// The first time, the piece turns out to be lost while it is read; and may come again before that ends.
        #[derive(Default)]
        struct Loses {
            shared: OnceLock<Arc<Shared>>,
            reads: AtomicUsize,
            comes_again: bool,
        }
        impl Loses {
            fn fill(&self, buf: &mut [u8]) {
                let again = self.reads.fetch_add(1, Ordering::SeqCst) > 0;
                buf.fill(if again { 7 } else { 9 });
                let Some(shared) = self.shared.get().filter(|_| !again) else { return };
                shared.table.set(PieceIndex(0), PieceState::Missing);
                if self.comes_again {
                    shared.table.set(PieceIndex(0), PieceState::Complete);
                }
            }
        }
        impl Store for Loses {
            fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
                Ok(())
            }
            fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), StorageError> {
                self.fill(buf);
                Ok(())
            }
            fn try_read(&self, _: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
                self.fill(buf);
                Ok(true)
            }
            fn sync(&self) -> Result<(), StorageError> {
                Ok(())
            }
            fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
                Ok(())
            }
            fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
                Ok(Vec::new())
            }
            fn close(&self) {}
        }
        let workers = Workers::start(1).unwrap();
        let plain = shared(&workers, 2);
        let losing = |comes_again| {
            let store = Arc::new(Loses { comes_again, ..Loses::default() });
            let (info, table) = (plain.info.clone(), Arc::new(PieceTable::new(2, PieceState::Complete)));
            let shared = Arc::new(Shared::new(info, table, store.clone(), workers.clone(), Arc::default()));
            assert!(store.shared.set(shared.clone()).is_ok());
            shared
        };
        let shared = losing(false);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        let (_ticket, answers) = read(&reader, 0, 10);
        while shared.notifier.waiters().is_empty() {
            assert!(answers.try_recv().is_err(), "what was lost was answered");
            std::thread::yield_now();
        }
        complete(&shared, 0);
        assert_eq!(answers.recv_timeout(LONG).unwrap().unwrap(), vec![7; 10]);
        let read_here = |shared: Arc<Shared>| {
            let (told, answers) = channel();
            shared.read_here(0, 10, Box::new(move |r| _ = told.send(r.map(<[u8]>::to_vec))));
            answers.recv_timeout(LONG).unwrap()
        };
        assert!(!losing(false).try_here(0, &mut [0; 10]));
        assert_eq!(read_here(losing(false)), Err(ReadError::NotHere));
        // It is complete again: all the same, what was read is what lay there before.
        let reader = Reader::open(losing(true), FileIndex(0)).unwrap();
        let (_ticket, answers) = read(&reader, 0, 10);
        assert_eq!(answers.recv_timeout(LONG).unwrap().unwrap(), vec![7; 10]);
        assert!(!losing(true).try_here(0, &mut [0; 10]));
        assert_eq!(read_here(losing(true)).unwrap(), vec![7; 10]);
        workers.stop(LONG);
    }

    #[test]
    fn what_is_kept_in_memory_is_served_from_there() {
        /// As the other, but nothing is in memory.
        struct Cold;
        impl Store for Cold {
            fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
                Ok(())
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
                Sevens.read_at(offset, buf)
            }
            fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
                Ok(false)
            }
            fn sync(&self) -> Result<(), StorageError> {
                Ok(())
            }
            fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
                Ok(())
            }
            fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
                Ok(Vec::new())
            }
            fn close(&self) {}
        }
        let workers = Workers::start(1).unwrap();
        let recent = Recent::new(4 * PIECE as usize);
        let stores: [Arc<dyn Store>; 2] = [Arc::new(Sevens), Arc::new(Cold)];
        for (cold, store) in stores.into_iter().enumerate() {
            let plain = shared(&workers, 6);
            let (info, table) = (plain.info.clone(), plain.table.clone());
            let shared = Shared::new(info, table, store, workers.clone(), Arc::default());
            let shared = Arc::new(shared.keeping(&recent));
            let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
            for piece in [1, 2, 4] {
                let buffer = PieceBuffer::new(PieceIndex(piece), 1);
                let bytes = Bytes::from(vec![10 + piece as u8; PIECE as usize]);
                assert!(buffer.put(BlockIndex(0), bytes, PeerKey(1)));
                shared.recent.keep(&Arc::new(buffer), PIECE as usize);
            }
            let mut buf = vec![0; 2 * PIECE as usize];
            assert!(!reader.try_read(u64::from(PIECE), &mut buf), "not complete yet");
            (0..6).for_each(|piece| complete(&shared, piece));
            // Where, how many, and whether all of it is kept.
            let size = PIECE as usize;
            let rows = [
                (0, 1, false),
                (0, size + 1, false),
                (size, size, true),
                (size + 5, 2 * size - 5, true),
                (2 * size - 1, 2, true),
                (size + 5, 2 * size, false),
                (4 * size, 1, true),
                (100, 6 * size - 200, false),
                (3 * size, size, false),
            ];
            for (offset, len, kept) in rows {
                let byte = |at: usize| match (at / size) as u8 {
                    piece @ (1 | 2 | 4) => 10 + piece,
                    _ => 7,
                };
                let expected: Vec<u8> = (offset..offset + len).map(byte).collect();
                let mut buf = vec![0; len];
                let at_once = reader.try_read(offset as u64, &mut buf);
                assert_eq!(at_once, kept || cold == 0, "{len} at {offset}");
                assert!(!at_once || buf == expected, "{len} at {offset}");
                let (_ticket, answers) = read(&reader, offset as u64, len);
                assert!(answers.recv_timeout(LONG).unwrap().unwrap() == expected, "{len} at {offset}");
            }
        }
        workers.stop(LONG);
    }

    #[test]
    fn dropping_a_ticket_withdraws_the_read() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, 4);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        let (ticket, answers) = read(&reader, 0, 2 * PIECE as usize);
        complete(&shared, 0);
        shared.inbox.take();
        drop(ticket);
        assert!(matches!(shared.inbox.take()[..], [Demand::Withdraw { .. }]));
        complete(&shared, 1);
        assert!(answers.recv_timeout(LONG).is_err(), "never answered");
        assert!(shared.notifier.waiters().is_empty());
        assert!(shared.notifier.is_empty());
        // One that was answered has nothing to withdraw.
        let (ticket, answers) = read(&reader, u64::from(2 * PIECE), 10);
        complete(&shared, 2);
        answers.recv_timeout(LONG).unwrap().unwrap();
        shared.inbox.take();
        drop(ticket);
        assert!(shared.inbox.take().is_empty());
        drop(reader);
        assert!(matches!(shared.inbox.take()[..], [Demand::Close { .. }]));
        workers.stop(LONG);
    }

    #[test]
    fn the_owner_hears_of_a_reader_once_something_is_missing() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, 4);
        (0..4).for_each(|piece| complete(&shared, piece));
        let open = || Reader::open(shared.clone(), FileIndex(0)).unwrap();
        shared.inbox.take();
        let reader = open();
        let (ticket, answers) = read(&reader, 0, 10);
        answers.recv_timeout(LONG).unwrap().unwrap();
        drop((ticket, reader));
        assert_eq!(shared.inbox.take(), []);
        // Evicted while it is open.
        let reader = open();
        shared.table.set(PieceIndex(1), PieceState::Missing);
        let _waiting = [read(&reader, PIECE.into(), 10), read(&reader, PIECE.into(), 10)];
        use Demand::{Close, Open, Want};
        let told = shared.inbox.take();
        assert!(matches!(told[..], [Open { .. }, Want { .. }, ..]), "{told:?}");
        assert_eq!(told.iter().filter(|demand| matches!(demand, Open { .. })).count(), 1);
        drop(reader);
        assert!(matches!(shared.inbox.take()[..], [Close { .. }]));
        // Missing from the start.
        let reader = open();
        assert!(matches!(shared.inbox.take()[..], [Open { .. }]));
        drop(reader);
        workers.stop(LONG);
    }

    #[test]
    fn o1_a_hundred_waiters_on_one_piece_are_each_answered_once() {
        let workers = Workers::start(2).unwrap();
        let shared = shared(&workers, 4);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let tickets: Vec<_> = (0..100)
            .map(|i| {
                let count = count.clone();
                let done = move |r: Result<&[u8], ReadError>| {
                    assert_eq!(r.unwrap().len(), 10);
                    count.fetch_add(1, Ordering::SeqCst);
                };
                reader.read(i * 10, 10, Box::new(done))
            })
            .collect();
        assert_eq!(shared.notifier.waiters().len(), 100);
        complete(&shared, 0);
        shared.wake(PieceIndex(0));
        let (end, ended) = channel();
        let last = reader.read(0, 1, Box::new(move |_| end.send(()).unwrap()));
        ended.recv_timeout(LONG).unwrap();
        // The other worker may still be at one that came before; dropping its ticket would withdraw it.
        let until = Instant::now() + LONG;
        while count.load(Ordering::SeqCst) < 100 {
            assert!(Instant::now() < until, "{count:?} of 100 were answered");
            std::thread::yield_now();
        }
        drop((tickets, last));
        assert!(workers.stop(LONG).is_empty());
        assert_eq!(count.load(Ordering::SeqCst), 100);
    }

    #[test]
    fn no_completion_is_missed_between_registering_looking_again_and_telling() {
        // Readers and the owner race for each piece; every read is answered, none twice.
        let workers = Workers::start(2).unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let shared = shared(&workers, 16);
            let (told, done) = channel();
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let (shared, told, answers) = (shared.clone(), told.clone(), answers.clone());
                    scope.spawn(move || {
                        let reader = Reader::open(shared, FileIndex(0)).unwrap();
                        for piece in 0..15u64 {
                            let (told, answers) = (told.clone(), answers.clone());
                            let done = move |r: Result<&[u8], ReadError>| {
                                assert_eq!(r.unwrap().len(), 2000);
                                answers.fetch_add(1, Ordering::SeqCst);
                                told.send(()).unwrap();
                            };
                            let offset = (piece + 1) * u64::from(PIECE) - 1000;
                            let ticket = reader.read(offset, 2000, Box::new(done));
                            if (piece + thread) % 3 == 0 {
                                std::thread::yield_now();
                            }
                            // Kept for good: only an answer ends it.
                            std::mem::forget(ticket);
                        }
                    });
                }
                scope.spawn(|| (0..16).for_each(|piece| complete(&shared, piece)));
            });
            for _ in 0..60 {
                done.recv_timeout(LONG).expect("an answer");
            }
            assert!(shared.notifier.waiters().is_empty());
            assert!(shared.notifier.is_empty());
        }
        assert!(workers.stop(LONG).is_empty());
        assert_eq!(answers.load(Ordering::SeqCst), 6000);
    }

    #[test]
    fn waking_failing_and_dropping_race_for_one_answer() {
        let workers = Workers::start(2).unwrap();
        let (answered, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        struct Reply(Arc<AtomicUsize>, Arc<AtomicUsize>, bool);
        impl Drop for Reply {
            fn drop(&mut self) {
                let which = if self.2 { &self.0 } else { &self.1 };
                which.fetch_add(1, Ordering::SeqCst);
            }
        }
        for _ in 0..500 {
            let shared = shared(&workers, 1);
            let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
            let mut reply = Reply(answered.clone(), dropped.clone(), false);
            let ticket = reader.read(
                0,
                10,
                Box::new(move |_| {
                    assert!(!std::mem::replace(&mut reply.2, true), "answered twice");
                }),
            );
            let id = shared.notifier.waiters()[0].id;
            std::thread::scope(|scope| {
                scope.spawn(|| complete(&shared, 0));
                scope.spawn(|| shared.fail_id(id, &ReadError::Full));
                scope.spawn(move || drop(ticket));
            });
            assert!(shared.notifier.waiters().is_empty());
            assert!(shared.notifier.is_empty());
        }
        assert!(workers.stop(LONG).is_empty());
        assert_eq!(answered.load(Ordering::SeqCst) + dropped.load(Ordering::SeqCst), 500);
    }

    #[test]
    fn o3_after_the_end_what_is_here_is_served_and_the_rest_fails_at_once() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, 4);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        complete(&shared, 0);
        let (_ticket, waiting) = read(&reader, u64::from(PIECE), 10);
        shared.fail_all(&ReadError::Closed);
        assert_eq!(waiting.recv_timeout(LONG).unwrap(), Err(ReadError::Closed));
        let (_ticket, late) = read(&reader, u64::from(PIECE), 10);
        assert_eq!(late.recv_timeout(LONG).unwrap(), Err(ReadError::Closed));
        let (_ticket, here) = read(&reader, 0, 10);
        assert_eq!(here.recv_timeout(LONG).unwrap().unwrap(), [7; 10]);
        workers.stop(LONG);
    }
}
