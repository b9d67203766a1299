//! Which hosts may be reached: a torrent from the web must not make us call the router, or whatever else listens in the
//! local network and takes who calls for one of its own.
//!
//! [`is_private`] tells by the address. Who names a host by its address is held against it ([`check`]); names are looked
//! up through [`lookup`], which leaves private addresses out, so that it is the very address to be dialled that was
//! looked at, and a name that changes its mind changes nothing. A [`Guarded`] HTTP client does both, for redirects as
//! well, and [`refused`] finds in its errors that it did. How far to go is a [`Reach`].
//!
//! What our own address doesn't reach ([`Sockets::allows`]) is left out in the same way.
//!
//! Behind a proxy no name is looked up here but the proxy's own, so of names nobody knows where they lead: it is the proxy
//! that decides which networks it reaches. Addresses are looked at as ever.
//!
//! Not here: peers. Those of a local network are named rightly, and speak a protocol that a router doesn't take for
//! orders.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, RequestBuilder, Url, redirect};

use super::sockets::Sockets;
use crate::sync::timeouts::RESOLVE;

/// Which hosts may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Those of the internet.
    Public,
    /// All: the user said so, or the torrent came from a local file.
    Any,
}

impl Reach {
    /// What somebody may reach who is `trusted`.
    pub fn of(trusted: bool) -> Self {
        if trusted { Self::Any } else { Self::Public }
    }

    /// Whether an address is within it.
    pub fn allows(self, ip: IpAddr) -> bool {
        self == Self::Any || !is_private(ip)
    }
}

/// A host that may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.said())]
pub struct PrivateHost {
    /// Its name or address, as a URL has it.
    pub host: String,
    /// It isn't the one that was asked for: that one redirects to it.
    pub redirected: bool,
    /// It isn't that it is private: it has an address of another family than ours, of `--listen`.
    pub foreign: bool,
}

impl PrivateHost {
    /// One that was asked for.
    pub fn new(host: &str) -> Self {
        Self { host: host.to_owned(), redirected: false, foreign: false }
    }

    fn said(&self) -> String {
        let which = match self.redirected {
            true => format!("it redirects to {}, which has", self.host),
            false => "its host has".to_owned(),
        };
        match self.foreign {
            true => format!("{which} an address that can't be reached from that of --listen"),
            false => format!("{which} a private address; use --allow-private-hosts if that is meant"),
        }
    }
}

/// Why a host's addresses aren't known.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// All that it has are private.
    #[error(transparent)]
    Private(#[from] PrivateHost),
    /// The resolver says no.
    #[error(transparent)]
    Failed(#[from] std::io::Error),
    /// The resolver says nothing.
    #[error("no answer within {} s", RESOLVE.as_secs())]
    TimedOut,
}

/// Whether an address belongs to no single host of the internet: this machine's, its networks', a group's. Those
/// that hold an IPv4 address (mapped, compatible, NAT64, 6to4) are what that one is.
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // This host (RFC 1122), for which Linux takes loopback; private networks (RFC 1918); loopback.
        [0 | 10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] => true,
        // Link-local (RFC 3927), where clouds keep their secrets; shared by customers of a provider (RFC 6598).
        [169, 254, ..] | [100, 64..=127, ..] => true,
        // Of the protocol itself (RFC 6890), of test benches (RFC 2544).
        [192, 0, 0, _] | [198, 18 | 19, ..] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    }
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let inner = |a: u16, b: u16| {
        let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // Mapped, translated and compatible ones; unspecified and loopback are among the last.
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] | [0, 0, 0, 0, 0, 0, a, b] => {
            inner(a, b)
        }
        // NAT64 (RFC 6052), that of a local network (RFC 8215), 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => inner(a, b),
        [0x64, 0xff9b, 1, ..] => true,
        // Unique local (RFC 4193), link-local, what came before the two, multicast.
        [0xfc00..=0xfdff | 0xfe80..=0xfeff | 0xff00..=0xffff, ..] => true,
        _ => false,
    }
}

