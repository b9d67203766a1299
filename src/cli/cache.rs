//! `torrentfs cache`: its flags, what it prints, and which torrents are meant. All of it is text in, text out.
//!
//! [`table`] and [`json()`] show what [`catalog::scan`] found; [`named`] finds the torrents that `remove` is to take,
//! and [`to_prune`] those that `prune` is to take. Nothing is touched here: that is the business of `run`.
//!
//! [`catalog::scan`]: crate::storage::catalog::scan

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::exit::{Exit, Failure};
use super::shared::PlaceArgs;
use super::terminal::{bytes, clean};
use crate::config::{self, CacheAction, CacheConfig};
use crate::metainfo::Source;
use crate::storage::catalog::{Catalog, Entry};

/// Digits of an info-hash in the table, and the least that `remove` takes for the beginning of one: as many as tell
/// torrents of equal names apart in a mount.
const SHORT: usize = 8;
/// Names told at most when none fits: enough to see a slip, and to fit on a screen.
const NAMED_MAX: usize = 8;

/// What the help says after the options.
const VALUES: &str = "\
Removing needs the cache for itself: not while a mount uses it. Nothing but torrents is ever removed, and
never what lies elsewhere.";

/// Shows and trims the cache.
#[derive(Debug, Args)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Say what lies in the cache; a mount may be using it
    List(ListArgs),
    /// Remove the torrents that were used longest ago
    #[command(after_help = VALUES)]
    Prune(PruneArgs),
    /// Remove torrents by name or info-hash
    #[command(after_help = VALUES)]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Until what is left takes no more than this on the disk
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    to: Option<u64>,
    /// All that weren't used for so long, as in 30d
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    older_than: Option<Duration>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Name of a torrent as "cache list" shows it, or its info-hash (the first 8 digits will do)
    #[arg(required = true, num_args = 1.., value_name = "NAME|INFOHASH")]
    names: Vec<String>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

impl CacheArgs {
    /// The settings that they stand for.
    pub(super) fn config(self) -> CacheConfig {
        let (place, action) = match self.command {
            CacheCommand::List(args) => (args.place, CacheAction::List { json: args.json }),
            CacheCommand::Prune(args) => {
                let PruneArgs { to, older_than, dry_run, place } = args;
                (place, CacheAction::Prune { to, older_than, dry_run })
            }
            CacheCommand::Remove(args) => {
                (args.place, CacheAction::Remove { names: args.names, dry_run: args.dry_run })
            }
        };
        CacheConfig { cache_dir: place.cache_dir, action }
    }
}

/// What lies in a cache folder, for people. `now` is in seconds since the epoch.
pub fn table(catalog: &Catalog, cache: &Path, now: i64) -> String {
    let mut out = String::new();
    if !catalog.entries.is_empty() {
        let head = ["INFO-HASH", "HERE", "SIZE", "ON DISK", "LAST USE", "STATE"].map(str::to_owned);
        let mut rows = vec![(head, "NAME".to_owned())];
        // What was used last stands first: it is what one looks for.
        for entry in catalog.entries.iter().rev() {
            let cells = [
                short(&entry.key).to_owned(),
                bytes(entry.here),
                entry.size.map_or("-".into(), bytes),
                bytes(entry.allocated),
                ago(now.saturating_sub(entry.last_used)),
                state(entry),
            ];
            rows.push((cells, name(entry)));
        }
        let mut widths = [0; 6];
        for (cells, _) in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.len().max(*width);
            }
        }
        for (cells, name) in &rows {
            for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
                // Words to the left, figures to the right.
                match column {
                    0 | 5 => out.push_str(&format!("{cell:<width$}  ")),
                    _ => out.push_str(&format!("{cell:>width$}  ")),
                }
            }
            out.push_str(name);
            out.push('\n');
        }
    }
    let (here, allocated) = totals(&catalog.entries);
    out.push_str(&format!(
        "{}: {} here, {} on disk, in {}\n",
        torrents(catalog.entries.len()),
        bytes(here),
        bytes(allocated),
        clean(&cache.to_string_lossy())
    ));
    if let Some(owner) = catalog.owner {
        out.push_str(&format!("In use by {}.\n", process(owner)));
    }
    if !catalog.unknown.is_empty() {
        let names: Vec<_> = catalog.unknown.iter().map(|name| name.to_string_lossy()).collect();
        out.push_str(&format!("Not of torrentfs, and left alone: {}\n", clean(&names.join(", "))));
    }
    out
}

