//! Where webseeds come from, and whom they may reach: magnets, torrents from the web, and those added to a running mount.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::nginx::{self, Nginx};
use super::server::{Act, Server};
use super::{MINUTE, Outcome, Seeded, read, wait_reason, webseed, webseeds};
use crate::common::{Mount, Proc, Reader, Sample, Seeder, magnet, ran, wait_until};
use crate::needs;

/// A text as it stands in a magnet link.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A magnet with webseeds, and a peer that has the metadata and nothing else.
fn magnet_with(sample: &Sample, urls: &[&str]) -> (String, Seeder) {
    let peer = Seeder::with(sample, "127.0.0.2:0", &["--metadata-only"]);
    let mut more: Vec<_> = urls.iter().map(|url| format!("ws={}", escaped(url))).collect();
    more.push(format!("x.pe={}", peer.addr));
    (magnet(sample, &more), peer)
}

#[test]
fn a_magnet_whose_only_data_is_on_nginx() {
    needs!(Fuse, Libtorrent, Nginx);
    let files = [("a b.bin", 300_000), ("100%/ü#?.bin", 200_000)];
    let sample = Sample::folder("by magnet", &files, 64 << 10);
    let nginx = Nginx::start(sample.data.parent().expect("its folder"));
    let (magnet, mut peer) = magnet_with(&sample, &[&nginx.url("data/")]);
    let mut mount = Mount::of(magnet).arg("--allow-private-hosts").start();
    mount.wait_entry(&sample.name, MINUTE);
    mount.check_sums(&sample);
    assert_eq!(peer.uploaded(), 0);
    mount.stop();
}

#[test]
fn a_magnet_reaches_no_private_host_unless_that_is_allowed() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let port = server.addr().port();
    server.serve("seed", &sample, |_| Act::Serve);
    let hosts = ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"];
    let urls = hosts.map(|host| format!("http://{host}:{port}/seed/"));
    let (magnet, _peer) = magnet_with(&sample, &urls.each_ref().map(String::as_str));
    let mut mount = Mount::of(&magnet).args(&["--read-timeout", "2s"]).start();
    mount.wait_entry(&sample.name, MINUTE);
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    wait_until("a reason for each", MINUTE, || {
        let all = webseeds(&mount);
        all.len() >= 4
            && all.values().all(|seed| seed["reason"].as_str().is_some_and(|why| why.contains("private")))
    });
    assert_eq!((server.count(), server.connections()), (0, 0), "somebody was called");
    mount.stop();
}

/// A network namespace whose loopback also has an address of the public Internet. Ends with it.
struct Net {
    holder: Proc,
    dir: TempDir,
}

impl Net {
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);
    const PORT: u16 = 8080;

    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-ec"]);
        command
            .arg(format!("ip link set lo up; ip addr add {}/32 dev lo; echo ready; exec cat", Self::PUBLIC));
        let mut holder = Proc::spawn(command);
        holder.line("ready", MINUTE);
        Self { holder, dir: tempfile::tempdir().expect("a folder") }
    }

    /// nginx at all addresses of it.
    fn nginx(&self, root: &std::path::Path, more: &str) -> Proc {
        let text = nginx::configuration(root, &format!("0.0.0.0:{}", Self::PORT), more, None);
        std::fs::write(self.dir.path().join("nginx.conf"), text).expect("its configuration");
        let inner = nginx::command(self.dir.path());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg(inner.get_program());
        command.args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut process = Proc::spawn(command);
        wait_until("nginx to have begun", MINUTE, || {
            assert!(process.is_running(), "nginx ended: {}", process.output());
            self.dir.path().join("nginx.pid").exists()
        });
        process
    }
}

