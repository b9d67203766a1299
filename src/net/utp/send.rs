//! What goes: cuts what is written into packets, knows which are on the way, and which have to be sent again.
//!
//! A packet's bytes are fixed by its number: once cut it is never cut otherwise, since the other side may have it and only
//! its acknowledgement be lost. [`Send::pick`] gives the next to be sent, those that were lost first; [`Send::sent`]
//! notes that it was. A packet that couldn't be handed to the network waits like one that was lost.
//!
//! [`Send::acked`] takes acknowledgements in. Each sending has a number of its own in [`Sent::order`]; a packet counts as
//! lost when one that was sent [`REORDER`] later has arrived, whether either was sent before or not; on a line that turns
//! out to reorder, when that one was sent a quarter of a round trip later. Without selective acknowledgements the third
//! repeat of an acknowledgement counts for that.
//!
//! Not here: when time is up, and how much may be on the way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::packet::Sack;
use super::seq::Seq;

/// Bytes that wait to be cut. Few, since what waits here is sent before what is written later, and matters more.
pub const QUEUE: usize = 64 << 10;
/// Packets that are under way or held by the other side: more are beyond what others' acknowledgements can name.
pub const FLIGHT: usize = 1024;
/// A packet that is overtaken by so many is lost.
const REORDER: u64 = 3;
/// So many repeats of an acknowledgement mean a loss.
const REPEATS: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To be sent, or to be sent again.
    Waits,
    Travels,
    /// Acknowledged, though something before it wasn't.
    Arrived,
}

#[derive(Debug)]
struct Sent {
    payload: Bytes,
    fin: bool,
    way: Way,
    /// When it was sent last.
    at: Instant,
    /// The number of that sending.
    order: u64,
    times: u32,
}

/// What is to be sent now.
#[derive(Debug)]
pub enum Pick {
    /// A packet.
    Packet {
        /// Its number.
        seq: Seq,
        /// Whether it is the last of this direction.
        fin: bool,
        /// What it carries.
        payload: Bytes,
    },
    /// As much is on the way as our window allows.
    Full,
    /// As much is on the way as the other side has room for.
    Shut,
    /// Nothing is left to be sent.
    Nothing,
}

/// What an acknowledgement brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// Packets that have arrived.
    pub packets: usize,
    /// Their bytes.
    pub bytes: usize,
    /// The longest of them.
    pub longest: usize,
    /// The round trip of the one sent last, of those that were sent once.
    pub round_trip: Option<Duration>,
    /// Packets turned out to be lost.
    pub lost: bool,
}

/// The sending side of a connection.
#[derive(Debug)]
pub struct Send {
    queue: BytesMut,
    /// The number of the packet that is cut next.
    next: Seq,
    /// Those up to it, from the first that isn't acknowledged.
    flight: VecDeque<Sent>,
    /// Of these, how many wait; how many travel, and their bytes.
    waiting: usize,
    travelling: usize,
    bytes: usize,
    /// The number of the next sending.
    order: u64,
    /// The latest sending that has arrived, and when it was sent.
    newest: u64,
    newest_at: Instant,
    /// Packets that counted as lost have arrived all the same.
    reorders: bool,
    repeats: u8,
    closing: bool,
    /// The last packet was cut.
    finished: bool,
    /// What the time-out counts from.
    since: Instant,
    backoff: u32,
    probed: bool,
}

impl Send {
    /// `next` is the number of the first packet.
    pub fn new(next: Seq, now: Instant) -> Self {
        Self {
            queue: BytesMut::new(),
            next,
            flight: VecDeque::new(),
            waiting: 0,
            travelling: 0,
            bytes: 0,
            order: REORDER,
            newest: 0,
            newest_at: now,
            reorders: false,
            repeats: 0,
            closing: false,
            finished: false,
            since: now,
            backoff: 0,
            probed: false,
        }
    }

