//! The tests' own peers, shown against libtorrent: a test that fails should not leave its tools in doubt.

use std::time::Duration;

use crate::common::{Behaviour, Leecher, Sample, ScriptedPeer, Seeder, bytes_at};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn content_is_a_function_of_its_offset() {
    let whole = bytes_at(7, 0, 1_000);
    for (offset, length) in [(0, 0), (0, 1), (1, 3), (3, 5), (7, 2), (8, 8), (13, 500), (999, 1)] {
        assert_eq!(
            bytes_at(7, offset, length),
            whole[offset as usize..offset as usize + length],
            "{offset} {length}"
        );
    }
}

#[test]
fn libtorrent_fetches_from_libtorrent() {
    needs!(Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let save = tempfile::tempdir().expect("a folder");
    Leecher::start(&sample, save.path(), seeder.addr).success(MINUTE);
    sample.check_in(save.path());
}

#[test]
fn libtorrent_fetches_from_a_scripted_peer() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(3..4);
    let save = tempfile::tempdir().expect("a folder");
    let mut leecher = Leecher::start(&sample, save.path(), peer.addr());
    crate::common::wait_until("a request for a held piece", MINUTE, || peer.asked_for(3));
    peer.release();
    leecher.success(MINUTE);
    sample.check_in(save.path());
    assert_eq!(peer.connections(), 1);
    assert!(peer.served() as u64 >= sample.total / (16 * 1024));
}
