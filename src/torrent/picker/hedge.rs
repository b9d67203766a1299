//! Late blocks: a second peer is asked as well, and the first delivery wins.
//!
//! From a peer from which nothing comes at all, blocks are taken away instead, and it isn't asked for much before it
//! sends something. Otherwise the waste is bounded twice: no block is asked of more than two peers, and of all blocks that came no more than
//! one in [`EARN`] may have been asked for twice, beyond what one starts with. What a reader waits for is looked at,
//! and of what is due soon that which is late; when nothing is left to be asked for the first time, the rest of what
//! is under way as well (end-game).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Assignment, Block, BlockIndex, BlockRef, PeerKey, Picker, PieceIndex};
use crate::torrent::load::{Lateness, Queue};

/// Duplicates one starts with: a piece of 1 MiB, so that the first late ones needn't be earned.
pub(super) const SPARE_FIRST: u32 = 64;
/// Most that are kept for later.
const SPARE_MAX: u32 = 256;
/// Blocks that have to come for one more to be asked for twice, so the waste stays under two hundredths.
const EARN: u32 = 64;
/// What is due so soon is looked at.
const SOON: Duration = Duration::from_secs(2);
/// Pieces looked at in one go, so that thousands of waiting reads cost no more than a few.
const LOOK: usize = 16;

impl Picker {
    /// A block came.
    pub(super) fn earn(&mut self) {
        self.earned += 1;
        if self.earned >= EARN {
            self.earned = 0;
            self.spare = (self.spare + 1).min(SPARE_MAX);
        }
    }

    /// Asks a second peer for blocks that are late, or that another peer would deliver much sooner: those of pieces
    /// that a read waits for, and when nothing else is left to ask for, all. A piece that one peer was to deliver
    /// alone goes to another instead ([`Picker::schedule`] does it).
    pub fn hedge(&mut self, now: Instant) -> Vec<Assignment> {
        let mut out = Vec::new();
        if !self.peers.values_mut().any(|p| p.room_for_urgent(now) > 0 || p.room(now) > 0) {
            return out;
        }
        let until = if self.open.is_empty() { None } else { Some(now + SOON) };
        let made = self.pieces.iter().filter(|(_, p)| p.parts.is_some() && !p.verifying);
        let made = made.filter_map(|(index, p)| Some((p.due()?, *index)));
        let mut late: Vec<(Instant, PieceIndex)> =
            made.filter(|(due, _)| until.is_none_or(|until| *due <= until)).collect();
        late.sort_unstable();
        let queues: HashMap<PeerKey, Queue> = self.peers.iter().map(|(k, p)| (*k, p.queue(now))).collect();
        for (_, index) in late.into_iter().take(LOOK) {
            if self.pieces.get(&index).is_some_and(|p| p.alone) {
                if self.sole_is_late(index, &queues, now) {
                    self.lose_sole(index);
                }
            } else {
                self.hedge_piece(index, &queues, now, &mut out);
            }
        }
        out
    }

    fn hedge_piece(
        &mut self,
        index: PieceIndex,
        queues: &HashMap<PeerKey, Queue>,
        now: Instant,
        out: &mut Vec<Assignment>,
    ) {
        let Some(piece) = self.pieces.get_mut(&index).filter(|p| !p.verifying) else { return };
        let waited = piece.waited_for();
        let Some(parts) = &mut piece.parts else { return };
        // The latest first: it is they that hold the piece up.
        let mut late: Vec<(Lateness, usize)> = Vec::new();
        for (i, state) in parts.blocks.iter().enumerate() {
            let Block::Requested(asked) = state else { continue };
            let &[first] = asked.as_slice() else { continue };
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            let Some(queue) = queues.get(&first) else { continue };
            late.extend(self.peers.get(&first).and_then(|p| p.lateness(block, queue, now)).map(|l| (l, i)));
        }
        late.sort_unstable_by(|a, b| b.cmp(a));
        let others: Vec<PeerKey> = self
            .peers
            .iter_mut()
            .filter_map(|(k, p)| {
                // What is waited for goes beyond what a peer is usually asked for.
                let room = (waited && p.room_for_urgent(now) > 0) || p.room(now) > 0;
                (room && p.can_serve(index)).then_some(*k)
            })
            .collect();
        if others.is_empty() {
            return;
        }
        // The block that a webseed was asked for last: the one beside it costs it no request more.
        let mut beside: Option<(usize, PeerKey)> = None;
        for (remaining, i) in late {
            let Some(Block::Requested(asked)) = parts.blocks.get_mut(i) else { continue };
            let &[first] = asked.as_slice() else { continue };
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            let stuck = queues.get(&first).is_some_and(Queue::is_stuck);
            if !stuck && self.spare == 0 {
                continue;
            }
            let mut able = |k: &PeerKey| {
                let p = self.peers.get_mut(k).filter(|p| *k != first && !p.is_recalled(block))?;
                let room = (waited && p.room_for_urgent(now) > 0) || p.room(now) > 0;
                room.then(|| (p.expected(now), *k))
            };
            let best = others.iter().filter_map(&mut able).min();
            let same = beside.filter(|(last, _)| last.abs_diff(i) == 1).and_then(|(_, k)| able(&k));
            let near = |same: &(Duration, PeerKey)| best.is_some_and(|(soonest, _)| same.0 <= soonest * 2);
            let best = same.filter(near).or(best);
            // The others are less late, and the other peers no sooner.
            let Some((expected, key)) = best else { continue };
            if (!waited && remaining != Lateness::Late) || !remaining.is_worth(expected) {
                return;
            }
            if stuck {
                // Nothing comes from there: the block is taken away, which costs nothing unless it comes after all.
                if let Some(peer) = self.peers.get_mut(&first) {
                    peer.lost(block, now);
                }
                self.void.push((first, block));
                asked.clear();
            } else {
                self.spare -= 1;
                self.hedged += 1;
            }
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.request(block, now);
                beside = peer.is_webseed().then_some((i, key));
            }
            asked.push(key);
            out.push(Assignment {
                peer: key,
                block,
                len: self.geometry.block_len(block),
                buffer: parts.buffer.clone(),
                urgent: waited,
            });
        }
    }

    /// Whether the peer that delivers a piece alone is so slow that another, untried one is worth beginning anew.
    fn sole_is_late(&mut self, index: PieceIndex, queues: &HashMap<PeerKey, Queue>, now: Instant) -> bool {
        let Some(piece) = self.pieces.get(&index).filter(|p| !p.verifying) else { return false };
        let (Some(sole), Some(parts)) = (piece.sole, &piece.parts) else { return false };
        let others = self.peers.iter_mut().filter(|(k, _)| **k != sole && !piece.avoid.contains(k));
        let able =
            others.filter_map(|(_, p)| (p.can_serve(index) && p.room(now) > 0).then(|| p.expected(now)));
        let Some(other) = able.min() else { return false };
        let Some(load) = self.peers.get(&sole) else { return true };
        // Against all that would have to come again.
        let other = other * parts.blocks.len().min(64) as u32;
        parts.blocks.iter().enumerate().any(|(i, state)| {
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            let late = || match queues.get(&sole).and_then(|queue| load.lateness(block, queue, now)) {
                // By its own measure only, which may be wrong: it has to be silent as well.
                Some(Lateness::Late) => load.is_quiet(now),
                Some(lateness) => lateness.is_worth(other),
                None => false,
            };
            matches!(state, Block::Requested(_)) && late()
        })
    }
}
