//! Connecting to a peer over TCP, and the handshakes of both directions (BEP 3), behind encryption's own where that is
//! wanted.
//!
//! Parts: [`Ways`], how it may be done; [`dial`], and [`greet`] with [`answer`], the two directions; [`Plain`], who is dialled without encryption at once;
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

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::mse::{Cover, Line, MseError, Opening, Policy};
use super::wire::{Handshake, WireError};
use crate::net::sockets::Sockets;
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
    /// What connections are made of.
    pub sockets: Sockets,
    /// Whether they are encrypted.
    pub encryption: Policy,
}

/// A connection whose handshakes are done.
pub struct Shaken {
    /// The connection.
    pub stream: TcpStream,
    /// What is read and written goes through this.
    pub line: Line,
    /// Who it is.
    pub theirs: Handshake,
}

/// Connects to `addr` and exchanges handshakes. Waits no longer than connecting and the handshake may take, and under
/// [`Policy::Prefer`] once more for the try without. `policy` is that of `ways`, unless more is known of the peer.
///
/// # Errors
/// See [`ConnectError`].
pub async fn dial(
    addr: SocketAddr,
    ways: &Ways,
    ours: &Handshake,
    policy: Policy,
) -> Result<Shaken, ConnectError> {
    if policy != Policy::Off {
        let mut stream = connect(addr, ways).await?;
        match mse::initiate(&mut stream, ours, policy).await {
            Ok(line) => return finish(stream, line, ours).await,
            Err(failed) if policy == Policy::Require || !failed.plain_may_do => return Err(failed.error),
            Err(failed) => tracing::trace!(peer = %addr, "again without encryption: {}", failed.error),
        }
    }
    let mut stream = connect(addr, ways).await?;
    let mut line = Line::plain(BytesMut::with_capacity(ROOM));
    answer(&mut stream, &mut line, ours).await?;
    finish(stream, line, ours).await
}

async fn connect(addr: SocketAddr, ways: &Ways) -> Result<TcpStream, ConnectError> {
    let connected = timeout(timeouts::PEER_CONNECT, ways.sockets.connect(addr)).await;
    Ok(connected.map_err(|_| ConnectError::TimedOut)??)
}

/// Reads the handshake of a peer that has ours.
async fn finish(mut stream: TcpStream, mut line: Line, ours: &Handshake) -> Result<Shaken, ConnectError> {
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

/// Answers with our handshake, once it is known that we have the torrent. Bounded in time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn answer<S>(stream: &mut S, line: &mut Line, ours: &Handshake) -> Result<(), ConnectError>
where
    S: AsyncWrite + Send + Unpin,
{
    let mut bytes = ours.encode();
    line.seal(&mut bytes);
    let write = stream.write_all(&bytes);
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

/// Peers that had no encryption when they were dialled last: they are spared a connection that comes to nothing. Pure.
#[derive(Debug, Default)]
pub struct Plain {
    /// The one that was heard of longest ago first.
    peers: VecDeque<SocketAddr>,
}

impl Plain {
    /// Peers remembered: more than one torrent is ever connected to. A forgotten one costs a connection.
    const MOST: usize = 256;

    /// How a peer is dialled under this policy.
    pub fn policy(&self, addr: SocketAddr, policy: Policy) -> Policy {
        if policy == Policy::Prefer && self.peers.contains(&addr) { Policy::Off } else { policy }
    }

    /// What came of a dial: how the connection is covered; `None` when there is none. Who can't be reached without is
    /// tried with it the next time.
    pub fn dialled(&mut self, addr: SocketAddr, cover: Option<Cover>) {
        self.peers.retain(|peer| *peer != addr);
        if cover == Some(Cover::Plain) {
            if self.peers.len() >= Self::MOST {
                self.peers.pop_front();
            }
            self.peers.push_back(addr);
        }
    }
}

#[cfg(test)]
mod tests;
