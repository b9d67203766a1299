//! `torrentfs inspect`: says what a torrent holds.
//!
//! Reads the `.torrent` file and prints what [`crate::metainfo::inspect`] makes of it, on the standard output;
//! warnings go to stderr, so that the JSON stays JSON. Of a magnet link, what the link itself says; what it
//! doesn't say is null. Nothing is fetched: an address or a bare info-hash is refused with what to do instead.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure};
use super::terminal::clean;
use crate::client::sources::{self, SourceError};
use crate::config::parse_source;
use crate::metainfo::id::hex;
use crate::metainfo::inspect::Inspection;
use crate::metainfo::{Magnet, Metainfo, Source};

/// Prints what the source holds to `out`, as one JSON object or for people, and warnings to `err`. Blocks for as
/// long as reading the file and writing take.
///
/// # Errors
/// The source can't be read or isn't valid: [`Exit::BadInput`]. The output can't be written: [`Exit::Internal`];
/// a reader that has seen enough (a closed pipe) is no error.
pub fn run(source: &OsStr, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
    let shown = source.to_string_lossy();
    let text = match parse_source(source).map_err(|why| Failure::source(&shown, why))? {
        Source::File(path) => {
            let torrent = Metainfo::parse(&read_torrent(&path)?).map_err(|source| {
                let name = path.display().to_string();
                refused(&name, &SourceError::Invalid { name: name.clone(), source })
            })?;
            for warning in &torrent.warnings {
                // Nobody is left to warn when that fails.
                let _ = writeln!(err, "torrentfs: {}: warning: {}", clean(&shown), clean(warning));
            }
            let inspection = Inspection::new(&torrent);
            if json {
                serde_json::to_string(&inspection).map_err(|why| Failure::internal("can't make JSON", why))?
                    + "\n"
            } else {
                inspection.text()
            }
        }
        Source::Magnet(magnet) if json => magnet_json(&magnet).to_string() + "\n",
        Source::Magnet(magnet) => magnet_text(&magnet),
        Source::Url(url) => {
            return Err(Failure::source(url, "inspect reads files, and fetches nothing")
                .hint("download the .torrent file first, and give its path"));
        }
        Source::InfoHash(hash) => {
            return Err(Failure::source(hash, "an info-hash alone doesn't say what the torrent holds")
                .hint("give its .torrent file, or mount it and look"));
        }
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, "can't write the output", why))
        }
        _ => Ok(()),
    }
}

/// Reads a `.torrent` file, 128 MiB at most. Blocks for as long as the disk takes; a named pipe blocks until its
/// writer is done.
///
/// # Errors
/// [`Exit::BadInput`], with the reason.
pub fn read_torrent(path: &Path) -> Result<Vec<u8>, Failure> {
    sources::read(path).map_err(|error| refused(&path.to_string_lossy(), &error))
}

/// Why a source gives no torrent, and what to do about it; `given` is the source as the user wrote it.
pub fn refused(given: &str, error: &SourceError) -> Failure {
    match error {
        SourceError::Unreadable { source: why, .. } => {
            let failure = Failure::source(given, format_args!("can't read it: {}", reason(why)));
            match why.kind() {
                io::ErrorKind::NotFound => {
                    failure.hint("a source is a magnet link, a .torrent file or an info-hash; check the path")
                }
                io::ErrorKind::PermissionDenied => failure.hint("run as a user who may read it"),
                io::ErrorKind::IsADirectory => {
                    failure.hint("give the .torrent file itself; the mount point comes last")
                }
                _ => failure,
            }
        }
        SourceError::TooLarge(_) => {
            let largest = super::terminal::bytes(sources::MAX_TORRENT);
            let why = format!("it is larger than {largest}, so it is no .torrent file");
            Failure::source(given, why).hint("give the .torrent file, not what it describes")
        }
        SourceError::Invalid { source: why, .. } => {
            Failure::source(given, format_args!("not a valid torrent: {why}"))
        }
        SourceError::Unfetched { why, .. } => {
            Failure::source(given, format_args!("could not be fetched: {why}"))
        }
        SourceError::OnlyV2 => Failure::source(given, error),
    }
}

/// The system's words for an error, without the number in brackets.
fn reason(why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "it is a folder".into(),
        _ => why.to_string(),
    }
}

