//! Webseeds as a torrent's deciding part sees them: peers of the picker that have everything. A part of the [`Swarm`]'s
//! `apply`, and as pure as the rest of it.
//!
//! **Parts.** [`Webseed`], what is known of one; how one joins, says something, goes; what comes of bad data.
//!
//! **Flow.** One joins with [`super::effects::Event::Webseed`], and is asked through the picker as peers are, once the
//! metadata is known. Files that it refuses take their pieces away from it.
//!
//! A bad piece that came from a webseed alone is a bad file of it: what servers do wrong is to have another version of a
//! file, or a page that says that there is none. So that file is not asked of it any more, and at the second such file
//! the webseed goes. A piece may hold several files, and doesn't say which is bad: then the piece alone is taken away,
//! and it counts as a second file only if no single file explains all that was bad.
//!
//! **Not here.** HTTP ([`crate::webseed`]), and what a peer is besides: interest, choking, addresses.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use super::effects::Effect;
use super::load::{Has, PeerLoad};
use super::swarm::{Live, Swarm};
use crate::metainfo::geometry::{BLOCK_LEN, FileIndex, PieceIndex};
use crate::metainfo::info::FileKind;
use crate::peer::PeerKey;
use crate::peer::event::Item;
use crate::webseed::fault::Fault;

/// A webseed.
#[derive(Debug)]
pub(super) struct Webseed {
    /// As people may see it.
    pub(super) url: String,
    /// Files that it refuses, and that are not believed of it.
    pub(super) without: BTreeSet<FileIndex>,
    /// The files of which each alone would explain all that was bad; `None` as long as nothing was.
    suspects: Option<BTreeSet<FileIndex>>,
    /// It is on its way out: nothing is asked of it, and nothing more of it counts.
    pub(super) dropped: bool,
}

impl Swarm {
    /// A webseed takes part.
    pub(super) fn webseed(&mut self, key: PeerKey, url: String, now: Instant) {
        let seed = Webseed { url, without: BTreeSet::new(), suspects: None, dropped: false };
        self.webseeds.insert(key, seed);
        self.had_webseeds = true;
        if let Some(live) = &mut self.live {
            live.webseed(key, now);
        }
    }

    /// A webseed said something: what it has to say of requests, and that it backs off, which is a choke. It rejects by
    /// name what it then won't send: requests that are under way may go on.
    pub(super) fn webseed_said(
        &mut self,
        key: PeerKey,
        items: Vec<Item>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        for item in items {
            match item {
                Item::Block { block, buffer } => self.block_came(key, block, &buffer, now, fx),
                Item::Rejected(block) => self.rejected(key, block, now),
                Item::Recalled(block) => self.recalled(key, block),
                Item::Choked(choked) => {
                    if let Some(live) = &mut self.live {
                        live.choked(key, choked);
                    }
                }
                // It has no way to say these.
                Item::Have(_)
                | Item::Bitfield(_)
                | Item::HaveAll
                | Item::HaveNone
                | Item::Interested(_)
                | Item::AllowedFast(_)
                | Item::Extended(..) => {}
            }
        }
    }

    /// A webseed won't serve these files.
    pub(super) fn refuses(&mut self, key: PeerKey, files: &[FileIndex], fx: &mut Vec<Effect>) {
        let (Some(seed), Some(live)) = (self.webseeds.get_mut(&key), &mut self.live) else { return };
        seed.without.extend(files);
        let info = live.info.clone();
        live.without(key, files.iter().flat_map(|file| info.geometry.file_pieces(*file)), fx);
    }

    /// A webseed is gone.
    pub(super) fn webseed_gone(&mut self, key: PeerKey, reason: &str, fx: &mut Vec<Effect>) {
        if let Some(seed) = self.webseeds.remove(&key)
            && let Some(live) = &mut self.live
        {
            tracing::debug!(webseed = seed.url, "gone: {reason}");
            live.forget(key, fx);
        }
    }

