//! The client's side of the control socket: finding running mounts, and asking one.
//!
//! **Goal.** Nothing here hangs, whatever a mount does. What may block in the kernel (a stopped program answers no
//! `getxattr`) is asked on a thread of its own, and each answer waited for with a bound. Every failure says which it
//! is: no mount, somebody else's, a dead one, one that doesn't answer.
//!
//! **Flow.** A path is taken up to the root of its mount, whose attribute `user.torrentfs.socket` names the socket
//! ([`find`], [`find_above`]); without a path, the sockets themselves are looked for ([`all`]). A mount that doesn't
//! answer may have a socket that does: then all are asked whose they are. After that [`Connection::to`] and
//! [`Connection::ask`].
//!
//! **Not here.** What is asked and shown ([`super::remote`]), the mount's side ([`super::control`]).

use std::ffi::{CString, OsString};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::de::DeserializeOwned;
use torrentfs_fs::mountinfo::{self, MountEntry, OUR_KIND};

use super::control::{LOOK, socket};
use crate::cli::exit::{Exit, Failure};
use crate::control::lines::{Lines, Next};
use crate::control::message::{self, Call, Code, Refusal, Request, Who};
use crate::control::{ANSWER_MAX, place};
use crate::sync::timeouts;

/// The attribute of a mount's root that names its socket.
const ATTRIBUTE: &str = "user.torrentfs.socket";
/// The longest value of an attribute that is taken, in bytes: a path has no more.
const PATH_BYTES: usize = 4096;
/// Read from a connection in one go, in bytes.
const CHUNK: usize = 64 << 10;

/// A running mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its mount point, absolute and without links; `None` when it was found by its socket.
    pub mountpoint: Option<PathBuf>,
    /// Its socket.
    pub socket: PathBuf,
}

impl Found {
    /// The process that the socket is named after.
    fn process(&self) -> Option<u32> {
        place::process(self.socket.file_name()?.to_str()?)
    }

    /// What to call it in messages.
    fn name(&self) -> String {
        match &self.mountpoint {
            Some(path) => format!("the mount at {}", path.display()),
            None => format!("the mount behind {}", self.socket.display()),
        }
    }
}

/// The mount at a mount point. Waits up to [`timeouts::CONTROL_ANSWER`], and where the mount says nothing a little longer
/// for the sockets.
///
/// # Errors
/// For the user: nothing of torrentfs is mounted there, it is dead, or another user's, or it doesn't answer.
pub fn find(mountpoint: &Path) -> Result<Found, Failure> {
    let given = mountpoint.to_owned();
    let found = on_thread(move || {
        let path = std::fs::canonicalize(&given)?;
        let socket = attribute(&path);
        Ok((path, socket))
    });
    let (path, socket) = match found {
        None => return ask_around(mountpoint),
        Some(Err(error)) => return Err(unreachable_path(mountpoint, &error)),
        Some(Ok(found)) => found,
    };
    match socket {
        Ok(Some(socket)) => Ok(Found { mountpoint: Some(path), socket }),
        Ok(None) => Err(not_a_mount(mountpoint, &path)),
        Err(error) => Err(refused_attribute(mountpoint, &error)),
    }
}

/// The mount in which a file or folder lies, and its path there, `/` between names; empty for the mount's root. Waits
/// up to [`timeouts::CONTROL_ANSWER`].
///
/// # Errors
/// As [`find`], and when it lies in no mount of torrentfs.
pub fn find_above(path: &Path) -> Result<(Found, String), Failure> {
    let given = path.to_owned();
    let found = on_thread(move || {
        let whole = std::fs::canonicalize(&given)?;
        for above in whole.ancestors() {
            let socket = match attribute(above) {
                // A folder that may be passed through and not looked into says nothing of a mount.
                Err(error) if is_forbidden(&error) && !is_mounted(above) => None,
                other => other?,
            };
            if let Some(socket) = socket {
                let below = whole.strip_prefix(above).map_err(io::Error::other)?.to_owned();
                return Ok(Some((Found { mountpoint: Some(above.to_owned()), socket }, below)));
            }
        }
        Ok(None)
    });
    match found {
        None => Err(silent(path, &[])),
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => {
            Err(Failure::new(Exit::BadInput, path.display(), "there is no such file or folder")
                .hint("name one as \"ls\" shows it in the mount"))
        }
        Some(Err(error)) => Err(refused_attribute(path, &error)),
        Some(Ok(None)) => {
            Err(Failure::new(Exit::MountPoint, path.display(), "it lies in no mount of torrentfs")
                .hint("\"torrentfs status\" shows what is mounted"))
        }
        Some(Ok(Some((found, below)))) => match below.to_str() {
            Some(below) => Ok((found, below.to_owned())),
            None => Err(Failure::new(Exit::BadInput, path.display(), "names in a mount are UTF-8")),
        },
    }
}

