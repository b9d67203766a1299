//! `torrentfs verify`: its flags, and what it says at the end. All of it is text in, text out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::progress::span;
use super::shared::{LoggingArgs, PlaceArgs};
use super::terminal::{bytes, clean};
use crate::config::VerifyConfig;

/// Damaged files told by name at most: enough to see which, and to fit on a screen.
const NAMED_MAX: usize = 8;

/// Checks what is here of a torrent.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Magnet link, .torrent file or info-hash; of the first and the last the metadata must be in the cache already
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// Use what another client downloaded to this folder, in place: the torrent's own folder, or the one it lies in.
    /// What is missing is written there
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Never write below the folder of --data: what is missing is kept in the cache
    #[arg(long, requires = "data")]
    read_only: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

impl VerifyArgs {
    /// The settings that they stand for.
    pub(super) fn config(self) -> VerifyConfig {
        VerifyConfig {
            source: self.source,
            data: self.data,
            read_only: self.read_only,
            cache_dir: self.place.cache_dir,
            json: self.json,
            verbosity: self.logging.verbosity(),
            log_format: self.logging.format(),
        }
    }
}

/// What the long help says after the options.
pub(super) fn notes() -> String {
    format!(
        "Everything that is there of the torrent is hashed, whatever was recorded of it, and what was found is\n\
         recorded: mounts then serve what is right, and fetch the rest when it is read. Nothing is fetched now.\n\
         Without --data it looks at what is in the cache. The cache must not be in use meanwhile.\n\n\
         With --data nothing is copied: from then on mounts use the files where they are. Another client must not\n\
         write to them any more; if it may, say --read-only. To end that, remove the torrent from the cache\n\
         (\"torrentfs cache remove\"); the files stay.\n\n\
         It ends with 0 if everything that is there is right, also when something is missing, and with 9 if\n\
         something was there and wrong. Ctrl-C stops it at once; what was found out so far is kept.\n\n{}",
        super::environment_and_codes()
    )
}

/// What a check came to. Pieces that reach over the end of a file count once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The torrent's name.
    pub name: String,
    /// Its info-hash in hex.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// Pieces and bytes that are here and right.
    pub good: Count,
    /// That are here and wrong.
    pub bad: Count,
    /// That aren't here.
    pub missing: Count,
    /// That weren't looked at, since it was stopped.
    pub unchecked: Count,
    /// Its files, but for empty ones and padding.
    pub files: usize,
    /// Those that are whole.
    pub complete: usize,
    /// Those that hold something wrong, by path.
    pub damaged: Vec<String>,
    /// Where the data lies, if that isn't the cache, and whether it is never written to.
    pub data: Option<(PathBuf, bool)>,
    /// How long it took.
    pub took: Duration,
}

/// Some of a torrent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Pieces.
    pub pieces: u32,
    /// Bytes in them.
    pub bytes: u64,
}

