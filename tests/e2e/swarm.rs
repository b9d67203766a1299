//! Swarms with peers that misbehave: garbage, stalls, silence.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Reader, Sample, ScriptedPeer, Seeder, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// An address of its own for a bad peer, so that a ban of the address doesn't hit the good ones.
fn bad(last: u8) -> Behaviour {
    Behaviour { ip: Ipv4Addr::new(127, 0, 0, last).into(), ..Behaviour::default() }
}

#[test]
fn of_two_peers_one_corrupt_the_bad_one_is_banned() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let liar = ScriptedPeer::start(sample.clone(), Behaviour { corrupt: Some(0..sample.pieces), ..bad(66) });
    let mut seeder = Seeder::start(&sample);
    // The honest one is slow, so that the other gets its share of requests.
    seeder.limit(2 << 20);
    let mount = Mount::sample(&sample).peer(liar.addr()).peer(seeder.addr).start();
    mount.check_sums(&sample);
    assert!(liar.served() > 0, "the liar was never asked: the test shows nothing");
    mount.wait_log(&["banned", &liar.addr().to_string()], MINUTE);
    assert!(
        !mount.log().lines().any(|line| line.contains("banned") && line.contains(&seeder.addr.to_string()))
    );
    let after = liar.connections();
    let path = mount.path(&sample.name);
    Reader::pread(&path, 0, 4096).success(MINUTE);
    assert_eq!(liar.connections(), after, "a banned peer isn't dialled again");
    mount.stop();
}

#[test]
fn a_seeder_of_altered_data_alone_never_gets_its_bytes_through() {
    needs!(Fuse);
    let sample = Sample::small();
    let liar = ScriptedPeer::start(sample.clone(), Behaviour { corrupt: Some(1..2), ..bad(67) });
    let mount = Mount::sample(&sample).peer(liar.addr()).start();
    let path = mount.path(&sample.name);
    assert!(Reader::pread(&path, 0, 4096).success(MINUTE).contains("read 4096"));
    let mut reader = Reader::pread(&path, sample.piece_length, 4096);
    mount.wait_log(&["banned", &liar.addr().to_string()], MINUTE);
    reader.wait_parked();
    let honest = ScriptedPeer::start(sample.clone(), bad(68));
    drop(mount);
    assert_eq!(honest.served(), 0);
}

#[test]
fn a_peer_that_stalls_in_the_middle_of_a_piece_is_worked_around() {
    needs!(Fuse);
    let sample = Sample::small();
    let stalling = ScriptedPeer::start(sample.clone(), Behaviour { stall_after: Some(5), ..bad(69) });
    let good = ScriptedPeer::start(sample.clone(), bad(70));
    let mount = Mount::sample(&sample).peer(stalling.addr()).peer(good.addr()).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn peers_that_never_unchoke_or_lack_pieces_are_worked_around() {
    needs!(Fuse);
    let sample = Sample::small();
    let half = sample.pieces / 2;
    let peers = [
        ScriptedPeer::start(sample.clone(), Behaviour { never_unchoke: true, ..bad(71) }),
        ScriptedPeer::start(sample.clone(), Behaviour { has: Some(0..half), ..bad(72) }),
        ScriptedPeer::start(sample.clone(), Behaviour { has: Some(half..sample.pieces), ..bad(73) }),
    ];
    let mount = peers.iter().fold(Mount::sample(&sample), |mount, peer| mount.peer(peer.addr())).start();
    mount.check_sums(&sample);
    let asked = peers[1].requests();
    assert!(asked.iter().all(|request| u64::from(request.piece) < half), "asked for what it lacks");
    assert_eq!(peers[0].served(), 0);
    mount.stop();
}

/// Row R1 from outside: a peer that doesn't read fills our write buffer, and what is wanted then comes from
/// another.
#[test]
fn r1_a_peer_that_does_not_read_starves_nobody() {
    needs!(Fuse);
    let sample = Sample::small();
    let deaf = ScriptedPeer::start(sample.clone(), Behaviour { deaf: true, ..bad(74) });
    let good = ScriptedPeer::start(sample.clone(), bad(75));
    let mount = Mount::sample(&sample).peer(deaf.addr()).peer(good.addr()).start();
    wait_until("both connections", MINUTE, || deaf.connections() > 0 && good.connections() > 0);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn what_is_not_read_is_not_fetched() {
    needs!(Fuse);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    wait_until("the connection", MINUTE, || peer.connections() > 0);
    std::fs::metadata(&path).expect("stat");
    Reader::pread(&path, 20 * sample.piece_length, 100).success(MINUTE);
    let pieces: std::collections::BTreeSet<_> = peer.requests().iter().map(|request| request.piece).collect();
    assert_eq!(pieces.into_iter().collect::<Vec<_>>(), [20]);
    mount.stop();
}