/// All sockets of this user, of dead mounts as well. Touches no mount.
pub fn all() -> Vec<Found> {
    let uid = nix::unistd::geteuid().as_raw();
    let folders = place::folders(uid, |name| std::env::var_os(name));
    let mut found = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(place::is_socket) {
                found.push(Found { mountpoint: None, socket: entry.path() });
            }
        }
    }
    found.sort_by(|a, b| a.socket.cmp(&b.socket));
    found
}

/// Asks each of these mounts, all at once: one that is stuck takes its time. Waits as long as the slowest.
pub fn ask_each<T: Send>(
    all: &[Found],
    ask: impl Fn(&Found) -> Result<T, Silence> + Sync,
) -> Vec<(&Found, Result<T, Silence>)> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .iter()
            .map(|found| {
                let thread = std::thread::Builder::new().name("ask mount".into());
                thread.spawn_scoped(scope, move || (found, ask(found)))
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.ok()?.join().ok()).collect()
    })
}

/// The mount at a mount point that doesn't answer, by its socket.
///
/// # Errors
/// For the user: no socket says that it is that mount's.
fn ask_around(mountpoint: &Path) -> Result<Found, Failure> {
    let given = mountpoint.to_owned();
    let place = on_thread(move || untouched(&given)).and_then(Result::ok);
    let place = place.or_else(|| std::path::absolute(mountpoint).ok()).unwrap_or_default();
    let all = all();
    let mut mute = Vec::new();
    for (found, said) in ask_each(&all, |found| who(found, timeouts::CONTROL_WHO)) {
        match said {
            Ok(who) if who.mountpoint == place.to_string_lossy() => {
                return Ok(Found { mountpoint: Some(place), socket: found.socket.clone() });
            }
            Ok(_) | Err(Silence::Gone | Silence::Missing) => {}
            Err(Silence::Other(_)) => mute.extend(found.process()),
        }
    }
    Err(silent(mountpoint, &mute))
}

/// Which mount has this socket.
fn who(found: &Found, limit: Duration) -> Result<Who, Silence> {
    Connection::within(found, limit)?.ask(Request::Who, limit)?.map_err(|refusal| {
        // One that is older than the question answers all the same.
        Silence::Other(refused(found.socket.display(), refusal))
    })
}

