//! Other people's clients as peers, each on a [`Host`] of its own: transmission, which doesn't talk to loopback addresses,
//! and aria2, which can't be told of a peer but by a tracker.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::network::DEVICE;
use super::{Host, Proc, Sample, wait_until};

const MINUTE: Duration = Duration::from_secs(60);
/// Where transmission listens.
pub const TRANSMISSION: u16 = 51_413;
/// Where aria2 listens.
pub const ARIA2: u16 = 51_414;

/// transmission-daemon with a sample's torrent, in `folder`: a seeder with `data`, else a downloader into `folder/data`.
#[track_caller]
pub fn transmission(
    host: &Host,
    sample: &Sample,
    data: Option<&Path>,
    folder: &Path,
    more: &[&str],
) -> (Proc, SocketAddr) {
    (transmission_of(host, Some(&sample.torrent), data, folder, None, more), (host.ip, TRANSMISSION).into())
}

/// The same, of a `.torrent` file, or of nothing yet; with `--dht` among `more`, this is the node by which it gets in.
#[track_caller]
pub fn transmission_of(
    host: &Host,
    torrent: Option<&Path>,
    data: Option<&Path>,
    folder: &Path,
    node: Option<SocketAddr>,
    more: &[&str],
) -> Proc {
    let (config, watch, kept) = (folder.join("config"), folder.join("watch"), folder.join("data"));
    // A copy: it writes into what it seeds when it finds something to mend.
    place(data, &kept);
    for path in [&config, &watch] {
        std::fs::create_dir(path).expect("a folder");
    }
    // Without being asked for it, it would try uTP first, and for minutes.
    std::fs::write(config.join("settings.json"), r#"{"utp-enabled": false}"#).expect("room on the disk");
    if let Some(node) = node {
        let line = format!("{} {}\n", node.ip(), node.port());
        std::fs::write(config.join("dht.bootstrap"), line).expect("room on the disk");
    }
    if let Some(torrent) = torrent {
        std::fs::copy(torrent, watch.join("sample.torrent")).expect("a copy");
    }
    let mut command = host.command("transmission-daemon");
    command.args(["--foreground", "--no-portmap", "--no-auth", "--log-info"]);
    command.args(["--peerport", &TRANSMISSION.to_string()]);
    command.args([Path::new("--config-dir"), &config, "--watch-dir".as_ref(), &watch]);
    command.arg("--download-dir").arg(&kept);
    for (on, off) in [("--lpd", "--no-lpd"), ("--dht", "--no-dht")] {
        if !more.contains(&on) {
            command.arg(off);
        }
    }
    command.args(more);
    Proc::spawn(command)
}

/// Has the transmission-daemon on a host take a magnet link; it doesn't from the folder that it watches.
#[track_caller]
pub fn tell_transmission(host: &Host, magnet: &str) {
    wait_until("transmission to take a magnet link", MINUTE, || {
        let mut command = host.command("transmission-remote");
        command.args(["127.0.0.1:9091", "--add", magnet]);
        Proc::spawn(command).finish(MINUTE).0.success()
    });
}

/// aria2 with a `.torrent` file or a magnet link: a seeder with `data`, else a downloader into `folder/data`, which ends
/// when it has all.
#[track_caller]
pub fn aria2(host: &Host, source: &OsStr, data: Option<&Path>, folder: &Path, more: &[&str]) -> Proc {
    let kept = folder.join("data");
    place(data, &kept);
    let mut command = host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--enable-peer-exchange=false"]);
    command.args(["--summary-interval=0", "--check-integrity=true", "--bt-hash-check-seed=true"]);
    // It seeds for ever, or not at all.
    command.arg(if data.is_some() { "--seed-ratio=0.0" } else { "--seed-time=0" });
    command.args([format!("--listen-port={ARIA2}"), format!("--bt-lpd-interface={DEVICE}")]);
    command.arg(format!("--dir={}", kept.display())).args(more).arg(source);
    Proc::spawn(command)
}

fn place(data: Option<&Path>, kept: &Path) {
    match data {
        Some(data) => _ = Proc::start("cp", [Path::new("-r"), data, kept]).success(MINUTE),
        None => std::fs::create_dir(kept).expect("a folder"),
    }
}
