//! What comes of each request: the mount's status, torrents added, prefetched, the end begun.
//!
//! Nothing here holds a lock of the client: it looks at snapshots (the table of torrents, the tree, each torrent's
//! published status) and sends commands to owners, which wait with a bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use torrentfs_fs::content::Content;
use torrentfs_fs::tree::{NodeKind, Subtree};

use super::Answers;
use crate::client::Client;
use crate::client::remove::RemoveError;
use crate::client::sources::{self, SourceError};
use crate::content::{Shown, TorrentContent};
use crate::control::message::{
    Added, Change, Code, Ending, Granted, Limited, NewTorrent, Prefetched, Refusal, Removed, Report, Request,
    Who,
};
use crate::control::named::{self, Candidate};
use crate::control::status::{
    Cache, Dht, Mapped, Metadata, Network, Off, Peer, Status, Torrent as TorrentStatus, Tracker, Waiting,
    Webseed,
};
use crate::discovery::dht::DhtStatus;
use crate::discovery::tracker::{TrackerState, TrackerStatus};
use crate::metainfo::Source;
use crate::metainfo::geometry::FileIndex;
use crate::metainfo::info::FileKind;
use crate::net::proxy::Dialer;
use crate::run::report::Reporter;
use crate::run::signals::Signals;
use crate::sync::timeouts;
use crate::torrent::status::{PeerStatus, seed_word};
use crate::torrent::swarm::EVERYTHING;
use crate::torrent::{Command, Torrent};
use crate::webseed::{SeedState, SeedStatus};

/// Between two looks at whether what was added shows: a rebuild takes about as long.
const LOOK: Duration = Duration::from_millis(5);

/// A mount that answers.
pub struct Mounted {
    /// Its torrents.
    pub client: Arc<Client>,
    /// How they show.
    pub content: Arc<TorrentContent>,
    /// Tells what the program is at.
    pub reporter: Arc<Reporter>,
    /// Where.
    pub mountpoint: PathBuf,
    /// Since when.
    pub since: Instant,
    /// How long the end may take.
    pub shutdown: Duration,
    /// Whether the end has been asked for, and by whom it is.
    pub signals: Signals,
}

impl Answers for Mounted {
    async fn answer(&self, request: Request) -> Result<Granted, Refusal> {
        match request {
            Request::Status => Ok(Granted::Status(Box::new(self.status().await))),
            Request::Add(new) => self.add(new).await.map(Granted::Added),
            Request::Remove { torrent, delete_data } => {
                self.remove(&torrent, delete_data).await.map(Granted::Removed)
            }
            Request::Unmount => Ok(Granted::Ending(self.unmount())),
            Request::Debug => match self.reporter.report().await {
                Some(report) => Ok(Granted::Report(Report { report: report.to_string() })),
                None => Err(failed("no report can be made; the log says why")),
            },
            Request::Who => Ok(Granted::Who(Who {
                pid: std::process::id(),
                mountpoint: self.mountpoint.to_string_lossy().into_owned(),
            })),
            Request::Prefetch { path, on } => self.prefetch(&path, on).await.map(Granted::Prefetched),
            Request::Limit { torrent, download, upload } => {
                self.limit(torrent.as_deref(), download, upload).map(Granted::Limited)
            }
        }
    }

    fn moved(&self, socket: &Path) {
        self.content.set_socket(socket.to_owned());
    }
}

