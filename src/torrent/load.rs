//! What a peer has, what it was asked for, and when it may be expected to deliver. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::rate::Rate;
use super::table::bit;
use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, PieceIndex};

/// Requests to a peer whose rate nobody knows yet: enough to measure it, little to lose. From there the depth
/// grows with each block that comes, as in TCP's slow start, until the peer is saturated.
const DEPTH_FIRST: usize = 16;
/// Fewest requests to a peer that delivers: one being sent and one behind it.
const DEPTH_MIN: usize = 2;
/// Most requests to one peer, whatever it allows: 8 MiB on their way.
const DEPTH_MAX: usize = 512;
/// The same for a webseed: a request of 1 MiB for each of the four connections it may have. A request is a round trip
/// there, with nothing on its way meanwhile, so the first ones aren't small.
const WEBSEED_FIRST: usize = 256;
/// Fewest blocks asked of a webseed that delivers: two requests that are worth their round trip.
const WEBSEED_MIN: usize = 32;
/// Most blocks asked of a webseed: four requests of 4 MiB, two thirds of what pieces in the making may take.
const WEBSEED_MAX: usize = 1024;
/// A webseed is asked for more when so many blocks fit (1 MiB), so that they come in one request.
const WEBSEED_STEP: usize = 64;
/// Least work kept queued at a webseed beyond the round trip: requests of some size for all its connections.
const WEBSEED_QUEUE: Duration = Duration::from_secs(1);
/// Requests that a webseed answers side by side: what was asked for first may come as the last of so much.
const WEBSEED_ABREAST: u32 = 4;
/// What is in the buffers between a webseed and us when a response is cut.
const WEBSEED_SENT: u64 = 256 * 1024;
/// Least work kept queued at a peer beyond the round trip: what a busy machine of ours may take to ask for more.
const QUEUE_MIN: Duration = Duration::from_millis(100);
/// Most work kept queued, however unevenly a peer delivers.
const QUEUE_MAX: Duration = Duration::from_millis(1500);
/// How fast the longest pause between deliveries is forgotten.
const GAP_MEMORY: Duration = Duration::from_secs(8);
/// Assumed before anything was measured.
const RATE_GUESS: u64 = 512 * 1024;
/// Assumed round trip before one was measured.
const DELAY_GUESS: Duration = Duration::from_millis(100);
/// A block is late after this multiple of the time it was expected to take…
const LATE_FACTOR: u32 = 3;
/// …and never before this long.
const LATE_MIN: Duration = Duration::from_millis(250);
/// A block isn't asked of another peer as well to have it sooner by less than this.
const WORTH: Duration = Duration::from_millis(100);
/// A peer whose delay isn't known isn't taken to be stuck before this.
const UNKNOWN: Duration = Duration::from_secs(1);
/// A peer in the middle of delivering is silent after this long without a block, or three of its usual pauses.
const SILENT_MIN: Duration = Duration::from_millis(300);
/// How long a peer that let others deliver what it owed is asked for a block at a time, at first; twice as long each
/// time until it delivers: a peer that is back is to be of use soon, and one that never will costs little.
const DOUBT_FIRST: Duration = Duration::from_secs(2);
/// The longest of these times.
const DOUBT_MAX: Duration = Duration::from_secs(60);
/// A peer that owes blocks and was silent for this long isn't taken to be as fast as one that nobody asked yet.
const QUIET: Duration = Duration::from_secs(3);
/// A piece whose block a peer refused isn't asked of it for this long: asking again at once would go round in
/// circles, and keep the block from those who would send it.
const REFUSED: Duration = Duration::from_secs(10);
/// A peer that refused this many pieces is asked for nothing until they are forgiven.
const REFUSED_MAX: usize = 1024;
/// A peer that owes blocks and sends none for this long is asked for nothing but a single block until it does.
const SNUB: Duration = Duration::from_secs(15);
/// What a peer has sent, or is about to, when a cancel reaches it, beyond what is on the line: clients fill a
/// buffer of about this size. Calling that back would bring it twice.
const SENT: u64 = 64 * 1024;
/// A peer that doesn't say that it has taken notice of a cancel (only the fast extension makes it, BEP 6) has
/// sent the block or dropped it after this long and a round trip.
const RECALL: Duration = Duration::from_secs(1);

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
    /// How many it has; more than any torrent has if it has all.
    pub fn count(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::All => u32::MAX,
            Self::Bits(bits) => bits.iter().map(|byte| byte.count_ones()).sum(),
        }
    }
    /// It has one less, of `pieces`.
    pub fn remove(&mut self, piece: PieceIndex, pieces: u32) {
        if matches!(self, Self::All) {
            let mut bits = vec![0xff; (pieces as usize).div_ceil(8)];
            if let (Some(last), spare @ 1..) = (bits.last_mut(), (8 - pieces % 8) % 8) {
                *last &= 0xff << spare;
            }
            *self = Self::Bits(bits);
        }
        if let Self::Bits(bits) = self
            && let Some(byte) = bits.get_mut(piece.0 as usize / 8)
        {
            *byte &= !(0x80 >> (piece.0 % 8));
        }
    }
    /// It has one more, of `pieces`.
    pub fn add(&mut self, piece: PieceIndex, pieces: u32) {
        if piece.0 >= pieces {
            return;
        }
        if matches!(self, Self::None) {
            *self = Self::Bits(Vec::new());
        }
        if let Self::Bits(bits) = self {
            let at = piece.0 as usize / 8;
            // Grows as far as it is used: a peer may have few of a million.
            if bits.len() <= at {
                bits.resize(at + 1, 0);
            }
            if let Some(byte) = bits.get_mut(at) {
                *byte |= 0x80 >> (piece.0 % 8);
            }
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
    /// In which order it was asked for.
    number: u64,
}

impl Request {
    fn is_late(&self, manner: Manner, now: Instant) -> bool {
        let factor = match manner {
            Manner::InOrder => LATE_FACTOR,
            Manner::Abreast => LATE_FACTOR * WEBSEED_ABREAST,
        };
        now.saturating_duration_since(self.at) > (self.expected * factor).max(LATE_MIN)
    }
}

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// By a peer: one block after the other.
    InOrder,
    /// By a webseed: several HTTP requests side by side, each for a run of blocks.
    Abreast,
}

