//! However it ends, nothing is left: closing, cancelling at every await, panics at every step.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::rig::{B, Make, Rig};
use super::server::{Answer, Request, by_piece, raw};
use crate::metainfo::geometry::BlockRef;
use crate::net::limit::Chain;
use crate::peer::PeerKey;
use crate::peer::event::PeerEvent;
use crate::webseed::desk::Desk;
use crate::webseed::hub::Step;
use crate::webseed::requester::{PANICS_MAX, Shared, run};
use crate::webseed::wake::Level;
use crate::webseed::{Kind, Seed, SeedState, Target};

#[tokio::test(start_paused = true)]
async fn w6_closing_with_sixteen_hung_responses_only_signals() {
    let mut rig = Make::blocks(400).options(16, 16).start().await;
    rig.server.answers(|n, _| if n % 2 == 0 { Answer::Hang } else { Answer::Part(B) });
    let all = rig.all();
    rig.ask(&all, false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 16).await;
    assert_eq!(rig.hub.under_way().0, 16);
    let start = tokio::time::Instant::now();
    rig.running.close();
    rig.running.close();
    rig.until(|told| told.gone.is_some()).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}: it only signals", start.elapsed());
    rig.nothing_left();
    rig.check();
    // The servers' side sees the connections go.
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 0).await;
    // Nothing is asked of it any more, and nothing said.
    let requests = rig.server.count();
    rig.ask(&all, true);
    assert_eq!(rig.running.outbox.pending_requests(), 0);
    assert_eq!(rig.server.count(), requests);
    assert_eq!(rig.running.health.snapshot().state, SeedState::Dropped);
    assert!(rig.events.try_recv().is_err());
}

#[tokio::test]
async fn w6_a_webseed_of_a_closed_torrent_does_not_start() {
    let mut rig = Make::blocks(16).start().await;
    rig.until(|told| told.started == 1).await;
    rig.scope.cancel();
    assert!(rig.scope.join(Duration::from_secs(5)).await.is_empty());
    let again = rig.another("http://127.0.0.1:1/".to_owned());
    assert!(rig.scope.live().is_empty());
    again.close();
    rig.nothing_left();
}

#[tokio::test]
async fn it_ends_with_the_scope_of_its_torrent() {
    let mut rig = Make::blocks(64).start().await;
    rig.server.answers(|_, _| Answer::Part(B));
    let all = rig.all();
    rig.ask(&all, false);
    rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 4).await;
    rig.scope.cancel();
    assert!(rig.scope.join(Duration::from_secs(5)).await.is_empty());
    rig.nothing_left();
}

/// Polls a future as often as it is told, and then no more.
struct Polls<F> {
    future: F,
    left: usize,
}

impl<F: Future + Unpin> Future for Polls<F> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.left -= 1;
        match Pin::new(&mut self.future).poll(cx) {
            Poll::Pending if self.left > 0 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

/// What one requester needs, without a session.
fn shared(rig: &Rig, kind: Kind, events: mpsc::Sender<PeerEvent>) -> Arc<Shared> {
    let target =
        Target { info: rig.info.clone(), info_hash: [7; 20], down_limits: Chain::new([rig.limit.clone()]) };
    let url = rig.server.url("/f");
    let ctx = crate::webseed::Context {
        key: PeerKey(9),
        seed: Seed { url: url.clone(), kind, trusted: true },
        torrent: Arc::new(target),
        hub: rig.hub.clone(),
        events,
        outbox: Arc::default(),
        counters: Arc::default(),
        health: rig.running.health.clone(),
    };
    Arc::new(Shared {
        base: crate::webseed::url::base(&url).unwrap(),
        url: url.as_str().into(),
        desk: Level::new("webseed desk", Desk::new(rig.info.clone(), kind, 1)),
        bell: Notify::new(),
        panics: AtomicU32::new(0),
        ctx,
    })
}

/// One way in which a requester may go, for [`cancelled_at_every_await`].
struct Way {
    kind: Kind,
    answers: fn(usize, &Request) -> Answer,
    /// Bytes per second.
    limit: Option<u64>,
    /// Somebody else has the host's only permit at first.
    waits: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self { kind: Kind::Url, answers: |_, _| Answer::Right, limit: None, waits: false }
    }
}

