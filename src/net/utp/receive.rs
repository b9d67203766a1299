//! What comes: puts packets into order, says what has come, and how much more may.
//!
//! [`Receive::data`] takes a packet's payload: in order it goes to what can be read, early it is held until the hole in
//! front of it is filled, anything else is let go. What is held and what nobody has read yet share one bound,
//! [`ROOM`], which is the window that the other side is told; a packet in order is let in while there is any room at all, so
//! that held ones can't shut out the one they wait for.
//!
//! An acknowledgement is due with every second packet or after [`DELAY`]; at once for anything out of order, at the end,
//! and when a window that was small has room again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::packet::SACK_MAX;
use super::seq::Seq;

/// Bytes that are kept for a reader, in order or not.
pub const ROOM: usize = 1 << 20;
/// Packets beyond the one that comes next that are held: as many as fit into the window at half a full packet each.
pub const AHEAD: u16 = 1536;
/// How long an acknowledgement may wait for a second packet, or for data that takes it along.
pub const DELAY: Duration = Duration::from_millis(10);
/// Less room than this isn't told.
const CRUMBS: usize = 4096;
/// Bytes of our selective acknowledgements: what is beyond can be told when the holes before are filled.
const MASK: usize = 64;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// It was the next; it and those that waited for it can be read.
    Next,
    /// It is held.
    Early,
    /// It came before.
    Again,
    /// There is no room for it, or it is beyond the end.
    Refused,
}

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Receive {
    /// The number that comes next.
    next: Seq,
    /// What was held of the numbers behind `next`; its last one is there.
    held: VecDeque<Option<Bytes>>,
    held_bytes: usize,
    /// In order, and not handed over yet.
    ready: BytesMut,
    /// Handed over, and not read yet.
    unread: usize,
    /// The number of the other side's last packet.
    end: Option<Seq>,
    /// Data packets that weren't acknowledged.
    owed: u8,
    ack_by: Option<Instant>,
    /// The window they were told last.
    told: usize,
}

impl Receive {
    /// `next` is the number of the first packet.
    pub fn new(next: Seq) -> Self {
        Self {
            next,
            held: VecDeque::new(),
            held_bytes: 0,
            ready: BytesMut::new(),
            unread: 0,
            end: None,
            owed: 0,
            ack_by: None,
            told: ROOM,
        }
    }

    /// The last number up to which everything has come.
    pub fn ack(&self) -> Seq {
        self.next.minus(1)
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.held_bytes + self.ready.len() + self.unread
    }

    /// Bytes that there is room for; next to none counts as none, or it would be used in crumbs.
    pub fn window(&self) -> usize {
        Some(ROOM.saturating_sub(self.kept())).filter(|&room| room >= CRUMBS).unwrap_or(0)
    }

    /// Everything up to the other side's end has come.
    pub fn has_ended(&self) -> bool {
        self.end.is_some_and(|end| self.next.ahead_of(end) > 0)
    }

    /// A data packet came.
    pub fn data(&mut self, seq: Seq, payload: &[u8], now: Instant) -> Got {
        let got = self.take(seq, payload);
        match got {
            Got::Next if self.held.is_empty() => {
                self.owed = self.owed.saturating_add(1);
                let by = if self.owed >= 2 { now } else { now + DELAY };
                self.ack_by = Some(self.ack_by.map_or(by, |before| before.min(by)));
            }
            _ => self.ack_by = Some(now),
        }
        got
    }

    /// The last packet of the other side came; it carries nothing.
    pub fn fin(&mut self, seq: Seq, now: Instant) {
        self.ack_by = Some(now);
        let ahead = seq.ahead_of(self.next);
        if self.end.is_none() && (0..i32::from(AHEAD)).contains(&ahead) {
            self.end = Some(seq);
            // What is beyond its own end was never said.
            while self.held.len() as i32 > ahead {
                let beyond = self.held.pop_back().flatten();
                self.held_bytes -= beyond.map_or(0, |bytes| bytes.len());
            }
            self.trim();
            self.pass_end();
        }
    }

