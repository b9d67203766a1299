//! What it takes a mount to see: holes, mappings, copies within the kernel, locks, and the ways of opening.

use std::fs::File;
use std::io::{IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use super::raw::Mapping;
use super::view::{c_text, errno, open_with, stat_of};
use super::{PIECE, World, size_of};

const PAGE: usize = 4096;

fn open(world: &World<'_>, path: &str) -> File {
    File::open(world.real(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn complete(world: &World<'_>) -> (File, Vec<u8>) {
    (open(world, "complete.bin"), world.bytes("complete.bin", 0, u64::MAX))
}

pub fn statx(world: &World<'_>) {
    for path in ["complete.bin", "half.bin", "folder", "link"] {
        let (stat, name) = (world.stat(&world.path(path)), c_text(&world.real(path)));
        // SAFETY: plain numbers, for which zeros will do.
        let mut found: libc::statx = unsafe { std::mem::zeroed() };
        let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        assert_eq!(call!(statx(libc::AT_FDCWD, name.as_ptr(), flags, mask, &mut found)), Ok(0));
        assert_eq!(
            (found.stx_ino, found.stx_size, found.stx_blocks, u64::from(found.stx_nlink)),
            (stat.ino, stat.size, stat.blocks, stat.nlink),
            "{path}"
        );
        assert_eq!((u32::from(found.stx_mode) & 0o7777, found.stx_mtime.tv_sec), (stat.perm, stat.mtime));
        assert_eq!(found.stx_mask & libc::STATX_BASIC_STATS, libc::STATX_BASIC_STATS, "{path}");
        assert_eq!(found.stx_mask & libc::STATX_BTIME, 0, "{path}");
    }
}

pub fn same_entries(world: &World<'_>) {
    for path in ["complete.bin", "half.bin", "folder"] {
        let through = stat_of(&open(world, path).metadata().unwrap());
        assert_eq!(through, world.stat(&world.path(path)), "{path}");
    }
    let leaf = world.stat(&world.path("folder/inner/leaf.txt"));
    assert_eq!(stat_of(&world.real("link").metadata().unwrap()), leaf);
    for (path, same) in [
        ("folder/..", ""),
        ("folder/inner/../inner/leaf.txt", "folder/inner/leaf.txt"),
        ("folder/inner/../../complete.bin", "complete.bin"),
        ("./folder/.", "folder"),
    ] {
        let found = stat_of(&world.real(path).symlink_metadata().unwrap());
        let same = world.path(same);
        assert_eq!(found, world.stat(same.trim_end_matches('/')), "{path}");
    }
}

pub fn flags(world: &World<'_>) {
    use nix::sys::statvfs::FsFlags;
    let flags = nix::sys::statvfs::statvfs(world.point.unwrap()).unwrap().flags();
    for flag in [FsFlags::ST_RDONLY, FsFlags::ST_NOSUID, FsFlags::ST_NODEV, FsFlags::ST_NOATIME] {
        assert!(flags.contains(flag), "{flag:?} in {flags:?}");
    }
}

pub fn no_holes(world: &World<'_>) {
    for path in ["complete.bin", "half.bin", "missing.bin", "run.sh"] {
        let (file, size) = (open(world, path), size_of(path) as i64);
        let fd = file.as_raw_fd();
        for offset in [0, 1, size / 2, size - 1].into_iter().chain((0..size).step_by(PIECE as usize)) {
            assert_eq!(call!(lseek(fd, offset, libc::SEEK_DATA)), Ok(offset), "data of {path} at {offset}");
            assert_eq!(call!(lseek(fd, offset, libc::SEEK_HOLE)), Ok(size), "a hole of {path} at {offset}");
        }
        for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
            for offset in [size, size + 1, size + (1 << 40)] {
                assert_eq!(call!(lseek(fd, offset, whence)), Err(libc::ENXIO), "{path} at {offset}");
            }
        }
    }
}

pub fn no_extents(world: &World<'_>) {
    /// The kernel's `FS_IOC_FIEMAP`, `FIBMAP`.
    const FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
    const FIBMAP: libc::Ioctl = 1;
    let file = open(world, "half.bin");
    // The kernel's `struct fiemap` with room for some extents: start, length, flags, mapped, count, reserved.
    let mut map = [0u64; 64];
    map[1] = u64::MAX;
    map[3] = 8;
    let extents = call!(ioctl(file.as_raw_fd(), FIEMAP, map.as_mut_ptr()));
    assert!(matches!(extents, Err(libc::EOPNOTSUPP | libc::ENOTTY)), "{extents:?}");
    for path in ["half.bin", "complete.bin"] {
        let mut block = 1i32;
        match call!(ioctl(open(world, path).as_raw_fd(), FIBMAP, &mut block)) {
            Ok(_) => assert_eq!(block, 0, "{path}"),
            // For who isn't root.
            Err(error) => assert_eq!(error, libc::EPERM, "{path}"),
        }
    }
}

pub fn direct(world: &World<'_>) {
    let file =
        open_with(&world.real("complete.bin"), libc::O_RDONLY | libc::O_DIRECT).map(File::from).unwrap();
    let mut buffer = vec![0; PIECE as usize + 8192];
    let aligned = buffer.as_ptr().align_offset(4096);
    let rows =
        [(0, PIECE), (4096, 4096), (PIECE - 4096, 8192), (PIECE - 100, 333), (3 * PIECE - 1, 4096), (7, 1)];
    for (offset, len) in rows {
        let part = &mut buffer[aligned..aligned + len as usize];
        match file.read_at(part, offset) {
            Ok(read) => {
                assert!(
                    part[..read] == world.bytes("complete.bin", offset, len),
                    "{len} bytes at {offset}: {read}"
                );
            }
            Err(error) => {
                assert_eq!(errno(error), libc::EINVAL);
                assert!(offset % 4096 != 0 || len % 4096 != 0, "{len} bytes at {offset}");
            }
        }
    }
    let file = open_with(&world.real("direct.bin"), libc::O_RDONLY | libc::O_DIRECT).map(File::from).unwrap();
    let part = &mut buffer[aligned..aligned + 8192];
    world.control.bring("direct.bin");
    assert_eq!(file.read_at(part, PIECE - 4096).unwrap(), 8192, "of what isn't here");
    assert!(part[..] == world.bytes("direct.bin", PIECE - 4096, 8192));
}

pub fn only_a_path(world: &World<'_>) {
    for path in ["complete.bin", "missing.bin", "folder", "link"] {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let found = File::from(open_with(&world.real(path), flags).unwrap());
        assert_eq!(found.metadata().unwrap().ino(), world.stat(&world.path(path)).ino, "{path}");
        assert_eq!(errno(found.read_at(&mut [0; 10], 0).unwrap_err()), libc::EBADF, "{path}");
    }
}

pub fn runs(world: &World<'_>) {
    // Everything belongs to somebody else here, and its mode says what others may: nothing.
    let root = nix::unistd::geteuid().is_root();
    let ran = |path: &str| Command::new(world.real(path)).arg("well").output().map_err(errno);
    if root {
        assert_eq!(ran("run.sh").unwrap().stdout, b"ran well\n");
    }
    assert_eq!(ran("plain.sh").map(|output| output.stdout), Err(libc::EACCES));
}

pub fn huge_offsets(world: &World<'_>) {
    let (mut file, _) = complete(world);
    let mut buffer = [0u8; 16];
    for offset in [u64::from(u32::MAX), 1 << 40, 1 << 62, i64::MAX as u64 - 4096] {
        assert_eq!(file.read_at(&mut buffer, offset).unwrap(), 0, "at {offset}");
        assert_eq!(file.seek(SeekFrom::Start(offset)).unwrap(), offset);
        assert_eq!(file.read(&mut buffer).unwrap(), 0);
    }
    let fd = file.as_raw_fd();
    assert_eq!(call!(pread(fd, buffer.as_mut_ptr().cast(), 16, -1)), Err(libc::EINVAL));
    assert_eq!(call!(pread(fd, buffer.as_mut_ptr().cast(), 16, i64::MIN)), Err(libc::EINVAL));
    assert_eq!(call!(lseek(fd, -1, libc::SEEK_SET)), Err(libc::EINVAL));
    assert_eq!(call!(lseek(fd, 0, 99)), Err(libc::EINVAL));
}

pub fn vectors(world: &World<'_>) {
    let (mut file, bytes) = complete(world);
    let (mut one, mut two, mut three) = ([0u8; 10], [0u8; 0], [0u8; 5000]);
    let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two), IoSliceMut::new(&mut three)];
    let at = PIECE as usize - 700;
    assert_eq!(nix::sys::uio::preadv(&file, &mut buffers, at as i64).unwrap(), 5010);
    assert!(one == bytes[at..at + 10] && three == bytes[at + 10..at + 5010]);
    assert_eq!(file.seek(SeekFrom::End(-20)).unwrap(), bytes.len() as u64 - 20);
    let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut three)];
    assert_eq!(file.read_vectored(&mut buffers).unwrap(), 20);
    let from = bytes.len() - 20;
    assert!(one == bytes[from..from + 10] && three[..10] == bytes[from + 10..]);
}

