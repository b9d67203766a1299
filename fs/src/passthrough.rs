//! Passthrough: complete files that the kernel reads by itself, without asking us.
//!
//! **Goal.** A complete file is read as fast as the file that it lies in, and no open ever fails because of how
//! another one is served.
//!
//! **The kernel's rule** (`Documentation/filesystems/fuse/fuse-passthrough.rst`, `fs/fuse/iomode.c`). All handles of an
//! inode that are open at a time are of one kind: cached, or passthrough with the same backing file. An open that
//! breaks it is EIO.
//!
//! **Parts.** [`decide`], the rule as a pure function; [`Passing`], a backing file that the kernel knows, with what is
//! held for it; [`OpenReply`], the kernel's side of one open; [`worth_it`], [`stack_depth`] and [`Trouble`], when
//! there is to be passthrough at all.
//!
//! **Flow.** An open asks [`decide`] under the inode's lock and is counted in the same step. If nothing is open and the
//! file may be passed through, nothing is counted yet: the content is asked for the file, the kernel is told of it, both
//! I/O and under no lock, and then it is decided again, with that in hand. Whoever opened meanwhile has the say: a
//! second one that was prepared at the same time is dropped for the first, and where somebody came in cached, this
//! open is cached too. So no open waits for another.
//! A handle counts from before its reply until its RELEASE. The kernel counts it from after the reply until before
//! that, so what we take for open is all that can be: an open that overtakes the release of the last handle joins it.
//!
//! **Not here.** Which files are complete, and what holds their pieces: the content's.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::errno::Errno;
use crate::handles::HandleId;
use crate::inodes::HandleCounts;

/// Files up to this size are opened cached: one request brings all of it (the kernel asks for up to 128 KiB at once),
/// and telling the kernel of a backing file and taking that back costs two calls.
pub const SMALLEST: u64 = 128 * 1024 + 1;

/// Whether a file of so many bytes, of which so many are here, is to be passed through.
pub fn worth_it(size: u64, here: u64) -> bool {
    size >= SMALLEST && here >= size
}

/// What the kernel gave for a backing file. Dropping it takes the file back, by a call to `/dev/fuse`: never under a
/// lock.
pub struct Registered(pub Box<dyn Any + Send + Sync>);

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registered")
    }
}

/// A backing file that the kernel knows, shared by all passthrough handles of its inode. Dropping it takes it back from
/// the kernel, then lets go of what was held for it: never under a lock.
pub struct Passing {
    /// By what the kernel knows it.
    pub registered: Registered,
    /// What the content holds for it; see [`crate::content::Backing`].
    _hold: Box<dyn Any + Send + Sync>,
}

impl Passing {
    /// That file, with what is held for it.
    pub fn new(registered: Registered, hold: Box<dyn Any + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { registered, _hold: hold })
    }
}

impl std::fmt::Debug for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passing")
    }
}

/// What an open has in hand.
#[derive(Debug, Clone)]
pub enum Offer {
    /// Nothing yet, but the file may be passed through: it can be tried.
    Possible,
    /// A backing file that the kernel knows.
    Ready(Arc<Passing>),
    /// Nothing: it isn't complete, or there is no passthrough.
    Nothing,
}

/// How an open goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Through the kernel's page cache.
    Cached,
    /// By passthrough, with the backing file that the inode's other handles have.
    Join,
    /// By passthrough, with the one in hand; those that come will join it.
    Install,
    /// A backing file is to be prepared, and then it is decided again.
    Prepare,
}

/// How to open a file on which these handles are open. Pure.
pub fn decide(open: HandleCounts, offer: &Offer) -> Decision {
    match (open.passthrough, open.cached, offer) {
        (1.., _, _) => Decision::Join,
        (0, 1.., _) => Decision::Cached,
        (0, 0, Offer::Possible) => Decision::Prepare,
        (0, 0, Offer::Ready(_)) => Decision::Install,
        (0, 0, Offer::Nothing) => Decision::Cached,
    }
}

/// The kernel's side of one open. Dropping it unanswered answers EIO. Each call writes to `/dev/fuse`: never under a
/// lock.
pub trait OpenReply: Send {
    /// Tells the kernel of a backing file. The descriptor may be closed afterwards. Doesn't wait for a disk.
    ///
    /// # Errors
    /// What the kernel says; see [`Trouble`].
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Registered>;

