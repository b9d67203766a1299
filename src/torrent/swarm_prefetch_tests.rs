//! What is fetched beyond what is read, on request: files, everything, and everything but some files.

use super::*;

/// A torrent of three files, each with pieces of its own: 0–1, 2–4, 5. Nothing of it is here.
fn resolving() -> World {
    resolving_with(settings())
}

fn resolving_with(settings: Settings) -> World {
    let mut world = World::resolving(6, settings);
    let mut builder = TorrentBuilder::new("t", PIECE);
    for (name, pieces) in [("a", 2), ("b", 3), ("c", 1)] {
        builder.file(name, u64::from(pieces * PIECE));
    }
    builder.data(&vec![7; (6 * PIECE) as usize]);
    world.info = Arc::new(Info::parse(&builder.info().unwrap(), None).unwrap());
    world
}

fn live() -> World {
    let mut world = resolving();
    world.go_live();
    world.seed(1);
    world
}

fn prefetch(world: &mut World, files: &[FileIndex], on: bool) {
    world.apply(Event::Prefetch { files: files.to_vec(), on });
}

/// Peers and workers do all they are told to; the pieces that are here afterwards.
fn fetched(world: &mut World) -> Vec<u32> {
    for _ in 0..20 {
        world.deliver_all(&[]);
        while world.hash_one(true) {}
        world.tick(S);
    }
    let all = (0..world.info.geometry.pieces()).map(PieceIndex);
    all.filter(|piece| world.table.is_complete(*piece)).map(|piece| piece.0).collect()
}

#[test]
fn files_and_everything_on_and_off() {
    const A: FileIndex = FileIndex(0);
    const B: FileIndex = FileIndex(1);
    const C: FileIndex = FileIndex(2);
    // Orders in turn, and what is here when all that is wanted has come.
    type Row<'a> = (&'a [(&'a [FileIndex], bool)], &'a [u32]);
    let rows: [Row<'_>; 10] = [
        (&[(&[B], true)], &[2, 3, 4]),
        (&[(&[A, C], true)], &[0, 1, 5]),
        (&[(&[A, C], true), (&[A], false)], &[5]),
        (&[(&[EVERYTHING], true)], &[0, 1, 2, 3, 4, 5]),
        (&[(&[EVERYTHING], true), (&[B], false)], &[0, 1, 5]),
        (&[(&[B], true), (&[EVERYTHING], true), (&[B, C], false)], &[0, 1]),
        (&[(&[A], true), (&[EVERYTHING], true), (&[EVERYTHING], false)], &[]),
        (&[(&[A], true), (&[EVERYTHING], false)], &[]),
        (&[(&[EVERYTHING], true), (&[B], false), (&[B], true)], &[0, 1, 2, 3, 4, 5]),
        (&[(&[A], false), (&[FileIndex(9)], false)], &[]),
    ];
    for (orders, want) in rows {
        let mut world = live();
        for (files, on) in orders {
            prefetch(&mut world, files, *on);
        }
        assert_eq!(fetched(&mut world), want, "{orders:?}");
        assert!(world.asked.is_empty(), "{orders:?}: {:?}", world.asked);
    }
}

#[test]
fn what_is_called_off_is_taken_back_from_peers() {
    let mut world = live();
    prefetch(&mut world, &[FileIndex(1)], true);
    assert!(!world.asked.is_empty());
    prefetch(&mut world, &[FileIndex(1)], false);
    assert!(world.asked.is_empty(), "{:?}", world.asked);
    // What a reader wants stays.
    prefetch(&mut world, &[EVERYTHING], true);
    world.want(1, &[3]);
    prefetch(&mut world, &[EVERYTHING], false);
    assert_eq!(fetched(&mut world), [3]);
}

#[test]
fn before_the_metadata_it_is_all_or_nothing() {
    for (orders, want) in [
        (&[(EVERYTHING, true)][..], 6),
        (&[(EVERYTHING, true), (EVERYTHING, false)], 0),
        (&[(FileIndex(0), true)], 0),
        (&[(EVERYTHING, false)], 0),
    ] {
        let mut world = resolving();
        for (file, on) in orders {
            prefetch(&mut world, &[*file], *on);
        }
        world.go_live();
        world.seed(1);
        assert_eq!(fetched(&mut world).len(), want, "{orders:?}");
    }
}

#[test]
fn what_is_called_off_before_the_metadata_leaves_the_setting() {
    // The setting, what is asked for before the metadata comes, and what is here when a piece of "a" was read.
    let rows: [(Prefetch, &[bool], &[u32]); 6] = [
        (Prefetch::File, &[true, false], &[0, 1]),
        (Prefetch::File, &[false], &[0, 1]),
        (Prefetch::File, &[true], &[0, 1, 2, 3, 4, 5]),
        (Prefetch::None, &[true, false], &[0]),
        (Prefetch::All, &[false], &[0]),
        (Prefetch::All, &[false, true], &[0, 1, 2, 3, 4, 5]),
    ];
    for (setting, orders, want) in rows {
        let mut world = resolving_with(Settings { prefetch: setting, ..settings() });
        for on in orders {
            prefetch(&mut world, &[EVERYTHING], *on);
        }
        world.go_live();
        world.seed(1);
        world.want(1, &[0]);
        assert_eq!(fetched(&mut world), want, "{setting:?} {orders:?}");
    }
}
