//! `--prefetch`: what is fetched that nobody reads, and that readers come before it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Reader, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const PIECE: u64 = 64 << 10;
/// Every file begins with a piece of its own: `a` has pieces 0–3, `d/b` 4–11, `d/c` 12–19.
const FILES: &[(&str, u64)] = &[("a.bin", 4 * PIECE), ("d/b.bin", 8 * PIECE), ("d/c.bin", 8 * PIECE)];

fn sample() -> Sample {
    Sample::folder("prefetch", FILES, PIECE)
}

/// Pieces asked of a peer, sorted.
fn pieces(peer: &ScriptedPeer) -> Vec<u32> {
    let mut all: Vec<_> = peer.requests().iter().map(|request| request.piece).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Waits until a torrent or file is in this state.
fn wait_state(mount: &Mount, path: &Path, state: &str) {
    wait_until(&format!("the state {state}"), MINUTE, || {
        mount.xattr(path, "state").as_deref() == Some(state)
    });
}

fn read_a_little(path: &Path) {
    File::open(path).and_then(|mut file| file.read_exact(&mut [0; 10])).expect("reads");
}

#[test]
fn with_none_nothing_comes_that_was_not_read() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = sample();
    // Said, and not said.
    for mode in [&["--prefetch", "none"][..], &[]] {
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let mount =
            mode.iter().fold(Mount::sample(&sample).peer(peer.addr()), |mount, arg| mount.arg(arg)).start();
        read_a_little(&mount.path("prefetch/d/b.bin"));
        // Nobody wants more: with a prefetch it would go on downloading until that is done.
        wait_state(&mount, &mount.path("prefetch"), "idle");
        assert_eq!(pieces(&peer), [4]);
        mount.stop();
    }
}

#[test]
fn with_file_the_file_that_is_read_comes_whole_and_no_other() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = sample();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).arg("--prefetch=file").start();
    let (read, opened) = (mount.path("prefetch/d/b.bin"), mount.path("prefetch/d/c.bin"));
    // Who only opens one doesn't want it yet.
    let held = File::open(&opened).expect("opens");
    read_a_little(&read);
    // Its reader has gone; it comes all the same.
    wait_state(&mount, &read, "complete");
    wait_state(&mount, &mount.path("prefetch"), "idle");
    assert_eq!(pieces(&peer), (4..12).collect::<Vec<_>>());
    assert_eq!(mount.xattr(&opened, "progress"), Some(format!("0/{}", 8 * PIECE)));
    drop(held);
    mount.stop();
}

#[test]
fn with_all_everything_comes_and_stays() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = sample();
    let cache = tempfile::tempdir().expect("a folder");
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).arg("--prefetch=all").start();
    let root = mount.path("prefetch");
    wait_state(&mount, &root, "complete");
    assert_eq!(mount.xattr(&root, "progress"), Some(format!("{0}/{0}", 20 * PIECE)));
    assert_eq!(pieces(&peer), (0..20).collect::<Vec<_>>());
    mount.stop();
    drop(peer);
    // Nobody is there to fetch from.
    let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout=5s").start();
    mount.check_sums(&sample);
    mount.stop();
}

/// A read beside it goes to the head of what is asked for: it isn't preceded by more than what was on its way.
#[test]
fn a_read_comes_before_what_is_prefetched() {
    needs!(Fuse, Libtorrent);
    /// Blocks that may have been asked for and not yet seen by the peer when the read began.
    const ON_ITS_WAY: usize = 64;
    let sample = Sample::small();
    let blocks = (sample.total / (16 << 10)) as usize;
    // The whole takes four seconds.
    let behaviour = Behaviour { rate: Some(2 << 20), ..Behaviour::default() };
    let peer = ScriptedPeer::start(sample.clone(), behaviour);
    let mount = Mount::sample(&sample).peer(peer.addr()).arg("--prefetch=all").start();
    wait_until("it to have begun", MINUTE, || peer.served() > 16);
    let before = peer.requests();
    let last = |piece: &u32| before.iter().all(|request| request.piece != *piece);
    let piece = (0..sample.pieces as u32).rev().find(last).expect("a piece that wasn't asked for yet");
    let mut reader =
        Reader::pread(&mount.path(&sample.name), u64::from(piece) * sample.piece_length + 32_768, 4096);
    // It waits now; what was asked for while it started isn't counted.
    let begun = peer.requests().len();
    reader.success(MINUTE);
    assert!(peer.served() < blocks, "the read waited for everything");
    let first = peer.requests().iter().position(|request| request.piece == piece).expect("it was read");
    let went = first.saturating_sub(begun);
    assert!(went <= ON_ITS_WAY, "{went} blocks went before it");
    mount.check_sums(&sample);
    mount.stop();
}
