//! `--daemon`: the mount is kept up by a process in the background, and the one that was started waits until it is
//! ready.
//!
//! **Flow.** [`fork`] splits the process before it has a second thread. The child leaves the terminal's session and
//! goes on as in the foreground, with the caller's stderr: what a start says, and why it fails, is seen as ever. The
//! parent [`wait`]s. When the mount is ready the child lets go of stderr and writes a byte into the pipe between the
//! two ([`Parent::ready`]); the parent ends with 0. When the child ends instead, the parent ends with the child's
//! exit code.
//!
//! **Whoever gives up waiting gives up the mount.** A signal to the parent is handed on, and the child is told to end
//! when the parent dies in any other way. Once it is ready, it is on its own.
//!
//! **Why a fork.** It comes before any thread, lock or buffer, so the child finds everything as it was. Executing
//! the program anew would read the command line, and the files it names, a second time.
//!
//! **Not here.** Where log lines go afterwards: to `--log-file`, or as [`super::journal`] says.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid, setsid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::notify::Supervisor;
use super::signals::Signals;
use crate::cli::exit::{Exit, Failure};
use crate::sync::tasks::TaskScope;

/// Between two looks at a child that has closed the pipe: it is gone in less than that, as a rule.
const LOOK: Duration = Duration::from_millis(5);

/// Which of the two processes goes on after [`fork`].
pub enum Side {
    /// The one that was started.
    Waiting(Child),
    /// The one in the background.
    Background(Parent),
}

/// The background process, as the parent knows it.
pub struct Child {
    pid: Pid,
    told: PipeReader,
}

/// The waiting process, as the child knows it. Dropping it without [`Parent::ready`] tells nothing: the parent waits
/// for the child's end then.
pub struct Parent {
    tell: PipeWriter,
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(Exit::Internal, format_args!("can't go into the background: {what}"), error)
}

/// Splits the process in two. The child is in a session of its own, in the folder `/`, with nothing to read from
/// stdin.
///
/// # Errors
/// [`Exit::Internal`] when the system refuses, and when there are other threads, which a child would lack.
pub fn fork() -> Result<Side, Failure> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(Failure::internal("can't go into the background", format_args!("{threads} threads")));
    }
    let (told, tell) = std::io::pipe().map_err(failed("no pipe"))?;
    let parent = getpid();
    // SAFETY: this is the only thread, as was just seen, so the child has a consistent copy of all there is.
    match unsafe { nix::unistd::fork() }.map_err(|e| failed("no process")(e.into()))? {
        ForkResult::Parent { child } => {
            drop(tell);
            Ok(Side::Waiting(Child { pid: child, told }))
        }
        ForkResult::Child => {
            drop(told);
            detach(parent)?;
            Ok(Side::Background(Parent { tell }))
        }
    }
}

/// Leaves the terminal, the current folder and the caller's stdin. From now on the parent's death is a SIGTERM.
fn detach(parent: Pid) -> Result<(), Failure> {
    setsid().map_err(|e| failed("no session")(e.into()))?;
    set_pdeathsig(Signal::SIGTERM).map_err(|e| failed("no word of the parent's end")(e.into()))?;
    if getppid() != parent {
        // It died before that was asked for.
        return Err(Failure::new(Exit::Forced, "can't go into the background", "who asked for it is gone"));
    }
    chdir("/").map_err(|e| failed("the folder /")(e.into()))?;
    let nothing = File::open("/dev/null").map_err(failed("/dev/null"))?;
    dup2_stdin(&nothing).map_err(|e| failed("stdin")(e.into()))
}

/// Goes into the mount namespace that a file of `/proc` stands for. To be called before any thread is started.
///
/// # Errors
/// [`Exit::Mount`] when there is none, or the system refuses.
pub fn enter_namespace(path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Mount, format_args!("can't enter {}", path.display()), error);
    let namespace = File::open(path).map_err(failed)?;
    // SAFETY: the descriptor is open as long as the call takes; no memory is passed.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(failed(std::io::Error::last_os_error())),
    }
}

