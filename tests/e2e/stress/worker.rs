//! One reader: a process of its own, so that it can be killed, and so that what hangs it hangs nobody else.
//!
//! It is this test binary once more, told by [`ENV`] what to do. It does operations of one kind of mix, by its own
//! luck, and prints each: `> OPERATION WHAT` before it begins, `< OPERATION MICROSECONDS right|due|last|bad WHY` when it is
//! over. Every byte is compared with what it has to be.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};

use crate::common::{Random, Truth, is_mounted};

/// Holds the [`Order`] of a worker, as JSON.
pub const ENV: &str = "TORRENTFS_STRESS_WORKER";
/// The name of the test that is a worker when it is told so.
pub const TEST: &str = "stress::worker::a_worker_says_what_is_wrong";

/// What is in the mount.
#[derive(Clone, Serialize, Deserialize)]
pub struct Scene {
    /// The mount point.
    pub root: PathBuf,
    /// What it shows.
    pub torrents: Vec<Shown>,
}

/// A torrent in the mount.
#[derive(Clone, Serialize, Deserialize)]
pub struct Shown {
    /// Its name, from which its bytes follow.
    pub name: String,
    /// Bytes in each piece.
    pub piece_length: usize,
    /// What may be expected of it.
    pub class: Class,
    /// Of each file the path, where it begins in the torrent, and its size.
    pub files: Vec<(String, u64, u64)>,
}

/// What may be expected of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// All of it can be read, sooner or later.
    Whole,
    /// Nobody has any of it: reads fail, with EIO.
    Nobody,
    /// It may be gone at any moment, and then be there again.
    Comes,
}

/// What a worker does.
#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    /// The file that holds the [`Scene`].
    pub scene: PathBuf,
    /// Of its luck.
    pub seed: u64,
    /// Which operations.
    pub mix: Mix,
    /// Only with what lies below this path of the mount.
    pub under: Option<String>,
    /// When it ends.
    pub until: Until,
}

/// Which operations a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mix {
    /// Reads in all ways.
    Reads,
    /// All that asks for names and attributes.
    Lookups,
    /// Both.
    Both,
    /// Each file once, whole, in any order.
    EachFile,
}

/// When a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// After so many operations.
    Operations(u64),
    /// After so many milliseconds.
    Millis(u64),
    /// When the mount ends.
    Gone,
}

/// Why an operation didn't come right.
enum Trouble {
    Os(io::Error),
    Wrong(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Os(error)
    }
}

impl From<nix::Error> for Trouble {
    fn from(error: nix::Error) -> Self {
        Trouble::Os(error.into())
    }
}

type Operation = fn(&mut Worker, usize, usize) -> Result<(), Trouble>;

/// Operations with their weights.
const READS: [(&str, u64, Operation); 3] =
    [("read", 60, Worker::read), ("read on", 25, Worker::read_on), ("mmap", 15, Worker::map)];
const LOOKUPS: [(&str, u64, Operation); 5] = [
    ("stat", 40, Worker::stat),
    ("list", 25, Worker::list),
    ("absent", 15, Worker::absent),
    ("xattr", 15, Worker::xattr),
    ("statfs", 5, Worker::statfs),
];

struct Worker {
    scene: Scene,
    truths: Vec<Truth>,
    /// What it may touch: torrent and file.
    files: Vec<(usize, usize)>,
    mix: Mix,
    until: Until,
    random: Random,
}

impl Worker {
    fn new(order: &Order) -> Self {
        let scene = std::fs::read(&order.scene).expect("the scene");
        let scene: Scene = serde_json::from_slice(&scene).expect("a scene");
        let under = order.under.as_deref().unwrap_or_default();
        let mut files = Vec::new();
        for (torrent, shown) in scene.torrents.iter().enumerate() {
            let places = shown.files.iter().enumerate().filter(|(_, (path, ..))| path.starts_with(under));
            files.extend(places.map(|(file, _)| (torrent, file)));
        }
        assert!(!files.is_empty(), "nothing to do under {under:?}");
        let truths = scene.torrents.iter().map(|shown| Truth::of(&shown.name, shown.piece_length)).collect();
        Self { scene, truths, files, mix: order.mix, until: order.until, random: Random(order.seed) }
    }

