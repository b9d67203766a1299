//! Announcing a torrent to its trackers, for peers and so that peers find us (BEP 3, 12, 15, 23).
//!
//! Parts: [`Trackers`] is the handle; each [`Group`] is a task that keeps one tracker informed, or, for a private
//! torrent, all of them in the order of their tiers. `schedule` and `tiers` decide when and whom (pure);
//! `transport` does one announce; `http` and `udp` are the bytes (pure); `message` is what both say.
//! Flow: a group sleeps until its schedule or the handle's [`Control`] wakes it, announces, and its peers go into
//! the torrent's channel. When that is full, the group waits with them.
//!
//! A public torrent announces to all trackers of all tiers at once: waiting for dead ones in order costs minutes,
//! and a reader waits. A private one keeps to the order (BEP 12), since its tracker counts.
//!
//! Not here: scraping, WebTorrent trackers.

pub mod http;
pub mod message;
mod schedule;
mod tiers;
mod transport;
pub mod udp;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use torrentfs_fs::lock::{Rank, RankedMutex};

use self::message::{Answer, Ask, Event, Retry, TrackerError};
use self::schedule::Schedule;
use self::tiers::TierOrder;
use self::transport::Tracker;
use super::{Announce, FoundPeers, ProgressFn};
use crate::net::hosts::{Clients, Reach};
use crate::net::mapping::port::OurPort;
use crate::net::sockets::Sockets;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::{TRACKER_HTTP, TRACKER_STOPPED};

/// Trackers of one torrent; real ones have up to some dozens, and each is a task.
const MAX_TRACKERS: usize = 100;
/// Redirects that are followed: a tracker that moved to HTTPS and to another host needs two.
const MAX_REDIRECTS: usize = 5;

/// The HTTP clients for trackers and `.torrent` files: one pair for the whole program. They never take a proxy from the
/// environment, bound redirects, and keep no connection for long.
pub fn http_clients(sockets: &Sockets) -> Arc<Clients> {
    Arc::new(Clients::new("trackers", MAX_REDIRECTS, sockets.clone(), || {
        reqwest::Client::builder()
            .user_agent(concat!("torrentfs/", env!("CARGO_PKG_VERSION")))
            .referer(false)
            .no_proxy()
            .timeout(TRACKER_HTTP)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
    }))
}

/// How to announce.
#[derive(Debug, Clone)]
pub struct TrackerOptions {
    /// From [`http_clients`]; UDP trackers are spoken to through sockets like theirs.
    pub http: Arc<Clients>,
    /// Where the internet reaches us, if that may be another port than the one in [`Announce`].
    pub port: OurPort,
    /// The torrent is private (BEP 27): tiers strictly in order, one tracker at a time, none added.
    pub private: bool,
    /// Peers to ask for; trackers give 50 unasked, and 200 at most.
    pub num_want: u32,
    /// How far the trackers may be that the torrent names.
    pub reach: Reach,
    /// Trackers that the user named: they may be in the local network, whatever `reach` says.
    pub named: Vec<String>,
}

impl TrackerOptions {
    /// For a public torrent, asking for 100 peers: what 80 connections need, some of them being dead. Trackers of the
    /// internet only.
    pub fn new(http: Arc<Clients>) -> Self {
        Self {
            http,
            port: OurPort::default(),
            private: false,
            num_want: 100,
            reach: Reach::Public,
            named: Vec::new(),
        }
    }
}

/// How a tracker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackerState {
    /// Not tried yet, or in a later tier of a private torrent.
    Idle,
    /// An announce is under way.
    Announcing,
    /// The last announce succeeded.
    Working,
    /// The last announce failed; see [`TrackerStatus::last_error`].
    Failed,
    /// It won't be tried again: its URL can't be used, or it said so.
    Disabled,
}

/// What is known of one tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerStatus {
    /// As given. May hold the user's passkey: not for logs.
    pub url: String,
    /// Its scheme, host and port, for people; of a URL that can't be used, no more than that.
    pub name: String,
    /// How it is doing.
    pub state: TrackerState,
    /// Why the last announce failed; gone after a success.
    pub last_error: Option<String>,
    /// What the tracker wants the user to know (BEP 31).
    pub warning: Option<String>,
    /// Peers that have everything, as it says.
    pub seeders: Option<u32>,
    /// Peers that don't.
    pub leechers: Option<u32>,
    /// When it is announced to next.
    pub next: Option<Instant>,
}

/// A look at the trackers of one torrent, also when they have ended. Cheap to clone.
#[derive(Clone)]
pub struct TrackersView(Arc<Shared>);

impl TrackersView {
    /// As [`Trackers::status`].
    pub fn status(&self) -> Vec<TrackerStatus> {
        self.0.status.lock().clone()
    }
}

