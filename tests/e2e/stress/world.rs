//! Torrents, their peers, the mount of them, what comes and goes meanwhile, and what has to be left of it all.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::crew::Crew;
use super::footprint::{Control, Footprint};
use super::watchdog::{Watchdog, threads};
use super::worker::{Class, Mix, Order, Scene, Shown, Until};
use crate::common::{
    Crowd, Mount, Proc, Random, Varied, is_mounted, seed, threads_named, torrentfs, wait_until,
};

/// For the program to let go of all that the workers held: its own time-outs are shorter.
const SETTLE: Duration = Duration::from_secs(20);
/// Connections that a torrent may have for each peer: one, and one that is being dialled or closed.
const PER_PEER: usize = 2;
/// What listens, for TCP and UDP, IPv4 and IPv6, and what the runtime wakes itself with.
const LISTENERS: usize = 12;
/// Files that the store of one torrent keeps open, and its folder; and one lock for all.
const OPEN_FILES: usize = 256 + 4;

/// For a command to a running mount: adding may take 90 s, while everything is slow.
const COMMAND: Duration = Duration::from_secs(100);
/// The thread that is started last.
const LAST_THREAD: &str = "fuser-3";

/// A torrent, and how many seeders it has.
pub type Cast = (Varied, u8);

/// A running mount with all that belongs to it.
pub struct World {
    /// The mount.
    pub mount: Mount,
    /// Its torrents.
    pub torrents: Vec<Varied>,
    /// Torrents that [`Visits`] adds and removes.
    pub visitors: Vec<Varied>,
    /// The seeders of each of both.
    pub crowds: Arc<Vec<Crowd>>,
    /// Luck.
    pub random: Random,
    /// The file that tells workers what is in the mount.
    scene: PathBuf,
    before: Footprint,
    busy: Busy,
    control: Option<Control>,
    _dir: TempDir,
}

impl World {
    /// Mounts these torrents.
    pub fn start(cast: Vec<Cast>, args: &[&str]) -> Self {
        Self::with_visitors(cast, Vec::new(), args)
    }

    /// Mounts these torrents, the first ones; the others may be added later.
    pub fn with_visitors(cast: Vec<Cast>, visitors: Vec<Cast>, args: &[&str]) -> Self {
        let random = Random(seed());
        let both = || cast.iter().chain(&visitors);
        let crowds: Vec<Crowd> = both().map(|(torrent, seeders)| Crowd::start(torrent, *seeders)).collect();
        let builder = cast.iter().fold(Mount::empty(), |mount, (torrent, _)| mount.source(&torrent.torrent));
        let peers = crowds.iter().flat_map(|crowd| crowd.addrs());
        let mount = peers.fold(builder, |mount, peer| mount.peer(*peer)).args(args).start();
        let dir = tempfile::tempdir().expect("a folder");
        let scene = dir.path().join("scene");
        let shown = both().enumerate().map(|(number, (torrent, seeders))| Shown {
            name: torrent.name.clone(),
            piece_length: torrent.piece_length(),
            class: match seeders {
                _ if number >= cast.len() => Class::Comes,
                0 => Class::Nobody,
                _ => Class::Whole,
            },
            files: torrent.files.clone(),
        });
        let said = Scene { root: mount.point().to_owned(), torrents: shown.collect() };
        std::fs::write(&scene, serde_json::to_vec(&said).expect("JSON")).expect("room");
        let control = Control::mount();
        mount.wait_log(&["ready: "], SETTLE);
        wait_until("its last thread", SETTLE, || threads_named(mount.pid(), LAST_THREAD) == 1);
        let before = Footprint::of(&mount, control.as_ref());
        let busy = Busy::of(&mount);
        let [torrents, visitors] =
            [cast, visitors].map(|cast| cast.into_iter().map(|(one, _)| one).collect());
        Self {
            mount,
            torrents,
            visitors,
            crowds: Arc::new(crowds),
            random,
            scene,
            before,
            busy,
            control,
            _dir: dir,
        }
    }

    /// An order for a worker.
    pub fn order(&mut self, mix: Mix, until: Until) -> Order {
        Order { scene: self.scene.clone(), seed: self.random.next(), mix, under: None, until }
    }

    /// Bytes of content that all peers have sent.
    pub fn served(&self) -> u64 {
        self.crowds.iter().map(Crowd::served).sum()
    }

    /// Bytes of all torrents.
    pub fn size(&self) -> u64 {
        self.torrents.iter().map(Varied::size).sum()
    }

