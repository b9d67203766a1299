//! What one webseed was asked for, and who of its requesters fetches what: the state behind its lock. Pure but for the
//! buffers it hands on.
//!
//! A block that is asked for is queued, or belongs to one claim. A claim is a slice that a requester fetches; what it
//! didn't bring goes back to the queue when it ends, in whatever way. What is in the queue can be claimed: while the
//! webseed waits, for files that it refuses and after its end, blocks aren't queued but are to be told as rejected. What
//! is to be told stands in [`Say`], which the session takes; so it is told in order, by one task.
//!
//! A block that is taken back leaves the queue at once. In a claim it is kept in mind: it is welcome if it comes, and the
//! claim is cut when nothing else is wanted of it and much is still to come, or the server hasn't answered yet.
//!
//! Deliberately not here: the network, and which block is wanted of whom.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::slices::{self, Slice};
use super::table::Progress;
use super::url::Kind;
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, FileIndex};
use crate::metainfo::info::{FileKind, Info};
use crate::peer::buffer::PieceBuffer;
use crate::peer::event::Item;
use crate::peer::outbox::Wanted;
use crate::peer::wire::BlockRequest;

/// Blocks are asked for in small lots while others are under way, since what is wanted moves on with what comes. Those
/// that nobody waits for are gathered until they are a requester's share of all, and at least so many bytes.
const GATHER: u64 = 256 * 1024;
/// The part of a second that a request should take before it is shared, …
const WORTH_SHARING: u64 = 50;
/// … and the most that isn't shared for that.
const GATHER_MAX: u64 = 4 << 20;
/// With no more than this left to come the next request is made, so that the line doesn't fall silent between the two.
const NEARLY_DONE: u64 = 128 * 1024;
/// A request isn't cut for so little: it is nearly here, and cutting costs a connection.
const CUT_MIN: u64 = 64 * 1024;
/// The same for something urgent, in parts of a second at the measured rate: what a new connection may cost.
const CUT_GAIN: u64 = 5;

/// Redirects that are remembered, each some hundred bytes, 8 KiB at most.
const REDIRECTS_MAX: usize = 4096;
/// Blocks in a queue that aren't asked for any more, before it is swept.
const STALE_MAX: usize = 1024;

/// The block that a request is for.
pub(super) fn block_of(request: BlockRequest) -> BlockRef {
    BlockRef { piece: request.piece, block: BlockIndex(request.begin / BLOCK_LEN) }
}

struct Asked {
    buffer: Arc<PieceBuffer>,
    urgent: bool,
    /// The claim that it belongs to; none while it is queued.
    claim: Option<u64>,
}

/// A slice that is being fetched.
struct Held {
    blocks: Vec<BlockRef>,
    /// Blocks of it that are still wanted.
    wanted: usize,
    progress: Arc<Progress>,
}

/// What the session is to tell the owner.
#[derive(Default)]
pub(super) struct Say {
    /// Files that it refuses from now on.
    pub refuses: Vec<FileIndex>,
    /// What comes before anything about choking.
    pub items: Vec<Item>,
    /// Blocks that it won't send.
    pub rejects: Vec<BlockRef>,
}

impl Say {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.refuses.is_empty() && self.items.is_empty() && self.rejects.is_empty()
    }
}

/// Where a block that came goes.
pub(super) struct Place {
    pub block: BlockRef,
    /// None if nobody makes its piece any more.
    pub buffer: Option<Arc<PieceBuffer>>,
    /// It was asked for, and a read waits for it; none for one that was taken back.
    urgent: Option<bool>,
}

