//! The two things the suite is run on.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;

use torrentfs_fs::MountOptions;
use torrentfs_fs::attr::{Attr, AttrOptions, Kind};
use torrentfs_fs::errno::Errno;
use torrentfs_fs::handles::HandleId;
use torrentfs_fs::lock::{Rank, RankedMutex};
use torrentfs_fs::mock::Mock;
use torrentfs_fs::ops::{Calling, Operations, Xattr};
use torrentfs_fs::parked::ParkedReads;
use torrentfs_fs::tree::NodeId;

use crate::common::{Bed, PIECE, SOON, errno, until};
use crate::opens::{Answer, OpenReplies};

/// The user for whom nothing is fetched: "nobody".
pub const OFFLINE: u32 = 65534;

/// What both show of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub perm: u32,
    pub nlink: u64,
    pub mtime: i64,
}

/// A filesystem over a mock, by whatever way. Errors are numbers.
pub trait Subject: Sync {
    fn mock(&self) -> &Mock;
    /// Names in order of the listing, without `.` and `..`.
    fn list(&self, path: &str) -> Result<Vec<String>, i32>;
    fn stat(&self, path: &str) -> Result<Stat, i32>;
    /// One read; waits for it.
    fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, i32>;
    /// One read by a user, who opens the file himself or gets it opened by us. `None` where we can't be others.
    fn read_as(
        &self,
        uid: u32,
        given: bool,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, i32>>;
    fn link(&self, path: &str) -> Result<String, i32>;
    fn open(&self, path: &str, flags: i32) -> Result<(), i32>;
    /// With room for so many bytes; 0 asks for the length, which is given as that many zeros.
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32>;
    fn xattr_names(&self, path: &str) -> Result<Vec<u8>, i32>;
    /// All and free bytes, files.
    fn space(&self) -> (u64, u64, u64);
    fn fail_reads(&self);
    /// Reads parked now.
    fn parked(&self) -> usize;
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
        let mock = Mock::new(PIECE).unwrap();
        let parked = ParkedReads::new(64);
        let ops = Operations::new(mock.clone(), AttrOptions { uid: 0, gid: 0, umask: 0 }, parked.clone());
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

    fn read_by(&self, opener: u32, reader: u32, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let node = self.walk(path)?;
        let handle = self.open_node(node, libc::O_RDONLY, opener)?;
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
        mtime: attr.mtime,
    }
}

impl Subject for Layer {
    fn mock(&self) -> &Mock {
        &self.mock
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
    fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.read_by(0, 0, path, offset, len)
    }
    fn read_as(
        &self,
        uid: u32,
        given: bool,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, i32>> {
        Some(self.read_by(if given { 0 } else { uid }, uid, path, offset, len))
    }
    fn link(&self, path: &str) -> Result<String, i32> {
        self.ops.readlink(self.walk(path)?).map_err(Errno::number)
    }
    fn open(&self, path: &str, flags: i32) -> Result<(), i32> {
        let handle = self.open_node(self.walk(path)?, flags, 0)?;
        self.ops.release(handle);
        Ok(())
    }
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32> {
        match self.ops.getxattr(self.walk(path)?, OsStr::new(name), room as u32).map_err(Errno::number)? {
            Xattr::Size(size) => Ok(vec![0; size as usize]),
            Xattr::Data(data) => Ok(data),
        }
    }
    fn xattr_names(&self, path: &str) -> Result<Vec<u8>, i32> {
        match self.ops.listxattr(self.walk(path)?, 4096).map_err(Errno::number)? {
            Xattr::Size(_) => panic!("a size was not asked"),
            Xattr::Data(data) => Ok(data),
        }
    }
    fn space(&self) -> (u64, u64, u64) {
        let space = self.ops.statfs();
        (space.blocks * 4096, space.free * 4096, space.files)
    }
    fn fail_reads(&self) {
        self.parked.refuse();
    }
    fn parked(&self) -> usize {
        self.parked.len()
    }
}

/// A kernel mount.
pub struct Kernel {
    bed: Bed,
}

impl Kernel {
    pub fn new() -> Self {
        // Root may let others in, and can be others.
        let root = nix::unistd::geteuid().is_root();
        let mock = Mock::new(PIECE).unwrap();
        Self { bed: Bed::with(mock, |o| MountOptions { allow_other: root, offline: vec![OFFLINE], ..o }) }
    }
    fn c_path(&self, path: &str) -> CString {
        CString::new(self.bed.path(path).as_os_str().as_bytes()).unwrap()
    }
}

impl Subject for Kernel {
    fn mock(&self) -> &Mock {
        &self.bed.mock
    }
    fn list(&self, path: &str) -> Result<Vec<String>, i32> {
        let entries = std::fs::read_dir(self.bed.path(path)).map_err(errno)?;
        entries.map(|entry| Ok(entry.map_err(errno)?.file_name().into_string().unwrap())).collect()
    }
    fn stat(&self, path: &str) -> Result<Stat, i32> {
        let stat = std::fs::symlink_metadata(self.bed.path(path)).map_err(errno)?;
        let kind = match stat.file_type() {
            kind if kind.is_dir() => Kind::Dir,
            kind if kind.is_symlink() => Kind::Symlink,
            _ => Kind::File,
        };
        Ok(Stat {
            kind,
            ino: stat.ino(),
            size: stat.size(),
            blocks: stat.blocks(),
            perm: stat.mode() & 0o7777,
            nlink: stat.nlink(),
            mtime: stat.mtime(),
        })
    }
    fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let file = std::fs::File::open(self.bed.path(path)).map_err(errno)?;
        let mut bytes = vec![0; len];
        let length = file.read_at(&mut bytes, offset).map_err(errno)?;
        bytes.truncate(length);
        Ok(bytes)
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
    fn link(&self, path: &str) -> Result<String, i32> {
        let target = std::fs::read_link(self.bed.path(path)).map_err(errno)?;
        Ok(target.into_os_string().into_string().unwrap())
    }
    fn open(&self, path: &str, flags: i32) -> Result<(), i32> {
        let accesses = flags & libc::O_ACCMODE;
        std::fs::File::options()
            .read(accesses != libc::O_WRONLY)
            .write(accesses != libc::O_RDONLY)
            .custom_flags(flags & !libc::O_ACCMODE)
            .open(self.bed.path(path))
            .map(|_| ())
            .map_err(errno)
    }
    fn xattr(&self, path: &str, name: &str, room: usize) -> Result<Vec<u8>, i32> {
        let (path, name) = (self.c_path(path), CString::new(name).unwrap());
        let mut value = vec![0u8; room];
        // SAFETY: both texts end with NUL, and the buffer has room for as much as is said.
        let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
        let length = usize::try_from(length).map_err(|_| errno(std::io::Error::last_os_error()))?;
        value.resize(length, 0);
        Ok(value)
    }
    fn xattr_names(&self, path: &str) -> Result<Vec<u8>, i32> {
        let path = self.c_path(path);
        let mut names = vec![0u8; 4096];
        // SAFETY: as above.
        let length = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        let length = usize::try_from(length).map_err(|_| errno(std::io::Error::last_os_error()))?;
        names.truncate(length);
        Ok(names)
    }
    fn space(&self) -> (u64, u64, u64) {
        let path: &Path = self.bed.root();
        let space = nix::sys::statvfs::statvfs(path).unwrap();
        let size = space.fragment_size();
        (space.blocks() * size, space.blocks_free() * size, space.files())
    }
    fn fail_reads(&self) {
        self.bed.mounted().fail_reads();
    }
    fn parked(&self) -> usize {
        self.bed.mounted().waiting_reads().len()
    }
}
