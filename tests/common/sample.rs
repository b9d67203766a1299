//! Deterministic content and its `.torrent` files, made once and kept between runs.
//!
//! A sample lives in the test folder of cargo's target directory, built aside under a file lock and renamed,
//! so that tests in parallel, also in several processes, make it once. Content is a function of (seed,
//! offset): any range can be checked without reading the source.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sha1::{Digest, Sha1};

use super::Proc;
use super::peers::{TorrentKind, make_huge, make_torrent};

/// Raised when samples are made differently, so that kept ones aren't taken.
const VERSION: u32 = 1;
/// The key of [`Sample::huge`], which is too large to be read whole.
const HUGE: &str = "huge-333333";
/// For a check of all files, in which everything is fetched: seconds, on a quiet machine.
const CHECK: Duration = Duration::from_secs(180);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A torrent with its content.
#[derive(Clone)]
pub struct Sample {
    /// The folder that holds the content under its name, as a seeder wants it.
    pub data: PathBuf,
    /// The torrent's name.
    pub name: String,
    /// The `.torrent` file.
    pub torrent: PathBuf,
    /// Info-hash v1 in hex, if it has one.
    pub v1: Option<String>,
    /// Info-hash v2 in hex, if it has one.
    pub v2: Option<String>,
    /// Bytes in each piece but the last.
    pub piece_length: u64,
    /// How many pieces.
    pub pieces: u64,
    /// Bytes of all files together, pad files included.
    pub total: u64,
    /// Path (with the torrent's name in front if it has several) and size of each file, in the torrent's
    /// order.
    pub files: Vec<(String, u64)>,
    /// What [`bytes_at`] needs for a sample of one file.
    pub seed: u64,
    sums: PathBuf,
}

impl Sample {
    /// One file of 256 MiB in pieces of 1 MiB.
    pub fn big() -> Self {
        Self::file("big.bin", 256 * MIB, MIB)
    }

    /// One file of 8 MiB in 32 pieces of 256 KiB.
    pub fn small() -> Self {
        Self::file("small.bin", 8 * MIB, 256 * KIB)
    }

    /// One file of random bytes.
    pub fn file(name: &str, size: u64, piece_length: u64) -> Self {
        let seed = size ^ (u64::from(name.as_bytes()[0]) << 56);
        Self::made(&format!("{name}-{size}-{piece_length}"), seed, |folder| {
            let path = folder.join("data").join(name);
            write_file(&path, seed, size);
            make_torrent(&path, &folder.join("torrent"), TorrentKind::V1, piece_length, &[])
        })
    }

    /// One file of random bytes, in a torrent that is private (BEP 27).
    pub fn private(name: &str, size: u64, piece_length: u64) -> Self {
        let seed = size ^ (u64::from(name.as_bytes()[0]) << 56);
        Self::made(&format!("{name}-{size}-{piece_length}-private"), seed, |folder| {
            let path = folder.join("data").join(name);
            write_file(&path, seed, size);
            make_torrent(&path, &folder.join("torrent"), TorrentKind::V1, piece_length, &["--private"])
        })
    }

    /// One file of random bytes in another kind of torrent.
    pub fn file_of(kind: TorrentKind, name: &str, size: u64, piece_length: u64) -> Self {
        let seed = size ^ (u64::from(name.as_bytes()[0]) << 56);
        Self::made(&format!("{name}-{size}-{piece_length}-{kind:?}"), seed, |folder| {
            let path = folder.join("data").join(name);
            write_file(&path, seed, size);
            make_torrent(&path, &folder.join("torrent"), kind, piece_length, &[])
        })
    }

    /// Some hundred files of 0 to 3,000,000 bytes in nested folders, with unicode names; v1, so that files
    /// begin and end inside pieces.
    pub fn tree() -> Self {
        Self::tree_of(TorrentKind::V1)
    }

    /// The same tree in another kind of torrent.
    pub fn tree_of(kind: TorrentKind) -> Self {
        Self::made(&format!("tree-{kind:?}"), 0, |folder| {
            let root = folder.join("data").join("tree");
            write_tree(&root);
            make_torrent(&root, &folder.join("torrent"), kind, 64 * KIB, &[])
        })
    }

    /// Files given by name and size, in a folder `name`. A name that ends in `.run` is executable.
    pub fn folder(name: &str, files: &[(&str, u64)], piece_length: u64) -> Self {
        Self::folder_of(TorrentKind::V1, name, files, piece_length)
    }

