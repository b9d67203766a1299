//! Names from a torrent made safe for a file system. Pure and deterministic: the same torrent always gives
//! the same names, whatever else is mounted.
//!
//! One component at a time ([`component`]): invalid UTF-8 becomes U+FFFD; `/`, `\` and NUL become `_`; empty
//! ones, `.` and `..` are dropped, so a path can't be absolute or climb; what is over 255 bytes is cut at a
//! character, keeps its extension and gets a piece of the hash of the full name, so that two long names that
//! begin alike stay two.
//!
//! Then all paths together ([`layout`]): folders of one name are one folder; a file that would have the name
//! of a folder, or of an earlier file, becomes `name (1).ext` and so on. Files whose own name is free keep it,
//! wherever they stand in the list. Every step takes time proportional to the names, hostile or not.
//!
//! Symlinks ([`Tree`], [`relative`]): BEP 47 gives a target from the root of the torrent, libtorrent writes
//! it from the folder of the link. The first that is there counts; what climbs out or leads to nothing is
//! refused; the rest becomes relative to the link.

use std::collections::{HashMap, HashSet};

use super::id;
use crate::hash;

/// The longest name of Linux's file systems, in bytes.
pub const NAME_MAX: usize = 255;

/// Folders and file of one path. Linux itself takes 4,096 bytes of path; real trees have fewer than 20 levels.
pub const MAX_DEPTH: usize = 64;

/// What stands for a name of which nothing is left.
const NAMELESS: &str = "_";

/// An extension longer than this is no extension, but a dot in a sentence.
const MAX_EXTENSION: usize = 32;

/// One component made safe; none if it is empty, `.` or `..`.
pub fn component(raw: &[u8]) -> Option<String> {
    let name: String = String::from_utf8_lossy(raw)
        .chars()
        .map(|c| if matches!(c, '/' | '\\' | '\0') { '_' } else { c })
        .collect();
    match name.as_str() {
        "" | "." | ".." => None,
        _ if name.len() <= NAME_MAX => Some(name),
        _ => {
            let tag: String = id::hex(&hash::sha1(raw)).chars().take(8).collect();
            Some(insert(&name, &format!("~{tag}")))
        }
    }
}

/// One path made safe by itself; never empty.
pub fn path(raw: &[&[u8]]) -> Vec<String> {
    let mut safe: Vec<String> = raw.iter().filter_map(|raw| component(raw)).collect();
    if safe.is_empty() {
        safe.push(NAMELESS.to_owned());
    }
    safe
}

/// Makes paths, each already safe by itself, distinct: no two are equal and none is a folder of another.
/// Only the last component of a path changes. Paths for which `shown` is false (pad files) take part in
/// nothing and stay as they are.
pub fn layout(paths: &mut [Vec<String>], shown: impl Fn(usize) -> bool) {
    // A folder is named by a number, so that deep paths aren't written out again for every file.
    let mut folders: HashMap<(u32, String), u32> = HashMap::new();
    let mut homes = Vec::with_capacity(paths.len());
    for (i, path) in paths.iter().enumerate() {
        let mut home = 0;
        if shown(i) {
            for folder in path.iter().take(path.len().saturating_sub(1)) {
                let next = folders.len() as u32 + 1;
                home = *folders.entry((home, folder.clone())).or_insert(next);
            }
        }
        homes.push(home);
    }

    let mut taken: HashSet<(u32, String)> = folders.into_keys().collect();
    let mut later = Vec::new();
    for (i, (path, &home)) in paths.iter().zip(&homes).enumerate() {
        if let Some(name) = path.last().filter(|_| shown(i))
            && !taken.insert((home, name.clone()))
        {
            later.push((i, home));
        }
    }

    // How many of a name were tried, so that a million equal names don't try each other's numbers again.
    let mut tried: HashMap<(u32, String), u64> = HashMap::new();
    for (i, home) in later {
        let Some(name) = paths.get_mut(i).and_then(|path| path.last_mut()) else { continue };
        let count = tried.entry((home, name.clone())).or_insert(0);
        loop {
            *count += 1;
            let candidate = insert(name, &format!(" ({count})"));
            if taken.insert((home, candidate.clone())) {
                *name = candidate;
                break;
            }
        }
    }
}

