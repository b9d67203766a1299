//! What comes of pieces: hashed and written, found on disk, complete; and who is banned for what. A part of the
//! [`Swarm`]'s `apply`, and as pure as the rest of it.

use std::net::SocketAddr;
use std::time::Instant;

use super::blame::Digest;
use super::effects::{Effect, Verdict};
use super::picker::DemandId;
use super::swarm::Swarm;
use super::table::PieceState;
use crate::metainfo::geometry::PieceIndex;
use crate::peer::PeerKey;

/// Pieces of a full check hashed at a time: one keeps the disk busy while the other is hashed.
const SWEEPING: usize = 2;
/// Banned addresses shown. Each took a bad piece, so it isn't reached unless somebody works at it.
const BANNED_MAX: usize = 1024;

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
        match verdict {
            Verdict::Good => {
                self.error = None;
                for addr in live.blame.passed(piece, digests) {
                    self.ban(addr, fx);
                }
                self.complete(piece, now, fx);
            }
            Verdict::Bad => {
                let from = live.picker.failed(piece, true);
                live.table.set(piece, PieceState::Missing);
                let address = |key: PeerKey| {
                    let here = self.peers.get(&key).map(|p| p.who.addr);
                    here.or_else(|| self.departed.iter().find(|(k, _)| *k == key).map(|(_, addr)| *addr))
                };
                let from: Vec<Option<SocketAddr>> = from.iter().map(|k| k.and_then(address)).collect();
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "a piece failed its hash; fetching it again");
                if !live.background.taken().contains(&piece) {
                    live.background.put_back(piece);
                }
                if let Some(addr) = live.blame.failed(piece, &from, digests) {
                    self.ban(addr, fx);
                }
            }
            Verdict::Unwritten(error) => {
                live.picker.failed(piece, false);
                live.table.set(piece, PieceState::Missing);
                self.error = Some(error.to_string());
                live.background.failed(piece, now);
                if live.picker.is_wanted(piece) {
                    live.demands.unwant(piece, DemandId::Background, &live.table, &mut live.picker, fx);
                }
                live.demands.give_up(piece, &error, &live.table, &mut live.picker, now, fx);
            }
        }
    }

    pub(super) fn checked(&mut self, piece: PieceIndex, good: bool, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        live.sweeping.remove(&piece);
        if good && live.table.is_complete(piece) {
            // As recorded.
        } else if good {
            live.demands.check_ended(piece);
            self.complete(piece, now, fx);
        } else {
            if live.table.is_complete(piece) {
                tracing::warn!(torrent = %live.info.name, piece = piece.0, "recorded as complete, and its data is wrong: it is fetched again when wanted");
                self.finished = false;
                // Who was of no use any more, or never, may be now.
                for (key, peer) in &mut self.peers {
                    peer.useful |= live.picker.load(*key).is_some_and(|p| p.has().has(piece));
                }
            }
            live.table.set(piece, PieceState::Missing);
            for wish in live.demands.check_ended(piece) {
                wish.make(piece, &mut live.picker);
            }
            if !live.background.taken().contains(&piece) {
                live.background.put_back(piece);
            }
        }
        self.sweep(fx);
    }

    /// Has the next pieces of the full check hashed, a few at a time, so that readers come first.
    pub(super) fn sweep(&mut self, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        while live.sweeping.len() < SWEEPING
            && let Some(next) = live.sweep
        {
            live.sweep = (next + 1 < live.table.len()).then_some(next + 1);
            let piece = PieceIndex(next);
            match live.table.state(piece) {
                PieceState::Unknown => {
                    live.demands.check_begins(piece);
                    live.table.set(piece, PieceState::Verifying);
                }
                PieceState::Complete => {}
                PieceState::Missing | PieceState::Requested | PieceState::Verifying => continue,
            }
            live.sweeping.insert(piece);
            fx.push(Effect::Check(piece));
        }
    }

    /// A piece is here, verified and written.
    fn complete(&mut self, piece: PieceIndex, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
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
            fx.push(Effect::Have(lacking, piece));
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
