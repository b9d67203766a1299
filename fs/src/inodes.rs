//! The inode table: which nodes the kernel knows, and the handles open on each, counted by kind.
//!
//! A node's number is its inode number, so nothing is searched here. The table exists to know what the kernel
//! still holds: an inode stays while it has lookups the kernel hasn't forgotten, or an open handle, and goes
//! with the last of both. All of it is bookkeeping of a few instructions under the filesystem's lock, and
//! each inode's own lock below it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lock::{Rank, RankedMutex, RankedRwLock};
use crate::tree::NodeId;

/// How a handle is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind {
    /// A file, through the kernel's page cache.
    Cached,
    /// A folder.
    Dir,
}

/// Open handles by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandleCounts {
    /// Files through the page cache.
    pub cached: u64,
    /// Folders.
    pub dir: u64,
}

impl HandleCounts {
    fn of(&mut self, kind: HandleKind) -> &mut u64 {
        match kind {
            HandleKind::Cached => &mut self.cached,
            HandleKind::Dir => &mut self.dir,
        }
    }
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug)]
struct Inode {
    /// References the kernel holds. Changed under the table's lock at least for reading.
    lookups: AtomicU64,
    handles: RankedMutex<HandleCounts>,
}

/// See the module.
#[derive(Debug)]
pub struct InodeTable {
    inodes: RankedRwLock<HashMap<NodeId, Arc<Inode>>>,
}

impl Default for InodeTable {
    fn default() -> Self {
        Self { inodes: RankedRwLock::new(Rank::Filesystem, "inode table", HashMap::new()) }
    }
}

fn inode(inodes: &mut HashMap<NodeId, Arc<Inode>>, node: NodeId) -> &Arc<Inode> {
    inodes.entry(node).or_insert_with(|| {
        let handles = RankedMutex::new_keyed(Rank::Inode, node.0, "inode", HandleCounts::default());
        Arc::new(Inode { lookups: AtomicU64::new(0), handles })
    })
}

impl InodeTable {
    /// The kernel is about to be told of these nodes, once each.
    pub fn looked_up(&self, nodes: &[NodeId]) {
        if nodes.is_empty() {
            return;
        }
        let mut inodes = self.inodes.write();
        for node in nodes {
            inode(&mut inodes, *node).lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The kernel gave back so many of its references.
    pub fn forget(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        let mut inodes = self.inodes.write();
        for (node, count) in forgotten {
            let Some(inode) = inodes.get(&node) else { continue };
            let left = inode.lookups.load(Ordering::Relaxed).saturating_sub(count);
            inode.lookups.store(left, Ordering::Relaxed);
            if left == 0 && inode.handles.lock().is_empty() {
                inodes.remove(&node);
            }
        }
    }

    /// Counts a handle as open.
    pub fn opened(&self, node: NodeId, kind: HandleKind) {
        let mut inodes = self.inodes.write();
        *inode(&mut inodes, node).handles.lock().of(kind) += 1;
    }

    /// Counts a handle as closed.
    pub fn released(&self, node: NodeId, kind: HandleKind) {
        let mut inodes = self.inodes.write();
        let Some(inode) = inodes.get(&node) else { return };
        let mut handles = inode.handles.lock();
        let count = handles.of(kind);
        *count = count.saturating_sub(1);
        let gone = handles.is_empty() && inode.lookups.load(Ordering::Relaxed) == 0;
        drop(handles);
        if gone {
            inodes.remove(&node);
        }
    }

    /// Number of inodes the kernel knows or has open.
    pub fn len(&self) -> usize {
        self.inodes.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The handles open on one node.
    pub fn handles(&self, node: NodeId) -> HandleCounts {
        let inode = self.inodes.read().get(&node).cloned();
        inode.map(|inode| *inode.handles.lock()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_lives_while_it_is_known_or_open() {
        let table = InodeTable::default();
        let (a, b) = (NodeId::new(1, 1), NodeId::new(1, 2));
        table.looked_up(&[a, b, a]);
        assert_eq!(table.len(), 2);
        table.forget([(a, 1), (b, 1)]);
        assert_eq!(table.len(), 1);
        table.opened(a, HandleKind::Cached);
        table.opened(a, HandleKind::Cached);
        table.opened(a, HandleKind::Dir);
        table.forget([(a, 1)]);
        assert_eq!(table.handles(a), HandleCounts { cached: 2, dir: 1 });
        table.released(a, HandleKind::Dir);
        table.released(a, HandleKind::Cached);
        assert!(!table.is_empty());
        table.released(a, HandleKind::Cached);
        assert!(table.is_empty());
        // What the kernel says too often or of unknown nodes harms nothing.
        table.forget([(a, 9), (NodeId::ROOT, u64::MAX)]);
        table.released(b, HandleKind::Dir);
        table.looked_up(&[b]);
        table.forget([(b, 99)]);
        assert!(table.is_empty());
        assert_eq!(table.handles(b), HandleCounts::default());
    }
}
