//! Who is asked for what: [`Picker::schedule`], and the recall of bulk requests that stand in front of something
//! urgent.
//!
//! For each free block of an open piece, most urgent piece first, the peer is chosen that would deliver it soonest
//! given its queue, also when that peer has no room now: then the block waits for it, unless one with room is in
//! time as well, or nearly as fast. So a slow peer doesn't get what a fast one will have delivered long before it,
//! and gets what isn't due yet.
//!
//! A webseed is a peer like the others, only that each of its requests is a round trip: of the blocks of a piece that
//! it gets as many as it is to have, it gets those that follow each other. Which of them is the same to whoever waits
//! for the piece.

use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use super::{Assignment, Block, BlockIndex, BlockRef, PeerKey, Picker, PieceIndex};
use crate::metainfo::geometry::BLOCK_LEN;
use crate::torrent::load::PeerLoad;

/// Blocks that wait for a faster peer than has room, looked at in one go: beyond them there is nothing to gain.
const RESERVED_MAX: usize = 256;
/// A peer with room is taken instead of the best one if it takes no more than this much longer…
const NEARLY: f64 = 1.5;
/// …and this, in seconds.
const NEARLY_MORE: f64 = 0.05;
/// Bulk requests are recalled if that brings an urgent piece forward by this: less isn't worth the messages.
const RECALL_GAIN: Duration = Duration::from_millis(100);

/// How often it is looked at whether to recall any: it costs a look at all that is under way.
const PREEMPT_PAUSE: Duration = Duration::from_millis(20);

/// A peer that may be asked, as seen while requests are given out.
struct Taker {
    key: PeerKey,
    /// Requests that fit.
    room: usize,
    /// Requests that fit if it must be: what is urgent is asked for whole, and isn't held back until its first
    /// blocks have come.
    deep: usize,
    /// Seconds until one more block of it would be here.
    expected: f64,
    /// Seconds that a further one adds.
    step: f64,
    /// It was measured: worth waiting for though it has no room.
    measured: bool,
    /// It could have been asked for something, and wasn't yet.
    held_back: bool,
    /// It is a webseed.
    webseed: bool,
}

impl Taker {
    fn has_room(&self, urgent: bool) -> bool {
        self.room > 0 || (urgent && self.deep > 0)
    }
}

/// How far it went with a piece.
enum Looked {
    /// What could be asked for was.
    Through,
    /// There is no memory to begin it.
    Full,
}

impl Picker {
    /// Gives out requests, most urgent first, until no peer has room for more. Recalled blocks are among
    /// [`Picker::take_void`] afterwards: they are to be cancelled before the new requests are made.
    pub fn schedule(&mut self, now: Instant) -> Vec<Assignment> {
        let mut out = Vec::new();
        if self.open.is_empty() {
            return out;
        }
        self.preempt(now);
        let version = self.version;
        let mut takers: Vec<Taker> = self
            .peers
            .iter_mut()
            .filter(|(_, p)| p.idle_at != version)
            .map(|(key, p)| Taker {
                key: *key,
                room: p.room(now),
                deep: p.room_for_urgent(now),
                expected: p.expected(now).as_secs_f64(),
                step: p.step(now).as_secs_f64(),
                measured: p.delivered_total() > 0,
                held_back: false,
                webseed: p.is_webseed(),
            })
            .collect();
        let mut cursor: Option<(Instant, PieceIndex)> = None;
        let (mut full, mut begun_only) = (false, false);
        let mut reserved = 0;
        while reserved < RESERVED_MAX {
            let from = cursor.map_or(Unbounded, Excluded);
            let open = if full { &self.open_always } else { &self.open };
            let Some(&next) = open.range((from, Unbounded)).next() else {
                if !full {
                    self.nothing_for(&takers, version);
                }
                break;
            };
            let urgent = self.waited.contains(&next.1);
            if !takers.iter().any(|t| t.has_room(urgent)) {
                break;
            }
            cursor = Some(next);
            if begun_only && self.pieces.get(&next.1).is_some_and(|p| p.parts.is_none()) {
                continue;
            }
            self.looked_at += 1;
            let looked = self.schedule_piece(next.1, next.0, now, &mut takers, &mut reserved, &mut out);
            full |= matches!(looked, Looked::Full);
            begun_only |= urgent && matches!(looked, Looked::Full);
        }
        out
    }

    /// Everything was looked through, and there was nothing for these: not to be looked through again before
    /// something changes.
    fn nothing_for(&mut self, takers: &[Taker], version: u64) {
        for taker in takers.iter().filter(|t| t.room > 0 && !t.held_back) {
            if let Some(peer) = self.peers.get_mut(&taker.key) {
                peer.idle_at = version;
            }
        }
    }

