//! Complete files that the kernel reads by itself (passthrough), and what is held for them.
//!
//! **Flow.** A storage worker holds the file's pieces against eviction, counts them against the bound, and then has the
//! store open the file. In this order nothing of it can go between the look and the opening. What is held lasts as long
//! as a handle is open that is read so.
//!
//! **Not here.** Which open is served so: the filesystem's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::reads::Shared;
use super::table::LongPins;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::storage::pool::{Class, Scratch};
use crate::storage::quota::{Holding, Quota};

/// What is held of a file that was lent; dropping it lets go.
#[derive(Debug)]
pub struct Held {
    _pins: LongPins,
    _holding: Holding,
}

/// Called once, on a storage worker; dropped uncalled when the workers take no more work.
pub type LentDone = Box<dyn FnOnce(Option<(OwnedFd, Held)>) + Send>;

impl Shared {
    /// Lends a complete file: open for reading, with what keeps it as it is. `None` when it isn't complete, doesn't lie
    /// in a file of our own, or more would be held than may be. Returns at once.
    pub fn lend(self: &Arc<Self>, file: FileIndex, quota: &Arc<Quota>, done: LentDone) {
        let (shared, quota) = (self.clone(), quota.clone());
        let job = Box::new(move |_: &mut Scratch| done(shared.lend_now(file, &quota)));
        if self.workers.submit(Class::Read, job).is_err() {
            tracing::debug!("a file wasn't lent: the storage workers are closed or full");
        }
    }

    fn lend_now(&self, file: FileIndex, quota: &Arc<Quota>) -> Option<(OwnedFd, Held)> {
        let pieces = self.info.geometry.file_pieces(file);
        // Whole pieces: what else is in the first and the last is held, too.
        let bytes = pieces.clone().map(|piece| self.cost(PieceIndex(piece))).sum();
        let holding = quota.hold(bytes)?;
        let pins = LongPins::new(&self.table, pieces)?;
        let open = self.store.backing_file(file)?;
        Some((open, Held { _pins: pins, _holding: holding }))
    }
}
