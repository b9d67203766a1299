//! One uTP connection as a state machine: no socket, no task, no clock. `now` is an argument, packets come in by
//! [`Conn::received`] and go out through what [`Conn::poll`] is given.
//!
//! **Life.** Who dials sends a SYN, three times at most; the answer opens the connection. Who accepts answers the SYN and
//! counts it as open with the first packet that acknowledges the answer: until then the other side may be an invented
//! address. The end of each direction is a FIN behind its last byte. After [`Conn::let_go`] what comes is
//! dropped, and [`LINGER`] later nothing is waited for any more.
//!
//! **Flow of a poll.** What time has run out for; packets that were lost, then new ones, as far as the windows allow and
//! the network takes them; an acknowledgement if one is due that no data packet took along. The answer says when to come again.
//!
//! **Patience.** A packet is sent again when it was overtaken ([`super::send`]), or when nothing was acknowledged for a time-out,
//! which doubles. [`GIVE_UP`] of those without a word from the other side end the connection. Who is alive and
//! has no room is asked again and again, for ever: how long that is borne is the matter of who uses the connection.
//!
//! Small packets aren't held back until there are more bytes for them (no Nagle): who writes here writes whole
//! buffers, and a request that waits for an acknowledgement is a slower seek.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::ledbat::Ledbat;
use super::packet::{HEADER, Packet, SACK_MAX, Sack, Type};
use super::receive::Receive;
use super::rtt::{RTO_MAX, Rtt};
use super::send::{Pick, Send};
use super::seq::Seq;

/// Between a SYN and the next, first; doubled once. Together with the last wait it is longer than
/// [`crate::sync::timeouts::PEER_CONNECT`].
const SYN_AGAIN: Duration = Duration::from_secs(1);
/// How often a SYN is sent.
const SYN_TIMES: u32 = 3;
/// For who sent a SYN to send data: its next SYNs and a slow line.
pub const GREETING: Duration = Duration::from_secs(10);
/// Time-outs in a row without a word from the other side: three quarters of a minute, as long as a line is away that
/// comes back.
const GIVE_UP: u32 = 7;
/// For the last bytes of a connection that nobody wants any more.
pub const LINGER: Duration = Duration::from_secs(3);
/// Silence of ours after which we say that we are there: routers forget UDP after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(29);
/// Time-outs after which a path on which no full packet ever arrived is taken to eat them.
const NARROW: u32 = 3;

/// What a connection is like.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Bytes of a datagram at most, the header included.
    pub packet: usize,
    /// What stamps count from.
    pub epoch: Instant,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// We sent a SYN.
    Dialling,
    /// We answered a SYN.
    Greeting,
    /// Both know of each other.
    Open,
    /// It is over, and can be forgotten.
    Ended(End),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides said all they had to say, or we let go of it.
    Closed,
    /// The other side knows nothing of it, or gave it up.
    Reset,
    /// Nothing is heard of the other side.
    TimedOut,
    /// As before, and no packet of full size has ever arrived there.
    Narrow,
}

/// What a poll leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// When to poll again, if nothing happens before.
    pub wake: Option<Instant>,
    /// The network took not everything: poll again when it does.
    pub blocked: bool,
    /// Where the connection is.
    pub state: State,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    setup: Setup,
    state: State,
    /// What the other side writes into packets to us, and we into those to it.
    receive_id: u16,
    send_id: u16,
    send: Send,
    receive: Receive,
    ledbat: Ledbat,
    rtt: Rtt,
    /// How much is on the way is bounded by our window.
    full: bool,
    /// What the other side has room for, and which acknowledgement said so.
    room: usize,
    room_of: Seq,
    /// How long their last packet took.
    diff: u32,
    last_sent: Instant,
    /// Time-outs without a word from them.
    silent: u32,
    /// How often the SYN was sent, and when it is due again; while greeting, when patience ends.
    syns: u32,
    due: Instant,
    /// Whether a packet of full size has arrived there.
    wide: bool,
    gone: Option<Instant>,
    buffer: Vec<u8>,
}

