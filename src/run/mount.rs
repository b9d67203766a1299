//! `torrentfs mount`: from a configuration to a mount that is up, and down again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use torrentfs_fs::content::Content;
use torrentfs_fs::mount::{MountError, MountOptions, mount};
use torrentfs_fs::session::Mounted;

use super::control::socket::{Bound, Home};
use super::control::{self, answers};
use super::daemon::{self, Side};
use super::journal::Journal;
use super::notify::Service;
use super::shutdown::{Running, end};
use super::signals::{self, Signals};
use super::start::{DRAW, client_failure, line, load, start_client};
use super::watch::Watch;
use super::watchdog::Watchdog;
use crate::cli::exit::{Exit, Failure};
use crate::cli::terminal::{self, Display};
use crate::client::Client;
use crate::config::{Config, UserRef};
use crate::content::TorrentContent;
use crate::net::hosts::Reach;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use crate::torrent::Torrent;
use crate::torrent::status::State;

/// How often the torrents' states are looked at for the log, where there is no terminal to draw on: an idle mount
/// costs next to nothing.
const LOG: Duration = Duration::from_secs(2);

/// Mounts and stays until a signal comes or somebody unmounts from outside. With `--daemon` all that happens in a
/// process in the background, and this one returns when the mount is ready.
///
/// # Errors
/// What kept the mount from coming up, for the user.
pub fn run(config: &Config) -> Result<Exit, Failure> {
    signals::hold();
    if let Some(namespace) = &config.namespace {
        daemon::enter_namespace(namespace)?;
    }
    let (config, parent) = match config.daemon {
        false => (config.clone(), None),
        true => {
            let folder = std::env::current_dir()
                .map_err(|e| Failure::new(Exit::Usage, "can't tell where this was started", e))?;
            let config = config.clone().rooted(&folder);
            match daemon::fork()? {
                Side::Waiting(child) => return daemon::wait(child, &config.mountpoint),
                Side::Background(parent) => (config, Some(parent)),
            }
        }
    };
    // The terminal is only lent to a process in the background.
    let live = parent.is_none() && terminal::is_live();
    let log = config.log_file.as_deref().map(open_log).transpose()?;
    let colour = live && log.is_none();
    let mut display = Display::with_log(live, log);
    crate::cli::log::init(config.client.verbosity, config.client.log_format, display.writer(), colour)?;
    let service = Service::new(parent);
    let result = super::on_runtime(run_async(Arc::new(config), service, &mut display));
    display.finish();
    result
}

/// The file that log lines are added to.
fn open_log(path: &Path) -> Result<File, Failure> {
    File::options().append(true).create(true).open(path).map_err(|error| {
        Failure::new(Exit::Usage, format_args!("can't write the log to {}", path.display()), error)
            .hint("name a file in a folder that is there and can be written to with --log-file")
    })
}

async fn run_async(config: Arc<Config>, service: Service, display: &mut Display) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let watchdog = Watchdog::start(&scope)?;
    let mut running = Running { service, ..Running::nothing(scope) };
    match bring_up(&mut running, &config, &signals, &watchdog).await {
        Ok(Some(torrents)) => Ok(stay(running, &signals, &torrents, &config, display).await),
        Ok(None) => Ok(end(running, &signals, config.client.shutdown_timeout).await),
        Err(failure) => {
            end(running, &signals, config.client.shutdown_timeout).await;
            Err(failure)
        }
    }
}

/// Everything up to the mount; what is up is put into `running` at once, to be taken down whatever comes. `None` when
/// a signal came first.
async fn bring_up(
    running: &mut Running,
    config: &Arc<Config>,
    signals: &Signals,
    watchdog: &Watchdog,
) -> Result<Option<Vec<Arc<Torrent>>>, Failure> {
    let settings = config.clone();
    let Some(offline) = step(signals, "users", async move || users(&settings.offline)).await? else {
        return Ok(None);
    };
    let (settings, scope) = (config.clone(), running.scope.child("client"));
    let starting = step(signals, "start", async move || start_client(&settings.client, scope).await);
    let Some(client) = starting.await? else { return Ok(None) };
    running.clients.push(client.clone());
    watchdog.client(&client);
    let (settings, adding) = (config.clone(), client.clone());
    let added = step(signals, "sources", async move || {
        let watch = watch(&adding, &settings).await?;
        Ok((add_sources(&adding, &settings).await?, watch))
    });
    let Some((torrents, watch)) = added.await? else { return Ok(None) };
    let mut mounting =
        std::pin::pin!(mount_client(&client, config, offline, &running.scope, signals, watchdog));
    tokio::select! {
        mounted = &mut mounting => running.mounted = Some(mounted?),
        () = signals.reached(1) => {
            // A mount that came up after we were gone would stay behind as a dead one.
            match tokio::time::timeout(config.client.shutdown_timeout, mounting).await {
                Ok(mounted) => running.mounted = Some(mounted?),
                Err(_) => tracing::error!("the system doesn't answer about {}", config.mountpoint.display()),
            }
            return Ok(None);
        }
    }
    if let Some(watch) = watch {
        watch.start();
    }
    Ok(Some(torrents))
}

