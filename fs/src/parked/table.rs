//! Parked reads: replies that wait for content, without a thread.
//!
//! **Flow.** A read that can't be answered at once becomes an entry here that owns its reply, and the content
//! is asked. Data, a signal, a failure and the unmount then race for the reply: whoever takes it out of its
//! slot answers, the others find it taken and do nothing. Answering, dropping the ticket and dropping a
//! reply write to `/dev/fuse` or run the content's code, so they happen outside every lock.
//!
//! **Invariants.** An entry is in the map before the content is asked and before refusal is looked at, and
//! refusal is raised before the map is gone through: no read slips between the two. An entry leaves the map
//! only after its reply was written.
//!
//! **Not here.** Time-outs: the content has them, since it knows when something last arrived.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::callers::{Caller, Callers};
use crate::content::{ContentError, Stream, Ticket};
use crate::errno::Errno;
use crate::lock::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::lock::{Rank, RankedCondvar, RankedMutex};
use crate::tree::NodeId;

/// Answers a read: all the bytes asked for, or an error. Dropping it unanswered answers EIO.
pub type ReadReply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// What a parked read waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingRead {
    /// The file.
    pub node: NodeId,
    /// From where, in bytes from the start of the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    /// The thread that waits; 0 if unknown.
    pub tid: u32,
    /// Since when.
    pub since: Instant,
}

enum State {
    Waiting { reply: ReadReply, ticket: Option<Ticket> },
    Answered,
}

/// A parked read.
pub(crate) struct ParkedRead {
    id: u64,
    pub(crate) what: WaitingRead,
    pub(crate) caller: Option<Arc<Caller>>,
    state: RankedMutex<State>,
}

/// All parked reads.
pub struct ParkedReads {
    next: AtomicU64,
    reads: DashMap<u64, Arc<ParkedRead>>,
    /// Number of `reads`, for a look without locks.
    count: AtomicUsize,
    /// Once raised, stays: every read fails.
    refusing: AtomicBool,
    callers: Callers,
    /// The watcher's: whether it shall end. It sleeps on `wake` while nothing is parked.
    stop: RankedMutex<bool>,
    wake: RankedCondvar,
}

/// The content's end of a parked read: answers it, also when it is dropped uncalled.
struct Answer {
    parked: Arc<ParkedReads>,
    read: Arc<ParkedRead>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Nothing if it is answered already.
        self.parked.answer(&self.read, Err(Errno::EIO));
    }
}

impl ParkedReads {
    /// None parked; at most so many threads are watched for signals.
    pub fn new(most_callers: usize) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(0),
            reads: DashMap::new(),
            count: AtomicUsize::new(0),
            refusing: AtomicBool::new(false),
            callers: Callers::new(most_callers),
            stop: RankedMutex::new(Rank::Leaf, "signal watcher", false),
            wake: RankedCondvar::new(),
        })
    }

    /// Parks a read and asks the content for it. Returns at once; the answer may have come by then.
    pub fn park(
        self: &Arc<Self>,
        stream: &dyn Stream,
        node: NodeId,
        offset: u64,
        len: usize,
        tid: u32,
        reply: ReadReply,
    ) {
        let read = Arc::new(ParkedRead {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            what: WaitingRead { node, offset, len, tid, since: Instant::now() },
            caller: self.callers.get(tid),
            state: RankedMutex::new(Rank::Leaf, "parked read", State::Waiting { reply, ticket: None }),
        });
        self.reads.insert(read.id, read.clone());
        if self.count.fetch_add(1, Ordering::SeqCst) == 0 {
            // Under its lock, so that the watcher can't miss it between its look and its sleep.
            drop(self.stop.lock());
            self.wake.notify_all();
        }
        // Made first: if the content panics, the answer is EIO all the same.
        let answer = Answer { parked: self.clone(), read: read.clone() };
        if self.is_refusing() {
            return;
        }
        let ticket = stream.read(
            offset,
            len,
            Box::new(move |result| {
                let checked = match result {
                    // Never short: less than was asked for would cut the file.
                    Ok(bytes) if bytes.len() != len => {
                        tracing::error!("{} bytes came for a read of {len} at {offset}", bytes.len());
                        Err(Errno::EIO)
                    }
                    Ok(bytes) => Ok(bytes),
                    Err(error) => Err(note(&error)),
                };
                answer.parked.answer(&answer.read, checked);
            }),
        );
        let mut unneeded = Some(ticket);
        if let State::Waiting { ticket, .. } = &mut *read.state.lock() {
            *ticket = unneeded.take();
        }
        drop(unneeded);
    }

    /// Answers a read if nobody has; whether it did.
    pub(crate) fn answer(&self, read: &ParkedRead, result: Result<&[u8], Errno>) -> bool {
        struct Remove<'a>(&'a ParkedReads, u64);
        impl Drop for Remove<'_> {
            fn drop(&mut self) {
                if self.0.reads.remove(&self.1).is_some() {
                    self.0.count.fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
        let taken = std::mem::replace(&mut *read.state.lock(), State::Answered);
        let State::Waiting { reply, ticket } = taken else { return false };
        // Last, and also if the reply panics.
        let _remove = Remove(self, read.id);
        reply(result);
        drop(ticket);
        true
    }

    /// Fails every parked read with EIO, and from now on every read. Doesn't wait.
    pub fn refuse(&self) {
        self.refusing.store(true, Ordering::SeqCst);
        for read in self.all() {
            self.answer(&read, Err(Errno::EIO));
        }
    }

    /// Whether reads are refused.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::SeqCst)
    }

    /// Number of parked reads.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether nothing is parked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is waited for now.
    pub fn waiting(&self) -> Vec<WaitingRead> {
        self.reads.iter().map(|read| read.what).collect()
    }

    /// Whether a read of a file in that slot is parked.
    pub fn any_in_slot(&self, slot: u32) -> bool {
        self.reads.iter().any(|read| read.what.node.slot() == slot)
    }

    /// The entries, copied out.
    pub(crate) fn all(&self) -> Vec<Arc<ParkedRead>> {
        self.reads.iter().map(|read| read.value().clone()).collect()
    }

    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    /// For the watcher: sleeps until something is parked; false when it shall end.
    pub(crate) fn sleep_while_empty(&self) -> bool {
        let mut stop = self.stop.lock();
        while !*stop && self.is_empty() {
            self.wake.wait(&mut stop);
        }
        !*stop
    }

    /// For the watcher: sleeps this long; false when it shall end.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut stop = self.stop.lock();
        while !*stop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.wake.wait_timeout(&mut stop, left);
        }
        false
    }

    /// Tells the watcher to end.
    pub(crate) fn stop_watching(&self) {
        *self.stop.lock() = true;
        self.wake.notify_all();
    }
}

fn note(error: &ContentError) -> Errno {
    tracing::debug!("a waiting read failed: {error}");
    Errno::from(error)
}
