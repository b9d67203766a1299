//! The file store: reading, writing, syncing, and files that others cut or plant.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::storage::suite;
use crate::storage::volume::faulty::Faulty;
use crate::storage::volume::model::Model;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;

/// A store that looks at its files when told to, not by the clock.
pub(super) fn open(dir: &Path, geometry: Arc<Geometry>, files: &[StoredFile]) -> FileStore {
    let mut store = FileStore::open(dir, geometry, files).unwrap();
    store.look_every = Duration::MAX;
    store
}

pub(super) fn named(names: &[&str]) -> Vec<StoredFile> {
    let path = |name: &str| name.split('/').map(str::to_owned).collect();
    names.iter().map(|name| StoredFile { path: path(name), pad: false }).collect()
}

pub(super) fn write(store: &FileStore, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
    store.write_at(offset, &[IoSlice::new(bytes)])
}

pub(super) fn lens(store: &dyn Store) -> Vec<Option<u64>> {
    store.files().unwrap().iter().map(|f| f.len).collect()
}

#[test]
fn s1_the_suite_of_all_stores() {
    for max_open in [MAX_OPEN, 2] {
        let parent = tempfile::tempdir().unwrap();
        let next = std::cell::Cell::new(0);
        suite::run(&|geometry, files| {
            let dir = parent.path().join(next.replace(next.get() + 1).to_string());
            std::fs::create_dir(&dir).unwrap();
            let mut store = open(&dir, geometry, files);
            store.max_open = max_open;
            Arc::new(store)
        });
    }
}

#[test]
fn files_are_sparse_plain_and_made_when_first_written() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(1 << 20, &[1 << 40, 5, 0, 7]));
    let mut files = named(&["d/large", "small", "d/empty", "pad"]);
    files[3].pad = true;
    let store = open(dir.path(), geometry.clone(), &files);
    assert_eq!(lens(&store), [None, None, Some(0), Some(7)]);
    assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 0);
    write(&store, (1 << 40) - 3, b"abcdefgh1234567").unwrap();
    let large = dir.path().join("data/d/large.part").metadata().unwrap();
    assert_eq!(large.len(), 1 << 40);
    assert!(large.blocks() * 512 < 1 << 20);
    assert_eq!(std::fs::read(dir.path().join("data/small.part")).unwrap(), b"defgh");
    assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 2, "neither pad nor empty file");
    drop(store);
    let store = open(dir.path(), geometry, &files);
    assert_eq!(lens(&store), [Some(1 << 40), Some(5), Some(0), Some(7)]);
    let mut buf = [1; 15];
    assert!(!store.try_read((1 << 40) - 3, &mut buf).unwrap(), "opens nothing");
    store.read_at((1 << 40) - 3, &mut buf).unwrap();
    assert_eq!(&buf, b"abcdefgh\0\0\0\0\0\0\0");
    let read_only = store.table.lock().open.values().all(|open| !open.writable);
    assert!(read_only, "read-only until written");
}

#[test]
fn s1_a_cut_or_missing_file_is_an_error_and_never_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[100, 100]));
    let store = open(dir.path(), geometry.clone(), &named(&["a", "b"]));
    let mut buf = [0; 100];
    // Never written: not there.
    let missing = store.read_at(0, &mut buf);
    assert!(matches!(missing, Err(StorageError::Short { found: 0, .. })), "{missing:?}");
    write(&store, 0, &[7; 200]).unwrap();
    store.read_at(0, &mut buf).unwrap();
    // Cut from outside while it is open.
    let path = dir.path().join("data/a.part");
    File::options().write(true).open(&path).unwrap().set_len(30).unwrap();
    let short = store.read_at(0, &mut buf);
    assert!(
        matches!(&short, Err(StorageError::Short { path: p, expected: 100, found: 30 }) if *p == path),
        "{short:?}"
    );
    assert!(!store.try_read(0, &mut buf).unwrap());
    store.read_at(0, &mut buf[..30]).unwrap();
    store.read_at(100, &mut buf).unwrap();
    // Writing behind the cut would make zeros of what was lost.
    let refused = write(&store, 90, &[7; 20]);
    assert!(matches!(refused, Err(StorageError::Short { expected: 100, found: 30, .. })), "{refused:?}");
    assert!(matches!(store.read_at(0, &mut buf), Err(StorageError::Short { .. })));
    assert_eq!(lens(&store), [Some(30), Some(100)]);
    drop(store);
    // After a restart its length decides what is believed, and it can be written again.
    let store = open(dir.path(), geometry, &named(&["a", "b"]));
    assert!(matches!(store.read_at(20, &mut buf), Err(StorageError::Short { .. })));
    write(&store, 30, &[8; 70]).unwrap();
    store.read_at(0, &mut buf).unwrap();
    assert_eq!((buf[29], buf[30]), (7, 8));
    // Removed while open elsewhere: a new store misses it.
    std::fs::remove_file(&path).unwrap();
    let other = open(dir.path(), store.geometry.clone(), &named(&["a", "b"]));
    assert!(matches!(other.read_at(0, &mut buf), Err(StorageError::Short { found: 0, .. })));
}

