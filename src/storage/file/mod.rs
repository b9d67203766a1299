//! The file store: one sparse file for each of the torrent's.
//!
//! **Goal.** Plain files that any tool can read, positioned I/O without a lock around it, and no claim that
//! isn't so: a file that someone cuts, removes or changes gives an error, never zeros.
//!
//! **Parts.** [`FileStore`]; `layout` says what files are called; `table` what is open (at most [`MAX_OPEN`], the least
//! recently used go first), written since the last sync, and under which name; `naming` opens, finishes and reopens
//! files; `bytes` moves them; `lend` gives whole ones to the kernel; `room` says what can be given back.
//!
//! **Flow.** A file is opened for reading when it is first read, made and given its full size (sparse, it
//! takes no room) when it is first written. A call looks its file up under a leaf lock, clones the `Arc` out
//! and does its I/O with no lock held; closing happens outside the lock too. A file that was given its size
//! and is shorter at a later write was cut from outside: writing on would turn what it lost into zeros, so the
//! write fails. While a file is incomplete it is called `.part`, and nothing is ever written to a file that isn't. All
//! of this goes through a [`Volume`].
//!
//! **Not here.** How much may be kept, and which pieces are worth it.

mod bytes;
mod layout;
mod lend;
mod naming;
mod room;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_names;

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use torrentfs_fs::lock::{Rank, RankedCondvar, RankedMutex};

use super::parts::Parts;
use super::volume::{OsVolume, Stat, Volume, VolumeFile};
use super::{FileState, StorageError, Store};
use crate::metainfo::geometry::{FileIndex, Geometry, Span};
use bytes::{read, read_now, write};
pub use layout::{Layout, StoredFile};
use layout::{Name, Names};
use table::{Mark, Open, Standing, Table};

/// Open files per store. Several stores and 80 peers each stay below the usual soft limit of descriptors once
/// it was raised; a torrent of more files than that is hardly read everywhere at once.
pub const MAX_OPEN: usize = 256;

/// Files synced one by one; with more, the whole file system is synced at once, names included. Twenty thousand
/// small files took longer one by one than a shutdown may.
const SYNC_EACH: usize = 32;

