//! Some of the program's sources with other locks, atomics and surroundings: those of a model.
//!
//! **Goal.** What races in the program is run through every order in which its threads can meet ([`loom`] does that),
//! and it is the program's own text that is run, not a copy of it.
//!
//! **How.** The sources are taken in by path. What they name (`crate::lock`, `torrentfs_fs::lock`, `dashmap`, …) is
//! found here: locks and atomics are loom's, the map of parked reads is one of loom's locks around a plain map, and
//! callers are nobody. The content, the tree and the table of error numbers are the program's own.
//!
//! **Parts.** [`parked`], the table of parked reads; [`notifier`], who waits for which piece; [`wake`], on what requesters
//! of webseeds sleep; around them what they name. The models are in `tests/`.
//!
//! **Not here.** The order of locks, time, and what a condition is waited on for.

extern crate self as dashmap;
extern crate self as torrentfs_fs;

use std::collections::BTreeMap;
use std::ops::Deref;

#[path = "../../../fs/src/content.rs"]
pub mod content;
#[path = "../../../fs/src/errno.rs"]
pub mod errno;
pub mod lock;
#[path = "../../../src/torrent/notifier.rs"]
pub mod notifier;
#[allow(dead_code, reason = "the models need a part of it")]
#[path = "../../../fs/src/parked/table.rs"]
pub mod parked;
#[path = "../../../fs/src/tree.rs"]
pub mod tree;
#[allow(dead_code, reason = "the models need a part of it")]
#[path = "../../../src/webseed/wake.rs"]
pub mod wake;

impl parked::ParkedReads {
    /// Ends all parked reads, as the watcher does when it sees a signal.
    pub fn interrupt(&self) {
        for read in self.all() {
            self.answer(&read, Err(errno::Errno::EINTR));
        }
    }

    /// Sleeps as the watcher does, until something is parked.
    pub fn watch(&self) -> bool {
        self.sleep_while_empty()
    }
}

/// Who waits: nobody, as far as can be seen.
pub mod callers {
    use std::sync::Arc;

    /// A thread that waits; there is none.
    pub enum Caller {}

    /// The threads that wait.
    pub struct Callers;

    impl Callers {
        /// As many as you like.
        pub fn new(_: usize) -> Self {
            Self
        }
        /// Nobody.
        pub fn get(&self, _: u32) -> Option<Arc<Caller>> {
            None
        }
    }
}

/// What a piece is called.
pub mod metainfo {
    /// See above.
    pub mod geometry {
        /// The number of a piece.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct PieceIndex(pub u32);
    }
}

/// A map that threads share. It is gone through as the program's is: what comes or goes meanwhile may be met or not.
pub struct DashMap<K, V>(loom::sync::Mutex<BTreeMap<K, V>>);

/// A value of it.
pub struct Ref<V>(V);

impl<V> Deref for Ref<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.0
    }
}

impl<V> Ref<V> {
    /// The value.
    pub fn value(&self) -> &V {
        &self.0
    }
}

impl<K: Ord + Copy, V: Clone> DashMap<K, V> {
    /// Nothing in it.
    pub fn new() -> Self {
        Self(loom::sync::Mutex::new(BTreeMap::new()))
    }

    fn map(&self) -> loom::sync::MutexGuard<'_, BTreeMap<K, V>> {
        // A panic ends the model.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts a value in.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.map().insert(key, value)
    }

    /// Takes a value out.
    pub fn remove(&self, key: &K) -> Option<(K, V)> {
        self.map().remove_entry(key)
    }

    /// Its values, looked up one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Ref<V>> + '_ {
        let keys: Vec<K> = self.map().keys().copied().collect();
        keys.into_iter().filter_map(|key| Some(Ref(self.map().get(&key)?.clone())))
    }
}

impl<K: Ord + Copy, V: Clone> Default for DashMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}
