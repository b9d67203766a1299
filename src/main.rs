//! The program: reads the command line, runs what was asked for, and turns what came of it into an exit code.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use torrentfs::cli::{self, Command, exit::Exit};
use torrentfs::run;

/// What the allocator keeps of freed memory for the next time, in bytes. Left alone it keeps several times what is in
/// use, in an arena for each thread; giving all of it back at once would have the kernel clear new pages for each
/// buffer (measured: half a second of processor time for each GiB).
const KEPT: libc::c_int = 8 << 20;
/// Blocks of this size and more are mapped by themselves. Above all of ours, or each would be mapped and unmapped.
const MAPPED: libc::c_int = 1 << 20;

/// Has the allocator keep little. To be called before any thread is started.
#[cfg(target_env = "gnu")]
fn keep_memory_small() {
    for (option, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, MAPPED)]
    {
        // SAFETY: only sets a parameter of the allocator; no other thread is there yet. If it is refused, nothing
        // changes but how much is kept.
        unsafe { libc::mallopt(option, value) };
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_memory_small() {}

fn main() -> ExitCode {
    keep_memory_small();
    let args: Vec<OsString> = std::env::args_os().collect();
    let (helper, started) = (cli::helper::is_called(&args), std::process::id());
    // A process in the background ends for its parent, which tells the code to whoever called.
    let code = |exit: Exit| match helper && std::process::id() == started {
        true => cli::helper::code(exit),
        false => exit.code(),
    };
    let command = match cli::parse(args) {
        Ok(command) => command,
        Err(exit) => return ExitCode::from(code(exit)),
    };
    let result = match command {
        Command::Mount(config) => run::mount::run(&config),
        Command::Cat(config) => run::cat::run(&config),
        Command::Inspect { source, json } => {
            cli::inspect::run(&source, json, &mut std::io::stdout().lock(), &mut std::io::stderr().lock())
                .map(|()| Exit::Ok)
        }
        Command::Verify(config) => run::verify::run(&config),
        Command::Cache(config) => run::cache::run(&config),
        Command::Remote(remote) => run::remote::run(&remote),
        Command::Demo { mountpoint, verbosity, log_format } => {
            run::demo::run(mountpoint, verbosity, log_format)
        }
        Command::Completions(shell) => run::start::print(&cli::completions(shell)).map(|()| Exit::Ok),
    };
    match result {
        Ok(exit) => ExitCode::from(code(exit)),
        Err(failure) => {
            // Nobody is left to tell when that fails.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(code(failure.exit()))
        }
    }
}
