//! Tests of what is shown of a client's torrents while they come, resolve and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use torrentfs_fs::content::TryRead;

use super::*;
use crate::client::Options;
use crate::client::for_tests::{LONG, PIECE, Running, Sample, options};
use crate::storage::StorageKind;
use crate::torrent::table::PieceState;

fn names(content: &TorrentContent) -> Vec<String> {
    content.tree().root().map(|(name, _)| name.to_owned()).collect()
}

fn find(content: &TorrentContent, name: &str) -> NodeId {
    content.tree().root_child(name).expect("it is shown")
}

fn text(content: &TorrentContent, node: NodeId, name: &str) -> Option<String> {
    content.xattr(node, &format!("{XATTR}{name}")).map(|value| String::from_utf8(value).unwrap())
}

/// Waits until the snapshot is so; there must be a task that keeps it up to date.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect(what);
}

/// The names in the next event.
fn event(events: &Receiver<ContentEvent>) -> Vec<String> {
    let ContentEvent::RootChanged { mut names } = events.recv_timeout(LONG).unwrap();
    names.sort();
    names
}

async fn add(running: &Running, sample: &Sample) -> Arc<Torrent> {
    let torrent = running.client.add(sample.loaded()).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.expect("it settles");
    torrent
}

#[tokio::test]
async fn a_torrent_that_is_removed_is_gone_for_whoever_has_it_open_or_looks() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 100_000), ("b", 5)]);
    sample.put(dir.path());
    let running = Running::start(dir.path(), options()).await;
    let torrent = add(&running, &sample).await;
    let content = TorrentContent::new(running.client.clone());
    content.watch(&running.scope);
    let events = content.events().expect("once");
    assert_eq!(event(&events), ["x"]);
    let before = content.tree();
    let folder = find(&content, "x");
    let file = NodeId::new(folder.slot(), before.subtree(folder.slot()).unwrap().child(0, "a").unwrap());
    assert_eq!(content.bytes_here(file), 100_000);
    let streams = [content.open(file).unwrap(), content.open_here(file).unwrap()];
    let mut buf = [0; 100];
    for stream in &streams {
        let (told, answer) = std::sync::mpsc::channel();
        let done =
            Box::new(move |read: Result<&[u8], ContentError>| told.send(read.map(<[u8]>::to_vec)).unwrap());
        let _ticket = stream.read(7, 100, done);
        assert_eq!(answer.recv_timeout(LONG).unwrap().unwrap(), sample.bytes[7..107]);
    }
    assert_eq!(content.space().total, 100_005);

    running.client.remove(&torrent, false).await.unwrap();
    for stream in &streams {
        assert_eq!(stream.try_read(7, &mut buf), TryRead::Failed(ContentError::Gone));
    }
    let (told, answer) = std::sync::mpsc::channel();
    let done = Box::new(move |read: Result<&[u8], ContentError>| told.send(read.map(<[u8]>::len)).unwrap());
    drop(streams[0].read(7, 100, done));
    assert_eq!(answer.recv_timeout(LONG).unwrap(), Err(ContentError::Gone));
    // Also by a number that somebody has from before.
    assert!(matches!(content.open(file), Err(ContentError::Gone)));
    assert!(matches!(content.open_here(file), Err(ContentError::Gone)));
    assert_eq!(content.bytes_here(file), 0);
    until("the name is gone", || names(&content).is_empty()).await;
    assert_eq!(event(&events), ["x"]);
    assert!(content.tree().subtree(folder.slot()).is_none());
    assert_eq!((content.space().total, content.space().files), (0, 0));
    assert!(before.node(file).is_some(), "whoever lists the old tree goes on with it");
    assert_eq!(content.xattr(file, "user.torrentfs.state"), None);

    let again = add(&running, &sample).await;
    until("it is back", || names(&content) == ["x"]).await;
    assert_ne!(find(&content, "x").slot(), folder.slot(), "no number is given twice");
    // Not by chance the old torrent, kept by the snapshot.
    let held = Arc::downgrade(&torrent);
    drop((torrent, streams));
    assert!(held.upgrade().is_none() && again.live().is_some());
    // It may have shown as resolving for a moment.
    while !event(&events).contains(&"x".to_owned()) {}
    running.stop().await;
}

