//! The mainline DHT (BEP 5, 32, 42, 43): a node of our own, behind [`PeerDiscovery`].
//!
//! **Parts.** Pure, with `now` as an argument: [`krpc`] (messages), [`id`] (names and addresses), [`table`] (whom we know),
//! [`lookup`] (one walk), [`store`] (what others leave with us), [`standing`] (whether we
//! take part), [`quota`] (how much is answered), [`saved`] (what is kept), and [`node`], which puts them together. Impure:
//! [`run`] (the one task that owns the node), [`inlet`] (what comes for it), [`entries`] (names that are looked up). [`Dht`] is the handle;
//! each followed info-hash has a task that searches and announces, and [`pause`] decides how often.
//!
//! The UDP port isn't ours alone ([`SharedUdp`]).
//!
//! **Flow.** A follower's command → the node's task → packets → answers → the follower, in batches as they come → the
//! torrent's channel. The nodes nearest to the info-hash get our announce at the end of the search. All that passes between
//! tasks goes through bounded channels; there is no lock.
//!
//! **What is kept** are the nodes that answered last, so that a start needs neither names nor a resolver. [`Keep`] says
//! where.
//!
//! **Not here.** Items (BEP 44), samples (BEP 51) and counts of seeds (BEP 33). Private torrents aren't followed: the caller
//! sees to that.

pub mod draw;
pub mod entries;
pub mod id;
pub mod inlet;
pub mod krpc;
pub mod lookup;
pub mod node;
pub mod quota;
pub mod recent;
pub mod run;
pub mod saved;
pub mod standing;
pub mod store;
pub mod table;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{Announce, Following, FoundPeers, PeerDiscovery, PeerSource};
use crate::net::filter::Filter;
use crate::net::hosts::Reach;
use crate::net::mapping::port::OurPort;
use crate::net::ours::Ours;
use crate::net::udp::{For, SharedUdp};
use crate::sync::tasks::TaskScope;
use entries::Wanted;
use id::Family;
use inlet::Inlet;
use run::{ANSWERS, Command, Port, Running};

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
/// Commands that wait for the node; who has one more waits, too.
const COMMANDS: usize = 64;
/// Requests to look names up that wait; what is beyond is dropped, and asked for again later.
const LOOK_UPS: usize = 8;

/// How to run the DHT node.
#[derive(Debug, Clone, Default)]
pub struct DhtOptions {
    /// `HOST:PORT` of the nodes to begin with, and no others; `None` for the well-known ones. An empty list
    /// begins a network of one's own.
    pub bootstrap: Option<Vec<String>>,
    /// Peers reach us at the very port that our packets come from, so nodes may take that for ours: a router may have
    /// changed it.
    pub implied: bool,
    /// Where the internet reaches us, if that may be another port than the one in [`Announce`].
    pub port: OurPort,
    /// What is known of our addresses: nodes tell of them, and who is found there is ourselves.
    pub ours: Ours,
    /// Answer others' questions from the start. Otherwise the node does so once it has seen for a while that
    /// it can be reached from outside. For networks of one's own.
    pub serve: bool,
    /// Addresses that are never spoken to.
    pub filter: Arc<Filter>,
}

/// How the DHT is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DhtStatus {
    /// Not running yet, or stopped.
    #[default]
    Starting,
    /// Running, and so many nodes answer; with 0 of each it has reached nobody so far.
    Running {
        /// By IPv4.
        nodes: usize,
        /// By IPv6.
        nodes6: usize,
        /// Whether we only ask: nobody has been seen to reach us.
        read_only: bool,
    },
    /// Can't run now, and why, in words for the user; it is tried again.
    Failed(String),
}

/// Where the node's knowledge is kept from one run to the next.
pub trait Keep: Send + Sync {
    /// What was kept last, if anything. May wait for the disk.
    fn load(&self) -> Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send + '_>>;

