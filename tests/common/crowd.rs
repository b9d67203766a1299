//! Many honest seeders in one process, each at an address of its own, for what shows at scale only.
//!
//! [`Uniform`] is a torrent whose pieces are all alike, so that it takes no disk and no hashing to make one of
//! any size, and its seeders serve from a single piece in memory, as fast as they are asked. [`Varied`] is one
//! whose pieces all differ, so that what stands at a wrong place shows; it takes no disk either. [`Truth`] is the
//! bytes of one, for whoever has to compare in another process. [`Crowd`] is the seeders: a handshake, a bitfield, an
//! unchoke, then blocks as requested, in order; each can go away and come back. They know no extension and never
//! misbehave; [`ScriptedPeer`](super::ScriptedPeer) is for that. Dropping the crowd closes all connections and joins
//! the threads.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::bytes_at;

/// The largest message taken from the other side; it sends requests and a bitfield.
const MESSAGE_MAX: usize = 1 << 20;
/// Of a thread that serves one connection: it calls nothing deep.
const STACK: usize = 128 << 10;

/// A torrent of one file, each of whose pieces holds the same bytes.
pub struct Uniform {
    /// The file's name.
    pub name: String,
    /// The `.torrent` file.
    pub torrent: PathBuf,
    /// Info-hash v1 in hex.
    pub v1: String,
    /// How many pieces, all of full length.
    pub pieces: u64,
    /// What each of them holds.
    pub piece: Arc<[u8]>,
    info_hash: [u8; 20],
    _dir: TempDir,
}

impl Uniform {
    /// Makes the `.torrent` file.
    pub fn new(name: &str, pieces: u64, piece: Vec<u8>) -> Self {
        let hash: [u8; 20] = Sha1::digest(&piece).into();
        let hashes = std::iter::repeat_n(hash, pieces as usize);
        let files = format!("6:lengthi{}e", pieces * piece.len() as u64);
        let (torrent, info_hash, dir) = make(name, &files, piece.len(), hashes);
        Self {
            name: name.to_owned(),
            torrent,
            v1: hex(&info_hash),
            pieces,
            piece: piece.into(),
            info_hash,
            _dir: dir,
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.pieces * self.piece.len() as u64
    }

    /// Panics unless `read` is what stands at `offset`.
    #[track_caller]
    pub fn check(&self, mut offset: u64, mut read: &[u8]) {
        let length = self.piece.len();
        while !read.is_empty() {
            let begin = (offset % length as u64) as usize;
            let (part, rest) = read.split_at(read.len().min(length - begin));
            assert!(part == &self.piece[begin..begin + part.len()], "wrong bytes from {offset} on");
            (offset, read) = (offset + part.len() as u64, rest);
        }
    }
}

/// A torrent no two of whose pieces hold the same bytes.
pub struct Varied {
    /// The file's name, or the folder's.
    pub name: String,
    /// The `.torrent` file.
    pub torrent: PathBuf,
    /// Of each file the path in the mount, where it begins in the torrent, and its size.
    pub files: Vec<(String, u64, u64)>,
    content: Content,
    _dir: TempDir,
}

impl Varied {
    /// Makes the `.torrent` file of one file; its pieces have a length that is a power of two, and there are fewer of
    /// them than that. The content follows from the name.
    pub fn new(name: &str, pieces: u64, piece_length: usize) -> Self {
        let size = pieces * piece_length as u64;
        Self::made(name, &format!("6:lengthi{size}e"), vec![(name.to_owned(), 0, size)], piece_length)
    }

    /// The same with several files in a folder: their paths and sizes, which come to whole pieces together.
    pub fn folder(name: &str, files: &[(String, u64)], piece_length: usize) -> Self {
        let (mut list, mut placed, mut begin) = ("5:filesl".to_owned(), Vec::new(), 0);
        for (path, size) in files {
            let parts: String = path.split('/').map(|part| format!("{}:{part}", part.len())).collect();
            list += &format!("d6:lengthi{size}e4:pathl{parts}ee");
            placed.push((format!("{name}/{path}"), begin, *size));
            begin += size;
        }
        Self::made(name, &(list + "e"), placed, piece_length)
    }

