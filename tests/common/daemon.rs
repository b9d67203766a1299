//! A mount that lives in the background, found by the process id in its cache folder, and a mount namespace to have
//! one in where nothing of the machine is changed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Proc, STOP, program, wait_for, wait_until};

/// For a process to be seen, or gone.
const SOON: Duration = Duration::from_secs(30);

/// Folders for a mount in the background. Dropping it ends the program and takes the mount down.
pub struct Place {
    dir: TempDir,
    /// The folder of the others.
    pub base: PathBuf,
    /// The mount point.
    pub point: PathBuf,
    /// The cache folder.
    pub cache: PathBuf,
}

impl Place {
    /// New folders, for everybody to enter.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tfs-").tempdir().expect("a temporary folder");
        let base = dir.path().canonicalize().expect("its real path");
        let (point, cache) = (base.join("mnt"), base.join("cache"));
        std::fs::create_dir(&point).expect("a mount point");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&base, open).expect("its permissions");
        Self { dir, base, point, cache }
    }

    /// The options that every mount of a test has.
    pub fn options(&self) -> Vec<String> {
        let cache = self.cache.to_str().expect("UTF-8");
        ["--cache-dir", cache, "--listen", "127.0.0.1:0", "--no-dht", "--no-lsd", "--no-port-mapping"]
            .map(str::to_owned)
            .into()
    }

    /// The program's process id, once it has the cache folder.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        wait_for("the process id in the cache folder", SOON, || self.pid_now().filter(|pid| !is_gone(*pid)))
    }

    fn pid_now(&self) -> Option<u32> {
        std::fs::read_to_string(self.cache.join("lock")).ok()?.trim().parse().ok()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid_now() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// Waits until the program has gone.
    #[track_caller]
    pub fn gone(&self, pid: u32) {
        wait_until(&format!("the end of process {pid}"), STOP, || is_gone(pid));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pid) = self.pid_now()
            && is_ours(pid, &self.base)
        {
            let pid_t = Pid::from_raw(pid.cast_signed());
            let _ = kill(pid_t, Signal::SIGTERM);
            let end = std::time::Instant::now() + STOP;
            while !is_gone(pid) && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !is_gone(pid) {
                let _ = kill(pid_t, Signal::SIGKILL);
            }
        }
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        let _ = self.dir.path();
    }
}

/// Whether a process is no more, or only waits for somebody to take note of its end.
pub fn is_gone(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// Whether a process works on this folder: its number may be somebody else's by now.
fn is_ours(pid: u32, base: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(base.to_str().unwrap_or("\0"))
}

/// A mount namespace in which `/sbin` holds nothing but the program, under all its names, `/dev/fuse` is there for
/// everybody, and `/etc/fstab` and `/etc/fuse.conf` are files of its own. Dropping it leaves nothing behind.
pub struct Namespace {
    holder: Proc,
    etc: TempDir,
}

impl Namespace {
    /// A new one. Needs root.
    #[track_caller]
    pub fn new() -> Self {
        let etc = tempfile::tempdir().expect("a folder");
        for name in ["fstab", "fuse.conf"] {
            std::fs::write(etc.path().join(name), "").expect("a file");
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg(
            "mount -t tmpfs none /sbin
             mknod -m 666 /sbin/fuse c 10 229; mount --bind /sbin/fuse /dev/fuse
             for name in torrentfs mount.torrentfs mount.fuse.torrentfs; do
                 : >/sbin/$name; mount --bind \"$1\" /sbin/$name
             done
             for name in fstab fuse.conf; do
                 [ -e /etc/$name ] || : >/etc/$name
                 mount --bind \"$2/$name\" /etc/$name
             done
             echo ready; cat",
        );
        command.arg("sh").arg(program()).arg(etc.path());
        let mut holder = Proc::spawn(command);
        holder.line("ready", SOON);
        Self { holder, etc }
    }

    /// Puts text into `/etc/fstab` or `/etc/fuse.conf`.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.etc.path().join(name), text).expect("a file");
    }

    /// A command in it.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid())).arg("--").args(args);
        command
    }

    /// A command in it, as a user without rights.
    pub fn as_user<S: AsRef<OsStr>>(&self, home: &Path, args: impl IntoIterator<Item = S>) -> Command {
        let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"];
        let mut command = self.command(user);
        command.arg(format!("HOME={}", home.display())).arg("PATH=/usr/bin:/bin").args(args);
        command
    }

    /// Runs a command in it to its end; its exit code and what it said.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> (Option<i32>, String) {
        let (status, output) = Proc::spawn(self.command(args)).finish(SOON * 2);
        (status.code(), output)
    }

    /// As [`Namespace::run`], and panics unless it ends with 0.
    #[track_caller]
    pub fn success<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        Proc::spawn(self.command(args)).success(SOON * 2)
    }

    /// A path in it, as seen from outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap_or(path);
        Path::new(&format!("/proc/{}/root", self.holder.pid())).join(inside)
    }

    /// The line of `mountinfo` about a mount point, if something is mounted there.
    pub fn mounted(&self, point: &Path) -> Option<String> {
        mount_line(&format!("/proc/{}/mountinfo", self.holder.pid()), point)
    }
}

/// The line about a mount point in a list of mounts.
pub fn mount_line(list: &str, point: &Path) -> Option<String> {
    let table = std::fs::read_to_string(list).unwrap_or_default();
    table.lines().rev().find(|line| line.split(' ').nth(4) == point.to_str()).map(str::to_owned)
}
