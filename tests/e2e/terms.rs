//! SIGTERM over and over on one cache folder (rows O7, O8): under full load, and at any moment.
//!
//! Under load means, in each life: six readers at random places and two that read it all, each of which has read in this
//! life, with peers that have been asked in this life, and more to be fetched. At any moment means from right after the
//! start, when nothing is mounted yet, to long after.
//!
//! Each time: exit 0 within the deadline, nothing mounted, nothing that didn't stop. After each, the record is read as
//! the next start reads it: each piece that it names is read back and hashed, and it names each piece that a reader has
//! had a byte of. In the next life none of these is asked for or hashed again. The moments come from a seed that is
//! printed. `TORRENTFS_TERMS` says how many there are under load, in one series (`scripts/stress` takes a hundred), and
//! four times how many there are at any moment.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use torrentfs::metainfo::Metainfo;

use crate::common::{Behaviour, Mount, MountBuilder, Proc, Random, Sample, ScriptedPeer, Stops, wait_until};
use crate::crash::recorded;
use crate::lifecycle::wait_in_hand;
use crate::needs;

/// The deadline is 10 s; a little for the kernel, and for the last lines.
const DEADLINE: Duration = Duration::from_secs(12);
/// In each series, unless more are asked for.
const TERMS: u64 = 15;
/// For a life to be under load: a start takes well under a second, and then some pieces have to come.
const LOADED: Duration = Duration::from_secs(60);
/// Under load, the signal comes at most so many milliseconds later.
const LATER: u64 = 200;
/// Readers that compare what they get, in each life.
const READERS: usize = 6;

/// What the readers have done.
#[derive(Default)]
struct Done {
    /// Pieces of which a byte was handed out.
    pieces: Mutex<BTreeSet<u32>>,
    /// Bytes handed out to each reader.
    bytes: [AtomicU64; READERS],
    stop: AtomicBool,
}

/// When the signal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// While all read and pieces come.
    UnderLoad,
    /// At any time after the start.
    Any,
}

/// Reads at random places until it is told to stop or the mount is gone; every byte has to be right.
fn read_about(path: &Path, sample: &Sample, seed: u64, number: usize, done: &Done) {
    let mut random = Random(seed.wrapping_add(number as u64));
    let source = sample.data.join(&sample.name);
    let truth = File::open(source).expect("the source");
    while !done.stop.load(Ordering::Relaxed) {
        let Ok(file) = File::open(path) else {
            // Not mounted yet.
            std::thread::yield_now();
            continue;
        };
        let mut at = random.below(sample.total);
        for _ in 0..1 + random.below(8) {
            let len = (random.below(256 << 10) + 1).min(sample.total - at) as usize;
            let (mut got, mut expected) = (vec![0; len], vec![0; len]);
            if file.read_exact_at(&mut got, at).is_err() {
                break;
            }
            truth.read_exact_at(&mut expected, at).expect("the source");
            assert!(got == expected, "{len} bytes at {at} are wrong");
            let end = at + len as u64;
            let pieces = (at / sample.piece_length) as u32..=((end - 1) / sample.piece_length) as u32;
            done.pieces.lock().expect("pieces").extend(pieces);
            done.bytes[number].fetch_add(len as u64, Ordering::Relaxed);
            at = end;
            if at >= sample.total {
                break;
            }
        }
    }
}

/// The longest that a life may be, in milliseconds.
fn longest(life: u64) -> u64 {
    match life % 4 {
        0 => 20,
        1 => 200,
        2 => 600,
        _ => 2_500,
    }
}

