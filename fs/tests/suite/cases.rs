//! The cases.

use std::time::{Duration, Instant};

use torrentfs_fs::attr::Kind;
use torrentfs_fs::content::ContentError;
use torrentfs_fs::mock::MockFile;

use crate::common::{PIECE, SLACK, until};
use crate::subject::{OFFLINE, Subject};

const P: usize = PIECE as usize;

pub fn a_tree_is_shown_as_it_is(fs: &dyn Subject) {
    assert_eq!(fs.list("").unwrap(), [""; 0]);
    fs.mock().add(
        "Torrent",
        &[
            MockFile::new("b/inner/deep.bin", 10),
            MockFile::new("b/a.txt", 5).here(),
            MockFile::new("ünïcödé – 文.txt", 3).here(),
            MockFile::new("empty", 0).here(),
            MockFile::new("run.sh", 9).executable(),
            MockFile::symlink("link", "b/a.txt"),
        ],
    );
    fs.mock().add("single.iso", &[MockFile::new("single.iso", 7).here()]);
    assert_eq!(fs.list("").unwrap(), ["Torrent", "single.iso"]);
    assert_eq!(fs.list("Torrent").unwrap(), ["b", "empty", "link", "run.sh", "ünïcödé – 文.txt"]);
    assert_eq!(fs.list("Torrent/b").unwrap(), ["a.txt", "inner"]);
    assert_eq!(fs.list("Torrent/b/inner").unwrap(), ["deep.bin"]);
    assert_eq!(fs.link("Torrent/link").unwrap(), "b/a.txt");
    assert_eq!(fs.link("Torrent/b"), Err(libc::EINVAL));
    assert_eq!(fs.read("Torrent/empty", 0, 100).unwrap(), b"");
    assert_eq!(fs.stat("single.iso").unwrap().kind, Kind::File);
    for (path, number) in
        [("nothing", libc::ENOENT), ("Torrent/nothing", libc::ENOENT), ("Torrent/empty/below", libc::ENOTDIR)]
    {
        assert_eq!(fs.stat(path), Err(number), "{path}");
    }
    assert_eq!(fs.list("Torrent/empty"), Err(libc::ENOTDIR));
}

pub fn attributes_tell_what_is_here(fs: &dyn Subject) {
    let files = [MockFile::new("d/half", 2 * PIECE), MockFile::new("d/run", 100).here().executable()];
    let root = fs.mock().add("T", &files);
    let half = fs.mock().node(root, "d/half").unwrap();
    let stat = fs.stat("T/d/half").unwrap();
    assert_eq!((stat.kind, stat.ino, stat.size), (Kind::File, half.0, 2 * PIECE));
    assert_eq!((stat.blocks, stat.perm, stat.nlink, stat.mtime), (1, 0o444, 1, 1_500_000_000));
    let run = fs.stat("T/d/run").unwrap();
    assert_eq!((run.perm, run.blocks), (0o555, 1));
    let folder = fs.stat("T").unwrap();
    assert_eq!((folder.kind, folder.perm, folder.nlink), (Kind::Dir, 0o555, 3));
    fs.mock().complete(half, 1);
    // The kernel asks again after a second.
    until("the blocks grow", || fs.stat("T/d/half").unwrap().blocks == PIECE / 512);
}

pub fn f4_reads_are_clamped_to_the_file(fs: &dyn Subject) {
    let size = PIECE + 100;
    let root = fs.mock().add("T", &[MockFile::new("a", size).here(), MockFile::new("b", size).here()]);
    let node = fs.mock().node(root, "a").unwrap();
    let rows = [
        (0, 10, 10),
        (0, 3 * P, P + 100),
        (PIECE + 90, 100, 10),
        (PIECE + 99, 1, 1),
        (PIECE - 1, 2, 2),
        (size, 10, 0),
        (size + 1, 10, 0),
        (u64::from(u32::MAX) * 4, 10, 0),
    ];
    for (offset, len, expected) in rows {
        let bytes = fs.read("T/a", offset, len).unwrap();
        assert_eq!(bytes.len(), expected, "{len} from {offset}");
        assert!(bytes == fs.mock().bytes(node, offset, expected), "{len} from {offset}");
    }
}

