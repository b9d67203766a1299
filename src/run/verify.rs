//! `torrentfs verify`: hashes what is there of a torrent and records what it found; takes over what another client
//! downloaded.
//!
//! **Flow.** The source is loaded, the cache locked, the metadata looked up in it if the source has none. Then one
//! thread does all that waits for the disk, with others that hash ([`verify_all`]), while this one shows how far it
//! is and waits for signals. The first signal stops the hashing after the pieces that are being read; what was found
//! out so far is recorded as at the end. A second one leaves at once.
//!
//! **Order at the end**, so that a kill at any moment leaves nothing that claims to be here and isn't: files that
//! aren't whole lose their final name; data is synced; the record is written, which clears the bits of what is wrong;
//! only then what is wrong is given back to the disk, and files that are whole get their final name.
//!
//! **Not here.** What the user reads at the end ([`say`]).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::oneshot;

use super::signals::Signals;
use super::start::{DRAW, cache_failure, cache_path, load, print};
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::cli::terminal::{self, Display};
use crate::cli::verify::{self as say, Count, Report};
use crate::client::sources::Loaded;
use crate::config::VerifyConfig;
use crate::metainfo::Info;
use crate::metainfo::geometry::{FileIndex, Geometry, PieceIndex};
use crate::metainfo::info::FileKind;
use crate::storage::cache::CacheDir;
use crate::storage::file::{FileStore, StoredFile};
use crate::storage::resume::{self, ResumeData};
use crate::storage::verify::{self, Checked};
use crate::storage::{StorageError, Store};
use crate::sync::tasks::TaskScope;

/// Bytes looked at at a time for zeros: what a processor's cache holds.
const BLANK: usize = 256 * 1024;

/// Checks, and prints what came of it.
///
/// # Errors
/// What kept it from that, for the user.
pub fn run(config: &VerifyConfig) -> Result<Exit, Failure> {
    let shown = terminal::is_live() && config.verbosity >= 0;
    let mut display = Display::new(shown);
    crate::cli::log::init(config.verbosity, config.log_format, display.writer(), terminal::is_live())?;
    let result = super::on_runtime(run_async(config, &mut display));
    display.finish();
    result
}

/// What the thread that works shares with the one that shows.
#[derive(Debug, Default)]
struct Shared {
    /// Whether to stop.
    stop: AtomicBool,
    /// The torrent's name, once it is known.
    name: OnceLock<String>,
    /// Bytes looked at, and to look at.
    done: AtomicU64,
    total: AtomicU64,
}

async fn run_async(config: &VerifyConfig, display: &mut Display) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let loaded = tokio::select! {
        loaded = load(&config.source) => loaded?,
        () = signals.reached(1) => return Ok(Exit::Forced),
    };
    let shared = Arc::new(Shared::default());
    let (answer, mut answered) = oneshot::channel();
    let work = {
        let (config, shared) = (config.clone(), shared.clone());
        move || {
            // Nobody waits for it any more only after a second signal.
            let _ = answer.send(verify(&config, loaded, &shared));
        }
    };
    std::thread::Builder::new()
        .name("verify".into())
        .spawn(work)
        .map_err(|e| Failure::internal("can't start a thread", e))?;
    let began = Instant::now();
    let mut draw = tokio::time::interval(DRAW);
    let report = loop {
        tokio::select! {
            report = &mut answered => {
                let died = |_| Failure::internal("verifying", "its thread has ended without an answer");
                break report.map_err(died)??;
            }
            () = signals.reached(1), if !shared.stop.load(Ordering::Relaxed) => {
                shared.stop.store(true, Ordering::Relaxed);
            }
            () = signals.reached(2) => return Ok(Exit::Forced),
            _ = draw.tick() => if let Some(name) = shared.name.get() {
                let (done, total) = (shared.done.load(Ordering::Relaxed), shared.total.load(Ordering::Relaxed));
                display.progress(Progress { name: name.clone(), done, total, took: began.elapsed() });
            }
        }
    };
    display.finish();
    print(&if config.json { report.json() } else { report.text() })?;
    Ok(report.exit())
}

