//! What lies in a cache folder: a list of its torrents, and the removal of one.
//!
//! **Goal.** Nobody has to guess what the folder is full of; and taking a torrent out of it leaves nothing behind
//! that claims to be here and isn't, whatever moment the program or the power is cut off at.
//!
//! **Parts.** [`scan`] reads what was recorded of each torrent and adds up what its files take. It takes no lock and
//! changes nothing, so it may be called while a mount has the folder. [`remove`] takes one torrent out.
//!
//! **Order of a removal.** First the record, durably: from then on nothing is taken for complete. Then the data, the
//! kept metadata last, so that what is left of a removal that was cut off still has a name. No link is followed
//! anywhere, nothing is entered that isn't a folder named like an info-hash, and what isn't the program's own in
//! there is left. Adopted data lies elsewhere, and only the record of it goes.
//!
//! **Not here.** Which torrents are to go, and locks: who removes has the folder, and the torrent isn't open.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::cache::{CacheError, Marks, is_key};
use super::resume::{self, ResumeData};
use crate::metainfo::Info;
use crate::metainfo::geometry::PieceIndex;

/// The files of the folder itself. What is written aside for them begins with [`ASIDE`].
const OWN: [&str; 4] = ["lock", "listen-port", "dht-nodes", super::spare::NAME];
/// Log lines of a mount in the background that have nowhere else to go: the file written to, and the one before it.
pub const LOGS: [&str; 2] = ["log", "log.1"];
const ASIDE: &str = ".value.new-";
/// In a torrent's folder: what says which pieces are here, in all its forms.
const RECORD: [&str; 3] = ["resume", "resume.bad", ".resume.new-"];
/// The metadata, and when the torrent came here.
const METADATA: [&str; 9] = [
    "torrent",
    "torrent.bad",
    ".torrent.new-",
    "added",
    "added.bad",
    ".added.new-",
    "tally",
    "tally.bad",
    ".tally.new-",
];
/// The folder of the data.
const DATA: &str = "data";

/// What lies in a cache folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Its torrents, the least recently used first.
    pub entries: Vec<Entry>,
    /// Names of what isn't the program's, sorted.
    pub unknown: Vec<OsString>,
    /// Whether somebody has the folder, and which process that is, if it told.
    pub owner: Option<Option<u32>>,
}

/// A torrent in a cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its folder.
    pub path: PathBuf,
    /// Its info-hash in hex, as the folder is called.
    pub key: String,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// Bytes of it that were recorded as complete.
    pub here: u64,
    /// Bytes of it in all, where that is known.
    pub size: Option<u64>,
    /// Bytes that everything in its folder takes on the disk, in whole blocks.
    pub allocated: u64,
    /// When it was used last, in seconds since the epoch.
    pub last_used: i64,
    /// How it is.
    pub state: State,
    /// The data of another client that is used in place, if so: it lies outside of the cache.
    pub adopted: Option<Elsewhere>,
    /// Whether a running program has it in hand.
    pub in_use: bool,
}

/// A folder outside of the cache that holds a torrent's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The folder.
    pub path: PathBuf,
    /// Whether it is never written to.
    pub read_only: bool,
}

/// How a torrent in the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of it is here.
    Complete,
    /// Not all of it is here.
    Partial,
    /// Nothing is recorded of it: what is there is checked when somebody wants it.
    Unchecked,
    /// Its record can't be used, or says more than its files hold, or its adopted data is gone: checked likewise.
    Damaged,
}

impl State {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Unchecked => "unchecked",
            Self::Damaged => "damaged",
        }
    }
}

/// What came of a removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Bytes on the disk that were given back.
    pub freed: u64,
    /// What isn't the program's and was left, with the folder that it lies in.
    pub left: Vec<PathBuf>,
}

