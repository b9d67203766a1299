//! Connecting to a peer over TCP, and the handshakes of both directions (BEP 3).

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::wire::{Handshake, WireError};
use crate::sync::timeouts;

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
    /// It has another torrent than the one it was asked for.
    #[error("it answered for another info-hash")]
    OtherTorrent,
}

/// Connects to `addr` and exchanges handshakes. Waits no longer than the two time-outs together.
///
/// # Errors
/// See [`ConnectError`].
pub async fn dial(addr: SocketAddr, ours: &Handshake) -> Result<(TcpStream, Handshake), ConnectError> {
    let connected = timeout(timeouts::PEER_CONNECT, TcpStream::connect(addr)).await;
    let mut stream = connected.map_err(|_| ConnectError::TimedOut)??;
    stream.set_nodelay(true)?;
    let shake = async {
        stream.write_all(&ours.encode()).await?;
        read_handshake(&mut stream).await
    };
    let theirs = timeout(timeouts::PEER_HANDSHAKE, shake).await.map_err(|_| ConnectError::TimedOut)??;
    if theirs.info_hash != ours.info_hash {
        return Err(ConnectError::OtherTorrent);
    }
    Ok((stream, theirs))
}

/// Reads the handshake of a peer that connected to us. Bounded in time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn greet(stream: &mut TcpStream) -> Result<Handshake, ConnectError> {
    stream.set_nodelay(true)?;
    timeout(timeouts::PEER_HANDSHAKE, read_handshake(stream)).await.map_err(|_| ConnectError::TimedOut)?
}

/// Answers with our handshake, once it is known that we have the torrent. Bounded in time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn answer(stream: &mut TcpStream, ours: &Handshake) -> Result<(), ConnectError> {
    let bytes = ours.encode();
    let write = stream.write_all(&bytes);
    timeout(timeouts::PEER_HANDSHAKE, write).await.map_err(|_| ConnectError::TimedOut)??;
    Ok(())
}

async fn read_handshake(stream: &mut TcpStream) -> Result<Handshake, ConnectError> {
    let mut bytes = [0u8; Handshake::LEN];
    stream.read_exact(&mut bytes).await?;
    Ok(Handshake::decode(&bytes)?)
}
