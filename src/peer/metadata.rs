//! Metadata from peers (BEP 9): how a magnet link becomes a torrent. Pure.
//!
//! Parts: [`MetadataMessage`] and its codec; [`serve`], the answering side; [`MetadataAssembly`], which puts the
//! info dictionary together from several peers at once.
//!
//! Flow of an assembly: a peer's extension handshake names a size ([`MetadataAssembly::announce`]); whenever
//! something happened the session asks [`MetadataAssembly::next_requests`] for what to ask of its peer, hands
//! answers to [`MetadataAssembly::received`], and wakes up again after [`MetadataAssembly::next_wakeup`].
//!
//! Nothing but the info-hash proves anything, and only of the whole. So:
//! - Each size that peers announce is a *candidate* of its own; a liar about the size spoils nobody else's.
//! - A size costs no memory: a candidate grows with the data that came, and all together stay under a bound.
//! - When a whole has the wrong hash and came from one peer, that peer is to blame. When it came from several,
//!   the candidate is fetched again from one peer at a time (*alone*). Then either that peer is to blame, or the
//!   hash is right, and everyone whose earlier pieces differ is.
//!
//! Deliberately not here: hashing itself (a closure), parsing the result, sockets and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::metainfo::bencode::{self, Encoder, Value};
use crate::peer::extension::{ExtensionError, MAX_METADATA, MESSAGE_LIMITS};

/// Bytes of a metadata piece (BEP 9); the last one may be shorter.
pub const METADATA_PIECE: u32 = 16 * 1024;

/// One message of the metadata exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataMessage {
    /// Asks for a piece of the metadata.
    Request(u32),
    /// A piece of the metadata.
    Data {
        /// Its number.
        piece: u32,
        /// Bytes of the whole metadata.
        total: u32,
        /// Its data, as long as a piece with this number is.
        bytes: Bytes,
    },
    /// The sender doesn't have it, or won't give it now.
    Reject(u32),
}

impl MetadataMessage {
    /// The payload of the extended message.
    pub fn encode(&self) -> Bytes {
        let (kind, piece) = match self {
            Self::Request(piece) => (0, piece),
            Self::Data { piece, .. } => (1, piece),
            Self::Reject(piece) => (2, piece),
        };
        let mut out = Encoder::new();
        out.dict_begin().key("msg_type").int(kind).key("piece").int((*piece).into());
        if let Self::Data { total, .. } = self {
            out.key("total_size").int((*total).into());
        }
        out.end();
        let mut out = out.finish();
        if let Self::Data { bytes, .. } = self {
            out.extend_from_slice(bytes);
        }
        out.into()
    }

    /// Reads a message; `None` for a kind that we don't know, which is to be ignored (BEP 9). The data is a
    /// slice of `payload`.
    ///
    /// # Errors
    /// It isn't a bencoded dictionary, a number is missing or out of bounds, or the data hasn't the length of
    /// its piece.
    pub fn decode(payload: &Bytes) -> Result<Option<Self>, ExtensionError> {
        let (dict, used) =
            bencode::parse_prefix_with(payload, MESSAGE_LIMITS).map_err(ExtensionError::Bencode)?;
        if !dict.is_dict() {
            return Err(ExtensionError::NotDict);
        }
        let number = |key: &'static str, min: u32, max: u32| {
            let n = dict.get(key).and_then(Value::as_int).and_then(|n| u32::try_from(n).ok());
            n.filter(|n| (min..=max).contains(n)).ok_or(ExtensionError::Field(key))
        };
        let kind = dict.get("msg_type").and_then(Value::as_int).ok_or(ExtensionError::Field("msg_type"))?;
        let last = MAX_METADATA / METADATA_PIECE - 1;
        Ok(Some(match kind {
            0 => Self::Request(number("piece", 0, last)?),
            1 => {
                let piece = number("piece", 0, last)?;
                let total = number("total_size", 1, MAX_METADATA)?;
                let bytes = payload.slice(used..);
                if piece_len(total, piece) == 0 || bytes.len() != piece_len(total, piece) {
                    return Err(ExtensionError::Field("piece"));
                }
                Self::Data { piece, total, bytes }
            }
            2 => Self::Reject(number("piece", 0, last)?),
            _ => return Ok(None),
        }))
    }
}

/// Bytes of a metadata piece; 0 for one that doesn't exist.
fn piece_len(total: u32, piece: u32) -> usize {
    let begin = piece.saturating_mul(METADATA_PIECE);
    total.saturating_sub(begin).min(METADATA_PIECE) as usize
}

