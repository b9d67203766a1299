//! The real binary in the foreground, on a mount point and a cache folder of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Host, Sample, ran, wait_for, wait_until};

/// For the mount to show; a start takes well under a second.
const START: Duration = Duration::from_secs(30);
/// For the end after SIGTERM: the program's own deadline is 10 s.
pub const STOP: Duration = Duration::from_secs(15);

/// The binary under test: the one cargo built for the tests, or what `TORRENTFS_PROGRAM` names.
pub fn program() -> OsString {
    std::env::var_os("TORRENTFS_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_torrentfs").into())
}

/// The program with arguments, its input closed, killed when the test's thread dies.
pub fn torrentfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    // setpriv executes the program in its own place, so the process id is the program's. A test runner that
    // kills a test then doesn't leave a mount behind.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program()).args(args);
    command.stdin(Stdio::null());
    command
}

/// Whether something is mounted at `point`.
pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|path| Path::new(path) == point)
}

/// How to mount. Without more said: TCP on loopback at a port of the system's choice, no uTP, no DHT, no LSD, no port
/// mapping, a fresh cache folder.
pub struct MountBuilder {
    sources: Vec<OsString>,
    args: Vec<OsString>,
    cache: Option<PathBuf>,
    listen: String,
    log: Option<String>,
    dht: bool,
    lsd: bool,
    utp: bool,
    port_mapping: bool,
    env: Vec<(&'static str, OsString)>,
    net: Option<PathBuf>,
}

impl MountBuilder {
    /// One more source.
    pub fn source(mut self, source: impl AsRef<OsStr>) -> Self {
        self.sources.push(source.as_ref().to_owned());
        self
    }

    /// One more option (`--name=value`, or the two parts one after the other).
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More options.
    pub fn args(self, args: &[&str]) -> Self {
        args.iter().fold(self, |mount, arg| mount.arg(arg))
    }

    /// A peer to fetch from.
    pub fn peer(self, peer: SocketAddr) -> Self {
        self.arg("--peer").arg(peer.to_string())
    }

    /// A cache folder that stays, to be used again.
    pub fn cache(mut self, cache: &Path) -> Self {
        self.cache = Some(cache.to_owned());
        self
    }

    /// Where to listen, instead of a port of the system's choice.
    pub fn listen(mut self, listen: impl Into<String>) -> Self {
        self.listen = listen.into();
        self
    }

    /// What is logged, instead of the usual (`TORRENTFS_LOG`).
    pub fn log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name, value.as_ref().to_owned()));
        self
    }

    /// With uTP, too.
    pub fn utp(mut self) -> Self {
        self.utp = true;
        self
    }

    /// In the network namespace of a process.
    pub fn net_of(mut self, pid: u32) -> Self {
        self.net = Some(format!("/proc/{pid}/ns/net").into());
        self
    }

    /// On a host of a local network of the tests'.
    pub fn inside(mut self, host: &Host) -> Self {
        self.net = Some(host.path());
        self
    }

    /// With local service discovery: for a mount on a [`Host`] alone.
    pub fn lsd(mut self) -> Self {
        self.lsd = true;
        self
    }

    /// With ports that the router maps: for a mount on a [`Host`] alone.
    pub fn port_mapping(mut self) -> Self {
        self.port_mapping = true;
        self
    }

    /// With the DHT, and no way in: it begins a network, or goes on with the one that its cache folder knows.
    pub fn own_dht(mut self) -> Self {
        self.dht = true;
        self
    }

    /// With the DHT, bootstrapped from this node only.
    pub fn dht(mut self, bootstrap: SocketAddr) -> Self {
        self.dht = true;
        self.arg("--dht-bootstrap").arg(bootstrap.to_string())
    }

    /// Mounts, and returns when the mount is there. Panics with the log when the program ends before. What
    /// stands in `.torrent` files must be there then: nothing has to come from the network first.
    #[track_caller]
    pub fn start(self) -> Mount {
        let mut mount = self.launch();
        wait_until("the mount to show", START, || {
            if let Some(status) = mount.child.try_wait().expect("wait") {
                panic!("torrentfs ended at its start: {status}\n{}", mount.log());
            }
            is_mounted(&mount.point)
        });
        mount
    }

    /// Starts the program without waiting for anything.
    pub fn launch(self) -> Mount {
        let dir = tempfile::Builder::new().prefix("tfs-").tempdir().expect("a temporary folder");
        let base = dir.path().canonicalize().expect("its real path");
        let point = base.join("mnt");
        std::fs::create_dir(&point).expect("a mount point");
        let cache = self.cache.unwrap_or_else(|| base.join("cache"));
        let log = base.join("log");
        let mut command = torrentfs(["mount".as_ref(), "--cache-dir".as_ref(), cache.as_os_str()]);
        if let Some(net) = self.net {
            // It executes the rest in its own place, as setpriv does.
            let mut inside = Command::new("nsenter");
            inside
                .arg(format!("--net={}", net.display()))
                .arg(command.get_program())
                .args(command.get_args());
            command = inside;
            command.stdin(Stdio::null());
        }
        command.envs(self.env);
        command.args(["--listen", &self.listen]);
        if !self.port_mapping {
            command.arg("--no-port-mapping");
        }
        if !self.dht {
            command.arg("--no-dht");
        }
        if !self.lsd {
            command.arg("--no-lsd");
        }
        // Peers of the tests that have none count connections, and each would be dialled twice.
        if !self.args.iter().any(|arg| arg.to_string_lossy().starts_with("--encryption")) {
            command.args(["--encryption", "off"]);
        }
        // A peer that refuses TCP is given up at once without it.
        if !self.utp {
            command.arg("--no-utp");
        }
        command.args(self.args).args(self.sources).arg(&point);
        if let Some(filter) = self.log {
            command.env("TORRENTFS_LOG", filter);
        }
        let sink = File::create(&log).expect("a log");
        command.stdout(sink.try_clone().expect("a second handle")).stderr(sink);
        let line = format!("{command:?}");
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        Mount { child, point, cache, log, started, checked: false, _dir: dir }
    }

    /// Runs it to its end, for starts that fail. Panics if it is still there after the limit.
    #[track_caller]
    pub fn fail(self, limit: Duration) -> (ExitStatus, String) {
        let mut mount = self.launch();
        let status = mount.exited(limit);
        mount.checked = true;
        (status, mount.log())
    }
}

