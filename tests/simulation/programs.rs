//! The programs that read: scripts of single reads, copying, and a player.
//!
//! A program is woken when its read is answered or its time has come, and says what it does next. It reads as
//! programs do, one read at a time; the kernel and the world make requests of that.

use std::time::Duration;

use super::clock::{Rng, Time};
use super::report::Figures;

/// Why a program goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// It begins.
    Start,
    /// Its read was answered.
    Read,
    /// The time it asked for has come.
    Timer,
}

/// What a program does. Handles are numbers of its own.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// Opens a file of the torrent.
    Open {
        /// Its handle.
        handle: u32,
        /// The file.
        file: u32,
    },
    /// Reads; with `seek`, how long that takes counts if something is missing.
    Read {
        /// From this handle.
        handle: u32,
        /// At this offset in the file.
        offset: u64,
        /// This many bytes.
        len: u64,
        /// See above.
        seek: bool,
    },
    /// Gives up the read it waits for, as a program that is interrupted does.
    Abandon,
    /// Closes a handle.
    Close(u32),
    /// Asks to be woken.
    Timer(Time),
    /// Has done what it came for.
    Done,
}

/// A program.
pub trait Program {
    /// Goes on.
    fn go_on(&mut self, why: Woken, now: Time, figures: &mut Figures) -> Vec<Call>;
}

/// One thing after the other.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Opens a file.
    Open(u32, u32),
    /// Reads bytes of a handle and waits for them.
    Read(u32, u64, u64),
    /// The same, and it is a seek to be measured.
    Seek(u32, u64, u64),
    /// Reads without waiting for it.
    Begin(u32, u64, u64),
    /// Gives up what it began.
    Abandon,
    /// Does nothing for a while.
    Wait(Duration),
    /// Closes a handle.
    Close(u32),
}

/// Carries out steps.
pub struct Script(std::vec::IntoIter<Step>);

impl Script {
    /// These steps.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Box<Self> {
        Box::new(Self(steps.into_iter().collect::<Vec<_>>().into_iter()))
    }

    /// Seeks all over a file of `size` bytes, `lens` bytes each, idle for `pause` in between. The first `warm` of
    /// them don't count: the rates aren't known yet.
    pub fn seeker(
        file: u32,
        size: u64,
        lens: std::ops::Range<u64>,
        (warm, count): (u32, u32),
        pause: Duration,
        seed: u64,
    ) -> Box<Self> {
        let mut rng = Rng::new(seed);
        let mut steps = vec![Step::Open(0, file)];
        for n in 0..warm + count {
            let len = lens.start + rng.below(lens.end - lens.start);
            let offset = rng.below(size - len);
            steps.push(if n < warm { Step::Read(0, offset, len) } else { Step::Seek(0, offset, len) });
            steps.push(Step::Wait(pause));
        }
        Self::new(steps)
    }
}

impl Program for Script {
    fn go_on(&mut self, why: Woken, now: Time, _figures: &mut Figures) -> Vec<Call> {
        let mut calls = Vec::new();
        let _ = why;
        for step in self.0.by_ref() {
            match step {
                Step::Open(handle, file) => calls.push(Call::Open { handle, file }),
                Step::Read(handle, offset, len) => {
                    calls.push(Call::Read { handle, offset, len, seek: false });
                    return calls;
                }
                Step::Seek(handle, offset, len) => {
                    calls.push(Call::Read { handle, offset, len, seek: true });
                    return calls;
                }
                Step::Begin(handle, offset, len) => {
                    calls.push(Call::Read { handle, offset, len, seek: false });
                }
                Step::Abandon => calls.push(Call::Abandon),
                Step::Wait(pause) => {
                    calls.push(Call::Timer(now + pause));
                    return calls;
                }
                Step::Close(handle) => calls.push(Call::Close(handle)),
            }
        }
        calls.push(Call::Done);
        calls
    }
}

