//! What is remembered of a torrent from one run to the next: which pieces are complete, and its metadata.
//!
//! **Goal.** What was fetched once is there after a crash, without hashing it all again, and nothing is ever
//! remembered that isn't so.
//!
//! **Parts.** [`ResumeData`] with [`save`] and [`load`]; [`believable`] drops bits whose data can't be there, and
//! doubts those of files that somebody else changed; [`persist`] is the only right order: data first, then the bits.
//! [`save_metadata`] and [`load_metadata`] keep what came through a magnet link, so that a known one mounts without a
//! network.
//!
//! **Flow.** Both are files in the torrent's folder of the cache: `resume` and `torrent`, written aside,
//! checksummed and renamed. A damaged or newer one is set aside as `.bad` with a warning: the pieces are then
//! unknown, not complete, and settled on demand.
//!
//! **Format.** The body of `resume` is a bencoded dictionary, version 2. Keys that aren't known are passed over. Version
//! 1 is still read: it has the info-hash, the number of pieces, the clean mark and the complete pieces, nothing else.
//!
//! **Not here.** When to persist, and whether to trust what was loaded: that is the torrent owner's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::sealed::ResumeProblem;
use super::sealed::{self, Kind};
use super::volume::{OsVolume, Volume};
use super::{FileState, StorageError, Store};
use crate::metainfo::bencode::{self, Encoder, Limits, Value};
use crate::metainfo::geometry::Geometry;
use crate::metainfo::info::Info;

const RESUME: Kind = Kind { name: "resume", magic: *b"TFresume", version: 2 };
const METADATA: Kind = Kind { name: "torrent", magic: *b"TFtorren", version: 1 };

/// What a record may cost to read: three strings of bits of the largest torrent, and no more structure than it
/// has, with room for what later versions add.
const LIMITS: Limits = Limits { size: 1 << 30, depth: 8, tokens: 4096 };

/// Bytes of a [`FileMark`] in a record: length and time, eight each, little-endian.
const MARK: usize = 16;
/// The length of a file that isn't there.
const NO_FILE: u64 = u64::MAX;

/// What is remembered of a torrent's pieces.
///
/// Bits are one per piece, the first in the highest bit of the first byte (as BEP 3 orders them); bits beyond the last
/// piece are 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResumeData {
    /// The torrent, in hex, as its folder is called.
    pub info_hash: String,
    /// Its name, as it is shown; empty when it isn't known.
    pub name: String,
    /// Number of its pieces.
    pub pieces: u32,
    /// Bytes in a piece; 0 when that isn't known.
    pub piece_length: u32,
    /// Bytes of all its files; 0 when that isn't known.
    pub size: u64,
    /// Pieces that are complete: their data was synced before this was written.
    pub complete: Vec<u8>,
    /// Pieces that have data which nobody has looked at; none of them is complete. Empty stands for none at all.
    pub unknown: Vec<u8>,
    /// Whether the program ended in good order after this was written. No bit depends on it.
    pub clean: bool,
    /// What its files were then, in the torrent's order; empty when that isn't known, and without the clean mark. Of
    /// files of our own where data was adopted to be read only.
    pub files: Vec<FileMark>,
    /// The data of somebody else that is used in place of our own.
    pub adopted: Option<Adopted>,
    /// When the torrent was used last, in seconds since the epoch; 0 when that isn't known.
    pub last_used: i64,
}

/// By what a file is recognized that somebody changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMark {
    /// Its length in bytes; `None` when it wasn't there.
    pub len: Option<u64>,
    /// When its content was changed last, in nanoseconds since the epoch; 0 when that means nothing.
    pub modified: i64,
}

impl From<FileState> for FileMark {
    fn from(state: FileState) -> Self {
        Self { len: state.len, modified: state.modified }
    }
}

impl FileMark {
    /// Whether the file is another one by now, or has another content.
    fn differs(self, state: FileState) -> bool {
        let timed = self.modified != 0 && state.modified != 0;
        self.len != state.len || timed && self.modified != state.modified
    }
}

/// Data that another client downloaded and that is used where it lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The folder that the torrent's files lie in, each at its path. Absolute.
    pub path: PathBuf,
    /// Whether nothing may be written there: what is fetched then lies in our own folder.
    pub read_only: bool,
    /// When read-only: the pieces that are read from there; all others are read from our own folder. Empty otherwise.
    pub below: Vec<u8>,
    /// When read-only: as [`ResumeData::files`], of the files there.
    pub files: Vec<FileMark>,
}

