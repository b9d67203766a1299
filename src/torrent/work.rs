//! The blocking work of a torrent, done by the storage workers: hashing, reading, writing, recording.
//!
//! Each job that was begun answers exactly once through the owner's channel, also when it panics: an
//! [`Answer`] carries what to say then. So no piece stays "being verified" for ever (row P3). A piece is hashed by
//! any worker and written by one at a time, which may be another: its answer goes with it.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::blame::Digest;
use super::effects::{Looked, Verdict};
use super::prepare::{self, Home, Means, Opening, Prepared};
use super::reads::{ReadError, Shared};
use super::records::Record;
use super::table::{PieceState, bit};
use crate::hash;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::info::Info;
use crate::peer::buffer::PieceBuffer;
use crate::peer::wire::BlockRequest;
use crate::storage::StorageError;
use crate::storage::combine::Write;
use crate::storage::pool::{Class, Workers};
use crate::storage::quota::Reservation;
use crate::storage::resume;
use crate::storage::tally::Tally;
use crate::storage::verify::{Checked, check_piece};

/// A torrent that can be read.
pub(super) struct Ready {
    /// All that is shared of it.
    pub(super) shared: Arc<Shared>,
    /// What its pieces take that are here, or may be, in bytes.
    pub(super) kept: u64,
    /// What keeping its dearest piece takes, in bytes.
    pub(super) dearest: u64,
    /// What the record on the disk calls complete.
    pub(super) recorded: Vec<u8>,
    /// Whether that record tells sizes and times of files.
    pub(super) clean: bool,
}

/// What came of a job.
pub(super) enum Work {
    /// The storage is open.
    Prepared(Result<Ready, StorageError>),
    /// Metadata kept from an earlier run, if there is any.
    Recalled(Option<Bytes>),
    /// A received piece was hashed.
    Verified {
        /// The piece.
        piece: PieceIndex,
        /// What came of it.
        verdict: Verdict,
        /// The digests of its blocks, where wanted.
        digests: Vec<Digest>,
    },
    /// A piece on disk was hashed.
    Checked {
        /// The piece.
        piece: PieceIndex,
        /// What came of it.
        looked: Looked,
    },
    /// What was written was synced.
    Synced(Result<(), StorageError>),
    /// What is complete was recorded.
    Recorded(Result<(), StorageError>),
    /// What pieces took that aren't here any more was given back, or can't be.
    Discarded {
        /// The pieces whose room is there for others now.
        freed: Vec<PieceIndex>,
        /// Those that take what they took.
        kept: Vec<PieceIndex>,
        /// Whether it is no use trying again: what they lie on can't do it.
        never: bool,
    },
    /// Files were taken as they are now.
    Mended,
    /// The metadata was kept for the next run, or could not be.
    Kept,
    /// The sums were kept for the next run, or could not be.
    Tallied,
}

/// Says something exactly once: what it is told to, or on being dropped what it was made with.
struct Answer {
    to: mpsc::Sender<Work>,
    otherwise: Option<Work>,
}

impl Answer {
    fn new(to: &mpsc::Sender<Work>, otherwise: Work) -> Self {
        Self { to: to.clone(), otherwise: Some(otherwise) }
    }

    fn say(mut self, work: Work) {
        self.otherwise = Some(work);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(work) = self.otherwise.take() else { return };
        let Err(mpsc::error::TrySendError::Full(work)) = self.to.try_send(work) else { return };
        // The owner lags by thousands of jobs: a worker can wait for it. On the runtime, where waiting is not
        // allowed, this drops a job that was refused, and its caller knows.
        if tokio::runtime::Handle::try_current().is_err() {
            let _ = self.to.blocking_send(work);
        }
    }
}

/// What is said of a piece whose job panicked.
fn undone() -> Verdict {
    Verdict::Unwritten(ReadError::Io("an internal error while a piece was checked; please report it".into()))
}