/// What the handle tells the groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Control {
    wanted: bool,
    completed: bool,
    stopping: bool,
    /// How often our address has changed.
    moved: u32,
    /// Trackers that may be in the local network after all, by their places in the status.
    widened: Arc<BTreeSet<usize>>,
}

/// The trackers of one torrent. Dropping it ends the announcing at once, without a word to the trackers; see
/// [`Trackers::stop`].
pub struct Trackers {
    scope: TaskScope,
    shared: Arc<Shared>,
    control: watch::Sender<Control>,
    /// Groups that are not done.
    active: Arc<watch::Sender<usize>>,
}

/// What the groups share.
struct Shared {
    announce: Announce,
    progress: ProgressFn,
    found: mpsc::Sender<FoundPeers>,
    options: TrackerOptions,
    /// One per tracker, in the order of being added.
    status: RankedMutex<Vec<TrackerStatus>>,
}

impl Trackers {
    /// Begins to announce to the trackers of `tiers`, in tasks of `scope`; returns at once. Equal URLs count
    /// once, and those over 100 are left out with a warning. What can't be used shows in the status only.
    pub fn start(
        scope: &TaskScope,
        tiers: Vec<Vec<String>>,
        announce: Announce,
        progress: ProgressFn,
        found: mpsc::Sender<FoundPeers>,
        options: TrackerOptions,
    ) -> Self {
        let trackers = Self {
            scope: scope.child("trackers"),
            shared: Arc::new(Shared {
                announce,
                progress,
                found,
                options,
                status: RankedMutex::new(Rank::Leaf, "tracker status", Vec::new()),
            }),
            control: watch::Sender::new(Control::default()),
            active: Arc::new(watch::Sender::new(0)),
        };
        let mut members = Vec::new();
        let mut order = Vec::new();
        for tier in tiers {
            let first = members.len();
            members.extend(tier.iter().filter_map(|url| trackers.register(url, &trackers.shared.options)));
            order.push((first..members.len()).collect());
        }
        if trackers.shared.options.private {
            let order = TierOrder::new(order, |tier| {
                use rand::seq::SliceRandom;
                tier.shuffle(&mut rand::rng());
            });
            trackers.spawn("tiers", members, order);
        } else {
            for member in members {
                trackers.spawn_one(member);
            }
        }
        trackers
    }

    /// Adds a tracker that may be as far as `reach` says; false for a private torrent, a URL that is known already or can't be used, or one too many.
    pub fn add(&self, url: &str, reach: Reach) -> bool {
        if self.shared.options.private {
            return false;
        }
        let options = TrackerOptions { reach, ..self.shared.options.clone() };
        self.register(url, &options).map(|member| self.spawn_one(member)).is_some()
    }

    /// Somebody whose word reaches further named a tracker that is known already: it may be in the local network from now
    /// on, and is announced to at once if that kept it from us. Nothing happens if it isn't known.
    pub fn widen(&self, url: &str) {
        let slot = self.shared.status.lock().iter().position(|known| known.url == url.trim());
        let Some(slot) = slot else { return };
        self.control.send_if_modified(|control| Arc::make_mut(&mut control.widened).insert(slot));
    }

    /// Tells every tracker that knows us, once, that the torrent was completed in this session. Doesn't wait.
    pub fn completed(&self) {
        self.control.send_modify(|control| control.completed = true);
    }

    /// Our address has changed: they are told at once, whatever they said about when. Cheap; doesn't wait.
    pub fn moved(&self) {
        self.control.send_modify(|control| control.moved = control.moved.wrapping_add(1));
    }

    /// Says whether more peers are wanted now: then trackers are asked as soon as they allow. Cheap; doesn't wait.
    pub fn want_peers(&self, wanted: bool) {
        self.control.send_if_modified(|now| std::mem::replace(&mut now.wanted, wanted) != wanted);
    }

    /// How each tracker is doing, in the order of being added.
    pub fn status(&self) -> Vec<TrackerStatus> {
        self.view().status()
    }

    /// To look at from elsewhere.
    pub fn view(&self) -> TrackersView {
        TrackersView(self.shared.clone())
    }

