//! The one table of slices that are being fetched, of all webseeds of the program (row W5).
//!
//! Keyed by torrent, URL, the way in which that is asked, and slice; each entry has a generation. A claim is an object:
//! when it goes, in whatever way, so does its entry, unless a later claim of the same slice has taken its place. A later
//! claim cuts the one before: that belongs to a webseed that was removed, or was given up. All numbers are counted from
//! the entries.
//!
//! Deliberately not here: what a slice is made of, and what comes of it (`desk`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::url::Kind;

/// What is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The torrent's info-hash.
    pub torrent: [u8; 20],
    /// The webseed's URL as it stands in the torrent.
    pub url: Arc<str>,
    /// How it is asked: one URL may be named for both ways, which makes two webseeds.
    pub kind: Kind,
    /// The slice's first byte in the torrent's linear space.
    pub slice: u64,
}

/// How far a claimed slice is. Written by who fetches it, read by who looks for one to cut.
#[derive(Debug)]
pub(super) struct Progress {
    /// Bytes that are still to come.
    pub left: AtomicU64,
    /// A request is under way.
    pub started: AtomicBool,
    /// The answer to it has begun, and is what was asked for.
    pub answered: AtomicBool,
    /// A read waits for a part of it.
    pub urgent: AtomicBool,
    /// Cancelled when it is to be given up.
    pub cut: CancellationToken,
}

impl Progress {
    /// Of a slice of so many bytes.
    pub(super) fn new(len: u64, urgent: bool) -> Arc<Self> {
        let (left, cut) = (AtomicU64::new(len), CancellationToken::new());
        let [started, answered] = [false; 2].map(AtomicBool::new);
        Arc::new(Self { left, started, answered, urgent: AtomicBool::new(urgent), cut })
    }

    /// Whether a read waits for a part of it.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// What cutting it would save, in bytes; `None` when it isn't to be cut for something urgent.
    pub(super) fn spare(&self) -> Option<u64> {
        if self.is_urgent() || self.cut.is_cancelled() {
            return None;
        }
        // What wasn't begun loses nothing.
        let began = self.started.load(Ordering::Relaxed);
        Some(if began { self.left.load(Ordering::Relaxed) } else { u64::MAX })
    }
}

struct Entry {
    generation: u64,
    host: Option<Arc<str>>,
    progress: Arc<Progress>,
}

/// See the module's text.
pub(super) struct Table {
    entries: RankedMutex<HashMap<Key, Entry>>,
    next: AtomicU64,
}

/// A claimed slice. Dropping it gives it up.
pub(super) struct Claim {
    table: Arc<Table>,
    key: Key,
    generation: u64,
}

impl Table {
    /// Nothing is claimed.
    pub(super) fn new() -> Arc<Self> {
        let entries = RankedMutex::new(Rank::Leaf, "claimed slices", HashMap::new());
        Arc::new(Self { entries, next: AtomicU64::new(1) })
    }

