//! Whatever happens to a torrent, in whatever order, what is wanted arrives (row P3).

use super::*;

/// One thing that happens. The numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Join {
        fast: bool,
        liar: bool,
        has: u8,
        early: bool,
    },
    Webseed {
        liar: bool,
    },
    /// A webseed won't serve the file with these numbers.
    Refuses(usize, u32),
    Leave(usize),
    Choke(usize, bool),
    Have(usize, u32),
    Deliver {
        n: usize,
        lie: bool,
    },
    DeliverLate {
        n: usize,
        lie: bool,
    },
    /// Bytes into the buffer, and the session ends before the owner hears of them.
    LeaveBehind(usize),
    Refuse(usize),
    Hashed {
        written: bool,
    },
    Checked {
        good: bool,
    },
    Open(u64),
    Close(u64),
    Moved(u64, u32, u32),
    Prefetch {
        whole: bool,
        on: bool,
    },
    Want(u8),
    Withdraw(usize),
    Tick(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = any::<usize>;
    prop_oneof![
        3 => (any::<bool>(), prop::bool::weighted(0.3), any::<u8>(), any::<bool>())
            .prop_map(|(fast, liar, has, early)| Step::Join { fast, liar, has, early }),
        1 => prop::bool::weighted(0.3).prop_map(|liar| Step::Webseed { liar }),
        1 => (n(), 0..4u32).prop_map(|(n, file)| Step::Refuses(n, file)),
        1 => n().prop_map(Step::Leave),
        3 => (n(), prop::bool::weighted(0.3)).prop_map(|(n, choke)| Step::Choke(n, choke)),
        1 => (n(), 0..6u32).prop_map(|(n, piece)| Step::Have(n, piece)),
        12 => (n(), any::<bool>()).prop_map(|(n, lie)| Step::Deliver { n, lie }),
        1 => (n(), any::<bool>()).prop_map(|(n, lie)| Step::DeliverLate { n, lie }),
        1 => n().prop_map(Step::LeaveBehind),
        1 => n().prop_map(Step::Refuse),
        5 => prop::bool::weighted(0.9).prop_map(|written| Step::Hashed { written }),
        3 => any::<bool>().prop_map(|good| Step::Checked { good }),
        1 => (0..3u64).prop_map(Step::Open),
        1 => (0..3u64).prop_map(Step::Close),
        2 => (0..3u64, 0..6u32, 0..6u32).prop_map(|(stream, from, run)| Step::Moved(stream, from, run)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(whole, on)| Step::Prefetch { whole, on }),
        4 => (1..64u8).prop_map(Step::Want),
        1 => n().prop_map(Step::Withdraw),
        4 => (0..30_000u64).prop_map(Step::Tick),
    ]
}

/// So many bytes as `pieces` pieces have, but for a part of the last, in so many files of which none ends with a piece.
fn sizes(pieces: u32, files: u64) -> Vec<u64> {
    let all = u64::from(pieces * PIECE - 1000);
    let one = all / files + 77;
    (0..files).map(|n| if n + 1 == files { all - one * n } else { one }).collect()
}

struct History {
    world: World,
    liars: BTreeSet<u64>,
    peers: Vec<(u64, bool)>,
    /// Those of them that are webseeds.
    webseeds: BTreeSet<u64>,
    next: u64,
    /// Reads that wait, and the pieces they need.
    reads: HashMap<u64, Vec<PieceIndex>>,
    /// Handles that are open.
    streams: BTreeSet<u64>,
}

