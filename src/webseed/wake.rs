//! State that several tasks sleep on: level-triggered (row W2).
//!
//! Who waits looks at the state and, in the same turn of the lock, leaves its waker when there is nothing for it; who
//! changes the state takes the wakers out in the same turn. So a change either comes before the look and is seen, or
//! after it and wakes: none is lost, and nobody looks again before something changed. A waiter that is dropped takes
//! its waker back.
//!
//! Deliberately not here: whom of several waiters a change is for. All look; they are few.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use torrentfs_fs::lock::{Rank, RankedMutex};

/// See the module's text.
pub struct Level<T> {
    inner: RankedMutex<Inner<T>>,
}

struct Inner<T> {
    state: T,
    next: u64,
    sleepers: BTreeMap<u64, Waker>,
}

impl<T> Level<T> {
    /// Nobody waits. `name` is that of its lock, a leaf.
    pub fn new(name: &'static str, state: T) -> Self {
        let inner = Inner { state, next: 0, sleepers: BTreeMap::new() };
        Self { inner: RankedMutex::new(Rank::Leaf, name, inner) }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn sleepers(&self) -> usize {
        self.turn(|inner| inner.sleepers.len())
    }

    fn turn<R>(&self, turn: impl FnOnce(&mut Inner<T>) -> R) -> R {
        #[cfg(test)]
        TAKEN.with(|taken| taken.set(taken.get() + 1));
        turn(&mut self.inner.lock())
    }

    /// Looks at the state, or changes it in a way that nobody waits for. `f` must not panic half-way, wait or call out.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.turn(|inner| f(&mut inner.state))
    }

    /// Changes the state, and has all who wait look at it if that is worth a look to them. The same of `f` and `worth`.
    pub fn change<R>(&self, f: impl FnOnce(&mut T) -> R, worth: impl FnOnce(&T) -> bool) -> R {
        let (result, sleepers) = self.turn(|inner| {
            let result = f(&mut inner.state);
            let sleepers =
                if worth(&inner.state) { std::mem::take(&mut inner.sleepers) } else { BTreeMap::new() };
            (result, sleepers)
        });
        sleepers.into_values().for_each(Waker::wake);
        result
    }

    /// Waits until `look` finds something in the state, which it may change. The same of `look`. Cancel-safe: what was
    /// found is returned in the turn in which it was found.
    pub fn until<R, F: FnMut(&mut T) -> Option<R> + Unpin>(&self, look: F) -> Until<'_, T, F> {
        Until { level: self, look, ticket: None }
    }
}

/// See [`Level::until`].
pub struct Until<'a, T, F> {
    level: &'a Level<T>,
    look: F,
    ticket: Option<u64>,
}

impl<T, R, F: FnMut(&mut T) -> Option<R> + Unpin> Future for Until<'_, T, F> {
    type Output = R;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        let this = self.get_mut();
        let (level, look, ticket) = (this.level, &mut this.look, &mut this.ticket);
        let waker = cx.waker().clone();
        // The waker that goes is dropped outside of the lock.
        let (found, _old) = level.turn(|inner| match look(&mut inner.state) {
            Some(found) => (Poll::Ready(found), ticket.take().and_then(|t| inner.sleepers.remove(&t))),
            None => {
                let ticket = *ticket.get_or_insert_with(|| {
                    inner.next += 1;
                    inner.next
                });
                (Poll::Pending, inner.sleepers.insert(ticket, waker))
            }
        });
        found
    }
}

impl<T, F> Drop for Until<'_, T, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _old = self.level.turn(|inner| inner.sleepers.remove(&ticket));
        }
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread took such a lock: whether anybody spins, counted.
    static TAKEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often the calling thread took the lock of any such state.
#[cfg(test)]
pub(super) fn taken_by_this_thread() -> u64 {
    TAKEN.with(std::cell::Cell::get)
}
