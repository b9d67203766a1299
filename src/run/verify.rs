//! `torrentfs verify`: hashes what is there of a torrent and records what it found; takes over what another client
//! downloaded.
//!
//! **Flow.** The source is loaded, the cache locked, the metadata looked up in it if the source has none. Then one
//! thread does all that waits for the disk, with others that hash ([`verify::verify_all`]), while this one shows how far it
//! is and waits for signals. The first signal stops the hashing after the pieces that are being read; what was found
//! out so far is recorded as at the end. A second one leaves at once.
//!
//! **Order at the end**, so that a kill at any moment leaves nothing that claims to be here and isn't: files that
//! aren't whole lose their final name; data is synced; the record is written, which clears the bits of what is wrong;
//! only then what is wrong is given back to the disk, and files that are whole get their final name.
//!
//! **Adopted data** is hashed where it lies. If it may be written it is all there is. If not, what it lacks is looked
//! for in our own folder as well, and each piece is read from where it was found good. It is never renamed, given back
//! or made read-only.
//!
//! **Not here.** What the user reads at the end ([`say`]).

use std::collections::HashSet;
use std::fmt::Display;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use tokio::sync::oneshot;

use super::signals::Signals;
use super::start::{DRAW, cache_failure, cache_path, load, print};
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::cli::terminal::{self, Display as Screen};
use crate::cli::verify::{self as say, Count, Report};
use crate::client::sources::Loaded;
use crate::config::VerifyConfig;
use crate::metainfo::Info;
use crate::metainfo::geometry::{FileIndex, Geometry, PieceIndex};
use crate::metainfo::info::FileKind;
use crate::net::hosts::Reach;
use crate::net::sockets::Sockets;
use crate::storage::cache::CacheDir;
use crate::storage::file::{FileStore, Layout};
use crate::storage::resume::{self, Adopted, FileMark, ResumeData};
use crate::storage::verify::{self, Checked};
use crate::storage::volume::OsVolume;
use crate::storage::{StorageError, Store, adopt};
use crate::sync::tasks::TaskScope;

/// Bytes looked at at a time for zeros: what a processor's cache holds.
const BLANK: usize = 256 * 1024;

