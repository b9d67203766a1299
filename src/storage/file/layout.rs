//! Under which names a torrent's files stand. Pure.
//!
//! **Parts.** [`Layout`]: our own folder, or data that somebody else put there. [`Names`]: each file's own path, and the
//! one it has while it is incomplete.
//!
//! **Flow.** In our own folder a file is called `<name>.part` until it is whole, so that nobody takes its holes for
//! zeros. When that name is too long, or the torrent has something else of that name, it gets another that is
//! made of its name and its number, the same each time. Names that differ only in case count as the same here: there
//! are file systems where they are.
//!
//! **Not here.** Which of the two names a file has just now, and making names safe (metainfo's).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::metainfo::geometry::Geometry;
use crate::storage::StorageError;
use crate::storage::volume::bad_component;

/// The folder within the torrent's folder that the files lie in.
const DATA: &str = "data";

/// What an incomplete file's name ends with.
const PART: &str = ".part";

/// Bytes in a name, at most, on all common file systems (NAME_MAX).
const MAX_NAME: usize = 255;

/// One file of the torrent, as it is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its path below the data folder, one name each, made safe by metainfo. Not looked at when the file is a
    /// pad.
    pub path: Vec<String>,
    /// Whether it is a pad file (BEP 47): never stored, reads as zeros.
    pub pad: bool,
}

/// Where the files lie in a volume, and what may be done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The volume is the torrent's folder in the cache: files lie in `data/`, and are called `.part` until they are
    /// whole.
    Cache,
    /// The volume is a folder with data that somebody else put there: files lie in it under their own names and keep
    /// their permissions, and nothing is ever given back.
    Plain {
        /// Whether what is missing may be written there.
        writable: bool,
    },
}

/// Which of its names a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// The torrent's.
    Own,
    /// That of an incomplete file.
    Part,
}

/// The paths of a torrent's files.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) layout: Layout,
    files: Box<[StoredFile]>,
    /// Names of incomplete files that aren't the file's own with [`PART`].
    others: HashMap<u32, String>,
}

impl Names {
    /// # Errors
    /// [`StorageError::Layout`] for a path that isn't safe, or lists that don't match.
    pub(super) fn new(
        layout: Layout,
        geometry: &Geometry,
        files: &[StoredFile],
    ) -> Result<Self, StorageError> {
        if files.len() != geometry.files().len() {
            let index = files.len().min(geometry.files().len());
            return Err(StorageError::Layout { index, why: "the torrent's lists of files differ in length" });
        }
        for (index, (file, extent)) in files.iter().zip(geometry.files()).enumerate() {
            if file.pad {
                continue;
            }
            if file.path.is_empty() {
                return Err(StorageError::Layout { index, why: "its path is empty" });
            }
            if let Some(why) = file.path.iter().find_map(|name| bad_component(name)) {
                return Err(StorageError::Layout { index, why });
            }
            if i64::try_from(extent.len).is_err() {
                return Err(StorageError::Layout { index, why: "it is larger than any file can be" });
            }
        }
        let others = match layout {
            Layout::Cache => other_names(files),
            Layout::Plain { .. } => HashMap::new(),
        };
        Ok(Self { layout, files: files.into(), others })
    }

    pub(super) fn is_pad(&self, file: u32) -> bool {
        self.files.get(file as usize).is_none_or(|f| f.pad)
    }

    /// The folder of the volume that the files lie in; empty for the volume itself.
    pub(super) fn root(&self) -> &'static Path {
        Path::new(match self.layout {
            Layout::Cache => DATA,
            Layout::Plain { .. } => "",
        })
    }

    /// The folder a file lies in, and its own name there.
    pub(super) fn split(&self, file: u32) -> (&[String], &str) {
        let path = self.files.get(file as usize).map_or(&[][..], |f| &f.path);
        path.split_last().map_or((&[], ""), |(name, folders)| (folders, name))
    }

    /// The path of a folder of the torrent.
    pub(super) fn folder(&self, folders: &[String]) -> PathBuf {
        let mut path = self.root().to_path_buf();
        path.extend(folders);
        path
    }

    /// What a file is called in its folder while it is incomplete; `None` where there is no such name.
    pub(super) fn part_name(&self, file: u32) -> Option<String> {
        match self.layout {
            Layout::Plain { .. } => None,
            Layout::Cache => Some(match self.others.get(&file) {
                Some(name) => name.clone(),
                None => format!("{}{PART}", self.split(file).1),
            }),
        }
    }

    /// The path of a file under one of its names; its own where there is no other.
    pub(super) fn path(&self, file: u32, name: Name) -> PathBuf {
        let (folders, own) = self.split(file);
        let mut path = self.folder(folders);
        match (name, self.part_name(file)) {
            (Name::Part, Some(part)) => path.push(part),
            _ => path.push(own),
        }
        path
    }
}

