//! The filesystem's port over the client: torrents as a tree of entries, reads as streams.
//!
//! The only room that knows both sides. The tree is a snapshot, built anew when the set of torrents changes or
//! metadata comes ([`TorrentContent::watch`]); nothing here waits for a network.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use torrentfs_fs::content::{Content, ContentError, ContentEvent, ReadDone, Space, Stream, Ticket, TryRead};
use torrentfs_fs::lock::{Rank, RankedMutex, RankedRwLock};
use torrentfs_fs::tree::{Leaf, NodeId, NodeKind, Subtree, SubtreeBuilder, Tree};

use crate::client::Client;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::info::{FileKind, Info};
use crate::metainfo::path;
use crate::sync::tasks::TaskScope;
use crate::torrent::Torrent;
use crate::torrent::reads::{ReadError, Reader, Shared};
use crate::torrent::status::State;

/// Slots of torrents that are still resolving have this bit, so that the final entry is another inode: it
/// may be a file where the resolving one is a folder.
const RESOLVING: u32 = 1 << 31;
/// Pairs named in `user.torrentfs.ranges` at most; a longer list ends with `…`.
const RANGES_MAX: usize = 64;
/// Prefix of our extended attributes.
const XATTR: &str = "user.torrentfs.";
/// Events waiting for the filesystem. When it is full, one is dropped and the kernel sees the change when its
/// entry times out.
const EVENTS: usize = 64;

/// See the module's text.
pub struct TorrentContent {
    client: Arc<Client>,
    tree: RankedRwLock<Arc<Tree>>,
    /// Built once per torrent: by slot.
    subtrees: RankedMutex<HashMap<u32, Arc<Subtree>>>,
    events: SyncSender<ContentEvent>,
    receiver: RankedMutex<Option<Receiver<ContentEvent>>>,
    /// Where the mount's control socket is.
    socket: OnceLock<PathBuf>,
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
    /// The content of a client's torrents as they are now.
    pub fn new(client: Arc<Client>) -> Arc<Self> {
        let (events, receiver) = sync_channel(EVENTS);
        let content = Arc::new(Self {
            client,
            tree: RankedRwLock::new(Rank::Leaf, "content tree", Arc::default()),
            subtrees: RankedMutex::new(Rank::Leaf, "content subtrees", HashMap::new()),
            events,
            receiver: RankedMutex::new(Rank::Leaf, "content events", Some(receiver)),
            socket: OnceLock::new(),
        });
        content.rebuild();
        content
    }

    /// Keeps the tree up to date, in a task of `scope`.
    pub fn watch(self: &Arc<Self>, scope: &TaskScope) {
        let content = self.clone();
        scope.spawn("tree", async move {
            loop {
                content.client.changed().await;
                content.rebuild();
            }
        });
    }

    /// Builds the tree anew and tells the filesystem which names changed.
    pub fn rebuild(&self) {
        let torrents = self.client.torrents();
        let mut entries: Vec<(String, String, u32, Arc<Subtree>)> = Vec::new();
        let mut newest = 0;
        for torrent in &torrents {
            newest = newest.max(torrent.added);
            let short = torrent.info_hash.short8();
            let slot = if torrent.live().is_some() { torrent.slot } else { torrent.slot | RESOLVING };
            let name = match torrent.live() {
                Some(shared) => shared.info.name.clone(),
                None => {
                    let hint = path::component(torrent.hint.as_bytes());
                    format!("{}.resolving", hint.unwrap_or_else(|| torrent.info_hash.to_string()))
                }
            };
            let known = self.subtrees.lock().get(&slot).cloned();
            let subtree = known.unwrap_or_else(|| {
                let built = Arc::new(subtree(torrent, &name));
                self.subtrees.lock().insert(slot, built.clone());
                built
            });
            entries.push((name, short, slot, subtree));
        }
        let tree = Arc::new(Tree::new(distinct(entries), newest));
        let old = std::mem::replace(&mut *self.tree.write(), tree.clone());
        let names = |t: &Tree| t.root().map(|(n, id)| (n.to_owned(), id)).collect::<HashMap<_, _>>();
        let (before, after) = (names(&old), names(&tree));
        let changed: Vec<String> = before
            .iter()
            .filter(|(name, id)| after.get(*name) != Some(id))
            .map(|(name, _)| name.clone())
            .chain(after.keys().filter(|name| !before.contains_key(*name)).cloned())
            .collect();
        if !changed.is_empty() {
            // Full: see EVENTS.
            let _ = self.events.try_send(ContentEvent::RootChanged { names: changed });
        }
    }

    /// The mount's control socket is there, once and for all: the root's `user.torrentfs.socket` says so.
    pub fn set_socket(&self, path: PathBuf) {
        // A second one would be a bug, and the first goes on to be right.
        let _ = self.socket.set(path);
    }

    /// The slot of the torrent that a node is of.
    pub fn slot(node: NodeId) -> u32 {
        node.slot() & !RESOLVING
    }

