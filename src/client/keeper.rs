//! The keeper: sees to it that no more is kept than may be, and that the disk keeps some room.
//!
//! **Goal.** What was read longest ago goes first, over all torrents, and only when room is needed; and when none can
//! be made, everybody learns why, and nothing is tried in a circle.
//!
//! **Parts.** [`Keeper`], one task of the client, which does what the [`super::plan`] says; [`Owners`], the way to the
//! torrents that are open, beside [`super::dormant`], those that aren't.
//!
//! **Flow.** The task sleeps until somebody needs room, or has used so much that the disk should be looked at. Then
//! it looks (on a storage worker), and as long as room is lacking gives some back: first torrents that aren't open,
//! whole, the one used longest ago first; then pieces, a batch at a time, through their owners, who refuse what is
//! being read or waited for; then also what waiting reads need, of reads that came later than the one that needs the
//! room, so that of all who wait for each other the oldest gets on. With nothing left it says that all is stuck, and
//! looks again soon.
//!
//! **Not here.** What is decided ([`super::plan`]), the account ([`crate::storage::quota`]), the order
//! ([`crate::storage::lru`]).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::dormant::Dormant;
use super::plan::{Plan, Source, Step, View, floor};
use super::{Client, Options};
use crate::metainfo::geometry::PieceIndex;
use crate::storage::cache::{CacheDir, CacheError, DiskSpace};
use crate::storage::catalog;
use crate::storage::lru::{Victim, Victims};
use crate::storage::pool::Workers;
use crate::storage::spare::SPARE;
use crate::sync::tasks::TaskScope;
use crate::torrent::Command;
use crate::torrent::reads::Shared;
use crate::torrent::room::Room;

/// An owner answers as soon as a record is on the disk; one that is stuck must not hold all others up.
const ANSWER: Duration = Duration::from_secs(10);
/// What an owner hasn't answered by then isn't counted on any more.
const LATE: Duration = Duration::from_secs(60);
/// Pieces that go in one go at most: an owner is busy with them for a moment.
const BATCH_PIECES: usize = 16_384;
/// Torrents that aren't open and take less than this go last: a record and metadata are worth more than their room.
const WORTH: u64 = 256 << 10;

/// What pieces may take of what the cache may: on a disk, records and folders take some of it, and rounding to whole
/// blocks. Pure.
pub(super) fn bound(options: &Options) -> Option<u64> {
    let size = options.cache_size?;
    let other = if options.storage.is_on_disk() { (size / 64).clamp(2 * SPARE, 8 * SPARE) } else { 0 };
    Some(size.saturating_sub(other))
}

/// The way to the owners of torrents.
pub(super) trait Owners: Send + Sync + 'static {
    /// Tells the owner of a torrent to do something; false when there is none any more.
    fn tell(&self, slot: u32, command: Command) -> impl Future<Output = bool> + Send;
}

impl Owners for Client {
    async fn tell(&self, slot: u32, command: Command) -> bool {
        let torrent = self.torrents().into_iter().find(|t| t.slot == slot);
        match torrent {
            Some(torrent) => torrent.command(command).await,
            None => false,
        }
    }
}

/// Pieces that an owner was told to evict.
struct Order {
    /// What they take, in bytes.
    bytes: u64,
    told: Instant,
    answer: oneshot::Receiver<u64>,
}

/// See the module.
pub(super) struct Keeper<O> {
    owners: Arc<O>,
    room: Room,
    workers: Arc<Workers>,
    /// Where data lies, if on a disk.
    cache: Option<Arc<CacheDir>>,
    dormant: Arc<Dormant>,
    min_free: Option<u64>,
    plan: Plan,
    victims: Victims,
    /// Those that weren't answered in time.
    late: Vec<Order>,
    /// What the disk said last.
    space: Option<DiskSpace>,
    /// How long owners are waited for.
    answer: Duration,
}

impl Keeper<Client> {
    /// Starts it in a task of `scope`.
    pub(super) fn start(client: &Arc<Client>, scope: &TaskScope) {
        let on_disk = client.options.storage.is_on_disk();
        let keeper = Self::new(
            client.clone(),
            client.env.room.clone(),
            client.env.workers.clone(),
            on_disk.then(|| client.cache.clone()),
            client.dormant.clone(),
            client.options.min_free,
        );
        scope.spawn("keeper", keeper.run());
    }
}

