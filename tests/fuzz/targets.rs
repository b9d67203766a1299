//! What is fuzzed: each reader of bytes that somebody else sends, as a plain function.
//!
//! A target panics when what it is given breaks a promise: not merely that reading doesn't panic, but that what was
//! read, written and read again is the same, and that nothing grows beyond its bounds. `tests/fuzz/main.rs` runs them
//! over their corpus and over what chance makes of it; `tests/fuzz/libfuzzer` hands them to libFuzzer.

#[path = "network.rs"]
mod network;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use torrentfs::control::lines::{Lines, Next};
use torrentfs::control::message::{Call, heard};
use torrentfs::discovery::dht::krpc::{self as dht, Message as Krpc};
use torrentfs::discovery::dht::node::{AnnounceAs, Node, Out, Setup};
use torrentfs::discovery::dht::saved::{self, Saved};
use torrentfs::discovery::lsd::message as lsd_message;
use torrentfs::discovery::tracker::{http, message, udp};
use torrentfs::metainfo::bencode::{self, Encoder, Limits, Value};
use torrentfs::metainfo::info::{FileKind, Info};
use torrentfs::metainfo::magnet::Magnet;
use torrentfs::metainfo::{Metainfo, source::Source};
use torrentfs::net::filter::Filter;
use torrentfs::net::utp::mux::{self as utp, Mux};
use torrentfs::net::utp::packet::Packet;
use torrentfs::peer::extension::{self, ExtHandshake, MAX_METADATA};
use torrentfs::peer::holepunch::Holepunch;
use torrentfs::peer::metadata::{MetadataAssembly, MetadataMessage, Received};
use torrentfs::peer::mse::{self, Initiator, Pads, Policy, Progress, Responder};
use torrentfs::peer::pex::{self, PexMessage};
use torrentfs::peer::wire::{self, Decoder, Handshake, Message};
use torrentfs::storage::resume::ResumeData;
use torrentfs::webseed::answer::{self, Asked};

/// A target: its name, which is that of its corpus as well, and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("bencode", bencode),
    ("metainfo", metainfo),
    ("magnet", magnet),
    ("wire", wire),
    ("handshake", handshake),
    ("extension", extension),
    ("metadata", metadata),
    ("metadata_assembly", metadata_assembly),
    ("pex", pex),
    ("holepunch", holepunch),
    ("tracker_http", tracker_http),
    ("tracker_udp", tracker_udp),
    ("webseed", webseed),
    ("resume", resume),
    ("control", control),
    ("control_answer", control_answer),
    ("mse", mse),
    ("mse_opening", mse_opening),
    ("lsd", lsd),
    ("filter", filter),
    ("krpc", krpc),
    ("dht_saved", dht_saved),
    ("dht_node", dht_node),
    ("utp_packet", utp_packet),
    ("utp_port", utp_port),
    ("router_packets", network::router_packets),
    ("router_http", network::router_http),
    ("router", network::router),
    ("socks5", network::socks5),
    ("http_proxy", network::http_proxy),
    ("proxy_url", network::proxy_url),
];

fn bencode(input: &[u8]) {
    for limits in [Limits::TORRENT, Limits::MESSAGE, Limits { size: 64, depth: 3, tokens: 9 }] {
        let Ok((value, used)) = bencode::parse_prefix_with(input, limits) else { continue };
        assert_eq!(value.raw(), &input[..used]);
        assert!(used <= limits.size, "more was looked at than may be");
        let mut again = Encoder::new();
        copy(value, &mut again, 0, limits.depth);
        assert_eq!(again.finish(), value.raw(), "there are two spellings of it");
        assert_eq!(bencode::parse_with(input, limits).is_ok(), used == input.len());
    }
}

fn copy(value: Value<'_>, out: &mut Encoder, depth: usize, most: usize) {
    assert!(depth <= most, "deeper than may be");
    if let Some(number) = value.as_int() {
        out.int(number);
    } else if let Some(bytes) = value.as_bytes() {
        out.bytes(bytes);
    } else if let Some(list) = value.list() {
        out.list_begin();
        list.for_each(|value| copy(value, out, depth + 1, most));
        out.end();
    } else if let Some(dict) = value.dict() {
        out.dict_begin();
        for (key, value) in dict {
            copy(value, out.key(key), depth + 1, most);
        }
        out.end();
    } else {
        panic!("a value that is nothing");
    }
}