#[test]
fn s1_a_file_that_is_cut_while_it_is_written_to_is_not_made_whole_by_that() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Faulty::new(dir.path());
    let geometry = Arc::new(Geometry::contiguous(16, &[100]));
    let mut store = FileStore::on(volume.clone(), Layout::Cache, geometry, &named(&["a"])).unwrap();
    store.look_every = Duration::MAX;
    write(&store, 0, &[7; 50]).unwrap();
    // Between the look at its length and the write.
    let path = dir.path().join("data/a.part");
    let cut = path.clone();
    volume.fail(move |call| {
        if call.starts_with("write ") {
            File::options().write(true).open(&cut).unwrap().set_len(20).unwrap();
        }
        None
    });
    let short = write(&store, 50, &[8; 30]);
    volume.heal();
    assert!(
        matches!(&short, Err(StorageError::Short { path: p, expected: 100, found: 80 }) if *p == path),
        "{short:?}"
    );
    // What was cut off would be zeros.
    let mut buf = [0; 50];
    assert!(!store.try_read(0, &mut buf).unwrap());
    let changed = store.read_at(0, &mut buf);
    assert!(matches!(changed, Err(StorageError::Changed { .. })), "{changed:?}");
    // Taken as it is, it can be written again.
    store.reopen(FileIndex(0)).unwrap();
    write(&store, 0, &[9; 100]).unwrap();
    store.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [9; 50]);
}

#[test]
fn planted_links_pipes_and_folders_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, [1; 50]).unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(&secret, data.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), data.join("folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", data.join("dangling")).unwrap();
    nix::unistd::mkfifo(&data.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    std::fs::create_dir(data.join("taken")).unwrap();
    let names = ["link", "folder/secret", "folder/new", "dangling", "pipe", "taken"];
    let geometry = Arc::new(Geometry::contiguous(16, &[50; 6]));
    let store = open(dir.path(), geometry.clone(), &named(&names));
    let mut buf = [0; 50];
    for (n, name) in names.iter().enumerate() {
        let offset = n as u64 * 50;
        assert!(store.read_at(offset, &mut buf).is_err(), "{name}");
        assert!(write(&store, offset, &[2; 50]).is_err(), "{name}");
        assert!(!store.try_read(offset, &mut buf).unwrap(), "{name}");
    }
    assert_eq!(lens(&store), [None; 6]);
    assert_eq!(std::fs::read(&secret).unwrap(), [1; 50]);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(!data.join("nowhere").exists());
    let error = store.read_at(0, &mut buf).unwrap_err().to_string();
    assert!(error.contains("symbolic link"), "{error}");
    // The data folder itself.
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), other.path().join("data")).unwrap();
    assert!(FileStore::open(other.path(), geometry, &named(&names)).is_err());
}

