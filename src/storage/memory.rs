//! The memory store: the data of one torrent in memory, gone when it is closed.
//!
//! **Goal.** Exactly what was written, for as long as it isn't discarded, in memory that has a bound whatever the
//! caller does. What isn't held fails to be read and is never zeros.
//!
//! **Parts.** [`MemoryStore`]; `Held`, the pieces it has, with the one counter of what they take, which only
//! `Held::replace` changes; `Piece`, an immutable list of runs; `Run`, bytes without a gap in an `Arc<[u8]>`.
//!
//! **Flow.** Nothing that is held is ever changed. A write copies its bytes, makes a new `Piece` of the old one's
//! runs and its own, and puts it in the old one's place if that is still there (otherwise it begins anew with what
//! has come): so a piece that is written in parts never has a byte that nobody wrote. Once all bytes of a piece are
//! there its runs become one. A read clones the `Arc`s of its pieces out under the lock and copies without it; what
//! it has cloned stays as it is, whatever is written, discarded or closed meanwhile.
//!
//! **Pads and gaps** have no runs: they are cut out of what is written and filled in when it is read. Pieces are
//! kept in a tree by their number, so a torrent of a terabyte takes what is held of it, and what is discarded leaves
//! nothing behind.
//!
//! **Whose store it is.** The store is its own handle: there is no table of stores and no number for one that could
//! come to mean another. Closing takes all data out under the same lock that writes publish under, so whoever still
//! has a closed store gets [`StorageError::Closed`], changes nothing, and can't reach the store that the same torrent
//! may have by then.
//!
//! **Not here.** Which piece is to go when memory is short: the quota's. Which pieces are complete: the piece table's.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::file::StoredFile;
use super::parts::Parts;
use super::{FileState, StorageError, Store};
use crate::metainfo::geometry::{Geometry, PieceIndex};

/// Bytes a run takes besides its own: its counts, its place in the list, and what the allocator adds. Counted from a
/// piece's second run on, so that a piece in one run takes its length, and one in crumbs what it really does.
const RUN_COST: u64 = 64;

/// Where a file of this store is said to lie, in messages.
const PLACE: &str = "(memory)";

/// See the module. Dropping it gives the memory back, but for what [`MemoryStore::span`] gave out.
#[derive(Debug)]
pub struct MemoryStore {
    geometry: Arc<Geometry>,
    files: Box<[StoredFile]>,
    /// In bytes.
    capacity: u64,
    /// `None` once closed.
    held: RankedMutex<Option<Held>>,
}

/// Bytes of a torrent that are held without a gap, all in one piece.
#[derive(Debug, Clone)]
pub struct HeldSpan {
    /// Its first byte, in the torrent's linear space.
    pub offset: u64,
    /// The bytes. They never change, and stay as long as this is kept.
    pub bytes: Arc<[u8]>,
}

impl MemoryStore {
    /// An empty store for the files of `geometry`, in its order. `capacity`, in bytes, is a hard stop: what would
    /// need more fails. Keeping below it by evicting is the quota's part.
    ///
    /// # Errors
    /// [`StorageError::Layout`] when the two lists differ in length.
    pub fn new(
        geometry: Arc<Geometry>,
        files: &[StoredFile],
        capacity: u64,
    ) -> Result<MemoryStore, StorageError> {
        if files.len() != geometry.files().len() {
            let index = files.len().min(geometry.files().len());
            return Err(StorageError::Layout { index, why: "the torrent's lists of files differ in length" });
        }
        let held = RankedMutex::new(Rank::Leaf, "pieces of a memory store", Some(Held::default()));
        Ok(MemoryStore { geometry, files: files.into(), capacity, held })
    }

    /// Bytes held now: those of the data, and for a piece that was written in parts, what keeping the parts takes.
    /// Not counted is what was given out by [`MemoryStore::span`] and discarded since. 0 once closed.
    pub fn bytes(&self) -> u64 {
        self.held.lock().as_ref().map_or(0, |held| held.taken)
    }

    /// The held bytes around `offset`, without copying them: the whole piece, if all of it was written and no pad
    /// lies in it. `None` when that byte isn't held, or is part of a pad or a gap, or the store was closed.
    pub fn span(&self, offset: u64) -> Option<HeldSpan> {
        let step = u64::from(self.geometry.piece_length());
        let number = u32::try_from(offset.checked_div(step)?).ok()?;
        let piece = self.held.lock().as_ref()?.pieces.get(&number).cloned()?;
        let within = (offset % step) as u32;
        let run = piece.from(within).next().filter(|run| run.at <= within)?;
        Some(HeldSpan { offset: offset - u64::from(within - run.at), bytes: run.bytes.clone() })
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = self.geometry.end();
        match offset.checked_add(len) {
            Some(to) if to <= end => Ok(()),
            _ => Err(StorageError::OutOfRange { offset, len, end }),
        }
    }

