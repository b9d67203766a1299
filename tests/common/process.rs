//! Processes of a test: killed when they are dropped, with their output read in the background.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{python, script, wait_for, wait_until};

/// A running process. Dropping it kills it (by its own id) and reaps it.
pub struct Proc {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    /// Reads the output to its end; a test that wants all of it joins it.
    pump: Option<std::thread::JoinHandle<()>>,
    name: String,
}

impl Proc {
    /// Starts a program with its output kept here (stderr goes along).
    pub fn start<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(command)
    }

    /// Starts a prepared command.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        let name = format!("{command:?}");
        let (mut from, to) = std::io::pipe().expect("a pipe");
        command.stdin(Stdio::piped()).stderr(to.try_clone().expect("a second end")).stdout(to);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        // The command holds the write end: without this the pump would never see the end.
        drop(command);
        let output = Arc::new(Mutex::new(Vec::new()));
        let sink = output.clone();
        let pump = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut buffer) {
                sink.lock().expect("output").extend_from_slice(&buffer[..got]);
            }
        });
        Self { stdin: child.stdin.take(), child, output, pump: Some(pump), name }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("output")).into_owned()
    }

    /// Writes a line to its stdin.
    pub fn say(&mut self, line: &str) {
        use std::io::Write;
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("the process listens");
    }

    /// Writes a command to its stdin, and waits for the answer: the next line that begins with the same word.
    #[track_caller]
    pub fn ask(&mut self, word: &str, limit: Duration) -> String {
        let before = self.output.lock().expect("output").len();
        self.say(word);
        self.line_after(before, word, limit)
    }

    /// Waits for a line that begins with `prefix`; panics when the process ends first, or at the limit.
    #[track_caller]
    pub fn line(&mut self, prefix: &str, limit: Duration) -> String {
        self.line_after(0, prefix, limit)
    }

    #[track_caller]
    fn line_after(&mut self, begin: usize, prefix: &str, limit: Duration) -> String {
        let what = format!("a line \"{prefix}…\" of {}", self.name);
        wait_for(&what, limit, || {
            let ended = self.child.try_wait().expect("wait").is_some();
            if ended {
                self.join_pump();
            }
            let output = String::from_utf8_lossy(&self.output.lock().expect("output")[begin..]).into_owned();
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            let found = complete.lines().find(|line| line.starts_with(prefix)).map(str::to_owned);
            assert!(found.is_some() || !ended, "{} ended without \"{prefix}…\":\n{output}", self.name);
            found
        })
    }

    /// Waits until it has printed a text, anywhere; panics when it ends first, or at the limit.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        wait_until(&format!("\"{text}\" of {}", self.name), limit, || {
            let found = self.output().contains(text);
            assert!(found || self.is_running(), "{} ended without \"{text}\":\n{}", self.name, self.output());
            found
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for its end; panics at the limit. Returns its status and all it printed.
    #[track_caller]
    pub fn finish(&mut self, limit: Duration) -> (ExitStatus, String) {
        let status = self.ended(limit);
        self.join_pump();
        (status, self.output())
    }

    /// As [`Proc::finish`], and panics unless it exits with 0. Returns all it printed.
    #[track_caller]
    pub fn success(&mut self, limit: Duration) -> String {
        let (status, output) = self.finish(limit);
        assert!(status.success(), "{}: {status}:\n{output}", self.name);
        output
    }

    /// Waits for its end without its output; panics at the limit.
    #[track_caller]
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let name = format!("the end of {}", self.name);
        wait_for(&name, limit, || self.child.try_wait().expect("wait"))
    }

    /// Waits until a thread of it sleeps in a read of a file of a mount of ours: the reader is parked.
    #[track_caller]
    pub fn wait_parked(&mut self) {
        self.wait_all_parked(1);
    }

    /// Waits until it sleeps in running a program: it waits for its beginning. To be called when it has said that it is about
    /// to.
    #[track_caller]
    pub fn wait_executing(&mut self) {
        wait_until("a reader waiting for its program", Duration::from_secs(60), || {
            assert!(self.is_running(), "the reader ended: {}", self.output());
            threads_that(self.pid(), Asleep::Executing) >= 1
        });
    }

    /// Waits until so many of its threads sleep in such a read.
    #[track_caller]
    pub fn wait_all_parked(&mut self, threads: usize) {
        wait_until(&format!("{threads} parked readers"), Duration::from_secs(60), || {
            assert!(self.is_running(), "the reader ended: {}", self.output());
            threads_that(self.pid(), Asleep::Reading) >= threads
        });
    }

    /// Waits until a thread of it sleeps on a page of a mapping.
    #[track_caller]
    pub fn wait_faulting(&mut self) {
        wait_until("a reader waiting for a page", Duration::from_secs(20), || {
            assert!(self.is_running(), "the reader ended: {}", self.output());
            threads_that(self.pid(), Asleep::Faulting) >= 1
        });
    }

    /// Whether a thread of it sleeps on a page of a mapping now.
    pub fn is_faulting(&self) -> bool {
        threads_that(self.pid(), Asleep::Faulting) >= 1
    }

    /// The ids of its threads.
    pub fn threads(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
    }

    fn join_pump(&mut self) {
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.output().is_empty() {
            eprintln!("--- output of {}:\n{}---", self.name, self.output());
        }
        drop(self.stdin.take());
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
        }
        // A process in an uninterruptible wait on a mount can't be reaped yet: the mount's own drop frees it.
        let end = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How a thread sleeps, by what `/proc` says of its system call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asleep {
    /// In a call that reads a file of a mount of ours.
    Reading,
    /// In running a program.
    Executing,
    /// In no call, as a thread that waits for a page of a mapping.
    Faulting,
    /// Otherwise, or not at all.
    No,
}

