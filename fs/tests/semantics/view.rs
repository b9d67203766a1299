//! What a program sees of a filesystem, by whatever way it looks at it; and the usual way, by system calls.
//!
//! Paths are relative to the root of the mount, with `/`. Errors are numbers.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use torrentfs_fs::attr::Kind;

/// What is shown of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub perm: u32,
    pub nlink: u64,
    pub owner: (u32, u32),
    /// In seconds since the epoch.
    pub mtime: i64,
    pub atime: i64,
    pub ctime: i64,
    /// The preferred size of a read, in bytes.
    pub preferred: u64,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub ino: u64,
    pub kind: Kind,
    /// Where the listing goes on after it.
    pub next: u64,
}

/// An open folder.
pub trait Listing {
    /// The next entry, `.` and `..` among them.
    fn next(&mut self) -> Result<Option<Entry>, i32>;
    /// Goes on from an offset that an entry gave, or from the beginning with 0.
    fn seek(&mut self, offset: u64);
}

/// A filesystem.
pub trait View: Sync {
    /// Names in order of the listing, without `.` and `..`.
    fn list(&self, path: &str) -> Result<Vec<String>, i32>;
    fn listing(&self, path: &str) -> Result<Box<dyn Listing + '_>, i32>;
    /// Of a link, not of what it points to.
    fn stat(&self, path: &str) -> Result<Stat, i32>;
    /// One read through a handle opened with these flags; waits for it.
    fn read_with(&self, path: &str, flags: i32, offset: u64, len: usize) -> Result<Vec<u8>, i32>;
    fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.read_with(path, libc::O_RDONLY, offset, len)
    }
    /// One read through a handle that was opened before something else happened.
    fn read_after(&self, path: &str, meanwhile: &dyn Fn(), offset: u64, len: usize) -> Result<Vec<u8>, i32>;
    fn link(&self, path: &str) -> Result<String, i32>;
    fn open(&self, path: &str, flags: i32) -> Result<(), i32>;
    fn access(&self, path: &str, mode: i32) -> Result<(), i32>;
    /// With room for so many bytes; 0 asks for the length, which is given as that many zeros.
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32>;
    fn xattr_names(&self, path: &str, room: usize) -> Result<Vec<u8>, i32>;
    /// All and free bytes, files.
    fn space(&self) -> (u64, u64, u64);
    /// The longest name, in bytes.
    fn longest_name(&self) -> u64;
}

/// A mounted filesystem, seen by system calls.
pub struct OnDisk(pub PathBuf);

impl OnDisk {
    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
    fn c_path(&self, path: &str) -> CString {
        c_text(&self.at(path))
    }
}

/// A path for a system call.
pub fn c_text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The number of the error.
pub fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}

/// What `stat` says, in the words of [`Stat`].
pub fn stat_of(stat: &std::fs::Metadata) -> Stat {
    Stat {
        kind: match stat.file_type() {
            kind if kind.is_dir() => Kind::Dir,
            kind if kind.is_symlink() => Kind::Symlink,
            _ => Kind::File,
        },
        ino: stat.ino(),
        size: stat.size(),
        blocks: stat.blocks(),
        perm: stat.mode() & 0o7777,
        nlink: stat.nlink(),
        owner: (stat.uid(), stat.gid()),
        mtime: stat.mtime(),
        atime: stat.atime(),
        ctime: stat.ctime(),
        preferred: stat.blksize(),
    }
}

/// The blocks that the filesystem itself tells of a file, whatever the kernel remembers.
pub fn blocks_now(path: &Path) -> u64 {
    let name = c_text(path);
    // SAFETY: plain numbers, for which zeros will do.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC;
    // SAFETY: the path ends with NUL, and there is room for what is told.
    let told = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, libc::STATX_BLOCKS, &mut found) };
    assert_eq!(told, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    found.stx_blocks
}

/// Opens a path with any flags.
pub fn open_with(path: &Path, flags: i32) -> Result<OwnedFd, i32> {
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    nix::fcntl::open(path, flags, Mode::from_bits_retain(0o600)).map_err(|error| error as i32)
}

/// One read of an open file.
fn read_at(file: &std::fs::File, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0; len];
    let length = file.read_at(&mut bytes, offset).map_err(errno)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// The result of a call that gives a length or fails with -1.
fn length(result: isize) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| errno(std::io::Error::last_os_error()))
}

