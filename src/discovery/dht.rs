//! The mainline DHT (BEP 5, 42, 43), through the `mainline` crate, behind [`PeerDiscovery`].
//!
//! Parts: [`Dht`] is the handle. Its watcher task starts the node, looks after it, and starts it again if it
//! died. Each followed info-hash has a task that searches and announces; [`pause`] decides how often (pure).
//! Flow: bootstrap names are resolved here, without blocking → the node (a thread of the crate's own) → a search's
//! answers stream into the torrent's channel while the search goes on → the nodes that answered get our announce.
//!
//! Known limits of the crate: IPv4 only; a node can't be given further nodes once it runs (so BEP 5's PORT
//! message and a torrent's `nodes` aren't used). It panics where its thread is gone or a node answers oddly: that
//! is caught here, and the node is looked at. When it answers others it understands only those with transaction
//! ids of 4 bytes, as its own are; most clients send 2, so it can't be the first node of a network for them.
//! Its thread ends by itself, within 0.1 s of the last handle's drop.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use mainline::Id;
use mainline::async_dht::AsyncDht;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Announce, Following, FoundPeers, PeerDiscovery, PeerSource, usable_peer};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::{DHT_ANNOUNCE, DHT_BOOTSTRAP, DHT_NODE, DHT_SEARCH, DHT_WATCH, RESOLVE};

/// The first search that is repeated because it found nobody; doubled each time.
const SEARCH_FIRST: Duration = Duration::from_secs(5);
/// The longest pause while peers are wanted and searches find nobody: a reader waits.
const SEARCH_HUNGRY: Duration = Duration::from_secs(60);
/// The longest pause while peers are wanted, though searches do find some: they are mostly the same ones.
const SEARCH_MORE: Duration = Duration::from_secs(5 * 60);
/// The usual pause: nodes forget an announce after half an hour (BEP 5), so it is renewed well before.
const SEARCH_REGULAR: Duration = Duration::from_secs(15 * 60);
/// Different addresses taken from one search; the nearest nodes of a large swarm name some hundred, and a hostile
/// network could name any number.
const MAX_FOUND: usize = 3000;
/// The longest pause between two tries to start the node, when its names can't be resolved.
const START_RETRY_MAX: Duration = Duration::from_secs(60);
/// How often a node that knows no other is looked at.
const BOOTSTRAP_WATCH: Duration = Duration::from_millis(500);

/// How to run the DHT node.
#[derive(Debug, Clone)]
pub struct DhtOptions {
    /// `HOST:PORT` of the nodes to begin with, and no others; `None` for the well-known ones. An empty list
    /// begins a network of one's own.
    pub bootstrap: Option<Vec<String>>,
    /// The UDP port; any free one if it is taken, or `None`.
    pub port: Option<u16>,
    /// The IPv4 address to bind to.
    pub bind: Ipv4Addr,
    /// Answer others' questions from the start. Otherwise the node does so once it has seen for a while that
    /// it can be reached from outside. For networks of one's own.
    pub serve: bool,
}

impl Default for DhtOptions {
    fn default() -> Self {
        Self { bootstrap: None, port: None, bind: Ipv4Addr::UNSPECIFIED, serve: false }
    }
}

/// How the DHT is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DhtStatus {
    /// Not running yet, or stopped.
    #[default]
    Starting,
    /// Running, and this many nodes are known; with 0 it has reached nobody so far.
    Running {
        /// In the routing table.
        nodes: usize,
    },
    /// Can't run now, and why, in words for the user; it is tried again.
    Failed(String),
}

/// The program's one DHT node. Clones are handles on the same node; the node ends with the scope or [`Dht::stop`].
#[derive(Clone)]
pub struct Dht {
    scope: TaskScope,
    shared: Arc<Shared>,
}

struct Shared {
    /// The running node; `None` while there is none.
    node: watch::Sender<Option<AsyncDht>>,
    status: watch::Sender<DhtStatus>,
}

impl Dht {
    /// Starts the node in tasks of `scope`; returns at once. Nothing that goes wrong is fatal: it is logged once,
    /// shows in [`Dht::status`], and is tried again.
    pub fn start(scope: &TaskScope, options: DhtOptions) -> Self {
        let shared = Arc::new(Shared {
            node: watch::Sender::new(None),
            status: watch::Sender::new(DhtStatus::Starting),
        });
        let scope = scope.child("dht");
        scope.spawn("node", watch_over(shared.clone(), options));
        Self { scope, shared }
    }

