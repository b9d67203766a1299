//! A peer's session: one task that moves bytes between the socket, the piece buffers and the owner.
//!
//! Flow of a round: what the outbox holds becomes messages while the write buffer has room; whatever is ready
//! first happens (bytes to read, room to write, a changed outbox, a block to serve); messages that came in
//! one socket read go to the owner as one batch. The channel to the owner is bounded: when it is full the
//! session waits, and so the peer's socket fills, which is the back-pressure we want. The owner never waits
//! for a session, so they can't wait for each other.
//! Blocks that are served wait behind everything else: they go into the write buffer a little at a time, and the kernel is
//! asked to hold few unsent bytes ([`SENT_LOW`]), so what our readers ask for is never behind much that others asked for.
//! With encryption what is read is decrypted where it lies, and what is about to be written is encrypted where it lies:
//! a stream around the socket would need a buffer of its own, which nobody empties when it is dropped in mid-write.
//! Deliberately not here: what to request, whom to unchoke, what a piece is worth.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::PeerKey;
use super::buffer::PieceBuffer;
use super::event::{Counters, Item, KnownCell, PeerEvent};
use super::mse::Line;
use super::outbox::{Outbox, Wanted};
use super::wire::{self, BlockRequest, Decoder, Limits, Message};
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, PieceIndex};
use crate::net::limit::{Chain, Intake};
use crate::sync::timeouts;

/// Room in the read buffer of a quiet peer: most have little to say.
const READ_SMALL: usize = 32 * 1024;
/// Room in the read buffer of a peer that fills it: fewer system calls per byte. Not more, since a buffer lives until
/// the last block in it is written, and with several readers its blocks belong to pieces that end at different times.
const READ_LARGE: usize = 128 * 1024;
/// The write buffer isn't filled beyond this; what is to be said waits in the outbox, where it can change.
const WRITE_HIGH: usize = 128 * 1024;
/// Served blocks are added to the write buffer while it holds less than this.
const SERVED_LOW: usize = 32 * 1024;
/// Bytes that the kernel takes beyond those that are on their way (TCP_NOTSENT_LOWAT): what waits there can't be overtaken.
const SENT_LOW: u32 = 64 * 1024;
/// Requests of the peer that we keep; told to it as `reqq`. Beyond it they are rejected.
pub const REQUESTS_MAX: usize = 512;
/// Blocks being read from disk for one peer at a time, and read ones that wait for the line.
const SERVING_MAX: usize = 8;
/// The owner is told no more than this at once: a peer can put fifty thousand small messages into one read, and
/// what waits for the owner is to be bounded in bytes.
const ITEMS_MAX: usize = 1024;
/// Of these, messages of extensions: reading one takes the owner as long as a hundred others, and readers and the other
/// peers wait for it meanwhile.
const EXTENDED_MAX: usize = 32;
/// Refusals aren't added to a write buffer of this size: a peer that floods us with requests and takes nothing
/// would make it grow without end. Other messages have bounds of their own.
const OUT_MAX: usize = 1024 * 1024;
/// With so few requests under way what comes is acknowledged at once.
const HURRY_MAX: usize = 64;
/// Blocks nobody asked for that a peer may send beyond those that were cancelled on their way: none from an
/// honest one, but counting across a choke is theirs to get right too.
const UNASKED_MAX: u64 = 64;
/// Bitfields that a peer may send later than at its beginning: some clients (aria2) send one instead of several `have`
/// where that is shorter. Nine bytes are a `have`, so who does that has everything before it has sent so many. Each costs
/// us a look at every piece.
const BITFIELDS_MAX: u32 = 9 * 8;
/// Blocks with unanswered cancels that are remembered: some peers never answer them.
const UNANSWERED_MAX: usize = 4096;
/// How often silence is looked at. Coarse: the time-outs are minutes.
const LOOK: Duration = Duration::from_secs(10);

/// What is said between two peers of their nodes in the DHT (BEP 5's PORT).
pub struct DhtPorts {
    /// Where our node listens, if the peer has one, too.
    pub ours: Option<u16>,
    /// Is told where theirs does, once: a peer has one node. Must not wait.
    pub theirs: Option<Box<dyn Fn(u16) + Send + Sync>>,
}

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
    /// Limits on what we receive.
    pub down_limits: Chain,
    /// Limits on what we send.
    pub up_limits: Chain,
    /// The connection's socket, to acknowledge at once what came (Linux's TCP_QUICKACK) and to bound what waits in it
    /// (TCP_NOTSENT_LOWAT); `None` where that means nothing.
    pub socket: Option<OwnedFd>,
    /// `None` where the DHT isn't spoken of: it is off, or the torrent is private (BEP 27).
    pub dht: Option<DhtPorts>,
    /// What is read and written goes through this, and it begins with what came behind the handshake.
    pub line: Line,
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

/// A request that was cancelled. With the fast extension the peer answers it, by the block or by a reject.
struct TakenBack {
    /// How often it was asked for and cancelled since the last answer.
    times: u32,
    /// Where the block goes if it comes, as long as its piece is being made.
    buffer: Weak<PieceBuffer>,
    len: u32,
}

type Permit = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How much of what a peer sends is blocks. A block is a slice of the buffer it was read into and keeps all of
/// it: from a peer that puts other things between its blocks they are copied out, or a few blocks would hold many
/// times their size.
#[derive(Default)]
struct Share {
    read: u64,
    blocks: u64,
}

impl Share {
    /// Bytes over which the share is taken.
    const SPAN: u64 = 4 << 20;
    /// What a peer may say besides, such as a bitfield, before it counts.
    const GRACE: u64 = 512 << 10;

    fn read(&mut self, bytes: u64) {
        self.read += bytes;
        if self.read > Self::SPAN {
            self.read /= 2;
            self.blocks /= 2;
        }
    }

    /// Takes a block in: as it is, or a copy.
    fn keep(&mut self, data: Bytes) -> Bytes {
        self.blocks += data.len() as u64;
        if self.blocks * 2 < self.read.saturating_sub(Self::GRACE) {
            Bytes::copy_from_slice(&data)
        } else {
            data
        }
    }
}

