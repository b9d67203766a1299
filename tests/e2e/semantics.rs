//! docs/SEMANTICS.md on a real torrent, mounted by the program and fetched from a seeder.
//!
//! The checks are those that the filesystem is tested with on its mock; here stands what they look at, and what only
//! the program can do: be started anew.

#[path = "../../fs/tests/semantics/mod.rs"]
mod statements;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use statements::view::{OnDisk, Stat, View, blocks_now, stat_of};
use statements::{
    Control, DATE, LARGE, LATER, MANY, PIECE, PROGRAM, Restarted, Shown, Shrunk, Subject, TREE, UMASK, World,
};

use crate::common::{Behaviour, Made, Mount, Sample, ScriptedPeer, Seeder, bytes_at, home, ran, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// What stands in the tree, and its content by the path in the mount.
struct Torrents {
    semantics: Sample,
    many: Sample,
    single: Sample,
    whole: Sample,
    content: HashMap<String, Vec<u8>>,
}

impl Torrents {
    fn new() -> Self {
        let mut content = HashMap::new();
        let entries: Vec<(&str, Made)> = TREE
            .iter()
            .zip(1..)
            .map(|((path, shown), seed)| {
                let (bytes, executable) = match shown {
                    Shown::Link(target) => return (*path, Made::Link(target)),
                    Shown::File(size, _) => (bytes_at(seed, 0, *size as usize), false),
                    Shown::Program(executable) => (PROGRAM.to_vec(), *executable),
                };
                content.insert(format!("semantics/{path}"), bytes.clone());
                (*path, Made::File(bytes, executable))
            })
            .collect();
        let seven = bytes_at(7, 0, 7);
        let small = Made::File(Vec::new(), false);
        let large = bytes_at(8, 0, LARGE as usize);
        content.insert("whole/large.bin".to_owned(), large.clone());
        content.insert("single.bin".to_owned(), seven.clone());
        Self {
            semantics: Sample::of("semantics", &entries, PIECE, Some(DATE)),
            many: Sample::many("many", MANY, 1, Some(DATE)),
            single: Sample::of("single.bin", &[("single.bin", Made::File(seven, false))], PIECE, Some(LATER)),
            whole: Sample::of(
                "whole",
                &[("large.bin", Made::File(large, false)), ("b", small)],
                PIECE,
                Some(DATE),
            ),
            content,
        }
    }
}

/// The mounted torrents.
struct Real<'a> {
    torrents: &'a Torrents,
    mount: &'a Mount,
}

/// Bytes here of a file, as it says itself.
fn here(mount: &Mount, path: &Path) -> u64 {
    let progress = mount.xattr(path, "progress").expect("progress");
    progress.split('/').next().and_then(|here| here.parse().ok()).expect("here/size")
}

/// Everything in a mount with its attributes, sorted by path.
fn everything(root: &Path) -> Vec<(String, Stat)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a listing") {
            let path = entry.expect("an entry").path();
            let stat = path.symlink_metadata().expect("its attributes");
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            found.push((name, stat_of(&stat)));
            if stat.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs().cast_signed()
}

