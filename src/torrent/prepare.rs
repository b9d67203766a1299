//! Opens the storage of a torrent whose metadata is known, and finds out which of its pieces are here; writes the record
//! of them. Waits for the disk: runs on a storage worker.
//!
//! **Flow.** The record says whose files are used: our own, or some that were adopted. What of it can be believed is
//! settled without reading a byte of data ([`settle`]): with trust, what was recorded as complete is complete, as
//! far as files are there, and long enough; without trust, or without a record, what has data is unknown, and is looked
//! at when somebody wants it. If the record on the disk says anything else than that, it is written anew before
//! anything else happens: what it calls complete must never be written to. Then what an earlier run left half done is
//! put in order: files that are whole get their names, and after an end that wasn't clean the room of missing
//! pieces is given back, since it may hold what was written and not recorded.
//!
//! **Not here.** Hashing anything. What to do about pieces that are unknown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::inbox::Inbox;
use super::reads::Shared;
use super::recent::Recent;
use super::records::Record;
use super::table::{PieceState, PieceTable, ReadClock, bit};
use crate::metainfo::geometry::{FileIndex, Geometry, PieceIndex};
use crate::metainfo::info::Info;
use crate::storage::adopt::{self, Layers, Opened};
use crate::storage::file::{FileStore, StoredFile};
use crate::storage::memory::MemoryStore;
use crate::storage::mmap::MmapStore;
use crate::storage::pool::Workers;
use crate::storage::resume::{self, Adopted, Believed, FileMark, ResumeData};
use crate::storage::spare::Spare;
use crate::storage::{FileState, StorageError, StorageKind, Store};

/// The folder of a torrent below the cache folder, and its key in it. Clones share what is kept there.
#[derive(Debug, Clone)]
pub struct Home {
    /// The folder.
    pub dir: PathBuf,
    /// The info-hash in hex, as the folder is called.
    pub key: String,
    /// What is put by for records on a full disk.
    pub spare: Arc<Spare>,
    /// Known once the storage is open.
    kept: Arc<OnceLock<Kept>>,
}

impl Home {
    /// Looks at nothing.
    pub fn new(dir: PathBuf, key: String, spare: Arc<Spare>) -> Self {
        Self { dir, key, spare, kept: Arc::default() }
    }
}

/// What every record of the torrent has.
struct Kept {
    /// All that isn't about pieces and files.
    record: ResumeData,
    /// Where adopted data lies below our own.
    layers: Option<Layers>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("adopted", &self.record.adopted).finish_non_exhaustive()
    }
}

/// How the storage of a torrent is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// Whether what an earlier run recorded as complete is believed.
    pub trust: bool,
    /// Where data is kept.
    pub kind: StorageKind,
    /// Bytes that a store in memory takes at most.
    pub capacity: u64,
}

/// What reading a torrent takes besides its storage.
pub struct Means {
    /// Who reads.
    pub workers: Arc<Workers>,
    /// What readers want.
    pub inbox: Arc<Inbox>,
    /// The pieces kept in memory.
    pub recent: Arc<Recent>,
    /// What counts reads.
    pub clock: ReadClock,
}

/// A torrent whose storage is open.
pub struct Prepared {
    /// All that is shared of it.
    pub shared: Arc<Shared>,
    /// What the record on the disk calls complete; the same as the table does.
    pub recorded: Vec<u8>,
    /// Whether that record tells sizes and times of files, which hold until the first write.
    pub clean: bool,
}

/// Opens the storage and settles the state of each piece; see the module.
///
/// # Errors
/// When the disk says no.
pub fn prepare(home: &Home, how: Opening, info: Arc<Info>, means: Means) -> Result<Prepared, StorageError> {
    let files = adopt::stored_files(&info);
    let geometry = Arc::new(info.geometry.clone());
    let blank = ResumeData::new(&home.key, &info);
    let opened = match how.kind {
        StorageKind::Memory => {
            let store = Arc::new(MemoryStore::new(geometry.clone(), &files, how.capacity)?);
            Open { store, layers: None, record: blank, clean: false }
        }
        StorageKind::File | StorageKind::Mmap => open(home, how, &info, &geometry, &files)?,
    };
    let table = PieceTable::with_clock(geometry.pieces(), PieceState::Missing, means.clock);
    for piece in geometry.all_pieces() {
        if bit(&opened.record.complete, piece.0) {
            table.set(piece, PieceState::Complete);
        } else if bit(&opened.record.unknown, piece.0) {
            table.set(piece, PieceState::Unknown);
        }
    }
    let Open { store, layers, record, clean } = opened;
    let recorded = record.complete.clone();
    let kept = Kept { record, layers };
    if home.kept.set(kept).is_err() {
        tracing::debug!(torrent = %info.name, "its storage was opened before");
    }
    let shared = Shared::new(info, Arc::new(table), store, means.workers, means.inbox);
    Ok(Prepared { shared: Arc::new(shared.keeping(&means.recent)), recorded, clean })
}

