//! A named thread that can be joined with a bound.
//!
//! The standard library joins without a bound; here each thread raises a flag as the last thing it does, on
//! every way out, and the flag is waited for.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::lock::{Rank, RankedCondvar, RankedMutex};

/// A flag that is raised once and can be waited for.
#[derive(Debug)]
pub(crate) struct Flag {
    raised: RankedMutex<bool>,
    changed: RankedCondvar,
}

impl Flag {
    pub(crate) const fn new() -> Self {
        Self { raised: RankedMutex::new(Rank::Leaf, "flag", false), changed: RankedCondvar::new() }
    }
    pub(crate) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_all();
    }
    pub(crate) fn is_raised(&self) -> bool {
        *self.raised.lock()
    }
    /// Waits until it is raised or the time has come; whether it is raised.
    pub(crate) fn wait_until(&self, until: Instant) -> bool {
        let mut raised = self.raised.lock();
        while !*raised {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            self.changed.wait_timeout(&mut raised, left);
        }
        true
    }
}

/// A thread of ours. Dropping it leaves it running; join it.
#[derive(Debug)]
pub(crate) struct Worker {
    name: &'static str,
    handle: Option<JoinHandle<()>>,
    ended: Arc<Flag>,
}

/// The kernel cuts a thread's name to so many bytes (proc_pid_comm(5)).
const COMM: usize = 15;
/// So many functions of the kernel say where a thread is.
const FRAMES: usize = 4;

fn whereabouts(name: &str) -> Option<String> {
    let name = name.get(..COMM).unwrap_or(name);
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim_end() != name {
            continue;
        }
        // Behind the name in brackets: the state first, user and system time as the 12th and 13th, in ticks of 10 ms.
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let mut place = format!("{}, {} ms of CPU", fields.first()?, 10 * (ticks(11) + ticks(12)));
        let stack = read("stack");
        let frames = stack.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('+').next());
        for frame in frames.take(FRAMES) {
            place.push_str(" < ");
            place.push_str(frame);
        }
        return Some(place);
    }
    None
}

impl Worker {
    /// Starts a thread.
    pub(crate) fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        struct Raise(Arc<Flag>);
        impl Drop for Raise {
            fn drop(&mut self) {
                self.0.raise();
            }
        }
        let ended = Arc::new(Flag::new());
        let raise = Raise(ended.clone());
        let handle = std::thread::Builder::new().name(name.to_string()).spawn(move || {
            let _raise = raise;
            run();
        })?;
        Ok(Self { name, handle: Some(handle), ended })
    }

    /// Its name, and where it is, as far as the kernel tells: the letter of its state, its processor time, and the
    /// innermost functions of the kernel that it is in (as root). For a report on what hangs.
    pub(crate) fn whereabouts(&self) -> String {
        match whereabouts(self.name) {
            Some(place) => format!("{} ({place})", self.name),
            None => self.name.to_owned(),
        }
    }

    /// Waits for its end until that time; whether it has ended. A panic in it is logged.
    pub(crate) fn join_until(&mut self, until: Instant) -> bool {
        if !self.ended.wait_until(until) {
            return false;
        }
        if let Some(handle) = self.handle.take() {
            // The flag is the last thing but the thread's own end, which takes microseconds.
            if handle.join().is_err() {
                tracing::error!("thread {} panicked", self.name);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn joining_is_bounded_and_survives_a_panic() {
        let stop = Arc::new(Flag::new());
        let other = stop.clone();
        let mut worker = Worker::spawn("fs-test", move || {
            other.wait_until(Instant::now() + Duration::from_secs(10));
        })
        .unwrap();
        assert!(!worker.join_until(Instant::now() + Duration::from_millis(5)));
        assert!(!stop.is_raised());
        let place = worker.whereabouts();
        assert!(place.starts_with("fs-test (") && place.contains(" ms of CPU"), "{place}");
        stop.raise();
        assert!(worker.join_until(Instant::now() + Duration::from_secs(10)));
        assert!(worker.join_until(Instant::now()));
        let mut broken = Worker::spawn("fs-broken", || std::panic::panic_any("planned")).unwrap();
        assert!(broken.join_until(Instant::now() + Duration::from_secs(10)));
        assert_eq!(broken.whereabouts(), "fs-broken", "it is nowhere any more");
    }
}