/// Hashes and writes a received piece, for which there is room. False when the workers have no room; nothing is said
/// then.
pub(super) fn verify(
    shared: &Arc<Shared>,
    buffer: &Arc<PieceBuffer>,
    digests: bool,
    room: Reservation,
    to: &mpsc::Sender<Work>,
) -> bool {
    let piece = buffer.piece();
    let otherwise = Work::Verified { piece, verdict: undone(), digests: Vec::new() };
    let (job_shared, job_buffer, job_to) = (shared.clone(), buffer.clone(), to.clone());
    let job = Box::new(move |_: &mut _| {
        let answer = Answer::new(&job_to, otherwise);
        match hash(&job_shared, &job_buffer, digests) {
            (true, digests) => {
                let offset = job_shared.info.geometry.piece_offset(piece);
                let right =
                    Right { shared: job_shared.clone(), buffer: job_buffer, offset, digests, room, answer };
                job_shared.writes.write(&*job_shared.store, right);
            }
            (false, digests) => answer.say(Work::Verified { piece, verdict: Verdict::Bad, digests }),
        }
    });
    shared.workers.submit(Class::Verify, job).is_ok()
}

/// Whether a received piece is right, and its blocks' digests, where wanted or where it isn't.
fn hash(shared: &Shared, buffer: &PieceBuffer, digests: bool) -> (bool, Vec<Digest>) {
    let Some(blocks) = buffer.blocks() else { return (false, Vec::new()) };
    let good = shared.info.hashes.piece(buffer.piece()).is_some_and(|h| h.verify(&blocks));
    let digests = if digests || !good { blocks.iter().map(|b| hash::sha1(b)).collect() } else { Vec::new() };
    (good, digests)
}

/// A received piece whose hash is right, to be written.
pub(super) struct Right {
    shared: Arc<Shared>,
    buffer: Arc<PieceBuffer>,
    /// Where it begins in the torrent's linear space.
    offset: u64,
    digests: Vec<Digest>,
    room: Reservation,
    answer: Answer,
}

impl Write for Right {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn parts(&self) -> Vec<IoSlice<'_>> {
        self.buffer.blocks().unwrap_or_default().into_iter().map(|b| IoSlice::new(b)).collect()
    }

    fn done(self, result: Result<(), StorageError>) {
        let piece = self.buffer.piece();
        let len = self.shared.info.geometry.piece_len(piece) as usize;
        let verdict = match result {
            Ok(()) => {
                // Before the answer: who is woken by it finds the piece.
                self.shared.recent.keep(&self.buffer, len);
                self.shared.charge(self.room.bytes());
                self.room.keep();
                Verdict::Good
            }
            Err(error) => {
                match error {
                    // The keeper makes room, or says that there is none.
                    StorageError::Full { .. } => tracing::debug!("a piece could not be written: {error}"),
                    _ => {
                        tracing::error!(torrent = %self.shared.info.name, "a piece could not be written: {error}");
                    }
                }
                match error {
                    StorageError::Short { .. } | StorageError::Changed { .. } => {
                        self.shared.suspect(self.offset, len, &error);
                        Verdict::Harmed
                    }
                    // The sync that failed tells, once for all that it took along.
                    StorageError::Unsynced { .. } => Verdict::Harmed,
                    _ => Verdict::Unwritten(error.into()),
                }
            }
        };
        self.answer.say(Work::Verified { piece, verdict, digests: self.digests });
    }
}

/// Why a piece on the disk is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Somebody wants it, and nobody knows whether it is here.
    Wanted,
    /// By the full check: nobody knows whether it is here.
    Unknown,
    /// By the full check: it counts as complete.
    Recorded,
}

