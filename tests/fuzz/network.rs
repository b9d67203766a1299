//! What routers and proxies say: the targets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use torrentfs::net::mapping::http::{MAX_ANSWER, Place, Response};
use torrentfs::net::mapping::plan::{Ask, Line, Plan, Where};
use torrentfs::net::mapping::soap::{Action, Values, services};
use torrentfs::net::mapping::xml::{Token, Tokens, leaves};
use torrentfs::net::mapping::{Ports, natpmp, pcp, ssdp};
use torrentfs::net::proxy::socks5::{self, Client, Command, Progress};
use torrentfs::net::proxy::{Auth, Proxy, ProxyKind, Target, http as http_proxy};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// A packet of a router's, read as one of NAT-PMP, of PCP and of SSDP.
pub fn router_packets(input: &[u8]) {
    if let Some(reply) = natpmp::Reply::decode(input) {
        assert!(input.len() >= 4 && input[0] == natpmp::VERSION && input[1] >= 128, "{reply:?}");
        if let natpmp::Reply::Map { external, lifetime, .. } = reply {
            assert_eq!(input[10..16], [&external.to_be_bytes()[..], &lifetime.to_be_bytes()].concat());
        }
    }
    if let Some(reply) = pcp::Reply::decode(input) {
        assert!(input.len() <= pcp::MAX_PACKET && input[1] >= 128);
        // Without a mapping it is a refusal, or answers an ANNOUNCE.
        assert!(reply.map.is_some() || reply.refused.is_some() || input[1] == 128);
    }
    let from = SocketAddr::from((ROUTER, 1900));
    if let Some(place) = ssdp::answer(input, from) {
        assert_eq!(place.at.ip(), from.ip(), "nobody leads us to somebody else");
        assert!(is_path(&place.path));
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What a router answers over HTTP, and what its documents say.
pub fn router_http(input: &[u8]) {
    let response = match Response::read(input, true) {
        Ok(Some(response)) => response,
        Ok(None) => panic!("nothing more comes"),
        Err(error) => return assert!(error.to_string().len() < 200),
    };
    assert!(response.body.len() <= input.len().max(MAX_ANSWER));
    if let Ok(Some(before)) = Response::read(input, false) {
        assert_eq!(before, response);
    }
    let text = response.text();
    let tokens = Tokens::new(&text).inspect(|token| match token {
        Token::Open(name) | Token::Close(name) => assert!(name.len() <= text.len()),
        Token::Text(_) => {}
    });
    assert!(tokens.count() <= text.len() + 1 && leaves(&text, "service").len() <= text.len() + 1);
    let at = Place { at: (ROUTER, 5000).into(), path: "/root.xml".to_owned() };
    for service in services(&text, &at) {
        assert_eq!(service.control.at.ip(), at.at.ip(), "nobody leads us to somebody else");
        let request = String::from_utf8(Action::Status.request(&service)).expect("text");
        let (head, _) = request.split_once("\r\n\r\n").expect("a head");
        assert_eq!(head.lines().count(), 7, "nothing of theirs makes a further header: {head:?}");
    }
    match Values::read(&response) {
        Ok(values) => {
            let _ = (values.connected(), values.address(), values.client(), values.lease());
            assert_ne!(values.reserved(), Some(0));
        }
        Err(fault) => assert!(fault.to_string().len() < 1000, "{fault}"),
    }
}

/// All that decides, against a router that says these bytes: records of what is answered (a packet, what is found, a page, or
/// nothing), a length and so many bytes. Little is asked in all, and it comes to its end.
pub fn router(input: &[u8]) {
    let link = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 0, 0, 2);
    let place = Where {
        v4: Some((Ipv4Addr::new(192, 168, 1, 2), ROUTER)),
        v6: Some((Ipv6Addr::new(0x2606, 0, 0, 0, 0, 0, 0, 1), link)),
        direct: false,
        group: ssdp::GROUP,
    };
    let mut now = Instant::now();
    let end = now + Duration::from_secs(3600);
    let mut plan = Plan::new(Ports { tcp: 6881, udp: Some(6881) }, place, 7, now);
    let mut rest = input;
    let (mut asked, mut turns) = (0, 0);
    while !plan.is_stopped() {
        turns += 1;
        // A mapping that lives for seconds is renewed every five.
        assert!(turns < 20_000 + input.len(), "it spins");
        let asks = plan.poll(now);
        asked += asks.len();
        let mut pages = asks.iter().filter(|ask| matches!(ask, Ask::Http { .. })).count();
        if let [how, length, after @ ..] = rest {
            let (said, after) = after.split_at(usize::from(*length).min(after.len()));
            rest = after;
            match how % 4 {
                0 => plan.received(Line::V4, said, now),
                1 => plan.received(Line::V6, said, now),
                2 => plan.found(said, (ROUTER, 1900).into()),
                _ if pages > 0 => {
                    pages -= 1;
                    let status = if how & 64 == 0 { 200 } else { 500 };
                    plan.answered(Ok(Response { status, body: said.to_vec() }), now);
                }
                _ => plan.unreachable(Line::V4, now),
            }
        } else if now >= end && !plan.is_stopping() {
            plan.stop();
        }
        (0..pages).for_each(|_| plan.answered(Err("reset".to_owned()), now));
        let due = plan.due().filter(|due| *due <= end || plan.is_stopping());
        now = due.unwrap_or(end).max(now);
        let status = plan.status();
        assert!(status.mappings.len() <= 4 && status.mappings.iter().all(|mapping| mapping.external != 0));
        assert!(status.trouble.is_none_or(|why| why.len() < 1000));
    }
    assert!(asked < 20_000 + input.len(), "{asked} questions in an hour");
}

/// What a proxy says, to one with a password or without, in pieces; and a packet of its.
pub fn socks5(input: &[u8]) {
    let [how, said @ ..] = input else { return };
    let auth = Auth { user: "me".to_owned(), password: "secret".to_owned() };
    let auth = (how & 1 == 1).then_some(&auth);
    let command = if how & 2 == 0 { Command::Connect } else { Command::Associate };
    let mut out = Vec::new();
    let target = Target::Name("peer.example".to_owned(), 6881);
    let (mut client, mut progress) = Client::new(command, &target, auth, &mut out).expect("a short name");
    let mut rest = said;
    while let Progress::More(needed) = progress {
        assert!((1..=socks5::MAX_HEAD).contains(&needed), "{needed}");
        if rest.is_empty() {
            break;
        }
        let (some, after) = rest.split_at(needed.min(rest.len()));
        rest = after;
        match client.feed(some, &mut out) {
            Ok(next) => progress = next,
            Err(error) => {
                assert!(error.to_string().len() < 200);
                break;
            }
        }
    }
    assert!(out.len() < 128 && said.len() - rest.len() <= 4 + socks5::MAX_HEAD);
    if let Some((target, payload)) = socks5::unwrap(said) {
        assert!(said.ends_with(payload));
        if let Ok(again) = socks5::wrap(&target, payload) {
            assert_eq!(socks5::unwrap(&again), Some((target, payload)));
        }
    }
}

/// The head of what a proxy answers over HTTP.
pub fn http_proxy(input: &[u8]) {
    let Some(end) = http_proxy::head_end(input) else { return };
    assert!(end <= input.len() && input[..end].ends_with(b"\n"));
    assert_eq!(http_proxy::head_end(&input[..end]), Some(end), "what comes behind changes nothing");
    for with_password in [false, true] {
        let answer = http_proxy::answer(&input[..end], with_password);
        assert!(answer.is_ok() || answer.is_err_and(|error| error.to_string().len() < 1000));
    }
}

/// What `--proxy` is given.
pub fn proxy_url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(proxy) = Proxy::parse(text) else { return };
    assert_eq!(Proxy::parse(&proxy.url()).as_ref(), Ok(&proxy));
    // Nobody sees the user.
    let bare = Proxy { auth: None, ..proxy.clone() };
    assert_eq!(proxy.to_string(), bare.to_string());
    let target = Target::of(&proxy.host, proxy.port);
    if proxy.kind == ProxyKind::Http && target.ip().is_none_or(|ip| ip != IpAddr::from([0; 4])) {
        let request = http_proxy::connect(&target, proxy.auth.as_ref()).expect("a host that a URL has");
        assert_eq!(http_proxy::head_end(&request), Some(request.len()), "one head and nothing behind it");
    }
}
