//! `torrentfs verify`: what it finds, what it records, and what it takes over from other clients.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{
    Behaviour, Ended, Mount, Proc, Sample, ScriptedPeer, Seeder, fetch, home, magnet, program, ran, skip,
    torrentfs,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// "nobody" on every Linux.
const NOBODY: u32 = 65534;

/// The arguments of `torrentfs verify` on a cache folder.
fn line(cache: &Path, source: impl AsRef<OsStr>, more: &[&str]) -> Vec<OsString> {
    let fixed = [OsStr::new("verify"), OsStr::new("--cache-dir"), cache.as_os_str(), source.as_ref()];
    fixed.into_iter().chain(more.iter().map(OsStr::new)).map(OsStr::to_owned).collect()
}

fn verify(cache: &Path, source: impl AsRef<OsStr>, more: &[&str]) -> Ended {
    ran(line(cache, source, more))
}

/// Pieces that are good, wrong and missing.
fn counts(report: &serde_json::Value) -> [u64; 3] {
    ["good", "bad", "missing"].map(|what| report[what]["pieces"].as_u64().expect("a number"))
}

/// The file that holds a torrent's only file in a cache, under whichever name.
fn only_file(sample: &Sample, cache: &Path) -> PathBuf {
    let data = home(sample, cache).join("data");
    let mut files: Vec<_> =
        std::fs::read_dir(data).expect("its folder").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// Changes one byte of a file.
fn spoil(path: &Path, at: u64) {
    let mode = path.metadata().expect("a file").permissions();
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("our own file");
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[!byte[0]], at).expect("a byte");
    std::fs::set_permissions(path, mode).expect("our own file");
}

/// A folder with a copy of a sample's data, as another client leaves it.
fn downloaded(sample: &Sample) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = ["-r".as_ref(), sample.source().as_os_str(), folder.path().as_os_str()].map(OsStr::to_owned);
    Proc::start("cp", copy).success(MINUTE);
    folder
}

/// All that is below a folder: path, length, inode, mode and time of change.
fn snapshot(folder: &Path) -> Vec<(PathBuf, u64, u64, u32, i64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("it is there");
            if meta.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, meta.len(), meta.ino(), meta.mode(), meta.mtime_nsec()));
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_right_is_found_right_and_used() {
    needs!(Fuse, Libtorrent);
    let cache = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    fetch(&sample, cache.path(), None);
    // Whatever was recorded.
    std::fs::remove_file(home(&sample, cache.path()).join("resume")).expect("a record");
    let report = verify(cache.path(), &sample.torrent, &["--json"]).json();
    assert_eq!(counts(&report), [sample.pieces, 0, 0]);
    assert_eq!((report["files"].as_u64(), report["files_complete"].as_u64()), (Some(1), Some(1)));
    assert_eq!(report["size"].as_u64(), Some(sample.total));
    let file = only_file(&sample, cache.path());
    assert_eq!(file.file_name(), Some(OsStr::new("small.bin")), "it has its own name");
    assert_eq!(file.metadata().expect("a file").mode() & 0o777, 0o444);
    verify(cache.path(), &sample.torrent, &[]).said(0, &["small.bin", "100%", "1 of 1 file complete"]);
    // No peer, so what is read is what was verified.
    let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=5s").start();
    mount.check_sums(&sample);
    let process = format!("process {}", mount.pid());
    verify(cache.path(), &sample.torrent, &[]).said(5, &["in use by", &process, "--cache-dir"]);
    mount.stop();
}

#[test]
fn what_is_wrong_is_told_and_fetched_again() {
    needs!(Fuse, Libtorrent);
    let cache = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    fetch(&sample, cache.path(), None);
    spoil(&only_file(&sample, cache.path()), 3 * sample.piece_length + 5);
    spoil(&only_file(&sample, cache.path()), 7 * sample.piece_length);
    let ended = verify(cache.path(), &sample.torrent, &["--json"]).said(9, &[]);
    assert_eq!(counts(&ended.parsed()), [sample.pieces - 2, 2, 0]);
    assert_eq!(ended.parsed()["damaged"], serde_json::json!(["small.bin"]));
    let file = only_file(&sample, cache.path());
    assert_ne!(file.file_name(), Some(OsStr::new("small.bin")), "nobody is to take it for whole");
    // They are missing now, and nothing is wrong any more.
    let report = verify(cache.path(), &sample.torrent, &["--json"]).json();
    assert_eq!(counts(&report), [sample.pieces - 2, 0, 2]);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
    mount.check_sums(&sample);
    mount.stop();
    let mut pieces: Vec<_> = peer.requests().into_iter().map(|request| request.piece).collect();
    pieces.sort_unstable();
    pieces.dedup();
    assert_eq!(pieces, [3, 7], "and nothing else");
}

