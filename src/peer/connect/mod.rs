//! Connecting to a peer over TCP or uTP, whichever is there first, and the handshakes of both directions (BEP 3), behind
//! encryption's own where that is wanted.
//!
//! Parts: [`Ways`], how it may be done; [`dial`], and [`greet`] with [`answer`], the two directions; [`Past`], how who was dialled before is dialled again;
//! [`mse`], which moves the bytes of encryption's handshake.
//!
//! Flow: with encryption preferred, a dial begins with it, and is made again without when the peer shows no key: in a new
//! connection, since the other side has read what it can't use. With encryption required there is no second try. What comes
//! in says by its first 20 bytes which it is.
//!
//! Every wait is bounded, and for each part as a whole: a peer that sends a byte a second gains nothing.

mod mse;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::mse::{Cover, Line, MseError, Opening, Policy};
use super::wire::{Handshake, WireError};
use crate::net::sockets::Sockets;
use crate::net::transport::{Kind, Link, Transport, race};
use crate::sync::timeouts;

/// Room for what is read at once until the session takes over: a handshake, and the first messages behind it.
const ROOM: usize = 2048;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nobody answered in time.
    #[error("no answer in time")]
    TimedOut,
    /// It doesn't speak the protocol.
    #[error("{0}")]
    Protocol(#[from] WireError),
    /// It doesn't agree about encryption.
    #[error("{0}")]
    Encryption(#[from] MseError),
    /// It has another torrent than the one it was asked for.
    #[error("it answered for another info-hash")]
    OtherTorrent,
}

/// How peers are connected to.
#[derive(Debug, Clone)]
pub struct Ways {
    /// What TCP connections are made of.
    pub sockets: Sockets,
    /// What is tried when TCP takes long or fails, or worked the last time; if anything is.
    pub utp: Option<Arc<dyn Transport>>,
    /// Whether they are encrypted.
    pub encryption: Policy,
}

/// A connection whose handshakes are done.
pub struct Shaken {
    /// The connection.
    pub stream: Link,
    /// What is read and written goes through this.
    pub line: Line,
    /// Who it is.
    pub theirs: Handshake,
}

/// Connects to `addr` and exchanges handshakes. Waits no longer than connecting and the handshake may take, and under
/// [`Policy::Prefer`] once more for the try without. `policy` is that of `ways`, and `first`, what has a head start, TCP, unless
/// more is known of the peer.
///
/// # Errors
/// See [`ConnectError`].
pub async fn dial(
    addr: SocketAddr,
    ways: &Ways,
    ours: &Handshake,
    policy: Policy,
    first: Kind,
) -> Result<Shaken, ConnectError> {
    if policy != Policy::Off {
        let mut stream = connect(addr, ways, first).await?;
        match mse::initiate(&mut stream, ours, policy).await {
            Ok(line) => return finish(stream, line, ours).await,
            Err(failed) if policy == Policy::Require || !failed.plain_may_do => return Err(failed.error),
            Err(failed) => tracing::trace!(peer = %addr, "again without encryption: {}", failed.error),
        }
    }
    let mut stream = connect(addr, ways, first).await?;
    let mut line = Line::plain(BytesMut::with_capacity(ROOM));
    answer(&mut stream, &mut line, ours).await?;
    finish(stream, line, ours).await
}

async fn connect(addr: SocketAddr, ways: &Ways, first: Kind) -> Result<Link, ConnectError> {
    let connect = async {
        let tcp = Transport::connect(&ways.sockets, addr);
        match &ways.utp {
            Some(utp) if first == Kind::Utp => race(utp.connect(addr), tcp, timeouts::PEER_UTP).await,
            Some(utp) => race(tcp, utp.connect(addr), timeouts::PEER_UTP).await,
            None => tcp.await,
        }
    };
    let limit = match ways.sockets.proxy() {
        Some(_) => timeouts::PROXY_CONNECT + timeouts::PROXY_ANSWER,
        None => timeouts::PEER_CONNECT,
    };
    Ok(timeout(limit, connect).await.map_err(|_| ConnectError::TimedOut)??)
}

/// Reads the handshake of a peer that has ours.
async fn finish(mut stream: Link, mut line: Line, ours: &Handshake) -> Result<Shaken, ConnectError> {
    let read = read_handshake(&mut stream, &mut line);
    let theirs = timeout(timeouts::PEER_HANDSHAKE, read).await.map_err(|_| ConnectError::TimedOut)??;
    if theirs.info_hash != ours.info_hash {
        return Err(ConnectError::OtherTorrent);
    }
    Ok(Shaken { stream, line, theirs })
}

/// Reads the handshake of a peer that connected to us, and says through what the rest is read and written. `skey_of` gives
/// the torrent whose [`super::mse::obscured`] name this is, if it is here. Bounded in time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn greet<S>(
    stream: &mut S,
    policy: Policy,
    skey_of: impl Fn(&[u8; 20]) -> Option<[u8; 20]> + Send + Sync,
) -> Result<(Handshake, Line), ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let greet = async {
        let mut input = BytesMut::with_capacity(ROOM);
        while Opening::of(&input) == Opening::Unclear {
            read_some(stream, &mut input).await?;
        }
        let opening = Opening::of(&input);
        policy.takes(opening)?;
        if opening == Opening::Plain {
            let mut line = Line::plain(input);
            return Ok((read_handshake(stream, &mut line).await?, line));
        }
        let (mut line, skey) = mse::respond(stream, input, policy, &skey_of).await?;
        let theirs = read_handshake(stream, &mut line).await?;
        if theirs.info_hash == skey { Ok((theirs, line)) } else { Err(ConnectError::OtherTorrent) }
    };
    timeout(timeouts::PEER_HANDSHAKE, greet).await.map_err(|_| ConnectError::TimedOut)?
}

