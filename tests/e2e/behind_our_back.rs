//! What lies in the cache is cut, changed or taken away by somebody else: while mounted, and between two runs.
//!
//! With a seeder, readers get the right bytes. Without one they get the right bytes or EIO: never others, and no zeros
//! where a file was cut. A file of the same length that isn't the same is noticed by its inode and time: while mounted
//! within a moment, between two runs if the first ended cleanly; after a kill nobody can know.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

use crate::common::{Behaviour, Mount, Proc, Sample, ScriptedPeer, forget_pages, home, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const PIECE: u64 = 64 * KIB;
/// Both files have it; of the second, only the first half is fetched.
const SIZE: u64 = 32 * PIECE;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// It is removed.
    Deleted,
    /// It ends after so many bytes.
    Cut(u64),
    /// A byte in its middle is another.
    Changed,
    /// Another one of the same size has its name.
    Replaced,
    /// Another one that is shorter has its name.
    ReplacedByLess,
}

impl Harm {
    /// Does it, and leaves the permissions as they were.
    fn to(self, path: &Path) {
        let mode = path.metadata().expect("a file").permissions();
        std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("our own file");
        let replace = |size: u64| {
            let other = path.with_extension("other");
            std::fs::write(&other, vec![0xee; size as usize]).expect("room on the disk");
            std::fs::rename(&other, path).expect("in its place");
        };
        match self {
            Self::Deleted => return std::fs::remove_file(path).expect("our own file"),
            Self::Cut(to) => {
                File::options().write(true).open(path).and_then(|file| file.set_len(to)).expect("cut");
            }
            Self::Changed => {
                let file = File::options().read(true).write(true).open(path).expect("our own file");
                let mut byte = [0];
                file.read_exact_at(&mut byte, 5 * PIECE + 77).expect("a byte");
                file.write_all_at(&[!byte[0]], 5 * PIECE + 77).expect("a byte");
            }
            Self::Replaced => replace(path.metadata().expect("a file").len()),
            Self::ReplacedByLess => replace(3 * PIECE + 100),
        }
        std::fs::set_permissions(path, mode).expect("our own file");
    }
}

/// The torrent of all tests here: the file `whole`, which is fetched whole, and `half`.
fn sample() -> Sample {
    Sample::folder("harmed", &[("whole", SIZE), ("half", SIZE)], PIECE)
}

/// The files in the cache, by whichever name they have.
fn kept(sample: &Sample, cache: &Path) -> [PathBuf; 2] {
    ["whole", "half"].map(|name| {
        let path = home(sample, cache).join("data").join(name);
        if path.exists() { path } else { path.with_extension("part") }
    })
}

/// What a read of a mounted file gives, pieces one by one: right, or EIO. Panics for anything else.
#[track_caller]
fn read(mount: &Mount, sample: &Sample, name: &str, size: u64) -> Vec<bool> {
    let path = mount.path(Path::new("harmed").join(name));
    forget_pages(&path);
    let file = File::open(&path).expect("opens");
    let source = File::open(sample.source().join(name)).expect("the source");
    let pieces = (0..size).step_by(PIECE as usize);
    let mut right = |offset| {
        let (mut got, mut want) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        source.read_exact_at(&mut want, offset).expect("its bytes");
        match file.read_exact_at(&mut got, offset) {
            Ok(()) => {
                assert!(got == want, "{name}: wrong bytes in the piece at {offset}");
                true
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}, the piece at {offset}: {error}");
                false
            }
        }
    };
    pieces.map(&mut right).collect()
}

/// Fills a cache folder: `half` to its half, then `whole`, both recorded; then the program ends, or is killed.
fn filled(sample: &Sample, cache: &Path, killed: bool) {
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mut mount = Mount::sample(sample).cache(cache).peer(peer.addr()).start();
    for (name, size) in [("half", SIZE / 2), ("whole", SIZE)] {
        assert!(read(&mount, sample, name, size).iter().all(|right| *right));
    }
    // It gets its name when it is recorded, and what was read before it is recorded then.
    wait_until("the whole file to be recorded", MINUTE, || home(sample, cache).join("data/whole").exists());
    if killed {
        mount.signal(Signal::SIGKILL);
        mount.exited(MINUTE);
        let _ = umount2(mount.point(), MntFlags::MNT_DETACH);
    } else {
        mount.stop();
    }
}

/// A copy of a cache folder with all times and holes.
fn copy(cache: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = cache.join(".");
    Proc::start(
        "cp",
        ["-a".as_ref(), "--sparse=always".as_ref(), from.as_os_str(), folder.path().as_os_str()],
    )
    .success(MINUTE);
    folder
}

