//! Several torrents in one mount, two of them with equal names.

use std::time::Duration;

use crate::common::{Mount, Sample, Seeder, magnet};
use crate::needs;

fn suffixed(sample: &Sample) -> String {
    format!("{} [{}]", sample.name, &sample.v1.as_deref().expect("a v1 hash")[..8])
}

#[test]
fn several_torrents_in_one_mount() {
    needs!(Fuse, Libtorrent);
    let samples = [Sample::tree(), Sample::small()];
    let seeders = samples.each_ref().map(Seeder::start);
    let mount = Mount::sample(&samples[0])
        .source(&samples[1].torrent)
        .peer(seeders[0].addr)
        .peer(seeders[1].addr)
        .start();
    assert_eq!(mount.names(), ["small.bin", "tree"]);
    for sample in &samples {
        mount.check_sums(sample);
    }
    mount.stop();
}

#[test]
fn equal_names_get_a_part_of_their_infohash_in_any_order() {
    needs!(Fuse, Libtorrent);
    let one = Sample::folder("same", &[("x", 70_000)], 32 << 10);
    let two = Sample::folder("same", &[("x", 90_000), ("y", 1)], 32 << 10);
    let seeders = [Seeder::start(&one), Seeder::start(&two)];
    let mut expected = vec![suffixed(&one), suffixed(&two)];
    expected.sort();
    for order in [[&one, &two], [&two, &one]] {
        let mount = Mount::sample(order[0])
            .source(&order[1].torrent)
            .peer(seeders[0].addr)
            .peer(seeders[1].addr)
            .start();
        assert_eq!(mount.names(), expected);
        for sample in [&one, &two] {
            let got = std::fs::read(mount.path(suffixed(sample)).join("x")).expect("reads");
            assert!(got == std::fs::read(sample.source().join("x")).expect("the source"));
        }
        mount.stop();
    }
}

#[test]
fn the_same_torrent_twice_is_one() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::sample(&sample).source(magnet(&sample, &[])).peer(seeder.addr).start();
    mount.wait_entry(&sample.name, Duration::from_secs(60));
    assert_eq!(mount.names(), [sample.name.as_str()]);
    mount.check_sums(&sample);
    mount.stop();
}