    /// How it is doing.
    pub fn status(&self) -> DhtStatus {
        self.shared.status.borrow().clone()
    }

    /// The UDP address that the node is bound to. Waits for the node to start, until the scope is cancelled.
    pub async fn local_addr(&self) -> Option<SocketAddrV4> {
        let mut watched = self.shared.node.subscribe();
        let node = tokio::select! {
            () = self.scope.token().cancelled() => None,
            node = watched.wait_for(Option::is_some) => node.ok()?.clone(),
        }?;
        guarded(DHT_NODE, async { node.info().await.local_addr() }).await.ok()
    }

    /// Ends the node and all that is followed. Doesn't wait.
    pub fn stop(&self) {
        self.scope.cancel();
    }
}

impl PeerDiscovery for Dht {
    fn source(&self) -> PeerSource {
        PeerSource::Dht
    }

    fn follow(&self, scope: &TaskScope, announce: Announce, found: mpsc::Sender<FoundPeers>) -> Following {
        let (following, wanted) = Following::new();
        let node = self.shared.node.subscribe();
        let stopped = self.scope.token().clone();
        scope.spawn("dht search", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = follow(node, announce, found, wanted) => {}
            }
        });
        following
    }
}

/// Why a question to the node has no answer.
#[derive(Debug, PartialEq, Eq)]
enum NodeError {
    /// The crate panicked, most likely since its thread is gone.
    Panicked,
    TimedOut,
}

/// Asks the node something, within `limit`; a panic of the crate ends here.
async fn guarded<T>(limit: Duration, question: impl Future<Output = T>) -> Result<T, NodeError> {
    match timeout(limit, AssertUnwindSafe(question).catch_unwind()).await {
        Err(_) => Err(NodeError::TimedOut),
        Ok(Err(_)) => Err(NodeError::Panicked),
        Ok(Ok(answer)) => Ok(answer),
    }
}

/// Lets go of the node when the watcher ends, in whatever way: its thread ends with the last handle.
struct LetGo(Arc<Shared>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.node.send_replace(None);
        self.0.status.send_replace(DhtStatus::Starting);
    }
}

