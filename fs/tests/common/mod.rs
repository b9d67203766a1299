//! What the tests of the filesystem share: a mount that is always taken down, and helpers that always end.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use torrentfs_fs::mock::Mock;
use torrentfs_fs::{MountOptions, Mounted, mount, mountinfo};

/// Bound on anything that has to happen; generous, since the machine may be busy.
pub const SOON: Duration = Duration::from_secs(20);
/// Rows that ask for a time get five times as much, for shared machines.
pub const SLACK: u32 = 5;

/// Bytes of a mock's piece.
pub const PIECE: u64 = 64 * 1024;

/// Whether a real mount can be had. Where it can't, the test is reported as skipped by name; in CI it fails.
pub fn can_mount(test: &str) -> bool {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => true,
        Err(error) => lacks(test, &format!("/dev/fuse: {error}")),
    }
}

/// As [`can_mount`], for what only root may do.
pub fn can_mount_as_root(test: &str) -> bool {
    match nix::unistd::geteuid().is_root() {
        true => can_mount(test),
        false => lacks(test, "root"),
    }
}

/// Reports a test as skipped; false. In CI it fails.
pub fn lacks(test: &str, what: &str) -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!in_ci, "{test} needs what must be there in CI: {what}");
    let line = format!("SKIPPED: {test}: {what}\n");
    print!("{line}");
    // Where the whole run counts them; see scripts/test.
    if let Some(path) = std::env::var_os("TORRENTFS_SKIPPED")
        && let Ok(mut list) = File::options().append(true).create(true).open(path)
    {
        let _ = list.write_all(line.as_bytes());
    }
    false
}

/// After this long a test is stuck: its reads are failed, so that it and its helpers come to an end.
const STUCK: Duration = Duration::from_secs(60);

/// A mock under a real mount point. Dropping it fails all reads and unmounts, whatever the test did; so does
/// its watchdog when the test is stuck, if only in a read of its own.
pub struct Bed {
    pub mock: Arc<Mock>,
    mounted: Arc<Mounted>,
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
    folder: tempfile::TempDir,
}

impl Bed {
    pub fn new(mock: Arc<Mock>) -> Self {
        Self::with(mock, |options| options)
    }
    /// With other options than the usual ones.
    pub fn with(mock: Arc<Mock>, change: impl FnOnce(MountOptions) -> MountOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Arc::new(mount(mock.clone(), change(MountOptions::new(folder.path()))).unwrap());
        let (over, is_over) = channel();
        let watched = mounted.clone();
        let watches = move || {
            if is_over.recv_timeout(STUCK) == Err(RecvTimeoutError::Timeout) {
                println!("stuck: all reads are failed");
                watched.fail_reads();
            }
        };
        let watchdog = std::thread::Builder::new().name("watchdog".into()).spawn(watches).unwrap();
        Self { mock, mounted, watchdog: Some((over, watchdog)), folder }
    }
    pub fn mounted(&self) -> &Mounted {
        &self.mounted
    }
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }
    /// Waits until so many reads are parked, at least.
    pub fn parked(&self, count: usize) {
        until("reads are parked", || self.mounted().waiting_reads().len() >= count);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let mounted = &self.mounted;
        mounted.fail_reads();
        let report = mounted.unmount(SOON);
        let left = mountinfo::at(mounted.path());
        if let Some((over, watchdog)) = self.watchdog.take() {
            drop(over);
            let _ = watchdog.join();
        }
        if !std::thread::panicking() {
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(left, None);
            assert!(mounted.waiting_reads().is_empty());
        }
    }
}

/// Raises a flag when it is dropped, also by a failure: threads of a scope that look at it would be waited for without end.
pub struct Raises<'a>(pub &'a AtomicBool);

impl Drop for Raises<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until this holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How a thread sleeps: the number of its system call, and that call's first argument; -1 at a page of a mapping. `None` while
/// it runs. From the text of `/proc/<tid>/syscall`.
fn asleep(folder: &Path) -> Option<(i64, u64)> {
    let text = std::fs::read_to_string(folder.join("syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let first = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    Some((number, first.unwrap_or(0)))
}

/// How many threads of this process sleep in a read of a file below a folder.
pub fn reading(below: &Path) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let reads = tasks.filter(|task| {
        let Some((number, file)) = asleep(&task.path()) else { return false };
        let file = std::fs::read_link(format!("/proc/self/fd/{file}"));
        [libc::SYS_pread64, libc::SYS_read].contains(&number)
            && file.is_ok_and(|file| file.starts_with(below))
    });
    reads.count()
}

/// A helper process; killed when it is dropped.
pub struct Helper {
    child: Child,
    /// Its lines, read by a thread, so that waiting for one has a bound. It ends with the output.
    lines: Receiver<String>,
}

impl Helper {
    pub fn new(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        let reads = move || {
            let lines = output.lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        };
        std::thread::Builder::new().name("helper".into()).spawn(reads).unwrap();
        Self { child, lines }
    }
    /// Runs a script and waits for its line `ready`.
    pub fn python(script: &str, arguments: &[&str]) -> Self {
        let mut all = vec!["-u", "-c", script];
        all.extend(arguments);
        let helper = Self::new("/usr/bin/python3", &all);
        assert_eq!(helper.line(), "ready");
        helper
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// The next line it prints; empty at its end.
    pub fn line(&self) -> String {
        match self.lines.recv_timeout(SOON) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => String::new(),
            Err(RecvTimeoutError::Timeout) => panic!("the helper says nothing"),
        }
    }
    /// Waits until it sleeps in this system call; -1 for a page of a mapping.
    pub fn sleeps_in(&mut self, call: i64) {
        let folder = PathBuf::from(format!("/proc/{}", self.pid()));
        until("the helper sleeps where it should", || {
            assert!(self.is_running(), "the helper ended");
            asleep(&folder).is_some_and(|(number, _)| number == call)
        });
    }
    /// Sends it a signal by its number: real-time ones have no name.
    pub fn signal_number(&self, signal: i32) {
        // SAFETY: takes numbers only; the child isn't waited for yet, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
    /// Waits for its end; how long that took.
    pub fn gone(&mut self) -> Duration {
        let began = Instant::now();
        until("the helper ends", || !self.is_running());
        began.elapsed()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not for long: if it can't die before its mount does, the mount's turn comes next.
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && !matches!(self.child.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The number of the error.
pub fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}
