//! A little room put by: on a full disk a record can still be written that takes something out.
//!
//! **Goal.** Making room on a full disk needs a record that says what is going, and that takes a little room itself.
//!
//! **Flow.** A file beside the torrents' folders holds [`SPARE`] bytes. When a record finds the disk full, it gives
//! them up ([`Spare::give_up`]) and tries again; when there is room, they are put by anew ([`Spare::put_by`]).
//!
//! **Not here.** When there is room: the keeper knows.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use torrentfs_fs::lock::{Rank, RankedMutex};

/// Bytes put by: records of two million pieces.
pub const SPARE: u64 = 512 << 10;

/// Its name in the cache folder.
pub(super) const NAME: &str = "spare";

/// See the module. Dropping it leaves the file.
#[derive(Debug)]
pub struct Spare {
    path: PathBuf,
    /// Whether the bytes are there, as far as we know.
    kept: RankedMutex<bool>,
}

impl Spare {
    /// That of a cache folder; nothing is put by yet.
    pub(super) fn new(cache: &Path) -> Self {
        Self { path: cache.join(NAME), kept: RankedMutex::new(Rank::Leaf, "room put by", false) }
    }

    /// Puts the bytes by, unless they are. Waits for the disk.
    ///
    /// # Errors
    /// The system's; ENOSPC when there is no room.
    pub fn put_by(&self) -> io::Result<()> {
        if *self.kept.lock() {
            return Ok(());
        }
        let file = self.open()?;
        let len = SPARE as libc::off_t;
        // Where room can't be promised, a record doesn't find any either.
        match nix::fcntl::fallocate(file.as_fd(), nix::fcntl::FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(errno) => {
                let _ = file.set_len(0);
                return Err(errno.into());
            }
        }
        *self.kept.lock() = true;
        Ok(())
    }

    /// Gives the bytes back to the disk; true if there were any. Waits for the disk.
    pub fn give_up(&self) -> bool {
        *self.kept.lock() = false;
        self.open().is_ok_and(|file| {
            let some = file.metadata().is_ok_and(|meta| meta.len() > 0);
            some && file.set_len(0).is_ok()
        })
    }

    fn open(&self) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_put_by_takes_room_and_is_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let spare = Spare::new(dir.path());
        assert!(!spare.give_up(), "nothing yet");
        let taken = || dir.path().join(NAME).metadata().unwrap().blocks() * 512;
        for _ in 0..2 {
            spare.put_by().unwrap();
            spare.put_by().unwrap();
            assert!(taken() >= SPARE);
            // By another process, too: what an earlier run put by can be given up.
            assert!(Spare::new(dir.path()).give_up() && !spare.give_up());
            assert_eq!(taken(), 0);
        }
        // A link that somebody planted isn't followed.
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        let other = dir.path().join("other");
        std::fs::write(&other, b"kept").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(NAME)).unwrap();
        assert!(spare.put_by().is_err() && !spare.give_up());
        assert_eq!(std::fs::read(&other).unwrap(), b"kept");
    }
}
