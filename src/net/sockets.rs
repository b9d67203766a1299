//! The one place where sockets of the network are made (`tests/house.rs` sees to that), so that what the user said of them
//! holds for each: `--interface` binds it to a device, `--listen ADDR` to an address, which is then where it connects and
//! sends from, too. An address of one family can't reach the other: that fails here, and never goes out by another way.
//!
//! With `--proxy` what connects does so through the proxy, and whatever else would open a socket is refused here: nothing
//! goes past it because somebody has forgotten to ask. Only the [`Dialer`] has sockets that do.
//!
//! The system's resolver has sockets of its own, which nobody can bind; and HTTP clients make theirs, as
//! [`Sockets::http`] says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::ClientBuilder;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::addresses::{self, Interface};
use super::proxy::{Dialer, Proxy, Target};

/// How far multicast goes: over a router or two within a house, not into a provider's network.
const HOPS: u32 = 4;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Asked for in each direction of a UDP socket: bursts of a fast line. The system may give less.
const UDP_BUFFER: usize = 1 << 20;

/// How sockets are made.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    device: Option<Arc<str>>,
    source: Option<IpAddr>,
    /// Through which all goes.
    proxy: Option<Dialer>,
}

impl Sockets {
    /// Those of a device, or of an address of this machine, or of all. Of the address that is all of a family's
    /// (`0.0.0.0`), those of that family: nobody listens on the other one.
    pub fn new(device: Option<&str>, source: Option<IpAddr>) -> Self {
        Self { device: device.map(Into::into), source, proxy: None }
    }

    /// The same, behind a proxy if there is one: these reach it alone.
    pub fn behind(self, proxy: Option<&Proxy>) -> Self {
        let proxy = proxy.map(|proxy| Dialer::new(proxy.clone(), self.clone()));
        Self { proxy, ..self }
    }

    /// What all goes through, if that is so.
    pub fn proxy(&self) -> Option<&Dialer> {
        self.proxy.as_ref()
    }

    /// Refuses what would go past the proxy.
    fn directly(&self) -> io::Result<()> {
        match &self.proxy {
            None => Ok(()),
            Some(_) => Err(io::Error::other("nothing goes past the proxy")),
        }
    }

    /// Whether an address of this machine may be used.
    fn lends(&self, addr: IpAddr) -> bool {
        self.source.is_none_or(|source| match source.is_unspecified() {
            true => source.is_ipv4() == addr.is_ipv4(),
            false => source == addr,
        })
    }

    /// Whether there is such a device, and we may bind to it.
    ///
    /// # Errors
    /// The system's.
    pub fn check(&self) -> io::Result<()> {
        if self.device.is_some() {
            let direct = Self { proxy: None, ..self.clone() };
            direct.open(Domain::IPV4, Type::DGRAM, Protocol::UDP).map(drop)
        } else {
            Ok(())
        }
    }

    /// Whether an address can be reached at all: of two families, an address of ours speaks one. All of a family's are as
    /// good as none; and from where a proxy goes isn't known.
    pub fn allows(&self, ip: IpAddr) -> bool {
        self.proxy.is_some()
            || self.source().is_none_or(|source| source.is_ipv4() == ip.to_canonical().is_ipv4())
    }

    /// Where others reach us in a family: at one address of ours, or at all of them. `None` in a family that nobody listens
    /// on.
    pub fn listens(&self, v6: bool) -> Option<IpAddr> {
        let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Some(self.source.unwrap_or(any)).filter(|ip| ip.is_ipv6() == v6)
    }

    /// The address of ours that all are bound to, if it is one.
    pub fn source(&self) -> Option<IpAddr> {
        self.source.filter(|ip| !ip.is_unspecified())
    }

