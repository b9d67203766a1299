//! For tests: a volume that keeps a list of what was asked of it, and fails what it is told to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::{Access, Flags, OsVolume, Stat, Volume, VolumeFile};

/// Says for each call, by its line in the list, whether it fails, with which error number.
type Fail = Box<dyn FnMut(&str) -> Option<i32> + Send>;

/// An [`OsVolume`] in between.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: OsVolume,
    shared: Arc<Shared>,
}

struct Shared {
    state: RankedMutex<State>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

struct State {
    calls: Vec<String>,
    fail: Fail,
}

impl Shared {
    fn call(&self, what: String) -> io::Result<()> {
        let mut state = self.state.lock();
        let failed = (state.fail)(&what);
        state.calls.push(what);
        failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn VolumeFile>,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Faulty {
    pub(crate) fn new(path: &Path) -> Arc<Self> {
        let state = State { calls: Vec::new(), fail: Box::new(|_| None) };
        let shared = Arc::new(Shared { state: RankedMutex::new(Rank::Leaf, "a test's faults", state) });
        Arc::new(Self { inner: OsVolume::open(path).unwrap(), shared })
    }

    /// From now on `fail` is asked at each call.
    pub(crate) fn fail(&self, fail: impl FnMut(&str) -> Option<i32> + Send + 'static) {
        self.shared.state.lock().fail = Box::new(fail);
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        self.fail(|_| None);
    }

    /// What was asked since this was called last, in order, without what only looks.
    pub(crate) fn changes(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.shared.state.lock().calls);
        let looks = ["open ", "read ", "stat", "list "];
        calls.into_iter().filter(|call| !looks.iter().any(|look| call.starts_with(look))).collect()
    }

    fn file(&self, path: &Path, file: Arc<dyn VolumeFile>) -> Arc<dyn VolumeFile> {
        Arc::new(FaultyFile { inner: file, path: path.to_path_buf(), shared: self.shared.clone() })
    }
}

impl Volume for Faulty {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VolumeFile>> {
        self.shared.call(format!("open {} {access:?}", path.display()))?;
        Ok(self.file(path, self.inner.open(path, access)?))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn VolumeFile>> {
        self.shared.call(format!("create {} {mode:o}", path.display()))?;
        Ok(self.file(path, self.inner.create(path, mode)?))
    }

    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.shared.call(format!("create folders {}", path.display()))?;
        self.inner.create_folders(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.shared.call(format!("rename {} {}", from.display(), to.display()))?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.shared.call(format!("remove {}", path.display()))?;
        self.inner.remove(path)
    }

    fn stat(&self, folder: &Path, names: &[&str]) -> io::Result<Vec<Option<Stat>>> {
        self.shared.call(format!("stat {}", folder.display()))?;
        self.inner.stat(folder, names)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.shared.call(format!("list {}", folder.display()))?;
        self.inner.list(folder)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.shared.call(format!("sync folder {}", path.display()))?;
        self.inner.sync_folder(path)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.shared.call("sync all".to_owned())?;
        self.inner.sync_all()
    }
}

impl FaultyFile {
    fn call(&self, what: &str) -> io::Result<()> {
        self.shared.call(format!("{what} {}", self.path.display()))
    }
}

impl VolumeFile for FaultyFile {
    fn read_vectored_at(&self, parts: &mut [IoSliceMut<'_>], offset: u64, flags: Flags) -> io::Result<usize> {
        self.call("read")?;
        self.inner.read_vectored_at(parts, offset, flags)
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64, flags: Flags) -> io::Result<usize> {
        self.call("write")?;
        self.inner.write_vectored_at(parts, offset, flags)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call("set_len")?;
        self.inner.set_len(len)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.call("stat")?;
        self.inner.stat()
    }

    fn sync(&self) -> io::Result<()> {
        self.call("sync")?;
        self.inner.sync()
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.call("punch")?;
        self.inner.punch(range)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.call(&format!("set_mode {mode:o}"))?;
        self.inner.set_mode(mode)
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_fd()
    }
}
