//! Trackers of the tests' own, on loopback: they answer, refuse, hang, or aren't there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::{Instant, timeout};

use super::*;
use crate::discovery::{Crypto, PeerSource, Progress};

/// Only a bug takes this long.
const LONG: Duration = Duration::from_secs(60);

/// What a tracker of the tests does with its announces, and what it heard: the event of each.
struct Heard(mpsc::UnboundedReceiver<String>);

impl Heard {
    async fn next(&mut self) -> String {
        timeout(LONG, self.0.recv()).await.unwrap().unwrap()
    }
}

struct World {
    root: TaskScope,
}

impl World {
    fn new() -> Self {
        Self { root: TaskScope::root() }
    }

    /// Answers each announce with `body` and its status line; gives its URL.
    async fn http(&self, status: &'static str, body: &'static [u8]) -> (String, Heard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/announce?passkey=1", listener.local_addr().unwrap());
        let (heard, events) = mpsc::unbounded_channel();
        self.root.spawn("http tracker", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                assert!(request.starts_with("GET /announce?passkey=1&info_hash=%01%01"), "{request}");
                let event = request.split("&event=").nth(1).unwrap_or("none ");
                heard.send(event.split([' ', '&']).next().unwrap().to_owned()).ok();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(&[head.as_bytes(), body].concat()).await.ok();
            }
        });
        (url, Heard(events))
    }

    /// Answers with one peer; gives its URL. The first `deaf` packets are lost.
    async fn udp(&self, bind: &str, peer: &[u8], deaf: usize) -> (String, Heard) {
        let socket = UdpSocket::bind(bind).await.unwrap();
        let url = format!("udp://{}/announce?k", socket.local_addr().unwrap());
        let (heard, events) = mpsc::unbounded_channel();
        let peer = peer.to_vec();
        self.root.spawn("udp tracker", async move {
            let mut lost = 0;
            loop {
                let mut packet = [0; 2048];
                let (len, from) = socket.recv_from(&mut packet).await.unwrap();
                let packet = &packet[..len];
                if lost < deaf {
                    lost += 1;
                    continue;
                }
                let transaction = &packet[12..16];
                // Forged: another transaction; then rubbish.
                let forged = [&[0, 0, 0, 3, 9, 9, 9, 9][..], b"forged"].concat();
                socket.send_to(&forged, from).await.unwrap();
                socket.send_to(b"x", from).await.unwrap();
                let answer = if len == 16 {
                    [&[0; 4][..], transaction, &[5; 8]].concat()
                } else {
                    assert_eq!(&packet[..8], &[5; 8], "the connection id we gave");
                    assert_eq!(&packet[98..], b"\x02\x0b/announce?k");
                    heard
                        .send(["none", "completed", "started", "stopped"][packet[83] as usize].to_owned())
                        .ok();
                    [&[0, 0, 0, 1][..], transaction, &[0, 0, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2], &peer].concat()
                };
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        (url, Heard(events))
    }

    /// Takes connections and never says a word.
    async fn hung(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        self.root.spawn("hung tracker", async move {
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept().await.unwrap());
            }
        });
        url
    }

    /// Takes packets and never says a word.
    async fn hung_udp(&self) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let url = format!("udp://{}", socket.local_addr().unwrap());
        self.root.spawn("hung tracker", async move {
            std::future::pending::<()>().await;
            drop(socket);
        });
        url
    }

    fn start(&self, tiers: &[&[&str]], private: bool) -> (Trackers, mpsc::Receiver<FoundPeers>) {
        let http = http_clients(&Sockets::default());
        self.start_with(tiers, TrackerOptions { private, reach: Reach::Any, ..TrackerOptions::new(http) })
    }

    fn start_with(
        &self,
        tiers: &[&[&str]],
        options: TrackerOptions,
    ) -> (Trackers, mpsc::Receiver<FoundPeers>) {
        let (found, peers) = mpsc::channel(8);
        let tiers = tiers.iter().map(|tier| tier.iter().map(|url| (*url).to_owned()).collect()).collect();
        let announce =
            Announce { info_hash: [1; 20], peer_id: [2; 20], port: 6881, key: 7, crypto: Crypto::None };
        let progress = Arc::new(|| Progress { uploaded: 0, downloaded: 0, left: 9 });
        (Trackers::start(&self.root, tiers, announce, progress, found, options), peers)
    }
}

