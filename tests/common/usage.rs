//! What a running process uses, by `/proc`: memory and processor time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the memory: a tenth of what a piece takes to come at the fastest.
const LOOK: Duration = Duration::from_millis(2);
/// Ticks of `/proc/PID/stat` in a second (USER_HZ, the same on all machines).
const TICKS: u64 = 100;

/// A size of `/proc/PID/status` in bytes: `RssAnon` is memory proper, `VmRSS` counts mapped files too. 0 when
/// the process is gone.
pub fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processor time used since the start by all threads together: exact where the kernel counts it so, otherwise
/// in ticks of 10 ms. What threads used that have ended is left out where it is exact.
#[track_caller]
pub fn cpu(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let exact = tasks.map(|task| {
        let line = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<u64>().ok()
    });
    if let Some(nanos) = exact.sum::<Option<u64>>().filter(|nanos| *nanos > 0) {
        return Duration::from_nanos(nanos);
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Bytes that the process has read through system calls, from wherever, since its start.
#[track_caller]
pub fn bytes_read(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("the process runs");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar:"));
    line.and_then(|line| line.trim().parse().ok()).expect("a number")
}

/// How often each of its threads has gone to sleep of its own accord, by the thread's name: the number of wake-ups.
#[track_caller]
pub fn wake_ups(pid: u32) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let value = |what: &str| status.lines().find_map(|line| line.strip_prefix(what)).map(str::trim);
        let count = value("voluntary_ctxt_switches:").and_then(|count| count.parse::<u64>().ok());
        *found.entry(value("Name:").unwrap_or_default().to_owned()).or_default() += count.unwrap_or(0);
    }
    found
}

/// The folders in `/proc` of its threads of that name.
fn threads(pid: u32, name: &str) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let named =
        |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim() == name);
    tasks.map(|task| task.path()).filter(named).collect()
}

/// How many threads of that name it has.
pub fn threads_named(pid: u32, name: &str) -> usize {
    threads(pid, name).len()
}

/// Processor time used since their start by its threads of that name.
#[track_caller]
pub fn cpu_of(pid: u32, name: &str) -> Duration {
    let used = threads(pid, name).into_iter().map(|thread| {
        let line = std::fs::read_to_string(thread.join("schedstat")).expect("the kernel counts exactly");
        line.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("a number")
    });
    Duration::from_nanos(used.sum())
}

/// Watches a figure that comes and goes, such as the memory of a process; dropping it ends that.
pub struct Peak {
    highest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Peak {
    /// Watches the process's `RssAnon` from now on.
    pub fn watch(pid: u32) -> Self {
        Self::of(move || memory(pid, "RssAnon"))
    }

    /// Watches what a function gives from now on.
    pub fn of(look: impl Fn() -> u64 + Send + 'static) -> Self {
        let (highest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (to, until) = (highest.clone(), stop.clone());
        let watcher = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                to.fetch_max(look(), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Self { highest, stop, watcher: Some(watcher) }
    }

    /// The highest seen so far.
    pub fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}
