//! nginx beside libtorrent seeders, and nginx going down and coming back while it is read from.

use std::time::{Duration, Instant};

use super::nginx::Nginx;
use super::server::{Act, Server};
use super::{MINUTE, Outcome, Seeded, read, wait_reason, webseed};
use crate::common::{Mount, Proc, Sample, Seeder, wait_until};
use crate::needs;

const MIB: u64 = 1 << 20;

/// How much of the only file of a mount is here.
fn here(mount: &Mount, sample: &Sample) -> u64 {
    let progress = mount.xattr(&mount.path(&sample.name), "progress").expect("its progress");
    progress.split('/').next().and_then(|here| here.parse().ok()).expect("a number")
}

#[test]
fn nginx_and_two_seeders_share_the_work() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::file("shared.bin", 64 * MIB, 256 << 10);
    // 8 MiB a second each, so that nobody is so fast that the others come too late.
    let nginx = Nginx::with(&sample.data, "limit_rate 2m;");
    let mut seeders = [Seeder::with(&sample, "127.0.0.2:0", &[]), Seeder::with(&sample, "127.0.0.3:0", &[])];
    seeders.iter_mut().for_each(|seeder| seeder.limit(8 * MIB));
    let url = nginx.url("");
    let seeded = Seeded::by(&sample, &[&url]);
    let mount = Mount::of(&seeded.torrent).peer(seeders[0].addr).peer(seeders[1].addr).start();
    mount.check_sums(&sample);
    let from_nginx = webseed(&mount, &url)["downloaded"].as_u64().expect("bytes");
    let from_peers = seeders.each_mut().map(Seeder::uploaded);
    eprintln!("of {} bytes: {from_nginx} from nginx, {from_peers:?} from libtorrent", sample.total);
    let all = from_nginx + from_peers.iter().sum::<u64>();
    assert!(from_nginx >= sample.total / 10, "nginx gave {from_nginx}");
    assert!(from_peers.iter().all(|from| *from >= sample.total / 20), "the seeders gave {from_peers:?}");
    assert!(all <= sample.total * 5 / 4, "{all} bytes came for {}", sample.total);
    mount.stop();
}

#[test]
fn a_seeder_that_stalls_is_made_up_for_by_nginx() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::small();
    let nginx = Nginx::start(&sample.data);
    let mut seeder = Seeder::start(&sample);
    seeder.limit(1);
    let seeded = Seeded::by(&sample, &[&nginx.url("")]);
    let mount = Mount::of(&seeded.torrent).peer(seeder.addr).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_webseed_that_hangs_is_made_up_for_by_a_seeder() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let url = server.serve("hung", &sample, |_| Act::Hang);
    let seeder = Seeder::start(&sample);
    let seeded = Seeded::by(&sample, &[&url]);
    let mount = Mount::of(&seeded.torrent).peer(seeder.addr).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn nginx_goes_down_and_comes_back_in_mid_read() {
    needs!(Fuse, Libtorrent, Nginx, Attr);
    let sample = Sample::file("down.bin", 48 * MIB, 256 << 10);
    let mut nginx = Nginx::with(&sample.data, "limit_rate 2m;");
    let url = nginx.url("");
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).start();
    let mut reader = Proc::start("sha256sum", [mount.path(&sample.name)]);
    for part in [1, 2] {
        wait_until("some of it", MINUTE, || here(&mount, &sample) >= part * sample.total / 4);
        nginx.down();
        let told = wait_reason(&mount, &url, &["reached"]);
        assert_eq!(told["state"], "waiting", "{told}");
        assert!(reader.is_running(), "{}", reader.output());
        let (before, since) = (told["requests"].as_u64().expect("a number"), Instant::now());
        // Long enough for several tries, were it to try without pause.
        wait_until("half a second", MINUTE, || since.elapsed() > Duration::from_millis(500));
        let tries = webseed(&mount, &url)["requests"].as_u64().expect("a number") - before;
        assert!(tries <= 8, "{tries} tries in half a second");
        nginx.up();
    }
    let got = reader.success(MINUTE * 3);
    let truth = Proc::start("sha256sum", [sample.source()]).success(MINUTE);
    assert_eq!(got.split(' ').next(), truth.split(' ').next());
    assert!(webseed(&mount, &url)["reason"].is_null(), "it works again");
    mount.stop();
}

#[test]
fn a_read_fails_at_its_time_out_while_nginx_is_down_and_works_when_it_is_back() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::small();
    let mut nginx = Nginx::start(&sample.data);
    let url = nginx.url("");
    let seeded = Seeded::by(&sample, &[&url]);
    let mount = Mount::of(&seeded.torrent).args(&["--read-timeout", "2s"]).start();
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Right);
    nginx.down();
    assert_eq!(read(&mount, &sample, &sample.name, 4 * MIB, 4096), Outcome::Eio);
    assert!(webseed(&mount, &url)["reason"].is_string());
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Right, "what is here");
    nginx.up();
    wait_until("the read to work", MINUTE, || {
        read(&mount, &sample, &sample.name, 4 * MIB, 4096) == Outcome::Right
    });
    mount.stop();
}
