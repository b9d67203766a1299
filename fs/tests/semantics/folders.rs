//! Folders: their order, their offsets, and what becomes of them when torrents come and go.

use std::collections::BTreeSet;

use torrentfs_fs::attr::Kind;

use super::view::{Entry, Listing};
use super::{MANY, TREE, World, until};

/// The rest of a listing.
fn rest(listing: &mut dyn Listing) -> Vec<Entry> {
    std::iter::from_fn(|| listing.next().unwrap()).collect()
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.as_str()).collect()
}

pub fn order(world: &World<'_>) {
    for folder in ["", "semantics", "semantics/folder", "semantics/folder/inner"] {
        let entries = rest(&mut *world.view.listing(folder).unwrap());
        assert_eq!(names(&entries)[..2], [".", ".."]);
        let names = names(&entries[2..]);
        let sorted: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names, sorted.into_iter().collect::<Vec<_>>(), "{folder:?}");
        for entry in &entries[2..] {
            let path = format!("{folder}/{}", entry.name);
            assert_eq!(world.stat(path.trim_start_matches('/')).kind, entry.kind, "{path}");
        }
    }
    let entries = rest(&mut *world.view.listing("semantics").unwrap());
    let kind = |name: &str| entries.iter().find(|entry| entry.name == name).map(|entry| entry.kind);
    assert_eq!(kind("link"), Some(Kind::Symlink));
    assert_eq!((kind("folder"), kind("empty")), (Some(Kind::Dir), Some(Kind::File)));
    assert!(names(&entries).len() > TREE.len() / 2);
}

pub fn offsets(world: &World<'_>) {
    for folder in ["semantics", ""] {
        let mut listing = world.view.listing(folder).unwrap();
        let all = rest(&mut *listing);
        assert!(all.len() > 3);
        // From the last to the first, and each twice.
        for at in (0..all.len()).rev().flat_map(|at| [at, at]) {
            listing.seek(all[at].next);
            assert_eq!(rest(&mut *listing), all[at + 1..], "after {:?}", all[at].name);
        }
        listing.seek(0);
        assert_eq!(rest(&mut *listing), all, "rewound");
        // At its end it stays there.
        assert_eq!(listing.next(), Ok(None));
    }
}

/// Torrents that are there at first, and as many that come.
const COMING: usize = 30;

pub fn while_it_changes(world: &World<'_>) {
    let torrent = |number: usize| format!("listed {number:03}");
    let shown = |names: &[&str]| {
        names
            .iter()
            .filter(|name| name.starts_with("listed"))
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    let present = || shown(&world.view.list("").unwrap().iter().map(String::as_str).collect::<Vec<_>>());
    // Every second one, and later those between.
    let first: Vec<String> = (0..COMING).map(|number| torrent(2 * number)).collect();
    let later: Vec<String> = (0..COMING).map(|number| torrent(2 * number + 1)).collect();
    world.control.add(&first);
    until("all show", || present() == first);
    let mut listing = world.view.listing("").unwrap();
    let mut seen: Vec<Entry> = (0..10).map(|_| listing.next().unwrap().unwrap()).collect();
    world.control.remove(&first[..COMING / 2]);
    world.control.add(&later);
    let mut after = [&first[COMING / 2..], &later[..]].concat();
    after.sort();
    until("the others show", || present() == after);
    let offset = seen.last().unwrap().next;
    seen.extend(rest(&mut *listing));
    assert_eq!(shown(&names(&seen)), first, "as it was at the beginning");
    listing.seek(offset);
    assert_eq!(names(&rest(&mut *listing)), names(&seen[10..]), "from an offset of before");
    listing.seek(0);
    assert_eq!(shown(&names(&rest(&mut *listing))), after, "rewound");
    world.control.remove(&after);
    until("all are gone", || present().is_empty());
}

pub fn many_files(world: &World<'_>) {
    let names = world.view.list("many/d000").unwrap();
    assert_eq!(names.len(), MANY);
    assert!(names.iter().enumerate().all(|(number, name)| *name == format!("file {number:06}")));
    for number in (0..MANY).step_by(997) {
        assert_eq!(world.stat(&format!("many/d000/file {number:06}")).size, 1);
    }
}

pub fn opened(world: &World<'_>) {
    for path in ["semantics/complete.bin", "single.bin"] {
        assert_eq!(world.view.open(path, libc::O_RDONLY | libc::O_DIRECTORY), Err(libc::ENOTDIR), "{path}");
        assert_eq!(world.view.list(path), Err(libc::ENOTDIR), "{path}");
    }
    for path in ["", "semantics", "semantics/folder"] {
        assert_eq!(world.view.open(path, libc::O_RDONLY), Ok(()), "{path:?}");
        assert_eq!(world.view.open(path, libc::O_RDWR), Err(libc::EISDIR), "{path:?}");
        assert_eq!(world.view.read(path, 0, 10), Err(libc::EISDIR), "{path:?}");
    }
}

/// A whole file that was open: with passthrough, which takes root, it is read to its end.
fn removed_whole(world: &World<'_>) {
    use std::os::unix::fs::FileExt;
    let (file, bytes, passed) = world.control.open_whole();
    assert_eq!(passed, nix::unistd::geteuid().is_root());
    let name = "whole".to_string();
    world.control.remove(std::slice::from_ref(&name));
    until("its name goes", || world.view.stat(&name) == Err(libc::ENOENT));
    // Pages that the kernel has by itself would be read in any case.
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
    let mut got = vec![0; bytes.len()];
    match file.read_exact_at(&mut got, 0) {
        Ok(()) => assert!(passed && got == bytes),
        Err(error) => assert_eq!((passed, error.raw_os_error()), (false, Some(libc::ESTALE))),
    }
}

pub fn removed(world: &World<'_>) {
    let name = "removed".to_string();
    world.control.add(std::slice::from_ref(&name));
    until("it shows", || world.view.stat("removed/d/file").is_ok());
    let folder = world.view.listing("removed/d").unwrap();
    let goes = || {
        world.control.remove(std::slice::from_ref(&name));
        until("its name goes", || world.view.stat("removed") == Err(libc::ENOENT));
    };
    assert_eq!(world.view.read_after("removed/d/file", &goes, 0, 10), Err(libc::ESTALE));
    assert_eq!(world.view.stat("removed/d/file"), Err(libc::ENOENT));
    assert_eq!(world.view.open("removed/d/file", libc::O_RDONLY), Err(libc::ENOENT));
    assert!(!world.view.list("").unwrap().contains(&name));
    if world.point.is_some() {
        removed_whole(world);
    }
    drop(folder);
}
