//! Complete files are read by the kernel, without the program: shown by stopping that.
//!
//! A stopped program (SIGSTOP) answers nothing. What is open by passthrough is read all the same, from pages that the
//! mount has never had; a read of a cached handle would wait. How a file was opened stands in the log, at level trace.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{
    Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, allocated, bytes_at, fetch, forget_pages, home,
    wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const PIECE: u64 = 256 * KIB;
/// How a file was opened.
const OPENS: &str = "torrentfs_fs=trace";
const PASSED: &str = "opened by passthrough";
const CACHED: &str = "opened cached";

/// The program, stopped for as long as this lives, but no longer than [`STUCK`]: who waits for it then would wait for ever.
struct Stopped<'a> {
    mount: &'a Mount,
    over: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Reading some MiB from the disk takes far less.
const STUCK: Duration = Duration::from_secs(20);

impl<'a> Stopped<'a> {
    fn new(mount: &'a Mount) -> Self {
        let (over, is_over) = channel();
        let pid = Pid::from_raw(mount.pid().cast_signed());
        let watchdog = std::thread::spawn(move || {
            if is_over.recv_timeout(STUCK) == Err(RecvTimeoutError::Timeout) {
                eprintln!("stuck: the program goes on");
                let _ = kill(pid, Signal::SIGCONT);
            }
        });
        let stopped = Self { mount, over: Some((over, watchdog)) };
        mount.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", mount.pid());
        wait_until("the program to stop", MINUTE, || {
            std::fs::read_to_string(&stat).expect("it lives").contains(") T ")
        });
        stopped
    }

    /// Goes on. Panics if it had to go on before.
    fn end(self) {
        let stat = format!("/proc/{}/stat", self.mount.pid());
        let stat = std::fs::read_to_string(stat).expect("it lives");
        assert!(stat.contains(") T "), "somebody waited for the program");
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.mount.signal(Signal::SIGCONT);
        if let Some((over, watchdog)) = self.over.take() {
            drop(over);
            let _ = watchdog.join();
        }
    }
}

/// How files were opened, as the log tells; it comes a moment later.
struct Opens<'a> {
    mount: &'a Mount,
    seen: usize,
}

impl<'a> Opens<'a> {
    fn of(mount: &'a Mount) -> Self {
        Self { mount, seen: 0 }
    }

    /// Opens a file, and whether by passthrough. Nobody else opens any meanwhile.
    fn open(&mut self, path: &Path) -> (File, bool) {
        let file = File::open(path).expect("opens");
        self.seen += 1;
        let mut last = String::new();
        wait_until("the log to tell of it", MINUTE, || {
            let log = self.mount.log();
            let mut lines = log.lines().filter(|line| line.contains(PASSED) || line.contains(CACHED));
            let count = lines.clone().count();
            assert!(count <= self.seen, "somebody else opened a file");
            last = lines.next_back().unwrap_or_default().to_owned();
            count == self.seen
        });
        (file, last.contains(PASSED))
    }

    /// Opens a file until that is by passthrough: the kernel releases what was open before a moment after it was closed.
    fn passed(&mut self, path: &Path) -> File {
        let mut found = None;
        wait_until("it to be passed through", MINUTE, || {
            let (file, passed) = self.open(path);
            found = passed.then_some(file);
            passed
        });
        found.expect("it was")
    }
}

/// Reads all of an open file of this size.
fn check(file: &File, seed: u64, size: u64) {
    let mut buffer = vec![0; MIB as usize];
    for offset in (0..size).step_by(MIB as usize) {
        let part = buffer.get_mut(..MIB.min(size - offset) as usize).expect("a part");
        file.read_exact_at(part, offset).expect("reads");
        assert!(part == bytes_at(seed, offset, part.len()), "wrong bytes at {offset}");
    }
}