#[test]
fn what_is_missing_is_no_fault() {
    needs!(Libtorrent);
    let cache = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    let report = verify(cache.path(), &sample.torrent, &["--json"]).json();
    assert_eq!(counts(&report), [0, 0, sample.pieces], "of what was never here");
    fetch(&sample, cache.path(), Some(MIB));
    let report = verify(cache.path(), &sample.torrent, &["--json"]).json();
    let [good, bad, missing] = counts(&report);
    assert!((MIB / sample.piece_length..sample.pieces).contains(&good), "{report}");
    assert_eq!((bad, good + missing), (0, sample.pieces));
    verify(cache.path(), &sample.torrent, &[]).said(0, &["missing", "0 of 1 file complete"]);
}

#[test]
fn a_magnet_is_verified_if_it_is_known() {
    needs!(Fuse, Libtorrent);
    let cache = tempfile::tempdir().expect("a folder");
    let sample = Sample::small();
    let magnet = magnet(&sample, &[]);
    let key = sample.v1.clone().expect("v1");
    verify(cache.path(), &magnet, &[]).said(1, &["metadata isn't known", ".torrent"]);
    verify(cache.path(), &key, &[]).said(1, &["metadata isn't known"]);
    assert!(!home(&sample, cache.path()).exists(), "nothing is made for it");
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(&magnet).cache(cache.path()).peer(seeder.addr).start();
    let path = mount.wait_entry(&sample.name, MINUTE);
    Proc::start("cat", [&path]).success(MINUTE);
    mount.stop();
    for source in [magnet.as_str(), key.as_str()] {
        let report = verify(cache.path(), source, &["--json"]).json();
        assert_eq!(counts(&report), [sample.pieces, 0, 0], "{source}");
    }
    verify(cache.path(), "nothing.torrent", &[]).said(1, &["no such file"]);
}

#[test]
fn data_of_another_client_is_used_in_place() {
    needs!(Fuse, Libtorrent);
    for sample in [Sample::tree(), Sample::small()] {
        let cache = tempfile::tempdir().expect("a folder");
        let theirs = downloaded(&sample);
        let before = snapshot(theirs.path());
        // The folder it lies in, and the torrent's own one.
        let own =
            if sample.files.len() > 1 { theirs.path().join(&sample.name) } else { theirs.path().to_owned() };
        for folder in [theirs.path(), own.as_path()] {
            let data = folder.to_str().expect("UTF-8");
            let report = verify(cache.path(), &sample.torrent, &["--data", data, "--json"]).json();
            assert_eq!(counts(&report), [sample.pieces, 0, 0]);
            assert_eq!(report["data"]["path"].as_str(), own.to_str());
        }
        let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=5s").start();
        mount.check_sums(&sample);
        mount.stop();
        // Without the flag it is remembered where the data lies.
        let report = verify(cache.path(), &sample.torrent, &["--json"]).json();
        assert_eq!(counts(&report), [sample.pieces, 0, 0]);
        assert_eq!(report["data"]["path"].as_str(), own.to_str());
        assert_eq!(snapshot(theirs.path()), before, "not a byte of it was changed, nor a name");
        let list = ran([
            "cache".as_ref(),
            "list".as_ref(),
            "--json".as_ref(),
            "--cache-dir".as_ref(),
            cache.path().as_os_str(),
        ]);
        let torrent = &list.json()["torrents"][0];
        assert!(torrent["on_disk"].as_u64().expect("a number") < MIB, "nothing was copied: {torrent}");
        assert_eq!(torrent["data"]["path"].as_str(), own.to_str());
        let name = sample.name.as_str();
        ran([
            "cache".as_ref(),
            "remove".as_ref(),
            name.as_ref(),
            "--cache-dir".as_ref(),
            cache.path().as_os_str(),
        ])
        .said(0, &[]);
        assert!(!home(&sample, cache.path()).exists());
        assert_eq!(snapshot(theirs.path()), before, "only the record is gone");
    }
}

