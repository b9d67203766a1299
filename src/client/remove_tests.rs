//! Tests of removing torrents: whoever waits or reads hears of it at once, nothing is left behind, and what is here is
//! found when the torrent is added again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::super::Options;
use super::super::for_tests::{LONG, PIECE, Running, Sample, options};
use super::super::sources::Loaded;
use super::*;
use crate::metainfo::geometry::FileIndex;
use crate::storage::StorageKind;
use crate::storage::cache::Marks;
use crate::storage::resume::{self, Adopted, ResumeData};
use crate::torrent::reads::{ReadError, ReadTicket, Reader};

/// Adds a torrent, with what can be known of it.
async fn add(client: &Client, loaded: Loaded) -> Arc<Torrent> {
    let torrent = client.add(loaded).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.expect("it settles");
    torrent
}

type Answer = oneshot::Receiver<Result<Vec<u8>, ReadError>>;

fn read(reader: &Reader, offset: u64, len: usize) -> (ReadTicket, Answer) {
    let (done, answer) = oneshot::channel();
    let ticket = reader.read(
        offset,
        len,
        Box::new(move |read| {
            let _ = done.send(read.map(<[u8]>::to_vec));
        }),
    );
    (ticket, answer)
}

async fn answer(read: (ReadTicket, Answer)) -> Result<Vec<u8>, ReadError> {
    tokio::time::timeout(LONG, read.1).await.expect("an answer").expect("it isn't dropped")
}

fn open(torrent: &Torrent) -> Reader {
    Reader::open(torrent.live().unwrap().clone(), FileIndex(0)).expect("it opens")
}

/// That nothing of a removed torrent is left in the client.
fn assert_gone(running: &Running, torrent: &Torrent, cache: &Path) {
    let client = &running.client;
    assert!(client.find(torrent.info_hash.wire().0).is_none());
    assert!(client.torrents().iter().all(|t| t.slot != torrent.slot));
    let tasks = running.scope.live();
    let own = format!("torrent {}/", torrent.info_hash.short8());
    assert!(tasks.iter().all(|name| !name.contains(&own)), "{tasks:?}");
    assert!(!Marks::of(cache).in_use(&torrent.info_hash.to_string()));
    assert!(!client.env.room.members().contains_key(&torrent.slot));
    assert_eq!(client.env.room.need(), None);
    assert_eq!(client.env.memory.used(), 0);
}

#[tokio::test]
async fn a_removed_torrent_is_gone_for_all_and_added_again_it_has_what_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[]);
    sample.put(dir.path());
    let running = Running::start(dir.path(), options()).await;
    let client = &running.client;
    let torrent = add(client, sample.loaded()).await;
    let reader = open(&torrent);
    assert_eq!(answer(read(&reader, 5, 100)).await.unwrap(), sample.bytes[5..105]);
    assert!(Marks::of(dir.path()).in_use(&sample.key()));
    let removed = client.remove(&torrent, false).await.unwrap();
    assert_eq!(removed, Removed::default());
    assert_gone(&running, &torrent, dir.path());
    // What is open reads no more, though all of it is here.
    assert!(reader.is_removed() && !reader.try_read(5, &mut [0; 10]));
    assert_eq!(answer(read(&reader, 5, 100)).await, Err(ReadError::Removed));
    assert!(Reader::open(torrent.live().unwrap().clone(), FileIndex(0)).is_none());
    assert!(matches!(client.remove(&torrent, false).await, Err(RemoveError::NotThere)));
    let record = resume::load(&dir.path().join(sample.key())).unwrap().unwrap();
    assert!(record.clean, "as at the end of the program");
    let left = catalog::entry(dir.path(), &sample.key()).unwrap();
    assert_eq!(client.env.room.quota().used(), left.allocated, "charged as what isn't open");

    let again = add(client, sample.loaded()).await;
    assert_ne!(again.slot, torrent.slot);
    let shared = again.live().unwrap();
    assert_eq!((shared.table.complete_count(), shared.have()), (4, 64 << 10));
    assert_eq!(client.env.room.quota().used(), 64 << 10, "charged once");
    assert_eq!(answer(read(&open(&again), 5, 100)).await.unwrap(), sample.bytes[5..105]);
    assert!(reader.is_removed(), "the old handle stays what it is");
    running.stop().await;
}

#[tokio::test]
async fn f9_twenty_waiting_reads_end_at_once_and_so_do_later_ones() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 40 * u64::from(PIECE))]);
    let running = Running::start(dir.path(), options()).await;
    let torrent = add(&running.client, sample.loaded()).await;
    let reader = open(&torrent);
    let waits: Vec<_> = (0..20).map(|n| read(&reader, n * u64::from(PIECE), 4096)).collect();
    let shared = torrent.live().unwrap();
    assert_eq!(shared.notifier.waiters().len(), 20);
    let client = running.client.clone();
    let removal = client.remove(&torrent, false);
    tokio::pin!(removal);
    // Its first step, before anything is waited for.
    assert!(futures_util::poll!(&mut removal).is_pending());
    for (_ticket, answer) in waits {
        assert_eq!(answer.await.unwrap(), Err(ReadError::Removed));
    }
    assert_eq!(answer(read(&reader, 0, 10)).await, Err(ReadError::Removed));
    assert!(removal.await.unwrap().hung.is_empty());
    assert!(shared.notifier.waiters().is_empty());
    assert_gone(&running, &torrent, dir.path());
    running.stop().await;
}