fn metainfo(input: &[u8]) {
    let Ok(torrent) = Metainfo::parse(input) else { return };
    let info = &torrent.info;
    assert_eq!(info.files.len(), info.geometry.files().len());
    assert!(is_safe(&info.name), "{:?}", info.name);
    let mut names: Vec<&[String]> = Vec::new();
    for (file, extent) in info.files.iter().zip(info.geometry.files()) {
        assert!(!file.path.is_empty() && file.path.iter().all(|part| is_safe(part)), "{:?}", file.path);
        assert_eq!(file.size, extent.len);
        if file.kind != FileKind::Pad {
            names.push(&file.path);
        }
    }
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "two files have one name");
    assert!(info.info_hash.matches(&info.raw));
    assert!(torrent.webseeds.len() + torrent.http_seeds.len() <= 100);
    let room = 64 * input.len() + 1024;
    let told: usize = torrent.warnings.iter().map(String::len).sum();
    assert!(told <= room, "{told} bytes of warnings for {}", input.len());
    // What peers send is the same dictionary, and no other torrent. A v2 one lacks its layers then.
    if let Ok(again) = Info::parse(&info.raw, None) {
        assert_eq!(again.info_hash, info.info_hash);
        assert_eq!(again.files, info.files);
    }
}

fn is_safe(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name.len() <= 255 && !name.contains(['/', '\0'])
}

fn magnet(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // What isn't a link may be a path, or a URL.
    let _ = Source::parse(&text);
    let Ok(magnet) = Magnet::parse(&text) else { return };
    let again = Magnet::parse(&magnet.to_string());
    // Escaped, a link of names may be longer than any that is taken.
    if magnet.to_string().len() <= text.len() {
        assert_eq!(again.as_ref(), Ok(&magnet));
    }
    assert!(again.is_err() || again == Ok(magnet));
}

fn wire(input: &[u8]) {
    for max_frame in [wire::MAX_FRAME_BEFORE_METADATA, wire::max_frame(1000)] {
        let decoder = Decoder::new(wire::Limits { max_frame });
        let mut whole = BytesMut::from(input);
        let mut messages = Vec::new();
        let end = loop {
            let before = whole.len();
            match decoder.decode(&mut whole) {
                Ok(Some(message)) => {
                    assert!(whole.len() + 4 <= before, "a message took nothing");
                    messages.push(message);
                }
                Ok(None) => {
                    let need = decoder.need(&whole);
                    assert!((1..=max_frame + 4).contains(&need), "{need} bytes are waited for");
                    break None;
                }
                Err(error) => {
                    assert_eq!(whole.len(), before, "something was taken of what is wrong");
                    break Some(error);
                }
            }
        };
        // In small portions it is the same, but for what is wrong being seen before it is all there.
        let mut bits = BytesMut::new();
        let mut parts = VecDeque::from(messages.clone());
        let mut failed = None;
        for portion in input.chunks(3) {
            bits.extend_from_slice(portion);
            while failed.is_none() {
                match decoder.decode(&mut bits) {
                    Ok(Some(message)) => assert_eq!(Some(message), parts.pop_front()),
                    Ok(None) => break,
                    Err(error) => failed = Some(error),
                }
            }
        }
        assert!(parts.is_empty());
        assert_eq!(failed, end);
        for message in messages {
            if matches!(message, Message::Unknown(_)) {
                continue;
            }
            let mut line = BytesMut::new();
            message.encode(&mut line);
            assert_eq!(Decoder::new(wire::Limits { max_frame }).decode(&mut line), Ok(Some(message)));
            assert!(line.is_empty());
        }
    }
}

fn handshake(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<{ Handshake::LEN }>() else { return };
    if let Ok(handshake) = Handshake::decode(bytes) {
        assert_eq!(handshake.encode(), *bytes);
    }
}

fn extension(input: &[u8]) {
    let _ = extension::parse_dont_have(input);
    let Ok(handshake) = ExtHandshake::decode(input) else { return };
    assert!(handshake.metadata_size.is_none_or(|size| (1..=MAX_METADATA).contains(&size)));
    assert!(
        handshake.client.as_ref().is_none_or(|name| name.len() < 256 && !name.contains(char::is_control))
    );
    let mut twice = handshake.clone();
    assert!(twice.update(input).is_ok());
    assert_eq!(ExtHandshake::decode(&handshake.encode()).as_ref(), Ok(&handshake));
}