    /// A webseed sent bad data of a piece: in these of its blocks, or somewhere in it.
    pub(super) fn webseed_sent_bad(
        &mut self,
        key: PeerKey,
        piece: PieceIndex,
        blocks: Option<&[usize]>,
        fx: &mut Vec<Effect>,
    ) {
        let (Some(seed), Some(live)) = (self.webseeds.get_mut(&key), &mut self.live) else { return };
        if seed.dropped {
            return;
        }
        let bad: Vec<BTreeSet<FileIndex>> = match blocks {
            None => vec![live.files_in(piece, 0..live.picker.geometry().piece_len(piece))],
            Some(blocks) => {
                let at = |block: &usize| (*block as u32).saturating_mul(BLOCK_LEN);
                blocks.iter().map(|b| live.files_in(piece, at(b)..at(b).saturating_add(BLOCK_LEN))).collect()
            }
        };
        for files in bad {
            seed.suspects = Some(match seed.suspects.take() {
                Some(suspects) => &suspects & &files,
                None => files,
            });
        }
        let suspects = seed.suspects.clone().unwrap_or_default();
        if suspects.is_empty() {
            let why = Fault::Distrusted.to_string();
            tracing::warn!(torrent = %live.info.name, webseed = seed.url, "dropped: {why}");
            seed.dropped = true;
            live.forget(key, fx);
            fx.push(Effect::Disconnect(key, why));
            return;
        }
        let info = live.info.clone();
        let geometry = &info.geometry;
        let certain = if suspects.len() == 1 { suspects.first().copied() } else { None };
        let gone: BTreeSet<u32> =
            certain.map(|file| geometry.file_pieces(file)).into_iter().flatten().collect();
        live.without(key, gone.into_iter().chain([piece.0]), fx);
        // Those of which it may be asked for nothing any more.
        let touched = live.files_in(piece, 0..live.picker.geometry().piece_len(piece));
        let nothing_left = |file: &FileIndex| {
            let has = live.picker.load(key).map(PeerLoad::has);
            has.is_none_or(|has| geometry.file_pieces(*file).all(|p| !has.has(PieceIndex(p))))
        };
        for file in touched.into_iter().chain(certain).filter(nothing_left) {
            if seed.without.insert(file) {
                tracing::warn!(
                    torrent = %info.name,
                    webseed = seed.url,
                    file = info.files.get(file.0 as usize).map(|f| f.path.join("/")),
                    "not asked for a file any more: a piece that it sent of it failed its hash"
                );
                fx.push(Effect::Distrust(key, file));
            }
        }
    }
}

impl Live {
    /// A webseed may be asked.
    pub(super) fn webseed(&mut self, key: PeerKey, now: Instant) {
        let load = PeerLoad::webseed(now);
        self.background.count(load.has(), true);
        self.picker.add_peer(key, load);
        // What nobody sent in time is worth another try.
        self.demands.peer_has(|_| true);
    }

    /// A peer or webseed hasn't got these pieces after all.
    fn without(&mut self, key: PeerKey, pieces: impl Iterator<Item = u32>, fx: &mut Vec<Effect>) {
        let Some(before) = self.picker.load(key).map(|load| load.has().clone()) else { return };
        let blocks = self.picker.take_away(key, pieces.map(PieceIndex));
        fx.extend(blocks.into_iter().map(|block| Effect::Cancel(key, block)));
        self.background.count(&before, false);
        self.background.count(self.picker.load(key).map_or(&Has::None, PeerLoad::has), true);
        self.recall_background(fx);
    }

    /// The files that lie in a part of a piece, in bytes from its start. Filling is nobody's fault: it isn't fetched.
    fn files_in(&self, piece: PieceIndex, part: Range<u32>) -> BTreeSet<FileIndex> {
        let geometry = &self.info.geometry;
        let part = part.start..part.end.min(geometry.piece_len(piece));
        let len = part.end.saturating_sub(part.start);
        let spans = geometry.spans(geometry.piece_offset(piece) + u64::from(part.start), len.into());
        let is_pad = |file: FileIndex| {
            self.info.files.get(file.0 as usize).is_some_and(|f| matches!(f.kind, FileKind::Pad))
        };
        spans.map(|span| span.file).filter(|file| !is_pad(*file)).collect()
    }
}
