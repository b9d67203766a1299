//! The plan against the tests' router, with a clock of their own: no sockets, and hours in a moment.

#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::super::for_tests::{Entry, Router, Table};
use super::super::{LEASE, LOOK, Mapping, Method, ssdp};
use super::*;
use proptest::prelude::*;

const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 7);
const LATER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 8);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const ROUTER_V6: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 0, 0, 2);
const PORT: u16 = 6881;
const HOUR: Duration = Duration::from_secs(3600);

struct Sim {
    plan: Plan,
    place: Where,
    router: Router,
    now: Instant,
    begun: Instant,
    /// How many packets and questions there were.
    asked: usize,
    /// Nobody answers over HTTP.
    http_gone: bool,
    /// Since the first mapping there was one of ours at the router at all times.
    always: bool,
}

impl Sim {
    fn new(router: Router) -> Self {
        Self::of(router, Some((LOCAL, GATEWAY)), None)
    }

    fn of(router: Router, v4: Option<(Ipv4Addr, Ipv4Addr)>, v6: Option<Ipv6Addr>) -> Self {
        let now = Instant::now() + Duration::from_secs(1_000_000);
        let router = Router { booted: now - Duration::from_secs(100_000), ..router };
        let ports = Ports { tcp: PORT, udp: Some(PORT) };
        let v6 = v6.map(|local| (local, ROUTER_V6));
        let place = Where { v4, v6, direct: false, group: ssdp::GROUP };
        let plan = Plan::new(ports, place, 7, now);
        Self { plan, place, router, now, begun: now, asked: 0, http_gone: false, always: true }
    }

    /// We are somewhere else.
    fn moved(&mut self, v4: Option<(Ipv4Addr, Ipv4Addr)>, v6: Option<Ipv6Addr>) {
        self.place = Where { v4, v6: v6.map(|local| (local, ROUTER_V6)), ..self.place };
        self.plan.moved(self.place, self.now);
    }

    /// Our address.
    fn local(&self, line: Line) -> IpAddr {
        match line {
            Line::V4 => self.place.v4.unwrap().0.into(),
            Line::V6 => self.place.v6.unwrap().0.into(),
        }
    }

    /// Does so much of what there is to do, one thing after another.
    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            let asks = self.plan.poll(self.now);
            if asks.is_empty() {
                self.now = self.plan.due().unwrap();
            }
            for ask in asks {
                self.carry(ask);
            }
        }
    }

    /// Sends all that is to be sent now, and has it answered.
    fn settle(&mut self) {
        for _ in 0..200 {
            let asks = self.plan.poll(self.now);
            if asks.is_empty() {
                return;
            }
            self.asked += asks.len();
            for ask in asks {
                self.carry(ask);
            }
        }
        panic!("it doesn't come to rest: {:?}", self.router.asked);
    }

    fn carry(&mut self, ask: Ask) {
        let now = self.now;
        match ask {
            Ask::Control(line, packet) => {
                if let Some(reply) = self.router.control(self.local(line), &packet, now) {
                    self.plan.received(line, &reply, now);
                }
            }
            Ask::Search(packets) => {
                for packet in packets {
                    if let Some(reply) = self.router.search(&packet) {
                        self.plan.found(&reply, SocketAddr::new(GATEWAY.into(), 1900));
                    }
                }
            }
            Ask::Http { to, request } => {
                let answer = if self.http_gone || to != self.router.http {
                    Err("connection refused".to_owned())
                } else {
                    Ok(self.router.http(&String::from_utf8(request).unwrap(), now))
                };
                self.plan.answered(answer, now);
            }
        }
    }

    /// Until then, or until nothing is due.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let due = self.plan.due().filter(|due| *due <= end);
            let Some(due) = due else { break };
            assert!(due > self.now, "something is due that isn't done");
            self.now = due;
            if !self.plan.status().mappings.is_empty() {
                self.always &= self.ours() == 2;
            }
        }
        self.now = end;
    }

    fn run_until_mapped(&mut self) -> Duration {
        while self.plan.status().mappings.len() < 2 {
            self.settle();
            if self.plan.status().mappings.len() >= 2 {
                break;
            }
            self.now = self.plan.due().expect("it goes on");
            assert!(self.now < self.begun + HOUR, "never mapped: {:?}", self.plan.status());
        }
        self.now - self.begun
    }

    /// Mappings at the router that lead to us.
    fn ours(&self) -> usize {
        let live = |entry: &&Entry| entry.until.is_none_or(|until| self.now < until);
        let local = self.place.v4.map(|(local, _)| IpAddr::from(local));
        let ours = |entry: &&Entry| Some(entry.client) == local && entry.internal == PORT;
        self.router.table.values().filter(live).filter(ours).count()
    }

    fn stop(&mut self) {
        self.plan.stop();
        let before = self.now;
        loop {
            self.settle();
            if self.plan.is_stopped() {
                break;
            }
            self.now = self.plan.due().expect("it goes on to its end");
        }
        assert!(self.now - before <= Duration::from_secs(2 * 2), "{:?}", self.now - before);
        assert!(self.plan.poll(self.now + HOUR).is_empty() && self.plan.due().is_none());
    }

    fn methods(&self) -> Vec<Method> {
        self.plan.status().mappings.iter().map(|mapping| mapping.method).collect()
    }
}

