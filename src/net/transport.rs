//! How a peer is reached: a connection over TCP or uTP, behind one type; and the race between the two.
//!
//! [`Link`] is matched, not boxed: every byte of a peer goes through it. In a [`race`] TCP has a head start, since most
//! peers take it and its congestion control is the system's; uTP gets its turn when TCP takes long or fails at once, which
//! is what it does where only UDP comes through.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::sockets::Sockets;
use super::utp;

/// What a connection runs over.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// uTP (BEP 29).
    Utp,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Utp => "utp",
        }
    }
}

/// A connection to a peer.
#[derive(Debug)]
pub enum Link {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over uTP.
    Utp(utp::Stream),
}

impl Link {
    /// What it runs over.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Tcp(_) => Kind::Tcp,
            Self::Utp(_) => Kind::Utp,
        }
    }

    /// The address of ours that it is bound to. Over uTP it is the route that tells ([`Sockets::route`]): the socket is all
    /// connections'.
    pub fn local(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => Some(stream.local_addr().ok()?.ip().to_canonical()),
            Self::Utp(_) => None,
        }
    }

    /// The socket, if it has one to itself.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Utp(_) => None,
        }
    }
}

/// Opens connections.
pub trait Transport: std::fmt::Debug + Send + Sync {
    /// Of which kind.
    fn kind(&self) -> Kind;
    /// Connects. Dropping the future leaves nothing behind.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Link>>;
}

impl Transport for Sockets {
    fn kind(&self) -> Kind {
        Kind::Tcp
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Link>> {
        Box::pin(async move { Ok(Link::Tcp(Sockets::connect(self, to).await?)) })
    }
}

impl Transport for utp::Socket {
    fn kind(&self) -> Kind {
        Kind::Utp
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Link>> {
        Box::pin(async move { Ok(Link::Utp(utp::Socket::connect(self, to).await?)) })
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Utp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Utp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Utp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Utp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The first of two that succeeds; the other is dropped. The second begins after `head_start`, or when the first has failed.
/// Cancel-safe as far as the two are.
///
/// # Errors
/// The first one's, when both fail.
pub async fn race<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Result<T, E>>,
    head_start: Duration,
) -> Result<T, E> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    tokio::select! {
        biased;
        tried = &mut first => return match tried {
            Ok(link) => Ok(link),
            Err(error) => second.await.map_err(|_| error),
        },
        () = tokio::time::sleep(head_start) => {}
    }
    tokio::select! {
        biased;
        tried = &mut first => match tried {
            Ok(link) => Ok(link),
            Err(error) => second.await.map_err(|_| error),
        },
        tried = &mut second => match tried {
            Ok(link) => Ok(link),
            Err(_) => first.await,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::sync::timeouts::PEER_UTP;

    /// Succeeds or fails after so many milliseconds.
    async fn after(ms: u64, result: Result<u8, u8>) -> Result<u8, u8> {
        sleep(Duration::from_millis(ms)).await;
        result
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_succeeds_wins() {
        for (first, second, result, took) in [
            ((0, Ok(1)), (0, Ok(2)), Ok(1), 0),
            ((100, Ok(1)), (0, Ok(2)), Ok(1), 100),
            ((300, Ok(1)), (100, Ok(2)), Ok(1), 300),
            ((400, Ok(1)), (100, Ok(2)), Ok(2), 350),
            ((5000, Err(1)), (30, Ok(2)), Ok(2), 280),
            ((100, Err(1)), (30, Ok(2)), Ok(2), 130),
            ((300, Err(1)), (100, Ok(2)), Ok(2), 350),
            ((600, Ok(1)), (100, Err(2)), Ok(1), 600),
            ((600, Err(1)), (100, Err(2)), Err(1), 600),
            ((100, Err(1)), (100, Err(2)), Err(1), 200),
        ] {
            let begin = Instant::now();
            let got = race(after(first.0, first.1), after(second.0, second.1), PEER_UTP).await;
            let elapsed = begin.elapsed().as_millis() as i64;
            assert_eq!(got, result, "{first:?} {second:?}");
            assert!((elapsed - took).abs() <= 2, "{first:?} {second:?}: {elapsed}");
        }
    }
}
