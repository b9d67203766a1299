//! The IP filter: peers whose addresses stand in the user's list.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::common::{Behaviour, Mount, Sample, ScriptedPeer, Seeder, Tracker, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);

/// A list in a file.
fn list(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list");
    std::fs::write(&path, text).expect("room on the disk");
    let path = path.display().to_string();
    (folder, path)
}

fn peer(sample: &Sample, last: u8) -> ScriptedPeer {
    let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 5, last));
    ScriptedPeer::start(sample.clone(), Behaviour { ip, ..Behaviour::default() })
}

#[test]
fn peers_in_a_list_of_any_form_are_never_dialled_whoever_names_them() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for (form, text) in [
        (
            "eMule",
            "127.0.5.2 - 127.0.5.3 , 000 , Some Company, and more\n127.0.5.4 - 127.0.5.4 , 200 , allowed\n",
        ),
        ("PeerGuardian", "Some Company: of Some Place:127.0.5.2-127.0.5.3\n"),
        ("networks", "# two addresses\n127.0.5.2/31\n2001:db8::/32\n"),
    ] {
        let (_folder, list) = list(text);
        let (first, second, third) = (peer(&sample, 2), peer(&sample, 3), peer(&sample, 4));
        // The one by the user, the other by a tracker; the tracker names one that isn't in the list, too.
        let tracker = Tracker::start(&[second.addr(), third.addr()]);
        let mount = Mount::sample(&sample).peer(first.addr()).args(&["--tracker", &tracker.http_url()]);
        let mount = mount.args(&["--ip-filter", &list]).start();
        mount.check_sums(&sample);
        assert_eq!((first.connections(), second.connections()), (0, 0), "{form}");
        mount.stop();
    }
}

/// What a mount answers a peer that comes from an address.
fn answered(sample: &Sample, from: Ipv4Addr, at: SocketAddr) -> Vec<u8> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of this machine");
    socket.connect(&at.into()).expect("the mount listens");
    let mut stream = TcpStream::from(socket);
    let hash = sample.v1.as_deref().expect("v1");
    let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
    hello.extend((0..20).map(|at| u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).expect("hex")));
    hello.extend_from_slice(b"-XX0001-filtered----");
    // It may be closed already.
    let _ = stream.write_all(&hello);
    stream.set_read_timeout(Some(MINUTE)).expect("a time-out");
    let mut answer = Vec::new();
    let _ = stream.take(68).read_to_end(&mut answer);
    answer
}

#[test]
fn peers_in_the_list_are_not_answered() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let (_folder, list) = list("127.0.5.0/24\n");
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mount = Mount::sample(&sample).listen(addr.to_string()).args(&["--ip-filter", &list]).start();
    wait_until("the mount to answer", MINUTE, || {
        answered(&sample, Ipv4Addr::new(127, 0, 6, 1), addr).len() == 68
    });
    assert_eq!(answered(&sample, Ipv4Addr::new(127, 0, 5, 1), addr), b"");
    assert_eq!(answered(&sample, Ipv4Addr::new(127, 0, 6, 1), addr).len(), 68);
    mount.stop();
}

#[test]
fn a_list_with_bad_lines_counts_and_what_is_no_list_is_refused() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let (_folder, some) = list("1.2.3.4\nnonsense\n9.9.9.9 - 8.8.8.8 , 0 , x\n");
    let mount = Mount::sample(&sample).peer(seeder.addr).args(&["--ip-filter", &some]).start();
    mount.wait_log(&["2 lines can't be read", "line 2", "nonsense", "line 3"], MINUTE);
    mount.check_sums(&sample);
    mount.stop();
    let (_folder, none) = list("<html>\n");
    for (path, words) in [(none.as_str(), "no list of addresses"), ("/nowhere/list", "No such file")] {
        let (status, log) = Mount::sample(&sample).args(&["--ip-filter", path]).fail(MINUTE);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(words) && log.contains(path), "{log}");
    }
}
