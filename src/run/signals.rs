//! The one signal handler. The first SIGTERM, SIGINT or SIGHUP begins the shutdown; a second forces the exit. Whoever
//! asks for the end in another way ([`Signals::end`]) begins it as well, and never forces anything.
//!
//! [`hold`] keeps them back until [`Signals::install`] has the handler in place, so that none ends the program in
//! between. Where somebody else held them before us, they are let through then as well.
//!
//! SIGUSR1 asks for a report. It has no handler: it stays held, and the watchdog takes it from a descriptor
//! ([`Asked`]), so that it works while the runtime hangs.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::exit::{Exit, Failure};
use crate::sync::tasks::TaskScope;

/// The signals that ask for the end.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The signal that asks for a report.
const ASKING: Signal = Signal::SIGUSR1;

/// Keeps the signals that ask for the end from this thread, and those it starts, until [`Signals::install`]: they
/// wait. So does SIGUSR1, for [`Asked`]. Processes that are started get an empty mask from the standard library.
pub fn hold() {
    // That it could fail for these signals isn't foreseen; they would end the program as they do without us.
    let _ = SigSet::from_iter(ENDING.into_iter().chain([ASKING])).thread_block();
}

/// Takes SIGUSR1: somebody asks what the program is at.
pub struct Asked(SignalFd);

impl Asked {
    /// After [`hold`], which must have come before any other thread was started.
    ///
    /// # Errors
    /// [`Exit::Internal`] when the system refuses.
    pub fn new() -> Result<Self, Failure> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let taken = SignalFd::with_flags(&SigSet::from_iter([ASKING]), flags);
        taken.map(Self).map_err(|error| Failure::internal("can't watch for SIGUSR1", error))
    }

    /// Whether it has come since this was last called. Never waits.
    pub fn take(&self) -> bool {
        let mut came = false;
        while let Ok(Some(_)) = self.0.read_signal() {
            came = true;
        }
        came
    }
}

/// What has come that asks for the end.
#[derive(Clone)]
pub struct Signals(watch::Sender<Came>);

#[derive(Debug, Clone, Copy, Default)]
struct Came {
    signals: usize,
    /// In another way than by a signal, however often.
    asked: bool,
}

impl Came {
    /// As many signals: to be asked counts as a first one.
    fn count(self) -> usize {
        self.signals.max(self.asked.into())
    }
}

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
        let count = watch::Sender::new(Came::default());
        let signals = Self(count.clone());
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
                count.send_modify(|came| came.signals += 1);
            }
        });
        Ok(signals)
    }

    /// Those that a test gives; so many have come.
    #[cfg(test)]
    pub(super) fn of(signals: usize) -> Self {
        Self(watch::Sender::new(Came { signals, asked: false }))
    }

    /// One more comes.
    #[cfg(test)]
    pub(super) fn come(&self) {
        self.0.send_modify(|came| came.signals += 1);
    }

    /// Waits until at least `n` signals have come. Cancel-safe.
    pub async fn reached(&self, n: usize) {
        // Its sender is this one, so it doesn't end before.
        let _ = self.0.subscribe().wait_for(|came| came.count() >= n).await;
    }

    /// Asks for the end, as a first signal would; with an end under way that does nothing, and never counts as a
    /// second one. True if this began it.
    pub fn end(&self) -> bool {
        let mut began = false;
        self.0.send_modify(|came| {
            began = came.count() == 0;
            came.asked = true;
        });
        began
    }

    /// Whether the end was asked for, in whatever way.
    pub fn is_ending(&self) -> bool {
        self.0.borrow().count() > 0
    }
}

/// Whether a signal is ignored, as inherited from who started us.
fn is_ignored(signal: Signal) -> bool {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = text.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    let mask = mask.and_then(|m| u64::from_str_radix(m, 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test]
    async fn only_two_signals_force() {
        // Signals that came and whether it was asked for besides, in whatever order; and how many that is.
        for (signals, asked, count) in [(0, 0, 0), (1, 0, 1), (0, 3, 1), (1, 2, 1), (2, 0, 2), (2, 1, 2)] {
            for asked_first in [false, true] {
                let all = Signals(watch::Sender::new(Came::default()));
                let ask = || (0..asked).filter(|_| all.end()).count();
                let mut began = if asked_first { ask() } else { 0 };
                all.0.send_modify(|came| came.signals += signals);
                began += if asked_first { 0 } else { ask() };
                assert_eq!(began, usize::from(asked > 0 && (asked_first || signals == 0)));
                assert_eq!(all.is_ending(), count > 0);
                for n in 1..=2 {
                    let reached = futures_util::FutureExt::now_or_never(all.reached(n)).is_some();
                    assert_eq!(reached, n <= count, "{signals} {asked} {asked_first} {n}");
                }
            }
        }
    }
}
