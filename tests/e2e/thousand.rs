//! A thousand readers that wait, and what they cost the others and the program (rows F1, O11).
//!
//! Both as threads of one process and as processes: the watcher looks at one thread of each process every time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{
    Behaviour, Language, Mount, Proc, Random, Reader, Sample, ScriptedPeer, cpu_of, seed, wait_until,
};
use crate::needs;

const READERS: usize = 1_000;
const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// `stat` and reads of complete files take under 100 ms; five times that, for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(100 * 5);
/// A reader is gone within 500 ms; five times that.
const GONE: Duration = Duration::from_millis(500 * 5);
/// Operations of which the times are taken.
const LOOKS: usize = 300;
/// How long the watcher's own time is taken.
const WATCHED: Duration = Duration::from_secs(3);
/// Watching takes under 2 % of a core; twice that, since what it uses is counted and not how long it takes.
const SHARE: f64 = 0.02 * 2.0;
/// What is here of `kept.bin`.
const HALF: u64 = 2 * MIB;

/// A mount of a file that is here, of one of which the first half is, and of one that nobody has.
fn start(sample: &Sample) -> (Mount, ScriptedPeer) {
    let peer = ScriptedPeer::start(sample.clone(), Behaviour { has: Some(0..18), ..Behaviour::default() });
    let mount = Mount::sample(sample).peer(peer.addr()).start();
    Proc::start("cmp", [&mount.path("thousand/here.bin"), &sample.source().join("here.bin")]).success(MINUTE);
    let half = random_access(&mount.path("thousand/kept.bin"));
    half.read_exact_at(&mut vec![0; HALF as usize], 0).expect("reads");
    (mount, peer)
}

fn sample() -> Sample {
    let files = [("here.bin", 16 * MIB), ("kept.bin", 2 * HALF), ("missing.bin", 64 * MIB)];
    Sample::folder("thousand", &files, MIB)
}

/// Opens a file, of which the kernel reads nothing ahead, and forgets what it has, so that a read comes to the program.
fn random_access(path: &Path) -> File {
    let file = File::open(path).expect("opens");
    for advice in [PosixFadviseAdvice::POSIX_FADV_RANDOM, PosixFadviseAdvice::POSIX_FADV_DONTNEED] {
        posix_fadvise(&file, 0, 0, advice).expect("it takes advice");
    }
    file
}

/// Prints how some times are spread, and panics if one in a hundred was too long.
fn spread(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |permille: usize| took[(took.len() - 1) * permille / 1000];
    eprintln!("{what}: p50 {:?}, p95 {:?}, p99 {:?}, at most {:?}", at(500), at(950), at(990), at(1000));
    assert!(at(990) < AT_ONCE, "{what}: one in a hundred took {:?}", at(990));
}

/// `stat` and reads of what is here, and the watcher's share of a core.
fn beside(mount: &Mount, sample: &Sample, what: &str) {
    let here = mount.path("thousand/here.bin");
    let source = |name: &str| File::open(sample.source().join(name)).expect("the source");
    // Complete, a file may be read by the kernel alone; of half a file each read comes to the program.
    let files = [("here.bin", 16 * MIB, source("here.bin")), ("kept.bin", HALF, source("kept.bin"))];
    let mut random = Random(seed());
    let (mut stats, mut lookups, mut reads) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for number in 0..LOOKS {
        let start = Instant::now();
        assert_eq!(here.metadata().expect("stat").len(), 16 * MIB);
        stats.push(start.elapsed());
        // The kernel may know the answer to that by itself, but not to this.
        let start = Instant::now();
        assert!(mount.path(format!("thousand/absent {number}")).metadata().is_err());
        lookups.push(start.elapsed());
        for ((name, here, source), reads) in files.iter().zip(&mut reads) {
            let length = *random.of(&[4096, 16 << 10, 128 << 10]);
            let offset = random.below(here - (128 << 10));
            let (mut got, mut expected) = (vec![0; length], vec![0; length]);
            source.read_exact_at(&mut expected, offset).expect("the source");
            let start = Instant::now();
            let file = random_access(&mount.path("thousand").join(name));
            file.read_exact_at(&mut got, offset).expect("reads");
            reads.push(start.elapsed());
            assert!(got == expected, "wrong bytes at {offset} of {name}");
        }
    }
    spread(&format!("stat beside {what}"), stats);
    spread(&format!("lookups beside {what}"), lookups);
    let [whole, half] = reads;
    spread(&format!("reads of a complete file beside {what}"), whole);
    spread(&format!("reads of what is here of a file beside {what}"), half);
    let (before, start) = (cpu_of(mount.pid(), "fs-signals"), Instant::now());
    std::thread::sleep(WATCHED);
    let used = cpu_of(mount.pid(), "fs-signals").saturating_sub(before);
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    eprintln!("watching {what}: {used:?} in {:?}, {:.2} % of a core", start.elapsed(), share * 100.0);
    assert!(used > Duration::ZERO, "nobody watches");
    assert!(share < SHARE, "watching takes {share} of a core");
}

#[test]
fn o11_a_thousand_waiting_threads_cost_next_to_nothing() {
    needs!(Fuse, Libtorrent);
    let sample = sample();
    let (mount, _peer) = start(&sample);
    let mut many = Reader::many(&mount.path("thousand/missing.bin"), READERS, 64 << 10);
    many.wait_all_parked(READERS);
    beside(&mount, &sample, "a thousand waiting threads");
    many.wait_all_parked(READERS);
    let start = Instant::now();
    many.signal(Signal::SIGTERM);
    many.ended(GONE);
    eprintln!("all ended after {:?}", start.elapsed());
    mount.stop();
}

/// Whether a process is in a read.
fn reads(pid: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split(' ').next() == Some(&libc::SYS_pread64.to_string())
}

fn is_gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn o11_a_thousand_waiting_processes_cost_next_to_nothing() {
    needs!(Fuse, Libtorrent);
    let sample = sample();
    let (mount, _peer) = start(&sample);
    let missing = mount.path("thousand/missing.bin");
    let (count, stride) = (READERS.to_string(), (64 << 10).to_string());
    let mut crowd = Language::C.reader([
        "crowd".as_ref(),
        missing.as_os_str(),
        count.as_ref(),
        stride.as_ref(),
        "catch".as_ref(),
    ]);
    let line = crowd.line("waiting", MINUTE);
    let pids: Vec<i32> = line.split(' ').skip(1).map(|pid| pid.parse().expect("a number")).collect();
    assert_eq!(pids.len(), READERS);
    wait_until("all to wait", MINUTE, || pids.iter().all(|pid| reads(*pid)));
    beside(&mount, &sample, "a thousand waiting processes");
    assert!(pids.iter().all(|pid| reads(*pid)), "all wait still");
    // Some by themselves first: each has a handler, so the watcher has to see it.
    let mut took = Vec::new();
    for (pid, signal) in pids
        .iter()
        .zip([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGKILL].iter().cycle())
        .take(12)
    {
        let start = Instant::now();
        kill(Pid::from_raw(*pid), *signal).expect("it waits");
        wait_until("its end", GONE, || is_gone(*pid));
        took.push((*signal, start.elapsed()));
    }
    eprintln!("of a thousand, one by one: {took:?}");
    let start = Instant::now();
    for pid in &pids {
        // Some are gone already.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
    }
    crowd.success(MINUTE);
    eprintln!("the others, at once: {:?}", start.elapsed());
    mount.stop();
}