    /// Tells the trackers that know us that we stop, all at once, and ends the announcing. Takes `limit` at
    /// most; true when all are done before it. Again, or after the scope's cancel, it has nothing to do.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.control.send_modify(|control| control.stopping = true);
        let mut active = self.active.subscribe();
        let done = tokio::time::timeout(limit, active.wait_for(|groups| *groups == 0)).await;
        self.scope.cancel();
        matches!(done, Ok(Ok(_)))
    }

    /// Takes a tracker into the list; `None` if there is nothing to announce to.
    fn register(&self, url: &str, options: &TrackerOptions) -> Option<Member> {
        let url = url.trim();
        let tracker = Tracker::new(url, options);
        let mut status = self.shared.status.lock();
        if url.is_empty() || status.iter().any(|known| known.url == url) {
            return None;
        }
        if status.len() >= MAX_TRACKERS {
            drop(status);
            tracing::warn!("more than {MAX_TRACKERS} trackers in one torrent, the rest is left out");
            return None;
        }
        let (state, last_error) = match &tracker {
            Ok(_) => (TrackerState::Idle, None),
            Err(error) => (TrackerState::Disabled, Some(error.to_string())),
        };
        let name = tracker.as_ref().map_or_else(|_| "a URL that can't be used".into(), |t| t.name.clone());
        let slot = status.len();
        status.push(TrackerStatus {
            url: url.to_owned(),
            name,
            state,
            last_error,
            warning: None,
            seeders: None,
            leechers: None,
            next: None,
        });
        drop(status);
        match tracker {
            Ok(tracker) => Some(Member { slot, tracker, disabled: false }),
            Err(error) => {
                tracing::warn!("a tracker of the torrent can't be used: {error}");
                None
            }
        }
    }

    fn spawn_one(&self, member: Member) {
        let name = member.tracker.name.clone();
        self.spawn(&name, vec![member], TierOrder::new(vec![vec![0]], |_| {}));
    }

    fn spawn(&self, name: &str, members: Vec<Member>, order: TierOrder) {
        if members.is_empty() {
            return;
        }
        let control = self.control.subscribe();
        let (completed_told, moved) = {
            let now = control.borrow();
            (now.completed, now.moved)
        };
        let group = Group {
            members,
            order,
            schedule: Schedule::new(now().into_std()),
            completed_told,
            told_port: None,
            port: self.shared.options.port.clone(),
            moved,
            shared: self.shared.clone(),
            control,
            _active: Active::new(self.active.clone()),
        };
        self.scope.spawn(name, group.run());
    }
}

impl Drop for Trackers {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

/// Counts a group as active until it is dropped, in whatever way.
struct Active(Arc<watch::Sender<usize>>);

impl Active {
    fn new(count: Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|groups| *groups += 1);
        Self(count)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|groups| *groups = groups.saturating_sub(1));
    }
}

/// A tracker in a group.
struct Member {
    /// Its place in the status.
    slot: usize,
    tracker: Tracker,
    /// It doesn't want us.
    disabled: bool,
}

/// Trackers of which one at a time is kept informed: the first in order that works.
struct Group {
    members: Vec<Member>,
    order: TierOrder,
    schedule: Schedule,
    /// `completed` was told, or is from before this group.
    completed_told: bool,
    /// The port that was announced last.
    told_port: Option<u16>,
    port: OurPort,
    /// How often our address had changed when it was last told.
    moved: u32,
    shared: Arc<Shared>,
    control: watch::Receiver<Control>,
    _active: Active,
}

/// The clock that the sleeps follow.
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

