//! The session of a webseed: the task between its outbox, its requesters and the owner of the torrent.
//!
//! Flow of a round: what the desk has to say is told, in order; then it waits for whatever comes first: the outbox (what
//! is asked for and taken back goes to the desk), the bell (a requester has left something to say), the end of a
//! back-off, or its own end. While the webseed waits it counts as choking us: what was queued is rejected, so that others
//! are asked, and with the end of the wait it lets us in again.
//!
//! Closing only signals: requesters are dropped at their next await and give back what they hold. The session waits for
//! that, under no lock, and then tells that it is over; a panic of its own is caught and told like any end.
//!
//! Deliberately not here: requests themselves (`requester`), and what is queued (`desk`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::desk::{Desk, Say, block_of};
use super::fault::Fault;
use super::hosts::now;
use super::hub::Step;
use super::requester::{self, Shared};
use super::wake::Level;
use super::{Context, url};
use crate::peer::event::{Item, PeerEvent};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;

/// Items told at once.
const ITEMS_MAX: usize = 1024;

/// Why a session ended.
struct Ended(String);

struct Session {
    shared: Arc<Shared>,
    /// We told that it chokes us.
    choked: bool,
    /// When it may be asked again.
    until: Option<Instant>,
}

/// Runs a webseed until it ends.
pub(super) async fn run(scope: TaskScope, ctx: Context) {
    let (key, events, outbox) = (ctx.key, ctx.events.clone(), ctx.outbox.clone());
    let health = ctx.health.clone();
    let webseed = PeerEvent::Webseed { key, outbox: outbox.clone(), counters: ctx.counters.clone() };
    if events.send(webseed).await.is_err() {
        return;
    }
    let reason = match url::base(&ctx.seed.url) {
        Ok(base) => serve(&scope, ctx, base).await,
        Err(fault) => fault.to_string(),
    };
    outbox.close();
    health.dropped(&reason);
    let _ = events.send(PeerEvent::Gone { key, reason }).await;
}

/// Has requesters work until there is a reason not to; returns it when they have ended.
async fn serve(scope: &TaskScope, ctx: Context, base: reqwest::Url) -> String {
    let requesters = ctx.hub.options.per_seed.max(1);
    let desk = Desk::new(ctx.torrent.info.clone(), ctx.seed.kind, requesters);
    let shared = Arc::new(Shared {
        url: ctx.seed.url.as_str().into(),
        base,
        desk: Level::new("webseed desk", desk),
        bell: Notify::new(),
        panics: AtomicU32::new(0),
        ctx,
    });
    let requests = scope.child("requests");
    for n in 1..=requesters {
        // Refused only when it is to end already.
        requests.spawn(&n.to_string(), requester::run(shared.clone()));
    }
    let session = Session { shared: shared.clone(), choked: false, until: None };
    let driven = tokio::select! {
        biased;
        () = scope.token().cancelled() => Ok(Ended("it was removed".to_owned())),
        driven = AssertUnwindSafe(session.drive()).catch_unwind() => driven,
    };
    let Ended(reason) = driven.unwrap_or_else(|_| {
        let reason = "its session panicked; this is a bug, please report it";
        tracing::error!(seed = shared.ctx.health.url(), "{reason}");
        Ended(reason.to_owned())
    });
    requests.cancel();
    drop(shared.desk.change(Desk::close, |_| false));
    let late = requests.join(timeouts::WEBSEED_END).await;
    if !late.is_empty() {
        tracing::warn!(?late, "requests to a webseed didn't end");
    }
    reason
}

impl Session {
    async fn drive(mut self) -> Ended {
        let shared = self.shared.clone();
        let outbox = shared.ctx.outbox.clone();
        loop {
            if let Err(ended) = self.say().await {
                return ended;
            }
            let until = self.until.map(tokio::time::Instant::from_std);
            tokio::select! {
                () = outbox.changed() => {
                    if let Err(ended) = self.listen() {
                        return ended;
                    }
                }
                () = shared.bell.notified() => {}
                () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// Passes on what the outbox holds.
    fn listen(&mut self) -> Result<(), Ended> {
        let out = self.shared.ctx.outbox.take();
        self.shared.ctx.hub.step(Step::Listened);
        if let Some(reason) = out.disconnect {
            return Err(Ended(reason));
        }
        for file in out.distrusted {
            self.shared.refuse(file, &Fault::Corrupt);
        }
        let cuts = self.shared.change(|desk| {
            out.unsent.into_iter().for_each(|request| desk.never_asked(block_of(request)));
            let cancels = out.cancels.into_iter();
            let cuts: Vec<_> = cancels.filter_map(|request| desk.cancel(block_of(request))).collect();
            desk.ask(out.requests);
            let hurried = out.hurried.into_iter();
            cuts.into_iter()
                .chain(hurried.filter_map(|request| desk.hurry(block_of(request))))
                .collect::<Vec<_>>()
        });
        cuts.into_iter().for_each(|cut| cut.cancel());
        self.shared.cut_for_urgent();
        Ok(())
    }

    /// Tells what there is to tell.
    async fn say(&mut self) -> Result<(), Ended> {
        let look = |desk: &mut Desk| (desk.take_say(), desk.waits(now()), desk.ended().cloned());
        let (Say { refuses, mut items, rejects }, until, ended) = self.shared.desk.with(look);
        if let Some(reason) = ended {
            return Err(Ended(reason));
        }
        if until != self.until {
            self.until = until;
            self.shared.ctx.health.waits(until);
        }
        let (key, events) = (self.shared.ctx.key, &self.shared.ctx.events);
        let closing = |_| Ended("the torrent is closing".to_owned());
        if !refuses.is_empty() {
            events.send(PeerEvent::Refuses { key, files: refuses }).await.map_err(closing)?;
        }
        if until.is_some() && !self.choked {
            items.push(Item::Choked(true));
        }
        items.extend(rejects.into_iter().map(Item::Rejected));
        if until.is_none() && self.choked {
            items.push(Item::Choked(false));
        }
        self.choked = until.is_some();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(ITEMS_MAX));
            let said = PeerEvent::Said { key, items: std::mem::replace(&mut items, rest) };
            events.send(said).await.map_err(closing)?;
        }
        Ok(())
    }
}
