//! Webseeds: HTTP servers that take part in a torrent as peers that have everything (BEP 17, 19).
//!
//! [`start`] makes one take part. To the owner of the torrent it is a peer of the picker: it is asked through an
//! [`Outbox`], puts what comes into the piece buffers, and tells of it by [`PeerEvent`]s. What all webseeds of the
//! program share is the [`Hub`].
//!
//! A webseed has one session (`session`) and some requesters (`requester`). The session moves what the outbox holds to
//! the `desk`, from which requesters claim slices; `table` knows all that are claimed, `hosts` who may ask which host
//! when, `wake` how to sleep until there is something to do, `assemble` how bytes become blocks, [`health`] how it is
//! doing.
//!
//! Pure parts: [`mod@url`] (where a file or a piece is), [`slices`] (what is asked for at once), [`answer`] (what a
//! response's status and headers make of its body), [`fault`] (what went wrong, and what follows), [`backoff`] (when
//! a server that failed is asked again).
//!
//! Deliberately not here: what is wanted and of whom (the picker's), what is proven by a hash (the owner's), which
//! webseeds a torrent has (`metainfo`, `client`).

pub mod answer;
mod assemble;
pub mod backoff;
mod desk;
pub mod fault;
pub mod health;
mod hosts;
pub mod hub;
mod requester;
mod session;
pub mod slices;
mod table;
pub mod url;
mod wake;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::metainfo::info::Info;
use crate::net::limit::Chain;
use crate::peer::PeerKey;
use crate::peer::event::{Counters, PeerEvent};
use crate::peer::outbox::Outbox;
use crate::sync::tasks::TaskScope;
pub use health::{Health, SeedState, SeedStatus};
use hub::Step;
pub use hub::{Hub, HubOptions};
pub use url::Kind;

/// A webseed of a torrent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seed {
    /// Its URL as it stands in the torrent.
    pub url: String,
    /// How it is asked.
    pub kind: Kind,
    /// It may be, or lead to, a host in a private network: the torrent came from a local file, or the user said so.
    pub trusted: bool,
}

/// What a webseed has to know of its torrent; one for all of them.
pub struct Target {
    /// What it holds.
    pub info: Arc<Info>,
    /// Its info-hash as it stands in handshakes, and in the URLs of BEP 17.
    pub info_hash: [u8; 20],
    /// Limits on what is received.
    pub down_limits: Chain,
}

/// What a webseed's tasks need.
struct Context {
    key: PeerKey,
    seed: Seed,
    torrent: Arc<Target>,
    hub: Arc<Hub>,
    events: mpsc::Sender<PeerEvent>,
    outbox: Arc<Outbox>,
    counters: Arc<Counters>,
    health: Arc<Health>,
}

/// A webseed that takes part. Dropping this does nothing: it goes on until [`Running::close`], until its scope is
/// cancelled, or until it is of no use any more.
pub struct Running {
    /// Where to say what is wanted of it. What only a peer could use is ignored.
    pub outbox: Arc<Outbox>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// How it is doing; stays readable when it is over.
    pub health: Arc<Health>,
    scope: TaskScope,
}

impl Running {
    /// Tells it to end, and returns at once. [`PeerEvent::Gone`] follows when its tasks have ended.
    pub fn close(&self) {
        self.scope.cancel();
    }
}

/// Has a webseed take part in a torrent, in tasks of `scope`, and returns at once. `key` is its own among the peers
/// of the torrent.
///
/// [`PeerEvent::Webseed`] is told first, [`PeerEvent::Gone`] last and once, whatever ended it, a panic included; a
/// URL that can't be used leads to both at once. When the scope is cancelled already, nothing is told.
pub fn start(
    scope: &TaskScope,
    key: PeerKey,
    seed: Seed,
    torrent: Arc<Target>,
    hub: Arc<Hub>,
    events: mpsc::Sender<PeerEvent>,
) -> Running {
    let counters = Arc::new(Counters::default());
    let outbox = Arc::new(Outbox::default());
    let health = Arc::new(Health::new(&seed.url, counters.clone()));
    let running = Running {
        outbox: outbox.clone(),
        counters: counters.clone(),
        health: health.clone(),
        scope: scope.child(&format!("webseed {} {}", key.0, health.host())),
    };
    let context = Context { key, seed, torrent, hub, events, outbox, counters, health };
    // Refused only when the scope is cancelled: then nobody listens.
    running.scope.spawn_graceful("session", session::run(running.scope.clone(), context));
    running
}

#[cfg(test)]
mod for_tests;
#[cfg(test)]
mod tests;