/// Bytes that the bits of so many pieces take.
fn bitfield_len(pieces: u32) -> usize {
    pieces.div_ceil(8) as usize
}

/// Whether these are bits of so many pieces, none set beyond the last.
fn is_bitfield(bits: &[u8], pieces: u32) -> bool {
    let spare = bitfield_len(pieces) as u32 * 8 - pieces;
    bits.len() == bitfield_len(pieces) && bits.last().is_none_or(|last| last.trailing_zeros() >= spare)
}

impl ResumeData {
    /// A record of a torrent of which nothing is here; `info_hash` in hex, as its folder is called.
    pub fn new(info_hash: &str, info: &Info) -> Self {
        let pieces = info.geometry.pieces();
        Self {
            info_hash: info_hash.to_owned(),
            name: info.name.clone(),
            pieces,
            piece_length: info.geometry.piece_length(),
            size: size(&info.geometry),
            complete: vec![0; bitfield_len(pieces)],
            ..Self::default()
        }
    }

    /// Whether this is a record of this torrent, as far as it tells. One that isn't is of no use.
    pub fn is_of(&self, info_hash: &str, geometry: &Geometry) -> bool {
        self.info_hash == info_hash
            && self.pieces == geometry.pieces()
            && (self.piece_length == 0 || self.piece_length == geometry.piece_length())
            && (self.size == 0 || self.size == size(geometry))
    }

    /// The body of its file; `None` if its bits aren't as many as its pieces.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let absent = |bits: &[u8]| bits.is_empty() || is_bitfield(bits, self.pieces);
        let below = self.adopted.as_ref().map_or(&[][..], |adopted| &adopted.below);
        if !is_bitfield(&self.complete, self.pieces) || !absent(&self.unknown) || !absent(below) {
            return None;
        }
        let mut out = Encoder::new();
        out.dict_begin();
        if let Some(adopted) = &self.adopted {
            out.key("adopted").dict_begin();
            if !adopted.below.is_empty() {
                out.key("below").bytes(&adopted.below);
            }
            if self.clean && !adopted.files.is_empty() {
                out.key("files").bytes(encoded(&adopted.files));
            }
            out.key("path").bytes(adopted.path.as_os_str().as_bytes());
            out.key("read-only").int(adopted.read_only.into());
            out.end();
        }
        out.key("clean").int(self.clean.into());
        out.key("complete").bytes(&self.complete);
        if self.clean && !self.files.is_empty() {
            out.key("files").bytes(encoded(&self.files));
        }
        out.key("info-hash").bytes(&self.info_hash);
        out.key("last-use").int(self.last_used);
        out.key("name").bytes(&self.name);
        out.key("piece-length").int(self.piece_length.into());
        out.key("pieces").int(self.pieces.into());
        out.key("size").int(i64::try_from(self.size).ok()?);
        if self.unknown.iter().any(|byte| *byte != 0) {
            out.key("unknown").bytes(&self.unknown);
        }
        out.end();
        Some(out.finish())
    }

    /// Reads the body of a file, of either version; `None` if it is neither. The first byte of version 1 is the length
    /// of an info-hash, which no dictionary begins with.
    pub fn decode(body: &[u8]) -> Option<Self> {
        match body.first()? {
            b'd' => Self::decode_dict(bencode::parse_with(body, LIMITS).ok()?),
            _ => Self::decode_first(body),
        }
    }

    fn decode_dict(dict: Value<'_>) -> Option<Self> {
        let text = |key| dict.get(key).map(|v| v.as_str().map(str::to_owned));
        let number = |key| dict.get(key).map_or(Some(0), Value::as_int);
        let pieces = u32::try_from(number("pieces")?).ok()?;
        let bits = |dict: Value<'_>, key| match dict.get(key) {
            Some(bits) => bits.as_bytes().filter(|bits| is_bitfield(bits, pieces)).map(<[u8]>::to_vec),
            None => Some(Vec::new()),
        };
        let clean = flag(dict.get("clean")?)?;
        let files = |dict: Value<'_>| match dict.get("files").filter(|_| clean) {
            Some(files) => marks(files.as_bytes()?),
            None => Some(Vec::new()),
        };
        let adopted = match dict.get("adopted") {
            Some(adopted) => Some(Adopted {
                path: PathBuf::from(OsStr::from_bytes(adopted.get("path")?.as_bytes()?)),
                read_only: flag(adopted.get("read-only")?)?,
                below: bits(adopted, "below")?,
                files: files(adopted)?,
            }),
            None => None,
        };
        let data = Self {
            info_hash: text("info-hash")??,
            name: text("name").unwrap_or_else(|| Some(String::new()))?,
            pieces,
            piece_length: u32::try_from(number("piece-length")?).ok()?,
            size: u64::try_from(number("size")?).ok()?,
            complete: bits(dict, "complete")?,
            unknown: bits(dict, "unknown")?,
            clean,
            files: files(dict)?,
            adopted,
            last_used: number("last-use")?,
        };
        is_bitfield(&data.complete, pieces).then_some(data)
    }

    fn decode_first(body: &[u8]) -> Option<Self> {
        let (hash_len, rest) = body.split_first()?;
        let (info_hash, rest) = rest.split_at_checked(usize::from(*hash_len))?;
        let (pieces, rest) = rest.split_first_chunk::<4>()?;
        let (clean, complete) = rest.split_first()?;
        let pieces = u32::from_le_bytes(*pieces);
        if !is_bitfield(complete, pieces) || *clean > 1 {
            return None;
        }
        Some(Self {
            info_hash: String::from_utf8(info_hash.to_vec()).ok()?,
            pieces,
            complete: complete.to_vec(),
            clean: *clean == 1,
            ..Self::default()
        })
    }
}

