//! Ranked locks: the one kind of lock there is in the program.
//!
//! **Goal.** A lock order that can't be broken unnoticed. The order's key is ([`Rank`], key): filesystem, inode,
//! client, storage, leaf; two inodes only in ascending number, otherwise never two locks of one rank.
//!
//! **Parts.** [`RankedMutex`], [`RankedRwLock`], their guards, [`RankedCondvar`], and [`assert_none_held`];
//! [`holders`] knows who holds which lock and who waits for one.
//!
//! **Flow.** In builds with debug assertions each thread keeps the list of the locks it holds, with the place
//! each was taken at. Waiting for a lock whose key is not above all of those held panics and names both places
//! (while unwinding already, it is logged instead: a second panic would abort). Guards may be let go in any
//! order. `try_lock` can't wait, so it is never refused by order; what it got counts from then on. In builds
//! without debug assertions the order isn't checked. Who holds what is written down in builds of every kind.
//!
//! **Not here.** There is no poisoning: what a panic may leave half done under a guard is marked where it
//! is. Shard locks of `dashmap` are not seen; those maps are used as leaves only.
#![allow(clippy::disallowed_types)] // The wrapper around what is banned everywhere else.

pub mod holders;
/// The atomics of code that a model runs: there they are others, and so are the locks.
pub use std::sync::atomic;

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::Duration;

use holders::Holding;
use order::Token;

/// Where a lock stands in the order; a thread takes locks in ascending rank only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The tree of entries and the inode table.
    Filesystem,
    /// One inode: the handles open on it. Several only in ascending inode number.
    Inode,
    /// The client's table of torrents and its global limits.
    Client,
    /// One store's own bookkeeping.
    Storage,
    /// Held for a few instructions, with nothing taken under it.
    Leaf,
}

/// What is known of a lock.
#[derive(Debug, Clone, Copy)]
struct Label {
    #[cfg(debug_assertions)]
    rank: Rank,
    key: u64,
    name: &'static str,
}

impl Label {
    #[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "the rank is checked there only"))]
    const fn new(rank: Rank, key: u64, name: &'static str) -> Self {
        Label {
            #[cfg(debug_assertions)]
            rank,
            key,
            name,
        }
    }
}

/// What a guard leaves on the record: of the thread's order, and of who holds what.
#[derive(Debug)]
struct Mark {
    token: Token,
    holding: Holding,
}

impl Mark {
    #[inline]
    fn new(label: &Label, address: usize, site: &'static Location<'static>) -> Self {
        Self { token: order::push(*label, site), holding: Holding::new(label, address, site) }
    }
}

/// The calling thread's list of held locks.
#[cfg(debug_assertions)]
mod order {
    use super::Label;
    use std::cell::{Cell, RefCell};
    use std::panic::Location;

    struct Held {
        token: u64,
        label: Label,
        site: &'static Location<'static>,
    }

    thread_local! {
        static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
        static NEXT: Cell<u64> = const { Cell::new(1) };
    }

    fn complain(message: &str) {
        if std::thread::panicking() {
            tracing::error!("{message}");
        } else {
            panic!("{message}");
        }
    }

    /// Complains when waiting for this lock could deadlock.
    pub(super) fn check(label: Label, site: &'static Location<'static>) {
        let message = HELD.try_with(|held| {
            let held = held.borrow();
            let worst = held.iter().find(|h| (h.label.rank, h.label.key) >= (label.rank, label.key))?;
            Some(format!(
                "lock order: taking {} ({:?}, key {}) at {site} while holding {} ({:?}, key {}) taken at {}",
                label.name,
                label.rank,
                label.key,
                worst.label.name,
                worst.label.rank,
                worst.label.key,
                worst.site,
            ))
        });
        if let Ok(Some(message)) = message {
            complain(&message);
        }
    }

    /// Notes that a lock is held now; the entry goes when the token is dropped.
    pub(super) fn push(label: Label, site: &'static Location<'static>) -> Token {
        let token = NEXT.try_with(|next| next.replace(next.get() + 1)).unwrap_or(0);
        let _ = HELD.try_with(|held| held.borrow_mut().push(Held { token, label, site }));
        Token(token)
    }

