//! A webseed of the tests' own, on axum: it serves samples as a good one does, or does wrong what it is told to.
//!
//! **Parts.** A [`Server`] has roots; each is a sample and a script, which looks at what was [`Asked`] and says what to
//! do ([`Act`]). `flow`: bodies that stop, hang or trickle. `wire`: answers that no HTTP library would give.
//!
//! **Flow.** `http://ADDR/ROOT/…` is the sample's data folder (BEP 19), `http://ADDR/ROOT?info_hash=…` its pieces
//! (BEP 17). Every request is kept, with its time, and how many were under way at once.
//!
//! **Deliberately not here:** TLS, which nginx has, and HTTP/2 (`http2`).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use super::flow::{Flow, Source, Then};
use super::wire::{Link, Listening};
use crate::common::Sample;

/// What came in.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Since the server was started.
    pub at: Duration,
    /// The root.
    pub root: String,
    /// What stands behind the root, decoded; empty for BEP 17.
    pub path: String,
    /// The query, as it came.
    pub query: String,
    /// The range, if it is one of the form `bytes=FROM-TO`: from, and how many.
    pub range: Option<(u64, u64)>,
    /// What it accepts as `Accept-Encoding`.
    pub accepts: Option<String>,
    /// How many requests of the root came before.
    pub nth: u64,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// What a good one does: 206 with the range, or 200 with all of it when there is none.
    Serve,
    /// The same, this much later.
    Late(Duration),
    /// A status with these headers and this body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// 200 with the whole file, whatever was asked.
    Whole,
    /// 206 with this `Content-Range`, or none, and the right body.
    Says(Option<String>),
    /// 206 with the first half of what was asked, and so it says.
    Half,
    /// 206 with as much again behind what was asked, and so it says.
    Double,
    /// Breaks off after so many bytes of the body.
    Short(u64),
    /// Goes on after the last byte that its `Content-Length` allows.
    Long,
    /// Wrong bytes.
    Corrupt,
    /// The right bytes, called compressed.
    Encoded(&'static str),
    /// The right bytes compressed by gzip, with the `Content-Range` of what they are.
    Gzip,
    /// The right bytes without a `Content-Length`.
    Chunked,
    /// No answer, and the connection stays open.
    Hang,
    /// Nothing comes after so many bytes of the body, and the connection stays open.
    Stall(u64),
    /// So many bytes each time, this long apart.
    Trickle(usize, Duration),
    /// Serves, and closes the connection, with or without having said so.
    Close(bool),
    /// Closes the connection without an answer.
    Reset,
    /// Something that isn't HTTP.
    Garbage,
    /// A head of response that doesn't end.
    EndlessHead,
}

impl Act {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    /// A status with `Retry-After`.
    pub fn later(status: u16, after: impl ToString) -> Self {
        Self::Answer(status, vec![("retry-after", after.to_string())], String::new())
    }

    /// A redirect of this status to a place.
    pub fn redirect(status: u16, to: impl ToString) -> Self {
        Self::Answer(status, vec![("location", to.to_string())], String::new())
    }
}

/// Decides what is done.
type Script = Arc<dyn Fn(&Asked) -> Act + Send + Sync>;