/// Harm between two runs: rows of what is done, and whether the pieces it hit can be had without a seeder.
fn between(killed: bool, storage: &str, rows: &[Harm]) {
    let sample = sample();
    let first = tempfile::tempdir().expect("a folder");
    filled(&sample, first.path(), killed);
    for harm in rows {
        for victim in 0..2 {
            let (name, size) = [("whole", SIZE), ("half", SIZE / 2)][victim];
            let what = format!("{name}, {harm:?}, killed: {killed}");
            let cache = copy(first.path());
            harm.to(&kept(&sample, cache.path())[victim]);
            // Nobody to fetch from.
            let start = |peer: Option<&ScriptedPeer>| {
                let builder = Mount::sample(&sample).cache(cache.path());
                let builder = builder.args(&["--read-timeout=300ms", "--storage", storage]);
                peer.into_iter().fold(builder, |builder, peer| builder.peer(peer.addr())).start()
            };
            let mount = start(None);
            let here = read(&mount, &sample, name, size);
            let lost: Vec<_> = (0..here.len()).filter(|piece| !here[*piece]).collect();
            let expected: Vec<_> = match harm {
                Harm::Deleted | Harm::Replaced => (0..here.len()).collect(),
                Harm::Cut(to) => ((to / PIECE) as usize..here.len()).collect(),
                Harm::ReplacedByLess => (0..here.len()).collect(),
                Harm::Changed => vec![5],
            };
            assert_eq!(lost, expected, "{what}: what can't be had without a seeder");
            let (other, size_of_other) = [("half", SIZE / 2), ("whole", SIZE)][victim];
            let others = read(&mount, &sample, other, size_of_other);
            assert!(others.iter().all(|right| *right), "{what}: {other} was not touched: {others:?}");
            mount.stop();
            // Somebody is there again; all comes, once, and no more than was lost.
            let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
            let builder = Mount::sample(&sample).cache(cache.path()).peer(peer.addr());
            let mount = builder.args(&["--storage", storage]).start();
            for (name, size) in [("whole", SIZE), ("half", SIZE / 2)] {
                let all = read(&mount, &sample, name, size);
                assert!(all.iter().all(|right| *right), "{what}: {name} with a seeder: {all:?}");
            }
            // In the torrent's order, which is that of the names.
            let first = [SIZE / PIECE, 0][victim];
            let hit = |piece: u64| expected.iter().any(|at| *at as u64 + first == piece);
            let read = (0..SIZE / 2 / PIECE).chain(SIZE / PIECE..2 * SIZE / PIECE);
            let needless: Vec<_> = read.filter(|p| !hit(*p) && peer.asked_for(*p as u32)).collect();
            assert!(needless.is_empty(), "{what}: fetched again, and nobody had touched them: {needless:?}");
            mount.stop();
            assert!(
                home(&sample, cache.path()).join("data/whole").metadata().expect("it").mode() & 0o777
                    == 0o444,
                "{what}: whole again"
            );
        }
    }
}

const ALL: [Harm; 6] = [
    Harm::Deleted,
    Harm::Cut(3 * PIECE + 100),
    Harm::Cut(0),
    Harm::Changed,
    Harm::Replaced,
    Harm::ReplacedByLess,
];

#[test]
fn s1_between_two_runs_after_a_clean_end() {
    needs!(Fuse, Libtorrent);
    between(false, "file", &ALL);
}

/// After a kill, sizes alone tell; what is there of a file counts as what was recorded.
#[test]
fn s1_between_two_runs_after_a_kill() {
    needs!(Fuse, Libtorrent);
    between(true, "file", &ALL[..3]);
}

#[test]
fn s1_between_two_runs_of_mapped_files() {
    needs!(Fuse, Libtorrent);
    between(false, "mmap", &[Harm::Deleted, Harm::Cut(3 * PIECE + 100), Harm::Changed]);
}

