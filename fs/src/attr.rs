//! What `stat` shows of a node, and for how long the kernel may remember it.
//!
//! Pure: a tree, a node and the bytes that are here go in, an [`Attr`] comes out.
//! Blocks count what is here, so that `du` is honest, but are at least 1 for a file that isn't empty: some
//! tools take a file of no blocks for one big hole and copy zeros.

use std::time::Duration;

use crate::tree::{NodeId, NodeKind, Tree};

/// What may appear or vanish (entries of the root) is looked up again after this long.
pub const SHORT_TTL: Duration = Duration::from_secs(1);
/// Entries and folders inside a torrent never change; when it is removed its root's entry takes them along.
pub const LONG_TTL: Duration = Duration::from_secs(3600);
/// Attributes of a complete file: only eviction changes its blocks, so a minute's delay harms nobody.
pub const COMPLETE_TTL: Duration = Duration::from_secs(60);

/// Bytes in a unit of `st_blocks`, by POSIX.
const BLOCK_UNIT: u64 = 512;
/// Preferred size of a read. Small, since buffered readers take it for the size of their buffer, and what
/// they read is fetched.
pub const BLOCK_SIZE: u32 = 4096;

/// What kind of node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// The attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The node, which is the inode number.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Seconds since the epoch; all three times.
    pub mtime: i64,
    /// Permission bits.
    pub perm: u16,
    /// Links: for a folder 2 and one for each folder in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How long these may be remembered.
    pub ttl: Duration,
    /// How long its name may be remembered to stand for it.
    pub entry_ttl: Duration,
}

/// What of the attributes the user chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttrOptions {
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permission bits to take away.
    pub umask: u16,
}

/// The attributes of a node, or `None` when the tree hasn't got it. `bytes_here` is asked for files only.
pub fn attr_of(
    tree: &Tree,
    node: NodeId,
    options: &AttrOptions,
    bytes_here: impl FnOnce(NodeId) -> u64,
) -> Option<Attr> {
    let mut attr = Attr {
        node,
        kind: Kind::Dir,
        size: u64::from(BLOCK_SIZE),
        blocks: 0,
        mtime: tree.mtime(),
        perm: 0o555 & !options.umask,
        nlink: 2,
        uid: options.uid,
        gid: options.gid,
        ttl: SHORT_TTL,
        entry_ttl: SHORT_TTL,
    };
    if node == NodeId::ROOT {
        attr.nlink = links(tree.root_folders());
        return Some(attr);
    }
    let subtree = tree.subtree(node.slot())?;
    attr.mtime = subtree.mtime();
    if node.index() != 0 {
        attr.ttl = LONG_TTL;
        attr.entry_ttl = LONG_TTL;
    }
    let node_of = subtree.node(node.index())?;
    match &node_of.kind {
        NodeKind::Dir(_) => attr.nlink = links(node_of.folders),
        NodeKind::File { size, executable, .. } => {
            let here = bytes_here(node).min(*size);
            attr.kind = Kind::File;
            attr.size = *size;
            attr.blocks = here.div_ceil(BLOCK_UNIT).max(u64::from(*size > 0));
            attr.perm = (if *executable { 0o555 } else { 0o444 }) & !options.umask;
            attr.nlink = 1;
            attr.ttl = if here == *size { COMPLETE_TTL } else { SHORT_TTL };
        }
        NodeKind::Symlink(target) => {
            attr.kind = Kind::Symlink;
            attr.size = target.len() as u64;
            attr.perm = 0o777;
            attr.nlink = 1;
        }
    }
    Some(attr)
}

/// The kind of a node, for listings.
pub fn kind_of(tree: &Tree, node: NodeId) -> Option<Kind> {
    if node == NodeId::ROOT {
        return Some(Kind::Dir);
    }
    Some(match tree.node(node)?.kind {
        NodeKind::Dir(_) => Kind::Dir,
        NodeKind::File { .. } => Kind::File,
        NodeKind::Symlink(_) => Kind::Symlink,
    })
}

