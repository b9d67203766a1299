//! The task against a router of the tests' own on loopback: real packets, real connections.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use super::for_tests::{Entry, Router, Table};
use super::*;

const LIMIT: Duration = Duration::from_secs(20);
const PORT: u16 = 6881;

/// A router that runs.
struct Running {
    scope: TaskScope,
    table: watch::Receiver<Table>,
    setup: Setup,
}

/// How it is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Not,
    /// Takes connections and says nothing.
    Silent,
    /// Sends who asks elsewhere.
    Redirects(SocketAddr),
    /// Never ends an answer.
    Endless,
    /// Answers byte by byte, in chunks.
    Dribbles,
}

/// Sockets of a router, and a task that answers.
async fn start(mut router: Router, orders: bool, broken: Broken) -> Running {
    let here = "127.0.0.1:0";
    let control = UdpSocket::bind(here).await.unwrap();
    let search = UdpSocket::bind(here).await.unwrap();
    let http = TcpListener::bind(here).await.unwrap();
    router.http = http.local_addr().unwrap();
    let (control_port, group) = (control.local_addr().unwrap().port(), search.local_addr().unwrap());
    let scope = TaskScope::root();
    let (tell, table) = watch::channel(router.table.clone());
    // One that takes no orders has nobody at that port.
    let control = orders.then_some(control);
    scope.spawn("router", async move {
        let (mut first, mut second) = ([0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                came = receive_from(control.as_ref(), &mut first) => {
                    let Ok((n, from)) = came else { continue };
                    if let Some(reply) = router.control(from.ip(), &first[..n], now()) {
                        control.as_ref().unwrap().send_to(&reply, from).await.unwrap();
                    }
                }
                came = search.recv_from(&mut second) => {
                    let Ok((n, from)) = came else { continue };
                    if let Some(reply) = router.search(&second[..n]) {
                        search.send_to(&reply, from).await.unwrap();
                    }
                }
                came = http.accept() => serve(&mut router, came.unwrap().0, broken).await,
            }
            tell.send_replace(router.table.clone());
        }
    });
    let routes = Routes { v4: Some(Ipv4Addr::LOCALHOST), v6: None };
    let ports = Ports { tcp: PORT, udp: Some(PORT) };
    let setup = Setup { ports, routes: Arc::new(move || routes), control_port, group };
    Running { scope, table, setup }
}

