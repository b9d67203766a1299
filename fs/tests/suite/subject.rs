//! The two things the suite is run on.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;

use torrentfs_fs::MountOptions;
use torrentfs_fs::attr::{Attr, AttrOptions, BLOCK_SIZE};
use torrentfs_fs::errno::Errno;
use torrentfs_fs::handles::HandleId;
use torrentfs_fs::lock::{Rank, RankedMutex};
use torrentfs_fs::mock::Mock;
use torrentfs_fs::ops::{Calling, NAME_LENGTH, Operations, Xattr};
use torrentfs_fs::parked::ParkedReads;
use torrentfs_fs::tree::NodeId;

use crate::common::{Bed, PIECE, SOON, reading, until};
use crate::opens::{Answer, OpenReplies};
use crate::semantics::view::{Entry, Listing, OnDisk, Stat, View};

/// The user for whom nothing is fetched: "nobody".
pub const OFFLINE: u32 = 65534;

/// A filesystem over a mock, by whatever way.
pub trait Subject: View {
    fn mock(&self) -> &Arc<Mock>;
    /// One read by a user, who opens the file himself or gets it opened by us. `None` where we can't be others.
    fn read_as(
        &self,
        uid: u32,
        given: bool,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, i32>>;
    fn fail_reads(&self);
    /// Reads parked now.
    fn parked(&self) -> usize;
    /// Threads of ours that wait in a read.
    fn readers(&self) -> usize;
}

/// The operations, called as the adapter does.
pub struct Layer {
    mock: Arc<Mock>,
    ops: Arc<Operations>,
    parked: Arc<ParkedReads>,
    /// References as the kernel would hold them.
    lookups: RankedMutex<HashMap<NodeId, u64>>,
}

impl Layer {
    pub fn new() -> Self {
        Self::with(AttrOptions { uid: 0, gid: 0, umask: 0 })
    }

    pub fn with(options: AttrOptions) -> Self {
        let mock = Mock::new(PIECE).unwrap();
        let parked = ParkedReads::new(64);
        let ops = Operations::new(mock.clone(), options, parked.clone());
        let ops = Arc::new(ops.with_offline(vec![OFFLINE]));
        Self { mock, ops, parked, lookups: RankedMutex::new(Rank::Leaf, "lookups", HashMap::new()) }
    }

    fn walk(&self, path: &str) -> Result<NodeId, i32> {
        let mut at = NodeId::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.ops.lookup(at, OsStr::new(name)).map_err(Errno::number)?.node;
            *self.lookups.lock().entry(at).or_default() += 1;
        }
        Ok(at)
    }

    fn open_node(&self, node: NodeId, flags: i32, uid: u32) -> Result<HandleId, i32> {
        let (reply, opened) = OpenReplies::new();
        self.ops.open(node, flags, uid, reply);
        match opened.recv_timeout(SOON).expect("an open is answered") {
            Answer::Cached(handle) | Answer::Passthrough(handle, _) => Ok(handle),
            Answer::Error(errno) => Err(errno.number()),
        }
    }

    fn read_by(
        &self,
        (opener, flags): (u32, i32),
        reader: u32,
        path: &str,
        meanwhile: &dyn Fn(),
        (offset, len): (u64, usize),
    ) -> Result<Vec<u8>, i32> {
        let node = self.walk(path)?;
        let handle = self.open_node(node, flags, opener)?;
        meanwhile();
        let (sender, receiver) = channel();
        let reply = Box::new(move |result: Result<&[u8], Errno>| {
            sender.send(result.map(<[u8]>::to_vec).map_err(Errno::number)).unwrap();
        });
        let calling = Calling { tid: 0, uid: reader };
        let call = || self.ops.read(handle, offset, len as u32, calling, reply);
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        // A reply that is dropped says EIO.
        let result = match receiver.recv_timeout(SOON) {
            Ok(result) => result,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(libc::EIO),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("a read of {path} never ended"),
        };
        self.ops.release(handle);
        result
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let lookups = std::mem::take(&mut *self.lookups.lock());
        self.ops.forget(lookups);
        if !std::thread::panicking() {
            // A parked read goes a moment after its answer.
            until("no read is parked", || self.ops.counts().parked == 0);
            let counts = self.ops.counts();
            assert_eq!((counts.inodes, counts.handles), (0, 0), "something is left");
            let counts = self.mock.counts();
            assert_eq!(counts.opened + counts.opened_here, counts.closed, "a stream is left open");
        }
    }
}

