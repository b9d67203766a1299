//! The room for data, as the torrents see it: who waits for some, who has something that could go, and why there is
//! none, if so. Shared by all torrents of the program and by the client's keeper, who makes room.
//!
//! **Parts.** [`Room`]; [`RoomState`], which owners watch; [`Member`], a torrent whose pieces could go; [`Asked`], what
//! the keeper is to make room for. What lies in the cache folder and isn't mounted stands in the ledger
//! ([`crate::storage::dormant`]).
//!
//! **Flow.** An owner reserves before it has a piece written. Without room it says how much it needs and since when its
//! longest waiting reader waits ([`Room::ask`]), which wakes the keeper. When there is room, the state has a new
//! generation, and everybody who waits tries again. When there will be none for now, the state says why.
//!
//! **Not here.** The account itself ([`crate::storage::quota`]), and who has to go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, mpsc, watch};
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::Command;
use super::table::PieceTable;
use crate::metainfo::geometry::PieceIndex;
use crate::storage::dormant::Ledger;
use crate::storage::lru;
use crate::storage::quota::{Quota, Reservation};

/// Bytes after which the keeper is to look at the disk again.
pub const LOOK_AFTER: u64 = 16 << 20;
/// What makes room for a piece of unknown size worth a try, in bytes.
const UNIT_MIN: u64 = 1 << 20;

/// Why there is no room and will be none for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// For the user: what, why, and what to do.
    pub reason: Arc<str>,
    /// Whether it is the disk that is full.
    pub disk: bool,
}

/// What owners watch.
#[derive(Debug, Clone, Default)]
pub struct RoomState {
    /// Grows when there is more room than before: what waits is to be tried again.
    pub generation: u64,
    /// Set while there is no room and nothing can go.
    pub stuck: Option<Stuck>,
}

/// What a piece takes, in bytes; 0 when that can't be given back.
pub type Cost = Arc<dyn Fn(PieceIndex) -> u64 + Send + Sync>;

/// A torrent whose pieces could go.
#[derive(Clone)]
pub struct Member {
    /// The torrent's number, never used twice.
    pub slot: u32,
    /// Its pieces.
    pub table: Arc<PieceTable>,
    /// What each takes.
    pub cost: Cost,
    /// The way to its owner, who makes them go ([`Command::Evict`]).
    pub commands: mpsc::Sender<Command>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "torrent {} with {} pieces", self.slot, self.table.len())
    }
}

impl lru::Pieces for Member {
    fn slot(&self) -> u32 {
        self.slot
    }
    fn len(&self) -> u32 {
        self.table.len()
    }
    fn is_kept(&self, piece: PieceIndex) -> bool {
        use super::table::PieceState::{Complete, Missing, Requested, Unknown, Verifying};
        match self.table.state(piece) {
            Complete | Unknown | Verifying => true,
            Missing | Requested => false,
        }
    }
    fn is_evictable(&self, piece: PieceIndex) -> bool {
        self.table.is_evictable(piece)
    }
    fn stamp(&self, piece: PieceIndex) -> u64 {
        self.table.stamp(piece)
    }
    fn cost(&self, piece: PieceIndex) -> u64 {
        (self.cost)(piece)
    }
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    bytes: u64,
    since: Option<Instant>,
}

/// What all torrents together wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Bytes; 0 when nobody waits.
    pub bytes: u64,
    /// Since when the reader has waited that has waited longest for any of it.
    pub since: Option<Instant>,
}

/// See the module. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quota: Arc<Quota>,
    state: watch::Sender<RoomState>,
    /// By slot.
    asks: RankedMutex<BTreeMap<u32, Ask>>,
    /// By slot.
    members: RankedMutex<BTreeMap<u32, Member>>,
    dormant: RankedMutex<Ledger>,
    /// Told when a removal has ended.
    removed: Notify,
    /// Wakes the keeper.
    keeper: Arc<Notify>,
    /// Whether anybody waits: without, released room is nobody's business.
    waiting: Arc<AtomicBool>,
    /// How often a write failed because the disk was full.
    full: AtomicU64,
    /// Bytes reserved since the keeper looked at the disk.
    unseen: AtomicU64,
}