/// Hashes a piece that may be on disk. False when the workers have no room; nothing is said then.
pub(super) fn check(shared: &Arc<Shared>, piece: PieceIndex, why: Check, to: &mpsc::Sender<Work>) -> bool {
    let (job_shared, job_to) = (shared.clone(), to.clone());
    let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
        let looked =
            |good| if why == Check::Recorded { Looked::Recorded(good) } else { Looked::Unsure(good) };
        let answer = Answer::new(&job_to, Work::Checked { piece, looked: looked(false) });
        let info = &job_shared.info;
        tracing::debug!(torrent = %info.name, piece = piece.0, "hashing a piece on the disk");
        // While what is recorded is looked at, it stays.
        let pins = job_shared.table.hold(piece.0..piece.0 + 1);
        if why == Check::Recorded && pins.is_none() {
            // It went before its turn came. What may have come in its place was hashed then.
            return answer.say(Work::Checked { piece, looked: Looked::Nothing });
        }
        let hash = info.hashes.piece(piece);
        let right = |bytes: &[u8]| {
            let blocks: Vec<&[u8]> = bytes.chunks(crate::metainfo::geometry::BLOCK_LEN as usize).collect();
            hash.as_ref().is_some_and(|h| h.verify(&blocks))
        };
        let looked = match check_piece(&*job_shared.store, &info.geometry, piece, scratch, right) {
            Ok(checked) => looked(checked == Checked::Good),
            // The end, which says nothing against it.
            Err(StorageError::Closed) if why == Check::Recorded => Looked::Nothing,
            Err(error) => {
                tracing::warn!(torrent = %info.name, "a piece could not be checked, so it is fetched: {error}");
                job_shared.heed(
                    info.geometry.piece_offset(piece),
                    info.geometry.piece_len(piece).into(),
                    &error,
                );
                looked(false)
            }
        };
        if looked == Looked::Unsure(true) {
            // Nobody knows who wrote it, and whether it would outlive a power cut.
            let start = info.geometry.piece_offset(piece);
            job_shared.store.adopt(start..start + u64::from(info.geometry.piece_len(piece)));
        }
        // Said while it is held: of what is here after it had gone, this says nothing.
        answer.say(Work::Checked { piece, looked });
        drop(pins);
    });
    let class = match why {
        Check::Wanted => Class::Verify,
        Check::Unknown | Check::Recorded => Class::Background,
    };
    shared.workers.submit(class, job).is_ok()
}

/// Opens the storage. False when the workers are closed.
pub(super) fn prepare(
    home: &Home,
    how: Opening,
    info: Arc<Info>,
    means: Means,
    to: &mpsc::Sender<Work>,
) -> bool {
    let (home, workers) = (home.clone(), means.workers.clone());
    let answer = Answer::new(to, Work::Prepared(Err(StorageError::Closed)));
    let job = Box::new(move |_: &mut _| {
        let ready = prepare::prepare(&home, how, info, means).map(|prepared| {
            let Prepared { shared, recorded, clean } = prepared;
            let dearest = (0..shared.table.len()).map(|p| shared.cost(PieceIndex(p))).max();
            Ready { kept: kept(&shared), dearest: dearest.unwrap_or(0), shared, recorded, clean }
        });
        answer.say(Work::Prepared(ready));
    });
    workers.submit(Class::Read, job).is_ok()
}

/// What the pieces take that are here, or may be.
fn kept(shared: &Shared) -> u64 {
    let here = |piece: &PieceIndex| match shared.table.state(*piece) {
        PieceState::Complete | PieceState::Unknown => true,
        PieceState::Missing | PieceState::Requested | PieceState::Verifying => false,
    };
    (0..shared.table.len()).map(PieceIndex).filter(here).map(|piece| shared.cost(piece)).sum()
}

/// Looks for metadata kept from an earlier run.
pub(super) fn recall(workers: &Workers, home: &Home, to: &mpsc::Sender<Work>) {
    let dir = home.dir.clone();
    let answer = Answer::new(to, Work::Recalled(None));
    let job = Box::new(move |_: &mut _| answer.say(Work::Recalled(prepare::kept_metadata(&dir))));
    // Refused only when the program ends.
    let _ = workers.submit(Class::Read, job);
}

/// Keeps metadata for the next run.
pub(super) fn keep_metadata(workers: &Workers, home: &Home, raw: Vec<u8>, to: &mpsc::Sender<Work>) {
    let dir = home.dir.clone();
    let answer = Answer::new(to, Work::Kept);
    let job = Box::new(move |_: &mut _| {
        let _answer = answer;
        if let Err(error) = resume::save_metadata(&dir, &raw) {
            tracing::warn!("the metadata could not be kept for the next time: {error}");
        }
    });
    // Refused only when the program ends; then it is fetched again the next time.
    let _ = workers.submit(Class::Verify, job);
}

/// Keeps the sums for the next run. False when the workers have no room; nothing is said then.
pub(super) fn tally(workers: &Workers, home: &Home, tally: Tally, to: &mpsc::Sender<Work>) -> bool {
    let dir = home.dir.clone();
    let answer_to = to.clone();
    let job = Box::new(move |_: &mut _| {
        let answer = Answer::new(&answer_to, Work::Tallied);
        if let Err(error) = tally.keep(&dir) {
            tracing::warn!("what was given back could not be kept for the next time: {error}");
        }
        answer.say(Work::Tallied);
    });
    workers.submit(Class::Verify, job).is_ok()
}