/// The names of those incomplete files that can't just have [`PART`] added to their own.
fn other_names(files: &[StoredFile]) -> HashMap<u32, String> {
    // Nearly always there are none, so only what may be in the way is kept at first: names with that ending.
    let named_so = names_of(files, |name| name.ends_with(PART));
    let needing = |(index, file): (usize, &StoredFile)| {
        let name = file.path.last().filter(|_| !file.pad)?;
        let too_long = name.len() + PART.len() > MAX_NAME;
        (too_long || named_so.contains(&key(file, &format!("{name}{PART}")))).then_some(index as u32)
    };
    let needing: Vec<u32> = files.iter().enumerate().filter_map(needing).collect();
    if needing.is_empty() {
        return HashMap::new();
    }
    let mut taken = names_of(files, |_| true);
    let mut others = HashMap::new();
    for index in needing {
        let Some((file, name)) = files.get(index as usize).and_then(|f| Some((f, f.path.last()?))) else {
            continue;
        };
        for tries in 0.. {
            let end = format!("~{index}{}", "~".repeat(tries));
            let stem = cut(name, MAX_NAME.saturating_sub(end.len() + PART.len()));
            let (whole, part) = (format!("{stem}{end}"), format!("{stem}{end}{PART}"));
            // Neither a name of the torrent, nor what another file of it is called while incomplete.
            if !taken.contains(&key(file, &whole)) && taken.insert(key(file, &part)) {
                others.insert(index, part);
                break;
            }
        }
    }
    others
}

/// The paths of all files, and of the folders they lie in, whose last name is wanted (in lower case).
fn names_of(files: &[StoredFile], wanted: impl Fn(&str) -> bool) -> HashSet<String> {
    let mut names = HashSet::new();
    for file in files.iter().filter(|f| !f.pad) {
        for (depth, name) in file.path.iter().enumerate() {
            if wanted(&name.to_lowercase()) {
                names.insert(file.path.get(..=depth).unwrap_or_default().join("/").to_lowercase());
            }
        }
    }
    names
}

/// The path of something in the folder of `file`, as [`names_of`] gives it.
fn key(file: &StoredFile, name: &str) -> String {
    let folders = file.path.split_last().map_or(&[][..], |(_, folders)| folders);
    folders.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/").to_lowercase()
}

