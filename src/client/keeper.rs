//! The keeper: sees to it that no more is kept than may be, and that the disk keeps some room.
//!
//! **Goal.** What was read longest ago goes first, over all torrents, and only when room is needed; and when none can
//! be made, everybody learns why, and nothing is tried in a circle.
//!
//! **Parts.** [`Keeper`], one task of the client; [`Dormant`], the torrents in the cache folder that aren't open;
//! [`floor`] and [`reason`], pure.
//!
//! **Flow.** The task sleeps until somebody needs room, or has used so much that the disk should be looked at. Then
//! it looks (on a storage worker), and as long as room is lacking gives some back: first torrents that aren't open,
//! whole, the one used longest ago first; then pieces, a batch at a time, through their owners, who refuse what is
//! being read or waited for; then also what waiting reads need, of reads that came later than the one that needs the
//! room, so that of all who wait for each other the oldest gets on. With nothing left it says that all is stuck, and
//! looks again soon.
//!
//! **Not here.** The account ([`crate::storage::quota`]), the order ([`crate::storage::lru`]).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::{Client, Options};
use crate::metainfo::geometry::PieceIndex;
use crate::storage::cache::{CacheDir, CacheError, DiskSpace};
use crate::storage::catalog::{self, Entry};
use crate::storage::lru::{Victim, Victims};
use crate::storage::pool::{Class, Workers};
use crate::storage::quota::Quota;
use crate::storage::spare::SPARE;
use crate::sync::tasks::TaskScope;
use crate::torrent::room::{Room, Stuck};
use crate::torrent::{Command, Torrent};

/// How often the disk is looked at while nobody needs anything: others write to it, too.
const LOOK: Duration = Duration::from_secs(10);
/// How soon a full disk is looked at again…
const LOOK_DISK: Duration = Duration::from_secs(1);
/// …and how soon what is in use.
const LOOK_USE: Duration = Duration::from_millis(250);
/// A disk that says that it has room, and takes nothing, is tried again after a pause that doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(32);
/// What is given back in one go: a sixteenth of the bound, so that records and looks are worth it, but no more than
/// this, which is read again in a moment if it was wanted after all.
const BATCH_MAX: u64 = 64 << 20;
/// Pieces that go in one go at most: an owner is busy with them for a moment.
const BATCH_PIECES: usize = 16_384;
/// An owner answers as soon as a record is on the disk; one that is stuck must not hold all others up.
const ANSWER: Duration = Duration::from_secs(10);
/// What is to stay free unless `--min-free-space` says otherwise: the larger of a twentieth and this, but no more
/// than a quarter of a small disk.
const FLOOR: u64 = 1 << 30;

/// The bytes of a disk that are to stay free. `asked` is what the user said. Pure.
fn floor(asked: Option<u64>, total: u64) -> u64 {
    asked.unwrap_or_else(|| (total / 20).max(FLOOR).min(total / 4))
}

/// What pieces may take of what the cache may: on a disk, records and folders take some of it, and rounding to whole
/// blocks. Pure.
pub(super) fn bound(options: &Options) -> Option<u64> {
    let size = options.cache_size?;
    let other = if options.storage.is_on_disk() { (size / 64).clamp(2 * SPARE, 8 * SPARE) } else { 0 };
    Some(size.saturating_sub(other))
}

/// Why no room can be made, for the user. Pure.
fn reason(quota: &Quota, need: u64, space: Option<DiskSpace>, floor: u64) -> Stuck {
    let bytes = |n: u64| crate::storage::size::bytes(n);
    match (quota.bound(), space) {
        (Some(bound), _) if quota.lacking_by_bound(need) > 0 => Stuck {
            reason: format!(
                "all of the {} that may be kept are in use, and {} more are waited for; close some files, or raise \
                 --cache-size",
                bytes(bound),
                bytes(need)
            )
            .into(),
            disk: false,
        },
        (_, Some(space)) => Stuck {
            reason: format!(
                "the disk that holds the cache is full: {} are free, of which {} are to stay free; make room there, \
                 choose another with --cache-dir, or lower --min-free-space",
                bytes(space.free),
                bytes(floor)
            )
            .into(),
            disk: true,
        },
        (_, None) => Stuck { reason: "the disk that holds the cache can't be asked for room".into(), disk: true },
    }
}