#[test]
fn a_complete_file_is_read_without_the_program() {
    needs!(Fuse, Root);
    for storage in ["file", "mmap"] {
        let sample = Sample::file("passed.bin", 24 * MIB + 77, PIECE);
        let cache = tempfile::tempdir().expect("a folder");
        fetch(&sample, cache.path(), None);
        let builder = Mount::sample(&sample).cache(cache.path()).arg("--no-trackers").log(OPENS);
        let mount = builder.args(&["--storage", storage]).start();
        let path = mount.path(&sample.name);
        let mut opens = Opens::of(&mount);
        let (file, first) = opens.open(&path);
        let (second, also) = opens.open(&path);
        assert!(first && also);
        // The kernel asks for the first time, and remembers.
        let before = second.metadata().expect("its attributes");
        let stopped = Stopped::new(&mount);
        check(&file, sample.seed, sample.total);
        // What is told of it is what is told of all: of the time the torrent was made, not of the file behind it.
        let metadata = second.metadata().expect("remembered by the kernel");
        assert_eq!((metadata.len(), metadata.mtime()), (sample.total, before.ctime()));
        assert_eq!(metadata.atime(), before.atime());
        stopped.end();
        // Who maps it, and who reads it by other ways.
        drop((file, second));
        assert_eq!(Reader::mmap(&path).success(MINUTE), Reader::mmap(&sample.source()).success(MINUTE));
        mount.check_sums(&sample);
        assert!(!mount.log().contains(CACHED));
        mount.stop();
    }
}

#[test]
fn what_completes_while_it_is_open_goes_on_as_it_was_opened() {
    needs!(Fuse, Root);
    let sample = Sample::file("growing.bin", 8 * MIB, PIECE);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).log(OPENS).start();
    let path = mount.path(&sample.name);
    let mut opens = Opens::of(&mount);
    let (before, _) = opens.open(&path);
    check(&before, sample.seed, sample.total);
    let whole = home(&sample, mount.cache()).join("data").join(&sample.name);
    wait_until("the file to be recorded as whole", MINUTE, || whole.exists());
    let (after, passed) = opens.open(&path);
    assert!(!passed);
    check(&after, sample.seed, sample.total);
    drop((before, after));
    let last = opens.passed(&path);
    let stopped = Stopped::new(&mount);
    check(&last, sample.seed, sample.total);
    stopped.end();
    mount.stop();
}

#[test]
fn a_bounded_cache_is_never_filled_with_what_is_held() {
    needs!(Fuse, Root);
    const COUNT: usize = 12;
    /// Three of them are less than half of the bound, four more.
    const SIZE: u64 = 5 * MIB;
    let files: Vec<(String, u64)> = (0..COUNT).map(|n| (format!("{n}.bin"), SIZE)).collect();
    let mut list: Vec<(&str, u64)> = files.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    list.push(("large.bin", 9 * MIB));
    let sample = Sample::folder("held", &list, PIECE);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let cache = tempfile::tempdir().expect("a folder");
    let bound = 32 * MIB;
    let builder = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).log(OPENS);
    let mount = builder.args(&["--cache-size", &bound.to_string()]).start();
    let path = |name: &str| mount.path("held").join(name);
    let whole = |name: &str| home(&sample, cache.path()).join("data").join(name);
    let seed = |name: &str| list.iter().position(|(file, _)| *file == name).expect("of the list") as u64 + 1;
    let mut opens = Opens::of(&mount);
    // Too large for that: a quarter at most.
    check(&opens.open(&path("large.bin")).0, seed("large.bin"), 9 * MIB);
    wait_until("it to be recorded as whole", MINUTE, || whole("large.bin").exists());
    for _ in 0..5 {
        let (file, passed) = opens.open(&path("large.bin"));
        check(&file, seed("large.bin"), 9 * MIB);
        assert!(!passed);
    }
    // Half of the bound holds three of them, and the fourth is cached.
    let mut held: Vec<(File, u64)> = Vec::new();
    for (name, _) in files.iter().take(3) {
        check(&opens.open(&path(name)).0, seed(name), SIZE);
        wait_until("it to be recorded as whole", MINUTE, || whole(name).exists());
        held.push((opens.passed(&path(name)), seed(name)));
    }
    let more = &files[3].0;
    check(&opens.open(&path(more)).0, seed(more), SIZE);
    wait_until("it to be recorded as whole", MINUTE, || whole(more).exists());
    for _ in 0..5 {
        assert!(!opens.open(&path(more)).1);
    }
    // Everything else goes through the other half.
    for _ in 0..2 {
        for (name, _) in &files {
            check(&opens.open(&path(name)).0, seed(name), SIZE);
            forget_pages(&path(name));
            opens.seen += 1;
        }
        assert!(allocated(cache.path()) <= bound, "{} bytes", allocated(cache.path()));
    }
    let stopped = Stopped::new(&mount);
    for (file, seed) in &held {
        check(file, *seed, SIZE);
    }
    stopped.end();
    drop(held);
    check(&opens.open(&path("large.bin")).0, seed("large.bin"), 9 * MIB);
    mount.stop();
}