/// See the module's text.
pub(super) struct Desk {
    info: Arc<Info>,
    kind: Kind,
    /// Requesters that it has.
    requesters: usize,
    asked: HashMap<BlockRef, Asked>,
    /// Queued blocks, in the order in which they were asked for, those for which a read waits apart. Blocks that were
    /// taken back since are still in here.
    queues: [VecDeque<BlockRef>; 2],
    /// How many blocks are queued, by the same.
    queued: [usize; 2],
    claims: HashMap<u64, Held>,
    /// Blocks of claims that were taken back, and where they go if they come all the same.
    recalled: HashMap<BlockRef, (u64, Weak<PieceBuffer>)>,
    refused: BTreeSet<FileIndex>,
    /// Until when it, or its host, isn't asked for anything; the session ends that.
    waiting: Option<Instant>,
    /// The same as the session knows it.
    seen: Option<Instant>,
    closed: bool,
    /// Why it isn't asked for anything any more.
    end: Option<String>,
    /// Where redirects led for a file.
    redirects: HashMap<FileIndex, Url>,
    /// How often in a row bodies of a file ended too early, though the server took them for whole.
    short: HashMap<FileIndex, u32>,
    /// What one request brings, in bytes per second; 0 while nothing is known.
    rate: u64,
    say: Say,
}

impl Desk {
    /// Nothing is asked for.
    pub(super) fn new(info: Arc<Info>, kind: Kind, requesters: usize) -> Self {
        Self {
            info,
            kind,
            requesters,
            asked: HashMap::new(),
            queues: Default::default(),
            queued: [0; 2],
            claims: HashMap::new(),
            recalled: HashMap::new(),
            refused: BTreeSet::new(),
            waiting: None,
            seen: None,
            closed: false,
            end: None,
            redirects: HashMap::new(),
            short: HashMap::new(),
            rate: 0,
            say: Say::default(),
        }
    }

    fn len(&self, block: BlockRef) -> u64 {
        u64::from(self.info.geometry.block_len(block))
    }

    /// Whether a block is of a file that it refuses.
    fn is_refused(&self, block: BlockRef) -> bool {
        let geometry = &self.info.geometry;
        let at = geometry.piece_offset(block.piece) + u64::from(block.block.0) * u64::from(BLOCK_LEN);
        !self.refused.is_empty()
            && geometry.spans(at, self.len(block)).any(|span| self.refused.contains(&span.file))
    }

    /// Whether a block can be queued; if not, it is to be told as rejected.
    fn takes(&self, block: BlockRef) -> bool {
        self.waiting.is_none() && !self.closed && self.len(block) > 0 && !self.is_refused(block)
    }

    /// These blocks are asked for.
    pub(super) fn ask(&mut self, wanted: Vec<Wanted>) {
        for wanted in wanted {
            let block = block_of(wanted.request);
            let (buffer, urgent) = (wanted.buffer, wanted.urgent);
            // Taken back, and still on its way.
            if let Some((claim, _)) = self.recalled.remove(&block) {
                if let Some(held) = self.claims.get_mut(&claim) {
                    held.wanted += 1;
                }
                self.asked.insert(block, Asked { buffer, urgent, claim: Some(claim) });
            } else if let Some(asked) = self.asked.get_mut(&block) {
                asked.buffer = buffer;
                if urgent {
                    self.hurry(block);
                }
            } else if self.takes(block) {
                self.asked.insert(block, Asked { buffer, urgent, claim: None });
                self.queued[usize::from(!urgent)] += 1;
                self.queues[usize::from(!urgent)].push_back(block);
            } else if !self.closed {
                self.say.rejects.push(block);
            }
        }
        let stale = self.queues.iter().map(VecDeque::len).sum::<usize>() - self.queued.iter().sum::<usize>();
        if stale > STALE_MAX {
            self.wanted();
        }
    }

    /// A block is taken back. Returns what is to be cut for that, outside of the lock.
    pub(super) fn cancel(&mut self, block: BlockRef) -> Option<CancellationToken> {
        let asked = self.asked.remove(&block)?;
        let Some(claim) = asked.claim else {
            self.queued[usize::from(!asked.urgent)] -= 1;
            self.say.items.push(Item::Recalled(block));
            return None;
        };
        self.recalled.insert(block, (claim, Arc::downgrade(&asked.buffer)));
        let held = self.claims.get_mut(&claim)?;
        held.wanted = held.wanted.saturating_sub(1);
        let progress = &held.progress;
        // What wasn't answered yet may never be.
        let much =
            progress.left.load(Ordering::Relaxed) > CUT_MIN || !progress.answered.load(Ordering::Relaxed);
        (held.wanted == 0 && much).then(|| progress.cut.clone())
    }

