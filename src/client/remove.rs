//! Ending one torrent while the program goes on.
//!
//! **Goal.** At once nobody sees or reads the torrent any more, and nobody waits for it in vain; a little later nothing
//! of it is left in this process, whatever its peers, trackers or disk do; and it can be added again, which finds what
//! is here.
//!
//! **Flow.** It leaves the table: no peer and no path finds it. Its reads fail, the waiting ones and all later ones, also
//! those of files that are still open ([`crate::torrent::reads::ReadError::Removed`], for programs ESTALE, as when a file
//! on a server was removed). Whoever watches the set of torrents is told. Then, in a task of its own that nobody can
//! drop half-way: what is complete is recorded, as at the end of the program, and meanwhile the trackers are told; its
//! tasks are cancelled and joined; its store is closed, and what was being written is waited for. Last its data is
//! removed, if that was asked for, and what was charged for it is charged for what lies there now. Until then who adds
//! it again waits. Each wait but that for the removal of data is bounded.
//!
//! **Not here.** Who may remove what, and the tree of files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::dormant::Dormant;
use super::{Client, on_worker};
use crate::storage::cache::{CacheDir, CacheError};
use crate::storage::catalog::{self, Entry};
use crate::storage::pool::Workers;
use crate::sync::timeouts;
use crate::torrent::room::Room;
use crate::torrent::{Command, Torrent};

/// What came of a removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Bytes on the disk that were given back; 0 when the data was to stay.
    pub freed: u64,
    /// Where its data lies that another client downloaded, and that is used no longer. It is never removed.
    pub adopted: Option<PathBuf>,
    /// What didn't end in time, by name; it is left behind.
    pub hung: Vec<String>,
}

/// Why a torrent could not be removed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoveError {
    /// Somebody was quicker.
    #[error("the torrent isn't there any more")]
    NotThere,
    /// It is removed, but its data isn't, or not all of it.
    #[error("the torrent is removed, but its data could not be deleted: {0}")]
    Data(#[source] CacheError),
    /// The program is about to end, and takes all torrents down with it.
    #[error("the program is about to end")]
    Closing,
}

impl Client {
    /// Removes a torrent. When this returns, nothing of it is left in the process but what others hold. With
    /// `delete_data` its folder in the cache goes, too; what lies elsewhere, adopted from another client, never does.
    /// Takes as long as the disk takes to record what is complete, and trackers to be told, some seconds at most; and
    /// as long as it takes to delete the data. Dropping the future doesn't stop the removal.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub async fn remove(&self, torrent: &Arc<Torrent>, delete_data: bool) -> Result<Removed, RemoveError> {
        self.remove_if(torrent, delete_data, |_| true).await.and_then(|r| r.ok_or(RemoveError::NotThere))
    }

    /// Removes a torrent that was added for a watched folder, with its data kept; `None`, and nothing happens, when
    /// somebody else has added it as well. Otherwise as [`Client::remove`].
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub async fn remove_watched(&self, torrent: &Arc<Torrent>) -> Result<Option<Removed>, RemoveError> {
        self.remove_if(torrent, false, |torrent| !torrent.named.load(Ordering::Relaxed)).await
    }

    /// Removes a torrent if it is there and `may` says so, under the table's lock.
    async fn remove_if(
        &self,
        torrent: &Arc<Torrent>,
        delete_data: bool,
        may: impl FnOnce(&Torrent) -> bool,
    ) -> Result<Option<Removed>, RemoveError> {
        let key = torrent.info_hash.to_string();
        {
            let mut torrents = self.torrents.write();
            let at = torrents.iter().position(|t| Arc::ptr_eq(t, torrent)).ok_or(RemoveError::NotThere)?;
            if !may(torrent) {
                return Ok(None);
            }
            // Before it is out of the table: who doesn't find it there waits for its end.
            self.dormant.closing(&key);
            torrents.remove(at);
        }
        let ending = Ending { dormant: self.dormant.clone(), key: key.clone(), left: None };
        torrent.remove();
        self.env.changed.notify_one();
        let removal = Removal {
            torrent: torrent.clone(),
            key,
            delete_data,
            cache: self.cache.clone(),
            workers: self.env.workers.clone(),
            room: self.env.room.clone(),
            turns: self.ending.clone(),
            on_disk: self.options.storage.is_on_disk(),
            ending,
        };
        let (done, answer) = oneshot::channel();
        let name = format!("remove torrent {}", torrent.info_hash.short8());
        // Refused, or not answered: the program ends, or has ended.
        self.scope.spawn_graceful(&name, async move {
            let _ = done.send(removal.run().await);
        });
        answer.await.unwrap_or(Err(RemoveError::Closing)).map(Some)
    }
}