/// How long a file that is read counts as what it was when it was looked at last. A look is one system call: at this
/// rate it costs nothing, and whoever changes a file behind our back waits no longer for us to notice.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module. Dropping it closes the files; it syncs nothing.
#[derive(Debug)]
pub struct FileStore {
    volume: Arc<dyn Volume>,
    names: Names,
    geometry: Arc<Geometry>,
    max_open: usize,
    look_every: Duration,
    /// Whether pages are to be let go once they are written or read (RWF_DONTCACHE, Linux 6.14), until the kernel or
    /// the file system says that it can't. The mount's own page cache has what is read; a second copy here would take
    /// free memory for nothing, and filling fresh pages is dearer than all else in the way of a byte.
    let_go: AtomicBool,
    table: RankedMutex<Table>,
    /// Told when a sync or a turn has ended, or the store was closed.
    told: RankedCondvar,
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
        let volume = OsVolume::open(dir).map_err(|e| StorageError::from_io(dir, "opening the folder", e))?;
        Self::on(Arc::new(volume), Layout::Cache, geometry, files)
    }

    /// Opens a store in a volume: the torrent's folder, or that of adopted data, as `layout` says. Otherwise as
    /// [`FileStore::open`]; in adopted data nothing is made.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn on(
        volume: Arc<dyn Volume>,
        layout: Layout,
        geometry: Arc<Geometry>,
        files: &[StoredFile],
    ) -> Result<FileStore, StorageError> {
        let names = Names::new(layout, &geometry, files)?;
        if layout == Layout::Cache {
            volume.create_folders(names.root()).map_err(|e| {
                StorageError::from_io(&volume.path().join(names.root()), "opening the folder", e)
            })?;
        }
        Ok(FileStore {
            volume,
            names,
            geometry,
            max_open: MAX_OPEN,
            look_every: LOOK_EVERY,
            let_go: AtomicBool::new(true),
            table: RankedMutex::new(Rank::Leaf, "open files of a store", Table::default()),
            told: RankedCondvar::new(),
        })
    }

    /// Leaves what is written and read in the page cache from now on.
    pub(super) fn keep_pages(&self) {
        self.let_go.store(false, Ordering::Relaxed);
    }

    /// A file that is there, open for reading and looked at as for [`Store::read_at`], whose errors it gives. May wait
    /// for a disk.
    pub(super) fn reading(&self, file: u32) -> Result<Arc<dyn VolumeFile>, StorageError> {
        self.get_to_read(file, Instant::now())
    }

    /// The path of a file as it is called now, for messages. Takes the table's lock.
    fn path(&self, file: u32) -> PathBuf {
        let name = self.table.lock().standing.get(&file).map_or(Name::Own, |standing| standing.name);
        self.path_of(file, name)
    }

    fn path_of(&self, file: u32, name: Name) -> PathBuf {
        self.volume.path().join(self.names.path(file, name))
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

    fn error(&self, file: u32, op: &'static str, error: io::Error) -> StorageError {
        StorageError::from_io(&self.path(file), op, error)
    }

    /// The open file with its full size, for writing.
    fn get_sized(&self, file: u32) -> Result<Arc<dyn VolumeFile>, StorageError> {
        // Asked before looking at the length: once it had that, it has it.
        let had = self.table.lock().had.get(&file).copied().unwrap_or(0);
        let open = self.get(file, true)?;
        let (_, full) = self.extent(file);
        let stat = open.stat().map_err(|e| self.error(file, "reading the size of", e))?;
        if stat.links == 0 {
            // What is written to a file without a name is lost.
            return Err(self.absent(file, full));
        }
        if stat.len < had {
            return Err(StorageError::Short { path: self.path(file), expected: had, found: stat.len });
        }
        if stat.len < full {
            open.set_len(full).map_err(|e| self.error(file, "setting the size of", e))?;
        }
        if had < full {
            let mut table = self.table.lock();
            table.had.insert(file, full);
            if let Some(open) = table.open.get_mut(&file) {
                open.len = full;
            }
        }
        Ok(open)
    }

    /// `failures` is the table's count when the writing began.
    fn write_span(&self, span: Span, parts: &mut Parts<'_>, failures: u64) -> Result<(), StorageError> {
        let file = span.file.0;
        let open = self.get_sized(file)?;
        let written = write(&*open, span.offset, span.len, parts, &self.let_go);
        {
            // After the write: a sync that ran meanwhile must not take the mark away. After a failed one too.
            let mut table = self.table.lock();
            table.dirty.insert(file);
            // A sync that failed meanwhile may have lost some of what was written here, and won't say so again.
            if let Some(error) = table.failed.as_ref().filter(|_| table.failures != failures) {
                return Err(StorageError::Unsynced { cause: Arc::new(error.clone()) });
            }
        }
        written.map_err(|e| self.error(file, "writing", e))?;
        // One that was cut between the look at it and the write has been made longer by that: what was cut off would
        // pass for zeros.
        let found = open.stat().map_err(|e| self.error(file, "looking at", e))?.len;
        let had = self.table.lock().had.get(&file).copied();
        match had.filter(|had| found < *had) {
            None => Ok(()),
            Some(expected) => {
                let path = self.path(file);
                let closing = self.table.lock().harm(file);
                drop(closing);
                Err(StorageError::Short { path, expected, found })
            }
        }
    }

    /// The file to read from. Now and then it is looked at, whether it is still what it was: a file that was removed or
    /// replaced would be read on as if nothing had happened, and one that was written to gives what nobody verified.
    fn get_to_read(&self, file: u32, now: Instant) -> Result<Arc<dyn VolumeFile>, StorageError> {
        let found = {
            let mut table = self.table.lock();
            table.usable()?;
            if table.harmed.contains(&file) {
                drop(table);
                return Err(StorageError::Changed { path: self.path(file) });
            }
            table.find_due(file, now, self.look_every)
        };
        let Some((open, expected)) = found else { return self.get(file, false) };
        if let Some(expected) = expected {
            let stat = open.stat().map_err(|e| self.error(file, "looking at", e))?;
            if expected.differs(&stat) {
                return Err(self.changed(file));
            }
        }
        Ok(open)
    }

    /// Forgets what a file was, so that it is opened anew.
    fn changed(&self, file: u32) -> StorageError {
        let path = self.path(file);
        let closing = self.table.lock().harm(file);
        drop(closing);
        StorageError::Changed { path }
    }

    fn read_span(
        &self,
        span: Span,
        buf: &mut [u8],
        let_go: &AtomicBool,
        now: Instant,
    ) -> Result<(), StorageError> {
        let file = span.file.0;
        let open = self.get_to_read(file, now)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match read(&*open, span.offset + done as u64, rest, false, let_go) {
                Ok(0) => {
                    let found = open.stat().map_or(span.offset + done as u64, |stat| stat.len);
                    let expected = span.offset + span.len;
                    return Err(StorageError::Short { path: self.path(file), expected, found });
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(file, "reading", error)),
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
            if self.names.is_pad(span.file.0) {
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
        let now = Instant::now();
        self.fill(offset, buf, |span, part| self.read_span(span, part, let_go, now).map(|()| true))
            .map(|_| ())
    }

    /// Syncs all of them, also after one has failed; with the first failure, and whose descriptions told one.
    fn sync_files(
        &self,
        dirty: &BTreeSet<u32>,
        created: &BTreeSet<u32>,
    ) -> Result<(), (StorageError, Vec<u32>)> {
        // When that fails it may be for anybody's file: asked one by one, each tells whether it is ours.
        if dirty.len() > SYNC_EACH && self.volume.sync_all().is_ok() {
            return Ok(());
        }
        let mut first = None;
        let mut failed = Vec::new();
        for &file in dirty {
            if let Err(error) = self.sync_file(file) {
                failed.push(file);
                first.get_or_insert(error);
            }
        }
        let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
        for &file in created {
            let mut path = self.names.path(file, Name::Own);
            while path.pop() {
                folders.insert(path.clone());
            }
        }
        for folder in folders {
            match self.volume.sync_folder(&folder) {
                Ok(()) => {}
                // Somebody took it away, and what was in it: there are no names left to keep.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = self.volume.path().join(folder);
                    first.get_or_insert(StorageError::from_io(&path, "syncing the folder", error));
                }
            }
        }
        first.map_or(Ok(()), |error| Err((error, failed)))
    }

    fn sync_file(&self, file: u32) -> Result<(), StorageError> {
        let open = self.table.lock().find(file, false);
        // Those that were closed meanwhile are opened beside the table: they aren't what readers use.
        let open = match open {
            Some(open) => open,
            None => self.open_beside(file)?,
        };
        open.sync().map_err(|e| self.error(file, "syncing", e))
    }

    /// Looks at all files by their names: under which each stands, and what is known of it.
    fn look(&self) -> Result<Vec<Option<(Name, Stat)>>, StorageError> {
        let count = self.geometry.files().len() as u32;
        let mut found = Vec::with_capacity(count as usize);
        let mut next = 0;
        while next < count {
            // Files of one folder mostly follow each other: they are looked up together.
            let (folders, _) = self.names.split(next);
            // In lots, so that a folder of a million files doesn't take all their names at once.
            let end = count.min(next + 1024);
            let end = (next..end).find(|file| self.names.split(*file).0 != folders).unwrap_or(end);
            found.extend(self.look_in(folders, next..end)?);
            next = end;
        }
        Ok(found)
    }

    /// As [`FileStore::look`], for files of one folder.
    fn look_in(
        &self,
        folders: &[String],
        files: Range<u32>,
    ) -> Result<Vec<Option<(Name, Stat)>>, StorageError> {
        let stored = |file: &u32| !self.names.is_pad(*file);
        let parts: Vec<Option<String>> =
            files.clone().filter(stored).map(|file| self.names.part_name(file)).collect();
        let each = if self.names.layout == Layout::Cache { 2 } else { 1 };
        let mut names = Vec::with_capacity(parts.len() * each);
        for (file, part) in files.clone().filter(stored).zip(&parts) {
            names.push(self.names.split(file).1);
            names.extend(part.as_deref());
        }
        let folder = self.names.folder(folders);
        let stats = self.volume.stat(&folder, &names).map_err(|e| {
            StorageError::from_io(&self.volume.path().join(&folder), "looking at files in", e)
        })?;
        let mut stats = stats.chunks(each);
        let choose = |file: u32| {
            if self.names.is_pad(file) {
                return None;
            }
            let stats = stats.next().unwrap_or_default();
            let full = self.extent(file).1;
            naming::choose(stats.first().copied().flatten(), stats.get(1).copied().flatten(), full)
        };
        Ok(files.map(choose).collect())
    }
}

/// Lets the next sync in, however this one ends.
struct Syncing<'a>(&'a FileStore);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.table.lock().syncing = false;
        self.0.told.notify_all();
    }
}