    /// A read waits now for a block that was asked for before. Returns what is to be cut for that, outside of the lock: a
    /// claim that hasn't begun yet stands in line as one that nobody waits for, and so it is made anew.
    pub(super) fn hurry(&mut self, block: BlockRef) -> Option<CancellationToken> {
        let asked = self.asked.get_mut(&block).filter(|asked| !asked.urgent)?;
        asked.urgent = true;
        let Some(claim) = asked.claim else {
            self.queued[1] -= 1;
            self.queued[0] += 1;
            self.queues[0].push_back(block);
            return None;
        };
        let progress = &self.claims.get(&claim)?.progress;
        progress.urgent.store(true, Ordering::Relaxed);
        (!progress.started.load(Ordering::Relaxed)).then(|| progress.cut.clone())
    }

    /// A block that was taken back before it was passed on here.
    pub(super) fn never_asked(&mut self, block: BlockRef) {
        self.say.items.push(Item::Recalled(block));
    }

    /// Whether there is a slice worth claiming now.
    pub(super) fn is_ready(&self) -> bool {
        if self.queued == [0; 2] || self.waiting.is_some() || self.closed {
            return false;
        }
        if self.queued[0] > 0 {
            return true;
        }
        // Pieces are of whole blocks, but for the last ones.
        let (queued, coming) = (self.queued[1] as u64 * u64::from(BLOCK_LEN), self.coming());
        // A response that hangs keeps back no more than a share of what it holds, and nothing that is waited for.
        coming <= NEARLY_DONE || queued >= self.size(false, queued + coming)
    }

    /// Bytes that are worth one request, of which somebody waits for a part or not, when so many are asked for in all.
    fn size(&self, urgent: bool, all: u64) -> u64 {
        // A share of all that there is for each, so that none of them has nothing to do while another has much. What is
        // here in no time isn't worth sharing.
        let least = (self.rate / WORTH_SHARING).clamp(GATHER, GATHER_MAX);
        let share = (all / self.requesters.max(1) as u64).max(least);
        slices::size(self.rate, urgent, self.info.geometry.piece_length()).min(share)
    }

    /// Bytes that are claimed and still to come.
    fn coming(&self) -> u64 {
        self.claims.values().map(|held| held.progress.left.load(Ordering::Relaxed)).sum()
    }

    /// The queued blocks, what is urgent first; the queues are swept meanwhile.
    fn wanted(&mut self) -> Vec<BlockRef> {
        let mut seen = HashSet::new();
        let asked = &self.asked;
        for (urgent, queue) in [true, false].into_iter().zip(&mut self.queues) {
            queue.retain(|block| {
                let queued = asked.get(block).is_some_and(|a| a.claim.is_none() && a.urgent == urgent);
                queued && seen.insert(*block)
            });
        }
        self.queues.iter().flatten().copied().collect()
    }

    /// Claims the next slice for claim number `claim`, if there is one worth it.
    pub(super) fn claim(&mut self, claim: u64) -> Option<(Slice, Arc<Progress>)> {
        if !self.is_ready() {
            return None;
        }
        let urgent = self.queued[0] > 0;
        let all = (self.queued[0] + self.queued[1]) as u64 * u64::from(BLOCK_LEN) + self.coming();
        let size = self.size(urgent, all);
        let wanted = self.wanted();
        let slice = slices::next(&wanted, &self.info, self.kind, size)?;
        for block in &slice.blocks {
            if let Some(asked) = self.asked.get_mut(block) {
                asked.claim = Some(claim);
                self.queued[usize::from(!asked.urgent)] -= 1;
            }
        }
        let len = slice.parts.iter().map(|part| part.len).sum();
        let progress = Progress::new(len, urgent);
        let held =
            Held { blocks: slice.blocks.clone(), wanted: slice.blocks.len(), progress: progress.clone() };
        self.claims.insert(claim, held);
        Some((slice, progress))
    }

