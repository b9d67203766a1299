//! Connections of the tests' own webseed, over which an answer may go that no HTTP library would give.
//!
//! The handler of a request leaves raw bytes with the connection's [`Link`]; when the library then writes its own
//! answer, those go out in its place, and the connection is closed.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::server::Shared;

/// What a handler knows of its connection.
#[derive(Clone, Default)]
pub struct Link(Arc<Mutex<Option<Raw>>>);

/// What goes out in place of an answer, and how much of it has.
struct Raw {
    bytes: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Sends these bytes in place of the answer that is returned, and closes the connection.
    pub fn instead(&self, raw: Vec<u8>) -> Response {
        *self.0.lock().expect("a link") = Some(Raw { bytes: raw, sent: 0 });
        Response::new(Body::empty())
    }
}

impl Connected<IncomingStream<'_, Listening>> for Link {
    fn connect_info(stream: IncomingStream<'_, Listening>) -> Self {
        stream.io().link.clone()
    }
}

/// Takes connections, and counts them.
pub struct Listening {
    /// Where they come from.
    pub listener: TcpListener,
    /// Where they are counted.
    pub shared: Arc<Shared>,
}

impl Listener for Listening {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        loop {
            // A connection that is gone already is nobody's.
            if let Ok((stream, from)) = self.listener.accept().await {
                let _ = stream.set_nodelay(true);
                self.shared.connections.fetch_add(1, Ordering::Relaxed);
                return (Wire { stream, link: Link::default() }, from);
            }
        }
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection.
pub struct Wire {
    stream: TcpStream,
    link: Link,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let link = self.link.clone();
        let mut raw = link.0.lock().expect("a link");
        let Some(raw) = raw.as_mut() else { return Pin::new(&mut self.stream).poll_write(cx, bytes) };
        while raw.sent < raw.bytes.len() {
            raw.sent += ready!(Pin::new(&mut self.stream).poll_write(cx, &raw.bytes[raw.sent..]))?;
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        // The library is told that the connection is over, and drops it.
        Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
