//! A uTP connection as a stream of bytes: what the user of a connection holds, and the pipe through which it talks to the
//! socket's task.
//!
//! A [`Pipe`] holds what came and wasn't read, at most [`super::receive::ROOM`] (the other side knows how much
//! there is room for), and what was written and isn't on its way, at most [`OUTBOUND`]. Whoever puts something in or takes something out that
//! the task has to know of pokes it ([`super::desk`]); the task wakes readers and writers after the lock is let go.
//!
//! Dropping a [`Stream`] ends the connection: what was written still goes out, in the task's time. Dropping one that is
//! still dialling leaves nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::conn::{Conn, End};
use super::desk::Desk;
use super::mux::Key;

/// Bytes that were written and wait for the task.
pub const OUTBOUND: usize = 256 << 10;
/// A buffer that is empty isn't kept if it is larger.
const KEPT: usize = 256 << 10;

#[derive(Default)]
struct Inner {
    inbound: BytesMut,
    outbound: BytesMut,
    reader: Option<Waker>,
    writer: Option<Waker>,
    open: bool,
    /// The other side will say nothing more.
    eof: bool,
    /// Why it is over.
    ended: Option<io::ErrorKind>,
    /// We will write nothing more.
    finished: bool,
    dropped: bool,
    /// The task knows that there is something to do.
    poked: bool,
    /// The other side waits for room.
    tight: bool,
}

/// What a stream and the task share.
pub struct Pipe {
    inner: RankedMutex<Inner>,
    /// The connection's; 0 as long as it has none.
    key: AtomicU64,
}

/// What a stream's user did.
pub(super) struct Done {
    /// Nobody holds the stream any more.
    pub(super) dropped: bool,
    /// All that was written has been taken.
    pub(super) drained: bool,
    /// And nothing will follow.
    pub(super) finished: bool,
}

