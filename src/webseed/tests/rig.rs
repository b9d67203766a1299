//! A webseed of a small torrent, with a server behind it, and a test in the place of the torrent's owner.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::server::{Server, byte};
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, FileIndex, PieceIndex};
use crate::metainfo::info::{FileKind, Info};
use crate::net::limit::{Chain, RateLimit};
use crate::peer::PeerKey;
use crate::peer::buffer::PieceBuffer;
use crate::peer::event::{Item, PeerEvent};
use crate::peer::outbox::Wanted;
use crate::peer::wire::BlockRequest;
use crate::sync::tasks::TaskScope;
use crate::webseed::for_tests::torrent;
use crate::webseed::{Hub, HubOptions, Kind, Running, Seed, Target, start};

pub(super) const B: u64 = BLOCK_LEN as u64;

/// What the owner was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How often each block came.
    pub came: BTreeMap<BlockRef, usize>,
    pub rejected: Vec<BlockRef>,
    pub recalled: Vec<BlockRef>,
    pub choked: Vec<bool>,
    pub refused: Vec<FileIndex>,
    pub started: usize,
    pub gone: Option<String>,
    /// Told after the end.
    pub late: usize,
}

pub(super) struct Rig {
    pub scope: TaskScope,
    pub server: Arc<Server>,
    pub hub: Arc<Hub>,
    pub info: Arc<Info>,
    pub limit: RateLimit,
    pub running: Running,
    pub told: Told,
    pub events: mpsc::Receiver<PeerEvent>,
    sender: mpsc::Sender<PeerEvent>,
    pub buffers: HashMap<PieceIndex, Arc<PieceBuffer>>,
    keys: u64,
}

/// What a rig is made of.
pub(super) struct Make {
    /// Path below the server's root, length, and whether it is a pad file. One file alone is a single-file torrent.
    pub files: Vec<(&'static str, u64, bool)>,
    pub piece: u32,
    pub kind: Kind,
    pub trusted: bool,
    pub options: HubOptions,
    /// Batches that the owner's channel holds.
    pub channel: usize,
    /// Instead of one of its own.
    pub hub: Option<Arc<Hub>>,
}

impl Make {
    /// One file of so many blocks, in pieces of 16.
    pub(super) fn blocks(blocks: u64) -> Self {
        Self::files(vec![("/f", blocks * B, false)])
    }

    /// These files, in pieces of 16 blocks.
    pub(super) fn files(files: Vec<(&'static str, u64, bool)>) -> Self {
        let options = HubOptions::default();
        Self {
            files,
            piece: 16 * BLOCK_LEN,
            kind: Kind::Url,
            trusted: true,
            options,
            channel: 256,
            hub: None,
        }
    }

    pub(super) fn options(mut self, per_seed: usize, per_host: usize) -> Self {
        self.options = HubOptions { per_seed, per_host };
        self
    }

    /// Starts it all; the webseed's URL has this path.
    pub(super) async fn start(self) -> Rig {
        let scope = TaskScope::root();
        let single = self.files.len() == 1;
        let served: Vec<(String, u64)> = self
            .files
            .iter()
            .map(
                |(path, len, _)| {
                    if single { ((*path).to_owned(), *len) } else { (format!("/n{path}"), *len) }
                },
            )
            .collect();
        let served: Vec<(&str, u64)> = served.iter().map(|(path, len)| (path.as_str(), *len)).collect();
        let server = Server::start(&scope, &served).await;
        let info = Arc::new(if single {
            torrent(b"f", self.piece, &[(&[], self.files[0].1, false)])
        } else {
            let names: Vec<Vec<&[u8]>> = self
                .files
                .iter()
                .map(|(path, ..)| path.trim_start_matches('/').split('/').map(str::as_bytes).collect())
                .collect();
            let files: Vec<_> =
                self.files.iter().zip(&names).map(|((_, len, pad), name)| (&name[..], *len, *pad)).collect();
            torrent(b"n", self.piece, &files)
        });
        let hub = self.hub.unwrap_or_else(|| Hub::new(self.options, crate::net::sockets::Sockets::default()));
        let limit = RateLimit::new(None);
        let url = server.url(if single { self.files[0].0 } else { "/" });
        let (sender, events) = mpsc::channel(self.channel);
        let target = Arc::new(Target {
            info: info.clone(),
            info_hash: [7; 20],
            down_limits: Chain::new([limit.clone()]),
        });
        let seed = Seed { url, kind: self.kind, trusted: self.trusted };
        let running = start(&scope, PeerKey(1), seed, target, hub.clone(), sender.clone());
        Rig {
            scope,
            server,
            hub,
            info,
            limit,
            running,
            told: Told::default(),
            events,
            sender,
            buffers: HashMap::new(),
            keys: 1,
        }
    }
}

impl Rig {
    /// Another host, with these files.
    pub(super) async fn host(&self, files: &[(&str, u64)]) -> Arc<Server> {
        Server::start(&self.scope, files).await
    }

    /// Another webseed of the same torrent and hub; its events come to this rig, too.
    pub(super) fn another(&mut self, url: String) -> Running {
        self.another_of(url, Kind::Url)
    }

    /// The same, asked in this way.
    pub(super) fn another_of(&mut self, url: String, kind: Kind) -> Running {
        self.keys += 1;
        let target = Target {
            info: self.info.clone(),
            info_hash: [7; 20],
            down_limits: Chain::new([self.limit.clone()]),
        };
        let seed = Seed { url, kind, trusted: true };
        start(&self.scope, PeerKey(self.keys), seed, Arc::new(target), self.hub.clone(), self.sender.clone())
    }