fn router(method: Method) -> Router {
    Router::of(method, Instant::now() + Duration::from_secs(1_000_000))
}

#[test]
fn each_kind_of_router_is_spoken_to_in_its_language() {
    let deaf = Duration::from_millis(3750);
    for (name, router, method, time) in [
        ("PCP", router(Method::Pcp), Method::Pcp, Duration::ZERO),
        ("NAT-PMP", router(Method::NatPmp), Method::NatPmp, Duration::ZERO),
        ("mute NAT-PMP", Router { mute: true, ..router(Method::NatPmp) }, Method::NatPmp, deaf),
        ("UPnP", router(Method::Upnp), Method::Upnp, 2 * deaf),
        ("UPnP 2", Router { upnp: 2, ..router(Method::Upnp) }, Method::Upnp, 2 * deaf),
        ("two lines", Router { two_lines: true, ..router(Method::Upnp) }, Method::Upnp, 2 * deaf),
        // Nothing is as sure as the end of the search.
        ("dull UPnP", Router { dull: true, ..router(Method::Upnp) }, Method::Upnp, Duration::from_secs(8)),
        ("all", Router { upnp: 1, natpmp: true, ..router(Method::Pcp) }, Method::Pcp, Duration::ZERO),
        ("NAT-PMP, UPnP", Router { upnp: 1, ..router(Method::NatPmp) }, Method::NatPmp, Duration::ZERO),
    ] {
        let mut sim = Sim::new(router);
        assert_eq!(sim.run_until_mapped(), time, "{name}");
        sim.settle();
        assert_eq!(sim.methods(), [method; 2], "{name}");
        let status = sim.plan.status();
        assert_eq!(status.trouble, None);
        assert_eq!(status.port(Protocol::Tcp), Some(PORT), "{name}");
        assert_eq!(status.port(Protocol::Udp), Some(PORT), "{name}");
        assert_eq!(status.addresses(), [IpAddr::from([9, 9, 9, 9])], "{name}");
        assert_eq!(sim.ours(), 2, "{name}");
        // By one way only: nothing was asked for in UPnP where it wasn't its turn.
        let upnp = sim.router.asked.iter().any(|asked| asked.contains("PortMapping"));
        assert_eq!(upnp, method == Method::Upnp, "{name}");
        // For a day, and with few words.
        let before = sim.asked;
        sim.run(24 * HOUR);
        assert!(sim.always && sim.ours() == 2, "{name}");
        let asked = sim.asked - before;
        assert!((48..=1000).contains(&asked), "{name}: {asked}");
        sim.stop();
        assert_eq!(sim.router.table.len(), 0, "{name}");
    }
}

#[test]
fn leases_are_renewed_however_short_they_are() {
    for (method, life) in [
        (Method::Pcp, 600),
        (Method::NatPmp, 600),
        (Method::Pcp, 60),
        (Method::NatPmp, 20),
        // What UPnP asks for it gets, or less and isn't told: then the look finds it gone.
        (Method::Upnp, 3600),
    ] {
        let mut sim = Sim::new(Router { life, ..router(method) });
        sim.run_until_mapped();
        sim.run(3 * HOUR);
        assert!(sim.always && sim.ours() == 2, "{method:?} {life}");
    }
    // One that lives for a second: no flood of words for it.
    let mut sim = Sim::new(Router { life: 1, ..router(Method::NatPmp) });
    sim.run(HOUR);
    assert!(sim.asked < 3000, "{}", sim.asked);
}