pub fn f2_a_reply_is_never_short(fs: &dyn Subject) {
    let root = fs.mock().add("T", &[MockFile::new("a", 3 * PIECE)]);
    let node = fs.mock().node(root, "a").unwrap();
    fs.mock().complete(node, 0);
    fs.mock().complete(node, 2);
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| fs.read("T/a", 0, 3 * P).unwrap());
        let across = scope.spawn(|| fs.read("T/a", PIECE - 5, 10).unwrap());
        // On a mount they share pages, and the kernel asks for each of these once.
        until("both wait", || fs.readers() == 2 && fs.parked() >= 1);
        assert!(!whole.is_finished() && !across.is_finished());
        fs.mock().complete(node, 1);
        assert!(whole.join().unwrap() == fs.mock().bytes(node, 0, 3 * P));
        assert!(across.join().unwrap() == fs.mock().bytes(node, PIECE - 5, 10));
    });
    assert_eq!(fs.parked(), 0);
}

pub fn a_failure_has_its_number(fs: &dyn Subject) {
    for (name, error, number) in [
        ("timeout", ContentError::TimedOut("no block".into()), libc::EIO),
        ("broken", ContentError::Io("disk".into()), libc::EIO),
        ("full", ContentError::NoSpace, libc::ENOSPC),
    ] {
        let root = fs.mock().add(name, &[MockFile::new("a", 2 * PIECE)]);
        let node = fs.mock().node(root, "a").unwrap();
        let path = format!("{name}/a");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| fs.read(&path, 8192, 4096));
            until("it waits", || fs.parked() >= 1);
            fs.mock().fail(node, 0, error);
            assert_eq!(waits.join().unwrap(), Err(number), "{name}");
        });
        // From then on at once, and after it came all the same, not any more.
        assert_eq!(fs.read(&path, 8192, 4096), Err(number), "{name}");
        fs.mock().complete_all(node);
        assert!(fs.read(&path, 8192, 4096).unwrap() == fs.mock().bytes(node, 8192, 4096));
    }
}

pub fn everything_that_writes_is_refused(fs: &dyn Subject) {
    fs.mock().add("T", &[MockFile::new("a", 10).here(), MockFile::symlink("l", "a")]);
    for flags in
        [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_APPEND]
    {
        assert_eq!(fs.open("T/a", flags), Err(libc::EROFS), "{flags:o}");
    }
    assert_eq!(fs.open("T/a", libc::O_RDONLY | libc::O_NONBLOCK), Ok(()));
    assert!(fs.open("T", libc::O_WRONLY).is_err());
    assert!(fs.open("T/none", libc::O_WRONLY | libc::O_CREAT).is_err());
    assert_eq!(fs.open("T/l", libc::O_RDONLY | libc::O_NOFOLLOW), Err(libc::ELOOP));
}

pub fn extended_attributes_follow_the_rules(fs: &dyn Subject) {
    fs.mock().add("T", &[MockFile::new("a", 10).here()]);
    let (path, name) = ("T/a", "user.torrentfs.progress");
    assert_eq!(fs.xattr(path, name, 100).unwrap(), b"10/10");
    assert_eq!(fs.xattr(path, name, 5).unwrap(), b"10/10");
    assert_eq!(fs.xattr(path, name, 0).unwrap().len(), 5);
    assert_eq!(fs.xattr(path, name, 4), Err(libc::ERANGE));
    assert_eq!(fs.xattr(path, "user.torrentfs.error", 100), Err(libc::ENODATA));
    assert_eq!(fs.xattr(path, "security.capability", 100), Err(libc::EOPNOTSUPP));
    assert_eq!(fs.xattr_names(path, 4096).unwrap(), b"user.torrentfs.state\0user.torrentfs.progress\0");
}

pub fn space_counts_all_files(fs: &dyn Subject) {
    fs.mock().add("T", &[MockFile::new("a", 1 << 20), MockFile::new("b", 1)]);
    let (all, free, files) = fs.space();
    assert_eq!((all - free, free, files), ((1 << 20) + 4096, 1 << 30, 2));
}

