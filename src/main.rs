//! The program: reads the command line, runs what was asked for, and turns what came of it into an exit code.

use std::io::Write;
use std::process::ExitCode;

use torrentfs::cli::{self, Command, exit::Exit};
use torrentfs::run;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(exit) => return ExitCode::from(exit.code()),
    };
    let result = match command {
        Command::Mount(config) => run::mount::run(&config),
        Command::Cat(config) => run::cat::run(&config),
        Command::Inspect { source, json } => {
            cli::inspect::run(&source, json, &mut std::io::stdout().lock(), &mut std::io::stderr().lock())
                .map(|()| Exit::Ok)
        }
        Command::Demo { mountpoint, verbosity, log_format } => {
            run::demo::run(mountpoint, verbosity, log_format)
        }
    };
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            // Nobody is left to tell when that fails.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit().code())
        }
    }
}