/// Bytes that a process has read; 0 when it is gone.
fn read_by(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// Waits until all read, each a piece at least, and the peers are asked.
fn under_load(mount: &mut Mount, sample: &Sample, whole: &[Proc], done: &Done, asked: &dyn Fn() -> bool) {
    wait_until("all to read", LOADED, || {
        assert!(!mount.has_ended(), "it ended:\n{}", mount.log());
        done.bytes.iter().all(|bytes| bytes.load(Ordering::Relaxed) > 0)
            && whole.iter().all(|reader| read_by(reader.pid()) > sample.piece_length)
            && asked()
    });
}

/// One life, ended by SIGTERM after `pause`, under load or at any moment. Returns how long the end took, and the log.
fn one_life(
    sample: &Sample,
    builder: MountBuilder,
    (moment, pause): (Moment, Duration),
    seed: u64,
    done: &Done,
    asked: &dyn Fn() -> bool,
) -> (Duration, String) {
    let mut mount = builder.launch();
    wait_in_hand(mount.pid(), || mount.has_ended());
    let path = mount.path(&sample.name);
    let end = std::thread::scope(|scope| {
        let stops = Stops::new(&done.stop, mount.pid());
        for number in 0..READERS {
            let path = &path;
            scope.spawn(move || read_about(path, sample, seed, number, done));
        }
        let start = || (0..2).map(|_| Proc::start("sha256sum", [&path]));
        let mut whole = Vec::new();
        if moment == Moment::UnderLoad {
            wait_until("the file", LOADED, || path.exists());
            whole.extend(start());
            under_load(&mut mount, sample, &whole, done, asked);
        }
        let begun = Instant::now();
        while begun.elapsed() < pause {
            if whole.is_empty() && path.exists() {
                whole.extend(start());
            }
            std::thread::sleep(Duration::from_millis(1).min(pause));
        }
        mount.signal(Signal::SIGTERM);
        let took = mount.clean_end(DEADLINE);
        drop(stops);
        for reader in &mut whole {
            let status = reader.ended(DEADLINE);
            assert!(moment == Moment::Any || !status.success(), "it had read all before the signal came");
        }
        took
    });
    (end, mount.log())
}

fn ended_over_and_over(args: &[&str], bounded: bool, moment: Moment) {
    let sample = Sample::big();
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let told = number("TORRENTFS_TERMS");
    let terms = match moment {
        Moment::UnderLoad => told.unwrap_or(TERMS),
        Moment::Any => told.map_or(TERMS, |terms| TERMS.max(terms / 4)),
    };
    let seed =
        number("TORRENTFS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 ^ u64::from(bounded));
    println!("TORRENTFS_SEED={seed}");
    let mut random = Random(seed);
    let info =
        Metainfo::parse(&std::fs::read(&sample.torrent).expect("the torrent")).expect("a torrent").info;
    let peers = [(); 2].map(|()| ScriptedPeer::start(sample.clone(), Behaviour::default()));
    let folder = tempfile::tempdir().expect("a folder");
    let mut cache = folder.path().join("cache-0");
    let mut known = BTreeSet::new();
    let mut asked = peers.each_ref().map(ScriptedPeer::requests).map(|requests| requests.len());
    let (mut longest_end, mut bytes, mut most, mut loaded) = (Duration::ZERO, 0, 0, 0);
    for life in 0..terms {
        let mut builder = Mount::sample(&sample).cache(&cache).log("torrentfs=debug").args(args);
        for peer in &peers {
            builder = builder.peer(peer.addr());
        }
        let most_pause = if moment == Moment::UnderLoad { LATER } else { longest(life) };
        let pause = Duration::from_millis(random.below(most_pause));
        let done = Done::default();
        let before = asked;
        let is_asked = || peers.iter().zip(before).all(|(peer, before)| peer.requests().len() > before);
        let (took, log) =
            one_life(&sample, builder, (moment, pause), random.below(u64::MAX), &done, &is_asked);
        longest_end = longest_end.max(took);
        let read: u64 = done.bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum();
        bytes += read;
        loaded += u64::from(read > 0 && is_asked());
        // What was known was not looked at, and not fetched, again.
        let hashed = log.lines().filter(|line| line.contains("hashing a piece on the disk"));
        let hashed = hashed.filter_map(|line| line.rsplit_once("piece=")?.1.trim().parse::<u32>().ok());
        let again: Vec<u32> = hashed.filter(|piece| known.contains(piece)).collect();
        assert!(again.is_empty(), "life {life}: {again:?} were recorded and are hashed:\n{log}");
        for (peer, asked) in peers.iter().zip(&mut asked) {
            let requests = peer.requests();
            let again = requests[*asked..].iter().find(|request| known.contains(&request.piece));
            assert!(bounded || again.is_none(), "life {life}: {again:?} was recorded and is fetched again");
            *asked = requests.len();
        }
        let now = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| recorded(&sample, &info, &cache)));
        let now = now.unwrap_or_else(|_| panic!("life {life}, ended after {pause:?}:\n{log}"));
        if !bounded {
            let read = done.pieces.into_inner().expect("pieces");
            let lost: Vec<_> = known.union(&read).filter(|piece| !now.contains(piece)).collect();
            assert!(
                lost.is_empty(),
                "life {life}, ended after {pause:?}: {lost:?} were there and are forgotten:\n{log}"
            );
        }
        known = now;
        most = most.max(known.len());
        // Much is here: the next lives would soon have nothing to fetch.
        let enough = if moment == Moment::UnderLoad { 5 } else { 8 };
        if !bounded && known.len() as u64 * 10 > sample.pieces * enough {
            std::fs::remove_dir_all(&cache).expect("an old cache");
            cache = folder.path().join(format!("cache-{}", life + 1));
            known.clear();
        }
    }
    println!(
        "{terms} ends, {loaded} of them under load, the longest in {longest_end:?}; {bytes} bytes read, up to {most} \
         pieces recorded"
    );
    assert!(most > 0 && bytes > 0, "nothing was read at all");
    assert!(moment == Moment::Any || loaded == terms, "{loaded} of {terms} under load");
}

#[test]
fn o7_sigterm_under_full_load_over_and_over() {
    needs!(Fuse, Libtorrent);
    ended_over_and_over(&["--download-limit=64M"], false, Moment::UnderLoad);
}

#[test]
fn o8_sigterm_at_any_moment_over_and_over() {
    needs!(Fuse, Libtorrent);
    ended_over_and_over(&["--download-limit=64M"], false, Moment::Any);
}

#[test]
fn o7_sigterm_at_any_moment_while_evicting_over_and_over() {
    needs!(Fuse, Libtorrent);
    ended_over_and_over(&["--cache-size=32M", "--download-limit=64M"], true, Moment::Any);
}