#[test]
fn unsafe_paths_and_wrong_lists_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = Arc::new(Geometry::contiguous(16, &[5]));
    let path = |path: &[&str]| StoredFile { path: path.iter().map(|s| s.to_string()).collect(), pad: false };
    for bad in [&[][..], &[""], &["."], &["..", "x"], &["a", ".."], &["a/b"], &["/etc"], &["a\0b"]] {
        let result = FileStore::open(dir.path(), one.clone(), &[path(bad)]);
        assert!(matches!(result, Err(StorageError::Layout { index: 0, .. })), "{bad:?}");
    }
    let result = FileStore::open(dir.path(), one.clone(), &[]);
    assert!(matches!(result, Err(StorageError::Layout { .. })));
    // Longer than the kernel takes in one path, and fine.
    let long: Vec<String> = (0..40).map(|_| "n".repeat(200)).collect();
    let store = open(dir.path(), one, &[StoredFile { path: long, pad: false }]);
    write(&store, 0, b"hello").unwrap();
    assert_eq!(lens(&store), [Some(5)]);
    store.sync().unwrap();
}

#[test]
fn open_files_are_bounded_and_the_used_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let geometry = Arc::new(Geometry::contiguous(16, &[10; 100]));
    let mut store = open(dir.path(), geometry, &named(&names));
    store.max_open = 16;
    let mut buf = [0; 10];
    for n in 0..100u64 {
        write(&store, n * 10, &[n as u8; 10]).unwrap();
        store.read_at(0, &mut buf).unwrap();
        assert!(store.table.lock().open.len() <= 16);
    }
    assert_eq!(buf, [0; 10]);
    store.sync().unwrap();
    for n in (1..100u64).rev() {
        store.read_at(n * 10, &mut buf).unwrap();
        assert_eq!(buf, [n as u8; 10]);
        assert!(store.table.lock().find(0, false).is_some(), "the one that is always used stays open");
    }
    assert!(store.table.lock().open.len() <= 16);
}

#[test]
fn what_is_in_memory_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::aligned(16384, &[100_000, 50]));
    let store = open(dir.path(), geometry, &named(&["a", "b"]));
    write(&store, 0, &[7; 114_738]).unwrap();
    let mut buf = vec![1; 114_738];
    // What was written is let go when it is on the disk; what was read for peers isn't.
    store.sync().unwrap();
    store.read_to_serve(0, &mut buf).unwrap();
    let at_once = store.try_read(0, &mut buf).unwrap();
    if !at_once && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
        // The test's folder is on a file system that can't tell; a worker reads there.
        return;
    }
    assert!(at_once);
    assert!(buf[..100_000].iter().all(|b| *b == 7) && buf[114_688..] == [7; 50]);
    assert!(buf[100_000..114_688].iter().all(|b| *b == 0), "the gap");
}

#[test]
fn what_is_written_is_the_same_whether_it_is_let_go_or_not() {
    let len = 300_000u64;
    let bytes: Vec<u8> = (0..len).map(|n| ((n * 31) >> 3) as u8 | 1).collect();
    for let_go in [true, false] {
        // More parts than one call takes, and a beginning that is no page's.
        for (offset, part) in [(0, 16384), (0, 100), (12_345, 16384), (16384, 70_001)] {
            let dir = tempfile::tempdir().unwrap();
            let open = || {
                let geometry = Arc::new(Geometry::contiguous(16384, &[5000, 400_000, 3]));
                open(dir.path(), geometry, &named(&["a", "b", "c"]))
            };
            let store = open();
            store.let_go.store(let_go, Ordering::Relaxed);
            let parts: Vec<IoSlice<'_>> = bytes.chunks(part).map(IoSlice::new).collect();
            store.write_at(offset, &parts).unwrap();
            let check = |store: &FileStore| {
                let mut read = vec![0; len as usize];
                store.read_at(offset, &mut read).unwrap();
                assert!(read == bytes, "{let_go}, {part} at {offset}");
                read.fill(0);
                store.read_to_serve(offset, &mut read).unwrap();
                assert!(read == bytes, "{let_go}, {part} at {offset}, to serve");
                read.fill(0);
                assert!(!store.try_read(offset, &mut read).unwrap() || read == bytes);
            };
            check(&store);
            store.sync().unwrap();
            check(&store);
            drop(store);
            check(&open());
        }
    }
}

