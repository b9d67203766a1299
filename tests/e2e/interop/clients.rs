//! How each client is told what to do, and when it has done it.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::field::{Field, LIMIT};
use super::{Client, Way};
use crate::common::{
    ARIA2, Proc, Sample, TRANSMISSION, aria2, command_on, magnet, tell_transmission, transmission_of,
    wait_until,
};

/// Where libtorrent listens.
const LIBTORRENT: u16 = 6_900;

/// Where a client listens.
pub(super) fn port(client: Client) -> u16 {
    match client {
        Client::Libtorrent => LIBTORRENT,
        Client::Transmission => TRANSMISSION,
        Client::Aria2 => ARIA2,
    }
}

/// Whether a client calls itself so.
pub(super) fn is(client: Client, name: &str) -> bool {
    let begin = match client {
        Client::Libtorrent => "torrentfs-test",
        Client::Transmission => "Transmission",
        Client::Aria2 => "aria2",
    };
    name.starts_with(begin)
}

/// Starts a client that has everything.
#[track_caller]
pub(super) fn seeds(field: &Field, folder: &Path) -> Proc {
    let (sample, data) = (&field.sample, Some(field.sample.data.as_path()));
    match field.client {
        Client::Libtorrent => {
            let mut args = vec![sample.torrent.display().to_string(), sample.data.display().to_string()];
            args.extend(["--listen".to_owned(), field.theirs.to_string()]);
            args.extend(libtorrent(field));
            Field::ready(field.host(), "seeder.py", &args).0
        }
        Client::Transmission => {
            let torrent = Some(sample.torrent.as_path());
            transmission_of(field.host(), torrent, data, folder, field.node, transmission(field.way))
        }
        Client::Aria2 => {
            let more = aria2_args(field, folder);
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            aria2(field.host(), sample.torrent.as_os_str(), data, folder, &more)
        }
    }
}

/// A client that fetches, and who tells it from whom.
pub(super) struct Fetching {
    process: Proc,
    _tracker: Option<Proc>,
    /// Where the content will be.
    save: PathBuf,
}

impl Fetching {
    /// Waits until it has everything, and checks that.
    #[track_caller]
    pub(super) fn done(mut self, field: &Field) {
        let sample = &field.sample;
        if field.client == Client::Transmission {
            let (saved, source) = (self.save.join(&sample.name), sample.source());
            wait_until("transmission to have all", LIMIT, || {
                assert!(self.process.is_running(), "{}", self.process.output());
                saved.is_file() && std::fs::read(&saved).ok() == std::fs::read(&source).ok()
            });
        } else {
            self.process.success(LIMIT);
        }
        sample.check_in(&self.save);
    }
}

/// Starts a client that has nothing.
#[track_caller]
pub(super) fn fetches(field: &Field, folder: &Path) -> Fetching {
    let sample = &field.sample;
    let magnet = field.way.is_dht().then(|| magnet(sample, &[]));
    // Only this one can be told of a peer; the others ask a tracker.
    let told = Way::CONNECTED.contains(&field.way);
    let tracker = (told && field.client != Client::Libtorrent).then(|| {
        let args = [Ipv4Addr::LOCALHOST.to_string(), field.ours.to_string()];
        let (tracker, port) = Field::ready(field.host(), "tracker.py", &args);
        (tracker, format!("http://127.0.0.1:{port}/announce"))
    });
    let (tracker, url) = tracker.unzip();
    let save = folder.join("data");
    let process = match field.client {
        Client::Libtorrent => {
            let mut command = command_on(field.host(), "leecher.py");
            match &magnet {
                Some(magnet) => command.arg(magnet),
                None => command.arg(&sample.torrent),
            };
            command.arg(&save).args(["--listen", &field.theirs.to_string()]).args(libtorrent(field));
            command.args(["--limit", &LIMIT.as_secs().to_string()]);
            if field.way != Way::Rc4 {
                command.arg("--plain");
            }
            if told {
                command.args(["--peer", &field.ours.to_string()]);
            }
            Proc::spawn(command)
        }
        Client::Transmission => {
            let torrent = url.map_or_else(|| sample.torrent.clone(), |url| tracked(sample, &url, folder));
            let torrent = magnet.is_none().then_some(torrent.as_path());
            let args = transmission(field.way);
            let process = transmission_of(field.host(), torrent, None, folder, field.node, args);
            if let Some(magnet) = &magnet {
                tell_transmission(field.host(), magnet);
            }
            process
        }
        Client::Aria2 => {
            let mut more = aria2_args(field, folder);
            more.extend(url.map(|url| format!("--bt-tracker={url}")));
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            let source = magnet.as_deref().map_or(sample.torrent.as_os_str(), OsStr::new);
            aria2(field.host(), source, None, folder, &more)
        }
    };
    Fetching { process, _tracker: tracker, save }
}

