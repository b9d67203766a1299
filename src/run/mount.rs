//! `torrentfs mount`: from a configuration to a mount that is up, and down again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use torrentfs_fs::content::Content;
use torrentfs_fs::mount::{MountError, MountOptions, mount};
use torrentfs_fs::session::Mounted;

use super::shutdown::{Running, shut_down};
use super::signals::Signals;
use crate::cli::exit::{Exit, Failure};
use crate::cli::inspect;
use crate::cli::terminal::{self, Display, TorrentLine};
use crate::client::sources;
use crate::client::{Client, ClientError, Options};
use crate::config::{self, Config};
use crate::content::TorrentContent;
use crate::storage::cache::{CacheDir, CacheError, default_path};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use crate::torrent::Torrent;
use crate::torrent::status::State;

/// How often the live lines are drawn.
const DRAW: Duration = Duration::from_millis(250);

/// Mounts and stays until a signal comes or somebody unmounts from outside.
///
/// # Errors
/// What kept the mount from coming up, for the user.
pub fn run(config: &Config) -> Result<Exit, Failure> {
    let mut display = Display::new(terminal::is_live());
    crate::cli::log::init(config.verbosity, config.log_format, display.writer(), terminal::is_live())?;
    let result = super::on_runtime(run_async(config, &mut display));
    display.finish();
    result
}

async fn run_async(config: &Config, display: &mut Display) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let client_scope = scope.child("client");
    let start = async {
        let client = start_client(config, client_scope).await?;
        let added = add_sources(&client, config).await;
        Ok::<_, Failure>((client, added))
    };
    let (client, added) = tokio::select! {
        started = start => started?,
        () = signals.reached(1) => {
            // Nothing is mounted yet, and nothing was fetched.
            let nothing = Running { mounted: None, clients: Vec::new(), scope };
            return Ok(shut_down(nothing, config.shutdown_timeout).await);
        }
    };
    let mut running = Running { mounted: None, clients: vec![client.clone()], scope: scope.clone() };
    let torrents = match added {
        Ok(torrents) => torrents,
        Err(failure) => {
            shut_down(running, config.shutdown_timeout).await;
            return Err(failure);
        }
    };
    match mount_client(&client, config, &scope) {
        Ok(mounted) => running.mounted = Some(mounted),
        Err(failure) => {
            shut_down(running, config.shutdown_timeout).await;
            return Err(failure);
        }
    }
    Ok(stay(running, &signals, &torrents, config, display).await)
}

/// Waits for the end while the mount is up, shows what goes on, and takes it down.
pub async fn stay(
    running: Running,
    signals: &Signals,
    torrents: &[Arc<Torrent>],
    config: &Config,
    display: &mut Display,
) -> Exit {
    let ended = Arc::new(Notify::new());
    if let Some(mounted) = running.mounted.clone() {
        let ended = ended.clone();
        mounted.on_end(move || ended.notify_one());
    }
    let started = tokio::time::Instant::now();
    let mut ready = false;
    let mut draw = tokio::time::interval(DRAW);
    draw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signals.reached(1) => break,
            () = ended.notified() => {
                tracing::info!("unmounted from outside");
                break;
            }
            _ = draw.tick() => {
                display.update(lines(torrents));
                let waiting = torrents.iter().any(|t| t.status().state == State::Resolving);
                if !ready && (!waiting || started.elapsed() >= config.metadata_timeout) {
                    ready = true;
                    say_ready(torrents, config);
                }
            }
        }
    }
    let mounted = running.mounted.clone();
    let down = shut_down(running, config.shutdown_timeout);
    tokio::select! {
        exit = down => exit,
        () = signals.reached(2) => {
            tracing::error!("a second signal: leaving at once");
            if let Some(mounted) = mounted {
                // Detaches what it can; the process ends right after, which closes /dev/fuse.
                let _ = std::thread::Builder::new().name("forced unmount".into()).spawn(move || mounted.unmount(timeouts::FORCED));
                tokio::time::sleep(timeouts::FORCED).await;
            }
            Exit::Forced
        }
    }
}

fn say_ready(torrents: &[Arc<Torrent>], config: &Config) {
    let late: Vec<&str> =
        torrents.iter().filter(|t| t.status().state == State::Resolving).map(|t| t.name()).collect();
    if late.is_empty() {
        let plural = if torrents.len() == 1 { "" } else { "s" };
        tracing::info!("ready: {} torrent{plural} at {}", torrents.len(), config.mountpoint.display());
    } else {
        tracing::warn!(
            "ready, but the metadata of {} hasn't come within {:?}; it appears when it comes",
            late.join(", "),
            config.metadata_timeout
        );
    }
}

/// The cache folder, opened and locked.
///
/// # Errors
/// For the user.
pub fn open_cache(config: &Config) -> Result<Arc<CacheDir>, Failure> {
    let path = match &config.cache_dir {
        Some(path) => path.clone(),
        None => default_path(nix::unistd::geteuid().is_root(), |name| std::env::var_os(name))
            .map_err(|e| cache_failure(&e))?,
    };
    CacheDir::open(&path).map(Arc::new).map_err(|e| cache_failure(&e))
}

fn cache_failure(error: &CacheError) -> Failure {
    Failure::new(Exit::Cache, "can't use the cache", error)
}

