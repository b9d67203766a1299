//! Peers that mean harm: connections of the tests' own that say what no client does, as fast as it is taken.
//!
//! Parts: [`connect`] and [`greet`] make connections, from addresses of their own; [`message`] makes what is said;
//! [`Flood`] says the same over and over and counts what comes back; [`Teller`] is a peer that tells about the metadata
//! what it is told to, true or not; [`Uses`] is what a mount uses meanwhile.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::{cpu, memory};

/// For the other side to say something, or to close: what it may take its time for is ten seconds.
const WAIT: Duration = Duration::from_secs(30);
/// The largest message taken: a block of 128 KiB.
const MESSAGE_MAX: usize = 1 << 20;
/// Under which number metadata messages are sent to a [`Teller`].
const METADATA_ID: u8 = 9;
/// Bytes of a piece of metadata.
const METADATA_PIECE: usize = 16 << 10;

/// A message as it stands on the wire.
pub fn message(id: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32 + 1).to_be_bytes().to_vec();
    message.push(id);
    message.extend_from_slice(body);
    message
}

/// Numbers of 32 bits, one after the other.
pub fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A connection from an address, with nothing said. It may be made when this returns, or still be waiting for the other
/// side; with `wait` it is made.
pub fn connect(from: Ipv4Addr, to: SocketAddr, wait: bool) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.set_nonblocking(!wait)?;
    match socket.connect(&to.into()) {
        Err(error) if wait || error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from(socket);
    if wait {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
    }
    Ok(stream)
}

/// The handshake of a peer that has a name of its own, with the fast extension and the extension protocol.
pub fn handshake(info_hash: &[u8; 20]) -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x04".to_vec();
    hello.extend_from_slice(info_hash);
    hello.extend_from_slice(format!("-XX0001-hos{number:09}").as_bytes());
    hello
}

/// A connection whose handshakes are done.
pub fn greet(from: Ipv4Addr, to: SocketAddr, info_hash: &[u8; 20]) -> std::io::Result<TcpStream> {
    let mut stream = connect(from, to, true)?;
    stream.write_all(&handshake(info_hash))?;
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs)?;
    Ok(stream)
}

/// The next message: its number, `None` for a keep-alive, and what it holds.
pub fn hear(stream: &mut TcpStream) -> std::io::Result<(Option<u8>, Vec<u8>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if body.is_empty() {
        return Ok((None, body));
    }
    let rest = body.split_off(1);
    Ok((Some(body[0]), rest))
}

/// Asks to be let in, and waits until it is.
#[track_caller]
pub fn be_let_in(stream: &mut TcpStream) {
    stream.write_all(&message(2, &[])).expect("the other side is there");
    while hear(stream).expect("the other side goes on").0 != Some(1) {}
}

/// Whether the other side closes the connection, whatever it says before; waits for it.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    over: AtomicBool,
    times: AtomicU64,
    heard: Mutex<BTreeMap<u8, u64>>,
}

/// A connection over which the same is said over and over. Dropping it closes the connection and joins its threads.
pub struct Flood {
    stream: TcpStream,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Begins. What comes back is counted with `reads`, and otherwise never taken.
    pub fn start(stream: TcpStream, what: Vec<u8>, reads: bool) -> Self {
        let counts = Arc::new(Counts::default());
        // Also what the other side takes slowly.
        stream.set_write_timeout(None).expect("a time-out");
        let handle = || stream.try_clone().expect("a second handle");
        let (mut to, told) = (handle(), counts.clone());
        let mut threads = vec![std::thread::spawn(move || {
            while !told.stop.load(Ordering::Relaxed) && to.write_all(&what).is_ok() {
                told.times.fetch_add(1, Ordering::Relaxed);
            }
            told.over.store(!told.stop.load(Ordering::Relaxed), Ordering::Relaxed);
        })];
        if reads {
            let (mut from, heard) = (handle(), counts.clone());
            from.set_read_timeout(None).expect("a time-out");
            threads.push(std::thread::spawn(move || {
                while let Ok((id, _)) = hear(&mut from) {
                    *heard.heard.lock().expect("counts").entry(id.unwrap_or(u8::MAX)).or_default() += 1;
                }
            }));
        }
        Self { stream, counts, threads }
    }

