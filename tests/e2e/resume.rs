//! What was fetched once is there after a restart.

use std::time::Duration;

use crate::common::{Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, Seeder, magnet};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_second_run_fetches_nothing() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let cache = tempfile::tempdir().expect("a folder");
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).cache(cache.path()).peer(seeder.addr).start();
    mount.check_sums(&sample);
    mount.stop();
    let mount = Mount::sample(&sample).cache(cache.path()).arg("--read-timeout").arg("5s").start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_second_run_fetches_only_what_is_missing() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let cache = tempfile::tempdir().expect("a folder");
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
    let half = (sample.total / 2).to_string();
    Proc::start("head", ["-c".as_ref(), half.as_ref(), mount.path(&sample.name).as_os_str()]).success(MINUTE);
    mount.stop();
    let first: std::collections::HashSet<_> = peer.requests().iter().map(|request| request.piece).collect();
    drop(peer);

    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
    mount.check_sums(&sample);
    mount.stop();
    // Of what the reader had read; a piece of the read-ahead may have been cut off by the end.
    let read = sample.pieces as u32 / 2;
    assert!((0..read).all(|piece| first.contains(&piece)));
    let again: Vec<_> = peer.requests().into_iter().filter(|request| request.piece < read).collect();
    assert!(again.is_empty(), "fetched again: {again:?}");
}

#[test]
fn the_metadata_of_a_magnet_is_kept() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let cache = tempfile::tempdir().expect("a folder");
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(magnet(&sample, &[])).cache(cache.path()).peer(seeder.addr).start();
    mount.wait_entry(&sample.name, MINUTE);
    Reader::pread(&mount.path(&sample.name), 0, 1000).success(MINUTE);
    mount.stop();
    drop(seeder);
    let mut mount = Mount::of(magnet(&sample, &[])).cache(cache.path()).start();
    let path = mount.wait_entry(&sample.name, MINUTE);
    assert!(Reader::pread(&path, 0, 1000).success(MINUTE).contains("read 1000"));
    mount.stop();
}
