//! A peer's session: one task that moves bytes between the socket, the piece buffers and the owner.
//!
//! Flow of a round: what the outbox holds becomes messages while the write buffer has room; whatever is ready
//! first happens (bytes to read, room to write, a changed outbox, a block to serve); messages that came in
//! one socket read go to the owner as one batch. The channel to the owner is bounded: when it is full the
//! session waits, and so the peer's socket fills, which is the back-pressure we want. The owner never waits
//! for a session, so they can't wait for each other.
//! Deliberately not here: what to request, whom to unchoke, what a piece is worth.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::PeerKey;
use super::event::{Counters, Item, KnownCell, PeerEvent};
use super::outbox::{Outbox, Wanted};
use super::wire::{self, BlockRequest, Decoder, Limits, Message};
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef};
use crate::net::limit::RateLimit;
use crate::sync::timeouts;

/// Room in the read buffer of a quiet peer: most have little to say.
const READ_SMALL: usize = 32 * 1024;
/// Room in the read buffer of a peer that fills it: fewer system calls per byte.
const READ_LARGE: usize = 256 * 1024;
/// The write buffer isn't filled beyond this; what is to be said waits in the outbox, where it can change.
const WRITE_HIGH: usize = 128 * 1024;
/// Requests of the peer that we keep; told to it as `reqq`. Beyond it they are rejected.
pub const REQUESTS_MAX: usize = 512;
/// Blocks being read from disk for one peer at a time.
const SERVING_MAX: usize = 8;
/// How often silence is looked at. Coarse: the time-outs are minutes.
const LOOK: Duration = Duration::from_secs(10);