/// Says that a torrent has ended, when it is dropped.
struct Ending {
    dormant: Arc<Dormant>,
    key: String,
    /// What is left of it in the cache, and charged.
    left: Option<Entry>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.dormant.closed(&self.key, self.left.take());
    }
}

/// A removal under way.
struct Removal {
    torrent: Arc<Torrent>,
    key: String,
    delete_data: bool,
    cache: Arc<CacheDir>,
    workers: Arc<Workers>,
    room: Room,
    turns: Arc<Semaphore>,
    on_disk: bool,
    ending: Ending,
}

impl Removal {
    async fn run(mut self) -> Result<Removed, RemoveError> {
        let torrent = &self.torrent;
        // Never closed, so there is no error; its readers don't wait any more.
        let turn = self.turns.clone().acquire_owned().await;
        let mut hung = Vec::new();
        let limit = timeouts::TRACKER_STOPPED;
        let (recorded, _) = tokio::join!(
            ask(torrent, timeouts::REMOVE_RECORD, |done| Command::Close { done }),
            ask(torrent, limit, |done| Command::Leave { limit, done }),
        );
        if !recorded {
            hung.push(format!("recording what is complete of {}", torrent.name()));
        }
        torrent.scope.cancel();
        hung.extend(torrent.scope.join(timeouts::REMOVE_TASKS).await);
        // It may have become live in between.
        torrent.remove();
        torrent.close_store();
        if tokio::time::timeout(timeouts::REMOVE_RECORD, torrent.written()).await.is_err() {
            hung.push(format!("writing pieces of {}", torrent.name()));
        }
        for name in &hung {
            tracing::warn!(torrent = torrent.name(), "did not stop in time and is left behind: {name}");
        }
        let (freed, adopted) = self.settle().await?;
        drop(turn);
        tracing::info!(torrent = self.torrent.name(), "removed");
        Ok(Removed { freed, adopted, hung })
    }

    /// Removes the data if that was asked for, and has charged what is left. Returns how many bytes were given back, and
    /// where adopted data lies that was let go.
    async fn settle(&mut self) -> Result<(u64, Option<PathBuf>), RemoveError> {
        let charged = self.torrent.take_charge();
        let (cache, key, delete) = (self.cache.clone(), self.key.clone(), self.delete_data);
        let work = move || {
            cache.release(&key);
            let before = catalog::entry(cache.path(), &key);
            let removed = if delete { catalog::remove(cache.path(), &key).map(|r| r.freed) } else { Ok(0) };
            let after = if delete { catalog::entry(cache.path(), &key) } else { before.clone() };
            (before, removed, after)
        };
        // Refused only when the program ends; then nobody counts any more.
        let (before, removed, after) = on_worker(&self.workers, work).await.ok_or(RemoveError::Closing)?;
        let left = after.filter(|entry| self.on_disk && entry.allocated > 0);
        let now = left.as_ref().map_or(0, |entry| entry.allocated);
        let gone = delete || !self.on_disk;
        match charged.checked_sub(now).filter(|_| gone) {
            // The disk, or the memory, has so much more.
            Some(less) => self.room.release(less),
            None => self.room.quota().recount(charged, now),
        }
        // Who waits for room tries again.
        self.room.release(0);
        self.ending.left = left;
        let adopted = before.and_then(|entry| entry.adopted).filter(|_| delete).map(|a| a.path);
        match removed {
            Ok(freed) => Ok((freed, adopted)),
            Err(error) => Err(RemoveError::Data(error)),
        }
    }
}

/// Tells an owner to do something and waits for its answer; whether it came, or there is no owner any more.
async fn ask(
    torrent: &Torrent,
    limit: Duration,
    command: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> bool {
    let (done, answer) = oneshot::channel();
    let asked = async {
        if torrent.command(command(done)).await {
            // An error says that it has ended.
            let _ = answer.await;
        }
    };
    tokio::time::timeout(limit, asked).await.is_ok()
}

#[cfg(test)]
#[path = "remove_tests.rs"]
mod tests;
