//! The file store: files that are finished and reopened, room given back, and adopted data.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::lend::is_shared;
use super::tests::{lens, named, open, write};
use super::*;
use crate::storage::volume::faulty::Faulty;
use std::sync::atomic::Ordering;

const A: FileIndex = FileIndex(0);

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// What the umask leaves of 0644.
fn plain_mode(dir: &Path) -> u32 {
    let path = dir.join("of an ordinary file");
    File::create(&path).unwrap();
    mode(&path) & 0o644
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(store: &FileStore, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    store.read_at(offset, &mut buf).unwrap();
    buf
}

fn finished(store: &FileStore) -> Vec<bool> {
    store.files().unwrap().iter().map(|file| file.finished).collect()
}

#[test]
fn a_whole_file_has_its_own_name_and_nobody_writes_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[100, 50, 0, 5]));
    let mut files = named(&["d/a", "b", "d/empty", "pad"]);
    files[3].pad = true;
    let store = open(dir.path(), geometry.clone(), &files);
    write(&store, 0, &[7; 150]).unwrap();
    store.sync().unwrap();
    let (part, own) = (dir.path().join("data/d/a.part"), dir.path().join("data/d/a"));
    let ordinary = plain_mode(dir.path());
    assert_eq!((mode(&part), own.exists()), (ordinary, false));
    assert_eq!(finished(&store), [false, false, false, true]);
    for _ in 0..2 {
        store.finish(A).unwrap();
        assert_eq!((mode(&own), part.exists()), (ordinary & 0o444, false));
        assert_eq!(read(&store, 0, 150), [7; 150]);
    }
    store.finish(FileIndex(2)).unwrap();
    store.finish(FileIndex(3)).unwrap();
    assert_eq!(names_in(&dir.path().join("data/d")), ["a", "empty"]);
    assert_eq!(mode(&dir.path().join("data/d/empty")), ordinary & 0o444);
    assert_eq!(finished(&store), [true, false, true, true]);
    assert_eq!(mode(&dir.path().join("data/d")), mode(&dir.path().join("data")));
    // The same after a restart; and back again, also twice, also by writing or discarding alone.
    drop(store);
    let store = open(dir.path(), geometry.clone(), &files);
    assert_eq!(finished(&store), [true, false, true, true]);
    for _ in 0..2 {
        store.reopen(A).unwrap();
        assert_eq!((mode(&part), own.exists()), (ordinary, false));
    }
    assert_eq!(finished(&store), [false, false, true, true]);
    store.finish(A).unwrap();
    write(&store, 10, &[8; 5]).unwrap();
    assert_eq!((mode(&part), own.exists()), (ordinary, false));
    store.finish(A).unwrap();
    store.discard(0..100, 0..100).ok();
    assert_eq!((mode(&part), own.exists()), (ordinary, false));
    // One that isn't there, or not in full, is not whole.
    File::options().write(true).open(&part).unwrap().set_len(99).unwrap();
    let short = store.finish(A);
    assert!(matches!(short, Err(StorageError::Short { expected: 100, found: 99, .. })), "{short:?}");
    fs::remove_file(&part).unwrap();
    store.reopen(A).unwrap();
    assert!(matches!(store.finish(A), Err(StorageError::Short { expected: 100, found: 0, .. })));
}

