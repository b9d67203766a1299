//! The filesystem's port over the client: torrents as a tree of entries, reads as streams.
//!
//! The only room that knows both sides. What is shown is a snapshot: the tree and the torrents behind it, built anew when
//! the set of torrents changes or metadata comes ([`TorrentContent::watch`]). Each call takes the present one and finds
//! what it asks for by number. Nothing here waits for a network.
//!
//! A torrent whose metadata isn't known is an empty folder of another name and other numbers; a removed one isn't in the
//! next snapshot, and whoever has an older one finds that it is removed ([`ContentError::Gone`]).

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use torrentfs_fs::content::{
    Backing, BackingDone, Content, ContentError, ContentEvent, ReadDone, Space, Stream, Ticket, TryRead,
};
use torrentfs_fs::lock::{Rank, RankedMutex, RankedRwLock};
use torrentfs_fs::tree::{Leaf, NodeId, NodeKind, Subtree, SubtreeBuilder, Tree};

use crate::client::Client;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::info::{FileKind, Info};
use crate::metainfo::path;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::OPEN;
use crate::torrent::Torrent;
use crate::torrent::reads::{ReadError, Reader, Shared};
use crate::torrent::status::{State, seed_words};
use crate::webseed::SeedStatus;

/// Slots of torrents that are still resolving have this bit, so that the final entry is another inode: it
/// may be a file where the resolving one is a folder.
const RESOLVING: u32 = 1 << 31;
/// Pairs named in `user.torrentfs.ranges` at most; a longer list ends with `…`.
const RANGES_MAX: usize = 64;
/// Webseeds named in `user.torrentfs.webseeds` at most; a longer list ends with `…`.
const WEBSEEDS_MAX: usize = 16;
/// Characters that are told of one: of longer URLs the beginning.
const WEBSEED_CHARS_MAX: usize = 1000;
/// Prefix of our extended attributes.
const XATTR: &str = "user.torrentfs.";
/// Events waiting for the filesystem. When it is full, one is dropped and the kernel sees the change when its
/// entry times out.
const EVENTS: usize = 64;

/// Between two snapshots: so many times as long as the last one took, so that thousands of torrents that are added one
/// after the other don't cost a look at all of them each, …
const PACE: u32 = 4;
/// … and at most this long: what has changed shows within a second.
const PACE_MAX: Duration = Duration::from_millis(500);

/// How long a FUSE thread waits for a look at the disk; what was seen last is the answer then.
const MOMENT: Duration = Duration::from_millis(20);

/// What is shown at one moment.
#[derive(Default)]
struct Snapshot {
    tree: Arc<Tree>,
    /// By number.
    torrents: HashMap<u32, Arc<Torrent>>,
    /// Of all torrents; what is free is asked for each time.
    space: Space,
    /// When a name in the root came or went last, in seconds since the epoch; 0 if none has since the start.
    changed: i64,
}

/// See the module's text.
pub struct TorrentContent {
    client: Arc<Client>,
    snapshot: RankedRwLock<Arc<Snapshot>>,
    events: SyncSender<ContentEvent>,
    receiver: RankedMutex<Option<Receiver<ContentEvent>>>,
    /// Where the mount's control socket is.
    socket: RankedRwLock<Option<PathBuf>>,
    free: Arc<Free>,
    /// FUSE threads start tasks in it.
    runtime: Handle,
}

/// What was free on the cache's disk when it was looked at last, in bytes.
#[derive(Default)]
struct Free {
    bytes: AtomicU64,
    /// A worker is looking.
    asked: AtomicBool,
}

/// A torrent as it shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its name in the root; while it isn't in the tree yet, its own.
    pub name: String,
    /// Its node; `None` while it isn't in the tree yet.
    pub node: Option<NodeId>,
    /// Whether that is what it will stay: not a folder that stands for one whose metadata isn't here yet.
    pub is_final: bool,
    /// The torrent.
    pub torrent: Arc<Torrent>,
}

impl TorrentContent {
    /// The content of a client's torrents as they are now. To be called in a runtime.
    pub fn new(client: Arc<Client>) -> Arc<Self> {
        let (events, receiver) = sync_channel(EVENTS);
        let content = Arc::new(Self {
            client,
            snapshot: RankedRwLock::new(Rank::Leaf, "content snapshot", Arc::default()),
            events,
            receiver: RankedMutex::new(Rank::Leaf, "content events", Some(receiver)),
            socket: RankedRwLock::new(Rank::Leaf, "control socket", None),
            free: Arc::default(),
            runtime: Handle::current(),
        });
        content.look_at_space();
        content.rebuild(0);
        content
    }

