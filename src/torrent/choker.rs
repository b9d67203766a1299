//! The choker: which interested peers may ask us for blocks. Pure.
//!
//! While we fetch, those who give us most; when we have everything, whoever waited longest, so that all get
//! their turn. One slot goes round regardless of merit, so that a newcomer can show what it has (BEP 3's
//! optimistic unchoke).

use std::time::{Duration, Instant};

use crate::peer::PeerKey;

/// Peers served at a time. Few enough that each gets a useful rate on a home line, which is what makes
/// them give back.
pub const SLOTS: usize = 8;
/// How often the choice is made anew (BEP 3: every ten seconds).
pub const ROUND: Duration = Duration::from_secs(10);

/// What the choice hangs on.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The peer.
    pub key: PeerKey,
    /// Bytes per second it gives us.
    pub rate: u64,
    /// When it was last let in, if ever.
    pub last: Option<Instant>,
}

/// The peers to unchoke, of those that are interested; everyone else is choked.
pub fn choose(mut candidates: Vec<Candidate>, seeding: bool) -> Vec<PeerKey> {
    let by_turn = |c: &Candidate| (c.last, c.key);
    if seeding || candidates.len() <= SLOTS {
        candidates.sort_by_key(by_turn);
        return candidates.into_iter().take(SLOTS).map(|c| c.key).collect();
    }
    candidates.sort_by_key(|c| (std::cmp::Reverse(c.rate), c.key));
    let rest = candidates.split_off(SLOTS - 1);
    let optimistic = rest.into_iter().min_by_key(by_turn);
    candidates.into_iter().chain(optimistic).map(|c| c.key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(n: u64) -> Vec<Candidate> {
        (0..n).map(|i| Candidate { key: PeerKey(i), rate: i * 10, last: None }).collect()
    }

    #[test]
    fn the_fastest_and_one_more() {
        let chosen = choose(candidates(20), false);
        assert_eq!(chosen.len(), SLOTS);
        assert!(chosen.contains(&PeerKey(19)) && chosen.contains(&PeerKey(13)));
        assert!(chosen.contains(&PeerKey(0)), "the optimistic slot goes to who never had one");
    }

    #[test]
    fn seeding_goes_round() {
        let now = Instant::now();
        let mut all = candidates(20);
        for c in &mut all[..10] {
            c.last = Some(now);
        }
        let chosen = choose(all, true);
        assert!(chosen.iter().all(|k| k.0 >= 10));
        assert!(choose(Vec::new(), true).is_empty());
    }
}