    /// Complains when anything but the lock of `token` is held.
    pub(super) fn check_only(token: &Token, site: &'static Location<'static>) {
        let message = HELD.try_with(|held| {
            let held = held.borrow();
            let other = held.iter().find(|h| h.token != token.0)?;
            Some(format!(
                "lock order: waiting on a condition at {site} while holding {} taken at {}",
                other.label.name, other.site
            ))
        });
        if let Ok(Some(message)) = message {
            complain(&message);
        }
    }

    pub(super) fn check_none(context: &str) {
        let message = HELD.try_with(|held| {
            let held = held.borrow();
            let first = held.first()?;
            Some(format!(
                "lock order: {} lock(s) still held after {context}: {} taken at {}",
                held.len(),
                first.label.name,
                first.site
            ))
        });
        if let Ok(Some(message)) = message {
            complain(&message);
        }
    }

    #[derive(Debug)]
    pub(super) struct Token(u64);

    impl Drop for Token {
        fn drop(&mut self) {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|h| h.token == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

/// The same without debug assertions: nothing.
#[cfg(not(debug_assertions))]
mod order {
    use super::Label;
    use std::panic::Location;

    #[derive(Debug)]
    pub(super) struct Token;
    #[inline(always)]
    pub(super) fn check(_: Label, _: &'static Location<'static>) {}
    #[inline(always)]
    pub(super) fn push(_: Label, _: &'static Location<'static>) -> Token {
        Token
    }
    #[inline(always)]
    pub(super) fn check_only(_: &Token, _: &'static Location<'static>) {}
    #[inline(always)]
    pub(super) fn check_none(_: &str) {}
}

/// Panics (or logs while unwinding) if the calling thread holds a ranked lock; for after each poll of a task
/// and each filesystem operation, which `context` names. Does nothing without debug assertions.
#[inline]
pub fn assert_none_held(context: &str) {
    order::check_none(context);
}

/// A mutex with a place in the lock order.
#[derive(Debug)]
pub struct RankedMutex<T: ?Sized> {
    label: Label,
    inner: parking_lot::Mutex<T>,
}

impl<T> RankedMutex<T> {
    /// A mutex of this rank; `name` is what messages call it.
    pub const fn new(rank: Rank, name: &'static str, value: T) -> Self {
        Self::new_keyed(rank, 0, name, value)
    }

    /// A mutex of this rank, one of several that may be held together in ascending `key` (the inode number).
    pub const fn new_keyed(rank: Rank, key: u64, name: &'static str, value: T) -> Self {
        Self { label: Label::new(rank, key, name), inner: parking_lot::Mutex::new(value) }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> RankedMutex<T> {
    fn address(&self) -> usize {
        std::ptr::from_ref(&self.inner).cast::<()>().addr()
    }

    /// Locks; waits for the holder, which holds it for instructions, never for I/O. Panics on a breach of the
    /// order in builds with debug assertions.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> RankedGuard<'_, T> {
        let (site, address) = (Location::caller(), self.address());
        order::check(self.label, site);
        let inner = match self.inner.try_lock() {
            Some(inner) => inner,
            None => holders::waiting(&self.label, address, site, || self.inner.lock()),
        };
        RankedGuard {
            inner,
            mark: Mark::new(&self.label, address, site),
            label: &self.label,
            not_send: PhantomData,
        }
    }

    /// Locks if nobody holds it. Never waits, so never refused by the order.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<RankedGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        let mark = Mark::new(&self.label, self.address(), Location::caller());
        Some(RankedGuard { inner, mark, label: &self.label, not_send: PhantomData })
    }

    /// The value through a unique reference, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// A locked [`RankedMutex`]; dropping it unlocks. Stays on its thread and never crosses an `.await`.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks"]
pub struct RankedGuard<'a, T: ?Sized> {
    // Unlocked first, then taken off the record.
    inner: parking_lot::MutexGuard<'a, T>,
    mark: Mark,
    label: &'a Label,
    // Whatever features parking_lot was built with.
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized> Deref for RankedGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RankedGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A reader-writer lock with a place in the lock order. Reading twice on one thread counts as a breach too: a
/// writer that waits in between would stop both.
#[derive(Debug)]
pub struct RankedRwLock<T: ?Sized> {
    label: Label,
    inner: parking_lot::RwLock<T>,
}

impl<T> RankedRwLock<T> {
    /// A lock of this rank; `name` is what messages call it.
    pub const fn new(rank: Rank, name: &'static str, value: T) -> Self {
        Self::new_keyed(rank, 0, name, value)
    }

    /// A lock of this rank, one of several that may be held together in ascending `key`.
    pub const fn new_keyed(rank: Rank, key: u64, name: &'static str, value: T) -> Self {
        Self { label: Label::new(rank, key, name), inner: parking_lot::RwLock::new(value) }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> RankedRwLock<T> {
    fn address(&self) -> usize {
        std::ptr::from_ref(&self.inner).cast::<()>().addr()
    }

    fn mark(&self, site: &'static Location<'static>) -> Mark {
        Mark::new(&self.label, self.address(), site)
    }

    /// Locks for reading; waits for a writer. Panics on a breach of the order with debug assertions.
    #[inline]
    #[track_caller]
    pub fn read(&self) -> RankedReadGuard<'_, T> {
        let site = Location::caller();
        order::check(self.label, site);
        let inner = match self.inner.try_read() {
            Some(inner) => inner,
            None => holders::waiting(&self.label, self.address(), site, || self.inner.read()),
        };
        RankedReadGuard { inner, _mark: self.mark(site), not_send: PhantomData }
    }

    /// Locks for writing; waits for all others. Panics on a breach of the order with debug assertions.
    #[inline]
    #[track_caller]
    pub fn write(&self) -> RankedWriteGuard<'_, T> {
        let site = Location::caller();
        order::check(self.label, site);
        let inner = match self.inner.try_write() {
            Some(inner) => inner,
            None => holders::waiting(&self.label, self.address(), site, || self.inner.write()),
        };
        RankedWriteGuard { inner, _mark: self.mark(site), not_send: PhantomData }
    }

    /// Locks for reading if no writer holds it or waits. Never waits.
    #[inline]
    #[track_caller]
    pub fn try_read(&self) -> Option<RankedReadGuard<'_, T>> {
        let inner = self.inner.try_read()?;
        Some(RankedReadGuard { inner, _mark: self.mark(Location::caller()), not_send: PhantomData })
    }

    /// Locks for reading, and waits for that so long at most: for who looks because something may be wrong.
    #[track_caller]
    pub fn read_within(&self, limit: Duration) -> Option<RankedReadGuard<'_, T>> {
        let site = Location::caller();
        order::check(self.label, site);
        let inner = holders::waiting(&self.label, self.address(), site, || self.inner.try_read_for(limit))?;
        Some(RankedReadGuard { inner, _mark: self.mark(site), not_send: PhantomData })
    }

    /// Locks for writing if nobody holds it. Never waits.
    #[inline]
    #[track_caller]
    pub fn try_write(&self) -> Option<RankedWriteGuard<'_, T>> {
        let inner = self.inner.try_write()?;
        Some(RankedWriteGuard { inner, _mark: self.mark(Location::caller()), not_send: PhantomData })
    }