fn asleep(folder: &Path, mounts: &[PathBuf]) -> Asleep {
    // Calls that read, and which of their arguments is the file that is read: numbers that the libc crate knows per machine.
    const READS: [(libc::c_long, usize); 8] = [
        (libc::SYS_read, 0),
        (libc::SYS_pread64, 0),
        (libc::SYS_readv, 0),
        (libc::SYS_preadv, 0),
        (libc::SYS_preadv2, 0),
        (libc::SYS_sendfile, 1),
        (libc::SYS_copy_file_range, 0),
        (libc::SYS_splice, 0),
    ];
    let syscall = std::fs::read_to_string(folder.join("syscall")).unwrap_or_default();
    let mut words = syscall.split_whitespace();
    let Some(number) = words.next().and_then(|number| number.parse::<libc::c_long>().ok()) else {
        return Asleep::No;
    };
    match READS.iter().find(|(read, _)| *read == number) {
        _ if number == -1 => Asleep::Faulting,
        _ if number == libc::SYS_execve => Asleep::Executing,
        Some((_, place)) => {
            let fd = words.nth(*place).and_then(|word| word.strip_prefix("0x"));
            let fd = fd.and_then(|fd| u64::from_str_radix(fd, 16).ok());
            let file = fd.and_then(|fd| std::fs::read_link(folder.join(format!("fd/{fd}"))).ok());
            match file.is_some_and(|file| mounts.iter().any(|mount| file.starts_with(mount))) {
                true => Asleep::Reading,
                false => Asleep::No,
            }
        }
        None => Asleep::No,
    }
}

/// Where a process sees mounts of ours.
fn mounts(pid: u32) -> Vec<PathBuf> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let ours = table.lines().filter(|line| line.contains(" - fuse.torrentfs "));
    ours.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// How many threads of a process sleep so.
fn threads_that(pid: u32, how: Asleep) -> usize {
    let mounts = mounts(pid);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter(|task| asleep(&task.path(), &mounts) == how).count()
}

/// `reader.py`: readers that ordinary tools don't offer.
pub struct Reader;

impl Reader {
    /// One `pread`, without handlers.
    pub fn pread(path: &Path, offset: u64, length: usize) -> Proc {
        Self::pread_with(path, offset, length, &[])
    }

    /// One `pread` with more arguments (`--handle`, `--raise`).
    pub fn pread_with(path: &Path, offset: u64, length: usize, more: &[&str]) -> Proc {
        let (offset, length) = (offset.to_string(), length.to_string());
        Self::run(["pread".as_ref(), path.as_os_str(), offset.as_ref(), length.as_ref()], more)
    }

    /// The SHA-256 of a file through a mapping.
    pub fn mmap(path: &Path) -> Proc {
        Self::run(["mmap".as_ref(), path.as_os_str()], &[])
    }

    /// Touches one byte of a mapping.
    pub fn fault(path: &Path, offset: u64) -> Proc {
        Self::fault_with(path, offset, &[])
    }

    /// Touches one byte of a mapping, with more arguments (`--handle`).
    pub fn fault_with(path: &Path, offset: u64, more: &[&str]) -> Proc {
        Self::run(["fault".as_ref(), path.as_os_str(), offset.to_string().as_ref()], more)
    }

    /// `count` threads, each with a read of 4 KiB at its own multiple of `stride`.
    pub fn many(path: &Path, count: usize, stride: u64) -> Proc {
        let (count, stride) = (count.to_string(), stride.to_string());
        Self::run(["many".as_ref(), path.as_os_str(), count.as_ref(), stride.as_ref()], &[])
    }

    /// Runs the file.
    pub fn exec(path: &Path) -> Proc {
        Self::run(["exec".as_ref(), path.as_os_str()], &[])
    }

    fn run<'a>(args: impl IntoIterator<Item = &'a OsStr>, more: &[&str]) -> Proc {
        let mut command = Command::new(python().unwrap_or("python3"));
        command.arg(script("reader.py")).args(args).args(more);
        let mut reader = Proc::spawn(command);
        reader.line("waiting", Duration::from_secs(30));
        reader
    }
}