/// Lists what lies in a cache folder; nothing when there is no such folder. Changes nothing and takes no lock. Waits
/// for the disk, which is looked at once for each file.
///
/// # Errors
/// [`CacheError::NotAFolder`], [`CacheError::Io`]. What can't be looked at within a torrent's folder isn't counted.
pub fn scan(cache: &Path) -> Result<Catalog, CacheError> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOTDIR) => CacheError::NotAFolder { path: cache.to_path_buf() },
        _ => CacheError::Io { path: cache.to_path_buf(), op: "reading", source: Arc::new(error) },
    };
    let mut catalog = Catalog::default();
    let marks = Marks::of(cache);
    catalog.owner = marks.owned().then(|| marks.owner());
    let entries = match std::fs::read_dir(cache) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(catalog),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match name.to_str() {
            Some(key) if is_folder && is_key(key) => catalog.entries.push(look(entry.path(), key, &marks)),
            Some(own)
                if !is_folder && (OWN.contains(&own) || LOGS.contains(&own) || own.starts_with(ASIDE)) => {}
            _ => catalog.unknown.push(name),
        }
    }
    catalog.entries.sort_by(|a, b| (a.last_used, &a.key).cmp(&(b.last_used, &b.key)));
    catalog.unknown.sort();
    Ok(catalog)
}

/// As [`scan`], one torrent alone; `None` when it isn't there. Waits for the disk.
pub fn entry(cache: &Path, key: &str) -> Option<Entry> {
    let path = cache.join(key);
    let there = is_key(key) && path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    there.then(|| look(path, key, &Marks::of(cache)))
}

/// Looks at one torrent's folder.
fn look(path: PathBuf, key: &str, marks: &Marks) -> Entry {
    let taken = usage(&path);
    let record = resume::peek(&path);
    let set_aside = path.join("resume.bad").symlink_metadata().is_ok();
    let recorded = record.as_ref().ok().and_then(Option::as_ref).filter(|data| data.info_hash == key);
    let mut entry = Entry {
        key: key.to_owned(),
        name: None,
        here: 0,
        size: None,
        allocated: taken.allocated,
        last_used: taken.changed,
        state: State::Unchecked,
        adopted: None,
        in_use: marks.in_use(key),
        path,
    };
    match recorded {
        Some(data) => {
            entry.name = Some(data.name.clone()).filter(|name| !name.is_empty());
            entry.size = Some(data.size).filter(|size| *size > 0);
            entry.here = here(data);
            if data.last_used > 0 {
                entry.last_used = data.last_used;
            }
            let complete = count(&data.complete) == data.pieces;
            entry.state = if complete { State::Complete } else { State::Partial };
            entry.adopted =
                data.adopted.as_ref().map(|a| Elsewhere { path: a.path.clone(), read_only: a.read_only });
        }
        None if record.is_err() || set_aside => entry.state = State::Damaged,
        None if taken.length == 0 => entry.state = State::Partial,
        None => {}
    }
    // Reading that is dearer, so only where the record doesn't tell, as an old one.
    if (entry.name.is_none() || entry.size.is_none())
        && let Some(info) = metadata(&entry.path)
    {
        entry.name.get_or_insert(info.name.clone());
        entry.size.get_or_insert(info.geometry.files().iter().map(|file| file.len).sum());
        if let Some(data) = recorded.filter(|data| data.pieces == info.geometry.pieces()) {
            let pieces = info.geometry.all_pieces().filter(|piece| is_set(&data.complete, *piece));
            entry.here = pieces.map(|piece| u64::from(info.geometry.piece_len(piece))).sum();
        }
    }
    let lost = match &entry.adopted {
        Some(adopted) => !adopted.path.is_dir(),
        None => entry.here > taken.length,
    };
    if lost {
        entry.state = State::Damaged;
    }
    entry
}

/// The kept metadata, if it is right.
fn metadata(path: &Path) -> Option<Info> {
    let raw = resume::peek_metadata(path).ok()??;
    Info::parse(&raw, None).ok()
}

fn is_set(bits: &[u8], piece: PieceIndex) -> bool {
    bits.get(piece.0 as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece.0 % 8)) != 0)
}

/// Set bits.
fn count(bits: &[u8]) -> u32 {
    bits.iter().map(|byte| byte.count_ones()).sum()
}

