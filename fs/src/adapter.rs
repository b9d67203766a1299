//! The kernel's side: each FUSE call turned into one operation of [`crate::ops`], and its outcome back.
//!
//! Nothing is decided here. A panic in an operation ends as EIO of that call: its reply is dropped on the way
//! out, which answers so, and the thread goes on. After each call the thread must hold no lock.
//!
//! **Opening.** Cached opens always with `FOPEN_KEEP_CACHE`: the bytes of a node never change, and without it a
//! second open would wait, unkillably, for a parked read of the same file. Never direct I/O, since that together
//! with mmap can block a process, and whoever lists it, beyond the reach of SIGKILL. Passthrough opens take no
//! `FOPEN_KEEP_CACHE` (the kernel refuses the two together): they drop the mount's own pages of the file, on which
//! nobody can be waiting then.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attr::{Attr, BLOCK_SIZE, Kind};
use crate::errno::Errno;
use crate::handles::HandleId;
use crate::lock::assert_none_held;
use crate::ops::{Calling, NAME_LENGTH, Operations, Xattr};
use crate::passthrough::{OpenReply, Registered};
use crate::tree::NodeId;

/// Requests the kernel may have waiting that no system call waits for by itself, read-ahead above all. Parked
/// reads count among them; at the kernel's default of 16 a few hundred stall reads of files that are here.
const MAX_BACKGROUND: u16 = 4096;

/// Numbers are never given twice, so all nodes are of one generation.
const GENERATION: Generation = Generation(0);

/// The operations, as `fuser` calls them.
pub struct Adapter {
    ops: Arc<Operations>,
    stack_depth: Option<u32>,
}

impl Adapter {
    /// Serves these operations. With a depth, as [`crate::passthrough::stack_depth`] gives it, complete files are
    /// passed through where the kernel can.
    pub fn new(ops: Arc<Operations>, stack_depth: Option<u32>) -> Self {
        Self { ops, stack_depth }
    }

    fn ask_for_passthrough(&self, config: &mut KernelConfig) {
        let Some(depth) = self.stack_depth else { return };
        if let Err(most) = config.set_max_stack_depth(depth) {
            tracing::debug!("file systems may be stacked {most} high, not {depth}");
        } else if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
            tracing::debug!("the kernel can't pass files through");
        } else {
            self.ops.pass_through();
        }
    }
}

impl OpenReply for ReplyOpen {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Registered> {
        Ok(Registered(Box::new(self.open_backing(file)?)))
    }

    // Nothing to flush when it is closed, so that needs no call.

    fn cached(self: Box<Self>, handle: HandleId) {
        self.opened(FileHandle(handle.0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn passthrough(self: Box<Self>, handle: HandleId, file: &Registered) {
        match file.0.downcast_ref::<BackingId>() {
            Some(id) => self.opened_passthrough(FileHandle(handle.0), FopenFlags::FOPEN_NOFLUSH, id),
            // Nothing else is ever registered here.
            None => (*self).error(Errno::EIO.into()),
        }
    }

    fn error(self: Box<Self>, errno: Errno) {
        (*self).error(errno.into());
    }
}

fn guarded(call: &'static str, run: impl FnOnce()) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        run();
        assert_none_held(call);
    }));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!("a panic in the file system call {call}, which fails with EIO: {text}");
    }
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        fuser::Errno::from_i32(errno.number())
    }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn caller(req: &Request) -> Calling {
    Calling { tid: req.pid(), uid: req.uid() }
}

fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn xattr(outcome: Result<Xattr, Errno>, reply: ReplyXattr) {
    match outcome {
        Ok(Xattr::Size(size)) => reply.size(size),
        Ok(Xattr::Data(data)) => reply.data(&data),
        Err(errno) => reply.error(errno.into()),
    }
}