/// See the module.
pub(super) struct Keeper {
    client: Arc<Client>,
    room: Room,
    workers: Arc<Workers>,
    cache: Arc<CacheDir>,
    dormant: Arc<Dormant>,
    /// Whether data lies on the disk.
    disk: bool,
    min_free: Option<u64>,
    victims: Victims,
    /// Writes that found the disk full, in a row, though it said that it had room.
    fulls: u32,
}

impl Keeper {
    /// Starts it in a task of `scope`.
    pub(super) fn start(client: &Arc<Client>, scope: &TaskScope) {
        let keeper = Self {
            client: client.clone(),
            room: client.env.room.clone(),
            workers: client.env.workers.clone(),
            cache: client.cache.clone(),
            dormant: client.dormant.clone(),
            disk: client.options.storage.is_on_disk(),
            min_free: client.options.min_free,
            victims: Victims::default(),
            fulls: 0,
        };
        scope.spawn("keeper", keeper.run());
    }

    async fn run(mut self) {
        if self.disk {
            let cache = self.cache.clone();
            let found = self.on_worker(move || catalog::scan(cache.path())).await;
            match found {
                Some(Ok(found)) => self.dormant.found(found.entries, self.room.quota()),
                Some(Err(error)) => tracing::warn!("what else the cache holds can't be told: {error}"),
                None => {}
            }
        }
        loop {
            let pause = self.round().await;
            tokio::select! {
                () = self.room.needed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Makes the room that is lacking, as far as can be; returns when to look again.
    async fn round(&mut self) -> Duration {
        let full = self.room.was_full();
        let mut space = self.look().await;
        let mut freed_any = false;
        loop {
            let need = self.room.need();
            let asked = need.map_or(0, |n| n.bytes);
            let floor = space.map_or(0, |s| floor(self.min_free, s.total));
            let mut lacking = self.room.quota().lacking(asked);
            if full && !freed_any {
                // Whatever the disk says.
                lacking = lacking.max(1);
            }
            if lacking == 0 {
                self.fulls = 0;
                if need.is_some() || full || self.room.stuck().is_some() {
                    self.room.tell(None);
                }
                return LOOK;
            }
            let batch = self.room.quota().bound().map_or(BATCH_MAX, |bound| (bound / 16).min(BATCH_MAX));
            let target = lacking.max(batch);
            let mut freed = self.drop_dormant().await;
            if freed == 0 {
                freed = self.evict(target, None).await;
            }
            if freed == 0
                && let Some(since) = need.and_then(|n| n.since)
            {
                freed = self.evict(target, Some(since)).await;
            }
            if freed > 0 {
                freed_any = true;
                if self.room.quota().lacking_on_disk(asked) > 0 || full {
                    space = self.look().await;
                }
                continue;
            }
            if full && self.room.quota().lacking(asked) == 0 {
                // It has room, it says. Not at once again, and less and less often.
                self.fulls = (self.fulls + 1).min(8);
                let pause = LOOK_DISK * 2u32.pow(self.fulls - 1);
                self.room.tell(Some(reason(self.room.quota(), asked, space, floor)));
                tokio::time::sleep(pause.min(PAUSE_MAX)).await;
                self.room.tell(None);
                return LOOK;
            }
            if need.is_none() && !full {
                return LOOK;
            }
            let stuck = reason(self.room.quota(), asked, space, floor);
            let pause = if stuck.disk { LOOK_DISK } else { LOOK_USE };
            if self.room.stuck().as_ref() != Some(&stuck) {
                tracing::warn!("nothing more is fetched for now: {}", stuck.reason);
                self.room.tell(Some(stuck));
            }
            return pause;
        }
    }

    /// Looks at the disk, if data lies on one; and puts a little room by, where there is plenty.
    async fn look(&self) -> Option<DiskSpace> {
        if !self.disk {
            return None;
        }
        let (cache, min_free) = (self.cache.clone(), self.min_free);
        let look = move || {
            let space = cache.space()?;
            let plenty = space.free > floor(min_free, space.total).saturating_add(4 * SPARE);
            if plenty && let Err(error) = cache.spare().put_by() {
                tracing::debug!("no room can be put by: {error}");
            }
            Ok::<_, CacheError>(space)
        };
        let space = match self.on_worker(look).await? {
            Ok(space) => space,
            Err(error) => {
                tracing::warn!("{error}");
                return None;
            }
        };
        self.room.disk_has(space.free, floor(self.min_free, space.total));
        Some(space)
    }

    /// Removes the torrent that isn't open and was used longest ago. Returns how many bytes that gave.
    async fn drop_dormant(&self) -> u64 {
        let Some(entry) = self.dormant.begin() else { return 0 };
        let (cache, key) = (self.cache.clone(), entry.key.clone());
        let removed = self.on_worker(move || catalog::remove(cache.path(), &key)).await;
        let freed = match removed {
            Some(Ok(_)) => {
                let name = entry.name.as_deref().unwrap_or(&entry.key);
                tracing::info!(torrent = name, "removed from the cache to make room");
                entry.allocated
            }
            Some(Err(error)) => {
                tracing::warn!("{} can't be removed from the cache: {error}", entry.key);
                0
            }
            None => 0,
        };
        self.dormant.end();
        match freed {
            // It takes what it took, and isn't tried again.
            0 => {}
            freed => self.room.release(freed),
        }
        freed
    }

    /// Has the pieces evicted that were read longest ago, of at least `target` bytes if there are so many; with
    /// `younger_than` also what waiting reads need that came later. Returns how many bytes that gave.
    async fn evict(&mut self, target: u64, younger_than: Option<Instant>) -> u64 {
        if younger_than.is_some() {
            self.victims = Victims::default();
        }
        let members = Arc::new(self.room.members());
        let mut looked = false;
        loop {
            let mut chosen: BTreeMap<u32, Vec<PieceIndex>> = BTreeMap::new();
            let (mut bytes, mut count) = (0, 0);
            while bytes < target && count < BATCH_PIECES {
                let stamp = |v: Victim| {
                    let table = &members.get(&v.slot)?.table;
                    table.is_evictable(v.piece).then(|| table.stamp(v.piece))
                };
                if let Some(victim) = self.victims.pop(stamp) {
                    let cost = members.get(&victim.slot).map_or(0, |m| m.cost(victim.piece));
                    if cost > 0 {
                        chosen.entry(victim.slot).or_default().push(victim.piece);
                        bytes += cost;
                        count += 1;
                    }
                } else if looked {
                    break;
                } else {
                    looked = true;
                    let members = members.clone();
                    let most = usize::try_from(target >> 14).unwrap_or(usize::MAX).min(BATCH_PIECES);
                    self.victims = self.on_worker(move || oldest(&members, most)).await.unwrap_or_default();
                }
            }
            if chosen.is_empty() {
                return 0;
            }
            let freed = self.tell_owners(chosen, younger_than).await;
            if freed > 0 {
                return freed;
            }
        }
    }

    async fn tell_owners(
        &self,
        chosen: BTreeMap<u32, Vec<PieceIndex>>,
        younger_than: Option<Instant>,
    ) -> u64 {
        let torrents = self.client.torrents();
        let tell = async |torrent: Arc<Torrent>, pieces: Vec<PieceIndex>| {
            let (done, answer) = oneshot::channel();
            let told = torrent.command(Command::Evict { pieces, younger_than, done });
            let told = async { if told.await { answer.await.unwrap_or(0) } else { 0 } };
            tokio::time::timeout(ANSWER, told).await.unwrap_or(0)
        };
        let all = chosen.into_iter().filter_map(|(slot, pieces)| {
            let torrent = torrents.iter().find(|t| t.slot == slot)?;
            Some(tell(torrent.clone(), pieces))
        });
        futures_util::future::join_all(all).await.into_iter().sum()
    }

    /// Does something that may wait for the disk; `None` when the workers are closed or take no more.
    async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, answer) = oneshot::channel();
        // Somebody waits for the room.
        let job = Box::new(move |_: &mut _| _ = done.send(work()));
        match self.workers.submit(Class::Verify, job) {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        }
    }
}

/// The oldest of the pieces that could go.
fn oldest(members: &BTreeMap<u32, Arc<crate::torrent::reads::Shared>>, most: usize) -> Victims {
    let all = members.iter().flat_map(|(slot, shared)| {
        let table = &shared.table;
        let pieces = (0..table.len()).map(PieceIndex).filter(move |p| table.is_evictable(*p));
        pieces.map(move |piece| Victim {
            // What nobody has looked at yet is worth least.
            stamp: table.stamp(piece),
            slot: *slot,
            piece,
        })
    });
    let mut victims = Victims::default();
    victims.fill(all, most);
    victims
}

/// The torrents in the cache folder that aren't open.
#[derive(Debug)]
pub(super) struct Dormant {
    state: RankedMutex<Sleepers>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Sleepers {
    /// The one used longest ago first.
    entries: VecDeque<Entry>,
    /// Those that are open, or were.
    claimed: HashSet<String>,
    removing: Option<String>,
}

impl Dormant {
    pub(super) fn new() -> Self {
        Self {
            state: RankedMutex::new(Rank::Leaf, "torrents that aren't open", Sleepers::default()),
            ended: Notify::new(),
        }
    }

