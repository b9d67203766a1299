//! The mmap store: the files of the file store, read through mappings of them, and kept in the page cache.
//!
//! **Goal.** What is read again comes from the page cache, whoever read or wrote it first; a file that is cut,
//! removed or unreadable while it is mapped is an error of that read, never a signal that ends the process.
//!
//! **Parts.** [`MmapStore`], around a [`FileStore`] that does everything but reading; its table of windows, which are
//! parts of files mapped into memory, a bounded number and size of them.
//!
//! **Flow.** A read looks the window up under a leaf lock, clones its `Arc` out, maps it first if need be, has the
//! kernel copy from it, and then looks at the file's length and inode. Whatever isn't as it should be (no mapping, a
//! page that can't be had, another file under that name, a shorter one) leads to the file store's own read, which
//! knows how to say what is wrong. Windows may reach beyond the end of their file, so one that grows needs no new
//! ones; the least recently used go first.
//!
//! **Why no signal.** A page beyond the end of a mapped file, or one that the disk doesn't give, is SIGBUS for a
//! program that touches it, and no look at the length beforehand helps: it may be cut between the look and the touch.
//! So nothing here touches a mapping. It is read by `process_vm_readv` on our own process, where the kernel does
//! the touching and answers with EFAULT, or with fewer bytes. No reference into a mapping ever exists, so it is also no matter to
//! Rust that others may change those bytes at any time. Where that call is forbidden or unknown (some sandboxes) the
//! file store reads. The page in which a cut file ends reads as zeros behind its end: hence the look at the length
//! *after* the copy.
//!
//! **The price.** Pinning each page costs: in the page cache 4 KiB came at 1.2 GiB/s and 128 KiB at 3.9, where `pread`
//! gave 2.4 and 5.4. This store is for where others map or read the same files, not for the rate.
//!
//! **Not here.** Which bytes may be believed: who writes into complete files from outside gets what was written, as
//! with any read.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::file::{FileStore, StoredFile};
use super::volume::{InodeId, VolumeFile};
use super::{FileState, StorageError, Store};
use crate::metainfo::geometry::{FileIndex, Geometry, Span};

/// Bytes in a window: enough that mapping one is rare beside copying it, little enough that letting one go (each of
/// its pages is looked at) takes no time to speak of. A whole number of pages on any machine.
const WINDOW: u64 = 16 << 20;

/// Windows of one store. A process may have 65,530 mappings by default, and many torrents.
const MAX_WINDOWS: usize = 256;

/// Address space of one store's windows, in bytes: on small machines a fraction of what there is.
const MAX_MAPPED: u64 = if cfg!(target_pointer_width = "64") { 4 << 30 } else { 128 << 20 };

/// See the module. Dropping it unmaps and closes the files; it syncs nothing.
#[derive(Debug)]
pub struct MmapStore {
    files: FileStore,
    geometry: Arc<Geometry>,
    bounds: Bounds,
    /// Whether the kernel won't copy from mappings for us: asked once.
    refused: AtomicBool,
    table: RankedMutex<Table>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Bytes in a window, a whole number of pages.
    window: u64,
    windows: usize,
    /// Bytes in all of them.
    mapped: u64,
}

