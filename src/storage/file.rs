//! The file store: one sparse file for each of the torrent's, below `data/` in the torrent's folder.
//!
//! **Goal.** Plain files that any tool can read, positioned I/O without a lock around it, and no claim that
//! isn't so: a file that someone cuts gives an error, never zeros.
//!
//! **Parts.** [`FileStore`]; its table of open files (at most [`MAX_OPEN`], the least recently used go first);
//! the set of files written since the last sync.
//!
//! **Flow.** A file is opened for reading when it is first read, made and given its full size (sparse, it
//! takes no room) when it is first written. A call looks its file up under a leaf lock, clones the `Arc` out
//! and does its I/O with no lock held; closing happens outside the lock too. A file that was given its size
//! and is shorter at a later write was cut from outside: writing on would turn what it lost into zeros, so the
//! write fails. What is written or read doesn't stay in the page cache, where the kernel knows how.
//!
//! **Not here.** Giving space back, and bounds on the space used.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use torrentfs_fs::lock::{Rank, RankedCondvar, RankedMutex};

use super::dir::{Root, bad_component};
use super::{FileState, StorageError, Store};
use crate::metainfo::geometry::{Geometry, Span};

/// Open files per store. Several stores and 80 peers each stay below the usual soft limit of descriptors once
/// it was raised; a torrent of more files than that is hardly read everywhere at once.
pub const MAX_OPEN: usize = 256;

/// Files synced one by one; with more, the whole file system is synced at once, names included. Twenty thousand
/// small files took longer one by one than a shutdown may.
const SYNC_EACH: usize = 32;

/// The kernel's limit of parts in one `pwritev` (UIO_MAXIOV).
const MAX_PARTS: usize = 1024;

/// What is written without leaving it in the page cache begins and ends at multiples of this. A page that is let go
/// half written would have to be read from the disk for its other half, which comes with the next piece; no page
/// of a common machine is larger.
const WHOLE: u64 = 16 * 1024;

/// The folder within the torrent's folder that the files lie in.
const DATA: &str = "data";

/// One file of the torrent, as it is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its path below the data folder, one name each, made safe by metainfo. Not looked at when the file is a
    /// pad or empty.
    pub path: Vec<String>,
    /// Whether it is a pad file (BEP 47): never stored, reads as zeros.
    pub pad: bool,
}

/// See the module. Dropping it closes the files; it syncs nothing.
#[derive(Debug)]
pub struct FileStore {
    root: Root,
    data: PathBuf,
    geometry: Arc<Geometry>,
    files: Box<[StoredFile]>,
    max_open: usize,
    /// Whether pages are to be let go once they are written or read (RWF_DONTCACHE, Linux 6.14), until the kernel or
    /// the file system says that it can't. The mount's own page cache has what is read; a second copy here would take
    /// free memory for nothing, and filling fresh pages is dearer than all else in the way of a byte.
    let_go: AtomicBool,
    table: RankedMutex<Table>,
    /// Told when a sync has ended, or the store was closed.
    synced: RankedCondvar,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    writable: bool,
    /// The table's clock at its last use.
    used: u64,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u32, Open>,
    clock: u64,
    /// Files that have had their full size since the store was opened.
    sized: HashSet<u32>,
    /// Written since the last sync.
    dirty: BTreeSet<u32>,
    /// Made since the last sync: the folders they lie in are to be synced too.
    created: BTreeSet<u32>,
    syncing: bool,
    /// What the first failed sync said; final.
    failed: Option<StorageError>,
    closed: bool,
}