    /// These lie in the cache. What they take is charged, but for those that are open.
    fn found(&self, entries: Vec<Entry>, quota: &Quota) {
        let mut state = self.state.lock();
        let entries: VecDeque<Entry> =
            entries.into_iter().filter(|e| e.allocated > 0 && !state.claimed.contains(&e.key)).collect();
        quota.charge(entries.iter().map(|e| e.allocated).sum());
        state.entries = entries;
    }

    /// A torrent is about to be opened: it is dormant no longer, and not removed under its feet. Waits while it is
    /// just being removed. Cancel-safe.
    pub(super) async fn claim(&self, key: &str, quota: &Quota) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before looking: an end in between isn't missed.
            ended.as_mut().enable();
            {
                let mut state = self.state.lock();
                state.claimed.insert(key.to_owned());
                if let Some(at) = state.entries.iter().position(|e| e.key == key) {
                    // What its open self takes is charged anew.
                    let entry = state.entries.remove(at);
                    quota.forget(entry.map_or(0, |e| e.allocated));
                }
                if state.removing.as_deref() != Some(key) {
                    return;
                }
            }
            ended.await;
        }
    }

    /// The next that is to go.
    fn begin(&self) -> Option<Entry> {
        let mut state = self.state.lock();
        let entry = state.entries.pop_front()?;
        state.removing = Some(entry.key.clone());
        Some(entry)
    }