    /// Waits for the workers to end, prints what they did, and panics unless all of it was right. `each` is what one
    /// operation may take, `all` what everything may.
    #[track_caller]
    pub fn watch(&mut self, crew: &mut Crew, what: &str, each: Duration, all: Duration) {
        let watchdog = Watchdog::start(crew.board.clone(), self.mount.pid(), each, all);
        crew.join(|| watchdog.check());
        report(crew, what);
    }

    /// Lets the workers work for so long, kills a fifth of them meanwhile, and goes on as [`World::watch`].
    #[track_caller]
    pub fn watch_and_kill(&mut self, crew: &mut Crew, what: &str, each: Duration, lasts: Duration) {
        let watchdog = Watchdog::start(crew.board.clone(), self.mount.pid(), each, lasts + 2 * each);
        // Those that take their place count, too: a quarter of the first ones is a fifth of all.
        let kills = crew.len().div_ceil(3) * (lasts.as_secs() as usize / 5).max(1);
        let mut times: Vec<_> =
            (0..kills).map(|_| lasts.mul_f64(self.random.below(900) as f64 / 1000.0)).collect();
        times.sort_unstable();
        let start = Instant::now();
        for time in times {
            while start.elapsed() < time {
                watchdog.check();
                crew.reap();
                std::thread::sleep(Duration::from_millis(5));
            }
            crew.kill_one(&mut self.random, lasts.saturating_sub(start.elapsed()));
        }
        crew.join(|| watchdog.check());
        report(crew, what);
        let (started, killed) = crew.tally();
        eprintln!("  {killed} of {started} readers were killed");
        assert!(killed * 5 >= started, "{killed} of {started} readers were killed");
    }

    /// After all workers: the program holds no more than before them, and ends in order.
    #[track_caller]
    pub fn end(mut self) {
        self.settle();
        self.mount.signal(nix::sys::signal::Signal::SIGTERM);
        self.ended();
    }