/// Drops a requester after its first poll, its second, and so on until it has done everything: each time nothing is left
/// under way, and each block is queued still, told, or rejected.
async fn cancelled_at_every_await(way: Way) {
    let mut rig = Make::blocks(40).options(1, 1).start().await;
    rig.until(|told| told.started == 1).await;
    let blocks = rig.all();
    let mut most = 0;
    for polls in 1.. {
        // From the beginning, with nothing that an earlier one has left to the server.
        let (answers, before) = (way.answers, rig.server.count());
        rig.server.answers(move |n, request| answers(n - before, request));
        rig.limit.set(way.limit);
        rig.buffers.clear();
        // Full at first, so that telling is an await as well.
        let (sender, mut events) = mpsc::channel(1);
        let shared = shared(&rig, way.kind, sender.clone());
        sender.try_send(PeerEvent::Refuses { key: PeerKey(9), files: Vec::new() }).ok().unwrap();
        let wanted = rig.wanted(&blocks, false);
        shared.desk.with(|desk| desk.ask(wanted));
        let host = crate::webseed::hosts::host_of(&shared.base);
        let mut held = match way.waits {
            true => rig.hub.hosts.acquire(host, false).await.ok(),
            false => None,
        };
        let (mut told, mut rejected) = (Vec::new(), Vec::new());
        {
            let mut requester = Polls { future: Box::pin(run(shared.clone())), left: polls };
            while told.len() + rejected.len() < blocks.len() && !ended(&shared) {
                tokio::select! {
                    biased;
                    _ = &mut requester => break,
                    Some(event) = events.recv() => collect(event, &mut told),
                    () = shared.bell.notified() => said(&shared, &mut told, &mut rejected),
                    () = std::future::ready(()), if held.is_some() => held = None,
                }
            }
            most = most.max(polls - requester.left);
        }
        let whole = told.len() + rejected.len() == blocks.len() || ended(&shared);
        drop(held);
        // It was dropped somewhere.
        assert_eq!(rig.hub.under_way(), (0, 0, 0), "after {polls} polls");
        while let Ok(event) = events.try_recv() {
            collect(event, &mut told);
        }
        said(&shared, &mut told, &mut rejected);
        let (queued, claimed, claims) = shared.desk.with(|desk| desk.count());
        let all = queued + told.len() + rejected.len();
        assert_eq!((all, claimed, claims), (blocks.len(), 0, 0), "after {polls} polls");
        told.extend(rejected);
        told.sort_unstable();
        told.dedup();
        assert_eq!(queued + told.len(), blocks.len(), "told once");
        if whole {
            break;
        }
    }
    assert!(most >= 4, "it is polled {most} times");
    rig.close().await;
}

#[tokio::test(start_paused = true)]
async fn w4_cancelled_at_every_await_it_leaves_nothing_and_loses_nothing() {
    let answers: fn(usize, &Request) -> Answer = |_, request| match request.path.as_str() {
        "/f" => Answer::Raw(raw("302 Found", &["location: /f?2"], b""), true),
        _ => Answer::Right,
    };
    cancelled_at_every_await(Way { answers, ..Way::default() }).await;
}

