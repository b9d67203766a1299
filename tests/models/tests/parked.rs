//! The table of parked reads, through every order: a read is parked while its data comes, a signal ends it, its time
//! runs out, and the mount is taken down.
//!
//! Whatever comes first: the read is answered once, what it demanded is withdrawn once, nothing stays in the table, and
//! the one that sleeps while nothing is parked has been woken.
#![allow(clippy::unwrap_used, reason = "a model fails by panicking")]

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use torrentfs_models::content::{ContentError, ReadDone, Stream, Ticket, TryRead};
use torrentfs_models::errno::Errno;
use torrentfs_models::parked::ParkedReads;
use torrentfs_models::tree::NodeId;

/// Switches from one thread to another against its will, at most: what two threads do to each other shows with two,
/// and a third is for good measure.
const PREEMPTIONS: usize = 3;

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A content that is asked, and answers when somebody makes it.
#[derive(Default)]
struct Slow {
    asked: Mutex<Option<ReadDone>>,
    withdrawn: AtomicUsize,
}

struct Asks(Arc<Slow>);

impl Stream for Asks {
    fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
        TryRead::NotNow
    }

    fn read(&self, _: u64, _: usize, done: ReadDone) -> Ticket {
        *self.0.asked.lock().unwrap() = Some(done);
        let slow = self.0.clone();
        Ticket::new(move || {
            slow.withdrawn.fetch_add(1, Ordering::SeqCst);
            // As the port says: its callback is dropped uncalled, unless it is running.
            slow.drop_request();
        })
    }
}

impl Slow {
    /// It has been asked, and answers; false if it hasn't.
    fn answer(&self, result: Result<&[u8], ContentError>) -> bool {
        let done = self.asked.lock().unwrap().take();
        done.map(|done| done(result)).is_some()
    }

    /// It gives up what it was asked for.
    fn drop_request(&self) {
        let done = self.asked.lock().unwrap().take();
        drop(done);
    }
}

/// What a read was answered with.
type Answer = Result<Vec<u8>, Errno>;

struct World {
    parked: Arc<ParkedReads>,
    slow: Arc<Slow>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl World {
    fn new() -> Self {
        Self { parked: ParkedReads::new(8), slow: Arc::default(), answers: Arc::default() }
    }

    fn park(&self) {
        let answers = self.answers.clone();
        let reply = Box::new(move |result: Result<&[u8], Errno>| {
            answers.lock().unwrap().push(result.map(<[u8]>::to_vec));
        });
        self.parked.park(&Asks(self.slow.clone()), NodeId::new(1, 1), 0, 4, 7, reply);
    }

    fn spawn(&self, run: impl FnOnce(&ParkedReads, &Slow) + 'static) -> thread::JoinHandle<()> {
        let (parked, slow) = (self.parked.clone(), self.slow.clone());
        thread::spawn(move || run(&parked, &slow))
    }

    /// At the end: answered so often, all withdrawn, nothing left.
    fn check(&self, answers: usize) {
        let given = self.answers.lock().unwrap();
        assert_eq!(given.len(), answers, "{given:?}");
        assert_eq!(self.parked.len(), 0);
        assert!(self.parked.waiting().is_empty());
        drop(given);
    }
}

#[test]
fn data_comes_while_a_read_is_parked_and_its_reader_is_interrupted() {
    model(|| {
        let world = World::new();
        let data = world.spawn(|_, slow| _ = slow.answer(Ok(b"data")));
        let signal = world.spawn(|parked, _| parked.interrupt());
        world.park();
        data.join().unwrap();
        signal.join().unwrap();
        // Whoever came before it was asked, or parked, found nothing.
        world.slow.answer(Ok(b"data"));
        world.check(1);
        assert_eq!(world.slow.withdrawn.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn f3_a_read_that_is_parked_while_the_mount_is_taken_down_is_answered() {
    model(|| {
        let world = World::new();
        let unmount = world.spawn(|parked, _| parked.refuse());
        world.park();
        unmount.join().unwrap();
        // Nobody else ends it: it must have ended by now.
        world.check(1);
        assert_eq!(*world.answers.lock().unwrap(), [Err(Errno::EIO)]);
        let asked = world.slow.asked.lock().unwrap().is_some();
        assert!(!asked, "what was demanded for it is withdrawn");
        world.park();
        world.check(2);
    });
}

#[test]
fn data_a_time_out_and_the_unmount_race_for_a_parked_read() {
    model(|| {
        let world = World::new();
        world.park();
        // The content decides which of the two it is, but may do so at any time.
        let data = world.spawn(|_, slow| _ = slow.answer(Ok(b"data")));
        let late = world.spawn(|_, slow| _ = slow.answer(Err(ContentError::TimedOut("late".into()))));
        let unmount = world.spawn(|parked, _| parked.refuse());
        data.join().unwrap();
        late.join().unwrap();
        unmount.join().unwrap();
        world.check(1);
        assert_eq!(world.slow.withdrawn.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_signal_and_the_unmount_race_for_a_parked_read() {
    model(|| {
        let world = World::new();
        world.park();
        let signal = world.spawn(|parked, _| parked.interrupt());
        let unmount = world.spawn(|parked, _| parked.refuse());
        signal.join().unwrap();
        unmount.join().unwrap();
        world.check(1);
        assert_eq!(world.slow.withdrawn.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_content_that_drops_the_request_answers_too() {
    model(|| {
        let world = World::new();
        let gone = world.spawn(|_, slow| slow.drop_request());
        let signal = world.spawn(|parked, _| parked.interrupt());
        world.park();
        gone.join().unwrap();
        signal.join().unwrap();
        world.slow.drop_request();
        world.check(1);
    });
}

#[test]
fn whoever_watches_the_readers_wakes_when_one_is_parked() {
    model(|| {
        let world = World::new();
        // Hangs, which loom finds, if the wake-up can be lost.
        let watcher = world.spawn(|parked, _| assert!(parked.watch()));
        world.park();
        watcher.join().unwrap();
        world.parked.refuse();
        world.check(1);
    });
}