    /// Keeps the snapshot up to date, in a task of `scope`.
    pub fn watch(self: &Arc<Self>, scope: &TaskScope) {
        let content = self.clone();
        scope.spawn("tree", async move {
            loop {
                content.client.changed().await;
                let began = Instant::now();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
                content.rebuild(now);
                tokio::time::sleep((began.elapsed() * PACE).min(PACE_MAX)).await;
            }
        });
    }

    /// Takes a new snapshot at `now` (seconds since the epoch) and tells the filesystem which names changed. Only one
    /// task calls it.
    fn rebuild(&self, now: i64) {
        let old = self.snapshot();
        let torrents = self.client.torrents();
        let mut entries: Vec<(String, String, u32, Arc<Subtree>)> = Vec::with_capacity(torrents.len());
        let mut newest = 0;
        for torrent in &torrents {
            newest = newest.max(torrent.added);
            let short = torrent.info_hash.short8();
            // Looked at once: it may come at any moment.
            let live = torrent.live();
            let slot = if live.is_some() { torrent.slot } else { torrent.slot | RESOLVING };
            let name = match live {
                Some(shared) => shared.info.name.clone(),
                None => {
                    let hint = path::component(torrent.hint.as_bytes());
                    with_suffix(&hint.unwrap_or_else(|| torrent.info_hash.to_string()), ".resolving")
                }
            };
            // Built once for each number.
            let known = old.tree.subtree(slot).cloned();
            let subtree = known.unwrap_or_else(|| Arc::new(subtree(torrent, live.map(|l| &**l), &name)));
            entries.push((name, short, slot, subtree));
        }
        let mut space = Space::default();
        for (.., subtree) in &entries {
            space.total = space.total.saturating_add(subtree.total());
            space.files += subtree.files();
        }
        let entries = distinct(entries);
        let names = changed(&old.tree, &entries);
        let changed = if names.is_empty() { old.changed } else { now };
        let snapshot = Snapshot {
            tree: Arc::new(Tree::new(entries, newest.max(changed))),
            torrents: torrents.into_iter().map(|torrent| (torrent.slot, torrent)).collect(),
            space,
            changed,
        };
        // The old one is let go outside of the lock: it may be the last that holds a removed torrent.
        let before = std::mem::replace(&mut *self.snapshot.write(), Arc::new(snapshot));
        drop(before);
        if !names.is_empty() {
            // Full: see EVENTS.
            let _ = self.events.try_send(ContentEvent::RootChanged { names });
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().clone()
    }

    /// Has a worker look at what is free on the cache's disk, and waits for it a moment: whoever asks is one of few
    /// threads, and the disk may be one that doesn't answer.
    fn look_at_space(&self) {
        if self.free.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (free, (seen, sees)) = (self.free.clone(), sync_channel(1));
        let asked = self.client.tell_free_space(move |found| {
            if let Some(found) = found {
                free.bytes.store(found, Ordering::Release);
            }
            free.asked.store(false, Ordering::Release);
            // Nobody may wait for it any more.
            let _ = seen.try_send(());
        });
        if !asked {
            self.free.asked.store(false, Ordering::Release);
        }
        let _ = sees.recv_timeout(MOMENT);
    }

    /// The mount's control socket is there from now on: the root's `user.torrentfs.socket` says so.
    pub fn set_socket(&self, path: PathBuf) {
        *self.socket.write() = Some(path);
    }

    /// Where the mount's control socket is, if it has one.
    pub fn socket(&self) -> Option<PathBuf> {
        self.socket.read().clone()
    }

    /// The slot of the torrent that a node is of.
    pub fn slot(node: NodeId) -> u32 {
        node.slot() & !RESOLVING
    }

    /// All torrents with what they are called in the mount, in the order in which they were added.
    pub fn shown(&self) -> Vec<Shown> {
        let tree = self.tree();
        let shown: HashMap<u32, (&str, NodeId)> =
            tree.root().map(|(name, node)| (node.slot() & !RESOLVING, (name, node))).collect();
        let torrents = self.client.torrents().into_iter();
        let found = torrents.map(|torrent| match shown.get(&torrent.slot) {
            Some(&(name, node)) => {
                let is_final = node.slot() & RESOLVING == 0;
                Shown { name: name.to_owned(), node: Some(node), is_final, torrent }
            }
            None => Shown { name: torrent.name().to_owned(), node: None, is_final: false, torrent },
        });
        found.collect()
    }

    /// The file behind a node, in the torrent's own numbering; `None` when there is none, or the torrent was removed.
    fn file(&self, node: NodeId) -> Option<(Arc<Shared>, FileIndex)> {
        let snapshot = self.snapshot();
        let (shared, file) = snapshot.file(node)?;
        (!shared.is_removed()).then(|| (shared.clone(), file))
    }

    /// The path of a torrent's file as a person names it: for what readers wait for.
    pub fn label(torrent: &Torrent, file: FileIndex) -> String {
        let entry = torrent.live().and_then(|s| s.info.files.get(file.0 as usize));
        entry.map_or_else(|| torrent.name().to_owned(), |f| f.path.join("/"))
    }
}

impl Snapshot {
    fn torrent(&self, node: NodeId) -> Option<&Arc<Torrent>> {
        self.torrents.get(&(node.slot() & !RESOLVING))
    }

