//! What is fetched beyond what is read: the rarest pieces first, among equally rare ones at random. Pure.
//!
//! Which pieces are wanted is told by files; what a file adds or takes away costs as many steps as it has pieces.
//! The order by rarity is there only while something is fetched this way: an array of pieces sorted by how many
//! peers have each, kept sorted by swaps, so that a `have` costs one step at a million pieces, too. Seeders aren't
//! counted: one that joins or leaves changes no order.
//!
//! The [`super::picker::Picker`] is given a few pieces at a time ([`Background::pick`]), as many as peers have
//! nothing better to do for; they are due so late that everything a reader wants goes first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::load::Has;
use super::table::{PieceState, PieceTable};
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::peer::PeerKey;

/// What is fetched beyond what is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing beyond what is read and its read-ahead.
    #[default]
    None,
    /// A file that was read from is fetched whole, in the background, also after it was closed.
    File,
    /// The whole torrent, in the background.
    All,
}

/// Beyond every deadline of a reader.
const LATER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nothing new is begun for so long after data could not be written: trying at once would only fetch it again.
const PAUSE: Duration = Duration::from_secs(30);
/// Pieces looked at for one peer in one go, by rarity and then by number: a peer that has few of a million is looked
/// through over several goes.
const LOOK: usize = 128;
/// More peers than this having a piece makes it no less rare.
const COMMON: u8 = 250;

/// See the module's text.
#[derive(Debug)]
pub struct Background {
    pieces: u32,
    /// Files that are wanted, and their pieces.
    files: BTreeMap<FileIndex, Range<u32>>,
    /// How many wanted files a piece at the edge of one belongs to: several may share it.
    edges: HashMap<u32, u32>,
    order: Option<Order>,
    /// Handed to the picker and not complete.
    taken: BTreeSet<PieceIndex>,
    cursors: HashMap<PeerKey, Cursor>,
    /// Changes when there may be something for peers that had nothing.
    version: u64,
    paused: Option<Instant>,
    random: u64,
}

/// How far a peer was looked through by number.
#[derive(Debug, Default, Clone, Copy)]
struct Cursor {
    next: u32,
    looked: u32,
    version: u64,
    /// The piece that it got last.
    last: Option<u32>,
}

impl Background {
    /// For a torrent of `pieces` pieces. `seed` makes one client's order differ from another's.
    pub fn new(pieces: u32, seed: u64) -> Self {
        Self {
            pieces,
            files: BTreeMap::new(),
            edges: HashMap::new(),
            order: None,
            taken: BTreeSet::new(),
            cursors: HashMap::new(),
            version: 1,
            paused: None,
            random: seed,
        }
    }

    /// When a piece of this kind is due: after everything that a reader wants.
    pub fn due(now: Instant) -> Instant {
        now.checked_add(LATER).unwrap_or(now)
    }

    /// Whether anything is fetched this way, or would be if a peer had it.
    pub fn is_active(&self) -> bool {
        !self.taken.is_empty() || self.order.as_ref().is_some_and(|o| o.parked() < self.pieces)
    }

    /// Whether this file is wanted whole.
    pub fn has_file(&self, file: FileIndex) -> bool {
        self.files.contains_key(&file)
    }