impl Mounted {
    async fn status(&self) -> Status {
        let (kept, bound) = self.client.kept();
        let free = tokio::time::timeout(timeouts::CONTROL_SPACE, self.client.free_space()).await;
        let torrents: Vec<TorrentStatus> = self.content.shown().into_iter().map(torrent_status).collect();
        let sum = |of: fn(&TorrentStatus) -> u64| torrents.iter().map(of).fold(0, u64::saturating_add);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            mountpoint: self.mountpoint.to_string_lossy().into_owned(),
            socket: self.content.socket().unwrap_or_default().to_string_lossy().into_owned(),
            uptime: self.since.elapsed().as_secs(),
            port: self.client.port(),
            encryption: self.client.encryption().as_str().into(),
            utp: self.client.has_utp(),
            network: network(&self.client),
            cache: Cache {
                dir: self.client.cache().path().to_string_lossy().into_owned(),
                kept,
                bound,
                free: free.ok().flatten(),
            },
            rate_down: sum(|t| t.rate_down),
            rate_up: sum(|t| t.rate_up),
            downloaded: sum(|t| t.downloaded),
            uploaded: sum(|t| t.uploaded),
            torrents,
        }
    }

    async fn add(&self, new: NewTorrent) -> Result<Added, Refusal> {
        self.not_ending()?;
        let loaded = match new {
            NewTorrent::Source(text) => {
                let source =
                    Source::parse(&text).map_err(|why| Refusal::new(Code::BadSource, why.to_string()))?;
                if let Source::File(_) = source {
                    // Its own user may read what ours may not, and from another folder.
                    let why = "a file is sent, not named: give its bytes in \"torrent\"";
                    return Err(Refusal::new(Code::BadSource, why));
                }
                sources::load(&source, self.client.reach(), self.client.sockets())
                    .await
                    .map_err(bad_source)?
            }
            NewTorrent::File { name, bytes } => sources::from_bytes(&bytes, &name).map_err(bad_source)?,
        };
        let wire = loaded.info_hash.wire().0;
        let known = self.client.find(wire).is_some();
        let torrent = self.client.add(loaded).await.map_err(|error| failed(&error.to_string()))?;
        // So that who looks afterwards sees it as it is, with what is here of it.
        let settled = tokio::time::timeout(timeouts::SETTLE, torrent.settled()).await;
        if settled.is_err() {
            tracing::warn!("the disk is slow to tell what is here of {}", torrent.name());
        }
        let name = self.shown_name(&torrent).await;
        let status = torrent.status();
        if !known {
            tracing::info!("added {name}");
        }
        Ok(Added {
            name,
            infohash: torrent.info_hash.to_string(),
            known,
            here: status.have,
            size: status.size,
        })
    }

    /// The name under which a torrent shows, once it does: the final one, if that is known.
    async fn shown_name(&self, torrent: &Torrent) -> String {
        let wait = async {
            loop {
                let shown = self.content.shown().into_iter().find(|shown| shown.torrent.slot == torrent.slot);
                match shown {
                    Some(shown) if shown.is_final || shown.node.is_some() && torrent.live().is_none() => {
                        return shown.name;
                    }
                    _ => tokio::time::sleep(LOOK).await,
                }
            }
        };
        let shown = tokio::time::timeout(timeouts::CONTROL_SHOWN, wait).await;
        shown.unwrap_or_else(|_| torrent.name().to_owned())
    }

    /// The torrent that is meant by a name or an info-hash.
    fn named(&self, given: &str) -> Result<Shown, Refusal> {
        let mut shown = self.content.shown();
        let candidates: Vec<Candidate<'_>> = shown
            .iter()
            .map(|s| Candidate { shown: &s.name, own: s.torrent.name(), info_hash: s.torrent.info_hash })
            .collect();
        let at = named::meant(given, &candidates)?;
        if at < shown.len() { Ok(shown.swap_remove(at)) } else { Err(failed("it is gone")) }
    }

    /// Changes the limits of a torrent, or those of all together; they hold at once, and until the mount ends.
    fn limit(&self, given: Option<&str>, download: Change, upload: Change) -> Result<Limited, Refusal> {
        self.not_ending()?;
        let meant = given.map(|given| self.named(given)).transpose()?;
        let (down, up) = match &meant {
            Some(shown) => &shown.torrent.sessions.limits().torrent,
            None => self.client.limits(),
        };
        for (limit, change) in [(down, download), (up, upload)] {
            if let Change::To(rate) = change {
                limit.set(rate);
            }
        }
        let name = meant.as_ref().map(|shown| shown.name.clone());
        Ok(Limited { name, download: down.rate(), upload: up.rate() })
    }

    async fn remove(&self, given: &str, delete_data: bool) -> Result<Removed, Refusal> {
        self.not_ending()?;
        let Shown { name, torrent, .. } = &self.named(given)?;
        let removed = self.client.remove(torrent, delete_data).await.map_err(|error| match error {
            RemoveError::NotThere => Refusal::new(Code::NotFound, error.to_string()),
            RemoveError::Closing => Refusal::new(Code::Ending, error.to_string()),
            RemoveError::Data(_) => failed(&error.to_string())
                .hint("what is left of it can be removed later with \"torrentfs cache remove\""),
        })?;
        tracing::info!("removed {name}");
        for left in &removed.hung {
            tracing::warn!("left behind when {name} was removed: {left}");
        }
        // So that who looks afterwards sees it no more.
        let gone = async {
            while self.content.tree().root().any(|(_, node)| TorrentContent::slot(node) == torrent.slot) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(timeouts::CONTROL_SHOWN, gone).await;
        Ok(Removed {
            name: name.clone(),
            infohash: torrent.info_hash.to_string(),
            data_deleted: delete_data,
            freed: removed.freed,
            data_left: removed.adopted.map(|path| path.to_string_lossy().into_owned()),
        })
    }

    /// As the first signal does, so there is one way to end; one that is under way isn't forced.
    fn unmount(&self) -> Ending {
        if self.signals.end() {
            tracing::info!("asked to unmount");
        }
        let within_ms = u64::try_from(self.shutdown.as_millis()).unwrap_or(u64::MAX);
        Ending { pid: std::process::id(), within_ms }
    }

    async fn prefetch(&self, path: &str, on: bool) -> Result<Prefetched, Refusal> {
        self.not_ending()?;
        let mut sum = Prefetched::default();
        let meant = self.meant(path)?;
        // Of several, one that has just gone doesn't keep the others.
        let several = path.split('/').all(str::is_empty);
        for (torrent, files) in meant {
            let told = files.clone().unwrap_or_else(|| vec![EVERYTHING]);
            if !torrent.command(Command::Prefetch { files: told, on }).await {
                if several {
                    continue;
                }
                return Err(not_found(path));
            }
            if let Some(shared) = torrent.live() {
                let all = 0..shared.info.files.len() as u32;
                let meant = files.unwrap_or_else(|| all.map(FileIndex).collect());
                for index in meant {
                    let file = shared.info.files.get(index.0 as usize);
                    if let Some(file) = file.filter(|file| file.kind == FileKind::Regular) {
                        sum.files += 1;
                        sum.size = sum.size.saturating_add(file.size);
                        sum.here = sum.here.saturating_add(shared.bytes_here(index));
                    }
                }
            }
        }
        Ok(sum)
    }

    /// The torrents that a path in the mount means, each with the files; `None` for all of it.
    fn meant(&self, path: &str) -> Result<Vec<Meant>, Refusal> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        let mut shown = self.content.shown().into_iter();
        let Some(first) = names.next() else {
            return Ok(shown.map(|shown| (shown.torrent, None)).collect());
        };
        let meant = shown.find(|shown| shown.name == first).ok_or_else(|| not_found(path))?;
        let tree = self.content.tree();
        let subtree = meant.node.and_then(|node| tree.subtree(node.slot())).ok_or_else(|| not_found(path))?;
        let mut at = 0;
        for name in names {
            at = subtree.child(at, name).ok_or_else(|| not_found(path))?;
        }
        Ok(vec![(meant.torrent, (at != 0).then(|| files_below(subtree, at)))])
    }

    fn not_ending(&self) -> Result<(), Refusal> {
        match self.signals.is_ending() {
            true => Err(Refusal::new(Code::Ending, "the mount is being taken down")),
            false => Ok(()),
        }
    }
}

