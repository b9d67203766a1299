//! What each corpus begins with: some of everything that is right, as our own encoders and those of others write it.
//!
//! `TORRENTFS_WRITE_CORPUS=1` has the test of the corpora write them anew. What libFuzzer found goes into a corpus as
//! a file of another name, and stays.

use std::net::SocketAddr;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use torrentfs::control::message::{Call, Change, NewTorrent, Request};
use torrentfs::discovery::dht::id::{Contact, NodeId};
use torrentfs::discovery::dht::krpc::{self as dht, Message as Krpc};
use torrentfs::discovery::dht::saved::Saved;
use torrentfs::discovery::lsd::message as lsd_message;
use torrentfs::metainfo::bencode::Encoder;
use torrentfs::metainfo::geometry::PieceIndex;
use torrentfs::net::mapping::ssdp;
use torrentfs::net::proxy::{Target as ProxyTarget, socks5};
use torrentfs::net::utp::packet::{Packet, Sack, Type};
use torrentfs::net::utp::seq::Seq;
use torrentfs::peer::extension::ExtHandshake;
use torrentfs::peer::metadata::MetadataMessage;
use torrentfs::peer::pex::{PexFlags, PexMessage, PexPeer};
use torrentfs::peer::wire::{BlockRequest, Handshake, Message, Reserved};
use torrentfs::storage::resume::{Adopted, FileMark, ResumeData};

