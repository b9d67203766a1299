//! The blocking work of a torrent, done by the storage workers: hashing, reading, writing, recording.
//!
//! Each job that was begun answers exactly once through the owner's channel, also when it panics: an
//! [`Answer`] carries what to say then. So no piece stays "being verified" for ever (row P3). A piece is hashed by
//! any worker and written by one at a time, which may be another: its answer goes with it.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::blame::Digest;
use super::effects::Verdict;
use super::inbox::Inbox;
use super::prepare::{self, Home};
use super::reads::{ReadError, Shared};
use super::recent::Recent;
use crate::hash;
use crate::metainfo::geometry::PieceIndex;
use crate::metainfo::info::Info;
use crate::peer::buffer::PieceBuffer;
use crate::peer::wire::BlockRequest;
use crate::storage::StorageError;
use crate::storage::combine::Write;
use crate::storage::pool::{Class, Workers};
use crate::storage::resume::{self, ResumeData};
use crate::storage::verify::{Checked, check_piece};

/// What came of a job.
pub(super) enum Work {
    /// The storage is open.
    Prepared(Result<Arc<Shared>, StorageError>),
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
        /// Whether it is right.
        good: bool,
    },
    /// What is complete was recorded.
    Persisted(Result<(), StorageError>),
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

/// Hashes and writes a received piece. False when the workers have no room; nothing is said then.
pub(super) fn verify(
    shared: &Arc<Shared>,
    buffer: &Arc<PieceBuffer>,
    digests: bool,
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
                let right = Right { shared: job_shared.clone(), buffer: job_buffer, offset, digests, answer };
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
        let verdict = match result {
            Ok(()) => {
                let len = self.shared.info.geometry.piece_len(piece) as usize;
                // Before the answer: who is woken by it finds the piece.
                self.shared.recent.keep(&self.buffer, len);
                Verdict::Good
            }
            Err(error) => {
                tracing::error!(torrent = %self.shared.info.name, "a piece could not be written: {error}");
                Verdict::Unwritten(error.into())
            }
        };
        self.answer.say(Work::Verified { piece, verdict, digests: self.digests });
    }
}

/// Hashes a piece that may be on disk. False when the workers have no room; nothing is said then.
pub(super) fn check(shared: &Arc<Shared>, piece: PieceIndex, to: &mpsc::Sender<Work>) -> bool {
    let (job_shared, job_to) = (shared.clone(), to.clone());
    let job = Box::new(move |scratch: &mut crate::storage::pool::Scratch| {
        let answer = Answer::new(&job_to, Work::Checked { piece, good: false });
        let info = &job_shared.info;
        let hash = info.hashes.piece(piece);
        let right = |bytes: &[u8]| {
            let blocks: Vec<&[u8]> = bytes.chunks(crate::metainfo::geometry::BLOCK_LEN as usize).collect();
            hash.as_ref().is_some_and(|h| h.verify(&blocks))
        };
        let good = match check_piece(&*job_shared.store, &info.geometry, piece, scratch, right) {
            Ok(checked) => checked == Checked::Good,
            Err(error) => {
                tracing::warn!(torrent = %info.name, "a piece could not be checked, so it is fetched: {error}");
                false
            }
        };
        answer.say(Work::Checked { piece, good });
    });
    shared.workers.submit(Class::Verify, job).is_ok()
}

/// Opens the storage. False when the workers are closed.
pub(super) fn prepare(
    workers: &Arc<Workers>,
    home: &Home,
    trust: bool,
    info: Arc<Info>,
    inbox: &Arc<Inbox>,
    recent: &Arc<Recent>,
    to: &mpsc::Sender<Work>,
) -> bool {
    let (home, job_workers, inbox) = (home.clone(), workers.clone(), inbox.clone());
    let recent = recent.clone();
    let answer = Answer::new(to, Work::Prepared(Err(StorageError::Closed)));
    let job = Box::new(move |_: &mut _| {
        let prepared = prepare::prepare(&home, trust, info, job_workers, inbox, &recent);
        answer.say(Work::Prepared(prepared));
    });
    workers.submit(Class::Read, job).is_ok()
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
pub(super) fn keep_metadata(workers: &Workers, home: &Home, raw: Vec<u8>) {
    let dir = home.dir.clone();
    let job = Box::new(move |_: &mut _| {
        if let Err(error) = resume::save_metadata(&dir, &raw) {
            tracing::warn!("the metadata could not be kept for the next time: {error}");
        }
    });
    // Refused only when the program ends; then it is fetched again the next time.
    let _ = workers.submit(Class::Verify, job);
}

/// Records what is complete at this moment, after its data was synced. False when the workers have no room.
pub(super) fn persist(shared: &Arc<Shared>, home: &Home, clean: bool, to: &mpsc::Sender<Work>) -> bool {
    let data = ResumeData {
        info_hash: home.key.clone(),
        pieces: shared.table.len(),
        complete: shared.table.bitfield(),
        clean,
    };
    let (job_shared, home) = (shared.clone(), home.clone());
    let answer = Answer::new(to, Work::Persisted(Err(StorageError::Closed)));
    // At the end nothing else is to be done, and somebody waits for it.
    let class = if clean { Class::Verify } else { Class::Background };
    let job = Box::new(move |_: &mut _| {
        answer.say(Work::Persisted(resume::persist(&*job_shared.store, &home.dir, &data)));
    });
    match shared.workers.submit(class, job) {
        Ok(()) => true,
        Err(job) => {
            drop(job);
            false
        }
    }
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
        match job_shared.fetch_to_serve(offset, buf) {
            Ok(()) => served.data = Some(Bytes::copy_from_slice(buf)),
            Err(error) => {
                tracing::warn!(torrent = %job_shared.info.name, "reading for a peer failed: {error}");
            }
        }
    });
    shared.workers.submit(Class::Serve, job).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::metainfo::build::TorrentBuilder;
    use crate::metainfo::geometry::BlockIndex;
    use crate::peer::PeerKey;
    use crate::storage::Store;
    use crate::torrent::table::{PieceState, PieceTable};

    #[test]
    fn an_answer_is_given_once_whatever_happens() {
        let (to, mut answers) = mpsc::channel(4);
        let checked = |good| Work::Checked { piece: PieceIndex(1), good };
        Answer::new(&to, checked(false)).say(checked(true));
        let answer = Answer::new(&to, checked(false));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _answer = answer;
            std::panic::panic_any("in the middle");
        }));
        assert!(panicked.is_err());
        drop(to);
        let mut said = Vec::new();
        while let Some(Work::Checked { good, .. }) = answers.blocking_recv() {
            said.push(good);
        }
        assert_eq!(said, [true, false]);
    }

    /// Takes all pieces but the second, which finds the disk full, and panics at the fourth.
    struct Picky;

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
        fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
            Ok(())
        }
        fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
            Ok(Vec::new())
        }
        fn close(&self) {}
    }

    const PIECE: u64 = 16 * 1024;

    #[test]
    fn each_piece_has_its_own_verdict_and_what_is_written_is_kept() {
        let workers = Workers::start(2).unwrap();
        let bytes = |piece: u32| vec![piece as u8; PIECE as usize];
        let mut builder = TorrentBuilder::new("t", PIECE as u32);
        builder.single_file(8 * PIECE).piece_hashes((0..8).map(|piece| hash::sha1(&bytes(piece))));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let table = Arc::new(PieceTable::new(8, PieceState::Missing));
        let shared = Shared::new(info, table, Arc::new(Picky), workers.clone(), Arc::default());
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
            assert!(verify(&shared, &Arc::new(buffer), piece == 4, &to));
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