pub fn threads(world: &World<'_>) {
    let (file, bytes) = complete(world);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (file, bytes) = (&file, &bytes);
            scope.spawn(move || {
                let mut buffer = vec![0; 3000];
                for round in 0..200usize {
                    let at = (round * 7919 + thread * 104_729) % (bytes.len() - buffer.len());
                    file.read_exact_at(&mut buffer, at as u64).unwrap();
                    assert!(buffer == bytes[at..at + buffer.len()], "at {at}");
                }
            });
        }
    });
}

/// Whether a page can be read, without a signal if it can't.
fn can_be_read(mapping: &Mapping, at: usize) -> Result<i64, i32> {
    let (_reader, writer) = std::io::pipe().unwrap();
    call!(write(writer.as_raw_fd(), mapping.at().wrapping_add(at).cast(), 1))
}

pub fn mappings(world: &World<'_>) {
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let (file, bytes) = complete(world);
        let len = bytes.len().next_multiple_of(PAGE) + PAGE;
        let mapping = Mapping::new(&file, len, libc::PROT_READ, flags).unwrap();
        drop(file);
        let seen = mapping.bytes(bytes.len().next_multiple_of(PAGE));
        assert!(seen[..bytes.len()] == bytes, "mapped with {flags}");
        assert!(seen[bytes.len()..].iter().all(|byte| *byte == 0), "after the end");
        assert_eq!(can_be_read(&mapping, bytes.len() - 1), Ok(1));
        assert_eq!(can_be_read(&mapping, len - PAGE), Err(libc::EFAULT), "a page beyond");
    }
}