#[test]
fn mappings_without_end_are_taken_away_at_the_end() {
    for router in [
        Router { permanent_only: true, ..router(Method::Upnp) },
        Router { only_life: Some(0), ..router(Method::Upnp) },
        Router { only_life: Some(604_800), life: 604_800, upnp: 2, ..router(Method::Upnp) },
    ] {
        let mut sim = Sim::new(router);
        sim.run_until_mapped();
        sim.run(24 * HOUR);
        assert_eq!(sim.ours(), 2);
        sim.stop();
        assert!(sim.router.table.is_empty(), "{:?}", sim.router.asked);
    }
}

#[test]
fn a_port_of_another_is_left_alone() {
    let other = Entry::of("192.168.1.99", PORT);
    for (method, upnp, taken) in [
        (Method::Pcp, 0, Protocol::Tcp),
        (Method::NatPmp, 0, Protocol::Tcp),
        (Method::Upnp, 1, Protocol::Tcp),
        (Method::Upnp, 2, Protocol::Tcp),
        // TCP has been mapped when UDP finds its port taken.
        (Method::Upnp, 1, Protocol::Udp),
        (Method::Upnp, 2, Protocol::Udp),
    ] {
        let mut sim = Sim::new(Router { upnp, ..router(method) });
        sim.router.table.insert((taken, PORT), other);
        sim.run_until_mapped();
        sim.settle();
        let status = sim.plan.status();
        let port = status.port(Protocol::Tcp).unwrap();
        assert_ne!(port, PORT, "{method:?}");
        // Peers are told one port, so both are the same.
        assert_eq!(status.port(Protocol::Udp), Some(port), "{method:?} {upnp} {taken:?}");
        assert_eq!(sim.router.table.len(), 3, "{:?}", sim.router.table);
        assert_eq!(sim.router.table.get(&(taken, PORT)), Some(&other));
        sim.run(6 * HOUR);
        assert_eq!((sim.ours(), sim.router.table.len()), (2, 3));
        sim.stop();
        assert_eq!(sim.router.table.into_iter().collect::<Vec<_>>(), [((taken, PORT), other)]);
    }
}

#[test]
fn all_ports_may_be_taken() {
    let mut sim = Sim::new(router(Method::Upnp));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for port in 1..=u16::MAX {
            sim.router.table.insert((protocol, port), Entry::of("192.168.1.99", 1));
        }
    }
    sim.run(24 * HOUR);
    let trouble = sim.plan.status().trouble.unwrap();
    assert!(trouble.ends_with("; UPnP: all ports that were tried are taken"), "{trouble}");
    assert!(sim.asked < 4000, "{}", sim.asked);
}

#[test]
fn what_an_earlier_run_left_behind_is_ours() {
    let mut sim = Sim::new(Router { strict: true, ..router(Method::Upnp) });
    sim.router.table.insert((Protocol::Tcp, PORT), Entry::of(&LOCAL.to_string(), PORT));
    sim.router.table.insert((Protocol::Udp, PORT), Entry::of(&LOCAL.to_string(), PORT));
    sim.run_until_mapped();
    assert_eq!(sim.plan.status().port(Protocol::Tcp), Some(PORT));
    sim.stop();
    assert!(sim.router.table.is_empty());
}

#[test]
fn a_router_that_forgets_is_told_again() {
    for (method, moves) in
        [(Method::Pcp, false), (Method::NatPmp, false), (Method::Upnp, false), (Method::Upnp, true)]
    {
        let mut sim = Sim::new(router(method));
        sim.run_until_mapped();
        sim.run(10 * HOUR);
        sim.router.restart(sim.now);
        if moves {
            sim.router.http.set_port(1234);
        }
        sim.run(LOOK + Duration::from_secs(30));
        assert_eq!(sim.ours(), 2, "{method:?} {moves}: {:?}", sim.plan.status());
        sim.stop();
        assert!(sim.router.table.is_empty());
    }
}