impl Report {
    /// What the program ends with: [`Exit::Forced`] if it was stopped, [`Exit::Damaged`] if something was wrong.
    pub fn exit(&self) -> Exit {
        match (self.unchecked.pieces, self.bad.pieces) {
            (1.., _) => Exit::Forced,
            (_, 1..) => Exit::Damaged,
            _ => Exit::Ok,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", clean(&self.name));
        let looked_at = self.good.bytes + self.bad.bytes;
        let rate = match self.took.as_millis() {
            0 => 0,
            millis => u64::try_from(u128::from(looked_at) * 1000 / millis).unwrap_or(u64::MAX),
        };
        let row = |what: &str, count: Count, note: &str| {
            let share =
                if self.size == 0 { 100 } else { u128::from(count.bytes) * 100 / u128::from(self.size) };
            let (pieces, size) = (plural(count.pieces as usize, "piece"), bytes(count.bytes));
            format!("  {what:<10}{pieces:>16}  {size:>9}  {share:>3}%{note}\n")
        };
        out.push_str(&row("good", self.good, ""));
        if self.bad.pieces > 0 {
            let note = match &self.data {
                Some((_, true)) => "  fetched into the cache when they are read",
                _ => "  fetched again when they are read",
            };
            out.push_str(&row("wrong", self.bad, note));
        }
        out.push_str(&row("missing", self.missing, ""));
        if self.unchecked.pieces > 0 {
            out.push_str(&row("unchecked", self.unchecked, "  stopped before"));
        }
        out.push_str(&format!("  {} of {} complete\n", self.complete, plural(self.files, "file")));
        for path in self.damaged.iter().take(NAMED_MAX) {
            out.push_str(&format!("  wrong in {}\n", clean(path)));
        }
        if self.damaged.len() > NAMED_MAX {
            out.push_str(&format!("  and in {} more\n", self.damaged.len() - NAMED_MAX));
        }
        if looked_at > 0 {
            let took = match self.took.as_secs() {
                // Whole seconds would leave nothing of most of it.
                0..10 => format!("{:.1} s", self.took.as_secs_f64()),
                _ => span(self.took),
            };
            out.push_str(&format!("  {} hashed in {took} ({}/s)\n", bytes(looked_at), bytes(rate)));
        }
        if let Some((data, read_only)) = &self.data {
            let how = if *read_only { "read only" } else { "what is missing is written there" };
            out.push_str(&format!("  used in place: {} ({how})\n", clean(&data.to_string_lossy())));
        }
        out
    }

    /// As one JSON object on a line.
    pub fn json(&self) -> String {
        let count = |count: Count| json!({ "pieces": count.pieces, "bytes": count.bytes });
        let all = self.good.pieces + self.bad.pieces + self.missing.pieces + self.unchecked.pieces;
        let data = self
            .data
            .as_ref()
            .map(|(path, read_only)| json!({ "path": path.to_string_lossy(), "read_only": read_only }));
        let report = json!({
            "name": self.name,
            "infohash": self.key,
            "size": self.size,
            "pieces": all,
            "good": count(self.good),
            "bad": count(self.bad),
            "missing": count(self.missing),
            "unchecked": count(self.unchecked),
            "files": self.files,
            "files_complete": self.complete,
            "damaged": self.damaged,
            "data": data,
            "seconds": self.took.as_secs_f64(),
        });
        format!("{report}\n")
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A torrent by its magnet link or info-hash alone, of which nothing is known here.
pub fn unknown_torrent(given: &str) -> Failure {
    Failure::new(
        Exit::BadInput,
        given,
        "its metadata isn't known here, so there is nothing to compare data with",
    )
    .hint("give its .torrent file; or mount it first, which fetches the metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        Report {
            name: "film\x1b.mkv".into(),
            key: "a".repeat(40),
            size: 100 << 20,
            good: Count { pieces: 90, bytes: 90 << 20 },
            missing: Count { pieces: 10, bytes: 10 << 20 },
            files: 3,
            complete: 2,
            took: Duration::from_secs(3),
            ..Report::default()
        }
    }

    #[test]
    fn what_came_of_it_is_said() {
        let want = "\
film\u{fffd}.mkv
  good             90 pieces   90.0 MiB   90%
  missing          10 pieces   10.0 MiB   10%
  2 of 3 files complete
  90.0 MiB hashed in 3.0 s (30.0 MiB/s)
";
        assert_eq!(sample().text(), want);
        let worse = Report {
            bad: Count { pieces: 1, bytes: 1 << 20 },
            missing: Count { pieces: 5, bytes: 5 << 20 },
            unchecked: Count { pieces: 4, bytes: 4 << 20 },
            damaged: (0..10).map(|n| format!("d/{n}")).collect(),
            data: Some(("/their/files".into(), true)),
            ..sample()
        };
        let text = worse.text();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in [
            "wrong 1 piece 1.0 MiB 1% fetched into the cache",
            "unchecked 4 pieces 4.0 MiB 4% stopped before",
            "wrong in d/7",
            "and in 2 more",
            "used in place: /their/files (read only)",
        ] {
            assert!(text.contains(words), "no \"{words}\" in {text}");
        }
        assert!(!text.contains("d/8"), "{text}");
        let nothing = Report { took: Duration::ZERO, ..Report::default() };
        assert!(nothing.text().contains("0 of 0 files complete"), "{}", nothing.text());
    }

    #[test]
    fn json_has_the_numbers() {
        let report = Report { data: Some(("/d".into(), false)), ..sample() };
        let found: serde_json::Value = serde_json::from_str(&report.json()).unwrap_or_default();
        assert_eq!((&found["pieces"], &found["good"]["bytes"]), (&json!(100), &json!(90 << 20)));
        assert_eq!((&found["bad"]["pieces"], &found["missing"]["pieces"]), (&json!(0), &json!(10)));
        assert_eq!((&found["files"], &found["files_complete"]), (&json!(3), &json!(2)));
        assert_eq!(found["data"], json!({ "path": "/d", "read_only": false }));
        assert_eq!(found["infohash"], json!("a".repeat(40)));
    }

    #[test]
    fn exit_codes() {
        let one = Count { pieces: 1, bytes: 1 };
        let rows = [
            (sample(), Exit::Ok),
            (Report { missing: Count::default(), ..sample() }, Exit::Ok),
            (Report { bad: one, ..sample() }, Exit::Damaged),
            (Report { unchecked: one, ..sample() }, Exit::Forced),
            (Report { bad: one, unchecked: one, ..sample() }, Exit::Forced),
        ];
        for (report, want) in rows {
            assert_eq!(report.exit(), want);
        }
        assert_eq!(unknown_torrent("magnet:?x").exit(), Exit::BadInput);
    }
}
