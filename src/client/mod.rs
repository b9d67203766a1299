//! The client: the table of torrents, the listener, and what all torrents share.
//!
//! Under its one lock lies the table of torrents and nothing else; each torrent's state belongs to its owner
//! task ([`crate::torrent::owner`]). Parts: [`sources`] turns what the user gave into a torrent to add;
//! [`listen`] takes connections and hands each to the torrent it asks for; [`remove`] ends one.

mod dormant;
#[cfg(test)]
pub(crate) mod for_tests;
mod keeper;
pub mod listen;
mod moves;
mod nodes;
pub mod parts;
mod plan;
pub mod remove;
mod slots;
pub mod sources;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore, oneshot};
use torrentfs_fs::lock::{Rank, RankedRwLock};

use crate::discovery::dht::id::Family as DhtFamily;
use crate::discovery::dht::{Dht, DhtOptions, DhtStatus};
use crate::discovery::lsd::Lsd;
use crate::discovery::tracker::{TrackerOptions, http_clients};
use crate::discovery::{FoundPeers, PeerSource};
use crate::metainfo::id::InfoHash;
use crate::net::addresses::Watch;
use crate::net::connections::Connections;
use crate::net::filter::Filter;
use crate::net::hosts::{Reach, is_private};
use crate::net::limit::RateLimit;
use crate::net::mapping::port::OurPort;
use crate::net::mapping::{self, PortMapping, Ports, Protocol, Setup};
use crate::net::ours::Ours;
use crate::net::proxy::Proxy;
use crate::net::sockets::Sockets;
use crate::net::transport::Transport;
use crate::net::utp;
use crate::peer::connect::Ways;
use crate::peer::mse::{self, Policy};
use crate::storage::StorageKind;
use crate::storage::added::time_added;
use crate::storage::cache::{CacheDir, CacheError};
use crate::storage::pool::{Class, Job, Workers};
use crate::storage::quota::Quota;
use crate::storage::tally::Tally;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use crate::torrent::background::Prefetch;
use crate::torrent::goal::Goals;
use crate::torrent::memory::Memory;
use crate::torrent::owner::{Environment, Plan};
use crate::torrent::prepare::{Home, Opening};
use crate::torrent::recent::{self, Recent};
use crate::torrent::room::Room;
use crate::torrent::swarm::Settings;
use crate::torrent::table::ReadClock;
use crate::torrent::{Command, Torrent, owner};
use crate::webseed::{Hub, HubOptions, Kind, Seed};
use dormant::Dormant;
use keeper::Keeper;
use listen::Listener;
use parts::{Part, Parts};
use slots::Slots;
use sources::Loaded;

/// Threads that do blocking work. Hashing is what costs, so one per core; one more, so that a disk that keeps
/// some waiting doesn't keep all.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 1
}

/// How soon workers are asked again that took no more.
const FULL: Duration = Duration::from_millis(20);
/// Torrents that are ended at a time: each has the workers record what is complete, and they take a thousand jobs.
const ENDING: usize = 64;

