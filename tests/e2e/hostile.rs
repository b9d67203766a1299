//! Peers that mean harm, and what they cost: floods of messages and packets, what no client says, bytes that trickle, lies
//! about the metadata and the data, very many connections, ourselves.
//!
//! While each of them does its worst, a reader gets the right bytes from an honest peer. What it costs is counted: processor
//! time for each message, memory, open files, answers. The bounds are several times what a quiet machine needs, and far below
//! what costs that grow with something would come to.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{
    Behaviour, Crowd, Flood, Line, Mount, MountBuilder, Peak, Sample, ScriptedPeer, Seeder, Tale, Teller,
    Tracker, Uses, Varied, be_let_in, bytes_at, connect, greet, handshake, is_closed, message, numbers,
    open_files, ran, wait_until,
};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: usize = 1 << 10;
const MIB: u64 = 1 << 20;
const PIECE: usize = 256 * KIB;
/// What is read beside each of the floods of messages.
const PART: u64 = 4 * PIECE as u64;
/// Of processor time for a message or a packet that comes in: some microseconds at most, in a build for tests.
const EACH: Duration = Duration::from_micros(30);
/// For what a connection costs from its beginning to its end: a fifth of a millisecond.
const EACH_CONNECTION: Duration = Duration::from_millis(5);
/// Of memory, beyond what there was: buffers of a connection, what waits to be sent, what the allocator keeps.
const MEMORY: u64 = 32 * MIB;

/// Where the hostile ones are.
fn from(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 66, last)
}

/// Where a mount is to listen.
fn here() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// A mount of a torrent with one honest seeder, with which it is connected.
fn mount(
    torrent: &Varied,
    at: SocketAddr,
    more: impl FnOnce(MountBuilder) -> MountBuilder,
) -> (Mount, Crowd) {
    let crowd = Crowd::start(torrent, 1);
    let mount = Mount::of(&torrent.torrent).listen(at.to_string()).peer(crowd.addrs()[0]);
    let mount = more(mount).start();
    wait_until("the honest peer to be connected", MINUTE, || crowd.connected() == 1);
    (mount, crowd)
}

fn peers(mount: &Mount) -> u64 {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    status["torrents"][0]["peers"].as_u64().expect("a number")
}

/// A message of a flood, or several in turn.
struct Row {
    name: &'static str,
    /// What is said before.
    first: Vec<u8>,
    /// Whether the peer is let in before.
    let_in: bool,
    what: Vec<Vec<u8>>,
    /// Which answers come back at least; without, none is taken.
    answers: Option<u8>,
}

impl Row {
    fn of(name: &'static str, what: Vec<Vec<u8>>) -> Self {
        Self { name, first: Vec::new(), let_in: false, what, answers: None }
    }

    fn after(self, first: Vec<u8>) -> Self {
        Self { first, ..self }
    }

    fn let_in(self) -> Self {
        Self { let_in: true, ..self }
    }

    fn answered_by(self, id: u8) -> Self {
        Self { answers: Some(id), ..self }
    }
}

/// A message of the extension protocol.
fn extended(id: u8, what: impl AsRef<[u8]>) -> Vec<u8> {
    message(20, &[&[id], what.as_ref()].concat())
}