    /// The same in another kind of torrent.
    pub fn folder_of(kind: TorrentKind, name: &str, files: &[(&str, u64)], piece_length: u64) -> Self {
        let key: String =
            files.iter().map(|(file, size)| format!("-{}-{size}", file.replace('/', "_"))).collect();
        // A file name has 255 bytes at most.
        let key = if key.len() > 128 {
            Sha1::digest(key).iter().fold("-".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
        } else {
            key
        };
        let key = if kind == TorrentKind::V1 { key } else { format!("{key}-{kind:?}") };
        Self::made(&format!("folder-{name}-{piece_length}{key}"), 0, |folder| {
            let root = folder.join("data").join(name);
            for (number, (file, size)) in (1..).zip(files) {
                write_file(&root.join(file), number, *size);
            }
            make_torrent(&root, &folder.join("torrent"), kind, piece_length, &[])
        })
    }

    /// A folder with an mp4, whose index (`moov`) stands at its end, and an mkv, each a minute of picture and
    /// noise in 24 MB, made by ffmpeg; pieces of 256 KiB. Its bytes differ between versions of ffmpeg.
    pub fn films() -> Self {
        Self::made("films", 0, |folder| {
            let root = folder.join("data").join("films");
            std::fs::create_dir_all(&root).expect("a folder");
            for (name, sound) in [("film.mp4", "alac"), ("film.mkv", "pcm_s16le")] {
                let mut command = Command::new("ffmpeg");
                command.args(["-v", "error", "-nostdin", "-t", "60", "-f", "lavfi", "-i"]);
                command.args(["testsrc2=size=320x240:rate=25", "-t", "60", "-f", "lavfi", "-i"]);
                command.args(["anoisesrc=sample_rate=96000", "-ac", "2", "-c:v", "mpeg4", "-c:a", sound]);
                command.arg(root.join(name));
                Proc::spawn(command).success(CHECK);
            }
            make_torrent(&root, &folder.join("torrent"), TorrentKind::V1, 256 * KIB, &[])
        })
    }

    /// A folder that `fill` fills by whatever means; it is kept between runs under the name. v1, so that files begin
    /// and end inside pieces; what is executable there is so in the torrent.
    pub fn filled(name: &str, piece_length: u64, fill: &dyn Fn(&Path)) -> Self {
        Self::made(&format!("filled-{name}"), 0, |folder| {
            let root = folder.join("data").join(name);
            std::fs::create_dir_all(&root).expect("a folder");
            fill(&root);
            make_torrent(&root, &folder.join("torrent"), TorrentKind::V1, piece_length, &[])
        })
    }

    /// What [`Made`] says, in a torrent of one folder (or of one file, whose path is then the name); v1, each file
    /// aligned to pieces by padding files. Without a date the `.torrent` tells none. The seeder's copy has the same.
    pub fn of(name: &str, entries: &[(&str, Made)], piece_length: u64, date: Option<i64>) -> Self {
        let mut text = format!("{piece_length} {date:?}");
        for (path, made) in entries {
            text += &match made {
                Made::File(content, executable) => {
                    format!("/{path} {executable} {:x?}", Sha1::digest(content))
                }
                Made::Link(target) => format!("/{path} -> {target}"),
            };
        }
        let key: String = Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        Self::made(&format!("of-{name}-{key}"), 0, |folder| {
            let single = entries.len() == 1 && entries[0].0 == name;
            let root = if single { folder.join("data") } else { folder.join("data").join(name) };
            for (path, made) in entries {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
                match made {
                    Made::Link(target) => std::os::unix::fs::symlink(target, &path).expect("a link"),
                    Made::File(content, executable) => {
                        std::fs::write(&path, content).expect("room on the disk");
                        // libtorrent cuts names, and looks for the data under what is left.
                        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
                        if name.len() > 240 {
                            std::fs::hard_link(&path, path.with_file_name(&name[..240]))
                                .expect("another name");
                        }
                        let mode = if *executable { 0o755 } else { 0o644 };
                        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its own file");
                    }
                }
            }
            let torrent = bencoded(name, entries, single, piece_length, date);
            std::fs::write(folder.join("torrent"), &torrent.file).expect("room on the disk");
            serde_json::json!({
                "name": name, "v1": torrent.info_hash, "v2": null, "piece_length": piece_length,
                "pieces": torrent.pieces, "total_size": torrent.total, "files": torrent.files,
            })
        })
    }

    /// Very many files of a byte each, all zero, in folders `d000`, `d001` and so on; without data to seed. Their
    /// names count on through all folders.
    pub fn many(name: &str, files: usize, folders: usize, date: Option<i64>) -> Self {
        const PIECE: u64 = 64 * KIB;
        Self::made(&format!("many-{name}-{files}-{folders}-{date:?}"), 0, |folder| {
            let per_folder = files.div_ceil(folders);
            let entry = |number: usize| {
                let folder = format!("d{:03}", number / per_folder);
                format!("d6:lengthi1e4:pathl{}:{folder}11:file {number:06}ee", folder.len())
            };
            let list: String = (0..files).map(entry).collect();
            let torrent = bencoded_of(name, &format!("5:filesl{list}e"), &vec![0; files], PIECE, date);
            std::fs::write(folder.join("torrent"), &torrent.file).expect("room on the disk");
            serde_json::json!({
                "name": name, "v1": torrent.info_hash, "v2": null, "piece_length": PIECE,
                "pieces": torrent.pieces, "total_size": files, "files": [],
            })
        })
    }

    /// A sparse file of 333,333 pieces of 16 KiB: a bitfield of 42 KB and metadata of 6.7 MB.
    pub fn huge() -> Self {
        Self::made(HUGE, 0, |folder| make_huge(333_333, &folder.join("data"), &folder.join("torrent")))
    }

    /// `sha256sum -c` against the content, in a folder that holds it under the torrent's name. Panics when it
    /// differs.
    #[track_caller]
    pub fn check_in(&self, folder: &Path) {
        let mut command = Command::new("sha256sum");
        command.args(["-c", "--quiet", "--strict"]).arg(&self.sums).current_dir(folder);
        Proc::spawn(command).success(CHECK);
    }

    /// Where the content stands outside the mount.
    pub fn source(&self) -> PathBuf {
        self.data.join(&self.name)
    }

    /// Fills `buffer`, which is all zero, with the torrent's bytes at `offset`, counted over all files in order.
    pub fn content(&self, offset: u64, buffer: &mut [u8]) {
        let mut begin = 0;
        let end = offset + buffer.len() as u64;
        for (path, size) in &self.files {
            let (from, to) = (offset.max(begin), end.min(begin + size));
            // Filling has no file.
            if from < to && !path.contains("/.pad/") {
                let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
                let file = File::open(self.data.join(path)).expect("the sample's file");
                file.read_exact_at(part, from - begin).expect("the sample's bytes");
            }
            begin += size;
        }
    }

    fn made(key: &str, seed: u64, make: impl FnOnce(&Path) -> serde_json::Value) -> Self {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("samples-{VERSION}"));
        let folder = all.join(key);
        std::fs::create_dir_all(&all).expect("the folder of samples");
        let lock = File::create(all.join(format!("{key}.lock"))).expect("a lock file");
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("its lock");
        if !folder.is_dir() {
            let aside = all.join(format!("{key}.new"));
            let _ = std::fs::remove_dir_all(&aside);
            std::fs::create_dir_all(aside.join("data")).expect("a folder for the sample");
            let meta = make(&aside);
            std::fs::write(aside.join("meta.json"), meta.to_string()).expect("its description");
            if key != HUGE {
                write_sums(&aside);
            }
            std::fs::rename(&aside, &folder).expect("the sample in its place");
        }
        let meta = std::fs::read(folder.join("meta.json")).expect("its description");
        let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
        let text = |key: &str| meta[key].as_str().map(str::to_owned);
        let number = |key: &str| meta[key].as_u64().expect("a number");
        let file = |file: &serde_json::Value| {
            (file[0].as_str().expect("a path").to_owned(), file[1].as_u64().expect("a size"))
        };
        Self {
            data: folder.join("data"),
            name: text("name").expect("a name"),
            torrent: folder.join("torrent"),
            v1: text("v1"),
            v2: text("v2"),
            piece_length: number("piece_length"),
            pieces: number("pieces"),
            total: number("total_size"),
            files: meta["files"].as_array().expect("files").iter().map(file).collect(),
            seed,
            sums: folder.join("SHA256SUMS"),
        }
    }
}

