//! Room to keep data in, for all torrents together: who needs some, who could give some back, and whether there is
//! any. Between the torrents' owners and the client's keeper.
//!
//! **Flow.** An owner takes room before a piece is written ([`Room::try_reserve`]). If there is none it says how much
//! it waits for ([`Room::ask`]) and watches ([`Room::watch`]): each change means "try again", and tells whether there
//! is hope. The keeper sleeps until it is needed ([`Room::needed`]), has pieces evicted ([`Room::members`] says what
//! there is), and owners release what was given back.
//!
//! **Not here.** What goes, and looking at the disk: `client::keeper`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::reads::Shared;
use crate::storage::quota::{Mark, Quota, Reservation};

/// After so many reserved bytes the disk is looked at again: others write to it, too.
pub const LOOK_AFTER: u64 = 16 << 20;

/// Why there is no room, and none can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// For the user: what, why, and what to do.
    pub reason: Arc<str>,
    /// Whether it is the disk that is full.
    pub disk: bool,
}

/// How it stands. A new value means: try again.
#[derive(Debug, Clone, Default)]
pub struct RoomState {
    /// Why it is no use trying for now, if so.
    pub stuck: Option<Stuck>,
}

/// What one torrent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Bytes.
    pub bytes: u64,
    /// What a single piece of it takes at most: with less, nothing can be begun.
    pub largest: u64,
    /// Since when the reader has waited that has waited longest.
    pub since: Option<Instant>,
}

/// See the module. Clones share everything.
#[derive(Debug, Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    quota: Arc<Quota>,
    needs: RankedMutex<BTreeMap<u32, Need>>,
    members: RankedMutex<BTreeMap<u32, Arc<Shared>>>,
    /// Tells the keeper that there is something to do.
    wake: Notify,
    state: watch::Sender<RoomState>,
    /// Reserved since the disk was looked at.
    written: AtomicU64,
    /// A write found the disk full.
    full: AtomicBool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Room {
    /// Nobody needs any.
    pub fn new(quota: Arc<Quota>) -> Self {
        Self(Arc::new(Inner {
            quota,
            needs: RankedMutex::new(Rank::Leaf, "needs of room", BTreeMap::new()),
            members: RankedMutex::new(Rank::Leaf, "torrents that keep data", BTreeMap::new()),
            wake: Notify::new(),
            state: watch::Sender::new(RoomState::default()),
            written: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }))
    }

    /// The account.
    pub fn quota(&self) -> &Arc<Quota> {
        &self.0.quota
    }

    /// Takes room for `bytes`, if there is any. Never waits.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let room = self.0.quota.reserve(bytes)?;
        let before = self.0.written.fetch_add(bytes, Ordering::Relaxed);
        // The first bytes start the clock of the next look, the many make it due.
        if before == 0 && bytes > 0 || before + bytes >= LOOK_AFTER {
            self.0.wake.notify_one();
        }
        Some(room)
    }

    /// A torrent waits for so much room in all, in place of what it said before.
    pub fn ask(&self, slot: u32, need: Need) {
        self.0.needs.lock().insert(slot, need);
        self.0.wake.notify_one();
    }

    /// A torrent waits for none any more.
    pub fn withdraw(&self, slot: u32) {
        self.0.needs.lock().remove(&slot);
    }

    /// Told of each change, from now on.
    pub fn watch(&self) -> watch::Receiver<RoomState> {
        self.0.state.subscribe()
    }

    /// A write found the disk full: nothing is reserved before it was looked at.
    pub fn disk_full(&self) {
        self.0.quota.disk_is_full();
        self.0.full.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
    }

    /// What was charged was given back: those who wait try again.
    pub fn release(&self, bytes: u64) {
        self.0.quota.release(bytes);
        self.0.state.send_modify(|_| ());
    }

    /// The pieces of a torrent may be evicted from now on. Dropping the membership ends that.
    pub fn join(&self, slot: u32, shared: Arc<Shared>) -> Membership {
        self.0.members.lock().insert(slot, shared);
        Membership { room: self.clone(), slot }
    }

    /// The torrents whose pieces may be evicted, by number.
    pub fn members(&self) -> BTreeMap<u32, Arc<Shared>> {
        self.0.members.lock().clone()
    }

    /// What is waited for in all.
    pub fn need(&self) -> Option<Need> {
        let needs = self.0.needs.lock();
        let bytes = needs.values().map(|n| n.bytes).sum();
        let largest = needs.values().map(|n| n.largest).max().unwrap_or(0);
        let since = needs.values().filter_map(|n| n.since).min();
        (!needs.is_empty()).then_some(Need { bytes, largest, since })
    }

    /// Waits until the keeper may be needed. Cancel-safe; for one waiter.
    pub async fn needed(&self) {
        self.0.wake.notified().await;
    }

    /// The disk is about to be looked at. For [`Quota::disk_has`].
    pub fn mark(&self) -> Mark {
        self.0.written.store(0, Ordering::Relaxed);
        self.0.quota.mark()
    }

    /// Bytes reserved since [`Room::mark`].
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// What a piece takes that is waited for, or else one that may be; 1 MiB at least, which makes a try worth it.
    pub fn unit(&self) -> u64 {
        let waiting = self.need().map_or(0, |need| need.largest);
        let lengths =
            self.members().into_values().map(|shared| u64::from(shared.info.geometry.piece_length()));
        lengths.max().unwrap_or(0).max(waiting).max(1 << 20)
    }

    /// Whether a write has found the disk full since this was last asked.
    pub fn was_full(&self) -> bool {
        self.0.full.swap(false, Ordering::Relaxed)
    }

    /// How it stands now; everybody tries again.
    pub fn tell(&self, stuck: Option<Stuck>) {
        self.0.state.send_modify(|state| state.stuck = stuck);
    }

    /// Why there is no room, if none can be made.
    pub fn stuck(&self) -> Option<Stuck> {
        self.0.state.borrow().stuck.clone()
    }
}

