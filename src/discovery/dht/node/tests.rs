//! The node alone, and in simulated networks.
//!
//! A [`World`] plays nodes, links and time from a seed: the same seed gives the same game. `DHT_SEED=n` plays another.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use super::*;
use crate::discovery::dht::krpc::{PACKET_MAX, Token, decode, encode};
use crate::net::ours::Ours;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn setup(number: u8, serve: bool) -> Setup {
    Setup { families: [true, false], serve, secret: [number; 32], saved: Saved::default() }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// How a node of a [`World`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As it should.
    Honest,
    /// It gets what comes from whom it sent something in the last two minutes.
    BehindRouter,
    /// It answers everything with nodes that don't exist, close to what is asked for.
    Liar,
}

struct Player {
    node: Node,
    addrs: Vec<SocketAddr>,
    kind: Kind,
    alive: bool,
    sent: HashMap<SocketAddr, Instant>,
    found: Vec<(SearchId, SocketAddr)>,
    done: Vec<Done>,
    enters: usize,
    ours: Ours,
}

/// When it arrives, a number that makes it different, from where to where, and what.
type Packet = (Instant, u64, SocketAddr, SocketAddr, Vec<u8>);

struct World {
    now: Instant,
    began: Instant,
    players: Vec<Player>,
    at: HashMap<SocketAddr, usize>,
    mail: BinaryHeap<Reverse<Packet>>,
    due: BTreeSet<(Instant, usize)>,
    draw: Draw,
    sent: u64,
    /// In thousandths.
    loss: usize,
    entries: Vec<SocketAddr>,
}

impl World {
    fn new(seed: u64) -> Self {
        let seed = std::env::var("DHT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
        eprintln!("DHT_SEED={seed}");
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&u64::to_be_bytes(seed));
        let now = Instant::now();
        Self {
            now,
            began: now,
            players: Vec::new(),
            at: HashMap::new(),
            mail: BinaryHeap::new(),
            due: BTreeSet::new(),
            draw: Draw::new(secret),
            sent: 0,
            loss: 10,
            entries: Vec::new(),
        }
    }

    /// Somewhere on the internet.
    fn some_addr(&mut self, family: Family) -> SocketAddr {
        let bytes = self.draw.bytes();
        let port = 1024 + u16::from_be_bytes([bytes[18], bytes[19]]) % 60_000;
        let ip = match family {
            Family::V4 => IpAddr::from([20 + bytes[0] % 80, bytes[1], bytes[2], 1 + bytes[3] % 250]),
            Family::V6 => {
                let mut ip: [u8; 16] = bytes[..16].try_into().unwrap();
                ip[0] = 0x20 | ip[0] & 0x0f;
                IpAddr::from(ip)
            }
        };
        SocketAddr::new(ip, port)
    }

    fn add(&mut self, kind: Kind, families: [bool; 2], serve: bool, saved: Saved) -> usize {
        let addrs: Vec<_> = Family::BOTH
            .into_iter()
            .filter(|family| families[family.index()])
            .map(|family| self.some_addr(family))
            .collect();
        self.add_at(addrs, kind, families, serve, saved)
    }

    fn add_at(
        &mut self,
        addrs: Vec<SocketAddr>,
        kind: Kind,
        families: [bool; 2],
        serve: bool,
        saved: Saved,
    ) -> usize {
        let mut secret = [0; 32];
        secret[..20].copy_from_slice(&self.draw.bytes());
        let index = self.players.len();
        for addr in &addrs {
            self.at.insert(*addr, index);
        }
        let node = Node::new(Setup { families, serve, secret, saved }, self.now);
        self.due.insert((self.now, index));
        self.players.push(Player {
            node,
            addrs,
            kind,
            alive: true,
            sent: HashMap::new(),
            found: Vec::new(),
            done: Vec::new(),
            enters: 0,
            ours: Ours::default(),
        });
        index
    }