/// Bytes of the pieces that were recorded as complete. A record doesn't tell where files end: of a v2 torrent, whose
/// files end with short pieces, it is an upper bound until all is here.
fn here(data: &ResumeData) -> u64 {
    let length = u64::from(data.piece_length);
    let whole = u64::from(count(&data.complete)) * length;
    let last = PieceIndex(data.pieces.saturating_sub(1));
    let short = (u64::from(data.pieces) * length).saturating_sub(data.size);
    // More than a piece is lacking at the ends of files, not at the end.
    let short = if short < length && is_set(&data.complete, last) { short } else { 0 };
    (whole - short.min(whole)).min(data.size)
}

/// What the files below a folder take.
#[derive(Debug, Default)]
struct Usage {
    /// Bytes on the disk, in whole blocks, folders included.
    allocated: u64,
    /// The sum of the lengths of the files below `data`.
    length: u64,
    /// When something of the folder itself was changed last, in seconds since the epoch.
    changed: i64,
}

/// Adds up what everything below a torrent's folder takes, with no link followed. Goes from folder to folder by
/// descriptor: a torrent's paths may be longer than the system takes at once. What can't be looked at isn't counted.
fn usage(path: &Path) -> Usage {
    let mut usage = Usage::default();
    // Folders that are gone through, each in the one before: no more than a path has components.
    let mut open: Vec<_> =
        nix::fcntl::open(path, FOLDER, Mode::empty()).ok().and_then(list).into_iter().collect();
    while let Some((folder, entries)) = open.last_mut() {
        let Some(entry) = entries.next() else {
            open.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        let Ok(meta) = entry.metadata() else { continue };
        // In units of 512 bytes, whatever the file system's blocks are.
        usage.allocated += meta.blocks() * 512;
        let name = entry.file_name();
        let enter = || openat(folder.as_fd(), name.as_os_str(), FOLDER, Mode::empty()).ok();
        let below = if meta.is_dir() { enter().and_then(list) } else { None };
        let depth = open.len();
        if depth == 1 && !meta.is_dir() {
            usage.changed = usage.changed.max(meta.mtime());
        }
        if depth > 1 && meta.is_file() {
            usage.length += meta.len();
        }
        open.extend(below);
    }
    usage
}

/// Opens a folder, not through a link.
const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open folder with its entries.
fn list(folder: OwnedFd) -> Option<(OwnedFd, std::fs::ReadDir)> {
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()?;
    Some((folder, entries))
}

/// Takes a torrent out of a cache folder: its record, its data, its metadata, in this order, durably; `key` is its
/// info-hash in hex. Nothing happens when it isn't there. The caller has the folder's lock, and nobody has the
/// torrent open. Waits for the disk. After an error, or a kill in the middle, it can be called again.
///
/// # Errors
/// [`CacheError::BadName`] for what isn't an info-hash, [`CacheError::NotAFolder`] for what isn't a folder (a link to
/// one isn't), [`CacheError::NotWritable`], [`CacheError::Io`].
pub fn remove(cache: &Path, key: &str) -> Result<Removed, CacheError> {
    remove_steps(cache, key, |_| Ok(()))
}

/// A step of [`remove`]; tests fail each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Record,
    SyncRecord,
    Data,
    Metadata,
    Folder,
    SyncFolder,
}

fn remove_steps(
    cache: &Path,
    key: &str,
    mut before: impl FnMut(Step) -> io::Result<()>,
) -> Result<Removed, CacheError> {
    if !is_key(key) {
        return Err(CacheError::BadName { name: key.to_owned() });
    }
    let path = cache.join(key);
    let failed = |error| CacheError::from_io(&path, "removing", error);
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(CacheError::NotAFolder { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::default()),
        Err(error) => return Err(failed(error)),
    }
    let taken = usage(&path).allocated;
    let mut steps = || {
        before(Step::Record)?;
        unlink(&path, &RECORD)?;
        before(Step::SyncRecord)?;
        sync_folder(&path)?;
        before(Step::Data)?;
        match std::fs::remove_dir_all(path.join(DATA)) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => unlink(&path, &[DATA])?,
            done => gone(done)?,
        }
        before(Step::Metadata)?;
        unlink(&path, &METADATA)?;
        before(Step::Folder)?;
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => gone(done)?,
        }
        before(Step::SyncFolder)?;
        sync_folder(cache)
    };
    steps().map_err(failed)?;
    let left = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    Ok(Removed { freed: taken.saturating_sub(usage(&path).allocated), left })
}

