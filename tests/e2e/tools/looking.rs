//! Tools that list, count, search, and read here and there.

use super::{Fixture, KIB, MIB, MINUTE, shell, things};
use crate::common::{Proc, Sample};
use crate::needs;

#[test]
fn find() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(things());
    for predicates in [
        "-printf '%y %P\\n'",
        "-type f -printf '%s %P\\n'",
        "-type f -empty -print",
        "-type f -size +100k -print",
        "-type l -printf '%P %l\\n'",
        "-xtype f -print",
        "-follow -type f -size +200k -print",
        "-type f -perm /111 -print",
        "-type d -links 2 -print",
        "-iname '*.TXT' -print",
        "-type f ! -newermt 1990-01-01 -print",
        "-depth -maxdepth 2 -print",
    ] {
        // The source's times and link counts of folders are its own file system's.
        if predicates.contains("-links") {
            let leaves = shell("find . -type d -links 2 -print | sort", &fixture.root(), &[]);
            assert_eq!(leaves, "./deep/er/est\n");
            continue;
        }
        fixture.same(&format!("find . {predicates} | sort"));
    }
    let dated = shell("find . -newermt @1234567889 ! -newermt @1234567890 | wc -l", &fixture.root(), &[]);
    assert_eq!(dated, shell("find . | wc -l", &fixture.root(), &[]), "all of one date");
    // By its inode number.
    let number = "find . -inum \"$(stat -c %i deep/er/est/data.bin)\" -print";
    assert_eq!(shell(number, &fixture.root(), &[]), "./deep/er/est/data.bin\n");
    fixture.end();
}

#[test]
fn du() {
    needs!(Fuse, Libtorrent);
    let sample =
        Sample::folder("counted", &[("a.bin", MIB), ("d/b.bin", 3 * MIB + 1), ("d/empty", 0)], 64 * KIB);
    let fixture = Fixture::new(sample);
    let sum = |options: &str, files: &str| {
        let said =
            shell(&format!("du -c -B1 {options} {files} | tail -n 1 | cut -f 1"), &fixture.root(), &[]);
        said.trim().parse::<u64>().expect("a number")
    };
    let total = 4 * MIB + 1;
    assert_eq!(sum("--apparent-size", "a.bin d/b.bin d/empty"), total);
    // Two folders of 4096 bytes.
    assert_eq!(sum("--apparent-size", "."), total + 2 * 4096);
    assert_eq!(sum("", "."), 2 * 512, "nothing is here: a block for each file that isn't empty");
    shell("cat a.bin > /dev/null", &fixture.root(), &[]);
    crate::common::wait_until("it shows as here", MINUTE, || sum("", "a.bin") == MIB);
    assert!((MIB + 512..=MIB + 512 + 64 * KIB).contains(&sum("", ".")), "{}", sum("", "."));
    shell("cat d/b.bin > /dev/null", &fixture.root(), &[]);
    crate::common::wait_until("all of it is here", MINUTE, || sum("", ".") == total.next_multiple_of(512));
    fixture.end();
}

#[test]
fn dd_with_odd_block_sizes() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(Sample::small());
    let (path, source) = (fixture.root(), fixture.sample.source());
    for operands in [
        "bs=1 count=5000 skip=262100",
        "bs=7 count=20000",
        "bs=511 count=2000 skip=3001",
        "bs=513",
        "bs=4097 skip=63",
        "bs=65537 skip=3",
        "bs=1000003",
        "bs=1M iflag=direct",
        "bs=4096 iflag=direct skip=3 count=77",
        "bs=12345 iflag=fullblock,nonblock skip=600",
        "bs=99999 iflag=count_bytes,skip_bytes count=1234567 skip=7654321",
        // From its end, and beyond.
        "bs=1M skip=8",
        "bs=1000 iflag=skip_bytes skip=8388607",
    ] {
        let command = format!("dd if=\"$1\" status=none {operands} | sha256sum");
        let folder = fixture.mount.cache();
        let (here, there) = (shell(&command, folder, &[&path]), shell(&command, folder, &[&source]));
        assert_eq!(here, there, "dd {operands}");
    }
    fixture.end();
}