pub fn f3_failing_is_sticky(fs: &dyn Subject) {
    let missing = MockFile::new("missing", 60 * PIECE);
    fs.mock().add("T", &[missing, MockFile::new("here", 10).here()]);
    std::thread::scope(|scope| {
        let waits: Vec<_> =
            (0..50).map(|i| scope.spawn(move || fs.read("T/missing", i * PIECE + 32768, 4096))).collect();
        until("all wait", || fs.mock().waiting() >= 50);
        fs.fail_reads();
        for waits in waits {
            assert_eq!(waits.join().unwrap(), Err(libc::EIO));
        }
    });
    assert_eq!(fs.parked(), 0);
    assert_eq!(fs.mock().waiting(), 0, "the demands are withdrawn");
    assert_eq!(fs.read("T/missing", 0, 10), Err(libc::EIO));
    assert_eq!(fs.read("T/here", 0, 10), Err(libc::EIO));
    assert_eq!(fs.stat("T/here").unwrap().size, 10, "only reads are refused");
    fs.fail_reads();
}

pub fn a_removed_torrent_is_gone(fs: &dyn Subject) {
    let root = fs.mock().add("T", &[MockFile::new("d/a", 60 * PIECE)]);
    fs.mock().add("other", &[MockFile::new("b", 10).here()]);
    std::thread::scope(|scope| {
        let waits: Vec<_> =
            (0..20).map(|i| scope.spawn(move || fs.read("T/d/a", i * PIECE + 32768, 4096))).collect();
        until("all wait", || fs.mock().waiting() >= 20);
        fs.mock().remove(root);
        for waits in waits {
            assert_eq!(waits.join().unwrap(), Err(libc::ESTALE));
        }
    });
    until("the name goes", || fs.stat("T") == Err(libc::ENOENT));
    assert_eq!(fs.stat("T/d/a"), Err(libc::ENOENT));
    assert_eq!(fs.list("").unwrap(), ["other"]);
    assert_eq!(fs.read("other/b", 0, 10).unwrap().len(), 10);
}

pub fn a_panic_fails_one_call(fs: &dyn Subject) {
    let root = fs.mock().add("T", &[MockFile::new("bad", 10).here(), MockFile::new("good", 10).here()]);
    fs.mock().panic_on_read(fs.mock().node(root, "bad").unwrap());
    // More often than there are threads.
    for _ in 0..8 {
        assert_eq!(fs.read("T/bad", 0, 10), Err(libc::EIO));
    }
    assert_eq!(fs.read("T/good", 0, 10).unwrap().len(), 10);
}

pub fn a_large_folder_is_listed_whole(fs: &dyn Subject) {
    let files: Vec<_> = (0..10_000).map(|i| MockFile::new(&format!("d/file {i:05}"), i)).collect();
    fs.mock().add("T", &files);
    let began = Instant::now();
    let names = fs.list("T/d").unwrap();
    assert!(began.elapsed() < Duration::from_secs(2) * SLACK, "{:?}", began.elapsed());
    assert_eq!(names.len(), 10_000);
    assert!(names.iter().enumerate().all(|(i, name)| *name == format!("file {i:05}")));
}

pub fn o10_a_slow_disk_stops_no_lookup(fs: &dyn Subject) {
    let root =
        fs.mock().add("T", &[MockFile::new("slow", 60 * PIECE).here(), MockFile::new("d/x", 1).here()]);
    let slow = fs.mock().node(root, "slow").unwrap();
    fs.mock().slow_disk(slow, Duration::from_secs(1));
    std::thread::scope(|scope| {
        let reads: Vec<_> = (0..16)
            .map(|i| scope.spawn(move || fs.read("T/slow", i * PIECE + 32768, 4096).unwrap()))
            .collect();
        until("they wait for the disk", || fs.mock().waiting() >= 16);
        for name in ["T/slow", "T/d/x", "T/d", "T/none"] {
            let began = Instant::now();
            let _ = fs.stat(name);
            assert!(began.elapsed() < Duration::from_millis(50) * SLACK, "{name}: {:?}", began.elapsed());
        }
        for (i, read) in (0..).zip(reads) {
            assert!(read.join().unwrap() == fs.mock().bytes(slow, i * PIECE + 32768, 4096));
        }
    });
}

