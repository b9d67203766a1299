//! What the keeper does next: whether room is lacking, where it is to come from, and when it is hopeless. Pure.
//!
//! **Goal.** What decides is a table: the account, what is waited for, what the disk said, and the time go in, and one
//! step comes out. Nothing is tried in a circle: what gave nothing is tried again after a pause.
//!
//! **Parts.** [`Plan`], which remembers what was tried; [`View`], what it looks at; [`Step`], what is to be done.
//!
//! **Flow.** As long as room is lacking, the sources are gone through in order ([`Source`]); when one gives something,
//! from the first again. When none does: if it is readers who hold everything, that passes, so it is tried again a few
//! times before it is called stuck; a full disk is called so at once. Stuck is said once.
//!
//! A write that found the disk full is believed more than what the disk says of itself: then something has to go, or
//! the disk has to say more than it did, before anybody tries again; or at last a pause is over, which doubles.
//!
//! **Not here.** Doing it ([`super::keeper`]).

use std::time::{Duration, Instant};

use crate::storage::cache::DiskSpace;
use crate::storage::quota::Quota;
use crate::storage::size::bytes;
use crate::torrent::room::{LOOK_AFTER, Need, Stuck};

/// How often the disk is looked at while nobody needs or writes anything: others write to it, too.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is looked at while something is written, or it is full.
const LOOK_DISK: Duration = Duration::from_secs(1);
/// How soon it is looked at again for somebody who waits: it may just have been given something back.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// How soon what is in use is tried again.
const LOOK_USE: Duration = Duration::from_millis(250);
/// Readers hold what they read for a moment only, so it is called stuck when nothing could go for so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// A disk that says that it has room, and takes nothing, is tried again after a pause that doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(32);
/// What is given back in one go: a sixteenth of the bound, so that records and looks are worth it, but no more than
/// this, which is read again in a moment if it was wanted after all.
const BATCH_MAX: u64 = 64 << 20;
/// What is to stay free unless `--min-free-space` says otherwise: the larger of a twentieth and this, but no more
/// than a quarter of a small disk.
const FLOOR: u64 = 1 << 30;

/// The bytes of a disk that are to stay free. `asked` is what the user said.
pub(super) fn floor(asked: Option<u64>, total: u64) -> u64 {
    asked.unwrap_or_else(|| (total / 20).max(FLOOR).min(total / 4))
}

/// Where room comes from, in the order in which it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A torrent that isn't open, whole: the one used longest ago of those worth it.
    Dormant,
    /// Pieces that nobody holds or waits for: those read longest ago.
    Pieces,
    /// Also those that waiting reads need, of reads that have waited less long than since then.
    Younger(Instant),
    /// A torrent that isn't open and takes next to nothing.
    Crumbs,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make at least so many bytes go, and tell the plan what that gave ([`Plan::gave`]).
    Give(Source, u64),
    /// There is room, or something to try: everybody who waits tries again.
    Offer,
    /// Nothing can be fetched for now.
    Stick(Stuck),
    /// Nothing, for so long, unless somebody needs something.
    Rest(Duration),
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) now: Instant,
    pub(super) quota: &'a Quota,
    /// What is waited for, all together.
    pub(super) need: Option<Need>,
    /// What the largest piece takes that may be waited for.
    pub(super) unit: u64,
    /// Bytes that were made to go and aren't given back yet.
    pub(super) coming: u64,
    /// What the disk said last, and how much of it is to stay free; `None` for no disk.
    pub(super) disk: Option<(DiskSpace, u64)>,
    /// Whether something was written since.
    pub(super) writing: bool,
}

impl View<'_> {
    /// How much is to be made room for in one go. Not all of a small bound for what was fetched in a moment: what is
    /// in the cache is as likely to be read.
    fn wanted(&self) -> u64 {
        let share = self.quota.bound().map_or(BATCH_MAX, |bound| bound / 4);
        // `unit` is no less than the largest piece that waits: with less, nobody could make use of an offer.
        self.need.map_or(0, |need| need.bytes).min(share.max(self.unit))
    }
}

/// A write found the disk full.
#[derive(Debug, Clone, Copy)]
struct Full {
    /// What the disk said that it has, at the first look after that.
    free: Option<u64>,
    /// When it is tried again, whatever it says.
    retry: Instant,
}

/// What was tried, and what came of it. See the module.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// How many of the sources gave nothing since one did.
    tried: usize,
    /// Whether everybody was told to try again since the keeper slept.
    offered: bool,
    /// Since when nothing gives anything, and when it is tried again.
    short: Option<(Instant, Instant)>,
    /// What was said: whether it is the disk.
    stuck: Option<bool>,
    full: Option<Full>,
    /// Writes in a row that found it full, and how many had worked before.
    fulls: (u32, u64),
    looked: Option<Instant>,
}

impl Plan {
    /// The keeper has slept: what is waited for may be something else now.
    pub(super) fn woken(&mut self) {
        self.offered = false;
    }

    /// Whether the disk is to be looked at before anything is decided. `written` in bytes since the last look.
    pub(super) fn look_due(&self, view: &View<'_>, written: u64) -> bool {
        let Some(looked) = self.looked else { return true };
        let age = view.now.saturating_duration_since(looked);
        let lacking = view.quota.lacking_on_disk(view.wanted()) > 0;
        let troubled = lacking || self.full.is_some() || self.stuck == Some(true);
        age >= LOOK
            || written >= LOOK_AFTER
            || age >= LOOK_DISK && (written > 0 || troubled)
            || age >= LOOK_SOON && lacking && self.short.is_none()
    }

