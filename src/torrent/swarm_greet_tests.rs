//! Who is taken, who has to go for it, and which of two connections to one peer stays.

use std::net::IpAddr;

use tokio::sync::watch;

use super::*;
use crate::net::connections::Connections;
use crate::net::mapping::port::OurPort;
use crate::net::mapping::{Mapping, Method, Protocol, Status};
use crate::peer::holepunch::{self, Holepunch};
use crate::peer::pex::{PexFlags, PexPeer};

fn comes(world: &mut World, key: u64, addr: &str, peer_id: [u8; 20], incoming: bool) {
    let peer = Connected { addr: addr.parse().unwrap(), peer_id, incoming, ..who(key, true) };
    world.apply(Event::Connected { key: PeerKey(key), peer });
}

/// A peer that is no other's.
fn id(n: u64) -> [u8; 20] {
    who(n, true).peer_id
}

fn ours() -> Event {
    Event::Ours(vec![IpAddr::from([9, 9, 9, 9])])
}

#[test]
fn the_least_gives_way_when_somebody_comes() {
    let full = |with_ours: bool| {
        let mut world = World::resolving(2, Settings { max_peers: 2, ..settings() });
        world.go_live();
        if with_ours {
            world.apply(ours());
        }
        comes(&mut world, 1, "1.1.1.1:1", id(1), false);
        comes(&mut world, 2, "1.2.1.1:1", id(2), false);
        world.say(2, vec![Item::HaveAll]);
        world.now += admission::TRIAL;
        comes(&mut world, 3, "1.3.1.1:1", id(3), true);
        world
    };
    assert_eq!(full(false).disconnected(), [3], "our own address isn't known");
    let mut world = full(true);
    assert_eq!(world.disconnected(), [1], "it has nothing for us");
    world.take();
    // Until its session has ended it is in the table, and is counted no more.
    comes(&mut world, 4, "1.4.1.1:1", id(4), true);
    assert_eq!(world.disconnected(), [4], "not two at once");
    world.take();
    world.gone(4);
    world.gone(1);
    comes(&mut world, 5, "1.5.1.1:1", id(5), true);
    assert_eq!(world.disconnected(), [5]);
}

#[test]
fn of_two_connections_to_one_peer_that_of_the_higher_id_stays() {
    for (theirs, first_incoming, gone) in
        [([0xff; 20], false, 1), ([0xff; 20], true, 2), ([0; 20], false, 2), ([0; 20], true, 1)]
    {
        let mut world = World::live(2);
        comes(&mut world, 1, "1.1.1.1:1", theirs, first_incoming);
        comes(&mut world, 2, "1.1.1.1:2", theirs, !first_incoming);
        assert_eq!(world.disconnected(), [gone], "{first_incoming}");
        world.gone(gone);
        // Nor does a third one, of whom nobody knows whether it is the same.
        world.take();
        world.now += admission::TRIAL;
        comes(&mut world, 3, "2.2.2.2:2", theirs, true);
        comes(&mut world, 4, "2.2.2.2:3", theirs, false);
        assert_eq!(world.disconnected(), [3, 4]);
    }
}

#[test]
fn who_is_here_is_not_dialled() {
    let mut world = World::live(2);
    comes(&mut world, 1, "1.1.1.1:9", id(1), true);
    let extended = ExtHandshake { port: Some(7), ..ExtHandshake::default() }.encode();
    world.say(1, vec![Item::Extended(0, extended)]);
    let listens = SocketAddr::from(([1, 1, 1, 1], 7));
    let found = |source| FoundPeers { source, addrs: vec![listens] };
    world.swarm.book.add(listens, PeerSource::Pex, world.now);
    world.apply(Event::Found(found(PeerSource::Tracker)));
    // It was heard of after it had said so; one dial shows that it is the same.
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 1);
    comes(&mut world, 2, "1.1.1.1:7", id(1), false);
    let [gone] = world.disconnected()[..] else { panic!("one of two") };
    world.take();
    world.gone(gone);
    world.tick(3600 * S);
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 0);
    world.gone(3 - gone);
    world.tick(3600 * S);
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 1, "when the other is gone, too");
}

