//! The program's commands that end by themselves, run to their end.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Behaviour, Sample, ScriptedPeer, torrentfs};

/// What a command ended with.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it said besides.
    pub err: String,
}

impl Ended {
    /// Panics unless it ended with this code and said all of these words, wherever.
    #[track_caller]
    pub fn said(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "no \"{word}\" in {self:?}");
        }
        self
    }

    /// What it printed, as JSON. Panics unless it ended with 0.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.parsed()
    }

    /// What it printed, as JSON, whatever it ended with.
    #[track_caller]
    pub fn parsed(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the program to its end, however long that takes.
pub fn ran<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    let output = torrentfs(args).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Fetches a sample's beginning (or all of it) into a cache folder, from a peer of its own, without a mount.
#[track_caller]
pub fn fetch(sample: &Sample, cache: &Path, length: Option<u64>) {
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    fetch_from(sample.torrent.as_os_str(), peer.addr(), cache, length);
}

/// As [`fetch`], of a torrent with a single file, from this peer.
#[track_caller]
pub fn fetch_from(source: &OsStr, peer: SocketAddr, cache: &Path, length: Option<u64>) {
    let (peer, length) = (peer.to_string(), length.unwrap_or(u64::MAX).to_string());
    let fixed = ["cat", "--no-dht", "--listen", "127.0.0.1:0", "--peer", &peer, "--length", &length];
    let mut args: Vec<&OsStr> = fixed.iter().map(OsStr::new).collect();
    args.extend([OsStr::new("--cache-dir"), cache.as_os_str(), source]);
    let output = torrentfs(args).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// The folder of a sample in a cache.
pub fn home(sample: &Sample, cache: &Path) -> PathBuf {
    cache.join(sample.v1.as_ref().or(sample.v2.as_ref()).expect("an info-hash"))
}