impl Pipe {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: RankedMutex::new(Rank::Leaf, "utp pipe", Inner::default()),
            key: AtomicU64::new(0),
        })
    }

    pub(super) fn set_key(&self, key: Key) {
        self.key.store(key.0, Ordering::Relaxed);
    }

    /// The connection's key, once it has one.
    pub(super) fn key(&self) -> Option<Key> {
        Some(self.key.load(Ordering::Relaxed)).filter(|&key| key != 0).map(Key)
    }

    /// For the task: moves bytes between the stream and its connection.
    pub(super) fn exchange(&self, conn: &mut Conn, open: bool, now: std::time::Instant) -> Done {
        let (mut reader, mut writer) = (None, None);
        let done = {
            let mut inner = self.inner.lock();
            inner.poked = false;
            let mut wake_reader = open && !inner.open;
            inner.open |= open;
            if !inner.outbound.is_empty() {
                let n = conn.write(&inner.outbound, now);
                inner.outbound.advance(n);
                if inner.outbound.is_empty() && inner.outbound.capacity() > KEPT {
                    inner.outbound = BytesMut::new();
                }
                if inner.outbound.len() <= OUTBOUND / 2 {
                    writer = inner.writer.take();
                }
            }
            wake_reader |= conn.read(&mut inner.inbound) > 0;
            if conn.has_ended() && !inner.eof {
                inner.eof = true;
                wake_reader = true;
            }
            if wake_reader {
                reader = inner.reader.take();
            }
            conn.set_unread(inner.inbound.len(), now);
            inner.tight = conn.is_tight();
            Done { dropped: inner.dropped, drained: inner.outbound.is_empty(), finished: inner.finished }
        };
        reader.into_iter().chain(writer).for_each(Waker::wake);
        done
    }

    /// For the task: the connection is over.
    pub(super) fn end(&self, how: io::ErrorKind) {
        let wakers = {
            let mut inner = self.inner.lock();
            inner.ended.get_or_insert(how);
            inner.outbound = BytesMut::new();
            [inner.reader.take(), inner.writer.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether the stream was dropped.
    pub(super) fn is_dropped(&self) -> bool {
        self.inner.lock().dropped
    }
}

/// What an end is to who reads and writes.
pub(super) fn kind(end: End, dialling: bool) -> io::ErrorKind {
    match end {
        End::Reset if dialling => io::ErrorKind::ConnectionRefused,
        End::Reset => io::ErrorKind::ConnectionReset,
        End::TimedOut | End::Narrow => io::ErrorKind::TimedOut,
        End::Closed => io::ErrorKind::ConnectionAborted,
    }
}

/// A connection.
pub struct Stream {
    pipe: Arc<Pipe>,
    desk: Arc<Desk>,
    peer: SocketAddr,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(pipe: Arc<Pipe>, desk: Arc<Desk>, peer: SocketAddr) -> Self {
        Self { pipe, desk, peer }
    }

    /// The other side.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Waits until the other side answers. Cancel-safe.
    pub(super) async fn opened(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            let mut inner = self.pipe.inner.lock();
            if inner.open {
                return Poll::Ready(Ok(()));
            }
            if let Some(kind) = inner.ended {
                return Poll::Ready(Err(kind.into()));
            }
            remember(&mut inner.reader, cx);
            Poll::Pending
        })
        .await
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let poke = {
            let mut inner = self.pipe.inner.lock();
            let n = inner.inbound.len().min(buf.remaining());
            if n == 0 && buf.remaining() > 0 {
                if inner.eof {
                    return Poll::Ready(Ok(()));
                }
                if let Some(kind) = inner.ended {
                    return Poll::Ready(Err(kind.into()));
                }
                remember(&mut inner.reader, cx);
                return Poll::Pending;
            }
            buf.put_slice(inner.inbound.get(..n).unwrap_or_default());
            inner.inbound.advance(n);
            if inner.inbound.is_empty() && inner.inbound.capacity() > KEPT {
                inner.inbound = BytesMut::new();
            }
            let roomy = inner.inbound.len() <= super::receive::ROOM / 4;
            let poke = inner.tight && roomy && !inner.poked;
            inner.poked |= poke;
            inner.tight &= !roomy;
            poke
        };
        if poke {
            self.desk.poke(self.pipe.clone());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let (n, poke) = {
            let mut inner = self.pipe.inner.lock();
            if let Some(kind) = inner.ended {
                return Poll::Ready(Err(kind.into()));
            }
            if inner.finished {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let n = buf.len().min(OUTBOUND.saturating_sub(inner.outbound.len()));
            if n == 0 && !buf.is_empty() {
                remember(&mut inner.writer, cx);
                return Poll::Pending;
            }
            inner.outbound.extend_from_slice(buf.get(..n).unwrap_or_default());
            (n, !std::mem::replace(&mut inner.poked, true))
        };
        if poke {
            self.desk.poke(self.pipe.clone());
        }
        Poll::Ready(Ok(n))
    }

    /// What was written is on its way by itself. This waits until it has been put into packets: what is written later goes
    /// in others.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.pipe.inner.lock();
        if let Some(kind) = inner.ended {
            return Poll::Ready(Err(kind.into()));
        }
        if inner.outbound.is_empty() {
            return Poll::Ready(Ok(()));
        }
        remember(&mut inner.writer, cx);
        Poll::Pending
    }

    /// Nothing more will be written; doesn't wait until it has arrived.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poke = {
            let mut inner = self.pipe.inner.lock();
            inner.finished = true;
            !std::mem::replace(&mut inner.poked, true)
        };
        if poke {
            self.desk.poke(self.pipe.clone());
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let left = {
            let mut inner = self.pipe.inner.lock();
            inner.dropped = true;
            inner.finished = true;
            inner.poked = true;
            (std::mem::take(&mut inner.inbound), inner.reader.take(), inner.writer.take())
        };
        drop(left);
        self.desk.poke(self.pipe.clone());
    }
}
