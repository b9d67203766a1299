//! Opening and reading, as far as it can be seen without a mount too.

use super::{PIECE, World, size_of};

pub fn writing_is_refused(world: &World<'_>) {
    for path in ["complete.bin", "missing.bin", "empty", "run.sh"] {
        for flags in [
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_RDONLY | libc::O_TRUNC,
            libc::O_WRONLY | libc::O_TRUNC,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDWR | libc::O_NONBLOCK,
        ] {
            assert_eq!(world.view.open(&world.path(path), flags), Err(libc::EROFS), "{path} with {flags:o}");
        }
    }
    assert_eq!(world.view.open("single.bin", libc::O_WRONLY), Err(libc::EROFS));
}

pub fn access(world: &World<'_>) {
    let file = world.path("plain.sh");
    let rows = [
        ("semantics", libc::R_OK | libc::X_OK, Ok(())),
        ("semantics", libc::W_OK, Err(libc::EROFS)),
        ("", libc::W_OK, Err(libc::EROFS)),
        (&file, libc::F_OK, Ok(())),
        (&file, libc::R_OK, Ok(())),
        (&file, libc::W_OK, Err(libc::EROFS)),
        (&file, libc::R_OK | libc::W_OK, Err(libc::EROFS)),
        (&file, libc::X_OK, Err(libc::EACCES)),
        ("semantics/run.sh", libc::R_OK | libc::X_OK, Ok(())),
        ("semantics/nothing", libc::F_OK, Err(libc::ENOENT)),
    ];
    for (path, mode, expected) in rows {
        assert_eq!(world.view.access(path, mode), expected, "{mode} of {path:?}");
    }
}

pub fn nonblock(world: &World<'_>) {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK;
    world.control.bring("waited-for.bin");
    let read = world.view.read_with(&world.path("waited-for.bin"), flags, PIECE - 10, 20);
    assert_eq!(read, Ok(world.bytes("waited-for.bin", PIECE - 10, 20)));
}

pub fn bytes(world: &World<'_>) {
    let size = size_of("complete.bin");
    let path = world.path("complete.bin");
    // Offset, length.
    for (offset, len) in [
        (0, 1),
        (0, size),
        (0, size + 1),
        (1, 4096),
        (4095, 4098),
        (PIECE - 1, 2),
        (PIECE, PIECE),
        (PIECE + 7, 2 * PIECE),
        (size - 1, 1),
        (size - 1, 4096),
        (size - 100, 100),
        (size - 101, 1 << 20),
    ] {
        let read = world.view.read(&path, offset, len as usize).unwrap();
        assert!(read == world.bytes("complete.bin", offset, len), "{len} bytes at {offset}: {}", read.len());
    }
    for path in ["run.sh", "folder/inner/leaf.txt", "folder/other/Leaf.txt", "ünïcödé – 文.txt"] {
        let read = world.view.read(&world.path(path), 0, 1 << 20).unwrap();
        assert!(read == world.bytes(path, 0, 1 << 20), "{path}: {} bytes", read.len());
    }
}

pub fn the_end(world: &World<'_>) {
    for path in ["complete.bin", "missing.bin", "half.bin", "empty"] {
        let size = size_of(path);
        for (offset, len) in
            [(size, 1), (size, 1 << 20), (size + 1, 10), (size + (1 << 40), 10), (0, 0), (size, 0)]
        {
            let read = world.view.read(&world.path(path), offset, len);
            assert_eq!(read, Ok(Vec::new()), "{len} bytes of {path} at {offset}");
        }
    }
}
