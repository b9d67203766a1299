//! `torrentfs cache list`, `prune` and `remove`: what they show, what they take, and what they leave alone.

use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::common::{
    Behaviour, Ended, Mount, Reader, Sample, ScriptedPeer, Seeder, fetch, fetch_from, home, magnet, ran,
    skip, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// `torrentfs cache` with these words, on a cache folder.
fn cache(folder: &Path, words: &[&str]) -> Ended {
    let folder = folder.to_str().expect("UTF-8");
    let fixed = ["--cache-dir", folder];
    ran(["cache"].iter().chain(words.iter().take(1)).chain(&fixed).chain(words.iter().skip(1)))
}

/// The torrents of `cache list --json`, by info-hash.
#[track_caller]
fn listed(folder: &Path, sample: &Sample) -> serde_json::Value {
    let all = cache(folder, &["list", "--json"]).json();
    let key = sample.v1.clone();
    let torrents = all["torrents"].as_array().expect("a list");
    torrents
        .iter()
        .find(|torrent| torrent["infohash"].as_str() == key.as_deref())
        .cloned()
        .unwrap_or_default()
}

#[test]
fn a_cache_is_listed_trimmed_and_left_alone() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (Sample::small(), Sample::file("two.bin", 4 * MIB, 64 * KIB));
    fetch(&one, folder.path(), None);
    fetch(&two, folder.path(), Some(MIB));
    std::fs::write(folder.path().join("notes"), b"mine").expect("a file");

    let whole = listed(folder.path(), &one);
    assert_eq!((whole["state"].as_str(), whole["here"].as_u64()), (Some("complete"), Some(one.total)));
    assert!(whole["on_disk"].as_u64() >= Some(one.total), "{whole}");
    let part = listed(folder.path(), &two);
    let here = part["here"].as_u64().expect("a number");
    assert_eq!((part["state"].as_str(), part["size"].as_u64()), (Some("partial"), Some(two.total)));
    assert!((MIB..two.total).contains(&here), "{part}");
    assert!(part["on_disk"].as_u64() < Some(two.total), "holes take no room: {part}");
    let table = cache(folder.path(), &["list"]).said(0, &["small.bin", "two.bin", "2 torrents:", "notes"]);
    assert!(!table.out.contains(one.v1.as_deref().expect("v1")), "short in the table: {}", table.out);
    assert!(table.out.contains(&one.v1.as_deref().expect("v1")[..8]), "{}", table.out);

    cache(folder.path(), &["prune"]).said(2, &["--to SIZE", "--older-than DURATION"]);
    cache(folder.path(), &["prune", "--to", "1T", "--older-than", "1h"]).said(0, &["nothing to remove"]);
    cache(folder.path(), &["remove", "small.bin", "--dry-run"]).said(0, &["would remove", "small.bin"]);
    cache(folder.path(), &["remove", "small.bin", "nothing.bin"]).said(1, &["nothing.bin", "two.bin"]);
    assert_eq!(listed(folder.path(), &one), whole, "nothing was touched so far");

    cache(folder.path(), &["remove", &one.v1.as_deref().expect("v1")[..8]]).said(0, &["1 torrent removed"]);
    assert!(!home(&one, folder.path()).exists());
    assert_eq!(listed(folder.path(), &two), part);
    // The one used longest ago is the only one.
    cache(folder.path(), &["prune", "--to", "0", "--dry-run"]).said(0, &["would remove", "two.bin"]);
    cache(folder.path(), &["prune", "--to", "0"]).said(0, &["removed", "two.bin", "0 torrents with 0 B"]);
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("a folder").map(|e| e.expect("entry").file_name()).collect();
    assert!(left.iter().any(|name| name == "notes"), "{left:?}");
    assert!(!home(&two, folder.path()).exists());
    cache(folder.path(), &["list"]).said(0, &["0 torrents"]);
}

#[test]
fn a_mount_is_seen_and_not_disturbed() {
    needs!(Fuse, Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let (mounted, other) = (Sample::small(), Sample::file("two.bin", 4 * MIB, 64 * KIB));
    fetch(&other, folder.path(), None);
    let peer = ScriptedPeer::start(mounted.clone(), Behaviour::default());
    let mount = Mount::sample(&mounted).cache(folder.path()).peer(peer.addr()).start();
    Reader::pread(&mount.path(&mounted.name), 0, 1000).success(MINUTE);

    assert_eq!(listed(folder.path(), &mounted)["in_use"].as_bool(), Some(true));
    assert_eq!(listed(folder.path(), &other)["in_use"].as_bool(), Some(false));
    let all = cache(folder.path(), &["list", "--json"]).json();
    assert_eq!(all["in_use_by"].as_u64(), Some(u64::from(mount.pid())));
    let process = format!("process {}", mount.pid());
    cache(folder.path(), &["list"]).said(0, &["in use", &process]);
    cache(folder.path(), &["remove", "two.bin"]).said(5, &["in use by", &process]);
    cache(folder.path(), &["prune", "--to", "0"]).said(5, &["in use by", &process]);
    cache(folder.path(), &["prune", "--to", "0", "--dry-run"]).said(0, &["two.bin", &process]);
    assert!(home(&other, folder.path()).exists());
    mount.check_sums(&mounted);
    mount.stop();
    assert_eq!(listed(folder.path(), &mounted)["in_use"].as_bool(), Some(false));
    cache(folder.path(), &["remove", "two.bin", "small.bin"]).said(0, &["2 torrents removed"]);
}

#[test]
fn a_name_that_several_have_is_refused() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let both = [64, 128].map(|piece| Sample::file("same.bin", MIB, piece * KIB));
    for sample in &both {
        fetch(sample, folder.path(), None);
    }
    let keys = both.clone().map(|sample| sample.v1.expect("v1"));
    cache(folder.path(), &["remove", "same.bin"]).said(1, &["2 torrents", &keys[0], &keys[1]]);
    cache(folder.path(), &["remove", &keys[0], "same.bin"]).said(1, &["2 torrents"]);
    assert!(both.iter().all(|sample| home(sample, folder.path()).exists()), "none was taken");
    cache(folder.path(), &["remove", &keys[0]]).said(0, &[]);
    cache(folder.path(), &["remove", "same.bin"]).said(0, &[&keys[1][..8]]);
}