/// What a peer owes, as needed to see what of it is late.
#[derive(Debug, Default)]
pub struct Queue {
    /// The numbers of all requests, in the order in which they were made.
    numbers: Vec<u64>,
    /// Nothing of it comes.
    stuck: bool,
}

impl Queue {
    /// Whether nothing of it comes.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }
}

/// How late a requested block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
            Self::In(remaining) => remaining > other * 2 + WORTH,
        }
    }
}

/// The load of one peer.
#[derive(Debug)]
pub struct PeerLoad {
    manner: Manner,
    has: Has,
    choked: bool,
    allowed_fast: HashSet<PieceIndex>,
    in_flight: HashMap<BlockRef, Request>,
    /// Blocks that were taken back for something more urgent, and since when: they may come all the same.
    recalled: HashMap<BlockRef, Instant>,
    asked: u64,
    /// When a request was made that others answered before the first answer came, so that its delay isn't known.
    first_lost: Option<Instant>,
    /// Most requests the peer accepts (`reqq`).
    limit: usize,
    rate: Rate,
    delay: Option<Duration>,
    /// The depth while it grows with each block; `None` once the peer is saturated.
    ramp: Option<usize>,
    /// Longest pause of late between deliveries while it owed blocks.
    gap: Duration,
    /// It has delivered since it last owed nothing, so a pause is a pause.
    delivering: bool,
    last_progress: Instant,
    snubbed: bool,
    /// What it owed late was delivered by others, and it has sent nothing since it was asked: it isn't asked for
    /// more than a block before it sends something or this moment has come.
    doubted: Option<Instant>,
    /// How long it is doubted the next time.
    doubt: Duration,
    /// The state of what is wanted in which there was nothing to ask of it; see the picker.
    pub(super) idle_at: u64,
    /// Pieces it refused although it should serve them, and since when.
    refused: HashSet<PieceIndex>,
    refused_since: Option<Instant>,
}

