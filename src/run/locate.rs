//! Which file of a torrent a path names. Pure.
//!
//! Paths are those of a mount: relative to the torrent's root, or with the torrent's name in front. Where both
//! readings lead somewhere the first one counts. Symbolic links are followed within the torrent.

use torrentfs_fs::tree::{NodeKind, Subtree};

/// Symbolic links followed at most, as in Linux: more are a loop.
const LINKS_MAX: u32 = 40;

/// Why a path names no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Astray {
    /// There is no such entry; this folder is the deepest that exists.
    Missing(u32),
    /// It is this folder.
    Folder(u32),
    /// A symbolic link on the way leads nowhere, or around in circles.
    Link,
}

/// The node of the file at `path`; without one, of the only file there is.
///
/// # Errors
/// See [`Astray`].
pub fn locate(tree: &Subtree, path: Option<&str>) -> Result<u32, Astray> {
    let Some(path) = path else {
        let is_file =
            |index: &u32| tree.node(*index).is_some_and(|n| matches!(n.kind, NodeKind::File { .. }));
        return match tree.files() {
            1 => (0..tree.len()).find(is_file).ok_or(Astray::Folder(0)),
            _ => Err(Astray::Folder(0)),
        };
    };
    let parts: Vec<&str> = components(path).collect();
    let below = parts.split_first().filter(|(first, _)| tree.node(0).is_some_and(|n| *n.name == ***first));
    match (walk(tree, &parts), below) {
        (Err(Astray::Missing(_)), Some((_, rest))) => walk(tree, rest),
        (found, _) => found,
    }
}

/// The path of a node below the torrent's root; empty for the root itself.
pub fn path_of(tree: &Subtree, mut index: u32) -> String {
    let mut names = Vec::new();
    while let Some(node) = tree.node(index)
        && index != 0
    {
        names.push(&*node.name);
        index = node.parent;
    }
    names.reverse();
    names.join("/")
}