/// The path without links, of what is mounted there if it is a mount point: that isn't asked for anything.
fn untouched(path: &Path) -> io::Result<PathBuf> {
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    std::fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// A connection to a mount.
#[derive(Debug)]
pub struct Connection {
    found: Found,
    stream: UnixStream,
    lines: Lines,
    next: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Silence {
    /// The program behind the socket is gone.
    Gone,
    /// The mount answered, and its socket isn't there.
    Missing,
    /// Anything else, for the user.
    Other(Failure),
}

impl Silence {
    /// For the user; `found` is whom it is about.
    pub fn failure(self, found: &Found) -> Failure {
        match self {
            Self::Missing if found.mountpoint.as_deref().is_some_and(is_mounted) => missing(found),
            Self::Gone | Self::Missing => {
                let failure = Failure::new(Exit::Control, found.name(), "its program isn't there any more");
                match &found.mountpoint {
                    Some(path) => failure.hint(format!(
                        "a mount without a program is cleared by mounting there again, or with \"umount -l {}\"",
                        path.display()
                    )),
                    None => failure,
                }
            }
            Self::Other(failure) => failure,
        }
    }
}

impl Connection {
    /// Connects. Waits up to [`timeouts::CONTROL_ANSWER`].
    ///
    /// # Errors
    /// See [`Silence`].
    pub fn to(found: &Found) -> Result<Self, Silence> {
        Self::within(found, timeouts::CONTROL_ANSWER)
    }

    fn within(found: &Found, limit: Duration) -> Result<Self, Silence> {
        let refuse = |why: String| {
            let failure = Failure::new(Exit::Control, found.name(), why);
            Silence::Other(failure.hint("run this as the user who mounted it, or as root"))
        };
        let uid = nix::unistd::geteuid().as_raw();
        match found.socket.symlink_metadata() {
            Ok(socket) if !socket.file_type().is_socket() => {
                return Err(refuse(format!("{} is no socket", found.socket.display())));
            }
            // Whoever has a mount can write any path into its attribute: nothing is told to strangers.
            Ok(socket) if uid != 0 && ![uid, 0].contains(&socket.uid()) => {
                return Err(refuse("it is another user's".into()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(if found.mountpoint.is_some() { Silence::Missing } else { Silence::Gone });
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(refuse("it is another user's".into()));
            }
            Err(error) => return Err(refuse(error.to_string())),
        }
        match socket::connect(&found.socket, limit) {
            Ok(stream) => {
                let connection =
                    Self { found: found.clone(), stream, lines: Lines::new(ANSWER_MAX), next: 1 };
                // The path may mean another socket than a moment ago; who listens can't be feigned.
                match connection.peer() {
                    Some((_, owner)) if uid == 0 || [uid, 0].contains(&owner) => Ok(connection),
                    Some(_) => Err(refuse("it is another user's".into())),
                    None => Err(refuse("who listens there can't be told".into())),
                }
            }
            Err(error) => Err(match error.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::NotFound => Silence::Gone,
                ErrorKind::PermissionDenied => refuse("it is another user's".into()),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    Silence::Other(no_answer(found, limit, found.process()))
                }
                _ => refuse(error.to_string()),
            }),
        }
    }

    /// The process and the user who listen at the other end, as the kernel knows them.
    fn peer(&self) -> Option<(u32, u32)> {
        let peer = getsockopt(&self.stream, PeerCredentials).ok()?;
        Some((u32::try_from(peer.pid()).ok()?, peer.uid()))
    }

    /// The process that has the mount, as it is called here: in another namespace it has another number. `None` when
    /// it has none here.
    pub fn process(&self) -> Option<u32> {
        self.peer().map(|(process, _)| process).filter(|process| *process != 0)
    }

    fn no_answer(&self) -> Failure {
        no_answer(&self.found, timeouts::CONTROL_ANSWER, self.process())
    }

    /// Asks, and waits for the answer up to `limit`.
    ///
    /// # Errors
    /// See [`Silence`]; within, what the mount refused.
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        request: Request,
        limit: Duration,
    ) -> Result<Result<T, Refusal>, Silence> {
        let until = Instant::now() + limit;
        let id = self.next;
        self.next += 1;
        let line = Call { id: Some(id), request }.line();
        let sent = self.stream.set_write_timeout(Some(limit)).and_then(|()| self.stream.write_all(&line));
        // One that doesn't take it may have said why before it closed.
        if sent.is_err_and(|error| is_late(&error)) {
            return Err(Silence::Other(self.no_answer()));
        }
        match self.line(until)? {
            Some(line) => message::heard(&line).map_err(|bad| {
                let failure = Failure::new(Exit::Control, self.found.name(), bad);
                Silence::Other(failure.hint("use the torrentfs that made the mount"))
            }),
            None => Err(Silence::Gone),
        }
    }

    /// Waits until the other side has closed the connection, up to `limit`; true when it has.
    pub fn wait_end(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            match self.read(until) {
                Ok(0) => return true,
                Ok(_) => while self.lines.next() != Next::More {},
                Err(error) => return !is_late(&error),
            }
        }
    }

    /// The next line; `None` when the connection ended.
    fn line(&mut self, until: Instant) -> Result<Option<Vec<u8>>, Silence> {
        loop {
            match self.lines.next() {
                Next::Line(line) => return Ok(Some(line)),
                Next::TooLong => {
                    let failure = Failure::new(Exit::Control, self.found.name(), "its answer has no end");
                    return Err(Silence::Other(failure));
                }
                Next::More => {}
            }
            match self.read(until) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_late(&error) => return Err(Silence::Other(self.no_answer())),
                // As a program that was killed leaves it.
                Err(_) => return Ok(None),
            }
        }
    }

    /// Reads what is there, until `until` at most.
    fn read(&mut self, until: Instant) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => {
                    let count = read?;
                    self.lines.push(chunk.get(..count).unwrap_or_default());
                    return Ok(count);
                }
            }
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn no_answer(found: &Found, limit: Duration, process: Option<u32>) -> Failure {
    let why = format!("it didn't answer within {} s", limit.as_secs());
    let process = process.map_or_else(|| "PID".to_owned(), |process| process.to_string());
    Failure::new(Exit::Control, found.name(), why).hint(format!(
        "its program may be stopped or stuck; \"kill -USR1 {process}\" has it log what it is at, \"kill {process}\" and \
         \"umount -l\" end it"
    ))
}

/// The mount answers, and its socket has vanished.
fn missing(found: &Found) -> Failure {
    let process = found.process().map_or_else(|| "PID".to_owned(), |process| process.to_string());
    let place = found.mountpoint.as_deref().unwrap_or(Path::new("DIR")).display().to_string();
    let why = format!("its control socket {} isn't there any more", found.socket.display());
    Failure::new(Exit::Control, found.name(), why).hint(format!(
        "it makes another within {} s: try again; \"umount {place}\" or \"kill {process}\" ends it without",
        LOOK.as_secs()
    ))
}

