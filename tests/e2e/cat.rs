//! `torrentfs cat`: the right bytes, no more fetched than that takes, clear ends, and no need of FUSE.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use crate::common::{
    Behaviour, Sample, ScriptedPeer, Seeder, bytes_at, has_tool, magnet, program, skip, torrentfs, wait_until,
};
use crate::needs;
use crate::no_peer::free_port;

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing is to be waited for at the end but a disk: a second, and five times that for a busy machine.
const GONE: Duration = Duration::from_secs(5);

/// `torrentfs cat` with a cache of its own, on loopback without the DHT.
struct Cat {
    args: Vec<OsString>,
    folder: TempDir,
}

/// What it ended with.
struct Ended {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Cat {
    fn new() -> Self {
        Self { args: Vec::new(), folder: tempfile::tempdir().expect("a folder") }
    }

    fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    fn args(self, args: &[&str]) -> Self {
        args.iter().fold(self, |cat, arg| cat.arg(*arg))
    }

    fn peer(self, peer: SocketAddr) -> Self {
        self.arg("--peer").arg(peer.to_string())
    }

    fn line(&self) -> Vec<OsString> {
        let cache = self.folder.path().join("cache");
        let fixed = ["cat", "--listen", "127.0.0.1:0", "--no-dht", "--cache-dir"].map(OsString::from);
        fixed.into_iter().chain([cache.into_os_string()]).chain(self.args.iter().cloned()).collect()
    }

    /// Starts it with its output in pipes.
    fn spawn(&self) -> Running {
        let mut command = torrentfs(self.line());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        Running(child)
    }

    /// Runs it to its end. As often as one likes: the cache stays.
    fn run(&self) -> Ended {
        self.spawn().end()
    }

    /// As [`Cat::run`] with other arguments, on the same cache.
    fn again(self, args: &[&str]) -> Self {
        Self { args: Vec::new(), ..self }.args(args)
    }

    /// Runs it; it ends with 0 and says nothing. Returns what it printed.
    fn prints(&self) -> Vec<u8> {
        let ended = self.run();
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{:?}", self.args);
        ended.out
    }

    /// Runs it; it prints nothing, ends with this code, and says all of these words.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) -> String {
        let ended = self.run();
        assert_eq!((ended.code, ended.out.len()), (Some(code), 0), "{:?}: {}", self.args, ended.err);
        assert!(ended.err.starts_with("torrentfs: "), "{}", ended.err);
        for word in words {
            assert!(ended.err.contains(word), "{:?}: no \"{word}\" in: {}", self.args, ended.err);
        }
        ended.err
    }
}