struct Session {
    ctx: Context,
    share: Share,
    decoder: Decoder,
    /// Frames are bounded by what the torrent can need, now that it is known.
    bounded: bool,
    /// What we asked for, by piece and begin.
    asked: HashMap<(u32, u32), Wanted>,
    /// What we took back and may come all the same, by the same.
    unanswered: HashMap<(u32, u32), TakenBack>,
    /// Blocks that may still come though they aren't asked for any more.
    excused: u64,
    out: BytesMut,
    /// Bytes at the head of `out` that are encrypted already. It is only ever added to at its end.
    sealed: usize,
    choking: bool,
    /// Pieces that the peer may ask for though it is choked (BEP 6), and how many more blocks of them it gets so.
    allowed: HashSet<PieceIndex>,
    allowance: u32,
    /// What the peer asked for.
    requests: VecDeque<BlockRequest>,
    /// It has told us all that it has; from there on it names pieces.
    said_what: bool,
    /// Bitfields since then.
    bitfields: u32,
    /// Of those being read from disk, the ones it took back.
    taken_back: HashSet<BlockRequest>,
    serving: usize,
    /// Blocks that were read for the peer and wait for room in the write buffer: [`SERVING_MAX`] with those being read.
    ready: VecDeque<(BlockRequest, Bytes)>,
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
    if let Some(socket) = &ctx.socket {
        // Without it what is served is in front of what we ask for; nothing else is lost.
        let _ = SockRef::from(socket).set_tcp_notsent_lowat(SENT_LOW);
    }
    let mut session = Session::new(ctx);
    match session.drive(stream).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

impl Session {
    /// Nothing was said yet; the peer is choked.
    fn new(ctx: Context) -> Self {
        let now = Instant::now();
        Self {
            decoder: Decoder::new(Limits { max_frame: wire::MAX_FRAME_BEFORE_METADATA }),
            bounded: false,
            share: Share::default(),
            asked: HashMap::new(),
            unanswered: HashMap::new(),
            excused: UNASKED_MAX,
            out: BytesMut::with_capacity(4096),
            sealed: 0,
            choking: true,
            allowed: HashSet::new(),
            allowance: 0,
            requests: VecDeque::new(),
            said_what: false,
            bitfields: 0,
            taken_back: HashSet::new(),
            serving: 0,
            ready: VecDeque::new(),
            items: Vec::new(),
            last_in: now,
            last_out: now,
            progress: now,
            ctx,
        }
    }

    async fn drive<S>(&mut self, stream: S) -> Result<std::convert::Infallible, SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut input = std::mem::take(&mut self.ctx.line.early);
        let mut chunk = READ_SMALL;
        // Room for every block being read: a worker never waits to hand one over.
        let (served, mut to_send) = mpsc::channel(SERVING_MAX);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut intake = Intake::new(self.ctx.down_limits.clone());
        let mut may_serve: Option<Permit> = None;
        let mut dirty = true;
        let outbox = self.ctx.outbox.clone();
        // What came behind the handshake is here already, and nothing more may come for long.
        self.take_in(&mut input).await?;
        loop {
            if dirty && self.out.len() < WRITE_HIGH {
                dirty = false;
                let said = self.say();
                self.tell().await?;
                said?;
            } else if dirty && let Some(reason) = outbox.take_disconnect() {
                return Err(SessionEnd::Ours(reason));
            }
            if may_serve.is_none()
                && self.serving + self.ready.len() < SERVING_MAX
                && let Some(next) = self.requests.front()
            {
                let (limits, len) = (self.ctx.up_limits.clone(), u64::from(next.len));
                may_serve = Some(Box::pin(async move { limits.take(len).await }));
            }
            let spare = input.capacity() - input.len();
            let need = self.decoder.need(&input).min(READ_LARGE);
            if spare < need.max(chunk / 4) {
                input.reserve(chunk.max(need));
            }
            self.send_ready();
            self.seal();
            tokio::select! {
                read = intake.read(&mut reader, &mut input) => {
                    let n = read?;
                    if n == 0 {
                        return Err(SessionEnd::Closed);
                    }
                    // Twice what came, so that a peer that sends more is found out, and eighty don't take what
                    // one would.
                    chunk = (2 * n).next_power_of_two().clamp(READ_SMALL, READ_LARGE);
                    self.last_in = Instant::now();
                    self.share.read(n as u64);
                    let came = input.len() - n;
                    self.ctx.line.open(&mut input[came..]);
                    self.take_in(&mut input).await?;
                    self.hurry();
                }
                wrote = writer.write(&self.out), if !self.out.is_empty() => {
                    let n = wrote?;
                    if n == 0 {
                        return Err(SessionEnd::Closed);
                    }
                    let _ = self.out.split_to(n);
                    self.sealed -= n;
                    self.progress = Instant::now();
                    self.last_out = self.progress;
                }
                () = outbox.changed() => dirty = true,
                Some((request, data)) = to_send.recv(), if self.serving > 0 => self.serve(request, data),
                () = wait_for(&mut may_serve) => {
                    may_serve = None;
                    self.fetch(&served);
                }
                _ = look.tick() => self.look()?,
            }
        }
    }

    /// Encrypts what was added to the write buffer.
    fn seal(&mut self) {
        self.ctx.line.seal(&mut self.out[self.sealed..]);
        self.sealed = self.out.len();
    }

    /// Understands what has come, and tells the owner.
    async fn take_in(&mut self, input: &mut BytesMut) -> Result<(), SessionEnd> {
        let mut more = true;
        while more {
            let understood = self.understand(input);
            // Also what came before an error: it lies in the piece buffers already.
            self.tell().await?;
            more = understood?;
        }
        Ok(())
    }

    /// Acknowledges at once what came when more is to come, and not much. Many clients leave
    /// Nagle's algorithm on: the last segment of what they send then waits for our acknowledgement, and the kernel
    /// delays that for 40 ms, which is most of a seek on a fast line. While much is under way acknowledgements flow.
    fn hurry(&self) {
        let few = (1..=HURRY_MAX).contains(&self.asked.len());
        if let Some(socket) = self.ctx.socket.as_ref().filter(|_| few) {
            // It lasts until the kernel decides otherwise, so it is said each time; without it things are only slower.
            let _ = SockRef::from(socket).set_tcp_quickack(true);
        }
    }

    /// Tells the owner what the peer said; waits while its channel is full.
    async fn tell(&mut self) -> Result<(), SessionEnd> {
        if self.items.is_empty() {
            return Ok(());
        }
        let said = PeerEvent::Said { key: self.ctx.key, items: std::mem::take(&mut self.items) };
        let closing = |_| SessionEnd::Ours("the torrent is closing".into());
        self.ctx.events.send(said).await.map_err(closing)
    }

