//! A disk much smaller than the torrent, and one that is full.
//!
//! File systems of 64 MiB, in memory and as ext4 on a loop device; a torrent of 256 MiB. They are the test's own, so
//! nothing else writes there but the filler that a test puts there.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Crowd, Mount, Peak, SmallDisk, Varied, cpu, forget_pages, ran, skip, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const DISK: u64 = 64 * MIB;
const PIECE: u64 = MIB;
const PIECES: u64 = 256;
/// `--read-timeout` where a read is meant to end by it.
const TIMEOUT: Duration = Duration::from_secs(5);

fn torrent() -> Varied {
    Varied::new("film.bin", PIECES, PIECE as usize)
}

/// Makes a disk of so many bytes; with its name.
type Kind = (&'static str, fn(u64) -> SmallDisk);

const DISKS: [Kind; 2] = [("tmpfs", SmallDisk::tmpfs), ("ext4", SmallDisk::ext4)];

/// What a read ends with: its error number (without one its bytes are right), and how long it took.
fn failed(torrent: &Varied, path: &Path, offset: u64) -> (Option<i32>, Duration) {
    let start = Instant::now();
    let mut buffer = [0; 4096];
    let error = File::open(path).and_then(|file| file.read_exact_at(&mut buffer, offset)).err();
    let took = start.elapsed();
    if error.is_none() {
        torrent.check(offset, &buffer);
    }
    (error.and_then(|error| error.raw_os_error()), took)
}

/// The whole torrent through a small disk, of which `spare` bytes at least stay free.
fn through(kind: &str, disk: &SmallDisk, args: &[&str], spare: u64) {
    let torrent = torrent();
    let crowd = Crowd::start(&torrent, 2);
    let total = disk.free();
    let peers = crowd.addrs().iter();
    let builder = peers.fold(Mount::of(&torrent.torrent), |mount, peer| mount.peer(*peer));
    let mount = builder.cache(&disk.path().join("cache")).args(args).start();
    let path = mount.path(&torrent.name);
    let place = disk.path().to_owned();
    let most = Peak::of(move || {
        let found = nix::sys::statvfs::statvfs(&place).expect("its figures");
        total.saturating_sub(found.blocks_available() * found.fragment_size())
    });
    let start = Instant::now();
    torrent.read(&path, 0..torrent.size());
    eprintln!(
        "{kind} {args:?}: {} MiB through a disk of {} MiB in {:?}, of which at most {} MiB were taken",
        torrent.size() / MIB,
        total / MIB,
        start.elapsed(),
        most.highest() / MIB
    );
    assert!(most.highest() > total / 2, "{kind} {args:?}: the disk is used");
    assert!(most.highest() <= total - spare, "{kind} {args:?}: {} of {total} taken", most.highest());
    assert_eq!(mount.xattr(&path, "error"), None, "{kind} {args:?}");
    // And back again: what went is fetched again.
    forget_pages(&path);
    torrent.read(&path, 0..8 * MIB);
    mount.stop();
}

#[test]
fn a_torrent_of_four_times_the_disk_reads_right() {
    needs!(Fuse, Attr);
    if let Some(reason) = SmallDisk::missing() {
        return skip(&reason);
    }
    for (kind, disk) in DISKS {
        // A quarter of so small a disk is left to others; what is being written may pass that by a little.
        through(kind, &disk(DISK), &[], DISK / 8);
        through(kind, &disk(DISK), &["--min-free-space=0"], 0);
    }
}

/// Somebody else's file on all of the disk. What is here of the torrent was adopted, so nothing of it can go to make
/// room for the rest.
fn filled_up(kind: &str, disk: SmallDisk) {
    let torrent = torrent();
    let crowd = Crowd::start(&torrent, 2);
    let cache = disk.path().join("cache");
    let other = tempfile::tempdir().expect("a folder");
    torrent.write(&other.path().join(&torrent.name), 0..8);
    let words = ["verify", "--read-only", "--data"].map(OsStr::new);
    let paths = [other.path(), Path::new("--cache-dir"), &cache, &torrent.torrent].map(Path::as_os_str);
    ran(words.into_iter().chain(paths)).said(0, &["8"]);
    let start = |timeout: &str| {
        let peers = crowd.addrs().iter();
        let builder = peers.fold(Mount::of(&torrent.torrent), |mount, peer| mount.peer(*peer));
        builder.cache(&cache).args(&["--min-free-space=0", "--read-timeout", timeout]).start()
    };
    let mount = start("5s");
    let path = mount.path(&torrent.name);
    // Before anything is fetched, ahead of a reader or for one.
    let filler = disk.fill();

    // What is missing can't be had, and its reader learns why.
    let (error, took) = failed(&torrent, &path, 100 * MIB);
    assert_eq!(error, Some(libc::ENOSPC), "{kind}, after {took:?}:\n{}", mount.log());
    assert!(took >= TIMEOUT.mul_f64(0.9) && took < TIMEOUT * 5, "{kind}: after {took:?}");
    assert_eq!(mount.xattr(&path, "state").as_deref(), Some("error"), "{kind}");
    let reason = mount.xattr(&path, "error").expect("a reason");
    assert!(reason.contains("full"), "{kind}: {reason}");

    // What is here goes on, and nothing is tried in a circle meanwhile.
    let (served, used, since) = (crowd.served(), cpu(mount.pid()), Instant::now());
    std::thread::scope(|scope| {
        let (torrent, path) = (&torrent, &path);
        let reader = |place: u64| scope.spawn(move || failed(torrent, path, place * MIB).0);
        let waiting: Vec<_> = [120, 130, 140, 150].map(reader).into_iter().collect();
        while waiting.iter().any(|reader| !reader.is_finished()) {
            forget_pages(path);
            torrent.read(path, 0..8 * MIB);
            std::thread::sleep(Duration::from_millis(500));
        }
        for reader in waiting {
            assert_eq!(reader.join().expect("a reader"), Some(libc::ENOSPC), "{kind}");
        }
    });
    let (fetched, used) = (crowd.served() - served, cpu(mount.pid()).saturating_sub(used));
    let passed = since.elapsed();
    eprintln!("{kind}: while full, {} KiB fetched, {used:?} of processor in {passed:?}", fetched / KIB);
    assert!(fetched <= 16 * PIECE, "{kind}: {fetched} bytes were fetched for nothing");
    assert!(used < passed / 4, "{kind}: {used:?} in {passed:?}");

    // Room is made: it goes on by itself.
    std::fs::remove_file(&filler).expect("our own file");
    let start_again = Instant::now();
    wait_until("reads to go on", MINUTE, || failed(&torrent, &path, 100 * MIB).0.is_none());
    eprintln!("{kind}: room was made, and a read came after {:?}", start_again.elapsed());
    torrent.read(&path, 100 * MIB..110 * MIB);
    wait_until("the error to be gone", MINUTE, || mount.xattr(&path, "error").is_none());
    // Full once more, with some fetched: what was fetched gives way to what is read, and all bytes are right.
    let filler = disk.fill();
    forget_pages(&path);
    torrent.read(&path, 0..8 * MIB);
    torrent.read(&path, 109 * MIB..112 * MIB);
    std::fs::remove_file(&filler).expect("our own file");
    mount.stop();
    let remove = ["cache", "remove", &torrent.name, "--cache-dir"].map(OsStr::new);
    ran(remove.into_iter().chain([cache.as_os_str()])).said(0, &["removed"]);

    // A reader that waits long enough doesn't notice more than a pause.
    let mount = start("5m");
    let path = mount.path(&torrent.name);
    let filler = disk.fill();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| torrent.read(&path, 200 * MIB..201 * MIB));
        wait_until("the reason to be told", MINUTE, || {
            assert!(!reader.is_finished(), "{kind}: there was room for it:\n{}", mount.log());
            mount.xattr(&path, "error").is_some()
        });
        std::fs::remove_file(&filler).expect("our own file");
        reader.join().expect("the reader gets its bytes");
    });
    mount.stop();
}