/// Reads a part of a file from its beginning to its end as fast as it comes, as `cp` does.
pub struct Copy {
    file: u32,
    at: u64,
    end: u64,
}

/// What `cp` and most tools read at a time, or the kernel asks for at most.
const COPY_READ: u64 = 128 << 10;

impl Copy {
    /// The bytes `part` of a file.
    pub fn new(file: u32, part: std::ops::Range<u64>) -> Box<Self> {
        Box::new(Self { file, at: part.start, end: part.end })
    }
}

impl Program for Copy {
    fn go_on(&mut self, why: Woken, _now: Time, _figures: &mut Figures) -> Vec<Call> {
        let mut calls = Vec::new();
        if why == Woken::Start {
            calls.push(Call::Open { handle: 0, file: self.file });
        }
        if self.at >= self.end {
            calls.extend([Call::Close(0), Call::Done]);
            return calls;
        }
        let len = COPY_READ.min(self.end - self.at);
        calls.push(Call::Read { handle: 0, offset: self.at, len, seek: false });
        self.at += len;
        calls
    }
}

/// Plays a part of a file at a constant rate, out of a buffer of a second that it keeps full. It begins when the
/// buffer is full, and after a stall when it is half full.
pub struct Player {
    file: u32,
    /// Where its reads are, and where they end.
    at: u64,
    end: u64,
    /// Bytes per second.
    rate: u64,
    /// Bytes read and not played when `since` was.
    level: u64,
    /// Playing since; `None` while the buffer fills.
    since: Option<Time>,
    began: Time,
    dry: Option<Time>,
    reading: bool,
}

/// What a player reads at a time.
const PLAYER_READ: u64 = 64 << 10;

impl Player {
    /// The bytes `part` of a file, at `rate` bytes per second.
    pub fn new(file: u32, part: std::ops::Range<u64>, rate: u64) -> Box<Self> {
        Box::new(Self {
            file,
            at: part.start,
            end: part.end,
            rate,
            level: 0,
            since: None,
            began: Time::ZERO,
            dry: None,
            reading: false,
        })
    }

    /// Plays up to `now`: what was played leaves the buffer, and if it ran dry on the way, that is a stall.
    fn play(&mut self, now: Time) {
        let Some(since) = self.since else { return };
        let lasts = Duration::from_secs_f64(self.level as f64 / self.rate as f64);
        if since + lasts < now {
            self.level = 0;
            self.since = None;
            self.dry = Some(since + lasts);
        } else {
            self.level -= ((now - since).as_secs_f64() * self.rate as f64) as u64;
            self.since = Some(now);
        }
    }
}

impl Program for Player {
    fn go_on(&mut self, why: Woken, now: Time, figures: &mut Figures) -> Vec<Call> {
        let mut calls = Vec::new();
        if why == Woken::Start {
            self.began = now;
            calls.push(Call::Open { handle: 0, file: self.file });
        }
        self.play(now);
        if why == Woken::Read {
            self.reading = false;
            self.level += PLAYER_READ.min(self.end - self.at);
            self.at = (self.at + PLAYER_READ).min(self.end);
        }
        let room = self.level + PLAYER_READ <= self.rate;
        let ended = self.at >= self.end;
        if self.since.is_none() && (!room || ended || (self.dry.is_some() && self.level >= self.rate / 2)) {
            match self.dry.take() {
                Some(dry) => figures.stalls.push(now - dry),
                None => figures.started = Some(now - self.began),
            }
            self.since = Some(now);
        }
        if ended {
            calls.extend([Call::Close(0), Call::Done]);
        } else if room && !self.reading {
            self.reading = true;
            let len = PLAYER_READ.min(self.end - self.at);
            calls.push(Call::Read { handle: 0, offset: self.at, len, seek: false });
        } else if !room {
            let over = (self.level + PLAYER_READ).saturating_sub(self.rate) + 1;
            calls.push(Call::Timer(now + Duration::from_secs_f64(over as f64 / self.rate as f64)));
        }
        calls
    }
}
