//! What waits for the task of a uTP socket: datagrams that came, streams whose users did something, dials.
//!
//! Putting something here never waits, and wakes the task. Datagrams beyond [`WAITING`] bytes are dropped, as the network
//! would; the others are bounded by the streams that there are, each of which stands here once or twice.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::stream::Pipe;

/// Bytes of datagrams: two full windows.
const WAITING: usize = 2 << 20;

/// What waits.
#[derive(Default)]
pub(super) struct Waiting {
    bytes: Vec<u8>,
    packets: Vec<(usize, SocketAddr)>,
    /// Streams whose users wrote, read or let go.
    pub(super) pokes: Vec<Arc<Pipe>>,
    /// Connections to be opened.
    pub(super) dials: Vec<(SocketAddr, Arc<Pipe>)>,
    closed: bool,
}

impl Waiting {
    /// The datagrams, in the order in which they came.
    pub(super) fn packets(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let mut at = 0;
        self.packets.iter().map(move |&(len, from)| {
            let packet = self.bytes.get(at..at + len).unwrap_or_default();
            at += len;
            (packet, from)
        })
    }

    /// Empties it, and keeps its buffers.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
        self.pokes.clear();
        self.dials.clear();
    }
}

/// Where it waits.
pub(super) struct Desk {
    waiting: RankedMutex<Waiting>,
    changed: Notify,
}

impl Desk {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: RankedMutex::new(Rank::Leaf, "utp desk", Waiting::default()),
            changed: Notify::new(),
        })
    }

    /// A datagram came. The task hears of it with [`Desk::settled`].
    pub(super) fn packet(&self, packet: &[u8], from: SocketAddr) {
        let mut waiting = self.waiting.lock();
        if !waiting.closed && waiting.bytes.len() + packet.len() <= WAITING {
            waiting.bytes.extend_from_slice(packet);
            waiting.packets.push((packet.len(), from));
        }
    }

    /// Those that came at once are all here.
    pub(super) fn settled(&self) {
        if !self.waiting.lock().packets.is_empty() {
            self.changed.notify_one();
        }
    }

    /// A stream's user did something.
    pub(super) fn poke(&self, pipe: Arc<Pipe>) {
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            waiting.pokes.push(pipe);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Asks for a connection. False if nobody opens any more.
    pub(super) fn dial(&self, to: SocketAddr, pipe: Arc<Pipe>) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return false;
        }
        waiting.dials.push((to, pipe));
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// For the task: exchanges what waits for `empty`.
    pub(super) fn take(&self, empty: &mut Waiting) {
        std::mem::swap(&mut *self.waiting.lock(), empty);
    }

    /// For the task: nothing is taken any more. What waited is in `rest`.
    pub(super) fn close(&self, rest: &mut Waiting) {
        self.take(rest);
        self.waiting.lock().closed = true;
    }

    /// Waits until there is something. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