impl Table {
    fn usable(&self) -> Result<(), StorageError> {
        match &self.failed {
            _ if self.closed => Err(StorageError::Closed),
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn find(&mut self, file: u32, write: bool) -> Option<Arc<File>> {
        self.clock += 1;
        let open = self.open.get_mut(&file).filter(|open| open.writable || !write)?;
        open.used = self.clock;
        Some(open.file.clone())
    }

    /// Takes out an eighth, the least recently used, those without unsynced data first. To be dropped outside
    /// the lock: that closes them.
    fn evict(&mut self) -> Vec<Open> {
        let mut order: Vec<(bool, u64, u32)> =
            self.open.iter().map(|(file, open)| (self.dirty.contains(file), open.used, *file)).collect();
        order.sort_unstable();
        let count = order.len() / 8 + 1;
        order.into_iter().take(count).filter_map(|(_, _, file)| self.open.remove(&file)).collect()
    }
}

impl FileStore {
    /// Opens the store of the torrent whose folder is `dir` (see [`super::cache::CacheDir::torrent_dir`]);
    /// `files` are those of `geometry`, in its order. Makes the data folder, no files. Waits for a disk.
    ///
    /// # Errors
    /// [`StorageError::Layout`] for a path that isn't safe or lists that don't match, [`StorageError::Io`],
    /// [`StorageError::Full`].
    pub fn open(
        dir: &Path,
        geometry: Arc<Geometry>,
        files: &[StoredFile],
    ) -> Result<FileStore, StorageError> {
        Self::open_with(dir, geometry, files, MAX_OPEN)
    }

    fn open_with(
        dir: &Path,
        geometry: Arc<Geometry>,
        files: &[StoredFile],
        max_open: usize,
    ) -> Result<FileStore, StorageError> {
        if files.len() != geometry.files().len() {
            let index = files.len().min(geometry.files().len());
            return Err(StorageError::Layout { index, why: "the torrent's lists of files differ in length" });
        }
        for (index, (file, extent)) in files.iter().zip(geometry.files()).enumerate() {
            if file.pad || extent.len == 0 {
                continue;
            }
            if file.path.is_empty() {
                return Err(StorageError::Layout { index, why: "its path is empty" });
            }
            if let Some(why) = file.path.iter().find_map(|name| bad_component(name)) {
                return Err(StorageError::Layout { index, why });
            }
            if i64::try_from(extent.len).is_err() {
                return Err(StorageError::Layout { index, why: "it is larger than any file can be" });
            }
        }
        let data = dir.join(DATA);
        let root =
            Root::create(dir, DATA).map_err(|e| StorageError::from_io(&data, "opening the folder", e))?;
        Ok(FileStore {
            root,
            data,
            geometry,
            files: files.into(),
            max_open,
            let_go: AtomicBool::new(true),
            table: RankedMutex::new(Rank::Leaf, "open files of a store", Table::default()),
            synced: RankedCondvar::new(),
        })
    }

    /// Number of files open now.
    #[cfg(test)]
    fn open_files(&self) -> usize {
        self.table.lock().open.len()
    }

    /// Leaves what is written and read in the page cache from now on.
    pub(super) fn keep_pages(&self) {
        self.let_go.store(false, Ordering::Relaxed);
    }

    /// A file that is there, open for reading. May wait for a disk.
    pub(super) fn reading(&self, file: u32) -> Result<Arc<File>, StorageError> {
        self.get(file, false)
    }

    /// The path of a file, for messages.
    fn path(&self, file: u32) -> PathBuf {
        let mut path = self.data.clone();
        path.extend(self.components(file));
        path
    }

    fn components(&self, file: u32) -> &[String] {
        self.files.get(file as usize).map_or(&[], |f| &f.path)
    }

    fn is_pad(&self, file: u32) -> bool {
        self.files.get(file as usize).is_some_and(|f| f.pad)
    }

    fn extent(&self, file: u32) -> (u64, u64) {
        self.geometry.files().get(file as usize).map_or((0, 0), |e| (e.offset, e.len))
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = self.geometry.end();
        match offset.checked_add(len) {
            Some(to) if to <= end => Ok(()),
            _ => Err(StorageError::OutOfRange { offset, len, end }),
        }
    }

    /// The open file, opened if need be. May wait for a disk.
    fn get(&self, file: u32, write: bool) -> Result<Arc<File>, StorageError> {
        {
            let mut table = self.table.lock();
            table.usable()?;
            if let Some(open) = table.find(file, write) {
                return Ok(open);
            }
        }
        let (opened, created) = self.open_file(file, write)?;
        let opened = Arc::new(opened);
        let mut closing = Vec::new();
        let result = {
            let mut table = self.table.lock();
            if created {
                table.created.insert(file);
            }
            match table.usable() {
                Err(error) => Err(error),
                Ok(()) => match table.find(file, write) {
                    // Another thread was quicker.
                    Some(open) => Ok(open),
                    None => {
                        if table.open.len() >= self.max_open {
                            closing = table.evict();
                        }
                        let used = table.clock;
                        let open = Open { file: opened.clone(), writable: write, used };
                        closing.extend(table.open.insert(file, open));
                        Ok(opened)
                    }
                },
            }
        };
        drop(closing);
        result
    }

    /// Opens a file beside the table; with `write` it is made when it isn't there (then true). May wait for a
    /// disk.
    fn open_file(&self, file: u32, write: bool) -> Result<(File, bool), StorageError> {
        let path = self.components(file);
        let open = || -> io::Result<(File, bool)> {
            match self.root.open(path, write) {
                Err(e) if write && e.kind() == io::ErrorKind::NotFound => {
                    Ok((self.root.create_file(path)?, true))
                }
                result => Ok((result?, false)),
            }
        };
        match open() {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                // Descriptors are short: do with fewer.
                let closing = std::mem::take(&mut self.table.lock().open);
                drop(closing);
                open()
            }
            result => result,
        }
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StorageError::Short { path: self.path(file), expected: 1, found: 0 },
            _ => self.error(file, "opening", e),
        })
    }

    /// The open file with its full size, for writing.
    fn get_sized(&self, file: u32) -> Result<Arc<File>, StorageError> {
        // Asked before looking at the length: once this is true, the length has been full.
        let sized = self.table.lock().sized.contains(&file);
        let open = self.get(file, true)?;
        let (_, full) = self.extent(file);
        let found = open.metadata().map_err(|e| self.error(file, "reading the size of", e))?.len();
        if found < full {
            if sized {
                return Err(StorageError::Short { path: self.path(file), expected: full, found });
            }
            open.set_len(full).map_err(|e| self.error(file, "setting the size of", e))?;
        }
        if !sized {
            self.table.lock().sized.insert(file);
        }
        Ok(open)
    }

    fn error(&self, file: u32, op: &'static str, error: io::Error) -> StorageError {
        StorageError::from_io(&self.path(file), op, error)
    }

    fn write_span(&self, span: Span, parts: &mut Parts<'_>) -> Result<(), StorageError> {
        let file = span.file.0;
        let open = self.get_sized(file)?;
        let written = parts.write_to(&open, span.offset, span.len, &self.let_go);
        // After the write: a sync that ran meanwhile must not take the mark away. After a failed one too.
        self.table.lock().dirty.insert(file);
        written.map_err(|e| self.error(file, "writing", e))
    }

    fn read_span(&self, span: Span, buf: &mut [u8], let_go: &AtomicBool) -> Result<(), StorageError> {
        let file = span.file.0;
        let open = self.get(file, false)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match read(&open, span.offset + done as u64, rest, 0, let_go) {
                Ok(0) => {
                    let found = open.metadata().map_or(span.offset + done as u64, |m| m.len());
                    let expected = span.offset + span.len;
                    return Err(StorageError::Short { path: self.path(file), expected, found });
                }
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error(file, "reading", errno.into())),
            }
        }
        Ok(())
    }

    /// Fills `buf` with `read` for each part of a real file and zeros for the rest, until it says false.
    pub(super) fn fill(
        &self,
        offset: u64,
        buf: &mut [u8],
        mut read: impl FnMut(Span, &mut [u8]) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        let mut rest = buf;
        let mut at = offset;
        for span in self.geometry.spans(offset, len) {
            let start = self.extent(span.file.0).0 + span.offset;
            // Spans lie within the range, in order: neither split can be out of bounds.
            let (gap, tail) = std::mem::take(&mut rest).split_at_mut((start - at) as usize);
            let (part, tail) = tail.split_at_mut(span.len as usize);
            gap.fill(0);
            if self.is_pad(span.file.0) {
                part.fill(0);
            } else if !read(span, part)? {
                return Ok(false);
            }
            rest = tail;
            at = start + span.len;
        }
        rest.fill(0);
        Ok(true)
    }

    fn read_through(&self, offset: u64, buf: &mut [u8], let_go: &AtomicBool) -> Result<(), StorageError> {
        self.table.lock().usable()?;
        self.fill(offset, buf, |span, part| self.read_span(span, part, let_go).map(|()| true)).map(|_| ())
    }

    fn sync_all(&self, dirty: &BTreeSet<u32>, created: &BTreeSet<u32>) -> Result<(), StorageError> {
        if dirty.len() > SYNC_EACH {
            let failed = |e| StorageError::from_io(&self.data, "syncing the file system of", e);
            return self.root.sync_file_system().map_err(failed);
        }
        for &file in dirty {
            let open = self.table.lock().find(file, false);
            // Those that were closed meanwhile are opened beside the table: they aren't what readers use.
            let open = match open {
                Some(open) => open,
                None => Arc::new(self.open_file(file, false)?.0),
            };
            open.sync_data().map_err(|e| self.error(file, "syncing", e))?;
        }
        let mut folders: BTreeSet<&[String]> = BTreeSet::new();
        for &file in created {
            let path = self.components(file);
            folders.extend((0..path.len()).filter_map(|n| path.get(..n)));
        }
        for folder in folders {
            self.root.sync_folder(folder).map_err(|e| {
                let mut path = self.data.clone();
                path.extend(folder);
                StorageError::from_io(&path, "syncing the folder", e)
            })?;
        }
        Ok(())
    }
}