/// A store, and the record that goes with it.
struct Open {
    store: Arc<dyn Store>,
    layers: Option<Layers>,
    /// As it stands on the disk, if there is one there.
    record: ResumeData,
    /// Whether that one tells sizes and times of files.
    clean: bool,
}

/// Opens a store on a disk, and sees to it that the record says what can be believed.
fn open(
    home: &Home,
    how: Opening,
    info: &Info,
    geometry: &Arc<Geometry>,
    files: &[StoredFile],
) -> Result<Open, StorageError> {
    let name = &info.name;
    let found = match resume::load(&home.dir) {
        Ok(Some(data)) if data.is_of(&home.key, geometry) => Some(data),
        Ok(Some(_)) => {
            tracing::warn!(torrent = %name, "what is recorded is of another torrent, and isn't used");
            None
        }
        // A problem was logged already.
        Ok(None) | Err(_) => None,
    };
    let (store, layers) = stores(home, how.kind, found.as_ref(), geometry, files)?;
    let there = found.as_ref().and_then(|data| data.adopted.as_ref());
    // What was adopted and isn't there any more took its pieces along.
    let usable = found.as_ref().map(|data| match &data.adopted {
        Some(lost) if store.is_none() => without(data, lost),
        _ => data.clone(),
    });
    let adopted =
        there.filter(|_| store.is_some()).map(|there| Adopted { files: Vec::new(), ..there.clone() });
    let store = match store {
        Some(store) => store,
        None => own(home, how.kind, geometry, files)?,
    };
    let sides = sides(&*store, layers.as_ref(), usable.as_ref())?;
    let Believed { complete, unknown } = settle(usable.as_ref(), how.trust, geometry, &sides);
    if let Some(Layers { overlay, .. }) = &layers {
        let here = |p: &PieceIndex| bit(&complete, p.0) || bit(&unknown, p.0);
        geometry.all_pieces().filter(|p| !here(p)).for_each(|p| overlay.set_above(p));
    }
    let mut record = ResumeData { complete, unknown, adopted, ..ResumeData::new(&home.key, info) };
    let says_so = |data: &ResumeData| {
        let whose = |data: &ResumeData| data.adopted.as_ref().map(|a| (a.path.clone(), a.read_only));
        let unknown = |p: PieceIndex| bit(&data.unknown, p.0) == bit(&record.unknown, p.0);
        data.complete == record.complete
            && whose(data) == whose(&record)
            && geometry.all_pieces().all(unknown)
    };
    let mut clean = found.as_ref().is_some_and(|data| data.clean);
    if found.as_ref().is_some_and(|data| !says_so(data)) {
        rewrite(home, &mut record, name)?;
        clean = false;
    }
    // Nothing to tidy up after an end in good order, or without a record: then nothing is missing that has data.
    let unclean = found.as_ref().is_some_and(|data| !data.clean);
    let states = sides.first().map_or(&[][..], |own| &own.states);
    // Of data that isn't ours nothing is given back, and what is known of its files stays known.
    let unclean = unclean && (record.adopted.is_none() || sides.len() > 1);
    tidy(&*store, geometry, states, &record, unclean, name);
    Ok(Open { store, layers, record, clean })
}

/// A store of our own on the disk.
fn own(
    home: &Home,
    kind: StorageKind,
    geometry: &Arc<Geometry>,
    files: &[StoredFile],
) -> Result<Arc<dyn Store>, StorageError> {
    FileStore::open(&home.dir, geometry.clone(), files).map(|store| read_by(kind, store, geometry))
}

/// A store of files, read as `kind` says.
fn read_by(kind: StorageKind, store: FileStore, geometry: &Arc<Geometry>) -> Arc<dyn Store> {
    match kind {
        StorageKind::Mmap => Arc::new(MmapStore::over(store, geometry.clone())),
        StorageKind::File | StorageKind::Memory => Arc::new(store),
    }
}

