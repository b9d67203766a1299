//! What the owner of a torrent tells of itself, for diagnostics. A part of [`Owner`]; changes nothing.

use std::time::Instant;

use tokio::sync::mpsc;

use super::Owner;
use crate::torrent::describe::{Description, DeskView};

fn queued<T>(sender: &mpsc::Sender<T>) -> usize {
    sender.max_capacity() - sender.capacity()
}

impl Owner {
    /// Everything there is to know, as plain values.
    pub(super) fn describe(&self, now: Instant) -> Description {
        let mut swarm = self.swarm.describe(now);
        for (key, peer) in self.swarm.keys().zip(&mut swarm.peers) {
            peer.unsent = self.links.get(&key).map_or(0, |link| link.outbox.pending_requests());
        }
        for (key, seed) in self.swarm.webseed_keys().zip(&mut swarm.webseeds) {
            seed.unsent = self.links.get(&key).map_or(0, |link| link.outbox.pending_requests());
            seed.doing = self.seed_doing(key).unwrap_or_default();
        }
        if let Some(failed) = &self.failed {
            swarm.error = Some(failed.clone());
        }
        let desk = DeskView {
            backlog: self.backlog.len(),
            writing: self.writing.len(),
            checking: self.checking,
            mending: self.mending,
            answers: queued(&self.work),
            finds: queued(&self.found),
            crowd: self.crowd.waiting(),
            stuck: self.crowd.stuck().map(|blocked| blocked.reason),
            dirty: self.dirty,
            dirty_age: self.dirty_since.map(|since| now.saturating_duration_since(since)),
            record: self.records.as_ref().map_or_else(String::new, |records| records.doing()),
            record_failed: self.record_failed.map(|at| now.saturating_duration_since(at)),
        };
        Description { swarm, desk }
    }
}