/// Checks, and prints what came of it.
///
/// # Errors
/// What kept it from that, for the user.
pub fn run(config: &VerifyConfig) -> Result<Exit, Failure> {
    let shown = terminal::is_live() && config.verbosity >= 0;
    let mut display = Screen::new(shown);
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

async fn run_async(config: &VerifyConfig, display: &mut Screen) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let sockets = Sockets::default();
    let loaded = tokio::select! {
        loaded = load(&config.source, Reach::Public, &sockets) => loaded?,
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
                // Until then it isn't known how much there is: that isn't all of it.
                if total > 0 {
                    display.progress(Progress { name: name.clone(), done, total, took: began.elapsed() });
                }
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
    // Before anything is made in the cache.
    let given = config
        .data
        .as_deref()
        .map(|data| adopted(data, config.read_only, &info, cache.path()))
        .transpose()?;
    let dir = cache.torrent_dir(&key).map_err(|e| cache_failure(&e))?;
    let place = Place::open(dir, &key, info.clone(), given)?;
    let _ = shared.name.set(info.name.clone());
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

/// The folder that the user named for another client's data, as it is to be recorded.
fn adopted(data: &Path, read_only: bool, info: &Info, cache: &Path) -> Result<Adopted, Failure> {
    let refused = |why: &dyn Display| Failure::new(Exit::BadInput, data.display(), why);
    let located = adopt::locate(data, info).map_err(|error| match &error {
        StorageError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            refused(&"there is no such folder")
        }
        StorageError::Io { source, .. } if source.kind() == ErrorKind::NotADirectory => {
            refused(&"it isn't a folder").hint("give the folder that the torrent's files lie in")
        }
        _ => refused(&error),
    })?;
    let Some(path) = located else {
        return Err(refused(&"it holds none of the torrent's files").hint(
            "give the torrent's own folder, or the one it lies in; names must be those of the torrent",
        ));
    };
    if cache.canonicalize().is_ok_and(|cache| path.starts_with(&cache) || cache.starts_with(&path)) {
        return Err(refused(&"it lies in the cache, or has the cache in it")
            .hint("leave --data out to verify what is in the cache"));
    }
    if !read_only && let Err((place, errno)) = writable(&path, info) {
        return Err(refused(&format_args!(
            "no permission to write to {}: {}",
            place.display(),
            errno.desc()
        ))
        .hint("add --read-only: nothing is written there then, and what is missing is kept in the cache"));
    }
    Ok(Adopted { path, read_only, ..Adopted::default() })
}

/// Whether all files of a torrent in a folder may be written to, and those that aren't there be made.
///
/// # Errors
/// The first file or folder that may not, and what the system said.
fn writable(root: &Path, info: &Info) -> Result<(), (PathBuf, Errno)> {
    let mut folders = HashSet::new();
    for file in info.files.iter().filter(|file| file.kind == FileKind::Regular && file.size > 0) {
        let mut path = root.to_path_buf();
        path.extend(&file.path);
        // What isn't there is made in the lowest folder that is.
        let mut must = AccessFlags::W_OK;
        loop {
            if must.contains(AccessFlags::X_OK) && !folders.insert(path.clone()) {
                break;
            }
            match access(&path, must) {
                Ok(()) => break,
                Err(Errno::ENOENT) if path != root && path.pop() => {
                    must = AccessFlags::W_OK | AccessFlags::X_OK
                }
                Err(errno) => return Err((path, errno)),
            }
        }
    }
    Ok(())
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
    info: Arc<Info>,
    /// What was recorded of just this data, if there is such a record.
    record: Option<ResumeData>,
    /// Where else the data lies.
    adopted: Option<Adopted>,
    /// Adopted data that is never written to.
    below: Option<Arc<dyn Store>>,
    /// Where writing is allowed: our own folder, or adopted data.
    own: Arc<dyn Store>,
    /// The record that is being made.
    next: ResumeData,
}

/// What was found, and which pieces that are good are read from data that is never written to.
struct Findings {
    pieces: Vec<Found>,
    below: Vec<bool>,
}

impl Place {
    /// `given` is what the user named; without, it is what was recorded.
    fn open(dir: PathBuf, key: &str, info: Arc<Info>, given: Option<Adopted>) -> Result<Self, Failure> {
        let geometry = Arc::new(info.geometry.clone());
        // What is wrong with a record was logged. It is written anew.
        let mut record = resume::load(&dir).ok().flatten().filter(|record| record.is_of(key, &geometry));
        if let Some(given) = &given {
            if !given.read_only && record.as_ref().is_some_and(has_own) {
                let why = "the cache holds data of this torrent already, which would be lost";
                return Err(Failure::new(Exit::BadInput, given.path.display(), why).hint(format!(
                    "use both with --read-only, or remove that first with \"torrentfs cache remove {key}\""
                )));
            }
            // What was recorded tells nothing of other data.
            record = record.filter(|r| r.adopted.as_ref().is_some_and(|old| old.path == given.path));
        }
        let recorded = record.as_ref().and_then(|record| record.adopted.clone());
        if let (None, Some(lost)) = (&given, recorded.as_ref().filter(|adopted| !adopted.path.is_dir())) {
            let why = "the torrent's data was taken over from there, and isn't there any more";
            return Err(Failure::new(Exit::BadInput, lost.path.display(), why).hint(format!(
                "say where it is now with --data, or forget it with \"torrentfs cache remove {key}\""
            )));
        }
        let adopted = given.or(recorded);
        let files = adopt::stored_files(&info);
        let there = |path: &Path, writable| {
            let failed = |e| StorageError::from_io(path, "opening the folder", e);
            let volume = OsVolume::open(path).map_err(failed)?;
            FileStore::on(Arc::new(volume), Layout::Plain { writable }, geometry.clone(), &files)
        };
        let (below, own): (Option<Arc<dyn Store>>, Arc<dyn Store>) = match &adopted {
            Some(Adopted { path, read_only: false, .. }) => {
                (None, Arc::new(there(path, true).map_err(broken)?))
            }
            Some(Adopted { path, .. }) => (
                Some(Arc::new(there(path, false).map_err(broken)?)),
                Arc::new(FileStore::open(&dir, geometry.clone(), &files).map_err(broken)?),
            ),
            None => (None, Arc::new(FileStore::open(&dir, geometry.clone(), &files).map_err(broken)?)),
        };
        let last_used = record.as_ref().map_or(0, |record| record.last_used);
        let next = ResumeData {
            clean: true,
            last_used: if last_used > 0 { last_used } else { now_seconds() },
            ..ResumeData::new(key, &info)
        };
        Ok(Self { dir, info, record, adopted, below, own, next })
    }

    /// Hashes what is there.
    fn look(&self, shared: &Shared) -> Result<Findings, Failure> {
        let geometry = &self.info.geometry;
        let all: u64 = geometry.all_pieces().map(|piece| u64::from(geometry.piece_len(piece))).sum();
        let has_own = self.own.files().map_err(broken)?.iter().any(|file| file.allocated > 0);
        // Of data that lies in two places, what is in the one and what is in the other.
        let passes = 1 + u64::from(self.below.is_some() && has_own);
        shared.total.store(all * passes, Ordering::Relaxed);
        let hashed = |store: &dyn Store, before: u64| {
            let progress =
                |so_far: verify::Progress| shared.done.store(before + so_far.bytes, Ordering::Relaxed);
            let threads = verify::threads();
            verify::verify_all(store, geometry, &self.info.hashes, threads, &progress, &shared.stop)
                .map_err(broken)
        };
        let mut findings = Findings { pieces: Vec::new(), below: Vec::new() };
        let first = hashed(self.below.as_deref().unwrap_or(&*self.own), 0)?;
        let second = match &self.below {
            Some(_) if has_own => hashed(&*self.own, all)?,
            _ => Vec::new(),
        };
        let mut second = second.into_iter();
        let was_below = self.was_below()?;
        for (piece, first) in geometry.all_pieces().zip(first) {
            let above = if self.below.is_some() && has_own { second.next() } else { None };
            findings.below.push(match first {
                Some(checked) => self.below.is_some() && checked == Checked::Good,
                None => bit(&was_below, piece),
            });
            let recorded = self.record.as_ref().map(|record| bit(&record.complete, piece));
            findings.pieces.push(match (first, above) {
                (Some(Checked::Good), _) | (_, Some(Some(Checked::Good))) => Found::Good,
                (None, _) | (_, Some(None)) => Found::Unchecked(recorded == Some(true)),
                (Some(checked), None | Some(Some(_))) => self.judge(piece, checked, recorded),
            });
        }
        Ok(findings)
    }

    /// What a piece is that isn't good.
    fn judge(&self, piece: PieceIndex, checked: Checked, recorded: Option<bool>) -> Found {
        match (checked, recorded) {
            (Checked::Absent, _) => Found::Missing,
            // What a run that was killed had begun to write, and holes.
            (_, Some(false)) if self.adopted.is_none() => Found::Missing,
            (Checked::Bad, Some(false) | None) if self.is_blank(piece) => Found::Missing,
            _ => Found::Wrong,
        }
    }

    /// Whether a piece that isn't right has nothing but zeros, as a hole reads. What can't be read isn't blank.
    fn is_blank(&self, piece: PieceIndex) -> bool {
        let (mut at, geometry) = (self.info.geometry.piece_offset(piece), &self.info.geometry);
        let end = at + u64::from(geometry.piece_len(piece));
        let store = self.below.as_ref().unwrap_or(&self.own);
        let mut buffer = vec![0; BLANK];
        while at < end {
            let len = BLANK.min(usize::try_from(end - at).unwrap_or(BLANK));
            let Some(part) = buffer.get_mut(..len) else { return false };
            if store.read_at(at, part).is_err() || part.iter().any(|byte| *byte != 0) {
                return false;
            }
            at += len as u64;
        }
        true
    }

    /// Records what was found, and brings the files into the state that goes with it; see the module for the order.
    fn keep(&self, findings: &Findings) -> Result<(), Failure> {
        let (found, geometry) = (&findings.pieces, &self.info.geometry);
        let states = self.own.files().map_err(broken)?;
        let files: Vec<_> = (0..).map(FileIndex).zip(&states).collect();
        // What is above: everything, where nothing is below.
        let above: Vec<Found> = found
            .iter()
            .zip(&findings.below)
            .map(|(found, below)| if *below { Found::Missing } else { *found })
            .collect();
        let ours = self.adopted.as_ref().is_none_or(|adopted| adopted.read_only);
        if ours {
            for (file, _) in files.iter().filter(|(_, state)| state.finished) {
                if side(geometry, *file, &above) == Side::Lacking {
                    self.own.reopen(*file).map_err(broken)?;
                }
            }
        }
        let mut next = self.next.clone();
        next.complete = bits(found, |found| matches!(found, Found::Good | Found::Unchecked(true)));
        next.unknown = bits(found, |found| *found == Found::Unchecked(false));
        let may_have = self.may_have()?.into_iter().chain(std::iter::repeat(0));
        for (unknown, may_have) in next.unknown.iter_mut().zip(may_have) {
            *unknown &= may_have;
        }
        next.adopted = self.adopted.clone();
        if let Some(adopted) = next.adopted.as_mut().filter(|adopted| adopted.read_only) {
            adopted.below = bits(&findings.below, |below| *below);
        }
        // Somebody may have written it a moment ago: what is recorded outlives a power cut.
        for (piece, (_, is_below)) in (0..)
            .map(PieceIndex)
            .zip(found.iter().zip(&findings.below))
            .filter(|(_, (found, _))| **found == Found::Good)
        {
            let start = geometry.piece_offset(piece);
            let store = self.below.as_ref().filter(|_| *is_below).unwrap_or(&self.own);
            store.adopt(start..start + u64::from(geometry.piece_len(piece)));
        }
        self.below.as_ref().map_or(Ok(()), |below| below.sync()).map_err(broken)?;
        resume::persist(&*self.own, &self.dir, &next).map_err(broken)?;
        if ours {
            for (range, around) in worthless(geometry, &above) {
                match self.own.discard(range, around) {
                    // Where that can't be, it keeps its room until it is written anew.
                    Ok(()) | Err(StorageError::Unsupported { .. }) => {}
                    Err(error) => return Err(broken(error)),
                }
            }
            let finishing =
                files.iter().filter(|(_, state)| state.len.is_some_and(|len| len > 0) && !state.finished);
            for (file, _) in finishing {
                if side(geometry, *file, &above) == Side::Whole {
                    self.own.finish(*file).map_err(broken)?;
                }
            }
        }
        // How the files are from now on, so that it is noticed when somebody changes them.
        next.files = marks(&*self.own)?;
        if let (Some(below), Some(adopted)) = (&self.below, &mut next.adopted) {
            adopted.files = marks(&**below)?;
        }
        resume::save(&self.dir, &next).map_err(broken)
    }

    /// The pieces that may have data which nobody has looked at, before this.
    fn may_have(&self) -> Result<Vec<u8>, Failure> {
        match &self.record {
            Some(record) => Ok(record.unknown.clone()),
            None => {
                let files = self.below.as_ref().unwrap_or(&self.own).files().map_err(broken)?;
                Ok(resume::with_data(&self.info.geometry, &files))
            }
        }
    }

    /// The pieces that are read from data that is never written to, before this.
    fn was_below(&self) -> Result<Vec<u8>, Failure> {
        let all = vec![0xff; self.info.geometry.pieces().div_ceil(8) as usize];
        match (&self.below, self.record.as_ref().and_then(|record| record.adopted.as_ref())) {
            (None, _) => Ok(Vec::new()),
            (Some(_), None) => self.may_have(),
            (Some(_), Some(adopted)) if adopted.read_only => Ok(adopted.below.clone()),
            // It was all there was.
            (Some(_), Some(_)) => Ok(all),
        }
    }

    fn report(&self, findings: &Findings) -> Report {
        let (info, geometry, found) = (&self.info, &self.info.geometry, &findings.pieces);
        let data = self.adopted.as_ref().map(|adopted| (adopted.path.clone(), adopted.read_only));
        let key = self.next.info_hash.clone();
        let mut report = Report { name: info.name.clone(), key, data, ..Report::default() };
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

/// Whether a record tells of complete pieces in our own folder.
fn has_own(record: &ResumeData) -> bool {
    let elsewhere = |piece: usize| match &record.adopted {
        Some(adopted) if adopted.read_only => adopted.below.get(piece).copied().unwrap_or(0),
        Some(_) => 0xff,
        None => 0,
    };
    record.complete.iter().enumerate().any(|(at, bits)| bits & !elsewhere(at) != 0)
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
fn bits<T>(pieces: &[T], is_set: impl Fn(&T) -> bool) -> Vec<u8> {
    let mut bits = vec![0; pieces.len().div_ceil(8)];
    for (piece, _) in pieces.iter().enumerate().filter(|(_, found)| is_set(found)) {
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

/// By what files are recognized that somebody changed.
fn marks(store: &dyn Store) -> Result<Vec<FileMark>, Failure> {
    Ok(store.files().map_err(broken)?.into_iter().map(FileMark::from).collect())
}

/// Seconds since the epoch.
fn now_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
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
    #[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
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
    fn what_lies_in_our_own_folder_is_told() {
        let adopted = |read_only, below: &[u8]| {
            Some(Adopted { path: "/d".into(), read_only, below: below.to_vec(), files: Vec::new() })
        };
        let rows = [
            (None, [0, 0], false),
            (None, [0, 1], true),
            (adopted(false, &[]), [0xff, 0xff], false),
            (adopted(true, &[0xff, 0x0f]), [0xff, 0x0f], false),
            (adopted(true, &[0xff, 0x0f]), [0xff, 0x1f], true),
            (adopted(true, &[]), [0, 1], true),
        ];
        for (adopted, complete, want) in rows {
            let record =
                ResumeData { pieces: 16, complete: complete.to_vec(), adopted, ..ResumeData::default() };
            assert_eq!(has_own(&record), want, "{record:?}");
        }
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
