//! The watchdog: a thread that says what hangs, unasked, and everything there is to say when it is asked (row L5).
//!
//! **Goal.** A lock that is kept, a task that doesn't give way and an owner that doesn't turn its loop are named in the
//! log the first time it happens. SIGUSR1 prints the whole [report](super::diagnose) there, and disturbs nothing.
//!
//! **Why a thread.** What hangs may be the runtime itself. The watchdog shares nothing with it: it looks at what
//! others write down for it without waiting for them, and the [`Reporter`] shares nothing with it either.
//!
//! **Flow.** It looks every [`LOOK`] at the locks and for SIGUSR1, twice as often while any is held, and every [`SLOW`]
//! at tasks and owners. What goes on
//! for too long is said once, and again when it has gone on for ten times as long ([`Alarms`]); all together no more
//! than some lines a minute ([`Pace`]). SIGUSR1 while a report is under way has that one printed, too.
//!
//! **Not here.** Doing anything about it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use torrentfs_fs::lock::holders::{self, Look};
use torrentfs_fs::session::Mounted;

use super::diagnose;
use super::report::{Awaited, Reporter};
use super::signals::Asked;
use crate::cli::exit::Failure;
use crate::client::Client;
use crate::sync::tasks::TaskScope;
use crate::torrent::Torrent;

/// Between two looks at the locks, as a rule: that costs a thousandth of a core. A lock that is held when it looks is
/// looked at again in half of that: so one that is held for twice [`LOCK`] is always seen.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at tasks and owners.
const SLOW: Duration = Duration::from_secs(1);
/// A lock is held for instructions; for as long as this only if its holder waits for something.
const LOCK: Duration = Duration::from_millis(100);
/// A task gives way within milliseconds, and an owner turns its loop when it said. A busy machine may keep either
/// waiting for a second or two.
const TURN: Duration = Duration::from_secs(5);
/// The table of torrents is waited for so long at most: it is free unless something hangs, and then the lock is named.
const TABLE: Duration = Duration::from_millis(10);
/// Lines a minute at most.
const LINES: u32 = 20;

/// The running watchdog. Dropping it ends the thread, within a look; a report under way goes on.
pub struct Watchdog {
    reporter: Arc<Reporter>,
    _end: SyncSender<()>,
}

impl Watchdog {
    /// Watches the locks and the tasks of a program from now on, and for whoever asks: see [`Asked`] for what must
    /// have come before.
    ///
    /// # Errors
    /// [`crate::cli::exit::Exit::Internal`] when the system refuses a thread.
    pub fn start(scope: &TaskScope) -> Result<Self, Failure> {
        Self::start_with(scope, TURN)
    }

    /// As [`Watchdog::start`], with another bound for tasks and owners.
    fn start_with(scope: &TaskScope, turn: Duration) -> Result<Self, Failure> {
        let asked = Asked::new()?;
        let reporter = Arc::new(Reporter::new(scope));
        let (end, ended) = sync_channel(0);
        let watched = reporter.clone();
        // Not joined: it ends within a look, or with the process.
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&watched, &asked, &ended, turn))
            .map_err(|error| Failure::internal("can't start the watchdog", error))?;
        Ok(Self { reporter, _end: end })
    }

    /// Watches this client's torrents as well.
    pub fn client(&self, client: &Arc<Client>) {
        self.reporter.client(client);
    }

    /// Tells of this mount as well.
    pub fn mount(&self, mounted: &Arc<Mounted>) {
        self.reporter.mount(mounted);
    }

    /// Who tells what the program is at.
    pub fn reporter(&self) -> &Arc<Reporter> {
        &self.reporter
    }
}

