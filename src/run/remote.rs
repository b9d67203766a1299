//! The commands that talk to a running mount: `status`, `add`, `remove`, `unmount`, `prefetch`, `limit`,
//! `debug`.
//!
//! Each finds its mount, asks it over its socket ([`super::reach`]) and says what came of it. All block, with bounds,
//! on the calling thread: Ctrl-C ends them as it ends any small program, and nothing is left behind.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use torrentfs_fs::mountinfo;

use super::reach::{self, Connection, Found, Silence, refused};
use super::start::print;
use crate::cli::exit::{Exit, Failure};
use crate::cli::inspect;
use crate::cli::remote::{self as say, Remote};
use crate::cli::status::{self, Look};
use crate::cli::terminal::{self, Screen};
use crate::client::sources;
use crate::config::parse_source;
use crate::control::message::{Added, Ending, Limited, NewTorrent, Prefetched, Removed, Report, Request};
use crate::control::status::Status;
use crate::metainfo::Source;
use crate::sync::timeouts;

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// Does what was asked for.
///
/// # Errors
/// For the user: [`Exit::MountPoint`] when no mount is there, [`Exit::Control`] when it can't be talked to,
/// [`Exit::BadInput`] for what it doesn't have or can't take, [`Exit::Shutdown`] when it doesn't end.
pub fn run(remote: &Remote) -> Result<Exit, Failure> {
    match remote {
        Remote::Status { mountpoint, json, watch } => show(mountpoint.as_deref(), *json, *watch),
        Remote::Add { mountpoint, sources } => {
            let mut connection = Talk::to(reach::find(mountpoint)?)?;
            each(sources, |given| {
                let shown = given.to_string_lossy();
                let new = match parse_source(given).map_err(|why| Failure::source(&shown, why))? {
                    Source::File(path) => {
                        let bytes = sources::read(&path).map_err(|e| inspect::refused(&shown, &e))?;
                        NewTorrent::File { name: shown.clone().into_owned(), bytes }
                    }
                    _ => NewTorrent::Source(shown.clone().into_owned()),
                };
                let added: Added = connection.ask(&shown, Request::Add(new), timeouts::CONTROL_ADD)?;
                Ok(say::added(&added))
            })
        }
        Remote::Remove { mountpoint, torrents, delete_data } => {
            let mut connection = Talk::to(reach::find(mountpoint)?)?;
            each(torrents, |torrent| {
                let request = Request::Remove { torrent: torrent.clone(), delete_data: *delete_data };
                let removed: Removed = connection.ask(torrent, request, timeouts::CONTROL_REMOVE)?;
                Ok(say::removed(&removed))
            })
        }
        Remote::Limit { mountpoint, torrent, download, upload } => {
            let what = torrent.clone().unwrap_or_else(|| mountpoint.to_string_lossy().into_owned());
            let request = Request::Limit { torrent: torrent.clone(), download: *download, upload: *upload };
            let told: Limited =
                Talk::to(reach::find(mountpoint)?)?.ask(&what, request, timeouts::CONTROL_ANSWER)?;
            print(&say::limited(&told))?;
            Ok(Exit::Ok)
        }
        Remote::Unmount { mountpoint } => unmount(mountpoint),
        Remote::Debug { mountpoint } => {
            let shown = mountpoint.to_string_lossy();
            let told: Report =
                Talk::to(reach::find(mountpoint)?)?.ask(&shown, Request::Debug, timeouts::CONTROL_ANSWER)?;
            print(&say::report(&told))?;
            Ok(Exit::Ok)
        }
        Remote::Prefetch { paths, off } => each(paths, |given| {
            let (found, path) = reach::find_above(given)?;
            let shown = given.to_string_lossy();
            let request = Request::Prefetch { path, on: !off };
            let told: Prefetched = Talk::to(found)?.ask(&shown, request, timeouts::CONTROL_ANSWER)?;
            Ok(say::prefetched(&shown, &told, *off))
        }),
    }
}

