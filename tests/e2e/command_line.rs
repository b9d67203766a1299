//! Errors of the start: what, why and what to do, with an exit code, and nothing left mounted.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::common::{Proc, Sample, is_mounted, torrentfs};
use crate::needs;

const LIMIT: Duration = Duration::from_secs(30);

/// Runs `torrentfs mount` with these arguments to its end; returns exit code and output.
fn mount(args: impl IntoIterator<Item = impl Into<OsString>>) -> (Option<i32>, String) {
    let mut command = torrentfs(["mount", "--no-dht", "--no-lsd", "--no-port-mapping"]);
    command.args(args.into_iter().map(Into::into));
    let (status, output) = Proc::spawn(command).finish(LIMIT);
    (status.code(), output)
}

/// The start fails with a code of its own, a message with all of these words, no panic and no mount.
fn fails(args: &[&Path], words: &[&str]) -> i32 {
    let (code, output) = mount(args.iter().copied());
    let code = code.unwrap_or_else(|| panic!("{args:?} ended by a signal: {output}"));
    assert!(code != 0 && code < 100, "{args:?}: exit {code}: {output}");
    assert!(!output.contains("panicked"), "{output}");
    for word in words {
        assert!(output.contains(word), "{args:?}: no \"{word}\" in: {output}");
    }
    if let Some(point) = args.last() {
        assert!(!is_mounted(point));
    }
    code
}

#[test]
fn a_start_that_fails_says_what_and_why() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let torrent = sample.torrent.as_path();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (point, full, file, cache) = (at("mnt"), at("full"), at("file"), at("cache"));
    for path in [&point, &full] {
        std::fs::create_dir(path).expect("a folder");
    }
    std::fs::write(full.join("x"), b"x").expect("a file");
    std::fs::write(&file, b"not a torrent").expect("a file");
    let p = Path::new;
    let cached = |args: &[&Path], words: &[&str]| {
        let all: Vec<_> = [p("--cache-dir"), cache.as_path(), p("--listen"), p("127.0.0.1:0")]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        fails(&all, words)
    };

    cached(&[torrent, &at("missing")], &["missing"]);
    cached(&[torrent, &full], &["full", "empty"]);
    cached(&[torrent, &file], &["file"]);
    cached(&[&file, &point], &["file"]);
    cached(&[&at("gone.torrent"), &point], &["gone.torrent"]);
    cached(&[p("magnet:?dn=nothing"), &point], &["magnet"]);
    cached(&[p("--read-timeout"), p("soon"), torrent, &point], &["read-timeout"]);
    cached(&[p("--peer"), p("nowhere"), torrent, &point], &["peer"]);
    cached(&[p("--interface"), p("no-such-card"), torrent, &point], &["no-such-card", "ip link"]);

    let below_a_file = file.join("cache");
    fails(
        &[p("--cache-dir"), &below_a_file, p("--listen"), p("127.0.0.1:0"), torrent, &point],
        &["file/cache"],
    );

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("bound").to_string();
    let port = taken.local_addr().expect("bound").port().to_string();
    fails(&[p("--cache-dir"), &cache, p("--listen"), p(&addr), torrent, &point], &[port.as_str()]);
}

#[test]
fn help_and_version() {
    for (args, word) in
        [(vec!["--help"], "mount"), (vec!["mount", "--help"], "--peer"), (vec!["--version"], "torrentfs")]
    {
        let output = torrentfs(&args).output().expect("runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(word), "{args:?}");
    }
    let output = torrentfs(["mount"]).output().expect("runs");
    assert!(!output.status.success(), "a mount of nothing");
    assert!(!output.stderr.is_empty());
}

#[test]
fn what_is_off_already_can_be_switched_off() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let switches = ["--no-pex", "--no-port-mapping", "--no-trackers"];
    let mount = switches
        .iter()
        .fold(crate::common::Mount::sample(&sample), |mount, switch| mount.arg(switch))
        .start();
    assert_eq!(mount.names(), [sample.name.as_str()]);
    mount.stop();
}
