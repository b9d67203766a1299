//! A mount's beginning and end.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use torrentfs_fs::mock::{Mock, MockFile};
use torrentfs_fs::session::Detached;
use torrentfs_fs::{MountError, MountOptions, mount, mountinfo};

use crate::common::{Bed, PIECE, SOON, can_mount, until};

fn mock() -> Arc<Mock> {
    let mock = Mock::new(PIECE).unwrap();
    mock.add("T", &[MockFile::new("missing", 64 * PIECE), MockFile::new("here", PIECE).here()]);
    mock
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

#[test]
fn f3_unmounting_with_blocked_readers_ends_in_time() {
    if !can_mount("f3_unmounting_with_blocked_readers_ends_in_time") {
        return;
    }
    let bed = Bed::new(mock());
    let root = bed.root().canonicalize().unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..50)
            .map(|at| {
                let path = bed.path("T/missing");
                scope.spawn(move || {
                    let file = std::fs::File::open(path).unwrap();
                    file.read_at(&mut [0; 4096], at * PIECE + 32768).unwrap_err().raw_os_error()
                })
            })
            .collect();
        until("all wait", || bed.mock.waiting() == 50);
        let waiting = bed.mounted().waiting_reads();
        assert!(waiting.iter().all(|read| read.tid != 0 && read.len >= 4096));
        let began = Instant::now();
        let report = bed.mounted().unmount(Duration::from_secs(10));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(report.is_complete(), "{report:?}");
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Some(libc::EIO));
        }
    });
    assert_eq!(mountinfo::at(&root), None);
    assert!(bed.mounted().has_ended());
    // Again, as often as one likes.
    for _ in 0..2 {
        let report = bed.mounted().unmount(Duration::from_secs(10));
        assert_eq!((report.detached, report.left), (Detached::Already, vec![]));
    }
}

#[test]
fn an_idle_mount_goes_cleanly_and_leaves_nothing() {
    if !can_mount("an_idle_mount_goes_cleanly_and_leaves_nothing") {
        return;
    }
    let bed = Bed::new(mock());
    assert_eq!(std::fs::read(bed.path("T/here")).unwrap().len() as u64, PIECE);
    assert!(threads().iter().any(|name| name.starts_with("fs-signals")));
    // The kernel closes a file a moment after its reader has.
    until("it is closed", || bed.mounted().counts().handles == 0);
    let report = bed.mounted().unmount(SOON);
    assert_eq!((report.detached, report.left), (Detached::Clean, vec![]));
    assert!(bed.mounted().has_ended());
    assert_eq!(std::fs::read_dir(bed.root()).unwrap().count(), 0);
}

#[test]
fn a_held_mount_goes_within_the_deadline() {
    if !can_mount("a_held_mount_goes_within_the_deadline") {
        return;
    }
    let bed = Bed::new(mock());
    let root = bed.root().canonicalize().unwrap();
    let held = std::fs::File::open(bed.path("T/here")).unwrap();
    let began = Instant::now();
    let report = bed.mounted().unmount(SOON);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((report.detached, report.left), (Detached::Aborted, vec![]));
    assert_eq!(mountinfo::at(&root), None);
    assert!(held.read_at(&mut [0; 10], 0).is_err());
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    if !can_mount("an_unmount_from_outside_is_noticed") {
        return;
    }
    let bed = Bed::new(mock());
    let (sender, receiver) = channel();
    let again = sender.clone();
    bed.mounted().on_end(move || sender.send("first").unwrap());
    assert!(!bed.mounted().has_ended());
    assert!(!bed.mounted().wait_end(Duration::from_millis(1)));
    assert!(Command::new("umount").arg(bed.root()).status().unwrap().success());
    assert_eq!(receiver.recv_timeout(SOON), Ok("first"));
    assert!(bed.mounted().wait_end(SOON));
    bed.mounted().on_end(move || again.send("late").unwrap());
    assert_eq!(receiver.recv_timeout(SOON), Ok("late"));
    let report = bed.mounted().unmount(SOON);
    assert_eq!((report.detached, report.left), (Detached::Already, vec![]));
}

