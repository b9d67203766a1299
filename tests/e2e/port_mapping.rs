//! Port mapping: a mount in a home whose router translates addresses, and somebody in the internet who comes in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::{DEVICE, Home, Mount, Proc, Sample, Tracker, python, ran, script, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// Where the mount listens.
const INSIDE: u16 = 6881;

/// The router, which takes orders over one protocol and has mappings live for so many seconds.
fn router(home: &Home, how: &str, lease: u32) -> Proc {
    let mut command = home.line.far.command(python().expect("python"));
    command.arg(script("router.py")).arg(how);
    command.args([home.line.far.ip, Home::OUTSIDE].map(|ip| ip.to_string())).arg(lease.to_string());
    let mut router = Proc::spawn(command);
    router.line("ready", MINUTE);
    router
}

fn status(mount: &Mount) -> serde_json::Value {
    ran(["status", &mount.point().display().to_string(), "--json"]).json()
}

/// Connects as a peer from the internet to the router's port, and says which port the mount tells it.
fn told_from_outside(home: &Home, sample: &Sample, port: u16) -> u16 {
    home.world.within(|| {
        let at = SocketAddr::from((Home::OUTSIDE, port));
        let mut stream = TcpStream::connect_timeout(&at, MINUTE).expect("a way through the router");
        stream.set_read_timeout(Some(MINUTE)).expect("a time-out");
        let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\0".to_vec();
        let hash = sample.v1.as_deref().expect("v1");
        hello.extend((0..20).map(|at| u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).expect("hex")));
        hello.extend(b"-XX0000-123456789012");
        stream.write_all(&hello).expect("it listens");
        // What comes behind its handshake: length, the number of extension messages, that of their handshake, bencode.
        let mut all = vec![0; 68];
        stream.read_exact(&mut all).expect("a handshake");
        loop {
            let mut head = [0; 4];
            stream.read_exact(&mut head).expect("a message");
            let mut message = vec![0; u32::from_be_bytes(head) as usize];
            stream.read_exact(&mut message).expect("all of it");
            if message.starts_with(&[20, 0]) {
                let text = String::from_utf8_lossy(&message).into_owned();
                let (_, rest) = text.split_once("1:pi").expect("a port");
                return rest.split('e').next().expect("a number").parse().expect("a number");
            }
        }
    })
}

/// Has a mount ask a router, and checks what comes of it.
fn mapped(how: &str, name: &str, lease: u32, renewals: u32) {
    let sample = Sample::small();
    let home = Home::new();
    home.translate();
    let mut router = router(&home, how, lease);
    let tracker = home.world.within(|| Tracker::at(home.world.ip, &[]));
    let mount = Mount::sample(&sample).inside(&home.line.near).listen(format!("0.0.0.0:{INSIDE}"));
    let mount = mount.utp().port_mapping().arg("--tracker").arg(tracker.http_url());
    let mount = mount.arg("--tracker").arg(tracker.udp_url()).start();
    let network = || status(&mount)["network"].clone();
    wait_until("both ports to be mapped to one", MINUTE, || {
        let ports = network()["mapped"].as_array().expect("a list").clone();
        let known =
            |port: &serde_json::Value| port["external"] == ports[0]["external"] && !port["address"].is_null();
        ports.len() == 2 && ports.iter().all(known)
    });
    let network = network();
    let outside = u16::try_from(network["port_outside"].as_u64().expect("a number")).expect("a port");
    assert_ne!(outside, INSIDE);
    for (port, protocol) in network["mapped"].as_array().expect("a list").iter().zip(["TCP", "UDP"]) {
        let (by, internal, external) = (&port["by"], &port["internal"], &port["external"]);
        assert_eq!((&port["protocol"], by), (&protocol.into(), &name.into()), "{network}");
        assert_eq!((internal, external), (&INSIDE.into(), &outside.into()), "{network}");
        assert_eq!(port["address"], Home::OUTSIDE.to_string(), "{network}");
    }
    let said = format!("mapped: TCP {outside}, UDP {outside} by {name} at {}", Home::OUTSIDE);
    ran(["status", &mount.point().display().to_string()]).said(0, &[&said]);

    // Whoever was told another port before is told anew.
    let told = |udp, event: &str| {
        let all = tracker.announces();
        all.iter()
            .rfind(|said| said.udp == udp && (said.event == event || event == "any"))
            .map(|said| said.port)
    };
    wait_until("trackers to know the outside port", MINUTE, || {
        [true, false].iter().all(|udp| told(*udp, "any") == Some(outside))
    });
    assert_eq!(told_from_outside(&home, &sample, outside), outside);
    for count in 1..=renewals + 1 {
        router.line(&format!("mapped TCP {outside} {INSIDE} {count}"), MINUTE);
    }
    mount.stop();
    for protocol in ["TCP", "UDP"] {
        router.line(&format!("unmapped {protocol} {outside}"), MINUTE);
    }
    assert_eq!([true, false].map(|udp| told(udp, "stopped")), [Some(outside); 2]);
}