async fn serve(router: &mut Router, mut stream: TcpStream, broken: Broken) {
    let mut request = Vec::new();
    let whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        (body.len() >= length.map_or(0, |length| length.parse().unwrap())).then_some(text)
    };
    let text = loop {
        if let Some(text) = whole(&request) {
            break text;
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let response = router.http(&text, now());
    let (status, body) = (response.status, response.text());
    let answer = match broken {
        Broken::Silent => return pending().await,
        Broken::Redirects(to) => {
            format!("HTTP/1.1 302 Found\r\nLocation: http://{to}/root.xml\r\nContent-Length: 0\r\n\r\n")
        }
        Broken::Endless => {
            let line = [b'a'; 4096];
            let head = b"HTTP/1.1 200 OK\r\n\r\n";
            let mut sent = stream.write_all(head).await;
            while sent.is_ok() {
                sent = stream.write_all(&line).await;
            }
            return;
        }
        Broken::Dribbles => {
            let chunks: String = body.chars().map(|c| format!("{:x}\r\n{c}\r\n", c.len_utf8())).collect();
            format!("HTTP/1.1 {status} x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        }
        Broken::Not => format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
}

impl Running {
    fn map(&self) -> Arc<PortMapping> {
        PortMapping::start(&self.scope, Sockets::default(), self.setup.clone())
    }

    fn map_from(&self, ours: IpAddr) -> Arc<PortMapping> {
        PortMapping::start(&self.scope, Sockets::new(None, Some(ours)), self.setup.clone())
    }

    async fn until(&self, mapping: &PortMapping, what: impl FnMut(&Status) -> bool) -> Status {
        let mut changed = mapping.changed();
        let status = timeout(LIMIT, changed.wait_for(what)).await.expect("in time").unwrap();
        status.clone()
    }

    async fn until_table(&mut self, what: impl FnMut(&Table) -> bool) -> Table {
        timeout(LIMIT, self.table.wait_for(what)).await.expect("in time").unwrap().clone()
    }
}

fn is_mapped(status: &Status) -> bool {
    status.mappings.len() == 2 && status.mappings.iter().all(|mapping| mapping.address.is_some())
}

#[tokio::test]
async fn ports_are_mapped_while_it_runs_and_no_longer() {
    for (router, orders, broken, method) in [
        (Router::of(Method::Pcp, now()), true, Broken::Not, Method::Pcp),
        (Router::of(Method::NatPmp, now()), true, Broken::Not, Method::NatPmp),
        (Router::of(Method::Upnp, now()), false, Broken::Not, Method::Upnp),
        (Router::of(Method::Upnp, now()), false, Broken::Dribbles, Method::Upnp),
        (
            Router { permanent_only: true, ..Router::of(Method::Upnp, now()) },
            false,
            Broken::Not,
            Method::Upnp,
        ),
    ] {
        let mut running = start(router, orders, broken).await;
        let mapping = running.map();
        let status = running.until(&mapping, is_mapped).await;
        assert!(status.mappings.iter().all(|mapping| mapping.method == method && mapping.external == PORT));
        assert_eq!(status.addresses(), [IpAddr::from([9, 9, 9, 9])]);
        assert_eq!((status, mapping.status().trouble), (mapping.status(), None));
        let table = running.until_table(|table| table.len() == 2).await;
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(table.values().all(|entry| (entry.client, entry.internal) == (local, PORT)));
        assert!(mapping.remove(LIMIT).await, "{method:?}");
        running.until_table(Table::is_empty).await;
        // Once more does nothing.
        assert!(mapping.remove(LIMIT).await);
        running.scope.cancel();
        assert!(running.scope.join(LIMIT).await.is_empty());
    }
}

#[tokio::test]
async fn a_firewall_for_ipv6_is_opened() {
    let Ok(control) = UdpSocket::bind("[::1]:0").await else {
        // A machine without IPv6.
        return;
    };
    let control_port = control.local_addr().unwrap().port();
    let scope = TaskScope::root();
    let mut router = Router::of(Method::Pcp, now());
    let (tell, mut table) = watch::channel(Table::new());
    scope.spawn("router", async move {
        let mut packet = [0; 2048];
        loop {
            let (n, from) = control.recv_from(&mut packet).await.unwrap();
            if let Some(reply) = router.control(from.ip(), &packet[..n], now()) {
                control.send_to(&reply, from).await.unwrap();
            }
            tell.send_replace(router.table.clone());
        }
    });
    let routes = Routes { v4: None, v6: Some(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0)) };
    let ports = Ports { tcp: PORT, udp: None };
    let routes = Arc::new(move || routes);
    let mapping = PortMapping::start(
        &scope,
        Sockets::default(),
        Setup { ports, routes, control_port, group: ssdp::GROUP },
    );
    let mut changed = mapping.changed();
    let status = timeout(LIMIT, changed.wait_for(|status| !status.mappings.is_empty()))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(status.mappings[0].address, Some(Ipv6Addr::LOCALHOST.into()));
    assert_eq!(status.port(Protocol::Tcp), None, "no port of IPv4's");
    assert!(mapping.remove(LIMIT).await);
    timeout(LIMIT, table.wait_for(Table::is_empty)).await.unwrap().unwrap();
}

#[tokio::test]
async fn peers_are_sent_to_the_address_that_we_listen_at() {
    let ours = IpAddr::from([127, 0, 0, 5]);
    for (method, orders) in [(Method::Pcp, true), (Method::NatPmp, true), (Method::Upnp, false)] {
        let mut running = start(Router::of(method, now()), orders, Broken::Not).await;
        let mapping = running.map_from(ours);
        running.until(&mapping, is_mapped).await;
        let table = running.until_table(|table| table.len() == 2).await;
        assert!(table.values().all(|entry| entry.client == ours), "{method:?}: {table:?}");
        assert!(mapping.remove(LIMIT).await);
        running.until_table(Table::is_empty).await;
    }
    // In a family in which we don't listen nobody is asked.
    for elsewhere in ["::", "::1"] {
        let running = start(Router::of(Method::Pcp, now()), true, Broken::Not).await;
        let mapping = running.map_from(elsewhere.parse().unwrap());
        running.until(&mapping, |status| status.trouble.as_deref() == Some("there is no router")).await;
        assert!(mapping.remove(LIMIT).await);
    }
}

#[tokio::test]
async fn dropping_the_handle_takes_them_back_as_well() {
    let mut running = start(Router::of(Method::NatPmp, now()), true, Broken::Not).await;
    let mapping = running.map();
    running.until(&mapping, is_mapped).await;
    drop(mapping);
    running.until_table(Table::is_empty).await;
}

#[tokio::test]
async fn another_port_is_told_when_ours_is_taken() {
    for (method, orders) in [(Method::Pcp, true), (Method::Upnp, false)] {
        let mut router = Router::of(method, now());
        router.table.insert((Protocol::Tcp, PORT), Entry::of("192.168.1.9", 1));
        let running = start(router, orders, Broken::Not).await;
        let mapping = running.map();
        let status = running.until(&mapping, is_mapped).await;
        let port = status.port(Protocol::Tcp).unwrap();
        assert_ne!(port, PORT);
        let same = |status: &Status| status.port(Protocol::Udp) == Some(port) && status.mappings.len() == 2;
        running.until(&mapping, same).await;
        assert!(mapping.remove(LIMIT).await);
        assert_eq!(running.table.borrow().len(), 1, "the other's is left");
    }
}

#[tokio::test]
async fn a_router_that_is_broken_holds_nothing_up() {
    // Who is called must be the router, wherever it sends us.
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = elsewhere.local_addr().unwrap();
    // Nobody is at the port for orders, and that is known at once; the rest takes the search's time.
    let refused = [Broken::Redirects(at), Broken::Endless].map(|broken| async move {
        let running = start(Router::of(Method::Upnp, now()), false, broken).await;
        let mapping = running.map();
        let status = running.until(&mapping, |status| status.trouble.is_some()).await;
        let expected = "PCP and NAT-PMP: the router takes no such orders; UPnP: no router is connected";
        assert_eq!(status.trouble.as_deref(), Some(expected), "{broken:?}");
        assert!(mapping.remove(LIMIT).await);
    });
    futures_util::future::join_all(refused).await;
    tokio::select! {
        biased;
        _ = elsewhere.accept() => panic!("it was followed"),
        () = std::future::ready(()) => {}
    }
    // One that is silent is asked still; nobody waits for it longer than he wants to.
    let running = start(Router::of(Method::Upnp, now()), false, Broken::Silent).await;
    let mapping = running.map();
    assert_eq!(mapping.status(), Status::default());
    assert!(!is_mapped(&mapping.status()));
    mapping.remove(Duration::from_millis(50)).await;
    running.scope.cancel();
    assert!(running.scope.join(LIMIT).await.is_empty());
}

#[tokio::test]
async fn another_router_is_asked_when_there_is_another() {
    let first = start(Router::of(Method::Pcp, now()), true, Broken::Not).await;
    let mut second = start(Router::of(Method::Pcp, now()), true, Broken::Not).await;
    let (tell, routes) = watch::channel(Routes::default());
    let mut setup = first.setup.clone();
    setup.routes = Arc::new(move || *routes.borrow());
    let mapping = PortMapping::start(&first.scope, Sockets::default(), setup.clone());
    first.until(&mapping, |status| status.trouble.as_deref() == Some("there is no router")).await;
    tell.send_replace(Routes { v4: Some(Ipv4Addr::LOCALHOST), v6: None });
    mapping.refresh();
    first.until(&mapping, is_mapped).await;
    // Then it is gone, and what was mapped counts no more.
    tell.send_replace(Routes::default());
    mapping.refresh();
    first.until(&mapping, |status| status.mappings.is_empty()).await;
    assert!(mapping.remove(LIMIT).await, "there is nobody to take them back from");

    // To look again is to ask again.
    let mapping = second.map();
    second.until(&mapping, is_mapped).await;
    mapping.refresh();
    assert!(mapping.remove(LIMIT).await);
    second.until_table(Table::is_empty).await;
}
