//! The picker under random events: after each of them its invariant holds, and in the end what is wanted arrives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::tests::{KIB, PLENTY, deliver, seed};
use super::*;
use crate::torrent::load::Has;

/// One thing that happens to a picker. The numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Want { piece: u32, id: u64, reads: bool, due: u64 },
    Unwant { piece: u32, id: u64, reads: bool },
    Join { has: u8, webseed: bool },
    Lacks(usize, u8),
    Leave(usize),
    Choke(usize, bool),
    Deliver(usize),
    Refuse(usize),
    Verdict { good: bool, bad: bool },
    Look { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6u32, 0..3u64, any::<bool>(), 0..5000u64)
            .prop_map(|(piece, id, reads, due)| Step::Want { piece, id, reads, due }),
        2 => (0..6u32, 0..3u64, any::<bool>()).prop_map(|(piece, id, reads)| Step::Unwant { piece, id, reads }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(has, webseed)| Step::Join { has, webseed }),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(peer, lacks)| Step::Lacks(peer, lacks)),
        1 => any::<usize>().prop_map(Step::Leave),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(peer, choke)| Step::Choke(peer, choke)),
        8 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<usize>().prop_map(Step::Refuse),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(good, bad)| Step::Verdict { good, bad }),
        3 => (0..20_000u64).prop_map(|millis| Step::Look { millis }),
    ]
}

/// A picker, the requests under way as a peer would see them, and the pieces being hashed.
struct World {
    picker: Picker,
    now: Instant,
    asked: Vec<Assignment>,
    hashing: Vec<PieceIndex>,
    next: u64,
}

impl World {
    fn key(&self, n: usize) -> Option<PeerKey> {
        let keys: Vec<PeerKey> = self.picker.peers.keys().copied().collect();
        keys.get(n.checked_rem(keys.len())?).copied()
    }

    fn schedule(&mut self) {
        let out = self.picker.schedule(self.now);
        for (peer, block) in self.picker.take_void() {
            self.asked.retain(|a| (a.peer, a.block) != (peer, block));
        }
        self.asked.extend(out);
    }

    fn deliver(&mut self, n: usize) {
        let Some(at) = n.checked_rem(self.asked.len()) else { return };
        let assignment = self.asked.swap_remove(at);
        if let Some(whole) = deliver(&mut self.picker, &assignment, self.now).whole {
            self.hashing.push(whole.piece());
        }
    }

    fn apply(&mut self, step: Step) {
        let id = |id, reads| if reads { DemandId::Waiter(id) } else { DemandId::Stream(id) };
        match step {
            Step::Want { piece, id: n, reads, due } => {
                self.picker.want(PieceIndex(piece), id(n, reads), self.now + Duration::from_millis(due));
            }
            Step::Unwant { piece, id: n, reads } => {
                // Some cancels arrive too late at the peer: what it sends is to be harmless.
                self.picker.unwant(PieceIndex(piece), id(n, reads));
            }
            Step::Lacks(n, mask) => {
                if let Some(key) = self.key(n) {
                    let lacks = (0..6).filter(|p| mask & (1 << p) != 0).map(PieceIndex);
                    let taken = self.picker.take_away(key, lacks);
                    self.asked.retain(|a| a.peer != key || !taken.contains(&a.block));
                }
            }
            Step::Join { has, webseed } => {
                if self.picker.peers.len() < 5 {
                    let mut load = if webseed { PeerLoad::webseed(self.now) } else { seed(self.now) };
                    *load.has_mut() = Has::Bits(vec![has]);
                    self.picker.add_peer(PeerKey(self.next), load);
                    self.next += 1;
                }
            }
            Step::Leave(n) => {
                if let Some(key) = self.key(n) {
                    self.picker.remove_peer(key);
                    self.asked.retain(|a| a.peer != key);
                }
            }
            Step::Choke(n, choke) => {
                if let Some(key) = self.key(n) {
                    self.picker.peer(key).unwrap().set_choked(choke);
                    if choke {
                        self.picker.release_all(key);
                        self.asked.retain(|a| a.peer != key);
                    }
                }
            }
            Step::Deliver(n) => self.deliver(n),
            Step::Refuse(n) => {
                if let Some(at) = n.checked_rem(self.asked.len()) {
                    let assignment = self.asked.swap_remove(at);
                    self.picker.rejected(assignment.peer, assignment.block, self.now);
                }
            }
            Step::Verdict { good, bad } => {
                if let Some(piece) = self.hashing.pop() {
                    if good {
                        self.picker.completed(piece);
                    } else {
                        self.picker.failed(piece, bad);
                    }
                }
            }
            Step::Look { millis } => {
                self.now += Duration::from_millis(millis);
                for (peer, blocks) in self.picker.snub(self.now) {
                    self.asked.retain(|a| a.peer != peer || !blocks.contains(&a.block));
                }
                self.picker.settle_old(self.now);
                let hedged = self.picker.hedge(self.now);
                self.asked.extend(hedged);
            }
        }
        self.picker.check().unwrap();
        self.schedule();
        self.picker.check().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened: every wanted piece is requestable, requested or being hashed, nothing is counted
    /// wrongly, and with one good seed everything wanted arrives.
    #[test]
    fn p3_whatever_happened_what_is_wanted_arrives(
        steps in prop::collection::vec(step(), 0..120),
        budget in prop_oneof![Just(40_000u64), Just(200_000), Just(PLENTY)],
    ) {
        let now = Instant::now();
        let mut world = World {
            // The last piece is short.
            picker: Picker::new(Arc::new(Geometry::contiguous(48 * KIB, &[6 * 48 * 1024 - 20_000])), Memory::new(budget)),
            now,
            asked: Vec::new(),
            hashing: Vec::new(),
            next: 0,
        };
        for step in steps {
            world.apply(step);
            prop_assert!(world.picker.orphans.len() <= 6);
            prop_assert!(budget == PLENTY || world.picker.held() <= budget.max(48 * 1024) + 6 * 48 * 1024);
        }
        world.picker.add_peer(PeerKey(u64::MAX), seed(world.now));
        for _ in 0..2000 {
            if !world.picker.is_busy() && world.hashing.is_empty() {
                break;
            }
            // The others say nothing any more.
            world.schedule();
            world.asked.retain(|a| a.peer.0 == u64::MAX);
            world.deliver(0);
            if let Some(piece) = world.hashing.pop() {
                world.picker.completed(piece);
            }
            world.apply(Step::Look { millis: 300 });
        }
        prop_assert!(!world.picker.is_busy(), "left: {:?}", world.picker.pieces.keys());
        prop_assert!(world.picker.open.is_empty() && world.picker.open_always.is_empty());
    }
}
