//! What is recorded of a torrent, and in which order: data first, then its bit; the bit away, then the data. Pure.
//!
//! **Goal.** Whenever the program is killed, what the record calls complete is on the disk, right and whole (rows S3
//! and S4); and recording holds neither fetching nor eviction up for longer than it must.
//!
//! **Flow.** To record what is new takes two steps: everything is synced, which may take seconds, and then those
//! pieces are recorded that were complete when the sync began and have stayed so ([`Step::Sync`], [`Step::Record`]).
//! Pieces that go ([`Records::gone`]) are taken out of the record in between, at once, and only then what they take
//! on the disk is given back; until that is done they must not be written again ([`Records::may_write`]). One record
//! is written at a time.
//!
//! A record that was written at a clean end tells sizes and times of the files. They hold until the first write, so a
//! record without them comes before it.
//!
//! **Not here.** When to record, the work itself ([`super::work`]), and what a record looks like
//! ([`crate::storage::resume`]).

use std::collections::HashSet;

use super::table::{PieceTable, bit};
use crate::metainfo::geometry::PieceIndex;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sync what was written; then [`Records::synced`].
    Sync,
    /// Write the record; then [`Records::recorded`]. With success, what it says is final.
    Record(Record),
    /// Give back what these pieces take; no record names them. Then [`Records::discarded`].
    Discard(Vec<PieceIndex>),
}

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The complete pieces, the first in the highest bit of the first byte.
    pub complete: Vec<u8>,
    /// Whether it is the last one, before an end in good order.
    pub clean: bool,
    /// Pieces that the last record didn't name: their files may be whole now.
    pub new: Vec<PieceIndex>,
}

/// See the module.
#[derive(Debug)]
pub struct Records {
    /// Whether anything outlives the program.
    durable: bool,
    /// What the record on the disk calls complete.
    recorded: Vec<u8>,
    /// Whether the record on the disk tells sizes and times of files.
    clean: bool,
    /// Whether the last record was asked for: nothing is written any more.
    closed: bool,
    /// Pieces that were complete when the last sync began, but for those that have gone since.
    snapshot: Option<Vec<u8>>,
    syncing: bool,
    /// The record that is being written, and what is to be discarded after it.
    recording: Option<(Record, Vec<PieceIndex>)>,
    /// A record was asked for, and whether it is the last.
    wanted: Option<bool>,
    /// Whether the cycle under way is the last.
    last: bool,
    /// Pieces to be taken out of the record.
    unnamed: HashSet<PieceIndex>,
    /// Those of them that are to be discarded afterwards.
    gone: Vec<PieceIndex>,
    /// Pieces that must not be written before they are discarded.
    held: HashSet<PieceIndex>,
    /// The last record could not be written: nothing is tried before the next [`Records::retry`].
    failed: bool,
}

impl Records {
    /// `recorded` is what the record on the disk calls complete; `clean` whether it was written at a clean end.
    /// Without `durable` nothing is ever recorded.
    pub fn new(durable: bool, recorded: Vec<u8>, clean: bool) -> Self {
        Self {
            durable,
            recorded,
            clean: clean && durable,
            closed: false,
            snapshot: None,
            syncing: false,
            recording: None,
            wanted: None,
            last: false,
            unnamed: HashSet::new(),
            gone: Vec::new(),
            held: HashSet::new(),
            failed: false,
        }
    }

    /// What is complete is to be recorded; `last` when nothing is written afterwards. After that nothing more is: what
    /// a clean end tells of the files would be lost.
    pub fn want(&mut self, last: bool) {
        if self.closed && !last {
            return;
        }
        self.closed |= last;
        self.wanted = Some(last || self.wanted.unwrap_or(false));
    }

    /// These pieces aren't here any more, and what they take is to be given back.
    pub fn gone(&mut self, pieces: &[PieceIndex]) {
        self.doubt(pieces);
        let new = pieces.iter().filter(|p| self.held.insert(**p));
        self.gone.extend(new);
    }

    /// These pieces are to be called complete no longer, until they are complete again.
    pub fn doubt(&mut self, pieces: &[PieceIndex]) {
        for piece in pieces {
            if let Some(snapshot) = &mut self.snapshot {
                clear(snapshot, *piece);
            }
            if bit(&self.recorded, piece.0) || self.recording.is_some() {
                self.unnamed.insert(*piece);
            }
        }
    }

    /// Whether a piece may be written now.
    pub fn may_write(&self, piece: PieceIndex) -> bool {
        !(self.closed || self.held.contains(&piece) || self.clean && !self.failed)
    }

    /// Whether a piece has gone, and what it takes isn't given back yet.
    pub fn is_held(&self, piece: PieceIndex) -> bool {
        self.held.contains(&piece)
    }

    /// Whether the last record was asked for.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether somebody waits for the record under way: for the end, for room, or to write.
    pub fn is_urgent(&self) -> bool {
        self.closed || self.clean || !self.held.is_empty()
    }

    /// Whether everything that was asked for is done, or has failed.
    pub fn is_settled(&self) -> bool {
        self.failed
            || self.wanted.is_none() && !self.syncing && self.snapshot.is_none() && self.recording.is_none()
    }