fn metadata(input: &[u8]) {
    let payload = Bytes::copy_from_slice(input);
    let Ok(Some(message)) = MetadataMessage::decode(&payload) else { return };
    if let MetadataMessage::Data { total, bytes, .. } = &message {
        assert!(*total <= MAX_METADATA && bytes.len() <= input.len());
    }
    assert_eq!(MetadataMessage::decode(&message.encode()), Ok(Some(message)));
}

/// Each byte is something that one of eight peers does; what is right begins with a zero byte.
fn metadata_assembly(input: &[u8]) {
    const SIZES: [u32; 4] = [1, 16_384, 40_000, MAX_METADATA];
    let mut assembly = MetadataAssembly::new();
    let mut now = Instant::now();
    let mut asked: Vec<(u8, u32)> = Vec::new();
    let mut sizes = [0; 8];
    for byte in input {
        let (peer, act) = (byte & 7, byte >> 3);
        now += Duration::from_millis(u64::from(act) * 40);
        match act {
            0..4 => {
                if assembly.announce(peer, SIZES[usize::from(act)]) {
                    sizes[usize::from(peer)] = SIZES[usize::from(act)];
                }
            }
            4 => assembly.gone(peer),
            5..12 => {
                let pieces = assembly.next_requests(peer, now);
                assert!(pieces.len() <= 8);
                asked.extend(pieces.into_iter().map(|piece| (peer, piece)));
            }
            12 => asked.iter().for_each(|(peer, piece)| assembly.rejected(*peer, *piece, now)),
            _ => {
                let Some((from, piece)) = asked.pop() else { continue };
                let total = sizes[usize::from(from)];
                let len = total.saturating_sub(piece * 16_384).min(16_384);
                let data = vec![act & 1; len as usize - usize::from(act == 31 && len > 0)];
                let right = |info: &[u8]| info.iter().all(|byte| *byte == 0);
                match assembly.received(from, piece, total, &data, now, right) {
                    Received::Complete { info, .. } => {
                        assert!(right(&info) && SIZES.contains(&(info.len() as u32)));
                    }
                    Received::Failed { blame } => assert!(blame.len() <= 8),
                    Received::Useful | Received::Unwanted => {}
                }
            }
        }
        let (have, of) = assembly.progress().unwrap_or_default();
        assert!(have <= of);
    }
}

fn holepunch(input: &[u8]) {
    let Some(message) = Holepunch::decode(input) else { return };
    let bytes = message.encode();
    assert!(bytes.len() <= 24);
    assert_eq!(Holepunch::decode(&bytes), Some(message));
}

fn pex(input: &[u8]) {
    let Ok(message) = PexMessage::decode(input) else { return };
    assert!(message.added.len() <= 2 * pex::MAX_TAKEN && message.dropped.len() <= 2 * pex::MAX_TAKEN);
    assert_eq!(PexMessage::decode(&message.encode()).as_ref(), Ok(&message));
}

fn tracker_http(input: &[u8]) {
    match http::parse_answer(input) {
        Ok(answer) => {
            assert!(answer.peers.len() <= message::MAX_PEERS.min(input.len()));
            assert!(answer.peers.iter().all(|peer| peer.port() != 0));
        }
        Err(error) => assert!(error.to_string().len() < 1000, "{error}"),
    }
}

fn tracker_udp(input: &[u8]) {
    for (ipv6, size) in [(false, 6), (true, 18)] {
        let Some((_, reply)) = udp::parse_reply(input, ipv6) else { continue };
        match reply {
            udp::Reply::Announce(answer) => assert!(answer.peers.len() <= input.len() / size),
            udp::Reply::Error(why) => assert!(why.len() < 1000 && !why.contains(char::is_control)),
            udp::Reply::Connect { .. } => assert!(input.len() >= 16),
        }
    }
}

