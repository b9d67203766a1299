//! The info dictionary (BEP 3, 47, 52): what is hashed, and what is in it. Pure.
//!
//! 1. Both versions' file lists are read into one raw form: components as they stand there, size, attributes.
//! 2. A hybrid must describe the same files twice; it then goes by v1 alone (its pad files included), so that
//!    it has one geometry and one set of hashes, and v2 adds the files' roots.
//! 3. Sizes are checked, and the geometry made: contiguous, or aligned for v2 without v1.
//! 4. Hashes must go with the geometry: v1 by their number, v2 by each file's layer hashing to its root.
//! 5. Names are made safe and distinct; bad symlinks are left out with a warning.
//!
//! Memory and time are bounded by the input: files, pieces and the text of paths have bounds of their own,
//! because a v2 file tree and shared piece layers say much in few bytes.
//!
//! Not here: trackers and everything else outside of the info dictionary (`mod.rs`).

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::bencode::{self, Value};
use super::error::{FileProblem, MetainfoError};
use super::geometry::{BLOCK_LEN, FileIndex, Geometry, PieceIndex};
use super::id::InfoHash;
use super::path;
use super::pieces::{FileHashes, PieceHashes};
use crate::hash::{self, Node};

/// No torrent that is shared has a tenth of it; the client's tables take some hundred bytes per file.
pub const MAX_FILES: usize = 2_000_000;

/// 16 million pieces are 16 TiB at 1 MiB; tables take some tens of bytes per piece.
pub const MAX_PIECES: u64 = 1 << 24;

/// 1 GiB: a piece is buffered by nobody, but its blocks are counted and it is hashed at one go.
pub const MAX_PIECE_LENGTH: i64 = 1 << 30;

/// What the paths may take whatever the size of the torrent, in bytes. More is allowed to a larger one.
const PATHS_BUDGET: usize = 32 << 20;

/// Times its own size that a torrent's paths may take. A v1 list, which spells out each path, stays below it
/// (3 bytes of `1:a` become a component of [`COMPONENT_COST`]).
const PATHS_FACTOR: usize = 12;

/// What one component takes besides its text: the `String` and the allocator's share.
const COMPONENT_COST: usize = 32;

/// BitComet's way of marking a pad file, from before BEP 47.
const BITCOMET_PAD: &[u8] = b"_____padding_file_";

/// What a torrent holds, checked.
#[derive(Debug, Clone)]
pub struct Info {
    /// Its name, made safe: that of the folder, or of the file of a single-file torrent.
    pub name: String,
    /// Its hashes, from the exact bytes.
    pub info_hash: InfoHash,
    /// Peers come from its trackers only (BEP 27).
    pub private: bool,
    /// All files in order, pad files and symlinks included; as many as the geometry has.
    pub files: Vec<FileEntry>,
    /// Where pieces and files lie.
    pub geometry: Geometry,
    /// What the pieces must hash to.
    pub hashes: PieceHashes,
    /// The exact bytes of the dictionary, which peers ask for (BEP 9).
    pub raw: Bytes,
    /// One file without a folder around it.
    pub single_file: bool,
    /// What was left out or mended; each a line.
    pub warnings: Vec<String>,
    /// See [`Info::raw_name`] and [`Info::raw_path`].
    unsafe_names: RawNames,
}

/// Names as they stand in the dictionary, where they aren't those that are shown.
#[derive(Debug, Clone, Default)]
struct RawNames {
    name: Option<Bytes>,
    paths: HashMap<FileIndex, Box<[Bytes]>>,
}

/// A file of a torrent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Made safe and distinct; relative to the torrent's root. One component for a single-file torrent.
    pub path: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
    /// BEP 47 attribute `x`.
    pub executable: bool,
    /// Root of its Merkle tree (v2, hybrid; none for an empty file).
    pub pieces_root: Option<Node>,
}