    /// What goes on and what waits, in words: for diagnostics.
    pub fn doing(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut say = |yes: bool, what: String| {
            if yes {
                words.push(what)
            }
        };
        say(self.syncing, "syncing".into());
        if let Some((record, discard)) = &self.recording {
            say(true, format!("recording {} new, then giving back {}", record.new.len(), discard.len()));
        }
        say(self.wanted.is_some(), "another record is wanted".into());
        say(!self.unnamed.is_empty(), format!("{} to be taken out of the record", self.unnamed.len()));
        say(!self.gone.is_empty(), format!("{} to be given back after that", self.gone.len()));
        say(!self.held.is_empty(), format!("{} not to be written before", self.held.len()));
        say(self.failed, "the last record failed".into());
        say(self.closed, "closed".into());
        if words.is_empty() { "nothing to do".into() } else { words.join(", ") }
    }

    /// What is to be done now, which is under way from then on. `busy` is the number of pieces that are being written,
    /// and of discards under way: a last record, which tells the times of the files, waits for them, and for those that
    /// are to come.
    pub fn next(&mut self, table: &PieceTable, busy: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.durable {
            self.wanted = None;
            self.unnamed.clear();
            if !self.gone.is_empty() {
                steps.push(Step::Discard(std::mem::take(&mut self.gone)));
            }
            return steps;
        }
        let to_come = |(_, gone): &(Record, Vec<PieceIndex>)| !gone.is_empty();
        let quiet = busy == 0 && self.gone.is_empty() && !self.recording.as_ref().is_some_and(to_come);
        if !self.syncing
            && self.snapshot.is_none()
            && let Some(last) = self.wanted.take_if(|last| !*last || quiet)
        {
            self.snapshot = Some(table.bitfield());
            self.syncing = true;
            self.last = last;
            steps.push(Step::Sync);
        }
        if self.recording.is_some() || self.failed {
            return steps;
        }
        let mut clean = false;
        let complete = match &self.snapshot {
            // The discards under way during the last sync end first.
            Some(_) if !(self.syncing || self.last && busy > 0) => {
                clean = std::mem::take(&mut self.last);
                if clean && !self.gone.is_empty() {
                    // What has gone since is discarded after this record: it takes one more.
                    clean = false;
                    self.wanted = Some(true);
                }
                self.snapshot.take()
            }
            // Nothing new, but what is on the disk says too much.
            _ if !self.unnamed.is_empty() || self.clean && (!self.closed || !self.gone.is_empty()) => {
                let mut complete = self.recorded.clone();
                self.unnamed.iter().for_each(|p| clear(&mut complete, *p));
                Some(complete)
            }
            _ => None,
        };
        if let Some(complete) = complete {
            self.unnamed.clear();
            let new = (0..table.len()).filter(|p| bit(&complete, *p) && !bit(&self.recorded, *p));
            let record = Record { clean, new: new.map(PieceIndex).collect(), complete };
            self.recording = Some((record.clone(), std::mem::take(&mut self.gone)));
            steps.push(Step::Record(record));
        } else if !self.gone.is_empty() {
            steps.push(Step::Discard(std::mem::take(&mut self.gone)));
        }
        steps
    }

    /// The sync that was to be done can't be begun now: it is to be done later.
    pub fn refused(&mut self) {
        self.syncing = false;
        self.snapshot = None;
        self.wanted = Some(std::mem::take(&mut self.last) || self.wanted.unwrap_or(false));
    }

    /// The sync has ended. When it failed, returns the pieces that nobody can believe in any more: those that are
    /// complete and not recorded.
    pub fn synced(&mut self, good: bool, table: &PieceTable) -> Vec<PieceIndex> {
        self.syncing = false;
        if good {
            return Vec::new();
        }
        self.snapshot = None;
        let lost = (0..table.len()).map(PieceIndex);
        lost.filter(|p| table.is_complete(*p) && !bit(&self.recorded, p.0)).collect()
    }

    /// The record was written, or could not be. Returns what is to be discarded now.
    pub fn recorded(&mut self, good: bool) -> Vec<PieceIndex> {
        let Some((record, gone)) = self.recording.take() else { return Vec::new() };
        if good {
            self.clean = record.clean;
            self.recorded = record.complete;
            return gone;
        }
        self.failed = true;
        // The old record stands, and names still what this one didn't.
        let pieces = (0..self.recorded.len() as u32 * 8).map(PieceIndex);
        self.unnamed.extend(pieces.filter(|p| bit(&self.recorded, p.0) && !bit(&record.complete, p.0)));
        self.gone.extend(gone);
        if record.clean || !record.new.is_empty() {
            // Nobody else asks for it again, if nothing more is written.
            self.wanted = Some(record.clean || self.wanted.unwrap_or(false));
        }
        Vec::new()
    }

    /// These pieces were discarded: they may be written again.
    pub fn discarded(&mut self, pieces: &[PieceIndex]) {
        pieces.iter().for_each(|p| _ = self.held.remove(p));
    }

    /// What failed may be tried again. True if something had.
    pub fn retry(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }
}

fn clear(bits: &mut [u8], piece: PieceIndex) {
    if let Some(byte) = bits.get_mut(piece.0 as usize / 8) {
        *byte &= !(0x80 >> (piece.0 % 8));
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
