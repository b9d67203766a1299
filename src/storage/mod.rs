//! Where a torrent's data and what is known of it are kept.
//!
//! **Goal.** What was fetched and verified once stays, and a byte that is read back is the byte that was
//! written, or the read fails.
//!
//! **Parts.** [`Store`] is the one synchronous trait; [`file::FileStore`] keeps sparse files, in a [`volume`];
//! [`mmap::MmapStore`] reads the same files through mappings; [`memory::MemoryStore`] keeps data in memory;
//! [`overlay::Overlay`] adds one store to another that is never written, which [`adopt`] finds. [`combine`] lets one
//! thread at a time write what several have. [`pool`] is the bounded set of threads that may wait for a disk. [`resume`] remembers which
//! pieces are complete, and the metadata that came through a magnet link. [`verify`] reads a piece back and hashes
//! it. [`cache`] is the folder it all lies in and its lock, [`catalog`] what lies in it; [`quota`] says how much is
//! kept, [`lru`] what goes first, and [`spare`] is a little room put by.
//!
//! **Flow.** A piece is hashed in memory, written ([`Store::write_at`]) and counts as complete for readers;
//! later [`resume::persist`] syncs the data and only then records the bits, so that a kill at any point leaves
//! nothing that claims to be here and isn't.
//!
//! **Not here.** Which pieces are complete (the torrent's piece table), what to fetch, hashing as such.
//! Nothing here knows of tokio: whoever calls is on a worker, or uses [`Store::try_read`].

pub mod added;
pub mod adopt;
pub mod cache;
pub mod catalog;
pub mod combine;
pub mod file;
pub mod lru;
pub mod memory;
pub mod mmap;
pub mod overlay;
mod parts;
pub mod pool;
pub mod quota;
pub mod resume;
mod sealed;
pub mod size;
pub mod spare;
#[cfg(test)]
mod suite;
pub mod tally;
pub mod verify;
pub mod volume;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::metainfo::geometry::{FileIndex, PieceIndex};

