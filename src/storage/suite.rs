//! The tests that every kind of [`Store`] passes. A kind's own tests call [`run`] with a way to make one.
//!
//! **Goal.** One meaning of the trait for all of them: what was written and not discarded since reads right; what
//! wasn't may be anything or fail; nothing else is touched.
//!
//! **Flow.** Tests of one subject each, then random histories beside a vector of what is known of each byte.
//!
//! **Not here.** What only one kind promises: sparse files, a bound on memory, a cut file. That stands in its own tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::file::StoredFile;
use super::{StorageError, Store};
use crate::metainfo::geometry::{Extent, FileIndex, Geometry};

/// A new, empty store of these files.
pub(crate) type Make<'a> = &'a dyn Fn(Arc<Geometry>, &[StoredFile]) -> Arc<dyn Store>;

/// Files named after their numbers, some in folders; those of `pads` are pads.
pub(crate) fn files(count: usize, pads: &[usize]) -> Vec<StoredFile> {
    (0..count)
        .map(|n| {
            let name = format!("file {n}");
            let path = match n % 3 {
                0 => vec![name],
                1 => vec!["folder".to_owned(), name],
                _ => vec!["folder".to_owned(), "dé ep".to_owned(), name],
            };
            StoredFile { path, pad: pads.contains(&n) }
        })
        .collect()
}

/// Runs them all.
pub(crate) fn run(make: Make<'_>) {
    spans_over_several_files(make);
    pads_and_gaps_read_as_zeros_and_cost_nothing(make);
    many_parts_of_any_size(make);
    ranges_are_checked(make);
    lengths_are_told(make);
    a_closed_store_says_so(make);
    threads_write_and_read_at_once(make);
    threads_discard_beside_each_other(make);
    what_is_discarded_is_free_and_can_be_written_again(make);
    a_whole_file_is_finished_and_opened_again(make);
    a_terabyte_costs_what_is_there(make);
    many_files(make);
    it_behaves_like_a_vector(make);
}

fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|n| (n.wrapping_mul(31) >> 3) as u8 | 1).collect()
}

fn write(store: &dyn Store, offset: u64, bytes: &[u8]) {
    store.write_at(offset, &[IoSlice::new(bytes)]).unwrap();
}

fn read(store: &dyn Store, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    store.read_at(offset, &mut buf).unwrap();
    let mut again = vec![0xee; len];
    if store.try_read(offset, &mut again).unwrap() {
        assert_eq!(buf, again, "both ways of reading agree");
    }
    buf
}

fn spans_over_several_files(make: Make<'_>) {
    let geometry = Arc::new(Geometry::contiguous(64, &[10, 0, 100, 1, 0, 300]));
    let store = make(geometry.clone(), &files(6, &[]));
    let all = pattern(0, 411);
    write(&*store, 5, &all[5..400]);
    assert_eq!(read(&*store, 5, 395), all[5..400]);
    write(&*store, 0, &all[..5]);
    write(&*store, 400, &all[400..]);
    assert_eq!(read(&*store, 0, 411), all);
    assert_eq!(read(&*store, 9, 3), all[9..12]);
    assert!(read(&*store, 411, 0).is_empty());
    store.sync().unwrap();
    store.sync().unwrap();
    assert_eq!(read(&*store, 0, 411), all);
}

fn pads_and_gaps_read_as_zeros_and_cost_nothing(make: Make<'_>) {
    // File, pad to the piece, file.
    let v1 = Arc::new(Geometry::contiguous(64, &[100, 28, 50]));
    let v2 = Arc::new(Geometry::aligned(64, &[100, 0, 50]));
    for (geometry, pads) in [(v1, &[1][..]), (v2, &[])] {
        assert_eq!(geometry.end(), 178);
        let store = make(geometry, &files(3, pads));
        let all = pattern(0, 178);
        write(&*store, 0, &all);
        let mut expected = all.clone();
        expected[100..128].fill(0);
        assert_eq!(read(&*store, 0, 178), expected);
        // Within, from within, into.
        for (from, to) in [(100, 128), (110, 120), (110, 150), (90, 110), (120, 128), (128, 178)] {
            assert_eq!(read(&*store, from as u64, to - from), expected[from..to]);
            write(&*store, from as u64, &all[from..to]);
        }
        assert_eq!(read(&*store, 0, 178), expected);
        store.sync().unwrap();
    }
}

