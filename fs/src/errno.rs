//! The one table of error numbers: how each failure looks to a program.
//!
//! Everything else in the filesystem speaks of [`Errno`]; what the content reports is translated here and
//! nowhere else. The numbers go to the kernel in the adapter.

use crate::content::ContentError;

/// An error number as programs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// No entry of that name.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// A name of more bytes than one may have.
    pub const ENAMETOOLONG: Errno = Errno(libc::ENAMETOOLONG);
    /// The content failed, timed out, or is shutting down.
    pub const EIO: Errno = Errno(libc::EIO);
    /// The calling thread got a signal while it waited.
    pub const EINTR: Errno = Errno(libc::EINTR);
    /// No such handle, or one of the other kind.
    pub const EBADF: Errno = Errno(libc::EBADF);
    /// A folder was needed.
    pub const ENOTDIR: Errno = Errno(libc::ENOTDIR);
    /// A folder was opened as a file.
    pub const EISDIR: Errno = Errno(libc::EISDIR);
    /// A symbolic link was opened as a file.
    pub const ELOOP: Errno = Errno(libc::ELOOP);
    /// Not a symbolic link, or a nonsensical argument.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// Everything that writes.
    pub const EROFS: Errno = Errno(libc::EROFS);
    /// Not allowed by the mode.
    pub const EACCES: Errno = Errno(libc::EACCES);
    /// No such extended attribute now; or bytes that aren't here, for a reader for whom nothing is fetched.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
    /// Extended attributes of another kind than users', none of which are kept here.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// The buffer for an extended attribute is too small.
    pub const ERANGE: Errno = Errno(libc::ERANGE);
    /// The node went away with its torrent. For a path the kernel then looks it up again and says ENOENT.
    pub const ESTALE: Errno = Errno(libc::ESTALE);
    /// The disk behind the content is full.
    pub const ENOSPC: Errno = Errno(libc::ENOSPC);
    /// Not offered here; the kernel falls back to what it does by itself, and doesn't ask again.
    pub const ENOSYS: Errno = Errno(libc::ENOSYS);
    /// No such device control.
    pub const ENOTTY: Errno = Errno(libc::ENOTTY);

    /// The positive number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl From<&ContentError> for Errno {
    fn from(error: &ContentError) -> Self {
        match error {
            // The reason stands in the xattr and the status; a read knows no better number.
            ContentError::TimedOut(_) | ContentError::Io(_) | ContentError::ShuttingDown => Errno::EIO,
            ContentError::NoSpace => Errno::ENOSPC,
            // Not EIO, which backup programs take for a dying disk, and some of them try again; and nothing that
            // means "try again" to anybody.
            ContentError::NotHere => Errno::ENODATA,
            ContentError::Gone => Errno::ESTALE,
        }
    }
}

impl From<ContentError> for Errno {
    fn from(error: ContentError) -> Self {
        Errno::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_the_content_has_its_number() {
        let rows = [
            (ContentError::TimedOut("no block".into()), Errno::EIO),
            (ContentError::Io("disk".into()), Errno::EIO),
            (ContentError::ShuttingDown, Errno::EIO),
            (ContentError::NoSpace, Errno::ENOSPC),
            (ContentError::NotHere, Errno::ENODATA),
            (ContentError::Gone, Errno::ESTALE),
        ];
        for (error, errno) in rows {
            assert_eq!(Errno::from(&error), errno, "{error:?}");
        }
        assert!(Errno::EIO.to_string().contains("nput/output"));
    }
}
