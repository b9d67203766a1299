//! Numbers, sizes, times, modes, names, space and extended attributes.

use std::collections::HashMap;

use torrentfs_fs::attr::Kind;

use super::view::Stat;
use super::{DATE, LATER, LONG, PIECE, PROGRAM, Shown, Shrunk, TREE, UMASK, World, here_of, size_of, until};

pub fn numbers(world: &World<'_>) {
    let mut seen: HashMap<u64, String> = HashMap::new();
    for path in world.everything() {
        let ino = world.stat(&path).ino;
        assert_eq!(world.stat(&path).ino, ino, "{path} looked at twice");
        if let Some(other) = seen.insert(ino, path.clone()) {
            panic!("{path} and {other} have the number {ino}");
        }
    }
    for folder in ["", "semantics", "semantics/folder", "single.bin"] {
        let Ok(mut listing) = world.view.listing(folder) else { continue };
        while let Some(entry) = listing.next().unwrap() {
            if !entry.name.starts_with('.') {
                let path = format!("{folder}/{}", entry.name);
                assert_eq!(world.stat(path.trim_start_matches('/')).ino, entry.ino, "{path} as listed");
            }
        }
    }
    assert_eq!(world.stat("").ino, 1, "as on most file systems made for FUSE");
}

pub fn restart(world: &World<'_>) {
    let seen = world.control.restarted(true);
    assert!(seen.before.len() > TREE.len());
    for ((path, before), (again, after)) in seen.before.iter().zip(&seen.after) {
        assert_eq!((path, before), (again, after));
    }
    assert_eq!(seen.before.len(), seen.after.len());
}

pub fn dots(world: &World<'_>) {
    for (folder, parent) in
        [("", ""), ("semantics", ""), ("semantics/folder", "semantics"), ("many/d000", "many")]
    {
        let mut listing = world.view.listing(folder).unwrap();
        for (name, path) in [(".", folder), ("..", parent)] {
            let entry = listing.next().unwrap().unwrap();
            assert_eq!((entry.name.as_str(), entry.kind), (name, Kind::Dir), "in {folder:?}");
            assert_eq!(entry.ino, world.stat(path).ino, "{name} in {folder:?}");
        }
    }
}

pub fn sizes(world: &World<'_>) {
    for (path, _) in TREE {
        assert_eq!(world.stat(&world.path(path)).size, size_of(path), "{path}");
    }
    assert_eq!(world.stat("single.bin").size, 7);
    assert_eq!(world.stat("many/d000/file 099999").size, 1);
}

fn times(stat: &Stat) -> [i64; 3] {
    [stat.atime, stat.mtime, stat.ctime]
}

pub fn creation_date(world: &World<'_>) {
    for path in world.everything().iter().filter(|path| !path.is_empty()) {
        let date = if path == "single.bin" { LATER } else { DATE };
        assert_eq!(times(&world.stat(path)), [date; 3], "{path}");
    }
}

pub fn time_added(world: &World<'_>) {
    let seen = world.control.restarted(false);
    for (path, stat) in seen.before.iter().chain(&seen.after) {
        assert!(times(stat).iter().all(|time| *time == seen.before[0].1.mtime), "{path}: {stat:?}");
        assert!(seen.added.contains(&stat.mtime), "{path}: {} isn't in {:?}", stat.mtime, seen.added);
    }
}

pub fn nothing_changes_times(world: &World<'_>) {
    let before: Vec<Stat> = world.everything().iter().map(|path| world.stat(path)).collect();
    world.view.read(&world.path("complete.bin"), 0, 5000).unwrap();
    world.view.list("semantics").unwrap();
    world.view.link(&world.path("link")).unwrap();
    let after = world.everything().iter().map(|path| world.stat(path)).collect::<Vec<_>>();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(times(before), times(after));
    }
}

pub fn time_of_the_root(world: &World<'_>) {
    // The latest is neither the first nor the last by its name, and not the one that was added first or last.
    let last = "zz".to_string();
    world.control.add(std::slice::from_ref(&last));
    until("it shows", || world.view.stat(&last).is_ok());
    assert_eq!((times(&world.stat(&last)), times(&world.stat(""))), ([DATE; 3], [LATER; 3]));
    world.control.remove(std::slice::from_ref(&last));
    until("it is gone", || world.view.stat(&last).is_err());
}

