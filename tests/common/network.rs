//! A local network of two hosts: two network namespaces joined by a pair of interfaces. A [`Home`] is such a line whose far
//! host leads on to a third, which stands for the internet; [`Homes`] are two behind routers that let nobody in, with a
//! host in the world between them. Nobody else is on those lines, and what is sent there goes nowhere else.

use std::ffi::OsStr;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::wait_until;

/// The name of the interface of each host.
pub const DEVICE: &str = "line0";

/// One of the two hosts.
pub struct Host {
    name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its address after [`Line::with_ipv6`].
    pub ip6: Ipv6Addr,
}

impl Host {
    /// One that has no IPv6.
    fn v4(name: String, ip: Ipv4Addr) -> Self {
        Self { name, ip, ip6: Ipv6Addr::UNSPECIFIED }
    }

    /// Its network namespace.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Takes its address away and gives it another one.
    #[track_caller]
    pub fn renumber(&mut self, to: Ipv4Addr) {
        ip(&["-n", &self.name, "addr", "del", &format!("{}/24", self.ip), "dev", DEVICE]);
        self.ip = to;
        ip(&["-n", &self.name, "addr", "add", &format!("{to}/24"), "dev", DEVICE]);
    }

    /// One more address of the same network, which ends with this number.
    #[track_caller]
    pub fn also(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.ip.octets();
        let more = Ipv4Addr::new(a, b, c, last);
        ip(&["-n", &self.name, "addr", "add", &format!("{more}/24"), "dev", DEVICE]);
        more
    }

    /// One more interface, with an address and the way to the internet. Whatever goes out there is lost.
    #[track_caller]
    pub fn lead_nowhere(&self, name: &str, addr: Ipv4Addr, router: Ipv4Addr) {
        let host = &self.name;
        ip(&["-n", host, "link", "add", name, "type", "veth", "peer", "name", "nowhere0"]);
        ip(&["-n", host, "link", "set", "nowhere0", "up"]);
        // Nobody is asked who has an address there, so packets do leave.
        ip(&["-n", host, "link", "set", name, "up", "arp", "off"]);
        ip(&["-n", host, "addr", "add", &format!("{addr}/24"), "dev", name]);
        ip(&["-n", host, "route", "add", "default", "via", &router.to_string(), "dev", name]);
    }

    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // It executes the program in its own place, so the process id is the program's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Does something on a thread that is there. Sockets stay on the host on which they were made, and so do threads.
    #[track_caller]
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let net = std::fs::File::open(self.path()).expect("the namespace");
        let there = move || {
            setns(net, CloneFlags::CLONE_NEWNET).expect("it can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(there).join())
            .unwrap_or_else(|why| std::panic::resume_unwind(why))
    }

    /// Has the shell do something there.
    #[track_caller]
    fn sh(&self, script: &str) {
        let output = self.command("sh").args(["-ec", script]).output().expect("a shell");
        assert!(output.status.success(), "{script}: {output:?}");
    }

    /// From now on no TCP leaves it but to itself: a connection is refused at once.
    #[track_caller]
    pub fn without_tcp(&self) {
        for family in ["-4", "-6"] {
            // The table of its own addresses is looked at first.
            ip(&["-n", &self.name, family, "rule", "add", "pref", "5", "ipproto", "tcp", "unreachable"]);
        }
    }
}

/// The two of them; taken down when dropped.
pub struct Line {
    /// One.
    pub near: Host,
    /// The other.
    pub far: Host,
}

impl Line {
    /// Joins two new ones. They have IPv4 addresses, and of IPv6 the link-local ones that the kernel gives them.
    #[track_caller]
    pub fn new() -> Self {
        static LINES: AtomicU32 = AtomicU32::new(0);
        clear_abandoned();
        let (pid, number) = (std::process::id(), LINES.fetch_add(1, Ordering::Relaxed));
        let host = |side: &str, last| Host {
            name: format!("tfs-{pid}-{number}{side}"),
            ip: Ipv4Addr::new(10, 213, 0, last),
            ip6: Ipv6Addr::new(0x2001, 0xdb8, 0xd5, 0, 0, 0, 0, last.into()),
        };
        let line = Self { near: host("a", 1), far: host("b", 2) };
        for host in [&line.near, &line.far] {
            ip(&["netns", "add", &host.name]);
        }
        let (near, far) = (&line.near.name, &line.far.name);
        ip(&["-n", near, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", far]);
        for host in [&line.near, &line.far] {
            ip(&["-n", &host.name, "addr", "add", &format!("{}/24", host.ip), "dev", DEVICE]);
            ip(&["-n", &host.name, "link", "set", DEVICE, "up"]);
            ip(&["-n", &host.name, "link", "set", "lo", "up"]);
            // For clients that leave it to the routes where multicast goes.
            ip(&["-n", &host.name, "route", "add", "224.0.0.0/4", "dev", DEVICE]);
        }
        line
    }

    /// The same line; both also have IPv6 addresses that look like those of the internet, as some clients want them.
    #[track_caller]
    pub fn with_ipv6(self) -> Self {
        for host in [&self.near, &self.far] {
            ip(&["-n", &host.name, "addr", "add", &format!("{}/64", host.ip6), "dev", DEVICE, "nodad"]);
            ip(&["-n", &host.name, "-6", "route", "add", "default", "dev", DEVICE]);
        }
        self
    }

    /// More IPv6 addresses for the near one, each as if in a network of its own.
    #[track_caller]
    pub fn neighbourhoods(&self, count: u16) -> Vec<Ipv6Addr> {
        let addrs: Vec<_> =
            (1..=count).map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0xe00 + n, 0, 0, 0, 0, 1)).collect();
        for addr in &addrs {
            ip(&["-n", &self.near.name, "addr", "replace", &format!("{addr}/128"), "dev", DEVICE, "nodad"]);
        }
        addrs
    }

