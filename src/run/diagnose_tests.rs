//! Tests of the report: what it says of a client whose torrent can't be fetched, and of one that has ended.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::client::Options;
use crate::client::sources::Loaded;
use crate::metainfo::build::TorrentBuilder;
use crate::metainfo::info::Info;
use crate::storage::StorageKind;
use crate::storage::cache::CacheDir;
use crate::torrent::background::Prefetch;
use crate::torrent::reads::Reader;

const PIECE: u32 = 32 * 1024;
const LONG: Duration = Duration::from_secs(20);

fn options() -> Options {
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
        max_peers: 8,
        max_connections: 400,
        download_limit: None,
        upload_limit: None,
        unlimited_local_peers: false,
        filter: Arc::default(),
        upload: false,
        goals: crate::torrent::goal::Goals::default(),
        storage: StorageKind::Memory,
        cache_size: Some(64 << 20),
        min_free: None,
        check_all: false,
        trust_resume: true,
        prefetch: Prefetch::None,
    }
}

fn torrent() -> Loaded {
    let mut builder = TorrentBuilder::new("film.mkv", PIECE);
    builder.single_file(u64::from(4 * PIECE)).data(&vec![7; 4 * PIECE as usize]);
    let info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
    Loaded {
        info_hash: info.info_hash,
        hint: info.name.clone(),
        info: Some(info),
        trackers: Vec::new(),
        webseeds: Vec::new(),
        nodes: Vec::new(),
        peers: Vec::new(),
        created: None,
        trusted: true,
    }
}

/// Whoever serves the control socket makes the report in a task.
fn sendable<T: Send>(future: T) -> T {
    future
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_is_named_and_so_is_an_owner_that_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Arc::new(CacheDir::open(folder.path()).unwrap());
    let scope = TaskScope::root();
    let client = Client::start(scope.child("client"), cache, options()).await.unwrap();
    let torrent = client.add(torrent()).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.unwrap();
    let shared = torrent.live().unwrap().clone();
    let reader = Reader::open(shared, FileIndex(0)).unwrap();
    let parts = Arc::default();
    let _ticket = reader.read(u64::from(PIECE), PIECE as usize + 1, Box::new(|_| ()));
    // Once the owner has heard of it.
    let text = tokio::time::timeout(LONG, async {
        loop {
            let text = sendable(report(Some(&client), None, &scope, &parts)).await;
            if text.contains("1 reads wait") {
                return text;
            }
        }
    });
    let text = text.await.unwrap();
    let (owner, name) = (
        format!("client/torrent {}/owner: ", torrent.info_hash.short8()),
        format!("{} \"film.mkv\" ", torrent.slot),
    );
    for expected in [
        owner.as_str(),
        "locks:\n",
        "client/keeper: ",
        name.as_str(),
        "pieces: 0 complete, 0 verifying, 0 requested, 4 missing, 0 unknown",
        "\"film.mkv\" at byte 32768 of the torrent: 2 pieces (1, 2), since ",
        "peers: 0 connected",
        "jobs that wait: Read 0; ",
    ] {
        assert!(text.contains(expected), "no \"{expected}\" in\n{text}");
    }
    scope.cancel();
    assert!(scope.join(LONG).await.is_empty());
    let text = report(Some(&client), None, &scope, &parts).await;
    assert!(text.contains("its owner says nothing: it has ended"), "{text}");
    client.stop_workers(LONG);
}