    /// Has a node do something, and carries out what comes of it.
    fn with<T>(&mut self, index: usize, what: impl FnOnce(&mut Node, Instant, &mut Out) -> T) -> T {
        let mut out = Out::default();
        let player = &mut self.players[index];
        let before = player.node.due();
        let result = what(&mut player.node, self.now, &mut out);
        if out.enter {
            player.enters += 1;
            let entries: Vec<_> =
                self.entries.iter().copied().filter(|entry| !player.addrs.contains(entry)).collect();
            player.node.enter(&entries, self.now, &mut out);
        }
        self.due.remove(&(before, index));
        self.due.insert((player.node.due(), index));
        player.done.append(&mut out.done);
        out.seen.iter().for_each(|(said, by)| player.ours.saw(*said, *by, self.now));
        for (search, addrs) in out.found {
            player.found.extend(addrs.into_iter().map(|addr| (search, addr)));
        }
        for (to, packet) in out.packets {
            assert!(packet.len() <= PACKET_MAX, "{} bytes", packet.len());
            let from = *self.players[index].addrs.iter().find(|own| own.is_ipv4() == to.is_ipv4()).unwrap();
            self.send(index, from, to, packet);
        }
        result
    }

    fn send(&mut self, index: usize, from: SocketAddr, to: SocketAddr, packet: Vec<u8>) {
        self.players[index].sent.insert(to, self.now);
        self.sent += 1;
        if self.draw.below(1000) >= self.loss {
            let takes = millis(10 + self.draw.below(150) as u64);
            self.mail.push(Reverse((self.now + takes, self.sent, from, to, packet)));
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, packet: &[u8]) {
        let Some(index) = self.at.get(&to).copied() else { return };
        let player = &self.players[index];
        let open = match player.kind {
            Kind::BehindRouter => player.sent.get(&from).is_some_and(|sent| self.now - *sent < seconds(120)),
            Kind::Honest | Kind::Liar => true,
        };
        if !player.alive || !open {
            return;
        }
        if player.kind == Kind::Liar
            && let Ok(Message::Query { tid, query, .. }) = decode(packet)
        {
            return self.lie(index, tid, &query, to, from);
        }
        self.with(index, |node, now, out| node.received(packet, from, now, out));
    }

    fn lie(&mut self, index: usize, tid: Tid, query: &Query, own: SocketAddr, to: SocketAddr) {
        let id = self.players[index].node.id(Family::of(&own)).unwrap();
        let mut reply = Reply::empty(id);
        if let Query::FindNode { target, .. } | Query::GetPeers { info_hash: target, .. } = query {
            for bit in 0..8 {
                let mut id = *target;
                id[19] ^= 1 << bit;
                let addr = self.some_addr(Family::of(&own));
                reply.nodes.push(Contact { id: NodeId(id), addr });
            }
            reply.token = Token::new(b"a lie");
        }
        let packet = encode(&Message::Reply { tid, reply, ip: Some(addr("66.66.66.66:66")) });
        self.send(index, own, to, packet);
    }

    /// Plays on for so long, or until it is as wished. Tells whether it is.
    fn run(&mut self, limit: Duration, mut until: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if until(self) {
                return true;
            }
            let mail = self.mail.peek().map(|Reverse((at, ..))| *at);
            let due = self.due.first().map(|(at, _)| *at);
            let Some(next) = mail.into_iter().chain(due).min().filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            if mail == Some(next) {
                let Some(Reverse((_, _, from, to, packet))) = self.mail.pop() else { continue };
                self.deliver(from, to, &packet);
            } else if let Some((_, index)) = self.due.pop_first()
                && self.players[index].alive
            {
                self.with(index, |node, now, out| node.tick(now, out));
            }
        }
    }

    fn play(&mut self, limit: Duration) {
        self.run(limit, |_| false);
    }

    /// Nodes that come one after the other, the first two as entries.
    fn populate(
        &mut self,
        count: usize,
        families: impl Fn(usize) -> [bool; 2],
        kind: impl Fn(usize) -> Kind,
    ) {
        for number in 0..count {
            let index = self.add(kind(number), families(number), true, Saved::default());
            if index < 2 {
                let addrs = self.players[index].addrs.clone();
                self.entries.extend(addrs);
            }
            self.play(millis(300));
        }
    }

