//! Open handles as the torrent sees them: what is fetched ahead of each reader, and by when. Pure.
//!
//! A window never exceeds what its handle has read in sequence, so a reader that looks at the head of a file
//! (`file`, a thumbnailer) or jumps about opens none to speak of. It grows as sequential reading is proven, up to
//! some seconds of what the swarm delivers and a fair share of what all handles may have, and a seek drops it at
//! once. Of the piece in which it ends the blocks within it are wanted, so what is fetched and not read is never more
//! than what was read, also where pieces are large. A handle that hasn't read for a while gives its window up.
//!
//! Each piece of a window is due when the reader will come to it at the rate at which it reads: so a player isn't
//! outrun by a copy beside it, and neither fetches sooner than it must what the other needs now.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::rate::Rate;
use super::track::{Reach, SLACK};
use crate::metainfo::geometry::{BLOCK_LEN, FileIndex};

/// Most bytes fetched ahead for one handle: over a tenth of a second's work at the rate of the fastest line.
pub const AHEAD_MAX: u64 = 32 << 20;
/// A reader as fast as this is held up by nobody's jitter, only by what has to be done for each byte: what lies ahead
/// of it is kept in memory between coming and being read ([`super::recent`]), as long as it isn't much.
const FAST: u64 = 64 << 20;
/// For such a reader, at most this many bytes…
const AHEAD_FAST: u64 = 8 << 20;
/// …or pieces, whichever is more: one being hashed, one coming in, and one to go on with.
const AHEAD_FAST_PIECES: u64 = 4;
/// Most bytes fetched ahead for all handles of a torrent together.
const AHEAD_ALL: u64 = 64 << 20;
/// A window holds no more than what the swarm delivers in this time: what lies further off comes soon enough later,
/// and a seek would have it fetched for nothing.
const AHEAD_TIME: u64 = 8;
/// …but at least this: the rate isn't known at first.
const AHEAD_MIN: u64 = 4 << 20;
/// In how many steps a window goes forward by its own length.
const AHEAD_STEPS: u64 = 8;
/// Below this much read in sequence a window takes whole pieces only: the first blocks of one further that nobody
/// comes to would be for nothing, and a piece that one is soon to need whole is asked for soon enough.
const PARTS_FROM: u64 = 512 << 10;
/// A handle that hasn't read for so long, and isn't waiting, gives up its window.
const IDLE: Duration = Duration::from_secs(30);
/// Read-ahead comes after what is waited for.
const DELAY: Duration = Duration::from_millis(100);
/// What a reader is taken to read, in bytes per second, as long as nobody knows: faster than any.
const PACE_FIRST: u64 = 256 << 20;
/// The slowest that a reader is taken to be.
const PACE_MIN: u64 = 64 << 10;
/// Its rate is known after it has read so much…
const PACE_KNOWN: u64 = 2 << 20;
/// …and a pause longer than this, in which it waited for nothing, says nothing about it.
const PAUSE: Duration = Duration::from_secs(10);

/// What changes in what is to be fetched ahead.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Pieces that aren't wanted any more.
    pub drop: Vec<u32>,
    /// Pieces that are wanted now, when they are due, and how many of their first blocks; also where that has
    /// changed.
    pub want: Vec<(u32, Instant, u32)>,
}

#[derive(Debug)]
struct Stream {
    file: FileIndex,
    /// End of the file in the torrent's linear space.
    end: u64,
    reach: Reach,
    wanted: Range<u32>,
    /// How many blocks of the last piece.
    edge: u32,
    speed: Rate,
    /// The rate by which the pieces' times were set.
    pace: u64,
    /// When the last of them is due.
    due: Option<Instant>,
    moved: Instant,
    /// Reads that wait.
    waits: u32,
}

/// All open handles of a torrent.
#[derive(Debug)]
pub struct Streams {
    piece_length: u64,
    /// Most bytes fetched ahead for all handles together.
    ahead_all: u64,
    streams: BTreeMap<u64, Stream>,
}

impl Streams {
    /// None, on a torrent with pieces of this many bytes, of all of whose data no more than `keep` bytes are kept.
    pub fn new(piece_length: u32, keep: Option<u64>) -> Self {
        // What is ahead of readers must not drive out what they are about to read.
        let ahead_all = keep.map_or(AHEAD_ALL, |keep| AHEAD_ALL.min(keep / 4));
        Self { piece_length: u64::from(piece_length.max(1)), ahead_all, streams: BTreeMap::new() }
    }

