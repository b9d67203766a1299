//! The picker: which block is requested from which peer. Pure: no task, no socket, no clock.
//!
//! What is wanted is kept in order of deadlines. [`Picker::schedule`] walks that order and gives each block
//! that nobody was asked for to the peer that is expected to deliver it soonest, so the blocks of an urgent
//! piece spread over all peers by themselves, as each assignment lengthens that peer's queue.
//! [`Picker::hedge`] asks a second peer for blocks that a reader waits for and that are late; the first
//! delivery wins and the loser is cancelled. Changing what is wanted costs O(log n) per piece changed; a piece
//! whose blocks are all requested isn't looked at again.
//!
//! Invariant ([`Picker::check`]): a wanted piece is open (some block can be requested), or each of its blocks
//! is received or requested from a peer that is here, or its hash is being computed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{Lateness, PeerLoad};
use crate::metainfo::geometry::{BlockIndex, BlockRef, Geometry, PieceIndex};
use crate::peer::PeerKey;
use crate::peer::buffer::PieceBuffer;

/// Who wants a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DemandId {
    /// A read that waits for it.
    Waiter(u64),
    /// The read-ahead of an open handle.
    Stream(u64),
}

/// Ask this peer for this block.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The peer.
    pub peer: PeerKey,
    /// The block.
    pub block: BlockRef,
    /// Its length in bytes.
    pub len: u32,
    /// Where it goes.
    pub buffer: Arc<PieceBuffer>,
}

/// What the arrival of a block led to.
#[derive(Debug, Default)]
pub struct Arrival {
    /// The piece's last block: hash it.
    pub whole: Option<Arc<PieceBuffer>>,
    /// Peers that were asked for the same block: cancel it there.
    pub losers: Vec<PeerKey>,
}

/// A piece that was fetched and failed its hash, and whom each block came from.
pub type Contributors = Vec<Option<PeerKey>>;

#[derive(Debug, Clone)]
enum Block {
    Missing,
    /// Asked of one peer, or of two when late.
    Requested(Vec<PeerKey>),
    Received(PeerKey),
}

#[derive(Debug)]
struct Parts {
    buffer: Arc<PieceBuffer>,
    blocks: Box<[Block]>,
    /// Blocks nobody was asked for.
    free: u32,
    /// Blocks not here yet.
    left: u32,
}

#[derive(Debug, Default)]
struct Piece {
    demands: Vec<(DemandId, Instant)>,
    parts: Option<Parts>,
    verifying: bool,
    /// After a failed hash with several contributors: one peer delivers the whole piece, so that it can be
    /// told who sends bad data.
    alone: bool,
    sole: Option<PeerKey>,
    /// Who had its turn alone and didn't bring it to an end: not to have the next one while there are others.
    avoid: Vec<PeerKey>,
    last_block: Option<Instant>,
}