#[test]
fn many_files_are_synced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let count = SYNC_EACH + 8;
    let geometry = Arc::new(Geometry::contiguous(16, &vec![16; count]));
    let files: Vec<StoredFile> =
        (0..count).map(|n| StoredFile { path: vec![n.to_string()], pad: false }).collect();
    let store = open(dir.path(), geometry, &files);
    store.write_at(0, &[IoSlice::new(&vec![7; 16 * count])]).unwrap();
    assert!(store.table.lock().dirty.len() > SYNC_EACH);
    store.sync().unwrap();
    assert!(store.table.lock().dirty.is_empty());
    assert!(lens(&store).iter().all(|len| *len == Some(16)));
}

#[test]
fn what_is_written_during_a_sync_waits_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[10]));
    let store = Arc::new(open(dir.path(), geometry, &named(&["a"])));
    write(&store, 0, &[1; 5]).unwrap();
    store.table.lock().syncing = true;
    let waiting = {
        let store = store.clone();
        std::thread::Builder::new().spawn(move || store.sync()).unwrap()
    };
    write(&store, 5, &[1; 5]).unwrap();
    assert!(store.table.lock().dirty.contains(&0), "nobody else's sync takes it");
    drop(Syncing(&store));
    waiting.join().unwrap().unwrap();
    assert!(store.table.lock().dirty.is_empty());
    assert!(!store.table.lock().syncing);
}

#[test]
fn what_failed_to_be_synced_is_not_dirty_and_the_next_sync_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Faulty::new(dir.path());
    let geometry = Arc::new(Geometry::contiguous(16, &[10, 10, 10]));
    let store = FileStore::on(volume.clone(), Layout::Cache, geometry, &named(&["a", "b", "d/c"])).unwrap();
    write(&store, 0, &[1; 30]).unwrap();
    volume.changes();
    volume.fail(|call| (call == "sync data/b.part").then_some(libc::EIO));
    let failed = store.sync();
    assert!(matches!(&failed, Err(StorageError::Io { path, .. }) if path.ends_with("b.part")), "{failed:?}");
    let files = ["sync data/a.part", "sync data/b.part", "sync data/d/c.part"];
    let folders = ["sync folder ", "sync folder data", "sync folder data/d"];
    assert_eq!(volume.changes(), [&files[..], &folders[..]].concat(), "the others are synced all the same");
    {
        let table = store.table.lock();
        assert!(table.dirty.is_empty());
        // The description that told of the failure goes.
        assert!(table.open.contains_key(&0) && !table.open.contains_key(&1));
    }
    // What is here is read and written on; the names are synced anew, since nobody knows.
    let mut buf = [0; 30];
    store.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [1; 30]);
    write(&store, 12, &[2; 3]).unwrap();
    volume.heal();
    volume.changes();
    store.sync().unwrap();
    assert_eq!(volume.changes(), [&files[1..2], &folders[..]].concat());
    store.sync().unwrap();
    assert_eq!(volume.changes(), [""; 0]);
    // A folder that can't be synced stays to be synced.
    write(&store, 0, &[1; 1]).unwrap();
    store.table.lock().created.insert(0);
    volume.fail(|call| call.starts_with("sync folder").then_some(libc::EIO));
    assert!(store.sync().is_err());
    volume.heal();
    volume.changes();
    store.sync().unwrap();
    assert_eq!(volume.changes(), folders[..2]);
}

#[test]
fn a_write_during_a_sync_that_fails_fails_too() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Faulty::new(dir.path());
    let geometry = Arc::new(Geometry::contiguous(16, &[10, 10]));
    let store = FileStore::on(volume.clone(), Layout::Cache, geometry, &named(&["a", "b"])).unwrap();
    write(&store, 0, &[1; 20]).unwrap();
    let begun = store.table.lock().failures;
    volume.fail(|call| call.starts_with("sync data/a").then_some(libc::EIO));
    store.sync().unwrap_err();
    let bytes = [IoSlice::new(&[2; 5])];
    let span = Span { file: FileIndex(1), offset: 0, len: 5 };
    let result = store.write_span(span, &mut Parts::new(&bytes), begun);
    assert!(matches!(result, Err(StorageError::Unsynced { .. })), "{result:?}");
    assert!(store.table.lock().dirty.contains(&1));
    let now = store.table.lock().failures;
    store.write_span(span, &mut Parts::new(&bytes), now).unwrap();
    write(&store, 0, &[1; 20]).unwrap();
}

