//! A local network of two hosts: two network namespaces joined by a pair of interfaces. Nobody else is on that line, and
//! what is sent there goes nowhere else.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::wait_until;

/// The name of the interface of each host.
pub const DEVICE: &str = "line0";

/// One of the two hosts.
pub struct Host {
    name: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl Host {
    /// Its network namespace.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // It executes the program in its own place, so the process id is the program's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }
}

/// The two of them; taken down when dropped.
pub struct Line {
    /// One.
    pub near: Host,
    /// The other.
    pub far: Host,
}

impl Line {
    /// Joins two new ones. They have IPv4 addresses, and of IPv6 the link-local ones that the kernel gives them.
    #[track_caller]
    pub fn new() -> Self {
        static LINES: AtomicU32 = AtomicU32::new(0);
        clear_abandoned();
        let (pid, number) = (std::process::id(), LINES.fetch_add(1, Ordering::Relaxed));
        let host = |side: &str, last| Host {
            name: format!("tfs-{pid}-{number}{side}"),
            ip: Ipv4Addr::new(10, 213, 0, last),
        };
        let line = Self { near: host("a", 1), far: host("b", 2) };
        for host in [&line.near, &line.far] {
            ip(&["netns", "add", &host.name]);
        }
        let (near, far) = (&line.near.name, &line.far.name);
        ip(&["-n", near, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", far]);
        for host in [&line.near, &line.far] {
            ip(&["-n", &host.name, "addr", "add", &format!("{}/24", host.ip), "dev", DEVICE]);
            ip(&["-n", &host.name, "link", "set", DEVICE, "up"]);
            ip(&["-n", &host.name, "link", "set", "lo", "up"]);
            // For clients that leave it to the routes where multicast goes.
            ip(&["-n", &host.name, "route", "add", "224.0.0.0/4", "dev", DEVICE]);
        }
        line
    }

    /// Waits until both may use their link-local addresses.
    #[track_caller]
    pub fn wait_link_local(&self) {
        for host in [&self.near, &self.far] {
            wait_until("a link-local address", Duration::from_secs(30), || {
                let args =
                    ["-n", &host.name, "-6", "addr", "show", "dev", DEVICE, "scope", "link", "-tentative"];
                let shown = Command::new("ip").args(args).output().expect("ip runs").stdout;
                String::from_utf8_lossy(&shown).contains("fe80:")
            });
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The pair goes with the namespaces.
        for host in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", &host.name]).status();
        }
    }
}

/// Takes down namespaces of test processes that were killed before they could.
fn clear_abandoned() {
    let names = Command::new("ip").args(["netns", "list"]).output().expect("ip runs").stdout;
    for name in String::from_utf8_lossy(&names).lines().filter_map(|line| line.split(' ').next()) {
        let pid = name.strip_prefix("tfs-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}
