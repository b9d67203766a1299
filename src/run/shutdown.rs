//! The shutdown: one sequence, one overall deadline that its phases share.
//!
//! Refuse new reads and fail the waiting ones (sticky) → record what is complete → unmount, lazily if busy →
//! tell the trackers → cancel and join → report what did not stop, by name. Each phase gets what is left of the
//! deadline, so that they can't add up to more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use torrentfs_fs::session::{Mounted, UnmountReport};

use super::notify::Service;
use super::on_thread;
use super::signals::Signals;
use crate::cli::exit::Exit;
use crate::client::Client;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;

/// What is to be taken down. Any part may be missing: a signal can come before it is up.
pub struct Running {
    /// The mount.
    pub mounted: Option<Arc<Mounted>>,
    /// The clients, the one behind the mount first.
    pub clients: Vec<Arc<Client>>,
    /// Everything's tasks.
    pub scope: TaskScope,
    /// Who is told of it.
    pub service: Service,
}

impl Running {
    /// Nothing but the scope of all tasks, and nobody to tell.
    pub fn nothing(scope: TaskScope) -> Self {
        Self { mounted: None, clients: Vec::new(), scope, service: Service::default() }
    }
}

/// Takes everything down within `limit`, or at once when a second signal comes.
pub async fn end(running: Running, signals: &Signals, limit: Duration) -> Exit {
    let mounted = running.mounted.clone();
    // Whatever began it: nothing is added any more.
    signals.end();
    tokio::select! {
        exit = shut_down(running, limit) => exit,
        () = signals.reached(2) => {
            tracing::error!("a second signal: leaving at once");
            if let Some(mounted) = mounted {
                // Detaches what it can; the process ends right after, which closes /dev/fuse.
                within("forced unmount", timeouts::FORCED, move || mounted.unmount(timeouts::FORCED)).await;
            }
            Exit::Forced
        }
    }
}

/// Takes everything down within `limit`. Idempotent: what is down already costs nothing.
pub async fn shut_down(running: Running, limit: Duration) -> Exit {
    running.service.stopping();
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut hung: Vec<String> = Vec::new();
    if let Some(mounted) = &running.mounted {
        let mounted = mounted.clone();
        // Answers go to /dev/fuse; a thread of its own, so that the runtime never waits for the kernel.
        let _ = within("fail reads", left() / 4, move || mounted.fail_reads()).await;
    }
    for client in &running.clients {
        // Half of what is left: unmounting must have its share even if the disk hangs.
        let late = client.persist(true, left() / 2).await;
        hung.extend(late.into_iter().map(|name| format!("recording what is complete of {name}")));
    }
    let mut unmounted = true;
    if let Some(mounted) = &running.mounted {
        let mounted = mounted.clone();
        // The session's threads need some of the time that is left to end by.
        let limit = left().mul_f32(0.7);
        match within("unmount", left(), move || mounted.unmount(limit)).await {
            Some(report) => {
                unmounted = report.is_complete();
                if !unmounted {
                    hung.push(describe(&report));
                }
            }
            None => {
                unmounted = false;
                hung.push("unmounting".into());
            }
        }
    }
    for client in &running.clients {
        let limit = left().min(timeouts::TRACKER_STOPPED);
        for name in client.leave(limit).await {
            tracing::debug!(torrent = name, "the trackers were not told in time that we leave");
        }
    }
    running.scope.cancel();
    hung.extend(running.scope.join(left().max(Duration::from_millis(100))).await);
    for client in &running.clients {
        let client = client.clone();
        let limit = left().max(Duration::from_millis(100));
        let stopped = within("stop workers", limit * 2, move || client.stop_workers(limit)).await;
        hung.extend(stopped.unwrap_or_else(|| vec!["storage workers".into()]));
    }
    if hung.is_empty() {
        if running.mounted.is_some() {
            tracing::info!("unmounted");
        }
        return Exit::Ok;
    }
    tracing::error!("did not stop within {limit:?}: {}", hung.join(", "));
    if unmounted { Exit::Ok } else { Exit::Shutdown }
}

fn describe(report: &UnmountReport) -> String {
    format!("the mount ({:?}; threads left: {:?})", report.detached, report.left)
}

/// Runs something that blocks on a thread of its own and waits for it, `limit` at most; `None` when it takes
/// longer, or there is no thread.
async fn within<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(limit, on_thread(name, work)).await.ok()?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs::File;
    use std::io::{Read, Seek};

    use super::*;

    /// Far beyond what a test may take: only the paused clock gets there.
    const HOUR: Duration = Duration::from_secs(3600);

    /// Runs an end on a paused clock: what came of it, how long it took by that clock, and what was logged.
    fn of<T>(main: impl Future<Output = T>) -> (T, Duration, String) {
        let mut file = tempfile::tempfile().unwrap();
        let sink: Arc<File> = Arc::new(file.try_clone().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(sink).finish();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (outcome, took) = tracing::subscriber::with_default(subscriber, || {
            runtime.block_on(async {
                let began = tokio::time::Instant::now();
                (main.await, began.elapsed())
            })
        });
        let mut log = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut log).unwrap();
        (outcome, took, log)
    }

    /// A scope with a task that ends when it is told to, and two that never do.
    fn hung() -> TaskScope {
        let scope = TaskScope::root();
        assert!(scope.spawn("good", std::future::pending()));
        assert!(scope.spawn_graceful("hung", std::future::pending()));
        assert!(scope.child("torrent").spawn_graceful("hung as well", std::future::pending()));
        scope
    }

    #[test]
    fn o6_what_hangs_is_named_and_has_one_deadline_together() {
        let limit = Duration::from_secs(10);
        let (exits, took, log) = of(async {
            let scope = hung();
            let first = shut_down(Running::nothing(scope.clone()), limit).await;
            (first, shut_down(Running::nothing(scope), limit).await)
        });
        // Nothing was mounted, so nothing is left mounted.
        assert_eq!(exits, (Exit::Ok, Exit::Ok));
        // Twice, each within its deadline and what a phase has at least.
        assert!(took >= limit && took <= 2 * (limit + Duration::from_millis(100)), "{took:?}");
        let named: Vec<&str> = log.lines().filter(|line| line.contains("did not stop within 10s")).collect();
        assert_eq!(named.len(), 2, "{log}");
        for line in named {
            assert!(line.ends_with(": hung, torrent/hung as well"), "{line}");
        }
    }

    #[test]
    fn o7_a_second_signal_leaves_at_once_whatever_hangs() {
        let (exit, took, log) = of(async {
            let scope = hung();
            let signals = Signals::of(1);
            let second = signals.clone();
            scope.spawn_graceful("signals", async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                second.come();
                std::future::pending().await
            });
            end(Running::nothing(scope), &signals, HOUR).await
        });
        assert_eq!(exit, Exit::Forced);
        assert_eq!(took, Duration::from_secs(1), "when it came");
        assert!(log.contains("a second signal: leaving at once") && !log.contains("did not stop"), "{log}");
    }

    #[test]
    fn one_signal_is_given_all_of_the_deadline() {
        let (exit, took, log) = of(async { end(Running::nothing(hung()), &Signals::of(1), HOUR).await });
        assert_eq!(exit, Exit::Ok);
        assert!(took > HOUR / 2 && log.contains("did not stop within 3600s: hung"), "{took:?}: {log}");
    }
}