    /// The disk was looked at. True when what it says is to be believed.
    pub(super) fn looked(&mut self, space: DiskSpace, unit: u64, now: Instant) -> bool {
        self.looked = Some(now);
        if let Some(full) = &mut self.full {
            let before = *full.free.get_or_insert(space.free);
            if space.free >= before.saturating_add(unit) {
                self.full = None;
            }
        }
        self.full.is_none()
    }

    /// A write found the disk full; so many had worked before, ever.
    pub(super) fn found_full(&mut self, kept: u64, now: Instant) {
        let (fulls, before) = self.fulls;
        let fulls = if kept > before { 1 } else { (fulls + 1).min(16) };
        self.fulls = (fulls, kept);
        let pause = LOOK_DISK.saturating_mul(1 << (fulls - 1)).min(PAUSE_MAX);
        self.full = Some(Full { free: None, retry: now + pause });
        (self.tried, self.short) = (0, None);
    }

    /// What the source gave that was to be made use of.
    pub(super) fn gave(&mut self, freed: u64) {
        if freed > 0 {
            (self.tried, self.short, self.full, self.offered) = (0, None, None, false);
        } else {
            self.tried += 1;
        }
    }

    /// What is to be done now.
    pub(super) fn step(&mut self, view: &View<'_>) -> Step {
        let View { now, quota, .. } = *view;
        if self.full.is_some_and(|full| now >= full.retry) {
            // Perhaps it has room after all.
            self.full = None;
            return self.offer();
        }
        // What was full is to have room for more than a trickle before it is called anything else.
        let least = if self.stuck == Some(true) { view.unit } else { 0 };
        let wanted = view.wanted().max(least);
        let lacking = quota.lacking(wanted).max(u64::from(self.full.is_some()));
        if lacking == 0 {
            (self.tried, self.short) = (0, None);
            if !self.offered && (view.need.is_some() || self.stuck.is_some()) {
                return self.offer();
            }
            return Step::Rest(if view.writing { LOOK_DISK } else { LOOK });
        }
        if let Some((_, again)) = self.short.filter(|(_, again)| now < *again) {
            return Step::Rest(again - now);
        }
        if lacking > view.coming {
            let batch = quota.bound().map_or(BATCH_MAX, |bound| (bound / 16).min(BATCH_MAX));
            if let Some(source) = self.source(view) {
                return Step::Give(source, (lacking - view.coming).max(batch));
            }
        }
        self.nothing(view, wanted)
    }

    /// The next that may give something.
    fn source(&mut self, view: &View<'_>) -> Option<Source> {
        let lasts = self.short.is_some();
        let younger = view.need.and_then(|need| need.since).filter(|_| lasts).map(Source::Younger);
        let all = [Some(Source::Dormant), Some(Source::Pieces), younger, Some(Source::Crumbs)];
        while let Some(source) = all.get(self.tried) {
            if source.is_some() {
                return *source;
            }
            self.tried += 1;
        }
        None
    }

    /// No source gives anything.
    fn nothing(&mut self, view: &View<'_>, wanted: u64) -> Step {
        let View { now, quota, .. } = *view;
        self.tried = 0;
        let on_disk = self.full.is_some() || quota.lacking_on_disk(wanted) > quota.lacking_by_bound(wanted);
        let pause = if on_disk { LOOK_DISK } else { LOOK_USE };
        let (since, _) = *self.short.get_or_insert((now, now));
        self.short = Some((since, now + pause));
        if view.need.is_none() && self.stuck.is_none() && self.full.is_none() {
            return Step::Rest(pause);
        }
        // Not for all, but for some of it.
        let some = view.need.is_some_and(|need| quota.has_free(need.bytes.min(view.unit)));
        if some && !self.offered && self.full.is_none() {
            return self.offer();
        }
        let hopeless = on_disk || now.saturating_duration_since(since) >= PATIENCE;
        if !some && hopeless && self.stuck != Some(on_disk) {
            self.stuck = Some(on_disk);
            return Step::Stick(reason(view, on_disk));
        }
        Step::Rest(pause)
    }

    fn offer(&mut self) -> Step {
        (self.offered, self.stuck) = (true, None);
        Step::Offer
    }
}

/// Why no room can be made, for the user.
fn reason(view: &View<'_>, on_disk: bool) -> Stuck {
    let reason = match (view.quota.bound(), view.disk) {
        (Some(bound), _) if !on_disk && view.unit > bound => format!(
            "a single piece takes {}, and no more than {} may be kept; raise --cache-size",
            bytes(view.unit),
            bytes(bound)
        ),
        (Some(bound), _) if !on_disk => format!(
            "all of the {} that may be kept are in use, and {} more are waited for; close some files, or raise \
             --cache-size",
            bytes(bound),
            bytes(view.need.map_or(0, |need| need.bytes))
        ),
        (_, Some((space, floor))) => format!(
            "the disk that holds the cache is full: {} are free, of which {} are to stay free; make room there, \
             choose another with --cache-dir, or lower --min-free-space",
            bytes(space.free),
            bytes(floor)
        ),
        (_, None) => {
            "the disk that holds the cache can't be asked for room; see what is wrong with it, or choose \
                      another with --cache-dir"
                .to_owned()
        }
    };
    Stuck { reason: reason.into(), disk: on_disk }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
