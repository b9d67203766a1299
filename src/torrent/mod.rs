//! One torrent: who owns its state, what is shared for reading, and the pure parts that decide.
//!
//! The state of a torrent is under no lock. It is a [`swarm::Swarm`] that belongs to one task, the
//! [`owner`]; what happens reaches it as events through bounded channels, and `apply(event, now)` answers with
//! effects that the owner carries out afterwards. Shared with readers are the atomic [`table::PieceTable`],
//! the piece notifier and the store ([`reads::Shared`]); readers say what they want through the
//! [`inbox::Inbox`].

pub mod admission;
pub mod background;
pub mod blame;
pub mod choker;
#[cfg(test)]
mod crash_tests;
mod crowd;
pub mod demands;
pub mod describe;
pub mod effects;
pub mod goal;
mod greet;
pub mod inbox;
pub mod lend;
pub mod load;
pub mod memory;
pub mod notifier;
pub mod owner;
pub mod peers;
pub mod picker;
pub mod prepare;
pub mod priority;
pub mod punch;
pub mod rate;
pub mod reads;
pub mod recent;
pub mod records;
mod relations;
mod resolve;
pub mod room;
pub mod sessions;
pub mod status;
pub mod streams;
pub mod swarm;
pub mod table;
pub mod track;
mod unrecorded;
mod verdicts;
mod wants;
mod webseeds;
mod work;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use torrentfs_fs::lock::RankedMutex;

use crate::discovery::FoundPeers;
use crate::discovery::tracker::{TrackerStatus, TrackersView};
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::id::InfoHash;
use crate::net::hosts::Reach;
use crate::sync::tasks::TaskScope;
use crate::webseed::{Health, Seed, SeedState, SeedStatus};
use describe::Description;
use reads::Shared;
use sessions::Sessions;
use status::Status;

/// What a torrent's owner can be told to do.
pub enum Command {
    /// Write down what is complete. `clean` when the program is about to end in good order.
    Persist {
        /// See above.
        clean: bool,
        /// Answered when it is on disk, or could not be put there.
        done: oneshot::Sender<()>,
    },
    /// It was added once more, by somebody who knows other sources of it.
    Extend {
        /// Trackers by tier. Those of a private torrent stay as they are.
        trackers: Vec<Vec<String>>,
        /// How far those may be.
        reach: Reach,
        /// Webseeds. Those that are there already and have ended, or won't serve some files, are started anew.
        webseeds: Vec<Seed>,
        /// Addresses.
        peers: Vec<FoundPeers>,
    },
    /// Files of a watched folder stand for it, and name these webseeds together. Those that such files named before and
    /// nobody else does are to go; for the others see [`Command::Extend`].
    Watched {
        /// What they name.
        webseeds: Vec<Seed>,
    },
    /// The addresses of this machine have changed.
    Moved {
        /// Those that are gone.
        lost: Vec<IpAddr>,
    },
    /// Fetch files whole in the background, or no longer. Before the metadata is known only the whole torrent can be
    /// meant, and is fetched when it is.
    Prefetch {
        /// The files; [`swarm::EVERYTHING`] alone stands for the whole torrent.
        files: Vec<FileIndex>,
        /// Whether they are to be fetched.
        on: bool,
    },
    /// Room is needed: pieces are to go, as far as nobody holds them.
    Evict {
        /// The pieces.
        pieces: Vec<PieceIndex>,
        /// Also those that waiting reads need, of reads that have waited less long than since then.
        younger_than: Option<Instant>,
        /// Answered with how many bytes that gave, once they are given back.
        done: oneshot::Sender<u64>,
    },
    /// Write nothing any more, and write down what is complete; the torrent is about to end. What is just being opened
    /// is waited for, nothing more is opened.
    Close {
        /// Answered when nothing is written any more, and all is on disk that could be put there.
        done: oneshot::Sender<()>,
    },
    /// Say what there is to know: for diagnostics.
    Describe {
        /// Answered at once.
        done: oneshot::Sender<Box<Description>>,
    },
    /// Tell the trackers that we leave, no longer than this.
    Leave {
        /// Bound on the wait.
        limit: Duration,
        /// Answered when they were told.
        done: oneshot::Sender<()>,
    },
    /// Panic, as by a bug.
    #[cfg(test)]
    Panic,
}

/// The handle on a torrent that runs. Cheap to share; dropping it doesn't stop the torrent (its task scope
/// does).
pub struct Torrent {
    /// Its number, from 1: it follows from the info-hash, and is never used twice in this process.
    pub slot: u32,
    /// What it is.
    pub info_hash: InfoHash,
    /// What stands for it on encrypted connections ([`crate::peer::mse::obscured`]).
    pub obscured: [u8; 20],
    /// Its name as far as known without metadata: the magnet's `dn`, or the info-hash.
    pub hint: String,
    /// The time of its files, in seconds since the epoch: when it was made, or else when it was added.
    pub added: i64,
    live: OnceLock<Arc<Shared>>,
    status: RankedMutex<Arc<Status>>,
    /// Its connections.
    pub sessions: Arc<Sessions>,
    /// Wakes whoever watches the set of torrents: the metadata came, or the state changed for good.
    changed: Arc<Notify>,
    commands: mpsc::Sender<Command>,
    settled: watch::Sender<bool>,
    /// Its webseeds, also those that have ended.
    webseeds: RankedMutex<Vec<Listed>>,
    /// Its trackers; `None` while none were asked.
    trackers: RankedMutex<Option<TrackersView>>,
    /// Somebody named it, on the command line or to the running program; not only a file in a watched folder.
    pub(crate) named: AtomicBool,
    /// Somebody waits for what its peers have, so who comes is taken when others' aren't any more. Told by its owner, a
    /// moment late.
    pub(crate) eager: AtomicBool,
    /// All its tasks.
    pub(crate) scope: TaskScope,
    /// Bytes that are charged for what is kept of it, until it is live.
    charged: u64,
    turns: Turns,
}