pub fn modes(world: &World<'_>) {
    for path in world.everything() {
        let stat = world.stat(&path);
        let perm = match stat.kind {
            Kind::Dir => 0o555 & !UMASK,
            Kind::File if path.ends_with("run.sh") => 0o555 & !UMASK,
            Kind::File => 0o444 & !UMASK,
            Kind::Symlink => 0o777,
        };
        assert_eq!(stat.perm, perm, "{path}: {:o}", stat.perm);
    }
}

pub fn owners(world: &World<'_>) {
    for path in world.everything() {
        assert_eq!(world.stat(&path).owner, super::owner(), "{path}");
    }
}

pub fn links(world: &World<'_>) {
    for (path, links) in [
        ("semantics", 3),
        ("semantics/folder", 4),
        ("semantics/folder/inner", 2),
        ("many", 3),
        ("many/d000", 2),
    ] {
        assert_eq!(world.stat(path).nlink, links, "{path}");
    }
    // One for each torrent that is a folder.
    let folders =
        world.view.list("").unwrap().iter().filter(|name| world.stat(name).kind == Kind::Dir).count();
    assert_eq!(world.stat("").nlink, 2 + folders as u64);
    for (path, _) in TREE {
        assert_eq!(world.stat(&world.path(path)).nlink, 1, "{path}");
    }
}

pub fn blocks(world: &World<'_>) {
    for (path, shown) in TREE {
        let blocks = world.stat(&world.path(path)).blocks;
        match shown {
            Shown::Link(_) => assert_eq!(blocks, 0, "{path}"),
            _ if size_of(path) == 0 => assert_eq!(blocks, 0, "{path}"),
            _ => assert_eq!(blocks, here_of(path).div_ceil(512).max(1), "{path}"),
        }
    }
    assert_eq!(world.stat("many/d000/file 000007").blocks, 1);
}

pub fn blocks_grow(world: &World<'_>) {
    let path = world.path("growing.bin");
    assert_eq!(world.stat(&path).blocks, 1);
    world.control.bring("growing.bin");
    // For the real torrent that takes a reader.
    let expected = world.bytes("growing.bin", PIECE, 10);
    until("it has come", || world.view.read(&path, PIECE, 10).unwrap() == expected);
    world.view.read(&path, 0, 10).unwrap();
    until("its blocks show that", || world.stat(&path).blocks == 2 * PIECE / 512);
    let Shrunk { before, after, here } = world.control.shrunk();
    assert_eq!(after, here.div_ceil(512).max(1), "{here} bytes are here");
    assert!(after < before, "{before} blocks became {after}");
}

pub fn folders(world: &World<'_>) {
    for path in ["", "semantics", "semantics/folder", "many/d000"] {
        let stat = world.stat(path);
        assert_eq!((stat.kind, stat.size, stat.blocks), (Kind::Dir, 4096, 0), "{path}");
    }
    for path in world.everything() {
        assert_eq!(world.stat(&path).preferred, 4096, "{path}");
    }
}