fn rows(pieces: u32) -> Vec<Row> {
    let have_all = message(14, &[]);
    let request = |begin: u32, length: u32| message(6, &numbers(&[0, begin, length]));
    let cancel = |begin: u32| message(8, &numbers(&[0, begin, 16 << 10]));
    let block = request(0, 16 << 10);
    let hello = extended(0, "d1:md11:ut_metadatai9e6:ut_pexi8ee1:v7:hostilee");
    let metadata = extended(1, "d8:msg_typei0e5:piecei0ee");
    let introduced: Vec<u8> =
        (1..=200).flat_map(|host| [127, 0, 67, host, 0, 9].into_iter()).collect::<Vec<u8>>();
    let pex = [format!("d5:added{}:", introduced.len()).as_bytes(), &introduced, b"e"].concat();
    let have_not = |piece: u32| [message(4, &numbers(&[piece])), extended(3, numbers(&[piece]))].concat();
    vec![
        Row::of("have, the same", vec![message(4, &numbers(&[7]))]),
        Row::of("have, all", (0..pieces).map(|piece| message(4, &numbers(&[piece]))).collect()),
        Row::of("have and have not", (0..pieces).map(have_not).collect()),
        Row::of("interested and not", vec![message(2, &[]), message(3, &[])]),
        Row::of("choke and unchoke", vec![message(1, &[]), message(0, &[])]).after(have_all),
        Row::of("keep-alive", vec![vec![0; 4]]),
        Row::of("request, choked", vec![block.clone()]).answered_by(16),
        Row::of("request, choked and deaf", vec![block.clone()]),
        Row::of("request of one block", vec![block.clone()]).let_in().answered_by(16),
        Row::of("request of one block, deaf", vec![block.clone()]).let_in(),
        Row::of("request of 128 KiB", vec![request(0, 128 << 10)]).let_in().answered_by(16),
        Row::of("request of 128 KiB, deaf", vec![request(0, 128 << 10)]).let_in(),
        Row::of("cancel of nothing", vec![cancel(0)]).let_in(),
        Row::of("request and cancel", vec![block, cancel(0)]).let_in().answered_by(16),
        Row::of("unknown kinds", (21..=255).map(|id| message(id, &[])).collect()),
        Row::of("unknown kinds with much in them", (21..=255).map(|id| message(id, &[7; 8000])).collect()),
        Row::of(
            "suggest, allowed fast, reject, port",
            vec![
                message(13, &numbers(&[1])),
                message(17, &numbers(&[1])),
                message(16, &numbers(&[0, 0, 16 << 10])),
                message(9, &[1, 1]),
            ],
        ),
        Row::of("unknown extensions", (4..=255).map(|id| extended(id, "d1:ai1ee")).collect()),
        Row::of("extension handshakes", vec![hello.clone()]),
        Row::of("requests of metadata", vec![metadata.clone()]).after(hello.clone()).answered_by(20),
        Row::of("requests of metadata, deaf", vec![metadata]).after(hello.clone()),
        Row::of("peer exchange", vec![extended(2, pex)]).after(hello),
    ]
}

#[test]
fn floods_of_messages_cost_little_each_and_hold_no_reader_up() {
    needs!(Fuse);
    /// What is said at least in each.
    const BYTES: usize = 1 << 20;
    let pieces = 4 * 30;
    let torrent = Varied::new("flooded.bin", pieces.into(), PIECE);
    let at = here();
    let (mount, _crowd) = mount(&torrent, at, |mount| mount);
    let path = mount.path(&torrent.name);
    // What may be asked of us is here.
    torrent.read(&path, 0..PART);
    let peak = Peak::watch(mount.pid());
    let begin = Uses::of(mount.pid());
    for (row, number) in rows(pieces).into_iter().zip(1_u8..) {
        let before = Uses::of(mount.pid());
        let mut stream = greet(from(number), at, &torrent.info_hash()).expect("it is answered");
        stream.write_all(&row.first).expect("it is taken");
        if row.let_in {
            be_let_in(&mut stream);
        }
        // So much at a time that saying it costs little.
        let often = (16 * KIB).div_ceil(row.what.concat().len());
        let (messages, what) = ((row.what.len() * often) as u64, row.what.concat().repeat(often));
        let times = BYTES.div_ceil(what.len()) as u64;
        let flood = Flood::start(stream, what, row.answers.is_some());
        wait_until(row.name, MINUTE, || flood.times() > 1);
        let start = Instant::now();
        let part = u64::from(number) * PART;
        torrent.read(&path, part..part + PART);
        let took = start.elapsed();
        wait_until(row.name, MINUTE, || flood.times() >= times || flood.is_over());
        assert!(!flood.is_over(), "{}: the connection was closed", row.name);
        let heard = row.answers.map(|id| {
            wait_until("an answer", MINUTE, || flood.heard(id) > 0);
            flood.heard(id)
        });
        let (said, after) = (flood.times() * messages, Uses::of(mount.pid()));
        drop(flood);
        // What reading costs is in it.
        let each = after.cpu.saturating_sub(before.cpu) / said as u32;
        eprintln!(
            "{}: {said} messages, {each:?} each, {heard:?} answers; the read took {took:?}; {} KiB, {} files",
            row.name,
            after.memory.saturating_sub(begin.memory) >> 10,
            after.files
        );
        assert!(each < EACH, "{}: {each:?} for each message", row.name);
        assert!(after.files <= begin.files + 64, "{}: {} open files", row.name, after.files);
    }
    let more = peak.highest().saturating_sub(begin.memory);
    // Blocks that were read lately are kept in memory, and so are addresses.
    assert!(more < 2 * MEMORY, "{} MiB more", more / MIB);
    wait_until("all of them to be gone", MINUTE, || peers(&mount) == 1);
    mount.stop();
}

