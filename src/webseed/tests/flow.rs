//! What is asked for comes: files, their borders, redirects, BEP 17, limits.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rig::{B, Make};
use super::server::{Answer, by_piece, byte, raw};
use crate::metainfo::geometry::BLOCK_LEN;
use crate::webseed::{Kind, SeedState};

#[tokio::test]
async fn a_file_comes_whole() {
    let mut rig = Make::blocks(100).start().await;
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(100).await;
    let log = rig.server.log();
    assert!(log.iter().all(|r| r.path == "/f" && r.head.contains("accept-encoding: identity")), "{log:?}");
    let asked: u64 = log.iter().map(|r| r.range.clone().unwrap()).map(|r| r.end - r.start).sum();
    assert_eq!(asked, 100 * B, "each byte once");
    let health = rig.running.health.snapshot();
    assert_eq!((health.bytes, health.requests, health.reason), (100 * B, log.len() as u64, None));
    let told = rig.close().await;
    assert_eq!((told.started, told.late, told.rejected.len()), (1, 0, 0));
    assert_eq!(told.gone.as_deref(), Some("it was removed"));
}

#[tokio::test]
async fn files_that_share_pieces_and_filling_come_right() {
    let files = vec![
        ("/a", 5 * B + 7, false),
        ("/dir/b", 100, false),
        ("/.pad/1", 3 * B - 107, true),
        ("/empty", 0, false),
        ("/c", 20 * B, false),
        ("/.pad/2", 4 * B, true),
        ("/d", 3, false),
    ];
    let mut rig = Make::files(files).start().await;
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(all.len()).await;
    assert!(rig.server.log().iter().all(|r| !r.path.contains("pad") && !r.path.contains("empty")));
    rig.close().await;
}

#[tokio::test]
async fn two_files_of_half_a_megabyte_in_one_piece() {
    let mut make = Make::files(vec![("/a", 500_000, false), ("/b", 500_000, false)]);
    make.piece = 2 << 20;
    let mut rig = make.start().await;
    let all = rig.all();
    rig.ask(&all, true);
    rig.until_came(all.len()).await;
    rig.close().await;
}

#[tokio::test]
async fn redirects_are_followed_and_remembered_for_each_file() {
    let mut rig = Make::blocks(64).start().await;
    let target = rig.server.url("/elsewhere/f");
    rig.server.answers(move |_, request| match request.path.as_str() {
        "/f" => Answer::Raw(raw("302 Found", &["location: /middle"], b"<html>found</html>"), true),
        "/middle" => Answer::Raw(raw("308 Permanent Redirect", &[&format!("location: {target}")], b""), true),
        _ => {
            let range = request.range.clone().unwrap();
            let body: Vec<u8> = range.clone().map(|at| byte("/f", at)).collect();
            let content = format!("content-range: bytes {}-{}/{}", range.start, range.end - 1, 64 * B);
            Answer::Raw(raw("206 Partial Content", &[&content], &body), true)
        }
    });
    let (first, rest) = (rig.blocks(0..16), rig.blocks(16..64));
    rig.ask(&first, false);
    rig.until_came(16).await;
    let before = rig.server.count();
    rig.ask(&rest, false);
    rig.until_came(64).await;
    let later = &rig.server.log()[before..];
    assert!(later.iter().all(|r| r.path == "/elsewhere/f"), "{later:?}");
    rig.close().await;
}

#[tokio::test]
async fn a_redirect_that_is_good_no_longer_is_asked_for_anew() {
    let mut rig = Make::blocks(32).start().await;
    rig.server.answers(move |_, request| match request.path.as_str() {
        "/f" => Answer::Raw(raw("307 Temporary Redirect", &["location: /once?1"], b""), true),
        path => {
            let range = request.range.clone().unwrap();
            if range.start > 0 && path == "/once?1" {
                return Answer::Raw(raw("403 Forbidden", &[], b""), true);
            }
            let body: Vec<u8> = range.clone().map(|at| byte("/f", at)).collect();
            let content = format!("content-range: bytes {}-{}/{}", range.start, range.end - 1, 32 * B);
            Answer::Raw(raw("206 Partial Content", &[&content], &body), true)
        }
    });
    let first = rig.blocks(0..16);
    rig.ask(&first, false);
    rig.until_came(16).await;
    rig.server.answers(|_, request| match request.path.as_str() {
        "/once?1" => Answer::Raw(raw("403 Forbidden", &[], b""), true),
        _ => Answer::Right,
    });
    let rest = rig.blocks(16..32);
    rig.ask(&rest, false);
    rig.until_came(32).await;
    assert!(rig.told.refused.is_empty());
    assert_eq!(rig.running.health.snapshot().reason, None);
    rig.close().await;
}

