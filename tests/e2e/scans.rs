//! Programs that look at files without reading them through (row F5): what they cost is the pieces they touch.
//!
//! What a program reads is known in two ways: from the program (4 KiB of each file), or from the kernel's own
//! requests, as the log shows them with `fuser=debug`. What was fetched is what the peers sent.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Behaviour, Mount, Proc, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const PIECE: u64 = 256 * KIB;

/// Sixty files of 3 MiB, each in twelve pieces of its own.
fn sixty_files() -> Sample {
    let names: Vec<String> = (0..60).map(|number| format!("{number:02}.dat")).collect();
    let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 3 * MIB)).collect();
    Sample::folder("sixty", &files, PIECE)
}

/// A mount whose reads and fetches are counted.
struct Counted {
    sample: Sample,
    peers: Vec<ScriptedPeer>,
    mount: Mount,
}

/// What was read, and what that cost.
struct Cost {
    /// Bytes that were read: by the kernel, its own read-ahead included.
    read: u64,
    /// Pieces that those lie in.
    touched: BTreeSet<u64>,
    /// Pieces that came, whole or in part.
    fetched: BTreeSet<u64>,
    /// Bytes that came.
    bytes: u64,
}

impl Counted {
    fn start(sample: Sample) -> Self {
        let peers: Vec<_> =
            (0..2).map(|_| ScriptedPeer::start(sample.clone(), Behaviour::default())).collect();
        let mount = Mount::sample(&sample).log("info,fuser=debug");
        let mount = peers.iter().fold(mount, |mount, peer| mount.peer(peer.addr())).start();
        wait_until("both connections", MINUTE, || peers.iter().all(|peer| peer.connections() > 0));
        Self { sample, peers, mount }
    }

    /// Runs a shell command in the torrent's folder, in the mount and at the source. Panics when they print
    /// different things; returns what they print.
    #[track_caller]
    fn same(&self, command: &str) -> String {
        let output = |folder: &Path| {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).current_dir(folder);
            Proc::spawn(shell).success(MINUTE)
        };
        let here = output(&self.mount.path(&self.sample.name));
        assert_eq!(here, output(&self.sample.source()), "{command}");
        here
    }

    /// Ends the mount when nothing is under way any more. Panics if more was fetched than what the kernel's
    /// requests touch and as much again as they ask for.
    #[track_caller]
    fn cost(self, what: &str) -> Cost {
        let root = self.mount.path(&self.sample.name);
        wait_until("what is asked for to have come", MINUTE, || {
            matches!(self.mount.xattr(&root, "state").as_deref(), Some("idle" | "complete"))
                && self.peers.iter().all(|peer| peer.waiting() == 0)
        });
        let (read, touched) = self.asked();
        self.mount.stop();
        let answers: Vec<_> = self.peers.iter().flat_map(ScriptedPeer::answers).collect();
        let cost = Cost {
            read,
            touched,
            fetched: answers.iter().map(|block| u64::from(block.piece)).collect(),
            bytes: answers.iter().map(|block| u64::from(block.length)).sum(),
        };
        let touched = cost.touched.len() as u64 * self.sample.piece_length;
        eprintln!(
            "{what}: {} KiB read, {} pieces ({} KiB) touched, {} pieces ({} KiB) fetched of {} KiB",
            cost.read / KIB,
            cost.touched.len(),
            touched / KIB,
            cost.fetched.len(),
            cost.bytes / KIB,
            self.sample.total / KIB
        );
        assert!(!cost.touched.is_empty() && cost.touched.is_subset(&cost.fetched), "the count is wrong");
        assert!(cost.bytes <= touched + cost.read, "{what}: more was fetched than touched and read");
        cost
    }

    /// Bytes in the kernel's requests so far, and the pieces that those touch.
    fn asked(&self) -> (u64, BTreeSet<u64>) {
        let mut begin = 0;
        let mut extents = Vec::new();
        for (path, size) in &self.sample.files {
            let inode = self.mount.path(path).metadata().expect("stat").ino();
            extents.push((format!("ino {inode:#018x} READ "), begin, *size));
            begin += size;
        }
        let log = self.mount.log();
        let number = |line: &str, before: &str| -> u64 {
            let rest = line.split_once(before).expect("a request in the log").1;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().expect("a number");
            digits.parse().expect("a number")
        };
        let (mut read, mut touched) = (0, BTreeSet::new());
        for line in log.lines() {
            let Some((_, begin, size)) = extents.iter().find(|(inode, ..)| line.contains(inode)) else {
                continue;
            };
            let from = number(line, "offset Ok(").min(*size);
            let to = (from + number(line, "size ")).min(*size);
            if from < to {
                read += to - from;
                touched.extend((begin + from) / PIECE..=(begin + to - 1) / PIECE);
            }
        }
        (read, touched)
    }
}

#[test]
fn f5_the_head_of_every_file_costs_its_first_piece() {
    needs!(Fuse, Libtorrent, Attr);
    let counted = Counted::start(sixty_files());
    counted.same("for file in *; do head -c 4096 \"$file\"; done | sha256sum");
    let first: BTreeSet<u64> = (0..60).map(|file| file * 12).collect();
    let cost = counted.cost("head -c 4096 of 60 files");
    assert_eq!(cost.fetched, first);
    assert!(cost.bytes <= 60 * (PIECE + 4096), "{} bytes", cost.bytes);
}

