//! Tests of which webseeds a torrent has: those of its source, and of each source with which it is added once more.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::for_tests::{LONG, Running, Sample, options};
use super::*;
use crate::webseed::{Kind, SeedState};

fn seed(url: &str) -> (Kind, String) {
    (Kind::Url, url.into())
}

fn urls(torrent: &Torrent) -> Vec<String> {
    torrent.webseeds().into_iter().map(|seed| seed.url).collect()
}

/// Waits until the torrent's list is as it should be.
async fn until(torrent: &Torrent, what: &str, holds: impl Fn(&Torrent) -> bool) {
    let wait = async {
        while !holds(torrent) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", torrent.webseeds()));
}

#[tokio::test]
async fn a_torrent_that_is_added_again_gets_the_webseeds_it_did_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 100_000)]);
    let running = Running::start(dir.path(), options()).await;
    let client = &running.client;
    // Nothing listens there, and nothing is asked for.
    let (one, two) = ("http://127.0.0.1:9/one/", "http://127.0.0.1:9/two/");
    let magnet = |webseeds| Loaded { webseeds, ..sample.magnet(Vec::new()) };
    let torrent = client.add(magnet(vec![seed(one)])).await.unwrap();
    assert_eq!(urls(&torrent), [one], "listed before the metadata is known");
    assert_eq!(torrent.webseeds()[0].state, SeedState::Idle);
    let again = client.add(magnet(vec![seed(one), seed(two)])).await.unwrap();
    assert_eq!(again.slot, torrent.slot);
    until(&torrent, "the second", |t| urls(t) == [one, two]).await;
    // The same URL is another webseed if it is asked in another way.
    let by_piece = (Kind::Http, one.to_owned());
    client.add(Loaded { trusted: true, ..magnet(vec![by_piece, seed(two)]) }).await.unwrap();
    until(&torrent, "the third", |t| urls(t) == [one, two, one]).await;
    client.remove(&torrent, false).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn what_a_folder_names_goes_with_its_files_and_what_the_user_names_stays() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 100_000)]);
    let running = Running::start(dir.path(), options()).await;
    let client = &running.client;
    let (one, two, three) = ("http://127.0.0.1:9/1/", "http://127.0.0.1:9/2/", "http://127.0.0.1:9/3/");
    let named = |urls: &[&str]| {
        let seed = |url: &&str| Seed { url: (*url).to_owned(), kind: Kind::Url, trusted: false };
        urls.iter().map(seed).collect::<Vec<_>>()
    };
    let its = |name: &str| name.contains("/webseed ");
    let tasks = |n: usize| running.scope.live().iter().filter(|name| its(name)).count() == n;
    // A session and its requesters.
    let each = 1 + HubOptions::default().per_seed;
    let watched = Loaded { webseeds: vec![seed(one)], ..sample.loaded() };
    let torrent = client.add_watched(watched).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.expect("it settles");
    assert_eq!(urls(&torrent), [""; 0], "the folder as a whole says which");
    client.watched_webseeds(&torrent, named(&[one, two])).await;
    until(&torrent, "both", |t| urls(t) == [one, two] && tasks(2 * each)).await;
    // The second is the user's, too, from now on.
    client.add(Loaded { webseeds: vec![seed(two)], ..sample.loaded() }).await.unwrap();
    client.watched_webseeds(&torrent, named(&[three])).await;
    until(&torrent, "the first is gone", |t| urls(t) == [two, three] && tasks(2 * each)).await;
    client.watched_webseeds(&torrent, Vec::new()).await;
    until(&torrent, "the user's stays", |t| urls(t) == [two] && tasks(each)).await;
    client.watched_webseeds(&torrent, named(&[two, one])).await;
    until(&torrent, "the first again", |t| urls(t) == [two, one] && tasks(2 * each)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_webseed_that_has_ended_is_started_anew_when_it_is_named_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 100_000)]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let options = Options { prefetch: Prefetch::All, ..options() };
    let running = Running::start(dir.path(), options).await;
    let scope = running.scope.child("server");
    let (asked, seen) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), Sample::clone(&sample));
    let counted = asked.clone();
    // As long as it is asked for the first time, it knows of nothing.
    let right = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let serves = right.clone();
    scope.clone().spawn("accept", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (counted, serves, seen) = (counted.clone(), serves.clone(), seen.clone());
            scope.spawn("connection", async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    let text = String::from_utf8_lossy(&head).to_lowercase();
                    let range = text.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
                    let (from, to) = range.split_once('-').unwrap();
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    head.clear();
                    let answer = if serves.load(Ordering::Relaxed) {
                        let (body, all) = (&seen.bytes[from..=to], seen.bytes.len());
                        let head = format!(
                            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{to}/{all}\r\n\
                             content-length: {}\r\n\r\n",
                            body.len()
                        );
                        [head.as_bytes(), body].concat()
                    } else {
                        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()
                    };
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let loaded = Loaded { webseeds: vec![seed(&url)], ..sample.loaded() };
    let torrent = running.client.add(loaded.clone()).await.unwrap();
    until(&torrent, "it ends", |t| t.webseeds()[0].state == SeedState::Dropped).await;
    assert_eq!(torrent.webseeds()[0].reason.as_deref(), Some("the server answers 404 Not Found"));
    let before = asked.load(Ordering::Relaxed);
    right.store(true, Ordering::Relaxed);
    running.client.add(loaded).await.unwrap();
    until(&torrent, "it serves", |t| t.live().is_some_and(|shared| shared.have() == shared.size())).await;
    assert!(asked.load(Ordering::Relaxed) > before);
    let all = torrent.webseeds();
    assert_eq!((all.len(), all[0].reason.as_deref()), (1, None), "{all:?}");
    running.stop().await;
}

#[tokio::test]
async fn webseeds_start_with_the_metadata_and_end_with_the_torrent() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new("x", &[("a", 100_000)]);
    let running = Running::start(dir.path(), options()).await;
    let all = vec![seed("http://127.0.0.1:9/one/"), seed("http://me:secret@127.0.0.1:9/two/")];
    let torrent = running.client.add(Loaded { webseeds: all, ..sample.loaded() }).await.unwrap();
    tokio::time::timeout(LONG, torrent.settled()).await.expect("it settles");
    assert_eq!(urls(&torrent), ["http://127.0.0.1:9/one/", "http://127.0.0.1:9/two/"]);
    let its = |name: &str| name.contains("/webseeds/");
    assert!(running.scope.live().iter().any(|name| its(name)), "{:?}", running.scope.live());
    running.client.remove(&torrent, false).await.unwrap();
    assert!(!running.scope.live().iter().any(|name| its(name)), "{:?}", running.scope.live());
    running.stop().await;
}

#[tokio::test]
async fn the_user_may_let_every_torrent_reach_private_hosts() {
    for (allowed, trusted, wanted) in [(false, false, false), (false, true, true), (true, false, true)] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { allow_private_hosts: allowed, ..options() };
        let running = Running::start(dir.path(), options).await;
        let seeds = running.client.seeds(vec![seed("http://a/")], trusted);
        assert_eq!(seeds, [Seed { url: "http://a/".into(), kind: Kind::Url, trusted: wanted }]);
        running.stop().await;
    }
}
