//! Failures that others shipped, by the names of REGRESSIONS.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rig::{B, Make, Rig};
use super::server::{Answer, raw};
use crate::metainfo::geometry::{BlockRef, FileIndex};
use crate::webseed::{Kind, SeedState};

#[tokio::test]
async fn w1_a_server_sees_no_more_than_it_should_and_a_thousand_slices_drain() {
    let mut rig = Make::blocks(2000).start().await;
    let others = [rig.another(rig.server.url("/f?2")), rig.another(rig.server.url("/f?3"))];
    // Each other block, so that each is a slice.
    let wanted = rig.blocks((0..2000).step_by(2));
    for (n, blocks) in wanted.chunks(400).enumerate() {
        let asked = rig.wanted(blocks, false);
        match n {
            0 => rig.running.outbox.request(asked),
            n => others[(n - 1) / 2].outbox.request(asked),
        }
    }
    rig.server.answers(|_, request| {
        let range = request.range.clone().unwrap();
        let body: Vec<u8> = range.clone().map(|at| super::server::byte("/f", at)).collect();
        let content = format!("content-range: bytes {}-{}/{}", range.start, range.end - 1, 2000 * B);
        Answer::Raw(raw("206 Partial Content", &[&content], &body), true)
    });
    rig.until_came(1000).await;
    assert_eq!(rig.server.count(), 1000);
    let (most, of_one) = (rig.server.most.load(Ordering::SeqCst), rig.server.most_of_a_path());
    assert!(most <= 8 && of_one <= 4, "{most}, {of_one} of one webseed");
    others.iter().for_each(|other| other.close());
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn w3_a_server_that_is_busy_is_asked_ever_less_often() {
    let mut rig = Make::blocks(200).start().await;
    rig.server.answers(|_, _| Answer::Raw(raw("503 Service Unavailable", &[], b"busy"), true));
    let all = rig.all();
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    rig.ask(&all, false);
    // As the picker does: what is rejected is asked for again when it is let in.
    let mut let_in = 0;
    while let Ok(Some(event)) = tokio::time::timeout_at(end, rig.events.recv()).await {
        rig.take(event);
        if rig.told.choked.last() == Some(&false) && rig.told.choked.len() > let_in {
            let_in = rig.told.choked.len();
            assert_eq!(rig.told.rejected.len(), 200, "each once");
            rig.told.rejected.clear();
            rig.ask(&all, false);
        }
    }
    // The first time all four ask; then one at a time, after half a second at least, a second, two…
    let requests = rig.server.count();
    assert!((6..=16).contains(&requests), "{requests} in a minute");
    let health = rig.running.health.snapshot();
    assert!(matches!(health.state, SeedState::Waiting { .. }), "{health:?}");
    assert!(health.reason.unwrap().contains("503"));
    // Closing doesn't wait for it.
    let start = tokio::time::Instant::now();
    rig.close().await;
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn w3_siblings_of_a_host_wait_together_and_as_long_as_it_says() {
    let mut rig = Make::blocks(64).start().await;
    let other = rig.another(rig.server.url("/f"));
    let wait = raw("429 Too Many Requests", &["retry-after: 100"], b"");
    rig.server.answers(move |_, _| Answer::Raw(wait.clone(), true));
    let start = tokio::time::Instant::now();
    let first = rig.blocks(0..1);
    rig.ask(&first, false);
    rig.until(|told| told.choked == [true]).await;
    // The sibling learns of it without a request.
    let (requests, asked) = (rig.server.count(), rig.wanted(&first, false));
    other.outbox.request(asked);
    rig.until(|told| told.choked == [true, true]).await;
    assert_eq!(rig.server.count(), requests);
    assert!(matches!(other.health.snapshot().state, SeedState::Waiting { .. }));
    rig.server.answers(|_, _| Answer::Right);
    rig.until(|told| told.choked == [true, true, false, false]).await;
    let waited = start.elapsed().as_secs_f64();
    assert!((100.0..=102.0).contains(&waited), "{waited} s");
    rig.ask(&first, false);
    rig.until_came(1).await;
    assert_eq!(rig.running.health.snapshot().reason, None);
    other.close();
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.close().await;
}

#[tokio::test]
async fn w3_what_is_wrong_with_a_file_drops_that_file_only() {
    for status in ["403 Forbidden", "404 Not Found", "410 Gone", "451 Unavailable For Legal Reasons"] {
        let mut rig = Make::files(vec![("/a", 32 * B, false), ("/b", 32 * B, false)]).start().await;
        rig.server.answers(move |_, request| match request.path.as_str() {
            "/n/a" => Answer::Raw(raw(status, &[], b"no"), true),
            _ => Answer::Right,
        });
        let all = rig.all();
        rig.ask(&all, false);
        rig.until(|told| told.came.len() == 32 && told.rejected.len() == 32).await;
        assert_eq!((rig.told.refused.as_slice(), rig.told.choked.len()), (&[FileIndex(0)][..], 0));
        assert!(rig.told.rejected.iter().all(|block| all[..32].contains(block)));
        let health = rig.running.health.snapshot();
        assert_eq!(health.refused_files, 1);
        // Asked for once more, it isn't requested.
        let requests = rig.server.count();
        rig.ask(&all[..1], true);
        rig.until(|told| told.rejected.len() == 33).await;
        assert_eq!(rig.server.count(), requests);
        rig.close().await;
    }
}

#[tokio::test]
async fn w4_late_bytes_are_counted_and_harmless() {
    let mut rig = Make::blocks(16).options(1, 8).start().await;
    rig.server.answers(|_, _| Answer::Part(2 * B));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(2).await;
    // Nobody makes the piece any more but for the last block.
    for block in &all[2..15] {
        rig.cancel(*block);
    }
    rig.state(|rig| rig.running.outbox.pending_requests() == 0).await;
    rig.ask(&all[15..], false);
    let old = rig.buffers.drain().next().unwrap().1;
    rig.ask(&all[15..], false);
    drop(old);
    tokio::task::yield_now().await;
    rig.server.go();
    rig.until(|told| told.came.len() == 3).await;
    let counters = &rig.running.counters;
    let (down, wasted) = (counters.down.load(Ordering::Relaxed), counters.wasted.load(Ordering::Relaxed));
    assert_eq!((down, wasted), (3 * B, 13 * B));
    rig.told.came.clear();
    rig.close().await;
}

#[tokio::test]
async fn w5_one_url_that_is_asked_in_two_ways_is_two_webseeds() {
    let mut rig = Make::blocks(16).start().await;
    let other = rig.another_of(rig.server.url("/f"), Kind::Http);
    rig.server.answers(|_, _| Answer::Hang);
    let all = rig.all();
    rig.ask(&all, false);
    let wanted = rig.wanted(&all, false);
    other.outbox.request(wanted);
    rig.state(|rig| rig.server.count() >= 2).await;
    // Both fetch the same blocks, and neither is cut for the other.
    assert_eq!(rig.hub.under_way().0, 2);
    rig.server.go();
    rig.until(|told| told.came.values().sum::<usize>() == 32).await;
    assert_eq!(rig.server.count(), 2);
    rig.told.came.clear();
    other.close();
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.close().await;
}

#[tokio::test]
async fn w8_what_is_asked_for_may_change_while_it_is_fetched() {
    let mut rig = Make::files(vec![("/a", 40 * B, false), ("/b", 40 * B, false)]).options(2, 8).start().await;
    rig.server.answers(|n, _| if n < 2 { Answer::Part(B) } else { Answer::Right });
    let all = rig.all();
    rig.ask(&all, false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 2).await;
    // Under way: taken back, refused, asked for again; queued: the same.
    (5..10).chain(50..60).for_each(|n| rig.cancel(all[n]));
    rig.running.outbox.distrust(FileIndex(1));
    rig.ask(&all[7..9], true);
    rig.until(|told| told.refused == [FileIndex(1)]).await;
    rig.server.go();
    rig.until(|told| all[..40].iter().all(|b| told.came.contains_key(b) || told.recalled.contains(b))).await;
    rig.until(|told| {
        let answered =
            |b| told.came.contains_key(b) || told.rejected.contains(b) || told.recalled.contains(b);
        all[40..].iter().all(answered)
    })
    .await;
    assert!(all[7..9].iter().all(|b| rig.told.came.contains_key(b)));
    rig.close().await;
}

#[tokio::test]
async fn l1_each_block_is_told_once_whatever_way_its_request_ends() {
    // An early return (cut), an error (`?`), a panic: each leads to each block being told of, and once.
    for way in 0..3 {
        let mut rig = Make::blocks(48).options(1, 1).start().await;
        match way {
            0 => rig.server.answers(|n, _| if n == 0 { Answer::Part(3 * B) } else { Answer::Right }),
            1 => rig.server.answers(|n, _| match n {
                // The head of an answer that is none: tried again at once.
                0 => Answer::Raw(b"nonsense\r\n\r\n".to_vec(), false),
                _ => Answer::Right,
            }),
            _ => {
                let seen = std::sync::atomic::AtomicUsize::new(0);
                *rig.hub.at_step.lock() = Some(std::sync::Arc::new(move |step| {
                    if step == crate::webseed::hub::Step::Put && seen.fetch_add(1, Ordering::SeqCst) == 0 {
                        panic!("injected");
                    }
                }));
            }
        }
        let all = rig.all();
        rig.ask(&all[..32], false);
        if way == 0 {
            rig.until_came(3).await;
            rig.ask(&all[40..48], true);
            rig.until_came(40).await;
        } else {
            rig.until_came(32).await;
        }
        rig.check();
        let told = rig.close().await;
        assert!(told.rejected.is_empty() && told.recalled.is_empty(), "way {way}");
    }
}

#[tokio::test]
async fn l2_an_owner_that_does_not_listen_is_not_held_up_and_loses_nothing() {
    let mut make = Make::blocks(300);
    make.channel = 1;
    let mut rig = make.start().await;
    let all = rig.all();
    rig.ask(&all, false);
    // Requesters read until they have something to tell and can't.
    rig.state(|rig| rig.hub.under_way().0 == 4 && rig.running.counters.down.load(Ordering::Relaxed) > 0)
        .await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    // The owner goes on saying what it likes.
    for block in &all[290..300] {
        rig.cancel(*block);
    }
    rig.ask(&all[295..300], true);
    rig.until(|told| all[..290].iter().chain(&all[295..]).all(|block| told.came.contains_key(block))).await;
    rig.check();
    // It may also end while nobody listens.
    rig.ask(&all[290..295], false);
    rig.running.close();
    assert!(rig.close().await.gone.is_some());
}

#[tokio::test]
#[should_panic(expected = "lock order")]
async fn l3_the_desk_under_itself_is_refused() {
    let rig = Make::blocks(1).start().await;
    let level = crate::webseed::wake::Level::new("webseed desk", 0);
    level.with(|_| rig.hub.under_way());
}

/// All requesters wait for responses that hang, of blocks below number 700; later ones are served. Also all blocks.
async fn stuck() -> (Rig, Vec<BlockRef>) {
    let mut rig = Make::blocks(800).start().await;
    rig.server.answers(|_, request| match request.range.clone().unwrap().start {
        start if start < 700 * B => Answer::Part(B),
        _ => Answer::Right,
    });
    let all = rig.all();
    rig.ask(&all[..500], false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 4).await;
    (rig, all)
}

#[tokio::test(start_paused = true)]
async fn r1_what_is_urgent_is_asked_for_at_once_though_nothing_comes() {
    let (mut rig, all) = stuck().await;
    let start = tokio::time::Instant::now();
    rig.ask(&all[700..716], true);
    rig.until(|told| all[700..716].iter().all(|block| told.came.contains_key(block))).await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn r1_what_a_read_comes_to_wait_for_does_not_stand_behind_what_hangs() {
    let (mut rig, all) = stuck().await;
    // Nobody waits for these when they are asked for.
    rig.ask(&all[700..716], false);
    let start = tokio::time::Instant::now();
    rig.running.outbox.hurry(rig.request(all[705]));
    rig.until(|told| told.came.contains_key(&all[705])).await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn w2_idle_requesters_sleep_while_one_is_stalled() {
    let mut rig = Make::blocks(64).options(16, 16).start().await;
    rig.server.answers(|_, _| Answer::Hang);
    let first = rig.blocks(0..1);
    rig.ask(&first, false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 1).await;
    let taken = || crate::webseed::wake::taken_by_this_thread();
    let before = taken();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let spent = taken() - before;
    assert!(spent < 100, "{spent} in ten seconds");
    rig.server.go();
    rig.until_came(1).await;
    rig.close().await;
}
