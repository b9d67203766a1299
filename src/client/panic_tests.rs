//! What a bug in one task leaves of the others: a panic of a peer's session, and one of a torrent's owner.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::for_tests::{LONG, PIECE, Running, Sample, options};
use super::*;
use crate::metainfo::geometry::FileIndex;
use crate::storage::resume;
use crate::torrent::reads::{ReadError, ReadTicket, Reader};
use crate::torrent::sessions::planned;
use crate::torrent::status::State;

const PIECES: u64 = 40;

async fn add(client: &Client, loaded: Loaded) -> Arc<Torrent> {
    let torrent = client.add(loaded).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.expect("it settles");
    torrent
}

type Answer = oneshot::Receiver<Result<Vec<u8>, ReadError>>;

fn read(torrent: &Torrent, offset: u64, len: usize) -> (ReadTicket, Reader, Answer) {
    let reader = Reader::open(torrent.live().unwrap().clone(), FileIndex(0)).expect("it opens");
    let (done, answer) = oneshot::channel();
    let done = Box::new(move |read: Result<&[u8], ReadError>| {
        let _ = done.send(read.map(<[u8]>::to_vec));
    });
    (reader.read(offset, len, done), reader, answer)
}

async fn answered(read: (ReadTicket, Reader, Answer)) -> Result<Vec<u8>, ReadError> {
    tokio::time::timeout(LONG, read.2).await.expect("an answer").expect("it isn't dropped")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect(what);
}

/// Its seed: a client that has all of it.
async fn seed(dir: &Path, sample: &Sample) -> (Running, SocketAddr) {
    sample.put(dir);
    let seed = Running::start(dir, options()).await;
    add(&seed.client, sample.loaded()).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], seed.client.port()));
    (seed, addr)
}

#[tokio::test]
async fn what_a_session_had_that_panics_is_asked_of_another_peer() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let sample = Sample::new("x", &[("a", PIECES * u64::from(PIECE))]);
    let (first, bad) = seed(dirs[0].path(), &sample).await;
    let (second, good) = seed(dirs[1].path(), &sample).await;
    // In the middle of a block, with others under way; a read takes half of that at first.
    planned::panic_after(bad, 4 * PIECE as usize);
    let running = Running::start(dirs[2].path(), options()).await;
    let torrent = add(&running.client, sample.loaded()).await;
    let whole = read(&torrent, 0, sample.bytes.len());
    let meet = async |addr: SocketAddr| {
        let peers = vec![FoundPeers { source: PeerSource::CommandLine, addrs: vec![addr] }];
        let command = Command::Extend { trackers: vec![], reach: Reach::Any, webseeds: vec![], peers };
        assert!(torrent.command(command).await);
    };
    meet(bad).await;
    until("some of it, and the session's end", || {
        let status = torrent.status();
        torrent.live().unwrap().have() > 0 && status.peers == 0
    })
    .await;
    // It is dialled again only later than this.
    meet(good).await;
    assert!(answered(whole).await.unwrap() == sample.bytes);
    assert_eq!(torrent.live().unwrap().have(), sample.bytes.len() as u64);
    until("the state", || torrent.status().state == State::Complete).await;
    assert_eq!((torrent.status().error.clone(), torrent.status().banned.len()), (None, 0), "nobody's fault");
    running.stop().await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn an_owner_that_panics_ends_its_torrents_reads_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", PIECES * u64::from(PIECE))]);
    let other = Sample::new("y", &[("b", 1000)]);
    // A part of one is here, and all of another.
    for sample in [&sample, &other] {
        sample.put(dir.path());
    }
    let home = dir.path().join(sample.key());
    let mut record = resume::load(&home).unwrap().unwrap();
    record.complete[PIECES as usize / 16..].fill(0);
    resume::save(&home, &record).unwrap();
    let running = Running::start(dir.path(), options()).await;
    let beside = add(&running.client, other.loaded()).await;
    let torrent = add(&running.client, sample.loaded()).await;
    let (some, at) = (PIECE as usize, (PIECES - 1) * u64::from(PIECE));
    assert!(answered(read(&torrent, 0, some)).await.unwrap() == sample.bytes[..some]);
    let waits = read(&torrent, at, 10);
    until("it to wait", || torrent.status().waiting_count == 1).await;

    assert!(torrent.command(Command::Panic).await);
    let failed = |read: Result<Vec<u8>, ReadError>| matches!(&read, Err(ReadError::Io(why)) if why.contains("internal error"));
    assert!(failed(answered(waits).await));
    assert!(failed(answered(read(&torrent, at, 10)).await), "and so do later ones");
    let status = torrent.status();
    assert_eq!(status.state, State::Error);
    assert!(status.error.as_ref().is_some_and(|why| why.contains("internal error")), "{status:?}");
    // What is complete is read still, and the others go on.
    assert!(answered(read(&torrent, 0, some)).await.unwrap() == sample.bytes[..some]);
    assert!(answered(read(&beside, 0, 1000)).await.unwrap() == other.bytes);
    assert_eq!(beside.status().error, None);
    // It can be taken out and added anew, and what it had is found.
    assert!(running.client.remove(&torrent, false).await.unwrap().hung.is_empty());
    let again = add(&running.client, sample.loaded()).await;
    assert!(answered(read(&again, 0, some)).await.unwrap() == sample.bytes[..some]);
    running.stop().await;
}
