//! For tests: a disk in memory that forgets at a crash what wasn't synced.
//!
//! **Goal.** A crash at each single operation, and every state that it may leave by the seam's rules on what is durable
//! (see [`super`]), not only the friendly ones.
//!
//! **Parts.** [`Model`], the disk, with the operation at which it crashes or fails; [`Model::after_crash`], one of the
//! disks that may be found afterwards.
//!
//! **Flow.** Each file has what programs see, and what is durable with a list of the changes since. At a crash each of
//! those is kept or lost by chance, writes in sectors of [`SECTOR`] bytes, names one by one; a rename is whole or not
//! at all. A sync that fails loses the changes for good, though programs go on seeing them, as Linux does it.
//!
//! **Not here.** Folders: they are durable once made. Holes: they are zeros, and take room like everything else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use torrentfs_fs::lock::{Rank, RankedMutex};

use super::{Access, Flags, InodeId, Stat, Volume, VolumeFile};

/// Bytes that are written all or not at all.
const SECTOR: usize = 512;

/// Numbers that are the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Punch(Range<usize>),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, new) => {
                if bytes.len() < at + new.len() {
                    bytes.resize(at + new.len(), 0);
                }
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Punch(range) => {
                let end = range.end.min(bytes.len());
                bytes[range.start.min(end)..end].fill(0);
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
    mode: u32,
    modified: i64,
}

#[derive(Debug, Clone)]
enum Naming {
    Made(PathBuf, usize),
    Renamed(PathBuf, PathBuf, usize),
    Removed(PathBuf, usize),
}

impl Naming {
    fn folder(&self) -> &Path {
        let (Self::Made(path, _) | Self::Renamed(_, path, _) | Self::Removed(path, _)) = self;
        path.parent().unwrap_or(Path::new(""))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Made(path, inode) => _ = names.insert(path.clone(), *inode),
            Self::Renamed(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            Self::Removed(path, inode) => {
                if names.get(path) == Some(inode) {
                    names.remove(path);
                }
            }
        }
    }
}

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Everything ends: this operation and all later ones fail, and nothing more changes.
    Crash,
    /// It fails with this error number; the next one doesn't.
    Error(i32),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    namings: Vec<Naming>,
    operations: usize,
    trouble: Option<(usize, Trouble)>,
    crashed: bool,
    log: Vec<String>,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Model(Arc<RankedMutex<State>>);

impl Model {
    /// An empty disk. `trouble` comes at the operation of that number, from 0.
    pub(crate) fn new(trouble: Option<(usize, Trouble)>) -> Self {
        Self::with(State { trouble, ..State::default() })
    }

    fn with(state: State) -> Self {
        Self(Arc::new(RankedMutex::new(Rank::Leaf, "a model of a disk", state)))
    }

    /// Operations so far, of those that may change something.
    pub(crate) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    /// What was done last, for messages.
    pub(crate) fn last(&self) -> String {
        let state = self.0.lock();
        state.log[state.log.len().saturating_sub(12)..].join("; ")
    }

    /// One of the disks that may be found after a crash at this moment.
    pub(crate) fn after_crash(&self, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let state = self.0.lock();
        let mut inodes = state.inodes.clone();
        for inode in &mut inodes {
            let mut bytes = inode.durable.clone();
            for change in std::mem::take(&mut inode.changes) {
                match change {
                    Change::Write(at, new) => {
                        // Sectors of the file, not of the write.
                        let mut from = 0;
                        while from < new.len() {
                            let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(new.len());
                            if chance.coin() {
                                Change::Write(at + from, new[from..to].to_vec()).apply(&mut bytes);
                            }
                            from = to;
                        }
                    }
                    change => {
                        if chance.coin() {
                            change.apply(&mut bytes);
                        }
                    }
                }
            }
            inode.seen.clone_from(&bytes);
            inode.durable = bytes;
        }
        let mut names = state.durable.clone();
        state.namings.iter().filter(|_| chance.coin()).for_each(|naming| naming.apply(&mut names));
        Self::with(State { inodes, durable: names.clone(), names, ..State::default() })
    }