/// Does something with each of several things, and prints what came of it; failures are said, and don't keep the
/// others. The first one's code is what it ends with.
///
/// # Errors
/// The output can't be written.
fn each<T>(all: &[T], mut work: impl FnMut(&T) -> Result<String, Failure>) -> Result<Exit, Failure> {
    let mut exit = Exit::Ok;
    for one in all {
        match work(one) {
            Ok(said) => print(&said)?,
            Err(failure) => {
                // Nobody is left to tell when that fails.
                let _ = writeln!(io::stderr(), "{failure}");
                if exit == Exit::Ok {
                    exit = failure.exit();
                }
            }
        }
    }
    Ok(exit)
}

/// A connection whose errors are for the user.
struct Talk {
    found: Found,
    connection: Connection,
}

impl Talk {
    fn to(found: Found) -> Result<Self, Failure> {
        match Connection::to(&found) {
            Ok(connection) => Ok(Self { found, connection }),
            Err(silence) => Err(silence.failure(&found)),
        }
    }

    /// Asks about `what`. The mount has `limit` by its own clock; what goes beyond that is its silence.
    fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        what: &str,
        request: Request,
        limit: Duration,
    ) -> Result<T, Failure> {
        let answer = self.connection.ask(request, limit + timeouts::CONTROL_ANSWER);
        answer.map_err(|silence| silence.failure(&self.found))?.map_err(|refusal| refused(what, refusal))
    }

    /// Its status; `None` when it was there `before` and has ended since. A connection that was closed tells nothing:
    /// the mount closes those that are silent for long, as that of who was stopped for a while.
    ///
    /// # Errors
    /// For the user.
    fn status(&mut self, before: bool) -> Result<Option<Status>, Failure> {
        let mut again = before;
        loop {
            let silence = match self.connection.ask::<Status>(Request::Status, timeouts::CONTROL_ANSWER) {
                Ok(answer) => return answer.map(Some).map_err(|refusal| refused("status", refusal)),
                Err(Silence::Gone) if std::mem::take(&mut again) => match Connection::to(&self.found) {
                    Ok(connection) => {
                        self.connection = connection;
                        continue;
                    }
                    Err(silence) => silence,
                },
                Err(silence) => silence,
            };
            return match silence {
                Silence::Gone | Silence::Missing if before => Ok(None),
                silence => Err(silence.failure(&self.found)),
            };
        }
    }
}

/// Ends a mount and waits until its process is gone.
fn unmount(mountpoint: &Path) -> Result<Exit, Failure> {
    let found = reach::find(mountpoint)?;
    let at = found.mountpoint.clone().unwrap_or_else(|| mountpoint.to_owned());
    let before = mountinfo::at(&at).map(|entry| entry.minor);
    let mut talk = Talk::to(found)?;
    let what = at.display().to_string();
    let ending: Ending = talk.ask(&what, Request::Unmount, timeouts::CONTROL_ANSWER)?;
    let limit = Duration::from_millis(ending.within_ms).saturating_add(timeouts::CONTROL_END);
    let process = ending.pid;
    let process = talk.connection.process().unwrap_or(process);
    if !talk.connection.wait_end(limit) {
        let why = format!("process {process} hasn't ended within {} s", limit.as_secs());
        return Err(Failure::new(Exit::Shutdown, at.display(), why).hint(format!(
            "its log says what it waits for; \"kill -9 {process}\" ends it whatever it does"
        )));
    }
    let after = mountinfo::at(&at).map(|entry| entry.minor);
    if before.is_some() && before == after {
        return Err(Failure::new(Exit::Shutdown, at.display(), "its program has ended, and left the mount")
            .hint(format!("take it away with \"umount -l {}\"", at.display())));
    }
    print(&format!("unmounted  {}\n", terminal::clean(&what)))?;
    Ok(Exit::Ok)
}

