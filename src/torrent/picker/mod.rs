//! The picker: which block is requested from which peer. Pure: no task, no socket, no clock.
//!
//! What is wanted is kept in order of deadlines. [`Picker::schedule`] walks that order and gives each block
//! that nobody was asked for to the peer that is expected to deliver it soonest, so the blocks of an urgent
//! piece spread over all peers by themselves, as each assignment lengthens that peer's queue. Where bulk
//! requests stand in front of an urgent piece they are recalled first. [`Picker::hedge`] asks a second peer for
//! blocks that are late, within a bound on waste; the first delivery wins and the loser is cancelled.
//!
//! Parts: this file has what is wanted and what came of it; `schedule` who is asked for what; `hedge` what is
//! late; `check` the invariant; `view` what is told of a piece; [`super::background`] what is fetched beyond what is read.
//!
//! Costs: changing what is wanted, O(log n) per piece changed; a piece whose blocks are all requested isn't
//! looked at again; a peer for which there was nothing isn't looked at again before something changes.
//!
//! Invariant ([`Picker::check`]): a wanted piece is open (some block can be requested), or each of its blocks
//! is received, or requested or recalled from a peer that is here, or its hash is being computed.

mod check;
mod hedge;
mod schedule;
mod view;

pub use view::PartsView;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::load::PeerLoad;
use super::memory::Memory;
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, Geometry, PieceIndex};
use crate::peer::PeerKey;
use crate::peer::buffer::PieceBuffer;

/// Least memory that each torrent's pieces in the making may take.
const MAKING_MIN: u64 = 4 << 20;

/// Who wants a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DemandId {
    /// A read that waits for it.
    Waiter(u64),
    /// The read-ahead of an open handle.
    Stream(u64),
    /// Nobody reads it; it was asked for beforehand ([`super::background`]).
    Background,
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
    /// A read waits for it.
    pub urgent: bool,
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
    /// Asked of this peer and taken back for something more urgent; it may come all the same, so it isn't asked
    /// for again before that is settled.
    Recalled(PeerKey),
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
    /// The first free block, or how many there are.
    first_free: u32,
}

impl Parts {
    /// This block is free again.
    fn freed(&mut self, block: u32) {
        self.free += 1;
        self.first_free = self.first_free.min(block);
    }

    /// A block isn't free any more.
    fn taken(&mut self) {
        self.free -= 1;
        let (first, all) = (self.first_free as usize, self.blocks.len());
        let next = self.blocks.iter().skip(first).position(|b| matches!(b, Block::Missing));
        self.first_free = next.map_or(all, |n| first + n) as u32;
    }
}

/// By when somebody wants a piece, and how many of its first blocks.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    id: DemandId,
    due: Instant,
    blocks: u32,
}

#[derive(Debug, Default)]
struct Piece {
    demands: Vec<Wanted>,
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
        self.demands.iter().map(|d| d.due).min()
    }
    fn waited_for(&self) -> bool {
        self.demands.iter().any(|d| matches!(d.id, DemandId::Waiter(_)))
    }
    /// How many of its first blocks anybody wants.
    fn blocks(&self) -> u32 {
        self.demands.iter().map(|d| d.blocks).max().unwrap_or(0)
    }
    fn is_open(&self) -> bool {
        let free = |p: &Parts| p.free > 0 && p.first_free < self.blocks();
        !self.verifying && self.parts.as_ref().is_none_or(free)
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
    /// Blocks that webseeds were asked for when nobody waited for them, and somebody does now.
    hurried: Vec<(PeerKey, BlockRef)>,
    /// Bytes of all pieces being fetched or verified.
    held: u64,
    /// Blocks of them that are here or on their way: what they really take.
    filled: u64,
    /// What all torrents' pieces in the making may take together.
    memory: Memory,
    /// Changes whenever a block may have become requestable: what was looked through in vain is worth another
    /// look.
    version: u64,
    /// Blocks that may be asked for twice, and those that came since the last one was earned.
    spare: u32,
    earned: u32,
    /// Blocks asked of a second peer, ever.
    hedged: u64,
    /// When it was last looked at whether to recall anything.
    preempted: Option<Instant>,
    /// Pieces looked at by [`Picker::schedule`], ever: its cost, for tests.
    looked_at: u64,
}

