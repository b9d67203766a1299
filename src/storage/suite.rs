//! The tests that every kind of [`Store`] passes. A kind's own tests call [`run`] with a way to make one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::IoSlice;
use std::sync::Arc;

use proptest::prelude::*;

use super::file::StoredFile;
use super::{StorageError, Store};
use crate::metainfo::geometry::Geometry;

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

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Read(u64, usize),
    Sync,
}

fn it_behaves_like_a_vector(make: Make<'_>) {
    let sizes = proptest::collection::vec(prop_oneof![Just(0u64), 1..40u64, 60..200u64], 1..8);
    let op = prop_oneof![
        4 => (0..1500u64, 0..400usize, any::<u8>()).prop_map(|(at, len, fill)| Op::Write(at, len, fill)),
        4 => (0..1500u64, 0..400usize).prop_map(|(at, len)| Op::Read(at, len)),
        1 => Just(Op::Sync),
    ];
    let case = (sizes, any::<bool>(), any::<u8>(), proptest::collection::vec(op, 1..30));
    let mut config = ProptestConfig::with_cases(64);
    config.failure_persistence = None;
    proptest::test_runner::TestRunner::new(config)
        .run(&case, |(sizes, aligned, pads, ops)| {
            let geometry = Arc::new(match aligned {
                true => Geometry::aligned(64, &sizes),
                false => Geometry::contiguous(64, &sizes),
            });
            let pads: Vec<usize> = (0..sizes.len()).filter(|n| !aligned && pads >> n & 1 == 1).collect();
            let store = make(geometry.clone(), &files(sizes.len(), &pads));
            // Everything is written once, so that nothing is left unsaid.
            let end = geometry.end() as usize;
            let mut model = vec![9u8; end];
            write(&*store, 0, &model);
            let mut real = vec![false; end];
            let stored = geometry.files().iter().enumerate().filter(|(n, e)| !pads.contains(n) && e.len > 0);
            for (_, extent) in stored {
                real[extent.offset as usize..(extent.offset + extent.len) as usize].fill(true);
            }
            model.iter_mut().zip(&real).filter(|(_, real)| !**real).for_each(|(byte, _)| *byte = 0);
            for op in ops {
                match op {
                    Op::Write(at, len, fill) => {
                        let at = (at as usize).min(end);
                        let to = (at + len).min(end);
                        let bytes: Vec<u8> = (at..to).map(|n| n as u8 ^ fill).collect();
                        let parts: Vec<IoSlice<'_>> =
                            bytes.chunks(usize::from(fill) + 1).map(IoSlice::new).collect();
                        store.write_at(at as u64, &parts).unwrap();
                        for n in (at..to).filter(|n| real[*n]) {
                            model[n] = n as u8 ^ fill;
                        }
                    }
                    Op::Read(at, len) => {
                        let at = (at as usize).min(end);
                        let to = (at + len).min(end);
                        prop_assert_eq!(&read(&*store, at as u64, to - at), &model[at..to]);
                    }
                    Op::Sync => store.sync().unwrap(),
                }
            }
            prop_assert_eq!(read(&*store, 0, end), model);
            Ok(())
        })
        .unwrap();
}