    /// Does as ordered, and tells `out`; ends early when nobody listens any more.
    fn run(mut self, out: &mut impl Write) -> io::Result<()> {
        let start = Instant::now();
        let mut left = self.files.clone();
        for number in 0.. {
            let over = match self.until {
                Until::Operations(count) => number >= count,
                Until::Millis(millis) => start.elapsed() >= Duration::from_millis(millis),
                Until::Gone => false,
            };
            let chosen = match self.mix {
                Mix::EachFile if left.is_empty() => break,
                Mix::EachFile => left.swap_remove(self.random.below(left.len() as u64) as usize),
                _ => *self.random.of(&self.files),
            };
            let (name, _, operation) = match self.mix {
                _ if over => break,
                Mix::EachFile => ("read whole", 0, Worker::read_whole as Operation),
                Mix::Reads => self.draw(&READS),
                Mix::Lookups => self.draw(&LOOKUPS),
                Mix::Both if self.random.below(2) == 0 => self.draw(&READS),
                Mix::Both => self.draw(&LOOKUPS),
            };
            let class = self.scene.torrents[chosen.0].class;
            // A mapping of what can't be had ends its reader (SIGBUS), as it does on a disk.
            let (name, operation) = if name == "mmap" && (class != Class::Whole || self.until == Until::Gone)
            {
                ("read", Worker::read as Operation)
            } else {
                (name, operation)
            };
            out.write_all(
                format!("> {name} {}\n", self.scene.torrents[chosen.0].files[chosen.1].0).as_bytes(),
            )?;
            let begun = Instant::now();
            let outcome = operation(&mut self, chosen.0, chosen.1);
            let took = begun.elapsed().as_micros();
            let (word, goes_on) = self.judge(class, name, outcome);
            out.write_all(format!("< {name} {took} {word}\n").as_bytes())?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Whether an outcome is right, due or bad, and whether to go on.
    fn judge(&self, class: Class, name: &str, outcome: Result<(), Trouble>) -> (String, bool) {
        let reads = READS.iter().any(|(read, ..)| *read == name) || name == "read whole";
        match outcome {
            Ok(()) if class == Class::Nobody && reads => ("bad bytes that nobody has".to_owned(), true),
            Ok(()) => ("right".to_owned(), true),
            Err(Trouble::Wrong(what)) => (format!("bad {what}"), true),
            Err(Trouble::Os(error)) => {
                let code = error.raw_os_error().unwrap_or_default();
                let gone = [
                    libc::ENOENT,
                    libc::ESTALE,
                    libc::EIO,
                    libc::ENOTCONN,
                    libc::ECONNABORTED,
                    libc::ENODATA,
                ];
                let due = match class {
                    Class::Whole => false,
                    Class::Nobody => reads && code == libc::EIO,
                    Class::Comes if name == "xattr" && code == libc::ENODATA => true,
                    Class::Comes => [libc::ENOENT, libc::ESTALE, libc::EIO].contains(&code),
                };
                if self.until == Until::Gone && gone.contains(&code) {
                    // What comes and goes may have gone by itself, while the mount is there.
                    let by_itself = class == Class::Comes && due && is_mounted(&self.scene.root);
                    return (if by_itself { "due" } else { "last" }.to_owned(), by_itself);
                }
                (if due { "due".to_owned() } else { format!("bad {error}") }, true)
            }
        }
    }

    fn draw(&mut self, several: &[(&'static str, u64, Operation)]) -> (&'static str, u64, Operation) {
        let mut at = self.random.below(several.iter().map(|(_, weight, _)| weight).sum());
        for one in several {
            if at < one.1 {
                return *one;
            }
            at -= one.1;
        }
        several[0]
    }

    fn path(&self, torrent: usize, file: usize) -> PathBuf {
        self.scene.root.join(&self.scene.torrents[torrent].files[file].0)
    }

    /// Opens a file, every other time after the kernel was told to forget what it has of it.
    fn open(&mut self, torrent: usize, file: usize) -> Result<File, Trouble> {
        let opened = File::open(self.path(torrent, file))?;
        if self.random.below(2) == 0 {
            posix_fadvise(&opened, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(opened)
    }

    /// A range of a file, by its luck.
    fn range(&mut self, torrent: usize, file: usize, longest: u64) -> (u64, usize) {
        let (_, _, size) = self.scene.torrents[torrent].files[file];
        let offset = self.random.below(size);
        let length = *self.random.of(&[1, 100, 4096, 5000, 16 << 10, 128 << 10, longest]);
        (offset, length.min(longest).min(size - offset) as usize)
    }

    fn compare(&self, torrent: usize, file: usize, offset: u64, got: &[u8]) -> Result<(), Trouble> {
        let (path, begin, _) = &self.scene.torrents[torrent].files[file];
        match self.truths[torrent].wrong(begin + offset, got) {
            None => Ok(()),
            Some(at) => Err(Trouble::Wrong(format!("wrong bytes in {path} from {} on", at - begin))),
        }
    }

    fn pread(
        &self,
        from: &File,
        torrent: usize,
        file: usize,
        offset: u64,
        length: usize,
    ) -> Result<(), Trouble> {
        let mut buffer = vec![0x5a; length];
        match from.read_exact_at(&mut buffer, offset) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(Trouble::Wrong(format!("the end came before {}", offset + length as u64)));
            }
            other => other?,
        }
        self.compare(torrent, file, offset, &buffer)
    }

    fn read(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let from = self.open(torrent, file)?;
        let (offset, length) = self.range(torrent, file, 1 << 20);
        self.pread(&from, torrent, file, offset, length)
    }

    /// Reads on in one file, as most programs do.
    fn read_on(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let from = self.open(torrent, file)?;
        let (offset, length) = self.range(torrent, file, 512 << 10);
        self.read_parts(&from, torrent, file, offset, length as u64, 32 << 10)
    }

    fn read_whole(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let from = File::open(self.path(torrent, file))?;
        let (_, _, size) = self.scene.torrents[torrent].files[file];
        self.read_parts(&from, torrent, file, 0, size, 128 << 10)
    }

    fn read_parts(
        &self,
        from: &File,
        torrent: usize,
        file: usize,
        offset: u64,
        length: u64,
        step: u64,
    ) -> Result<(), Trouble> {
        for at in (offset..offset + length).step_by(step as usize) {
            self.pread(from, torrent, file, at, (offset + length - at).min(step) as usize)?;
        }
        Ok(())
    }

    fn map(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let from = self.open(torrent, file)?;
        let (offset, length) = self.range(torrent, file, 256 << 10);
        if length == 0 {
            return Ok(());
        }
        // SAFETY: nobody changes the file; a page that can't be had ends the process, as it should.
        let mapped = unsafe { memmap2::Mmap::map(&from) }?;
        self.compare(torrent, file, offset, &mapped[offset as usize..offset as usize + length])
    }

    fn stat(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let (found, (path, _, size)) =
            (self.path(torrent, file).metadata()?, &self.scene.torrents[torrent].files[file]);
        let right = found.is_file() && found.len() == *size;
        right.then_some(()).ok_or_else(|| Trouble::Wrong(format!("{path} has {} bytes", found.len())))
    }

    /// Lists the folder in which the file lies.
    fn list(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let folder = self.path(torrent, file).parent().expect("a folder").to_owned();
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&folder)? {
            found.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        if found.is_empty() && self.until == Until::Gone {
            // What the mount stood on.
            return Err(io::Error::from_raw_os_error(libc::ENOENT).into());
        }
        let inside = folder.strip_prefix(&self.scene.root).expect("below the root");
        let mut expected = BTreeSet::new();
        for shown in self.scene.torrents.iter().filter(|shown| shown.class != Class::Comes) {
            let below = shown.files.iter().filter_map(|(path, ..)| Path::new(path).strip_prefix(inside).ok());
            expected.extend(below.map(|rest| rest.components().next().expect("a name").as_os_str()));
        }
        let expected: BTreeSet<_> = expected.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        // What comes and goes may be in the root or not.
        let right =
            if inside.as_os_str().is_empty() { expected.is_subset(&found) } else { expected == found };
        let comes = self.scene.torrents[torrent].class == Class::Comes;
        let wrong = || Trouble::Wrong(format!("{} lists {found:?}", folder.display()));
        (right || comes).then_some(()).ok_or_else(wrong)
    }

    fn absent(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let mut name = self.path(torrent, file).into_os_string();
        name.push(".absent");
        match std::fs::symlink_metadata(&name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Trouble::Wrong(format!("{} exists", name.display()))),
        }
    }

    fn xattr(&mut self, torrent: usize, file: usize) -> Result<(), Trouble> {
        let path = std::ffi::CString::new(self.path(torrent, file).as_os_str().as_bytes()).expect("no NUL");
        let mut value = [0u8; 256];
        // SAFETY: both strings end with NUL, and the buffer is as long as said.
        let length = unsafe {
            let name = c"user.torrentfs.progress".as_ptr();
            libc::getxattr(path.as_ptr(), name, value.as_mut_ptr().cast(), value.len())
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let value = String::from_utf8_lossy(&value[..length]).into_owned();
        let (_, _, size) = self.scene.torrents[torrent].files[file];
        let right = value.split_once('/').is_some_and(|(here, of)| {
            here.parse::<u64>().is_ok_and(|here| here <= size) && of.parse() == Ok(size)
        });
        right.then_some(()).ok_or_else(|| Trouble::Wrong(format!("progress is {value}")))
    }

    fn statfs(&mut self, _: usize, _: usize) -> Result<(), Trouble> {
        let found = nix::sys::statvfs::statvfs(&self.scene.root)?;
        let right = found.blocks() > 0;
        right.then_some(()).ok_or_else(|| Trouble::Wrong("a file system of no size".to_owned()))
    }
}

/// Told by [`ENV`] it is a worker. Otherwise it shows what a worker says, on a plain folder with a wrong byte in it.
#[test]
fn a_worker_says_what_is_wrong() {
    if let Ok(order) = std::env::var(ENV) {
        for stops in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: no handler is set; a shell may have told us to ignore them.
            unsafe { signal(stops, SigHandler::SigDfl) }.expect("a signal");
        }
        let order = serde_json::from_str(&order).expect("an order");
        // Who doesn't listen any more doesn't need us.
        // After a line of the test runner that has no end yet.
        println!();
        let _ = Worker::new(&order).run(&mut io::stdout());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (name, piece_length, size) = ("plain.bin", 1 << 14, 100_000);
    let files = vec![(name.to_owned(), 0, size as u64)];
    let path = folder.path().join(name);
    std::fs::write(&path, Truth::of(name, piece_length).bytes(0, size)).expect("room");
    let scene = folder.path().join("scene");
    let told = |mix: Mix, until: Until, class: Class| {
        let shown = Shown { name: name.to_owned(), piece_length, class, files: files.clone() };
        let said = Scene { root: folder.path().to_owned(), torrents: vec![shown] };
        std::fs::write(&scene, serde_json::to_vec(&said).expect("JSON")).expect("room");
        let mut out = Vec::new();
        let order = Order { scene: scene.clone(), seed: 1, mix, under: None, until };
        Worker::new(&order).run(&mut out).expect("a Vec");
        String::from_utf8(out).expect("text")
    };
    let reads = told(Mix::Reads, Until::Operations(50), Class::Whole);
    assert_eq!(reads.matches(" right").count(), 50, "{reads}");
    assert!(told(Mix::EachFile, Until::Operations(9), Class::Nobody).contains("bad bytes that nobody has"));
    let file = File::options().write(true).open(&path).expect("opens");
    file.write_all_at(b"?", 50_000).expect("writes");
    let whole = told(Mix::EachFile, Until::Operations(9), Class::Whole);
    assert!(whole.contains("bad wrong bytes in plain.bin from 49152 on"), "{whole}");
    file.set_len(1000).expect("it is cut");
    assert!(told(Mix::EachFile, Until::Operations(9), Class::Whole).contains("bad the end came before"));
    std::fs::remove_file(&path).expect("it goes");
    assert!(told(Mix::EachFile, Until::Operations(9), Class::Whole).contains("bad No such file"));
    assert!(told(Mix::EachFile, Until::Operations(9), Class::Comes).contains(" due"));
}
