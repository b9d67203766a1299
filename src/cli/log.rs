//! Log lines: which are shown, how they look, and where they go.
//!
//! They go to stderr through the [`terminal`](super::terminal) thread, which alone writes there. So a slow or
//! stopped terminal never stops who logs, and a line never lands in the middle of the live display.

use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};
use super::terminal::LogWriter;
use crate::config::LogFormat;

/// The variable whose filter replaces `-v` and `-q`, in the syntax of `tracing_subscriber::EnvFilter`.
pub const ENV: &str = "TORRENTFS_LOG";

/// The target of what somebody asked for: shown whatever `-q` and [`ENV`] say.
pub const REPORT: &str = "report";

/// Starts logging, once in the life of the process. `colour` is wanted on a terminal; `NO_COLOR` overrides it.
///
/// # Errors
/// A filter in `TORRENTFS_LOG` that isn't one ([`Exit::Usage`]), or a second call ([`Exit::Internal`]).
pub fn init(verbosity: i8, format: LogFormat, writer: LogWriter, colour: bool) -> Result<(), Failure> {
    let filter = match std::env::var(ENV) {
        Ok(text) if !text.trim().is_empty() => given(&text)?,
        _ => EnvFilter::new(directives(verbosity)),
    };
    let colour = colour && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let outcome = match format {
        LogFormat::Text => builder.with_ansi(colour).with_target(verbosity > 0).try_init(),
        LogFormat::Json => builder.with_ansi(false).json().flatten_event(true).try_init(),
    };
    outcome.map_err(|why| Failure::internal("can't start logging", why))
}

/// The filter that the environment gives. Reports are shown whatever it says: somebody asked for them.
fn given(text: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(format!("{text},{REPORT}=info")).map_err(|why| {
        Failure::new(Exit::Usage, format_args!("{ENV}={text}"), why)
            .hint(format!("write a filter as in {ENV}=info,torrentfs=debug"))
    })
}

/// The filter for a verbosity. The libraries below us are a level quieter than we are.
fn directives(verbosity: i8) -> &'static str {
    match verbosity {
        ..=-2 => "error,report=info",
        -1 => "warn,report=info",
        0 => "warn,fuser=error,torrentfs=info,torrentfs_fs=info,report=info",
        1 => "info,torrentfs=debug,torrentfs_fs=debug",
        2 => "debug,torrentfs=trace,torrentfs_fs=trace",
        3.. => "trace",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_is_shown_whatever_the_environment_says() {
        for text in ["warn", "off", "error,torrentfs=debug", "report=off", "torrentfs=info,"] {
            let all = given(text).unwrap().to_string();
            let own: Vec<_> = all.split(',').filter(|one| one.starts_with(REPORT)).collect();
            assert_eq!(own, ["report=info"], "{text}: {all}");
        }
        assert_eq!(given("a=b=c").unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn every_verbosity_has_a_valid_filter() {
        for verbosity in -3..=4 {
            EnvFilter::try_new(directives(verbosity)).unwrap();
        }
        assert!(directives(0).contains("torrentfs=info"));
        assert_eq!(directives(i8::MIN), "error,report=info");
        assert_eq!(directives(i8::MAX), "trace");
    }
}
