//! The readers' side of the world: programs, the kernel's requests, and what the torrent is told of them.
//!
//! A request of the kernel does what `torrentfs::torrent::reads::Reader` does: it waits for the missing pieces, the
//! owner is told, and where the stream is. When its last piece has come, a worker answers it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use torrentfs::metainfo::geometry::{FileIndex, PieceIndex};
use torrentfs::torrent::effects::Event;
use torrentfs::torrent::inbox::Demand;

use super::clock::Time;
use super::kernel::Handle;
use super::programs::{Call, Program, Woken};
use super::report::{Figures, Seek};
use super::world::{Happening, World};

/// From a worker's read to the program: what a read of data that is here takes.
const ANSWER: Duration = Duration::from_micros(100);
/// A read that the page cache answers.
const CACHED: Duration = Duration::from_micros(20);

/// A running program.
pub struct Process {
    program: Box<dyn Program>,
    handles: BTreeMap<u32, Handle>,
    waiting: Option<Reading>,
    /// Changes with each read that is given up, so that its answer wakes nobody.
    number: u64,
    began: Option<Time>,
    running: bool,
    /// What it saw.
    pub figures: Figures,
}

/// The read that a program waits for.
struct Reading {
    file: u32,
    offset: u64,
    len: u64,
    since: Time,
    /// What physics needs, if it is a seek to be measured.
    floor: Option<Duration>,
    /// Its pages are here, and the program is about to learn of it.
    answered: bool,
}

/// A request of the kernel.
pub struct Fuse {
    process: usize,
    file: u32,
    offset: u64,
    len: u64,
    /// Pieces that it waits for.
    lacks: BTreeSet<PieceIndex>,
}

impl Process {
    /// A program that has not begun.
    pub fn new(program: Box<dyn Program>) -> Self {
        Self {
            program,
            handles: BTreeMap::new(),
            waiting: None,
            number: 0,
            began: None,
            running: true,
            figures: Figures::default(),
        }
    }

    /// Whether it has something left to do.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// When it began.
    pub fn began(&self) -> Option<Time> {
        self.began
    }
}

/// What the torrent is told of a read of `len` bytes at `at`, besides what is missing of it: where the stream is.
fn advance(handle: &mut Handle, at: u64, len: u64, now: Instant) -> Option<Demand> {
    let reach = handle.track.on_read(at, len, now)?;
    Some(Demand::Moved { stream: handle.stream, reach })
}

impl World {
    /// A program goes on, if this isn't the answer to a read that was given up.
    pub fn go_on(&mut self, n: usize, why: Woken, number: u64) {
        let now = self.now;
        let process = &mut self.processes[n];
        if why == Woken::Start {
            process.began = Some(now);
        }
        if why == Woken::Read {
            if process.number != number {
                return;
            }
            let Some(reading) = process.waiting.take() else { return };
            let took = now - reading.since;
            process.figures.read += reading.len;
            process.figures.first_byte.get_or_insert(took);
            if let Some(floor) = reading.floor {
                process.figures.seeks.push(Seek { took, floor });
                self.log(|| format!("program {n}: seek took {took:?}, floor {floor:?}"));
            }
        }
        let process = &mut self.processes[n];
        for call in process.program.go_on(why, now, &mut process.figures) {
            self.call(n, call);
        }
    }

    fn call(&mut self, n: usize, call: Call) {
        match call {
            Call::Open { handle, file } => {
                let Some(extent) = self.geometry().files().get(file as usize).copied() else { return };
                self.last_id += 1;
                let opened = Handle::new(file, self.last_id, extent.offset, extent.len);
                self.processes[n].handles.insert(handle, opened);
                let open = Demand::Open { stream: self.last_id, file: FileIndex(file) };
                self.apply(Event::Demands(vec![open]));
            }
            Call::Read { handle, offset, len, seek } => self.read(n, handle, offset, len, seek),
            Call::Abandon => self.abandon(n),
            Call::Close(handle) => {
                if let Some(handle) = self.processes[n].handles.remove(&handle) {
                    self.apply(Event::Demands(vec![Demand::Close { stream: handle.stream }]));
                }
            }
            Call::Timer(at) => self.agenda.put(at, Happening::Go(n, Woken::Timer, 0)),
            Call::Done => {
                let process = &mut self.processes[n];
                process.running = false;
                process.figures.took = process.began.map(|began| self.now - began);
            }
        }
    }