#[test]
fn what_no_client_says_ends_the_connection() {
    needs!(Fuse);
    const TIMES: u32 = 10;
    let torrent = Varied::new("broken.bin", 32, PIECE);
    let at = here();
    let (mount, _crowd) = mount(&torrent, at, |mount| mount);
    let path = mount.path(&torrent.name);
    let hash = torrent.info_hash();
    let frame = |length: u32, rest: &[u8]| [&length.to_be_bytes()[..], rest].concat();
    let greeted: Vec<(&str, Vec<u8>)> = vec![
        ("have of no piece", message(4, &numbers(&[32]))),
        ("request of no piece", message(6, &numbers(&[u32::MAX, 0, 16 << 10]))),
        ("request past the end", message(6, &numbers(&[0, PIECE as u32 - 1, 2]))),
        ("request beyond all numbers", message(6, &numbers(&[0, u32::MAX, 16 << 10]))),
        ("request of too much", message(6, &numbers(&[0, 0, (128 << 10) + 1]))),
        ("request of nothing", message(6, &numbers(&[0, 0, 0]))),
        ("cancel of no piece", message(8, &numbers(&[32, 0, 16 << 10]))),
        ("a bitfield of another torrent", message(5, &[0xff; 5])),
        ("bitfields without end", message(5, &[0; 4]).repeat(100)),
        ("twice all", message(14, &[]).repeat(2)),
        ("a frame of four gigabytes", frame(u32::MAX, &[])),
        ("a frame of two megabytes", frame(2 << 20, &[20, 0])),
        ("an extended message of 70 KB", frame(70_000, &[20, 0])),
        ("a block of 70 KB", frame(70_000, &[7, 0])),
        ("a choke of 5 bytes", message(0, &[0; 4])),
        ("blocks that nobody asked for", message(7, &[0; 8 + 16 * KIB]).repeat(70)),
        ("extensions that aren't bencode", extended(0, "hello")),
        ("metadata that isn't bencode", extended(1, "hello")),
        ("peer exchange with half an address", extended(2, "d5:added3:abce")),
    ];
    let other = handshake(&[7; 20]);
    let strangers: Vec<(&str, Vec<u8>)> = vec![
        ("another info-hash", other),
        ("no BitTorrent", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(4)),
        ("zeros", vec![0; 100]),
    ];
    let before = Uses::of(mount.pid());
    let mut connections = 0;
    for (name, what) in &greeted {
        for _ in 0..TIMES {
            let mut stream = greet(from(1), at, &hash).expect("it is answered");
            // Cut off in the middle.
            let _ = stream.write_all(what);
            assert!(is_closed(&mut stream), "{name}: the connection stays");
            connections += 1;
        }
    }
    for (name, what) in &strangers {
        for _ in 0..TIMES {
            let mut stream = connect(from(1), at, true).expect("it is taken");
            let _ = stream.write_all(what);
            assert!(is_closed(&mut stream), "{name}: the connection stays");
            connections += 1;
        }
    }
    let after = Uses::of(mount.pid());
    let each = after.cpu.saturating_sub(before.cpu) / connections;
    eprintln!("{connections} connections, {each:?} each; before {before:?}, after {after:?}");
    assert!(each < EACH_CONNECTION, "{each:?} for each connection");
    assert!(after.memory < before.memory + MEMORY);
    wait_until("all of them to be gone", MINUTE, || peers(&mount) == 1);
    assert!(Uses::of(mount.pid()).files <= before.files + 4);
    torrent.read(&path, 0..torrent.size());
    mount.stop();
}

