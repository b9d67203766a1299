//! Who waits for which piece, and who is the one to end a wait.
//!
//! **Flow.** A read that lacks pieces is registered for each of them, *then* each is looked at again, *then* the owner
//! is told ([`Notifier::wait`], [`Notifier::demand`]). A piece that completes in between is seen by the look or wakes the
//! waiter ([`Notifier::wake`]); none is missed. A waiter counts the pieces down that it lacks, from one more than they
//! are, so that it can't come to an end before the owner is told. The last one hands it to whoever reads.
//!
//! Data, a time-out, the end of the torrent and a reader that goes away race for its callback: whoever takes that out
//! of the waiter ends the wait ([`Waiter::take`]), the others find it taken. Whatever is called or dropped then is so
//! outside of every lock.
//!
//! **Not here.** What the torrent does for it: that is the [`Desk`]'s. So this file is all there is to the races, and
//! `tests/models` runs it, as it is, through every order of events.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use torrentfs_fs::lock::atomic::{AtomicU32, Ordering};
use torrentfs_fs::lock::{Rank, RankedMutex};

use crate::metainfo::geometry::PieceIndex;

/// What waiting needs of a torrent. None of it may wait; all of it is called without any lock.
pub trait Desk: Sized {
    /// What a waiter reads.
    type Read;
    /// What is called when its wait ends.
    type Done: Send;
    /// Why it ended without data.
    type Error: Clone;

    /// The pieces that it reads, here or not.
    fn pieces(&self, read: &Self::Read) -> Range<u32>;
    /// Whether a piece is here. What was done before it became so is seen by who sees it.
    fn is_complete(&self, piece: PieceIndex) -> bool;
    /// Everything that the waiter lacked has come: it is to be read, and answered.
    fn come(self: &Arc<Self>, waiter: Arc<Waiter<Self>>);
    /// The owner is to fetch these pieces for the waiter.
    fn want(&self, waiter: &Waiter<Self>, pieces: Vec<PieceIndex>);
    /// The owner needn't do anything for the waiter of this number any more.
    fn withdraw(&self, id: u64);
    /// The wait ends with an error.
    fn refuse(&self, done: Self::Done, error: Self::Error);
}

/// A read that waits for pieces, or for whoever reads them.
pub struct Waiter<D: Desk> {
    /// Its number.
    pub id: u64,
    /// What it reads.
    pub read: D::Read,
    /// Registrations with pieces that have not come yet.
    left: AtomicU32,
    done: RankedMutex<Option<D::Done>>,
}

impl<D: Desk> Waiter<D> {
    /// A read that nobody has taken up yet.
    pub fn new(id: u64, read: D::Read, done: D::Done) -> Self {
        let done = RankedMutex::new(Rank::Leaf, "waiting read", Some(done));
        Self { id, read, left: AtomicU32::new(0), done }
    }

    /// The right to end its wait, for whoever asks first.
    pub fn take(&self) -> Option<D::Done> {
        self.done.lock().take()
    }

    /// Whether somebody has taken that.
    pub fn is_taken(&self) -> bool {
        self.done.lock().is_none()
    }
}

/// See the module's text.
pub struct Notifier<D: Desk> {
    waiting: RankedMutex<Registered<D>>,
    /// Why nobody looks at demands any more, once that is so.
    ended: OnceLock<D::Error>,
}

struct Registered<D: Desk> {
    by_piece: HashMap<PieceIndex, Vec<Arc<Waiter<D>>>>,
    /// Those not answered yet, to find one without looking at all.
    by_id: HashMap<u64, Arc<Waiter<D>>>,
}

impl<D: Desk> Default for Notifier<D> {
    fn default() -> Self {
        let none = Registered { by_piece: HashMap::new(), by_id: HashMap::new() };
        Self { waiting: RankedMutex::new(Rank::Leaf, "piece notifier", none), ended: OnceLock::new() }
    }
}

impl<D: Desk> Notifier<D> {
    /// A waiter lacks these pieces.
    pub fn wait(&self, desk: &Arc<D>, waiter: &Arc<Waiter<D>>, missing: Vec<PieceIndex>) {
        self.register(waiter, &missing);
        for piece in &missing {
            if desk.is_complete(*piece) && self.take_one(*piece, waiter.id) {
                self.count_down(desk, waiter);
            }
        }
        self.demand(desk, waiter, missing);
    }