    /// The files that are wanted whole, in ascending order.
    pub fn files(&self) -> impl Iterator<Item = FileIndex> + '_ {
        self.files.keys().copied()
    }

    /// Pieces handed out and not complete.
    pub fn taken(&self) -> &BTreeSet<PieceIndex> {
        &self.taken
    }

    /// A file is wanted whole. `peers` is what those who aren't seeders have.
    pub fn add<'a>(
        &mut self,
        file: FileIndex,
        pieces: Range<u32>,
        table: &PieceTable,
        peers: impl Iterator<Item = &'a Has>,
    ) {
        if pieces.is_empty() || self.files.insert(file, pieces.clone()).is_some() {
            return;
        }
        for edge in edges(&pieces) {
            *self.edges.entry(edge).or_default() += 1;
        }
        self.version += 1;
        let order = match &mut self.order {
            Some(order) => order,
            none => none.insert(Order::new(self.pieces, peers, &mut self.random)),
        };
        for piece in pieces {
            if wanting(table.state(PieceIndex(piece))) && !self.taken.contains(&PieceIndex(piece)) {
                order.enter(piece, &mut self.random);
            }
        }
    }

    /// Files are no longer wanted whole. Returns the pieces to be taken back from the picker.
    pub fn remove(&mut self, files: &[FileIndex]) -> Vec<PieceIndex> {
        let removed: Vec<Range<u32>> = files.iter().filter_map(|file| self.files.remove(file)).collect();
        if removed.is_empty() {
            return Vec::new();
        }
        for edge in removed.iter().flat_map(edges) {
            if let Some(count) = self.edges.get_mut(&edge) {
                *count -= 1;
                if *count == 0 {
                    self.edges.remove(&edge);
                }
            }
        }
        // What another file has a part in stays wanted. Looked up in all of them at once: many may go together.
        let mut left: Vec<&Range<u32>> = self.files.values().collect();
        left.sort_unstable_by_key(|range| range.start);
        let mut covered: Vec<Range<u32>> = Vec::new();
        for range in left {
            match covered.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => covered.push(range.clone()),
            }
        }
        let is_kept = |piece: &u32| {
            let after = covered.partition_point(|range| range.start <= *piece);
            after.checked_sub(1).and_then(|at| covered.get(at)).is_some_and(|range| range.contains(piece))
        };
        let gone: Vec<u32> = removed.into_iter().flatten().filter(|piece| !is_kept(piece)).collect();
        if let Some(order) = &mut self.order {
            gone.iter().for_each(|p| order.park(*p));
        }
        let taken: Vec<PieceIndex> =
            gone.into_iter().map(PieceIndex).filter(|p| self.taken.remove(p)).collect();
        if self.files.is_empty() {
            self.order = None;
        }
        taken
    }

    /// A piece is here.
    pub fn completed(&mut self, piece: PieceIndex) {
        self.taken.remove(&piece);
        if let Some(order) = &mut self.order {
            order.park(piece.0);
        }
    }

    /// A piece that was complete, or handed out, is to be fetched after all, later.
    pub fn put_back(&mut self, piece: PieceIndex) {
        self.taken.remove(&piece);
        if self.is_wanted(piece)
            && let Some(order) = &mut self.order
        {
            self.version += 1;
            order.enter(piece.0, &mut self.random);
        }
    }

    /// The data of a piece could not be written: nothing new is begun for a while.
    pub fn failed(&mut self, piece: PieceIndex, now: Instant) {
        self.put_back(piece);
        self.paused = Some(now + PAUSE);
    }

    /// Whether a file wants this piece.
    pub fn is_wanted(&self, piece: PieceIndex) -> bool {
        self.edges.contains_key(&piece.0) || self.files.values().any(|f| f.contains(&piece.0))
    }

    /// A peer that isn't a seeder has these pieces from now on, or no longer. Costs as many steps as there are.
    pub fn count(&mut self, has: &Has, more: bool) {
        if let (Some(order), Has::Bits(_)) = (&mut self.order, has) {
            (0..self.pieces).filter(|p| has.has(PieceIndex(*p))).for_each(|p| order.count(p, more));
        }
        self.version += 1;
    }

    /// A peer that isn't a seeder has this piece, too.
    pub fn have(&mut self, piece: PieceIndex) {
        if let Some(order) = &mut self.order {
            order.count(piece.0, true);
        }
        self.version += 1;
    }

    /// A peer that isn't a seeder has this piece no longer.
    pub fn have_not(&mut self, piece: PieceIndex) {
        if let Some(order) = &mut self.order {
            order.count(piece.0, false);
        }
        self.version += 1;
    }

    /// A peer is gone.
    pub fn forget(&mut self, peer: PeerKey) {
        self.cursors.remove(&peer);
    }

    /// What was handed out and that `servable` says no peer can send now goes back: others may come first.
    pub fn recall(&mut self, servable: impl Fn(PieceIndex) -> bool) -> Vec<PieceIndex> {
        let gone: Vec<PieceIndex> = self.taken.iter().copied().filter(|p| !servable(*p)).collect();
        gone.iter().for_each(|p| self.put_back(*p));
        gone
    }

    /// The next piece to fetch from a peer that has nothing better to do; `None` if it has none of what is wanted,
    /// as far as looked. With `runs` the one after its last, if that is wanted: a webseed sends both in one response.
    pub fn pick(&mut self, peer: PeerKey, has: &Has, runs: bool, now: Instant) -> Option<PieceIndex> {
        if self.paused.is_some_and(|until| now < until) {
            return None;
        }
        let order = self.order.as_mut()?;
        let last = if runs { self.cursors.get(&peer).and_then(|cursor| cursor.last) } else { None };
        let after = last.and_then(|last| last.checked_add(1));
        let after = after.filter(|next| order.is_wanted(*next) && has.has(PieceIndex(*next)));
        let found = after.or_else(|| order.rarest().take(LOOK).find(|p| has.has(PieceIndex(*p))));
        let found = found.or_else(|| {
            if matches!(has, Has::All | Has::None) {
                return None;
            }
            let cursor = self.cursors.entry(peer).or_default();
            if cursor.version != self.version {
                *cursor = Cursor { looked: 0, version: self.version, ..*cursor };
            }
            for _ in 0..LOOK {
                if cursor.looked >= self.pieces {
                    return None;
                }
                cursor.looked += 1;
                let piece = cursor.next;
                cursor.next = (piece + 1) % self.pieces.max(1);
                if has.has(PieceIndex(piece)) && order.is_wanted(piece) {
                    return Some(piece);
                }
            }
            None
        });
        let piece = found?;
        if runs {
            self.cursors.entry(peer).or_default().last = Some(piece);
        }
        order.park(piece);
        self.taken.insert(PieceIndex(piece));
        Some(PieceIndex(piece))
    }

    /// Looks through everything for what should hold; an error says what doesn't.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        self.order.as_ref().map_or(Ok(()), Order::check)
    }
}