/// Handshakes of which a byte comes four times a second are given up; a message of that kind holds nothing but its
/// connection.
#[test]
fn bytes_that_trickle_hold_nobody_up() {
    needs!(Fuse);
    const PAUSE: Duration = Duration::from_millis(250);
    /// The program gives a handshake ten seconds.
    const GIVEN_UP: Duration = Duration::from_secs(10 * 3);
    let torrent = Varied::new("trickled.bin", 32, PIECE);
    let at = here();
    let (mount, _crowd) = mount(&torrent, at, |mount| mount.args(&["--encryption", "prefer"]));
    let path = mount.path(&torrent.name);
    let hash = torrent.info_hash();
    let before = Uses::of(mount.pid());
    let plain = handshake(&hash);
    let (encrypted, silent) = (bytes_at(3, 0, 600), Vec::new());
    let mut handshakes: Vec<_> = [plain, encrypted, silent]
        .into_iter()
        .zip(1..)
        .map(|(what, last)| {
            let stream = connect(from(last), at, true).expect("it is taken");
            stream.set_nonblocking(true).expect("a socket");
            (stream, what.into_iter())
        })
        .collect();
    let mut message = greet(from(9), at, &hash).expect("it is answered");
    message.write_all(&[0, 0, 0xea, 0x60, 20, 0]).expect("it is taken");
    let (start, mut next) = (Instant::now(), Instant::now());
    let mut read = 0;
    wait_until("the handshakes to be given up", GIVEN_UP, || {
        if Instant::now() >= next {
            next += PAUSE;
            for (stream, bytes) in &mut handshakes {
                if let Some(byte) = bytes.next() {
                    // A closed one shows below.
                    let _ = stream.write(&[byte]);
                }
            }
            message.write_all(b"d").expect("it stays");
            if read < torrent.size() {
                torrent.read(&path, read..read + PIECE as u64);
                read += PIECE as u64;
            }
        }
        handshakes.retain_mut(|(stream, _)| match stream.read(&mut [0; 4096]) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        handshakes.is_empty()
    });
    let after = Uses::of(mount.pid());
    eprintln!("given up after {:?}; before {before:?}, after {after:?}", start.elapsed());
    assert!(read == torrent.size(), "the reader came only to {read}");
    assert!(after.memory < before.memory + MEMORY);
    assert_eq!(peers(&mount), 2, "the honest one, and the message");
    mount.stop();
}

/// As many files as this process may open.
fn many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both are given a limit that lives as long as the call.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    assert!(raised, "the limit on open files");
}

