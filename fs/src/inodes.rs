//! The inode table: which nodes the kernel knows, and the handles open on each, counted by kind.
//!
//! A node's number is its inode number, so nothing is searched here. The table exists to know what the kernel
//! still holds: an inode stays while it has lookups the kernel hasn't forgotten, or an open handle, and goes
//! with the last of both. All of it is bookkeeping of a few instructions under the filesystem's lock, and
//! each inode's own lock below it. How a file is opened is decided in the step that counts it ([`InodeTable::open`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lock::{Rank, RankedMutex, RankedRwLock};
use crate::passthrough::{Decision, Offer, Passing, decide};
use crate::tree::NodeId;

/// How a handle is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind {
    /// A file, through the kernel's page cache.
    Cached,
    /// A file, read by the kernel from the one it lies in.
    Passthrough,
    /// A folder.
    Dir,
}

/// Open handles by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandleCounts {
    /// Files through the page cache.
    pub cached: u64,
    /// Files by passthrough.
    pub passthrough: u64,
    /// Folders.
    pub dir: u64,
}

impl HandleCounts {
    fn of(&mut self, kind: HandleKind) -> &mut u64 {
        match kind {
            HandleKind::Cached => &mut self.cached,
            HandleKind::Passthrough => &mut self.passthrough,
            HandleKind::Dir => &mut self.dir,
        }
    }
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a file was opened.
#[derive(Debug)]
pub enum Opened {
    /// It is counted as [`HandleKind::Cached`].
    Cached,
    /// It is counted as [`HandleKind::Passthrough`], with this backing file.
    Passthrough(Arc<Passing>),
    /// It isn't counted: a backing file is to be prepared first.
    Prepare,
}

#[derive(Debug, Default)]
struct Open {
    counts: HandleCounts,
    /// The backing file, as long as a passthrough handle is open.
    passing: Option<Arc<Passing>>,
}

#[derive(Debug)]
struct Inode {
    /// References the kernel holds. Changed under the table's lock at least for reading.
    lookups: AtomicU64,
    open: RankedMutex<Open>,
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
        let open = RankedMutex::new_keyed(Rank::Inode, node.0, "inode", Open::default());
        Arc::new(Inode { lookups: AtomicU64::new(0), open })
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
            if left == 0 && inode.open.lock().counts.is_empty() {
                inodes.remove(&node);
            }
        }
    }

    /// Decides how a file is opened, by what is open on it, and counts it so, in one step.
    pub fn open(&self, node: NodeId, offer: &Offer) -> Opened {
        let mut inodes = self.inodes.write();
        // An inode that comes of this goes again unless it is counted: `Prepare` leaves nothing.
        let counts = inodes.get(&node).map(|inode| inode.open.lock().counts).unwrap_or_default();
        let decision = decide(counts, offer);
        if decision == Decision::Prepare {
            return Opened::Prepare;
        }
        let mut open = inode(&mut inodes, node).open.lock();
        let passing = match (decision, offer) {
            (Decision::Join, _) => open.passing.clone(),
            (Decision::Install, Offer::Ready(passing)) => {
                open.passing = Some(passing.clone());
                Some(passing.clone())
            }
            _ => None,
        };
        match passing {
            Some(passing) => {
                open.counts.passthrough += 1;
                Opened::Passthrough(passing)
            }
            None => {
                open.counts.cached += 1;
                Opened::Cached
            }
        }
    }

    /// Counts a folder as open.
    pub fn opened_dir(&self, node: NodeId) {
        let mut inodes = self.inodes.write();
        inode(&mut inodes, node).open.lock().counts.dir += 1;
    }

    /// Counts a handle as closed. Gives the backing file with the last passthrough handle, for the caller to drop: that
    /// is I/O.
    #[must_use = "dropping it is I/O: not under a lock"]
    pub fn released(&self, node: NodeId, kind: HandleKind) -> Option<Arc<Passing>> {
        let mut inodes = self.inodes.write();
        let inode = inodes.get(&node)?;
        let mut open = inode.open.lock();
        let count = open.counts.of(kind);
        *count = count.saturating_sub(1);
        let last = open.counts.passthrough == 0;
        let passing = if last { open.passing.take() } else { None };
        let gone = open.counts.is_empty() && inode.lookups.load(Ordering::Relaxed) == 0;
        drop(open);
        if gone {
            inodes.remove(&node);
        }
        passing
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
        inode.map(|inode| inode.open.lock().counts).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::Registered;

    #[test]
    fn an_inode_lives_while_it_is_known_or_open() {
        let table = InodeTable::default();
        let (a, b) = (NodeId::new(1, 1), NodeId::new(1, 2));
        table.looked_up(&[a, b, a]);
        assert_eq!(table.len(), 2);
        table.forget([(a, 1), (b, 1)]);
        assert_eq!(table.len(), 1);
        assert!(matches!(table.open(a, &Offer::Nothing), Opened::Cached));
        assert!(matches!(table.open(a, &Offer::Possible), Opened::Cached));
        table.opened_dir(a);
        table.forget([(a, 1)]);
        assert_eq!(table.handles(a), HandleCounts { cached: 2, passthrough: 0, dir: 1 });
        assert!(table.released(a, HandleKind::Dir).is_none());
        assert!(table.released(a, HandleKind::Cached).is_none());
        assert!(!table.is_empty());
        assert!(table.released(a, HandleKind::Cached).is_none());
        assert!(table.is_empty());
        // What the kernel says too often or of unknown nodes harms nothing.
        table.forget([(a, 9), (NodeId::ROOT, u64::MAX)]);
        assert!(table.released(b, HandleKind::Dir).is_none());
        table.looked_up(&[b]);
        table.forget([(b, 99)]);
        assert!(table.is_empty());
        assert_eq!(table.handles(b), HandleCounts::default());
    }
    #[test]
    fn a_backing_file_lives_as_long_as_a_passthrough_handle() {
        let table = InodeTable::default();
        let node = NodeId::new(1, 1);
        let alive = Arc::new(());
        let ready = || Offer::Ready(Passing::new(Registered(Box::new(())), Box::new(alive.clone())));
        let held = || Arc::strong_count(&alive) - 1;
        assert!(matches!(table.open(node, &Offer::Possible), Opened::Prepare));
        assert!(table.is_empty(), "nothing is counted by that");
        // Two that were prepared at the same time: the second has the first's.
        let (first, second) = (table.open(node, &ready()), table.open(node, &ready()));
        let (Opened::Passthrough(first), Opened::Passthrough(second)) = (first, second) else {
            panic!("nothing else was open")
        };
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(held(), 1);
        // One of which nothing is known joins as well: incomplete by now, or of an offline user.
        assert!(matches!(table.open(node, &Offer::Nothing), Opened::Passthrough(_)));
        drop((first, second));
        for left in [2, 1] {
            assert!(table.released(node, HandleKind::Passthrough).is_none());
            assert_eq!(table.handles(node).passthrough, left);
        }
        assert_eq!(held(), 1);
        drop(table.released(node, HandleKind::Passthrough));
        assert_eq!(held(), 0);
        assert!(table.is_empty());
        // Whoever came in cached while it was prepared has the say.
        assert!(matches!(table.open(node, &Offer::Nothing), Opened::Cached));
        assert!(matches!(table.open(node, &ready()), Opened::Cached));
        assert_eq!((held(), table.handles(node)), (0, HandleCounts { cached: 2, passthrough: 0, dir: 0 }));
    }

    #[test]
    fn opens_and_releases_at_once_never_mix() {
        let table = InodeTable::default();
        let node = NodeId::new(1, 1);
        let alive = Arc::new(());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (table, alive) = (&table, &alive);
                scope.spawn(move || {
                    for round in 0..5_000 {
                        let offer = match (round + thread) % 7 {
                            0 => Offer::Nothing,
                            _ => {
                                Offer::Ready(Passing::new(Registered(Box::new(())), Box::new(alive.clone())))
                            }
                        };
                        let kind = match table.open(node, &offer) {
                            Opened::Cached => HandleKind::Cached,
                            Opened::Passthrough(_) => HandleKind::Passthrough,
                            Opened::Prepare => panic!("it was prepared"),
                        };
                        drop(offer);
                        let counts = table.handles(node);
                        assert!(counts.cached == 0 || counts.passthrough == 0, "{counts:?}");
                        drop(table.released(node, kind));
                    }
                });
            }
        });
        assert!(table.is_empty());
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