impl<O: Owners> Keeper<O> {
    /// With a `cache`, there is no room before it has looked at the disk.
    fn new(
        owners: Arc<O>,
        room: Room,
        workers: Arc<Workers>,
        cache: Option<Arc<CacheDir>>,
        dormant: Arc<Dormant>,
        min_free: Option<u64>,
    ) -> Self {
        if cache.is_some() {
            // What lies there isn't counted yet.
            room.quota().disk_is_full();
        }
        Self {
            owners,
            room,
            workers,
            cache,
            dormant,
            min_free,
            plan: Plan::default(),
            victims: Victims::default(),
            late: Vec::new(),
            space: None,
            answer: ANSWER,
        }
    }

    async fn run(mut self) {
        if let Some(cache) = self.cache.clone() {
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

    /// Does what is to be done; returns when to look again.
    async fn round(&mut self) -> Duration {
        self.plan.woken();
        loop {
            if self.room.was_full() {
                self.plan.found_full(self.room.quota().kept(), Instant::now());
            }
            let room = self.room.clone();
            let view = self.view(&room);
            if self.plan.look_due(&view, room.written()) {
                self.look().await;
            }
            let view = self.view(&room);
            match self.plan.step(&view) {
                Step::Rest(pause) => return pause,
                Step::Offer => {
                    if room.stuck().is_some() {
                        tracing::info!("there is room again: fetching goes on");
                    }
                    room.tell(None);
                }
                Step::Stick(stuck) => {
                    tracing::warn!("nothing more is fetched for now: {}", stuck.reason);
                    room.tell(Some(stuck));
                }
                Step::Give(source, target) => {
                    let freed = match source {
                        Source::Dormant => self.drop_dormant(WORTH).await,
                        Source::Crumbs => self.drop_dormant(1).await,
                        Source::Pieces => self.evict(target, None).await,
                        Source::Younger(since) => self.evict(target, Some(since)).await,
                    };
                    self.plan.gave(freed);
                }
            }
        }
    }

    fn view<'a>(&mut self, room: &'a Room) -> View<'a> {
        let now = Instant::now();
        // Answered, or given up.
        self.late.retain_mut(|order| {
            matches!(order.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
                && now.saturating_duration_since(order.told) < LATE
        });
        View {
            now,
            quota: room.quota(),
            need: room.need(),
            unit: room.unit(),
            coming: self.late.iter().map(|order| order.bytes).sum(),
            disk: self.space.map(|space| (space, floor(self.min_free, space.total))),
            writing: room.written() > 0,
        }
    }

    /// Looks at the disk, if data lies on one; and puts a little room by, where there is plenty.
    async fn look(&mut self) {
        let Some(cache) = self.cache.clone() else { return };
        let min_free = self.min_free;
        let mark = self.room.mark();
        let look = move || {
            let space = cache.space()?;
            let plenty = space.free > floor(min_free, space.total).saturating_add(4 * SPARE);
            if plenty && let Err(error) = cache.spare().put_by() {
                tracing::debug!("no room can be put by: {error}");
            }
            Ok::<_, CacheError>(space)
        };
        let (now, unit, quota) = (Instant::now(), self.room.unit(), self.room.quota().clone());
        match self.on_worker(look).await {
            Some(Ok(space)) => {
                self.space = Some(space);
                quota.disk_has(mark, space.free, floor(min_free, space.total));
                if !self.plan.looked(space, unit, now) {
                    // Whatever it says: it took nothing.
                    quota.disk_is_full();
                }
            }
            Some(Err(error)) => {
                tracing::warn!("{error}");
                self.blind(now);
            }
            None => self.blind(now),
        }
    }

    /// The disk can't be looked at: nothing is to be written to it.
    fn blind(&mut self, now: Instant) {
        self.space = None;
        self.room.quota().disk_is_full();
        self.plan.looked(DiskSpace { free: 0, total: 0 }, 1, now);
    }

    /// Removes the torrent that isn't open and was used longest ago, of those that take at least so much. Returns how
    /// many bytes that gave.
    async fn drop_dormant(&self, least: u64) -> u64 {
        let (Some(cache), Some((entry, busy))) = (self.cache.clone(), self.dormant.begin(least)) else {
            return 0;
        };
        let key = entry.key.clone();
        let removed = self.on_worker(move || catalog::remove(cache.path(), &key)).await;
        let freed = match removed {
            Some(Ok(_)) => {
                let name = entry.name.as_deref().unwrap_or(&entry.key);
                tracing::info!(torrent = name, "removed from the cache to make room");
                entry.allocated
            }
            // It takes what it took, and isn't tried again.
            Some(Err(error)) => {
                tracing::warn!("{} can't be removed from the cache: {error}", entry.key);
                0
            }
            None => 0,
        };
        drop(busy);
        if freed > 0 {
            self.room.release(freed);
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
        // Who was asked for one doesn't get asked again: it is held, or waited for.
        let mut asked: HashSet<(u32, PieceIndex)> = HashSet::new();
        loop {
            let mut chosen: BTreeMap<u32, (u64, Vec<PieceIndex>)> = BTreeMap::new();
            let (mut bytes, mut count) = (0, 0);
            while bytes < target && count < BATCH_PIECES {
                let stamp = |v: Victim| {
                    let table = &members.get(&v.slot)?.table;
                    table.is_evictable(v.piece).then(|| table.stamp(v.piece))
                };
                if let Some(victim) = self.victims.pop(stamp) {
                    let cost = members.get(&victim.slot).map_or(0, |m| m.cost(victim.piece));
                    if asked.insert((victim.slot, victim.piece)) && cost > 0 {
                        let (sum, pieces) = chosen.entry(victim.slot).or_default();
                        *sum += cost;
                        pieces.push(victim.piece);
                        bytes += cost;
                        count += 1;
                    }
                    continue;
                }
                let (members, but) = (members.clone(), std::mem::take(&mut asked));
                let most = usize::try_from(target >> 14).unwrap_or(usize::MAX).min(BATCH_PIECES);
                let look = move || (oldest(&members, &but, most), but);
                (self.victims, asked) = self.on_worker(look).await.unwrap_or_default();
                if self.victims.is_empty() {
                    break;
                }
            }
            if chosen.is_empty() {
                return 0;
            }
            let late = self.late.len();
            let freed = self.order(chosen, younger_than).await;
            // What they haven't answered they may be about to give: no more goes for now.
            if freed > 0 || self.late.len() > late {
                return freed;
            }
        }
    }

    /// Tells the owners, all at once; returns what they gave by the time that all have answered, or are late.
    async fn order(
        &mut self,
        chosen: BTreeMap<u32, (u64, Vec<PieceIndex>)>,
        younger_than: Option<Instant>,
    ) -> u64 {
        let (owners, limit) = (&self.owners, self.answer);
        let tell = async |slot, (bytes, pieces)| {
            let (done, answer) = oneshot::channel();
            let mut order = Order { bytes, told: Instant::now(), answer };
            let told = owners.tell(slot, Command::Evict { pieces, younger_than, done });
            let told = async { if told.await { (&mut order.answer).await.unwrap_or(0) } else { 0 } };
            match tokio::time::timeout(limit, told).await {
                Ok(freed) => (freed, None),
                Err(_) => (0, Some(order)),
            }
        };
        let all = chosen.into_iter().map(|(slot, order)| tell(slot, order));
        let answers = futures_util::future::join_all(all).await;
        let freed = answers.iter().map(|(freed, _)| freed).sum();
        self.late.extend(answers.into_iter().filter_map(|(_, late)| late));
        freed
    }

    /// Does something that may wait for the disk; `None` when the workers are closed.
    async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        super::on_worker(&self.workers, work).await
    }
}

/// The oldest of the pieces that could go, `but` some.
fn oldest(members: &BTreeMap<u32, Arc<Shared>>, but: &HashSet<(u32, PieceIndex)>, most: usize) -> Victims {
    let mut victims = Victims::default();
    let all = members.iter().flat_map(|(slot, shared)| shared.table.victims(*slot));
    victims.fill(all.filter(|v| but.is_empty() || !but.contains(&(v.slot, v.piece))), most);
    victims
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
