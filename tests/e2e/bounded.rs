//! `--cache-size`: right bytes through a cache much smaller than the torrent, which stays within its bound all the
//! time, and so does the memory.
//!
//! What lies in the cache folder is measured as `du` does, every two milliseconds. The kernel's own copies of what
//! was read are dropped where reading again is to reach the program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Crowd, Mount, Peak, Varied, allocated, bytes_at, cpu, forget_pages, memory, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// What the program takes beside the data it keeps: at full speed, with its own code and that of libraries (a debug
/// build's), and what the allocator doesn't give back.
const FIXED: u64 = 96 * MIB;

/// A mount of torrents with all the seeders of a crowd, and its cache folder watched.
struct Bounded {
    mount: Mount,
    size: u64,
    taken: Peak,
    _cache: tempfile::TempDir,
}

impl Bounded {
    fn start(torrents: &[&Varied], crowds: &[&Crowd], size: u64, args: &[&str]) -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        let builder = torrents.iter().fold(Mount::empty(), |mount, torrent| mount.source(&torrent.torrent));
        let peers = crowds.iter().flat_map(|crowd| crowd.addrs());
        let builder = peers.fold(builder, |mount, peer| mount.peer(*peer)).cache(cache.path());
        let folder = cache.path().to_owned();
        let taken = Peak::of(move || allocated(&folder));
        let bound = size.to_string();
        let mount = builder.args(&["--cache-size", &bound]).args(args).start();
        Self { mount, size, taken, _cache: cache }
    }

    /// Ends it, after a look at what it took at most. `what` begins with the kind of storage.
    #[track_caller]
    fn stop(self, what: &str) {
        let in_memory = what.starts_with("memory");
        // Pages of mapped files are the kernel's to take back.
        let kind = if what.starts_with("mmap") { "RssAnon" } else { "VmHWM" };
        let resident = memory(self.mount.pid(), kind);
        let taken = self.taken.highest();
        eprintln!(
            "{what}: at most {} MiB in the cache folder of {}, {} MiB resident",
            taken / MIB,
            self.size / MIB,
            resident / MIB
        );
        assert!(taken <= self.size, "{what}: {taken} bytes in the cache folder");
        assert!(!in_memory || taken < MIB, "{what}: {taken} bytes on the disk");
        let budget = FIXED + if in_memory { self.size } else { 0 };
        assert!(resident <= budget, "{what}: {} MiB resident", resident / MIB);
        self.mount.stop();
    }
}

/// A GiB (or what `TORRENTFS_BOUNDED_MIB` says), twice, through 128 MiB.
fn twice(storage: &str) {
    let mib = std::env::var("TORRENTFS_BOUNDED_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(1024);
    let torrent = Varied::new("gib.bin", mib, MIB as usize);
    let crowd = Crowd::start(&torrent, 2);
    let bounded = Bounded::start(&[&torrent], &[&crowd], 128 * MIB, &["--storage", storage]);
    let path = bounded.mount.path(&torrent.name);
    for round in 1..=2 {
        let start = Instant::now();
        torrent.read(&path, 0..torrent.size());
        let rate = torrent.size() as f64 / MIB as f64 / start.elapsed().as_secs_f64();
        eprintln!("{storage}: round {round} at {rate:.0} MiB/s");
        forget_pages(&path);
    }
    // Reading in order finds nothing of the round before, and needs nothing twice.
    let served = crowd.served() as f64 / torrent.size() as f64;
    eprintln!("{storage}: {served:.3} times the torrent was fetched");
    assert!((1.8..2.05).contains(&served), "{storage}: {served} times the torrent was fetched");
    bounded.stop(storage);
}

#[test]
fn a_gib_twice_through_files_of_128_mib() {
    needs!(Fuse);
    twice("file");
}

#[test]
fn a_gib_twice_through_memory_of_128_mib() {
    needs!(Fuse);
    twice("memory");
}

#[test]
fn a_gib_twice_through_mapped_files_of_128_mib() {
    needs!(Fuse);
    twice("mmap");
}

/// Far more readers than there is room for what they read at any moment.
fn crowded(storage: &str) {
    const READERS: u64 = 40;
    const READS: u64 = 8;
    let torrent = Varied::new("crowded.bin", 256, MIB as usize);
    let crowd = Crowd::start(&torrent, 2);
    let bounded = Bounded::start(&[&torrent], &[&crowd], 16 * MIB, &["--storage", storage]);
    let path = bounded.mount.path(&torrent.name);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (path, torrent) = (&path, &torrent);
            scope.spawn(move || {
                let file = File::open(path).expect("opens");
                let random = bytes_at(reader, 0, 8 * READS as usize);
                let mut buffer = vec![0; MIB as usize];
                for word in random.chunks_exact(8) {
                    let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                    // Most reads reach into a second piece.
                    let offset = word % (torrent.size() - MIB);
                    file.read_exact_at(&mut buffer, offset).expect("reads");
                    torrent.check(offset, &buffer);
                }
            });
        }
    });
    let times = crowd.served() as f64 / (READERS * READS * MIB) as f64;
    eprintln!(
        "{storage}: {READERS} readers in {:?}, {times:.2} times what they read was fetched",
        start.elapsed()
    );
    bounded.stop(&format!("{storage}, {READERS} readers"));
}

#[test]
fn many_readers_at_random_places_of_a_tight_file_store_all_get_on() {
    needs!(Fuse);
    crowded("file");
}

#[test]
fn many_readers_at_random_places_of_a_tight_memory_store_all_get_on() {
    needs!(Fuse);
    crowded("memory");
}