    fn take(&mut self, seq: Seq, payload: &[u8]) -> Got {
        let ahead = seq.ahead_of(self.next);
        if ahead < 0 {
            return Got::Again;
        }
        if self.end.is_some_and(|end| seq.ahead_of(end) >= 0) {
            return Got::Refused;
        }
        if ahead == 0 {
            if self.kept() > ROOM {
                return Got::Refused;
            }
            self.ready.extend_from_slice(payload);
            self.next = self.next.plus(1);
            // The slot of the number that comes next now is the first one.
            while let Some(first) = self.held.pop_front() {
                let Some(bytes) = first else { break };
                self.held_bytes -= bytes.len();
                self.ready.extend_from_slice(&bytes);
                self.next = self.next.plus(1);
            }
            self.pass_end();
            return Got::Next;
        }
        if ahead > i32::from(AHEAD) || self.kept() + payload.len() > ROOM {
            return Got::Refused;
        }
        let at = ahead as usize - 1;
        if self.held.len() <= at {
            self.held.resize(at + 1, None);
        }
        match self.held.get_mut(at) {
            Some(slot @ None) => {
                *slot = Some(Bytes::copy_from_slice(payload));
                self.held_bytes += payload.len();
                Got::Early
            }
            _ => Got::Again,
        }
    }

    /// The last one held is there.
    fn trim(&mut self) {
        while let Some(None) = self.held.back() {
            self.held.pop_back();
        }
    }

    /// The end's own number counts as come when all before has.
    fn pass_end(&mut self) {
        if self.end == Some(self.next) {
            self.next = self.next.plus(1);
        }
    }

    /// Moves all that can be read to `to`.
    pub fn read(&mut self, to: &mut BytesMut) -> usize {
        let n = self.ready.len();
        if to.is_empty() {
            std::mem::swap(to, &mut self.ready);
        } else {
            to.extend_from_slice(&self.ready);
        }
        self.ready.clear();
        n
    }

    /// So much of what was handed over wasn't read yet.
    pub fn set_unread(&mut self, bytes: usize, now: Instant) {
        self.unread = bytes;
        if self.told < ROOM / 2 && self.window() >= ROOM / 2 {
            self.ack_by = Some(now);
        }
    }

    /// Whether the other side was told of so little room that it is to hear of more.
    pub fn is_tight(&self) -> bool {
        self.told < ROOM / 2
    }

    /// An acknowledgement is to be sent, whatever came.
    pub fn owe(&mut self, now: Instant) {
        self.ack_by = Some(now);
    }

    /// When an acknowledgement is due.
    pub fn due(&self) -> Option<Instant> {
        self.ack_by
    }

    /// A packet with an acknowledgement and the present window was sent.
    pub fn told(&mut self) {
        self.owed = 0;
        self.ack_by = None;
        self.told = self.window();
    }

    /// Whether something is held that waits for what comes before it.
    pub fn has_holes(&self) -> bool {
        !self.held.is_empty()
    }