#[test]
fn a_nat_pmp_router_lets_the_internet_in_while_the_mount_is_there() {
    needs!(Fuse, Libtorrent, Netns, Nft);
    mapped("natpmp", "NAT-PMP", 12, 2);
}

#[test]
fn an_igd_lets_the_internet_in_while_the_mount_is_there() {
    needs!(Fuse, Libtorrent, Netns, Nft);
    mapped("upnp", "UPnP", 3600, 0);
}

#[test]
fn peers_are_sent_to_the_address_that_we_have_by_now() {
    needs!(Fuse, Libtorrent, Netns, Nft);
    let sample = Sample::small();
    let home = Home::new();
    let _router = router(&home, "natpmp", 3600);
    let mount = Mount::sample(&sample).inside(&home.line.near).listen(format!("0.0.0.0:{INSIDE}"));
    let mount = mount.port_mapping().start();
    let leads_to = |ip: Ipv4Addr| {
        let nft = home.line.far.command("nft").args(["list", "table", "ip", "mapped"]).output().expect("nft");
        String::from_utf8_lossy(&nft.stdout).contains(&format!("dnat to {ip}:{INSIDE}"))
    };
    wait_until("the port to be mapped", MINUTE, || leads_to(home.line.near.ip));
    // The way out stays as it is.
    let later = home.line.near.also(77);
    let route = format!("route change 10.213.0.0/24 dev {DEVICE} proto kernel scope link src {later}");
    let changed = home.line.near.command("ip").args(route.split(' ')).status().expect("ip");
    assert!(changed.success());
    // What the kernel tells of is an address that comes or goes.
    home.line.near.also(78);
    wait_until("it to lead there", MINUTE, || leads_to(later) && !leads_to(home.line.near.ip));
    mount.stop();
}

#[test]
fn why_nothing_is_mapped_is_said() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::small();
    // Without a router that takes orders; at an address of the internet; on loopback; switched off.
    let home = Home::new();
    let off = |mount: &Mount| {
        let off = status(mount)["network"]["off"].as_array().expect("a list").clone();
        off.iter().find(|off| off["part"] == "port mapping").map(|off| off["why"].clone())
    };
    let why = |mount: &Mount| status(mount)["network"]["unmapped"].clone();
    let none = Mount::sample(&sample).inside(&home.line.near).listen("0.0.0.0:0").port_mapping().start();
    wait_until("the router to be given up", MINUTE, || {
        why(&none).as_str().is_some_and(|why| why.starts_with("PCP and NAT-PMP: "))
    });
    assert_eq!(off(&none), None);
    none.stop();
    let line = format!("{}:0", home.world.ip);
    let direct = Mount::sample(&sample).inside(&home.world).listen(line).port_mapping().start();
    wait_until("no router to be found", MINUTE, || why(&direct) == "there is no router");
    direct.stop();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string();
    let loopback = Mount::sample(&sample).inside(&home.line.near).listen(here).port_mapping().start();
    assert_eq!(off(&loopback), Some("--listen at a loopback address".into()));
    let point = loopback.point().display().to_string();
    ran(["status", &point]).said(0, &["port mapping (--listen at a loopback address)"]);
    loopback.stop();
    let switched_off = Mount::sample(&sample).inside(&home.line.near).listen("0.0.0.0:0").start();
    assert_eq!((off(&switched_off), why(&switched_off)), (Some("--no-port-mapping".into()), ().into()));
    switched_off.stop();
}