    /// Connects over TCP; small messages go at once. Waits as long as the system does, or as the proxy may take. Cancel-safe.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::NetworkUnreachable`] for what can't be reached from our address. The proxy's.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let to = canonical(to);
        match &self.proxy {
            Some(proxy) => proxy.connect(&Target::Addr(to)).await.map_err(io::Error::other),
            None => self.connect_directly(to).await,
        }
    }

    /// The same, for whoever connects to the proxy.
    pub(super) async fn connect_directly(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let to = canonical(to);
        let from = self.from(to)?;
        let socket = self.open(Domain::for_address(to), Type::STREAM, Protocol::TCP)?;
        if self.source().is_some() {
            // One local port for each connection is enough for all that we make.
            socket.bind(&from.into())?;
        }
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        // Without it a session is only slower.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Takes connections at an address. IPv6 alone, if it is one of those.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.open(Domain::for_address(at), Type::STREAM, Protocol::TCP)?;
        // A port in its time-wait state after a restart is ours to take again.
        socket.set_reuse_address(true)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    /// Sends and receives at an address. IPv6 alone, if it is one of those.
    ///
    /// # Errors
    /// The system's.
    pub fn udp(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(Domain::for_address(at), Type::DGRAM, Protocol::UDP)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if at.is_ipv4() {
            // Without it nothing is lost on most paths.
            let _ = may_be_cut(&socket);
        }
        let _ = socket.set_recv_buffer_size(UDP_BUFFER);
        let _ = socket.set_send_buffer_size(UDP_BUFFER);
        socket.bind(&at.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// Speaks to one address over UDP, at any port of ours.
    ///
    /// # Errors
    /// As [`Sockets::connect`].
    pub async fn udp_to(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let to = canonical(to);
        let socket = self.udp(self.from(to)?)?;
        socket.connect(to).await?;
        Ok(socket)
    }

    /// The address of ours from which packets go there, as the routes are now, if there is one. Nothing is sent.
    pub async fn route(&self, to: SocketAddr) -> Option<IpAddr> {
        let socket = self.udp_to(to).await.ok()?;
        Some(socket.local_addr().ok()?.ip().to_canonical())
    }

    /// Has the sockets of an HTTP client made likewise. It is the resolver of the client that leaves out what isn't
    /// [allowed](Self::allows): the client itself would go there from any address.
    ///
    /// # Errors
    /// The client takes no such proxy.
    pub fn http(&self, client: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        let mut client = client.local_address(self.source());
        if let Some(device) = &self.device {
            client = client.interface(device);
        }
        if let Some(proxy) = &self.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy.proxy().url())?);
        }
        Ok(client)
    }

    /// Where to connect or send from, to reach an address: any port.
    fn from(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        if !self.allows(to.ip()) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let any = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(SocketAddr::new(self.source().unwrap_or(any), 0))
    }

    fn open(&self, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        self.directly()?;
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// The interfaces that may be used, of each the addresses that may be. Loopback only when it was asked for.
    pub fn interfaces(&self) -> Vec<Interface> {
        let mut all = addresses::interfaces();
        for interface in &mut all {
            interface.addrs.retain(|addr| self.lends(*addr));
        }
        all.retain(|interface| {
            let asked_for = self.source.is_some_and(|ip| !ip.is_unspecified()) || self.device.is_some();
            !interface.addrs.is_empty()
                && self.device.as_deref().is_none_or(|device| device == interface.name)
                && (asked_for || !interface.loopback)
        });
        all
    }

    /// A socket on which the kernel tells of addresses and interfaces that come and go (rtnetlink). It speaks to nobody.
    ///
    /// # Errors
    /// The system's: some containers forbid it.
    pub(super) fn news() -> io::Result<AsyncFd<Socket>> {
        let route = Protocol::from(libc::NETLINK_ROUTE);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
        socket.set_nonblocking(true)?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        // SAFETY: the storage is zeroed and large enough for any address; what is written is a whole one of its family,
        // and its length.
        let ((), addr) = unsafe {
            SockAddr::try_init(|storage, len| {
                let addr = storage.cast::<libc::sockaddr_nl>();
                (*addr).nl_family = libc::AF_NETLINK as libc::sa_family_t;
                (*addr).nl_groups = groups as u32;
                *len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
                Ok(())
            })?
        };
        socket.bind(&addr)?;
        // SAFETY: the descriptor is the socket's, which keeps it open and the same for as long as it is registered.
        Ok(unsafe { AsyncFd::register(socket) }?)
    }

    /// A socket that hears what is sent to a group on one interface, and sends to that group there. Others may have the
    /// same: other clients of this machine, and further mounts.
    ///
    /// # Errors
    /// The system's.
    pub fn multicast(&self, group: SocketAddr, interface: &Interface) -> io::Result<UdpSocket> {
        let socket = self.open(Domain::for_address(group), Type::DGRAM, Protocol::UDP)?;
        // Some clients set the one, some the other, and all have to set the same to share the port.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        match group {
            SocketAddr::V4(group) => {
                let v4 = |addr: &IpAddr| match addr {
                    IpAddr::V4(addr) => Some(*addr),
                    IpAddr::V6(_) => None,
                };
                let addr = interface.addrs.iter().find_map(v4).ok_or(io::ErrorKind::AddrNotAvailable)?;
                socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(interface.index))?;
                socket.set_multicast_if_v4(&addr)?;
                socket.set_multicast_ttl_v4(HOPS)?;
                socket.set_multicast_loop_v4(true)?;
                // Else it hears what comes on interfaces that other sockets of this machine have joined.
                socket.set_multicast_all_v4(false)?;
            }
            SocketAddr::V6(group) => {
                socket.set_only_v6(true)?;
                socket.join_multicast_v6(group.ip(), interface.index)?;
                socket.set_multicast_if_v6(interface.index)?;
                socket.set_multicast_hops_v6(HOPS)?;
                socket.set_multicast_loop_v6(true)?;
                socket.set_multicast_all_v6(false)?;
            }
        }
        // To the group's own address: what is sent to us alone isn't heard.
        socket.bind(&group.into())?;
        UdpSocket::from_std(socket.into())
    }
}