#[test]
fn what_is_removed_is_fetched_again() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let get = || fetch_from(sample.torrent.as_os_str(), peer.addr(), folder.path(), None);
    get();
    let asked_before = peer.requests().len();
    get();
    assert_eq!(peer.requests().len(), asked_before, "it is here");
    cache(folder.path(), &["remove", "small.bin"]).said(0, &[]);
    get();
    // One asked for later may be called back and asked for once more.
    let blocks: HashSet<(u32, u32)> =
        peer.requests()[asked_before..].iter().map(|request| (request.piece, request.begin)).collect();
    assert_eq!(blocks.len() as u64, sample.total.div_ceil(16 * KIB));
    assert_eq!(listed(folder.path(), &sample)["state"].as_str(), Some("complete"));
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    // By the order of their info-hashes it would be the other way round for one of the two.
    let both = [Sample::small(), Sample::file("two.bin", 4 * MIB, 64 * KIB)];
    for [old, new] in [[&both[0], &both[1]], [&both[1], &both[0]]] {
        fetch(old, folder.path(), None);
        let used = listed(folder.path(), old)["last_used"].as_u64().expect("a time");
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        wait_until("the next second", MINUTE, || now() > used);
        fetch(new, folder.path(), None);
        let room = (old.total.max(new.total) + MIB).to_string();
        cache(folder.path(), &["prune", "--older-than", "1h", "--to", &room])
            .said(0, &["removed", &old.name]);
        assert!(!home(old, folder.path()).exists() && home(new, folder.path()).exists());
    }
}

#[test]
fn links_lead_nowhere() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = tempfile::tempdir().expect("a folder");
    std::fs::write(elsewhere.path().join("precious"), b"x").expect("a file");
    let sample = Sample::small();
    fetch(&sample, folder.path(), None);
    symlink(elsewhere.path(), home(&sample, folder.path()).join("data/link")).expect("a link");
    let linked = "a".repeat(40);
    symlink(elsewhere.path(), folder.path().join(&linked)).expect("a link");
    cache(folder.path(), &["list"]).said(0, &[&linked, "1 torrent:"]);
    cache(folder.path(), &["remove", &linked]).said(1, &["no such torrent"]);
    cache(folder.path(), &["prune", "--to", "0"]).said(0, &["1 torrent removed"]);
    assert_eq!(std::fs::read(elsewhere.path().join("precious")).expect("still there"), b"x");
}

#[test]
fn a_full_disk_can_be_trimmed() {
    needs!(Libtorrent);
    if !nix::unistd::geteuid().is_root() {
        return skip("to mount a tmpfs takes root");
    }
    let point = tempfile::tempdir().expect("a folder");
    let options = Some("size=12m,mode=700");
    mount(Some("tmpfs"), point.path(), Some("tmpfs"), MsFlags::empty(), options).expect("a tmpfs");
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = umount2(self.0, MntFlags::MNT_DETACH);
        }
    }
    let _unmount = Unmount(point.path());
    let sample = Sample::small();
    fetch(&sample, point.path(), None);
    let mut rest = std::fs::File::create(point.path().join("rest")).expect("a file");
    let full = std::io::copy(&mut std::io::repeat(1), &mut rest).expect_err("no room");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    cache(point.path(), &["prune", "--to", "0"]).said(0, &["1 torrent removed"]);
    assert!(!home(&sample, point.path()).exists());
}

#[test]
fn a_killed_mount_is_no_user_any_more() {
    needs!(Fuse, Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(magnet(&sample, &[])).cache(folder.path()).peer(seeder.addr).start();
    let path = mount.wait_entry(&sample.name, MINUTE);
    Reader::pread(&path, 0, 1000).success(MINUTE);
    mount.signal(Signal::SIGKILL);
    mount.exited(MINUTE);
    let all = cache(folder.path(), &["list", "--json"]).json();
    assert_eq!((all["in_use"].as_bool(), all["in_use_by"].as_u64()), (Some(false), None));
    // By the name that the kept metadata has.
    cache(folder.path(), &["remove", "small.bin"]).said(0, &["1 torrent removed"]);
    assert!(!home(&sample, folder.path()).exists());
}