/// A webseed, for who looks at it.
#[derive(Clone)]
struct Listed {
    health: Arc<Health>,
    /// Why it isn't asked any more, if it isn't.
    ended: Option<String>,
}

/// By when the owner's loop turns again, as it said itself: whoever finds it long past that looks at an owner that
/// hangs.
struct Turns {
    began: Instant,
    /// Milliseconds after `began`; `u64::MAX` when it has ended.
    due: AtomicU64,
}

impl Turns {
    /// It is to turn at once.
    fn new(now: Instant) -> Self {
        Self { began: now, due: AtomicU64::new(0) }
    }

    fn will(&self, by: Instant) {
        let due = u64::try_from(by.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        self.due.store(due, Ordering::Relaxed);
    }

    fn end(&self) {
        self.due.store(u64::MAX, Ordering::Relaxed);
    }

    fn overdue(&self, now: Instant) -> Duration {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(now.saturating_sub(self.due.load(Ordering::Relaxed)))
    }
}

impl Torrent {
    /// What is shared for reading, once the metadata is known.
    pub fn live(&self) -> Option<&Arc<Shared>> {
        self.live.get()
    }

    /// Waits until all that can be known without a network is known: what was recorded, the metadata that came
    /// along or was kept. As long as the disk takes, so bound it. Cancel-safe.
    pub async fn settled(&self) {
        // The sender lives as long as this does, so there is no error.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// The name to show: the metadata's, or the hint.
    pub fn name(&self) -> &str {
        self.live.get().map_or(self.hint.as_str(), |l| l.info.name.as_str())
    }

    /// The state as last published: at most a quarter of a second old while anything goes on.
    pub fn status(&self) -> Arc<Status> {
        self.status.lock().clone()
    }

    /// Its trackers as they are doing now, in the order in which they became known.
    pub fn trackers(&self) -> Vec<TrackerStatus> {
        let view = self.trackers.lock().clone();
        view.map(|view| view.status()).unwrap_or_default()
    }

    /// Its webseeds as they are doing now, in the order in which they became known; also those that have ended.
    pub fn webseeds(&self) -> Vec<SeedStatus> {
        let listed = self.webseeds.lock().clone();
        let now = |listed: Listed| {
            let status = listed.health.snapshot();
            match listed.ended {
                Some(reason) => SeedStatus { state: SeedState::Dropped, reason: Some(reason), ..status },
                None => status,
            }
        };
        listed.into_iter().map(now).collect()
    }

    /// Whether it has any.
    pub fn has_webseeds(&self) -> bool {
        !self.webseeds.lock().is_empty()
    }

    fn list_webseeds(&self, listed: Vec<Listed>) {
        let old = std::mem::replace(&mut *self.webseeds.lock(), listed);
        drop(old);
    }

    /// Tells the owner to do something. False when it has ended. May wait while eight commands are queued.
    pub async fn command(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    /// Waits until nothing of it is being written any more, once its store was closed. As long as the disk takes, so
    /// bound it.
    pub(crate) async fn written(&self) {
        if let Some(shared) = self.live() {
            work::written(shared).await;
        }
    }

    /// Its reads end, the waiting and the later ones: it isn't one of the client's torrents any more. An effect: called
    /// without any lock.
    pub(crate) fn remove(&self) {
        if let Some(shared) = self.live() {
            shared.remove();
        }
    }

    /// Closes its store: what is queued finds that, what is being done isn't waited for.
    pub(crate) fn close_store(&self) {
        if let Some(shared) = self.live() {
            shared.store.close();
        }
    }

    /// What is charged for what is kept of it, in bytes. Once its owner has ended and nothing is written any more: who
    /// asks answers for it from then on.
    pub(crate) fn take_charge(&self) -> u64 {
        self.live().map_or(self.charged, |shared| shared.take_charge())
    }

    /// For how long the owner should have turned its loop again and hasn't: it hangs in something, or nobody lets it
    /// run. Zero as long as all is well, or when it has ended.
    pub fn overdue(&self, now: Instant) -> Duration {
        self.turns.overdue(now)
    }

    /// What sessions told the owner and what it was told to do, as far as it hasn't looked at it yet: for
    /// diagnostics, also of an owner that doesn't answer.
    pub fn queued(&self) -> (usize, usize) {
        let commands = &self.commands;
        (self.sessions.queued(), commands.max_capacity() - commands.capacity())
    }

    fn publish(&self, status: Status) {
        let new = Arc::new(status);
        let old = std::mem::replace(&mut *self.status.lock(), new);
        drop(old);
    }
}

impl std::fmt::Debug for Torrent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Torrent")
            .field("slot", &self.slot)
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_overdue_by_its_own_word() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let turns = Turns::new(now);
        assert_eq!(turns.overdue(now + second), second, "it never began");
        turns.will(now + 10 * second);
        assert_eq!(turns.overdue(now + 10 * second), Duration::ZERO);
        assert_eq!(turns.overdue(now + 17 * second), 7 * second);
        turns.end();
        assert_eq!(turns.overdue(now + 1_000_000 * second), Duration::ZERO);
    }
}