/// What a file is (BEP 47).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A file.
    Regular,
    /// Filling between files, zeros, not shown.
    Pad,
    /// A symbolic link.
    Symlink {
        /// What it reads: relative to the link, made safe, within the torrent.
        target: String,
    },
}

/// The piece layers of a `.torrent` (BEP 52): each file's root with the hashes of its pieces.
#[derive(Debug, Clone, Default)]
pub struct PieceLayers<'a> {
    by_root: HashMap<Node, &'a [u8]>,
}

impl<'a> PieceLayers<'a> {
    /// Reads the value of `piece layers`.
    ///
    /// # Errors
    /// It isn't a dictionary of 32-byte keys and strings of multiples of 32 bytes.
    pub fn read(value: Value<'a>) -> Result<Self, MetainfoError> {
        let mut by_root = HashMap::new();
        for (root, layer) in value.dict().ok_or(MetainfoError::BadPieceLayers)? {
            let layer = layer.as_bytes().filter(|layer| layer.len() % 32 == 0);
            match (<Node>::try_from(root), layer) {
                (Ok(root), Some(layer)) => by_root.entry(root).or_insert(layer),
                _ => return Err(MetainfoError::BadPieceLayers),
            };
        }
        Ok(Self { by_root })
    }
}

impl Info {
    /// Reads an info dictionary from its exact bytes. `layers` are those of the `.torrent` it stands in; none
    /// for metadata that came from peers (BEP 9), which is enough for v1 and hybrid torrents.
    ///
    /// # Errors
    /// What is wrong, on one line. [`MetainfoError::NeedsPieceLayers`] for a v2 torrent without layers.
    pub fn parse(raw: &[u8], layers: Option<&PieceLayers<'_>>) -> Result<Info, MetainfoError> {
        // Before the copy, so that what is too large is never copied.
        bencode::parse(raw)?;
        let raw = Bytes::copy_from_slice(raw);
        let dict = bencode::parse(&raw)?;
        if !dict.is_dict() {
            return Err(MetainfoError::NotDictionary("`info`"));
        }
        let mut warnings = Warnings::default();
        let versions = Versions::read(dict, &mut warnings)?;
        let info_hash = InfoHash {
            v1: versions.v1.then(|| hash::sha1(&raw)),
            v2: versions.v2.then(|| hash::sha256(&raw)),
        };
        let raw_name = text(dict, "name.utf-8", "name").unwrap_or_default();
        let name = path::component(raw_name).unwrap_or_else(|| {
            warnings.push(|| "it has no usable name; its info-hash stands in".to_owned());
            info_hash.to_string()
        });
        let piece_length = piece_length(dict, versions)?;
        let mut listing = Listing::read(dict, versions, raw_name, raw.len())?;
        listing.resolve_links(&mut warnings);

        let geometry = geometry(&listing.files, piece_length, versions)?;
        let v2 = v2_hashes(&raw, &listing.files, &geometry, layers, versions)?;
        let hashes = if versions.v1 { v1_hashes(&raw, dict, &geometry)? } else { PieceHashes::V2(v2) };
        let files = listing.entries(&name);
        let unsafe_names = listing.raw_names(&raw, raw_name, &name, &files);
        Ok(Info {
            files,
            name,
            unsafe_names,
            info_hash,
            private: dict.get("private").and_then(Value::as_int).is_some_and(|n| n != 0),
            geometry,
            hashes,
            raw: raw.clone(),
            single_file: listing.single_file,
            warnings: warnings.lines(),
        })
    }

    /// Its name as it stands in the dictionary, unsafe: what servers know it by. Empty if there is none.
    pub fn raw_name(&self) -> &[u8] {
        self.unsafe_names.name.as_deref().unwrap_or(self.name.as_bytes())
    }