/// The seeds of a target, each with its name; none for an unknown one.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |seeds: Vec<(&str, Vec<u8>)>| seeds.into_iter().map(|(n, s)| (n.to_owned(), s)).collect();
    match target {
        "bencode" => named(vec![
            ("numbers", b"li0ei-1ei9223372036854775807ei-9223372036854775808ee".to_vec()),
            ("deep", b"lllllllleeeeeeee".to_vec()),
            ("dict", b"d1:al0:3:abce1:bd1:ci1eee".to_vec()),
            ("unsorted", b"d1:bi1e1:ai2e1:ai3ee".to_vec()),
        ]),
        "metainfo" => torrents(),
        "magnet" => named(vec![
            ("v1", b"magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=a+name".to_vec()),
            ("base32", b"magnet:?xt=urn:btih:AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH".to_vec()),
            ("hybrid", hybrid_link()),
            ("all", all_of_a_link()),
        ]),
        "wire" => named(vec![("each", each_message()), ("blocks", blocks())]),
        "handshake" => {
            let reserved = Reserved::new().with_extensions().with_fast().with_dht();
            let handshake = Handshake { reserved, info_hash: [7; 20], peer_id: *b"-TF0100-abcdefghijkl" };
            named(vec![("ours", handshake.encode().to_vec())])
        }
        "extension" => named(vec![
            ("full", ext_handshake().encode().to_vec()),
            ("empty", ExtHandshake::default().encode().to_vec()),
            ("off", b"d1:md11:ut_metadatai0e6:ut_pexi0eee".to_vec()),
            ("dont_have", vec![0, 0, 1, 2]),
        ]),
        "metadata" => named(vec![
            ("request", MetadataMessage::Request(3).encode().to_vec()),
            ("reject", MetadataMessage::Reject(3).encode().to_vec()),
            ("data", {
                let bytes = Bytes::from_static(&[b'x'; 100]);
                MetadataMessage::Data { piece: 1, total: 16_384 + 100, bytes }.encode().to_vec()
            }),
        ]),
        "metadata_assembly" => named(vec![
            // One peer, a small size, asked, and a right answer.
            ("one", vec![0, 40, 128]),
            ("liar_and_honest", vec![16, 17, 40, 41, 104, 112, 104, 112, 104, 112, 40, 41, 128, 128, 128]),
            ("gone", vec![24, 40, 96, 32, 25, 41, 33]),
        ]),
        "holepunch" => named(vec![
            ("v4", vec![0, 0, 1, 2, 3, 4, 0x1a, 0xe1, 0, 0, 0, 0]),
            ("v6", [&[2, 1][..], &[0xfe; 16], &[0x1a, 0xe1, 0, 0, 0, 2]].concat()),
            ("short", vec![1, 0, 1, 2, 3, 4, 0x1a, 0xe1]),
        ]),
        "pex" => named(vec![("both", pex().encode().to_vec()), ("none", PexMessage::default().encode().to_vec())]),
        "tracker_http" => named(vec![
            ("compact", b"d8:completei3e10:incompletei4e8:intervali1800e5:peers12:\x7f\0\0\x01\x1a\xe1\x0a\0\0\x02\0\x506:peers618:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe1e".to_vec()),
            ("long", b"d8:intervali60e12:min intervali30e5:peersld2:ip9:127.0.0.14:porti6881eee10:tracker id3:abce".to_vec()),
            ("refused", b"d14:failure reason9:not found8:retry ini5ee".to_vec()),
        ]),
        "tracker_udp" => named(vec![
            ("connect", [&0_u32.to_be_bytes()[..], &9_u32.to_be_bytes(), &77_u64.to_be_bytes()].concat()),
            ("announce", [&1_u32.to_be_bytes()[..], &9_u32.to_be_bytes(), &1800_u32.to_be_bytes(), &1_u32.to_be_bytes(), &2_u32.to_be_bytes(), &[127, 0, 0, 1, 0x1a, 0xe1]].concat()),
            ("error", [&3_u32.to_be_bytes()[..], &9_u32.to_be_bytes(), b"no such torrent"].concat()),
        ]),
        "webseed" => named(vec![
            ("part", [&206_u16.to_be_bytes()[..], b"content-range:bytes 100-199/300\ncontent-length:100\n"].concat()),
            ("whole", [&200_u16.to_be_bytes()[..], b"content-length:200\n"].concat()),
            ("busy", [&503_u16.to_be_bytes()[..], b"retry-after:120\n"].concat()),
            ("later", [&429_u16.to_be_bytes()[..], b"retry-after:Fri, 31 Dec 1999 23:59:59 GMT\n"].concat()),
            ("packed", [&200_u16.to_be_bytes()[..], b"content-encoding:gzip\ncontent-length:90\n"].concat()),
        ]),
        "resume" => records().into_iter().map(|(n, r)| (n.to_owned(), r.encode().expect("it is whole"))).chain([("first_version".to_owned(), first_version())]).collect(),
        "control" => calls(),
        "control_answer" => named(vec![
            ("ok", b"{\"v\":1,\"id\":7,\"ok\":{\"pid\":12}}".to_vec()),
            ("error", b"{\"v\":1,\"error\":{\"code\":\"no_such_torrent\",\"message\":\"no such torrent\"}}".to_vec()),
        ]),
        "mse" => named(vec![
            ("prefer", vec![0, 10, 200, 255]),
            ("require", vec![3, 255, 255, 16]),
            ("byte_by_byte", vec![2, 0, 3, 0]),
            ("harmed", vec![0, 5, 5, 100, 0, 120, 1]),
        ]),
        "mse_opening" => named(vec![("key", [&[1][..], &[0xaa; 96], &[0x55; 300]].concat()), ("plain", {
            let handshake = Handshake { reserved: Reserved::new(), info_hash: [7; 20], peer_id: [b'p'; 20] };
            [&[0][..], &handshake.encode()].concat()
        })]),
        "lsd" => named(vec![
            ("ours", lsd_message::announce(SocketAddr::from(([239, 192, 152, 143], 6771)), 6881, &[[1; 20], [2; 20]], "abc")),
            ("others", format!("bt-search * http/1.1\nPORT:6881\ninfohash: {}\n\n", "ab".repeat(32)).into_bytes()),
        ]),
        "filter" => named(vec![
            ("emule", b"001.002.003.000 - 001.002.003.255 , 100 , some network\n4.5.6.7 - 4.5.6.8 , 200 , let in\n".to_vec()),
            ("p2p", b"a network: with colons:1.2.3.0-1.2.3.255\r\n# a comment\r\nv6:2001:db8::-2001:db8::ff\r\n".to_vec()),
            ("cidr", b"10.0.0.0/8\n2001:db8::/32\n1.2.3.4\nnonsense\n".to_vec()),
        ]),
        "krpc" => named(krpc()),
        "dht_saved" => {
            let node = |n: u8| Contact { id: NodeId([n; 20]), addr: SocketAddr::from(([9, n, 8, 1], 6881)) };
            let saved = Saved { ids: [Some(NodeId([7; 20])), None], nodes: [vec![node(1), node(2)], Vec::new()] };
            named(vec![("some", saved.encode()), ("none", Saved::default().encode())])
        }
        "dht_node" => {
            let record = |(n, (_, packet)): (usize, (&str, Vec<u8>))| {
                [&[n as u8, 1, packet.len() as u8][..], &packet].concat()
            };
            named(vec![("each", krpc().into_iter().enumerate().flat_map(record).collect())])
        }
        "utp_packet" => named(utp()),
        "utp_port" => {
            let record = |(_, packet): (&str, Vec<u8>)| [&[3, 1, packet.len() as u8][..], &packet].concat();
            named(vec![("each", utp().into_iter().flat_map(record).collect())])
        }
        other => named(network(other)),
    }
}

