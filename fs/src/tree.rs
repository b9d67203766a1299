//! The tree of entries, immutable once built.
//!
//! A [`Tree`] is the root folder over a set of [`Subtree`]s, one per torrent; a subtree is shared between
//! successive trees, so adding a torrent among thousands of files copies only the root's list.
//! A node's id is (slot of its subtree, index within it): stable for as long as the subtree lives, found
//! without a search, and it is the inode number too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A node of the tree; also its inode number. The root is 1; any other is `slot << 32 | index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: NodeId = NodeId(1);

    /// The node `index` of the subtree in `slot` (1 or more). A slot is never given to another subtree in the
    /// life of a mount, also not when a torrent's metadata arrives: the kernel may still have the pages of
    /// the node that was there.
    pub fn new(slot: u32, index: u32) -> Self {
        NodeId(u64::from(slot) << 32 | u64::from(index))
    }
    /// The slot of its subtree; 0 for the root.
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// The index within its subtree.
    pub fn index(self) -> u32 {
        self.0 as u32
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A folder and its children: indices in the same subtree, sorted by name (bytewise).
    Dir(Vec<u32>),
    /// A file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Whether it is marked executable.
        executable: bool,
        /// The content's own number for it within the subtree.
        file: u32,
    },
    /// A symbolic link and its target.
    Symlink(String),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, a single component.
    pub name: Box<str>,
    /// Index of the folder it lies in; itself for the subtree's root.
    pub parent: u32,
    /// What it is.
    pub kind: NodeKind,
    /// Folders in it; 0 for what is no folder.
    pub folders: u32,
}

/// The entries of one torrent. Index 0 is its root: a folder, or a single file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtree {
    nodes: Vec<Node>,
    /// Seconds since the epoch; every entry's time.
    mtime: i64,
    total: u64,
    files: u64,
}

/// What can be put at a path of a [`SubtreeBuilder`].
#[derive(Debug, Clone)]
pub enum Leaf {
    /// A file; see [`NodeKind::File`].
    File {
        /// Its size in bytes.
        size: u64,
        /// Whether it is marked executable.
        executable: bool,
        /// The content's own number for it.
        file: u32,
    },
    /// A symbolic link and its target.
    Symlink(String),
}

/// Builds a [`Subtree`] from paths in any order, O(n log n).
#[derive(Debug)]
pub struct SubtreeBuilder {
    nodes: Vec<Node>,
    /// (folder, name) to index, only of folders.
    dirs: HashMap<(u32, Box<str>), u32>,
    mtime: i64,
}

impl SubtreeBuilder {
    /// Begins a subtree whose root is a folder.
    pub fn folder(name: &str, mtime: i64) -> Self {
        let root = Node { name: name.into(), parent: 0, kind: NodeKind::Dir(Vec::new()), folders: 0 };
        Self { nodes: vec![root], dirs: HashMap::new(), mtime }
    }

    /// A subtree that is a single file or link.
    pub fn single(name: &str, mtime: i64, leaf: Leaf) -> Subtree {
        let node = Node { name: name.into(), parent: 0, kind: leaf_kind(leaf), folders: 0 };
        Self { nodes: vec![node], dirs: HashMap::new(), mtime }.build()
    }

    /// Adds a leaf at a path of one or more components, making the folders on the way. The caller has made
    /// the paths safe and unique; an empty path is ignored, and so is one that leads through a leaf.
    pub fn add<S: AsRef<str>>(&mut self, path: &[S], leaf: Leaf) {
        let Some((name, folders)) = path.split_last() else { return };
        let mut at = 0u32;
        for folder in folders {
            let key = (at, Box::from(folder.as_ref()));
            at = match self.dirs.get(&key) {
                Some(&index) => index,
                None => {
                    let index = self.push(at, folder.as_ref(), NodeKind::Dir(Vec::new()));
                    self.dirs.insert(key, index);
                    index
                }
            };
        }
        self.push(at, name.as_ref(), leaf_kind(leaf));
    }

    fn push(&mut self, parent: u32, name: &str, kind: NodeKind) -> u32 {
        let index = self.nodes.len() as u32;
        let is_folder = matches!(kind, NodeKind::Dir(_));
        self.nodes.push(Node { name: name.into(), parent, kind, folders: 0 });
        let above = &mut self.nodes[parent as usize];
        above.folders += u32::from(is_folder);
        if let NodeKind::Dir(children) = &mut above.kind {
            children.push(index);
        }
        index
    }

