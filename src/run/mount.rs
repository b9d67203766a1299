//! `torrentfs mount`: from a configuration to a mount that is up, and down again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use torrentfs_fs::content::Content;
use torrentfs_fs::mount::{MountError, MountOptions, mount};
use torrentfs_fs::session::Mounted;

use super::shutdown::{Running, shut_down};
use super::signals::Signals;
use super::start::{DRAW, client_failure, line, load, start_client};
use super::watch::Watch;
use crate::cli::exit::{Exit, Failure};
use crate::cli::terminal::{self, Display};
use crate::client::Client;
use crate::config::{Config, UserRef};
use crate::content::TorrentContent;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use crate::torrent::Torrent;
use crate::torrent::status::State;

/// How often the torrents' states are looked at for the log, where there is no terminal to draw on: an idle mount
/// costs next to nothing.
const LOG: Duration = Duration::from_secs(2);

/// Mounts and stays until a signal comes or somebody unmounts from outside.
///
/// # Errors
/// What kept the mount from coming up, for the user.
pub fn run(config: &Config) -> Result<Exit, Failure> {
    let offline = users(&config.offline)?;
    let mut display = Display::new(terminal::is_live());
    crate::cli::log::init(
        config.client.verbosity,
        config.client.log_format,
        display.writer(),
        terminal::is_live(),
    )?;
    let result = super::on_runtime(run_async(config, offline, &mut display));
    display.finish();
    result
}

async fn run_async(config: &Config, offline: Vec<u32>, display: &mut Display) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let client_scope = scope.child("client");
    let start = async {
        let client = start_client(&config.client, client_scope).await?;
        let added = match watch(&client, config).await {
            Ok(watch) => add_sources(&client, config).await.map(|torrents| (torrents, watch)),
            Err(failure) => Err(failure),
        };
        Ok::<_, Failure>((client, added))
    };
    let (client, added) = tokio::select! {
        started = start => started?,
        () = signals.reached(1) => {
            // Nothing is mounted yet, and nothing was fetched.
            let nothing = Running { mounted: None, clients: Vec::new(), scope };
            return Ok(shut_down(nothing, config.client.shutdown_timeout).await);
        }
    };
    let mut running = Running { mounted: None, clients: vec![client.clone()], scope: scope.clone() };
    let (torrents, watch) = match added {
        Ok(added) => added,
        Err(failure) => {
            shut_down(running, config.client.shutdown_timeout).await;
            return Err(failure);
        }
    };
    match mount_client(&client, config, offline, &scope) {
        Ok(mounted) => running.mounted = Some(mounted),
        Err(failure) => {
            shut_down(running, config.client.shutdown_timeout).await;
            return Err(failure);
        }
    }
    if let Some(watch) = watch {
        watch.start();
    }
    Ok(stay(running, &signals, &torrents, config, display).await)
}

/// Waits for the end while the mount is up, shows what goes on, and takes it down. It is ready when the metadata of
/// these sources is here that are still mounted.
pub async fn stay(
    running: Running,
    signals: &Signals,
    sources: &[Arc<Torrent>],
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
    let mut draw = started;
    loop {
        tokio::select! {
            () = signals.reached(1) => break,
            () = ended.notified() => {
                tracing::info!("unmounted from outside");
                break;
            }
            () = tokio::time::sleep_until(draw) => {
                let pause = if ready && !terminal::is_live() { LOG } else { DRAW };
                draw = tokio::time::Instant::now() + pause;
                let mounted = running.clients.first().map(|client| client.torrents()).unwrap_or_default();
                display.update(mounted.iter().map(|t| line(t)).collect());
                if ready {
                    continue;
                }
                let is_mounted = |source: &&Arc<Torrent>| mounted.iter().any(|t| Arc::ptr_eq(t, source));
                let late: Vec<&str> = sources
                    .iter()
                    .filter(is_mounted)
                    .filter(|t| t.status().state == State::Resolving)
                    .map(|t| t.name())
                    .collect();
                if late.is_empty() || started.elapsed() >= config.client.metadata_timeout {
                    ready = true;
                    say_ready(mounted.len(), &late, config);
                }
            }
        }
    }
    let mounted = running.mounted.clone();
    let down = shut_down(running, config.client.shutdown_timeout);
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

fn say_ready(mounted: usize, late: &[&str], config: &Config) {
    if late.is_empty() {
        let plural = if mounted == 1 { "" } else { "s" };
        tracing::info!("ready: {mounted} torrent{plural} at {}", config.mountpoint.display());
    } else {
        tracing::warn!(
            "ready, but the metadata of {} hasn't come within {:?}; it appears when it comes",
            late.join(", "),
            config.client.metadata_timeout
        );
    }
}

/// Looks at the folder that is to be watched for the first time, if there is one.
async fn watch(client: &Arc<Client>, config: &Config) -> Result<Option<Watch>, Failure> {
    let Some(dir) = &config.watch else { return Ok(None) };
    let mut watch = Watch::new(client, dir)?;
    watch.look().await;
    Ok(Some(watch))
}

/// Adds all sources. A bad one doesn't keep the others from mounting; when all are bad, and no folder is watched, there
/// is nothing to mount.
async fn add_sources(client: &Arc<Client>, config: &Config) -> Result<Vec<Arc<Torrent>>, Failure> {
    let loading = config.sources.iter().map(|given| load(given));
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
        && config.watch.is_none()
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
    let all = client.torrents();
    let settled = futures_util::future::join_all(all.iter().map(|t| t.settled()));
    if tokio::time::timeout(timeouts::SETTLE, settled).await.is_err() {
        tracing::warn!("the disk is slow to tell what is here; mounting without waiting longer");
    }
    Ok(torrents)
}

/// The numbers of users. Blocks for as long as the system takes to look names up.
///
/// # Errors
/// [`Exit::Usage`] for a name that nobody has.
fn users(users: &[UserRef]) -> Result<Vec<u32>, Failure> {
    let number = |user: &UserRef| match user {
        UserRef::Id(id) => Ok(*id),
        UserRef::Name(name) => match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => {
                let failure =
                    Failure::new(Exit::Usage, format_args!("--offline-uid {name}"), "there is no such user");
                Err(failure.hint("give a name that \"getent passwd\" lists, or a number"))
            }
            Err(error) => Err(Failure::new(Exit::Usage, format_args!("--offline-uid {name}"), error)),
        },
    };
    users.iter().map(number).collect()
}

/// Mounts a client's torrents; for the users of these numbers nothing is fetched.
///
/// # Errors
/// For the user.
pub fn mount_client(
    client: &Arc<Client>,
    config: &Config,
    offline: Vec<u32>,
    scope: &TaskScope,
) -> Result<Arc<Mounted>, Failure> {
    let content = TorrentContent::new(client.clone());
    content.watch(scope);
    let mut options = MountOptions::new(&config.mountpoint);
    options.fs_name = "torrentfs".into();
    options.offline = offline;
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
