//! The node on real sockets of loopback: with others of its kind, and with the `mainline` crate's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use mainline::Testnet;
use mainline::async_dht::AsyncDht;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::discovery::Crypto;
use crate::net::sockets::Sockets;

/// Where a node of the tests is bound, by [`Family::index`].
type Bind = [Option<IpAddr>; 2];

const LONG: Duration = Duration::from_secs(60);
const LOOPBACK4: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
const ONLY4: Bind = [LOOPBACK4, None];
const LOOPBACK6: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));

/// The crate waits for its threads, so it gets one.
async fn aside<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, built) = oneshot::channel();
    std::thread::Builder::new().spawn(move || done.send(what()).map_err(drop).unwrap()).unwrap();
    built.await.unwrap()
}

/// Nodes of the crate that know each other.
async fn testnet(nodes: usize) -> Testnet {
    aside(move || Testnet::builder(nodes).build().unwrap()).await
}

/// One of the crate, that only asks.
async fn theirs(bootstrap: &[String]) -> AsyncDht {
    let bootstrap: Vec<_> = bootstrap.to_vec();
    aside(move || {
        let mut builder = mainline::Dht::builder();
        builder.bootstrap(&bootstrap).bind_address(Ipv4Addr::LOCALHOST);
        builder.build().unwrap().as_async()
    })
    .await
}

fn by(bootstrap: &[String]) -> DhtOptions {
    DhtOptions { bootstrap: Some(bootstrap.to_vec()), ..DhtOptions::default() }
}

/// A port of its own.
fn bound(bind: Bind) -> Arc<SharedUdp> {
    let [v4, v6] = bind.map(|ip| Some(Sockets::default().udp(SocketAddr::new(ip?, 0)).unwrap()));
    SharedUdp::new(v4, v6)
}

/// A node with a port of its own.
fn start(root: &TaskScope, options: DhtOptions, bind: Bind, keep: Option<Arc<dyn Keep>>) -> Dht {
    let udp = bound(bind);
    let dht = Dht::start(root, options, keep, udp.clone());
    udp.run(root);
    dht
}

/// On IPv4, not kept.
fn loopback(root: &TaskScope, bootstrap: &[String]) -> Dht {
    start(root, by(bootstrap), ONLY4, None)
}

fn announce(info_hash: [u8; 20], port: u16) -> Announce {
    Announce { info_hash, peer_id: [0; 20], port, key: 0, crypto: Crypto::None }
}

/// Nodes of ours, each entering by the first.
async fn ours(root: &TaskScope, count: usize, bind: Bind) -> (Vec<Dht>, Vec<String>) {
    let first = start(root, DhtOptions { serve: true, ..by(&[]) }, bind, None);
    let entries = Family::BOTH.into_iter().filter_map(|family| first.local_addr(family));
    let entries: Vec<_> = entries.map(|addr| addr.to_string()).collect();
    let options = DhtOptions { serve: true, ..by(&entries) };
    let mut nodes = vec![first];
    nodes.extend((1..count).map(|_| start(root, options.clone(), bind, None)));
    for node in &nodes {
        until(node, |status| {
            let enough = count.min(8) - 1;
            let of = |bound: Option<IpAddr>, nodes| bound.is_none() || nodes >= enough;
            match status {
                DhtStatus::Running { nodes, nodes6, .. } => of(bind[0], *nodes) && of(bind[1], *nodes6),
                _ => false,
            }
        })
        .await;
    }
    (nodes, entries)
}

async fn until(dht: &Dht, is: impl Fn(&DhtStatus) -> bool) -> DhtStatus {
    let mut status = dht.shared.status.subscribe();
    let waited = timeout(LONG, status.wait_for(|status| is(status))).await;
    match waited {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("it stays at {:?}", dht.status()),
    }
}