    /// The same disk as programs see it, in good health.
    pub(crate) fn healed(&self) -> Self {
        let state = self.0.lock();
        Self::with(State {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable: state.durable.clone(),
            namings: state.namings.clone(),
            ..State::default()
        })
    }

    /// An operation; what happens to it.
    fn change<T>(&self, what: String, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock();
        let number = state.operations;
        state.operations += 1;
        state.log.push(what);
        match state.trouble.filter(|(at, _)| *at == number) {
            Some((_, Trouble::Crash)) => state.crashed = true,
            Some((_, Trouble::Error(errno))) => return Err(io::Error::from_raw_os_error(errno)),
            None => {}
        }
        if state.crashed {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        change(&mut state)
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> io::Result<T>) -> io::Result<T> {
        let state = self.0.lock();
        match state.crashed {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => look(&state),
        }
    }
}

impl State {
    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn stat(&self, inode: usize) -> Stat {
        let file = &self.inodes[inode];
        Stat {
            len: file.seen.len() as u64,
            allocated: file.seen.len() as u64,
            modified: file.modified,
            inode: InodeId { device: 1, number: inode as u64, born: 0 },
            links: self.names.values().filter(|i| **i == inode).count() as u64,
            mode: file.mode,
            block: SECTOR as u64,
        }
    }

    fn touch(&mut self, inode: usize, change: Change) {
        let time = self.operations as i64;
        let file = &mut self.inodes[inode];
        change.apply(&mut file.seen);
        file.modified = time;
        file.changes.push(change);
    }
}

impl Volume for Model {
    fn path(&self) -> &Path {
        Path::new("/model")
    }

