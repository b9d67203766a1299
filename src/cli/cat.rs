//! The flags of `torrentfs cat`, what its help says, and what it says when a path names no file.

use std::ffi::OsString;

use clap::Args;

use super::exit::{Exit, Failure};
use super::shared::{ClientArgs, LoggingArgs};
use crate::config::{self, CatConfig};

/// Entries named at most when a path isn't there: enough to see a slip, and to fit on a screen.
const NAMED_MAX: usize = 8;

/// Prints one file of a torrent.
#[derive(Debug, Args)]
pub(super) struct CatArgs {
    /// Magnet link, .torrent file or info-hash
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// The file, as a mount shows it; may be left out if the torrent has only one
    #[arg(value_name = "PATH")]
    path: Option<OsString>,

    /// Leave out so many bytes at the beginning
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = config::parse_size)]
    offset: u64,
    /// Print so many bytes at most [default: all up to the end]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    length: Option<u64>,

    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

impl CatArgs {
    /// The settings that they stand for.
    pub(super) fn config(self) -> CatConfig {
        let mut client = self.client.config(&self.logging);
        // What it prints is the file. So it is quieter than a mount by one step: warnings, and with -v the rest.
        client.verbosity = client.verbosity.saturating_sub(1);
        CatConfig { source: self.source, path: self.path, offset: self.offset, length: self.length, client }
    }
}

/// What the long help says after the options.
pub(super) fn notes() -> String {
    format!(
        "{}\n\n\
         PATH is relative to the torrent's root, with or without the torrent's name in front; a symbolic link in\n\
         it is followed within the torrent. An offset beyond the end prints nothing and is no error, as with\n\
         \"tail -c +N\"; a length beyond the end means up to the end.\n\n\
         Nothing is mounted, so no /dev/fuse is needed. What was fetched stays in the cache, for the next time\n\
         and for mounts; while it runs no other torrentfs can use the same cache directory. Progress is shown if\n\
         stderr is a terminal and standard output is none. When the reader of a pipe goes away it ends quietly\n\
         with 0; SIGINT, SIGTERM and SIGHUP end it with 130, and a second one forces that.\n\n{}",
        super::VALUES,
        super::environment_and_codes()
    )
}

/// A path names nothing in the torrent; `there` is what its deepest folder that exists holds, `folder` which one
/// that is (empty for the torrent's root).
pub fn no_such_path<'a>(path: &str, folder: &str, there: impl ExactSizeIterator<Item = &'a str>) -> Failure {
    let place = if folder.is_empty() { "the torrent".to_owned() } else { format!("\"{folder}\"") };
    Failure::new(Exit::BadInput, path, "the torrent has no such file")
        .hint(super::terminal::clean(&format!("{place} holds {}", some_of(there))))
}

/// A path names a folder, which holds `there`; an empty path is the torrent's root.
pub fn is_a_folder<'a>(path: &str, there: impl ExactSizeIterator<Item = &'a str>) -> Failure {
    let list = some_of(there);
    match path {
        "" => Failure::new(Exit::BadInput, "no PATH was given", "the torrent doesn't have one file alone")
            .hint(super::terminal::clean(&format!("name one: the torrent holds {list}"))),
        path => Failure::new(Exit::BadInput, path, "it is a folder")
            .hint(super::terminal::clean(&format!("name a file: it holds {list}"))),
    }
}

/// A symbolic link leads nowhere.
pub fn broken_link(path: &str) -> Failure {
    Failure::new(Exit::BadInput, path, "a symbolic link in it leads to nothing in the torrent")
        .hint("name the file itself")
}

/// The first few names of a list, and how many more there are.
fn some_of<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let all = names.len();
    if all == 0 {
        return "nothing".into();
    }
    let mut text = names.by_ref().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if all > NAMED_MAX {
        text.push_str(&format!(" and {} more", all - NAMED_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_names_are_told() {
        let all: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let rows = [(0, "nothing"), (1, "0"), (3, "0, 1, 2"), (20, "0, 1, 2, 3, 4, 5, 6, 7 and 12 more")];
        for (count, want) in rows {
            assert_eq!(some_of(all.iter().take(count).map(String::as_str)), want);
        }
    }

    #[test]
    fn what_is_wrong_with_a_path_is_said_with_what_is_there() {
        let there = || ["a", "b\u{1b}[2J"].into_iter();
        let rows = [
            (
                no_such_path("x", "", there()),
                "torrentfs: x: the torrent has no such file\n  the torrent holds a, b",
            ),
            (
                no_such_path("d/x", "d", there()),
                "torrentfs: d/x: the torrent has no such file\n  \"d\" holds a, b",
            ),
            (is_a_folder("d", there()), "torrentfs: d: it is a folder\n  name a file: it holds a, b"),
            (is_a_folder("", there()), "torrentfs: no PATH was given: "),
            (broken_link("l"), "torrentfs: l: a symbolic link"),
        ];
        for (failure, want) in rows {
            let text = failure.to_string();
            assert!(text.starts_with(want) && !text.contains('\u{1b}'), "{text}");
            assert_eq!(failure.exit(), Exit::BadInput);
        }
    }
}