/// Looks at a URL that names its host by address; names are the resolver's matter.
///
/// # Errors
/// The address may not be reached, or can't be.
pub fn check(url: &Url, reach: Reach, sockets: &Sockets) -> Result<(), PrivateHost> {
    let host = url.host_str().unwrap_or_default();
    match bare(host).parse::<IpAddr>() {
        Ok(ip) if !reach.allows(ip) => Err(PrivateHost::new(host)),
        Ok(ip) if !sockets.allows(ip) => Err(PrivateHost { foreign: true, ..PrivateHost::new(host) }),
        _ => Ok(()),
    }
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Finds all addresses of a host: the system's resolver, but in tests.
type Names = for<'a> fn(&'a str, u16) -> Found<'a>;
type Found<'a> = Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send + 'a>>;

fn system(host: &str, port: u16) -> Found<'_> {
    Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
}

/// The addresses of a host, by its name or address, that may be reached; never none. Waits for the resolver, bounded.
/// Cancel-safe.
///
/// # Errors
/// There are none; see [`LookupError`].
pub async fn lookup(host: &str, port: u16, reach: Reach) -> Result<Vec<SocketAddr>, LookupError> {
    lookup_by(system, host, port, reach).await
}

async fn lookup_by(
    names: Names,
    host: &str,
    port: u16,
    reach: Reach,
) -> Result<Vec<SocketAddr>, LookupError> {
    let found = tokio::time::timeout(RESOLVE, names(bare(host), port));
    within(host, found.await.map_err(|_| LookupError::TimedOut)??, reach)
}

/// Those of a host's addresses that may be reached; never none.
fn within(host: &str, all: Vec<SocketAddr>, reach: Reach) -> Result<Vec<SocketAddr>, LookupError> {
    let (reachable, private): (Vec<_>, Vec<_>) = all.into_iter().partition(|addr| reach.allows(addr.ip()));
    if !reachable.is_empty() {
        Ok(reachable)
    } else if !private.is_empty() {
        Err(PrivateHost::new(host).into())
    } else {
        Err(std::io::Error::other("it has no address").into())
    }
}

/// An HTTP client that reaches only what it may. Cheap to clone; its connections are shared.
#[derive(Debug, Clone)]
pub struct Guarded {
    client: reqwest::Client,
    reach: Reach,
    sockets: Sockets,
}

impl Guarded {
    /// Makes one of a client that is set up otherwise, with the sockets that are ours. It follows at most `redirects` in a row; with 0
    /// an answer that redirects is an answer like any other. Reads the system's
    /// certificates, unless the builder has others.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub fn new(
        builder: ClientBuilder,
        reach: Reach,
        redirects: usize,
        sockets: &Sockets,
    ) -> Result<Self, reqwest::Error> {
        Self::by(system, builder, reach, redirects, sockets)
    }

    fn by(
        names: Names,
        builder: ClientBuilder,
        reach: Reach,
        redirects: usize,
        sockets: &Sockets,
    ) -> Result<Self, reqwest::Error> {
        let ours = sockets.clone();
        let policy = redirect::Policy::custom(move |attempt| {
            if redirects == 0 {
                return attempt.stop();
            }
            if attempt.previous().len() > redirects {
                return attempt.error(format!("more than {redirects} redirects"));
            }
            match check(attempt.url(), reach, &ours) {
                Ok(()) => attempt.follow(),
                Err(private) => attempt.error(private),
            }
        });
        let resolver = Resolver(names, reach, sockets.clone());
        let client = sockets.http(builder)?.dns_resolver(Arc::new(resolver)).redirect(policy).build()?;
        Ok(Self { client, reach, sockets: sockets.clone() })
    }

    /// A GET request, to be sent.
    ///
    /// # Errors
    /// The URL names an address that may not be reached. That a name has none but such is told by [`refused`].
    pub fn get(&self, url: Url) -> Result<RequestBuilder, PrivateHost> {
        check(&url, self.reach, &self.sockets)?;
        Ok(self.client.get(url))
    }
}

