//! Who holds which lock since when and from where, and who waits for one: known at any time, in builds of every kind.
//!
//! **Goal.** A thread that keeps a lock is named the first time it happens, on the user's machine (row L5); and until
//! then it costs next to nothing.
//!
//! **How.** What a lock has taken is written down by the *thread*, not by the lock: there are few threads and any
//! number of locks, so that no lock has to be registered or taken off a list, and what is written stays in the
//! thread's own cache. Each thread has a record of [`HELD`] slots, in a list that only grows and whose records are
//! used again. To take a lock is six plain stores into a slot, to let it go one; no clock is read. It is always on:
//! a switch would save little, and what was taken before somebody threw it would not be known.
//!
//! **Ages** come from those who look ([`look`]): a slot that shows the same taking as at an earlier look has been held
//! since then at least. The program's watchdog looks many times a second, so ages are right to that, and never too
//! long. Waiting for a lock is slow anyhow, and reads the clock.
//!
//! **Consistency.** A slot may be rewritten while it is looked at. Its version is odd while that happens and another
//! one afterwards; who looks reads it before and after, and takes what is in between only if it was even and the same.
//!
//! **Not here.** Locks of `dashmap` and of libraries; threads beyond their last thread-local's end.

use std::cell::Cell;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use super::Label;

/// Locks of one thread that are followed at a time: there are five ranks, and one more for `try_lock`, which may go
/// against the order. A further one is taken all the same, unseen.
const HELD: usize = 6;

/// A lock that is held, or waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    /// The thread's name.
    pub thread: String,
    /// Its number in the system.
    pub tid: u32,
    /// What messages call the lock.
    pub lock: &'static str,
    /// Which of several of that name: the inode number of an inode's.
    pub key: u64,
    /// Which lock it is: its address.
    pub address: usize,
    /// Where it was taken, or is to be.
    pub site: &'static Location<'static>,
    /// Which taking it is, for telling one from the next of the same lock by the same thread.
    pub version: usize,
    /// How long it has been held at least, or waited for.
    pub since: Duration,
}

/// What all threads hold and wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Locks that are held.
    pub held: Vec<Taking>,
    /// Locks that are waited for.
    pub waiting: Vec<Taking>,
    /// How many were taken since the program began: who spins takes ever more.
    pub taken: u64,
}

/// Everything that was taken just now is held for no time; what an earlier look saw, since then. Waits for nothing
/// but other looks; allocates only for what is found.
pub fn look() -> Look {
    /// Looks change what the next one knows, so they come one after the other.
    static LOOKING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one = LOOKING.lock();
    let now = now();
    let mut found = Look::default();
    let mut at = THREADS.load(Ordering::Acquire);
    // SAFETY: records are leaked, so whatever stands in the list lives for ever.
    while let Some(thread) = unsafe { at.as_ref() } {
        for slot in &thread.held {
            found.taken += slot.taken();
            found.held.extend(slot.read().map(|seen| {
                let same = slot.seen.swap(seen.version, Ordering::Relaxed) == seen.version;
                if !same {
                    slot.since.store(now, Ordering::Relaxed);
                }
                thread.taking(&seen, now.saturating_sub(slot.since.load(Ordering::Relaxed)))
            }));
        }
        found.waiting.extend(thread.waiting.read().map(|seen| {
            let since = thread.waiting.since.load(Ordering::Relaxed);
            thread.taking(&seen, now.saturating_sub(since))
        }));
        at = thread.next.load(Ordering::Acquire);
    }
    found
}

/// Milliseconds since this was first called.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One lock that a thread has taken. Written by its thread alone, but for `seen` and `since` of one that is held.
#[derive(Debug)]
struct Slot {
    /// Odd while the rest is being written, another one afterwards.
    version: AtomicUsize,
    /// The lock's address; 0 when there is none.
    address: AtomicUsize,
    name: AtomicPtr<u8>,
    name_len: AtomicUsize,
    key: AtomicU64,
    site: AtomicPtr<Location<'static>>,
    /// The version that the last look saw.
    seen: AtomicUsize,
    /// When it was seen first, or when waiting began; as [`now`] has it.
    since: AtomicU64,
}