    /// Of all blocks of the torrent, these.
    pub(super) fn blocks(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<BlockRef> {
        let geometry = &self.info.geometry;
        let of =
            |piece| (0..geometry.blocks_in(piece)).map(move |n| BlockRef { piece, block: BlockIndex(n) });
        let all: Vec<BlockRef> = geometry.all_pieces().flat_map(of).collect();
        numbers.into_iter().map(|n| all[n]).collect()
    }

    pub(super) fn all(&self) -> Vec<BlockRef> {
        let pieces = self.info.geometry.all_pieces();
        self.blocks(0..pieces.map(|p| self.info.geometry.blocks_in(p) as usize).sum())
    }

    pub(super) fn request(&self, block: BlockRef) -> BlockRequest {
        let len = self.info.geometry.block_len(block);
        BlockRequest { piece: block.piece, begin: block.block.0 * BLOCK_LEN, len }
    }

    pub(super) fn wanted(&mut self, blocks: &[BlockRef], urgent: bool) -> Vec<Wanted> {
        let wanted = |block: &BlockRef| {
            let geometry = &self.info.geometry;
            let new = || Arc::new(PieceBuffer::new(block.piece, geometry.blocks_in(block.piece)));
            let buffer = self.buffers.entry(block.piece).or_insert_with(new).clone();
            let len = geometry.block_len(*block);
            let request = BlockRequest { piece: block.piece, begin: block.block.0 * BLOCK_LEN, len };
            Wanted { request, buffer, urgent }
        };
        blocks.iter().map(wanted).collect()
    }

    pub(super) fn ask(&mut self, blocks: &[BlockRef], urgent: bool) {
        let wanted = self.wanted(blocks, urgent);
        self.running.outbox.request(wanted);
    }

    pub(super) fn cancel(&self, block: BlockRef) {
        self.running.outbox.cancel(self.request(block));
    }

    /// Takes one event in.
    pub(super) fn take(&mut self, event: PeerEvent) {
        if self.told.gone.is_some() {
            self.told.late += 1;
        }
        match event {
            PeerEvent::Webseed { .. } => self.told.started += 1,
            PeerEvent::Refuses { files, .. } => self.told.refused.extend(files),
            PeerEvent::Gone { reason, .. } => self.told.gone = Some(reason),
            PeerEvent::Said { items, .. } => {
                for item in items {
                    match item {
                        Item::Block { block, buffer } => {
                            assert!(buffer.block(block.block).is_some(), "told and not there");
                            *self.told.came.entry(block).or_default() += 1;
                        }
                        Item::Rejected(block) => self.told.rejected.push(block),
                        Item::Recalled(block) => self.told.recalled.push(block),
                        Item::Choked(choked) => self.told.choked.push(choked),
                        other => panic!("{other:?}"),
                    }
                }
            }
            PeerEvent::Connected { .. } | PeerEvent::Unreachable { .. } => panic!("it is no peer"),
        }
    }

    /// Takes events in until this is so.
    pub(super) async fn until(&mut self, so: impl Fn(&Told) -> bool) {
        while !so(&self.told) {
            let event = self.events.recv().await.expect("an event");
            self.take(event);
        }
    }

    /// Until so many different blocks have come.
    pub(super) async fn until_came(&mut self, blocks: usize) {
        self.until(|told| told.came.len() >= blocks || told.gone.is_some()).await;
        assert_eq!(self.told.came.len(), blocks, "{:?}", self.told.gone);
    }

    /// Waits for a state that no event tells of. It is looked at again and again, since a server is asked.
    pub(super) async fn state(&self, so: impl Fn(&Self) -> bool) {
        while !so(self) {
            tokio::task::yield_now().await;
        }
    }

    /// All blocks that came hold the right bytes, each came once, and nothing came from nowhere.
    pub(super) fn check(&self) {
        for (block, times) in &self.told.came {
            assert_eq!(*times, 1, "{block:?} came more than once");
            self.check_block(*block);
        }
    }

    fn check_block(&self, block: BlockRef) {
        let geometry = &self.info.geometry;
        let data = self.buffers[&block.piece].block(block.block).expect("it is here");
        assert_eq!(data.len(), geometry.block_len(block) as usize);
        let at = geometry.piece_offset(block.piece) + u64::from(block.block.0) * B;
        let mut expected = Vec::new();
        for span in geometry.spans(at, data.len() as u64) {
            let file = &self.info.files[span.file.0 as usize];
            let path =
                if self.info.single_file { "/f".to_owned() } else { format!("/n/{}", file.path.join("/")) };
            let pad = file.kind == FileKind::Pad;
            expected.extend(
                (span.offset..span.offset + span.len).map(|at| if pad { 0 } else { byte(&path, at) }),
            );
        }
        assert!(expected == data[..], "{block:?} has wrong bytes");
    }

    /// Closes it, waits for its end, and looks whether anything is left.
    pub(super) async fn close(mut self) -> Told {
        self.running.close();
        self.until(|told| told.gone.is_some()).await;
        self.check();
        self.nothing_left();
        self.told
    }

    /// No claim, no permit, no task but those of the server.
    pub(super) fn nothing_left(&self) {
        assert_eq!(self.hub.under_way(), (0, 0, 0));
        let live = self.scope.live();
        let own: Vec<_> =
            live.iter().filter(|name| name.contains("webseed") && name.contains("/requests/")).collect();
        assert!(own.is_empty(), "{own:?}");
        let health = self.running.health.snapshot();
        let down = self.running.counters.down.load(Ordering::Relaxed);
        assert_eq!(health.bytes, down);
    }
}
