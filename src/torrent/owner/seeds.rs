//! The webseeds of a torrent as its owner keeps them: which there are, when each is started and ended, and what is shown
//! of them. A part of [`Owner`].
//!
//! They are started when the metadata is known: before, there is nothing that they could be asked for. One that is added
//! later starts at once. One that has ended stays in the list, with its reason, and isn't started again by itself: who
//! names it once more has it started anew, as one that won't serve some files, or whose namer's word reaches further now
//! (see [`Seed::trusted`]).
//!
//! Each is there because somebody named it: the user, with a source; or files of a watched folder, which together name
//! so many and no others ([`Owner::replant`]). With nobody left who does, it ends and leaves the list.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{Link, Owner};
use crate::discovery::FoundPeers;
use crate::metainfo::geometry::FileIndex;
use crate::net::hosts::Reach;
use crate::peer::PeerKey;
use crate::peer::event::{Counters, PeerEvent};
use crate::peer::outbox::Outbox;
use crate::sync::tasks::TaskScope;
use crate::torrent::Listed;
use crate::torrent::effects::Event;
use crate::webseed::{self, Health, Running, Seed, Target};

/// Webseeds of one torrent: as many as are read of a `.torrent` file.
const SEEDS_MAX: usize = 200;

/// Who names a webseed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The user: a source on the command line, or one that was added to the running program.
    User,
    /// Files of the watched folder.
    Folder,
}

/// A webseed of the torrent.
struct Planted {
    seed: Seed,
    /// Whether the user names it, and whether the watched folder does.
    named: (bool, bool),
    /// Its latest key, and the tasks behind it; `None` before the metadata is known, and when it has ended.
    running: Option<(PeerKey, Running)>,
    /// How it is doing, or was at its end.
    health: Arc<Health>,
    /// Why it has ended.
    ended: Option<String>,
}

impl Planted {
    fn is(&self, seed: &Seed) -> bool {
        (&self.seed.url, self.seed.kind) == (&seed.url, seed.kind)
    }

    fn named(&mut self, by: By) {
        match by {
            By::User => self.named.0 = true,
            By::Folder => self.named.1 = true,
        }
    }

    /// It was named once more. What was wrong with it may be right now: then it is to be started anew.
    fn again(&mut self, trusted: bool) {
        let further = trusted && !self.seed.trusted;
        self.seed.trusted |= trusted;
        if further || self.ended.is_some() || self.health.snapshot().refused_files > 0 {
            self.close();
        }
    }

    /// Its tasks are told to end, without waiting for that; nothing of it is kept in mind.
    fn close(&mut self) {
        self.ended = None;
        if let Some((_, running)) = self.running.take() {
            running.close();
        }
    }
}

/// All of them.
pub(super) struct Seeds {
    all: Vec<Planted>,
    scope: TaskScope,
    events: mpsc::Sender<PeerEvent>,
    target: Option<Arc<Target>>,
}

impl Seeds {
    /// None yet. Their tasks belong to `scope`, and what they say goes to `events`.
    pub(super) fn new(scope: TaskScope, events: mpsc::Sender<PeerEvent>) -> Self {
        Self { all: Vec::new(), scope, events, target: None }
    }

    fn find(&mut self, key: PeerKey) -> Option<&mut Planted> {
        self.all.iter_mut().find(|planted| planted.running.as_ref().is_some_and(|(k, _)| *k == key))
    }

    fn listed(&self) -> Vec<Listed> {
        let listed = |p: &Planted| Listed { health: p.health.clone(), ended: p.ended.clone() };
        self.all.iter().map(listed).collect()
    }
}

impl Owner {
    /// Somebody added the torrent once more, and knows other sources of it: trackers that may be as far as `reach` says,
    /// webseeds and peers.
    pub(super) fn extend(
        &mut self,
        trackers: Vec<Vec<String>>,
        reach: Reach,
        seeds: Vec<Seed>,
        peers: Vec<FoundPeers>,
    ) {
        for tier in trackers {
            let known = |url: &String| self.tiers.iter().flatten().any(|known| known == url);
            let (known, new): (Vec<String>, Vec<String>) = tier.into_iter().partition(known);
            if let Some(trackers) = &self.trackers {
                new.iter().for_each(|url| _ = trackers.add(url, reach));
            }
            if reach == Reach::Any {
                // What kept one from its host is no reason any more.
                if let Some(trackers) = &self.trackers {
                    known.iter().for_each(|url| trackers.widen(url));
                }
                for url in known.iter().chain(&new) {
                    if !self.named_trackers.contains(url) {
                        self.named_trackers.push(url.clone());
                    }
                }
            }
            self.tiers.extend((!new.is_empty()).then_some(new));
        }
        for found in peers {
            self.apply(Event::Found(found));
        }
        self.plant(seeds, By::User);
    }

