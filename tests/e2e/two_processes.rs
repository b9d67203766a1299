//! One cache folder belongs to one process at a time: the second says who has it, and harms nothing.

use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{Behaviour, Mount, Reader, Sample, ScriptedPeer, is_mounted, ran};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_second_says_who_has_it() {
    needs!(Fuse, Libtorrent);
    let (sample, other) = (Sample::small(), Sample::tree());
    let cache = tempfile::tempdir().expect("a folder");
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mut first = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
    Reader::pread(&first.path(&sample.name), 0, 1000).success(MINUTE);
    let owner = format!("process {}", first.pid());
    let folder = cache.path().to_str().expect("UTF-8");

    // The same torrent or another: the folder is what is one's own.
    for sample in [&sample, &other] {
        let (status, log) = Mount::sample(sample).cache(cache.path()).fail(MINUTE);
        assert_eq!(status.code(), Some(5), "{log}");
        for word in ["in use", &owner, folder, "--cache-dir"] {
            assert!(log.contains(word), "no \"{word}\" in:\n{log}");
        }
        let torrent = sample.torrent.to_str().expect("UTF-8");
        ran(["cat", "--no-dht", "--cache-dir", folder, torrent]).said(5, &["in use", &owner, "--cache-dir"]);
    }
    // Nothing of that was felt by the first.
    first.check_sums(&sample);

    // Whoever is killed holds nothing any more.
    first.signal(Signal::SIGKILL);
    first.exited(MINUTE);
    umount2(first.point(), MntFlags::MNT_DETACH).expect("a dead mount");
    let second = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).start();
    assert!(is_mounted(second.point()));
    second.check_sums(&sample);
    second.stop();
}

/// Of two that start at the same moment, one gets it.
#[test]
fn of_two_at_once_one_gets_it() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for _ in 0..5 {
        let cache = tempfile::tempdir().expect("a folder");
        let mut both = [(); 2].map(|()| Mount::sample(&sample).cache(cache.path()).launch());
        crate::common::wait_until("one to be mounted and one to have ended", MINUTE, || {
            let mounted = both.iter().filter(|mount| is_mounted(mount.point())).count();
            let refused = both.iter().filter(|mount| mount.log().contains("in use")).count();
            assert!(mounted < 2, "both have it");
            (mounted, refused) == (1, 1)
        });
        let loser = usize::from(is_mounted(both[0].point()));
        assert_eq!(both[loser].exited(MINUTE).code(), Some(5));
        both[1 - loser].signal(Signal::SIGTERM);
        both[1 - loser].clean_end(MINUTE);
    }
}