    /// A handle is open on a file that ends at `end`; nothing is fetched ahead yet.
    pub fn open(&mut self, id: u64, file: FileIndex, end: u64, now: Instant) {
        let stream = Stream {
            file,
            end,
            reach: Reach::default(),
            wanted: 0..0,
            edge: 0,
            speed: Rate::new(now),
            pace: 0,
            due: None,
            moved: now,
            waits: 0,
        };
        self.streams.insert(id, stream);
    }

    /// The handle is closed: the pieces that were wanted for it.
    pub fn close(&mut self, id: u64) -> Range<u32> {
        self.streams.remove(&id).map_or(0..0, |s| s.wanted)
    }

    /// The file a handle is open on.
    pub fn file(&self, id: u64) -> Option<FileIndex> {
        self.streams.get(&id).map(|s| s.file)
    }

    /// Number of open handles.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// A read of the handle waits, or no longer does.
    pub fn waits(&mut self, id: u64, more: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.waits = if more { stream.waits + 1 } else { stream.waits.saturating_sub(1) };
        }
    }

    /// The reader has moved. `rate` is what the swarm delivers, in bytes per second. Costs as much as changes.
    pub fn moved(&mut self, id: u64, reach: Reach, rate: u64, now: Instant) -> Change {
        let piece_length = self.piece_length;
        let active = self.streams.values().filter(|s| !s.wanted.is_empty()).count().max(1) as u64;
        let stream = self.streams.get_mut(&id).filter(|s| reach.number >= s.reach.number);
        let Some(stream) = stream else { return Change::default() };
        let goes_on = stream.measure(reach, now);
        let most = match stream.pace() {
            FAST.. => (AHEAD_FAST_PIECES * piece_length).clamp(AHEAD_FAST, AHEAD_MAX),
            _ => AHEAD_MAX,
        };
        let share = reach.run.min(AHEAD_MAX).min((self.ahead_all / active).max(piece_length));
        let ahead = share.min(most).min((rate * AHEAD_TIME).max(AHEAD_MIN));
        let window = stream.step(stream.window(ahead, piece_length), ahead, piece_length);
        let (wanted, edge) = match goes_on {
            true => stream.kept(window, stream.window(share, piece_length)),
            false => window,
        };
        let old_last = stream.wanted.end.wrapping_sub(1);
        let grown = edge != std::mem::replace(&mut stream.edge, edge);
        let old = std::mem::replace(&mut stream.wanted, wanted.clone());
        let pace = stream.pace();
        let changed = pace > stream.pace * 2 || pace * 2 < stream.pace;
        if changed {
            stream.pace = pace;
        }
        let from = reach.position / piece_length;
        // What is read first is due first, also if the reader was faster lately than it was taken to be.
        let floor = stream.due.filter(|_| !changed && wanted.contains(&old_last));
        let due = |piece: &u32| {
            let bytes = u64::from(*piece).saturating_sub(from) * piece_length;
            let due = now + DELAY + Duration::from_millis(bytes * 1000 / stream.pace.max(1));
            match floor {
                Some(floor) if *piece == old_last => floor,
                Some(floor) if *piece > old_last => due.max(floor),
                _ => due,
            }
        };
        let last_due = wanted.end.checked_sub(1).filter(|_| !wanted.is_empty()).map(|last| due(&last));
        let change = Change {
            drop: old.clone().filter(|p| !wanted.contains(p)).collect(),
            want: wanted
                .clone()
                .filter(|p| {
                    let last = *p + 1 == wanted.end;
                    changed || !old.contains(p) || (last && grown) || (*p == old_last && !last)
                })
                .map(|p| (p, due(&p), if p + 1 == wanted.end { edge } else { u32::MAX }))
                .collect(),
        };
        stream.due = last_due;
        change
    }

    /// Handles that have given up their windows: their pieces.
    pub fn idle(&mut self, now: Instant) -> Vec<(u64, Range<u32>)> {
        let idle = self.streams.iter_mut().filter(|(_, s)| {
            !s.wanted.is_empty() && s.waits == 0 && now.saturating_duration_since(s.moved) >= IDLE
        });
        idle.map(|(id, s)| (*id, std::mem::take(&mut s.wanted))).collect()
    }

    /// Whether no handle is open.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The numbers of all handles.
    pub fn ids(&self) -> Vec<u64> {
        self.streams.keys().copied().collect()
    }
}

