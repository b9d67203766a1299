//! Every task of the program is spawned here: named, counted, cancellable, and joined at the end.
//!
//! A [`TaskScope`] is a node in the tree of owners (program, client, torrent, peer). Cancelling a scope
//! cancels its children. Spawning after a scope was closed is refused. A panic in a task is caught and
//! logged with the task's name; the program goes on. `tokio::spawn` and friends are banned elsewhere by
//! `clippy.toml`.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use torrentfs_fs::lock::{Rank, RankedMutex};

struct Registry {
    next: AtomicU64,
    /// Live tasks by number. Leaf rank: nothing is called under it.
    live: RankedMutex<BTreeMap<u64, Live>>,
    changed: Notify,
    /// What milliseconds are counted from.
    began: Instant,
}

/// A live task.
struct Live {
    name: String,
    since: Instant,
    pulse: Arc<Pulse>,
}

/// Tells a task that runs on and on from one that waits. The task writes `turns`, those who look the rest.
#[derive(Default)]
struct Pulse {
    /// Odd while the task runs, another number at each turn.
    turns: AtomicU64,
    /// The number that was seen last, and when it was seen first.
    seen: AtomicU64,
    since: AtomicU64,
}

/// Counts a turn of the task as over, in whatever way it ends.
struct Turn<'a>(&'a Pulse);

impl<'a> Turn<'a> {
    fn begin(pulse: &'a Pulse) -> Self {
        pulse.turns.fetch_add(1, Ordering::Relaxed);
        Self(pulse)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// A live task, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// Its name, with its owners'.
    pub name: String,
    /// How old it is.
    pub age: Duration,
    /// For how long it has run without giving way, at least: since it was first seen in this turn. `None` while it
    /// waits for something.
    pub runs: Option<Duration>,
}

/// A scope that owns tasks. Cloning gives another handle on the same scope.
#[derive(Clone)]
pub struct TaskScope {
    registry: Arc<Registry>,
    token: CancellationToken,
    prefix: Arc<str>,
}

/// Takes a task out of the registry when it ends, in whatever way.
struct Registered {
    registry: Arc<Registry>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.live.lock().remove(&self.number);
        self.registry.changed.notify_waiters();
    }
}

impl Registry {
    /// For how long a task has run without giving way, if it runs.
    fn runs(&self, task: &Live, now: Instant) -> Option<Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let turns = task.pulse.turns.load(Ordering::Relaxed);
        if task.pulse.seen.swap(turns, Ordering::Relaxed) != turns {
            task.pulse.since.store(now, Ordering::Relaxed);
        }
        let since = task.pulse.since.load(Ordering::Relaxed);
        (turns % 2 == 1).then(|| Duration::from_millis(now.saturating_sub(since)))
    }

    fn view(&self, task: &Live, now: Instant) -> TaskView {
        let age = now.saturating_duration_since(task.since);
        TaskView { name: task.name.clone(), age, runs: self.runs(task, now) }
    }
}

impl TaskScope {
    /// The root scope of the program.
    pub fn root() -> Self {
        Self {
            registry: Arc::new(Registry {
                next: AtomicU64::new(1),
                live: RankedMutex::new(Rank::Leaf, "task registry", BTreeMap::new()),
                changed: Notify::new(),
                began: Instant::now(),
            }),
            token: CancellationToken::new(),
            prefix: "".into(),
        }
    }

    /// A scope within this one; its tasks' names begin with `name/`.
    pub fn child(&self, name: &str) -> Self {
        Self {
            registry: self.registry.clone(),
            token: self.token.child_token(),
            prefix: format!("{}{name}/", self.prefix).into(),
        }
    }

