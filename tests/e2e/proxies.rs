//! Behind a proxy: everything goes through it, and nothing past it. The mount's host has a route to everywhere, and every
//! packet that leaves it is looked at.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::common::{
    Home, Host, Mount, MountBuilder, Proc, Sample, Seeder, Tracker, python, ran, script, wait_until,
};
use crate::needs;
use crate::webseeds::Seeded;

const MINUTE: Duration = Duration::from_secs(60);
/// Where the proxy listens.
const PORT: u16 = 1080;

/// A script that runs on a host.
fn run(host: &Host, name: &str, args: &[&str]) -> Proc {
    let mut command = host.command(python().expect("python"));
    command.arg(script(name)).args(args);
    let mut process = Proc::spawn(command);
    process.line("ready", MINUTE);
    process
}

/// A host behind a proxy.
struct Behind {
    home: Home,
    capture: Proc,
}

impl Behind {
    fn new() -> Self {
        let home = Home::new();
        let capture = run(&home.line.near, "capture.py", &[]);
        Self { home, capture }
    }

    /// The proxy, which knows one name: of whoever is in the internet.
    fn proxy(&self, kind: &str) -> Proc {
        let (inside, outside) = (self.home.line.far.ip.to_string(), Home::OUTSIDE.to_string());
        let name = format!("world.test={}", self.home.world.ip);
        run(&self.home.line.far, "proxy.py", &[kind, &inside, &PORT.to_string(), &outside, &name])
    }

    /// A mount with all that could go past the proxy.
    fn mount(&self, source: impl AsRef<std::ffi::OsStr>, kind: &str) -> MountBuilder {
        let mount = Mount::of(source).inside(&self.home.line.near).listen("0.0.0.0:0");
        let node = (self.home.world.ip, 1).into();
        mount.utp().lsd().port_mapping().dht(node).arg("--proxy").arg(self.url(kind))
    }

    fn url(&self, kind: &str) -> String {
        format!("{kind}://me:se%3Acret@{}:{PORT}", self.home.line.far.ip)
    }

    /// Looks whether packets went anywhere but to the proxy: to its port, and to where it said that it takes packets.
    fn check(&mut self, proxy: Option<&Proc>) {
        self.capture.ask("all", MINUTE);
        let ip = self.home.line.far.ip;
        let mut allowed = BTreeSet::from([format!("sent TCP {ip}:{PORT}")]);
        let said = proxy.map(Proc::output).unwrap_or_default();
        allowed.extend(
            said.lines()
                .filter_map(|line| line.strip_prefix("relay "))
                .map(|port| format!("sent UDP {ip}:{port}")),
        );
        let sent = self.capture.output();
        let sent: BTreeSet<_> =
            sent.lines().filter(|line| line.starts_with("sent ")).map(str::to_owned).collect();
        assert!(sent.contains(&format!("sent TCP {ip}:{PORT}")), "nothing went to the proxy: {sent:?}");
        let past: Vec<_> = sent.difference(&allowed).collect();
        assert!(past.is_empty(), "past the proxy went {past:?}");
    }
}

fn status(mount: &Mount) -> serde_json::Value {
    ran(["status", &mount.point().display().to_string(), "--json"]).json()
}

/// What is off, by why.
fn off(mount: &Mount, why: &str) -> Vec<String> {
    let off = status(mount)["network"]["off"].as_array().expect("a list").clone();
    let of = off.iter().filter(|off| off["why"] == why);
    of.map(|off| off["part"].as_str().expect("a name").to_owned()).collect()
}

/// Peers and trackers through a proxy.
fn peers(kind: &str) {
    let sample = Sample::small();
    let mut behind = Behind::new();
    let mut proxy = behind.proxy(kind);
    let world = &behind.home.world;
    let seeder = Seeder::on(world, &sample, &["--no-utp"]);
    let tracker = world.within(|| Tracker::at(world.ip, &[seeder.addr]));
    // By name: nobody here knows it.
    let [http, udp] =
        [tracker.http_url(), tracker.udp_url()].map(|url| url.replace(&world.ip.to_string(), "world.test"));
    let mount =
        behind.mount(&sample.torrent, kind).arg("--tracker").arg(&http).arg("--tracker").arg(&udp).start();
    mount.check_sums(&sample);
    proxy.line(&format!("connect {}", seeder.addr), MINUTE);
    proxy.line("connect world.test:", MINUTE);

    let carries_packets = kind == "socks5";
    let said = |over_udp| tracker.announces().iter().rfind(|said| said.udp == over_udp).map(|said| said.port);
    wait_until("the trackers to have heard of us", MINUTE, || {
        said(false).is_some() && said(true).is_some() == carries_packets
    });
    // Nobody can come in, and trackers take no port 0 for that.
    assert_eq!((said(false), said(true)), (Some(1), carries_packets.then_some(1)));
    assert_eq!(proxy.output().contains("packet world.test:"), carries_packets);
    let network = status(&mount)["network"].clone();
    let shown = format!("{kind}://{}:{PORT}", behind.home.line.far.ip);
    assert_eq!((&network["proxy"], &network["proxy_trouble"]), (&shown.as_str().into(), &().into()));
    assert_eq!(network["port_outside"], 0);
    assert_eq!(
        off(&mount, "--proxy"),
        ["DHT", "local network", "uTP", "port mapping", "incoming connections"]
    );
    assert_eq!(off(&mount, "--proxy over HTTP").is_empty(), carries_packets);
    let text = "DHT, local network, uTP, port mapping, incoming connections (--proxy)";
    let point = mount.point().display().to_string();
    let ended = ran(["status", &point]).said(0, &[text, &shown]);
    assert!(!ended.out.contains("se:cret") && !ended.out.contains("se%3A"), "{ended:?}");
    if !carries_packets {
        let trackers = status(&mount)["torrents"][0]["trackers"].to_string();
        assert!(trackers.contains("an HTTP proxy carries no packets"), "{trackers}");
    }
    mount.stop();
    assert_eq!(tracker.announces().iter().any(|said| said.udp && said.event == "stopped"), carries_packets);
    behind.check(Some(&proxy));
}