impl Group {
    async fn run(mut self) {
        loop {
            let control = self.control.borrow_and_update().clone();
            self.widen(&control.widened);
            if control.stopping {
                return self.say_stopped().await;
            }
            if std::mem::replace(&mut self.moved, control.moved) != control.moved {
                self.schedule.hurry(now().into_std());
            }
            let event = control.completed && !self.completed_told;
            let moved = self.told_port.is_some_and(|told| told != self.shared.port());
            let due = self.schedule.due(control.wanted, event || moved);
            self.show_next(due);
            if due.is_some_and(|due| due <= now().into_std()) {
                let mut watched = self.control.clone();
                // The announce is dropped by the end only; its peers may be waiting for room.
                tokio::select! {
                    biased;
                    _ = watched.wait_for(|control| control.stopping) => {}
                    () = self.round(event) => {}
                }
                continue;
            }
            let idle = self.members.iter().filter_map(|member| member.tracker.idle_at()).min();
            let wake = due.map(tokio::time::Instant::from_std).into_iter().chain(idle).min();
            let sleep = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = self.control.changed() => if changed.is_err() { return },
                () = self.port.changed() => {}
                () = sleep => {}
            }
            let now = now();
            self.members.iter_mut().for_each(|member| member.tracker.release_idle(now));
        }
    }

    /// Has these trackers reach as far as any. What they were told to wait for is no reason any more if nobody has heard of
    /// us yet.
    fn widen(&mut self, slots: &BTreeSet<usize>) {
        let named = self.members.iter_mut().filter(|member| slots.contains(&member.slot));
        let widened = named.map(|member| member.tracker.widen()).fold(false, |any, one| any | one);
        if widened && !self.members.iter().any(|member| member.tracker.registered() || member.disabled) {
            self.schedule = Schedule::new(now().into_std());
        }
    }

    /// Announces to the first tracker in order that works.
    async fn round(&mut self, completed: bool) {
        let mut retry = None;
        for place in self.order.order() {
            let Some(member) = self.members.get_mut(place).filter(|member| !member.disabled) else {
                continue;
            };
            let event = match (member.tracker.registered(), completed) {
                (false, _) => Event::Started,
                (true, true) => Event::Completed,
                (true, false) => Event::None,
            };
            self.shared.note(member.slot, |status| status.state = TrackerState::Announcing);
            let ask = self.shared.ask(event);
            match member.tracker.announce(&ask, &self.shared.found).await {
                Ok(answer) => {
                    self.completed_told |= event == Event::Completed;
                    self.told_port = Some(ask.announce.port);
                    self.shared.note_answer(member, &answer);
                    self.order.worked(place);
                    self.schedule.succeeded(now().into_std(), answer.interval, answer.min_interval);
                    return;
                }
                Err(error) => {
                    retry = error.retry();
                    member.disabled = retry == Some(Retry::Never);
                    self.shared.note_error(member, &error);
                }
            }
        }
        // One that refused for good is out; the others of a private torrent are tried again.
        if self.members.iter().any(|member| !member.disabled) {
            retry = retry.filter(|retry| *retry != Retry::Never);
        } else {
            retry = Some(Retry::Never);
        }
        self.schedule.failed(now().into_std(), retry, rand::random());
    }

    /// Tells those that know us, at once. Bounded by the caller of [`Trackers::stop`], and by itself.
    async fn say_stopped(&mut self) {
        let ask = self.shared.ask(Event::Stopped);
        let shared = &self.shared;
        let told = self.members.iter_mut().filter(|member| member.tracker.registered()).map(|member| async {
            let told =
                tokio::time::timeout(TRACKER_STOPPED, member.tracker.announce(&ask, &shared.found)).await;
            if !matches!(told, Ok(Ok(_))) {
                tracing::debug!(tracker = member.tracker.name, "couldn't be told that we stop");
            }
        });
        join_all(told).await;
    }

    fn show_next(&self, due: Option<Instant>) {
        let mut status = self.shared.status.lock();
        for member in self.members.iter().filter(|member| !member.disabled) {
            if let Some(status) = status.get_mut(member.slot) {
                status.next = due;
            }
        }
    }
}

impl Shared {
    fn ask(&self, event: Event) -> Ask {
        let num_want = if event == Event::Stopped { 0 } else { self.options.num_want };
        let announce = Announce { port: self.port(), ..self.announce };
        Ask { announce, progress: (self.progress)(), event, num_want }
    }

    /// The port that is announced.
    fn port(&self) -> u16 {
        // Trackers refuse 0 of those who can't be reached; at 1 nobody is.
        self.options.port.outside().unwrap_or(self.announce.port).max(1)
    }

    fn note(&self, slot: usize, change: impl FnOnce(&mut TrackerStatus)) {
        if let Some(status) = self.status.lock().get_mut(slot) {
            change(status);
        }
    }

    fn note_answer(&self, member: &Member, answer: &Answer) {
        let mut new_warning = false;
        self.note(member.slot, |status| {
            new_warning = answer.warning.is_some() && status.warning != answer.warning;
            status.state = TrackerState::Working;
            status.last_error = None;
            status.warning.clone_from(&answer.warning);
            status.seeders = answer.seeders.or(status.seeders);
            status.leechers = answer.leechers.or(status.leechers);
        });
        let tracker = &member.tracker.name;
        if let (true, Some(warning)) = (new_warning, &answer.warning) {
            tracing::warn!(%tracker, "the tracker says: {warning}");
        }
        tracing::debug!(%tracker, seeders = answer.seeders, leechers = answer.leechers, "announced");
    }

    /// A refusal, of theirs or of ours, is news for the user, once; that some trackers are dead is not.
    fn note_error(&self, member: &Member, error: &TrackerError) {
        let text = error.to_string();
        let mut news = false;
        self.note(member.slot, |status| {
            let told = matches!(error, TrackerError::Refused { .. } | TrackerError::Private(_));
            news = told && status.last_error.as_ref() != Some(&text);
            status.state = if member.disabled { TrackerState::Disabled } else { TrackerState::Failed };
            if member.disabled {
                status.next = None;
            }
            status.last_error = Some(text.clone());
        });
        let tracker = &member.tracker.name;
        if news {
            tracing::warn!(%tracker, "{text}");
        } else {
            tracing::debug!(%tracker, "{text}");
        }
    }
}

#[cfg(test)]
mod tests;