    /// Takes as much as there is room for, and says how much.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        if self.closing {
            return 0;
        }
        let n = bytes.len().min(QUEUE.saturating_sub(self.queue.len()));
        if n > 0 && self.is_idle() {
            self.since = now;
        }
        if let Some(taken) = bytes.get(..n) {
            self.queue.extend_from_slice(taken);
        }
        n
    }

    /// Bytes that [`Send::write`] would take.
    pub fn room(&self) -> usize {
        if self.closing { 0 } else { QUEUE.saturating_sub(self.queue.len()) }
    }

    /// Nothing more will be written: the last packet follows what is there.
    pub fn close(&mut self, now: Instant) {
        if !self.closing && self.is_idle() {
            self.since = now;
        }
        self.closing = true;
    }

    /// Nothing is left that would have to be sent or acknowledged.
    fn is_idle(&self) -> bool {
        self.flight.is_empty() && self.queue.is_empty()
    }

    /// Everything was sent and has arrived, the last packet too.
    pub fn is_done(&self) -> bool {
        self.finished && self.flight.is_empty()
    }

    /// The number of the packet that is cut next.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The number of the first packet that isn't acknowledged.
    fn base(&self) -> Seq {
        self.next.minus(self.flight.len() as u16)
    }

    /// Bytes that are on the way.
    pub fn bytes_travelling(&self) -> usize {
        self.bytes
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.queue.len() + self.flight.iter().map(|sent| sent.payload.len()).sum::<usize>()
    }

    /// Whether an acknowledgement can be theirs: not of what was never sent. Of one that is older than what is known this
    /// says nothing, unless it is to be `exact`.
    pub fn believes(&self, ack: Seq, exact: bool) -> bool {
        let n = ack.plus(1).ahead_of(self.base());
        if n <= 0 {
            return n == 0 || (!exact && n >= -(2 * FLIGHT as i32));
        }
        self.flight.get(n as usize - 1).is_some_and(|sent| sent.times > 0)
    }

    /// Takes an acknowledgement in that [`Send::believes`] holds for. `bare`: the packet had nothing else to say. `least`
    /// is the shortest round trip.
    pub fn acked(
        &mut self,
        ack: Seq,
        sack: Option<Sack<'_>>,
        bare: bool,
        least: Option<Duration>,
        now: Instant,
    ) -> Acked {
        let mut acked = Acked::default();
        let mut latest = None;
        let n = ack.plus(1).ahead_of(self.base());
        if n < 0 {
            return acked;
        }
        for _ in 0..n {
            let Some(sent) = self.flight.pop_front() else { break };
            self.arrived(&sent, least, now, &mut acked, &mut latest);
        }
        // What is beyond: positions count from the one after the first hole.
        let mut highest = 0;
        for at in sack.into_iter().flat_map(Sack::positions).map(|at| usize::from(at) + 1) {
            let Some(sent) = self.flight.get_mut(at).filter(|sent| sent.times > 0) else { break };
            highest = at;
            if sent.way != Way::Arrived {
                let way = std::mem::replace(&mut sent.way, Way::Arrived);
                // Nobody needs its bytes any more.
                let taken = Sent { payload: std::mem::take(&mut sent.payload), way, ..*sent };
                self.arrived(&taken, least, now, &mut acked, &mut latest);
            }
        }
        acked.round_trip = latest.map(|(_, took)| took);
        if acked.packets > 0 {
            self.since = now;
            self.backoff = 0;
            self.probed = false;
            self.repeats = 0;
        } else if bare && sack.is_none() && n == 0 && self.travelling > 0 {
            self.repeats = self.repeats.saturating_add(1);
        }
        acked.lost = self.find_lost(highest, least, now);
        acked
    }

    fn arrived(
        &mut self,
        sent: &Sent,
        least: Option<Duration>,
        now: Instant,
        acked: &mut Acked,
        latest: &mut Option<(u64, Duration)>,
    ) {
        let took = now.saturating_duration_since(sent.at);
        match sent.way {
            Way::Arrived => return,
            Way::Waits => self.waiting -= 1,
            Way::Travels => {
                self.travelling -= 1;
                self.bytes -= sent.payload.len();
            }
        }
        acked.packets += 1;
        acked.bytes += sent.payload.len();
        acked.longest = acked.longest.max(sent.payload.len());
        // An answer that is too early is one to an earlier sending.
        if sent.times == 1 || least.is_some_and(|least| took >= least) {
            if sent.order > self.newest {
                (self.newest, self.newest_at) = (sent.order, sent.at);
            }
        } else {
            self.reorders = true;
        }
        if sent.times == 1 && latest.is_none_or(|(order, _)| order < sent.order) {
            *latest = Some((sent.order, took));
        }
    }

    /// Marks what was overtaken; `highest` is the last position that was acknowledged.
    fn find_lost(&mut self, highest: usize, least: Option<Duration>, now: Instant) -> bool {
        let before = self.waiting;
        let (newest, newest_at) = (self.newest, self.newest_at);
        // Where packets overtake each other, more patience: they come after all.
        let grace = least.filter(|_| self.reorders).unwrap_or_default() / 4;
        if self.flight.front().is_some_and(|first| first.order + REORDER <= newest) || highest > 0 {
            for sent in self.flight.iter_mut().take(highest.max(1)) {
                let overtaken = sent.order + REORDER <= newest && newest_at >= sent.at + grace;
                if sent.way == Way::Travels && overtaken {
                    sent.way = Way::Waits;
                    self.waiting += 1;
                    self.travelling -= 1;
                    self.bytes -= sent.payload.len();
                }
            }
        }
        if self.repeats >= REPEATS
            && let Some(first) = self.flight.front_mut()
            && first.way == Way::Travels
            && now.saturating_duration_since(first.at) >= least.unwrap_or_default()
        {
            self.repeats = 0;
            first.way = Way::Waits;
            self.waiting += 1;
            self.travelling -= 1;
            self.bytes -= first.payload.len();
        }
        self.waiting > before
    }

    /// The next to be sent, when `window` bytes may be on the way by our reckoning, and `room` by theirs; packets are cut
    /// of `segment` bytes. `anyway`: though they have no room, to learn whether they still haven't.
    pub fn pick(&mut self, window: usize, room: usize, segment: usize, anyway: bool, now: Instant) -> Pick {
        if self.waiting == 0 {
            let first = self.travelling == 0;
            if self.queue.is_empty() {
                if !self.closing || self.finished || self.flight.len() >= FLIGHT {
                    return Pick::Nothing;
                }
                self.finished = true;
                self.cut(Bytes::new(), true, now);
            } else {
                let left = room.saturating_sub(self.bytes);
                let whole = self.queue.len().min(segment);
                // Not in crumbs: if there isn't room for the whole packet there will be soon, unless nothing is on the
                // way.
                let n = match whole <= left || anyway {
                    true => whole,
                    false if first && left > 0 => left,
                    false => return Pick::Shut,
                };
                if self.flight.len() >= FLIGHT {
                    return Pick::Shut;
                }
                if self.bytes + n > window && !first {
                    return Pick::Full;
                }
                let payload = self.queue.split_to(n).freeze();
                self.cut(payload, false, now);
            }
        }
        let base = self.base();
        let Some(at) = self.flight.iter().position(|sent| sent.way == Way::Waits) else {
            return Pick::Nothing;
        };
        match self.flight.get(at) {
            Some(sent) if self.bytes + sent.payload.len() <= window || self.travelling == 0 => {
                Pick::Packet { seq: base.plus(at as u16), fin: sent.fin, payload: sent.payload.clone() }
            }
            _ => Pick::Full,
        }
    }

    fn cut(&mut self, payload: Bytes, fin: bool, now: Instant) {
        self.flight.push_back(Sent { payload, fin, way: Way::Waits, at: now, order: 0, times: 0 });
        self.next = self.next.plus(1);
        self.waiting += 1;
    }

    /// A packet that was picked was sent.
    pub fn sent(&mut self, seq: Seq, now: Instant) {
        let at = seq.ahead_of(self.base());
        let first = self.travelling == 0;
        let Some(sent) = usize::try_from(at).ok().and_then(|at| self.flight.get_mut(at)) else { return };
        match sent.way {
            Way::Waits => {
                self.waiting -= 1;
                self.travelling += 1;
                self.bytes += sent.payload.len();
            }
            // Once more, to learn what became of it.
            Way::Travels => {}
            Way::Arrived => return,
        }
        sent.way = Way::Travels;
        sent.at = now;
        sent.order = self.order;
        sent.times += 1;
        self.order += 1;
        if first {
            self.since = now;
        }
    }

    /// When nothing has been acknowledged for too long, `timeout` being how long that is at first.
    pub fn deadline(&self, timeout: Duration, most: Duration) -> Option<Instant> {
        let waits = self.travelling > 0 || self.waiting > 0 || !self.queue.is_empty();
        waits.then(|| self.since + timeout.saturating_mul(1 << self.backoff.min(10)).min(most.max(timeout)))
    }

    /// When the last packet is to be sent once more, since it may be the one that was lost.
    pub fn probe_at(&self, after: Duration) -> Option<Instant> {
        let due = self.travelling > 0 && self.waiting == 0 && !self.probed && self.backoff == 0;
        let last = self.flight.iter().rev().find(|sent| sent.way == Way::Travels).filter(|_| due)?;
        Some(last.at.max(self.since) + after)
    }

    /// The last packet on the way, to be sent once more.
    pub fn probe(&mut self) -> Option<(Seq, bool, Bytes)> {
        self.probed = true;
        let at = self.flight.iter().rposition(|sent| sent.way == Way::Travels)?;
        let sent = self.flight.get(at)?;
        Some((self.base().plus(at as u16), sent.fin, sent.payload.clone()))
    }

    /// Time is up: all that is on the way counts as lost. Says how often that has happened since something was
    /// acknowledged.
    pub fn timed_out(&mut self, now: Instant) -> u32 {
        for sent in self.flight.iter_mut().filter(|sent| sent.way == Way::Travels) {
            sent.way = Way::Waits;
            self.waiting += 1;
        }
        self.travelling = 0;
        self.bytes = 0;
        self.repeats = 0;
        self.since = now;
        self.backoff = self.backoff.saturating_add(1);
        self.backoff
    }

    /// The other side has room again: what was sent to learn that, and waits for a time-out that has grown meanwhile, is
    /// sent at once.
    pub fn reopened(&mut self, now: Instant) {
        if self.backoff > 0 {
            self.timed_out(now);
            self.backoff = 0;
        }
    }

    /// Whether everything that was sent and hasn't arrived is longer than so many bytes.
    pub fn only_longer_than(&self, bytes: usize) -> bool {
        let mut missing =
            self.flight.iter().filter(|sent| sent.times > 0 && sent.way != Way::Arrived).peekable();
        missing.peek().is_some() && missing.all(|sent| sent.payload.len() > bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const SEGMENT: usize = 10;

    struct Rig {
        send: Send,
        now: Instant,
    }

    impl Rig {
        fn new(first: u16, bytes: usize) -> Self {
            let now = Instant::now();
            let mut send = Send::new(Seq(first), now);
            send.write(&vec![b'x'; bytes], now);
            Self { send, now }
        }

        /// Sends what may be sent; gives the numbers.
        fn go(&mut self, window: usize, room: usize) -> (Vec<u16>, Pick) {
            let mut sent = Vec::new();
            loop {
                match self.send.pick(window, room, SEGMENT, false, self.now) {
                    Pick::Packet { seq, .. } => {
                        self.send.sent(seq, self.now);
                        sent.push(seq.0);
                    }
                    other => return (sent, other),
                }
            }
        }

        fn ack(&mut self, ack: u16, positions: &[u16]) -> Acked {
            let mut mask = [0u8; 8];
            positions.iter().for_each(|&at| mask[usize::from(at / 8)] |= 1 << (at % 8));
            let sack = (!positions.is_empty()).then(|| Sack::new(&mask));
            assert!(self.send.believes(Seq(ack), false));
            self.send.acked(Seq(ack), sack, true, Some(Duration::from_millis(1)), self.now)
        }
    }

    #[test]
    fn windows_are_kept() {
        let mut rig = Rig::new(65_534, 65);
        let (sent, why) = rig.go(35, 1000);
        assert_eq!(sent, [65_534, 65_535, 0]);
        assert!(matches!(why, Pick::Full));
        assert_eq!(rig.ack(65_534, &[]).bytes, 10);
        let (sent, why) = rig.go(1000, 45);
        assert_eq!(sent, [1, 2]);
        assert!(matches!(why, Pick::Shut));
        assert_eq!(rig.ack(2, &[]).packets, 4);
        assert_eq!(rig.send.bytes_travelling(), 0);
        assert_eq!(rig.go(0, 3).0, [3], "one is always allowed, cut to what there is room for");
        rig.ack(3, &[]);
        assert!(matches!(rig.go(1000, 0), (none, Pick::Shut) if none.is_empty()));
        assert!(matches!(rig.send.pick(1000, 0, SEGMENT, true, rig.now), Pick::Packet { seq: Seq(4), .. }));
    }

    #[test]
    fn acknowledgements_of_what_was_not_sent_are_not_believed() {
        let mut rig = Rig::new(0, 50);
        rig.go(20, 1000);
        for (ack, exact, believed) in [
            (65_535, true, true),
            (65_534, true, false),
            (65_534, false, true),
            (0, true, true),
            (1, false, true),
            (2, false, false),
            (30_000, false, false),
            (40_000, false, false),
        ] {
            assert_eq!(rig.send.believes(Seq(ack), exact), believed, "{ack}");
        }
        assert_eq!(rig.ack(65_000, &[1, 2]), Acked::default(), "old ones change nothing");
    }

    #[test]
    fn what_is_overtaken_is_sent_again_once() {
        let mut rig = Rig::new(0, 100);
        assert_eq!(rig.go(1000, 1000).0.len(), 10);
        rig.now += Duration::from_millis(10);
        assert!(!rig.ack(65_535, &[0]).lost);
        assert!(!rig.ack(65_535, &[0, 1]).lost);
        assert!(rig.ack(65_535, &[0, 1, 2]).lost);
        assert_eq!(rig.go(1000, 1000).0, [0]);
        assert!(!rig.ack(65_535, &[0, 1, 2, 3, 4]).lost, "it has just been sent");
        assert!(rig.go(1000, 1000).0.is_empty());
        // The second sending is lost as well; later ones overtake it.
        rig.send.write(&[b'y'; 40], rig.now);
        assert_eq!(rig.go(1000, 1000).0, [10, 11, 12, 13]);
        rig.now += Duration::from_millis(10);
        assert!(rig.ack(65_535, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).lost);
        assert_eq!(rig.go(1000, 1000).0, [0]);
        rig.now += Duration::from_millis(10);
        let all = rig.ack(13, &[]);
        assert_eq!((all.packets, all.bytes, rig.send.kept()), (1, 10, 0));
    }

    #[test]
    fn repeats_count_for_those_who_do_not_say_what_came() {
        let mut rig = Rig::new(0, 100);
        rig.go(1000, 1000);
        rig.now += Duration::from_millis(10);
        assert!(!rig.ack(3, &[]).lost);
        assert!(!rig.ack(3, &[]).lost && !rig.ack(3, &[]).lost);
        assert!(rig.ack(3, &[]).lost);
        assert_eq!(rig.go(1000, 1000).0, [4]);
        assert!(!rig.ack(3, &[]).lost && !rig.ack(3, &[]).lost && !rig.ack(3, &[]).lost, "not again at once");
    }

    #[test]
    fn a_time_out_sends_all_again_in_order() {
        let mut rig = Rig::new(0, 50);
        rig.go(1000, 1000);
        rig.ack(65_535, &[1]);
        let second = Duration::from_secs(1);
        assert_eq!(rig.send.deadline(second, second * 16), Some(rig.now + second));
        assert_eq!(rig.send.timed_out(rig.now), 1);
        assert_eq!(rig.send.deadline(second, second * 16), Some(rig.now + 2 * second));
        assert_eq!(rig.go(10, 0).0, [0], "room was granted when it was sent first");
        assert_eq!(rig.send.timed_out(rig.now), 2);
        assert_eq!(rig.go(1000, 1000).0, [0, 1, 3, 4]);
        rig.ack(4, &[]);
        assert_eq!(rig.send.deadline(second, second * 16), None);
    }

    #[test]
    fn the_last_packet_is_probed_for() {
        let mut rig = Rig::new(0, 30);
        rig.go(1000, 1000);
        let after = Duration::from_millis(50);
        assert_eq!(rig.send.probe_at(after), Some(rig.now + after));
        assert_eq!(rig.send.probe().unwrap().0, Seq(2));
        rig.send.sent(Seq(2), rig.now);
        assert_eq!((rig.send.probe_at(after), rig.send.bytes_travelling()), (None, 30));
        rig.now += after;
        // Only that one arrived: the others are overtaken.
        assert!(rig.ack(65_535, &[1]).lost);
    }

    #[test]
    fn the_end_follows_what_was_written() {
        let mut rig = Rig::new(7, 15);
        rig.send.close(rig.now);
        assert_eq!(rig.send.write(b"more", rig.now), 0);
        assert_eq!(rig.go(1000, 1000).0, [7, 8, 9]);
        assert!(!rig.send.is_done());
        rig.ack(8, &[]);
        assert!(!rig.send.is_done());
        rig.ack(9, &[]);
        assert!(rig.send.is_done());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let now = Instant::now();
        let mut send = Send::new(Seq(0), now);
        let data = vec![1; 1 << 20];
        assert_eq!((send.write(&data, now), send.write(&data, now), send.room()), (QUEUE, 0, 0));
        for _ in 0..3 * FLIGHT {
            send.write(&data[..1], now);
            if let Pick::Packet { seq, .. } = send.pick(usize::MAX, usize::MAX, 1, false, now) {
                send.sent(seq, now);
            }
        }
        assert_eq!(send.flight.len(), FLIGHT);
        assert!(send.room() <= QUEUE);
    }
}