pub fn o10_no_lookup_waits_for_a_call_into_the_content(fs: &dyn Subject) {
    const CALL: Duration = Duration::from_secs(1);
    let files = [MockFile::new("slow", 60 * PIECE).here(), MockFile::new("d/x", 1).here()];
    let root = fs.mock().add("T", &files);
    let slow = fs.mock().node(root, "slow").unwrap();
    // So that it is opened, tried at once, and then asked for: each of these takes its FUSE thread a second.
    fs.mock().slow_disk(slow, Duration::from_millis(1));
    fs.mock().slow_calls(slow, CALL);
    std::thread::scope(|scope| {
        let began = Instant::now();
        let read = scope.spawn(move || (fs.read("T/slow", 32768, 4096), began.elapsed()));
        until("the first call", || fs.mock().in_slow_calls() > 0);
        // How many of each kind began and ended while a call was under way. One that waits for it would take the whole
        // call each time but the first.
        let mut within = [0; 7];
        while !read.is_finished() {
            let looked: [(&str, &dyn Fn() -> bool); 7] = [
                ("stat", &|| fs.stat("T/slow").is_ok()),
                ("stat of another", &|| fs.stat("T/d/x").is_ok()),
                ("a name that isn't there", &|| fs.stat("T/none") == Err(libc::ENOENT)),
                ("list", &|| fs.list("T").is_ok_and(|names| names == ["d", "slow"])),
                ("xattr", &|| fs.xattr("T/slow", "user.torrentfs.progress", 100).is_ok()),
                ("read", &|| fs.read("T/d/x", 0, 1).is_ok_and(|bytes| bytes.len() == 1)),
                ("access", &|| fs.access("T/slow", libc::R_OK).is_ok()),
            ];
            for ((what, look), within) in looked.into_iter().zip(&mut within) {
                let (began, before) = (Instant::now(), fs.mock().in_slow_calls() > 0);
                assert!(look(), "{what}");
                *within += usize::from(
                    before && fs.mock().in_slow_calls() > 0 && began.elapsed() < CALL.mul_f64(0.8),
                );
            }
        }
        let (read, took) = read.join().unwrap();
        assert!(read.unwrap() == fs.mock().bytes(slow, 32768, 4096));
        assert!(took >= 3 * CALL, "three calls took {took:?}");
        assert!(within.iter().all(|looks| *looks >= 3), "{within:?} looks while a call was under way");
    });
}

pub fn o11_a_thousand_readers_wait_and_a_complete_file_reads(fs: &dyn Subject) {
    let size = 8 << 20;
    let root =
        fs.mock().add("T", &[MockFile::new("missing", 1001 * PIECE), MockFile::new("here", size).here()]);
    let here = fs.mock().node(root, "here").unwrap();
    std::thread::scope(|scope| {
        let reader = |i: u64| {
            let read = move || fs.read("T/missing", i * PIECE + 32768, 4096);
            std::thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, read).unwrap()
        };
        let waits: Vec<_> = (0..1000).map(reader).collect();
        until("all wait", || fs.mock().waiting() >= 1000);
        let began = Instant::now();
        let mut at = 0;
        while at < size {
            let bytes = fs.read("T/here", at, 1 << 20).unwrap();
            assert!(bytes == fs.mock().bytes(here, at, bytes.len()));
            at += bytes.len() as u64;
        }
        // At any usual speed it takes some milliseconds.
        assert!(began.elapsed() < Duration::from_secs(1) * SLACK, "{:?}", began.elapsed());
        let began = Instant::now();
        fs.stat("T/here").unwrap();
        assert!(began.elapsed() < Duration::from_millis(100) * SLACK);
        // One of them gets what it waits for; the rest goes at the end.
        let node = fs.mock().node(root, "missing").unwrap();
        fs.mock().complete(node, 500);
        until("one was answered", || waits.iter().any(|waits| waits.is_finished()));
        assert!(waits[500].is_finished());
        fs.fail_reads();
        let failed = waits.into_iter().map(|waits| waits.join().unwrap()).filter(|read| read.is_err());
        assert_eq!(failed.count(), 999);
    });
}

pub fn a_changed_root_shows(fs: &dyn Subject) {
    for round in 0..3 {
        let root = fs.mock().add("name", &[MockFile::new("name", 10 + round).here()]);
        until("the new one shows", || fs.stat("name").is_ok_and(|stat| stat.size == 10 + round));
        let node = fs.mock().node(root, "").unwrap();
        assert_eq!(fs.read("name", 0, 100).unwrap(), fs.mock().bytes(node, 0, 10 + round as usize));
        fs.mock().remove(root);
        until("the old one goes", || fs.stat("name").is_err());
    }
}

