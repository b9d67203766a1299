//! What a peer has, what it was asked for, and when it may be expected to deliver. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::rate::Rate;
use super::table::bit;
use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, PieceIndex};

/// Requests to a peer whose rate nobody knows yet: enough to measure it, little to lose.
const DEPTH_FIRST: usize = 16;
/// Fewest requests to a peer that delivers: one being sent and one behind it.
const DEPTH_MIN: usize = 2;
/// Most requests to one peer, whatever it allows: 8 MiB on their way.
const DEPTH_MAX: usize = 512;
/// Work kept queued at a peer beyond the round trip. Peers whose limiter hands out quota twice a second need
/// more than half a second of it.
const QUEUE: Duration = Duration::from_millis(1000);
/// Assumed before anything was measured.
const RATE_GUESS: u64 = 512 * 1024;
/// Assumed round trip before one was measured.
const DELAY_GUESS: Duration = Duration::from_millis(100);
/// A block is late after this multiple of the time it was expected to take…
const LATE_FACTOR: u32 = 3;
/// …and never before this long.
const LATE_MIN: Duration = Duration::from_millis(500);
/// A peer that owes blocks and sends none for this long is asked for nothing but a single block until it does.
const SNUB: Duration = Duration::from_secs(15);

/// Which pieces a peer has.
#[derive(Debug, Clone)]
pub enum Has {
    /// None.
    None,
    /// All.
    All,
    /// Those whose bit is set.
    Bits(Vec<u8>),
}

