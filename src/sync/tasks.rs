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
    /// Live tasks by number: name and start. Leaf rank: nothing is called under it.
    live: RankedMutex<BTreeMap<u64, (String, Instant)>>,
    changed: Notify,
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

impl TaskScope {
    /// The root scope of the program.
    pub fn root() -> Self {
        Self {
            registry: Arc::new(Registry {
                next: AtomicU64::new(1),
                live: RankedMutex::new(Rank::Leaf, "task registry", BTreeMap::new()),
                changed: Notify::new(),
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
        let registered = self.register(name);
        let name = format!("{}{name}", self.prefix);
        #[allow(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
        tokio::spawn(async move {
            let _registered = registered;
            let mut future = std::pin::pin!(AssertUnwindSafe(future).catch_unwind());
            let watched = std::future::poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
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

    fn register(&self, name: &str) -> Registered {
        let number = self.registry.next.fetch_add(1, Ordering::Relaxed);
        self.registry.live.lock().insert(number, (format!("{}{name}", self.prefix), Instant::now()));
        Registered { registry: self.registry.clone(), number }
    }

    /// Names of the live tasks of this scope and its children, oldest first.
    pub fn live(&self) -> Vec<String> {
        let live = self.registry.live.lock();
        live.values()
            .filter(|(name, _)| name.starts_with(&*self.prefix))
            .map(|(name, _)| name.clone())
            .collect()
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

    #[tokio::test]
    async fn a_panic_ends_at_its_task() {
        let root = TaskScope::root();
        root.spawn("bad", async { panic!("planned") });
        assert!(root.join(Duration::from_secs(5)).await.is_empty());
    }
}