#[test]
fn a_router_that_is_away_for_a_while_is_told_again() {
    for method in [Method::Pcp, Method::NatPmp, Method::Upnp] {
        let mut sim = Sim::new(router(method));
        sim.run_until_mapped();
        let awake = sim.router.clone();
        sim.router = Router { pcp: false, natpmp: false, mute: true, upnp: 0, ..awake.clone() };
        sim.http_gone = true;
        sim.run(3 * HOUR);
        assert!(sim.plan.status().mappings.is_empty(), "{method:?}");
        assert!(sim.plan.status().trouble.is_some());
        sim.http_gone = false;
        sim.router = awake;
        sim.router.restart(sim.now);
        sim.run(HOUR + Duration::from_secs(60));
        assert_eq!(sim.methods(), [method; 2]);
        assert_eq!(sim.ours(), 2);
    }
}

#[test]
fn who_says_that_something_changed_is_heard_at_once() {
    for method in [Method::Pcp, Method::NatPmp, Method::Upnp] {
        let mut sim = Sim::new(router(method));
        sim.run_until_mapped();
        sim.settle();
        sim.router.restart(sim.now);
        sim.router.address = Ipv4Addr::new(8, 8, 8, 8).into();
        sim.plan.renew(sim.now);
        sim.settle();
        assert_eq!(sim.ours(), 2, "{method:?}");
        sim.run(LOOK);
        assert_eq!(sim.plan.status().addresses(), [IpAddr::from([8, 8, 8, 8])], "{method:?}");
    }
    // Also where nothing had worked.
    let mut sim = Sim::new(Router { stubborn: true, upnp: 1, ..router(Method::Pcp) });
    sim.run(6 * HOUR);
    assert!(sim.plan.status().mappings.is_empty());
    sim.router.stubborn = false;
    sim.plan.renew(sim.now);
    sim.settle();
    assert_eq!(sim.ours(), 2);
}

#[test]
fn another_router_in_between_is_told_of() {
    for method in [Method::Pcp, Method::NatPmp, Method::Upnp] {
        for (address, why) in
            [("10.0.0.5", "another router"), ("100.64.1.1", "another router"), ("0.0.0.0", "no connection")]
        {
            let mut sim = Sim::new(Router { address: address.parse().unwrap(), ..router(method) });
            sim.run_until_mapped();
            sim.settle();
            let status = sim.plan.status();
            assert!(status.trouble.as_ref().is_some_and(|trouble| trouble.contains(why)), "{status:?}");
            assert!(status.addresses().is_empty());
        }
    }
}

#[test]
fn a_router_that_refuses_is_asked_ever_more_seldom() {
    for (router, why) in [
        (
            Router { stubborn: true, ..router(Method::Pcp) },
            "PCP and NAT-PMP: the router is set up to map no ports; UPnP: no router answers",
        ),
        (
            Router { stubborn: true, upnp: 1, ..router(Method::NatPmp) },
            "PCP and NAT-PMP: the router is set up to map no ports; UPnP: the router refused: No 606 (606)",
        ),
        (
            Router { pcp: false, mute: true, ..router(Method::Pcp) },
            "PCP and NAT-PMP: the router doesn't answer; UPnP: no router answers",
        ),
    ] {
        let mut sim = Sim::new(router);
        sim.run(24 * HOUR);
        assert_eq!(sim.plan.status(), Status { trouble: Some(why.to_owned()), ..Status::default() });
        // 2, 4, 8 … 60 minutes: some thirty times.
        assert!(sim.asked < 30 * 20, "{}", sim.asked);
        sim.router = Router { natpmp: true, stubborn: false, ..sim.router };
        sim.run(HOUR + Duration::from_secs(60));
        assert_eq!(sim.ours(), 2);
    }
}

#[test]
fn without_a_router_nothing_is_asked() {
    let mut sim = Sim::of(router(Method::Pcp), None, None);
    sim.run(HOUR);
    assert_eq!(sim.asked, 0);
    assert_eq!(sim.plan.status().trouble.as_deref(), Some("there is no router"));
    sim.stop();
    // Nor is one missed by a machine that stands in the internet itself.
    let place = Where { v4: None, v6: None, direct: true, group: ssdp::GROUP };
    let mut plan = Plan::new(Ports { tcp: PORT, udp: None }, place, 7, sim.now);
    assert!(plan.poll(sim.now).is_empty() && plan.due().is_none());
    assert_eq!(plan.status(), Status { direct: true, ..Status::default() });
}

