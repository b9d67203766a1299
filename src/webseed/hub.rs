//! What all webseeds of the program share: the HTTP clients, the table of claimed slices, permits and back-off per host.
//!
//! Clients keep connections, so that requests to one host reuse them whatever torrent they are for; there are two, since
//! one of them reaches hosts of the internet only. Redirects are never followed by a client: who asks does that, one
//! permit at a time.
//!
//! Deliberately not here: a webseed of its own, and what is asked of it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, RequestBuilder, Url};

use super::fault::Fault;
use super::hosts::Hosts;
use super::table::Table;
use crate::net::hosts::{Clients, PrivateHost, Reach};
use crate::net::sockets::Sockets;
use crate::sync::timeouts;

/// How long a connection is kept that nobody uses: servers close theirs after 60 s and more, and a reader that seeks
/// now and then finds it open.
const KEEP_IDLE: Duration = Duration::from_secs(50);

/// What a hub is made with.
#[derive(Debug, Clone, Copy)]
pub struct HubOptions {
    /// Most requests to one webseed at a time; 1 at least.
    pub per_seed: usize,
    /// Most requests to one host (a name and a port) at a time, of all webseeds together; 1 at least.
    pub per_host: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        // Browsers open six connections to a host, and servers expect that. Four keep a line busy while one of them
        // is between two requests; eight let two torrents of one host be fetched at once.
        Self { per_seed: 4, per_host: 8 }
    }
}

/// Where a requester is. Tests stop it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "seen by tests only"))]
pub(super) enum Step {
    /// It has claimed a slice.
    Claimed,
    /// The slice stands in the table.
    Entered,
    /// It may ask a host.
    Permitted,
    /// An answer has come that will do.
    Answered,
    /// Bytes have come.
    Came,
    /// Blocks were taken off the desk.
    Taken,
    /// They are in their buffers, and not told.
    Put,
    /// What follows from the turn is settled, and it gives back what it holds.
    Settled,
    /// Not a requester's: the session has taken what its outbox held.
    Listened,
}

/// See the module's text.
pub struct Hub {
    pub(super) options: HubOptions,
    pub(super) hosts: Arc<Hosts>,
    pub(super) table: Arc<Table>,
    clients: Clients,
    #[cfg(test)]
    pub(super) at_step: torrentfs_fs::lock::RankedMutex<Option<AtStep>>,
}

impl Hub {
    /// A hub without any webseed.
    pub fn new(options: HubOptions, sockets: Sockets) -> Arc<Self> {
        Self::with_clients(options, sockets, |client| client)
    }

    /// The same, its clients made with something more.
    pub(super) fn with_clients(
        options: HubOptions,
        sockets: Sockets,
        more: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            hosts: Hosts::new(options.per_host),
            table: Table::new(),
            clients: Clients::new("webseeds", 0, sockets, move || {
                let client = Client::builder()
                    .user_agent(concat!("torrentfs/", env!("CARGO_PKG_VERSION")))
                    .referer(false)
                    .no_proxy()
                    .connect_timeout(timeouts::WEBSEED_CONNECT)
                    .http2_keep_alive_interval(timeouts::WEBSEED_PING)
                    .http2_keep_alive_timeout(timeouts::WEBSEED_PONG)
                    .pool_idle_timeout(KEEP_IDLE)
                    .pool_max_idle_per_host(options.per_host.max(1));
                more(client)
            }),
            options,
            #[cfg(test)]
            at_step: torrentfs_fs::lock::RankedMutex::new(torrentfs_fs::lock::Rank::Leaf, "steps", None),
        })
    }

    /// Slices that are being fetched from all webseeds, the bytes that are still to come of them, and requests that
    /// hosts have permitted. Takes leaf locks for a moment.
    pub fn under_way(&self) -> (usize, u64, usize) {
        let (slices, bytes) = self.table.count();
        (slices, bytes, self.hosts.busy())
    }

    /// A GET request for a webseed, to be sent.
    ///
    /// # Errors
    /// The host is in a private network, where this webseed may not reach; or TLS can't be set up at all. Without any
    /// certificates on the system there is a warning, and only HTTPS fails.
    pub(super) fn get(&self, url: &Url, trusted: bool, redirected: bool) -> Result<RequestBuilder, Fault> {
        let client = self.clients.of(Reach::of(trusted)).map_err(|error| Fault::Tls(error.to_string()))?;
        client.get(url.clone()).map_err(|refused| Fault::Private(PrivateHost { redirected, ..refused }))
    }

    /// What an error of the client is, of a request for this URL. The client follows no redirect, so it can't tell.
    pub(super) fn fault(&self, error: &reqwest::Error, url: &Url, redirected: bool) -> Fault {
        match Fault::of(error, url) {
            Fault::Private(refused) => Fault::Private(PrivateHost { redirected, ..refused }),
            other => other,
        }
    }

    /// A requester has come to a step.
    #[cfg_attr(not(test), inline(always))]
    pub(super) fn step(&self, step: Step) {
        #[cfg(test)]
        {
            let at_step = self.at_step.lock().clone();
            if let Some(at_step) = at_step {
                at_step(step);
            }
        }
        #[cfg(not(test))]
        let _ = step;
    }
}

/// What a test does when a requester comes to a step.
#[cfg(test)]
pub(super) type AtStep = Arc<dyn Fn(Step) + Send + Sync>;
