//! Starts the sessions of a torrent's peers, dialled and incoming, each as a task of its own.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::net::limit::RateLimit;
use crate::peer::PeerKey;
use crate::peer::connect::{self, Plain, Shaken};
use crate::peer::event::{Connected, Counters, KnownCell, PeerEvent};
use crate::peer::mse::{Line, Policy};
use crate::peer::outbox::Outbox;
use crate::peer::session::{self, Context};
use crate::peer::wire::{Handshake, Reserved};
use crate::sync::tasks::TaskScope;
use torrentfs_fs::lock::{Rank, RankedMutex};

/// What all sessions of a torrent have in common.
pub struct Sessions {
    scope: TaskScope,
    handshake: Handshake,
    known: KnownCell,
    events: mpsc::Sender<PeerEvent>,
    down_limit: RateLimit,
    up_limit: RateLimit,
    encryption: Policy,
    /// Who is dialled without encryption at once.
    plain: RankedMutex<Plain>,
    next: AtomicU64,
}

impl Sessions {
    /// Sessions that report to `events`, in tasks of `scope`.
    pub fn new(
        scope: TaskScope,
        info_hash: [u8; 20],
        peer_id: [u8; 20],
        known: KnownCell,
        events: mpsc::Sender<PeerEvent>,
        limits: (RateLimit, RateLimit),
        encryption: Policy,
    ) -> Self {
        let reserved = Reserved::new().with_extensions().with_fast();
        Self {
            scope,
            handshake: Handshake { reserved, info_hash, peer_id },
            known,
            events,
            down_limit: limits.0,
            up_limit: limits.1,
            encryption,
            plain: RankedMutex::new(Rank::Leaf, "peers without encryption", Plain::default()),
            next: AtomicU64::new(1),
        }
    }

    /// Batches of what sessions told the owner and it hasn't looked at yet.
    pub fn queued(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
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
    pub fn dial(self: &Arc<Self>, addr: SocketAddr) {
        let this = self.clone();
        self.scope.spawn(&format!("peer {addr}"), async move {
            let policy = this.plain.lock().policy(addr, this.encryption);
            let dialled = connect::dial(addr, &this.handshake, policy).await;
            this.plain.lock().dialled(addr, dialled.as_ref().ok().map(|shaken| shaken.line.cover()));
            match dialled {
                Ok(shaken) => this.run(shaken, addr, false).await,
                Err(error) => {
                    let reason = error.to_string();
                    let _ = this.events.send(PeerEvent::Unreachable { addr, reason }).await;
                }
            }
        });
    }

    /// Answers a peer that connected to us and asked for this torrent, and runs its session.
    pub fn accept(
        self: &Arc<Self>,
        mut stream: TcpStream,
        mut line: Line,
        addr: SocketAddr,
        theirs: Handshake,
    ) {
        let this = self.clone();
        self.scope.spawn(&format!("peer {addr}"), async move {
            match connect::answer(&mut stream, &mut line, &this.handshake).await {
                Ok(()) => this.run(Shaken { stream, line, theirs }, addr, true).await,
                Err(error) => tracing::debug!(peer = %addr, "an incoming connection failed: {error}"),
            }
        });
    }

    async fn run(&self, shaken: Shaken, addr: SocketAddr, incoming: bool) {
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
        };
        let connected =
            PeerEvent::Connected { key, peer, outbox: outbox.clone(), counters: counters.clone() };
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
            down_limit: self.down_limit.clone(),
            up_limit: self.up_limit.clone(),
            // Without it the session is only slower.
            socket: stream.as_fd().try_clone_to_owned().ok(),
            line,
        };
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