#[test]
fn s3_finishing_and_reopening_can_fail_or_end_at_any_call() {
    let finish = ["set_mode", "rename data/a.part data/a", "sync folder data"];
    let reopen = ["set_mode", "rename data/a data/a.part", "sync folder data"];
    for (back, calls) in [(false, finish), (true, reopen)] {
        for failing in 0..=calls.len() {
            let dir = tempfile::tempdir().unwrap();
            let ordinary = plain_mode(dir.path());
            let volume = Faulty::new(dir.path());
            let geometry = Arc::new(Geometry::contiguous(16, &[100]));
            let make =
                || FileStore::on(volume.clone(), Layout::Cache, geometry.clone(), &named(&["a"])).unwrap();
            let store = make();
            write(&store, 0, &[7; 100]).unwrap();
            store.sync().unwrap();
            if back {
                store.finish(A).unwrap();
            }
            let turn = |store: &FileStore| if back { store.reopen(A) } else { store.finish(A) };
            volume.changes();
            volume.fail(move |call| calls.get(failing).filter(|c| call.starts_with(**c)).map(|_| libc::EIO));
            assert_eq!(turn(&store).is_err(), failing < calls.len(), "{back} {failing}");
            let seen = volume.changes();
            let expected = &calls[..calls.len().min(failing + 1)];
            assert_eq!(seen.len(), expected.len(), "{seen:?}");
            assert!(seen.iter().zip(expected).all(|(seen, call)| seen.starts_with(call)), "{seen:?}");
            volume.heal();
            // Still whole, in this life and in the next, and it can be done again in either.
            assert_eq!(read(&store, 0, 100), [7; 100]);
            let next = make();
            assert_eq!((read(&next, 0, 100), lens(&next)), (vec![7; 100], vec![Some(100)]));
            drop(next);
            for store in [&store, &make()] {
                turn(store).unwrap();
                let (own, part) = (dir.path().join("data/a"), dir.path().join("data/a.part"));
                assert_eq!((own.exists(), part.exists()), (!back, back), "{failing}");
                let expected = if back { ordinary } else { ordinary & 0o444 };
                assert_eq!(mode(if back { &part } else { &own }), expected, "{failing}");
                assert_eq!(finished(store), [!back]);
                assert_eq!(read(store, 0, 100), [7; 100]);
            }
            // Also what a kill between the two steps leaves can be written to, asked for or not.
            store.reopen(A).unwrap();
            drop(store);
            let part = dir.path().join("data/a.part");
            for reopened in [true, false] {
                fs::set_permissions(&part, fs::Permissions::from_mode(0o444)).unwrap();
                let store = make();
                if reopened {
                    store.reopen(A).unwrap();
                    assert_eq!(mode(&part) & 0o200, 0o200);
                }
                write(&store, 0, &[1; 100]).unwrap();
            }
        }
    }
}

#[test]
fn an_incomplete_file_of_an_older_version_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("data/a");
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(&own, [7; 100]).unwrap();
    let volume = Faulty::new(dir.path());
    let geometry = Arc::new(Geometry::contiguous(16, &[100]));
    let store = FileStore::on(volume.clone(), Layout::Cache, geometry, &named(&["a"])).unwrap();
    assert_eq!((lens(&store), finished(&store)), (vec![Some(100)], vec![false]));
    assert_eq!(read(&store, 0, 100), [7; 100]);
    assert!(own.exists(), "reading renames nothing");
    volume.changes();
    write(&store, 50, &[8; 10]).unwrap();
    assert_eq!(
        volume.changes(),
        ["rename data/a data/a.part", "sync folder data", "write data/a.part"],
        "first it has the name of an incomplete one, durably"
    );
    assert_eq!(read(&store, 45, 10), [7, 7, 7, 7, 7, 8, 8, 8, 8, 8]);
    assert_eq!(names_in(&dir.path().join("data")), ["a.part"]);
}

