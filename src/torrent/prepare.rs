//! Opens the storage of a torrent whose metadata is known, and finds out which of its pieces are here.
//! Waits for the disk: runs on a storage worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::inbox::Inbox;
use super::reads::Shared;
use super::recent::Recent;
use super::records::Record;
use super::table::{PieceState, PieceTable, bit};
use crate::metainfo::geometry::PieceIndex;
use crate::metainfo::info::{FileKind, Info};
use crate::storage::file::{FileStore, StoredFile};
use crate::storage::pool::Workers;
use crate::storage::spare::Spare;
use crate::storage::{StorageError, resume};

/// The folder of a torrent below the cache folder, and its key in it.
#[derive(Debug, Clone)]
pub struct Home {
    /// The folder.
    pub dir: PathBuf,
    /// The info-hash in hex, as the folder is called.
    pub key: String,
    /// What is put by for records on a full disk.
    pub spare: Arc<Spare>,
}

/// Opens the storage and, with `trust`, believes what was recorded, as far as the files are long enough for it.
/// Without a record, or without trust, pieces that may have data are unknown: they are looked at when somebody wants them.
///
/// # Errors
/// When the disk says no.
pub fn prepare(
    home: &Home,
    trust: bool,
    info: Arc<Info>,
    workers: Arc<Workers>,
    inbox: Arc<Inbox>,
    recent: &Arc<Recent>,
) -> Result<Arc<Shared>, StorageError> {
    let files: Vec<StoredFile> = info
        .files
        .iter()
        .map(|f| StoredFile { path: f.path.clone(), pad: !matches!(f.kind, FileKind::Regular) })
        .collect();
    let geometry = Arc::new(info.geometry.clone());
    let store = FileStore::open(&home.dir, geometry.clone(), &files)?;
    let lens: Vec<Option<u64>> = crate::storage::Store::files(&store)?.iter().map(|f| f.len).collect();
    let pieces = geometry.pieces();
    let recorded = match resume::load(&home.dir) {
        Ok(_) if !trust => None,
        Ok(Some(data)) if data.pieces == pieces && data.info_hash == home.key => Some(data.complete),
        Ok(_) => None,
        Err(problem) => {
            tracing::warn!(torrent = %info.name, "{problem}");
            None
        }
    };
    let table = match recorded {
        Some(bits) => {
            let bits = resume::believable(&bits, &geometry, &lens);
            let table = PieceTable::new(pieces, PieceState::Missing);
            for piece in (0..pieces).filter(|p| bit(&bits, *p)) {
                table.set(PieceIndex(piece), PieceState::Complete);
            }
            table
        }
        None => {
            let table = PieceTable::new(pieces, PieceState::Missing);
            for (index, extent) in geometry.files().iter().enumerate() {
                // A file that isn't there has nothing to look at.
                let stored = files.get(index).is_some_and(|f| !f.pad) && extent.len > 0;
                if stored && lens.get(index).copied().flatten().is_some_and(|len| len > 0) {
                    for piece in geometry.pieces_of(extent.offset, extent.len) {
                        table.set(PieceIndex(piece), PieceState::Unknown);
                    }
                }
            }
            table
        }
    };
    let shared = Shared::new(info, Arc::new(table), Arc::new(store), workers, inbox);
    Ok(Arc::new(shared.keeping(recent)))
}

/// Writes a record.
///
/// # Errors
/// As [`resume::save`].
pub(super) fn save(shared: &Shared, home: &Home, record: &Record) -> Result<(), StorageError> {
    let data = resume::ResumeData {
        info_hash: home.key.clone(),
        pieces: shared.table.len(),
        complete: record.complete.clone(),
        clean: record.clean,
    };
    match resume::save(&home.dir, &data) {
        // With what goes by it there is room again.
        Err(StorageError::Full { .. }) if home.spare.give_up() => resume::save(&home.dir, &data),
        saved => saved,
    }
}

/// The metadata that was kept when this torrent was known before.
pub fn kept_metadata(dir: &Path) -> Option<Bytes> {
    match resume::load_metadata(dir) {
        Ok(found) => found.map(Bytes::from),
        Err(problem) => {
            tracing::warn!("{problem}");
            None
        }
    }
}
