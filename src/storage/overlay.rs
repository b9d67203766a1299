//! The overlay: data that another program downloaded, never written, and a store of our own above it.
//!
//! **Goal.** Every byte has one place where it is read from, and nothing is ever written below.
//!
//! **Parts.** [`Overlay`]: the store below, the store above, one bit for each piece that says which of them has it.
//!
//! **Flow.** A read is split where the side changes from piece to piece. A write goes above; when it has succeeded the
//! piece's bit is cleared, and it is read from above from then on. Pieces are written whole in this program; for one
//! that is written in part, what the write leaves out is copied up first, so that the piece has all its bytes on one
//! side. Two writes into the same piece below take turns, or one would copy old bytes over the other's new ones.
//!
//! **Whose files they are.** What lies below isn't ours: it isn't in the account, isn't discarded, isn't synced,
//! isn't renamed. A file that has pieces on both sides is whole on neither, so [`Store::finish`] leaves it.
//!
//! **Not here.** Whether what lies below is any good: whoever checked it says so with [`Overlay::set_below`] and
//! [`Overlay::set_above`].

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use torrentfs_fs::lock::{Rank, RankedCondvar, RankedMutex};

use super::parts::Parts;
use super::{FileState, StorageError, Store};
use crate::metainfo::geometry::{FileIndex, Geometry, PieceIndex, Span};

/// Bytes copied up at a time: a few system calls per piece, and no memory to speak of.
const COPY: u64 = 256 * 1024;

/// See the module. Dropping it drops its hold of both stores.
pub struct Overlay {
    geometry: Arc<Geometry>,
    below: Arc<dyn Store>,
    above: Arc<dyn Store>,
    /// One bit for each piece, the lowest first: set when it is read from below.
    bits: Box<[AtomicU64]>,
    claims: RankedMutex<Claims>,
    /// Told when a claim was given back, or the overlay was closed.
    released: RankedCondvar,
}

/// Pieces below that are being written into.
#[derive(Debug, Default)]
struct Claims {
    pieces: BTreeSet<u32>,
    closed: bool,
}

impl Overlay {
    /// Lays `above` over `below`, both stores of the same torrent. The pieces that `is_below` is true for are read
    /// from below. Touches neither.
    pub fn new(
        geometry: Arc<Geometry>,
        below: Arc<dyn Store>,
        above: Arc<dyn Store>,
        is_below: impl Fn(PieceIndex) -> bool,
    ) -> Overlay {
        let word = |first: u32| {
            let bits = (0..u64::BITS).filter(|bit| {
                let piece = first.checked_add(*bit).filter(|piece| *piece < geometry.pieces());
                piece.is_some_and(|piece| is_below(PieceIndex(piece)))
            });
            AtomicU64::new(bits.fold(0, |word, bit| word | 1 << bit))
        };
        let bits = (0..geometry.pieces()).step_by(u64::BITS as usize).map(word).collect();
        let claims = RankedMutex::new(Rank::Leaf, "claims of an overlay", Claims::default());
        Overlay { geometry, below, above, bits, claims, released: RankedCondvar::new() }
    }