/// A status of two bytes, then the lines of a head.
fn webseed(input: &[u8]) {
    let Some((status, head)) = input.split_first_chunk() else { return };
    let status = u16::from_be_bytes(*status);
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    for start in [0, 100, u64::MAX - 99] {
        let asked = Asked { start, len: 100, file_len: start.saturating_add(200) };
        // Of a file no more than a MiB is thrown away; a piece may come whole.
        for (judged, most) in [
            (answer::judge(&asked, status, &headers, UNIX_EPOCH), 1 << 20),
            (answer::judge_piece(&asked, status, &headers, UNIX_EPOCH), start),
        ] {
            match judged {
                Ok(body) => assert!(body.take == asked.len && body.skip <= most, "{body:?}"),
                Err(fault) => assert!(fault.to_string().len() < 1000, "{fault}"),
            }
        }
    }
    let _ = answer::wait_in_body(head);
}

fn resume(input: &[u8]) {
    let Some(data) = ResumeData::decode(input) else { return };
    let again = data.encode().and_then(|bytes| ResumeData::decode(&bytes));
    let mut same = data;
    // Bits that are all 0 say the same as none.
    if same.unknown.iter().all(|byte| *byte == 0) {
        same.unknown.clear();
    }
    assert_eq!(again, Some(same));
}

fn control(input: &[u8]) {
    let max = 1 << 16;
    let mut lines = Lines::new(max);
    for portion in input.chunks(1000) {
        lines.push(portion);
        loop {
            match lines.next() {
                Next::Line(line) => understood(&line),
                Next::TooLong => {}
                Next::More => break,
            }
            assert!(lines.held() <= max + 1000);
        }
    }
    understood(input);
}

fn understood(line: &[u8]) {
    match Call::parse(line) {
        Ok(call) => assert_eq!(Call::parse(&call.line()), Ok(call)),
        Err(bad) => assert!(!bad.refusal.message.is_empty()),
    }
}

fn control_answer(input: &[u8]) {
    if let Err(bad) = heard::<serde_json::Value>(input) {
        assert!(!bad.to_string().is_empty());
    }
}

/// What both sides of an encrypted connection may say before it is one: key, padding, and a frame with its padding.
const MSE_MOST: usize = 96 + 512 + 20 + 20 + 8 + 4 + 2 + 512 + 2 + Handshake::LEN;

fn policy(byte: u8) -> Policy {
    [Policy::Prefer, Policy::Require][usize::from(byte & 1)]
}

/// Both sides of a handshake, with a line between them that harms what goes over it: policies, lengths of paddings and of
/// portions, then places in the stream of who dials, each with what is flipped there.
fn mse(input: &[u8]) {
    let Some((&[policies, front, back, portion], harm)) = input.split_first_chunk() else { return };
    let harm: Vec<(usize, u8)> =
        harm.chunks_exact(3).map(|h| (usize::from(h[0]) << 8 | usize::from(h[1]), h[2])).collect();
    let (skey, ours) = ([7; 20], [b'h'; Handshake::LEN]);
    let pads = |front: u8, back: u8| Pads::new(vec![0x55; 2 * usize::from(front)], 2 * usize::from(back));
    let (mut dialler, first) = Initiator::new(skey, policy(policies), &ours, [3; 20], pads(front, back));
    let mut listener = Responder::new(policy(policies >> 1), [5; 20], pads(back, front));
    let known = |name: &[u8; 20]| (*name == mse::obscured(&skey)).then_some(skey);
    let (mut there, mut here) = (VecDeque::from(first), VecDeque::new());
    let (mut at_listener, mut at_dialler) = (BytesMut::new(), BytesMut::new());
    let (mut sent, mut dialled, mut answered) = (0, None, None);
    let (mut said, mut replied) = (there.len(), 0);
    while !(there.is_empty() && here.is_empty()) {
        for mut byte in there.drain(..there.len().min(usize::from(portion) + 1)) {
            harm.iter().filter(|(at, _)| *at == sent).for_each(|(_, bits)| byte ^= bits);
            sent += 1;
            at_listener.extend_from_slice(&[byte]);
        }
        if answered.is_none() {
            let mut out = Vec::new();
            match listener.feed(&mut at_listener, &mut out, &known) {
                Ok(Progress::Done { line, skey }) => answered = Some((line, skey)),
                Ok(Progress::More) => assert!(at_listener.len() < MSE_MOST, "it waits for too much"),
                Err(_) => return,
            }
            replied += out.len();
            here.extend(out);
        }
        at_dialler.extend(here.drain(..here.len().min(usize::from(portion) + 1)));
        if dialled.is_none() {
            let mut out = Vec::new();
            match dialler.feed(&mut at_dialler, &mut out) {
                Ok(Progress::Done { line, skey }) => dialled = Some((line, skey)),
                Ok(Progress::More) => assert!(at_dialler.len() < MSE_MOST, "it waits for too much"),
                Err(_) => return,
            }
            said += out.len();
            there.extend(out);
        }
        assert!(said <= MSE_MOST && replied <= MSE_MOST, "{said} and {replied} bytes");
    }
    let harmed = harm.iter().any(|(at, bits)| *at < sent && *bits != 0);
    let (Some((mut a, of_a)), Some((mut b, of_b))) = (dialled, answered) else {
        return assert!(harmed, "both wait, and nothing was harmed");
    };
    assert_eq!((of_a, of_b), (skey, skey));
    if !harmed {
        assert_eq!((a.cover(), &b.early[..]), (b.cover(), &ours[..]));
        let mut text = *b"a message";
        a.seal(&mut text);
        b.open(&mut text);
        assert_eq!(text, *b"a message");
    }
}