#[test]
fn a_thousand_connections_of_one_address_are_few() {
    needs!(Fuse);
    const MANY: usize = 1000;
    /// What all of them may take together: those that are being heard, and those that are about to be refused.
    const FILES: usize = 900;
    many_files();
    let torrent = Varied::new("crowded.bin", 64, PIECE);
    let at = here();
    let (mount, crowd) = mount(&torrent, at, |mount| mount);
    let path = mount.path(&torrent.name);
    let before = Uses::of(mount.pid());
    let peak = Peak::watch(mount.pid());
    let pid = mount.pid();
    let files = Peak::of(move || open_files(pid) as u64);
    // Some say nothing…
    let silent: Vec<_> = (0..MANY).map(|_| connect(from(1), at, false).expect("a socket")).collect();
    torrent.read(&path, 0..32 * PIECE as u64);
    drop(silent);
    // …and some who they are.
    let mut stay = Vec::new();
    for _ in 0..MANY {
        let mut stream = connect(from(2), at, true).expect("it is taken");
        stream.write_all(&handshake(&torrent.info_hash())).expect("it is taken");
        stay.push(stream);
    }
    torrent.read(&path, 32 * PIECE as u64..torrent.size());
    for stream in &stay {
        stream.set_nonblocking(true).expect("a socket");
    }
    wait_until("most of them to be refused", MINUTE, || {
        let mut buffer = [0; 4096];
        stay.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        stay.len() <= 80
    });
    assert_eq!(crowd.connected(), 1, "who was there before stays");
    let (most, more) = (files.highest() as usize, peak.highest().saturating_sub(before.memory));
    eprintln!(
        "{} stay; {most} open files at most, {} before; {} KiB more",
        stay.len(),
        before.files,
        more >> 10
    );
    assert!(most <= before.files + FILES, "{most} open files");
    assert!(more < 2 * MEMORY, "{} MiB more", more / MIB);
    drop(stay);
    // Another address gets in, and is served.
    wait_until("them to be gone", MINUTE, || peers(&mount) == 1);
    be_let_in(&mut greet(from(3), at, &torrent.info_hash()).expect("it is answered"));
    wait_until("the files to be closed", MINUTE, || Uses::of(mount.pid()).files <= before.files + 8);
    mount.stop();
}

/// On loopback an address says nothing of who it is: so on hosts of their own.
#[test]
fn while_one_address_says_nothing_a_thousand_times_another_is_let_in() {
    needs!(Fuse, Libtorrent, Netns);
    const MANY: usize = 1000;
    many_files();
    let torrent = Varied::new("besieged.bin", 4, PIECE);
    let line = Line::new();
    let other = line.far.also(77);
    let at = SocketAddr::from((line.near.ip, 7000));
    let mount = Mount::of(&torrent.torrent).inside(&line.near).listen(at.to_string()).start();
    let still = line.far.within(|| {
        let mut silent: Vec<_> =
            (0..MANY).map(|_| connect(line.far.ip, at, false).expect("a socket")).collect();
        be_let_in(&mut greet(other, at, &torrent.info_hash()).expect("it is answered"));
        // Those that are being heard still are: it wasn't let in because they had given up.
        silent.retain_mut(|stream| !is_closed(stream));
        silent.len()
    });
    eprintln!("{still} of {MANY} are still heard");
    assert!((1..MANY / 2).contains(&still), "{still}");
    mount.stop();
}

