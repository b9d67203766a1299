//! The piece table: what state each piece is in, who is reading it, and when it was read last. One writer of states,
//! the torrent's owner; readers take no lock.
//!
//! `Unknown → Verifying → Complete | Missing`, `Missing → Requested → Verifying`, and by eviction
//! `Complete | Unknown → Missing`.
//! The enum is closed and matched exhaustively wherever a decision hangs on it: a state that nobody thought
//! of must not silently mean "never request" (row C1).
//!
//! **Counts.** How many pieces of a run are here is asked for each `stat` of a file, so complete pieces are counted by
//! groups, too: nobody looks at each piece of a huge file ([`PieceTable::complete_in`]).
//!
//! **Pins.** Who reads a piece holds it ([`PieceTable::pin`]): a count beside its state, in the same cell. A piece is
//! evicted ([`PieceTable::evict`]) by one exchange of "complete, held by nobody" for "missing", so either the reader
//! or the eviction comes first, and neither waits.
//!
//! **Losses.** A disk that fails, or somebody who was at a file, takes a piece away though it is held, and it may have
//! been fetched again before whoever reads it looks. So losses are counted, and a reader that sees the same count before
//! and after read what was verified ([`Pins::undisturbed`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::metainfo::geometry::PieceIndex;
use crate::storage::lru::Victim;

/// The state of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceState {
    /// There may be data on disk, and nobody has looked. Settled on demand, by hashing.
    Unknown = 0,
    /// Not here; requestable.
    Missing = 1,
    /// Some of its blocks are requested or here.
    Requested = 2,
    /// Its hash is being computed, of received blocks or of data on disk.
    Verifying = 3,
    /// Here, verified, written.
    Complete = 4,
}

impl PieceState {
    fn of(cell: u32) -> Self {
        match cell & STATE {
            1 => Self::Missing,
            2 => Self::Requested,
            3 => Self::Verifying,
            4 => Self::Complete,
            _ => Self::Unknown,
        }
    }
}

/// Pieces that are counted together. A torrent of a million pieces has two thousand groups, and the run at either end of
/// a range, which is looked at piece by piece, is shorter than that: about two microseconds in all.
const GROUP: u32 = 512;

/// The bits of a cell that are the state…
const STATE: u32 = 0b111;
/// …and what one pin adds to it.
const PIN: u32 = STATE + 1;

/// What counts reads: of two pieces, the one with the higher count was read later. Clones share the count; all
/// torrents of a program have the same.
#[derive(Debug, Clone, Default)]
pub struct ReadClock(Arc<AtomicU64>);

/// The states of all pieces of a torrent.
#[derive(Debug)]
pub struct PieceTable {
    /// State and pins of each.
    cells: Box<[AtomicU32]>,
    /// When each was read last, by the clock; 0 for never.
    stamps: Box<[AtomicU64]>,
    clock: ReadClock,
    /// How often a complete piece became anything else, other than by eviction.
    losses: AtomicU64,
    complete: AtomicU32,
    /// The complete ones of each group of [`GROUP`]. Changed after the state: it lags by moments.
    groups: Box<[AtomicU32]>,
}

impl PieceTable {
    /// A table of `pieces` pieces, all in `state`, with a clock of its own.
    pub fn new(pieces: u32, state: PieceState) -> Self {
        Self::with_clock(pieces, state, ReadClock::default())
    }

    /// As [`PieceTable::new`], with the clock of the program.
    pub fn with_clock(pieces: u32, state: PieceState, clock: ReadClock) -> Self {
        let cells = (0..pieces).map(|_| AtomicU32::new(state as u32)).collect();
        let stamps = (0..pieces).map(|_| AtomicU64::new(0)).collect();
        let complete = |pieces| AtomicU32::new(if state == PieceState::Complete { pieces } else { 0 });
        let groups = (0..pieces).step_by(GROUP as usize).map(|first| complete((pieces - first).min(GROUP)));
        let (groups, losses) = (groups.collect(), AtomicU64::new(0));
        Self { cells, stamps, clock, losses, groups, complete: complete(pieces) }
    }