    /// All torrents with what they are called in the mount, in the order in which they were added.
    pub fn shown(&self) -> Vec<Shown> {
        let tree = self.tree.read().clone();
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

    fn torrent(&self, node: NodeId) -> Option<Arc<Torrent>> {
        let slot = node.slot() & !RESOLVING;
        self.client.torrents().into_iter().find(|t| t.slot == slot)
    }

    /// The file behind a node, in the torrent's own numbering.
    fn file(&self, node: NodeId) -> Option<(Arc<Shared>, FileIndex)> {
        let tree = self.tree.read().clone();
        let NodeKind::File { file, .. } = tree.node(node)?.kind else { return None };
        Some((self.torrent(node)?.live()?.clone(), FileIndex(file)))
    }

    /// The path of a torrent's file as a person names it: for what readers wait for.
    pub fn label(torrent: &Torrent, file: FileIndex) -> String {
        let entry = torrent.live().and_then(|s| s.info.files.get(file.0 as usize));
        entry.map_or_else(|| torrent.name().to_owned(), |f| f.path.join("/"))
    }
}

/// Gives equal names the torrents' hashes, whatever the order of arrival.
fn distinct(entries: Vec<(String, String, u32, Arc<Subtree>)>) -> Vec<(String, u32, Arc<Subtree>)> {
    let mut count: HashMap<String, usize> = HashMap::new();
    for (name, ..) in &entries {
        *count.entry(name.clone()).or_default() += 1;
    }
    let mut used: HashMap<String, usize> = HashMap::new();
    entries
        .into_iter()
        .map(|(name, short, slot, subtree)| {
            let mut shown = match count.get(&name) {
                Some(n) if *n > 1 => with_suffix(&name, &format!(" [{short}]")),
                _ => name,
            };
            // Two hashes that agree in eight digits, or a torrent that is named like another with its suffix.
            let n = used.entry(shown.clone()).or_default();
            *n += 1;
            if *n > 1 {
                shown = with_suffix(&shown, &format!(" ({n})"));
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

/// The entries of a torrent under this name, as a mount shows them; an empty folder while its metadata isn't known.
pub fn subtree(torrent: &Torrent, name: &str) -> Subtree {
    let Some(shared) = torrent.live() else {
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
        self.tree.read().clone()
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

    fn xattr_names(&self, node: NodeId) -> Vec<String> {
        if node == NodeId::ROOT {
            return self.socket.get().map(|_| format!("{XATTR}socket")).into_iter().collect();
        }
        let all = ["infohash", "state", "progress", "ranges", "error"];
        all.iter().map(|n| format!("{XATTR}{n}")).filter(|n| self.xattr(node, n).is_some()).collect()
    }

    fn xattr(&self, node: NodeId, name: &str) -> Option<Vec<u8>> {
        let name = name.strip_prefix(XATTR)?;
        if node == NodeId::ROOT {
            let socket = self.socket.get().filter(|_| name == "socket")?;
            return Some(socket.as_os_str().as_bytes().to_vec());
        }
        let torrent = self.torrent(node)?;
        let file = self.file(node);
        let is_root = node.index() == 0;
        if file.is_none() && !is_root {
            return None;
        }
        let status = torrent.status();
        let value = match name {
            "infohash" => torrent.info_hash.to_string(),
            "state" => match &file {
                Some((shared, index))
                    if shared.table.all_complete(shared.info.geometry.file_pieces(*index)) =>
                {
                    State::Complete.as_str().to_owned()
                }
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
                ranges(&shared, index)
            }
            "error" => status.error.clone()?,
            _ => return None,
        };
        Some(value.into_bytes())
    }

    fn space(&self) -> Space {
        let mut space = Space { free: self.client.cache().space().map_or(0, |s| s.free), ..Space::default() };
        let tree = self.tree();
        for (_, node) in tree.root() {
            if let Some(subtree) = tree.subtree(node.slot()) {
                space.total = space.total.saturating_add(subtree.total());
                space.files += subtree.files();
            }
        }
        space
    }

    fn events(&self) -> Option<Receiver<ContentEvent>> {
        self.receiver.lock().take()
    }
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
mod tests {
    use super::*;

    fn entry(name: &str, short: &str, slot: u32) -> (String, String, u32, Arc<Subtree>) {
        (name.into(), short.into(), slot, Arc::new(SubtreeBuilder::folder(name, 0).build()))
    }

    #[test]
    fn equal_names_get_their_hash_whatever_the_order() {
        let names = |entries| {
            let mut shown: Vec<(u32, String)> =
                distinct(entries).into_iter().map(|(n, slot, _)| (slot, n)).collect();
            shown.sort();
            shown.into_iter().map(|(_, n)| n).collect::<Vec<_>>()
        };
        let (a, b, c) = (entry("x", "11111111", 1), entry("x", "22222222", 2), entry("y", "33333333", 3));
        let expected = ["x [11111111]", "x [22222222]", "y"];
        assert_eq!(names(vec![a.clone(), b.clone(), c.clone()]), expected);
        assert_eq!(names(vec![c, b, a]), expected);
    }

    #[test]
    fn a_suffix_never_makes_a_name_too_long() {
        let long = "ä".repeat(127);
        let name = with_suffix(&long, " [12345678]");
        assert!(name.len() <= 255 && name.ends_with("ä [12345678]"), "{}", name.len());
    }
}