/// Harm while it is mounted.
fn meanwhile(storage: &str) {
    let sample = sample();
    let first = tempfile::tempdir().expect("a folder");
    filled(&sample, first.path(), false);
    for harm in ALL {
        for (victim, seeded) in [(0, true), (1, true), (0, false), (1, false)] {
            let (name, size) = [("whole", SIZE), ("half", SIZE / 2)][victim];
            let what = format!("{name}, {harm:?}, {storage}, a seeder: {seeded}");
            if harm == Harm::Changed && victim == 1 {
                // We write to it ourselves, so its time tells nothing.
                continue;
            }
            let cache = copy(first.path());
            let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
            let builder = Mount::sample(&sample).cache(cache.path()).args(&["--storage", storage]);
            let builder = match seeded {
                true => builder.peer(peer.addr()),
                false => builder.arg("--read-timeout=300ms"),
            };
            let mount = builder.start();
            assert!(read(&mount, &sample, name, size).iter().all(|right| *right), "{what}: before");
            harm.to(&kept(&sample, cache.path())[victim]);
            if matches!(harm, Harm::Changed | Harm::Replaced) {
                wait_until(&format!("{what}: to be noticed"), MINUTE, || noticed(&mount, &sample, name));
            } else {
                // Somewhere in the middle first: what was cut off elsewhere must not pass for zeros afterwards.
                let path = mount.path(Path::new("harmed").join(name));
                forget_pages(&path);
                let _ = File::open(&path).and_then(|file| file.read_at(&mut [0; 10], 9 * PIECE));
            }
            for _ in 0..2 {
                let here = read(&mount, &sample, name, size);
                let bad: Vec<_> = (0..here.len()).filter(|piece| !here[*piece]).collect();
                assert!(!seeded || bad.is_empty(), "{what}: {bad:?} didn't come");
                if let (Harm::Cut(to), false) = (harm, seeded) {
                    let cut: Vec<_> = ((to / PIECE) as usize..here.len()).collect();
                    assert_eq!(bad, cut, "{what}: what was cut off can't be had");
                }
            }
            mount.stop();
            // The next run believes nothing that isn't so.
            let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
            for with in [false, true] {
                let builder = Mount::sample(&sample).cache(cache.path()).args(&["--storage", storage]);
                let builder = match with {
                    true => builder.peer(peer.addr()),
                    false => builder.arg("--read-timeout=300ms"),
                };
                let mount = builder.start();
                let here = read(&mount, &sample, name, size);
                assert!(!with || here.iter().all(|right| *right), "{what}: later: {here:?}");
                mount.stop();
            }
        }
    }
}

/// Whether reading the piece in whose middle a byte was changed, or which was replaced with all others, gives anything
/// but what lies there now.
fn noticed(mount: &Mount, sample: &Sample, name: &str) -> bool {
    let path = mount.path(Path::new("harmed").join(name));
    forget_pages(&path);
    let (mut got, mut want) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let source = File::open(sample.source().join(name)).expect("the source");
    source.read_exact_at(&mut want, 5 * PIECE).expect("its bytes");
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut got, 5 * PIECE));
    read.is_err() || got == want
}

#[test]
fn s1_while_mounted() {
    needs!(Fuse, Libtorrent);
    meanwhile("file");
}

#[test]
fn s1_while_mounted_with_mapped_files() {
    needs!(Fuse, Libtorrent);
    meanwhile("mmap");
}

/// A record that can't be read costs a look at the data, and no more: it is set aside, and said so.
#[test]
fn a_record_that_was_harmed_is_set_aside() {
    needs!(Fuse, Libtorrent);
    let sample = sample();
    let first = tempfile::tempdir().expect("a folder");
    filled(&sample, first.path(), false);
    let good = std::fs::read(home(&sample, first.path()).join("resume")).expect("a record");
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    // The version stands after eight bytes that say what it is, lowest byte first; a checksum ends it all.
    let newer = {
        let mut bytes = good[..good.len() - 32].to_vec();
        bytes[8] += 90;
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    };
    let rows = [
        ("its middle changed", changed(good.len() / 2), "damaged"),
        ("its end changed", changed(good.len() - 1), "damaged"),
        ("cut", good[..good.len() / 2].to_vec(), "damaged"),
        ("empty", Vec::new(), "damaged"),
        ("garbage", vec![0x5a; 10_000], "damaged"),
        ("newer", newer, "newer version"),
    ];
    for (what, bytes, word) in rows {
        let cache = copy(first.path());
        let dir = home(&sample, cache.path());
        std::fs::write(dir.join("resume"), bytes).expect("our own file");
        let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=300ms").start();
        mount.wait_log(&["WARN", "resume", word, "set aside"], MINUTE);
        assert!(dir.join("resume.bad").exists(), "{what}");
        for (name, size) in [("whole", SIZE), ("half", SIZE / 2)] {
            let here = read(&mount, &sample, name, size);
            assert!(here.iter().all(|right| *right), "{what}: it is there, and was looked at: {here:?}");
        }
        // What was never fetched isn't there: no zeros.
        let path = mount.path("harmed/half");
        let absent = File::open(&path).and_then(|file| file.read_at(&mut [0; 10], SIZE - PIECE));
        assert_eq!(absent.expect_err(what).raw_os_error(), Some(libc::EIO), "{what}");
        mount.stop();
        // It was recorded anew.
        let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=300ms").start();
        assert!(!mount.log().contains("set aside"), "{what}:\n{}", mount.log());
        assert!(read(&mount, &sample, "whole", SIZE).iter().all(|right| *right), "{what}: the next time");
        mount.stop();
    }
}
