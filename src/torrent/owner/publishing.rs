//! The status of a torrent, put together by its owner for all who look at it from outside. A part of [`Owner`].

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Owner;
use crate::torrent::status::{Facts, State, Status, Waiting};

/// With fewer peers than this, trackers and the DHT are asked more often.
const PEERS_FEW: usize = 10;
/// How often the status is published while something goes on: a person's eye asks for no more.
pub(super) const PUBLISH: Duration = Duration::from_millis(250);

impl Owner {
    /// Publishes the status if the last one is old enough.
    pub(super) fn publish_if_due(&mut self, now: Instant) {
        if self.published.is_none_or(|at| now.saturating_duration_since(at) >= PUBLISH) {
            self.publish(now);
        }
    }

    /// Publishes the status as it is now, and says who wants more peers.
    pub(super) fn publish(&mut self, now: Instant) {
        self.published = Some(now);
        self.torrent.eager.store(self.swarm.is_eager(), Ordering::Relaxed);
        let mut sums = self.past;
        for link in self.links.values() {
            sums.0 += link.counters.down.load(Ordering::Relaxed);
            sums.1 += link.counters.up.load(Ordering::Relaxed);
        }
        self.rates.0.add(sums.0 - self.seen.0, now);
        self.rates.1.add(sums.1 - self.seen.1, now);
        self.seen = sums;
        self.totals.down.store(sums.0, Ordering::Relaxed);
        self.totals.up.store(sums.1, Ordering::Relaxed);
        let mut status = Status {
            metadata: self.swarm.metadata_progress(),
            rate_down: self.rates.0.get(now),
            rate_up: self.rates.1.get(now),
            downloaded: sums.0,
            uploaded: sums.1,
            error: self.failed.clone().or_else(|| self.swarm.error().map(str::to_owned)),
            ..self.of_peers()
        };
        let mut facts = Facts { failed: status.error.is_some(), ..Facts::default() };
        if let Some(shared) = self.torrent.live() {
            let complete = shared.table.complete_count() == shared.table.len();
            status.size = shared.size();
            status.have = shared.have();
            self.totals.left.store(status.size.saturating_sub(status.have), Ordering::Relaxed);
            if let Some(demands) = self.swarm.demands() {
                let waits = demands.waits();
                status.waiting_count = waits.len();
                status.waiting = waits
                    .iter()
                    .take(Status::WAITING_MAX)
                    .map(|w| Waiting { file: w.file, offset: w.offset, since: w.since })
                    .collect();
                facts.live = true;
                facts.complete = complete;
                facts.checking = self.checking > 0;
                facts.stalled = demands.is_stalled(now);
                facts.fetching = self.swarm.is_fetching();
                // Not the torrent's trouble, but what a reader was told, who asks why.
                let gave_up = || demands.gave_up().map(ToString::to_string);
                status.error = status.error.take().or_else(gave_up);
            }
            debug_assert!(status.have <= status.size);
        }
        status.state = State::of(facts);
        let few = self.swarm.peer_count() < PEERS_FEW && status.state != State::Complete;
        self.following.iter().for_each(|following| following.want_peers(few));
        if let Some(trackers) = &self.trackers {
            trackers.want_peers(few);
        }
        self.stale = status.rate_down > 0 || status.rate_up > 0 || status.waiting_count > 0;
        self.weigh(&mut status, now);
        self.torrent.publish(status);
    }
}
