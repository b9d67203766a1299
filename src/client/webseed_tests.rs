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
