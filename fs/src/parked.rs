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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::content::{ReadDone, TryRead};
    use crate::lock::assert_none_held;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    /// Keeps what it is asked, to be answered by hand.
    #[derive(Default)]
    struct Slow {
        asked: Arc<RankedMutexOption>,
        withdrawn: Arc<AtomicUsize>,
        at_once: Option<Result<Vec<u8>, ContentError>>,
    }
    type RankedMutexOption = Holder;
    struct Holder(RankedMutex<Vec<ReadDone>>);
    impl Default for Holder {
        fn default() -> Self {
            Holder(RankedMutex::new(Rank::Leaf, "asked", Vec::new()))
        }
    }
    impl Stream for Slow {
        fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
            TryRead::NotNow
        }
        fn read(&self, _: u64, _: usize, done: ReadDone) -> Ticket {
            match &self.at_once {
                Some(Ok(bytes)) => done(Ok(bytes)),
                Some(Err(error)) => done(Err(error.clone())),
                None => self.asked.0.lock().push(done),
            }
            let withdrawn = self.withdrawn.clone();
            Ticket::new(move || {
                assert_none_held("a ticket's drop");
                withdrawn.fetch_add(1, Ordering::SeqCst);
            })
        }
    }

    type Answered = Receiver<Result<Vec<u8>, Errno>>;

    fn reply() -> (ReadReply, Answered) {
        let (sender, receiver) = channel();
        let reply: ReadReply = Box::new(move |result| {
            assert_none_held("a reply");
            sender.send(result.map(<[u8]>::to_vec)).unwrap();
        });
        (reply, receiver)
    }

    fn park(parked: &Arc<ParkedReads>, stream: &Slow) -> Answered {
        let (reply, answered) = reply();
        parked.park(stream, NodeId::new(1, 1), 8, 4, 0, reply);
        answered
    }

    fn once(answered: &Answered) -> Result<Vec<u8>, Errno> {
        let result = answered.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(answered.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected), "once only");
        result
    }

    #[test]
    fn data_answers_and_gives_the_ticket_back() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        assert_eq!(parked.len(), 1);
        let waiting = parked.waiting();
        assert_eq!((waiting[0].node, waiting[0].offset, waiting[0].len), (NodeId::new(1, 1), 8, 4));
        assert!(parked.any_in_slot(1) && !parked.any_in_slot(2));
        let done = stream.asked.0.lock().pop().unwrap();
        done(Ok(b"data"));
        assert_eq!(once(&answered), Ok(b"data".to_vec()));
        assert!(parked.is_empty() && parked.waiting().is_empty());
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_answer_before_the_ticket_is_fine() {
        for (at_once, expected) in [
            (Ok(b"data".to_vec()), Ok(b"data".to_vec())),
            (Err(ContentError::Gone), Err(Errno::ESTALE)),
            (Ok(b"sho".to_vec()), Err(Errno::EIO)),
        ] {
            let stream = Slow { at_once: Some(at_once), ..Slow::default() };
            let parked = ParkedReads::new(8);
            assert_eq!(once(&park(&parked, &stream)), expected, "a short answer is an error");
            assert!(parked.is_empty());
            assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn whoever_comes_second_does_nothing() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        let read = parked.all().pop().unwrap();
        assert!(parked.answer(&read, Err(Errno::EINTR)));
        assert!(!parked.answer(&read, Err(Errno::EIO)));
        let done = stream.asked.0.lock().pop().unwrap();
        done(Ok(b"data"));
        assert_eq!(once(&answered), Err(Errno::EINTR));
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_request_that_is_dropped_ends_in_an_error() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        let dropped = stream.asked.0.lock().pop();
        drop(dropped);
        assert_eq!(once(&answered), Err(Errno::EIO));
        assert!(parked.is_empty());
    }

    #[test]
    fn f3_refusal_is_sticky() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let before: Vec<_> = (0..50).map(|_| park(&parked, &stream)).collect();
        parked.refuse();
        for answered in &before {
            assert_eq!(once(answered), Err(Errno::EIO));
        }
        assert_eq!(once(&park(&parked, &stream)), Err(Errno::EIO));
        parked.refuse();
        assert!(parked.is_empty() && parked.is_refusing());
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 50);
    }

    #[test]
    fn answers_race_and_one_wins() {
        let parked = ParkedReads::new(8);
        for round in 0..200 {
            let stream = Slow::default();
            let answered = park(&parked, &stream);
            let done = stream.asked.0.lock().pop().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for read in parked.all() {
                        parked.answer(&read, Err(Errno::EINTR));
                    }
                });
                scope.spawn(move || done(Ok(b"data")));
            });
            let result = once(&answered);
            assert!(result == Ok(b"data".to_vec()) || result == Err(Errno::EINTR), "round {round}");
        }
        assert!(parked.is_empty());
    }

    #[test]
    fn a_panic_in_the_content_answers_too() {
        struct Broken;
        impl Stream for Broken {
            fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
                TryRead::NotNow
            }
            fn read(&self, _: u64, _: usize, _: ReadDone) -> Ticket {
                std::panic::panic_any("planned")
            }
        }
        let parked = ParkedReads::new(8);
        let (reply, answered) = reply();
        let parking = std::panic::AssertUnwindSafe(|| parked.park(&Broken, NodeId::ROOT, 0, 1, 0, reply));
        assert!(std::panic::catch_unwind(parking).is_err());
        assert_eq!(once(&answered), Err(Errno::EIO));
        assert!(parked.is_empty());
    }
}
