//! `--offline-uid`: readers for whom nothing is fetched, beside one for whom it is.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, skip, torrentfs, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
/// "nobody" on every Linux.
const NOBODY: u32 = 65534;
const PIECE: u64 = 64 * KIB;

/// Another user's shell with the mounted folder as `$1`.
fn scan(script: &str, mount: &Mount, folder: &str) -> Proc {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(mount.path(folder)).uid(NOBODY).gid(NOBODY);
    Proc::spawn(command)
}

#[test]
fn a_scan_fetches_nothing_while_a_reader_works() {
    needs!(Fuse, Libtorrent);
    if !nix::unistd::geteuid().is_root() {
        return skip("to be another user takes root");
    }
    // Every file begins with a piece of its own.
    let files: &[(&str, u64)] =
        &[("a.bin", 4 * PIECE), ("b.bin", 8 * PIECE), ("d/c.bin", 8 * PIECE), ("d/e.bin", 8 * PIECE)];
    let sample = Sample::folder("offline", files, PIECE);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    // Of the file that is read, the last piece is held back: its reader works as long as the scan does.
    peer.hold(3..4);
    let mount = Mount::sample(&sample).peer(peer.addr()).arg("--offline-uid=nobody").start();
    let base = mount.point().parent().expect("its folder");
    std::fs::set_permissions(base, Permissions::from_mode(0o755)).expect("our own folder");
    let a = mount.path("offline/a.bin");
    let mut reader = Proc::start("sha256sum", [&a]);
    wait_until("the reader to wait for its last piece", MINUTE, || peer.asked_for(3));
    reader.wait_parked();

    // Listing, attributes and the rest work as ever; reading says what is the matter, at once, for each file.
    let walk = "find \"$1\" -ls && find \"$1\" -name '[bce].bin' -exec cat {} +; find \"$1\" -name '[bce].bin' -exec head -c 10 {} +";
    let said = scan(walk, &mount, "offline").finish(MINUTE).1;
    assert_eq!(said.matches("No data available").count(), 6, "{said}");
    let copy = "cp -r \"$1\" /dev/null; tar -cf - -C \"$1\" d | wc -c";
    let said = scan(copy, &mount, "offline").finish(MINUTE).1;
    assert!(said.contains("No data available"), "{said}");
    // What is here he gets, from beside a waiting reader.
    let said = scan("head -c 65536 \"$1/a.bin\" | sha256sum", &mount, "offline").success(MINUTE);
    let source = sample.source().join("a.bin");
    let mut head = vec![0; PIECE as usize];
    std::fs::File::open(&source).and_then(|file| file.read_exact_at(&mut head, 0)).expect("the source");
    let aside = tempfile::tempdir().expect("a folder");
    std::fs::write(aside.path().join("head"), &head).expect("a file");
    let expected = Proc::start("sha256sum", [aside.path().join("head")]).success(MINUTE);
    assert_eq!(said.split(' ').next(), expected.split(' ').next());

    assert!(reader.is_running(), "{}", reader.output());
    peer.release();
    let expected = Proc::start("sha256sum", [&source]).success(MINUTE);
    assert_eq!(reader.success(MINUTE).split(' ').next(), expected.split(' ').next());
    let others: Vec<_> = peer.requests().into_iter().filter(|request| request.piece >= 4).collect();
    assert!(others.is_empty(), "fetched for somebody who reads nothing: {others:?}");
    // The same file by anybody else is fetched as ever.
    let mut b = Reader::pread(&mount.path("offline/b.bin"), 0, 100);
    b.success(MINUTE);
    assert!(peer.asked_for(4));
    mount.stop();
}

#[test]
fn any_user_can_be_named_by_number() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    // Several, by number; of which we may be one.
    let us = nix::unistd::geteuid().as_raw().to_string();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample)
        .peer(peer.addr())
        .arg("--offline-uid=4242")
        .arg(format!("--offline-uid={us}"))
        .start();
    let path = mount.path(&sample.name);
    wait_until("its peer", MINUTE, || peer.connections() > 0);
    let output = Reader::pread(&path, 1 << 20, 4096).success(MINUTE);
    assert!(output.contains("error ENODATA"), "{output}");
    let output = Reader::mmap(&path).finish(MINUTE).0;
    assert!(!output.success(), "a mapping ends with SIGBUS");
    assert!(peer.requests().is_empty(), "{:?}", peer.requests());
    mount.stop();
}

#[test]
fn a_user_that_is_none_is_refused() {
    let args = ["mount", "--offline-uid", "nosuchuserhere", "x.torrent", "/nowhere"];
    let output = torrentfs(args).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("nosuchuserhere"), "{said}");
}