    /// Has a node search, and waits for the end of it. What it found, and how it went.
    fn search(&mut self, index: usize, hash: [u8; LEN], port: Option<u16>) -> (Vec<SocketAddr>, Done) {
        let announce = port.map(|port| AnnounceAs { port, implied: false });
        let id = self.with(index, |node, now, out| node.search(hash, announce, now, out));
        let done = |world: &Self| world.players[index].done.iter().find(|done| done.search == id).copied();
        assert!(self.run(seconds(120), |world| done(world).is_some()), "a search that doesn't end");
        let found = &self.players[index].found;
        let found: HashSet<_> = found.iter().filter(|(search, _)| *search == id).map(|(_, a)| *a).collect();
        (found.into_iter().collect(), done(self).unwrap())
    }

    fn pick(&mut self, fits: impl Fn(&Player) -> bool) -> usize {
        loop {
            let index = self.draw.below(self.players.len());
            let player = &self.players[index];
            if player.alive && fits(player) {
                return index;
            }
        }
    }

    /// Some announce, others search. How many searches found who was announced, of how many; and the mean of nodes asked.
    fn announce_and_find(&mut self, count: usize, fits: impl Fn(&Player) -> bool) -> (usize, usize) {
        let (mut found, mut asked) = (0, 0);
        for _ in 0..count {
            let hash = self.draw.bytes();
            let (from, by) = (self.pick(&fits), self.pick(&fits));
            let (_, done) = self.search(from, hash, Some(7777));
            assert!(done.announced > 0, "nobody took an announce: {done:?}");
            let (peers, done) = self.search(by, hash, None);
            asked += done.asked;
            let own = &self.players[from].addrs;
            found += usize::from(own.iter().any(|own| peers.contains(&SocketAddr::new(own.ip(), 7777))));
        }
        (found, asked / count)
    }

    fn report(&self, what: &str) {
        let tables: Vec<_> = self
            .players
            .iter()
            .filter(|player| player.alive)
            .filter_map(|player| player.node.status(Family::V4, self.now))
            .map(|status| status.good)
            .collect();
        let mean = tables.iter().sum::<usize>() / tables.len().max(1);
        eprintln!(
            "{what}: {} nodes, {mean} good ones in a table, {} packets, {:?} of time",
            self.players.len(),
            self.sent,
            self.now - self.began
        );
    }
}

#[test]
fn every_announce_is_found_in_a_network_of_three_hundred() {
    let mut world = World::new(1);
    world.populate(300, |_| [true, false], |_| Kind::Honest);
    world.play(seconds(120));
    world.report("settled");
    let fits =
        world.players.iter().filter(|player| player.node.id(Family::V4).unwrap().fits(player.addrs[0].ip()));
    assert_eq!(fits.count(), 300, "each has learned its address and has a name that fits");
    let told = world.players.iter().filter(|player| *player.ours.known().borrow() == [player.addrs[0].ip()]);
    assert_eq!(told.count(), 300, "each tells its address");
    let (found, asked) = world.announce_and_find(60, |_| true);
    eprintln!("{found} of 60 found, {asked} asked on the mean");
    assert_eq!(found, 60);
    assert!(asked <= 40, "{asked}");
    world.report("at the end");
}

#[test]
fn with_a_third_dead_and_some_lying_announces_are_found() {
    let mut world = World::new(2);
    let kind = |number: usize| match number % 10 {
        3 | 7 => Kind::Liar,
        5 => Kind::BehindRouter,
        _ => Kind::Honest,
    };
    world.populate(300, |_| [true, false], kind);
    world.play(seconds(60));
    for _ in 0..90 {
        let index = world.pick(|player| player.kind == Kind::Honest);
        world.players[index].alive = false;
    }
    world.report("a third has just died");
    let (found, asked) = world.announce_and_find(40, |player| player.kind == Kind::Honest);
    eprintln!("{found} of 40 found at once, {asked} asked on the mean");
    assert!(found >= 38, "{found}");
    world.play(seconds(20 * 60));
    world.report("later");
    let (found, asked) = world.announce_and_find(40, |player| player.kind == Kind::Honest);
    eprintln!("{found} of 40 found later, {asked} asked on the mean");
    assert!(found >= 39, "{found}");
}

