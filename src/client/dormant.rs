//! The torrents in the cache folder that aren't open, and who has a torrent's folder to itself.
//!
//! **Goal.** A torrent's folder is opened, closed and removed by one at a time, whoever asks: who adds a torrent that
//! is just being removed waits until that is over, and finds what is left.
//!
//! **Parts.** [`Dormant`] knows what lies there and what of it is charged; [`Claim`] is the right to open a torrent,
//! [`Busy`] that to remove it or to end it.
//!
//! **Flow.** The keeper tells what it found in the folder ([`Dormant::found`]) and takes out what is to go
//! ([`Dormant::begin`]). Who opens a torrent claims it ([`Dormant::claim`]) and says when it is open
//! ([`Claim::opened`]); who ends one says so before it is out of the client's table ([`Dormant::closing`]), and then
//! what is left of it ([`Dormant::closed`]).
//!
//! **Not here.** Disks, and the order of what goes.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use torrentfs_fs::lock::{Rank, RankedMutex};

use crate::storage::catalog::Entry;
use crate::storage::quota::Quota;

/// See the module.
#[derive(Debug)]
pub(super) struct Dormant {
    state: RankedMutex<Sleepers>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Sleepers {
    /// The one used longest ago first.
    entries: VecDeque<Entry>,
    /// Those that are open, or about to be.
    claimed: HashSet<String>,
    /// Whose folder somebody has to itself.
    busy: HashSet<String>,
    /// Those that are being ended: claims wait.
    closing: HashSet<String>,
}

/// A torrent's folder is somebody's alone, until this is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    dormant: Arc<Dormant>,
    key: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.dormant.state.lock().busy.remove(&self.key);
        self.dormant.ended.notify_waiters();
    }
}

/// The right to open a torrent. Dropped without [`Claim::opened`] it leaves all as it was.
#[derive(Debug)]
pub(super) struct Claim {
    busy: Busy,
    /// What was dormant.
    entry: Option<Entry>,
    opened: bool,
}

impl Claim {
    /// What is charged for it, in bytes, until its open self says otherwise ([`Quota::recount`]).
    pub(super) fn charged(&self) -> u64 {
        self.entry.as_ref().map_or(0, |entry| entry.allocated)
    }

    /// It is open, and dormant no longer.
    pub(super) fn opened(mut self) {
        self.opened = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.opened {
            let mut state = self.busy.dormant.state.lock();
            state.claimed.remove(&self.busy.key);
            state.entries.extend(self.entry.take());
        }
    }
}

impl Dormant {
    pub(super) fn new() -> Self {
        Self {
            state: RankedMutex::new(Rank::Leaf, "torrents that aren't open", Sleepers::default()),
            ended: Notify::new(),
        }
    }

    /// These lie in the cache. What they take is charged, but for those that are open and those known already.
    pub(super) fn found(&self, entries: Vec<Entry>, quota: &Quota) {
        let mut state = self.state.lock();
        let known: HashSet<String> = state.entries.iter().map(|e| e.key.clone()).collect();
        let new = |e: &Entry| {
            e.allocated > 0
                && !state.claimed.contains(&e.key)
                && !state.closing.contains(&e.key)
                && !known.contains(&e.key)
        };
        let mut entries: VecDeque<Entry> = entries.into_iter().filter(new).collect();
        quota.charge(entries.iter().map(|e| e.allocated).sum());
        // Those that were closed meanwhile were used later than any of them.
        entries.extend(state.entries.drain(..));
        state.entries = entries;
    }