    fn end(&self) {
        self.state.lock().removing = None;
        self.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const G: u64 = 1 << 30;

    #[test]
    fn what_stays_free_by_default_is_a_share_with_bounds() {
        let rows = [
            (None, 1000 * G, 50 * G),
            (None, 10 * G, G),
            (None, 64 << 20, 16 << 20),
            (Some(0), 1000 * G, 0),
            (Some(7), 64 << 20, 7),
        ];
        for (asked, total, expected) in rows {
            assert_eq!(floor(asked, total), expected, "{asked:?} of {total}");
        }
    }

    #[test]
    fn the_reason_says_what_why_and_what_to_do() {
        let quota = Arc::new(Quota::new(Some(100 << 20)));
        quota.charge(100 << 20);
        let bound = reason(&quota, 1 << 20, None, 0);
        assert!(
            !bound.disk && bound.reason.contains("--cache-size") && bound.reason.contains("100"),
            "{bound:?}"
        );
        let quota = Arc::new(Quota::new(None));
        let disk = reason(&quota, 1, Some(DiskSpace { free: 5 << 20, total: G }), 10 << 20);
        assert!(
            disk.disk && disk.reason.contains("--min-free-space") && disk.reason.contains("5.0 MiB"),
            "{disk:?}"
        );
        assert!(reason(&quota, 1, None, 0).disk);
    }

    fn entry(key: &str, allocated: u64) -> Entry {
        Entry {
            path: key.into(),
            key: key.to_owned(),
            name: None,
            here: 0,
            size: None,
            allocated,
            last_used: 0,
            state: catalog::State::Partial,
            in_use: false,
        }
    }

    #[tokio::test]
    async fn a_torrent_that_is_opened_is_not_removed_and_one_being_removed_is_waited_for() {
        let (dormant, quota) = (Arc::new(Dormant::new()), Quota::new(None));
        dormant.claim("open", &quota).await;
        dormant.found(vec![entry("open", 5), entry("old", 7), entry("none", 0), entry("new", 9)], &quota);
        assert_eq!(quota.used(), 16);
        dormant.claim("new", &quota).await;
        assert_eq!(quota.used(), 7);
        assert_eq!(dormant.begin().unwrap().key, "old");
        assert!(dormant.begin().is_none());
        let claim = dormant.claim("old", &quota);
        tokio::pin!(claim);
        assert!(futures_util::poll!(&mut claim).is_pending());
        dormant.end();
        claim.await;
        assert_eq!(quota.used(), 7, "released by whoever removed it");
    }
}