#[tokio::test]
async fn w4_cancelled_at_every_await_of_a_request_by_pieces() {
    let answers: fn(usize, &Request) -> Answer = |_, request| match request.path.contains("&again") {
        false => {
            let moved = raw("302 Found", &[&format!("location: {}&again", request.path)], b"moved");
            let first = moved.len() - 3;
            Answer::Halves(moved, first)
        }
        true => by_piece(request, 40 * B, 16 * B),
    };
    cancelled_at_every_await(Way { kind: Kind::Http, answers, ..Way::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn w4_cancelled_while_it_waits_for_a_permit() {
    cancelled_at_every_await(Way { waits: true, ..Way::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn w4_cancelled_at_every_await_of_a_body_under_a_limit() {
    cancelled_at_every_await(Way { limit: Some(4 * B), ..Way::default() }).await;
}

#[tokio::test]
async fn w4_cancelled_at_every_await_of_an_error_and_its_page() {
    // What follows is that all is rejected, or that the file is refused, or that it ends.
    let pages: [fn(usize, &Request) -> Answer; 3] = [
        |_, _| page("503 Service Unavailable"),
        |_, _| page("404 Not Found"),
        |_, _| page("400 Bad Request"),
    ];
    for answers in pages {
        for kind in [Kind::Url, Kind::Http] {
            cancelled_at_every_await(Way { kind, answers, ..Way::default() }).await;
        }
    }
}

/// An answer whose body comes later, in two parts.
fn page(status: &str) -> Answer {
    let page = raw(status, &[], b"120 is what a server of pieces would say");
    let head = page.len() - 20;
    Answer::Halves(page, head)
}

/// Whether a session would end now.
fn ended(shared: &Shared) -> bool {
    shared.desk.with(|desk| desk.ended().is_some())
}

/// What a session would tell.
fn said(shared: &Shared, told: &mut Vec<BlockRef>, rejected: &mut Vec<BlockRef>) {
    let say = shared.desk.with(Desk::take_say);
    collect(PeerEvent::Said { key: PeerKey(9), items: say.items }, told);
    rejected.extend(say.rejects);
}

/// The blocks that an event tells of.
fn collect(event: PeerEvent, told: &mut Vec<BlockRef>) {
    if let PeerEvent::Said { items, .. } = event {
        told.extend(items.into_iter().filter_map(|item| match item {
            crate::peer::event::Item::Block { block, .. } => Some(block),
            _ => None,
        }));
    }
}

/// Panics the n-th time a requester comes to a step.
fn panics_at(rig: &Rig, at: Step, n: usize) {
    let seen = AtomicUsize::new(0);
    *rig.hub.at_step.lock() = Some(Arc::new(move |step| {
        if step == at && seen.fetch_add(1, Ordering::SeqCst) == n {
            panic!("injected at {step:?}");
        }
    }));
}

#[tokio::test]
async fn w7_a_panic_at_any_step_gives_all_back_and_everything_comes() {
    let steps = [
        Step::Claimed,
        Step::Entered,
        Step::Permitted,
        Step::Answered,
        Step::Came,
        Step::Taken,
        Step::Put,
        Step::Settled,
    ];
    for step in steps {
        for n in [0, 1] {
            let mut rig = Make::blocks(64).options(2, 2).start().await;
            panics_at(&rig, step, n);
            let all = rig.all();
            rig.ask(&all, false);
            rig.until_came(64).await;
            rig.check();
            assert!(rig.told.rejected.is_empty(), "{step:?}");
            let told = rig.close().await;
            assert_eq!(told.gone.as_deref(), Some("it was removed"), "{step:?}");
        }
    }
}

#[tokio::test]
async fn w7_who_always_panics_is_given_up() {
    let mut rig = Make::blocks(16).start().await;
    let panics = Arc::new(AtomicU32::new(0));
    let counted = panics.clone();
    *rig.hub.at_step.lock() = Some(Arc::new(move |step| {
        if step == Step::Permitted {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("injected");
        }
    }));
    let all = rig.all();
    rig.ask(&all, false);
    rig.until(|told| told.gone.is_some()).await;
    assert!(rig.told.gone.as_deref().unwrap().contains("panicked"));
    assert!((PANICS_MAX..PANICS_MAX + 4).contains(&panics.load(Ordering::SeqCst)));
    rig.nothing_left();
}

#[tokio::test]
async fn w7_a_panic_of_the_session_ends_it_and_leaves_nothing() {
    for n in [0, 1] {
        let mut rig = Make::blocks(64).start().await;
        rig.server.answers(|_, _| Answer::Part(B));
        panics_at(&rig, Step::Listened, n);
        let all = rig.all();
        rig.ask(&all[..32], false);
        if n == 1 {
            // With requests under way.
            rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) > 0).await;
            rig.ask(&all[32..], true);
        }
        rig.until(|told| told.gone.is_some()).await;
        assert!(rig.told.gone.as_deref().unwrap().contains("its session panicked"), "{:?}", rig.told.gone);
        rig.check();
        rig.nothing_left();
        rig.state(|rig| rig.server.hanging.load(Ordering::SeqCst) == 0).await;
        // Nothing is asked of it any more.
        rig.ask(&all, true);
        assert_eq!(rig.running.outbox.pending_requests(), 0);
        assert_eq!(rig.running.health.snapshot().state, SeedState::Dropped);
    }
}
