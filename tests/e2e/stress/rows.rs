//! What row O9 names, each with readers of its own.
//!
//! While they read, peers and torrents come and go, and a fifth of the readers is killed where a row has a time. Not in
//! these: fifteen workers of lookups (nothing may be served, and that is counted), concurrent fetches (the bytes are),
//! and peers stay with the eight workers (a peer that was away may be dialled only after twice the 5 s that they have).

use std::time::Duration;

use super::crew::Crew;
use super::lasting;
use super::watchdog::Watchdog;
use super::worker::{Mix, Order, Until};
use super::world::{Cast, Churn, Visits, World, report};
use crate::common::{Random, Varied, wait_until};
use crate::needs;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// For one operation where all peers are there: no more than a hang would be.
const EACH: Duration = Duration::from_secs(20);
/// The same where peers come and go: a peer that was away is dialled again after 10 s at most.
const EACH_OF_FEW: Duration = Duration::from_secs(40);
/// For everything of a row without a time of its own.
const ALL: Duration = Duration::from_secs(120);
/// A reader that was killed is gone within 500 ms; five times that, for a busy machine.
const GONE: Duration = Duration::from_millis(500 * 5);

/// A folder with so many files in so many folders, of many sizes.
fn tree(name: &str, folders: u64, files: u64, piece_length: usize) -> Varied {
    let mut list = Vec::new();
    for number in 0..files {
        let size = [1, 4096, 20_000, 65_536, 131_073, 400_000, 1_000_000][number as usize % 7] + number * 37;
        list.push((format!("{}/file {number:03}.bin", number % folders), size));
    }
    // The last one takes what is left of the last piece.
    let total: u64 = list.iter().map(|(_, size)| size).sum();
    list.last_mut().expect("a file").1 += total.next_multiple_of(piece_length as u64) - total;
    Varied::folder(name, &list, piece_length)
}

/// Peers and a torrent that come and go.
struct Unrest {
    churn: Option<Churn>,
    visits: Visits,
}

impl Unrest {
    /// With peers that stay or not.
    fn start(world: &mut World, peers: bool) -> Self {
        let luck = Random(world.random.next());
        let churn = peers.then(|| Churn::start(world.crowds.clone(), luck));
        Self { churn, visits: Visits::start(world, false) }
    }

    /// Ends it: all peers are back, and no visitor is left.
    fn end(self) {
        drop(self.churn);
        let visits = self.visits.end();
        eprintln!("  torrents came and went {visits} times");
        assert!(visits > 0, "none was added and removed");
    }
}

/// A torrent that comes and goes.
fn guests() -> Vec<Cast> {
    vec![(tree("guests", 3, 24, 1 << 16), 2)]
}

/// The watchdog of all these rows, at readers that do hang.
#[test]
fn a_watchdog_says_what_hangs_and_ends_it() {
    needs!(Fuse);
    let mut world = World::start(vec![(Varied::new("lost.bin", 64, 1 << 14), 0)], &[]);
    let mut crew = Crew::new();
    for _ in 0..2 {
        crew.start(world.order(Mix::EachFile, Until::Operations(9)));
    }
    let watchdog = Watchdog::start(crew.board.clone(), world.mount.pid(), Duration::from_millis(500), ALL);
    wait_until("the watchdog", ALL, || watchdog.trouble().is_some());
    let trouble = watchdog.trouble().unwrap_or_default();
    assert!(trouble.starts_with("read whole lost.bin, for "), "{trouble}");
    crew.join(|| ());
    assert_eq!(crew.board.figures().wrongs().len(), 2, "both were killed, and nobody had told them to end");
    world.end();
}

#[test]
fn o9_ten_readers_of_twenty_operations() {
    needs!(Fuse);
    let mut world = World::with_visitors(vec![(tree("ten", 3, 21, 1 << 16), 3)], guests(), &[]);
    let unrest = Unrest::start(&mut world, true);
    let mut crew = Crew::new();
    for _ in 0..10 {
        crew.start(world.order(Mix::Reads, Until::Operations(20)));
    }
    world.watch(&mut crew, "10 readers x 20 operations", EACH_OF_FEW, ALL);
    assert_eq!(crew.board.figures().done(), 200);
    unrest.end();
    world.end();
}

#[test]
fn o9_fifteen_workers_of_thirty_lookups() {
    needs!(Fuse);
    let cast = vec![(tree("names", 8, 96, 1 << 16), 1), (Varied::new("one.bin", 64, 1 << 16), 1)];
    let mut world = World::start(cast, &[]);
    let mut crew = Crew::new();
    for _ in 0..15 {
        crew.start(world.order(Mix::Lookups, Until::Operations(30)));
    }
    world.watch(&mut crew, "15 workers x 30 lookups", EACH, ALL);
    assert_eq!(crew.board.figures().done(), 450);
    assert_eq!(world.served(), 0, "looking fetches nothing");
    world.end();
}

/// What is here, what has to be fetched, and what nobody has, which fails at its time-out: each within 5 s.
#[test]
fn o9_eight_workers_with_five_seconds_for_each_operation() {
    const LIMIT: Duration = Duration::from_secs(5);
    needs!(Fuse);
    let cast = vec![(tree("had", 4, 40, 1 << 16), 3), (tree("lost", 2, 8, 1 << 16), 0)];
    let mut world = World::with_visitors(cast, guests(), &["--read-timeout=2s"]);
    let unrest = Unrest::start(&mut world, false);
    let mut crew = Crew::new();
    let lasts = lasting(10);
    for number in 0..8 {
        let under = if number < 2 { "lost" } else { "" };
        let until = Until::Millis(lasts.as_millis() as u64);
        crew.start(Order { under: Some(under.to_owned()), ..world.order(Mix::Both, until) });
    }
    world.watch_and_kill(&mut crew, "8 workers, 5 s for each operation", 5 * LIMIT, lasts);
    unrest.end();
    let figures = crew.board.figures();
    assert!(figures.refused() > 0, "some of what nobody has was read");
    let over = figures.over(LIMIT);
    eprintln!("  {over} of {} operations took over {LIMIT:?}", figures.done());
    assert!(over * 100 < figures.done(), "{over} of {} operations took over {LIMIT:?}", figures.done());
    drop(figures);
    world.end();
}