impl Piece {
    fn due(&self) -> Option<Instant> {
        self.demands.iter().map(|(_, due)| *due).min()
    }
    fn waited_for(&self) -> bool {
        self.demands.iter().any(|(id, _)| matches!(id, DemandId::Waiter(_)))
    }
    fn is_open(&self) -> bool {
        !self.verifying && self.parts.as_ref().is_none_or(|p| p.free > 0)
    }
    /// Whether it may be requested although the budget is used up.
    fn beyond_budget(&self) -> bool {
        self.parts.is_some() || self.waited_for()
    }
    fn is_orphan(&self) -> bool {
        self.demands.is_empty() && !self.verifying
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Picker {
    geometry: Arc<Geometry>,
    pieces: HashMap<PieceIndex, Piece>,
    /// Wanted pieces with blocks that nobody was asked for, soonest first.
    open: BTreeSet<(Instant, PieceIndex)>,
    /// Of those, the ones that are requested although the budget is used up: begun, or waited for. What is
    /// begun gives its memory back only by being finished, so it mustn't queue behind what can't begin.
    open_always: BTreeSet<(Instant, PieceIndex)>,
    /// Pieces that a read waits for, for [`Picker::hedge`].
    waited: BTreeSet<PieceIndex>,
    peers: BTreeMap<PeerKey, PeerLoad>,
    /// Pieces with blocks that nobody wants any more, oldest first; their memory goes when it is needed.
    orphans: VecDeque<PieceIndex>,
    /// Requests that are void, to be taken back at the peers.
    void: Vec<(PeerKey, BlockRef)>,
    /// Bytes of all pieces being fetched or verified.
    held: u64,
    budget: u64,
}

impl Picker {
    /// Nothing wanted, no peers. `budget` bounds the bytes of pieces in the making; a piece that a read waits
    /// for is fetched beyond it.
    pub fn new(geometry: Arc<Geometry>, budget: u64) -> Self {
        Self {
            geometry,
            pieces: HashMap::new(),
            open: BTreeSet::new(),
            open_always: BTreeSet::new(),
            waited: BTreeSet::new(),
            peers: BTreeMap::new(),
            orphans: VecDeque::new(),
            void: Vec::new(),
            held: 0,
            budget,
        }
    }

    /// Nominal bytes in a piece.
    pub fn piece_length(&self) -> u32 {
        self.geometry.piece_length()
    }

    /// A peer that may be asked. What it has comes with [`PeerLoad`]'s own calls.
    pub fn add_peer(&mut self, key: PeerKey, load: PeerLoad) {
        self.peers.insert(key, load);
    }

    /// A peer's load, to read or to change what it has and whether it chokes us.
    pub fn peer(&mut self, key: PeerKey) -> Option<&mut PeerLoad> {
        self.peers.get_mut(&key)
    }

    /// The peer is gone; what it was asked for can be asked of others.
    pub fn remove_peer(&mut self, key: PeerKey) {
        self.release_all(key);
        self.peers.remove(&key);
        let its: Vec<PieceIndex> =
            self.pieces.iter().filter(|(_, p)| p.sole == Some(key)).map(|(index, _)| *index).collect();
        for index in its {
            self.lose_sole(index);
        }
        for piece in self.pieces.values_mut() {
            piece.avoid.retain(|k| *k != key);
        }
        self.void.retain(|(k, _)| *k != key);
    }

    /// The peer that was to deliver a piece alone doesn't: what it sent already would be mixed with another's
    /// blocks, so the piece begins anew.
    fn lose_sole(&mut self, index: PieceIndex) {
        let Some(piece) = self.pieces.get_mut(&index) else { return };
        let Some(key) = piece.sole.take() else { return };
        if piece.verifying {
            return;
        }
        if !piece.avoid.contains(&key) {
            piece.avoid.push(key);
        }
        self.drop_parts(index);
        if self.pieces.get(&index).is_some_and(Piece::is_orphan) {
            self.pieces.remove(&index);
        }
        self.reopen(index);
    }

    /// Takes back everything this peer was asked for (it choked us, or it is snubbed). Returns the blocks.
    pub fn release_all(&mut self, key: PeerKey) -> Vec<BlockRef> {
        let Some(peer) = self.peers.get_mut(&key) else { return Vec::new() };
        let blocks = peer.take_in_flight();
        for block in &blocks {
            self.unrequest(key, *block);
        }
        blocks
    }

    /// The peer refuses this block (BEP 6 reject). False if it wasn't asked.
    pub fn rejected(&mut self, key: PeerKey, block: BlockRef, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        if !peer.finish(block) {
            return false;
        }
        peer.refuse(block.piece, now);
        self.unrequest(key, block);
        true
    }

    fn unrequest(&mut self, key: PeerKey, block: BlockRef) {
        let Some(piece) = self.pieces.get_mut(&block.piece) else { return };
        if let Some(parts) = &mut piece.parts
            && let Some(state) = parts.blocks.get_mut(block.block.0 as usize)
            && let Block::Requested(peers) = state
        {
            peers.retain(|p| *p != key);
            if peers.is_empty() {
                *state = Block::Missing;
                parts.free += 1;
            }
        }
        if piece.sole == Some(key) {
            self.lose_sole(block.piece);
        }
        self.reopen(block.piece);
    }

    /// Requests that have become void since the last call: cancel them at the peers, before new ones are made.
    pub fn take_void(&mut self) -> Vec<(PeerKey, BlockRef)> {
        std::mem::take(&mut self.void)
    }

    /// Puts a piece into the open sets if it belongs there, with its present deadline.
    fn reopen(&mut self, index: PieceIndex) {
        if let Some(piece) = self.pieces.get(&index)
            && let Some(due) = piece.due()
            && piece.is_open()
        {
            self.open.insert((due, index));
            if piece.beyond_budget() {
                self.open_always.insert((due, index));
            } else {
                self.open_always.remove(&(due, index));
            }
        }
    }

    fn close(&mut self, index: PieceIndex) {
        if let Some(due) = self.pieces.get(&index).and_then(Piece::due) {
            self.open.remove(&(due, index));
            self.open_always.remove(&(due, index));
        }
    }

    /// `id` wants this piece by `due`; a later call replaces the deadline. The piece isn't complete, exists,
    /// and its data on disk, if any, has been looked at.
    pub fn want(&mut self, index: PieceIndex, id: DemandId, due: Instant) {
        self.close(index);
        let piece = self.pieces.entry(index).or_default();
        match piece.demands.iter_mut().find(|(d, _)| *d == id) {
            Some(demand) => demand.1 = due,
            None => piece.demands.push((id, due)),
        }
        if matches!(id, DemandId::Waiter(_)) {
            self.waited.insert(index);
        }
        self.reopen(index);
    }

    /// `id` no longer wants this piece. When nobody does, what was asked for is to be cancelled: returned.
    pub fn unwant(&mut self, index: PieceIndex, id: DemandId) -> Vec<(PeerKey, BlockRef)> {
        self.close(index);
        let Some(piece) = self.pieces.get_mut(&index) else { return Vec::new() };
        piece.demands.retain(|(d, _)| *d != id);
        if !piece.waited_for() {
            self.waited.remove(&index);
        }
        if !piece.demands.is_empty() {
            self.reopen(index);
            return Vec::new();
        }
        let mut cancels = Vec::new();
        if let Some(parts) = &mut piece.parts {
            for (i, state) in parts.blocks.iter_mut().enumerate() {
                if let Block::Requested(peers) = state {
                    let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
                    cancels.extend(peers.iter().map(|p| (*p, block)));
                    *state = Block::Missing;
                    parts.free += 1;
                }
            }
            if !piece.verifying {
                if parts.left as usize == parts.blocks.len() {
                    self.drop_parts(index);
                } else {
                    self.orphans.retain(|i| *i != index);
                    self.orphans.push_back(index);
                }
            }
        }
        for (peer, block) in &cancels {
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.finish(*block);
            }
        }
        if self.pieces.get(&index).is_some_and(|p| p.parts.is_none()) {
            self.pieces.remove(&index);
        }
        cancels
    }

    /// Whether anybody wants this piece.
    pub fn is_wanted(&self, index: PieceIndex) -> bool {
        self.pieces.get(&index).is_some_and(|p| !p.demands.is_empty())
    }

    /// Whether anything is wanted and not being verified.
    pub fn is_busy(&self) -> bool {
        self.pieces.values().any(|p| !p.demands.is_empty() && !p.verifying)
    }

    /// When the last block of this piece came, if one did since somebody wanted it, tries that failed included.
    pub fn last_block(&self, index: PieceIndex) -> Option<Instant> {
        self.pieces.get(&index)?.last_block
    }

    /// Pieces for which blocks are being fetched: for their state in the piece table.
    pub fn is_requested(&self, index: PieceIndex) -> bool {
        self.pieces.get(&index).is_some_and(|p| p.parts.is_some())
    }

    /// Drops a piece's blocks and requests, leaving its demands.
    fn drop_parts(&mut self, index: PieceIndex) {
        let Some(piece) = self.pieces.get_mut(&index) else { return };
        let Some(parts) = piece.parts.take() else { return };
        self.held = self.held.saturating_sub(u64::from(self.geometry.piece_len(index)));
        for (i, state) in parts.blocks.iter().enumerate() {
            if let Block::Requested(peers) = state {
                for key in peers {
                    let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
                    if self.peers.get_mut(key).is_some_and(|peer| peer.finish(block)) {
                        self.void.push((*key, block));
                    }
                }
            }
        }
    }

    /// Makes room in the budget by dropping pieces that nobody wants; true if `len` more fits.
    fn make_room(&mut self, len: u64) -> bool {
        while self.held + len > self.budget {
            let Some(index) = self.orphans.pop_front() else { return false };
            if self.pieces.get(&index).is_some_and(Piece::is_orphan) {
                self.drop_parts(index);
                self.pieces.remove(&index);
            }
        }
        true
    }

    /// Gives out requests, most urgent first, until no peer has room for more.
    pub fn schedule(&mut self, now: Instant) -> Vec<Assignment> {
        let mut out = Vec::new();
        let mut room: Vec<(PeerKey, usize)> =
            self.peers.iter_mut().map(|(k, p)| (*k, p.room(now))).filter(|(_, room)| *room > 0).collect();
        let mut cursor: Option<(Instant, PieceIndex)> = None;
        let mut full = false;
        while !room.is_empty() {
            use std::ops::Bound::{Excluded, Unbounded};
            let from = cursor.map_or(Unbounded, Excluded);
            let open = if full { &self.open_always } else { &self.open };
            let Some(&next) = open.range((from, Unbounded)).next() else { break };
            cursor = Some(next);
            full |= !self.schedule_piece(next.1, next.0, now, &mut room, &mut out);
        }
        out
    }

    /// Requests what can be of one piece; false when the budget is used up.
    fn schedule_piece(
        &mut self,
        index: PieceIndex,
        due: Instant,
        now: Instant,
        room: &mut Vec<(PeerKey, usize)>,
        out: &mut Vec<Assignment>,
    ) -> bool {
        let sole = self.pieces.get(&index).and_then(|p| p.sole);
        if sole.is_some_and(|s| !self.peers.get(&s).is_some_and(|p| p.can_serve(index))) {
            // It chokes us, or refused: others get their turn.
            self.lose_sole(index);
        }
        let Some(piece) = self.pieces.get_mut(&index) else { return true };
        let sole = piece.sole;
        let serves = |key: PeerKey| {
            sole.is_none_or(|s| s == key) && self.peers.get(&key).is_some_and(|p| p.can_serve(index))
        };
        let mut able: Vec<PeerKey> = room.iter().map(|(k, _)| *k).filter(|k| serves(*k)).collect();
        if piece.alone && sole.is_none() {
            // Who had its turn in vain comes after everybody else, also after those that have no room just now:
            // they will, since they deliver or are snubbed.
            let untried = |k: &PeerKey| !piece.avoid.contains(k);
            if self.peers.keys().any(|k| untried(k) && serves(*k)) {
                able.retain(untried);
            } else {
                piece.avoid.clear();
            }
        }
        if able.is_empty() {
            return true;
        }
        if piece.parts.is_none() {
            let urgent = piece.beyond_budget();
            let len = u64::from(self.geometry.piece_len(index));
            if !self.make_room(len) && !urgent && self.held > 0 {
                return false;
            }
            self.open_parts(index);
            self.open_always.insert((due, index));
        }
        // Peers without room that may still be the soonest: a block isn't given to a slow peer that has room
        // when a fast one will have room long before the slow one delivers.
        let busy_best = self
            .peers
            .iter()
            .filter(|(k, p)| {
                !room.iter().any(|(with_room, _)| with_room == *k)
                    && p.can_serve(index)
                    && sole.is_none_or(|s| s == **k)
            })
            // What nobody has measured is no reason to hold a block back.
            .filter(|(_, p)| p.delivered_total() > 0)
            .map(|(_, p)| p.expected(now))
            .min();
        let Some(piece) = self.pieces.get_mut(&index) else { return true };
        let Some(parts) = &mut piece.parts else { return true };
        for (i, state) in parts.blocks.iter_mut().enumerate() {
            if !matches!(state, Block::Missing) {
                continue;
            }
            let best = able.iter().filter_map(|k| self.peers.get(k).map(|p| (p.expected(now), *k))).min();
            let Some((expected, key)) = best else { break };
            if let Some(busy) = busy_best
                && now + expected > due
                && expected > busy * 2 + Duration::from_secs(1)
            {
                break;
            }
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.request(block, now);
            }
            *state = Block::Requested(vec![key]);
            parts.free -= 1;
            out.push(Assignment {
                peer: key,
                block,
                len: self.geometry.block_len(block),
                buffer: parts.buffer.clone(),
            });
            if piece.alone && piece.sole.is_none() {
                piece.sole = Some(key);
                able.retain(|k| *k == key);
            }
            if let Some(at) = room.iter().position(|(k, _)| *k == key) {
                room[at].1 -= 1;
                if room[at].1 == 0 {
                    room.swap_remove(at);
                    able.retain(|k| *k != key);
                }
            }
            if able.is_empty() {
                break;
            }
        }
        if parts.free == 0 {
            self.open.remove(&(due, index));
            self.open_always.remove(&(due, index));
        }
        true
    }

