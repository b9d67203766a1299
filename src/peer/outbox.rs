//! What the owner wants a peer to be told: a desired state, not a queue of messages.
//!
//! The owner changes it at any time without waiting; the session turns it into messages when its socket has
//! room. So what is requested is never held up by how full a write buffer is (row R1), a request that is
//! taken back before it was sent is never sent, and nothing here grows without a bound: requests are bounded by
//! the picker's depth, `have`s and their opposite by the number of pieces, extension messages by a constant.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::buffer::PieceBuffer;
use super::extension;
use super::wire::{BlockRequest, Message};
use crate::metainfo::geometry::{FileIndex, PieceIndex};

/// Extension messages waiting to be sent. Beyond it new ones are dropped: a peer that asks for metadata
/// faster than it reads asks again.
const EXTENDED_MAX: usize = 64;

/// A block to ask for, and where it goes.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The request as sent.
    pub request: BlockRequest,
    /// The buffer of its piece.
    pub buffer: Arc<PieceBuffer>,
    /// A read waits for it.
    pub urgent: bool,
}

#[derive(Default)]
struct Inner {
    first: Option<Message>,
    interested: Option<bool>,
    choke: Option<bool>,
    requests: VecDeque<Wanted>,
    cancels: Vec<BlockRequest>,
    unsent: Vec<BlockRequest>,
    hurried: Vec<BlockRequest>,
    haves: Vec<PieceIndex>,
    allowed: Vec<PieceIndex>,
    allow_nothing: bool,
    dont_haves: Vec<(u8, PieceIndex)>,
    extended: VecDeque<(u8, Bytes)>,
    distrusted: Vec<FileIndex>,
    disconnect: Option<String>,
    closed: bool,
}

/// What was taken out to be sent.
#[derive(Default)]
pub struct Outgoing {
    /// Messages in the order to be sent, requests not among them.
    pub messages: Vec<Message>,
    /// Requests to send and to remember.
    pub requests: Vec<Wanted>,
    /// Requests to forget, and to cancel.
    pub cancels: Vec<BlockRequest>,
    /// Requests that were taken back before they were sent.
    pub unsent: Vec<BlockRequest>,
    /// Requests that a read waits for now, and didn't when they were made.
    pub hurried: Vec<BlockRequest>,
    /// Pieces that it may ask for although we choke it, which the messages tell it.
    pub allowed: Vec<PieceIndex>,
    /// It may not ask any more for those that it was told of before.
    pub allow_nothing: bool,
    /// Whether we choke the peer, where that changed.
    pub choke: Option<bool>,
    /// Files of which it sent bytes that were wrong.
    pub distrusted: Vec<FileIndex>,
    /// The connection is to be closed, for this reason.
    pub disconnect: Option<String>,
}

/// See the module's text.
pub struct Outbox {
    inner: RankedMutex<Inner>,
    changed: Notify,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { inner: RankedMutex::new(Rank::Leaf, "peer outbox", Inner::default()), changed: Notify::new() }
    }
}