    /// Whether this piece is read from below; false for one that doesn't exist.
    pub fn below(&self, piece: PieceIndex) -> bool {
        let (word, bit) = self.bit(piece);
        // What was written above before the bit was cleared is seen by whoever sees it cleared.
        word.is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Reads this piece from below from now on. What is above of it should have been discarded: nobody gives its
    /// room back afterwards.
    pub fn set_below(&self, piece: PieceIndex) {
        if let (Some(word), bit) = self.bit(piece) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// What is below of this piece isn't any good: it is read from above from now on, where nothing is before it is
    /// written, and [`Store::room`] counts it. To be said before its room is reserved.
    pub fn set_above(&self, piece: PieceIndex) {
        if let (Some(word), bit) = self.bit(piece) {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    fn bit(&self, piece: PieceIndex) -> (Option<&AtomicU64>, u64) {
        let word = (piece.0 / u64::BITS) as usize;
        (self.bits.get(word), 1 << (piece.0 % u64::BITS))
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = self.geometry.end();
        match offset.checked_add(len) {
            Some(to) if to <= end => Ok(()),
            _ => Err(StorageError::OutOfRange { offset, len, end }),
        }
    }

    fn usable(&self) -> Result<(), StorageError> {
        match self.claims.lock().closed {
            true => Err(StorageError::Closed),
            false => Ok(()),
        }
    }

    /// The piece that a byte is in, and where the next one begins.
    fn piece_at(&self, at: u64) -> (PieceIndex, u64) {
        let step = u64::from(self.geometry.piece_length()).max(1);
        // A byte of the torrent is in a piece, whose number has 32 bits.
        (PieceIndex((at / step) as u32), (at / step + 1) * step)
    }

    /// `range` cut where the side changes: each with whether it is below. A side may change meanwhile.
    fn sides(&self, range: Range<u64>) -> impl Iterator<Item = (bool, Range<u64>)> + '_ {
        let (mut at, end) = (range.start, range.end.min(self.geometry.end()));
        std::iter::from_fn(move || {
            let start = at;
            let (piece, next) = (at < end).then(|| self.piece_at(at))?;
            let below = self.below(piece);
            at = next;
            while at < end && self.below(self.piece_at(at).0) == below {
                at = self.piece_at(at).1;
            }
            Some((below, start..at.min(end)))
        })
    }

    fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        mut read: impl FnMut(&dyn Store, u64, &mut [u8]) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        self.usable()?;
        let mut rest = buf;
        for (below, range) in self.sides(offset..offset + len) {
            // Sides lie within the range, in order: the split can't be out of bounds.
            let (part, tail) = std::mem::take(&mut rest).split_at_mut((range.end - range.start) as usize);
            let store = if below { &self.below } else { &self.above };
            if !read(&**store, range.start, part)? {
                return Ok(false);
            }
            rest = tail;
        }
        Ok(true)
    }

    /// Waits until nobody else writes into this piece below: as long as that takes.
    fn claim(&self, piece: PieceIndex) -> Result<Claim<'_>, StorageError> {
        let mut claims = self.claims.lock();
        while !claims.closed && claims.pieces.contains(&piece.0) {
            self.released.wait(&mut claims);
        }
        if claims.closed {
            return Err(StorageError::Closed);
        }
        claims.pieces.insert(piece.0);
        Ok(Claim { overlay: self, piece })
    }

    /// Writes `range`, which lies in a piece that was below.
    fn write_first(
        &self,
        piece: PieceIndex,
        range: Range<u64>,
        parts: &[IoSlice<'_>],
    ) -> Result<(), StorageError> {
        let _claim = self.claim(piece)?;
        // Who had the claim before may have written it.
        if self.below(piece) {
            let start = self.geometry.piece_offset(piece);
            self.copy_up(start..range.start)?;
            self.copy_up(range.end..start + u64::from(self.geometry.piece_len(piece)))?;
        }
        self.above.write_at(range.start, parts)?;
        self.set_above(piece);
        Ok(())
    }

    /// Copies from below to above what is there.
    fn copy_up(&self, range: Range<u64>) -> Result<(), StorageError> {
        for span in self.geometry.spans(range.start, range.end.saturating_sub(range.start)) {
            let start = self.geometry.files().get(span.file.0 as usize).map_or(0, |file| file.offset);
            let mut at = span.offset;
            let end = span.offset + span.len;
            while at < end {
                let wanted = (end - at).min(COPY);
                let copied = self.copy_part(start + at, Span { offset: at, len: wanted, ..span })?;
                if copied < wanted {
                    // The file ends here: nothing of it is left to be copied.
                    break;
                }
                at += copied;
            }
        }
        Ok(())
    }

    /// Copies a part of one file, which lies at `offset` of the torrent: how many of its bytes are there.
    fn copy_part(&self, offset: u64, span: Span) -> Result<u64, StorageError> {
        let mut bytes = vec![0; span.len as usize];
        let mut there = span.len;
        match self.below.read_at(offset, &mut bytes) {
            Ok(()) => {}
            Err(StorageError::Short { found, .. }) => {
                there = found.saturating_sub(span.offset).min(span.len.saturating_sub(1));
                bytes.truncate(there as usize);
                match self.below.read_at(offset, &mut bytes) {
                    Ok(()) => {}
                    Err(StorageError::Short { .. }) => return Ok(0),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        if !bytes.is_empty() {
            self.above.write_at(offset, &[IoSlice::new(&bytes)])?;
        }
        Ok(there)
    }

    /// How far each piece of a file is there on its own side, in bytes from the file's beginning.
    fn reach(&self, file: FileIndex, below: u64, above: u64) -> u64 {
        let Some(extent) = self.geometry.files().get(file.0 as usize) else { return 0 };
        for (side, range) in self.sides(extent.offset..extent.offset + extent.len) {
            let len = if side { below } else { above };
            let end = range.end - extent.offset;
            if len < end {
                return len.max(range.start - extent.offset);
            }
        }
        extent.len
    }

    fn any_below(&self, file: FileIndex) -> bool {
        self.geometry.file_pieces(file).any(|piece| self.below(PieceIndex(piece)))
    }
}

/// The right to write into a piece below; dropping it lets the next one.
struct Claim<'a> {
    overlay: &'a Overlay,
    piece: PieceIndex,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.overlay.claims.lock().pieces.remove(&self.piece.0);
        self.overlay.released.notify_all();
    }
}

impl Store for Overlay {
    fn condemn(&self, piece: PieceIndex) {
        self.set_above(piece);
    }

    /// Goes above. A piece that was below is above once all its bytes in `parts` are written; of one that is written
    /// in part, the other bytes are copied up first, as far as they are there.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
        let len = Parts::len(parts);
        self.check_range(offset, len)?;
        self.usable()?;
        let mut parts = Parts::new(parts);
        for (below, range) in self.sides(offset..offset + len) {
            if !below {
                self.above.write_at(range.start, &parts.take(range.end - range.start))?;
                continue;
            }
            let mut at = range.start;
            while at < range.end {
                let (piece, next) = self.piece_at(at);
                let to = next.min(range.end);
                self.write_first(piece, at..to, &parts.take(to - at))?;
                at = to;
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read(offset, buf, |store, at, part| store.read_at(at, part).map(|()| true)).map(|_| ())
    }

    fn read_to_serve(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read(offset, buf, |store, at, part| store.read_to_serve(at, part).map(|()| true)).map(|_| ())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
        self.read(offset, buf, |store, at, part| store.try_read(at, part))
    }

    /// Of both: nothing was written below, but what was adopted there is to outlive a power cut.
    fn sync(&self) -> Result<(), StorageError> {
        self.usable()?;
        self.below.sync()?;
        self.above.sync()
    }

    fn adopt(&self, range: Range<u64>) {
        for (below, range) in self.sides(range) {
            if below { self.below.adopt(range) } else { self.above.adopt(range) }
        }
    }

    /// Of what is above. Pieces below keep their bytes and give no room back, since they took none of ours.
    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.usable()?;
        // What is above of a piece below is of no worth, so `around` holds for all of them.
        for (_, range) in self.sides(range).filter(|(below, _)| !below) {
            self.above.discard(range, around.clone())?;
        }
        Ok(())
    }

    /// Nothing as long as any piece of the file is below: neither side has all of it then.
    fn finish(&self, file: FileIndex) -> Result<(), StorageError> {
        self.usable()?;
        match self.any_below(file) {
            true => Ok(()),
            false => self.above.finish(file),
        }
    }

    /// Above; what is below stays as it is.
    fn reopen(&self, file: FileIndex) -> Result<(), StorageError> {
        self.usable()?;
        self.above.reopen(file)
    }

    /// Only of what is above altogether. What is below others may write to at any time, and who reads it without us gets
    /// what they wrote.
    fn backing_file(&self, file: FileIndex) -> Option<OwnedFd> {
        self.usable().ok()?;
        if self.any_below(file) { None } else { self.above.backing_file(file) }
    }

    /// A length reaches as far as each piece is there on the side it is read from. Room is counted above only. For a
    /// file on both sides the time is made of both, and good for nothing but to be compared with an earlier one.
    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        self.usable()?;
        let (below, above) = (self.below.files()?, self.above.files()?);
        let both = (0..).map(FileIndex).zip(below).zip(above);
        let state = |((file, below), above): ((FileIndex, FileState), FileState)| {
            let range = self.geometry.file_pieces(file);
            let count = range.clone().filter(|piece| self.below(PieceIndex(*piece))).count();
            if count == 0 {
                return above;
            }
            if count == range.len() {
                return FileState { allocated: above.allocated, ..below };
            }
            let len = self.reach(file, below.len.unwrap_or(0), above.len.unwrap_or(0));
            FileState {
                len: (len > 0 || below.len.is_some() || above.len.is_some()).then_some(len),
                allocated: above.allocated,
                // Turned, so that two equal times don't cancel each other out.
                modified: below.modified.rotate_left(1) ^ above.modified,
                finished: false,
            }
        };
        Ok(both.map(state).collect())
    }

    /// Whether both sides are.
    fn is_durable(&self) -> bool {
        self.below.is_durable() && self.above.is_durable()
    }

    /// Nothing for pieces below, as of now.
    fn room(&self, range: Range<u64>) -> u64 {
        self.sides(range).filter(|(below, _)| !below).map(|(_, range)| self.above.room(range)).sum()
    }

    fn close(&self) {
        self.claims.lock().closed = true;
        self.released.notify_all();
        self.below.close();
        self.above.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::file::{FileStore, Layout, StoredFile};
    use crate::storage::memory::MemoryStore;
    use crate::storage::suite;
    use crate::storage::volume::OsVolume;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::AtomicBool;

    /// A store that must not be changed.
    struct Adopted(MemoryStore);

    impl Store for Adopted {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            panic!("it is never written");
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            let result = self.0.read_at(offset, buf);
            // What was read is old by the time it is used, if anything can be.
            (0..20).for_each(|_| std::thread::yield_now());
            result
        }
        fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
            self.0.try_read(offset, buf)
        }
        fn sync(&self) -> Result<(), StorageError> {
            Ok(())
        }
        fn discard(&self, _: Range<u64>, _: Range<u64>) -> Result<(), StorageError> {
            panic!("it is never discarded");
        }
        fn finish(&self, _: FileIndex) -> Result<(), StorageError> {
            panic!("it is never renamed");
        }
        fn reopen(&self, _: FileIndex) -> Result<(), StorageError> {
            panic!("it is never renamed");
        }
        fn files(&self) -> Result<Vec<FileState>, StorageError> {
            self.0.files()
        }
        fn close(&self) {
            self.0.close();
        }
    }

    fn memory(geometry: &Arc<Geometry>, fill: &[(Range<u64>, u8)]) -> MemoryStore {
        let files = suite::files(geometry.files().len(), &[]);
        let store = MemoryStore::new(geometry.clone(), &files, 1 << 30).unwrap();
        for (range, byte) in fill {
            let bytes = vec![*byte; (range.end - range.start) as usize];
            store.write_at(range.start, &[IoSlice::new(&bytes)]).unwrap();
        }
        store
    }

    /// Pieces of 10 bytes; below all of them are ones.
    fn overlay(sizes: &[u64], is_below: impl Fn(PieceIndex) -> bool) -> (Overlay, Arc<MemoryStore>) {
        let geometry = Arc::new(Geometry::contiguous(10, sizes));
        let below = Adopted(memory(&geometry, &[(0..geometry.end(), 1)]));
        let above = Arc::new(memory(&geometry, &[]));
        (Overlay::new(geometry, Arc::new(below), above.clone(), is_below), above)
    }

    fn write(store: &dyn Store, range: Range<u64>, byte: u8) -> Result<(), StorageError> {
        store.write_at(range.start, &[IoSlice::new(&vec![byte; (range.end - range.start) as usize])])
    }

    fn read(store: &dyn Store, range: Range<u64>) -> Vec<u8> {
        let mut buf = vec![0xee; (range.end - range.start) as usize];
        store.read_at(range.start, &mut buf).unwrap();
        let mut again = vec![0xee; buf.len()];
        assert!(store.try_read(range.start, &mut again).unwrap());
        assert_eq!(buf, again);
        store.read_to_serve(range.start, &mut again).unwrap();
        assert_eq!(buf, again);
        buf
    }

    #[test]
    fn s1_the_suite_of_all_stores() {
        type Side<'a> = &'a dyn Fn(PieceIndex) -> bool;
        let sides: [Side<'_>; 3] = [&|_| false, &|_| true, &|piece| piece.0.is_multiple_of(2)];
        let parent = tempfile::tempdir().unwrap();
        let next = std::cell::Cell::new(0);
        for (on_disk, is_below) in sides.iter().flat_map(|side| [(false, side), (true, side)]) {
            suite::run(&|geometry, files| {
                let memory = || MemoryStore::new(geometry.clone(), files, 1 << 30).unwrap();
                let below = memory();
                if geometry.end() < 1 << 24 {
                    // Which nobody is ever to see for what was written.
                    let junk = vec![0xdd; geometry.end() as usize];
                    below.write_at(0, &[IoSlice::new(&junk)]).unwrap();
                }
                let above: Arc<dyn Store> = match on_disk {
                    false => Arc::new(memory()),
                    true => {
                        let dir = parent.path().join(next.replace(next.get() + 1).to_string());
                        std::fs::create_dir(&dir).unwrap();
                        Arc::new(FileStore::open(&dir, geometry.clone(), files).unwrap())
                    }
                };
                Arc::new(Overlay::new(geometry, Arc::new(Adopted(below)), above, is_below))
            });
        }
    }

    #[test]
    fn what_is_written_is_above_and_the_rest_below() {
        let (store, above) = overlay(&[35, 40], |piece| piece.0 != 2);
        assert!(store.below(PieceIndex(0)) && !store.below(PieceIndex(2)));
        assert!(!store.below(PieceIndex(8)) && !store.below(PieceIndex(u32::MAX)), "none of the torrent's");
        write(&store, 20..30, 2).unwrap();
        assert_eq!(read(&store, 0..75), [[1; 20].as_slice(), &[2; 10], &[1; 45]].concat());
        write(&store, 50..70, 3).unwrap();
        assert_eq!(above.bytes(), 30);
        let below: Vec<u32> = (0..8).filter(|piece| store.below(PieceIndex(*piece))).collect();
        assert_eq!(below, [0, 1, 3, 4, 7]);
        assert_eq!(read(&store, 15..75), [[1; 5].as_slice(), &[2; 10], &[1; 20], &[3; 20], &[1; 5]].concat());
        assert_eq!(store.room(0..75), 30, "what is below isn't in the account");
        assert_eq!(store.room(0..u64::MAX), 30);
        store.sync().unwrap();
        // What is below stays as it is; what is above goes.
        store.discard(0..75, 0..75).unwrap();
        assert_eq!(above.bytes(), 0);
        assert_eq!(read(&store, 30..50), [1; 20]);
        assert!(matches!(store.read_at(20, &mut [0; 10]), Err(StorageError::Short { .. })));
        store.set_below(PieceIndex(2));
        assert_eq!(read(&store, 0..30), [1; 30]);
        store.set_above(PieceIndex(2));
        assert_eq!(store.room(20..30), 10);
        store.set_below(PieceIndex(1000));
        store.set_above(PieceIndex(1000));
        let outside = write(&store, 70..76, 1);
        assert!(matches!(outside, Err(StorageError::OutOfRange { .. })), "{outside:?}");
    }

    #[test]
    fn a_piece_written_in_part_keeps_its_other_bytes() {
        let (store, above) = overlay(&[35, 40], |_| true);
        write(&store, 32..37, 5).unwrap();
        assert!(!store.below(PieceIndex(3)));
        assert_eq!(above.bytes(), 10);
        assert_eq!(read(&store, 20..50), [[1; 12].as_slice(), &[5; 5], &[1; 13]].concat());
        // Over an edge, with a whole piece in between.
        write(&store, 48..61, 6).unwrap();
        assert_eq!(read(&store, 40..70), [[1; 8].as_slice(), &[6; 13], &[1; 9]].concat());
        // The last piece is shorter.
        write(&store, 71..72, 7).unwrap();
        assert_eq!(read(&store, 70..75), [1, 7, 1, 1, 1]);
    }

    #[test]
    fn adopted_files_stay_as_they_are() {
        let (adopted, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = suite::files(2, &[]);
        let place =
            |file: &StoredFile| file.path.iter().fold(adopted.path().to_owned(), |at, name| at.join(name));
        // The second is cut.
        for (file, len) in files.iter().zip([35, 12]) {
            std::fs::create_dir_all(place(file).parent().unwrap()).unwrap();
            std::fs::write(place(file), vec![1; len]).unwrap();
        }
        let look = || -> Vec<(Vec<u8>, std::time::SystemTime, u32)> {
            let look = |file| {
                let metadata = std::fs::metadata(place(file)).unwrap();
                (std::fs::read(place(file)).unwrap(), metadata.modified().unwrap(), metadata.mode())
            };
            files.iter().map(look).collect()
        };
        let before = look();
        let geometry = Arc::new(Geometry::contiguous(10, &[35, 40]));
        let volume = Arc::new(OsVolume::open(adopted.path()).unwrap());
        let layout = Layout::Plain { writable: false };
        let below = Arc::new(FileStore::on(volume, layout, geometry.clone(), &files).unwrap());
        let above = Arc::new(FileStore::open(cache.path(), geometry.clone(), &files).unwrap());
        let store = Overlay::new(geometry.clone(), below, above, |piece| piece.0 < 4);
        assert_eq!(
            store.files().unwrap().iter().map(|file| file.len).collect::<Vec<_>>(),
            [Some(35), Some(5)]
        );
        // The second file's missing pieces are fetched, and one of the first was bad.
        store.set_above(PieceIndex(1));
        write(&store, 40..75, 2).unwrap();
        write(&store, 10..20, 2).unwrap();
        store.sync().unwrap();
        (0..2).for_each(|file| store.finish(FileIndex(file)).unwrap());
        let expected = [[1; 10].as_slice(), &[2; 10], &[1; 20], &[2; 35]].concat();
        let mut buf = [0; 75];
        store.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, expected[..]);
        let states = store.files().unwrap();
        assert_eq!(states.iter().map(|file| file.len).collect::<Vec<_>>(), [Some(35), Some(40)]);
        assert!(states.iter().all(|file| !file.finished));
        assert!(store.room(0..75) > 0 && store.room(20..40) == 0);
        (0..2).for_each(|file| store.reopen(FileIndex(file)).unwrap());
        store.discard(0..75, 0..75).unwrap();
        store.read_at(20, &mut buf[..20]).unwrap();
        assert_eq!(buf[..20], [1; 20]);
        store.close();
        assert_eq!(look(), before);
        assert_eq!(std::fs::read_dir(adopted.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_missing_below_does_not_stop_a_write() {
        let geometry = Arc::new(Geometry::contiguous(10, &[7, 6, 7]));
        // The first file is cut, the second isn't there.
        let below = memory(&geometry, &[(0..3, 1), (13..20, 1)]);
        let store = Overlay::new(
            geometry.clone(),
            Arc::new(Adopted(below)),
            Arc::new(memory(&geometry, &[])),
            |_| true,
        );
        write(&store, 5..6, 2).unwrap();
        write(&store, 18..20, 2).unwrap();
        assert_eq!(read(&store, 0..3), [1; 3]);
        assert_eq!(read(&store, 5..6), [2]);
        assert_eq!(read(&store, 13..20), [1, 1, 1, 1, 1, 2, 2]);
        for missing in [3, 4, 6, 7, 9, 10, 12] {
            assert!(store.read_at(missing, &mut [0]).is_err(), "{missing}");
        }
    }

    #[test]
    fn writes_into_one_piece_below_do_not_undo_each_other() {
        let (store, _) = overlay(&[1000], |_| true);
        std::thread::scope(|scope| {
            for thread in 0..5u64 {
                let store = &store;
                scope.spawn(move || {
                    for piece in 0..100 {
                        let at = piece * 10 + thread * 2;
                        write(store, at..at + 2, thread as u8 + 10).unwrap();
                    }
                });
            }
        });
        let expected: Vec<u8> = (0..1000).map(|at| (at % 10 / 2 + 10) as u8).collect();
        assert_eq!(read(&store, 0..1000), expected);
        assert!(store.claims.lock().pieces.is_empty());
    }

    /// A store that fails to write when asked to.
    struct Failing(MemoryStore, AtomicBool);

    impl Store for Failing {
        fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
            match self.1.load(Ordering::Relaxed) {
                true => Err(StorageError::Full { path: "above".into() }),
                false => self.0.write_at(offset, parts),
            }
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            self.0.read_at(offset, buf)
        }
        fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
            self.0.try_read(offset, buf)
        }
        fn sync(&self) -> Result<(), StorageError> {
            self.0.sync()
        }
        fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
            self.0.discard(range, around)
        }
        fn files(&self) -> Result<Vec<FileState>, StorageError> {
            self.0.files()
        }
        fn close(&self) {
            self.0.close();
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_piece_below() {
        let geometry = Arc::new(Geometry::contiguous(10, &[30]));
        let below = Adopted(memory(&geometry, &[(0..30, 1)]));
        let above = Arc::new(Failing(memory(&geometry, &[]), AtomicBool::new(true)));
        let store = Overlay::new(geometry, Arc::new(below), above.clone(), |_| true);
        for range in [0..10, 5..15] {
            let failed = write(&store, range, 2);
            assert!(matches!(failed, Err(StorageError::Full { .. })), "{failed:?}");
        }
        assert!((0..3).all(|piece| store.below(PieceIndex(piece))));
        assert_eq!(read(&store, 0..30), [1; 30]);
        above.1.store(false, Ordering::Relaxed);
        write(&store, 5..15, 2).unwrap();
        assert_eq!(read(&store, 0..30), [[1; 5].as_slice(), &[2; 10], &[1; 15]].concat());
    }

    #[test]
    fn lengths_are_those_of_the_side_that_is_read() {
        let geometry = Arc::new(Geometry::contiguous(10, &[40, 20]));
        let rows = [
            // Pieces below; bytes below and above in the first file; how far it reaches.
            ([0, 1, 2, 3].as_slice(), 40, 0, Some(40)),
            (&[0, 1, 2, 3], 25, 40, Some(25)),
            (&[0, 1, 2, 3], 0, 40, None),
            (&[], 40, 0, None),
            (&[], 0, 40, Some(40)),
            (&[0, 1], 20, 40, Some(40)),
            (&[0, 1], 15, 40, Some(15)),
            (&[0, 1], 40, 0, Some(20)),
            (&[2, 3], 40, 0, Some(0)),
            (&[2, 3], 25, 40, Some(25)),
            (&[2, 3], 15, 40, Some(20)),
        ];
        for (pieces, below, above, expected) in rows {
            let lens = |len: u64| Lens((len > 0).then_some(len));
            let is_below = |piece: PieceIndex| pieces.contains(&piece.0);
            let store =
                Overlay::new(geometry.clone(), Arc::new(lens(below)), Arc::new(lens(above)), is_below);
            let state = store.files().unwrap()[0];
            assert_eq!(state.len, expected, "{pieces:?} below, {below} and {above} bytes");
            assert_eq!(state.allocated, above, "the room of others isn't counted");
            assert_eq!(state.finished, pieces.is_empty() || pieces.len() == 4);
        }
    }

    /// A store of two files that has nothing but a length for the first.
    struct Lens(Option<u64>);

    impl Store for Lens {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            Err(StorageError::Closed)
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
            Err(StorageError::Closed)
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
            Err(StorageError::Closed)
        }
        fn sync(&self) -> Result<(), StorageError> {
            Ok(())
        }
        fn discard(&self, _: Range<u64>, _: Range<u64>) -> Result<(), StorageError> {
            Ok(())
        }
        fn finish(&self, file: FileIndex) -> Result<(), StorageError> {
            match file {
                FileIndex(0) => Err(StorageError::Closed),
                _ => Ok(()),
            }
        }
        fn files(&self) -> Result<Vec<FileState>, StorageError> {
            let first =
                FileState { len: self.0, allocated: self.0.unwrap_or(0), modified: 5, finished: true };
            Ok(vec![first, FileState::default()])
        }
        fn is_durable(&self) -> bool {
            self.0.is_some()
        }
        fn close(&self) {}
    }

    #[test]
    fn a_file_with_pieces_below_is_not_finished() {
        let geometry = Arc::new(Geometry::contiguous(10, &[35, 20]));
        let side = || Arc::new(Lens(Some(35)));
        let store = Overlay::new(geometry, side(), side(), |piece| piece.0 == 3);
        // The piece in which one ends and the other begins.
        store.finish(FileIndex(0)).unwrap();
        store.finish(FileIndex(1)).unwrap();
        let before = store.files().unwrap()[0].modified;
        assert_ne!(before, 0);
        store.set_above(PieceIndex(3));
        assert!(store.finish(FileIndex(0)).is_err(), "asked of what is above");
        store.finish(FileIndex(1)).unwrap();
        assert!(store.is_durable());
    }

    #[test]
    fn what_is_in_memory_on_one_side_is_not_durable() {
        let geometry = Arc::new(Geometry::contiguous(10, &[35, 20]));
        for (below, above) in [(None, Some(1)), (Some(1), None)] {
            let store =
                Overlay::new(geometry.clone(), Arc::new(Lens(below)), Arc::new(Lens(above)), |_| true);
            assert!(!store.is_durable());
        }
    }
}