/// Those of `network`.
fn network(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    let record = |how: u8, said: &[u8]| [&[how, said.len() as u8][..], said].concat();
    match target {
        "router_packets" => vec![
            ("natpmp_address", natpmp_address()),
            ("natpmp_map", natpmp_map(2)),
            ("natpmp_version", vec![0, 128, 0, 1, 0, 0, 0, 9]),
            ("pcp_map", pcp_map()),
            ("pcp_announce", [&[2, 128, 0, 0][..], &[0; 20]].concat()),
            ("ssdp", found()),
        ],
        "router_http" => vec![
            ("length", answered(&format!("Content-Length: {}\r\n\r\n", DESCRIPTION.len()), DESCRIPTION)),
            ("chunked", answered("Transfer-Encoding: chunked\r\n\r\n", "3\r\n<a>\r\n4\r\n</a>\r\n0\r\n\r\n")),
            ("address", answered("\r\n", ADDRESS)),
            ("fault", answered("\r\n", FAULT)),
        ],
        "router" => vec![
            (
                "natpmp",
                [record(0, &natpmp_address()), record(0, &natpmp_map(2)), record(0, &natpmp_map(1))].concat(),
            ),
            ("pcp", [record(0, &pcp_map()), record(1, &pcp_map())].concat()),
            (
                "upnp",
                [
                    record(7, b""),
                    record(2, &found()),
                    record(3, DESCRIPTION.as_bytes()),
                    record(3, ADDRESS.as_bytes()),
                    record(67, FAULT.as_bytes()),
                ]
                .concat(),
            ),
        ],
        "socks5" => vec![
            ("address", vec![0, 5, 0, 5, 0, 0, 1, 127, 0, 0, 1, 0, 80]),
            ("password", vec![1, 5, 2, 1, 0, 5, 0, 0, 1, 127, 0, 0, 1, 0, 80]),
            ("name", [&[2, 5, 0, 5, 0, 0, 3, 4][..], b"host", &[0, 80]].concat()),
            ("refused", vec![0, 5, 0, 5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
            ("packet", socks5::wrap(&ProxyTarget::of("1.2.3.4", 80), b"payload").unwrap_or_default()),
        ],
        "http_proxy" => vec![
            ("good", b"HTTP/1.1 200 Connection established\r\nA: b\r\n\r\n\x13BitTorrent protocol".to_vec()),
            ("password", b"HTTP/1.0 407 Who are you?\nX: y\n\n".to_vec()),
            ("refused", b"HTTP/1.1 502 Bad Gateway\r\n\r\n".to_vec()),
        ],
        "proxy_url" => vec![
            ("socks5", b"socks5://me:p%40ss@proxy.example:1080/".to_vec()),
            ("http", b"http://[2001:db8::1]:3128".to_vec()),
        ],
        _ => Vec::new(),
    }
}

const DESCRIPTION: &str = "<root><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><service>\
    <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/c</controlURL></service></root>";
const ADDRESS: &str = "<Envelope><NewExternalIPAddress>9.9.9.9</NewExternalIPAddress>\
    <NewConnectionStatus>Connected</NewConnectionStatus></Envelope>";
const FAULT: &str =
    "<Envelope><errorCode>718</errorCode><errorDescription>taken</errorDescription></Envelope>";

fn answered(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{head}{body}").into_bytes()
}

fn found() -> Vec<u8> {
    let st = ssdp::TARGETS[0];
    format!("HTTP/1.1 200 OK\r\nST: {st}\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n").into_bytes()
}

fn natpmp_address() -> Vec<u8> {
    [&[0, 128, 0, 0][..], &100_u32.to_be_bytes(), &[9, 9, 9, 9]].concat()
}

fn natpmp_map(operation: u8) -> Vec<u8> {
    let ports = [&6881_u16.to_be_bytes()[..], &6881_u16.to_be_bytes()].concat();
    [&[0, 128 + operation, 0, 0][..], &100_u32.to_be_bytes(), &ports, &7200_u32.to_be_bytes()].concat()
}

fn pcp_map() -> Vec<u8> {
    let head = [&[2, 129, 0, 0][..], &7200_u32.to_be_bytes(), &100_u32.to_be_bytes(), &[0; 12]].concat();
    let ports = [&[6, 0, 0, 0][..], &6881_u16.to_be_bytes(), &6881_u16.to_be_bytes()].concat();
    [&head[..], b"abcdefghijkl", &ports, &std::net::Ipv4Addr::new(9, 9, 9, 9).to_ipv6_mapped().octets()]
        .concat()
}

/// A packet of each type, as who dials sends them.
fn utp() -> Vec<(&'static str, Vec<u8>)> {
    let packet = |kind, id, seq, sack, payload| {
        let sack = if sack { Some(Sack::new(&[0b101, 0, 0, 0])) } else { None };
        let (stamp, diff, window) = (1_000_000, 2000, 1 << 20);
        let mut bytes = Vec::new();
        Packet { kind, id, stamp, diff, window, seq: Seq(seq), ack: Seq(7), sack, payload }
            .encode(&mut bytes);
        bytes
    };
    vec![
        ("syn", packet(Type::Syn, 100, 1, false, &b""[..])),
        ("data", packet(Type::Data, 101, 2, false, b"some bytes")),
        ("state", packet(Type::State, 101, 3, true, b"")),
        ("fin", packet(Type::Fin, 101, 3, false, b"")),
        ("reset", packet(Type::Reset, 101, 3, false, b"")),
    ]
}

/// A message of each kind.
fn krpc() -> Vec<(&'static str, Vec<u8>)> {
    let (tid, id) = (dht::Tid::of(0x6161_6161), NodeId(*b"abcdefghij0123456789"));
    let query = |query| dht::encode(&Krpc::Query { tid, id, query, read_only: false });
    let place = *b"mnopqrstuvwxyz123456";
    let nodes = vec![Contact { id: NodeId([3; 20]), addr: SocketAddr::from(([9, 3, 8, 1], 6881)) }];
    let token = dht::Token::new(b"aoeusnth");
    let values = vec![SocketAddr::from(([9, 9, 9, 9], 80))];
    let reply = dht::Reply { id, nodes, values, token: token.clone() };
    let announce = dht::Query::AnnouncePeer { info_hash: place, port: 6881, implied: true, token };
    vec![
        ("ping", query(dht::Query::Ping)),
        ("find_node", query(dht::Query::FindNode { target: place, want: dht::Want::BOTH })),
        ("get_peers", query(dht::Query::GetPeers { info_hash: place, want: dht::Want::default() })),
        ("announce_peer", query(announce)),
        ("reply", dht::encode(&Krpc::Reply { tid, reply, ip: Some(SocketAddr::from(([9, 0, 0, 1], 1))) })),
        ("error", dht::encode(&Krpc::Error { tid, code: 203 })),
        ("read_only", b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping2:roi1e1:t2:aa1:y1:qe".to_vec()),
    ]
}

fn torrents() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the fixtures") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a fixture");
        if bytes.len() <= 4096 {
            found.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), bytes));
        }
    }
    found.push(("small".into(), small_torrent()));
    found.sort();
    found
}

