//! The seam between the storage and the disk: a folder tree, and files in it.
//!
//! **Goal.** Whatever is done to a torrent's folder is one call of one of two traits, so that a test can put a disk
//! of its own beneath: one that fails at a chosen call, cuts writes short, or forgets at a crash what wasn't synced.
//!
//! **Parts.** [`Volume`], a folder and what lies below it; [`VolumeFile`], an open file in it; [`Stat`]; [`Flags`].
//! [`OsVolume`] is the real one.
//!
//! **Flow.** The file store and the sealed files (resume data, metadata) get a volume whose root is the torrent's
//! folder, or the folder of adopted data, and do all their input and output through it. Every call is a plain
//! system call or a few; nothing is retried, kept, put together or decided here: that is for those above.
//!
//! **What is durable.** Bytes, a length and a hole by [`VolumeFile::sync`]; a name (made, renamed, removed) by
//! [`Volume::sync_folder`] of each folder it stands or stood in; everything by [`Volume::sync_all`]. Before
//! that a crash may keep it or lose it, each alone and in any order, except that a rename is never half done: the new
//! name stands for what had it before, or for what has it now.
//!
//! **Not here.** What files are called, what they mean, and what to do when something fails.

#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod model;
mod os;

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub use os::OsVolume;
pub(super) use os::open_plain;
#[cfg(test)]
pub(super) use os::over;

