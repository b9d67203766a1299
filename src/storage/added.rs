//! When a torrent came into the cache: the time that its files have if it doesn't tell when it was made.
//!
//! **Flow.** Written once, when the torrent is added for the first time, and read from then on; so the files have the
//! same time after a restart. A sealed file `added` in the torrent's folder, eight bytes: seconds since the epoch, i64,
//! little-endian. It goes with the torrent. It isn't synced: thousands may be added at once, and what a power cut takes of
//! it is a date.
//!
//! **Not here.** Torrents that tell when they were made have no such file.

use std::path::Path;

use super::StorageError;
use super::sealed::{self, Kind};

const ADDED: Kind = Kind { name: "added", magic: *b"TFaddedT", version: 1 };

/// When the torrent with this folder in the cache was added, in seconds since the epoch: `now`, and that is kept, when
/// this is the first time. A time that can't be kept, or was damaged, is now, with a warning. Reads and writes a small
/// file, without waiting for it to be on the disk.
pub fn time_added(dir: &Path, now: i64) -> i64 {
    let kept = sealed::read(dir, &ADDED).ok().flatten();
    if let Some(time) = kept.and_then(|body| Some(i64::from_le_bytes(body.try_into().ok()?))) {
        return time;
    }
    if let Err(error) = sealed::write_unsynced(dir, &ADDED, &now.to_le_bytes()) {
        let error = StorageError::from_io(&dir.join(ADDED.name), "saving", error);
        tracing::warn!("{error}; its files will have another time after a restart");
    }
    now
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_first_time_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(time_added(dir.path(), 5), 5);
        assert_eq!(time_added(dir.path(), 77), 5);
        assert_eq!(time_added(dir.path(), -3), 5);
    }

    #[test]
    fn what_is_damaged_or_cannot_be_kept_is_now() {
        let dir = tempfile::tempdir().unwrap();
        time_added(dir.path(), 5);
        let path = dir.path().join("added");
        for bad in [&b""[..], b"TFaddedT", &[0; 60]] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!((time_added(dir.path(), 8), time_added(dir.path(), 9)), (8, 8));
        }
        // Sealed well, and no time.
        sealed::write(dir.path(), &ADDED, b"short").unwrap();
        assert_eq!((time_added(dir.path(), 10), time_added(dir.path(), 11)), (10, 10));
        assert_eq!(time_added(&dir.path().join("none"), 12), 12);
    }
}