/// What a session needs.
pub struct Context {
    /// The peer's key.
    pub key: PeerKey,
    /// Whether both sides speak the fast extension.
    pub fast: bool,
    /// The torrent, once known.
    pub known: KnownCell,
    /// What the peer is to be told.
    pub outbox: Arc<Outbox>,
    /// To the owner.
    pub events: mpsc::Sender<PeerEvent>,
    /// Bytes moved.
    pub counters: Arc<Counters>,
    /// Limit on what we receive.
    pub down_limit: RateLimit,
    /// Limit on what we send.
    pub up_limit: RateLimit,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The network failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(#[from] wire::WireError),
    /// The peer was silent, or took nothing, for too long.
    #[error("{0}")]
    Silent(&'static str),
    /// We closed it.
    #[error("{0}")]
    Ours(String),
}

type Permit = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Session {
    ctx: Context,
    decoder: Decoder,
    /// What we asked for, by piece and begin.
    asked: HashMap<(u32, u32), Wanted>,
    out: BytesMut,
    choking: bool,
    /// What the peer asked for.
    requests: VecDeque<BlockRequest>,
    /// Of those being read from disk, the ones it took back.
    taken_back: HashSet<BlockRequest>,
    serving: usize,
    items: Vec<Item>,
    last_in: Instant,
    last_out: Instant,
    /// When the write buffer was last empty or shrank.
    progress: Instant,
}

/// Runs a session until it ends; returns why. Dropping it closes the connection.
pub async fn run<S>(stream: S, ctx: Context) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let max_frame = match ctx.known.get() {
        Some(known) => wire::max_frame(known.geometry.pieces()),
        None => wire::MAX_FRAME_BEFORE_METADATA,
    };
    let now = Instant::now();
    let mut session = Session {
        decoder: Decoder::new(Limits { max_frame }),
        asked: HashMap::new(),
        out: BytesMut::with_capacity(4096),
        choking: true,
        requests: VecDeque::new(),
        taken_back: HashSet::new(),
        serving: 0,
        items: Vec::new(),
        last_in: now,
        last_out: now,
        progress: now,
        ctx,
    };
    match session.drive(stream).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

impl Session {
    async fn drive<S>(&mut self, stream: S) -> Result<std::convert::Infallible, SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut input = BytesMut::with_capacity(READ_SMALL);
        let mut chunk = READ_SMALL;
        // Room for every block being read: a worker never waits to hand one over.
        let (served, mut to_send) = mpsc::channel(SERVING_MAX);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_read: Option<Permit> = None;
        let mut may_serve: Option<Permit> = None;
        let mut dirty = true;
        let outbox = self.ctx.outbox.clone();
        loop {
            if dirty && self.out.len() < WRITE_HIGH {
                dirty = false;
                self.say()?;
            }
            if may_serve.is_none()
                && self.serving < SERVING_MAX
                && self.out.len() < WRITE_HIGH
                && let Some(next) = self.requests.front()
            {
                let (limit, len) = (self.ctx.up_limit.clone(), u64::from(next.len));
                may_serve = Some(Box::pin(async move { limit.take(len).await }));
            }
            let spare = input.capacity() - input.len();
            let need = self.decoder.need(&input).min(READ_LARGE);
            if spare < need.max(chunk / 4) {
                input.reserve(chunk.max(need));
            }
            tokio::select! {
                read = reader.read_buf(&mut input), if may_read.is_none() => {
                    let n = read?;
                    if n == 0 {
                        return Err(SessionEnd::Closed);
                    }
                    chunk = if n >= READ_SMALL / 2 { READ_LARGE } else { READ_SMALL };
                    self.last_in = Instant::now();
                    self.understand(&mut input)?;
                    if !self.items.is_empty() {
                        let said = PeerEvent::Said { key: self.ctx.key, items: std::mem::take(&mut self.items) };
                        if self.ctx.events.send(said).await.is_err() {
                            return Err(SessionEnd::Ours("the torrent is closing".into()));
                        }
                    }
                    if self.ctx.down_limit.rate().is_some() {
                        let limit = self.ctx.down_limit.clone();
                        may_read = Some(Box::pin(async move { limit.take(n as u64).await }));
                    }
                }
                wrote = writer.write(&self.out), if !self.out.is_empty() => {
                    let n = wrote?;
                    let _ = self.out.split_to(n);
                    self.progress = Instant::now();
                    self.last_out = self.progress;
                }
                () = outbox.changed() => dirty = true,
                Some((request, data)) = to_send.recv(), if self.serving > 0 => self.serve(request, data),
                () = wait_for(&mut may_read) => may_read = None,
                () = wait_for(&mut may_serve) => {
                    may_serve = None;
                    self.fetch(&served);
                }
                _ = look.tick() => self.look()?,
            }
        }
    }

    /// Turns what the outbox holds into messages.
    fn say(&mut self) -> Result<(), SessionEnd> {
        let outgoing = self.ctx.outbox.take();
        if self.out.is_empty() {
            self.progress = Instant::now();
        }
        for message in outgoing.messages {
            message.encode(&mut self.out);
        }
        if let Some(choke) = outgoing.choke
            && choke != self.choking
        {
            self.choking = choke;
            if choke {
                Message::Choke.encode(&mut self.out);
                for request in std::mem::take(&mut self.requests) {
                    self.reject(request);
                }
            } else {
                Message::Unchoke.encode(&mut self.out);
            }
        }
        for cancel in outgoing.cancels {
            if self.asked.remove(&(cancel.piece.0, cancel.begin)).is_some() {
                Message::Cancel(cancel).encode(&mut self.out);
            }
        }
        for wanted in outgoing.requests {
            Message::Request(wanted.request).encode(&mut self.out);
            self.asked.insert((wanted.request.piece.0, wanted.request.begin), wanted);
        }
        match outgoing.disconnect {
            Some(reason) => Err(SessionEnd::Ours(reason)),
            None => Ok(()),
        }
    }

    fn reject(&mut self, request: BlockRequest) {
        if self.ctx.fast {
            Message::Reject(request).encode(&mut self.out);
        }
    }

    /// Decodes what has come; what the owner needs to know is in `items` afterwards.
    fn understand(&mut self, input: &mut BytesMut) -> Result<(), SessionEnd> {
        while let Some(message) = self.decoder.decode(input)? {
            if let Some(known) = self.ctx.known.get() {
                message.check(&known.geometry)?;
            }
            match message {
                Message::KeepAlive | Message::Port(_) | Message::Suggest(_) | Message::Unknown(_) => {}
                Message::Choke => {
                    if !self.ctx.fast {
                        self.asked.clear();
                    }
                    self.items.push(Item::Choked(true));
                }
                Message::Unchoke => self.items.push(Item::Choked(false)),
                Message::Interested => self.items.push(Item::Interested(true)),
                Message::NotInterested => self.items.push(Item::Interested(false)),
                Message::Have(piece) => self.items.push(Item::Have(piece)),
                Message::Bitfield(bits) => self.items.push(Item::Bitfield(bits)),
                Message::HaveAll => self.items.push(Item::HaveAll),
                Message::HaveNone => self.items.push(Item::HaveNone),
                Message::AllowedFast(piece) => self.items.push(Item::AllowedFast(piece)),
                Message::Extended { id, payload } => self.items.push(Item::Extended(id, payload)),
                Message::Piece { piece, begin, data } => {
                    let asked = self.asked.get(&(piece.0, begin));
                    let fits = asked.is_some_and(|w| w.request.len as usize == data.len());
                    let len = data.len() as u64;
                    match self.asked.remove(&(piece.0, begin)) {
                        Some(wanted) if fits => {
                            let block = BlockRef { piece, block: BlockIndex(begin / BLOCK_LEN) };
                            let counter = match wanted.buffer.put(block.block, data) {
                                true => &self.ctx.counters.down,
                                false => &self.ctx.counters.wasted,
                            };
                            counter.fetch_add(len, Ordering::Relaxed);
                            self.items.push(Item::Block { block, buffer: wanted.buffer });
                        }
                        Some(_) => {
                            return Err(SessionEnd::Ours("it sent a block of another length than asked".into()));
                        }
                        // Cancelled, and sent before the cancel arrived there.
                        None => {
                            self.ctx.counters.wasted.fetch_add(len, Ordering::Relaxed);
                        }
                    }
                }
                Message::Reject(request) => {
                    if self.asked.remove(&(request.piece.0, request.begin)).is_some() {
                        let block = BlockIndex(request.begin / BLOCK_LEN);
                        self.items.push(Item::Rejected(BlockRef { piece: request.piece, block }));
                    }
                }
                Message::Request(request) => self.asked_for(request),
                Message::Cancel(request) => {
                    let before = self.requests.len();
                    self.requests.retain(|r| *r != request);
                    if self.requests.len() < before {
                        self.reject(request);
                    } else if self.serving > 0 && self.taken_back.len() < REQUESTS_MAX {
                        self.taken_back.insert(request);
                    }
                }
            }
        }
        Ok(())
    }

    /// The peer asks for a block.
    fn asked_for(&mut self, request: BlockRequest) {
        let refuse = self.choking
            || self.ctx.known.get().is_none()
            || request.len > wire::MAX_REQUEST
            || self.requests.len() >= REQUESTS_MAX;
        if refuse {
            self.reject(request);
        } else {
            self.requests.push_back(request);
        }
    }

    /// Has the next requested block read.
    fn fetch(&mut self, served: &mpsc::Sender<(BlockRequest, Option<Bytes>)>) {
        let Some(request) = self.requests.pop_front() else { return };
        let taken = self.ctx.known.get().is_some_and(|k| k.source.fetch(request, served.clone()));
        if taken {
            self.serving += 1;
        } else {
            self.reject(request);
        }
    }

    /// A block to serve was read.
    fn serve(&mut self, request: BlockRequest, data: Option<Bytes>) {
        self.serving -= 1;
        let taken_back = self.taken_back.remove(&request);
        if self.serving == 0 {
            self.taken_back.clear();
        }
        match data {
            Some(data) if !taken_back && !self.choking => {
                if self.out.is_empty() {
                    self.progress = Instant::now();
                }
                wire::encode_piece_header(request.piece, request.begin, data.len() as u32, &mut self.out);
                self.out.extend_from_slice(&data);
                self.ctx.counters.up.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            _ => self.reject(request),
        }
    }

    /// Looks at silence; says that we are alive.
    fn look(&mut self) -> Result<(), SessionEnd> {
        let now = Instant::now();
        if now.duration_since(self.last_in) > timeouts::PEER_IDLE {
            return Err(SessionEnd::Silent("the peer was silent for too long"));
        }
        if !self.out.is_empty() && now.duration_since(self.progress) > timeouts::PEER_WRITE_STALL {
            return Err(SessionEnd::Silent("the peer took nothing for too long"));
        }
        if self.out.is_empty() && now.duration_since(self.last_out) > timeouts::PEER_KEEPALIVE {
            self.progress = now;
            Message::KeepAlive.encode(&mut self.out);
        }
        Ok(())
    }
}

/// Waits for a permit; for ever when there is none to wait for. Cancel-safe: the permit keeps its place.
async fn wait_for(permit: &mut Option<Permit>) {
    match permit {
        Some(permit) => permit.as_mut().await,
        None => std::future::pending().await,
    }
}
