//! The socket of a mount: where it is made, and that it goes.
//!
//! **Goal.** One socket for each mount, which only its user and root can reach: the folder is his alone (0700), and so
//! is the socket (0600). What a dead process left is replaced; what a live one has is never touched.
//!
//! **Flow.** [`Place::open`] takes the first folder that can be used, makes it if need be, and refuses one that is
//! somebody else's. [`Bound::bind`] binds under a name that nobody looks for and renames it: what has a socket's name
//! listens, so whatever refuses a connection is dead. Both happen with the folder locked: nobody's socket comes between
//! the look at a dead one and its removal. Dropping a [`Bound`] removes the socket if it is still the same.
//!
//! A folder may go while its socket is in use: a session's end takes `/run/user/UID` away. [`SocketFile::is_there`]
//! tells, and [`Home::bind`] makes another.
//!
//! A path that is too long for a socket is reached through `/proc/self/fd`.
//!
//! **Not here.** Accepting ([`super`]), looking for mounts ([`crate::run::reach`]).

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::control::place::{self, PATH_MAX};

/// How long others may keep the folder locked: they need milliseconds, unless they were stopped right then.
const LOCKED: Duration = Duration::from_secs(1);
/// Between two tries to lock it.
const TRY: Duration = Duration::from_millis(5);

/// Where a process's socket may be.
#[derive(Debug, Clone)]
pub struct Home {
    /// The folders, the one to be preferred first.
    pub folders: Vec<PathBuf>,
    /// Whose they have to be.
    pub uid: u32,
    /// The process.
    pub pid: u32,
}

impl Home {
    /// This process's.
    pub fn own() -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        Self { folders: place::folders(uid, |name| std::env::var_os(name)), uid, pid: std::process::id() }
    }

    /// Binds a socket in the first folder that can be used. Waits as [`Bound::bind`].
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(&self) -> Result<Bound, SocketError> {
        Place::open(&self.folders, self.uid).and_then(|place| Bound::bind(&place, self.pid))
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder can't be used.
    #[error("{}: {why}", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The socket can't be made in it.
    #[error("{}: {source}", .path.display())]
    Socket {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// All names are taken by live processes.
    #[error("{}: sockets of this process number are in use already", .0.display())]
    Taken(PathBuf),
}

/// A folder of sockets, open.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    folder: File,
}

impl Place {
    /// The first of these folders that is or can be made this user's alone. Blocks for the disk, which is memory
    /// where these folders are.
    ///
    /// # Errors
    /// What is wrong with the first.
    pub fn open(folders: &[PathBuf], uid: u32) -> Result<Self, SocketError> {
        let mut first = None;
        for path in folders {
            match Self::open_one(path, uid) {
                Ok(place) => return Ok(place),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first
            .unwrap_or_else(|| SocketError::Folder { path: PathBuf::new(), why: "there is none".into() }))
    }

    fn open_one(path: &Path, uid: u32) -> Result<Self, SocketError> {
        let refuse = |why: String| SocketError::Folder { path: path.to_owned(), why };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(refuse(error.to_string())),
            _ => {}
        }
        let folder = open_folder(path).map_err(|error| refuse(error.to_string()))?;
        let found = folder.metadata().map_err(|error| refuse(error.to_string()))?;
        if found.uid() != uid {
            return Err(refuse(format!("it belongs to another user ({})", found.uid())));
        }
        if found.mode() & 0o777 != 0o700 {
            folder
                .set_permissions(Permissions::from_mode(0o700))
                .map_err(|error| refuse(error.to_string()))?;
        }
        Ok(Self { path: path.to_owned(), folder })
    }

    /// A path by which a socket in it can be bound and reached, however long the folder's own is. Valid as long as
    /// this is there.
    fn reach(&self, name: &str) -> PathBuf {
        short(&self.path, &self.folder, OsStr::new(name))
    }

    /// Keeps other processes from making and removing sockets here, until the lock is dropped. Waits [`LOCKED`] at
    /// most, and does without it then: whoever has it was stopped, and makes nothing meanwhile.
    fn lock(&self) -> Option<File> {
        let end = Instant::now() + LOCKED;
        // A descriptor of its own: what is locked is the open folder, and it is let go of when that is closed.
        let folder = open_folder(&self.path).ok()?;
        loop {
            match folder.try_lock() {
                Ok(()) => return Some(folder),
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(TRY),
                Err(_) => return None,
            }
        }
    }

    /// Removes what dead processes left.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| place::is_socket(name)) {
                self.is_free(name);
            }
        }
    }

    /// Whether nobody listens at this name; what a dead process left there is removed.
    fn is_free(&self, name: &str) -> bool {
        match connect_now(&self.reach(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            // What isn't a socket refuses as well, and isn't ours.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let path = self.path.join(name);
                let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
                is_socket && std::fs::remove_file(path).is_ok()
            }
            // It listens, or can't be told.
            _ => false,
        }
    }
}

/// A socket that is bound and listens.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    file: SocketFile,
}