    /// Waits until both may use their link-local addresses.
    #[track_caller]
    pub fn wait_link_local(&self) {
        for host in [&self.near, &self.far] {
            wait_until("a link-local address", Duration::from_secs(30), || {
                let args =
                    ["-n", &host.name, "-6", "addr", "show", "dev", DEVICE, "scope", "link", "-tentative"];
                let shown = Command::new("ip").args(args).output().expect("ip runs").stdout;
                String::from_utf8_lossy(&shown).contains("fe80:")
            });
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The pair goes with the namespaces.
        for host in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", &host.name]).status();
        }
    }
}

/// A home with a router to the internet; taken down when dropped.
pub struct Home {
    /// The two hosts of the home: `near` is one like any other, `far` the router, through which `near` reaches the internet.
    pub line: Line,
    /// Somebody in the internet. He knows no way into the home.
    pub world: Host,
}

impl Home {
    /// The router's address in the internet.
    pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// The name of the router's interface to the internet, and of the interface of whoever is there.
    const OUTWARD: &str = "line1";

    /// Sets one up. Its router forwards nothing yet.
    #[track_caller]
    pub fn new() -> Self {
        let line = Line::new();
        let world = Host::v4(format!("{}w", line.near.name), Ipv4Addr::new(203, 0, 113, 2));
        ip(&["netns", "add", &world.name]);
        let home = Self { line, world };
        let (router, there, outward) = (&home.line.far.name, &home.world.name, Self::OUTWARD);
        ip(&["-n", router, "link", "add", outward, "type", "veth", "peer", "name", outward, "netns", there]);
        for (host, at) in [(router, Self::OUTSIDE), (there, home.world.ip)] {
            ip(&["-n", host, "addr", "add", &format!("{at}/24"), "dev", outward]);
            ip(&["-n", host, "link", "set", outward, "up"]);
        }
        ip(&["-n", there, "link", "set", "lo", "up"]);
        ip(&["-n", &home.line.near.name, "route", "add", "default", "via", &home.line.far.ip.to_string()]);
        home
    }

    /// Has the router let those inside out, under its own address, and nobody in.
    #[track_caller]
    pub fn translate(&self) {
        self.line.far.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        self.line.far.sh(&format!(
            "nft 'table ip out {{ chain out {{ type nat hook postrouting priority 100; oifname {} masquerade; }}; }}'",
            Self::OUTWARD
        ));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.world.name]).status();
    }
}