/// The names in a folder, in order; none if it isn't one.
pub fn names(tree: &Subtree, folder: u32) -> impl ExactSizeIterator<Item = &str> {
    let children = match tree.node(folder).map(|node| &node.kind) {
        Some(NodeKind::Dir(children)) => children.as_slice(),
        _ => &[],
    };
    children.iter().map(|child| tree.node(*child).map_or("", |node| &node.name))
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn walk(tree: &Subtree, parts: &[&str]) -> Result<u32, Astray> {
    let mut at = 0;
    let mut links = 0;
    // What is left to walk, the next last; and whether a link said so.
    let mut left: Vec<(&str, bool)> = parts.iter().rev().map(|part| (*part, false)).collect();
    while let Some((part, of_link)) = left.pop() {
        let found = match part {
            // The root lies in itself, so going up from there is told apart.
            ".." if at == 0 => None,
            ".." => tree.node(at).map(|node| node.parent),
            name => tree.child(at, name),
        };
        match found.and_then(|index| Some((index, tree.node(index)?))) {
            Some((_, node)) if let NodeKind::Symlink(target) = &node.kind => {
                links += 1;
                if links > LINKS_MAX || target.starts_with('/') {
                    return Err(Astray::Link);
                }
                left.extend(components(target).rev().map(|part| (part, true)));
            }
            Some((index, _)) => at = index,
            None if of_link => return Err(Astray::Link),
            None => return Err(Astray::Missing(folder(tree, at))),
        }
    }
    match tree.node(at).map(|node| &node.kind) {
        Some(NodeKind::File { .. }) => Ok(at),
        Some(NodeKind::Dir(_)) => Err(Astray::Folder(at)),
        // A torrent that is nothing but a link.
        _ => Err(Astray::Link),
    }
}

/// A node if it is a folder, otherwise the one it lies in.
fn folder(tree: &Subtree, index: u32) -> u32 {
    match tree.node(index) {
        Some(node) if !matches!(node.kind, NodeKind::Dir(_)) => node.parent,
        _ => index,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use torrentfs_fs::tree::{Leaf, SubtreeBuilder};

    fn file() -> Leaf {
        Leaf::File { size: 1, executable: false, file: 0 }
    }

    fn link(target: &str) -> Leaf {
        Leaf::Symlink(target.into())
    }

    fn album() -> Subtree {
        let mut builder = SubtreeBuilder::folder("album", 0);
        for path in ["a.txt", "d/b.txt", "d/e/c.txt", "album/a.txt", "album/album"] {
            builder.add(&path.split('/').collect::<Vec<_>>(), file());
        }
        for (path, target) in [
            ("up", "d/e/../b.txt"),
            ("d/to-top", "../a.txt"),
            ("folder", "d/e"),
            ("broken", "d/none"),
            ("out", "../a.txt"),
            ("absolute", "/a.txt"),
            ("one", "other"),
            ("other", "one"),
        ] {
            builder.add(&path.split('/').collect::<Vec<_>>(), link(target));
        }
        builder.build()
    }

    #[test]
    fn paths_and_what_they_name() {
        let tree = album();
        let rows: &[(&str, Result<&str, &str>)] = &[
            ("a.txt", Ok("a.txt")),
            ("/a.txt", Ok("a.txt")),
            ("./d//b.txt", Ok("d/b.txt")),
            ("d/e/c.txt", Ok("d/e/c.txt")),
            // With the torrent's name in front, unless that is in the torrent as well.
            ("album/d/b.txt", Ok("d/b.txt")),
            ("album/a.txt", Ok("album/a.txt")),
            ("album/album", Ok("album/album")),
            ("album/album/a.txt", Ok("album/a.txt")),
            ("up", Ok("d/b.txt")),
            ("d/to-top", Ok("a.txt")),
            ("folder/c.txt", Ok("d/e/c.txt")),
            ("folder/../b.txt", Ok("d/b.txt")),
            ("", Err("folder ")),
            ("d", Err("folder d")),
            ("folder", Err("folder d/e")),
            ("none", Err("missing in ")),
            ("d/none/x", Err("missing in d")),
            ("d/b.txt/x", Err("missing in d")),
            ("folder/none", Err("missing in d/e")),
            ("../a.txt", Err("missing in ")),
            ("album/d/none", Err("missing in d")),
            ("broken", Err("link")),
            ("out", Err("link")),
            ("absolute", Err("link")),
            ("one", Err("link")),
        ];
        for (path, want) in rows {
            let got = match locate(&tree, Some(path)) {
                Ok(index) => Ok(path_of(&tree, index)),
                Err(Astray::Missing(index)) => Err(format!("missing in {}", path_of(&tree, index))),
                Err(Astray::Folder(index)) => Err(format!("folder {}", path_of(&tree, index))),
                Err(Astray::Link) => Err("link".into()),
            };
            assert_eq!(got.as_deref().map_err(String::as_str), *want, "{path}");
        }
        assert_eq!(locate(&tree, None), Err(Astray::Folder(0)));
        let d = tree.child(0, "d").unwrap();
        assert_eq!(names(&tree, d).collect::<Vec<_>>(), ["b.txt", "e", "to-top"]);
    }

    #[test]
    fn a_torrent_of_one_file_needs_no_path() {
        let single = SubtreeBuilder::single("film.mkv", 0, file());
        let mut builder = SubtreeBuilder::folder("film", 0);
        builder.add(&["d", "film.mkv"], file());
        builder.add(&["link"], link("d/film.mkv"));
        let folder = builder.build();
        let rows: &[(&Subtree, Option<&str>, Result<&str, Astray>)] = &[
            (&single, None, Ok("")),
            (&single, Some("film.mkv"), Ok("")),
            (&single, Some("other"), Err(Astray::Missing(0))),
            (&single, Some("film.mkv/x"), Err(Astray::Missing(0))),
            (&folder, None, Ok("d/film.mkv")),
            (&folder, Some("link"), Ok("d/film.mkv")),
            (&folder, Some("film/d/film.mkv"), Ok("d/film.mkv")),
            (&SubtreeBuilder::folder("empty", 0).build(), None, Err(Astray::Folder(0))),
            (&SubtreeBuilder::single("l", 0, link("l")), Some("l"), Err(Astray::Link)),
        ];
        for (tree, path, want) in rows {
            let got = locate(tree, *path).map(|index| path_of(tree, index));
            assert_eq!(got.as_deref(), want.as_ref().map(|p| *p), "{path:?}");
        }
    }
}