/// Follows until something is found.
async fn first_found(dht: &Dht, root: &TaskScope, announce: Announce) -> Vec<SocketAddr> {
    let (found, mut peers) = mpsc::channel(4);
    let following = dht.follow(root, announce, found);
    following.want_peers(true);
    let found = timeout(LONG, peers.recv()).await.unwrap().unwrap();
    assert_eq!(found.source, PeerSource::Dht);
    found.addrs
}

/// Waits until a node of the crate finds a peer of `info_hash`.
async fn found_by_theirs(node: &AsyncDht, info_hash: [u8; 20]) -> Vec<SocketAddr> {
    let known = async {
        loop {
            if let Some(found) = node.get_peers(mainline::Id::from(info_hash)).next().await {
                return found.into_iter().map(SocketAddr::V4).collect();
            }
        }
    };
    timeout(LONG, known).await.unwrap()
}

#[test]
fn searches_grow_rare_unless_peers_are_wanted() {
    for (wanted, empty, seconds) in [
        (true, 1, 5),
        (true, 2, 10),
        (true, 4, 40),
        (true, 5, 60),
        (true, u32::MAX, 60),
        (false, 1, 5),
        (false, 6, 160),
        (false, 50, 900),
        (true, 0, 300),
        (false, 0, 900),
    ] {
        assert_eq!(pause(wanted, empty).as_secs(), seconds, "{wanted} {empty}");
    }
}

#[tokio::test]
async fn announced_among_theirs_found_by_us_and_by_them() {
    let testnet = testnet(10).await;
    let root = TaskScope::root();
    let [one, two] = [1, 2].map(|_| loopback(&root, &testnet.bootstrap));
    let hash = [7; 20];

    // Ours announces itself; one of theirs and one of ours find it.
    let (found, _own) = mpsc::channel(4);
    let _first = one.follow(&root, announce(hash, 45_555), found);
    let peer: SocketAddr = "127.0.0.1:45555".parse().unwrap();
    assert_eq!(found_by_theirs(&testnet.nodes[0].clone().as_async(), hash).await, [peer]);
    let (found, mut peers) = mpsc::channel(4);
    let second = two.follow(&root, announce(hash, 0), found);
    second.want_peers(true);
    let found = timeout(LONG, peers.recv()).await.unwrap().unwrap();
    assert_eq!((found.source, found.addrs), (PeerSource::Dht, vec![peer]));
    assert!(one.local_addr(Family::V4).unwrap().ip().is_loopback());
    assert_eq!(one.local_addr(Family::V6), None);
    until(&two, |status| matches!(status, DhtStatus::Running { nodes: 1.., read_only: true, .. })).await;

    // One of theirs announces itself; ours finds it.
    let hash = [8; 20];
    let other = theirs(&testnet.bootstrap).await;
    timeout(LONG, other.announce_peer(mainline::Id::from(hash), Some(45_556))).await.unwrap().unwrap();
    assert_eq!(first_found(&two, &root, announce(hash, 0)).await, ["127.0.0.1:45556".parse().unwrap()]);

    // The handle's drop ends one, the scope's cancel all.
    drop(second);
    while timeout(LONG, peers.recv()).await.unwrap().is_some() {}
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
    assert_eq!(two.status(), DhtStatus::Starting);
}