/// A running one; killed when it is dropped.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("it runs");
    }

    /// Waits for its end, with all it prints.
    fn end(mut self) -> Ended {
        let mut stdout = self.0.stdout.take();
        let reads = std::thread::spawn(move || {
            let mut out = Vec::new();
            stdout.as_mut().map(|from| from.read_to_end(&mut out)).transpose().expect("reads");
            out
        });
        let code = self.ended(MINUTE * 2);
        let mut err = String::new();
        self.0.stderr.take().expect("a pipe").read_to_string(&mut err).expect("UTF-8");
        Ended { code, out: reads.join().expect("reads"), err }
    }

    /// Waits for its end, at most so long.
    #[track_caller]
    fn ended(&mut self, limit: Duration) -> Option<i32> {
        let mut status = None;
        wait_until("the end of cat", limit, || {
            status = self.0.try_wait().expect("wait");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Pieces asked of a peer, sorted.
fn pieces(peer: &ScriptedPeer) -> Vec<u64> {
    let mut all: Vec<u64> = peer.requests().iter().map(|request| request.piece.into()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn a_whole_file_and_again_without_peers() {
    needs!(Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::start(&sample);
    let cat = Cat::new().peer(seeder.addr).arg(&sample.torrent).arg(sample.name.as_str());
    let same = |out: &[u8]| out == std::fs::read(sample.source()).expect("the source");
    assert!(same(&cat.prints()));
    drop(seeder);
    // What came is kept; a file of a torrent that has no other needs no name.
    let cat = cat.again(&["--no-trackers", "--read-timeout", "1s", text(&sample.torrent)]);
    assert!(same(&cat.prints()));
}

#[test]
fn slices() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let (total, piece) = (sample.total, sample.piece_length);
    let rows: &[(&str, Option<&str>, u64, u64)] = &[
        ("0", Some("100"), 0, 100),
        ("1", Some("1"), 1, 1),
        ("256K", Some("1MiB"), piece, 4 * piece),
        ("262143", Some("2"), piece - 1, 2),
        ("1000003", Some("3000017"), 1_000_003, 3_000_017),
        ("8388508", None, total - 100, 100),
        ("8388508", Some("1G"), total - 100, 100),
        ("5", Some("0"), 5, 0),
        // Beyond the end there is nothing, which is no error.
        ("8M", None, total, 0),
        ("1T", Some("1T"), total, 0),
    ];
    let mut cat = Cat::new();
    for (offset, length, from, count) in rows {
        let peer = seeder.addr.to_string();
        let mut args = vec!["--peer", &peer, "--offset", offset, text(&sample.torrent), &sample.name];
        args.extend(length.iter().flat_map(|length| ["--length", length]));
        cat = cat.again(&args);
        let out = cat.prints();
        assert_eq!(out.len() as u64, *count, "{args:?}");
        assert!(out == bytes_at(sample.seed, *from, *count as usize), "{args:?}");
    }
}

#[test]
fn a_slice_fetches_what_it_takes() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let rows: &[(u64, u64)] =
        &[(0, 1), (3 * sample.piece_length + 5, 10), (sample.total - 4, 4), (700_000, 700_000)];
    for (offset, length) in rows {
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let (from, count) = (offset.to_string(), length.to_string());
        let args = ["--offset", &from, "--length", &count, text(&sample.torrent)];
        let out = Cat::new().peer(peer.addr()).args(&args).prints();
        assert!(out == bytes_at(sample.seed, *offset, *length as usize), "{offset} {length}");
        let touched = offset / sample.piece_length..=(offset + length - 1) / sample.piece_length;
        let got = pieces(&peer);
        assert!(touched.clone().all(|piece| got.contains(&piece)), "{touched:?}: {got:?}");
        // What was fetched ahead of the reader is no more than what it read.
        let ahead = got.iter().filter(|piece| !touched.contains(piece)).count() as u64;
        assert!(ahead * sample.piece_length <= *length, "{touched:?}: {got:?}");
    }
}

#[test]
fn nothing_is_fetched_for_nothing() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    for args in [["--length", "0"], ["--offset", "8M"]] {
        let cat = Cat::new().peer(peer.addr()).args(&args).arg(&sample.torrent);
        assert_eq!(cat.prints().len(), 0);
    }
    assert!(pieces(&peer).is_empty());
}

#[test]
fn paths_by_magnet_link() {
    needs!(Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let link = magnet(&sample, &[format!("x.pe={}", seeder.addr)]);
    let mut cat = Cat::new();
    for path in
        ["large/1.bin", "日本語/ファイル 名.bin", "tree/deep/a/b/c/d/e/f/g/h/i/j/leaf", "empty ünïcode"]
    {
        cat = cat.again(&[&link, path]);
        let source: PathBuf = sample.source().join(path.strip_prefix("tree/").unwrap_or(path));
        assert!(cat.prints() == std::fs::read(source).expect("the source"), "{path}");
    }
    // Its metadata is known by now. What isn't there is said without asking anybody.
    let hash = magnet(&sample, &[]);
    let rows: &[(&str, &[&str])] = &[
        ("large/none.bin", &["large/none.bin", "no such file", "\"large\" holds 0.bin, 1.bin, 2.bin, 3.bin"]),
        ("none", &["no such file", "the torrent holds", "more"]),
        ("large", &["it is a folder", "0.bin"]),
        ("tree", &["it is a folder", "folder 00 and 17 more"]),
    ];
    for (path, words) in rows {
        cat = cat.again(&["--no-trackers", &hash, path]);
        cat.fails(1, words);
    }
    cat = cat.again(&["--no-trackers", &hash]);
    cat.fails(1, &["PATH", "holds"]);
}

/// Its data is put into the cache beforehand, where it is found and hashed when it is wanted.
#[test]
fn links_are_followed_within_the_torrent() {
    const DATA: &[u8] = b"what the link leads to";
    let mut info = b"d5:filesld6:lengthi22e4:pathl1:d4:fileeed4:attr1:l6:lengthi0e4:pathl4:linke12:symlink pathl1:d4:file\
        eee4:name6:linked12:piece lengthi16384e6:pieces20:"
        .to_vec();
    info.extend_from_slice(&Sha1::digest(DATA));
    info.push(b'e');
    let hash: String = Sha1::digest(&info).iter().map(|byte| format!("{byte:02x}")).collect();
    let cat = Cat::new();
    let torrent = cat.folder.path().join("linked.torrent");
    std::fs::write(&torrent, [b"d4:info".as_slice(), &info, b"e"].concat()).expect("a file");
    let kept = cat.folder.path().join("cache").join(hash).join("data/d");
    std::fs::create_dir_all(&kept).expect("a folder");
    std::fs::write(kept.join("file"), DATA).expect("a file");
    let mut cat = cat;
    // One regular file: its name may be left out.
    for path in [vec!["link"], vec!["linked/link"], vec!["d/file"], vec![]] {
        cat = cat.again(&["--no-trackers", "--read-timeout", "5s", text(&torrent)]).args(&path);
        assert_eq!(cat.prints(), DATA, "{path:?}");
    }
}

#[test]
fn an_end_without_peers_says_so() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let cat = Cat::new().args(&["--no-trackers", "--read-timeout", "1s"]).arg(&sample.torrent);
    let start = Instant::now();
    cat.fails(8, &["small.bin", "byte 0", "read time-out", "--peer"]);
    assert!(start.elapsed() >= Duration::from_millis(900), "before its time: {:?}", start.elapsed());
    let cat = cat.again(&["--no-trackers", "--metadata-timeout", "1s"]).arg(magnet(&sample, &[]));
    cat.fails(8, &["metadata", "--peer"]);
}

/// The last of the reads that are under way wait for longer than the read time-out, and yet data comes all the
/// time.
#[test]
fn a_slow_peer_is_no_time_out() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let behaviour = Behaviour { rate: Some(512 << 10), ..Behaviour::default() };
    let peer = ScriptedPeer::start(sample.clone(), behaviour);
    let cat = Cat::new().peer(peer.addr()).args(&["--read-timeout", "1s", "--length", "3M"]);
    let out = cat.arg(&sample.torrent).prints();
    assert!(out == bytes_at(sample.seed, 0, 3 << 20));
}

#[test]
fn a_bad_source_or_place_is_refused() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let folder = tempfile::tempdir().expect("a folder");
    let bad = folder.path().join("bad.torrent");
    std::fs::write(&bad, b"not a torrent").expect("a file");
    Cat::new().arg(&bad).fails(1, &["bad.torrent", "not a valid torrent"]);
    Cat::new().args(&["gone.torrent"]).fails(1, &["gone.torrent", "no such file"]);
    let cache = bad.join("cache");
    let args =
        ["cat", "--no-dht", "--listen", "127.0.0.1:0", "--cache-dir", text(&cache), text(&sample.torrent)];
    let output = torrentfs(args).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && said.contains("bad.torrent/cache"), "{said}");
}

