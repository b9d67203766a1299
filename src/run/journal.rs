//! Where log lines of a mount in the background go when no `--log-file` was named: to the system's log, and where there
//! is none, into a file of the cache folder.
//!
//! **Flow.** Each line is a datagram to `/dev/log`, in the format that all system logs understand (RFC 3164, without the
//! time: whoever takes it has his own clock). What can't be sent there goes into the file [`LOGS`] names; when that is
//! full it takes the place of the one before, so that it has a bound.
//!
//! A system log that doesn't read is waited for no longer than [`WAIT`], and then left alone for [`LEAVE`].
//!
//! **Not here.** Who writes, and what is kept for it meanwhile ([`crate::cli::terminal`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::cli::terminal::Sink;
use crate::storage::catalog::LOGS;

/// The system's log, on every Unix.
const SYSTEM: &str = "/dev/log";
/// The facility "system daemons" (RFC 3164, 4.1.1).
const DAEMON: u8 = 3 << 3;
/// A line is cut there, in bytes: what usual system logs take at most.
const LINE_MAX: usize = 8 << 10;
/// How long a system log may not read: it may be busy.
const WAIT: Duration = Duration::from_millis(100);
/// For how long nothing is sent to one that didn't read.
const LEAVE: Duration = Duration::from_secs(5);
/// Bytes of a file: enough to see what happened, and the two together are little beside any cache.
const FILE_MAX: u64 = 1 << 20;

/// See the module's text.
pub struct Journal {
    system: PathBuf,
    socket: Option<UnixDatagram>,
    /// Until then the system's log is left alone.
    leave: Option<Instant>,
    folder: PathBuf,
    /// The file, and its length; opened when it is needed.
    file: Option<(File, u64)>,
    max: u64,
}

impl Journal {
    /// With this cache folder.
    pub fn new(cache: &Path) -> Self {
        Self::at(Path::new(SYSTEM), cache, FILE_MAX)
    }

    fn at(system: &Path, folder: &Path, max: u64) -> Self {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(WAIT))?;
            Ok(socket)
        });
        Self {
            system: system.to_owned(),
            socket: socket.ok(),
            leave: None,
            folder: folder.to_owned(),
            file: None,
            max,
        }
    }

    /// Whether the system's log has taken a line. Waits up to [`WAIT`].
    fn send(&mut self, level: Level, line: &[u8]) -> bool {
        let Some(socket) = &self.socket else { return false };
        if self.leave.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let priority = DAEMON + severity(level);
        let mut datagram = format!("<{priority}>torrentfs[{}]: ", std::process::id()).into_bytes();
        datagram.extend_from_slice(without_time(line));
        datagram.truncate(LINE_MAX);
        match socket.send_to(&datagram, &self.system) {
            Ok(_) => true,
            Err(error) => {
                let full = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                self.leave = full.then(|| Instant::now() + LEAVE);
                false
            }
        }
    }

    /// Adds a line to the file.
    fn keep(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.folder.join(LOGS[0]);
        if self.file.as_ref().is_some_and(|(_, len)| len + line.len() as u64 >= self.max) {
            self.file = None;
            std::fs::rename(&path, self.folder.join(LOGS[1]))?;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&path)?;
            let len = file.metadata()?.len();
            self.file = Some((file, len));
        }
        if let Some((file, len)) = &mut self.file {
            file.write_all(&[line, b"\n"].concat())?;
            *len += line.len() as u64 + 1;
        }
        Ok(())
    }
}

impl Sink for Journal {
    fn take(&mut self, level: Level, event: &[u8]) {
        for line in event.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if !self.send(level, line) && self.keep(line).is_err() {
                // Nobody is left to tell. Perhaps it can be opened anew.
                self.file = None;
            }
        }
    }
}

/// As RFC 3164 counts them.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The line without the time in front, if there is one.
fn without_time(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    match line.split_at_checked(end) {
        Some((time, rest)) if time.first().is_some_and(u8::is_ascii_digit) && time.ends_with(b"Z") => {
            rest.trim_ascii_start()
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn read(folder: &Path, name: &str) -> String {
        std::fs::read_to_string(folder.join(name)).unwrap_or_default()
    }

    #[test]
    fn lines_go_to_the_system_and_without_it_into_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("system");
        let mut journal = Journal::at(&system, dir.path(), FILE_MAX);
        let early = b"2026-01-02T03:04:05.678901Z  INFO nobody listens\n";
        journal.take(Level::INFO, early);
        assert_eq!(read(dir.path(), LOGS[0]).as_bytes(), early);
        let log = UnixDatagram::bind(&system).unwrap();
        log.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2 * LINE_MAX];
        let pid = std::process::id();
        let rows: [(Level, &str, &[&str]); 5] = [
            (Level::ERROR, "2026-01-02T03:04:05.678901Z ERROR bad\n", &["<27>torrentfs[PID]: ERROR bad"]),
            (Level::WARN, "no time\n", &["<28>torrentfs[PID]: no time"]),
            (Level::INFO, "4 of 5Z\n", &["<30>torrentfs[PID]: 4 of 5Z"]),
            (
                Level::INFO,
                "2026-01-02T03:04:05Z  INFO two\n    lines\n",
                &["<30>torrentfs[PID]: INFO two", "<30>torrentfs[PID]:     lines"],
            ),
            (Level::TRACE, "{\"level\":\"TRACE\"}\n", &["<31>torrentfs[PID]: {\"level\":\"TRACE\"}"]),
        ];
        for (level, event, want) in rows {
            journal.take(level, event.as_bytes());
            for line in want {
                let len = log.recv(&mut buffer).unwrap();
                let got = String::from_utf8_lossy(&buffer[..len]).into_owned();
                assert_eq!(got, line.replace("PID", &pid.to_string()));
            }
        }
        journal.take(Level::INFO, &[b'x'; 3 * LINE_MAX]);
        assert_eq!(log.recv(&mut buffer).unwrap(), LINE_MAX);
        assert_eq!(read(dir.path(), LOGS[0]).lines().count(), 1, "nothing of that is in the file");
    }

    #[test]
    fn a_system_log_that_does_not_read_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("system");
        let _deaf = UnixDatagram::bind(&system).unwrap();
        let mut journal = Journal::at(&system, dir.path(), FILE_MAX);
        let mut sent = 0;
        // As many as the kernel keeps for it.
        while journal.leave.is_none() {
            journal.take(Level::INFO, format!("line {sent}\n").as_bytes());
            sent += 1;
            assert!(sent < 100_000);
        }
        let until = journal.leave;
        for n in 0..1000 {
            journal.take(Level::INFO, format!("more {n}\n").as_bytes());
        }
        assert_eq!(journal.leave, until, "it wasn't tried again");
        assert_eq!(read(dir.path(), LOGS[0]).lines().count(), 1001);
    }

    #[test]
    fn the_files_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::at(&dir.path().join("none"), dir.path(), 1000);
        for n in 0..300 {
            journal.take(Level::INFO, format!("this is line {n:03}\n").as_bytes());
        }
        let (last, before) = (read(dir.path(), LOGS[0]), read(dir.path(), LOGS[1]));
        assert!(
            last.len() <= 1000 && before.len() <= 1000 && before.len() > 900,
            "{} {}",
            last.len(),
            before.len()
        );
        let both = before + &last;
        assert!(both.ends_with("line 299\n") && both.lines().count() > 50, "{both}");
        // Another one goes on where this one ended.
        Journal::at(&dir.path().join("none"), dir.path(), 1000).take(Level::INFO, b"again\n");
        assert!(read(dir.path(), LOGS[0]).ends_with("line 299\nagain\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
