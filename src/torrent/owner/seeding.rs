//! What the owner of a torrent does about its goals: looks whether enough was given back, lets the swarm know, and has
//! the sums kept for the next run. What is enough is [`Goal`]'s to say. A part of [`Owner`].

use std::time::{Duration, Instant};

use super::Owner;
use crate::storage::StorageKind;
use crate::storage::tally::Tally;
use crate::torrent::effects::Event;
use crate::torrent::goal::{Goal, Goals, Moved};
use crate::torrent::status::{State, Status};
use crate::torrent::work;

/// How often the sums are kept while they change: what was given back since is lost in a crash.
const KEEP: Duration = Duration::from_secs(60);

/// A goal, and what is kept of the way there.
pub(super) struct Seeding {
    goal: Goal,
    kept: Tally,
    kept_at: Instant,
    /// The sums are being kept.
    keeping: bool,
}

impl Seeding {
    pub(super) fn new(goals: Goals, past: Tally, now: Instant) -> Option<Self> {
        let goal = Goal::new(goals, past, now);
        goals.is_any().then_some(Self { goal, kept: past, kept_at: now, keeping: false })
    }

    /// In how long the time is up.
    pub(super) fn next(&self) -> Option<Duration> {
        self.goal.next()
    }

    /// Whether the sums are being kept just now.
    pub(super) fn is_kept(&self) -> bool {
        self.keeping
    }
}

impl Owner {
    /// Looks whether enough was given back by now. Serving ends then, or goes on.
    pub(super) fn weigh(&mut self, status: &mut Status, now: Instant) {
        let Some(seeding) = &mut self.seeding else { return };
        let before = seeding.goal.reached().is_some();
        let moved = Moved {
            up: status.uploaded,
            down: status.downloaded,
            have: status.have,
            seeding: matches!(status.state, State::Idle | State::Complete) && status.have > 0,
        };
        let reached = seeding.goal.look(moved, now);
        let kept_long = now.saturating_duration_since(seeding.kept_at) >= KEEP;
        status.seeded = reached.map(|reached| reached.to_string());
        let changed = reached.is_some() != before;
        if changed {
            match reached {
                Some(why) => tracing::info!(torrent = %self.torrent.name(), "seeding has ended: {why}"),
                None => tracing::info!(torrent = %self.torrent.name(), "seeding goes on: more was received"),
            }
            self.apply(Event::Serve(reached.is_none()));
        }
        if changed || kept_long {
            self.keep_tally(now);
        }
    }

    /// Has the sums kept, if they have changed.
    pub(super) fn keep_tally(&mut self, now: Instant) {
        let Some(seeding) = &mut self.seeding else { return };
        let tally = seeding.goal.tally();
        if seeding.keeping || tally == seeding.kept || self.opening.kind == StorageKind::Memory {
            return;
        }
        if work::tally(&self.env.workers, &self.home, tally, &self.work) {
            (seeding.keeping, seeding.kept, seeding.kept_at) = (true, tally, now);
        }
    }

    /// The sums were kept.
    pub(super) fn tallied(&mut self) {
        if let Some(seeding) = &mut self.seeding {
            seeding.keeping = false;
        }
        self.record();
    }
}
