//! Starts the sessions of a torrent's peers, dialled and incoming, each as a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::effects::Dial;
use super::peers::Hints;
use crate::discovery::dht::Dht;
use crate::discovery::dht::id::Family;
use crate::net::connections::Open;
use crate::net::limit::Limits;
use crate::net::transport::{Kind, Link, race};
use crate::peer::PeerKey;
use crate::peer::connect::{self, ConnectError, Past, Shaken, Ways};
use crate::peer::event::{Connected, Counters, KnownCell, PeerEvent};
use crate::peer::mse::Line;
use crate::peer::outbox::Outbox;
use crate::peer::session::{self, Context, DhtPorts};
use crate::peer::wire::{Handshake, Reserved};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use torrentfs_fs::lock::{Rank, RankedMutex};

/// What all sessions of a torrent have in common.
pub struct Sessions {
    scope: TaskScope,
    handshake: Handshake,
    known: KnownCell,
    events: mpsc::Sender<PeerEvent>,
    limits: Limits,
    ways: Ways,
    /// How who was dialled before is dialled again.
    past: RankedMutex<Past>,
    dht: Option<Arc<Dht>>,
    /// The DHT isn't spoken of (BEP 27).
    private: Arc<AtomicBool>,
    next: AtomicU64,
    /// How often our address has changed.
    moved: AtomicU32,
}

impl Sessions {
    /// Sessions that report to `events`, in tasks of `scope`.
    pub fn new(
        scope: TaskScope,
        info_hash: [u8; 20],
        peer_id: [u8; 20],
        known: KnownCell,
        events: mpsc::Sender<PeerEvent>,
        limits: Limits,
        ways: Ways,
    ) -> Self {
        let reserved = Reserved::new().with_extensions().with_fast();
        Self {
            scope,
            handshake: Handshake { reserved, info_hash, peer_id },
            known,
            events,
            limits,
            ways,
            past: RankedMutex::new(Rank::Leaf, "dials of the past", Past::default()),
            dht: None,
            private: Arc::default(),
            next: AtomicU64::new(1),
            moved: AtomicU32::new(0),
        }
    }

    /// The same; peers and we tell each other of our nodes in the DHT, unless the torrent is private.
    pub fn with_dht(self, dht: Option<Arc<Dht>>, private: bool) -> Self {
        Self { dht, private: Arc::new(AtomicBool::new(private)), ..self }
    }

    /// The torrent turned out to be private: from now on the DHT isn't spoken of.
    pub fn turned_private(&self) {
        self.private.store(true, Ordering::Relaxed);
    }

    /// The DHT, where it may be spoken of.
    fn dht(&self) -> Option<&Arc<Dht>> {
        self.dht.as_ref().filter(|_| !self.private.load(Ordering::Relaxed))
    }

    /// Our address has changed: from now on the end of our peer id is another one. Peers that haven't noticed yet that the
    /// old connection is dead would refuse a second one of somebody whom they have.
    pub fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// How we introduce ourselves.
    fn handshake(&self) -> Handshake {
        let reserved = match self.dht() {
            Some(_) => self.handshake.reserved.with_dht(),
            None => self.handshake.reserved,
        };
        let mut peer_id = self.handshake.peer_id;
        let moved = self.moved.load(Ordering::Relaxed).to_be_bytes();
        peer_id.iter_mut().rev().zip(moved.into_iter().rev()).for_each(|(byte, moved)| *byte ^= moved);
        Handshake { reserved, peer_id, ..self.handshake }
    }

    /// What is said of it with a peer.
    fn dht_ports(&self, addr: SocketAddr, theirs: Reserved) -> Option<DhtPorts> {
        let dht = self.dht()?.clone();
        let family = Family::of(&addr);
        let ours = dht.local_addr(family).map(|at| at.port()).filter(|_| theirs.supports_dht());
        let private = self.private.clone();
        let hint = move |port| {
            if port != 0 && !private.load(Ordering::Relaxed) {
                dht.add_node(SocketAddr::new(addr.ip(), port));
            }
        };
        Some(DhtPorts { ours, theirs: Some(Box::new(hint)) })
    }

    /// Batches of what sessions told the owner and it hasn't looked at yet.
    pub fn queued(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }

    /// What limits its connections.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A key that nobody had: for a webseed, too.
    pub fn new_key(&self) -> PeerKey {
        PeerKey(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The torrent, once known.
    pub fn known(&self) -> &KnownCell {
        &self.known
    }

    /// Connects to a peer and runs its session. Returns at once; what comes of it is an event.
    pub fn dial(self: &Arc<Self>, dial: Dial) {
        let this = self.clone();
        let Dial { addr, hints, token } = dial;
        self.scope.spawn(&format!("peer {addr}"), async move {
            // Of a host with addresses of both families the second gets its turn when the first takes long (RFC 8305).
            let dialled = match hints.other {
                Some(other) => {
                    let (first, second) = (this.connect(addr, hints), this.connect(other, hints));
                    race(first, second, timeouts::PEER_FAMILY).await
                }
                None => this.connect(addr, hints).await,
            };
            match dialled {
                Ok((shaken, addr)) => this.run(shaken, addr, false, token.connected()).await,
                Err(error) => {
                    drop(token);
                    let reason = error.to_string();
                    let _ = this.events.send(PeerEvent::Unreachable { addr, reason }).await;
                }
            }
        });
    }

    /// Connects to one address, in the way that is likeliest to work.
    async fn connect(&self, addr: SocketAddr, hints: Hints) -> Result<(Shaken, SocketAddr), ConnectError> {
        let (policy, first) = {
            let past = self.past.lock();
            // Who is said to prefer encryption isn't spared the try for having had none once.
            let spare = !hints.encryption;
            let policy = if spare { past.policy(addr, self.ways.encryption) } else { self.ways.encryption };
            let utp = hints.punch || (hints.utp && hints.failed);
            (policy, if utp { Kind::Utp } else { past.first(addr) })
        };
        let dialled = connect::dial(addr, &self.ways, &self.handshake(), policy, first).await;
        let came = dialled.as_ref().ok().map(|shaken| (shaken.line.cover(), shaken.stream.kind()));
        self.past.lock().dialled(addr, came);
        dialled.map(|shaken| (shaken, addr))
    }

    /// Answers a peer that connected to us and asked for this torrent, and runs its session.
    pub fn accept(
        self: &Arc<Self>,
        mut stream: Link,
        mut line: Line,
        addr: SocketAddr,
        theirs: Handshake,
        token: Open,
    ) {
        let this = self.clone();
        self.scope.spawn(&format!("peer {addr}"), async move {
            match connect::answer(&mut stream, &mut line, &this.handshake()).await {
                Ok(()) => this.run(Shaken { stream, line, theirs }, addr, true, Some(token)).await,
                Err(error) => tracing::debug!(peer = %addr, "an incoming connection failed: {error}"),
            }
        });
    }

    /// Runs a session, which is counted for as long by the token.
    async fn run(&self, shaken: Shaken, addr: SocketAddr, incoming: bool, _token: Option<Open>) {
        let Shaken { stream, line, theirs } = shaken;
        let key = self.new_key();
        let outbox = Arc::new(Outbox::default());
        let counters = Arc::new(Counters::default());
        let fast = theirs.reserved.supports_fast();
        let peer = Connected {
            addr,
            incoming,
            peer_id: theirs.peer_id,
            fast,
            extensions: theirs.reserved.supports_extensions(),
            cover: line.cover(),
            kind: stream.kind(),
        };
        let local = match stream.local() {
            None => self.ways.sockets.route(addr).await,
            local => local,
        };
        let connected =
            PeerEvent::Connected { key, peer, local, outbox: outbox.clone(), counters: counters.clone() };
        if self.events.send(connected).await.is_err() {
            return;
        }
        let context = Context {
            key,
            fast,
            known: self.known.clone(),
            outbox: outbox.clone(),
            events: self.events.clone(),
            counters,
            down_limits: self.limits.down(addr.ip()),
            up_limits: self.limits.up(addr.ip()),
            // Without it the session is only slower.
            socket: stream.socket().and_then(|socket| socket.try_clone_to_owned().ok()),
            dht: self.dht_ports(addr, theirs.reserved),
            line,
        };
        #[cfg(test)]
        let stream = planned::Stream::new(stream, addr);
        // A panic ends here, so that the owner learns in every case that the peer is gone and what it was
        // asked for is asked of others.
        let end = std::panic::AssertUnwindSafe(session::run(stream, context)).catch_unwind().await;
        outbox.close();
        let reason = match end {
            Ok(end) => end.to_string(),
            Err(_) => "its session panicked; this is a bug, please report it".to_owned(),
        };
        if reason.contains("panicked") {
            tracing::error!(peer = %addr, "{reason}");
        }
        let _ = self.events.send(PeerEvent::Gone { key, reason }).await;
    }
}

/// For tests: sessions that panic in the middle of what a peer sends.
#[cfg(test)]
pub(crate) mod planned {
    use std::io::{IoSlice, Result};
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use torrentfs_fs::lock::{Rank, RankedMutex};

    use super::Link;

    /// Whose next session panics, and after how many bytes of his.
    static PLANS: RankedMutex<Vec<(SocketAddr, usize)>> = RankedMutex::new(Rank::Leaf, "plans", Vec::new());

    /// The next session with the peer at this address panics when more than so many bytes have come.
    pub(crate) fn panic_after(addr: SocketAddr, bytes: usize) {
        PLANS.lock().push((addr, bytes));
    }

    /// A connection, of which reading may panic.
    pub(super) struct Stream {
        inner: Link,
        left: Option<usize>,
    }

    impl Stream {
        pub(super) fn new(inner: Link, addr: SocketAddr) -> Self {
            let mut plans = PLANS.lock();
            let at = plans.iter().position(|(planned, _)| *planned == addr);
            Self { inner, left: at.map(|at| plans.swap_remove(at).1) }
        }
    }

    impl AsyncRead for Stream {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<Result<()>> {
            let before = buf.filled().len();
            let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
            let came = buf.filled().len() - before;
            if let Some(left) = &mut self.left {
                match left.checked_sub(came) {
                    Some(less) => *left = less,
                    None => std::panic::panic_any("a planned panic of a session"),
                }
            }
            polled
        }
    }

    impl AsyncWrite for Stream {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
            Pin::new(&mut self.inner).poll_write(cx, buf)
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
        }
        fn is_write_vectored(&self) -> bool {
            self.inner.is_write_vectored()
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            Pin::new(&mut self.inner).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    }
}