    /// Number of pieces.
    pub fn len(&self) -> u32 {
        self.cells.len() as u32
    }

    /// Whether the torrent has no pieces.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The state of a piece; `Missing` for one that doesn't exist, which nothing can complete.
    pub fn state(&self, piece: PieceIndex) -> PieceState {
        match self.cells.get(piece.0 as usize) {
            // Acquire pairs with the Release in `set`: who sees Complete sees the written data.
            Some(cell) => PieceState::of(cell.load(Ordering::Acquire)),
            None => PieceState::Missing,
        }
    }

    /// Whether a piece is here.
    pub fn is_complete(&self, piece: PieceIndex) -> bool {
        self.state(piece) == PieceState::Complete
    }

    /// Whether all pieces of a range are here.
    pub fn all_complete(&self, pieces: Range<u32>) -> bool {
        pieces.into_iter().all(|p| self.is_complete(PieceIndex(p)))
    }

    /// Number of complete pieces of a range. Costs a look at each of its groups of 512, and at 1,022 pieces at most.
    pub fn complete_in(&self, pieces: Range<u32>) -> u32 {
        let end = pieces.end.min(self.len());
        let pieces = pieces.start.min(end)..end;
        let one_by_one = |run: Range<u32>| run.filter(|p| self.is_complete(PieceIndex(*p))).count() as u32;
        let groups = pieces.start.div_ceil(GROUP)..pieces.end / GROUP;
        if groups.is_empty() {
            return one_by_one(pieces);
        }
        let whole = self.groups.get(groups.start as usize..groups.end as usize).unwrap_or_default();
        let whole: u32 = whole.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        one_by_one(pieces.start..groups.start * GROUP) + whole + one_by_one(groups.end * GROUP..pieces.end)
    }

    /// Number of complete pieces.
    pub fn complete_count(&self) -> u32 {
        self.complete.load(Ordering::Relaxed)
    }

    /// Changes a state; pins stay. Only the torrent's owner calls this.
    pub fn set(&self, piece: PieceIndex, state: PieceState) {
        let Some(cell) = self.cells.get(piece.0 as usize) else { return };
        let with = |cell: u32| cell & !STATE | state as u32;
        let before = match cell.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |cell| Some(with(cell))) {
            Ok(cell) | Err(cell) => PieceState::of(cell),
        };
        if before == PieceState::Complete && state != before {
            // Release: whoever finds what came in its place finds this, too.
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        self.count(piece, before, state);
    }

    fn count(&self, piece: PieceIndex, before: PieceState, after: PieceState) {
        let group = self.groups.get((piece.0 / GROUP) as usize);
        let counts = std::iter::once(&self.complete).chain(group);
        match (before == PieceState::Complete, after == PieceState::Complete) {
            (false, true) => counts.for_each(|count| _ = count.fetch_add(1, Ordering::Relaxed)),
            (true, false) => counts.for_each(|count| _ = count.fetch_sub(1, Ordering::Relaxed)),
            (true, true) | (false, false) => {}
        }
    }