    /// Keeps this in its place: [`saved::SIZE_MAX`] bytes at most. Begins at once, without waiting, and it may get lost;
    /// what is returned tells when it is over, for whoever wants to know.
    fn store(&self, bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What the handle and the tasks share.
pub struct Shared {
    status: watch::Sender<DhtStatus>,
}

/// The program's one DHT node. Clones are handles on the same node; the node ends with the scope or [`Dht::stop`].
#[derive(Clone)]
pub struct Dht {
    scope: TaskScope,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    wanted: mpsc::Sender<Wanted>,
    /// The addresses it is bound to, by [`Family::index`].
    addrs: [Option<SocketAddr>; 2],
    port: OurPort,
    ours: Ours,
}

impl Dht {
    /// Starts the node in tasks of `scope`, on the port that it shares with others; returns at once. Nothing that goes
    /// wrong is fatal: it is logged once, shows in [`Dht::status`], and is tried again. Somebody else reads the port
    /// ([`SharedUdp::run`]).
    pub fn start(
        scope: &TaskScope,
        options: DhtOptions,
        keep: Option<Arc<dyn Keep>>,
        udp: Arc<SharedUdp>,
    ) -> Self {
        let shared = Arc::new(Shared { status: watch::Sender::new(DhtStatus::Starting) });
        let scope = scope.child("dht");
        let (port, ours) = (options.port.clone(), options.ours.clone());
        let (inlet, mail) = Inlet::new(options.filter.clone());
        udp.give(For::Dht, Arc::new(inlet));
        let addrs = Family::BOTH.map(|family| udp.local_addr(family == Family::V6));
        let (commands, taken) = mpsc::channel(COMMANDS);
        let (wanted, looked_up) = mpsc::channel(LOOK_UPS);
        scope.spawn("entries", entries::look_up(options.bootstrap.clone(), looked_up, commands.clone()));
        let running = Running {
            shared: shared.clone(),
            scope: scope.clone(),
            options,
            keep,
            commands: taken,
            wanted: wanted.clone(),
            families: addrs.map(|addr| addr.is_some()),
        };
        let ended = Ended(shared.clone());
        scope.spawn_graceful("node", async move {
            let _at_the_end = ended;
            running.run(udp, mail).await;
        });
        Self { scope, shared, commands, wanted, addrs, port, ours }
    }

    /// How it is doing.
    pub fn status(&self) -> DhtStatus {
        self.shared.status.borrow().clone()
    }

    /// The UDP address that the node is bound to in one family, if it speaks it.
    pub fn local_addr(&self, family: Family) -> Option<SocketAddr> {
        self.addrs[family.index()]
    }

    /// A peer says that it has a node at this address (BEP 5's PORT). Doesn't wait; forgotten when the node is busy.
    pub fn add_node(&self, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::Hint(vec![addr]));
    }

    /// A torrent names nodes (BEP 5's `nodes`), by host and port, that may be as far as `reach` says. Doesn't wait;
    /// forgotten when many are being looked up.
    pub fn add_nodes(&self, nodes: Vec<(String, u16)>, reach: Reach) {
        if !nodes.is_empty() {
            let _ = self.wanted.try_send(Wanted::Nodes(nodes, reach));
        }
    }

    /// It is known, of one family, whether strangers reach the port: it is mapped, or ours is a public address.
    pub fn set_public(&self, family: Family, public: bool) {
        let _ = self.commands.try_send(Command::Public(family, public));
    }

    /// The addresses of this machine have changed.
    pub fn address_changed(&self) {
        let _ = self.commands.try_send(Command::AddressChanged);
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
        let node = self.commands.clone();
        let stopped = self.scope.token().clone();
        let (port, ours) = (self.port.clone(), self.ours.clone());
        scope.spawn("dht search", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = follow(node, announce, (port, ours), found, wanted) => {}
            }
        });
        following
    }
}

/// Says that the node has ended, in whatever way.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.status.send_replace(DhtStatus::Starting);
    }
}

/// Searches and announces again and again, until dropped, or nobody wants it any more.
async fn follow(
    node: mpsc::Sender<Command>,
    announce: Announce,
    (mut our, ours): (OurPort, Ours),
    found: mpsc::Sender<FoundPeers>,
    mut wanted: watch::Receiver<bool>,
) {
    let mut empty = 0;
    loop {
        let searched = Instant::now();
        let port = port_of(announce, &our);
        let count = tokio::select! {
            () = gone(&mut wanted, &found) => return,
            count = search(&node, announce, (port, &ours), &found) => count,
        };
        let Some(count) = count else { return };
        tracing::debug!(peers = count, "searched the DHT");
        empty = if count == 0 { empty + 1 } else { 0 };
        loop {
            let next = searched + pause(*wanted.borrow_and_update(), empty);
            tokio::select! {
                () = sleep_until(next) => break,
                // Who heard the one before sends peers to where nobody is.
                () = our.changed() => if port_of(announce, &our) != port { break },
                changed = wanted.changed() => if changed.is_err() { return },
                () = found.closed() => return,
            }
        }
    }
}

/// The port that is announced, if any.
fn port_of(announce: Announce, our: &OurPort) -> Option<Port> {
    let number = our.outside().unwrap_or(announce.port);
    (announce.port != 0).then_some(Port { number, mapped: our.is_mapped() })
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

/// One search; what it finds is sent on at once. How many different addresses that were, without our own; `None` when the
/// node, or whoever takes them, has ended. It ends with the node's search, which is bounded.
async fn search(
    node: &mpsc::Sender<Command>,
    announce: Announce,
    (port, ours): (Option<Port>, &Ours),
    found: &mpsc::Sender<FoundPeers>,
) -> Option<usize> {
    let known = ours.known();
    // Nodes give back what we announced, before the router's mapping, too.
    let ourselves = |addr: &SocketAddr| {
        let is_port = addr.port() == announce.port || port.is_some_and(|port| port.number == addr.port());
        is_port && known.borrow().contains(&addr.ip().to_canonical())
    };
    let (answers, mut come) = mpsc::channel(ANSWERS);
    node.send(Command::Search { hash: announce.info_hash, port, found: answers }).await.ok()?;
    let mut seen = HashSet::new();
    while let Some(mut addrs) = come.recv().await {
        addrs.retain(|addr| !ourselves(addr) && seen.len() < MAX_FOUND && seen.insert(*addr));
        // Full: we wait, and answers with us; the channel has room for all of one search.
        if !addrs.is_empty() {
            found.send(FoundPeers { source: PeerSource::Dht, addrs }).await.ok()?;
        }
    }
    Some(seen.len())
}

#[cfg(test)]
mod tests;
