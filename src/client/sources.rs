//! From what the user gave to a torrent that can be added: reading a `.torrent`, fetching one, taking a magnet
//! link apart.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;

use crate::discovery::tracker::http_clients;
use crate::metainfo::id::InfoHash;
use crate::metainfo::info::Info;
use crate::metainfo::magnet::Magnet;
use crate::metainfo::source::Source;
use crate::metainfo::{Metainfo, MetainfoError};
use crate::net::hosts::{self, Reach};
use crate::net::sockets::Sockets;
use crate::sync::timeouts;
use crate::webseed::Kind;

/// A `.torrent` of more bytes isn't read: it would describe over a hundred million pieces.
pub const MAX_TORRENT: u64 = 128 << 20;

/// Why a source gives no torrent.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file can't be read.
    #[error("{}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is too large to be one.
    #[error("{0} has more than 128 MiB, which no .torrent file has")]
    TooLarge(String),
    /// It isn't a valid torrent.
    #[error("{name}: {source}")]
    Invalid {
        /// What.
        name: String,
        /// Why.
        #[source]
        source: MetainfoError,
    },
    /// It could not be fetched.
    #[error("{url} could not be fetched: {why}")]
    Unfetched {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// A v2 torrent by its hash alone.
    #[error(
        "a v2 torrent can't be mounted by its hash alone yet: peers give the metadata, but not the piece layers \
         that its data is checked with; use its .torrent file, or a magnet link that also has a btih hash"
    )]
    OnlyV2,
}

/// A torrent to add.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it is.
    pub info_hash: InfoHash,
    /// Its name while the metadata isn't known.
    pub hint: String,
    /// The metadata, if it came along.
    pub info: Option<Arc<Info>>,
    /// Trackers by tier.
    pub trackers: Vec<Vec<String>>,
    /// Webseeds, each with how it is asked.
    pub webseeds: Vec<(Kind, String)>,
    /// Nodes of the DHT by name or address (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// Peers by name or address.
    pub peers: Vec<(String, u16)>,
    /// When the torrent was made, in seconds since the epoch, if it says so.
    pub created: Option<i64>,
    /// It came from a local `.torrent` file: the hosts that it names may be in the local network.
    pub trusted: bool,
}

/// Loads a source. Waits for the disk (a local file), or for the network, bounded, with a URL. That is the user's own
/// word: it may lead into the local network, and then its redirects may. Otherwise those may as far as `reach` says. It is
/// fetched through `sockets`.
///
/// # Errors
/// See [`SourceError`].
pub async fn load(source: &Source, reach: Reach, sockets: &Sockets) -> Result<Loaded, SourceError> {
    match source {
        Source::Magnet(magnet) => from_magnet(magnet),
        Source::InfoHash(hash) => from_hash(*hash),
        Source::File(path) => from_bytes(&read(path)?, &path.display().to_string()),
        Source::Url(url) => {
            let fetched = tokio::time::timeout(timeouts::TORRENT_URL, fetch(url, reach, sockets)).await;
            let why = || SourceError::Unfetched { url: url.clone(), why: "no answer in time".into() };
            let loaded = from_bytes(&fetched.map_err(|_| why())??, url)?;
            Ok(Loaded { trusted: false, ..loaded })
        }
    }
}

/// As [`load`], what a link or an info-hash says by itself; `None` for what is somewhere else. Pure.
pub fn load_link(source: &Source) -> Option<Result<Loaded, SourceError>> {
    match source {
        Source::Magnet(magnet) => Some(from_magnet(magnet)),
        Source::InfoHash(hash) => Some(from_hash(*hash)),
        Source::File(_) | Source::Url(_) => None,
    }
}

/// As [`load`], an open `.torrent` file, called `name` in errors. Waits for the disk.
///
/// # Errors
/// [`SourceError::Unreadable`], [`SourceError::TooLarge`], [`SourceError::Invalid`].
pub fn load_open(file: std::fs::File, name: &str) -> Result<Loaded, SourceError> {
    from_bytes(&read_open(file, Path::new(name))?, name)
}

fn from_hash(hash: InfoHash) -> Result<Loaded, SourceError> {
    if hash.v1.is_none() {
        return Err(SourceError::OnlyV2);
    }
    Ok(Loaded {
        info_hash: hash,
        hint: hash.to_string(),
        info: None,
        trackers: Vec::new(),
        webseeds: Vec::new(),
        nodes: Vec::new(),
        peers: Vec::new(),
        created: None,
        trusted: false,
    })
}

fn from_magnet(magnet: &Magnet) -> Result<Loaded, SourceError> {
    if magnet.info_hash.v1.is_none() {
        return Err(SourceError::OnlyV2);
    }
    Ok(Loaded {
        info_hash: magnet.info_hash,
        hint: magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string()),
        info: None,
        trackers: magnet.trackers.iter().map(|t| vec![t.clone()]).collect(),
        webseeds: seeds(&magnet.webseeds, Kind::Url).collect(),
        nodes: Vec::new(),
        peers: magnet.peers.iter().filter_map(|p| host_port(p)).collect(),
        created: None,
        trusted: false,
    })
}

