//! The cache folder: the place of all that is kept, and the lock that says whose it is.
//!
//! **Goal.** A folder that can't be used is found out at the start, with a message that says what to do, not by
//! the first read that fails.
//!
//! **Parts.** [`CacheDir`]: made if need be, locked (`flock` on the file `lock`, which holds the owner's process
//! id), tried by writing a little. In it one folder per torrent, named by its info-hash in hex, and small files
//! for single values, such as `listen-port`. [`default_path`] is where it is unless `--cache-dir` says otherwise.
//!
//! **Not here.** How much may be kept, and what is in a torrent's folder.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::is_full;

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
    fn from_io(path: &Path, op: &'static str, source: io::Error) -> Self {
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
}

const LOCK: &str = "lock";

/// Permissions of folders that are made, before the umask: what is complete is there for others to use. Those that
/// are there keep theirs.
const FOLDER: u32 = 0o755;

/// What a test write needs to find a full disk: more than file systems keep in the inode itself.
const TRIAL: usize = 64 * 1024;

/// Longest value read back; they are numbers and names.
const MAX_VALUE: u64 = 4096;

impl CacheDir {
    /// Makes the folder (and those above it) if it isn't there, locks it and tries whether
    /// it takes data. Waits for the disk, not for another process.
    ///
    /// # Errors
    /// [`CacheError`]; [`CacheError::InUse`] tells who has it.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let failed = |op| move |error| CacheError::from_io(path, op, error);
        DirBuilder::new().recursive(true).mode(FOLDER).create(path).map_err(failed("making"))?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path.join(LOCK))
            .map_err(failed("locking"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&mut lock).take(MAX_VALUE).read_to_string(&mut text);
                return Err(CacheError::InUse { path: path.to_path_buf(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(failed("locking")(error)),
        }
        let cache = Self { path: path.to_path_buf(), lock };
        cache.write_pid()?;
        tempfile::tempfile_in(path)
            .and_then(|mut file| file.write_all(&[0x5a; TRIAL]))
            .map_err(failed("writing to"))?;
        Ok(cache)
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

    /// The folder of a torrent, made if it isn't there; `info_hash` in hex (40 or 64 digits, either case). Waits
    /// for the disk.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn torrent_dir(&self, info_hash: &str) -> Result<PathBuf, CacheError> {
        if !matches!(info_hash.len(), 40 | 64) || !info_hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(CacheError::BadName { name: info_hash.to_owned() });
        }
        let path = self.path.join(info_hash.to_ascii_lowercase());
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

    /// Bytes that are free for us on the disk that holds it. Asks the file system, which may wait when it is a
    /// remote one.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn free_space(&self) -> Result<u64, CacheError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|e| CacheError::from_io(&self.path, "asking for the free space of", e.into()))?;
        #[allow(
            clippy::unnecessary_cast,
            clippy::useless_conversion,
            reason = "the types differ by platform"
        )]
        Ok((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
    }
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
        assert!(cache.free_space().unwrap() > 0);
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
