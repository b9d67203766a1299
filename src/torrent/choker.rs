//! The choker: which interested peers may ask us for blocks. Pure.
//!
//! While we fetch, those who give us most (BEP 3); a peer that stopped giving though we ask it doesn't count as one that
//! gives, and one slot goes round for half a minute each regardless of merit, so that a newcomer can show what it has.
//! When we have everything, turns: who is let in stays until it took a fair portion, and then whoever waited longest is
//! next. So a peer gets enough in one go to be of use to others, and nobody waits for ever.
//!
//! How many are let in follows from what they take ([`slots`]): as long as each further one still gets a useful rate,
//! there is room for more. Who is in and takes nothing, since we have nothing for it just now, is in the way of nobody.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use crate::peer::PeerKey;

/// Peers let in at first, as long as nothing is known of the line.
pub const SLOTS_FIRST: usize = 8;
/// Never fewer: with one or two, a peer that takes nothing would hold up all the others.
const SLOTS_MIN: usize = 4;
/// Never more: each costs memory for requests and blocks on their way.
const SLOTS_MAX: usize = 40;
/// The n-th peer is worth its slot if it takes n times this many bytes per second.
const USEFUL: u64 = 2 << 10;
/// How often the choice is made anew (BEP 3: every ten seconds).
pub const ROUND: Duration = Duration::from_secs(10);
/// How long the optimistic slot stays with a peer (BEP 3: thirty seconds).
const OPTIMISTIC: Duration = Duration::from_secs(30);
/// Of three turns of the optimistic slot, two go to those who never were let in, if there are any.
const NEWCOMERS: u32 = 3;
/// A turn lasts so long at least: slow start and a round trip or two must not be most of it…
const TURN_MIN: Duration = Duration::from_secs(30);
/// …until the peer has taken this much…
const TURN_BYTES: u64 = 16 << 20;
/// …or so much time went by.
const TURN_MAX: Duration = Duration::from_secs(120);

/// An interested peer, and what the choice hangs on.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The peer.
    pub key: PeerKey,
    /// Bytes per second it gives us; 0 for one that stopped giving.
    pub gives: u64,
    /// Bytes per second it took of us since the last round.
    pub takes: u64,
    /// Bytes it has taken since it was let in.
    pub taken: u64,
    /// Since when it is connected.
    pub since: Instant,
    /// When it was last let in, if ever.
    pub let_in: Option<Instant>,
    /// Whether it is in now.
    pub is_in: bool,
}

impl Candidate {
    /// Since when it has waited, about: its last turn began then, or it came then.
    fn waits_since(&self) -> (Instant, PeerKey) {
        (self.let_in.unwrap_or(self.since), self.key)
    }

    /// Whose turn it is, if turns are all that counts: first those in the middle of theirs, then those who wait, then
    /// those whose turn is `over`.
    fn place(&self, over: bool) -> u8 {
        match (self.is_in, over) {
            (true, false) => 0,
            (false, _) => 1,
            (true, true) => 2,
        }
    }

