//! Moves the bytes of encryption's handshake over a connection. What they mean is for [`crate::peer::mse`] to know.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::{ConnectError, ROOM, read_some};
use crate::peer::mse::{Initiator, Line, PAD_MAX, Pads, Policy, Progress, Responder};
use crate::peer::wire::Handshake;
use crate::sync::timeouts;

/// Why encryption's handshake failed.
pub(super) struct Failed {
    pub(super) error: ConnectError,
    /// The peer has shown nothing of encryption, or not agreed about it: another try without may do.
    pub(super) plain_may_do: bool,
}

/// Says our handshake under encryption. Bounded in time: by [`timeouts::PEER_KEY`] until the peer shows a key, when another
/// try may follow, and by [`timeouts::PEER_HANDSHAKE`] in all.
pub(super) async fn initiate<S>(stream: &mut S, ours: &Handshake, policy: Policy) -> Result<Line, Failed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut side, mut out) = Initiator::new(ours.info_hash, policy, &ours.encode(), rand::random(), pads());
    let begun = Instant::now();
    let mut input = BytesMut::with_capacity(ROOM);
    let error = loop {
        let patience = match policy {
            Policy::Prefer if !side.answered() => timeouts::PEER_KEY,
            _ => timeouts::PEER_HANDSHAKE,
        };
        if let Err(error) = exchange(stream, &mut out, &mut input, begun + patience).await {
            break error;
        }
        match side.feed(&mut input, &mut out) {
            Ok(Progress::More) => {}
            Ok(Progress::Done { line, .. }) => return Ok(line),
            Err(error) => break error.into(),
        }
    };
    let plain_may_do = !side.answered() || matches!(error, ConnectError::Encryption(_));
    Err(Failed { error, plain_may_do })
}

/// Answers a peer whose first bytes are in `input`. Also says for which torrent it came. The caller bounds the time.
pub(super) async fn respond<S>(
    stream: &mut S,
    mut input: BytesMut,
    policy: Policy,
    skey_of: &(dyn Fn(&[u8; 20]) -> Option<[u8; 20]> + Send + Sync),
) -> Result<(Line, [u8; 20]), ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut side = Responder::new(policy, rand::random(), pads());
    let mut out = Vec::new();
    loop {
        let progress = side.feed(&mut input, &mut out, skey_of)?;
        stream.write_all(&out).await?;
        out.clear();
        match progress {
            Progress::More => read_some(stream, &mut input).await?,
            Progress::Done { line, skey } => return Ok((line, skey)),
        }
    }
}

/// Says what is to be said, then reads what is there.
async fn exchange<S>(
    stream: &mut S,
    out: &mut Vec<u8>,
    input: &mut BytesMut,
    until: Instant,
) -> Result<(), ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let exchange = async {
        stream.write_all(out).await?;
        out.clear();
        read_some(stream, input).await?;
        Ok::<_, io::Error>(())
    };
    Ok(timeout_at(until, exchange).await.map_err(|_| ConnectError::TimedOut)??)
}

/// Paddings of random lengths: those of our messages tell nothing then.
fn pads() -> Pads {
    let mut front = vec![0; rand::random_range(0..=PAD_MAX)];
    rand::fill(&mut front[..]);
    Pads::new(front, rand::random_range(0..=PAD_MAX))
}