/// Whether a piece in this state is to be fetched. What is being verified may turn out bad, and then its torrent
/// says so.
fn wanting(state: PieceState) -> bool {
    match state {
        PieceState::Unknown | PieceState::Missing | PieceState::Requested => true,
        PieceState::Verifying | PieceState::Complete => false,
    }
}

/// The first and the last of some pieces, once each.
fn edges(pieces: &Range<u32>) -> impl Iterator<Item = u32> + use<> {
    let (first, last) = (pieces.start, pieces.end.saturating_sub(1));
    std::iter::once(first).chain((first != last).then_some(last))
}

/// Pieces by rarity.
#[derive(Debug)]
struct Order {
    /// All pieces, sorted by level: level 0 is parked, level n+1 is had by n peers.
    pieces: Vec<u32>,
    /// Where each piece stands in it.
    place: Vec<u32>,
    /// Peers that have each, seeders not counted.
    had_by: Vec<u8>,
    wanted: Vec<bool>,
    /// Where each level begins.
    starts: Vec<u32>,
}

impl Order {
    /// All pieces parked.
    fn new<'a>(pieces: u32, peers: impl Iterator<Item = &'a Has>, random: &mut u64) -> Self {
        let mut had_by = vec![0u8; pieces as usize];
        for has in peers.filter(|has| matches!(has, Has::Bits(_))) {
            for (piece, count) in had_by.iter_mut().enumerate() {
                *count = count.saturating_add(u8::from(has.has(PieceIndex(piece as u32))));
            }
        }
        let mut order: Vec<u32> = (0..pieces).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, below(random, at + 1));
        }
        let mut place = vec![0; order.len()];
        for (at, piece) in order.iter().enumerate() {
            place[*piece as usize] = at as u32;
        }
        let mut starts = vec![pieces; usize::from(COMMON) + 3];
        starts[0] = 0;
        Self { pieces: order, place, had_by, wanted: vec![false; pieces as usize], starts }
    }

    /// How many pieces aren't candidates.
    fn parked(&self) -> u32 {
        self.starts[1]
    }

    fn rarest(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces[self.parked() as usize..].iter().copied()
    }

    fn is_wanted(&self, piece: u32) -> bool {
        self.wanted.get(piece as usize).copied().unwrap_or(false)
    }

    fn level(&self, piece: u32) -> usize {
        usize::from(self.had_by[piece as usize].min(COMMON)) + 1
    }

    fn swap(&mut self, a: u32, b: u32) {
        self.pieces.swap(a as usize, b as usize);
        self.place[self.pieces[a as usize] as usize] = a;
        self.place[self.pieces[b as usize] as usize] = b;
    }

    /// Moves a piece from one level to another: a step for each level between.
    fn shift(&mut self, piece: u32, from: usize, to: usize) {
        for level in from..to {
            self.starts[level + 1] -= 1;
            self.swap(self.place[piece as usize], self.starts[level + 1]);
        }
        for level in (to..from).rev() {
            self.swap(self.place[piece as usize], self.starts[level + 1]);
            self.starts[level + 1] += 1;
        }
    }

    fn enter(&mut self, piece: u32, random: &mut u64) {
        if piece as usize >= self.wanted.len() || std::mem::replace(&mut self.wanted[piece as usize], true) {
            return;
        }
        let level = self.level(piece);
        self.shift(piece, 0, level);
        // Among equals at random: all clients of a swarm that begin with the same piece help nobody.
        let (start, end) = (self.starts[level], self.starts[level + 1]);
        let other = start + below(random, (end - start) as usize) as u32;
        self.swap(self.place[piece as usize], other);
    }

    fn park(&mut self, piece: u32) {
        if self.is_wanted(piece) {
            self.wanted[piece as usize] = false;
            self.shift(piece, self.level(piece), 0);
        }
    }

    fn count(&mut self, piece: u32, more: bool) {
        let Some(count) = self.had_by.get(piece as usize).copied() else { return };
        let before = self.level(piece);
        self.had_by[piece as usize] = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
        if self.is_wanted(piece) {
            self.shift(piece, before, self.level(piece));
        }
    }

    fn check(&self) -> Result<(), String> {
        for (at, piece) in self.pieces.iter().enumerate() {
            let level = if self.wanted[*piece as usize] { self.level(*piece) } else { 0 };
            let place = self.place[*piece as usize] as usize;
            let within = self.starts[level] as usize..self.starts[level + 1] as usize;
            if place != at || !within.contains(&at) {
                return Err(format!("piece {piece} of level {level} stands at {at}, not within {within:?}"));
            }
        }
        Ok(())
    }
}

