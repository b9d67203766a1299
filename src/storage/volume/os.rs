//! The real volume: a folder of the system, which is never left.
//!
//! **Goal.** Nothing that lies in the folder (a symbolic link, a pipe, a device) can make the program read, write or
//! hang elsewhere.
//!
//! **Flow.** Each component is opened relative to the one before with `O_NOFOLLOW`, so no link is followed
//! anywhere below the root and a path may be of any length; a file must be a regular one. One way for all
//! kernels and sandboxes: `openat2` would save a few system calls and is refused in many containers.
//!
//! **Not here.** Making names safe: that is metainfo's; here they are only refused.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Access, Flags, InodeId, Stat, Volume, VolumeFile};

/// A folder of the system. Dropping it lets the folder go.
#[derive(Debug)]
pub struct OsVolume {
    path: PathBuf,
    root: OwnedFd,
}

/// An open file of an [`OsVolume`].
#[derive(Debug)]
struct OsFile(File);

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// `O_NONBLOCK`: opening a pipe that someone put there must not wait for its other end. It means nothing to
/// regular files.
const FILE_FLAGS: OFlag =
    OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

impl OsVolume {
    /// A folder that is there. `path` may lead through symbolic links. Waits for the disk.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_path_buf(), root })
    }

    /// The folder at a path, `None` for the root itself.
    fn folder(&self, path: &Path, create: bool) -> io::Result<Option<OwnedFd>> {
        let mut at: Option<OwnedFd> = None;
        for name in path.components() {
            at = Some(subfolder(self.at(&at), normal(name)?, create)?);
        }
        Ok(at)
    }

    /// The folder that a file lies in, and its name there.
    fn split<'a>(&self, path: &'a Path) -> io::Result<(Option<OwnedFd>, &'a OsStr)> {
        let mut components = path.components();
        match components.next_back() {
            Some(name) => Ok((self.folder(components.as_path(), false)?, normal(name)?)),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is empty")),
        }
    }

    fn at<'a>(&'a self, folder: &'a Option<OwnedFd>) -> BorrowedFd<'a> {
        folder.as_ref().unwrap_or(&self.root).as_fd()
    }
}