#[test]
fn which_of_two_names_counts() {
    // Length under its own name, and as .part; the first byte that is read, the length told, and what is there
    // after writing.
    type Row<'a> = (Option<u64>, Option<u64>, Option<u8>, Option<u64>, &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (None, None, None, None, &["a.part"]),
        (Some(100), None, Some(1), Some(100), &["a.part"]),
        (Some(40), None, Some(1), Some(40), &["a.part"]),
        (None, Some(100), Some(2), Some(100), &["a.part"]),
        (None, Some(40), Some(2), Some(40), &["a.part"]),
        (Some(100), Some(100), Some(1), Some(100), &["a.part"]),
        (Some(100), Some(40), Some(1), Some(100), &["a.part"]),
        (Some(40), Some(100), Some(2), Some(100), &["a", "a.part"]),
        (Some(40), Some(30), Some(2), Some(30), &["a", "a.part"]),
        (Some(120), Some(100), Some(1), Some(120), &["a.part"]),
    ];
    for (own, part, byte, len, after) in rows {
        let case = format!("{own:?} {part:?}");
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        for (name, len, byte) in [("a", own, 1), ("a.part", part, 2)] {
            if let Some(len) = len {
                fs::write(data.join(name), vec![byte; *len as usize]).unwrap();
            }
        }
        let store = open(dir.path(), Arc::new(Geometry::contiguous(16, &[100])), &named(&["a"]));
        assert_eq!(lens(&store), [*len], "{case}");
        let mut buf = [0];
        assert_eq!(store.read_at(0, &mut buf).ok().map(|()| buf[0]), *byte, "{case}");
        write(&store, 90, &[3; 10]).unwrap();
        assert_eq!(names_in(&data), *after, "{case}");
        assert_eq!(store.read_at(0, &mut buf).ok().map(|()| buf[0]), byte.or(Some(0)), "{case}");
        // Whatever was there: once it is whole it is the one that counts.
        write(&store, 0, &[4; 100]).unwrap();
        store.finish(A).unwrap();
        assert_eq!((read(&store, 0, 100), names_in(&data)), (vec![4; 100], vec!["a".to_owned()]), "{case}");
    }
}

#[test]
fn files_are_read_while_they_get_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[100, 100]));
    let mut store = open(dir.path(), geometry, &named(&["a", "b"]));
    // So that each read has to open its file.
    store.max_open = 1;
    write(&store, 0, &[7; 200]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(read(&store, 0, 200), [7; 200]);
                    assert_eq!(lens(&store), [Some(100), Some(100)]);
                    store.sync().unwrap();
                }
            });
        }
        for _ in 0..100 {
            store.finish(A).unwrap();
            store.reopen(A).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(store.table.lock().turns.is_empty());
}

/// Folders on file systems to try, each with whether parts of files can be given back there.
fn disks() -> Vec<(tempfile::TempDir, bool)> {
    let mut dirs = vec![tempfile::tempdir().unwrap()];
    dirs.extend(tempfile::tempdir_in("/dev/shm"));
    let able = |dir: tempfile::TempDir| {
        let path = dir.path().join("trial");
        fs::write(&path, [1; 8192]).unwrap();
        let volume = OsVolume::open(dir.path()).unwrap();
        let file = volume.open(Path::new("trial"), crate::storage::volume::Access::ReadWrite).unwrap();
        let able = file.punch(0..4096).is_ok();
        if !able {
            eprintln!("parts of files can't be given back in {}: only that it is said", dir.path().display());
        }
        (dir, able)
    };
    dirs.into_iter().map(able).collect()
}

#[test]
fn room_that_is_given_back_is_free_and_the_neighbours_stay() {
    const PIECE: u64 = 100_000;
    const PIECES: u64 = 20;
    for (dir, able) in disks() {
        let geometry = Arc::new(Geometry::contiguous(PIECE as u32, &[PIECE * PIECES + 5000]));
        let store = open(dir.path(), geometry, &named(&["a"]));
        let end = PIECE * PIECES + 5000;
        let all: Vec<u8> = (0..end).map(|n| (n % 251) as u8 | 1).collect();
        write(&store, 0, &all).unwrap();
        store.sync().unwrap();
        let path = dir.path().join("data/a.part");
        let taken = || path.metadata().unwrap().blocks() * 512;
        let full = taken();
        assert_eq!(store.files().unwrap()[0].allocated, full);
        assert!(full >= end, "{full}");
        let given = store.discard(PIECE * 3..PIECE * 4, PIECE * 3..PIECE * 4);
        if !able {
            assert!(matches!(given, Err(StorageError::Unsupported { .. })), "{given:?}");
            continue;
        }
        given.unwrap();
        // At least all but a block at each edge, which the neighbours share.
        let blocks = |len: u64| (len / 4096).saturating_sub(1) * 4096;
        assert!(taken() <= full - blocks(PIECE), "{} of {full}", taken());
        assert_eq!(path.metadata().unwrap().len(), end);
        for kept in [0..PIECE * 3, PIECE * 4..end] {
            let range = kept.start as usize..kept.end as usize;
            assert!(read(&store, kept.start, range.len()) == all[range], "{kept:?}");
        }
        // A block that two pieces share goes with the second.
        store.discard(PIECE * 4..PIECE * 5, PIECE * 3..PIECE * 5).unwrap();
        assert!(taken() <= full - blocks(PIECE * 2), "{} of {full}", taken());
        assert!(read(&store, PIECE * 5, 1000) == all[(PIECE * 5) as usize..][..1000]);
        assert!(read(&store, PIECE * 3 - 1000, 1000) == all[(PIECE * 3 - 1000) as usize..][..1000]);
        // The end of the file with its last, short block.
        store.discard(PIECE * PIECES..end, PIECE * PIECES..end).unwrap();
        // And everything, a piece at a time, each with what is free around it.
        for piece in (0..=PIECES).rev() {
            let range = PIECE * piece..(PIECE * (piece + 1)).min(end);
            store.discard(range, PIECE * piece..end).unwrap();
        }
        assert_eq!(taken(), 0, "nothing of it is left");
        assert_eq!(path.metadata().unwrap().len(), end);
        // It can be written again, and read.
        write(&store, PIECE, &all[..PIECE as usize]).unwrap();
        store.sync().unwrap();
        assert!(read(&store, PIECE, PIECE as usize) == all[..PIECE as usize]);
    }
}