    /// The file behind a node, in the torrent's own numbering.
    fn file(&self, node: NodeId) -> Option<(&Arc<Shared>, FileIndex)> {
        let NodeKind::File { file, .. } = self.tree.node(node)?.kind else { return None };
        Some((self.torrent(node)?.live()?, FileIndex(file)))
    }
}

/// Names of the root that came, went, or stand for another entry now.
fn changed(before: &Tree, after: &[(String, u32, Arc<Subtree>)]) -> Vec<String> {
    let differs = |name: &str, slot: u32| before.root_child(name) != Some(NodeId::new(slot, 0));
    let new = after.iter().filter(|(name, slot, _)| differs(name, *slot)).map(|(name, ..)| name.as_str());
    let kept: HashSet<&str> = after.iter().map(|(name, ..)| name.as_str()).collect();
    let gone = before.root().map(|(name, _)| name).filter(|name| !kept.contains(name));
    new.chain(gone).map(str::to_owned).collect()
}

/// Gives equal names the torrents' hashes, whatever the order of arrival.
fn distinct(entries: Vec<(String, String, u32, Arc<Subtree>)>) -> Vec<(String, u32, Arc<Subtree>)> {
    let mut count: HashMap<String, usize> = HashMap::new();
    for (name, ..) in &entries {
        *count.entry(name.clone()).or_default() += 1;
    }
    let mut used: HashSet<String> = HashSet::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    entries
        .into_iter()
        .map(|(name, short, slot, subtree)| {
            let base = match count.get(&name) {
                Some(n) if *n > 1 => with_suffix(&name, &format!(" [{short}]")),
                _ => name,
            };
            // Two hashes that agree in eight digits, or a torrent that is named like another with its suffixes.
            let mut shown = base.clone();
            let number = numbers.entry(base.clone()).or_insert(1);
            while !used.insert(shown.clone()) {
                *number += 1;
                shown = with_suffix(&base, &format!(" ({number})"));
            }
            (shown, slot, subtree)
        })
        .collect()
}

/// A name with a suffix, within the 255 bytes that a component may have.
fn with_suffix(name: &str, suffix: &str) -> String {
    let mut end = name.len().min(255 - suffix.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &name[..end])
}

/// The entries of a torrent under this name, as a mount shows them; an empty folder while its metadata isn't known
/// (`live`).
pub fn subtree(torrent: &Torrent, live: Option<&Shared>, name: &str) -> Subtree {
    let Some(shared) = live else {
        return SubtreeBuilder::folder(name, torrent.added).build();
    };
    let info: &Info = &shared.info;
    let leaf = |index: usize| {
        let file = info.files.get(index)?;
        match &file.kind {
            FileKind::Regular => {
                Some(Leaf::File { size: file.size, executable: file.executable, file: index as u32 })
            }
            FileKind::Symlink { target } => Some(Leaf::Symlink(target.clone())),
            _ => None,
        }
    };
    if info.single_file
        && let Some(leaf) = leaf(0)
    {
        return SubtreeBuilder::single(name, torrent.added, leaf);
    }
    let mut builder = SubtreeBuilder::folder(name, torrent.added);
    for (index, file) in info.files.iter().enumerate() {
        if let Some(leaf) = leaf(index) {
            builder.add(&file.path, leaf);
        }
    }
    builder.build()
}

impl From<ReadError> for ContentErrorOf {
    fn from(error: ReadError) -> Self {
        Self(match error {
            ReadError::TimedOut(why) => ContentError::TimedOut(why),
            ReadError::Io(why) => ContentError::Io(why),
            ReadError::Full => ContentError::NoSpace,
            ReadError::Closed => ContentError::ShuttingDown,
            ReadError::NotHere => ContentError::NotHere,
            ReadError::Removed => ContentError::Gone,
        })
    }
}

/// A [`ContentError`] made from an error of the client.
struct ContentErrorOf(ContentError);

/// A stream that gives what is here, and of which the torrent knows nothing.
struct HereStream {
    shared: Arc<Shared>,
    /// The file in the torrent's linear space.
    range: Range<u64>,
}

impl HereStream {
    /// Where `len` bytes at `offset` of the file lie in the torrent, if all of them are complete.
    fn here(&self, offset: u64, len: usize) -> Option<u64> {
        let at = self.range.start.checked_add(offset)?;
        let fits = at.checked_add(len as u64)? <= self.range.end;
        let pieces = self.shared.info.geometry.pieces_of(at, len as u64);
        (fits && self.shared.table.all_complete(pieces)).then_some(at)
    }
}

impl Stream for HereStream {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> TryRead {
        if self.shared.is_removed() {
            return TryRead::Failed(ContentError::Gone);
        }
        let Some(at) = self.here(offset, buf.len()) else { return TryRead::Failed(ContentError::NotHere) };
        match self.shared.try_here(at, buf) {
            true => TryRead::Filled,
            false => TryRead::NotNow,
        }
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) -> Ticket {
        match self.here(offset, len) {
            Some(at) => {
                let done = Box::new(move |read: Result<&[u8], ReadError>| {
                    done(read.map_err(|e| ContentErrorOf::from(e).0))
                });
                self.shared.read_here(at, len, done);
            }
            None => done(Err(ContentError::NotHere)),
        }
        // Nothing was demanded that could be withdrawn.
        Ticket::new(|| ())
    }
}

struct TorrentStream(Reader);

impl Stream for TorrentStream {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> TryRead {
        match self.0.try_read(offset, buf) {
            true => TryRead::Filled,
            false if self.0.is_removed() => TryRead::Failed(ContentError::Gone),
            false => TryRead::NotNow,
        }
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) -> Ticket {
        let done = Box::new(move |result: Result<&[u8], ReadError>| {
            done(result.map_err(|e| ContentErrorOf::from(e).0));
        });
        let ticket = self.0.read(offset, len, done);
        Ticket::new(move || drop(ticket))
    }
}

impl Content for TorrentContent {
    fn tree(&self) -> Arc<Tree> {
        self.snapshot.read().tree.clone()
    }