/// The store of a torrent, of our own or with the adopted data that its record names, and the layers that it has then.
/// No store when what was adopted isn't there.
#[allow(clippy::type_complexity, reason = "two things that belong together for the one caller")]
fn stores(
    home: &Home,
    kind: StorageKind,
    found: Option<&ResumeData>,
    geometry: &Arc<Geometry>,
    files: &[StoredFile],
) -> Result<(Option<Arc<dyn Store>>, Option<Layers>), StorageError> {
    let own = || own(home, kind, geometry, files);
    let Some(adopted) = found.and_then(|data| data.adopted.as_ref()) else { return Ok((Some(own()?), None)) };
    match adopt::open(adopted, geometry, files, own)? {
        Some(Opened::Plain(store)) => Ok((Some(read_by(kind, *store, geometry)), None)),
        Some(Opened::Layers(layers)) => Ok((Some(layers.overlay.clone()), Some(layers))),
        None => {
            tracing::warn!(
                "the adopted data in {} isn't there any more: what is missing is fetched into the cache; when it is \
                 back, take it over again with torrentfs verify --data",
                adopted.path.display()
            );
            Ok((None, None))
        }
    }
}

/// Files that a part of the pieces lie in.
struct Side {
    /// What is there of each.
    states: Vec<FileState>,
    /// What they were at a clean end.
    marks: Vec<FileMark>,
    /// The pieces, a bit for each; those that it is too short for have its `beyond`.
    pieces: Vec<u8>,
    beyond: u8,
}

/// Our own files first, and then, where data was adopted to be read only, that.
fn sides(
    store: &dyn Store,
    layers: Option<&Layers>,
    record: Option<&ResumeData>,
) -> Result<Vec<Side>, StorageError> {
    let marks = record.map(|data| data.files.clone()).unwrap_or_default();
    let Some(layers) = layers else {
        return Ok(vec![Side { states: store.files()?, marks, pieces: Vec::new(), beyond: 0xff }]);
    };
    let adopted = record.and_then(|data| data.adopted.clone()).unwrap_or_default();
    let pieces = adopted.below.iter().map(|bits| !bits).collect();
    let above = Side { states: layers.above.files()?, marks, pieces, beyond: 0xff };
    let states = layers.below.files()?;
    Ok(vec![above, Side { states, marks: adopted.files, pieces: adopted.below, beyond: 0 }])
}

/// A record without the pieces that lay in adopted data.
fn without(data: &ResumeData, lost: &Adopted) -> ResumeData {
    let own = |bits: &[u8]| -> Vec<u8> {
        let below = lost.below.iter().copied().chain(std::iter::repeat(0));
        // What may be written lies there, all of it.
        bits.iter().zip(below).map(|(bits, below)| if lost.read_only { bits & !below } else { 0 }).collect()
    };
    // What the files were was said of both together.
    let files = Vec::new();
    ResumeData { complete: own(&data.complete), unknown: own(&data.unknown), files, ..data.clone() }
}

/// Which pieces are complete, and which are unknown; all others are missing. Reads no data. Pure.
fn settle(record: Option<&ResumeData>, trust: bool, geometry: &Geometry, sides: &[Side]) -> Believed {
    let none = vec![0; geometry.pieces().div_ceil(8) as usize];
    let mut all = Believed { complete: none.clone(), unknown: none.clone() };
    for side in sides {
        let found = match record.filter(|_| trust) {
            Some(record) => {
                let record = ResumeData { files: side.marks.clone(), ..record.clone() };
                resume::believable(&record, geometry, &side.states)
            }
            None => Believed { complete: none.clone(), unknown: resume::with_data(geometry, &side.states) },
        };
        let its = side.pieces.iter().copied().chain(std::iter::repeat(side.beyond));
        let found = found.complete.into_iter().zip(found.unknown).zip(its);
        for ((all, unknown), ((c, u), its)) in all.complete.iter_mut().zip(&mut all.unknown).zip(found) {
            *all |= c & its;
            *unknown |= u & its;
        }
    }
    all
}

/// Puts a record in place of one that says too much. If there is no room for it, there is none at all from now on: then
/// everything is unknown after a kill, which is slow and right.
fn rewrite(home: &Home, record: &mut ResumeData, name: &str) -> Result<(), StorageError> {
    record.last_used = now();
    let Err(error) = put(home, record) else { return Ok(()) };
    tracing::warn!(torrent = %name, "its record could not be written anew, and is removed: {error}");
    resume::remove(&home.dir)
}