/// As `cat` does when SIGPIPE ends it: without a word. And at once, also when nothing more would have come.
#[test]
fn a_closed_pipe_ends_it_quietly() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(1..sample.pieces as u32);
    let cat = Cat::new().peer(peer.addr()).arg(&sample.torrent);
    let mut running = cat.spawn();
    let mut first = [0; 10];
    let mut pipe = running.0.stdout.take().expect("a pipe");
    pipe.read_exact(&mut first).expect("the first piece");
    assert_eq!(first.as_slice(), bytes_at(sample.seed, 0, 10));
    drop(pipe);
    let start = Instant::now();
    let code = running.ended(MINUTE);
    assert!(start.elapsed() < GONE, "{:?}", start.elapsed());
    assert_eq!((code, running.end().err.as_str()), (Some(0), ""));
    // What was asked for by then is little beside the file.
    assert!(pieces(&peer).len() <= 3, "{:?}", pieces(&peer));
    drop(peer);
    // What came is kept, though it ended early.
    let cat =
        cat.again(&["--no-trackers", "--read-timeout", "1s", "--length", "256K", text(&sample.torrent)]);
    assert!(cat.prints() == bytes_at(sample.seed, 0, 256 << 10));
}

#[test]
fn a_closed_pipe_ends_it_while_it_waits_for_metadata() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let cat = Cat::new().arg("--no-trackers").arg(magnet(&sample, &[]));
    let mut running = cat.spawn();
    drop(running.0.stdout.take());
    assert_eq!(running.ended(GONE), Some(0));
}

