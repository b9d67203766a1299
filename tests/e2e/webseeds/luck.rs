//! Many torrents and readers, and webseeds that do wrong whatever there is, by luck: each read gives the right bytes or
//! EIO, nothing is left under way, and nothing spins.
//!
//! Each torrent has two or three webseeds with a character each: one that is mostly good, one of a certain vice, one that
//! does anything; some are asked for pieces (BEP 17). Meanwhile torrents are removed, with their data or without it, and
//! added again, and such as are there are added once more, which has webseeds tried again that were given up. Readers are
//! threads of the test's own, since a read that hangs has the program's time-out, and the test a bound. The luck follows
//! from a seed that is printed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::server::{Act, Asked, Server};
use super::{MINUTE, Seeded, webseeds};
use crate::common::{Mount, Random, Sample, cpu, ran, seed, wait_until, wake_ups};
use crate::needs;

/// How long readers read, unless `TORRENTFS_STRESS_SECONDS` tells otherwise.
const LASTS: Duration = Duration::from_secs(10);
/// Hosts for webseeds of one character.
const HOSTS: u8 = 3;
/// Locks taken in two seconds without a reader: what ticks in the program takes some.
const QUIET_LOCKS: u64 = 4_000;
/// Locks taken for each read and request, on the average, and by what ticks besides in a second.
const LOCKS_EACH: f64 = 300.0;
const LOCKS_TICKING: f64 = 600.0;
/// Readers at once.
const READERS: u64 = 12;
/// How long a read may take: its time-out of 3 s, once for what it waits for and again for what is behind it, and then
/// some, for a busy machine.
const READ_MAX: Duration = Duration::from_secs(45);

fn lasts() -> Duration {
    let told = std::env::var("TORRENTFS_STRESS_SECONDS").ok().and_then(|told| told.parse().ok());
    told.map_or(LASTS, Duration::from_secs)
}

/// Anything that can be done wrong, or right.
fn anything(random: &mut Random, asked: &Asked) -> Act {
    let (from, length) = asked.range.unwrap_or((0, 1));
    // What ends a file, or all files, for the rest of a torrent's life is rarer than what goes by.
    if random.below(60) == 0 {
        return Act::status(*random.of(&[403, 404, 410, 451]));
    }
    match random.below(24) {
        0 => Act::Late(Duration::from_millis(random.below(500))),
        1 => Act::status(*random.of(&[400, 500, 502, 504])),
        2 => Act::later(*random.of(&[429, 503]), random.below(3)),
        3 => Act::Whole,
        4 => Act::Says(Some(format!("bytes {}-{}/{}", from + 1, from + length, from + 2 * length))),
        5 => Act::Says(None),
        6 => Act::Half,
        7 => Act::Double,
        8 => Act::Short(random.below(length)),
        9 => Act::Long,
        10 if random.below(2) == 0 => Act::Encoded("gzip"),
        10 => Act::Gzip,
        11 => Act::Chunked,
        12 => Act::Hang,
        13 => Act::Stall(random.below(length)),
        14 => Act::Trickle(1 + random.below(2_000) as usize, Duration::from_millis(50)),
        15 => Act::Close(random.below(2) == 0),
        16 => Act::Reset,
        17 => Act::Garbage,
        18 => Act::EndlessHead,
        19 => Act::redirect(302, format!("/{}/{}", asked.root, asked.path)),
        20 => Act::Corrupt,
        _ => Act::Serve,
    }
}

/// A webseed's way: how often of a hundred times it does what is right, and what it does otherwise.
struct Character {
    right: u64,
    vice: Option<Act>,
    random: Mutex<Random>,
}

impl Character {
    fn act(&self, asked: &Asked) -> Act {
        let mut random = self.random.lock().expect("luck");
        if random.below(100) < self.right {
            return Act::Serve;
        }
        self.vice.clone().unwrap_or_else(|| anything(&mut random, asked))
    }
}

fn texts(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

fn torrents() -> Vec<Sample> {
    let mut made: Vec<_> = (0..6)
        .map(|number| {
            Sample::file(
                &format!("{}luck.bin", char::from(b'a' + number)),
                2_000_000 + 7_919 * u64::from(number),
                64 << 10,
            )
        })
        .collect();
    made.extend((0..6).map(|number: u64| {
        let files = [
            ("one.bin", 700_001 + number),
            ("two/b c.bin", 300_000),
            ("three#.bin", 1),
            ("four%.bin", 900_000),
        ];
        Sample::folder(&format!("luck {number}"), &files, 16 << 10 << (number % 3))
    }));
    made
}

/// What became of the reads.
#[derive(Default)]
struct Counts {
    right: AtomicU64,
    failed: AtomicU64,
    /// Files that weren't there, since their torrent had just been removed.
    absent: AtomicU64,
    slowest: AtomicU64,
}

/// Whether an error says that a file is gone.
fn gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}