    /// A number that no claim had before.
    pub(super) fn generation(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Claims a slice.
    pub(super) fn claim(self: &Arc<Self>, key: Key, generation: u64, progress: Arc<Progress>) -> Claim {
        let before = self.entries.lock().insert(key.clone(), Entry { generation, host: None, progress });
        if let Some(before) = before {
            before.progress.cut.cancel();
        }
        Claim { table: self.clone(), key, generation }
    }

    /// Cuts what loses most by waiting for it, of what is fetched from this host and nobody waits for: something
    /// urgent needs its place. False if nothing is worth it: less than `least` bytes would be saved.
    pub(super) fn cut_for_urgent(&self, host: &str, least: u64) -> bool {
        let found = {
            let entries = self.entries.lock();
            let here = entries.values().filter(|e| e.host.as_deref() == Some(host));
            let spare = here.filter_map(|e| Some((e.progress.spare()?, &e.progress)));
            spare.filter(|(spare, _)| *spare >= least).max_by_key(|(spare, _)| *spare).map(|(_, p)| p.clone())
        };
        found.is_some_and(|progress| {
            progress.cut.cancel();
            true
        })
    }

    /// Claims and the bytes that are still to come of them.
    pub(super) fn count(&self) -> (usize, u64) {
        let entries = self.entries.lock();
        (entries.len(), entries.values().map(|e| e.progress.left.load(Ordering::Relaxed)).sum())
    }
}

impl Claim {
    /// It is fetched from this host now.
    pub(super) fn goes_to(&self, host: &Arc<str>) {
        let old = {
            let mut entries = self.table.entries.lock();
            let own = entries.get_mut(&self.key).filter(|e| e.generation == self.generation);
            own.and_then(|entry| entry.host.replace(host.clone()))
        };
        drop(old);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let old = {
            let mut entries = self.table.entries.lock();
            let own = entries.get(&self.key).is_some_and(|e| e.generation == self.generation);
            if own { entries.remove(&self.key) } else { None }
        };
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn key(slice: u64) -> Key {
        Key { torrent: [1; 20], url: "http://a.example/".into(), kind: Kind::Url, slice }
    }

    impl Table {
        fn take(self: &Arc<Self>, slice: u64, len: u64, urgent: bool) -> (Claim, Arc<Progress>) {
            let progress = Progress::new(len, urgent);
            (self.claim(key(slice), self.generation(), progress.clone()), progress)
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// One of two ranges that fall on this slice is claimed.
        Spawn(u64),
        /// The n-th live claim ends, finished or cancelled.
        End(usize),
        /// The n-th live claim is claimed once more, by who doesn't know of it.
        Replace(usize),
        /// Bytes of the n-th come.
        Come(usize, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..6u64).prop_map(|range| Op::Spawn(range / 2)),
            (0..8usize).prop_map(Op::End),
            (0..8usize).prop_map(Op::Replace),
            (0..8usize, 1..50u64).prop_map(|(n, len)| Op::Come(n, len)),
        ]
    }

    proptest! {
        #[test]
        fn w5_a_claim_takes_away_only_itself(ops in prop::collection::vec(op(), 0..60)) {
            let table = Table::new();
            let mut live: Vec<(u64, Claim, Arc<Progress>)> = Vec::new();
            // What the table should hold: for each slice the claim that came last, while that lives.
            let mut newest: HashMap<u64, u64> = HashMap::new();
            for op in ops {
                let slice = match op {
                    Op::Spawn(slice) => Some(slice),
                    Op::Replace(n) => live.get(n).map(|(slice, ..)| *slice),
                    Op::End(n) if n < live.len() => {
                        let (slice, claim, _) = live.swap_remove(n);
                        if newest.get(&slice) == Some(&claim.generation) {
                            newest.remove(&slice);
                        }
                        None
                    }
                    Op::Come(n, len) => {
                        if let Some((.., progress)) = live.get(n) {
                            let left = progress.left.load(Ordering::Relaxed);
                            progress.left.store(left.saturating_sub(len), Ordering::Relaxed);
                        }
                        None
                    }
                    Op::End(_) => None,
                };
                if let Some(slice) = slice {
                    let (claim, progress) = table.take(slice, 100, false);
                    newest.insert(slice, claim.generation);
                    live.push((slice, claim, progress));
                }
                let known = |slice: &u64, claim: &Claim| newest.get(slice) == Some(&claim.generation);
                let left = live.iter().filter(|(slice, claim, _)| known(slice, claim));
                let left: u64 = left.map(|(.., p)| p.left.load(Ordering::Relaxed)).sum();
                prop_assert_eq!(table.count(), (newest.len(), left));
                for (slice, claim, progress) in &live {
                    prop_assert_eq!(progress.cut.is_cancelled(), newest.get(slice).is_some_and(|g| *g > claim.generation)
                        || progress.cut.is_cancelled());
                    if known(slice, claim) {
                        prop_assert!(!progress.cut.is_cancelled());
                    }
                }
            }
            live.clear();
            prop_assert_eq!(table.count(), (0, 0));
        }
    }

    #[test]
    fn what_is_cut_for_something_urgent() {
        let table = Table::new();
        let host: Arc<str> = "a.example:80".into();
        let mut claims = Vec::new();
        let mut progress = Vec::new();
        for (slice, len, urgent) in [(0, 100, false), (1, 900, true), (2, 500, false), (3, 700, false)] {
            let (claim, its) = table.take(slice, len, urgent);
            its.started.store(true, Ordering::Relaxed);
            if slice != 3 {
                claim.goes_to(&host);
            }
            claims.push(claim);
            progress.push(its);
        }
        assert!(!table.cut_for_urgent("b.example:80", 1));
        assert!(table.cut_for_urgent(&host, 200), "the largest that nobody waits for, of that host");
        assert!(progress[2].cut.is_cancelled());
        assert!(!table.cut_for_urgent(&host, 200), "the rest is as good as here");
        claims[3].goes_to(&host);
        progress[0].started.store(false, Ordering::Relaxed);
        assert!(table.cut_for_urgent(&host, 200), "what hasn't begun loses nothing");
        assert!(progress[0].cut.is_cancelled() && !progress[3].cut.is_cancelled());
    }
}
