//! Local service discovery (BEP 14): who in the local network has the same torrents, said and heard by multicast.
//!
//! Parts: [`Lsd`], the handle; its one task owns the sockets. [`plan`] decides what is announced when, and what of
//! others counts; [`message`] is the packet. Both are pure.
//!
//! Flow: a socket per interface and family, opened anew as interfaces come and go → a packet names torrents that are
//! followed here → its sender's address, with the port that the packet says, goes into the channels of those torrents.
//! A channel that is full is passed over: it has enough addresses, and this one is said again within minutes.
//!
//! Whoever is in the local network can say anything. So a packet is worth one address, that it was sent from; a flood is
//! listened to a hundred packets a second; and what we send is bounded by our own torrents, never by what comes in.
//!
//! Deliberately not here: private torrents (BEP 27), which the caller doesn't follow, and loopback, where nobody else is.

pub mod message;
pub mod plan;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::{Announce, Following, FoundPeers, PeerDiscovery, PeerSource, canonical_peer, usable_peer};
use crate::net::addresses::Interface;
use crate::net::sockets::Sockets;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::LSD_SEND;
use message::PACKET_MAX;
use plan::Plan;

/// Where it is said (BEP 14).
const GROUPS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 192, 152, 143)), 6771),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f)), 6771),
];
/// How often the interfaces are looked at, besides when somebody says that they have changed.
const LOOK: Duration = Duration::from_secs(30);
/// Sockets at most: machines that hold many others have hundreds of interfaces.
const SOCKETS_MAX: usize = 32;

/// Local service discovery, for all torrents of the program. It ends with the scope it was started in.
pub struct Lsd {
    scope: TaskScope,
    shared: Arc<Shared>,
}

struct Shared {
    state: RankedMutex<State>,
    /// What is due has changed.
    changed: Notify,
    /// The interfaces are to be looked at.
    look: Notify,
    /// Sockets that are open.
    open: watch::Sender<usize>,
}

struct State {
    plan: Plan,
    /// Where the finds of each torrent go, with the number of who follows it.
    found: HashMap<[u8; 20], (u64, mpsc::Sender<FoundPeers>)>,
}

/// A socket on one interface.
struct Open {
    group: SocketAddr,
    interface: Interface,
    socket: UdpSocket,
}

/// One torrent that is followed; dropping it ends that.
struct Registered {
    shared: Arc<Shared>,
    hash: [u8; 20],
    number: u64,
}

impl Registered {
    fn want(&self, wanted: bool) {
        self.shared.state.lock().plan.want(&self.hash, wanted, now());
        self.shared.changed.notify_one();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.plan.unfollow(&self.hash, self.number);
        if state.found.get(&self.hash).is_some_and(|(number, _)| *number == self.number) {
            state.found.remove(&self.hash);
        }
    }
}

impl Lsd {
    /// Starts it in a task of `scope`, on the interfaces that `sockets` may use; returns at once. Without any it waits
    /// for one.
    pub fn start(scope: &TaskScope, sockets: Sockets) -> Arc<Self> {
        let shared = Arc::new(Shared {
            state: RankedMutex::new(
                Rank::Leaf,
                "local service discovery",
                State { plan: Plan::new(rand::random(), now()), found: HashMap::new() },
            ),
            changed: Notify::new(),
            look: Notify::new(),
            open: watch::Sender::new(0),
        });
        let scope = scope.child("lsd");
        scope.spawn("sockets", run(shared.clone(), sockets));
        Arc::new(Self { scope, shared })
    }

    /// The interfaces have changed: they are looked at now.
    pub fn interfaces_changed(&self) {
        self.shared.look.notify_one();
    }

    /// How many sockets are open, one for each interface and family; a closed channel means that it has ended.
    pub fn open(&self) -> watch::Receiver<usize> {
        self.shared.open.subscribe()
    }
}

impl PeerDiscovery for Lsd {
    fn source(&self) -> PeerSource {
        PeerSource::Lsd
    }