#[test]
fn a_firewall_for_ipv6_is_opened() {
    let local: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let mut sim = Sim::of(router(Method::Pcp), None, Some(local));
    sim.settle();
    let status = sim.plan.status();
    assert_eq!(status.mappings.len(), 2);
    assert!(status.mappings.iter().all(|mapping| mapping.address == Some(local.into())));
    // Not a port of IPv4's.
    assert_eq!(status.port(Protocol::Tcp), None);
    sim.run(5 * HOUR);
    assert_eq!(sim.router.table.len(), 2);
    sim.stop();
    assert!(sim.router.table.is_empty());
    // A router that has only the older protocol can't.
    let mut sim = Sim::of(router(Method::NatPmp), None, Some(local));
    sim.run(5 * HOUR);
    assert!(sim.plan.status().mappings.is_empty() && sim.asked < 60);
}

#[test]
fn stopping_is_right_at_any_time() {
    for (method, upnp, taken) in [
        (Method::Pcp, 0, None),
        (Method::NatPmp, 0, None),
        (Method::Upnp, 1, None),
        (Method::Upnp, 1, Some(Protocol::Tcp)),
        (Method::Upnp, 1, Some(Protocol::Udp)),
        (Method::Upnp, 2, Some(Protocol::Tcp)),
        (Method::Upnp, 2, Some(Protocol::Udp)),
    ] {
        let taken: Table =
            taken.map(|of| ((of, PORT), Entry::of("192.168.1.99", PORT))).into_iter().collect();
        for (steps, lost) in (0..60).flat_map(|steps| [(steps, false), (steps, true)]) {
            let mut sim = Sim::new(Router { upnp, table: taken.clone(), ..router(method) });
            sim.steps(steps);
            // One question is out when it is told to stop; it is answered all the same, or the answer is lost.
            let asks = sim.plan.poll(sim.now);
            sim.plan.stop();
            for ask in asks {
                match ask {
                    Ask::Control(_, packet) if lost => _ = sim.router.control(LOCAL.into(), &packet, sim.now),
                    ask => sim.carry(ask),
                }
            }
            sim.stop();
            assert_eq!(sim.router.table, taken, "{method:?} {upnp} {steps} {lost}: {:?}", sim.router.asked);
        }
    }
}

#[test]
fn what_is_without_end_is_taken_away_also_where_the_router_was_lost() {
    let other = Entry::of("192.168.1.99", PORT);
    let endless = || Router { permanent_only: true, ..router(Method::Upnp) };
    // It was just lost, is searched for, is given up, and was found again; for a moment, or so long that it is given up twice.
    for minutes in [1, 4, 6, 7, 20, 200] {
        for back in [0, 1, 70] {
            let mut sim = Sim::new(endless());
            sim.router.table.insert((Protocol::Tcp, PORT), other);
            sim.run_until_mapped();
            sim.run(Duration::from_secs(10));
            let port = sim.plan.status().port(Protocol::Tcp);
            sim.http_gone = true;
            sim.plan.renew(sim.now);
            sim.run(Duration::from_secs(minutes * 60));
            sim.http_gone = false;
            sim.run(Duration::from_secs(back * 60));
            if back == 70 {
                assert_eq!(sim.plan.status().port(Protocol::Tcp), port, "the port stays");
                assert_eq!((sim.ours(), sim.router.table.len()), (2, 3));
            }
            sim.stop();
            let left: Vec<_> = sim.router.table.into_iter().collect();
            assert_eq!(left, [((Protocol::Tcp, PORT), other)], "{minutes} {back}");
        }
    }
    // The router starts anew meanwhile, and gives the port to another.
    for back in [0, 70] {
        let mut sim = Sim::new(endless());
        sim.run_until_mapped();
        sim.http_gone = true;
        sim.plan.renew(sim.now);
        sim.run(HOUR);
        assert!(sim.plan.status().mappings.is_empty());
        sim.http_gone = false;
        sim.router.restart(sim.now);
        sim.router.table.insert((Protocol::Tcp, PORT), other);
        sim.run(Duration::from_secs(back * 60));
        assert_eq!(sim.ours(), if back == 0 { 0 } else { 2 });
        sim.stop();
        assert_eq!(sim.router.table.into_iter().collect::<Vec<_>>(), [((Protocol::Tcp, PORT), other)]);
    }
}