impl Store for FileStore {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        self.check_range(offset, len)?;
        let failures = {
            let table = self.table.lock();
            table.usable()?;
            table.failures
        };
        let mut parts = Parts::new(parts);
        let mut at = offset;
        for span in self.geometry.spans(offset, len) {
            let start = self.extent(span.file.0).0 + span.offset;
            parts.skip(start - at);
            if self.names.is_pad(span.file.0) {
                parts.skip(span.len);
            } else {
                self.write_span(span, &mut parts, failures)?;
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
        let now = Instant::now();
        self.fill(offset, buf, |span, part| {
            // One that is to be looked at is left to a worker: that may take a disk.
            let open = self.table.lock().find_known(span.file.0, now, self.look_every);
            Ok(open.is_some_and(|open| read_now(&*open, span.offset, part, &self.let_go)))
        })
    }

    /// After a failure nothing stays to be synced but the folders. The files that failed are closed: an open file
    /// description tells each failure once, and one that was open before a failure and wasn't asked tells it later, when
    /// the bytes have long been written anew. A new one begins with what was told already.
    fn sync(&self) -> Result<(), StorageError> {
        let (dirty, created) = {
            let mut table = self.table.lock();
            while table.syncing && !table.closed {
                self.told.wait(&mut table);
            }
            table.usable()?;
            table.syncing = true;
            (std::mem::take(&mut table.dirty), std::mem::take(&mut table.created))
        };
        let syncing = Syncing(self);
        let result = self.sync_files(&dirty, &created).map_err(|(error, failed)| {
            let mut table = self.table.lock();
            table.failures += 1;
            table.failed = Some(error.clone());
            table.created.extend(created);
            let closing: Vec<Open> = failed.iter().filter_map(|file| table.open.remove(file)).collect();
            drop(table);
            drop(closing);
            error
        });
        drop(syncing);
        result
    }

    fn adopt(&self, range: Range<u64>) {
        let spans = self.geometry.spans(range.start, range.end.saturating_sub(range.start));
        let files: Vec<u32> =
            spans.map(|span| span.file.0).filter(|file| !self.names.is_pad(*file)).collect();
        let mut table = self.table.lock();
        // Nor may its name be durable.
        table.created.extend(&files);
        table.dirty.extend(files);
    }

    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
        let len = range.end.saturating_sub(range.start);
        self.check_range(range.start, len)?;
        self.table.lock().usable()?;
        if self.names.layout != Layout::Cache {
            return Ok(());
        }
        for span in self.geometry.spans(range.start, len) {
            if !self.names.is_pad(span.file.0) {
                self.discard_span(span, &around)?;
            }
        }
        Ok(())
    }

