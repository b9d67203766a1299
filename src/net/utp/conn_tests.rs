//! Two connections over a simulated line: delay, a bottleneck with a queue, loss, reordering, duplication, by a seed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::net::utp::ledbat::{TARGET, WINDOW_MAX};
use crate::net::utp::receive::ROOM;
use crate::net::utp::send::QUEUE;

const PACKET: usize = 1402;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True so many times in a thousand.
    fn per_mille(&mut self, n: u32) -> bool {
        self.next() % 1000 < u64::from(n)
    }
}

/// One direction.
#[derive(Debug, Clone)]
struct Line {
    delay: Duration,
    /// Bytes a second, and how long a packet may wait for its turn; 0 is no bottleneck.
    rate: u64,
    queue: Duration,
    loss: u32,
    reorder: u32,
    double: u32,
    /// Packets that are longer are lost.
    longest: usize,
    free_at: Option<Instant>,
    dice: Dice,
    /// The longest that a packet has waited lately.
    waited: Vec<Duration>,
    /// Packets that were lost.
    lost: u32,
}

impl Line {
    fn new(delay: Duration, rate: u64, seed: u64) -> Self {
        Self {
            delay,
            rate,
            queue: ms(1000),
            loss: 0,
            reorder: 0,
            double: 0,
            longest: usize::MAX,
            free_at: None,
            dice: Dice(seed),
            waited: Vec::new(),
            lost: 0,
        }
    }

    /// When a packet arrives, maybe never, maybe twice.
    fn send(&mut self, len: usize, now: Instant) -> Vec<Instant> {
        if self.dice.per_mille(self.loss) || len > self.longest {
            self.lost += 1;
            return Vec::new();
        }
        let mut at = now;
        if let Some(serial) = (len as u64 + 28).saturating_mul(1_000_000_000).checked_div(self.rate) {
            let start = self.free_at.unwrap_or(now).max(now);
            if start - now > self.queue {
                self.lost += 1;
                return Vec::new();
            }
            self.waited.push(start - now);
            at = start + Duration::from_nanos(serial);
            self.free_at = Some(at);
        }
        at += self.delay;
        if self.dice.per_mille(self.reorder) {
            at += Duration::from_micros(self.dice.next() % 20_000);
        }
        let mut all = vec![at];
        if self.dice.per_mille(self.double) {
            all.push(at + Duration::from_micros(self.dice.next() % 50_000));
        }
        all
    }
}

/// What each side of a connection does: writes so much, reads at a rate, and closes.
struct Side {
    conn: Conn,
    to_write: usize,
    written: usize,
    got: usize,
    salt: usize,
    /// Bytes each 10 ms; 0 is as they come.
    reads: usize,
    unread: BytesMut,
    closed: bool,
    hears: bool,
    wake: Option<Instant>,
    most: usize,
    sent: usize,
    sent_bytes: usize,
}

fn pattern(at: usize, salt: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ (at >> 16) ^ salt) as u8
}

impl Side {
    fn new(conn: Conn, to_write: usize, salt: usize) -> Self {
        Self {
            conn,
            to_write,
            written: 0,
            got: 0,
            salt,
            reads: 0,
            unread: BytesMut::new(),
            closed: false,
            hears: true,
            wake: None,
            most: 0,
            sent: 0,
            sent_bytes: 0,
        }
    }

    fn read(&mut self, most: usize) {
        let n = self.unread.len().min(most);
        for &byte in &self.unread[..n] {
            assert_eq!(byte, pattern(self.got, self.salt ^ 1), "byte {}", self.got);
            self.got += 1;
        }
        let _ = self.unread.split_to(n);
    }

    /// Writes and reads what it can, and polls; gives what is sent.
    fn pump(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let n = self.conn.write_room().min(self.to_write - self.written);
            let bytes: Vec<u8> = (self.written..self.written + n).map(|at| pattern(at, self.salt)).collect();
            self.written += self.conn.write(&bytes, now);
            if self.written == self.to_write && !self.closed {
                self.closed = true;
                self.conn.close(now);
            }
            let mut read = BytesMut::new();
            self.conn.read(&mut read);
            self.unread.extend_from_slice(&read);
            if self.reads == 0 {
                self.read(usize::MAX);
            }
            self.conn.set_unread(self.unread.len(), now);
            let next = self.conn.poll(now, &mut |bytes| {
                out.push(bytes.to_vec());
                true
            });
            self.wake = next.wake;
            assert!(next.wake.is_none_or(|wake| wake > now), "it would spin: {:?}", self.conn);
            self.most = self.most.max(self.conn.kept());
            if n == 0 {
                break;
            }
        }
        self.sent += out.len();
        self.sent_bytes += out.iter().map(Vec::len).sum::<usize>();
        out
    }

    fn is_done(&self) -> bool {
        self.closed && self.conn.has_ended() && self.unread.is_empty() && self.conn.send.is_done()
    }
}

