//! Magnets and bare info-hashes: through a tracker among dead ones, `x.pe`, `--peer`, a private DHT.

use std::time::Duration;

use crate::common::{DeadTracker, Mount, Sample, Seeder, Tracker, magnet, ran, wait_until};
use crate::needs;
use crate::whole::check_tree;

/// The first peer is promised within 2 s; five times that, for a busy machine.
const FIRST_PEER: Duration = Duration::from_secs(2 * 5);
const MINUTE: Duration = Duration::from_secs(60);

/// A magnet with one live tracker among nine dead ones, which stand in front.
fn among_dead_trackers(url: impl Fn(&Tracker) -> String, udp: bool) {
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let tracker = Tracker::start(&[seeder.addr]);
    let dead = DeadTracker::nine();
    let mut trackers: Vec<_> = dead.iter().map(|dead| format!("tr={}", dead.url())).collect();
    trackers.push(format!("tr={}", url(&tracker)));
    let mut mount = Mount::of(magnet(&sample, &trackers)).arg("--allow-private-hosts").start();
    mount.wait_entry(&sample.name, FIRST_PEER);
    eprintln!("from the start to the metadata, one tracker of ten alive: {:?}", mount.age());
    assert!(mount.age() < FIRST_PEER, "{:?}", mount.age());
    check_tree(&mount, &sample);
    let announces = tracker.announces();
    assert_eq!(Some(&announces[0].info_hash), sample.v1.as_ref());
    assert_eq!((announces[0].event.as_str(), announces[0].udp), ("started", udp));
    assert_ne!(announces[0].port, 0);
    mount.stop();
    let last = tracker.announces().pop().expect("an announce");
    assert_eq!(last.event, "stopped", "the end is announced too");
}

#[test]
fn a_magnet_with_an_http_tracker_among_nine_dead_ones() {
    needs!(Fuse, Libtorrent);
    among_dead_trackers(Tracker::http_url, false);
}

#[test]
fn a_magnet_with_a_udp_tracker_among_nine_dead_ones() {
    needs!(Fuse, Libtorrent);
    among_dead_trackers(Tracker::udp_url, true);
}

#[test]
fn a_magnet_with_a_tracker_reads_a_large_file() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::start(&sample);
    let tracker = Tracker::start(&[seeder.addr]);
    let link = magnet(&sample, &[format!("tr={}", tracker.http_url())]);
    let mut mount = Mount::of(link).arg("--allow-private-hosts").start();
    mount.wait_entry(&sample.name, MINUTE);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_magnet_makes_us_call_nobody_in_the_local_network_unless_the_user_says_so() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let tracker = Tracker::start(&[seeder.addr]);
    for url in [tracker.http_url(), tracker.udp_url(), tracker.http_url().replace("127.0.0.1", "localhost")] {
        let link = magnet(&sample, &[format!("tr={url}")]);
        let mut mount = Mount::of(&link).arg("--peer").arg(seeder.addr.to_string()).start();
        let why = "its host has a private address; use --allow-private-hosts if that is meant";
        mount.wait_log(&[why], MINUTE);
        let status = ran(["status", "--json", mount.point().to_str().expect("UTF-8")]).json();
        assert_eq!(status["torrents"][0]["trackers"][0]["reason"], why);
        mount.wait_entry(&sample.name, MINUTE);
        mount.check_sums(&sample);
        mount.stop();
        assert_eq!(tracker.announces().len(), 0, "{url}");
    }
    // Said in each way that there is; naming the very tracker is one of them.
    let config = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(config.path(), "allow-private-hosts = true").expect("written");
    let config = config.path().to_str().expect("UTF-8");
    let url = tracker.http_url();
    for said in [["-o", "allow_private_hosts"], ["--config", config], ["--tracker", &url]] {
        let before = tracker.announces().len();
        let mut mount = Mount::of(magnet(&sample, &[format!("tr={url}")])).arg(said[0]).arg(said[1]).start();
        mount.wait_entry(&sample.name, MINUTE);
        mount.stop();
        assert!(tracker.announces().len() > before, "{said:?}");
    }
}

#[test]
fn a_tracker_of_the_command_line() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let tracker = Tracker::start(&[seeder.addr]);
    let mount = Mount::sample(&sample).arg("--tracker").arg(tracker.udp_url()).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_magnet_with_a_peer_in_it() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(magnet(&sample, &[format!("x.pe={}", seeder.addr)])).start();
    mount.wait_entry(&sample.name, MINUTE);
    check_tree(&mount, &sample);
    mount.stop();
}

#[test]
fn a_magnet_with_a_peer_of_the_command_line() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(magnet(&sample, &[])).peer(seeder.addr).start();
    mount.wait_entry(&sample.name, MINUTE);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_bare_infohash_with_a_peer_of_the_command_line() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let hash = sample.v1.clone().expect("a v1 hash");
    let mut mount = Mount::of(hash.to_uppercase()).peer(seeder.addr).start();
    mount.wait_entry(&sample.name, MINUTE);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_bare_infohash_through_a_private_dht() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::with(&sample, "127.0.0.1:0", &["--dht-nodes", "6"]);
    let node = seeder.dht.expect("a DHT");
    let mut mount = Mount::of(sample.v1.clone().expect("a v1 hash")).dht(node).start();
    mount.wait_entry(&sample.name, MINUTE);
    eprintln!("from the start to the metadata, through a DHT: {:?}", mount.age());
    check_tree(&mount, &sample);
    mount.stop();
}

#[test]
fn a_magnet_that_is_still_resolving_shows_as_a_folder() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let hash = sample.v1.clone().expect("a v1 hash");
    // Nobody listens at the peer's port until the seeder starts there.
    let port = crate::no_peer::free_port();
    let mut mount = Mount::of(magnet(&sample, &["dn=a%20name".into()]))
        .arg("--peer")
        .arg(format!("127.0.0.2:{port}"))
        .start();
    wait_until("the folder", MINUTE, || mount.names() == ["a name.resolving"]);
    let folder = mount.path("a name.resolving");
    assert_eq!(std::fs::read_dir(&folder).expect("it lists").count(), 0);
    assert_eq!(mount.xattr(&folder, "state").as_deref(), Some("resolving"));
    assert_eq!(mount.xattr(&folder, "infohash"), Some(hash));
    let _seeder = Seeder::with(&sample, &format!("127.0.0.2:{port}"), &[]);
    mount.wait_entry(&sample.name, MINUTE);
    wait_until("the folder to be gone", MINUTE, || mount.names() == [sample.name.clone()]);
    mount.check_sums(&sample);
    mount.stop();
}