    fn read(&mut self, n: usize, number: u32, offset: u64, len: u64, seek: bool) {
        let Some(handle) = self.processes[n].handles.get_mut(&number) else { return };
        let (file, base) = (handle.file, handle.base);
        let pages = self.pages.entry(file).or_default();
        let requests = handle.read(offset, len, pages);
        let floor = if seek { self.floor(base + offset, len) } else { None };
        self.log(|| format!("program {n} reads {len} at {offset} of file {file}"));
        self.processes[n].waiting =
            Some(Reading { file, offset, len, since: self.now, floor, answered: false });
        for (offset, len) in requests {
            self.request(n, number, offset, len);
        }
        self.look(n, CACHED);
    }

    /// What physics needs for a read: the missing pieces and what is on its way at the swarm's rate, and two
    /// round trips. `None` if nothing is missing.
    fn floor(&self, at: u64, len: u64) -> Option<Duration> {
        let geometry = self.geometry();
        let missing = geometry.pieces_of(at, len).map(PieceIndex).filter(|p| !self.table.is_complete(*p));
        let missing: u64 = missing.map(|p| u64::from(geometry.piece_len(p))).sum();
        let seconds = (missing + self.in_flight()) as f64 / self.swarm_rate().max(1) as f64;
        (missing > 0).then(|| Duration::from_secs_f64(seconds) + self.round_trip() * 2)
    }

    /// The kernel asks for bytes of a file.
    fn request(&mut self, n: usize, number: u32, offset: u64, len: u64) {
        let Some(handle) = self.processes[n].handles.get_mut(&number) else { return };
        let (file, at) = (handle.file, handle.base + offset);
        self.last_id += 1;
        let id = self.last_id;
        let pieces = self.info.geometry.pieces_of(at, len);
        self.touched.extend(pieces.clone());
        let lacks: BTreeSet<PieceIndex> =
            pieces.map(PieceIndex).filter(|p| !self.table.is_complete(*p)).collect();
        let want = Demand::Want {
            waiter: id,
            stream: handle.stream,
            file: FileIndex(file),
            offset: at,
            all: self.info.geometry.pieces_of(at, len),
            pieces: lacks.iter().copied().collect(),
            since: self.instant(),
        };
        let here = lacks.is_empty();
        self.fuses.insert(id, Fuse { process: n, file, offset, len, lacks });
        let mut demands = Vec::new();
        if here {
            self.agenda.put(self.now + ANSWER, Happening::Answer(id));
        } else {
            demands.push(want);
        }
        let instant = self.instant();
        let handle = self.processes[n].handles.get_mut(&number);
        demands.extend(handle.and_then(|handle| advance(handle, at, len, instant)));
        if !demands.is_empty() {
            self.apply(Event::Demands(demands));
        }
    }

    /// A piece is here: whoever lacks nothing more is answered.
    pub fn wake(&mut self, piece: PieceIndex) {
        for (id, fuse) in &mut self.fuses {
            if fuse.lacks.remove(&piece) && fuse.lacks.is_empty() {
                self.agenda.put(self.now + ANSWER, Happening::Answer(*id));
            }
        }
    }

    /// A request of the kernel is answered.
    pub fn answered(&mut self, id: u64) {
        let Some(fuse) = self.fuses.remove(&id) else { return };
        self.read += fuse.len;
        self.pages.entry(fuse.file).or_default().answered(fuse.offset, fuse.len);
        for n in 0..self.processes.len() {
            self.look(n, Duration::ZERO);
        }
    }

    /// A request of the kernel failed.
    pub fn fail(&mut self, id: u64) {
        let Some(fuse) = self.fuses.remove(&id) else { return };
        self.failed += 1;
        self.pages.entry(fuse.file).or_default().failed(fuse.offset, fuse.len);
    }

    /// Whether what a program waits for is here: then it goes on after a moment.
    fn look(&mut self, n: usize, after: Duration) {
        let process = &mut self.processes[n];
        let number = process.number;
        if let Some(reading) = &mut process.waiting
            && !reading.answered
            && self.pages.entry(reading.file).or_default().has(reading.offset, reading.len)
        {
            reading.answered = true;
            self.agenda.put(self.now + after, Happening::Go(n, Woken::Read, number));
        }
    }

    /// A program gives up its read, and what the kernel asked for it is taken back.
    fn abandon(&mut self, n: usize) {
        self.processes[n].waiting = None;
        self.processes[n].number += 1;
        let its: Vec<u64> = self.fuses.iter().filter(|(_, f)| f.process == n).map(|(id, _)| *id).collect();
        for id in its {
            let Some(fuse) = self.fuses.remove(&id) else { continue };
            self.pages.entry(fuse.file).or_default().failed(fuse.offset, fuse.len);
            if !fuse.lacks.is_empty() {
                self.apply(Event::Demands(vec![Demand::Withdraw { waiter: id }]));
            }
        }
    }
}
