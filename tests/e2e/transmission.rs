//! transmission-daemon as the seeder. It doesn't talk to loopback addresses, so it gets a network namespace
//! of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Mount, Proc, Sample};
use crate::needs;
use crate::whole::check_tree;

const MINUTE: Duration = Duration::from_secs(60);

/// A network namespace joined to ours by a pair of interfaces; taken down when dropped.
struct Namespace {
    name: String,
    /// The address inside.
    inside: String,
}

impl Namespace {
    fn new() -> Self {
        clear_abandoned();
        let pid = std::process::id();
        let name = format!("tfs-{pid}");
        let (near, far) = (format!("tfs{pid}a"), format!("tfs{pid}b"));
        // A /30 of 10.213.0.0/16 by the process id: tests in parallel don't meet.
        let block = (pid % 16_000) * 4;
        let address = |host: u32| format!("10.213.{}.{}", (block + host) / 256, (block + host) % 256);
        let made = Self { name: name.clone(), inside: address(2) };
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name]);
        ip(&["addr", "add", &format!("{}/30", address(1)), "dev", &near]);
        ip(&["link", "set", &near, "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{}/30", address(2)), "dev", &far]);
        ip(&["-n", &name, "link", "set", &far, "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        made
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The pair goes with the namespace.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Takes down namespaces of test processes that were killed before they could.
fn clear_abandoned() {
    let names = Command::new("ip").args(["netns", "list"]).output().expect("ip runs").stdout;
    for name in String::from_utf8_lossy(&names).lines().filter_map(|line| line.split(' ').next()) {
        let pid = name.strip_prefix("tfs-").and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

/// Starts transmission-daemon in the namespace with the sample's torrent and data.
fn transmission(sample: &Sample, namespace: &Namespace, folder: &Path) -> (Proc, SocketAddr) {
    let (config, watch, data) = (folder.join("config"), folder.join("watch"), folder.join("data"));
    // A copy: it writes into what it seeds when it finds something to mend.
    Proc::start("cp", [Path::new("-r"), &sample.data, &data]).success(MINUTE);
    for path in [&config, &watch] {
        std::fs::create_dir(path).expect("a folder");
    }
    std::fs::copy(&sample.torrent, watch.join("sample.torrent")).expect("a copy");
    let port = 51_413;
    let mut command = Command::new("ip");
    command
        .args([
            "netns",
            "exec",
            &namespace.name,
            "transmission-daemon",
            "--foreground",
            "--no-dht",
            "--no-lpd",
        ])
        .args(["--no-portmap", "--no-auth", "--peerport", &port.to_string(), "--log-info"])
        .args([
            Path::new("--config-dir"),
            &config,
            "--watch-dir".as_ref(),
            &watch,
            "--download-dir".as_ref(),
            &data,
        ]);
    let addr = format!("{}:{port}", namespace.inside).parse().expect("an address");
    (Proc::spawn(command), addr)
}

#[test]
fn a_folder_from_transmission_reads_right() {
    needs!(Fuse, Libtorrent, Transmission, Netns);
    // Not the common tree: transmission seeds no file with a quotation mark in its name.
    let files = [
        ("a/Grüße.txt", 70_001),
        ("a/b/c", 1_000_000),
        ("empty", 0),
        ("large.bin", 20_000_000),
        ("z/日本", 1),
    ];
    let sample = Sample::folder("from transmission", &files, 64 << 10);
    let folder = tempfile::tempdir().expect("a folder");
    let namespace = Namespace::new();
    let (mut daemon, addr) = transmission(&sample, &namespace, folder.path());
    let mount = Mount::sample(&sample).listen("0.0.0.0:0").peer(addr).start();
    check_tree(&mount, &sample);
    assert!(daemon.is_running(), "{}", daemon.output());
    mount.stop();
}
