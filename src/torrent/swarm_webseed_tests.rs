//! Tests of what webseeds are to a torrent: sources like peers, and nothing else that peers are; and what bad data of
//! theirs leads to.

use super::*;

impl World {
    /// Of several files.
    fn of(sizes: &[u64]) -> Self {
        let info = torrent_of(sizes);
        let mut world = Self::resolving(info.geometry.pieces(), settings());
        world.info = info;
        world.go_live();
        world
    }

    fn webseed(&mut self, n: u64) {
        self.apply(Event::Webseed { key: PeerKey(n), url: format!("http://seed/{n}/") });
    }

    fn refuses(&mut self, n: u64, file: u32) {
        self.apply(Event::Refuses { key: PeerKey(n), files: vec![FileIndex(file)] });
    }

    /// Which pieces are asked of whom.
    fn asked_of(&self, n: u64) -> BTreeSet<u32> {
        self.asked.iter().filter(|a| a.peer.0 == n).map(|a| a.block.piece.0).collect()
    }

    fn distrusted(&self) -> Vec<(u64, u32)> {
        let found = self.fx.iter().filter_map(|e| match e {
            Effect::Distrust(key, file) => Some((key.0, file.0)),
            _ => None,
        });
        found.collect()
    }

    /// Has everything that is asked for delivered and hashed, until nothing more is; `bad` says which blocks are.
    fn fetch(&mut self, bad: impl Fn(&Assignment) -> bool) {
        for _ in 0..1000 {
            for assignment in std::mem::take(&mut self.asked) {
                let good = !bad(&assignment);
                self.hand_over(&assignment, good);
            }
            while self.hash_one(true) {}
            self.tick(S / 2);
            if self.asked.is_empty() {
                return;
            }
        }
        panic!("it goes round in circles");
    }

    fn complete(&self) -> Vec<u32> {
        (0..self.table.len()).filter(|p| self.table.is_complete(PieceIndex(*p))).collect()
    }
}

#[test]
fn a_webseed_is_asked_once_the_metadata_is_known() {
    for early in [true, false] {
        let mut world = World::resolving(4, settings());
        if early {
            world.webseed(1);
        }
        world.go_live();
        if !early {
            world.webseed(1);
        }
        world.open(1);
        world.want(7, &[0, 3]);
        assert_eq!(world.asked_of(1), BTreeSet::from([0, 3]), "{early}");
        world.fetch(|_| false);
        assert_eq!(world.complete(), [0, 3]);
        assert_eq!(world.count(|e| matches!(e, Effect::Fail(..))), 0);
    }
}

#[test]
fn it_is_a_source_and_nothing_else_that_a_peer_is() {
    let mut world = World::live(4);
    (1..=100).for_each(|n| world.webseed(n));
    world.open(1000);
    world.want(7, &[0]);
    // More webseeds than there may be peers: another peer is welcome, and dialled.
    world.take();
    world.apply(Event::Found(FoundPeers { source: PeerSource::Tracker, addrs: vec![addr(200)] }));
    assert_eq!(world.count(|e| matches!(e, Effect::Dial(_))), 1);
    world.seed(200);
    assert!(world.disconnected().is_empty());
    assert_eq!(world.swarm.peer_count(), 1);
    // Ten minutes of rounds and exchanges: nothing is told to a webseed that is for peers.
    world.fetch(|_| false);
    for _ in 0..1200 {
        world.tick(S / 2);
    }
    let told = world.fx.iter().filter_map(|e| match e {
        Effect::Interested(key, _) | Effect::Choke(key, _) | Effect::First(key, _) => Some(vec![*key]),
        Effect::Extended(key, ..) => Some(vec![*key]),
        Effect::Have(keys, _) => Some(keys.clone()),
        Effect::DontHave(keys, _) => Some(keys.iter().map(|(key, _)| *key).collect()),
        _ => None,
    });
    assert!(told.flatten().all(|key| key.0 >= 200));
}

#[test]
fn what_failed_for_want_of_a_source_is_tried_again_when_a_webseed_comes() {
    let mut world = World::live(2);
    world.want(7, &[0]);
    while world.failed().is_empty() {
        world.tick(S);
    }
    assert_eq!(world.failed(), [7]);
    world.want(8, &[0]);
    assert_eq!(world.failed(), [7, 8], "at once");
    world.webseed(1);
    world.want(9, &[0]);
    world.fetch(|_| false);
    assert_eq!((world.failed(), world.complete()), (vec![7, 8], vec![0]));
}

#[test]
fn a_read_that_fails_after_the_last_webseed_is_gone_tells_of_it() {
    let mut world = World::live(2);
    world.webseed(1);
    world.want(7, &[0]);
    world.gone(1);
    world.tick(300 * S);
    assert_eq!(world.failed(), [7]);
    let why = world.swarm.demands().unwrap().gave_up().map(ToString::to_string).unwrap();
    assert!(why.contains("none of its webseeds is left, and no peer is connected"), "{why}");
}

#[test]
fn one_that_backs_off_loses_its_requests_and_gets_them_again() {
    let mut world = World::live(4);
    world.webseed(1);
    world.want(7, &[0, 1]);
    assert_eq!(world.asked.len(), 4);
    // One request goes on, what else it was asked for it rejects.
    let goes_on = world.asked.remove(0);
    let rejected = std::mem::take(&mut world.asked).into_iter().map(|a| Item::Rejected(a.block));
    world.say(1, [Item::Choked(true)].into_iter().chain(rejected).collect());
    assert!(world.asked.is_empty());
    world.tick(20 * S);
    assert!(world.asked.is_empty());
    world.hand_over(&goes_on, true);
    world.say(1, vec![Item::Choked(false)]);
    assert_eq!(world.asked.len(), 3);
    world.fetch(|_| false);
    assert_eq!(world.complete(), [0, 1]);
}