pub fn an_offline_reader_gets_what_is_here_and_fetches_nothing(fs: &dyn Subject) {
    let half = MockFile::new("half", 64 * PIECE);
    let root = fs
        .mock()
        .add("T", &[half, MockFile::new("here", 3 * PIECE + 10).here(), MockFile::new("slow", 100).here()]);
    let node = |name: &str| fs.mock().node(root, name).unwrap();
    for piece in [0, 40, 63] {
        fs.mock().complete(node("half"), piece);
    }
    fs.mock().slow_disk(node("slow"), Duration::from_millis(20));
    let rows: &[(&str, u64, usize, bool)] = &[
        ("here", 0, P, true),
        ("here", 2 * PIECE - 5, 10, true),
        ("here", 3 * PIECE, 100, true),
        // Here, and not at hand: a disk may be waited for, the network not.
        ("slow", 0, 100, true),
        ("half", 0, 100, true),
        ("half", 40 * PIECE, 8192, true),
        ("half", 63 * PIECE, P, true),
        ("half", 64 * PIECE, 10, true),
        ("half", PIECE, 100, false),
        ("half", 20 * PIECE + 32768, 4096, false),
        ("half", 62 * PIECE, P, false),
    ];
    for given in [false, true] {
        for (name, offset, len, here) in rows {
            let before = fs.mock().counts();
            let Some(read) = fs.read_as(OFFLINE, given, &format!("T/{name}"), *offset, *len) else { return };
            if *here {
                let size = fs.stat(&format!("T/{name}")).unwrap().size;
                let len = (*len as u64).min(size - offset) as usize;
                assert!(read.unwrap() == fs.mock().bytes(node(name), *offset, len), "{name} {offset}");
            } else {
                assert_eq!(read, Err(libc::ENODATA), "{name} {offset}");
            }
            // Not even asked: the file may be opened for somebody else, and then only that is counted.
            let after = fs.mock().counts();
            assert_eq!(after.asked, before.asked, "{name} {offset}");
            assert_eq!(after.opened - before.opened, u64::from(given), "{name} {offset}");
        }
    }
    // Up to what is missing, or an error: what a program makes of a read that begins with what is here.
    let read = fs.read_as(OFFLINE, false, "T/half", PIECE - 10, 20).unwrap();
    assert!(read == Err(libc::ENODATA) || read.unwrap() == fs.mock().bytes(node("half"), PIECE - 10, 10));
    // A read that waited for the disk counts as parked until a moment after its answer.
    until("nothing waits", || (fs.parked(), fs.mock().waiting()) == (0, 0));
    let counts = fs.mock().counts();
    assert!(counts.opened_here as usize >= rows.len(), "{counts:?}");
}

pub fn an_offline_read_is_no_bar_to_others(fs: &dyn Subject) {
    let root = fs.mock().add("T", &[MockFile::new("a", 60 * PIECE)]);
    let node = fs.mock().node(root, "a").unwrap();
    let here = |piece: u64| piece * PIECE + 32768;
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| fs.read("T/a", here(20), 4096));
        until("it waits", || fs.mock().waiting() == 1);
        for piece in [10, 30] {
            match fs.read_as(OFFLINE, false, "T/a", here(piece), 4096) {
                Some(read) => assert_eq!(read, Err(libc::ENODATA)),
                None => break,
            }
        }
        assert_eq!((fs.mock().waiting(), fs.mock().counts().withdrawn), (1, 0));
        // Where he failed others wait, and get it.
        let after = scope.spawn(|| fs.read("T/a", here(10), 4096));
        until("both wait", || fs.mock().waiting() == 2);
        fs.mock().complete(node, 20);
        fs.mock().complete(node, 10);
        for (read, piece) in [(waits, 20), (after, 10)] {
            assert!(read.join().unwrap().unwrap() == fs.mock().bytes(node, here(piece), 4096));
        }
    });
    // And what others fetched he has.
    if let Some(read) = fs.read_as(OFFLINE, false, "T/a", here(10), 4096) {
        assert!(read.unwrap() == fs.mock().bytes(node, here(10), 4096));
    }
}