/// A `.torrent` and a webseed through a proxy.
fn webseed(kind: &str) {
    let sample = Sample::small();
    let mut behind = Behind::new();
    let mut proxy = behind.proxy(kind);
    // The port is known only when the server is there, and the torrent names it.
    let folder = tempfile::tempdir().expect("a folder");
    let torrent = folder.path().join("seeded.torrent");
    let (data, file) = (sample.data.display().to_string(), torrent.display().to_string());
    let ip = behind.home.world.ip.to_string();
    let mut command = behind.home.world.command(python().expect("python"));
    command.arg(script("files.py")).args([&ip, &data, &file]);
    let mut server = Proc::spawn(command);
    let port = server.line("ready ", MINUTE).replace("ready ", "");
    let base = format!("http://world.test:{port}/");
    copy(&Seeded::by(&sample, &[&base]).torrent, &torrent);
    let mut mount = behind.mount(format!("{base}seeded.torrent"), kind).arg("--no-trackers").start();
    mount.wait_entry(&sample.name, MINUTE);
    mount.check_sums(&sample);
    proxy.line(&format!("connect world.test:{port}"), MINUTE);
    let webseed = status(&mount)["torrents"][0]["webseeds"][0].clone();
    assert!(webseed["downloaded"].as_u64() >= Some(sample.total), "{webseed}");
    mount.stop();
    behind.check(Some(&proxy));
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("a copy");
}

#[test]
fn peers_and_trackers_are_reached_through_socks5_and_nothing_goes_past_it() {
    needs!(Fuse, Libtorrent, Netns);
    peers("socks5");
}

#[test]
fn peers_and_trackers_are_reached_through_an_http_proxy_and_nothing_goes_past_it() {
    needs!(Fuse, Libtorrent, Netns);
    peers("http");
}

#[test]
fn torrents_and_webseeds_are_fetched_through_socks5_and_nothing_goes_past_it() {
    needs!(Fuse, Libtorrent, Netns);
    webseed("socks5");
}

#[test]
fn torrents_and_webseeds_are_fetched_through_an_http_proxy_and_nothing_goes_past_it() {
    needs!(Fuse, Libtorrent, Netns);
    webseed("http");
}

#[test]
fn without_its_proxy_a_mount_reaches_nobody_and_says_why() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::small();
    let mut behind = Behind::new();
    let world = &behind.home.world;
    let seeder = Seeder::on(world, &sample, &["--no-utp"]);
    let tracker = world.within(|| Tracker::at(world.ip, &[seeder.addr]));
    let mount = behind.mount(&sample.torrent, "socks5").peer(seeder.addr);
    let mount = mount.arg("--peer").arg("world.test:1").arg("--tracker").arg(tracker.udp_url());
    let mount = mount.arg("--tracker").arg(tracker.http_url()).start();
    wait_until("the proxy to be found away", MINUTE, || {
        let network = status(&mount)["network"].clone();
        network["proxy_trouble"].as_str().is_some_and(|why| why.starts_with("the proxy can't be reached: "))
    });
    wait_until("all trackers to have failed", MINUTE, || {
        let trackers = status(&mount)["torrents"][0]["trackers"].as_array().expect("a list").clone();
        trackers.len() == 2 && trackers.iter().all(|tracker| tracker["state"] == "failed")
    });
    assert!(tracker.announces().is_empty());
    // The very same mount works as soon as the proxy is there.
    let proxy = behind.proxy("socks5");
    mount.check_sums(&sample);
    assert!(status(&mount)["network"]["proxy_trouble"].is_null());
    mount.stop();
    behind.check(Some(&proxy));
}
