//! HTTP/2 that goes wrong, from a server of the tests' own over TLS: connections that are given up or say nothing any
//! more, streams that are refused or break off.
//!
//! **Flow.** Each request is answered as the test's script says, on a connection that may have orders of its own
//! ([`Order`]). What is under way on the other streams of a connection then shows what they make of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Request, Response};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::nginx::Certificate;
use super::{MINUTE, Outcome, Seeded, read, wait_reason, webseed};
use crate::common::{Mount, Reader, Sample, wait_until};
use crate::needs;

/// What is handed over at once.
const CHUNK: usize = 16 << 10;
/// For what was handed over to be sent, on loopback.
const FLUSHED: Duration = Duration::from_millis(20);

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// The right thing.
    Serve,
    /// GOAWAY in the middle of the body, as a server does that ends in good order: what is under way is served.
    Leave,
    /// GOAWAY with an error in the middle of the body, and the end of the connection.
    Fail,
    /// RST_STREAM (REFUSED_STREAM) instead of an answer: it wasn't looked at.
    Refuse,
    /// RST_STREAM (INTERNAL_ERROR) in the middle of the body.
    Reset,
    /// The end of the stream in the middle of the body, as if that were all.
    Short,
    /// Nothing at all.
    Hang,
    /// From now on the connection is neither read nor written, and stays open.
    Freeze,
}

/// What a connection is told.
enum Order {
    Leave,
    Fail,
    Freeze,
}

/// By the number of the connection, and that of the request among all: what is done.
type Script = dyn Fn(usize, usize) -> Does + Send + Sync;

struct Shared {
    content: Bytes,
    script: Box<Script>,
    tls: TlsAcceptor,
    connections: AtomicUsize,
    requests: AtomicUsize,
    under_way: AtomicUsize,
    /// What was done otherwise than served.
    done: Mutex<Vec<Does>>,
}

/// The running server. Dropping it closes all its connections.
struct Server {
    url: String,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    /// Serves the one file of a sample.
    fn start(
        sample: &Sample,
        certificate: &Certificate,
        script: impl Fn(usize, usize) -> Does + Send + Sync + 'static,
    ) -> Self {
        let (chain, key) = certificate.leaf();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(chain).expect("a certificate").collect();
        let key = PrivateKeyDer::from_pem_file(key).expect("its key");
        let config = ServerConfig::builder().with_no_client_auth();
        let mut config = config.with_single_cert(chain.expect("a certificate"), key).expect("they fit");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let shared = Arc::new(Shared {
            content: std::fs::read(sample.source()).expect("the sample's file").into(),
            script: Box::new(script),
            tls: TlsAcceptor::from(Arc::new(config)),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            done: Mutex::default(),
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("https://{}/{}", listener.local_addr().expect("bound"), sample.name);
        let serving = shared.clone();
        runtime.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    all.spawn(connection(serving.clone(), stream));
                }
            }
        });
        Self { url, shared, runtime: Some(runtime) }
    }

    fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::SeqCst)
    }

    /// How often something was done.
    fn did(&self, what: Does) -> usize {
        self.shared.done.lock().expect("a list").iter().filter(|done| **done == what).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves a connection to its end.
async fn connection(shared: Arc<Shared>, stream: TcpStream) -> Option<()> {
    let stream = shared.tls.accept(stream).await.ok()?;
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let mut connection = h2::server::handshake(stream).await.ok()?;
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let (request, respond) = accepted?.ok()?;
                answers.spawn(answer(shared.clone(), number, request, respond, orders.clone()));
            }
            Some(order) = ordered.recv() => match order {
                Order::Leave => connection.graceful_shutdown(),
                Order::Fail => connection.abrupt_shutdown(Reason::INTERNAL_ERROR),
                Order::Freeze => {
                    answers.abort_all();
                    std::future::pending().await
                }
            }
        }
    }
}

/// A request that is under way, until it is dropped.
struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    shared: Arc<Shared>,
    connection: usize,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    orders: mpsc::UnboundedSender<Order>,
) -> Option<()> {
    let does = (shared.script)(connection, shared.requests.fetch_add(1, Ordering::SeqCst));
    shared.under_way.fetch_add(1, Ordering::SeqCst);
    let _under_way = UnderWay(shared.clone());
    if does != Does::Serve {
        shared.done.lock().expect("a list").push(does);
    }
    match does {
        Does::Refuse => {
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        Does::Hang => {
            // Until whoever asked has had enough.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            return None;
        }
        Does::Freeze => {
            let _ = orders.send(Order::Freeze);
            return None;
        }
        _ => {}
    }
    let range = request.headers().get("range")?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to): (usize, usize) = (range.0.parse().ok()?, range.1.parse().ok()?);
    let (size, to) = (shared.content.len(), (to + 1).min(shared.content.len()));
    let head = Response::builder()
        .status(206)
        .header("content-range", format!("bytes {from}-{}/{size}", to - 1))
        .header("content-length", to - from)
        .body(())
        .ok()?;
    let mut body = respond.send_response(head, false).ok()?;
    let middle = from + (to - from) / 2;
    send(&mut body, shared.content.slice(from..middle)).await?;
    if does != Does::Serve {
        tokio::time::sleep(FLUSHED).await;
    }
    match does {
        Does::Leave => _ = orders.send(Order::Leave),
        Does::Fail => {
            let _ = orders.send(Order::Fail);
            return std::future::pending().await;
        }
        Does::Reset => {
            body.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
        Does::Short => return body.send_data(Bytes::new(), true).ok(),
        _ => {}
    }
    send(&mut body, shared.content.slice(middle..to)).await?;
    body.send_data(Bytes::new(), true).ok()
}

/// Sends some bytes as fast as they are taken; `None` when the stream is over.
async fn send(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len().min(CHUNK));
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await?.ok()?;
        body.send_data(bytes.split_to(room.min(bytes.len())), false).ok()?;
    }
    Some(())
}