/// The answer to a request for a piece of the metadata `info`, which is `None` while we don't have it.
pub fn serve(info: Option<&Bytes>, piece: u32) -> MetadataMessage {
    let whole = info.and_then(|info| Some((info, u32::try_from(info.len()).ok()?)));
    match whole {
        Some((info, total)) if total <= MAX_METADATA && piece_len(total, piece) > 0 => {
            let begin = piece as usize * METADATA_PIECE as usize;
            let bytes = info.slice(begin..begin + piece_len(total, piece));
            MetadataMessage::Data { piece, total, bytes }
        }
        _ => MetadataMessage::Reject(piece),
    }
}

/// Requests that one peer has at once: at 100 ms of round trip it gives 1.3 MB/s, and clients begin to refuse at
/// some tens.
const PER_PEER: usize = 8;
/// After this long without an answer a request is given to another peer: several round trips on a slow line.
const STALLED: Duration = Duration::from_secs(3);
/// After this long a request counts as lost, and may go to the same peer again. A late answer is still taken.
const LOST: Duration = Duration::from_secs(10);
/// Peers that are asked for a piece at once when nothing unasked is left: the last pieces shouldn't wait for the
/// slowest, and cost at most twice then.
const AT_ONCE: usize = 2;
/// A peer that refuses isn't asked for this long, twice as long each further time, up to [`REFUSED_MAX`].
const REFUSED: Duration = Duration::from_secs(5);
/// The longest pause after refusals.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// All data of all candidates together, in bytes: the largest one whole, and as much again for liars.
const MAX_HELD: usize = 2 * MAX_METADATA as usize;
/// Sizes that nobody connected announces any more and whose data is kept, for when such a peer comes.
const MAX_ORPHANS: usize = 2;

/// What an answer led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received<P> {
    /// A piece that was lacking.
    Useful,
    /// It wasn't asked for, or another peer was faster.
    Unwanted,
    /// The metadata is whole and has the right hash. The assembly's work is done.
    Complete {
        /// The info dictionary's bytes.
        info: Bytes,
        /// Peers that sent wrong pieces before; gone from the assembly.
        blame: Vec<P>,
    },
    /// The hash is wrong, or a peer contradicted itself.
    Failed {
        /// Peers known to have lied; gone from the assembly. None while it could have been one of several.
        blame: Vec<P>,
    },
}

/// A peer of the assembly.
#[derive(Debug, Clone)]
struct Source {
    /// The size it announced.
    size: u32,
    /// What it was asked for and when.
    asked: BTreeMap<u32, Instant>,
    /// When it last gave a piece, or began to be the only one asked.
    progress: Option<Instant>,
    /// How often it had the turn of being the only one asked.
    turns: u32,
    /// Refusals since it last gave something, and until when it isn't asked.
    refusals: u32,
    paused_until: Option<Instant>,
}

impl Source {
    fn new(size: u32) -> Self {
        Self { size, asked: BTreeMap::new(), progress: None, turns: 0, refusals: 0, paused_until: None }
    }

    fn paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// Requests that may still be answered.
    fn live(&self, now: Instant) -> usize {
        self.asked.values().filter(|&&at| now.saturating_duration_since(at) < LOST).count()
    }
}

/// One announced size and what came of it.
#[derive(Debug)]
struct Candidate<P> {
    /// The pieces here, and who sent each.
    pieces: BTreeMap<u32, (P, Box<[u8]>)>,
    held: usize,
    /// Where the search for a piece to ask for begins: everything before it is here.
    first_missing: u32,
    /// The hash was wrong with pieces of several peers: fetch from one at a time.
    alone: bool,
    /// The one that is asked, when alone.
    turn: Option<P>,
    /// Who sent what in the failed try, as (piece, peer, hash of the data).
    suspects: Vec<(u32, P, u64)>,
}

impl<P> Candidate<P> {
    fn new() -> Self {
        Self {
            pieces: BTreeMap::new(),
            held: 0,
            first_missing: 0,
            alone: false,
            turn: None,
            suspects: Vec::new(),
        }
    }

    fn clear(&mut self) -> BTreeMap<u32, (P, Box<[u8]>)> {
        self.held = 0;
        self.first_missing = 0;
        std::mem::take(&mut self.pieces)
    }
}

/// Assembles the metadata from several peers at once. `P` names a connection and isn't used again for another.
#[derive(Debug)]
pub struct MetadataAssembly<P> {
    sources: BTreeMap<P, Source>,
    /// By size.
    candidates: BTreeMap<u32, Candidate<P>>,
    /// Peers that lied: not taken in again.
    blamed: BTreeSet<P>,
    hasher: RandomState,
}

