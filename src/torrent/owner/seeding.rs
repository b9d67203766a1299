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

/// So long serving has ended at least. Who reads and gives at the same time crosses a ratio over and over, and each peer would
/// be let in and choked as often.
const REST: Duration = Duration::from_secs(30);

/// A goal, and what is kept of the way there.
pub(super) struct Seeding {
    goal: Goal,
    /// Serving has ended: since when, and why.
    ended: Option<(Instant, String)>,
    kept: Tally,
    kept_at: Instant,
    /// The sums are being kept.
    keeping: bool,
}

impl Seeding {
    pub(super) fn new(goals: Goals, past: Tally, now: Instant) -> Option<Self> {
        let goal = Goal::new(goals, past, now);
        goals.is_any().then_some(Self { goal, ended: None, kept: past, kept_at: now, keeping: false })
    }

    /// In how long the time is up, or serving may go on.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        match &self.ended {
            Some((at, _)) if self.goal.reached().is_none() => {
                Some((*at + REST).saturating_duration_since(now))
            }
            _ => self.goal.next(),
        }
    }

    /// Whether serving ends or goes on, which is to be told: why it has ended, or `None`.
    fn turn(&mut self, now: Instant) -> Option<Option<String>> {
        let reached = self.goal.reached().map(|reached| reached.to_string());
        match (&self.ended, reached) {
            (None, Some(why)) => {
                self.ended = Some((now, why.clone()));
                Some(Some(why))
            }
            (Some((at, _)), None) if now.saturating_duration_since(*at) >= REST => {
                self.ended = None;
                Some(None)
            }
            _ => None,
        }
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
        let moved = Moved {
            up: status.uploaded,
            down: status.downloaded,
            have: status.have,
            seeding: matches!(status.state, State::Idle | State::Complete) && status.have > 0,
        };
        seeding.goal.look(moved, now);
        let kept_long = now.saturating_duration_since(seeding.kept_at) >= KEEP;
        let turn = seeding.turn(now);
        status.seeded = seeding.ended.as_ref().map(|(_, why)| why.clone());
        if let Some(ended) = &turn {
            match ended {
                Some(why) => tracing::info!(torrent = %self.torrent.name(), "seeding has ended: {why}"),
                None => tracing::info!(torrent = %self.torrent.name(), "seeding goes on: more was received"),
            }
            self.apply(Event::Serve(ended.is_none()));
        }
        if turn.is_some() || kept_long {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::torrent::goal::Ratio;

    #[test]
    fn who_reads_and_gives_turns_no_peer_in_and_out() {
        let begun = Instant::now();
        let goals = Goals { ratio: Some(Ratio::ONE), ..Goals::default() };
        let mut seeding = Seeding::new(goals, Tally::default(), begun).unwrap();
        let mut look = |up, down, ms| {
            let now = begun + Duration::from_millis(ms);
            seeding.goal.look(Moved { up, down, have: 1, seeding: true }, now);
            (seeding.turn(now), seeding.next(now))
        };
        let rest = REST.as_millis() as u64;
        assert_eq!(look(99, 100, 0), (None, None));
        assert_eq!(look(100, 100, 10), (Some(Some("the ratio 1.0 is reached".into())), None));
        // A second later more was received, and then given; a while after that it is still to be given.
        assert_eq!(look(100, 101, 1010), (None, Some(REST - Duration::from_secs(1))));
        assert_eq!(look(102, 101, 1020), (None, None));
        assert_eq!(look(102, 103, rest), (None, Some(Duration::from_millis(10))));
        assert_eq!(look(102, 103, rest + 10), (Some(None), None));
        assert_eq!(look(103, 103, rest + 20).0, Some(Some("the ratio 1.0 is reached".into())));
    }
}