/// Puts `mark` before the extension, and cuts the rest so that all fits.
fn insert(name: &str, mark: &str) -> String {
    let dot = name.rfind('.').filter(|&dot| dot > 0 && name.len() - dot <= MAX_EXTENSION);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let room = NAME_MAX.saturating_sub(mark.len() + extension.len());
    format!("{}{mark}{extension}", head(stem, room))
}

/// What there is in a torrent that a symlink may lead to.
#[derive(Debug, Default)]
pub struct Tree {
    /// By the number of the folder (the root is 0) and the name in it.
    entries: HashMap<(u32, String), Node>,
    folders: u32,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Folder(u32),
    File,
    Link,
}

impl Tree {
    /// Adds a file or symlink and its folders. A folder hides a file of the same name, as in [`layout`].
    pub fn add(&mut self, path: &[String], link: bool) {
        let Some((name, folder)) = path.split_last() else { return };
        let mut home = 0;
        for name in folder {
            let next = self.folders + 1;
            let entry = self.entries.entry((home, name.clone())).or_insert(Node::Folder(next));
            if !matches!(entry, Node::Folder(_)) {
                *entry = Node::Folder(next);
            }
            if let Node::Folder(number) = *entry {
                self.folders = self.folders.max(number);
                home = number;
            }
        }
        let node = if link { Node::Link } else { Node::File };
        self.entries.entry((home, name.clone())).or_insert(node);
    }

    /// Where the symlink at `link` leads, from the root of the torrent, made safe. None if that is out of the
    /// torrent, nothing, the link itself, or no path at all.
    pub fn resolve(&self, link: &[String], target: &[&[u8]]) -> Option<Vec<String>> {
        let folder = link.split_last().map_or(&[][..], |(_, folder)| folder);
        let bases = [&[][..], folder];
        bases.iter().find_map(|base| inside(base, target).filter(|to| to != link && self.has(to)))
    }

    fn has(&self, path: &[String]) -> bool {
        let mut home = 0;
        for (i, name) in path.iter().enumerate() {
            match self.entries.get(&(home, name.clone())) {
                Some(Node::Folder(number)) => home = *number,
                Some(Node::File) => return i + 1 == path.len(),
                // What is behind another link is that link's matter.
                Some(Node::Link) => return true,
                None => return false,
            }
        }
        true
    }
}

/// Follows `target` from the folder `base`, by the letters alone; none if it climbs above the root of the
/// torrent, is absolute, or is no path.
fn inside(base: &[String], target: &[&[u8]]) -> Option<Vec<String>> {
    let first = target.first()?;
    if first.is_empty() || first.first() == Some(&b'/') {
        return None;
    }
    let mut safe = base.to_vec();
    for part in target.iter().flat_map(|part| part.split(|&b| b == b'/')) {
        if part == b".." {
            safe.pop()?;
        } else if part.contains(&0) {
            return None;
        } else {
            safe.extend(component(part));
            if safe.len() > MAX_DEPTH {
                return None;
            }
        }
    }
    Some(safe)
}

