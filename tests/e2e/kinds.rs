//! v2 and hybrid torrents (BEP 52) from their `.torrent` files.

use crate::common::{Mount, Sample, Seeder, TorrentKind};
use crate::needs;
use crate::whole::check_tree;

fn reads_right(kind: TorrentKind) {
    let sample = Sample::tree_of(kind);
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    check_tree(&mount, &sample);
    mount.stop();
}

#[test]
fn a_v2_torrent_reads_right() {
    needs!(Fuse, Libtorrent);
    reads_right(TorrentKind::V2);
}

#[test]
fn a_hybrid_torrent_reads_right() {
    needs!(Fuse, Libtorrent);
    reads_right(TorrentKind::Hybrid);
}

#[test]
fn a_magnet_of_v2_alone_says_why_not() {
    needs!(Fuse);
    let magnet = format!("magnet:?xt=urn:btmh:1220{}", "ab".repeat(32));
    let (status, log) = Mount::of(magnet).fail(std::time::Duration::from_secs(30));
    assert!(!status.success(), "{log}");
    assert!(log.contains("v2"), "{log}");
}
