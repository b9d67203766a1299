//! The cache folder: the place of all that is kept, and the lock that says whose it is.
//!
//! **Goal.** A folder that can't be used is found out at the start, with a message that says what to do, not by
//! the first read that fails.
//!
//! **Parts.** [`CacheDir`]: made if need be, locked (`flock` on the file `lock`, which holds the owner's process
//! id), tried by writing a little. In it one folder per torrent, named by its info-hash in hex, and small files
//! for single values, such as `listen-port`. [`default_path`] is where it is unless `--cache-dir` says otherwise.
//! [`Marks`] tells those who only look which torrents the owner has in hand: each is a byte of the file `lock`,
//! locked by itself, so that asking takes no lock that could be in somebody's way.
//!
//! **Not here.** How much may be kept, and what is in a torrent's folder ([`super::catalog`]).

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};

use super::is_full;
use super::spare::Spare;

/// Why the cache folder can't be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// No permission, or a read-only disk.
    #[error(
        "the cache folder {} isn't writable ({source}); check its owner, or choose another with --cache-dir",
        .path.display()
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk, or the user's share of it, is full.
    #[error("no space left for the cache folder {}; free some there, or choose another with --cache-dir", .path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// Something that isn't a folder has its name.
    #[error("{} isn't a folder; remove it, or choose another cache with --cache-dir", .path.display())]
    NotAFolder {
        /// What is in the way.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error(
        "the cache folder {} is in use by {}; stop that one, or choose another folder with --cache-dir",
        .path.display(),
        .pid.map_or("another torrentfs".to_owned(), |pid| format!("another torrentfs (process {pid})"))
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Its process id, if it could be read.
        pid: Option<u32>,
    },
    /// There is no home folder to put it in.
    #[error("neither XDG_CACHE_HOME nor HOME is set; say where to keep data with --cache-dir")]
    NoHome,
    /// It can't be the name of a torrent's folder.
    #[error("{name:?} isn't an info-hash in hex")]
    BadName {
        /// What was given.
        name: String,
    },
    /// Anything else.
    #[error("{op} {} failed: {source}; choose another cache with --cache-dir if that doesn't pass", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

impl CacheError {
    pub(super) fn from_io(path: &Path, op: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if is_full(&source) {
            return Self::Full { path };
        }
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                Self::NotWritable { path, source: Arc::new(source) }
            }
            Some(libc::ENOTDIR | libc::EEXIST) => Self::NotAFolder { path },
            _ => Self::Io { path, op, source: Arc::new(source) },
        }
    }
}

/// The cache folder, ours alone. Dropping it gives up the lock (so does the end of the process, and of its
/// children that inherited it).
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    lock: File,
    spare: Arc<Spare>,
}

const LOCK: &str = "lock";

/// Permissions of folders that are made, before the umask: what is complete is there for others to use. Those that
/// are there keep theirs.
const FOLDER: u32 = 0o755;

/// What a test write needs to find a full disk: more than file systems keep in the inode itself.
const TRIAL: usize = 64 * 1024;

/// Longest value read back; they are numbers, names, and the nodes of the DHT.
const MAX_VALUE: u64 = 32 << 10;