#[tokio::test]
async fn who_finds_only_himself_has_found_nobody() {
    let testnet = testnet(10).await;
    let root = TaskScope::root();
    let dht = loopback(&root, &testnet.bootstrap);
    let hash = [9; 20];
    let port = Port { number: 45_558, mapped: false };
    let (found, mut peers) = mpsc::channel(4);
    let search = async |announced: u16, ours: &Ours| {
        let searched = search(&dht.commands, announce(hash, announced), (Some(port), ours), &found);
        timeout(LONG, searched).await.unwrap().unwrap()
    };
    let nobody = Ours::default();
    search(45_558, &nobody).await;
    assert_eq!(found_by_theirs(&testnet.nodes[0].clone().as_async(), hash).await.len(), 1);
    // It is found, until we know that this is ourselves; whether it is our port or the one that the router shows for it.
    assert_eq!(search(45_558, &nobody).await, 1);
    assert_eq!(peers.recv().await.unwrap().addrs, ["127.0.0.1:45558".parse().unwrap()]);
    let ourselves = Ours::new(vec!["127.0.0.1".parse().unwrap()]);
    assert_eq!(search(45_558, &ourselves).await, 0);
    assert_eq!(search(1, &ourselves).await, 0);
    assert!(peers.try_recv().is_err());
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn theirs_announce_and_search_among_ours() {
    let root = TaskScope::root();
    let (nodes, entries) = ours(&root, 8, ONLY4).await;
    let [one, two] = [theirs(&entries).await, theirs(&entries).await];
    let hash = [7; 20];
    let id = mainline::Id::from(hash);
    timeout(LONG, one.announce_peer(id, Some(45_557))).await.unwrap().unwrap();
    let peer: SocketAddr = "127.0.0.1:45557".parse().unwrap();
    assert_eq!(found_by_theirs(&two, hash).await, [peer]);
    assert_eq!(first_found(&nodes[5], &root, announce(hash, 0)).await, [peer]);
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn twenty_of_ours_find_each_other_in_both_families() {
    let root = TaskScope::root();
    if Sockets::default().udp("[::1]:0".parse().unwrap()).is_err() {
        eprintln!("skipped: no IPv6 on loopback");
        return;
    }
    let (nodes, entries) = ours(&root, 20, [LOOPBACK4, LOOPBACK6]).await;
    let hash = [7; 20];
    let (found, _own) = mpsc::channel(4);
    let _following = nodes[3].follow(&root, announce(hash, 45_558), found);
    let wanted: HashSet<SocketAddr> =
        ["127.0.0.1:45558", "[::1]:45558"].map(|addr| addr.parse().unwrap()).into();
    // By each alone, then by both.
    for (bind, peer) in [(ONLY4, "127.0.0.1:45558"), ([None, LOOPBACK6], "[::1]:45558")] {
        let one = start(&root, by(&entries), bind, None);
        assert_eq!(first_found(&one, &root, announce(hash, 0)).await, [peer.parse().unwrap()]);
    }
    let (found, mut peers) = mpsc::channel(4);
    let following = nodes[17].follow(&root, announce(hash, 0), found);
    following.want_peers(true);
    let mut seen = HashSet::new();
    while seen != wanted {
        seen.extend(timeout(LONG, peers.recv()).await.unwrap().unwrap().addrs);
    }
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

/// Keeps in memory.
#[derive(Default)]
struct Kept {
    bytes: watch::Sender<Option<Vec<u8>>>,
    loads: AtomicUsize,
}

impl Keep for Kept {
    fn load(&self) -> Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send + '_>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { self.bytes.borrow().clone() })
    }

    fn store(&self, bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        assert!(bytes.len() <= saved::SIZE_MAX);
        self.bytes.send_replace(Some(bytes));
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn a_restart_without_entries_finds_peers() {
    let root = TaskScope::root();
    let (nodes, entries) = ours(&root, 6, ONLY4).await;
    let hash = [7; 20];
    let (found, _own) = mpsc::channel(4);
    let _following = nodes[2].follow(&root, announce(hash, 45_559), found);
    let kept = Arc::new(Kept::default());
    let peer: SocketAddr = "127.0.0.1:45559".parse().unwrap();
    let before = start(&root, by(&entries), ONLY4, Some(kept.clone()));
    assert_eq!(first_found(&before, &root, announce(hash, 0)).await, [peer]);
    before.stop();
    let stored = timeout(LONG, async { kept.bytes.subscribe().wait_for(Option::is_some).await.is_ok() });
    assert!(stored.await.unwrap());
    // Without a way in, but with what is kept.
    let after = start(&root, by(&[]), ONLY4, Some(kept.clone()));
    assert_eq!(first_found(&after, &root, announce(hash, 0)).await, [peer]);
    assert_eq!(kept.loads.load(Ordering::Relaxed), 2);
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn a_named_node_is_a_way_in() {
    let root = TaskScope::root();
    let (nodes, _) = ours(&root, 3, ONLY4).await;
    let addr = nodes[1].local_addr(Family::V4).unwrap();
    let [by_peer, by_torrent] = [1, 2].map(|_| loopback(&root, &[]));
    by_peer.add_node(addr);
    let named = vec![("::1".into(), 1), (addr.ip().to_string(), addr.port())];
    // From the web it may not name what is here.
    by_torrent.add_nodes(named.clone(), Reach::Public);
    by_torrent.add_nodes(named, Reach::Any);
    for dht in [by_peer, by_torrent] {
        until(&dht, |status| matches!(status, DhtStatus::Running { nodes: 3, .. })).await;
    }
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn the_port_that_packets_come_from_is_announced_where_that_is_ours() {
    let root = TaskScope::root();
    let (nodes, entries) = ours(&root, 3, ONLY4).await;
    let dht = start(&root, DhtOptions { implied: true, ..by(&entries) }, ONLY4, None);
    let (found, _own) = mpsc::channel(4);
    // The port that is said is not the one that counts.
    let _following = dht.follow(&root, announce([7; 20], 1), found);
    let peers = first_found(&nodes[2], &root, announce([7; 20], 0)).await;
    assert_eq!(peers, [dht.local_addr(Family::V4).unwrap()]);
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn a_blocked_node_is_never_spoken_to() {
    let root = TaskScope::root();
    let silent = Sockets::default().udp("127.0.0.9:0".parse().unwrap()).unwrap();
    let (nodes, mut entries) = ours(&root, 3, ONLY4).await;
    entries.insert(0, silent.local_addr().unwrap().to_string());
    let (filter, _) = Filter::read("127.0.0.9".as_bytes()).unwrap();
    let options = DhtOptions { filter: Arc::new(filter), ..by(&entries) };
    let dht = start(&root, options, ONLY4, None);
    until(&dht, |status| matches!(status, DhtStatus::Running { nodes: 3, .. })).await;
    assert!(silent.try_recv_from(&mut [0; 9]).is_err());
    drop(nodes);
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn a_full_channel_holds_one_search_only_and_ends_with_the_handle() {
    let root = TaskScope::root();
    let (nodes, entries) = ours(&root, 4, ONLY4).await;
    let dht = loopback(&root, &entries);
    let hash = [9; 20];
    let (found, _own) = mpsc::channel(4);
    let _announced = dht.follow(&root, announce(hash, 1000), found);
    assert_eq!(first_found(&nodes[0], &root, announce(hash, 0)).await.len(), 1);

    let (found, mut full) = mpsc::channel(1);
    found.send(FoundPeers { source: PeerSource::Magnet, addrs: Vec::new() }).await.unwrap();
    let held = dht.follow(&root, announce(hash, 0), found);
    assert_eq!(first_found(&dht, &root, announce(hash, 0)).await.len(), 1);
    drop(held);
    assert_eq!(timeout(LONG, full.recv()).await.unwrap().unwrap().source, PeerSource::Magnet);
    while timeout(LONG, full.recv()).await.unwrap().is_some() {}
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn without_a_network_it_says_so_and_goes_on() {
    let root = TaskScope::root();
    let dht = loopback(&root, &["not an address".into()]);
    let why = until(&dht, |status| matches!(status, DhtStatus::Failed(_))).await;
    assert!(format!("{why:?}").contains("not an address"), "{why:?}");
    dht.stop();
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}

#[tokio::test]
async fn a_search_survives_an_empty_network() {
    let root = TaskScope::root();
    let dht = start(&root, DhtOptions { serve: true, ..by(&[]) }, ONLY4, None);
    let (found, mut peers) = mpsc::channel(1);
    let following = dht.follow(&root, announce([1; 20], 5), found);
    tokio::task::yield_now().await;
    drop(following);
    assert!(timeout(LONG, peers.recv()).await.unwrap().is_none());
    dht.stop();
    root.cancel();
    assert!(root.join(LONG).await.is_empty());
}