#[test]
fn who_maps_a_file_and_closes_it_never_sees_a_hole() {
    needs!(Fuse, Root);
    // A mapping outlives its handle, and of that the program hears nothing.
    const MAPPER: &str = "import mmap,os,sys,ctypes\nlibc=ctypes.CDLL(None)\nlibc.mmap.restype=ctypes.c_void_p\n\
        f=os.open(sys.argv[1],os.O_RDONLY)\nn=os.fstat(f).st_size\n\
        a=libc.mmap(None,ctypes.c_size_t(n),1,1,f,ctypes.c_long(0))\nos.close(f)\nprint('mapped',flush=True)\n\
        sys.stdin.readline()\nimport hashlib\nprint('sum',hashlib.sha256(ctypes.string_at(a,n)).hexdigest(),flush=True)\n";
    let list = [("a.bin", 3 * MIB), ("b.bin", 20 * MIB)];
    let sample = Sample::folder("mapped", &list, PIECE);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let cache = tempfile::tempdir().expect("a folder");
    let builder = Mount::sample(&sample).cache(cache.path()).peer(peer.addr()).log(OPENS);
    let mount = builder.args(&["--cache-size", &(16 * MIB).to_string()]).start();
    let path: PathBuf = mount.path("mapped/a.bin");
    let mut opens = Opens::of(&mount);
    check(&opens.open(&path).0, 1, 3 * MIB);
    let whole = home(&sample, cache.path()).join("data/a.bin");
    wait_until("it to be recorded as whole", MINUTE, || whole.exists());
    // So that the mapper has passthrough as well.
    let passed = opens.passed(&path);
    let program: [&std::ffi::OsStr; 3] = ["-c".as_ref(), MAPPER.as_ref(), path.as_os_str()];
    let mut mapper = Proc::start("/usr/bin/python3", program);
    mapper.line("mapped", MINUTE);
    drop(passed);
    // What else is read takes all the room there is.
    let got = std::fs::read(mount.path("mapped/b.bin")).expect("reads");
    assert!(got == bytes_at(2, 0, got.len()));
    let sum = mapper.ask("sum", MINUTE);
    let source = Proc::start("sha256sum", [sample.data.join("mapped/a.bin")]).success(MINUTE);
    assert!(source.starts_with(sum.trim_start_matches("sum").trim()), "{sum} is not {source}");
    drop(mapper);
    let again = std::fs::read(&path).expect("reads");
    assert!(again == bytes_at(1, 0, again.len()));
    mount.stop();
}

#[test]
fn what_lies_in_no_file_of_ours_is_cached() {
    needs!(Fuse, Root);
    let sample = Sample::file("elsewhere.bin", 4 * MIB, PIECE);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).args(&["--storage", "memory"]).log(OPENS).start();
    let mut opens = Opens::of(&mount);
    for _ in 0..3 {
        let (file, passed) = opens.open(&mount.path(&sample.name));
        check(&file, sample.seed, sample.total);
        assert!(!passed);
    }
    mount.stop();
}
