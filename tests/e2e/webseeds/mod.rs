//! Webseeds: HTTP servers as sources of a mounted torrent, alone and beside peers.
//!
//! **Parts.** `nginx`: a real server. `server` (with `flow` and `wire`): one of the tests' own, which does wrong what it
//! is told to; `itself` shows that it does. `alone`: nginx as the only source. `mixed`: nginx beside libtorrent, and
//! going down and up. `sources`: magnets, private hosts, torrents added at run time. `faults`: each fault once.
//! `http2`: those that only HTTP/2 has, from a server of its own.
//! `luck`: all of them at random, with many torrents and readers.
//!
//! What a webseed is at is read from `torrentfs status --json` alone, as a user would.

mod alone;
mod faults;
mod flow;
mod http2;
mod itself;
mod luck;
mod mixed;
mod nginx;
mod server;
mod sources;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{Mount, Reader, Sample, ran, wait_until};

/// For what takes seconds.
const MINUTE: Duration = Duration::from_secs(60);

/// A copy of a sample's `.torrent` that names webseeds. Its info-hash is the same.
pub struct Seeded {
    /// The `.torrent` file.
    pub torrent: PathBuf,
    _dir: TempDir,
}

impl Seeded {
    /// With a `url-list` (BEP 19): a single URL as a string, several as a list.
    pub fn by(sample: &Sample, urls: &[&str]) -> Self {
        let value = match urls {
            [url] => text(url),
            _ => list(urls),
        };
        Self::with(sample, &[("url-list", value)])
    }

    /// With `httpseeds` (BEP 17).
    pub fn by_pieces(sample: &Sample, urls: &[&str]) -> Self {
        Self::with(sample, &[("httpseeds", list(urls))])
    }

    /// With both.
    pub fn by_both(sample: &Sample, urls: &[&str], pieces: &[&str]) -> Self {
        Self::with(sample, &[("url-list", list(urls)), ("httpseeds", list(pieces))])
    }

    fn with(sample: &Sample, more: &[(&str, Vec<u8>)]) -> Self {
        let plain = std::fs::read(&sample.torrent).expect("the sample's torrent");
        let mut entries = entries(&plain);
        entries.extend(more.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.clone())));
        let mut made = b"d".to_vec();
        for (key, value) in entries {
            made.extend(format!("{}:", key.len()).into_bytes());
            made.extend(key);
            made.extend(value);
        }
        made.push(b'e');
        let dir = tempfile::Builder::new().prefix("tfs-seeded-").tempdir().expect("a temporary folder");
        let torrent = dir.path().join("seeded.torrent");
        std::fs::write(&torrent, made).expect("room on the disk");
        Self { torrent, _dir: dir }
    }
}

fn text(text: &str) -> Vec<u8> {
    format!("{}:{text}", text.len()).into_bytes()
}

fn list(texts: &[&str]) -> Vec<u8> {
    [b"l".to_vec(), texts.iter().flat_map(|one| text(one)).collect(), b"e".to_vec()].concat()
}

/// The keys of a bencoded dictionary, and their values as they stand there.
fn entries(bencoded: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut found, mut at) = (BTreeMap::new(), 1);
    while bencoded[at] != b'e' {
        let key = end(bencoded, at);
        let value = end(bencoded, key);
        let colon = at + bencoded[at..key].iter().position(|byte| *byte == b':').expect("a text");
        found.insert(bencoded[colon + 1..key].to_vec(), bencoded[key..value].to_vec());
        at = value;
    }
    found
}

/// Where the value that begins here ends.
fn end(bencoded: &[u8], at: usize) -> usize {
    let to = |byte: u8| at + bencoded[at..].iter().position(|found| *found == byte).expect("well-formed");
    match bencoded[at] {
        b'i' => to(b'e') + 1,
        b'l' | b'd' => {
            let mut inner = at + 1;
            while bencoded[inner] != b'e' {
                inner = end(bencoded, inner);
            }
            inner + 1
        }
        _ => {
            let colon = to(b':');
            let length: usize =
                std::str::from_utf8(&bencoded[at..colon]).expect("digits").parse().expect("a length");
            colon + 1 + length
        }
    }
}

/// What `status --json` says of each webseed of each torrent, by URL.
#[track_caller]
pub fn webseeds(mount: &Mount) -> BTreeMap<String, serde_json::Value> {
    let status = ran(["status", "--json", mount.point().to_str().expect("UTF-8")]).json();
    let torrents = status["torrents"].as_array().expect("torrents").iter();
    let all = torrents.flat_map(|torrent| torrent["webseeds"].as_array().expect("webseeds").clone());
    all.map(|seed| (seed["url"].as_str().expect("a URL").to_owned(), seed)).collect()
}

/// What `status --json` says of one webseed.
#[track_caller]
pub fn webseed(mount: &Mount, url: &str) -> serde_json::Value {
    let mut all = webseeds(mount);
    all.remove(url).unwrap_or_else(|| panic!("no webseed {url} among {all:?}"))
}

/// Waits until the status gives a reason for a webseed's trouble that has all of these words (in small letters).
#[track_caller]
pub fn wait_reason(mount: &Mount, url: &str, words: &[&str]) -> serde_json::Value {
    let (mut seen, end) = (serde_json::Value::Null, Instant::now() + MINUTE);
    while Instant::now() < end {
        seen = webseed(mount, url);
        let reason = seen["reason"].as_str().unwrap_or_default().to_lowercase();
        if !reason.is_empty() && words.iter().all(|word| reason.contains(word)) {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no reason with {words:?}: {seen}");
}

/// Waits until a webseed is in a state.
#[track_caller]
pub fn wait_state(mount: &Mount, url: &str, state: &str) {
    wait_until(&format!("{url} to be {state}"), MINUTE, || webseed(mount, url)["state"] == state);
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the right bytes.
    Right,
    /// With EIO.
    Eio,
}

/// Reads part of a mounted file in a process of its own. Panics unless the right bytes come, or EIO.
#[track_caller]
pub fn read(mount: &Mount, sample: &Sample, file: &str, offset: u64, length: usize) -> Outcome {
    let said = Reader::pread(&mount.path(file), offset, length).success(MINUTE * 2);
    let line =
        said.lines().find(|line| line.starts_with("read ") || line.starts_with("error ")).expect("an answer");
    let words: Vec<_> = line.split(' ').collect();
    if words[0] == "error" {
        assert_eq!(words[1], "EIO", "{said}");
        return Outcome::Eio;
    }
    // What is short of the whole was cut by an error: the file doesn't end there.
    let got: usize = words[1].parse().expect("a length");
    let mut truth = vec![0; got];
    let file = File::open(sample.data.join(file)).expect("the sample's file");
    file.read_exact_at(&mut truth, offset).expect("the sample's bytes");
    let sum: String = Sha256::digest(&truth).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(words[2], sum, "wrong bytes among {got} at {offset}");
    if got == length { Outcome::Right } else { Outcome::Eio }
}