    fn follow(&self, scope: &TaskScope, announce: Announce, found: mpsc::Sender<FoundPeers>) -> Following {
        let (following, mut wanted) = Following::new();
        let hash = announce.info_hash;
        let number = {
            let mut state = self.shared.state.lock();
            let number = state.plan.follow(hash, announce.port, now());
            state.found.insert(hash, (number, found.clone()));
            number
        };
        self.shared.changed.notify_one();
        let registered = Registered { shared: self.shared.clone(), hash, number };
        let stopped = self.scope.token().clone();
        scope.spawn("local peers", async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = found.closed() => return,
                    changed = wanted.changed() => match changed {
                        Ok(()) => {
                            let now = *wanted.borrow_and_update();
                            registered.want(now);
                        }
                        Err(_) => return,
                    },
                }
            }
        });
        following
    }
}

/// The moment, by the clock that can be stopped in tests.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Says and hears, until dropped.
async fn run(shared: Arc<Shared>, sockets: Sockets) {
    let mut open: Vec<Open> = Vec::new();
    let mut packet = [0; PACKET_MAX + 1];
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (next, deaf) = {
            let state = shared.state.lock();
            (state.plan.next(), state.plan.deaf_until(now()))
        };
        tokio::select! {
            _ = look.tick() => reopen(&shared, &sockets, &mut open),
            () = shared.look.notified() => reopen(&shared, &sockets, &mut open),
            () = shared.changed.notified() => {}
            () = until(deaf), if deaf.is_some() => {}
            // Without a socket it stays due.
            () = until(next), if !open.is_empty() => say(&shared, &mut open).await,
            (at, came) = receive(&open, &mut packet), if deaf.is_none() => match came {
                Ok((len, from)) => hear(&shared, &packet[..len], from),
                // Its interface went away. It is opened again when the interfaces are looked at next.
                Err(error) => {
                    let gone = open.swap_remove(at);
                    tracing::debug!(interface = gone.interface.name, "not listening for local peers: {error}");
                }
            },
        }
    }
}

/// Waits until then; for ever without a moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Opens what is missing, closes what is gone, and has all torrents announced when anything is new.
fn reopen(shared: &Shared, sockets: &Sockets, open: &mut Vec<Open>) {
    let mut wanted = Vec::new();
    for interface in sockets.interfaces() {
        let carries = interface.multicast || interface.loopback;
        for group in GROUPS {
            if carries && interface.addrs.iter().any(|addr| addr.is_ipv4() == group.is_ipv4()) {
                wanted.push((group, interface.clone()));
            }
        }
    }
    wanted.truncate(SOCKETS_MAX);
    open.retain(|o| wanted.iter().any(|(group, interface)| (o.group, &o.interface) == (*group, interface)));
    let mut new = false;
    for (group, interface) in wanted {
        if open.iter().any(|o| (o.group, &o.interface) == (group, &interface)) {
            continue;
        }
        match sockets.multicast(group, &interface) {
            Ok(socket) => {
                tracing::debug!(interface = interface.name, %group, "listening for local peers");
                open.push(Open { group, interface, socket });
                new = true;
            }
            Err(error) => {
                tracing::debug!(interface = interface.name, %group, "not listening for local peers: {error}");
            }
        }
    }
    if new {
        shared.state.lock().plan.network_changed(now());
    }
    shared.open.send_if_modified(|count| std::mem::replace(count, open.len()) != open.len());
}

/// Sends what is due, on every interface. Waits for their queues, bounded.
async fn say(shared: &Shared, open: &mut Vec<Open>) {
    let (due, cookie) = {
        let mut state = shared.state.lock();
        (state.plan.take(now()), state.plan.cookie())
    };
    let Some((port, hashes)) = due else { return };
    let mut failed = Vec::new();
    for (at, o) in open.iter().enumerate() {
        let packet = message::announce(o.group, port, &hashes, &cookie);
        // A new socket is ready only after a turn of the runtime, so it isn't enough to try.
        match timeout(LSD_SEND, o.socket.send_to(&packet, o.group)).await {
            Ok(Ok(_)) => {}
            // Its queue is full: said again in some minutes.
            Err(_) => {}
            Ok(Err(error)) => {
                tracing::debug!(interface = o.interface.name, "telling local peers failed: {error}");
                failed.push(at);
            }
        }
    }
    for at in failed.into_iter().rev() {
        open.swap_remove(at);
    }
}

