//! What storage does to a torrent: eviction, damage, a full disk, a failing one.

use super::*;
use crate::torrent::effects::Blocked;

/// A torrent of four pieces, all here, and a seeder.
fn whole() -> World {
    let mut world = World::resolving(4, settings());
    world.table = Arc::new(PieceTable::new(4, PieceState::Complete));
    world.go_live();
    world.seed(1);
    world.take();
    world
}

fn evict(world: &mut World, pieces: &[u32], younger_than: Option<Instant>) -> Vec<u32> {
    let pieces = pieces.iter().map(|p| PieceIndex(*p)).collect();
    world.apply(Event::Evict { pieces, younger_than });
    let gone = world.take().into_iter().filter_map(|e| match e {
        Effect::Discard(pieces) => Some(pieces),
        _ => None,
    });
    gone.flatten().map(|p| p.0).collect()
}

/// Lets the seeder deliver what was asked of it, and the workers do their work, until nothing is left.
fn settle(world: &mut World) {
    while !(world.asked.is_empty() && world.hashing.is_empty()) {
        world.deliver_all(&[]);
        while world.hash_one(true) {}
    }
}

#[test]
fn s2_an_evicted_piece_is_missing_and_requestable_in_one_step_and_nobody_is_to_blame() {
    let mut world = whole();
    world.open(1);
    assert_eq!(evict(&mut world, &[1, 2], None), [1, 2]);
    assert_eq!(world.table.state(PieceIndex(1)), PieceState::Missing);
    assert_eq!(world.table.complete_count(), 2);
    assert!(world.asked.is_empty(), "nobody wants it: it isn't fetched");
    world.want(7, &[1]);
    assert!(world.asked.iter().all(|a| a.block.piece == PieceIndex(1)) && !world.asked.is_empty());
    settle(&mut world);
    assert_eq!(world.table.complete_count(), 3);
    assert!(world.swarm.banned().is_empty() && world.swarm.error().is_none());
    assert_eq!(evict(&mut world, &[2], None), [0u32; 0], "what is missing can't go");
}

#[test]
fn s2_what_comes_ahead_of_a_reader_is_younger_than_what_it_has_read() {
    let mut world = World::live(4);
    world.seed(1);
    world.open(1);
    world.want(7, &[0]);
    settle(&mut world);
    drop(world.table.pin(0..1));
    world.want(8, &[1]);
    settle(&mut world);
    assert!(world.table.stamp(PieceIndex(1)) > world.table.stamp(PieceIndex(0)));
}

#[test]
fn s2_what_is_held_read_or_waited_for_stays() {
    let mut world = whole();
    let pins = world.table.clone();
    let pins = pins.pin(0..1);
    assert_eq!(evict(&mut world, &[0, 3], None), [3]);
    drop(pins);
    // A read of pieces 2 and 3 waits for the latter: the other is to stay until it comes.
    let wait = |world: &World, waiter, all: std::ops::Range<u32>, missing: u32| Demand::Want {
        waiter,
        stream: 1,
        file: FileIndex(0),
        offset: 0,
        all,
        pieces: vec![PieceIndex(missing)],
        since: world.now,
    };
    let old = wait(&world, 7, 2..4, 3);
    world.apply(Event::Demands(vec![old]));
    let between = world.now + S;
    world.now += 2 * S;
    assert_eq!(evict(&mut world, &[1], None), [1]);
    let young = wait(&world, 8, 0..2, 1);
    world.apply(Event::Demands(vec![young]));
    assert_eq!(evict(&mut world, &[0, 2], None), [0u32; 0]);
    // With nothing else left, who came last gives way to who came first.
    assert_eq!(evict(&mut world, &[0, 2], Some(between)), [0]);
    settle(&mut world);
    assert_eq!(evict(&mut world, &[2], None), [2], "the read was answered");
}

#[test]
fn a_torrent_that_was_complete_looks_for_peers_again_after_an_eviction() {
    let mut world = whole();
    world.open(1);
    assert!(!world.swarm.peers[&PeerKey(1)].interested);
    evict(&mut world, &[0], None);
    world.want(7, &[0]);
    assert!(world.swarm.peers[&PeerKey(1)].interested, "the seeder is of use again");
    settle(&mut world);
    assert_eq!(world.count(|e| matches!(e, Effect::Finished)), 1);
}