    /// The components of a file's path as they stand in the dictionary, unsafe, from the torrent's folder. None for
    /// a single-file torrent, whose file has the torrent's name, and for a file that isn't there.
    pub fn raw_path(&self, file: FileIndex) -> impl Iterator<Item = &[u8]> {
        let files = if self.single_file { &[] } else { &self.files[..] };
        let safe = files.get(file.0 as usize).map(|file| &file.path);
        let raw = self.unsafe_names.paths.get(&file);
        let safe = safe.filter(|_| raw.is_none());
        let raw = raw.into_iter().flat_map(|raw| raw.iter().map(|part| &part[..]));
        raw.chain(safe.into_iter().flatten().map(|part| part.as_bytes()))
    }

    /// The sum of the sizes of all files, pad files included, without the gaps of a v2 torrent; bytes.
    pub fn total_size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Warnings, of which a hostile torrent could make millions.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    lines: Vec<String>,
    more: usize,
}

impl Warnings {
    /// Enough to see what is the matter.
    const MOST: usize = 20;

    /// Keeps the line, or counts it.
    pub(super) fn push(&mut self, line: impl FnOnce() -> String) {
        if self.lines.len() < Self::MOST {
            self.lines.push(line());
        } else {
            self.more += 1;
        }
    }

    /// The lines, the last saying how many there are besides.
    pub(super) fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} warnings more", self.more));
        }
        self.lines
    }
}

/// Which versions a dictionary has.
#[derive(Clone, Copy)]
struct Versions {
    v1: bool,
    v2: bool,
}

impl Versions {
    fn read(dict: Value<'_>, warnings: &mut Warnings) -> Result<Self, MetainfoError> {
        let v1 = dict.get("pieces").is_some();
        let expected = MetainfoError::WrongType { key: "meta version", expected: "a number" };
        let version = match dict.get("meta version") {
            Some(value) => value.as_int().ok_or(expected)?,
            None => 1,
        };
        match version {
            1 if v1 => Ok(Self { v1, v2: false }),
            1 if dict.get("file tree").is_some() => Err(MetainfoError::Missing("meta version")),
            1 => Err(MetainfoError::Missing("pieces")),
            2 => Ok(Self { v1, v2: true }),
            other if v1 => {
                warnings.push(|| format!("`meta version` is {other}, which is unknown; taken as v1"));
                Ok(Self { v1, v2: false })
            }
            other => Err(MetainfoError::MetaVersion(other)),
        }
    }
}

/// A file as it stands in the dictionary.
struct RawFile<'a> {
    path: Vec<&'a [u8]>,
    size: u64,
    attr: &'a [u8],
    /// `symlink path`, unread.
    symlink: Option<Value<'a>>,
    /// Where a symlink leads, once that is known.
    target: Option<Vec<String>>,
    root: Option<&'a Node>,
}

impl<'a> RawFile<'a> {
    fn has(&self, attribute: u8) -> bool {
        self.attr.contains(&attribute)
    }

    fn is_pad(&self) -> bool {
        self.has(b'p') || is_pad_name(&self.path)
    }

    fn is_link(&self) -> bool {
        self.has(b'l') && !self.is_pad()
    }

    /// The components of `symlink path`, which some write as one string.
    fn symlink_path(&self) -> Option<Vec<&'a [u8]>> {
        let value = self.symlink?;
        match value.list() {
            Some(parts) => parts.take(path::MAX_DEPTH * 2).map(Value::as_bytes).collect(),
            None => Some(vec![value.as_bytes()?]),
        }
    }

    fn fail(&self, problem: FileProblem) -> MetainfoError {
        MetainfoError::File { file: shown(&self.path), problem }
    }
}

fn is_pad_name(path: &[&[u8]]) -> bool {
    path.last().is_some_and(|name| name.starts_with(BITCOMET_PAD))
}

/// A raw path for a message.
fn shown(path: &[&[u8]]) -> String {
    let parts: Vec<_> = path.iter().map(|part| String::from_utf8_lossy(part)).collect();
    format!("\"{}\"", path::printable(&parts.join("/")))
}

/// Counts what the paths will take.
struct Budget {
    left: usize,
    all: usize,
}

impl Budget {
    fn new(raw: usize) -> Self {
        let all = PATHS_BUDGET.saturating_add(raw.saturating_mul(PATHS_FACTOR));
        Self { left: all, all }
    }