/// The port where nobody is.
async fn dead() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn until(trackers: &Trackers, what: impl Fn(&[TrackerStatus]) -> bool) -> Vec<TrackerStatus> {
    let watch = async {
        loop {
            let status = trackers.status();
            if what(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, watch).await.unwrap()
}

const ONE_PEER: &[u8] = b"d8:completei2e10:incompletei1e8:intervali1800e5:peers6:\x0a\0\0\x01\x1a\xe1e";

#[tokio::test]
async fn the_first_peer_comes_at_once_among_nine_dead_trackers() {
    let world = World::new();
    let (good, mut heard) = world.http("200 OK", ONE_PEER).await;
    let mut urls = vec![
        world.hung().await,
        world.hung().await,
        world.hung_udp().await,
        world.hung_udp().await,
        world.http("500 No", b"<html>").await.0,
        format!("http://{}/a", dead().await),
        format!("udp://{}", dead().await),
        "wss://127.0.0.1/x".to_owned(),
        "not a url".to_owned(),
    ];
    urls.push(good.clone());
    let tiers: Vec<Vec<&str>> = urls.iter().map(|url| vec![url.as_str()]).collect();
    let tiers: Vec<&[&str]> = tiers.iter().map(Vec::as_slice).collect();
    let begun = Instant::now();
    let (trackers, mut peers) = world.start(&tiers, false);
    let found = timeout(LONG, peers.recv()).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(found.source, PeerSource::Tracker);
    assert_eq!(found.addrs, ["10.0.0.1:6881".parse().unwrap()]);
    assert_eq!(heard.next().await, "started");

    let status = until(&trackers, |s| {
        s.iter().filter(|s| s.state == TrackerState::Announcing).count() == 4
            && s.iter().all(|s| s.state != TrackerState::Idle)
    })
    .await;
    assert_eq!(status.len(), 10);
    assert_eq!((status[9].seeders, status[9].leechers), (Some(2), Some(1)));
    assert!(status[9].next.unwrap() > std::time::Instant::now() + Duration::from_secs(1700));
    assert_eq!(status[4].last_error.as_deref(), Some("HTTP status 500"));
    assert!(status[5].last_error.as_deref().unwrap().contains("refused"), "{:?}", status[5]);
    assert!(status[6].last_error.as_deref().unwrap().contains("refused"), "{:?}", status[6]);
    assert_eq!((status[7].state, status[8].state), (TrackerState::Disabled, TrackerState::Disabled));

    // Only the one that knows us is told, and the hung ones hold nothing up.
    assert!(trackers.stop(LONG).await);
    assert_eq!(heard.next().await, "stopped");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(trackers.stop(LONG).await, "again is nothing");
    assert!(!trackers.add(&good, Reach::Any));
    world.root.cancel();
    assert!(world.root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn udp_over_both_families_with_all_events() {
    let world = World::new();
    let (url4, mut heard4) = world.udp("127.0.0.1:0", &[10, 0, 0, 1, 0, 80], 0).await;
    let (trackers, mut peers) = world.start(&[&[&url4, &url4]], false);
    assert_eq!(timeout(LONG, peers.recv()).await.unwrap().unwrap().addrs, ["10.0.0.1:80".parse().unwrap()]);
    assert_eq!(heard4.next().await, "started");
    let status = until(&trackers, |s| s[0].state == TrackerState::Working).await;
    assert_eq!((status.len(), status[0].seeders, status[0].leechers), (1, Some(2), Some(1)));
    trackers.completed();
    trackers.completed();
    assert_eq!(heard4.next().await, "completed");

    let v6 = UdpSocket::bind("[::1]:0").await.is_ok();
    if v6 {
        let (url6, mut heard6) = world.udp("[::1]:0", &[[0x20; 16].as_slice(), &[0, 80]].concat(), 0).await;
        assert!(trackers.add(&url6, Reach::Any));
        assert!(!trackers.add(&url6, Reach::Any));
        assert_eq!(heard6.next().await, "started");
        timeout(LONG, async { while !peers.recv().await.unwrap().addrs[0].is_ipv6() {} }).await.unwrap();
    }
    assert!(trackers.stop(LONG).await);
    assert_eq!(heard4.next().await, "stopped");
}

#[tokio::test]
async fn a_host_with_both_families_is_announced_to_by_both() {
    let world = World::new();
    let Ok(probe) = UdpSocket::bind("[::1]:0").await else { return };
    let addrs: Vec<_> = tokio::net::lookup_host(("localhost", 1)).await.unwrap().collect();
    if !addrs.iter().any(SocketAddr::is_ipv6) || !addrs.iter().any(SocketAddr::is_ipv4) {
        return;
    }
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let v6 = [[0x20; 16].as_slice(), &[0, 80]].concat();
    let (_, mut heard6) = world.udp(&format!("[::1]:{port}"), &v6, 0).await;
    let (_, mut heard4) = world.udp(&format!("127.0.0.1:{port}"), &[10, 0, 0, 1, 0, 80], 0).await;
    let (trackers, mut peers) = world.start(&[&[&format!("udp://localhost:{port}/announce?k")]], false);
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(timeout(LONG, peers.recv()).await.unwrap().unwrap().addrs);
    }
    assert!(found.iter().any(SocketAddr::is_ipv6) && found.iter().any(SocketAddr::is_ipv4));
    assert_eq!((heard4.next().await.as_str(), heard6.next().await.as_str()), ("started", "started"));
    until(&trackers, |s| s[0].state == TrackerState::Working).await;
    assert!(trackers.stop(LONG).await);
    assert_eq!((heard4.next().await.as_str(), heard6.next().await.as_str()), ("stopped", "stopped"));
}

#[tokio::test]
async fn a_lost_udp_packet_is_sent_again_after_three_seconds() {
    let world = World::new();
    let (url, mut heard) = world.udp("127.0.0.1:0", &[10, 0, 0, 1, 0, 80], 1).await;
    let begun = Instant::now();
    let (_trackers, _peers) = world.start(&[&[&url]], false);
    assert_eq!(heard.next().await, "started");
    assert!(begun.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn stop_is_bounded_when_the_tracker_hangs() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let (trackers, mut peers) = world.start(&[&[&url]], false);
    let (mut stream, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", ONE_PEER.len());
    stream.write_all(&[head.as_bytes(), ONE_PEER].concat()).await.unwrap();
    timeout(LONG, peers.recv()).await.unwrap().unwrap();
    // It knows us now, and answers no more.
    let begun = Instant::now();
    assert!(!trackers.stop(Duration::from_millis(50)).await);
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(world.root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn private_tiers_are_strict() {
    let world = World::new();
    let (refusing, mut refused) =
        world.http("400 Bad", b"d14:failure reason12:unregistered8:retry in5:nevere").await;
    let (good, mut heard) = world.http("200 OK", ONE_PEER).await;
    let (spare, mut unheard) = world.http("200 OK", ONE_PEER).await;
    let (trackers, mut peers) = world.start(&[&[&refusing], &[&good], &[&spare]], true);
    timeout(LONG, peers.recv()).await.unwrap().unwrap();
    assert_eq!((refused.next().await.as_str(), heard.next().await.as_str()), ("started", "started"));
    assert!(!trackers.add("http://127.0.0.1:1/x", Reach::Any), "a private torrent takes no others");
    let status = until(&trackers, |s| s[1].state == TrackerState::Working).await;
    assert_eq!(status[0].state, TrackerState::Disabled);
    assert_eq!(status[0].last_error.as_deref(), Some("refused: unregistered"));
    assert_eq!(status[2].state, TrackerState::Idle);
    trackers.completed();
    assert_eq!(heard.next().await, "completed");
    assert!(trackers.stop(LONG).await);
    assert_eq!(heard.next().await, "stopped");
    assert!(unheard.0.try_recv().is_err() && refused.0.try_recv().is_err());
}

#[tokio::test]
async fn a_full_channel_holds_the_tracker_and_not_the_end() {
    let world = World::new();
    let (url, mut heard) = world.http("200 OK", ONE_PEER).await;
    let (found, mut peers) = mpsc::channel(1);
    found.send(FoundPeers { source: PeerSource::Magnet, addrs: Vec::new() }).await.unwrap();
    let announce =
        Announce { info_hash: [1; 20], peer_id: [2; 20], port: 6881, key: 7, crypto: Crypto::None };
    let http = http_clients(&Sockets::default());
    let options = TrackerOptions { reach: Reach::Any, ..TrackerOptions::new(http) };
    let tiers = vec![vec![url]];
    let trackers = Trackers::start(&world.root, tiers, announce, Arc::new(Progress::default), found, options);
    assert_eq!(heard.next().await, "started");
    assert_eq!(trackers.status()[0].state, TrackerState::Announcing);
    assert!(trackers.stop(LONG).await);
    peers.close();
    while peers.recv().await.is_some_and(|p| p.source != PeerSource::Magnet) {}
}

#[tokio::test]
async fn answers_are_bounded_and_redirects_too() {
    let world = World::new();
    static HUGE: [u8; (1 << 20) + 1] = [b'l'; (1 << 20) + 1];
    let (huge, _heard) = world.http("200 OK", &HUGE).await;
    let (looped, _heard2) =
        world.http("302 Found\r\nLocation: /announce?passkey=1&info_hash=%01%01", b"").await;
    let (trackers, _peers) = world.start(&[&[&huge, &looped]], false);
    let status = until(&trackers, |s| s.iter().all(|s| s.state == TrackerState::Failed)).await;
    let errors: Vec<_> = status.iter().map(|s| s.last_error.as_deref().unwrap()).collect();
    assert_eq!(errors, ["the answer is larger than 1048576 bytes", "it redirects too often"]);
}

#[tokio::test]
async fn too_many_trackers_and_odd_urls() {
    let world = World::new();
    let (trackers, _peers) = world.start(&[], false);
    for (url, why) in [
        ("http://", "not a URL"),
        ("udp://127.0.0.1", "port"),
        ("udp:///x", "host"),
        ("ftp://127.0.0.1/x", "ftp is not supported"),
        (&format!("http://127.0.0.1/{}", "x".repeat(5000)), "too long"),
        (&format!("udp://127.0.0.1:1/{}", "x".repeat(1500)), "too long"),
    ] {
        assert!(!trackers.add(url, Reach::Any));
        let status = trackers.status().pop().unwrap();
        assert!(status.last_error.as_deref().unwrap().contains(why), "{status:?}");
    }
    assert!(!trackers.add("  ", Reach::Any));
    for n in 0..200 {
        trackers.add(&format!("bad://{n}"), Reach::Any);
    }
    assert_eq!(trackers.status().len(), MAX_TRACKERS);
    assert!(trackers.stop(LONG).await, "nothing to tell is told at once");
}

#[tokio::test]
async fn trackers_in_the_local_network_are_for_the_user_to_name() {
    let world = World::new();
    let (http, mut heard) = world.http("200 OK", ONE_PEER).await;
    let (udp, mut heard_udp) = world.udp("127.0.0.1:0", &[10, 0, 0, 1, 0x1a, 0xe1], 0).await;
    let by_name = |url: &str| url.replace("127.0.0.1", "localhost");
    let urls = [http.clone(), by_name(&http), udp.clone(), by_name(&udp)];
    let tiers: Vec<Vec<&str>> = urls.iter().map(|url| vec![url.as_str()]).collect();
    let tiers: Vec<&[&str]> = tiers.iter().map(Vec::as_slice).collect();

    // The torrent named them: nobody is called, and the user learns what to do.
    let clients = http_clients(&Sockets::default());
    let (trackers, _peers) = world.start_with(&tiers, TrackerOptions::new(clients.clone()));
    let status = until(&trackers, |s| s.iter().all(|s| s.state == TrackerState::Failed)).await;
    for tracker in &status {
        assert_eq!(
            tracker.last_error.as_deref(),
            Some("its host has a private address; use --allow-private-hosts if that is meant"),
            "{}",
            tracker.url
        );
    }
    assert!(heard.0.try_recv().is_err() && heard_udp.0.try_recv().is_err());
    // Then somebody named two of them who may.
    for url in [&urls[0], &urls[2], &urls[0], &"http://127.0.0.1:1/unknown".to_owned()] {
        trackers.widen(url);
    }
    let done = |s: &[TrackerStatus]| [0, 2].iter().all(|n| s[*n].state == TrackerState::Working);
    let status = until(&trackers, done).await;
    assert_eq!((status[1].state, status[3].state), (TrackerState::Failed, TrackerState::Failed));
    assert_eq!((heard.next().await.as_str(), heard_udp.next().await.as_str()), ("started", "started"));
    assert!(trackers.stop(LONG).await);
    assert_eq!((heard.next().await.as_str(), heard_udp.next().await.as_str()), ("stopped", "stopped"));

    // The user named two of them.
    let named = vec![urls[1].clone(), urls[2].clone()];
    let (trackers, _peers) =
        world.start_with(&tiers, TrackerOptions { named, ..TrackerOptions::new(clients) });
    let done = |s: &TrackerStatus| matches!(s.state, TrackerState::Working | TrackerState::Failed);
    let status = until(&trackers, |s| s.iter().all(done)).await;
    let working: Vec<bool> = status.iter().map(|s| s.state == TrackerState::Working).collect();
    assert_eq!(working, [false, true, true, false]);
    assert_eq!((heard.next().await.as_str(), heard_udp.next().await.as_str()), ("started", "started"));
    assert!(trackers.stop(LONG).await);
    world.root.cancel();
    assert!(world.root.join(LONG).await.is_empty());
}
