//! Random histories of fetching, evicting, syncing and recording: whenever the program is killed, the record is right.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::torrent::table::PieceState;

const PIECES: u32 = 12;

/// A torrent's data and record on a disk, and the torrent that works with them.
struct World {
    table: PieceTable,
    records: Records,
    /// What lies on the disk of each piece, and whether it is synced.
    data: BTreeMap<u32, bool>,
    /// The record on the disk.
    record: Vec<u8>,
    clean: bool,
    sync: Option<BTreeMap<u32, bool>>,
    write: Option<Record>,
    discards: Vec<Vec<PieceIndex>>,
    /// Pieces whose writing was begun and is to end.
    writing: usize,
    /// A record could not be written: then a clean end may be written over.
    failed: bool,
}

impl World {
    fn new(recorded: &[u32], clean: bool) -> Self {
        let table = PieceTable::new(PIECES, PieceState::Missing);
        recorded.iter().for_each(|p| table.set(PieceIndex(*p), PieceState::Complete));
        let record = table.bitfield();
        Self {
            records: Records::new(true, record.clone(), clean),
            data: recorded.iter().map(|p| (*p, true)).collect(),
            record,
            clean,
            table,
            sync: None,
            write: None,
            discards: Vec::new(),
            writing: 0,
            failed: false,
        }
    }

    fn go_on(&mut self) {
        for step in self.records.next(&self.table, self.writing + self.discards.len()) {
            match step {
                Step::Sync => assert!(self.sync.replace(self.data.clone()).is_none(), "one at a time"),
                Step::Record(record) => assert!(self.write.replace(record).is_none(), "one at a time"),
                Step::Discard(pieces) => self.discards.push(pieces),
            }
        }
        self.check();
    }

    /// Whether a kill now leaves only what is right; while a record is being written, either one may be there.
    fn check(&self) {
        let coming = self.write.as_ref().map(|r| &r.complete);
        for record in std::iter::once(&self.record).chain(coming) {
            for piece in (0..PIECES).filter(|p| bit(record, *p)) {
                assert_eq!(self.data.get(&piece), Some(&true), "piece {piece} is recorded and isn't there");
            }
        }
        assert!(
            self.failed || !self.clean || self.data.values().all(|synced| *synced),
            "written to after a clean end"
        );
    }

    fn fetch(&mut self, piece: u32) {
        let index = PieceIndex(piece);
        if self.table.state(index) == PieceState::Missing && self.records.may_write(index) {
            self.data.insert(piece, false);
            self.table.set(index, PieceState::Complete);
        }
    }

    fn evict(&mut self, piece: u32) {
        if self.table.evict(PieceIndex(piece)) {
            self.records.gone(&[PieceIndex(piece)]);
        }
    }

    fn doubt(&mut self, piece: u32) {
        if self.table.is_complete(PieceIndex(piece)) {
            self.table.set(PieceIndex(piece), PieceState::Unknown);
            self.records.doubt(&[PieceIndex(piece)]);
        }
    }

    fn end_sync(&mut self, good: bool) {
        let Some(seen) = self.sync.take() else { return };
        if good {
            for (piece, _) in seen {
                if let Some(synced) = self.data.get_mut(&piece) {
                    *synced = true;
                }
            }
        }
        let lost = self.records.synced(good, &self.table);
        assert!(good || lost.iter().all(|p| self.table.is_complete(*p)));
        assert!(!good || lost.is_empty());
        for piece in &lost {
            self.table.set(*piece, PieceState::Missing);
        }
        self.records.gone(&lost);
    }

    fn end_record(&mut self, good: bool) {
        let Some(record) = self.write.take() else { return };
        if good {
            (self.record, self.clean) = (record.complete, record.clean);
        }
        self.failed |= !good;
        let discard = self.records.recorded(good);
        if !discard.is_empty() {
            self.discards.push(discard);
        }
    }