/// Keeps a node running, until dropped.
async fn watch_over(shared: Arc<Shared>, options: DhtOptions) {
    let _at_the_end = LetGo(shared.clone());
    let mut pause = SEARCH_FIRST;
    let mut said = String::new();
    loop {
        match start_node(&options).await {
            Ok(node) => {
                pause = SEARCH_FIRST;
                said.clear();
                shared.status.send_replace(DhtStatus::Running { nodes: 0 });
                shared.node.send_replace(Some(node.clone()));
                watch_node(&shared, &node).await;
                shared.node.send_replace(None);
                tracing::warn!("the DHT node died and is started again");
            }
            Err(why) => {
                if said != why {
                    tracing::warn!(
                        "the DHT is not available: {why}; peers come from trackers and --peer meanwhile"
                    );
                    said.clone_from(&why);
                }
                shared.status.send_replace(DhtStatus::Failed(why));
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(START_RETRY_MAX);
    }
}

/// Notes how many nodes are known, and says so when none is. Returns when the node is dead.
async fn watch_node(shared: &Shared, node: &AsyncDht) {
    let started = Instant::now();
    let mut reached = None;
    loop {
        match guarded(DHT_NODE, node.to_bootstrap()).await {
            Err(NodeError::Panicked) => return,
            // Busy: its thread does one thing at a time.
            Err(NodeError::TimedOut) => {}
            Ok(known) => {
                let nodes = known.len();
                shared.status.send_if_modified(|status| {
                    let running = DhtStatus::Running { nodes };
                    std::mem::replace(status, running.clone()) != running
                });
                if nodes > 0 && reached != Some(true) {
                    tracing::info!(nodes, "the DHT is reached");
                    reached = Some(true);
                } else if nodes == 0 && reached != Some(false) && started.elapsed() > DHT_BOOTSTRAP {
                    tracing::warn!(
                        "the DHT can't be reached: none of its first nodes answers. Is UDP blocked, or the \
                         network down? It is tried on; --dht-bootstrap names other nodes"
                    );
                    reached = Some(false);
                }
            }
        }
        sleep(if reached == Some(true) { DHT_WATCH } else { BOOTSTRAP_WATCH }).await;
    }
}

/// Resolves the bootstrap names and starts a node with them.
async fn start_node(options: &DhtOptions) -> Result<AsyncDht, String> {
    let bootstrap = match &options.bootstrap {
        Some(names) => resolve(names).await?,
        None => resolve(&mainline::DEFAULT_BOOTSTRAP_NODES).await?,
    };
    let mut builder = mainline::Dht::builder();
    // These are addresses already, so that nothing is resolved, and nothing blocks, in there.
    builder.bootstrap(&bootstrap).bind_address(options.bind);
    if options.serve {
        builder.server_mode();
    }
    let wished = options.port.unwrap_or(0);
    match build(&builder, wished).await {
        Err(error) if wished != 0 => {
            let any = build(&builder, 0).await?;
            tracing::warn!("the DHT uses another UDP port than {wished}, since that can't be used: {error}");
            Ok(any)
        }
        result => result,
    }
}

/// Builds a node on `port`. The crate waits for its thread to bind the socket, so that is done on a thread which
/// ends with it.
async fn build(builder: &mainline::DhtBuilder, port: u16) -> Result<AsyncDht, String> {
    let mut builder = builder.clone();
    builder.port(port);
    let (done, built) = oneshot::channel();
    std::thread::Builder::new()
        .name("dht start".into())
        .spawn(move || {
            let _ = done.send(builder.build());
        })
        .map_err(|error| format!("no thread can be started ({error})"))?;
    match timeout(DHT_NODE, built).await {
        Ok(Ok(Ok(node))) => Ok(node.as_async()),
        Ok(Ok(Err(error))) => Err(format!("UDP port {port} can't be bound ({error})")),
        Ok(Err(_)) | Err(_) => Err("its node does not start".into()),
    }
}

/// The IPv4 addresses of `HOST:PORT` names, all looked up at once. Some that fail do no harm.
async fn resolve(names: &[impl AsRef<str>]) -> Result<Vec<SocketAddrV4>, String> {
    let look_up = |name: &str| {
        let name = name.to_owned();
        async move {
            match timeout(RESOLVE, tokio::net::lookup_host(&name)).await {
                Ok(Ok(addrs)) => Ok(addrs.collect::<Vec<_>>()),
                Ok(Err(error)) => Err(format!("{name}: {error}")),
                Err(_) => Err(format!("{name}: no answer from the resolver")),
            }
        }
    };
    let mut addrs = Vec::new();
    let mut why = None;
    for looked_up in join_all(names.iter().map(|name| look_up(name.as_ref()))).await {
        match looked_up {
            Ok(found) => addrs.extend(found.into_iter().filter_map(|addr| match addr {
                SocketAddr::V4(v4) => Some(v4),
                SocketAddr::V6(_) => None,
            })),
            Err(error) => why = why.or(Some(error)),
        }
    }
    if addrs.is_empty() && !names.is_empty() {
        let why = why.unwrap_or_else(|| "they have no IPv4 address".into());
        return Err(format!("no bootstrap node can be resolved ({why})"));
    }
    Ok(addrs)
}

/// Searches and announces again and again, until dropped, or nobody wants it any more.
async fn follow(
    mut node: watch::Receiver<Option<AsyncDht>>,
    announce: Announce,
    found: mpsc::Sender<FoundPeers>,
    mut wanted: watch::Receiver<bool>,
) {
    let id = Id::from(announce.info_hash);
    let mut empty = 0;
    loop {
        let ready = tokio::select! {
            () = gone(&mut wanted, &found) => return,
            ready = node.wait_for(Option::is_some) => ready.map(|ready| ready.clone()),
        };
        let Ok(Some(ready)) = ready else { return };
        let mut count = 0;
        tokio::select! {
            () = gone(&mut wanted, &found) => return,
            () = search(&ready, id, &found, &mut count) => {}
        }
        tracing::debug!(peers = count, "searched the DHT");
        let searched = Instant::now();
        empty = if count == 0 { empty + 1 } else { 0 };
        if announce.port != 0 {
            tokio::select! {
                () = gone(&mut wanted, &found) => return,
                told = guarded(DHT_ANNOUNCE, ready.announce_peer(id, Some(announce.port))) => match told {
                    Ok(Ok(_)) => tracing::debug!("announced to the DHT"),
                    Ok(Err(error)) => tracing::debug!("not announced to the DHT: {error}"),
                    Err(error) => tracing::debug!("not announced to the DHT: {error:?}"),
                }
            }
        }
        drop(ready);
        loop {
            let next = searched + pause(*wanted.borrow_and_update(), empty);
            tokio::select! {
                () = sleep_until(next) => break,
                changed = wanted.changed() => if changed.is_err() { return },
                () = found.closed() => return,
            }
        }
    }
}

/// Waits until nobody follows any more.
async fn gone(wanted: &mut watch::Receiver<bool>, found: &mpsc::Sender<FoundPeers>) {
    tokio::select! {
        // Only an error matters here: that the handle was dropped.
        _ = wanted.wait_for(|_| false) => {}
        () = found.closed() => {}
    }
}

/// How long to wait after the start of a search before the next. `empty`: how many searches in a row found nobody.
fn pause(wanted: bool, empty: u32) -> Duration {
    let longest = match (wanted, empty) {
        (true, 0) => return SEARCH_MORE,
        (false, 0) => return SEARCH_REGULAR,
        (true, _) => SEARCH_HUNGRY,
        (false, _) => SEARCH_REGULAR,
    };
    let factor = 2u32.checked_pow(empty - 1);
    factor.and_then(|factor| SEARCH_FIRST.checked_mul(factor)).map_or(longest, |wait| wait.min(longest))
}

/// One walk of the network, bounded; what it finds is sent on at once, and counted.
async fn search(node: &AsyncDht, id: Id, found: &mpsc::Sender<FoundPeers>, count: &mut usize) {
    let walk = async {
        let mut seen = HashSet::new();
        let mut answers = node.get_peers(id);
        while let Some(answer) = answers.next().await {
            let fresh =
                |addr: &SocketAddr| usable_peer(*addr) && seen.len() < MAX_FOUND && seen.insert(*addr);
            let addrs: Vec<_> = answer.into_iter().map(SocketAddr::V4).filter(fresh).collect();
            *count = seen.len();
            // Full: we wait, and the node's answers with us; they are as many as one search gives.
            if !addrs.is_empty() && found.send(FoundPeers { source: PeerSource::Dht, addrs }).await.is_err() {
                return;
            }
        }
    };
    if let Err(error) = guarded(DHT_SEARCH, walk).await {
        tracing::debug!("a search of the DHT was cut short: {error:?}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::discovery::Crypto;
    use mainline::Testnet;

    const LONG: Duration = Duration::from_secs(60);

    /// On loopback only, with nodes that know each other.
    async fn testnet(nodes: usize) -> Testnet {
        let (done, built) = oneshot::channel();
        std::thread::Builder::new()
            .spawn(move || done.send(Testnet::builder(nodes).build().unwrap()).map_err(drop).unwrap())
            .unwrap();
        built.await.unwrap()
    }

    fn loopback(bootstrap: &[String]) -> DhtOptions {
        DhtOptions { bootstrap: Some(bootstrap.to_vec()), bind: Ipv4Addr::LOCALHOST, ..DhtOptions::default() }
    }

    fn announce(info_hash: [u8; 20], port: u16) -> Announce {
        Announce { info_hash, peer_id: [0; 20], port, key: 0, crypto: Crypto::None }
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

    /// Waits until the network knows a peer of `info_hash`.
    async fn until_announced(testnet: &Testnet, info_hash: [u8; 20]) {
        let node = testnet.nodes[0].clone().as_async();
        let known = async { while node.get_peers(Id::from(info_hash)).next().await.is_none() {} };
        timeout(LONG, known).await.unwrap();
    }

    #[tokio::test]
    async fn announced_here_found_there() {
        let testnet = testnet(8).await;
        let root = TaskScope::root();
        let [one, two] = [1, 2].map(|_| Dht::start(&root, loopback(&testnet.bootstrap)));
        let hash = [7; 20];

        let (found, _own) = mpsc::channel(4);
        let _first = one.follow(&root, announce(hash, 45_555), found);
        until_announced(&testnet, hash).await;
        let (found, mut peers) = mpsc::channel(4);
        let second = two.follow(&root, announce(hash, 0), found);
        second.want_peers(true);
        let found = timeout(LONG, peers.recv()).await.unwrap().unwrap();
        assert_eq!(found.source, PeerSource::Dht);
        assert_eq!(found.addrs, ["127.0.0.1:45555".parse().unwrap()]);
        assert!(one.local_addr().await.unwrap().ip().is_loopback());
        let mut status = two.shared.status.subscribe();
        let reached = |status: &DhtStatus| matches!(status, DhtStatus::Running { nodes: 1.. });
        timeout(LONG, status.wait_for(reached)).await.unwrap().unwrap();

        // The handle's drop ends one, the scope's cancel all.
        drop(second);
        while timeout(LONG, peers.recv()).await.unwrap().is_some() {}
        root.cancel();
        assert!(root.join(LONG).await.is_empty());
        assert_eq!((two.status(), one.shared.node.borrow().is_none()), (DhtStatus::Starting, true));
    }

    #[tokio::test]
    async fn a_full_channel_holds_one_search_only_and_ends_with_the_handle() {
        let testnet = testnet(4).await;
        let root = TaskScope::root();
        let dht = Dht::start(&root, loopback(&testnet.bootstrap));
        let hash = [9; 20];
        let (found, _own) = mpsc::channel(4);
        let _announced = dht.follow(&root, announce(hash, 1000), found);
        until_announced(&testnet, hash).await;

        let (found, mut full) = mpsc::channel(1);
        found.send(FoundPeers { source: PeerSource::Magnet, addrs: Vec::new() }).await.unwrap();
        let held = dht.follow(&root, announce(hash, 0), found);
        let (found, mut theirs) = mpsc::channel(1);
        let _other = dht.follow(&root, announce(hash, 0), found);
        assert_eq!(timeout(LONG, theirs.recv()).await.unwrap().unwrap().addrs.len(), 1);
        drop(held);
        assert_eq!(timeout(LONG, full.recv()).await.unwrap().unwrap().source, PeerSource::Magnet);
        while timeout(LONG, full.recv()).await.unwrap().is_some() {}
        root.cancel();
        assert!(root.join(LONG).await.is_empty());
    }

    #[tokio::test]
    async fn without_a_network_it_says_so_and_goes_on() {
        let root = TaskScope::root();
        let dht = Dht::start(&root, loopback(&["not an address".into()]));
        let mut status = dht.shared.status.subscribe();
        let failed = |status: &DhtStatus| matches!(status, DhtStatus::Failed(_));
        let why = timeout(LONG, status.wait_for(failed)).await.unwrap().unwrap().clone();
        assert!(format!("{why:?}").contains("not an address"), "{why:?}");
        dht.stop();
        assert!(dht.local_addr().await.is_none());
        assert!(root.join(LONG).await.is_empty());
    }

    #[tokio::test]
    async fn a_taken_port_is_replaced_and_a_search_survives_an_empty_network() {
        let taken = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let root = TaskScope::root();
        let dht = Dht::start(&root, DhtOptions { port: Some(port), serve: true, ..loopback(&[]) });
        assert_ne!(timeout(LONG, dht.local_addr()).await.unwrap().unwrap().port(), port);
        let (found, mut peers) = mpsc::channel(1);
        let following = dht.follow(&root, announce([1; 20], 5), found);
        tokio::task::yield_now().await;
        drop(following);
        assert!(timeout(LONG, peers.recv()).await.unwrap().is_none());
        dht.stop();
        root.cancel();
        assert!(root.join(LONG).await.is_empty());
    }

    #[tokio::test]
    async fn a_panic_of_the_crate_ends_at_the_question() {
        assert_eq!(guarded(LONG, async { panic!("planned") }).await, Err::<(), _>(NodeError::Panicked));
        assert_eq!(guarded(Duration::ZERO, std::future::pending::<()>()).await, Err(NodeError::TimedOut));
    }
}