    /// Which of them may be asked for blocks of this piece.
    fn able(&mut self, index: PieceIndex, takers: &[Taker]) -> Vec<usize> {
        let sole = self.pieces.get(&index).and_then(|p| p.sole);
        if sole.is_some_and(|s| !self.peers.get(&s).is_some_and(|p| p.can_serve(index))) {
            // It chokes us, or refused: others get their turn.
            self.lose_sole(index);
        }
        let Some(piece) = self.pieces.get_mut(&index) else { return Vec::new() };
        let sole = piece.sole;
        let serves = |key: PeerKey| {
            sole.is_none_or(|s| s == key) && self.peers.get(&key).is_some_and(|p| p.can_serve(index))
        };
        let mut able: Vec<usize> = (0..takers.len()).filter(|t| serves(takers[*t].key)).collect();
        if piece.alone && sole.is_none() {
            // Who had its turn in vain comes after everybody else, also after those that have no room just now:
            // they will, since they deliver or are snubbed.
            let untried = |k: &PeerKey| !piece.avoid.contains(k);
            if self.peers.keys().any(|k| untried(k) && serves(*k)) {
                able.retain(|t| untried(&takers[*t].key));
            } else {
                piece.avoid.clear();
            }
        }
        able
    }

    /// Takes the memory to begin a piece; false if there is none for it.
    fn afford(&mut self, index: PieceIndex) -> bool {
        let len = u64::from(self.geometry.piece_len(index));
        let waited = self.pieces.get(&index).is_some_and(super::Piece::waited_for);
        if self.make_room(len) {
            return true;
        }
        // What a read waits for is begun beyond the budget, as long as it isn't really used up: pieces that nobody
        // sends take little.
        let anyway =
            self.held + len <= self.floor() || (waited && self.filled() < self.memory.max() + self.floor());
        if anyway {
            self.memory.take_anyway(len);
        }
        anyway
    }

