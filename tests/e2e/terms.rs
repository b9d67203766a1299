//! SIGTERM under full load, over and over on one cache folder (rows O7, O8).
//!
//! Each time: exit 0 within the deadline, nothing mounted, nothing that didn't stop. After each, the record is read as
//! the next start reads it: each piece that it names is read back and hashed, and it names each piece that a reader has
//! had a byte of. In the next life none of these is asked for or hashed again. The moments come from a seed that is
//! printed, from right after the start to long after; `TORRENTFS_TERMS` says how many there are (`scripts/stress` takes
//! a hundred).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use torrentfs::metainfo::Metainfo;

use crate::common::{Behaviour, Mount, MountBuilder, Proc, Random, Sample, ScriptedPeer};
use crate::crash::recorded;
use crate::lifecycle::has_in_hand;
use crate::needs;

/// The deadline is 10 s; a little for the kernel, and for the last lines.
const DEADLINE: Duration = Duration::from_secs(12);
/// Two tests make thirty.
const TERMS: u64 = 15;
/// Readers that compare what they get, in each life.
const READERS: usize = 6;

/// What the readers have done.
#[derive(Default)]
struct Done {
    /// Pieces of which a byte was handed out.
    pieces: Mutex<BTreeSet<u32>>,
    bytes: AtomicU64,
    stop: AtomicBool,
}

/// Reads at random places until it is told to stop or the mount is gone; every byte has to be right.
fn read_about(path: &Path, sample: &Sample, seed: u64, done: &Done) {
    let mut random = Random(seed);
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
            done.bytes.fetch_add(len as u64, Ordering::Relaxed);
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

/// One life, ended by SIGTERM after `pause`. Returns how long the end took, and the log.
fn one_life(
    sample: &Sample,
    builder: MountBuilder,
    pause: Duration,
    seed: u64,
    done: &Done,
) -> (Duration, String) {
    let mut mount = builder.launch();
    let pid = mount.pid();
    while !has_in_hand(pid, Signal::SIGTERM) {
        std::thread::yield_now();
    }
    let path = mount.path(&sample.name);
    let end = std::thread::scope(|scope| {
        for number in 0..READERS as u64 {
            let (path, seed) = (&path, seed.wrapping_add(number));
            scope.spawn(move || read_about(path, sample, seed, done));
        }
        let begun = Instant::now();
        let mut whole = Vec::new();
        while begun.elapsed() < pause {
            if whole.is_empty() && path.exists() {
                whole.extend((0..2).map(|_| Proc::start("sha256sum", [&path])));
            }
            std::thread::sleep(Duration::from_millis(1).min(pause));
        }
        mount.signal(Signal::SIGTERM);
        let took = mount.clean_end(DEADLINE);
        done.stop.store(true, Ordering::Relaxed);
        for reader in &mut whole {
            reader.ended(DEADLINE);
        }
        took
    });
    (end, mount.log())
}

fn ended_over_and_over(args: &[&str], bounded: bool) {
    let sample = Sample::big();
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let terms = number("TORRENTFS_TERMS").unwrap_or(TERMS);
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
    let (mut longest_end, mut bytes, mut most) = (Duration::ZERO, 0, 0);
    for life in 0..terms {
        let mut builder = Mount::sample(&sample).cache(&cache).log("torrentfs=debug").args(args);
        for peer in &peers {
            builder = builder.peer(peer.addr());
        }
        let pause = Duration::from_millis(random.below(longest(life)));
        let done = Done::default();
        let (took, log) = one_life(&sample, builder, pause, random.below(u64::MAX), &done);
        longest_end = longest_end.max(took);
        bytes += done.bytes.into_inner();
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
        // Nearly all is here: the next lives would have nothing to fetch.
        if !bounded && known.len() as u64 * 10 > sample.pieces * 8 {
            std::fs::remove_dir_all(&cache).expect("an old cache");
            cache = folder.path().join(format!("cache-{}", life + 1));
            known.clear();
        }
    }
    println!(
        "{terms} ends, the longest in {longest_end:?}; {bytes} bytes read, up to {most} pieces recorded"
    );
    assert!(most > 0 && bytes > 0, "nothing was read at all");
}

#[test]
fn o8_sigterm_under_load_over_and_over() {
    needs!(Fuse, Libtorrent);
    ended_over_and_over(&["--download-limit=64M"], false);
}

#[test]
fn o7_sigterm_under_load_while_evicting_over_and_over() {
    needs!(Fuse, Libtorrent);
    ended_over_and_over(&["--cache-size=32M", "--download-limit=64M"], true);
}