#[test]
fn discarding_goes_by_files_and_leaves_pads_and_gaps_out() {
    for (dir, able) in disks().into_iter().filter(|(_, able)| *able) {
        assert!(able);
        // Piece 0: file 0, a pad, file 2 begins in piece 1. In the v2 torrent the same with a gap.
        let v1 = Geometry::contiguous(16384, &[10_000, 6384, 20_000, 3000]);
        let v2 = Geometry::aligned(16384, &[10_000, 0, 20_000, 3000]);
        for (number, (geometry, pads)) in [(v1, true), (v2, false)].into_iter().enumerate() {
            let dir = dir.path().join(number.to_string());
            fs::create_dir(&dir).unwrap();
            let mut files = named(&["a", "pad", "b", "c"]);
            files[1].pad = pads;
            let geometry = Arc::new(geometry);
            let end = geometry.end();
            let store = open(&dir, geometry.clone(), &files);
            store.discard(0..end, 0..end).unwrap();
            assert!(
                lens(&store).iter().enumerate().all(|(n, len)| n == 1 || len.is_none()),
                "nothing is made"
            );
            write(&store, 0, &vec![7; end as usize]).unwrap();
            store.sync().unwrap();
            let taken =
                || -> Vec<u64> { store.files().unwrap().iter().map(|f| f.allocated / 4096).collect() };
            assert_eq!(taken(), [3, 0, 5, 1]);
            // A piece that ends with file 0: its last block goes with it.
            store.discard(0..16384, 0..16384).unwrap();
            assert_eq!(taken(), [0, 0, 5, 1]);
            // From the middle of file 2 on, and file 3.
            let from = geometry.files()[2].offset + 9000;
            store.discard(from..end, from..end).unwrap();
            assert_eq!(taken(), [0, 0, 3, 0]);
            assert_eq!(read(&store, from - 9000, 9000), [7; 9000]);
            store.discard(from - 9000..from, from - 9000..end).unwrap();
            assert_eq!(taken(), [0, 0, 0, 0]);
            let mut buf = vec![0; end as usize];
            store.read_at(0, &mut buf).unwrap();
            assert!(matches!(store.discard(0..end + 1, 0..end), Err(StorageError::OutOfRange { .. })));
        }
    }
}

#[test]
fn what_cannot_be_given_back_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Faulty::new(dir.path());
    let geometry = Arc::new(Geometry::contiguous(16384, &[16384]));
    let store = FileStore::on(volume.clone(), Layout::Cache, geometry, &named(&["a"])).unwrap();
    write(&store, 0, &[7; 16384]).unwrap();
    for (errno, unsupported) in [(libc::EOPNOTSUPP, true), (libc::EIO, false)] {
        volume.fail(move |call| call.starts_with("punch").then_some(errno));
        let told = store.discard(0..16384, 0..16384);
        assert_eq!(matches!(told, Err(StorageError::Unsupported { .. })), unsupported, "{told:?}");
        assert!(told.is_err());
        assert_eq!(read(&store, 0, 16384), [7; 16384]);
    }
}

