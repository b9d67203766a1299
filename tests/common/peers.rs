//! libtorrent as a peer, through the Python scripts in `tests/peers`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::{Host, Proc, Sample};

/// For a seeder to be ready: a private DHT takes a quarter of a minute to come up.
const READY: Duration = Duration::from_secs(90);

/// The kinds of torrent there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorrentKind {
    /// BEP 3.
    V1,
    /// BEP 52.
    V2,
    /// Both in one.
    Hybrid,
}

/// The Python that has libtorrent: the distribution's before the one in the PATH.
pub fn python() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&'static str>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        ["/usr/bin/python3", "python3"].into_iter().find(|python| {
            let mut command = Command::new(python);
            command.args(["-c", "import libtorrent"]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        })
    })
}

/// The path of a script in `tests/peers`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

/// A command that runs one of the scripts.
fn command(name: &str) -> Command {
    let mut command = Command::new(python().expect("python with libtorrent; the test says that it needs it"));
    command.arg(script(name));
    command
}

/// The same, on a host of a local network.
pub fn command_on(host: &Host, name: &str) -> Command {
    let mut command = host.command(python().expect("python with libtorrent; the test says that it needs it"));
    command.arg(script(name));
    command
}

/// Somebody on a host of a local network who tells what is announced there, and announces what it is told to
/// (`tests/peers/lsd.py`).
#[track_caller]
pub fn lsd_listener(host: &Host) -> Proc {
    let mut command = command_on(host, "lsd.py");
    command.arg(host.ip.to_string());
    let mut listener = Proc::spawn(command);
    listener.line("ready", READY);
    listener
}

/// Makes a `.torrent` file; returns its description.
pub fn make_torrent(
    source: &Path,
    out: &Path,
    kind: TorrentKind,
    piece_length: u64,
    more: &[&str],
) -> serde_json::Value {
    let kind = match kind {
        TorrentKind::V1 => "v1",
        TorrentKind::V2 => "v2",
        TorrentKind::Hybrid => "hybrid",
    };
    let mut command = command("mktorrent.py");
    command.arg(source).arg(out).args(["--kind", kind, "--piece-size", &piece_length.to_string()]).args(more);
    described(command)
}

/// Makes the sparse file with very many pieces, and its `.torrent` file.
pub(super) fn make_huge(pieces: u64, folder: &Path, out: &Path) -> serde_json::Value {
    let mut command = command("mktorrent.py");
    command.arg(folder).arg(out).args(["--huge", &pieces.to_string()]);
    described(command)
}

fn described(mut command: Command) -> serde_json::Value {
    let output = command.output().expect("mktorrent.py runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mktorrent.py: {errors}");
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

/// The sample's magnet link with more parameters, such as `x.pe=127.0.0.1:6881` or `tr=…`.
pub fn magnet(sample: &Sample, more: &[String]) -> String {
    let hash = sample.v1.as_deref().expect("a v1 hash");
    let more: String = more.iter().map(|parameter| format!("&{parameter}")).collect();
    format!("magnet:?xt=urn:btih:{hash}{more}")
}

/// A running libtorrent seeder.
pub struct Seeder {
    process: Proc,
    /// Where it listens.
    pub addr: SocketAddr,
    /// A node of its private DHT, with `--dht-nodes`.
    pub dht: Option<SocketAddr>,
}

impl Seeder {
    /// Seeds a sample at 127.0.0.2 on a port of the system's choice.
    #[track_caller]
    pub fn start(sample: &Sample) -> Self {
        Self::with(sample, "127.0.0.2:0", &[])
    }

    /// Seeds a sample at an address, with more arguments of `seeder.py`.
    #[track_caller]
    pub fn with(sample: &Sample, listen: &str, more: &[&str]) -> Self {
        Self::by(command("seeder.py"), sample, listen, more)
    }

    /// Seeds a sample on a host of a local network, with more arguments of `seeder.py`.
    #[track_caller]
    pub fn on(host: &Host, sample: &Sample, more: &[&str]) -> Self {
        Self::by(command_on(host, "seeder.py"), sample, &format!("{}:0", host.ip), more)
    }

    #[track_caller]
    fn by(mut command: Command, sample: &Sample, listen: &str, more: &[&str]) -> Self {
        command.arg(&sample.torrent).arg(&sample.data).args(["--listen", listen]).args(more);
        let mut process = Proc::spawn(command);
        let line = process.line("ready", READY);
        let words: Vec<_> = line.split(' ').collect();
        let port = |at: usize| words.get(at).and_then(|port| port.parse::<u16>().ok());
        let ip = listen.parse::<SocketAddr>().expect("ADDR:PORT").ip();
        let addr = SocketAddr::new(ip, port(1).expect("a port"));
        let dht = port(3).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { process, addr, dht }
    }

    /// Limits its rate of upload from now on, in bytes per second; 0 is no limit.
    pub fn limit(&mut self, rate: u64) {
        self.process.say(&format!("limit {rate}"));
    }

    /// Bytes of content it has sent so far.
    #[track_caller]
    pub fn uploaded(&mut self) -> u64 {
        let line = self.process.ask("uploaded", Duration::from_secs(20));
        line.trim_start_matches("uploaded ").parse().expect("a number")
    }
}

/// A libtorrent downloader.
pub struct Leecher;

impl Leecher {
    /// Downloads everything of a sample from one peer into a folder, over TCP without encryption. The process
    /// prints "done SECONDS CPU".
    pub fn start(sample: &Sample, save: &Path, peer: SocketAddr) -> Proc {
        Self::from(&sample.torrent.to_string_lossy(), save, peer)
    }

    /// As [`Leecher::from`], with peers that it finds through the DHT, which it enters by this node.
    pub fn through_dht(source: &str, save: &Path, node: SocketAddr) -> Proc {
        let mut command = command("leecher.py");
        command.arg(source).arg(save).args(["--no-utp", "--plain", "--dht-node", &node.to_string()]);
        Proc::spawn(command)
    }

    /// As [`Leecher::start`], over uTP alone, and from an address of the same family.
    pub fn over_utp(sample: &Sample, save: &Path, peer: SocketAddr) -> Proc {
        let mut command = command("leecher.py");
        command.arg(&sample.torrent).arg(save).args(["--no-tcp", "--plain", "--peer", &peer.to_string()]);
        command.args(["--listen", if peer.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }]);
        Proc::spawn(command)
    }

    /// As [`Leecher::start`], with encrypted connections only, of which it takes these (`plain`, `rc4` or `both`).
    pub fn encrypted(sample: &Sample, save: &Path, peer: SocketAddr, ways: &str) -> Proc {
        let mut command = command("leecher.py");
        command.arg(&sample.torrent).arg(save);
        command.args(["--no-utp", "--encrypt", "--enc-level", ways, "--peer", &peer.to_string()]);
        Proc::spawn(command)
    }

    /// As [`Leecher::start`], from a `.torrent` path or a magnet link.
    pub fn from(source: &str, save: &Path, peer: SocketAddr) -> Proc {
        let mut command = command("leecher.py");
        command.arg(source).arg(save).args(["--no-utp", "--plain", "--peer", &peer.to_string()]);
        Proc::spawn(command)
    }
}