#[test]
fn f5_file_of_every_file_costs_what_it_reads() {
    needs!(Fuse, Libtorrent, Attr, File);
    let files = [("a.dat", 40 * MIB), ("b.dat", 40 * MIB), ("c.dat", 40 * MIB)];
    let counted = Counted::start(Sample::folder("three", &files, PIECE));
    counted.same("file -- *");
    // Of random bytes it reads the first and the last 7 MiB (older ones: the first MiB).
    let all = counted.sample.pieces as usize;
    let cost = counted.cost("file *");
    assert!(cost.fetched.len() < all * 3 / 4, "{} pieces of {all}", cost.fetched.len());
}

/// A picture viewer, a media server: the head, the tail, then a few places between.
#[test]
fn f5_a_thumbnailer_costs_the_places_it_looks_at() {
    const FILES: u64 = 20;
    /// Offset and length of each read. In the middle of a piece, so that the kernel's own read-ahead of up to
    /// 128 KiB stays in it.
    const READS: [(u64, u64); 5] = [
        (0, 64 * KIB),
        (3 * MIB - 64 * KIB, 64 * KIB),
        (3 * PIECE + 40 * KIB, 32 * KIB),
        (6 * PIECE + 40 * KIB, 32 * KIB),
        (9 * PIECE + 40 * KIB, 32 * KIB),
    ];
    needs!(Fuse, Libtorrent, Attr);
    let counted = Counted::start(sixty_files());
    for (path, _) in counted.sample.files.iter().take(FILES as usize) {
        let (file, source) =
            (File::open(counted.mount.path(path)), File::open(counted.sample.data.join(path)));
        let (file, source) = (file.expect("opens"), source.expect("opens"));
        for (offset, length) in READS {
            let (mut got, mut expected) = (vec![0; length as usize], vec![1; length as usize]);
            file.read_exact_at(&mut got, offset).expect("reads");
            source.read_exact_at(&mut expected, offset).expect("reads");
            assert!(got == expected, "wrong bytes in {path} at {offset}");
        }
    }
    let looked_at: BTreeSet<u64> =
        (0..FILES).flat_map(|file| READS.map(|(offset, _)| file * 12 + offset / PIECE)).collect();
    let cost = counted.cost("a thumbnailer, 20 files");
    let read = FILES * READS.iter().map(|(_, length)| length).sum::<u64>();
    assert!(cost.bytes <= looked_at.len() as u64 * PIECE + read, "{} bytes", cost.bytes);
}

#[test]
fn f5_ffprobe_costs_head_and_index() {
    needs!(Fuse, Libtorrent, Attr, Ffmpeg);
    /// What is asked, and the pieces that it may cost each file: those of the head, of the index at the end, and
    /// one place in between for who seeks there; each with a neighbour, for the kernel's own read-ahead.
    const ROWS: [(&str, &str, usize); 2] = [
        ("ffprobe", "ffprobe -v error -show_format -show_streams", 4),
        (
            "ffprobe of five packets at 30 s",
            "ffprobe -v error -show_packets -select_streams v -read_intervals 30%+#5",
            6,
        ),
    ];
    for (what, command, pieces) in ROWS {
        for film in ["film.mp4", "film.mkv"] {
            let counted = Counted::start(Sample::films());
            let printed = counted.same(&format!("{command} {film} 2>&1"));
            assert!(printed.contains("codec"), "{printed}");
            let cost = counted.cost(&format!("{what}, {film}"));
            assert!(cost.fetched.len() <= pieces, "{what} of {film}: {:?}", cost.fetched);
        }
    }
}

#[test]
fn f5_unzip_l_costs_the_index() {
    needs!(Fuse, Libtorrent, Attr, Zip);
    let sample = Sample::filled("archive", PIECE, &|root| {
        // Stored, since what is random can't be made smaller, and in the order of their names.
        let script = "for n in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom > $n.dat; done; \
            zip -q -0 all.zip [1-8].dat && rm [1-8].dat";
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(root);
        Proc::spawn(shell).success(MINUTE);
    });
    let counted = Counted::start(sample);
    let listed = counted.same("unzip -l all.zip");
    assert!(listed.contains("8 files"), "{listed}");
    let cost = counted.cost("unzip -l");
    // The index stands at the end; a look at the beginning, and the neighbours that the kernel reads ahead.
    assert!(cost.fetched.len() <= 4, "{:?}", cost.fetched);
}

#[test]
fn f5_one_row_of_a_database_costs_the_way_to_it() {
    const MAKE: &str = "create table words (id integer primary key, word text, more blob); \
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 50000) \
        insert into words select i, 'word ' || i, randomblob(400) from n;";
    needs!(Fuse, Libtorrent, Attr, Sqlite);
    let sample = Sample::filled("large database", PIECE, &|root| {
        Proc::start("sqlite3", [root.join("words.db").as_os_str(), MAKE.as_ref()]).success(MINUTE);
    });
    let counted = Counted::start(sample);
    let row = counted.same("sqlite3 'file:words.db?mode=ro' 'select word from words where id = 40000'");
    assert_eq!(row, "word 40000\n");
    let cost = counted.cost("a row of a database");
    // The header, the root of the tree, a page of each level; each with a neighbour, for the kernel's read-ahead.
    assert!(cost.fetched.len() <= 8, "{:?}", cost.fetched);
}