#[test]
fn a_mount_point_in_use_is_refused_and_a_dead_mount_of_ours_is_cleared() {
    if !can_mount("a_mount_point_in_use_is_refused_and_a_dead_mount_of_ours_is_cleared") {
        return;
    }
    let bed = Bed::new(mock());
    let again = || mount(mock(), MountOptions::new(bed.root()));
    assert!(matches!(again(), Err(MountError::AlreadyMounted(_))));
    // Forced while it is held, it stays as a dead mount.
    let held = std::fs::File::open(bed.path("T/here")).unwrap();
    let _ = Command::new("umount").arg("-f").arg(bed.root()).output();
    assert!(bed.mounted().wait_end(SOON));
    let dead = std::fs::read_dir(bed.root()).map(|_| ()).map_err(|error| error.raw_os_error());
    assert_eq!(dead, Err(Some(libc::ENOTCONN)));
    let second = again().unwrap();
    assert_eq!(std::fs::read(bed.path("T/here")).unwrap().len() as u64, PIECE);
    drop(held);
    // The first one's end leaves the second alone.
    let report = bed.mounted().unmount(SOON);
    assert_eq!((report.detached, report.left), (Detached::Already, vec![]));
    assert_eq!(std::fs::read(bed.path("T/here")).unwrap().len() as u64, PIECE);
    until("it is closed", || second.counts().handles == 0);
    assert_eq!(second.unmount(SOON).detached, Detached::Clean);
}

#[test]
fn the_mount_is_listed_with_its_options() {
    if !can_mount("the_mount_is_listed_with_its_options") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = MountOptions {
        fs_name: "a torrent, or two".into(),
        allow_other: true,
        uid: 1234,
        gid: 4321,
        umask: 0o027,
        extra: vec!["noexec,x-gvfs-hide".into()],
        ..MountOptions::new(folder.path())
    };
    let mounted = mount(mock(), options).unwrap();
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let line = list.lines().find(|line| line.contains(name)).unwrap();
    for part in [
        "fuse.torrentfs",
        "ro,",
        "nosuid",
        "nodev",
        "noatime",
        "noexec",
        "default_permissions",
        "allow_other",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(line.contains("a\\040torrent,\\040or\\040two"), "{line}");
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(folder.path().join("T/here")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o777), (1234, 4321, 0o440));
    assert!(mounted.unmount(SOON).is_complete());
}

#[test]
fn mounting_and_unmounting_many_times_leaves_nothing() {
    if !can_mount("mounting_and_unmounting_many_times_leaves_nothing") {
        return;
    }
    for _ in 0..10 {
        let bed = Bed::new(mock());
        let path = bed.path("T/missing");
        let reader = std::thread::Builder::new().spawn(move || std::fs::read(path)).unwrap();
        bed.parked(1);
        drop(bed);
        assert!(reader.join().unwrap().is_err());
    }
}

#[test]
fn the_page_cache_is_kept_across_opens() {
    if !can_mount("the_page_cache_is_kept_across_opens") {
        return;
    }
    let bed = Bed::new(mock());
    let first = std::fs::read(bed.path("T/here")).unwrap();
    until("it is closed", || bed.mounted().counts().handles == 0);
    let reads = bed.mounted().counts().reads;
    assert!(reads > 0);
    for _ in 0..3 {
        assert!(std::fs::read(bed.path("T/here")).unwrap() == first);
    }
    assert_eq!(bed.mounted().counts().reads, reads, "the kernel has asked again");
}

#[test]
fn the_kernel_is_told_of_names_that_are_gone() {
    if !can_mount("the_kernel_is_told_of_names_that_are_gone") {
        return;
    }
    let mock = Mock::new(PIECE).unwrap();
    let one = mock.add("one", &[MockFile::new("a", 10).here()]);
    let two = mock.add("two", &[MockFile::new("a", 10).here()]);
    let bed = Bed::new(mock);
    // Known to the kernel; how long it would know them by itself isn't waited for.
    for path in ["one/a", "two/a"] {
        std::fs::metadata(bed.path(path)).unwrap();
    }
    bed.mock.remove(one);
    until("it was told of the first", || bed.mounted().voided() == 1);
    // Another in the place of the second is another thing, and that is told as well.
    std::fs::metadata(bed.path("two/a")).unwrap();
    bed.mock.remove(two);
    bed.mock.add("two", &[MockFile::new("b", 20).here()]);
    until("it was told of the second", || bed.mounted().voided() == 2);
    assert_eq!(std::fs::metadata(bed.path("two/b")).unwrap().len(), 20);
    assert!(std::fs::metadata(bed.path("two/a")).is_err());
}