/// Those who claim to have the metadata, and don't: it is had all the same from one who does.
#[test]
fn lies_about_the_metadata_are_bounded_and_hold_nothing_up() {
    needs!(Fuse);
    /// What is claimed to be metadata may be kept so far, until it is whole and wrong, of all liars together.
    const KEPT: u64 = 128 * MIB;
    let torrent = Varied::new("told.bin", 1200, 16 * KIB);
    let (info, hash) = (torrent.info(), torrent.info_hash());
    let size = info.len() as u32;
    let at = here();
    let link = format!("magnet:?xt=urn:btih:{}", hash.map(|byte| format!("{byte:02x}")).concat());
    let crowd = Crowd::start(&torrent, 1);
    let mut mount = Mount::of(&link).listen(at.to_string()).peer(crowd.addrs()[0]).start();
    let before = Uses::of(mount.pid());
    let peak = Peak::watch(mount.pid());
    let garbage = |size: u32| -> Option<Arc<[u8]>> { Some(bytes_at(5, 0, size as usize).into()) };
    let tale = |size, total, data| Tale { size, total, data };
    let mut tales = vec![
        // As much as there can be, all of it wrong.
        tale(64 << 20, 64 << 20, garbage(64 << 20)),
        tale(64 << 20, 64 << 20, garbage(64 << 20)),
        // More than that.
        tale((64 << 20) + 1, 1, garbage(1)),
        // The right size, and wrong.
        tale(size, size, garbage(size)),
        tale(size, size, garbage(size)),
        // Another size than it said.
        tale(size, size + 1, garbage(size)),
        // Nothing at all.
        tale(size, size, None),
    ];
    // Sizes that differ, never sent.
    tales.extend((1..20).map(|more| tale(size + more, size + more, None)));
    let liars: Vec<_> =
        tales.into_iter().zip(1_u8..).map(|(tale, last)| Teller::start(from(last), at, hash, tale)).collect();
    wait_until("all to be heard", MINUTE, || {
        liars.iter().enumerate().all(|(number, liar)| number == 2 || liar.asked() > 0)
    });
    wait_until("those who send what is wrong to be found", MINUTE, || {
        [3, 4, 5].iter().all(|number| liars[*number].connections() > 1)
    });
    wait_until("half of as much as there can be", MINUTE, || {
        liars[..2].iter().map(Teller::asked).sum::<usize>() >= (64 << 20) / (32 << 10)
    });
    // What is no metadata at all: frames before it is known.
    for frame in [vec![0, 32, 0, 2, 5], vec![0xff; 5], vec![0, 1, 0, 2, 20]] {
        let mut stream = greet(from(200), at, &hash).expect("it is answered");
        stream.write_all(&frame).expect("it is taken");
        assert!(is_closed(&mut stream), "{frame:?}");
    }
    let start = Instant::now();
    let honest = Teller::start(from(100), at, hash, tale(size, size, Some(info.into())));
    mount.wait_entry(&torrent.name, MINUTE);
    eprintln!(
        "resolved {:?} after the honest one came, asked for {} pieces",
        start.elapsed(),
        honest.asked()
    );
    assert_eq!(liars[2].asked(), 0, "nobody has so much");
    drop(liars);
    let more = peak.highest().saturating_sub(before.memory);
    eprintln!("{} MiB more than before", more / MIB);
    assert!(more < KEPT + 2 * MEMORY, "{} MiB more", more / MIB);
    torrent.read(&mount.path(&torrent.name), 0..torrent.size());
    mount.stop();
}

/// The tracker names us, and so does a peer: we find out, and don't try again.
#[test]
fn we_are_no_peer_of_ours() {
    needs!(Fuse);
    const OURSELVES: &str = "it is ourselves";
    let torrent = Varied::new("alone.bin", 8, PIECE);
    let (at, crowd) = (here(), Crowd::start(&torrent, 2));
    let tracker = Tracker::start(&[at]);
    let mount = Mount::of(&torrent.torrent)
        .listen(at.to_string())
        .args(&["--tracker", &tracker.http_url()])
        .log("torrentfs=debug")
        .start();
    mount.wait_log(&["announced"], MINUTE);
    let times = || mount.log().matches(OURSELVES).count();
    // An address that is known to be ours isn't dialled; of another connection both ends may say it.
    assert!(times() <= 2, "{} times", times());
    let honest = crowd.addrs();
    let compact = |addr: &SocketAddr| {
        let SocketAddr::V4(addr) = addr else { panic!("IPv4") };
        [&addr.ip().octets()[..], &addr.port().to_be_bytes()].concat()
    };
    let introduce = |who: &[SocketAddr]| {
        let who: Vec<u8> = who.iter().flat_map(compact).collect();
        extended(2, [format!("d5:added{}:", who.len()).as_bytes(), &who, b"e"].concat())
    };
    let mut hostile = greet(from(1), at, &torrent.info_hash()).expect("it is answered");
    hostile.write_all(&extended(0, "d1:md6:ut_pexi8eee")).expect("it is taken");
    for who in honest {
        hostile.write_all(&introduce(&[at, *who])).expect("it is taken");
    }
    wait_until("those who were introduced", MINUTE, || crowd.connected() == 2);
    torrent.read(&mount.path(&torrent.name), 0..torrent.size());
    assert!(times() <= 2, "{} times", times());
    assert_eq!(peers(&mount), 3);
    mount.stop();
}

