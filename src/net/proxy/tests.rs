//! The dialer against proxies of the tests' own on loopback: SOCKS5 with its packets, and HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::sync::tasks::TaskScope;

const LIMIT: Duration = Duration::from_secs(20);
/// What a target says first, right behind the proxy's answer.
const HELLO: &[u8] = b"\x13BitTorrent protocol";

/// What a proxy does.
#[derive(Debug, Clone, Default)]
struct Manner {
    /// Whom it lets in; `None` for everybody.
    auth: Option<(&'static str, &'static str)>,
    /// Instead of what it should answer to a request: these bytes, and the end of the connection.
    says: Option<Vec<u8>>,
    /// Whom it reaches for nobody, and what it says then.
    forbids: Option<(&'static str, Vec<u8>)>,
    /// What it says of where it takes packets.
    bound: Bound,
    /// Sends its answer in single bytes.
    dribbles: bool,
    /// The names that it knows all lead here; without, to nowhere.
    target: Option<SocketAddr>,
}

impl Manner {
    /// Instead of what it should answer.
    fn answer_to(&self, host: &str) -> Option<&Vec<u8>> {
        let forbidden = self.forbids.as_ref().filter(|(name, _)| host.starts_with(name));
        forbidden.map(|(_, says)| says).or(self.says.as_ref())
    }
}

#[derive(Debug, Clone, Copy, Default)]
enum Bound {
    #[default]
    Plain,
    Unspecified,
    EmptyName,
}

/// A proxy that runs.
struct Running {
    scope: TaskScope,
    at: SocketAddr,
    /// The targets that it was asked for, in order, with a word for what.
    asked: mpsc::Receiver<String>,
    /// To end its associations.
    hang_up: watch::Sender<bool>,
}

impl Running {
    fn dialer(&self, kind: ProxyKind, auth: Option<(&str, &str)>) -> Dialer {
        let auth = auth.map(|(user, password)| Auth { user: user.into(), password: password.into() });
        let proxy = Proxy { kind, host: self.at.ip().to_string(), port: self.at.port(), auth };
        Dialer::new(proxy, Sockets::default())
    }
}

async fn start(kind: ProxyKind, manner: Manner) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let scope = TaskScope::root();
    let (tell, asked) = mpsc::channel(64);
    let (hang_up, hung_up) = watch::channel(false);
    let inner = scope.clone();
    scope.spawn("proxy", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (manner, tell, hung_up) = (manner.clone(), tell.clone(), hung_up.clone());
            inner.spawn("client", async move {
                // A client that goes away is its own matter.
                let _ = match kind {
                    ProxyKind::Socks5 => serve_socks5(stream, manner, tell, hung_up).await,
                    ProxyKind::Http => serve_http(stream, manner, tell).await,
                };
            });
        }
    });
    Running { scope, at, asked, hang_up }
}