/// Answers with our handshake, once it is known that we have the torrent. Bounded in time. Over uTP it is a packet of its
/// own: of what lies behind a handshake in the same one transmission 3.00 takes no notice until more comes, and it would
/// never want what it doesn't know that we have.
///
/// # Errors
/// See [`ConnectError`].
pub async fn answer<S>(stream: &mut S, line: &mut Line, ours: &Handshake) -> Result<(), ConnectError>
where
    S: AsyncWrite + Send + Unpin,
{
    let mut bytes = ours.encode();
    line.seal(&mut bytes);
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    timeout(timeouts::PEER_HANDSHAKE, write).await.map_err(|_| ConnectError::TimedOut)??;
    Ok(())
}

async fn read_handshake<S>(stream: &mut S, line: &mut Line) -> Result<Handshake, ConnectError>
where
    S: AsyncRead + Send + Unpin,
{
    let mut input = std::mem::take(&mut line.early);
    while input.len() < Handshake::LEN {
        let had = input.len();
        read_some(stream, &mut input).await?;
        line.open(&mut input[had..]);
    }
    let theirs = input.split_to(Handshake::LEN);
    line.early = input;
    let theirs = theirs.first_chunk().ok_or(WireError::NotBitTorrent)?;
    Ok(Handshake::decode(theirs)?)
}

/// Reads what is there, and at least a byte.
async fn read_some<S>(stream: &mut S, input: &mut BytesMut) -> io::Result<()>
where
    S: AsyncRead + Send + Unpin,
{
    match stream.read_buf(input).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// What came of the last dials: a peer that had no encryption, or is reached over uTP, is spared a connection that comes to
/// nothing. Pure.
#[derive(Debug, Default)]
pub struct Past {
    /// Who had no encryption.
    plain: Few,
    /// Whom uTP is tried first with.
    utp: Few,
}

impl Past {
    /// How a peer is dialled under this policy.
    pub fn policy(&self, addr: SocketAddr, policy: Policy) -> Policy {
        if policy == Policy::Prefer && self.plain.has(addr) { Policy::Off } else { policy }
    }

    /// What it is dialled over first.
    pub fn first(&self, addr: SocketAddr) -> Kind {
        if self.utp.has(addr) { Kind::Utp } else { Kind::Tcp }
    }

    /// What came of a dial: how the connection is covered, and what it runs over; `None` when there is none. Who can't be
    /// reached without encryption is tried with it the next time, and who can't be reached over the one first, over the other:
    /// some take a connection over TCP only to close it.
    pub fn dialled(&mut self, addr: SocketAddr, came: Option<(Cover, Kind)>) {
        let other = !self.utp.has(addr);
        self.plain.set(addr, came.is_some_and(|(cover, _)| cover == Cover::Plain));
        self.utp.set(addr, came.map_or(other, |(_, kind)| kind == Kind::Utp));
    }
}

/// A few addresses.
#[derive(Debug, Default)]
struct Few {
    /// The one that was heard of longest ago first.
    peers: VecDeque<SocketAddr>,
}

impl Few {
    /// Peers remembered: more than one torrent is ever connected to. A forgotten one costs a connection.
    const MOST: usize = 256;

    fn has(&self, addr: SocketAddr) -> bool {
        self.peers.contains(&addr)
    }

    fn set(&mut self, addr: SocketAddr, is: bool) {
        self.peers.retain(|peer| *peer != addr);
        if is {
            if self.peers.len() >= Self::MOST {
                self.peers.pop_front();
            }
            self.peers.push_back(addr);
        }
    }
}

#[cfg(test)]
mod tests;