struct Root {
    sample: Sample,
    script: Script,
    /// Requests so far.
    seen: AtomicU64,
    /// Requests under way, now and at most.
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// What the requests share.
pub(super) struct Shared {
    begin: Instant,
    roots: Mutex<HashMap<String, Arc<Root>>>,
    asked: Mutex<Vec<Asked>>,
    now: AtomicUsize,
    peak: AtomicUsize,
    sent: AtomicU64,
    pub(super) connections: AtomicUsize,
}

/// The running server. Dropping it closes all its connections.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    /// At 127.0.0.1, on a port of the system's choice.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// At an address.
    pub fn start_at(ip: Ipv4Addr) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            roots: Mutex::default(),
            asked: Mutex::default(),
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
        });
        let listener = runtime.block_on(tokio::net::TcpListener::bind((ip, 0))).expect("a port");
        let addr = listener.local_addr().expect("bound");
        let app = Router::new().fallback(handle).with_state(shared.clone());
        let app = app.into_make_service_with_connect_info::<Link>();
        let listening = Listening { listener, shared: shared.clone() };
        runtime.spawn(async move { axum::serve(listening, app).await });
        Self { addr, shared, runtime: Some(runtime) }
    }

    /// Serves a sample under a name, by a script. Returns the address for `url-list`, with a slash at its end; without
    /// the slash it is one for `httpseeds`.
    pub fn serve(
        &self,
        root: &str,
        sample: &Sample,
        script: impl Fn(&Asked) -> Act + Send + Sync + 'static,
    ) -> String {
        let made = Root {
            sample: sample.clone(),
            script: Arc::new(script),
            seen: AtomicU64::new(0),
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        };
        self.shared.roots.lock().expect("roots").insert(root.to_owned(), Arc::new(made));
        format!("http://{}/{root}/", self.addr)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All requests so far, in the order in which they came.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("requests").clone()
    }

    /// How many requests came so far.
    pub fn count(&self) -> usize {
        self.shared.asked.lock().expect("requests").len()
    }

    /// Requests under way, of which the answer isn't finished.
    pub fn under_way(&self) -> usize {
        self.shared.now.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    /// The most requests of a root that were under way at once.
    pub fn peak_of(&self, root: &str) -> usize {
        let roots = self.shared.roots.lock().expect("roots");
        roots.get(root).expect("a root").peak.load(Ordering::SeqCst)
    }

    /// Bytes of bodies that were handed to connections.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Connections that were taken so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The most requests within any stretch of time as long as this.
    pub fn busiest(&self, stretch: Duration) -> usize {
        let asked = self.shared.asked.lock().expect("requests");
        let times: Vec<_> = asked.iter().map(|asked| asked.at).collect();
        let within = |from: usize| times[from..].partition_point(|at| *at < times[from] + stretch);
        (0..times.len()).map(within).max().unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request that is under way, until it is dropped, with the answer's body or the connection.
pub(super) struct UnderWay {
    shared: Arc<Shared>,
    root: Arc<Root>,
}

impl UnderWay {
    fn new(shared: Arc<Shared>, root: Arc<Root>) -> Self {
        for (now, peak) in [(&shared.now, &shared.peak), (&root.now, &root.peak)] {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        Self { shared, root }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.shared.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.now.fetch_sub(1, Ordering::SeqCst);
        self.root.now.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(link): ConnectInfo<Link>,
    request: Request,
) -> Response {
    let decoded = decoded(request.uri().path());
    let (name, path) = decoded[1..].split_once('/').unwrap_or((&decoded[1..], ""));
    let root = shared.roots.lock().expect("roots").get(name).cloned();
    let Some(root) = root else { return plain(404) };
    let headers = request.headers().clone();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = Asked {
        root: name.to_owned(),
        path: path.to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        range: text(header::RANGE).and_then(range),
        accepts: text(header::ACCEPT_ENCODING).map(str::to_owned),
        nth: root.seen.fetch_add(1, Ordering::SeqCst),
        at: shared.begin.elapsed(),
    };
    let under_way = UnderWay::new(shared.clone(), root.clone());
    let act = (root.script)(&asked);
    shared.asked.lock().expect("requests").push(asked.clone());
    let source =
        if asked.query.is_empty() { file(&root.sample, path) } else { piece(&root.sample, &asked.query) };
    answer(act, &asked, source, &link, under_way).await
}

async fn answer(
    act: Act,
    asked: &Asked,
    source: Option<Source>,
    link: &Link,
    under_way: UnderWay,
) -> Response {
    match act {
        Act::Answer(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            return response.body(Body::from(body)).expect("a response");
        }
        Act::Hang => std::future::pending().await,
        Act::Late(pause) => tokio::time::sleep(pause).await,
        Act::Reset => return link.instead(Vec::new()),
        Act::Garbage => return link.instead(b"SSH-2.0-OpenSSH_9.2\r\n".repeat(20)),
        Act::EndlessHead => return link.instead(endless_head()),
        _ => {}
    }
    let Some(source) = source else { return plain(404) };
    let size = source.size();
    let wanted = asked.range.map(|(from, length)| (from.min(size), length.min(size - from.min(size))));
    if wanted.is_some_and(|(_, length)| length == 0) {
        return plain(416);
    }
    let (from, length) = match (&act, wanted) {
        (Act::Whole, _) | (_, None) => (0, size),
        (Act::Half, Some((from, length))) => (from, length.div_ceil(2)),
        (Act::Double, Some((from, length))) => (from, (2 * length).min(size - from)),
        (_, Some(span)) => span,
    };
    let partial = wanted.is_some() && !matches!(act, Act::Whole);
    let mut headers = HeaderMap::new();
    let mut set = |name, value: String| headers.insert(name, value.parse().expect("a header"));
    let said = match &act {
        Act::Says(said) => said.clone(),
        _ => Some(format!("bytes {from}-{}/{size}", from + length - 1)),
    };
    if let Some(said) = said.filter(|_| partial) {
        set(header::CONTENT_RANGE, said);
    }
    if !matches!(act, Act::Chunked) {
        set(header::CONTENT_LENGTH, length.to_string());
    }
    if let Act::Encoded(how) = act {
        set(header::CONTENT_ENCODING, how.to_owned());
    }
    if matches!(act, Act::Gzip) {
        set(header::CONTENT_ENCODING, "gzip".to_owned());
        let body = gzip(&source.bytes(from, length as usize));
        set(header::CONTENT_LENGTH, body.len().to_string());
        under_way.sent(body.len());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        *response.headers_mut() = headers;
        return response;
    }
    if matches!(act, Act::Close(true)) {
        set(header::CONNECTION, "close".to_owned());
    }
    if matches!(act, Act::Long | Act::Close(false)) {
        let more = if matches!(act, Act::Long) { 40_000 } else { 0 };
        let mut body = source.bytes(from, length as usize);
        under_way.sent(body.len());
        body.extend(std::iter::repeat_n(b'x', more));
        return link.instead(whole(partial, &headers, &body));
    }
    let (pace, then) = match act {
        Act::Short(after) => (None, Then::Break(after.min(length.saturating_sub(1)))),
        Act::Stall(after) => (None, Then::Hang(after.min(length.saturating_sub(1)))),
        Act::Trickle(bytes, every) => (Some((bytes, every)), Then::End),
        _ => (None, Then::End),
    };
    let corrupt = matches!(act, Act::Corrupt);
    let flow = Flow { source, at: from, end: from + length, begin: from, corrupt, pace, then, under_way };
    let status = if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = Response::new(Body::from_stream(flow.stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn plain(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).expect("a response")
}

/// A response as it goes over the wire.
fn whole(partial: bool, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut raw =
        format!("HTTP/1.1 {}\r\n", if partial { "206 Partial Content" } else { "200 OK" }).into_bytes();
    for (name, value) in headers {
        raw.extend_from_slice(format!("{name}: ").as_bytes());
        raw.extend_from_slice(value.as_bytes());
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"\r\n");
    raw.extend_from_slice(body);
    raw
}

/// Bytes as gzip gives them that finds nothing to make shorter.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let blocks = bytes.chunks(u16::MAX.into());
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.enumerate() {
        let length = block.len() as u16;
        packed.push(u8::from(number == last));
        packed.extend(length.to_le_bytes());
        packed.extend((!length).to_le_bytes());
        packed.extend(block);
    }
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    let sum = bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)));
    packed.extend((!sum).to_le_bytes());
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}

/// A megabyte of headers: more than any client takes.
fn endless_head() -> Vec<u8> {
    let mut raw = b"HTTP/1.1 206 Partial Content\r\n".to_vec();
    for number in 0..20_000 {
        raw.extend_from_slice(format!("x-{number}: {:<40}\r\n", "more of this").as_bytes());
    }
    raw
}

/// The file of a sample that a path names.
fn file(sample: &Sample, path: &str) -> Option<Source> {
    let inside = path.split('/').all(|part| part != ".." && !part.is_empty());
    let path: PathBuf = sample.data.join(path);
    let size = std::fs::metadata(&path).ok().filter(|meta| inside && meta.is_file())?.len();
    Some(Source::File(path, size))
}

/// The part of a sample's piece that a query of BEP 17 names.
fn piece(sample: &Sample, query: &str) -> Option<Source> {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let hash: String = bytes_of(value("info_hash")?).iter().map(|byte| format!("{byte:02x}")).collect();
    // Of v2 as much as there is of v1.
    let own = sample.v1.as_deref().or(sample.v2.as_deref().and_then(|hash| hash.get(..40)));
    if own != Some(&*hash) {
        return None;
    }
    let begin = value("piece")?.parse::<u64>().ok()? * sample.piece_length;
    let (from, to) = match value("ranges") {
        Some(range) => {
            let (from, to) = range.split_once('-')?;
            (from.parse().ok()?, to.parse::<u64>().ok()?)
        }
        None => (0, sample.piece_length.min(sample.total.checked_sub(begin)?) - 1),
    };
    let fits = from <= to && to < sample.piece_length && begin + to < sample.total;
    fits.then(|| Source::Torrent(sample.clone(), begin + from, to + 1 - from))
}

/// `bytes=FROM-TO`: from, and how many.
fn range(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
    Some((from, to.checked_sub(from)? + 1))
}

/// A text with its `%XX` replaced.
pub fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&bytes_of(text)).into_owned()
}

fn bytes_of(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut found = Vec::with_capacity(rest.len());
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        found.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    found
}
