//! Open handles: files with their stream, folders with the tree they list.
//!
//! A map by number, used as a leaf: what is found is cloned out and the map let go before anything is done
//! with it, so a stream is never read or dropped under a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::content::Stream;
use crate::inodes::HandleKind;
use crate::lock::{Rank, RankedMutex};
use crate::tree::{NodeId, Tree};

/// The number of a handle, as the kernel gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// An open file.
pub struct FileHandle {
    /// The file.
    pub node: NodeId,
    /// Its size in bytes.
    pub size: u64,
    /// How it is served.
    pub served: Served,
    /// Whether that gives only what is here; see [`crate::content::Content::open_here`].
    pub offline: bool,
}

/// How an open file is served. A handle never changes that.
pub enum Served {
    /// Through the kernel's page cache, from this stream. Dropped, and so closed, with the last user of the handle.
    Cached(Box<dyn Stream>),
    /// By the kernel, from the file it lies in.
    Passthrough,
}

impl FileHandle {
    /// As what it counts.
    pub fn kind(&self) -> HandleKind {
        match self.served {
            Served::Cached(_) => HandleKind::Cached,
            Served::Passthrough => HandleKind::Passthrough,
        }
    }
}

/// An open folder.
#[derive(Debug)]
pub struct DirHandle {
    /// The folder.
    pub node: NodeId,
    tree: RankedMutex<Arc<Tree>>,
}

impl DirHandle {
    /// An open folder that lists this tree.
    pub fn new(node: NodeId, tree: Arc<Tree>) -> Self {
        Self { node, tree: RankedMutex::new(Rank::Leaf, "open folder", tree) }
    }
    /// The tree it lists.
    pub fn tree(&self) -> Arc<Tree> {
        self.tree.lock().clone()
    }
    /// Lists another tree from now on (it was rewound).
    pub fn refresh(&self, tree: Arc<Tree>) {
        let old = std::mem::replace(&mut *self.tree.lock(), tree);
        drop(old);
    }
}

enum Handle {
    File(Arc<FileHandle>),
    Dir(Arc<DirHandle>),
}

/// See the module.
#[derive(Default)]
pub struct Handles {
    next: AtomicU64,
    open: DashMap<u64, Handle>,
}

impl Handles {
    fn insert(&self, handle: Handle) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.insert(id, handle);
        HandleId(id)
    }

    /// Opens a file.
    pub fn open_file(&self, file: FileHandle) -> HandleId {
        self.insert(Handle::File(Arc::new(file)))
    }

    /// Opens a folder.
    pub fn open_dir(&self, dir: DirHandle) -> HandleId {
        self.insert(Handle::Dir(Arc::new(dir)))
    }

    /// The open file of that number.
    pub fn file(&self, id: HandleId) -> Option<Arc<FileHandle>> {
        match self.open.get(&id.0).as_deref() {
            Some(Handle::File(file)) => Some(file.clone()),
            _ => None,
        }
    }

    /// The open folder of that number.
    pub fn dir(&self, id: HandleId) -> Option<Arc<DirHandle>> {
        match self.open.get(&id.0).as_deref() {
            Some(Handle::Dir(dir)) => Some(dir.clone()),
            _ => None,
        }
    }

    /// Closes a file; whoever reads it still keeps it until then.
    pub fn close_file(&self, id: HandleId) -> Option<Arc<FileHandle>> {
        match self.open.remove_if(&id.0, |_, handle| matches!(handle, Handle::File(_))) {
            Some((_, Handle::File(file))) => Some(file),
            _ => None,
        }
    }

    /// Closes a folder.
    pub fn close_dir(&self, id: HandleId) -> Option<Arc<DirHandle>> {
        match self.open.remove_if(&id.0, |_, handle| matches!(handle, Handle::Dir(_))) {
            Some((_, Handle::Dir(dir))) => Some(dir),
            _ => None,
        }
    }

    /// Number of files that are open by passthrough. Looks at all handles.
    pub fn passthrough(&self) -> usize {
        let is =
            |handle: &Handle| matches!(handle, Handle::File(file) if file.kind() == HandleKind::Passthrough);
        self.open.iter().filter(|handle| is(handle.value())).count()
    }

    /// Number of open handles.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::content::{ReadDone, Ticket, TryRead};

    struct Nothing;
    impl Stream for Nothing {
        fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
            TryRead::NotNow
        }
        fn read(&self, _: u64, _: usize, _: ReadDone) -> Ticket {
            Ticket::new(|| ())
        }
    }

    #[test]
    fn a_number_finds_its_own_kind_only() {
        let handles = Handles::default();
        let node = NodeId::new(1, 3);
        let served = Served::Cached(Box::new(Nothing));
        let file = handles.open_file(FileHandle { node, size: 1, served, offline: false });
        let served = Served::Passthrough;
        let passed = handles.open_file(FileHandle { node, size: 1, served, offline: false });
        assert_eq!(handles.passthrough(), 1);
        assert!(handles.close_file(passed).is_some());
        let dir = handles.open_dir(DirHandle::new(node, Arc::new(Tree::default())));
        assert_ne!(file, dir);
        assert!(handles.file(file).is_some() && handles.dir(file).is_none());
        assert!(handles.dir(dir).is_some() && handles.file(dir).is_none());
        assert!(handles.close_file(dir).is_none() && handles.close_dir(file).is_none());
        let kept = handles.file(file).unwrap();
        assert!(handles.close_file(file).is_some());
        assert!(handles.close_file(file).is_none());
        assert_eq!(kept.node, node);
        assert!(handles.close_dir(dir).is_some());
        assert!(handles.is_empty());
        assert!(handles.file(HandleId(0)).is_none());
    }
}