    fn end_discard(&mut self) {
        if self.discards.is_empty() {
            return;
        }
        let pieces = self.discards.remove(0);
        assert!(self.failed || !self.clean, "discarded after a clean end");
        for piece in &pieces {
            assert!(!self.table.is_complete(*piece), "what is here was discarded");
            self.data.remove(&piece.0);
        }
        self.records.discarded(&pieces);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Fetch(u32),
    Evict(u32),
    Doubt(u32),
    Want,
    EndSync(bool),
    EndRecord(bool),
    EndDiscard,
    Retry,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn s4_whenever_it_is_killed_the_record_names_only_what_is_there(
        recorded in proptest::collection::btree_set(0..PIECES, 0..6),
        clean in any::<bool>(),
        ops in proptest::collection::vec(
            prop_oneof![
                4 => (0..PIECES).prop_map(Op::Fetch),
                3 => (0..PIECES).prop_map(Op::Evict),
                1 => (0..PIECES).prop_map(Op::Doubt),
                2 => Just(Op::Want),
                3 => prop_oneof![5 => Just(true), 1 => Just(false)].prop_map(Op::EndSync),
                3 => prop_oneof![5 => Just(true), 1 => Just(false)].prop_map(Op::EndRecord),
                3 => Just(Op::EndDiscard),
                1 => Just(Op::Retry),
            ],
            1..120,
        ),
        late in proptest::collection::vec(0..PIECES, 0..8),
    ) {
        let recorded: Vec<u32> = recorded.into_iter().collect();
        let mut world = World::new(&recorded, clean);
        for op in ops {
            match op {
                Op::Fetch(piece) => world.fetch(piece),
                Op::Evict(piece) => world.evict(piece),
                Op::Doubt(piece) => world.doubt(piece),
                Op::Want => world.records.want(false),
                Op::EndSync(good) => world.end_sync(good),
                Op::EndRecord(good) => world.end_record(good),
                Op::EndDiscard => world.end_discard(),
                Op::Retry => _ = world.records.retry(),
            }
            world.check();
            world.go_on();
        }
        // And in the end all of it is recorded and given back, whatever goes meanwhile.
        world.records.retry();
        world.records.want(true);
        for step in 0..40 {
            world.go_on();
            if let Some(piece) = late.get(step) {
                world.evict(*piece);
                world.go_on();
            }
            world.end_sync(true);
            world.end_record(true);
            world.end_discard();
        }
        prop_assert!(world.records.is_settled());
        prop_assert_eq!(&world.record, &world.table.bitfield());
        prop_assert!(world.discards.is_empty());
        prop_assert!(world.clean || !late.is_empty());
        let kept: Vec<u32> = world.data.keys().copied().collect();
        let here = |p: &u32| matches!(world.table.state(PieceIndex(*p)), PieceState::Complete | PieceState::Unknown);
        prop_assert!(kept.iter().all(here), "{:?}", kept);
    }
}

#[test]
fn s3_a_piece_is_recorded_after_the_sync_that_began_after_it() {
    let mut world = World::new(&[], false);
    world.fetch(0);
    world.records.want(false);
    world.go_on();
    world.fetch(1);
    world.end_sync(true);
    world.go_on();
    assert_eq!(world.write.as_ref().unwrap().new, [PieceIndex(0)], "the second came too late for the sync");
    world.end_record(true);
    world.go_on();
    assert!(world.records.is_settled(), "nobody asked again");
}

#[test]
fn nothing_is_written_over_a_clean_end_before_it_is_taken_back() {
    let mut world = World::new(&[0], true);
    assert!(!world.records.may_write(PieceIndex(1)));
    world.go_on();
    assert!(!world.write.as_ref().unwrap().clean);
    world.end_record(true);
    assert!(world.records.may_write(PieceIndex(1)));
    // A disk that takes no record: hashing too much after a crash is better than nothing at all.
    let mut world = World::new(&[0], true);
    world.go_on();
    world.end_record(false);
    assert!(world.records.may_write(PieceIndex(1)));
}

#[test]
fn the_last_record_waits_for_what_is_being_written() {
    let mut world = World::new(&[], false);
    world.fetch(0);
    world.writing = 1;
    world.records.want(true);
    assert!(!world.records.may_write(PieceIndex(1)), "nothing new is begun");
    world.go_on();
    assert!(world.sync.is_none() && !world.records.is_settled());
    world.writing = 0;
    world.go_on();
    world.end_sync(true);
    world.go_on();
    world.end_record(true);
    world.go_on();
    assert!(world.clean && world.records.is_settled() && world.write.is_none());
}

#[test]
fn the_last_record_waits_for_what_is_being_discarded() {
    let mut world = World::new(&[0, 1, 2], false);
    world.evict(0);
    world.records.want(true);
    world.go_on();
    assert!(world.sync.is_none(), "its room isn't given back yet");
    world.end_record(true);
    world.go_on();
    assert!(world.sync.is_none() && !world.records.is_settled(), "nor now");
    world.end_discard();
    world.go_on();
    // One that goes while everything is synced, is taken out of the record, and is being discarded.
    world.evict(1);
    world.go_on();
    world.end_record(true);
    world.end_sync(true);
    world.go_on();
    assert!(world.write.is_none(), "the times of the files are about to change");
    world.end_discard();
    world.go_on();
    world.end_record(true);
    world.go_on();
    assert!(world.clean && world.records.is_settled() && world.discards.is_empty());
    // And one that goes afterwards takes the mark away first.
    world.evict(2);
    world.go_on();
    assert!(world.discards.is_empty() && !world.write.as_ref().unwrap().clean);
}

#[test]
fn without_a_record_what_goes_is_given_back_at_once() {
    let table = PieceTable::new(3, PieceState::Complete);
    let mut records = Records::new(false, vec![0xe0], true);
    records.want(true);
    assert!(table.evict(PieceIndex(1)));
    records.gone(&[PieceIndex(1)]);
    assert_eq!(records.next(&table, 0), [Step::Discard(vec![PieceIndex(1)])]);
    assert!(records.is_settled() && records.next(&table, 0).is_empty());
}

#[test]
fn s3_a_clean_end_stays_clean() {
    let mut world = World::new(&[], false);
    world.fetch(0);
    world.records.want(true);
    world.go_on();
    world.end_sync(true);
    world.go_on();
    world.end_record(true);
    assert!(world.clean);
    // The owner's clock: `dirty_since` was set before the end.
    world.records.want(false);
    world.go_on();
    world.end_sync(true);
    world.go_on();
    world.end_record(true);
    assert!(world.clean, "the clean record was written over");
}

#[test]
fn s3_a_doubt_outlives_a_failed_record() {
    let mut world = World::new(&[0, 1], false);
    world.doubt(0);
    world.go_on();
    world.end_record(false);
    assert!(world.records.retry());
    world.go_on();
    world.end_record(true);
    assert!(!bit(&world.record, 0), "the record names what is doubtful");
}

#[test]
fn o8_what_could_not_be_recorded_is_recorded_later() {
    let mut world = World::new(&[], false);
    world.fetch(0);
    world.records.want(false);
    world.go_on();
    world.end_sync(true);
    world.go_on();
    world.end_record(false);
    assert!(world.records.retry());
    for _ in 0..5 {
        world.go_on();
        world.end_sync(true);
        world.end_record(true);
    }
    assert!(bit(&world.record, 0), "never recorded");
}