#[tokio::test]
async fn deleting_the_data_leaves_nothing_but_what_others_downloaded() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A row is whether the data is adopted, and how.
    for adopted in [None, Some(true), Some(false)] {
        let sample = Sample::new("x", &[("a", 100_000), ("b/c", 50_000)]);
        sample.put(dir.path());
        let home = dir.path().join(sample.key());
        let theirs = elsewhere.path().join(format!("{adopted:?}"));
        if let Some(read_only) = adopted {
            std::fs::rename(home.join("data"), &theirs).unwrap();
            let record = resume::load(&home).unwrap().unwrap();
            let below = record.complete.clone();
            let adopted = Some(Adopted { path: theirs.clone(), read_only, below, files: Vec::new() });
            resume::save(&home, &ResumeData { adopted, ..record }).unwrap();
        }
        let running = Running::start(dir.path(), options()).await;
        let torrent = add(&running.client, sample.loaded()).await;
        assert_eq!(torrent.live().unwrap().have(), 150_000, "{adopted:?}");
        let removed = running.client.remove(&torrent, true).await.unwrap();
        assert_gone(&running, &torrent, dir.path());
        assert!(!home.exists(), "{adopted:?}");
        assert_eq!(running.client.env.room.quota().used(), 0, "{adopted:?}");
        assert!(removed.freed > 0);
        match adopted {
            None => assert!(removed.freed >= 150_000 && removed.adopted.is_none(), "{removed:?}"),
            Some(_) => {
                assert_eq!(removed.adopted.as_deref(), Some(&*theirs));
                assert_eq!(std::fs::read(theirs.join("b/c")).unwrap(), sample.bytes[100_000..]);
            }
        }
        // Added again it begins anew.
        let again = add(&running.client, sample.loaded()).await;
        assert_eq!(again.live().unwrap().have(), 0);
        running.stop().await;
    }
}

#[tokio::test]
async fn what_was_fetched_before_the_removal_is_not_fetched_again() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new("x", &[("a", 10 * u64::from(PIECE))]);
    sample.put(theirs.path());
    let seed = Running::start(theirs.path(), options()).await;
    add(&seed.client, sample.loaded()).await;
    let peers = vec![("127.0.0.1".to_owned(), seed.client.port())];
    let running = Running::start(ours.path(), options()).await;
    // By a magnet link: it is resolved, and the metadata kept.
    let torrent = running.client.add(sample.magnet(peers.clone())).await.unwrap();
    let live = async {
        while torrent.live().is_none() {
            running.client.changed().await;
        }
    };
    tokio::time::timeout(LONG, live).await.expect("metadata");
    let len = PIECE as usize + 10;
    assert_eq!(answer(read(&open(&torrent), 3 * u64::from(PIECE), len)).await.unwrap().len(), len);
    assert!(running.client.remove(&torrent, false).await.unwrap().hung.is_empty());
    assert_gone(&running, &torrent, ours.path());
    // Nobody can give it now.
    seed.stop().await;
    let again = add(&running.client, sample.magnet(peers)).await;
    let shared = again.live().expect("the metadata was kept");
    assert!(shared.table.all_complete(3..5));
    let bytes = answer(read(&open(&again), 3 * u64::from(PIECE), len)).await.unwrap();
    assert!(bytes == sample.bytes[3 * PIECE as usize..][..len]);
    running.stop().await;
}

#[tokio::test]
async fn in_whatever_state_it_is_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), options()).await;
    let sample = Sample::new("x", &[]);
    for (loaded, delete) in [
        (sample.magnet(Vec::new()), false),
        (sample.magnet(Vec::new()), true),
        (sample.loaded(), true),
        (sample.loaded(), false),
    ] {
        // At once: its storage is just being opened, or its metadata looked for.
        let torrent = running.client.add(loaded).await.unwrap();
        let removed = running.client.remove(&torrent, delete).await.unwrap();
        assert!(removed.hung.is_empty(), "{removed:?}");
        assert_gone(&running, &torrent, dir.path());
        assert_eq!(dir.path().join(sample.key()).exists(), !delete);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_store_in_memory_gives_its_room_back() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new("x", &[]);
    sample.put(theirs.path());
    let seed = Running::start(theirs.path(), options()).await;
    add(&seed.client, sample.loaded()).await;
    let peers = vec![("127.0.0.1".to_owned(), seed.client.port())];
    let memory = Options { storage: StorageKind::Memory, cache_size: Some(1 << 20), ..options() };
    let running = Running::start(ours.path(), memory).await;
    let torrent = add(&running.client, Loaded { peers, ..sample.loaded() }).await;
    assert_eq!(answer(read(&open(&torrent), 0, 64 << 10)).await.unwrap(), sample.bytes);
    assert_eq!(running.client.env.room.quota().used(), 64 << 10);
    running.client.remove(&torrent, false).await.unwrap();
    assert_eq!(running.client.env.room.quota().used(), 0);
    assert_gone(&running, &torrent, ours.path());
    seed.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_and_removing_at_once_leaves_one_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[]);
    sample.put(dir.path());
    let running = Running::start(dir.path(), options()).await;
    let client = &running.client;
    let turn = async |delay: usize| {
        for _ in 0..10 {
            let torrent = client.add(sample.loaded()).await.unwrap();
            assert!(client.torrents().len() <= 1, "never two of them");
            for _ in 0..delay * 20 {
                tokio::task::yield_now().await;
            }
            match client.remove(&torrent, false).await {
                Ok(removed) => assert!(removed.hung.is_empty(), "{removed:?}"),
                Err(RemoveError::NotThere) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    futures_util::future::join_all((0..4).map(turn)).await;
    assert!(client.torrents().is_empty());
    let again = add(client, sample.loaded()).await;
    assert_eq!(again.live().unwrap().have(), 64 << 10);
    assert_eq!(client.env.room.quota().used(), 64 << 10);
    running.stop().await;
}