    fn bytes_here(&self, file: NodeId) -> u64 {
        self.file(file).map_or(0, |(shared, file)| shared.bytes_here(file))
    }

    fn open(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        let (shared, index) = self.file(file).ok_or(ContentError::Gone)?;
        let reader = Reader::open(shared, index).ok_or(ContentError::Gone)?;
        Ok(Box::new(TorrentStream(reader)))
    }

    fn open_here(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        let (shared, index) = self.file(file).ok_or(ContentError::Gone)?;
        let extent = *shared.info.geometry.files().get(index.0 as usize).ok_or(ContentError::Gone)?;
        Ok(Box::new(HereStream { shared, range: extent.offset..extent.offset + extent.len }))
    }

    fn backing(&self, file: NodeId, done: BackingDone) {
        let snapshot = self.snapshot();
        // What is in a torrent with an error is as good as what reads find of it.
        let sound = snapshot.torrent(file).is_some_and(|torrent| torrent.status().error.is_none());
        let found = snapshot.file(file).filter(|(shared, _)| sound && !shared.is_removed());
        let Some((shared, index)) = found else { return done(None) };
        let extent = shared.info.geometry.files().get(index.0 as usize);
        if !extent.is_some_and(|extent| self.client.quota().may_hold(extent.len)) {
            return done(None);
        }
        // Who opens a file can't be killed: on a disk that doesn't answer it is read through us, whose reads can.
        let done = Arc::new(RankedMutex::new(Rank::Leaf, "a file to be lent", Some(done)));
        let (answered, answer) = oneshot::channel::<()>();
        let late = done.clone();
        let runtime = self.runtime.enter();
        self.client.spawn("open", async move {
            if tokio::time::timeout(OPEN, answer).await.is_err()
                && let Some(done) = take(&late)
            {
                tracing::debug!("the disk doesn't answer: a file is read through the mount");
                done(None);
            }
        });
        drop(runtime);
        let lent = |(file, held)| Backing { file, hold: Box::new(held) };
        let told = move |found: Option<_>| {
            drop(answered);
            if let Some(done) = take(&done) {
                done(found.map(lent));
            }
        };
        shared.lend(index, self.client.quota(), Box::new(told));
    }

