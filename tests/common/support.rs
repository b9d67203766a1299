//! Waiting for state, and what a test may need from the machine.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between two looks at a state: short beside what a test measures, long beside what a look costs.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `check` is true; panics with `what` after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    wait_for(what, limit, || check().then_some(()));
}

/// Waits until `look` finds something, and returns it; panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Tells threads of a scope to stop when the test is through with them, or has failed; then it also kills the program,
/// since they may wait for it. Without it a failure would wait for threads that nobody has told to end.
pub struct Stops<'a> {
    stop: &'a AtomicBool,
    program: u32,
}

impl<'a> Stops<'a> {
    /// Raises `stop` when it is dropped; a panic kills the process `program`, which must be a child not waited for.
    pub fn new(stop: &'a AtomicBool, program: u32) -> Self {
        Self { stop, program }
    }
}

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Gone already and waited for, it isn't there any more, and nobody else has its number so soon.
        if std::thread::panicking() {
            let _ = kill(Pid::from_raw(self.program.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// What a test needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `/dev/fuse`, and root or fusermount3.
    Fuse,
    /// To be root, which passthrough takes.
    Root,
    /// Python with libtorrent.
    Libtorrent,
    /// transmission-daemon.
    Transmission,
    /// What tells it of a magnet link.
    TransmissionRemote,
    /// `aria2c`.
    Aria2,
    /// Network namespaces, with `ip` and root.
    Netns,
    /// Mount namespaces, with `unshare`, `nsenter` and root.
    Namespace,
    /// `nft`, and a kernel that translates addresses with it.
    Nft,
    /// `getfattr`.
    Attr,
    /// `file`.
    File,
    /// `ffmpeg` and `ffprobe`.
    Ffmpeg,
    /// A Go compiler.
    Go,
    /// `rsync`.
    Rsync,
    /// `sqlite3`.
    Sqlite,
    /// `zip` and `unzip`.
    Zip,
    /// `fio`.
    Fio,
    /// `nginx`.
    Nginx,
    /// `openssl`.
    Openssl,
    /// `mksquashfs`, and root to mount what it makes through a loop device.
    Squashfs,
}

/// The reason why a test can't run here, if there is one.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Fuse => fuse_missing(),
        Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned()),
        Need::Libtorrent => super::python()
            .is_none()
            .then(|| "no python3 with libtorrent (Debian: python3-libtorrent)".to_owned()),
        Need::Transmission => {
            (!has_tool("transmission-daemon")).then(|| "no transmission-daemon (Debian: the same)".to_owned())
        }
        Need::TransmissionRemote => tool_missing("transmission-remote", "transmission-cli"),
        Need::Aria2 => tool_missing("aria2c", "aria2"),
        Need::Netns => netns_missing(),
        Need::Namespace => namespace_missing(),
        Need::Nft => tool_missing("nft", "nftables").or_else(nft_missing),
        Need::Attr => (!has_tool("getfattr")).then(|| "no getfattr (Debian: attr)".to_owned()),
        Need::File => (!has_tool("file")).then(|| "no file (Debian: the same)".to_owned()),
        Need::Ffmpeg => (!has_tool("ffprobe") || !has_tool("ffmpeg"))
            .then(|| "no ffmpeg with ffprobe (Debian: ffmpeg)".to_owned()),
        Need::Go => (!has_tool("go")).then(|| "no go (Debian: golang-go)".to_owned()),
        Need::Rsync => tool_missing("rsync", "rsync"),
        Need::Sqlite => tool_missing("sqlite3", "sqlite3"),
        Need::Zip => tool_missing("zip", "zip").or_else(|| tool_missing("unzip", "unzip")),
        Need::Fio => tool_missing("fio", "fio"),
        Need::Nginx => tool_missing("nginx", "nginx"),
        Need::Openssl => tool_missing("openssl", "openssl"),
        Need::Squashfs => tool_missing("mksquashfs", "squashfs-tools").or_else(loop_missing),
    })
}

fn tool_missing(tool: &str, package: &str) -> Option<String> {
    (!has_tool(tool)).then(|| format!("no {tool} (Debian: {package})"))
}

fn loop_missing() -> Option<String> {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let works = nix::unistd::geteuid().is_root()
        && Path::new("/dev/loop-control").exists()
        && kinds.lines().any(|kind| kind.trim_start() == "squashfs");
    (!works).then(|| "no mounting of squashfs through a loop device here (it needs root and both)".to_owned())
}

fn fuse_missing() -> Option<String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse: {error}"));
    }
    (!nix::unistd::geteuid().is_root() && !has_tool("fusermount3"))
        .then(|| "neither root nor fusermount3 (Debian: fuse3)".to_owned())
}

fn netns_missing() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
        let name = format!("tfs-try-{}", std::process::id());
        let run = |args: &[&str]| {
            Command::new("ip")
                .args(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let works = run(&["netns", "add", &name]);
        if works {
            run(&["netns", "del", &name]);
        }
        (!works).then(|| "no network namespaces here (they need root and `ip`)".to_owned())
    })
    .clone()
}

fn nft_missing() -> Option<String> {
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "nft",
        "table ip t { chain c { type nat hook postrouting priority 100; masquerade; }; }",
    ]);
    let works = command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    (!works).then(|| "the kernel doesn't translate addresses here (nftables, NAT)".to_owned())
}

fn namespace_missing() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/sbin"]);
        let works = command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        let tools = ["nsenter", "setpriv", "fusermount3"].iter().all(|tool| has_tool(tool));
        (!works || !tools)
            .then(|| "no mount namespaces here (they need root, util-linux and fuse3)".to_owned())
    })
    .clone()
}

/// Whether a program stands in the PATH or in an sbin folder.
pub fn has_tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| Path::new(&folder).join(name).is_file())
}

/// Reports the running test as skipped. In CI that is a failure: there everything a test needs is installed.
#[track_caller]
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
    assert!(!ci, "{name} can't run, and in CI nothing is skipped: {reason}");
    eprintln!("SKIPPED: {name}: {reason}");
    // A runner keeps the output of a test that passed to itself; `scripts/test` reads the names from here.
    if let Some(path) = std::env::var_os("TORRENTFS_SKIPPED") {
        let line = format!("SKIPPED: {name}: {reason}\n");
        let file = std::fs::File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
