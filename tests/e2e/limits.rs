//! Limits on rates, kept with fifty peers in both directions, and changed while the mount runs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::{Crowd, Ended, Mount, Proc, Sample, Seeder, Takers, Uniform, bytes_at, ran, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
const PEERS: u8 = 50;
/// A limit is kept within a twentieth over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// After a change, for what was asked for before it.
const SETTLE: Duration = Duration::from_secs(4);
/// A machine that is busy elsewhere may hold us below a limit: one of so many windows has to come up to it.
const WINDOWS: usize = 3;

fn limit(mount: &Mount, more: &[&str]) -> Ended {
    let mut args = vec!["limit".to_owned(), mount.point().display().to_string()];
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    ran(args)
}

/// Payload bytes that the mount says it has received and sent.
fn moved(mount: &Mount) -> (u64, u64) {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    let number = |name: &str| status[name].as_u64().expect("a number");
    (number("downloaded"), number("uploaded"))
}

/// Panics unless what is counted by each of `counts` keeps to a rate.
#[track_caller]
fn keeps(rate: u64, counts: &[(&str, &dyn Fn() -> u64)]) {
    std::thread::sleep(SETTLE);
    for window in 1..=WINDOWS {
        let before: Vec<_> = counts.iter().map(|(_, count)| (count(), Instant::now())).collect();
        std::thread::sleep(WINDOW);
        let shares: Vec<_> = counts
            .iter()
            .zip(before)
            .map(|((_, count), (before, since))| {
                (count() - before) as f64 / since.elapsed().as_secs_f64() / rate as f64
            })
            .collect();
        for ((name, _), share) in counts.iter().zip(&shares) {
            eprintln!("{name}: {:.1} % of {} KiB/s", share * 100.0, rate >> 10);
            assert!(*share <= 1.05, "{name}: over the limit");
        }
        if shares.iter().all(|share| *share >= 0.95) {
            return;
        }
        assert!(window < WINDOWS, "never up to the limit");
    }
}

#[test]
fn fifty_seeders_together_keep_to_the_limits_as_they_change() {
    needs!(Fuse);
    let torrent = Uniform::new("limited down", 768, bytes_at(1, 0, MIB as usize));
    let crowd = Crowd::start(&torrent, PEERS);
    let mut mount = Mount::of(&torrent.torrent).args(&["--prefetch", "all", "--download-limit", "8M"]);
    for addr in crowd.addrs() {
        mount = mount.peer(*addr);
    }
    let mount = mount.start();
    wait_until("all to be connected", MINUTE, || crowd.connected() == usize::from(PEERS));
    let sent = || crowd.served();
    let received = || moved(&mount).0;
    let counts: [(&str, &dyn Fn() -> u64); 2] =
        [("what the seeders send", &sent), ("what is received", &received)];
    keeps(8 * MIB, &counts);
    limit(&mount, &["--download", "4M"]).said(0, &["all torrents", "download: 4.0 MiB/s", "no limit"]);
    keeps(4 * MIB, &counts);
    // Of two limits the lower one holds, whosever it is.
    limit(&mount, &[&torrent.name, "--download", "6M"]).said(0, &[&torrent.name, "6.0 MiB/s"]);
    limit(&mount, &["--download", "none"]).said(0, &["all torrents", "download: no limit"]);
    keeps(6 * MIB, &counts);
    limit(&mount, &[&torrent.name, "--download", "none"]).said(0, &["download: no limit"]);
    let before = (received(), Instant::now());
    wait_until("more than any limit", MINUTE, || received() > before.0 + 64 * MIB);
    assert!(before.1.elapsed() < Duration::from_secs(64 / 6), "no faster without: {:?}", before.1.elapsed());
    mount.stop();
}

#[test]
fn fifty_downloaders_together_keep_to_the_limits_as_they_change() {
    needs!(Fuse);
    let torrent = Uniform::new("limited up", 64, bytes_at(2, 0, MIB as usize));
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let crowd = Crowd::start(&torrent, 2);
    let mount = Mount::of(&torrent.torrent).listen(addr.to_string()).args(&["--upload-limit", "8M"]);
    let mount = mount.peer(crowd.addrs()[0]).peer(crowd.addrs()[1]).start();
    Proc::start("sha256sum", [mount.path(&torrent.name)]).success(MINUTE);
    drop(crowd);
    let takers = Takers::start(&torrent, addr, PEERS.into());
    wait_until("all to be answered", MINUTE, || takers.greeted() == usize::from(PEERS));
    let received = || takers.received();
    let sent = || moved(&mount).1;
    let counts: [(&str, &dyn Fn() -> u64); 2] =
        [("what the downloaders receive", &received), ("what is sent", &sent)];
    keeps(8 * MIB, &counts);
    limit(&mount, &["--upload", "3M"]).said(0, &["all torrents", "upload: 3.0 MiB/s", "no limit"]);
    keeps(3 * MIB, &counts);
    limit(&mount, &[&torrent.name, "--upload", "2M"]).said(0, &[&torrent.name, "upload: 2.0 MiB/s"]);
    keeps(2 * MIB, &counts);
    mount.stop();
}

#[test]
fn a_limit_holds_for_encrypted_peers() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::with(&sample, "127.0.0.2:0", &["--no-utp", "--encrypt", "--enc-level", "rc4"]);
    let args = ["--encryption", "require", "--prefetch", "all", "--download-limit", "2M"];
    let mount = Mount::sample(&sample).peer(seeder.addr).args(&args).start();
    wait_until("something to come", MINUTE, || moved(&mount).0 > 0);
    keeps(2 * MIB, &[("what is received", &|| moved(&mount).0)]);
    mount.stop();
}

#[test]
fn peers_of_the_local_network_are_spared_on_request() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let slow = ["--download-limit", "1K", "--upload-limit", "1K"];
    let mount = Mount::sample(&sample).peer(seeder.addr).args(&slow).arg("--unlimited-local-peers").start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn limits_are_told_and_what_makes_no_sense_is_refused() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).args(&["--download-limit", "2M"]).start();
    limit(&mount, &[]).said(0, &["all torrents", "download: 2.0 MiB/s", "upload: no limit"]);
    limit(&mount, &[&sample.name]).said(0, &[&sample.name, "download: no limit", "upload: no limit"]);
    let hash = &sample.v1.as_ref().expect("v1")[..8];
    limit(&mount, &[hash, "--upload", "1K"]).said(0, &[&sample.name, "upload: 1.0 KiB/s"]);
    // What isn't named stays.
    limit(&mount, &["--upload", "3M"]).said(0, &["download: 2.0 MiB/s", "upload: 3.0 MiB/s"]);
    limit(&mount, &["nobody"]).said(1, &["nobody", "there is no such torrent"]);
    limit(&mount, &["--upload", "fast"]).said(2, &["fast"]);
    mount.stop();
}