/// What somebody says who needn't know how it is done.
fn mse_opening(input: &[u8]) {
    let _ = mse::Opening::of(input);
    let Some((first, rest)) = input.split_first() else { return };
    let mut listener = Responder::new(policy(*first), [5; 20], Pads::default());
    let (mut buffer, mut out) = (BytesMut::from(rest), Vec::new());
    match listener.feed(&mut buffer, &mut out, &|_| Some([7; 20])) {
        Ok(Progress::Done { .. }) => assert!(rest.len() >= 96 + 20 + 20),
        Ok(Progress::More) => assert!(buffer.len() < MSE_MOST),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(out.len() <= MSE_MOST);
}

fn lsd(input: &[u8]) {
    let Some(search) = lsd_message::parse(input) else { return };
    assert!(search.port != 0 && !search.hashes.is_empty() && search.hashes.len() <= input.len() / 40);
    let group = SocketAddr::from((Ipv4Addr::new(239, 192, 152, 143), 6771));
    let cookie = search.cookie.clone().unwrap_or_default();
    let again = lsd_message::announce(group, search.port, &search.hashes, &cookie);
    let again = lsd_message::parse(&again).expect("what we say ourselves");
    let kept = search.hashes.len().min(lsd_message::HASHES_MAX);
    assert_eq!((again.port, &again.hashes[..]), (search.port, &search.hashes[..kept]));
    assert_eq!(again.cookie.unwrap_or_default(), cookie);
}

fn filter(input: &[u8]) {
    let lines = input.split(|byte| *byte == b'\n').count();
    let told = match Filter::read(input) {
        Ok((filter, skipped)) => {
            assert!(filter.len() <= lines && skipped.count <= lines as u64);
            for ip in [Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
                // An address has one answer, however it is written.
                assert_eq!(filter.blocks(IpAddr::V4(ip)), filter.blocks(IpAddr::V6(ip.to_ipv6_mapped())));
            }
            let any = filter.blocks(IpAddr::V6(Ipv6Addr::LOCALHOST));
            assert!(!(any && filter.is_empty()));
            skipped.to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(told.len() < 4096, "{told}");
}

fn krpc(input: &[u8]) {
    match dht::decode(input) {
        // A question that we don't know is answered, and never asked.
        Ok(Krpc::Query { query: dht::Query::Other { .. }, .. }) | Err(_) => {}
        Ok(message) => assert_eq!(dht::decode(&dht::encode(&message)), Ok(message)),
    }
}

fn dht_saved(input: &[u8]) {
    let saved = Saved::decode(input);
    assert!(saved.nodes.iter().all(|nodes| nodes.len() <= saved::NODES));
    let bytes = saved.encode();
    assert!(bytes.len() <= saved::SIZE_MAX);
    assert_eq!(Saved::decode(&bytes), saved);
}

/// A node that gets packets: of each, how it comes, from which of 16 addresses, how many half seconds after the one
/// before, and its length. What comes as an answer has the transaction of what was asked there last.
fn dht_node(input: &[u8]) {
    let mut now = Instant::now();
    let setup = Setup { families: [true; 2], serve: true, secret: [9; 32], saved: Saved::default() };
    let mut node = Node::new(setup, now);
    let mut asked: [Option<dht::Tid>; 16] = [None; 16];
    let place = |n: u8| match n % 16 {
        n if n < 12 => SocketAddr::from(([9, n, 8, 1], 6881)),
        n => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)], 6881)),
    };
    let mut rest = input;
    node.search([1; 20], Some(AnnounceAs { port: 6881, implied: true }), now, &mut Out::default());
    node.enter(&(0..16).map(place).collect::<Vec<_>>(), now, &mut Out::default());
    while let Some((&[from, wait, len], behind)) = rest.split_first_chunk() {
        let (packet, behind) = behind.split_at(usize::from(len).min(behind.len()));
        rest = behind;
        now += Duration::from_millis(500) * u32::from(wait);
        let mut out = Out::default();
        let answer = match dht::decode(packet) {
            Ok(Krpc::Reply { reply, ip, .. }) => {
                let tid = asked[usize::from(from % 16)].take();
                tid.map(|tid| dht::encode(&Krpc::Reply { tid, reply, ip }))
            }
            _ => None,
        };
        node.received(answer.as_deref().unwrap_or(packet), place(from), now, &mut out);
        assert!(node.tick(now, &mut out) > now, "it is due at once, again");
        assert!(out.packets.len() <= 200, "{} packets for one", out.packets.len());
        for (to, packet) in &out.packets {
            assert!(packet.len() <= 1500 && to.port() != 0);
            if let Ok(Krpc::Query { tid, .. }) = dht::decode(packet) {
                (0..16).filter(|n| place(*n) == *to).for_each(|n| asked[usize::from(n)] = Some(tid));
            }
        }
        let (hashes, peers) = node.stored();
        assert!(hashes <= input.len() && peers <= input.len());
    }
    assert!(node.save().nodes.iter().all(|nodes| nodes.len() <= saved::NODES));
}

