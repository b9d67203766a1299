//! A small peer over TCP that does as it is told: serves garbage, stalls, never unchokes, doesn't read.
//!
//! It speaks BEP 3 alone (no extension protocol, no fast extension, no encryption), and serves a [`Sample`]'s
//! bytes. Each connection has a thread of its own; all end when the peer is dropped.

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Sample;

/// How long a connection waits for a message before it looks at what it has been told meanwhile.
const TICK: Duration = Duration::from_millis(5);
/// How much time a peer with a limited rate may make up for.
const CREDIT: Duration = Duration::from_millis(50);
/// The largest message taken from the other side; it sends requests and a bitfield.
const MESSAGE_MAX: usize = 1 << 20;

/// How a peer behaves. The default is an honest seeder on 127.0.0.1.
#[derive(Clone)]
pub struct Behaviour {
    /// Where it listens, on a port of the system's choice.
    pub ip: IpAddr,
    /// The pieces it offers; all if none is given.
    pub has: Option<Range<u64>>,
    /// Pieces it sends garbage for.
    pub corrupt: Option<Range<u64>>,
    /// It never unchokes.
    pub never_unchoke: bool,
    /// After its bitfield and unchoke it reads nothing more.
    pub deaf: bool,
    /// After so many blocks (over all connections) it answers nothing more.
    pub stall_after: Option<usize>,
    /// Bytes per second of each connection.
    pub rate: Option<u64>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST.into(),
            has: None,
            corrupt: None,
            never_unchoke: false,
            deaf: false,
            stall_after: None,
            rate: None,
        }
    }
}

/// A block that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Piece.
    pub piece: u32,
    /// Offset in the piece, in bytes.
    pub begin: u32,
    /// Length in bytes.
    pub length: u32,
}

struct Shared {
    sample: Sample,
    behaviour: Behaviour,
    info_hash: [u8; 20],
    stop: AtomicBool,
    connections: AtomicUsize,
    served: AtomicUsize,
    /// Pieces whose requests stay unanswered until they are released.
    held: Mutex<HashSet<u32>>,
    requests: Mutex<Vec<Request>>,
    answers: Mutex<Vec<Request>>,
    /// Requests of all connections that are neither answered nor cancelled.
    waiting: AtomicUsize,
}

/// The running peer. Dropping it closes its connections and joins its threads.
pub struct ScriptedPeer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl ScriptedPeer {
    /// Listens and serves.
    pub fn start(sample: Sample, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind((behaviour.ip, 0)).expect("a port");
        let addr = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("non-blocking");
        let hash = sample.v1.as_deref().or(sample.v2.as_deref()).expect("an info-hash");
        let info_hash =
            std::array::from_fn(|at| u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).expect("hex"));
        let shared = Arc::new(Shared {
            sample,
            behaviour,
            info_hash,
            stop: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            held: Mutex::default(),
            requests: Mutex::default(),
            answers: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        let for_thread = shared.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &for_thread));
        Self { addr, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every block asked for so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("requests").clone()
    }

    /// Whether a block of this piece was asked for.
    pub fn asked_for(&self, piece: u32) -> bool {
        self.requests().iter().any(|request| request.piece == piece)
    }

    /// Blocks sent so far.
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// The blocks sent so far, in order.
    pub fn answers(&self) -> Vec<Request> {
        self.shared.answers.lock().expect("answers").clone()
    }

    /// Requests that are neither answered nor cancelled.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Leaves requests for these pieces unanswered, until [`ScriptedPeer::release`].
    pub fn hold(&self, pieces: Range<u32>) {
        self.shared.held.lock().expect("held").extend(pieces);
    }

    /// Answers everything that was held back.
    pub fn release(&self) {
        self.shared.held.lock().expect("held").clear();
    }
}

impl Drop for ScriptedPeer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                // A connection that breaks is the other side's business: it is what many tests are about.
                threads.push(std::thread::spawn(move || drop(Connection::serve(stream, &shared))));
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

struct Connection<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    received: Vec<u8>,
    waiting: VecDeque<Request>,
    /// When the next block may be sent, with a limited rate.
    next: Instant,
}

impl<'a> Connection<'a> {
    fn serve(stream: TcpStream, shared: &'a Shared) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let mut this =
            Self { stream, shared, received: Vec::new(), waiting: VecDeque::new(), next: Instant::now() };
        let outcome = this.handshake().and_then(|()| this.converse());
        shared.waiting.fetch_sub(this.waiting.len(), Ordering::Relaxed);
        outcome
    }