    /// How often it has been said.
    pub fn times(&self) -> u64 {
        self.counts.times.load(Ordering::Relaxed)
    }

    /// Whether the other side has closed the connection.
    pub fn is_over(&self) -> bool {
        self.counts.over.load(Ordering::Relaxed)
    }

    /// Messages of this kind that came back.
    pub fn heard(&self, id: u8) -> u64 {
        self.counts.heard.lock().expect("counts").get(&id).copied().unwrap_or(0)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a [`Teller`] says about the metadata.
#[derive(Clone)]
pub struct Tale {
    /// How many bytes it has, by its extension handshake.
    pub size: u32,
    /// How many it says in each answer.
    pub total: u32,
    /// What it answers, whole; nothing if there is none.
    pub data: Option<Arc<[u8]>>,
}

#[derive(Default)]
struct Told {
    stop: AtomicBool,
    connections: AtomicUsize,
    asked: AtomicUsize,
    open: Mutex<Option<TcpStream>>,
}

/// A peer that connects, says how much metadata it has, and answers what it is asked; when it is thrown out it comes again.
pub struct Teller {
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

impl Teller {
    /// Connects.
    pub fn start(from: Ipv4Addr, to: SocketAddr, info_hash: [u8; 20], tale: Tale) -> Self {
        let told = Arc::new(Told::default());
        let shared = told.clone();
        let thread = std::thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                // However it ends, it begins anew.
                let _ = greet(from, to, &info_hash).and_then(|stream| tell(stream, &tale, &shared));
            }
        });
        Self { told, thread: Some(thread) }
    }

    /// How often it was taken in.
    pub fn connections(&self) -> usize {
        self.told.connections.load(Ordering::Relaxed)
    }

    /// How many pieces it was asked for.
    pub fn asked(&self) -> usize {
        self.told.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::SeqCst);
        if let Some(stream) = self.told.open.lock().expect("a connection").as_ref() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tell(mut stream: TcpStream, tale: &Tale, told: &Told) -> std::io::Result<()> {
    *told.open.lock().expect("a connection") = Some(stream.try_clone()?);
    if told.stop.load(Ordering::SeqCst) {
        return Ok(());
    }
    told.connections.fetch_add(1, Ordering::Relaxed);
    let hello = format!("d1:md11:ut_metadatai{METADATA_ID}ee13:metadata_sizei{}ee", tale.size);
    stream.write_all(&message(20, &[&[0], hello.as_bytes()].concat()))?;
    // Until it is told otherwise; every mount says so first.
    let mut theirs = None;
    loop {
        let (id, body) = match hear(&mut stream) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            heard => heard?,
        };
        let Some((kind, body)) = body.split_first().filter(|_| id == Some(20)) else { continue };
        let text = String::from_utf8_lossy(body);
        let number = |name: &str| {
            let rest = text.split_once(name)?.1;
            rest.split_once('e')?.0.parse::<usize>().ok()
        };
        if *kind == 0 {
            theirs = number("11:ut_metadatai").and_then(|id| u8::try_from(id).ok());
        } else if *kind == METADATA_ID && number("8:msg_typei") == Some(0) {
            told.asked.fetch_add(1, Ordering::Relaxed);
            let (Some(piece), Some(theirs), Some(data)) = (number("5:piecei"), theirs, &tale.data) else {
                continue;
            };
            let begin = (piece * METADATA_PIECE).min(data.len());
            let end = (begin + METADATA_PIECE).min(data.len());
            let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{}ee", tale.total);
            stream.write_all(&message(20, &[&[theirs], head.as_bytes(), &data[begin..end]].concat()))?;
        }
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Uses {
    /// Processor time since its start.
    pub cpu: Duration,
    /// Memory proper, in bytes.
    pub memory: u64,
    /// Open files.
    pub files: usize,
}

impl Uses {
    /// Looks at it.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        Self { cpu: cpu(pid), memory: memory(pid, "RssAnon"), files: open_files(pid) }
    }
}

/// How many files a process has open; 0 when it is gone.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
