//! What servers do wrong, each once: what it means, and what is told of it.

use std::time::Duration;

use tokio::time::Instant;

use super::rig::{B, Make, Rig};
use super::server::{Answer, byte, raw};
use crate::metainfo::geometry::FileIndex;
use crate::sync::timeouts;
use crate::webseed::{Hub, Kind, SeedState};

/// The bytes of the file of a single-file torrent.
fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| byte("/f", at)).collect()
}

/// What its status says is wrong.
fn reason(rig: &Rig) -> String {
    rig.running.health.snapshot().reason.unwrap_or_default()
}

/// A torrent of a file that is served as told, and one that is served well.
async fn two_files(say: impl Fn(usize, u64) -> Answer + Send + Sync + 'static) -> Rig {
    let rig = Make::files(vec![("/a", 200 * B, false), ("/b", 32 * B, false)]).start().await;
    rig.server.answers(move |n, request| match request.path.as_str() {
        "/n/a" => say(n, request.range.clone().unwrap().start),
        _ => Answer::Right,
    });
    rig
}

#[tokio::test]
async fn what_an_answer_says_of_a_file_drops_that_file() {
    let size = 200 * B;
    let range = move |start: u64| format!("content-range: bytes {start}-{}/{size}", start + 3 * B - 1);
    type Row = (&'static str, Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>);
    let rows: Vec<Row> = vec![
        ("416", Box::new(|_| raw("416 Range Not Satisfiable", &[], b""))),
        ("410", Box::new(|_| raw("410 Gone", &[], b""))),
        ("sends the whole", Box::new(move |_| raw("200 OK", &[], &vec![1; size as usize]))),
        ("the torrent's", Box::new(|_| raw("200 OK", &[], &[1; 1000]))),
        (
            "sends bytes 0-",
            Box::new(move |_| raw("206 Partial Content", &[&range(0)], &vec![1; 3 * B as usize])),
        ),
        ("without saying which", Box::new(|_| raw("206 Partial Content", &[], &[1; 100]))),
        (
            "compressed (gzip)",
            Box::new(move |start| {
                let headers = [&range(start)[..], "content-encoding: gzip"];
                raw("206 Partial Content", &headers, &vec![1; 3 * B as usize])
            }),
        ),
        ("in a circle", Box::new(|_| raw("302 Found", &["location: /n/a"], b""))),
        ("neither http nor https", Box::new(|_| raw("302 Found", &["location: ftp://a.example/"], b""))),
    ];
    for (what, answer) in rows {
        let mut rig = two_files(move |_, start| Answer::Raw(answer(start), true)).await;
        let all = rig.all();
        // Not from the beginning of the file, where a server that gives no parts is of use.
        rig.ask(&all[100..103], false);
        rig.ask(&all[200..], false);
        rig.until(|told| told.came.len() == 32 && told.rejected.len() == 3).await;
        assert_eq!(rig.told.refused, [FileIndex(0)], "{what}");
        assert!(rig.told.choked.is_empty(), "{what}");
        let health = rig.running.health.snapshot();
        assert_eq!(health.refused_files, 1, "{what}");
        rig.close().await;
    }
}

#[tokio::test]
async fn a_file_of_which_it_says_why() {
    // The reason stays until something goes well; here nothing else is asked.
    let mut rig = two_files(|_, _| Answer::Raw(raw("404 Not Found", &[], b""), true)).await;
    let first = rig.blocks(0..1);
    rig.ask(&first, false);
    rig.until(|told| told.rejected.len() == 1).await;
    assert_eq!(reason(&rig), "the server answers 404 Not Found");
    rig.close().await;
}

#[tokio::test]
async fn redirects_in_a_row_are_bounded() {
    let mut rig = two_files(|_, _| Answer::Right).await;
    rig.server.answers(|n, _| Answer::Raw(raw("302 Found", &[&format!("location: /{n}")], b""), true));
    let first = rig.blocks(0..1);
    rig.ask(&first, false);
    rig.until(|told| told.rejected.len() == 1).await;
    assert!(reason(&rig).contains("more than 10"), "{}", reason(&rig));
    assert_eq!(rig.server.count(), 11);
    rig.close().await;
}

#[tokio::test]
async fn what_a_redirect_says_is_bounded() {
    let scheme = format!("its redirects lead nowhere: {} is neither http nor https", "x".repeat(20));
    for (to, why) in [
        (format!("/{}", "x".repeat(9000)), "its redirects lead nowhere: to a URL that is too long"),
        // Each step is a part of the next.
        (format!("{}/", "x".repeat(3000)), "its redirects lead nowhere: to a URL that is too long"),
        (format!("{}://a.example/", "x".repeat(4000)), scheme.as_str()),
    ] {
        let mut rig = two_files(|_, _| Answer::Right).await;
        let location = format!("location: {to}");
        rig.server.answers(move |_, _| Answer::Raw(raw("302 Found", &[&location], b""), true));
        let first = rig.blocks(0..1);
        rig.ask(&first, false);
        rig.until(|told| told.rejected.len() == 1).await;
        assert_eq!(reason(&rig), why);
        rig.close().await;
    }
}

#[tokio::test]
async fn a_webseed_without_a_file_left_is_dropped() {
    let mut rig = Make::blocks(32).start().await;
    rig.server.answers(|_, _| Answer::Raw(raw("404 Not Found", &[], b""), true));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| told.gone.is_some()).await;
    assert_eq!(rig.told.gone.as_deref(), Some("the server answers 404 Not Found"));
    let health = rig.running.health.snapshot();
    assert_eq!((health.state, health.reason), (SeedState::Dropped, rig.told.gone.clone()));
    rig.nothing_left();
}

