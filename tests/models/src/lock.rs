//! The program's locks as a model has them: without ranks and without time.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

pub use loom::sync::atomic;

/// Where a lock stands in the order, which no model looks at.
pub enum Rank {
    /// The only one that is needed.
    Leaf,
}

/// A lock.
pub struct RankedMutex<T>(loom::sync::Mutex<T>);

/// It is held as long as this is.
pub struct RankedGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> RankedMutex<T> {
    /// A lock around a value.
    pub fn new(_: Rank, _: &'static str, value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Locks.
    pub fn lock(&self) -> RankedGuard<'_, T> {
        RankedGuard(Some(self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }
}

impl<T> Deref for RankedGuard<'_, T> {
    type Target = T;
    #[allow(clippy::expect_used, reason = "it is away only while a condition is waited on")]
    fn deref(&self) -> &T {
        self.0.as_deref().expect("held")
    }
}

impl<T> DerefMut for RankedGuard<'_, T> {
    #[allow(clippy::expect_used, reason = "as above")]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_deref_mut().expect("held")
    }
}

/// A condition.
pub struct RankedCondvar(loom::sync::Condvar);

impl RankedCondvar {
    /// Nobody waits on it.
    #[allow(clippy::new_without_default, reason = "as the program's is made")]
    pub fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    /// Waits until notified.
    pub fn wait<T>(&self, guard: &mut RankedGuard<'_, T>) {
        guard.0 =
            guard.0.take().map(|held| self.0.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// Waits until notified: in a model no time passes.
    pub fn wait_timeout<T>(&self, guard: &mut RankedGuard<'_, T>, _: Duration) -> bool {
        self.wait(guard);
        false
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