/// A call that would write.
const READ_ONLY: fuser::Errno = fuser::Errno::EROFS;
/// A call that isn't offered; the kernel asks once and then does without.
const NOT_OFFERED: fuser::Errno = fuser::Errno::ENOSYS;

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Whatever an old kernel hasn't got is done without.
        for wanted in [
            // Attributes along with the names, where they were asked for before.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // Lookups and listings of one folder need no turn.
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!("the kernel hasn't got {missing:?}");
            }
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::debug!("the kernel allows {nearest} requests in the background");
        }
        self.ask_for_passthrough(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", || match self.ops.lookup(node(parent), name) {
            Ok(attr) => reply.entry_with_ttls(&attr.ttl, &attr.entry_ttl, &file_attr(&attr), GENERATION),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guarded("forget", || self.ops.forget([(node(ino), nlookup)]));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || match self.ops.getattr(node(ino)) {
            Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", || match self.ops.readlink(node(ino)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", || self.ops.open(node(ino), flags.0, req.uid(), Box::new(reply)));
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = Box::new(move |result: Result<&[u8], Errno>| match result {
            Ok(bytes) => reply.data(bytes),
            Err(errno) => reply.error(errno.into()),
        });
        guarded("read", || self.ops.read(handle(fh), offset, size, caller(req), reply));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", || {
            self.ops.release(handle(fh));
            reply.ok();
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded("opendir", || match self.ops.opendir(node(ino)) {
            Ok(id) => reply.opened(FileHandle(id.0), FopenFlags::empty()),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded("readdir", || {
            let outcome = self.ops.readdir(handle(fh), offset, |entry| {
                reply.add(INodeNo(entry.node.0), entry.next, file_type(entry.kind), entry.name)
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno.into()),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", || {
            let outcome = self.ops.readdirplus(handle(fh), offset, |entry, attr| {
                // There is one time for name and attributes here: the shorter.
                let ttl = attr.ttl.min(attr.entry_ttl);
                let ino = INodeNo(entry.node.0);
                reply.add(ino, entry.next, entry.name, &ttl, &file_attr(attr), GENERATION)
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno.into()),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded("releasedir", || {
            self.ops.releasedir(handle(fh));
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", || {
            let space = self.ops.statfs();
            let files = space.files;
            reply.statfs(space.blocks, space.free, space.free, files, 0, BLOCK_SIZE, NAME_LENGTH, BLOCK_SIZE);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", || xattr(self.ops.getxattr(node(ino), name, size), reply));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || xattr(self.ops.listxattr(node(ino), size), reply));
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        guarded("access", || match self.ops.access(node(ino), mask.bits()) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        });
    }

    // What changes nothing, since there is nothing to write back.

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // What isn't offered.

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // So that the kernel answers "all data": a hole would be copied as zeros instead of fetched.
        reply.error(NOT_OFFERED);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then says "always ready", as of a disk.
        reply.error(NOT_OFFERED);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY.into());
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // Between two files of this mount, so it would write.
        reply.error(READ_ONLY);
    }

    // What writes.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(READ_ONLY);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(READ_ONLY);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(READ_ONLY);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(READ_ONLY);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(READ_ONLY);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(READ_ONLY);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(READ_ONLY);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(READ_ONLY);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(READ_ONLY);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(READ_ONLY);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(READ_ONLY);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(READ_ONLY);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(READ_ONLY);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch() {
        assert_eq!(time(0), UNIX_EPOCH);
        assert_eq!(time(5), UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(time(-5), UNIX_EPOCH - Duration::from_secs(5));
        // What no clock can hold is the epoch.
        assert_eq!(time(i64::MIN), time(i64::MIN));
    }

    #[test]
    fn a_panic_stays_in_its_call() {
        struct Reply(std::sync::mpsc::Sender<&'static str>);
        impl Drop for Reply {
            fn drop(&mut self) {
                self.0.send("EIO").unwrap();
            }
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = Reply(sender);
        guarded("test", move || {
            let _reply = reply;
            std::panic::panic_any("planned");
        });
        assert_eq!(receiver.try_recv(), Ok("EIO"));
    }
}