impl Volume for OsVolume {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VolumeFile>> {
        let (folder, name) = self.split(path)?;
        let access = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::ReadWrite => OFlag::O_RDWR,
        };
        let file = regular(openat(self.at(&folder), name, FILE_FLAGS | access, Mode::empty()))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn VolumeFile>> {
        let (folder, name) = self.split(path)?;
        let flags = FILE_FLAGS | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = regular(openat(self.at(&folder), name, flags, Mode::from_bits_truncate(mode)))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.folder(path, true).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_folder, from) = self.split(from)?;
        let (to_folder, to) = self.split(to)?;
        Ok(renameat(self.at(&from_folder), from, self.at(&to_folder), to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.split(path)?;
        Ok(unlinkat(self.at(&folder), name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn stat(&self, folder: &Path, names: &[&str]) -> io::Result<Vec<Option<Stat>>> {
        let folder = match self.folder(folder, false) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) =>
            {
                return Ok(vec![None; names.len()]);
            }
            folder => folder?,
        };
        let look = |name: &&str| {
            let name = normal(Component::Normal(OsStr::new(*name)))?;
            match look_at(self.at(&folder), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok((stat, regular)) => Ok(regular.then_some(stat)),
                Err(Errno::ENOENT) => Ok(None),
                Err(errno) => Err(errno.into()),
            }
        };
        names.iter().map(look).collect()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let folder = self.folder(folder, false)?;
        // A descriptor of its own: reading moves its position.
        let mut dir = Dir::openat(self.at(&folder), ".", DIR_FLAGS, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            match entry?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let folder = self.folder(path, false)?;
        match nix::unistd::fsync(self.at(&folder)) {
            // A file system that can't do that for folders says so; there is nothing better to do on it.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(&self.root)?)
    }
}

impl VolumeFile for OsFile {
    fn read_vectored_at(&self, parts: &mut [IoSliceMut<'_>], offset: u64, flags: Flags) -> io::Result<usize> {
        let count = parts.len() as libc::c_int;
        let offset = offset as libc::off_t;
        let fd = self.0.as_raw_fd();
        // SAFETY: an `IoSliceMut` has the layout of an `iovec`, and `parts` with the bytes it points to is borrowed
        // mutably for the length of the call; the kernel fills no more than it says. The descriptor is open as long as
        // `self` is borrowed.
        let read = unsafe {
            let parts = parts.as_mut_ptr().cast::<libc::iovec>();
            match system(flags) {
                // The older call, in case the other isn't known.
                0 => libc::preadv(fd, parts, count, offset),
                flags => libc::preadv2(fd, parts, count, offset, flags),
            }
        };
        Ok(Errno::result(read)? as usize)
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64, flags: Flags) -> io::Result<usize> {
        let count = parts.len() as libc::c_int;
        let offset = offset as libc::off_t;
        let fd = self.0.as_raw_fd();
        // SAFETY: an `IoSlice` has the layout of an `iovec`, and `parts` with the bytes it points to is borrowed for
        // the length of the call; the kernel only reads them. The descriptor is open as long as `self` is borrowed.
        let written = unsafe {
            let parts = parts.as_ptr().cast::<libc::iovec>();
            match system(flags) {
                0 => libc::pwritev(fd, parts, count, offset),
                flags => libc::pwritev2(fd, parts, count, offset, flags),
            }
        };
        Ok(Errno::result(written)? as usize)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(look_at(self.0.as_fd(), OsStr::new(""), AtFlags::AT_EMPTY_PATH)?.0)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.0, flags, range.start as libc::off_t, len as libc::off_t)?)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.0, Mode::from_bits_truncate(mode))?)
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// The system's flags of reading and writing.
fn system(flags: Flags) -> libc::c_int {
    let no_wait = if flags.no_wait { libc::RWF_NOWAIT } else { 0 };
    let let_go = if flags.let_go { libc::RWF_DONTCACHE } else { 0 };
    no_wait | let_go
}

/// What stands under a name in a folder, and whether it is a regular file; by `statx(2)`, which knows when it was made.
/// Where a sandbox doesn't let that through, without.
fn look_at(at: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> nix::Result<(Stat, bool)> {
    let found = name.with_nix_path(|name| {
        let mut found = MaybeUninit::<libc::statx>::uninit();
        let wanted = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        // SAFETY: the descriptor is open as long as it is borrowed, `name` ends with a NUL, and `found` has room for what
        // the call fills in.
        let result =
            unsafe { libc::statx(at.as_raw_fd(), name.as_ptr(), flags.bits(), wanted, found.as_mut_ptr()) };
        // SAFETY: after success the kernel has filled it all, with zeros where it has nothing to say.
        Errno::result(result).map(|_| unsafe { found.assume_init() })
    })?;
    match found {
        Ok(found) => Ok((stat_of(&found), u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFREG)),
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let found = fstatat(at, name, flags)?;
            Ok((older_stat_of(&found), found.st_mode & libc::S_IFMT == libc::S_IFREG))
        }
        Err(errno) => Err(errno),
    }
}

/// Nanoseconds since the epoch.
fn nanos(seconds: i64, more: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(more)
}

fn stat_of(stat: &libc::statx) -> Stat {
    let born = if stat.stx_mask & libc::STATX_BTIME == 0 {
        0
    } else {
        nanos(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec.into())
    };
    let device = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Stat {
        len: stat.stx_size,
        // In units of 512 bytes everywhere.
        allocated: stat.stx_blocks.saturating_mul(512),
        modified: nanos(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec.into()),
        inode: InodeId { device, number: stat.stx_ino, born },
        links: stat.stx_nlink.into(),
        mode: u32::from(stat.stx_mode) & 0o7777,
        block: stat.stx_blksize.into(),
    }
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the types differ by platform")]
fn older_stat_of(stat: &FileStat) -> Stat {
    Stat {
        len: stat.st_size as u64,
        allocated: (stat.st_blocks as u64).saturating_mul(512),
        modified: nanos(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        inode: InodeId { device: stat.st_dev as u64, number: stat.st_ino as u64, born: 0 },
        links: stat.st_nlink as u64,
        mode: stat.st_mode as u32 & 0o7777,
        block: stat.st_blksize as u64,
    }
}

/// An open file of any kind, as a volume's. For tests of what reads and writes.
#[cfg(test)]
pub(in crate::storage) fn over(file: File) -> Arc<dyn VolumeFile> {
    Arc::new(OsFile(file))
}

/// Opens a regular file by its path, never through a link in its last component; `None` if there is none.
pub(in crate::storage) fn open_plain(path: &Path) -> io::Result<Option<File>> {
    let flags = FILE_FLAGS | OFlag::O_RDONLY;
    match nix::fcntl::open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        opened => regular(opened).map(Some),
    }
}

/// A component that leads one folder down.
fn normal(component: Component<'_>) -> io::Result<&OsStr> {
    match component {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of the folder")),
    }
}

fn subfolder(at: BorrowedFd<'_>, name: &OsStr, create: bool) -> io::Result<OwnedFd> {
    match openat(at, name, DIR_FLAGS, Mode::empty()) {
        Err(Errno::ENOENT) if create => {
            match mkdirat(at, name, Mode::from_bits_truncate(0o755)) {
                // Another thread was quicker.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(openat(at, name, DIR_FLAGS, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

fn regular(opened: nix::Result<OwnedFd>) -> io::Result<File> {
    let file = match opened {
        Ok(fd) => File::from(fd),
        // What a link gives under O_NOFOLLOW; the system's own words would mislead.
        Err(Errno::ELOOP) => {
            return Err(io::Error::other("it is a symbolic link, and none is followed there"));
        }
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn volume() -> (tempfile::TempDir, OsVolume) {
        let dir = tempfile::tempdir().unwrap();
        let volume = OsVolume::open(dir.path()).unwrap();
        (dir, volume)
    }

    #[test]
    fn paths_lead_down_only() {
        let (dir, volume) = volume();
        std::fs::write(dir.path().join("x"), b"x").unwrap();
        let x = Path::new("x");
        for bad in ["..", "../x", "a/../../x", "/etc/passwd", "/"] {
            let bad = Path::new(bad);
            let refused = [
                volume.open(bad, Access::Read).map(drop),
                volume.create(bad, 0o600).map(drop),
                volume.create_folders(bad),
                volume.rename(x, bad),
                volume.rename(bad, x),
                volume.remove(bad),
                volume.list(bad).map(drop),
                volume.sync_folder(bad),
                volume.stat(bad, &["x"]).map(drop),
            ];
            assert!(refused.iter().all(Result::is_err), "{bad:?}: {refused:?}");
        }
        for name in ["", ".", "..", "a/b", "/x"] {
            assert!(!matches!(volume.stat(Path::new(""), &[name]).as_deref(), Ok([Some(_)])), "{name:?}");
        }
        let empty = volume.open(Path::new(""), Access::Read);
        assert_eq!(empty.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"x");
    }

    #[test]
    fn a_file_is_itself_whatever_becomes_of_its_names_and_numbers() {
        let (dir, volume) = volume();
        let (a, b) = (Path::new("a"), Path::new("b"));
        let first = volume.create(a, 0o600).unwrap().stat().unwrap().inode;
        volume.rename(a, b).unwrap();
        let again = volume.open(b, Access::ReadWrite).unwrap();
        again.write_vectored_at(&[IoSlice::new(b"x")], 0, Flags::default()).unwrap();
        again.set_mode(0o400).unwrap();
        assert_eq!(again.stat().unwrap().inode, first);
        assert_eq!(volume.stat(Path::new(""), &["b"]).unwrap()[0].unwrap().inode, first);
        let known = std::fs::metadata(dir.path().join("b")).unwrap().created();
        assert_eq!(first.born > 0, known.is_ok(), "{first:?} {known:?}");
        drop(again);
        // Times are counted in ticks of the clock.
        let mut seen = 0;
        while let Ok(known) = known
            && seen < 100_000
        {
            volume.remove(b).unwrap();
            let other = volume.create(b, 0o600).unwrap().stat().unwrap().inode;
            if std::fs::metadata(dir.path().join("b")).unwrap().created().unwrap() != known {
                assert_ne!(other, first);
                break;
            }
            seen += 1;
        }
    }

    #[test]
    fn files_are_made_renamed_and_removed() {
        let (dir, volume) = volume();
        let (a, b) = (Path::new("d/e/a"), Path::new("d/b"));
        assert_eq!(volume.create(a, 0o600).unwrap_err().kind(), io::ErrorKind::NotFound);
        for _ in 0..2 {
            volume.create_folders(Path::new("d/e")).unwrap();
        }
        let file = volume.create(a, 0o600).unwrap();
        assert_eq!(volume.create(a, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        file.write_vectored_at(&[IoSlice::new(b"he"), IoSlice::new(b"llo")], 1, Flags::default()).unwrap();
        file.sync().unwrap();
        file.set_mode(0o400).unwrap();
        let mut buf = [9; 10];
        let (first, second) = buf.split_at_mut(2);
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        assert_eq!(file.read_vectored_at(&mut parts, 0, Flags::default()).unwrap(), 6);
        assert_eq!(&buf, b"\0hello\x09\x09\x09\x09");
        let stat = file.stat().unwrap();
        assert_eq!((stat.len, stat.links, stat.mode), (6, 1, 0o400));
        assert!(stat.modified > 0 && stat.block > 0);
        volume.rename(a, b).unwrap();
        volume.sync_folder(Path::new("d/e")).unwrap();
        volume.sync_folder(Path::new("")).unwrap();
        volume.sync_all().unwrap();
        symlink("b", dir.path().join("d/link")).unwrap();
        let found = volume.stat(Path::new("d"), &["b", "e", "link", "absent"]).unwrap();
        assert_eq!(found, [Some(stat), None, None, None]);
        assert_eq!(volume.stat(Path::new("none"), &["b", "c"]).unwrap(), [None, None]);
        let mut names = volume.list(Path::new("d")).unwrap();
        names.sort();
        assert_eq!(names, ["b", "e", "link"]);
        assert_eq!(volume.list(Path::new("d/e")).unwrap(), [""; 0]);
        volume.remove(b).unwrap();
        assert_eq!(volume.open(b, Access::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(file.stat().unwrap().links, 0);
        assert!(volume.open(Path::new("d/link"), Access::Read).unwrap_err().to_string().contains("link"));
        assert!(volume.open(Path::new("d/e"), Access::Read).is_err());
        assert!(volume.list(Path::new("none")).is_err());
    }

    #[test]
    fn the_permissions_asked_for_are_given_as_far_as_the_umask_lets() {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let (dir, volume) = volume();
        let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        volume.create_folders(Path::new("d")).unwrap();
        std::fs::DirBuilder::new().mode(0o755).create(dir.path().join("plain")).unwrap();
        assert_eq!(mode("d"), mode("plain"));
        volume.create(Path::new("a"), 0o644).unwrap();
        std::fs::write(dir.path().join("b"), b"").unwrap();
        assert_eq!(mode("a"), mode("b") & 0o644);
        volume.create(Path::new("c"), 0o600).unwrap();
        assert_eq!(mode("c") & 0o077, 0);
    }
}