/// Removes torrents and adds them again, and adds such as are there; each time some reads after the last. All are there
/// at the end. Returns how often it did what.
fn change(
    mount: &Mount,
    kept: &[(Sample, Seeded)],
    mut random: Random,
    end: Instant,
    counts: &Counts,
) -> (u64, u64) {
    let point = mount.point().to_str().expect("UTF-8");
    let reads = || counts.right.load(Ordering::Relaxed) + counts.failed.load(Ordering::Relaxed);
    let some_reads = |count: u64| {
        let before = reads();
        wait_until("some reads", READ_MAX, || reads() >= before + count || Instant::now() >= end);
    };
    let (mut removed, mut added) = (0, 0);
    while Instant::now() < end {
        let (sample, seeded) = random.of(kept);
        if random.below(2) == 0 {
            let how: &[&str] = if random.below(2) == 0 { &["--delete-data"] } else { &[] };
            ran(["remove", point, &sample.name].iter().chain(how)).said(0, &[]);
            removed += 1;
            some_reads(random.below(4));
        }
        ran(["add", point, seeded.torrent.to_str().expect("UTF-8")]).said(0, &[]);
        added += 1;
        some_reads(random.below(12));
    }
    (removed, added)
}

fn read_on(mount: &Mount, samples: &[Sample], mut random: Random, end: Instant, counts: &Counts) {
    let mut buffer = vec![0; 128 << 10];
    let mut truth = vec![0; 128 << 10];
    while Instant::now() < end {
        let sample = random.of(samples);
        let (path, size) = random.of(&sample.files).clone();
        let mounted = match File::open(mount.path(&path)) {
            Ok(mounted) => mounted,
            Err(error) => {
                assert!(gone(&error), "{path}: {error}");
                counts.absent.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
                continue;
            }
        };
        let plain = File::open(sample.data.join(&path)).expect("the sample's file");
        let mut offset = random.below(size);
        // Some go on in order for a while, some look at one place.
        for _ in 0..=random.below(6) {
            let length = (1 + random.below(buffer.len() as u64)).min(size - offset) as usize;
            let begin = Instant::now();
            match mounted.read_at(&mut buffer[..length], offset) {
                Ok(got) => {
                    assert!(got > 0, "{path}: an end of file at {offset} of {size}");
                    plain.read_exact_at(&mut truth[..got], offset).expect("the sample's bytes");
                    assert!(buffer[..got] == truth[..got], "{path}: wrong bytes at {offset}");
                    counts.right.fetch_add(1, Ordering::Relaxed);
                    offset += got as u64;
                }
                Err(error) => {
                    let clear = error.raw_os_error() == Some(libc::EIO) || gone(&error);
                    assert!(clear, "{path} at {offset}: {error}");
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
            let took = begin.elapsed();
            counts.slowest.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
            assert!(took < READ_MAX, "{path}: {length} bytes at {offset} took {took:?}");
            if offset >= size {
                break;
            }
        }
    }
}

#[test]
fn right_bytes_or_a_clear_error_from_webseeds_that_do_anything() {
    needs!(Fuse, Libtorrent);
    let mut random = Random(seed());
    let samples = torrents();
    // Several hosts of each place: a host that fails is left alone by all torrents.
    let servers: Vec<_> = (1..=3 * HOSTS).map(|last| Server::start_at([127, 0, 7, last].into())).collect();
    let vices = [
        Act::status(404),
        Act::status(500),
        Act::later(503, 1),
        Act::Whole,
        Act::Hang,
        Act::Corrupt,
        Act::Trickle(100, Duration::from_millis(20)),
        Act::Reset,
        Act::Close(false),
    ];
    let mut mount = Mount::empty().args(&["--read-timeout", "3s"]);
    let mut kept = Vec::new();
    for (number, sample) in samples.iter().enumerate() {
        let (mut urls, mut pieces) = (Vec::new(), Vec::new());
        for place in 0..2 + random.below(2) as usize {
            let (right, vice) = match place {
                0 => (80, None),
                1 => (random.below(60), Some(random.of(&vices).clone())),
                _ => (0, None),
            };
            let character = Character { right, vice, random: Mutex::new(Random(random.next())) };
            let server = &servers[place * usize::from(HOSTS) + number % usize::from(HOSTS)];
            let url = server.serve(&format!("t{number}"), sample, move |asked| character.act(asked));
            if random.below(4) == 0 {
                pieces.push(url.trim_end_matches('/').to_owned());
            } else {
                urls.push(url);
            }
        }
        kept.push((sample.clone(), Seeded::by_both(sample, &texts(&urls), &texts(&pieces))));
    }
    for (_, seeded) in &kept {
        mount = mount.source(&seeded.torrent);
    }
    let mount = mount.start();
    let counts = Arc::new(Counts::default());
    let (begin, used) = (Instant::now(), cpu(mount.pid()));
    let woken: u64 = wake_ups(mount.pid()).values().sum();
    let locks = locks_taken(&mount);
    let end = begin + lasts();
    let (removed, added) = std::thread::scope(|scope| {
        for _ in 0..READERS {
            let (random, mount, samples, counts) = (Random(random.next()), &mount, &samples, &counts);
            scope.spawn(move || read_on(mount, samples, random, end, counts));
        }
        change(&mount, &kept, Random(random.next()), end, &counts)
    });
    let took = begin.elapsed().as_secs_f64();
    let woken = (wake_ups(mount.pid()).values().sum::<u64>() - woken) as f64 / took;
    let used = (cpu(mount.pid()) - used).as_secs_f64() / took;
    let locks = (locks_taken(&mount) - locks) as f64 / took;
    let asked: usize = servers.iter().map(Server::count).sum();
    let busiest: Vec<_> = servers.iter().map(|server| server.busiest(Duration::from_secs(1))).collect();
    let count = |what: &AtomicU64| what.load(Ordering::Relaxed);
    let (right, failed) = (count(&counts.right), count(&counts.failed));
    eprintln!(
        "in {took:.1} s: {right} reads right, {failed} failed, the slowest took {} ms; {} files absent, {removed} torrents \
         removed and {added} added; {asked} requests, at most {busiest:?} in a second; {locks:.0} locks taken a second, \
         {:.0} for each read and request, and {woken:.0} wake-ups; {used:.2} of a core",
        count(&counts.slowest),
        count(&counts.absent),
        locks * took / (right + failed + asked as u64) as f64,
    );
    assert!(right > 0, "nothing could be read");
    let work = (right + failed + asked as u64) as f64;
    assert!(locks * took < LOCKS_EACH * work + LOCKS_TICKING * took, "{locks:.0} locks taken a second");
    for (server, busiest) in servers.iter().zip(&busiest) {
        let peak = server.peak();
        // Those that were cut end when the server hears of it: some generations of eight, besides those of their heirs.
        assert!(peak <= 32, "{peak} requests under way at one host");
        assert!(*busiest <= 1_000, "{busiest} requests in a second at one host");
    }
    // Each has a reason who doesn't work.
    for (url, told) in webseeds(&mount) {
        let idle =
            told["reason"].is_string() || ["idle", "fetching"].iter().any(|state| told["state"] == *state);
        assert!(idle, "{url}: {told}");
    }
    quiet(&mount, &servers);
    let point = mount.point().to_str().expect("UTF-8");
    for sample in &samples {
        ran(["remove", point, &sample.name]).said(0, &[]);
    }
    wait_until("nothing under way", MINUTE, || servers.iter().all(|server| server.under_way() == 0));
    let report = ran(["debug", point]);
    let tasks: Vec<_> = report.out.lines().filter(|line| line.contains("/webseed ")).collect();
    assert!(tasks.is_empty(), "left after the torrents are gone: {tasks:#?}");
    let nothing = "under way from webseeds: 0 slices, 0 bytes to come of them, 0 requests";
    assert!(report.out.lines().any(|line| line.trim() == nothing), "left in the table: {}", report.out);
    mount.stop();
}

/// Locks that the program has taken since its start.
#[track_caller]
fn locks_taken(mount: &Mount) -> u64 {
    let report = ran(["debug", mount.point().to_str().expect("UTF-8")]);
    let line = report.out.lines().find_map(|line| line.trim().strip_suffix(" taken since the start"));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count of locks: {}", report.out))
}

/// With no reader left, requests come to an end, and then nothing goes on.
#[track_caller]
fn quiet(mount: &Mount, servers: &[Server]) {
    let window = Duration::from_secs(2);
    let end = Instant::now() + MINUTE * 2;
    loop {
        let asked: usize = servers.iter().map(Server::count).sum();
        let (used, locks, since) = (cpu(mount.pid()), locks_taken(mount), Instant::now());
        wait_until("two seconds", MINUTE, || since.elapsed() > window);
        let more = servers.iter().map(Server::count).sum::<usize>() - asked;
        let (used, locks) = (cpu(mount.pid()) - used, locks_taken(mount) - locks);
        if more == 0 && used < window / 10 && locks < QUIET_LOCKS {
            eprintln!("without a reader: {locks} locks taken in {window:?}");
            return;
        }
        assert!(
            Instant::now() < end,
            "{more} requests, {locks} locks taken and {used:?} of processor time in {window:?} without a reader"
        );
    }
}