#[test]
fn files_it_refuses_take_their_pieces_away() {
    // Pieces 0 and 1 are of the first file, 2 of both and the third, 3 of the third, 4 of the third and fourth.
    let piece = u64::from(PIECE);
    let sizes = [piece * 2 + 5, 100, piece * 2 - 50, piece / 2];
    let mut world = World::of(&sizes);
    world.webseed(1);
    world.want(7, &[0, 1, 2, 3, 4]);
    assert_eq!(world.asked_of(1), BTreeSet::from([0, 1, 2, 3, 4]));
    world.refuses(1, 1);
    assert_eq!(world.asked_of(1), BTreeSet::from([0, 1, 3, 4]));
    world.refuses(1, 2);
    assert_eq!(world.asked_of(1), BTreeSet::from([0, 1]));
    world.refuses(1, 77);
    world.fetch(|_| false);
    assert_eq!(world.complete(), [0, 1]);
    // Another has all of it.
    world.webseed(2);
    assert_eq!(world.asked_of(2), BTreeSet::from([2, 3, 4]));
    world.fetch(|_| false);
    assert_eq!(world.complete(), [0, 1, 2, 3, 4]);
    assert!(world.disconnected().is_empty() && world.distrusted().is_empty());
}

#[test]
fn a_bad_piece_of_one_file_costs_the_file_and_of_a_second_the_webseed() {
    let piece = u64::from(PIECE);
    let mut world = World::of(&[piece * 3, piece * 3, piece * 3]);
    world.webseed(1);
    world.want(7, &[0, 4]);
    world.fetch(|a| a.block.piece.0 == 4);
    assert_eq!((world.complete(), world.distrusted()), (vec![0], vec![(1, 1)]));
    assert!(world.disconnected().is_empty());
    // Nothing more of that file is asked of it.
    world.want(8, &[3, 5, 6]);
    assert_eq!(world.asked_of(1), BTreeSet::from([6]));
    world.fetch(|a| a.block.piece.0 == 6);
    assert_eq!(world.disconnected(), [1]);
    assert_eq!(world.distrusted(), [(1, 1)], "nothing is left to be distrusted");
    // While it goes nothing of it counts.
    world.want(9, &[1]);
    assert!(world.asked.is_empty());
    world.gone(1);
    world.webseed(2);
    world.fetch(|_| false);
    assert_eq!(world.complete(), [0, 1, 3, 4, 5, 6]);
}

#[test]
fn a_bad_piece_of_several_files_is_blamed_on_one_as_long_as_one_explains_all() {
    let piece = u64::from(PIECE);
    // What is wanted one after another, what of it is bad, and then: files distrusted, and whether it was dropped.
    // Piece 1 holds the ends of the files 0 and 1, piece 3 those of 1 and 2.
    let sizes = [piece * 3 / 2, piece * 2, piece * 5 / 2];
    type Row = (&'static [u32], &'static [u32], &'static [u32], bool);
    let rows: [Row; 6] = [
        (&[1, 0, 2, 5], &[1], &[], false),
        (&[1, 2], &[1, 2], &[1], false),
        (&[1, 0], &[1, 0], &[0], false),
        (&[1, 3], &[1, 3], &[1], false),
        (&[1, 5], &[1, 5], &[], true),
        (&[1, 2, 4], &[1, 2, 4], &[1], true),
    ];
    for (wanted, bad, distrusted, dropped) in rows {
        let mut world = World::of(&sizes);
        world.webseed(1);
        for (id, piece) in (7..).zip(wanted) {
            world.want(id, &[*piece]);
            world.fetch(|a| bad.contains(&a.block.piece.0));
        }
        let found: Vec<u32> = world.distrusted().iter().map(|(_, file)| *file).collect();
        assert_eq!((found.as_slice(), !world.disconnected().is_empty()), (distrusted, dropped), "{wanted:?}");
        let mut good: Vec<u32> = wanted.iter().copied().filter(|p| !bad.contains(p)).collect();
        good.sort_unstable();
        assert_eq!(world.complete(), good, "{wanted:?}");
    }
    // Small files that lie in one piece go together, since nothing is left of them.
    let mut world = World::of(&[500, 700]);
    world.webseed(1);
    world.want(7, &[0]);
    world.fetch(|_| true);
    assert_eq!((world.distrusted(), world.disconnected()), (vec![(1, 0), (1, 1)], vec![]));
}

#[test]
fn of_several_senders_only_the_one_whose_block_was_bad_is_to_blame() {
    for liar in [1, 2, 3] {
        let mut world = World::live(6);
        world.seed(1);
        world.webseed(2);
        world.webseed(3);
        world.want(7, &[0, 1, 2, 3, 4, 5]);
        // Each has a part in some piece, or there would be nothing to tell apart.
        world.fetch(|a| a.peer.0 == liar);
        assert_eq!(world.complete(), [0, 1, 2, 3, 4, 5], "{liar}");
        let banned = world.swarm.banned().iter().map(|addr| u64::from(addr.port()) - 10_000);
        assert!(banned.into_iter().all(|n| n == 1 && liar == 1));
        assert!(world.distrusted().iter().all(|(n, _)| *n == liar), "{liar}: {:?}", world.distrusted());
        assert!(world.disconnected().iter().all(|n| *n == liar), "{liar}: {:?}", world.disconnected());
    }
}