    /// Holds all pieces of a range against eviction, if all are complete, and they count as read. Never waits;
    /// dropping it lets go.
    pub fn pin(&self, pieces: Range<u32>) -> Option<Pins<'_>> {
        let pins = self.hold(pieces.clone())?;
        let now = self.clock.0.fetch_add(1, Ordering::Relaxed) + 1;
        for stamp in pieces.filter_map(|p| self.stamps.get(p as usize)) {
            stamp.store(now, Ordering::Relaxed);
        }
        Some(pins)
    }

    /// As [`PieceTable::pin`], for whoever isn't a reader: they don't count as read.
    pub fn hold(&self, pieces: Range<u32>) -> Option<Pins<'_>> {
        // Before any state is looked at: a loss that comes later is seen.
        let losses = self.losses.load(Ordering::Acquire);
        let mut pins = Pins { table: self, held: pieces.start..pieces.start, losses };
        for piece in pieces {
            let cell = self.cells.get(piece as usize)?;
            // Acquire pairs with the Release in `set`, as in `state`. Held before the state is looked at: an
            // eviction that comes later sees it.
            let before = cell.fetch_add(PIN, Ordering::AcqRel);
            pins.held.end = piece + 1;
            if PieceState::of(before) != PieceState::Complete {
                return None;
            }
        }
        Some(pins)
    }

    fn unpin(&self, pieces: Range<u32>) {
        for cell in pieces.filter_map(|p| self.cells.get(p as usize)) {
            // Release: what was read under the pin was read before an eviction that sees it gone.
            cell.fetch_sub(PIN, Ordering::AcqRel);
        }
    }

    /// A piece counts as read just now.
    pub fn touch(&self, piece: PieceIndex) {
        if let Some(stamp) = self.stamps.get(piece.0 as usize) {
            stamp.store(self.clock.0.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// When a piece was read last, by the clock; 0 for never.
    pub fn stamp(&self, piece: PieceIndex) -> u64 {
        self.stamps.get(piece.0 as usize).map_or(0, |s| s.load(Ordering::Relaxed))
    }

    /// Whether a piece takes room that [`PieceTable::evict`] would give back at this moment.
    pub fn is_evictable(&self, piece: PieceIndex) -> bool {
        self.cells.get(piece.0 as usize).is_some_and(|cell| evictable(cell.load(Ordering::Relaxed)))
    }

    /// Whether somebody holds a piece at this moment, whatever its state.
    pub fn is_held(&self, piece: PieceIndex) -> bool {
        self.cells.get(piece.0 as usize).is_some_and(|cell| cell.load(Ordering::Acquire) >= PIN)
    }

    /// The pieces that could go at this moment, for a torrent with this number.
    pub fn victims(&self, slot: u32) -> impl Iterator<Item = Victim> + Clone {
        let pieces = (0..self.len()).map(PieceIndex).filter(|piece| self.is_evictable(*piece));
        pieces.map(move |piece| Victim { stamp: self.stamp(piece), slot, piece })
    }

    /// Makes a piece missing whose data may be here and that nobody holds; in one step, so that nobody reads it
    /// from then on and it can be requested. False when it is held or in another state. Only the torrent's owner
    /// calls this.
    pub fn evict(&self, piece: PieceIndex) -> bool {
        let Some(cell) = self.cells.get(piece.0 as usize) else { return false };
        let missing = |cell: u32| evictable(cell).then_some(PieceState::Missing as u32);
        match cell.fetch_update(Ordering::AcqRel, Ordering::Relaxed, missing) {
            Ok(before) => {
                self.count(piece, PieceState::of(before), PieceState::Missing);
                true
            }
            Err(_) => false,
        }
    }

    /// The complete pieces as a bitfield, first piece in the highest bit of the first byte (BEP 3).
    pub fn bitfield(&self) -> Vec<u8> {
        self.bits_of(PieceState::Complete)
    }

    /// The pieces in a state, as a bitfield.
    pub fn bits_of(&self, state: PieceState) -> Vec<u8> {
        let mut bits = vec![0u8; self.cells.len().div_ceil(8)];
        for (i, cell) in self.cells.iter().enumerate() {
            if PieceState::of(cell.load(Ordering::Acquire)) == state {
                bits[i / 8] |= 0x80 >> (i % 8);
            }
        }
        bits
    }
}

/// Whether a cell is that of a piece whose data may be here, and that nobody holds.
fn evictable(cell: u32) -> bool {
    cell < PIN
        && match PieceState::of(cell) {
            PieceState::Complete | PieceState::Unknown => true,
            PieceState::Missing | PieceState::Requested | PieceState::Verifying => false,
        }
}

/// Holds pieces against eviction; dropping it lets go.
#[derive(Debug)]
pub struct Pins<'a> {
    table: &'a PieceTable,
    held: Range<u32>,
    losses: u64,
}

impl Pins<'_> {
    /// Whether nothing of the torrent was lost since it was held, so that what was read of it meanwhile is what was
    /// verified. After a false the reader begins anew, even if all is complete: it may have been fetched again.
    pub fn undisturbed(&self) -> bool {
        // What was read before isn't read after the count.
        fence(Ordering::Acquire);
        self.table.losses.load(Ordering::Acquire) == self.losses
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        self.table.unpin(self.held.clone());
    }
}