/// Lets the next sync in, however this one ends.
struct Syncing<'a>(&'a FileStore);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.table.lock().syncing = false;
        self.0.synced.notify_all();
    }
}

impl Store for FileStore {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        self.check_range(offset, len)?;
        self.table.lock().usable()?;
        let mut parts = Parts { parts, within: 0 };
        let mut at = offset;
        for span in self.geometry.spans(offset, len) {
            let start = self.extent(span.file.0).0 + span.offset;
            parts.skip(start - at);
            if self.is_pad(span.file.0) {
                parts.skip(span.len);
            } else {
                self.write_span(span, &mut parts)?;
            }
            at = start + span.len;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read_through(offset, buf, &self.let_go)
    }

    fn read_to_serve(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read_through(offset, buf, &AtomicBool::new(false))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
        self.table.lock().usable()?;
        self.fill(offset, buf, |span, part| {
            let open = self.table.lock().find(span.file.0, false);
            Ok(open.is_some_and(|open| read_now(&open, span.offset, part, &self.let_go)))
        })
    }

    fn sync(&self) -> Result<(), StorageError> {
        let (dirty, created) = {
            let mut table = self.table.lock();
            while table.syncing && !table.closed {
                self.synced.wait(&mut table);
            }
            table.usable()?;
            table.syncing = true;
            (std::mem::take(&mut table.dirty), std::mem::take(&mut table.created))
        };
        let syncing = Syncing(self);
        let result = self.sync_all(&dirty, &created);
        if let Err(error) = &result {
            self.table.lock().failed.get_or_insert_with(|| error.clone());
        }
        drop(syncing);
        result
    }

    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
        let _ = (range, around);
        Err(StorageError::Unsupported { path: self.data.clone(), op: "giving back parts of" })
    }

    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        self.table.lock().usable()?;
        // Files of one folder mostly follow each other: its descriptor is kept from one to the next.
        let mut at: Option<(&[String], Option<Option<OwnedFd>>)> = None;
        let mut lens = Vec::with_capacity(self.files.len());
        for (file, extent) in self.files.iter().zip(self.geometry.files()) {
            let (false, true, Some((name, folders))) = (file.pad, extent.len > 0, file.path.split_last())
            else {
                lens.push(FileState { len: Some(extent.len), ..FileState::default() });
                continue;
            };
            let failed = |e| {
                let mut path = self.data.clone();
                path.extend(&file.path);
                StorageError::from_io(&path, "looking at", e)
            };
            if at.as_ref().is_none_or(|(path, _)| *path != folders) {
                let folder = match self.root.folder(folders, false) {
                    Ok(folder) => Some(folder),
                    Err(e)
                        if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) =>
                    {
                        None
                    }
                    Err(e) => return Err(failed(e)),
                };
                at = Some((folders, folder));
            }
            lens.push(match &at {
                Some((_, Some(folder))) => {
                    FileState { len: self.root.len_in(folder, name).map_err(failed)?, ..FileState::default() }
                }
                _ => FileState::default(),
            });
        }
        Ok(lens)
    }

    fn close(&self) {
        let closing = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.open)
        };
        drop(closing);
        self.synced.notify_all();
    }
}

