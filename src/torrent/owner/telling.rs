//! What the owner of a torrent tells of itself: its peers for the status, and all there is for diagnostics. A part of [`Owner`]; changes nothing.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc;

use super::Owner;
use crate::torrent::describe::{Description, DeskView};
use crate::torrent::status::{PeerStatus, Status};

fn queued<T>(sender: &mpsc::Sender<T>) -> usize {
    sender.max_capacity() - sender.capacity()
}

impl Owner {
    /// What the status says of peers, and nothing else.
    pub(super) fn of_peers(&self) -> Status {
        Status {
            peers: self.swarm.peer_count(),
            encrypted: self.swarm.encrypted_count(),
            utp: self.swarm.utp_count(),
            connected: self.connected(),
            connecting: self.swarm.dialing(),
            banned: self.swarm.banned().to_vec(),
            ..Status::default()
        }
    }

    fn connected(&self) -> Vec<PeerStatus> {
        let peers = self.swarm.connected_peers().take(Status::CONNECTED_MAX);
        let counted = peers.map(|(key, peer)| match self.links.get(&key) {
            Some(link) => PeerStatus {
                downloaded: link.counters.down.load(Ordering::Relaxed),
                uploaded: link.counters.up.load(Ordering::Relaxed),
                ..peer
            },
            None => peer,
        });
        counted.collect()
    }

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
        let (dirty, dirty_since) = self.unrecorded.amount();
        let desk = DeskView {
            backlog: self.backlog.len(),
            writing: self.writing.len(),
            checking: self.checking,
            mending: self.mending,
            answers: queued(&self.work),
            finds: queued(&self.found),
            crowd: self.crowd.waiting(),
            stuck: self.crowd.stuck().map(|blocked| blocked.reason),
            dirty,
            dirty_age: dirty_since.map(|since| now.saturating_duration_since(since)),
            record: self.records.as_ref().map_or_else(String::new, |records| records.doing()),
            record_failed: self.record_failed.map(|at| now.saturating_duration_since(at)),
        };
        Description { swarm, desk }
    }
}
