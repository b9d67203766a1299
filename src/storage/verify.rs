//! Reading a piece back from the store and hashing it.
//!
//! **Goal.** To settle what nobody knows: whether a piece that may be on the disk is good. It is for pieces
//! whose completion is unknown (damaged resume data, `--initial-check full`), on demand and one at a time.
//!
//! **Not here.** Hashing (it is handed in) and what to do with the answer. Pieces that just came from peers are
//! hashed in memory before they are written, not through here.

use super::{StorageError, Store};
use crate::metainfo::geometry::{Geometry, PieceIndex};

/// What a look at a piece on the disk came to. All but [`Checked::Good`] mean: fetch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is here, and its hash is right.
    Good,
    /// Something is here, but not it.
    Bad,
    /// A file of it is missing or ends before it.
    Absent,
}

/// Reads a piece into `scratch` and lets `verify` say whether its bytes are right. Waits for the disk: on a
/// worker only. A piece that doesn't exist is absent.
///
/// # Errors
/// Those of [`Store::read_at`], but [`StorageError::Short`], which is [`Checked::Absent`].
pub fn check_piece(
    store: &dyn Store,
    geometry: &Geometry,
    piece: PieceIndex,
    scratch: &mut super::pool::Scratch,
    verify: impl FnOnce(&[u8]) -> bool,
) -> Result<Checked, StorageError> {
    let len = geometry.piece_len(piece);
    if len == 0 {
        return Ok(Checked::Absent);
    }
    let bytes = scratch.buffer(len as usize);
    match store.read_at(geometry.piece_offset(piece), bytes) {
        Ok(()) if verify(bytes) => Ok(Checked::Good),
        Ok(()) => Ok(Checked::Bad),
        Err(StorageError::Short { .. }) => Ok(Checked::Absent),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::file::{FileStore, StoredFile};
    use std::io::IoSlice;
    use std::sync::Arc;

    #[test]
    fn good_bad_and_absent_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Arc::new(Geometry::contiguous(16, &[20, 30]));
        let file = |name: &str| StoredFile { path: vec![name.to_owned()], pad: false };
        let store = FileStore::open(dir.path(), geometry.clone(), &[file("a"), file("b")]).unwrap();
        store.write_at(0, &[IoSlice::new(&[7; 16])]).unwrap();
        let mut scratch = super::super::pool::Scratch::default();
        let mut check = |piece| {
            let sevens = |bytes: &[u8]| bytes.iter().all(|b| *b == 7);
            check_piece(&store, &geometry, PieceIndex(piece), &mut scratch, sevens).unwrap()
        };
        assert_eq!(check(0), Checked::Good);
        // Its first bytes lie in the sparse part of the first file, the others in a file that isn't there.
        assert_eq!(check(1), Checked::Absent);
        assert_eq!(check(4), Checked::Absent, "no such piece");
        store.write_at(32, &[IoSlice::new(&[7; 10])]).unwrap();
        assert_eq!(check(1), Checked::Bad);
        store.close();
        let closed = check_piece(&store, &geometry, PieceIndex(0), &mut scratch, |_| true);
        assert!(matches!(closed, Err(StorageError::Closed)));
    }
}
