//! What readers want of a torrent: waiting reads and read-ahead, as they become demands of the picker. Pure.
//!
//! A piece whose state is unknown is looked at on disk first; whoever wants it meanwhile stands in `checks`.
//! A piece whose readers timed out fails at once for every other reader until a block of it comes, a peer
//! turns out to have it, or [`FAILING`] has passed: the kernel repeats a failed read-ahead in pages of 4 KiB, and one time-out
//! must not become thirty-two.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::effects::Effect;
use super::inbox::Demand;
use super::picker::{DemandId, Picker};
use super::reads::ReadError;
use super::streams::{Change, Streams};
use super::swarm::waiter;
use super::table::{PieceState, PieceTable};
use crate::metainfo::geometry::{FileIndex, PieceIndex};

/// How long a piece fails at once after its readers timed out or its data could not be written.
const FAILING: Duration = Duration::from_secs(10);
/// A waiting read goes before all read-ahead that isn't overdue by more than this: where the swarm is slower than
/// its readers everything ahead of them is overdue, and a seek mustn't queue behind it.
const URGENT: Duration = Duration::from_secs(120);
/// Without a block for this long while a read waits, the torrent is called stalled.
pub const STALLED: Duration = Duration::from_secs(10);

/// A read that waits.
#[derive(Debug, Clone)]
pub struct Wait {
    /// The file it reads.
    pub file: FileIndex,
    /// From where in the torrent's linear space.
    pub offset: u64,
    /// All its pieces: those that are here are to stay until the others are.
    all: Range<u32>,
    /// The pieces it still waits for.
    pub pieces: Vec<PieceIndex>,
    /// Since when.
    pub since: Instant,
    /// When one of its pieces was completed last; at first the same.
    heard: Instant,
    stream: u64,
}

/// Who wants a piece, by when, and how many of its first blocks.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    id: DemandId,
    due: Instant,
    blocks: u32,
}