    /// The value through a unique reference, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// A [`RankedRwLock`] locked for reading; dropping it unlocks. Stays on its thread.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks"]
pub struct RankedReadGuard<'a, T: ?Sized> {
    inner: parking_lot::RwLockReadGuard<'a, T>,
    _mark: Mark,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized> Deref for RankedReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

/// A [`RankedRwLock`] locked for writing; dropping it unlocks. Stays on its thread.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks"]
pub struct RankedWriteGuard<'a, T: ?Sized> {
    inner: parking_lot::RwLockWriteGuard<'a, T>,
    _mark: Mark,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized> Deref for RankedWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RankedWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A condition to wait on with a [`RankedGuard`], whose lock is let go meanwhile. Waiting while any other
/// lock is held panics with debug assertions.
#[derive(Debug, Default)]
pub struct RankedCondvar {
    inner: parking_lot::Condvar,
}

impl RankedCondvar {
    /// A condition nobody waits on.
    pub const fn new() -> Self {
        Self { inner: parking_lot::Condvar::new() }
    }

    /// Waits until notified, without a bound: only for a worker that is notified at its end. May wake for
    /// nothing, so look again.
    #[track_caller]
    pub fn wait<T: ?Sized>(&self, guard: &mut RankedGuard<'_, T>) {
        let site = Location::caller();
        order::check_only(&guard.mark.token, site);
        let RankedGuard { inner, mark, label, .. } = guard;
        mark.holding.without(label, site, || self.inner.wait(inner));
    }

