//! A restart finds what was fetched (row O8): served at once, nothing fetched again, nothing hashed; and under which
//! names others find it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{Mount, Proc, Reader, Sample, Seeder, bytes_read, home, magnet, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// What a start reads besides data: libraries, the torrent, the record.
const START: u64 = MIB;
const PIECE: u64 = 64 * KIB;
/// What is told of each hash that is computed over data on the disk.
const HASHED: &str = "hashing a piece on the disk";

/// Kills a mount, and takes what is left of it away.
fn kill(mount: &mut Mount) {
    mount.signal(Signal::SIGKILL);
    mount.exited(MINUTE);
    let _ = umount2(mount.point(), MntFlags::MNT_DETACH);
}

/// The files below a folder of the cache, with their paths below it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).expect("below it").to_owned()),
            }
        }
    }
    found.sort();
    found
}

/// What lies in the cache is what the torrent holds; there it hasn't the torrent's name in front.
#[track_caller]
fn check(sample: &Sample, data: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(data, folder.path().join(&sample.name)).expect("a link");
    sample.check_in(folder.path());
}

/// Everything of a tree is fetched, recorded, and the program ended or killed. The next one serves it all with the
/// seeder there, and the seeder sends nothing.
fn complete(storage: &str, killed: bool) {
    let sample = Sample::tree();
    let cache = tempfile::tempdir().expect("a folder");
    let mut seeder = Seeder::start(&sample);
    let addr = seeder.addr;
    let builder = || Mount::sample(&sample).cache(cache.path()).peer(addr).args(&["--storage", storage]);
    let mut mount = builder().start();
    mount.check_sums(&sample);
    // Whole files get their names when they are recorded.
    let data = home(&sample, cache.path()).join("data");
    let parts = || files(&data).iter().any(|file| file.extension().is_some_and(|end| end == "part"));
    wait_until("all files to have their names", MINUTE, || !parts());
    match killed {
        true => kill(&mut mount),
        false => {
            mount.stop();
        }
    }
    let sent = seeder.uploaded();
    assert!(sent >= sample.total);

    let mount = builder().log("torrentfs=debug").start();
    let progress = mount.xattr(&mount.path(&sample.name), "progress");
    assert_eq!(progress, Some(format!("{0}/{0}", sample.total)), "all of it at once");
    let read = bytes_read(mount.pid());
    eprintln!("{storage}: {read} bytes read for the start, of {}", sample.total);
    assert!(read < START, "{read} bytes read for the start: was it hashed?");
    mount.check_sums(&sample);
    assert_eq!(seeder.uploaded(), sent, "something was fetched again");
    assert!(!mount.log().contains(HASHED), "something was hashed:\n{}", mount.log());
    mount.stop();

    // Others can use it: every file under its name, for reading only, equal to the truth.
    check(&sample, &data);
    for path in files(&data) {
        let mode = data.join(&path).metadata().expect("a file").mode() & 0o777;
        assert_eq!(mode, 0o444, "{}", path.display());
    }
}

#[test]
fn o8_what_is_complete_is_served_after_a_clean_end() {
    needs!(Fuse, Libtorrent, Attr);
    complete("file", false);
}

#[test]
fn o8_what_is_complete_is_served_after_a_kill() {
    needs!(Fuse, Libtorrent, Attr);
    complete("file", true);
}

#[test]
fn o8_what_is_complete_is_served_from_mapped_files() {
    needs!(Fuse, Libtorrent, Attr);
    complete("mmap", false);
}

/// Nobody takes what isn't whole for whole: it has another name, until it is.
#[test]
fn o8_what_is_incomplete_says_so_and_goes_on_later() {
    needs!(Fuse, Libtorrent);
    let sample =
        Sample::folder("parts", &[("a.bin", 8 * PIECE), ("d/b.bin", 8 * PIECE), ("d/c.bin", PIECE)], PIECE);
    let cache = tempfile::tempdir().expect("a folder");
    let data = home(&sample, cache.path()).join("data");
    let mut seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).cache(cache.path()).peer(seeder.addr).start();
    Proc::start("sha256sum", [mount.path("parts/a.bin")]).success(MINUTE);
    Reader::pread(&mount.path("parts/d/b.bin"), 0, 10).success(MINUTE);
    mount.stop();
    assert_eq!(files(&data), [PathBuf::from("a.bin"), PathBuf::from("d/b.bin.part")]);
    assert_eq!(data.join("a.bin").metadata().expect("a file").mode() & 0o777, 0o444);
    let sent = seeder.uploaded();

    let mount = Mount::sample(&sample).cache(cache.path()).peer(seeder.addr).start();
    mount.check_sums(&sample);
    wait_until("the other files to have their names", MINUTE, || {
        files(&data) == ["a.bin", "d/b.bin", "d/c.bin"].map(PathBuf::from)
    });
    mount.stop();
    let again = seeder.uploaded() - sent;
    assert!(again <= 8 * PIECE, "{again} bytes: more than was missing");
    check(&sample, &data);
}

/// A magnet link that was mounted before needs nobody for its names, nor for what is here of it.
#[test]
fn o8_a_known_magnet_mounts_without_a_network() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let cache = tempfile::tempdir().expect("a folder");
    let link = magnet(&sample, &[]);
    let (file, in_cache) = ("tree/large/0.bin", "data/large/0.bin");
    for killed in [true, false] {
        let seeder = Seeder::start(&sample);
        let mut mount = Mount::of(&link).cache(cache.path()).peer(seeder.addr).start();
        let path = mount.wait_entry(file, MINUTE);
        Proc::start("sha256sum", [&path]).success(MINUTE);
        let kept = home(&sample, cache.path()).join(in_cache);
        wait_until("the file to be recorded as whole", MINUTE, || kept.exists());
        match killed {
            true => kill(&mut mount),
            false => {
                mount.stop();
            }
        }
        drop(seeder);
        // No peer, and a tracker that isn't there.
        let mount = Mount::of(&link).cache(cache.path()).arg("--no-trackers").start();
        assert_eq!(mount.names(), ["tree"], "its own name at once");
        let mut got = vec![0; 100_000];
        File::open(mount.path(file)).and_then(|file| file.read_exact_at(&mut got, 4096)).expect("it is here");
        let mut want = vec![0; 100_000];
        let source = File::open(sample.data.join(file)).expect("the source");
        source.read_exact_at(&mut want, 4096).expect("its bytes");
        assert!(got == want, "wrong bytes");
        mount.stop();
    }
}