    /// The right to open a torrent. Waits while somebody else opens, ends or removes it.
    pub(super) async fn claim(self: &Arc<Self>, key: &str) -> Claim {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before looking: an end in between isn't missed.
            ended.as_mut().enable();
            {
                let mut state = self.state.lock();
                if !state.closing.contains(key) && state.busy.insert(key.to_owned()) {
                    let first = state.claimed.insert(key.to_owned());
                    let at = state.entries.iter().position(|e| e.key == key);
                    let entry = at.and_then(|at| state.entries.remove(at));
                    let busy = Busy { dormant: self.clone(), key: key.to_owned() };
                    // Open already: that stays so, whatever becomes of this.
                    return Claim { busy, entry, opened: !first };
                }
            }
            ended.await;
        }
    }

    /// A torrent that is open is about to be ended: nobody claims it before [`Dormant::closed`]. To be said before it
    /// leaves the table of torrents.
    pub(super) fn closing(&self, key: &str) {
        self.state.lock().closing.insert(key.to_owned());
    }

    /// Whether it is being ended.
    pub(super) fn is_closing(&self, key: &str) -> bool {
        self.state.lock().closing.contains(key)
    }

    /// A torrent was ended; what is left of it, and charged, is the entry.
    pub(super) fn closed(&self, key: &str, left: Option<Entry>) {
        {
            let mut state = self.state.lock();
            state.closing.remove(key);
            state.claimed.remove(key);
            state.entries.extend(left);
        }
        self.ended.notify_waiters();
    }

    /// The next that is to go, of those that take at least so much, and the right to remove it. Never one with adopted
    /// data: without its record nobody would find that data again.
    pub(super) fn begin(self: &Arc<Self>, least: u64) -> Option<(Entry, Busy)> {
        let mut state = self.state.lock();
        let may = |e: &Entry| e.adopted.is_none() && e.allocated >= least && !state.busy.contains(&e.key);
        let at = state.entries.iter().position(may)?;
        let entry = state.entries.remove(at)?;
        state.busy.insert(entry.key.clone());
        let busy = Busy { dormant: self.clone(), key: entry.key.clone() };
        Some((entry, busy))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::catalog::{Elsewhere, State};

    fn entry(key: &str, allocated: u64) -> Entry {
        Entry {
            path: key.into(),
            key: key.to_owned(),
            name: None,
            here: 0,
            size: None,
            allocated,
            last_used: 0,
            state: State::Partial,
            adopted: None,
            in_use: false,
        }
    }

    #[tokio::test]
    async fn a_torrent_that_is_opened_is_not_removed_and_one_being_removed_is_waited_for() {
        let (dormant, quota) = (Arc::new(Dormant::new()), Quota::new(None));
        let claim = dormant.claim("open").await;
        assert_eq!(claim.charged(), 0);
        claim.opened();
        let elsewhere = Elsewhere { path: "/d".into(), read_only: true };
        let theirs = Entry { adopted: Some(elsewhere), ..entry("theirs", 3) };
        let ours = [entry("open", 5), entry("tiny", 1), entry("old", 7), entry("none", 0), entry("new", 9)];
        dormant.found(std::iter::once(theirs).chain(ours).collect(), &quota);
        assert_eq!(quota.used(), 20);
        let claim = dormant.claim("new").await;
        assert_eq!(claim.charged(), 9);
        claim.opened();
        assert_eq!((dormant.claim("new").await.charged(), quota.used()), (0, 20), "charged once");
        let (old, busy) = dormant.begin(2).unwrap();
        assert_eq!(old.key, "old");
        assert!(dormant.begin(2).is_none());
        let claim = dormant.claim("old");
        tokio::pin!(claim);
        assert!(futures_util::poll!(&mut claim).is_pending());
        drop(busy);
        assert_eq!(claim.await.charged(), 0, "released by whoever removed it");
        assert_eq!(dormant.begin(1).unwrap().0.key, "tiny");
        assert!(dormant.begin(1).is_none(), "adopted data isn't forgotten");
    }

    #[tokio::test]
    async fn one_at_a_time_has_a_torrent_and_giving_up_changes_nothing() {
        let (dormant, quota) = (Arc::new(Dormant::new()), Quota::new(None));
        dormant.found(vec![entry("a", 5)], &quota);
        let first = dormant.claim("a").await;
        let second = dormant.claim("a");
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(dormant.begin(1).is_none(), "it is being opened");
        // It could not be opened.
        drop(first);
        let second = second.await;
        assert_eq!(second.charged(), 5);
        second.opened();
        assert!(dormant.begin(1).is_none(), "it is open");
    }

    #[tokio::test]
    async fn a_torrent_that_ends_is_claimed_when_it_has_ended_and_dormant_again() {
        let (dormant, quota) = (Arc::new(Dormant::new()), Quota::new(None));
        dormant.claim("a").await.opened();
        dormant.closing("a");
        assert!(dormant.is_closing("a"));
        let claim = dormant.claim("a");
        tokio::pin!(claim);
        assert!(futures_util::poll!(&mut claim).is_pending());
        // The keeper looks at the folder meanwhile: what is there is charged already.
        dormant.found(vec![entry("a", 5), entry("b", 1)], &quota);
        assert_eq!(quota.used(), 1);
        quota.charge(7);
        dormant.closed("a", Some(entry("a", 7)));
        let claim = claim.await;
        assert_eq!((claim.charged(), dormant.is_closing("a")), (7, false));
        drop(claim);
        // And once more, later: nothing is counted twice.
        dormant.found(vec![entry("a", 7), entry("b", 1)], &quota);
        assert_eq!(quota.used(), 8);
        assert_eq!(dormant.begin(2).unwrap().0.key, "a");
    }
}
