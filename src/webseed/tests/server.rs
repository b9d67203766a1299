//! An HTTP server on loopback for the tests of this room: does as it is told, also what no server should.
//!
//! Files are known by path and have bytes that tell where they stand. Each request is answered as the test's function
//! says; who hangs goes on when the test lets him. It counts requests, and how many are under way at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use torrentfs_fs::lock::{Rank, RankedMutex};

use crate::sync::tasks::TaskScope;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub path: String,
    pub range: Option<Range<u64>>,
    pub head: String,
}

/// What to do with one.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// The right thing.
    Right,
    /// These bytes, and the connection stays open, or doesn't.
    Raw(Vec<u8>, bool),
    /// So many of these bytes, and the rest a moment later.
    Halves(Vec<u8>, usize),
    /// Nothing, until it is let go; then the right thing.
    Hang,
    /// A right head and so many bytes of the body; the rest when it is let go.
    Part(u64),
    /// The same, and then the end of the connection.
    Short(u64),
    /// A right head, and so many bytes of the body each second.
    Drip(u64),
}

type Say = dyn Fn(usize, &Request) -> Answer + Send + Sync;

pub(super) struct Server {
    pub addr: SocketAddr,
    files: HashMap<String, u64>,
    say: RankedMutex<Arc<Say>>,
    log: RankedMutex<Vec<Request>>,
    go: watch::Sender<bool>,
    /// Requests under way: now, and the most there were.
    pub open: AtomicUsize,
    pub most: AtomicUsize,
    /// Requests that hang.
    pub hanging: AtomicUsize,
    by_path: RankedMutex<HashMap<String, (usize, usize)>>,
}

struct Open<'a>(&'a Server, String);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        if let Some(path) = self.0.by_path.lock().get_mut(&self.1) {
            path.0 -= 1;
        }
    }
}

