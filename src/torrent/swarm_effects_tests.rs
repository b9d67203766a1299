//! Replays of what went wrong elsewhere, with the real store and the real workers.

use std::sync::atomic::{AtomicUsize, Ordering};

use torrentfs_fs::lock::assert_none_held;

use super::*;
use crate::storage::Store;
use crate::storage::file::{FileStore, StoredFile};
use crate::storage::pool::Workers;
use crate::storage::quota::{Quota, Reservation};
use crate::torrent::inbox::Inbox;
use crate::torrent::reads::{Reader, Shared};
use crate::torrent::work::{self, Work};

const LONG: Duration = Duration::from_secs(20);

fn shared(dir: &std::path::Path, workers: &Arc<Workers>, pieces: u32) -> Arc<Shared> {
    let info = torrent(pieces);
    let geometry = Arc::new(info.geometry.clone());
    let files = [StoredFile { path: vec!["t".into()], pad: false }];
    let store: Arc<dyn Store> = Arc::new(FileStore::open(dir, geometry, &files).unwrap());
    let table = Arc::new(PieceTable::new(pieces, PieceState::Missing));
    Arc::new(Shared::new(info, table, store, workers.clone(), Arc::new(Inbox::default())))
}

fn room() -> Reservation {
    Arc::new(Quota::new(None)).reserve(1).unwrap()
}

/// A whole piece of the torrent's bytes.
fn whole(shared: &Shared, piece: u32) -> Arc<PieceBuffer> {
    let geometry = &shared.info.geometry;
    let index = PieceIndex(piece);
    let buffer = PieceBuffer::new(index, geometry.blocks_in(index));
    for block in 0..geometry.blocks_in(index) {
        let block = crate::metainfo::geometry::BlockIndex(block);
        let len = geometry.block_len(BlockRef { piece: index, block });
        assert!(buffer.put(block, Bytes::from(vec![7; len as usize]), PeerKey(1)));
    }
    Arc::new(buffer)
}

#[test]
fn l2_answers_that_come_back_in_do_not_deadlock() {
    // "Calling directly deadlocked": the answer to a read reads again, drops tickets, asks who waits and
    // posts demands, from within `fail` on this thread and from within a worker after `wake`.
    let dir = tempfile::tempdir().unwrap();
    let workers = Workers::start(2).unwrap();
    let shared = shared(dir.path(), &workers, 4);
    let reader = Arc::new(Reader::open(shared.clone(), FileIndex(0)).unwrap());
    let (told, results) = std::sync::mpsc::channel();
    let again = |name: &'static str| {
        let (shared, reader, told) = (shared.clone(), reader.clone(), told.clone());
        Box::new(move |result: Result<&[u8], ReadError>| {
            assert_none_held("an answer");
            let other = reader.read(100, 10, Box::new(|_| {}));
            assert!(!shared.notifier.waiters().is_empty() || shared.table.is_complete(PieceIndex(0)));
            shared.fail_id(12345, &ReadError::Closed);
            shared.wake(PieceIndex(3));
            shared.inbox.post(Demand::Withdraw { waiter: 1 });
            drop(other);
            told.send((name, result.map(<[u8]>::len))).unwrap();
        })
    };
    let failing = reader.read(0, 10, again("failed"));
    let waiting = reader.read(0, 10, again("woken"));
    let last = reader.read(PIECE.into(), 10, again("ended"));
    let ids: Vec<u64> = shared.notifier.waiters().iter().map(|w| w.id).collect();
    shared.fail_id(ids[0], &ReadError::Full);
    assert_eq!(results.try_recv().unwrap(), ("failed", Err(ReadError::Full)));
    let bytes = whole(&shared, 0);
    let parts: Vec<_> = bytes.blocks().unwrap().into_iter().map(|b| std::io::IoSlice::new(b)).collect();
    shared.store.write_at(0, &parts).unwrap();
    shared.table.set(PieceIndex(0), PieceState::Complete);
    shared.wake(PieceIndex(0));
    assert_eq!(results.recv_timeout(LONG).unwrap(), ("woken", Ok(10)));
    shared.fail_all(&ReadError::Closed);
    assert_eq!(results.try_recv().unwrap(), ("ended", Err(ReadError::Closed)));
    // "Skipping stalled": what would wait after the end is told so, at once.
    let (late, lates) = std::sync::mpsc::channel();
    let _late = reader.read(PIECE.into(), 10, Box::new(move |r| late.send(r.map(<[u8]>::len)).unwrap()));
    assert_eq!(lates.try_recv().unwrap(), Err(ReadError::Closed));
    drop((failing, waiting, last));
    assert!(shared.notifier.waiters().is_empty());
    assert!(workers.stop(LONG).is_empty());
}