/// What was planned to hang, until it is dropped.
struct Stall {
    _end: std::sync::mpsc::Sender<()>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_planned_stall_is_reported_with_holder_and_waiter_and_the_owner_that_hangs() {
    use std::sync::mpsc::channel;
    use torrentfs_fs::lock::{Rank, RankedMutex};

    let folder = tempfile::tempdir().unwrap();
    let cache = Arc::new(CacheDir::open(folder.path()).unwrap());
    let scope = TaskScope::root();
    let quick = Options { read_timeout: Some(Duration::from_millis(10)), ..options() };
    let client = Client::start(scope.child("client"), cache, quick).await.unwrap();
    let torrent = client.add(torrent()).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.unwrap();
    // The owner's task calls back when the read has waited too long; there it takes a lock and keeps it.
    let lock = Arc::new(RankedMutex::new(Rank::Leaf, "planned stall", ()));
    let (end, ended) = channel::<()>();
    let (taken, is_taken) = tokio::sync::oneshot::channel();
    let stall = Stall { _end: end };
    let reader = Reader::open(torrent.live().unwrap().clone(), FileIndex(0)).unwrap();
    let own = lock.clone();
    let _ticket = reader.read(
        0,
        10,
        Box::new(move |_| {
            let _guard = own.lock();
            let _ = taken.send(());
            let _ = ended.recv();
        }),
    );
    tokio::time::timeout(LONG, is_taken).await.unwrap().unwrap();
    let own = lock.clone();
    // As in the program, on a runtime of its own: a worker that hangs may be the one that looks after this one's timers.
    let reporter = Arc::new(crate::run::report::Reporter::new(&scope));
    reporter.client(&client);
    let waits =
        std::thread::Builder::new().name("the waiter".into()).spawn(move || drop(own.lock())).unwrap();
    let text = tokio::time::timeout(LONG, async {
        loop {
            let text = reporter.report().await.unwrap();
            if text.contains("the waiter") {
                return text.to_string();
            }
        }
    });
    let text = text.await.unwrap();
    let line = |start: &str| {
        text.lines().find(|line| line.contains(start)).unwrap_or_else(|| panic!("no {start} in\n{text}"))
    };
    let holder = line("`planned stall` is held by ");
    assert!(holder.contains("taken at src/run/diagnose_tests.rs:"), "{holder}");
    // It was held from the report's beginning to its end, and the owner was waited for meanwhile.
    assert!(!holder.contains(" for 0 ms at least"), "{holder}");
    assert!(line("the waiter (tid ").contains("waits for it since "), "{text}");
    assert!(line("/owner: ").contains("runs without a pause"), "{text}");
    assert!(text.contains("its owner says nothing: no answer within 0.5 s"), "{text}");
    // And unasked, by the watchdog: of the owner once, when it is overdue, and again when that is ten times as much.
    let seconds = |n| Duration::from_secs(n);
    let warned = crate::run::watchdog::warnings_of_owner(
        &torrent,
        &[seconds(100), seconds(200), seconds(300), seconds(3000)],
    );
    let of_owner = format!("the owner of torrent {} \"film.mkv\" should have turned its loop ", torrent.slot);
    assert!(warned.len() == 2 && warned.iter().all(|line| line.starts_with(&of_owner)), "{warned:?}");
    let warned = crate::run::watchdog::warnings_of_locks(LONG);
    assert!(
        warned.iter().any(|line| line.contains("`planned stall`") && line.contains("the waiter")),
        "{warned:?}"
    );
    drop(stall);
    waits.join().unwrap();
    scope.cancel();
    assert!(scope.join(LONG).await.is_empty());
    client.stop_workers(LONG);
}

#[tokio::test]
async fn what_hangs_is_looked_at_by_one_thread_whoever_asks() {
    let parts = Arc::new(Parts::default());
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let looks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = looks.clone();
    let hangs = move || {
        count.fetch_add(1, Ordering::SeqCst);
        let _ = ended.recv();
    };
    assert_eq!(aside(&parts, Part::Room, hangs).await, Err(SILENT));
    for _ in 0..3 {
        let count = looks.clone();
        let again = aside(&parts, Part::Room, move || _ = count.fetch_add(1, Ordering::SeqCst)).await;
        assert_eq!(again, Err(HANGS));
    }
    assert_eq!(looks.load(Ordering::SeqCst), 1);
    assert_eq!(aside(&parts, Part::Tasks, || 7).await, Ok(7), "others are looked at");
    drop(end);
    let again = async {
        loop {
            if let Ok(seen) = aside(&parts, Part::Room, || 8).await {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(LONG, again).await, Ok(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_a_bound_and_say_how_many_more_there_are() {
    let scope = TaskScope::root();
    for n in 0..TASKS_MAX + 7 {
        scope.spawn(&format!("task {n}"), std::future::pending());
    }
    let text = report(None, None, &scope, &Arc::default()).await;
    assert_eq!(text.matches("  task ").count(), TASKS_MAX, "{text}");
    assert!(text.contains("  and 7 more\n"), "{text}");
    scope.cancel();
    assert!(scope.join(LONG).await.is_empty());
}