fn stat_of(attr: &Attr) -> Stat {
    Stat {
        kind: attr.kind,
        ino: attr.node.0,
        size: attr.size,
        blocks: attr.blocks,
        perm: u32::from(attr.perm),
        nlink: u64::from(attr.nlink),
        owner: (attr.uid, attr.gid),
        // The adapter gives one for all three, and one size of blocks for all.
        mtime: attr.mtime,
        atime: attr.mtime,
        ctime: attr.mtime,
        preferred: u64::from(BLOCK_SIZE),
    }
}

/// A folder, listed as the kernel does: a few entries at a time.
struct OpenFolder<'a> {
    ops: &'a Operations,
    handle: HandleId,
    offset: u64,
    /// The last first.
    entries: Vec<Entry>,
}

impl Listing for OpenFolder<'_> {
    fn next(&mut self) -> Result<Option<Entry>, i32> {
        if self.entries.is_empty() {
            let entries = &mut self.entries;
            let add = |entry: torrentfs_fs::ops::DirEntry<'_>| {
                let full = entries.len() == 7;
                if !full {
                    let (name, ino) = (entry.name.to_string(), entry.node.0);
                    entries.push(Entry { name, ino, kind: entry.kind, next: entry.next });
                }
                full
            };
            self.ops.readdir(self.handle, self.offset, add).map_err(Errno::number)?;
            self.offset = self.entries.last().map_or(self.offset, |entry| entry.next);
            self.entries.reverse();
        }
        Ok(self.entries.pop())
    }
    fn seek(&mut self, offset: u64) {
        self.entries.clear();
        self.offset = offset;
    }
}

impl Drop for OpenFolder<'_> {
    fn drop(&mut self) {
        self.ops.releasedir(self.handle);
    }
}

impl View for Layer {
    fn listing(&self, path: &str) -> Result<Box<dyn Listing + '_>, i32> {
        let handle = self.ops.opendir(self.walk(path)?).map_err(Errno::number)?;
        Ok(Box::new(OpenFolder { ops: &self.ops, handle, offset: 0, entries: Vec::new() }))
    }
    fn list(&self, path: &str) -> Result<Vec<String>, i32> {
        let node = self.walk(path)?;
        let handle = self.ops.opendir(node).map_err(Errno::number)?;
        // As the kernel does: a few entries at a time, by both ways, which must agree.
        let (mut names, mut plus) = (Vec::new(), Vec::new());
        for with_attributes in [false, true] {
            let mut offset = 0;
            loop {
                let mut room = 7;
                let before = offset;
                let mut add = |entry: torrentfs_fs::ops::DirEntry<'_>| {
                    if room == 0 {
                        return true;
                    }
                    room -= 1;
                    offset = entry.next;
                    let list = if with_attributes { &mut plus } else { &mut names };
                    list.push((entry.name.to_string(), entry.node, entry.kind));
                    false
                };
                if with_attributes {
                    let mut seen = Vec::new();
                    self.ops
                        .readdirplus(handle, before, |entry, attr| {
                            assert_eq!((entry.node, entry.kind), (attr.node, attr.kind));
                            let full = add(entry);
                            if !full && !entry.name.starts_with('.') {
                                seen.push(entry.node);
                            }
                            full
                        })
                        .map_err(Errno::number)?;
                    for node in seen {
                        *self.lookups.lock().entry(node).or_default() += 1;
                    }
                } else {
                    self.ops.readdir(handle, before, add).map_err(Errno::number)?;
                }
                if offset == before {
                    break;
                }
            }
        }
        self.ops.releasedir(handle);
        assert_eq!(names, plus);
        assert_eq!((names[0].0.as_str(), names[0].1), (".", node));
        assert_eq!(names[1].0, "..");
        Ok(names.into_iter().skip(2).map(|(name, _, _)| name).collect())
    }
    fn stat(&self, path: &str) -> Result<Stat, i32> {
        let node = self.walk(path)?;
        Ok(stat_of(&self.ops.getattr(node).map_err(Errno::number)?))
    }
    fn read_with(&self, path: &str, flags: i32, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.read_by((0, flags), 0, path, &|| (), (offset, len))
    }
    fn read_after(&self, path: &str, meanwhile: &dyn Fn(), offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.read_by((0, libc::O_RDONLY), 0, path, meanwhile, (offset, len))
    }
    fn link(&self, path: &str) -> Result<String, i32> {
        self.ops.readlink(self.walk(path)?).map_err(Errno::number)
    }
    fn open(&self, path: &str, flags: i32) -> Result<(), i32> {
        let handle = self.open_node(self.walk(path)?, flags, 0)?;
        self.ops.release(handle);
        Ok(())
    }
    fn access(&self, path: &str, mode: i32) -> Result<(), i32> {
        self.ops.access(self.walk(path)?, mode).map_err(Errno::number)
    }
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32> {
        match self.ops.getxattr(self.walk(path)?, OsStr::new(name), room as u32).map_err(Errno::number)? {
            Xattr::Size(size) => Ok(vec![0; size as usize]),
            Xattr::Data(data) => Ok(data),
        }
    }
    fn xattr_names(&self, path: &str, room: usize) -> Result<Vec<u8>, i32> {
        match self.ops.listxattr(self.walk(path)?, room as u32).map_err(Errno::number)? {
            Xattr::Size(size) => Ok(vec![0; size as usize]),
            Xattr::Data(data) => Ok(data),
        }
    }
    fn space(&self) -> (u64, u64, u64) {
        let space = self.ops.statfs();
        (space.blocks * 4096, space.free * 4096, space.files)
    }
    fn longest_name(&self) -> u64 {
        u64::from(NAME_LENGTH)
    }
}