impl Wish {
    /// Tells the picker.
    pub fn make(self, piece: PieceIndex, picker: &mut Picker) {
        picker.want_blocks(piece, self.id, self.due, self.blocks);
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Demands {
    read_timeout: Option<Duration>,
    waits: HashMap<u64, Wait>,
    streams: Streams,
    /// Files that were read from since somebody last asked.
    touched: Vec<FileIndex>,
    checks: HashMap<PieceIndex, Vec<Wish>>,
    failing: HashMap<PieceIndex, (Instant, ReadError)>,
    last_block: Option<Instant>,
    /// Why the read failed that was given up last, until something comes.
    gave_up: Option<ReadError>,
    /// Why nothing can be fetched any more.
    broken: Option<ReadError>,
}

impl Demands {
    /// Nobody wants anything of a torrent with pieces of `piece_length` bytes. Reads are given up `read_timeout`
    /// after the last block they waited for. Of all data no more than `keep` bytes are kept.
    pub fn new(read_timeout: Option<Duration>, piece_length: u32, keep: Option<u64>) -> Self {
        Self {
            read_timeout,
            waits: HashMap::new(),
            streams: Streams::new(piece_length, keep),
            touched: Vec::new(),
            checks: HashMap::new(),
            failing: HashMap::new(),
            last_block: None,
            gave_up: None,
            broken: None,
        }
    }

    /// Takes in what a reader told us.
    pub fn apply(
        &mut self,
        demand: Demand,
        table: &PieceTable,
        picker: &mut Picker,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        match demand {
            // A matter of the torrent's state: see the swarm.
            Demand::Unreadable { .. } | Demand::Suspect { .. } => {}
            Demand::Open { stream, file } => {
                let end = picker.geometry().files().get(file.0 as usize).map_or(0, |f| f.offset + f.len);
                self.streams.open(stream, file, end, now);
            }
            Demand::Close { stream } => {
                for piece in self.streams.close(stream) {
                    self.unwant(PieceIndex(piece), DemandId::Stream(stream), table, picker, fx);
                }
            }
            Demand::Moved { stream, reach } => {
                self.touched.extend(self.streams.file(stream));
                let change = self.streams.moved(stream, reach, picker.rate(), now);
                self.ahead(stream, change, table, picker, fx);
            }
            Demand::Want { waiter: id, stream, file, offset, all, pieces, since } => {
                self.touched.push(file);
                if let Some(error) = &self.broken {
                    fx.push(Effect::Fail(id, error.clone()));
                    return;
                }
                let failing =
                    pieces.iter().find_map(|p| self.failing.get(p).filter(|(until, _)| *until > now));
                if let Some((_, error)) = failing {
                    fx.push(Effect::Fail(id, error.clone()));
                    return;
                }
                // What it waited for came, and went before it was read: it may wait for something else now.
                self.withdraw(id, table, picker, fx);
                let missing: Vec<PieceIndex> =
                    pieces.into_iter().filter(|p| !table.is_complete(*p)).collect();
                let due = urgent(now);
                for piece in &missing {
                    self.want(*piece, waiter(id), due, table, picker, fx);
                }
                if !missing.is_empty() {
                    self.streams.waits(stream, true);
                    let wait = Wait { file, offset, all, pieces: missing, since, heard: since, stream };
                    self.waits.insert(id, wait);
                }
            }
            Demand::Withdraw { waiter: id } => self.withdraw(id, table, picker, fx),
        }
    }

    fn ahead(
        &mut self,
        stream: u64,
        change: Change,
        table: &PieceTable,
        picker: &mut Picker,
        fx: &mut Vec<Effect>,
    ) {
        let id = DemandId::Stream(stream);
        for piece in change.drop {
            self.unwant(PieceIndex(piece), id, table, picker, fx);
        }
        for (piece, due, blocks) in change.want {
            let piece = PieceIndex(piece);
            if !self.failing.contains_key(&piece) {
                self.want_blocks(piece, Wish { id, due, blocks }, table, picker, fx);
            }
        }
    }

    /// Files that were read from since this was last called.
    pub fn take_touched(&mut self) -> Vec<FileIndex> {
        std::mem::take(&mut self.touched)
    }

    /// Handles that haven't read for long give up what is fetched ahead for them.
    pub fn idle(&mut self, table: &PieceTable, picker: &mut Picker, now: Instant, fx: &mut Vec<Effect>) {
        for (stream, pieces) in self.streams.idle(now) {
            for piece in pieces {
                self.unwant(PieceIndex(piece), DemandId::Stream(stream), table, picker, fx);
            }
        }
    }

    /// Somebody wants a piece, whatever its state.
    pub(super) fn want(
        &mut self,
        piece: PieceIndex,
        id: DemandId,
        due: Instant,
        table: &PieceTable,
        picker: &mut Picker,
        fx: &mut Vec<Effect>,
    ) {
        self.want_blocks(piece, Wish { id, due, blocks: u32::MAX }, table, picker, fx);
    }

    fn want_blocks(
        &mut self,
        piece: PieceIndex,
        wish: Wish,
        table: &PieceTable,
        picker: &mut Picker,
        fx: &mut Vec<Effect>,
    ) {
        match table.state(piece) {
            PieceState::Complete => {}
            PieceState::Missing | PieceState::Requested => wish.make(piece, picker),
            PieceState::Verifying => match self.checks.get_mut(&piece) {
                Some(waiting) => {
                    waiting.retain(|w| w.id != wish.id);
                    waiting.push(wish);
                }
                None => wish.make(piece, picker),
            },
            PieceState::Unknown => {
                table.set(piece, PieceState::Verifying);
                self.checks.insert(piece, vec![wish]);
                fx.push(Effect::Check(piece));
            }
        }
    }

    /// Whether a piece is being checked that may be on the disk.
    pub(super) fn is_checked(&self, piece: PieceIndex) -> bool {
        self.checks.contains_key(&piece)
    }

    /// Somebody no longer wants a piece.
    pub(super) fn unwant(
        &mut self,
        piece: PieceIndex,
        id: DemandId,
        table: &PieceTable,
        picker: &mut Picker,
        fx: &mut Vec<Effect>,
    ) {
        if let Some(waiting) = self.checks.get_mut(&piece) {
            waiting.retain(|w| w.id != id);
        }
        let cancels = picker.unwant(piece, id);
        fx.extend(cancels.into_iter().map(|(peer, block)| Effect::Cancel(peer, block)));
        if table.state(piece) == PieceState::Requested && !picker.is_requested(piece) {
            table.set(piece, PieceState::Missing);
        }
    }

    fn withdraw(&mut self, id: u64, table: &PieceTable, picker: &mut Picker, fx: &mut Vec<Effect>) {
        if let Some(wait) = self.waits.remove(&id) {
            self.streams.waits(wait.stream, false);
            for piece in wait.pieces {
                self.unwant(piece, waiter(id), table, picker, fx);
            }
        }
    }

    /// A piece on disk is about to be hashed, though nobody wants it yet.
    pub fn check_begins(&mut self, piece: PieceIndex) {
        self.checks.entry(piece).or_default();
    }

    /// A piece on disk was hashed: who wanted it.
    pub fn check_ended(&mut self, piece: PieceIndex) -> Vec<Wish> {
        self.checks.remove(&piece).unwrap_or_default()
    }

    /// A piece is complete.
    pub fn completed(&mut self, piece: PieceIndex, now: Instant) {
        self.failing.remove(&piece);
        self.gave_up = None;
        let streams = &mut self.streams;
        self.waits.retain(|_, wait| {
            let before = wait.pieces.len();
            wait.pieces.retain(|p| *p != piece);
            if wait.pieces.len() < before {
                wait.heard = now;
            }
            if wait.pieces.is_empty() {
                streams.waits(wait.stream, false);
            }
            !wait.pieces.is_empty()
        });
    }

    /// A block of a piece came.
    pub fn block_came(&mut self, piece: PieceIndex, now: Instant) {
        self.failing.remove(&piece);
        self.gave_up = None;
        self.last_block = Some(now);
    }

    /// A peer has these pieces, and hadn't said so before: what failed of them is worth another try.
    pub fn peer_has(&mut self, has: impl Fn(PieceIndex) -> bool) {
        self.failing.retain(|piece, _| !has(*piece));
    }

    /// Gives up reads that have waited too long; `why` gives the reason.
    pub fn time_out(
        &mut self,
        why: impl FnOnce() -> ReadError,
        table: &PieceTable,
        picker: &mut Picker,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        self.failing.retain(|_, (until, _)| *until > now);
        let Some(limit) = self.read_timeout else { return };
        let late: Vec<u64> = self
            .waits
            .iter()
            .filter(|(_, wait)| {
                let last = wait.pieces.iter().filter_map(|p| picker.last_block(*p)).max();
                now.saturating_duration_since(last.map_or(wait.heard, |l| l.max(wait.heard))) >= limit
            })
            .map(|(id, _)| *id)
            .collect();
        if late.is_empty() {
            return;
        }
        let error = why();
        self.gave_up = Some(error.clone());
        for id in late {
            if let Some(wait) = self.waits.get(&id) {
                for piece in &wait.pieces {
                    self.failing.insert(*piece, (now + FAILING, error.clone()));
                }
            }
            self.withdraw(id, table, picker, fx);
            fx.push(Effect::Fail(id, error.clone()));
        }
    }

    /// A piece can't be had for now: every read that waits for it fails, and nobody fetches it ahead.
    pub fn give_up(
        &mut self,
        piece: PieceIndex,
        error: &ReadError,
        table: &PieceTable,
        picker: &mut Picker,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        self.failing.insert(piece, (now + FAILING, error.clone()));
        let waiting: Vec<u64> =
            self.waits.iter().filter(|(_, w)| w.pieces.contains(&piece)).map(|(id, _)| *id).collect();
        for id in waiting {
            self.withdraw(id, table, picker, fx);
            fx.push(Effect::Fail(id, error.clone()));
        }
        for stream in self.streams.ids() {
            self.unwant(piece, DemandId::Stream(stream), table, picker, fx);
        }
    }

    /// The pieces that waiting reads need and that are to stay; with `younger_than` only those of reads that have
    /// waited at least as long.
    pub fn held(&self, younger_than: Option<Instant>) -> BTreeSet<u32> {
        let older = |wait: &&Wait| younger_than.is_none_or(|limit| wait.since <= limit);
        self.waits.values().filter(older).flat_map(|wait| wait.all.clone()).collect()
    }

    /// Since when the read has waited that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.waits.values().map(|w| w.since).min()
    }

    /// Since when the read has waited that has waited longest for a piece.
    pub fn waiting_for(&self, piece: PieceIndex) -> Option<Instant> {
        self.waits.values().filter(|w| w.pieces.contains(&piece)).map(|w| w.since).min()
    }

    /// Every read that waits fails, and each later one that would.
    pub fn fail_all(
        &mut self,
        error: &ReadError,
        table: &PieceTable,
        picker: &mut Picker,
        fx: &mut Vec<Effect>,
    ) {
        let waiting: Vec<u64> = self.waits.keys().copied().collect();
        for id in waiting {
            self.withdraw(id, table, picker, fx);
            fx.push(Effect::Fail(id, error.clone()));
        }
        self.broken = Some(error.clone());
    }

    /// Whether a handle is open or a read waits: then we stay interested in peers.
    pub fn is_wanting(&self) -> bool {
        !self.streams.is_empty() || !self.waits.is_empty()
    }

    /// Whether a read waits.
    pub fn is_waiting(&self) -> bool {
        !self.waits.is_empty()
    }

    /// The reads that wait, longest first.
    pub fn waits(&self) -> Vec<Wait> {
        let mut waits: Vec<Wait> = self.waits.values().cloned().collect();
        waits.sort_by_key(|w| w.since);
        waits
    }

    /// Open handles, pieces that are being looked at for somebody, and pieces that fail at once: for diagnostics.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.streams.len(), self.checks.len(), self.failing.len())
    }

    /// Why this piece fails at once for whoever wants it, if it does.
    pub fn failing(&self, piece: PieceIndex, now: Instant) -> Option<String> {
        let (until, error) = self.failing.get(&piece)?;
        (*until > now).then(|| error.to_string())
    }

    /// Why the read failed that was given up last; `None` once a block or a piece has come since.
    pub fn gave_up(&self) -> Option<&ReadError> {
        self.gave_up.as_ref()
    }

    /// When the last block came.
    pub fn last_block(&self) -> Option<Instant> {
        self.last_block
    }

    /// Whether a read has waited for [`STALLED`] without any block coming.
    pub fn is_stalled(&self, now: Instant) -> bool {
        let oldest = self.waits.values().map(|w| w.since).min();
        oldest.is_some_and(|since| {
            let last = self.last_block.map_or(since, |l| l.max(since));
            now.saturating_duration_since(last) > STALLED
        })
    }
}

/// When what a read waits for since `now` is due.
fn urgent(now: Instant) -> Instant {
    now.checked_sub(URGENT).unwrap_or(now)
}
