//! What events cost: one decision each, and as much at a million pieces as at a thousand (rows R2, P1, P2).

use super::*;

#[test]
fn r2_one_decision_for_each_event_however_much_it_brings() {
    let mut world = World::live(64);
    world.seed(1);
    world.open(1);
    let before = world.swarm.scheduled;
    let wants = (0..32).map(|n| Demand::Want {
        waiter: n,
        stream: 1,
        file: FileIndex(0),
        offset: 0,
        all: n as u32..n as u32 + 1,
        pieces: vec![PieceIndex(n as u32)],
        since: world.now,
    });
    let wants = wants.collect();
    world.apply(Event::Demands(wants));
    assert_eq!(world.swarm.scheduled, before + 1, "a hundred demands");
    let blocks: Vec<Assignment> = std::mem::take(&mut world.asked);
    assert!(blocks.len() >= 16, "{}", blocks.len());
    let items = blocks.iter().map(|a| {
        a.buffer.put(a.block.block, Bytes::from_static(b"good"), a.peer);
        Item::Block { block: a.block, buffer: a.buffer.clone() }
    });
    let items = items.collect();
    world.say(1, items);
    assert_eq!(world.swarm.scheduled, before + 2, "all blocks of a socket read");
    // Nothing is decided on a timer while blocks come: the next look is a matter of what is late.
    assert!(world.swarm.next_tick(world.now) > LOOK_PAUSE);
}

#[test]
fn p2_the_invariants_are_checked_where_that_is_asked_for() {
    for (check, expected) in [(false, 0), (true, 3)] {
        let mut world = World::resolving(4, Settings { check_invariants: check, ..settings() });
        world.go_live();
        world.connect(1, true);
        world.tick(S);
        assert_eq!(world.swarm.invariants_checked, expected, "{check}");
    }
}

#[test]
fn p1_readers_and_peers_cost_the_same_at_any_number_of_pieces() {
    // What the picker looked at, for the same reads of torrents of different sizes.
    let looked: Vec<u64> = [1_000, 333_333, 1_000_000]
        .into_iter()
        .map(|pieces| {
            let memory = Memory::default();
            let geometry = Arc::new(Geometry::contiguous(PIECE, &[u64::from(PIECE) * pieces]));
            let mut picker = Picker::new(geometry, memory);
            let now = Instant::now();
            for key in 0..4 {
                let mut load = PeerLoad::new(now);
                *load.has_mut() = Has::All;
                load.set_choked(false);
                picker.add_peer(PeerKey(key), load);
            }
            for read in 0..500u64 {
                let piece = PieceIndex((read * 7919 % pieces) as u32);
                picker.want(piece, waiter(read), now);
                picker.schedule(now);
                if read % 2 == 0 {
                    picker.unwant(piece, waiter(read));
                }
            }
            picker.looked_at()
        })
        .collect();
    assert!(looked.iter().all(|n| *n <= 2 * looked[0] && looked[0] <= 2 * n), "{looked:?}");
    assert!(looked[0] > 0);
}

#[test]
fn what_is_here_when_the_metadata_comes_is_told_in_one_go() {
    let mut world = World::resolving(2000, settings());
    (1..=50).for_each(|n| world.connect(n, true));
    world.table = Arc::new(PieceTable::new(2000, PieceState::Complete));
    world.take();
    world.go_live();
    let told: Vec<(usize, usize)> = world
        .take()
        .iter()
        .filter_map(|effect| match effect {
            Effect::Have(peers, pieces) => Some((peers.len(), pieces.len())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(50, 2000)]);
}

#[test]
fn haves_cost_one_decision_a_batch_and_ask_for_nothing() {
    let mut world = World::live(3000);
    world.connect(1, true);
    world.say(1, vec![Item::HaveNone]);
    world.take();
    let before = world.swarm.scheduled;
    for batch in 0..3 {
        let haves = (batch * 1000..(batch + 1) * 1000).map(|piece| Item::Have(PieceIndex(piece)));
        world.say(1, haves.collect());
    }
    assert_eq!(world.swarm.scheduled, before + 3);
    // That it has something that we lack is told at most once.
    assert!(world.take().len() <= 1);
}