/// How the client is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where peers reach us; `None` for all addresses.
    pub listen_addr: Option<IpAddr>,
    /// The port; `None` for 6881 or the next free one, 0 for any.
    pub listen_port: Option<u16>,
    /// The interface that all sockets are bound to, by its name; `None` for all.
    pub interface: Option<String>,
    /// Through which all goes, and nothing past it.
    pub proxy: Option<Proxy>,
    /// Peers to try for every torrent, as `host:port`.
    pub peers: Vec<(String, u16)>,
    /// Trackers for every torrent, in addition.
    pub trackers: Vec<String>,
    /// Whether to ask trackers.
    pub use_trackers: bool,
    /// Whether all torrents may name hosts of the local network, not only those of local files.
    pub allow_private_hosts: bool,
    /// Whether to use the DHT.
    pub use_dht: bool,
    /// Whether to look for peers in the local network.
    pub use_lsd: bool,
    /// Whether peers may introduce others.
    pub use_pex: bool,
    /// Whether to reach peers over uTP, too, and to be reached so.
    pub use_utp: bool,
    /// Whether to ask the router to let peers through.
    pub use_port_mapping: bool,
    /// Whether connections to peers are encrypted.
    pub encryption: Policy,
    /// Where to enter the DHT; `None` for the well-known nodes.
    pub dht_bootstrap: Option<Vec<String>>,
    /// See [`Settings::read_timeout`].
    pub read_timeout: Option<Duration>,
    /// Most connected peers of one torrent.
    pub max_peers: usize,
    /// Most connections of all torrents together.
    pub max_connections: usize,
    /// Bytes per second received, all torrents together.
    pub download_limit: Option<u64>,
    /// Bytes per second sent, all torrents together.
    pub upload_limit: Option<u64>,
    /// Whether the limits leave out peers of the local network.
    pub unlimited_local_peers: bool,
    /// Addresses whose peers are never spoken to.
    pub filter: Arc<Filter>,
    /// Whether peers may have blocks of us.
    pub upload: bool,
    /// When enough was given back of a torrent.
    pub goals: Goals,
    /// Where data is kept.
    pub storage: StorageKind,
    /// Bytes of data that all torrents together keep at most; `None` for no bound.
    pub cache_size: Option<u64>,
    /// Bytes that are to stay free on the disk of the cache; `None` for a share of its size.
    pub min_free: Option<u64>,
    /// Whether all data on disk is hashed at the start.
    pub check_all: bool,
    /// Whether what an earlier run recorded as complete is believed.
    pub trust_resume: bool,
    /// What is fetched beyond what is read.
    pub prefetch: Prefetch,
}