/// Syncs what was written. False when the workers have no room; nothing is said then.
pub(super) fn sync(shared: &Arc<Shared>, last: bool, to: &mpsc::Sender<Work>) -> bool {
    let job_shared = shared.clone();
    let job_to = to.clone();
    let job = Box::new(move |_: &mut _| {
        let answer = Answer::new(&job_to, Work::Synced(Err(StorageError::Closed)));
        answer.say(Work::Synced(job_shared.store.sync()));
    });
    shared.workers.submit(class(last), job).is_ok()
}

/// At the end nothing else is to be done, and somebody waits for it.
fn class(last: bool) -> Class {
    if last { Class::Verify } else { Class::Background }
}

/// Writes the record, and gives files their names that are whole by it. `urgent` when something waits for it. False
/// when the workers have no room; nothing is said then.
pub(super) fn record(
    shared: &Arc<Shared>,
    home: &Home,
    record: &Record,
    urgent: bool,
    to: &mpsc::Sender<Work>,
) -> bool {
    let (job_shared, home, record) = (shared.clone(), home.clone(), record.clone());
    let job_to = to.clone();
    let job = Box::new(move |_: &mut _| {
        let answer = Answer::new(&job_to, Work::Recorded(Err(StorageError::Closed)));
        let saved = prepare::save(&job_shared, &home, &record);
        if saved.is_ok() {
            finish(&job_shared, &record);
        }
        answer.say(Work::Recorded(saved));
    });
    shared.workers.submit(class(urgent), job).is_ok()
}

/// Gives the files of new pieces their own names, as far as they are whole by this record.
fn finish(shared: &Shared, record: &Record) {
    let geometry = &shared.info.geometry;
    let piece = |p: &PieceIndex| geometry.spans(geometry.piece_offset(*p), geometry.piece_len(*p).into());
    let mut files: BTreeSet<FileIndex> = record.new.iter().flat_map(piece).map(|span| span.file).collect();
    if !files.is_empty() && (0..geometry.pieces()).all(|p| bit(&record.complete, p)) {
        // Those without a byte come with the rest.
        let all = (0..).map(FileIndex).take(geometry.files().len());
        files.extend(all.filter(|file| geometry.file_pieces(*file).is_empty()));
    }
    for file in files {
        if geometry.file_pieces(file).all(|p| bit(&record.complete, p))
            && let Err(error) = shared.store.finish(file)
        {
            tracing::warn!(torrent = %shared.info.name, "a file is whole, and can't be given its name: {error}");
            if let Some(extent) = geometry.files().get(file.0 as usize) {
                shared.heed(extent.offset, extent.len, &error);
            }
        }
    }
}

/// Gives back what pieces take that aren't here any more. False when the workers have no room; nothing is said then.
pub(super) fn discard(shared: &Arc<Shared>, pieces: Vec<PieceIndex>, to: &mpsc::Sender<Work>) -> bool {
    let (job_shared, job_to) = (shared.clone(), to.clone());
    let job = Box::new(move |_: &mut _| {
        let otherwise = Work::Discarded { freed: Vec::new(), kept: pieces.clone(), never: false };
        let answer = Answer::new(&job_to, otherwise);
        let (shared, turn) = (job_shared.clone(), job_shared);
        // No write may come between the look at the neighbours and the hole.
        turn.writes.exclusively(
            &*turn.store,
            Box::new(move || {
                answer.say(give_back(&shared, &pieces));
            }),
        );
    });
    shared.workers.submit(Class::Verify, job).is_ok()
}

/// Waits until what was being written of a torrent whose store is closed is written.
pub(super) async fn written(shared: &Arc<Shared>) {
    let (done, answer) = oneshot::channel();
    let turn = shared.clone();
    let job = Box::new(move |_: &mut _| {
        // What comes later finds the store closed.
        turn.writes.exclusively(&*turn.store, Box::new(move || _ = done.send(())));
    });
    // Refused only when the program ends; an error says that it is over, too.
    if shared.workers.submit(Class::Verify, job).is_ok() {
        let _ = answer.await;
    }
}

/// How far beyond a piece its missing neighbours are looked at: no file system has larger blocks.
const AROUND: u64 = 1 << 20;

