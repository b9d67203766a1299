//! What a store remembers of its files: which are open, what they are called, and what isn't durable yet. No I/O.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::Name;
use crate::storage::StorageError;
use crate::storage::volume::{InodeId, Stat, VolumeFile};

/// A file that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: Arc<dyn VolumeFile>,
    pub(super) writable: bool,
    /// Bytes it had when it was opened, or was given since: with fewer, it was cut.
    pub(super) len: u64,
    /// When it was looked at last, whether it is still what it was.
    pub(super) checked: Instant,
    /// The table's clock at its last use.
    pub(super) used: u64,
}

/// By what a file is known again that nobody should write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    inode: InodeId,
    len: u64,
    modified: i64,
}

impl From<&Stat> for Mark {
    fn from(stat: &Stat) -> Self {
        Self { inode: stat.inode, len: stat.len, modified: stat.modified }
    }
}

/// What is known of a file that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) name: Name,
    /// Its inode, once it was looked at: what was verified is in that one.
    pub(super) inode: Option<InodeId>,
    /// Set while nobody is to write to it, we neither.
    pub(super) mark: Option<Mark>,
    /// Whether it was finished, and that is durable.
    pub(super) finished: bool,
}

/// What a file that is read should still be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    len: u64,
    mark: Option<Mark>,
}

impl Expected {
    /// Whether it is that no more.
    pub(super) fn differs(&self, stat: &Stat) -> bool {
        stat.links == 0 || stat.len < self.len || self.mark.is_some_and(|mark| mark != Mark::from(stat))
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) open: HashMap<u32, Open>,
    pub(super) clock: u64,
    /// Files that are known to be there; others may be as well.
    pub(super) standing: HashMap<u32, Standing>,
    /// Files of which a thread looks up or changes the name.
    pub(super) turns: HashSet<u32>,
    /// Bytes that files have had since the store was opened, or since they were reopened: with fewer, they were cut.
    pub(super) had: HashMap<u32, u64>,
    /// Files that somebody was at, which was told: nothing of them is read, and none is open, before they are reopened,
    /// since whoever believes in what was in them hasn't heard of it yet.
    pub(super) harmed: HashSet<u32>,
    /// Files that the kernel was given to read by itself, or may have been before the store was opened.
    pub(super) lent: HashSet<u32>,
    /// Files of which it is known that nobody but us has them mapped: made here, and not whole since then, or looked at.
    pub(super) alone: HashSet<u32>,
    /// Files that somebody had open or mapped, and until when that isn't looked at again.
    pub(super) shared: HashMap<u32, Instant>,
    /// Written since the last sync.
    pub(super) dirty: BTreeSet<u32>,
    /// Made since the last sync: the folders they lie in are to be synced too.
    pub(super) created: BTreeSet<u32>,
    pub(super) syncing: bool,
    /// How many syncs failed, and what the last of them said.
    pub(super) failures: u64,
    pub(super) failed: Option<StorageError>,
    pub(super) closed: bool,
}

impl Table {
    pub(super) fn usable(&self) -> Result<(), StorageError> {
        if self.closed { Err(StorageError::Closed) } else { Ok(()) }
    }

    pub(super) fn find(&mut self, file: u32, write: bool) -> Option<Arc<dyn VolumeFile>> {
        self.clock += 1;
        let open = self.open.get_mut(&file).filter(|open| open.writable || !write)?;
        open.used = self.clock;
        Some(open.file.clone())
    }

    /// As [`Table::find`], for reading; with what it should still be, when it wasn't looked at for `every`. The caller
    /// does that then: it isn't due for others meanwhile.
    pub(super) fn find_due(
        &mut self,
        file: u32,
        now: Instant,
        every: Duration,
    ) -> Option<(Arc<dyn VolumeFile>, Option<Expected>)> {
        self.clock += 1;
        let open = self.open.get_mut(&file)?;
        open.used = self.clock;
        let mut expected = None;
        if now.saturating_duration_since(open.checked) >= every {
            open.checked = now;
            let mark = self.standing.get(&file).and_then(|standing| standing.mark);
            expected = Some(Expected { len: open.len, mark });
        }
        Some((open.file.clone(), expected))
    }

    /// As [`Table::find`], for reading, unless it has to be looked at first.
    pub(super) fn find_known(
        &mut self,
        file: u32,
        now: Instant,
        every: Duration,
    ) -> Option<Arc<dyn VolumeFile>> {
        self.clock += 1;
        let open = self.open.get_mut(&file)?;
        if now.saturating_duration_since(open.checked) >= every {
            return None;
        }
        open.used = self.clock;
        Some(open.file.clone())
    }

    /// Forgets what a file is called and what it should be. What was open is to be dropped outside the lock.
    pub(super) fn forget(&mut self, file: u32) -> Option<Open> {
        self.standing.remove(&file);
        self.open.remove(&file)
    }

    /// As [`Table::forget`], of a file that isn't what it was. One that never was here is nothing to anybody.
    pub(super) fn harm(&mut self, file: u32) -> Option<Open> {
        if self.standing.contains_key(&file) || self.had.get(&file).is_some_and(|had| *had > 0) {
            self.harmed.insert(file);
        }
        self.forget(file)
    }

    /// Takes out an eighth, the least recently used, those without unsynced data first. To be dropped outside
    /// the lock: that closes them.
    pub(super) fn evict(&mut self) -> Vec<Open> {
        let mut order: Vec<(bool, u64, u32)> =
            self.open.iter().map(|(file, open)| (self.dirty.contains(file), open.used, *file)).collect();
        order.sort_unstable();
        let count = order.len() / 8 + 1;
        order.into_iter().take(count).filter_map(|(_, _, file)| self.open.remove(&file)).collect()
    }
}