/// A number below `bound`, from a generator that needs to be no better than a shuffle needs it (SplitMix64).
fn below(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn bits(pieces: &[u32]) -> Has {
        let mut has = Has::None;
        pieces.iter().for_each(|p| has.add(PieceIndex(*p), 1 << 20));
        has
    }

    fn missing(pieces: u32) -> PieceTable {
        PieceTable::new(pieces, PieceState::Missing)
    }

    fn all(pieces: u32, seed: u64, peers: &[Has]) -> Background {
        let mut background = Background::new(pieces, seed);
        background.add(FileIndex(0), 0..pieces, &missing(pieces), peers.iter());
        background
    }

    fn drain(background: &mut Background, has: &Has, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| background.pick(PeerKey(1), has, false, now)).map(|p| p.0).collect()
    }

    #[test]
    fn a_webseed_gets_pieces_that_follow_each_other() {
        let now = Instant::now();
        let mut background = all(100, 7, &[bits(&[40])]);
        let pick = |background: &mut Background| background.pick(PeerKey(1), &Has::All, true, now).unwrap().0;
        let first = pick(&mut background);
        let rest: Vec<u32> = (0..4.min(99 - first)).map(|_| pick(&mut background)).collect();
        assert!(rest.into_iter().eq((first + 1..).take(4.min(99 - first) as usize)), "after {first}");
        // Until it comes upon one that isn't wanted any more, or the end.
        let all: BTreeSet<u32> =
            std::iter::from_fn(|| background.pick(PeerKey(1), &Has::All, true, now)).map(|p| p.0).collect();
        assert_eq!(all.len() as u32, 99 - 4.min(99 - first));
    }

    #[test]
    fn the_rarest_go_first_and_seeders_do_not_count() {
        let now = Instant::now();
        let peers = [bits(&[0, 1, 2, 3, 4]), bits(&[0, 1, 2]), bits(&[0])];
        let mut background = all(6, 7, &peers);
        // Had by: 5 nobody; 3, 4 one; 1, 2 two; 0 three.
        let mut order = drain(&mut background, &Has::All, now);
        order[1..3].sort_unstable();
        order[3..5].sort_unstable();
        assert_eq!(order, [5, 3, 4, 1, 2, 0]);
        assert!(background.is_active(), "they are on their way");
        (0..6).for_each(|p| background.completed(PieceIndex(p)));
        assert!(!background.is_active());
        // A have later on: what becomes commoner goes later; so does what a peer took along come earlier.
        let mut background = all(3, 7, &[]);
        background.have(PieceIndex(1));
        background.have(PieceIndex(1));
        background.have(PieceIndex(2));
        background.count(&bits(&[1]), false);
        background.count(&bits(&[1]), true);
        background.have(PieceIndex(0));
        background.have_not(PieceIndex(0));
        background.check().unwrap();
        assert_eq!(drain(&mut background, &Has::All, now), [0, 2, 1]);
    }

    #[test]
    fn equally_rare_ones_go_in_an_order_of_ones_own() {
        let now = Instant::now();
        let orders: BTreeSet<Vec<u32>> =
            (0..8).map(|seed| drain(&mut all(50, seed, &[]), &Has::All, now)).collect();
        assert_eq!(orders.len(), 8);
        assert!(orders.iter().all(|o| o.iter().collect::<BTreeSet<_>>().len() == 50));
    }

    #[test]
    fn a_peer_that_has_few_of_many_is_asked_for_what_it_has() {
        let now = Instant::now();
        let mut background = all(100_000, 3, &[]);
        let has = bits(&[77, 99_998]);
        let mut found = BTreeSet::new();
        for _ in 0..2000 {
            found.extend(background.pick(PeerKey(5), &has, false, now));
        }
        assert_eq!(found, BTreeSet::from([PieceIndex(77), PieceIndex(99_998)]));
        // It isn't looked through for ever: something has to change first.
        let looked = background.cursors[&PeerKey(5)].looked;
        assert!(background.pick(PeerKey(5), &has, false, now).is_none());
        assert_eq!(background.cursors[&PeerKey(5)].looked, looked);
        background.put_back(PieceIndex(77));
        let again = (0..2000).find_map(|_| background.pick(PeerKey(5), &has, false, now));
        assert_eq!(again, Some(PieceIndex(77)));
    }

    #[test]
    fn p1_a_piece_shared_by_two_files_stays_wanted_for_the_other() {
        let now = Instant::now();
        let table = missing(10);
        let mut background = Background::new(10, 1);
        // Three files: the second lies within one piece, which the first and the third share.
        for (file, pieces) in [(0, 0..4), (1, 3..4), (2, 3..8)] {
            background.add(FileIndex(file), pieces, &table, std::iter::empty());
        }
        assert!(background.remove(&[FileIndex(0)]).is_empty());
        assert!(background.is_wanted(PieceIndex(3)) && !background.is_wanted(PieceIndex(2)));
        background.remove(&[FileIndex(2)]);
        assert_eq!(drain(&mut background, &Has::All, now), [3]);
        assert_eq!(background.remove(&[FileIndex(1)]), [PieceIndex(3)]);
        assert!(!background.is_active());
    }

    /// Taken out one by one, each would be held against all others: at a hundred thousand files that is hours.
    #[test]
    fn p1_many_files_go_at_once() {
        let now = Instant::now();
        let files = 100_000;
        let table = missing(files);
        let mut background = Background::new(files, 1);
        let whole = FileIndex(u32::MAX);
        background.add(whole, 0..files, &table, std::iter::empty());
        for file in 0..files - 1 {
            // Each shares a piece with the next.
            background.add(FileIndex(file), file..file + 2, &table, std::iter::empty());
        }
        let picked: Vec<PieceIndex> =
            (0..10).filter_map(|_| background.pick(PeerKey(1), &Has::All, false, now)).collect();
        assert!(background.remove(&[whole]).is_empty(), "the files have all of it");
        let all_but_two: Vec<FileIndex> =
            background.files().filter(|file| ![7, 70_000].contains(&file.0)).collect();
        let mut gone = background.remove(&all_but_two);
        background.check().unwrap();
        gone.sort_unstable();
        let kept = [7, 8, 70_000, 70_001].map(PieceIndex);
        let mut want: Vec<_> = picked.iter().copied().filter(|piece| !kept.contains(piece)).collect();
        want.sort_unstable();
        assert_eq!(gone, want, "what was handed out comes back once");
        let mut left = drain(&mut background, &Has::All, now);
        left.extend(picked.iter().filter(|piece| kept.contains(piece)).map(|piece| piece.0));
        left.sort_unstable();
        assert_eq!(left, kept.map(|piece| piece.0));
    }

    #[test]
    fn p1_a_change_costs_what_changed() {
        // Steps are swaps: counted by how far a piece moves, which doesn't depend on how many there are. What does is
        // seen in the time: at a million pieces this would take hours if a change looked at all of them.
        let now = Instant::now();
        for pieces in [1_000, 333_333, 1_000_000] {
            let mut background = all(pieces, 1, &[]);
            for n in 0..20_000u32 {
                background.have(PieceIndex(n % 500));
                background.have(PieceIndex(n % 700));
                background.have_not(PieceIndex(n % 700));
                if let Some(piece) = background.pick(PeerKey(1), &Has::All, false, now) {
                    background.put_back(piece);
                }
            }
            background.check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_written_or_sent_goes_back() {
        let now = Instant::now();
        let mut background = all(4, 1, &[]);
        let first = background.pick(PeerKey(1), &Has::All, false, now).unwrap();
        background.failed(first, now);
        assert!(background.pick(PeerKey(1), &Has::All, false, now).is_none());
        let later = now + PAUSE;
        let again = background.pick(PeerKey(1), &Has::All, false, later).unwrap();
        assert_eq!(background.recall(|_| true), []);
        assert_eq!(background.recall(|_| false), [again]);
        assert!(background.taken().is_empty());
        assert_eq!(drain(&mut background, &Has::All, later).len(), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_order_holds_whatever_happens(steps in prop::collection::vec((0..8u8, 0..30u32), 0..200)) {
            let now = Instant::now();
            let table = missing(30);
            let mut background = Background::new(30, 9);
            for (what, n) in steps {
                let piece = PieceIndex(n);
                match what {
                    0 => background.add(FileIndex(n % 4), n.min(20)..n.min(20) + 10, &table, std::iter::empty()),
                    1 => _ = background.remove(&[FileIndex(n % 4)]),
                    2 => background.have(piece),
                    3 => background.count(&bits(&[n, (n * 7) % 30]), n % 2 == 0),
                    4 => _ = background.pick(PeerKey(u64::from(n % 3)), &Has::All, false, now),
                    5 => background.completed(piece),
                    6 => background.have_not(piece),
                    _ => background.put_back(piece),
                }
                prop_assert_eq!(background.check(), Ok(()));
            }
        }
    }
}