    /// The token that tells this scope's tasks to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells every task of this scope and of its children to end. Doesn't wait.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Spawns a named task, dropped at its next await when the scope is cancelled. Returns false, and spawns
    /// nothing, when the scope is cancelled already.
    pub fn spawn(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) -> bool {
        let token = self.token.clone();
        self.spawn_graceful(name, async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = future => {}
            }
        })
    }

    /// As [`TaskScope::spawn`], but the task watches [`TaskScope::token`] itself and ends in its own way.
    pub fn spawn_graceful(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) -> bool {
        if self.token.is_cancelled() {
            return false;
        }
        let (registered, pulse) = self.register(name);
        let name = format!("{}{name}", self.prefix);
        #[allow(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
        tokio::spawn(async move {
            let _registered = registered;
            let mut future = std::pin::pin!(AssertUnwindSafe(future).catch_unwind());
            let watched = std::future::poll_fn(|cx| {
                let turn = Turn::begin(&pulse);
                let polled = future.as_mut().poll(cx);
                drop(turn);
                torrentfs_fs::lock::assert_none_held(&name);
                polled
            });
            if let Err(panic) = watched.await {
                let what = panic
                    .downcast_ref::<&str>()
                    .map(|s| (*s).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                tracing::error!(task = %name, "a task panicked: {what}; this is a bug, please report it");
            }
        });
        true
    }

    fn register(&self, name: &str) -> (Registered, Arc<Pulse>) {
        let number = self.registry.next.fetch_add(1, Ordering::Relaxed);
        let pulse = Arc::new(Pulse::default());
        let live =
            Live { name: format!("{}{name}", self.prefix), since: Instant::now(), pulse: pulse.clone() };
        self.registry.live.lock().insert(number, live);
        (Registered { registry: self.registry.clone(), number }, pulse)
    }

    /// Names of the live tasks of this scope and its children, oldest first.
    pub fn live(&self) -> Vec<String> {
        let live = self.registry.live.lock();
        live.values().map(|task| &task.name).filter(|name| name.starts_with(&*self.prefix)).cloned().collect()
    }

    /// The live tasks of this scope and its children, oldest first, and which of them run just now.
    pub fn look(&self, now: Instant) -> Vec<TaskView> {
        let live = self.registry.live.lock();
        let own = live.values().filter(|task| task.name.starts_with(&*self.prefix));
        own.map(|task| self.registry.view(task, now)).collect()
    }

    /// The tasks of the program that have run without giving way for so long at least, as far as looks before this
    /// tell. Allocates only for those. `None`, and nothing is looked at, while somebody has the registry locked.
    pub fn unyielding(&self, limit: Duration, now: Instant) -> Option<Vec<TaskView>> {
        let live = self.registry.live.try_lock()?;
        let long = |task: &&Live| self.registry.runs(task, now).is_some_and(|runs| runs >= limit);
        Some(live.values().filter(long).map(|task| self.registry.view(task, now)).collect())
    }

    /// Waits until no task of this scope is left, `limit` at most; what is left then is returned by name.
    pub async fn join(&self, limit: Duration) -> Vec<String> {
        let all_gone = async {
            loop {
                let changed = self.registry.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.live().is_empty() {
                    return;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(limit, all_gone).await {
            Ok(()) => Vec::new(),
            Err(_) => self.live(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn o5_every_task_is_named_and_gone_after_stop() {
        let root = TaskScope::root();
        let torrent = root.child("torrent");
        assert!(torrent.spawn("peer", std::future::pending()));
        assert!(root.spawn("other", std::future::pending()));
        assert_eq!(torrent.live(), ["torrent/peer"]);
        torrent.cancel();
        assert!(torrent.join(Duration::from_secs(5)).await.is_empty());
        assert_eq!(root.live(), ["other"]);
        assert!(!torrent.spawn("late", async {}), "a spawn after the close is refused");
        root.cancel();
        assert!(root.join(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test]
    async fn o6_a_hung_task_is_named() {
        let root = TaskScope::root();
        root.spawn_graceful("hung", std::future::pending());
        root.cancel();
        assert_eq!(root.join(Duration::from_millis(10)).await, ["hung"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_runs_on_is_told_from_one_that_waits() {
        let root = TaskScope::root();
        let (running, runs) = tokio::sync::oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        root.spawn("waits", std::future::pending());
        root.spawn("runs on", async move {
            let _ = running.send(());
            let _ = ended.recv();
            std::future::pending::<()>().await;
        });
        runs.await.ok();
        let (now, limit) = (Instant::now(), Duration::from_secs(5));
        // Seen for the first time now: since when it runs nobody knows.
        assert_eq!(root.unyielding(limit, now), Some(Vec::new()));
        let long = root.unyielding(limit, now + limit).unwrap_or_default();
        assert_eq!(
            long.iter().map(|t| (t.name.as_str(), t.runs)).collect::<Vec<_>>(),
            [("runs on", Some(limit))]
        );
        assert_eq!(root.look(now).len(), 2);
        drop(end);
        while root.look(now).iter().any(|task| task.runs.is_some()) {
            tokio::task::yield_now().await;
        }
        root.cancel();
        assert!(root.join(limit).await.is_empty());
    }

    #[tokio::test]
    async fn a_panic_ends_at_its_task() {
        let root = TaskScope::root();
        root.spawn("bad", async { panic!("planned") });
        assert!(root.join(Duration::from_secs(5)).await.is_empty());
    }
}