/// A running program with its mount. Dropping it ends the program (SIGTERM, then SIGKILL) and takes the mount
/// down.
pub struct Mount {
    child: Child,
    point: PathBuf,
    cache: PathBuf,
    log: PathBuf,
    started: Instant,
    checked: bool,
    _dir: TempDir,
}

impl Mount {
    /// A mount of one source.
    pub fn of(source: impl AsRef<OsStr>) -> MountBuilder {
        Self::empty().source(source)
    }

    /// A mount of a sample's `.torrent` file.
    pub fn sample(sample: &Sample) -> MountBuilder {
        Self::of(&sample.torrent)
    }

    /// A mount without a source yet.
    pub fn empty() -> MountBuilder {
        let listen = "127.0.0.1:0".to_owned();
        MountBuilder {
            sources: Vec::new(),
            args: Vec::new(),
            cache: None,
            listen,
            log: None,
            dht: false,
            lsd: false,
            utp: false,
            port_mapping: false,
            env: Vec::new(),
            net: None,
        }
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A path in the mount.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.point.join(relative)
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Everything the program printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Since the program was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until a path exists in the mount, as the final name of a magnet does.
    #[track_caller]
    pub fn wait_entry(&mut self, relative: &str, limit: Duration) -> PathBuf {
        let path = self.path(relative);
        let (child, log) = (&mut self.child, &self.log);
        wait_until(&format!("{relative} in the mount"), limit, || {
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("torrentfs ended: {status}\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            path.symlink_metadata().is_ok()
        });
        path
    }

    /// The names in the mount's root, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.point)
            .expect("the root lists")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// An attribute `user.torrentfs.NAME` of a path, if it is there.
    pub fn xattr(&self, path: &Path, name: &str) -> Option<String> {
        let name = format!("user.torrentfs.{name}");
        let output = Command::new("getfattr")
            .args(["--absolute-names", "--only-values", "-n", &name])
            .arg(path)
            .stderr(Stdio::null())
            .output()
            .expect("getfattr runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until its first tracker has answered: from then on it is told when the mount ends.
    pub fn wait_tracker(&self) {
        let point = self.point().display().to_string();
        let state =
            || ran(["status", &point, "--json"]).json()["torrents"][0]["trackers"][0]["state"].clone();
        wait_until("the tracker's answer", Duration::from_secs(60), || state() == "working");
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Waits for the program's end; panics at the limit.
    #[track_caller]
    pub fn exited(&mut self, limit: Duration) -> ExitStatus {
        let log = self.log.clone();
        let what =
            || format!("torrentfs to end; its log:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "waited {limit:?} in vain for {}", what());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, then everything a clean end means: exit 0, no mount, no process, no task reported as left, no
    /// panic.
    #[track_caller]
    pub fn stop(mut self) -> Duration {
        self.signal(Signal::SIGTERM);
        self.clean_end(STOP)
    }

    /// After something has told the program to end: checks that the end is a clean one. Returns how long it
    /// took.
    #[track_caller]
    pub fn clean_end(&mut self, limit: Duration) -> Duration {
        let start = Instant::now();
        let status = self.exited(limit);
        let took = start.elapsed();
        self.checked = true;
        let log = self.log();
        assert!(status.success(), "torrentfs ended with {status}:\n{log}");
        assert!(!is_mounted(&self.point), "the mount is still there after the program's end");
        for bad in ["panicked at", "a task panicked", "did not stop"] {
            assert!(!log.contains(bad), "the log says \"{bad}\":\n{log}");
        }
        took
    }

    /// Waits until the log holds a line with all of these words; returns the line.
    #[track_caller]
    pub fn wait_log(&self, words: &[&str], limit: Duration) -> String {
        wait_for(&format!("a log line with {words:?}"), limit, || {
            self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// `sha256sum -c` of a sample over the mount.
    #[track_caller]
    pub fn check_sums(&self, sample: &Sample) {
        sample.check_in(&self.point);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.checked {
            eprintln!("--- log of torrentfs {}:\n{}---", self.child.id(), self.log());
        }
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + STOP;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if is_mounted(&self.point) {
            let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        }
    }
}
