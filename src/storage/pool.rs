//! The storage workers: the only threads of the program that wait for a disk.
//!
//! **Goal.** A slow disk stops neither the runtime nor a FUSE thread, what a reader waits for comes first, and
//! nothing waits for ever.
//!
//! **Parts.** [`Workers`], a fixed number of threads named `storage-N`; a bounded queue with a lane for each
//! [`Class`]; [`Scratch`], each thread's buffer.
//!
//! **Flow.** A job is queued with the moment it is due: now, plus what its class gives way by. The job that is
//! due first runs first. So reads go before verification, that before serving peers, that before background
//! work, among jobs of about the same time; and each job ages, since those that come later than its due moment
//! can't pass it (row O2). Serving and background work never take all threads, so that a read finds one soon.
//! A panic in a job is caught and logged; its thread goes on.
//!
//! **Not here.** What a job does, and trying again when a lane is full: that is the submitter's.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use torrentfs_fs::lock::{Rank, RankedCondvar, RankedMutex, assert_none_held};

/// A piece of work that may wait for a disk. Dropped without being called when the workers stop first.
pub type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// What a job is for. When a class's lane is full, [`Workers::submit`] gives the job back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A read from the filesystem that found its pieces complete. When full (the kernel itself keeps at most
    /// 4096 of them under way per mount): fail the read with an error, rather than let it hang.
    Read,
    /// Hashing and writing a piece that readers may wait for. When full: keep the piece and submit again when
    /// a job of one's own has ended. Bound the bytes held this way; the lane counts jobs only.
    Verify,
    /// Reading for a peer. When full: reject the request or let it go; peers ask again.
    Serve,
    /// Saving resume data, checking existing data. When full: it isn't urgent, submit at the next occasion.
    Background,
}

impl Class {
    const ALL: [Class; 4] = [Class::Read, Class::Verify, Class::Serve, Class::Background];

    /// How much later than a read of the same moment it is due. Each step is longer than a burst of the
    /// classes before it usually takes a disk, and shorter than what its own waiters bear: a reader may wait
    /// for a verification, a peer for a block (it has tens of requests queued), nobody for the rest.
    fn gives_way(self) -> Duration {
        Duration::from_millis(match self {
            Class::Read => 0,
            Class::Verify => 20,
            Class::Serve => 250,
            Class::Background => 2000,
        })
    }

    /// Jobs that may wait in its lane. Reads: twice what a mount can have under way. Others: far more than
    /// the threads do in a second, little enough memory.
    fn bound(self) -> usize {
        match self {
            Class::Read => 8192,
            Class::Verify | Class::Serve | Class::Background => 1024,
        }
    }

    /// Whether it may take the last free thread.
    fn urgent(self) -> bool {
        matches!(self, Class::Read | Class::Verify)
    }
}

/// The largest buffer a thread keeps from one job to the next; larger ones (a piece may have 64 MiB) are given
/// back, so that a hundred idle threads hold no gigabytes.
const KEPT_BUFFER: usize = 4 * 1024 * 1024;

/// A worker's buffer, reused from job to job.
#[derive(Debug, Default)]
pub struct Scratch {
    buffer: Vec<u8>,
}

impl Scratch {
    /// A buffer of `len` bytes. What is in it is left over from before: fill it before use.
    pub fn buffer(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.buffer.get_mut(..len).unwrap_or_default()
    }

    fn trim(&mut self) {
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }
}

/// The order of jobs; pure.
struct Queue<J> {
    /// By class; within a lane the due moments never decrease.
    lanes: [VecDeque<(Instant, J)>; 4],
}

impl<J> Queue<J> {
    fn new() -> Self {
        Self { lanes: std::array::from_fn(|_| VecDeque::new()) }
    }

    fn push(&mut self, class: Class, job: J, now: Instant) -> Result<(), J> {
        let lane = &mut self.lanes[class as usize];
        if lane.len() >= class.bound() {
            return Err(job);
        }
        lane.push_back((now + class.gives_way(), job));
        Ok(())
    }