    fn take(&mut self, path: &[&[u8]]) -> Result<(), MetainfoError> {
        // A byte that isn't UTF-8 becomes three.
        let cost: usize = path.iter().map(|part| COMPONENT_COST + part.len().min(path::NAME_MAX)).sum();
        self.left = self.left.checked_sub(cost).ok_or(MetainfoError::PathsTooLarge(self.all))?;
        Ok(())
    }
}

/// The files of a torrent as they stand there.
struct Listing<'a> {
    files: Vec<RawFile<'a>>,
    single_file: bool,
}

impl<'a> Listing<'a> {
    fn read(dict: Value<'a>, versions: Versions, name: &'a [u8], raw: usize) -> Result<Self, MetainfoError> {
        let listing = match (versions.v1, versions.v2) {
            (true, false) => v1_files(dict, name, raw)?,
            (true, true) => {
                let mut listing = v1_files(dict, name, raw)?;
                merge(&mut listing.files, file_tree(dict, raw)?)?;
                listing
            }
            (false, _) => {
                let files = file_tree(dict, raw)?;
                let single_file = matches!(&files[..], [only] if only.path == [name]);
                Self { files, single_file }
            }
        };
        if listing.files.is_empty() { Err(MetainfoError::NoFiles) } else { Ok(listing) }
    }

    /// Finds where symlinks lead, and drops those that lead nowhere. One that has a size keeps its place, as
    /// filling.
    fn resolve_links(&mut self, warnings: &mut Warnings) {
        if !self.files.iter().any(RawFile::is_link) {
            return;
        }
        let mut tree = path::Tree::default();
        for file in self.files.iter().filter(|file| !file.is_pad()) {
            tree.add(&path::path(&file.path), file.is_link());
        }
        for file in self.files.iter_mut().filter(|file| file.is_link()) {
            let target = file.symlink_path();
            file.target = target.and_then(|target| tree.resolve(&path::path(&file.path), &target));
            if file.target.is_none() {
                warnings.push(|| {
                    format!("symlink {} leads out of the torrent or to nothing; left out", shown(&file.path))
                });
            }
        }
        let before = self.files.len();
        self.files.retain(|file| !file.is_link() || file.target.is_some() || file.size > 0);
        self.single_file &= self.files.len() == before;
    }

    /// What of the names isn't as it is shown. Pad files have none that matters.
    fn raw_names(&self, raw: &Bytes, raw_name: &[u8], name: &str, shown: &[FileEntry]) -> RawNames {
        let own = |part: &[u8]| raw.slice_ref(part);
        let mut paths = HashMap::new();
        let files = (0..).map(FileIndex).zip(self.files.iter().zip(shown));
        for (index, (file, entry)) in files.filter(|_| !self.single_file) {
            let same = file.path.iter().copied().eq(entry.path.iter().map(String::as_bytes));
            if !same && entry.kind != FileKind::Pad {
                paths.insert(index, file.path.iter().map(|part| own(part)).collect());
            }
        }
        RawNames { name: (raw_name != name.as_bytes()).then(|| own(raw_name)), paths }
    }

    /// The files with their names made safe and distinct. `name` is that of the torrent.
    fn entries(&self, name: &str) -> Vec<FileEntry> {
        let mut paths: Vec<Vec<String>> = if self.single_file {
            vec![vec![name.to_owned()]]
        } else {
            self.files.iter().map(|file| path::path(&file.path)).collect()
        };
        let pads: Vec<bool> = self
            .files
            .iter()
            .map(|file| file.is_pad() || (file.is_link() && file.target.is_none()))
            .collect();
        path::layout(&mut paths, |i| pads.get(i) == Some(&false));
        let files = self.files.iter().zip(paths).zip(pads);
        files
            .map(|((file, path), pad)| FileEntry {
                kind: match &file.target {
                    _ if pad => FileKind::Pad,
                    Some(target) => FileKind::Symlink { target: path::relative(&path, target) },
                    None => FileKind::Regular,
                },
                path,
                size: file.size,
                executable: file.has(b'x'),
                pieces_root: file.root.copied(),
            })
            .collect()
    }
}

