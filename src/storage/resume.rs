//! What is remembered of a torrent from one run to the next: which pieces are complete, and its metadata.
//!
//! **Goal.** What was fetched once is there after a crash, without hashing it all again, and nothing is ever
//! remembered that isn't so.
//!
//! **Parts.** [`ResumeData`] with [`save`] and [`load`]; [`believable`] drops bits whose data can't be there;
//! [`persist`] is the only right order: data first, then the bits. [`save_metadata`] and [`load_metadata`] keep
//! what came through a magnet link, so that a known one mounts without a network.
//!
//! **Flow.** Both are files in the torrent's folder of the cache: `resume` and `torrent`, written aside,
//! checksummed and renamed. A damaged or newer one is set aside as `.bad` with a warning: the pieces are then
//! unknown, not complete, and settled on demand.
//!
//! **Not here.** When to persist, and whether to trust what was loaded: that is the torrent owner's.

use std::path::Path;

pub use super::sealed::ResumeProblem;
use super::sealed::{self, Kind};
use super::{StorageError, Store};
use crate::metainfo::geometry::Geometry;

const RESUME: Kind = Kind { name: "resume", magic: *b"TFresume", version: 1 };
const METADATA: Kind = Kind { name: "torrent", magic: *b"TFtorren", version: 1 };

/// What is remembered of a torrent's pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeData {
    /// The torrent, in hex, as its folder is called.
    pub info_hash: String,
    /// Number of its pieces.
    pub pieces: u32,
    /// One bit per piece, the first in the highest bit of the first byte (as BEP 3 orders them); bits beyond
    /// the last piece are 0. Set: its data was synced before this was written.
    pub complete: Vec<u8>,
    /// Whether the program ended in good order after this was written. No bit depends on it.
    pub clean: bool,
}

/// Bytes that the bits of so many pieces take.
fn bitfield_len(pieces: u32) -> usize {
    pieces.div_ceil(8) as usize
}

impl ResumeData {
    fn encode(&self) -> Option<Vec<u8>> {
        let hash_len = u8::try_from(self.info_hash.len()).ok()?;
        if self.complete.len() != bitfield_len(self.pieces) {
            return None;
        }
        let mut body = Vec::with_capacity(self.complete.len() + 128);
        body.push(hash_len);
        body.extend_from_slice(self.info_hash.as_bytes());
        body.extend_from_slice(&self.pieces.to_le_bytes());
        body.push(u8::from(self.clean));
        body.extend_from_slice(&self.complete);
        Some(body)
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (hash_len, rest) = body.split_first()?;
        let (info_hash, rest) = rest.split_at_checked(usize::from(*hash_len))?;
        let (pieces, rest) = rest.split_first_chunk::<4>()?;
        let (clean, complete) = rest.split_first()?;
        let pieces = u32::from_le_bytes(*pieces);
        if complete.len() != bitfield_len(pieces) || *clean > 1 {
            return None;
        }
        let spare = (complete.len() * 8) as u32 - pieces;
        if complete.last().is_some_and(|last| last.trailing_zeros() < spare) {
            return None;
        }
        Some(Self {
            info_hash: String::from_utf8(info_hash.to_vec()).ok()?,
            pieces,
            complete: complete.to_vec(),
            clean: *clean == 1,
        })
    }
}

/// Syncs the store, then saves the bits: in that order, so that no bit is ever recorded whose data isn't safe.
/// `data` must be a snapshot of pieces that were written before this is called (an argument that is a value
/// is); pieces that complete meanwhile wait for the next time. Waits for the disk, maybe seconds: on a worker.
/// One at a time per torrent: an older snapshot that is saved last would undo a newer one.
///
/// # Errors
/// Those of [`Store::sync`] (then nothing is saved) and of [`save`] (then the old file stands).
pub fn persist(store: &dyn Store, dir: &Path, data: &ResumeData) -> Result<(), StorageError> {
    store.sync()?;
    save(dir, data)
}

/// Replaces the torrent's resume data in its folder `dir`, durably. Waits for the disk. [`persist`] is what
/// calls it, after a sync.
///
/// # Errors
/// [`StorageError::Full`] and [`StorageError::Io`]; the old data stand unless only the folder's sync failed.
pub fn save(dir: &Path, data: &ResumeData) -> Result<(), StorageError> {
    let path = dir.join(RESUME.name);
    let Some(body) = data.encode() else {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the bits don't match the pieces");
        return Err(StorageError::from_io(&path, "saving", why));
    };
    sealed::write(dir, &RESUME, &body).map_err(|e| StorageError::from_io(&path, "saving", e))
}