    /// The job that is due first; with `urgent_only` among those that may take the last thread.
    fn pop(&mut self, urgent_only: bool) -> Option<(Class, J)> {
        let allowed = Class::ALL.into_iter().filter(|class| class.urgent() || !urgent_only);
        let heads = allowed.filter_map(|class| Some((self.lanes[class as usize].front()?.0, class)));
        let (_, class) = heads.min_by_key(|(due, _)| *due)?;
        let (_, job) = self.lanes[class as usize].pop_front()?;
        Some((class, job))
    }

    fn take_all(&mut self) -> Vec<J> {
        self.lanes.iter_mut().flat_map(std::mem::take).map(|(_, job)| job).collect()
    }
}

/// The jobs of one class that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The class.
    pub class: Class,
    /// How many.
    pub jobs: usize,
    /// How long the oldest has waited.
    pub oldest: Option<Duration>,
}

/// A job that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// On which thread.
    pub thread: String,
    /// Its class.
    pub class: Class,
    /// For how long.
    pub since: Duration,
}

/// What waits and what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkersView {
    /// By class.
    pub lanes: [Lane; 4],
    /// By thread.
    pub running: Vec<Running>,
    /// Threads in all.
    pub threads: usize,
}

struct State {
    queue: Queue<Job>,
    /// What runs, by the thread's number, and since when.
    running: Vec<Option<(Class, Instant)>>,
    /// Jobs running now that aren't urgent.
    running_others: usize,
    closed: bool,
    /// Numbers of the threads that haven't ended.
    alive: BTreeSet<usize>,
}

struct Shared {
    state: RankedMutex<State>,
    /// Told of a new job, and of the close.
    ready: RankedCondvar,
    /// Told when a thread ends.
    ended: RankedCondvar,
    /// How many jobs that aren't urgent may run at a time.
    max_others: usize,
}

/// The threads. Dropping it closes them: queued jobs are dropped, running ones finish; it doesn't wait.
pub struct Workers {
    shared: Arc<Shared>,
    handles: RankedMutex<Vec<(usize, JoinHandle<()>)>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

fn thread_name(number: usize) -> String {
    format!("storage-{number}")
}

impl Workers {
    /// Starts `threads` threads, at least one.
    ///
    /// # Errors
    /// What the system said when it refused a thread; those started before are closed again.
    pub fn start(threads: usize) -> io::Result<Arc<Workers>> {
        let threads = threads.max(1);
        let state = State {
            queue: Queue::new(),
            running: vec![None; threads],
            running_others: 0,
            closed: false,
            alive: (0..threads).collect(),
        };
        let shared = Arc::new(Shared {
            state: RankedMutex::new(Rank::Leaf, "queue of the storage workers", state),
            ready: RankedCondvar::new(),
            ended: RankedCondvar::new(),
            max_others: (threads - 1).max(1),
        });
        let workers = Workers {
            shared,
            handles: RankedMutex::new(Rank::Leaf, "handles of the storage workers", Vec::new()),
        };
        for number in 0..threads {
            let shared = workers.shared.clone();
            // Owned here and joined by `stop`.
            let handle = std::thread::Builder::new().name(thread_name(number)).spawn(move || {
                let _ending = Ending { shared: &shared, number };
                shared.work(number);
            })?;
            workers.handles.lock().push((number, handle));
        }
        Ok(Arc::new(workers))
    }

    /// Queues a job. Never waits; the job never runs on this thread.
    ///
    /// # Errors
    /// The job, when its class's lane is full (see [`Class`]) or the workers are closed
    /// ([`Workers::is_closed`] tells which).
    pub fn submit(&self, class: Class, job: Job) -> Result<(), Job> {
        {
            let mut state = self.shared.state.lock();
            if state.closed {
                return Err(job);
            }
            state.queue.push(class, job, Instant::now())?;
        }
        self.shared.ready.notify_one();
        Ok(())
    }

    /// What waits and what runs: for diagnostics.
    pub fn view(&self, now: Instant) -> WorkersView {
        let state = self.shared.state.lock();
        let lanes = Class::ALL.map(|class| {
            let lane = state.queue.lanes.get(class as usize);
            let oldest = lane.and_then(VecDeque::front).map(|(due, _)| {
                // Queued when it was due, less what its class gives way by.
                (now + class.gives_way()).saturating_duration_since(*due)
            });
            Lane { class, jobs: lane.map_or(0, VecDeque::len), oldest }
        });
        let running = state.running.iter().enumerate().filter_map(|(number, running)| {
            let (class, since) = (*running)?;
            Some(Running { thread: thread_name(number), class, since: now.saturating_duration_since(since) })
        });
        WorkersView { lanes, running: running.collect(), threads: state.alive.len() }
    }