impl CacheDir {
    /// Makes the folder (and those above it) if it isn't there, locks it and tries whether
    /// it takes data. A disk that is only full is no error: what is there can be used, and there may be room later;
    /// it is logged. Waits for the disk, not for another process.
    ///
    /// # Errors
    /// [`CacheError`]; [`CacheError::InUse`] tells who has it, [`CacheError::Full`] that not even the folder
    /// or its lock could be made.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let failed = |op| move |error| CacheError::from_io(path, op, error);
        DirBuilder::new().recursive(true).mode(FOLDER).create(path).map_err(failed("making"))?;
        let cache = Self::lock(path)?;
        let trial = || {
            cache.write_pid()?;
            tempfile::tempfile_in(path)
                .and_then(|mut file| file.write_all(&[0x5a; TRIAL]))
                .map_err(failed("writing to"))
        };
        match trial() {
            Err(full @ CacheError::Full { .. }) => {
                tracing::warn!("{full}; until then what is here can be read, and nothing is fetched");
                Ok(cache)
            }
            tried => tried.map(|()| cache),
        }
    }

    /// Locks a folder that is there, to take things out of it: that must be possible on a full disk, too, so
    /// nothing is tried, and nothing but the lock is made. Waits for the disk, not for another process.
    ///
    /// # Errors
    /// As [`CacheDir::open`]; [`CacheError::Io`] when there is no such folder.
    pub fn open_to_trim(path: &Path) -> Result<Self, CacheError> {
        let cache = Self::lock(path)?;
        // Who is told "another torrentfs", without a number, can live with it.
        let _ = cache.write_pid();
        Ok(cache)
    }

    fn lock(path: &Path) -> Result<Self, CacheError> {
        let failed = |error| CacheError::from_io(path, "locking", error);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CacheError::InUse { path: path.to_path_buf(), pid: owner_of(&lock) });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        mark(&lock, OWNED);
        Ok(Self { spare: Arc::new(Spare::new(path)), path: path.to_path_buf(), lock })
    }

    /// Writes this process's id into the lock file, for others to read. [`CacheDir::open`] does it; again after
    /// the process has put itself into the background.
    ///
    /// # Errors
    /// [`CacheError::Full`], [`CacheError::Io`].
    pub fn write_pid(&self) -> Result<(), CacheError> {
        let text = format!("{}\n", std::process::id());
        self.lock
            .set_len(0)
            .and_then(|()| self.lock.write_all_at(text.as_bytes(), 0))
            .map_err(|e| CacheError::from_io(&self.path, "locking", e))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a torrent, made if it isn't there; `info_hash` in hex (40 or 64 digits, either case). From now
    /// on the torrent counts as in use for those who look ([`Marks`]). Waits for the disk.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn torrent_dir(&self, info_hash: &str) -> Result<PathBuf, CacheError> {
        if !is_key(info_hash) {
            return Err(CacheError::BadName { name: info_hash.to_owned() });
        }
        let name = info_hash.to_ascii_lowercase();
        let path = self.path.join(&name);
        mark(&self.lock, place(&name));
        match DirBuilder::new().mode(FOLDER).create(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => Ok(path),
                Ok(_) => Err(CacheError::NotAFolder { path }),
                Err(error) => Err(CacheError::from_io(&path, "looking at", error)),
            },
            Err(error) => Err(CacheError::from_io(&path, "making", error)),
        }
    }

    /// A torrent is in use no longer, for those who look ([`Marks`]); `info_hash` as in [`CacheDir::torrent_dir`].
    pub fn release(&self, info_hash: &str) {
        unmark(&self.lock, place(&info_hash.to_ascii_lowercase()));
    }

    /// The room that is put by in it.
    pub fn spare(&self) -> &Arc<Spare> {
        &self.spare
    }

    /// A small value kept under `name` (a plain file name), without surrounding white space; `None` when there
    /// is none that can be read. Values may get lost in a crash. Waits for the disk.
    pub fn value(&self, name: &str) -> Option<String> {
        let file = super::volume::open_plain(&self.path.join(name)).ok()??;
        let mut text = String::new();
        file.take(MAX_VALUE).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// Keeps a small value under `name`, in place of the one before. Waits for the disk.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn set_value(&self, name: &str, value: &str) -> Result<(), CacheError> {
        let path = self.path.join(name);
        let failed = |error| CacheError::from_io(&path, "writing", error);
        let mut aside =
            tempfile::Builder::new().prefix(".value.new-").tempfile_in(&self.path).map_err(failed)?;
        writeln!(aside, "{value}").map_err(failed)?;
        aside.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    /// Bytes on the disk that holds it. Asks the file system, which may wait when it is a remote one.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn space(&self) -> Result<DiskSpace, CacheError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|e| CacheError::from_io(&self.path, "asking for the free space of", e.into()))?;
        #[allow(
            clippy::unnecessary_cast,
            clippy::useless_conversion,
            reason = "the types differ by platform"
        )]
        let bytes = |blocks| (blocks as u64).saturating_mul(stat.fragment_size() as u64);
        Ok(DiskSpace { free: bytes(stat.blocks_available()), total: bytes(stat.blocks()) })
    }
}