/// The string under `better` if it is UTF-8, otherwise the one under `plain`.
fn text<'a>(dict: Value<'a>, better: &str, plain: &str) -> Option<&'a [u8]> {
    let better = dict.get(better).and_then(Value::as_str).filter(|text| !text.is_empty());
    better.map(str::as_bytes).or_else(|| dict.get(plain)?.as_bytes())
}

fn piece_length(dict: Value<'_>, versions: Versions) -> Result<u32, MetainfoError> {
    let value = dict.get("piece length").ok_or(MetainfoError::Missing("piece length"))?;
    let wrong = MetainfoError::WrongType { key: "piece length", expected: "a number" };
    let length = value.as_int().ok_or(wrong)?;
    let fail = |must| Err(MetainfoError::PieceLength { length, must });
    if length <= 0 {
        return fail("it must be more than 0");
    }
    if length > MAX_PIECE_LENGTH {
        return fail("it must be at most 1 GiB");
    }
    if versions.v2 && (length < i64::from(BLOCK_LEN) || length.count_ones() != 1) {
        return fail("it must be a power of two of at least 16 KiB in a v2 torrent");
    }
    u32::try_from(length).or_else(|_| fail("it must be at most 1 GiB"))
}

/// The v1 list of files, or the one file.
fn v1_files<'a>(dict: Value<'a>, name: &'a [u8], raw: usize) -> Result<Listing<'a>, MetainfoError> {
    let Some(list) = dict.get("files") else {
        if dict.get("length").is_none() {
            return Err(MetainfoError::Missing("length"));
        }
        let symlink = dict.get("symlink path");
        let mut file =
            RawFile { path: vec![name], size: 0, attr: attr(dict), symlink, target: None, root: None };
        file.size = size(dict).map_err(|problem| file.fail(problem))?;
        return Ok(Listing { files: vec![file], single_file: true });
    };
    let list = list.list().ok_or(MetainfoError::WrongType { key: "files", expected: "a list" })?;
    let mut budget = Budget::new(raw);
    let mut files = Vec::new();
    for (number, entry) in list.enumerate() {
        if number >= MAX_FILES {
            return Err(MetainfoError::TooManyFiles(MAX_FILES));
        }
        let fail = |problem| MetainfoError::File { file: format!("number {number}"), problem };
        if !entry.is_dict() {
            return Err(fail(FileProblem::NotDictionary));
        }
        let path = entry
            .get("path.utf-8")
            .and_then(strings)
            .filter(|path| !path.is_empty() && path.iter().all(|part| std::str::from_utf8(part).is_ok()))
            .or_else(|| entry.get("path").and_then(strings))
            .ok_or_else(|| fail(FileProblem::NoPath))?;
        let symlink = entry.get("symlink path");
        let mut file = RawFile { path, size: 0, attr: attr(entry), symlink, target: None, root: None };
        if file.path.len() > path::MAX_DEPTH {
            return Err(file.fail(FileProblem::TooDeep(path::MAX_DEPTH)));
        }
        budget.take(&file.path)?;
        file.size = match size(entry) {
            Err(FileProblem::NoLength) if file.has(b'l') && entry.get("length").is_none() => 0,
            other => other.map_err(|problem| file.fail(problem))?,
        };
        files.push(file);
    }
    Ok(Listing { files, single_file: false })
}