    /// Whether no job is taken any more.
    pub fn is_closed(&self) -> bool {
        self.shared.state.lock().closed
    }

    /// Refuses new jobs, drops those that are queued and waits until the running ones have finished, `limit`
    /// at most. Returns the names of the threads that didn't end; they end with the process. Idempotent.
    /// Not to be called on one of the threads: it would wait for itself until `limit`.
    pub fn stop(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        self.close();
        let left: BTreeSet<usize> = {
            let mut state = self.shared.state.lock();
            while !state.alive.is_empty() {
                let wait = deadline.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    break;
                }
                self.shared.ended.wait_timeout(&mut state, wait);
            }
            state.alive.clone()
        };
        let handles = std::mem::take(&mut *self.handles.lock());
        for (number, handle) in handles {
            if left.contains(&number) {
                self.handles.lock().push((number, handle));
            } else if handle.join().is_err() {
                tracing::error!(thread = %thread_name(number), "a storage worker died; this is a bug");
            }
        }
        left.into_iter().map(thread_name).collect()
    }

    /// Refuses new jobs and drops the queued ones.
    fn close(&self) {
        let dropping = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.queue.take_all()
        };
        self.shared.ready.notify_all();
        for job in dropping {
            guarded("dropped", || drop(job));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes a thread off the list, in whatever way it ends.
struct Ending<'a> {
    shared: &'a Shared,
    number: usize,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().alive.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

impl Shared {
    fn work(&self, number: usize) {
        let mut scratch = Scratch::default();
        while let Some((class, job)) = self.next(number) {
            guarded("running", || {
                job(&mut scratch);
                assert_none_held("a storage job");
            });
            scratch.trim();
            if !class.urgent() {
                // This thread looks for the next job itself, so nobody needs to be told.
                self.state.lock().running_others -= 1;
            }
        }
    }

    /// Waits for a job for the thread of this number; `None` at the end.
    fn next(&self, number: usize) -> Option<(Class, Job)> {
        let mut state = self.state.lock();
        if let Some(running) = state.running.get_mut(number) {
            *running = None;
        }
        loop {
            if state.closed {
                return None;
            }
            let urgent_only = state.running_others >= self.max_others;
            if let Some((class, job)) = state.queue.pop(urgent_only) {
                if !class.urgent() {
                    state.running_others += 1;
                }
                if let Some(running) = state.running.get_mut(number) {
                    *running = Some((class, Instant::now()));
                }
                return Some((class, job));
            }
            self.ready.wait(&mut state);
        }
    }
}

/// Runs it; a panic is logged and ends here.
fn guarded(what: &str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        let why = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!("a storage job panicked while {what}: {why}; this is a bug, please report it");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LONG: Duration = Duration::from_secs(20);

    fn order(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop(false).map(|(_, job)| job)).collect()
    }

    #[test]
    fn reads_go_first_and_each_class_keeps_its_order() {
        let now = Instant::now();
        let mut queue = Queue::new();
        for (job, class) in [
            (30, Class::Background),
            (20, Class::Serve),
            (10, Class::Verify),
            (0, Class::Read),
            (31, Class::Background),
            (1, Class::Read),
            (11, Class::Verify),
        ] {
            queue.push(class, job, now).unwrap();
        }
        assert_eq!(order(&mut queue), [0, 1, 10, 11, 20, 30, 31]);
    }

    #[test]
    fn o2_a_low_job_finishes_under_load() {
        // Reads arrive faster than they are done: 2 for each job that runs, one job a millisecond.
        let start = Instant::now();
        let mut queue = Queue::new();
        queue.push(Class::Background, u32::MAX, start).unwrap();
        let ran = (0..10_000u32).find(|ms| {
            let now = start + Duration::from_millis(u64::from(*ms));
            queue.push(Class::Read, 0, now).unwrap();
            queue.push(Class::Read, 0, now).unwrap();
            queue.pop(false).unwrap().1 == u32::MAX
        });
        // The reads of its 2 s passed it (4000, and 2 of the very moment it was due), none after that.
        assert_eq!(ran, Some(4002));
    }

    #[test]
    fn a_lane_is_bounded_and_gives_the_job_back() {
        let now = Instant::now();
        for class in Class::ALL {
            let mut queue = Queue::new();
            for job in 0..class.bound() {
                queue.push(class, job, now).unwrap();
            }
            assert_eq!(queue.push(class, 7, now), Err(7));
            let other = if class == Class::Read { Class::Verify } else { Class::Read };
            queue.push(other, 8, now).expect("the other lanes have room");
        }
    }

    #[test]
    fn the_last_thread_is_for_urgent_jobs() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.push(Class::Background, 1, now).unwrap();
        queue.push(Class::Verify, 2, now + LONG).unwrap();
        assert_eq!(queue.pop(true), Some((Class::Verify, 2)));
        assert_eq!(queue.pop(true), None);
        assert_eq!(queue.pop(false), Some((Class::Background, 1)));
    }