impl Conn {
    /// Dials: `id` is what the other side is to call us, `seq` the SYN's number. The first poll sends the SYN.
    pub fn dial(id: u16, seq: Seq, setup: Setup, now: Instant) -> Self {
        Self::new(State::Dialling, (id, id.wrapping_add(1)), seq.plus(1), Seq(0), setup, now)
    }

    /// Answers a SYN; `seq` is the number of our first packet. The first poll sends the answer.
    pub fn accept(syn: &Packet<'_>, seq: Seq, setup: Setup, now: Instant) -> Self {
        let mut conn =
            Self::new(State::Greeting, (syn.id.wrapping_add(1), syn.id), seq, syn.seq.plus(1), setup, now);
        conn.due = now + GREETING;
        conn.room = syn.window as usize;
        conn.diff = conn.stamp(now).wrapping_sub(syn.stamp);
        conn.receive.owe(now);
        conn
    }

    fn new(state: State, ids: (u16, u16), send: Seq, receive: Seq, setup: Setup, now: Instant) -> Self {
        let segment = setup.packet.saturating_sub(HEADER).max(1);
        Self {
            setup,
            state,
            receive_id: ids.0,
            send_id: ids.1,
            send: Send::new(send, now),
            receive: Receive::new(receive),
            ledbat: Ledbat::new(segment),
            rtt: Rtt::default(),
            full: false,
            room: 0,
            room_of: send.minus(1),
            diff: 0,
            last_sent: now,
            silent: 0,
            syns: 0,
            due: now,
            wide: false,
            gone: None,
            // Most half-open connections never need it.
            buffer: Vec::new(),
        }
    }

    /// What packets to us are called.
    pub fn receive_id(&self) -> u16 {
        self.receive_id
    }

    /// What packets of ours are called.
    pub fn send_id(&self) -> u16 {
        self.send_id
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Bytes of a packet's payload at most.
    fn segment(&self) -> usize {
        self.setup.packet.saturating_sub(HEADER).max(1)
    }

    fn stamp(&self, now: Instant) -> u32 {
        // Modulo 2³²: that is how stamps are.
        now.saturating_duration_since(self.setup.epoch).as_micros() as u32
    }

    /// Takes as much to be sent as there is room for, and says how much.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        self.send.write(bytes, now)
    }

    /// Bytes that [`Conn::write`] would take.
    pub fn write_room(&self) -> usize {
        self.send.room()
    }

    /// Moves what can be read to `to`; says how much.
    pub fn read(&mut self, to: &mut BytesMut) -> usize {
        self.receive.read(to)
    }

    /// So many bytes of what was read here weren't taken by whom they are for.
    pub fn set_unread(&mut self, bytes: usize, now: Instant) {
        self.receive.set_unread(bytes, now);
    }

    /// Whether the other side waits for room, so that it matters when something is taken.
    pub fn is_tight(&self) -> bool {
        self.receive.is_tight()
    }

    /// Whether all that the other side will ever say can be read.
    pub fn has_ended(&self) -> bool {
        self.receive.has_ended()
    }

    /// Bytes that are kept, to be sent and to be read.
    pub fn kept(&self) -> usize {
        self.send.kept() + self.receive.kept()
    }

    /// How long packets of ours wait in queues, as far as known.
    pub fn queueing(&self) -> Option<Duration> {
        self.ledbat.queueing()
    }