/// What the symlink at `link` reads, so that it leads to `target`; both from the root of the torrent.
pub fn relative(link: &[String], target: &[String]) -> String {
    let folder = link.split_last().map_or(&[][..], |(_, folder)| folder);
    let common = folder.iter().zip(target).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", folder.len() - common);
    let down = target.iter().skip(common).map(String::as_str);
    let parts: Vec<&str> = up.chain(down).collect();
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// Text out of a torrent for one line of a message: control characters escaped, the middle left out when long.
pub fn printable(text: &str) -> String {
    const MOST: usize = 120;
    let clean: String = text.chars().flat_map(escaped).collect();
    if clean.len() <= MOST {
        return clean;
    }
    // The tail is what is behind a head that is as much shorter.
    let tail = clean.get(head(&clean, clean.len() - MOST / 2).len()..).unwrap_or_default();
    format!("{}…{tail}", head(&clean, MOST / 2))
}

/// As much of the beginning as fits in `room` bytes, cut at a character.
fn head(text: &str, room: usize) -> &str {
    let cut = (0..=room.min(text.len())).rev().find(|&cut| text.is_char_boundary(cut));
    cut.and_then(|cut| text.get(..cut)).unwrap_or_default()
}

/// Text out of a torrent in full, its control characters escaped, so that a terminal isn't driven by it.
pub fn escape(text: &str) -> String {
    text.chars().flat_map(escaped).collect()
}

/// Also the marks that turn the direction of writing, which make one name look like another.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let bad = c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let (plain, escape) = if bad { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escape.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn laid(paths: &[&[&str]]) -> Vec<String> {
        let mut paths: Vec<Vec<String>> =
            paths.iter().map(|p| path(&p.iter().map(|c| c.as_bytes()).collect::<Vec<_>>())).collect();
        layout(&mut paths, |_| true);
        paths.iter().map(|p| p.join("/")).collect()
    }

    #[test]
    fn components_are_made_safe() {
        for (raw, safe) in [
            (&b"plain.txt"[..], Some("plain.txt")),
            (b"", None),
            (b".", None),
            (b"..", None),
            (b"...", Some("...")),
            (b"/", Some("_")),
            (b"/etc/passwd", Some("_etc_passwd")),
            (b"..\\..\\x", Some(".._.._x")),
            (b"a\0b", Some("a_b")),
            (b"caf\xe9", Some("caf\u{fffd}")),
            ("日本 语".as_bytes(), Some("日本 语")),
        ] {
            assert_eq!(component(raw).as_deref(), safe, "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn long_names_are_cut_at_a_character_and_keep_their_extension() {
        let long = "é".repeat(200) + ".mkv";
        let cut = component(long.as_bytes()).unwrap();
        assert!(cut.len() <= NAME_MAX && cut.len() > NAME_MAX - 2, "{}", cut.len());
        assert!(cut.ends_with(".mkv") && cut.starts_with("éé"), "{cut}");
        let other = component(("é".repeat(201) + ".mkv").as_bytes()).unwrap();
        assert_ne!(cut, other);
        let no_extension = component(&[b'.'; 300]).unwrap();
        assert!(no_extension.len() <= NAME_MAX);
        assert_eq!(component(&[b'a'; 255]).unwrap().len(), 255);
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(
            laid(&[&["..", "..", "etc", "passwd"], &["", "x"], &[], &[".."]]),
            ["etc/passwd", "x", "_", "_ (1)"]
        );
    }

    #[test]
    fn equal_names_are_told_apart_and_free_names_are_kept() {
        let rows: &[(&[&[&str]], &[&str])] = &[
            (&[&["a.txt"], &["a.txt"], &["a.txt"]], &["a.txt", "a (1).txt", "a (2).txt"]),
            (&[&["a"], &["a"], &["a (1)"]], &["a", "a (2)", "a (1)"]),
            // A file with the name of a folder gives way, before or behind it.
            (&[&["a"], &["a", "b"]], &["a (1)", "a/b"]),
            (&[&["a", "b"], &["a"]], &["a/b", "a (1)"]),
            (&[&["a", "b"], &["a", "b", "c"], &["a"]], &["a/b (1)", "a/b/c", "a (1)"]),
            (&[&["x/y"], &["x_y"], &["x", "y"]], &["x_y", "x_y (1)", "x/y"]),
            (&[&[".profile"], &[".profile"]], &[".profile", ".profile (1)"]),
        ];
        for (paths, expected) in rows {
            assert_eq!(&laid(paths), expected);
        }
    }

    #[test]
    fn pad_files_take_no_names() {
        let mut paths =
            vec![vec!["p".to_owned()], vec!["p".to_owned()], vec!["p".to_owned(), "q".to_owned()]];
        layout(&mut paths, |i| i == 0);
        assert_eq!(paths[0], ["p"]);
    }

    #[test]
    fn half_a_million_equal_names_take_no_time() {
        let mut paths = vec![vec!["a".to_owned()]; 500_000];
        layout(&mut paths, |_| true);
        assert_eq!(paths[499_999], ["a (499999)"]);
    }

    #[test]
    fn links_lead_where_they_should() {
        let parts = |p: &'static str| p.split(' ').map(str::as_bytes).collect::<Vec<_>>();
        for (target, safe) in [
            ("a b", Some("a/b")),
            ("a .. b", Some("b")),
            ("a/../b", Some("b")),
            (".", Some("")),
            ("..", None),
            ("a .. .. b", None),
            ("/etc passwd", None),
            ("", None),
            (" etc", None),
            ("a\0b", None),
            ("a ../../etc", None),
        ] {
            assert_eq!(inside(&[], &parts(target)).map(|p| p.join("/")).as_deref(), safe, "{target:?}");
        }
        assert_eq!(inside(&[], &[]), None);
        let own = |p: &str| p.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        for (link, target, text) in [
            ("l", "f", "f"),
            ("d/l", "f", "../f"),
            ("d/l", "d/f", "f"),
            ("d/e/l", "d/f/g", "../f/g"),
            ("d/e/l", "", "../.."),
            ("l", "", "."),
            ("d/l", "d", "."),
        ] {
            assert_eq!(relative(&own(link), &own(target)), text, "{link} {target}");
        }
    }

    #[test]
    fn targets_count_from_the_root_or_else_from_the_link() {
        let own = |p: &str| p.split('/').map(str::to_owned).collect::<Vec<_>>();
        let mut tree = Tree::default();
        for (path, link) in
            [("f", false), ("a/f", false), ("a/g", false), ("h", false), ("a/d", true), ("a/l", true)]
        {
            tree.add(&own(path), link);
        }
        // The second column is what libtorrent 2.0.8 makes of them, but for what it points at itself.
        for (target, to) in [
            ("f", Some("f")),
            ("g", Some("a/g")),
            ("h", Some("h")),
            ("../h", Some("h")),
            ("a/g", Some("a/g")),
            ("a", Some("a")),
            ("d/behind/a/link", Some("a/d/behind/a/link")),
            ("nothing", None),
            ("h/not-a-folder", None),
            ("../../h", None),
            ("l", None),
            ("a/l", None),
            ("/f", None),
        ] {
            let parts: Vec<&[u8]> = vec![target.as_bytes()];
            let found = tree.resolve(&own("a/l"), &parts).map(|p| p.join("/"));
            assert_eq!(found.as_deref(), to, "{target}");
        }
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert!(printable(&"é".repeat(500)).len() < 130);
        assert_eq!(escape("x\u{202e}gpj.exe"), "x\\u{202e}gpj.exe");
    }

    proptest! {
        #[test]
        fn all_layouts_are_safe_and_distinct(raw in proptest::collection::vec(
            proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'/'), Just(b'.'), Just(0), Just(0xff)], 0..3),
                    Just(vec![b'x'; 255]), Just(vec![b'x'; 300]),
                ], 0..4),
            0..30,
        )) {
            let mut paths: Vec<Vec<String>> = raw
                .iter()
                .map(|p| path(&p.iter().map(Vec::as_slice).collect::<Vec<_>>()))
                .collect();
            layout(&mut paths, |_| true);
            let all: HashSet<&[String]> = paths.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(all.len(), paths.len());
            for p in &paths {
                for n in 1..p.len() {
                    prop_assert!(!all.contains(&p[..n]));
                }
                for name in p {
                    prop_assert!(!name.is_empty() && name.len() <= NAME_MAX && name != "." && name != "..");
                    prop_assert!(!name.contains(['/', '\0', '\\']));
                }
            }
        }
    }
}