/// The HTTP clients of one purpose, by how far they reach. Each is made when it is first asked for: that reads the
/// system's certificates, half a megabyte, and mostly one of them is used, or none.
pub struct Clients {
    purpose: &'static str,
    redirects: usize,
    sockets: Sockets,
    setup: Box<dyn Fn() -> ClientBuilder + Send + Sync>,
    public: OnceLock<Guarded>,
    any: OnceLock<Guarded>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl Clients {
    /// None is made yet. Each will be of `setup`, follow at most `redirects` in a row, and be known in the log by what it
    /// is for (a plural).
    pub fn new(
        purpose: &'static str,
        redirects: usize,
        sockets: Sockets,
        setup: impl Fn() -> ClientBuilder + Send + Sync + 'static,
    ) -> Self {
        let (public, any) = (OnceLock::new(), OnceLock::new());
        Self { purpose, redirects, sockets, setup: Box::new(setup), public, any }
    }

    /// How their sockets are made.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// The one that reaches so far. The first time it reads the system's certificates, some milliseconds' work.
    ///
    /// # Errors
    /// When TLS can't be set up at all. Without any certificates on the system it warns, and only HTTPS fails.
    pub fn of(&self, reach: Reach) -> Result<&Guarded, reqwest::Error> {
        let place = match reach {
            Reach::Public => &self.public,
            Reach::Any => &self.any,
        };
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let make = |builder| Guarded::new(builder, reach, self.redirects, &self.sockets);
        let made = make((self.setup)()).or_else(|error| {
            let purpose = self.purpose;
            tracing::warn!(
                "HTTPS {purpose} won't work, the system's certificates can't be read ({error}); install ca-certificates"
            );
            // Without any of them no server is valid for it.
            make((self.setup)().tls_certs_only([]))
        })?;
        Ok(place.get_or_init(|| made))
    }
}

/// What is said of a host that has no address which can be reached from ours.
pub const NOT_FROM_OURS: &str = "it has no address that can be reached from that of --listen";

/// What is said of a name that only the proxy may look up.
const BY_PROXY: &str = "names are looked up by the proxy";

/// Looks names up for an HTTP client.
struct Resolver(Names, Reach, Sockets);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self(names, reach, sockets) = self;
        let (names, mut reach, sockets) = (*names, *reach, sockets.clone());
        Box::pin(async move {
            if let Some(proxy) = sockets.proxy() {
                if !proxy.proxy().host.eq_ignore_ascii_case(name.as_str()) {
                    return Err(BY_PROXY.into());
                }
                reach = Reach::Any;
            }
            // The client puts the port of the URL in.
            let mut addrs = lookup_by(names, name.as_str(), 0, reach).await.map_err(|error| match error {
                // As it is, so that `refused` finds it.
                LookupError::Private(private) => private.into(),
                other => Box::<dyn Error + Send + Sync>::from(other),
            })?;
            addrs.retain(|addr| sockets.allows(addr.ip()));
            if addrs.is_empty() {
                return Err(NOT_FROM_OURS.into());
            }
            Ok(Box::new(addrs.into_iter()) as Addrs)
        })
    }
}