#[tokio::test]
async fn a_magnet_is_an_empty_folder_until_its_metadata_comes() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new("x", &[]);
    sample.put(theirs.path());
    let seed = Running::start(theirs.path(), options()).await;
    let running = Running::start(ours.path(), options()).await;
    // Nobody to ask yet: the seed has not added it, and refuses.
    let peers = vec![("127.0.0.1".to_owned(), seed.client.port())];
    let torrent = running.client.add(sample.magnet(peers)).await.unwrap();
    let content = TorrentContent::new(running.client.clone());
    content.watch(&running.scope);
    let events = content.events().unwrap();
    assert_eq!(names(&content), ["hint of x.resolving"]);
    assert_eq!(event(&events), ["hint of x.resolving"]);
    let folder = find(&content, "hint of x.resolving");
    assert_eq!(content.tree().node(folder).unwrap().kind, NodeKind::Dir(Vec::new()));
    let attributes = ["state", "infohash", "progress", "error"].map(|name| text(&content, folder, name));
    assert_eq!(attributes, [Some("resolving".into()), Some(sample.key()), Some("0/0".into()), None]);
    assert!(matches!(content.open(folder), Err(ContentError::Gone)), "it is no file");

    add(&seed, &sample).await;
    until("metadata", || torrent.live().is_some()).await;
    until("its name", || names(&content) == ["x"]).await;
    assert_eq!(event(&events), ["hint of x.resolving", "x"], "what went and what came");
    let file = find(&content, "x");
    assert!(matches!(content.tree().node(file).unwrap().kind, NodeKind::File { size: 65536, .. }));
    assert_ne!(file, folder, "a file isn't what was a folder");
    assert!(content.tree().node(folder).is_none());
    assert!(content.open(file).is_ok());
    seed.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_torrent_that_can_not_be_opened_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { storage: StorageKind::Memory, cache_size: Some(u64::from(PIECE) - 1), ..options() };
    let running = Running::start(dir.path(), small).await;
    let torrent = add(&running, &Sample::new("x", &[])).await;
    let content = TorrentContent::new(running.client.clone());
    let folder = find(&content, "hint of x.resolving");
    until("its error", || text(&content, folder, "state").as_deref() == Some("error")).await;
    assert!(text(&content, folder, "error").unwrap().contains("--cache-size"));
    running.client.remove(&torrent, true).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn names_follow_those_who_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), options()).await;
    let content = TorrentContent::new(running.client.clone());
    content.watch(&running.scope);
    let events = content.events().unwrap();
    assert_eq!(content.tree().mtime(), 0, "nothing has changed since the start");
    let one = Sample::new("same", &[("a", 1)]);
    let two = Sample::new("same", &[("a", 2)]);
    let first = add(&running, &one).await;
    until("the first", || names(&content) == ["same"]).await;
    let node = find(&content, "same");
    assert!(content.tree().mtime() > 1_600_000_000, "the folder was changed now");
    let second = add(&running, &two).await;
    until("both", || names(&content).iter().filter(|name| name.starts_with("same [")).count() == 2).await;
    let shown = format!("same [{}]", one.info.info_hash.short8());
    assert_eq!(find(&content, &shown), node, "another name, and the same");
    running.client.remove(&second, false).await.unwrap();
    until("the first alone", || names(&content) == ["same"]).await;
    assert_eq!(find(&content, "same"), node);
    let mut all = vec![shown, format!("same [{}]", two.info.info_hash.short8()), "same".to_owned()];
    all.sort();
    // While it is resolving, and in which order changes are seen, is as it comes.
    while let Ok(ContentEvent::RootChanged { names }) = events.recv_timeout(Duration::ZERO) {
        all.retain(|name| !names.contains(name));
    }
    assert_eq!(all, [""; 0], "all were told");
    running.client.remove(&first, false).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn webseeds_are_told_in_an_attribute() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), options()).await;
    let seed = |n: usize| {
        let url = format!("http://me:secret@127.0.0.1:9/{n}/{}", "x".repeat(n * 1000));
        (crate::webseed::Kind::Url, url)
    };
    let content = TorrentContent::new(running.client.clone());
    content.watch(&running.scope);
    for (n, count) in [0, 1, 20].into_iter().enumerate() {
        let magnet = Sample::new(&format!("x{n}"), &[]).magnet(Vec::new());
        let webseeds = (0..count).map(seed).collect();
        let loaded = crate::client::sources::Loaded { webseeds, ..magnet };
        running.client.add(loaded).await.unwrap();
        let name = format!("hint of x{n}.resolving");
        until("it shows", || names(&content).contains(&name)).await;
        let node = find(&content, &name);
        let told = text(&content, node, "webseeds");
        assert_eq!(content.xattr_names(node).contains(&format!("{XATTR}webseeds")), count > 0);
        let told = told.unwrap_or_default();
        assert_eq!(told.lines().count(), count.min(17), "{told}");
        assert!(told.len() < 65536 && !told.contains("secret"));
        assert!(count == 0 || told.starts_with("http://127.0.0.1:9/0/ idle"), "{told}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_long_name_of_a_magnet_fits() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), options()).await;
    let magnet = Sample::new("x", &[]).magnet(Vec::new());
    let hint = "ü".repeat(200);
    running.client.add(crate::client::sources::Loaded { hint, ..magnet }).await.unwrap();
    let names = names(&TorrentContent::new(running.client.clone()));
    assert!(names[0].len() <= 255 && names[0].ends_with("ü.resolving"), "{}", names[0].len());
    running.stop().await;
}

fn entry(name: &str, short: &str, slot: u32) -> (String, String, u32, Arc<Subtree>) {
    (name.into(), short.into(), slot, Arc::new(SubtreeBuilder::folder(name, 0).build()))
}

#[test]
fn equal_names_get_their_hash_whatever_the_order() {
    let names = |entries| {
        let mut shown: Vec<(u32, String)> =
            distinct(entries).into_iter().map(|(n, slot, _)| (slot, n)).collect();
        shown.sort();
        shown.into_iter().map(|(_, n)| n).collect::<Vec<_>>()
    };
    let (a, b, c) = (entry("x", "11111111", 1), entry("x", "22222222", 2), entry("y", "33333333", 3));
    let expected = ["x [11111111]", "x [22222222]", "y"];
    assert_eq!(names(vec![a.clone(), b.clone(), c.clone()]), expected);
    assert_eq!(names(vec![c, b, a]), expected);
}

#[test]
fn a_suffix_never_makes_a_name_too_long() {
    let long = "ä".repeat(127);
    let name = with_suffix(&long, " [12345678]");
    assert!(name.len() <= 255 && name.ends_with("ä [12345678]"), "{}", name.len());
}

#[test]
fn names_that_are_made_to_collide_are_all_shown() {
    let entries = vec![
        entry("t", "11111111", 1),
        entry("t", "11111111", 2),
        entry("t [11111111]", "44444444", 3),
        entry("t [11111111] (2)", "55555555", 4),
        entry("t [11111111] (2)", "66666666", 5),
    ];
    for rotation in 0..entries.len() {
        let mut entries = entries.clone();
        entries.rotate_left(rotation);
        let names: HashSet<String> = distinct(entries).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), 5, "{names:?}");
    }
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_no_open_and_no_statfs() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 300_000)]);
    sample.put(dir.path());
    let running = Running::start(dir.path(), options()).await;
    add(&running, &sample).await;
    let content = TorrentContent::new(running.client.clone());
    let free = content.space().free;
    assert!(free > 0);
    let folder = find(&content, "x");
    let file =
        NodeId::new(folder.slot(), content.tree().subtree(folder.slot()).unwrap().child(0, "a").unwrap());
    let workers = running.client.view(LONG).workers;
    let look = || workers.view(Instant::now());
    let ends: Vec<SyncSender<()>> = (0..look().threads)
        .map(|thread| {
            let (end, ended) = sync_channel(0);
            let client = running.client.clone();
            running.client.spawn(&format!("hung {thread}"), async move {
                client.on_worker(move || _ = ended.recv()).await;
            });
            end
        })
        .collect();
    until("all workers hang", || look().running.len() == look().threads).await;
    let (tell, told) = sync_channel(1);
    // On a thread that knows no runtime, as the filesystem's.
    let opened = Box::new(move |backing: Option<Backing>| tell.send(backing.is_some()).unwrap());
    std::thread::scope(|scope| scope.spawn(|| content.backing(file, opened)).join()).unwrap();
    let mut answer = None;
    until("the open goes on", || {
        answer = told.try_recv().ok();
        answer.is_some()
    })
    .await;
    assert_eq!(answer, Some(false));
    assert_eq!(content.space().free, free, "what was seen last");
    drop(ends);
    until("all workers are there again", || look().running.is_empty()).await;
    // The look that came too late is let go, and the next open has its file.
    let (tell, told) = sync_channel(1);
    content.backing(file, Box::new(move |backing| tell.send(backing.is_some()).unwrap()));
    assert_eq!(told.recv_timeout(LONG), Ok(true));
    running.stop().await;
}