/// Clears the bit that forbids routers to cut datagrams: uTP's have a number each and can't be cut otherwise when they are sent
/// again.
fn may_be_cut(socket: &socket2::Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let how = libc::IP_PMTUDISC_DONT;
    // SAFETY: the descriptor is open for as long as `socket` lives, and the value is an int of the length given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const how).cast(),
            size_of_val(&how) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// IPv4 within IPv6 goes over IPv4: a socket of IPv6 alone doesn't reach it.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, 0)
    }

    /// Whether this machine has IPv6.
    fn has_v6() -> bool {
        Sockets::default().listen(at(ip("::1"))).is_ok()
    }

    #[tokio::test]
    async fn an_address_of_ours_is_where_all_come_from() {
        let ours = ip("127.0.0.5");
        let sockets = Sockets::new(None, Some(ours));
        assert_eq!(sockets.source(), Some(ours));
        let listener = Sockets::default().listen(at(ip("127.0.0.1"))).unwrap();
        let to = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(sockets.connect(to), listener.accept());
        assert_eq!((stream.unwrap().local_addr().unwrap().ip(), accepted.unwrap().1.ip()), (ours, ours));
        // The same one, as IPv6 writes it.
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", to.port()).parse().unwrap();
        assert_eq!(sockets.connect(mapped).await.unwrap().peer_addr().unwrap(), to);

        let other = Sockets::default().udp(at(ip("127.0.0.1"))).unwrap();
        let socket = sockets.udp_to(other.local_addr().unwrap()).await.unwrap();
        socket.send(b"hello").await.unwrap();
        let (_, from) = other.recv_from(&mut [0; 8]).await.unwrap();
        assert_eq!(from, SocketAddr::new(ours, socket.local_addr().unwrap().port()));
    }

    #[tokio::test]
    async fn an_address_of_one_family_reaches_no_other() {
        if !has_v6() {
            eprintln!("skipped: no IPv6 on loopback");
            return;
        }
        for (ours, theirs) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
            let sockets = Sockets::new(None, Some(ip(ours)));
            let listener = Sockets::default().listen(at(ip(theirs))).unwrap();
            let to = listener.local_addr().unwrap();
            assert!(!sockets.allows(to.ip()) && sockets.allows(ip(ours)));
            assert_eq!(sockets.connect(to).await.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
            assert_eq!(sockets.udp_to(to).await.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
            // All addresses are as good as none.
            let any = if ours == "::1" { "::" } else { "0.0.0.0" };
            assert!(Sockets::new(None, Some(ip(any))).connect(to).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_device_is_kept_to() {
        let sockets = Sockets::new(Some("lo"), None);
        if let Err(error) = sockets.check() {
            eprintln!("skipped: the kernel doesn't bind to devices ({error})");
            return;
        }
        let listener = sockets.listen(at(ip("127.0.0.1"))).unwrap();
        let to = listener.local_addr().unwrap();
        let streams = [sockets.connect(to).await.unwrap(), Sockets::default().connect(to).await.unwrap()];
        let bound = streams.map(|stream| socket2::SockRef::from(&stream).device().unwrap());
        assert_eq!(bound, [Some(b"lo".to_vec()), None]);
        for socket in [sockets.udp(at(ip("127.0.0.1"))).unwrap(), sockets.udp_to(to).await.unwrap()] {
            assert_eq!(socket2::SockRef::from(&socket).device().unwrap(), Some(b"lo".to_vec()));
        }
        let none = Sockets::new(Some("no-such-device"), None);
        assert!(none.check().is_err() && none.connect(to).await.is_err() && none.udp(to).is_err());
        assert!(Sockets::default().check().is_ok());
    }

    #[tokio::test]
    async fn both_families_have_a_port_of_the_same_number() {
        if !has_v6() {
            eprintln!("skipped: no IPv6 on loopback");
            return;
        }
        let sockets = Sockets::default();
        let four = sockets.udp(at(Ipv4Addr::UNSPECIFIED.into())).unwrap();
        let port = four.local_addr().unwrap().port();
        assert!(sockets.udp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).is_ok());
        assert!(sockets.udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).is_err(), "it is taken");
    }

    #[test]
    fn addresses_that_nobody_listens_on_are_left_out() {
        for (source, allowed, not) in [
            (None, vec!["10.0.0.1", "fd00::1"], vec![]),
            (Some("0.0.0.0"), vec!["10.0.0.1", "10.0.0.2"], vec!["fd00::1"]),
            (Some("::"), vec!["fd00::1", "fe80::1"], vec!["10.0.0.1"]),
            (Some("10.0.0.1"), vec!["10.0.0.1"], vec!["10.0.0.2", "fd00::1"]),
        ] {
            let sockets = Sockets::new(None, source.map(ip));
            assert!(allowed.into_iter().all(|addr| sockets.lends(ip(addr))), "{source:?}");
            assert!(!not.into_iter().any(|addr| sockets.lends(ip(addr))), "{source:?}");
        }
    }

    #[tokio::test]
    async fn the_routes_tell_where_packets_come_from() {
        let any = Sockets::default();
        for to in ["127.0.0.9:1", "[::ffff:127.0.0.9]:1"] {
            assert_eq!(any.route(to.parse().unwrap()).await, Some(ip("127.0.0.1")));
        }
        assert_eq!(
            Sockets::new(None, Some(ip("127.0.0.2"))).route("127.0.0.9:1".parse().unwrap()).await,
            Some(ip("127.0.0.2"))
        );
    }

    #[test]
    fn others_reach_us_where_we_listen() {
        for (source, v4, v6) in [
            (None, Some("0.0.0.0"), Some("::")),
            (Some("0.0.0.0"), Some("0.0.0.0"), None),
            (Some("::"), None, Some("::")),
            (Some("10.0.0.1"), Some("10.0.0.1"), None),
            (Some("fd00::1"), None, Some("fd00::1")),
        ] {
            let sockets = Sockets::new(None, source.map(ip));
            assert_eq!([false, true].map(|family| sockets.listens(family)), [v4, v6].map(|at| at.map(ip)));
        }
    }

    #[test]
    fn loopback_is_used_only_when_it_was_asked_for() {
        let loopback = |sockets: Sockets| sockets.interfaces().iter().any(|interface| interface.loopback);
        for asked in [Sockets::new(Some("lo"), None), Sockets::new(None, Some([127, 0, 0, 1].into()))] {
            assert!(loopback(asked));
        }
        for not in [None, Some([0, 0, 0, 0].into())] {
            assert!(!loopback(Sockets::new(None, not)));
        }
    }
}