/// The beginning of `name`, `len` bytes at most, whole characters.
fn cut(name: &str, len: usize) -> &str {
    let end = (0..=len.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    name.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn named(names: &[&str]) -> Vec<StoredFile> {
        let path = |name: &str| name.split('/').map(str::to_owned).collect();
        names.iter().map(|name| StoredFile { path: path(name), pad: false }).collect()
    }

    fn names(layout: Layout, files: &[StoredFile]) -> Names {
        Names::new(layout, &Geometry::contiguous(16, &vec![5; files.len()]), files).unwrap()
    }

    /// The part names of files, in order.
    fn parts(files: &[&str]) -> Vec<String> {
        let names = names(Layout::Cache, &named(files));
        (0..files.len() as u32).map(|file| names.part_name(file).unwrap()).collect()
    }

    #[test]
    fn an_incomplete_file_has_a_name_of_its_own() {
        let rows: &[(&[&str], &[&str])] = &[
            (&["a"], &["a.part"]),
            (&["a", "d/a", "e/a"], &["a.part", "a.part", "a.part"]),
            // Taken by a file, by a folder, or by what differs in case.
            (&["a", "a.part"], &["a~0.part", "a.part.part"]),
            (&["a.part", "a"], &["a.part.part", "a~1.part"]),
            (&["a", "a.part/b"], &["a~0.part", "b.part"]),
            (&["a", "A.PART"], &["a~0.part", "A.PART.part"]),
            (&["É", "é.part"], &["É~0.part", "é.part.part"]),
            (&["d/a", "a.part"], &["a.part", "a.part.part"]),
            (&["d/a", "D/a.part"], &["a~0.part", "a.part.part"]),
            (&["a", "a.part", "a.part.part"], &["a~0.part", "a.part~1.part", "a.part.part.part"]),
            // The other name is taken as well: by a file, or by what a file is called while incomplete.
            (&["a", "a.part", "a~0.part"], &["a~0~.part", "a.part.part", "a~0.part.part"]),
            (&["a", "a.part", "a~0"], &["a~0~.part", "a.part.part", "a~0.part"]),
            (&["a", "a.part", "A~0", "a~0~"], &["a~0~~.part", "a.part.part", "A~0.part", "a~0~.part"]),
        ];
        for (files, expected) in rows {
            assert_eq!(parts(files), *expected, "{files:?}");
        }
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let fits = "n".repeat(250);
        let rows = [
            ("n".repeat(250), format!("{fits}.part")),
            ("n".repeat(251), format!("{}~0.part", "n".repeat(248))),
            ("n".repeat(255), format!("{}~0.part", "n".repeat(248))),
            // Two bytes each: 127 of them, and 124 when cut.
            ("é".repeat(127), format!("{}~0.part", "é".repeat(124))),
            (format!("x{}", "é".repeat(127)), format!("x{}~0.part", "é".repeat(123))),
            ("😀".repeat(63), format!("{}~0.part", "😀".repeat(62))),
        ];
        for (name, expected) in rows {
            assert!(expected.len() <= MAX_NAME);
            assert_eq!(parts(&[&name]), [expected]);
        }
        // Those that are the same when cut differ by number.
        let (a, b) = (format!("{}a", "n".repeat(254)), format!("{}b", "n".repeat(254)));
        let both = parts(&[&a, &b]);
        assert_ne!(both[0], both[1]);
        assert!(both.iter().all(|name| name.len() == MAX_NAME), "{both:?}");
    }

    #[test]
    fn no_two_names_of_a_torrent_are_the_same() {
        // Everything that could be mistaken, all at once.
        let ends = ["", ".part", ".part.part", "~0", "~0.part", "~1", "~1~.part", "~4.part", ".PART"];
        let files: Vec<String> =
            ["a", "A", "d/a"].iter().flat_map(|stem| ends.map(|end| format!("{stem}{end}"))).collect();
        let files = named(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let names = names(Layout::Cache, &files);
        let mut seen = HashSet::new();
        for file in 0..files.len() as u32 {
            assert!(seen.insert(names.path(file, Name::Own)));
        }
        let own: HashSet<String> = seen.iter().map(|path| path.to_str().unwrap().to_lowercase()).collect();
        for file in 0..files.len() as u32 {
            let part = names.path(file, Name::Part);
            assert!(!own.contains(&part.to_str().unwrap().to_lowercase()), "{part:?}");
            assert!(seen.insert(part.clone()), "{part:?}");
        }
    }

    #[test]
    fn pads_are_in_nobodys_way_and_adopted_data_has_its_own_names() {
        let mut files = named(&["a", "a.part"]);
        files[1].pad = true;
        let cache = names(Layout::Cache, &files);
        assert_eq!(cache.part_name(0).unwrap(), "a.part");
        assert_eq!(cache.path(0, Name::Own), Path::new("data/a"));
        assert_eq!(cache.path(0, Name::Part), Path::new("data/a.part"));
        let plain = names(Layout::Plain { writable: true }, &named(&["d/a", "d/a.part"]));
        assert_eq!(plain.part_name(0), None);
        assert_eq!(plain.path(0, Name::Part), Path::new("d/a"));
        assert_eq!(plain.path(1, Name::Own), Path::new("d/a.part"));
    }
}