fn many_parts_of_any_size(make: Make<'_>) {
    let geometry = Arc::new(Geometry::contiguous(16384, &[5000, 1, 70_000]));
    let store = make(geometry, &files(3, &[]));
    let all = pattern(7, 75_001);
    let mut parts = vec![IoSlice::new(&[]), IoSlice::new(&all[..1])];
    // More than the kernel takes at once.
    parts.extend(all[1..30_001].chunks(7).map(IoSlice::new));
    parts.push(IoSlice::new(&[]));
    parts.push(IoSlice::new(&all[30_001..]));
    assert!(parts.len() > 4000);
    store.write_at(0, &parts).unwrap();
    assert_eq!(read(&*store, 0, 75_001), all);
    store.write_at(75_001, &[]).unwrap();
    store.write_at(75_001, &[IoSlice::new(&[])]).unwrap();
}

fn ranges_are_checked(make: Make<'_>) {
    let store = make(Arc::new(Geometry::contiguous(16, &[10, 10])), &files(2, &[]));
    for (offset, len) in [(0, 21), (20, 1), (21, 0), (u64::MAX, 1), (u64::MAX - 5, 10)] {
        let mut buf = vec![0; len];
        let outside =
            |r: Result<(), StorageError>| matches!(r, Err(StorageError::OutOfRange { end: 20, .. }));
        assert!(outside(store.read_at(offset, &mut buf)), "{offset} {len}");
        assert!(outside(store.try_read(offset, &mut buf).map(|_| ())), "{offset} {len}");
        assert!(outside(store.write_at(offset, &[IoSlice::new(&buf)])), "{offset} {len}");
    }
    assert_eq!(read(&*store, 0, 0), [0u8; 0]);
}

fn lengths_are_told(make: Make<'_>) {
    let geometry = Arc::new(Geometry::contiguous(16, &[10, 0, 6, 20, 7]));
    let store = make(geometry.clone(), &files(5, &[2]));
    // Before the first write a store may have all or nothing of a file, but lengths for all of them.
    assert_eq!(store.files().unwrap().len(), 5);
    write(&*store, 0, &pattern(0, 43));
    let lens: Vec<Option<u64>> = store.files().unwrap().iter().map(|f| f.len).collect();
    assert_eq!(lens, [Some(10), Some(0), Some(6), Some(20), Some(7)]);
}

fn a_closed_store_says_so(make: Make<'_>) {
    let store = make(Arc::new(Geometry::contiguous(16, &[10])), &files(1, &[]));
    write(&*store, 0, &pattern(0, 10));
    store.close();
    store.close();
    let mut buf = [0; 4];
    let closed = |r: Result<(), StorageError>| matches!(r, Err(StorageError::Closed));
    assert!(closed(store.read_at(0, &mut buf)));
    assert!(closed(store.try_read(0, &mut buf).map(|_| ())));
    assert!(closed(store.write_at(0, &[IoSlice::new(&buf)])));
    assert!(closed(store.sync()));
    assert!(closed(store.files().map(|_| ())));
}

fn threads_write_and_read_at_once(make: Make<'_>) {
    let sizes: Vec<u64> = (0..40).map(|n| n * 37 % 101).collect();
    let total: u64 = sizes.iter().sum();
    let store = make(Arc::new(Geometry::contiguous(64, &sizes)), &files(40, &[]));
    let all = pattern(0, total as usize);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                for (n, chunk) in all.chunks(50).enumerate().filter(|(n, _)| n % 4 == thread) {
                    let offset = (n * 50) as u64;
                    write(&**store, offset, chunk);
                    assert_eq!(read(&**store, offset, chunk.len()), chunk);
                    if n % 8 == thread {
                        store.sync().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(read(&*store, 0, all.len()), all);
}

fn threads_discard_beside_each_other(make: Make<'_>) {
    // Each thread has pieces of its own, which lie beside another's in one file and in one block of a disk.
    let geometry = Arc::new(Geometry::contiguous(64, &[1000, 3000, 10, 2390]));
    let store = make(geometry, &files(4, &[]));
    let all = pattern(3, 6400);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                for round in 0..5 {
                    for piece in (0..100usize).filter(|piece| piece % 4 == thread) {
                        let range = piece * 64..piece * 64 + 64;
                        write(&**store, range.start as u64, &all[range.clone()]);
                        if (piece / 4 + round) % 2 == 0 {
                            let range = range.start as u64..range.end as u64;
                            discard(&**store, range.clone(), range);
                        }
                    }
                    for piece in (0..100usize).filter(|piece| piece % 4 == thread) {
                        if (piece / 4 + round) % 2 == 1 {
                            let range = piece * 64..piece * 64 + 64;
                            assert_eq!(read(&**store, range.start as u64, 64), all[range]);
                        }
                    }
                }
            });
        }
    });
}