#[test]
fn one_address_has_so_many_connections() {
    let mut world = World::live(2);
    for n in 0..=admission::PER_ADDRESS as u64 {
        comes(&mut world, n, &format!("[2001:db8::{n}]:1"), id(n), true);
        comes(&mut world, 100 + n, &format!("10.0.0.1:{}", 1 + n), id(100 + n), true);
    }
    assert_eq!(world.disconnected(), [admission::PER_ADDRESS as u64]);
}

#[test]
fn peers_are_told_what_we_know_of_each_other() {
    let mut world = World::live(2);
    let extended = |more: ExtHandshake| Item::Extended(0, ExtHandshake { ut_pex: Some(7), ..more }.encode());
    let listens = |n: u64| Some(9000 + n as u16);
    // Whether it came to us, over what, what it says of itself, what it has; and how others hear of it.
    let rows = [
        (false, Kind::Tcp, ExtHandshake::default(), Item::HaveNone, 0x10),
        (true, Kind::Tcp, ExtHandshake { encryption: true, ..ExtHandshake::default() }, Item::HaveNone, 0x01),
        (true, Kind::Utp, ExtHandshake::default(), Item::HaveAll, 0x06),
        (true, Kind::Tcp, ExtHandshake::default(), Item::Bitfield(vec![0xc0].into()), 0x02),
        (
            true,
            Kind::Tcp,
            ExtHandshake { upload_only: true, ..ExtHandshake::default() },
            Item::HaveNone,
            0x02,
        ),
    ];
    let mut want = BTreeSet::new();
    for (n, (incoming, kind, says, has, flags)) in (1..).zip(rows) {
        let peer = Connected { incoming, kind, ..who(n, true) };
        let at = if incoming { listens(n).unwrap() } else { peer.addr.port() };
        world.apply(Event::Connected { key: PeerKey(n), peer });
        world.say(n, vec![has, extended(ExtHandshake { port: listens(n), ..says })]);
        want.insert((at, flags));
    }
    world.connect(50, true);
    world.say(50, vec![extended(ExtHandshake::default())]);
    world.take();
    world.tick(choker::ROUND);
    let sent = world.take().into_iter().find_map(|effect| match effect {
        Effect::Extended(PeerKey(50), 7, payload) => Some(PexMessage::decode(&payload).unwrap()),
        _ => None,
    });
    let told: BTreeSet<_> = sent.unwrap().added.iter().map(|peer| (peer.addr.port(), peer.flags.0)).collect();
    assert_eq!(told, want);
}

/// The messages of hole punching that were sent, and to whom.
fn punched(world: &mut World) -> Vec<(u64, Holepunch)> {
    let sent = world.take().into_iter().filter_map(|effect| match effect {
        Effect::Extended(to, 9, payload) => Some((to.0, Holepunch::decode(&payload)?)),
        _ => None,
    });
    sent.collect()
}