/// The sample's `.torrent` file with a tracker in it.
fn tracked(sample: &Sample, url: &str, folder: &Path) -> PathBuf {
    let plain = std::fs::read(&sample.torrent).expect("a torrent");
    // Its key comes before all others.
    let mut tracked = format!("d8:announce{}:{url}", url.len()).into_bytes();
    tracked.extend_from_slice(plain.strip_prefix(b"d").expect("a dictionary"));
    let path = folder.join("tracked.torrent");
    std::fs::write(&path, tracked).expect("room on the disk");
    path
}

/// What both scripts of libtorrent take.
fn libtorrent(field: &Field) -> Vec<String> {
    let args: &[&str] = match field.way {
        Way::Utp4 | Way::Utp6 => &["--no-tcp"],
        Way::Rc4 => &["--no-utp", "--encrypt", "--enc-level", "rc4"],
        Way::Lsd => &["--no-utp", "--lsd"],
        Way::Tcp4 | Way::Tcp6 | Way::Dht4 | Way::Dht6 | Way::Pex => &["--no-utp"],
    };
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    if let Some(node) = field.node {
        args.extend(["--dht-node".to_owned(), node.to_string()]);
    }
    args
}

fn transmission(way: Way) -> &'static [&'static str] {
    match way {
        Way::Tcp4 | Way::Tcp6 => &["--no-utp", "--encryption-tolerated"],
        Way::Rc4 => &["--no-utp", "--encryption-required"],
        Way::Utp4 | Way::Utp6 => &["--utp", "--encryption-tolerated"],
        Way::Dht4 | Way::Dht6 => &["--no-utp", "--encryption-tolerated", "--dht"],
        Way::Pex => &["--no-utp", "--encryption-tolerated"],
        Way::Lsd => &["--no-utp", "--encryption-tolerated", "--lpd"],
    }
}

fn aria2_args(field: &Field, folder: &Path) -> Vec<String> {
    let args: &[&str] = match field.way {
        Way::Tcp4 | Way::Tcp6 | Way::Utp4 | Way::Utp6 => &[],
        Way::Rc4 => &["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"],
        Way::Dht4 => &["--enable-dht=true", "--dht-message-timeout=2"],
        Way::Dht6 => &["--enable-dht6=true", "--dht-message-timeout=2"],
        Way::Pex => &["--enable-peer-exchange=true"],
        Way::Lsd => &["--bt-enable-lpd=true"],
    };
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    if let Some(node) = field.node {
        let six = match field.theirs.ip() {
            IpAddr::V4(_) => "",
            IpAddr::V6(ip) => {
                args.push(format!("--dht-listen-addr6={ip}"));
                "6"
            }
        };
        args.push(format!("--dht-entry-point{six}={node}"));
        args.push(format!("--dht-file-path{six}={}", folder.join("nodes").display()));
        // Where it is in no network of its own it announces nothing otherwise.
        args.push(format!("--bt-external-ip={}", field.theirs.ip()));
    }
    args
}
