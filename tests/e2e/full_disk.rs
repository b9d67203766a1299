//! A disk that is small, or full: a file system of 64 MiB, and a torrent of 256.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::{Behaviour, Mount, Sample, ScriptedPeer, cpu, skip, wait_until};
use crate::needs;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// A file system in memory, gone when this is dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let none: Option<&str> = None;
        mount(none, folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64m")).ok()?;
        Some(Self { folder })
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.folder.path()).expect("statvfs");
        stat.blocks_available() * stat.fragment_size()
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("filler");
        let file = File::create(&path).expect("a file");
        let block = vec![1; 64 * 1024];
        let mut at = 0;
        while let Ok(written @ 1..) = file.write_at(&block, at) {
            at += written as u64;
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}

/// Reads a file from its beginning to its end and compares it with the source, dropping what the kernel keeps.
fn read_through(path: &Path, source: &Path) {
    let (file, truth) = (File::open(path).expect("it opens"), File::open(source).expect("the source"));
    let (mut got, mut expected) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let size = truth.metadata().expect("its size").len();
    let mut at = 0;
    while at < size {
        let len = MIB.min(size - at) as usize;
        file.read_exact_at(&mut got[..len], at).unwrap_or_else(|error| panic!("at {at}: {error}"));
        truth.read_exact_at(&mut expected[..len], at).expect("the source");
        assert!(got[..len] == expected[..len], "wrong bytes at {at}");
        at += len as u64;
    }
}

#[test]
fn a_torrent_four_times_the_disk_is_read_whole() {
    needs!(Fuse, Libtorrent);
    for args in [&[][..], &["--min-free-space=0"]] {
        let Some(disk) = SmallDisk::new() else { return skip("to mount a tmpfs takes root") };
        let sample = Sample::big();
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let mut builder = Mount::sample(&sample).cache(&disk.cache()).peer(peer.addr());
        for arg in args {
            builder = builder.arg(arg);
        }
        let mount = builder.start();
        read_through(&mount.path(&sample.name), &sample.source());
        if args.is_empty() {
            assert!(disk.free() >= 15 * MIB, "a quarter of a small disk stays free: {}", disk.free());
        }
        mount.stop();
    }
}

#[test]
fn a_full_disk_stops_fetching_says_why_and_goes_on_when_there_is_room() {
    needs!(Fuse, Libtorrent);
    let Some(disk) = SmallDisk::new() else { return skip("to mount a tmpfs takes root") };
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample)
        .cache(&disk.cache())
        .peer(peer.addr())
        .arg("--min-free-space=0")
        .arg("--read-timeout=3s")
        .start();
    let path = mount.path(&sample.name);
    wait_until("the file", MINUTE, || path.exists());
    let filler = disk.fill();
    let file = File::open(&path).expect("it opens");
    let mut buffer = vec![0; 4096];
    let before = (cpu(mount.pid()), peer.served());
    let start = Instant::now();
    let error = file.read_exact_at(&mut buffer, 3 * MIB).expect_err("there is no room for it");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(start.elapsed() >= Duration::from_secs(2), "there might have been room in time");
    // A whole piece may have come, and those that were under way; not the same ones over and over.
    let fetched = (peer.served() - before.1) as u64 * 16 * 1024;
    assert!(fetched <= 4 * MIB, "{fetched} bytes were fetched for nothing");
    let cpu = cpu(mount.pid()) - before.0;
    assert!(cpu < Duration::from_secs(1), "{cpu:?} of processor time for nothing");
    let why = mount.xattr(&path, "error").expect("a reason");
    assert!(why.contains("full"), "{why}");
    assert_eq!(mount.xattr(&path, "state").as_deref(), Some("error"));
    // Room is made: without a remount it goes on.
    std::fs::remove_file(filler).expect("the filler goes");
    wait_until("fetching to go on", MINUTE, || file.read_exact_at(&mut buffer, 3 * MIB).is_ok());
    let mut expected = vec![0; 4096];
    File::open(sample.source()).and_then(|f| f.read_exact_at(&mut expected, 3 * MIB)).expect("the source");
    assert!(buffer == expected);
    wait_until("the reason to go", MINUTE, || mount.xattr(&path, "error").is_none());
    // And full again, what is here is still read.
    let _filler = disk.fill();
    file.read_exact_at(&mut buffer, 3 * MIB).expect("it is here");
    mount.stop();
}