/// Three of a swarm: two that can't dial each other, and one who is connected to both.
#[test]
fn two_are_introduced_by_a_third() {
    let takes =
        || Item::Extended(0, ExtHandshake { ut_holepunch: Some(9), ..ExtHandshake::default() }.encode());
    let said = |message: Holepunch| Item::Extended(extension::OUR_UT_HOLEPUNCH, message.encode());
    let (asks_at, target_at): (SocketAddr, SocketAddr) =
        ("1.1.1.1:1".parse().unwrap(), "2.2.2.2:2".parse().unwrap());

    // Who asks has heard of the other from the third, and can't reach it.
    let mut asks = World::live(2);
    comes(&mut asks, 1, "3.3.3.3:3", id(1), false);
    let told = PexMessage {
        added: vec![PexPeer { addr: target_at, flags: PexFlags::HOLEPUNCH }],
        dropped: Vec::new(),
    };
    asks.say(1, vec![takes(), Item::Extended(extension::OUR_UT_PEX, told.encode())]);
    assert_eq!(asks.count(|e| matches!(e, Effect::Dial(_))), 1);
    asks.take();
    asks.apply(Event::Unreachable { addr: target_at });
    let sent = punched(&mut asks);
    let question = Holepunch { kind: holepunch::Kind::Rendezvous, addr: target_at };
    assert_eq!(sent, [(1, question)]);
    asks.tick(S * 10);
    asks.apply(Event::Unreachable { addr: target_at });
    assert!(punched(&mut asks).is_empty(), "once in a while");

    // The third tells both, each where the other is.
    let mut third = World::live(2);
    for (n, at) in [(1, asks_at), (2, target_at)] {
        let peer = Connected { addr: at, kind: Kind::Utp, incoming: true, ..who(n, true) };
        third.apply(Event::Connected { key: PeerKey(n), peer });
        third.say(n, vec![takes()]);
    }
    third.take();
    third.say(1, vec![said(question)]);
    let to = |addr| Holepunch { kind: holepunch::Kind::Connect, addr };
    assert_eq!(punched(&mut third), [(2, to(asks_at)), (1, to(target_at))]);
    third.say(1, vec![said(question)]);
    assert!(punched(&mut third).is_empty(), "once a second");
    third.now += 2 * S;
    third.gone(2);
    third.say(1, vec![said(question)]);
    let refused = holepunch::Kind::Error(holepunch::Refusal::NotConnected);
    assert_eq!(punched(&mut third), [(1, Holepunch { kind: refused, addr: target_at })]);

    // Both dial at once, over uTP first, though one of them has everything; and only once.
    let mut target = World::live(2);
    comes(&mut target, 1, "3.3.3.3:3", id(1), false);
    target.say(1, vec![takes()]);
    target.swarm.finished = true;
    for (world, other) in [(&mut asks, target_at), (&mut target, asks_at)] {
        world.take();
        world.say(1, vec![said(to(other)), said(to(other))]);
        let dials: Vec<_> = world
            .take()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Dial(dial) => Some((dial.addr, dial.hints.punch)),
                _ => None,
            })
            .collect();
        assert_eq!(dials, [(other, true)]);
    }
    // Not into our own network on a stranger's word.
    target.now += 2 * S;
    target.say(1, vec![said(to("192.168.0.1:80".parse().unwrap()))]);
    assert_eq!(target.count(|e| matches!(e, Effect::Dial(_))), 0);
}

/// Addresses where nobody is keep few dials busy, and none where there is no room.
#[test]
fn strangers_have_us_dial_little() {
    let takes = || ExtHandshake { ut_holepunch: Some(9), ..ExtHandshake::default() }.encode();
    let says = |world: &mut World, from: u64, to: &str| {
        let connect = Holepunch { kind: holepunch::Kind::Connect, addr: to.parse().unwrap() };
        world.say(from, vec![Item::Extended(extension::OUR_UT_HOLEPUNCH, connect.encode())]);
    };
    let mut world = World::live(2);
    for n in 1..=9 {
        comes(&mut world, n, &format!("3.3.{n}.3:3"), id(n), true);
        world.say(n, vec![Item::Extended(0, takes())]);
    }
    world.take();
    for n in 1..=9 {
        says(&mut world, n, &format!("[::ffff:4.4.4.{n}]:4"));
    }
    let dials = |world: &mut World| {
        let dials = world.take().into_iter().filter_map(|effect| match effect {
            Effect::Dial(dial) => Some(dial.addr.to_string()),
            _ => None,
        });
        dials.collect::<Vec<_>>()
    };
    assert_eq!(dials(&mut world), ["4.4.4.1:4", "4.4.4.2:4", "4.4.4.3:4", "4.4.4.4:4"]);
    world.apply(Event::Unreachable { addr: "4.4.4.2:4".parse().unwrap() });
    world.now += 2 * S;
    says(&mut world, 1, "4.4.4.4:5");
    says(&mut world, 2, "4.4.4.4:6");
    assert_eq!(dials(&mut world), ["4.4.4.4:5"]);

    let mut world = World::resolving(2, Settings { connections: Connections::new(1), ..settings() });
    world.go_live();
    let _taken = world.swarm.settings.connections.accept(true, world.now);
    comes(&mut world, 1, "3.3.3.3:3", id(1), true);
    world.say(1, vec![Item::Extended(0, takes())]);
    says(&mut world, 1, "4.4.4.4:4");
    assert!(dials(&mut world).is_empty() && !world.swarm.settings.connections.pressed(world.now));
}