impl View for OnDisk {
    fn list(&self, path: &str) -> Result<Vec<String>, i32> {
        let entries = std::fs::read_dir(self.at(path)).map_err(errno)?;
        entries.map(|entry| Ok(entry.map_err(errno)?.file_name().into_string().unwrap())).collect()
    }
    fn listing(&self, path: &str) -> Result<Box<dyn Listing + '_>, i32> {
        let folder = open_with(&self.at(path), libc::O_RDONLY | libc::O_DIRECTORY)?;
        Ok(Box::new(OpenFolder { folder, entries: Vec::new() }))
    }
    fn stat(&self, path: &str) -> Result<Stat, i32> {
        Ok(stat_of(&std::fs::symlink_metadata(self.at(path)).map_err(errno)?))
    }
    fn read_with(&self, path: &str, flags: i32, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        read_at(&open_with(&self.at(path), flags)?.into(), offset, len)
    }
    fn read_after(&self, path: &str, meanwhile: &dyn Fn(), offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let file = open_with(&self.at(path), libc::O_RDONLY)?.into();
        meanwhile();
        read_at(&file, offset, len)
    }
    fn link(&self, path: &str) -> Result<String, i32> {
        let target = std::fs::read_link(self.at(path)).map_err(errno)?;
        Ok(target.into_os_string().into_string().unwrap())
    }
    fn open(&self, path: &str, flags: i32) -> Result<(), i32> {
        open_with(&self.at(path), flags).map(drop)
    }
    fn access(&self, path: &str, mode: i32) -> Result<(), i32> {
        let mode = nix::unistd::AccessFlags::from_bits_retain(mode);
        nix::unistd::access(&self.at(path), mode).map_err(|error| error as i32)
    }
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32> {
        let (path, name) = (self.c_path(path), CString::new(name).unwrap());
        let mut value = vec![0u8; room];
        // SAFETY: both texts end with NUL, and the buffer has room for as much as is said.
        let result = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
        value.resize(length(result)?, 0);
        Ok(value)
    }
    fn xattr_names(&self, path: &str, room: usize) -> Result<Vec<u8>, i32> {
        let path = self.c_path(path);
        let mut names = vec![0u8; room];
        // SAFETY: as above.
        let result = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), room) };
        names.resize(length(result)?, 0);
        Ok(names)
    }
    fn space(&self) -> (u64, u64, u64) {
        let space = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let size = space.fragment_size();
        (space.blocks() * size, space.blocks_free() * size, space.files())
    }
    fn longest_name(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.0).unwrap().name_max()
    }
}

/// A folder as `getdents64` lists it.
struct OpenFolder {
    folder: OwnedFd,
    /// Those that were read and not given out yet, the last first.
    entries: Vec<Entry>,
}

impl Listing for OpenFolder {
    fn next(&mut self) -> Result<Option<Entry>, i32> {
        if self.entries.is_empty() {
            // Small, so that it takes several calls; the longest name fits.
            let mut buffer = [0u8; 512];
            // SAFETY: the buffer has room for as much as is said.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_getdents64,
                    self.folder.as_raw_fd(),
                    buffer.as_mut_ptr(),
                    buffer.len(),
                )
            };
            let mut rest = &buffer[..length(result as isize)?];
            while !rest.is_empty() {
                // The kernel's `linux_dirent64`: inode, offset, length of the record, kind, name.
                let number = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap());
                let record = usize::from(u16::from_ne_bytes(rest[16..18].try_into().unwrap()));
                let name = rest[19..record].split(|byte| *byte == 0).next().unwrap();
                let kind = match rest[18] {
                    libc::DT_DIR => Kind::Dir,
                    libc::DT_LNK => Kind::Symlink,
                    libc::DT_REG => Kind::File,
                    other => panic!("an entry of kind {other}"),
                };
                let name = String::from_utf8(name.to_vec()).unwrap();
                self.entries.push(Entry { name, ino: number(0), kind, next: number(8) });
                rest = &rest[record..];
            }
            self.entries.reverse();
        }
        Ok(self.entries.pop())
    }
    fn seek(&mut self, offset: u64) {
        self.entries.clear();
        // SAFETY: takes numbers only.
        let result = unsafe { libc::lseek(self.folder.as_raw_fd(), offset as libc::off_t, libc::SEEK_SET) };
        assert_eq!(result, offset as libc::off_t, "seekdir");
    }
}
