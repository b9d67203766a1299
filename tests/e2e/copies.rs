//! What ordinary tools make of a file that is half here (rows F4, F6).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Proc, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// A mount whose one file is half here, and whose last piece comes only when the peer is told so.
fn half_fetched(sample: &Sample) -> (ScriptedPeer, Mount) {
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let last = sample.pieces as u32 - 1;
    peer.hold(last..last + 1);
    let mount = Mount::sample(sample).peer(peer.addr()).start();
    let first_half = (sample.total / 2).to_string();
    Proc::start("head", ["-c".as_ref(), first_half.as_ref(), mount.path(&sample.name).as_os_str()])
        .success(MINUTE);
    (peer, mount)
}

/// Runs a command that copies the mounted file (`$1`) to `$2`, and compares the copy with the source.
fn copies_right(script: &str) {
    let sample = Sample::small();
    let (peer, mount) = half_fetched(&sample);
    let save = tempfile::tempdir().expect("a folder");
    let copy = save.path().join("copy");
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).arg(mount.path(&sample.name)).arg(&copy);
    let mut process = Proc::spawn(command);
    let last = sample.pieces as u32 - 1;
    wait_until("the copy to need the last piece", MINUTE, || {
        assert!(process.is_running(), "\"{script}\" ended without the last piece: {}", process.output());
        peer.asked_for(last)
    });
    peer.release();
    process.success(MINUTE);
    same(&copy, &sample.source());
    mount.stop();
}

fn same(one: &Path, other: &Path) {
    Proc::start("cmp", [one, other]).success(MINUTE);
}

#[test]
fn f6_cp_of_a_half_fetched_file() {
    needs!(Fuse, Libtorrent);
    copies_right("cp \"$1\" \"$2\"");
}

#[test]
fn f6_cp_sparse_of_a_half_fetched_file() {
    needs!(Fuse, Libtorrent);
    copies_right("cp --sparse=always \"$1\" \"$2\"");
}

#[test]
fn f6_tar_sparse_of_a_half_fetched_file() {
    needs!(Fuse, Libtorrent);
    copies_right("tar -S -cf - -C \"${1%/*}\" \"${1##*/}\" | tar -xOf - > \"$2\"");
}

#[test]
fn f6_rsync_sparse_of_a_half_fetched_file() {
    needs!(Fuse, Libtorrent);
    if !crate::common::has_tool("rsync") {
        return crate::common::skip("no rsync (Debian: the same)");
    }
    copies_right("rsync -S \"$1\" \"$2\"");
}

#[test]
fn f6_qemu_img_convert_of_a_half_fetched_file() {
    needs!(Fuse, Libtorrent);
    if !crate::common::has_tool("qemu-img") {
        return crate::common::skip("no qemu-img (Debian: qemu-utils)");
    }
    copies_right("qemu-img convert -f raw -O raw \"$1\" \"$2\"");
}

#[test]
fn f4_blocks_are_honest_and_reads_stay_in_their_file() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let kib = |what: &Path| {
        let output = Proc::start("du", ["-s".as_ref(), "-k".as_ref(), what.as_os_str()]).success(MINUTE);
        output.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
    };
    let root = mount.path(&sample.name);
    let before = kib(&root);
    assert!(before > 0, "a file that isn't empty has at least one block");
    assert!(before < sample.total / 1024 / 2, "blocks count what is here: {before} KiB");
    for (path, size) in &sample.files {
        let tail = |path: &Path| {
            Proc::start("tail", ["-c".as_ref(), "100".as_ref(), path.as_os_str()]).success(MINUTE)
        };
        if *size < 20_000 {
            assert!(tail(&mount.path(path)) == tail(&sample.data.join(path)), "the tail of {path}");
        }
    }
    for (path, _) in &sample.files {
        let got = std::fs::read(mount.path(path)).expect("reads");
        assert!(got == std::fs::read(sample.data.join(path)).expect("the source"), "{path}");
    }
    let after = kib(&root);
    assert!(after >= sample.total / 1024, "everything is here, and du says {after} KiB");
    mount.stop();
}
