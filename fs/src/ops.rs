//! The operations of the filesystem, in its own types: what each call means, without a word of how the kernel
//! asks it.
//!
//! **Flow.** A call takes the present tree (an `Arc` clone), finds its node by number, and answers from it. A
//! read finds its handle, is clamped to the end of the file, and asks the content: bytes that are at hand are
//! answered right here, on the calling thread; for anything else the reply is parked and the thread is free.
//! Nothing here waits for a network or a disk, and no lock is held while the content or a reply is called.
//!
//! **Opening.** A complete file is opened by passthrough, if all that is open on its inode allows it; the rule and its
//! races stand in [`crate::passthrough`]. Everything else is opened through the kernel's page cache.
//!
//! **Offline readers.** For users named so ([`Operations::with_offline`]) nothing is ever fetched: a backup or an
//! indexer reads what is here, and gets an error at once for the rest. It counts who opened the file and who
//! reads: a handle of such a user has a stream that fetches nothing, whoever reads with it; and a read by such a
//! user gets such a stream of its own, whoever opened. What the kernel reads ahead for them comes in their name,
//! and fails as a whole when part of it is missing; then the kernel asks for single pages, and those that are
//! here are had. Pages that come into its cache so hold the bytes that they should, for everybody.
//!
//! **Not here.** Everything that writes is refused in the adapter. `lseek` isn't offered at all: the kernel
//! then says "all data", so that no program takes what isn't here yet for a hole full of zeros.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::attr::{Attr, AttrOptions, Kind, attr_of, kind_of};
use crate::content::{Backing, Content, Stream, TryRead};
use crate::errno::Errno;
use crate::handles::{DirHandle, FileHandle, HandleId, Handles, Served};
use crate::inodes::{HandleKind, InodeTable, Opened};
use crate::parked::{ParkedReads, ReadReply};
use crate::passthrough::{Offer, OpenReply, Passing, Trouble, worth_it};
use crate::tree::{NodeId, NodeKind, Tree};

/// An entry of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
    /// Where the listing goes on after it.
    pub next: u64,
}

/// Figures of the file system, in blocks of [`crate::attr::BLOCK_SIZE`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Number of files.
    pub files: u64,
}

/// Whose thread calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calling {
    /// The thread; 0 if unknown.
    pub tid: u32,
    /// The user.
    pub uid: u32,
}

/// An answer to a question for an extended attribute or their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xattr {
    /// Its size in bytes, when that was asked.
    Size(u32),
    /// Its bytes.
    Data(Vec<u8>),
}

/// How much is open or waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Inodes the kernel knows or has open.
    pub inodes: usize,
    /// Open handles of files and folders.
    pub handles: usize,
    /// Those of files that are read by passthrough.
    pub passthrough: usize,
    /// Parked reads.
    pub parked: usize,
    /// Reads the kernel has asked for since the mount began.
    pub reads: u64,
}

/// Longest name of an entry, in bytes: as on a disk, and as `statfs` tells.
pub const NAME_LENGTH: u32 = 255;

/// The one kind of extended attributes there is. Of others it is said that they aren't kept here, not that one isn't
/// there: `ls -l` asks for two of each file (`security.selinux` and the access list), and after that answer not again.
const XATTR_PREFIX: &str = "user.";

thread_local! {
    /// Where a read is filled before its reply; grows to the largest read of the thread (at most 1 MiB, by
    /// the kernel's limit on a request).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub struct Operations {
    content: Arc<dyn Content>,
    options: AttrOptions,
    inodes: InodeTable,
    handles: Handles,
    parked: Arc<ParkedReads>,
    /// Users for whom nothing is fetched: a handful, so a look at each is quicker than a hash.
    offline: Vec<u32>,
    /// Whether the kernel takes backing files, as far as is known.
    passthrough: AtomicBool,
    reads: AtomicU64,
}

/// An open that is under way.
struct Opening {
    node: NodeId,
    size: u64,
    offline: bool,
    reply: Box<dyn OpenReply>,
}

