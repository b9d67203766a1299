//! Writes to one store, by one thread at a time.
//!
//! **Goal.** Threads that write to one file wait for each other in the kernel, spinning on the file's lock; here
//! none does. What is adjacent goes out in one call.
//!
//! **Parts.** [`WriteQueue`], and [`Write`], one piece of work in it. What must not happen while somebody writes takes
//! its turn, too ([`WriteQueue::exclusively`]).
//!
//! **Flow.** Whoever has something to write queues it. If somebody is writing, it is left to them; otherwise it
//! is this thread's turn, and it writes all that is queued, until nothing is. Each batch is written in the order of its
//! places, adjacent ones together. When that fails, each is tried alone, so that an error hits those it concerns;
//! a panic hits the ones that were being written together, and the others go on.
//!
//! **Not here.** A bound: what waits is bounded by those who make it.

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::StorageError;
use super::Store;

/// Bytes that are written together at most, unless one alone is larger: they are all answered when the last is
/// written, and more saves no more.
const TOGETHER: u64 = 4 * 1024 * 1024;

/// One thing to be written. Dropped without [`Write::done`] only when writing it panics.
pub trait Write: Send {
    /// Where it begins in the torrent's linear space.
    fn offset(&self) -> u64;

    /// Its bytes, in order.
    fn parts(&self) -> Vec<IoSlice<'_>>;

    /// It was written, or could not be. Called once, under no lock.
    fn done(self, result: Result<(), StorageError>);
}

/// See the module.
#[derive(Debug)]
pub struct WriteQueue<W> {
    queued: RankedMutex<Queued<W>>,
}

/// Something to be done while nothing is written.
type Job = Box<dyn FnOnce() + Send>;

/// Jobs that take a turn of their own.
#[derive(Default)]
struct Exclusive(Vec<Job>);

impl std::fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.0.len())
    }
}

#[derive(Debug)]
struct Queued<W> {
    waiting: Vec<W>,
    /// What is to be done while nothing is written.
    exclusive: Exclusive,
    /// Whether a thread is writing: it will take what waits.
    writing: bool,
}

impl<W: Write> WriteQueue<W> {
    /// Nothing waits.
    pub fn new() -> Self {
        let queued = Queued { waiting: Vec::new(), exclusive: Exclusive::default(), writing: false };
        Self { queued: RankedMutex::new(Rank::Leaf, "writes of a torrent", queued) }
    }

    /// Writes it, and what others queue meanwhile; or leaves it to the thread that is writing, and returns at
    /// once. May wait for a disk.
    ///
    /// # Panics
    /// When writing did, after all the rest is written.
    pub fn write(&self, store: &dyn Store, one: W) {
        self.take_turn(store, |queued| queued.waiting.push(one));
    }

    /// Does something while nothing is written, after what is being written and before all else that waits; or leaves
    /// it to the thread that is writing, and returns at once. May wait for a disk.
    ///
    /// # Panics
    /// When it did, or writing, after all the rest is written.
    pub fn exclusively(&self, store: &dyn Store, job: Box<dyn FnOnce() + Send>) {
        self.take_turn(store, |queued| queued.exclusive.0.push(job));
    }

    fn take_turn(&self, store: &dyn Store, queue: impl FnOnce(&mut Queued<W>)) {
        {
            let mut queued = self.queued.lock();
            queue(&mut queued);
            if queued.writing {
                return;
            }
            queued.writing = true;
        }
        let mut panicked = None;
        while let Some((jobs, mut batch)) = self.take() {
            for job in jobs {
                // Nobody else takes what waits: a panic must not end the turn.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                    panicked = Some(panic);
                }
            }
            batch.sort_by_key(Write::offset);
            let mut rest = batch.into_iter().peekable();
            while let Some(first) = rest.next() {
                let mut end = first.offset() + len(&first);
                let start = first.offset();
                let mut run = vec![first];
                while let Some(next) =
                    rest.next_if(|next| next.offset() == end && end + len(next) - start <= TOGETHER)
                {
                    end += len(&next);
                    run.push(next);
                }
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| write_run(store, run))) {
                    panicked = Some(panic);
                }
            }
        }
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// All that waits; with nothing left the turn is over.
    fn take(&self) -> Option<(Vec<Job>, Vec<W>)> {
        let mut queued = self.queued.lock();
        let jobs = std::mem::take(&mut queued.exclusive.0);
        let batch = std::mem::take(&mut queued.waiting);
        queued.writing = !(jobs.is_empty() && batch.is_empty());
        queued.writing.then_some((jobs, batch))
    }
}