    fn open_parts(&mut self, index: PieceIndex) {
        let count = self.geometry.blocks_in(index);
        let Some(piece) = self.pieces.get_mut(&index) else { return };
        piece.parts = Some(Parts {
            buffer: Arc::new(PieceBuffer::new(index, count)),
            blocks: vec![Block::Missing; count as usize].into_boxed_slice(),
            free: count,
            left: count,
        });
        self.held += u64::from(self.geometry.piece_len(index));
    }

    /// Asks a second peer for blocks that a read waits for and that are late, or that another peer would
    /// deliver much sooner. At most two peers are asked for one block, which bounds the waste. A piece that one
    /// peer was to deliver alone goes to another instead ([`Picker::schedule`] does it).
    pub fn hedge(&mut self, now: Instant) -> Vec<Assignment> {
        /// Pieces looked at in one go, so that thousands of waiting reads cost no more than a few.
        const LOOK: usize = 16;
        let mut out = Vec::new();
        if !self.peers.values_mut().any(|p| p.room(now) > 0) {
            return out;
        }
        let mut waited: Vec<(Instant, PieceIndex)> =
            self.waited.iter().filter_map(|index| Some((self.pieces.get(index)?.due()?, *index))).collect();
        waited.sort_unstable();
        for (_, index) in waited.into_iter().take(LOOK) {
            let Some(piece) = self.pieces.get_mut(&index) else { continue };
            if piece.alone {
                if self.sole_is_late(index, now) {
                    self.lose_sole(index);
                }
                continue;
            }
            if piece.verifying {
                continue;
            }
            let Some(parts) = &mut piece.parts else { continue };
            for (i, state) in parts.blocks.iter_mut().enumerate() {
                let Block::Requested(asked) = state else { continue };
                let &[first] = asked.as_slice() else { continue };
                let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
                let Some(remaining) = self.peers.get(&first).and_then(|p| p.lateness(block, now)) else {
                    continue;
                };
                let best = self
                    .peers
                    .iter_mut()
                    .filter_map(|(k, p)| {
                        let free = *k != first && p.can_serve(index) && p.room(now) > 0;
                        free.then(|| (p.expected(now), *k))
                    })
                    .min();
                let Some((expected, key)) = best else { continue };
                if !remaining.is_worth(expected) {
                    continue;
                }
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.request(block, now);
                }
                asked.push(key);
                out.push(Assignment {
                    peer: key,
                    block,
                    len: self.geometry.block_len(block),
                    buffer: parts.buffer.clone(),
                });
            }
        }
        out
    }

    /// Whether the peer that delivers a piece alone is so slow that another, untried one is worth beginning anew.
    fn sole_is_late(&mut self, index: PieceIndex, now: Instant) -> bool {
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
            let late = || match load.lateness(block, now) {
                // By its own measure only, which may be wrong: it has to be silent as well.
                Some(Lateness::Late) => load.is_quiet(now),
                Some(lateness) => lateness.is_worth(other),
                None => false,
            };
            matches!(state, Block::Requested(_)) && late()
        })
    }

    /// A block came from a peer and is in the buffer it was requested for, though another peer may have put it
    /// there: the buffer says who. Void when the peer isn't here any more.
    ///
    /// It may be the buffer of an earlier try at the piece; then the block counts for the peer's rate only.
    pub fn received(
        &mut self,
        key: PeerKey,
        block: BlockRef,
        buffer: &Arc<PieceBuffer>,
        now: Instant,
    ) -> Arrival {
        let mut arrival = Arrival::default();
        let len = self.geometry.block_len(block);
        let Some(peer) = self.peers.get_mut(&key) else { return arrival };
        let piece = self.pieces.get_mut(&block.piece);
        let Some(piece) = piece.filter(|p| p.parts.as_ref().is_some_and(|p| Arc::ptr_eq(&p.buffer, buffer)))
        else {
            // What the peer may owe now is the block of the present try, not this one.
            peer.delivered_late(len, now);
            return arrival;
        };
        peer.delivered(block, len, now);
        let Some(parts) = &mut piece.parts else { return arrival };
        let Some(state) = parts.blocks.get_mut(block.block.0 as usize) else { return arrival };
        let from = buffer.sender(block.block).unwrap_or(key);
        match std::mem::replace(state, Block::Received(from)) {
            Block::Received(first) => {
                *state = Block::Received(first);
                return arrival;
            }
            Block::Requested(peers) => arrival.losers = peers.into_iter().filter(|p| *p != key).collect(),
            // Asked for, taken back, and come all the same: welcome.
            Block::Missing => parts.free -= 1,
        }
        parts.left -= 1;
        piece.last_block = Some(now);
        let (left, free) = (parts.left, parts.free);
        if left == 0 {
            arrival.whole = Some(parts.buffer.clone());
        }
        if free == 0 {
            self.close(block.piece);
        }
        if left == 0
            && let Some(piece) = self.pieces.get_mut(&block.piece)
        {
            piece.verifying = true;
        }
        for loser in &arrival.losers {
            if let Some(peer) = self.peers.get_mut(loser) {
                peer.finish(block);
            }
        }
        arrival
    }

    /// The piece is complete: forget it. Returns who wanted it.
    pub fn completed(&mut self, index: PieceIndex) -> Vec<DemandId> {
        self.close(index);
        self.waited.remove(&index);
        self.drop_parts(index);
        let piece = self.pieces.remove(&index);
        piece.map(|p| p.demands.into_iter().map(|(id, _)| id).collect()).unwrap_or_default()
    }

    /// The piece failed its hash (`bad`) or could not be written: its blocks are dropped and it can be requested
    /// again. Returns whom each block came from. When it was bad and that is more than one peer, the next try is
    /// made with one peer alone, and each has its turn.
    pub fn failed(&mut self, index: PieceIndex, bad: bool) -> Contributors {
        let Some(piece) = self.pieces.get_mut(&index) else { return Vec::new() };
        piece.verifying = false;
        piece.sole = None;
        let from: Contributors = piece
            .parts
            .iter()
            .flat_map(|p| p.blocks.iter())
            .map(|b| if let Block::Received(key) = b { Some(*key) } else { None })
            .collect();
        piece.alone |= bad && from.iter().any(|f| Some(f) != from.first());
        self.drop_parts(index);
        if self.pieces.get(&index).is_some_and(|p| p.demands.is_empty()) {
            self.pieces.remove(&index);
        }
        self.reopen(index);
        from
    }

    /// Peers that owe blocks and have been silent for too long; their requests are taken back. Refusals that
    /// are old enough are forgiven.
    pub fn snub(&mut self, now: Instant) -> Vec<(PeerKey, Vec<BlockRef>)> {
        self.peers.values_mut().for_each(|p| p.forgive(now));
        let silent: Vec<PeerKey> =
            self.peers.iter_mut().filter_map(|(k, p)| p.snub_if_silent(now).then_some(*k)).collect();
        silent.into_iter().map(|key| (key, self.release_all(key))).collect()
    }

    /// Bytes of pieces being fetched or verified.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Checks the invariant of the module's text; an error names the first piece that breaks it.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        for (index, piece) in &self.pieces {
            let open = piece.due().is_some_and(|due| self.open.contains(&(due, *index)));
            let always = piece.due().is_some_and(|due| self.open_always.contains(&(due, *index)));
            if always != (open && piece.beyond_budget()) {
                return Err(format!("piece {} may go beyond the budget: {always}", index.0));
            }
            if piece.demands.is_empty() && piece.parts.is_none() {
                return Err(format!("piece {} is kept for nothing", index.0));
            }
            if piece.demands.is_empty() && open {
                return Err(format!("piece {} is open and nobody wants it", index.0));
            }
            if !piece.demands.is_empty() && piece.is_open() != open {
                return Err(format!("piece {} open: {open}, should be {}", index.0, piece.is_open()));
            }
            let Some(parts) = &piece.parts else { continue };
            let free = parts.blocks.iter().filter(|b| matches!(b, Block::Missing)).count();
            let left = parts.blocks.iter().filter(|b| !matches!(b, Block::Received(_))).count();
            if free != parts.free as usize || left != parts.left as usize {
                return Err(format!("piece {}: counts of blocks are wrong", index.0));
            }
            if piece.verifying != (left == 0) {
                return Err(format!("piece {}: verifying is {}", index.0, piece.verifying));
            }
            for (i, block) in parts.blocks.iter().enumerate() {
                let Block::Requested(peers) = block else { continue };
                let block = BlockRef { piece: *index, block: BlockIndex(i as u32) };
                if peers.is_empty() || !peers.iter().all(|k| self.peers.get(k).is_some_and(|p| p.owes(block)))
                {
                    return Err(format!("piece {} block {i}: asked of a peer that doesn't know", index.0));
                }
            }
        }
        for (key, peer) in &self.peers {
            for block in peer.in_flight() {
                let known = self.pieces.get(&block.piece).and_then(|p| p.parts.as_ref()).is_some_and(|p| {
                    matches!(p.blocks.get(block.block.0 as usize), Some(Block::Requested(peers)) if peers.contains(key))
                });
                if !known {
                    return Err(format!(
                        "peer {} owes a block of piece {} that nobody asked",
                        key.0, block.piece.0
                    ));
                }
            }
        }
        let held: u64 = self
            .pieces
            .iter()
            .filter(|(_, p)| p.parts.is_some())
            .map(|(i, _)| u64::from(self.geometry.piece_len(*i)))
            .sum();
        if held != self.held {
            return Err(format!("held is {}, should be {held}", self.held));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "picker_tests.rs"]
mod tests;