/// All at once: torrents and peers come and go, there is room for a part only, and a fifth of the readers is killed.
#[test]
fn o9_fifty_workers_on_a_hundred_files() {
    const ROOM: u64 = 24 * MIB;
    needs!(Fuse);
    let cast = vec![
        (tree("many", 5, 97, 1 << 16), 4),
        (Varied::new("large.bin", 32, 1 << 20), 3),
        (Varied::new("middle.bin", 128, 1 << 17), 2),
        (Varied::new("small.bin", 200, 1 << 14), 2),
    ];
    let visitors = vec![(tree("guests", 3, 24, 1 << 16), 2), (Varied::new("guest.bin", 32, 1 << 17), 2)];
    let mut world = World::with_visitors(cast, visitors, &["--cache-size", &ROOM.to_string()]);
    assert!(world.size() > 2 * ROOM, "{} bytes fit twice", world.size());
    let unrest = Unrest::start(&mut world, true);
    let mut crew = Crew::new();
    let lasts = lasting(30);
    for _ in 0..50 {
        let until = Until::Millis(lasts.as_millis() as u64);
        crew.start(world.order(Mix::Both, until));
    }
    world.watch_and_kill(&mut crew, "50 workers on 100 files", EACH_OF_FEW, lasts);
    unrest.end();
    let (served, size) = (world.served(), world.size());
    eprintln!("  fetched {} MiB of {}, with room for {}", served / MIB, size / MIB, ROOM / MIB);
    assert!(served > ROOM, "nothing had to go: {served} bytes were fetched");
    let longest = crew.board.figures().longest_end();
    assert!(longest < GONE, "a killed reader took {longest:?} to end");
    world.end();
}

#[test]
fn o9_twelve_workers_over_eight_directories() {
    const DIRECTORIES: u64 = 8;
    needs!(Fuse);
    let cast = vec![(tree("eight", DIRECTORIES, 96, 1 << 16), 4)];
    let mut world = World::with_visitors(cast, guests(), &[]);
    let unrest = Unrest::start(&mut world, true);
    let mut crew = Crew::new();
    for number in 0..12 {
        let under = Some(format!("eight/{}/", number % DIRECTORIES));
        crew.start(Order { under, ..world.order(Mix::Both, Until::Operations(60)) });
    }
    world.watch(&mut crew, "12 workers over 8 directories", EACH_OF_FEW, ALL);
    assert_eq!(crew.board.figures().done(), 720);
    unrest.end();
    world.end();
}

/// Who fetches the same at the same time fetches it once.
#[test]
fn o9_concurrent_fetches() {
    needs!(Fuse);
    let cast = vec![(tree("each", 4, 60, 1 << 16), 4), (Varied::new("same.bin", 12, 1 << 20), 4)];
    let mut world = World::start(cast, &[]);
    let mut crew = Crew::new();
    for _ in 0..12 {
        crew.start(world.order(Mix::EachFile, Until::Operations(u64::MAX)));
    }
    world.watch(&mut crew, "12 readers of everything", EACH, ALL);
    let (served, size) = (world.served(), world.size());
    assert_eq!(crew.board.figures().done(), 12 * 61);
    eprintln!("  fetched {served} bytes of {size}");
    assert!(served >= size && served <= size * 11 / 10, "{served} bytes were fetched of {size}");
    world.end();
}

#[test]
fn o9_shutdown_under_load() {
    const DEADLINE: Duration = Duration::from_secs(10);
    needs!(Fuse);
    let cast = vec![
        (tree("load", 5, 60, 1 << 16), 3),
        (Varied::new("load.bin", 64, 1 << 18), 2),
        (Varied::new("nobody.bin", 64, 1 << 14), 0),
    ];
    let visitors = vec![(tree("late", 2, 14, 1 << 16), 2)];
    let mut world = World::with_visitors(cast, visitors, &["--cache-size=16M"]);
    let visits = Visits::start(&mut world, true);
    let mut crew = Crew::new();
    for _ in 0..30 {
        crew.start(world.order(Mix::Both, Until::Gone));
    }
    let board = crew.board.clone();
    let watchdog = Watchdog::start(board.clone(), world.mount.pid(), ALL, ALL);
    wait_until("the load", ALL, || {
        watchdog.check();
        // Some wait for what nobody has by then.
        board.figures().done() > 500 && visits.count() > 1
    });
    crew.reap();
    assert_eq!((crew.len(), crew.board.figures().refused_for_good()), (30, 0), "all work");
    world.mount.signal(nix::sys::signal::Signal::SIGTERM);
    let took = world.ended();
    eprintln!("from SIGTERM under load to the end: {took:?}");
    assert!(took < DEADLINE + Duration::from_secs(2), "{took:?}");
    crew.join(|| watchdog.check());
    report(&crew, "30 workers when the mount ends");
    eprintln!("  torrents came and went {} times before", visits.end());
    assert_eq!(crew.board.figures().refused_for_good(), 30, "the end is what all of them ended by");
}
