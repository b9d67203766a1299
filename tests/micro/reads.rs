//! The read path: a read of what is here, as a FUSE thread makes it, and waking reads that waited.
//!
//! The store lies in a temporary folder and its pages are in memory: it was just written.

use std::cell::RefCell;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use tempfile::TempDir;
use torrentfs::metainfo::geometry::{FileIndex, PieceIndex};
use torrentfs::metainfo::{Info, TorrentBuilder};
use torrentfs::storage::Store;
use torrentfs::storage::file::{FileStore, StoredFile};
use torrentfs::storage::pool::Workers;
use torrentfs::torrent::reads::{ReadTicket, Reader, Shared};
use torrentfs::torrent::table::{PieceState, PieceTable};

const PIECE: u32 = 1 << 20;
const PIECES: u32 = 32;
/// How long one answer may take before the row is given up.
const LONG: Duration = Duration::from_secs(20);

/// A torrent of one file, all of it on the disk.
struct World {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    _folder: TempDir,
}

impl World {
    /// The pieces from `missing` on aren't counted as complete.
    fn new(missing: u32) -> Self {
        let mut builder = TorrentBuilder::new("t", PIECE);
        builder.single_file(u64::from(PIECE * PIECES)).piece_hashes((0..PIECES).map(|_| [0; 20]));
        let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
        let folder = TempDir::new().unwrap();
        let file = StoredFile { path: vec!["t".into()], pad: false };
        let store = FileStore::open(folder.path(), Arc::new(info.geometry.clone()), &[file]).unwrap();
        let piece = vec![7; PIECE as usize];
        for i in 0..PIECES {
            store.write_at(u64::from(i * PIECE), &[IoSlice::new(&piece)]).unwrap();
        }
        // What was written is let go when it is on the disk; what is read for peers stays in the page cache.
        store.sync().unwrap();
        let mut piece = piece;
        for i in 0..PIECES {
            store.read_to_serve(u64::from(i * PIECE), &mut piece).unwrap();
        }
        let table = Arc::new(PieceTable::new(PIECES, PieceState::Complete));
        (missing..PIECES).for_each(|i| table.set(PieceIndex(i), PieceState::Missing));
        let workers = Workers::start(1).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let shared = Arc::new(Shared::new(info, table, store, workers.clone(), Arc::default()));
        Self { shared, workers, _folder: folder }
    }

    fn reader(&self) -> Reader {
        Reader::open(self.shared.clone(), FileIndex(0)).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.stop(LONG);
    }
}

/// Reads through the first half of the file, over and over.
fn read_on(bencher: Bencher, world: &World, len: usize) {
    let (reader, mut buf, mut at) = (world.reader(), vec![0; len], 0);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        // What was let go when it was written is brought back; from then on it stays.
        for _ in 0..100 {
            if reader.try_read(at, &mut buf) {
                break;
            }
            world.shared.store.read_to_serve(at, &mut buf).unwrap();
        }
        at = (at + len as u64) % u64::from(PIECE * PIECES / 2);
        // Nobody else empties it; what a window of read-ahead costs belongs to the read.
        world.shared.inbox.take()
    });
}

/// Of a torrent that is complete.
#[divan::bench(args = [4, 128])]
fn complete_torrent_kib(bencher: Bencher, kib: usize) {
    read_on(bencher, &World::new(PIECES), kib * 1024);
}

/// Of a torrent that isn't: the reader keeps its window as well.
#[divan::bench(args = [4, 128])]
fn incomplete_torrent_kib(bencher: Bencher, kib: usize) {
    read_on(bencher, &World::new(PIECES - 1), kib * 1024);
}

/// A piece is complete that so many reads waited for: until all are with the storage workers.
#[divan::bench(args = [1, 64, 256], sample_size = 1)]
fn wake_reads(bencher: Bencher, reads: usize) {
    let world = World::new(PIECES - 1);
    let (reader, piece) = (world.reader(), PieceIndex(PIECES - 1));
    let (told, answers): (Sender<bool>, Receiver<bool>) = channel();
    let tickets: RefCell<Vec<ReadTicket>> = RefCell::default();
    let wait = || {
        // Those of the sample before: all answered before the next ones begin.
        for ticket in tickets.borrow_mut().drain(..) {
            assert!(answers.recv_timeout(LONG).expect("an answer"), "with its bytes");
            drop(ticket);
        }
        world.shared.inbox.take();
        world.shared.table.set(piece, PieceState::Missing);
        for i in 0..reads {
            let told = told.clone();
            let offset = u64::from(piece.0 * PIECE) + i as u64 * 4096;
            let done = Box::new(move |read: Result<&[u8], _>| _ = told.send(read.is_ok()));
            tickets.borrow_mut().push(reader.read(offset, 4096, done));
        }
        world.shared.table.set(piece, PieceState::Complete);
    };
    bencher.with_inputs(wait).bench_local_values(|()| world.shared.wake(piece));
}