#[test]
fn a_version_that_is_refused_twice_answers_nothing_else() {
    // In the operation of an answer routers differ: some take that of the question.
    for operation in [128, 129] {
        let mut sim = Sim::new(router(Method::NatPmp));
        let asked = |sim: &mut Sim| {
            let control = |ask| if let Ask::Control(_, packet) = ask { Some(packet) } else { None };
            sim.plan.poll(sim.now).into_iter().find_map(control).unwrap()
        };
        let refused = |sim: &mut Sim| {
            let packet = asked(sim);
            let mut reply = sim.router.control(LOCAL.into(), &packet, sim.now).unwrap();
            reply[1] = operation;
            reply
        };
        let first = refused(&mut sim);
        sim.now += Duration::from_millis(250);
        let second = refused(&mut sim);
        sim.plan.received(Line::V4, &first, sim.now);
        let map = asked(&mut sim);
        sim.plan.received(Line::V4, &second, sim.now);
        let reply = sim.router.control(LOCAL.into(), &map, sim.now).unwrap();
        sim.plan.received(Line::V4, &reply, sim.now);
        assert_eq!(sim.run_until_mapped(), Duration::from_millis(250));
        assert_eq!(sim.methods(), [Method::NatPmp; 2]);
    }
}

#[test]
fn a_family_that_moves_begins_anew_and_the_other_goes_on() {
    let (v4, v6) = (Some((LOCAL, GATEWAY)), "2001:db8::7".parse::<Ipv6Addr>().ok());
    let mut sim = Sim::of(router(Method::Pcp), v4, None);
    let of = |sim: &Sim, client: IpAddr| {
        let all = sim.router.table.iter().filter(|(_, entry)| entry.client == client);
        all.map(|(key, entry)| (*key, *entry)).collect::<Vec<_>>()
    };
    sim.settle();
    let (mapped, asked) = (of(&sim, LOCAL.into()), sim.asked);
    // Nothing has changed.
    sim.moved(v4, None);
    sim.settle();
    assert_eq!((mapped.len(), sim.asked), (2, asked));
    // An address of the internet comes after the route to it has, and then it is another one.
    sim.now += Duration::from_secs(60);
    sim.moved(v4, v6);
    sim.settle();
    assert_eq!((sim.plan.status().mappings.len(), of(&sim, v6.unwrap().into()).len()), (4, 2));
    let other = "2001:db8::8".parse::<Ipv6Addr>().unwrap();
    sim.moved(v4, Some(other));
    sim.settle();
    let four = |mapping: &&Mapping| mapping.address.is_some_and(|address| address.is_ipv4());
    assert_eq!(sim.plan.status().mappings.iter().filter(four).count(), 2);
    assert_eq!((of(&sim, other.into()).len(), of(&sim, LOCAL.into())), (2, mapped));
    // The router of IPv4 goes: that of IPv6 isn't asked again for it.
    let six = of(&sim, other.into());
    sim.now += Duration::from_secs(60);
    sim.moved(None, Some(other));
    sim.settle();
    assert_eq!((sim.plan.status().mappings.len(), of(&sim, other.into())), (2, six));
}

#[test]
fn who_comes_back_to_a_router_is_known_there() {
    for (name, router) in [
        ("PCP", router(Method::Pcp)),
        ("NAT-PMP", router(Method::NatPmp)),
        ("UPnP", router(Method::Upnp)),
        ("without end", Router { permanent_only: true, ..router(Method::Upnp) }),
        ("strict", Router { strict: true, ..router(Method::Upnp) }),
        ("version 2", Router { upnp: 2, ..router(Method::Upnp) }),
    ] {
        let mut sim = Sim::new(router);
        sim.run_until_mapped();
        sim.settle();
        sim.moved(None, None);
        sim.settle();
        assert!(sim.plan.status().mappings.is_empty());
        sim.now += Duration::from_secs(30);
        sim.moved(Some((LOCAL, GATEWAY)), None);
        sim.run_until_mapped();
        sim.settle();
        assert_eq!((sim.ours(), sim.router.table.len()), (2, 2), "{name}");
        assert_eq!(sim.plan.status().port(Protocol::Tcp), Some(PORT), "{name}");
        sim.stop();
        assert!(sim.router.table.is_empty(), "{name}");
    }
}