/// A packet came.
fn hear(shared: &Shared, packet: &[u8], from: SocketAddr) {
    let said = message::parse(packet);
    let to: Vec<_> = {
        let mut state = shared.state.lock();
        let ours = state.plan.heard(said.as_ref(), from.ip(), now());
        ours.iter().filter_map(|hash| state.found.get(hash)).map(|(_, found)| found.clone()).collect()
    };
    let Some(said) = said else { return };
    let mut addr = from;
    addr.set_port(said.port);
    let addr = canonical_peer(addr);
    if usable_peer(addr) {
        for found in to {
            // Full, or its torrent ends.
            let _ = found.try_send(FoundPeers { source: PeerSource::Lsd, addrs: vec![addr] });
        }
    }
}

/// The next packet of any socket, and which. Waits for ever without sockets. Cancel-safe.
async fn receive(open: &[Open], packet: &mut [u8]) -> (usize, io::Result<(usize, SocketAddr)>) {
    poll_fn(|cx| {
        for (at, o) in open.iter().enumerate() {
            let mut to = ReadBuf::new(packet);
            if let Poll::Ready(came) = o.socket.poll_recv_from(cx, &mut to) {
                let len = to.filled().len();
                return Poll::Ready((at, came.map(|from| (len, from))));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::discovery::Crypto;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A program on loopback, which no packet leaves.
    struct Program {
        lsd: Arc<Lsd>,
        scope: TaskScope,
    }

    impl Program {
        async fn new() -> Self {
            let scope = TaskScope::root();
            let lsd = Lsd::start(&scope, Sockets::new(Some("lo"), None));
            lsd.open().wait_for(|open| *open > 0).await.unwrap();
            Self { lsd, scope }
        }

        fn follow(&self, hash: [u8; 20], port: u16) -> (Following, mpsc::Receiver<FoundPeers>) {
            let (found, finds) = mpsc::channel(1);
            let announce = Announce { info_hash: hash, peer_id: [0; 20], port, key: 0, crypto: Crypto::None };
            (self.lsd.follow(&self.scope, announce, found), finds)
        }
    }

    async fn next(finds: &mut mpsc::Receiver<FoundPeers>) -> FoundPeers {
        tokio::time::timeout(PATIENCE, finds.recv()).await.expect("in time").expect("open")
    }

    /// A torrent that no other test has, in whatever process.
    fn new_hash() -> [u8; 20] {
        rand::random()
    }

    #[tokio::test]
    async fn two_on_one_network_find_each_other_whoever_comes_first() {
        let (a, b) = (Program::new().await, Program::new().await);
        let (both, of_a, of_b) = (new_hash(), new_hash(), new_hash());
        let (_first, mut finds_a) = a.follow(both, 1001);
        let (_other, mut others_a) = a.follow(of_a, 1001);
        let (_second, mut finds_b) = b.follow(both, 1002);
        let (_another, mut others_b) = b.follow(of_b, 1002);
        // B wasn't there when A spoke, or was; A hears B in any case, and what B says of itself isn't taken for another.
        let found = next(&mut finds_a).await;
        assert_eq!((found.source, found.addrs[0].port()), (PeerSource::Lsd, 1002));
        assert!(found.addrs[0].ip().is_loopback() && found.addrs.len() == 1, "{found:?}");
        assert!(others_a.try_recv().is_err() && others_b.try_recv().is_err());
        let (_third, mut finds_c) = Program::new().await.follow(both, 1003);
        assert!(finds_c.try_recv().is_err());
        let ports = async {
            loop {
                if next(&mut finds_b).await.addrs[0].port() == 1003 {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, ports).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_followed_before_a_socket_is_open_is_announced_when_one_is() {
        let a = Program::new().await;
        let hash = new_hash();
        let (_waiting, mut finds) = a.follow(hash, 1001);
        let scope = TaskScope::root();
        let lsd = Lsd::start(&scope, Sockets::new(Some("lo"), None));
        let (found, _finds) = mpsc::channel(1);
        let announce =
            Announce { info_hash: hash, peer_id: [0; 20], port: 1002, key: 0, crypto: Crypto::None };
        let _following = lsd.follow(&scope, announce, found);
        assert_eq!(next(&mut finds).await.addrs[0].port(), 1002);
    }

    #[tokio::test]
    async fn a_torrent_whose_port_is_nowhere_hears_and_is_silent() {
        let (a, b) = (Program::new().await, Program::new().await);
        let hash = new_hash();
        let (_silent, mut finds_a) = a.follow(hash, 0);
        let (_said, mut finds_b) = b.follow(hash, 1002);
        assert_eq!(next(&mut finds_a).await.addrs[0].port(), 1002);
        assert!(finds_b.try_recv().is_err());
    }

    #[tokio::test]
    async fn following_ends_with_its_handle_its_channel_and_its_scope() {
        let a = Program::new().await;
        let count = |a: &Program| a.lsd.shared.state.lock().found.len();
        let gone = async |a: &Program| {
            while count(a) > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(a.lsd.shared.state.lock().plan.next(), None);
        };
        let (following, finds) = a.follow(new_hash(), 1);
        assert_eq!(count(&a), 1);
        drop(following);
        tokio::time::timeout(PATIENCE, gone(&a)).await.unwrap();
        drop(finds);
        let (_following, finds) = a.follow(new_hash(), 1);
        drop(finds);
        tokio::time::timeout(PATIENCE, gone(&a)).await.unwrap();
        let (_following, _finds) = a.follow(new_hash(), 1);
        a.scope.cancel();
        tokio::time::timeout(PATIENCE, gone(&a)).await.unwrap();
        assert!(a.scope.join(PATIENCE).await.is_empty());
        let (_late, _finds) = a.follow(new_hash(), 1);
        assert_eq!(count(&a), 0, "a cancelled scope follows nothing");
    }

    #[tokio::test]
    async fn a_torrent_that_takes_no_more_holds_nobody_up() {
        let (a, b) = (Program::new().await, Program::new().await);
        let hashes: Vec<_> = (0..10).map(|_| new_hash()).collect();
        let (_first, mut full) = a.follow(hashes[0], 1);
        let shared = a.lsd.shared.clone();
        let packet = |cookie| message::announce(GROUPS[0], 5, &hashes, cookie);
        // Its channel has room for one.
        (0..50).for_each(|_| hear(&shared, &packet("x"), "10.0.0.9:6771".parse().unwrap()));
        assert_eq!(next(&mut full).await.addrs, ["10.0.0.9:5".parse().unwrap()]);
        assert!(full.try_recv().is_err());
        // A link-local sender keeps its interface; one that can't be dialled is none.
        hear(&shared, &packet("x"), "[fe80::1%2]:6771".parse().unwrap());
        assert_eq!(next(&mut full).await.addrs, ["[fe80::1%2]:5".parse().unwrap()]);
        hear(&shared, &packet("x"), "0.0.0.0:6771".parse().unwrap());
        assert!(full.try_recv().is_err());
        let (_second, mut finds) = a.follow(hashes[1], 1);
        let (_third, _finds) = b.follow(hashes[1], 1002);
        assert_eq!(next(&mut finds).await.addrs[0].port(), 1002);
    }

    #[tokio::test]
    async fn without_an_interface_it_waits_and_ends_when_told() {
        let scope = TaskScope::root();
        let lsd = Lsd::start(&scope, Sockets::new(Some("no such device"), None));
        let (found, _finds) = mpsc::channel(1);
        let announce =
            Announce { info_hash: new_hash(), peer_id: [0; 20], port: 1, key: 0, crypto: Crypto::None };
        let _following = lsd.follow(&scope, announce, found);
        lsd.interfaces_changed();
        tokio::task::yield_now().await;
        assert_eq!(*lsd.open().borrow(), 0);
        scope.cancel();
        assert!(scope.join(PATIENCE).await.is_empty());
    }
}
