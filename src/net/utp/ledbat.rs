//! How much may be on the way: congestion control that gives way to others (LEDBAT, RFC 6817; BEP 29).
//!
//! Each acknowledgement tells how long a packet took one way, by two clocks that aren't set. Its excess over the least
//! of the last minutes ([`History`]) is the time that it waited in queues. Below [`TARGET`] the window grows, by one
//! segment a round trip at most; beyond it shrinks, so that whoever fills the queue (TCP does) gets the line. A loss halves
//! it, once a round trip. It starts by doubling, until the queue fills half-way or something is lost.
//!
//! Two departures. Beyond the target the RFC shrinks the window by a segment a round trip, which on a fat line takes
//! minutes; here by half the excess, as a share of the window. BEP 29 grows by 3,000 bytes a round trip: two segments, where the
//! RFC allows one, and beside TCP in a short queue that is more than a fair share.
//!
//! A queue that is as short as the target never delays longer, and a flow that only looks at delays would take it from
//! others. So a loss when packets have waited for [`SHORT`], which tells how long the queue is, sets the aim at half of
//! that, for [`FORGET`].
//!
//! The window isn't grown by acknowledgements of less than it allows: what was never on the line says nothing about it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The queueing delay that is aimed at: what a call over the same line still bears, and the RFC's bound.
pub const TARGET: Duration = Duration::from_millis(100);
/// The largest window: a hundred milliseconds at 10 MB/s; one connection among many needs no more.
pub const WINDOW_MAX: usize = 1 << 20;
/// Segments in the first window.
const FIRST: f64 = 4.0;
/// Segments in the smallest window, except after a time-out: with one alone a delayed acknowledgement stops the line.
const LEAST: f64 = 2.0;
/// How long a least delay is believed: routes change, and clocks drift.
const MINUTES: usize = 13;
const MINUTE: Duration = Duration::from_secs(60);
/// Of so many last delays the least counts: a single late packet is the other side's busy machine.
const RECENT: usize = 4;
/// Losses within this time are one: they come from one burst.
const CUT: Duration = Duration::from_millis(100);
/// A loss says that the queue is short when packets have waited for so long in it, at least; at less than that something
/// else lost it, such as a full buffer of the other side.
const SHORT: Duration = Duration::from_millis(60);
/// At least this is aimed at: less is lost in the noise of busy machines.
const AIM_LEAST: Duration = Duration::from_millis(50);
/// How long it is believed that a queue is short.
pub const FORGET: Duration = Duration::from_secs(60);
/// Nothing waits in a queue for so long: a clock was set.
const ABSURD: u32 = 10_000_000;
/// More than that in one step isn't the drift of a clock.
const DRIFT: u32 = 10_000;

/// The least of the delays of the last minutes. Delays are in microseconds modulo 2³², off by the difference of two
/// clocks, so which of two is less is a matter of which is nearer.
#[derive(Debug, Default)]
pub struct History {
    /// The least of each minute, the current one last.
    minutes: VecDeque<u32>,
    since: Option<Instant>,
}