/// What lies in a cache folder, as one JSON object on a line.
pub fn json(catalog: &Catalog, cache: &Path) -> String {
    let torrent = |entry: &Entry| {
        json!({
            "infohash": entry.key,
            "name": entry.name,
            "here": entry.here,
            "size": entry.size,
            "on_disk": entry.allocated,
            "last_used": entry.last_used,
            "state": entry.state.as_str(),
            "in_use": entry.in_use,
            "data": entry.adopted.as_ref().map(|data| {
                json!({ "path": data.path.to_string_lossy(), "read_only": data.read_only })
            }),
            "path": entry.path.to_string_lossy(),
        })
    };
    let (here, allocated) = totals(&catalog.entries);
    let all = json!({
        "cache_dir": cache.to_string_lossy(),
        "in_use": catalog.owner.is_some(),
        "in_use_by": catalog.owner.flatten(),
        "here": here,
        "on_disk": allocated,
        "torrents": catalog.entries.iter().rev().map(torrent).collect::<Vec<_>>(),
        "unknown": catalog.unknown.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>(),
    });
    format!("{all}\n")
}

/// One line about a torrent that is, or would be, removed.
pub fn removed(entry: &Entry, dry_run: bool) -> String {
    let what = if dry_run { "would remove" } else { "removed" };
    format!("{what}  {}  {:>9}  {}\n", short(&entry.key), bytes(entry.allocated), name(entry))
}

/// The last line after a removal: how many were taken of a catalog, and what they gave.
pub fn sum(taken: usize, freed: u64, catalog: &Catalog, dry_run: bool) -> String {
    let (_, all) = totals(&catalog.entries);
    let left = torrents(catalog.entries.len().saturating_sub(taken));
    let what = match (taken, dry_run) {
        (0, _) => "nothing to remove".to_owned(),
        (_, false) => format!("{} removed, {} freed", torrents(taken), bytes(freed)),
        (_, true) => format!("{} would be removed, {} freed", torrents(taken), bytes(freed)),
    };
    format!("{what}; {left} with {} on disk left\n", bytes(all.saturating_sub(freed)))
}

/// The process that has a cache folder.
pub fn process(owner: Option<u32>) -> String {
    owner.map_or("a running torrentfs".into(), |pid| format!("a running torrentfs (process {pid})"))
}

/// The torrents that are meant, each once, in the order of their names. A name means the torrent that is called so;
/// hex digits also the one whose info-hash they are, or begin.
///
/// # Errors
/// [`Exit::BadInput`] for what fits none, and for what fits several, with what it could be.
pub fn named<'a>(entries: &'a [Entry], names: &[String]) -> Result<Vec<&'a Entry>, Failure> {
    let mut meant: Vec<&Entry> = Vec::new();
    for given in names {
        let digits = digits(given);
        let fits = |entry: &&Entry| {
            entry.name.as_deref() == Some(given)
                || digits.as_ref().is_some_and(|digits| entry.key.starts_with(digits))
        };
        let found: Vec<&Entry> = entries.iter().filter(fits).collect();
        match found[..] {
            [] => return Err(unknown(given, entries)),
            [entry] if meant.iter().any(|other| other.key == entry.key) => {}
            [entry] => meant.push(entry),
            _ => return Err(ambiguous(given, &found)),
        }
    }
    Ok(meant)
}

/// The info-hash that was given, or its beginning, in hex.
fn digits(given: &str) -> Option<String> {
    match Source::parse(given) {
        // Base32 as well.
        Ok(Source::InfoHash(hash)) => Some(hash.to_string()),
        _ => {
            let is_hex = given.len() >= SHORT && given.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| given.to_ascii_lowercase())
        }
    }
}

