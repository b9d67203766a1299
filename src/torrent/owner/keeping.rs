//! What the owner of a torrent does about keeping its data: writing pieces when there is room for them, recording
//! what is complete, giving back what goes, and opening files anew that somebody was at.
//!
//! The order of things is decided by [`super::Records`], whether there is room by the client's room; here both meet the
//! workers. A part of [`Owner`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Owner, seeding};
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::peer::buffer::PieceBuffer;
use crate::storage::StorageError;
use crate::torrent::blame::Digest;
use crate::torrent::demands::Demands;
use crate::torrent::effects::{Blocked, Effect, Event, Verdict};
use crate::torrent::reads::ReadError;
use crate::torrent::records::{Records, Step};
use crate::torrent::work;

/// How soon a record is tried again that could not be written, and giving back what could not be given back.
pub(super) const RECORD_PAUSE: Duration = Duration::from_secs(2);
/// How often room is tried to be given back; then what takes it goes on taking it.
const GIVING_BACK: u32 = 5;

/// Pieces that are missing and whose room couldn't be given back yet.
#[derive(Debug, Default)]
pub(super) struct Stubborn {
    pieces: Vec<PieceIndex>,
    /// How often it was tried.
    tries: u32,
    /// When it is tried again.
    pub(super) again: Option<Instant>,
}

impl Owner {
    pub(super) fn verify(&mut self, buffer: Arc<PieceBuffer>, digests: bool) {
        let (Some(shared), Some(records)) = (self.torrent.live(), &self.records) else { return };
        let piece = buffer.piece();
        if self.mending > 0 || !records.may_write(piece) {
            return self.backlog.push_back(Effect::Verify { buffer, digests });
        }
        let cost = if self.charged_still.contains(&piece) { 0 } else { shared.cost(piece) };
        let Some(room) = self.env.room.try_reserve(cost) else {
            let demands = self.swarm.demands();
            let (since, oldest) =
                (demands.and_then(|d| d.waiting_for(piece)), demands.and_then(Demands::oldest));
            return self.crowd.wait(buffer, digests, shared.cost(piece), since, oldest);
        };
        if work::verify(shared, &buffer, digests, room, &self.work) {
            self.writing.insert(piece, false);
        } else {
            self.backlog.push_back(Effect::Verify { buffer, digests });
        }
    }

    /// There may be room again, or there is none for now.
    pub(super) fn room_changed(&mut self) {
        for (buffer, digests) in self.crowd.take() {
            self.verify(buffer, digests);
        }
        let stuck = self.crowd.stuck();
        if stuck.as_ref() != self.swarm.blocked() {
            self.stale = true;
            self.apply(Event::Blocked(stuck));
        }
    }

    pub(super) fn check(&mut self, piece: PieceIndex, why: work::Check) {
        let Some(shared) = self.torrent.live() else { return };
        if self.mending == 0 && work::check(shared, piece, why, &self.work) {
            self.checking += 1;
        } else {
            self.backlog.push_back(match why {
                work::Check::Wanted => Effect::Check(piece),
                work::Check::Unknown => Effect::Sweep { piece, recorded: false },
                work::Check::Recorded => Effect::Sweep { piece, recorded: true },
            });
        }
    }

    /// Gives back what these pieces take, which no record names any more.
    pub(super) fn discard(&mut self, pieces: Vec<PieceIndex>) {
        let Some(shared) = self.torrent.live().filter(|_| !pieces.is_empty()) else { return };
        if work::discard(shared, pieces.clone(), &self.work) {
            self.discarding += 1;
        } else {
            self.undiscarded.extend(pieces);
        }
    }

    pub(super) fn mend(&mut self, files: Vec<FileIndex>) {
        let Some(shared) = self.torrent.live() else { return };
        if work::mend(shared, files.clone(), &self.work) {
            self.mending += 1;
        } else {
            self.backlog.push_back(Effect::Mend(files));
        }
    }

    /// A piece was hashed, and written if it is right.
    pub(super) fn hashed(&mut self, piece: PieceIndex, verdict: Verdict, digests: Vec<Digest>) {
        let lost = self.writing.remove(&piece) == Some(true) && verdict == Verdict::Good;
        if verdict == Verdict::Good {
            self.charged_still.remove(&piece);
        }
        // The sync that failed counts as the disk's fault, once for all that it took along.
        let verdict = if lost { Verdict::Harmed } else { verdict };
        if verdict == Verdict::Unwritten(ReadError::Full) {
            // Before anything is asked for again, which there is no room for either.
            self.env.room.disk_full();
            self.apply(Event::Blocked(Some(Blocked { reason: ReadError::Full.to_string(), disk: true })));
        }
        self.apply(Event::Verified { piece, verdict, digests });
        if lost {
            self.carry_out(Effect::Discard(vec![piece]));
        }
        self.record();
    }

    /// What was written was synced, or could not be.
    pub(super) fn synced(&mut self, result: Result<(), StorageError>) {
        if let Err(error) = &result {
            tracing::error!(torrent = %self.torrent.name(), "what was written could not be synced: {error}");
        }
        let (Some(records), Some(shared)) = (&mut self.records, self.torrent.live()) else { return };
        let lost = records.synced(result.is_ok(), &shared.table);
        if !matches!(result, Ok(()) | Err(StorageError::Closed)) {
            self.writing.values_mut().for_each(|lost| *lost = true);
            self.apply(Event::Lost(lost));
        } else if result.is_ok() {
            self.apply(Event::Synced);
        }
        self.record();
    }