impl Stream {
    /// False if the reader has jumped.
    fn measure(&mut self, reach: Reach, now: Instant) -> bool {
        let advance = reach.position.saturating_sub(self.reach.position);
        let seek = reach.run < self.reach.run || advance > reach.run;
        let paused = self.waits == 0 && now.saturating_duration_since(self.moved) > PAUSE;
        if paused {
            self.speed.resume(now);
        }
        if !seek {
            self.speed.add(advance, now);
        }
        self.reach = reach;
        self.moved = now;
        !seek
    }

    fn pace(&self) -> u64 {
        let known = self.speed.total() >= PACE_KNOWN && self.speed.last() > 0;
        if known { self.speed.last().max(PACE_MIN) } else { PACE_FIRST }
    }

    /// The pieces from the position on that begin within `ahead` bytes, and how many blocks of the last one lie
    /// within.
    fn window(&self, ahead: u64, piece_length: u64) -> (Range<u32>, u32) {
        let Reach { position, .. } = self.reach;
        let last = self.end.div_ceil(piece_length) as u32;
        let first = (position / piece_length) as u32;
        let reach = position.saturating_add(ahead);
        let within = (reach % piece_length / u64::from(BLOCK_LEN)) as u32;
        let (end, mut edge) = match () {
            () if reach >= self.end => (last, u32::MAX),
            () if within == 0 || self.reach.run < PARTS_FROM => ((reach / piece_length) as u32, u32::MAX),
            () => ((reach / piece_length) as u32 + 1, within),
        };
        let mut window = if position >= self.end { first..first } else { first..end.max(first) };
        let kept = (position.saturating_sub(SLACK) / piece_length) as u32;
        let near = self.wanted.start <= window.start && self.wanted.end >= window.start;
        if near && !self.wanted.is_empty() {
            // What is wanted just behind the position may be about to be read: it came out of order.
            window.start = self.wanted.start.max(kept).min(window.start);
            if window.start < first {
                window.end = window.end.max(first.min(self.wanted.end));
            }
        }
        if window.end != end {
            edge = u32::MAX;
        }
        (window, edge)
    }
}

impl Stream {
    /// The window's end goes forward in steps of some pieces, where it holds many: what is wanted a piece at a time is
    /// asked for a piece at a time, and where a request is a round trip that is the slowest way.
    fn step(
        &self,
        (mut wanted, mut edge): (Range<u32>, u32),
        ahead: u64,
        piece_length: u64,
    ) -> (Range<u32>, u32) {
        let step = (ahead / AHEAD_STEPS / piece_length) as u32;
        let end = self.wanted.end;
        let goes_on = !self.wanted.is_empty() && (wanted.start..wanted.end).contains(&end);
        let at_end = u64::from(wanted.end) * piece_length >= self.end;
        if goes_on && !at_end && wanted.end - end < step {
            (wanted.end, edge) = (end, self.edge);
        }
        (wanted, edge)
    }

