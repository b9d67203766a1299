//! The keeper beside owners that do as they are told, and with a cache folder.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::*;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::info::Info;
use crate::storage::quota::Quota;
use crate::storage::{FileState, StorageError, Store};
use crate::torrent::room::Membership;
use crate::torrent::room::Need;
use crate::torrent::table::{PieceState, PieceTable, ReadClock};

/// Bytes of a piece.
const PIECE: u32 = 16 * 1024;
/// For what happens at once.
const LONG: Duration = Duration::from_secs(20);

/// Keeps nothing: only what a piece takes matters.
struct Nothing;

impl Store for Nothing {
    fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
        Ok(())
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        buf.fill(0);
        Ok(())
    }
    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
        Ok(false)
    }
    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }
    fn discard(&self, _: Range<u64>, _: Range<u64>) -> Result<(), StorageError> {
        Ok(())
    }
    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        Ok(Vec::new())
    }
    fn close(&self) {}
}

/// How an owner takes an order.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// It does what it is told.
    Willing,
    /// It gives only what younger reads need.
    OnlyYounger,
    /// It never answers.
    Silent,
}

/// Owners of torrents of ten pieces.
struct Fakes {
    room: Room,
    manner: Manner,
    torrents: BTreeMap<u32, Arc<Shared>>,
    /// The pieces of each order, and whether it was for those of younger reads, too.
    orders: RankedMutex<Vec<(Vec<u32>, bool)>>,
    unanswered: RankedMutex<Vec<oneshot::Sender<u64>>>,
}

impl Owners for Fakes {
    async fn tell(&self, slot: u32, command: Command) -> bool {
        let Command::Evict { pieces, younger_than, done } = command else { return false };
        let shared = &self.torrents[&slot];
        self.orders.lock().push((pieces.iter().map(|p| p.0).collect(), younger_than.is_some()));
        match self.manner {
            Manner::Silent => {
                self.unanswered.lock().push(done);
                return true;
            }
            Manner::OnlyYounger if younger_than.is_none() => _ = done.send(0),
            Manner::OnlyYounger | Manner::Willing => {
                let gone: Vec<_> = pieces.into_iter().filter(|p| shared.table.evict(*p)).collect();
                let bytes = gone.iter().map(|p| shared.cost(*p)).sum();
                self.room.release(bytes);
                let _ = done.send(bytes);
            }
        }
        true
    }
}

struct World {
    fakes: Arc<Fakes>,
    room: Room,
    workers: Arc<Workers>,
    scope: TaskScope,
    _members: Vec<Membership>,
}

impl World {
    /// Two torrents of ten pieces each, all here, and an account with room for `bound` pieces.
    fn new(bound: u64, manner: Manner) -> Self {
        let (workers, clock) = (Workers::start(2).unwrap(), ReadClock::default());
        let room = Room::new(Arc::new(Quota::new(Some(bound * u64::from(PIECE)))));
        let one = |_| {
            let mut builder = TorrentBuilder::new("x", PIECE);
            builder.single_file(u64::from(10 * PIECE)).piece_hashes((0..10).map(|n| [n; 20]));
            let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
            let table = Arc::new(PieceTable::with_clock(10, PieceState::Complete, clock.clone()));
            Arc::new(Shared::new(info, table, Arc::new(Nothing), workers.clone(), Arc::default()))
        };
        let torrents: BTreeMap<u32, Arc<Shared>> = (1..=2).map(|slot| (slot, one(slot))).collect();
        let members = torrents.iter().map(|(slot, shared)| room.join(*slot, shared.clone())).collect();
        room.quota().charge(20 * u64::from(PIECE));
        let fakes = Fakes {
            room: room.clone(),
            manner,
            torrents,
            orders: RankedMutex::new(Rank::Leaf, "orders", Vec::new()),
            unanswered: RankedMutex::new(Rank::Leaf, "unanswered", Vec::new()),
        };
        Self { fakes: Arc::new(fakes), room, workers, scope: TaskScope::root(), _members: members }
    }

    fn start(&self, cache: Option<Arc<CacheDir>>, dormant: Arc<Dormant>) {
        let (room, workers) = (self.room.clone(), self.workers.clone());
        let mut keeper = Keeper::new(self.fakes.clone(), room, workers, cache, dormant, Some(0));
        if self.fakes.manner == Manner::Silent {
            keeper.answer = Duration::from_millis(20);
        }
        self.scope.spawn("keeper", keeper.run());
    }

    fn table(&self, slot: u32) -> &PieceTable {
        &self.fakes.torrents[&slot].table
    }

    fn used(&self) -> u64 {
        self.room.quota().used() / u64::from(PIECE)
    }

    /// Waits until the room says so; the account may have changed without a word.
    async fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let mut watch = self.room.watch();
        let wait = async {
            while !is(self) {
                let _ = tokio::time::timeout(Duration::from_millis(5), watch.changed()).await;
            }
        };
        tokio::time::timeout(LONG, wait).await.expect(what);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.scope.cancel();
        self.workers.stop(LONG);
    }
}

