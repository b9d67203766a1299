//! Reads from a peer no more than was taken of its limits before.
//!
//! Reading first and paying afterwards lets each of many peers have a buffer's worth for nothing, again after each pause.
//! Taking first has a trap of its own: whoever holds what he took while nothing comes keeps others from it. So a
//! quiet peer holds nothing. What comes from it is seen by a sip, [`SIP`] bytes at most; they are paid for with the
//! portion that is taken then, and that is read up to its end or until nothing more is there, when its rest is given
//! back.
//!
//! All state is in the [`Intake`]: [`Intake::read`] can be dropped at any time and called again.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Chain;

/// What may come from each peer before it is paid for: enough for the small messages of a quiet one, and a thousandth
/// of what a socket would give.
const SIP: usize = 512;

type Taking = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    /// Nothing is held; what comes next is sipped.
    Quiet,
    /// In line; then so much may be read. Nothing, when all that came was paid.
    Taking(Taking, u64),
    /// So much may be read; never 0.
    Holding(u64),
}

/// What one peer may send us.
pub struct Intake {
    chain: Chain,
    state: State,
}

impl Intake {
    /// Reading under these limits.
    pub fn new(chain: Chain) -> Self {
        Self { chain, state: State::Quiet }
    }

    /// Reads what is there, as much as may be, into the spare room of `to`, of which there must be some: waits for its
    /// turn, and for something to come. Returns 0 at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// The reader's own.
    pub async fn read<R>(&mut self, reader: &mut R, to: &mut BytesMut) -> io::Result<usize>
    where
        R: AsyncRead + Unpin,
    {
        debug_assert!(to.capacity() > to.len(), "no room would look like the end of the stream");
        poll_fn(|cx| self.poll_read(cx, reader, to)).await
    }