/// A pair of connections and the lines between them.
struct World {
    start: Instant,
    now: Instant,
    sides: [Side; 2],
    /// From the first to the second, and back.
    lines: [Line; 2],
    on_the_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    serial: u64,
}

impl World {
    /// A connection that the first side dials. Both begin near the numbers' end.
    fn new(lines: [Line; 2], bytes: [usize; 2]) -> Self {
        let start = Instant::now();
        // Two clocks that know nothing of each other.
        let setup = |off| Setup { packet: PACKET, epoch: start - off };
        let dialler = Conn::dial(65_535, Seq(65_500), setup(ms(5_000)), start);
        let syn = Packet {
            kind: Type::Syn,
            id: 65_535,
            stamp: 0,
            diff: 0,
            window: ROOM as u32,
            seq: Seq(65_500),
            ack: Seq(0),
            sack: None,
            payload: &[],
        };
        let acceptor = Conn::accept(&syn, Seq(65_400), setup(ms(77_000)), start);
        let mut sides = [Side::new(dialler, bytes[0], 0), Side::new(acceptor, bytes[1], 1)];
        // It isn't there before the SYN.
        sides[1].hears = false;
        Self { start, now: start, sides, lines, on_the_way: BTreeMap::new(), serial: 0 }
    }

    fn pump(&mut self, side: usize) {
        if side == 1 && !self.sides[1].hears {
            return;
        }
        for packet in self.sides[side].pump(self.now) {
            for at in self.lines[side].send(packet.len(), self.now) {
                self.serial += 1;
                self.on_the_way.insert((at, self.serial), (1 - side, packet.clone()));
            }
        }
    }

    /// Goes on to whatever is next, `until` at most. False if nothing will ever happen.
    fn step(&mut self, until: Instant) -> bool {
        let wakes = self.sides.iter().filter(|side| side.hears).filter_map(|side| side.wake);
        let tick = self.sides.iter().any(|side| side.reads > 0 && !side.unread.is_empty());
        let tick = tick.then(|| self.now + ms(10));
        let packet = self.on_the_way.keys().next().map(|(at, _)| *at);
        let Some(next) = wakes.chain(packet).chain(tick).min() else { return false };
        self.now = next.max(self.now).min(until);
        if tick == Some(self.now) {
            self.sides.iter_mut().filter(|side| side.reads > 0).for_each(|side| side.read(side.reads));
        }
        while let Some((&(at, serial), _)) = self.on_the_way.first_key_value()
            && at <= self.now
        {
            let (to, bytes) = self.on_the_way.remove(&(at, serial)).unwrap();
            let packet = Packet::decode(&bytes).unwrap();
            let side = &mut self.sides[to];
            if packet.kind == Type::Syn && !side.hears {
                side.hears = true;
                side.conn.due = self.now + GREETING;
            } else {
                side.conn.received(&packet, self.now);
            }
        }
        self.pump(0);
        self.pump(1);
        true
    }

    /// Runs until both sides are done; says how long that took. `None` when chance made the line look like one that eats
    /// full packets: the first ones of a side, or what tells that they arrived, were lost time after time.
    fn try_run(&mut self, limit: Duration) -> Option<Duration> {
        let until = self.start + limit;
        self.pump(0);
        while !(self.sides[0].is_done() && self.sides[1].is_done()) {
            assert!(self.step(until), "nothing more happens: {:?}", self.describe());
            assert!(self.now < until, "not done after {limit:?}: {:?}", self.describe());
            for (side, other) in [(0, 1), (1, 0)] {
                match self.sides[side].conn.state() {
                    State::Ended(End::Narrow) => {
                        // No more than the first window, of which nothing was acknowledged; and each time-out took a loss.
                        let begun = self.sides[other].got <= 4 * PACKET;
                        let lost = self.lines[0].lost + self.lines[1].lost;
                        assert!(begun && lost >= NARROW, "{lost} lost: {:?}", self.describe());
                        return None;
                    }
                    State::Ended(_) => panic!("{:?}", self.describe()),
                    State::Dialling | State::Greeting | State::Open => {}
                }
            }
        }
        for (side, other) in [(0, 1), (1, 0)] {
            assert_eq!(self.sides[side].got, self.sides[other].to_write);
            let most = self.sides[side].most;
            assert!(most <= QUEUE + WINDOW_MAX + ROOM + PACKET, "{most}");
        }
        Some(self.now - self.start)
    }

