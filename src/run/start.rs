//! What commands that fetch have in common: the client of a configuration, a torrent to add to it, and what the
//! terminal shows of one.
//!
//! Nothing of a mount is named here: `cat` does without.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cli::exit::{Exit, Failure};
use crate::cli::inspect;
use crate::cli::terminal::{self, TorrentLine};
use crate::client::sources::{self, Loaded};
use crate::client::{Client, ClientError, Options};
use crate::config::{self, ClientConfig};
use crate::content::TorrentContent;
use crate::net::filter::Filter;
use crate::net::hosts::Reach;
use crate::net::sockets::Sockets;
use crate::storage::cache::{CacheDir, CacheError, default_path};
use crate::sync::tasks::TaskScope;
use crate::torrent::Torrent;
use crate::webseed::SeedState;

/// How often the live lines are drawn.
pub const DRAW: Duration = Duration::from_millis(250);

/// The cache folder, opened and locked.
///
/// # Errors
/// For the user.
pub fn open_cache(config: &ClientConfig) -> Result<Arc<CacheDir>, Failure> {
    let path = cache_path(config.cache_dir.as_deref())?;
    CacheDir::open(&path).map(Arc::new).map_err(|e| cache_failure(&e))
}

/// Where the cache folder is: as said, and otherwise the place of who runs this.
///
/// # Errors
/// For the user.
pub fn cache_path(said: Option<&Path>) -> Result<PathBuf, Failure> {
    match said {
        Some(path) => Ok(path.to_owned()),
        None => default_path(nix::unistd::geteuid().is_root(), variable).map_err(|e| cache_failure(&e)),
    }
}

/// A variable of the environment; the home folder as the system knows it where the environment says nothing, as when
/// `mount` started us. Waits for the system's list of users then.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).or_else(|| {
        let user = (name == "HOME").then(|| nix::unistd::User::from_uid(nix::unistd::geteuid()).ok())??;
        user.map(|user| user.dir.into())
    })
}

/// What is wrong with a cache folder, for the user.
pub fn cache_failure(error: &CacheError) -> Failure {
    Failure::new(Exit::Cache, "can't use the cache", error)
}

/// Starts the client of a configuration in tasks of `scope`.
///
/// # Errors
/// For the user.
pub async fn start_client(config: &ClientConfig, scope: TaskScope) -> Result<Arc<Client>, Failure> {
    let cache = open_cache(config)?;
    let filter = ip_filter(config.ip_filter.as_deref())?;
    Client::start(scope, cache, options(config, filter)).await.map_err(|error| client_failure(&error))
}

/// What kept the client from starting, or a torrent from being added, for the user.
pub fn client_failure(error: &ClientError) -> Failure {
    match error {
        ClientError::Listen { addr, source } => Failure::listen(addr, source),
        ClientError::Interface { name, source } => {
            Failure::new(Exit::Listen, format_args!("can't use the interface {name}"), source)
                .hint("ip link lists the interfaces there are")
        }
        ClientError::Cache(error) => cache_failure(error),
        ClientError::Thread(_) | ClientError::Closing => Failure::internal("can't start the client", error),
    }
}

/// The addresses whose peers are never spoken to. Blocks for as long as the disk takes.
///
/// # Errors
/// [`Exit::BadInput`].
fn ip_filter(path: Option<&Path>) -> Result<Arc<Filter>, Failure> {
    let Some(path) = path else { return Ok(Arc::default()) };
    let shown = path.display();
    let (filter, skipped) = Filter::load(path).map_err(|why| Failure::new(Exit::BadInput, &shown, why))?;
    if skipped.count > 0 {
        tracing::warn!("{shown}: {skipped}");
    }
    tracing::info!("{shown}: peers in {} ranges of addresses are never spoken to", filter.len());
    Ok(Arc::new(filter))
}

fn options(config: &ClientConfig, filter: Arc<Filter>) -> Options {
    let hosts = |list: &[config::HostPort]| list.iter().map(|h| (h.host.clone(), h.port)).collect();
    Options {
        listen_addr: config.listen.addr,
        listen_port: config.listen.port,
        interface: config.interface.clone(),
        proxy: config.proxy.clone(),
        peers: hosts(&config.peers),
        trackers: config.trackers.clone(),
        use_trackers: config.use_trackers,
        allow_private_hosts: config.allow_private_hosts,
        use_dht: config.use_dht,
        use_lsd: config.use_lsd,
        use_pex: config.use_pex,
        use_utp: config.use_utp,
        use_port_mapping: config.use_port_mapping,
        encryption: config.encryption,
        dht_bootstrap: (!config.dht_bootstrap.is_empty())
            .then(|| config.dht_bootstrap.iter().map(ToString::to_string).collect()),
        read_timeout: config.read_timeout,
        max_peers: config.max_peers as usize,
        max_connections: config.max_connections as usize,
        download_limit: config.download_limit,
        upload_limit: config.upload_limit,
        unlimited_local_peers: config.unlimited_local_peers,
        filter,
        upload: config.upload,
        goals: config.goals,
        storage: config.storage,
        cache_size: config.cache_size(),
        min_free: config.min_free,
        check_all: config.initial_check == config::InitialCheck::Full,
        trust_resume: config.trust_resume,
        prefetch: config.prefetch,
    }
}

/// How the sockets of a configuration are made.
pub fn sockets(config: &ClientConfig) -> Sockets {
    Sockets::new(config.interface.as_deref(), config.listen.addr).behind(config.proxy.as_ref())
}

/// Loads a source as it was written; a URL's redirects may lead as far as `reach` says, through `sockets`. Waits for the disk, or for the
/// network, bounded, with a URL.
///
/// # Errors
/// For the user.
pub async fn load(given: &OsStr, reach: Reach, sockets: &Sockets) -> Result<Loaded, Failure> {
    let source = config::parse_source(given).map_err(|e| Failure::source(given.display(), e))?;
    sources::load(&source, reach, sockets).await.map_err(|e| inspect::refused(&given.to_string_lossy(), &e))
}

/// Prints to standard output. A reader that has seen enough (a closed pipe) is no error.
/// Blocks for as long as nobody takes it.
///
/// # Errors
/// [`Exit::Internal`].
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, "can't write the output", why))
        }
        _ => Ok(()),
    }
}

/// What the terminal shows of a torrent.
pub fn line(torrent: &Torrent) -> TorrentLine {
    let status = torrent.status();
    let base = |file: crate::metainfo::geometry::FileIndex| {
        let shared = torrent.live();
        shared.and_then(|s| s.info.geometry.files().get(file.0 as usize)).map_or(0, |e| e.offset)
    };
    let waiting = status
        .waiting
        .iter()
        .map(|w| {
            let at = w.offset.saturating_sub(base(w.file));
            format!(
                "{} @ {} for {} s",
                TorrentContent::label(torrent, w.file),
                terminal::bytes(at),
                w.since.elapsed().as_secs()
            )
        })
        .collect();
    TorrentLine {
        name: torrent.name().to_owned(),
        state: status.state.as_str(),
        have: status.have,
        size: status.size,
        rate_down: status.rate_down,
        rate_up: status.rate_up,
        peers: status.peers as u32,
        connecting: status.connecting as u32,
        waiting,
        error: status.error.clone(),
        webseeds: torrent.webseeds().iter().filter(|seed| seed.state != SeedState::Dropped).count() as u32,
    }
}