/// A folder, and all that lies below it.
///
/// Paths are relative to it, of normal components only (anything else is [`io::ErrorKind::InvalidInput`]); the empty
/// path is the folder itself. Their length as a whole has no bound, that of a component has the system's. No symbolic
/// link below the root is ever followed, and nothing but regular files and folders is opened. Each call may wait for
/// the disk, and may come from several threads at once.
///
/// Errors are the system's: [`io::ErrorKind::NotFound`] always means that a component isn't there.
pub trait Volume: Debug + Send + Sync + 'static {
    /// Where the root is, for messages. Pure.
    fn path(&self) -> &Path;

    /// Opens a file that is there: a new open file description, which has its own memory of what failed to be
    /// written (see [`VolumeFile::sync`]). Dropping it closes it; nothing is synced by that.
    ///
    /// # Errors
    /// Those of `open(2)`; something else than a regular file is [`io::ErrorKind::Other`].
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VolumeFile>>;

    /// Makes a file that isn't there, empty, and opens it for both; its folder must be there. Its permissions are
    /// `mode` without what the process's umask takes away.
    ///
    /// # Errors
    /// Those of `open(2)`; [`io::ErrorKind::AlreadyExists`] when anything has that name.
    fn create(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn VolumeFile>>;

    /// Makes a folder and those above it, as far as they aren't there, each 0755 without what the umask takes away.
    ///
    /// # Errors
    /// Those of `mkdir(2)` and `open(2)`. Some of the folders may have been made.
    fn create_folders(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of a file that had it.
    ///
    /// # Errors
    /// Those of `rename(2)`; then nothing was changed.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away; whoever has it open still has it.
    ///
    /// # Errors
    /// Those of `unlink(2)`.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// What stands under each of `names` in `folder`: one for each, `None` for what isn't there or isn't a regular
    /// file. The folder is looked up once. All are `None` when there is no such folder.
    ///
    /// # Errors
    /// Those of `stat(2)`.
    fn stat(&self, folder: &Path, names: &[&str]) -> io::Result<Vec<Option<Stat>>>;

    /// The names in a folder, in any order; those that aren't UTF-8 are left out.
    ///
    /// # Errors
    /// Those of `open(2)` and `readdir(3)`.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a folder durable, as they are now. Nothing where the file system can't.
    ///
    /// # Errors
    /// Those of `fsync(2)`. What failed may never be tried again by the system.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes everything durable on the file system of the root, others' data too. May take long.
    ///
    /// # Errors
    /// Those of `syncfs(2)`: something couldn't be written since the last call that failed.
    fn sync_all(&self) -> io::Result<()>;
}

/// A file opened by a [`Volume`]. Dropping it closes it.
///
/// Calls may come from several threads at once, and may wait for the disk unless it is said that they don't. A call
/// may be interrupted by a signal ([`io::ErrorKind::Interrupted`]): then nothing was done.
pub trait VolumeFile: Debug + Send + Sync + 'static {
    /// Reads into `parts`, one after another, from `offset`: how many bytes, perhaps fewer than asked for; 0 at the
    /// end of the file. With [`Flags::no_wait`] it doesn't wait for the disk.
    ///
    /// # Errors
    /// Those of `preadv2(2)`: EAGAIN when it would have to wait and must not; EOPNOTSUPP, ENOSYS or EINVAL when a
    /// flag isn't known here.
    fn read_vectored_at(&self, parts: &mut [IoSliceMut<'_>], offset: u64, flags: Flags) -> io::Result<usize>;

    /// Writes `parts` (1024 of them at most), one after another, from `offset`: how many bytes, perhaps fewer than
    /// given. The file grows if it has to.
    ///
    /// # Errors
    /// Those of `pwritev2(2)`; EOPNOTSUPP, ENOSYS or EINVAL when a flag isn't known here.
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64, flags: Flags) -> io::Result<usize>;

    /// Gives the file this length in bytes; what is added is a hole.
    ///
    /// # Errors
    /// Those of `ftruncate(2)`.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// What is known of the file, whether or not it still has a name.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    fn stat(&self) -> io::Result<Stat>;

    /// Makes the file's bytes durable, with what it takes to read them back (length, holes), not its name.
    ///
    /// # Errors
    /// Those of `fdatasync(2)`. What couldn't be written is told once to each open file description, and the system
    /// then takes it for written: another call that succeeds says nothing of it.
    fn sync(&self) -> io::Result<()>;

    /// Makes a hole of `range` and gives its room back. The length stays; the range may reach beyond it. Blocks that
    /// are only partly within are filled with zeros there and keep their room.
    ///
    /// # Errors
    /// Those of `fallocate(2)`: EOPNOTSUPP when the file system can't.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;

    /// Sets the permissions, whatever the umask.
    ///
    /// # Errors
    /// Those of `fchmod(2)`.
    fn set_mode(&self, mode: u32) -> io::Result<()>;

    /// The descriptor, for what goes around this seam (mappings, passthrough); `None` when there is none.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading, and changing its permissions.
    Read,
    /// Both.
    ReadWrite,
}

/// How bytes are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Only what takes no disk (RWF_NOWAIT).
    pub no_wait: bool,
    /// The pages that came into the page cache for this call are let go afterwards (RWF_DONTCACHE, Linux 6.14).
    pub let_go: bool,
}

/// One file among all there are and were: the number of its inode is given to another once nobody has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InodeId {
    /// The device it is on.
    pub device: u64,
    /// Its number there.
    pub number: u64,
    /// When it was made, in nanoseconds since the epoch; 0 where that isn't told.
    pub born: i64,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Length in bytes.
    pub len: u64,
    /// Bytes it takes on the disk.
    pub allocated: u64,
    /// When its content was changed last, in nanoseconds since the epoch.
    pub modified: i64,
    /// Which file it is, by whatever name.
    pub inode: InodeId,
    /// Names it has; 0 once it is removed.
    pub links: u64,
    /// Permission bits.
    pub mode: u32,
    /// Bytes in which its file system hands out room, as far as it says so.
    pub block: u64,
}

/// Why this can't be a component of a path below the root, if so.
pub(super) fn bad_component(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("a component of its path is empty"),
        "." | ".." => Some("its path leads out of the torrent"),
        _ if name.contains(['/', '\0']) => Some("a component of its path has a separator or a NUL"),
        _ => None,
    }
}
