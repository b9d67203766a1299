//! What a very large torrent and many peers cost: the start, idleness, memory at full speed.
//!
//! The sizes are those that broke others: 333,333 pieces of 16 KiB, 80 peers. Each figure is printed. Memory is
//! anonymous memory, which a debug build hardly changes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::common::{Crowd, Mount, Peak, Uniform, cpu, memory, wait_until, wake_ups};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// A torrent of so many pieces is ready within 1 s; five times that, for a busy machine.
const READY: Duration = Duration::from_secs(5);
/// And takes so much memory.
const READY_MEMORY: u64 = 48 * MIB;
/// At full speed with 80 peers.
const FULL_SPEED_MEMORY: u64 = 64 * MIB;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const PIECES: u64 = 333_333;

/// 333,333 pieces of zeros.
fn very_many_pieces() -> Uniform {
    Uniform::new("zeros.bin", PIECES, vec![0; 16 << 10])
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
}

/// The time from the start to the mount, and the memory then. Panics when either is too much.
fn ready(mount: &Mount, what: &str) {
    let (age, anonymous, all) = (mount.age(), memory(mount.pid(), "RssAnon"), memory(mount.pid(), "VmRSS"));
    eprintln!("{what}: ready after {age:?}, {} anonymous, {} resident", mib(anonymous), mib(all));
    assert!(age < READY, "{what}: ready after {age:?}");
    assert!(anonymous > 0 && anonymous < READY_MEMORY, "{what}: {}", mib(anonymous));
}

#[test]
fn a_torrent_of_333_333_pieces_is_ready_soon_and_small() {
    needs!(Fuse);
    let torrent = very_many_pieces();
    let mount = Mount::of(&torrent.torrent).start();
    ready(&mount, "333,333 pieces, nothing here");
    assert_eq!(mount.path(&torrent.name).metadata().expect("stat").len(), torrent.size());
    mount.stop();
}

/// Row C3: all data lies in the cache and nothing tells whether it is right. What hashes is what somebody reads.
/// All of it is right, so each piece that was hashed counts as here, and progress counts the hashes.
#[test]
fn c3_333_333_pieces_are_ready_with_no_hash_computed() {
    needs!(Fuse, Attr);
    let torrent = very_many_pieces();
    let cache = tempfile::tempdir().expect("a folder");
    let data = cache.path().join(&torrent.v1).join("data");
    std::fs::create_dir_all(&data).expect("a folder for the data");
    let file = File::create(data.join(&torrent.name)).expect("a file");
    file.set_len(torrent.size()).expect("a sparse file");
    let mount = Mount::of(&torrent.torrent).cache(cache.path()).start();
    ready(&mount, "333,333 pieces, all here, none looked at");
    let path = mount.path(&torrent.name);
    let hashed = || {
        let progress = mount.xattr(&path, "progress").expect("progress");
        let here: u64 = progress.split('/').next().expect("here/size").parse().expect("a number");
        here / torrent.piece.len() as u64
    };
    assert_eq!(hashed(), 0, "pieces were hashed at the start");
    let mut buffer = vec![1; 4096];
    let middle = PIECES / 2 * torrent.piece.len() as u64;
    File::open(&path).expect("opens").read_exact_at(&mut buffer, middle).expect("reads without a peer");
    torrent.check(middle, &buffer);
    let hashed = hashed();
    // The kernel reads 128 KiB ahead at most, and we what was read once more.
    assert!((1..=16).contains(&hashed), "{hashed} pieces hashed for a read of 4 KiB");
    mount.stop();
}