#[test]
fn l2_an_answer_that_is_dropped_is_dropped_under_no_lock() {
    // Dropping a reply sends an error through a system call.
    struct Reply(Arc<AtomicUsize>);
    impl Drop for Reply {
        fn drop(&mut self) {
            assert_none_held("dropping a reply");
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let workers = Workers::start(1).unwrap();
    let shared = shared(dir.path(), &workers, 4);
    let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let read = |offset| {
        let reply = Reply(dropped.clone());
        reader.read(offset, 10, Box::new(move |_| drop(reply)))
    };
    drop(read(0));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    let ticket = read(0);
    shared.fail_all(&ReadError::Closed);
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
    drop(ticket);
    // The workers refuse: the reply goes all the same.
    let ticket = read(u64::from(PIECE));
    assert_eq!(dropped.load(Ordering::SeqCst), 3, "the torrent ended");
    drop(ticket);
    assert!(workers.stop(LONG).is_empty());
    shared.table.set(PieceIndex(0), PieceState::Complete);
    drop(read(0));
    assert_eq!(dropped.load(Ordering::SeqCst), 4);
}

#[test]
fn l4_verify_while_dropping_a_thousand_times() {
    let dir = tempfile::tempdir().unwrap();
    let workers = Workers::start(2).unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut reads = 0;
    for round in 0..1000u32 {
        // A folder of its own: workers may still be at the last round's, and nobody else has a torrent's folder open.
        let folder = dir.path().join(round.to_string());
        std::fs::create_dir(&folder).unwrap();
        let shared = shared(&folder, &workers, 3);
        let (work, mut done) = tokio::sync::mpsc::channel(16);
        let reader = Reader::open(shared.clone(), FileIndex(0)).unwrap();
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let read = |piece: u32| {
            let count = Count(answered.clone());
            reader.read(u64::from(piece * PIECE), 100, Box::new(move |_| drop(count)))
        };
        let mut tickets: Vec<_> = (0..3).map(read).collect();
        reads += tickets.len();
        for piece in 0..3 {
            assert!(work::verify(&shared, &whole(&shared, piece), false, room(), &work));
        }
        std::thread::scope(|scope| {
            // The owner: carries out what the workers answer, as far as it gets.
            let owner = shared.clone();
            scope.spawn(move || {
                for _ in 0..round % 4 {
                    if let Some(Work::Verified { piece, verdict, .. }) = done.blocking_recv() {
                        let closed = verdict == Verdict::Unwritten(ReadError::Closed);
                        assert!(
                            verdict == Verdict::Good || (closed && round % 2 == 0),
                            "round {round}: {verdict:?}"
                        );
                        owner.table.set(piece, PieceState::Complete);
                        owner.wake(piece);
                    }
                }
                drop(done);
                assert_none_held("the owner");
            });
            scope.spawn(move || {
                tickets.truncate((round % 3) as usize);
                drop(tickets);
                assert_none_held("dropping tickets");
            });
            if round % 2 == 0 {
                shared.store.close();
            }
        });
        drop(reader);
        shared.fail_all(&ReadError::Closed);
        drop(shared);
        assert_none_held("dropping it all");
    }
    assert!(workers.stop(LONG).is_empty(), "no worker hangs");
    assert_eq!(answered.load(Ordering::SeqCst), reads, "each read ends once");
}
