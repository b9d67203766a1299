//! A tracker, on loopback where nothing else is said, over HTTP (BEP 3, 23, 7) and UDP (BEP 15) at once, and trackers that are dead.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at whether to stop.
const TICK: Duration = Duration::from_millis(5);
/// What BEP 15 begins a connection with.
const UDP_MAGIC: u64 = 0x0417_2710_1980;
/// The connection id given to everybody.
const CONNECTION: u64 = 0x7466_735F_7465_7374;
/// Seconds until the next announce, told to everybody.
const INTERVAL: u32 = 1_800;

/// An announce as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The info-hash, 20 bytes in hex.
    pub info_hash: String,
    /// The port it says it listens at.
    pub port: u16,
    /// `started`, `stopped`, `completed`, or nothing.
    pub event: String,
    /// Over UDP, not HTTP.
    pub udp: bool,
    /// Who announces.
    pub from: IpAddr,
    /// When.
    pub at: Instant,
}

struct Shared {
    peers: Mutex<Vec<SocketAddr>>,
    /// Who announces is given to the others from then on.
    introduces: bool,
    announces: Mutex<Vec<Announce>>,
    /// HTTP announces from now on aren't answered; their connections stay.
    silent: AtomicBool,
    unanswered: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

/// The running tracker. Dropping it joins its threads.
pub struct Tracker {
    http: SocketAddr,
    udp: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Tracker {
    /// Listens on loopback, and gives everybody the same peers.
    pub fn start(peers: &[SocketAddr]) -> Self {
        Self::with(Ipv4Addr::LOCALHOST, peers, false)
    }

    /// The same, and who announces (at the address that it comes from) is given to those who come later.
    pub fn of_swarm(peers: &[SocketAddr]) -> Self {
        Self::with(Ipv4Addr::LOCALHOST, peers, true)
    }

    /// Listens at an address.
    pub fn at(ip: Ipv4Addr, peers: &[SocketAddr]) -> Self {
        Self::with(ip, peers, false)
    }

    fn with(ip: Ipv4Addr, peers: &[SocketAddr], introduces: bool) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        let socket = UdpSocket::bind((ip, 0)).expect("a port");
        let (http, udp) = (listener.local_addr().expect("bound"), socket.local_addr().expect("bound"));
        let shared = Arc::new(Shared {
            peers: Mutex::new(peers.to_vec()),
            introduces,
            announces: Mutex::default(),
            silent: AtomicBool::new(false),
            unanswered: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let (first, second) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || serve_http(&listener, &first)),
            std::thread::spawn(move || serve_udp(&socket, &second)),
        ];
        Self { http, udp, shared, threads }
    }

    /// Its HTTP address.
    pub fn http_url(&self) -> String {
        format!("http://{}/announce", self.http)
    }

    /// Its UDP address.
    pub fn udp_url(&self) -> String {
        format!("udp://{}/announce", self.udp)
    }

    /// From now on it takes HTTP announces down, and doesn't answer.
    pub fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::Relaxed);
    }

    /// The announces so far.
    pub fn announces(&self) -> Vec<Announce> {
        self.shared.announces.lock().expect("announces").clone()
    }
}

impl Shared {
    /// Takes an announce down; returns the peers to be named in the answer.
    fn announced(&self, announce: Announce) -> Vec<SocketAddr> {
        let addr = SocketAddr::new(announce.from, announce.port);
        let gone = announce.event == "stopped";
        self.announces.lock().expect("announces").push(announce);
        let mut peers = self.peers.lock().expect("peers");
        if self.introduces {
            peers.retain(|peer| *peer != addr);
        }
        let others = peers.clone();
        if self.introduces && !gone {
            peers.push(addr);
        }
        others
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_http(listener: &TcpListener, shared: &Shared) {
    listener.set_nonblocking(true).expect("non-blocking");
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => drop(answer_http(stream, from.ip(), shared)),
            Err(_) => std::thread::sleep(TICK),
        }
    }
}