/// Shows the mount at a place, or all of this user; with `watch` until it has ended.
fn show(mountpoint: Option<&Path>, json: bool, watch: bool) -> Result<Exit, Failure> {
    let mut one = mountpoint.map(|path| Talk::to(reach::find(path)?)).transpose()?;
    let in_place = watch && !json && io::stdout().is_terminal();
    let mut screen = Screen::default();
    let mut tick = Instant::now();
    let mut first = true;
    loop {
        let mounts = match &mut one {
            Some(talk) => match talk.status(!first)? {
                Some(status) => vec![status],
                None => {
                    let _ = writeln!(io::stderr(), "torrentfs: the mount has ended");
                    return Ok(Exit::Ok);
                }
            },
            None => ask_all(),
        };
        let size = terminal::size_of(&io::stdout());
        let text = if json {
            status::json(&mounts, one.is_some()).into_bytes()
        } else {
            // The last column stays free: writing there wraps on some terminals.
            let width = size.map(|size| size.columns.saturating_sub(1));
            let lines = status::lines(&mounts, Look { width, bars: watch });
            match size {
                Some(size) if in_place => screen.redraw(lines, size),
                _ if watch && !first => format!("\n{}\n", lines.join("\n")).into_bytes(),
                _ => format!("{}\n", lines.join("\n")).into_bytes(),
            }
        };
        if !write(&text)? || !watch {
            return Ok(Exit::Ok);
        }
        first = false;
        tick += WATCH;
        // After a pause of the machine or of the terminal, not all that was missed at once.
        tick = tick.max(Instant::now());
        std::thread::sleep(tick.saturating_duration_since(Instant::now()));
    }
}

/// All mounts of this user that answer; what is wrong with others is said.
fn ask_all() -> Vec<Status> {
    let all = reach::all();
    let ask = |found: &Found| {
        let answer = Connection::to(found)?.ask::<Status>(Request::Status, timeouts::CONTROL_ANSWER)?;
        answer.map_err(|refusal| Silence::Other(refused("status", refusal)))
    };
    let answers = reach::ask_each(&all, ask);
    let mut mounts = Vec::new();
    for (_, answer) in answers {
        match answer {
            Ok(status) => mounts.push(status),
            Err(Silence::Gone | Silence::Missing) => {}
            Err(Silence::Other(failure)) => _ = writeln!(io::stderr(), "{failure}"),
        }
    }
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    mounts
}

/// Writes to standard output; false when nobody reads it any more.
///
/// # Errors
/// It can't be written.
fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(Failure::new(Exit::Internal, "can't write the output", why)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::control::message::{Granted, answer};

    /// Answers once on each of so many connections, and closes it; then it ends.
    fn mount(path: &Path, connections: u32) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        let path = path.to_owned();
        let answers = move || {
            for pid in 1..=connections {
                let (mut stream, _) = listener.accept().unwrap();
                if pid == connections {
                    std::fs::remove_file(&path).unwrap();
                }
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                let status = Status { pid, ..Status::default() };
                stream.write_all(&answer(None, &Ok(Granted::Status(Box::new(status))))).unwrap();
            }
        };
        std::thread::Builder::new().spawn(answers).unwrap()
    }

    #[test]
    fn who_watches_is_not_told_of_an_end_that_was_none() {
        let folder = tempfile::tempdir().unwrap();
        for mountpoint in [None, Some(folder.path().to_owned())] {
            let socket = folder.path().join("1.sock");
            let mount = mount(&socket, 3);
            let mut talk = Talk::to(Found { mountpoint, socket }).unwrap();
            for pid in 1..=3 {
                // Each finds the connection of the one before closed.
                assert_eq!(talk.status(pid > 1).unwrap().unwrap().pid, pid);
            }
            mount.join().unwrap();
            assert!(talk.status(true).unwrap().is_none());
            assert!(talk.status(false).is_err(), "and who hasn't seen it is told why");
        }
    }
}
