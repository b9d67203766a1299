//! What writes, by system calls on a mount.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::MsFlags;

use super::view::{c_text, open_with};
use super::{PIECE, World};

const NOW: [libc::timespec; 2] =
    [libc::timespec { tv_sec: 1, tv_nsec: 0 }, libc::timespec { tv_sec: 1, tv_nsec: 0 }];
const HERE: i32 = libc::AT_FDCWD;

/// Calls that make, rename, link or remove names in the torrent's folder.
fn on_names(world: &World<'_>) -> Vec<(&'static str, Result<i64, i32>)> {
    let at = |path: &str| c_text(&world.real(path));
    let (new, file, folder, link) = (at("new"), at("complete.bin"), at("folder"), at("link"));
    let open = |path: &Path, flags: i32| open_with(path, flags).map(|_| 0);
    let new_path = world.real("new");
    vec![
        ("open with O_CREAT", open(&new_path, libc::O_CREAT | libc::O_RDWR)),
        ("open with O_CREAT, to read", open(&new_path, libc::O_CREAT | libc::O_RDONLY)),
        ("open with O_CREAT and O_EXCL", open(&new_path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY)),
        ("mkdir", call!(mkdir(new.as_ptr(), 0o755))),
        ("mknod", call!(mknod(new.as_ptr(), libc::S_IFREG | 0o644, 0))),
        ("mkfifo", call!(mkfifo(new.as_ptr(), 0o644))),
        ("symlink", call!(symlink(c"target".as_ptr(), new.as_ptr()))),
        ("link", call!(link(file.as_ptr(), new.as_ptr()))),
        ("rename of a file", call!(rename(file.as_ptr(), new.as_ptr()))),
        ("rename of a folder", call!(rename(folder.as_ptr(), new.as_ptr()))),
        ("rename over a file", call!(rename(file.as_ptr(), at("run.sh").as_ptr()))),
        ("unlink of a file", call!(unlink(file.as_ptr()))),
        ("unlink of a link", call!(unlink(link.as_ptr()))),
        ("rmdir", call!(rmdir(folder.as_ptr()))),
    ]
}

/// Calls that change what is known of a file or folder.
fn on_attributes(path: &CString, file: bool) -> Vec<(&'static str, Result<i64, i32>)> {
    let (name, value) = (c"user.mine", b"x");
    let mut rows = vec![
        ("chmod", call!(chmod(path.as_ptr(), 0o777))),
        ("chown", call!(chown(path.as_ptr(), 0, 0))),
        ("utimensat", call!(utimensat(HERE, path.as_ptr(), NOW.as_ptr(), 0))),
        ("setxattr", call!(setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 1, 0))),
        ("removexattr", call!(removexattr(path.as_ptr(), c"user.torrentfs.state".as_ptr()))),
    ];
    if file {
        rows.push(("truncate", call!(truncate(path.as_ptr(), 10))));
    }
    rows
}