/// Removes the files of a folder that are called as `names` say; one that ends in `-` is the beginning of names.
fn unlink(folder: &Path, names: &[&str]) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let is_meant = |name: &str| {
            names.iter().any(|meant| name == *meant || (meant.ends_with('-') && name.starts_with(meant)))
        };
        if name.to_str().is_some_and(is_meant) {
            gone(std::fs::remove_file(folder.join(name)))?;
        }
    }
    Ok(())
}

/// Takes what is gone already for removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes the names in a folder durable, where the file system can do that for folders.
fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL)) => Ok(()),
        done => gone(done),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::metainfo::TorrentBuilder;
    use crate::storage::cache::CacheDir;
    use std::os::unix::fs::symlink;

    const PIECE: u32 = 16 * 1024;

    /// A torrent in the cache, of which the first pieces were recorded; returns its key.
    fn put(cache: &CacheDir, name: &str, pieces: u32, complete: u32) -> String {
        let mut builder = TorrentBuilder::new(name, PIECE);
        let size = u64::from(pieces * PIECE) - 1;
        builder.single_file(size).piece_hashes((0..pieces).map(|n| [n as u8; 20]));
        let raw = builder.info().unwrap();
        let key = Info::parse(&raw, None).unwrap().info_hash.to_string();
        let dir = cache.torrent_dir(&key).unwrap();
        resume::save_metadata(&dir, &raw).unwrap();
        let mut bits = vec![0; pieces.div_ceil(8) as usize];
        for piece in 0..complete {
            bits[piece as usize / 8] |= 0x80 >> (piece % 8);
        }
        let data = ResumeData {
            info_hash: key.clone(),
            pieces,
            complete: bits,
            clean: true,
            ..ResumeData::default()
        };
        resume::save(&dir, &data).unwrap();
        std::fs::create_dir(dir.join(DATA)).unwrap();
        let file = File::create(dir.join(DATA).join(name)).unwrap();
        io::Write::write_all(&mut &file, &vec![7; (complete * PIECE) as usize]).unwrap();
        file.set_len(size).unwrap();
        key
    }

    fn entry(cache: &Path, key: &str) -> Entry {
        scan(cache).unwrap().entries.into_iter().find(|entry| entry.key == key).unwrap()
    }

    #[test]
    fn a_folder_is_listed_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(scan(&dir.path().join("absent")).unwrap(), Catalog::default());
        let cache = CacheDir::open(dir.path()).unwrap();
        cache.set_value("listen-port", "6881").unwrap();
        let whole = put(&cache, "whole", 4, 4);
        let part = put(&cache, "part", 100, 3);
        let cut = put(&cache, "cut", 4, 4);
        std::fs::write(dir.path().join(&cut).join("data/cut"), b"short").unwrap();
        let bad = put(&cache, "bad", 4, 4);
        std::fs::write(dir.path().join(&bad).join("resume"), b"?").unwrap();
        let lost = put(&cache, "lost", 4, 4);
        std::fs::remove_file(dir.path().join(&lost).join("resume")).unwrap();
        let empty = "e".repeat(40);
        std::fs::create_dir(dir.path().join(&empty)).unwrap();
        // None of this is ours, whatever it is called.
        std::fs::write(dir.path().join("f".repeat(40)), b"").unwrap();
        symlink("/", dir.path().join("a".repeat(64))).unwrap();
        std::fs::create_dir(dir.path().join("holidays")).unwrap();
        std::fs::create_dir(dir.path().join("d".repeat(39))).unwrap();

        let found = scan(dir.path()).unwrap();
        assert_eq!(found.owner, Some(Some(std::process::id())));
        let unknown = ["a".repeat(64), "d".repeat(39), "f".repeat(40), "holidays".into()];
        assert_eq!(found.unknown, unknown.map(OsString::from));
        assert_eq!(found.entries.len(), 6);
        let size = |pieces: u32| u64::from(pieces * PIECE) - 1;
        let rows = [
            (&whole, Some("whole"), size(4), Some(size(4)), State::Complete),
            (&part, Some("part"), size(4) - size(1), Some(size(100)), State::Partial),
            (&cut, Some("cut"), size(4), Some(size(4)), State::Damaged),
            (&bad, Some("bad"), 0, Some(size(4)), State::Damaged),
            (&lost, Some("lost"), 0, Some(size(4)), State::Unchecked),
            (&empty, None, 0, None, State::Partial),
        ];
        for (key, name, here, size, state) in rows {
            let entry = entry(dir.path(), key);
            assert_eq!(
                (entry.name.as_deref(), entry.here, entry.size, entry.state),
                (name, here, size, state),
                "{key}"
            );
            assert_eq!(entry.in_use, *key != empty, "those that the lock's owner asked for");
        }
        assert!(entry(dir.path(), &part).allocated < 100 * u64::from(PIECE), "holes take nothing");
        assert!(entry(dir.path(), &whole).allocated >= 4 * u64::from(PIECE));
        assert!(dir.path().join(&bad).join("resume").exists(), "nothing is set aside by looking");
        drop(cache);
        let found = scan(dir.path()).unwrap();
        assert_eq!(found.owner, None);
        assert!(found.entries.iter().all(|entry| !entry.in_use));
    }

    #[test]
    fn what_is_here_follows_from_the_record() {
        // Pieces, their length, the size, the bits, and the bytes.
        let rows: &[(u32, u32, u64, &[u8], u64)] = &[
            (4, 10, 40, &[0b1111_0000], 40),
            (4, 10, 35, &[0b1111_0000], 35),
            (4, 10, 35, &[0b1110_0000], 30),
            (4, 10, 35, &[0b0001_0000], 5),
            (4, 10, 31, &[0], 0),
            // v2: files end with short pieces, so only the sum is known.
            (4, 10, 12, &[0b1111_0000], 12),
            (4, 10, 12, &[0b1000_0000], 10),
            (4, 10, 12, &[0b1100_0000], 12),
            (0, 10, 0, &[], 0),
            // An old record.
            (4, 0, 0, &[0b1111_0000], 0),
        ];
        for (pieces, piece_length, size, complete, want) in rows {
            let data = ResumeData {
                pieces: *pieces,
                piece_length: *piece_length,
                size: *size,
                complete: complete.to_vec(),
                ..ResumeData::default()
            };
            assert_eq!(here(&data), *want, "{data:?}");
        }
    }

    #[test]
    fn adopted_data_is_told_and_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("a"), b"x").unwrap();
        let cache = CacheDir::open(dir.path()).unwrap();
        let key = "a".repeat(40);
        let top = cache.torrent_dir(&key).unwrap();
        let adopted = resume::Adopted {
            path: elsewhere.path().into(),
            read_only: true,
            below: vec![0x80],
            files: Vec::new(),
        };
        let data = ResumeData {
            info_hash: key.clone(),
            name: "theirs".into(),
            pieces: 1,
            piece_length: PIECE,
            size: 1,
            complete: vec![0x80],
            adopted: Some(adopted),
            last_used: 1_234,
            ..ResumeData::default()
        };
        resume::save(&top, &data).unwrap();
        let found = entry(dir.path(), &key);
        assert_eq!((found.name.as_deref(), found.here, found.last_used), (Some("theirs"), 1, 1_234));
        assert_eq!(found.adopted.unwrap(), Elsewhere { path: elsewhere.path().into(), read_only: true });
        assert_eq!(found.state, State::Complete, "though none of it is in the cache");
        remove(dir.path(), &key).unwrap();
        assert!(!top.exists() && elsewhere.path().join("a").exists());

        std::fs::create_dir(&top).unwrap();
        resume::save(&top, &data).unwrap();
        drop(elsewhere);
        assert_eq!(entry(dir.path(), &key).state, State::Damaged, "its data is gone");
    }

    #[test]
    fn paths_longer_than_the_system_takes_are_counted_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheDir::open(dir.path()).unwrap();
        let key = "c".repeat(40);
        let top = cache.torrent_dir(&key).unwrap();
        std::fs::create_dir(top.join(DATA)).unwrap();
        let name = "n".repeat(255);
        let mut at = OwnedFd::from(File::open(top.join(DATA)).unwrap());
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
            at = openat(&at, name.as_str(), FOLDER, Mode::empty()).unwrap();
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        let file = File::from(openat(&at, "leaf", flags, Mode::from_bits_truncate(0o444)).unwrap());
        io::Write::write_all(&mut &file, &[1; 1 << 20]).unwrap();
        drop((at, file));
        assert!(entry(dir.path(), &key).allocated >= 1 << 20);
        assert!(remove(dir.path(), &key).unwrap().freed >= 1 << 20);
        assert!(!top.exists());
    }

    #[test]
    fn removing_takes_what_is_ours_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("precious"), b"x").unwrap();
        let cache = CacheDir::open(dir.path()).unwrap();
        let key = put(&cache, "x", 8, 8);
        let other = put(&cache, "y", 8, 8);
        let top = dir.path().join(&key);
        symlink(elsewhere.path(), top.join("data/link")).unwrap();
        std::fs::write(top.join("resume.bad"), b"").unwrap();
        std::fs::write(top.join(".resume.new-abcdef"), b"").unwrap();
        std::fs::write(top.join("notes"), b"mine").unwrap();
        let taken = entry(dir.path(), &key).allocated;

        let removed = remove(dir.path(), &key).unwrap();
        assert_eq!(removed.left, [top.join("notes")]);
        assert!(removed.freed > 0 && removed.freed <= taken, "{removed:?} of {taken}");
        let names: Vec<_> = std::fs::read_dir(&top).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["notes"]);
        assert_eq!(std::fs::read(elsewhere.path().join("precious")).unwrap(), b"x");
        std::fs::remove_file(top.join("notes")).unwrap();
        assert_eq!(remove(dir.path(), &key).unwrap(), Removed::default());
        assert!(!top.exists());
        assert_eq!(remove(dir.path(), &key).unwrap(), Removed::default(), "what isn't there is removed");
        assert_eq!(entry(dir.path(), &other).state, State::Complete);

        // A folder that is none, data that is none, and names that are none.
        let link = dir.path().join("b".repeat(40));
        symlink(elsewhere.path(), &link).unwrap();
        assert!(matches!(remove(dir.path(), &"b".repeat(40)), Err(CacheError::NotAFolder { .. })));
        for bad in ["", "..", "../x", "lock", &"g".repeat(40), &format!("../{}", "a".repeat(37))] {
            assert!(matches!(remove(dir.path(), bad), Err(CacheError::BadName { .. })), "{bad}");
        }
        for data in ["link", "file"] {
            let key = put(&cache, data, 8, 0);
            let at = dir.path().join(&key).join(DATA);
            std::fs::remove_dir_all(&at).unwrap();
            match data {
                "link" => symlink(elsewhere.path(), &at).unwrap(),
                _ => std::fs::write(&at, b"").unwrap(),
            }
            assert_eq!(remove(dir.path(), &key).unwrap().left, [""; 0].map(PathBuf::from));
            assert!(!dir.path().join(&key).exists());
        }
        assert_eq!(std::fs::read(elsewhere.path().join("precious")).unwrap(), b"x");
    }

    #[test]
    fn s4_a_removal_that_is_cut_off_leaves_nothing_that_claims_to_be_here() {
        let steps =
            [Step::Record, Step::SyncRecord, Step::Data, Step::Metadata, Step::Folder, Step::SyncFolder];
        for (done, fail) in steps.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let cache = CacheDir::open(dir.path()).unwrap();
            let key = put(&cache, "x", 8, 8);
            let mut seen = Vec::new();
            let cut = remove_steps(dir.path(), &key, |step| {
                seen.push(step);
                if step == fail { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
            });
            assert!(matches!(cut, Err(CacheError::Io { .. })), "{fail:?}");
            assert_eq!(seen, steps[..=done]);
            let file = dir.path().join(&key).join("data/x");
            let record = resume::peek(&dir.path().join(&key)).unwrap();
            assert!(file.exists() || record.is_none(), "{fail:?}: recorded, and its data gone");
            assert_eq!(record.is_some(), fail == Step::Record, "{fail:?}");
            // It can be gone on with.
            remove(dir.path(), &key).unwrap();
            assert!(!dir.path().join(&key).exists());
        }
    }
}
