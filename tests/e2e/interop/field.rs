//! The network of one way, the mount on it, and the proof that bytes went that way.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Client, Role, Way, clients, table};
use crate::common::{
    Host, Line, Mount, MountBuilder, Proc, Sample, command_on, lsd_listener, magnet, ran, wait_for,
};

/// For what a client does by its own clock: they look around every ten seconds, some every minute.
pub(super) const LIMIT: Duration = Duration::from_secs(240);
/// For what has no clock in it.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(200);
/// Where the mount listens.
const PORT: u16 = 7000;
/// So many bytes a second, as the mount takes it: a transfer lasts some seconds.
const RATE: &str = "256K";

/// Two hosts, on the near one a mount; the client is on the far one, or beside the mount on loopback.
pub(super) struct Field {
    line: Line,
    pub(super) client: Client,
    pub(super) way: Way,
    pub(super) sample: Sample,
    /// Where the mount listens.
    pub(super) ours: SocketAddr,
    /// Where the client does.
    pub(super) theirs: SocketAddr,
    /// The node of a private DHT, where there is one.
    pub(super) node: Option<SocketAddr>,
}

impl Field {
    fn new(client: Client, way: Way) -> Self {
        let line = Line::new().with_ipv6();
        // It doesn't talk to loopback; and who is found elsewhere is found by no loopback address.
        let loopback = client != Client::Transmission && Way::CONNECTED.contains(&way);
        let (ours, theirs): (IpAddr, IpAddr) = match (loopback, way.is_ipv6()) {
            (true, false) => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
            (true, true) => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            (false, false) => (line.near.ip.into(), line.far.ip.into()),
            (false, true) => (line.near.ip6.into(), line.far.ip6.into()),
        };
        if way.is_utp() && !loopback {
            // This client can't be told to have no TCP.
            line.near.without_tcp();
            line.far.without_tcp();
        }
        Self {
            line,
            client,
            way,
            sample: Sample::file("interop.bin", 1 << 20, 64 << 10),
            ours: (ours, PORT).into(),
            theirs: (theirs, clients::port(client)).into(),
            node: None,
        }
    }

    /// Where the client runs.
    pub(super) fn host(&self) -> &Host {
        if self.ours.ip() == self.theirs.ip() { &self.line.near } else { &self.line.far }
    }

    /// A process of the tests' own on a host, and the number that it tells when it is ready.
    pub(super) fn ready(host: &Host, script: &str, args: &[String]) -> (Proc, u16) {
        let mut command = command_on(host, script);
        command.args(args);
        let mut process = Proc::spawn(command);
        let line = process.line("ready", SOON * 2);
        let port = line.split(' ').nth(1).and_then(|port| port.parse().ok());
        (process, port.expect("a port"))
    }

    /// A private DHT of others, on the near host.
    fn dht(&mut self) -> Option<Proc> {
        if !self.way.is_dht() {
            return None;
        }
        // With fewer than nine nodes transmission takes it for none.
        let nodes: u16 = if self.client == Client::Transmission { 16 } else { 4 };
        let addrs: Vec<IpAddr> = match self.way.is_ipv6() {
            // Of one neighbourhood we ask one node, which may not be one that the client has told.
            true => self.line.neighbourhoods(nodes).into_iter().map(IpAddr::from).collect(),
            false => vec![self.ours.ip()],
        };
        let mut args: Vec<_> = addrs.iter().map(IpAddr::to_string).collect();
        args.extend(["--nodes".into(), nodes.to_string()]);
        let (dht, port) = Self::ready(&self.line.near, "dht.py", &args);
        self.node = addrs.first().map(|ip| (*ip, port).into());
        Some(dht)
    }

    /// Somebody connects to both and introduces them, and has next to nothing to give.
    fn introducer(&self, save: &Path) -> Option<Proc> {
        (self.way == Way::Pex).then(|| {
            let mut command = command_on(&self.line.far, "leecher.py");
            command.arg(&self.sample.torrent).arg(save).args([
                "--no-utp",
                "--plain",
                "--agent",
                "introducer",
            ]);
            command.args(["--listen", &format!("{}:0", self.line.far.ip), "--download-limit", "1000"]);
            command.args(["--limit", &LIMIT.as_secs().to_string()]);
            command.args(["--peer", &self.ours.to_string(), "--peer", &self.theirs.to_string()]);
            Proc::spawn(command)
        })
    }

    fn mount(&self, source: &OsStr, cache: &Path, policy: &str) -> MountBuilder {
        let listen = match self.way {
            // A multicast reaches no address in particular.
            Way::Lsd => format!("0.0.0.0:{PORT}"),
            _ => self.ours.to_string(),
        };
        let mount = Mount::of(source).inside(&self.line.near).listen(listen).cache(cache);
        let mount = mount.log("torrentfs=debug").args(&["--encryption", policy]);
        let mount = if self.way.is_utp() { mount.utp() } else { mount };
        let mount = if self.way == Way::Lsd { mount.lsd() } else { mount };
        match self.node {
            Some(node) => mount.dht(node),
            None => mount,
        }
    }

