//! Who has the [report](super::diagnose) made: the watchdog for SIGUSR1, the control socket for `torrentfs debug`.
//!
//! **Flow.** [`Reporter::ask`] has it made on a thread and a runtime of its own, which share nothing with the program's.
//! One report is made at a time: whoever asks while one is under way gets that one. So asking again and again costs
//! no more than asking once.
//!
//! **Not here.** What stands in it.

use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::watch;
use torrentfs_fs::lock::{Rank, RankedMutex};
use torrentfs_fs::session::Mounted;

use super::diagnose::{self, Parts};
use crate::client::Client;
use crate::sync::tasks::TaskScope;

/// Makes reports of what is up so far.
pub struct Reporter {
    scope: TaskScope,
    client: OnceLock<Weak<Client>>,
    mounted: OnceLock<Weak<Mounted>>,
    parts: Arc<Parts>,
    /// The report made last, or under way.
    last: RankedMutex<Option<Awaited>>,
}

/// A report that somebody waits for. Cloning gives another one who waits for the same.
#[derive(Clone)]
pub struct Awaited(watch::Receiver<Option<Arc<str>>>);

impl Reporter {
    /// Of the program whose tasks these are.
    pub fn new(scope: &TaskScope) -> Self {
        Self {
            scope: scope.clone(),
            client: OnceLock::new(),
            mounted: OnceLock::new(),
            parts: Arc::default(),
            last: RankedMutex::new(Rank::Leaf, "report", None),
        }
    }

    /// Tells of this client as well. The first one stays: there is one behind the mount.
    pub fn client(&self, client: &Arc<Client>) {
        let _ = self.client.set(Arc::downgrade(client));
    }

    /// Tells of this mount as well. The first one stays.
    pub fn mount(&self, mounted: &Arc<Mounted>) {
        let _ = self.mounted.set(Arc::downgrade(mounted));
    }

    /// The program's tasks.
    pub fn scope(&self) -> &TaskScope {
        &self.scope
    }

    /// The client, if there is one, and still.
    pub fn watched(&self) -> Option<Arc<Client>> {
        self.client.get()?.upgrade()
    }

    /// What the program is at; `None` if that can't be told. Takes some seconds at most. Dropping it gives up waiting.
    pub async fn report(self: &Arc<Self>) -> Option<Arc<str>> {
        let mut awaited = self.ask();
        let made = awaited.0.wait_for(Option::is_some).await.ok()?;
        made.clone()
    }

    /// Has a report made, unless one is under way. Never waits.
    pub fn ask(self: &Arc<Self>) -> Awaited {
        let (made, awaited) = watch::channel(None);
        let awaited = Awaited(awaited);
        {
            let mut last = self.last.lock();
            if let Some(under_way) = last.as_ref().filter(|last| last.now().is_none()) {
                return under_way.clone();
            }
            *last = Some(awaited.clone());
        }
        let reporter = self.clone();
        // Not joined: its waits are bounded, and it ends with the process. Whoever waits sees it end.
        let thread = std::thread::Builder::new().name("report".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!("no report can be made: {error}"),
            };
            let mounted = reporter.mounted.get().and_then(Weak::upgrade);
            let (client, scope, parts) = (reporter.watched(), &reporter.scope, &reporter.parts);
            let text = runtime.block_on(diagnose::report(client.as_ref(), mounted.as_deref(), scope, parts));
            // The last one who waited may have gone.
            let _ = made.send(Some(text.into()));
        });
        if let Err(error) = thread {
            tracing::error!("no report can be made: {error}");
        }
        awaited
    }
}

impl Awaited {
    /// What has come of it: nothing yet, or the report, or within `None` when there will be none. Never waits.
    pub fn now(&self) -> Option<Option<Arc<str>>> {
        // In this order: it is sent before its sender goes.
        let ended = self.0.has_changed().is_err();
        let made = self.0.borrow().clone();
        (ended || made.is_some()).then_some(made)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test]
    async fn one_report_at_a_time_is_shared() {
        let scope = TaskScope::root();
        scope.spawn("waits", std::future::pending());
        let reporter = Arc::new(Reporter::new(&scope));
        // One that is under way, and stays so until it is let go.
        let (made, awaited) = watch::channel(None);
        *reporter.last.lock() = Some(Awaited(awaited));
        let waiting = [reporter.ask(), reporter.ask()];
        assert!(waiting.iter().all(|one| one.now().is_none()));
        made.send(Some("planned".into())).unwrap();
        for one in &waiting {
            assert_eq!(one.now().unwrap().as_deref(), Some("planned"));
        }
        // Then another is made; and one whose maker is gone isn't waited for.
        assert!(reporter.report().await.unwrap().contains("waits: "));
        let (made, awaited) = watch::channel(None);
        *reporter.last.lock() = Some(Awaited(awaited));
        drop(made);
        assert!(reporter.report().await.unwrap().contains("waits: "));
        scope.cancel();
    }
}