impl Subject for Layer {
    fn mock(&self) -> &Arc<Mock> {
        &self.mock
    }
    fn read_as(
        &self,
        uid: u32,
        given: bool,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, i32>> {
        let opener = if given { 0 } else { uid };
        Some(self.read_by((opener, libc::O_RDONLY), uid, path, &|| (), (offset, len)))
    }
    fn fail_reads(&self) {
        self.parked.refuse();
    }
    fn parked(&self) -> usize {
        self.parked.len()
    }
    fn readers(&self) -> usize {
        self.parked.len()
    }
}

/// A kernel mount.
pub struct Kernel {
    pub bed: Bed,
    disk: OnDisk,
}

impl Kernel {
    pub fn new() -> Self {
        Self::with(|options| options)
    }

    /// With other options than the usual ones.
    pub fn with(change: impl FnOnce(MountOptions) -> MountOptions) -> Self {
        // Root may let others in, and can be others.
        let root = nix::unistd::geteuid().is_root();
        let mock = Mock::new(PIECE).unwrap();
        let usual = |o| MountOptions { allow_other: root, offline: vec![OFFLINE], ..o };
        let bed = Bed::with(mock, |options| change(usual(options)));
        Self { disk: OnDisk(bed.root().to_owned()), bed }
    }
}

impl View for Kernel {
    fn list(&self, path: &str) -> Result<Vec<String>, i32> {
        self.disk.list(path)
    }
    fn listing(&self, path: &str) -> Result<Box<dyn Listing + '_>, i32> {
        self.disk.listing(path)
    }
    fn stat(&self, path: &str) -> Result<Stat, i32> {
        self.disk.stat(path)
    }
    fn read_with(&self, path: &str, flags: i32, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.disk.read_with(path, flags, offset, len)
    }
    fn read_after(&self, path: &str, meanwhile: &dyn Fn(), offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.disk.read_after(path, meanwhile, offset, len)
    }
    fn link(&self, path: &str) -> Result<String, i32> {
        self.disk.link(path)
    }
    fn open(&self, path: &str, flags: i32) -> Result<(), i32> {
        self.disk.open(path, flags)
    }
    fn access(&self, path: &str, mode: i32) -> Result<(), i32> {
        self.disk.access(path, mode)
    }
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32> {
        self.disk.xattr(path, name, room)
    }
    fn xattr_names(&self, path: &str, room: usize) -> Result<Vec<u8>, i32> {
        self.disk.xattr_names(path, room)
    }
    fn space(&self) -> (u64, u64, u64) {
        self.disk.space()
    }
    fn longest_name(&self) -> u64 {
        self.disk.longest_name()
    }
}

impl Subject for Kernel {
    fn mock(&self) -> &Arc<Mock> {
        &self.bed.mock
    }
    fn read_as(
        &self,
        uid: u32,
        given: bool,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, i32>> {
        const READ: &str = "import os, sys\ntry:\n  f = 0 if sys.argv[1] == '-' else os.open(sys.argv[1], os.O_RDONLY)\n  \
            sys.stdout.buffer.write(b'.' + os.pread(f, int(sys.argv[3]), int(sys.argv[2])))\n\
            except OSError as e:\n  print(e.errno)";
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let path = self.bed.path(path);
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", READ]).uid(uid).gid(uid);
        if given {
            command.arg("-").stdin(std::fs::File::open(path).unwrap());
        } else {
            command.arg(path).stdin(Stdio::null());
        }
        let output = command.args([offset.to_string(), len.to_string()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(match output.stdout.strip_prefix(b".") {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()),
        })
    }
    fn fail_reads(&self) {
        self.bed.mounted().fail_reads();
    }
    fn parked(&self) -> usize {
        self.bed.mounted().waiting_reads().len()
    }
    fn readers(&self) -> usize {
        reading(self.bed.mounted().path())
    }
}
