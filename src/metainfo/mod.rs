//! Metainfo (BEP 3, 5, 9, 12, 17, 19, 27, 47, 52, 53): what a torrent is, before any peer is known. Pure: no
//! file, socket or clock; bytes and text in, checked values out.
//!
//! - [`Metainfo`], here: a `.torrent` file, the info dictionary and what stands around it.
//! - [`info`]: the info dictionary, v1, v2 or both, in one model; [`pieces`]: its hashes; [`geometry`]: where
//!   pieces and files lie; [`path`]: names made safe.
//! - [`magnet`], [`source`]: what a user types. [`id`]: info-hashes.
//! - [`bencode`]: the notation. [`build`]: making a v1 torrent. [`inspect`]: what `torrentfs inspect` prints.
//!
//! Everything here is given by strangers: sizes, counts and depths are bounded, and what is wrong ends as a
//! [`MetainfoError`] of one line. What is merely odd outside of the info dictionary is skipped with a warning.

pub mod bencode;
pub mod build;
pub mod error;
pub mod geometry;
pub mod id;
pub mod info;
pub mod inspect;
pub mod magnet;
pub mod path;
pub mod pieces;
pub mod source;

use std::collections::HashSet;
use std::sync::Arc;

use bencode::Value;
pub use build::TorrentBuilder;
pub use error::{FileProblem, MetainfoError};
pub use id::{Id20, InfoHash};
use info::Warnings;
pub use info::{FileEntry, FileKind, Info, PieceLayers};
pub use magnet::Magnet;
pub use pieces::{PieceCheck, PieceHash, PieceHashes};
pub use source::Source;

/// Trackers, webseeds or nodes of one torrent. Real lists have some tens; each may become a task.
const MAX_URLS: usize = 200;

/// Webseeds of one torrent, of each kind. Real lists have a handful; each becomes some tasks and connections.
const MAX_WEBSEEDS: usize = 50;

/// The longest URL that is kept, in bytes: what common HTTP servers take.
pub(crate) const MAX_URL: usize = 8 * 1024;

/// A `.torrent` file.
#[derive(Debug, Clone)]
pub struct Metainfo {
    /// The info dictionary.
    pub info: Arc<Info>,
    /// Tiers of trackers (BEP 12), none of them empty; `announce` when there is no `announce-list`.
    pub trackers: Vec<Vec<String>>,
    /// `url-list` (BEP 19): those that [`webseed_url`] takes, at most 50.
    pub webseeds: Vec<String>,
    /// `httpseeds` (BEP 17), in the same way.
    pub http_seeds: Vec<String>,
    /// DHT nodes (BEP 5): host and port.
    pub nodes: Vec<(String, u16)>,
    /// Seconds since 1970, as its maker says.
    pub creation_date: Option<i64>,
    /// Of its maker.
    pub comment: Option<String>,
    /// The program that made it.
    pub created_by: Option<String>,
    /// What was left out or mended, a line each; those of `info` first.
    pub warnings: Vec<String>,
}

impl Metainfo {
    /// Reads a `.torrent` file.
    ///
    /// # Errors
    /// What is wrong, on one line.
    pub fn parse(input: &[u8]) -> Result<Metainfo, MetainfoError> {
        let root = bencode::parse(input)?;
        if !root.is_dict() {
            return Err(MetainfoError::NotDictionary("the file"));
        }
        let info = root.get("info").ok_or(MetainfoError::Missing("info"))?;
        // Absent is not the same as empty only for metadata from peers; a file without needs none, or errs
        // with the name of the file that does.
        let layers = match root.get("piece layers") {
            Some(value) => PieceLayers::read(value)?,
            None => PieceLayers::default(),
        };
        let info = Arc::new(Info::parse(info.raw(), Some(&layers))?);

        let mut warnings = Warnings::default();
        let text = |key: &str| root.get(key).and_then(Value::as_bytes).map(lossy);
        let mut urls = Urls::new("trackers", &mut warnings);
        let mut trackers: Vec<Vec<String>> = root
            .get("announce-list")
            .and_then(Value::list)
            .into_iter()
            .flatten()
            // Some files have the URLs where the tiers should be: each is a tier.
            .map(|tier| urls.take(tier))
            .filter(|tier| !tier.is_empty())
            .collect();
        if trackers.is_empty() {
            trackers.extend(root.get("announce").map(|url| urls.take(url)).filter(|tier| !tier.is_empty()));
        }
        let mut seeds = |key, what| match root.get(key) {
            Some(value) => Urls::new(what, &mut warnings).of_webseeds().take(value),
            None => Vec::new(),
        };
        let webseeds = seeds("url-list", "webseeds");
        let http_seeds = seeds("httpseeds", "HTTP seeds");
        let nodes = root.get("nodes").map(|value| nodes(value, &mut warnings)).unwrap_or_default();
        Ok(Metainfo {
            trackers,
            webseeds,
            http_seeds,
            nodes,
            creation_date: root.get("creation date").and_then(Value::as_int),
            comment: text("comment.utf-8").or_else(|| text("comment")),
            created_by: text("created by"),
            warnings: [info.warnings.clone(), warnings.lines()].concat(),
            info,
        })
    }