fn size(geometry: &Geometry) -> u64 {
    geometry.files().iter().map(|extent| extent.len).sum()
}

fn flag(value: Value<'_>) -> Option<bool> {
    match value.as_int()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn encoded(marks: &[FileMark]) -> Vec<u8> {
    let both = |mark: &FileMark| [mark.len.unwrap_or(NO_FILE).to_le_bytes(), mark.modified.to_le_bytes()];
    marks.iter().flat_map(both).flatten().collect()
}

fn marks(bytes: &[u8]) -> Option<Vec<FileMark>> {
    let (marks, rest) = bytes.as_chunks::<MARK>();
    let mark = |mark: &[u8; MARK]| {
        let (len, modified) = mark.split_at(MARK / 2);
        let len = u64::from_le_bytes(*len.first_chunk()?);
        let modified = i64::from_le_bytes(*modified.first_chunk()?);
        Some(FileMark { len: (len != NO_FILE).then_some(len), modified })
    };
    if rest.is_empty() { marks.iter().map(mark).collect() } else { None }
}

/// Syncs the store, then saves the bits: in that order, so that no bit is ever recorded whose data isn't safe.
/// `data` must be a snapshot of pieces that were written before this is called (an argument that is a value
/// is); pieces that complete meanwhile wait for the next time. Waits for the disk, maybe seconds: on a worker.
/// One at a time per torrent: an older snapshot that is saved last would undo a newer one.
///
/// # Errors
/// Those of [`Store::sync`] (then nothing is saved) and of [`save`] (then the old file stands).
pub fn persist(store: &dyn Store, dir: &Path, data: &ResumeData) -> Result<(), StorageError> {
    store.sync()?;
    save(dir, data)
}

/// Replaces the torrent's resume data in its folder `dir`, durably. Waits for the disk. [`persist`] is what
/// calls it, after a sync.
///
/// # Errors
/// [`StorageError::Full`] and [`StorageError::Io`]; the old data stand unless only the folder's sync failed.
pub fn save(dir: &Path, data: &ResumeData) -> Result<(), StorageError> {
    let opened = OsVolume::open(dir);
    save_in(&opened.map_err(|e| StorageError::from_io(&dir.join(RESUME.name), "saving", e))?, data)
}

/// As [`save`], in the root of a volume.
///
/// # Errors
/// As [`save`].
pub fn save_in(volume: &dyn Volume, data: &ResumeData) -> Result<(), StorageError> {
    let path = volume.path().join(RESUME.name);
    let Some(body) = data.encode() else {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the bits don't match the pieces");
        return Err(StorageError::from_io(&path, "saving", why));
    };
    sealed::write_in(volume, &RESUME, &body).map_err(|e| StorageError::from_io(&path, "saving", e))
}

/// Removes the torrent's resume data from its folder `dir`, durably. Waits for the disk.
///
/// # Errors
/// [`StorageError::Io`]; nothing is an error when there are none.
pub fn remove(dir: &Path) -> Result<(), StorageError> {
    sealed::remove(dir, &RESUME).map_err(|e| StorageError::from_io(&dir.join(RESUME.name), "removing", e))
}

/// The torrent's resume data from its folder `dir`, or `None` if there are none. Waits for the disk. The caller
/// asks [`ResumeData::is_of`], and lets [`believable`] look at the bits.
///
/// # Errors
/// [`ResumeProblem`], for which a warning was logged already; the torrent goes on as if there were none.
pub fn load(dir: &Path) -> Result<Option<ResumeData>, ResumeProblem> {
    match OsVolume::open(dir) {
        Ok(volume) => load_in(&volume),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let problem = ResumeProblem::Unreadable { path: dir.join(RESUME.name), source: Arc::new(error) };
            tracing::warn!("{problem}");
            Err(problem)
        }
    }
}

