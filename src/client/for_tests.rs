//! Clients without a network but loopback, and torrents whose bytes are known: for tests of this room and of those above.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::sources::Loaded;
use super::{Client, Options};
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::info::Info;
use crate::storage::StorageKind;
use crate::storage::cache::CacheDir;
use crate::storage::resume::{self, ResumeData};
use crate::sync::tasks::TaskScope;
use crate::torrent::background::Prefetch;

/// Bytes of a piece of the torrents here.
pub(crate) const PIECE: u32 = 16 * 1024;
/// For what happens at once, on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// On loopback, at any port, with nobody to ask.
pub(crate) fn options() -> Options {
    Options {
        listen_addr: Some([127, 0, 0, 1].into()),
        listen_port: Some(0),
        interface: None,
        proxy: None,
        peers: Vec::new(),
        trackers: Vec::new(),
        use_trackers: false,
        allow_private_hosts: false,
        use_dht: false,
        use_lsd: false,
        encryption: crate::peer::mse::Policy::Prefer,
        use_pex: false,
        use_utp: false,
        use_port_mapping: false,
        dht_bootstrap: None,
        read_timeout: None,
        max_peers: 80,
        max_connections: 400,
        download_limit: None,
        upload_limit: None,
        unlimited_local_peers: false,
        filter: Arc::default(),
        upload: true,
        goals: crate::torrent::goal::Goals::default(),
        storage: StorageKind::File,
        cache_size: None,
        min_free: Some(0),
        check_all: false,
        trust_resume: true,
        prefetch: Prefetch::None,
    }
}

/// A client in tasks of its own.
pub(crate) struct Running {
    pub(crate) client: Arc<Client>,
    pub(crate) scope: TaskScope,
}

impl Running {
    pub(crate) async fn start(cache: &Path, options: Options) -> Self {
        let scope = TaskScope::root();
        let cache = Arc::new(CacheDir::open(cache).unwrap());
        let client = Client::start(scope.child("client"), cache, options).await.unwrap();
        Self { client, scope }
    }

    /// Ends it; nothing is left.
    pub(crate) async fn stop(self) {
        self.scope.cancel();
        assert_eq!(self.scope.join(LONG).await, [""; 0]);
        let client = self.client.clone();
        let stopping = std::thread::Builder::new().spawn(move || client.stop_workers(LONG)).unwrap();
        assert!(stopping.join().unwrap().is_empty());
    }
}

/// A torrent and its bytes.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) info: Arc<Info>,
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    /// A folder with these files; without any, a single file of 64 KiB.
    pub(crate) fn new(name: &str, files: &[(&str, u64)]) -> Self {
        let total: u64 = if files.is_empty() { 64 << 10 } else { files.iter().map(|(_, size)| size).sum() };
        let seed = name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        let bytes: Vec<u8> = (0..total).map(|at| (at.wrapping_mul(seed | 1) >> 5) as u8 | 1).collect();
        let mut builder = TorrentBuilder::new(name, PIECE);
        if files.is_empty() {
            builder.single_file(total);
        }
        for (path, size) in files {
            builder.file(*path, *size);
        }
        let info = Arc::new(Info::parse(&builder.data(&bytes).info().unwrap(), None).unwrap());
        Self { info, bytes }
    }

    /// As a `.torrent` gives it.
    pub(crate) fn loaded(&self) -> Loaded {
        Loaded { info: Some(self.info.clone()), trusted: true, ..self.magnet(Vec::new()) }
    }

    /// As a magnet link gives it, with these peers.
    pub(crate) fn magnet(&self, peers: Vec<(String, u16)>) -> Loaded {
        Loaded {
            info_hash: self.info.info_hash,
            hint: format!("hint of {}", self.info.name),
            info: None,
            trackers: Vec::new(),
            webseeds: Vec::new(),
            nodes: Vec::new(),
            peers,
            created: Some(1_500_000_000),
            trusted: false,
        }
    }

    /// Its name in a cache folder.
    pub(crate) fn key(&self) -> String {
        self.info.info_hash.to_string()
    }

    /// Puts all of it into a cache folder, as an earlier run leaves it.
    pub(crate) fn put(&self, cache: &Path) {
        let home = cache.join(self.key());
        let mut at = 0;
        for (file, extent) in self.info.files.iter().zip(self.info.geometry.files()) {
            let path = file.path.iter().fold(home.join("data"), |path, part| path.join(part));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &self.bytes[at..at + extent.len as usize]).unwrap();
            at += extent.len as usize;
        }
        let pieces = self.info.geometry.pieces();
        let mut complete = vec![0; pieces.div_ceil(8) as usize];
        (0..pieces).for_each(|piece| complete[piece as usize / 8] |= 0x80 >> (piece % 8));
        let data = ResumeData { complete, clean: false, ..ResumeData::new(&self.key(), &self.info) };
        resume::save(&home, &data).unwrap();
    }
}