    fn made(name: &str, list: &str, files: Vec<(String, u64, u64)>, length: usize) -> Self {
        let size = files.last().map_or(0, |(_, begin, size)| begin + size);
        let pieces = size / length as u64;
        assert!(length.is_power_of_two() && pieces < length as u64, "some pieces would be alike");
        assert_eq!(size % length as u64, 0, "the last piece is a whole one");
        let truth = Truth::of(name, length);
        let hashes = (0..pieces).map(|piece| Sha1::digest(truth.piece(piece)).into());
        let (torrent, info_hash, dir) = make(name, list, length, hashes);
        let content = Content { truth, pieces, info_hash };
        Self { name: name.to_owned(), torrent, files, content, _dir: dir }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.content.pieces * self.piece_length() as u64
    }

    /// Bytes in each piece.
    pub fn piece_length(&self) -> usize {
        self.content.truth.length
    }

    /// Info-hash v1.
    pub fn info_hash(&self) -> [u8; 20] {
        self.content.info_hash
    }

    /// The info dictionary, as it stands in the `.torrent` file.
    pub fn info(&self) -> Vec<u8> {
        let file = std::fs::read(&self.torrent).expect("its own file");
        file[b"d4:info".len()..file.len() - 1].to_vec()
    }

    /// Panics unless `read` is what stands at `offset`.
    #[track_caller]
    pub fn check(&self, offset: u64, read: &[u8]) {
        let wrong = self.content.truth.wrong(offset, read);
        assert!(wrong.is_none(), "wrong bytes from {wrong:?} on");
    }

    /// Makes a file of the full size that holds the content of some pieces and holes elsewhere.
    pub fn write(&self, path: &Path, pieces: Range<u64>) {
        let file = File::create(path).expect("a file");
        file.set_len(self.size()).expect("its size");
        for piece in pieces {
            let offset = piece * self.piece_length() as u64;
            file.write_all_at(self.content.truth.piece(piece), offset).expect("room on the disk");
        }
    }

    /// Reads a range of the mounted file, 128 KiB at a time, and panics unless all of it comes and is right.
    #[track_caller]
    pub fn read(&self, path: &Path, range: Range<u64>) {
        let file = File::open(path).expect("opens");
        let mut buffer = vec![0; 128 << 10];
        for offset in range.clone().step_by(buffer.len()) {
            let part = &mut buffer[..(range.end - offset).min(128 << 10) as usize];
            file.read_exact_at(part, offset).unwrap_or_else(|error| panic!("reading at {offset}: {error}"));
            self.check(offset, part);
        }
    }
}

/// A torrent that a crowd can serve.
pub trait Served {
    /// What its pieces hold.
    fn content(&self) -> Content;
}

impl Served for Uniform {
    fn content(&self) -> Content {
        let truth = Truth { pattern: self.piece.clone(), step: 0, length: self.piece.len() };
        Content { truth, pieces: self.pieces, info_hash: self.info_hash }
    }
}

impl Served for Varied {
    fn content(&self) -> Content {
        self.content.clone()
    }
}

/// What a crowd serves.
#[derive(Clone)]
pub struct Content {
    truth: Truth,
    pub(super) pieces: u64,
    pub(super) info_hash: [u8; 20],
}

impl Content {
    pub(super) fn piece_length(&self) -> usize {
        self.truth.length
    }
}

/// The bytes of a torrent: each piece is a part of a pattern.
#[derive(Clone)]
pub struct Truth {
    pattern: Arc<[u8]>,
    step: usize,
    /// Of each piece.
    length: usize,
}

impl Truth {
    /// The bytes of a [`Varied`] of that name.
    pub fn of(name: &str, length: usize) -> Self {
        /// From the begin of one piece in the pattern to that of the next: odd, so that none comes twice.
        const STEP: usize = 977;
        let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) ^ u64::from(byte));
        Self { pattern: bytes_at(seed, 0, 2 * length).into(), step: STEP, length }
    }

    fn piece(&self, piece: u64) -> &[u8] {
        let begin = piece as usize * self.step % self.length;
        &self.pattern[begin..begin + self.length]
    }

    /// Where what was read at `offset` differs first, to the piece; `None` if all of it is right.
    pub fn wrong(&self, mut offset: u64, mut read: &[u8]) -> Option<u64> {
        while !read.is_empty() {
            let begin = (offset % self.length as u64) as usize;
            let (part, rest) = read.split_at(read.len().min(self.length - begin));
            let piece = self.piece(offset / self.length as u64);
            if part != &piece[begin..begin + part.len()] {
                return Some(offset);
            }
            (offset, read) = (offset + part.len() as u64, rest);
        }
        None
    }

    /// The bytes at `offset`.
    pub fn bytes(&self, mut offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let begin = (offset % self.length as u64) as usize;
            let part = (length - bytes.len()).min(self.length - begin);
            bytes.extend_from_slice(&self.piece(offset / self.length as u64)[begin..begin + part]);
            offset += part as u64;
        }
        bytes
    }
}