#[test]
fn tail_c() {
    needs!(Fuse, Libtorrent);
    let mut fixture = Fixture::new(Sample::small());
    let folder = fixture.mount.cache().to_owned();
    for count in ["1", "100", "4097", "+8388600", "+8388608", "+8388609", "0"] {
        let command = format!("tail -c {count} \"$1\" | od -An -tx1");
        let here = shell(&command, &folder, &[&fixture.root()]);
        assert_eq!(here, shell(&command, &folder, &[&fixture.sample.source()]), "tail -c {count}");
    }
    // The last piece, and the one before at most: the kernel reads a little ahead of what is read.
    let sent = fixture.seeder.uploaded();
    assert!(sent <= 2 * fixture.sample.piece_length, "{sent} bytes for the end of a file");
    for count in ["300000", "9000000"] {
        let command = format!("tail -c {count} \"$1\" | sha256sum");
        let here = shell(&command, &folder, &[&fixture.root()]);
        assert_eq!(here, shell(&command, &folder, &[&fixture.sample.source()]), "tail -c {count}");
    }
    fixture.end();
}

#[test]
fn grep_r() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(things());
    for options in ["-rl", "-rc", "-rlZ", "-rnb", "-Rl", "-rL", "-rl --include=*.txt"] {
        fixture.same(&format!("grep {options} needle . | sort"));
    }
    assert_eq!(shell("grep -rl needle .", &fixture.root(), &[]), "./read.txt\n");
    // A file of zeros is searched through, not skipped as a hole; and one of random bytes is binary.
    fixture.same("grep -c -a -P '\\x00{4}' zeros.bin");
    fixture.same("grep -rcP '[\\x80-\\xff]{3}' . | sort");
    fixture.end();
}

#[test]
fn python_with_mmap_and_pread() {
    const SCRIPT: &str = r#"
import hashlib, mmap, os, random, sys, tempfile
path = sys.argv[1]
size = os.path.getsize(path)
file = os.open(path, os.O_RDONLY)
random.seed(5)
places = [(random.randrange(size), random.randrange(1, 200_000)) for _ in range(60)]
by_pread = hashlib.sha256(b"".join(os.pread(file, length, offset) for offset, length in places)).hexdigest()
shared = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
by_mmap = hashlib.sha256(b"".join(shared[offset:offset + length] for offset, length in places)).hexdigest()
assert by_pread == by_mmap
own = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
own[0:5] = b"12345"
assert own[0:5] == b"12345" and shared[0:5] == os.pread(file, 5, 0) != b"12345"
try:
    mmap.mmap(file, 0, access=mmap.ACCESS_WRITE)
    print("written to")
except PermissionError:
    pass
shared.madvise(mmap.MADV_SEQUENTIAL)
print(by_pread, hashlib.sha256(shared).hexdigest(), shared.find(own[5_000_000:5_000_100]), shared.rfind(b"\0\0"))
first, second = bytearray(10), bytearray(100_000)
print(os.preadv(file, [first, second], size - 50_000), hashlib.sha256(first + second).hexdigest())
with tempfile.TemporaryFile() as copy:
    sent = 0
    while sent < size:
        sent += os.sendfile(copy.fileno(), file, sent, size - sent)
    copy.seek(0)
    print(hashlib.file_digest(copy, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(copy.read()).hexdigest())
with open(path, "rb", buffering=0) as raw:
    raw.seek(-100, os.SEEK_END)
    print(len(raw.read()), len(raw.read()), raw.seekable(), raw.writable())
"#;
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(Sample::small());
    let run = |path: &std::path::Path| {
        let python = crate::common::python().expect("python");
        Proc::start(python, ["-c".as_ref(), SCRIPT.as_ref(), path.as_os_str()]).success(MINUTE)
    };
    let here = run(&fixture.root());
    assert_eq!(here, run(&fixture.sample.source()));
    assert!(here.contains(" 5000000 ") && !here.contains("written to"), "{here}");
    fixture.end();
}
