//! What comes of pieces: hashed and written, found on disk, complete; and who is banned for what. A part of the
//! [`Swarm`]'s `apply`, and as pure as the rest of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::blame::{Digest, Sender};
use super::effects::{Effect, Looked, Verdict};
use super::reads::ReadError;
use super::swarm::Swarm;
use super::table::PieceState;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::peer::PeerKey;

/// The full check pauses when it has worked this long, for [`SWEEP_PAUSE`] times as long as it has: long enough that
/// small pieces aren't each followed by a pause that is shorter than the torrent's clock can tell…
const SWEEP_SLICE: Duration = Duration::from_millis(25);
/// …and with it a quarter of one thread and of a disk's time: who reads hardly notices.
const SWEEP_PAUSE: u32 = 3;
/// Pieces that may fail to be written one after another; then the torrent is at fault, and nothing more is fetched.
pub(super) const FAULTS: u32 = 3;
/// Banned addresses shown. Each took a bad piece, so it isn't reached unless somebody works at it.
const BANNED_MAX: usize = 1024;

/// How far the full check is, and when it goes on. One piece is hashed at a time, in order.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The piece to look at next; `None` when there is no full check, or no piece left.
    at: Option<u32>,
    /// The piece that is being hashed, and since when.
    under_way: Option<(PieceIndex, Instant)>,
    /// Time worked since the last pause. What a piece waited for a free worker counts: that means load.
    worked: Duration,
    /// The end of the pause.
    resumes: Option<Instant>,
}

impl Sweep {
    /// From the first piece on, if there is to be one.
    pub(super) fn new(all: bool) -> Self {
        Self { at: all.then_some(0), ..Self::default() }
    }

    /// When it is to be looked at again, if time is all it waits for.
    pub(super) fn resumes(&self) -> Option<Instant> {
        self.resumes.filter(|_| self.at.is_some() && self.under_way.is_none())
    }

    /// The next of `pieces` pieces, if one is to be looked at now.
    fn next(&mut self, pieces: u32, now: Instant) -> Option<PieceIndex> {
        if self.under_way.is_some() || self.resumes.is_some_and(|at| now < at) {
            return None;
        }
        self.resumes = None;
        let next = self.at.take().filter(|next| *next < pieces)?;
        self.at = Some(next + 1);
        Some(PieceIndex(next))
    }

    fn begins(&mut self, piece: PieceIndex, now: Instant) {
        self.under_way = Some((piece, now));
    }

    fn ended(&mut self, piece: PieceIndex, now: Instant) {
        let Some((_, since)) = self.under_way.take_if(|(under_way, _)| *under_way == piece) else { return };
        self.worked += now.saturating_duration_since(since);
        if self.worked >= SWEEP_SLICE {
            self.resumes = Some(now + std::mem::take(&mut self.worked) * SWEEP_PAUSE);
        }
    }
}