    /// As [`World::try_run`], where no such chance is to be.
    fn run(&mut self, limit: Duration) -> Duration {
        self.try_run(limit).expect("full packets arrive")
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.pump(0);
        while self.now < until && self.step(until) {}
    }

    fn describe(&self) -> Vec<(State, usize, usize, usize, usize)> {
        let of =
            |s: &Side| (s.conn.state(), s.written, s.got, s.conn.window(), s.conn.send.bytes_travelling());
        self.sides.iter().map(of).collect()
    }
}

fn lines(delay: Duration, rate: u64, seed: u64) -> [Line; 2] {
    [Line::new(delay, rate, seed), Line::new(delay, rate, seed ^ 0xabcd)]
}

#[test]
fn a_clean_line_takes_what_it_can_carry() {
    for (delay, rate, bytes, share) in [
        (ms(0), 100_000_000, 50_000_000, 0.9),
        (ms(1), 10_000_000, 50_000_000, 0.9),
        (ms(25), 1_000_000, 30_000_000, 0.9),
        (ms(100), 1_000_000, 60_000_000, 0.9),
        (ms(25), 50_000, 1_500_000, 0.9),
        // More than the largest window carries.
        (ms(50), 100_000_000, 50_000_000, 0.085),
    ] {
        let mut world = World::new(lines(delay, rate, 1), [bytes, 0]);
        let took = world.run(ms(1_000_000)).as_secs_f64();
        let achieved = bytes as f64 / took / rate as f64;
        println!("{delay:?} {rate} B/s: {:.1} % in {took:.1} s", achieved * 100.0);
        assert!(achieved >= share, "{delay:?} {rate}: {achieved}");
        let again = world.sides[0].sent_bytes as f64 / bytes as f64;
        assert!(again < 1.05, "{again} times as much was sent");
    }
}

#[test]
fn small_messages_go_at_once() {
    let mut world = World::new(lines(ms(50), 0, 1), [10, 10]);
    let took = world.run(ms(10_000));
    // The SYN and its answer, one side, the other (which is sure of the first only then), and its acknowledgement.
    assert!(took <= ms(50 * 5 + 15), "{took:?}");
    assert!(world.sides[0].sent <= 6 && world.sides[1].sent <= 6);
}

#[test]
fn every_second_packet_is_acknowledged() {
    let mut world = World::new(lines(ms(10), 1_000_000, 1), [2_000_000, 0]);
    world.run(ms(10_000));
    let [sender, receiver] = &world.sides;
    assert!(receiver.sent * 10 < sender.sent * 6, "{} for {}", receiver.sent, sender.sent);
}

#[test]
fn it_gets_through_a_bad_line() {
    for loss in [10, 50, 200] {
        let mut lines = lines(ms(20), 2_000_000, loss.into());
        lines.iter_mut().for_each(|line| line.loss = loss);
        let bytes = 4_000_000 / loss as usize * 10;
        let mut world = World::new(lines, [bytes, bytes / 2]);
        let took = world.run(ms(3_600_000));
        println!("{} % lost: {} KB/s", loss / 10, bytes as u128 / took.as_millis());
    }
}

#[test]
fn packets_that_overtake_each_other_do_not_slow_it_down() {
    let mut lines = lines(ms(50), 1_000_000, 1);
    lines.iter_mut().for_each(|line| line.reorder = 200);
    let mut world = World::new(lines, [10_000_000, 0]);
    let took = world.run(ms(100_000));
    println!("a fifth reordered by up to 20 ms: {took:?} instead of 10 s");
    assert!(took < ms(18_000), "{took:?}");
}

#[test]
fn a_reader_that_is_slow_holds_the_writer_back_and_loses_nothing() {
    let mut world = World::new(lines(ms(20), 0, 1), [6_000_000, 0]);
    world.sides[1].reads = 10_000;
    let took = world.run(ms(60_000));
    assert!(took >= ms(5_000) && took < ms(7_500), "{took:?}");
    assert!(world.sides[0].sent_bytes < 6_600_000, "{}", world.sides[0].sent_bytes);
}