/// A torrent from the bytes of a local `.torrent` file; `name` is what messages call it.
///
/// # Errors
/// [`SourceError::Invalid`].
pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Loaded, SourceError> {
    let metainfo =
        Metainfo::parse(bytes).map_err(|source| SourceError::Invalid { name: name.to_owned(), source })?;
    for warning in &metainfo.warnings {
        tracing::warn!("{name}: {warning}");
    }
    let webseeds = seeds(&metainfo.webseeds, Kind::Url).chain(seeds(&metainfo.http_seeds, Kind::Http));
    Ok(Loaded {
        webseeds: webseeds.collect(),
        info_hash: metainfo.info.info_hash,
        hint: metainfo.info.name.clone(),
        info: Some(metainfo.info),
        trackers: metainfo.trackers,
        nodes: metainfo.nodes,
        peers: Vec::new(),
        created: metainfo.creation_date,
        trusted: true,
    })
}

fn seeds(urls: &[String], kind: Kind) -> impl Iterator<Item = (Kind, String)> + '_ {
    urls.iter().map(move |url| (kind, url.clone()))
}

/// Reads a `.torrent` file, bounded.
///
/// # Errors
/// [`SourceError::Unreadable`], [`SourceError::TooLarge`].
pub fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::Unreadable { path: path.to_owned(), source };
    read_open(std::fs::File::open(path).map_err(failed)?, path)
}

fn read_open(file: std::fs::File, path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    file.take(MAX_TORRENT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_TORRENT {
        return Err(SourceError::TooLarge(path.display().to_string()));
    }
    Ok(bytes)
}

async fn fetch(text: &str, reach: Reach, sockets: &Sockets) -> Result<Vec<u8>, SourceError> {
    let failed = |why: String| SourceError::Unfetched { url: text.to_owned(), why };
    let url = reqwest::Url::parse(text).map_err(|e| failed(e.to_string()))?;
    let clients = http_clients(sockets);
    let send = async |reach| match clients
        .of(reach)
        .map_err(|e| (failed(root_cause(&e)), false))?
        .get(url.clone())
    {
        Ok(request) => request.send().await.map_err(|e| match hosts::refused(&e, &url) {
            Some(private) => (failed(private.to_string()), !private.redirected),
            None => (failed(root_cause(&e)), false),
        }),
        Err(private) => Err((failed(private.to_string()), true)),
    };
    let answer = match send(reach).await {
        Err((_, true)) => send(Reach::Any).await,
        other => other,
    };
    let answer = answer.map_err(|(error, _)| error)?;
    if !answer.status().is_success() {
        return Err(failed(format!("the server answered {}", answer.status())));
    }
    let mut bytes = Vec::new();
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|e| failed(e.to_string()))?);
        if bytes.len() as u64 > MAX_TORRENT {
            return Err(SourceError::TooLarge(text.to_owned()));
        }
    }
    Ok(bytes)
}

/// The innermost reason of an error: the outer ones repeat the address and say little.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// `host:port` or `[address]:port`.
fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok().filter(|p| *p != 0)?)).filter(|(host, _)| !host.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_local_files_may_name_hosts_of_the_local_network() {
        const TORRENT: &[u8] = b"d4:infod6:lengthi0e4:name1:n12:piece lengthi1e6:pieces0:ee";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let (head, body) = match request.starts_with(b"GET /moved") {
                    true => ("302 Found\r\nlocation: /x.torrent", &b""[..]),
                    false => ("200 OK", TORRENT),
                };
                let len = body.len();
                let head = format!("HTTP/1.1 {head}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n");
                stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
            }
        };
        let loaded = async {
            // The user's own word is enough to ask a private host for the file, and to follow it; not for more.
            for url in [
                format!("http://{at}/x.torrent"),
                format!("http://{at}/moved"),
                format!("http://localhost:{}/moved", at.port()),
            ] {
                let loaded = load(&Source::Url(url.clone()), Reach::Public, &Sockets::default()).await;
                assert!(!loaded.unwrap().trusted, "{url}");
            }
        };
        tokio::select! {
            () = serve => {}
            () = loaded => {}
        }
        assert!(from_bytes(TORRENT, "it").unwrap().trusted);
        let link = Source::parse(&format!("magnet:?xt=urn:btih:{}", "0".repeat(40))).unwrap();
        assert!(!load_link(&link).unwrap().unwrap().trusted);
        assert!(!load_link(&Source::parse(&"0".repeat(40)).unwrap()).unwrap().unwrap().trusted);
    }

    #[test]
    fn only_a_local_file_may_name_hosts_of_a_private_network() -> Result<(), Box<dyn std::error::Error>> {
        let mut builder = crate::metainfo::TorrentBuilder::new("t", 16384);
        builder.single_file(3).data(b"abc").webseed("http://a/").webseed("http://b/x");
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.torrent");
        std::fs::write(&path, builder.build()?)?;
        let file = load_open(std::fs::File::open(&path)?, "t")?;
        let magnet = "magnet:?xt=urn:btih:0101010101010101010101010101010101010101&ws=http%3A%2F%2Fa%2F";
        let link = load_link(&Source::parse(magnet)?).ok_or("a link")??;
        for (loaded, count, trusted) in [(file, 2, true), (link, 1, false)] {
            assert_eq!((loaded.webseeds.len(), loaded.trusted), (count, trusted));
            assert_eq!(loaded.webseeds.first(), Some(&(Kind::Url, "http://a/".to_owned())));
        }
        Ok(())
    }

    #[test]
    fn hosts_and_ports() {
        for (text, expected) in [
            ("127.0.0.1:80", Some(("127.0.0.1", 80))),
            ("[::1]:6881", Some(("::1", 6881))),
            ("peer.example:1", Some(("peer.example", 1))),
            ("peer.example", None),
            (":1", None),
            ("a:0", None),
            ("a:99999", None),
        ] {
            assert_eq!(host_port(text), expected.map(|(h, p)| (h.to_owned(), p)), "{text}");
        }
    }
}