#[test]
fn a_torrent_from_the_web_is_not_led_to_private_hosts() {
    needs!(Fuse, Libtorrent, Nginx, Root, Netns);
    let sample = Sample::small();
    let net = Net::new();
    let base = format!("http://{}:{}", Net::PUBLIC, Net::PORT);
    let urls = [format!("{base}/led/"), format!("http://127.0.0.1:{}/private/", Net::PORT)];
    let seeded = Seeded::by(&sample, &urls.each_ref().map(String::as_str));
    // A good server, and one that leads to a private address: after a detour, so that only the last step is bad.
    let more = format!(
        "location = /it.torrent {{ alias {torrent}; }}
         location /led/ {{ rewrite ^/led/(.*)$ {base}/further/$1 redirect; }}
         location /further/ {{ rewrite ^/further/(.*)$ http://127.0.0.1:{port}/private/$1 redirect; }}
         location /private/ {{ alias {data}/; }}",
        torrent = seeded.torrent.display(),
        port = Net::PORT,
        data = sample.data.display(),
    );
    let _nginx = net.nginx(&sample.data, &more);
    let torrent = format!("{base}/it.torrent");
    let start = |args: &[&str]| {
        let mount = Mount::of(&torrent).net_of(net.holder.pid()).args(&["--read-timeout", "2s"]).args(args);
        let mut mount = mount.start();
        mount.wait_entry(&sample.name, MINUTE);
        mount
    };
    let mount = start(&[]);
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    for url in &urls {
        wait_reason(&mount, url, &["private"]);
    }
    let asked: Vec<_> = nginx::seen(net.dir.path()).into_iter().map(|seen| seen.raw).collect();
    assert!(asked.iter().any(|path| path.starts_with("/further/")), "{asked:?}");
    assert!(!asked.iter().any(|path| path.starts_with("/private/")), "{asked:?}");
    mount.stop();
    // The same, allowed.
    let mount = start(&["--allow-private-hosts"]);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_local_file_may_lead_to_a_private_host() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let private = server.serve("private", &sample, |_| Act::Serve);
    let led =
        server.serve("led", &sample, move |asked| Act::redirect(302, format!("{private}{}", asked.path)));
    let mount = Mount::of(&Seeded::by(&sample, &[&led]).torrent).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_webseed_is_added_to_a_torrent_that_is_there_and_goes_with_it() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let url = server.serve("later", &sample, |asked| {
        // So that the removal finds requests under way.
        if asked.nth < 8 { Act::Serve } else { Act::Trickle(1, Duration::from_millis(100)) }
    });
    let mount = Mount::sample(&sample).arg("--allow-private-hosts").start();
    let path = mount.path(&sample.name);
    let mut reader = Reader::pread(&path, 0, 4096);
    reader.wait_parked();
    assert!(webseeds(&mount).is_empty());
    let point = mount.point().to_str().expect("UTF-8");
    ran(["add", point, &magnet(&sample, &[format!("ws={}", escaped(&url))])]).said(0, &[]);
    assert!(reader.success(MINUTE).contains("read 4096"));
    assert!(webseed(&mount, &url)["downloaded"].as_u64().is_some_and(|bytes| bytes > 0));
    let mut rest = Proc::start("sha256sum", [&path]);
    wait_until("requests that hang", MINUTE, || server.count() > 8 && server.under_way() > 0);
    ran(["remove", point, &sample.name]).said(0, &[]);
    wait_until("the requests to be gone", MINUTE, || server.under_way() == 0);
    let (before, since) = (server.count(), std::time::Instant::now());
    assert!(!rest.finish(MINUTE).0.success());
    wait_until("half a second", MINUTE, || since.elapsed() > Duration::from_millis(500));
    assert_eq!(server.count(), before, "a webseed that was removed goes on asking");
    mount.stop();
}

/// A `.torrent` in a watched folder, with these webseeds from now on.
fn put(folder: &TempDir, sample: &Sample, urls: &[&str]) {
    let aside = folder.path().join(".aside");
    std::fs::copy(Seeded::by(sample, urls).torrent, &aside).expect("a copy");
    std::fs::rename(aside, folder.path().join("it.torrent")).expect("in its place");
}

#[test]
fn a_webseed_goes_when_the_watched_file_is_edited_and_comes_back_with_it() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let hung = server.serve("hung", &sample, |_| Act::Hang);
    let other = Server::start_at(Ipv4Addr::new(127, 0, 0, 9));
    let good = other.serve("good", &sample, |_| Act::Serve);
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, &sample, &[&hung]);
    let mount = Mount::empty().arg("--watch").arg(folder.path()).start();
    let path = mount.path(&sample.name);
    let mut reader = Reader::pread(&path, 0, 4096);
    reader.wait_parked();
    wait_until("requests that hang", MINUTE, || server.under_way() > 0);
    // Taken away with requests under way, in favour of another.
    put(&folder, &sample, &[&good]);
    assert!(reader.success(MINUTE).contains("read 4096"));
    wait_until("the requests to be gone", MINUTE, || server.under_way() == 0);
    assert!(webseeds(&mount).into_keys().eq([&*good]));
    let before = server.count();
    mount.check_sums(&sample);
    assert_eq!(server.count(), before, "a webseed that was removed goes on asking");
    put(&folder, &sample, &[&good, &hung]);
    wait_until("both", MINUTE, || webseeds(&mount).len() == 2);
    mount.stop();
}

#[test]
fn a_webseed_that_was_given_up_is_had_back_by_naming_it_again() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::file("again.bin", 3_000_000, 64 << 10);
    let server = Server::start();
    let forbids = Arc::new(AtomicBool::new(true));
    let told = forbids.clone();
    let url = server.serve("seed", &sample, move |_| match told.load(Ordering::SeqCst) {
        true => Act::status(403),
        false => Act::Serve,
    });
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, &sample, &[&url]);
    let mount = Mount::empty().arg("--watch").arg(folder.path()).args(&["--read-timeout", "3s"]).start();
    let at = |piece: u64| read(&mount, &sample, &sample.name, piece * sample.piece_length, 4096);
    let dropped = || wait_until("it to be dropped", MINUTE, || webseed(&mount, &url)["state"] == "dropped");
    assert_eq!(at(0), Outcome::Eio);
    dropped();
    // By adding the torrent once more.
    forbids.store(false, Ordering::SeqCst);
    let (point, seeded) = (mount.point().to_str().expect("UTF-8"), Seeded::by(&sample, &[&url]));
    ran(["add", point, seeded.torrent.to_str().expect("UTF-8")]).said(0, &[]);
    assert_eq!(at(10), Outcome::Right);
    assert!(webseed(&mount, &url)["reason"].is_null());
    // And by touching its file.
    forbids.store(true, Ordering::SeqCst);
    assert_eq!(at(30), Outcome::Eio);
    dropped();
    forbids.store(false, Ordering::SeqCst);
    put(&folder, &sample, &[&url]);
    wait_until("it to be back", MINUTE, || webseed(&mount, &url)["state"] != "dropped");
    mount.check_sums(&sample);
    mount.stop();
}