impl MmapStore {
    /// Opens the store of the torrent whose folder is `dir`, as [`FileStore::open`] does. Maps nothing yet.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn open(
        dir: &Path,
        geometry: Arc<Geometry>,
        files: &[StoredFile],
    ) -> Result<MmapStore, StorageError> {
        let store = FileStore::open(dir, geometry.clone(), files)?;
        Ok(Self::over(store, geometry))
    }

    /// Reads the files of `store`, opened for files of `geometry`, through mappings from now on.
    pub fn over(store: FileStore, geometry: Arc<Geometry>) -> MmapStore {
        Self::bounded(store, geometry, Bounds { window: WINDOW, windows: MAX_WINDOWS, mapped: MAX_MAPPED })
    }

    fn bounded(files: FileStore, geometry: Arc<Geometry>, bounds: Bounds) -> MmapStore {
        files.keep_pages();
        let table = RankedMutex::new(Rank::Leaf, "windows of a mapped store", Table::default());
        MmapStore { files, geometry, bounds, refused: AtomicBool::new(false), table }
    }

    /// Fills `buf` from mappings of the file that `span` lies in; false when that can't be done, for whatever reason.
    ///
    /// # Errors
    /// What opening the file gave: the file store says some things once only.
    fn copy(&self, span: Span, buf: &mut [u8]) -> Result<bool, StorageError> {
        let open = self.files.reading(span.file.0)?;
        let (first, end) = (span.offset, span.offset + span.len);
        let mut rest = buf;
        let mut at = first;
        let mut inode = None;
        while !rest.is_empty() {
            let number = at / self.bounds.window;
            let start = number * self.bounds.window;
            let len = end.min(start + self.bounds.window) - at;
            let window = match self.find(span.file, number) {
                Some(window) => window,
                None => match self.map(&*open, span.file, number) {
                    Ok(window) => window,
                    Err(_) => return Ok(false),
                },
            };
            // Windows of one file that was replaced in between: not both can be right.
            if *inode.get_or_insert(window.inode) != window.inode {
                self.forget(span.file);
                return Ok(false);
            }
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len as usize);
            match window.copy(at - start, part) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES) => {
                    self.refused.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(_) => return Ok(false),
            }
            rest = tail;
            at += len;
        }
        match open.stat() {
            Ok(stat) if Some(stat.inode) == inode => Ok(stat.len >= end),
            _ => {
                self.forget(span.file);
                Ok(false)
            }
        }
    }

    fn find(&self, file: FileIndex, number: u64) -> Option<Arc<Window>> {
        let mut table = self.table.lock();
        table.clock += 1;
        let clock = table.clock;
        let mapped = table.windows.get_mut(&(file, number))?;
        mapped.used = clock;
        Some(mapped.window.clone())
    }

    /// Maps a window and keeps it. May wait for the address space's own lock, not for a disk.
    fn map(&self, open: &dyn VolumeFile, file: FileIndex, number: u64) -> io::Result<Arc<Window>> {
        let offset = number * self.bounds.window;
        let full = self.geometry.files().get(file.0 as usize).map_or(0, |extent| extent.len);
        let len = self.bounds.window.min(full.saturating_sub(offset));
        let window = Arc::new(Window::map(open, offset, len)?);
        let gone = {
            let mut table = self.table.lock();
            if table.closed {
                return Ok(window);
            }
            let mut gone = table.make_room(len, self.bounds);
            let used = table.clock;
            gone.extend(table.windows.insert((file, number), Mapped { window: window.clone(), used }));
            gone
        };
        // Unmapped without the lock, as far as nobody reads them.
        drop(gone);
        Ok(window)
    }

    /// Lets the windows of a file go: another file has its name.
    fn forget(&self, file: FileIndex) {
        let gone: Vec<Mapped> = {
            let mut table = self.table.lock();
            table.windows.extract_if(|(of, _), _| *of == file).map(|(_, mapped)| mapped).collect()
        };
        drop(gone);
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        if self.table.lock().closed {
            return Err(StorageError::Closed);
        }
        if self.refused.load(Ordering::Relaxed) {
            return self.files.read_at(offset, buf);
        }
        let extents = self.geometry.files();
        self.files
            .fill(offset, buf, |span, part| {
                if !self.copy(span, part)? {
                    let start = extents.get(span.file.0 as usize).map_or(0, |extent| extent.offset);
                    self.files.read_at(start + span.offset, part)?;
                }
                Ok(true)
            })
            .map(|_| ())
    }
}