#[test]
fn a_reader_that_stops_for_minutes_is_waited_for() {
    let mut world = World::new(lines(ms(20), 0, 1), [3_000_000, 0]);
    world.sides[1].reads = 1;
    world.run_for(ms(300_000));
    assert_eq!(world.sides[0].conn.state(), State::Open);
    let before = world.sides[0].sent;
    world.run_for(ms(60_000));
    let asked = world.sides[0].sent - before;
    assert!(asked < 30, "it asks now and then: {asked}");
    world.sides[1].reads = 0;
    let since = world.now;
    world.run(ms(400_000));
    assert!(world.now - since < ms(3_000), "{:?}", world.now - since);
}

#[test]
fn the_queue_stays_near_the_target_and_the_line_full() {
    for (delay, rate) in [(ms(10), 500_000), (ms(50), 1_000_000), (ms(30), 125_000)] {
        let mut lines = lines(delay, rate, 1);
        lines[0].queue = ms(3_000);
        let mut world = World::new(lines, [usize::MAX / 2, 0]);
        world.run_for(ms(30_000));
        world.lines[0].waited.clear();
        let before = world.sides[1].got;
        world.run_for(ms(60_000));
        let mut waited = std::mem::take(&mut world.lines[0].waited);
        waited.sort();
        let (median, most) = (waited[waited.len() / 2], waited[waited.len() - 1]);
        let share = (world.sides[1].got - before) as f64 / 60.0 / rate as f64;
        println!("{delay:?} {rate} B/s: queue {median:?}, at most {most:?}; {:.1} % used", share * 100.0);
        assert!(median > TARGET / 2 && median < TARGET * 5 / 4, "{median:?}");
        assert!(most < TARGET * 3 / 2, "{most:?}");
        assert!(share > 0.9, "{share}");
    }
}

/// A flow that fills whatever queue there is: adds a packet a round trip, halves when one is lost.
struct Greedy {
    window: f64,
    on_the_way: usize,
    next: u64,
    acked: u64,
    cut_before: u64,
    delivered: usize,
    /// When each answer comes, and to which packet.
    answers: VecDeque<(Instant, u64)>,
}

impl Greedy {
    const LEN: usize = 1448;

    fn send(&mut self, line: &mut Line, back: Duration, now: Instant) {
        while (self.on_the_way as f64) < self.window {
            self.on_the_way += 1;
            if let Some(&at) = line.send(Self::LEN, now).first() {
                self.answers.push_back((at + back, self.next));
            }
            self.next += 1;
        }
    }

    fn answered(&mut self, now: Instant) {
        while let Some(&(at, n)) = self.answers.front()
            && at <= now
        {
            self.answers.pop_front();
            let lost = n - self.acked;
            self.on_the_way -= 1 + lost as usize;
            if lost > 0 && self.acked >= self.cut_before {
                self.cut_before = self.next;
                self.window = (self.window / 2.0).max(2.0);
            }
            self.acked = n + 1;
            self.delivered += Self::LEN;
            self.window += 1.0 / self.window;
        }
    }
}

/// The share of the line that we have beside a greedy flow, over half a minute, when the queue holds so much; and before it came,
/// and after it went.
fn beside_greedy(queue: Duration) -> [f64; 3] {
    let (delay, rate) = (ms(20), 500_000);
    let mut lines = lines(delay, rate, 3);
    lines[0].queue = queue;
    let mut world = World::new(lines, [usize::MAX / 2, 0]);
    let mut shares = [0.0; 3];
    let mut greedy = Greedy {
        window: 4.0,
        on_the_way: 0,
        next: 0,
        acked: 0,
        cut_before: 0,
        delivered: 0,
        answers: VecDeque::new(),
    };
    for (phase, share) in shares.iter_mut().enumerate() {
        // A while to settle, then half a minute to be counted.
        for counted in [false, true] {
            let before = world.sides[1].got;
            let until = world.now + ms(if counted { 30_000 } else { 15_000 });
            world.pump(0);
            while world.now < until {
                let next = greedy.answers.front().map_or(until, |(at, _)| *at).min(until);
                world.step(next);
                greedy.answered(world.now);
                if phase == 1 {
                    greedy.send(&mut world.lines[0], delay, world.now);
                }
            }
            if counted {
                *share = (world.sides[1].got - before) as f64 / 30.0 / rate as f64;
            }
        }
    }
    shares
}

