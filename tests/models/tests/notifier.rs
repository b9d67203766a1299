//! Who waits for which piece, through every order: a read is registered while its pieces come, its time runs out, its
//! reader goes away, and the torrent ends.
//!
//! Whatever comes first: the read ends once, nothing stays registered, and a piece that comes is never missed.
#![allow(clippy::unwrap_used, reason = "a model fails by panicking")]

use std::ops::Range;
use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use torrentfs_models::metainfo::geometry::PieceIndex;
use torrentfs_models::notifier::{self, Desk, Notifier};

/// As in the models of parked reads.
const PREEMPTIONS: usize = 3;
const PIECES: u32 = 2;

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A torrent of two pieces whose owner does what the model says.
struct Torrent {
    complete: [AtomicBool; PIECES as usize],
    notifier: Notifier<Torrent>,
    /// What the owner knows of: reads that it was told of, less those that were withdrawn.
    wanted: Mutex<Vec<u64>>,
    answers: Mutex<Vec<Result<(), &'static str>>>,
    come: AtomicUsize,
}

/// Stands for the callback.
struct Done;

type Waiter = notifier::Waiter<Torrent>;

impl Desk for Torrent {
    type Read = Range<u32>;
    type Done = Done;
    type Error = &'static str;

    fn pieces(&self, read: &Range<u32>) -> Range<u32> {
        read.clone()
    }

    fn is_complete(&self, piece: PieceIndex) -> bool {
        self.complete[piece.0 as usize].load(Ordering::Acquire)
    }

    fn come(self: &Arc<Self>, waiter: Arc<Waiter>) {
        self.come.fetch_add(1, Ordering::Relaxed);
        // A worker reads: all of it must be here, and is seen to be.
        let all = waiter.read.clone().all(|piece| self.is_complete(PieceIndex(piece)));
        assert!(all || waiter.is_taken(), "it was woken though a piece is missing");
        if let Some(Done) = waiter.take() {
            self.answers.lock().unwrap().push(Ok(()));
        }
    }

    fn want(&self, waiter: &Waiter, _: Vec<PieceIndex>) {
        self.wanted.lock().unwrap().push(waiter.id);
    }

    fn withdraw(&self, id: u64) {
        self.wanted.lock().unwrap().retain(|wanted| *wanted != id);
    }

    fn refuse(&self, Done: Done, error: &'static str) {
        self.answers.lock().unwrap().push(Err(error));
    }
}

impl Torrent {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            complete: std::array::from_fn(|_| AtomicBool::new(false)),
            notifier: Notifier::default(),
            wanted: Mutex::default(),
            answers: Mutex::default(),
            come: AtomicUsize::new(0),
        })
    }

    /// As a reader does.
    fn read(self: &Arc<Self>) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter::new(1, 0..PIECES, Done));
        let missing: Vec<PieceIndex> =
            (0..PIECES).map(PieceIndex).filter(|piece| !self.is_complete(*piece)).collect();
        if missing.is_empty() {
            self.come(waiter.clone());
        } else {
            self.notifier.wait(self, &waiter, missing);
        }
        waiter
    }

    /// As the owner does.
    fn complete(self: &Arc<Self>, piece: u32) {
        self.complete[piece as usize].store(true, Ordering::Release);
        self.notifier.wake(self, PieceIndex(piece));
    }

    fn spawn(self: &Arc<Self>, run: impl FnOnce(&Arc<Self>) + 'static) -> thread::JoinHandle<()> {
        let own = self.clone();
        thread::spawn(move || run(&own))
    }

    fn check(&self, answers: &[&[Result<(), &'static str>]]) {
        let given = self.answers.lock().unwrap();
        assert!(answers.contains(&&given[..]), "{given:?}");
        assert!(self.notifier.is_empty(), "something stays registered");
    }
}

#[test]
fn both_pieces_come_while_a_read_is_registered() {
    model(|| {
        let torrent = Torrent::new();
        let first = torrent.spawn(|torrent| torrent.complete(0));
        let second = torrent.spawn(|torrent| torrent.complete(1));
        torrent.read();
        first.join().unwrap();
        second.join().unwrap();
        torrent.check(&[&[Ok(())]]);
        assert_eq!(torrent.come.load(Ordering::Relaxed), 1, "it is read once");
    });
}

#[test]
fn a_time_out_races_with_the_last_piece() {
    model(|| {
        let torrent = Torrent::new();
        torrent.complete(0);
        // The owner hears of a read before its time can run out.
        torrent.read();
        let comes = torrent.spawn(|torrent| torrent.complete(1));
        torrent.notifier.fail_id(&*torrent, 1, "timed out");
        comes.join().unwrap();
        torrent.check(&[&[Ok(())], &[Err("timed out")]]);
    });
}

#[test]
fn a_reader_goes_away_while_the_last_piece_comes_and_its_time_runs_out() {
    model(|| {
        let torrent = Torrent::new();
        torrent.complete(0);
        let waiter = torrent.read();
        let comes = torrent.spawn(|torrent| torrent.complete(1));
        let late = torrent.spawn(|torrent| torrent.notifier.fail_id(&**torrent, 1, "timed out"));
        torrent.notifier.withdraw(&*torrent, &waiter);
        comes.join().unwrap();
        late.join().unwrap();
        torrent.check(&[&[], &[Ok(())], &[Err("timed out")]]);
    });
}

#[test]
fn the_torrent_ends_while_a_read_is_registered() {
    model(|| {
        let torrent = Torrent::new();
        let ends = torrent.spawn(|torrent| torrent.notifier.fail_all(&**torrent, &"closed"));
        torrent.read();
        ends.join().unwrap();
        // Nobody would wake it any more.
        torrent.check(&[&[Err("closed")]]);
    });
}

#[test]
fn the_torrent_ends_while_the_pieces_come() {
    model(|| {
        let torrent = Torrent::new();
        let ends = torrent.spawn(|torrent| torrent.notifier.fail_all(&**torrent, &"closed"));
        let comes = torrent.spawn(|torrent| (0..PIECES).for_each(|piece| torrent.complete(piece)));
        torrent.read();
        ends.join().unwrap();
        comes.join().unwrap();
        torrent.check(&[&[Ok(())], &[Err("closed")]]);
    });
}

#[test]
fn a_reader_goes_away_while_its_read_waits_again() {
    model(|| {
        let torrent = Torrent::new();
        let waiter = Arc::new(Waiter::new(1, 0..PIECES, Done));
        // A worker found its pieces evicted.
        let again = waiter.clone();
        let waits = torrent.spawn(move |torrent| {
            torrent.notifier.wait(torrent, &again, (0..PIECES).map(PieceIndex).collect());
        });
        torrent.notifier.withdraw(&*torrent, &waiter);
        waits.join().unwrap();
        torrent.check(&[&[]]);
        assert!(torrent.wanted.lock().unwrap().is_empty(), "the owner goes on fetching for nobody");
    });
}
