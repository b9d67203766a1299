//! Servers that lead elsewhere: what becomes of who redirects, and of places that were remembered and fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::rig::{B, Make, Rig};
use super::server::{Answer, Server, raw};

/// An answer that leads to a path of another host.
fn away(to: &Server, path: &str) -> Answer {
    Answer::Raw(raw("302 Found", &[&format!("location: {}", to.url(path))], b""), true)
}

fn busy() -> Answer {
    Answer::Raw(raw("503 Service Unavailable", &[], b"busy"), true)
}

#[tokio::test(start_paused = true)]
async fn w3_a_host_that_only_redirects_counts_as_well_again() {
    let mut rig = Make::blocks(64).options(1, 8).start().await;
    let mirror = rig.host(&[("/f", 64 * B)]).await;
    let lead = away(&mirror, "/f");
    rig.server.answers(move |n, _| if n == 0 { busy() } else { lead.clone() });
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| told.choked == [true, false]).await;
    rig.ask(&all, false);
    rig.until_came(64).await;
    rig.state(|rig| rig.hub.under_way().2 == 0).await;
    assert_eq!(rig.hub.hosts.failing(), 0, "nothing is held against anyone");
    rig.close().await;
}

/// A webseed of three files of 32 blocks, which has the third itself and leads to one of two others for the rest.
/// Half of the first two is here already, from the first of the others.
async fn led() -> (Rig, [Arc<Server>; 2], Arc<AtomicUsize>) {
    let files = ["/a", "/b", "/c"].map(|name| (name, 32 * B, false)).to_vec();
    let mut rig = Make::files(files).start().await;
    let files = [("/n/a", 32 * B), ("/n/b", 32 * B)];
    let mirrors = [rig.host(&files).await, rig.host(&files).await];
    let to = Arc::new(AtomicUsize::new(0));
    let (all, at) = (mirrors.clone(), to.clone());
    rig.server.answers(move |_, request| match request.path.as_str() {
        "/n/c" => Answer::Right,
        path => away(&all[at.load(Ordering::SeqCst)], path),
    });
    let half = rig.blocks((0..16).chain(32..48));
    rig.ask(&half, false);
    rig.until_came(32).await;
    (rig, mirrors, to)
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_remembered_and_fails_holds_nothing_up() {
    let ways = [
        (busy(), 0),
        (Answer::Short(5), 0),
        (Answer::Raw(Vec::new(), false), 0),
        (Answer::Hang, 15),
        (Answer::Part(5), 10),
    ];
    for (way, seconds) in ways {
        let (mut rig, mirrors, to) = led().await;
        let answer = way.clone();
        mirrors[0].answers(move |_, _| answer.clone());
        to.store(1, Ordering::SeqCst);
        let rest = rig.blocks((16..32).chain(48..96));
        let start = Instant::now();
        rig.ask(&rest, false);
        rig.until(|told| told.came.len() == 96 || !told.rejected.is_empty()).await;
        let took = start.elapsed();
        assert!(took < Duration::from_millis(seconds * 1000 + 500), "{way:?}: {took:?}");
        assert!(rig.told.choked.is_empty() && rig.told.rejected.is_empty(), "{way:?}: {:?}", rig.told);
        rig.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_host_is_remembered_for_no_other_file() {
    let (mut rig, mirrors, to) = led().await;
    mirrors[0].answers(|_, _| busy());
    to.store(1, Ordering::SeqCst);
    let before = mirrors[0].count();
    let (first, second) = (rig.blocks(16..32), rig.blocks(48..64));
    rig.ask(&first, false);
    rig.until_came(48).await;
    rig.ask(&second, false);
    rig.until_came(64).await;
    assert_eq!(mirrors[0].count() - before, 1, "for both files");
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn w3_who_is_led_to_a_failing_host_all_the_same_waits() {
    let (mut rig, mirrors, _) = led().await;
    mirrors[0].answers(|_, _| busy());
    let (own, other) = (rig.server.count(), mirrors[0].count());
    let rest = rig.blocks((16..32).chain(48..64));
    rig.ask(&rest, false);
    rig.until(|told| told.choked == [true] && told.rejected.len() == 32).await;
    assert!(rig.running.health.snapshot().reason.unwrap().contains("503"));
    let asked = (rig.server.count() - own, mirrors[0].count() - other);
    assert!(asked.0 <= 4 && asked.1 <= 4, "{asked:?} requests");
    mirrors[0].answers(|_, _| Answer::Right);
    rig.until(|told| told.choked == [true, false]).await;
    rig.ask(&rest, false);
    rig.until_came(64).await;
    rig.close().await;
}