    /// Takes webseeds into the list, each once, and starts them if the metadata is known. One that is there already and
    /// isn't all well is started anew.
    pub(super) fn plant(&mut self, seeds: Vec<Seed>, by: By) {
        for seed in seeds {
            let full = self.seeds.all.len() >= SEEDS_MAX;
            match self.seeds.all.iter_mut().find(|planted| planted.is(&seed)) {
                Some(known) => {
                    known.named(by);
                    known.again(seed.trusted);
                }
                None if full => {
                    tracing::warn!(torrent = %self.torrent.name(), "more than {SEEDS_MAX} webseeds, the rest is left out");
                    break;
                }
                None => {
                    let health = Arc::new(Health::new(&seed.url, Arc::default()));
                    let named = (by == By::User, by == By::Folder);
                    self.seeds.all.push(Planted { seed, named, running: None, health, ended: None });
                }
            }
        }
        self.start_seeds();
    }

    /// The files of the watched folder name these webseeds now, and no others: those that only they named end.
    pub(super) fn replant(&mut self, seeds: Vec<Seed>) {
        let torrent = &self.torrent;
        self.seeds.all.retain_mut(|planted| {
            planted.named.1 &= seeds.iter().any(|seed| planted.is(seed));
            let stays = planted.named != (false, false);
            if !stays {
                planted.close();
                tracing::info!(torrent = %torrent.name(), "the webseed {} is removed", planted.health.url());
            }
            stays
        });
        self.plant(seeds, By::Folder);
    }

    /// Starts the webseeds that are neither running nor at their end, once the metadata is known.
    pub(super) fn start_seeds(&mut self) {
        if let Some(shared) = self.torrent.live().filter(|_| !self.closing) {
            let target = self.seeds.target.get_or_insert_with(|| {
                Arc::new(Target {
                    info: shared.info.clone(),
                    info_hash: self.settings.info_hash,
                    down_limits: self.torrent.sessions.limits().web(),
                })
            });
            for planted in self.seeds.all.iter_mut().filter(|p| p.running.is_none() && p.ended.is_none()) {
                let key = self.torrent.sessions.new_key();
                let (scope, events) = (&self.seeds.scope, self.seeds.events.clone());
                let (seed, hub) = (planted.seed.clone(), self.env.hub.clone());
                let running = webseed::start(scope, key, seed, target.clone(), hub, events);
                planted.health = running.health.clone();
                planted.running = Some((key, running));
            }
        }
        self.show_seeds();
    }

    /// A webseed takes part.
    pub(super) fn seed_joins(&mut self, key: PeerKey, outbox: Arc<Outbox>, counters: Arc<Counters>) {
        // One that was ended before it could say so.
        let Some(planted) = self.seeds.find(key) else { return };
        let url = planted.health.url().to_owned();
        tracing::debug!(torrent = %self.torrent.name(), "the webseed {url} takes part");
        self.links.insert(key, Link { outbox, counters, ends: None });
        self.apply(Event::Webseed { key, url });
    }

    /// A webseed won't serve these files.
    pub(super) fn seed_refuses(&mut self, key: PeerKey, files: Vec<FileIndex>) {
        self.apply(Event::Refuses { key, files });
    }

    /// It is decided that a webseed or peer goes.
    pub(super) fn goes(&mut self, key: PeerKey, reason: String) {
        if let Some(planted) = self.seeds.find(key) {
            // Said at once, whatever its tasks are at.
            planted.ended.get_or_insert_with(|| reason.clone());
            self.show_seeds();
        }
        self.tell(key, |outbox| outbox.disconnect(reason));
    }

    /// A webseed has ended, whyever.
    pub(super) fn seed_gone(&mut self, key: PeerKey, reason: &str) {
        if let Some(planted) = self.seeds.find(key) {
            planted.running = None;
            planted.ended.get_or_insert_with(|| reason.to_owned());
            self.show_seeds();
        }
    }

    /// A webseed that is listed, what it does and why, in words.
    pub(super) fn seed_doing(&self, key: PeerKey) -> Option<String> {
        let running = |p: &&Planted| p.running.as_ref().is_some_and(|(k, _)| *k == key);
        let planted = self.seeds.all.iter().find(running)?;
        Some(crate::torrent::status::seed_words(&planted.health.snapshot()))
    }

    fn show_seeds(&self) {
        self.torrent.list_webseeds(self.seeds.listed());
    }

    /// Bytes that came from webseeds that are gone are part of the sums, as those of peers.
    pub(super) fn unlink(&mut self, key: PeerKey) {
        if let Some(link) = self.links.remove(&key) {
            self.past.0 += link.counters.down.load(Ordering::Relaxed);
            self.past.1 += link.counters.up.load(Ordering::Relaxed);
        }
    }
}