/// Runs a part of the start on a thread of its own, since it may block: on a disk, on a name service. So a signal
/// always finds somebody who listens; then the part is left to itself, and `None` returned.
async fn step<T: Send + 'static>(
    signals: &Signals,
    name: &'static str,
    part: impl AsyncFnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<Option<T>, Failure> {
    let (runtime, told) = (tokio::runtime::Handle::current(), signals.clone());
    let mut done = std::pin::pin!(super::on_thread(name, move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                // Unless it blocks just now, it ends by itself.
                () = told.reached(1) => Ok(None),
                outcome = part() => outcome.map(Some),
            }
        })
    }));
    let done = tokio::select! {
        done = &mut done => Some(done),
        // The runtime isn't to end under it while it uses it: only one that blocks is left to itself.
        () = signals.reached(1) => tokio::time::timeout(timeouts::START_LEFT, done).await.ok(),
    };
    match done {
        Some(done) => done
            .unwrap_or_else(|| Err(Failure::internal("can't start", format_args!("no thread for {name}")))),
        None => Ok(None),
    }
}

/// Waits for the end while the mount is up, shows what goes on, and takes it down. It is ready when the metadata of
/// these sources is here that are still mounted.
pub async fn stay(
    mut running: Running,
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
    let mut detached = false;
    let mut draw = started;
    loop {
        tokio::select! {
            () = signals.reached(1) => break,
            () = ended.notified() => {
                tracing::info!("unmounted from outside");
                break;
            }
            () = tokio::time::sleep_until(draw) => {
                let pause = if ready && !display.is_live() { LOG } else { DRAW };
                draw = tokio::time::Instant::now() + pause;
                let mounted = running.clients.first().map(|client| client.torrents()).unwrap_or_default();
                display.update(mounted.iter().map(|t| line(t)).collect());
                running.service.status(|| {
                    let states: Vec<State> = mounted.iter().map(|t| t.status().state).collect();
                    summary(&states, &config.mountpoint)
                });
                let late = if ready { Vec::new() } else { late(sources, &mounted) };
                if !ready && (late.is_empty() || started.elapsed() >= config.client.metadata_timeout) {
                    ready = true;
                    say_ready(mounted.len(), &late, config);
                    display.written().await;
                    if let Some(client) = running.clients.first()
                        && config.daemon
                        && config.log_file.is_none()
                    {
                        // What a start says goes to whoever waits for it; then stderr is let go of.
                        display.divert(Journal::new(client.cache().path()));
                    }
                    if !running.service.ready() {
                        break;
                    }
                }
                if !detached && running.mounted.as_ref().is_some_and(|mounted| mounted.is_detached()) {
                    detached = true;
                    tracing::info!(
                        "{} was unmounted lazily; ending when the last who uses it is done",
                        config.mountpoint.display()
                    );
                }
            }
        }
    }
    end(running, signals, config.client.shutdown_timeout).await
}

/// How the torrents are, in one line for a service manager.
fn summary(states: &[State], mountpoint: &Path) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for state in states {
        *counts.entry(state.as_str()).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let plural = if states.len() == 1 { "" } else { "s" };
    let colon = if parts.is_empty() { "" } else { ": " };
    format!("{} torrent{plural} at {}{colon}{}", states.len(), mountpoint.display(), parts.join(", "))
}

/// Names of the sources whose metadata isn't here, of those that are still mounted.
fn late<'a>(sources: &'a [Arc<Torrent>], mounted: &[Arc<Torrent>]) -> Vec<&'a str> {
    let is_mounted = |source: &Arc<Torrent>| mounted.iter().any(|torrent| Arc::ptr_eq(torrent, source));
    let resolving = |source: &Arc<Torrent>| source.status().state == State::Resolving;
    sources
        .iter()
        .filter(|source| resolving(source) && is_mounted(source))
        .map(|source| source.name())
        .collect()
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
    let reach = Reach::of(config.client.allow_private_hosts);
    let loading = config.sources.iter().map(|given| load(given, reach, client.sockets()));
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