    /// A window that is to be shorter, since the line or the reader has another rate than before, stays until the
    /// reader has come so far: what was asked for by then is as good as here, and calling it back only to ask again
    /// brings it twice. What is more than the handle's share is given up.
    fn kept(&self, window: (Range<u32>, u32), share: (Range<u32>, u32)) -> (Range<u32>, u32) {
        let ((wanted, edge), (most, most_edge)) = (window, share);
        let old = (self.wanted.end, self.edge);
        if self.wanted.is_empty() || old <= (wanted.end, edge) {
            return (wanted, edge);
        }
        let (end, edge) = old.min((most.end, most_edge)).max((wanted.end, edge));
        (wanted.start..end, edge)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::track::Track;
    use super::*;

    const MIB: u64 = 1 << 20;
    const FAST: u64 = 1 << 30;

    /// A handle on a file, its reads, and what is wanted for it.
    struct Handle {
        track: Track,
        wanted: BTreeMap<u32, (Instant, u32)>,
    }

    struct World {
        streams: Streams,
        handles: Vec<Handle>,
        now: Instant,
        rate: u64,
    }

    fn world(piece: u64, size: u64, handles: usize) -> World {
        let now = Instant::now();
        let mut streams = Streams::new(piece as u32, None);
        for id in 0..handles {
            streams.open(id as u64, FileIndex(0), size, now);
        }
        let handle = |_| Handle { track: Track::new(0), wanted: BTreeMap::new() };
        World { streams, handles: (0..handles).map(handle).collect(), now, rate: FAST }
    }

    impl World {
        fn one(&mut self, id: usize, offset: u64, len: u64) {
            if let Some(reach) = self.handles[id].track.on_read(offset, len, self.now) {
                let change = self.streams.moved(id as u64, reach, self.rate, self.now);
                let wanted = &mut self.handles[id].wanted;
                change.drop.iter().for_each(|p| assert!(wanted.remove(p).is_some(), "{p} wasn't wanted"));
                wanted.extend(change.want.into_iter().map(|(piece, due, blocks)| (piece, (due, blocks))));
            }
        }

        /// The last piece that is wanted for a handle.
        fn last(&self, id: usize) -> u32 {
            *self.handles[id].wanted.keys().last().unwrap()
        }

        /// Reads on in steps of 128 KiB at `rate` bytes per second; returns what is wanted from there on.
        fn read(&mut self, id: usize, range: Range<u64>, rate: u64) -> Range<u32> {
            let mut at = range.start;
            while at < range.end {
                let n = (range.end - at).min(128 * 1024);
                self.now += Duration::from_micros(n * 1_000_000 / rate);
                self.one(id, at, n);
                at += n;
            }
            let first = (range.end / self.streams.piece_length) as u32;
            let ahead = self.handles[id].wanted.range(first..);
            ahead.clone().next().map_or(first..first, |(p, _)| *p..ahead.last().unwrap().0 + 1)
        }
    }

    #[test]
    fn f5_the_head_of_a_file_opens_no_window() {
        for len in [1, 4096, 65536, MIB - 1] {
            let mut world = world(MIB, 100 * MIB, 1);
            world.one(0, 0, len);
            let blocks: u64 =
                world.handles[0].wanted.range(1..).map(|(_, (_, blocks))| u64::from(*blocks)).sum();
            assert!(blocks * u64::from(BLOCK_LEN) <= len, "{len}: {:?}", world.handles[0].wanted);
        }
    }

    #[test]
    fn sequential_reading_doubles_it_up_to_the_bounds() {
        let mut world = world(MIB, 1000 * MIB, 1);
        assert_eq!(world.read(0, 0..MIB, FAST), 1..2);
        assert_eq!(world.read(0, MIB..2 * MIB, FAST), 2..4);
        assert_eq!(world.read(0, 2 * MIB..8 * MIB, FAST), 8..16);
        // Slower than the line: up to 32 MiB, and no more than what lies close for one that reads at full speed.
        assert_eq!(world.read(0, 8 * MIB..50 * MIB, FAST), 50..58);
        let mut world = self::world(MIB, 1000 * MIB, 1);
        world.read(0, 0..8 * MIB, FAST / 64);
        assert!((131..=132).contains(&world.read(0, 8 * MIB..100 * MIB, FAST / 64).end));
        assert_eq!(world.read(0, 100 * MIB..990 * MIB, FAST / 64), 990..1000);
        // Eight seconds of a slow swarm.
        world = self::world(MIB, 1000 * MIB, 1);
        world.rate = MIB;
        assert!((107..=108).contains(&world.read(0, 0..100 * MIB, FAST / 64).end));
    }

    #[test]
    fn a_seek_drops_it_at_once_and_a_small_step_back_keeps_it() {
        let mut world = world(MIB, 1000 * MIB, 1);
        world.read(0, 0..16 * MIB, FAST);
        let before = world.handles[0].wanted.clone();
        world.one(0, 14 * MIB, 4096);
        assert_eq!(world.handles[0].wanted, before);
        world.one(0, 500 * MIB, 4096);
        assert!(world.handles[0].wanted.is_empty());
        assert_eq!(world.streams.close(0), 500..500);
    }

    #[test]
    fn what_is_wanted_ahead_is_never_more_than_what_was_read() {
        let mut world = world(16384, 300 * MIB, 1);
        let mut run = 0;
        for (offset, len) in [(0, 4096), (4096, 131_072), (50 * MIB, 100_000), (50 * MIB + 100_000, 131_072)]
        {
            world.one(0, offset, len);
            run = if offset == 50 * MIB { len } else { run + len };
            let first = ((offset + len) / 16384) as u32;
            let ahead = world.handles[0].wanted.range(first..).count() as u64;
            assert!(ahead * 16384 <= run + 16384, "{ahead} pieces after {run} bytes");
        }
    }

    #[test]
    fn pieces_are_due_when_the_reader_comes_to_them() {
        let mut world = world(MIB, 1000 * MIB, 1);
        world.read(0, 0..40 * MIB, 4 * MIB);
        let now = world.now;
        for (piece, (due, _)) in &world.handles[0].wanted {
            let seconds = due.saturating_duration_since(now).as_secs_f64();
            let distance = f64::from(*piece) - 40.0;
            assert!((seconds - distance / 4.0).abs() < 1.5, "{piece} in {seconds}");
        }
        assert_eq!(world.handles[0].wanted.range(40..).count() / 31, 1);
    }

    #[test]
    fn a_slow_reader_is_measured_and_keeps_its_window() {
        // A player fills its buffer, and then reads 400 KiB each second, or an audio player 20 KiB.
        for rate in [400 << 10, 20 << 10] {
            let mut world = world(MIB, 1000 * MIB, 1);
            world.read(0, 0..16 * MIB, 64 * MIB);
            let mut at = 16 * MIB;
            for _ in 0..200 {
                world.now += Duration::from_millis(250);
                world.one(0, at, rate / 4);
                at += rate / 4;
                assert!(world.streams.idle(world.now).is_empty());
            }
            let pace = world.streams.streams[&0].pace();
            assert!(pace < rate * 5 / 4 || pace == PACE_MIN, "{pace} for {rate}");
        }
    }

    #[test]
    fn many_handles_share() {
        let mut world = world(MIB, 1000 * MIB, 8);
        for at in 0..40 {
            for id in 0..8 {
                world.read(id, at * MIB..(at + 1) * MIB, FAST);
            }
        }
        for handle in &world.handles {
            assert!((7..=8).contains(&handle.wanted.range(40..).count()), "{:?}", handle.wanted);
        }
    }

    #[test]
    fn an_idle_handle_gives_up_its_window_and_a_waiting_one_does_not() {
        let mut world = world(MIB, 1000 * MIB, 2);
        for id in 0..2 {
            world.read(id, 0..16 * MIB, FAST);
        }
        world.streams.waits(1, true);
        let soon = world.now + IDLE - Duration::from_secs(1);
        assert!(world.streams.idle(soon).is_empty());
        let idle = world.streams.idle(soon + Duration::from_secs(1));
        assert_eq!(idle.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0]);
        // It goes on as it was when it reads again.
        world.handles[0].wanted.clear();
        world.now += IDLE;
        assert!(world.read(0, 16 * MIB..17 * MIB, FAST).end >= 25);
        world.streams.waits(1, false);
        assert_eq!(world.streams.idle(world.now).len(), 1);
    }