#[test]
fn it_gives_way_to_who_wants_more_and_takes_the_line_back() {
    for (queue, most) in [(ms(1000), 0.05), (ms(300), 0.05), (ms(200), 0.10), (ms(100), 0.25)] {
        let [before, beside, after] = beside_greedy(queue);
        println!(
            "queue of {queue:?}: {before:.3} alone, {beside:.3} beside a greedy flow, {after:.3} after it"
        );
        assert!(before > 0.85 && after > 0.80, "{before} {after}");
        assert!(beside < most, "{queue:?}: {beside}");
    }
}

#[test]
fn a_path_that_eats_full_packets_is_found_out_soon() {
    let mut lines = lines(ms(20), 0, 1);
    lines[0].longest = 1300;
    let mut world = World::new(lines, [100_000, 0]);
    world.run_for(ms(10_000));
    assert_eq!(world.sides[0].conn.state(), State::Ended(End::Narrow));
    assert!(world.now - world.start <= ms(10_000));
}

#[test]
fn who_dials_nobody_gives_up_and_so_does_who_hears_nothing() {
    let mut nobody = lines(ms(20), 0, 1);
    nobody[0].loss = 1000;
    let mut world = World::new(nobody, [10, 0]);
    world.run_for(ms(60_000));
    assert_eq!(world.sides[0].conn.state(), State::Ended(End::TimedOut));
    assert_eq!((world.sides[0].sent, world.now - world.start), (3, ms(7_000)));

    let mut world = World::new(lines(ms(20), 100_000, 1), [50_000_000, 0]);
    world.run_for(ms(5_000));
    world.lines.iter_mut().for_each(|line| line.loss = 1000);
    world.run_for(ms(120_000));
    assert_eq!(world.sides[0].conn.state(), State::Ended(End::TimedOut));
    // A line that comes back in time.
    let mut world = World::new(lines(ms(20), 100_000, 1), [1_000_000, 0]);
    world.run_for(ms(2_000));
    world.lines.iter_mut().for_each(|line| line.loss = 1000);
    world.run_for(ms(20_000));
    world.lines.iter_mut().for_each(|line| line.loss = 0);
    world.run(ms(60_000));
}

#[test]
fn quiet_connections_say_that_they_are_there() {
    let mut world = World::new(lines(ms(20), 0, 1), [10, 10]);
    // Neither closes.
    world.sides.iter_mut().for_each(|side| side.closed = true);
    world.run_for(ms(1000));
    let before = [world.sides[0].sent, world.sides[1].sent];
    world.run_for(ms(300_000));
    for (side, before) in world.sides.iter().zip(before) {
        assert_eq!(side.conn.state(), State::Open);
        let said = side.sent - before;
        assert!((10..=11).contains(&said), "{said}");
    }
}

#[test]
fn letting_go_ends_it_in_bounded_time() {
    let mut world = World::new(lines(ms(20), 100_000, 1), [50_000_000, 0]);
    world.run_for(ms(2_000));
    let now = world.now;
    world.sides[0].closed = true;
    world.sides[0].to_write = world.sides[0].written;
    world.sides[0].conn.let_go(now);
    world.run_for(LINGER + ms(1));
    assert_eq!(world.sides[0].conn.state(), State::Ended(End::Closed));
    // At once when both have said all.
    let mut world = World::new(lines(ms(20), 0, 1), [1000, 1000]);
    world.run(ms(1_000));
    let now = world.now;
    world.sides.iter_mut().for_each(|side| side.conn.let_go(now));
    world.run_for(ms(100));
    for side in &world.sides {
        assert_eq!(side.conn.state(), State::Ended(End::Closed));
    }
    // While dialling.
    let mut conn = Conn::dial(1, Seq(1), Setup { packet: PACKET, epoch: now }, now);
    conn.let_go(now);
    assert_eq!(conn.poll(now, &mut |_| panic!("nothing is sent")).state, State::Ended(End::Closed));
}

#[test]
fn a_full_network_is_waited_for() {
    let now = Instant::now();
    let mut world = World::new(lines(ms(0), 0, 1), [0, 0]);
    world.sides.iter_mut().for_each(|side| side.closed = true);
    world.run_for(ms(100));
    let conn = &mut world.sides[0].conn;
    let now = now + ms(200);
    conn.write(&[1; 5000], now);
    let mut taken = 0;
    let next = conn.poll(now, &mut |_| {
        taken += 1;
        taken <= 2
    });
    assert!(next.blocked);
    let mut rest = Vec::new();
    let next = conn.poll(now, &mut |bytes| {
        rest.push(Packet::decode(bytes).unwrap().payload.len());
        true
    });
    assert_eq!((next.blocked, rest), (false, vec![PACKET - HEADER, 5000 - 3 * (PACKET - HEADER)]));
}