#[tokio::test]
async fn pieces_are_asked_for_by_bep_17() {
    let mut make = Make::blocks(40);
    make.kind = Kind::Http;
    let mut rig = make.start().await;
    rig.server.answers(|_, request| by_piece(request, 40 * B, 16 * B));
    let wanted = [rig.blocks(3..9), rig.blocks(12..40)].concat();
    rig.ask(&wanted, false);
    rig.until_came(wanted.len()).await;
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_on_what_is_received_holds() {
    let mut rig = Make::blocks(64).start().await;
    rig.limit.set(Some(8 * B));
    let start = tokio::time::Instant::now();
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(64).await;
    // What was read last is paid for afterwards, by each requester.
    let took = start.elapsed().as_secs_f64();
    assert!((3.0..=8.5).contains(&took), "{took} s for 8");
    assert!(rig.running.health.snapshot().reason.is_none(), "pauses of our own are none of the server's");
    rig.close().await;
}

#[tokio::test]
async fn what_is_taken_back_leaves_the_queue_at_once_and_a_request_when_nothing_else_is_wanted_of_it() {
    let mut rig = Make::blocks(64).options(1, 8).start().await;
    rig.server.answers(|n, _| if n == 0 { Answer::Part(2 * B) } else { Answer::Right });
    let all = rig.all();
    rig.ask(&all[..16], false);
    rig.until_came(2).await;
    rig.ask(&all[16..32], false);
    rig.state(|rig| rig.running.outbox.pending_requests() == 0).await;
    // Queued: answered at once.
    for block in &all[16..32] {
        rig.cancel(*block);
    }
    rig.until(|told| told.recalled.len() == 16).await;
    // Of what is under way all but one: it goes on. That one, too: it is cut, and told.
    for block in &all[2..15] {
        rig.cancel(*block);
    }
    rig.ask(&all[40..41], false);
    rig.state(|rig| rig.running.outbox.pending_requests() == 0).await;
    assert_eq!((rig.told.recalled.len(), rig.server.open.load(Ordering::SeqCst)), (16, 1));
    rig.cancel(all[15]);
    rig.until(|told| told.recalled.len() == 30 && told.came.len() == 3).await;
    assert_eq!(rig.server.count(), 2);
    // Asked for again, it comes.
    rig.ask(&all[2..32], false);
    rig.until_came(33).await;
    assert_eq!(rig.running.health.snapshot().state, SeedState::Idle);
    rig.close().await;
}

#[tokio::test]
async fn a_block_that_is_taken_back_and_comes_all_the_same_is_welcome() {
    let mut rig = Make::blocks(16).options(1, 8).start().await;
    rig.server.answers(|_, _| Answer::Part(2 * B));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(2).await;
    rig.cancel(all[5]);
    rig.cancel(all[6]);
    rig.cancel(all[7]);
    // Asked for again while it is still on its way: that is the same request.
    rig.ask(&all[7..8], false);
    rig.state(|rig| rig.running.outbox.pending_requests() == 0).await;
    rig.server.go();
    rig.until_came(16).await;
    assert_eq!(rig.server.count(), 1);
    assert_eq!(rig.running.counters.wasted.load(Ordering::Relaxed), 0);
    rig.close().await;
}

#[tokio::test]
async fn bulk_is_cut_for_what_is_urgent() {
    let mut rig = Make::blocks(400).options(2, 8).start().await;
    rig.server.answers(|n, _| if n < 2 { Answer::Part(B) } else { Answer::Right });
    let all = rig.all();
    rig.ask(&all[..200], false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 2).await;
    rig.ask(&all[300..316], true);
    rig.until(|told| all[300..316].iter().all(|block| told.came.contains_key(block))).await;
    let log = rig.server.log();
    assert_eq!(log[2].range.as_ref().unwrap().start, 300 * B, "what is urgent comes next");
    assert!(rig.told.recalled.is_empty() && rig.told.rejected.is_empty(), "what was cut is still wanted");
    rig.server.go();
    rig.until_came(216).await;
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn small_requests_that_nobody_wants_any_more_keep_nothing_urgent_waiting() {
    // Neither answered, nor sent to the end.
    for answer in [Answer::Hang, Answer::Part(5)] {
        let mut make = Make::blocks(64);
        make.piece = BLOCK_LEN;
        let mut rig = make.start().await;
        rig.server.answers(move |n, _| if n < 4 { answer.clone() } else { Answer::Right });
        let four = rig.blocks([0, 16, 32, 48]);
        rig.ask(&four, true);
        rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 4).await;
        // What was sent is here.
        tokio::time::sleep(Duration::from_millis(10)).await;
        four.iter().for_each(|block| rig.cancel(*block));
        let (start, fifth) = (tokio::time::Instant::now(), rig.blocks([5]));
        rig.ask(&fifth, true);
        rig.until_came(1).await;
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
        rig.close().await;
    }
}