    fn finish(&self, file: FileIndex) -> Result<(), StorageError> {
        self.finish_file(file.0)
    }

    fn reopen(&self, file: FileIndex) -> Result<(), StorageError> {
        self.reopen_file(file.0)
    }

    fn backing_file(&self, file: FileIndex) -> Option<OwnedFd> {
        self.lend(file.0)
    }

    /// A file that isn't what it was when it was finished or first seen is told as [`StorageError::Changed`] until it is
    /// reopened.
    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        self.table.lock().usable()?;
        let mut found = self.look()?;
        for (index, found) in found.iter_mut().enumerate() {
            let file = index as u32;
            if self.is_as_known(file, *found, false) {
                continue;
            }
            // It may just have been given its other name.
            let _turn = self.turn(file)?;
            let again = self.look_in(self.names.split(file).0, file..file + 1)?;
            *found = again.first().copied().flatten();
            if !self.is_as_known(file, *found, true) {
                return Err(self.changed(file));
            }
        }
        Ok(found.iter().enumerate().map(|(index, found)| self.state(index as u32, *found)).collect())
    }

    fn room(&self, range: Range<u64>) -> u64 {
        if self.names.layout != Layout::Cache {
            return 0;
        }
        let spans = self.geometry.spans(range.start, range.end.saturating_sub(range.start));
        spans.filter(|span| !self.names.is_pad(span.file.0)).map(|span| room::of(&span)).sum()
    }

    fn close(&self) {
        let closing = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.open)
        };
        drop(closing);
        self.told.notify_all();
    }
}