    fn poll_read<R>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        to: &mut BytesMut,
    ) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
    {
        loop {
            match &mut self.state {
                State::Taking(taking, then) => {
                    ready!(taking.as_mut().poll(cx));
                    self.state = match *then {
                        0 => State::Quiet,
                        n => State::Holding(n),
                    };
                }
                State::Quiet => {
                    let limited = self.chain.is_limited();
                    let most = if limited { SIP } else { usize::MAX };
                    let n = ready!(poll_some(cx, reader, to, most))?;
                    if limited && n > 0 {
                        // A sip that was full shows that there is more.
                        let more = if n == SIP { self.chain.portion().unwrap_or(0) } else { 0 };
                        self.take(n as u64 + more, more);
                    }
                    return Poll::Ready(Ok(n));
                }
                State::Holding(held) => {
                    let most = usize::try_from(*held).unwrap_or(usize::MAX);
                    let polled = poll_some(cx, reader, to, most);
                    if let Poll::Ready(Ok(n)) = &polled {
                        *held -= *n as u64;
                        if *held == 0 {
                            match self.chain.portion() {
                                Some(portion) => self.take(portion, portion),
                                None => self.state = State::Quiet,
                            }
                        }
                    }
                    if polled.is_pending() {
                        self.let_go();
                    }
                    return polled;
                }
            }
        }
    }

    /// Gets in line for `n` bytes; of those `then` may be read afterwards.
    fn take(&mut self, n: u64, then: u64) {
        let chain = self.chain.clone();
        self.state = State::Taking(Box::pin(async move { chain.take(n).await }), then);
    }

    fn let_go(&mut self) {
        if let State::Holding(held) = std::mem::replace(&mut self.state, State::Quiet) {
            self.chain.give_back(held);
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Reads what is there, up to `most` bytes.
fn poll_some<R>(
    cx: &mut Context<'_>,
    reader: &mut R,
    to: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<usize>>
where
    R: AsyncRead + Unpin,
{
    let mut room = (&mut *to).limit(most);
    let read = pin!(reader.read_buf(&mut room));
    read.poll(cx)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use futures_util::future::join_all;
    use futures_util::{FutureExt, poll};
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::net::limit::RateLimit;

    const MIB: u64 = 1 << 20;

    fn limited(rate: u64) -> (Chain, RateLimit) {
        let limit = RateLimit::new(Some(rate));
        (Chain::new([RateLimit::new(None), limit.clone()]), limit)
    }

    /// A peer that sends as fast as it is read from, in segments of a usual size.
    async fn flood(mut far: DuplexStream) {
        while far.write_all(&[0; 1448]).await.is_ok() {}
    }

    /// Bytes that are read of `near` until then.
    async fn drain(mut near: DuplexStream, chain: Chain, until: Instant) -> u64 {
        let mut intake = Intake::new(chain);
        let (mut sum, mut to) = (0, BytesMut::new());
        loop {
            to.clear();
            to.reserve(128 * 1024);
            match tokio::time::timeout_at(until, intake.read(&mut near, &mut to)).await {
                Ok(n) => sum += n.unwrap() as u64,
                Err(_) => return sum,
            }
        }
    }

    /// What each of `peers` gets through in `secs`; those of `quiet` send nothing.
    async fn swarm(chain: &Chain, peers: usize, quiet: usize, secs: u64) -> Vec<u64> {
        let until = Instant::now() + Duration::from_secs(secs);
        let mut kept = Vec::new();
        let runs = (0..peers + quiet).map(|n| {
            let (far, near) = duplex(256 * 1024);
            let far = if n < peers { Some(far) } else { kept.push(far); None };
            let chain = chain.clone();
            async move {
                tokio::select! {
                    () = async { match far { Some(far) => flood(far).await, None => std::future::pending().await } } => 0,
                    sum = drain(near, chain, until) => sum,
                }
            }
        });
        let runs: Vec<_> = runs.collect();
        let each = join_all(runs).await;
        drop(kept);
        each
    }

    #[tokio::test(start_paused = true)]
    async fn fifty_peers_together_keep_the_rate_from_the_first_second_on() {
        // (rate, peers, quiet ones, seconds)
        for (rate, peers, quiet, secs) in [
            (2 * MIB, 50, 0, 10),
            (2 * MIB, 50, 0, 1),
            (2 * MIB, 1, 49, 10),
            (2 * MIB, 5, 200, 1),
            (200 * 1024, 50, 50, 10),
            (50 * MIB, 50, 0, 2),
        ] {
            let (chain, _) = limited(rate);
            let each = swarm(&chain, peers, quiet, secs).await;
            let (sum, wanted) = (each.iter().sum::<u64>(), rate * secs);
            assert!(
                sum.abs_diff(wanted) * 20 <= wanted,
                "{sum} where {wanted} is right ({peers} peers, {rate} B/s)"
            );
            let flooding = &each[..peers];
            let (least, most) = (flooding.iter().min().unwrap(), flooding.iter().max().unwrap());
            assert!(most - least <= 3 * (rate / 200).max(1024) + 1024, "{least} to {most} at {rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_a_read_takes_all_that_is_there() {
        let (mut far, mut near) = duplex(MIB as usize);
        let mut intake = Intake::new(Chain::new([]));
        let mut to = BytesMut::with_capacity(MIB as usize);
        far.write_all(&[7; 300_000]).await.unwrap();
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), 300_000);
        assert_eq!(&to[..], &[7; 300_000][..]);
        drop(far);
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), 0, "the end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_peer_holds_nothing_and_is_heard_at_once() {
        let (chain, limit) = limited(1000);
        let (mut far, mut near) = duplex(1 << 16);
        let mut intake = Intake::new(chain.clone());
        let mut to = BytesMut::with_capacity(1 << 16);
        assert!(intake.read(&mut near, &mut to).now_or_never().is_none());
        limit.take(1).await;
        // Small messages come through while others wait.
        far.write_all(&[1; 100]).await.unwrap();
        assert_eq!(intake.read(&mut near, &mut to).now_or_never().unwrap().unwrap(), 100);
        // They are paid for before the next is read: 100 bytes behind the one.
        far.write_all(&[1; 100]).await.unwrap();
        let start = Instant::now();
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), 100);
        assert!((1..=2).contains(&start.elapsed().as_millis()));
        // What isn't there isn't held: the portion of 1024 is given back when the stream runs dry.
        far.write_all(&[1; 612]).await.unwrap();
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), 512);
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), 100);
        assert!(poll!(Box::pin(intake.read(&mut near, &mut to))).is_pending());
        let start = Instant::now();
        limit.take(1).await;
        assert!(start.elapsed() < Duration::from_millis(620), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_dropped_gives_back_what_it_holds_and_leaves_the_line() {
        let (chain, limit) = limited(10_000);
        let mut peers = Vec::new();
        for _ in 0..50 {
            let (mut far, near) = duplex(1 << 16);
            far.write_all(&[1; 4096]).await.unwrap();
            peers.push((far, near, Intake::new(chain.clone()), BytesMut::with_capacity(1 << 16)));
        }
        // Each sips, then stands in line.
        for (_, near, intake, to) in &mut peers {
            assert_eq!(intake.read(near, to).await.unwrap(), SIP);
        }
        let mut waiting: Vec<_> =
            peers.iter_mut().map(|(_, near, intake, to)| Box::pin(intake.read(near, to))).collect();
        let ready = {
            let mut ready = 0;
            for read in &mut waiting {
                ready += usize::from(poll!(read).is_ready());
            }
            ready
        };
        assert_eq!(ready, 1, "the first one's turn");
        drop(waiting);
        // The first holds what it has taken; the second waits at the head. All go.
        drop(peers);
        let start = Instant::now();
        limit.take(1).await;
        limit.take(1).await;
        // The one's sip and what it read are owed.
        assert!(start.elapsed() < Duration::from_millis(160), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_holds_for_a_read_that_waits() {
        let (chain, limit) = limited(1);
        let (mut far, mut near) = duplex(1 << 16);
        let mut intake = Intake::new(chain);
        let mut to = BytesMut::with_capacity(1 << 16);
        far.write_all(&[1; 4000]).await.unwrap();
        // The sip, and a portion that is the first to be taken; then the line.
        let mut sum = intake.read(&mut near, &mut to).await.unwrap();
        sum += intake.read(&mut near, &mut to).await.unwrap();
        assert_eq!(sum, SIP + 1024);
        let mut read = Box::pin(intake.read(&mut near, &mut to));
        assert!(poll!(&mut read).is_pending());
        limit.set(None);
        sum += read.await.unwrap();
        sum += intake.read(&mut near, &mut to).await.unwrap();
        assert_eq!(sum, 4000, "the rest at once");
        limit.set(Some(0));
        far.write_all(&[1; 4000]).await.unwrap();
        assert_eq!(intake.read(&mut near, &mut to).await.unwrap(), SIP);
        let mut read = Box::pin(intake.read(&mut near, &mut to));
        tokio::time::advance(Duration::from_secs(10_000)).await;
        assert!(poll!(&mut read).is_pending());
    }
}
