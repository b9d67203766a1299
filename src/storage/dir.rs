//! Opening files below a folder without ever leaving it.
//!
//! **Goal.** Nothing that lies in the data folder (a symbolic link, a pipe, a device) can make the program
//! read, write or hang elsewhere.
//!
//! **Flow.** Each component is opened relative to the one before with `O_NOFOLLOW`, so no link is followed
//! anywhere below the root and a path may be of any length; a file must be a regular one. One way for all
//! kernels and sandboxes: `openat2` would save a few system calls and is refused in many containers.
//!
//! **Not here.** Making names safe: that is metainfo's; here they are only refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat, mkdirat};

/// A folder from which files are opened.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// `O_NONBLOCK`: opening a pipe that someone put there must not wait for its other end. It means nothing to
/// regular files.
const FILE_FLAGS: OFlag =
    OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

impl Root {
    /// Opens `<parent>/<name>`, made if it isn't there. `parent` may be reached through links, the last
    /// component may not be one.
    pub(super) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let parent = File::open(parent)?;
        Ok(Self { fd: subfolder(parent.as_fd(), name, true)? })
    }

    /// Opens a regular file: for reading, or with `write` for both.
    pub(super) fn open(&self, path: &[String], write: bool) -> io::Result<File> {
        let (name, folders) = split(path)?;
        let folder = self.folder(folders, false)?;
        let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        regular(openat(self.at(&folder), name, FILE_FLAGS | access, Mode::empty()))
    }

    /// Makes a file that isn't there, and the folders it lies in, and opens it for both.
    pub(super) fn create_file(&self, path: &[String]) -> io::Result<File> {
        let (name, folders) = split(path)?;
        let folder = self.folder(folders, true)?;
        let flags = FILE_FLAGS | OFlag::O_RDWR | OFlag::O_CREAT;
        regular(openat(self.at(&folder), name, flags, Mode::from_bits_truncate(0o644)))
    }

    /// The length of a regular file in a folder that [`Root::folder`] gave, or `None` if there is none.
    pub(super) fn len_in(&self, folder: &Option<OwnedFd>, name: &str) -> io::Result<Option<u64>> {
        match fstatat(self.at(folder), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFREG => Ok(Some(stat.st_size as u64)),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes everything on the file system of the folder durable. May wait for a disk, and for others' data too.
    pub(super) fn sync_file_system(&self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(&self.fd)?)
    }

    /// Makes the names in a folder durable. May wait for a disk.
    pub(super) fn sync_folder(&self, folders: &[String]) -> io::Result<()> {
        let folder = self.folder(folders, false)?;
        match nix::unistd::fsync(self.at(&folder)) {
            // A file system that can't do that for folders says so; there is nothing better to do on it.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The folder at a path, `None` for the root itself.
    pub(super) fn folder(&self, folders: &[String], create: bool) -> io::Result<Option<OwnedFd>> {
        let mut at: Option<OwnedFd> = None;
        for name in folders {
            at = Some(subfolder(self.at(&at), name, create)?);
        }
        Ok(at)
    }

    fn at<'a>(&'a self, folder: &'a Option<OwnedFd>) -> BorrowedFd<'a> {
        folder.as_ref().unwrap_or(&self.fd).as_fd()
    }
}

fn split(path: &[String]) -> io::Result<(&str, &[String])> {
    match path.split_last() {
        Some((name, folders)) => Ok((name, folders)),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is empty")),
    }
}

fn subfolder(at: BorrowedFd<'_>, name: &str, create: bool) -> io::Result<OwnedFd> {
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
