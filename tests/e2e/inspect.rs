//! `torrentfs inspect`: what a torrent holds, and one clear line for what isn't one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Sample, TorrentKind, make_torrent, program, torrentfs};
use crate::needs;

/// For one file, however hostile: it takes well under a second.
const LIMIT: Duration = Duration::from_secs(10);

fn inspect(source: &Path) -> serde_json::Value {
    let output =
        torrentfs(["inspect".as_ref(), source.as_os_str(), "--json".as_ref()]).output().expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {errors}", source.display());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{}: {error}", source.display()))
}

#[test]
fn it_prints_what_a_torrent_holds() {
    needs!(Libtorrent);
    for kind in [TorrentKind::V1, TorrentKind::V2, TorrentKind::Hybrid] {
        let sample = Sample::tree_of(kind);
        let found = inspect(&sample.torrent);
        assert_eq!(found["name"], "tree");
        assert_eq!(found["infohash_v1"].as_str(), sample.v1.as_deref(), "{kind:?}");
        assert_eq!(found["infohash_v2"].as_str(), sample.v2.as_deref(), "{kind:?}");
        assert_eq!(found["piece_length"], sample.piece_length);
        assert_eq!(found["pieces"], sample.pieces, "{kind:?}");
        assert_eq!(found["private"], false);
        let files = found["files"].as_array().expect("files");
        let real: std::collections::BTreeMap<_, _> = files
            .iter()
            .filter(|file| file["pad"] == false)
            .map(|file| (file["path"].as_str().expect("a path"), file["size"].as_u64().expect("a size")))
            .collect();
        let expected: std::collections::BTreeMap<_, _> = sample
            .files
            .iter()
            .filter(|(path, _)| !path.contains("/.pad/"))
            .map(|(path, size)| (path.strip_prefix("tree/").expect("the root"), *size))
            .collect();
        assert_eq!(real, expected, "{kind:?}");
    }
}

#[test]
fn it_prints_trackers_webseeds_and_flags() {
    needs!(Libtorrent);
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("tool.run"), folder.path().join("torrent"));
    std::fs::write(&source, b"#!/bin/sh\n").expect("a file");
    let more = [
        "--tracker",
        "http://one.invalid/announce",
        "--tracker",
        "udp://two.invalid:1/announce",
        "--webseed",
        "http://seed.invalid/",
        "--private",
    ];
    make_torrent(&source, &out, TorrentKind::V1, 16 << 10, &more);
    let found = inspect(&out);
    let tiers = serde_json::json!([["http://one.invalid/announce"], ["udp://two.invalid:1/announce"]]);
    assert_eq!(found["trackers"], tiers);
    assert_eq!(found["webseeds"], serde_json::json!(["http://seed.invalid/"]));
    assert_eq!(found["private"], true);
    assert_eq!(found["total_size"], 10);
    let file = &found["files"][0];
    assert_eq!(file["size"], 10);
    assert!(file["symlink"].is_null());
}

/// Exit 1 and one line that says something, within the time and 2 GiB of address space.
fn refused(name: &str, path: &Path) {
    let start = Instant::now();
    let output = Command::new("prlimit")
        .args(["--as=2147483648", "--core=0"])
        .arg(program())
        .arg("inspect")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .expect("prlimit runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{name}: {errors}");
    assert_eq!(errors.trim_end().lines().count(), 1, "{name} isn't told in one line:\n{errors}");
    assert!(errors.len() > 10 && errors.len() < 500, "{name}: {errors}");
    assert!(!errors.contains("panicked"), "{name}: {errors}");
    assert!(output.stdout.is_empty(), "{name} printed something");
    assert!(start.elapsed() < LIMIT, "{name} took {:?}", start.elapsed());
}

/// A `.torrent` of one file with this info dictionary's parts.
fn torrent(length: &str, piece_length: &str, pieces: &[u8]) -> Vec<u8> {
    let head =
        format!("d4:infod6:length{length}4:name1:x12:piece length{piece_length}6:pieces{}:", pieces.len());
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(pieces);
    bytes.extend_from_slice(b"ee");
    bytes
}

#[test]
fn hostile_input_is_one_line_and_exit_1() {
    let one = [7; 20];
    let many_files = |entry: &str, count: usize| {
        let files = entry.repeat(count);
        format!("d4:infod5:filesl{files}e4:name1:x12:piece lengthi16384e6:pieces0:ee").into_bytes()
    };
    let whole = torrent("i16384e", "i16384e", &one);
    let rows: [(&str, Vec<u8>); 20] = [
        ("an empty file", Vec::new()),
        ("no bencode", b"<html>not found</html>".to_vec()),
        ("a list", b"le".to_vec()),
        ("no info", b"d8:announce3:xyze".to_vec()),
        ("truncated", whole[..whole.len() - 30].to_vec()),
        ("without its last e", whole[..whole.len() - 1].to_vec()),
        ("lists nested 200,000 deep", [vec![b'l'; 200_000], vec![b'e'; 200_000]].concat()),
        ("lists nested 200,000 deep, open", vec![b'l'; 200_000]),
        ("dictionaries nested 200,000 deep", b"d1:a".repeat(200_000)),
        ("a negative length", torrent("i-1e", "i16384e", &one)),
        ("an overflowing length", torrent("i99999999999999999999999e", "i16384e", &one)),
        ("a length of 2^63 - 1", torrent("i9223372036854775807e", "i16384e", &one)),
        ("a string longer than the file", b"d4:infod4:name99999999999:x".to_vec()),
        ("a string length that overflows", b"d4:info99999999999999999999999999:x".to_vec()),
        ("a piece length of 0", torrent("i16384e", "i0e", &one)),
        ("a negative piece length", torrent("i16384e", "i-16384e", &one)),
        ("too few piece hashes", torrent("i32768e", "i16384e", &one)),
        ("piece hashes of the wrong length", torrent("i16384e", "i16384e", &one[..19])),
        ("a million files without anything", many_files("de", 1_000_000)),
        (
            "a million files that add up to too much",
            many_files("d6:lengthi4611686018427387904e4:pathl1:aee", 50_000),
        ),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (number, (name, bytes)) in rows.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.torrent"));
        std::fs::write(&path, bytes).expect("a file");
        refused(name, &path);
    }
    let missing = torrentfs(["inspect".as_ref(), folder.path().join("missing.torrent").as_os_str()]).output();
    assert_eq!(missing.expect("runs").status.code(), Some(1), "a file that isn't there");
}

#[test]
fn the_fixtures_of_real_torrents_load() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries =
        std::fs::read_dir(fixtures).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let torrents: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "torrent")).collect();
    assert!(torrents.len() >= 3, "{torrents:?}");
    for path in torrents {
        let found = inspect(&path);
        assert!(!found["name"].as_str().expect("a name").is_empty(), "{}", path.display());
    }
}