impl Room {
    /// The room of this account. Nobody waits.
    pub fn new(quota: Arc<Quota>) -> Self {
        let (keeper, waiting) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (told, anybody) = (keeper.clone(), waiting.clone());
        quota.on_freed(move || {
            if anybody.load(Ordering::Acquire) {
                told.notify_one();
            }
        });
        Self(Arc::new(Inner {
            quota,
            state: watch::Sender::default(),
            asks: RankedMutex::new(Rank::Leaf, "who waits for room", BTreeMap::new()),
            members: RankedMutex::new(Rank::Leaf, "torrents that take room", BTreeMap::new()),
            dormant: RankedMutex::new(Rank::Leaf, "torrents not mounted", Ledger::default()),
            removed: Notify::new(),
            keeper,
            waiting,
            full: AtomicU64::new(0),
            unseen: AtomicU64::new(0),
        }))
    }

    /// The account.
    pub fn quota(&self) -> &Arc<Quota> {
        &self.0.quota
    }

    /// What is to be watched by whoever waits.
    pub fn watch(&self) -> watch::Receiver<RoomState> {
        self.0.state.subscribe()
    }

    /// Room for a piece that is about to be written; `None` when there is none: then [`Room::ask`]. Never waits.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let reservation = self.0.quota.reserve(bytes)?;
        let before = self.0.unseen.fetch_add(bytes, Ordering::AcqRel);
        // The first bytes start the clock of the next look, the many make it due.
        if bytes > 0 && (before == 0 || before / LOOK_AFTER != (before + bytes) / LOOK_AFTER) {
            self.0.keeper.notify_one();
        }
        Some(reservation)
    }

    /// Whether so much could be kept without anything having to go.
    pub fn has_free(&self, bytes: u64) -> bool {
        self.0.quota.has_free(bytes)
    }

    /// Why a piece that takes so much can never be kept, if so; for the user.
    pub fn too_small_for(&self, bytes: u64) -> Option<String> {
        let bound = self.0.quota.bound().filter(|bound| bytes > *bound)?;
        Some(format!(
            "a piece of this torrent takes {} and the cache may hold {}; choose a larger --cache-size",
            show(bytes),
            show(bound)
        ))
    }

    /// What was found of a torrent is charged, in place of what it was charged as while it lay in the cache folder;
    /// `key` is its info-hash in hex. To be said once for each [`Room::claim`], when it is known what is there.
    pub fn settle(&self, key: &str, bytes: u64) {
        let before = self.0.dormant.lock().settle(key);
        match bytes.checked_sub(before) {
            Some(more) => self.0.quota.charge(more),
            None => self.0.quota.release(before - bytes),
        }
        if self.0.quota.excess() > 0 {
            self.0.keeper.notify_one();
        }
    }

    /// What pieces took was given back on the disk.
    pub fn release(&self, bytes: u64) {
        self.0.quota.release(bytes);
    }

    /// The pieces of a torrent wait for so much room, all together, and the reader that has waited longest for one of
    /// them since then. Takes the place of what the same torrent asked for before.
    pub fn ask(&self, slot: u32, bytes: u64, since: Option<Instant>) {
        {
            let mut asks = self.0.asks.lock();
            asks.insert(slot, Ask { bytes, since });
            self.0.waiting.store(true, Ordering::Release);
        }
        self.0.keeper.notify_one();
    }

    /// A torrent waits for nothing any more.
    pub fn withdraw(&self, slot: u32) {
        let mut asks = self.0.asks.lock();
        asks.remove(&slot);
        self.0.waiting.store(!asks.is_empty(), Ordering::Release);
    }

    /// A write failed because the disk is full, whatever it says of itself. Nothing is reserved until the keeper has
    /// found or made room.
    pub fn disk_full(&self) {
        self.0.quota.shut();
        self.0.full.fetch_add(1, Ordering::AcqRel);
        self.0.keeper.notify_one();
    }

    /// From now on pieces of this torrent may have to go.
    pub fn register(&self, member: Member) {
        let before = self.0.members.lock().insert(member.slot, member);
        drop(before);
        self.0.keeper.notify_one();
    }

    /// The torrent ends: nothing of it can be made to go, and it waits for nothing.
    pub fn unregister(&self, slot: u32) {
        self.withdraw(slot);
        let gone = self.0.members.lock().remove(&slot);
        drop(gone);
    }

    /// A torrent is about to be opened: from now on what lies of it in the cache folder isn't removed; `key` is its
    /// info-hash in hex. Waits while it is being removed, as long as the disk takes. Cancel-safe: what was claimed
    /// stays so.
    pub async fn claim(&self, key: &str) {
        loop {
            let removed = self.0.removed.notified();
            tokio::pin!(removed);
            removed.as_mut().enable();
            if self.0.dormant.lock().claim(key) {
                return;
            }
            removed.await;
        }
    }

    /// Changes the ledger of what isn't mounted. Under a leaf lock: `change` must not wait.
    pub fn dormant<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        change(&mut self.0.dormant.lock())
    }

    /// A removal has ended: whoever waits to open that torrent may.
    pub fn removal_ended(&self) {
        self.0.removed.notify_waiters();
    }

    /// What is waited for, all together.
    pub fn asked(&self) -> Asked {
        let asks = self.0.asks.lock();
        let bytes = asks.values().fold(0u64, |sum, ask| sum.saturating_add(ask.bytes));
        Asked { bytes, since: asks.values().filter_map(|ask| ask.since).min() }
    }

    /// The torrents whose pieces could go.
    pub fn members(&self) -> Vec<Member> {
        self.0.members.lock().values().cloned().collect()
    }

    /// What a piece takes, of the torrent with the largest ones.
    pub fn unit(&self) -> u64 {
        // Called under no lock: it is somebody else's.
        let costs = self.members().into_iter().map(|m| (m.cost)(PieceIndex(0)));
        costs.max().unwrap_or(0).max(UNIT_MIN)
    }

    /// How often a write failed because the disk was full.
    pub fn full(&self) -> u64 {
        self.0.full.load(Ordering::Acquire)
    }

    /// Bytes reserved since [`Room::looked`].
    pub fn unseen(&self) -> u64 {
        self.0.unseen.load(Ordering::Acquire)
    }

    /// The disk is about to be looked at.
    pub fn looked(&self) {
        self.0.unseen.store(0, Ordering::Release);
    }

    /// Waits until the keeper has something to look after. Cancel-safe; for the keeper alone.
    pub async fn wanted(&self) {
        self.0.keeper.notified().await;
    }

    /// There is more room than before: everybody who waits is to try again. Nothing is stuck any more.
    pub fn offer(&self) {
        self.0.state.send_modify(|state| {
            state.generation += 1;
            state.stuck = None;
        });
    }

    /// There is no room, and nothing can go. Said once: who watches isn't woken by the same again.
    pub fn stick(&self, stuck: Stuck) {
        self.0.state.send_if_modified(|state| {
            let new = state.stuck.as_ref() != Some(&stuck);
            state.stuck = Some(stuck);
            new
        });
    }

    /// Why there is no room, if so.
    pub fn stuck(&self) -> Option<Stuck> {
        self.0.state.borrow().stuck.clone()
    }
}

/// Bytes for a reader, as "512 MiB".
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let digits = usize::from(value < 99.95 && value.fract() >= 0.05);
    format!("{value:.digits$} {}", UNITS.get(unit).copied().unwrap_or_default())
}
