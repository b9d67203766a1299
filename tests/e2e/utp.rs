//! Peers over uTP: libtorrent that has nothing else, in both directions; who is never reached so; who gets no answer.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::{Leecher, Mount, Sample, Seeder, ran, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);

/// How many of the mount's peers are connected, and how many of those over uTP; and whether it speaks that at all.
fn peers(mount: &Mount) -> (u64, u64, bool) {
    let point = mount.point().display().to_string();
    let status = ran(["status", &point, "--json"]).json();
    let torrent = &status["torrents"][0];
    let number = |name: &str| torrent[name].as_u64().expect("a number");
    (number("peers"), number("utp"), status["utp"].as_bool().expect("yes or no"))
}

/// A first packet of uTP, and whether an answer to it is one.
const SYN: [u8; 20] = [0x41, 0, 0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0];

fn is_answer(packet: &[u8]) -> bool {
    packet.len() >= 20 && packet[0] == 0x21 && packet[2..4] == SYN[2..4]
}

/// A UDP socket that waits for what comes.
fn socket(ip: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).expect("a socket");
    socket.set_read_timeout(Some(MINUTE)).expect("a limit");
    socket
}

#[test]
fn libtorrent_without_tcp_seeds() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for (theirs, ours, policy) in [
        ("127.0.0.2:0", "127.0.0.1:0", "off"),
        ("127.0.0.2:0", "127.0.0.1:0", "prefer"),
        ("127.0.0.2:0", "127.0.0.1:0", "require"),
        ("[::1]:0", "[::1]:0", "off"),
    ] {
        let seeder = Seeder::with(&sample, theirs, &["--no-tcp"]);
        let encryption = ["--encryption", policy];
        let mount = Mount::sample(&sample).listen(ours).peer(seeder.addr).args(&encryption).utp().start();
        mount.check_sums(&sample);
        assert_eq!(peers(&mount), (1, 1, true), "{theirs} with {policy}");
        mount.stop();
    }
}

#[test]
fn libtorrent_without_tcp_fetches() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for (theirs, ours) in [("127.0.0.2:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let seeder = Seeder::with(&sample, theirs, &["--no-utp"]);
        let addr: SocketAddr = format!("{ours}:{}", free_port()).parse().expect("an address");
        let mount = Mount::sample(&sample).listen(addr.to_string()).peer(seeder.addr).utp().start();
        mount.check_sums(&sample);
        assert_eq!(peers(&mount), (1, 0, true), "TCP is there, and tried first");
        let save = tempfile::tempdir().expect("a folder");
        Leecher::over_utp(&sample, save.path(), addr).success(MINUTE * 2);
        sample.check_in(save.path());
        mount.stop();
    }
}

#[test]
fn without_it_nobody_is_reached_over_it_and_nobody_answered() {
    needs!(Fuse);
    let sample = Sample::small();
    // TCP is refused there.
    let peer = socket(Ipv4Addr::LOCALHOST);
    let at = peer.local_addr().expect("bound");
    let port = free_port();
    let mount = |mount: crate::common::MountBuilder| {
        mount.listen(format!("127.0.0.1:{port}")).peer(at).log("torrentfs=debug").start()
    };
    let without = mount(Mount::sample(&sample));
    wait_until("two tries", MINUTE, || without.log().matches("unreachable").count() >= 2);
    assert!(!peers(&without).2);
    let stranger = socket(Ipv4Addr::LOCALHOST);
    stranger.connect(("127.0.0.1", port)).expect("an address");
    stranger.send(&SYN).expect("sent");
    assert!(stranger.recv(&mut [0; 64]).is_err(), "nobody is there");
    without.stop();
    peer.set_nonblocking(true).expect("a socket");
    assert!(peer.recv(&mut [0; 64]).is_err(), "nothing came over UDP");
    peer.set_nonblocking(false).expect("a socket");
    // And with it, that is what comes.
    let with = mount(Mount::sample(&sample).utp());
    let mut packet = [0; 64];
    let (len, from) = peer.recv_from(&mut packet).expect("a packet");
    assert_eq!((len, packet[0], from.port()), (20, 0x41, port), "of the port where it listens");
    with.stop();
}

#[test]
fn who_is_filtered_gets_no_answer_over_utp() {
    needs!(Fuse);
    let sample = Sample::small();
    let folder = tempfile::tempdir().expect("a folder");
    let filter = folder.path().join("filter");
    std::fs::write(&filter, "127.0.0.9\n").expect("a list");
    let port = free_port();
    let mount = Mount::sample(&sample)
        .listen(format!("127.0.0.1:{port}"))
        .arg("--ip-filter")
        .arg(&filter)
        .utp()
        .start();
    let filtered = socket(Ipv4Addr::new(127, 0, 0, 9));
    let other = socket(Ipv4Addr::new(127, 0, 0, 8));
    for socket in [&filtered, &other] {
        socket.send_to(&SYN, ("127.0.0.1", port)).expect("sent");
    }
    let mut packet = [0; 64];
    let len = other.recv(&mut packet).expect("an answer");
    assert!(is_answer(&packet[..len]));
    // It was asked first.
    filtered.set_nonblocking(true).expect("a socket");
    assert!(filtered.recv(&mut packet).is_err());
    mount.stop();
}
