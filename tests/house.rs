//! The rules of the house that no compiler checks: which room may name which, how long a file may be, what is
//! banned, and that each regression has its test.
//!
//! It reads the sources as text. A rule that is broken is told with the file and what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Lines of code in a file before its tests: more than this has several subjects.
const LINES_MAX: usize = 800;

/// The rooms of `src/` from the lowest to the highest. A room may name those of lower rows, and itself; rooms
/// of one row don't know each other.
const ROOMS: [&[&str]; 11] = [
    &["sync", "hash"],
    &["metainfo"],
    &["net"],
    &["storage", "discovery"],
    &["peer"],
    &["webseed"],
    &["torrent"],
    &["client"],
    &["content", "config", "control"],
    &["cli"],
    &["run"],
];

/// Rows of REGRESSIONS that are done: a test named after each must stand somewhere.
const REGRESSIONS: [&str; 48] = [
    "l1_", "l2_", "l3_", "l4_", "l5_", "r1_", "r2_", "r3_", "p1_", "p2_", "p3_", "c1_", "c2_", "c3_", "s1_",
    "s2_", "s3_", "s4_", "v1_", "o1_", "o2_", "o3_", "o4_", "o5_", "o6_", "o7_", "o8_", "o9_", "o10_",
    "o11_", "f1_", "f2_", "f3_", "f4_", "f5_", "f6_", "f7_", "f8_", "f9_", "w1_", "w2_", "w3_", "w4_", "w5_",
    "w6_", "w7_", "w8_", "w9_",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder, as path from the root and text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                found.push((path.strip_prefix(root()).expect("below the root").to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found.sort();
    found
}

/// Whether a file of a room holds nothing but tests: by its name, or since it lies in a folder of tests.
fn is_tests(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// The lines of code: without comments, and without the tests at the file's end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .enumerate()
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

#[test]
fn the_filesystem_knows_nothing_of_the_program() {
    let manifest = std::fs::read_to_string(root().join("fs/Cargo.toml")).expect("a manifest");
    for line in manifest.lines() {
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        assert!(name != "torrentfs", "fs/Cargo.toml depends on the program: {line}");
        assert!(name != "tokio", "fs/Cargo.toml depends on the program's runtime: {line}");
    }
    for (path, text) in sources("fs/src") {
        for (number, line) in code(&text) {
            let named = line.replace("torrentfs_fs", "");
            assert!(!named.contains("torrentfs::"), "{}:{number} names the program: {line}", path.display());
        }
    }
}

#[test]
fn fuser_stays_in_its_adapter() {
    for (path, text) in sources("src") {
        for (number, line) in code(&text) {
            assert!(
                !line.contains("fuser::"),
                "{}:{number}: fuser is named in fs alone: {line}",
                path.display()
            );
        }
    }
}

/// The room of a file in `src/`: its first folder or its own name.
fn room_of(path: &Path) -> String {
    let first = path.components().nth(1).expect("below src").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn height(room: &str) -> Option<usize> {
    ROOMS.iter().position(|row| row.contains(&room))
}

/// The rooms that a line names by `crate::`, groups in braces included.
fn named(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group.split(',').map(|part| word(part.trim()))),
            None => found.push(word(rest)),
        }
    }
    found
}

#[test]
fn rooms_name_lower_rooms_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let room = room_of(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let Some(own) = height(&room) else {
            wrong.push(format!(
                "{}: the room {room} has no height yet: give it one in tests/house.rs",
                path.display()
            ));
            continue;
        };
        for (number, line) in code(&text) {
            for other in named(line) {
                if other != room && height(&other).is_some_and(|other| other >= own) {
                    wrong.push(format!(
                        "{}:{number}: {room} names {other}, which stands above or beside it",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_it_should_be() {
    let mut long = Vec::new();
    for folder in ["src", "fs/src", "tests"] {
        for (path, text) in sources(folder) {
            let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
            if lines > LINES_MAX {
                long.push(format!("{}: {lines} lines before its tests; split it by thing", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    for folder in ["src", "fs/src", "tests"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} doesn't open with //!", path.display());
        }
    }
}

#[test]
fn what_is_banned_stays_in_its_place() {
    /// What, the one file that may name it, and what to use instead.
    const BANS: [(&str, &[&str], &str); 13] = [
        ("tokio::spawn", &["src/sync/tasks.rs"], "sync::tasks::TaskScope"),
        ("spawn_blocking", &[], "the storage's workers"),
        ("std::thread::spawn", &[], "std::thread::Builder, named and joined"),
        ("process::exit", &["src/main.rs"], "an error that main turns into an exit code"),
        ("parking_lot::", &["fs/src/lock.rs", "fs/src/lock"], "torrentfs_fs::lock"),
        ("std::sync::Mutex", &["fs/src/lock.rs", "fs/src/lock"], "torrentfs_fs::lock"),
        ("unbounded_channel", &[], "a bounded channel, with what happens when it is full"),
        ("todo!(", &[], "finished code"),
        // Those of a Unix socket go nowhere.
        ("Socket::new(", &["src/net/sockets.rs", "src/run/control/socket.rs"], "net::sockets"),
        ("TcpStream::connect", &[], "net::sockets"),
        ("TcpListener::bind", &[], "net::sockets"),
        ("UdpSocket::bind", &[], "net::sockets"),
        ("Client::new()", &[], "net::hosts, whose clients have the sockets of net::sockets"),
    ];
    let mut wrong = Vec::new();
    for folder in ["src", "fs/src"] {
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| !is_tests(path)) {
            for (number, line) in code(&text) {
                for (what, places, instead) in BANS {
                    if line.contains(what) && !places.iter().any(|place| path.starts_with(place)) {
                        wrong.push(format!("{}:{number}: {what} is banned; use {instead}", path.display()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_test_is_ignored() {
    for folder in ["src", "fs/src", "fs/tests", "tests"] {
        if !root().join(folder).is_dir() {
            continue;
        }
        for (path, text) in sources(folder) {
            let ignored = text.lines().any(|line| line.trim_start().starts_with("#[ignore"));
            assert!(!ignored, "{} has an ignored test", path.display());
        }
    }
}

/// The names of the tests in a file: functions that are marked so, and those in a list of cases that a macro `suite!` makes
/// tests of. A function that only looks like one doesn't count.
fn tests_in(text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let (mut found, mut marked, mut listed) = (Vec::new(), false, false);
    for line in text.lines().map(str::trim) {
        if listed {
            listed = !line.starts_with(')');
            found.extend(line.split(',').map(|name| word(name.trim())).filter(|name| !name.is_empty()));
        } else if line == "suite!(" {
            listed = true;
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(name) =
            line.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ")
        {
            if std::mem::take(&mut marked) {
                found.push(word(name));
            }
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
    }
    found
}

#[test]
fn only_what_runs_counts_as_a_test() {
    let text = "fn a() {}\n#[test]\nfn b() {}\npub fn c() {}\n#[tokio::test(start_paused = true)]\n// Why.\n\
        #[allow(x)]\nasync fn d() {}\n#[test]\nconst X: u8 = 1;\nfn e() {}\nsuite!(\n    f,\n    g, h,\n);\nfn i() {}\n";
    assert_eq!(tests_in(text), ["b", "d", "f", "g", "h"]);
}

#[test]
fn each_regression_has_a_test_of_its_name() {
    let mut tests = BTreeSet::new();
    for folder in ["src", "fs/src", "fs/tests", "tests"] {
        if !root().join(folder).is_dir() {
            continue;
        }
        sources(folder).iter().for_each(|(_, text)| tests.extend(tests_in(text)));
    }
    let missing: Vec<_> =
        REGRESSIONS.iter().filter(|row| !tests.iter().any(|test| test.starts_with(**row))).collect();
    assert!(missing.is_empty(), "rows of REGRESSIONS without a test of their name: {missing:?}");
}

/// The text between two marks, each time they occur in this order.
fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split(end).next())
}

#[test]
fn every_lock_and_every_time_out_stands_in_the_document() {
    // What stands in for the program, or for a disk, in tests.
    const FOR_TESTS: [&str; 4] = ["fs/src/lock", "fs/src/mock", "src/storage/volume", "src/webseed/tests"];
    let document = std::fs::read_to_string(root().join("docs/CONCURRENCY.md")).expect("it is there");
    let section = |title: &str| {
        let text = document.split(&format!("\n## {title}\n")).nth(1).expect("a section");
        text.split("\n## ").next().unwrap_or_default()
    };
    let (locks, timeouts) = (section("Locks"), section("Time-outs"));
    let mut missing = Vec::new();
    for (path, text) in ["src", "fs/src"].into_iter().flat_map(sources) {
        if is_tests(&path) || FOR_TESTS.iter().any(|folder| path.to_string_lossy().starts_with(folder)) {
            continue;
        }
        let code: String = code(&text).map(|(_, line)| line.trim()).collect::<Vec<_>>().join(" ");
        for made in ["RankedMutex::new", "RankedRwLock::new"] {
            // The rank, a key perhaps, the name.
            let calls =
                between(&code, made, ';').filter(|call| call.trim_start_matches("_keyed").starts_with('('));
            for lock in calls.filter_map(|call| call.split('"').nth(1)) {
                // Of a field that is there in tests only.
                if lock != "steps" && !locks.contains(&format!("`{lock}`")) {
                    missing.push(format!("{}: the lock `{lock}`", path.display()));
                }
            }
        }
    }
    let all = std::fs::read_to_string(root().join("src/sync/timeouts.rs")).expect("it is there");
    for constant in between(&all, "pub const ", ':') {
        if !timeouts.contains(&format!("`{constant}`")) {
            missing.push(format!("the time-out {constant}"));
        }
    }
    assert!(missing.is_empty(), "docs/CONCURRENCY.md doesn't tell of:\n{}", missing.join("\n"));
}