/// What is still to be written of a list of buffers.
struct Parts<'a> {
    parts: &'a [IoSlice<'a>],
    /// Bytes of the first that are done.
    within: usize,
}

impl Parts<'_> {
    /// Leaves out `len` bytes.
    fn skip(&mut self, len: u64) {
        let mut left = len;
        while let Some((first, others)) = self.parts.split_first() {
            let rest = (first.len() - self.within) as u64;
            if left < rest {
                self.within += left as usize;
                return;
            }
            left -= rest;
            self.parts = others;
            self.within = 0;
        }
    }

    /// The next `len` bytes, or fewer when that is more parts than one call takes.
    fn batch(&self, len: u64) -> Vec<IoSlice<'_>> {
        let mut left = len;
        let mut batch = Vec::with_capacity(self.parts.len().min(MAX_PARTS));
        let mut within = self.within;
        for part in self.parts {
            if left == 0 || batch.len() == MAX_PARTS {
                break;
            }
            let rest = part.get(within..).unwrap_or_default();
            within = 0;
            let take = rest.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(rest);
            left -= take.len() as u64;
            if !take.is_empty() {
                batch.push(IoSlice::new(take));
            }
        }
        batch
    }

    /// Writes the next `len` bytes at `offset` of a file.
    fn write_to(
        &mut self,
        file: &File,
        mut offset: u64,
        mut len: u64,
        let_go: &AtomicBool,
    ) -> io::Result<()> {
        while len > 0 {
            let (step, uncached) = match let_go.load(Ordering::Relaxed) {
                true => step(offset, len),
                false => (len, false),
            };
            let batch = self.batch(step);
            let written = match uncached {
                true => write_uncached(file, &batch, offset),
                false => nix::sys::uio::pwritev(file, &batch, offset as libc::off_t),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    drop(batch);
                    self.skip(written as u64);
                    offset += written as u64;
                    len -= written as u64;
                }
                Err(Errno::EINTR) => {}
                // Not known here: the same again without, which tells what else may be wrong.
                Err(errno) if uncached && unknown(errno) => {
                    let_go.store(false, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// How much of `len` bytes at `offset` is to be written next, and whether its pages may be let go afterwards:
/// what lies between whole multiples of [`WHOLE`].
fn step(offset: u64, len: u64) -> (u64, bool) {
    match (offset % WHOLE, len - len % WHOLE) {
        (0, 0) => (len, false),
        (0, whole) => (whole, true),
        (within, _) => (len.min(WHOLE - within), false),
    }
}

/// Writes as `pwritev`, and lets the pages go once they are on the disk.
fn write_uncached(file: &File, parts: &[IoSlice<'_>], offset: u64) -> nix::Result<usize> {
    let count = parts.len() as libc::c_int;
    // SAFETY: an `IoSlice` has the layout of an `iovec`, and `parts` with the bytes it points to is borrowed for the
    // length of the call; the kernel only reads them. The descriptor is open as long as `file` is borrowed.
    let written = unsafe {
        let parts = parts.as_ptr().cast::<libc::iovec>();
        libc::pwritev2(file.as_raw_fd(), parts, count, offset as libc::off_t, libc::RWF_DONTCACHE)
    };
    Errno::result(written).map(|written| written as usize)
}

/// Fills `buf` from the page cache alone; false when that didn't give all of it, for whatever reason.
fn read_now(file: &File, offset: u64, buf: &mut [u8], let_go: &AtomicBool) -> bool {
    let len = buf.len();
    read(file, offset, buf, libc::RWF_NOWAIT, let_go) == Ok(len)
}

/// Reads as `preadv2`, some of `buf` perhaps, and lets those pages go that came into the cache for it, if that is
/// known here.
fn read(
    file: &File,
    offset: u64,
    buf: &mut [u8],
    flags: libc::c_int,
    let_go: &AtomicBool,
) -> nix::Result<usize> {
    let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let offset = offset as libc::off_t;
    let with = |flags: libc::c_int| {
        // SAFETY: `part` describes `buf`, which is borrowed mutably for longer than the call; the descriptor is open
        // as long as `file` is borrowed. The calls fill no more than `part` says.
        let read = unsafe {
            match flags {
                // The older call, in case the other isn't known.
                0 => libc::preadv(file.as_raw_fd(), &part, 1, offset),
                flags => libc::preadv2(file.as_raw_fd(), &part, 1, offset, flags),
            }
        };
        Errno::result(read).map(|read| read as usize)
    };
    if let_go.load(Ordering::Relaxed) {
        match with(flags | libc::RWF_DONTCACHE) {
            Err(errno) if unknown(errno) => let_go.store(false, Ordering::Relaxed),
            result => return result,
        }
    }
    with(flags)
}

/// Whether the kernel or the file system may have meant a flag that it doesn't know.
fn unknown(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::suite;
    use std::os::unix::fs::MetadataExt;

    fn named(names: &[&str]) -> Vec<StoredFile> {
        let path = |name: &str| name.split('/').map(str::to_owned).collect();
        names.iter().map(|name| StoredFile { path: path(name), pad: false }).collect()
    }

    fn write(store: &FileStore, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        store.write_at(offset, &[IoSlice::new(bytes)])
    }

    fn lens(store: &dyn Store) -> Vec<Option<u64>> {
        store.files().unwrap().iter().map(|f| f.len).collect()
    }

    #[test]
    fn s1_the_suite_of_all_stores() {
        for max_open in [MAX_OPEN, 2] {
            let parent = tempfile::tempdir().unwrap();
            let next = std::cell::Cell::new(0);
            suite::run(&|geometry, files| {
                let dir = parent.path().join(next.replace(next.get() + 1).to_string());
                std::fs::create_dir(&dir).unwrap();
                Arc::new(FileStore::open_with(&dir, geometry, files, max_open).unwrap())
            });
        }
    }

    #[test]
    fn files_are_sparse_plain_and_made_when_first_written() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(1 << 20, &[1 << 40, 5, 0, 7]));
        let mut files = named(&["d/large", "small", "d/empty", "pad"]);
        files[3].pad = true;
        let store = FileStore::open(dir.path(), geometry.clone(), &files).unwrap();
        assert_eq!(lens(&store), [None, None, Some(0), Some(7)]);
        assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 0);
        write(&store, (1 << 40) - 3, b"abcdefgh1234567").unwrap();
        let large = dir.path().join("data/d/large").metadata().unwrap();
        assert_eq!(large.len(), 1 << 40);
        assert!(large.blocks() * 512 < 1 << 20);
        assert_eq!(std::fs::read(dir.path().join("data/small")).unwrap(), b"defgh");
        assert_eq!(
            std::fs::read_dir(dir.path().join("data")).unwrap().count(),
            2,
            "neither pad nor empty file"
        );
        drop(store);
        let store = FileStore::open(dir.path(), geometry, &files).unwrap();
        assert_eq!(lens(&store), [Some(1 << 40), Some(5), Some(0), Some(7)]);
        let mut buf = [1; 15];
        assert!(!store.try_read((1 << 40) - 3, &mut buf).unwrap(), "opens nothing");
        store.read_at((1 << 40) - 3, &mut buf).unwrap();
        assert_eq!(&buf, b"abcdefgh\0\0\0\0\0\0\0");
        let open = store.table.lock().open.values().all(|open| !open.writable);
        assert!(open, "read-only until written");
    }

    #[test]
    fn s1_a_cut_or_missing_file_is_an_error_and_never_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(16, &[100, 100]));
        let store = FileStore::open(dir.path(), geometry.clone(), &named(&["a", "b"])).unwrap();
        let mut buf = [0; 100];
        // Never written: not there.
        let missing = store.read_at(0, &mut buf);
        assert!(matches!(missing, Err(StorageError::Short { found: 0, .. })), "{missing:?}");
        write(&store, 0, &[7; 200]).unwrap();
        store.read_at(0, &mut buf).unwrap();
        // Cut from outside while it is open.
        let path = dir.path().join("data/a");
        File::options().write(true).open(&path).unwrap().set_len(30).unwrap();
        let short = store.read_at(0, &mut buf);
        assert!(
            matches!(&short, Err(StorageError::Short { path: p, expected: 100, found: 30 }) if *p == path),
            "{short:?}"
        );
        assert!(!store.try_read(0, &mut buf).unwrap());
        store.read_at(0, &mut buf[..30]).unwrap();
        store.read_at(100, &mut buf).unwrap();
        // Writing behind the cut would make zeros of what was lost.
        let refused = write(&store, 90, &[7; 20]);
        assert!(matches!(refused, Err(StorageError::Short { expected: 100, found: 30, .. })), "{refused:?}");
        assert!(matches!(store.read_at(0, &mut buf), Err(StorageError::Short { .. })));
        assert_eq!(lens(&store), [Some(30), Some(100)]);
        drop(store);
        // After a restart its length decides what is believed, and it can be written again.
        let store = FileStore::open(dir.path(), geometry, &named(&["a", "b"])).unwrap();
        assert!(matches!(store.read_at(20, &mut buf), Err(StorageError::Short { .. })));
        write(&store, 30, &[8; 70]).unwrap();
        store.read_at(0, &mut buf).unwrap();
        assert_eq!((buf[29], buf[30]), (7, 8));
        // Removed while open elsewhere: a new store misses it.
        std::fs::remove_file(&path).unwrap();
        let other = FileStore::open(dir.path(), store.geometry.clone(), &named(&["a", "b"])).unwrap();
        assert!(matches!(other.read_at(0, &mut buf), Err(StorageError::Short { found: 0, .. })));
    }

    #[test]
    fn planted_links_pipes_and_folders_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, [1; 50]).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&secret, data.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), data.join("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", data.join("dangling")).unwrap();
        nix::unistd::mkfifo(&data.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::fs::create_dir(data.join("taken")).unwrap();
        let names = ["link", "folder/secret", "folder/new", "dangling", "pipe", "taken"];
        let geometry = Arc::new(Geometry::contiguous(16, &[50; 6]));
        let store = FileStore::open(dir.path(), geometry.clone(), &named(&names)).unwrap();
        let mut buf = [0; 50];
        for (n, name) in names.iter().enumerate() {
            let offset = n as u64 * 50;
            assert!(store.read_at(offset, &mut buf).is_err(), "{name}");
            assert!(write(&store, offset, &[2; 50]).is_err(), "{name}");
            assert!(!store.try_read(offset, &mut buf).unwrap(), "{name}");
        }
        assert_eq!(lens(&store), [None; 6]);
        assert_eq!(std::fs::read(&secret).unwrap(), [1; 50]);
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        assert!(!data.join("nowhere").exists());
        let error = store.read_at(0, &mut buf).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        // The data folder itself.
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), other.path().join("data")).unwrap();
        assert!(FileStore::open(other.path(), geometry, &named(&names)).is_err());
    }

    #[test]
    fn unsafe_paths_and_wrong_lists_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let one = Arc::new(Geometry::contiguous(16, &[5]));
        let path =
            |path: &[&str]| StoredFile { path: path.iter().map(|s| s.to_string()).collect(), pad: false };
        for bad in [&[][..], &[""], &["."], &["..", "x"], &["a", ".."], &["a/b"], &["/etc"], &["a\0b"]] {
            let result = FileStore::open(dir.path(), one.clone(), &[path(bad)]);
            assert!(matches!(result, Err(StorageError::Layout { index: 0, .. })), "{bad:?}");
        }
        let result = FileStore::open(dir.path(), one.clone(), &[]);
        assert!(matches!(result, Err(StorageError::Layout { .. })));
        // Longer than the kernel takes in one path, and fine.
        let long: Vec<String> = (0..40).map(|_| "n".repeat(200)).collect();
        let store = FileStore::open(dir.path(), one, &[StoredFile { path: long, pad: false }]).unwrap();
        write(&store, 0, b"hello").unwrap();
        assert_eq!(lens(&store), [Some(5)]);
        store.sync().unwrap();
    }

    #[test]
    fn open_files_are_bounded_and_the_used_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let geometry = Arc::new(Geometry::contiguous(16, &[10; 100]));
        let store = FileStore::open_with(dir.path(), geometry, &named(&names), 16).unwrap();
        let mut buf = [0; 10];
        for n in 0..100u64 {
            write(&store, n * 10, &[n as u8; 10]).unwrap();
            store.read_at(0, &mut buf).unwrap();
            assert!(store.open_files() <= 16);
        }
        assert_eq!(buf, [0; 10]);
        store.sync().unwrap();
        for n in (1..100u64).rev() {
            store.read_at(n * 10, &mut buf).unwrap();
            assert_eq!(buf, [n as u8; 10]);
            assert!(store.table.lock().find(0, false).is_some(), "the one that is always used stays open");
        }
        assert!(store.open_files() <= 16);
    }

    #[test]
    fn what_is_in_memory_is_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::aligned(16384, &[100_000, 50]));
        let store = FileStore::open(dir.path(), geometry, &named(&["a", "b"])).unwrap();
        write(&store, 0, &[7; 114_738]).unwrap();
        let mut buf = vec![1; 114_738];
        // What was written is let go when it is on the disk; what was read for peers isn't.
        store.sync().unwrap();
        store.read_to_serve(0, &mut buf).unwrap();
        let at_once = store.try_read(0, &mut buf).unwrap();
        if !at_once && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            // The test's folder is on a file system that can't tell; a worker reads there.
            return;
        }
        assert!(at_once);
        assert!(buf[..100_000].iter().all(|b| *b == 7) && buf[114_688..] == [7; 50]);
        assert!(buf[100_000..114_688].iter().all(|b| *b == 0), "the gap");
    }

    #[test]
    fn whole_parts_of_the_disk_are_let_go_and_edges_are_not() {
        let rows = [
            // Offset and length; how much is written next, and whether it is let go.
            ((0, 1), (1, false)),
            ((0, WHOLE), (WHOLE, true)),
            ((0, WHOLE + 1), (WHOLE, true)),
            ((WHOLE, 5 * WHOLE - 1), (4 * WHOLE, true)),
            ((5, 5 * WHOLE), (WHOLE - 5, false)),
            ((5, 7), (7, false)),
            ((WHOLE - 1, 2), (1, false)),
            ((3 * WHOLE, 2), (2, false)),
        ];
        for ((offset, len), expected) in rows {
            assert_eq!(step(offset, len), expected, "{len} at {offset}");
        }
    }

    #[test]
    fn what_is_written_is_the_same_whether_it_is_let_go_or_not() {
        let len = 300_000u64;
        let bytes: Vec<u8> = (0..len).map(|n| ((n * 31) >> 3) as u8 | 1).collect();
        for let_go in [true, false] {
            // More parts than one call takes, and a beginning that is no page's.
            for (offset, part) in [(0, 16384), (0, 100), (12_345, 16384), (16384, 70_001)] {
                let dir = tempfile::tempdir().unwrap();
                let open = || {
                    let geometry = Arc::new(Geometry::contiguous(16384, &[5000, 400_000, 3]));
                    FileStore::open(dir.path(), geometry, &named(&["a", "b", "c"])).unwrap()
                };
                let store = open();
                store.let_go.store(let_go, Ordering::Relaxed);
                let parts: Vec<IoSlice<'_>> = bytes.chunks(part).map(IoSlice::new).collect();
                store.write_at(offset, &parts).unwrap();
                let check = |store: &FileStore| {
                    let mut read = vec![0; len as usize];
                    store.read_at(offset, &mut read).unwrap();
                    assert!(read == bytes, "{let_go}, {part} at {offset}");
                    read.fill(0);
                    store.read_to_serve(offset, &mut read).unwrap();
                    assert!(read == bytes, "{let_go}, {part} at {offset}, to serve");
                    read.fill(0);
                    assert!(!store.try_read(offset, &mut read).unwrap() || read == bytes);
                };
                check(&store);
                store.sync().unwrap();
                check(&store);
                drop(store);
                check(&open());
            }
        }
    }

    #[test]
    fn where_pages_cannot_be_let_go_it_is_done_without() {
        // A device has no page cache: the kernel refuses, as one does that doesn't know of it.
        let Ok(null) = File::options().write(true).open("/dev/null") else { return };
        let let_go = AtomicBool::new(true);
        let bytes = vec![1; 3 * WHOLE as usize];
        let slices = [IoSlice::new(&bytes)];
        Parts { parts: &slices, within: 0 }.write_to(&null, 5, bytes.len() as u64, &let_go).unwrap();
        assert!(!let_go.load(Ordering::Relaxed), "asked once");
        // What is wrong besides is told all the same.
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        let let_go = AtomicBool::new(true);
        let error = Parts { parts: &slices, within: 0 }.write_to(&full, 0, WHOLE, &let_go).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let Ok(zero) = File::open("/dev/zero") else { return };
        let let_go = AtomicBool::new(true);
        let mut bytes = [1; 10];
        assert_eq!(read(&zero, 0, &mut bytes, 0, &let_go), Ok(10));
        assert_eq!((bytes, let_go.load(Ordering::Relaxed)), ([0; 10], false));
        // An error that has nothing to do with it decides nothing.
        let let_go = AtomicBool::new(true);
        assert_eq!(read(&null, 0, &mut bytes, 0, &let_go), Err(Errno::EBADF));
        assert!(let_go.load(Ordering::Relaxed));
    }

    #[test]
    fn many_files_are_synced_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let count = SYNC_EACH + 8;
        let geometry = Arc::new(Geometry::contiguous(16, &vec![16; count]));
        let files: Vec<StoredFile> =
            (0..count).map(|n| StoredFile { path: vec![n.to_string()], pad: false }).collect();
        let store = FileStore::open(dir.path(), geometry, &files).unwrap();
        store.write_at(0, &[IoSlice::new(&vec![7; 16 * count])]).unwrap();
        assert!(store.table.lock().dirty.len() > SYNC_EACH);
        store.sync().unwrap();
        assert!(store.table.lock().dirty.is_empty());
        assert!(lens(&store).iter().all(|len| *len == Some(16)));
    }

    #[test]
    fn a_failed_sync_is_final() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(16, &[10, 10]));
        let store = FileStore::open(dir.path(), geometry, &named(&["a", "b"])).unwrap();
        write(&store, 0, &[1; 20]).unwrap();
        store.sync().unwrap();
        assert!(store.table.lock().dirty.is_empty() && store.table.lock().created.is_empty());
        write(&store, 0, &[2; 5]).unwrap();
        // The file goes, and with it what is to be synced.
        store.table.lock().open.clear();
        std::fs::remove_file(dir.path().join("data/a")).unwrap();
        assert!(matches!(store.sync(), Err(StorageError::Short { .. })));
        assert!(matches!(store.sync(), Err(StorageError::Short { .. })));
        let mut buf = [0; 5];
        assert!(store.read_at(10, &mut buf).is_err(), "nothing is believed any more");
        assert!(store.try_read(10, &mut buf).is_err());
        assert!(write(&store, 10, &buf).is_err());
    }

    #[test]
    fn what_is_written_during_a_sync_waits_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(16, &[10]));
        let store = Arc::new(FileStore::open(dir.path(), geometry, &named(&["a"])).unwrap());
        write(&store, 0, &[1; 5]).unwrap();
        store.table.lock().syncing = true;
        let waiting = {
            let store = store.clone();
            std::thread::Builder::new().spawn(move || store.sync()).unwrap()
        };
        write(&store, 5, &[1; 5]).unwrap();
        assert!(store.table.lock().dirty.contains(&0), "nobody else's sync takes it");
        drop(Syncing(&store));
        waiting.join().unwrap().unwrap();
        assert!(store.table.lock().dirty.is_empty());
        assert!(!store.table.lock().syncing);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let store_error =
            |errno| StorageError::from_io(Path::new("/x"), "writing", io::Error::from_raw_os_error(errno));
        assert!(matches!(store_error(libc::ENOSPC), StorageError::Full { .. }));
        assert!(matches!(store_error(libc::EDQUOT), StorageError::Full { .. }));
        assert!(matches!(store_error(libc::EIO), StorageError::Io { .. }));
        // A real refusal through the real path of writing.
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        let bytes = [0; 10];
        let slices = [IoSlice::new(&bytes)];
        let let_go = AtomicBool::new(false);
        let error = Parts { parts: &slices, within: 0 }.write_to(&full, 0, 10, &let_go).unwrap_err();
        assert!(matches!(
            StorageError::from_io(Path::new("/x"), "writing", error),
            StorageError::Full { .. }
        ));
    }
}