/// The same names as for a torrent; null is what only the metadata says.
fn magnet_json(magnet: &Magnet) -> serde_json::Value {
    let list = |list: &[String]| Some(list.to_vec()).filter(|l| !l.is_empty());
    json!({
        "name": magnet.name,
        "infohash_v1": magnet.info_hash.v1.map(|hash| hex(&hash)),
        "infohash_v2": magnet.info_hash.v2.map(|hash| hex(&hash)),
        "piece_length": null,
        "pieces": null,
        "total_size": null,
        "private": null,
        // Each a tier of its own: a link knows no tiers.
        "trackers": list(&magnet.trackers).map(|all| all.into_iter().map(|url| vec![url]).collect::<Vec<_>>()),
        "webseeds": list(&magnet.webseeds),
        "files": null,
    })
}

fn magnet_text(magnet: &Magnet) -> String {
    let rows = [
        ("name", magnet.name.iter().cloned().collect()),
        ("infohash v1", magnet.info_hash.v1.iter().map(|hash| hex(hash)).collect()),
        ("infohash v2", magnet.info_hash.v2.iter().map(|hash| hex(hash)).collect()),
        ("tracker", magnet.trackers.clone()),
        ("webseed", magnet.webseeds.clone()),
        ("peer", magnet.peers.clone()),
    ];
    let lines = rows.iter().flat_map(|(what, values)| values.iter().map(move |v| (what, v)));
    let lines = lines.map(|(what, value)| format!("{what:<13} {}\n", clean(value)));
    lines.chain(["What it holds is known once its metadata is here: mount it, and look.\n".into()]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const TORRENT: &[u8] =
        b"d4:infod6:lengthi5e4:name1:n12:piece lengthi16384e6:pieces20:01234567890123456789ee";

    fn inspect(source: &str, json: bool) -> Result<(String, String), Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        run(OsStr::new(source), json, &mut out, &mut err)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
    }

    #[test]
    fn a_torrent_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.torrent");
        std::fs::write(&path, TORRENT).unwrap();
        let (out, err) = inspect(path.to_str().unwrap(), true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((value["name"].as_str(), value["total_size"].as_u64()), (Some("n"), Some(5)));
        assert_eq!((out.lines().count(), err.as_str()), (1, ""));
        assert!(inspect(path.to_str().unwrap(), false).unwrap().0.contains("pieces"));
    }

    #[test]
    fn what_is_wrong_is_said_on_one_line_with_exit_1() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let large = at("large", b"");
        std::fs::File::options().write(true).open(&large).unwrap().set_len(sources::MAX_TORRENT + 1).unwrap();
        let deep = [b"d4:info".as_slice(), &b"l".repeat(200_000)].concat();
        let rows = [
            (at("empty", b""), "not a valid torrent"),
            (at("cut", &TORRENT[..30]), "not a valid torrent"),
            (at("deep", &deep), "not a valid torrent"),
            (large, "larger than 128 MiB"),
            (dir.path().join("missing").to_str().unwrap().to_owned(), "no such file"),
            (dir.path().to_str().unwrap().to_owned(), "it is a folder"),
            ("magnet:?dn=x".into(), "names no torrent"),
            ("https://x.example/a.torrent".into(), "fetches nothing"),
            ("30".repeat(20), "an info-hash alone"),
            (String::new(), "empty"),
        ];
        for (source, want) in rows {
            let failure = inspect(&source, true).expect_err(&source);
            assert_eq!(failure.exit(), Exit::BadInput, "{source}");
            let text = failure.to_string();
            assert!(text.lines().next().is_some_and(|line| line.contains(want)), "{source}: {text}");
            assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
        }
    }

    #[test]
    fn a_magnet_link_says_what_it_holds_itself() {
        let link =
            format!("magnet:?xt=urn:btih:{}&dn=a%1bb&tr=udp%3A%2F%2Ft%3A1&x.pe=1.2.3.4:5", "ab".repeat(20));
        let (out, _) = inspect(&link, true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["infohash_v1"].as_str(), Some("ab".repeat(20).as_str()));
        assert_eq!(value["trackers"], json!([["udp://t:1"]]));
        for absent in ["infohash_v2", "piece_length", "pieces", "total_size", "private", "webseeds", "files"]
        {
            assert_eq!(value.get(absent), Some(&serde_json::Value::Null), "{absent}");
        }
        let (out, _) = inspect(&link, false).unwrap();
        assert!(out.contains("peer          1.2.3.4:5\n") && !out.contains('\u{1b}'), "{out}");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        struct Closed(io::ErrorKind);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let link = format!("magnet:?xt=urn:btih:{}", "ab".repeat(20));
        let to =
            |kind| run(OsStr::new(&link), false, &mut Closed(kind), &mut Vec::new()).map_err(|f| f.exit());
        assert_eq!(to(io::ErrorKind::BrokenPipe), Ok(()));
        assert_eq!(to(io::ErrorKind::StorageFull), Err(Exit::Internal));
    }
}