    /// Waits until bytes were moved with the client, and checks how.
    fn check(&self, mount: &Mount, role: Role) {
        let (moved, sources): (_, &[&str]) = match (role, self.way) {
            // Who has everything dials nobody.
            (Role::Fetches, _) => ("uploaded", &["incoming"]),
            // Neither knows of the other in another way; so it is the same when the client was faster.
            (Role::Seeds, Way::Dht4 | Way::Dht6) => ("downloaded", &["dht", "incoming"]),
            (Role::Seeds, Way::Pex) => ("downloaded", &["pex", "incoming"]),
            (Role::Seeds, Way::Lsd) => ("downloaded", &["lsd", "incoming"]),
            (Role::Seeds, _) => ("downloaded", &["named"]),
        };
        mount.wait_log(&["connected", &format!("peer={}", self.host_part())], LIMIT);
        let point = mount.point().display().to_string();
        let mut asked: Option<Instant> = None;
        let peer =
            wait_for(&format!("bytes moved with {} {:?}", self.client.name(), self.way), LIMIT, || {
                if asked.is_some_and(|at| at.elapsed() < LOOK) {
                    return None;
                }
                asked = Some(Instant::now());
                let status = ran(["status", &point, "--json"]).json();
                let peers = status["torrents"][0]["connected"].as_array().expect("a list").clone();
                peers.into_iter().find(|peer| {
                    let is = |name: &str| clients::is(self.client, name);
                    peer["client"].as_str().is_some_and(is)
                        && peer[moved].as_u64().is_some_and(|bytes| bytes > 0)
                })
            });
        let transport = if self.way.is_utp() { "utp" } else { "tcp" };
        let encryption = if self.way == Way::Rc4 { "rc4" } else { "plain" };
        assert_eq!(
            (&peer["transport"], &peer["encryption"]),
            (&transport.into(), &encryption.into()),
            "{peer}"
        );
        assert!(peer["source"].as_str().is_some_and(|source| sources.contains(&source)), "{peer}");
        let address: SocketAddr = peer["address"].as_str().and_then(|a| a.parse().ok()).expect("an address");
        assert_eq!(address.ip(), self.theirs.ip(), "{peer}");
    }

    /// The client's address as it begins in the log.
    fn host_part(&self) -> String {
        let addr = self.theirs.to_string();
        addr.rsplit_once(':').map(|(host, _)| host.to_owned()).expect("ADDR:PORT")
    }

    /// The client seeds to a mount, which fills its cache folder.
    fn seeds(&mut self, cache: &Path) {
        let [folder, save] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let mut dht = self.dht();
        let source = match self.way.is_dht() {
            true => magnet(&self.sample, &[]).into(),
            false => self.sample.torrent.clone().into_os_string(),
        };
        let mount = self.mount(&source, cache, if self.way == Way::Rc4 { "require" } else { "off" });
        let mount = mount.args(&["--download-limit", RATE]);
        // Who announces something in the local network once isn't heard by who comes later.
        let (mut mount, mut client) = if self.way == Way::Lsd {
            let mount = mount.start();
            (mount, clients::seeds(self, folder.path()))
        } else {
            let client = clients::seeds(self, folder.path());
            if let Some(dht) = &mut dht {
                dht.ask("announced", LIMIT);
            }
            let named = Way::CONNECTED.contains(&self.way);
            (if named { mount.peer(self.theirs) } else { mount }.start(), client)
        };
        let introducer = self.introducer(save.path());
        let file = mount.wait_entry(&self.sample.name, LIMIT);
        let mut reading = Proc::start("sha256sum", [file]);
        self.check(&mount, Role::Seeds);
        assert!(client.is_running(), "{}", client.output());
        reading.success(LIMIT);
        mount.check_sums(&self.sample);
        drop((client, introducer, dht));
        mount.stop();
    }

    /// The client fetches from a mount that has everything in its cache folder.
    fn fetches(&mut self, cache: &Path) {
        let [folder, save] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let mut dht = self.dht();
        let torrent = self.sample.torrent.clone();
        let mount =
            self.mount(torrent.as_os_str(), cache, if self.way == Way::Rc4 { "prefer" } else { "off" });
        let mount = mount.args(&["--upload-limit", RATE]);
        let (mount, fetching) = if self.way == Way::Lsd {
            let mut listener = lsd_listener(&self.line.near);
            let fetching = clients::fetches(self, folder.path());
            let hash = self.sample.v1.as_deref().expect("v1");
            listener.line(&format!("heard {hash}"), LIMIT);
            (mount.start(), fetching)
        } else {
            let mount = mount.start();
            if let Some(dht) = &mut dht {
                dht.ask("announced", LIMIT);
            }
            (mount, clients::fetches(self, folder.path()))
        };
        let introducer = self.introducer(save.path());
        self.check(&mount, Role::Fetches);
        fetching.done(self);
        drop((introducer, dht));
        mount.stop();
    }
}

/// Shows one way of a client in both roles, and records it.
pub(super) fn show(client: Client, way: Way) {
    let began = Instant::now();
    let cache = tempfile::tempdir().expect("a folder");
    let mut field = Field::new(client, way);
    for role in Role::BOTH {
        let record = table::Record::of(client, role, way);
        match role {
            Role::Seeds => field.seeds(cache.path()),
            Role::Fetches => field.fetches(cache.path()),
        }
        record.done();
        eprintln!("{} {role:?} {way:?}: {:?} from the start", client.name(), began.elapsed());
    }
}