impl Outbox {
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return;
            }
            change(&mut inner);
        }
        self.changed.notify_one();
    }

    /// The first message after the handshake: what we have.
    pub fn first(&self, message: Message) {
        self.change(|i| i.first = Some(message));
    }
    /// We are interested in the peer, or no longer.
    pub fn interested(&self, interested: bool) {
        self.change(|i| i.interested = Some(interested));
    }
    /// We choke the peer, or no longer.
    pub fn choke(&self, choke: bool) {
        self.change(|i| i.choke = Some(choke));
    }
    /// Ask for blocks.
    pub fn request(&self, wanted: Vec<Wanted>) {
        self.change(|i| i.requests.extend(wanted));
    }
    /// Take a request back; it isn't sent at all if it wasn't yet.
    pub fn cancel(&self, request: BlockRequest) {
        self.change(|i| {
            let before = i.requests.len();
            i.requests.retain(|w| w.request != request);
            if i.requests.len() == before {
                i.cancels.push(request);
            } else {
                i.unsent.push(request);
            }
        });
    }
    /// A read waits now for what was asked for before. For webseeds: a peer answers in order, and its session takes no
    /// notice.
    pub fn hurry(&self, request: BlockRequest) {
        self.change(|i| match i.requests.iter_mut().find(|wanted| wanted.request == request) {
            Some(wanted) => wanted.urgent = true,
            None => i.hurried.push(request),
        });
    }
    /// We have these pieces, too.
    pub fn have(&self, pieces: &[PieceIndex]) {
        self.change(|i| i.haves.extend_from_slice(pieces));
    }
    /// It may ask for these pieces although we choke it (BEP 6).
    pub fn allow(&self, pieces: Vec<PieceIndex>) {
        self.change(|i| i.allowed.extend(pieces));
    }
    /// It may ask for nothing any more while we choke it. It isn't told: it gets refusals (BEP 6).
    pub fn allow_nothing(&self) {
        self.change(|i| {
            i.allowed.clear();
            i.allow_nothing = true;
        });
    }
    /// We have a piece no longer; `id` is the peer's number for `lt_donthave` (BEP 54).
    pub fn dont_have(&self, id: u8, piece: PieceIndex) {
        self.change(|i| {
            // One that wasn't sent yet would come after this.
            i.haves.retain(|have| *have != piece);
            i.dont_haves.push((id, piece));
        });
    }
    /// An extension message with the peer's number for it.
    pub fn extended(&self, id: u8, payload: Bytes) {
        self.change(|i| {
            if i.extended.len() < EXTENDED_MAX {
                i.extended.push_back((id, payload));
            }
        });
    }
    /// A piece of this file failed its hash, and all of it came from there. For webseeds: what a server has of one
    /// file may be wrong and the rest right. A peer's session takes no notice.
    pub fn distrust(&self, file: FileIndex) {
        self.change(|i| {
            if !i.distrusted.contains(&file) {
                i.distrusted.push(file);
            }
        });
    }
    /// Close the connection.
    pub fn disconnect(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.change(|i| i.disconnect = Some(reason));
    }
    /// The session is over: nothing is taken in any more.
    pub fn close(&self) {
        let old = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.requests)
        };
        drop(old);
    }

    /// Requests not yet sent: for diagnostics and tests.
    pub fn pending_requests(&self) -> usize {
        self.inner.lock().requests.len()
    }

    /// Whether everything was taken out.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        let inner = self.inner.lock();
        inner.haves.is_empty() && inner.requests.is_empty()
    }

    /// The reason to close the connection, if there is one: for a session that can't send anything now.
    pub fn take_disconnect(&self) -> Option<String> {
        self.inner.lock().disconnect.take()
    }

    /// Takes out what is to be sent now.
    pub fn take(&self) -> Outgoing {
        let mut inner = self.inner.lock();
        let mut out = Outgoing { disconnect: inner.disconnect.take(), ..Outgoing::default() };
        out.messages.extend(inner.first.take());
        out.messages.extend(inner.extended.drain(..).map(|(id, payload)| Message::Extended { id, payload }));
        let dont_have = |(id, piece)| Message::Extended { id, payload: extension::dont_have(piece) };
        out.messages.extend(inner.dont_haves.drain(..).map(dont_have));
        out.messages.extend(inner.haves.drain(..).map(Message::Have));
        out.allowed = std::mem::take(&mut inner.allowed);
        out.allow_nothing = std::mem::take(&mut inner.allow_nothing);
        out.messages.extend(out.allowed.iter().copied().map(Message::AllowedFast));
        if let Some(interested) = inner.interested.take() {
            out.messages.push(if interested { Message::Interested } else { Message::NotInterested });
        }
        out.choke = inner.choke.take();
        out.distrusted = std::mem::take(&mut inner.distrusted);
        out.cancels = std::mem::take(&mut inner.cancels);
        out.unsent = std::mem::take(&mut inner.unsent);
        out.hurried = std::mem::take(&mut inner.hurried);
        out.requests = inner.requests.drain(..).collect();
        out
    }

    /// Waits until something changed. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(begin: u32) -> Wanted {
        Wanted {
            request: BlockRequest { piece: PieceIndex(0), begin, len: 16384 },
            buffer: Arc::new(PieceBuffer::new(PieceIndex(0), 4)),
            urgent: false,
        }
    }

    #[test]
    fn a_request_taken_back_in_time_is_never_sent() {
        let outbox = Outbox::default();
        outbox.request(vec![wanted(0), wanted(16384)]);
        outbox.cancel(wanted(0).request);
        let out = outbox.take();
        assert_eq!(out.requests.len(), 1);
        assert!(out.cancels.is_empty());
        outbox.cancel(wanted(16384).request);
        assert_eq!(outbox.take().cancels.len(), 1);
    }

    #[test]
    fn a_file_is_distrusted_once() {
        let outbox = Outbox::default();
        [1, 2, 1].into_iter().for_each(|file| outbox.distrust(FileIndex(file)));
        assert_eq!(outbox.take().distrusted, [FileIndex(1), FileIndex(2)]);
        assert!(outbox.take().distrusted.is_empty());
    }

    #[test]
    fn the_last_word_on_interest_and_choking_is_what_is_sent() {
        let outbox = Outbox::default();
        outbox.interested(true);
        outbox.interested(false);
        outbox.choke(true);
        outbox.choke(false);
        let out = outbox.take();
        assert_eq!(out.messages, [Message::NotInterested]);
        assert_eq!(out.choke, Some(false));
        assert!(outbox.take().messages.is_empty());
    }

    #[test]
    fn r1_desired_requests_change_while_the_socket_is_full() {
        // Nobody takes anything out: the peer doesn't read. The owner's changes still land, at once.
        let outbox = Outbox::default();
        outbox.request((0..200).map(|i| wanted(i * 16384)).collect());
        for i in 0..200 {
            outbox.cancel(wanted(i * 16384).request);
        }
        outbox.request(vec![wanted(7)]);
        assert_eq!(outbox.pending_requests(), 1);
        assert_eq!(outbox.take().requests[0].request.begin, 7);
    }
}
