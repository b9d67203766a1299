//! No peer at all: everything but reading answers at once, reads wait, and end in one of the ways they
//! should.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, Seeder, forget_pages, home, ran, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// What lists or stats answers within 100 ms; five times that, for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A port of loopback that nobody listens at.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

fn timed<T>(what: &str, limit: Duration, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    assert!(start.elapsed() < limit, "{what} took {:?}", start.elapsed());
    result
}

#[test]
fn listing_answers_at_once_and_reads_end_when_a_seeder_appears() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::tree();
    let port = free_port();
    let mount = Mount::sample(&sample).arg("--peer").arg(format!("127.0.0.2:{port}")).start();
    let root = mount.path(&sample.name);
    let listing =
        timed("ls -lR", AT_ONCE * 4, || Command::new("ls").arg("-lR").arg(&root).output().expect("ls runs"));
    assert!(listing.status.success(), "{listing:?}");
    let large = root.join("large/0.bin");
    assert_eq!(timed("stat", AT_ONCE, || large.metadata()).expect("stat").len(), 1_500_000);
    assert!(large.metadata().expect("stat").blocks() >= 1, "no hole is reported");

    let mut readers: Vec<_> =
        (0..4).map(|number| Proc::start("sha256sum", [root.join(format!("large/{number}.bin"))])).collect();
    readers.iter_mut().for_each(Proc::wait_parked);
    timed("stat beside waiting reads", AT_ONCE, || large.metadata()).expect("stat");
    timed("an empty file", AT_ONCE, || std::fs::read(root.join("empty ünïcode"))).expect("reads");

    let _seeder = Seeder::with(&sample, &format!("127.0.0.2:{port}"), &[]);
    for (number, reader) in readers.iter_mut().enumerate() {
        let source = sample.source().join(format!("large/{number}.bin"));
        let expected = Proc::start("sha256sum", [source]).success(MINUTE);
        let got = reader.success(MINUTE);
        assert_eq!(got.split(' ').next(), expected.split(' ').next());
    }
    mount.stop();
}

#[test]
fn the_state_is_shown_in_attributes() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let port = free_port();
    let mount = Mount::sample(&sample).arg("--peer").arg(format!("127.0.0.2:{port}")).start();
    let path = mount.path(&sample.name);
    assert_eq!(mount.xattr(&path, "infohash"), sample.v1);
    assert_eq!(mount.xattr(&path, "state").as_deref(), Some("idle"));
    assert_eq!(mount.xattr(&path, "progress"), Some(format!("0/{}", sample.total)));
    assert_eq!(mount.xattr(&path, "error"), None);
    let _seeder = Seeder::with(&sample, &format!("127.0.0.2:{port}"), &[]);
    Proc::start("cat", [&path]).finish(MINUTE);
    assert_eq!(mount.xattr(&path, "state").as_deref(), Some("complete"));
    assert_eq!(mount.xattr(&path, "progress"), Some(format!("{0}/{0}", sample.total)));
    assert_eq!(mount.xattr(&path, "ranges"), Some(format!("0-{}", sample.total)));
    mount.stop();
}

/// Waits until the state of what is mounted there is this, as an attribute and in `status`.
fn wait_state(mount: &Mount, path: &Path, state: &str) {
    let point = mount.point().to_str().expect("UTF-8");
    wait_until(&format!("the state {state}"), MINUTE, || {
        mount.xattr(path, "state").as_deref() == Some(state)
            && ran(["status", "--json", point]).json()["torrents"][0]["state"] == state
    });
}

#[test]
fn the_state_says_when_blocks_come_and_when_they_do_not() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(0..sample.pieces as u32);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    wait_state(&mount, &path, "idle");
    let start = Instant::now();
    let mut reader = Reader::pread(&path, 4 * sample.piece_length, 4096);
    // Blocks were asked for, and nobody can know yet that they won't come.
    wait_state(&mount, &path, "downloading");
    wait_state(&mount, &path, "stalled");
    assert!(start.elapsed() >= Duration::from_secs(10), "too early: {:?}", start.elapsed());
    let point = mount.point().to_str().expect("UTF-8");
    ran(["status", point]).said(0, &["stalled"]);
    peer.release();
    assert!(reader.success(MINUTE).contains("read 4096"));
    wait_state(&mount, &path, "idle");
    mount.stop();
}