#[test]
fn another_address_of_ours_is_where_peers_are_sent() {
    let moved = |router: Router, through_none: bool| {
        let mut sim = Sim::new(router);
        sim.run_until_mapped();
        sim.settle();
        if through_none {
            sim.moved(None, None);
            sim.settle();
        }
        sim.moved(Some((LATER, GATEWAY)), None);
        sim
    };
    for method in [Method::Pcp, Method::NatPmp] {
        let mut sim = moved(router(method), false);
        sim.settle();
        assert_eq!((sim.plan.status().mappings.len(), sim.ours()), (2, 2), "{method:?}");
        sim.stop();
        assert_eq!(sim.ours(), 0, "{method:?}");
    }
    // Who takes orders over UPnP takes those, too, of the address that we had.
    for (permanent_only, through_none) in [(false, false), (true, false), (true, true)] {
        let router = || Router { permanent_only, ..router(Method::Upnp) };
        let mut sim = moved(router(), through_none);
        sim.run_until_mapped();
        sim.settle();
        assert_eq!((sim.ours(), sim.router.table.len()), (2, 2));
        assert_eq!(sim.plan.status().port(Protocol::Tcp), Some(PORT), "the port stays");
        sim.stop();
        assert!(sim.router.table.is_empty());
        for steps in 0..50 {
            let mut sim = moved(router(), through_none);
            sim.steps(steps);
            sim.stop();
            assert!(sim.router.table.is_empty(), "{permanent_only} {steps}: {:?}", sim.router.asked);
        }
        // Another router there is told nothing of it.
        let mut sim = moved(router(), through_none);
        sim.moved(Some((LATER, Ipv4Addr::new(192, 168, 1, 254))), None);
        sim.router.asked.clear();
        sim.router.upnp = 0;
        sim.run(HOUR / 2);
        sim.stop();
        assert_eq!((sim.router.asked.len(), sim.router.table.len()), (0, 2), "{:?}", sim.router.asked);
    }
}

#[test]
fn nobody_speaks_in_the_routers_place() {
    let mut sim = Sim::new(Router { mute: true, ..router(Method::Pcp) });
    let asks = sim.plan.poll(sim.now);
    let packet = asks.iter().find_map(|ask| match ask {
        Ask::Control(Line::V4, packet) => Some(packet.clone()),
        _ => None,
    });
    // An answer to a question that wasn't asked: another nonce, another port, another protocol.
    let good = sim.router.control(LOCAL.into(), &packet.unwrap(), sim.now).unwrap();
    for at in [24, 36, 41] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        sim.plan.received(Line::V4, &bad, sim.now);
        assert!(sim.plan.status().mappings.is_empty(), "{at}");
    }
    sim.plan.received(Line::V4, &good, sim.now);
    assert_eq!(sim.plan.status().mappings.len(), 1);

    // Devices that aren't the router: one of the internet never, one of the network only when the router hasn't answered.
    let mut sim = Sim::new(Router { upnp: 0, ..router(Method::Upnp) });
    let answer = |host: &str| {
        format!("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://{host}:80/d.xml\r\n\r\n")
            .into_bytes()
    };
    sim.plan.poll(sim.now);
    sim.plan.found(&answer("8.8.8.8"), "8.8.8.8:1900".parse().unwrap());
    sim.plan.found(&answer("192.168.1.66"), "192.168.1.66:1900".parse().unwrap());
    let mut called = Vec::new();
    while sim.plan.status().trouble.is_none() {
        for ask in sim.plan.poll(sim.now) {
            if let Ask::Http { to, .. } = ask {
                called.push((to, sim.now - sim.begun));
                sim.plan.answered(Err("refused".into()), sim.now);
            }
        }
        sim.now = sim.plan.due().unwrap().max(sim.now);
    }
    assert_eq!(called, [("192.168.1.66:80".parse().unwrap(), Duration::from_secs(5))]);
}

