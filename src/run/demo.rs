//! `torrentfs demo`: shows the program at work without a network.
//!
//! A sample is made and seeded by one client over loopback at a limited rate; a second client mounts it by its
//! magnet link. Both live in this process, each with a cache folder of its own below a temporary folder, which is
//! removed at the end.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mount::{mount_client, stay};
use super::shutdown::{Running, shut_down};
use super::signals::{self, Signals};
use super::start::start_client;
use super::watchdog::Watchdog;
use crate::cli::demo;
use crate::cli::exit::{Exit, Failure};
use crate::cli::terminal::{self, Display};
use crate::client::Client;
use crate::client::sources::{self, Loaded};
use crate::config::{Config, Listen, LogFormat};
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::{Magnet, Metainfo, Source};
use crate::storage::resume::{self, ResumeData};
use crate::sync::tasks::TaskScope;

/// Pieces of the sample: small, so that reading a little fetches little.
const PIECE: u32 = 256 * 1024;
/// Rate of the seed in bytes per second: slow enough to watch, fast enough not to bore.
const RATE: u64 = 8 << 20;

/// Makes the sample, seeds it, mounts it, and stays until a signal comes.
///
/// # Errors
/// What kept it from coming up, for the user.
pub fn run(mountpoint: Option<PathBuf>, verbosity: i8, log_format: LogFormat) -> Result<Exit, Failure> {
    // Before there is any other thread.
    signals::hold();
    let mut display = Display::new(terminal::is_live());
    crate::cli::log::init(verbosity, log_format, display.writer(), terminal::is_live())?;
    let failed = |e: std::io::Error| Failure::new(Exit::Cache, "can't make the demo's temporary folder", e);
    let temporary = tempfile::Builder::new().prefix("torrentfs-demo-").tempdir().map_err(failed)?;
    let at = match mountpoint {
        Some(path) => path,
        None => {
            let path = temporary.path().join("mount");
            std::fs::create_dir(&path).map_err(failed)?;
            path
        }
    };
    let mut config = Config::new(Vec::new(), at);
    config.client.cache_dir = Some(temporary.path().join("cache"));
    config.client.listen = Listen { addr: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: Some(0) };
    config.client.use_dht = false;
    config.client.use_trackers = false;
    config.client.verbosity = verbosity;
    config.client.log_format = log_format;
    let result = super::on_runtime(run_async(&config, temporary.path(), &mut display));
    display.finish();
    result
}

async fn run_async(config: &Config, temporary: &Path, display: &mut Display) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let watchdog = Watchdog::start(&scope)?;
    tracing::info!("making a sample torrent");
    let (seeder, magnet) = seed(config, temporary, &scope).await?;
    let mut running = Running { clients: vec![seeder], ..Running::nothing(scope.clone()) };
    let client = match start_client(&config.client, scope.child("client")).await {
        Ok(client) => client,
        Err(failure) => {
            shut_down(running, config.client.shutdown_timeout).await;
            return Err(failure);
        }
    };
    running.clients.insert(0, client.clone());
    watchdog.client(&client);
    let mounted = match add(&client, &magnet).await {
        Ok(torrent) => {
            let mounted = mount_client(&client, config, Vec::new(), &scope, &signals, &watchdog).await;
            mounted.map(|mounted| (torrent, mounted))
        }
        Err(failure) => Err(failure),
    };
    let torrent = match mounted {
        Ok((torrent, mounted)) => {
            running.mounted = Some(mounted);
            torrent
        }
        Err(failure) => {
            shut_down(running, config.client.shutdown_timeout).await;
            return Err(failure);
        }
    };
    println!("{}", demo::what_to_try(&config.mountpoint));
    Ok(stay(running, &signals, &[torrent], config, display).await)
}

async fn add(client: &Arc<Client>, magnet: &str) -> Result<Arc<crate::torrent::Torrent>, Failure> {
    let source = Source::parse(magnet).map_err(|e| Failure::internal("the demo's magnet link", e))?;
    let loaded = sources::load_link(&source)
        .ok_or_else(|| Failure::internal("the demo's magnet link", "it is none"))?
        .map_err(|e| Failure::internal("the demo's magnet link", e))?;
    client.add(loaded).await.map_err(|e| Failure::internal("the demo's torrent", e))
}

/// Starts the client that seeds, with everything complete. Returns it and the magnet link that names it.
async fn seed(
    config: &Config,
    temporary: &Path,
    scope: &TaskScope,
) -> Result<(Arc<Client>, String), Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Cache, "can't write the demo's sample", e);
    demo::write(temporary).map_err(failed)?;
    let root = temporary.join(demo::NAME);
    let torrent = describe(&root).map_err(failed)?;
    let metainfo = Metainfo::parse(&torrent).map_err(|e| Failure::internal("the demo's torrent", e))?;
    let mut seeding = config.client.clone();
    seeding.cache_dir = Some(temporary.join("seed"));
    seeding.upload_limit = Some(RATE);
    let client = start_client(&seeding, scope.child("seed")).await?;
    let key = metainfo.info.info_hash.to_string();
    let home = client.cache().torrent_dir(&key).map_err(|e| Failure::internal("the demo's seed", e))?;
    std::fs::rename(&root, home.join("data")).map_err(failed)?;
    let pieces = metainfo.info.geometry.pieces();
    let mut complete = vec![0xff; (pieces as usize).div_ceil(8)];
    if let Some(last) = complete.last_mut().filter(|_| pieces % 8 != 0) {
        *last = 0xff << (8 - pieces % 8);
    }
    resume::save(&home, &ResumeData { complete, clean: true, ..ResumeData::new(&key, &metainfo.info) })
        .map_err(|e| Failure::internal("the demo's seed", e))?;
    let mut magnet = Magnet::new(metainfo.info.info_hash);
    magnet.name = Some(metainfo.info.name.clone());
    magnet.peers = vec![format!("127.0.0.1:{}", client.port())];
    let loaded = Loaded {
        info_hash: metainfo.info.info_hash,
        hint: metainfo.info.name.clone(),
        info: Some(metainfo.info),
        trackers: Vec::new(),
        webseeds: Vec::new(),
        nodes: Vec::new(),
        peers: Vec::new(),
        created: None,
        trusted: true,
    };
    client.add(loaded).await.map_err(|e| Failure::internal("the demo's seed", e))?;
    Ok((client, magnet.to_string()))
}

/// The sample's `.torrent`.
fn describe(root: &Path) -> std::io::Result<Vec<u8>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                files.push((path, entry.metadata()?.len()));
            }
        }
    }
    files.sort();
    let mut builder = TorrentBuilder::new(demo::NAME, PIECE);
    for (path, size) in &files {
        builder.file(path.to_string_lossy(), *size);
    }
    let mut buffer = vec![0; 1 << 20];
    for (path, _) in &files {
        let mut file = std::fs::File::open(root.join(path))?;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            builder.data(buffer.get(..n).unwrap_or_default());
        }
    }
    builder.created_by(concat!("torrentfs ", env!("CARGO_PKG_VERSION")));
    builder.build().map_err(|e| std::io::Error::other(e.to_string()))
}