/// Starts the client of a configuration in tasks of `scope`.
///
/// # Errors
/// For the user.
pub async fn start_client(config: &Config, scope: TaskScope) -> Result<Arc<Client>, Failure> {
    let cache = open_cache(config)?;
    Client::start(scope, cache, options(config)).await.map_err(|error| client_failure(&error))
}

fn client_failure(error: &ClientError) -> Failure {
    match error {
        ClientError::Listen { addr, source } => Failure::listen(addr, source),
        ClientError::Cache(error) => cache_failure(error),
        ClientError::Thread(_) | ClientError::Http(_) => Failure::internal("can't start the client", error),
    }
}

fn options(config: &Config) -> Options {
    let hosts = |list: &[config::HostPort]| list.iter().map(|h| (h.host.clone(), h.port)).collect();
    Options {
        listen_addr: config.listen.addr,
        listen_port: config.listen.port,
        peers: hosts(&config.peers),
        trackers: config.trackers.clone(),
        use_trackers: config.use_trackers,
        use_dht: config.use_dht,
        use_pex: config.use_pex,
        dht_bootstrap: (!config.dht_bootstrap.is_empty())
            .then(|| config.dht_bootstrap.iter().map(ToString::to_string).collect()),
        read_timeout: config.read_timeout,
        max_peers: config.max_peers as usize,
        download_limit: config.download_limit,
        upload_limit: config.upload_limit,
        upload: config.upload,
        check_all: config.initial_check == config::InitialCheck::Full,
        trust_resume: config.trust_resume,
        prefetch: crate::torrent::background::Prefetch::None,
    }
}

/// Adds all sources. A bad one doesn't keep the others from mounting; when all are bad there is nothing to
/// mount.
async fn add_sources(client: &Arc<Client>, config: &Config) -> Result<Vec<Arc<Torrent>>, Failure> {
    let loading = config.sources.iter().map(async |given| {
        let source = config::parse_source(given).map_err(|e| Failure::source(given.display(), e))?;
        sources::load(&source).await.map_err(|e| inspect::refused(&given.to_string_lossy(), &e))
    });
    let mut torrents: Vec<Arc<Torrent>> = Vec::new();
    let mut failures = Vec::new();
    for loaded in futures_util::future::join_all(loading).await {
        match loaded {
            Ok(loaded) => match client.add(loaded).await {
                Ok(torrent) if torrents.iter().any(|t| t.slot == torrent.slot) => {}
                Ok(torrent) => torrents.push(torrent),
                Err(error) => failures.push(client_failure(&error)),
            },
            Err(failure) => failures.push(failure),
        }
    }
    if torrents.is_empty()
        && let Some(failure) = failures.pop()
    {
        for other in failures {
            tracing::error!("{other}");
        }
        return Err(failure);
    }
    for failure in failures {
        tracing::error!("left out: {failure}");
    }
    // So that what is known shows in the mount from its first moment.
    let settled = futures_util::future::join_all(torrents.iter().map(|t| t.settled()));
    if tokio::time::timeout(timeouts::SETTLE, settled).await.is_err() {
        tracing::warn!("the disk is slow to tell what is here; mounting without waiting longer");
    }
    Ok(torrents)
}

/// Mounts a client's torrents.
///
/// # Errors
/// For the user.
pub fn mount_client(
    client: &Arc<Client>,
    config: &Config,
    scope: &TaskScope,
) -> Result<Arc<Mounted>, Failure> {
    let content = TorrentContent::new(client.clone());
    content.watch(scope);
    let mut options = MountOptions::new(&config.mountpoint);
    options.fs_name = "torrentfs".into();
    options.allow_other = config.allow_other(nix::unistd::geteuid().is_root());
    if let Some(uid) = config.uid {
        options.uid = uid;
    }
    if let Some(gid) = config.gid {
        options.gid = gid;
    }
    if let Some(umask) = config.umask {
        options.umask = umask as u16;
    }
    let content: Arc<dyn Content> = content;
    let mounted = mount(content, options).map_err(|error| mount_failure(config, error))?;
    tracing::info!("mounted at {}", config.mountpoint.display());
    Ok(Arc::new(mounted))
}

fn mount_failure(config: &Config, error: MountError) -> Failure {
    let at = &config.mountpoint;
    match error {
        MountError::NoMountPoint(_) => Failure::mountpoint_missing(at),
        MountError::NotADirectory(_) => Failure::mountpoint_not_a_folder(at),
        MountError::NotEmpty(_) => Failure::mountpoint_not_empty(at),
        MountError::AlreadyMounted(_) => Failure::mountpoint_in_use(at),
        MountError::DeadMount(_) => Failure::mountpoint_dead(at, "its program is gone"),
        MountError::NoDevice => Failure::no_fuse_device(),
        MountError::NoHelper => Failure::no_fusermount(),
        MountError::AllowOther => Failure::allow_other_denied(),
        other => Failure::mount_refused(at, other),
    }
}

/// What the terminal shows of each torrent.
fn lines(torrents: &[Arc<Torrent>]) -> Vec<TorrentLine> {
    torrents
        .iter()
        .map(|torrent| {
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
            }
        })
        .collect()
}