#[test]
fn one_family_is_entered_by_way_of_the_other() {
    let mut world = World::new(3);
    // Half of them have both. After the first few nobody is told an entry of IPv6.
    let families = |number: usize| [true, number.is_multiple_of(2)];
    world.populate(20, families, |_| Kind::Honest);
    world.entries.retain(SocketAddr::is_ipv4);
    world.populate(100, families, |_| Kind::Honest);
    world.play(seconds(120));
    for player in &world.players {
        if let Some(status) = player.node.status(Family::V6, world.now) {
            assert!(status.good >= K, "{status:?}");
        }
    }
    let (found, _) = world.announce_and_find(20, |player| player.addrs.len() == 2);
    assert_eq!(found, 20);
    // By IPv6 alone as well.
    let both = world.pick(|player| player.addrs.len() == 2);
    let entry = world.players[both].addrs[1];
    world.entries = vec![entry];
    let six = world.add(Kind::Honest, [false, true], true, Saved::default());
    world.play(seconds(30));
    let hash = world.draw.bytes();
    world.search(both, hash, Some(7777));
    let (peers, _) = world.search(six, hash, None);
    assert_eq!(peers, [SocketAddr::new(world.players[both].addrs[1].ip(), 7777)]);
}

/// Most machines of a network have IPv6, and ours has a socket for it, but no way to anywhere.
#[test]
fn a_family_that_leads_nowhere_costs_little() {
    let mut world = World::new(8);
    world.populate(80, |number| [true, number.is_multiple_of(2)], |_| Kind::Honest);
    world.play(seconds(60));
    let index = world.add(Kind::Honest, [true, true], true, Saved::default());
    let six = world.players[index].addrs[1];
    world.at.remove(&six);
    world.play(seconds(60));
    let lost = |world: &World| world.players[index].sent.keys().filter(|to| to.is_ipv6()).count();
    let before = lost(&world);
    let (began, mut announced) = (world.now, 0);
    for hash in 0..20 {
        announced += world.search(index, [hash; LEN], Some(7777)).1.announced;
    }
    assert!(announced >= 140, "{announced} of 160");
    let each = (world.now - began) / 20;
    eprintln!("{each:?} for a search; {before} nodes of IPv6 asked in vain before, {} now", lost(&world));
    assert!(each < seconds(6) && lost(&world) - before <= 48, "{each:?}");
}

#[test]
fn a_restart_needs_no_entries() {
    let mut world = World::new(4);
    world.populate(100, |_| [true, false], |_| Kind::Honest);
    world.play(seconds(120));
    let saved = world.players[50].node.save();
    let saved = Saved::decode(&saved.encode());
    assert!(saved.nodes[0].len() >= 20, "{}", saved.nodes[0].len());
    let hash = [9; LEN];
    world.search(3, hash, Some(7777));
    let addrs = world.players[50].addrs.clone();
    world.players[50].alive = false;
    world.entries.clear();
    // A third of those that are saved is gone meanwhile.
    for contact in saved.nodes[0].iter().step_by(3) {
        let index = world.at[&contact.addr];
        world.players[index].alive = index == 3;
    }
    let again = world.add_at(addrs, Kind::Honest, [true, false], true, saved.clone());
    let (peers, _) = world.search(again, hash, None);
    assert_eq!(peers, [SocketAddr::new(world.players[3].addrs[0].ip(), 7777)]);
    assert_eq!(world.players[again].node.id(Family::V4), saved.ids[0], "its name is kept");
    assert_eq!(world.players[again].enters, 0, "nobody was asked for entries");
}