pub fn written_mappings(world: &World<'_>) {
    const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;
    let (file, bytes) = complete(world);
    assert_eq!(Mapping::new(&file, PAGE, BOTH, libc::MAP_SHARED).err(), Some(libc::EACCES));
    let shared = Mapping::new(&file, PAGE, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    assert_eq!(call!(mprotect(shared.at().cast(), PAGE, BOTH)), Err(libc::EACCES));
    let own = Mapping::new(&file, PAGE, BOTH, libc::MAP_PRIVATE).unwrap();
    own.set(7, !bytes[7]);
    assert_eq!(own.bytes(8)[7], !bytes[7]);
    assert_eq!(shared.bytes(8)[7], bytes[7]);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 7).unwrap();
    assert_eq!(byte[0], bytes[7]);
}

pub fn advised_mappings(world: &World<'_>) {
    let (file, bytes) = complete(world);
    let mapping =
        Mapping::new(&file, bytes.len(), libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE).unwrap();
    let mut pages = vec![0u8; bytes.len().div_ceil(PAGE)];
    assert_eq!(call!(mincore(mapping.at().cast(), bytes.len(), pages.as_mut_ptr())), Ok(0));
    assert!(pages.iter().all(|page| page & 1 == 1), "all pages are there");
    for advice in [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WILLNEED,
        libc::MADV_DONTNEED,
    ] {
        assert_eq!(call!(madvise(mapping.at().cast(), bytes.len(), advice)), Ok(0), "{advice}");
        assert!(mapping.bytes(bytes.len()) == bytes, "after {advice}");
    }
    assert_eq!(call!(msync(mapping.at().cast(), bytes.len(), libc::MS_SYNC)), Ok(0));
}