/// All that waits for the disk.
fn verify(config: &VerifyConfig, loaded: Loaded, shared: &Shared) -> Result<Report, Failure> {
    let began = Instant::now();
    let path = cache_path(config.cache_dir.as_deref())?;
    let cache = CacheDir::open(&path).map_err(|e| cache_failure(&e))?;
    let key = loaded.info_hash.to_string();
    let kept = || kept(&path.join(&key), &loaded);
    let Some(info) = loaded.info.clone().or_else(kept) else {
        return Err(say::unknown_torrent(&config.source.to_string_lossy()));
    };
    let total = info.geometry.all_pieces().map(|piece| u64::from(info.geometry.piece_len(piece))).sum();
    shared.total.store(total, Ordering::Relaxed);
    let _ = shared.name.set(info.name.clone());
    let dir = cache.torrent_dir(&key).map_err(|e| cache_failure(&e))?;
    let place = Place::open(dir, key, info)?;
    let found = place.look(shared)?;
    place.keep(&found)?;
    Ok(Report { took: began.elapsed(), ..place.report(&found) })
}

/// The metadata that was kept when this torrent was known before.
fn kept(dir: &Path, loaded: &Loaded) -> Option<Arc<Info>> {
    let raw = resume::load_metadata(dir).ok()??;
    if !loaded.info_hash.matches(&raw) {
        return None;
    }
    Info::parse(&raw, None).ok().map(Arc::new)
}

/// What is known of a piece at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Here and right.
    Good,
    /// Here and wrong.
    Wrong,
    /// Not here, or what is here was never called complete.
    Missing,
    /// Not looked at; whether it was recorded as complete.
    Unchecked(bool),
}

/// A torrent's data, and the folder of the cache that it belongs to.
struct Place {
    dir: PathBuf,
    key: String,
    info: Arc<Info>,
    store: FileStore,
    /// What was recorded as complete, if there is a record.
    recorded: Option<Vec<u8>>,
}

impl Place {
    fn open(dir: PathBuf, key: String, info: Arc<Info>) -> Result<Self, Failure> {
        let store = FileStore::open(&dir, Arc::new(info.geometry.clone()), &stored(&info)).map_err(broken)?;
        // What is wrong with a record was logged. It is written anew.
        let record = resume::load(&dir).ok().flatten();
        let recorded =
            record.filter(|r| r.info_hash == key && r.pieces == info.geometry.pieces()).map(|r| r.complete);
        Ok(Self { dir, key, info, store, recorded })
    }

    /// Hashes what is there.
    fn look(&self, shared: &Shared) -> Result<Vec<Found>, Failure> {
        let geometry = &self.info.geometry;
        let progress = |so_far: verify::Progress| shared.done.store(so_far.bytes, Ordering::Relaxed);
        let threads = verify::threads();
        let checked =
            verify::verify_all(&self.store, geometry, &self.info.hashes, threads, &progress, &shared.stop);
        let checked = checked.map_err(broken)?;
        let mut found = Vec::with_capacity(checked.len());
        for (piece, checked) in geometry.all_pieces().zip(checked) {
            let recorded = self.recorded.as_ref().map(|bits| bit(bits, piece));
            found.push(match (checked, recorded) {
                (None, recorded) => Found::Unchecked(recorded.unwrap_or(false)),
                (Some(Checked::Good), _) => Found::Good,
                (Some(Checked::Absent), _) => Found::Missing,
                // What a run that was killed had begun to write, and holes.
                (Some(Checked::Bad), Some(false)) => Found::Missing,
                (Some(Checked::Bad), None) if self.is_blank(piece) => Found::Missing,
                (Some(Checked::Bad | Checked::Unreadable), _) => Found::Wrong,
            });
        }
        Ok(found)
    }

    /// Whether a piece that isn't right has nothing but zeros, as a hole reads. What can't be read isn't blank.
    fn is_blank(&self, piece: PieceIndex) -> bool {
        let (mut at, geometry) = (self.info.geometry.piece_offset(piece), &self.info.geometry);
        let end = at + u64::from(geometry.piece_len(piece));
        let mut buffer = vec![0; BLANK];
        while at < end {
            let len = BLANK.min(usize::try_from(end - at).unwrap_or(BLANK));
            let Some(part) = buffer.get_mut(..len) else { return false };
            if self.store.read_at(at, part).is_err() || part.iter().any(|byte| *byte != 0) {
                return false;
            }
            at += len as u64;
        }
        true
    }