/// Several liars have a part in the same pieces: each is found out, and the honest one stays.
#[test]
fn of_several_liars_in_one_piece_each_is_found() {
    needs!(Fuse, Libtorrent);
    const LIARS: u8 = 3;
    let sample = Sample::file("liars.bin", 8 * MIB, MIB);
    let behaviour = |last| Behaviour { ip: from(last).into(), rate: Some(2 * MIB), ..Behaviour::default() };
    let lies = |last| Behaviour { corrupt: Some(0..sample.pieces), ..behaviour(last) };
    let liars: Vec<_> = (1..=LIARS).map(|last| ScriptedPeer::start(sample.clone(), lies(last))).collect();
    let honest = ScriptedPeer::start(sample.clone(), behaviour(100));
    let mut mount = Mount::sample(&sample).peer(honest.addr());
    for liar in &liars {
        mount = mount.peer(liar.addr());
    }
    let mount = mount.start();
    wait_until("all to be connected", MINUTE, || peers(&mount) == u64::from(LIARS) + 1);
    mount.check_sums(&sample);
    for liar in &liars {
        assert!(liar.served() > 0, "it was never asked: the test shows nothing");
        mount.wait_log(&["banned", &liar.addr().to_string()], MINUTE);
    }
    let mixed = (0..sample.pieces as u32).filter(|piece| {
        let sent = |peer: &ScriptedPeer| peer.answers().iter().any(|block| block.piece == *piece);
        liars.iter().filter(|liar| sent(liar)).count() > 1 && sent(&honest)
    });
    assert!(mixed.count() > 0, "no piece had several liars in it: the test shows nothing");
    let log = mount.log();
    let honest = honest.addr().to_string();
    assert!(!log.lines().any(|line| line.contains("banned") && line.contains(&honest)), "{log}");
    assert_eq!(peers(&mount), 1);
    mount.stop();
}

/// A datagram socket that doesn't wait.
fn datagrams(ip: Ipv4Addr, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).expect("a socket");
    socket.connect(to).expect("an address");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// What has come, of which so many bytes are looked at.
fn came(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
}

/// A first packet of uTP, or of another kind.
fn utp(kind: u8, id: u16) -> Vec<u8> {
    let id = id.to_be_bytes();
    vec![kind << 4 | 1, 0, id[0], id[1], 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0]
}

#[test]
fn a_flood_of_packets_is_answered_little() {
    needs!(Fuse, Libtorrent);
    const PACKETS: u32 = 20_000;
    /// Connections that may be begun at a time, and how soon another takes the place of one of them.
    const HALF_OPEN: usize = 256;
    const STALE: Duration = Duration::from_secs(2);
    /// Answers a second to what belongs to no connection.
    const RESETS: usize = 50;
    let sample = Sample::file("packets.bin", 4 * MIB, MIB);
    let at = here();
    let seeder = Seeder::with(&sample, "127.0.0.2:0", &["--no-tcp"]);
    let mount = Mount::sample(&sample).listen(at.to_string()).peer(seeder.addr).utp().start();
    wait_until("the honest peer to be connected", MINUTE, || peers(&mount) == 1);
    let before = Uses::of(mount.pid());
    let peak = Peak::watch(mount.pid());
    let start = Instant::now();
    let [syns, strays] = [from(1), from(2)].map(|ip| datagrams(ip, at));
    let (mut sent, mut taken, mut reset) = (0_u32, 0, 0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| mount.check_sums(&sample));
        while sent < PACKETS || !reader.is_finished() {
            // What doesn't fit is lost, as everywhere.
            let _ = syns.send(&utp(4, (2 * sent) as u16));
            let _ = strays.send(&utp(0, sent as u16));
            sent += 1;
            if sent.is_multiple_of(64) {
                if sent > PACKETS {
                    // Goes on, and leaves room for what the honest peer sends to the same socket.
                    std::thread::sleep(Duration::from_millis(1));
                }
                taken += came(&syns).iter().filter(|packet| packet[0] >> 4 == 2).count();
                reset += came(&strays).iter().filter(|packet| packet[0] >> 4 == 3).count();
            }
        }
    });
    let after = Uses::of(mount.pid());
    taken += came(&syns).len();
    reset += came(&strays).len();
    let took = start.elapsed();
    let each = after.cpu.saturating_sub(before.cpu) / (2 * sent);
    eprintln!("in {took:?} of {sent} {taken} were answered and {reset} refused; {each:?} each; {after:?}");
    assert!(taken > 0 && reset > 0, "nobody listens");
    // Answers are sent again as long as nothing comes back, some times; and to who asks again: the numbers begin anew.
    let turns = 1 + (took.as_secs_f64() / STALE.as_secs_f64()) as usize;
    let again = 1 + sent as usize / (1 << 15);
    assert!(taken <= HALF_OPEN * (8 * turns + again), "{taken} answers to {sent} in {took:?}");
    assert!(reset <= RESETS * (2 + took.as_secs() as usize), "{reset} refusals in {took:?}");
    assert!(each < EACH, "{each:?} for each packet");
    assert!(peak.highest() < before.memory + MEMORY);
    assert!(after.files <= before.files + 8);
    // When they have given up others get in.
    let other = datagrams(from(3), at);
    wait_until("an answer to another", MINUTE, || {
        let _ = other.send(&utp(4, 7));
        came(&other).iter().any(|packet| packet[0] >> 4 == 2)
    });
    // Its connection may have been lost in the flood, as any may.
    wait_until("the honest peer", MINUTE, || peers(&mount) == 1);
    mount.stop();
}