fn answer_http(mut stream: TcpStream, from: IpAddr, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 2048];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            got => request.extend_from_slice(&buffer[..got]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let target = request.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let value = |name: &str| {
        query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let peers = shared.announced(Announce {
        info_hash: hex(&percent_decoded(value("info_hash"))),
        port: value("port").parse().unwrap_or(0),
        event: value("event").to_owned(),
        udp: false,
        from,
        at: Instant::now(),
    });
    if shared.silent.load(Ordering::Relaxed) {
        shared.unanswered.lock().expect("connections").push(stream);
        return Ok(());
    }
    let (four, six): (Vec<_>, Vec<_>) = peers.iter().partition(|peer| peer.is_ipv4());
    let mut body = format!("d8:intervali{INTERVAL}e").into_bytes();
    for (key, peers) in [("5:peers", four), ("6:peers6", six)] {
        let compact: Vec<u8> = peers.into_iter().flat_map(compact).collect();
        body.extend_from_slice(format!("{key}{}:", compact.len()).as_bytes());
        body.extend_from_slice(&compact);
    }
    body.push(b'e');
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    socket.set_read_timeout(Some(TICK)).expect("a time-out");
    let mut buffer = [0; 2048];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((got, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(answer) = answer_udp(&buffer[..got], from.ip(), shared) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// One request of BEP 15: connect (action 0) or announce (action 1).
fn answer_udp(request: &[u8], from: IpAddr, shared: &Shared) -> Option<Vec<u8>> {
    let long = u64::from_be_bytes(*request.first_chunk()?);
    let action = u32::from_be_bytes(*request.get(8..)?.first_chunk()?);
    let transaction = request.get(12..16)?;
    let mut answer = action.to_be_bytes().to_vec();
    answer.extend_from_slice(transaction);
    match (action, long) {
        (0, UDP_MAGIC) => answer.extend_from_slice(&CONNECTION.to_be_bytes()),
        (1, CONNECTION) if request.len() >= 98 => {
            let event = match request[83] {
                1 => "completed",
                2 => "started",
                3 => "stopped",
                _ => "",
            };
            let peers = shared.announced(Announce {
                info_hash: hex(&request[16..36]),
                port: u16::from_be_bytes([request[96], request[97]]),
                event: event.to_owned(),
                udp: true,
                from,
                at: Instant::now(),
            });
            for number in [INTERVAL, 0, peers.len() as u32] {
                answer.extend_from_slice(&number.to_be_bytes());
            }
            answer.extend(peers.iter().filter(|peer| peer.is_ipv4()).flat_map(compact));
        }
        _ => return None,
    }
    Some(answer)
}

/// A peer in the compact form of BEP 23 and BEP 7.
fn compact(peer: &SocketAddr) -> Vec<u8> {
    let mut bytes = match peer {
        SocketAddr::V4(peer) => peer.ip().octets().to_vec(),
        SocketAddr::V6(peer) => peer.ip().octets().to_vec(),
    };
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.filter(|_| first == b'%').and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// A tracker that never answers, or isn't there.
pub enum DeadTracker {
    /// Packets arrive and nobody answers.
    SilentUdp(UdpSocket),
    /// Connections are made and nobody answers.
    SilentHttp(TcpListener),
    /// Nobody listens.
    Closed(u16),
}

impl DeadTracker {
    /// Nine of them, three of each kind.
    pub fn nine() -> Vec<Self> {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let closed = || TcpListener::bind(any).and_then(|held| held.local_addr()).expect("a port").port();
        (0..9)
            .map(|number| match number % 3 {
                0 => Self::SilentUdp(UdpSocket::bind(any).expect("a port")),
                1 => Self::SilentHttp(TcpListener::bind(any).expect("a port")),
                _ => Self::Closed(closed()),
            })
            .collect()
    }

    /// Its address, as it stands in a magnet link.
    pub fn url(&self) -> String {
        match self {
            Self::SilentUdp(socket) => format!("udp://{}/announce", socket.local_addr().expect("bound")),
            Self::SilentHttp(listener) => {
                format!("http://{}/announce", listener.local_addr().expect("bound"))
            }
            Self::Closed(port) => format!("http://127.0.0.1:{port}/announce"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracker_answers_over_http_and_udp() {
        let peer: SocketAddr = "127.0.0.9:6881".parse().expect("an address");
        let tracker = Tracker::start(&[peer]);
        let mut stream = TcpStream::connect(tracker.http).expect("connects");
        let query = format!("info_hash={}&port=7&event=started", "%ABz".repeat(10));
        stream.write_all(format!("GET /announce?{query} HTTP/1.1\r\n\r\n").as_bytes()).expect("asks");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answers");
        assert!(answer.ends_with(b"5:peers6:\x7f\0\0\x09\x1a\xe16:peers60:e"), "{answer:?}");

        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let mut buffer = [0; 200];
        let connect = [&UDP_MAGIC.to_be_bytes()[..], &[0, 0, 0, 0, 1, 2, 3, 4]].concat();
        socket.send_to(&connect, tracker.udp).expect("asks");
        assert_eq!(socket.recv(&mut buffer).expect("answers"), 16);
        let mut announce = [&buffer[8..16], &[0, 0, 0, 1, 5, 6, 7, 8]].concat();
        announce.extend_from_slice(&[0xAB; 82]);
        announce[80..84].copy_from_slice(&[0, 0, 0, 2]);
        socket.send_to(&announce, tracker.udp).expect("asks");
        assert_eq!(socket.recv(&mut buffer).expect("answers"), 26);
        assert_eq!(buffer[20..26], [127, 0, 0, 9, 0x1a, 0xe1]);
        let announces = tracker.announces();
        assert_eq!(announces[0].info_hash, "ab7a".repeat(10));
        assert_eq!((announces[1].event.as_str(), announces[1].udp), ("started", true));
    }

    #[test]
    fn the_tracker_of_a_swarm_introduces_those_who_came_before() {
        let seed: SocketAddr = "127.0.0.9:6881".parse().expect("an address");
        let tracker = Tracker::of_swarm(&[seed]);
        let announce = |event: &str, port: u16| {
            let (event, from) = (event.to_owned(), Ipv4Addr::LOCALHOST.into());
            let (info_hash, at) = (String::new(), Instant::now());
            tracker.shared.announced(Announce { info_hash, port, event, udp: false, from, at })
        };
        let [first, second] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(announce("started", 1), [seed]);
        assert_eq!(announce("started", 2), [seed, first]);
        assert_eq!(announce("completed", 1), [seed, second]);
        assert_eq!(announce("stopped", 2), [seed, first]);
        assert_eq!(announce("", 1), [seed]);
    }
}