#[test]
fn room_is_that_of_the_blocks_of_each_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = named(&["a", "pad", "b"]);
    files[1].pad = true;
    let geometry = Arc::new(Geometry::contiguous(16384, &[10_000, 6384, 20_000]));
    let store = open(dir.path(), geometry.clone(), &files);
    let rows = [
        (0..0, 0),
        (0..1, 1),
        (0..10_000, 3),
        (10_000..16_384, 0),
        (0..16_384, 3),
        (0..36_384, 8),
        (9999..16_385, 2),
    ];
    for (range, blocks) in rows {
        assert_eq!(store.room(range.clone()), blocks * 4096, "{range:?}");
    }
    write(&store, 0, &[7; 36_384]).unwrap();
    store.sync().unwrap();
    let taken: u64 = store.files().unwrap().iter().map(|f| f.allocated).sum();
    assert!(taken <= store.room(0..36_384), "{taken}");
    let adopted: Arc<dyn Volume> = Arc::new(OsVolume::open(dir.path()).unwrap());
    let adopted = FileStore::on(adopted, Layout::Plain { writable: true }, geometry, &files).unwrap();
    assert_eq!(adopted.room(0..36_384), 0, "not ours to count");
}

#[test]
fn adopted_data_is_used_as_it_lies() {
    let geometry = Arc::new(Geometry::contiguous(16384, &[100, 50, 0]));
    for writable in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let path = dir.path().join("d/a");
        fs::write(&path, [7; 100]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let volume = Faulty::new(dir.path());
        let layout = Layout::Plain { writable };
        let files = named(&["d/a", "d/b", "d/empty"]);
        let mut store = FileStore::on(volume.clone(), layout, geometry.clone(), &files).unwrap();
        assert_eq!(
            (lens(&store), finished(&store)),
            (vec![Some(100), None, Some(0)], vec![true, false, false])
        );
        assert_eq!(read(&store, 0, 100), [7; 100]);
        assert!(matches!(store.read_at(100, &mut [0; 10]), Err(StorageError::Short { found: 0, .. })));
        store.discard(0..150, 0..150).unwrap();
        store.finish(A).unwrap();
        store.reopen(A).unwrap();
        store.sync().unwrap();
        assert_eq!((volume.changes(), mode(&path)), (Vec::new(), 0o640), "nothing is done to it");
        if writable {
            write(&store, 50, &[8; 100]).unwrap();
            store.sync().unwrap();
            (0..3).for_each(|file| store.finish(FileIndex(file)).unwrap());
            assert_eq!(names_in(&dir.path().join("d")), ["a", "b", "empty"]);
            assert_eq!((mode(&path), finished(&store)), (0o640, vec![true; 3]));
            assert_eq!(mode(&dir.path().join("d/b")), plain_mode(dir.path()));
            // Once whole, it is looked at as any other; and it can be written again.
            write(&store, 0, &[9; 10]).unwrap();
            store.look_every = Duration::ZERO;
            assert_eq!(read(&store, 0, 20), [[9; 10], [7; 10]].concat());
            store.finish(A).unwrap();
        } else {
            let refused = write(&store, 90, &[8; 20]);
            assert!(matches!(&refused, Err(StorageError::ReadOnly { path: p }) if *p == path), "{refused:?}");
            assert!(matches!(write(&store, 100, &[8; 20]), Err(StorageError::ReadOnly { .. })));
            assert_eq!(
                (volume.changes(), names_in(&dir.path().join("d"))),
                (Vec::new(), vec!["a".to_owned()])
            );
            store.look_every = Duration::ZERO;
        }
        read(&store, 0, 100);
        fs::write(&path, [5; 100]).unwrap();
        File::open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(matches!(store.read_at(0, &mut [0; 10]), Err(StorageError::Changed { .. })));
        store.reopen(A).unwrap();
        assert_eq!(read(&store, 0, 100), [5; 100]);
    }
}