/// The data of one torrent. Calls may come from several threads at once; a read that overlaps a write in
/// progress may see part of it, so readers ask for complete pieces only.
///
/// Synchronous: apart from [`Store::try_read`] each call may wait for a disk (never for a network), so it is
/// called on a [`pool::Workers`] thread only. Offsets are in the torrent's linear space, in bytes; ranges may
/// span files, pad files and the gaps of a v2 torrent.
pub trait Store: Send + Sync + 'static {
    /// Writes `parts`, one after another, from `offset`; together they may have any length. What falls into
    /// pad files and gaps is left out. On an error any part of it may have been written.
    ///
    /// # Errors
    /// [`StorageError::Full`] when the disk is, [`StorageError::Short`] when a file was cut from outside,
    /// [`StorageError::Io`], [`StorageError::Closed`], [`StorageError::OutOfRange`].
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError>;

    /// Fills the whole of `buf` from `offset`. Pad files and gaps read as zeros; what was never written reads
    /// as zeros or fails.
    ///
    /// # Errors
    /// [`StorageError::Short`] when a file is missing or ends too soon, [`StorageError::Changed`],
    /// [`StorageError::Io`], [`StorageError::Closed`], [`StorageError::OutOfRange`]. `buf` then holds anything.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError>;

    /// As [`Store::read_at`], for bytes that others are likely to ask for again soon: a store that keeps nothing of
    /// what it read in memory keeps this.
    ///
    /// # Errors
    /// As [`Store::read_at`].
    fn read_to_serve(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read_at(offset, buf)
    }

    /// As [`Store::read_at`], but only if it takes no disk: true when all of `buf` was filled from memory,
    /// false when it wasn't (then `buf` holds anything, and [`Store::read_at`] tells why). Never waits for a
    /// disk and opens no file, so it may be called on a FUSE thread.
    ///
    /// # Errors
    /// [`StorageError::Closed`], [`StorageError::OutOfRange`].
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError>;

    /// Makes durable what every [`Store::write_at`] wrote that returned before this was called, with sizes and
    /// names. May take seconds. Calls at the same time wait for each other.
    ///
    /// # Errors
    /// [`StorageError::Full`], [`StorageError::Io`], [`StorageError::Short`], [`StorageError::Closed`]. The kernel
    /// forgets the pages it couldn't write, so after a failure nothing that was written since the last success can
    /// be believed, whatever a read gives: the caller has to take it for missing, with all that was written before
    /// this returned. A write under way then fails too. What is written afterwards is covered by the next call.
    fn sync(&self) -> Result<(), StorageError>;

    /// What lies in `range` counts as written by this store from now on, whoever wrote it: the next [`Store::sync`] makes
    /// it durable. Never waits.
    fn adopt(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Gives the room of `range` back: its bytes read as anything from then on. `around` contains it and has nothing
    /// else in it that is of any worth, so that room taken in larger units than bytes can be given back at its
    /// edges. Not durable. Must not run at the same time as a write into `around`.
    ///
    /// # Errors
    /// [`StorageError::Unsupported`] when what it lies on can't give back parts of files, [`StorageError::Io`],
    /// [`StorageError::Closed`], [`StorageError::OutOfRange`].
    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError>;

    /// A file is whole: all its pieces are verified and recorded. From now on others may use it under its own name,
    /// and it is read-only. Durable. Nothing is done when it was said before.
    ///
    /// # Errors
    /// [`StorageError::Short`], [`StorageError::Io`], [`StorageError::Closed`].
    fn finish(&self, file: FileIndex) -> Result<(), StorageError> {
        let _ = file;
        Ok(())
    }

    /// A file isn't whole any more, or what was lost of it is to be fetched again: nobody is to take it for whole,
    /// and writing gives it its full size once more. To be called before [`Store::discard`] and before writing into
    /// a file that was finished, and after [`StorageError::Short`] once the pieces in its missing part are taken
    /// for missing. Nothing is done when there is nothing to do.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Closed`].
    fn reopen(&self, file: FileIndex) -> Result<(), StorageError> {
        let _ = file;
        Ok(())
    }

    /// A piece is missing from now on, wherever it lay: what is written of it next goes to where it can be given back.
    /// Never waits.
    fn condemn(&self, piece: PieceIndex) {
        let _ = piece;
    }

    /// The file of the system that holds all of this one and nothing else, open for reading, as long as nobody but us
    /// is to write to it and it was finished ([`Store::finish`]). `None` where there is no such file: that is never an
    /// error. May wait for a disk.
    fn backing_file(&self, file: FileIndex) -> Option<OwnedFd> {
        let _ = file;
        None
    }

    /// What is there of each file of the torrent, in its order. Pad files and empty files are always there in full
    /// and take no room.
    ///
    /// # Errors
    /// [`StorageError::Changed`], [`StorageError::Io`], [`StorageError::Closed`].
    fn files(&self) -> Result<Vec<FileState>, StorageError>;

    /// Whether what was synced is still there when the program is started again. What isn't is never recorded.
    fn is_durable(&self) -> bool {
        true
    }

    /// Room that bytes of `range` take at most, for the account of what is kept. Pure.
    fn room(&self, range: Range<u64>) -> u64 {
        range.end.saturating_sub(range.start)
    }

    /// Ends it: each later call is [`StorageError::Closed`]; those under way finish. Keeps the data (where it is
    /// durable), doesn't sync it, doesn't wait. Idempotent.
    fn close(&self);
}

/// Where data is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StorageKind {
    /// In sparse files, read and written.
    #[default]
    File,
    /// In sparse files, mapped into memory.
    Mmap,
    /// In memory: nothing is there after the end.
    Memory,
}

