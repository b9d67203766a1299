//! `--watch DIR`: mounts every `.torrent` and `.magnet` file that lies in a folder, and removes what disappears.
//!
//! **Goal.** A file that is dropped there is mounted within a second; one that is taken away takes its torrent along, with
//! the data kept. Nothing that lies there, or happens to the folder, disturbs what is mounted otherwise.
//!
//! **Parts.** [`plan`] decides (pure); [`Watch`] looks, reads and carries out; inotify says when to look.
//!
//! **Flow.** A round lists the folder, reads the files that are new or changed (on storage workers, some at a time), adds
//! their torrents, and removes those that no file stands for any more. Rounds come when inotify says that something has
//! happened, shortly after it; every half minute anyway, since inotify misses what others do on a network's folder; and
//! every second while there is no inotify, or no folder. The first one is over before the mount shows.
//!
//! A `.magnet` file holds a magnet link, or an info-hash, on a line of its own. Names that begin with a dot, folders, and
//! what isn't a regular file are left alone. While the folder itself isn't there, nothing is removed.
//!
//! A file that is changed and stands for the same torrent brings its further trackers and peers. Webseeds a torrent has
//! of the folder as long as one of its files names them; who touches one has those started anew that have ended.
//!
//! Who else has added a torrent keeps it ([`Client::add_watched`]). One that was removed otherwise stays away until its
//! file is touched.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::cli::exit::{Exit, Failure};
use crate::client::Client;
use crate::client::remove::RemoveError;
use crate::client::sources::{self, Loaded};
use crate::metainfo::source::Source;
use crate::torrent::Torrent;
use crate::webseed::Seed;
use plan::{Key, Plan, Stamp, Then};

/// Between a look and the next, whatever inotify says.
const LOOK: Duration = Duration::from_secs(30);
/// The same while there is no inotify, or no folder.
const LOOK_BLIND: Duration = Duration::from_secs(1);
/// From the first sign of a change to the look: most changes are several, as "moved from" and "moved to".
const GATHER: Duration = Duration::from_millis(50);
/// Between two looks at least so many times as long as the last one took, so that a folder of thousands of files that
/// fills up isn't looked at all the time, …
const PACE: u32 = 2;
/// … and at most this long.
const PACE_MAX: Duration = Duration::from_secs(2);
/// Files that are read at a time: the storage workers have other work, too.
const READ: usize = 4;
/// A `.magnet` file of more bytes isn't read: a link with a hundred trackers has ten thousand.
const MAGNET_MAX: u64 = 64 << 10;
/// Torrents that are named in the log one by one; of more only the number is.
const NAMED: usize = 5;

/// A folder that is watched.
pub struct Watch {
    client: Arc<Client>,
    dir: PathBuf,
    plan: Plan,
    /// Those that were added for files.
    torrents: HashMap<Key, Arc<Torrent>>,
    inotify: Option<AsyncFd<Notified>>,
    /// The folder that inotify watches, by device and inode.
    watched: Option<(u64, u64)>,
    /// Somebody was told that the folder can't be listed.
    told: bool,
    /// Something was put off that is to be tried again soon.
    again: bool,
}

/// inotify's descriptor, shared with the worker that looks at the folder.
struct Notified(Arc<Inotify>);

impl AsRawFd for Notified {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What inotify said.
#[derive(Default)]
struct Signs {
    /// Files that something was done to.
    touched: HashSet<OsString>,
    /// It watches the folder no longer.
    lost: bool,
}

/// A folder as it is.
struct Listing {
    /// Its device and inode.
    folder: (u64, u64),
    files: BTreeMap<OsString, Stamp>,
}

impl Watch {
    /// Prepares to watch a folder, which must be there. Waits for the disk.
    ///
    /// # Errors
    /// [`Exit::BadInput`] when it isn't a folder that can be listed.
    pub fn new(client: &Arc<Client>, dir: &Path) -> Result<Self, Failure> {
        let refused = |why: io::Error| {
            Failure::new(Exit::BadInput, format_args!("--watch {}", dir.display()), why)
                .hint("give a folder that is there and can be read")
        };
        let dir = std::path::absolute(dir).map_err(refused)?;
        std::fs::read_dir(&dir).map_err(refused)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let register = |inotify| {
            let notified = Notified(Arc::new(inotify));
            // SAFETY: its descriptor is open and the same one for as long as the `Arc` lives, which isn't exchanged
            // while it lies in the `AsyncFd`.
            unsafe { AsyncFd::register(notified) }.map_err(io::Error::from)
        };
        let inotify = inotify.map_err(io::Error::from).and_then(register);
        if let Err(error) = &inotify {
            tracing::info!("{} is looked at every second: inotify can't be had: {error}", dir.display());
        }
        Ok(Self {
            client: client.clone(),
            dir,
            plan: Plan::default(),
            torrents: HashMap::new(),
            inotify: inotify.ok(),
            watched: None,
            told: false,
            again: false,
        })
    }