/// Why the client can't start, or a torrent can't be added.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The port is taken, or the address isn't ours.
    #[error("can't listen at {addr}: {source}")]
    Listen {
        /// Where.
        addr: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no such interface, or we may not bind to it.
    #[error("can't use the interface {name}: {source}")]
    Interface {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
    /// The cache folder.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The program ends.
    #[error("the program is just ending")]
    Closing,
}

/// See [`Client::view`].
pub struct View {
    /// The torrents; `None` when somebody kept the table locked.
    pub torrents: Option<Vec<Arc<Torrent>>>,
    /// Who does blocking work.
    pub workers: Arc<Workers>,
    /// How much may be kept.
    pub room: Room,
    /// What the pieces in the making may take.
    pub memory: Memory,
    /// What all webseeds share.
    pub hub: Arc<Hub>,
    /// `None` when it is off.
    pub dht: Option<Arc<Dht>>,
}

/// The client. Shared; it runs until its scope is cancelled.
pub struct Client {
    scope: TaskScope,
    cache: Arc<CacheDir>,
    env: Environment,
    options: Options,
    connections: Connections,
    peer_id: [u8; 20],
    port: OurPort,
    parts: Parts,
    mapping: Option<Arc<PortMapping>>,
    torrents: RankedRwLock<Vec<Arc<Torrent>>>,
    dormant: Arc<Dormant>,
    /// Turns of those who end a torrent.
    ending: Arc<Semaphore>,
    slots: Slots,
}

impl Client {
    /// Starts the workers, the listener, uTP, the DHT, local service discovery and port mapping. Waits for the disk and for
    /// binding only.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start(
        scope: TaskScope,
        cache: Arc<CacheDir>,
        options: Options,
    ) -> Result<Arc<Self>, ClientError> {
        let sockets = Sockets::new(options.interface.as_deref(), options.listen_addr);
        let sockets = sockets.behind(options.proxy.as_ref());
        sockets.check().map_err(|source| ClientError::Interface {
            name: options.interface.clone().unwrap_or_default(),
            source,
        })?;
        let parts = Parts::of(&options);
        let listener = if parts.runs(Part::Listening) {
            let udp = parts.runs(Part::Dht) || parts.runs(Part::Utp);
            Listener::bind(&sockets, options.listen_addr, options.listen_port, udp, &cache).await?
        } else {
            Listener::closed()
        };
        let mapping = parts.runs(Part::PortMapping).then(|| {
            let udp = listener.udp().and_then(|udp| udp.local_addr(false).or(udp.local_addr(true)));
            let ports = Ports { tcp: listener.port(), udp: udp.map(|at| at.port()) };
            PortMapping::start(&scope, sockets.clone(), Setup::new(ports, options.interface.as_deref()))
        });
        let inside = Some(listener.port()).filter(|port| *port != 0);
        let port = match &mapping {
            Some(mapping) => OurPort::mapped(inside, mapping.changed()),
            None => inside.into(),
        };
        let workers = Workers::start(worker_threads()).map_err(ClientError::Thread)?;
        let trackers = options
            .use_trackers
            .then(|| TrackerOptions { port: port.clone(), ..TrackerOptions::new(http_clients(&sockets)) });
        let hub = Hub::new(HubOptions::default(), sockets.clone());
        let (utp, incoming) = listener
            .udp()
            .filter(|_| parts.runs(Part::Utp))
            .map(|udp| {
                utp::Socket::start(&scope, udp.clone(), utp::Limits::default(), options.filter.clone())
            })
            .unzip();
        let watch = Watch::new(sockets.clone());
        let ours = Ours::new(watch.known());
        let loopback = options.listen_addr.is_some_and(|addr| addr.is_loopback());
        let udp = listener.udp().filter(|_| parts.runs(Part::Dht));
        let dht = udp.map(|udp| {
            let dht_options = DhtOptions {
                // The well-known nodes can't be reached from loopback: without others it is a network of one's own, and
                // all who are there reach us.
                bootstrap: options.dht_bootstrap.clone().or_else(|| loopback.then(Vec::new)),
                // The router may show another port than ours to the outside.
                implied: udp
                    .local_addr(false)
                    .or(udp.local_addr(true))
                    .is_some_and(|at| at.port() == listener.port()),
                port: port.clone(),
                ours: ours.clone(),
                serve: loopback,
                filter: options.filter.clone(),
            };
            let keep = Arc::new(nodes::KeptNodes::new(cache.clone(), workers.clone()));
            let dht = Dht::start(&scope, dht_options, Some(keep), udp.clone());
            // Without a router in front, strangers reach us: it takes part from the start.
            let public = |addr: &IpAddr| addr.is_ipv4() && !is_private(*addr);
            if sockets.interfaces().iter().flat_map(|interface| &interface.addrs).any(public) {
                dht.set_public(DhtFamily::V4, true);
            }
            let dht = Arc::new(dht);
            if let Some(mapping) = &mapping {
                scope.spawn("mapped ports", tell_of_mapping(dht.clone(), mapping.clone()));
            }
            dht
        });
        if let Some(udp) = listener.udp() {
            udp.run(&scope);
        }
        let lsd = parts.runs(Part::Lsd).then(|| Lsd::start(&scope, sockets.clone()));
        let utp = utp.map(|utp| utp as Arc<dyn Transport>);
        let ways = Ways { sockets, utp, encryption: options.encryption };
        let client = Arc::new(Self {
            env: Environment {
                workers,
                ways,
                recent: Recent::new(recent::KEPT),
                trackers,
                hub,
                dht,
                lsd,
                ours,
                changed: Arc::new(Notify::new()),
                limits: (RateLimit::new(options.download_limit), RateLimit::new(options.upload_limit)),
                spare_local: options.unlimited_local_peers,
                memory: Memory::default(),
                room: Room::new(Arc::new(Quota::new(keeper::bound(&options)))),
                clock: ReadClock::default(),
            },
            peer_id: new_peer_id(),
            port,
            parts,
            mapping,
            torrents: RankedRwLock::new(Rank::Client, "torrents", Vec::new()),
            dormant: Arc::new(Dormant::new()),
            ending: Arc::new(Semaphore::new(ENDING)),
            slots: Slots::default(),
            cache,
            connections: Connections::new(options.max_connections),
            options,
            scope,
        });
        listener.run(&client, incoming);
        moves::start(&client, watch);
        Keeper::start(&client, &client.scope);
        Ok(client)
    }

    /// The port where peers reach us, in this machine; 0 if they can't.
    pub fn port(&self) -> u16 {
        self.port.inside().unwrap_or(0)
    }

    /// The same as the internet sees it.
    pub fn port_outside(&self) -> u16 {
        self.port.outside().unwrap_or(0)
    }

    /// Which parts of the network don't run.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What the router maps for us; `None` when it isn't asked.
    pub fn mapping(&self) -> Option<mapping::Status> {
        self.mapping.as_ref().map(|mapping| mapping.status())
    }

    /// Whether peers are reached over uTP, too.
    pub fn has_utp(&self) -> bool {
        self.env.ways.utp.is_some()
    }

    /// How its node in the DHT is doing; `None` without one.
    pub fn dht(&self) -> Option<DhtStatus> {
        self.env.dht.as_ref().map(|dht| dht.status())
    }

    /// Whether peers are looked for in the local network.
    pub fn has_lsd(&self) -> bool {
        self.env.lsd.is_some()
    }

    /// How its sockets are made.
    pub fn sockets(&self) -> &Sockets {
        &self.env.ways.sockets
    }

    /// The limits of all torrents together, on what is received and sent; they can be changed at any time. Those of one
    /// torrent are its sessions' ([`crate::torrent::sessions::Sessions::limits`]).
    pub fn limits(&self) -> &(RateLimit, RateLimit) {
        &self.env.limits
    }

    /// The folder that holds the data.
    pub fn cache(&self) -> &Arc<CacheDir> {
        &self.cache
    }

    /// Where data is kept.
    pub fn storage(&self) -> StorageKind {
        self.options.storage
    }

    /// How far what doesn't come from local files may lead.
    pub fn reach(&self) -> Reach {
        Reach::of(self.options.allow_private_hosts)
    }

    /// The account of what is kept.
    pub fn quota(&self) -> &Arc<Quota> {
        self.env.room.quota()
    }

    /// Bytes of data that are kept, of all torrents in the cache, and how many may be.
    pub fn kept(&self) -> (u64, Option<u64>) {
        (self.env.room.quota().used(), self.options.cache_size)
    }

    /// Bytes free on the disk of the cache. Asked on a storage worker, so it takes as long as the disk; bound it.
    /// `None` when that can't be told. Cancel-safe.
    pub async fn free_space(&self) -> Option<u64> {
        let (done, answer) = oneshot::channel();
        let cache = self.cache.clone();
        let job = Box::new(move |_: &mut _| _ = done.send(cache.space().ok()));
        // Somebody is looking at it: as for a peer that waits for a block.
        self.env.workers.submit(Class::Serve, job).ok()?;
        answer.await.ok()?.map(|space| space.free)
    }

    /// As [`Client::free_space`], to be told on a worker. Returns at once; false when the workers take no more, and
    /// nobody is told.
    pub fn tell_free_space(&self, told: impl FnOnce(Option<u64>) + Send + 'static) -> bool {
        let cache = self.cache.clone();
        let job = Box::new(move |_: &mut _| told(cache.space().ok().map(|space| space.free)));
        self.env.workers.submit(Class::Serve, job).is_ok()
    }

    /// Whether a torrent is just being removed: [`Client::add`] would wait for that.
    pub fn is_being_removed(&self, info_hash: &InfoHash) -> bool {
        self.dormant.is_closing(&info_hash.to_string())
    }

    /// All torrents, in the order in which they were added.
    pub fn torrents(&self) -> Vec<Arc<Torrent>> {
        self.torrents.read().clone()
    }

    /// What all torrents share, to look at from any thread: for diagnostics. Waits for the table of torrents
    /// `limit` at most, and is without it after that.
    pub fn view(&self, limit: Duration) -> View {
        View {
            torrents: self.torrents.read_within(limit).map(|torrents| torrents.clone()),
            workers: self.env.workers.clone(),
            room: self.env.room.clone(),
            memory: self.env.memory.clone(),
            hub: self.env.hub.clone(),
            dht: self.env.dht.clone(),
        }
    }

    /// The torrent that peers know by these 20 bytes.
    pub fn find(&self, wire: [u8; 20]) -> Option<Arc<Torrent>> {
        self.torrents.read().iter().find(|t| t.info_hash.wire().0 == wire).cloned()
    }

    /// The 20 bytes on the wire of the torrent that peers who encrypt call by this name ([`mse::obscured`]).
    pub fn find_obscured(&self, name: &[u8; 20]) -> Option<[u8; 20]> {
        let torrents = self.torrents.read();
        let found = mse::find(name, torrents.iter().map(|torrent| &torrent.obscured))?;
        torrents.get(found).map(|torrent| torrent.info_hash.wire().0)
    }

    /// How connections to peers are encrypted.
    pub fn encryption(&self) -> Policy {
        self.options.encryption
    }

    /// Waits until a torrent was added, its metadata came, or it failed. Wakes one waiter. Cancel-safe.
    pub async fn changed(&self) {
        self.env.changed.notified().await;
    }

    /// Adds a torrent, or returns the one that is there already, which gets the webseeds, trackers and peers that it
    /// didn't have; webseeds that had ended are started anew. Waits for the disk, to make its folder, and while the
    /// same torrent is just being removed ([`Client::remove`]).
    ///
    /// # Errors
    /// When its folder in the cache can't be made.
    pub async fn add(&self, loaded: Loaded) -> Result<Arc<Torrent>, ClientError> {
        self.add_for(loaded, true).await
    }

    /// As [`Client::add`], for a folder that is watched: unless somebody else adds the torrent, too, it goes with its
    /// last file there ([`Client::remove_watched`]). Without the webseeds, which go as soon as no file names them any
    /// more: what all files name together is said by [`Client::watched_webseeds`].
    ///
    /// # Errors
    /// As [`Client::add`].
    pub async fn add_watched(&self, loaded: Loaded) -> Result<Arc<Torrent>, ClientError> {
        self.add_for(Loaded { webseeds: Vec::new(), ..loaded }, false).await
    }

    /// The files of a watched folder that stand for a torrent name these webseeds now, and no others. Waits for the owner
    /// to take that, bounded.
    pub async fn watched_webseeds(&self, torrent: &Torrent, webseeds: Vec<Seed>) {
        let all = self.options.allow_private_hosts;
        let webseeds = webseeds.into_iter().map(|seed| Seed { trusted: seed.trusted || all, ..seed });
        let told = torrent.command(Command::Watched { webseeds: webseeds.collect() });
        if tokio::time::timeout(timeouts::CONTROL_ANSWER, told).await.is_err() {
            tracing::warn!("{} doesn't take the webseeds of its files; touch one of them", torrent.name());
        }
    }

    /// The torrent that is there already. It is named from now on if this one who adds it does: said under the table's
    /// lock, so that [`Client::remove_watched`] sees it or is over.
    fn known(&self, wire: [u8; 20], named: bool) -> Option<Arc<Torrent>> {
        let torrents = self.torrents.read();
        let known = torrents.iter().find(|t| t.info_hash.wire().0 == wire)?;
        known.named.fetch_or(named, Ordering::Relaxed);
        Some(known.clone())
    }

    /// A torrent that is there was added once more: it gets what it didn't have. Waits for the resolver, where peers are
    /// given by name, and for the owner to take its commands, both bounded.
    async fn extend(&self, torrent: &Torrent, loaded: Loaded) {
        let peers = resolve(&loaded.peers, PeerSource::Magnet, self.sockets()).await;
        let webseeds = self.seeds(loaded.webseeds, loaded.trusted);
        let reach = if loaded.trusted { Reach::Any } else { self.reach() };
        if !torrent.live().is_some_and(|shared| shared.info.private) {
            self.hint_nodes(loaded.nodes, loaded.trusted);
        }
        let more = Command::Extend { trackers: loaded.trackers, reach, webseeds, peers };
        if tokio::time::timeout(timeouts::CONTROL_ANSWER, torrent.command(more)).await.is_err() {
            tracing::warn!("{} doesn't take its further webseeds and trackers; try again", torrent.name());
        }
    }

    /// Tells the DHT of nodes that a torrent names, which isn't private. One from the web may not name those of the local
    /// network.
    fn hint_nodes(&self, nodes: Vec<(String, u16)>, trusted: bool) {
        if let Some(dht) = self.env.dht.as_ref() {
            dht.add_nodes(nodes, if trusted { Reach::Any } else { self.reach() });
        }
    }

    /// Webseeds, each with whether it may lead into the local network.
    fn seeds(&self, webseeds: Vec<(Kind, String)>, trusted: bool) -> Vec<Seed> {
        let trusted = trusted || self.options.allow_private_hosts;
        webseeds.into_iter().map(|(kind, url)| Seed { url, kind, trusted }).collect()
    }

    async fn add_for(&self, loaded: Loaded, named: bool) -> Result<Arc<Torrent>, ClientError> {
        let wire = loaded.info_hash.wire().0;
        let key = loaded.info_hash.to_string();
        let claim = loop {
            if let Some(known) = self.known(wire, named) {
                self.extend(&known, loaded).await;
                return Ok(known);
            }
            let claim = self.dormant.claim(&key).await;
            // Somebody may have added it meanwhile, and somebody may be about to remove that one.
            if let Some(known) = self.known(wire, named) {
                self.extend(&known, loaded).await;
                return Ok(known);
            }
            if !self.dormant.is_closing(&key) {
                break claim;
            }
        };
        let (cache, folder, made) = (self.cache.clone(), key.clone(), loaded.created.is_some());
        let tallied = self.options.goals.is_any() && self.options.storage != StorageKind::Memory;
        let prepare = move || -> Result<_, ClientError> {
            let dir = cache.torrent_dir(&folder)?;
            let added = if made { now_seconds() } else { time_added(&dir, now_seconds()) };
            let past = if tallied { Tally::kept(&dir) } else { Tally::default() };
            Ok((dir, added, past))
        };
        let (dir, added, past) = self.on_worker(prepare).await.ok_or(ClientError::Closing)??;
        let mut peers = Vec::new();
        for (source, list) in
            [(PeerSource::CommandLine, &self.options.peers), (PeerSource::Magnet, &loaded.peers)]
        {
            peers.extend(resolve(list, source, self.sockets()).await);
        }
        if !loaded.info.as_ref().is_some_and(|info| info.private) {
            self.hint_nodes(loaded.nodes, loaded.trusted);
        }
        let webseeds = self.seeds(loaded.webseeds, loaded.trusted);
        let mut trackers = loaded.trackers;
        if !self.options.trackers.is_empty() {
            trackers.push(self.options.trackers.clone());
        }
        let slot = self.slots.take(wire);
        let plan = Plan {
            slot,
            info_hash: loaded.info_hash,
            hint: loaded.hint,
            added,
            created: loaded.created,
            info: loaded.info,
            trackers,
            named_trackers: self.options.trackers.clone(),
            reach: if loaded.trusted { Reach::Any } else { self.reach() },
            webseeds,
            peers,
            past,
            charged: claim.charged(),
            home: Home::new(dir, key, self.cache.spare().clone()),
            opening: Opening {
                trust: self.options.trust_resume,
                kind: self.options.storage,
                capacity: self.env.room.quota().bound().unwrap_or(u64::MAX),
            },
            settings: Settings {
                info_hash: wire,
                peer_id: self.peer_id,
                listen_port: self.port.clone(),
                max_peers: self.options.max_peers,
                connections: self.connections.clone(),
                read_timeout: self.options.read_timeout,
                filter: self.options.filter.clone(),
                upload: self.options.upload,
                goals: self.options.goals,
                pex: self.options.use_pex,
                punch: self.env.ways.utp.is_some(),
                encryption: self.options.encryption,
                check_all: self.options.check_all,
                prefetch: self.options.prefetch,
                memory: self.env.memory.clone(),
                quota: self.env.room.quota().clone(),
                check_invariants: cfg!(debug_assertions),
            },
        };
        let scope = self.scope.child(&format!("torrent {}", plan.info_hash.short8()));
        let torrent = owner::start(scope, plan, self.env.clone());
        torrent.named.store(named, Ordering::Relaxed);
        self.torrents.write().push(torrent.clone());
        claim.opened();
        self.env.changed.notify_one();
        Ok(torrent)
    }

    /// Records what is complete, of all torrents at once; no longer than `limit`. Returns the names of those
    /// that didn't manage.
    pub async fn persist(&self, clean: bool, limit: Duration) -> Vec<String> {
        self.tell_all(limit, |done| Command::Persist { clean, done }).await
    }

    /// Tells the trackers that we leave, and has the router let nobody through any more; no longer than `limit`. Returns the
    /// names of torrents whose trackers weren't told in time.
    pub async fn leave(&self, limit: Duration) -> Vec<String> {
        let told = self.tell_all(limit, |done| Command::Leave { limit, done });
        let removed = async {
            if let Some(mapping) = &self.mapping
                && !mapping.remove(limit.min(timeouts::MAPPING_REMOVE)).await
            {
                tracing::debug!("the router didn't take all ports back in time");
            }
        };
        futures_util::future::join(told, removed).await.0
    }

    async fn tell_all(
        &self,
        limit: Duration,
        command: impl Fn(oneshot::Sender<()>) -> Command,
    ) -> Vec<String> {
        let tell = async |torrent: Arc<Torrent>, command: Command, answer: oneshot::Receiver<()>| {
            let ask = async { torrent.command(command).await && answer.await.is_ok() };
            match tokio::time::timeout(limit, ask).await {
                Ok(_) => None,
                Err(_) => Some(torrent.name().to_owned()),
            }
        };
        let all = self.torrents().into_iter().map(|torrent| {
            let (done, answer) = oneshot::channel();
            tell(torrent, command(done), answer)
        });
        futures_util::future::join_all(all).await.into_iter().flatten().collect()
    }

    /// Does something that may wait for a disk, on a storage worker; waits as long as they take no more. `None` when they
    /// are closed, or it panicked. Cancel-safe: what is begun is done.
    pub async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        on_worker(&self.env.workers, work).await
    }

    /// Runs something in a named task of the client's; refused when the program ends.
    pub fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.scope.spawn(name, task);
    }

    /// Stops the workers; blocks up to `limit`. Returns the threads that are left, by name.
    pub fn stop_workers(&self, limit: Duration) -> Vec<String> {
        self.env.workers.stop(limit)
    }
}