/// Bytes on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Free for us.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Whether this can be the name of a torrent's folder: an info-hash in hex.
pub(super) fn is_key(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What the owner of a cache folder shows of itself to those who only look.
#[derive(Debug)]
pub struct Marks(Option<File>);

/// The mark of an owned folder.
const OWNED: libc::off_t = 0;

impl Marks {
    /// Those of a folder; without any when there is no lock file. Takes no lock, waits for the disk.
    pub fn of(path: &Path) -> Self {
        Self(super::volume::open_plain(&path.join(LOCK)).ok().flatten())
    }

    /// Whether somebody has the folder.
    pub fn owned(&self) -> bool {
        self.is_set(OWNED)
    }

    /// The process that has it, or had it last, if it told.
    pub fn owner(&self) -> Option<u32> {
        owner_of(self.0.as_ref()?)
    }

    /// Whether whoever has the folder has this torrent in hand; `key` as its folder is called.
    pub fn in_use(&self, key: &str) -> bool {
        self.is_set(place(key))
    }

    fn is_set(&self, at: libc::off_t) -> bool {
        let Some(file) = &self.0 else { return false };
        let mut range = byte(at);
        let asked = fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range));
        // Where it can't be asked, as on some remote file systems, nobody is seen. Whoever changes something takes
        // the lock itself.
        asked.is_ok() && i32::from(range.l_type) != libc::F_UNLCK
    }
}

/// Locks a byte of the lock file, until that is closed. Only those who look depend on it, so failing is no error.
fn mark(lock: &File, at: libc::off_t) {
    let _ = fcntl(lock.as_fd(), FcntlArg::F_OFD_SETLK(&byte(at)));
}

/// Takes a mark away.
fn unmark(lock: &File, at: libc::off_t) {
    let free = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..byte(at) };
    // As above: only those who look depend on it.
    let _ = fcntl(lock.as_fd(), FcntlArg::F_OFD_SETLK(&free));
}

/// One byte of the lock file, to be locked for writing.
fn byte(at: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

/// The byte of the lock file that stands for a torrent: 28 bits of its info-hash, which no two torrents of one
/// folder share unless on purpose, and then one shows as in use that isn't.
fn place(key: &str) -> libc::off_t {
    let digits = key.get(..7).unwrap_or_default();
    1 + i32::from_str_radix(digits, 16).map_or(0, libc::off_t::from)
}

/// The process id in a lock file.
fn owner_of(lock: &File) -> Option<u32> {
    let mut text = [0; 16];
    let len = lock.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..len)?).ok()?.trim().parse().ok()
}

