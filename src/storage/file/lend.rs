//! Whole files that the kernel is to read by itself (passthrough).
//!
//! **Which.** Those that were finished: under their own name, of their full size, recorded and synced, so that nobody
//! writes to them, we neither, and no failed sync takes anything back. What was adopted isn't lent: it is its owner's,
//! who may write to it, and readers would get what he wrote.
//!
//! **Mappings.** A program that maps such a file keeps the mapping beyond its handle, and the kernel tells nobody; it
//! outlives this store, too. So a file that was whole, or that was there before, is looked at before a hole is made in
//! it: whether anybody but us has it open or mapped. If so it keeps its bytes. A lease for writing is what tells (`fcntl(2)`, `F_SETLEASE`): the kernel grants it only to who has
//! the file open alone. It is given back at once.
//!
//! **What a lent file gives** when somebody was at it: who removes or replaces it takes its name away, and those who
//! have it open read on what they had. Who writes into it or cuts it is read so: the kernel knows nothing of hashes.
//! It is looked at when it is opened; what is wrong then isn't lent, and the next read says why.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::sys::stat::Mode;

use super::layout::{Layout, Name};
use super::table::Mark;
use super::{FileStore, StorageError};
use crate::storage::volume::VolumeFile;

/// How often it is tried to find a file open by nobody else: a read of ours under way keeps it open, too, and ends in a
/// moment.
const LOOKS: u32 = 20;
/// Pause between two of them.
const MOMENT: Duration = Duration::from_millis(1);

impl FileStore {
    /// See [`crate::storage::Store::backing_file`].
    pub(super) fn lend(&self, file: u32) -> Option<OwnedFd> {
        let (_, full) = self.extent(file);
        if self.names.layout != Layout::Cache || self.names.is_pad(file) || full == 0 {
            return None;
        }
        let open = self.reading(file).ok()?;
        let stat = open.stat().ok()?;
        let standing = {
            let mut table = self.table.lock();
            let standing = table.standing.get(&file).copied()?;
            table.lent.insert(file);
            table.alone.remove(&file);
            standing
        };
        let mark = standing.mark.filter(|_| standing.name == Name::Own)?;
        if stat.links == 0 || mark != Mark::from(&stat) {
            // Noted, so that the next read tells it.
            drop(self.changed(file));
            return None;
        }
        // No longer ones, either: the kernel would give what is behind the end.
        if stat.len == full { direct(open.as_fd()?) } else { None }
    }

    /// Whether it isn't known that nobody has a file mapped.
    pub(in crate::storage) fn is_doubtful(&self, file: u32) -> bool {
        !self.table.lock().alone.contains(&file)
    }

    /// Makes sure that nobody but us has a file, which is open for writing, open or mapped. Waits a moment for reads of
    /// ours.
    ///
    /// # Errors
    /// [`StorageError::Io`] when somebody has.
    pub(super) fn alone(&self, file: u32, open: &dyn VolumeFile) -> Result<(), StorageError> {
        if !self.is_doubtful(file) {
            return Ok(());
        }
        let busy = || {
            let error = io::Error::new(io::ErrorKind::ResourceBusy, "a program has it open or mapped");
            Err(self.error(file, "giving back parts of", error))
        };
        if self.table.lock().shared.get(&file).is_some_and(|until| Instant::now() < *until) {
            return busy();
        }
        // Without a descriptor nobody can have been given one.
        let Some(descriptor) = open.as_fd() else { return Ok(()) };
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::sleep(MOMENT);
            }
            // Nobody of us opens it meanwhile, which would fail.
            let turn = self.turn(file)?;
            let shared = is_shared(descriptor);
            drop(turn);
            let mut table = self.table.lock();
            // Where that can't be told, what was lent counts as shared.
            if !shared.unwrap_or_else(|| table.lent.contains(&file)) {
                table.alone.insert(file);
                table.shared.remove(&file);
                return Ok(());
            }
            if shared.is_none() {
                break;
            }
        }
        // What is to be given back comes in many parts.
        self.table.lock().shared.insert(file, Instant::now() + self.look_every);
        busy()
    }
}

/// The same file, opened anew. `None` where it can't be opened with `O_DIRECT`: the kernel opens it as programs open the
/// mount's, and theirs would fail.
fn direct(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
    match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
        Ok(open) => {
            // Whoever reads with this one may do so without.
            nix::fcntl::fcntl(&open, FcntlArg::F_SETFL(OFlag::empty())).ok()?;
            Some(open)
        }
        Err(Errno::EINVAL) => None,
        // There is no /proc: nothing is known, so it is tried.
        Err(_) => file.try_clone_to_owned().ok(),
    }
}

/// Whether anybody has a file open or mapped by another description than this one; `None` where that can't be told.
pub(super) fn is_shared(file: BorrowedFd<'_>) -> Option<bool> {
    /// `ECRYPTFS_SUPER_MAGIC` of `linux/magic.h`.
    const ECRYPTFS: libc::c_long = 0xf15f;
    /// Of `asm-generic/fcntl.h`.
    const F_SETSIG: libc::c_int = 10;
    match nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0 as libc::c_long {
        // A mapping is of the file below them, of which a lease up here knows nothing.
        libc::OVERLAYFS_SUPER_MAGIC | libc::FUSE_SUPER_MAGIC | ECRYPTFS => return None,
        _ => {}
    }
    // SAFETY: the calls take a descriptor, which is open as long as it is borrowed, and numbers.
    let control = |command: libc::c_int, argument: libc::c_int| {
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
    };
    // Who opens it before the lease is given back has the kernel tell us by a signal: by one that is ignored unless
    // somebody wants it, since the usual one would end the program.
    control(F_SETSIG, libc::SIGURG).ok()?;
    match control(libc::F_SETLEASE, libc::c_int::from(libc::F_WRLCK)) {
        Ok(_) => {
            // It can't fail for one that is held; if it did, closing the file gives it back.
            let _ = control(libc::F_SETLEASE, libc::c_int::from(libc::F_UNLCK));
            Some(false)
        }
        Err(Errno::EAGAIN) => Some(true),
        Err(_) => None,
    }
}