/// What stood in a slot.
struct Seen {
    version: usize,
    address: usize,
    name: &'static str,
    key: u64,
    site: &'static Location<'static>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            address: AtomicUsize::new(0),
            name: AtomicPtr::new(std::ptr::null_mut()),
            name_len: AtomicUsize::new(0),
            key: AtomicU64::new(0),
            site: AtomicPtr::new(std::ptr::null_mut()),
            seen: AtomicUsize::new(0),
            since: AtomicU64::new(0),
        }
    }

    #[inline]
    fn is_free(&self) -> bool {
        self.address.load(Ordering::Relaxed) == 0
    }

    /// By its thread alone.
    #[inline]
    fn write(&self, label: &Label, address: usize, site: &'static Location<'static>) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees any of what follows sees that it is being written, too.
        fence(Ordering::Release);
        self.address.store(address, Ordering::Relaxed);
        self.name.store(label.name.as_ptr().cast_mut(), Ordering::Relaxed);
        self.name_len.store(label.name.len(), Ordering::Relaxed);
        self.key.store(label.key, Ordering::Relaxed);
        self.site.store(std::ptr::from_ref(site).cast_mut(), Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// How many locks have stood in it: each has made two versions.
    fn taken(&self) -> u64 {
        self.version.load(Ordering::Relaxed) as u64 / 2
    }

    /// By its thread alone.
    #[inline]
    fn clear(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// What stands in it; `None` if nothing does, or if it is being written: then it was taken just now.
    fn read(&self) -> Option<Seen> {
        let version = self.version.load(Ordering::Acquire);
        let address = self.address.load(Ordering::Relaxed);
        if version % 2 == 1 || address == 0 {
            return None;
        }
        let name = self.name.load(Ordering::Relaxed);
        let name_len = self.name_len.load(Ordering::Relaxed);
        let key = self.key.load(Ordering::Relaxed);
        let site = self.site.load(Ordering::Relaxed);
        // What was read above came before the look at the version below.
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        // SAFETY: the version was even and hasn't changed, so all of this was written by one call of `write` that was
        // over: pointer and length are those of one `&'static str`, and `site` is a `&'static Location`. `version` is
        // only 0 with an address of 0.
        let (name, site) =
            unsafe { (std::str::from_utf8_unchecked(std::slice::from_raw_parts(name, name_len)), &*site) };
        Some(Seen { version, address, name, key, site })
    }
}

/// What one thread has taken. Never freed; used by another thread after its own has ended.
#[derive(Debug)]
struct Thread {
    next: AtomicPtr<Thread>,
    used: AtomicBool,
    tid: AtomicU32,
    name: parking_lot::Mutex<String>,
    held: [Slot; HELD],
    waiting: Slot,
}

/// The first of all records.
static THREADS: AtomicPtr<Thread> = AtomicPtr::new(std::ptr::null_mut());

impl Thread {
    fn taking(&self, seen: &Seen, since: u64) -> Taking {
        Taking {
            thread: self.name.lock().clone(),
            tid: self.tid.load(Ordering::Relaxed),
            lock: seen.name,
            key: seen.key,
            address: seen.address,
            site: seen.site,
            version: seen.version,
            since: Duration::from_millis(since),
        }
    }

    /// A record for the calling thread: one that was given back, or a new one.
    fn claim() -> &'static Thread {
        let mut at = THREADS.load(Ordering::Acquire);
        // SAFETY: as in `look`.
        while let Some(thread) = unsafe { at.as_ref() } {
            let claimed = thread.used.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                return thread;
            }
            at = thread.next.load(Ordering::Acquire);
        }
        let thread: &'static Thread = Box::leak(Box::new(Thread {
            next: AtomicPtr::new(std::ptr::null_mut()),
            used: AtomicBool::new(true),
            tid: AtomicU32::new(0),
            name: parking_lot::Mutex::new(String::new()),
            held: [const { Slot::new() }; HELD],
            waiting: Slot::new(),
        }));
        let mut first = THREADS.load(Ordering::Relaxed);
        loop {
            thread.next.store(first, Ordering::Relaxed);
            let own = std::ptr::from_ref(thread).cast_mut();
            match THREADS.compare_exchange_weak(first, own, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return thread,
                Err(now) => first = now,
            }
        }
    }
}

thread_local! {
    /// The calling thread's record. Without a destructor, so a look at it is one load.
    static OWN: Cell<Option<&'static Thread>> = const { Cell::new(None) };
    /// Gives it back at the thread's end.
    static LEAVE: Leave = const { Leave };
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(thread) = OWN.take() {
            thread.used.store(false, Ordering::Release);
        }
    }
}

#[inline]
fn own() -> Option<&'static Thread> {
    match OWN.get() {
        Some(thread) => Some(thread),
        None => register(),
    }
}