#[test]
fn who_cant_be_reached_stays_out_of_tables() {
    let mut world = World::new(5);
    world.populate(60, |_| [true, false], |_| Kind::Honest);
    world.play(seconds(60));
    let open = world.add(Kind::Honest, [true, false], false, Saved::default());
    let closed = world.add(Kind::BehindRouter, [true, false], false, Saved::default());
    world.play(seconds(60));
    let read_only = |world: &World, index: usize| {
        world.players[index].node.status(Family::V4, world.now).unwrap().read_only
    };
    let known = |world: &World, index: usize| {
        let addr = world.players[index].addrs[0];
        let knows = |player: &&Player| player.node.save().nodes[0].iter().any(|node| node.addr == addr);
        world.players.iter().filter(knows).count()
    };
    for index in [open, closed] {
        assert!(read_only(&world, index));
        assert_eq!(known(&world, index), 0);
        assert!(world.players[index].node.status(Family::V4, world.now).unwrap().good >= 8);
    }
    // They can search and be announced all the same.
    let hash = [3; LEN];
    let (_, done) = world.search(closed, hash, Some(7777));
    assert!(done.announced >= 6, "{done:?}");
    assert_eq!(world.search(open, hash, None).0.len(), 1);
    world.play(seconds(40 * 60));
    assert!(!read_only(&world, open), "it was reached in its first probation");
    assert!(known(&world, open) > 0);
    assert!(read_only(&world, closed), "it wasn't");
}

#[test]
fn the_network_comes_back_after_our_line_was_down() {
    let mut world = World::new(6);
    world.populate(60, |_| [true, false], |_| Kind::Honest);
    world.play(seconds(60));
    let index = world.add(Kind::Honest, [true, false], true, Saved::default());
    world.play(seconds(120));
    world.entries.clear();
    let addr = world.players[index].addrs[0];
    let good = |world: &World| world.players[index].node.status(Family::V4, world.now).unwrap().good;
    let before = good(&world);
    assert!(before >= K);
    let real = world.at.remove(&addr).unwrap();
    world.play(seconds(3 * 3600));
    assert_eq!(good(&world), 0);
    world.at.insert(addr, real);
    assert!(world.run(seconds(90), |world| good(world) >= K), "{} before, {} now", before, good(&world));
}

#[test]
fn an_idle_node_of_a_large_network_says_little() {
    let mut world = World::new(7);
    world.populate(200, |_| [true, false], |_| Kind::Honest);
    world.play(seconds(15 * 60));
    let before = world.sent;
    world.play(seconds(30 * 60));
    let each = (world.sent - before) as f64 / 200.0 / 30.0;
    eprintln!("{each:.1} packets a minute of each node, questions and answers");
    assert!(each < 60.0, "{each}");
}

/// A node that knows another, and what it says to packets.
struct Alone {
    node: Node,
    now: Instant,
}

const OTHER: &str = "9.8.7.6:6881";

impl Alone {
    fn new(serve: bool) -> Self {
        let now = Instant::now();
        Self { node: Node::new(setup(1, serve), now), now }
    }

    fn tell(&mut self, from: &str, message: &Message) -> Vec<Message> {
        self.raw(from, &encode(message))
    }

    fn raw(&mut self, from: &str, packet: &[u8]) -> Vec<Message> {
        let mut out = Out::default();
        self.node.received(packet, addr(from), self.now, &mut out);
        out.packets.iter().map(|(_, packet)| decode(packet).unwrap()).collect()
    }

    fn ask(&mut self, from: &str, query: Query) -> Vec<Message> {
        let message =
            Message::Query { tid: Tid::new(b"xy").unwrap(), id: NodeId([5; LEN]), query, read_only: true };
        self.tell(from, &message)
    }
}

#[test]
fn a_read_only_node_asks_and_is_silent() {
    let mut alone = Alone::new(false);
    assert!(alone.ask(OTHER, Query::Ping).is_empty());
    assert!(alone.raw(OTHER, b"d1:q4:ping1:t2:aa1:y1:qe").is_empty());
    let mut out = Out::default();
    alone.node.enter(&[addr(OTHER)], alone.now, &mut out);
    let Ok(Message::Query { read_only, tid, .. }) = decode(&out.packets[0].1) else { panic!() };
    assert!(read_only && tid.bytes().len() == 4);
}