impl<P: Copy + Ord> Default for MetadataAssembly<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Copy + Ord> MetadataAssembly<P> {
    /// One that knows of nobody.
    pub fn new() -> Self {
        Self {
            sources: BTreeMap::new(),
            candidates: BTreeMap::new(),
            blamed: BTreeSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// A peer says that it has metadata of `size` bytes. False when it isn't believed: a size of 0 or above
    /// [`MAX_METADATA`], or a peer that lied before.
    pub fn announce(&mut self, peer: P, size: u32) -> bool {
        if size == 0 || size > MAX_METADATA || self.blamed.contains(&peer) {
            return false;
        }
        if self.sources.get(&peer).is_some_and(|source| source.size == size) {
            return true;
        }
        self.gone(peer);
        self.sources.insert(peer, Source::new(size));
        self.candidates.entry(size).or_insert_with(Candidate::new);
        true
    }

    /// The connection is over: what the peer was asked for is free for others.
    pub fn gone(&mut self, peer: P) {
        let Some(source) = self.sources.remove(&peer) else { return };
        if let Some(candidate) = self.candidates.get_mut(&source.size)
            && candidate.turn == Some(peer)
        {
            candidate.turn = None;
            candidate.clear();
        }
        self.forget_orphans();
    }

    /// What to ask of this peer now; it counts as asked. Empty when it has enough to do, refused lately, or has
    /// nothing that is lacking. To be called for every peer after each event, since one's failure is another's
    /// work.
    pub fn next_requests(&mut self, peer: P, now: Instant) -> Vec<u32> {
        let Some(source) = self.sources.get(&peer) else { return Vec::new() };
        let size = source.size;
        let room = PER_PEER.saturating_sub(source.live(now));
        if source.paused(now) || room == 0 || !self.has_turn(peer, size, now) {
            return Vec::new();
        }
        let (Some(candidate), Some(source)) = (self.candidates.get(&size), self.sources.get(&peer)) else {
            return Vec::new();
        };
        // Of each lacking piece that somebody was asked for: how often in all, and how often lately.
        let mut asked: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        let others = self.sources.values().filter(|s| s.size == size);
        let others = others.flat_map(|s| &s.asked);
        for (&piece, &at) in others.filter(|(piece, _)| !candidate.pieces.contains_key(piece)) {
            let age = now.saturating_duration_since(at);
            if age < LOST {
                let entry = asked.entry(piece).or_default();
                entry.0 += 1;
                entry.1 += usize::from(age < STALLED);
            }
        }
        let mine =
            |piece: &u32| source.asked.get(piece).is_some_and(|&at| now.saturating_duration_since(at) < LOST);
        let lacking = (candidate.first_missing..size.div_ceil(METADATA_PIECE))
            .filter(|piece| !candidate.pieces.contains_key(piece));
        let mut chosen: Vec<u32> = lacking.filter(|piece| !asked.contains_key(piece)).take(room).collect();
        if chosen.len() < room {
            // Nothing unasked is left: help with what others were asked for, the stalled first.
            let mut helpable: Vec<_> = asked
                .iter()
                .filter(|(piece, (_, recent))| *recent < AT_ONCE && !mine(piece))
                .map(|(&piece, &(all, recent))| (recent, all, piece))
                .collect();
            helpable.sort_unstable();
            chosen.extend(helpable.iter().map(|&(_, _, piece)| piece).take(room - chosen.len()));
        }
        if let Some(source) = self.sources.get_mut(&peer) {
            source.asked.extend(chosen.iter().map(|&piece| (piece, now)));
        }
        chosen
    }

    /// Whether the peer may be asked: always, except when the candidate is fetched from one peer at a time.
    fn has_turn(&mut self, peer: P, size: u32, now: Instant) -> bool {
        let Some(candidate) = self.candidates.get_mut(&size) else { return false };
        if !candidate.alone {
            return true;
        }
        let stuck = |p: P| match self.sources.get(&p) {
            Some(source) => {
                let idle = source.progress.is_none_or(|at| now.saturating_duration_since(at) >= 2 * STALLED);
                idle || source.paused(now)
            }
            None => true,
        };
        match candidate.turn {
            Some(turn) if turn == peer => return true,
            Some(turn) if !stuck(turn) => return false,
            _ => {}
        }
        // The turn is free, or its holder gives nothing. It goes to who had it least often, so that a few
        // silent peers can't hand it round among themselves; the new try begins with nothing of the others'.
        let had = |source: &Source| source.turns;
        // Who has it and gives nothing doesn't count: it would keep it for ever from all who had it more often.
        let holder = candidate.turn;
        let others =
            self.sources.iter().filter(|(p, s)| s.size == size && !s.paused(now) && holder != Some(**p));
        if self.sources.get(&peer).map(had) > others.map(|(_, s)| had(s)).min() {
            return false;
        }
        candidate.turn = Some(peer);
        candidate.clear();
        self.sources.values_mut().filter(|s| s.size == size).for_each(|s| s.asked.clear());
        if let Some(source) = self.sources.get_mut(&peer) {
            source.progress = Some(now);
            source.turns = source.turns.saturating_add(1);
        }
        true
    }

    /// A piece came. `verify` says whether bytes have the info-hash; it is called when a candidate is whole, and
    /// takes as long as hashing it takes: some milliseconds for each MiB.
    pub fn received(
        &mut self,
        peer: P,
        piece: u32,
        total: u32,
        data: &[u8],
        now: Instant,
        verify: impl Fn(&[u8]) -> bool,
    ) -> Received<P> {
        let Some(source) = self.sources.get_mut(&peer) else { return Received::Unwanted };
        if source.asked.remove(&piece).is_none() {
            return Received::Unwanted;
        }
        let size = source.size;
        if total != size || data.len() != piece_len(size, piece) {
            self.blame(peer);
            return Received::Failed { blame: vec![peer] };
        }
        source.progress = Some(now);
        source.refusals = 0;
        source.paused_until = None;
        let Some(candidate) = self.candidates.get_mut(&size) else { return Received::Unwanted };
        // A late answer of one whose turn is over would spoil the proof.
        if candidate.pieces.contains_key(&piece) || (candidate.alone && candidate.turn != Some(peer)) {
            return Received::Unwanted;
        }
        candidate.pieces.insert(piece, (peer, data.into()));
        candidate.held += data.len();
        while candidate.pieces.contains_key(&candidate.first_missing) {
            candidate.first_missing += 1;
        }
        if candidate.held == size as usize {
            return self.finish(size, verify);
        }
        self.bound_memory(size);
        Received::Useful
    }

    /// A candidate is whole: checks it, and draws the consequences.
    fn finish(&mut self, size: u32, verify: impl Fn(&[u8]) -> bool) -> Received<P> {
        let Some(candidate) = self.candidates.get_mut(&size) else { return Received::Unwanted };
        let mut info = Vec::with_capacity(candidate.held);
        let mut senders = Vec::with_capacity(candidate.pieces.len());
        for (sender, data) in candidate.clear().into_values() {
            info.extend_from_slice(&data);
            senders.push(sender);
        }
        let hashes = |info: &[u8]| -> Vec<u64> {
            info.chunks(METADATA_PIECE as usize).map(|chunk| self.hasher.hash_one(chunk)).collect()
        };
        if verify(&info) {
            let mut blame = BTreeSet::new();
            if !candidate.suspects.is_empty() {
                let right = hashes(&info);
                let liars = candidate.suspects.iter().filter(|&&(piece, peer, hash)| {
                    right.get(piece as usize) != Some(&hash) && !self.blamed.contains(&peer)
                });
                blame.extend(liars.map(|&(_, peer, _)| peer));
            }
            // Nothing more is asked, and what is under way still isn't wanted.
            self.sources.clear();
            self.candidates.clear();
            return Received::Complete { info: info.into(), blame: blame.into_iter().collect() };
        }
        // Whatever is still under way belongs to the failed try.
        self.sources.values_mut().filter(|s| s.size == size).for_each(|s| s.asked.clear());
        let distinct: BTreeSet<P> = senders.iter().copied().collect();
        if let (Some(&liar), 1) = (distinct.first(), distinct.len()) {
            candidate.turn = None;
            self.blame(liar);
            return Received::Failed { blame: vec![liar] };
        }
        let sent = (0u32..).zip(senders).zip(hashes(&info));
        candidate.suspects = sent.map(|((piece, peer), hash)| (piece, peer, hash)).collect();
        candidate.alone = true;
        Received::Failed { blame: Vec::new() }
    }

    fn blame(&mut self, peer: P) {
        self.gone(peer);
        self.blamed.insert(peer);
    }

    /// The peer refuses a piece, for want of it or for being asked too much: it is left alone for a while.
    pub fn rejected(&mut self, peer: P, piece: u32, now: Instant) {
        let Some(source) = self.sources.get_mut(&peer) else { return };
        if source.asked.remove(&piece).is_none() {
            return;
        }
        // The requests sent along with it will be refused too: that is one refusal.
        if !source.paused(now) {
            let pause = REFUSED.saturating_mul(1 << source.refusals.min(16)).min(REFUSED_MAX);
            source.refusals = source.refusals.saturating_add(1);
            source.paused_until = Some(now + pause);
        }
    }

    /// Until when nothing changes by itself: then [`MetadataAssembly::next_requests`] may have more for some
    /// peer. `None` when only an event can change anything.
    pub fn next_wakeup(&self, now: Instant) -> Option<Duration> {
        let moments = self.sources.values().flat_map(|source| {
            let asked = source.asked.values().flat_map(|&at| [at + STALLED, at + LOST]);
            let turn = source.progress.map(|at| at + 2 * STALLED);
            asked.chain(source.paused_until).chain(turn)
        });
        moments.filter(|&at| at > now).min().map(|at| at - now)
    }

    /// Bytes here and in all of the candidate that has come farthest; `None` while no peer announced a size.
    pub fn progress(&self) -> Option<(u32, u32)> {
        let farthest = self.candidates.iter().max_by_key(|(_, candidate)| candidate.held);
        farthest.map(|(&size, candidate)| (candidate.held as u32, size))
    }

    fn supporters(&self, size: u32) -> usize {
        self.sources.values().filter(|source| source.size == size).count()
    }

    /// Drops candidates that no peer announces any more, but for the few that hold the most.
    fn forget_orphans(&mut self) {
        let mut orphans: Vec<(usize, u32)> = self
            .candidates
            .iter()
            .filter(|(size, _)| self.supporters(**size) == 0)
            .map(|(&size, candidate)| (candidate.held, size))
            .collect();
        orphans.sort_unstable_by(|a, b| b.cmp(a));
        for (rank, (held, size)) in orphans.into_iter().enumerate() {
            // One that failed is kept too, or the same liars could come again as if nothing had been.
            let failed = self.candidates.get(&size).is_some_and(|candidate| candidate.alone);
            if rank >= MAX_ORPHANS || (held == 0 && !failed) {
                self.candidates.remove(&size);
            }
        }
    }

    /// Keeps all data under [`MAX_HELD`]: what the fewest peers support goes first, never candidate `keep`.
    fn bound_memory(&mut self, keep: u32) {
        while self.candidates.values().map(|candidate| candidate.held).sum::<usize>() > MAX_HELD {
            let others = self.candidates.iter().filter(|(size, c)| **size != keep && c.held > 0);
            let worst = others.map(|(&size, c)| (self.supporters(size), usize::MAX - c.held, size)).min();
            let Some(candidate) = worst.and_then(|(_, _, size)| self.candidates.get_mut(&size)) else {
                return;
            };
            candidate.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 + i / 16384) as u8).collect()
    }

    /// A piece of `info`, as a peer that has it would answer.
    fn answer(info: &[u8], piece: u32) -> &[u8] {
        let begin = piece as usize * METADATA_PIECE as usize;
        &info[begin..begin + piece_len(info.len() as u32, piece)]
    }

    /// Lets a peer answer all that it is asked, with `info`; what the last answer led to.
    fn answer_all(
        assembly: &mut MetadataAssembly<u32>,
        peer: u32,
        info: &[u8],
        right: &[u8],
        now: Instant,
    ) -> Option<Received<u32>> {
        let mut last = None;
        for piece in assembly.next_requests(peer, now) {
            let total = info.len() as u32;
            last = Some(assembly.received(peer, piece, total, answer(info, piece), now, |b| b == right));
        }
        last
    }

    #[test]
    fn messages_have_their_bytes() {
        let data = Bytes::from(vec![b'x'; 2]);
        let rows: [(MetadataMessage, &[u8]); 3] = [
            (MetadataMessage::Request(3), b"d8:msg_typei0e5:piecei3ee"),
            (
                MetadataMessage::Data { piece: 1, total: METADATA_PIECE + 2, bytes: data },
                b"d8:msg_typei1e5:piecei1e10:total_sizei16386eexx",
            ),
            (MetadataMessage::Reject(0), b"d8:msg_typei2e5:piecei0ee"),
        ];
        for (message, bytes) in rows {
            assert_eq!(&message.encode()[..], bytes);
            assert_eq!(MetadataMessage::decode(&Bytes::from_static(bytes)), Ok(Some(message)));
        }
    }

    #[test]
    fn broken_messages_are_refused() {
        type Decoded = Result<Option<MetadataMessage>, ExtensionError>;
        let field = |name| Err(ExtensionError::Field(name));
        #[rustfmt::skip]
        let rows: [(&'static [u8], Decoded); 9] = [
            (b"d8:msg_typei3e5:piecei0ee", Ok(None)),
            (b"d5:piecei0ee", field("msg_type")),
            (b"d8:msg_typei0ee", field("piece")),
            (b"d8:msg_typei0e5:piecei-1ee", field("piece")),
            (b"d8:msg_typei0e5:piecei4096ee", field("piece")),
            (b"d8:msg_typei1e5:piecei0eex", field("total_size")),
            (b"d8:msg_typei1e5:piecei0e10:total_sizei67108865eex", field("total_size")),
            (b"d8:msg_typei1e5:piecei0e10:total_sizei2eex", field("piece")),
            (b"d8:msg_typei1e5:piecei1e10:total_sizei16384ee", field("piece")),
        ];
        for (bytes, wanted) in rows {
            assert_eq!(MetadataMessage::decode(&Bytes::from_static(bytes)), wanted);
        }
        assert_eq!(MetadataMessage::decode(&Bytes::from_static(b"le")), Err(ExtensionError::NotDict));
        assert!(MetadataMessage::decode(&Bytes::from_static(b"d")).is_err());
    }

    #[test]
    fn serving_gives_every_piece_and_rejects_the_rest() {
        let info = Bytes::from(sample(40_000));
        let mut whole = Vec::new();
        for piece in 0..3 {
            let MetadataMessage::Data { bytes, total, .. } = serve(Some(&info), piece) else {
                panic!("data")
            };
            assert_eq!(total, 40_000);
            whole.extend_from_slice(&bytes);
        }
        assert_eq!(whole, info);
        assert_eq!(serve(Some(&info), 3), MetadataMessage::Reject(3));
        assert_eq!(serve(Some(&info), u32::MAX), MetadataMessage::Reject(u32::MAX));
        assert_eq!(serve(None, 0), MetadataMessage::Reject(0));
    }

    #[test]
    fn r3_metadata_of_6_7_mb_comes_from_several_peers() {
        let info = sample(6_700_000);
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        for peer in 0..3 {
            assert!(assembly.announce(peer, info.len() as u32));
        }
        let mut asked = [0; 3];
        let mut outcome = None;
        while !matches!(outcome, Some(Received::Complete { .. })) {
            let rounds: Vec<_> = (0..3).map(|peer| assembly.next_requests(peer, now)).collect();
            assert!(rounds.iter().any(|pieces| !pieces.is_empty()), "never stuck");
            for (peer, pieces) in rounds.into_iter().enumerate() {
                assert!(pieces.len() <= PER_PEER);
                asked[peer] += pieces.len();
                for piece in pieces {
                    let data = answer(&info, piece);
                    let got =
                        assembly.received(peer as u32, piece, info.len() as u32, data, now, |b| b == info);
                    if got != Received::Unwanted {
                        outcome = Some(got);
                    }
                }
            }
        }
        assert_eq!(outcome, Some(Received::Complete { info: info.into(), blame: vec![] }));
        assert!(asked.iter().all(|&n| n > 100), "each had its share: {asked:?}");
        assert!(asked.iter().sum::<usize>() <= 409 + 2 * PER_PEER, "hardly anything twice: {asked:?}");
    }

    #[test]
    fn a_single_piece_is_asked_of_two_at_once_and_of_a_third_when_they_stall() {
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        for peer in 0..4 {
            assembly.announce(peer, 100);
        }
        let ask = |a: &mut MetadataAssembly<u32>, peer, now| a.next_requests(peer, now);
        assert_eq!(ask(&mut assembly, 0, now), [0]);
        assert_eq!(ask(&mut assembly, 0, now), [0u32; 0]);
        assert_eq!(ask(&mut assembly, 1, now), [0]);
        assert_eq!(ask(&mut assembly, 2, now), [0u32; 0]);
        assert_eq!(assembly.next_wakeup(now), Some(STALLED));
        assert_eq!(ask(&mut assembly, 0, now + STALLED), [0u32; 0], "not the same peer again");
        assert_eq!(ask(&mut assembly, 2, now + STALLED), [0]);
        // Lost, and free for the same peer again; but a late answer is still good.
        assert_eq!(ask(&mut assembly, 0, now + LOST), [0]);
        let info = sample(100);
        let got = assembly.received(1, 0, 100, &info, now + LOST, |_| true);
        assert_eq!(got, Received::Complete { info: info.into(), blame: vec![] });
    }

    #[test]
    fn a_stalled_peers_requests_go_to_another() {
        let info = sample(4 * 16384);
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, info.len() as u32);
        assert_eq!(assembly.next_requests(1, now), [0, 1, 2, 3]);
        assembly.announce(2, info.len() as u32);
        let later = now + STALLED;
        let got = answer_all(&mut assembly, 2, &info, &info, later);
        assert_eq!(got, Some(Received::Complete { info: info.clone().into(), blame: vec![] }));

        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, info.len() as u32);
        assembly.next_requests(1, now);
        assembly.gone(1);
        assembly.announce(2, info.len() as u32);
        assert_eq!(assembly.next_requests(2, now), [0, 1, 2, 3], "at once when the peer is gone");
    }

