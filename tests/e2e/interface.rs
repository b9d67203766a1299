//! `--interface`: every socket belongs to it, whatever the routes say.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::common::{Line, Mount, MountBuilder, Proc, Sample, Seeder, Tracker, command_on, wait_until};
use crate::needs;
use crate::webseeds::Seeded;

const MINUTE: Duration = Duration::from_secs(60);
/// An interface beside that of the line. Whatever goes out there is lost.
const OTHER: &str = "other0";
/// Where the mount listens.
const PORT: u16 = 7000;
/// A node of the DHT that isn't there.
const NODE: u16 = 7001;

/// What is sent, to where, and by which interface, as the capture says it.
fn sent(capture: &mut Proc) -> BTreeSet<String> {
    capture.ask("all", MINUTE);
    capture.output().lines().filter_map(|line| line.strip_prefix("sent ").map(str::to_owned)).collect()
}

#[test]
fn every_socket_keeps_to_the_interface_that_is_named() {
    needs!(Fuse, Libtorrent, Netns);
    let line = Line::new();
    let (near, far) = (&line.near, &line.far);
    let router = Ipv4Addr::new(10, 214, 0, 9);
    near.lead_nowhere(OTHER, Ipv4Addr::new(10, 214, 0, 1), router);

    let sample = Sample::small();
    let seeder = Seeder::on(far, &sample, &["--no-utp"]);
    let tracker = far.within(|| Tracker::at(far.ip, &[]));
    let data = sample.data.display().to_string();
    let mut command = command_on(far, "files.py");
    command.args([&far.ip.to_string(), &data]);
    let mut server = Proc::spawn(command);
    let served = server.line("ready ", MINUTE).replace("ready ", "");
    let torrent = Seeded::by(&sample, &[&format!("http://{}:{served}/", far.ip)]);
    let mount = |interface: &str| -> MountBuilder {
        let mount =
            Mount::of(&torrent.torrent).log("torrentfs=debug").inside(near).listen(format!("0.0.0.0:{PORT}"));
        let mount = mount.utp().lsd().port_mapping().dht((far.ip, NODE).into()).peer(seeder.addr);
        let mount = mount.arg("--tracker").arg(tracker.http_url()).arg("--tracker").arg(tracker.udp_url());
        mount.arg("--interface").arg(interface)
    };
    let port_of =
        |url: String| url.split([':', '/']).find_map(|part| part.parse::<u16>().ok()).expect("a port");
    let to = |protocol: &str, ip: Ipv4Addr, port: u16| format!("{protocol} {ip}:{port}");
    let served: u16 = served.parse().expect("a port");
    let capture = |host| {
        let mut command = command_on(host, "capture.py");
        command.arg("--interfaces");
        let mut capture = Proc::spawn(command);
        capture.line("ready", MINUTE);
        capture
    };
    let mut seen = capture(near);

    // All that talks to others tries it from there, though the way to them is the line, and nobody comes in by that.
    let all = [
        to("TCP", far.ip, seeder.addr.port()),
        to("TCP", far.ip, port_of(tracker.http_url())),
        to("UDP", far.ip, port_of(tracker.udp_url())),
        to("TCP", far.ip, served),
        to("UDP", far.ip, NODE),
        to("UDP", far.ip, seeder.addr.port()),
        to("UDP", Ipv4Addr::new(239, 192, 152, 143), 6771),
        to("UDP", router, 5351),
    ];
    let lost = mount(OTHER).start();
    let reading = Proc::start("cat", [lost.path(&sample.name)]);
    for to in &all {
        let by = format!("{to} by {OTHER}");
        wait_until(&by, MINUTE, || sent(&mut seen).contains(&by));
    }
    let refused = far.within(|| TcpStream::connect((near.ip, PORT)));
    assert!(refused.is_err(), "somebody listens on the line");
    let past: Vec<_> = sent(&mut seen).into_iter().filter(|sent| !sent.ends_with(OTHER)).collect();
    // Who knocked got the kernel's answer.
    let (answers, past): (Vec<_>, Vec<_>) =
        past.into_iter().partition(|sent| !all.iter().any(|to| sent.starts_with(&format!("{to} "))));
    assert!(past.is_empty() && answers.len() <= 1, "{past:?} {answers:?}");
    drop(reading);
    lost.stop();
    drop(seen);

    // On the line everything comes.
    let mut seen = capture(near);
    let found = mount("line0").start();
    found.check_sums(&sample);
    drop(far.within(|| TcpStream::connect((near.ip, PORT))).expect("somebody listens"));
    found.stop();
    // The kernel takes its time to say there that the first has left its group.
    let past = |sent: &String| sent.ends_with(OTHER) && !sent.starts_with("IGMP ");
    let past: Vec<_> = sent(&mut seen).into_iter().filter(past).collect();
    assert!(past.is_empty(), "{past:?}");
    assert!(
        tracker.announces().iter().any(|said| said.udp) && tracker.announces().iter().any(|said| !said.udp)
    );
}