/// What is put at a path by [`Sample::of`].
pub enum Made {
    /// A file of this content, and whether it is executable.
    File(Vec<u8>, bool),
    /// A symbolic link.
    Link(&'static str),
}

/// A `.torrent` made here.
struct Torrent {
    file: Vec<u8>,
    info_hash: String,
    pieces: usize,
    total: u64,
    files: Vec<(String, u64)>,
}

fn bencoded(
    name: &str,
    entries: &[(&str, Made)],
    single: bool,
    piece_length: u64,
    date: Option<i64>,
) -> Torrent {
    let text = |text: &str| format!("{}:{text}", text.len());
    let path = |path: &str| path.split('/').map(text).collect::<String>();
    let (mut list, mut all, mut files) = (String::new(), Vec::new(), Vec::new());
    for (number, (at, made)) in entries.iter().enumerate() {
        match made {
            Made::Link(target) => {
                list +=
                    &format!("d4:attr1:l6:lengthi0e4:pathl{}e12:symlink pathl{}ee", path(at), path(target));
            }
            Made::File(content, executable) => {
                let attr = if *executable { "4:attr1:x" } else { "" };
                list += &format!("d{attr}6:lengthi{}e4:pathl{}ee", content.len(), path(at));
                all.extend_from_slice(content);
                files.push((
                    if single { (*at).to_owned() } else { format!("{name}/{at}") },
                    content.len() as u64,
                ));
                let pad = all.len().next_multiple_of(piece_length as usize) - all.len();
                if pad > 0 && number + 1 < entries.len() {
                    list += &format!("d4:attr1:p6:lengthi{pad}e4:pathl4:.pad{}ee", text(&number.to_string()));
                    all.resize(all.len() + pad, 0);
                }
            }
        }
    }
    let content = if single { format!("6:lengthi{}e", all.len()) } else { format!("5:filesl{list}e") };
    Torrent { files, ..bencoded_of(name, &content, &all, piece_length, date) }
}

/// The `.torrent` of these bytes; `content` is what the info dictionary has before the name.
fn bencoded_of(name: &str, content: &str, all: &[u8], piece_length: u64, date: Option<i64>) -> Torrent {
    let hashes: Vec<u8> = all.chunks(piece_length as usize).flat_map(Sha1::digest).collect();
    let (pieces, length) = (hashes.len() / 20, name.len());
    let mut info =
        format!("d{content}4:name{length}:{name}12:piece lengthi{piece_length}e6:pieces{}:", hashes.len())
            .into_bytes();
    info.extend_from_slice(&hashes);
    info.push(b'e');
    let date = date.map_or(String::new(), |date| format!("13:creation datei{date}e"));
    Torrent {
        file: [b"d", date.as_bytes(), b"4:info", &info, b"e"].concat(),
        info_hash: Sha1::digest(&info).iter().map(|byte| format!("{byte:02x}")).collect(),
        pieces,
        total: all.len() as u64,
        files: Vec::new(),
    }
}

/// The bytes of a file at an offset (a multiple of 8 for speed, but any will do).
pub fn bytes_at(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(seed, offset, &mut bytes);
    bytes
}

/// As [`bytes_at`], into a buffer.
fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut word = offset / 8;
    let head = buffer.len().min(if skip == 0 { 0 } else { 8 - skip });
    let (first, rest) = buffer.split_at_mut(head);
    if head > 0 {
        first.copy_from_slice(&mixed(seed, word).to_le_bytes()[skip..skip + head]);
        word += 1;
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&mixed(seed, word).to_le_bytes()[..chunk.len()]);
        word += 1;
    }
}