    /// The rates of the line and of the reader jump about; a reader who reads on never loses what was asked for.
    #[test]
    fn what_is_wanted_stays_wanted_until_it_is_read() {
        let mut w = world(64 * 1024, 256 * MIB, 1);
        let mut before = 0;
        for step in 0..1500_u64 {
            w.rate = [FAST, MIB / 16, 3 * MIB][step as usize % 3];
            let pace = [FAST, 2 * MIB][step as usize / 200 % 2];
            w.read(0, step * 128 * 1024..(step + 1) * 128 * 1024, pace);
            let last = w.handles[0].wanted.keys().last().copied().unwrap_or(0);
            assert!(last >= before, "step {step}: {last} after {before}");
            before = last;
        }
        assert!(before > 1500 * 2, "{before}");
    }

    /// One that reads faster for a moment than it did so far comes to all of them sooner, in the same order.
    #[test]
    fn what_is_read_first_is_due_first() {
        let mut w = world(64 * 1024, 256 * MIB, 1);
        for step in 0..1500_u64 {
            w.rate = [FAST, MIB / 16, 3 * MIB][step as usize % 3];
            let pace = [FAST, 2 * MIB, 40 * MIB][step as usize / 20 % 3];
            w.read(0, step * 128 * 1024..(step + 1) * 128 * 1024, pace);
            let dues: Vec<Instant> = w.handles[0].wanted.values().map(|(due, _)| *due).collect();
            assert!(dues.is_sorted(), "step {step}");
        }
    }

    #[test]
    fn a_window_goes_forward_in_steps() {
        const PIECE: u64 = 256 * 1024;
        let mut w = world(PIECE, 256 * MIB, 1);
        w.read(0, 0..32 * MIB, FAST);
        let (mut last, mut steps) = (w.last(0), 0);
        for at in (32 * MIB..64 * MIB).step_by(128 * 1024) {
            let ahead = w.read(0, at..at + 128 * 1024, FAST);
            steps += u32::from(w.last(0) != last);
            last = w.last(0);
            // Seven eighths of 8 MiB at least, and never more than that.
            assert!((28..=33).contains(&ahead.len()), "{ahead:?}");
        }
        assert!(steps <= 32, "{steps} steps for 128 pieces");
    }
}