impl Has {
    /// Whether it has this piece.
    pub fn has(&self, piece: PieceIndex) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Bits(bits) => bit(bits, piece.0),
        }
    }
    /// It has one more, of `pieces`.
    pub fn add(&mut self, piece: PieceIndex, pieces: u32) {
        if piece.0 >= pieces {
            return;
        }
        if matches!(self, Self::None) {
            *self = Self::Bits(vec![0; (pieces as usize).div_ceil(8)]);
        }
        if let Self::Bits(bits) = self
            && let Some(byte) = bits.get_mut(piece.0 as usize / 8)
        {
            *byte |= 0x80 >> (piece.0 % 8);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Request {
    at: Instant,
    /// When it was expected, as seen when it was asked for.
    expected: Duration,
    /// Nothing else was on its way: its delay is the round trip.
    first: bool,
}

/// How late a requested block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lateness {
    /// Expected in this time.
    In(Duration),
    /// Should have been here long ago.
    Late,
}

impl Lateness {
    /// Whether asking another peer that would take `other` is worth a block's traffic.
    pub fn is_worth(self, other: Duration) -> bool {
        match self {
            Self::Late => true,
            Self::In(remaining) => remaining > other * 4 + LATE_MIN,
        }
    }
}

/// The load of one peer.
#[derive(Debug)]
pub struct PeerLoad {
    has: Has,
    choked: bool,
    allowed_fast: HashSet<PieceIndex>,
    in_flight: HashMap<BlockRef, Request>,
    /// Most requests the peer accepts (`reqq`).
    limit: usize,
    rate: Rate,
    delay: Option<Duration>,
    last_progress: Instant,
    snubbed: bool,
}

impl PeerLoad {
    /// A peer that has nothing and chokes us.
    pub fn new(now: Instant) -> Self {
        Self {
            has: Has::None,
            choked: true,
            allowed_fast: HashSet::new(),
            in_flight: HashMap::new(),
            limit: 250,
            rate: Rate::new(now),
            delay: None,
            last_progress: now,
            snubbed: false,
        }
    }

    /// What it has.
    pub fn has(&self) -> &Has {
        &self.has
    }
    /// What it has, to change.
    pub fn has_mut(&mut self) -> &mut Has {
        &mut self.has
    }
    /// It chokes us, or no longer.
    pub fn set_choked(&mut self, choked: bool) {
        self.choked = choked;
    }
    /// Whether it chokes us.
    pub fn is_choked(&self) -> bool {
        self.choked
    }
    /// It serves this piece although it chokes us (BEP 6). Bounded, since a peer could send millions.
    pub fn allow_fast(&mut self, piece: PieceIndex) {
        if self.allowed_fast.len() < 64 {
            self.allowed_fast.insert(piece);
        }
    }
    /// How many requests it accepts at a time.
    pub fn set_limit(&mut self, reqq: u32) {
        self.limit = (reqq as usize).clamp(1, DEPTH_MAX);
    }
    /// Whether it may be asked for this piece now.
    pub fn can_serve(&self, piece: PieceIndex) -> bool {
        self.has.has(piece) && (!self.choked || self.allowed_fast.contains(&piece))
    }
    /// Whether this block was asked of it.
    pub fn owes(&self, block: BlockRef) -> bool {
        self.in_flight.contains_key(&block)
    }
    /// The blocks asked of it.
    pub fn in_flight(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.in_flight.keys().copied()
    }
    /// Measured rate in bytes per second.
    pub fn rate(&mut self, now: Instant) -> u64 {
        self.rate.get(now)
    }
    /// Bytes of blocks it delivered.
    pub fn delivered_total(&self) -> u64 {
        self.rate.total()
    }
    /// Whether it owed blocks for long without sending any.
    pub fn is_snubbed(&self) -> bool {
        self.snubbed
    }

    /// How many more requests fit: its bandwidth-delay product and a second's work behind it.
    pub fn room(&mut self, now: Instant) -> usize {
        if self.choked && self.allowed_fast.is_empty() {
            return 0;
        }
        let rate = if self.in_flight.is_empty() { self.rate.last() } else { self.rate.get(now) };
        let depth = if self.snubbed {
            1
        } else if rate == 0 {
            DEPTH_FIRST
        } else {
            let seconds = (self.delay.unwrap_or(DELAY_GUESS) + QUEUE).as_secs_f64();
            ((rate as f64 * seconds / f64::from(BLOCK_LEN)) as usize).clamp(DEPTH_MIN, DEPTH_MAX)
        };
        depth.min(self.limit).saturating_sub(self.in_flight.len())
    }

    /// How long one more block would take to come.
    pub fn expected(&self, _now: Instant) -> Duration {
        let rate = match self.rate.last() {
            0 => RATE_GUESS,
            rate => rate.max(1024),
        };
        let queued = (self.in_flight.len() as u64 + 1) * u64::from(BLOCK_LEN);
        self.delay.unwrap_or(DELAY_GUESS) + Duration::from_secs_f64(queued as f64 / rate as f64)
    }

    /// It is asked for a block.
    pub fn request(&mut self, block: BlockRef, now: Instant) {
        let first = self.in_flight.is_empty();
        if first {
            self.rate.resume(now);
            self.last_progress = now;
        }
        let expected = self.expected(now);
        self.in_flight.insert(block, Request { at: now, expected, first });
    }

    /// A block is no longer expected from it. False if it wasn't.
    pub fn finish(&mut self, block: BlockRef) -> bool {
        self.in_flight.remove(&block).is_some()
    }

    /// It delivered a block of `len` bytes.
    pub fn delivered(&mut self, block: BlockRef, len: u32, now: Instant) {
        if let Some(request) = self.in_flight.remove(&block)
            && request.first
        {
            let sample = now.saturating_duration_since(request.at);
            // The shortest is the nearest to the round trip; it drifts up slowly, as lines change.
            self.delay = Some(self.delay.map_or(sample, |d| if sample < d { sample } else { d + (sample - d) / 16 }));
        }
        self.rate.add(u64::from(len), now);
        self.last_progress = now;
        self.snubbed = false;
    }

    /// Takes everything that was asked of it.
    pub fn take_in_flight(&mut self) -> Vec<BlockRef> {
        let mut blocks: Vec<BlockRef> = self.in_flight.drain().map(|(b, _)| b).collect();
        blocks.sort_unstable();
        blocks
    }

    /// How late a block asked of it is; `None` if it wasn't asked.
    pub fn lateness(&self, block: BlockRef, now: Instant) -> Option<Lateness> {
        let request = self.in_flight.get(&block)?;
        let elapsed = now.saturating_duration_since(request.at);
        if elapsed > (request.expected * LATE_FACTOR).max(LATE_MIN) {
            return Some(Lateness::Late);
        }
        Some(Lateness::In(request.expected.saturating_sub(elapsed)))
    }

    /// Marks it snubbed if it owes blocks and has been silent for long; true if that is new or it is still so.
    pub fn snub_if_silent(&mut self, now: Instant) -> bool {
        let silent = !self.in_flight.is_empty() && now.saturating_duration_since(self.last_progress) > SNUB;
        if silent {
            self.snubbed = true;
            self.last_progress = now;
        }
        silent
    }
}