/// Two torrents share one bound; what is read again and again stays, whatever flows by.
fn shared(storage: &str) {
    let torrents = ["one.bin", "two.bin"].map(|name| Varied::new(name, 96, MIB as usize));
    let crowds = [&torrents[0], &torrents[1]].map(|torrent| Crowd::start(torrent, 1));
    let both = [&torrents[0], &torrents[1]];
    let bounded = Bounded::start(&both, &[&crowds[0], &crowds[1]], 32 * MIB, &["--storage", storage]);
    let [one, two] = [&torrents[0], &torrents[1]].map(|torrent| bounded.mount.path(&torrent.name));
    let head = 0..4 * MIB;
    torrents[0].read(&one, head.clone());
    let before = crowds[0].served_of(0..4);
    for begin in (0..torrents[1].size()).step_by(4 * MIB as usize) {
        torrents[1].read(&two, begin..begin + 4 * MIB);
        forget_pages(&one);
        torrents[0].read(&one, head.clone());
    }
    assert_eq!(crowds[0].served_of(0..4), before, "{storage}: what was read a moment ago was given away");
    // Both at once.
    std::thread::scope(|scope| {
        scope.spawn(|| torrents[0].read(&one, 4 * MIB..torrents[0].size()));
        scope.spawn(|| {
            forget_pages(&two);
            torrents[1].read(&two, 0..torrents[1].size());
        });
    });
    bounded.stop(&format!("{storage}, two torrents"));
}

#[test]
fn two_torrents_share_one_bound_on_the_disk() {
    needs!(Fuse);
    shared("file");
}

#[test]
fn two_torrents_share_one_bound_in_memory() {
    needs!(Fuse);
    shared("memory");
}

/// What an earlier run left of a torrent that isn't mounted now counts as well, and goes first.
#[test]
fn what_is_not_mounted_counts_and_goes_first() {
    needs!(Fuse);
    let torrents = ["one.bin", "two.bin"].map(|name| Varied::new(name, 24, MIB as usize));
    let crowds = [&torrents[0], &torrents[1]].map(|torrent| Crowd::start(torrent, 1));
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_owned();
    let taken = Peak::of(move || allocated(&place));
    for (torrent, crowd) in torrents.iter().zip(&crowds) {
        let builder = Mount::of(&torrent.torrent).cache(folder.path()).peer(crowd.addrs()[0]);
        let mount = builder.arg("--cache-size=32M").start();
        for _ in 0..2 {
            torrent.read(&mount.path(&torrent.name), 0..torrent.size());
            forget_pages(&mount.path(&torrent.name));
        }
        mount.stop();
        assert_eq!(crowd.served(), torrent.size(), "{}: it came once, and stayed", torrent.name);
    }
    assert!(taken.highest() <= 32 * MIB, "{} bytes", taken.highest());
}

/// Waits until no more comes from a crowd, and returns what came. What comes late comes within some seconds.
fn settled(crowd: &Crowd) -> u64 {
    const QUIET: Duration = Duration::from_secs(3);
    let (mut served, mut since) = (crowd.served(), Instant::now());
    wait_until("no more to be fetched", MINUTE, || {
        let now = crowd.served();
        if now != served {
            (served, since) = (now, Instant::now());
        }
        since.elapsed() > QUIET
    });
    served
}

/// Fetching everything beyond what can be kept ends when the bound is reached, and readers still come first.
#[test]
fn prefetching_all_fills_the_cache_and_stops() {
    needs!(Fuse, Attr);
    let torrent = Varied::new("all.bin", 128, MIB as usize);
    let crowd = Crowd::start(&torrent, 1);
    let bounded = Bounded::start(&[&torrent], &[&crowd], 32 * MIB, &["--prefetch=all"]);
    let path = bounded.mount.path(&torrent.name);
    wait_until("it to begin", MINUTE, || crowd.served() > 0);
    let served = settled(&crowd);
    eprintln!("prefetched {} MiB of {}, with room for 32", served / MIB, torrent.size() / MIB);
    assert!(served >= 24 * MIB, "{} MiB: the cache is made use of", served / MIB);
    assert!(served <= 40 * MIB, "{} MiB: what was fetched was given away for more", served / MIB);
    let (used, since) = (cpu(bounded.mount.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu(bounded.mount.pid()).saturating_sub(used);
    eprintln!("then {used:?} of processor in {:?}", since.elapsed());
    assert!(used < since.elapsed() / 10, "{used:?} in {:?} with nothing to do", since.elapsed());
    assert_eq!(crowd.served(), served);
    assert_eq!(bounded.mount.xattr(&path, "error"), None);

    let before = crowd.served();
    torrent.read(&path, 0..torrent.size());
    let fetched = crowd.served() - before;
    eprintln!("{} MiB fetched for a reader of {}", fetched / MIB, torrent.size() / MIB);
    assert!(fetched <= torrent.size() * 5 / 4, "{} MiB fetched for {}", fetched / MIB, torrent.size() / MIB);
    settled(&crowd);
    bounded.stop("file, prefetching all");
}

/// A file that is read over and over is fetched once, if there is room for it, though the next is larger than that.
#[test]
fn what_fits_is_fetched_once() {
    needs!(Fuse);
    let torrent = Varied::new("fits.bin", 24, MIB as usize);
    let crowd = Crowd::start(&torrent, 1);
    let bounded = Bounded::start(&[&torrent], &[&crowd], 32 * MIB, &[]);
    let path: &Path = &bounded.mount.path(&torrent.name);
    for _ in 0..3 {
        torrent.read(path, 0..torrent.size());
        forget_pages(path);
    }
    assert_eq!(crowd.served_of(0..24), torrent.size(), "each piece came once");
    bounded.stop("file, what fits");
}