pub fn within_the_kernel(world: &World<'_>) {
    let (file, bytes) = complete(world);
    let fd = file.as_raw_fd();
    // To a file, from an offset in the middle of a page to the end.
    let copy = tempfile::tempfile().unwrap();
    let mut offset: libc::off_t = 100;
    while call!(sendfile(copy.as_raw_fd(), fd, &mut offset, 1 << 20)).unwrap() > 0 {}
    let mut copied = vec![0; bytes.len() - 100];
    copy.read_exact_at(&mut copied, 0).unwrap();
    assert!(copied == bytes[100..], "sendfile to a file");
    assert_eq!(copy.metadata().unwrap().len(), copied.len() as u64);
    // To pipes: what fits into one, and the same from there into another.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut second, other) = std::io::pipe().unwrap();
    let flags = libc::SPLICE_F_MOVE;
    for at in [0, PIECE as usize - 2048, 3 * PIECE as usize - 1000] {
        let mut buffer = vec![0; 4096.min(bytes.len() - at)];
        let len = buffer.len();
        let mut offset = at as libc::off_t;
        assert_eq!(call!(sendfile(writer.as_raw_fd(), fd, &mut offset, 4096)), Ok(len as i64));
        reader.read_exact(&mut buffer).unwrap();
        assert!(buffer == bytes[at..at + len], "sendfile to a pipe at {at}");
        let mut offset = at as libc::off_t;
        let to = std::ptr::null_mut::<libc::off_t>();
        let mut moved = 0;
        while moved < len {
            let more = call!(splice(fd, &mut offset, writer.as_raw_fd(), to, len - moved, flags)).unwrap();
            assert!(more > 0);
            moved += more as usize;
        }
        assert_eq!(call!(tee(reader.as_raw_fd(), other.as_raw_fd(), len, 0)), Ok(len as i64));
        for pipe in [&mut reader, &mut second] {
            buffer.fill(0);
            pipe.read_exact(&mut buffer).unwrap();
            assert!(buffer == bytes[at..at + len], "splice at {at}");
        }
    }
    // Of what isn't here, across the border of two pieces.
    for path in ["sent.bin", "spliced.bin"] {
        let (file, len) = (open(world, path), 4096);
        let mut offset = (PIECE - 2048) as libc::off_t;
        let end = offset + len as libc::off_t;
        world.control.bring(path);
        while offset < end {
            let (fd, to, left) = (file.as_raw_fd(), writer.as_raw_fd(), (end - offset) as usize);
            let more = match path {
                "sent.bin" => call!(sendfile(to, fd, &mut offset, left)),
                _ => call!(splice(fd, &mut offset, to, std::ptr::null_mut::<libc::off_t>(), left, flags)),
            };
            assert!(more.unwrap() > 0, "{path}");
        }
        let mut buffer = vec![0; len];
        reader.read_exact(&mut buffer).unwrap();
        assert!(buffer == world.bytes(path, PIECE - 2048, len as u64), "{path}");
    }
}

pub fn copied_range(world: &World<'_>) {
    let (file, _) = complete(world);
    let copy = |to: &OwnedFd| {
        let none = std::ptr::null_mut::<libc::off64_t>();
        call!(copy_file_range(file.as_raw_fd(), none, to.as_raw_fd(), none, 1000, 0))
    };
    assert_eq!(copy(&tempfile::tempfile().unwrap().into()), Err(libc::EXDEV));
    assert_eq!(copy(&open(world, "run.sh").into()), Err(libc::EBADF));
}

pub fn advice(world: &World<'_>) {
    let (file, bytes) = complete(world);
    let fd = file.as_raw_fd();
    let mut read = vec![0; bytes.len()];
    for advice in [
        libc::POSIX_FADV_NORMAL,
        libc::POSIX_FADV_RANDOM,
        libc::POSIX_FADV_SEQUENTIAL,
        libc::POSIX_FADV_NOREUSE,
        libc::POSIX_FADV_WILLNEED,
        libc::POSIX_FADV_DONTNEED,
    ] {
        for (offset, len) in [(0, 0), (4096, 8192), (1 << 40, 10)] {
            assert_eq!(
                call!(posix_fadvise(fd, offset, len, advice)),
                Ok(0),
                "{advice} for {len} at {offset}"
            );
        }
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes, "after {advice}");
    }
    for (offset, len) in [(0, 1 << 30), (PIECE as i64, 100), (1 << 40, 100), (0, 0)] {
        assert_eq!(call!(readahead(fd, offset, len)), Ok(0), "{len} at {offset}");
    }
}

pub fn fetched_ahead(world: &World<'_>) {
    let file = open(world, "ahead.bin");
    let began = Instant::now();
    let advice = libc::POSIX_FADV_WILLNEED;
    assert_eq!(call!(posix_fadvise(file.as_raw_fd(), PIECE as i64, 8192, advice)), Ok(0));
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for {:?}", began.elapsed());
    world.control.asked_for("ahead.bin");
    let mut read = [0; 8192];
    file.read_exact_at(&mut read, PIECE).unwrap();
    assert!(read[..] == world.bytes("ahead.bin", PIECE, 8192));
}

