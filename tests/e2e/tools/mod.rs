//! Ordinary tools on a real torrent that is fetched from a real seeder: each does what it does on a disk.
//!
//! Parts: [`copying`] takes whole trees along; [`looking`] reads here and there; [`mounting`] uses files as programs
//! and as disks. What tools cost that look at a part of a file alone stands in `scans`, and copies of what is half
//! here in `copies`.

mod copying;
mod looking;
mod mounting;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Made, Mount, Proc, Sample, Seeder, bytes_at};

const MINUTE: Duration = Duration::from_secs(60);
/// The creation date of what is made here.
const DATE: i64 = 1_234_567_890;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A sample, mounted, with nothing here yet.
struct Fixture {
    sample: Sample,
    seeder: Seeder,
    mount: Mount,
}

impl Fixture {
    fn new(sample: Sample) -> Self {
        let seeder = Seeder::start(&sample);
        let mount = Mount::sample(&sample).peer(seeder.addr).start();
        Self { sample, seeder, mount }
    }

    /// The torrent's folder or file in the mount.
    fn root(&self) -> PathBuf {
        self.mount.path(&self.sample.name)
    }

    /// Runs a shell command in the torrent's folder, in the mount and at the source. Panics when they print different
    /// things or one fails; returns what they print.
    #[track_caller]
    fn same(&self, command: &str) -> String {
        let here = shell(command, &self.root(), &[]);
        assert_eq!(here, shell(command, &self.sample.source(), &[]), "{command}");
        here
    }

    fn end(self) {
        self.mount.stop();
    }
}

/// What a shell command prints that is run in a folder, with arguments; panics unless it ends with 0.
#[track_caller]
fn shell(command: &str, folder: &Path, arguments: &[&Path]) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-ec", command, "sh"]).args(arguments).current_dir(folder).env("LC_ALL", "C.UTF-8");
    Proc::spawn(shell).success(3 * MINUTE)
}

/// A small tree with all that a copy should keep: modes, times, links, empty files, names.
fn things() -> Sample {
    let file = |seed: u64, size: usize| Made::File(bytes_at(seed, 0, size), false);
    let entries = [
        ("read.txt", Made::File(b"needle\n".to_vec(), false)),
        ("run.sh", Made::File(b"#!/bin/sh\necho \"it ran: $*\"\n".to_vec(), true)),
        ("deep/er/est/data.bin", file(1, 300_001)),
        ("deep/er/edge.bin", file(2, 65_536)),
        ("deep/link", Made::Link("er/est/data.bin")),
        ("deep/up", Made::Link("../read.txt")),
        ("empty", file(3, 0)),
        ("ünï 名 'quoted\".txt", file(4, 5)),
        ("zeros.bin", Made::File(vec![0; 200_000], false)),
    ];
    Sample::of("things", &entries, 64 * KIB, Some(DATE))
}

/// What a copy should keep of an entry.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    mode: u32,
    mtime: i64,
    link: Option<PathBuf>,
    content: Option<Vec<u8>>,
}

/// Everything below a folder.
fn tree(root: &Path) -> BTreeMap<PathBuf, Kept> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a listing") {
            let path = entry.expect("an entry").path();
            let stat = path.symlink_metadata().expect("its attributes");
            let kept = Kept {
                mode: stat.mode(),
                mtime: stat.mtime(),
                link: stat.is_symlink().then(|| path.read_link().expect("its target")),
                content: stat.is_file().then(|| std::fs::read(&path).expect("its bytes")),
            };
            found.insert(path.strip_prefix(root).expect("below it").to_owned(), kept);
            if stat.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// Panics unless a copy is what the mount shows, and holds what the source holds.
#[track_caller]
fn is_copy(copy: &Path, fixture: &Fixture) {
    let (copied, shown, source) = (tree(copy), tree(&fixture.root()), tree(&fixture.sample.source()));
    let names = |tree: &BTreeMap<PathBuf, Kept>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&copied), names(&shown));
    assert_eq!(names(&copied), names(&source));
    for (path, kept) in &copied {
        let (shown, source) = (&shown[path], &source[path]);
        assert_eq!((kept.mode, kept.mtime, &kept.link), (shown.mode, shown.mtime, &shown.link), "{path:?}");
        assert_eq!((kept.mtime, &kept.link), (DATE, &source.link), "{path:?}");
        assert!(kept.content == source.content, "{path:?} has other bytes");
        let runs = |kept: &Kept| kept.content.is_some() && kept.mode & 0o100 != 0;
        assert_eq!(runs(kept), runs(source), "{path:?}");
    }
}