impl Swarm {
    pub(super) fn verified(
        &mut self,
        piece: PieceIndex,
        verdict: Verdict,
        digests: &[Digest],
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let Some(live) = &mut self.live else { return };
        // It may have been written to what was there before.
        let tainted = live.tainted.remove(&piece) && verdict == Verdict::Good;
        if tainted {
            // It was kept somewhere, for which it has its room.
            fx.push(Effect::Discard(vec![piece]));
        }
        let verdict = if tainted { Verdict::Harmed } else { verdict };
        match verdict {
            Verdict::Good => {
                if self.lost_syncs == 0 {
                    self.error = None;
                }
                self.faults = 0;
                for (sender, blocks) in live.blame.passed(piece, digests) {
                    self.convict(sender, piece, Some(&blocks), fx);
                }
                self.complete(piece, now, fx);
            }
            Verdict::Bad => {
                let from = live.picker.failed(piece, true);
                live.table.set(piece, PieceState::Missing);
                let sender = |key: PeerKey| {
                    if self.webseeds.contains_key(&key) {
                        return Some(Sender::Webseed(key));
                    }
                    let here = self.peers.get(&key).map(|p| p.who.addr);
                    let gone = || self.departed.iter().find(|(k, _)| *k == key).map(|(_, addr)| *addr);
                    here.or_else(gone).map(Sender::Peer)
                };
                let from: Vec<Option<Sender>> = from.iter().map(|k| k.and_then(sender)).collect();
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "a piece failed its hash; fetching it again");
                if !live.background.taken().contains(&piece) {
                    live.background.put_back(piece);
                }
                if let Some(sender) = live.blame.failed(piece, &from, digests) {
                    self.convict(sender, piece, None, fx);
                }
            }
            Verdict::Unwritten(_) | Verdict::Harmed => {
                live.picker.failed(piece, false);
                live.table.set(piece, PieceState::Missing);
                if !live.background.taken().contains(&piece) {
                    live.background.put_back(piece);
                }
                // A full disk is waited for; it says when there is room. And a file that somebody was at is opened anew:
                // all that was to be written to it meanwhile failed at once, and none of that is the disk's fault.
                if let Verdict::Unwritten(error) = verdict
                    && error != ReadError::Full
                {
                    self.fault(&error, fx);
                }
            }
        }
    }

    /// The disk failed. Whoever waits goes on waiting, a few times.
    fn fault(&mut self, error: &ReadError, fx: &mut Vec<Effect>) {
        self.faults += 1;
        self.failed(self.faults, error, fx);
    }

    /// It failed so often in a row.
    fn failed(&mut self, times: u32, error: &ReadError, fx: &mut Vec<Effect>) {
        self.error = Some(error.to_string());
        if let Some(live) = self.live.as_mut().filter(|_| times >= FAULTS) {
            tracing::error!(torrent = %live.info.name, "nothing more is fetched, since it can't be kept: {error}");
            live.demands.fail_all(error, &live.table, &mut live.picker, fx);
        }
    }

    /// What was written of these pieces is lost, or can't be believed.
    pub(super) fn lost(&mut self, pieces: &[PieceIndex], now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        let gone: Vec<PieceIndex> = pieces.iter().copied().filter(|p| live.table.is_complete(*p)).collect();
        for piece in &gone {
            live.table.set(*piece, PieceState::Missing);
            if !live.background.taken().contains(piece) {
                live.background.put_back(*piece);
            }
        }
        self.no_longer_here(&gone, fx);
        if !gone.is_empty() {
            fx.push(Effect::Discard(gone));
        }
        let why = "the disk failed to keep what was written; it is fetched again".to_owned();
        // Writes that are good in between say nothing against it.
        self.lost_syncs += 1;
        self.failed(self.lost_syncs, &ReadError::Io(why), fx);
        self.all_interests(now, fx);
    }

    /// The disk keeps what is written.
    pub(super) fn kept(&mut self) {
        if std::mem::take(&mut self.lost_syncs) > 0 && self.faults == 0 {
            self.error = None;
        }
    }

    /// Makes pieces missing that nobody holds, as if they had never been fetched: nobody is to blame, and they are
    /// fetched again when somebody wants them.
    pub(super) fn evict(
        &mut self,
        pieces: &[PieceIndex],
        younger_than: Option<Instant>,
        fx: &mut Vec<Effect>,
    ) {
        let Some(live) = &mut self.live else { return };
        let held = live.demands.held(younger_than);
        let gone: Vec<PieceIndex> =
            pieces.iter().copied().filter(|p| !held.contains(&p.0) && live.table.evict(*p)).collect();
        // Those that were fetched ahead of a reader come again when it gets there.
        self.no_longer_here(&gone, fx);
        if !gone.is_empty() {
            fx.push(Effect::Discard(gone));
        }
    }

    /// Bytes of these pieces couldn't be read, and nothing of these files is certain: what somebody waits for is
    /// checked, the rest when it is wanted.
    pub(super) fn suspect(&mut self, pieces: Range<u32>, files: Vec<FileIndex>, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        let geometry = live.picker.geometry();
        let in_files = || files.iter().flat_map(|file| geometry.file_pieces(*file)).map(PieceIndex);
        // Being written or looked at: where, nobody knows.
        let verifying = in_files().filter(|p| live.table.state(*p) == PieceState::Verifying);
        live.tainted.extend(verifying);
        let doubtful = in_files().map(|p| p.0).chain(pieces);
        let doubtful: BTreeSet<u32> = doubtful.filter(|p| live.table.is_complete(PieceIndex(*p))).collect();
        let doubtful: Vec<PieceIndex> = doubtful.into_iter().map(PieceIndex).collect();
        doubtful.iter().for_each(|p| live.table.set(*p, PieceState::Unknown));
        self.no_longer_here(&doubtful, fx);
        if !files.is_empty() {
            fx.push(Effect::Mend(files));
        }
        if !doubtful.is_empty() {
            fx.push(Effect::Doubt(doubtful));
        }
    }

    /// These pieces were complete and aren't any more.
    fn no_longer_here(&mut self, pieces: &[PieceIndex], fx: &mut Vec<Effect>) {
        let Some(live) = self.live.as_ref().filter(|_| !pieces.is_empty()) else { return };
        self.finished = false;
        for (key, peer) in &mut self.peers {
            // Who was of no use any more, or never, may be now.
            let has = live.picker.load(*key).map(|p| p.has());
            peer.useful |= has.is_some_and(|has| pieces.iter().any(|p| has.has(*p)));
        }
        let tell: Vec<(PeerKey, u8)> =
            self.peers.iter().filter_map(|(key, p)| Some((*key, p.takes_dont_have()?))).collect();
        if !tell.is_empty() {
            fx.extend(pieces.iter().map(|piece| Effect::DontHave(tell.clone(), *piece)));
        }
    }

    pub(super) fn checked(&mut self, piece: PieceIndex, looked: Looked, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        live.sweep.ended(piece, now);
        let complete = live.table.is_complete(piece);
        let (recorded, good) = match looked {
            Looked::Recorded(good) => (true, good),
            Looked::Unsure(good) => (false, good),
            Looked::Nothing => return self.sweep(now, fx),
        };
        if recorded != complete || !recorded && !live.demands.is_checked(piece) || recorded && good {
            // As recorded; or it isn't any more what was looked at.
        } else if live.tainted.remove(&piece) {
            // Somebody was at its file meanwhile: once more.
            fx.push(Effect::Check(piece));
        } else if good {
            live.demands.check_ended(piece);
            self.complete(piece, now, fx);
        } else {
            if recorded {
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "recorded as complete, and its data is wrong: it is fetched again when wanted");
            }
            live.table.set(piece, PieceState::Missing);
            for wish in live.demands.check_ended(piece) {
                wish.make(piece, &mut live.picker);
            }
            if !live.background.taken().contains(&piece) {
                live.background.put_back(piece);
            }
            if recorded {
                self.no_longer_here(&[piece], fx);
            }
            // What it may take on the disk is of no use.
            fx.push(Effect::Discard(vec![piece]));
        }
        self.sweep(now, fx);
    }

    /// Has the next piece of the full check hashed, if it is time for it.
    pub(super) fn sweep(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        while let Some(piece) = live.sweep.next(live.table.len(), now) {
            let recorded = match live.table.state(piece) {
                PieceState::Unknown => {
                    live.demands.check_begins(piece);
                    live.table.set(piece, PieceState::Verifying);
                    false
                }
                PieceState::Complete => true,
                PieceState::Missing | PieceState::Requested | PieceState::Verifying => continue,
            };
            live.sweep.begins(piece, now);
            fx.push(Effect::Sweep { piece, recorded });
        }
    }

    /// A piece is here, verified and written.
    fn complete(&mut self, piece: PieceIndex, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        // Before it can be evicted: what was fetched ahead of a reader isn't older than what it has read.
        live.table.touch(piece);
        live.table.set(piece, PieceState::Complete);
        live.picker.completed(piece);
        live.background.completed(piece);
        live.demands.completed(piece, now);
        fx.push(Effect::Wake(piece));
        let lacking: Vec<PeerKey> = self
            .peers
            .keys()
            .filter(|k| live.picker.load(**k).is_some_and(|p| !p.has().has(piece)))
            .copied()
            .collect();
        if !lacking.is_empty() {
            fx.push(Effect::Have(lacking, vec![piece]));
        }
        if live.table.complete_count() == live.table.len() && !self.finished {
            self.finished = true;
            fx.push(Effect::Finished);
            for peer in self.peers.values_mut() {
                peer.useful = false;
            }
            self.all_interests(now, fx);
        }
    }

    /// Somebody sent bad data: in these blocks of a piece, or somewhere in it.
    fn convict(&mut self, sender: Sender, piece: PieceIndex, blocks: Option<&[usize]>, fx: &mut Vec<Effect>) {
        match sender {
            Sender::Peer(addr) => self.ban(addr, fx),
            Sender::Webseed(key) => self.webseed_sent_bad(key, piece, blocks, fx),
        }
    }

    fn ban(&mut self, addr: SocketAddr, fx: &mut Vec<Effect>) {
        tracing::warn!(peer = %addr, "banned: it sent bad data");
        if !self.banned.contains(&addr) && self.banned.len() < BANNED_MAX {
            self.banned.push(addr);
        }
        self.book.ban(addr);
        for (key, peer) in &self.peers {
            if self.book.is_banned(peer.who.addr) {
                // Nothing more is asked of it, and nothing more of it counts, while it is being disconnected.
                if let Some(live) = &mut self.live {
                    live.forget(*key, fx);
                }
                fx.push(Effect::Disconnect(*key, "banned: it sent bad data".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_check_takes_a_quarter_of_a_thread() {
        // A row is how long each piece takes, in milliseconds, how many of them are hashed between two pauses, and how
        // long a pause is.
        for (each, together, pause) in [(1, 25, 75), (10, 3, 90), (25, 1, 75), (400, 1, 1200), (0, 1000, 0)] {
            let start = Instant::now();
            let mut now = start;
            let mut sweep = Sweep::new(true);
            let (mut run, mut runs, mut pauses, mut worked) = (0, Vec::new(), Vec::new(), Duration::ZERO);
            let mut done = 0;
            while done < 1000 {
                if let Some(piece) = sweep.next(1000, now) {
                    assert_eq!(piece.0, done, "in order");
                    sweep.begins(piece, now);
                    assert_eq!(sweep.next(1000, now), None, "one at a time");
                    assert_eq!(sweep.resumes(), None, "its end is what it waits for");
                    now += Duration::from_millis(each);
                    worked += Duration::from_millis(each);
                    sweep.ended(PieceIndex(piece.0 + 1), now);
                    sweep.ended(piece, now);
                    run += 1;
                    done += 1;
                } else if let Some(at) = sweep.resumes() {
                    assert!(at > now && sweep.next(1000, at - Duration::from_millis(1)).is_none());
                    pauses.push((at - now).as_millis());
                    runs.push(run);
                    (run, now) = (0, at);
                }
            }
            assert!(runs.iter().all(|n| *n == together) && pauses.iter().all(|p| *p == pause), "{each} ms");
            assert!((now - start) + Duration::from_millis(1200) >= worked * 4, "{each} ms");
            assert_eq!(sweep.next(1000, now + SWEEP_SLICE * 1000), None);
            assert_eq!(sweep.resumes(), None, "nothing wakes for it any more");
        }
        assert_eq!(Sweep::new(false).next(10, Instant::now()), None);
    }
}