#[cold]
#[inline(never)]
fn register() -> Option<&'static Thread> {
    // Fails in a thread that is ending: what it takes from now on isn't followed.
    LEAVE.try_with(|_| ()).ok()?;
    let thread = Thread::claim();
    thread.held.iter().chain([&thread.waiting]).for_each(Slot::clear);
    thread.tid.store(nix::unistd::gettid().as_raw().cast_unsigned(), Ordering::Relaxed);
    *thread.name.lock() = std::thread::current().name().unwrap_or("without a name").to_owned();
    OWN.set(Some(thread));
    Some(thread)
}

/// A lock is held as long as this is; dropping it takes it off the record.
#[derive(Debug)]
pub(super) struct Holding(Option<&'static Slot>);

impl Holding {
    /// The calling thread has taken the lock at `address`.
    #[inline]
    pub(super) fn new(label: &Label, address: usize, site: &'static Location<'static>) -> Self {
        let slot = own().and_then(|thread| thread.held.iter().find(|slot| slot.is_free()));
        if let Some(slot) = slot {
            slot.write(label, address, site);
        }
        Self(slot)
    }

    /// Lets it go for as long as `wait` takes, as waiting on a condition does.
    pub(super) fn without<R>(
        &self,
        label: &Label,
        site: &'static Location<'static>,
        wait: impl FnOnce() -> R,
    ) -> R {
        let Some(slot) = self.0 else { return wait() };
        let address = slot.address.load(Ordering::Relaxed);
        slot.clear();
        let result = wait();
        slot.write(label, address, site);
        result
    }
}

impl Drop for Holding {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.clear();
        }
    }
}