impl<W: Write> Default for WriteQueue<W> {
    fn default() -> Self {
        Self::new()
    }
}

fn len(one: &impl Write) -> u64 {
    one.parts().iter().map(|part| part.len() as u64).sum()
}

/// Writes what is adjacent.
fn write_run<W: Write>(store: &dyn Store, run: Vec<W>) {
    if run.len() > 1 {
        let parts: Vec<IoSlice<'_>> = run.iter().flat_map(Write::parts).collect();
        let written = store.write_at(run.first().map_or(0, Write::offset), &parts);
        drop(parts);
        if written.is_ok() {
            run.into_iter().for_each(|one| one.done(Ok(())));
            return;
        }
    }
    for one in run {
        let written = store.write_at(one.offset(), &one.parts());
        one.done(written);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    type Act = dyn Fn(u64, &[u8]) -> Result<(), StorageError> + Send + Sync;

    /// A store that notes what is written to it, and does what the test says.
    struct Noted {
        calls: Sender<(u64, Vec<u8>)>,
        act: Box<Act>,
    }

    impl Store for Noted {
        fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.calls.send((offset, bytes.clone())).unwrap();
            (self.act)(offset, &bytes)
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
            Ok(())
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
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

    /// Two bytes at a place, each a part; says what came of it, or that nothing did.
    struct One {
        offset: u64,
        bytes: [u8; 2],
        told: Option<Sender<(u64, &'static str)>>,
    }

    impl Write for One {
        fn offset(&self) -> u64 {
            self.offset
        }
        fn parts(&self) -> Vec<IoSlice<'_>> {
            self.bytes.chunks(1).map(IoSlice::new).collect()
        }
        fn done(mut self, result: Result<(), StorageError>) {
            torrentfs_fs::lock::assert_none_held("an answer");
            let said = match result {
                Ok(()) => "written",
                Err(StorageError::Full { .. }) => "full",
                Err(_) => "closed",
            };
            self.told.take().unwrap().send((self.offset, said)).unwrap();
        }
    }

    impl Drop for One {
        fn drop(&mut self) {
            torrentfs_fs::lock::assert_none_held("dropping a write");
            if let Some(told) = self.told.take() {
                told.send((self.offset, "dropped")).unwrap();
            }
        }
    }

    fn full() -> StorageError {
        StorageError::from_io(Path::new("/x"), "writing", io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// What was written, in calls, and what was said of each.
    type Seen = (Vec<(u64, Vec<u8>)>, Vec<(u64, &'static str)>);

    /// Queues writes of two bytes at `places` while another at 1000 is being written, and lets that one go on.
    fn queued_behind(
        places: &[u64],
        act: impl Fn(u64, &[u8]) -> Result<(), StorageError> + Send + Sync + 'static,
    ) -> Seen {
        let (calls, called) = channel();
        let (go, gate): (Sender<()>, Receiver<()>) = channel();
        // One call waits at the gate at most, so this is never contended.
        let gate = RankedMutex::new(Rank::Storage, "gate", Some(gate));
        let store = Noted {
            calls,
            act: Box::new(move |offset, bytes| {
                let gate = if offset == 1000 { gate.lock().take() } else { None };
                if let Some(gate) = gate {
                    let _ = gate.recv_timeout(LONG);
                }
                act(offset, bytes)
            }),
        };
        let (told, answers) = channel();
        let one =
            |offset: u64| One { offset, bytes: [offset as u8, offset as u8 + 1], told: Some(told.clone()) };
        let queue = Arc::new(WriteQueue::new());
        let first = one(1000);
        let mut written = Vec::new();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let write = || queue.write(&store, first);
                let _ = catch_unwind(AssertUnwindSafe(write));
            });
            written.push(called.recv_timeout(LONG).unwrap());
            for place in places {
                // Returns at once, or the test would hang here: the writer waits at the gate.
                queue.write(&store, one(*place));
            }
            assert!(called.try_recv().is_err(), "nobody else writes");
            go.send(()).unwrap();
            writer.join().unwrap();
        });
        assert!(!queue.queued.lock().writing && queue.queued.lock().waiting.is_empty());
        // The next has its turn, whatever happened before.
        queue.write(&store, one(2000));
        drop(told);
        written.extend(called.try_iter());
        (written, answers.iter().collect())
    }

    #[test]
    fn what_is_queued_is_written_by_who_writes_in_order_and_together() {
        let (calls, said) = queued_behind(&[8, 2, 20, 4, 30], |_, _| Ok(()));
        let expected: [(u64, &[u8]); 6] = [
            (1000, &[232, 233]),
            (2, &[2, 3, 4, 5]),
            (8, &[8, 9]),
            (20, &[20, 21]),
            (30, &[30, 31]),
            (2000, &[208, 209]),
        ];
        assert_eq!(calls, expected.map(|(offset, bytes)| (offset, bytes.to_vec())));
        assert_eq!(said, [1000, 2, 4, 8, 20, 30, 2000].map(|offset| (offset, "written")));
    }

    #[test]
    fn an_error_hits_only_what_it_concerns() {
        // No room for the byte 5, which is in the second of three that are adjacent; then a closed store.
        let (calls, said) = queued_behind(&[2, 4, 6], |_, bytes| match bytes.contains(&5) {
            true => Err(full()),
            false => Ok(()),
        });
        assert_eq!(calls.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [1000, 2, 2, 4, 6, 2000]);
        let expected = [(1000, "written"), (2, "written"), (4, "full"), (6, "written"), (2000, "written")];
        assert_eq!(said, expected);
        let (_, said) = queued_behind(&[2, 4, 60], |_, _| Err(StorageError::Closed));
        assert_eq!(said, [1000, 2, 4, 60, 2000].map(|offset| (offset, "closed")));
    }

    #[test]
    fn a_panic_hits_only_what_is_written_with_it() {
        let (_, said) = queued_behind(&[2, 4, 20, 30], |offset, _| {
            assert_ne!(offset, 2, "on purpose");
            Ok(())
        });
        let expected = [
            (1000, "written"),
            (2, "dropped"),
            (4, "dropped"),
            (20, "written"),
            (30, "written"),
            (2000, "written"),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn each_of_many_is_answered_once() {
        let (calls, called) = channel();
        let store = Noted { calls, act: Box::new(|_, _| Ok(())) };
        let queue = WriteQueue::new();
        let (told, answers) = channel();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (queue, store, told) = (&queue, &store, told.clone());
                scope.spawn(move || {
                    for n in 0..500 {
                        let offset = (n * 4 + thread) * 2;
                        queue.write(store, One { offset, bytes: [1, 2], told: Some(told.clone()) });
                    }
                });
            }
        });
        drop((told, store));
        let mut said: Vec<u64> =
            answers.iter().map(|(offset, said)| (said == "written").then_some(offset).unwrap()).collect();
        said.sort_unstable();
        assert_eq!(said, (0..2000).map(|n| n * 2).collect::<Vec<u64>>());
        assert_eq!(called.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), 4000);
    }

    #[test]
    fn what_excludes_writing_takes_its_turn() {
        let (calls, _called) = channel();
        let store = Arc::new(Noted { calls, act: Box::new(|_, _| Ok(())) });
        let queue: Arc<WriteQueue<One>> = Arc::default();
        let (told, heard) = channel();
        // Queued by the thread that has the turn: left for later, not run within.
        let (inner, again) = (told.clone(), queue.clone());
        let job_store = store.clone();
        let job = Box::new(move || {
            again.exclusively(&*job_store, Box::new(move || inner.send(2).unwrap()));
            told.send(1).unwrap();
        });
        queue.exclusively(&*store, job);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [1, 2]);
        let died =
            catch_unwind(AssertUnwindSafe(|| queue.exclusively(&*store, Box::new(|| panic!("a test's")))));
        assert!(died.is_err() && !queue.queued.lock().writing, "the turn has ended");
    }
}
