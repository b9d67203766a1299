//! The task of one webseed: tells that it takes part, and in the end that it doesn't any more.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::health::Health;
use super::hub::Hub;
use super::{Seed, Target};
use crate::peer::PeerKey;
use crate::peer::event::{Counters, PeerEvent};
use crate::peer::outbox::Outbox;
use crate::sync::tasks::TaskScope;

/// What a webseed's tasks need.
pub(super) struct Context {
    pub(super) key: PeerKey,
    pub(super) seed: Seed,
    pub(super) torrent: Arc<Target>,
    pub(super) hub: Arc<Hub>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) health: Arc<Health>,
}

/// Runs a webseed until it ends.
pub(super) async fn run(scope: TaskScope, ctx: Context) {
    let webseed =
        PeerEvent::Webseed { key: ctx.key, outbox: ctx.outbox.clone(), counters: ctx.counters.clone() };
    if ctx.events.send(webseed).await.is_err() {
        return;
    }
    scope.token().cancelled().await;
    let reason = "it was removed".to_owned();
    ctx.outbox.close();
    ctx.health.dropped(&reason);
    let _ = ctx.events.send(PeerEvent::Gone { key: ctx.key, reason }).await;
}