/// The content's end of an open that asked for a backing file: goes on without one when it is dropped uncalled.
struct Prepared {
    ops: Arc<Operations>,
    opening: Option<Opening>,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(opening) = self.opening.take() {
            self.ops.go_on(opening, Offer::Nothing);
        }
    }
}

impl Operations {
    /// The operations over a content; reads wait in `parked`.
    pub fn new(content: Arc<dyn Content>, options: AttrOptions, parked: Arc<ParkedReads>) -> Self {
        let (inodes, handles) = (InodeTable::default(), Handles::default());
        let (passthrough, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { content, options, inodes, handles, parked, offline: Vec::new(), passthrough, reads }
    }

    /// The kernel takes backing files: complete files are opened by passthrough from now on.
    pub fn pass_through(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    /// The same, but nothing is fetched for these users.
    pub fn with_offline(self, users: Vec<u32>) -> Self {
        Self { offline: users, ..self }
    }

    fn is_offline(&self, uid: u32) -> bool {
        self.offline.contains(&uid)
    }

    /// Reads `size` bytes from `offset`, less only at the end of the file. Returns at once; `reply` is called
    /// once, by then or later, and possibly from another thread.
    pub fn read(&self, handle: HandleId, offset: u64, size: u32, calling: Calling, reply: ReadReply) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(file) = self.handles.file(handle) else { return reply(Err(Errno::EBADF)) };
        if self.parked.is_refusing() {
            return reply(Err(Errno::EIO));
        }
        let len = u64::from(size).min(file.size.saturating_sub(offset)) as usize;
        if len == 0 {
            return reply(Ok(&[]));
        }
        let own: Box<dyn Stream>;
        let stream = match &file.served {
            Served::Cached(stream) if file.offline || !self.is_offline(calling.uid) => stream.as_ref(),
            // The kernel doesn't ask for what it reads by itself; if it did, all of it is here.
            Served::Cached(_) | Served::Passthrough => match self.content.open_here(file.node) {
                Ok(stream) => {
                    own = stream;
                    own.as_ref()
                }
                Err(error) => return reply(Err(Errno::from(error))),
            },
        };
        let reply = BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let Some(buffer) = buffer.get_mut(..len) else { return Some(reply) };
            match stream.try_read(offset, buffer) {
                TryRead::Filled => reply(Ok(buffer)),
                TryRead::Failed(error) => reply(Err(Errno::from(&error))),
                TryRead::NotNow => return Some(reply),
            }
            None
        });
        if let Some(reply) = reply {
            self.parked.park(stream, file.node, offset, len, calling.tid, reply);
        }
    }

    /// Finds a name in a folder. The kernel now holds one more reference to the node.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG, ESTALE for a folder that went away.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr, Errno> {
        // The kernel's own limit is 1024.
        if name.len() > NAME_LENGTH as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let tree = self.content.tree();
        // All names are text; what isn't can't be there.
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let child = if parent == NodeId::ROOT {
            tree.root_child(name)
        } else {
            let subtree = tree.subtree(parent.slot()).ok_or(Errno::ESTALE)?;
            match subtree.node(parent.index()).ok_or(Errno::ESTALE)?.kind {
                NodeKind::Dir(_) => {}
                _ => return Err(Errno::ENOTDIR),
            }
            subtree.child(parent.index(), name).map(|index| NodeId::new(parent.slot(), index))
        };
        let attr = self.attr(&tree, child.ok_or(Errno::ENOENT)?)?;
        self.inodes.looked_up(&[attr.node]);
        Ok(attr)
    }

    /// The kernel gives back references.
    pub fn forget(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        self.inodes.forget(forgotten);
    }

    /// The attributes of a node.
    ///
    /// # Errors
    /// ESTALE if it went away.
    pub fn getattr(&self, node: NodeId) -> Result<Attr, Errno> {
        self.attr(&self.content.tree(), node)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL if it isn't one, ESTALE.
    pub fn readlink(&self, node: NodeId) -> Result<String, Errno> {
        let tree = self.content.tree();
        match tree.node(node).map(|node| &node.kind) {
            Some(NodeKind::Symlink(target)) => Ok(target.clone()),
            Some(_) => Err(Errno::EINVAL),
            None if node == NodeId::ROOT => Err(Errno::EINVAL),
            None => Err(Errno::ESTALE),
        }
    }

    /// Opens a file for reading by this user. `O_NONBLOCK` means nothing, as on a disk. Returns at once; the reply is
    /// given by then, or when the content has said whether there is a backing file.
    ///
    /// Its errors: EROFS for any way of writing, EISDIR, ELOOP, ESTALE, and what the content says.
    pub fn open(self: &Arc<Self>, node: NodeId, flags: i32, uid: u32, reply: Box<dyn OpenReply>) {
        let size = match self.openable(node, flags) {
            Ok(size) => size,
            Err(errno) => return reply.error(errno),
        };
        let opening = Opening { node, size, offline: self.is_offline(uid), reply };
        // What is opened while reads are refused fails like the rest.
        let possible = self.passthrough.load(Ordering::Relaxed)
            && !self.parked.is_refusing()
            && worth_it(size, self.content.bytes_here(node));
        self.go_on(opening, if possible { Offer::Possible } else { Offer::Nothing });
    }

    /// The size of a file that may be opened so.
    fn openable(&self, node: NodeId, flags: i32) -> Result<u64, Errno> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(Errno::EROFS);
        }
        if node == NodeId::ROOT {
            return Err(Errno::EISDIR);
        }
        match self.content.tree().node(node).ok_or(Errno::ESTALE)?.kind {
            NodeKind::File { size, .. } => Ok(size),
            NodeKind::Dir(_) => Err(Errno::EISDIR),
            NodeKind::Symlink(_) => Err(Errno::ELOOP),
        }
    }

    /// Goes on with an open, with what it has in hand.
    fn go_on(self: &Arc<Self>, opening: Opening, offer: Offer) {
        match self.inodes.open(opening.node, &offer) {
            Opened::Prepare => {
                let node = opening.node;
                let mut prepared = Prepared { ops: self.clone(), opening: Some(opening) };
                let done = move |backing: Option<Backing>| {
                    let Some(opening) = prepared.opening.take() else { return };
                    let offer = prepared.ops.registered(&opening, backing);
                    prepared.ops.go_on(opening, offer);
                };
                self.content.backing(node, Box::new(done));
            }
            Opened::Passthrough(passing) => {
                // One that was prepared in vain goes, before the reply lets somebody count what is open.
                drop(offer);
                let Opening { node, size, offline, reply } = opening;
                tracing::trace!(node = node.0, "opened by passthrough");
                let served = Served::Passthrough;
                let handle = self.handles.open_file(FileHandle { node, size, served, offline });
                reply.passthrough(handle, &passing.registered);
            }
            Opened::Cached => {
                drop(offer);
                let Opening { node, size, offline, reply } = opening;
                let opened = if offline { self.content.open_here(node) } else { self.content.open(node) };
                match opened {
                    Ok(stream) => {
                        tracing::trace!(node = node.0, "opened cached");
                        let served = Served::Cached(stream);
                        reply.cached(self.handles.open_file(FileHandle { node, size, served, offline }));
                    }
                    Err(error) => {
                        drop(self.inodes.released(node, HandleKind::Cached));
                        reply.error(Errno::from(error));
                    }
                }
            }
        }
    }

    /// Tells the kernel of a backing file; what comes of it.
    fn registered(&self, opening: &Opening, backing: Option<Backing>) -> Offer {
        let Some(Backing { file, hold }) = backing else { return Offer::Nothing };
        if !self.passthrough.load(Ordering::Relaxed) {
            return Offer::Nothing;
        }
        use std::os::fd::AsFd;
        match opening.reply.register(file.as_fd()) {
            Ok(registered) => Offer::Ready(Passing::new(registered, hold)),
            Err(error) => {
                match Trouble::of(&error) {
                    Trouble::Once => tracing::debug!("a file isn't passed through: {error}"),
                    Trouble::ForGood => {
                        // Once, however many opens hear it at the same time.
                        if self.passthrough.swap(false, Ordering::Relaxed) {
                            tracing::debug!(
                                "complete files are read through the mount, not passed through: {error}"
                            );
                        }
                    }
                }
                Offer::Nothing
            }
        }
    }

    /// Closes a file.
    pub fn release(&self, handle: HandleId) {
        if let Some(file) = self.handles.close_file(handle) {
            drop(self.inodes.released(file.node, file.kind()));
        }
    }

    /// Opens a folder; it lists the tree as it is now.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn opendir(&self, node: NodeId) -> Result<HandleId, Errno> {
        let tree = self.content.tree();
        match kind_of(&tree, node) {
            Some(Kind::Dir) => {}
            Some(_) => return Err(Errno::ENOTDIR),
            None => return Err(Errno::ESTALE),
        }
        self.inodes.opened_dir(node);
        Ok(self.handles.open_dir(DirHandle::new(node, tree)))
    }

    /// Closes a folder.
    pub fn releasedir(&self, handle: HandleId) {
        if let Some(dir) = self.handles.close_dir(handle) {
            drop(self.inodes.released(dir.node, HandleKind::Dir));
        }
    }

    /// Lists a folder from `offset` (0, or an entry's `next`) until `add` says that its buffer is full, with
    /// the entry not added. A listing shows the tree as it was at its beginning, whatever changes meanwhile.
    ///
    /// # Errors
    /// EBADF; ESTALE if the folder is gone at the beginning of the listing.
    pub fn readdir(
        &self,
        handle: HandleId,
        offset: u64,
        add: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let tree = self.listing(handle, offset)?;
        list(&tree.0, tree.1, offset, add)
    }

    /// Lists as [`Operations::readdir`] with the attributes of each entry. The kernel now holds one more
    /// reference to each node added, except `.` and `..`.
    ///
    /// # Errors
    /// As [`Operations::readdir`].
    pub fn readdirplus(
        &self,
        handle: HandleId,
        offset: u64,
        mut add: impl FnMut(DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), Errno> {
        let (tree, dir) = self.listing(handle, offset)?;
        let present = self.content.tree();
        let mut added = Vec::new();
        let outcome = list(&tree, dir, offset, |entry| {
            // Of the listed tree: an entry that has gone since is found to be gone when it is used…
            let Ok(mut attr) = self.attr(&tree, entry.node) else { return false };
            if kind_of(&present, entry.node).is_none() {
                // …at once, and isn't remembered: its name may stand for another one.
                (attr.ttl, attr.entry_ttl) = (Duration::ZERO, Duration::ZERO);
            }
            let full = add(entry, &attr);
            if !full && entry.name != "." && entry.name != ".." {
                added.push(entry.node);
            }
            full
        });
        self.inodes.looked_up(&added);
        outcome
    }

    fn listing(&self, handle: HandleId, offset: u64) -> Result<(Arc<Tree>, NodeId), Errno> {
        let dir = self.handles.dir(handle).ok_or(Errno::EBADF)?;
        if offset == 0 {
            // Opened or rewound: the present state.
            dir.refresh(self.content.tree());
        }
        Ok((dir.tree(), dir.node))
    }

    /// Figures for `df`: all files count as used.
    pub fn statfs(&self) -> Statfs {
        let space = self.content.space();
        let size = u64::from(crate::attr::BLOCK_SIZE);
        let free = space.free / size;
        Statfs { blocks: space.total.div_ceil(size).saturating_add(free), free, files: space.files }
    }

    /// The value of an extended attribute; with a `size` of 0, how long it is.
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP for any but users' attributes, ERANGE if it is longer than `size` bytes, ESTALE.
    pub fn getxattr(&self, node: NodeId, name: &OsStr, size: u32) -> Result<Xattr, Errno> {
        if !name.as_encoded_bytes().starts_with(XATTR_PREFIX.as_bytes()) {
            return Err(Errno::EOPNOTSUPP);
        }
        // All names are text.
        let name = name.to_str().ok_or(Errno::ENODATA)?;
        self.exists(node)?;
        sized(self.content.xattr(node, name).ok_or(Errno::ENODATA)?, size)
    }

    /// The names of the extended attributes, each ended by NUL; with a `size` of 0, how long that is.
    ///
    /// # Errors
    /// ERANGE if it is longer than `size` bytes, ESTALE.
    pub fn listxattr(&self, node: NodeId, size: u32) -> Result<Xattr, Errno> {
        self.exists(node)?;
        let mut names = Vec::new();
        for name in self.content.xattr_names(node) {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        sized(names, size)
    }

    /// Whether a node may be used so (the kernel checks modes itself; this is for what it doesn't).
    ///
    /// # Errors
    /// EROFS for writing, EACCES for running what isn't executable, ESTALE.
    pub fn access(&self, node: NodeId, mask: i32) -> Result<(), Errno> {
        let attr = self.getattr(node)?;
        if mask & libc::W_OK != 0 {
            return Err(Errno::EROFS);
        }
        if mask & libc::X_OK != 0 && attr.perm & 0o111 == 0 {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    /// How much is open or waiting.
    pub fn counts(&self) -> Counts {
        Counts {
            inodes: self.inodes.len(),
            handles: self.handles.len(),
            passthrough: self.handles.passthrough(),
            parked: self.parked.len(),
            reads: self.reads.load(Ordering::Relaxed),
        }
    }

    /// The present tree.
    pub fn tree(&self) -> Arc<Tree> {
        self.content.tree()
    }

    /// The inode table.
    pub fn inodes(&self) -> &InodeTable {
        &self.inodes
    }

    fn exists(&self, node: NodeId) -> Result<(), Errno> {
        kind_of(&self.content.tree(), node).map(|_| ()).ok_or(Errno::ESTALE)
    }

    fn attr(&self, tree: &Tree, node: NodeId) -> Result<Attr, Errno> {
        attr_of(tree, node, &self.options, |file| self.content.bytes_here(file)).ok_or(Errno::ESTALE)
    }
}

fn sized(value: Vec<u8>, size: u32) -> Result<Xattr, Errno> {
    let length = u32::try_from(value.len()).map_err(|_| Errno::ERANGE)?;
    match size {
        0 => Ok(Xattr::Size(length)),
        size if size < length => Err(Errno::ERANGE),
        _ => Ok(Xattr::Data(value)),
    }
}

/// Offsets: 0 is `.`, 1 is `..`, 2 and more the children in order.
fn list(
    tree: &Tree,
    dir: NodeId,
    offset: u64,
    mut add: impl FnMut(DirEntry<'_>) -> bool,
) -> Result<(), Errno> {
    let parent = match tree.node(dir) {
        _ if dir == NodeId::ROOT => NodeId::ROOT,
        Some(_) if dir.index() == 0 => NodeId::ROOT,
        Some(node) => NodeId::new(dir.slot(), node.parent),
        None => return Err(Errno::ESTALE),
    };
    for (at, node, name) in [(0, dir, "."), (1, parent, "..")] {
        if offset <= at && add(DirEntry { node, kind: Kind::Dir, name, next: at + 1 }) {
            return Ok(());
        }
    }
    let skip = usize::try_from(offset.saturating_sub(2)).map_err(|_| Errno::EINVAL)?;
    let mut next = skip as u64 + 2;
    let mut put = |node: NodeId, name: &str| {
        let Some(kind) = kind_of(tree, node) else { return false };
        next += 1;
        add(DirEntry { node, kind, name, next })
    };
    if dir == NodeId::ROOT {
        for (name, node) in tree.root().skip(skip) {
            if put(node, name) {
                break;
            }
        }
        return Ok(());
    }
    let subtree = tree.subtree(dir.slot()).ok_or(Errno::ESTALE)?;
    let Some(NodeKind::Dir(children)) = subtree.node(dir.index()).map(|node| &node.kind) else {
        return Err(Errno::ENOTDIR);
    };
    for index in children.iter().skip(skip) {
        let Some(child) = subtree.node(*index) else { continue };
        if put(NodeId::new(dir.slot(), *index), &child.name) {
            break;
        }
    }
    Ok(())
}
