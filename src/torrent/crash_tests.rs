//! A torrent's data and record on a disk that crashes, or fails, at each single operation (rows S3, S4).
//!
//! A history of fetching, recording, evicting and fetching again is played with the real file store, the real record
//! and the real order of steps ([`Records`]), without threads. It is played once for each operation at which the disk
//! may crash, and looked at after several of the crashes that may follow; and once for each operation that may fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::IoSlice;
use std::sync::Arc;

use super::records::{Records, Step};
use super::table::{PieceState, PieceTable, bit};
use crate::metainfo::geometry::{FileIndex, Geometry, PieceIndex};
use crate::storage::Store;
use crate::storage::file::{FileStore, Layout, StoredFile};
use crate::storage::resume::{self, ResumeData};
use crate::storage::volume::model::{Chance, Model, Trouble};

const PIECE: u32 = 16 * 1024;
/// Crashes looked at for each operation.
const SEEDS: u64 = 6;

/// Files that begin and end inside pieces, one of them empty, one smaller than a piece, one a pad.
const SIZES: [u64; 6] = [40_000, 0, 70_000, 3_000, 6_000, 30_000];

fn geometry() -> Arc<Geometry> {
    Arc::new(Geometry::contiguous(PIECE, &SIZES))
}

fn open(disk: &Model, geometry: &Arc<Geometry>) -> FileStore {
    let file = |n: usize| StoredFile { path: vec![format!("file {n}")], pad: n == 4 };
    let files: Vec<StoredFile> = (0..SIZES.len()).map(file).collect();
    FileStore::on(Arc::new(disk.clone()), Layout::Cache, geometry.clone(), &files).unwrap()
}

/// The right bytes of a range: never zero, but for the pad.
fn truth(geometry: &Geometry, offset: u64, len: usize) -> Vec<u8> {
    let pad = geometry.files()[4];
    let pad = pad.offset..pad.offset + pad.len;
    let byte = |at: u64| if pad.contains(&at) { 0 } else { (at.wrapping_mul(31) >> 3) as u8 | 1 };
    (offset..offset + len as u64).map(byte).collect()
}

fn bytes_of(geometry: &Geometry, piece: PieceIndex) -> Vec<u8> {
    truth(geometry, geometry.piece_offset(piece), geometry.piece_len(piece) as usize)
}

/// A torrent that does one thing after another.
struct Torrent {
    disk: Model,
    geometry: Arc<Geometry>,
    store: FileStore,
    table: PieceTable,
    records: Records,
    /// What is done in a wrong order on purpose, to see that it shows.
    wrong: Option<Wrong>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// The record comes before the data is synced.
    RecordFirst,
    /// The hole comes before the record.
    PunchFirst,
}

impl Torrent {
    fn new(disk: Model, wrong: Option<Wrong>) -> Self {
        let geometry = geometry();
        let table = PieceTable::new(geometry.pieces(), PieceState::Missing);
        let records = Records::new(true, table.bitfield(), false);
        Self { store: open(&disk, &geometry), disk, geometry, table, records, wrong }
    }

    fn fetch(&mut self, pieces: impl IntoIterator<Item = u32>) {
        for piece in pieces.into_iter().map(PieceIndex) {
            if self.table.is_complete(piece) || !self.records.may_write(piece) {
                continue;
            }
            let bytes = bytes_of(&self.geometry, piece);
            let parts: Vec<IoSlice<'_>> = bytes.chunks(5000).map(IoSlice::new).collect();
            if self.store.write_at(self.geometry.piece_offset(piece), &parts).is_ok() {
                self.table.set(piece, PieceState::Complete);
            }
        }
    }

    fn evict(&mut self, pieces: impl IntoIterator<Item = u32>) {
        let gone: Vec<PieceIndex> =
            pieces.into_iter().map(PieceIndex).filter(|p| self.table.evict(*p)).collect();
        if self.wrong == Some(Wrong::PunchFirst) {
            self.discard(&gone);
        }
        self.records.gone(&gone);
        self.go_on();
    }

    fn record(&mut self, last: bool) {
        self.records.want(last);
        self.go_on();
    }

    /// Does what is to be done until nothing is.
    fn go_on(&mut self) {
        for _ in 0..20 {
            let steps = self.records.next(&self.table, 0);
            if steps.is_empty() {
                return;
            }
            for step in steps {
                match step {
                    Step::Sync => {
                        let good = self.wrong == Some(Wrong::RecordFirst) || self.store.sync().is_ok();
                        let lost = self.records.synced(good, &self.table);
                        lost.iter().for_each(|p| self.table.set(*p, PieceState::Missing));
                        self.records.gone(&lost);
                    }
                    Step::Record(record) => {
                        let data = ResumeData {
                            info_hash: "ab".repeat(20),
                            pieces: self.geometry.pieces(),
                            piece_length: PIECE,
                            complete: record.complete.clone(),
                            unknown: vec![0; record.complete.len()],
                            clean: record.clean,
                            ..ResumeData::default()
                        };
                        let saved = resume::save_in(&self.disk, &data).is_ok();
                        if saved {
                            for file in (0..SIZES.len() as u32).map(FileIndex) {
                                if self.geometry.file_pieces(file).all(|p| bit(&record.complete, p)) {
                                    let _ = self.store.finish(file);
                                }
                            }
                        }
                        let gone = self.records.recorded(saved);
                        self.discard(&gone);
                    }
                    Step::Discard(pieces) => self.discard(&pieces),
                }
            }
        }
    }

