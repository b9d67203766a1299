//! What a running mount holds: threads, files, connections, and requests of the kernel that wait for an answer.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::common::Mount;

/// A count of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Threads.
    pub threads: usize,
    /// Files of the cache: a store keeps some open, up to a bound.
    pub data: usize,
    /// Connections, and what listens.
    pub sockets: usize,
    /// Status files of readers that wait (or have waited just now).
    pub readers: usize,
    /// All other files.
    pub rest: usize,
    /// Requests that the kernel has made of the mount and that aren't answered; `None` when it can't be seen.
    pub requests: Option<u64>,
}

impl Footprint {
    /// Of a mount, now. It doesn't touch the mount.
    pub fn of(mount: &Mount, control: Option<&Control>) -> Self {
        let count =
            |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", mount.pid())).into_iter().flatten();
        let mut found =
            Self { threads: count("task").count(), data: 0, sockets: 0, readers: 0, rest: 0, requests: None };
        for entry in count("fd").flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let text = target.to_string_lossy();
            let kind = if text.starts_with("socket:") {
                &mut found.sockets
            } else if text.starts_with("/proc/") && text.ends_with("/status") {
                &mut found.readers
            } else if target.starts_with(mount.cache()) {
                &mut found.data
            } else {
                &mut found.rest
            };
            *kind += 1;
        }
        found.requests = control.and_then(|control| control.requests(mount.point()));
        found
    }
}

/// The kernel's own view of its connections, mounted for the test's time.
pub struct Control {
    point: TempDir,
}

impl Control {
    /// Mounts it; `None` where that isn't allowed.
    pub fn mount() -> Option<Self> {
        let point = tempfile::Builder::new().prefix("tfs-ctl-").tempdir().ok()?;
        let (none, flags) = (None::<&str>, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC);
        mount(Some("fusectl"), point.path(), Some("fusectl"), flags, none).ok()?;
        Some(Self { point })
    }

    /// The connection of a mount, if it is mounted.
    fn connection(&self, point: &Path) -> Option<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mut fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let at = |fields: &Vec<&str>| fields.get(4).is_some_and(|at| Path::new(at) == point);
        let line = fields.rfind(at)?;
        let (_, minor) = line.get(2)?.split_once(':')?;
        Some(self.point.path().join(minor))
    }

    fn requests(&self, point: &Path) -> Option<u64> {
        std::fs::read_to_string(self.connection(point)?.join("waiting")).ok()?.trim().parse().ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = umount2(self.point.path(), MntFlags::MNT_DETACH);
    }
}