    fn has_had_its_turn(&self, now: Instant) -> bool {
        let lasted = self.let_in.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        lasted >= TURN_MIN && (self.taken >= TURN_BYTES || self.takes == 0 || lasted >= TURN_MAX)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Choker {
    slots: usize,
    optimistic: Option<(PeerKey, Instant)>,
    /// Turns of the optimistic slot so far.
    turns: u32,
}

impl Default for Choker {
    fn default() -> Self {
        Self { slots: SLOTS_FIRST, optimistic: None, turns: 0 }
    }
}

impl Choker {
    /// How many peers may be in until the next round.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The peers to unchoke until the next round, of those that are interested; everyone else is choked.
    pub fn choose(&mut self, mut candidates: Vec<Candidate>, seeding: bool, now: Instant) -> Vec<PeerKey> {
        self.slots = slots(&candidates, self.slots);
        if candidates.len() <= self.slots {
            self.optimistic = None;
            return candidates.into_iter().map(|c| c.key).collect();
        }
        if seeding {
            self.optimistic = None;
            candidates.sort_by_key(|c| (c.place(c.has_had_its_turn(now)), c.waits_since()));
            return candidates.into_iter().take(self.slots).map(|c| c.key).collect();
        }
        candidates.sort_by_key(|c| (Reverse(c.gives), !c.is_in, c.waits_since()));
        let givers = candidates.iter().take(self.slots - 1).take_while(|c| c.gives > 0).count();
        let mut rest = candidates.split_off(givers);
        let mut chosen: Vec<PeerKey> = candidates.into_iter().map(|c| c.key).collect();
        // Those who give nothing take turns at what is left, each for as long as the optimistic slot stays.
        let lucky = self.lucky(&rest, now);
        rest.retain(|c| Some(c.key) != lucky);
        let over = |c: &Candidate| c.let_in.is_some_and(|at| now.saturating_duration_since(at) >= OPTIMISTIC);
        rest.sort_by_key(|c| (c.place(over(c)), c.waits_since()));
        chosen.extend(lucky);
        let left = self.slots - chosen.len();
        chosen.extend(rest.into_iter().take(left).map(|c| c.key));
        chosen
    }

    /// Who has the optimistic slot.
    fn lucky(&mut self, rest: &[Candidate], now: Instant) -> Option<PeerKey> {
        let stays = self.optimistic.filter(|(key, at)| {
            now.saturating_duration_since(*at) < OPTIMISTIC && rest.iter().any(|c| c.key == *key)
        });
        if let Some((key, _)) = stays {
            return Some(key);
        }
        self.turns = self.turns.wrapping_add(1);
        let newcomers_first = !self.turns.is_multiple_of(NEWCOMERS);
        let waits = |c: &&Candidate| (newcomers_first && c.let_in.is_some(), c.waits_since());
        let lucky =
            rest.iter().filter(|c| !c.is_in).min_by_key(waits).or_else(|| rest.iter().min_by_key(waits));
        self.optimistic = lucky.map(|c| (c.key, now));
        lucky.map(|c| c.key)
    }
}

/// How many may be in, if so many may be `now`: as many as take enough for there to be so many, and one to see whether
/// it does, too. While all of them do, as many more as would if they all shared what these take. Those that take nothing
/// aren't counted: for each of them there is one more, or the line would be idle with everybody waiting at it.
fn slots(candidates: &[Candidate], now: usize) -> usize {
    let mut takes: Vec<u64> = candidates.iter().filter(|c| c.is_in).map(|c| c.takes).collect();
    if takes.len() < now.min(candidates.len()) {
        // Not all that may be in were: they say nothing of the line.
        return now;
    }
    let all_in = takes.len();
    takes.retain(|rate| *rate > 0);
    let len = takes.len() as u64;
    takes.sort_unstable_by_key(|rate| Reverse(*rate));
    let worth = takes.iter().zip(1..).take_while(|(rate, n)| **rate >= n * USEFUL).count() as u64;
    let all: u64 = takes.iter().sum();
    let next = match worth {
        worth if worth < len => worth + 1,
        _ if all / (len + 1) >= len * USEFUL => (all / USEFUL).isqrt().clamp(len + 1, len + len / 2 + 1),
        _ => len,
    };
    (next as usize).max(SLOTS_MIN).saturating_add(all_in - takes.len()).min(SLOTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn candidate(key: u64, since: Instant) -> Candidate {
        Candidate { key: PeerKey(key), gives: 0, takes: 0, taken: 0, since, let_in: None, is_in: false }
    }

    /// Peers that all want what we have: plays rounds, with what each gives and how much a round's line carries.
    struct World {
        choker: Choker,
        peers: Vec<Candidate>,
        now: Instant,
        /// Bytes per second of our line.
        line: u64,
        /// Rounds that each was in.
        rounds: Vec<u32>,
    }

    impl World {
        fn new(n: u64, line: u64) -> Self {
            let now = Instant::now();
            let peers: Vec<Candidate> = (0..n).map(|key| candidate(key, now)).collect();
            Self { choker: Choker::default(), rounds: vec![0; peers.len()], peers, now, line }
        }

        fn round(&mut self, seeding: bool) -> Vec<PeerKey> {
            let chosen = self.choker.choose(self.peers.clone(), seeding, self.now);
            let share = self.line / chosen.len().max(1) as u64;
            for (peer, rounds) in self.peers.iter_mut().zip(&mut self.rounds) {
                let is_in = chosen.contains(&peer.key);
                if is_in && !peer.is_in {
                    (peer.let_in, peer.taken) = (Some(self.now), 0);
                }
                peer.is_in = is_in;
                peer.takes = if is_in { share } else { 0 };
                peer.taken += peer.takes * ROUND.as_secs();
                *rounds += u32::from(is_in);
            }
            self.now += ROUND;
            chosen
        }
    }

    #[test]
    fn who_gives_most_is_in_and_one_more() {
        let mut world = World::new(30, 1 << 20);
        for peer in &mut world.peers {
            peer.gives = peer.key.0 * 1000;
        }
        for _ in 0..20 {
            let chosen = world.round(false);
            let best = chosen.len() as u64 - 1;
            assert!((30 - best..30).all(|key| chosen.contains(&PeerKey(key))), "{chosen:?}");
        }
        let lucky = world.rounds[..10].iter().filter(|rounds| **rounds > 0).count();
        assert!(lucky >= 6, "the optimistic slot goes round: {:?}", world.rounds);
    }

    #[test]
    fn the_optimistic_slot_stays_for_half_a_minute() {
        let mut world = World::new(20, 20 << 10);
        for peer in &mut world.peers[8..] {
            peer.gives = 1 << 20;
        }
        world.choker.slots = 4;
        let mut seen: Vec<u64> = Vec::new();
        for _ in 0..12 {
            seen.push(world.round(false)[3].0);
        }
        seen.chunks(3).for_each(|turn| assert!(turn.iter().all(|key| *key == turn[0]), "{seen:?}"));
        seen.dedup();
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn newcomers_come_first_but_not_always() {
        let mut world = World::new(12, 20 << 10);
        world.choker.slots = 4;
        for peer in &mut world.peers[8..] {
            peer.gives = 1;
        }
        for peer in &mut world.peers[..4] {
            peer.let_in = Some(world.now);
        }
        let mut turns: Vec<u64> = (0..27).map(|_| world.round(false)[3].0).collect();
        turns.dedup();
        // Those who never were in before those who were, but each third turn is theirs.
        assert_eq!(turns[..3].iter().filter(|key| **key < 4).count(), 1, "{turns:?}");
    }

    #[test]
    fn who_gives_nothing_any_more_is_no_giver() {
        let mut world = World::new(20, 64 << 10);
        for peer in &mut world.peers {
            peer.gives = 1000 + peer.key.0;
        }
        world.round(false);
        world.peers[19].gives = 0;
        let mut out = 0;
        for _ in 0..9 {
            out += u32::from(!world.round(false).contains(&PeerKey(19)));
        }
        assert!(out >= 3, "it has the optimistic slot at most");
    }

    #[test]
    fn a_seed_gives_each_its_turn_and_each_turn_is_worth_it() {
        // 100 KiB/s, 4 MiB/s, and 100 MiB/s for thirty.
        for line in [100 << 10, 4 << 20, 100 << 20] {
            let mut world = World::new(30, line);
            let mut changes = 0;
            let mut before: Vec<PeerKey> = Vec::new();
            for _ in 0..300 {
                let chosen = world.round(true);
                changes += chosen.iter().filter(|key| !before.contains(key)).count();
                before = chosen;
            }
            let (least, most) = (world.rounds.iter().min(), world.rounds.iter().max());
            assert!(least.unwrap() * 2 >= *most.unwrap(), "{line}: {:?}", world.rounds);
            let turns: u32 = world.rounds.iter().sum();
            assert!(turns >= 3 * changes as u32, "{line}: {turns} rounds in {changes} turns");
        }
    }

    #[test]
    fn who_takes_nothing_makes_room() {
        let mut world = World::new(20, 100 << 10);
        world.round(true);
        for _ in 0..3 {
            world.peers[0].takes = 0;
            world.peers[0].taken = 0;
            world.round(true);
        }
        world.peers[0].takes = 0;
        assert!(!world.round(true).contains(&PeerKey(0)));
    }

    #[test]
    fn there_are_as_many_slots_as_the_line_carries() {
        for (line, least, most) in [
            // Nobody takes anything.
            (0, SLOTS_MAX, SLOTS_MAX),
            (20 << 10, SLOTS_MIN, SLOTS_MIN),
            (100 << 10, 6, 9),
            (1 << 20, 20, 28),
            (100 << 20, SLOTS_MAX, SLOTS_MAX),
        ] {
            let mut world = World::new(60, line);
            for _ in 0..40 {
                world.round(true);
            }
            let slots = world.choker.slots();
            assert!((least..=most).contains(&slots), "{slots} slots at {line}");
        }
    }

    /// In the middle of a swarm those that give most may have all that we have: then others are let in as well, until enough
    /// of them take something.
    #[test]
    fn who_has_nothing_to_take_keeps_nobody_out() {
        let mut world = World::new(30, 1 << 20);
        for peer in &mut world.peers[..6] {
            peer.gives = 1 << 20;
        }
        world.choker.slots = 6;
        for _ in 0..20 {
            let chosen = world.round(false);
            let taking = chosen.iter().filter(|key| key.0 >= 6).count() as u64;
            for peer in &mut world.peers {
                let takes = peer.is_in && peer.key.0 >= 6;
                peer.takes = if takes { world.line / taking } else { 0 };
            }
        }
        let chosen = world.round(false);
        assert!((0..6).all(|key| chosen.contains(&PeerKey(key))), "they give most: {chosen:?}");
        assert!((20..=30).contains(&chosen.len()), "{chosen:?}");
    }

    #[test]
    fn everybody_is_in_while_there_is_room() {
        let mut world = World::new(8, 0);
        assert_eq!(world.round(false).len(), 8);
        assert!(Choker::default().choose(Vec::new(), true, world.now).is_empty());
        world.now += S;
    }
}