impl StorageKind {
    /// Whether data lies on the disk that holds the cache.
    pub fn is_on_disk(self) -> bool {
        match self {
            Self::File | Self::Mmap => true,
            Self::Memory => false,
        }
    }
}

/// What is there of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileState {
    /// Its length in bytes; `None` when it isn't there.
    pub len: Option<u64>,
    /// Bytes it takes on the disk, in whole blocks.
    pub allocated: u64,
    /// When its content was changed last, in nanoseconds since the epoch; 0 when that means nothing.
    pub modified: i64,
    /// Whether it stands under its own name, as [`Store::finish`] leaves it.
    pub finished: bool,
}

/// Why the storage couldn't do what was asked. Cheap to clone, so that each waiter can have it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The system said no.
    #[error("{op} {} failed: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as "reading".
        op: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// It was written, and a sync that failed meanwhile may have lost some of it.
    #[error("a sync failed while it was written: {cause}")]
    Unsynced {
        /// What was wrong with the sync.
        cause: Arc<StorageError>,
    },
    /// The disk, or the user's share of it, is full.
    #[error("no space left to write {}; free some there, or choose another disk with --cache-dir", .path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// A file is shorter than what was stored in it (row S1).
    #[error(
        "{} has {found} bytes where at least {expected} belong: it was cut or removed from outside; mount again, \
         and what is missing is fetched again", .path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes it must have for this call, at least.
        expected: u64,
        /// Bytes it has; 0 when it is gone.
        found: u64,
    },
    /// A file was removed, replaced or written to by somebody else. Told once: then it is taken as it is.
    #[error("{} was changed from outside; what is in it is checked, and what is wrong is fetched again", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It lies in adopted data that isn't to be changed.
    #[error("{} isn't to be written to: its data was adopted with --read-only", .path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// What the data lies on can't do it.
    #[error("{op} {} isn't possible on its file system", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was tried, as "giving back parts of".
        op: &'static str,
    },
    /// The store, or the workers, were closed: the torrent was removed or the program ends.
    #[error("the storage is closed")]
    Closed,
    /// The range isn't in the torrent.
    #[error("{len} bytes from {offset} reach beyond the torrent's {end} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes there are.
        end: u64,
    },
    /// The list of files can't be stored.
    #[error("file {index} of the torrent can't be stored: {why}")]
    Layout {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl StorageError {
    /// What the system said, with a full disk told apart. `op` as "reading".
    pub(crate) fn from_io(path: &Path, op: &'static str, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::Full { path: path.to_path_buf() };
        }
        Self::Io { path: path.to_path_buf(), op, source: Arc::new(source) }
    }
}

/// Whether this error says that there is no room: on the disk, or in the user's quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_and_what_to_do() {
        let path = PathBuf::from("/cache/x");
        let rows = [
            (
                StorageError::from_io(&path, "reading", io::Error::from_raw_os_error(libc::EIO)),
                "reading /cache/x failed: Input/output error (os error 5)",
            ),
            (
                StorageError::from_io(&path, "writing", io::Error::from_raw_os_error(libc::EDQUOT)),
                "no space left to write /cache/x; free some there, or choose another disk with --cache-dir",
            ),
            (
                StorageError::Changed { path: path.clone() },
                "/cache/x was changed from outside; what is in it is checked, and what is wrong is fetched again",
            ),
            (
                StorageError::ReadOnly { path: path.clone() },
                "/cache/x isn't to be written to: its data was adopted with --read-only",
            ),
            (
                StorageError::Short { path, expected: 10, found: 3 },
                "/cache/x has 3 bytes where at least 10 belong: it was cut or removed from outside; mount again, \
                 and what is missing is fetched again",
            ),
            (
                StorageError::OutOfRange { offset: 5, len: 6, end: 10 },
                "6 bytes from 5 reach beyond the torrent's 10 bytes",
            ),
        ];
        for (error, text) in rows {
            assert_eq!(error.to_string(), text);
        }
    }
}
