//! The composition root: puts the parts together, waits for signals, takes everything down again.
//!
//! [`mount`] is the main job; [`demo`] seeds a sample with a second client and mounts it; [`signals`] is the one
//! signal handler; [`shutdown`] is the one sequence in which everything ends.

pub mod demo;
pub mod mount;
pub mod shutdown;
pub mod signals;

use std::future::Future;
use std::time::Duration;

use crate::cli::exit::{Exit, Failure};

/// What the runtime itself may take to end after the shutdown sequence: nothing is left to run then.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// Runs the program's main future on a runtime of its own.
///
/// # Errors
/// The future's own; [`Exit::Internal`] when the runtime can't be made.
pub fn on_runtime(main: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("runtime")
        .enable_all()
        .build()
        .map_err(|e| Failure::internal("can't start the runtime", e))?;
    let result = runtime.block_on(main);
    runtime.shutdown_timeout(RUNTIME_END);
    result
}

/// Files, sockets and the handles of waiting readers' status are descriptors; the usual soft limit of 1024 is
/// for programs that use `select`.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!("the limit on open files stays at {soft}: {error}");
    }
}
