//! The DHT: mounts find each other through a network that is theirs alone, over IPv4 and IPv6, and libtorrent finds them
//! there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::{Leecher, Mount, Sample, Seeder, magnet};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);

/// Mounts of which one began the network and the other has all of a sample, and the first one's node.
fn network(sample: &Sample, ip: IpAddr) -> ([Mount; 2], SocketAddr) {
    let [entry, at] = [(); 2].map(|()| SocketAddr::new(ip, free_port()));
    let first = Mount::sample(&Sample::tree()).listen(entry.to_string()).own_dht().start();
    let seeder = Seeder::with(sample, &SocketAddr::new(ip, 0).to_string(), &[]);
    let seed = Mount::sample(sample).listen(at.to_string()).dht(entry).peer(seeder.addr).start();
    seed.check_sums(sample);
    ([first, seed], entry)
}

fn a_magnet_is_found(ip: IpAddr) {
    let sample = Sample::small();
    let (mounts, entry) = network(&sample, ip);
    let listen = SocketAddr::new(ip, 0).to_string();
    let mut mount = Mount::of(magnet(&sample, &[])).listen(listen).dht(entry).start();
    mount.wait_entry(&sample.name, MINUTE * 2);
    eprintln!("from the start to the metadata, through a DHT of mounts: {:?}", mount.age());
    mount.check_sums(&sample);
    mount.stop();
    for mount in mounts {
        mount.stop();
    }
}

#[test]
fn a_magnet_through_a_dht_of_mounts() {
    needs!(Fuse, Libtorrent);
    a_magnet_is_found(Ipv4Addr::LOCALHOST.into());
}

#[test]
fn a_magnet_through_a_dht_of_mounts_over_ipv6() {
    needs!(Fuse, Libtorrent);
    let ip = Ipv6Addr::LOCALHOST;
    if UdpSocket::bind((ip, 0)).is_err() {
        eprintln!("skipped: no IPv6 on loopback");
        return;
    }
    a_magnet_is_found(ip.into());
}

#[test]
fn libtorrent_finds_a_mount_through_a_dht_of_mounts() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let (mounts, entry) = network(&sample, Ipv4Addr::LOCALHOST.into());
    let save = tempfile::tempdir().expect("a folder");
    Leecher::through_dht(&magnet(&sample, &[]), save.path(), entry).success(MINUTE * 2);
    sample.check_in(save.path());
    for mount in mounts {
        mount.stop();
    }
}