fn unknown(given: &str, entries: &[Entry]) -> Failure {
    let failure = Failure::new(Exit::BadInput, given, "there is no such torrent in the cache");
    if entries.is_empty() {
        return failure.hint("the cache is empty; is it the right one? Name another with --cache-dir");
    }
    let mut names: Vec<_> = entries.iter().rev().take(NAMED_MAX).map(name).collect();
    if entries.len() > NAMED_MAX {
        names.push(format!("{} more", entries.len() - NAMED_MAX));
    }
    failure.hint(format!("there are: {}; \"torrentfs cache list\" shows all", names.join(", ")))
}

fn ambiguous(given: &str, found: &[&Entry]) -> Failure {
    let each =
        |entry: &&Entry| format!("\n    {}  {:>9}  {}", entry.key, bytes(entry.allocated), name(entry));
    Failure::new(Exit::BadInput, given, format_args!("{} torrents in the cache could be meant", found.len()))
        .hint(format!("give one's info-hash:{}", found.iter().map(each).collect::<String>()))
}

/// What `prune` takes, the least recently used first: those that weren't used for `older_than`, and more of them until
/// what is left takes `to` bytes on the disk. Adopted data isn't ours to take, and without its record nobody would find
/// it again: those stay. `now` is in seconds since the epoch. Pure.
pub fn to_prune(entries: &[Entry], to: Option<u64>, older_than: Option<Duration>, now: i64) -> Vec<&Entry> {
    let mut left: u64 = entries.iter().map(|entry| entry.allocated).sum();
    let is_old = |entry: &Entry| {
        let unused = u64::try_from(now.saturating_sub(entry.last_used)).unwrap_or(0);
        older_than.is_some_and(|least| Duration::from_secs(unused) >= least)
    };
    let mut taken = Vec::new();
    for entry in entries.iter().filter(|entry| entry.adopted.is_none()) {
        if is_old(entry) || to.is_some_and(|to| left > to) {
            left = left.saturating_sub(entry.allocated);
            taken.push(entry);
        }
    }
    taken
}

/// `prune` without a word of what is to go.
pub fn nothing_said() -> Failure {
    Failure::new(Exit::Usage, "cache prune", "nothing says what is to go").hint(
        "name one of these, or both; --dry-run shows what would go:\n    \
         --to SIZE              the torrents used longest ago, until the rest takes no more than SIZE, as in 20G\n    \
         --older-than DURATION  all that weren't used for so long, as in 30d",
    )
}

fn short(key: &str) -> &str {
    key.get(..SHORT).unwrap_or(key)
}

fn name(entry: &Entry) -> String {
    entry.name.as_deref().map_or("(name not known)".into(), |name| clean(name).into_owned())
}

fn state(entry: &Entry) -> String {
    let mut words = vec![entry.state.as_str()];
    if entry.adopted.is_some() {
        words.push("adopted");
    }
    if entry.in_use {
        words.push("in use");
    }
    words.join(", ")
}

fn torrents(count: usize) -> String {
    if count == 1 { "1 torrent".into() } else { format!("{count} torrents") }
}

/// Bytes that are here, and bytes on the disk.
fn totals(entries: &[Entry]) -> (u64, u64) {
    entries.iter().fold((0, 0), |(here, disk), entry| (here + entry.here, disk + entry.allocated))
}