/// Waits for the lock at `address` by `lock`, on the record.
#[cold]
#[inline(never)]
pub(super) fn waiting<R>(
    label: &Label,
    address: usize,
    site: &'static Location<'static>,
    lock: impl FnOnce() -> R,
) -> R {
    struct Over(&'static Slot);
    impl Drop for Over {
        fn drop(&mut self) {
            self.0.clear();
        }
    }
    let _over = own().map(|thread| {
        thread.waiting.since.store(now(), Ordering::Relaxed);
        thread.waiting.write(label, address, site);
        Over(&thread.waiting)
    });
    lock()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::lock::{Rank, RankedCondvar, RankedMutex, RankedRwLock};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::sync_channel;
    use std::thread::Builder;

    const LONG: Duration = Duration::from_secs(20);

    /// What is held of the locks of this name.
    fn held(name: &str) -> Vec<Taking> {
        look().held.into_iter().filter(|taking| taking.lock == name).collect()
    }

    fn waiting(name: &str) -> Vec<Taking> {
        look().waiting.into_iter().filter(|taking| taking.lock == name).collect()
    }

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn l5_holder_and_waiter_are_named_with_site_and_age() {
        let lock = Arc::new(RankedMutex::new_keyed(Rank::Inode, 7, "planned stall", ()));
        let (taken, is_taken) = sync_channel(0);
        let (end, ended) = sync_channel::<()>(0);
        let (own, line) = (lock.clone(), line!() + 2);
        let holds = Builder::new().name("the holder".into()).spawn(move || {
            let _guard = own.lock();
            taken.send(nix::unistd::gettid().as_raw().cast_unsigned()).unwrap();
            let _ = ended.recv();
        });
        let tid = is_taken.recv_timeout(LONG).unwrap();
        let own = lock.clone();
        let waits = Builder::new().name("the waiter".into()).spawn(move || drop(own.lock()));
        let first = until(|| waiting("planned stall").pop());
        assert_eq!((first.thread.as_str(), first.key), ("the waiter", 7));
        let [holder] = &held("planned stall")[..] else { panic!("one holder") };
        assert_eq!((holder.thread.as_str(), holder.tid, holder.key), ("the holder", tid, 7));
        assert_eq!((holder.site.file(), holder.site.line()), (file!(), line));
        assert_eq!(holder.address, first.address, "the waiter waits for what the holder holds");
        // The same taking, seen again, has become older; so has the waiting.
        let older = until(|| held("planned stall").pop().filter(|taking| taking.since > holder.since));
        assert_eq!(older.version, holder.version);
        until(|| waiting("planned stall").pop().filter(|taking| taking.since > first.since));
        drop(end);
        holds.unwrap().join().unwrap();
        waits.unwrap().join().unwrap();
        assert!(held("planned stall").is_empty() && waiting("planned stall").is_empty());
    }

    #[test]
    fn each_kind_of_guard_is_on_the_record_and_off_it_afterwards() {
        let mutex = RankedMutex::new(Rank::Filesystem, "kind: mutex", ());
        let rw = RankedRwLock::new(Rank::Storage, "kind: rw", ());
        let guard = mutex.lock();
        let also = rw.read();
        assert_eq!((held("kind: mutex").len(), held("kind: rw").len()), (1, 1));
        // In another order than taken.
        drop(guard);
        assert_eq!((held("kind: mutex").len(), held("kind: rw").len()), (0, 1));
        drop(also);
        drop((rw.write(), mutex.try_lock().unwrap()));
        drop(rw.try_read().unwrap());
        drop(rw.try_write().unwrap());
        let within = rw.read_within(Duration::ZERO).unwrap();
        assert_eq!((held("kind: rw").len(), waiting("kind: rw").len()), (1, 0));
        drop(within);
        assert!(held("kind: mutex").is_empty() && held("kind: rw").is_empty());
    }

    #[test]
    fn each_taking_counts() {
        let lock = RankedMutex::new(Rank::Leaf, "counted", ());
        let before = look().taken;
        (0..1_000).for_each(|_| drop(lock.lock()));
        // Other tests take theirs.
        assert!(look().taken >= before + 1_000);
    }

    #[test]
    fn taking_it_again_begins_anew() {
        let lock = RankedMutex::new(Rank::Leaf, "again", ());
        let first = lock.lock();
        let before = until(|| held("again").pop().filter(|taking| taking.since > Duration::ZERO));
        drop(first);
        let _second = lock.lock();
        let after = held("again").pop().unwrap();
        assert_ne!(after.version, before.version);
        assert_eq!(after.since, Duration::ZERO);
    }

    #[test]
    fn whoever_waits_on_a_condition_holds_nothing() {
        let shared = Arc::new((RankedMutex::new(Rank::Leaf, "condition", 0), RankedCondvar::new()));
        let own = shared.clone();
        let waits = Builder::new().spawn(move || {
            let mut guard = own.0.lock();
            *guard = 1;
            while *guard < 2 {
                own.1.wait(&mut guard);
            }
            assert_eq!(held("condition").len(), 1, "it has it again");
        });
        // It has let go, and so it waits.
        until(|| (*shared.0.lock() == 1).then_some(()));
        assert!(held("condition").is_empty());
        *shared.0.lock() = 2;
        shared.1.notify_all();
        waits.unwrap().join().unwrap();
    }

    #[test]
    fn more_locks_than_slots_are_taken_all_the_same() {
        let locks: Vec<_> = (0..HELD + 2).map(|_| RankedMutex::new(Rank::Leaf, "many", ())).collect();
        let guards: Vec<_> = locks.iter().map(|lock| lock.try_lock().unwrap()).collect();
        assert_eq!(held("many").len(), HELD);
        drop(guards);
        assert!(held("many").is_empty());
        drop(locks[0].lock());
    }

    #[test]
    fn records_are_used_again() {
        static KEPT: AtomicUsize = AtomicUsize::new(0);
        let count = || {
            let mut threads = 0;
            let mut at = THREADS.load(Ordering::Acquire);
            // SAFETY: as in `look`.
            while let Some(thread) = unsafe { at.as_ref() } {
                threads += 1;
                at = thread.next.load(Ordering::Acquire);
            }
            threads
        };
        let lock = Arc::new(RankedMutex::new(Rank::Leaf, "short", ()));
        let before = count();
        for _ in 0..200 {
            let own = lock.clone();
            let thread = Builder::new().spawn(move || {
                drop(own.lock());
                KEPT.fetch_add(1, Ordering::Relaxed);
            });
            thread.unwrap().join().unwrap();
        }
        assert_eq!(KEPT.load(Ordering::Relaxed), 200);
        // Other tests' threads may run beside this one; one after the other they would be 200.
        assert!(count() - before < 100, "{} records for 200 threads one after the other", count() - before);
    }

    #[test]
    fn looks_beside_takings_see_whole_ones_only() {
        let locks: Arc<Vec<RankedMutex<()>>> = Arc::new(
            ["a", "another name", "the third of them"].map(|n| RankedMutex::new(Rank::Leaf, n, ())).into(),
        );
        let stop = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        locks.iter().for_each(|lock| drop(lock.lock()));
                    }
                });
            }
            let mut seen = 0;
            until(|| {
                let mine = |taking: &Taking| {
                    locks.iter().find(|lock| lock.address() == taking.address).map(|lock| lock.label.name)
                };
                for taking in look().held {
                    if let Some(name) = mine(&taking) {
                        assert_eq!(taking.lock, name);
                        assert_eq!(taking.site.file(), file!());
                        seen += 1;
                    }
                }
                (seen > 1_000).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
}