    /// A job that says it runs, then waits for its end.
    fn blocking(running: &Sender<()>) -> (Job, Sender<()>) {
        let (end, wait): (Sender<()>, Receiver<()>) = channel();
        let running = running.clone();
        let job = Box::new(move |_: &mut Scratch| {
            running.send(()).unwrap();
            let _ = wait.recv();
        });
        (job, end)
    }

    #[test]
    fn background_jobs_never_take_all_threads() {
        let workers = Workers::start(2).unwrap();
        let (running, runs) = channel();
        let (first, end_first) = blocking(&running);
        let (second, end_second) = blocking(&running);
        assert!(workers.submit(Class::Background, first).is_ok());
        assert!(workers.submit(Class::Serve, second).is_ok());
        runs.recv_timeout(LONG).unwrap();
        let (done, read) = channel();
        assert!(workers.submit(Class::Read, Box::new(move |_| done.send(()).unwrap())).is_ok());
        read.recv_timeout(LONG).expect("the read runs beside the first");
        assert!(runs.try_recv().is_err(), "the second waits");
        drop(end_first);
        drop(end_second);
        runs.recv_timeout(LONG).expect("the second runs after the first");
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn o1_a_hundred_callers_at_a_queue_with_room_for_two_all_end() {
        const CALLERS: usize = 100;
        for class in Class::ALL {
            let workers = Workers::start(1).unwrap();
            let (running, runs) = channel();
            let (first, end) = blocking(&running);
            assert!(workers.submit(Class::Read, first).is_ok());
            runs.recv_timeout(LONG).unwrap();
            for _ in 0..class.bound() - 2 {
                assert!(workers.submit(class, Box::new(|_| {})).is_ok());
            }
            let (done, results) = channel();
            let taken: usize = std::thread::scope(|scope| {
                let submit = || {
                    let done = done.clone();
                    let job = Box::new(move |_: &mut Scratch| done.send(()).unwrap());
                    usize::from(workers.submit(class, job).is_ok())
                };
                let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(submit)).collect();
                callers.into_iter().map(|caller| caller.join().unwrap()).sum()
            });
            assert_eq!(taken, 2, "{class:?}: the others get their job back at once");
            assert!(results.try_recv().is_err(), "the only thread is held up");
            drop(end);
            drop(done);
            let ended = std::iter::from_fn(|| results.recv_timeout(LONG).ok()).count();
            assert_eq!(ended, taken, "{class:?}: what was taken runs, once");
            assert!(workers.stop(LONG).is_empty());
        }
    }

    /// Each read that ends submits two more, as long as there is room, so that the threads never find the lane
    /// of reads empty.
    fn flood(workers: &Arc<Workers>, ran: &Arc<AtomicUsize>) {
        let (again, count) = (Arc::downgrade(workers), ran.clone());
        let job = Box::new(move |_: &mut Scratch| {
            count.fetch_add(1, Ordering::SeqCst);
            if let Some(workers) = again.upgrade() {
                flood(&workers, &count);
                flood(&workers, &count);
            }
        });
        let _ = workers.submit(Class::Read, job);
    }

