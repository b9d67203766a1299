//! The one signal handler. The first SIGTERM, SIGINT or SIGHUP begins the shutdown; a second forces the exit.
//!
//! [`hold`] keeps them back until [`Signals::install`] has the handler in place, so that none ends the program in
//! between. Where somebody else held them before us, they are let through then as well.

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::exit::{Exit, Failure};
use crate::sync::tasks::TaskScope;

/// The signals that ask for the end.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Keeps the signals that ask for the end from this thread, and those it starts, until [`Signals::install`]: they
/// wait. Processes that are started get an empty mask from the standard library.
pub fn hold() {
    // That it could fail for these signals isn't foreseen; they would end the program as they do without us.
    let _ = SigSet::from_iter(ENDING).thread_block();
}

/// How many signals that ask for the end have come.
#[derive(Clone)]
pub struct Signals(watch::Receiver<usize>);

impl Signals {
    /// Installs the handler, in a task of `scope`, and lets through to this thread what [`hold`] kept back. SIGHUP
    /// stays ignored where it was inherited so (`nohup`).
    ///
    /// # Errors
    /// [`Exit::Internal`] when the system refuses.
    pub fn install(scope: &TaskScope) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::new(Exit::Internal, "can't install the signal handler", e);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hangup = match is_ignored(Signal::SIGHUP) {
            true => None,
            false => Some(signal(SignalKind::hangup()).map_err(failed)?),
        };
        SigSet::from_iter(ENDING).thread_unblock().map_err(|e| failed(e.into()))?;
        let (count, receiver) = watch::channel(0);
        scope.spawn("signals", async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    Some(()) = async { match hangup.as_mut() {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    } } => "SIGHUP",
                };
                tracing::info!("{name}: ending; a second signal forces the exit");
                count.send_modify(|n| *n += 1);
            }
        });
        Ok(Self(receiver))
    }

    /// Waits until at least `n` signals have come. Cancel-safe.
    pub async fn reached(&self, n: usize) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|count| *count >= n).await.is_err() {
            // The handler has ended with its scope: no more signals.
            std::future::pending::<()>().await;
        }
    }
}

/// Whether a signal is ignored, as inherited from who started us.
fn is_ignored(signal: Signal) -> bool {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = text.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    let mask = mask.and_then(|m| u64::from_str_radix(m, 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}
