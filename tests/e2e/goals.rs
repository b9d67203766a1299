//! Seeding ends when enough was given back, and that is remembered.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::common::{Crowd, Mount, Proc, Takers, Uniform, bytes_at, ran, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// A mount of a torrent that keeps its data there and listens here, with these goals.
fn mount(torrent: &Uniform, cache: &Path, addr: SocketAddr, peers: &[SocketAddr], goals: &[&str]) -> Mount {
    let mut mount = Mount::of(&torrent.torrent).cache(cache).listen(addr.to_string());
    for peer in peers {
        mount = mount.peer(*peer);
    }
    mount.args(&["--upload-limit", "4M"]).args(goals).start()
}

/// What its status says of the torrent: bytes sent, and why seeding has ended.
fn told(mount: &Mount) -> (u64, Option<String>) {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    let torrent = &status["torrents"][0];
    (torrent["uploaded"].as_u64().expect("a number"), torrent["seeded"].as_str().map(str::to_owned))
}

#[test]
fn a_ratio_is_kept_over_runs_and_nothing_is_sent_beyond_it() {
    needs!(Fuse);
    let torrent = Uniform::new("ratio", 8, bytes_at(3, 0, MIB as usize));
    let cache = tempfile::tempdir().expect("a folder");
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let crowd = Crowd::start(&torrent, 1);
    let goals = ["--seed-ratio", "1.5"];
    let first = mount(&torrent, cache.path(), addr, crowd.addrs(), &goals);
    Proc::start("sha256sum", [first.path(&torrent.name)]).success(MINUTE);
    drop(crowd);
    assert_eq!(told(&first), (0, None));
    let takers = Takers::start(&torrent, addr, 2);
    wait_until("much of it to be sent", MINUTE, || told(&first).0 > 5 * MIB);
    first.stop();
    drop(takers);

    // It goes on where the first run was.
    let second = mount(&torrent, cache.path(), addr, &[], &goals);
    let takers = Takers::start(&torrent, addr, 2);
    wait_until("enough to be given back", MINUTE, || told(&second).1.is_some());
    let (sent, why) = told(&second);
    assert_eq!(why.as_deref(), Some("the ratio 1.5 is reached"));
    assert!(
        sent > 0 && sent < 10 * MIB,
        "with more than 5 MiB before, 12 MiB in all and what was on its way: {sent}"
    );
    let point = second.point().display().to_string();
    ran(["status", &point]).said(0, &["seeding has ended: the ratio 1.5 is reached"]);
    second.stop();
    drop(takers);

    let third = mount(&torrent, cache.path(), addr, &[], &goals);
    let takers = Takers::start(&torrent, addr, 2);
    wait_until("both to be answered", MINUTE, || takers.greeted() == 2);
    assert_eq!((told(&third), takers.received()), ((0, Some("the ratio 1.5 is reached".to_owned())), 0));
    // What is here can be read as ever.
    Proc::start("sha256sum", [third.path(&torrent.name)]).success(MINUTE);
    third.stop();
    assert!(cache.path().join(&torrent.v1).join("tally").exists());
    // The sums go with the torrent.
    let folder = cache.path().display().to_string();
    ran(["cache", "remove", "--cache-dir", &folder, &torrent.name]).said(0, &["1 torrent removed"]);
    assert!(!cache.path().join(&torrent.v1).exists());
}

#[test]
fn a_time_is_kept_over_runs() {
    needs!(Fuse);
    let torrent = Uniform::new("time", 2, bytes_at(4, 0, MIB as usize));
    let cache = tempfile::tempdir().expect("a folder");
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let crowd = Crowd::start(&torrent, 1);
    let goals = ["--seed-time", "500ms"];
    let first = mount(&torrent, cache.path(), addr, crowd.addrs(), &goals);
    assert_eq!(told(&first).1, None, "nothing is here yet");
    Proc::start("sha256sum", [first.path(&torrent.name)]).success(MINUTE);
    wait_until("the time to pass", MINUTE, || told(&first).1.is_some());
    assert_eq!(told(&first).1.as_deref(), Some("it was seeded for 0.5 s"));
    first.stop();
    drop(crowd);
    let second = mount(&torrent, cache.path(), addr, &[], &goals);
    assert_eq!(told(&second).1.as_deref(), Some("it was seeded for 0.5 s"));
    second.stop();
}