#[tokio::test]
async fn a_long_list_of_ranges_is_cut() {
    const PIECES: u32 = 200;
    let dir = tempfile::tempdir().unwrap();
    let size = u64::from(PIECES * PIECE) - 7;
    let sample = Sample::new("x", &[("a", size), ("b", 7)]);
    let running = Running::start(dir.path(), options()).await;
    let torrent = add(&running, &sample).await;
    let content = TorrentContent::new(running.client.clone());
    let folder = find(&content, "x");
    let file =
        NodeId::new(folder.slot(), content.tree().subtree(folder.slot()).unwrap().child(0, "a").unwrap());
    let shared = torrent.live().unwrap();
    let piece = u64::from(PIECE);
    let pairs = |starts: &[u64]| {
        let pairs: Vec<String> =
            starts.iter().map(|at| format!("{}-{}", at * piece, (at + 1) * piece)).collect();
        pairs.join(",")
    };
    // Every second piece, so that none joins another: as many as are listed, and one more.
    let seconds: Vec<u64> = (0..100).map(|number| 2 * number).collect();
    for (count, cut) in [(1, ""), (RANGES_MAX, ""), (RANGES_MAX + 1, ",…"), (100, ",…")] {
        for at in &seconds[..count] {
            shared.table.set(PieceIndex(*at as u32), PieceState::Complete);
        }
        let listed = &seconds[..count.min(RANGES_MAX)];
        assert_eq!(text(&content, file, "ranges"), Some(pairs(listed) + cut), "{count} pieces");
    }
    // What joins the last of them is still told.
    shared.table.set(PieceIndex(127), PieceState::Complete);
    let last = format!(",{}-{},…", 126 * piece, 129 * piece);
    assert!(text(&content, file, "ranges").unwrap().ends_with(&last));
    // All of it is one range, up to the end of the file.
    (0..PIECES).for_each(|at| shared.table.set(PieceIndex(at), PieceState::Complete));
    assert_eq!(text(&content, file, "ranges"), Some(format!("0-{size}")));
    running.stop().await;
}