    fn xattr_names(&self, node: NodeId) -> Vec<String> {
        if node == NodeId::ROOT {
            return self.socket().map(|_| format!("{XATTR}socket")).into_iter().collect();
        }
        // Asked of each file by every `ls -l` of newer systems: no value is computed for it.
        let snapshot = self.snapshot();
        let Some(torrent) = snapshot.torrent(node) else { return Vec::new() };
        let file = snapshot.file(node).is_some();
        if !file && node.index() != 0 {
            return Vec::new();
        }
        let names = ["infohash", "state", "progress"].into_iter();
        let names = names.chain(file.then_some("ranges"));
        let names = names.chain(torrent.status().error.is_some().then_some("error"));
        let names = names.chain(torrent.has_webseeds().then_some("webseeds"));
        names.map(|name| format!("{XATTR}{name}")).collect()
    }

    fn xattr(&self, node: NodeId, name: &str) -> Option<Vec<u8>> {
        let name = name.strip_prefix(XATTR)?;
        if node == NodeId::ROOT {
            let socket = self.socket().filter(|_| name == "socket")?;
            return Some(socket.into_os_string().into_vec());
        }
        let snapshot = self.snapshot();
        let torrent = snapshot.torrent(node)?;
        let file = snapshot.file(node);
        let is_root = node.index() == 0;
        if file.is_none() && !is_root {
            return None;
        }
        let status = torrent.status();
        let value = match name {
            "infohash" => torrent.info_hash.to_string(),
            "state" => match &file {
                Some((shared, index)) if shared.is_here(*index) => State::Complete.as_str().to_owned(),
                _ => status.state.as_str().to_owned(),
            },
            "progress" => match &file {
                Some((shared, index)) => {
                    let size = shared.info.files.get(index.0 as usize)?.size;
                    format!("{}/{size}", shared.bytes_here(*index))
                }
                None => format!("{}/{}", status.have, status.size),
            },
            "ranges" => {
                let (shared, index) = file?;
                ranges(shared, index)
            }
            "webseeds" => webseeds(&torrent.webseeds())?,
            "error" => status.error.clone()?,
            _ => return None,
        };
        Some(value.into_bytes())
    }

    fn space(&self) -> Space {
        self.look_at_space();
        Space { free: self.free.bytes.load(Ordering::Acquire), ..self.snapshot().space }
    }

    fn events(&self) -> Option<Receiver<ContentEvent>> {
        self.receiver.lock().take()
    }
}

/// Webseeds, a line each: its URL, what it does, and why. None for none.
fn webseeds(all: &[SeedStatus]) -> Option<String> {
    let line = |seed: &SeedStatus| {
        let text = format!("{} {}", seed.url, seed_words(seed));
        // Both come from strangers, and an attribute has 64 KiB at most.
        let safe = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        text.chars().take(WEBSEED_CHARS_MAX).map(safe).collect()
    };
    let mut lines: Vec<String> = all.iter().take(WEBSEEDS_MAX).map(line).collect();
    if all.len() > WEBSEEDS_MAX {
        lines.push("…".to_owned());
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Takes out what is to be called once, by whoever comes first.
fn take(done: &RankedMutex<Option<BackingDone>>) -> Option<BackingDone> {
    done.lock().take()
}

/// What is here of a file, as `start-end` pairs of bytes (the end is the first byte that isn't), with commas.
fn ranges(shared: &Shared, file: FileIndex) -> String {
    let geometry = &shared.info.geometry;
    let Some(extent) = geometry.files().get(file.0 as usize) else { return String::new() };
    let end = extent.offset + extent.len;
    let mut found: Vec<(u64, u64)> = Vec::new();
    for piece in geometry.file_pieces(file).map(PieceIndex).filter(|p| shared.table.is_complete(*p)) {
        let start = geometry.piece_offset(piece);
        let from = start.max(extent.offset) - extent.offset;
        let to = (start + u64::from(geometry.piece_len(piece))).min(end) - extent.offset;
        let full = found.len() == RANGES_MAX;
        match found.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ if full => {
                let pairs: Vec<String> = found.iter().map(|(a, b)| format!("{a}-{b}")).collect();
                return pairs.join(",") + ",…";
            }
            _ => found.push((from, to)),
        }
    }
    found.iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