    /// Turns what the outbox holds into messages.
    fn say(&mut self) -> Result<(), SessionEnd> {
        let outgoing = self.ctx.outbox.take();
        if self.out.is_empty() {
            self.progress = Instant::now();
        }
        let introduced = !outgoing.messages.is_empty();
        for message in outgoing.messages {
            message.encode(&mut self.out);
        }
        if outgoing.allow_nothing {
            self.allowance = 0;
            self.allowed.clear();
        }
        if let Some(known) = self.ctx.known.get() {
            // Each block once, and once more for one that was lost: a choked peer isn't served without end.
            let blocks: u32 = outgoing.allowed.iter().map(|piece| known.geometry.blocks_in(*piece)).sum();
            self.allowance += 2 * blocks;
            self.allowed.extend(outgoing.allowed);
        }
        // Behind what we have, which must come first.
        if introduced && let Some(port) = self.ctx.dht.as_mut().and_then(|dht| dht.ours.take()) {
            Message::Port(port).encode(&mut self.out);
        }
        if let Some(choke) = outgoing.choke
            && choke != self.choking
        {
            self.choking = choke;
            if choke {
                Message::Choke.encode(&mut self.out);
                let ready = std::mem::take(&mut self.ready).into_iter().map(|(request, _)| request);
                for request in ready.chain(std::mem::take(&mut self.requests)) {
                    self.reject(request);
                }
            } else {
                Message::Unchoke.encode(&mut self.out);
            }
        }
        for unsent in outgoing.unsent {
            self.items.push(Item::Recalled(block_of(unsent)));
        }
        for cancel in outgoing.cancels {
            if let Some(wanted) = self.asked.remove(&(cancel.piece.0, cancel.begin)) {
                self.excused += 1;
                self.take_back(&wanted);
                Message::Cancel(cancel).encode(&mut self.out);
            }
        }
        for wanted in outgoing.requests {
            Message::Request(wanted.request).encode(&mut self.out);
            let before = self.asked.insert((wanted.request.piece.0, wanted.request.begin), wanted);
            self.excused += u64::from(before.is_some());
        }
        match outgoing.disconnect {
            Some(reason) => Err(SessionEnd::Ours(reason)),
            None => Ok(()),
        }
    }

