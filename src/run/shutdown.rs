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
    use super::*;
    use crate::cli::terminal::testing::Captured;

    #[tokio::test(start_paused = true)]
    async fn o6_what_does_not_stop_is_logged_by_name() {
        let log = Captured::default();
        let _here = log.subscribe();
        for (hangs, words) in [(true, "did not stop within 3s: client/hung"), (false, "")] {
            let scope = TaskScope::root();
            if hangs {
                // It doesn't watch for the end.
                scope.child("client").spawn_graceful("hung", std::future::pending());
            }
            scope.spawn("ends", std::future::pending());
            let began = tokio::time::Instant::now();
            let exit = shut_down(Running::nothing(scope), Duration::from_secs(3)).await;
            assert_eq!(exit, Exit::Ok, "the mount is gone all the same");
            assert!(began.elapsed() < Duration::from_secs(5));
            let said = log.take();
            assert!(said.contains(words) && (hangs || !said.contains("did not stop")), "{said}");
        }
    }
}
