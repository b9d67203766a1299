//! Encrypted connections to peers, against libtorrent in both directions and against peers that have none.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{Behaviour, Leecher, Mount, Sample, ScriptedPeer, Seeder, ran, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);

/// How many of the mount's peers are connected, and how many of those with encryption.
fn peers(mount: &Mount) -> (u64, u64) {
    let point = mount.point().display().to_string();
    let status = ran(["status", &point, "--json"]).json();
    let torrent = &status["torrents"][0];
    (torrent["peers"].as_u64().expect("a number"), torrent["encrypted"].as_u64().expect("a number"))
}

#[test]
fn libtorrent_that_takes_encrypted_peers_alone_seeds() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for (ways, policy) in
        [("plain", "prefer"), ("rc4", "prefer"), ("rc4", "require"), ("both", "prefer"), ("both", "require")]
    {
        let seeder = Seeder::with(&sample, "127.0.0.2:0", &["--no-utp", "--encrypt", "--enc-level", ways]);
        let mount = Mount::sample(&sample).peer(seeder.addr).args(&["--encryption", policy]).start();
        mount.check_sums(&sample);
        assert_eq!(peers(&mount), (1, 1), "{ways} with {policy}");
        mount.stop();
    }
}

#[test]
fn libtorrent_that_makes_encrypted_connections_alone_fetches() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    for (ways, policy) in
        [("plain", "prefer"), ("rc4", "prefer"), ("rc4", "require"), ("both", "prefer"), ("both", "require")]
    {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mount = Mount::sample(&sample)
            .listen(addr.to_string())
            .peer(seeder.addr)
            .args(&["--encryption", policy])
            .start();
        mount.check_sums(&sample);
        let save = tempfile::tempdir().expect("a folder");
        Leecher::encrypted(&sample, save.path(), addr, ways).success(MINUTE * 2);
        sample.check_in(save.path());
        mount.stop();
    }
}

#[test]
fn a_peer_without_encryption_is_dialled_twice_once_and_never_where_it_is_required() {
    needs!(Fuse);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).args(&["--encryption", "prefer"]).start();
    mount.check_sums(&sample);
    assert_eq!((peers(&mount), peer.connections()), ((1, 0), 2));
    mount.stop();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).args(&["--encryption", "require"]).start();
    // It is tried again after a pause, and still only so.
    wait_until("two tries", MINUTE, || peer.connections() >= 2);
    assert_eq!((peers(&mount).0, peer.served()), (0, 0));
    mount.stop();
}

#[test]
fn a_mount_fetches_from_a_mount_with_everything_encrypted() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::with(&sample, "127.0.0.2:0", &["--no-utp", "--encrypt"]);
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let require = ["--encryption", "require"];
    let first = Mount::sample(&sample).listen(addr.to_string()).peer(seeder.addr).args(&require).start();
    first.check_sums(&sample);
    drop(seeder);
    let second = Mount::sample(&sample).peer(addr).args(&require).start();
    second.check_sums(&sample);
    assert_eq!(peers(&second), (1, 1));
    second.stop();
    first.stop();
}