    /// Records what was found, and brings the files into the state that goes with it; see the module for the order.
    fn keep(&self, found: &[Found]) -> Result<(), Failure> {
        let states = self.store.files().map_err(broken)?;
        let files: Vec<_> = (0..).map(FileIndex).zip(&states).collect();
        let geometry = &self.info.geometry;
        for (file, _) in files.iter().filter(|(_, state)| state.finished) {
            if side(geometry, *file, found) == Side::Lacking {
                self.store.reopen(*file).map_err(broken)?;
            }
        }
        let data = ResumeData {
            complete: bits(found, |found| matches!(found, Found::Good | Found::Unchecked(true))),
            clean: true,
            ..ResumeData::new(&self.key, &self.info)
        };
        resume::persist(&self.store, &self.dir, &data).map_err(broken)?;
        for (range, around) in worthless(geometry, found) {
            match self.store.discard(range, around) {
                // Where that can't be, it keeps its room until it is written anew.
                Ok(()) | Err(StorageError::Unsupported { .. }) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        for (file, _) in files.iter().filter(|(_, state)| state.len.is_some() && !state.finished) {
            if side(geometry, *file, found) == Side::Whole {
                self.store.finish(*file).map_err(broken)?;
            }
        }
        Ok(())
    }

    fn report(&self, found: &[Found]) -> Report {
        let (info, geometry) = (&self.info, &self.info.geometry);
        let mut report = Report { name: info.name.clone(), key: self.key.clone(), ..Report::default() };
        for (piece, found) in geometry.all_pieces().zip(found) {
            let count = match found {
                Found::Good => &mut report.good,
                Found::Wrong => &mut report.bad,
                Found::Missing => &mut report.missing,
                Found::Unchecked(_) => &mut report.unchecked,
            };
            let bytes = u64::from(geometry.piece_len(piece));
            *count = Count { pieces: count.pieces + 1, bytes: count.bytes + bytes };
            report.size += bytes;
        }
        let files = (0..).map(FileIndex).zip(&info.files);
        for (file, entry) in files.filter(|(_, entry)| entry.kind == FileKind::Regular && entry.size > 0) {
            report.files += 1;
            report.complete += usize::from(side(geometry, file, found) == Side::Whole);
            if pieces_of(geometry, file, found).contains(&Found::Wrong) {
                report.damaged.push(entry.path.join("/"));
            }
        }
        report
    }
}

/// How a file is, by its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// All of it is here and right.
    Whole,
    /// Something of it is missing or wrong.
    Lacking,
    /// Nobody knows: not all of it was looked at.
    Open,
}

fn side(geometry: &Geometry, file: FileIndex, found: &[Found]) -> Side {
    let pieces = pieces_of(geometry, file, found);
    if pieces.iter().any(|found| matches!(found, Found::Wrong | Found::Missing)) {
        Side::Lacking
    } else if pieces.iter().all(|found| *found == Found::Good) {
        Side::Whole
    } else {
        Side::Open
    }
}

fn pieces_of<'a>(geometry: &Geometry, file: FileIndex, found: &'a [Found]) -> &'a [Found] {
    let pieces = geometry.file_pieces(file);
    found.get(pieces.start as usize..pieces.end as usize).unwrap_or_default()
}

/// One bit for each piece, the first in the highest bit of the first byte.
fn bits(found: &[Found], is_set: impl Fn(&Found) -> bool) -> Vec<u8> {
    let mut bits = vec![0; found.len().div_ceil(8)];
    for (piece, _) in found.iter().enumerate().filter(|(_, found)| is_set(found)) {
        if let Some(byte) = bits.get_mut(piece / 8) {
            *byte |= 0x80 >> (piece % 8);
        }
    }
    bits
}

/// Whether a piece's bit is set.
fn bit(bits: &[u8], piece: PieceIndex) -> bool {
    bits.get(piece.0 as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece.0 % 8)) != 0)
}

