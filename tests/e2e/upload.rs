//! Others fetch from us.

use std::time::Duration;

use crate::common::{Leecher, Mount, Sample, Seeder, magnet};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);

/// A mount that has all of a sample, without its seeder, and the address it listens at.
fn complete(sample: &Sample) -> (Mount, std::net::SocketAddr) {
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let seeder = Seeder::start(sample);
    let mount = Mount::sample(sample).listen(addr.to_string()).peer(seeder.addr).start();
    mount.check_sums(sample);
    (mount, addr)
}

#[test]
fn libtorrent_fetches_everything_from_a_mount() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let (mount, addr) = complete(&sample);
    let save = tempfile::tempdir().expect("a folder");
    Leecher::start(&sample, save.path(), addr).success(MINUTE * 2);
    sample.check_in(save.path());
    mount.stop();
}

#[test]
fn libtorrent_fetches_the_metadata_from_a_mount() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let (mount, addr) = complete(&sample);
    let save = tempfile::tempdir().expect("a folder");
    Leecher::from(&magnet(&sample, &[]), save.path(), addr).success(MINUTE * 2);
    sample.check_in(save.path());
    mount.stop();
}

#[test]
fn a_peer_that_has_everything_sends_each_piece_once() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let mut seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    mount.check_sums(&sample);
    let sent = seeder.uploaded();
    assert!(sent >= sample.total && sent < sample.total * 11 / 10, "{sent} bytes for {}", sample.total);
    mount.stop();
}

#[test]
fn a_mount_fetches_from_a_mount() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let (first, addr) = complete(&sample);
    let mut second = Mount::of(magnet(&sample, &[])).peer(addr).start();
    second.wait_entry(&sample.name, MINUTE);
    second.check_sums(&sample);
    second.stop();
    first.stop();
}
