//! The address of this machine changes while something is read.

use std::time::{Duration, Instant};

use crate::common::{Line, Mount, Sample, Seeder, ran, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn downloaded(mount: &Mount) -> u64 {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    status["torrents"][0]["downloaded"].as_u64().expect("a number")
}

#[test]
fn a_read_goes_on_when_our_address_changes() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::file("moving.bin", 24 * MIB, MIB / 4);
    let mut line = Line::new();
    let mut seeder = Seeder::on(&line.far, &sample, &["--no-utp"]);
    seeder.limit(2 * MIB);
    let mount = Mount::sample(&sample).inside(&line.near).listen("0.0.0.0:0").peer(seeder.addr).start();
    let path = mount.path(&sample.name);
    let reader = std::thread::spawn(move || std::fs::read(path));
    wait_until("the read to be under way", MINUTE, || downloaded(&mount) > 2 * MIB);
    let before = downloaded(&mount);
    let began = Instant::now();
    line.near.renumber([10, 213, 0, 77].into());
    mount.wait_log(&["addresses of this machine have changed"], MINUTE);
    // Left to itself the old connection would hang for a minute and more.
    wait_until("more of it", MINUTE / 3, || downloaded(&mount) > before + 4 * MIB);
    assert!(began.elapsed() < MINUTE / 2, "{:?}", began.elapsed());
    let read = reader.join().expect("no panic").expect("the read goes on");
    assert_eq!(read.len() as u64, 24 * MIB);
    mount.check_sums(&sample);
    mount.stop();
}