/// See [`Client::on_worker`].
async fn on_worker<T: Send + 'static>(
    workers: &Workers,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, answer) = oneshot::channel();
    let mut job: Job = Box::new(move |_: &mut _| _ = done.send(work()));
    while let Err(refused) = workers.submit(Class::Verify, job) {
        if workers.is_closed() {
            return None;
        }
        // A thousand jobs stand before it.
        tokio::time::sleep(FULL).await;
        job = refused;
    }
    answer.await.ok()
}

/// Tells the DHT whether the router lets strangers through to it.
async fn tell_of_mapping(dht: Arc<Dht>, mapping: Arc<PortMapping>) {
    let mut changed = mapping.changed();
    let mut told = false;
    while changed.changed().await.is_ok() {
        let status = mapping.status();
        // With trouble it is of no use.
        let mapped = status.port(Protocol::Udp).is_some() && status.trouble.is_none();
        if std::mem::replace(&mut told, mapped) != mapped {
            dht.set_public(DhtFamily::V4, mapped);
        }
    }
}

/// Our peer id for this run: the client's letters and version as BEP 20 has them, and random bytes.
fn new_peer_id() -> [u8; 20] {
    let mut id: [u8; 20] = rand::random();
    for (to, from) in id.iter_mut().zip(*b"-TF0010-") {
        *to = from;
    }
    id
}