/// Whether an error of a guarded client is that a host may not be reached, and which. `asked` is what it was to get.
pub fn refused(error: &reqwest::Error, asked: &Url) -> Option<PrivateHost> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(private) = cause.downcast_ref::<PrivateHost>() {
            let redirected = asked.host_str() != Some(&private.host);
            return Some(PrivateHost { redirected, ..private.clone() });
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:192.168.1.1",
            "::ffff:0:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:c0a8:101::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
            assert!(!Reach::Public.allows(private.parse().unwrap()));
            assert!(Reach::Any.allows(private.parse().unwrap()));
        }
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "198.17.255.255",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2001:db8::1",
            "2606:4700::1111",
            "fbff::1",
            "fe00::1",
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn hosts_by_address_are_looked_at_in_every_spelling() {
        for (url, private) in [
            ("http://127.0.0.1:80/x", true),
            ("http://127.1/x", true),
            ("http://2130706433/x", true),
            ("http://0x7f.0.0.1/x", true),
            ("http://0/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:c0a8:101]/", true),
            ("http://user:password@192.168.0.1/", true),
            ("udp://10.0.0.1:80", true),
            ("udp://[fe80::1]:80", true),
            ("http://8.8.8.8/", false),
            ("http://[2001:db8::1]/", false),
            // By name: to be looked up.
            ("http://localhost/", false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(check(&url, Reach::Public, &Sockets::default()).is_err(), private, "{url}");
            assert_eq!(check(&url, Reach::Any, &Sockets::default()), Ok(()), "{url}");
        }
    }

    #[test]
    fn a_user_reads_what_to_do() {
        for (redirected, text) in [
            (false, "its host has a private address; use --allow-private-hosts if that is meant"),
            (
                true,
                "it redirects to h, which has a private address; use --allow-private-hosts if that is meant",
            ),
        ] {
            assert_eq!(PrivateHost { redirected, ..PrivateHost::new("h") }.to_string(), text);
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_are_looked_up_to_nothing() {
        for host in ["localhost", "127.0.0.1", "[::1]", "127.1"] {
            let error = lookup(host, 80, Reach::Public).await.unwrap_err();
            assert!(matches!(error, LookupError::Private(private) if private == PrivateHost::new(host)));
        }
        let found = lookup("localhost", 80, Reach::Any).await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 80), "{found:?}");
        assert_eq!(lookup("1.2.3.4", 5, Reach::Public).await.unwrap(), ["1.2.3.4:5".parse().unwrap()]);
        assert!(matches!(lookup("no such name", 1, Reach::Any).await, Err(LookupError::Failed(_))));
    }

    #[test]
    fn of_a_name_with_private_and_public_addresses_the_public_ones_are_left() {
        let addr = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
        let (public, other) = ("192.0.2.7", "2001:db8::1");
        let table: [(&[&str], Option<&[&str]>); 6] = [
            (
                &["10.0.0.1", public, "127.0.0.1", "::ffff:192.168.1.1", other, "fe80::1"],
                Some(&[public, other]),
            ),
            (&[public], Some(&[public])),
            // What it is at another time is looked at then.
            (&["127.0.0.1"], None),
            (&["127.0.0.1", "::1", "192.168.0.1"], None),
            (&["::ffff:7f00:1", "64:ff9b::a00:1"], None),
            (&[other, "0.0.0.0"], Some(&[other])),
        ];
        for (all, left) in table {
            let all: Vec<SocketAddr> = all.iter().map(|ip| addr(ip)).collect();
            assert_eq!(within("h", all.clone(), Reach::Any).unwrap(), all);
            match (within("h", all.clone(), Reach::Public), left) {
                (Ok(found), Some(left)) => {
                    assert_eq!(found, left.iter().map(|ip| addr(ip)).collect::<Vec<_>>());
                }
                (Err(LookupError::Private(private)), None) => assert_eq!(private, PrivateHost::new("h")),
                (found, _) => panic!("{all:?}: {found:?}"),
            }
        }
        let none = within("h", Vec::new(), Reach::Public);
        assert!(matches!(none, Err(LookupError::Failed(_))), "{none:?}");
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_leads_to_no_private_host() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        // Of the internet when it is looked at first, then of both, then of this machine alone.
        static LOOKS: AtomicUsize = AtomicUsize::new(0);
        let names: Names = |host, port| {
            assert_eq!(host, "flips.example");
            let all: &[[u8; 4]] = match LOOKS.fetch_add(1, Ordering::SeqCst) {
                0 => &[[192, 0, 2, 7]],
                1 => &[[127, 0, 0, 1], [192, 0, 2, 7]],
                _ => &[[127, 0, 0, 1]],
            };
            let all = all.iter().map(|ip| SocketAddr::from((*ip, port))).collect();
            Box::pin(std::future::ready(Ok(all)))
        };
        let resolver = Resolver(names, Reach::Public, Sockets::default());
        for _ in 0..2 {
            let found = resolver.resolve("flips.example".parse().unwrap()).await.unwrap();
            assert_eq!(found.map(|addr| addr.ip().to_string()).collect::<Vec<_>>(), ["192.0.2.7"]);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url =
            Url::parse(&format!("http://flips.example:{}/", listener.local_addr().unwrap().port())).unwrap();
        let client = |reach| {
            let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
            Guarded::by(names, builder, reach, 3, &Sockets::default()).unwrap()
        };
        let error = client(Reach::Public).get(url.clone()).unwrap().send().await.unwrap_err();
        assert_eq!(refused(&error, &url), Some(PrivateHost::new("flips.example")));
        assert!(listener.accept().now_or_never().is_none(), "somebody was called");
        tokio::select! {
            called = listener.accept() => assert!(called.is_ok()),
            // Nobody answers.
            answer = client(Reach::Any).get(url).unwrap().send() => panic!("{answer:?}"),
        }
    }

    #[tokio::test]
    async fn clients_reach_what_they_may_and_so_do_their_redirects() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = |reach| {
            let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
            // The public host of this test.
            let here = SocketAddr::from(([127, 0, 0, 1], port));
            Guarded::new(builder.resolve("public.example", here), reach, 3, &Sockets::default()).unwrap()
        };
        // Each path redirects to what it says; "/end" is the end.
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap();
                let to = path.split_once("?to=").map(|(_, to)| to).or((path == "/circle").then_some(path));
                let head = match to {
                    Some(to) => format!("302 Found\r\nlocation: {to}"),
                    None => "200 OK".to_owned(),
                };
                let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let ask = async |reach, url: &str| {
            let url = Url::parse(url).unwrap();
            let sent = client(reach).get(url.clone()).map_err(Some)?.send().await;
            sent.map(|answer| answer.status().as_u16()).map_err(|error| refused(&error, &url))
        };
        let asked = async {
            let at = |host: &str| format!("http://{host}:{port}/");
            let to = |host: &str| format!("http://public.example:{port}/?to=http://{host}:{port}/");
            let private =
                |host: &str, redirected| Err(Some(PrivateHost { redirected, ..PrivateHost::new(host) }));
            for (url, public) in [
                (at("public.example"), Ok(200)),
                (at("localhost"), private("localhost", false)),
                (at("127.0.0.1"), private("127.0.0.1", false)),
                (to("public.example"), Ok(200)),
                (to("localhost"), private("localhost", true)),
                (to("127.0.0.1"), private("127.0.0.1", true)),
                (to("2130706433"), private("127.0.0.1", true)),
            ] {
                assert_eq!(ask(Reach::Public, &url).await, public, "{url}");
                assert_eq!(ask(Reach::Any, &url).await, Ok(200), "{url}");
            }
            let mapped = to("[::ffff:127.0.0.1]");
            assert_eq!(ask(Reach::Public, &mapped).await, private("[::ffff:7f00:1]", true));
            let circle = format!("http://public.example:{port}/circle");
            assert_eq!(ask(Reach::Any, &circle).await, Err(None));
        };
        tokio::select! {
            () = serve => {}
            () = asked => {}
        }
    }

    #[tokio::test]
    async fn hosts_are_asked_from_our_address_or_not_at_all() {
        let ours = IpAddr::from([127, 0, 0, 5]);
        let sockets = Sockets::new(None, Some(ours));
        let names: Names = |_, port| {
            let all =
                vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port)), SocketAddr::from(([127, 0, 0, 1], port))];
            Box::pin(std::future::ready(Ok(all)))
        };
        let builder = || reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let client = Guarded::by(names, builder(), Reach::Any, 0, &sockets).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = |host: &str| Url::parse(&format!("http://{host}:{port}/")).unwrap();
        tokio::select! {
            called = listener.accept() => assert_eq!(called.unwrap().1.ip(), ours),
            // Nobody answers.
            answer = client.get(url("both.example")).unwrap().send() => panic!("{answer:?}"),
        }
        let error = client.get(url("[::1]")).unwrap_err();
        assert!(error.foreign && error.to_string().contains("--listen"), "{error}");
        let only6: Names =
            |_, port| Box::pin(std::future::ready(Ok(vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port))])));
        let client = Guarded::by(only6, builder(), Reach::Any, 0, &sockets).unwrap();
        let error = client.get(url("six.example")).unwrap().send().await.unwrap_err();
        assert!(format!("{error:?}").contains(NOT_FROM_OURS), "{error:?}");
        assert!(listener.accept().now_or_never().is_none(), "somebody was called");
    }
}
