//! The commands that talk to a running mount: their flags, and what they say. All of it is text in, text out.
//!
//! What `status` shows stands in [`super::status`]; asking is the business of `run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::terminal::{bytes, clean};
use crate::config;
use crate::control::message::{Added, Change, Limited, Prefetched, Removed, Report};

/// What a running mount is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// How it stands.
    Status {
        /// Which mount; `None` for all of this user.
        mountpoint: Option<PathBuf>,
        /// As JSON, instead of for people.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// More torrents.
    Add {
        /// Which mount.
        mountpoint: PathBuf,
        /// As they were written; not empty.
        sources: Vec<OsString>,
    },
    /// Torrents are to go.
    Remove {
        /// Which mount.
        mountpoint: PathBuf,
        /// Each by its name or info-hash, as it was written; not empty.
        torrents: Vec<String>,
        /// Whether what is kept of them goes, too.
        delete_data: bool,
    },
    /// It is to end.
    Unmount {
        /// Which mount.
        mountpoint: PathBuf,
    },
    /// What it is at, for who looks for what hangs.
    Debug {
        /// Which mount.
        mountpoint: PathBuf,
    },
    /// Something is to be fetched whole.
    Prefetch {
        /// Files and folders in mounts; not empty.
        paths: Vec<PathBuf>,
        /// Or no longer.
        off: bool,
    },
    /// The limits on rates are to be told, or changed first.
    Limit {
        /// Which mount.
        mountpoint: PathBuf,
        /// Of this torrent, by its name or info-hash; `None` for all together.
        torrent: Option<String>,
        /// On what is received.
        download: Change,
        /// On what is sent.
        upload: Change,
    },
}

/// Shows what running mounts do.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Which mount [default: all of yours]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    /// Print one JSON object; with --watch one a second, each on a line
    #[arg(long)]
    json: bool,
    /// Show it anew each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Adds torrents to a running mount.
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Which mount
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Magnet link, .torrent file, its URL, or info-hash; several may be given
    #[arg(required = true, num_args = 1.., value_name = "SOURCE")]
    sources: Vec<OsString>,
}

/// Takes torrents out of a running mount.
#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Which mount
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Name of a torrent as the mount shows it, or its info-hash (the first 8 digits will do); several may be given
    #[arg(required = true, num_args = 1.., value_name = "NAME|INFOHASH")]
    torrents: Vec<String>,
    /// Delete what is kept of it in the cache, too
    #[arg(long)]
    delete_data: bool,
}

/// Ends a running mount.
#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    /// Which mount
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Tells what a running mount is at.
#[derive(Debug, Args)]
pub(super) struct DebugArgs {
    /// Which mount
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Fetches files whole, in the background.
#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// File or folder in a mount; several may be given
    #[arg(required = true, num_args = 1.., value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Fetch them no longer
    #[arg(long)]
    off: bool,
}

/// Shows and changes the limits on rates.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Which mount
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Name of a torrent as the mount shows it, or its info-hash (the first 8 digits will do) [default: all together]
    #[arg(value_name = "NAME|INFOHASH")]
    torrent: Option<String>,
    /// Download no faster than this; none for no limit
    #[arg(long, value_name = "RATE|none", value_parser = change)]
    download: Option<Change>,
    /// Upload no faster than this; none for no limit
    #[arg(long, value_name = "RATE|none", value_parser = change)]
    upload: Option<Change>,
}

fn change(text: &str) -> Result<Change, config::ValueError> {
    match text {
        "none" => Ok(Change::To(None)),
        rate => config::parse_rate(rate).map(|rate| Change::To(Some(rate))),
    }
}

impl From<LimitArgs> for Remote {
    fn from(LimitArgs { mountpoint, torrent, download, upload }: LimitArgs) -> Self {
        let (download, upload) = (download.unwrap_or_default(), upload.unwrap_or_default());
        Self::Limit { mountpoint, torrent, download, upload }
    }
}

impl From<StatusArgs> for Remote {
    fn from(StatusArgs { mountpoint, json, watch }: StatusArgs) -> Self {
        Self::Status { mountpoint, json, watch }
    }
}