/// A torrent, and the files of it that are meant; `None` for all of it.
type Meant = (Arc<Torrent>, Option<Vec<FileIndex>>);

/// The files at and below a node, sorted.
fn files_below(subtree: &Subtree, node: u32) -> Vec<FileIndex> {
    let mut found = Vec::new();
    let mut left = vec![node];
    while let Some(node) = left.pop() {
        match subtree.node(node).map(|node| &node.kind) {
            Some(NodeKind::Dir(children)) => left.extend(children),
            Some(NodeKind::File { file, .. }) => found.push(FileIndex(*file)),
            Some(NodeKind::Symlink(_)) | None => {}
        }
    }
    found.sort_unstable();
    found
}

fn network(client: &Client) -> Network {
    let mapping = client.mapping();
    let unmapped = mapping.as_ref().and_then(|status| match &status.trouble {
        Some(trouble) => Some(trouble.clone()),
        None if !status.mappings.is_empty() => None,
        None if status.direct => Some("this machine's own address is one of the internet".to_owned()),
        None => Some("the router hasn't answered yet".to_owned()),
    });
    let mapped = mapping.into_iter().flat_map(|status| status.mappings).map(|mapping| Mapped {
        protocol: mapping.protocol.name().into(),
        by: mapping.method.name().into(),
        internal: mapping.internal,
        external: mapping.external,
        address: mapping.address.map(|address| address.to_string()),
    });
    let off = client.parts().off().iter();
    let proxy = client.sockets().proxy();
    Network {
        port_outside: client.port_outside(),
        dht: client.dht().map(dht),
        lsd: client.has_lsd(),
        mapped: mapped.collect(),
        unmapped,
        proxy: proxy.map(|proxy| proxy.proxy().to_string()),
        proxy_trouble: proxy.and_then(Dialer::trouble),
        off: off.map(|(part, why)| Off { part: part.name().into(), why: (*why).into() }).collect(),
    }
}