/// Puts in order what an earlier run left half done. What fails at it costs room, nothing else.
fn tidy(
    store: &dyn Store,
    geometry: &Geometry,
    states: &[FileState],
    record: &ResumeData,
    unclean: bool,
    name: &str,
) {
    let whole = |file| geometry.file_pieces(file).all(|p| bit(&record.complete, p));
    for (file, state) in (0..).map(FileIndex).zip(states) {
        if state.len.is_some()
            && !state.finished
            && !geometry.file_pieces(file).is_empty()
            && whole(file)
            && let Err(error) = store.finish(file)
        {
            tracing::warn!(torrent = %name, "a file is whole, and can't be given its name: {error}");
        }
    }
    if !unclean {
        return;
    }
    for run in missing_runs(record) {
        let (start, last) = (geometry.piece_offset(PieceIndex(run.start)), PieceIndex(run.end - 1));
        let end = geometry.piece_offset(last) + u64::from(geometry.piece_len(last));
        let there = |file: FileIndex| states.get(file.0 as usize).filter(|state| state.len.is_some());
        let touched = || geometry.spans(start, end - start).filter_map(|s| Some((s.file, there(s.file)?)));
        if touched().next().is_none() {
            continue;
        }
        let finished = touched().filter(|(_, state)| state.finished);
        let done = finished.map(|(file, _)| file).try_for_each(|file| store.reopen(file));
        match done.and_then(|()| store.discard(start..end, start..end)) {
            Ok(()) => {}
            Err(StorageError::Unsupported { .. }) => return,
            Err(error) => {
                tracing::warn!(torrent = %name, "what an earlier run left can't be given back: {error}");
                return;
            }
        }
    }
}

/// The missing pieces, in runs that are as long as can be.
fn missing_runs(record: &ResumeData) -> Vec<std::ops::Range<u32>> {
    let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
    for piece in (0..record.pieces).filter(|p| !bit(&record.complete, *p) && !bit(&record.unknown, *p)) {
        match runs.last_mut().filter(|run| run.end == piece) {
            Some(run) => run.end += 1,
            None => runs.push(piece..piece + 1),
        }
    }
    runs
}

/// Writes a record.
///
/// # Errors
/// As [`resume::save`].
pub(super) fn save(shared: &Shared, home: &Home, record: &Record) -> Result<(), StorageError> {
    let kept = home.kept.get();
    let base = kept.map_or_else(|| ResumeData::new(&home.key, &shared.info), |kept| kept.record.clone());
    let complete = record.complete.clone();
    // What is written and not recorded yet is here, too, as far as anybody knows after a kill.
    let unknown = |piece: &PieceIndex| match shared.table.state(*piece) {
        PieceState::Unknown | PieceState::Verifying | PieceState::Complete => !bit(&complete, piece.0),
        PieceState::Missing | PieceState::Requested => false,
    };
    let unknown = bits(shared.table.len(), unknown);
    // What can't be told, or isn't what it was, is recognized by nothing: the next start believes nothing of it.
    let unlike = || vec![FileMark { len: None, modified: 0 }; shared.info.geometry.files().len()];
    let marks = |store: &dyn Store| match record.clean.then(|| store.files()) {
        Some(Ok(states)) => states.into_iter().map(FileMark::from).collect(),
        Some(Err(error)) => {
            tracing::warn!(torrent = %shared.info.name, "what is here is looked at again the next time: {error}");
            unlike()
        }
        None => Vec::new(),
    };
    let layers = kept.and_then(|kept| kept.layers.as_ref());
    let mut adopted = base.adopted.clone();
    if let (Some(adopted), Some(Layers { below, overlay, .. })) = (&mut adopted, layers) {
        adopted.below = bits(shared.table.len(), |piece| overlay.below(*piece));
        adopted.files = marks(&**below);
    }
    let files = marks(layers.map_or(&*shared.store, |layers| &*layers.above));
    let (clean, last_used) = (record.clean, now());
    put(home, &ResumeData { complete, unknown, adopted, files, clean, last_used, ..base })
}

/// Saves a record, on a full disk with what is put by for that.
fn put(home: &Home, data: &ResumeData) -> Result<(), StorageError> {
    match resume::save(&home.dir, data) {
        // With what goes by it there is room again.
        Err(StorageError::Full { .. }) if home.spare.give_up() => resume::save(&home.dir, data),
        saved => saved,
    }
}

fn bits(pieces: u32, is_set: impl Fn(&PieceIndex) -> bool) -> Vec<u8> {
    let mut bits = vec![0u8; pieces.div_ceil(8) as usize];
    for piece in (0..pieces).map(PieceIndex).filter(is_set) {
        if let Some(byte) = bits.get_mut(piece.0 as usize / 8) {
            *byte |= 0x80 >> (piece.0 % 8);
        }
    }
    bits
}

/// Seconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
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

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