impl History {
    fn apply(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Join { fast, liar, has, early } => {
                if self.peers.len() < 6 {
                    let key = self.next;
                    self.next += 1;
                    world.connect(key, fast);
                    self.peers.push((key, fast));
                    if liar {
                        self.liars.insert(key);
                    }
                    let mut items = vec![Item::Bitfield(Bytes::copy_from_slice(&[has & 0xfc]))];
                    if early {
                        items.push(Item::Choked(false));
                    }
                    world.say(key, items);
                }
            }
            Step::Webseed { liar } => {
                if self.peers.len() < 6 {
                    let key = self.next;
                    self.next += 1;
                    world.apply(Event::Webseed { key: PeerKey(key), url: format!("http://{key}/") });
                    // It rejects by name, as a peer with the fast extension.
                    self.peers.push((key, true));
                    self.webseeds.insert(key);
                    self.liars.extend(liar.then_some(key));
                }
            }
            Step::Refuses(n, file) => {
                let key = self.webseeds.iter().nth(n.checked_rem(self.webseeds.len()).unwrap_or(0));
                if let Some(key) = key.map(|key| PeerKey(*key)) {
                    world.apply(Event::Refuses { key, files: vec![FileIndex(file)] });
                }
            }
            Step::Leave(n) => self.leave(n),
            Step::Choke(n, choke) => {
                if let Some(&(key, fast)) = self.peers.get(n.checked_rem(self.peers.len()).unwrap_or(0)) {
                    let mut items = vec![Item::Choked(choke)];
                    if choke && fast {
                        let (its, others) =
                            std::mem::take(&mut world.asked).into_iter().partition(|a| a.peer.0 == key);
                        world.asked = others;
                        items.extend(Vec::into_iter(its).map(|a: Assignment| Item::Rejected(a.block)));
                    }
                    world.say(key, items);
                }
            }
            Step::Have(n, piece) => {
                if let Some(&(key, _)) = self.peers.get(n.checked_rem(self.peers.len()).unwrap_or(0)) {
                    world.say(key, vec![Item::Have(PieceIndex(piece))]);
                }
            }
            Step::Deliver { n, lie } => {
                if let Some(at) = n.checked_rem(world.asked.len()) {
                    let assignment = world.asked.swap_remove(at);
                    world.hand_over(&assignment, !(lie && self.liars.contains(&assignment.peer.0)));
                }
            }
            Step::DeliverLate { n, lie } => {
                if let Some(at) = n.checked_rem(world.late.len()) {
                    let assignment = world.late.swap_remove(at);
                    world.hand_over(&assignment, !(lie && self.liars.contains(&assignment.peer.0)));
                }
            }
            Step::LeaveBehind(n) => {
                if let Some(at) = n.checked_rem(world.asked.len()) {
                    let a = world.asked[at].clone();
                    let data: &'static [u8] = if self.liars.contains(&a.peer.0) { b"bad" } else { b"good" };
                    a.buffer.put(a.block.block, Bytes::from_static(data), a.peer);
                    let at = self.peers.iter().position(|(key, _)| *key == a.peer.0).unwrap();
                    self.leave(at);
                }
            }
            Step::Refuse(n) => {
                if let Some(at) = n.checked_rem(world.asked.len()) {
                    let assignment = world.asked.swap_remove(at);
                    world.say(assignment.peer.0, vec![Item::Rejected(assignment.block)]);
                }
            }
            Step::Hashed { written } => _ = world.hash_one(written),
            Step::Checked { good } => _ = world.check_one(good),
            Step::Open(stream) => {
                if self.streams.insert(stream) {
                    world.open(stream);
                }
            }
            Step::Close(stream) => {
                self.streams.remove(&stream);
                world.apply(Event::Demands(vec![Demand::Close { stream }]));
            }
            Step::Moved(stream, from, run) => {
                world.moved(stream, u64::from(from * PIECE), u64::from(run * PIECE));
            }
            Step::Prefetch { whole, on } => {
                let file = if whole { EVERYTHING } else { FileIndex(0) };
                world.apply(Event::Prefetch { files: vec![file], on });
            }
            Step::Want(mask) => {
                let pieces: Vec<u32> = (0..6).filter(|p| mask & (1 << p) != 0).collect();
                let id = self.next;
                self.next += 1;
                self.reads.insert(id, pieces.iter().map(|p| PieceIndex(*p)).collect());
                world.want(id, &pieces);
            }
            Step::Withdraw(n) => {
                let mut ids: Vec<u64> = self.reads.keys().copied().collect();
                ids.sort_unstable();
                if let Some(at) = n.checked_rem(ids.len()) {
                    self.reads.remove(&ids[at]);
                    world.apply(Event::Demands(vec![Demand::Withdraw { waiter: ids[at] }]));
                }
            }
            Step::Tick(millis) => world.tick(Duration::from_millis(millis)),
        }
        self.settle();
    }

    fn leave(&mut self, n: usize) {
        if let Some(at) = n.checked_rem(self.peers.len()) {
            let (key, _) = self.peers.swap_remove(at);
            self.webseeds.remove(&key);
            self.world.gone(key);
        }
    }

    /// Carries out what was decided, and looks whether all that is wanted is on its way.
    fn settle(&mut self) {
        loop {
            let fx = self.world.take();
            if fx.is_empty() {
                break;
            }
            for effect in fx {
                match effect {
                    Effect::Fail(id, _) => {
                        assert!(
                            self.reads.remove(&id).is_some(),
                            "read {id} failed twice, or after it was withdrawn"
                        );
                    }
                    Effect::Distrust(key, _) => {
                        assert!(self.liars.contains(&key.0), "webseed {} is honest", key.0);
                    }
                    Effect::Disconnect(key, _) => {
                        let honest = self.webseeds.contains(&key.0) && !self.liars.contains(&key.0);
                        assert!(!honest, "webseed {} is honest", key.0);
                        if let Some(at) = self.peers.iter().position(|(k, _)| *k == key.0) {
                            self.leave(at);
                        }
                    }
                    Effect::Wake(piece) => {
                        assert!(self.world.table.is_complete(piece));
                        self.reads.values_mut().for_each(|pieces| pieces.retain(|p| *p != piece));
                    }
                    _ => {}
                }
            }
        }
        self.reads.retain(|_, pieces| {
            pieces.retain(|p| !self.world.table.is_complete(*p));
            !pieces.is_empty()
        });
        let world = &self.world;
        for addr in world.swarm.banned() {
            let key = u64::from(addr.port()) - 10_000;
            assert!(self.liars.contains(&key), "peer {key} is honest");
        }
        let live = world.swarm.live.as_ref().unwrap();
        for piece in self.reads.values().flatten() {
            let hashing = world.hashing.iter().any(|(buffer, _)| buffer.piece() == *piece);
            let checking = world.checking.contains(piece);
            match world.table.state(*piece) {
                PieceState::Unknown => panic!("piece {} is wanted and nobody looks at it", piece.0),
                PieceState::Missing | PieceState::Requested => assert!(live.picker.is_wanted(*piece)),
                PieceState::Verifying => {
                    assert!(hashing || checking, "piece {} is verified by nobody", piece.0)
                }
                PieceState::Complete => {}
            }
        }
        assert_eq!(live.demands.waits().len(), self.reads.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over all states of pieces, whatever peers, readers, disks and liars do: what is wanted is requestable, being
    /// verified, or failed with a reason; nobody honest is banned; and with one honest seed every read is answered.
    #[test]
    fn p3_whatever_happens_reads_are_answered(
        states in prop::collection::vec(0..3u8, 6),
        steps in prop::collection::vec(step(), 0..150),
        check_all in prop::bool::weighted(0.2),
        files in 1..4u64,
    ) {
        let mut world = World::resolving(6, Settings { read_timeout: None, check_all, ..settings() });
        for (piece, state) in (0..).zip(states) {
            let state = [PieceState::Unknown, PieceState::Missing, PieceState::Complete][state as usize];
            world.table.set(PieceIndex(piece), state);
        }
        if files > 1 {
            world.info = torrent_of(&sizes(6, files));
        }
        world.go_live();
        let mut history = History {
            world,
            liars: BTreeSet::new(),
            webseeds: BTreeSet::new(),
            peers: Vec::new(),
            next: 1,
            reads: HashMap::new(),
            streams: BTreeSet::new(),
        };
        for step in steps {
            history.apply(step);
        }
        // One good seed, a disk that works, and time. The others stay, and do nothing more.
        let seed = history.next;
        history.next += 1;
        history.world.seed(seed);
        history.settle();
        for _ in 0..3000 {
            if history.reads.is_empty() {
                break;
            }
            while history.world.check_one(false) || history.world.hash_one(true) {}
            history.settle();
            if let Some(at) = history.world.asked.iter().position(|a| a.peer.0 == seed) {
                let assignment = history.world.asked.swap_remove(at);
                history.world.hand_over(&assignment, true);
            }
            history.apply(Step::Tick(300));
        }
        prop_assert!(history.reads.is_empty(), "left: {:?}", history.reads);
        while history.world.check_one(true) || history.world.hash_one(true) {}
        history.settle();
        prop_assert!(!history.world.swarm.demands().unwrap().is_waiting());
    }
}