    #[test]
    fn a_refusing_peer_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, 40_000);
        for (at, pause) in [(0, 5), (5, 10), (15, 20), (35, 40), (75, 60), (135, 60)] {
            let at = now + S * at;
            assert_eq!(assembly.next_requests(1, at), [0, 1, 2]);
            for piece in 0..3 {
                assembly.rejected(1, piece, at);
            }
            assert_eq!(assembly.next_requests(1, at + S * pause - S / 2), [0u32; 0]);
            assert_eq!(assembly.next_wakeup(at), Some(S * pause));
        }
    }

    #[test]
    fn sizes_are_believed_up_to_a_bound_and_kept_apart() {
        let info = sample(20_000);
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assert!(!assembly.announce(1, 0));
        assert!(!assembly.announce(1, MAX_METADATA + 1));
        assert_eq!(assembly.progress(), None);
        assert!(assembly.announce(1, MAX_METADATA));
        assert!(assembly.announce(2, info.len() as u32));
        assert_eq!(assembly.next_requests(1, now).len(), PER_PEER);
        assert_eq!(assembly.next_requests(2, now), [0, 1], "the liar's candidate is another");
        let got = assembly.received(2, 0, 20_000, answer(&info, 0), now, |_| false);
        assert_eq!(got, Received::Useful);
        assert_eq!(assembly.progress(), Some((16384, 20_000)));
        let got = assembly.received(2, 1, 20_000, answer(&info, 1), now, |b| b == info);
        assert!(matches!(got, Received::Complete { .. }));
    }

    #[test]
    fn unasked_and_contradicting_answers() {
        let info = sample(20_000);
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, 20_000);
        let first = answer(&info, 0);
        assert_eq!(assembly.received(1, 0, 20_000, first, now, |_| true), Received::Unwanted, "not asked");
        assert_eq!(assembly.received(9, 0, 20_000, first, now, |_| true), Received::Unwanted, "unknown peer");
        assembly.next_requests(1, now);
        assert_eq!(assembly.received(1, 0, 20_000, first, now, |_| true), Received::Useful);
        assert_eq!(assembly.received(1, 0, 20_000, first, now, |_| true), Received::Unwanted, "twice");
        let other = Received::Failed { blame: vec![1] };
        assert_eq!(assembly.received(1, 1, 20_001, &info[16384..], now, |_| true), other);
        assert!(!assembly.announce(1, 20_000), "not taken in again");
    }

    #[test]
    fn one_liar_alone_is_blamed() {
        let info = sample(40_000);
        let lie = vec![9; 40_000];
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, 40_000);
        let got = answer_all(&mut assembly, 1, &lie, &info, now);
        assert_eq!(got, Some(Received::Failed { blame: vec![1] }));
        assembly.announce(2, 40_000);
        let got = answer_all(&mut assembly, 2, &info, &info, now);
        assert!(matches!(got, Some(Received::Complete { .. })));
    }

    /// Peers 0..4, of which `liar` lies, share 40 pieces; every peer is served in turn until it is whole.
    fn with_liar(liar: u32) -> (Vec<u32>, usize) {
        let info = sample(40 * 16384);
        let lie = vec![9; info.len()];
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        for peer in 0..4 {
            assembly.announce(peer, info.len() as u32);
        }
        let mut blamed = Vec::new();
        for round in 0..100 {
            let peer = round % 4;
            let sent = if peer == liar { &lie } else { &info };
            match answer_all(&mut assembly, peer, sent, &info, now) {
                Some(Received::Complete { info: got, blame }) => {
                    assert_eq!(got, info);
                    blamed.extend(blame);
                    return (blamed, round as usize);
                }
                Some(Received::Failed { blame }) => blamed.extend(blame),
                _ => {}
            }
        }
        panic!("never whole");
    }

    #[test]
    fn a_liar_among_several_is_found_and_the_metadata_comes() {
        for liar in 0..4 {
            let (blamed, rounds) = with_liar(liar);
            assert_eq!(blamed, [liar]);
            assert!(rounds < 60, "{rounds}");
        }
    }

    #[test]
    fn the_only_one_asked_loses_its_turn_when_it_stalls() {
        let info = sample(2 * 16384);
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        assembly.announce(1, info.len() as u32);
        assembly.announce(2, info.len() as u32);
        // Each sends one piece; the first one's is wrong.
        assert_eq!(assembly.next_requests(1, now), [0, 1]);
        assert_eq!(assembly.next_requests(2, now), [0, 1]);
        let size = info.len() as u32;
        let check = |b: &[u8]| b == info;
        assert_eq!(assembly.received(1, 0, size, &[9; 16384], now, check), Received::Useful);
        assert_eq!(
            assembly.received(2, 1, size, answer(&info, 1), now, check),
            Received::Failed { blame: vec![] }
        );
        assert_eq!(assembly.received(1, 1, size, answer(&info, 1), now, check), Received::Unwanted);
        // The first one is asked alone now, and says nothing.
        assert_eq!(assembly.next_requests(1, now), [0, 1]);
        assert_eq!(assembly.next_requests(2, now), [0u32; 0]);
        let later = now + 2 * STALLED;
        assert_eq!(assembly.next_wakeup(now + STALLED), Some(STALLED));
        assert_eq!(assembly.next_requests(2, later), [0, 1]);
        assert_eq!(assembly.received(1, 0, size, &[9; 16384], later, check), Received::Unwanted);
        assert_eq!(assembly.received(2, 0, size, answer(&info, 0), later, check), Received::Useful);
        let got = assembly.received(2, 1, size, answer(&info, 1), later, check);
        assert_eq!(got, Received::Complete { info: info.clone().into(), blame: vec![1] });
    }

    #[test]
    fn memory_is_bounded_and_the_least_supported_goes_first() {
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        // Three sizes of almost 64 MiB; the last one is announced by two peers.
        let sizes = [MAX_METADATA, MAX_METADATA - 1, MAX_METADATA - 2];
        for (peer, size) in [(0, sizes[0]), (1, sizes[1]), (2, sizes[2]), (3, sizes[2])] {
            assembly.announce(peer, size);
        }
        let data = vec![0; METADATA_PIECE as usize];
        let pieces = MAX_METADATA / METADATA_PIECE - 1;
        for peer in [2, 0, 1] {
            let size = sizes[peer as usize];
            let mut got = 0;
            while got < pieces - 1 {
                for piece in assembly.next_requests(peer, now) {
                    if piece < pieces {
                        assembly.received(peer, piece, size, &data, now, |_| false);
                        got += 1;
                    }
                }
            }
            let held = |size| assembly.candidates.get(&size).map_or(0, |c: &Candidate<u32>| c.held);
            assert!(sizes.iter().map(|&size| held(size)).sum::<usize>() <= MAX_HELD);
            assert!(held(sizes[2]) > 60 << 20, "the one that two peers announce stays");
        }
    }

    #[test]
    fn candidates_without_peers_dont_pile_up() {
        let now = Instant::now();
        let mut assembly = MetadataAssembly::new();
        for peer in 0..100u32 {
            let size = 100_000 + peer;
            assembly.announce(peer, size);
            for piece in assembly.next_requests(peer, now).into_iter().take(1) {
                assembly.received(peer, piece, size, &[0; 16384], now, |_| false);
            }
            assembly.gone(peer);
            assert!(assembly.candidates.len() <= MAX_ORPHANS);
        }
        assert!(assembly.sources.is_empty());
    }

    #[test]
    fn a_silent_peer_does_not_keep_the_turn_from_one_that_had_it_more_often() {
        let (now, size) = (Instant::now(), 20_000);
        let info = sample(size as usize);
        let mut assembly = MetadataAssembly::new();
        for peer in 0..2 {
            assembly.announce(peer, size);
        }
        // Together they make something wrong: from here on one at a time.
        let lie = |piece| vec![1; piece_len(size, piece)];
        assembly.next_requests(0, now);
        assembly.next_requests(1, now);
        assembly.received(0, 0, size, answer(&info, 0), now, |b| b == info);
        let failed = assembly.received(1, 1, size, &lie(1), now, |b| b == info);
        assert_eq!(failed, Received::Failed { blame: Vec::new() });
        // The honest one has two turns, in which it refuses; then the other has one and is silent.
        let mut now = now;
        for _ in 0..2 {
            let asked = assembly.next_requests(0, now);
            asked.into_iter().for_each(|piece| assembly.rejected(0, piece, now));
            now += 20 * S;
        }
        for _ in 0..200 {
            assembly.next_requests(1, now);
            for piece in assembly.next_requests(0, now) {
                if let Received::Complete { info: got, .. } =
                    assembly.received(0, piece, size, answer(&info, piece), now, |b| b == info)
                {
                    assert_eq!(&got[..], &info[..]);
                    return;
                }
            }
            now += S;
        }
        panic!("never whole");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            _ = MetadataMessage::decode(&bytes.into());
        }

        /// Whatever is answered, lost or refused, in any order: with one honest peer it ends with the right bytes.
        #[test]
        fn an_honest_peer_is_enough(steps in proptest::collection::vec((0u32..4, 0u8..4), 0..60), len in 1usize..200_000) {
            let info = sample(len);
            let size = len as u32;
            let mut now = Instant::now();
            let mut assembly = MetadataAssembly::new();
            for peer in 0..4 {
                assembly.announce(peer, size);
            }
            let mut done = false;
            for (peer, what) in steps {
                let asked = assembly.next_requests(peer, now);
                for piece in asked {
                    let got = match what {
                        // Only peers above 0 lie.
                        0 if peer > 0 => {
                            assembly.received(peer, piece, size, &vec![1; piece_len(size, piece)], now, |b| b == info)
                        }
                        1 => { assembly.rejected(peer, piece, now); continue }
                        2 => continue,
                        _ => assembly.received(peer, piece, size, answer(&info, piece), now, |b| b == info),
                    };
                    if let Received::Complete { info: got, .. } = &got {
                        prop_assert_eq!(&got[..], &info[..]);
                        done = true;
                    }
                    if let Received::Failed { blame } = got {
                        prop_assert!(!blame.contains(&0), "the honest one is never blamed");
                    }
                }
                if done { return Ok(()) }
                now += S;
            }
            // From here on only the honest one answers.
            for _ in 0..200 {
                for peer in [1, 2, 3, 0] {
                    let asked = assembly.next_requests(peer, now);
                    if peer == 0 {
                        for piece in asked {
                            let got = assembly.received(0, piece, size, answer(&info, piece), now, |b| b == info);
                            done |= matches!(got, Received::Complete { .. });
                        }
                    }
                }
                if done { return Ok(()) }
                now += S;
            }
            prop_assert!(false, "never whole");
        }
    }
}