fn torrent_status(shown: Shown) -> TorrentStatus {
    let Shown { name, torrent, .. } = shown;
    let torrent = &*torrent;
    let status = torrent.status();
    let waiting = status.waiting.iter().map(|read| {
        let shared = torrent.live();
        let extent = shared.and_then(|s| s.info.geometry.files().get(read.file.0 as usize));
        Waiting {
            file: TorrentContent::label(torrent, read.file),
            offset: read.offset.saturating_sub(extent.map_or(0, |extent| extent.offset)),
            seconds: read.since.elapsed().as_secs(),
        }
    });
    TorrentStatus {
        name,
        infohash: torrent.info_hash.to_string(),
        state: status.state.as_str().into(),
        here: status.have,
        size: status.size,
        metadata: status.metadata.map(|(here, size)| Metadata { here: here.into(), size: size.into() }),
        rate_down: status.rate_down,
        rate_up: status.rate_up,
        downloaded: status.downloaded,
        uploaded: status.uploaded,
        peers: status.peers as u64,
        encrypted: status.encrypted as u64,
        utp: status.utp as u64,
        seeded: status.seeded.clone(),
        connected: status.connected.iter().map(peer).collect(),
        connecting: status.connecting as u64,
        banned: status.banned.len() as u64,
        trackers: torrent.trackers().into_iter().map(tracker).collect(),
        webseeds: torrent.webseeds().into_iter().map(webseed).collect(),
        waiting: waiting.collect(),
        waiting_count: status.waiting_count as u64,
        error: status.error.clone(),
    }
}

fn dht(dht: DhtStatus) -> Dht {
    match dht {
        DhtStatus::Starting => Dht { state: "starting".into(), ..Dht::default() },
        DhtStatus::Running { nodes, nodes6, read_only } => Dht {
            state: "running".into(),
            nodes: nodes as u64,
            nodes6: nodes6 as u64,
            read_only,
            reason: None,
        },
        DhtStatus::Failed(why) => Dht { state: "failed".into(), reason: Some(why), ..Dht::default() },
    }
}

fn peer(peer: &PeerStatus) -> Peer {
    Peer {
        address: peer.addr.to_string(),
        client: peer.client.clone(),
        transport: peer.kind.as_str().into(),
        encryption: peer.cover.as_str().into(),
        source: peer.source.map(|source| source.as_str().into()),
        rate_down: peer.rate_down,
        rate_up: peer.rate_up,
        downloaded: peer.downloaded,
        uploaded: peer.uploaded,
    }
}

fn tracker(tracker: TrackerStatus) -> Tracker {
    let state = match tracker.state {
        TrackerState::Idle => "idle",
        TrackerState::Announcing => "announcing",
        TrackerState::Working => "working",
        TrackerState::Failed => "failed",
        TrackerState::Disabled => "disabled",
    };
    Tracker { url: tracker.name, state: state.into(), reason: tracker.last_error }
}

fn webseed(seed: SeedStatus) -> Webseed {
    let seconds = match seed.state {
        SeedState::Waiting { seconds } => Some(seconds),
        SeedState::Idle | SeedState::Fetching | SeedState::Dropped => None,
    };
    Webseed {
        state: seed_word(seed.state).into(),
        seconds,
        url: seed.url,
        reason: seed.reason,
        refused_files: seed.refused_files as u64,
        requests: seed.requests,
        downloaded: seed.bytes,
    }
}

fn bad_source(error: SourceError) -> Refusal {
    Refusal::new(Code::BadSource, error.to_string())
}

fn failed(why: &str) -> Refusal {
    Refusal::new(Code::Failed, why)
}

fn not_found(path: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no {path} in the mount"))
}