fn small_torrent() -> Vec<u8> {
    let mut out = Encoder::new();
    out.dict_begin().key("announce").bytes("http://tracker.example/announce").key("info").dict_begin();
    out.key("files").list_begin();
    for (name, length) in [("one", 10), ("two", 20)] {
        out.dict_begin().key("length").int(length).key("path").list_begin().bytes("folder").bytes(name);
        out.end().end();
    }
    out.end().key("name").bytes("some").key("piece length").int(16_384).key("pieces").bytes([1; 20]).end();
    out.key("nodes").list_begin().list_begin().bytes("node.example").int(6881).end().end();
    out.key("url-list").bytes("http://seed.example/some").end();
    out.finish()
}

fn hybrid_link() -> Vec<u8> {
    let (v1, v2) = ("01".repeat(20), "02".repeat(32));
    format!("magnet:?xt=urn:btih:{v1}&xt=urn:btmh:1220{v2}").into_bytes()
}

fn all_of_a_link() -> Vec<u8> {
    let v1 = "01".repeat(20);
    format!(
        "magnet:?xt=urn:btih:{v1}&dn=%C3%A4%20name&tr.1=udp%3A%2F%2Ftracker.example%3A80&ws=http%3A%2F%2Fseed.example%2F\
         &x.pe=127.0.0.1:6881&x.pe=[::1]:6881&so=0,2-4"
    )
    .into_bytes()
}

