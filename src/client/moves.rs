//! What is done when the addresses of this machine change: another network, a line that came back with another address.
//!
//! Flow: the task `addresses` waits for the kernel's word ([`Watch`]), and tells local service discovery, the DHT, who
//! has the router map our ports, and every torrent, whose trackers are announced to and whose connections from an address that is gone end at once.

use std::sync::Arc;

use super::Client;
use crate::net::addresses::{Change, Watch};
use crate::sync::timeouts;
use crate::torrent::Command;

/// Begins to watch, in a task of the client's.
pub(super) fn start(client: &Arc<Client>, mut watch: Watch) {
    let weak = Arc::downgrade(client);
    client.scope.spawn("addresses", async move {
        loop {
            let change = watch.changed().await;
            let Some(client) = weak.upgrade() else { return };
            client.moved(change).await;
        }
    });
}

impl Client {
    /// Tells all whom it concerns. Waits for owners to take the command, bounded.
    async fn moved(&self, change: Change) {
        tracing::info!(lost = ?change.lost, now = ?change.now, "the addresses of this machine have changed");
        if let Some(lsd) = &self.env.lsd {
            lsd.interfaces_changed();
        }
        if let Some(dht) = &self.env.dht {
            dht.address_changed();
        }
        if let Some(mapping) = &self.mapping {
            mapping.refresh();
        }
        self.env.ours.moved(change.now);
        let tell = self.torrents().into_iter().map(|torrent| {
            let lost = change.lost.clone();
            async move {
                let told = torrent.command(Command::Moved { lost });
                if tokio::time::timeout(timeouts::CONTROL_ANSWER, told).await.is_err() {
                    tracing::warn!("{} doesn't hear that our address has changed", torrent.name());
                }
            }
        });
        futures_util::future::join_all(tell).await;
    }
}