/// Two homes, each behind a router of its own that gives it another address and lets in only what was asked for (with `nft`),
/// and a host between them that both reach. Taken down when dropped.
pub struct Homes {
    /// The host in the world; each home reaches it by an address of its own.
    pub world: Host,
    /// Its addresses, as the homes know it.
    pub world_ips: [Ipv4Addr; 2],
    /// The hosts at home.
    pub homes: [Host; 2],
    routers: [String; 2],
}

/// What a router does: it stands for the home with its own address, and drops what nobody at home has asked for.
const ROUTER: &str = "table ip home {
    chain leaving { type nat hook postrouting priority 100; oifname \"out\" masquerade; }
    chain own { type filter hook input priority 0; iifname \"out\" ct state new drop; }
    chain through { type filter hook forward priority 0; iifname \"out\" ct state new drop; }
}
";

impl Homes {
    /// New ones.
    #[track_caller]
    pub fn new() -> Self {
        static HOMES: AtomicU32 = AtomicU32::new(0);
        clear_abandoned();
        let (pid, number) = (std::process::id(), HOMES.fetch_add(1, Ordering::Relaxed));
        let name = |what: &str| format!("tfs-{pid}-h{number}{what}");
        let world_ips = [Ipv4Addr::new(5, 5, 1, 1), Ipv4Addr::new(5, 5, 2, 1)];
        let home = |n: u8| Host::v4(name(&format!("home{n}")), Ipv4Addr::new(10, 0, n, 2));
        let made = Self {
            world: Host::v4(name("world"), world_ips[0]),
            world_ips,
            homes: [home(1), home(2)],
            routers: [name("router1"), name("router2")],
        };
        made.names().for_each(|name| ip(&["netns", "add", name]));
        let world = &made.world.name;
        forwards(world);
        for (n, (home, router)) in (1..).zip(made.homes.iter().zip(&made.routers)) {
            let to = format!("to{n}");
            ip(&["-n", world, "link", "add", &to, "type", "veth", "peer", "name", "out", "netns", router]);
            ip(&[
                "-n", &home.name, "link", "add", DEVICE, "type", "veth", "peer", "name", "in", "netns",
                router,
            ]);
            for (name, device, addr) in [
                (world, to.as_str(), format!("5.5.{n}.1/24")),
                (router, "out", format!("5.5.{n}.2/24")),
                (router, "in", format!("10.0.{n}.1/24")),
                (&home.name, DEVICE, format!("10.0.{n}.2/24")),
            ] {
                ip(&["-n", name, "addr", "add", &addr, "dev", device]);
                ip(&["-n", name, "link", "set", device, "up"]);
            }
            ip(&["-n", &home.name, "route", "add", "default", "via", &format!("10.0.{n}.1")]);
            ip(&["-n", router, "route", "add", "default", "via", &format!("5.5.{n}.1")]);
            forwards(router);
            in_namespace(router, "nft -f -", ROUTER);
        }
        made.names().for_each(|name| ip(&["-n", name, "link", "set", "lo", "up"]));
        made
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let hosts = self.homes.iter().chain([&self.world]).map(|host| host.name.as_str());
        hosts.chain(self.routers.iter().map(String::as_str))
    }
}

impl Drop for Homes {
    fn drop(&mut self) {
        for name in self.names() {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Has a namespace pass on what isn't for itself.
#[track_caller]
fn forwards(name: &str) {
    in_namespace(name, "cat > /proc/sys/net/ipv4/ip_forward", "1");
}

/// Runs a line of the shell in a namespace, with this to read.
#[track_caller]
fn in_namespace(name: &str, line: &str, input: &str) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name, "sh", "-c", line]).stdin(Stdio::piped());
    let mut child = command.spawn().expect("ip runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{line} in {name}");
}

/// Takes down namespaces of test processes that were killed before they could.
fn clear_abandoned() {
    let names = Command::new("ip").args(["netns", "list"]).output().expect("ip runs").stdout;
    for name in String::from_utf8_lossy(&names).lines().filter_map(|line| line.split(' ').next()) {
        let pid = name.strip_prefix("tfs-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}