    /// What is known of a torrent whose info dictionary came from peers (BEP 9). Each tracker is its own tier.
    pub fn from_magnet(info: Arc<Info>, magnet: &Magnet) -> Metainfo {
        Metainfo {
            trackers: magnet.trackers.iter().map(|url| vec![url.clone()]).collect(),
            webseeds: magnet.webseeds.clone(),
            http_seeds: Vec::new(),
            nodes: Vec::new(),
            creation_date: None,
            comment: None,
            created_by: None,
            warnings: info.warnings.clone(),
            info,
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Collects URLs of one kind: each once, a bounded number of them.
struct Urls<'w> {
    what: &'static str,
    most: usize,
    /// What else makes a URL unusable.
    check: fn(&str) -> Result<(), String>,
    seen: HashSet<String>,
    warnings: &'w mut Warnings,
}

impl<'w> Urls<'w> {
    fn new(what: &'static str, warnings: &'w mut Warnings) -> Self {
        Self { what, most: MAX_URLS, check: |_| Ok(()), seen: HashSet::new(), warnings }
    }

    fn of_webseeds(self) -> Self {
        Self { most: MAX_WEBSEEDS, check: |url| webseed_url(url).map(|_| ()), ..self }
    }

    /// The URLs of a string or a list of strings that weren't there before.
    fn take(&mut self, value: Value<'_>) -> Vec<String> {
        let alone = value.list().is_none().then_some(value);
        let mut taken = Vec::new();
        for item in value.list().into_iter().flatten().chain(alone) {
            let what = self.what;
            let Some(url) = item.as_str().map(str::trim) else {
                self.warnings.push(|| format!("one of the {what} is not a text; skipped"));
                continue;
            };
            if url.is_empty() || self.seen.contains(url) {
                continue;
            }
            if url.len() > MAX_URL || url.contains(char::is_control) {
                self.warnings.push(|| format!("one of the {what} is not a usable URL; skipped"));
            } else if let Err(why) = (self.check)(url) {
                let url = path::printable(url);
                self.warnings.push(|| format!("one of the {what}, {url}, can't be used: {why}; skipped"));
            } else if self.seen.len() >= self.most {
                self.warnings.push(|| format!("more than {} {what}; the rest is skipped", self.most));
                break;
            } else {
                self.seen.insert(url.to_owned());
                taken.push(url.to_owned());
            }
        }
        taken
    }
}

/// Reads the URL of a webseed: an absolute one of HTTP or HTTPS (FTP, which BEP 19 also names, isn't spoken).
///
/// # Errors
/// What is wrong with it.
pub fn webseed_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text.trim()).map_err(|error| format!("not a URL ({error})"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("{other} is not supported, only http and https are")),
    }
}

/// DHT nodes: a list of host and port.
fn nodes(value: Value<'_>, warnings: &mut Warnings) -> Vec<(String, u16)> {
    let node = |pair: Value<'_>| {
        let mut pair = pair.list()?;
        let host = pair.next()?.as_str().filter(|host| is_host(host))?;
        let port = u16::try_from(pair.next()?.as_int()?).ok().filter(|&port| port > 0)?;
        Some((host.to_owned(), port))
    };
    let mut nodes = Vec::new();
    for pair in value.list().into_iter().flatten().take(MAX_URLS) {
        match node(pair) {
            Some(node) => nodes.push(node),
            None => warnings.push(|| "one of the DHT nodes is not a host and a port; skipped".to_owned()),
        }
    }
    nodes
}

/// Whether text can be a host's name or address (BEP 5, 9); a name has at most 253 bytes.
fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.chars().all(|c| c.is_alphanumeric() || ".-_:%".contains(c))
}

#[cfg(test)]
mod tests;