    /// Looks at the folder and does what is to be done. Waits for the disk.
    pub async fn look(&mut self) {
        self.round(Signs::default()).await;
    }

    /// Goes on watching in a task of the client's.
    pub fn start(mut self) {
        let client = self.client.clone();
        client.spawn("watch", async move {
            loop {
                let signs = self.wait().await;
                let began = Instant::now();
                self.round(signs).await;
                tokio::time::sleep((began.elapsed() * PACE).min(PACE_MAX)).await;
            }
        });
    }

    /// Waits until it is time to look.
    async fn wait(&mut self) -> Signs {
        let often = std::mem::take(&mut self.again) || self.watched.is_none();
        let look = if often { LOOK_BLIND } else { LOOK };
        let pause = self.plan.next_complaint(Instant::now()).map_or(look, |next| next.min(look));
        let mut signs = Signs::default();
        let Some(inotify) = self.inotify.as_ref().filter(|_| self.watched.is_some()) else {
            tokio::time::sleep(pause).await;
            return signs;
        };
        match tokio::time::timeout(pause, gather(inotify, &mut signs)).await {
            Ok(Ok(())) => {
                // What belongs together comes together; and whoever writes all the time doesn't put it off.
                let more = async { while gather(inotify, &mut signs).await.is_ok() {} };
                let _ = tokio::time::timeout(GATHER, more).await;
            }
            Ok(Err(error)) => {
                tracing::info!("{} is looked at every second: inotify fails: {error}", self.dir.display());
                self.inotify = None;
                signs.lost = true;
            }
            // Time to look.
            Err(_) => {}
        }
        if signs.lost {
            self.watched = None;
        }
        signs
    }

    async fn round(&mut self, signs: Signs) {
        let (dir, watched) = (self.dir.clone(), self.watched);
        let inotify = self.inotify.as_ref().map(|inotify| inotify.get_ref().0.clone());
        let listed = self.client.on_worker(move || list(&dir, inotify.as_deref(), watched)).await;
        match listed {
            Some(Ok((listing, watched))) => {
                self.watched = watched.then_some(listing.folder);
                if std::mem::take(&mut self.told) {
                    tracing::info!("{} is there again", self.dir.display());
                }
                let load = self.plan.seen(listing.files, &signs.touched);
                self.read(load).await;
                self.name_webseeds().await;
                self.remove();
            }
            Some(Err(error)) => {
                self.watched = None;
                if !std::mem::replace(&mut self.told, true) {
                    let dir = self.dir.display();
                    tracing::warn!(
                        "{dir} can't be listed: {error}; what is mounted stays until it is there again"
                    );
                }
            }
            // The program ends.
            None => return,
        }
        for (name, why) in self.plan.complaints(Instant::now()) {
            tracing::warn!("{} in the watched folder is left out: {why}", name.display());
        }
    }

    /// Reads these files and adds their torrents.
    async fn read(&mut self, load: Vec<OsString>) {
        let (client, dir) = (self.client.clone(), self.dir.clone());
        let mut read = futures_util::stream::iter(load)
            .map(|name| {
                let (client, path) = (client.clone(), dir.join(&name));
                async move { (name, client.on_worker(move || load_file(&path)).await) }
            })
            .buffered(READ);
        let mut added = Vec::new();
        while let Some((name, loaded)) = read.next().await {
            // The program ends, or reading it panicked.
            let loaded = loaded.unwrap_or_else(|| Err("it could not be read".into()));
            let found = loaded.as_ref().map(|loaded| (loaded.info_hash.wire().0, seeds(loaded)));
            let here = |key| self.client.find(key).is_some();
            let then = self.plan.loaded(&name, found.map_err(Clone::clone), here, Instant::now());
            let Ok(loaded) = loaded else { continue };
            if then == Then::Nothing {
                continue;
            }
            let key = loaded.info_hash.wire().0;
            if self.client.is_being_removed(&loaded.info_hash) {
                // That may take a while, which is no reason to keep all others waiting.
                self.plan.put_off(key);
                self.again = true;
                continue;
            }
            match self.client.add_watched(loaded).await {
                Ok(torrent) => {
                    added.extend((then == Then::Add).then(|| torrent.name().to_owned()));
                    self.torrents.insert(key, torrent);
                }
                Err(error) => self.plan.failed(key, &error.to_string(), Instant::now()),
            }
        }
        say("added", &added);
    }

    /// Tells torrents which webseeds their files name, where that isn't what it was.
    async fn name_webseeds(&mut self) {
        for (key, seeds) in self.plan.webseeds() {
            if let Some(torrent) = self.torrents.get(&key) {
                self.client.watched_webseeds(torrent, seeds).await;
            }
        }
    }