/// Seconds since the epoch.
fn now_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Addresses of hosts given by name or address, of each host for itself. Names that don't resolve are left out with a
/// warning, and so are all behind a proxy. Waits for the resolver, bounded, all at once.
async fn resolve(hosts: &[(String, u16)], source: PeerSource, sockets: &Sockets) -> Vec<FoundPeers> {
    let look = async |host: &str, port: u16| {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return vec![SocketAddr::new(ip, port)];
        }
        if sockets.proxy().is_some() {
            tracing::warn!("the peer {host}:{port} is left out: with --proxy it takes an address, no name");
            return Vec::new();
        }
        let found =
            tokio::time::timeout(crate::sync::timeouts::RESOLVE, tokio::net::lookup_host((host, port)));
        match found.await {
            Ok(Ok(addrs)) => addrs.collect(),
            Ok(Err(error)) => {
                tracing::warn!("the peer {host}:{port} can't be found: {error}");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!("the peer {host}:{port} can't be found: no answer in time");
                Vec::new()
            }
        }
    };
    let all = hosts.iter().map(|(host, port)| look(host, *port));
    let found = futures_util::future::join_all(all).await.into_iter();
    found.filter(|addrs| !addrs.is_empty()).map(|addrs| FoundPeers { source, addrs }).collect()
}

#[cfg(test)]
mod dht_tests;
#[cfg(test)]
mod panic_tests;
#[cfg(test)]
mod webseed_tests;