    fn open(&self, path: &Path, _: Access) -> io::Result<Arc<dyn VolumeFile>> {
        let inode = self.look(|state| state.find(path))?;
        Ok(Arc::new(ModelFile { disk: self.clone(), inode, name: path.display().to_string() }))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn VolumeFile>> {
        let inode = self.change(format!("create {}", path.display()), |state| {
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = state.inodes.len();
            state.inodes.push(Inode { mode, ..Inode::default() });
            let naming = Naming::Made(path.to_path_buf(), inode);
            naming.apply(&mut state.names);
            state.namings.push(naming);
            Ok(inode)
        })?;
        Ok(Arc::new(ModelFile { disk: self.clone(), inode, name: path.display().to_string() }))
    }

    fn create_folders(&self, _: &Path) -> io::Result<()> {
        self.look(|_| Ok(()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(format!("rename {} {}", from.display(), to.display()), |state| {
            let naming = Naming::Renamed(from.to_path_buf(), to.to_path_buf(), state.find(from)?);
            naming.apply(&mut state.names);
            state.namings.push(naming);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(format!("remove {}", path.display()), |state| {
            let naming = Naming::Removed(path.to_path_buf(), state.find(path)?);
            naming.apply(&mut state.names);
            state.namings.push(naming);
            Ok(())
        })
    }

    fn stat(&self, folder: &Path, names: &[&str]) -> io::Result<Vec<Option<Stat>>> {
        self.look(|state| {
            let found = |name: &&str| state.names.get(&folder.join(name)).map(|inode| state.stat(*inode));
            Ok(names.iter().map(found).collect())
        })
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.look(|state| {
            let inside = state.names.keys().filter(|path| path.parent() == Some(folder));
            Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
        })
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.change(format!("sync folder {}", path.display()), |state| {
            let (here, others) =
                std::mem::take(&mut state.namings).into_iter().partition(|n| n.folder() == path);
            state.namings = others;
            let here: Vec<Naming> = here;
            here.iter().for_each(|naming| naming.apply(&mut state.durable));
            Ok(())
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.change("sync all".to_owned(), |state| {
            for inode in &mut state.inodes {
                inode.durable.clone_from(&inode.seen);
                inode.changes.clear();
            }
            state.namings.clear();
            state.durable.clone_from(&state.names);
            Ok(())
        })
    }
}

#[derive(Debug)]
struct ModelFile {
    disk: Model,
    inode: usize,
    name: String,
}

impl VolumeFile for ModelFile {
    fn read_vectored_at(&self, parts: &mut [IoSliceMut<'_>], offset: u64, flags: Flags) -> io::Result<usize> {
        if flags.no_wait {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        self.disk.look(|state| {
            let bytes = &state.inodes[self.inode].seen;
            let mut at = (offset as usize).min(bytes.len());
            let begin = at;
            for part in parts {
                let len = part.len().min(bytes.len() - at);
                part[..len].copy_from_slice(&bytes[at..at + len]);
                at += len;
            }
            Ok(at - begin)
        })
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64, _: Flags) -> io::Result<usize> {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.disk.change(format!("write {} {}+{}", self.name, offset, bytes.len()), |state| {
            // Now and then fewer than given, as the system may.
            if state.operations % 5 == 0 && bytes.len() > 1 {
                bytes.truncate(bytes.len() / 2);
            }
            let len = bytes.len();
            state.touch(self.inode, Change::Write(offset as usize, bytes));
            Ok(len)
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(format!("set_len {} {len}", self.name), |state| {
            state.touch(self.inode, Change::SetLen(len as usize));
            Ok(())
        })
    }

    fn stat(&self) -> io::Result<Stat> {
        self.disk.look(|state| Ok(state.stat(self.inode)))
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.change(format!("sync {}", self.name), |state| {
            let file = &mut state.inodes[self.inode];
            file.durable.clone_from(&file.seen);
            file.changes.clear();
            Ok(())
        });
        if synced.is_err() {
            let mut state = self.disk.0.lock();
            if !state.crashed {
                // Seen on, taken for written, and lost: another sync says nothing of it.
                state.inodes[self.inode].changes.clear();
            }
        }
        synced
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.disk.change(format!("punch {} {range:?}", self.name), |state| {
            state.touch(self.inode, Change::Punch(range.start as usize..range.end as usize));
            Ok(())
        })
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.disk.change(format!("mode {} {mode:o}", self.name), |state| {
            state.inodes[self.inode].mode = mode;
            Ok(())
        })
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &Model, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(Path::new(name), Access::Read).ok()?;
        let mut bytes = vec![0; file.stat().unwrap().len as usize];
        file.read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], 0, Flags::default()).unwrap();
        Some(bytes)
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_may_go_either_way() {
        let disk = Model::new(None);
        let file = disk.create(Path::new("a"), 0o644).unwrap();
        file.write_vectored_at(&[IoSlice::new(&[1; 2000])], 0, Flags::default()).unwrap();
        file.sync().unwrap();
        disk.sync_folder(Path::new("")).unwrap();
        file.write_vectored_at(&[IoSlice::new(&[2; 1000])], 500, Flags::default()).unwrap();
        disk.rename(Path::new("a"), Path::new("b")).unwrap();
        let (mut names, mut torn) = ([0, 0], 0);
        for seed in 0..200 {
            let after = disk.after_crash(seed);
            let bytes = match (read(&after, "a"), read(&after, "b")) {
                (Some(bytes), None) => (names[0] += 1, bytes).1,
                (None, Some(bytes)) => (names[1] += 1, bytes).1,
                found => panic!("a rename is whole or not at all: {found:?}"),
            };
            assert!(bytes.len() >= 1000 && bytes[..500] == [1; 500]);
            torn += usize::from(bytes[500] != bytes[1400]);
        }
        assert!(names[0] > 20 && names[1] > 20 && torn > 20, "{names:?} {torn}");
        // A sync that fails tells once, and what it lost is lost.
        let disk = Model::new(Some((2, Trouble::Error(libc::EIO))));
        let file = disk.create(Path::new("a"), 0o644).unwrap();
        file.write_vectored_at(&[IoSlice::new(&[1; 100])], 0, Flags::default()).unwrap();
        assert!(file.sync().is_err());
        file.sync().unwrap();
        disk.sync_folder(Path::new("")).unwrap();
        assert_eq!(read(&disk, "a").unwrap(), [1; 100], "programs see it still");
        assert_eq!(disk.operations(), 5);
    }
}