#[track_caller]
fn all_are(rows: Vec<(&'static str, Result<i64, i32>)>, expected: i32, of: &str) {
    for (what, result) in rows {
        assert_eq!(result, Err(expected), "{what}: {of}");
    }
}

pub fn names(world: &World<'_>) {
    all_are(on_names(world), libc::EROFS, "");
    let folder = world.real("folder");
    let unnamed = open_with(&folder, libc::O_TMPFILE | libc::O_RDWR).map(|_| 0);
    assert_eq!(unnamed, Err(libc::EROFS), "O_TMPFILE");
    let in_root = c_text(&world.point.unwrap().join("new"));
    assert_eq!(call!(mkdir(in_root.as_ptr(), 0o755)), Err(libc::EROFS), "in the root");
    let torrent = c_text(&world.point.unwrap().join("semantics"));
    assert_eq!(call!(rename(torrent.as_ptr(), in_root.as_ptr())), Err(libc::EROFS), "a torrent's name");
}

pub fn create_opens(world: &World<'_>) {
    let file = world.real("complete.bin");
    assert!(open_with(&file, libc::O_CREAT | libc::O_RDONLY).is_ok());
    let exclusive = open_with(&file, libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY).map(|_| 0);
    assert_eq!(exclusive, Err(libc::EEXIST));
}

pub fn attributes(world: &World<'_>) {
    for path in ["complete.bin", "missing.bin", "folder"] {
        all_are(on_attributes(&c_text(&world.real(path)), path != "folder"), libc::EROFS, path);
    }
    all_are(on_attributes(&c_text(world.point.unwrap()), false), libc::EROFS, "the root");
    let link = c_text(&world.real("link"));
    let owner = call!(lchown(link.as_ptr(), 0, 0));
    assert_eq!(owner, Err(libc::EROFS), "lchown");
}

/// Calls through a file opened for reading.
fn through(file: &OwnedFd) -> Vec<(&'static str, Result<i64, i32>, i32)> {
    let fd = file.as_raw_fd();
    let (name, value) = (c"user.mine", b"x");
    vec![
        ("write", call!(write(fd, value.as_ptr().cast(), 1)), libc::EBADF),
        ("pwrite", call!(pwrite(fd, value.as_ptr().cast(), 1, 0)), libc::EBADF),
        ("fallocate", call!(fallocate(fd, 0, 0, 4096)), libc::EBADF),
        (
            "punching a hole",
            call!(fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096)),
            libc::EBADF,
        ),
        ("ftruncate", call!(ftruncate(fd, 10)), libc::EINVAL),
        ("fchmod", call!(fchmod(fd, 0o777)), libc::EROFS),
        ("fchown", call!(fchown(fd, 0, 0)), libc::EROFS),
        ("futimens", call!(futimens(fd, NOW.as_ptr())), libc::EROFS),
        ("fsetxattr", call!(fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), 1, 0)), libc::EROFS),
    ]
}

pub fn through_a_file(world: &World<'_>) {
    let file = open_with(&world.real("complete.bin"), libc::O_RDONLY).unwrap();
    for (what, result, expected) in through(&file) {
        assert_eq!(result, Err(expected), "{what}");
    }
}

/// Only root can; for others there is nothing to be refused.
pub fn remounted(world: &World<'_>) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let point = world.point.unwrap();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let remount = |more| nix::mount::mount(None::<&str>, point, None::<&str>, flags | more, None::<&str>);
    remount(MsFlags::empty()).expect("root may");
    let writable = nix::sys::statvfs::statvfs(point).unwrap().flags();
    let names = on_names(world);
    let file = open_with(&world.real("complete.bin"), libc::O_RDONLY).unwrap();
    let changes = through(&file);
    let of_file = on_attributes(&c_text(&world.real("complete.bin")), true);
    let of_folder = on_attributes(&c_text(&world.real("folder")), false);
    let opened: Vec<_> = [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC]
        .map(|flags| ("open", open_with(&world.real("complete.bin"), flags).map(|_| 0)))
        .into();
    remount(MsFlags::MS_RDONLY).expect("root may");
    assert!(!writable.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "it was mounted for writing");
    for rows in [names, of_file, of_folder, opened] {
        all_are(rows, libc::EROFS, "when mounted for writing");
    }
    for (what, result, expected) in changes {
        assert_eq!(result, Err(expected), "{what}");
    }
    let bytes = world.view.read(&world.path("complete.bin"), PIECE, 100).unwrap();
    assert_eq!(bytes, world.bytes("complete.bin", PIECE, 100));
}

pub fn synced(world: &World<'_>) {
    let file = open_with(&world.real("complete.bin"), libc::O_RDONLY).unwrap();
    let folder = open_with(&world.real("folder"), libc::O_RDONLY).unwrap();
    for fd in [file.as_raw_fd(), folder.as_raw_fd()] {
        assert_eq!(call!(fsync(fd)), Ok(0));
        assert_eq!(call!(fdatasync(fd)), Ok(0));
        assert_eq!(call!(syncfs(fd)), Ok(0));
    }
    for file in [file, folder] {
        let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
        assert_eq!(call!(close(fd)), Ok(0));
    }
}