    /// The parts of `range` that are data: neither pads nor gaps, in order, as long as they can be.
    fn data(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let files = self.geometry.files();
        let mut spans = self
            .geometry
            .spans(range.start, range.end.saturating_sub(range.start))
            .filter(|span| self.files.get(span.file.0 as usize).is_none_or(|file| !file.pad))
            .map(|span| {
                let start = files.get(span.file.0 as usize).map_or(0, |file| file.offset) + span.offset;
                start..start + span.len
            })
            .peekable();
        std::iter::from_fn(move || {
            let mut range = spans.next()?;
            while let Some(next) = spans.next_if(|next| next.start == range.end) {
                range.end = next.end;
            }
            Some(range)
        })
    }

    /// Where a piece lies, with the gap behind it.
    fn whole(&self, number: u32) -> Range<u64> {
        let start = self.geometry.piece_offset(PieceIndex(number));
        start..(start + u64::from(self.geometry.piece_length())).min(self.geometry.end())
    }

    /// The parts of a piece that are data, counted from its first byte.
    fn data_in(&self, number: u32, range: Range<u64>) -> impl Iterator<Item = Range<u32>> + '_ {
        let start = self.whole(number).start;
        // A piece's length has 32 bits, so these have.
        self.data(range).map(move |range| (range.start - start) as u32..(range.end - start) as u32)
    }

    /// Puts what `build` makes of a piece in its place. `build` runs without the lock, again if the piece was
    /// changed meanwhile. `least` is what the new piece takes at least, so that nothing is copied in vain.
    fn change(
        &self,
        number: u32,
        least: u64,
        build: impl Fn(&[Run]) -> Vec<Run>,
    ) -> Result<(), StorageError> {
        let full = || StorageError::Full { path: PathBuf::from(PLACE) };
        loop {
            let before = {
                let held = self.held.lock();
                let held = held.as_ref().ok_or(StorageError::Closed)?;
                let before = held.pieces.get(&number).cloned();
                if held.taken - before.as_ref().map_or(0, |piece| piece.cost()) + least > self.capacity {
                    return Err(full());
                }
                before
            };
            let runs = build(before.as_ref().map_or(&[], |piece| &piece.runs));
            let after = (!runs.is_empty()).then(|| Arc::new(Piece { runs: runs.into() }));
            // What is let go is freed at the end of the turn, without the lock.
            let replaced = {
                let mut held = self.held.lock();
                let held = held.as_mut().ok_or(StorageError::Closed)?;
                held.replace(number, before.as_ref(), after, self.capacity)
            };
            match replaced {
                Replaced::Done => return Ok(()),
                Replaced::Full => return Err(full()),
                Replaced::Changed => {}
            }
        }
    }

    /// Fills `buf`; the first byte that isn't held, if any.
    fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<Option<u64>, StorageError> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        let numbers = self.geometry.pieces_of(offset, len);
        let first = numbers.start;
        let pieces: Vec<Option<Arc<Piece>>> = {
            let held = self.held.lock();
            let held = held.as_ref().ok_or(StorageError::Closed)?;
            numbers.map(|number| held.pieces.get(&number).cloned()).collect()
        };
        let mut rest = buf;
        let mut at = offset;
        for number in (first..).take(pieces.len()) {
            let whole = self.whole(number);
            let piece = pieces.get((number - first) as usize).and_then(Option::as_deref);
            for part in self.data(whole.start.max(offset)..whole.end.min(offset + len)) {
                // Parts lie within the range, in order: neither split can be out of bounds.
                let (gap, tail) = std::mem::take(&mut rest).split_at_mut((part.start - at) as usize);
                let (bytes, tail) = tail.split_at_mut((part.end - part.start) as usize);
                gap.fill(0);
                let done = piece.map_or(0, |piece| piece.copy((part.start - whole.start) as u32, bytes));
                if done < bytes.len() {
                    return Ok(Some(part.start + done as u64));
                }
                rest = tail;
                at = part.end;
            }
        }
        rest.fill(0);
        Ok(None)
    }

    /// What is said when the byte at `missing` isn't held, of a read to `end`.
    fn short(&self, missing: u64, end: u64) -> StorageError {
        let span = self.geometry.spans(missing, end.saturating_sub(missing).max(1)).next();
        let (file, found, len) = span.map_or((0, 0, 0), |span| (span.file.0, span.offset, span.len));
        let mut path = PathBuf::from(PLACE);
        path.extend(self.files.get(file as usize).into_iter().flat_map(|file| &file.path));
        StorageError::Short { path, expected: found + len, found }
    }
}