#[test]
fn each_signal_ends_it_while_it_waits() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour { never_unchoke: true, ..Behaviour::default() });
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let before = peer.connections();
        let cat = Cat::new().peer(peer.addr()).arg(&sample.torrent);
        let running = cat.spawn();
        wait_until("it to wait for its peer", MINUTE, || peer.connections() > before);
        running.signal(signal);
        let start = Instant::now();
        let ended = running.end();
        assert!(start.elapsed() < GONE, "{signal}: {:?}", start.elapsed());
        assert_eq!((ended.code, ended.out.len(), ended.err.as_str()), (Some(130), 0, ""), "{signal}");
    }
}

/// Nobody takes the output: the thread that writes is stuck for good, and the end is not.
#[test]
fn a_signal_ends_it_while_nobody_takes_its_output() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let cat = Cat::new().peer(seeder.addr).arg(&sample.torrent);
    let mut running = cat.spawn();
    let mut pipe = running.0.stdout.take().expect("a pipe");
    pipe.read_exact(&mut [0; 10]).expect("the beginning");
    running.signal(Signal::SIGINT);
    assert_eq!(running.ended(GONE), Some(130));
}

#[test]
fn a_full_disk_under_its_output_is_said() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let cat = Cat::new().peer(seeder.addr).arg(&sample.torrent);
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = torrentfs(cat.line()).stdout(full).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("standard output") && said.contains("No space left"), "{said}");
}

/// With an empty `/dev`, where a mount can only fail.
#[test]
fn it_needs_no_fuse() {
    needs!(Libtorrent);
    let bare = |args: &[OsString]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command
            .arg("mount -t tmpfs none /dev && ! test -e /dev/fuse && exec \"$@\"")
            .arg("sh")
            .arg(program());
        command.args(args).stdin(Stdio::null());
        command.output().expect("unshare runs")
    };
    if !nix::unistd::geteuid().is_root() || !has_tool("unshare") {
        return skip("mounting over /dev needs root and unshare (Debian: util-linux)");
    }
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let cat = Cat::new().peer(seeder.addr).arg(&sample.torrent);
    let point = tempfile::tempdir().expect("a folder");
    let mut mount = cat.line();
    mount[0] = "mount".into();
    mount.push(point.path().into());
    let output = bare(&mount);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("/dev/fuse is missing"), "{said}");
    let output = bare(&cat.line());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == bytes_at(sample.seed, 0, sample.total as usize));
}

/// While nobody is there to send, nobody is asked: the same port as a peer that comes later.
#[test]
fn it_goes_on_when_a_peer_comes() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let addr = SocketAddr::from(([127, 0, 0, 2], free_port()));
    let cat = Cat::new().peer(addr).arg("--length").arg("1M").arg(&sample.torrent);
    let running = cat.spawn();
    let _seeder = Seeder::with(&sample, &addr.to_string(), &[]);
    let ended = running.end();
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert!(ended.out == bytes_at(sample.seed, 0, 1 << 20));
}