fn watch(reporter: &Arc<Reporter>, asked: &Asked, ended: &Receiver<()>, turn: Duration) {
    let mut alarms = (Alarms::new(LOCK), Alarms::new(turn), Alarms::new(turn));
    let mut pace = Pace::new(Instant::now());
    let mut slow = Instant::now();
    let mut report: Option<Awaited> = None;
    let mut pause = LOOK;
    while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let now = Instant::now();
        let look = holders::look();
        pause = if look.held.is_empty() { LOOK } else { LOOK / 2 };
        let mut lines = locks(&mut alarms.0, &look);
        if now >= slow {
            slow = now + SLOW;
            if let Some(tasks) = reporter.scope().unyielding(turn, now) {
                let due = alarms.1.due(tasks, |task| (task.name.clone(), task.runs.unwrap_or_default()));
                lines.extend(due.into_iter().map(|task| {
                    let runs = diagnose::time(task.runs.unwrap_or_default());
                    format!("task {} has run without giving way for {runs} at least", task.name)
                }));
            }
            let torrents = reporter.watched().and_then(|client| client.view(TABLE).torrents);
            lines.extend(owners(&mut alarms.2, torrents.into_iter().flatten(), now));
        }
        for line in pace.pass(lines, now) {
            tracing::warn!("{line}");
        }
        if asked.take() && report.is_none() {
            report = Some(reporter.ask());
        }
        if let Some(made) = report.as_ref().and_then(Awaited::now) {
            report = None;
            match made {
                // Of a target that every verbosity shows: somebody asked for it.
                Some(text) => {
                    tracing::info!(target: crate::cli::log::REPORT, "what the program is at:\n{text}");
                }
                None => tracing::error!("no report could be made"),
            }
        }
    }
}

/// Locks that are held for too long, in words.
fn locks(alarms: &mut Alarms<(u32, usize, usize)>, look: &Look) -> Vec<String> {
    let key = |held: &&holders::Taking| ((held.tid, held.address, held.version), held.since);
    let due = alarms.due(look.held.iter().collect(), key);
    due.into_iter()
        .map(|held| {
            let waiting: Vec<String> = look
                .waiting
                .iter()
                .filter(|waits| waits.address == held.address)
                .map(diagnose::waiter)
                .collect();
            let waiting = if waiting.is_empty() { "nobody waits for it".into() } else { waiting.join("; ") };
            format!("lock {}; {waiting}", diagnose::holder(held))
        })
        .collect()
}

/// Owners that should have turned their loop, in words.
fn owners(
    alarms: &mut Alarms<u32>,
    torrents: impl IntoIterator<Item = Arc<Torrent>>,
    now: Instant,
) -> Vec<String> {
    let all = torrents.into_iter().map(|torrent| (torrent.overdue(now), torrent));
    let due = alarms.due(all.collect(), |(overdue, torrent)| (torrent.slot, *overdue));
    due.into_iter()
        .map(|(overdue, torrent)| {
            let (name, overdue) = (torrent.name(), diagnose::time(overdue));
            format!(
                "the owner of torrent {} \"{name}\" should have turned its loop {overdue} ago",
                torrent.slot
            )
        })
        .collect()
}

/// What of all that goes on is to be said now: what has passed the limit, and later what has gone on ten times as long
/// as when it was said last. Pure.
struct Alarms<K> {
    limit: Duration,
    /// When what was said is said again, of what goes on still.
    again: HashMap<K, Duration>,
}

impl<K: Hash + Eq> Alarms<K> {
    fn new(limit: Duration) -> Self {
        Self { limit, again: HashMap::new() }
    }

    /// Takes in all that goes on, each with what it is and for how long; gives those that are to be said.
    fn due<T>(&mut self, all: Vec<T>, of: impl Fn(&T) -> (K, Duration)) -> Vec<T> {
        let mut before = std::mem::take(&mut self.again);
        let mut due = Vec::new();
        for one in all {
            let (key, age) = of(&one);
            let said = before.remove(&key);
            if age >= said.unwrap_or(self.limit) {
                self.again.insert(key, age * 10);
                due.push(one);
            } else if let Some(again) = said {
                self.again.insert(key, again);
            }
        }
        due
    }
}

/// No more than [`LINES`] a minute; how many were left out is said afterwards. Pure.
struct Pace {
    minute: Instant,
    said: u32,
    left_out: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { minute: now, said: 0, left_out: 0 }
    }

    fn pass(&mut self, mut lines: Vec<String>, now: Instant) -> Vec<String> {
        if now.saturating_duration_since(self.minute) >= Duration::from_secs(60) {
            (self.minute, self.said) = (now, 0);
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                lines.insert(0, format!("{left_out} warnings of what hangs were left out"));
            }
        }
        let room = LINES.saturating_sub(self.said) as usize;
        self.left_out += lines.len().saturating_sub(room) as u32;
        lines.truncate(room);
        self.said += lines.len() as u32;
        lines
    }
}

/// For tests: looks as the watchdog does until a lock has been held for too long.
#[cfg(test)]
pub(super) fn warnings_of_locks(limit: Duration) -> Vec<String> {
    let (mut alarms, end) = (Alarms::new(LOCK), Instant::now() + limit);
    loop {
        let lines = locks(&mut alarms, &holders::look());
        if !lines.is_empty() || Instant::now() >= end {
            return lines;
        }
        std::thread::sleep(LOOK);
    }
}