    /// Blocks of a claim have come: where they go. They aren't asked for any more.
    pub(super) fn came(&mut self, claim: u64, blocks: impl Iterator<Item = BlockRef>) -> Vec<Place> {
        let Some(held) = self.claims.get_mut(&claim) else { return Vec::new() };
        let mut places = Vec::new();
        for block in blocks {
            if self.asked.get(&block).is_some_and(|asked| asked.claim == Some(claim)) {
                held.wanted = held.wanted.saturating_sub(1);
                let asked = self.asked.remove(&block);
                let urgent = asked.as_ref().map(|asked| asked.urgent);
                places.push(Place { block, buffer: asked.map(|asked| asked.buffer), urgent });
            } else if self.recalled.get(&block).is_some_and(|(by, _)| *by == claim) {
                let buffer = self.recalled.remove(&block).and_then(|(_, buffer)| buffer.upgrade());
                places.push(Place { block, buffer, urgent: None });
            }
        }
        places
    }

    /// The opposite, for blocks that weren't put into their buffers after all.
    pub(super) fn came_not(&mut self, claim: u64, places: impl Iterator<Item = Place>) {
        for Place { block, buffer, urgent } in places {
            match (buffer, urgent) {
                (Some(buffer), Some(urgent)) if !self.asked.contains_key(&block) => {
                    self.asked.insert(block, Asked { buffer, urgent, claim: Some(claim) });
                }
                (_, None) => self.say.items.push(Item::Recalled(block)),
                _ => {}
            }
        }
    }

    /// A claim is over: what it didn't bring can be claimed again, or is told as rejected.
    pub(super) fn unclaim(&mut self, claim: u64) {
        let Some(held) = self.claims.remove(&claim) else { return };
        for block in held.blocks.into_iter().rev() {
            if self.recalled.get(&block).is_some_and(|(by, _)| *by == claim) {
                self.recalled.remove(&block);
                self.say.items.push(Item::Recalled(block));
            }
            if self.asked.get(&block).is_none_or(|asked| asked.claim != Some(claim)) {
                continue;
            }
            let stays = self.takes(block);
            if let Some(asked) = self.asked.get_mut(&block).filter(|_| stays) {
                asked.claim = None;
                self.queued[usize::from(!asked.urgent)] += 1;
                self.queues[usize::from(!asked.urgent)].push_front(block);
            } else {
                self.asked.remove(&block);
                self.say.rejects.push(block);
            }
        }
    }

    /// What is queued isn't any more: all of it that can't be claimed now.
    fn reject_queued(&mut self) {
        for block in self.wanted() {
            if !self.takes(block)
                && let Some(asked) = self.asked.remove(&block)
            {
                self.queued[usize::from(!asked.urgent)] -= 1;
                self.say.rejects.push(block);
            }
        }
    }

    /// It refuses a file from now on. False if it did before.
    pub(super) fn refuse(&mut self, file: FileIndex) -> bool {
        let new = !self.closed && self.refused.insert(file);
        if new {
            self.say.refuses.push(file);
            self.reject_queued();
        }
        new
    }

    /// Whether there is a file left that it doesn't refuse.
    pub(super) fn is_of_use(&self) -> bool {
        let files = self.info.files.iter().enumerate();
        let mut fetched = files.filter(|(_, f)| f.kind == FileKind::Regular && f.size > 0);
        fetched.any(|(n, _)| !self.refused.contains(&FileIndex(n as u32)))
    }

    /// It isn't asked for anything before this moment.
    pub(super) fn wait(&mut self, until: Instant) {
        self.waiting = self.waiting.max(Some(until));
        self.reject_queued();
    }

    /// Until when it isn't asked for anything, if it isn't; over when that has passed.
    pub(super) fn waits(&mut self, now: Instant) -> Option<Instant> {
        self.waiting = self.waiting.filter(|until| now < *until);
        self.seen = self.waiting;
        self.waiting
    }

    /// It isn't asked for anything any more. The first reason stays.
    pub(super) fn end(&mut self, reason: String) {
        self.closed = true;
        self.end.get_or_insert(reason);
    }

