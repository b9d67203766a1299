//! The port: what the filesystem asks of whoever has the content.
//!
//! The filesystem depends on this trait and on nothing behind it. Calls go down (kernel, filesystem,
//! content); events come up through a bounded channel. There are two implementations: the BitTorrent
//! client's, and the scripted [`crate::mock`] with which the whole filesystem is tested.
//!
//! None of these calls may wait for a network. [`Stream::read`] is the one that takes long, and it
//! returns at once and answers later.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::tree::{NodeId, Tree};

/// Why the content could not give bytes. Turned into an errno in one place, [`crate::errno`].
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ContentError {
    /// Not all of it is here, and the reader is one for whom nothing is fetched.
    #[error("not here yet, and not to be fetched for this reader")]
    NotHere,
    /// No block arrived within the read time-out.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// The content is in an error state, or the disk failed.
    #[error("{0}")]
    Io(String),
    /// The disk that holds the data is full.
    #[error("no space left for the data")]
    NoSpace,
    /// The torrent was removed, or the node doesn't exist (any more).
    #[error("no such torrent or file")]
    Gone,
    /// The program is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

/// What an immediate attempt to read came to.
#[derive(Debug, PartialEq, Eq)]
pub enum TryRead {
    /// The whole buffer was filled with verified bytes.
    Filled,
    /// Something is missing, or is here but would need a disk: use [`Stream::read`].
    NotNow,
    /// It can't be read.
    Failed(ContentError),
}

/// Called once with the bytes asked for (all of them) or the reason there are none.
/// Runs on a thread of the content's; must not block on anything but a write to `/dev/fuse`.
/// Calling it and dropping it are effects, both may write to `/dev/fuse`: never do either under a lock.
/// Dropped uncalled, it answers EIO if the read still waits.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8], ContentError>) + Send>;

/// Holds the demand of one waiting read. Dropping it withdraws the demand: the pieces it waited for fall
/// back to what else wants them, and its [`ReadDone`] is dropped uncalled unless it is running already.
/// Dropping never blocks.
pub struct Ticket(Option<Box<dyn FnOnce() + Send>>);

impl Ticket {
    /// A ticket that runs `withdraw` when dropped.
    pub fn new(withdraw: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(withdraw)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(withdraw) = self.0.take() {
            withdraw();
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}

/// One open reader of one file. Dropping it closes it and gives up what was being fetched ahead for it.
pub trait Stream: Send + Sync {
    /// Fills `buf` from `offset` (bytes from the start of the file) if that takes neither the network nor a
    /// disk. The range lies within the file. Never waits.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> TryRead;

    /// Reads `len` bytes from `offset`, however long it takes; the range lies within the file, `len > 0`.
    /// Returns at once. `done` is called exactly once, possibly before this returns, unless the ticket is
    /// dropped first.
    fn read(&self, offset: u64, len: usize, done: ReadDone) -> Ticket;
}

/// A complete file as one file of the system, so that the kernel can read it without asking anybody.
pub struct Backing {
    /// That file, open for reading, also with `O_DIRECT`. It holds exactly the node's bytes, verified, and stays so while
    /// `hold` lives.
    pub file: OwnedFd,
    /// Kept as long as a handle is open that reads it so. A mapping goes on beyond that, and nobody is told of it: who
    /// changes the file afterwards has to find out whether somebody has it mapped. Dropping it never blocks.
    pub hold: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backing").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Called once with the backing file, or `None` when the file isn't to be had so. Runs on a thread of the content's;
/// writes to `/dev/fuse`, and may call the content. Dropped uncalled, that counts as `None`.
pub type BackingDone = Box<dyn FnOnce(Option<Backing>) + Send>;

/// Figures for `statfs`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Size of all files shown.
    pub total: u64,
    /// Bytes free on the file system that holds the cache.
    pub free: u64,
    /// Number of files shown.
    pub files: u64,
}

/// Something changed in the tree. [`Content::tree`] already shows the new state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentEvent {
    /// These names in the root appeared, went away or changed what they stand for.
    RootChanged {
        /// The names, as shown.
        names: Vec<String>,
    },
}

/// Whoever has the content.
pub trait Content: Send + Sync + 'static {
    /// The present tree, immutable; later changes make another one. Costs an `Arc` clone.
    fn tree(&self) -> Arc<Tree>;

    /// How many bytes of this file are here, verified.
    fn bytes_here(&self, file: NodeId) -> u64;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`ContentError::Gone`] if there is no such file, [`ContentError::ShuttingDown`].
    fn open(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError>;

    /// Opens a file for a reader for whom nothing is ever fetched. Its stream gives what is here; a read that
    /// isn't all here fails at once with [`ContentError::NotHere`]. It counts as no reader: nothing is fetched
    /// ahead for it, nobody is asked for anything while it is open, and the streams of others don't notice it.
    ///
    /// # Errors
    /// As [`Content::open`].
    fn open_here(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError>;

    /// Asks for the file of the system that holds all of this one. Returns at once: finding out may take a disk, and
    /// `done` is called then. `None` when it isn't complete, doesn't lie in one file, or may not be held.
    fn backing(&self, file: NodeId, done: BackingDone) {
        let _ = file;
        done(None);
    }

    /// Names of the extended attributes of a node (full names: `user.torrentfs.state`).
    fn xattr_names(&self, node: NodeId) -> Vec<String>;

    /// The value of an extended attribute, or `None` when there is none now (ENODATA).
    fn xattr(&self, node: NodeId, name: &str) -> Option<Vec<u8>>;

    /// Figures for `statfs`.
    fn space(&self) -> Space;

    /// The channel of events; given once, `None` after. It is bounded: when it is full the content drops the
    /// event, which only delays a change's visibility until the kernel's own entry time-out.
    fn events(&self) -> Option<Receiver<ContentEvent>>;
}