/// SplitMix64's finaliser over a counter: fast, and without a pattern that a piece could share with another.
fn mixed(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn write_file(path: &Path, seed: u64, size: u64) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    let file = File::create(path).expect("a file");
    let mut buffer = vec![0; MIB as usize];
    let mut offset = 0;
    while offset < size {
        let part = buffer.len().min((size - offset) as usize);
        fill(seed, offset, &mut buffer[..part]);
        file.write_all_at(&buffer[..part], offset).expect("room on the disk");
        offset += part as u64;
    }
    if path.extension().is_some_and(|extension| extension == "run") {
        file.set_permissions(Permissions::from_mode(0o755)).expect("its own file");
    }
}

fn write_tree(root: &Path) {
    /// Around block and piece borders, and empty.
    const SIZES: [u64; 12] =
        [0, 1, 15, 4_096, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 131_072, 200_001];
    const NAMES: [&str; 12] = [
        "Grüße.txt",
        "日本語/ファイル 名.bin",
        "emoji 🎉🎊.dat",
        "имя с пробелами.txt",
        "-leading-dash",
        "quote'd \"name\".txt",
        "deep/a/b/c/d/e/f/g/h/i/j/leaf",
        ".hidden/.file",
        "percent%20and+plus",
        "e\u{301} combining.txt",
        "empty ünïcode",
        "long/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789.x",
    ];
    let mut seed = 1;
    let mut file = |path: &str, size: u64| {
        write_file(&root.join(path), seed, size);
        seed += 1;
    };
    for folder in 0..12 {
        for (number, size) in SIZES.iter().enumerate() {
            file(
                &format!("folder {folder:02}/sub {}/file {number:02}.bin", number % 3),
                size + folder * 7 % 5 * size.min(&1),
            );
        }
        for number in 0..12 {
            file(&format!("folder {folder:02}/{number:03}.small"), (folder * 977 + number * 3_571) % 30_000);
        }
    }
    for (number, name) in (0..).zip(NAMES) {
        file(name, if name.starts_with("empty") { 0 } else { 20_000 + number * 9_973 });
    }
    for number in 0..4 {
        file(&format!("large/{number}.bin"), 1_500_000 + number * 500_003);
    }
}

fn write_sums(folder: &Path) {
    let sums = File::create(folder.join("SHA256SUMS")).expect("a file of sums");
    let status = Command::new("sh")
        .args(["-c", "find . -type f -print0 | sort -z | xargs -0 sha256sum --"])
        .current_dir(folder.join("data"))
        .stdout(sums)
        .status()
        .expect("sha256sum runs");
    assert!(status.success(), "sha256sum: {status}");
}
