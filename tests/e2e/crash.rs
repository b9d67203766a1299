//! `kill -9` at random moments, over and over on one cache folder (rows S3, S4, O8).
//!
//! After each kill the record is read as the next start reads it, and every piece that it names is read back from the
//! files and hashed: none may be wrong. In the next life what it names is served and not asked for again, and nothing
//! is hashed. Readers compare every byte they get, all the time. The moments come from a seed that is printed;
//! `TORRENTFS_KILLS` says how many there are for each test (`scripts/stress` takes thousands).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use torrentfs::metainfo::Metainfo;
use torrentfs::metainfo::geometry::PieceIndex;
use torrentfs::metainfo::info::{FileKind, Info};
use torrentfs::storage::Store;
use torrentfs::storage::file::{FileStore, StoredFile};
use torrentfs::storage::pool::Scratch;
use torrentfs::storage::resume;
use torrentfs::storage::verify::{Checked, check_piece};

use crate::common::{Behaviour, Mount, Random, Sample, ScriptedPeer, seed, wait_until};
use crate::needs;

/// Four tests make two hundred.
const KILLS: u64 = 55;
const START: Duration = Duration::from_secs(30);

/// What a record names, each piece of it read back and found right.
pub fn recorded(sample: &Sample, info: &Arc<Info>, cache: &Path) -> BTreeSet<u32> {
    let dir = cache.join(sample.v1.as_deref().expect("a v1 torrent"));
    if !dir.is_dir() {
        return BTreeSet::new();
    }
    let data = resume::load(&dir).expect("a record is whole, whenever the writer was killed");
    let Some(data) = data else { return BTreeSet::new() };
    let bit = |p: &u32| data.complete[*p as usize / 8] & (0x80 >> (p % 8)) != 0;
    let pieces: BTreeSet<u32> = (0..info.geometry.pieces()).filter(bit).collect();
    let file = |f: &torrentfs::metainfo::info::FileEntry| StoredFile {
        path: f.path.clone(),
        pad: !matches!(f.kind, FileKind::Regular),
    };
    let files: Vec<StoredFile> = info.files.iter().map(file).collect();
    let store = FileStore::open(&dir, Arc::new(info.geometry.clone()), &files).expect("the store");
    // What the next start believes of it without looking: all, unless somebody was at the files.
    let states = store.files().expect("what is there");
    let believed = resume::believable(&data, &info.geometry, &states);
    let doubted: Vec<u32> = pieces
        .iter()
        .copied()
        .filter(|p| believed.complete[*p as usize / 8] & (0x80 >> (p % 8)) == 0)
        .collect();
    assert!(doubted.is_empty(), "{doubted:?} are recorded and not believed: {:?} and {states:?}", data.files);
    let mut scratch = Scratch::default();
    for piece in &pieces {
        let index = PieceIndex(*piece);
        let right = |bytes: &[u8]| {
            let blocks: Vec<&[u8]> = bytes.chunks(16 * 1024).collect();
            info.hashes.piece(index).expect("a hash").verify(&blocks)
        };
        let checked = check_piece(&store, &info.geometry, index, &mut scratch, right);
        assert_eq!(checked.expect("it reads"), Checked::Good, "piece {piece} is recorded and wrong");
    }
    pieces
}

/// Reads at random places until it is told to stop or the mount is gone; every byte has to be right.
fn read_about(files: &[(PathBuf, PathBuf, u64)], seed: u64, stop: &AtomicBool, read: &AtomicU64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let (path, source, size) = &files[random.below(files.len() as u64) as usize];
        let (Ok(file), Ok(truth)) = (File::open(path), File::open(source)) else { return };
        let mut at = random.below(*size);
        // A few in a row, as programs do.
        for _ in 0..1 + random.below(4) {
            let len = (random.below(256 * 1024) + 1).min(size - at) as usize;
            let (mut got, mut expected) = (vec![0; len], vec![0; len]);
            truth.read_exact_at(&mut expected, at).expect("the source");
            if file.read_exact_at(&mut got, at).is_err() {
                return;
            }
            assert!(got == expected, "{} bytes at {at} of {} are wrong", len, path.display());
            read.fetch_add(len as u64, Ordering::Relaxed);
            at += len as u64;
            if at >= *size {
                break;
            }
        }
    }
}