#[test]
fn an_announce_takes_a_token_of_the_same_address() {
    let mut alone = Alone::new(true);
    let hash = [4; LEN];
    let want = Want::default();
    let answers = alone.ask(OTHER, Query::GetPeers { info_hash: hash, want });
    let [Message::Reply { reply, ip, tid }] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((*ip, tid.bytes()), (Some(addr(OTHER)), &b"xy"[..]));
    let token = reply.token.clone();
    let announce = |token: &Option<Token>, port, implied| Query::AnnouncePeer {
        info_hash: hash,
        port,
        implied,
        token: token.clone(),
    };
    let refused = |answers: Vec<Message>| matches!(answers[..], [Message::Error { code: 203, .. }]);
    assert!(refused(alone.ask(OTHER, announce(&None, 1, false))));
    assert!(refused(alone.ask("9.8.7.5:6881", announce(&token, 1, false))));
    assert!(refused(alone.ask(OTHER, announce(&Token::new(b"guess"), 1, false))));
    assert!(refused(alone.ask(OTHER, announce(&token, 0, false))));
    assert!(!refused(alone.ask(OTHER, announce(&token, 51413, false))));
    assert!(!refused(alone.ask("9.8.7.6:7000", announce(&token, 1, true))));
    let answers = alone.ask("9.1.1.1:1", Query::GetPeers { info_hash: hash, want });
    let [Message::Reply { reply, .. }] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(reply.values, [addr("9.8.7.6:51413"), addr("9.8.7.6:7000")]);
    let answers = alone.ask("9.1.1.1:1", Query::Other { target: None, want });
    assert!(matches!(answers[..], [Message::Error { code: 204, .. }]));
    let answers = alone.ask("9.1.1.1:1", Query::Other { target: Some(hash), want });
    let [Message::Reply { reply, .. }] = &answers[..] else { panic!("{answers:?}") };
    assert!(reply.token.is_some());
    let answers = alone.raw("9.1.1.1:1", b"d1:q4:ping1:t2:aa1:y1:qe");
    assert!(matches!(answers[..], [Message::Error { code: 203, .. }]));
}

#[test]
fn long_answers_are_for_who_has_shown_where_it_is() {
    let mut alone = Alone::new(true);
    let (hash, want) = ([4; LEN], Want::default());
    let mut token = None;
    for host in 0..200u8 {
        let from = format!("9.8.{host}.6:6881");
        let answers = alone.ask(&from, Query::GetPeers { info_hash: hash, want });
        if let [Message::Reply { reply, .. }] = &answers[..] {
            token = reply.token.clone();
        }
        let announce = Query::AnnouncePeer { info_hash: hash, port: 1, implied: true, token: token.clone() };
        assert_eq!(alone.ask(&from, announce).len(), 1);
        alone.now += seconds(1);
    }
    let query = Query::GetPeers { info_hash: hash, want };
    let query =
        Message::Query { tid: Tid::new(b"xy").unwrap(), id: NodeId([5; LEN]), query, read_only: true };
    let mut length = |from: &str| {
        let mut out = Out::default();
        alone.node.received(&encode(&query), addr(from), alone.now, &mut out);
        let (to, packet) = &out.packets[0];
        assert_eq!(*to, addr(from));
        let Ok(Message::Reply { reply, .. }) = decode(packet) else { panic!() };
        (packet.len(), reply.values.len())
    };
    let (bytes, values) = length("9.9.9.9:1");
    assert!(bytes <= 512 && values > 10, "{bytes} {values}");
    let (bytes, values) = length("9.8.199.6:6881");
    assert!(bytes <= PACKET_MAX && values == 100, "{bytes} {values}");
}

#[test]
fn a_flood_of_questions_is_answered_in_part() {
    let mut alone = Alone::new(true);
    let answered: usize = (0..1000).map(|_| alone.ask(OTHER, Query::Ping).len()).sum();
    assert_eq!(answered, 20);
    let answered: usize = (0..1000)
        .map(|host| alone.ask(&format!("9.{}.{}.1:1", host / 256, host % 256), Query::Ping).len())
        .sum();
    assert_eq!(answered, 230);
}