/// Gives back what it can, and says what that was.
fn give_back(shared: &Shared, pieces: &[PieceIndex]) -> Work {
    let geometry = &shared.info.geometry;
    let end = |piece: PieceIndex| geometry.piece_offset(piece) + u64::from(geometry.piece_len(piece));
    // Not written yet, or never again as it was.
    let worthless = |piece: u32| match shared.table.state(PieceIndex(piece)) {
        PieceState::Missing | PieceState::Requested => true,
        PieceState::Unknown | PieceState::Verifying | PieceState::Complete => false,
    };
    // Somebody is reading what was lost under their hands: they look again when they have read, and until then it is
    // neither taken away nor written anew.
    let (pieces, mut kept): (Vec<PieceIndex>, Vec<PieceIndex>) =
        pieces.iter().copied().partition(|p| !shared.table.is_held(*p));
    let (mut freed, mut never) = (Vec::new(), false);
    let mut said = String::new();
    let mut sorted: Vec<u32> = pieces.iter().map(|p| p.0).collect();
    sorted.sort_unstable();
    for run in sorted.chunk_by(|a, b| a + 1 == *b) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let range = geometry.piece_offset(PieceIndex(*first))..end(PieceIndex(*last));
        let mut around = range.clone();
        for before in (0..*first).rev().take_while(|p| worthless(*p)) {
            around.start = geometry.piece_offset(PieceIndex(before));
            if range.start - around.start >= AROUND {
                break;
            }
        }
        for after in (*last + 1..geometry.pieces()).take_while(|p| worthless(*p)) {
            around.end = end(PieceIndex(after));
            if around.end - range.end >= AROUND {
                break;
            }
        }
        let pieces = run.iter().copied().map(PieceIndex);
        match shared.store.discard(range.clone(), around) {
            Ok(()) => freed.extend(pieces),
            Err(error) => {
                // Once for all parts of a file.
                let why = error.to_string();
                if why != said {
                    tracing::warn!(torrent = %shared.info.name, "room couldn't be given back: {why}");
                    said = why;
                }
                never |= matches!(error, StorageError::Unsupported { .. });
                shared.heed(range.start, range.end - range.start, &error);
                kept.extend(pieces);
            }
        }
    }
    Work::Discarded { freed, kept, never }
}

/// Takes files as they are now. False when the workers have no room; nothing is said then.
pub(super) fn mend(shared: &Arc<Shared>, files: Vec<FileIndex>, to: &mpsc::Sender<Work>) -> bool {
    let (job_shared, job_to) = (shared.clone(), to.clone());
    let job = Box::new(move |_: &mut _| {
        let _answer = Answer::new(&job_to, Work::Mended);
        for file in files {
            if let Err(error) = job_shared.store.reopen(file) {
                tracing::warn!(torrent = %job_shared.info.name, "a file can't be opened again: {error}");
            }
        }
    });
    shared.workers.submit(Class::Verify, job).is_ok()
}

/// Answers a session on being dropped, also when the job panics: it counts the blocks that are being read.
struct Served {
    to: mpsc::Sender<(BlockRequest, Option<Bytes>)>,
    request: BlockRequest,
    data: Option<Bytes>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // The session keeps room for the answer.
        let _ = self.to.try_send((self.request, self.data.take()));
    }
}