    /// The mask of a selective acknowledgement, if something is held: fills `mask` and gives its used part.
    pub fn sack<'a>(&self, mask: &'a mut [u8; SACK_MAX]) -> Option<&'a [u8]> {
        let mut last = None;
        for (at, _) in self.held.iter().take(MASK * 8).enumerate().filter(|(_, held)| held.is_some()) {
            if last.is_none() {
                mask.fill(0);
            }
            if let Some(byte) = mask.get_mut(at / 8) {
                *byte |= 1 << (at % 8);
            }
            last = Some(at);
        }
        // Whole words, BEP 29 says.
        let used = (last? / 32 + 1) * 4;
        mask.get(..used)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::net::utp::packet::Sack;

    fn sacked(receive: &Receive) -> Vec<u16> {
        let mut mask = [0; SACK_MAX];
        receive.sack(&mut mask).map(|mask| Sack::new(mask).positions().collect()).unwrap_or_default()
    }

    fn read(receive: &mut Receive) -> Vec<u8> {
        let mut to = BytesMut::new();
        receive.read(&mut to);
        to.to_vec()
    }

    #[test]
    fn holes_are_told_and_filled() {
        let now = Instant::now();
        let mut receive = Receive::new(Seq(65_534));
        assert_eq!(receive.data(Seq(65_534), b"a", now), Got::Next);
        assert_eq!(receive.due(), Some(now + DELAY));
        assert_eq!(receive.data(Seq(0), b"c", now), Got::Early);
        assert_eq!(receive.due(), Some(now), "a hole is told at once");
        assert_eq!(receive.data(Seq(3), b"f", now), Got::Early);
        assert_eq!(receive.data(Seq(3), b"f", now), Got::Again);
        assert_eq!((receive.ack(), sacked(&receive)), (Seq(65_534), vec![0, 3]));
        assert_eq!(receive.data(Seq(65_535), b"b", now), Got::Next);
        assert_eq!((receive.ack(), sacked(&receive)), (Seq(0), vec![1]));
        assert_eq!(receive.data(Seq(2), b"e", now), Got::Early);
        assert_eq!(receive.data(Seq(1), b"d", now), Got::Next);
        assert_eq!((receive.ack(), sacked(&receive)), (Seq(3), vec![]));
        assert_eq!(read(&mut receive), b"abcdef");
        assert_eq!(receive.data(Seq(65_535), b"b", now), Got::Again);
        assert_eq!(receive.kept(), 0);
    }

    #[test]
    fn the_end_comes_when_all_before_it_has() {
        let now = Instant::now();
        let mut receive = Receive::new(Seq(10));
        assert_eq!(receive.data(Seq(13), b"beyond", now), Got::Early);
        receive.fin(Seq(12), now);
        assert_eq!(receive.kept(), 0, "nothing is beyond the end");
        assert_eq!(receive.data(Seq(12), b"x", now), Got::Refused);
        assert_eq!(receive.data(Seq(11), b"b", now), Got::Early);
        assert!(!receive.has_ended());
        assert_eq!(receive.data(Seq(10), b"a", now), Got::Next);
        assert!(receive.has_ended());
        assert_eq!((receive.ack(), read(&mut receive)), (Seq(12), b"ab".to_vec()));
        receive.fin(Seq(11), now);
        receive.fin(Seq(12), now);
        assert!(receive.has_ended());
        let mut empty = Receive::new(Seq(0));
        empty.fin(Seq(0), now);
        assert!(empty.has_ended());
        let mut far = Receive::new(Seq(0));
        far.fin(Seq(AHEAD), now);
        assert!(far.end.is_none(), "no number so far ahead is theirs");
    }

    #[test]
    fn every_second_packet_is_acknowledged_and_a_small_window_that_grows() {
        let now = Instant::now();
        let mut receive = Receive::new(Seq(0));
        let half = vec![0; ROOM / 2 + 1];
        receive.data(Seq(0), &half, now);
        assert_eq!(receive.due(), Some(now + DELAY));
        receive.data(Seq(1), &half[..ROOM / 4], now);
        assert_eq!(receive.due(), Some(now));
        receive.told();
        assert_eq!(receive.due(), None);
        assert!(receive.is_tight());
        let all = read(&mut receive).len();
        receive.set_unread(all, now);
        assert_eq!((receive.due(), receive.window()), (None, ROOM - all));
        receive.set_unread(ROOM / 2, now);
        assert_eq!(receive.due(), Some(now));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_packet_all_wait_for_gets_in() {
        let now = Instant::now();
        let mut receive = Receive::new(Seq(0));
        let big = vec![7; 60_000];
        let mut early = 0;
        for n in 1..100 {
            early += usize::from(receive.data(Seq(n), &big, now) == Got::Early);
        }
        assert_eq!(early, ROOM / 60_000);
        assert_eq!(receive.data(Seq(0), &big, now), Got::Next);
        assert!(receive.kept() <= ROOM + 60_000);
        assert_eq!(receive.window(), 0);
        assert_eq!(receive.data(Seq(early as u16 + 1), &big, now), Got::Refused);
        let mut small = Receive::new(Seq(0));
        (1..=u16::MAX / 2).for_each(|n| _ = small.data(Seq(n), b"x", now));
        assert!(small.held.len() <= usize::from(AHEAD));
        let mut mask = [0xff; SACK_MAX];
        assert_eq!(small.sack(&mut mask).unwrap().len(), MASK);
    }

    proptest! {
        #[test]
        fn any_order_gives_the_bytes_in_order(
            order in Just((0u16..200).collect::<Vec<_>>()).prop_shuffle(), start: u16, again in 0usize..200,
        ) {
            let now = Instant::now();
            let mut receive = Receive::new(Seq(start));
            let mut all = Vec::new();
            for (n, &at) in order.iter().enumerate() {
                receive.data(Seq(start).plus(at), &at.to_be_bytes(), now);
                if n == again {
                    order[..n].iter().for_each(|&at| _ = receive.data(Seq(start).plus(at), b"??", now));
                }
                if n % 17 == 0 {
                    all.extend(read(&mut receive));
                }
            }
            receive.fin(Seq(start).plus(200), now);
            all.extend(read(&mut receive));
            prop_assert!(receive.has_ended());
            prop_assert_eq!(all, (0u16..200).flat_map(u16::to_be_bytes).collect::<Vec<_>>());
        }
    }
}