    /// Waits until notified or for this long at most; true when the time ran out. May wake for nothing.
    #[track_caller]
    pub fn wait_timeout<T: ?Sized>(&self, guard: &mut RankedGuard<'_, T>, timeout: Duration) -> bool {
        let site = Location::caller();
        order::check_only(&guard.mark.token, site);
        let RankedGuard { inner, mark, label, .. } = guard;
        mark.holding.without(label, site, || self.inner.wait_for(inner, timeout)).timed_out()
    }

    /// Wakes one waiter.
    pub fn notify_one(&self) {
        self.inner.notify_one();
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.inner.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    fn panic_text(run: impl FnOnce()) -> Option<String> {
        let caught = catch_unwind(AssertUnwindSafe(run)).err()?;
        Some(caught.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    /// Which guards may go to another thread. A type that is `Send` has a method of its own name and the trait's, and its
    /// own comes first; others have the trait's alone.
    struct Sends<T>(std::marker::PhantomData<T>);

    impl<T: Send> Sends<T> {
        fn sends(&self) -> bool {
            true
        }
    }

    trait Stays {
        fn sends(&self) -> bool {
            false
        }
    }

    impl<T> Stays for Sends<T> {}

    #[test]
    fn no_guard_leaves_its_thread() {
        assert!(Sends::<u8>(std::marker::PhantomData).sends(), "what may go is told from what may not");
        assert!(!Sends::<RankedGuard<'_, u8>>(std::marker::PhantomData).sends());
        assert!(!Sends::<RankedReadGuard<'_, u8>>(std::marker::PhantomData).sends());
        assert!(!Sends::<RankedWriteGuard<'_, u8>>(std::marker::PhantomData).sends());
    }

    #[test]
    fn ascending_order_is_fine_and_release_is_in_any_order() {
        let fs = RankedRwLock::new(Rank::Filesystem, "fs", 1);
        let inode = RankedMutex::new_keyed(Rank::Inode, 7, "inode", 2);
        let next = RankedMutex::new_keyed(Rank::Inode, 9, "inode", 3);
        let leaf = RankedMutex::new(Rank::Leaf, "leaf", 4);
        let a = fs.read();
        let b = inode.lock();
        let c = next.lock();
        drop(a);
        let d = leaf.lock();
        drop(b);
        drop(d);
        drop(c);
        assert_none_held("the test");
        let _again = fs.write();
    }

    #[test]
    fn l3_re_entry_panics_and_names_both_sites() {
        let lock = RankedMutex::new(Rank::Client, "the client", ());
        let text = panic_text(|| {
            let _a = lock.lock();
            let _b = lock.lock();
        })
        .expect("re-entry panics");
        assert!(text.contains("the client"), "{text}");
        assert_eq!(text.matches("lock.rs:").count(), 2, "{text}");
        // Everything was let go on the way out.
        assert_none_held("unwinding");
        drop(lock.lock());
    }

    #[test]
    fn l3_reading_twice_panics() {
        let lock = RankedRwLock::new(Rank::Filesystem, "tree", ());
        assert!(
            panic_text(|| {
                let _a = lock.read();
                let _b = lock.read();
            })
            .is_some()
        );
    }

    #[test]
    fn l3_wrong_order_panics_for_every_pair() {
        let ranks = [Rank::Filesystem, Rank::Inode, Rank::Client, Rank::Storage, Rank::Leaf];
        for (i, first) in ranks.into_iter().enumerate() {
            for (j, second) in ranks.into_iter().enumerate() {
                let a = RankedMutex::new(first, "a", ());
                let b = RankedMutex::new(second, "b", ());
                let text = panic_text(|| {
                    let _a = a.lock();
                    let _b = b.lock();
                });
                assert_eq!(text.is_some(), j <= i, "{first:?} then {second:?}: {text:?}");
            }
        }
    }

    #[test]
    fn two_inodes_only_in_ascending_number() {
        let low = RankedMutex::new_keyed(Rank::Inode, 1, "inode", ());
        let high = RankedMutex::new_keyed(Rank::Inode, 2, "inode", ());
        assert!(
            panic_text(|| {
                let _a = low.lock();
                let _b = high.lock();
            })
            .is_none()
        );
        assert!(
            panic_text(|| {
                let _a = high.lock();
                let _b = low.lock();
            })
            .is_some()
        );
    }

    #[test]
    fn try_lock_is_never_refused_by_order_but_counts() {
        let fs = RankedMutex::new(Rank::Filesystem, "fs", ());
        let leaf = RankedMutex::new(Rank::Leaf, "leaf", ());
        let held = leaf.lock();
        let got = fs.try_lock();
        assert!(got.is_some());
        assert!(fs.try_lock().is_none());
        drop(held);
        assert!(panic_text(|| drop(fs.lock())).is_some());
        drop(got);
        drop(fs.lock());
    }

    #[test]
    fn while_unwinding_a_breach_is_logged_only() {
        struct Breach<'a>(&'a RankedMutex<()>, &'a RankedMutex<()>);
        impl Drop for Breach<'_> {
            fn drop(&mut self) {
                let _b = self.1.lock();
                let _a = self.0.lock();
            }
        }
        let a = RankedMutex::new(Rank::Client, "a", ());
        let b = RankedMutex::new(Rank::Leaf, "b", ());
        let text = panic_text(|| {
            let _breach = Breach(&a, &b);
            std::panic::panic_any("first".to_string());
        });
        assert_eq!(text.as_deref(), Some("first"));
    }

    #[test]
    fn l4_a_lock_kept_after_an_operation_is_found() {
        let lock = RankedMutex::new(Rank::Storage, "store", ());
        let text = panic_text(|| {
            let _kept = lock.lock();
            assert_none_held("verify");
        })
        .expect("found");
        assert!(text.contains("verify") && text.contains("store"), "{text}");
    }

    #[test]
    fn l3_waiting_on_a_condition_under_another_lock_panics() {
        let outer = RankedMutex::new(Rank::Client, "outer", ());
        let lock = RankedMutex::new(Rank::Leaf, "queue", ());
        let condition = RankedCondvar::new();
        assert!(
            panic_text(|| {
                let _outer = outer.lock();
                let mut guard = lock.lock();
                condition.wait_timeout(&mut guard, Duration::from_millis(1));
            })
            .is_some()
        );
    }

    #[test]
    fn a_condition_wakes_its_waiter() {
        let shared = Arc::new((RankedMutex::new(Rank::Leaf, "flag", false), RankedCondvar::new()));
        let other = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut guard = other.0.lock();
            while !*guard {
                other.1.wait(&mut guard);
            }
            drop(guard);
            assert_none_held("waiting");
        });
        *shared.0.lock() = true;
        shared.1.notify_all();
        thread.join().unwrap();
        let mut guard = shared.0.lock();
        assert!(shared.1.wait_timeout(&mut guard, Duration::from_millis(1)));
    }
}