struct Hanging<'a>(&'a Server);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The byte at a place of a file of any name.
pub(super) fn byte(path: &str, at: u64) -> u8 {
    let name = path.bytes().fold(7u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    ((at / 251).wrapping_mul(13) ^ at ^ name) as u8
}

/// The file that a path with its query is of.
fn file(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// A head with a body of its own.
pub(super) fn raw(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let mut out =
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
    out.extend_from_slice(body);
    out
}

/// The right answer by BEP 17, of a single-file torrent of this size in pieces of so many bytes.
pub(super) fn by_piece(request: &Request, size: u64, piece_len: u64) -> Answer {
    let value = |name: &str| {
        let at = request.path.find(&format!("{name}=")).unwrap() + name.len() + 1;
        request.path[at..].split('&').next().unwrap().to_owned()
    };
    assert!(request.range.is_none() && value("info_hash").starts_with("%07%07"));
    let at = value("piece").parse::<u64>().unwrap() * piece_len;
    let (first, last) = match request.path.contains("ranges=") {
        true => {
            let ranges = value("ranges");
            let (first, last) = ranges.split_once('-').unwrap();
            (first.parse::<u64>().unwrap(), last.parse::<u64>().unwrap())
        }
        false => (0, piece_len.min(size - at) - 1),
    };
    let body: Vec<u8> = (at + first..=at + last).map(|at| byte("/f", at)).collect();
    Answer::Raw(raw("200 OK", &[], &body), true)
}

impl Server {
    /// A server that has these files, in a task of `scope`.
    pub(super) async fn start(scope: &TaskScope, files: &[(&str, u64)]) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            files: files.iter().map(|(path, len)| ((*path).to_owned(), *len)).collect(),
            say: RankedMutex::new(Rank::Leaf, "test answers", Arc::new(|_, _| Answer::Right)),
            log: RankedMutex::new(Rank::Leaf, "test log", Vec::new()),
            go: watch::Sender::new(false),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            hanging: AtomicUsize::new(0),
            by_path: RankedMutex::new(Rank::Leaf, "test paths", HashMap::new()),
        });
        let (serving, connections) = (server.clone(), scope.child("connections"));
        scope.spawn("server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                connections.spawn("connection", async move { serving.serve(stream).await.unwrap_or(()) });
            }
        });
        server
    }

    /// The URL of a path.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// From now on requests are answered so; the number is that of requests before.
    pub(super) fn answers(&self, say: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) {
        *self.say.lock() = Arc::new(say);
    }

    /// Lets go of all who hang, now or later.
    pub(super) fn go(&self) {
        self.go.send_replace(true);
    }

    /// The requests so far.
    pub(super) fn log(&self) -> Vec<Request> {
        self.log.lock().clone()
    }

    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.log.lock().len()
    }

    /// The most requests at once for one path.
    pub(super) fn most_of_a_path(&self) -> usize {
        self.by_path.lock().values().map(|(_, most)| *most).max().unwrap_or(0)
    }

    fn begin(&self, path: &str) -> Open<'_> {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        let mut paths = self.by_path.lock();
        let (now, most) = paths.entry(path.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Open(self, path.to_owned())
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") {
                    break end + 4;
                }
                if stream.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
            };
            let request = Self::read(&String::from_utf8_lossy(&input[..end]));
            input.drain(..end);
            let _open = self.begin(&request.path);
            let number = {
                let mut log = self.log.lock();
                log.push(request.clone());
                log.len() - 1
            };
            let say = self.say.lock().clone();
            let (answer, mut go) = (say(number, &request), self.go.subscribe());
            let hang = async |stream: &mut TcpStream, go: &mut watch::Receiver<bool>| {
                self.hanging.fetch_add(1, Ordering::SeqCst);
                let _hanging = Hanging(self);
                tokio::select! {
                    _ = go.wait_for(|go| *go) => true,
                    // The client has gone, or says what it shouldn't.
                    _ = stream.readable() => false,
                }
            };
            match answer {
                Answer::Raw(bytes, stays) => {
                    stream.write_all(&bytes).await?;
                    if !stays {
                        return Ok(());
                    }
                }
                Answer::Halves(bytes, first) => {
                    stream.write_all(&bytes[..first]).await?;
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    stream.write_all(&bytes[first..]).await?;
                }
                Answer::Hang => {
                    if !hang(&mut stream, &mut go).await {
                        return Ok(());
                    }
                    let (head, body) = self.right(&request);
                    self.send(&mut stream, &request.path, &head, body).await?;
                }
                Answer::Right => {
                    let (head, body) = self.right(&request);
                    self.send(&mut stream, &request.path, &head, body).await?;
                }
                Answer::Drip(n) => {
                    let (head, body) = self.right(&request);
                    self.send(&mut stream, &request.path, &head, 0..0).await?;
                    for at in body.clone().step_by(n as usize) {
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        self.send(&mut stream, &request.path, "", at..(at + n).min(body.end)).await?;
                    }
                }
                Answer::Part(n) | Answer::Short(n) => {
                    let (head, body) = self.right(&request);
                    let middle = (body.start + n).min(body.end);
                    self.send(&mut stream, &request.path, &head, body.start..middle).await?;
                    if matches!(answer, Answer::Short(_)) || !hang(&mut stream, &mut go).await {
                        return Ok(());
                    }
                    self.send(&mut stream, &request.path, "", middle..body.end).await?;
                }
            }
        }
    }

    fn read(head: &str) -> Request {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let range = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let value = value.strip_prefix("bytes=").filter(|_| name.eq_ignore_ascii_case("range"))?;
            let (first, last) = value.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
        });
        Request { path, range, head: head.to_owned() }
    }

    /// The head of the right answer, and which bytes of the file follow.
    fn right(&self, request: &Request) -> (String, Range<u64>) {
        let Some(&len) = self.files.get(file(&request.path)) else {
            return ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..0);
        };
        match request.range.clone() {
            None => (format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n"), 0..len),
            Some(range) if range.start < len => {
                let range = range.start..range.end.min(len);
                let (first, last, n) = (range.start, range.end - 1, range.end - range.start);
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {first}-{last}/{len}\r\ncontent-length: {n}\r\n\r\n"
                );
                (head, range)
            }
            Some(_) => ("HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..0),
        }
    }

    async fn send(
        &self,
        stream: &mut TcpStream,
        path: &str,
        head: &str,
        body: Range<u64>,
    ) -> std::io::Result<()> {
        stream.write_all(head.as_bytes()).await?;
        let mut at = body.start;
        while at < body.end {
            let end = (at + 64 * 1024).min(body.end);
            let bytes: Vec<u8> = (at..end).map(|at| byte(file(path), at)).collect();
            stream.write_all(&bytes).await?;
            at = end;
        }
        Ok(())
    }
}
