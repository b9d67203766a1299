//! Reading pieces back from the store and hashing them.
//!
//! **Goal.** To settle what nobody knows: whether a piece that may be on the disk is good. For one piece that a
//! running torrent doesn't know about ([`check_piece`]), and for all of a torrent, as fast as the disk or the
//! hashing allows (`torrentfs verify`, [`verify_all`]).
//!
//! **Flow of [`verify_all`].** Its threads take pieces in ascending order, so that a disk sees few places near each
//! other; while some hash, others read, so that neither waits for the other. Small pieces are read many at a time,
//! large ones in parts: each thread holds [`CHUNK`] bytes, whatever the size of a piece. The thread that called
//! gathers the answers and tells how far it is.
//!
//! **Not here.** What to do with the answers. Pieces that just came from peers are hashed in memory before they are
//! written, not through here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use super::{StorageError, Store};
use crate::metainfo::geometry::{Geometry, PieceIndex};
use crate::metainfo::pieces::{PieceCheck, PieceHashes};

/// What a look at a piece on the disk came to. All but [`Checked::Good`] mean: fetch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is here, and its hash is right.
    Good,
    /// Something is here, but not it.
    Bad,
    /// A file of it is missing or ends before it.
    Absent,
    /// The disk failed at reading it. Only of [`verify_all`], which goes on with the others.
    Unreadable,
}

/// Reads a piece into `scratch` and lets `verify` say whether its bytes are right. Waits for the disk: on a
/// worker only. A piece that doesn't exist is absent.
///
/// # Errors
/// Those of [`Store::read_at`], but [`StorageError::Short`], which is [`Checked::Absent`].
pub fn check_piece(
    store: &dyn Store,
    geometry: &Geometry,
    piece: PieceIndex,
    scratch: &mut super::pool::Scratch,
    verify: impl FnOnce(&[u8]) -> bool,
) -> Result<Checked, StorageError> {
    let len = geometry.piece_len(piece);
    if len == 0 {
        return Ok(Checked::Absent);
    }
    let bytes = scratch.buffer(len as usize);
    match store.read_at(geometry.piece_offset(piece), bytes) {
        Ok(()) if verify(bytes) => Ok(Checked::Good),
        Ok(()) => Ok(Checked::Bad),
        Err(StorageError::Short { .. }) => Ok(Checked::Absent),
        Err(error) => Err(error),
    }
}

/// Bytes a thread of [`verify_all`] reads at a time. Large enough that a turning disk, which has to move between
/// the places of several threads, spends most of its time reading.
const CHUNK: usize = 4 * 1024 * 1024;

/// Most threads that [`threads`] says: more than keep a fast disk busy, and their chunks take 64 MiB.
const THREADS_MAX: usize = 16;

/// How far [`verify_all`] is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pieces looked at.
    pub pieces: u32,
    /// Bytes of those pieces.
    pub bytes: u64,
    /// Pieces found good.
    pub good: u32,
    /// Bytes of the good pieces.
    pub good_bytes: u64,
}

/// Threads that suit [`verify_all`] here: two for each processor, so that one reads while the other hashes.
pub fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (2 * processors).min(THREADS_MAX)
}

