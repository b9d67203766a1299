//! A simulated peer and the link it sends over: what it has, how fast it sends, what it does with requests.
//!
//! A peer serves requests in the order they come. A block goes from its queue into its send buffer when that has
//! room, and from then on can't be called back; the buffer leaves at the link's rate and arrives after the delay.
//! Everything a peer says takes the same way, so nothing overtakes anything.
//! Not here: when things happen (the world asks and keeps the agenda), and our side of the connection.

use std::collections::VecDeque;
use std::time::Duration;

use torrentfs::metainfo::geometry::BlockRef;

use super::clock::{Rng, Time};

/// Line rate behind a limiter that hands out quota in portions: each goes out as fast as a local line.
const BURST: f64 = 128.0 * 1024.0 * 1024.0;

/// What a peer has.
#[derive(Debug, Clone)]
pub enum Holds {
    /// Everything.
    All,
    /// The pieces for which this says so.
    Some(fn(u32) -> bool),
}

/// A peer as a scenario describes it.
#[derive(Debug, Clone)]
pub struct PeerSpec {
    /// Bytes per second.
    pub rate: u64,
    /// From one end to the other.
    pub delay: Duration,
    /// Each message may take this much longer.
    pub jitter: Duration,
    /// Bytes in its send buffer, beyond recall.
    pub buffer: u64,
    /// It hands out its rate in portions, one per this time, as libtorrent's limiter does.
    pub quota: Option<Duration>,
    /// It speaks the fast extension.
    pub fast: bool,
    /// Requests it accepts.
    pub reqq: u32,
    /// What it has.
    pub holds: Holds,
    /// How long after we became interested it lets us in.
    pub lets_in_after: Duration,
    /// When it can be found.
    pub joins: Time,
    /// When it leaves for good.
    pub leaves: Option<Time>,
    /// When it stops sending, and for how long.
    pub stalls: Vec<(Time, Duration)>,
    /// When it chokes us, and for how long.
    pub chokes: Vec<(Time, Duration)>,
}

impl PeerSpec {
    /// A seed of this rate, 10 ms away, that does all that peers should.
    pub fn new(rate: u64) -> Self {
        Self {
            rate,
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(1),
            buffer: 64 << 10,
            quota: None,
            fast: true,
            reqq: 500,
            holds: Holds::All,
            lets_in_after: Duration::ZERO,
            joins: Time::ZERO,
            leaves: None,
            stalls: Vec::new(),
            chokes: Vec::new(),
        }
    }

    /// Whether it has this piece.
    pub fn has(&self, piece: u32) -> bool {
        match self.holds {
            Holds::All => true,
            Holds::Some(has) => has(piece),
        }
    }
}

/// A block that is on its way, and when its last byte left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The block.
    pub block: BlockRef,
    /// Its bytes.
    pub len: u32,
    /// When its last byte left the peer.
    pub left: Time,
    /// When it arrives.
    pub arrives: Time,
}

/// The sending end of a peer.
pub struct Link {
    /// What it is.
    pub spec: PeerSpec,
    /// Requests that are not in the send buffer yet.
    queue: VecDeque<(BlockRef, u32)>,
    /// What is in the send buffer: when it will have left, and how long it is.
    buffered: VecDeque<(Time, u64)>,
    /// When everything that was said so far will have left.
    free: Time,
    /// Nothing arrives before what was said earlier.
    last_arrival: Time,
    /// The portion of the limiter that is being used: its number and the bytes used.
    portion: (u64, f64),
    /// When the limiter's portions begin.
    phase: Duration,
    /// Whether it lets us in.
    pub choking: bool,
    rng: Rng,
}

impl Link {
    /// A link on which nothing was said yet.
    pub fn new(spec: PeerSpec, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let phase = spec.quota.map_or(Duration::ZERO, |period| rng.duration(period));
        Self {
            spec,
            queue: VecDeque::new(),
            buffered: VecDeque::new(),
            free: Time::ZERO,
            last_arrival: Time::ZERO,
            portion: (0, 0.0),
            phase,
            choking: true,
            rng,
        }
    }

    /// How long a message takes from end to end, in order after `last`.
    pub fn crossing(&mut self, left: Time, last: Time) -> Time {
        (left + self.spec.delay + self.rng.duration(self.spec.jitter)).max(last)
    }

    /// Says something short at `now`; returns when it arrives.
    pub fn say(&mut self, now: Time) -> Time {
        self.send(now, 17).1
    }

    /// Sends bytes after what was said before; returns when they have left and when they arrive.
    fn send(&mut self, now: Time, len: u64) -> (Time, Time) {
        let left = self.leaves(now.max(self.free), len as f64, now > self.free);
        self.free = left;
        self.last_arrival = self.crossing(left, self.last_arrival);
        (left, self.last_arrival)
    }