/// Whether the store can.
fn discard(store: &dyn Store, range: Range<u64>, around: Range<u64>) -> bool {
    match store.discard(range, around) {
        Ok(()) => true,
        Err(StorageError::Unsupported { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn allocated(store: &dyn Store) -> u64 {
    store.files().unwrap().iter().map(|file| file.allocated).sum()
}

fn what_is_discarded_is_free_and_can_be_written_again(make: Make<'_>) {
    const MIB: usize = 1 << 20;
    // Two files with an edge within a piece, which is no block's edge either.
    let geometry = Arc::new(Geometry::contiguous(MIB as u32, &[3 * MIB as u64 + 1234, 2 * MIB as u64]));
    let store = make(geometry.clone(), &files(2, &[]));
    let all = pattern(5, geometry.end() as usize);
    write(&*store, 0, &all);
    store.sync().unwrap();
    let (full, piece) = (allocated(&*store), MIB as u64);
    assert!(store.room(0..geometry.end()) >= geometry.end());
    if !discard(&*store, piece..2 * piece, piece..2 * piece) {
        return;
    }
    assert_eq!(read(&*store, 0, MIB), all[..MIB]);
    assert_eq!(read(&*store, 2 * piece, all.len() - 2 * MIB), all[2 * MIB..]);
    // The piece with the edge, then the one before it: together all of their room.
    assert!(discard(&*store, 3 * piece..4 * piece, 3 * piece..4 * piece));
    assert!(discard(&*store, 2 * piece..3 * piece, piece..4 * piece));
    assert_eq!(read(&*store, 0, MIB), all[..MIB]);
    assert_eq!(read(&*store, 4 * piece, all.len() - 4 * MIB), all[4 * MIB..]);
    if full > 0 {
        let freed = full.saturating_sub(allocated(&*store));
        assert!(freed >= 3 * piece - 32 * 1024, "{freed} of {full} bytes are free");
    }
    for n in [3, 1, 2] {
        write(&*store, n as u64 * piece, &all[n * MIB..(n + 1) * MIB]);
    }
    assert_eq!(read(&*store, 0, all.len()), all);
    // Outside of the torrent, empty, and twice.
    let end = geometry.end();
    let outside = store.discard(end - 1..end + 1, end - 1..end + 1);
    assert!(matches!(outside, Err(StorageError::OutOfRange { .. })), "{outside:?}");
    store.discard(5..5, 5..5).unwrap();
    store.discard(0..piece, 0..piece).unwrap();
    store.discard(0..piece, 0..piece).unwrap();
    assert_eq!(read(&*store, piece, all.len() - MIB), all[MIB..]);
}

fn a_whole_file_is_finished_and_opened_again(make: Make<'_>) {
    let geometry = Arc::new(Geometry::contiguous(16, &[40, 0, 24, 30]));
    let store = make(geometry, &files(4, &[2]));
    let all = pattern(0, 94);
    write(&*store, 0, &all);
    store.sync().unwrap();
    let mut expected = all.clone();
    expected[40..64].fill(0);
    // Empty files and pads as well, and twice.
    for _ in 0..2 {
        (0..4).for_each(|file| store.finish(FileIndex(file)).unwrap());
        assert_eq!(read(&*store, 0, 94), expected);
        let lens: Vec<Option<u64>> = store.files().unwrap().iter().map(|file| file.len).collect();
        assert_eq!(lens, [Some(40), Some(0), Some(24), Some(30)]);
    }
    for _ in 0..2 {
        (0..4).for_each(|file| store.reopen(FileIndex(file)).unwrap());
        assert_eq!(read(&*store, 0, 94), expected);
    }
    let states = store.files().unwrap();
    assert!(!states[0].finished && !states[3].finished);
    discard(&*store, 16..32, 16..32);
    write(&*store, 16, &all[16..32]);
    store.sync().unwrap();
    (0..4).for_each(|file| store.finish(FileIndex(file)).unwrap());
    assert_eq!(read(&*store, 0, 94), expected);
}

fn a_terabyte_costs_what_is_there(make: Make<'_>) {
    const TB: u64 = 1 << 40;
    let geometry = Arc::new(Geometry::contiguous(16 << 20, &[TB, 5, TB, 3 * TB]));
    let store = make(geometry.clone(), &files(4, &[2]));
    let all = pattern(11, 70_000);
    let places = [0, TB / 2 + 12_345, TB - 35_000, 2 * TB - 7, 3 * TB + 1, 5 * TB + 5 - 70_000];
    for at in places {
        write(&*store, at, &all);
    }
    for at in places {
        let expected: Vec<u8> = (at..)
            .zip(&all)
            .map(|(at, byte)| match at {
                at if (TB + 5..2 * TB + 5).contains(&at) => 0,
                _ => *byte,
            })
            .collect();
        assert_eq!(read(&*store, at, 70_000), expected, "at {at}");
    }
    assert!(allocated(&*store) <= 16 << 20);
    discard(&*store, 0..TB, 0..TB);
    assert_eq!(read(&*store, 5 * TB + 5 - 70_000, 70_000), all);
}

fn many_files(make: Make<'_>) {
    // More than a store has open at once.
    let sizes: Vec<u64> = (0..400).map(|n| n * 7 % 23).collect();
    let geometry = Arc::new(Geometry::contiguous(1000, &sizes));
    let store = make(geometry.clone(), &files(sizes.len(), &[]));
    let all = pattern(2, geometry.end() as usize);
    write(&*store, 0, &all);
    assert_eq!(read(&*store, 0, all.len()), all);
    let lens: Vec<u64> = store.files().unwrap().iter().map(|file| file.len.unwrap()).collect();
    assert_eq!(lens, sizes);
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Read(u64, usize),
    /// Where from, how much, and how much of what is around it may be touched.
    Discard(u64, usize, usize),
    Sync,
    /// A file, when all of it is known.
    Finish(usize),
    Reopen(usize),
}

/// What is known of a store's bytes: `None` for those that were never written, or were discarded since, and may be
/// anything or fail to be read.
struct Model {
    bytes: Vec<Option<u8>>,
    /// Where each file lies; nothing for pads and empty ones.
    stored: Vec<Range<usize>>,
    finished: BTreeSet<usize>,
}

impl Model {
    fn new(geometry: &Geometry, pads: &[usize]) -> Self {
        let range = |(n, extent): (usize, &Extent)| match pads.contains(&n) || extent.len == 0 {
            true => 0..0,
            false => extent.offset as usize..(extent.offset + extent.len) as usize,
        };
        let stored: Vec<Range<usize>> = geometry.files().iter().enumerate().map(range).collect();
        // What is in no file, or in a pad, is zeros from the beginning on.
        let mut bytes = vec![Some(0); geometry.end() as usize];
        stored.iter().for_each(|range| bytes[range.clone()].fill(None));
        Self { bytes, stored, finished: BTreeSet::new() }
    }

    /// Whether a byte is one of a file.
    fn real(&self, at: usize) -> bool {
        self.stored.iter().any(|range| range.contains(&at))
    }

    fn known(&self, range: Range<usize>) -> bool {
        self.bytes[range].iter().all(Option::is_some)
    }

    /// Says that the files in `range` aren't whole any more, as is to be done before they are changed.
    fn reopen(&mut self, store: &dyn Store, range: &Range<usize>) {
        let over =
            |file: &usize| self.stored[*file].start < range.end && range.start < self.stored[*file].end;
        let finished: Vec<usize> = self.finished.iter().copied().filter(over).collect();
        for file in finished {
            store.reopen(FileIndex(file as u32)).unwrap();
            self.finished.remove(&file);
        }
    }

    fn discard(&mut self, store: &dyn Store, range: Range<usize>, reach: usize) {
        self.reopen(store, &range);
        // Around lies what is known of no byte, and nothing else.
        let worthless = |at: &usize| !self.real(*at) || self.bytes[*at].is_none();
        let before = (0..range.start).rev().take(reach).take_while(|at| worthless(at)).count();
        let behind = (range.end..self.bytes.len()).take(reach).take_while(|at| worthless(at)).count();
        let around = (range.start - before) as u64..(range.end + behind) as u64;
        match store.discard(range.start as u64..range.end as u64, around) {
            Ok(()) | Err(StorageError::Unsupported { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        for at in range {
            if self.real(at) {
                self.bytes[at] = None;
            }
        }
    }

    /// Reads in each way, and looks whether what comes is right.
    fn check(&self, store: &dyn Store, range: Range<usize>) {
        let (offset, len) = (range.start as u64, range.len());
        let known = self.known(range.clone());
        let right = |buf: &[u8]| {
            let wrong = buf
                .iter()
                .zip(&self.bytes[range.clone()])
                .position(|(got, known)| known.is_some_and(|known| *got != known));
            assert_eq!(wrong, None, "the first wrong byte of {len} from {offset}");
        };
        for serve in [false, true] {
            let mut buf = vec![0xee; len];
            let result = match serve {
                false => store.read_at(offset, &mut buf),
                true => store.read_to_serve(offset, &mut buf),
            };
            match result {
                Ok(()) => right(&buf),
                Err(StorageError::Short { .. }) if !known => {}
                Err(error) => panic!("{error}"),
            }
        }
        let mut buf = vec![0xee; len];
        if store.try_read(offset, &mut buf).unwrap() {
            right(&buf);
        }
    }
}

fn it_behaves_like_a_vector(make: Make<'_>) {
    let sizes = proptest::collection::vec(prop_oneof![Just(0u64), 1..40u64, 60..200u64], 1..8);
    let op = prop_oneof![
        6 => (0..1500u64, 0..400usize, any::<u8>()).prop_map(|(at, len, fill)| Op::Write(at, len, fill)),
        4 => (0..1500u64, 0..400usize).prop_map(|(at, len)| Op::Read(at, len)),
        3 => (0..1500u64, 0..300usize, prop_oneof![Just(0usize), 0..2000usize])
            .prop_map(|(at, len, reach)| Op::Discard(at, len, reach)),
        1 => Just(Op::Sync),
        2 => (0..8usize).prop_map(Op::Finish),
        1 => (0..8usize).prop_map(Op::Reopen),
    ];
    let case = (sizes, any::<bool>(), any::<u8>(), any::<bool>(), proptest::collection::vec(op, 1..40));
    let mut config = ProptestConfig::with_cases(64);
    config.failure_persistence = None;
    proptest::test_runner::TestRunner::new(config)
        .run(&case, |(sizes, aligned, pads, full, ops)| {
            let geometry = Arc::new(match aligned {
                true => Geometry::aligned(64, &sizes),
                false => Geometry::contiguous(64, &sizes),
            });
            let pads: Vec<usize> = (0..sizes.len()).filter(|n| !aligned && pads >> n & 1 == 1).collect();
            let store = make(geometry.clone(), &files(sizes.len(), &pads));
            let end = geometry.end() as usize;
            let mut model = Model::new(&geometry, &pads);
            let clamp = |at: u64, len: usize| {
                let at = (at as usize).min(end);
                at..(at + len).min(end)
            };
            let first = full.then_some(Op::Write(0, end, 9));
            for op in first.into_iter().chain(ops) {
                match op {
                    Op::Write(at, len, fill) => {
                        let range = clamp(at, len);
                        model.reopen(&*store, &range);
                        let bytes: Vec<u8> = range.clone().map(|n| n as u8 ^ fill).collect();
                        let parts: Vec<IoSlice<'_>> =
                            bytes.chunks(usize::from(fill) + 1).map(IoSlice::new).collect();
                        store.write_at(range.start as u64, &parts).unwrap();
                        for n in range {
                            if model.real(n) {
                                model.bytes[n] = Some(n as u8 ^ fill);
                            }
                        }
                    }
                    Op::Read(at, len) => model.check(&*store, clamp(at, len)),
                    Op::Discard(at, len, reach) => model.discard(&*store, clamp(at, len), reach),
                    Op::Sync => store.sync().unwrap(),
                    Op::Finish(file) => {
                        let range = model.stored.get(file).cloned().unwrap_or_default();
                        if !range.is_empty() && model.known(range) {
                            store.sync().unwrap();
                            store.finish(FileIndex(file as u32)).unwrap();
                            model.finished.insert(file);
                        }
                    }
                    Op::Reopen(file) => {
                        if file < sizes.len() {
                            store.reopen(FileIndex(file as u32)).unwrap();
                            model.finished.remove(&file);
                        }
                    }
                }
            }
            model.check(&*store, 0..end);
            store.close();
            prop_assert!(matches!(store.read_at(0, &mut []), Err(StorageError::Closed)));
            Ok(())
        })
        .unwrap();
}
