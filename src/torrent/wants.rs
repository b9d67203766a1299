//! What is wanted and asked for: readers' demands, what is fetched beyond them, and who is asked for what. A part of
//! the [`Swarm`]'s `apply`, and as pure as the rest of it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::background::{Background, Prefetch};
use super::effects::Effect;
use super::inbox::Demand;
use super::load::{Has, PeerLoad};
use super::picker::DemandId;
use super::swarm::{EVERYTHING, LOOK_PAUSE, Live, Swarm};
use super::table::PieceState;
use super::verdicts::FAULTS;
use crate::metainfo::geometry::FileIndex;
use crate::peer::PeerKey;
use crate::storage::quota::Quota;

/// Pieces handed from the background to the picker in one go: more follow with the next event.
const BACKGROUND_STEP: usize = 16;

/// Pieces of room to be left when one more is fetched that nobody reads: others may be begun before it is written.
const MARGIN: u64 = 4;

impl Swarm {
    /// Decides who is asked for what, once for each event.
    pub(super) fn schedule(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        let Some(live) = &mut self.live else { return };
        self.scheduled += 1;
        let hurried = live.picker.take_hurried();
        if self.blocked.is_some() || self.faults.max(self.lost_syncs) >= FAULTS {
            return;
        }
        let mut requests = live.picker.schedule(now);
        if live.demands.is_waiting() && self.last_hedge.is_none_or(|at| now >= at + LOOK_PAUSE) {
            self.last_hedge = Some(now);
            requests.extend(live.picker.hedge(now));
        }
        let quota = &self.settings.quota;
        if live.background.is_active() && live.pick_background(quota, now, fx) {
            requests.extend(live.picker.schedule(now));
        }
        // Cancels first: what is recalled from a peer makes room for what is asked of it instead.
        fx.extend(live.picker.take_void().into_iter().map(|(peer, block)| Effect::Cancel(peer, block)));
        fx.extend(hurried.into_iter().map(|(webseed, block)| Effect::Hurry(webseed, block)));
        for request in &requests {
            live.table.set(request.block.piece, PieceState::Requested);
        }
        if !requests.is_empty() {
            fx.push(Effect::Request(requests));
        }
    }

    pub(super) fn check_invariants(&mut self) {
        let Some(live) = &self.live else { return };
        self.invariants_checked += 1;
        // The order of a large torrent takes milliseconds to look through.
        let order = if live.table.len() < 4096 { live.background.check() } else { Ok(()) };
        if let Err(broken) = live.picker.check().and(order) {
            tracing::error!("an invariant is broken: {broken}; this is a bug, please report it");
        }
    }

    pub(super) fn demanded(&mut self, demands: Vec<Demand>, now: Instant, fx: &mut Vec<Effect>) {
        for demand in demands {
            match demand {
                Demand::Unreadable { reason } => self.error = Some(reason),
                Demand::Suspect { pieces, files } => self.suspect(pieces, files, fx),
                demand => {
                    let Some(live) = &mut self.live else { continue };
                    live.demands.apply(demand, &live.table, &mut live.picker, now, fx);
                    live.wanted = now;
                }
            }
        }
        let touched = self.live.as_mut().map_or(Vec::new(), |l| l.demands.take_touched());
        if self.settings.prefetch == Prefetch::File {
            self.prefetch(&touched, true, now, fx);
        }
        self.all_interests(now, fx);
    }