    /// When `len` bytes have left that may begin to leave at `start`. A limiter serves who waits when it hands out
    /// the next portion, so what comes upon an idle link waits for that.
    fn leaves(&mut self, start: Time, mut len: f64, idle: bool) -> Time {
        let rate = self.spec.rate as f64;
        let mut at = start;
        for &(from, lasts) in &self.spec.stalls {
            let end = from + lasts;
            if at >= end {
                continue;
            }
            let before = from.saturating_sub(at).as_secs_f64() * rate;
            if len <= before {
                break;
            }
            len -= before;
            at = end;
        }
        let Some(period) = self.spec.quota else { return at + Duration::from_secs_f64(len / rate) };
        let quota = rate * period.as_secs_f64();
        let mut wait = idle;
        loop {
            let number = ((at + self.phase).as_nanos() / period.as_nanos()) as u64;
            let next = (period * (number as u32 + 1)).saturating_sub(self.phase);
            if std::mem::take(&mut wait) {
                at = next;
                continue;
            }
            if number > self.portion.0 {
                self.portion = (number, 0.0);
            }
            let rest = quota - self.portion.1;
            if len <= rest {
                self.portion.1 += len;
                return at + Duration::from_secs_f64(len / BURST);
            }
            len -= rest;
            self.portion = (number, quota);
            at = next;
        }
    }

    /// A request arrived. False if it is refused.
    pub fn request(&mut self, block: BlockRef, len: u32) -> bool {
        if self.choking || !self.spec.has(block.piece.0) || self.queue.len() >= self.spec.reqq as usize {
            return false;
        }
        self.queue.push_back((block, len));
        true
    }

    /// A cancel arrived. True if the request could still be taken out.
    pub fn cancel(&mut self, block: BlockRef) -> bool {
        let before = self.queue.len();
        self.queue.retain(|(b, _)| *b != block);
        self.queue.len() < before
    }

    /// Takes all requests out: it chokes us.
    pub fn drop_requests(&mut self) -> Vec<BlockRef> {
        self.queue.drain(..).map(|(block, _)| block).collect()
    }

    /// Moves what fits from the queue into the send buffer. Returns that, and when there is room for more, if
    /// more waits.
    pub fn pull(&mut self, now: Time) -> (Vec<Sent>, Option<Time>) {
        let mut sent = Vec::new();
        while self.buffered.front().is_some_and(|(left, _)| *left <= now) {
            self.buffered.pop_front();
        }
        while let Some(&(block, len)) = self.queue.front() {
            let held: u64 = self.buffered.iter().map(|(_, len)| len).sum();
            if held > 0 && held + u64::from(len) > self.spec.buffer {
                return (sent, self.buffered.front().map(|(left, _)| *left));
            }
            self.queue.pop_front();
            let (left, arrives) = self.send(now, u64::from(len));
            self.buffered.push_back((left, len.into()));
            sent.push(Sent { block, len, left, arrives });
        }
        (sent, None)
    }
}

#[cfg(test)]
mod tests {
    use torrentfs::metainfo::geometry::{BLOCK_LEN, BlockIndex, PieceIndex};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn block(n: u32) -> BlockRef {
        BlockRef { piece: PieceIndex(0), block: BlockIndex(n) }
    }

    /// Asks a peer that lets us in for 20 blocks at the start; returns when each arrives, in milliseconds.
    fn arrivals(spec: PeerSpec) -> (Vec<u128>, usize) {
        let mut link = Link::new(PeerSpec { jitter: Duration::ZERO, ..spec }, 1);
        link.choking = false;
        let asked = (0..20).filter(|n| link.request(block(*n), BLOCK_LEN)).count();
        let (mut now, mut came) = (Time::ZERO, Vec::new());
        loop {
            let (sent, again) = link.pull(now);
            came.extend(sent.iter().map(|s| s.arrives.as_millis()));
            match again {
                Some(at) => now = at,
                None => return (came, asked),
            }
        }
    }

    #[test]
    fn blocks_arrive_at_the_rate_and_after_the_delay() {
        // A block each 15.625 ms, and 10 ms of way.
        let (came, _) = arrivals(PeerSpec::new(1 << 20));
        assert_eq!((came.len(), came[0], came[19]), (20, 25, 322));
        // Silent from 100 to 1100 ms: all that comes later comes a second later.
        let stalls = vec![(100 * MS, 1000 * MS)];
        let (stalled, _) = arrivals(PeerSpec { stalls, ..PeerSpec::new(1 << 20) });
        assert_eq!((stalled[0], stalled[5], stalled[6], stalled[19]), (25, 103, 1119, 1322));
        // Eight blocks with each portion, half a second apart, however fast the line.
        let quota = Some(500 * MS);
        let (portions, _) = arrivals(PeerSpec { quota, ..PeerSpec::new(1 << 18) });
        assert!(portions[15] - portions[8] <= 1, "{portions:?}");
        assert_eq!(portions[16] - portions[8], 500, "{portions:?}");
        // More than it takes is refused.
        assert_eq!(arrivals(PeerSpec { reqq: 12, ..PeerSpec::new(1 << 20) }).1, 12);
    }

    #[test]
    fn what_is_in_the_send_buffer_cannot_be_called_back() {
        let mut link = Link::new(PeerSpec::new(1 << 20), 1);
        assert!(!link.request(block(0), BLOCK_LEN), "it chokes us");
        link.choking = false;
        (0..6).for_each(|n| assert!(link.request(block(n), BLOCK_LEN)));
        let (sent, again) = link.pull(Time::ZERO);
        assert_eq!(sent.len(), 4, "64 KiB");
        assert!(!link.cancel(block(3)) && link.cancel(block(4)));
        let (sent, _) = link.pull(again.unwrap());
        assert_eq!(sent.iter().map(|s| s.block).collect::<Vec<_>>(), [block(5)]);
    }
}