    fn converse(&mut self) -> std::io::Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if !self.shared.behaviour.deaf {
                self.receive()?;
            } else {
                std::thread::sleep(TICK);
            }
            self.answer()?;
        }
        Ok(())
    }

    /// Both handshakes (BEP 3), then our bitfield and, unless told otherwise, an unchoke.
    fn handshake(&mut self) -> std::io::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.received.len() < 68 {
            if Instant::now() > end || self.shared.stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::TimedOut.into());
            }
            self.fill()?;
        }
        let theirs: Vec<u8> = self.received.drain(..68).collect();
        if theirs[..20] != *b"\x13BitTorrent protocol" || theirs[28..48] != self.shared.info_hash {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut ours = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
        ours.extend_from_slice(&self.shared.info_hash);
        ours.extend_from_slice(b"-XX0001-scripted");
        ours.extend_from_slice(&self.addr_tail());
        self.stream.write_all(&ours[..68])?;
        let pieces = self.shared.sample.pieces;
        let mut bits = vec![0_u8; pieces.div_ceil(8) as usize];
        for piece in self.shared.behaviour.has.clone().unwrap_or(0..pieces) {
            bits[(piece / 8) as usize] |= 0x80 >> (piece % 8);
        }
        self.send(5, &bits)?;
        if !self.shared.behaviour.never_unchoke {
            self.send(1, &[])?;
        }
        Ok(())
    }

    /// Four bytes that make each scripted peer's id its own: the port, twice.
    fn addr_tail(&self) -> [u8; 4] {
        let port = self.stream.local_addr().map_or(0, |addr| addr.port()).to_be_bytes();
        [port[0], port[1], port[1], port[0]]
    }

    fn send(&mut self, id: u8, payload: &[u8]) -> std::io::Result<()> {
        let mut message = (payload.len() as u32 + 1).to_be_bytes().to_vec();
        message.push(id);
        message.extend_from_slice(payload);
        self.stream.write_all(&message)
    }

    /// Reads what is there, one tick at most.
    fn fill(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                self.received.extend_from_slice(&buffer[..got]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self) -> std::io::Result<()> {
        // With answers to give, a read that would wait a tick per block would be the limit of the rate.
        self.stream.set_nonblocking(self.can_answer())?;
        let filled = self.fill();
        self.stream.set_nonblocking(false)?;
        filled?;
        while let Some(header) = self.received.first_chunk::<4>() {
            let length = u32::from_be_bytes(*header) as usize;
            if length > MESSAGE_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.received.len() < 4 + length {
                break;
            }
            let message: Vec<u8> = self.received.drain(..4 + length).skip(4).collect();
            self.take(&message);
        }
        Ok(())
    }

    fn take(&mut self, message: &[u8]) {
        let Some((&id @ (6 | 8), body)) = message.split_first() else { return };
        let number =
            |at: usize| body.get(at..at + 4).map(|bytes| bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
        let (Some(piece), Some(begin), Some(length)) = (number(0), number(4), number(8)) else { return };
        let request = Request { piece, begin, length };
        let before = self.waiting.len();
        if id == 6 {
            self.shared.requests.lock().expect("requests").push(request);
            self.waiting.push_back(request);
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.retain(|waiting| *waiting != request);
            self.shared.waiting.fetch_sub(before - self.waiting.len(), Ordering::Relaxed);
        }
    }

    fn can_answer(&self) -> bool {
        let stalled = |after| self.shared.served.load(Ordering::Relaxed) >= after;
        !self.shared.behaviour.stall_after.is_some_and(stalled)
            && Instant::now() >= self.next
            && self.position().is_some()
    }

    /// The first request that isn't held back.
    fn position(&self) -> Option<usize> {
        let held = self.shared.held.lock().expect("held");
        self.waiting.iter().position(|request| !held.contains(&request.piece))
    }

    /// Sends one block, if there is one to send.
    fn answer(&mut self) -> std::io::Result<()> {
        if !self.can_answer() {
            return Ok(());
        }
        let Some(request) = self.position().and_then(|at| self.waiting.remove(at)) else { return Ok(()) };
        let offset = u64::from(request.piece) * self.shared.sample.piece_length + u64::from(request.begin);
        if offset + u64::from(request.length) > self.shared.sample.total || request.length > 128 * 1024 {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; 8 + request.length as usize];
        payload[..4].copy_from_slice(&request.piece.to_be_bytes());
        payload[4..8].copy_from_slice(&request.begin.to_be_bytes());
        self.shared.sample.content(offset, &mut payload[8..]);
        let corrupt = self.shared.behaviour.corrupt.as_ref();
        if corrupt.is_some_and(|pieces| pieces.contains(&u64::from(request.piece))) {
            payload[8..].iter_mut().for_each(|byte| *byte ^= 0x5A);
        }
        if let Some(rate) = self.shared.behaviour.rate {
            let pause = Duration::from_secs_f64(f64::from(request.length) / rate as f64);
            let now = Instant::now();
            // What was missed is made up for, so that a tick between two blocks isn't the limit of the rate.
            self.next = self.next.max(now.checked_sub(CREDIT).unwrap_or(now)) + pause;
        }
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        self.shared.answers.lock().expect("answers").push(request);
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        self.send(7, &payload)
    }
}