/// What a mount refused, for the user; `what` is what was asked for.
pub fn refused(what: impl std::fmt::Display, refusal: Refusal) -> Failure {
    let exit = match refusal.code {
        Code::NotFound | Code::Ambiguous | Code::BadSource => Exit::BadInput,
        _ => Exit::Control,
    };
    let failure = Failure::new(exit, what, refusal.message);
    match refusal.hint {
        Some(hint) => failure.hint(crate::cli::terminal::clean(&hint).into_owned()),
        None => failure,
    }
}

/// Something is mounted at this path still, or again.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mountinfo::at(mountpoint).is_some_and(|entry| entry.kind == OUR_KIND)
}

/// Runs what may block in the kernel on a thread, and waits for it with a bound; `None` when it takes longer.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Option<io::Result<T>> {
    let (done, answer) = sync_channel(1);
    // Left behind when it hangs: it ends with the process.
    let thread = std::thread::Builder::new().name("look at mount".into()).spawn(move || {
        let _ = done.send(work());
    });
    thread.ok()?;
    answer.recv_timeout(timeouts::CONTROL_ANSWER).ok()
}

/// The socket that a path's attribute names; `None` for a path that has no such attribute.
fn attribute(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(ATTRIBUTE)?;
    let mut value = vec![0u8; PATH_BYTES];
    // SAFETY: two strings that end with NUL, and a buffer of the length told; the call keeps none of them.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(len) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(OsString::from_vec(value).into()))
        }
        Err(_) => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(None),
            error => Err(error),
        },
    }
}

/// Whether a path lies in a mount of torrentfs, as far as that can be told without looking.
fn lies_in_ours(given: &Path) -> bool {
    let absolute = std::path::absolute(given).unwrap_or_default();
    // As far as it can be followed.
    let place = absolute.ancestors().find_map(|above| {
        let real = untouched(above).ok()?;
        Some(real.join(absolute.strip_prefix(above).ok()?))
    });
    listed(&place.unwrap_or(absolute)).is_some_and(|entry| entry.kind == OUR_KIND)
}

/// The mount in the system's list at this path, or above it.
fn listed(path: &Path) -> Option<MountEntry> {
    path.ancestors().find_map(mountinfo::at)
}

/// A mount says nothing; `mute` are the processes whose sockets say nothing either.
fn silent(path: &Path, mute: &[u32]) -> Failure {
    let why = format!("it didn't answer within {} s", timeouts::CONTROL_ANSWER.as_secs());
    let process = match mute {
        [one] => one.to_string(),
        _ => "PID".to_owned(),
    };
    Failure::new(Exit::Control, path.display(), why).hint(format!(
        "the program behind that mount may be stopped or stuck; \"kill -USR1 {process}\" has it log what it is at, \
         \"umount -l\" takes the mount away"
    ))
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

fn unreachable_path(given: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => Failure::new(Exit::MountPoint, given.display(), "there is no such folder")
            .hint("\"torrentfs status\" shows what is mounted"),
        _ => refused_attribute(given, error),
    }
}

fn refused_attribute(given: &Path, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOTCONN) => {
            Failure::new(Exit::MountPoint, given.display(), "a dead mount is there: its program is gone")
                .hint(format!("mount there again, or clear it with \"umount -l {}\"", given.display()))
        }
        _ if is_forbidden(error) && lies_in_ours(given) => {
            Failure::new(Exit::Control, given.display(), "the mount is another user's").hint(
                "run this as the user who mounted it; even root can't look into it without --allow-other",
            )
        }
        _ => Failure::new(Exit::MountPoint, given.display(), error),
    }
}

fn not_a_mount(given: &Path, path: &Path) -> Failure {
    let failure = |why: String| Failure::new(Exit::MountPoint, given.display(), why);
    let list = "\"torrentfs status\" shows what is mounted";
    match listed(path) {
        Some(entry) if entry.kind == OUR_KIND && entry.path == path => {
            failure("the mount there has no control socket".into())
                .hint("its log says why there is none; \"umount\" ends it")
        }
        Some(entry) if entry.kind == OUR_KIND => failure("it is no mount point".into()).hint(format!(
            "it lies in the mount at {}",
            crate::cli::terminal::clean(&entry.path.to_string_lossy())
        )),
        Some(entry) if entry.path == path => {
            failure(format!("what is mounted there ({}) isn't torrentfs's", entry.kind)).hint(list)
        }
        _ => failure("nothing is mounted there by torrentfs".into()).hint(list),
    }
}