impl From<AddArgs> for Remote {
    fn from(AddArgs { mountpoint, sources }: AddArgs) -> Self {
        Self::Add { mountpoint, sources }
    }
}

impl From<RemoveArgs> for Remote {
    fn from(RemoveArgs { mountpoint, torrents, delete_data }: RemoveArgs) -> Self {
        Self::Remove { mountpoint, torrents, delete_data }
    }
}

impl From<UnmountArgs> for Remote {
    fn from(UnmountArgs { mountpoint }: UnmountArgs) -> Self {
        Self::Unmount { mountpoint }
    }
}

impl From<DebugArgs> for Remote {
    fn from(DebugArgs { mountpoint }: DebugArgs) -> Self {
        Self::Debug { mountpoint }
    }
}

impl From<PrefetchArgs> for Remote {
    fn from(PrefetchArgs { paths, off }: PrefetchArgs) -> Self {
        Self::Prefetch { paths, off }
    }
}

/// A torrent was added.
pub fn added(added: &Added) -> String {
    let name = clean(&added.name);
    let word = if added.known { "was there" } else { "added" };
    match added.size {
        0 => format!("{word}  {name}\n"),
        size => format!("{word}  {name}  ({} of {} here)\n", bytes(added.here), bytes(size)),
    }
}

/// A torrent was removed.
pub fn removed(removed: &Removed) -> String {
    let name = clean(&removed.name);
    let data = if removed.data_deleted {
        format!(", with its data ({})", bytes(removed.freed))
    } else {
        String::new()
    };
    let left =
        removed.data_left.as_ref().map_or(String::new(), |path| format!("; {} stays as it is", clean(path)));
    format!("removed  {name}{data}{left}\n")
}

/// Something is being fetched, or no longer; `path` is what was named.
pub fn prefetched(path: &str, told: &Prefetched, off: bool) -> String {
    let files = match told.files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    let word = if off { "no longer fetching" } else { "fetching" };
    format!("{word}  {}  ({files}, {} of {} here)\n", clean(path), bytes(told.here), bytes(told.size))
}

/// The limits as they are now.
pub fn limited(told: &Limited) -> String {
    let rate = |rate: Option<u64>| rate.map_or("no limit".to_owned(), |rate| format!("{}/s", bytes(rate)));
    let whose = told.name.as_ref().map_or("all torrents together".into(), |name| clean(name));
    format!("limits  {whose}  (download: {}, upload: {})\n", rate(told.download), rate(told.upload))
}

/// What a mount is at: line by line as it says, but names in it are those of strangers.
pub fn report(told: &Report) -> String {
    told.report.lines().fold(String::new(), |out, line| out + &clean(line) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let new = Added { name: "a\x1b[2J".into(), size: 2048, here: 1024, ..Added::default() };
        assert_eq!(added(&new), "added  a\u{fffd}[2J  (1.0 KiB of 2.0 KiB here)\n");
        assert_eq!(added(&Added { known: true, size: 0, name: "b".into(), ..new }), "was there  b\n");
        let gone = Removed { name: "c".into(), ..Removed::default() };
        assert_eq!(removed(&gone), "removed  c\n");
        let gone = Removed { data_deleted: true, freed: 2048, data_left: Some("/d/c".into()), ..gone };
        assert_eq!(removed(&gone), "removed  c, with its data (2.0 KiB); /d/c stays as it is\n");
        let limits = Limited { name: Some("a\x1b".into()), download: Some(2 << 20), upload: None };
        assert_eq!(limited(&limits), "limits  a\u{fffd}  (download: 2.0 MiB/s, upload: no limit)\n");
        let all = Limited { name: None, ..limits };
        assert!(limited(&all).starts_with("limits  all torrents together  ("));
        assert_eq!(report(&Report { report: "a\n  b\x1b".into() }), "a\n  b\u{fffd}\n");
        let told = Prefetched { files: 1, size: 4096, here: 0 };
        assert_eq!(prefetched("/m/d", &told, false), "fetching  /m/d  (1 file, 0 B of 4.0 KiB here)\n");
        let told = Prefetched { files: 2, ..told };
        assert_eq!(
            prefetched("/m/d", &told, true),
            "no longer fetching  /m/d  (2 files, 0 B of 4.0 KiB here)\n"
        );
    }
}