#[test]
fn a_file_system_that_fails_is_asked_whose_failure_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let count = SYNC_EACH + 1;
    let volume = Faulty::new(dir.path());
    let files: Vec<StoredFile> =
        (0..count).map(|n| StoredFile { path: vec![n.to_string()], pad: false }).collect();
    let geometry = Arc::new(Geometry::contiguous(16, &vec![16; count]));
    let store = FileStore::on(volume.clone(), Layout::Cache, geometry, &files).unwrap();
    let all = vec![7; 16 * count];
    write(&store, 0, &all).unwrap();
    volume.fail(|call| (call == "sync all").then_some(libc::EIO));
    store.sync().unwrap();
    write(&store, 0, &all).unwrap();
    volume.fail(|call| (call == "sync all" || call == "sync data/5.part").then_some(libc::EIO));
    let failed = store.sync();
    assert!(matches!(&failed, Err(StorageError::Io { path, .. }) if path.ends_with("5.part")), "{failed:?}");
    volume.heal();
    write(&store, 0, &all).unwrap();
    volume.changes();
    store.sync().unwrap();
    assert_eq!(volume.changes(), ["sync all"]);
}

#[test]
fn a_sync_whose_file_or_folder_is_gone_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[10, 10]));
    let store = open(dir.path(), geometry, &named(&["a", "d/b"]));
    write(&store, 0, &[1; 20]).unwrap();
    store.table.lock().open.clear();
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    assert!(matches!(store.sync(), Err(StorageError::Short { found: 0, .. })));
    store.sync().unwrap();
    assert!(matches!(store.files(), Err(StorageError::Changed { .. })), "and what was in them is doubted");
    (0..2).for_each(|file| store.reopen(FileIndex(file)).unwrap());
    assert_eq!(lens(&store), [None, None]);
}

/// What somebody does to a file behind our back.
type Mischief = fn(&Path);

#[test]
fn s1_a_file_changed_from_outside_is_noticed_and_not_read_before_it_is_reopened() {
    fn remove(path: &Path) {
        std::fs::remove_file(path).unwrap();
    }
    fn replace(path: &Path) {
        let other = path.with_extension("other");
        std::fs::write(&other, [9; 100]).unwrap();
        std::fs::rename(other, path).unwrap();
    }
    fn cut(path: &Path) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(30).unwrap();
    }
    fn touch(path: &Path) {
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        std::fs::File::open(path).unwrap().set_modified(later).unwrap();
    }
    fn nothing(_: &Path) {}
    let rows: &[(&str, Mischief, bool, bool, Option<u64>)] = &[
        // What is done, to a finished file; whether it is noticed; the length afterwards.
        ("nothing", nothing, false, false, Some(100)),
        ("nothing", nothing, true, false, Some(100)),
        ("removed", remove, false, true, None),
        ("removed", remove, true, true, None),
        ("replaced", replace, false, true, Some(100)),
        ("replaced", replace, true, true, Some(100)),
        ("cut", cut, false, true, Some(30)),
        ("cut", cut, true, true, Some(30)),
        ("touched", touch, false, false, Some(100)),
        ("touched", touch, true, true, Some(100)),
    ];
    for (what, mischief, finished, noticed, len) in rows {
        for by_reading in [true, false] {
            let case = format!("{what}, finished {finished}, by reading {by_reading}");
            let dir = tempfile::tempdir().unwrap();
            let geometry = Arc::new(Geometry::contiguous(16, &[100, 100]));
            let mut store = open(dir.path(), geometry, &named(&["a", "b"]));
            write(&store, 0, &[7; 200]).unwrap();
            let mut path = dir.path().join("data/a.part");
            if *finished {
                store.finish(FileIndex(0)).unwrap();
                path = dir.path().join("data/a");
            }
            let mut buf = [0; 20];
            store.read_at(0, &mut buf).unwrap();
            mischief(&path);
            // Not looked at yet.
            store.read_at(0, &mut buf).unwrap();
            store.look_every = Duration::ZERO;
            assert!(!store.try_read(0, &mut buf).unwrap(), "a worker looks, not a FUSE thread");
            // A cut shows to who looks by name only in the length.
            let noticed = *noticed && (by_reading || *finished || *what != "cut");
            let told = match by_reading {
                true => store.read_at(0, &mut buf).err(),
                false => store.files().err(),
            };
            match told {
                Some(StorageError::Changed { path: told }) => assert!(noticed && told == path, "{case}"),
                other => assert!(other.is_none() && !noticed, "{case}: {other:?}"),
            }
            store.look_every = Duration::MAX;
            // Who believes in what was in it has yet to hear of it.
            assert_eq!(store.read_at(0, &mut buf).is_ok(), !noticed && len.is_some(), "{case}");
            assert_eq!(store.files().is_ok(), !noticed, "{case}");
            store.read_at(100, &mut buf).unwrap();
            // What was lost is never made zeros of unasked.
            let written = write(&store, 90, &[3; 5]);
            assert_eq!(written.is_ok(), !noticed && *len == Some(100), "{case}: {written:?}");
            store.reopen(FileIndex(0)).unwrap();
            assert_eq!(lens(&store), [*len, Some(100)], "{case}");
            write(&store, 0, &[8; 100]).unwrap();
            store.read_at(80, &mut buf).unwrap();
            assert_eq!((buf, lens(&store)), ([8; 20], vec![Some(100); 2]), "{case}");
        }
    }
}