/// Looks at all pieces: each has its answer in the result, `None` for those that weren't looked at because `stop` was
/// set (which is seen after each chunk). `progress` is called on the calling thread, again and again, with
/// numbers that only grow, and last when all is done. Waits for the disk and for the hashing, hours for terabytes: not
/// to be called on a worker, of which it would take one for all that time.
///
/// # Errors
/// [`StorageError::Closed`] and whatever else says nothing of a piece; [`StorageError::Io`] when no thread could be
/// started. A piece that can't be read is [`Checked::Unreadable`].
pub fn verify_all(
    store: &dyn Store,
    geometry: &Geometry,
    hashes: &PieceHashes,
    threads: usize,
    progress: &dyn Fn(Progress),
    stop: &AtomicBool,
) -> Result<Vec<Option<Checked>>, StorageError> {
    let mut found = vec![None; geometry.pieces() as usize];
    let mut so_far = Progress::default();
    let mut failed = None;
    let stopped = AtomicBool::new(false);
    let job = Job { store, geometry, hashes, next: AtomicU32::new(0), stop, stopped: &stopped };
    std::thread::scope(|scope| {
        // A thread that is ahead by more than this waits for the gathering, which is quick unless `progress` isn't.
        let (to, answers) = sync_channel(2 * THREADS_MAX);
        let mut started = 0;
        for number in 0..threads.max(1) {
            let (job, to) = (&job, to.clone());
            let thread = std::thread::Builder::new().name(format!("verify-{number}"));
            match thread.spawn_scoped(scope, move || job.run(&to)) {
                Ok(_) => started += 1,
                Err(error) if started == 0 => failed = Some(no_thread(error)),
                // Those that could be started do it all.
                Err(_) => break,
            }
        }
        drop(to);
        for answer in answers {
            match answer {
                Ok((piece, checked)) => {
                    let len = u64::from(geometry.piece_len(piece));
                    so_far.pieces += 1;
                    so_far.bytes += len;
                    if checked == Checked::Good {
                        so_far.good += 1;
                        so_far.good_bytes += len;
                    }
                    if let Some(place) = found.get_mut(piece.0 as usize) {
                        *place = Some(checked);
                    }
                    progress(so_far);
                }
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    failed.get_or_insert(error);
                }
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

fn no_thread(error: std::io::Error) -> StorageError {
    StorageError::Io { path: "a thread".into(), op: "starting", source: Arc::new(error) }
}

/// What the threads of [`verify_all`] share.
struct Job<'a> {
    store: &'a dyn Store,
    geometry: &'a Geometry,
    hashes: &'a PieceHashes,
    /// The first piece that nobody has taken.
    next: AtomicU32,
    /// The caller wants it ended.
    stop: &'a AtomicBool,
    /// A thread met an error that ends it.
    stopped: &'a AtomicBool,
}

/// Takes the answers; at its other end they are gathered.
type Answers = SyncSender<Result<(PieceIndex, Checked), StorageError>>;

impl Job<'_> {
    fn ends(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.stopped.load(Ordering::Relaxed)
    }

    /// Looks at pieces until there are none left.
    fn run(&self, to: &Answers) {
        let piece_length = self.geometry.piece_length() as usize;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(self.geometry.end()).unwrap_or(CHUNK))];
        // At least one; a number that fits, since it is at most CHUNK.
        let group = (CHUNK / piece_length.max(1)).max(1) as u32;
        while !self.ends() {
            let first = self.next.fetch_add(group, Ordering::Relaxed);
            if first >= self.geometry.pieces() {
                return;
            }
            let pieces = first..first.saturating_add(group).min(self.geometry.pieces());
            let done = match self.read_together(pieces.clone(), &mut buffer) {
                Some(bytes) => pieces.map(PieceIndex).try_for_each(|piece| {
                    let begin = (self.geometry.piece_offset(piece)
                        - self.geometry.piece_offset(PieceIndex(first)))
                        as usize;
                    let len = self.geometry.piece_len(piece) as usize;
                    let right = match (self.hashes.piece(piece), bytes.get(begin..begin + len)) {
                        (Some(hash), Some(bytes)) => {
                            let mut check = hash.check();
                            check.update(bytes);
                            check.finish()
                        }
                        _ => false,
                    };
                    let checked = if right { Checked::Good } else { Checked::Bad };
                    to.send(Ok((piece, checked))).map_err(|_| ())
                }),
                None => pieces.map(PieceIndex).try_for_each(|piece| {
                    let said = match self.read_alone(piece, &mut buffer) {
                        Ok(Some(checked)) => Ok((piece, checked)),
                        Ok(None) => return Err(()),
                        Err(error) => Err(error),
                    };
                    let ends = said.is_err();
                    to.send(said).map_err(|_| ())?;
                    if ends { Err(()) } else { Ok(()) }
                }),
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// The bytes of several whole pieces from the first one's beginning; none when that failed, or they are too
    /// many: then each is to be looked at alone.
    fn read_together<'b>(&self, pieces: std::ops::Range<u32>, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let last = PieceIndex(pieces.end.checked_sub(1)?);
        let begin = self.geometry.piece_offset(PieceIndex(pieces.start));
        let end = self.geometry.piece_offset(last) + u64::from(self.geometry.piece_len(last));
        let bytes = buffer.get_mut(..usize::try_from(end.checked_sub(begin)?).ok()?)?;
        self.store.read_at(begin, bytes).ok()?;
        Some(bytes)
    }

    /// Looks at one piece, part by part; `None` when it is to end.
    fn read_alone(&self, piece: PieceIndex, buffer: &mut [u8]) -> Result<Option<Checked>, StorageError> {
        let mut check: Option<PieceCheck> = self.hashes.piece(piece).map(|hash| hash.check());
        let mut at = self.geometry.piece_offset(piece);
        let end = at + u64::from(self.geometry.piece_len(piece));
        while at < end {
            if self.ends() {
                return Ok(None);
            }
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let Some(bytes) = buffer.get_mut(..len).filter(|bytes| !bytes.is_empty()) else { break };
            match self.store.read_at(at, bytes) {
                Ok(()) => {}
                Err(StorageError::Short { .. }) => return Ok(Some(Checked::Absent)),
                Err(error @ StorageError::Io { .. }) => {
                    tracing::warn!(piece = piece.0, "a piece can't be checked: {error}");
                    return Ok(Some(Checked::Unreadable));
                }
                Err(error) => return Err(error),
            }
            if let Some(check) = &mut check {
                check.update(bytes);
            }
            at += len as u64;
        }
        let right = check.is_some_and(PieceCheck::finish);
        Ok(Some(if right { Checked::Good } else { Checked::Bad }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::file::{FileStore, StoredFile};
    use std::io::IoSlice;

    #[test]
    fn good_bad_and_absent_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(16, &[20, 30]));
        let file = |name: &str| StoredFile { path: vec![name.to_owned()], pad: false };
        let store = FileStore::open(dir.path(), geometry.clone(), &[file("a"), file("b")]).unwrap();
        store.write_at(0, &[IoSlice::new(&[7; 16])]).unwrap();
        let mut scratch = super::super::pool::Scratch::default();
        let mut check = |piece| {
            let sevens = |bytes: &[u8]| bytes.iter().all(|b| *b == 7);
            check_piece(&store, &geometry, PieceIndex(piece), &mut scratch, sevens).unwrap()
        };
        assert_eq!(check(0), Checked::Good);
        // Its first bytes lie in the sparse part of the first file, the others in a file that isn't there.
        assert_eq!(check(1), Checked::Absent);
        assert_eq!(check(4), Checked::Absent, "no such piece");
        store.write_at(32, &[IoSlice::new(&[7; 10])]).unwrap();
        assert_eq!(check(1), Checked::Bad);
        store.close();
        let closed = check_piece(&store, &geometry, PieceIndex(0), &mut scratch, |_| true);
        assert!(matches!(closed, Err(StorageError::Closed)));
    }

    /// A torrent whose bytes are a function of their place, in a store with some of it wrong.
    struct Bench {
        geometry: Geometry,
        hashes: PieceHashes,
        store: Ram,
    }

    /// Bytes in memory; `cut` is where it ends, `broken` a place that can't be read.
    #[derive(Default)]
    struct Ram {
        bytes: Vec<u8>,
        cut: Option<u64>,
        broken: Option<u64>,
        closed: AtomicBool,
        largest: std::sync::atomic::AtomicUsize,
    }

    impl Store for Ram {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            Ok(())
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            self.largest.fetch_max(buf.len(), Ordering::SeqCst);
            let range = offset..offset + buf.len() as u64;
            if self.closed.load(Ordering::SeqCst) {
                return Err(StorageError::Closed);
            }
            if self.cut.is_some_and(|cut| cut < range.end) {
                return Err(StorageError::Short { path: "x".into(), expected: range.end, found: 0 });
            }
            if self.broken.is_some_and(|at| range.contains(&at)) {
                let eio = std::io::Error::from_raw_os_error(libc::EIO);
                return Err(StorageError::from_io(std::path::Path::new("x"), "reading", eio));
            }
            buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
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

    fn bench(piece_length: u32, len: u64) -> Bench {
        let geometry = Geometry::contiguous(piece_length, &[len]);
        let bytes: Vec<u8> =
            (0..len).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let hashes: Vec<u8> = bytes.chunks(piece_length as usize).flat_map(crate::hash::sha1).collect();
        Bench { geometry, hashes: PieceHashes::V1(hashes.into()), store: Ram { bytes, ..Ram::default() } }
    }

    impl Bench {
        fn run(
            &self,
            threads: usize,
            stop: &AtomicBool,
        ) -> (Result<Vec<Option<Checked>>, StorageError>, Vec<Progress>) {
            let told = std::cell::RefCell::new(Vec::new());
            let note = |p| told.borrow_mut().push(p);
            let found = verify_all(&self.store, &self.geometry, &self.hashes, threads, &note, stop);
            (found, told.into_inner())
        }
    }

    #[test]
    fn every_piece_has_its_answer_whatever_the_size() {
        let large = CHUNK as u32 * 2 + 16384;
        for (piece_length, len) in
            [(16384, 16384 * 700 + 5), (1 << 20, 9 << 20), (large, u64::from(large) * 2 + 77)]
        {
            for threads in [1, 4] {
                let mut bench = bench(piece_length, len);
                let pieces = bench.geometry.pieces();
                let (bad, broken) = (pieces / 2, 0);
                bench.store.bytes[bad as usize * piece_length as usize] ^= 1;
                bench.store.broken = Some(u64::from(piece_length) - 1);
                bench.store.cut = Some(len - 1);
                let (found, told) = bench.run(threads, &AtomicBool::new(false));
                let expected: Vec<Option<Checked>> = (0..pieces)
                    .map(|piece| match piece {
                        p if p == broken => Some(Checked::Unreadable),
                        p if p == bad => Some(Checked::Bad),
                        p if p == pieces - 1 => Some(Checked::Absent),
                        _ => Some(Checked::Good),
                    })
                    .collect();
                assert_eq!(found.unwrap(), expected, "pieces of {piece_length}, {threads} threads");
                let last = told.last().unwrap();
                assert_eq!((last.pieces, last.bytes, last.good), (pieces, len, pieces - 3));
                assert!(told.windows(2).all(|w| w[0].pieces + 1 == w[1].pieces && w[0].bytes < w[1].bytes));
                assert!(bench.store.largest.load(Ordering::SeqCst) <= CHUNK, "memory is bounded");
            }
        }
    }

    #[test]
    fn it_ends_when_told_and_when_the_store_is_closed() {
        let bench = bench(1 << 20, 40 << 20);
        let stop = AtomicBool::new(false);
        let count = std::cell::Cell::new(0);
        let note = |_| {
            count.set(count.get() + 1);
            stop.store(true, Ordering::SeqCst);
        };
        let found = verify_all(&bench.store, &bench.geometry, &bench.hashes, 1, &note, &stop).unwrap();
        let looked = found.iter().flatten().count();
        assert!(looked == count.get() && looked < 40, "{looked} pieces after being told to end at the first");
        assert!(found.iter().flatten().all(|checked| *checked == Checked::Good));

        bench.store.closed.store(true, Ordering::SeqCst);
        let (found, told) = bench.run(3, &AtomicBool::new(false));
        assert!(matches!(found, Err(StorageError::Closed)) && told.is_empty());
    }

    #[test]
    fn a_torrent_without_data_is_done_at_once() {
        let bench = bench(16384, 0);
        let (found, told) = bench.run(2, &AtomicBool::new(false));
        assert!(found.unwrap().is_empty() && told.is_empty());
    }
}