    /// The smoothed round trip, once measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.rtt.mean()
    }

    /// Bytes that may be on the way.
    pub fn window(&self) -> usize {
        self.ledbat.window()
    }

    /// Nothing more will be written. What comes can still be read.
    pub fn close(&mut self, now: Instant) {
        self.send.close(now);
    }

    /// Nobody wants it any more: nothing more is read. What is written still goes, to the end that [`Conn::close`] sets.
    pub fn let_go(&mut self, now: Instant) {
        if self.gone.is_none() {
            self.gone = Some(now + LINGER);
            if matches!(self.state, State::Dialling | State::Greeting) {
                self.state = State::Ended(End::Closed);
            }
        }
    }

    /// A packet came that is for this connection.
    pub fn received(&mut self, packet: &Packet<'_>, now: Instant) {
        match (packet.kind, self.state) {
            (_, State::Ended(_)) => {}
            (Type::Reset, _) => self.reset(packet),
            // The answer was lost.
            (Type::Syn, _) => {
                if self.syns == 0 && packet.seq.ahead_of(self.receive.ack()) <= 0 {
                    self.receive.owe(now);
                }
            }
            (Type::State, State::Dialling) => {
                if self.syns > 0 && packet.ack == self.send.next().minus(1) {
                    self.state = State::Open;
                    self.receive = Receive::new(packet.seq);
                    self.room = packet.window as usize;
                    self.heard(packet, now);
                    if self.syns == 1 {
                        self.rtt.sample(now.saturating_duration_since(self.last_sent));
                    }
                }
            }
            // What has overtaken the answer will be sent again: what its numbers count from isn't known yet.
            (_, State::Dialling) => {}
            (Type::Data | Type::Fin | Type::State, _) => {
                if self.send.believes(packet.ack, self.state == State::Greeting) {
                    self.state = State::Open;
                    self.take(packet, now);
                }
            }
        }
    }

    /// Others acknowledge the packet that they answer, or the last that they have: one of ours that was sent lately. Who
    /// only guesses the connection's number doesn't know that.
    fn reset(&mut self, packet: &Packet<'_>) {
        let behind = self.send.next().ahead_of(packet.ack);
        if (0..=4096).contains(&behind) {
            self.state = State::Ended(End::Reset);
        }
    }

    /// A packet that ends the connection at once.
    pub fn farewell(&self) -> Vec<u8> {
        Packet::reset(self.send_id, self.send.next(), self.receive.ack())
    }

    fn heard(&mut self, packet: &Packet<'_>, now: Instant) {
        self.silent = 0;
        self.diff = self.stamp(now).wrapping_sub(packet.stamp);
        self.ledbat.their_delay(self.diff, now);
    }

    fn take(&mut self, packet: &Packet<'_>, now: Instant) {
        self.heard(packet, now);
        let bare = packet.kind == Type::State;
        let acked = self.send.acked(packet.ack, packet.sack, bare, self.rtt.least(), now);
        if let Some(took) = acked.round_trip {
            self.rtt.sample(took);
        }
        if acked.packets > 0 {
            self.ledbat.acked(acked.bytes, self.full, packet.diff, now);
            self.wide |= acked.longest >= self.segment();
        }
        if acked.lost {
            self.ledbat.lost(self.rtt.mean().unwrap_or_default(), now);
        }
        if packet.ack.ahead_of(self.room_of) >= 0 {
            self.room_of = packet.ack;
            let shut = self.room < self.segment();
            self.room = packet.window as usize;
            if shut && self.room >= self.segment() {
                self.send.reopened(now);
            }
        }
        match packet.kind {
            Type::Data => _ = self.receive.data(packet.seq, packet.payload, now),
            Type::Fin => self.receive.fin(packet.seq, now),
            Type::State | Type::Syn | Type::Reset => {}
        }
        if self.gone.is_some() {
            self.receive.read(&mut BytesMut::new());
        }
    }

    /// Does what is due, and sends what may be sent. `send` takes a datagram, or says false when the network takes none just now.
    pub fn poll(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]) -> bool) -> Next {
        let mut blocked = false;
        match self.state {
            State::Ended(_) => {}
            State::Dialling => blocked = self.dial_on(now, send),
            State::Greeting if now >= self.due => self.state = State::Ended(End::TimedOut),
            State::Greeting => blocked = !self.acknowledge(now, send),
            State::Open => {
                let anyway = self.time(now, send);
                if self.state == State::Open {
                    blocked = !(self.send_data(anyway, now, send) && self.acknowledge(now, send));
                }
                self.look_for_end(now);
            }
        }
        Next { wake: self.wake(), blocked, state: self.state }
    }

    fn dial_on(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if now < self.due {
            return false;
        }
        if self.syns >= SYN_TIMES {
            self.state = State::Ended(End::TimedOut);
            return false;
        }
        let seq = self.send.next().minus(1);
        if !self.emit(Type::Syn, seq, &[], None, now, send) {
            return true;
        }
        self.due = now + SYN_AGAIN * (1 << self.syns);
        self.syns += 1;
        false
    }

    /// Looks at what time has run out for. True if a packet is to be sent although the other side has no room for it.
    fn time(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let timeout = self.rtt.timeout();
        if self.send.deadline(timeout, RTO_MAX).is_some_and(|deadline| now >= deadline) {
            let travelled = self.send.bytes_travelling() > 0;
            let times = self.send.timed_out(now);
            self.silent += 1;
            let eaten = !self.wide && self.send.only_longer_than(self.segment() - 1);
            if eaten && times >= NARROW {
                self.state = State::Ended(End::Narrow);
            } else if self.silent > GIVE_UP {
                self.state = State::Ended(End::TimedOut);
            } else if travelled {
                self.ledbat.timed_out(now);
            }
            return true;
        }
        let probe = self.rtt.probe().and_then(|after| self.send.probe_at(after));
        if probe.is_some_and(|at| now >= at)
            && let Some((seq, fin, payload)) = self.send.probe()
            && self.emit(if fin { Type::Fin } else { Type::Data }, seq, &payload, None, now, send)
        {
            self.send.sent(seq, now);
        }
        false
    }

    /// Sends what may be sent. False if the network took not everything.
    fn send_data(&mut self, mut anyway: bool, now: Instant, send: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let segment = self.segment();
        loop {
            match self.send.pick(self.ledbat.window(), self.room, segment, anyway, now) {
                Pick::Packet { seq, fin, payload } => {
                    anyway = false;
                    if !self.emit(if fin { Type::Fin } else { Type::Data }, seq, &payload, None, now, send) {
                        return false;
                    }
                    self.send.sent(seq, now);
                }
                Pick::Full => {
                    self.full = true;
                    return true;
                }
                Pick::Shut | Pick::Nothing => {
                    // As long as most of the window is in use it was the window that bounded.
                    self.full &= self.send.bytes_travelling() * 2 > self.ledbat.window();
                    return true;
                }
            }
        }
    }

    /// Acknowledges if that is due. False if the network didn't take it.
    fn acknowledge(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let quiet = self.state == State::Open && now >= self.last_sent + KEEP_ALIVE;
        if !quiet && self.receive.due().is_none_or(|due| now < due) {
            return true;
        }
        let mut mask = [0; SACK_MAX];
        let sack = self.receive.sack(&mut mask).map(Sack::new);
        self.emit(Type::State, self.send.next(), &[], sack, now, send)
    }

    fn emit(
        &mut self,
        kind: Type,
        seq: Seq,
        payload: &[u8],
        sack: Option<Sack<'_>>,
        now: Instant,
        send: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let packet = Packet {
            kind,
            // A SYN tells what its sender wants to be called.
            id: if kind == Type::Syn { self.receive_id } else { self.send_id },
            stamp: self.stamp(now),
            diff: self.diff,
            window: self.receive.window().try_into().unwrap_or(u32::MAX),
            seq,
            ack: if kind == Type::Syn { Seq(0) } else { self.receive.ack() },
            sack,
            payload,
        };
        self.buffer.clear();
        packet.encode(&mut self.buffer);
        if !send(&self.buffer) {
            return false;
        }
        self.last_sent = now;
        // Holes are told by packets that carry nothing else.
        if kind == Type::State || !self.receive.has_holes() {
            self.receive.told();
        }
        true
    }

    fn look_for_end(&mut self, now: Instant) {
        let Some(until) = self.gone else { return };
        let done = self.send.is_done() && self.receive.has_ended() && self.receive.due().is_none();
        if self.state == State::Open && (done || now >= until) {
            self.state = State::Ended(End::Closed);
        }
    }

    /// When to be polled again.
    fn wake(&self) -> Option<Instant> {
        match self.state {
            State::Ended(_) => None,
            State::Dialling => Some(self.due),
            State::Greeting => Some(self.receive.due().map_or(self.due, |due| due.min(self.due))),
            State::Open => [
                self.send.deadline(self.rtt.timeout(), RTO_MAX),
                self.rtt.probe().and_then(|after| self.send.probe_at(after)),
                self.receive.due(),
                self.gone,
                Some(self.last_sent + KEEP_ALIVE),
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }
}

#[cfg(test)]
#[path = "conn_tests.rs"]
mod tests;
