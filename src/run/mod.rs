//! The composition root: puts the parts together, waits for signals, takes everything down again.
//!
//! [`mount`] is the main job; [`cat`] prints a file without a mount, which [`locate`] finds by its path; [`demo`]
//! seeds a sample with a second client and mounts it; [`watch`] follows a folder of torrents; [`verify`] checks what is here of a torrent; [`cache`] shows and
//! trims the cache folder; [`start`] has what they share; [`signals`] is the one signal
//! handler; [`daemon`] is the split into a waiting parent and a process in the background; [`notify`] is who else is
//! told how the mount is; [`watchdog`] says what hangs, and [`diagnose`] all there is to say, to whoever asks
//! [`report`]; [`journal`] is where a process in the background logs; [`control`] is the
//! socket over which a mount can be asked and told things, [`remote`] has the commands that do so, and [`reach`] how they
//! find it; [`shutdown`] is the one sequence in which everything ends.

pub mod cache;
pub mod cat;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod diagnose;
pub mod journal;
pub mod locate;
pub mod mount;
pub mod notify;
pub mod reach;
pub mod remote;
pub mod report;
pub mod shutdown;
pub mod signals;
pub mod start;
pub mod verify;
pub mod watch;
pub mod watchdog;

use std::future::Future;

use tokio::sync::oneshot;

use crate::cli::exit::{Exit, Failure};
use crate::sync::timeouts;

/// Runs the program's main future on a runtime of its own.
///
/// # Errors
/// The future's own; [`Exit::Internal`] when the runtime can't be made.
pub fn on_runtime(main: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("runtime")
        .enable_all()
        .build()
        .map_err(|e| Failure::internal("can't start the runtime", e))?;
    let result = runtime.block_on(main);
    runtime.shutdown_timeout(timeouts::RUNTIME_END);
    result
}

/// Runs something that may block for as long as it likes on a thread of its own, and waits for it; `None` when there
/// is no thread, or it panics. Dropping the future leaves the thread to itself.
pub(crate) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Whoever asked may have gone: what came of it is dropped then.
        let _ = done.send(work());
    });
    thread.ok()?;
    answer.await.ok()
}