#[test]
fn peers_that_want_to_hear_of_it_are_told_what_is_gone() {
    let mut world = whole();
    let hello = extension::ExtHandshake { lt_donthave: Some(9), ..extension::ExtHandshake::default() };
    world.say(1, vec![Item::Extended(extension::HANDSHAKE_ID, hello.encode())]);
    world.connect(2, true);
    world.take();
    world.apply(Event::Evict { pieces: vec![PieceIndex(3)], younger_than: None });
    let told = world.take().into_iter().filter_map(|e| match e {
        Effect::DontHave(peers, piece) => Some((peers, piece)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(vec![(PeerKey(1), 9)], PieceIndex(3))]);
    // And the other way round: what a peer no longer has isn't asked of it.
    let gone = Item::Extended(extension::OUR_LT_DONTHAVE, extension::dont_have(PieceIndex(3)));
    world.say(1, vec![gone]);
    world.open(1);
    world.want(7, &[3]);
    assert!(world.asked.is_empty());
    world.say(1, vec![Item::Have(PieceIndex(3))]);
    assert!(!world.asked.is_empty());
}

#[test]
fn what_could_not_be_read_is_checked_and_fetched_again_if_it_is_bad() {
    for (files, good) in
        [(vec![], true), (vec![], false), (vec![FileIndex(0)], true), (vec![FileIndex(0)], false)]
    {
        let mut world = whole();
        world.open(1);
        let whole_file = !files.is_empty();
        world.apply(Event::Demands(vec![Demand::Suspect { pieces: 1..2, files }]));
        assert!(!world.table.is_complete(PieceIndex(1)), "not served before it was looked at");
        assert_eq!(world.table.is_complete(PieceIndex(3)), !whole_file, "somebody was at the file");
        assert_eq!(world.count(|e| matches!(e, Effect::Mend(_))), usize::from(whole_file));
        assert!(world.count(|e| matches!(e, Effect::Doubt(_))) == 1 && world.checking.is_empty());
        world.want(7, &[1]);
        assert_eq!(world.checking, [PieceIndex(1)]);
        world.check_one(good);
        assert_eq!(world.asked.is_empty(), good);
        assert_eq!(world.count(|e| matches!(e, Effect::Discard(_))), usize::from(!good));
        settle(&mut world);
        assert!(world.table.is_complete(PieceIndex(1)));
        assert_eq!(world.count(|e| matches!(e, Effect::Wake(PieceIndex(1)))), 1);
        assert!(world.swarm.banned().is_empty());
    }
}

#[test]
fn without_room_nothing_is_asked_for_and_readers_learn_why() {
    for (disk, expected) in [(true, ReadError::Full), (false, timed_out("it is full"))] {
        let mut world = World::live(4);
        world.seed(1);
        world.open(1);
        let why = Blocked { reason: "it is full".into(), disk };
        world.apply(Event::Blocked(Some(why)));
        world.want(7, &[0]);
        world.tick(S);
        assert!(world.asked.is_empty(), "fetching stops");
        assert_eq!(world.swarm.error(), Some("it is full"));
        assert!(world.failed().is_empty(), "there may be room in time");
        world.tick(300 * S);
        assert!(world.fx.iter().any(|e| matches!(e, Effect::Fail(7, error) if *error == expected)));
        world.tick(11 * S);
        world.want(8, &[1]);
        world.apply(Event::Blocked(None));
        assert!(!world.asked.is_empty(), "and goes on");
        assert_eq!(world.swarm.error(), None);
        settle(&mut world);
        assert!(world.table.is_complete(PieceIndex(1)));
    }
}

#[test]
fn a_disk_that_fails_is_tried_a_few_times_and_then_the_torrent_is_at_fault() {
    let mut world = World::live(8);
    world.seed(1);
    world.open(1);
    world.want(7, &[0]);
    // Twice is bad luck: the reader gets its bytes.
    for written in [false, false, true] {
        assert!(world.failed().is_empty());
        world.deliver_all(&[]);
        assert!(world.hash_one(written));
    }
    assert!(world.table.is_complete(PieceIndex(0)) && world.swarm.error().is_none());
    world.want(8, &[1]);
    world.want(9, &[2]);
    for _ in 0..3 {
        world.deliver_all(&[]);
        assert!(world.hash_one(false));
    }
    let mut failed = world.failed();
    failed.sort_unstable();
    assert_eq!(failed, [8, 9], "everybody who waits");
    assert!(world.swarm.error().is_some_and(|e| e.contains("the test's disk")));
    world.asked.clear();
    world.hashing.clear();
    world.want(10, &[3]);
    assert!(world.asked.is_empty() && world.failed().contains(&10), "at once from then on");
    assert!(world.table.is_complete(PieceIndex(0)), "what is here stays");
}

#[test]
fn what_a_failed_sync_lost_is_fetched_again() {
    let mut world = whole();
    world.open(1);
    world.apply(Event::Lost(vec![PieceIndex(0), PieceIndex(2)]));
    assert_eq!(world.table.complete_count(), 2);
    assert_eq!(world.count(|e| matches!(e, Effect::Discard(_))), 1);
    world.want(7, &[0]);
    settle(&mut world);
    assert!(world.table.is_complete(PieceIndex(0)) && world.swarm.error().is_some());
    world.apply(Event::Synced);
    assert_eq!(world.swarm.error(), None, "it is kept at last");
}

#[test]
fn what_nobody_reads_drives_nothing_out() {
    let piece = u64::from(PIECE);
    // A row is the room that is left, in pieces, and whether prefetching goes on.
    for (left, goes_on) in [(0, false), (3, false), (8, true)] {
        let quota = Arc::new(crate::storage::quota::Quota::new(Some(100 * piece)));
        quota.charge((100 - left) * piece);
        let mut world = World::resolving(64, Settings { prefetch: Prefetch::All, quota, ..settings() });
        world.go_live();
        world.seed(1);
        assert_eq!(!world.asked.is_empty(), goes_on, "{left}");
        world.want(7, &[5]);
        assert!(world.asked.iter().any(|a| a.block.piece == PieceIndex(5)), "what is read is asked for");
    }
}

#[test]
fn failed_syncs_are_counted_by_themselves() {
    let mut world = World::live(16);
    world.seed(1);
    world.open(1);
    world.want(7, &[0]);
    settle(&mut world);
    for round in 0..5u32 {
        // What the owner does when a sync fails while pieces are being written, once for all of them.
        let pieces = [1 + 2 * round, 2 + 2 * round];
        world.want(8 + u64::from(round), &pieces);
        world.deliver_all(&[]);
        world.apply(Event::Lost(Vec::new()));
        for piece in pieces.map(PieceIndex) {
            world.apply(Event::Verified { piece, verdict: Verdict::Harmed, digests: Vec::new() });
        }
        world.hashing.clear();
        assert!(world.failed().is_empty(), "round {round}: a failed sync is one fault");
        settle(&mut world);
        if round < 3 {
            world.apply(Event::Synced);
        }
    }
    // Writes were good in between, and syncs never.
    world.apply(Event::Lost(Vec::new()));
    world.want(99, &[12]);
    assert_eq!(world.failed().len(), 1, "the third in a row");
}

#[test]
fn s1_a_piece_written_before_the_cut_is_doubtful_too() {
    let mut world = World::live(4);
    world.seed(1);
    world.open(1);
    world.want(7, &[0]);
    settle(&mut world);
    world.want(8, &[1]);
    world.deliver_all(&[]);
    assert_eq!(world.table.state(PieceIndex(1)), PieceState::Verifying);
    // Written by a worker; its answer is on its way. A reader finds that the file was cut or replaced.
    world.apply(Event::Demands(vec![Demand::Suspect { pieces: 0..1, files: vec![FileIndex(0)] }]));
    while world.hash_one(true) {}
    assert!(!world.table.is_complete(PieceIndex(1)), "complete, in a file of which nothing is certain");
}