/// As [`load`], from the root of a volume.
///
/// # Errors
/// As [`load`].
pub fn load_in(volume: &dyn Volume) -> Result<Option<ResumeData>, ResumeProblem> {
    let Some(body) = sealed::read_in(volume, &RESUME)? else { return Ok(None) };
    match ResumeData::decode(&body) {
        Some(data) => Ok(Some(data)),
        None => {
            let path = volume.path().join(RESUME.name);
            let problem = ResumeProblem::Damaged { path, why: "its bits don't match its pieces" };
            Err(sealed::set_aside_in(volume, Path::new(RESUME.name), problem))
        }
    }
}

/// As [`load`], but it changes nothing: for those who look while somebody else may be writing.
///
/// # Errors
/// [`ResumeProblem`], not logged.
pub fn peek(dir: &Path) -> Result<Option<ResumeData>, ResumeProblem> {
    let Some(body) = sealed::peek(dir, &RESUME)? else { return Ok(None) };
    let damaged =
        || ResumeProblem::Damaged { path: dir.join(RESUME.name), why: "its bits don't match its pieces" };
    ResumeData::decode(&body).map(Some).ok_or_else(damaged)
}

/// As [`load_metadata`], but it changes nothing.
///
/// # Errors
/// [`ResumeProblem`], not logged.
pub fn peek_metadata(dir: &Path) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sealed::peek(dir, &METADATA)
}

/// Keeps metadata that came through a magnet link (any bytes, as the caller encodes them) in the torrent's
/// folder `dir`, durably. Waits for the disk.
///
/// # Errors
/// [`StorageError::Full`] and [`StorageError::Io`].
pub fn save_metadata(dir: &Path, metadata: &[u8]) -> Result<(), StorageError> {
    sealed::write(dir, &METADATA, metadata)
        .map_err(|e| StorageError::from_io(&dir.join(METADATA.name), "saving", e))
}

/// What [`save_metadata`] kept, or `None`. Waits for the disk. The caller checks its hash, as if it had come
/// from a peer.
///
/// # Errors
/// [`ResumeProblem`], for which a warning was logged already.
pub fn load_metadata(dir: &Path) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sealed::read(dir, &METADATA)
}

/// What can be believed of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Believed {
    /// Pieces that are complete.
    pub complete: Vec<u8>,
    /// Pieces that may have data; none of them is complete.
    pub unknown: Vec<u8>,
}

/// What can be believed of a record, with `files` as they are now ([`Store::files`]).
///
/// Each file that is missing or shorter than it should be takes the pieces in its missing part, always. With
/// the clean mark, a file whose length or time isn't what was recorded was changed by somebody else: its complete pieces
/// are unknown. Without that mark lengths and times mean nothing, since they weren't recorded after the last write.
/// Takes time for each piece and each file once. Pure.
pub fn believable(data: &ResumeData, geometry: &Geometry, files: &[FileState]) -> Believed {
    let pieces = geometry.pieces();
    let mut complete = fitted(&data.complete, pieces);
    let mut unknown = fitted(&data.unknown, pieces);
    let marks = if data.clean { &data.files[..] } else { &[] };
    for ((index, extent), state) in geometry.files().iter().enumerate().zip(stated(files)) {
        let len = state.len.unwrap_or(0);
        if let Some(missing) = extent.len.checked_sub(len) {
            let lost = geometry.pieces_of(extent.offset + len, missing);
            clear(&mut complete, lost.clone());
            clear(&mut unknown, lost);
        }
        if marks.get(index).is_some_and(|mark| mark.differs(state)) {
            for piece in geometry.pieces_of(extent.offset, extent.len).filter(|p| bit(&complete, *p)) {
                set(&mut unknown, piece);
            }
        }
    }
    for (complete, unknown) in complete.iter_mut().zip(&unknown) {
        *complete &= !unknown;
    }
    Believed { complete, unknown }
}