/// A mount whose only source is such a server.
struct Alone {
    sample: Sample,
    server: Server,
    mount: Mount,
    _certificate: Certificate,
}

impl Alone {
    fn of(args: &[&str], script: impl Fn(usize, usize) -> Does + Send + Sync + 'static) -> Self {
        let (sample, certificate) = (Sample::small(), Certificate::make());
        let server = Server::start(&sample, &certificate, script);
        let seeded = Seeded::by(&sample, &[&server.url]);
        let mount = Mount::of(&seeded.torrent).env("SSL_CERT_FILE", certificate.authority()).args(args);
        Self { mount: mount.start(), sample, server, _certificate: certificate }
    }

    #[track_caller]
    fn read(&self, offset: u64) -> Outcome {
        read(&self.mount, &self.sample, &self.sample.name, offset, 4096)
    }

    /// Everything is read right in the end; how often this was done, and what it cost besides.
    #[track_caller]
    fn works(&self, does: Does) {
        self.mount.check_sums(&self.sample);
        let (did, requests, connections) =
            (self.server.did(does), self.server.requests(), self.server.connections());
        eprintln!("{does:?} {did} times: {requests} requests, {connections} connections");
        assert!(did > 0, "it never did");
        assert!(requests <= 150 + 20 * did, "{requests} requests");
        let told = webseed(&self.mount, &self.server.url);
        assert!(told["state"] != "dropped" && told["refused_files"] == 0, "{told}");
    }

    #[track_caller]
    fn stop(self) {
        self.mount.stop();
        wait_until("nothing under way", MINUTE, || self.server.under_way() == 0);
    }
}

#[test]
fn connections_that_are_given_up_in_good_order_cost_nothing() {
    needs!(Fuse, Libtorrent, Openssl);
    // Each after so many requests: what is under way goes on, the next one takes another connection.
    let alone = Alone::of(&[], |_, request| if request % 5 == 4 { Does::Leave } else { Does::Serve });
    alone.works(Does::Leave);
    assert!(alone.server.connections() > 1);
    assert!(webseed(&alone.mount, &alone.server.url)["reason"].is_null());
    alone.stop();
}

#[test]
fn a_goaway_with_an_error_in_mid_read() {
    needs!(Fuse, Libtorrent, Openssl);
    // With up to three other streams of the connection.
    let alone = Alone::of(
        &[],
        |connection, request| if connection < 2 && request % 4 == 3 { Does::Fail } else { Does::Serve },
    );
    alone.works(Does::Fail);
    assert!(alone.server.connections() > 1);
    alone.stop();
}

#[test]
fn streams_that_are_refused_are_asked_for_again() {
    needs!(Fuse, Libtorrent, Openssl);
    let alone = Alone::of(&[], |_, request| if request % 3 == 1 { Does::Refuse } else { Does::Serve });
    alone.works(Does::Refuse);
    alone.stop();
}

#[test]
fn streams_that_break_off_or_end_too_soon() {
    needs!(Fuse, Libtorrent, Openssl);
    for does in [Does::Reset, Does::Short] {
        let alone =
            Alone::of(&[], move |_, request| if [1, 5].contains(&request) { does } else { Does::Serve });
        alone.works(does);
        alone.stop();
    }
}

#[test]
fn a_server_that_always_breaks_off_is_left_alone_with_a_reason() {
    needs!(Fuse, Libtorrent, Openssl);
    for does in [Does::Refuse, Does::Reset, Does::Short, Does::Fail] {
        let alone = Alone::of(&["--read-timeout", "2s"], move |_, _| does);
        // Half a body is of use, but half a block isn't.
        assert_eq!(alone.read(4 << 20), Outcome::Eio, "{does:?}");
        let told = wait_reason(&alone.mount, &alone.server.url, &[]);
        eprintln!("{does:?}: {} requests, {}", alone.server.requests(), told["reason"]);
        assert!(alone.server.requests() <= 40, "{does:?}: {} requests", alone.server.requests());
        assert_eq!(told["refused_files"], 0, "{told}");
        alone.stop();
    }
}

#[test]
fn who_stops_waiting_ends_the_stream_and_not_the_connection() {
    needs!(Fuse, Libtorrent, Openssl);
    let alone = Alone::of(&[], |_, request| if request == 0 { Does::Hang } else { Does::Serve });
    let reader = Reader::pread(&alone.mount.path(&alone.sample.name), 4 << 20, 4096);
    wait_until("a request that hangs", MINUTE, || alone.server.under_way() == 1);
    drop(reader);
    wait_until("its stream to be over", MINUTE, || alone.server.under_way() == 0);
    assert_eq!(alone.read(0), Outcome::Right);
    // One more may have been begun before the first was known to be HTTP/2.
    assert!(alone.server.connections() <= 2, "{} connections", alone.server.connections());
    alone.stop();
}

#[test]
fn a_connection_that_says_nothing_any_more_is_given_up() {
    needs!(Fuse, Libtorrent, Openssl);
    // The first one serves a request and then nothing, also of those that are made after that.
    let alone = Alone::of(&[], |connection, request| match (connection, request) {
        (0, 1..) => Does::Freeze,
        _ => Does::Serve,
    });
    assert_eq!(alone.read(0), Outcome::Right);
    let begin = Instant::now();
    assert_eq!(alone.read(4 << 20), Outcome::Right);
    let took = begin.elapsed();
    eprintln!("a new connection after {took:?}");
    assert!(took < 3 * Duration::from_secs(12), "{took:?}");
    alone.works(Does::Freeze);
    alone.stop();
}
