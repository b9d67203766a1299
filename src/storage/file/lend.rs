//! Whole files that the kernel is to read by itself (passthrough).
//!
//! **Which.** Those that were finished: under their own name, of their full size, recorded and synced, so that nobody
//! writes to them, we neither, and no failed sync takes anything back. What was adopted isn't lent: it is its owner's,
//! who may write to it, and readers would get what he wrote.
//!
//! **What a lent file gives** when somebody was at it: who removes or replaces it takes its name away, and those who
//! have it open read on what they had. Who writes into it or cuts it is read so: the kernel knows nothing of hashes.
//! It is looked at when it is opened; what is wrong then isn't lent, and the next read says why.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::FileStore;
use super::layout::{Layout, Name};
use super::table::Mark;

impl FileStore {
    /// See [`crate::storage::Store::backing_file`].
    pub(super) fn lend(&self, file: u32) -> Option<OwnedFd> {
        let (_, full) = self.extent(file);
        if self.names.layout != Layout::Cache || self.names.is_pad(file) || full == 0 {
            return None;
        }
        let open = self.reading(file).ok()?;
        let stat = open.stat().ok()?;
        let standing = self.table.lock().standing.get(&file).copied()?;
        let as_it_was = standing.name == Name::Own && standing.mark == Some(Mark::from(&stat));
        // Longer ones, too: the kernel would give what is behind the end.
        if !as_it_was || stat.links == 0 || stat.len != full {
            return None;
        }
        direct(open.as_fd()?)
    }
}

/// The same file, opened anew. `None` where it can't be opened with `O_DIRECT`: the kernel opens it as programs open the
/// mount's, and theirs would fail.
fn direct(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
    match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
        Ok(open) => Some(open),
        Err(Errno::EINVAL) => None,
        // There is no /proc: nothing is known, so it is tried.
        Err(_) => file.try_clone_to_owned().ok(),
    }
}