pub fn whole_file_locks(world: &World<'_>) {
    let (one, two) = (open(world, "complete.bin"), open(world, "complete.bin"));
    let lock = |file: &File, operation: i32| call!(flock(file.as_raw_fd(), operation | libc::LOCK_NB));
    assert_eq!(lock(&one, libc::LOCK_SH), Ok(0));
    assert_eq!(lock(&two, libc::LOCK_SH), Ok(0));
    assert_eq!(lock(&one, libc::LOCK_EX), Err(libc::EWOULDBLOCK));
    assert_eq!(lock(&two, libc::LOCK_UN), Ok(0));
    assert_eq!(lock(&one, libc::LOCK_EX), Ok(0));
    assert_eq!(lock(&two, libc::LOCK_SH), Err(libc::EWOULDBLOCK));
    drop(one);
    assert_eq!(lock(&two, libc::LOCK_EX), Ok(0));
}

pub fn range_locks(world: &World<'_>) {
    let (one, two) = (open(world, "complete.bin"), open(world, "complete.bin"));
    let lock = |file: &File, command: i32, kind: i32| {
        // SAFETY: plain numbers, for which zeros will do.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        (lock.l_type, lock.l_whence, lock.l_start, lock.l_len) =
            (kind as libc::c_short, libc::SEEK_SET as libc::c_short, 10, 20);
        call!(fcntl(file.as_raw_fd(), command, &mut lock)).map(|_| i32::from(lock.l_type))
    };
    for command in [libc::F_SETLK, libc::F_OFD_SETLK] {
        for file in [&one, &two] {
            assert_eq!(lock(file, command, libc::F_RDLCK), Ok(libc::F_RDLCK));
        }
        assert_eq!(lock(&one, command, libc::F_WRLCK), Err(libc::EBADF));
        for file in [&one, &two] {
            assert_eq!(lock(file, command, libc::F_UNLCK), Ok(libc::F_UNLCK));
        }
    }
    // Who asks whether he could write is told that somebody reads, or that nobody does.
    assert_eq!(lock(&one, libc::F_OFD_SETLK, libc::F_RDLCK), Ok(libc::F_RDLCK));
    assert_eq!(lock(&two, libc::F_OFD_GETLK, libc::F_WRLCK), Ok(libc::F_RDLCK));
    drop(one);
    assert_eq!(lock(&two, libc::F_OFD_GETLK, libc::F_WRLCK), Ok(libc::F_UNLCK));
}

pub fn controls(world: &World<'_>) {
    use std::io::IsTerminal;
    let (mut file, bytes) = complete(world);
    assert!(!file.is_terminal());
    let fd = file.as_raw_fd();
    let mut space = [0u8; 256];
    // One of nobody, one of terminals, one of file systems: FS_IOC_GETFLAGS.
    for request in [0x7401_u32, libc::TCGETS as u32, 0x8008_6601] {
        let result = call!(ioctl(fd, request as libc::Ioctl, space.as_mut_ptr()));
        assert_eq!(result, Err(libc::ENOTTY), "{request:x}");
    }
    let mut left = 0i32;
    file.seek(SeekFrom::Start(100)).unwrap();
    assert_eq!(call!(ioctl(fd, libc::FIONREAD, &mut left)), Ok(0));
    assert_eq!(left as usize, bytes.len() - 100);
}

pub fn polls(world: &World<'_>) {
    for path in ["complete.bin", "missing.bin"] {
        let file = open(world, path);
        let mut polled = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        assert_eq!(call!(poll(&mut polled, 1, 10_000)), Ok(1), "{path}");
        assert_eq!(polled.revents, libc::POLLIN, "{path}");
    }
}

pub fn watched(world: &World<'_>) {
    let watch = call!(inotify_init1(libc::IN_CLOEXEC)).unwrap();
    // SAFETY: just opened, and nobody else's.
    let watch: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(watch as i32) };
    for path in ["complete.bin", "folder"] {
        let path = c_text(&world.real(path));
        assert!(call!(inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), libc::IN_ALL_EVENTS)).is_ok());
    }
    let mut sink = std::io::sink();
    sink.write_all(&world.view.read(&world.path("complete.bin"), 0, 10).unwrap()).unwrap();
    let mut events = File::from(watch);
    let mut buffer = [0; 4096];
    assert!(events.read(&mut buffer).unwrap() > 0, "it is told of who opens");
}