fn utp_packet(input: &[u8]) {
    let Ok(packet) = Packet::decode(input) else { return };
    assert!(packet.payload.len() < input.len());
    let mut again = Vec::new();
    packet.encode(&mut again);
    let again = Packet::decode(&again).expect("what we write ourselves");
    // A mask of nothing says as much as none.
    let acked =
        |packet: &Packet<'_>| packet.sack.iter().flat_map(|sack| sack.positions()).collect::<Vec<_>>();
    assert_eq!(acked(&again), acked(&packet));
    assert_eq!(Packet { sack: None, ..again }, Packet { sack: None, ..packet });
}

/// A port that gets packets: of each, from which of 16 addresses, how many tens of milliseconds after the one before, and
/// its length. A connection of ours is being dialled.
fn utp_port(input: &[u8]) {
    let mut now = Instant::now();
    let mut number = 0_u16;
    let numbers = Box::new(move || {
        number = number.wrapping_add(7919);
        number
    });
    let mut mux = Mux::new(utp::Limits::default(), Arc::default(), numbers, now);
    let place = |n: u8| SocketAddr::from(([127, 0, 0, 1 + n % 16], 6881));
    mux.connect(place(0), now);
    let (mut sent, mut packets, mut rest) = (0, 0, input);
    while let Some((&[from, wait, len], behind)) = rest.split_first_chunk() {
        let (packet, behind) = behind.split_at(usize::from(len).min(behind.len()));
        rest = behind;
        packets += 1;
        now += Duration::from_millis(10) * u32::from(wait);
        let mut send = |bytes: &[u8], _| {
            assert!(Packet::decode(bytes).is_ok() && bytes.len() <= 1500);
            sent += 1;
            true
        };
        mux.received(packet, place(from), now, &mut send);
        for key in mux.keys() {
            mux.poll(key, now, &mut send);
        }
        while let Some(key) = mux.pop_due(now) {
            mux.poll(key, now, &mut send);
        }
        let (connections, greeting) = mux.len();
        assert!(connections <= packets + 1 && greeting <= connections);
    }
    // Some answer to each packet, and some repeats by the clock, which stop.
    assert!(sent <= 8 * packets + 64, "{sent} packets for {packets}");
}
