//! docs/SEMANTICS.md, executed.
//!
//! **Parts.** [`document`] reads the statements; [`view`] is what a program sees, by whatever way it looks; the
//! other modules hold the checks, one for each statement. [`World`] is what a check gets: a subject that shows
//! [`TREE`] and what else stands there. [`run`] runs the checks of all statements that are made of the subject,
//! and tells each by its words.
//!
//! **Not here.** The subjects: the operations and the mount of a mock stand in `suite`, a real torrent in the
//! end-to-end tests, which take this folder along.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code)]

#[macro_use]
mod raw;
mod attributes;
mod document;
mod folders;
mod kernel;
mod reading;
mod refusals;
mod table;
pub mod view;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use view::{Stat, View};

/// Bytes in a piece.
pub const PIECE: u64 = 64 * 1024;
/// Taken away from all modes.
pub const UMASK: u32 = 0o027;
/// Owner and group of everything: where that can be, others than who runs the test.
pub fn owner() -> (u32, u32) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() { (1234, 4321) } else { (uid.as_raw(), gid.as_raw()) }
}
/// The torrents' creation date, in seconds since the epoch.
pub const DATE: i64 = 1_500_000_000;
/// That of `single.bin`.
pub const LATER: i64 = DATE + 1;
/// Names in the folder `many/d000`.
pub const MANY: usize = 100_000;
/// What the programs in the tree hold.
pub const PROGRAM: &[u8] = b"#!/bin/sh\necho ran \"$1\"\n";
/// Bound on what has to come about.
const SOON: Duration = Duration::from_secs(30);

/// An entry of [`TREE`].
pub enum Shown {
    /// A file: its size, and the pieces of it that are here, none of them shared with another file.
    File(u64, &'static [u64]),
    /// As many bytes as [`PROGRAM`], which they are; all here. Whether it is executable.
    Program(bool),
    /// A symbolic link.
    Link(&'static str),
}

/// Bytes in `whole/large.bin`: enough for passthrough.
pub const LARGE: u64 = 3 * PIECE;
/// All pieces of a file.
pub const ALL: &[u64] = &[0, 1, 2, 3];

/// What each subject shows: a torrent `semantics` with these, a torrent `many` with [`MANY`] files of a byte in the
/// folder `d000`, none of them here, and a torrent `single.bin` of one file of 7 bytes, which is here and of a later date.
pub const TREE: [(&str, Shown); 17] = [
    ("complete.bin", Shown::File(3 * PIECE + 100, ALL)),
    ("half.bin", Shown::File(4 * PIECE, &[0, 2])),
    ("missing.bin", Shown::File(4 * PIECE, &[])),
    ("growing.bin", Shown::File(2 * PIECE, &[])),
    ("waited-for.bin", Shown::File(2 * PIECE, &[])),
    ("ahead.bin", Shown::File(2 * PIECE, &[])),
    ("direct.bin", Shown::File(2 * PIECE, &[])),
    ("sent.bin", Shown::File(2 * PIECE, &[])),
    ("spliced.bin", Shown::File(2 * PIECE, &[])),
    ("empty", Shown::File(0, &[])),
    ("run.sh", Shown::Program(true)),
    ("plain.sh", Shown::Program(false)),
    ("folder/inner/leaf.txt", Shown::File(5000, ALL)),
    ("folder/other/Leaf.txt", Shown::File(5000, ALL)),
    ("ünïcödé – 文.txt", Shown::File(3, ALL)),
    (LONG, Shown::File(10, ALL)),
    ("link", Shown::Link("folder/inner/leaf.txt")),
];

/// A name of 255 bytes.
pub const LONG: &str = concat!(
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
    "01234567890123456789012345678901234567890123456789-----"
);

/// Of what a statement is checked, and which of these a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The operations over a mock.
    Operations,
    /// A kernel mount of a mock.
    MockMount,
    /// A real torrent, mounted by the program.
    Torrent,
}

/// What only who made the subject can tell or do.
pub trait Control: Sync {
    /// What a file holds, whether it is here or not.
    fn bytes(&self, path: &str, offset: u64, len: usize) -> Vec<u8>;
    /// All of a file comes to be here a moment from now. Doesn't wait.
    fn bring(&self, path: &str);
    /// Some of a whole file goes to make room: its blocks before and after, as the filesystem itself tells them, and how
    /// many bytes of it are here then.
    fn shrunk(&self) -> Shrunk;
    /// Waits until something of a file was asked for that isn't here, and lets all of it come.
    fn asked_for(&self, path: &str);
    /// Bytes that are free where the cache is.
    fn free(&self) -> u64;
    /// Torrents of these names come, each a folder with a file of 100 bytes at `d/file`, of which nothing was read.
    fn add(&self, names: &[String]);
    /// A magnet link with this name comes, whose metadata nobody has.
    fn add_magnet(&self, _name: &str) {
        panic!("only the program takes links")
    }
    /// They go.
    fn remove(&self, names: &[String]);
    /// A torrent `whole` comes to a mount, of a file `large.bin` of [`LARGE`] bytes that are all here. Opens it, and tells its
    /// bytes and whether it is read by passthrough.
    fn open_whole(&self) -> (std::fs::File, Vec<u8>, bool) {
        panic!("nothing is mounted")
    }
    /// What all entries are like before and after a restart, of a torrent with or without a creation date, and
    /// between which times, in seconds since the epoch, it was added; of the real torrent.
    fn restarted(&self, _dated: bool) -> Restarted {
        panic!("only the program can be started anew")
    }
}

/// See [`Control::shrunk`].
pub struct Shrunk {
    pub before: u64,
    pub after: u64,
    pub here: u64,
}

/// See [`Control::restarted`].
pub struct Restarted {
    pub before: Vec<(String, Stat)>,
    pub after: Vec<(String, Stat)>,
    pub added: std::ops::RangeInclusive<i64>,
}

/// A subject under test.
pub struct World<'a> {
    pub subject: Subject,
    pub view: &'a dyn View,
    /// The mount point, if it is mounted.
    pub point: Option<&'a Path>,
    pub control: &'a dyn Control,
}

