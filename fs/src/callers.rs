//! The threads that wait: one open `/proc/<tid>/status` for each, shared by all that it waits for.
//!
//! The file is opened when the thread's read is parked and re-read from then on, never opened again by
//! number: after the thread's end it says so, even if its number has been given to another by then. A thread
//! whose file can't be opened isn't watched at all; its reads end with data, time-out or unmount.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::lock::{Rank, RankedMutex};
use crate::signals::{SigSet, Status, in_a_read, parse_status};

/// A file opened this recently is still its thread's: numbers are handed out in turn, and no machine starts
/// tens of thousands of threads in this time.
const TRUSTED: Duration = Duration::from_millis(100);

/// Room for a status; they are 1–2 KiB.
const STATUS_SIZE: usize = 8192;

/// A thread that waits for something.
#[derive(Debug)]
pub struct Caller {
    /// Its number.
    pub tid: u32,
    status: File,
    seen_alive: RankedMutex<Instant>,
    /// Caught signals that the last look saw, as a set's bits; only the watcher touches it.
    before: AtomicU64,
    /// Its process, once a look has told; 0 before.
    process: AtomicU32,
}

/// Who a caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The thread's name: at first that of its program.
    pub name: String,
    /// The number of its process.
    pub process: u32,
}

/// What a look at a caller brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Its status.
    Alive(Status),
    /// It has ended.
    Gone,
    /// It couldn't be read this time.
    Unknown,
}

impl Caller {
    fn open(tid: u32) -> Option<Self> {
        if tid == 0 {
            // From another PID namespace, or the kernel itself.
            return None;
        }
        let status = File::open(format!("/proc/{tid}/status")).ok()?;
        let seen_alive = RankedMutex::new(Rank::Leaf, "caller", Instant::now());
        Some(Self { tid, status, seen_alive, before: AtomicU64::new(0), process: AtomicU32::new(0) })
    }

    /// Reads its status: 4–14 µs.
    pub fn look(&self) -> Look {
        let mut text = [0u8; STATUS_SIZE];
        match self.status.read_at(&mut text, 0) {
            Ok(0) => Look::Gone,
            Ok(length) => match parse_status(text.get(..length).unwrap_or_default()) {
                Some(status) => {
                    *self.seen_alive.lock() = Instant::now();
                    self.process.store(status.tgid, Ordering::Relaxed);
                    Look::Alive(status)
                }
                None => Look::Unknown,
            },
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Look::Gone,
            Err(_) => Look::Unknown,
        }
    }

    /// Its name and its process, read from its status now; `None` when it has ended.
    pub fn identity(&self) -> Option<Identity> {
        let mut text = [0u8; STATUS_SIZE];
        let length = self.status.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(text.get(..length)?).into_owned();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Identity { name: field("Name:")?.to_owned(), process: field("Tgid:")?.parse().ok()? })
    }

    /// The process it belongs to, if it was looked at.
    pub fn process(&self) -> Option<u32> {
        Some(self.process.load(Ordering::Relaxed)).filter(|process| *process != 0)
    }

    /// Whether it is in a system call that reads, by all we may see (as a user, a thread of another session
    /// may not be seen, and then it isn't).
    pub fn in_a_read(&self) -> bool {
        let reads = std::fs::read(format!("/proc/{}/syscall", self.tid)).is_ok_and(|text| in_a_read(&text));
        // That was opened by number: was it still the same thread's?
        reads && matches!(self.look(), Look::Alive(_))
    }

    /// Remembers what this look saw, and gives what this look and the one before it saw.
    pub fn seen_twice(&self, now: SigSet) -> SigSet {
        SigSet(self.before.swap(now.0, Ordering::Relaxed)).and(now)
    }

    fn is_alive(&self) -> bool {
        let seen = *self.seen_alive.lock();
        seen.elapsed() < TRUSTED || matches!(self.look(), Look::Alive(status) if !status.dead)
    }
}

/// The callers that wait now.
#[derive(Debug)]
pub struct Callers {
    /// Most files kept open: the rest of the process needs some too.
    most: usize,
    known: RankedMutex<HashMap<u32, Weak<Caller>>>,
}

impl Callers {
    /// Watches so many threads at most.
    pub fn new(most: usize) -> Self {
        Self { most, known: RankedMutex::new(Rank::Leaf, "callers", HashMap::new()) }
    }

    /// The caller of that number, opened if it isn't; `None` if it can't be watched.
    pub fn get(&self, tid: u32) -> Option<Arc<Caller>> {
        let (known, full) = {
            let known = self.known.lock();
            (known.get(&tid).and_then(Weak::upgrade), known.len() >= self.most)
        };
        if let Some(caller) = known
            && caller.is_alive()
        {
            return Some(caller);
        }
        if full {
            self.prune();
            if self.known.lock().len() >= self.most {
                return None;
            }
        }
        let caller = Arc::new(Caller::open(tid)?);
        self.known.lock().insert(tid, Arc::downgrade(&caller));
        Some(caller)
    }

    /// Forgets those that wait no more.
    pub fn prune(&self) {
        self.known.lock().retain(|_, caller| caller.strong_count() > 0);
    }

    /// Number of callers known, some of which may wait no more.
    pub fn len(&self) -> usize {
        self.known.lock().len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn own_tid() -> u32 {
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        link.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_that_ended_is_seen_to_be_gone() {
        let callers = Callers::new(10);
        let (sender, receiver) = std::sync::mpsc::sync_channel(0);
        let (end, ended) = std::sync::mpsc::sync_channel::<()>(0);
        let thread = std::thread::Builder::new()
            .spawn(move || {
                sender.send(own_tid()).unwrap();
                let _ = ended.recv();
            })
            .unwrap();
        let caller = callers.get(receiver.recv().unwrap()).unwrap();
        assert_eq!(caller.identity().unwrap().process, std::process::id());
        assert!(matches!(caller.look(), Look::Alive(status) if status.tgid == std::process::id()));
        assert!(!caller.in_a_read(), "it waits on a channel");
        drop(end);
        thread.join().unwrap();
        // Joining returns a moment before the kernel has let the thread go.
        while caller.look() != Look::Gone {
            std::thread::yield_now();
        }
        assert!(!caller.in_a_read());
        assert_eq!(caller.identity(), None);
    }

    #[test]
    fn callers_are_shared_bounded_and_never_of_number_0() {
        let callers = Callers::new(1);
        assert!(callers.get(0).is_none());
        let own = callers.get(own_tid()).unwrap();
        assert!(Arc::ptr_eq(&own, &callers.get(own_tid()).unwrap()));
        assert!(callers.get(1).is_none(), "full");
        drop(own);
        callers.prune();
        assert!(callers.is_empty());
        assert!(callers.get(1).is_some());
    }

    #[test]
    fn twice_in_a_row_means_both_looks() {
        let caller = Caller::open(own_tid()).unwrap();
        let (a, b) = (SigSet(1), SigSet(3));
        assert_eq!(caller.seen_twice(a), SigSet(0));
        assert_eq!(caller.seen_twice(b), a);
        assert_eq!(caller.seen_twice(SigSet(0)), SigSet(0));
        assert_eq!(caller.seen_twice(b), SigSet(0));
    }
}