/// Mounts a client's torrents; for the users of these numbers nothing is fetched. From then on the mount can be asked
/// and told things over its socket, and the watchdog knows it. Waits for as long as the system takes to answer about
/// the mount point.
///
/// # Errors
/// For the user.
pub async fn mount_client(
    client: &Arc<Client>,
    config: &Config,
    offline: Vec<u32>,
    scope: &TaskScope,
    signals: &Signals,
    watchdog: &Watchdog,
) -> Result<Arc<Mounted>, Failure> {
    let content = TorrentContent::new(client.clone());
    content.watch(scope);
    let home = Home::own();
    let socket = bind_socket(&home);
    if let Some(socket) = &socket {
        content.set_socket(socket.path().to_owned());
    }
    let mut options = MountOptions::new(&config.mountpoint);
    if let Some(name) = &config.fs_name {
        options.fs_name = name.clone();
    }
    options.extra = config.mount_options.clone();
    options.offline = offline;
    options.backing = client.storage().is_on_disk().then(|| client.cache().path().to_path_buf());
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
    let port: Arc<dyn Content> = content.clone();
    let mounted = super::on_thread("mount", move || mount(port, options)).await;
    let mounted = mounted.ok_or_else(|| Failure::internal("can't mount", "its thread is gone"))?;
    let mounted = Arc::new(mounted.map_err(|error| mount_failure(config, error))?);
    tracing::info!("mounted at {}", config.mountpoint.display());
    watchdog.mount(&mounted);
    if let Some(socket) = socket {
        let answers = answers::Mounted {
            client: client.clone(),
            content,
            reporter: watchdog.reporter().clone(),
            mountpoint: mounted.path().to_owned(),
            since: Instant::now(),
            shutdown: config.client.shutdown_timeout,
            signals: signals.clone(),
        };
        let allowed = control::Allowed { uid: home.uid };
        let serving = control::serve(socket, home, allowed, Arc::new(answers), &scope.child("control"));
        if let Err(error) = serving {
            tracing::warn!("there is no control socket: {error}");
        }
    }
    Ok(mounted)
}

/// The mount's control socket. A mount without one is as good for readers, so it is no error not to have one.
fn bind_socket(home: &Home) -> Option<Bound> {
    home.bind()
        .inspect_err(|error| {
            tracing::warn!(
                "there is no control socket, so status, add, remove, unmount, prefetch and debug don't work: {error}"
            );
        })
        .ok()
}

fn mount_failure(config: &Config, error: MountError) -> Failure {
    let at = &config.mountpoint;
    match error {
        MountError::NoMountPoint(_) => Failure::mountpoint_missing(at),
        MountError::NotADirectory(_) => Failure::mountpoint_not_a_folder(at),
        MountError::NotEmpty(_) => Failure::mountpoint_not_empty(at),
        MountError::AlreadyMounted(_) => Failure::mountpoint_in_use(at),
        MountError::DeadMount(_) => Failure::mountpoint_dead(at, "its program is gone"),
        MountError::Silent(_) => Failure::mountpoint_silent(at),
        MountError::NoDevice => Failure::no_fuse_device(),
        MountError::NoHelper => Failure::no_fusermount(),
        MountError::AllowOther => Failure::allow_other_denied(),
        other => Failure::mount_refused(at, other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A part of the start that uses the runtime would find it gone: its thread ends before `step` does.
    #[tokio::test]
    async fn nobody_is_left_on_the_runtime_when_a_start_is_given_up() {
        struct Gone(Arc<AtomicBool>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        for before in [true, false] {
            for _ in 0..100 {
                let signals = Signals::of(usize::from(before));
                let (gone, told) = (Arc::new(AtomicBool::new(false)), signals.clone());
                let held = Gone(gone.clone());
                let part = async move || {
                    let _held = held;
                    told.come();
                    loop {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let ended: Option<()> = step(&signals, "test", part).await.unwrap();
                assert!(ended.is_none());
                assert!(gone.load(Ordering::SeqCst), "its thread goes on");
            }
        }
    }

    #[test]
    fn a_line_for_the_service_manager() {
        let rows: [(&[State], &str); 3] = [
            (&[], "0 torrents at /m"),
            (&[State::Complete], "1 torrent at /m: 1 complete"),
            (&[State::Idle, State::Resolving, State::Idle], "3 torrents at /m: 2 idle, 1 resolving"),
        ];
        for (states, want) in rows {
            assert_eq!(summary(states, Path::new("/m")), want);
        }
    }
}