/// The pieces that may have data, for all that `files` tell: those that lie in files that are there, and long
/// enough for them. Pure.
pub fn with_data(geometry: &Geometry, files: &[FileState]) -> Vec<u8> {
    let mut bits = fitted(&vec![0xff; bitfield_len(geometry.pieces())], geometry.pieces());
    for (extent, state) in geometry.files().iter().zip(stated(files)) {
        let len = state.len.unwrap_or(0);
        if let Some(missing) = extent.len.checked_sub(len) {
            clear(&mut bits, geometry.pieces_of(extent.offset + len, missing));
        }
    }
    bits
}

/// The states of files, and after them those of files that nothing was said of.
fn stated(files: &[FileState]) -> impl Iterator<Item = FileState> {
    files.iter().copied().chain(std::iter::repeat(FileState::default()))
}

/// Bits of so many pieces: those that are too many are gone, those that are too few are 0.
fn fitted(bits: &[u8], pieces: u32) -> Vec<u8> {
    let mut bits = bits.to_vec();
    bits.resize(bitfield_len(pieces), 0);
    let spare = bitfield_len(pieces) as u32 * 8 - pieces;
    if let Some(last) = bits.last_mut() {
        *last &= 0xff << spare;
    }
    bits
}

fn bit(bits: &[u8], piece: u32) -> bool {
    bits.get(piece as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
}

fn set(bits: &mut [u8], piece: u32) {
    if let Some(byte) = bits.get_mut(piece as usize / 8) {
        *byte |= 0x80 >> (piece % 8);
    }
}

fn clear(bits: &mut [u8], pieces: std::ops::Range<u32>) {
    for piece in pieces {
        if let Some(byte) = bits.get_mut(piece as usize / 8) {
            *byte &= !(0x80 >> (piece % 8));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use std::io::IoSlice;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn data(pieces: u32) -> ResumeData {
        let mut complete = vec![0xa5; bitfield_len(pieces)];
        if let Some(last) = complete.last_mut() {
            *last &= 0xff << (complete_spare(pieces));
        }
        let others: Vec<u8> = complete.iter().map(|byte| !byte).collect();
        let unknown = if pieces == 9 { fitted(&others, pieces) } else { Vec::new() };
        let clean = pieces.is_multiple_of(2);
        let mark = |n: u32| FileMark { len: (n != 1).then_some(n.into()), modified: i64::from(n) - 1 };
        let adopted = Adopted {
            path: OsStr::from_bytes(b"/data/\xff odd").into(),
            read_only: pieces == 7,
            below: if pieces == 7 { vec![0x80] } else { Vec::new() },
            files: if pieces == 8 { vec![mark(1), mark(2)] } else { Vec::new() },
        };
        ResumeData {
            info_hash: "ab".repeat(20),
            name: "naïve [x]".into(),
            pieces,
            piece_length: 1 << 20,
            size: u64::from(pieces) << 20,
            complete,
            unknown,
            clean,
            files: if clean { (0..5).map(mark).collect() } else { Vec::new() },
            adopted: (pieces < 9).then_some(adopted),
            last_used: 1_700_000_000,
        }
    }

    fn complete_spare(pieces: u32) -> u32 {
        pieces.div_ceil(8) * 8 - pieces
    }

    #[test]
    fn o8_what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for pieces in [0, 1, 7, 8, 9, 1000, 333_333] {
            save(dir.path(), &data(pieces)).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(data(pieces)));
        }
        assert_eq!(load_metadata(dir.path()).unwrap(), None);
        save_metadata(dir.path(), b"d4:infoe").unwrap();
        assert_eq!(load_metadata(dir.path()).unwrap().as_deref(), Some(&b"d4:infoe"[..]));
        assert_eq!(load(dir.path()).unwrap(), Some(data(333_333)));
    }

    #[test]
    fn damage_costs_the_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resume");
        save(dir.path(), &data(100)).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] = !bytes[at];
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(load(dir.path()), Err(ResumeProblem::Damaged { .. })), "byte {at}");
            assert_eq!(load(dir.path()).unwrap(), None, "it was set aside");
        }
        save(dir.path(), &data(8)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(data(8)));
        // Sealed well, but not ours to understand.
        for body in [&b""[..], b"\x05ab", &[0, 9, 0, 0, 0, 1, 0xff], &[0, 9, 0, 0, 0, 1, 0xff, 0xff]] {
            sealed::write(dir.path(), &RESUME, body).unwrap();
            assert!(matches!(load(dir.path()), Err(ResumeProblem::Damaged { .. })), "{body:?}");
        }
        let dict = |inner: &str| format!("d5:cleani1e8:complete1:\u{7f}9:info-hash2:ab{inner}e").into_bytes();
        sealed::write(dir.path(), &RESUME, &dict("6:piecesi8e1:zd1:ai1ee")).unwrap();
        let expected = ResumeData {
            info_hash: "ab".into(),
            pieces: 8,
            complete: vec![0x7f],
            clean: true,
            ..ResumeData::default()
        };
        assert_eq!(load(dir.path()).unwrap(), Some(expected), "what isn't known is passed over");
        for inner in [
            "6:piecesi7e",
            "6:piecesi9e",
            "6:piecesi-8e",
            "6:piecesi8e4:sizei-1e",
            "6:piecesi8e7:unknown2:ab",
            "5:files3:abc6:piecesi8e",
            "7:adoptedd4:path1:/e6:piecesi8e",
            "7:adoptedd4:path1:/9:read-onlyi2ee6:piecesi8e",
            "",
        ] {
            sealed::write(dir.path(), &RESUME, &dict(inner)).unwrap();
            assert!(matches!(load(dir.path()), Err(ResumeProblem::Damaged { .. })), "{inner:?}");
        }
        sealed::write(dir.path(), &Kind { version: 3, ..RESUME }, b"new").unwrap();
        assert!(matches!(load(dir.path()), Err(ResumeProblem::Newer { version: 3, .. })));
        assert!(dir.path().join("resume.bad").exists());
    }

    #[test]
    fn bits_that_do_not_match_are_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = ResumeData { pieces: 9, ..data(8) };
        assert!(matches!(save(dir.path(), &wrong), Err(StorageError::Io { .. })));
        assert_eq!(load(dir.path()).unwrap(), None);
        let gone = save(&dir.path().join("absent"), &data(8));
        assert!(matches!(gone, Err(StorageError::Io { .. })));
    }

    #[test]
    fn version_1_is_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut body = vec![40];
        body.extend_from_slice("ab".repeat(20).as_bytes());
        body.extend_from_slice(&9u32.to_le_bytes());
        body.extend_from_slice(&[1, 0xff, 0x80]);
        sealed::write(dir.path(), &Kind { version: 1, ..RESUME }, &body).unwrap();
        let expected = ResumeData {
            info_hash: "ab".repeat(20),
            pieces: 9,
            complete: vec![0xff, 0x80],
            clean: true,
            ..ResumeData::default()
        };
        assert_eq!(load(dir.path()).unwrap().as_ref(), Some(&expected));
        let geometry = |piece: u32, size: u64| Geometry::contiguous(piece, &[size]);
        // It tells neither the length of a piece nor the size.
        assert!(expected.is_of(&"ab".repeat(20), &geometry(16, 9 * 16)));
        save(dir.path(), &expected).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(expected), "and written anew as the version of now");
    }

    #[test]
    fn a_record_of_something_else_is_told() {
        let info_hash = "ab".repeat(20);
        let data = ResumeData {
            info_hash: info_hash.clone(),
            pieces: 9,
            piece_length: 16,
            size: 140,
            complete: vec![0; 2],
            ..ResumeData::default()
        };
        let of = |hash: &str, piece, size| data.is_of(hash, &Geometry::contiguous(piece, &[size]));
        assert!(of(&info_hash, 16, 140));
        assert!(!of("ab", 16, 140) && !of(&info_hash, 16, 160) && !of(&info_hash, 16, 141));
        assert!(!of(&info_hash, 17, 140));
    }

    fn state(len: Option<u64>, modified: i64) -> FileState {
        FileState { len, modified, ..FileState::default() }
    }

    fn word(bits: &[u8]) -> u16 {
        u16::from_be_bytes([bits[0], bits[1]])
    }

    #[test]
    fn s1_missing_or_short_files_lose_their_bits() {
        // v1: files of 40, 0, 100 and 20 bytes in pieces of 16: 160 bytes, 10 pieces.
        let v1 = Geometry::contiguous(16, &[40, 0, 100, 20]);
        // v2: pieces 0-2 | 3-9 | 10-11.
        let v2 = Geometry::aligned(16, &[40, 0, 100, 20]);
        let full = [Some(40), Some(0), Some(100), Some(20)];
        let rows: &[(&Geometry, [Option<u64>; 4], u16)] = &[
            (&v1, full, 0b1111_1111_1100_0000),
            (&v1, [Some(99), None, Some(999), Some(21)], 0b1111_1111_1100_0000),
            (&v1, [Some(39), Some(0), Some(100), Some(20)], 0b1101_1111_1100_0000),
            (&v1, [None, Some(0), Some(100), Some(20)], 0b0001_1111_1100_0000),
            (&v1, [Some(40), Some(0), Some(8), Some(20)], 0b1110_0000_0100_0000),
            (&v1, [Some(40), Some(0), Some(100), None], 0b1111_1111_0000_0000),
            (&v2, full, 0b1111_1111_1111_0000),
            (&v2, [Some(39), Some(0), Some(100), Some(20)], 0b1101_1111_1111_0000),
            (&v2, [Some(40), Some(0), None, Some(16)], 0b1110_0000_0010_0000),
            (&v2, [None; 4], 0),
        ];
        for (geometry, lens, expected) in rows {
            let files = lens.map(|len| state(len, 5));
            for clean in [false, true] {
                // Whole or unknown, there is nothing where nothing is.
                for (complete, unknown) in [(0xffff_u16, 0_u16), (0, 0xffff), (0xf0f0, 0x0f0f)] {
                    let data = ResumeData {
                        pieces: geometry.pieces(),
                        complete: complete.to_be_bytes().to_vec(),
                        unknown: unknown.to_be_bytes().to_vec(),
                        clean,
                        ..ResumeData::default()
                    };
                    let believed = believable(&data, geometry, &files);
                    assert_eq!(word(&believed.complete), complete & expected, "{lens:?}");
                    assert_eq!(word(&believed.unknown), unknown & expected, "{lens:?}");
                }
            }
            assert_eq!(word(&with_data(geometry, &files)), *expected, "{lens:?}");
        }
        let of = |complete: &[u8]| ResumeData { complete: complete.to_vec(), ..ResumeData::default() };
        let files = full.map(|len| state(len, 5));
        assert_eq!(believable(&of(&[0xff]), &v1, &files).complete, [0xff, 0], "too few bits");
        assert_eq!(believable(&of(&[0xff; 9]), &v1, &files).complete, [0xff, 0xc0], "too many");
        assert_eq!(believable(&of(&[0xff; 2]), &v1, &[]).complete, [0, 0], "states of nothing");
        assert!(believable(&of(&[]), &Geometry::contiguous(16, &[]), &[]).complete.is_empty());
    }

    #[test]
    fn s1_files_changed_by_others_are_doubted_after_a_clean_end_only() {
        // Pieces 0-2 (the last shared), 2-8, 8-9.
        let geometry = Geometry::contiguous(16, &[40, 0, 100, 20]);
        let was = [state(Some(40), 7), state(Some(0), 0), state(Some(100), 7), state(Some(20), 7)];
        let with = |at: usize, len, modified| {
            let mut files = was;
            files[at] = state(len, modified);
            files
        };
        // The files now, and the pieces that are unknown then; all the others stay complete, but for `gone`.
        let rows: &[([FileState; 4], u16, u16)] = &[
            (was, 0, 0),
            (with(0, Some(40), 8), 0b1110_0000_0000_0000, 0),
            (with(0, Some(40), 6), 0b1110_0000_0000_0000, 0),
            (with(0, Some(41), 7), 0b1110_0000_0000_0000, 0),
            (with(0, Some(40), 0), 0, 0),
            (with(1, Some(9), 9), 0, 0),
            (with(2, Some(100), 8), 0b0011_1111_1000_0000, 0),
            // Bytes 0-19 of it are there: pieces 2 and most of 3.
            (with(2, Some(20), 7), 0b0010_0000_0000_0000, 0b0001_1111_1000_0000),
            (with(3, None, 0), 0, 0b0000_0000_1100_0000),
        ];
        for (files, doubted, gone) in rows {
            for clean in [true, false] {
                let data = ResumeData {
                    pieces: 10,
                    complete: vec![0xff, 0xc0],
                    clean,
                    files: was.map(FileMark::from).to_vec(),
                    ..ResumeData::default()
                };
                let believed = believable(&data, &geometry, files);
                let doubted = if clean { *doubted } else { 0 };
                assert_eq!(word(&believed.unknown), doubted, "{files:?}");
                assert_eq!(word(&believed.complete), 0xffc0 & !doubted & !gone, "{files:?}");
                // A record of no files compares none.
                let bare = ResumeData { files: Vec::new(), ..data };
                assert_eq!(word(&believable(&bare, &geometry, files).complete), 0xffc0 & !gone);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_believed_was_recorded_and_can_be_there(
            sizes in proptest::collection::vec(0u64..60, 0..12),
            aligned in any::<bool>(),
            lens in proptest::collection::vec(proptest::option::of(0u64..70), 12),
            times in proptest::collection::vec(1i64..3, 12),
            (complete, unknown) in (any::<[u8; 6]>(), any::<[u8; 6]>()),
            clean in any::<bool>(),
        ) {
            let geometry = if aligned { Geometry::aligned(16, &sizes) } else { Geometry::contiguous(16, &sizes) };
            let pieces = geometry.pieces();
            let files: Vec<_> = sizes.iter().zip(&lens).zip(&times).map(|((_, l), t)| state(*l, *t)).collect();
            let was = sizes.iter().map(|len| FileMark { len: Some(*len), modified: 1 }).collect();
            let (complete, unknown) = (complete.to_vec(), unknown.to_vec());
            let data = ResumeData { pieces, complete, unknown, clean, files: was, ..ResumeData::default() };
            let believed = believable(&data, &geometry, &files);
            prop_assert!(is_bitfield(&believed.complete, pieces) && is_bitfield(&believed.unknown, pieces));
            for piece in geometry.all_pieces() {
                let spans = || geometry.spans(geometry.piece_offset(piece), geometry.piece_len(piece).into());
                let there = spans().all(|s| {
                    files[s.file.0 as usize].len.is_some_and(|len| len >= s.offset + s.len)
                });
                let changed = clean && spans().any(|s| {
                    let (state, size) = (files[s.file.0 as usize], sizes[s.file.0 as usize]);
                    state.len != Some(size) || state.modified != 1
                });
                let (was_complete, was_unknown) = (bit(&data.complete, piece.0), bit(&data.unknown, piece.0));
                let complete = there && was_complete && !was_unknown && !changed;
                let unknown = there && (was_unknown || was_complete && changed);
                prop_assert_eq!(bit(&believed.complete, piece.0), complete, "piece {}", piece.0);
                prop_assert_eq!(bit(&believed.unknown, piece.0), unknown, "piece {}", piece.0);
                prop_assert_eq!(bit(&with_data(&geometry, &files), piece.0), there);
            }
        }
    }

    /// Counts syncs and fails them on demand.
    #[derive(Default)]
    struct Fake {
        syncs: AtomicUsize,
        failing: AtomicBool,
        saw: std::sync::OnceLock<std::path::PathBuf>,
    }

    impl Store for Fake {
        fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StorageError> {
            Ok(())
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
            Ok(())
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool, StorageError> {
            Ok(false)
        }
        fn sync(&self) -> Result<(), StorageError> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            if let Some(path) = self.saw.get() {
                assert!(!path.exists(), "the bits were saved before the data were synced");
            }
            if self.failing.load(Ordering::SeqCst) { Err(StorageError::Closed) } else { Ok(()) }
        }
        fn discard(&self, _: std::ops::Range<u64>, _: std::ops::Range<u64>) -> Result<(), StorageError> {
            Ok(())
        }
        fn files(&self) -> Result<Vec<crate::storage::FileState>, StorageError> {
            Ok(Vec::new())
        }
        fn close(&self) {}
    }

    #[test]
    fn s3_bits_are_saved_after_their_data_and_never_without() {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        fake.saw.set(dir.path().join("resume")).unwrap();
        fake.failing.store(true, Ordering::SeqCst);
        assert!(matches!(persist(&fake, dir.path(), &data(8)), Err(StorageError::Closed)));
        assert_eq!(load(dir.path()).unwrap(), None);
        fake.failing.store(false, Ordering::SeqCst);
        persist(&fake, dir.path(), &data(8)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(data(8)));
        assert_eq!(fake.syncs.load(Ordering::SeqCst), 2);
    }
}
