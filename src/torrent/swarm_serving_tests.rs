//! Whom we serve.

use super::*;

#[test]
fn a_peer_that_asks_to_be_let_in_turns_nobody_out() {
    let mut world = World::live(2);
    for n in 1..=20 {
        world.connect(n, true);
        world.say(n, vec![Item::Interested(true)]);
    }
    let opened = world.count(|e| matches!(e, Effect::Choke(_, false)));
    assert_eq!(opened, choker::SLOTS_FIRST, "at once, while there are slots");
    world.take();
    for _ in 0..100 {
        world.say(20, vec![Item::Interested(false), Item::Interested(true)]);
    }
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(..))), 0);
    world.gone(1);
    world.say(20, vec![Item::Interested(true)]);
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(PeerKey(20), false))), 1, "a slot was free");
    let mut world = World::resolving(2, Settings { upload: false, ..settings() });
    world.go_live();
    world.connect(1, true);
    world.say(1, vec![Item::Interested(true)]);
    world.tick(11 * S);
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(..))), 0);
}

#[test]
fn who_has_nothing_that_we_lack_is_told_so_and_told_when_it_has() {
    let mut world = World::live(16);
    world.open(1);
    for (n, has) in [(1, [0x80, 0]), (2, [0xc0, 0])] {
        world.connect(n, true);
        world.say(n, vec![Item::Bitfield(has.to_vec().into()), Item::Choked(false)]);
    }
    world.seed(3);
    let interested = |world: &mut World| {
        let said = [1, 2, 3].map(|n| world.interested(n).last().copied());
        world.take();
        said
    };
    assert_eq!(interested(&mut world), [Some(true); 3]);
    world.want(1, &[0]);
    world.deliver_all(&[]);
    while world.hash_one(true) {}
    world.tick(11 * S);
    assert_eq!(interested(&mut world), [Some(false), None, None]);
    world.say(1, vec![Item::Have(PieceIndex(9))]);
    assert_eq!(interested(&mut world), [Some(true), None, None]);
    world.tick(11 * S);
    assert_eq!(interested(&mut world), [None; 3]);
}

#[test]
fn who_has_next_to_nothing_may_ask_for_some_pieces_at_once() {
    let said = |items: Vec<Item>, fast: bool, upload: bool| {
        let mut world = World::resolving(100, Settings { upload, ..settings() });
        for piece in (0..100).filter(|piece| piece % 2 == 0) {
            world.table.set(PieceIndex(piece), PieceState::Complete);
        }
        world.go_live();
        world.connect(1, fast);
        world.say(1, items);
        let mut sets = world.take().into_iter().filter_map(|effect| match effect {
            Effect::AllowFast(PeerKey(1), set) => Some(set),
            _ => None,
        });
        let set = sets.next();
        assert!(sets.next().is_none(), "once");
        set.unwrap_or_default()
    };
    let set = said(vec![Item::HaveNone], true, true);
    assert!((1..=10).contains(&set.len()) && set.iter().all(|piece| piece.0 % 2 == 0), "{set:?}");
    assert_eq!(said(vec![Item::Bitfield(vec![0xff, 0x80, 0].into())], true, true), set, "it has nine");
    for (items, fast, upload) in [
        (vec![Item::Bitfield(vec![0xff, 0xc0].into())], true, true),
        (vec![Item::HaveAll], true, true),
        (vec![Item::HaveNone], false, true),
        (vec![Item::HaveNone], true, false),
    ] {
        assert!(said(items.clone(), fast, upload).is_empty(), "{items:?}");
    }
}

#[test]
fn nobody_is_let_in_when_enough_was_given_back() {
    let mut world = World::live(2);
    for n in 1..=3 {
        world.connect(n, true);
        world.say(n, vec![Item::Interested(true)]);
    }
    world.take();
    world.apply(Event::Serve(false));
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(_, true))), 3);
    assert_eq!(world.count(|e| matches!(e, Effect::AllowNothing(_))), 3);
    world.take();
    world.connect(4, true);
    world.say(4, vec![Item::Interested(true), Item::HaveNone]);
    world.tick(11 * S);
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(..) | Effect::AllowFast(..))), 0);
    // More was received, and more is to be given back.
    let round = world.swarm.next_round;
    world.now += S;
    world.apply(Event::Serve(true));
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(_, false))), 4);
    assert_eq!(world.swarm.next_round, round, "what else is done each round keeps its time");
    let mut world = World::resolving(2, Settings { upload: false, ..settings() });
    world.go_live();
    world.connect(1, true);
    world.say(1, vec![Item::Interested(true)]);
    world.apply(Event::Serve(true));
    assert_eq!(world.count(|e| matches!(e, Effect::Choke(..))), 0, "--no-upload stays");
}