    /// The first step of a wait. Followed by [`Notifier::demand`].
    pub fn register(&self, waiter: &Arc<Waiter<D>>, pieces: &[PieceIndex]) {
        // One more than the pieces, so that it can't reach zero before the owner is told.
        waiter.left.store(pieces.len() as u32 + 1, Ordering::Release);
        let mut waiting = self.waiting.lock();
        for piece in pieces {
            waiting.by_piece.entry(*piece).or_default().push(waiter.clone());
        }
        waiting.by_id.insert(waiter.id, waiter.clone());
    }

    /// The last step of a wait: tells the owner.
    pub fn demand(&self, desk: &Arc<D>, waiter: &Arc<Waiter<D>>, pieces: Vec<PieceIndex>) {
        self.count_down(desk, waiter);
        desk.want(waiter, pieces);
        // Looked at after the registration: either `fail_all` sees the waiter, or this sees the end.
        if let Some(error) = self.ended.get() {
            self.fail(desk, waiter, error.clone());
        }
        // As well as this: a ticket that was dropped before found nothing to take back.
        if waiter.is_taken() {
            self.forget(desk, waiter);
            desk.withdraw(waiter.id);
        }
    }

    /// A piece is complete: whoever waited for it last has all it needs.
    pub fn wake(&self, desk: &Arc<D>, piece: PieceIndex) {
        for waiter in self.take_all(piece) {
            self.count_down(desk, &waiter);
        }
    }

    /// Ends a wait with an error, unless it has ended.
    pub fn fail(&self, desk: &D, waiter: &Waiter<D>, error: D::Error) {
        let done = waiter.take();
        self.forget(desk, waiter);
        if let Some(done) = done {
            desk.refuse(done, error);
        }
    }

    /// Ends the wait of this number with an error, if it goes on.
    pub fn fail_id(&self, desk: &D, id: u64, error: D::Error) {
        let waiter = self.waiting.lock().by_id.get(&id).cloned();
        if let Some(waiter) = waiter {
            self.fail(desk, &waiter, error);
        }
    }

    /// Ends every wait with an error, and each later one: nobody looks at demands any more.
    pub fn fail_all(&self, desk: &D, error: &D::Error) {
        let _ = self.ended.set(error.clone());
        for waiter in self.waiters() {
            self.fail(desk, &waiter, error.clone());
        }
    }

    /// Whoever waits has gone: nobody is told, unless it has ended.
    pub fn withdraw(&self, desk: &D, waiter: &Waiter<D>) {
        let done = waiter.take();
        if done.is_some() {
            self.forget(desk, waiter);
            desk.withdraw(waiter.id);
        }
    }

    /// All waiters, each once, the oldest first: for diagnostics and for the end.
    pub fn waiters(&self) -> Vec<Arc<Waiter<D>>> {
        let mut all: Vec<_> = self.waiting.lock().by_id.values().cloned().collect();
        all.sort_by_key(|w| w.id);
        all
    }

    /// Whether no piece is waited for any more.
    pub fn is_empty(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.by_piece.is_empty() && waiting.by_id.is_empty()
    }

    fn count_down(&self, desk: &Arc<D>, waiter: &Arc<Waiter<D>>) {
        if waiter.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answered(waiter.id);
            desk.come(waiter.clone());
        }
    }

    /// It is answered, or about to be.
    fn answered(&self, id: u64) {
        let waiter = self.waiting.lock().by_id.remove(&id);
        drop(waiter);
    }

    /// Takes a waiter off a piece; true if it was there. Who takes it counts it down.
    fn take_one(&self, piece: PieceIndex, id: u64) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(list) = waiting.by_piece.get_mut(&piece) else { return false };
        let before = list.len();
        list.retain(|w| w.id != id);
        let taken = list.len() < before;
        if list.is_empty() {
            waiting.by_piece.remove(&piece);
        }
        taken
    }

    fn take_all(&self, piece: PieceIndex) -> Vec<Arc<Waiter<D>>> {
        self.waiting.lock().by_piece.remove(&piece).unwrap_or_default()
    }

    fn forget(&self, desk: &D, waiter: &Waiter<D>) {
        for piece in desk.pieces(&waiter.read) {
            self.take_one(PieceIndex(piece), waiter.id);
        }
        self.answered(waiter.id);
    }
}