#[test]
fn s1_a_removed_file_is_not_made_anew_as_long_as_its_pieces_count() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Arc::new(Geometry::contiguous(16, &[100]));
    write(&open(dir.path(), geometry.clone(), &named(&["a"])), 0, &[7; 100]).unwrap();
    let path = dir.path().join("data/a.part");
    for seen_by_name in [true, false] {
        let store = open(dir.path(), geometry.clone(), &named(&["a"]));
        let mut buf = [0; 10];
        match seen_by_name {
            true => assert_eq!(lens(&store), [Some(100)]),
            false => store.read_at(0, &mut buf).unwrap(),
        }
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            let refused = write(&store, 50, &[1; 10]);
            assert!(matches!(refused, Err(StorageError::Short { found: 0, .. })), "{refused:?}");
        }
        assert!(!path.exists());
        store.reopen(FileIndex(0)).unwrap();
        write(&store, 50, &[1; 10]).unwrap();
        store.sync().unwrap();
        assert_eq!(lens(&store), [Some(100)]);
    }
}

#[test]
fn s1_a_file_replaced_while_it_is_incomplete_is_noticed_by_whoever_opens_it_next() {
    /// What opens a file anew.
    type Opening = fn(&FileStore) -> Result<(), StorageError>;
    let rows: &[(&str, Opening)] = &[
        // The one it was read through can't be written to.
        ("a write", |store| write(store, 90, &[3; 5])),
        ("a read after its descriptor was taken away", |store| {
            store.table.lock().open.clear();
            store.read_at(0, &mut [0; 20])
        }),
        ("a look at all files", |store| store.files().map(|_| ())),
        ("a sync after its descriptor was taken away", |store| {
            store.table.lock().open.clear();
            store.table.lock().dirty.insert(0);
            store.sync()
        }),
    ];
    for (what, opening) in rows {
        // Seen by name: it was never open. Then one that is made after it was removed may get its inode's number.
        for (seen_by_name, removed) in [(true, false), (true, true), (false, false)] {
            let case = format!("{what}, seen by name {seen_by_name}, removed {removed}");
            let dir = tempfile::tempdir().unwrap();
            let geometry = Arc::new(Geometry::contiguous(16, &[100]));
            write(&open(dir.path(), geometry.clone(), &named(&["a"])), 0, &[7; 100]).unwrap();
            let mut store = open(dir.path(), geometry, &named(&["a"]));
            // Nobody looks while it is read on.
            store.look_every = Duration::MAX;
            let mut buf = [0; 20];
            match seen_by_name {
                true => assert_eq!(lens(&store), [Some(100)]),
                false => store.read_at(0, &mut buf).unwrap(),
            }
            let part = dir.path().join("data/a.part");
            let born = || part.metadata().unwrap().created().ok();
            let (before, mut tries) = (born(), 0);
            while removed && (tries == 0 || before.is_some_and(|before| Some(before) == born())) {
                tries += 1;
                std::fs::remove_file(&part).unwrap();
                std::fs::write(&part, [9; 100]).unwrap();
            }
            if !removed {
                std::fs::write(part.with_extension("other"), [9; 100]).unwrap();
                std::fs::rename(part.with_extension("other"), &part).unwrap();
            }
            let told = opening(&store);
            assert!(matches!(told, Err(StorageError::Changed { .. })), "{case}: {told:?}");
            // Whoever believes in what was in it may not have heard of it yet: nothing is read, written or recorded.
            for _ in 0..2 {
                let found = store.files();
                assert!(matches!(found, Err(StorageError::Changed { .. })), "{case}: {found:?}");
            }
            let written = write(&store, 90, &[3; 5]);
            assert!(matches!(written, Err(StorageError::Changed { .. })), "{case}: {written:?}");
            let at_once = store.try_read(0, &mut buf);
            assert!(matches!(at_once, Ok(false)), "{case}: {at_once:?} {buf:?}");
            let read = store.read_at(0, &mut buf);
            assert!(matches!(read, Err(StorageError::Changed { .. })), "{case}: {read:?} {buf:?}");
            // Now everybody knows.
            store.reopen(FileIndex(0)).unwrap();
            write(&store, 90, &[3; 5]).unwrap();
            store.read_at(80, &mut buf).unwrap();
            assert_eq!((&buf[..10], &buf[10..15]), (&[9; 10][..], &[3; 5][..]), "{case}");
        }
    }
}