impl Store for MmapStore {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), StorageError> {
        self.files.write_at(offset, parts)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.read(offset, buf)
    }

    /// From the page cache through the file: only there the kernel promises not to wait.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, StorageError> {
        self.files.try_read(offset, buf)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.files.sync()
    }

    fn adopt(&self, range: Range<u64>) {
        self.files.adopt(range);
    }

    /// Holes are seen through mappings, too: they are of the same pages.
    fn discard(&self, range: Range<u64>, around: Range<u64>) -> Result<(), StorageError> {
        for span in self.geometry.spans(range.start, range.end.saturating_sub(range.start)) {
            // Windows of ours would pass for somebody else's.
            if self.files.is_doubtful(span.file.0) {
                self.forget(span.file);
            }
        }
        self.files.discard(range, around)
    }

    fn finish(&self, file: FileIndex) -> Result<(), StorageError> {
        self.files.finish(file)
    }

    fn reopen(&self, file: FileIndex) -> Result<(), StorageError> {
        self.files.reopen(file)
    }

    fn backing_file(&self, file: FileIndex) -> Option<OwnedFd> {
        self.files.backing_file(file)
    }

    fn files(&self) -> Result<Vec<FileState>, StorageError> {
        self.files.files()
    }

    fn is_durable(&self) -> bool {
        self.files.is_durable()
    }

    fn room(&self, range: Range<u64>) -> u64 {
        self.files.room(range)
    }

    fn close(&self) {
        self.files.close();
        let gone = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.windows)
        };
        drop(gone);
    }
}

#[derive(Debug, Default)]
struct Table {
    windows: HashMap<(FileIndex, u64), Mapped>,
    clock: u64,
    closed: bool,
}

#[derive(Debug)]
struct Mapped {
    window: Arc<Window>,
    /// The table's clock at its last use.
    used: u64,
}

impl Table {
    /// Takes out as many as it takes for one more of `len` bytes, the least recently used first. To be dropped
    /// outside the lock: that unmaps them.
    fn make_room(&mut self, len: u64, bounds: Bounds) -> Vec<Mapped> {
        let mut gone = Vec::new();
        let mut mapped: u64 = self.windows.values().map(|mapped| mapped.window.len()).sum();
        while self.windows.len() >= bounds.windows || mapped + len > bounds.mapped {
            let oldest = self.windows.iter().min_by_key(|(_, mapped)| mapped.used).map(|(key, _)| *key);
            let Some(oldest) = oldest.and_then(|key| self.windows.remove(&key)) else { break };
            mapped -= oldest.window.len();
            gone.push(oldest);
        }
        gone
    }
}

/// A part of a file in memory, some of it perhaps beyond the file's end. It keeps its inode alive.
#[derive(Debug)]
struct Window {
    map: MmapRaw,
    inode: InodeId,
}