impl Picker {
    /// Nothing wanted, no peers. `memory` bounds the bytes of pieces in the making; what a read waits for is begun
    /// beyond it as long as less than that is really here or on its way.
    pub fn new(geometry: Arc<Geometry>, memory: Memory) -> Self {
        Self {
            geometry,
            pieces: HashMap::new(),
            open: BTreeSet::new(),
            open_always: BTreeSet::new(),
            waited: BTreeSet::new(),
            peers: BTreeMap::new(),
            orphans: VecDeque::new(),
            void: Vec::new(),
            hurried: Vec::new(),
            held: 0,
            filled: 0,
            memory,
            version: 1,
            spare: hedge::SPARE_FIRST,
            earned: 0,
            hedged: 0,
            preempted: None,
            looked_at: 0,
        }
    }

    /// Where pieces and files lie.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Peers that have room for requests although everything wanted was given out, as far as there is memory for
    /// another piece.
    pub fn hungry(&mut self, now: Instant) -> Vec<PeerKey> {
        let len = u64::from(self.geometry.piece_length());
        // Half of the memory is for readers.
        if self.memory.used() + len > self.memory.max() / 2 && self.held + len > self.floor() {
            return Vec::new();
        }
        let willing = self.peers.iter_mut().filter(|(_, p)| !p.is_snubbed());
        willing.filter_map(|(key, p)| (p.room(now) > 0).then_some(*key)).collect()
    }

    /// Bytes of pieces in the making that every torrent may have, whatever the others take: enough to go on at a good
    /// rate, and one piece to be hashed and one to be fetched, however large they are.
    fn floor(&self) -> u64 {
        MAKING_MIN.min(self.memory.max() / 6).max(2 * u64::from(self.geometry.piece_length()))
    }

    /// Gives up pieces that nobody wants if memory is getting short for others.
    pub fn drop_orphans(&mut self) {
        while self.memory.used() > self.memory.max() / 2 {
            let Some(index) = self.orphans.pop_front() else { return };
            if self.pieces.get(&index).is_some_and(Piece::is_orphan) {
                self.drop_parts(index);
                self.pieces.remove(&index);
            }
        }
    }

    /// A peer has one piece more; false if that isn't news.
    pub fn have(&mut self, key: PeerKey, piece: PieceIndex) -> bool {
        let (pieces, wanted) = (self.geometry.pieces(), self.is_wanted(piece));
        let Some(peer) = self.peers.get_mut(&key).filter(|p| piece.0 < pieces && !p.has().has(piece)) else {
            return false;
        };
        peer.has_mut().add(piece, pieces);
        if wanted {
            peer.idle_at = 0;
        }
        true
    }

    /// A peer that may be asked. What it has comes with [`PeerLoad`]'s own calls.
    pub fn add_peer(&mut self, key: PeerKey, load: PeerLoad) {
        self.peers.insert(key, load);
    }

    /// A peer's load, to change what it has and whether it chokes us.
    pub fn peer(&mut self, key: PeerKey) -> Option<&mut PeerLoad> {
        let peer = self.peers.get_mut(&key)?;
        peer.idle_at = 0;
        Some(peer)
    }

    /// A peer's load, to look at.
    pub fn load(&self, key: PeerKey) -> Option<&PeerLoad> {
        self.peers.get(&key)
    }

    /// The loads of all that may be asked.
    pub fn loads(&self) -> impl Iterator<Item = &PeerLoad> {
        self.peers.values()
    }

    /// What all peers together deliver, in bytes per second, as last measured.
    pub fn rate(&self) -> u64 {
        self.peers.values().map(PeerLoad::last_rate).sum()
    }

    /// Bytes of blocks that were asked for a second time, ever.
    pub fn hedged(&self) -> u64 {
        self.hedged * u64::from(BLOCK_LEN)
    }

