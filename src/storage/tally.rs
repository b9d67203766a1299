//! What a torrent has sent and received in all runs, and for how long it was seeded: for goals that outlast a run.
//!
//! **Flow.** Read when the torrent is added, written now and then and at the end, if there are goals. A sealed file `tally`
//! in the torrent's folder: three u64, little-endian: bytes sent, bytes received, milliseconds seeded. It isn't synced:
//! what a power cut takes of it is given back once more. It goes with the torrent.

use std::path::Path;
use std::time::Duration;

use super::StorageError;
use super::sealed::{self, Kind};

const TALLY: Kind = Kind { name: "tally", magic: *b"TFtallyT", version: 1 };

/// See the module's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload bytes sent.
    pub up: u64,
    /// Payload bytes received.
    pub down: u64,
    /// How long peers could have something while nothing was fetched.
    pub seeded: Duration,
}

impl Tally {
    /// What is kept of the torrent with this folder in the cache; nothing if nothing is, or it was damaged. Reads a small
    /// file.
    pub fn kept(dir: &Path) -> Self {
        let body = sealed::read(dir, &TALLY).ok().flatten().unwrap_or_default();
        let (numbers, rest) = body.as_chunks::<8>();
        match (numbers, rest) {
            ([up, down, seeded], []) => Self {
                up: u64::from_le_bytes(*up),
                down: u64::from_le_bytes(*down),
                seeded: Duration::from_millis(u64::from_le_bytes(*seeded)),
            },
            _ => Self::default(),
        }
    }

    /// Keeps it. Writes a small file, without waiting for it to be on the disk.
    ///
    /// # Errors
    /// It can't be written.
    pub fn keep(&self, dir: &Path) -> Result<(), StorageError> {
        let seeded = u64::try_from(self.seeded.as_millis()).unwrap_or(u64::MAX);
        let body: Vec<u8> = [self.up, self.down, seeded].into_iter().flat_map(u64::to_le_bytes).collect();
        sealed::write_unsynced(dir, &TALLY, &body)
            .map_err(|error| StorageError::from_io(&dir.join(TALLY.name), "saving", error))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_is_kept_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Tally::kept(dir.path()), Tally::default());
        let tally = Tally { up: 5, down: u64::MAX, seeded: Duration::from_millis(12_345) };
        tally.keep(dir.path()).unwrap();
        assert_eq!(Tally::kept(dir.path()), tally);
        let more = Tally { up: 6, ..tally };
        more.keep(dir.path()).unwrap();
        assert_eq!(Tally::kept(dir.path()), more);
    }

    #[test]
    fn what_is_damaged_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [&b""[..], b"TFtallyT", &[0; 80]] {
            std::fs::write(dir.path().join("tally"), bad).unwrap();
            assert_eq!(Tally::kept(dir.path()), Tally::default());
        }
        // Sealed well, and no tally.
        sealed::write(dir.path(), &TALLY, b"short").unwrap();
        assert_eq!(Tally::kept(dir.path()), Tally::default());
        assert!(Tally::default().keep(&dir.path().join("none")).is_err());
    }
}