#[test]
fn s1_what_was_written_into_a_finished_file_is_noticed_before_we_write_to_it() {
    /// What makes it incomplete again.
    type Opening = fn(&FileStore) -> Result<(), StorageError>;
    let rows: &[(&str, Opening)] =
        &[("a write", |store| write(store, 90, &[3; 5])), ("a discard", |store| store.discard(0..16, 0..16))];
    for (what, opening) in rows {
        for harmed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path(), Arc::new(Geometry::contiguous(16, &[100])), &named(&["a"]));
            // Nobody looks while it is read on.
            store.look_every = Duration::MAX;
            write(&store, 0, &[7; 100]).unwrap();
            store.finish(FileIndex(0)).unwrap();
            let path = dir.path().join("data/a");
            if harmed {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&[9; 5], 50).unwrap();
                file.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
            }
            let told = opening(&store);
            assert_eq!(matches!(told, Err(StorageError::Changed { .. })), harmed, "{what}: {told:?}");
            assert!(harmed || told.is_ok(), "{what}: {told:?}");
            let mut buf = [0; 20];
            let read = store.read_at(45, &mut buf);
            assert_eq!(matches!(read, Err(StorageError::Changed { .. })), harmed, "{what}: {read:?}");
            assert!(harmed || buf == [7; 20], "{what}: {buf:?}");
            store.reopen(FileIndex(0)).unwrap();
            store.read_at(45, &mut buf).unwrap();
        }
    }
}

#[test]
fn s3_what_an_earlier_run_wrote_is_durable_once_it_was_adopted() {
    let geometry = Arc::new(Geometry::contiguous(16, &[100]));
    let open = |disk: &Model| {
        FileStore::on(Arc::new(disk.clone()), Layout::Cache, geometry.clone(), &named(&["a"])).unwrap()
    };
    let mut lost = 0;
    for adopts in [true, false] {
        for seed in 0..20 {
            let disk = Model::new(None);
            // Killed before it could sync, and what it wrote was found right by the next run.
            write(&open(&disk), 0, &[7; 100]).unwrap();
            let next = open(&disk);
            if adopts {
                next.adopt(0..100);
            }
            next.sync().unwrap();
            let mut buf = [0; 100];
            let read = open(&disk.after_crash(seed)).read_at(0, &mut buf);
            if adopts {
                assert_eq!((read.is_ok(), buf), (true, [7; 100]), "{seed}");
            } else {
                lost += u32::from(read.is_err() || buf != [7; 100]);
            }
        }
    }
    assert!(lost > 0, "the disk forgets nothing");
}