async fn answer(stream: &mut TcpStream, bytes: &[u8], manner: &Manner) -> io::Result<()> {
    if !manner.dribbles {
        return stream.write_all(bytes).await;
    }
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        stream.flush().await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The target says hello at once, and repeats what it is told.
async fn carry(stream: &mut TcpStream, mut first: Vec<u8>, manner: &Manner) -> io::Result<()> {
    first.extend_from_slice(HELLO);
    answer(stream, &first, manner).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
}

async fn serve_socks5(
    mut stream: TcpStream,
    manner: Manner,
    tell: mpsc::Sender<String>,
    mut hung_up: watch::Receiver<bool>,
) -> io::Result<()> {
    let [_, count] = read(&mut stream).await?;
    let mut methods = vec![0; count.into()];
    stream.read_exact(&mut methods).await?;
    match manner.auth {
        None => stream.write_all(&[5, 0]).await?,
        Some(_) if !methods.contains(&2) => return stream.write_all(&[5, 0xff]).await,
        Some(auth) => {
            stream.write_all(&[5, 2]).await?;
            let [1, length] = read(&mut stream).await? else { return Ok(()) };
            let mut user = vec![0; length.into()];
            stream.read_exact(&mut user).await?;
            let [length] = read(&mut stream).await?;
            let mut password = vec![0; length.into()];
            stream.read_exact(&mut password).await?;
            let right = (user.as_slice(), password.as_slice()) == (auth.0.as_bytes(), auth.1.as_bytes());
            stream.write_all(&[1, u8::from(!right)]).await?;
            if !right {
                return Ok(());
            }
        }
    }
    let [5, command, 0, kind] = read(&mut stream).await? else { return Ok(()) };
    let host = match kind {
        1 => Ipv4Addr::from(read::<4>(&mut stream).await?).to_string(),
        4 => format!("[{}]", std::net::Ipv6Addr::from(read::<16>(&mut stream).await?)),
        _ => {
            let [length] = read(&mut stream).await?;
            let mut name = vec![0; length.into()];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).unwrap()
        }
    };
    let port = u16::from_be_bytes(read(&mut stream).await?);
    tell.send(format!("{} {host}:{port}", ["", "connect", "bind", "associate"][usize::from(command)]))
        .await
        .unwrap();
    if let Some(says) = manner.answer_to(&host) {
        return answer(&mut stream, says, &manner).await;
    }
    if command == 1 {
        return carry(&mut stream, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0], &manner).await;
    }
    let relay = UdpSocket::bind("127.0.0.1:0").await?;
    let [a, b] = relay.local_addr()?.port().to_be_bytes();
    let bound = match manner.bound {
        Bound::Plain => vec![5, 0, 0, 1, 127, 0, 0, 1, a, b],
        Bound::Unspecified => vec![5, 0, 0, 1, 0, 0, 0, 0, a, b],
        Bound::EmptyName => vec![5, 0, 0, 3, 0, a, b],
    };
    answer(&mut stream, &bound, &manner).await?;
    let outside = UdpSocket::bind("127.0.0.1:0").await?;
    let (mut inner, mut outer, mut client) = ([0; 2048], [0; 2048], None);
    let mut end = [0];
    loop {
        tokio::select! {
            () = until(&mut hung_up) => return Ok(()),
            _ = stream.read(&mut end) => return Ok(()),
            came = relay.recv_from(&mut inner) => {
                let (n, from) = came?;
                client = Some(from);
                let Some((target, payload)) = socks5::unwrap(&inner[..n]) else { continue };
                tell.send(format!("packet {target}")).await.unwrap();
                let to = match target {
                    Target::Addr(addr) => Some(addr),
                    Target::Name(..) => manner.target,
                };
                if let Some(to) = to {
                    outside.send_to(payload, to).await?;
                }
            }
            came = outside.recv_from(&mut outer) => {
                let (n, from) = came?;
                let Some(client) = client else { continue };
                let packet = socks5::wrap(&Target::Addr(from), &outer[..n]).unwrap();
                // What must be dropped comes first: a fragment, and what is no packet at all.
                let mut fragment = packet.clone();
                fragment[2] = 1;
                for packet in [fragment, vec![0, 0], packet] {
                    relay.send_to(&packet, client).await?;
                }
            }
        }
    }
}

/// Waits for the word to hang up.
async fn until(hung_up: &mut watch::Receiver<bool>) {
    let _ = hung_up.wait_for(|up| *up).await;
}

async fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn serve_http(mut stream: TcpStream, manner: Manner, tell: mpsc::Sender<String>) -> io::Result<()> {
    let mut request = Vec::new();
    while http::head_end(&request).is_none() {
        request.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(request).unwrap();
    let host = text.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
    tell.send(format!("connect {host}")).await.unwrap();
    if let Some(says) = manner.answer_to(host) {
        return answer(&mut stream, says, &manner).await;
    }
    let right = |(user, password): (&str, &str)| {
        use base64::Engine;
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        text.contains(&format!("\r\nProxy-Authorization: Basic {secret}\r\n"))
    };
    if manner.auth.is_some_and(|auth| !right(auth)) {
        let no = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n";
        return answer(&mut stream, no, &manner).await;
    }
    let head = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: test\r\n\r\n".to_vec();
    carry(&mut stream, head, &manner).await
}

/// Says something to the target and reads it back, behind its hello.
async fn speak(stream: &mut TcpStream) {
    let talk = async {
        let mut hello = [0; HELLO.len()];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello, HELLO, "the first byte is the target's");
        stream.write_all(b"what I say").await.unwrap();
        assert_eq!(read::<10>(stream).await.unwrap(), *b"what I say");
    };
    timeout(LIMIT, talk).await.expect("in time");
}