#[test]
fn only_who_was_asked_can_answer() {
    let mut alone = Alone::new(true);
    let mut out = Out::default();
    alone.node.enter(&[addr(OTHER)], alone.now, &mut out);
    let Ok(Message::Query { tid, .. }) = decode(&out.packets[0].1) else { panic!() };
    let own = NodeId([6; LEN]);
    let near = Contact { id: NodeId([7; LEN]), addr: addr("9.9.1.1:1") };
    let neighbour = Contact { id: NodeId([8; LEN]), addr: addr("192.168.0.1:1") };
    let reply = Reply { nodes: vec![near, neighbour], ..Reply::empty(own) };
    let reply = Message::Reply { tid, reply, ip: None };
    assert!(alone.tell("9.8.7.6:6882", &reply).is_empty(), "another port");
    assert!(alone.tell("9.8.7.5:6881", &reply).is_empty(), "another host");
    let asked = alone.tell(OTHER, &reply);
    assert!(matches!(asked[..], [Message::Query { .. }]), "the one node that it may name: {asked:?}");
    assert!(alone.tell(OTHER, &reply).is_empty(), "once");
    assert_eq!(alone.node.status(Family::V4, alone.now).unwrap().nodes, 1);
}

#[test]
fn searches_wait_their_turn_and_can_be_given_up() {
    let mut alone = Alone::new(true);
    let mut out = Out::default();
    let ids: Vec<_> = (0..20).map(|hash| alone.node.search([hash; LEN], None, alone.now, &mut out)).collect();
    assert_eq!(alone.node.searches.len(), RUNNING);
    alone.node.cancel(ids[0], alone.now, &mut out);
    alone.node.cancel(ids[19], alone.now, &mut out);
    assert_eq!(alone.node.searches.len(), RUNNING);
    // Nobody is there: each ends after a while.
    for _ in 0..200 {
        alone.now = alone.node.due().max(alone.now + millis(1));
        alone.node.tick(alone.now, &mut out);
    }
    let done: Vec<_> = out.done.iter().map(|done| done.search).collect();
    assert_eq!(done, ids[1..19]);
    assert!(out.enter);
}

mod packets {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever comes, nothing panics, and what is under way stays bounded.
        #[test]
        fn no_packet_upsets_a_node(packets in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..80), 0u8..6, any::<[u8; LEN]>(), 0u16..4), 0..120,
        )) {
            let mut alone = Alone::new(true);
            let mut out = Out::default();
            alone.node.search([1; LEN], Some(AnnounceAs { port: 5, implied: true }), alone.now, &mut out);
            let mut asked: Vec<(SocketAddr, Tid)> = Vec::new();
            for (bytes, kind, id, wait) in packets {
                alone.now += millis(u64::from(wait) * 700);
                let from = SocketAddr::from(([9, id[0], id[1], 1], 1 + u16::from(id[2])));
                let id = NodeId(id);
                let node = |at: usize| Contact {
                    id: NodeId(std::array::from_fn(|i| *bytes.get((at + i) % bytes.len().max(1)).unwrap_or(&0))),
                    addr: SocketAddr::from(([9, at as u8, *bytes.get(at).unwrap_or(&1), 1], 77)),
                };
                let nodes: Vec<_> = (0..bytes.len().min(20)).map(node).collect();
                let tid = Tid::new(b"zz").unwrap();
                let reply = Reply { nodes, values: vec![from], token: Token::new(&bytes), id };
                let (from, packet) = match kind {
                    0 => (from, bytes),
                    1 => (from, encode(&Message::Query { tid, id, query: Query::Ping, read_only: false })),
                    2 => {
                        let query = Query::GetPeers { info_hash: id.0, want: Want::BOTH };
                        (from, encode(&Message::Query { tid, id, query, read_only: false }))
                    }
                    3 => (from, encode(&Message::Reply { tid, reply, ip: Some(from) })),
                    _ => match asked.pop() {
                        Some((to, tid)) => (to, encode(&Message::Reply { tid, reply, ip: Some(from) })),
                        None => (from, Vec::new()),
                    },
                };
                alone.node.received(&packet, from, alone.now, &mut out);
                alone.node.enter(&[from], alone.now, &mut out);
                let due = alone.node.tick(alone.now, &mut out);
                prop_assert!(due > alone.now);
                for (to, packet) in out.packets.drain(..) {
                    prop_assert!(packet.len() <= PACKET_MAX);
                    if let Ok(Message::Query { tid, .. }) = decode(&packet) {
                        asked.push((to, tid));
                    }
                }
                prop_assert!(alone.node.pending.len() <= UNDER_WAY);
                prop_assert!(alone.node.walks.len() <= 2 + RUNNING);
            }
        }
    }
}