/// Whether `a` is less than `b`, modulo 2³².
fn less(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl History {
    /// Takes a delay in.
    pub fn add(&mut self, delay: u32, now: Instant) {
        let over = self.since.is_none_or(|since| now.saturating_duration_since(since) >= MINUTE);
        match self.minutes.back_mut() {
            Some(last) if !over => {
                if less(delay, *last) {
                    *last = delay;
                }
            }
            _ => {
                self.minutes.push_back(delay);
                self.since = Some(now);
                if self.minutes.len() > MINUTES {
                    self.minutes.pop_front();
                }
            }
        }
    }

    /// The least.
    pub fn least(&self) -> Option<u32> {
        self.minutes.iter().copied().reduce(|a, b| if less(b, a) { b } else { a })
    }

    /// Takes all to have been longer.
    fn shift(&mut self, by: u32) {
        self.minutes.iter_mut().for_each(|least| *least = least.wrapping_add(by));
    }
}

/// The window of one connection.
#[derive(Debug)]
pub struct Ledbat {
    segment: f64,
    window: f64,
    slow_start: bool,
    /// Slow start ends here.
    threshold: f64,
    ours: History,
    theirs: History,
    recent: VecDeque<u32>,
    cut: Option<Instant>,
    /// The delay that is aimed at, and since when it is less than the target.
    aim: Duration,
    aimed: Option<Instant>,
}

impl Ledbat {
    /// For segments of so many bytes.
    pub fn new(segment: usize) -> Self {
        let segment = segment.max(1) as f64;
        Self {
            segment,
            window: segment * FIRST,
            slow_start: true,
            threshold: WINDOW_MAX as f64,
            ours: History::default(),
            theirs: History::default(),
            recent: VecDeque::with_capacity(RECENT),
            cut: None,
            aim: TARGET,
            aimed: None,
        }
    }

    /// Bytes that may be on the way.
    pub fn window(&self) -> usize {
        self.window as usize
    }

    /// How long packets wait in queues on the way there, as far as known.
    pub fn queueing(&self) -> Option<Duration> {
        let base = self.ours.least()?;
        let least = self.recent.iter().map(|delay| delay.wrapping_sub(base)).min()?;
        Some(Duration::from_micros(least.into()))
    }

    /// A packet of theirs took so long to us. When the least of that falls, their clock runs away from ours, and what
    /// we are told of the other way rises by as much without any queue.
    pub fn their_delay(&mut self, delay: u32, now: Instant) {
        let before = self.theirs.least();
        self.theirs.add(delay, now);
        if let (Some(before), Some(after)) = (before, self.theirs.least())
            && self.theirs.minutes.len() > 1
            && less(after, before)
            && before.wrapping_sub(after) <= DRIFT
        {
            self.ours.shift(before.wrapping_sub(after));
        }
    }

    /// `bytes` were acknowledged by a packet that says how long one of ours took (0 is unknown). `full`: as much was on
    /// the way as the window allowed.
    pub fn acked(&mut self, bytes: usize, full: bool, delay: u32, now: Instant) {
        if delay != 0 {
            let far = self
                .ours
                .least()
                .is_some_and(|base| delay.wrapping_sub(base).min(base.wrapping_sub(delay)) > ABSURD);
            if far {
                self.ours = History::default();
                self.recent.clear();
            }
            self.ours.add(delay, now);
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(delay);
        }
        if self.aimed.is_some_and(|since| now.saturating_duration_since(since) >= FORGET) {
            (self.aim, self.aimed) = (TARGET, None);
        }
        let queue = self.queueing().unwrap_or_default().as_secs_f64() / self.aim.as_secs_f64();
        let bytes = bytes as f64;
        if self.slow_start {
            if queue > 0.5 {
                self.slow_start = false;
            } else if full {
                self.window += bytes;
                self.slow_start = self.window < self.threshold;
            }
        } else {
            let share = (bytes / self.window).min(1.0);
            let step = match 1.0 - queue {
                room if room >= 0.0 => self.segment * room * f64::from(u8::from(full)),
                excess => -(self.window * (-excess / 2.0).min(0.5)).max(self.segment * -excess),
            };
            self.window += step * share;
        }
        // After a time-out it is smaller for a moment.
        let least = (self.segment * LEAST).min(self.window.max(self.segment));
        self.window = self.window.clamp(least, WINDOW_MAX as f64);
        if !self.slow_start {
            self.window = self.window.max(self.segment * LEAST);
        }
    }

    /// A packet was lost. True if that made the window smaller.
    pub fn lost(&mut self, round_trip: Duration, now: Instant) -> bool {
        let again = round_trip.max(CUT);
        if self.cut.is_some_and(|cut| now.saturating_duration_since(cut) < again) {
            return false;
        }
        self.cut = Some(now);
        let queue = self.queueing().unwrap_or_default();
        let found = (queue / 2).max(AIM_LEAST);
        if queue >= SHORT && found <= self.aim {
            (self.aim, self.aimed) = (found, Some(now));
        }
        self.slow_start = false;
        self.window = (self.window / 2.0).max(self.segment * LEAST);
        self.threshold = self.window;
        true
    }

    /// Nothing was acknowledged for long: one packet at first, then up to half of what it was.
    pub fn timed_out(&mut self, now: Instant) {
        self.threshold = (self.window / 2.0).max(self.segment * LEAST);
        self.window = self.segment;
        self.slow_start = true;
        self.cut = Some(now);
    }

    /// Segments have another size from here on.
    pub fn set_segment(&mut self, segment: usize) {
        self.segment = segment.max(1) as f64;
        self.window = self.window.max(self.segment);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const SEGMENT: usize = 1000;

    fn settled(window: usize, now: Instant) -> Ledbat {
        let mut ledbat = Ledbat::new(SEGMENT);
        ledbat.window = window as f64;
        ledbat.slow_start = false;
        ledbat.ours.add(5_000_000, now);
        ledbat
    }

    /// The window after a round trip in which packets waited for `queue` milliseconds.
    fn after(window: usize, queue: u32, full: bool) -> usize {
        let now = Instant::now();
        let mut ledbat = settled(window, now);
        for _ in 0..RECENT {
            ledbat.acked(0, full, 5_000_000 + queue * 1000, now);
        }
        ledbat.acked(window, full, 5_000_000 + queue * 1000, now);
        ledbat.window()
    }

    #[test]
    fn the_window_follows_the_queue() {
        for (window, queue, full, expected) in [
            (100_000, 0, true, 101_000),
            (100_000, 50, true, 100_500),
            (100_000, 100, true, 100_000),
            (100_000, 120, true, 90_000),
            (100_000, 1000, true, 50_000),
            (100_000, 0, false, 100_000),
            (100_000, 120, false, 90_000),
            (2_000, 1000, true, 2_000),
            (WINDOW_MAX, 0, true, WINDOW_MAX),
        ] {
            let found = after(window, queue, full);
            assert!(
                found.abs_diff(expected) <= 2,
                "{window} {queue} {full}: {found} where {expected} is right"
            );
        }
    }

    #[test]
    fn it_starts_by_doubling_until_the_queue_fills() {
        let now = Instant::now();
        let mut ledbat = Ledbat::new(SEGMENT);
        for n in 1..=4u32 {
            ledbat.acked(ledbat.window(), true, 77, now);
            assert_eq!(ledbat.window(), (4 * SEGMENT) << n);
        }
        ledbat.acked(ledbat.window(), false, 77, now);
        assert_eq!(ledbat.window(), 64 * SEGMENT, "the application had no more");
        for _ in 0..RECENT {
            ledbat.acked(0, true, 77 + 60_000, now);
        }
        ledbat.acked(ledbat.window(), true, 77 + 60_000, now);
        assert!(ledbat.window().abs_diff(64 * SEGMENT + 400) < 3, "{}", ledbat.window());
        for _ in 0..10_000 {
            ledbat.acked(usize::MAX / 2, true, 77, now);
        }
        assert_eq!(ledbat.window(), WINDOW_MAX);
    }

    #[test]
    fn losses_of_one_burst_halve_it_once() {
        let now = Instant::now();
        let mut ledbat = settled(100_000, now);
        let (short, long) = (Duration::from_millis(10), Duration::from_millis(300));
        assert!(ledbat.lost(short, now));
        assert!(!ledbat.lost(short, now + CUT / 2));
        assert_eq!(ledbat.window(), 50_000);
        assert!(!ledbat.lost(long, now + CUT * 2));
        assert!(ledbat.lost(long, now + long));
        assert_eq!(ledbat.window(), 25_000);
        for n in 1..20 {
            ledbat.lost(short, now + long + CUT * n);
        }
        assert_eq!(ledbat.window(), 2 * SEGMENT);
    }

    #[test]
    fn a_time_out_leaves_one_packet_and_half_is_soon_there_again() {
        let now = Instant::now();
        let mut ledbat = settled(100_000, now);
        ledbat.timed_out(now);
        assert_eq!(ledbat.window(), SEGMENT);
        let mut rounds = 0;
        while ledbat.window() < 50_000 {
            ledbat.acked(ledbat.window(), true, 5_000_000, now);
            rounds += 1;
        }
        assert_eq!(rounds, 6);
        ledbat.acked(ledbat.window(), true, 5_000_000, now);
        assert!(ledbat.window() <= 66_000, "{}", ledbat.window());
    }

    #[test]
    fn the_least_delay_is_of_the_last_minutes_and_clocks_wrap() {
        let start = Instant::now();
        let mut history = History::default();
        assert_eq!(history.least(), None);
        history.add(u32::MAX - 10, start);
        history.add(5, start);
        assert_eq!(history.least(), Some(u32::MAX - 10));
        for minute in 1..MINUTES as u32 {
            history.add(100, start + MINUTE * minute);
        }
        assert_eq!(history.least(), Some(u32::MAX - 10));
        history.add(100, start + MINUTE * MINUTES as u32);
        assert_eq!(history.least(), Some(5 + 95), "what was before is forgotten");
    }

    #[test]
    fn clocks_may_drift_and_be_set() {
        let start = Instant::now();
        let mut ledbat = settled(100_000, start);
        ledbat.their_delay(900_000, start);
        let later = start + MINUTE;
        ledbat.their_delay(900_000, later);
        // Their clock falls behind by 4 ms: ours seems to take 4 ms longer, and isn't slower for it.
        ledbat.their_delay(896_000, later);
        ledbat.acked(0, true, 5_004_000, later);
        assert_eq!(ledbat.queueing(), Some(Duration::ZERO));
        // It is set by an hour.
        for jump in [3_600_000_000, 77] {
            ledbat.acked(0, true, jump, later);
            assert_eq!(ledbat.queueing(), Some(Duration::ZERO));
        }
    }
}