impl FileStore {
    /// Whether a file that was looked at is what is known of it. What isn't known yet is learnt. Unless it was looked
    /// at in its turn, another's turn may be giving it its other name, and what is known of it is forgotten meanwhile. One
    /// that somebody was at is known as nothing before it is reopened: it would pass for what was verified.
    fn is_as_known(&self, file: u32, found: Option<(Name, Stat)>, in_turn: bool) -> bool {
        let mut table = self.table.lock();
        if table.harmed.contains(&file) {
            return false;
        }
        let elsewhere = !in_turn && table.turns.contains(&file);
        let is_open = table.open.contains_key(&file);
        let standing = table.standing.get(&file);
        let inode = standing.and_then(|standing| standing.inode);
        let marked = standing.and_then(|standing| standing.mark);
        match found {
            None => standing.is_none() && !elsewhere,
            Some((name, stat)) => {
                table.had.entry(file).or_insert(stat.len);
                if inode.is_some_and(|inode| inode != stat.inode) {
                    return false;
                }
                if let Some(mark) = marked {
                    return name == Name::Own && mark == Mark::from(&stat);
                }
                let mark = (self.is_kept(name) && !is_open).then(|| Mark::from(&stat));
                let learnt = Standing { name, inode: Some(stat.inode), mark, finished: false };
                table.standing.entry(file).or_insert(learnt).inode = Some(stat.inode);
                true
            }
        }
    }

    /// Whether a file of this name is never written to.
    fn is_kept(&self, name: Name) -> bool {
        match self.names.layout {
            Layout::Cache => name == Name::Own,
            Layout::Plain { writable } => !writable,
        }
    }

    fn state(&self, file: u32, found: Option<(Name, Stat)>) -> FileState {
        let (_, full) = self.extent(file);
        if self.names.is_pad(file) {
            return FileState { len: Some(full), finished: true, ..FileState::default() };
        }
        let Some((name, stat)) = found else {
            // An empty one needs nothing to be there in full.
            return FileState { len: (full == 0).then_some(0), ..FileState::default() };
        };
        let read_only = self.names.layout != Layout::Cache || stat.mode & naming::WRITE == 0;
        FileState {
            len: Some(if full == 0 { 0 } else { stat.len }),
            allocated: stat.allocated,
            modified: stat.modified,
            finished: name == Name::Own && stat.len >= full && read_only,
        }
    }
}