/// 50 peers that have everything, a file open and half read, and nothing asked for: what isn't asleep shows as
/// processor time.
#[test]
fn idle_with_333_333_pieces_and_50_peers_costs_next_to_nothing() {
    /// Between two keep-alives of some peer: 50 peers that keep to two minutes come to less.
    const KEEP_ALIVE: Duration = Duration::from_millis(250);
    const ROUNDS: usize = 20;
    needs!(Fuse, Attr);
    let torrent = very_many_pieces();
    let crowd = Crowd::start(&torrent, 50);
    let mount =
        crowd.addrs().iter().fold(Mount::of(&torrent.torrent), |mount, peer| mount.peer(*peer)).start();
    wait_until("50 connections", MINUTE, || crowd.connected() == 50);
    let path = mount.path(&torrent.name);
    let open = File::open(&path).expect("opens");
    let mut buffer = vec![1; MIB as usize];
    for piece in [0, PIECES / 3, PIECES - 100] {
        let offset = piece * torrent.piece.len() as u64;
        open.read_exact_at(&mut buffer, offset).expect("reads");
        torrent.check(offset, &buffer);
    }
    wait_until("nothing to do", MINUTE, || mount.xattr(&path, "state").as_deref() == Some("idle"));
    let (woken, served) = (wake_ups(mount.pid()), crowd.served());
    let (start, before) = (Instant::now(), cpu(mount.pid()));
    for round in 0..ROUNDS {
        std::thread::sleep(KEEP_ALIVE);
        crowd.keep_alive(round);
    }
    let (used, passed) = (cpu(mount.pid()).saturating_sub(before), start.elapsed());
    let mut woke = wake_ups(mount.pid());
    woke.iter_mut().for_each(|(thread, count)| *count -= woken.get(thread).copied().unwrap_or(0));
    woke.retain(|_, count| *count > 0);
    let percent = used.as_secs_f64() / passed.as_secs_f64() * 100.0;
    eprintln!("idle with 333,333 pieces and 50 peers: {used:?} in {passed:?}, {percent:.3} % of a core");
    eprintln!("threads that woke up meanwhile, beside {ROUNDS} keep-alives: {woke:?}");
    eprintln!("anonymous memory with 50 peers: {}", mib(memory(mount.pid(), "RssAnon")));
    assert_eq!(crowd.connected(), 50, "the peers are still there");
    assert_eq!(crowd.served(), served, "nothing was fetched meanwhile");
    // 0.2 % is promised; five times that, and two ticks of the clock where it counts in ticks.
    let bound = passed.mul_f64(0.002 * 5.0) + Duration::from_millis(20);
    assert!(used < bound, "{used:?} in {passed:?} of idleness");
    mount.stop();
}

#[test]
fn memory_at_full_speed_with_80_peers_is_bounded() {
    const READERS: u64 = 4;
    needs!(Fuse);
    let piece = (0..MIB as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let torrent = Uniform::new("fast.bin", 384, piece);
    let crowd = Crowd::start(&torrent, 80);
    let mount =
        crowd.addrs().iter().fold(Mount::of(&torrent.torrent), |mount, peer| mount.peer(*peer)).start();
    wait_until("80 connections", MINUTE, || crowd.connected() == 80);
    let path = mount.path(&torrent.name);
    let read = |from: u64, to: u64| {
        let file = File::open(&path).expect("opens");
        let mut buffer = vec![0; 128 << 10];
        for offset in (from..to).step_by(buffer.len()) {
            file.read_exact_at(&mut buffer, offset).expect("reads");
            torrent.check(offset, &buffer);
        }
    };
    let third = torrent.size() / 3;
    let measured = |what: &str, bytes: u64, act: &dyn Fn()| {
        let (start, watch) = (Instant::now(), Peak::watch(mount.pid()));
        act();
        let (rate, peak) = (bytes as f64 / MIB as f64 / start.elapsed().as_secs_f64(), watch.highest());
        eprintln!("{what}, 80 peers: {rate:.0} MiB/s, at most {} of anonymous memory", mib(peak));
        peak
    };
    let before = memory(mount.pid(), "RssAnon");
    let one = measured("one reader", 2 * third, &|| read(0, 2 * third));
    let several = measured("four readers", third, &|| {
        std::thread::scope(|scope| {
            let part = third / READERS;
            for reader in 0..READERS {
                let from = 2 * third + reader * part;
                scope.spawn(move || read(from, from + part));
            }
        });
    });
    eprintln!("before: {}", mib(before));
    assert_eq!(crowd.connected(), 80, "the peers are still there");
    assert!(crowd.served() >= torrent.size(), "{} bytes served", crowd.served());
    for peak in [one, several] {
        assert!(peak > 0 && peak < FULL_SPEED_MEMORY, "{} of anonymous memory", mib(peak));
    }
    mount.stop();
}
