//! Other people's clients as peers, each on a [`Host`] of its own: transmission, which doesn't talk to loopback addresses,
//! and aria2, which can't be told of a peer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::network::DEVICE;
use super::{Host, Proc, Sample};

const MINUTE: Duration = Duration::from_secs(60);
/// Where transmission listens.
const TRANSMISSION: u16 = 51_413;
/// Where aria2 listens.
const ARIA2: u16 = 51_414;

/// transmission-daemon with a sample's torrent, in `folder`: a seeder with `data`, else a downloader into `folder/data`.
#[track_caller]
pub fn transmission(
    host: &Host,
    sample: &Sample,
    data: Option<&Path>,
    folder: &Path,
    more: &[&str],
) -> (Proc, SocketAddr) {
    let (config, watch, kept) = (folder.join("config"), folder.join("watch"), folder.join("data"));
    // A copy: it writes into what it seeds when it finds something to mend.
    place(data, &kept);
    for path in [&config, &watch] {
        std::fs::create_dir(path).expect("a folder");
    }
    // It would try uTP first, and for minutes.
    std::fs::write(config.join("settings.json"), r#"{"utp-enabled": false, "rpc-enabled": false}"#)
        .expect("room on the disk");
    std::fs::copy(&sample.torrent, watch.join("sample.torrent")).expect("a copy");
    let mut command = host.command("transmission-daemon");
    command.args(["--foreground", "--no-dht", "--no-portmap", "--no-auth", "--log-info"]);
    command.args(["--peerport", &TRANSMISSION.to_string()]);
    command.args([Path::new("--config-dir"), &config, "--watch-dir".as_ref(), &watch]);
    command.arg("--download-dir").arg(&kept);
    command.args(if more.contains(&"--lpd") { &[][..] } else { &["--no-lpd"] }).args(more);
    (Proc::spawn(command), (host.ip, TRANSMISSION).into())
}

/// aria2 with a sample's torrent: a seeder with `data`, else a downloader into `folder/data`, which ends when it has all.
#[track_caller]
pub fn aria2(
    host: &Host,
    sample: &Sample,
    data: Option<&Path>,
    folder: &Path,
    more: &[&str],
) -> (Proc, SocketAddr) {
    let kept = folder.join("data");
    place(data, &kept);
    let mut command = host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--enable-peer-exchange=false"]);
    command.args(["--summary-interval=0", "--check-integrity=true", "--bt-hash-check-seed=true"]);
    // It seeds for ever, or not at all.
    command.arg(if data.is_some() { "--seed-ratio=0.0" } else { "--seed-time=0" });
    command.args([format!("--listen-port={ARIA2}"), format!("--bt-lpd-interface={DEVICE}")]);
    command.arg(format!("--dir={}", kept.display())).args(more).arg(&sample.torrent);
    (Proc::spawn(command), (host.ip, ARIA2).into())
}

fn place(data: Option<&Path>, kept: &Path) {
    match data {
        Some(data) => _ = Proc::start("cp", [Path::new("-r"), data, kept]).success(MINUTE),
        None => std::fs::create_dir(kept).expect("a folder"),
    }
}