impl Store for MemoryStore {
    /// # Errors
    /// [`StorageError::Full`] at the capacity, [`StorageError::Closed`], [`StorageError::OutOfRange`]. Pieces before
    /// the one that failed were written, nothing of that one and those behind it.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
        let len = Parts::len(parts);
        self.check_range(offset, len)?;
        if self.held.lock().is_none() {
            return Err(StorageError::Closed);
        }
        let end = offset + len;
        let mut parts = Parts::new(parts);
        let mut at = offset;
        for number in self.geometry.pieces_of(offset, len) {
            let whole = self.whole(number);
            let range = whole.start.max(offset)..whole.end.min(end);
            let least = self.data(range.clone()).map(|data| data.end - data.start).sum::<u64>();
            let runs: Vec<Run> = self
                .data_in(number, range)
                .map(|data| {
                    parts.skip(whole.start + u64::from(data.start) - at);
                    at = whole.start + u64::from(data.end);
                    Run { at: data.start, bytes: parts.copy(data.end - data.start).into() }
                })
                .collect();
            if !runs.is_empty() {
                self.change(number, least, |before| {
                    joined(with(before, &runs), self.data_in(number, whole.clone()))
                })?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`StorageError::Short`] when any of it isn't held, with the place of the first byte that isn't;
    /// [`StorageError::Closed`], [`StorageError::OutOfRange`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        match self.fill(offset, buf)? {
            None => Ok(()),
            Some(missing) => Err(self.short(missing, offset + buf.len() as u64)),
        }
    }

    /// True for all that is held.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
        Ok(self.fill(offset, buf)?.is_none())
    }

    /// Nothing: what is in memory is as safe as it can be here.
    fn sync(&self) -> Result<(), StorageError> {
        self.held.lock().as_ref().map(|_| ()).ok_or(StorageError::Closed)
    }

    /// The memory is free at once, but for what is being read or was given out. Reading any of it fails from then
    /// on, except a part of a run that would take more room when cut in two.
    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
        let len = range.end.saturating_sub(range.start);
        self.check_range(range.start, len)?;
        let numbers: Vec<u32> = {
            let held = self.held.lock();
            let held = held.as_ref().ok_or(StorageError::Closed)?;
            held.pieces.range(self.geometry.pieces_of(range.start, len)).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            let whole = self.whole(number);
            let within = |range: &Range<u64>| {
                let to = |at: u64| at.clamp(whole.start, whole.end) - whole.start;
                to(range.start) as u32..to(range.end) as u32
            };
            self.change(number, 0, |before| without(before, within(&range), within(&around)))?;
        }
        Ok(())
    }

    /// A file of which nothing is held isn't there; of which anything is, is there in its full length.
    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        let pieces: Vec<(u32, Arc<Piece>)> = {
            let held = self.held.lock();
            let held = held.as_ref().ok_or(StorageError::Closed)?;
            held.pieces.iter().map(|(number, piece)| (*number, piece.clone())).collect()
        };
        let mut states = vec![FileState::default(); self.files.len()];
        for (number, piece) in pieces {
            let start = self.whole(number).start;
            for run in &piece.runs {
                for span in self.geometry.spans(start + u64::from(run.at), run.bytes.len() as u64) {
                    if let Some(state) = states.get_mut(span.file.0 as usize) {
                        state.allocated += span.len;
                    }
                }
            }
        }
        for ((state, file), extent) in states.iter_mut().zip(&self.files).zip(self.geometry.files()) {
            let there = file.pad || extent.len == 0 || state.allocated > 0;
            state.len = there.then_some(extent.len);
        }
        Ok(states)
    }

    fn is_durable(&self) -> bool {
        false
    }

    /// What [`MemoryStore::bytes`] grows by at most when whole pieces are written: nothing for pads and gaps.
    fn room(&self, range: Range<u64>) -> u64 {
        let step = u64::from(self.geometry.piece_length()).max(1);
        let mut room = 0;
        let mut last = None;
        for data in self.data(range) {
            room += data.end - data.start;
            // A piece has a run for each of its parts between pads.
            if last == Some(data.start / step) {
                room += RUN_COST;
            }
            last = Some((data.end - 1) / step);
        }
        room
    }

    fn close(&self) {
        let held = self.held.lock().take();
        drop(held);
    }
}

/// What is held, and what it takes.
#[derive(Debug, Default)]
struct Held {
    /// By number; none is empty.
    pieces: BTreeMap<u32, Arc<Piece>>,
    /// The sum of what they take, in bytes.
    taken: u64,
}