#[test]
fn the_state_says_that_what_is_on_the_disk_is_being_checked() {
    needs!(Fuse, Libtorrent, Attr);
    // Gigabytes of zeros that take no room, as a file of which nobody kept a record: hashing them takes seconds.
    let sample = Sample::huge();
    let cache = tempfile::tempdir().expect("a folder");
    let data = home(&sample, cache.path()).join("data");
    std::fs::create_dir_all(&data).expect("a folder");
    let file = std::fs::File::create(data.join(&sample.name)).expect("a file");
    file.set_len(sample.total).expect("its length");
    let mount = Mount::sample(&sample).cache(cache.path()).arg("--initial-check=full").start();
    wait_state(&mount, &mount.path(&sample.name), "checking");
    mount.stop();
}

#[test]
fn o3_with_the_peers_gone_what_is_here_reads_and_the_rest_says_why() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let piece = sample.piece_length;
    let here = 8 * piece;
    let peer = ScriptedPeer::start(sample.clone(), Behaviour { has: Some(0..8), ..Behaviour::default() });
    let mount = Mount::sample(&sample).peer(peer.addr()).arg("--read-timeout=1s").start();
    let path = mount.path(&sample.name);
    let point = mount.point().to_str().expect("UTF-8");
    let status = || ran(["status", "--json", point]).json()["torrents"][0].clone();
    let head = || Reader::pread(&path, 0, here as usize).success(MINUTE);
    let expected = Reader::pread(&sample.source(), 0, here as usize).success(MINUTE);
    assert_eq!(head(), expected);
    assert_eq!((mount.xattr(&path, "error"), &status()["error"]), (None, &serde_json::Value::Null));
    drop(peer);
    wait_until("the peer to be gone", MINUTE, || status()["peers"] == 0);
    let missing = || Reader::pread(&path, 12 * piece, 4096).success(MINUTE);
    assert!(missing().contains("error EIO"));
    // What is here is read from the program, not from pages that the kernel has.
    forget_pages(&path);
    assert_eq!(head(), expected);
    wait_until("the reason", MINUTE, || mount.xattr(&path, "error").is_some());
    let reason = mount.xattr(&path, "error").expect("a reason");
    assert!(reason.contains("read time-out") && reason.contains("no peer is connected"), "{reason}");
    assert_eq!(status()["error"], reason.as_str());
    assert_eq!(mount.xattr(&path, "progress"), Some(format!("{here}/{}", sample.total)));
    // It isn't the end: the next who asks learns it, too, and nothing else has become of the torrent.
    assert!(missing().contains("error EIO"));
    assert_ne!(status()["state"], "error");
    mount.stop();
}

#[test]
fn a_read_time_out_gives_eio() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).arg("--read-timeout").arg("1s").start();
    let start = Instant::now();
    let output = Reader::pread(&mount.path(&sample.name), 0, 4096).success(MINUTE);
    assert!(output.contains("error EIO"), "{output}");
    assert!(start.elapsed() >= Duration::from_millis(900), "before its time: {:?}", start.elapsed());
    // The kernel asks again page by page after an error: the second answer must not wait for another second
    // each.
    assert!(start.elapsed() < Duration::from_secs(10), "one time-out became many: {:?}", start.elapsed());
    mount.stop();
}

#[test]
fn writing_is_refused() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let file = mount.path(&sample.name);
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(result.expect_err(what).raw_os_error(), Some(libc::EROFS), "{what}");
    };
    refused("create", std::fs::File::create(mount.path("new")).map(drop));
    refused("open for writing", std::fs::File::options().write(true).open(&file).map(drop));
    refused("mkdir", std::fs::create_dir(mount.path("folder")));
    refused("unlink", std::fs::remove_file(&file));
    refused("rename", std::fs::rename(&file, mount.path("other")));
    assert!(Path::new(&file).exists());
    mount.stop();
}