impl Parent {
    /// Tells the parent that the mount is ready, and is on its own from then on: stdout and stderr are let go of,
    /// and the parent's end is none of our business any more. What is to be seen on stderr has to be written by now.
    /// Doesn't wait. To be called on the thread that called [`fork`].
    ///
    /// # Errors
    /// The parent is gone: nobody wants the mount.
    pub fn ready(mut self) -> std::io::Result<()> {
        let nothing = File::options().write(true).open("/dev/null")?;
        dup2_stdout(&nothing)?;
        dup2_stderr(&nothing)?;
        set_pdeathsig(None)?;
        self.tell.write_all(b"r")
    }
}

/// Waits until the child is ready, or has ended; a signal is handed on to it. Tells a service manager of the child.
///
/// # Errors
/// The child ended before it was ready. What it said itself isn't said again.
pub fn wait(child: Child, mountpoint: &Path) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::internal("can't start the runtime", e))?;
    runtime.block_on(wait_async(child, mountpoint))
}

async fn wait_async(child: Child, mountpoint: &Path) -> Result<Exit, Failure> {
    let pid = child.pid;
    let signals = Signals::install(&TaskScope::root())?;
    let mut told = pipe::Receiver::from_owned_fd(child.told.into()).map_err(failed("its pipe"))?;
    let mut forwarded = 0;
    // Until the pipe says something or is closed; then until the child is gone.
    let mut open = true;
    loop {
        tokio::select! {
            byte = told.read_u8(), if open => match byte {
                // It was told to end in the same moment, and does.
                Ok(_) if forwarded > 0 => {}
                Ok(_) => {
                    if let Some(supervisor) = Supervisor::from_env() {
                        supervisor.tell(&format!("MAINPID={pid}\nREADY=1"));
                    }
                    return Ok(Exit::Ok);
                }
                Err(_) => open = false,
            },
            () = tokio::time::sleep(LOOK), if !open => {
                if let Some(ended) = ended(pid)? {
                    return how_it_ended(ended, forwarded > 0, mountpoint);
                }
            }
            () = signals.reached(forwarded + 1) => {
                forwarded += 1;
                // It is our own child and not waited for yet, so the number is still its own.
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
    }
}

fn ended(pid: Pid) -> Result<Option<WaitStatus>, Failure> {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(None),
        Ok(status) => Ok(Some(status)),
        Err(error) => Err(failed("its end")(error.into())),
    }
}

/// What the end of a child that was never ready means for whoever started it.
fn how_it_ended(status: WaitStatus, told_to: bool, mountpoint: &Path) -> Result<Exit, Failure> {
    let what = format!("can't mount at {}", mountpoint.display());
    match status {
        // A signal that came to the parent ended it.
        WaitStatus::Exited(_, 0) if told_to => Ok(Exit::Forced),
        WaitStatus::Exited(_, 0) => {
            Err(Failure::new(Exit::Forced, what, "it was told to end, or unmounted, before it was ready"))
        }
        // It has said why.
        WaitStatus::Exited(_, code) => Ok(Exit::of_code(code)),
        WaitStatus::Signaled(_, signal, _) => Err(Failure::new(
            Exit::Internal,
            what,
            format_args!("the process in the background got {signal}"),
        )
        .hint("somebody killed it, or the system was out of memory")),
        other => Err(Failure::internal(what, format_args!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_the_end_of_the_child_means() {
        let pid = Pid::from_raw(7);
        let code = |status, told| match how_it_ended(status, told, Path::new("/m")) {
            Ok(exit) => (exit, false),
            Err(failure) => (failure.exit(), true),
        };
        let rows = [
            (WaitStatus::Exited(pid, 0), true, (Exit::Forced, false)),
            (WaitStatus::Exited(pid, 0), false, (Exit::Forced, true)),
            (WaitStatus::Exited(pid, 5), false, (Exit::Cache, false)),
            (WaitStatus::Exited(pid, 1), true, (Exit::BadInput, false)),
            (WaitStatus::Exited(pid, 99), false, (Exit::Internal, false)),
            (WaitStatus::Signaled(pid, Signal::SIGKILL, false), false, (Exit::Internal, true)),
        ];
        for (status, told, want) in rows {
            assert_eq!(code(status, told), want, "{status:?} {told}");
        }
    }
}