/// The torrent's resume data from its folder `dir`, or `None` if there are none. Waits for the disk. The caller
/// compares info-hash and number of pieces, and lets [`believable`] look at the bits.
///
/// # Errors
/// [`ResumeProblem`], for which a warning was logged already; the torrent goes on as if there were none.
pub fn load(dir: &Path) -> Result<Option<ResumeData>, ResumeProblem> {
    let Some(body) = sealed::read(dir, &RESUME)? else { return Ok(None) };
    match ResumeData::decode(&body) {
        Some(data) => Ok(Some(data)),
        None => {
            let path = dir.join(RESUME.name);
            let problem =
                ResumeProblem::Damaged { path: path.clone(), why: "its bits don't match its pieces" };
            Err(sealed::set_aside(&path, problem))
        }
    }
}

/// As [`load`], but it changes nothing: for those who look while somebody else may be writing.
///
/// # Errors
/// [`ResumeProblem`], not logged.
pub fn peek(dir: &Path) -> Result<Option<ResumeData>, ResumeProblem> {
    let Some(body) = sealed::peek(dir, &RESUME)? else { return Ok(None) };
    let damaged =
        || ResumeProblem::Damaged { path: dir.join(RESUME.name), why: "its bits don't match its pieces" };
    ResumeData::decode(&body).map(Some).ok_or_else(damaged)
}

/// As [`load_metadata`], but it changes nothing.
///
/// # Errors
/// [`ResumeProblem`], not logged.
pub fn peek_metadata(dir: &Path) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sealed::peek(dir, &METADATA)
}

/// Keeps metadata that came through a magnet link (any bytes, as the caller encodes them) in the torrent's
/// folder `dir`, durably. Waits for the disk.
///
/// # Errors
/// [`StorageError::Full`] and [`StorageError::Io`].
pub fn save_metadata(dir: &Path, metadata: &[u8]) -> Result<(), StorageError> {
    sealed::write(dir, &METADATA, metadata)
        .map_err(|e| StorageError::from_io(&dir.join(METADATA.name), "saving", e))
}

/// What [`save_metadata`] kept, or `None`. Waits for the disk. The caller checks its hash, as if it had come
/// from a peer.
///
/// # Errors
/// [`ResumeProblem`], for which a warning was logged already.
pub fn load_metadata(dir: &Path) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sealed::read(dir, &METADATA)
}