    /// A record was written, or could not be.
    pub(super) fn recorded(&mut self, result: &Result<(), StorageError>) {
        if let Err(error) = result {
            tracing::warn!(torrent = %self.torrent.name(), "what is complete could not be recorded: {error}");
            self.record_failed = Some(Instant::now());
        }
        let discard = self.records.as_mut().map(|r| r.recorded(result.is_ok()));
        self.discard(discard.unwrap_or_default());
        self.record();
    }

    /// What the pieces of `freed` took was given back; what those of `kept` take could not be, and `never` can.
    pub(super) fn discarded(&mut self, freed: &[PieceIndex], kept: Vec<PieceIndex>, never: bool) {
        self.discarding = self.discarding.saturating_sub(1);
        let (Some(records), Some(shared)) = (&mut self.records, self.torrent.live()) else { return };
        records.discarded(freed);
        freed.iter().for_each(|p| _ = self.charged_still.remove(p));
        let bytes = freed.iter().map(|p| shared.cost(*p)).sum();
        shared.uncharge(bytes);
        self.env.room.release(bytes);
        // Not before: what is written of them next may cost something where this didn't.
        freed.iter().for_each(|p| shared.store.condemn(*p));
        self.crowd.discarded(freed);
        if never {
            // Evicting more of it would be for nothing.
            self.membership = None;
        }
        if kept.is_empty() {
            self.stubborn.tries = 0;
        } else if never || self.stubborn.tries >= GIVING_BACK {
            // They take what they took, until they are written anew.
            records.discarded(&kept);
            self.crowd.given_up(&kept);
            self.charged_still.extend(kept);
        } else {
            self.stubborn.pieces.extend(kept);
            self.stubborn.again.get_or_insert(Instant::now() + RECORD_PAUSE);
        }
        self.record();
    }

    /// Tries once more to give back what could not be given back.
    pub(super) fn give_back_if_due(&mut self, now: Instant) {
        // Not after the last record, which tells what the files were: then the next start does it.
        let closed = self.records.as_ref().is_some_and(Records::is_closed);
        if self.stubborn.again.take_if(|at| now >= *at).is_some() && !closed {
            self.stubborn.tries += 1;
            let pieces = std::mem::take(&mut self.stubborn.pieces);
            self.discard(pieces);
        }
    }

    /// Makes room: these pieces go, as far as nobody holds them. `done` hears how many bytes that gave.
    pub(super) fn evict(
        &mut self,
        pieces: Vec<PieceIndex>,
        younger_than: Option<Instant>,
        done: oneshot::Sender<u64>,
    ) {
        let Some(shared) = self.torrent.live().cloned() else { return };
        if self.records.as_ref().is_none_or(|records| records.is_closed()) {
            // What is here was recorded for good.
            return self.crowd.evicted(Vec::new(), done);
        }
        let before: Vec<PieceIndex> =
            pieces.iter().copied().filter(|p| shared.table.is_evictable(*p)).collect();
        self.apply(Event::Evict { pieces, younger_than });
        let held = |p: &PieceIndex| self.records.as_ref().is_some_and(|records| records.is_held(*p));
        let gone = before.into_iter().filter(|p| held(p));
        self.crowd.evicted(gone.map(|p| (p, shared.cost(p))).collect(), done);
    }

    /// Writes down what is complete, and nothing more after it if that is the `last` time; `done` hears of it.
    pub(super) fn persist(&mut self, last: bool, done: oneshot::Sender<()>) {
        if self.torrent.live().is_none() {
            let _ = done.send(());
            return;
        }
        self.persisted.push(done);
        if self.seeding.is_some() {
            let now = Instant::now();
            self.publish(now);
            self.keep_tally(now);
        }
        if let Some(records) = &mut self.records {
            records.want(last);
        }
        self.record();
    }

    /// Ends in good order if that is asked for, as soon as nothing is being opened or kept.
    pub(super) fn close_if_may(&mut self) {
        let opening = self.preparing && self.torrent.live().is_none() && self.failed.is_none();
        if opening || self.keeping {
            return;
        }
        for done in std::mem::take(&mut self.closers) {
            self.persist(true, done);
        }
    }

    pub(super) fn record_if_due(&mut self, now: Instant) {
        let again = self.record_failed.is_some_and(|at| now.saturating_duration_since(at) >= RECORD_PAUSE);
        if let Some(records) = &mut self.records {
            if again {
                self.record_failed = None;
                records.retry();
            }
            if self.unrecorded.is_due(now) {
                self.unrecorded.take(now);
                records.want(false);
            } else if !again {
                return;
            }
            self.record();
        }
    }

    /// Goes on with what is to be recorded and given back.
    pub(super) fn record(&mut self) {
        let (Some(records), Some(shared)) = (&mut self.records, self.torrent.live().cloned()) else { return };
        let mut discard = Vec::new();
        let busy = self.writing.len() + self.discarding + self.undiscarded.len();
        for step in records.next(&shared.table, busy) {
            match step {
                Step::Sync => {
                    let last = records.is_closed();
                    if !work::sync(&shared, last, &self.work) {
                        records.refused();
                        self.unrecorded.refused(Instant::now());
                    }
                }
                Step::Record(record) => {
                    let urgent = records.is_urgent();
                    if !work::record(&shared, &self.home, &record, urgent, &self.work) {
                        records.recorded(false);
                        self.record_failed = Some(Instant::now());
                    }
                }
                Step::Discard(pieces) => discard.extend(pieces),
            }
        }
        let settled = records.is_settled() && !self.seeding.as_ref().is_some_and(seeding::Seeding::is_kept);
        self.discard(discard);
        if settled {
            for waiting in self.persisted.drain(..) {
                let _ = waiting.send(());
            }
        }
    }
}