#[tokio::test]
async fn what_was_read_longest_ago_goes_whosever_it_is_and_no_more_than_has_to() {
    let world = World::new(10, Manner::Willing);
    // Read in turn, from both; then the first of each once more.
    for piece in 0..10 {
        world.table(1).touch(PieceIndex(piece));
        world.table(2).touch(PieceIndex(piece));
    }
    world.table(1).touch(PieceIndex(0));
    world.table(2).touch(PieceIndex(0));
    // Held: passed over.
    let pins = world.table(2).hold(1..2);
    world.start(None, Arc::new(Dormant::new()));
    world.until("it fits", |world| world.used() <= 10).await;
    let here = |slot| (0..10).filter(|p| world.table(slot).is_complete(PieceIndex(*p))).collect::<Vec<u32>>();
    assert_eq!((here(1), here(2)), (vec![0, 7, 8, 9], vec![0, 1, 6, 7, 8, 9]));
    assert_eq!(world.used(), 10);
    drop(pins);
    // Somebody needs more.
    let bytes = 2 * u64::from(PIECE);
    world.room.ask(7, Need { bytes, largest: bytes, since: None });
    let mut watch = world.room.watch();
    world.until("room for two", |world| world.used() <= 8).await;
    assert!(!world.table(2).is_complete(PieceIndex(1)), "it isn't held any more, and the oldest");
    watch.changed().await.unwrap();
    assert!(world.room.stuck().is_none());
}

#[tokio::test]
async fn with_everything_held_it_says_so_and_goes_on_when_it_is_let_go() {
    let world = World::new(20, Manner::Willing);
    let pins = [world.table(1).hold(0..10), world.table(2).hold(0..10)];
    world.start(None, Arc::new(Dormant::new()));
    let bytes = u64::from(PIECE);
    world.room.ask(7, Need { bytes, largest: bytes, since: None });
    world.until("stuck", |world| world.room.stuck().is_some()).await;
    assert!(world.room.stuck().is_some_and(|stuck| !stuck.disk));
    assert!(world.fakes.orders.lock().is_empty(), "nobody was asked for what is held");
    drop(pins);
    world.until("room", |world| world.room.stuck().is_none()).await;
    assert!(world.room.try_reserve(PIECE.into()).is_some());
}

#[tokio::test]
async fn of_readers_that_wait_for_each_other_the_oldest_gets_on() {
    let world = World::new(20, Manner::OnlyYounger);
    world.start(None, Arc::new(Dormant::new()));
    let bytes = u64::from(PIECE);
    world.room.ask(7, Need { bytes, largest: bytes, since: Some(Instant::now()) });
    world.until("room", |world| world.used() < 20).await;
    let orders = world.fakes.orders.lock().clone();
    let younger = orders.iter().position(|(_, younger)| *younger).unwrap();
    assert!(younger > 0, "first without: {orders:?}");
    // Without, every piece was asked for, and none twice in a round.
    let mut first: Vec<u32> = orders[..younger].iter().flat_map(|(pieces, _)| pieces.clone()).collect();
    assert_eq!(first.len() % 20, 0, "{orders:?}");
    first.truncate(20);
    first.sort_unstable();
    assert_eq!(first, (0..10).flat_map(|p| [p, p]).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_owner_that_does_not_answer_is_not_asked_for_ever_more() {
    let world = World::new(20, Manner::Silent);
    world.start(None, Arc::new(Dormant::new()));
    let bytes = u64::from(PIECE);
    world.room.ask(7, Need { bytes, largest: bytes, since: None });
    world.until("stuck", |world| world.room.stuck().is_some()).await;
    assert_eq!(world.fakes.orders.lock().len(), 1, "what it was told is on its way");
    assert_eq!(world.fakes.unanswered.lock().len(), 1);
}

/// A torrent that isn't open, with so many KiB of data.
fn dormant(cache: &Path, digit: &str, kib: usize) -> String {
    let key = digit.repeat(40);
    let data = cache.join(&key).join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("x"), vec![7; kib << 10]).unwrap();
    key
}

#[tokio::test]
async fn torrents_that_are_not_open_go_first_and_whole_and_open_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(CacheDir::open(dir.path()).unwrap());
    let [open, small, old, new] =
        [("a", 900), ("0", 4), ("1", 600), ("2", 600)].map(|(digit, kib)| dormant(dir.path(), digit, kib));
    // 320 KiB are open, and 1 MiB and more isn't: 1 MiB is the bound.
    let world = World::new(64, Manner::Willing);
    let sleepers = Arc::new(Dormant::new());
    sleepers.claim(&open).await.opened();
    world.start(Some(cache), sleepers.clone());
    world.until("found and removed", |_| !dir.path().join(&old).exists()).await;
    world.until("it fits", |world| world.used() <= 64).await;
    let there = |key: &str| dir.path().join(key).join("data/x").exists();
    assert!(there(&open) && there(&new) && there(&small), "the small ones last");
    assert!((0..10).all(|p| world.table(1).is_complete(PieceIndex(p))), "no piece had to go");
    // Opened: what was charged for it is the opener's to settle.
    let charged = sleepers.claim(&new).await.charged();
    assert!(charged >= 600 << 10);
    world.room.quota().recount(charged, 0);
    assert!((20..=22).contains(&world.used()), "{}", world.used());
}
