//! Many downloaders in one process that take the same blocks again and again and keep nothing: for rates of what a mount
//! sends.
//!
//! Each is a thread with one connection: a handshake, interested, and while it is let in always [`AHEAD`] blocks asked for.
//! They know no extension. Dropping them closes the connections and joins the threads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::crowd::{Content, Served};

/// Blocks that each asks for at a time.
const AHEAD: usize = 8;
const BLOCK: u32 = 16 << 10;
/// The largest message taken: a bitfield, or a block.
const MESSAGE_MAX: usize = 1 << 20;

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    greeted: AtomicUsize,
}

/// The running downloaders.
pub struct Takers {
    shared: Arc<Shared>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Takers {
    /// So many, that take a torrent's blocks from a mount.
    #[track_caller]
    pub fn start(torrent: &impl Served, from: SocketAddr, count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let (mut streams, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count {
            let stream = TcpStream::connect(from).expect("the mount listens");
            streams.push(stream.try_clone().expect("a second handle"));
            let (shared, content) = (shared.clone(), torrent.content());
            threads.push(std::thread::spawn(move || {
                // It ends with its connection, whoever ends that; that too little comes shows in the rate.
                let _ = take(stream, number, &content, &shared);
            }));
        }
        Self { shared, streams, threads }
    }

    /// How many were answered.
    pub fn greeted(&self) -> usize {
        self.shared.greeted.load(Ordering::Relaxed)
    }

    /// Bytes of content that all of them have received.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }
}

impl Drop for Takers {
    fn drop(&mut self) {
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn take(mut stream: TcpStream, number: usize, content: &Content, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
    hello.extend_from_slice(&content.info_hash);
    hello.extend_from_slice(format!("-XX0001-taker-{number:06}").as_bytes());
    // Interested.
    hello.extend_from_slice(&[0, 0, 0, 1, 2]);
    stream.write_all(&hello)?;
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs)?;
    shared.greeted.fetch_add(1, Ordering::Relaxed);
    let blocks = content.piece_length() as u64 / u64::from(BLOCK) * content.pieces;
    // Each at another place.
    let mut next = number as u64 * 37 % blocks;
    let (mut let_in, mut asked) = (false, 0);
    let mut body = Vec::new();
    loop {
        let mut requests = Vec::new();
        while let_in && asked < AHEAD {
            requests.extend_from_slice(&request(next, content.piece_length() as u64));
            next = (next + 1) % blocks;
            asked += 1;
        }
        stream.write_all(&requests)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
        match body.first() {
            // What was asked for is forgotten.
            Some(0) => (let_in, asked) = (false, 0),
            Some(1) => let_in = true,
            Some(7) => {
                shared.received.fetch_add(length.saturating_sub(9) as u64, Ordering::Relaxed);
                asked = asked.saturating_sub(1);
            }
            _ => {}
        }
    }
}

/// A request for a block, by its number in the torrent.
fn request(block: u64, piece_length: u64) -> [u8; 17] {
    let offset = block * u64::from(BLOCK);
    let (piece, begin) = ((offset / piece_length) as u32, (offset % piece_length) as u32);
    let mut message = [0, 0, 0, 13, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, number) in [(5, piece), (9, begin), (13, BLOCK)] {
        message[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    message
}
