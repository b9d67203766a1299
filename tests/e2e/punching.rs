//! Two peers at home, each behind a router that lets nobody in: neither can be dialled, and a third in the world introduces
//! them (BEP 55).

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{Homes, Host, Mount, MountBuilder, Sample, Seeder};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

#[test]
fn two_at_home_are_introduced_by_a_third() {
    needs!(Fuse, Libtorrent, Netns, Nft);
    let sample = Sample::folder("pair", &[("one.bin", MIB), ("two.bin", MIB)], MIB / 4);
    let kept = tempfile::tempdir().expect("a folder");
    // One of them has one of the two files: who has all has nobody to dial.
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).cache(kept.path()).start();
    let content = std::fs::read(mount.path("pair/one.bin")).expect("it is read");
    mount.stop();
    drop(seeder);

    let homes = Homes::new();
    let on = |host: &Host, port: u16| -> MountBuilder {
        Mount::sample(&sample).inside(host).listen(format!("0.0.0.0:{port}")).utp().log("torrentfs=debug")
    };
    let third = on(&homes.world, 7000).start();
    let by = |n: usize| SocketAddr::from((homes.world_ips[n], 7000));
    // It has just been told of somebody when the other comes, so it isn't told of that one for a minute. Both would dial each
    // other otherwise, and need nobody for it.
    let somebody = on(&homes.world, 7003).arg("--no-pex").peer(by(0)).start();
    let has = on(&homes.homes[0], 7001).peer(by(0)).cache(kept.path()).start();
    has.wait_log(&["connected", "5.5.1.1:7003"], MINUTE);
    let wants = on(&homes.homes[1], 7002).peer(by(1)).start();
    assert_eq!(std::fs::read(wants.path("pair/one.bin")).expect("it is read"), content);
    let log = wants.log();
    let line = |words: [&str; 2]| {
        let mut lines = log.lines();
        lines
            .position(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("{words:?}"))
    };
    let (refused, let_in) =
        (line(["5.5.1.2:7001", "unreachable"]), line(["connected peer=5.5.1.2:7001", "Utp"]));
    assert!(refused < let_in);
    for mount in [wants, has, somebody, third] {
        mount.stop();
    }
}
