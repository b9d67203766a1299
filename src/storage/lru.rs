//! Which pieces go when room is needed: those that were read longest ago, over all torrents. Pure.
//!
//! **Goal.** The exact order, at a cost for each piece that doesn't grow with the torrent.
//!
//! **Flow.** A look at all pieces ([`Victims::fill`]) takes out the oldest of those that could go, an eighth of them
//! at least, and keeps them in order; as long as there are any left, nothing else is looked at. One that was read
//! since has a later stamp, and is passed over; and whatever was fetched or read since is younger than all that are
//! kept. So the order is that of a list which is moved about at each read, and reading costs one store.
//!
//! **Not here.** The stamps (the piece table's), and whether a piece is held at the moment at which it is to go.

use crate::metainfo::geometry::PieceIndex;

/// A share of the pieces that could go is kept at each look…
const SHARE: usize = 8;
/// …but no more than this, in pieces: what is kept may be out of date before it is used.
const MOST: usize = 65_536;

/// A piece that could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Victim {
    /// When it was read last; 0 for never.
    pub stamp: u64,
    /// The torrent's number, never used twice: a stale victim is nobody's.
    pub slot: u32,
    /// The piece.
    pub piece: PieceIndex,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Victims {
    /// The oldest last.
    queue: Vec<Victim>,
}

impl Victims {
    /// Whether a look is due.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the oldest of those that could go, at least `most` of them if there are so many. Goes through them
    /// twice, and keeps no more than twice what it takes.
    pub fn fill(&mut self, all: impl Iterator<Item = Victim> + Clone, most: usize) {
        let count = all.clone().count();
        let keep = (count / SHARE).min(MOST).max(most).min(count);
        self.queue.clear();
        if keep == 0 {
            return;
        }
        let mut oldest = Vec::with_capacity((2 * keep).min(count));
        let cut = |oldest: &mut Vec<Victim>| {
            if oldest.len() > keep {
                oldest.select_nth_unstable(keep - 1);
                oldest.truncate(keep);
            }
        };
        for victim in all {
            if oldest.len() == 2 * keep {
                cut(&mut oldest);
            }
            oldest.push(victim);
        }
        cut(&mut oldest);
        oldest.sort_unstable_by(|a, b| b.cmp(a));
        oldest.shrink_to_fit();
        self.queue = oldest;
    }

    /// The oldest, for which `stamp` still gives the same: it says when the piece was read last, and `None` if it
    /// can't go.
    pub fn pop(&mut self, stamp: impl Fn(Victim) -> Option<u64>) -> Option<Victim> {
        while let Some(victim) = self.queue.pop() {
            if stamp(victim) == Some(victim.stamp) {
                return Some(victim);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Read(u32),
        Fetch(u32),
        Evict,
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]
        #[test]
        fn s2_the_least_recently_read_goes_first_whatever_was_written_since(
            ops in proptest::collection::vec(
                prop_oneof![
                    4 => (0..40u32).prop_map(Op::Read),
                    4 => (0..40u32).prop_map(Op::Fetch),
                    5 => Just(Op::Evict),
                ],
                1..200,
            ),
            most in 1..5usize,
        ) {
            let mut clock = 0;
            let mut stamps: BTreeMap<u32, u64> = BTreeMap::new();
            let mut victims = Victims::default();
            for op in ops {
                clock += 1;
                match op {
                    Op::Read(piece) => _ = stamps.get_mut(&piece).map(|stamp| *stamp = clock),
                    Op::Fetch(piece) => _ = stamps.entry(piece).or_insert(clock),
                    Op::Evict => {
                        let stamp = |v: Victim| stamps.get(&v.piece.0).copied();
                        let mut found = victims.pop(stamp);
                        if found.is_none() {
                            let victim = |(piece, stamp): (&u32, &u64)| Victim { stamp: *stamp, slot: 1, piece: PieceIndex(*piece) };
                            victims.fill(stamps.iter().map(victim), most);
                            found = victims.pop(stamp);
                        }
                        let oldest = stamps.iter().min_by_key(|(_, stamp)| **stamp).map(|(piece, _)| *piece);
                        prop_assert_eq!(found.map(|v| v.piece.0), oldest);
                        if let Some(piece) = oldest {
                            stamps.remove(&piece);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_look_is_enough_for_a_share_of_all() {
        let mut victims = Victims::default();
        let all = |n: u32| {
            (0..n).map(move |piece| Victim { stamp: u64::from(n - piece), slot: 1, piece: PieceIndex(piece) })
        };
        // A row is how many there are, how many are asked for, and how many of the oldest are kept.
        for (n, most, kept) in
            [(0, 5, 0), (3, 5, 3), (800, 5, 100), (800, 300, 300), (1_000_000, 1, MOST as u32)]
        {
            victims.fill(all(n), most);
            let first = victims.pop(|v| Some(v.stamp));
            assert_eq!(first.map(|v| v.piece.0), n.checked_sub(1));
            let mut count = u32::from(first.is_some());
            while victims.pop(|v| Some(v.stamp)).is_some() {
                count += 1;
            }
            assert_eq!(count, kept, "{n} {most}");
        }
        victims.fill(all(10), 10);
        assert!(victims.pop(|_| None).is_none() && victims.is_empty(), "none of them can go");
    }
}