/// For tests: what the watchdog says of a torrent's owner, at each of these times after now.
#[cfg(test)]
pub(super) fn warnings_of_owner(torrent: &Arc<Torrent>, after: &[Duration]) -> Vec<String> {
    let (mut alarms, now) = (Alarms::new(TURN), Instant::now());
    after.iter().flat_map(|after| owners(&mut alarms, [torrent.clone()], now + *after)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs::File;

    use torrentfs_fs::lock::{Rank, RankedMutex};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// For what happens within seconds, on a busy machine.
    const LONG: Duration = Duration::from_secs(20);

    /// Looks until something is found.
    fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "waited {LONG:?} in vain for {what}");
            std::thread::sleep(5 * MS);
        }
    }

    /// The names of this process's threads.
    fn threads() -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
    }

    #[test]
    fn l5_the_thread_itself_writes_what_hangs_and_goes_with_its_owner() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let sink: Arc<File> = Arc::new(log.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(sink).finish();
        // To where the whole program logs: the thread has no log of its own.
        tracing::subscriber::set_global_default(subscriber).expect("no other test does");
        let line = |words: &[&str]| {
            until(&format!("a line with {words:?}"), || {
                let text = std::fs::read_to_string(log.path()).unwrap();
                text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
            })
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let _inside = runtime.enter();
        let scope = TaskScope::root();
        let watchdog = Watchdog::start_with(&scope, 300 * MS).unwrap();

        let lock = Arc::new(RankedMutex::new(Rank::Leaf, "planned hold", ()));
        let held = lock.lock();
        let other = lock.clone();
        let waits = std::thread::Builder::new().name("the waiter".into());
        let waits = waits.spawn(move || drop(other.lock())).unwrap();
        let said = line(&["WARN", "lock `planned hold` is held by ", "the waiter (tid "]);
        assert!(said.contains(" at least, taken at src/run/watchdog.rs:"), "{said}");
        drop(held);
        waits.join().unwrap();

        let (end, ended) = sync_channel::<()>(0);
        // It never gives way, as one that calls what blocks.
        scope.spawn("runs on", async move {
            let _ = ended.recv();
        });
        line(&["WARN", "task runs on has run without giving way for "]);
        drop(end);
        until("the task's end", || scope.live().is_empty().then_some(()));

        assert!(threads().iter().any(|name| name.trim() == "watchdog"), "{:?}", threads());
        drop(watchdog);
        until("its thread's end", || threads().iter().all(|name| name.trim() != "watchdog").then_some(()));
    }

    #[test]
    fn what_goes_on_is_said_when_it_is_too_long_and_then_ever_less_often() {
        let mut alarms = Alarms::new(100 * MS);
        // For how long it has gone on at each look, and whether that is said.
        let rows = [
            (0, false),
            (50, false),
            (110, true),
            (160, false),
            (1_050, false),
            (1_100, true),
            (10_000, false),
        ];
        for (age, said) in rows {
            let due = alarms.due(vec![age], |age| ("a", *age * MS));
            assert_eq!(due, if said { vec![age] } else { vec![] }, "{age}");
        }
        // Another begins anew, and so does the same after it has ended.
        assert_eq!(alarms.due(vec![("b", 100), ("a", 10_100)], |(key, age)| (*key, *age * MS)).len(), 1);
        assert_eq!(alarms.due(vec![("b", 150), ("a", 99)], |(key, age)| (*key, *age * MS)).len(), 0);
        assert_eq!(alarms.due(Vec::<u32>::new(), |_| ("a", MS)).len(), 0);
        assert_eq!(alarms.due(vec![100], |age| ("a", *age * MS)).len(), 1);
        assert!(alarms.again.len() == 1, "what has ended is forgotten");
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let lines = |n: u32| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(pace.pass(lines(5), start).len(), 5);
        assert_eq!(pace.pass(lines(LINES), start + 10 * MS).len(), LINES as usize - 5);
        assert!(pace.pass(lines(2), start + 59_999 * MS).is_empty());
        let later = pace.pass(lines(1), start + 60_000 * MS);
        assert_eq!(later, ["7 warnings of what hangs were left out", "0"]);
        assert_eq!(pace.pass(lines(1), start + 60_001 * MS), ["0"]);
    }
}