/// Makes a `.torrent` file; `files` is the part of the info dictionary that says what it holds. Returns where it is,
/// its info-hash, and the folder that it goes with.
fn make(
    name: &str,
    files: &str,
    piece_length: usize,
    hashes: impl Iterator<Item = [u8; 20]>,
) -> (PathBuf, [u8; 20], TempDir) {
    let hashes: Vec<u8> = hashes.flatten().collect();
    let mut info = format!(
        "d{files}4:name{}:{name}12:piece lengthi{piece_length}e6:pieces{}:",
        name.len(),
        hashes.len()
    )
    .into_bytes();
    info.extend(hashes);
    info.push(b'e');
    let info_hash: [u8; 20] = Sha1::digest(&info).into();
    let dir = tempfile::Builder::new().prefix("tfs-made-").tempdir().expect("a temporary folder");
    let torrent = dir.path().join("torrent");
    std::fs::write(&torrent, [b"d4:info", &info[..], b"e"].concat()).expect("room on the disk");
    (torrent, info_hash, dir)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Shared {
    content: Content,
    bitfield: Vec<u8>,
    stop: AtomicBool,
    /// Bytes sent of each piece.
    sent: Vec<AtomicU64>,
    /// Connections that have sent their unchoke.
    open: Mutex<Vec<Arc<Link>>>,
    /// Which seeders are away, by number.
    away: [AtomicBool; 256],
}

struct Link {
    stream: TcpStream,
    /// The seeder's.
    number: u8,
    /// Held by who writes.
    writing: Mutex<()>,
}

impl Link {
    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let _writing = self.writing.lock().expect("a connection");
        (&self.stream).write_all(bytes)
    }
}

