//! The way from readers to the torrent's owner: what they want, without waiting and without a channel that
//! could be full.
//!
//! Posting is a push under a leaf lock and a wake-up. What is in it is bounded by what the kernel can have
//! outstanding: a few demands per open handle and waiting read; the owner takes all of them at once.

use std::ops::Range;
use std::time::Instant;

use tokio::sync::Notify;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::track::Reach;
use crate::metainfo::geometry::{FileIndex, PieceIndex};

/// What a reader tells the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// A handle was opened: stay interested in peers.
    Open {
        /// The handle's stream.
        stream: u64,
        /// Its file.
        file: FileIndex,
    },
    /// The handle is closed: what was fetched ahead for it isn't wanted any more.
    Close {
        /// The handle's stream.
        stream: u64,
    },
    /// The reader of a handle has moved.
    Moved {
        /// The handle's stream.
        stream: u64,
        /// Where it is.
        reach: Reach,
    },
    /// A read waits for these pieces.
    Want {
        /// The read.
        waiter: u64,
        /// The handle's stream.
        stream: u64,
        /// The file it reads.
        file: FileIndex,
        /// From where in the torrent's linear space.
        offset: u64,
        /// All its pieces.
        all: Range<u32>,
        /// Those of them that were missing.
        pieces: Vec<PieceIndex>,
        /// Since when it waits.
        since: Instant,
    },
    /// Complete pieces could not be read back: the disk failed, or somebody was at their files. They are to be
    /// checked.
    Suspect {
        /// The pieces that were read.
        pieces: Range<u32>,
        /// Files of which nothing is certain any more.
        files: Vec<FileIndex>,
    },
    /// A read failed though its pieces were checked, again and again.
    Unreadable {
        /// Why, for the user.
        reason: String,
    },
    /// The read was given up.
    Withdraw {
        /// The read.
        waiter: u64,
    },
}

/// See the module's text.
pub struct Inbox {
    demands: RankedMutex<Vec<Demand>>,
    posted: Notify,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { demands: RankedMutex::new(Rank::Leaf, "demand inbox", Vec::new()), posted: Notify::new() }
    }
}

impl Inbox {
    /// Puts a demand in and wakes the owner. Never blocks.
    pub fn post(&self, demand: Demand) {
        self.demands.lock().push(demand);
        self.posted.notify_one();
    }

    /// Takes all demands, oldest first.
    pub fn take(&self) -> Vec<Demand> {
        std::mem::take(&mut *self.demands.lock())
    }

    /// Waits until something was posted since the last time this returned. Cancel-safe.
    pub async fn posted(&self) {
        self.posted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_posted_arrives_in_order_and_wakes_the_owner_once() {
        let inbox = Inbox::default();
        // Posted before anybody waits: the wake-up isn't lost.
        (0..3).for_each(|stream| inbox.post(Demand::Close { stream }));
        inbox.posted().await;
        let close = |stream| Demand::Close { stream };
        assert_eq!(inbox.take(), [close(0), close(1), close(2)]);
        assert!(inbox.take().is_empty());
        let again = tokio::time::timeout(std::time::Duration::from_millis(1), inbox.posted()).await;
        assert!(again.is_err(), "nothing was posted since");
    }
}