    /// Requests what can be of one piece.
    fn schedule_piece(
        &mut self,
        index: PieceIndex,
        due: Instant,
        now: Instant,
        takers: &mut [Taker],
        reserved: &mut usize,
        out: &mut Vec<Assignment>,
    ) -> Looked {
        let urgent = self.waited.contains(&index);
        let sole = self.pieces.get(&index).and_then(|p| p.sole);
        let serves = |t: &Taker| self.peers.get(&t.key).is_some_and(|p| p.can_serve(index));
        if sole.is_none() && !takers.iter().any(|t| t.has_room(urgent) && serves(t)) {
            return Looked::Through;
        }
        let mut able = self.able(index, takers);
        if !able.iter().any(|t| takers[*t].has_room(urgent)) {
            return Looked::Through;
        }
        if self.pieces.get(&index).is_some_and(|p| p.parts.is_none()) {
            if !self.afford(index) {
                return Looked::Full;
            }
            self.open_parts(index);
            self.open_always.insert((due, index));
        }
        let due_in = due.saturating_duration_since(now).as_secs_f64();
        let before = self.taker_before(index, takers);
        let Some(piece) = self.pieces.get_mut(&index) else { return Looked::Through };
        let wanted = piece.blocks();
        let Some(parts) = &mut piece.parts else { return Looked::Through };
        // The blocks that are given out, and to whom.
        let mut given: Vec<(usize, usize)> = Vec::new();
        for i in parts.first_free as usize..parts.blocks.len().min(wanted as usize) {
            let Some(Block::Missing) = parts.blocks.get(i) else { continue };
            let Some(chosen) = choose(&able, takers, due_in, urgent) else { break };
            let taker = &mut takers[chosen];
            if !taker.has_room(urgent) {
                taker.expected += taker.step;
                able.iter().for_each(|t| takers[*t].held_back = true);
                *reserved += 1;
                if *reserved >= RESERVED_MAX {
                    break;
                }
                continue;
            }
            taker.room = taker.room.saturating_sub(1);
            taker.deep = taker.deep.saturating_sub(1);
            taker.expected += taker.step;
            given.push((i, chosen));
            if piece.alone && piece.sole.is_none() {
                piece.sole = Some(taker.key);
                able.retain(|t| *t == chosen);
            }
            if !able.iter().any(|t| takers[*t].has_room(urgent)) {
                break;
            }
        }
        in_runs(&mut given, takers, before);
        for (i, taker) in given {
            let key = takers[taker].key;
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.request(block, now);
            }
            let Some(state) = parts.blocks.get_mut(i) else { continue };
            *state = Block::Requested(vec![key]);
            parts.taken();
            self.filled += 1;
            out.push(Assignment {
                peer: key,
                block,
                len: self.geometry.block_len(block),
                buffer: parts.buffer.clone(),
                urgent,
            });
        }
        if !piece.is_open() {
            self.open.remove(&(due, index));
            self.open_always.remove(&(due, index));
        }
        Looked::Through
    }

    /// The webseed that owes the last block before this piece: what it gets of the piece is to follow that.
    fn taker_before(&self, index: PieceIndex, takers: &[Taker]) -> Option<usize> {
        let piece = PieceIndex(index.0.checked_sub(1)?);
        let last = BlockRef { piece, block: BlockIndex(self.geometry.blocks_in(piece).checked_sub(1)?) };
        let owes = |t: &Taker| t.webseed && self.peers.get(&t.key).is_some_and(|p| p.owes(last));
        takers.iter().position(owes)
    }

    /// Recalls bulk requests that stand in front of the most urgent piece, if a read waits for it.
    fn preempt(&mut self, now: Instant) {
        let Some(&(_, index)) = self.open.first() else { return };
        let stays = |index: PieceIndex| self.pieces.get(&index).is_some_and(|p| p.waited_for() || p.alone);
        let lately = self.preempted.is_some_and(|at| now < at + PREEMPT_PAUSE);
        if lately || !self.waited.contains(&index) {
            return;
        }
        self.preempted = Some(now);
        let mut recalls: Vec<(PeerKey, BlockRef)> = Vec::new();
        let mut rate = 0;
        for (key, peer) in self.peers.iter().filter(|(_, p)| p.can_serve(index)) {
            rate += peer.last_rate();
            let bulk = peer.cancellable().into_iter().filter(|block| !stays(block.piece));
            recalls.extend(bulk.map(|block| (*key, block)));
        }
        let ahead = recalls.len() as f64 * f64::from(BLOCK_LEN);
        if recalls.is_empty() || ahead < RECALL_GAIN.as_secs_f64() * rate as f64 {
            return;
        }
        for (key, block) in recalls {
            self.recall(key, block, now);
        }
    }

    fn recall(&mut self, key: PeerKey, block: BlockRef, now: Instant) {
        if !self.peers.get_mut(&key).is_some_and(|p: &mut PeerLoad| p.recall(block, now)) {
            return;
        }
        self.void.push((key, block));
        let parts = self.pieces.get_mut(&block.piece).and_then(|p| p.parts.as_mut());
        let state = parts.and_then(|p| p.blocks.get_mut(block.block.0 as usize));
        match state {
            Some(Block::Requested(peers)) if peers.as_slice() == [key] => {
                if let Some(state) = state {
                    *state = Block::Recalled(key);
                }
            }
            Some(Block::Requested(peers)) => {
                // The other one it was asked of may still send it.
                peers.retain(|p| *p != key);
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.settled(block);
                }
            }
            _ => {}
        }
    }
}

/// Has each webseed get blocks that follow each other, as many as before: those of `first` at the beginning, then what
/// peers get, in their order, then the other webseeds'.
fn in_runs(given: &mut [(usize, usize)], takers: &[Taker], first: Option<usize>) {
    if !given.iter().any(|(_, taker)| takers[*taker].webseed) {
        return;
    }
    let mut order: Vec<usize> = given.iter().map(|(_, taker)| *taker).collect();
    order.sort_by_key(|taker| match takers[*taker].webseed {
        true if first == Some(*taker) => 0,
        false => 1,
        true => 2 + taker,
    });
    for ((_, taker), ordered) in given.iter_mut().zip(order) {
        *taker = ordered;
    }
}

/// The peer for the next block of a piece that is due in `due_in` seconds: one without room means that the block
/// waits for it.
fn choose(able: &[usize], takers: &[Taker], due_in: f64, urgent: bool) -> Option<usize> {
    let soonest = |with_room: bool| {
        let candidates = able.iter().copied().filter(move |t| {
            let taker = &takers[*t];
            taker.has_room(urgent) || (!with_room && taker.measured)
        });
        candidates.min_by(|a, b| takers[*a].expected.total_cmp(&takers[*b].expected))
    };
    let free = soonest(true)?;
    let best = soonest(false)?;
    let (expected, soonest) = (takers[free].expected, takers[best].expected);
    let will_do = expected <= due_in || expected <= soonest * NEARLY + NEARLY_MORE;
    Some(if will_do { free } else { best })
}