    /// Files are to be fetched whole in the background, or no longer; [`EVERYTHING`] stands for all. To take a file out
    /// of everything leaves the others.
    pub(super) fn prefetch(&mut self, files: &[FileIndex], on: bool, now: Instant, fx: &mut Vec<Effect>) {
        let whole = files.contains(&EVERYTHING);
        let Some(live) = &mut self.live else {
            match (whole, on) {
                (true, true) => self.whole = true,
                (true, false) => {
                    self.whole = false;
                    // Of the setting only what is called off: files that are read are fetched whole all the same.
                    if self.settings.prefetch == Prefetch::All {
                        self.settings.prefetch = Prefetch::None;
                    }
                }
                (false, _) => {}
            }
            return;
        };
        let info = live.info.clone();
        let geometry = &info.geometry;
        let of = |file: FileIndex| match geometry.files().get(file.0 as usize) {
            Some(_) => geometry.file_pieces(file),
            None => 0..geometry.pieces(),
        };
        let mut add: Vec<FileIndex> = Vec::new();
        let mut gone: Vec<FileIndex> = Vec::new();
        if on {
            add.extend(files.iter().filter(|file| !live.background.has_file(**file)));
        } else if whole {
            gone.extend(live.background.files());
        } else {
            gone.extend(files.iter().filter(|file| live.background.has_file(**file)));
            if live.background.has_file(EVERYTHING) {
                let out: BTreeSet<&FileIndex> = files.iter().collect();
                gone.push(EVERYTHING);
                let all = (0..geometry.files().len() as u32).map(FileIndex);
                add.extend(all.filter(|file| !out.contains(file) && !live.background.has_file(*file)));
            }
        }
        if add.is_empty() && gone.is_empty() {
            return;
        }
        let peers: Vec<&Has> = live.picker.loads().map(PeerLoad::has).collect();
        for file in add {
            live.background.add(file, of(file), &live.table, peers.iter().copied());
        }
        // Afterwards: what another file has a part in isn't taken back in between.
        for piece in live.background.remove(&gone) {
            live.demands.unwant(piece, DemandId::Background, &live.table, &mut live.picker, fx);
        }
        self.all_interests(now, fx);
    }
}

impl Live {
    /// Hands pieces of the background to the picker, for peers that have nothing better to do; true if there were
    /// any.
    fn pick_background(&mut self, quota: &Quota, now: Instant, fx: &mut Vec<Effect>) -> bool {
        // What nobody reads drives nothing out.
        let making = self.picker.held() + MARGIN * u64::from(self.picker.geometry().piece_length());
        if !quota.has_free(making) {
            return false;
        }
        let memory = self.picker.memory_max() / 2 / u64::from(self.picker.geometry().piece_length());
        let most = (memory as usize).max(2);
        let mut picked = 0;
        for key in self.picker.hungry(now) {
            if self.background.taken().len() >= most || picked >= BACKGROUND_STEP {
                break;
            }
            let Some(load) = self.picker.load(key) else { continue };
            if let Some(piece) = self.background.pick(key, load.has(), load.is_webseed(), now) {
                picked += 1;
                let due = Background::due(now);
                self.demands.want(piece, DemandId::Background, due, &self.table, &mut self.picker, fx);
            }
        }
        picked > 0
    }

    /// A peer or webseed chokes us, or no longer.
    pub(super) fn choked(&mut self, key: PeerKey, choked: bool) {
        if let Some(load) = self.picker.peer(key) {
            load.set_choked(choked);
        }
    }

    /// Nothing of what a peer or webseed was asked for comes; what wasn't sent yet mustn't be sent any more.
    pub(super) fn release(&mut self, key: PeerKey, fx: &mut Vec<Effect>) {
        let released = self.picker.release_all(key);
        fx.extend(released.into_iter().map(|block| Effect::Cancel(key, block)));
    }

    /// A peer or webseed is gone, or nothing more of it counts.
    pub(super) fn forget(&mut self, key: PeerKey, fx: &mut Vec<Effect>) {
        if let Some(load) = self.picker.load(key) {
            self.background.count(load.has(), false);
        }
        self.background.forget(key);
        self.picker.remove_peer(key);
        self.recall_background(fx);
    }

    /// What nobody would send now is no longer on its way: other pieces get their turn.
    pub(super) fn recall_background(&mut self, fx: &mut Vec<Effect>) {
        let gone = self.background.recall(|piece| self.picker.is_servable(piece));
        for piece in gone {
            self.demands.unwant(piece, DemandId::Background, &self.table, &mut self.picker, fx);
        }
    }
}