#[tokio::test]
async fn a_server_that_gives_no_parts_is_of_use_at_the_beginning() {
    let mut rig = Make::blocks(40).options(1, 1).start().await;
    rig.server.answers(|_, _| Answer::Raw(raw("200 OK", &[], &bytes(0..40 * B)), true));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(40).await;
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_short_is_used_as_far_as_it_goes() {
    for chunked in [false, true] {
        let mut rig = Make::blocks(16).options(1, 1).start().await;
        rig.server.answers(move |n, _| match n {
            0 if chunked => {
                let head = "HTTP/1.1 206 Partial Content\r\ntransfer-encoding: chunked\r\ncontent-range: bytes 0-262143/262144\r\n\r\nC000\r\n";
                Answer::Raw([head.as_bytes(), &bytes(0..3 * B), b"\r\n0\r\n\r\n"].concat(), true)
            }
            0 => Answer::Short(3 * B + 5),
            _ => Answer::Right,
        });
        let all = rig.all();
        rig.ask(&all, false);
        rig.until(|told| told.rejected.len() == 13).await;
        assert_eq!((rig.told.came.len(), &rig.told.choked[..]), (3, &[true][..]));
        let sent = if chunked { 3 * B } else { 3 * B + 5 };
        assert_eq!(reason(&rig), format!("the server sent {sent} bytes of {}", 16 * B));
        rig.until(|told| told.choked == [true, false]).await;
        rig.ask(&all[3..], false);
        rig.until_came(16).await;
        assert_eq!(reason(&rig), "");
        rig.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_bodies_end_too_early_time_and_again_is_dropped() {
    // A page that says that there is no such file, sent as if it were the file.
    let page = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsorry\r\n0\r\n\r\n";
    let mut rig = two_files(|_, _| Answer::Raw(page.to_vec(), true)).await;
    let first = rig.blocks(0..1);
    for times in 1..3 {
        rig.ask(&first, false);
        rig.until(|told| told.choked.len() == 2 * times).await;
        assert_eq!(reason(&rig), format!("the server sent 5 bytes of {B}"));
    }
    rig.ask(&first, false);
    rig.until(|told| told.refused == [FileIndex(0)] && told.rejected.len() == 3).await;
    assert!(reason(&rig).contains("time and again"), "{}", reason(&rig));
    assert_eq!((rig.server.count(), rig.told.choked.len()), (3, 4));
    let other = rig.blocks(200..232);
    rig.ask(&other, false);
    rig.until_came(32).await;
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_long_is_cut_off() {
    let mut rig = Make::blocks(16).options(1, 1).start().await;
    rig.server.answers(|_, _| {
        let head = "HTTP/1.1 206 Partial Content\r\ntransfer-encoding: chunked\r\ncontent-range: bytes 0-262143/262144\r\n\r\n40000\r\n";
        Answer::Raw([head.as_bytes(), &bytes(0..16 * B), b"\r\n5\r\nmore!\r\n0\r\n\r\n"].concat(), true)
    });
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(16).await;
    rig.state(|rig| rig.hub.under_way() == (0, 0, 0)).await;
    assert!(reason(&rig).contains("more than the 262144 bytes"));
    // All that was asked for has come: that is worth a word, and no wait.
    assert_eq!(rig.hub.hosts.failing(), 0);
    assert!(rig.close().await.choked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_stops_or_drips_is_left_alone() {
    let (first, stall) = (timeouts::WEBSEED_FIRST_BYTE, timeouts::WEBSEED_STALL);
    for (answer, after, why) in [
        (Answer::Hang, first, "no answer in time"),
        (Answer::Part(5), stall, "the server stopped sending"),
        (Answer::Drip(1), stall, "the server stopped sending"),
        (Answer::Drip(1600), stall, "the server stopped sending"),
    ] {
        let mut rig = Make::blocks(16).options(1, 1).start().await;
        let say = answer.clone();
        rig.server.answers(move |_, _| say.clone());
        let all = rig.all();
        let start = Instant::now();
        rig.ask(&all, false);
        rig.until(|told| told.rejected.len() == 16).await;
        let took = start.elapsed();
        assert!(took >= after && took < after + Duration::from_secs(3), "{answer:?}: {took:?}");
        assert_eq!((reason(&rig).as_str(), &rig.told.choked[..]), (why, &[true][..]));
        rig.close().await;
    }
    // Slow is no fault.
    let mut rig = Make::blocks(16).options(1, 1).start().await;
    rig.server.answers(|_, _| Answer::Drip(B));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(16).await;
    assert_eq!(reason(&rig), "");
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_ours_excuses_no_server_that_stops_or_drips() {
    let stall = timeouts::WEBSEED_STALL;
    for answer in [Answer::Part(5), Answer::Drip(1), Answer::Drip(1600)] {
        let mut rig = Make::blocks(16).options(1, 1).start().await;
        rig.limit.set(Some(1 << 20));
        let say = answer.clone();
        rig.server.answers(move |_, _| say.clone());
        let all = rig.all();
        rig.ask(&all, false);
        let given_up = rig.until(|told| told.rejected.len() == 16);
        tokio::time::timeout(stall + Duration::from_secs(3), given_up).await.expect("it is given up");
        assert_eq!(reason(&rig), "the server stopped sending", "{answer:?}");
        rig.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_limit_of_ours_is_no_fault_of_the_server() {
    // What is read at once takes longer than a server may say nothing.
    let mut rig = Make::blocks(16).options(2, 2).start().await;
    rig.limit.set(Some(1024));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(16).await;
    assert_eq!((reason(&rig).as_str(), rig.told.choked.len()), ("", 0));
    rig.close().await;
    // Nor when nobody waits for it any more meanwhile.
    let mut rig = Make::blocks(64).options(1, 1).start().await;
    rig.limit.set(Some(1024));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| !told.came.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left: Vec<_> = all.iter().filter(|block| !rig.told.came.contains_key(block)).copied().collect();
    left.into_iter().for_each(|block| rig.cancel(block));
    rig.until(|told| told.came.len() + told.recalled.len() == 64).await;
    rig.state(|rig| rig.hub.under_way().0 == 0).await;
    assert_eq!(reason(&rig), "");
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn w2_who_can_make_no_client_waits_as_well() {
    let mut make = Make::blocks(16);
    // That is no header.
    make.hub = Some(Hub::with_clients(make.options, crate::net::sockets::Sockets::default(), |client| {
        client.user_agent("\n")
    }));
    let mut rig = make.start().await;
    let all = rig.all();
    rig.until(|told| told.started == 1).await;
    let taken = crate::webseed::wake::taken_by_this_thread;
    let (before, start) = (taken(), Instant::now());
    for times in 1..=10 {
        rig.ask(&all, false);
        rig.until(|told| told.choked.len() == 2 * times).await;
        assert_eq!(rig.told.rejected.len(), 16 * times);
    }
    assert!(start.elapsed() >= Duration::from_secs(9), "{:?}", start.elapsed());
    assert!(taken() - before < 500, "{}", taken() - before);
    assert!(reason(&rig).starts_with("no secure connection: "), "{}", reason(&rig));
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_listens() {
    let mut rig = Make::blocks(16).start().await;
    // A port that was free a moment ago.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = rig.another(format!("http://{free}/f"));
    let wanted = rig.blocks(0..4);
    let wanted = rig.wanted(&wanted, false);
    other.outbox.request(wanted);
    rig.until(|told| told.rejected.len() == 4).await;
    let health = other.health.snapshot();
    assert!(matches!(health.state, SeedState::Waiting { .. }), "{health:?}");
    assert!(health.reason.as_deref().unwrap().starts_with("it can't be reached: "), "{health:?}");
    other.close();
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.close().await;
}

#[tokio::test]
async fn a_server_that_closes_after_each_answer_is_as_good_as_another() {
    let mut rig = Make::blocks(64).start().await;
    rig.server.answers(|_, request| {
        let range = request.range.clone().unwrap();
        let content = format!("content-range: bytes {}-{}/{}", range.start, range.end - 1, 64 * B);
        Answer::Raw(raw("206 Partial Content", &["connection: close", &content], &bytes(range)), false)
    });
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(64).await;
    assert_eq!((reason(&rig).as_str(), rig.told.choked.len()), ("", 0));
    rig.close().await;
}

#[tokio::test]
async fn a_private_host_is_not_asked_for_a_torrent_from_the_web() {
    let mut make = Make::blocks(16);
    make.trusted = false;
    let mut rig = make.start().await;
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| told.gone.is_some()).await;
    assert!(rig.told.gone.as_deref().unwrap().contains("its host has a private address"));
    assert_eq!(rig.server.count(), 0);
    rig.nothing_left();
}

#[tokio::test]
async fn a_url_that_is_none_ends_it_at_once() {
    for url in ["", "no url", "ftp://a.example/", "http://"] {
        let mut rig = Make::blocks(16).start().await;
        rig.until(|told| told.started == 1).await;
        let other = rig.another(url.to_owned());
        rig.until(|told| told.gone.is_some()).await;
        assert_eq!(rig.told.started, 2, "{url}");
        assert_eq!(other.health.snapshot().state, SeedState::Dropped);
        rig.told.gone = None;
        rig.close().await;
    }
}

#[tokio::test]
async fn what_sends_bad_bytes_is_distrusted_for_a_file_and_then_dropped() {
    let files = ["/a", "/b", "/c", "/d"].map(|name| (name, 16 * B, false)).to_vec();
    let mut rig = Make::files(files).start().await;
    rig.server.answers(|_, _| Answer::Hang);
    let all = rig.all();
    rig.ask(&all, false);
    rig.running.outbox.distrust(FileIndex(1));
    rig.running.outbox.distrust(FileIndex(1));
    rig.until(|told| told.refused == [FileIndex(1)]).await;
    assert_eq!(reason(&rig), "what it sent of this file failed the torrent's hash");
    rig.running.outbox.distrust(FileIndex(3));
    rig.until(|told| told.refused == [FileIndex(1), FileIndex(3)]).await;
    assert_eq!(rig.running.health.snapshot().refused_files, 2);
    // How much is too much is its owner's word.
    rig.running.outbox.disconnect(crate::webseed::fault::Fault::Distrusted.to_string());
    rig.until(|told| told.gone.is_some()).await;
    assert!(rig.told.gone.as_deref().unwrap().contains("in several files"));
    rig.nothing_left();
}

#[tokio::test(start_paused = true)]
async fn bep_17_says_in_the_body_how_long_to_wait() {
    let mut make = Make::blocks(16).options(1, 1);
    make.kind = Kind::Http;
    let mut rig = make.start().await;
    rig.server.answers(|_, _| Answer::Raw(raw("503 Service Unavailable", &[], b"90\n"), true));
    let start = Instant::now();
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| told.choked == [true, false]).await;
    let waited = start.elapsed().as_secs_f64();
    assert!((90.0..=92.0).contains(&waited), "{waited} s");
    rig.server.answers(|_, _| Answer::Raw(raw("404 Not Found", &[], b""), true));
    rig.ask(&all, false);
    rig.until(|told| told.gone.is_some()).await;
    assert_eq!(rig.told.gone.as_deref(), Some("the server answers 404 Not Found"));
    rig.nothing_left();
}

#[tokio::test]
async fn redirects_of_a_bep_17_server_that_lead_nowhere_end_it() {
    // They are of no file: it has them all, or none.
    for (to, why) in [("ftp://a.example/", "neither http nor https"), ("/f?again", "in a circle")] {
        let mut make = Make::files(vec![("/a", 20 * B, false), ("/b", 32 * B, false)]);
        make.kind = Kind::Http;
        let mut rig = make.start().await;
        let location = format!("location: {to}");
        rig.server.answers(move |_, _| Answer::Raw(raw("302 Found", &[&location], b""), true));
        let all = rig.all();
        // A piece of the first file alone.
        rig.ask(&all[..16], false);
        rig.until(|told| told.gone.is_some() || !told.refused.is_empty()).await;
        assert!(rig.told.refused.is_empty(), "{:?}", rig.told.refused);
        assert!(rig.told.gone.as_deref().unwrap().contains(why), "{:?}", rig.told.gone);
        rig.nothing_left();
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_is_tried_again_at_once() {
    let mut rig = Make::blocks(16).options(1, 1).start().await;
    rig.server.answers(|n, _| if n == 0 { Answer::Raw(Vec::new(), false) } else { Answer::Right });
    let all = rig.all();
    rig.ask(&all, false);
    rig.until_came(16).await;
    assert!(rig.told.choked.is_empty() && rig.told.rejected.is_empty());
    rig.close().await;
}

#[tokio::test]
async fn what_is_told_to_go_goes() {
    let mut rig = Make::blocks(16).start().await;
    rig.running.outbox.disconnect("enough");
    rig.until(|told| told.gone.is_some()).await;
    assert_eq!(rig.told.gone.as_deref(), Some("enough"));
    rig.nothing_left();
}