pub fn exact_names(world: &World<'_>) {
    for name in ["nothing", "Complete.bin", "complete.bin ", "ünïcödé – 文.tx", "u\u{308}n", "\u{1}"] {
        assert_eq!(world.view.stat(&world.path(name)), Err(libc::ENOENT), "{name:?}");
    }
    assert_eq!(world.view.stat("Semantics"), Err(libc::ENOENT));
    // Two that differ by case alone, in folders side by side.
    let leaf = |path: &str| world.view.stat(&world.path(path)).map(|stat| stat.size);
    assert_eq!((leaf("folder/inner/leaf.txt"), leaf("folder/other/Leaf.txt")), (Ok(5000), Ok(5000)));
    assert_eq!(leaf("folder/inner/Leaf.txt"), Err(libc::ENOENT));
    for path in ["semantics/empty/below", "semantics/complete.bin/x", "single.bin/x"] {
        assert_eq!(world.view.stat(path), Err(libc::ENOTDIR), "{path}");
    }
    if world.point.is_some() {
        use std::os::unix::ffi::OsStrExt;
        let odd = world.real("x").with_file_name(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        assert_eq!(odd.symlink_metadata().unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}

pub fn long_names(world: &World<'_>) {
    assert_eq!(LONG.len(), 255);
    assert_eq!(world.view.read(&world.path(LONG), 0, 100).unwrap(), world.bytes(LONG, 0, 10));
    assert_eq!(world.view.longest_name(), 255);
}

pub fn too_long_names(world: &World<'_>) {
    for length in [256, 300, 1000, 3000] {
        for folder in ["", "semantics/", "many/d000/"] {
            let path = format!("{folder}{}", "x".repeat(length));
            assert_eq!(world.view.stat(&path), Err(libc::ENAMETOOLONG), "{length} bytes in {folder:?}");
        }
    }
}

pub fn single(world: &World<'_>) {
    assert_eq!(world.stat("single.bin").kind, Kind::File);
    assert_eq!(world.view.read("single.bin", 0, 100).unwrap(), world.control.bytes("single.bin", 0, 7));
    for name in ["semantics", "many"] {
        assert_eq!(world.stat(name).kind, Kind::Dir);
    }
}

pub fn no_padding(world: &World<'_>) {
    let names = world.view.list("semantics").unwrap();
    let mut expected: Vec<&str> = TREE.iter().map(|(path, _)| path.split('/').next().unwrap()).collect();
    expected.sort();
    expected.dedup();
    assert_eq!(names, expected);
}

pub fn links_are_read(world: &World<'_>) {
    let target = "folder/inner/leaf.txt";
    let path = world.path("link");
    assert_eq!(world.view.link(&path).unwrap(), target);
    assert_eq!((world.stat(&path).kind, world.stat(&path).size), (Kind::Symlink, target.len() as u64));
    for path in ["", "semantics", "semantics/complete.bin"] {
        assert_eq!(world.view.link(path), Err(libc::EINVAL), "{path}");
    }
}

pub fn links_lead(world: &World<'_>) {
    let path = world.path("link");
    assert_eq!(world.view.open(&path, libc::O_RDONLY | libc::O_NOFOLLOW), Err(libc::ELOOP));
    if world.point.is_some() {
        // Following is the caller's: the kernel's, here.
        let expected = world.bytes("folder/inner/leaf.txt", 0, 5000);
        assert_eq!(world.view.read(&path, 0, 5000).unwrap(), expected);
        assert_eq!(std::fs::read(world.real("link")).unwrap(), expected);
    }
}

pub fn space(world: &World<'_>) {
    let (all, free, files) = world.view.space();
    let sizes: u64 =
        TREE.iter().map(|(path, shown)| if let Shown::Link(_) = shown { 0 } else { size_of(path) }).sum();
    let used = sizes + 7 + super::MANY as u64;
    assert_eq!(all - free, used.div_ceil(4096) * 4096);
    assert_eq!(files as usize, TREE.len() - 1 + 1 + super::MANY);
    // Others write to that disk meanwhile.
    let (here, near) = (world.control.free(), 1 << 30);
    assert!(free.abs_diff(here) < near, "{free} bytes free, and {here} where the cache is");
}

pub fn progress(world: &World<'_>) {
    let text = |path: &str, name: &str| {
        let value = world.view.xattr(&world.path(path), &format!("user.torrentfs.{name}"), 200).unwrap();
        String::from_utf8(value).unwrap()
    };
    for path in ["complete.bin", "half.bin", "missing.bin", "empty", "run.sh", LONG] {
        let (here, size) = (here_of(path), size_of(path));
        assert_eq!(text(path, "progress"), format!("{here}/{size}"), "{path}");
        let complete = text(path, "state") == "complete";
        assert_eq!(complete, here == size, "{path} is {}", text(path, "state"));
    }
}

pub fn attributes_of_a_torrent(world: &World<'_>) {
    let names = |path: &str| {
        let names = world.view.xattr_names(path, 4096).unwrap();
        let names = String::from_utf8(names).unwrap();
        let mut names: Vec<String> = names.split_terminator('\0').map(String::from).collect();
        names.sort();
        names
    };
    let all = |names: &[&str]| names.iter().map(|n| format!("user.torrentfs.{n}")).collect::<Vec<_>>();
    for path in ["semantics/half.bin", "semantics/empty", "single.bin"] {
        assert_eq!(names(path), all(&["infohash", "progress", "ranges", "state"]), "{path}");
    }
    assert_eq!(names("semantics"), all(&["infohash", "progress", "state"]));
    for path in ["semantics", "semantics/half.bin"] {
        let hash = world.view.xattr(path, "user.torrentfs.infohash", 100).unwrap();
        assert!(hash.len() == 40 && hash.iter().all(u8::is_ascii_hexdigit), "{hash:?}");
        assert_eq!(world.view.xattr(path, "user.torrentfs.error", 100), Err(libc::ENODATA));
    }
}

pub fn ranges(world: &World<'_>) {
    let rows = [
        ("half.bin", format!("0-{PIECE},{}-{}", 2 * PIECE, 3 * PIECE)),
        ("complete.bin", format!("0-{}", 3 * PIECE + 100)),
        ("missing.bin", String::new()),
        ("run.sh", format!("0-{}", PROGRAM.len())),
    ];
    for (path, expected) in rows {
        let ranges = world.view.xattr(&world.path(path), "user.torrentfs.ranges", 200).unwrap();
        assert_eq!(String::from_utf8(ranges).unwrap(), expected, "{path}");
    }
}

pub fn buffers_of_attributes(world: &World<'_>) {
    let (path, name) = (world.path("half.bin"), "user.torrentfs.progress");
    let value = format!("{}/{}", 2 * PIECE, 4 * PIECE).into_bytes();
    for (room, expected) in [
        (0, Ok(vec![0; value.len()])),
        (value.len() - 1, Err(libc::ERANGE)),
        (value.len(), Ok(value.clone())),
        (200, Ok(value.clone())),
    ] {
        assert_eq!(world.view.xattr(&path, name, room), expected, "with room for {room}");
    }
    let names = world.view.xattr_names(&path, 4096).unwrap();
    assert_eq!(names.last(), Some(&0));
    assert_eq!(world.view.xattr_names(&path, 0).unwrap().len(), names.len());
    assert_eq!(world.view.xattr_names(&path, names.len() - 1), Err(libc::ERANGE));
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).unwrap();
        assert!(world.view.xattr(&path, name, 4096).is_ok(), "{name} is listed");
    }
}

pub fn no_such_attribute(world: &World<'_>) {
    for path in ["semantics/complete.bin", "semantics", ""] {
        for name in ["user.nothing", "user.torrentfs.nothing"] {
            assert_eq!(world.view.xattr(path, name, 100), Err(libc::ENODATA), "{name} of {path:?}");
        }
        for name in ["security.capability", "security.selinux", "system.posix_acl_access"] {
            assert_eq!(world.view.xattr(path, name, 100), Err(libc::EOPNOTSUPP), "{name} of {path:?}");
        }
    }
    // Of these the kernel tells nobody but root.
    let expected = if nix::unistd::geteuid().is_root() { libc::EOPNOTSUPP } else { libc::ENODATA };
    if world.point.is_some() {
        assert_eq!(world.view.xattr("semantics", "trusted.overlay.opaque", 100), Err(expected));
    }
}

pub fn socket(world: &World<'_>) {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::FileTypeExt;
    const NAME: &str = "user.torrentfs.socket";
    assert_eq!(world.view.xattr_names("", 4096).unwrap(), format!("{NAME}\0").into_bytes());
    let path =
        std::path::PathBuf::from(std::ffi::OsString::from_vec(world.view.xattr("", NAME, 4096).unwrap()));
    assert!(path.is_absolute() && path.symlink_metadata().unwrap().file_type().is_socket(), "{path:?}");
    for path in ["semantics", "semantics/complete.bin", "semantics/folder", "single.bin"] {
        assert_eq!(world.view.xattr(path, NAME, 4096), Err(libc::ENODATA), "{path}");
    }
}

pub fn resolving(world: &World<'_>) {
    world.control.add_magnet("later");
    let name = "later.resolving".to_string();
    until("it shows", || world.view.stat(&name).is_ok());
    assert_eq!((world.stat(&name).kind, world.view.list(&name)), (Kind::Dir, Ok(Vec::new())));
    for (attribute, expected) in [("state", "resolving"), ("progress", "0/0")] {
        let value = world.view.xattr(&name, &format!("user.torrentfs.{attribute}"), 100).unwrap();
        assert_eq!(String::from_utf8(value).unwrap(), expected);
    }
    world.control.remove(std::slice::from_ref(&name));
    until("it is gone", || world.view.stat(&name) == Err(libc::ENOENT));
}