    /// How many pieces [`Picker::schedule`] has looked at, ever: what it costs, counted.
    pub fn looked_at(&self) -> u64 {
        self.looked_at
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

    /// The peer hasn't got these pieces after all. Returns what it was asked for of them: others are, from now on.
    pub fn take_away(&mut self, key: PeerKey, pieces: impl Iterator<Item = PieceIndex>) -> Vec<BlockRef> {
        let all = self.geometry.pieces();
        let Some(peer) = self.peers.get_mut(&key) else { return Vec::new() };
        pieces.for_each(|piece| peer.has_mut().remove(piece, all));
        let blocks = peer.take_lacking();
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

    /// This peer won't send this block.
    fn unrequest(&mut self, key: PeerKey, block: BlockRef) {
        let Some(piece) = self.pieces.get_mut(&block.piece) else { return };
        if let Some(parts) = &mut piece.parts
            && let Some(state) = parts.blocks.get_mut(block.block.0 as usize)
        {
            let free = match state {
                Block::Requested(peers) => {
                    peers.retain(|p| *p != key);
                    peers.is_empty()
                }
                Block::Recalled(peer) => *peer == key,
                Block::Missing | Block::Received(_) => false,
            };
            if free {
                *state = Block::Missing;
                parts.freed(block.block.0);
                self.filled -= 1;
            }
        }
        if piece.sole == Some(key) {
            self.lose_sole(block.piece);
        }
        self.reopen(block.piece);
    }

    /// The peer has taken notice that this block was recalled: it won't come. False if it wasn't.
    pub fn settled(&mut self, key: PeerKey, block: BlockRef) -> bool {
        let recalled = self.peers.get_mut(&key).is_some_and(|p| p.settled(block));
        if recalled {
            self.unrequest(key, block);
        }
        recalled
    }

    /// Blocks that were recalled and haven't come for so long that they won't.
    pub fn settle_old(&mut self, now: Instant) {
        let old: Vec<(PeerKey, BlockRef)> = self
            .peers
            .iter()
            .flat_map(|(key, p)| p.recalled_long_ago(now).into_iter().map(|block| (*key, block)))
            .collect();
        for (key, block) in old {
            self.settled(key, block);
        }
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
            self.version += 1;
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
        self.want_blocks(index, id, due, u32::MAX);
    }

    /// The same for the first `blocks` blocks of it: a reader that has read little so far may have no more fetched
    /// ahead.
    pub fn want_blocks(&mut self, index: PieceIndex, id: DemandId, due: Instant, blocks: u32) {
        self.close(index);
        let piece = self.pieces.entry(index).or_default();
        let wanted = Wanted { id, due, blocks };
        match piece.demands.iter_mut().find(|d| d.id == id) {
            Some(demand) => *demand = wanted,
            None => piece.demands.push(wanted),
        }
        if matches!(id, DemandId::Waiter(_)) {
            let first = self.waited.insert(index);
            self.free_recalled(index);
            if first {
                self.hurry(index);
            }
        }
        self.reopen(index);
    }

    /// Somebody waits for this piece now: webseeds that were asked for blocks of it when nobody did are to know. A peer
    /// answers in order, whatever is urgent; a webseed may have it stand behind what isn't.
    fn hurry(&mut self, index: PieceIndex) {
        let Some(parts) = self.pieces.get(&index).and_then(|p| p.parts.as_ref()) else { return };
        for (i, state) in parts.blocks.iter().enumerate() {
            let Block::Requested(peers) = state else { continue };
            let webseeds = peers.iter().filter(|key| self.peers.get(key).is_some_and(PeerLoad::is_webseed));
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            self.hurried.extend(webseeds.map(|key| (*key, block)));
        }
    }

    /// Blocks that somebody waits for since the last call, and whom to tell: a webseed that was asked for them before.
    pub fn take_hurried(&mut self) -> Vec<(PeerKey, BlockRef)> {
        std::mem::take(&mut self.hurried)
    }

    /// Somebody waits for this piece now: its recalled blocks are asked for again at once, even if one should
    /// then come twice.
    fn free_recalled(&mut self, index: PieceIndex) {
        let parts = self.pieces.get(&index).and_then(|p| p.parts.as_ref());
        let recalled: Vec<(PeerKey, BlockRef)> = parts
            .into_iter()
            .flat_map(|parts| parts.blocks.iter().enumerate())
            .filter_map(|(i, state)| match state {
                Block::Recalled(key) => Some((*key, BlockRef { piece: index, block: BlockIndex(i as u32) })),
                _ => None,
            })
            .collect();
        for (key, block) in recalled {
            self.settled(key, block);
        }
    }

    /// `id` no longer wants this piece. When nobody does, what was asked for is to be cancelled: returned.
    pub fn unwant(&mut self, index: PieceIndex, id: DemandId) -> Vec<(PeerKey, BlockRef)> {
        self.close(index);
        let Some(piece) = self.pieces.get_mut(&index) else { return Vec::new() };
        piece.demands.retain(|d| d.id != id);
        if !piece.waited_for() {
            self.waited.remove(&index);
        }
        if !piece.demands.is_empty() {
            self.reopen(index);
            return Vec::new();
        }
        let mut cancels = Vec::new();
        if let Some(parts) = &mut piece.parts {
            for i in 0..parts.blocks.len() {
                let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
                let Some(state) = parts.blocks.get_mut(i) else { continue };
                match state {
                    Block::Requested(peers) => cancels.extend(peers.iter().map(|p| (*p, block))),
                    Block::Recalled(key) => {
                        if let Some(peer) = self.peers.get_mut(key) {
                            peer.settled(block);
                        }
                    }
                    Block::Missing | Block::Received(_) => continue,
                }
                *state = Block::Missing;
                parts.freed(i as u32);
                self.filled -= 1;
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

    /// Whether a peer that is here would send this piece, now or when it has room.
    pub fn is_servable(&self, index: PieceIndex) -> bool {
        self.peers.values().any(|p| p.can_serve(index) && !p.is_snubbed())
    }

    /// Bytes that the pieces in the making of all torrents may take.
    pub fn memory_max(&self) -> u64 {
        self.memory.max()
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
        let len = u64::from(self.geometry.piece_len(index));
        self.held -= len;
        self.memory.release(len);
        self.filled -= parts.blocks.len() as u64 - u64::from(parts.free);
        for (i, state) in parts.blocks.iter().enumerate() {
            let block = BlockRef { piece: index, block: BlockIndex(i as u32) };
            match state {
                Block::Requested(peers) => {
                    for key in peers {
                        if self.peers.get_mut(key).is_some_and(|peer| peer.finish(block)) {
                            self.void.push((*key, block));
                        }
                    }
                }
                Block::Recalled(key) => {
                    if let Some(peer) = self.peers.get_mut(key) {
                        peer.settled(block);
                    }
                }
                Block::Missing | Block::Received(_) => {}
            }
        }
    }

    /// Takes `len` bytes of memory, if need be from pieces that nobody wants; false if there is none.
    fn make_room(&mut self, len: u64) -> bool {
        while !self.memory.take(len) {
            let Some(index) = self.orphans.pop_front() else { return false };
            if self.pieces.get(&index).is_some_and(Piece::is_orphan) {
                self.drop_parts(index);
                self.pieces.remove(&index);
            }
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
            first_free: 0,
        });
        self.held += u64::from(self.geometry.piece_len(index));
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
            Block::Recalled(by) => {
                if let Some(peer) = self.peers.get_mut(&by) {
                    peer.settled(block);
                }
            }
            // Asked for, taken back, and come all the same: welcome.
            Block::Missing => {
                parts.taken();
                self.filled += 1;
            }
        }
        parts.left -= 1;
        piece.last_block = Some(now);
        let left = parts.left;
        let whole = (left == 0).then(|| parts.buffer.clone());
        self.earn();
        arrival.whole = whole;
        if let Some(piece) = self.pieces.get(&block.piece)
            && !piece.is_open()
        {
            self.close(block.piece);
        }
        if left == 0
            && let Some(piece) = self.pieces.get_mut(&block.piece)
        {
            piece.verifying = true;
        }
        for loser in &arrival.losers {
            if let Some(peer) = self.peers.get_mut(loser) {
                peer.lost(block, now);
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
        piece.map(|p| p.demands.into_iter().map(|d| d.id).collect()).unwrap_or_default()
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

    /// Bytes of the memory for pieces in the making that they really take.
    pub fn filled(&self) -> u64 {
        self.filled * u64::from(BLOCK_LEN)
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.memory.release(self.held);
    }
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod webseed_tests;
