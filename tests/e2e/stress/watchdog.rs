//! Says what hangs, and ends it: a thread that looks at the workers while the test goes on.
//!
//! When one operation takes longer than its bound, or all of it does, it prints what the kernel says of each thread of
//! the workers that are late and of the program, asks the program for its own view (SIGUSR1, once it takes that), and
//! kills the workers. The test then finds [`Watchdog::check`] failing.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::crew::Board;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// For the program to print its view.
const VIEW: Duration = Duration::from_secs(2);
/// Threads of one process of which all is printed; the rest is counted.
const THREADS: usize = 40;

/// Looks at the workers until it is dropped.
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    trouble: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// One operation may take `each`, and everything `all`.
    pub fn start(board: Arc<Board>, program: u32, each: Duration, all: Duration) -> Self {
        let (stop, trouble) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (until, found) = (stop.clone(), trouble.clone());
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while !until.load(Ordering::Relaxed) {
                if let Some(what) = late(&board, each, start.elapsed() > all) {
                    dump(&board, program, each, &what);
                    *found.lock().expect("trouble") = Some(what);
                    board.running().iter().for_each(|worker| worker.signal(Signal::SIGKILL));
                    break;
                }
                std::thread::sleep(LOOK);
            }
        });
        Self { stop, trouble, thread: Some(thread) }
    }

    /// What hangs, if something does.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("trouble").clone()
    }

    /// Panics if something hangs.
    #[track_caller]
    pub fn check(&self) {
        let trouble = self.trouble();
        assert!(trouble.is_none(), "it hangs: {}", trouble.unwrap_or_default());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn late(board: &Board, each: Duration, over: bool) -> Option<String> {
    let running = board.running();
    let late = running.iter().find_map(|worker| {
        let (what, since) = worker.doing()?;
        (since > each).then(|| format!("{what}, for {since:?}, of process {}", worker.pid))
    });
    late.or_else(|| over.then(|| format!("the time is over, and {} workers still run", running.len())))
}

fn dump(board: &Board, program: u32, each: Duration, what: &str) {
    eprintln!("--- it hangs: {what}");
    for worker in board.running() {
        let doing = worker.doing();
        eprintln!("worker {}: {doing:?}", worker.pid);
        if doing.is_some_and(|(_, since)| since > each / 2) {
            threads(worker.pid);
        }
    }
    eprintln!("the program, {program}:");
    threads(program);
    if takes_usr1(program) {
        // What it prints stands in its log, which is printed when the test fails.
        let _ = kill(Pid::from_raw(program.cast_signed()), Signal::SIGUSR1);
        std::thread::sleep(VIEW);
    }
    eprintln!("---");
}

/// Prints what the kernel says of each thread of a process. Nothing of it waits for the process.
pub fn threads(pid: u32) {
    let tasks: Vec<_> =
        std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().collect();
    for task in tasks.iter().take(THREADS) {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let keep = ["State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigCgt:"];
        let kept: Vec<_> =
            status.lines().filter(|line| keep.iter().any(|key| line.starts_with(key))).collect();
        let (name, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
        eprintln!("  {} {}: in {wchan}, call {}", task.file_name().display(), name.trim(), syscall.trim());
        eprintln!("    {}", kept.join(" ").replace('\t', " "));
        read("stack").lines().for_each(|line| eprintln!("    {line}"));
    }
    if tasks.len() > THREADS {
        eprintln!("  and {} threads more", tasks.len() - THREADS);
    }
}

/// Whether it takes SIGUSR1: it keeps it blocked and reads it from a descriptor. Before that the signal would end it.
fn takes_usr1(pid: u32) -> bool {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = blocked.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    blocked >> (Signal::SIGUSR1 as i32 - 1) & 1 == 1
}