/// So many seconds ago, for people.
fn ago(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match seconds {
        // A clock that was set back, too.
        ..MINUTE => "just now".into(),
        MINUTE..HOUR => format!("{} min ago", seconds / MINUTE),
        // Beyond two days the hour says nothing any more.
        HOUR..172_800 => format!("{} h ago", seconds / HOUR),
        _ => format!("{} days ago", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::catalog::{Elsewhere, State};

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;
    const MIB: u64 = 1 << 20;

    fn entry(digit: char, name: &str, mib: u64, days: i64) -> Entry {
        let key: String = std::iter::repeat_n(digit, 40).collect();
        Entry {
            path: Path::new("/c").join(&key),
            key,
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            here: mib * MIB,
            size: Some(2 * mib * MIB),
            allocated: mib * MIB,
            last_used: NOW - days * DAY,
            state: State::Partial,
            adopted: None,
            in_use: false,
        }
    }

    fn sample() -> Catalog {
        let mut entries =
            vec![entry('a', "old", 100, 400), entry('b', "film.mkv", 2000, 3), entry('c', "", 0, 0)];
        entries[1].state = State::Complete;
        entries[1].in_use = true;
        entries[2].size = None;
        entries[2].adopted = Some(Elsewhere { path: "/d".into(), read_only: true });
        Catalog { entries, unknown: vec!["holi\x1bdays".into(), "x".into()], owner: Some(Some(7)) }
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table(&sample(), Path::new("/c"), NOW);
        let want = "\
INFO-HASH     HERE     SIZE  ON DISK      LAST USE  STATE             NAME
cccccccc       0 B        -      0 B      just now  partial, adopted  (name not known)
bbbbbbbb   2.0 GiB  3.9 GiB  2.0 GiB    3 days ago  complete, in use  film.mkv
aaaaaaaa   100 MiB  200 MiB  100 MiB  400 days ago  partial           old
3 torrents: 2.1 GiB here, 2.1 GiB on disk, in /c
In use by a running torrentfs (process 7).
Not of torrentfs, and left alone: holi\u{fffd}days, x
";
        assert_eq!(text, want);
        let empty = Catalog::default();
        assert_eq!(table(&empty, Path::new("/c"), NOW), "0 torrents: 0 B here, 0 B on disk, in /c\n");
    }

    #[test]
    fn json_has_it_all() {
        let text = json(&sample(), Path::new("/c"));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&found["in_use"], &found["in_use_by"]), (&json!(true), &json!(7)));
        assert_eq!(found["on_disk"], json!(2100 * MIB));
        let film = &found["torrents"][1];
        assert_eq!(film["infohash"], json!("b".repeat(40)), "whole");
        assert_eq!((&film["state"], &film["in_use"]), (&json!("complete"), &json!(true)));
        assert_eq!((&film["last_used"], &film["here"]), (&json!(NOW - 3 * DAY), &json!(2000 * MIB)));
        assert_eq!((&found["torrents"][0]["name"], &film["data"]), (&json!(null), &json!(null)));
        assert_eq!(found["torrents"][0]["data"], json!({ "path": "/d", "read_only": true }));
        assert_eq!(found["unknown"].as_array().unwrap().len(), 2);
        let empty: serde_json::Value =
            serde_json::from_str(&json(&Catalog::default(), Path::new("/c"))).unwrap();
        assert_eq!(
            (&empty["in_use"], &empty["in_use_by"], &empty["torrents"]),
            (&json!(false), &json!(null), &json!([]))
        );
    }

    #[test]
    fn when_it_was_used() {
        let rows = [
            (-5, "just now"),
            (0, "just now"),
            (59, "just now"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
            (3600, "1 h ago"),
            (2 * DAY - 1, "47 h ago"),
            (2 * DAY, "2 days ago"),
            (400 * DAY, "400 days ago"),
        ];
        for (seconds, want) in rows {
            assert_eq!(ago(seconds), want);
        }
    }

    #[test]
    fn torrents_are_found_by_name_and_by_hash() {
        let mut entries = vec![entry('a', "one", 1, 1), entry('b', "two", 1, 1), entry('d', "two", 1, 1)];
        // A name that is also how an info-hash begins.
        entries.push(entry('e', "aaaaaaaa", 1, 1));
        let whole = "b".repeat(40);
        let base32 = "VKVKVKVKVKVKVKVKVKVKVKVKVKVKVKVK";
        let rows: &[(&[&str], Result<&str, &str>)] = &[
            (&["one"], Ok("a")),
            (&["bbbbbbbb"], Ok("b")),
            (&["DDDDDDDDD"], Ok("d")),
            (&[&whole], Ok("b")),
            (&[base32], Ok("a")),
            (&["one", "bbbbbbbb", "one", "aaaaaaaaa"], Ok("ab")),
            (&["two"], Err("2 torrents in the cache could be meant")),
            (&["aaaaaaaa"], Err("2 torrents")),
            (&["bbbbbbb"], Err("no such torrent")),
            (&["One"], Err("no such torrent")),
            (&["one", "three"], Err("three: there is no such torrent")),
            (&["../x"], Err("no such torrent")),
            (&[""], Err("no such torrent")),
        ];
        for (given, want) in rows {
            let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
            let found = named(&entries, &given);
            let found = found.map(|all| all.iter().map(|entry| &entry.key[..1]).collect::<String>());
            match (found, want) {
                (Ok(found), Ok(want)) => assert_eq!(found, *want, "{given:?}"),
                (Err(failure), Err(want)) => {
                    assert!(failure.to_string().contains(want), "{given:?}: {failure}");
                    assert_eq!(failure.exit(), Exit::BadInput);
                }
                (found, _) => assert!(want.is_err() && found.is_err(), "{given:?}: {found:?}"),
            }
        }
        // Both are told in full, so that one can be chosen.
        let both = named(&entries, &["two".to_owned()]).unwrap_err().to_string();
        assert!(both.contains(&"b".repeat(40)) && both.contains(&"d".repeat(40)), "{both}");
        let none = named(&[], &["x".to_owned()]).unwrap_err().to_string();
        assert!(none.contains("--cache-dir"), "{none}");
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let entries = vec![
            entry('a', "a", 10, 40),
            entry('b', "b", 20, 30),
            entry('c', "c", 30, 1),
            entry('d', "d", 0, 0),
        ];
        let days = |days: u64| Some(Duration::from_secs(days * DAY as u64));
        let rows = [
            (None, None, ""),
            (Some(60), None, ""),
            (Some(59), None, "a"),
            (Some(50), None, "a"),
            (Some(30), None, "ab"),
            (Some(29), None, "abc"),
            (Some(0), None, "abc"),
            (None, days(41), ""),
            (None, days(40), "a"),
            (None, days(2), "ab"),
            (None, days(0), "abcd"),
            (Some(50), days(30), "ab"),
            (Some(0), days(30), "abc"),
        ];
        for (mib, older, want) in rows {
            let taken = to_prune(&entries, mib.map(|n: u64| n * MIB), older, NOW);
            let taken: String = taken.iter().map(|entry| &entry.key[..1]).collect();
            assert_eq!(taken, want, "{mib:?} {older:?}");
        }
        let mut adopted = entries.clone();
        adopted[0].adopted = Some(Elsewhere { path: "/d".into(), read_only: false });
        let taken = to_prune(&adopted, Some(45 * MIB), days(0), NOW);
        assert_eq!(taken.iter().map(|entry| &entry.key[..1]).collect::<String>(), "bcd");
        // A clock that was set back makes nothing old.
        assert!(to_prune(&entries, None, days(1), NOW - 100 * DAY).is_empty());
    }

    #[test]
    fn what_was_done_is_said() {
        let catalog = sample();
        assert_eq!(removed(&catalog.entries[0], false), "removed  aaaaaaaa    100 MiB  old\n");
        assert_eq!(removed(&catalog.entries[1], true), "would remove  bbbbbbbb    2.0 GiB  film.mkv\n");
        let rows = [
            (0, 0, false, "nothing to remove; 3 torrents with 2.1 GiB on disk left\n"),
            (1, 100, false, "1 torrent removed, 100 MiB freed; 2 torrents with 2.0 GiB on disk left\n"),
            (2, 2100, true, "2 torrents would be removed, 2.1 GiB freed; 1 torrent with 0 B on disk left\n"),
        ];
        for (taken, mib, dry_run, want) in rows {
            assert_eq!(sum(taken, mib * MIB, &catalog, dry_run), want);
        }
        let text = nothing_said().to_string();
        assert!(text.contains("--to SIZE") && text.contains("--older-than DURATION"), "{text}");
    }
}