    /// Waits until the program holds no more than before the workers, by what is seen of it and by what it says.
    #[track_caller]
    pub fn settle(&self) {
        self.settle_outside();
        let start = Instant::now();
        loop {
            let now = Busy::of(&self.mount);
            let more = now.more_than(&self.busy);
            if (now.handles, now.parked) == (0, 0) && more.is_empty() {
                eprintln!("  {} tasks before, {} after", self.busy.tasks.len(), now.tasks.len());
                return;
            }
            assert!(
                start.elapsed() < SETTLE,
                "{} handles are open, {} reads parked, and these tasks are new: {more:?}",
                now.handles,
                now.parked
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn settle_outside(&self) {
        let peers: usize = self.crowds.iter().map(|crowd| crowd.addrs().len()).sum();
        let torrents = self.torrents.len() + self.visitors.len();
        let sockets = LISTENERS + PER_PEER * peers * torrents;
        let start = Instant::now();
        loop {
            let now = Footprint::of(&self.mount, self.control.as_ref());
            let waiting = now.readers + now.requests.unwrap_or(0) as usize;
            let more = now.threads > self.before.threads
                || now.rest > self.before.rest
                || now.sockets > sockets
                || now.data > OPEN_FILES * torrents;
            if waiting == 0 && !more {
                eprintln!("  held before: {:?}, after {:?}: {now:?}", self.before, start.elapsed());
                return;
            }
            if start.elapsed() > SETTLE {
                threads(self.mount.pid());
                for entry in
                    std::fs::read_dir(format!("/proc/{}/fd", self.mount.pid())).expect("it runs").flatten()
                {
                    eprintln!("  {:?}", std::fs::read_link(entry.path()));
                }
                panic!("it holds {now:?}, and held {:?} before all readers", self.before);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// After something has told the program to end: all is gone.
    #[track_caller]
    pub fn ended(&mut self) -> Duration {
        let took = self.mount.clean_end(Duration::from_secs(15));
        assert!(!self.mount.log().contains("lock order"), "{}", self.mount.log());
        assert!(!is_mounted(self.mount.point()));
        took
    }
}

/// What the program is at, by its own report (`torrentfs debug`).
struct Busy {
    /// Open handles of files and folders.
    handles: u64,
    /// Reads that wait.
    parked: u64,
    /// Names of its tasks, but for those of single connections to peers, which come and go, and of the report itself.
    tasks: Vec<String>,
}

impl Busy {
    #[track_caller]
    fn of(mount: &Mount) -> Self {
        let debug = Proc::spawn(torrentfs(["debug".as_ref(), mount.point().as_os_str()])).success(COMMAND);
        let counts = debug.lines().find(|line| line.contains(" inodes known, "));
        let counts: Vec<&str> =
            counts.unwrap_or_else(|| panic!("no counts in\n{debug}")).split_whitespace().collect();
        let number = |unit: [&str; 2]| -> u64 {
            let at = counts.windows(2).position(|words| words == unit).expect("its unit");
            counts[at - 1].parse().expect("a number")
        };
        let lines = debug.lines().skip_while(|line| *line != "tasks:").skip(1);
        let tasks = lines.take_while(|line| line.starts_with(' ')).filter_map(|line| line.rsplit_once(": "));
        let tasks = tasks.map(|(name, _)| name.trim().to_owned());
        let stay = |name: &String| !name.contains("/peers/") && !name.starts_with("control/");
        let tasks: Vec<String> = tasks.filter(stay).collect();
        assert!(!tasks.is_empty(), "no tasks in\n{debug}");
        Self { handles: number(["handles", "open,"]), parked: number(["reads", "parked"]), tasks }
    }

    /// Its tasks beyond those of before.
    fn more_than(&self, before: &Self) -> Vec<&String> {
        let mut left: Vec<&String> = before.tasks.iter().collect();
        let more = self.tasks.iter().filter(|task| match left.iter().position(|one| one == task) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        });
        more.collect()
    }
}

/// Torrents that come and go by the mount's own commands, until it is dropped.
pub struct Visits {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Visits {
    /// Adds and removes the world's visitors, one after the other, each with its data or without it. With `ends`
    /// the mount may end meanwhile, and then so does this.
    pub fn start(world: &mut World, ends: bool) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, visits) = (stop.clone(), count.clone());
        let mut random = Random(world.random.next());
        let point = world.mount.point().to_owned();
        let each = world.visitors.iter().map(|one| (one.torrent.clone(), one.name.clone()));
        let each: Vec<(PathBuf, String)> = each.collect();
        let thread = std::thread::spawn(move || {
            let told = |args: &[&std::ffi::OsStr]| {
                let (status, said) = Proc::spawn(torrentfs(args)).finish(COMMAND);
                assert!(status.success() || ends, "{args:?}: {status}: {said}");
                status.success()
            };
            while !until.load(Ordering::Relaxed) {
                let (torrent, name) = random.of(&each);
                if !told(&["add".as_ref(), point.as_ref(), torrent.as_ref()]) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100 + random.below(400)));
                let mut remove = vec!["remove".as_ref(), point.as_os_str(), name.as_ref()];
                if random.below(2) == 0 {
                    remove.push("--delete-data".as_ref());
                }
                if !told(&remove) {
                    break;
                }
                visits.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    /// How many have come and gone.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends it, with no visitor left; how many came and went.
    #[track_caller]
    pub fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it ends once").join().expect("every command succeeds");
        self.count()
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Prints what a crew did, and panics unless all of it was right.
#[track_caller]
pub fn report(crew: &Crew, what: &str) {
    let figures = crew.board.figures();
    figures.print(what);
    let wrongs = figures.wrongs();
    assert!(
        wrongs.is_empty(),
        "{what}: {} operations went wrong:\n{}",
        wrongs.len(),
        wrongs[..wrongs.len().min(20)].join("\n")
    );
    assert!(figures.done() > 0, "{what}: nothing was done");
}

/// Peers that come and go until it is dropped; then all are back.
pub struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    /// At least one seeder of each torrent stays, whichever that is at a time.
    pub fn start(crowds: Arc<Vec<Crowd>>, mut random: Random) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut away: Vec<Vec<bool>> =
                crowds.iter().map(|crowd| vec![false; crowd.addrs().len()]).collect();
            while !until.load(Ordering::Relaxed) {
                let which = random.below(crowds.len() as u64) as usize;
                let (crowd, away) = (&crowds[which], &mut away[which]);
                let place = random.below(away.len() as u64) as usize;
                let others = away.iter().filter(|away| !**away).count();
                if !away.is_empty() && (away[place] || others > 1) {
                    away[place] = !away[place];
                    crowd.away(place, away[place]);
                }
                std::thread::sleep(Duration::from_millis(20 + random.below(200)));
            }
            for (crowd, away) in crowds.iter().zip(&away) {
                (0..away.len()).for_each(|place| crowd.away(place, false));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