#[tokio::test]
async fn targets_are_reached_by_address_and_by_name() {
    for kind in [ProxyKind::Socks5, ProxyKind::Http] {
        for (auth, dribbles) in [(None, false), (Some(("me", "secret: 1")), false), (None, true)] {
            let mut running = start(kind, Manner { auth, dribbles, ..Manner::default() }).await;
            let dialer = running.dialer(kind, auth);
            for (target, asked) in [
                (Target::of("1.2.3.4", 80), "connect 1.2.3.4:80"),
                (Target::of("[2001:db8::1]", 80), "connect [2001:db8::1]:80"),
                // No such name is known here: it is the proxy's to look up.
                (Target::of("peer.invalid", 6881), "connect peer.invalid:6881"),
            ] {
                let mut stream = dialer.connect(&target).await.unwrap();
                assert_eq!(running.asked.recv().await.as_deref(), Some(asked));
                speak(&mut stream).await;
            }
            assert_eq!(dialer.trouble(), None);
        }
    }
}

#[tokio::test]
async fn each_failure_is_the_proxys_or_the_targets() {
    let socks5 = |code: u8| Some(vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
    let http = |line: &str| Some(format!("HTTP/1.1 {line}\r\nX: y\r\n\r\n<html>").into_bytes());
    use ProxyKind::{Http, Socks5};
    for (kind, auth, with, says, of_target, text) in [
        (Socks5, None, None, socks5(5), true, "the host refused the connection"),
        (Socks5, None, None, socks5(4), true, "the proxy can't reach the host"),
        (Socks5, None, None, socks5(1), true, "the proxy failed"),
        (Socks5, None, None, socks5(2), false, "the proxy's rules forbid it"),
        (Socks5, None, None, socks5(7), false, "the proxy can't do that"),
        (Socks5, None, None, Some(vec![5]), true, "the proxy ended the connection: "),
        (Socks5, None, None, Some(Vec::new()), true, "the proxy ended the connection: "),
        (Socks5, None, None, Some(vec![7; 20]), false, "the answer isn't SOCKS5"),
        (Socks5, Some(("a", "b")), None, None, false, "the proxy wants a user's name and password"),
        (
            Socks5,
            Some(("a", "b")),
            Some(("a", "c")),
            None,
            false,
            "the proxy refuses the user's name and password",
        ),
        (Http, None, None, http("502 Bad Gateway"), true, "the proxy refused: Bad Gateway (502)"),
        (Http, None, None, http("403 Forbidden"), false, "the proxy refused: Forbidden (403)"),
        (Http, None, None, Some(b"HTTP/1.1 200 OK\r\n".to_vec()), false, "the proxy ended the connection: "),
        (Http, None, None, Some(vec![b'a'; 100_000]), false, "the answer isn't HTTP"),
        (Http, Some(("a", "b")), None, None, false, "the proxy wants a user's name and password"),
        (
            Http,
            Some(("a", "b")),
            Some(("a", "c")),
            None,
            false,
            "the proxy refuses the user's name and password",
        ),
    ] {
        let running = start(kind, Manner { auth, says, ..Manner::default() }).await;
        let dialer = running.dialer(kind, with);
        let error = timeout(LIMIT, dialer.connect(&Target::of("a.invalid", 1))).await.unwrap().unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(dialer.trouble().is_some(), !of_target, "{error}");
    }
    let running = start(ProxyKind::Http, Manner::default()).await;
    let error = running.dialer(ProxyKind::Http, None).associate().await.unwrap_err();
    assert_eq!(error.to_string(), "an HTTP proxy carries no packets");
    let dialer = running.dialer(ProxyKind::Http, None);
    dialer.connect(&Target::of("a b", 1)).await.unwrap_err();
    assert_eq!(dialer.trouble(), None);
}

#[tokio::test]
async fn who_never_spoke_may_be_no_proxy_and_who_serves_others_has_rules() {
    use ProxyKind::{Http, Socks5};
    // It takes connections and ends them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let scope = TaskScope::root();
    scope.spawn("no proxy", async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    let target = Target::of("a.invalid", 1);
    for kind in [Socks5, Http] {
        let proxy = Proxy { kind, host: at.ip().to_string(), port: at.port(), auth: None };
        let dialer = Dialer::new(proxy, Sockets::default());
        assert!(matches!(timeout(LIMIT, dialer.connect(&target)).await.unwrap(), Err(ProxyError::Lost(_))));
        assert!(dialer.trouble().is_some_and(|why| why.starts_with("the proxy ended the connection")));
    }
    // Of a proxy by whose rules something goes, a refusal by rule says nothing of itself.
    let forbids = |kind| match kind {
        Socks5 => vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
        Http => b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec(),
    };
    for kind in [Socks5, Http] {
        let running =
            start(kind, Manner { forbids: Some(("no.invalid", forbids(kind))), ..Manner::default() }).await;
        let dialer = running.dialer(kind, None);
        let refused = Target::of("no.invalid", 1);
        dialer.connect(&refused).await.unwrap_err();
        assert!(dialer.trouble().is_some(), "{kind:?}: nothing else went so far");
        dialer.connect(&target).await.unwrap();
        dialer.connect(&refused).await.unwrap_err();
        assert_eq!(dialer.trouble(), None, "{kind:?}");
    }
}

#[tokio::test]
async fn an_address_that_is_silent_takes_no_time_from_the_next() {
    let running = start(ProxyKind::Socks5, Manner::default()).await;
    // A queue that is full: whoever connects there waits.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap().as_socket().unwrap();
    let mut first = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(silent)).await {
        first.push(stream);
    }
    let dialer = running.dialer(ProxyKind::Socks5, None);
    dialer.inner.places.send_replace(vec![silent, running.at]);
    let target = Target::of("a.invalid", 1);
    timeout(LIMIT, dialer.connect(&target)).await.unwrap().unwrap();
    assert_eq!(*dialer.inner.places.borrow(), [running.at, silent], "the one that worked is tried first");
}

#[tokio::test]
async fn a_proxy_that_is_away_is_told_of_until_it_is_back() {
    let running = start(ProxyKind::Socks5, Manner::default()).await;
    let dialer = running.dialer(ProxyKind::Socks5, None);
    let target = Target::of("a.invalid", 1);
    dialer.connect(&target).await.unwrap();
    running.scope.cancel();
    assert!(running.scope.join(LIMIT).await.is_empty());
    assert!(matches!(dialer.connect(&target).await, Err(ProxyError::Unreachable(_))));
    assert!(matches!(dialer.associate().await, Err(ProxyError::Unreachable(_))));
    assert!(dialer.trouble().is_some_and(|trouble| trouble.starts_with("the proxy can't be reached: ")));
    let listener = TcpListener::bind(running.at).await.unwrap();
    let scope = TaskScope::root();
    scope.spawn("proxy", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        std::future::pending::<()>().await;
    });
    timeout(LIMIT, dialer.connect(&target)).await.unwrap().unwrap();
    assert_eq!(dialer.trouble(), None);

    let nowhere = Proxy { kind: ProxyKind::Socks5, host: "proxy.invalid".into(), port: 1, auth: None };
    let dialer = Dialer::new(nowhere, Sockets::default());
    assert!(matches!(dialer.connect(&target).await, Err(ProxyError::Resolve(_))));
    assert!(dialer.trouble().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_says_nothing_is_waited_for_so_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    for kind in [ProxyKind::Socks5, ProxyKind::Http] {
        let proxy = Proxy { kind, host: at.ip().to_string(), port: at.port(), auth: None };
        let begun = tokio::time::Instant::now();
        let connected = Dialer::new(proxy, Sockets::default()).connect(&Target::of("a.invalid", 1)).await;
        assert!(matches!(connected, Err(ProxyError::NoAnswer | ProxyError::NoConnection)), "{connected:?}");
        assert!(begun.elapsed() <= PROXY_ANSWER + PROXY_CONNECT, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn packets_go_through_an_association() {
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = echo.local_addr().unwrap();
    let scope = TaskScope::root();
    scope.spawn("echo", async move {
        let mut buffer = [0; 2048];
        loop {
            let (n, from) = echo.recv_from(&mut buffer).await.unwrap();
            echo.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    for (bound, auth) in
        [(Bound::Plain, None), (Bound::Unspecified, Some(("me", "pw"))), (Bound::EmptyName, None)]
    {
        let manner = Manner { bound, auth, target: Some(at), ..Manner::default() };
        let mut running = start(ProxyKind::Socks5, manner).await;
        let dialer = running.dialer(ProxyKind::Socks5, auth);
        let mut association = timeout(LIMIT, dialer.associate()).await.unwrap().unwrap();
        // It is told nothing of where we are.
        assert_eq!(running.asked.recv().await.as_deref(), Some("associate 0.0.0.0:0"));
        assert!(association.relay().ip().is_loopback());
        let mut buffer = [0; 100];
        for target in [Target::Addr(at), Target::Name("tracker.invalid".into(), 6969)] {
            association.send(&target, b"hello").await.unwrap();
            assert_eq!(running.asked.recv().await, Some(format!("packet {target}")));
            let (n, from) = timeout(LIMIT, association.recv(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((&buffer[..n], from), (&b"hello"[..], Target::Addr(at)));
        }
        // More than there is room for is cut.
        association.send(&Target::Addr(at), &[7; 200]).await.unwrap();
        let (n, _) = timeout(LIMIT, association.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((n, buffer), (100, [7; 100]));
        let long = Target::Name("a".repeat(256), 1);
        assert!(association.send(&long, b"").await.is_err());
        // It ends with its connection, and another can be had.
        running.hang_up.send_replace(true);
        let error = timeout(LIMIT, association.recv(&mut buffer)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        running.hang_up.send_replace(false);
        timeout(LIMIT, dialer.associate()).await.unwrap().unwrap();
    }
}

#[test]
fn proxies_are_read_as_they_are_written() {
    let of = |kind, host: &str, port, auth: Option<(&str, &str)>| {
        let auth = auth.map(|(user, password)| Auth { user: user.into(), password: password.into() });
        Ok(Proxy { kind, host: host.into(), port, auth })
    };
    use ProxyKind::{Http, Socks5};
    for (text, expected) in [
        ("socks5://127.0.0.1:9050", of(Socks5, "127.0.0.1", 9050, None)),
        ("SOCKS5H://proxy.example/", of(Socks5, "proxy.example", 1080, None)),
        ("http://proxy.example", of(Http, "proxy.example", 8080, None)),
        ("http://[2001:db8::1]:3128", of(Http, "2001:db8::1", 3128, None)),
        ("http://[2001:db8::1]", of(Http, "2001:db8::1", 8080, None)),
        ("socks5://me:p%40ss%3a@h:1", of(Socks5, "h", 1, Some(("me", "p@ss:")))),
        ("socks5://me:p@ss@h:1", of(Socks5, "h", 1, Some(("me", "p@ss")))),
        ("socks5://me@h:1", of(Socks5, "h", 1, Some(("me", "")))),
        ("", Err(NoProxy)),
        ("proxy.example:1080", Err(NoProxy)),
        ("https://h:1", Err(NoProxy)),
        ("socks4://h:1", Err(NoProxy)),
        ("socks5://", Err(NoProxy)),
        ("socks5://h:", of(Socks5, "h", 1080, None)),
        ("socks5://h:0", Err(NoProxy)),
        ("socks5://h:65536", Err(NoProxy)),
        ("socks5://h:+1", Err(NoProxy)),
        ("socks5://h:1/path", Err(NoProxy)),
        ("socks5://h h:1", Err(NoProxy)),
        ("socks5://[::1", Err(NoProxy)),
        ("socks5://[h]:1", Err(NoProxy)),
        ("socks5://2001:db8::1:1", Err(NoProxy)),
        ("socks5://:pw@h:1", Err(NoProxy)),
        ("socks5://a%4:b@h:1", Err(NoProxy)),
        ("socks5://a%ff:b@h:1", Err(NoProxy)),
        ("http://a%3ab:c@h:1", Err(NoProxy)),
    ] {
        assert_eq!(Proxy::parse(text), expected, "{text}");
    }
    assert_eq!(Proxy::parse(&format!("socks5://{}:b@h:1", "a".repeat(256))), Err(NoProxy));
    assert_eq!(Proxy::parse(&format!("socks5://{}", "a".repeat(MAX_URL))), Err(NoProxy));
    let proxy = Proxy::parse("socks5://watcher:p%40ss@[::1]:1").unwrap();
    // The password is for the proxy's eyes alone.
    assert_eq!(proxy.to_string(), "socks5://[::1]:1");
    assert!(!format!("{proxy:?}").contains("p@ss") && !format!("{proxy:?}").contains("watcher"));
    assert_eq!(proxy.url(), "socks5h://watcher:p%40ss@[::1]:1");
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(text in "(socks5|http)://([a-z%0-9@:]{0,12}@)?[a-z0-9.\\[\\]:]{0,20}/?") {
        if let Ok(proxy) = Proxy::parse(&text) {
            prop_assert_eq!(Proxy::parse(&proxy.url()), Ok(proxy));
        }
    }
}