/// As [`Pins`], for longer: it keeps the table, too.
#[derive(Debug)]
pub struct LongPins {
    table: Arc<PieceTable>,
    held: Range<u32>,
}

impl LongPins {
    /// As [`PieceTable::pin`].
    pub fn new(table: &Arc<PieceTable>, pieces: Range<u32>) -> Option<Self> {
        let pins = table.pin(pieces.clone())?;
        // Taken over: let go of by this one's drop.
        std::mem::forget(pins);
        Some(Self { table: table.clone(), held: pieces })
    }
}

impl Drop for LongPins {
    fn drop(&mut self) {
        // Read until now, as far as anybody knows.
        self.held.clone().for_each(|p| self.table.touch(PieceIndex(p)));
        self.table.unpin(self.held.clone());
    }
}

/// Whether bit `piece` of a bitfield is set; false beyond its end.
pub fn bit(bits: &[u8], piece: u32) -> bool {
    bits.get(piece as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bits_follow_the_states() {
        let table = PieceTable::new(10, PieceState::Missing);
        table.set(PieceIndex(0), PieceState::Complete);
        table.set(PieceIndex(9), PieceState::Complete);
        table.set(PieceIndex(9), PieceState::Complete);
        table.set(PieceIndex(99), PieceState::Complete);
        assert_eq!(table.complete_count(), 2);
        assert_eq!(table.bitfield(), [0x80, 0x40]);
        assert!(bit(&table.bitfield(), 9) && !bit(&table.bitfield(), 8) && !bit(&[], 0));
        table.set(PieceIndex(9), PieceState::Missing);
        assert_eq!(table.complete_count(), 1);
        assert!(!table.all_complete(0..2) && table.all_complete(0..1));
    }

    #[test]
    fn runs_are_counted_as_if_one_by_one() {
        let pieces = 3 * GROUP + 100;
        let table = PieceTable::new(pieces, PieceState::Missing);
        let all = PieceTable::new(pieces, PieceState::Complete);
        // Some of each group, all of the second, by any way there is of coming and going.
        for piece in (0..pieces).filter(|p| p / GROUP == 1 || p % 7 == 0).map(PieceIndex) {
            table.set(piece, PieceState::Complete);
        }
        (0..pieces).filter(|p| p % 35 == 0).for_each(|p| assert!(table.evict(PieceIndex(p))));
        (0..pieces).filter(|p| p % 77 == 0).for_each(|p| table.set(PieceIndex(p), PieceState::Verifying));
        let edges =
            [0, 1, 7, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP - 1, 3 * GROUP, pieces - 1, pieces];
        for start in edges {
            for end in edges.into_iter().chain([pieces + 1, u32::MAX]) {
                let expected = (start..end.min(pieces)).filter(|p| table.is_complete(PieceIndex(*p))).count();
                assert_eq!(table.complete_in(start..end), expected as u32, "{start}..{end}");
                assert_eq!(all.complete_in(start..end), end.min(pieces).saturating_sub(start));
            }
        }
        assert_eq!(table.complete_in(0..pieces), table.complete_count());
    }

    #[test]
    fn a_pinned_piece_is_not_evicted_and_an_evicted_one_not_pinned() {
        let states = [
            (PieceState::Unknown, true, false),
            (PieceState::Missing, false, false),
            (PieceState::Requested, false, false),
            (PieceState::Verifying, false, false),
            (PieceState::Complete, true, true),
        ];
        // A row is a state, whether a piece in it can be evicted, and whether it can be pinned.
        for (state, evictable, pinnable) in states {
            let table = PieceTable::new(3, PieceState::Complete);
            table.set(PieceIndex(1), state);
            assert_eq!(table.is_evictable(PieceIndex(1)), evictable, "{state:?}");
            let pins = table.pin(0..3);
            assert_eq!(pins.is_some(), pinnable, "{state:?}");
            assert!(pins.is_none() || (0..3).all(|p| !table.evict(PieceIndex(p))));
            drop(pins);
            assert_eq!(table.state(PieceIndex(1)), state);
            assert_eq!(
                table.evict(PieceIndex(1)),
                evictable,
                "all pins are gone, also those of a failed attempt"
            );
            assert!(table.evict(PieceIndex(0)) && !table.evict(PieceIndex(0)));
            assert_eq!(table.complete_count(), 1);
        }
        let table = Arc::new(PieceTable::new(3, PieceState::Complete));
        let long = LongPins::new(&table, 0..2);
        assert!(long.is_some() && LongPins::new(&table, 2..4).is_none(), "there is no fourth");
        assert!(!table.evict(PieceIndex(1)) && table.evict(PieceIndex(2)));
        // A state may change under a pin: the pin stays.
        table.set(PieceIndex(1), PieceState::Verifying);
        table.set(PieceIndex(1), PieceState::Complete);
        assert!(!table.evict(PieceIndex(1)));
        drop(long);
        assert!(table.evict(PieceIndex(1)) && table.pin(0..2).is_none() && table.pin(0..1).is_some());
    }

    #[test]
    fn stamps_tell_which_was_read_later() {
        let clock = ReadClock::default();
        let (a, b) = (
            PieceTable::with_clock(2, PieceState::Complete, clock.clone()),
            PieceTable::with_clock(2, PieceState::Complete, clock),
        );
        assert_eq!(a.stamp(PieceIndex(0)), 0);
        a.touch(PieceIndex(0));
        drop(b.pin(0..2));
        a.touch(PieceIndex(1));
        let order = [a.stamp(PieceIndex(0)), b.stamp(PieceIndex(0)), a.stamp(PieceIndex(1))];
        assert!(
            order.is_sorted_by(|x, y| x < y) && b.stamp(PieceIndex(0)) == b.stamp(PieceIndex(1)),
            "{order:?}"
        );
        a.touch(PieceIndex(9));
    }

    #[test]
    fn s2_readers_and_evictions_at_once_never_meet() {
        // "Evicted" is what the evictor alone changes: a reader that holds the piece never sees it change.
        let table = PieceTable::new(1, PieceState::Complete);
        let data = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(pins) = table.pin(0..1) {
                            let first = data.load(Ordering::Relaxed);
                            assert_eq!(first % 2, 0, "a hole was read");
                            assert_eq!(data.load(Ordering::Relaxed), first);
                            drop(pins);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if table.evict(PieceIndex(0)) {
                        data.fetch_add(1, Ordering::Relaxed);
                        data.fetch_add(1, Ordering::Relaxed);
                        table.set(PieceIndex(0), PieceState::Complete);
                    }
                }
            });
        });
        assert!(table.evict(PieceIndex(0)), "all pins are gone");
    }

    #[test]
    fn c1_no_state_means_ignore() {
        // Every state says what a demand for the piece leads to; the match has no wildcard, so a new state
        // doesn't compile until somebody decides.
        let action = |state: PieceState| match state {
            PieceState::Unknown => "check",
            PieceState::Missing | PieceState::Requested => "request",
            PieceState::Verifying => "wait for the hash",
            PieceState::Complete => "serve",
        };
        for cell in 0..=u32::from(u8::MAX) {
            assert!(!action(PieceState::of(cell)).is_empty());
        }
        assert_eq!(action(PieceState::of(PieceState::Unknown as u32)), "check");
        assert_eq!(PieceTable::new(1, PieceState::Unknown).state(PieceIndex(0)), PieceState::Unknown);
    }
}