#[test]
fn room_in_the_program_is_looked_for_only_when_somebody_would_be_dialled() {
    let connections = Connections::new(1);
    let mut world = World::resolving(2, Settings { connections: connections.clone(), ..settings() });
    let _taken = connections.accept(true, world.now);
    world.tick(S);
    assert!(world.swarm.next_dial.is_none() && !connections.pressed(world.now));
    world.apply(Event::Found(FoundPeers { source: PeerSource::Dht, addrs: vec![addr(7)] }));
    assert!(
        world.swarm.next_dial.is_some() && connections.pressed(world.now),
        "nobody knows the metadata yet"
    );
    // One that nobody reads waits, too, and has no place made.
    let connections = Connections::new(1);
    let mut world = World::resolving(2, Settings { connections: connections.clone(), ..settings() });
    world.go_live();
    let _taken = connections.accept(true, world.now);
    world.apply(Event::Found(FoundPeers { source: PeerSource::Dht, addrs: vec![addr(7)] }));
    assert!(world.swarm.next_dial.is_some() && !connections.pressed(world.now));
}

#[test]
fn behind_a_router_that_maps_our_port_a_neighbours_is_not_ours() {
    let status = |mappings| watch::channel(Status { mappings, ..Status::default() }).1;
    let mapped = Mapping {
        method: Method::Pcp,
        protocol: Protocol::Tcp,
        internal: 6881,
        external: 7001,
        address: Some([9, 9, 9, 9].into()),
    };
    for (mappings, ours) in [
        (vec![], [("9.9.9.9:6881", true), ("9.9.9.9:7001", false), ("192.168.0.2:6881", true)]),
        (vec![mapped], [("9.9.9.9:6881", false), ("9.9.9.9:7001", true), ("192.168.0.2:6881", true)]),
    ] {
        let listen_port = OurPort::mapped(Some(6881), status(mappings));
        let mut world = World::resolving(2, Settings { listen_port, ..settings() });
        world.apply(Event::Ours(["9.9.9.9", "192.168.0.2"].map(|ip| ip.parse().unwrap()).into()));
        for (addr, is_ours) in ours {
            assert_eq!(world.swarm.book.is_self(addr.parse().unwrap()), is_ours, "{addr}");
        }
    }
}

#[test]
fn nobody_is_introduced_in_a_private_torrent_or_without_utp() {
    let mut world = World::resolving(2, Settings { punch: false, ..settings() });
    world.go_live();
    world.connect(1, true);
    let takes = ExtHandshake { ut_holepunch: Some(9), ..ExtHandshake::default() };
    world.say(1, vec![Item::Extended(0, takes.encode())]);
    let question = Holepunch { kind: holepunch::Kind::Rendezvous, addr: addr(7) };
    world.say(1, vec![Item::Extended(extension::OUR_UT_HOLEPUNCH, question.encode())]);
    let hello = world.fx.iter().find_map(|effect| match effect {
        Effect::Extended(_, 0, payload) => ExtHandshake::decode(payload).ok(),
        _ => None,
    });
    assert_eq!(hello.unwrap().ut_holepunch, None);
    assert!(punched(&mut world).is_empty());
}