    fn discard(&mut self, pieces: &[PieceIndex]) {
        for piece in pieces {
            let start = self.geometry.piece_offset(*piece);
            let range = start..start + u64::from(self.geometry.piece_len(*piece));
            let _ = self.store.discard(range.clone(), range);
        }
        self.records.discarded(pieces);
    }

    /// A life: files become whole, lose pieces, and become whole again.
    fn live(&mut self) {
        self.fetch([0, 1, 2, 5]);
        self.record(false);
        self.fetch([3, 4]);
        self.evict([1, 4]);
        self.fetch([1]);
        self.record(false);
        self.fetch(0..self.geometry.pieces());
        self.record(false);
        self.evict([0, 6]);
        self.fetch([6]);
        self.records.retry();
        self.record(false);
        self.fetch([0]);
        self.records.retry();
        self.record(true);
    }
}

/// Looks at a disk as the next start does. What is called complete has to be right, and so has every file that has its
/// own name. Returns how many pieces are there.
fn look(disk: &Model) -> Result<u32, String> {
    let geometry = geometry();
    let data = resume::load_in(disk).map_err(|problem| format!("the record: {problem}"))?;
    let store = open(disk, &geometry);
    let states = store.files().map_err(|error| error.to_string())?;
    let mut count = 0;
    if let Some(data) = data {
        let believed = resume::believable(&data, &geometry, &states);
        for piece in geometry.all_pieces().filter(|p| bit(&believed.complete, p.0)) {
            let expected = bytes_of(&geometry, piece);
            let mut bytes = vec![0; expected.len()];
            let read = store.read_at(geometry.piece_offset(piece), &mut bytes);
            read.map_err(|error| format!("piece {}: {error}", piece.0))?;
            if bytes != expected {
                return Err(format!("piece {} is called complete and is wrong", piece.0));
            }
            count += 1;
        }
    }
    let named = (0..).zip(&states).filter(|(n, state)| state.finished && *n != 4);
    for file in named.map(|(file, _): (usize, _)| file) {
        let extent = geometry.files()[file];
        let mut bytes = vec![0; extent.len as usize];
        let read = store.read_at(extent.offset, &mut bytes);
        read.map_err(|error| format!("file {file}: {error}"))?;
        if bytes != truth(&geometry, extent.offset, bytes.len()) {
            return Err(format!("file {file} has its own name and isn't whole"));
        }
    }
    Ok(count)
}

/// A life with a crash at each operation; what was wrong after any of them.
fn crashes(wrong: Option<Wrong>) -> Vec<String> {
    let mut whole = Torrent::new(Model::new(None), wrong);
    whole.live();
    let operations = whole.disk.operations();
    assert!(operations > 60, "{operations}");
    let mut found = Vec::new();
    for at in 0..=operations {
        let mut torrent = Torrent::new(Model::new(Some((at, Trouble::Crash))), wrong);
        torrent.live();
        for seed in 0..SEEDS {
            let seed = Chance(seed << 32 ^ at as u64).below(u64::MAX);
            if let Err(what) = look(&torrent.disk.after_crash(seed)) {
                found.push(format!("operation {at}, seed {seed}: {what}; after {}", torrent.disk.last()));
            }
        }
    }
    found
}

#[test]
fn s3_s4_a_crash_at_any_operation_leaves_nothing_wrong() {
    let found = crashes(None);
    assert!(found.is_empty(), "{} in all: {}", found.len(), found[0]);
    let mut whole = Torrent::new(Model::new(None), None);
    whole.live();
    assert_eq!(
        look(&whole.disk.after_crash(1)),
        Ok(whole.geometry.pieces()),
        "after a clean end all is there"
    );
}

#[test]
fn s3_a_record_before_its_data_would_show() {
    assert!(
        crashes(Some(Wrong::RecordFirst)).iter().any(|what| what.contains("is called complete and is wrong"))
    );
}

#[test]
fn s4_a_hole_before_its_record_would_show() {
    assert!(
        crashes(Some(Wrong::PunchFirst)).iter().any(|what| what.contains("is called complete and is wrong"))
    );
}

#[test]
fn s3_any_operation_may_fail_and_what_is_called_complete_is_right() {
    let mut whole = Torrent::new(Model::new(None), None);
    whole.live();
    for at in 0..whole.disk.operations() {
        for errno in [libc::EIO, libc::ENOSPC] {
            let mut torrent = Torrent::new(Model::new(Some((at, Trouble::Error(errno)))), None);
            torrent.live();
            let when = |what: &str| format!("operation {at}, {errno}: {what}");
            // While it runs: what is complete can be read, and is right.
            for piece in torrent.geometry.all_pieces().filter(|p| torrent.table.is_complete(*p)) {
                let expected = bytes_of(&torrent.geometry, piece);
                let mut bytes = vec![0; expected.len()];
                if torrent.store.read_at(torrent.geometry.piece_offset(piece), &mut bytes).is_ok() {
                    assert!(bytes == expected, "{}", when("wrong bytes are read"));
                }
            }
            // After it was ended, and after a crash.
            for disk in [torrent.disk.healed(), torrent.disk.after_crash(at as u64)] {
                look(&disk).unwrap_or_else(|what| panic!("{}", when(&what)));
            }
        }
    }
    // And nothing is lost for good by one failure: it is fetched again.
    let mut torrent = Torrent::new(Model::new(Some((9, Trouble::Error(libc::EIO)))), None);
    torrent.live();
    torrent.records = Records::new(true, torrent.table.bitfield(), false);
    torrent.fetch(0..torrent.geometry.pieces());
    torrent.record(true);
    assert!(torrent.table.all_complete(0..torrent.geometry.pieces()));
}