    fn take_back(&mut self, wanted: &Wanted) {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return;
        }
        let (buffer, len) = (Arc::downgrade(&wanted.buffer), wanted.request.len);
        let taken_back = self
            .unanswered
            .entry((wanted.request.piece.0, wanted.request.begin))
            .or_insert(TakenBack { times: 0, buffer: Weak::new(), len });
        taken_back.times += 1;
        taken_back.buffer = buffer;
    }

    fn reject(&mut self, request: BlockRequest) {
        if self.ctx.fast && self.out.len() < OUT_MAX {
            Message::Reject(request).encode(&mut self.out);
        }
    }

    /// Decodes what has come; what the owner needs to know is in `items` afterwards. True when there may be more:
    /// to be called again when the owner was told.
    fn understand(&mut self, input: &mut BytesMut) -> Result<bool, SessionEnd> {
        if !self.bounded
            && let Some(known) = self.ctx.known.get()
        {
            self.bounded = true;
            self.decoder.set_max_frame(wire::max_frame(known.geometry.pieces()));
        }
        let mut extended = 0;
        while self.items.len() < ITEMS_MAX && extended < EXTENDED_MAX {
            let Some(message) = self.decoder.decode(input)? else { return Ok(false) };
            if let Some(known) = self.ctx.known.get() {
                message.check(&known.geometry)?;
            }
            match message {
                Message::KeepAlive | Message::Suggest(_) | Message::Unknown(_) => {}
                Message::Port(port) => {
                    if let Some(theirs) = self.ctx.dht.as_mut().and_then(|dht| dht.theirs.take()) {
                        theirs(port);
                    }
                }
                Message::Choke => {
                    if !self.ctx.fast {
                        self.excused += self.asked.len() as u64;
                        self.asked.clear();
                    }
                    self.items.push(Item::Choked(true));
                }
                Message::Unchoke => self.items.push(Item::Choked(false)),
                Message::Interested => self.items.push(Item::Interested(true)),
                Message::NotInterested => self.items.push(Item::Interested(false)),
                Message::Have(piece) => self.items.push(Item::Have(piece)),
                Message::HaveAll | Message::HaveNone if self.said_what => {
                    // Each costs us a look at every piece.
                    return Err(SessionEnd::Ours("it says twice what it has".into()));
                }
                Message::Bitfield(_) if self.bitfields == BITFIELDS_MAX => {
                    return Err(SessionEnd::Ours("it says too often what it has".into()));
                }
                Message::Bitfield(bits) => {
                    self.bitfields += u32::from(self.said_what);
                    self.said_what = true;
                    self.items.push(Item::Bitfield(bits));
                }
                Message::HaveAll => {
                    self.said_what = true;
                    self.items.push(Item::HaveAll);
                }
                Message::HaveNone => {
                    self.said_what = true;
                    self.items.push(Item::HaveNone);
                }
                Message::AllowedFast(piece) => self.items.push(Item::AllowedFast(piece)),
                Message::Extended { id, payload } => {
                    extended += 1;
                    self.items.push(Item::Extended(id, payload));
                }
                Message::Piece { piece, begin, data } => {
                    // Either answer will do for a block that was asked for again meanwhile.
                    let taken_back = self.answers_a_cancel((piece.0, begin));
                    let asked = self.asked.get(&(piece.0, begin));
                    let fits = asked.is_some_and(|w| w.request.len as usize == data.len());
                    let len = data.len() as u64;
                    let block = BlockRef { piece, block: BlockIndex(begin / BLOCK_LEN) };
                    match self.asked.remove(&(piece.0, begin)) {
                        Some(wanted) if fits => {
                            self.block_came(block, data, wanted.buffer);
                        }
                        Some(_) => {
                            return Err(SessionEnd::Ours(
                                "it sent a block of another length than asked".into(),
                            ));
                        }
                        // Cancelled, and sent before the cancel arrived there.
                        None => {
                            let Some(left) = self.excused.checked_sub(1) else {
                                return Err(SessionEnd::Ours("it sends blocks nobody asked for".into()));
                            };
                            self.excused = left;
                            let useful = taken_back.filter(|t| u64::from(t.len) == len);
                            match useful.and_then(|t| t.buffer.upgrade()) {
                                Some(buffer) => self.block_came(block, data, buffer),
                                None => _ = self.ctx.counters.wasted.fetch_add(len, Ordering::Relaxed),
                            }
                        }
                    }
                }
                Message::Reject(request) => {
                    if self.answers_a_cancel((request.piece.0, request.begin)).is_some() {
                        self.items.push(Item::Recalled(block_of(request)));
                    } else if self.asked.remove(&(request.piece.0, request.begin)).is_some() {
                        self.items.push(Item::Rejected(block_of(request)));
                    }
                }
                Message::Request(request) => self.asked_for(request),
                Message::Cancel(request) => {
                    let before = self.requests.len() + self.ready.len();
                    self.requests.retain(|r| *r != request);
                    self.ready.retain(|(r, _)| *r != request);
                    if self.requests.len() + self.ready.len() < before {
                        self.reject(request);
                    } else if self.serving > 0 && self.taken_back.len() < REQUESTS_MAX {
                        self.taken_back.insert(request);
                    }
                }
            }
        }
        Ok(true)
    }

    /// A block that is of use came.
    fn block_came(&mut self, block: BlockRef, data: Bytes, buffer: Arc<PieceBuffer>) {
        let len = data.len() as u64;
        let data = self.share.keep(data);
        let counter = match buffer.put(block.block, data, self.ctx.key) {
            true => &self.ctx.counters.down,
            false => &self.ctx.counters.wasted,
        };
        counter.fetch_add(len, Ordering::Relaxed);
        self.items.push(Item::Block { block, buffer });
    }

    /// The request that was cancelled and that an answer for this block belongs to: with the fast extension each
    /// request is answered, cancelled or not, by the block or by a reject, and in order (BEP 6). Without this, the
    /// reject of a cancelled request would be taken for a refusal of the same block asked for again.
    fn answers_a_cancel(&mut self, block: (u32, u32)) -> Option<TakenBack> {
        let taken_back = self.unanswered.get_mut(&block)?;
        taken_back.times -= 1;
        let last = taken_back.times == 0;
        let answered = TakenBack { buffer: taken_back.buffer.clone(), ..*taken_back };
        if last {
            self.unanswered.remove(&block);
        }
        Some(answered)
    }

    /// The peer asks for a block.
    fn asked_for(&mut self, request: BlockRequest) {
        if self.choking && self.allowance > 0 && self.allowed.contains(&request.piece) {
            self.allowance -= 1;
        } else if self.choking {
            return self.reject(request);
        }
        let refuse = self.ctx.known.get().is_none()
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
            Some(data) if !taken_back && (!self.choking || self.allowed.contains(&request.piece)) => {
                self.ready.push_back((request, data))
            }
            _ => self.reject(request),
        }
    }

    /// Adds served blocks to the write buffer, as long as it holds little.
    fn send_ready(&mut self) {
        while self.out.len() < SERVED_LOW
            && let Some((request, data)) = self.ready.pop_front()
        {
            if self.out.is_empty() {
                self.progress = Instant::now();
            }
            wire::encode_piece_header(request.piece, request.begin, data.len() as u32, &mut self.out);
            self.out.extend_from_slice(&data);
            self.ctx.counters.up.fetch_add(data.len() as u64, Ordering::Relaxed);
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

/// The block that a request is for.
fn block_of(request: BlockRequest) -> BlockRef {
    BlockRef { piece: request.piece, block: BlockIndex(request.begin / BLOCK_LEN) }
}

/// Waits for a permit; for ever when there is none to wait for. Cancel-safe: the permit keeps its place.
async fn wait_for(permit: &mut Option<Permit>) {
    match permit {
        Some(permit) => permit.as_mut().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::sync::oneshot;
    use torrentfs_fs::lock::{Rank, RankedMutex};

    use super::*;
    use crate::metainfo::geometry::Geometry;
    use crate::peer::buffer::PieceBuffer;
    use crate::peer::event::{BlockSource, Known};
    use crate::sync::tasks::TaskScope;

    const PIECES: u32 = 1000;
    const PIECE: u32 = 4 * BLOCK_LEN;

    type Answer = (BlockRequest, mpsc::Sender<(BlockRequest, Option<Bytes>)>);

    /// Gives zeros for even pieces, nothing for odd ones; keeps the requests while it holds back.
    struct Zeros {
        hold: AtomicBool,
        held: RankedMutex<Vec<Answer>>,
        given: AtomicUsize,
    }

    impl Default for Zeros {
        fn default() -> Self {
            Self {
                hold: AtomicBool::new(false),
                held: RankedMutex::new(Rank::Leaf, "held requests", Vec::new()),
                given: AtomicUsize::new(0),
            }
        }
    }

    impl Zeros {
        fn answer((request, to): Answer) {
            let data = (request.piece.0 % 2 == 0).then(|| Bytes::from(vec![0; request.len as usize]));
            to.try_send((request, data)).expect("room for the answer");
        }

        fn release(&self) {
            self.hold.store(false, Ordering::SeqCst);
            let held = std::mem::take(&mut *self.held.lock());
            held.into_iter().for_each(Self::answer);
        }
    }

    impl BlockSource for Zeros {
        fn fetch(&self, request: BlockRequest, to: mpsc::Sender<(BlockRequest, Option<Bytes>)>) -> bool {
            if self.hold.load(Ordering::SeqCst) {
                self.held.lock().push((request, to));
            } else {
                Self::answer((request, to));
                self.given.fetch_add(1, Ordering::SeqCst);
            }
            true
        }
    }

    /// A session, the other end of its connection, and what its owner has of it.
    struct Rig {
        far: DuplexStream,
        read: BytesMut,
        outbox: Arc<Outbox>,
        counters: Arc<Counters>,
        events: mpsc::Receiver<PeerEvent>,
        end: oneshot::Receiver<SessionEnd>,
        zeros: Arc<Zeros>,
        /// The far end's, of encryption.
        line: Line,
        /// What is waited for comes within this, or the test fails.
        patience: Duration,
        _scope: TaskScope,
    }

    fn context(fast: bool, events: mpsc::Sender<PeerEvent>, zeros: Arc<Zeros>) -> Context {
        let geometry = Arc::new(Geometry::contiguous(PIECE, &[u64::from(PIECE) * u64::from(PIECES)]));
        let known = OnceLock::new();
        let _ = known.set(Known { geometry, source: zeros });
        Context {
            key: PeerKey(1),
            fast,
            known: Arc::new(known),
            outbox: Arc::default(),
            events,
            counters: Arc::default(),
            down_limits: Chain::new([]),
            up_limits: Chain::new([]),
            socket: None,
            dht: None,
            line: Line::default(),
        }
    }

    fn rig(fast: bool, room: usize, events: usize) -> Rig {
        rig_over((Line::default(), Line::default()), fast, room, events)
    }

    fn rig_over((near_line, line): (Line, Line), fast: bool, room: usize, events: usize) -> Rig {
        let (near, far) = tokio::io::duplex(room);
        let (tell, events) = mpsc::channel(events);
        let (ended, end) = oneshot::channel();
        let zeros = Arc::new(Zeros::default());
        let mut context = context(fast, tell, zeros.clone());
        context.line = near_line;
        let (outbox, counters) = (context.outbox.clone(), context.counters.clone());
        let scope = TaskScope::root();
        scope.spawn("session", async move {
            let _ = ended.send(run(near, context).await);
        });
        Rig {
            far,
            read: BytesMut::new(),
            outbox,
            counters,
            events,
            end,
            zeros,
            line,
            patience: Duration::from_secs(20),
            _scope: scope,
        }
    }

    impl Rig {
        async fn send(&mut self, messages: &[Message]) {
            let mut bytes = BytesMut::new();
            messages.iter().for_each(|m| m.encode(&mut bytes));
            self.line.seal(&mut bytes);
            self.far.write_all(&bytes).await.unwrap();
        }

        /// The next message of ours.
        async fn next(&mut self) -> Message {
            let decoder = Decoder::new(Limits { max_frame: 1 << 20 });
            loop {
                if let Some(message) = decoder.decode(&mut self.read).unwrap() {
                    return message;
                }
                let read = tokio::time::timeout(self.patience, self.far.read_buf(&mut self.read)).await;
                let read = read.expect("a message").unwrap();
                assert!(read > 0, "the session closed");
                let came = self.read.len() - read;
                self.line.open(&mut self.read[came..]);
            }
        }

        async fn said(&mut self) -> Vec<Item> {
            let event = tokio::time::timeout(self.patience, self.events.recv()).await;
            match event.expect("an event").expect("the session lives") {
                PeerEvent::Said { items, .. } => items,
                _ => panic!("something else"),
            }
        }

        async fn ended(&mut self) -> String {
            let end = tokio::time::timeout(self.patience, &mut self.end).await;
            end.expect("it ends").expect("an end").to_string()
        }

        /// Asks for a block, and has the request arrive.
        async fn ask(&mut self, begin: u32) -> Wanted {
            let wanted = wanted(begin);
            self.outbox.request(vec![wanted.clone()]);
            assert_eq!(self.next().await, Message::Request(wanted.request));
            wanted
        }
    }

    fn request(piece: u32, begin: u32) -> BlockRequest {
        BlockRequest { piece: PieceIndex(piece), begin, len: BLOCK_LEN }
    }

    fn wanted(begin: u32) -> Wanted {
        Wanted {
            request: request(0, begin),
            buffer: Arc::new(PieceBuffer::new(PieceIndex(0), 4)),
            urgent: false,
        }
    }

    fn piece(begin: u32, len: usize) -> Message {
        Message::Piece { piece: PieceIndex(0), begin, data: vec![1; len].into() }
    }

    fn whole(begin: u32) -> Message {
        piece(begin, BLOCK_LEN as usize)
    }

    #[tokio::test]
    async fn nodes_of_the_dht_are_told_once_and_behind_what_we_have() {
        let (near, far) = tokio::io::duplex(4096);
        let (tell, _events) = mpsc::channel(8);
        let mut context = context(true, tell, Arc::default());
        let (told, mut heard) = mpsc::channel(8);
        let theirs: Box<dyn Fn(u16) + Send + Sync> = Box::new(move |port| told.try_send(port).unwrap());
        context.dht = Some(DhtPorts { ours: Some(6881), theirs: Some(theirs) });
        let outbox = context.outbox.clone();
        let scope = TaskScope::root();
        scope.spawn("session", async move {
            run(near, context).await;
        });
        let (mut read, mut write) = tokio::io::split(far);
        let mut bytes = BytesMut::new();
        [Message::Port(7), Message::Port(8)].iter().for_each(|message| message.encode(&mut bytes));
        write.write_all(&bytes).await.unwrap();
        assert_eq!(heard.recv().await, Some(7));
        // It is dropped with the first.
        assert_eq!(heard.recv().await, None);
        let mut expected = BytesMut::new();
        outbox.first(Message::HaveNone);
        for message in [Message::HaveNone, Message::Port(6881)] {
            message.encode(&mut expected);
        }
        let mut said = vec![0; expected.len()];
        read.read_exact(&mut said).await.unwrap();
        assert_eq!(said, expected);
        scope.cancel();
    }

    #[tokio::test]
    async fn a_block_goes_round() {
        let mut rig = rig(true, 1 << 20, 16);
        let wanted = rig.ask(BLOCK_LEN).await;
        rig.send(&[whole(BLOCK_LEN)]).await;
        let items = rig.said().await;
        let [Item::Block { block, buffer }] = &items[..] else { panic!("{items:?}") };
        assert_eq!((block.piece, block.block), (PieceIndex(0), BlockIndex(1)));
        assert!(Arc::ptr_eq(buffer, &wanted.buffer));
        assert_eq!(wanted.buffer.sender(BlockIndex(1)), Some(PeerKey(1)));
        assert_eq!(rig.counters.down.load(Ordering::Relaxed), u64::from(BLOCK_LEN));
        assert_eq!(rig.counters.wasted.load(Ordering::Relaxed), 0);
        rig.outbox.disconnect("enough");
        assert_eq!(rig.ended().await, "enough");
    }

    #[tokio::test]
    async fn with_encryption_each_byte_is_sealed_once_however_it_is_written() {
        let (mut near, far) = Line::pair();
        // Came behind the handshake, in plain by now.
        Message::Unchoke.encode(&mut near.early);
        Message::Have(PieceIndex(3)).encode(&mut near.early);
        let mut left = near.early.split_off(near.early.len() - 2);
        let mut rig = rig_over((near, far), true, 48, 256);
        assert!(matches!(rig.said().await[..], [Item::Choked(false)]));
        // The rest of a message that was cut, then others, in writes of 48 bytes at most on either side.
        rig.line.seal(&mut left);
        rig.far.write_all(&left).await.unwrap();
        assert!(matches!(rig.said().await[..], [Item::Have(PieceIndex(3))]));
        rig.outbox.choke(false);
        assert_eq!(rig.next().await, Message::Unchoke);
        for round in 0..20 {
            let asked = rig.ask(round % 4 * BLOCK_LEN).await;
            rig.send(&[Message::Request(request(2, 0)), Message::Have(PieceIndex(round))]).await;
            let data = Bytes::from(vec![0; BLOCK_LEN as usize]);
            assert_eq!(rig.next().await, Message::Piece { piece: PieceIndex(2), begin: 0, data });
            rig.outbox.cancel(asked.request);
            assert_eq!(rig.next().await, Message::Cancel(asked.request));
            rig.send(&[Message::Reject(asked.request)]).await;
        }
    }

    #[tokio::test]
    async fn what_a_peer_got_since_may_come_as_a_bitfield() {
        let mut greedy = rig(true, 1 << 20, 256);
        let bits = Bytes::from(vec![0x80; PIECES.div_ceil(8) as usize]);
        greedy.send(&[Message::HaveNone]).await;
        assert!(matches!(greedy.said().await[..], [Item::HaveNone]));
        for _ in 0..BITFIELDS_MAX {
            greedy.send(&[Message::Bitfield(bits.clone())]).await;
            assert!(matches!(&greedy.said().await[..], [Item::Bitfield(said)] if *said == bits));
        }
        greedy.send(&[Message::Bitfield(bits.clone())]).await;
        assert_eq!(greedy.ended().await, "it says too often what it has");
        let mut twice = rig(true, 1 << 20, 256);
        twice.send(&[Message::Bitfield(bits), Message::HaveAll]).await;
        assert_eq!(twice.ended().await, "it says twice what it has");
    }

    #[tokio::test]
    async fn a_cancelled_block_that_comes_all_the_same_is_welcome() {
        let mut rig = rig(true, 1 << 20, 16);
        let cancelled = rig.ask(0).await;
        rig.outbox.cancel(cancelled.request);
        assert_eq!(rig.next().await, Message::Cancel(cancelled.request));
        rig.send(&[whole(0), Message::Have(PieceIndex(3))]).await;
        assert!(matches!(rig.said().await[..], [Item::Block { .. }, Item::Have(PieceIndex(3))]));
        assert_eq!(rig.counters.down.load(Ordering::Relaxed), u64::from(BLOCK_LEN));
        assert_eq!(cancelled.buffer.sender(BlockIndex(0)), Some(PeerKey(1)));
        // When nobody makes its piece any more it is wasted, and harmless.
        let cancelled = rig.ask(0).await;
        rig.outbox.cancel(cancelled.request);
        assert_eq!(rig.next().await, Message::Cancel(cancelled.request));
        drop(cancelled);
        rig.send(&[whole(0), Message::Have(PieceIndex(3))]).await;
        assert!(matches!(rig.said().await[..], [Item::Have(PieceIndex(3))]));
        assert_eq!(rig.counters.wasted.load(Ordering::Relaxed), u64::from(BLOCK_LEN));
        // Asked for again, into another buffer: that is where it goes.
        let again = rig.ask(0).await;
        rig.send(&[whole(0)]).await;
        assert!(
            matches!(&rig.said().await[..], [Item::Block { buffer, .. }] if Arc::ptr_eq(buffer, &again.buffer))
        );
    }

    #[tokio::test]
    async fn the_answer_to_a_cancel_is_no_refusal_of_the_block_asked_for_again() {
        // The peer rejects what was cancelled when the same block is already asked for again.
        let mut rig = rig(true, 1 << 20, 16);
        let first = rig.ask(0).await;
        rig.outbox.cancel(first.request);
        assert_eq!(rig.next().await, Message::Cancel(first.request));
        let again = rig.ask(0).await;
        rig.send(&[Message::Reject(first.request), whole(0)]).await;
        let items = rig.said().await;
        assert!(
            matches!(&items[..], [Item::Recalled(_), Item::Block { buffer, .. }] if Arc::ptr_eq(buffer, &again.buffer)),
            "{items:?}"
        );
        // Or it had sent the block before the cancel came: that will do, and the second answer is excused.
        let first = rig.ask(BLOCK_LEN).await;
        rig.outbox.cancel(first.request);
        assert_eq!(rig.next().await, Message::Cancel(first.request));
        let again = rig.ask(BLOCK_LEN).await;
        rig.send(&[whole(BLOCK_LEN), whole(BLOCK_LEN), Message::Reject(again.request)]).await;
        let items = rig.said().await;
        assert!(
            matches!(&items[..], [Item::Block { buffer, .. }] if Arc::ptr_eq(buffer, &again.buffer)),
            "{items:?}"
        );
        // A refusal of what is asked for once is one.
        let wanted = rig.ask(2 * BLOCK_LEN).await;
        rig.send(&[Message::Reject(wanted.request)]).await;
        assert!(matches!(rig.said().await[..], [Item::Rejected(_)]));
    }

    #[tokio::test]
    async fn a_block_of_another_length_ends_it() {
        let mut rig = rig(true, 1 << 20, 16);
        rig.ask(0).await;
        rig.send(&[piece(0, 100)]).await;
        assert!(rig.ended().await.contains("another length"));
    }

    #[tokio::test]
    async fn what_nobody_asked_for_is_counted_and_ends_it_when_it_goes_on() {
        let mut rig = rig(true, 1 << 20, 16);
        for _ in 0..UNASKED_MAX {
            rig.send(&[piece(0, 100)]).await;
        }
        rig.send(&[Message::Have(PieceIndex(1))]).await;
        assert_eq!(rig.said().await.len(), 1);
        assert_eq!(rig.counters.wasted.load(Ordering::Relaxed), 100 * UNASKED_MAX);
        rig.send(&[piece(0, 100)]).await;
        assert!(rig.ended().await.contains("nobody asked"));
    }

    #[tokio::test]
    async fn what_came_before_a_breach_of_the_protocol_is_told() {
        let mut rig = rig(true, 1 << 20, 16);
        rig.ask(0).await;
        rig.send(&[whole(0), Message::Have(PieceIndex(PIECES))]).await;
        assert!(matches!(rig.said().await[..], [Item::Block { .. }]));
        assert!(rig.ended().await.contains("piece 1000"));
    }

    #[tokio::test]
    async fn rejects_and_chokes_free_what_was_asked() {
        // By name with the fast extension, all at once without it.
        let mut fast = rig(true, 1 << 20, 16);
        let wanted = fast.ask(0).await;
        fast.send(&[Message::Reject(request(0, BLOCK_LEN)), Message::Choke, Message::Reject(wanted.request)])
            .await;
        let items = fast.said().await;
        assert!(
            matches!(&items[..], [Item::Choked(true), Item::Rejected(b)] if b.block == BlockIndex(0)),
            "{items:?}"
        );
        let mut slow = rig(false, 1 << 20, 16);
        slow.ask(0).await;
        slow.send(&[Message::Choke, whole(0), Message::Unchoke]).await;
        assert!(matches!(slow.said().await[..], [Item::Choked(true), Item::Choked(false)]));
        assert_eq!(slow.counters.wasted.load(Ordering::Relaxed), u64::from(BLOCK_LEN));
    }

    #[tokio::test]
    async fn blocks_are_served_to_who_is_let_in() {
        let mut rig = rig(true, 1 << 20, 16);
        rig.send(&[Message::Request(request(2, 0))]).await;
        assert_eq!(rig.next().await, Message::Reject(request(2, 0)), "it is choked");
        rig.outbox.choke(false);
        assert_eq!(rig.next().await, Message::Unchoke);
        rig.send(&[Message::Request(request(2, 0)), Message::Request(request(3, 0))]).await;
        let Message::Piece { piece, begin: 0, data } = rig.next().await else { panic!("a block") };
        assert_eq!((piece, data.len()), (PieceIndex(2), BLOCK_LEN as usize));
        assert_eq!(rig.next().await, Message::Reject(request(3, 0)), "we don't have it");
        assert_eq!(rig.counters.up.load(Ordering::Relaxed), u64::from(BLOCK_LEN));
        // Taken back while it is read, and while it waits; then choked.
        rig.zeros.hold.store(true, Ordering::SeqCst);
        let many: Vec<_> = (0..12).map(|n| Message::Request(request(4 + 2 * n, 0))).collect();
        rig.send(&many).await;
        while rig.zeros.held.lock().len() < SERVING_MAX {
            tokio::task::yield_now().await;
        }
        rig.send(&[Message::Cancel(request(4, 0)), Message::Cancel(request(26, 0)), Message::Interested])
            .await;
        assert!(matches!(rig.said().await[..], [Item::Interested(true)]));
        assert_eq!(rig.next().await, Message::Reject(request(26, 0)), "it still waited");
        rig.zeros.release();
        let mut served = Vec::new();
        let mut rejected = Vec::new();
        for _ in 0..11 {
            match rig.next().await {
                Message::Piece { piece, .. } => served.push(piece.0),
                Message::Reject(request) => rejected.push(request.piece.0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((served.len(), rejected), (10, vec![4]));
        rig.zeros.hold.store(true, Ordering::SeqCst);
        rig.send(&many).await;
        rig.send(&[Message::NotInterested]).await;
        rig.said().await;
        rig.outbox.choke(true);
        assert_eq!(rig.next().await, Message::Choke);
        rig.zeros.release();
        for _ in 0..12 {
            assert!(matches!(rig.next().await, Message::Reject(_)), "each by name");
        }
    }

    #[tokio::test]
    async fn a_choked_peer_gets_what_it_is_allowed_and_no_more() {
        let mut rig = rig(true, 1 << 20, 16);
        rig.outbox.allow(vec![PieceIndex(2)]);
        assert_eq!(rig.next().await, Message::AllowedFast(PieceIndex(2)));
        // Four blocks in a piece, each twice.
        for n in 0..8 {
            let asked = request(2, n % 4 * BLOCK_LEN);
            rig.send(&[Message::Request(asked)]).await;
            assert!(matches!(rig.next().await, Message::Piece { begin, .. } if begin == asked.begin), "{n}");
        }
        for asked in [request(2, 0), request(4, 0)] {
            rig.send(&[Message::Request(asked)]).await;
            assert_eq!(rig.next().await, Message::Reject(asked));
        }
        rig.outbox.choke(false);
        assert_eq!(rig.next().await, Message::Unchoke);
        rig.send(&[Message::Request(request(2, 0))]).await;
        assert!(matches!(rig.next().await, Message::Piece { .. }));
    }

    #[tokio::test]
    async fn what_a_choked_peer_was_allowed_may_be_taken_back() {
        let mut rig = rig(true, 1 << 20, 16);
        rig.outbox.allow(vec![PieceIndex(2)]);
        assert_eq!(rig.next().await, Message::AllowedFast(PieceIndex(2)));
        rig.send(&[Message::Request(request(2, 0))]).await;
        assert!(matches!(rig.next().await, Message::Piece { .. }));
        rig.outbox.allow_nothing();
        // What is told behind it is heard behind it.
        rig.outbox.have(&[PieceIndex(3)]);
        assert_eq!(rig.next().await, Message::Have(PieceIndex(3)));
        rig.send(&[Message::Request(request(2, 0))]).await;
        assert_eq!(rig.next().await, Message::Reject(request(2, 0)));
    }

    #[tokio::test]
    async fn what_we_ask_for_overtakes_what_we_serve() {
        const ROOM: usize = 4096;
        let mut rig = rig(true, ROOM, 16);
        rig.outbox.choke(false);
        assert_eq!(rig.next().await, Message::Unchoke);
        let many: Vec<_> = (0..100).map(|n| Message::Request(request(2 * n, 0))).collect();
        rig.send(&many).await;
        // It has read what it may, and the peer takes nothing.
        while rig.zeros.given.load(Ordering::SeqCst) < SERVING_MAX {
            tokio::task::yield_now().await;
        }
        let ours = wanted(0);
        rig.outbox.request(vec![ours.clone()]);
        let mut before = 0;
        loop {
            match rig.next().await {
                Message::Piece { data, .. } => before += data.len(),
                Message::Request(request) => break assert_eq!(request, ours.request),
                other => panic!("{other:?}"),
            }
        }
        let most = SERVED_LOW + 2 * BLOCK_LEN as usize + ROOM;
        assert!(before <= most, "{before} bytes of others' blocks before it");
        // They all come.
        while before < 100 * BLOCK_LEN as usize {
            let Message::Piece { data, .. } = rig.next().await else { panic!("a block") };
            before += data.len();
        }
        assert_eq!(rig.counters.up.load(Ordering::Relaxed), before as u64);
    }

    #[tokio::test]
    async fn r1_a_peer_that_does_not_read_holds_up_neither_demands_nor_blocks() {
        let mut rig = rig(true, 64, 16);
        let first = rig.ask(0).await;
        // Its write buffer is filled beyond the mark, and the peer takes nothing.
        (0..20_000).for_each(|n| rig.outbox.have(&[PieceIndex(n % PIECES)]));
        while !rig.outbox.is_quiet() {
            tokio::task::yield_now().await;
        }
        let (second, third) = (wanted(BLOCK_LEN), wanted(2 * BLOCK_LEN));
        rig.outbox.request(vec![second.clone()]);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.outbox.pending_requests(), 1, "it can't be sent");
        rig.outbox.cancel(second.request);
        rig.outbox.request(vec![third.clone()]);
        assert_eq!(rig.outbox.pending_requests(), 1, "what is desired changed at once");
        // Blocks flow meanwhile.
        rig.send(&[whole(0)]).await;
        assert!(
            matches!(&rig.said().await[..], [Item::Block { buffer, .. }] if Arc::ptr_eq(buffer, &first.buffer))
        );
        // When it reads again, it hears of the last state only.
        loop {
            match rig.next().await {
                Message::Have(_) => {}
                Message::Request(request) => break assert_eq!(request, third.request),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn r1_a_peer_that_does_not_read_can_be_disconnected() {
        let mut rig = rig(true, 64, 16);
        (0..20_000).for_each(|n| rig.outbox.have(&[PieceIndex(n % PIECES)]));
        while !rig.outbox.is_quiet() {
            tokio::task::yield_now().await;
        }
        rig.outbox.disconnect("banned");
        assert_eq!(rig.ended().await, "banned");
    }

    #[tokio::test]
    async fn l2_a_full_channel_to_the_owner_holds_up_the_session_alone() {
        let mut rig = rig(true, 1 << 16, 1);
        // Nobody takes the events; the peer goes on until its own socket is full.
        let mut haves = BytesMut::new();
        (0..1000).for_each(|_| Message::Have(PieceIndex(1)).encode(&mut haves));
        let flood = async {
            loop {
                rig.far.write_all(&haves).await.unwrap();
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(50), flood).await.is_err(),
            "the peer is slowed down"
        );
        // The owner says what it likes without waiting, and hears the rest when it listens again.
        rig.outbox.request(vec![wanted(0)]);
        rig.outbox.interested(true);
        assert!(rig.said().await.len() <= ITEMS_MAX);
        drop(rig.events);
        assert_eq!((&mut rig.end).await.unwrap().to_string(), "the torrent is closing");
    }

    #[tokio::test]
    async fn many_small_messages_reach_the_owner_in_bounded_batches() {
        let mut rig = rig(true, 1 << 20, 256);
        rig.send(&vec![Message::Unchoke; 50_000]).await;
        let mut items = 0;
        while items < 50_000 {
            let batch = rig.said().await.len();
            assert!(batch <= ITEMS_MAX);
            items += batch;
        }
        // What takes longer to read comes in smaller ones, between which others have their turn.
        let hello = Message::Extended { id: 0, payload: Bytes::from_static(b"de") };
        rig.send(&vec![hello; 1000]).await;
        let mut items = 0;
        while items < 1000 {
            let batch = rig.said().await.len();
            assert!(batch <= EXTENDED_MAX);
            items += batch;
        }
    }

    #[tokio::test]
    async fn a_flood_of_requests_does_not_grow_what_we_keep() {
        let (events, _kept) = mpsc::channel(1);
        let mut session = Session::new(context(true, events, Arc::default()));
        for n in 0..500_000 {
            session.asked_for(request(n % PIECES, 0));
        }
        assert!(session.out.len() < OUT_MAX + 100, "{}", session.out.len());
        session.choking = false;
        for n in 0..500_000 {
            session.asked_for(request(n % PIECES, 0));
        }
        assert_eq!(session.requests.len(), REQUESTS_MAX);
        assert!(session.out.len() < OUT_MAX + 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_peer_hears_that_we_are_alive_and_is_dropped_when_it_is_silent() {
        let mut rig = rig(true, 1 << 16, 16);
        rig.patience = 100 * timeouts::PEER_IDLE;
        let start = Instant::now();
        assert_eq!(rig.next().await, Message::KeepAlive);
        let after = start.elapsed();
        assert!(
            after >= timeouts::PEER_KEEPALIVE && after < timeouts::PEER_KEEPALIVE + 2 * LOOK,
            "{after:?}"
        );
        rig.send(&[Message::KeepAlive]).await;
        let spoke = Instant::now();
        assert!(rig.ended().await.contains("silent"));
        let silent = spoke.elapsed();
        assert!(silent >= timeouts::PEER_IDLE && silent < timeouts::PEER_IDLE + 2 * LOOK, "{silent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_dropped() {
        let mut rig = rig(true, 16, 16);
        rig.patience = 100 * timeouts::PEER_IDLE;
        (0..100).for_each(|n| rig.outbox.have(&[PieceIndex(n)]));
        let start = Instant::now();
        assert!(rig.ended().await.contains("took nothing"));
        let after = start.elapsed();
        assert!(
            after >= timeouts::PEER_WRITE_STALL && after < timeouts::PEER_WRITE_STALL + 2 * LOOK,
            "{after:?}"
        );
    }

    #[test]
    fn blocks_among_other_things_are_copied_out_of_their_buffer() {
        let mut share = Share::default();
        let read = |share: &mut Share, blocks: u64, other: u64| {
            share.read(blocks * u64::from(BLOCK_LEN) + other);
            let data = Bytes::from(vec![0; BLOCK_LEN as usize]);
            let at = data.as_ptr();
            (0..blocks).all(|_| share.keep(data.clone()).as_ptr() == at)
        };
        assert!(read(&mut share, 1, 300 << 10), "a bitfield first");
        assert!((0..100).all(|_| read(&mut share, 15, 4096)), "an honest peer");
        let copied = (0..100).filter(|_| !read(&mut share, 1, 240 << 10)).count();
        assert!(copied > 70, "{copied}");
    }

    #[tokio::test]
    async fn a_closed_connection_ends_it() {
        let rig = rig(true, 1 << 16, 16);
        drop(rig.far);
        let end = rig.end.await.unwrap();
        assert!(matches!(end, SessionEnd::Closed | SessionEnd::Io(_)), "{end}");
    }
}