    #[test]
    fn o2_background_jobs_end_while_reads_keep_coming() {
        let workers = Workers::start(2).unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        flood(&workers, &reads);
        let (done, results) = channel();
        for class in [Class::Background, Class::Serve, Class::Verify] {
            let (done, reads) = (done.clone(), reads.clone());
            let job =
                Box::new(move |_: &mut Scratch| done.send((class, reads.load(Ordering::SeqCst))).unwrap());
            assert!(workers.submit(class, job).is_ok());
        }
        let ended: Vec<_> = (0..3).map(|_| results.recv_timeout(LONG).expect("it isn't starved")).collect();
        assert_eq!(
            ended.iter().map(|(class, _)| *class).collect::<Vec<_>>(),
            [Class::Verify, Class::Serve, Class::Background]
        );
        let background = ended[2].1;
        assert!(background > Class::Read.bound(), "no flood: {background} reads before it");
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn a_panic_is_caught_and_the_worker_lives_on() {
        let workers = Workers::start(1).unwrap();
        assert!(workers.submit(Class::Background, Box::new(|_| std::panic::panic_any("on purpose"))).is_ok());
        let (done, after) = channel();
        let job = Box::new(move |scratch: &mut Scratch| {
            let name = std::thread::current().name().map(str::to_owned);
            done.send((scratch.buffer(10).len(), name)).unwrap();
        });
        assert!(workers.submit(Class::Background, job).is_ok());
        assert_eq!(after.recv_timeout(LONG).unwrap(), (10, Some("storage-0".to_owned())));
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn o6_stop_drops_what_is_queued_names_what_hangs_and_can_be_repeated() {
        struct Counted(Arc<AtomicUsize>, Arc<Workers>);
        impl Drop for Counted {
            fn drop(&mut self) {
                // Would deadlock, or panic, if this ran under the queue's lock.
                assert!(self.1.is_closed());
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let workers = Workers::start(1).unwrap();
        let (running, runs) = channel();
        let (hung, end) = blocking(&running);
        assert!(workers.submit(Class::Read, hung).is_ok());
        runs.recv_timeout(LONG).unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        for _ in 0..5 {
            let counted = Counted(dropped.clone(), workers.clone());
            let job = Box::new(move |_: &mut Scratch| {
                let _counted = &counted;
                std::panic::panic_any("a queued job ran after the stop");
            });
            assert!(workers.submit(Class::Verify, job).is_ok());
        }
        assert_eq!(workers.stop(Duration::ZERO), ["storage-0"]);
        assert_eq!(dropped.load(Ordering::SeqCst), 5);
        assert!(workers.submit(Class::Read, Box::new(|_| {})).is_err(), "refused after the stop");
        assert_eq!(workers.stop(Duration::ZERO), ["storage-0"]);
        drop(end);
        assert!(workers.stop(LONG).is_empty());
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn every_job_runs_once_from_many_submitters() {
        let workers = Workers::start(3).unwrap();
        let (done, results) = channel();
        std::thread::scope(|scope| {
            for class in Class::ALL {
                let (workers, done) = (&workers, done.clone());
                scope.spawn(move || {
                    for n in 0..200 {
                        let done = done.clone();
                        let job = Box::new(move |_: &mut Scratch| done.send((class as usize, n)).unwrap());
                        assert!(workers.submit(class, job).is_ok());
                    }
                });
            }
        });
        drop(done);
        let mut seen: Vec<(usize, u32)> = std::iter::from_fn(|| results.recv_timeout(LONG).ok()).collect();
        seen.sort_unstable();
        let all: Vec<_> = (0..4).flat_map(|class| (0..200).map(move |n| (class, n))).collect();
        assert_eq!(seen, all);
        assert!(workers.stop(LONG).is_empty());
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut scratch = Scratch::default();
        assert_eq!(scratch.buffer(KEPT_BUFFER * 2).len(), KEPT_BUFFER * 2);
        scratch.trim();
        assert_eq!(scratch.buffer.capacity(), 0);
        assert_eq!(scratch.buffer(100).len(), 100);
        assert_eq!(scratch.buffer(10).len(), 10);
        scratch.trim();
        assert!(scratch.buffer.capacity() >= 100);
    }
}