/// The v2 tree of files, in its order. Without recursion: the open folders stand on a stack.
fn file_tree<'a>(dict: Value<'a>, raw: usize) -> Result<Vec<RawFile<'a>>, MetainfoError> {
    let tree = dict.get("file tree").ok_or(MetainfoError::Missing("file tree"))?;
    let wrong = MetainfoError::WrongType { key: "file tree", expected: "a dictionary" };
    let mut open = vec![tree.dict().ok_or(wrong)?];
    let mut path: Vec<&[u8]> = Vec::new();
    let mut budget = Budget::new(raw);
    let mut files = Vec::new();
    while let Some(folder) = open.last_mut() {
        let Some((name, value)) = folder.next() else {
            open.pop();
            path.pop();
            continue;
        };
        path.push(name);
        let fail = |path: &[&[u8]], problem| Err(MetainfoError::File { file: shown(path), problem });
        let Some(entries) = value.dict() else {
            return fail(&path, FileProblem::NotDictionary);
        };
        if name.is_empty() {
            return fail(&path, FileProblem::FileAndFolder);
        }
        if path.len() > path::MAX_DEPTH {
            return fail(&path, FileProblem::TooDeep(path::MAX_DEPTH));
        }
        // The empty key sorts first, so only the first entry can be that of a file.
        let mut rest = entries.clone();
        let Some((b"", leaf)) = rest.next() else {
            open.push(entries);
            continue;
        };
        if rest.next().is_some() {
            return fail(&path, FileProblem::FileAndFolder);
        }
        if files.len() >= MAX_FILES {
            return Err(MetainfoError::TooManyFiles(MAX_FILES));
        }
        if !leaf.is_dict() {
            return fail(&path, FileProblem::NotDictionary);
        }
        budget.take(&path)?;
        let root = match leaf.get("pieces root").map(|root| root.as_bytes().unwrap_or_default()) {
            None => None,
            Some(root) => match root.first_chunk() {
                Some(node) if root.len() == 32 => Some(node),
                _ => return fail(&path, FileProblem::RootLength(root.len())),
            },
        };
        let size = match size(leaf) {
            Ok(size) => size,
            Err(FileProblem::NoLength) if attr(leaf).contains(&b'l') && leaf.get("length").is_none() => 0,
            Err(problem) => return fail(&path, problem),
        };
        let symlink = leaf.get("symlink path");
        files.push(RawFile { path: path.clone(), size, attr: attr(leaf), symlink, target: None, root });
        path.pop();
    }
    Ok(files)
}

fn strings(value: Value<'_>) -> Option<Vec<&[u8]>> {
    // No longer than what is refused, so that one path doesn't make a million components.
    value.list()?.take(path::MAX_DEPTH + 1).map(Value::as_bytes).collect()
}

fn attr<'a>(entry: Value<'a>) -> &'a [u8] {
    entry.get("attr").and_then(Value::as_bytes).unwrap_or_default()
}

fn size(entry: Value<'_>) -> Result<u64, FileProblem> {
    let length = entry.get("length").and_then(Value::as_int).ok_or(FileProblem::NoLength)?;
    u64::try_from(length).map_err(|_| FileProblem::NegativeLength(length))
}

/// Gives a hybrid's v1 files their roots; both lists must have the same files, of the same sizes. The order
/// may differ: v1 decides it.
fn merge<'a>(files: &mut [RawFile<'a>], v2_files: Vec<RawFile<'a>>) -> Result<(), MetainfoError> {
    let mut by_path: HashMap<Vec<&[u8]>, (u64, Option<&'a Node>)> =
        v2_files.into_iter().map(|file| (file.path, (file.size, file.root))).collect();
    for file in files.iter_mut().filter(|file| !file.is_pad()) {
        let fail = |what| Err(MetainfoError::HybridMismatch(format!("{} {what}", shown(&file.path))));
        match by_path.remove(&file.path) {
            None => return fail("is only in v1"),
            Some((size, _)) if size != file.size => return fail("has two sizes"),
            Some((_, root)) => file.root = root,
        }
    }
    // The smallest, so that the message doesn't depend on the order of a hash map.
    match by_path.into_keys().filter(|path| !is_pad_name(path)).min() {
        Some(path) => Err(MetainfoError::HybridMismatch(format!("{} is only in v2", shown(&path)))),
        None => Ok(()),
    }
}