    /// Why it has ended, if it has.
    pub(super) fn ended(&self) -> Option<&String> {
        self.end.as_ref()
    }

    /// Where a file was found last, if redirects led there.
    pub(super) fn redirect(&self, file: FileIndex) -> Option<Url> {
        self.redirects.get(&file).cloned()
    }

    /// Redirects lead there, or no longer anywhere.
    pub(super) fn redirects(&mut self, file: FileIndex, to: Option<Url>) {
        match to {
            Some(to) if self.redirects.len() < REDIRECTS_MAX || self.redirects.contains_key(&file) => {
                self.redirects.insert(file, to);
            }
            // Those beyond the bound are followed each time.
            _ => _ = self.redirects.remove(&file),
        }
    }

    /// The host of this place fails: what else led there is looked for anew.
    pub(super) fn forget_host(&mut self, of: &Url) {
        let host = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        let failing = host(of);
        self.redirects.retain(|_, to| host(to) != failing);
    }

    /// A body of a file ended too early, though the server took it for whole: how often in a row.
    pub(super) fn fell_short(&mut self, file: FileIndex) -> u32 {
        let times = self.short.entry(file).or_default();
        *times += 1;
        *times
    }

    /// A body of a file was whole.
    pub(super) fn whole(&mut self, file: FileIndex) {
        self.short.remove(&file);
    }

    /// Nothing is claimed or queued any more. What was asked for is returned, to be dropped outside of the lock.
    #[must_use]
    pub(super) fn close(&mut self) -> impl Sized + use<> {
        self.closed = true;
        self.queued = [0; 2];
        let queues = std::mem::take(&mut self.queues);
        (
            std::mem::take(&mut self.asked),
            queues,
            std::mem::take(&mut self.recalled),
            std::mem::take(&mut self.say),
        )
    }

    /// A request brought so many bytes per second.
    pub(super) fn measured(&mut self, rate: u64) {
        // Over some requests, and a single fast or slow one doesn't count for all.
        self.rate = if self.rate == 0 { rate } else { (self.rate * 3 + rate) / 4 };
    }

    /// Bytes that cutting a request for something urgent must save at least.
    pub(super) fn worth_a_cut(&self) -> u64 {
        CUT_MIN.max(self.rate / CUT_GAIN)
    }

    /// Something urgent is queued and each requester has something else to do: which of them is to be cut for it,
    /// outside of the lock.
    pub(super) fn cut_for_urgent(&self) -> Option<CancellationToken> {
        if self.queued[0] == 0 || self.claims.len() < self.requesters {
            return None;
        }
        if self.claims.values().any(|held| held.progress.cut.is_cancelled()) {
            // One will be free in a moment.
            return None;
        }
        let spare = |held: &Held| {
            // Nobody wants it any more, and it keeps a requester all the same.
            let idle = held.wanted == 0 && held.progress.left.load(Ordering::Relaxed) > 0;
            if idle { Some(u64::MAX) } else { held.progress.spare() }
        };
        let spare = self.claims.values().filter_map(|held| Some((spare(held)?, &held.progress)));
        let (spare, progress) = spare.max_by_key(|(spare, _)| *spare)?;
        (spare >= self.worth_a_cut()).then(|| progress.cut.clone())
    }

    /// What is to be told.
    pub(super) fn take_say(&mut self) -> Say {
        std::mem::take(&mut self.say)
    }

    /// Whether there is something to tell or to see to.
    pub(super) fn has_news(&self) -> bool {
        !self.say.is_empty() || self.end.is_some() || self.waiting != self.seen
    }

    /// To be told: blocks that are in their buffers.
    pub(super) fn leave(&mut self, items: Vec<Item>) {
        if !self.closed {
            self.say.items.extend(items);
        }
    }

    /// Blocks queued, blocks claimed, claims.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize, usize) {
        let claimed = self.asked.values().filter(|asked| asked.claim.is_some()).count();
        (self.asked.len() - claimed, claimed, self.claims.len())
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