    /// Opened, through the page cache.
    fn cached(self: Box<Self>, handle: HandleId);

    /// Opened, by passthrough.
    fn passthrough(self: Box<Self>, handle: HandleId, file: &Registered);

    /// Not opened.
    fn error(self: Box<Self>, errno: Errno);
}

/// What it means that the kernel refused a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// This once: something was short.
    Once,
    /// It will refuse all others, too: no privilege (EPERM), a file system stacked too high (ELOOP), a kernel that
    /// can't, or a sandbox that forbids it.
    ForGood,
}

impl Trouble {
    /// By what the kernel said.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC | libc::EMFILE | libc::ENFILE | libc::EINTR | libc::EAGAIN) => {
                Self::Once
            }
            _ => Self::ForGood,
        }
    }
}

/// How high file systems may be stacked for backing files in that folder: 2 where it lies on one that lies on others
/// itself, otherwise 1. With 2, no overlay can be laid over our mount: the kernel allows no more in all. Waits for the
/// disk.
pub fn stack_depth(folder: &Path) -> u32 {
    /// `ECRYPTFS_SUPER_MAGIC` of `linux/magic.h`.
    const ECRYPTFS: libc::c_long = 0xf15f;
    match nix::sys::statfs::statfs(folder).map(|found| found.filesystem_type().0 as libc::c_long) {
        // Another FUSE mount may have backing files itself.
        Ok(libc::OVERLAYFS_SUPER_MAGIC | libc::FUSE_SUPER_MAGIC | ECRYPTFS) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_an_inode_are_of_one_kind() {
        let ready = || Offer::Ready(Passing::new(Registered(Box::new(())), Box::new(())));
        let offers = [Offer::Possible, ready(), Offer::Nothing];
        use Decision::{Cached, Install, Join, Prepare};
        // A row is what is open, and the decision for each offer. Both kinds at once never come about; if they did,
        // passthrough would have to be joined: a cached open could only fail.
        let rows = [
            ((0, 0), [Prepare, Install, Cached]),
            ((1, 0), [Cached, Cached, Cached]),
            ((9, 0), [Cached, Cached, Cached]),
            ((0, 1), [Join, Join, Join]),
            ((0, 9), [Join, Join, Join]),
            ((1, 1), [Join, Join, Join]),
        ];
        for ((cached, passthrough), expected) in rows {
            let open = HandleCounts { cached, passthrough, dir: 0 };
            for (offer, expected) in offers.iter().zip(expected) {
                assert_eq!(decide(open, offer), expected, "{open:?} {offer:?}");
            }
        }
    }

    #[test]
    fn only_whole_files_that_are_worth_it_are_passed_through() {
        let rows = [
            (0, 0, false),
            (128 * 1024, 128 * 1024, false),
            (SMALLEST, SMALLEST, true),
            (SMALLEST, SMALLEST - 1, false),
            (1 << 40, 1 << 40, true),
            (1 << 40, 0, false),
        ];
        for (size, here, expected) in rows {
            assert_eq!(worth_it(size, here), expected, "{here} of {size}");
        }
    }

    #[test]
    fn a_refusal_counts_for_good_unless_something_was_short() {
        let rows = [
            (libc::EPERM, Trouble::ForGood),
            (libc::ELOOP, Trouble::ForGood),
            (libc::ENOTTY, Trouble::ForGood),
            (libc::EINVAL, Trouble::ForGood),
            (libc::EIO, Trouble::ForGood),
            (libc::ENOMEM, Trouble::Once),
            (libc::EMFILE, Trouble::Once),
        ];
        for (number, expected) in rows {
            assert_eq!(Trouble::of(&io::Error::from_raw_os_error(number)), expected, "{number}");
        }
        assert_eq!(Trouble::of(&io::Error::other("no number")), Trouble::ForGood);
    }

    #[test]
    fn a_plain_folder_is_stacked_on_nothing() {
        // In a container it may lie on an overlay, which is the other answer.
        assert!(matches!(stack_depth(Path::new("/proc")), 1));
        assert!(matches!(stack_depth(Path::new("/nowhere/at/all")), 1));
    }
}
