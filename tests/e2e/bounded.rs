//! `--cache-size`: what is kept stays within it, whatever is read, and every byte is right.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Peak, Sample, ScriptedPeer, cpu, wait_until};
use crate::needs;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// Watches what a folder takes on the disk, as `du` counts it, as fast as it can.
struct Du {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Du {
    fn watch(folder: &Path) -> Self {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (to, until, folder) = (most.clone(), stop.clone(), folder.to_owned());
        let watcher = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                to.fetch_max(taken(&folder), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { most, stop, watcher: Some(watcher) }
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Du {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Bytes that a folder takes on the disk, with all that is in it.
fn taken(folder: &Path) -> u64 {
    let own = folder.symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => taken(&entry.path()),
        _ => entry.path().symlink_metadata().map_or(0, |meta| meta.blocks() * 512),
    });
    own + inside.sum::<u64>()
}

/// Reads it all and compares; the kernel keeps nothing of it.
fn read_through(path: &Path, source: &Path, sample: &Sample) {
    let (file, truth) = (File::open(path).expect("it opens"), File::open(source).expect("the source"));
    let (mut got, mut expected) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for at in (0..sample.total).step_by(MIB as usize) {
        let len = MIB.min(sample.total - at) as usize;
        file.read_exact_at(&mut got[..len], at).unwrap_or_else(|error| panic!("at {at}: {error}"));
        truth.read_exact_at(&mut expected[..len], at).expect("the source");
        assert!(got[..len] == expected[..len], "wrong bytes at {at}");
    }
    // Otherwise the second time would be read from the kernel's pages.
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .expect("fadvise");
}

/// Twice through a bound of `bound` MiB.
fn twice(sample: &Sample, bound: u64, storage: &str) {
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let mount = Mount::sample(sample)
        .cache(&cache)
        .peer(peer.addr())
        .arg(format!("--cache-size={bound}M"))
        .arg(format!("--storage={storage}"))
        .start();
    let path = mount.path(&sample.name);
    wait_until("the file", MINUTE, || path.exists());
    let (du, peak) = (Du::watch(&cache), Peak::watch(mount.pid()));
    for _ in 0..2 {
        read_through(&path, &sample.source(), sample);
    }
    let (most, memory) = (du.most(), peak.highest());
    println!("{storage}: {} MiB on disk, {} MiB of memory at most", most / MIB, memory / MIB);
    assert!(most <= bound * MIB, "{most} bytes on disk");
    let budget = if storage == "memory" { bound * MIB } else { 0 };
    assert!(memory <= budget + 64 * MIB, "{memory} bytes of memory");
    assert!(storage == "memory" || most > bound * MIB / 2, "the bound is made use of: {most}");
    let sent = peer.served() as u64 * 16 * 1024;
    assert!(sent <= 2 * sample.total + 64 * MIB, "{sent} bytes were fetched to read {} twice", sample.total);
    mount.stop();
}

#[test]
fn twice_through_a_bound_in_files() {
    needs!(Fuse, Libtorrent);
    twice(&Sample::file("gig.bin", 1024 * MIB, MIB), 128, "file");
}

#[test]
fn twice_through_a_bound_in_memory() {
    needs!(Fuse, Libtorrent);
    twice(&Sample::file("gig.bin", 1024 * MIB, MIB), 128, "memory");
}

#[test]
fn twice_through_a_bound_in_mapped_files() {
    needs!(Fuse, Libtorrent);
    twice(&Sample::big(), 64, "mmap");
}

#[test]
fn many_readers_in_a_tight_bound_all_get_on() {
    needs!(Fuse, Libtorrent);
    // Pieces of 4 MiB: sixteen readers want more than the bound holds, each of them pieces on both sides of an edge.
    let sample = Sample::file("edges.bin", 256 * MIB, 4 * MIB);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    for storage in ["file", "memory"] {
        let mount = Mount::sample(&sample)
            .cache(&cache)
            .peer(peer.addr())
            .arg("--cache-size=24M")
            .arg(format!("--storage={storage}"))
            .start();
        let path = mount.path(&sample.name);
        wait_until("the file", MINUTE, || path.exists());
        let (du, peak) = (Du::watch(&cache), Peak::watch(mount.pid()));
        std::thread::scope(|scope| {
            for reader in 0..16u64 {
                let (path, sample) = (&path, &sample);
                scope.spawn(move || {
                    let (file, truth) =
                        (File::open(path).expect("it opens"), File::open(sample.source()).expect("it"));
                    for turn in 0..6u64 {
                        let edge = (1 + (reader * 7 + turn * 11) % 62) * 4 * MIB - 2048;
                        let (mut got, mut expected) = (vec![0; 4096], vec![0; 4096]);
                        file.read_exact_at(&mut got, edge)
                            .unwrap_or_else(|error| panic!("at {edge}: {error}"));
                        truth.read_exact_at(&mut expected, edge).expect("the source");
                        assert!(got == expected, "wrong bytes at {edge}");
                    }
                });
            }
        });
        assert!(du.most() <= 24 * MIB, "{} bytes on disk", du.most());
        assert!(peak.highest() <= 24 * MIB + 96 * MIB, "{} bytes of memory", peak.highest());
        mount.stop();
    }
}

#[test]
fn two_torrents_share_one_bound_and_what_was_read_last_stays() {
    needs!(Fuse, Libtorrent);
    let (one, two) =
        (Sample::file("one.bin", 24 * MIB, 256 * 1024), Sample::file("two.bin", 24 * MIB, 256 * 1024));
    let peers = [&one, &two].map(|s| ScriptedPeer::start(s.clone(), Behaviour::default()));
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let start = |bound: &str| {
        let mut builder =
            Mount::sample(&one).source(&two.torrent).cache(&cache).arg(format!("--cache-size={bound}"));
        for peer in &peers {
            builder = builder.peer(peer.addr());
        }
        builder.start()
    };
    let mount = start("32M");
    let progress = |mount: &Mount, sample: &Sample| -> u64 {
        let text = mount.xattr(&mount.path(&sample.name), "progress").expect("progress");
        text.split('/').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    read_through(&mount.path(&one.name), &one.source(), &one);
    read_through(&mount.path(&two.name), &two.source(), &two);
    assert_eq!(progress(&mount, &two), two.total, "what was read last is all here");
    let left = progress(&mount, &one);
    assert!(left > 0 && left < one.total, "as much of the other as there is room for: {left}");
    mount.stop();
    // One that isn't open counts as well, and goes first.
    let peer = ScriptedPeer::start(one.clone(), Behaviour::default());
    let mount = Mount::sample(&one).cache(&cache).arg("--cache-size=32M").peer(peer.addr()).start();
    read_through(&mount.path(&one.name), &one.source(), &one);
    assert_eq!(progress(&mount, &one), one.total);
    assert!(taken(&cache) <= 32 * MIB, "{}", taken(&cache));
    mount.stop();
}

#[test]
fn prefetching_drives_nothing_out() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::file("more.bin", 64 * MIB, 256 * 1024);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount =
        Mount::sample(&sample).peer(peer.addr()).arg("--cache-size=24M").arg("--prefetch=all").start();
    let path = mount.path(&sample.name);
    let here = || -> u64 {
        let text = mount.xattr(&path, "progress").unwrap_or_default();
        text.split('/').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    wait_until("the room to be used", MINUTE, || here() > 16 * MIB);
    wait_until("it to be idle", MINUTE, || mount.xattr(&path, "state").as_deref() == Some("idle"));
    let sent = peer.served() as u64 * 16 * 1024;
    assert!(sent <= 26 * MIB, "{sent} bytes for a bound of 24 MiB");
    let before = cpu(mount.pid());
    let mut head = vec![0; 4096];
    File::open(&path).and_then(|f| f.read_exact_at(&mut head, 63 * MIB)).expect("it is read all the same");
    wait_until("it to be idle", MINUTE, || mount.xattr(&path, "state").as_deref() == Some("idle"));
    assert!(cpu(mount.pid()) - before < Duration::from_secs(5));
    mount.stop();
}