impl Control for Real<'_> {
    fn bytes(&self, path: &str, offset: u64, len: usize) -> Vec<u8> {
        self.torrents.content[path][offset as usize..][..len].to_vec()
    }
    fn bring(&self, _path: &str) {
        // The reader's wish is enough.
    }
    fn shrunk(&self) -> Shrunk {
        // There is room for one of two, and some.
        let samples = ["goes.bin", "comes.bin"].map(|name| Sample::file(name, 12 << 20, PIECE));
        let peers = samples.clone().map(|sample| ScriptedPeer::start(sample, Behaviour::default()));
        let mount = samples.iter().fold(Mount::empty(), |mount, sample| mount.source(&sample.torrent));
        let mount = peers.iter().fold(mount, |mount, peer| mount.peer(peer.addr()));
        let mount = mount.arg("--cache-size=16M").start();
        let path = mount.path("goes.bin");
        std::fs::read(&path).expect("reads");
        wait_until("it to be whole", MINUTE, || here(&mount, &path) == 12 << 20);
        let before = blocks_now(&path);
        std::fs::read(mount.path("comes.bin")).expect("reads");
        wait_until("some of it to go", MINUTE, || here(&mount, &path) < 12 << 20);
        // It may go on meanwhile.
        let mut shrunk = None;
        wait_until("nothing to go between two looks", MINUTE, || {
            let (here_before, after) = (here(&mount, &path), blocks_now(&path));
            shrunk = Some(Shrunk { before, after, here: here_before });
            here(&mount, &path) == here_before
        });
        mount.stop();
        shrunk.expect("it was looked at")
    }
    fn asked_for(&self, path: &str) {
        let path = self.mount.path("semantics").join(path);
        wait_until("what was asked for to come", MINUTE, || here(self.mount, &path) > 0);
    }
    fn free(&self) -> u64 {
        let space = nix::sys::statvfs::statvfs(self.mount.cache()).expect("the cache's file system");
        space.blocks_available() * space.fragment_size()
    }
    fn add(&self, names: &[String]) {
        let sample = |name: &String| {
            let file = Made::File(format!("{name:>100}").into_bytes(), false);
            Sample::of(name, &[("d/file", file)], PIECE, Some(DATE)).torrent
        };
        let point = self.mount.point().to_owned();
        ran(["add".into(), point].into_iter().chain(names.iter().map(sample))).said(0, &[]);
    }
    fn add_magnet(&self, name: &str) {
        let link = format!("magnet:?xt=urn:btih:{}&dn={name}", "5e".repeat(20));
        ran(["add".as_ref(), self.mount.point().as_os_str(), link.as_ref()]).said(0, &[]);
    }
    fn remove(&self, names: &[String]) {
        let point = self.mount.point().to_owned();
        ran(["remove".into(), point].into_iter().chain(names.iter().map(PathBuf::from))).said(0, &[]);
    }
    fn open_whole(&self) -> (File, Vec<u8>, bool) {
        let whole = &self.torrents.whole;
        ran(["add".as_ref(), self.mount.point(), &whole.torrent]).said(0, &[]);
        let path = self.mount.path("whole/large.bin");
        let bytes = self.bytes("whole/large.bin", 0, LARGE as usize);
        assert!(std::fs::read(&path).expect("it reads") == bytes);
        let kept = home(whole, self.mount.cache()).join("data/large.bin");
        wait_until("it to be recorded as whole", MINUTE, || kept.exists());
        if !nix::unistd::geteuid().is_root() {
            return (File::open(&path).expect("it opens"), bytes, false);
        }
        // The kernel closes what was open before a moment after its reader did.
        let passed = || self.mount.log().matches("opened by passthrough").count();
        let cached = || self.mount.log().matches("opened cached").count();
        let mut file = None;
        wait_until("it to be passed through", MINUTE, || {
            let before = (passed(), cached());
            file = Some(File::open(&path).expect("it opens"));
            wait_until("the log to tell of it", MINUTE, || (passed(), cached()) != before);
            passed() > before.0
        });
        (file.expect("it opens"), bytes, true)
    }
    fn restarted(&self, dated: bool) -> Restarted {
        let cache = tempfile::tempdir().expect("a folder");
        let leaf = || Made::File(b"leaf".to_vec(), false);
        let undated = Sample::of("undated", &[("a", leaf()), ("d/b", leaf())], PIECE, None);
        let samples = match dated {
            true => [&self.torrents.semantics, &self.torrents.many, &self.torrents.single],
            false => [&undated; 3],
        };
        let look = |samples: &[&Sample]| {
            let mount = samples.iter().fold(Mount::empty(), |mount, sample| mount.source(&sample.torrent));
            let mount = mount.cache(cache.path()).start();
            let found = everything(mount.point());
            mount.stop();
            found
        };
        let first = now();
        let before = look(&samples);
        let last = now();
        wait_until("the next second", MINUTE, || now() > last);
        // In another order, and not the same number of times.
        let after = look(&[samples[2], samples[1], samples[0]]);
        Restarted { before, after, added: first..=last }
    }
}

/// Fetches what is to be here at the beginning: whole files whole, of others a little of each piece.
fn fetch(mount: &Mount) {
    for (path, shown) in &TREE {
        let real = mount.path("semantics").join(path);
        match shown {
            Shown::Link(_) => {}
            Shown::File(size, pieces) if statements::here_of(path) < *size => {
                for piece in *pieces {
                    let mut some = [0; 4096];
                    let file = File::open(&real).expect("opens");
                    file.read_exact_at(&mut some, piece * PIECE).expect("reads");
                }
            }
            _ => {
                let mut all = Vec::new();
                File::open(&real).and_then(|mut file| file.read_to_end(&mut all)).expect("reads");
            }
        }
        if !matches!(shown, Shown::Link(_)) {
            wait_until("what is here to be known", MINUTE, || {
                here(mount, &real) == statements::here_of(path)
            });
        }
    }
    std::fs::read(mount.path("single.bin")).expect("reads");
}

#[test]
fn docs_semantics_holds_for_a_torrent() {
    needs!(Fuse, Libtorrent, Attr);
    let torrents = Torrents::new();
    let (one, two) = (Seeder::start(&torrents.semantics), Seeder::start(&torrents.single));
    let three = Seeder::start(&torrents.whole);
    let (uid, gid) = statements::owner();
    let mount = Mount::sample(&torrents.semantics)
        .source(&torrents.many.torrent)
        .source(&torrents.single.torrent)
        .peer(one.addr)
        .peer(two.addr)
        .peer(three.addr)
        // How files are opened.
        .log("warn,torrentfs=info,torrentfs_fs=info,torrentfs_fs::ops=trace")
        .args(&[&format!("--umask={UMASK:o}"), &format!("--uid={uid}"), &format!("--gid={gid}")])
        .start();
    fetch(&mount);
    let view = OnDisk(mount.point().to_owned());
    wait_until("single.bin to be whole", MINUTE, || {
        view.xattr("single.bin", "user.torrentfs.progress", 100).is_ok_and(|progress| progress == b"7/7")
    });
    let real = Real { torrents: &torrents, mount: &mount };
    statements::run(&World {
        subject: Subject::Torrent,
        view: &view,
        point: Some(mount.point()),
        control: &real,
    });
    mount.stop();
}