#[test]
fn a_lease_is_half_over_when_it_is_renewed() {
    let mut sim = Sim::new(router(Method::Pcp));
    sim.settle();
    let maps = |sim: &Sim| sim.router.asked.iter().filter(|asked| *asked == "pcp 1").count();
    assert_eq!(maps(&sim), 2);
    sim.run(LEASE / 2 - Duration::from_secs(1));
    assert_eq!(maps(&sim), 2);
    sim.run(Duration::from_secs(1));
    assert_eq!(maps(&sim), 4);
}

/// What a router that is out of its mind does.
#[derive(Debug, Clone)]
enum Whim {
    Nothing,
    Honest,
    Garbled(usize, u8),
    Bytes(Vec<u8>),
    Fault(u16),
}

fn whim() -> impl Strategy<Value = Whim> {
    prop_oneof![
        2 => Just(Whim::Nothing),
        6 => Just(Whim::Honest),
        2 => (0..80usize, any::<u8>()).prop_map(|(at, with)| Whim::Garbled(at, with)),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Whim::Bytes),
        2 => prop_oneof![Just(718), Just(725), Just(402), Just(501), Just(714), Just(401), Just(606)].prop_map(Whim::Fault),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a router does, few words are made of it, and it comes to an end.
    #[test]
    fn no_router_is_too_strange(
        whims in proptest::collection::vec(whim(), 1..60),
        (pcp, natpmp, upnp, strict) in (any::<bool>(), any::<bool>(), 0..3u32, any::<bool>()),
        life in prop_oneof![0..100u32, Just(7200u32), any::<u32>()],
        hours in 1..30u32,
    ) {
        let router = Router { pcp, natpmp, upnp, strict, life, ..router(Method::Upnp) };
        let mut sim = Sim::new(router);
        let end = sim.now + hours * HOUR;
        let mut at = 0;
        let mut stopping = false;
        let (mut steps, mut asked) = (0, 0);
        while !(stopping && sim.plan.is_stopped()) {
            steps += 1;
            prop_assert!(steps < 20_000 * (hours as usize + 1), "it spins");
            let asks = sim.plan.poll(sim.now);
            asked += asks.len();
            if asks.is_empty() {
                if stopping && sim.plan.is_stopped() {
                    break;
                }
                match sim.plan.due() {
                    Some(due) if due <= end || stopping => {
                        prop_assert!(due > sim.now, "something is due that isn't done");
                        sim.now = due;
                    }
                    _ => {
                        sim.now = sim.now.max(end);
                        sim.plan.stop();
                        stopping = true;
                    }
                }
            }
            for ask in asks {
                at += 1;
                let whim = whims[at % whims.len()].clone();
                let now = sim.now;
                match (whim, ask) {
                    (Whim::Honest, ask) => sim.carry(ask),
                    (Whim::Nothing, Ask::Http { .. }) => sim.plan.answered(Err("reset".into()), now),
                    (Whim::Fault(code), Ask::Http { .. }) => {
                        let body = format!("<Envelope><errorCode>{code}</errorCode></Envelope>").into_bytes();
                        sim.plan.answered(Ok(Response { status: 500, body }), now);
                    }
                    (Whim::Bytes(body), Ask::Http { .. }) => sim.plan.answered(Ok(Response { status: 200, body }), now),
                    (Whim::Garbled(at, with), Ask::Http { request, .. }) => {
                        let mut response = sim.router.http(&String::from_utf8(request).unwrap(), now);
                        if let Some(byte) = response.body.get_mut(at * 5) {
                            *byte = with;
                        }
                        sim.plan.answered(Ok(response), now);
                    }
                    (Whim::Bytes(bytes), Ask::Control(line, _)) => sim.plan.received(line, &bytes, now),
                    (Whim::Garbled(at, with), Ask::Control(line, packet)) => {
                        if let Some(mut reply) = sim.router.control(LOCAL.into(), &packet, now) {
                            if let Some(byte) = reply.get_mut(at) {
                                *byte = with;
                            }
                            sim.plan.received(line, &reply, now);
                        }
                    }
                    (Whim::Fault(code), Ask::Control(line, _)) if code % 2 == 0 => sim.plan.unreachable(line, now),
                    (Whim::Nothing | Whim::Fault(_), Ask::Control(..)) | (_, Ask::Search(_)) => {}
                }
            }
        }
        // Two leases of a second are renewed every five, and questions are repeated.
        prop_assert!(asked <= 5000 * (hours as usize + 1), "{asked} in {hours} h");
    }
}