fn links(folders: u32) -> u32 {
    folders.saturating_add(2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::tree::{Leaf, SubtreeBuilder};
    use std::sync::Arc;

    const OPTIONS: AttrOptions = AttrOptions { uid: 7, gid: 8, umask: 0o022 };

    fn tree() -> Tree {
        let mut folder = SubtreeBuilder::folder("T", 1234);
        folder.add(&["sub", "run"], Leaf::File { size: 1000, executable: true, file: 0 });
        folder.add(&["sub", "deep", "data"], Leaf::File { size: 1 << 20, executable: false, file: 1 });
        folder.add(&["empty"], Leaf::File { size: 0, executable: false, file: 2 });
        folder.add(&["link"], Leaf::Symlink("sub/run".into()));
        let single = SubtreeBuilder::single("one", 0, Leaf::File { size: 5, executable: false, file: 0 });
        Tree::new(vec![("T".into(), 1, Arc::new(folder.build())), ("one".into(), 2, Arc::new(single))], 99)
    }

    fn find(tree: &Tree, path: &[&str]) -> NodeId {
        let mut at = tree.root_child(path[0]).unwrap();
        for name in &path[1..] {
            let subtree = tree.subtree(at.slot()).unwrap();
            at = NodeId::new(at.slot(), subtree.child(at.index(), name).unwrap());
        }
        at
    }

    #[test]
    fn f4_blocks_count_what_is_here_and_are_never_none() {
        let tree = tree();
        // path, bytes here, blocks
        let rows: [(&[&str], u64, u64); 7] = [
            (&["T", "sub", "deep", "data"], 0, 1),
            (&["T", "sub", "deep", "data"], 1, 1),
            (&["T", "sub", "deep", "data"], 513, 2),
            (&["T", "sub", "deep", "data"], 1 << 20, 2048),
            (&["T", "sub", "deep", "data"], u64::MAX, 2048),
            (&["T", "empty"], 0, 0),
            (&["one"], 5, 1),
        ];
        for (path, here, blocks) in rows {
            let attr = attr_of(&tree, find(&tree, path), &OPTIONS, |_| here).unwrap();
            assert_eq!(attr.blocks, blocks, "{path:?} with {here} bytes");
        }
    }

    #[test]
    fn modes_links_times_and_ttls() {
        let tree = tree();
        let attr = |path: &[&str], here| attr_of(&tree, find(&tree, path), &OPTIONS, |_| here).unwrap();
        let root = attr_of(&tree, NodeId::ROOT, &OPTIONS, |_| 0).unwrap();
        assert_eq!((root.kind, root.perm, root.nlink, root.mtime), (Kind::Dir, 0o555, 3, 99));
        assert_eq!(root.ttl, SHORT_TTL);
        let top = attr(&["T"], 0);
        assert_eq!((top.nlink, top.mtime, top.ttl, top.entry_ttl), (3, 1234, SHORT_TTL, SHORT_TTL));
        let sub = attr(&["T", "sub"], 0);
        assert_eq!((sub.nlink, sub.ttl, sub.entry_ttl), (3, LONG_TTL, LONG_TTL));
        let run = attr(&["T", "sub", "run"], 1000);
        assert_eq!((run.perm, run.size, run.nlink, run.uid, run.gid), (0o555, 1000, 1, 7, 8));
        assert_eq!((run.ttl, run.entry_ttl), (COMPLETE_TTL, LONG_TTL));
        let data = attr(&["T", "sub", "deep", "data"], 9);
        assert_eq!((data.perm, data.ttl), (0o444, SHORT_TTL));
        let link = attr(&["T", "link"], 0);
        assert_eq!((link.kind, link.size, link.perm), (Kind::Symlink, 7, 0o777));
        let one = attr(&["one"], 5);
        assert_eq!((one.kind, one.mtime, one.entry_ttl), (Kind::File, 0, SHORT_TTL));
        let private = AttrOptions { umask: 0o077, ..OPTIONS };
        let hidden = attr_of(&tree, find(&tree, &["T", "sub", "run"]), &private, |_| 0).unwrap();
        assert_eq!(hidden.perm, 0o500);
    }

    #[test]
    fn what_is_not_there_has_no_attributes() {
        let tree = tree();
        for node in [NodeId(0), NodeId(2), NodeId::new(9, 0), NodeId::new(1, 99)] {
            assert_eq!(attr_of(&tree, node, &OPTIONS, |_| 0), None, "{node:?}");
            assert_eq!(kind_of(&tree, node), None);
        }
    }
}