/// Where the cache is without `--cache-dir`: for root `/var/cache/torrentfs`, otherwise `torrentfs` in
/// `XDG_CACHE_HOME` (if absolute, as its specification asks) or in `~/.cache`. `var` looks up the environment.
///
/// # Errors
/// [`CacheError::NoHome`].
pub fn default_path(root: bool, var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, CacheError> {
    if root {
        return Ok(PathBuf::from("/var/cache/torrentfs"));
    }
    let absolute = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("torrentfs"))
        .ok_or(CacheError::NoHome)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_and_holds_folders_and_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let cache = CacheDir::open(&path).unwrap();
        assert_eq!(cache.path(), path);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        // What the umask leaves of 0755 in a folder that nothing was done about.
        let plain = dir.path().join("plain");
        DirBuilder::new().mode(0o755).create(&plain).unwrap();
        assert_eq!(mode(&path), mode(&plain));
        assert_eq!(mode(&path.join("lock")) & 0o077, 0);
        let hash = "AB".repeat(20);
        let torrent = cache.torrent_dir(&hash).unwrap();
        assert_eq!(mode(&torrent), mode(&plain));
        assert_eq!(torrent, path.join(hash.to_lowercase()));
        std::fs::set_permissions(&torrent, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(cache.torrent_dir(&hash).unwrap(), torrent);
        assert_eq!(mode(&torrent), 0o700, "what is there is kept");
        for bad in ["", "..", &"g".repeat(40), &"a".repeat(41), "../../aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
        {
            assert!(matches!(cache.torrent_dir(bad), Err(CacheError::BadName { .. })), "{bad}");
        }
        assert_eq!(cache.value("listen-port"), None);
        for port in ["6881", "6882"] {
            cache.set_value("listen-port", port).unwrap();
            assert_eq!(cache.value("listen-port").as_deref(), Some(port));
        }
        let space = cache.space().unwrap();
        assert!(space.free > 0 && space.total > space.free);
    }

    #[test]
    fn the_second_learns_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = CacheDir::open(dir.path()).unwrap();
        let error = CacheDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, CacheError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        CacheDir::open(dir.path()).unwrap();
    }

    #[test]
    fn who_looks_sees_what_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = ("ab".repeat(20), "cd".repeat(32));
        let seen = || {
            let marks = Marks::of(dir.path());
            (marks.owned(), marks.owner(), marks.in_use(&one), marks.in_use(&two))
        };
        assert_eq!(seen(), (false, None, false, false));
        let cache = CacheDir::open(dir.path()).unwrap();
        let us = Some(std::process::id());
        assert_eq!(seen(), (true, us, false, false));
        for _ in 0..2 {
            cache.torrent_dir(&one.to_uppercase()).unwrap();
            assert_eq!(seen(), (true, us, true, false), "also when asked for again");
        }
        drop(cache);
        assert_eq!(seen(), (false, us, false, false));
        // To trim it nothing has to be written.
        std::fs::write(dir.path().join(LOCK), b"").unwrap();
        let cache = CacheDir::open_to_trim(dir.path()).unwrap();
        assert_eq!(seen(), (true, us, false, false));
        assert!(matches!(CacheDir::open(dir.path()), Err(CacheError::InUse { .. })));
        assert!(matches!(CacheDir::open_to_trim(dir.path()), Err(CacheError::InUse { .. })));
        drop(cache);
        let absent = dir.path().join("absent");
        assert!(matches!(CacheDir::open_to_trim(&absent), Err(CacheError::Io { .. })));
        assert!(!absent.exists());
    }

    #[test]
    fn what_cannot_be_used_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = CacheDir::open(&path).unwrap_err();
            assert!(matches!(error, CacheError::NotAFolder { .. }), "{error:?}");
        }
        // Nothing can be made there, not even by root.
        let error = CacheDir::open(Path::new("/proc/torrentfs")).unwrap_err();
        assert!(matches!(error, CacheError::Io { .. } | CacheError::NotWritable { .. }), "{error:?}");
        let rows = [
            (libc::EACCES, "isn't writable"),
            (libc::EROFS, "isn't writable"),
            (libc::ENOSPC, "no space left"),
            (libc::EDQUOT, "no space left"),
            (libc::ENOTDIR, "isn't a folder"),
            (libc::EIO, "failed"),
        ];
        for (errno, text) in rows {
            let error = CacheError::from_io(Path::new("/x"), "making", io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.to_string().contains("--cache-dir"), "{error}");
        }
        // A link in the place of a torrent's folder isn't used.
        let cache = CacheDir::open(&dir.path().join("cache")).unwrap();
        let hash = "0".repeat(40);
        std::os::unix::fs::symlink(dir.path(), cache.path().join(&hash)).unwrap();
        assert!(matches!(cache.torrent_dir(&hash), Err(CacheError::NotAFolder { .. })));
    }

    #[test]
    fn full_disks_are_told() {
        // Every write to it fails with ENOSPC.
        let Ok(mut full) = OpenOptions::new().write(true).open("/dev/full") else { return };
        let error = full.write_all(b"x").unwrap_err();
        assert!(matches!(CacheError::from_io(Path::new("/x"), "writing", error), CacheError::Full { .. }));
    }

    #[test]
    fn default_paths() {
        type Row<'a> = (bool, &'a [(&'a str, &'a str)], Option<&'a str>);
        let rows: &[Row<'_>] = &[
            (true, &[("HOME", "/root")], Some("/var/cache/torrentfs")),
            (false, &[("HOME", "/home/a")], Some("/home/a/.cache/torrentfs")),
            (false, &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/fast")], Some("/fast/torrentfs")),
            (false, &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "rel")], Some("/home/a/.cache/torrentfs")),
            (false, &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "")], Some("/home/a/.cache/torrentfs")),
            (false, &[("XDG_CACHE_HOME", "/fast")], Some("/fast/torrentfs")),
            (false, &[], None),
        ];
        for (root, vars, expected) in rows {
            let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            assert_eq!(default_path(*root, var).ok().as_deref(), expected.map(Path::new), "{vars:?}");
        }
    }
}