fn written(messages: &[Message]) -> Vec<u8> {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut out));
    out.to_vec()
}

fn each_message() -> Vec<u8> {
    let request = BlockRequest { piece: PieceIndex(3), begin: 16_384, len: 16_384 };
    written(&[
        Message::KeepAlive,
        Message::Choke,
        Message::Unchoke,
        Message::Interested,
        Message::NotInterested,
        Message::Have(PieceIndex(9)),
        Message::Bitfield(Bytes::from_static(&[0xff, 0x80])),
        Message::Request(request),
        Message::Cancel(request),
        Message::Reject(request),
        Message::Port(6881),
        Message::HaveAll,
        Message::HaveNone,
        Message::Suggest(PieceIndex(1)),
        Message::AllowedFast(PieceIndex(2)),
        Message::Extended { id: 0, payload: ext_handshake().encode() },
    ])
}

fn blocks() -> Vec<u8> {
    let data = Bytes::from_static(&[7; 200]);
    written(&[
        Message::Piece { piece: PieceIndex(0), begin: 0, data: data.clone() },
        Message::Piece { piece: PieceIndex(1), begin: 16_384, data },
    ])
}

fn ext_handshake() -> ExtHandshake {
    ExtHandshake {
        ut_metadata: Some(1),
        ut_holepunch: None,
        ut_pex: Some(2),
        lt_donthave: Some(3),
        metadata_size: Some(31_235),
        reqq: Some(512),
        client: Some("a client 1.0".into()),
        port: Some(6881),
        your_ip: Some([127, 0, 0, 1].into()),
        upload_only: true,
        encryption: false,
    }
}

fn pex() -> PexMessage {
    let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let peer = |text, flags| PexPeer { addr: addr(text), flags };
    PexMessage {
        added: vec![peer("10.0.0.1:6881", PexFlags::SEED), peer("[2001:db8::1]:80", PexFlags::REACHABLE)],
        dropped: vec![addr("10.0.0.2:1"), addr("[2001:db8::2]:2")],
    }
}

fn records() -> Vec<(&'static str, ResumeData)> {
    let plain = ResumeData {
        info_hash: "01".repeat(20),
        name: "some".into(),
        pieces: 12,
        piece_length: 16_384,
        size: 190_000,
        complete: vec![0b1010_0000, 0b0001_0000],
        last_used: 1_700_000_000,
        ..ResumeData::default()
    };
    let mark = FileMark { len: Some(190_000), modified: 1_600_000_000 };
    let clean = ResumeData { clean: true, unknown: vec![0b0100_0000, 0], files: vec![mark], ..plain.clone() };
    let adopted = Adopted { path: "/srv/some".into(), read_only: true, below: vec![0, 0], files: vec![mark] };
    let adopted = ResumeData { adopted: Some(adopted), ..clean.clone() };
    vec![("plain", plain), ("clean", clean), ("adopted", adopted)]
}

/// Length and hex of the info-hash, number of pieces, clean or not, and the bits.
fn first_version() -> Vec<u8> {
    let hash = "01".repeat(20);
    [&[hash.len() as u8][..], hash.as_bytes(), &12_u32.to_le_bytes(), &[1], &[0xa0, 0x10]].concat()
}

fn calls() -> Vec<(String, Vec<u8>)> {
    let torrent = small_torrent();
    let calls = [
        ("status", Request::Status),
        ("debug", Request::Debug),
        ("add_link", Request::Add(NewTorrent::Source(String::from_utf8(hybrid_link()).expect("text")))),
        ("add_file", Request::Add(NewTorrent::File { name: "some".into(), bytes: torrent })),
        ("remove", Request::Remove { torrent: "some".into(), delete_data: true }),
        ("prefetch", Request::Prefetch { path: "/some".into(), on: true }),
        ("unmount", Request::Unmount),
        (
            "limit",
            Request::Limit { torrent: None, download: Change::To(Some(1 << 20)), upload: Change::To(None) },
        ),
    ];
    let line = |(name, request): (&str, Request)| (name.to_owned(), Call { id: Some(3), request }.line());
    calls.into_iter().map(line).collect()
}