#[test]
fn only_a_whole_file_of_our_own_is_lent() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[100, 50, 0, 5]));
    let mut files = named(&["d/a", "b", "empty", "pad"]);
    files[3].pad = true;
    let store = open(dir.path(), geometry.clone(), &files);
    write(&store, 0, &[7; 150]).unwrap();
    let lent = |store: &FileStore| {
        (0..5).map(|file| store.backing_file(FileIndex(file)).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(lent(&store), [false; 5], "written isn't finished");
    store.sync().unwrap();
    (0..3).for_each(|file| store.finish(FileIndex(file)).unwrap());
    assert_eq!(lent(&store), [true, true, false, false, false]);
    let file = File::from(store.backing_file(A).unwrap());
    let mut bytes = [0; 100];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!((bytes, file.metadata().unwrap().len()), ([7; 100], 100));
    // In the next run as well, though nothing was read before.
    drop(store);
    let store = open(dir.path(), geometry.clone(), &files);
    assert_eq!(lent(&store), [true, true, false, false, false]);
    // Not once it is being written again, and not when somebody was at it.
    store.reopen(A).unwrap();
    let own = dir.path().join("data/b");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
    File::options().write(true).open(&own).unwrap().set_len(60).unwrap();
    assert_eq!(lent(&store), [false; 5]);
    drop(store);
    // Nor anything that is somebody else's.
    for writable in [false, true] {
        let volume = Arc::new(OsVolume::open(&dir.path().join("data")).unwrap());
        let one = Arc::new(Geometry::contiguous(16, &[60]));
        let store = FileStore::on(volume, Layout::Plain { writable }, one, &named(&["b"])).unwrap();
        assert_eq!(read(&store, 0, 50), [7; 50]);
        assert!(store.backing_file(A).is_none());
    }
}

#[test]
fn no_hole_is_made_in_a_file_that_somebody_has_open_or_mapped() {
    use std::os::fd::AsRawFd;
    const LEN: usize = 8192;
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(4096, &[LEN as u64]));
    let anew = || {
        let mut store = open(dir.path(), geometry.clone(), &named(&["a"]));
        store.look_every = Duration::ZERO;
        store
    };
    let store = anew();
    write(&store, 0, &[7; LEN]).unwrap();
    store.sync().unwrap();
    store.finish(A).unwrap();
    let lent = File::from(store.backing_file(A).unwrap());
    let tells = is_shared(std::os::fd::AsFd::as_fd(&lent)).is_some();
    // SAFETY: a new mapping, for reading only, of a file that is open and so long.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ, libc::MAP_SHARED, lent.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    drop(lent);
    let refuses = |store: &FileStore| {
        let refused = store.discard(0..4096, 0..LEN as u64);
        assert!(matches!(&refused, Err(StorageError::Io { .. })), "{refused:?}");
    };
    // What was found counts for a while.
    let mut busy = anew();
    busy.look_every = Duration::from_secs(3600);
    refuses(&busy);
    let looks = Instant::now();
    (0..1000).for_each(|_| refuses(&busy));
    assert!(looks.elapsed() < Duration::from_secs(10), "each look takes 20 ms");
    drop(busy);
    refuses(&store);
    refuses(&store);
    // Nor by who opens it later, and was never asked to lend it.
    drop(store);
    let store = anew();
    refuses(&store);
    // SAFETY: mapped for that length, and not yet unmapped.
    let mapped = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), LEN) }.to_vec();
    assert_eq!(mapped, [7; LEN]);
    // Bytes that belong there may be written all the same, and it is read.
    write(&store, 0, &[7; 4096]).unwrap();
    assert_eq!(read(&store, 0, LEN), [7; LEN]);
    // SAFETY: the mapping that was made, of which no slice is left.
    unsafe { libc::munmap(at, LEN) };
    if !tells {
        // On an overlay nobody can say when it is over.
        assert!(store.discard(0..4096, 0..LEN as u64).is_err());
        return;
    }
    store.discard(0..4096, 0..LEN as u64).unwrap();
    assert_eq!(read(&store, 0, 4096), [0; 4096]);
    assert_eq!(read(&store, 4096, 4096), [7; 4096]);
}