    /// Sorts the folders and ends.
    pub fn build(mut self) -> Subtree {
        for index in 0..self.nodes.len() {
            if let NodeKind::Dir(children) = &mut self.nodes[index].kind {
                let mut children = std::mem::take(children);
                children.sort_by(|a, b| self.nodes[*a as usize].name.cmp(&self.nodes[*b as usize].name));
                self.nodes[index].kind = NodeKind::Dir(children);
            }
        }
        let mut total = 0u64;
        let mut files = 0u64;
        for node in &self.nodes {
            if let NodeKind::File { size, .. } = node.kind {
                total = total.saturating_add(size);
                files += 1;
            }
        }
        Subtree { nodes: self.nodes, mtime: self.mtime, total, files }
    }
}

fn leaf_kind(leaf: Leaf) -> NodeKind {
    match leaf {
        Leaf::File { size, executable, file } => NodeKind::File { size, executable, file },
        Leaf::Symlink(target) => NodeKind::Symlink(target),
    }
}

impl Subtree {
    /// A node, or `None` past the end.
    pub fn node(&self, index: u32) -> Option<&Node> {
        self.nodes.get(index as usize)
    }
    /// Number of nodes.
    pub fn len(&self) -> u32 {
        self.nodes.len() as u32
    }
    /// Never true: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    /// The time of every entry, in seconds since the epoch.
    pub fn mtime(&self) -> i64 {
        self.mtime
    }
    /// Size of all files, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }
    /// Number of files.
    pub fn files(&self) -> u64 {
        self.files
    }
    /// The child of that name, by binary search.
    pub fn child(&self, dir: u32, name: &str) -> Option<u32> {
        let NodeKind::Dir(children) = &self.node(dir)?.kind else { return None };
        let at = children.binary_search_by(|c| self.nodes[*c as usize].name.as_ref().cmp(name)).ok()?;
        Some(children[at])
    }
}

/// The whole tree as it is at one moment.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// By shown name: the slot and its subtree. The name shown in the root may differ from the subtree's own.
    root: BTreeMap<Box<str>, u32>,
    slots: HashMap<u32, Arc<Subtree>>,
    /// How many of the root's entries are folders.
    folders: u32,
    mtime: i64,
}

impl Tree {
    /// A tree of these torrents: (name shown, slot of 1 or more, subtree). Names and slots are unique.
    pub fn new(torrents: Vec<(String, u32, Arc<Subtree>)>, mtime: i64) -> Self {
        let mut tree = Tree { mtime, ..Tree::default() };
        for (name, slot, subtree) in torrents {
            let top = subtree.node(0).map(|node| &node.kind);
            tree.folders += u32::from(matches!(top, Some(NodeKind::Dir(_))));
            tree.root.insert(name.into_boxed_str(), slot);
            tree.slots.insert(slot, subtree);
        }
        tree
    }
    /// The root's entries by name, with their nodes.
    pub fn root(&self) -> impl Iterator<Item = (&str, NodeId)> {
        self.root.iter().map(|(name, slot)| (name.as_ref(), NodeId::new(*slot, 0)))
    }
    /// The root's entry of that name.
    pub fn root_child(&self, name: &str) -> Option<NodeId> {
        self.root.get(name).map(|slot| NodeId::new(*slot, 0))
    }
    /// The subtree in a slot.
    pub fn subtree(&self, slot: u32) -> Option<&Arc<Subtree>> {
        self.slots.get(&slot)
    }
    /// A node other than the root.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.slots.get(&id.slot())?.node(id.index())
    }
    /// The path of a node from the root of the mount, as it is shown there.
    pub fn path(&self, id: NodeId) -> Option<String> {
        let subtree = self.slots.get(&id.slot())?;
        let shown = self.root.iter().find(|(_, slot)| **slot == id.slot())?.0;
        let mut names: Vec<&str> = Vec::new();
        let mut at = id.index();
        while at != 0 {
            let node = subtree.node(at)?;
            names.push(&node.name);
            at = node.parent;
        }
        names.push(shown);
        names.reverse();
        Some(names.join("/"))
    }
    /// How many of the root's entries are folders.
    pub fn root_folders(&self) -> u32 {
        self.folders
    }
    /// The root folder's time, in seconds since the epoch.
    pub fn mtime(&self) -> i64 {
        self.mtime
    }
}