#[derive(Debug, Clone)]
struct Weather {
    seed: u64,
    delay: u64,
    rate: u64,
    queue: u64,
    loss: u32,
    reorder: u32,
    double: u32,
    bytes: [usize; 2],
    reads: usize,
}

prop_compose! {
    fn weather()(
        seed: u64, delay in 0u64..150, rate in prop_oneof![Just(0u64), 20_000u64..5_000_000], queue in 20u64..2000,
        loss in prop_oneof![Just(0u32), 0u32..150], reorder in prop_oneof![Just(0u32), 0u32..500],
        double in prop_oneof![Just(0u32), 0u32..200], a in 0usize..300_000, b in 0usize..100_000,
        reads in prop_oneof![Just(0usize), 500usize..20_000],
    ) -> Weather {
        Weather { seed, delay, rate, queue, loss, reorder, double, bytes: [a, b], reads }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn all_bytes_arrive_in_order_whatever_the_line_does(weather in weather()) {
        let mut lines = lines(ms(weather.delay), weather.rate, weather.seed);
        for line in &mut lines {
            line.queue = ms(weather.queue);
            (line.loss, line.reorder, line.double) = (weather.loss, weather.reorder, weather.double);
        }
        let mut world = World::new(lines, weather.bytes);
        world.sides[1].reads = weather.reads;
        // The answer to the SYN is lost three times in a row now and then; that is no fault.
        world.pump(0);
        let opening = world.now + ms(7_000);
        while world.sides[0].conn.state() == State::Dialling && world.step(opening) {}
        if world.sides.iter().all(|side| side.conn.state() == State::Open || side.hears)
            && world.sides[0].conn.state() == State::Open
        {
            if world.try_run(ms(4_000_000)).is_none() {
                return Ok(());
            }
            let now = world.now;
            world.sides.iter_mut().for_each(|side| side.conn.let_go(now));
            world.run_for(LINGER + ms(1));
            for side in &world.sides {
                prop_assert_eq!(side.conn.state(), State::Ended(End::Closed));
            }
        }
    }

    #[test]
    fn nothing_that_comes_makes_it_panic_or_grow(
        dialled: bool,
        packets in prop::collection::vec(
            (0u8..5, any::<i8>(), any::<i8>(), any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40),
             0usize..3000, 0u64..2000),
            0..200),
    ) {
        let start = Instant::now();
        let setup = Setup { packet: PACKET, epoch: start };
        let mut now = start;
        let syn = Packet { kind: Type::Syn, id: 7, stamp: 0, diff: 0, window: 0, seq: Seq(100), ack: Seq(0), sack: None, payload: &[] };
        let mut conn = match dialled {
            true => Conn::dial(7, Seq(99), setup, now),
            false => Conn::accept(&syn, Seq(100), setup, now),
        };
        let payload = vec![0; 3000];
        let mut sent = 0usize;
        for (code, seq, ack, diff, window, mask, len, pause) in packets {
            let kind = [Type::Data, Type::Fin, Type::State, Type::Reset, Type::Syn][usize::from(code)];
            if kind == Type::Reset && len % 10 > 0 {
                continue;
            }
            let packet = Packet {
                kind, id: 8, stamp: diff ^ window, diff, window,
                seq: Seq(101).plus(seq as u16), ack: Seq(99).plus((ack / 4) as u16),
                sack: (!mask.is_empty()).then(|| Sack::new(&mask)),
                payload: &payload[..len],
            };
            conn.received(&packet, now);
            conn.write(&payload, now);
            let mut read = BytesMut::new();
            if len % 2 == 0 {
                conn.read(&mut read);
            }
            let next = conn.poll(now, &mut |bytes| {
                sent += 1;
                assert!(bytes.len() <= PACKET + 70);
                true
            });
            prop_assert!(next.wake.is_none_or(|wake| wake > now));
            prop_assert!(conn.kept() <= QUEUE + WINDOW_MAX + ROOM + (64 << 10));
            now += ms(pause);
        }
        prop_assert!(sent < 200 * 1100);
    }
}