#[test]
fn what_is_missing_of_adopted_data_is_fetched() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for read_only in [false, true] {
        let cache = tempfile::tempdir().expect("a folder");
        let theirs = downloaded(&sample);
        let file = theirs.path().join(&sample.name);
        File::options().write(true).open(&file).and_then(|file| file.set_len(sample.total / 2)).expect("cut");
        spoil(&file, 2 * sample.piece_length);
        let before = snapshot(theirs.path());
        let mut flags = vec!["--data", theirs.path().to_str().expect("UTF-8"), "--json"];
        flags.extend(read_only.then_some("--read-only"));
        let ended = verify(cache.path(), &sample.torrent, &flags).said(9, &[]);
        let half = sample.pieces / 2;
        assert_eq!(counts(&ended.parsed()), [half - 1, 1, half]);
        assert_eq!(ended.parsed()["data"]["read_only"].as_bool(), Some(read_only));
        assert_eq!(snapshot(theirs.path()), before, "verifying changes nothing");
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let mount = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
        mount.check_sums(&sample);
        mount.stop();
        let mut pieces: Vec<_> =
            peer.requests().into_iter().map(|request| u64::from(request.piece)).collect();
        pieces.sort_unstable();
        pieces.dedup();
        assert_eq!(pieces, [2].into_iter().chain(half..sample.pieces).collect::<Vec<_>>());
        if read_only {
            assert_eq!(snapshot(theirs.path()), before, "read only");
        } else {
            sample.check_in(theirs.path());
        }
        let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=5s").start();
        mount.check_sums(&sample);
        mount.stop();
    }
}

#[test]
fn data_that_may_not_be_written_has_to_be_read_only() {
    needs!(Libtorrent);
    if !nix::unistd::geteuid().is_root() {
        return skip("to be another user takes root");
    }
    let sample = Sample::small();
    let cache = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::chown(cache.path(), Some(NOBODY), Some(NOBODY)).expect("our own folder");
    let theirs = downloaded(&sample);
    std::fs::set_permissions(theirs.path(), Permissions::from_mode(0o755)).expect("our own folder");
    let file = theirs.path().join(&sample.name);
    let torrent = theirs.path().join("x.torrent");
    std::fs::copy(&sample.torrent, &torrent).expect("a copy");
    for path in [&file, &torrent] {
        std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("our own file");
    }
    let data = theirs.path().to_str().expect("UTF-8");
    let as_nobody = |more: &[&str]| {
        let mut command = Command::new(program());
        let output = command
            .args(line(cache.path(), &torrent, more))
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    };
    as_nobody(&["--data", data]).said(1, &["--read-only", "permission"]);
    let report = as_nobody(&["--data", data, "--read-only", "--json"]).json();
    assert_eq!(counts(&report), [sample.pieces, 0, 0]);
}

#[test]
fn folders_that_cannot_be_it_are_refused() {
    needs!(Libtorrent);
    let sample = Sample::tree();
    let cache = tempfile::tempdir().expect("a folder");
    let empty = tempfile::tempdir().expect("a folder");
    let missing = empty.path().join("missing");
    let file = empty.path().join("file");
    std::fs::write(&file, b"").expect("a file");
    for (folder, words) in [
        (empty.path(), "holds none of"),
        (missing.as_path(), "no such folder"),
        (file.as_path(), "isn't a folder"),
    ] {
        let data = folder.to_str().expect("UTF-8");
        verify(cache.path(), &sample.torrent, &["--data", data]).said(1, &[data, words]);
    }
    assert!(!home(&sample, cache.path()).join("resume").exists(), "nothing was recorded");
}

#[test]
fn it_can_be_stopped_and_keeps_what_it_found() {
    needs!(Libtorrent);
    let sample = Sample::huge();
    let cache = tempfile::tempdir().expect("a folder");
    let data = sample.data.to_str().expect("UTF-8");
    let mut command =
        torrentfs(line(cache.path(), &sample.torrent, &["--data", data, "--read-only", "--json"]));
    let mut running = Proc::spawn({
        command.env("TORRENTFS_LOG", "info");
        command
    });
    running.wait_for("checked", MINUTE);
    running.signal(Signal::SIGINT);
    let (status, output) = running.finish(MINUTE);
    assert_eq!(status.code(), Some(130), "{output}");
    let report = output
        .lines()
        .find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .expect("a report");
    let [good, bad, missing] = counts(&report);
    let unchecked = report["unchecked"]["pieces"].as_u64().expect("a number");
    assert!(good > 0 && unchecked > 0, "{report}");
    assert_eq!((bad, missing, good + unchecked), (0, 0, sample.pieces));
    let list = ran([
        "cache".as_ref(),
        "list".as_ref(),
        "--json".as_ref(),
        "--cache-dir".as_ref(),
        cache.path().as_os_str(),
    ]);
    assert!(
        list.json()["torrents"][0]["here"].as_u64() >= Some(good * sample.piece_length - sample.piece_length)
    );
}