/// The ranges of the torrent, in bytes, whose room is to be given back, since what is there isn't right; each with
/// what lies around it and is as worthless.
fn worthless(geometry: &Geometry, found: &[Found]) -> Vec<(Range<u64>, Range<u64>)> {
    let bytes = |pieces: &Range<u32>| {
        let last = PieceIndex(pieces.end.saturating_sub(1));
        geometry.piece_offset(PieceIndex(pieces.start))
            ..geometry.piece_offset(last) + u64::from(geometry.piece_len(last))
    };
    let mut ranges = Vec::new();
    let mut run = 0..0;
    for (piece, found) in (0..).zip(found).chain([(found.len() as u32, &Found::Good)]) {
        match found {
            Found::Wrong | Found::Missing if run.end == piece && !run.is_empty() => run.end += 1,
            Found::Wrong | Found::Missing => run = piece..piece + 1,
            Found::Good | Found::Unchecked(_) if !run.is_empty() => {
                ranges.push((bytes(&run), bytes(&run)));
                run = 0..0;
            }
            Found::Good | Found::Unchecked(_) => {}
        }
    }
    ranges
}

/// The files as a store knows them.
fn stored(info: &Info) -> Vec<StoredFile> {
    let file = |file: &crate::metainfo::FileEntry| StoredFile {
        path: file.path.clone(),
        pad: file.kind != FileKind::Regular,
    };
    info.files.iter().map(file).collect()
}

/// What kept it from reading or recording, for the user.
fn broken(error: StorageError) -> Failure {
    Failure::new(Exit::Cache, "can't verify", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Found> {
        let one = |letter| match letter {
            'g' => Found::Good,
            'w' => Found::Wrong,
            'm' => Found::Missing,
            'U' => Found::Unchecked(true),
            _ => Found::Unchecked(false),
        };
        text.chars().map(one).collect()
    }

    #[test]
    fn files_go_by_their_pieces() {
        // Pieces 0-2, none, 2-8, 8-9.
        let geometry = Geometry::contiguous(16, &[40, 0, 100, 20]);
        let rows = [
            ("gggggggggg", [Side::Whole, Side::Whole, Side::Whole, Side::Whole]),
            ("ggwggggggg", [Side::Lacking, Side::Whole, Side::Lacking, Side::Whole]),
            ("gggggggggm", [Side::Whole, Side::Whole, Side::Whole, Side::Lacking]),
            ("gggUUUuuuu", [Side::Whole, Side::Whole, Side::Open, Side::Open]),
            ("ggmUUUuuuu", [Side::Lacking, Side::Whole, Side::Lacking, Side::Open]),
        ];
        for (text, want) in rows {
            let sides = [0, 1, 2, 3].map(|file| side(&geometry, FileIndex(file), &found(text)));
            assert_eq!(sides, want, "{text}");
        }
    }

    #[test]
    fn what_is_worthless_is_given_back_in_runs() {
        let geometry = Geometry::contiguous(16, &[72]);
        let rows: &[(&str, &[Range<u64>])] = &[
            ("ggggg", &[]),
            ("wgggg", &[0..16]),
            ("gwmgm", &[16..48, 64..72]),
            ("mmmmm", &[0..72]),
            ("uUmUg", &[32..48]),
            ("mUUmm", &[0..16, 48..72]),
        ];
        for (text, want) in rows {
            let ranges = worthless(&geometry, &found(text));
            assert!(ranges.iter().all(|(range, around)| range == around), "{text}");
            assert_eq!(ranges.into_iter().map(|(range, _)| range).collect::<Vec<_>>(), *want, "{text}");
        }
        assert!(worthless(&Geometry::contiguous(16, &[]), &[]).is_empty());
    }

    #[test]
    fn bits_are_set_and_read() {
        let all = found("gUuwmgggg");
        let set = bits(&all, |found| matches!(found, Found::Good | Found::Unchecked(true)));
        assert_eq!(set, [0b1100_0111, 0b1000_0000]);
        let read: Vec<bool> = (0..20).map(|piece| bit(&set, PieceIndex(piece))).collect();
        assert_eq!(read.iter().filter(|is_set| **is_set).count(), 6);
        assert!(read[0] && read[8] && !read[2] && !read[9]);
    }
}