impl Window {
    fn map(open: &dyn VolumeFile, offset: u64, len: u64) -> io::Result<Window> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let inode = open.stat()?.inode;
        let fd = open.as_fd().ok_or(io::ErrorKind::Unsupported)?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw_read_only(&fd)?;
        Ok(Window { map, inode })
    }

    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Has the kernel copy from the `within`th byte on: false when it didn't give all of it. May wait for a disk.
    fn copy(&self, within: u64, buf: &mut [u8]) -> nix::Result<bool> {
        let (within, len) = (usize::try_from(within).map_err(|_| Errno::EFAULT)?, buf.len());
        if within.checked_add(len).is_none_or(|end| end > self.map.len()) {
            return Ok(false);
        }
        // An address and no pointer: nothing but the kernel ever looks at what lies there. It stays mapped for the
        // length of the call, since `self` is borrowed.
        let from = RemoteIoVec { base: self.map.as_ptr() as usize + within, len };
        Ok(process_vm_readv(Pid::this(), &mut [IoSliceMut::new(buf)], &[from])? == len)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::suite;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    /// Small windows, two at a time.
    const SMALL: Bounds = Bounds { window: 64 * 1024, windows: 2, mapped: 128 * 1024 };
    const LARGE: Bounds = Bounds { window: WINDOW, windows: MAX_WINDOWS, mapped: MAX_MAPPED };

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| ((n * 31) >> 3) as u8 | 1).collect()
    }

    /// A store of one file with `data`, and where the file lies.
    fn with_file(dir: &Path, data: &[u8], bounds: Bounds) -> (MmapStore, PathBuf) {
        let geometry = Arc::new(Geometry::contiguous(16384, &[data.len() as u64]));
        let files = FileStore::open(dir, geometry.clone(), &suite::files(1, &[])).unwrap();
        let store = MmapStore::bounded(files, geometry, bounds);
        store.write_at(0, &[IoSlice::new(data)]).unwrap();
        store.sync().unwrap();
        (store, only_file(&dir.join("data")))
    }

    /// It has one name or the other.
    fn only_file(folder: &Path) -> PathBuf {
        let mut entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let (first, more) = (entries.next().unwrap(), entries.next());
        assert!(more.is_none());
        first
    }

    #[test]
    fn s1_the_suite_of_all_stores() {
        // As it is, with windows that come and go, and where the kernel doesn't copy.
        for (bounds, refused) in [(LARGE, false), (SMALL, false), (LARGE, true)] {
            let parent = tempfile::tempdir().unwrap();
            let next = std::cell::Cell::new(0);
            suite::run(&|geometry, files| {
                let dir = parent.path().join(next.replace(next.get() + 1).to_string());
                std::fs::create_dir(&dir).unwrap();
                let files = FileStore::open(&dir, geometry.clone(), files).unwrap();
                let store = MmapStore::bounded(files, geometry, bounds);
                store.refused.store(refused, Ordering::Relaxed);
                Arc::new(store)
            });
        }
    }

    #[test]
    fn s1_a_file_cut_while_it_is_read_is_an_error_and_the_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(1 << 20);
        for bounds in [LARGE, SMALL] {
            // In the middle of a page, at its edge, and to nothing.
            for cut in [500_001u64, 65_536, 0] {
                let dir = tempfile::tempdir_in(&dir).unwrap();
                let (store, path) = with_file(dir.path(), &data, bounds);
                let mut buf = vec![0; data.len()];
                store.read_at(0, &mut buf).unwrap();
                assert!(!store.table.lock().windows.is_empty(), "it was mapped");
                assert!(!store.refused.load(Ordering::Relaxed));
                let reading = std::sync::Barrier::new(4);
                std::thread::scope(|scope| {
                    for thread in 0..3usize {
                        let (store, data, reading) = (&store, &data, &reading);
                        scope.spawn(move || {
                            reading.wait();
                            let mut failed = 0;
                            // Until the cut was seen, then some more.
                            for round in 0.. {
                                let from = (round * 7919 + thread * 4001) % (data.len() - 20_000);
                                let mut buf = vec![0; 20_000];
                                match store.read_at(from as u64, &mut buf) {
                                    Ok(()) => assert!(buf == data[from..from + 20_000], "at {from}"),
                                    Err(StorageError::Short { .. } | StorageError::Changed { .. }) => {
                                        failed += 1
                                    }
                                    Err(error) => panic!("{error}"),
                                }
                                if failed == 50 {
                                    break;
                                }
                            }
                        });
                    }
                    reading.wait();
                    File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
                });
                // What is left is read, from the mapping too; what isn't is told.
                store.read_at(0, &mut buf[..cut as usize]).unwrap();
                assert!(buf[..cut as usize] == data[..cut as usize]);
                let error = store.read_at(cut.saturating_sub(10), &mut buf[..11]).unwrap_err();
                assert!(matches!(error, StorageError::Short { found, .. } if found == cut), "{error:?}");
            }
        }
    }

    #[test]
    fn s1_a_file_that_is_removed_replaced_or_extended_is_read_right_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(300_000);
        let (store, path) = with_file(dir.path(), &data, SMALL);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3usize {
                let (store, data, stop) = (&store, &data, &stop);
                scope.spawn(move || {
                    for round in 0.. {
                        let from = (round * 7919 + thread * 4001) % (data.len() - 70_000);
                        let mut buf = vec![0; 70_000];
                        match store.read_at(from as u64, &mut buf) {
                            Ok(()) => assert!(buf == data[from..from + 70_000], "at {from}"),
                            Err(StorageError::Short { .. } | StorageError::Changed { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            let file = || File::options().write(true).open(&path).unwrap();
            for round in 0..30u64 {
                // Longer than it should be, and as it was.
                file().set_len(300_000 + round * 4096).unwrap();
                file().set_len(300_000).unwrap();
                // Another file under its name, with the same bytes.
                let other = dir.path().join("other");
                std::fs::write(&other, &data).unwrap();
                std::fs::rename(&other, &path).unwrap();
            }
            // Cut to the middle of a page.
            file().set_len(123_457).unwrap();
            std::fs::remove_file(&path).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        // Opened anew, what isn't there is told.
        drop(store);
        let geometry = Arc::new(Geometry::contiguous(16384, &[300_000]));
        let store = MmapStore::open(dir.path(), geometry, &suite::files(1, &[])).unwrap();
        let error = store.read_at(0, &mut [0; 10]).unwrap_err();
        assert!(matches!(error, StorageError::Short { found: 0, .. }), "{error:?}");
    }

    #[test]
    fn a_window_of_a_file_that_lost_its_name_is_not_taken_for_the_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (store, path) = with_file(dir.path(), &bytes(100_000), LARGE);
        let mut buf = vec![0; 100_000];
        store.read_at(0, &mut buf).unwrap();
        let window = store.find(FileIndex(0), 0).unwrap();
        // Another file, which the store opens since it has closed the first.
        let other = vec![9; 100_000];
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &other).unwrap();
        let geometry = store.geometry.clone();
        let files = FileStore::open(dir.path(), geometry.clone(), &suite::files(1, &[])).unwrap();
        let store = MmapStore::bounded(files, geometry, LARGE);
        let mapped = Mapped { window, used: 0 };
        store.table.lock().windows.insert((FileIndex(0), 0), mapped);
        for _ in 0..2 {
            store.read_at(0, &mut buf).unwrap();
            assert!(buf == other);
        }
        let metadata = std::fs::metadata(&path).unwrap();
        let inode = store.find(FileIndex(0), 0).unwrap().inode;
        assert_eq!((inode.device, inode.number), (metadata.dev(), metadata.ino()), "mapped anew");
    }

    #[test]
    fn a_file_that_grows_is_seen_through_the_same_window() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(200_000);
        let (store, path) = with_file(dir.path(), &data, LARGE);
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let mut buf = vec![0; 200_000];
        store.read_at(0, &mut buf[..5000]).unwrap();
        assert!(store.read_at(0, &mut buf).is_err());
        let window = store.find(FileIndex(0), 0).unwrap();
        std::fs::write(&path, &data).unwrap();
        // That it was changed is told once, if it is looked at.
        match store.read_at(0, &mut buf) {
            Err(StorageError::Changed { .. }) => store.read_at(0, &mut buf).unwrap(),
            result => result.unwrap(),
        }
        assert!(buf == data);
        assert!(Arc::ptr_eq(&window, &store.find(FileIndex(0), 0).unwrap()));
    }

    #[test]
    fn windows_are_bounded_and_those_that_are_used_stay() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(1 << 20);
        let (store, _) = with_file(dir.path(), &data, Bounds { windows: 4, mapped: 200_000, ..SMALL });
        let mut buf = vec![0; 1000];
        for n in 1..16u64 {
            for number in [0, n] {
                let at = (number * 64 * 1024) as usize;
                store.read_at(at as u64, &mut buf).unwrap();
                assert!(buf == data[at..at + 1000]);
                let table = store.table.lock();
                let mapped: u64 = table.windows.values().map(|mapped| mapped.window.len()).sum();
                assert!(table.windows.len() <= 4 && mapped <= 200_000, "{mapped}");
                assert!(table.windows.contains_key(&(FileIndex(0), 0)), "the one that is always used");
            }
        }
        let window = Arc::downgrade(&store.find(FileIndex(0), 0).unwrap());
        store.close();
        assert!(window.upgrade().is_none(), "unmapped");
        assert!(matches!(store.read_at(0, &mut buf), Err(StorageError::Closed)));
        assert!(store.table.lock().windows.is_empty());
    }

    #[test]
    fn what_was_read_is_in_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(300_000);
        let (store, path) = with_file(dir.path(), &data, LARGE);
        let mut buf = vec![0; data.len()];
        store.read_at(0, &mut buf).unwrap();
        assert!(buf == data);
        buf.fill(0);
        let at_once = store.try_read(0, &mut buf).unwrap();
        // A file system that can't tell leaves it to a worker.
        let file = File::open(&path).unwrap();
        let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: 1 };
        // SAFETY: `part` describes the first byte of `buf`, which outlives the call.
        let can_tell =
            unsafe { libc::preadv2(std::os::fd::AsRawFd::as_raw_fd(&file), &part, 1, 0, libc::RWF_NOWAIT) }
                == 1;
        assert_eq!(at_once, can_tell);
        assert!(!at_once || buf == data);
    }
}
