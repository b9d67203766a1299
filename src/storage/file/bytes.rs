//! Bytes in and out of one file: several buffers at once, all of them or an error, without leaving pages behind.
//!
//! **Flow.** What is written or read doesn't stay in the page cache where the kernel knows how; the first refusal of
//! that flag is remembered and it is done without.
//!
//! **Not here.** Which file, and what an error means.

use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::storage::parts::Parts;
use crate::storage::volume::{Flags, VolumeFile};

/// The kernel's limit of parts in one `pwritev` (UIO_MAXIOV).
const MAX_PARTS: usize = 1024;

/// What is written without leaving it in the page cache begins and ends at multiples of this. A page that is let go
/// half written would have to be read from the disk for its other half, which comes with the next piece; no page
/// of a common machine is larger.
pub(super) const WHOLE: u64 = 16 * 1024;

/// Writes the next `len` bytes of `parts` at `offset` of a file.
pub(super) fn write(
    file: &dyn VolumeFile,
    mut offset: u64,
    mut len: u64,
    parts: &mut Parts<'_>,
    let_go: &AtomicBool,
) -> io::Result<()> {
    while len > 0 {
        let (step, uncached) = match let_go.load(Ordering::Relaxed) {
            true => step(offset, len),
            false => (len, false),
        };
        let flags = Flags { let_go: uncached, ..Flags::default() };
        match file.write_vectored_at(&parts.peek(step, MAX_PARTS), offset, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                parts.skip(written as u64);
                offset += written as u64;
                len = len.saturating_sub(written as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Not known here: the same again without, which tells what else may be wrong.
            Err(error) if uncached && unknown(&error) => {
                let_go.store(false, Ordering::Relaxed);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How much of `len` bytes at `offset` is to be written next, and whether its pages may be let go afterwards:
/// what lies between whole multiples of [`WHOLE`].
fn step(offset: u64, len: u64) -> (u64, bool) {
    match (offset % WHOLE, len - len % WHOLE) {
        (0, 0) => (len, false),
        (0, whole) => (whole, true),
        (within, _) => (len.min(WHOLE - within), false),
    }
}

/// Fills `buf` from the page cache alone; false when that didn't give all of it, for whatever reason.
pub(super) fn read_now(file: &dyn VolumeFile, offset: u64, buf: &mut [u8], let_go: &AtomicBool) -> bool {
    let len = buf.len();
    read(file, offset, buf, true, let_go).is_ok_and(|read| read == len)
}

/// Reads once, some of `buf` perhaps, and lets those pages go that came into the cache for it, if that is
/// known here.
pub(super) fn read(
    file: &dyn VolumeFile,
    offset: u64,
    buf: &mut [u8],
    no_wait: bool,
    let_go: &AtomicBool,
) -> io::Result<usize> {
    let mut parts = [IoSliceMut::new(buf)];
    if let_go.load(Ordering::Relaxed) {
        match file.read_vectored_at(&mut parts, offset, Flags { no_wait, let_go: true }) {
            Err(error) if unknown(&error) => let_go.store(false, Ordering::Relaxed),
            result => return result,
        }
    }
    file.read_vectored_at(&mut parts, offset, Flags { no_wait, let_go: false })
}

/// Whether the kernel or the file system may have meant a flag that it doesn't know.
fn unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::StorageError;
    use crate::storage::volume::over;
    use std::fs::File;
    use std::io::IoSlice;
    use std::path::Path;

    #[test]
    fn whole_parts_of_the_disk_are_let_go_and_edges_are_not() {
        let rows = [
            // Offset and length; how much is written next, and whether it is let go.
            ((0, 1), (1, false)),
            ((0, WHOLE), (WHOLE, true)),
            ((0, WHOLE + 1), (WHOLE, true)),
            ((WHOLE, 5 * WHOLE - 1), (4 * WHOLE, true)),
            ((5, 5 * WHOLE), (WHOLE - 5, false)),
            ((5, 7), (7, false)),
            ((WHOLE - 1, 2), (1, false)),
            ((3 * WHOLE, 2), (2, false)),
        ];
        for ((offset, len), expected) in rows {
            assert_eq!(step(offset, len), expected, "{len} at {offset}");
        }
    }

    #[test]
    fn where_pages_cannot_be_let_go_it_is_done_without() {
        // A device has no page cache: the kernel refuses, as one does that doesn't know of it.
        let Ok(null) = File::options().write(true).open("/dev/null") else { return };
        let null = over(null);
        let let_go = AtomicBool::new(true);
        let bytes = vec![1; 3 * WHOLE as usize];
        let slices = [IoSlice::new(&bytes)];
        write(&*null, 5, bytes.len() as u64, &mut Parts::new(&slices), &let_go).unwrap();
        assert!(!let_go.load(Ordering::Relaxed), "asked once");
        // What is wrong besides is told all the same.
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        let let_go = AtomicBool::new(true);
        let error = write(&*over(full), 0, WHOLE, &mut Parts::new(&slices), &let_go).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let Ok(zero) = File::open("/dev/zero") else { return };
        let let_go = AtomicBool::new(true);
        let mut bytes = [1; 10];
        assert_eq!(read(&*over(zero), 0, &mut bytes, false, &let_go).unwrap(), 10);
        assert_eq!((bytes, let_go.load(Ordering::Relaxed)), ([0; 10], false));
        // An error that has nothing to do with it decides nothing.
        let let_go = AtomicBool::new(true);
        let error = read(&*null, 0, &mut bytes, false, &let_go).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert!(let_go.load(Ordering::Relaxed));
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let store_error =
            |errno| StorageError::from_io(Path::new("/x"), "writing", io::Error::from_raw_os_error(errno));
        assert!(matches!(store_error(libc::ENOSPC), StorageError::Full { .. }));
        assert!(matches!(store_error(libc::EDQUOT), StorageError::Full { .. }));
        assert!(matches!(store_error(libc::EIO), StorageError::Io { .. }));
        // A real refusal through the real path of writing.
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        let bytes = [0; 10];
        let slices = [IoSlice::new(&bytes)];
        let let_go = AtomicBool::new(false);
        let error = write(&*over(full), 0, 10, &mut Parts::new(&slices), &let_go).unwrap_err();
        assert!(matches!(
            StorageError::from_io(Path::new("/x"), "writing", error),
            StorageError::Full { .. }
        ));
    }
}