#[test]
fn a_flood_of_questions_to_the_dht_is_answered_little() {
    needs!(Fuse);
    const QUESTIONS: u32 = 20_000;
    /// Answers a second to one, and to all.
    const EACH_GETS: usize = 20;
    const ALL_GET: usize = 250;
    let torrent = Varied::new("asked.bin", 32, PIECE);
    let at = here();
    let (mount, _crowd) = mount(&torrent, at, MountBuilder::own_dht);
    let question = |number: u32| {
        let mut question = b"d1:ad2:id20:".to_vec();
        question.extend_from_slice(&bytes_at(u64::from(number), 0, 20));
        question.extend_from_slice(b"9:info_hash20:");
        question.extend_from_slice(&bytes_at(u64::from(number), 20, 20));
        question.extend_from_slice(b"e1:q9:get_peers1:t2:aa1:y1:qe");
        question
    };
    let answered =
        |socket: &UdpSocket| came(socket).iter().filter(|packet| packet.ends_with(b"1:y1:re")).count();
    let before = Uses::of(mount.pid());
    let peak = Peak::watch(mount.pid());
    let sockets: Vec<_> = (1..=40).map(|last| datagrams(from(last), at)).collect();
    let mut answers = vec![0; sockets.len()];
    let start = Instant::now();
    let mut sent = 0;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| torrent.read(&mount.path(&torrent.name), 0..torrent.size()));
        while sent < QUESTIONS || !reader.is_finished() {
            let of = sent as usize % sockets.len();
            let _ = sockets[of].send(&question(sent));
            answers[of] += answered(&sockets[of]);
            sent += 1;
        }
    });
    for (socket, answers) in sockets.iter().zip(&mut answers) {
        *answers += answered(socket);
    }
    let (took, after) = (start.elapsed(), Uses::of(mount.pid()));
    let seconds = 2 + took.as_secs() as usize;
    let (most, all) = (answers.iter().max().copied().unwrap_or(0), answers.iter().sum::<usize>());
    let each = after.cpu.saturating_sub(before.cpu) / sent;
    eprintln!("in {took:?} {all} of {sent} were answered, {most} of one; {each:?} each; {after:?}");
    assert!(all > 0, "nobody listens");
    assert!(most <= EACH_GETS * seconds && all <= ALL_GET * seconds);
    assert!(each < EACH, "{each:?} for each");
    assert!(peak.highest() < before.memory + MEMORY);
    // Others are answered again in a moment.
    let other = datagrams(from(100), at);
    wait_until("an answer to another", MINUTE, || {
        let _ = other.send(&question(sent));
        answered(&other) > 0
    });
    mount.stop();
}