    /// Removes the torrents that no file stands for any more, in tasks of their own: the next round doesn't wait.
    fn remove(&mut self) {
        let gone: Vec<Arc<Torrent>> =
            self.plan.gone().into_iter().filter_map(|key| self.torrents.remove(&key)).collect();
        say("removed", &gone.iter().map(|torrent| torrent.name().to_owned()).collect::<Vec<_>>());
        for torrent in gone {
            let client = self.client.clone();
            let name = format!("watch/remove {}", torrent.slot);
            self.client.spawn(&name, async move {
                match client.remove_watched(&torrent).await {
                    Ok(Some(_)) | Err(RemoveError::NotThere | RemoveError::Closing) => {}
                    Ok(None) => {
                        tracing::info!(torrent = torrent.name(), "stays: it was added otherwise, too");
                    }
                    Err(error) => tracing::warn!(torrent = torrent.name(), "{error}"),
                }
            });
        }
    }
}

/// The webseeds that a file names.
fn seeds(loaded: &Loaded) -> Vec<Seed> {
    let seed = |(kind, url): &(_, String)| Seed { url: url.clone(), kind: *kind, trusted: loaded.trusted };
    loaded.webseeds.iter().map(seed).collect()
}

/// Tells the log what became of torrents.
fn say(what: &str, names: &[String]) {
    match names {
        [] => {}
        names if names.len() <= NAMED => tracing::info!("watched folder: {what} {}", names.join(", ")),
        names => tracing::info!("watched folder: {what} {} torrents", names.len()),
    }
}

/// Waits for signs, and takes those that are there. Cancel-safe.
async fn gather(inotify: &AsyncFd<Notified>, signs: &mut Signs) -> io::Result<()> {
    let mut ready = inotify.readable().await?;
    let events = match inotify.get_ref().0.read_events() {
        Err(Errno::EAGAIN) => {
            ready.clear_ready();
            return Ok(());
        }
        events => events?,
    };
    for event in events {
        // Too many at once: the look that follows sees it all.
        signs.touched.extend(event.name.filter(|_| event.mask.intersects(TOUCHED)));
        signs.lost |= event.mask.intersects(LOST);
    }
    Ok(())
}

/// What says that a file has another content now.
const TOUCHED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_MOVED_TO);
/// What says that the folder isn't where it was.
const LOST: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_IGNORED)
    .union(AddWatchFlags::IN_UNMOUNT);
/// All that is asked for.
const ASKED: AddWatchFlags = TOUCHED
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Lists the folder, and has it watched if it isn't the one that is; before it is listed, so that nothing happens
/// unseen. Returns whether it is watched.
fn list(dir: &Path, inotify: Option<&Inotify>, watched: Option<(u64, u64)>) -> io::Result<(Listing, bool)> {
    let meta = dir.metadata()?;
    let folder = (meta.dev(), meta.ino());
    let is_watched =
        watched == Some(folder) || inotify.is_some_and(|inotify| inotify.add_watch(dir, ASKED).is_ok());
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if kind_of(&name).is_none() {
            continue;
        }
        // What has gone since, or leads nowhere, isn't there.
        let Ok(meta) = std::fs::metadata(entry.path()) else { continue };
        if !meta.is_file() {
            continue;
        }
        let stamp = Stamp {
            len: meta.len(),
            inode: (meta.dev(), meta.ino()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        files.insert(name, stamp);
    }
    Ok((Listing { folder, files }, is_watched))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Torrent,
    Magnet,
}

/// What a file of this name should hold, if it is one of ours.
fn kind_of(name: &OsStr) -> Option<Kind> {
    let path = Path::new(name);
    if name.as_encoded_bytes().first() == Some(&b'.') {
        return None;
    }
    let extension = path.extension()?.to_str()?;
    [("torrent", Kind::Torrent), ("magnet", Kind::Magnet)]
        .into_iter()
        .find(|(known, _)| extension.eq_ignore_ascii_case(known))
        .map(|(_, kind)| kind)
}

/// Reads one of the files. The error is for the user, without the file's name.
fn load_file(path: &Path) -> Result<Loaded, String> {
    // Not blocking: somebody may have put a pipe in its place.
    let open = || File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match path.file_name().and_then(kind_of) {
        Some(Kind::Torrent) => {
            let file = open().map_err(|error| error.to_string())?;
            sources::load_open(file, "it").map_err(|error| error.to_string())
        }
        Some(Kind::Magnet) => {
            let mut text = String::new();
            let mut read = open().map_err(|error| error.to_string())?.take(MAGNET_MAX + 1);
            read.read_to_string(&mut text).map_err(|error| error.to_string())?;
            if text.len() as u64 > MAGNET_MAX {
                return Err("it has more than 64 KiB, which no magnet link needs".into());
            }
            link_in(&text)
        }
        None => Err("it is neither a .torrent nor a .magnet file".into()),
    }
}

/// What the one link in a text says. Pure.
fn link_in(text: &str) -> Result<Loaded, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(line) = lines.next() else { return Err("it is empty".into()) };
    if lines.next().is_some() {
        return Err("it has more than one line: a .magnet file holds one magnet link".into());
    }
    let source = Source::parse(line).map_err(|error| error.to_string())?;
    let loaded = sources::load_link(&source).ok_or("it holds no magnet link")?;
    loaded.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