/// The bits of `complete` that the files are long enough for: each file that is missing (`None`) or shorter
/// than it should be takes the bits of the pieces in its missing part. `lens` is what [`Store::files`]
/// gave. Bits that don't belong to a piece, or are too few, come back as 0. Pure.
pub fn believable(complete: &[u8], geometry: &Geometry, lens: &[Option<u64>]) -> Vec<u8> {
    let pieces = geometry.pieces();
    let mut bits = complete.to_vec();
    bits.resize(bitfield_len(pieces), 0);
    let spare = (bits.len() * 8) as u32 - pieces;
    if let Some(last) = bits.last_mut() {
        *last &= 0xff << spare;
    }
    for (index, extent) in geometry.files().iter().enumerate() {
        let len = lens.get(index).copied().flatten().unwrap_or(0);
        let Some(missing) = extent.len.checked_sub(len) else { continue };
        for piece in geometry.pieces_of(extent.offset + len, missing) {
            if let Some(byte) = bits.get_mut((piece / 8) as usize) {
                *byte &= !(0x80 >> (piece % 8));
            }
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::IoSlice;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn data(pieces: u32) -> ResumeData {
        let mut complete = vec![0xa5; bitfield_len(pieces)];
        if let Some(last) = complete.last_mut() {
            *last &= 0xff << (complete_spare(pieces));
        }
        ResumeData { info_hash: "ab".repeat(20), pieces, complete, clean: pieces.is_multiple_of(2) }
    }

    fn complete_spare(pieces: u32) -> u32 {
        pieces.div_ceil(8) * 8 - pieces
    }

    #[test]
    fn o8_what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for pieces in [0, 1, 7, 8, 9, 1000, 333_333] {
            save(dir.path(), &data(pieces)).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(data(pieces)));
        }
        assert_eq!(load_metadata(dir.path()).unwrap(), None);
        save_metadata(dir.path(), b"d4:infoe").unwrap();
        assert_eq!(load_metadata(dir.path()).unwrap().as_deref(), Some(&b"d4:infoe"[..]));
        assert_eq!(load(dir.path()).unwrap(), Some(data(333_333)));
    }

    #[test]
    fn damage_costs_the_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resume");
        save(dir.path(), &data(100)).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] = !bytes[at];
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(load(dir.path()), Err(ResumeProblem::Damaged { .. })), "byte {at}");
            assert_eq!(load(dir.path()).unwrap(), None, "it was set aside");
        }
        save(dir.path(), &data(8)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(data(8)));
        // Sealed well, but not ours to understand.
        for body in [&b""[..], b"\x05ab", &[0, 9, 0, 0, 0, 1, 0xff], &[0, 9, 0, 0, 0, 1, 0xff, 0xff]] {
            sealed::write(dir.path(), &RESUME, body).unwrap();
            assert!(matches!(load(dir.path()), Err(ResumeProblem::Damaged { .. })), "{body:?}");
        }
        sealed::write(dir.path(), &Kind { version: 2, ..RESUME }, b"new").unwrap();
        assert!(matches!(load(dir.path()), Err(ResumeProblem::Newer { version: 2, .. })));
        assert!(dir.path().join("resume.bad").exists());
    }

    #[test]
    fn bits_that_do_not_match_are_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = ResumeData { pieces: 9, ..data(8) };
        assert!(matches!(save(dir.path(), &wrong), Err(StorageError::Io { .. })));
        assert_eq!(load(dir.path()).unwrap(), None);
        let gone = save(&dir.path().join("absent"), &data(8));
        assert!(matches!(gone, Err(StorageError::Io { .. })));
    }

    #[test]
    fn s1_missing_or_short_files_lose_their_bits() {
        // v1: files of 40, 0, 100 and 20 bytes in pieces of 16: 160 bytes, 10 pieces.
        let v1 = Geometry::contiguous(16, &[40, 0, 100, 20]);
        // v2: pieces 0-2 | 3-9 | 10-11.
        let v2 = Geometry::aligned(16, &[40, 0, 100, 20]);
        let all = [0xff; 2];
        let full = [Some(40), Some(0), Some(100), Some(20)];
        let rows: &[(&Geometry, [Option<u64>; 4], u16)] = &[
            (&v1, full, 0b1111_1111_1100_0000),
            (&v1, [Some(99), None, Some(999), Some(21)], 0b1111_1111_1100_0000),
            (&v1, [Some(39), Some(0), Some(100), Some(20)], 0b1101_1111_1100_0000),
            (&v1, [None, Some(0), Some(100), Some(20)], 0b0001_1111_1100_0000),
            (&v1, [Some(40), Some(0), Some(8), Some(20)], 0b1110_0000_0100_0000),
            (&v1, [Some(40), Some(0), Some(100), None], 0b1111_1111_0000_0000),
            (&v2, full, 0b1111_1111_1111_0000),
            (&v2, [Some(39), Some(0), Some(100), Some(20)], 0b1101_1111_1111_0000),
            (&v2, [Some(40), Some(0), None, Some(16)], 0b1110_0000_0010_0000),
            (&v2, [None; 4], 0),
        ];
        for (geometry, lens, expected) in rows {
            let bits = believable(&all, geometry, lens);
            assert_eq!(u16::from_be_bytes([bits[0], bits[1]]), *expected, "{lens:?}");
        }
        assert_eq!(believable(&[0xff], &v1, &full), [0xff, 0], "too few bits");
        assert_eq!(believable(&[0xff; 9], &v1, &full), [0xff, 0xc0], "too many");
        assert_eq!(believable(&all, &v1, &[]), [0, 0], "lengths of nothing");
        assert!(believable(&[], &Geometry::contiguous(16, &[]), &[]).is_empty());
    }

    /// Counts syncs and fails them on demand.
    #[derive(Default)]
    struct Fake {
        syncs: AtomicUsize,
        failing: AtomicBool,
        saw: std::sync::OnceLock<std::path::PathBuf>,
    }

    impl Store for Fake {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            Ok(())
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
            Ok(())
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
            Ok(false)
        }
        fn sync(&self) -> Result<(), StorageError> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            if let Some(path) = self.saw.get() {
                assert!(!path.exists(), "the bits were saved before the data were synced");
            }
            if self.failing.load(Ordering::SeqCst) { Err(StorageError::Closed) } else { Ok(()) }
        }
        fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
            Ok(())
        }
        fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
            Ok(Vec::new())
        }
        fn close(&self) {}
    }

    #[test]
    fn s3_bits_are_saved_after_their_data_and_never_without() {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        fake.saw.set(dir.path().join("resume")).unwrap();
        fake.failing.store(true, Ordering::SeqCst);
        assert!(matches!(persist(&fake, dir.path(), &data(8)), Err(StorageError::Closed)));
        assert_eq!(load(dir.path()).unwrap(), None);
        fake.failing.store(false, Ordering::SeqCst);
        persist(&fake, dir.path(), &data(8)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(data(8)));
        assert_eq!(fake.syncs.load(Ordering::SeqCst), 2);
    }
}