impl World<'_> {
    /// A path in the torrent `semantics`, from the mount's root.
    pub fn path(&self, path: &str) -> String {
        format!("semantics/{path}")
    }
    /// The same, for system calls.
    pub fn real(&self, path: &str) -> PathBuf {
        self.point.expect("a mount").join("semantics").join(path)
    }
    pub fn stat(&self, path: &str) -> Stat {
        self.view.stat(path).unwrap_or_else(|errno| panic!("stat of {path}: error {errno}"))
    }
    /// The bytes of a file of `semantics`, from a position to its end at most.
    pub fn bytes(&self, path: &str, offset: u64, len: u64) -> Vec<u8> {
        let left = size_of(path).saturating_sub(offset);
        self.control.bytes(&self.path(path), offset, len.min(left) as usize)
    }
    /// Every entry, folders before what is in them: `semantics` and `single.bin`, and of `many` its folders.
    pub fn everything(&self) -> Vec<String> {
        let mut found: BTreeSet<String> =
            ["", "semantics", "many", "many/d000", "single.bin"].map(String::from).into();
        for (path, _) in TREE {
            for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
                found.insert(self.path(&path[..at]));
            }
        }
        found.into_iter().collect()
    }
}

/// The size of a file of [`TREE`].
pub fn size_of(path: &str) -> u64 {
    match TREE.iter().find(|(name, _)| *name == path).expect("an entry of the tree").1 {
        Shown::File(size, _) => size,
        Shown::Program(_) => PROGRAM.len() as u64,
        Shown::Link(target) => target.len() as u64,
    }
}

/// How many bytes of an entry of the tree are here at the beginning.
pub fn here_of(path: &str) -> u64 {
    match TREE.iter().find(|(name, _)| *name == path).expect("an entry of the tree").1 {
        Shown::File(size, pieces) => {
            pieces.iter().map(|piece| PIECE.min(size.saturating_sub(piece * PIECE))).sum()
        }
        Shown::Program(_) => PROGRAM.len() as u64,
        Shown::Link(_) => 0,
    }
}

/// Waits until this holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the check of each statement that the document makes of this subject. Panics with the words of those that
/// don't hold, or when statements and checks don't match.
pub fn run(world: &World<'_>) {
    let statements = document::statements();
    let written: Vec<&str> = statements.iter().map(|statement| statement.id.as_str()).collect();
    let checked: Vec<&str> = table::CHECKS.iter().map(|(id, _)| *id).collect();
    assert_eq!(written, checked, "each statement of {} has one check, in the same order", document::PATH);
    let (mut ran, mut broken) = (0, Vec::new());
    for (statement, (_, check)) in statements.iter().zip(table::CHECKS) {
        if !statement.is_of(world.subject) {
            continue;
        }
        ran += 1;
        eprintln!("{} {}", statement.id, statement.text);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(world))) {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            broken.push(format!("{} \"{}\": {why}", statement.id, statement.text));
        }
    }
    eprintln!("{ran} statements checked of {:?}", world.subject);
    assert!(broken.is_empty(), "{} of {ran} statements don't hold:\n{}", broken.len(), broken.join("\n"));
    assert!(ran > 20, "the document says next to nothing of {:?}", world.subject);
}