/// What came of putting a piece in another's place.
enum Replaced {
    /// It was done.
    Done,
    /// What was there wasn't what was expected.
    Changed,
    /// There is no room for it.
    Full,
}

impl Held {
    /// Puts `after` in the place of `before`, if that is what is there. What takes no more than before always has
    /// room. The caller has `before` still, so nothing is freed here.
    fn replace(
        &mut self,
        number: u32,
        before: Option<&Arc<Piece>>,
        after: Option<Arc<Piece>>,
        capacity: u64,
    ) -> Replaced {
        let there = self.pieces.get(&number);
        let same = match (there, before) {
            (Some(there), Some(before)) => Arc::ptr_eq(there, before),
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Replaced::Changed;
        }
        let (old, new) =
            (there.map_or(0, |piece| piece.cost()), after.as_ref().map_or(0, |piece| piece.cost()));
        let taken = self.taken - old + new;
        if new > old && taken > capacity {
            return Replaced::Full;
        }
        self.taken = taken;
        match after {
            Some(piece) => drop(self.pieces.insert(number, piece)),
            None => drop(self.pieces.remove(&number)),
        }
        Replaced::Done
    }
}

/// What is held of a piece.
#[derive(Debug)]
struct Piece {
    /// In order, none empty, none over another.
    runs: Box<[Run]>,
}

impl Piece {
    /// What it takes, in bytes.
    fn cost(&self) -> u64 {
        let bytes: u64 = self.runs.iter().map(|run| run.bytes.len() as u64).sum();
        bytes + RUN_COST * (self.runs.len() as u64).saturating_sub(1)
    }

    /// The runs that end behind `at`.
    fn from(&self, at: u32) -> impl Iterator<Item = &Run> {
        self.runs.iter().skip(self.runs.partition_point(|run| run.end() <= at))
    }

    /// Copies from `at` on until `buf` is full or a byte is missing: how many.
    fn copy(&self, at: u32, buf: &mut [u8]) -> usize {
        let mut done = 0;
        for run in self.from(at) {
            let at = at + done as u32;
            let rest = buf.get_mut(done..).unwrap_or_default();
            let Some(bytes) = at.checked_sub(run.at).and_then(|within| run.bytes.get(within as usize..))
            else {
                break;
            };
            let len = rest.len().min(bytes.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..len), bytes.get(..len)) {
                to.copy_from_slice(from);
            }
            done += len;
            if done == buf.len() {
                break;
            }
        }
        done
    }
}

/// Bytes of a piece without a gap.
#[derive(Debug, Clone)]
struct Run {
    /// The first one's place in the piece.
    at: u32,
    bytes: Arc<[u8]>,
}

impl Run {
    fn end(&self) -> u32 {
        self.at + self.bytes.len() as u32
    }

    /// What of it lies in `range`, if anything. Copied unless it is all of it: a part would keep the whole.
    fn part(&self, range: Range<u32>) -> Option<Run> {
        let (from, to) = (range.start.max(self.at), range.end.min(self.end()));
        if from == self.at && to == self.end() {
            return Some(self.clone());
        }
        let bytes = self.bytes.get((from - self.at) as usize..to.checked_sub(self.at)? as usize)?;
        (!bytes.is_empty()).then(|| Run { at: from, bytes: bytes.into() })
    }
}

/// `runs`, and `new` over them.
fn with(runs: &[Run], new: &[Run]) -> Vec<Run> {
    let mut all = Vec::with_capacity(runs.len() + new.len());
    for run in runs {
        let mut at = run.at;
        let first = new.partition_point(|new| new.end() <= run.at);
        for over in new.iter().skip(first).take_while(|new| new.at < run.end()) {
            all.extend(run.part(at..over.at));
            at = over.end();
        }
        all.extend(run.part(at..run.end()));
    }
    all.extend_from_slice(new);
    all.sort_unstable_by_key(|run| run.at);
    all
}

/// `runs` without `range`. A run within `around` goes as a whole; one that reaches beyond it on both sides is cut
/// only if that makes it smaller.
fn without(runs: &[Run], range: Range<u32>, around: Range<u32>) -> Vec<Run> {
    let mut left = Vec::with_capacity(runs.len());
    for run in runs {
        let over = run.at.max(range.start)..run.end().min(range.end);
        if over.is_empty() {
            left.push(run.clone());
        } else if run.at < around.start || run.end() > around.end {
            let inside = run.at < over.start && over.end < run.end();
            if inside && u64::from(over.end - over.start) < RUN_COST {
                left.push(run.clone());
            } else {
                left.extend(run.part(run.at..over.start));
                left.extend(run.part(over.end..run.end()));
            }
        }
    }
    left
}