/// Kills mounts of one torrent on one cache. `bounded`: pieces are evicted, so some are fetched again.
fn killed(sample: &Sample, args: &[&str], bounded: bool) {
    let kills = std::env::var("TORRENTFS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut random = Random(seed());
    let bytes = std::fs::read(&sample.torrent).expect("the torrent");
    let info = Metainfo::parse(&bytes).expect("a torrent").info;
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let total = AtomicU64::new(0);
    let mut known = BTreeSet::new();
    let (mut asked, mut most, mut slow) = (0, 0, 0);
    for life in 0..kills {
        let mut builder = Mount::sample(sample).cache(&cache).peer(peer.addr()).log("torrentfs=debug");
        for arg in args {
            builder = builder.arg(arg);
        }
        let mut mount = builder.start();
        let files: Vec<(PathBuf, PathBuf, u64)> = (sample.files.iter().filter(|(_, size)| *size > 0))
            .map(|(path, size)| (mount.path(path), sample.data.join(path), *size))
            .collect();
        wait_until("the torrent to show", START, || files[0].0.exists());
        let stop = AtomicBool::new(false);
        let log = std::thread::scope(|scope| {
            for _ in 0..2 {
                let seed = random.below(u64::MAX);
                let (files, stop, total) = (&files, &stop, &total);
                scope.spawn(move || read_about(files, seed, stop, total));
            }
            // The moment is what this is about.
            std::thread::sleep(Duration::from_millis(random.below(longest(life, slow))));
            mount.signal(Signal::SIGKILL);
            let _ = mount.exited(START);
            stop.store(true, Ordering::Relaxed);
            let _ = umount2(mount.point(), MntFlags::MNT_DETACH);
            mount.log()
        });
        assert!(!log.contains("panicked"), "life {life}:\n{log}");
        // Before the first record what is there is unknown, and looked at when it is wanted.
        let hashed = log.lines().filter(|line| line.contains("hashing a piece on the disk"));
        let hashed = hashed.filter_map(|line| line.rsplit_once("piece=")?.1.trim().parse::<u32>().ok());
        let again: Vec<u32> = hashed.filter(|piece| known.contains(piece)).collect();
        assert!(again.is_empty(), "life {life}: {again:?} were recorded and are hashed:\n{log}");
        if !bounded {
            let requests = peer.requests();
            let again = requests[asked..].iter().find(|r| known.contains(&r.piece));
            assert!(again.is_none(), "life {life}: {again:?} was recorded and is fetched again");
            asked = requests.len();
        }
        let now = recorded(sample, &info, &cache);
        if !bounded {
            assert!(now.is_superset(&known), "life {life}: what was recorded is forgotten");
        }
        known = now;
        most = most.max(known.len());
        slow += u32::from(most == 0 && life % 4 == 3 && slow < 4);
    }
    println!(
        "{kills} kills, {} bytes read, {most} of {} pieces recorded",
        total.into_inner(),
        info.geometry.pieces()
    );
    assert!(most > 0, "nothing was ever recorded");
    // And all of what is there is there without anybody to fetch from.
    let mut builder = Mount::sample(sample).cache(&cache).arg("--read-timeout=1s");
    for arg in args {
        builder = builder.arg(arg);
    }
    let mount = builder.start();
    let mut begin = 0;
    for (path, size) in &sample.files {
        let pieces = (begin / sample.piece_length)..(begin + size).div_ceil(sample.piece_length);
        if *size > 0 && pieces.into_iter().all(|p| known.contains(&(p as u32))) {
            let got = std::fs::read(mount.path(path)).expect("it is here");
            assert!(got == std::fs::read(sample.data.join(path)).expect("the source"), "{path}");
        }
        begin += size;
    }
    mount.stop();
}

/// The longest that a life may be, in milliseconds: now and then long enough for records to be written in it. `slow`
/// times it wasn't: then longer.
fn longest(life: u64, slow: u32) -> u64 {
    match life % 4 {
        0 => 20,
        1 | 2 => 200,
        _ => 1600 << slow,
    }
}

#[test]
fn s3_killed_while_fetching() {
    needs!(Fuse, Libtorrent);
    killed(&Sample::big(), &["--download-limit=24M"], false);
}

#[test]
fn s3_killed_while_fetching_many_files() {
    needs!(Fuse, Libtorrent);
    killed(&Sample::tree(), &["--download-limit=6M"], false);
}

#[test]
fn s4_killed_while_evicting() {
    needs!(Fuse, Libtorrent);
    // So slow that what was recorded isn't all evicted before the next record, or it would be luck to kill one with any.
    killed(&Sample::big(), &["--cache-size=24M", "--download-limit=6M"], true);
}

#[test]
fn s4_killed_while_evicting_with_mapped_files() {
    needs!(Fuse, Libtorrent);
    killed(&Sample::tree(), &["--cache-size=16M", "--storage=mmap"], true);
}