/// Reads a block for a peer. False when it isn't here or the workers have no room.
pub(super) fn serve(
    shared: &Arc<Shared>,
    request: BlockRequest,
    to: mpsc::Sender<(BlockRequest, Option<Bytes>)>,
) -> bool {
    if !shared.table.is_complete(request.piece) {
        return false;
    }
    let job_shared = shared.clone();
    let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
        let mut served = Served { to, request, data: None };
        let buf = scratch.buffer(request.len as usize);
        let offset = job_shared.info.geometry.piece_offset(request.piece) + u64::from(request.begin);
        let hold = || job_shared.table.hold(request.piece.0..request.piece.0 + 1);
        match job_shared.while_held(hold, || job_shared.fetch_to_serve(offset, buf)) {
            Some(Ok(())) => served.data = Some(Bytes::copy_from_slice(buf)),
            Some(Err(error)) => job_shared.suspect(offset, request.len as usize, &error),
            // It has gone meanwhile.
            None => {}
        }
    });
    shared.workers.submit(Class::Serve, job).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::metainfo::build::TorrentBuilder;
    use crate::metainfo::geometry::BlockIndex;
    use crate::peer::PeerKey;
    use crate::storage::Store;
    use crate::storage::quota::Quota;
    use crate::torrent::inbox::Demand;
    use crate::torrent::recent::Recent;
    use crate::torrent::table::{PieceState, PieceTable};

    fn room() -> Reservation {
        Arc::new(Quota::new(None)).reserve(1).unwrap()
    }

    #[test]
    fn an_answer_is_given_once_whatever_happens() {
        let (to, mut answers) = mpsc::channel(4);
        let checked = |good| Work::Checked { piece: PieceIndex(1), looked: Looked::Unsure(good) };
        Answer::new(&to, checked(false)).say(checked(true));
        let answer = Answer::new(&to, checked(false));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _answer = answer;
            std::panic::panic_any("in the middle");
        }));
        assert!(panicked.is_err());
        drop(to);
        let mut said = Vec::new();
        while let Some(Work::Checked { looked, .. }) = answers.blocking_recv() {
            said.push(looked);
        }
        assert_eq!(said, [Looked::Unsure(true), Looked::Unsure(false)]);
    }

    /// Takes all pieces but the second, which finds the disk full, and panics at the fourth. Gives back all but the
    /// second, and the seventh, at whose file somebody was; remembers what it was to adopt.
    struct Picky(std::sync::mpsc::Sender<std::ops::Range<u64>>);

    impl Store for Picky {
        fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
            let end = offset + parts.iter().map(|part| part.len() as u64).sum::<u64>();
            let touches = |piece: u64| offset < (piece + 1) * PIECE && end > piece * PIECE;
            assert!(!touches(3), "on purpose");
            match touches(1) {
                true => Err(StorageError::Full { path: "/x".into() }),
                false => Ok(()),
            }
        }
        fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            buf.fill(0);
            Ok(())
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
            Ok(false)
        }
        fn sync(&self) -> Result<(), StorageError> {
            Ok(())
        }
        fn adopt(&self, range: std::ops::Range<u64>) {
            self.0.send(range).unwrap();
        }
        fn discard(&self, range: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
            match (range.contains(&PIECE), range.contains(&(6 * PIECE))) {
                (true, _) => Err(StorageError::Full { path: "/x".into() }),
                (_, true) => Err(StorageError::Changed { path: "/x".into() }),
                (false, false) => Ok(()),
            }
        }
        fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
            Ok(Vec::new())
        }
        fn close(&self) {}
    }

    const PIECE: u64 = 16 * 1024;

    fn shared(workers: &Arc<Workers>, store: Picky) -> Arc<Shared> {
        let bytes = |piece: u32| vec![piece as u8; PIECE as usize];
        let mut builder = TorrentBuilder::new("t", PIECE as u32);
        builder.single_file(8 * PIECE).piece_hashes((0..8).map(|piece| hash::sha1(&bytes(piece))));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let table = Arc::new(PieceTable::new(8, PieceState::Missing));
        Arc::new(Shared::new(info, table, Arc::new(store), workers.clone(), Arc::default()))
    }

    #[test]
    fn s2_what_is_read_is_not_given_back_under_the_readers_hands() {
        let workers = Workers::start(1).unwrap();
        let shared = shared(&workers, Picky(std::sync::mpsc::channel().0));
        let pieces: Vec<PieceIndex> = (0..6).map(PieceIndex).collect();
        let outcome = |shared: &Shared| match give_back(shared, &pieces) {
            Work::Discarded { mut kept, freed, never: false } => {
                kept.sort();
                let numbers = |pieces: Vec<PieceIndex>| pieces.iter().map(|p| p.0).collect::<Vec<_>>();
                (numbers(freed), numbers(kept))
            }
            _ => panic!("something else was said"),
        };
        shared.table.set(PieceIndex(3), PieceState::Complete);
        let pins = shared.table.hold(3..4);
        // The disk failed to keep it.
        shared.table.set(PieceIndex(3), PieceState::Missing);
        assert_eq!(outcome(&shared), (vec![4, 5], vec![0, 1, 2, 3]), "one can't be, and its run with it");
        drop(pins);
        assert_eq!(outcome(&shared), (vec![], vec![0, 1, 2, 3, 4, 5]));
        assert!(shared.inbox.take().is_empty());
        give_back(&shared, &[PieceIndex(6)]);
        let told = shared.inbox.take();
        assert!(
            matches!(&told[..], [Demand::Suspect { pieces, files }] if *pieces == (6..7) && files[..] == [FileIndex(0)]),
            "what else is in the file is checked"
        );
        workers.stop(std::time::Duration::from_secs(20));
    }

    #[test]
    fn c2_what_was_not_looked_at_is_not_called_good_and_what_was_is_made_durable() {
        let workers = Workers::start(1).unwrap();
        let (adopted, told) = std::sync::mpsc::channel();
        let shared = shared(&workers, Picky(adopted));
        let (to, mut answers) = mpsc::channel(4);
        // The store gives zeros: the first piece is right, and the second isn't.
        let rows = [
            (0, PieceState::Complete, Check::Recorded, Looked::Recorded(true)),
            (1, PieceState::Complete, Check::Recorded, Looked::Recorded(false)),
            (0, PieceState::Verifying, Check::Recorded, Looked::Nothing),
            (0, PieceState::Missing, Check::Recorded, Looked::Nothing),
            (0, PieceState::Verifying, Check::Wanted, Looked::Unsure(true)),
            (1, PieceState::Verifying, Check::Unknown, Looked::Unsure(false)),
        ];
        for (piece, state, why, expected) in rows {
            let piece = PieceIndex(piece);
            shared.table.set(piece, state);
            assert!(check(&shared, piece, why, &to));
            match answers.blocking_recv() {
                Some(Work::Checked { looked, .. }) => {
                    assert_eq!(looked, expected, "{piece:?} {state:?} {why:?}")
                }
                _ => panic!("something else was said"),
            }
        }
        assert!(told.try_iter().eq(std::iter::once(0..PIECE)));
        workers.stop(std::time::Duration::from_secs(20));
    }

    #[test]
    fn each_piece_has_its_own_verdict_and_what_is_written_is_kept() {
        let workers = Workers::start(2).unwrap();
        let bytes = |piece: u32| vec![piece as u8; PIECE as usize];
        let mut builder = TorrentBuilder::new("t", PIECE as u32);
        builder.single_file(8 * PIECE).piece_hashes((0..8).map(|piece| hash::sha1(&bytes(piece))));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let table = Arc::new(PieceTable::new(8, PieceState::Missing));
        let shared = Shared::new(
            info,
            table,
            Arc::new(Picky(std::sync::mpsc::channel().0)),
            workers.clone(),
            Arc::default(),
        );
        let recent = Recent::new(1 << 20);
        let shared = Arc::new(shared.keeping(&recent));
        let (to, mut answers) = mpsc::channel(64);
        for piece in [0, 1, 2, 4, 5, 7, 3] {
            let buffer = PieceBuffer::new(PieceIndex(piece), 1);
            // The sixth isn't what it should be.
            let sent = if piece == 5 { bytes(99) } else { bytes(piece) };
            assert!(buffer.put(BlockIndex(0), Bytes::from(sent), PeerKey(1)));
            if piece == 3 {
                // Alone, so that its panic can hit no other.
                while answers.len() < 6 {
                    std::thread::yield_now();
                }
            }
            assert!(verify(&shared, &Arc::new(buffer), piece == 4, room(), &to));
        }
        drop(to);
        let mut said = Vec::new();
        while let Some(Work::Verified { piece, verdict, digests }) = answers.blocking_recv() {
            said.push((piece.0, verdict, digests.len()));
        }
        said.sort_by_key(|(piece, ..)| *piece);
        let good = |piece, digests| (piece, Verdict::Good, digests);
        let expected = [
            good(0, 0),
            (1, Verdict::Unwritten(ReadError::Full), 0),
            good(2, 0),
            (3, undone(), 0),
            good(4, 1),
            (5, Verdict::Bad, 1),
            good(7, 0),
        ];
        assert_eq!(said, expected);
        let kept: Vec<u32> = shared.recent.find(0..8).iter().map(|b| b.piece().0).collect();
        assert_eq!(kept, [0, 2, 4, 7], "what was written, and nothing else");
        assert!(workers.stop(std::time::Duration::from_secs(20)).is_empty());
    }
}