/// See [`Room::join`].
#[derive(Debug)]
pub struct Membership {
    room: Room,
    slot: u32,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let gone = self.room.0.members.lock().remove(&self.slot);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn needs_are_added_up_and_the_longest_wait_counts() {
        let room = Room::new(Arc::new(Quota::new(Some(100))));
        assert_eq!(room.need(), None);
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(1);
        room.ask(1, Need { bytes: 10, largest: 10, since: None });
        room.ask(2, Need { bytes: 20, largest: 20, since: Some(later) });
        room.ask(3, Need { bytes: 50, largest: 25, since: Some(now) });
        room.ask(2, Need { bytes: 30, largest: 15, since: Some(later) });
        assert_eq!(room.need(), Some(Need { bytes: 90, largest: 25, since: Some(now) }));
        room.withdraw(3);
        assert_eq!(room.need(), Some(Need { bytes: 40, largest: 15, since: Some(later) }));
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_each_change() {
        let room = Room::new(Arc::new(Quota::new(Some(100))));
        let mut watch = room.watch();
        room.try_reserve(60).unwrap().keep();
        assert!(room.try_reserve(50).is_none() && !watch.has_changed().unwrap());
        room.release(60);
        assert!(watch.has_changed().unwrap());
        watch.borrow_and_update();
        room.tell(Some(Stuck { reason: "it is full".into(), disk: true }));
        watch.changed().await.unwrap();
        assert_eq!(watch.borrow_and_update().stuck, room.stuck());
        room.disk_full();
        room.needed().await;
        assert!(room.was_full() && !room.was_full() && room.try_reserve(1).is_none());
        room.quota().disk_has(room.mark(), 1000, 0);
        assert!(room.try_reserve(1).is_some());
    }

    #[tokio::test]
    async fn the_keeper_hears_of_the_first_bytes_and_of_many() {
        let room = Room::new(Arc::new(Quota::new(None)));
        room.quota().disk_has(room.mark(), 1 << 40, 0);
        let calm = async || futures_util::poll!(std::pin::pin!(room.needed())).is_pending();
        assert!(calm().await);
        // A row is how much is reserved, and whether the keeper hears of it.
        for (bytes, told) in [(0, false), (5, true), (7, false), (LOOK_AFTER - 13, false), (1, true)] {
            drop(room.try_reserve(bytes));
            assert_eq!(calm().await, !told, "{bytes}");
        }
        assert_eq!(room.written(), LOOK_AFTER);
        room.mark();
        drop(room.try_reserve(1));
        room.needed().await;
    }
}