impl PeerLoad {
    /// A peer that has nothing and chokes us.
    pub fn new(now: Instant) -> Self {
        Self {
            manner: Manner::InOrder,
            has: Has::None,
            choked: true,
            allowed_fast: HashSet::new(),
            in_flight: HashMap::new(),
            recalled: HashMap::new(),
            asked: 0,
            first_lost: None,
            limit: 250,
            rate: Rate::new(now),
            delay: None,
            ramp: Some(DEPTH_FIRST),
            gap: Duration::ZERO,
            delivering: false,
            last_progress: now,
            snubbed: false,
            doubted: None,
            doubt: DOUBT_FIRST,
            idle_at: 0,
            refused: HashSet::new(),
            refused_since: None,
        }
    }

    /// A webseed: it has everything and chokes nobody.
    pub fn webseed(now: Instant) -> Self {
        Self {
            manner: Manner::Abreast,
            has: Has::All,
            choked: false,
            limit: WEBSEED_MAX,
            ramp: Some(WEBSEED_FIRST),
            ..Self::new(now)
        }
    }

    /// Whether it is a webseed: blocks that follow each other cost it one request.
    pub fn is_webseed(&self) -> bool {
        self.manner == Manner::Abreast
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
        if !choked {
            self.refused.clear();
            self.refused_since = None;
        }
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
        let willing = self.refused.len() < REFUSED_MAX && !self.refused.contains(&piece);
        willing && self.has.has(piece) && (!self.choked || self.allowed_fast.contains(&piece))
    }
    /// It refused a block of this piece. When it chokes us that is how requests end (BEP 6); otherwise it isn't
    /// asked for the piece for a while.
    pub fn refuse(&mut self, piece: PieceIndex, now: Instant) {
        if self.can_serve(piece) {
            self.refused.insert(piece);
            self.refused_since.get_or_insert(now);
        }
    }
    /// Forgets refusals that are old enough.
    pub fn forgive(&mut self, now: Instant) {
        if self.refused_since.is_some_and(|since| now.saturating_duration_since(since) >= REFUSED) {
            self.refused.clear();
            self.refused_since = None;
            self.idle_at = 0;
        }
    }
    /// Whether this block was asked of it.
    pub fn owes(&self, block: BlockRef) -> bool {
        self.in_flight.contains_key(&block)
    }
    /// The blocks asked of it.
    pub fn in_flight(&self) -> impl Iterator<Item = BlockRef> + '_ {
        self.in_flight.keys().copied()
    }
    /// Measured rate in bytes per second, as long as it owes us anything; the last one when it doesn't: that
    /// nothing was asked of it says nothing about the peer.
    pub fn rate(&mut self, now: Instant) -> u64 {
        if self.in_flight.is_empty() { self.rate.last() } else { self.rate.get(now) }
    }
    /// The rate as last measured, without letting time count against it.
    pub fn last_rate(&self) -> u64 {
        if self.choked { 0 } else { self.rate.last() }
    }
    /// Bytes of blocks it delivered.
    pub fn delivered_total(&self) -> u64 {
        self.rate.total()
    }
    /// Whether it owed blocks for long without sending any.
    pub fn is_snubbed(&self) -> bool {
        self.snubbed
    }

    /// How many more requests fit: its bandwidth-delay product, and work for as long as it is used to pause.
    pub fn room(&mut self, now: Instant) -> usize {
        if self.choked && self.allowed_fast.is_empty() {
            return 0;
        }
        let rate = self.rate(now);
        let (least, first, shortest) = match self.manner {
            Manner::InOrder => (DEPTH_MIN, DEPTH_FIRST, QUEUE_MIN),
            Manner::Abreast => (WEBSEED_MIN, WEBSEED_FIRST, WEBSEED_QUEUE),
        };
        let depth = if self.snubbed || self.is_doubtful(now) {
            1
        } else if rate == 0 {
            if self.is_quiet(now) { least } else { first }
        } else {
            let queue = (self.gap * 2).clamp(shortest, QUEUE_MAX);
            let seconds = (self.delay.unwrap_or(DELAY_GUESS) + queue).as_secs_f64();
            let product = (rate as f64 * seconds / f64::from(BLOCK_LEN)) as usize;
            // More on its way no longer brings more.
            self.ramp = self.ramp.filter(|ramp| *ramp <= 2 * product);
            self.ramp.unwrap_or(0).max(product).clamp(least, self.most())
        };
        let room = depth.min(self.limit).saturating_sub(self.in_flight.len());
        // A webseed gets nothing rather than a block at a time.
        let worth = self.manner == Manner::InOrder
            || self.in_flight.is_empty()
            || room >= (depth / 2).min(WEBSEED_STEP);
        if worth { room } else { 0 }
    }

    fn most(&self) -> usize {
        match self.manner {
            Manner::InOrder => DEPTH_MAX,
            Manner::Abreast => WEBSEED_MAX,
        }
    }

    /// Whether it owes blocks and has sent none for a while.
    pub fn is_quiet(&self, now: Instant) -> bool {
        !self.in_flight.is_empty() && now.saturating_duration_since(self.last_progress) > QUIET
    }

    /// Whether it stopped in the middle of delivering, by its own measure.
    pub fn is_silent(&self, now: Instant) -> bool {
        let usual = SILENT_MIN.max(self.gap * 3).max(self.delay.unwrap_or(DELAY_GUESS) * 2);
        self.delivering
            && !self.in_flight.is_empty()
            && now.saturating_duration_since(self.last_progress) > usual
    }

    /// How long one more block would take to come.
    pub fn expected(&self, now: Instant) -> Duration {
        let queued = (self.in_flight.len() as u64 + 1) * u64::from(BLOCK_LEN);
        let silence = if self.snubbed {
            SNUB
        } else if self.is_doubtful(now) {
            QUIET
        } else if self.is_silent(now) {
            now.saturating_duration_since(self.last_progress)
        } else {
            Duration::ZERO
        };
        let transfer = Duration::from_secs_f64(queued as f64 / self.rate_assumed(now) as f64);
        silence + self.delay.unwrap_or(DELAY_GUESS) + transfer
    }

    /// What a further block in its queue adds to that.
    pub fn step(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(f64::from(BLOCK_LEN) / self.rate_assumed(now) as f64)
    }

    fn rate_assumed(&self, now: Instant) -> u64 {
        match self.rate.last() {
            0 if !self.is_quiet(now) => RATE_GUESS,
            rate => rate.max(1024),
        }
    }

    /// It is asked for a block.
    pub fn request(&mut self, block: BlockRef, now: Instant) {
        let first = self.in_flight.is_empty();
        if first {
            self.rate.resume(now);
            self.last_progress = now;
            self.delivering = false;
        }
        let expected = self.expected(now);
        self.asked += 1;
        self.in_flight.insert(block, Request { at: now, expected, first, number: self.asked });
    }

    /// The blocks asked of it that a cancel would still find in its queue, the last asked for first: not those
    /// that are on the line by then, or in its send buffer.
    pub fn cancellable(&self) -> Vec<BlockRef> {
        let rate = self.rate.last();
        let line = self.delay.unwrap_or(DELAY_GUESS).as_secs_f64() * rate as f64;
        let buffered = match self.manner {
            Manner::InOrder => SENT,
            Manner::Abreast => WEBSEED_SENT,
        };
        let sent = ((line as u64 + buffered) / u64::from(BLOCK_LEN)) as usize;
        if self.in_flight.len() <= sent {
            return Vec::new();
        }
        let mut blocks: Vec<(u64, BlockRef)> = self.in_flight.iter().map(|(b, r)| (r.number, *b)).collect();
        blocks.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        blocks.truncate(blocks.len() - sent);
        blocks.into_iter().map(|(_, block)| block).collect()
    }

    /// A block is taken back; it may come all the same. False if it wasn't asked for.
    pub fn recall(&mut self, block: BlockRef, now: Instant) -> bool {
        let asked = self.finish(block);
        if asked {
            self.recalled.insert(block, now);
        }
        asked
    }

    /// A recalled block won't come any more, or has come. False if it wasn't recalled.
    pub fn settled(&mut self, block: BlockRef) -> bool {
        self.recalled.remove(&block).is_some()
    }

    /// Whether this block was recalled and may still come.
    pub fn is_recalled(&self, block: BlockRef) -> bool {
        self.recalled.contains_key(&block)
    }

    /// The recalled blocks that won't come any more, by their time.
    pub fn recalled_long_ago(&self, now: Instant) -> Vec<BlockRef> {
        let enough = RECALL + self.delay.unwrap_or(DELAY_GUESS);
        let long_ago = |at: &Instant| now.saturating_duration_since(*at) >= enough;
        let mut blocks: Vec<BlockRef> =
            self.recalled.iter().filter(|(_, at)| long_ago(at)).map(|(block, _)| *block).collect();
        blocks.sort_unstable();
        blocks
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
            let delay =
                self.delay.map_or(sample, |d| if sample < d { sample } else { d + (sample - d) / 16 });
            self.delay = Some(delay);
            // What it took beyond that, the peer paused: one whose limiter hands out quota now and then answers all
            // that it was asked for in a burst, and the pauses are there and not between blocks.
            self.paused(sample.saturating_sub(delay));
            self.last_progress = now;
        }
        self.delivered_late(len, now);
    }

    /// It delivered `len` bytes of a block that was taken back.
    pub fn delivered_late(&mut self, len: u32, now: Instant) {
        self.rate.add(u64::from(len), now);
        if let Some(at) = self.first_lost.take()
            && self.delay.is_none()
        {
            // It was only far away.
            self.delay = Some(now.saturating_duration_since(at));
        }
        let pause = now.saturating_duration_since(self.last_progress);
        if self.delivering {
            self.paused(pause);
        }
        let most = self.most();
        if let Some(ramp) = &mut self.ramp {
            *ramp = (*ramp + 1).min(most);
        }
        self.delivering = true;
        self.last_progress = now;
        self.snubbed = false;
        self.doubted = None;
        self.doubt = DOUBT_FIRST;
    }

    /// Another peer delivered a block that this one was asked for as well.
    pub fn lost(&mut self, block: BlockRef, now: Instant) {
        if let Some(request) = self.in_flight.remove(&block) {
            if request.first {
                self.first_lost = Some(request.at);
            }
            let waited = now.saturating_duration_since(request.at);
            if self.last_progress <= request.at && waited > LATE_MIN.max(request.expected) {
                self.doubts(now);
            }
        }
    }

    /// Nothing came of it in time.
    fn doubts(&mut self, now: Instant) {
        if !self.is_doubtful(now) {
            self.doubted = Some(now + self.doubt);
            self.doubt = (self.doubt * 2).min(DOUBT_MAX);
        }
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|until| now < until)
    }

    /// How many more requests it accepts for what is urgent, if it has shown that it delivers.
    pub fn room_for_urgent(&self, now: Instant) -> usize {
        let choked = self.choked && self.allowed_fast.is_empty();
        if choked || self.snubbed || self.is_doubtful(now) || self.rate.last() == 0 {
            return 0;
        }
        self.limit.min(self.most()).saturating_sub(self.in_flight.len())
    }

    fn paused(&mut self, pause: Duration) {
        let kept = self.gap.mul_f64((-pause.as_secs_f64() / GAP_MEMORY.as_secs_f64()).exp());
        self.gap = kept.max(pause);
    }

    /// Takes everything that was asked of it, recalled or not.
    pub fn take_in_flight(&mut self) -> Vec<BlockRef> {
        let mut blocks: Vec<BlockRef> =
            self.in_flight.drain().map(|(b, _)| b).chain(self.recalled.drain().map(|(b, _)| b)).collect();
        blocks.sort_unstable();
        blocks
    }

    /// Takes what was asked of it, recalled or not, of pieces that it doesn't have.
    pub fn take_lacking(&mut self) -> Vec<BlockRef> {
        let mut blocks: Vec<BlockRef> = self.in_flight.keys().chain(self.recalled.keys()).copied().collect();
        blocks.retain(|block| !self.has.has(block.piece));
        for block in &blocks {
            self.in_flight.remove(block);
            self.recalled.remove(block);
        }
        blocks.sort_unstable();
        blocks
    }

    /// How late a block asked of it is; `None` if it wasn't asked. `queue` is [`PeerLoad::queue`].
    pub fn lateness(&self, block: BlockRef, queue: &Queue, now: Instant) -> Option<Lateness> {
        let request = self.in_flight.get(&block)?;
        let elapsed = now.saturating_duration_since(request.at);
        if queue.stuck || request.is_late(self.manner, now) {
            return Some(Lateness::Late);
        }
        // As it looked then, or as it looks now that more is known.
        let then = request.expected.saturating_sub(elapsed);
        let ahead = queue.numbers.partition_point(|number| *number <= request.number) as u32;
        Some(Lateness::In(then.max(self.step(now) * ahead)))
    }

    /// What it owes.
    pub fn queue(&self, now: Instant) -> Queue {
        let mut numbers: Vec<u64> = self.in_flight.values().map(|r| r.number).collect();
        numbers.sort_unstable();
        // Peers answer in order: when the oldest doesn't come, neither does what is behind it.
        let oldest = self.in_flight.values().min_by_key(|r| r.number);
        // One that nobody knows yet may be far away.
        let patience = if self.delay.is_some() { Duration::ZERO } else { UNKNOWN };
        let owed =
            |r: &Request| r.is_late(self.manner, now) && now.saturating_duration_since(r.at) >= patience;
        let never = !self.delivering && oldest.is_some_and(owed);
        Queue { numbers, stuck: self.is_silent(now) || never }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::geometry::BlockIndex;

    const S: Duration = Duration::from_secs(1);

    fn block(n: u32) -> BlockRef {
        BlockRef { piece: PieceIndex(n), block: BlockIndex(0) }
    }

    fn seed(now: Instant) -> PeerLoad {
        let mut load = PeerLoad::new(now);
        *load.has_mut() = Has::All;
        load.set_choked(false);
        load
    }

    /// It delivers `rate` bytes per second, 100 ms after each request, for ten seconds.
    fn deliver(load: &mut PeerLoad, start: Instant, rate: u32) -> Instant {
        for tenth in 1..=100 {
            let at = start + S / 10 * tenth;
            load.request(block(0), at - S / 10);
            load.delivered(block(0), rate / 10, at);
        }
        start + 10 * S
    }

    #[test]
    fn the_depth_follows_rate_and_delay() {
        let start = Instant::now();
        // Bytes per second, and requests: rate times the delay and a tenth of a second.
        for (rate, depth) in [(1_000, DEPTH_MIN), (819_200, 10), (8_192_000, 100), (100 << 20, DEPTH_MAX)] {
            let mut load = seed(start);
            load.set_limit(u32::MAX);
            assert_eq!(load.room(start), DEPTH_FIRST);
            let now = deliver(&mut load, start, rate);
            let room = load.room(now);
            // Up to twice as many while it isn't known that the peer is saturated.
            assert!((depth - 1..=depth * 2).contains(&room), "{rate}: {room}");
            load.set_limit(5);
            assert!(load.room(now) <= 5);
            load.set_choked(true);
            assert_eq!(load.room(now), 0);
        }
    }

    #[test]
    fn a_webseed_is_asked_for_runs_of_blocks() {
        let start = Instant::now();
        let mut load = PeerLoad::webseed(start);
        assert!(load.can_serve(PieceIndex(7)) && load.is_webseed());
        assert_eq!(load.room(start), WEBSEED_FIRST, "four requests of 1 MiB before anything was measured");
        // Bytes per second, and blocks: a second's work, within bounds.
        for (rate, depth) in [(1_000, WEBSEED_MIN), (1 << 20, 70), (8 << 20, 563), (100 << 20, WEBSEED_MAX)] {
            let mut load = PeerLoad::webseed(start);
            let now = deliver(&mut load, start, rate);
            let room = load.room(now);
            assert!((depth - 1..=depth * 2).contains(&room), "{rate}: {room}");
            // It gets more when a run of some length fits, not with each block that comes.
            (0..room as u32).for_each(|n| load.request(block(n), now));
            let step = (room / 2).min(WEBSEED_STEP);
            for n in 1..=step as u32 {
                assert_eq!(load.room(now), 0, "{rate}: after {n} of {step}");
                load.finish(block(n));
            }
            assert!(load.room(now) >= step, "{rate}");
        }
    }

    #[test]
    fn what_comes_side_by_side_is_not_late_for_being_the_last() {
        let start = Instant::now();
        let mut load = PeerLoad::webseed(start);
        let now = deliver(&mut load, start, 1 << 20);
        // Four requests of 16 blocks: the last block of the first comes with the last of all, after a second.
        (0..64).for_each(|n| load.request(block(n), now));
        for came in 0..60 {
            let at = now + S / 64 * (came + 1);
            load.delivered(block(came % 4 * 16 + came / 4), BLOCK_LEN, at);
            let lateness = load.lateness(block(15), &load.queue(at), at);
            assert_ne!(lateness, Some(Lateness::Late), "after {came}");
        }
        assert_eq!(load.lateness(block(15), &load.queue(now + 9 * S), now + 9 * S), Some(Lateness::Late));
    }

    #[test]
    fn what_it_was_asked_of_pieces_that_it_lacks_is_taken_back() {
        let now = Instant::now();
        let mut load = PeerLoad::webseed(now);
        (0..4).for_each(|n| load.request(block(n), now));
        load.recall(block(3), now);
        (2..4).for_each(|n| load.has_mut().remove(PieceIndex(n), 9));
        assert_eq!(load.take_lacking(), [block(2), block(3)]);
        assert!(load.owes(block(1)) && !load.owes(block(2)) && !load.is_recalled(block(3)));
        assert!(load.can_serve(PieceIndex(8)) && !load.can_serve(PieceIndex(2)));
    }

    #[test]
    fn idling_says_nothing_about_a_peer_and_silence_does() {
        let start = Instant::now();
        let mut load = seed(start);
        let now = deliver(&mut load, start, 1 << 20);
        // Asked for its rate every ten seconds, as the choker does.
        (1..10).for_each(|i| assert!(load.rate(now + 10 * S * i) > 900_000));
        let soon = load.expected(now);
        assert!(load.expected(now + 100 * S) <= soon);
        let later = now + 100 * S;
        load.request(block(1), later);
        load.rate(later + 10 * S);
        assert!(load.expected(later + 10 * S) > 10 * soon);
        // Nobody knows how fast one is that was never asked; one that owes for long isn't fast.
        let mut silent = seed(start);
        let guess = silent.expected(start);
        silent.request(block(1), start);
        assert!(silent.expected(start + 4 * S) > 10 * guess);
        assert!(silent.snub_if_silent(start + 16 * S));
        silent.take_in_flight();
        assert!(silent.expected(start + 16 * S) > SNUB);
        assert_eq!(silent.room(start + 16 * S), 1);
        silent.delivered_late(16384, start + 17 * S);
        assert!(!silent.is_snubbed());
    }

    #[test]
    fn what_was_refused_is_not_asked_for_until_it_is_forgiven() {
        let now = Instant::now();
        let mut load = seed(now);
        load.refuse(PieceIndex(1), now);
        assert!(!load.can_serve(PieceIndex(1)) && load.can_serve(PieceIndex(2)));
        load.forgive(now + REFUSED - S / 10);
        assert!(!load.can_serve(PieceIndex(1)));
        load.forgive(now + REFUSED);
        assert!(load.can_serve(PieceIndex(1)));
        // Requests end by refusals when it chokes us: that is no unwillingness.
        load.set_choked(true);
        load.refuse(PieceIndex(1), now);
        load.set_choked(false);
        assert!(load.can_serve(PieceIndex(1)));
        // But a piece that it offered in spite of it and refuses isn't asked for in a circle.
        load.set_choked(true);
        load.allow_fast(PieceIndex(3));
        load.refuse(PieceIndex(3), now);
        assert!(!load.can_serve(PieceIndex(3)));
        // What is kept is bounded.
        load.set_choked(false);
        (0..1_000_000).for_each(|piece| load.refuse(PieceIndex(piece), now));
        assert_eq!(load.refused.len(), REFUSED_MAX);
        assert!(!load.can_serve(PieceIndex(2_000_000)));
        (0..1_000_000).for_each(|piece| load.allow_fast(PieceIndex(piece)));
        assert!(load.allowed_fast.len() <= 64);
    }

    #[test]
    fn what_it_has_is_bounded_by_the_torrent() {
        let mut has = Has::None;
        has.add(PieceIndex(20), 20);
        assert!(matches!(has, Has::None));
        has.add(PieceIndex(19), 20);
        assert!(has.has(PieceIndex(19)) && !has.has(PieceIndex(18)) && !has.has(PieceIndex(u32::MAX)));
        let mut all = Has::All;
        all.add(PieceIndex(3), 20);
        assert!(all.has(PieceIndex(7)));
    }
}