/// The running seeders.
pub struct Crowd {
    addrs: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// So many seeders, at 127.0.1.1 and on, at most 250, each on a port of the system's choice.
    pub fn start(torrent: &impl Served, count: u8) -> Self {
        let content = torrent.content();
        let mut bitfield = vec![0; content.pieces.div_ceil(8) as usize];
        (0..content.pieces).for_each(|piece| bitfield[(piece / 8) as usize] |= 0x80 >> (piece % 8));
        let shared = Arc::new(Shared {
            sent: (0..content.pieces).map(|_| AtomicU64::new(0)).collect(),
            content,
            bitfield,
            stop: AtomicBool::new(false),
            open: Mutex::default(),
            away: [const { AtomicBool::new(false) }; 256],
        });
        let (mut addrs, mut threads) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 1, number), 0)).expect("a port");
            addrs.push(listener.local_addr().expect("its address"));
            let shared = shared.clone();
            let serving = std::thread::Builder::new().stack_size(STACK).spawn(move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A connection that ends is the other side's business; the next one is served.
                    let _ = stream.and_then(|stream| serve(stream, number, &shared));
                }
            });
            threads.push(serving.expect("a thread"));
        }
        Self { addrs, shared, threads }
    }

    /// Where they listen.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Connections that were greeted and let in, and haven't been told to end.
    pub fn connected(&self) -> usize {
        self.shared.open.lock().expect("connections").len()
    }

    /// Bytes of content sent so far.
    pub fn served(&self) -> u64 {
        self.shared.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum()
    }

    /// Bytes sent so far of some pieces.
    pub fn served_of(&self, pieces: Range<usize>) -> u64 {
        self.shared.sent[pieces].iter().map(|sent| sent.load(Ordering::Relaxed)).sum()
    }

    /// One of them (by its place in [`Crowd::addrs`]) goes away: its connections end, and it closes new ones at
    /// once. Or it comes back.
    pub fn away(&self, place: usize, away: bool) {
        let number = place + 1;
        self.shared.away[number].store(away, Ordering::SeqCst);
        let open = self.shared.open.lock().expect("connections");
        for link in open.iter().filter(|link| away && usize::from(link.number) == number) {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }

    /// One of them sends a keep-alive.
    pub fn keep_alive(&self, number: usize) {
        let link = self.shared.open.lock().expect("connections")[number].clone();
        link.write(&[0; 4]).expect("the other side is there");
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for addr in &self.addrs {
            // Wakes those that accept.
            let _ = TcpStream::connect(addr);
        }
        for link in self.shared.open.lock().expect("connections").iter() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, number: u8, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut from = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let to = Arc::new(Link { stream, number, writing: Mutex::new(()) });
    let mut theirs = [0; 68];
    from.read_exact(&mut theirs)?;
    if theirs[..20] != *b"\x13BitTorrent protocol" || theirs[28..48] != shared.content.info_hash {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
    hello.extend_from_slice(&shared.content.info_hash);
    hello.extend_from_slice(format!("-XX0001-crowd-{number:06}").as_bytes());
    hello.extend_from_slice(&(shared.bitfield.len() as u32 + 1).to_be_bytes());
    hello.push(5);
    hello.extend_from_slice(&shared.bitfield);
    hello.extend_from_slice(&[0, 0, 0, 1, 1]);
    to.write(&hello)?;
    shared.open.lock().expect("connections").push(to.clone());
    // Only then is it looked at: who goes away in between finds the connection, or is seen here.
    let away = shared.away[usize::from(number)].load(Ordering::SeqCst);
    let outcome = if away { Ok(()) } else { answer(&mut from, &to, shared) };
    shared.open.lock().expect("connections").retain(|open| !Arc::ptr_eq(open, &to));
    outcome
}

/// Answers requests until the connection ends: all that have come, in one write.
fn answer(from: &mut BufReader<TcpStream>, to: &Link, shared: &Shared) -> std::io::Result<()> {
    let mut out = Vec::new();
    let mut body = Vec::new();
    loop {
        if from.buffer().is_empty() || out.len() > 256 << 10 {
            to.write(&out)?;
            out.clear();
            if from.fill_buf()?.is_empty() {
                return Ok(());
            }
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        body.resize(length, 0);
        from.read_exact(&mut body)?;
        let Some((6, request)) = body.split_first().map(|(id, rest)| (*id, rest)) else { continue };
        let number =
            |at: usize| request.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let (piece, begin, length) = (number(0) as usize, number(4) as usize, number(8) as usize);
        let sent = shared.sent.get(piece).ok_or(ErrorKind::InvalidData)?;
        let block = shared.content.truth.piece(piece as u64).get(begin..begin + length);
        let block = block.ok_or(ErrorKind::InvalidData)?;
        out.extend_from_slice(&(length as u32 + 9).to_be_bytes());
        out.push(7);
        out.extend_from_slice(&request[..8]);
        out.extend_from_slice(block);
        sent.fetch_add(length as u64, Ordering::Relaxed);
    }
}