/// The geometry, its numbers checked.
fn geometry(files: &[RawFile<'_>], piece_length: u32, versions: Versions) -> Result<Geometry, MetainfoError> {
    let step = u64::from(piece_length);
    let sizes: Vec<u64> = files.iter().map(|file| file.size).collect();
    let total = sizes.iter().try_fold(0u64, |sum, &size| sum.checked_add(size));
    let total = total.filter(|&total| i64::try_from(total).is_ok()).ok_or(MetainfoError::TotalTooLarge)?;
    // No overflow: a file has at most as many pieces as bytes, and the sum of those is checked.
    let aligned = || sizes.iter().map(|size| size.div_ceil(step)).sum();
    let pieces = if versions.v1 { total.div_ceil(step) } else { aligned() };
    if pieces > MAX_PIECES {
        return Err(MetainfoError::TooManyPieces { pieces, max: MAX_PIECES });
    }
    Ok(if versions.v1 {
        Geometry::contiguous(piece_length, &sizes)
    } else {
        Geometry::aligned(piece_length, &sizes)
    })
}

fn v1_hashes(raw: &Bytes, dict: Value<'_>, geometry: &Geometry) -> Result<PieceHashes, MetainfoError> {
    let pieces = dict.get("pieces").and_then(Value::as_bytes);
    let pieces = pieces.ok_or(MetainfoError::WrongType { key: "pieces", expected: "a string" })?;
    let (found, count) = (pieces.len() as u64, u64::from(geometry.pieces()));
    let expected = count * 20;
    if found != expected {
        return Err(MetainfoError::PiecesLength { found, expected, pieces: count });
    }
    Ok(PieceHashes::V1(raw.slice_ref(pieces)))
}

/// The v2 hashes of all files, their layers checked. With v1 beside them they aren't needed: what is there is
/// checked, and what is absent is no error.
fn v2_hashes(
    raw: &Bytes,
    files: &[RawFile<'_>],
    geometry: &Geometry,
    layers: Option<&PieceLayers<'_>>,
    Versions { v1, .. }: Versions,
) -> Result<Vec<FileHashes>, MetainfoError> {
    let step = u64::from(geometry.piece_length());
    let mut kept: HashMap<&Node, Bytes> = HashMap::new();
    let mut checked: HashSet<&Node> = HashSet::new();
    let mut hashes = Vec::new();
    let mut first = PieceIndex(0);
    for file in files.iter().filter(|file| file.size > 0) {
        let Some(root) = file.root else {
            if v1 {
                continue;
            }
            return Err(file.fail(FileProblem::NoRoot));
        };
        let pieces = file.size.div_ceil(step);
        let (roots, leaves) = if pieces == 1 {
            let blocks = file.size.div_ceil(u64::from(BLOCK_LEN));
            (raw.slice_ref(root), blocks.next_power_of_two() as u32)
        } else {
            let leaves = geometry.piece_length() / BLOCK_LEN;
            let layer = match layers.map(|layers| layers.by_root.get(root).copied()) {
                Some(Some(layer)) => layer,
                _ if v1 => continue,
                Some(None) => return Err(file.fail(FileProblem::NoLayer)),
                None => return Err(MetainfoError::NeedsPieceLayers),
            };
            let (found, expected) = (layer.len() as u64, pieces * 32);
            if found != expected {
                return Err(file.fail(FileProblem::LayerLength { found, expected }));
            }
            // Once per layer, however many files share it; the length was just seen to be theirs, too.
            if checked.insert(root) && hash::piece_layer_root(layer, leaves) != *root {
                return Err(file.fail(FileProblem::LayerMismatch));
            }
            if v1 {
                continue;
            }
            (kept.entry(root).or_insert_with(|| Bytes::copy_from_slice(layer)).clone(), leaves)
        };
        if !v1 {
            hashes.push(FileHashes { first, roots, leaves });
            first.0 += pieces as u32;
        }
    }
    Ok(hashes)
}