/// Makes one run of those that together are all of a part of `data`.
fn joined(runs: Vec<Run>, data: impl Iterator<Item = Range<u32>>) -> Vec<Run> {
    let mut all = Vec::with_capacity(runs.len());
    let mut runs = runs.as_slice();
    for part in data {
        let count = runs.partition_point(|run| run.at < part.end);
        let (own, others) = runs.split_at(count);
        runs = others;
        let len = own.iter().map(|run| run.bytes.len()).sum::<usize>();
        if own.len() > 1 && len == part.len() {
            let mut bytes = Vec::with_capacity(len);
            own.iter().for_each(|run| bytes.extend_from_slice(&run.bytes));
            all.push(Run { at: part.start, bytes: bytes.into() });
        } else {
            all.extend_from_slice(own);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::suite;

    const PIECE: u64 = 1000;

    fn store(sizes: &[u64], capacity: u64) -> MemoryStore {
        let geometry = Arc::new(Geometry::contiguous(PIECE as u32, sizes));
        MemoryStore::new(geometry, &suite::files(sizes.len(), &[]), capacity).unwrap()
    }

    fn write(store: &MemoryStore, range: Range<u64>, byte: u8) -> Result<(), StorageError> {
        store.write_at(range.start, &[IoSlice::new(&vec![byte; (range.end - range.start) as usize])])
    }

    fn read(store: &MemoryStore, range: Range<u64>) -> Option<Vec<u8>> {
        let mut buf = vec![0xee; (range.end - range.start) as usize];
        let held = store.try_read(range.start, &mut buf).unwrap();
        let result = store.read_at(range.start, &mut vec![0; buf.len()]);
        match result {
            Ok(()) => assert!(held, "what is held is read at once"),
            Err(StorageError::Short { .. }) => assert!(!held),
            Err(error) => panic!("{error}"),
        }
        held.then_some(buf)
    }

    fn drop_piece(store: &MemoryStore, piece: u64) {
        let range = piece * PIECE..(piece + 1) * PIECE;
        store.discard(range.clone(), range).unwrap();
    }

    /// What it holds, counted anew.
    fn counted(store: &MemoryStore) -> u64 {
        let held = store.held.lock();
        let held = held.as_ref().unwrap();
        assert!(held.pieces.values().all(|piece| !piece.runs.is_empty()));
        let costs = held.pieces.values().map(|piece| {
            let bytes: usize = piece.runs.iter().map(|run| run.bytes.len()).sum();
            assert!(piece.runs.windows(2).all(|two| two[0].end() <= two[1].at), "one over another");
            bytes as u64 + (piece.runs.len() as u64 - 1) * RUN_COST
        });
        let counted = costs.sum();
        assert_eq!(held.taken, counted, "the counter is what is held");
        counted
    }

    #[test]
    fn s1_the_suite_of_all_stores() {
        suite::run(&|geometry, files| Arc::new(MemoryStore::new(geometry, files, 1 << 30).unwrap()));
    }

    #[test]
    fn s2_a_span_outlives_its_eviction() {
        let store = store(&[3000], 3000);
        for byte in 0..3 {
            write(&store, u64::from(byte) * PIECE..u64::from(byte + 1) * PIECE, byte + 1).unwrap();
        }
        let span = store.span(1500).unwrap();
        assert_eq!((span.offset, span.bytes.len()), (1000, 1000));
        drop_piece(&store, 1);
        assert!(store.span(1500).is_none());
        assert_eq!(store.bytes(), 2000);
        // Its place is taken by other bytes, and then all goes.
        write(&store, 1000..2000, 9).unwrap();
        store.close();
        drop(store);
        assert!(span.bytes.iter().all(|byte| *byte == 2));
        assert_eq!(Arc::strong_count(&span.bytes), 1, "nobody else keeps it");
    }

    #[test]
    fn s2_a_closed_stores_handle_never_touches_a_new_one() {
        let geometry = Arc::new(Geometry::contiguous(PIECE as u32, &[3000]));
        let open = || Arc::new(MemoryStore::new(geometry.clone(), &suite::files(1, &[]), 1 << 20).unwrap());
        let first = open();
        let stale = first.clone();
        write(&first, 0..3000, 1).unwrap();
        first.close();
        drop(first);
        // The torrent comes back.
        let second = open();
        write(&second, 0..2000, 2).unwrap();
        assert!(matches!(write(&stale, 0..3000, 3), Err(StorageError::Closed)));
        assert!(matches!(stale.discard(0..3000, 0..3000), Err(StorageError::Closed)));
        assert!(matches!(stale.read_at(0, &mut [0; 10]), Err(StorageError::Closed)));
        assert!(matches!(stale.try_read(0, &mut [0; 10]), Err(StorageError::Closed)));
        assert!(matches!(stale.sync(), Err(StorageError::Closed)));
        assert!(matches!(stale.files(), Err(StorageError::Closed)));
        assert!(stale.span(0).is_none());
        stale.close();
        drop(stale);
        assert_eq!(read(&second, 0..2000), Some(vec![2; 2000]));
        assert_eq!(read(&second, 0..3000), None);
        assert_eq!(second.bytes(), 2000);
    }

    #[test]
    fn s2_two_sizes_in_one_process() {
        let (small, large) = (store(&[9000], 2000), store(&[9000], 5000));
        std::thread::scope(|scope| {
            for (store, room) in [(&small, 2), (&large, 5)] {
                scope.spawn(move || {
                    for piece in 0..9 {
                        let result = write(store, piece * PIECE..(piece + 1) * PIECE, 1);
                        assert_eq!(result.is_ok(), piece < room, "{piece} of {room}");
                    }
                });
            }
        });
        assert_eq!((counted(&small), counted(&large)), (2000, 5000));
    }

    #[test]
    fn s2_closing_is_final_and_leaves_nothing() {
        let geometry = Arc::new(Geometry::contiguous(64, &[64 * 64]));
        let store = MemoryStore::new(geometry, &suite::files(1, &[]), 1 << 20).unwrap();
        let closed = std::sync::atomic::AtomicBool::new(false);
        let written = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (store, closed, written) = (&store, &closed, &written);
                scope.spawn(move || {
                    let mut first = true;
                    for at in (0..64).cycle().map(|n| n * 64 + thread) {
                        let after = closed.load(std::sync::atomic::Ordering::SeqCst);
                        let result = write(store, at..at + 10, 1);
                        if std::mem::take(&mut first) {
                            written.wait();
                        }
                        match result {
                            Ok(()) => assert!(!after, "nothing is written once it was closed"),
                            Err(StorageError::Closed) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            written.wait();
            assert!(store.bytes() > 0);
            store.close();
            closed.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(store.bytes(), 0);
        });
        assert_eq!(store.bytes(), 0, "what was under way left nothing");
        assert!(store.held.lock().is_none());
    }

    #[test]
    fn s2_memory_never_grows_beyond_its_capacity() {
        let store = store(&[20_000], 3500);
        for piece in 0..3 {
            write(&store, piece * PIECE..(piece + 1) * PIECE, 1).unwrap();
        }
        // Full: as a whole, in part, and in crumbs, which cost more than their bytes.
        assert!(matches!(write(&store, 3000..4000, 2), Err(StorageError::Full { .. })));
        write(&store, 3000..3001, 2).unwrap();
        for at in (3002..3030).step_by(2) {
            let _ = write(&store, at..at + 1, 2);
            assert!(counted(&store) <= 3500);
        }
        assert!(matches!(write(&store, 3900..3901, 2), Err(StorageError::Full { .. })));
        assert!(counted(&store) <= 3500);
        // What is here is read on, and can be written over; room that is made is used.
        assert_eq!(read(&store, 0..3000), Some(vec![1; 3000]));
        write(&store, 1000..2000, 3).unwrap();
        drop_piece(&store, 3);
        assert!(matches!(write(&store, 4000..5000, 4), Err(StorageError::Full { .. })));
        drop_piece(&store, 0);
        write(&store, 4000..5000, 4).unwrap();
        assert_eq!(read(&store, 4000..5000), Some(vec![4; 1000]));
        assert_eq!(counted(&store), 3000);
        // By several at once, too.
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..200 {
                        let piece = (thread * 5 + round) % 20;
                        let _ = write(store, piece * PIECE..(piece + 1) * PIECE, 1);
                        assert!(store.bytes() <= 3500);
                        if round % 3 == 0 {
                            drop_piece(store, (thread + round) % 20);
                        }
                    }
                });
            }
        });
        assert!(counted(&store) <= 3500);
    }

    #[test]
    fn s2_counters_are_zero_once_everything_is_discarded() {
        let pads = Arc::new(Geometry::contiguous(PIECE as u32, &[2500, 500, 1, 5, 4000, 994]));
        let store = MemoryStore::new(pads.clone(), &suite::files(6, &[1, 3]), 1 << 20).unwrap();
        for round in 0..3 {
            write(&store, 0..8000, 1).unwrap();
            assert_eq!(counted(&store), 7495 + RUN_COST, "no byte of a pad, and a piece in two runs");
            assert_eq!(store.room(0..8000), 7495 + RUN_COST);
            match round {
                0 => store.discard(0..8000, 0..8000).unwrap(),
                1 => (0..8).for_each(|piece| drop_piece(&store, piece)),
                _ => (0..80).for_each(|n| {
                    let range = n * 100..(n + 1) * 100;
                    store.discard(range.clone(), range).unwrap();
                    counted(&store);
                }),
            }
            assert_eq!((counted(&store), store.bytes()), (0, 0));
            assert!(store.held.lock().as_ref().unwrap().pieces.is_empty(), "nothing is left behind");
            assert_eq!(store.files().unwrap()[0], FileState::default());
        }
    }

    #[test]
    fn s2_what_was_evicted_fails_and_is_never_zeros() {
        let store = store(&[1500, 1500], 1 << 20);
        write(&store, 0..3000, 7).unwrap();
        drop_piece(&store, 1);
        assert_eq!(read(&store, 0..1000), Some(vec![7; 1000]));
        assert_eq!(read(&store, 2000..3000), Some(vec![7; 1000]));
        for range in [999..1001, 1000..2000, 1999..2001, 0..3000, 1999..2000] {
            assert_eq!(read(&store, range), None);
        }
        let mut buf = [0; 600];
        let error = store.read_at(900, &mut buf).unwrap_err();
        assert!(matches!(error, StorageError::Short { found: 1000, expected: 1500, .. }), "{error:?}");
        let error = store.read_at(1400, &mut buf).unwrap_err();
        assert!(matches!(&error, StorageError::Short { path, .. } if path.ends_with("file 0")), "{error:?}");
        let error = store.read_at(1600, &mut buf).unwrap_err();
        assert!(
            matches!(&error, StorageError::Short { path, found: 100, expected: 700 }
            if path.ends_with("folder/file 1")),
            "{error:?}"
        );
        // As soon as it is there again it is read again.
        write(&store, 1000..2000, 8).unwrap();
        assert_eq!(read(&store, 1999..2001), Some(vec![8, 7]));
    }

    #[test]
    fn s2_a_half_written_piece_is_no_data() {
        let store = store(&[2000], 1 << 20);
        write(&store, 0..400, 1).unwrap();
        write(&store, 600..1000, 2).unwrap();
        assert_eq!(read(&store, 0..400), Some(vec![1; 400]));
        assert_eq!(read(&store, 600..1000), Some(vec![2; 400]));
        for range in [0..1000, 399..401, 400..600, 599..600, 500..700, 1000..1001] {
            assert_eq!(read(&store, range), None);
        }
        assert!(store.span(500).is_none());
        assert_eq!(store.span(999).map(|span| (span.offset, span.bytes.len())), Some((600, 400)));
        // What it lacked, and more than that.
        write(&store, 300..700, 3).unwrap();
        let whole = store.span(0).unwrap();
        assert_eq!(whole.bytes.len(), 1000, "the parts are one");
        let expected: Vec<u8> = [[1; 300].as_slice(), &[3; 400], &[2; 300]].concat();
        assert_eq!(&*whole.bytes, expected);
        assert_eq!(counted(&store), 1000);
        // A write into it doesn't change what was given out.
        write(&store, 100..200, 4).unwrap();
        assert_eq!(&*whole.bytes, expected);
        assert_eq!(read(&store, 99..101), Some(vec![1, 4]));
        // A write that fails in its second piece has written the first, and nothing else.
        let store = self::store(&[3000], 1500);
        assert!(matches!(write(&store, 0..3000, 1), Err(StorageError::Full { .. })));
        assert_eq!(read(&store, 0..1000), Some(vec![1; 1000]));
        assert_eq!(counted(&store), 1000);
    }

    #[test]
    fn s2_writes_into_one_piece_do_not_undo_each_other() {
        let store = store(&[2000], 1500);
        let turn = std::cell::Cell::new(0);
        // Each time a piece is made of what was there, something else comes first.
        let run = || [Run { at: 0, bytes: vec![1; 100].into() }];
        let built = store.change(0, 100, |before| {
            match turn.replace(turn.get() + 1) {
                0 => write(&store, 200..300, 2).unwrap(),
                1 => write(&store, 50..250, 3).unwrap(),
                _ => {}
            }
            with(before, &run())
        });
        built.unwrap();
        assert_eq!(turn.get(), 3, "made anew each time");
        let expected: Vec<u8> = [[1; 100].as_slice(), &[3; 150], &[2; 50]].concat();
        assert_eq!(read(&store, 0..300), Some(expected));
        counted(&store);
        // Room that was there is gone meanwhile, and the store is closed meanwhile.
        let built = store.change(1, 100, |before| {
            if before.is_empty() {
                write(&store, 300..1000, 4).unwrap();
                write(&store, 1000..1500, 5).unwrap();
            }
            with(before, &[Run { at: 900, bytes: vec![1; 100].into() }])
        });
        assert!(matches!(built, Err(StorageError::Full { .. })), "{built:?}");
        assert_eq!((counted(&store), read(&store, 1900..2000)), (1500, None));
        let built = store.change(1, 0, |_| {
            store.close();
            run().into()
        });
        assert!(matches!(built, Err(StorageError::Closed)), "{built:?}");
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn s2_readers_see_old_or_new_and_nothing_else() {
        let store = store(&[4000], 1 << 20);
        write(&store, 0..4000, 1).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (store, done) = (&store, &done);
                scope.spawn(move || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        for piece in 0..4 {
                            let range = piece * PIECE..(piece + 1) * PIECE;
                            // Gone, or all of one write.
                            if let Some(span) = store.span(range.start) {
                                assert_eq!(span.bytes.len(), 1000);
                                assert!(span.bytes.iter().all(|byte| *byte == span.bytes[0]));
                            }
                            let mut buf = [0; 1000];
                            if store.try_read(range.start, &mut buf).unwrap() {
                                assert!(buf[0] != 0 && buf.iter().all(|byte| *byte == buf[0]));
                            }
                        }
                    }
                });
            }
            for round in 0..2000u64 {
                let piece = round % 4;
                if round % 3 == 0 {
                    drop_piece(&store, piece);
                }
                write(&store, piece * PIECE..(piece + 1) * PIECE, (round % 200) as u8 + 1).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(counted(&store), 4000);
    }

    #[test]
    fn s2_each_store_has_a_lock_of_its_own() {
        let (a, b) = (store(&[1000], 1000), store(&[1000], 1000));
        let held = a.held.lock();
        // With one lock for all this would never end.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                write(&b, 0..1000, 1).unwrap();
                assert_eq!(read(&b, 0..1000), Some(vec![1; 1000]));
            });
        });
        drop(held);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "what is left is a list of ranges")]
    fn parts_of_a_piece_are_discarded_as_far_as_that_gives_room() {
        let rows = [
            // What is discarded and what is around it; what is left.
            (0..1000, 0..1000, vec![]),
            (0..300, 0..300, vec![300..1000]),
            (800..1000, 800..1000, vec![0..800]),
            (400..600, 400..600, vec![0..400, 600..1000]),
            // Cutting it in two would take more room than it gives.
            (400..430, 400..430, vec![0..1000]),
            // The rest isn't of any worth either.
            (400..430, 0..1000, vec![]),
            (400..430, 0..2000, vec![]),
            (400..600, 0..900, vec![0..400, 600..1000]),
            (500..500, 0..1000, vec![0..1000]),
        ];
        for (range, around, left) in rows {
            let store = store(&[2000], 1 << 20);
            write(&store, 0..1000, 1).unwrap();
            store.discard(range.clone(), around.clone()).unwrap();
            let runs: Vec<Range<u64>> = match store.held.lock().as_ref().unwrap().pieces.get(&0) {
                Some(piece) => piece.runs.iter().map(|r| u64::from(r.at)..u64::from(r.end())).collect(),
                None => Vec::new(),
            };
            assert_eq!(runs, left, "{range:?} in {around:?}");
            assert!(counted(&store) <= 1000);
        }
    }

    #[test]
    fn a_terabyte_of_pads_takes_nothing() {
        const TB: u64 = 1 << 40;
        let geometry = Arc::new(Geometry::contiguous(16 << 20, &[TB, TB, 5]));
        let store = MemoryStore::new(geometry, &suite::files(3, &[1]), 1 << 20).unwrap();
        assert_eq!(store.room(TB..2 * TB), 0);
        assert_eq!(store.room(0..2 * TB + 5), TB + 5);
        write(&store, 2 * TB - 100_000..2 * TB + 5, 1).unwrap();
        assert_eq!(counted(&store), 5);
        assert_eq!(read(&store, TB..TB + 10), Some(vec![0; 10]), "nothing has to be held for it");
        assert!(store.span(TB).is_none());
        let lens: Vec<_> = store.files().unwrap().iter().map(|f| (f.len, f.allocated)).collect();
        assert_eq!(lens, [(None, 0), (Some(TB), 0), (Some(5), 5)]);
        assert!(!store.is_durable());
    }

    #[test]
    fn lists_must_match() {
        let geometry = Arc::new(Geometry::contiguous(16, &[5]));
        for count in [0, 2] {
            let result = MemoryStore::new(geometry.clone(), &suite::files(count, &[]), 10);
            assert!(matches!(result, Err(StorageError::Layout { .. })));
        }
    }
}