impl Bound {
    /// Binds this process's socket in a folder, and removes what dead processes left there. Waits a second at most,
    /// for others who do the same.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(place: &Place, pid: u32) -> Result<Self, SocketError> {
        let _lock = place.lock();
        place.sweep();
        let name = place::names(pid).find(|name| place.is_free(name));
        let name = name.ok_or_else(|| SocketError::Taken(place.path.clone()))?;
        let path = place.path.join(&name);
        let failed = |source| SocketError::Socket { path: path.clone(), source };
        let aside = format!(".{name}.new");
        match std::fs::remove_file(place.path.join(&aside)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(place.reach(&aside)).map_err(failed)?;
        // From here on it goes again, whatever fails.
        let mut file = SocketFile::at(place.path.join(&aside)).map_err(failed)?;
        std::fs::set_permissions(&file.path, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        std::fs::rename(&file.path, &path).map_err(failed)?;
        file.path = path;
        Ok(Self { listener, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// What accepts connections, and what removes the socket when it is dropped.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// A socket's file. Dropping it removes the file, if it is still the same.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: PathBuf) -> io::Result<Self> {
        let found = path.symlink_metadata()?;
        Ok(Self { identity: (found.dev(), found.ino()), path })
    }

    /// Whether it is where it was made.
    pub fn is_there(&self) -> bool {
        let found = self.path.symlink_metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    /// Where it was made.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!("{} stays: {error}", self.path.display());
        }
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// The path of a socket, or if that is too long one by way of its folder, which is open.
fn short(path: &Path, folder: &File, name: &OsStr) -> PathBuf {
    let whole = path.join(name);
    if whole.as_os_str().as_bytes().len() < PATH_MAX {
        return whole;
    }
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

/// Connects, if that can be had at once.
fn connect_now(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Connects to a socket, however long its path is. Waits up to `limit` while its backlog is full.
///
/// # Errors
/// The system's: nobody listens, there is no such socket, or it is out of reach.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::NotFound.into());
    };
    let long = path.as_os_str().as_bytes().len() >= PATH_MAX;
    // Held until it is connected.
    let folder = if long { Some(open_folder(parent)?) } else { None };
    let path = folder.as_ref().map_or_else(|| path.to_owned(), |folder| short(parent, folder, name));
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux takes this for the time to connect as well.
    socket.set_write_timeout(Some(limit))?;
    socket.connect(&SockAddr::unix(&path)?)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn place(folder: &Path) -> Place {
        Place::open(&[folder.join("torrentfs")], uid()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_socket_is_its_users_alone_and_goes_with_its_mount() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let bound = Bound::bind(&place, 42).unwrap();
        let path = bound.path().to_owned();
        assert_eq!(path, dir.path().join("torrentfs/42.sock"));
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        connect(&path, SECOND).unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
        drop(bound);
        assert!(!path.exists());
        assert_eq!(connect(&path, SECOND).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_dead_ones_socket_is_replaced_and_a_live_ones_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let live = Bound::bind(&place, 7).unwrap();
        for pid in [8, 9] {
            // Left as by a kill.
            let (listener, file) = Bound::bind(&place, pid).unwrap().into_parts();
            drop(listener);
            std::mem::forget(file);
        }
        let other = dir.path().join("torrentfs/notes.txt");
        std::fs::write(&other, b"x").unwrap();
        let ours = Bound::bind(&place, 8).unwrap();
        assert_eq!(ours.path(), dir.path().join("torrentfs/8.sock"), "replaced");
        connect(ours.path(), SECOND).unwrap();
        assert!(!dir.path().join("torrentfs/9.sock").exists(), "swept");
        connect(live.path(), SECOND).unwrap();
        assert!(other.exists());
        // Another process of the same number.
        let second = Bound::bind(&place, 7).unwrap();
        assert_eq!(second.path(), dir.path().join("torrentfs/7-1.sock"));
        connect(live.path(), SECOND).unwrap();
        connect(second.path(), SECOND).unwrap();
    }

    #[test]
    fn nobody_removes_a_socket_while_another_makes_his() {
        let dir = tempfile::tempdir().unwrap();
        let own = place(dir.path());
        let (listener, file) = Bound::bind(&own, 8).unwrap().into_parts();
        drop(listener);
        std::mem::forget(file);
        let dead = dir.path().join("torrentfs/8.sock");
        let other = place(dir.path());
        let locked = own.lock().unwrap();
        let made = std::thread::spawn(move || Bound::bind(&other, 9));
        // It is waited for: nothing changes until the lock is free, or a second has passed.
        let until = Instant::now() + LOCKED / 4;
        while Instant::now() < until {
            assert!(dead.exists() || Instant::now() > until, "removed in spite of the lock");
            std::thread::sleep(TRY);
        }
        drop(locked);
        drop(made.join().unwrap().unwrap());
        assert!(!dead.exists());
        // Who was stopped with the lock in his hands doesn't keep the others out.
        let _stopped = own.lock().unwrap();
        drop(Bound::bind(&own, 9).unwrap());
    }

    #[test]
    fn what_took_its_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::bind(&place(dir.path()), 1).unwrap();
        let path = bound.path().to_owned();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"another").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_path_may_be_longer_than_a_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let bound = Bound::bind(&place(&deep), 5).unwrap();
        assert!(bound.path().as_os_str().len() > PATH_MAX);
        connect(bound.path(), SECOND).unwrap();
        // The sweep knows that it lives.
        let second = Bound::bind(&place(&deep), 6).unwrap();
        connect(bound.path(), SECOND).unwrap();
        drop((bound, second));
        assert_eq!(std::fs::read_dir(deep.join("torrentfs")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_trusted_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::fs::write(at("file"), b"").unwrap();
        std::fs::create_dir(at("open")).unwrap();
        std::fs::set_permissions(at("open"), Permissions::from_mode(0o777)).unwrap();
        for name in ["link", "file", "missing/folder"] {
            assert!(Place::open(&[at(name)], uid()).is_err(), "{name}");
        }
        let why = Place::open(&[at("real")], uid() + 1).unwrap_err().to_string();
        assert!(why.contains("another user"), "{why}");
        // The next one is taken instead, and what is too open is closed.
        let place = Place::open(&[at("link"), at("file"), at("open")], uid()).unwrap();
        assert_eq!((place.path.clone(), mode(&place.path)), (at("open"), 0o700));
        assert!(Place::open(&[], uid()).is_err());
    }
}