#[test]
fn a_full_tmpfs_ends_reads_of_what_is_missing_only() {
    needs!(Fuse, Attr);
    match SmallDisk::missing() {
        Some(reason) => skip(&reason),
        None => filled_up("tmpfs", SmallDisk::tmpfs(DISK)),
    }
}

#[test]
fn a_full_ext4_ends_reads_of_what_is_missing_only() {
    needs!(Fuse, Attr);
    match SmallDisk::missing() {
        Some(reason) => skip(&reason),
        None => filled_up("ext4", SmallDisk::ext4(DISK)),
    }
}

/// A start on a full disk says so, reads what is here, and fetches what isn't once there is room.
#[test]
fn a_start_on_a_full_disk_says_so_and_serves_what_is_here() {
    needs!(Fuse);
    if let Some(reason) = SmallDisk::missing() {
        return skip(&reason);
    }
    let torrent = torrent();
    let crowd = Crowd::start(&torrent, 1);
    for (kind, disk) in DISKS {
        let disk = disk(DISK);
        let cache = disk.path().join("cache");
        let builder = || {
            let mount = Mount::of(&torrent.torrent).cache(&cache).peer(crowd.addrs()[0]);
            mount.arg("--min-free-space=0").arg("--read-timeout=5s")
        };
        let mount = builder().start();
        torrent.read(&mount.path(&torrent.name), 0..8 * MIB);
        mount.stop();
        let filler = disk.fill();
        let mount = builder().start();
        for word in ["no space left", "--cache-dir", cache.to_str().expect("UTF-8")] {
            wait_until(word, MINUTE, || mount.log().contains(word));
        }
        torrent.read(&mount.path(&torrent.name), 0..8 * MIB);
        std::fs::remove_file(&filler).expect("our own file");
        torrent.read(&mount.path(&torrent.name), 8 * MIB..16 * MIB);
        println!("{kind}: served on a full disk, went on with room");
        mount.stop();
    }
}
