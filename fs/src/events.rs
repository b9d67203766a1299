//! Passing changes of the root on to the kernel, so that a removed torrent's name is gone at once instead of
//! after its time to live.
//!
//! **Danger.** Telling the kernel of a change blocks while a read of a file it concerns is parked, beyond the
//! reach of SIGKILL. Hence: only names whose node is gone from the tree altogether (the content has failed
//! their reads and fails new ones at once) are passed on, only when no read of theirs is parked any more, by
//! a thread of its own that holds no lock. For all else, and whenever in doubt, the short time to live of the
//! root's entries does it.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::content::{Content, ContentEvent};
use crate::parked::ParkedReads;
use crate::tree::{NodeId, Tree};
use crate::worker::{Flag, Worker};

/// How often the thread looks whether it shall end; the channel can't tell it.
const LOOK: Duration = Duration::from_millis(200);
/// How long the replies of a removed torrent's reads are waited for; they are being written already.
const DRAIN: Duration = Duration::from_secs(2);

/// Tells the kernel that the root's entry of that name is void.
pub(crate) type Invalidate = Box<dyn Fn(&OsStr) -> io::Result<()> + Send>;

/// Starts the thread; it ends when `stop` is raised or the content's channel closes.
pub(crate) fn start(
    content: Arc<dyn Content>,
    events: Receiver<ContentEvent>,
    parked: Arc<ParkedReads>,
    invalidate: Invalidate,
    stop: Arc<Flag>,
) -> io::Result<Worker> {
    // Before the thread runs, so that what goes until then is noticed.
    let mut known = content.tree();
    Worker::spawn("fs-events", move || {
        while !stop.is_raised() {
            match events.recv_timeout(LOOK) {
                Ok(ContentEvent::RootChanged { .. }) => {
                    // Those that wait are of changes which the tree shows already.
                    while events.try_recv().is_ok() {}
                    let present = content.tree();
                    for (name, old) in void(&known, &present) {
                        if !drained(&parked, old, &stop) {
                            tracing::debug!("{name}: its reads still wait, so its entry is left to expire");
                            continue;
                        }
                        if let Err(error) = invalidate(OsStr::new(name)) {
                            tracing::debug!("{name}: the kernel didn't take the change: {error}");
                        }
                    }
                    known = present;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    })
}

/// The names that stood for a node which is gone. All of them, not only those of the change that was told: the tree
/// may be ahead of that already, and it is the one that the next is compared with.
fn void<'a>(known: &'a Tree, present: &Tree) -> Vec<(&'a str, NodeId)> {
    known.root().filter(|(_, old)| present.subtree(old.slot()).is_none()).collect()
}

/// Waits until no read of that torrent is parked; false if that didn't come about.
fn drained(parked: &ParkedReads, node: NodeId, stop: &Flag) -> bool {
    let until = Instant::now() + DRAIN;
    while parked.any_in_slot(node.slot()) {
        if Instant::now() >= until || stop.wait_until(Instant::now() + Duration::from_millis(5)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::content::{ContentError, ReadDone, Stream, Ticket, TryRead};
    use crate::mock::{Mock, MockFile};
    use crate::tree::{Leaf, SubtreeBuilder};

    #[test]
    fn f9_only_names_whose_torrent_is_gone_are_passed_on() {
        let leaf = Leaf::File { size: 1, executable: false, file: 0 };
        let subtree = Arc::new(SubtreeBuilder::single("x", 0, leaf));
        let tree = |entries: &[(&str, u32)]| {
            let torrents = entries.iter().map(|(name, slot)| (name.to_string(), *slot, subtree.clone()));
            Tree::new(torrents.collect(), 0)
        };
        let known = tree(&[("gone", 1), ("renamed", 2), ("stays", 3), ("replaced", 4)]);
        let present = tree(&[("other", 2), ("stays", 3), ("replaced", 5), ("new", 6)]);
        let void = void(&known, &present);
        assert_eq!(void, [("gone", NodeId::new(1, 0)), ("replaced", NodeId::new(4, 0))]);
    }

    /// A stream whose reads are answered by whoever holds the other end.
    struct Keeps(std::sync::mpsc::SyncSender<ReadDone>);

    impl Stream for Keeps {
        fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
            TryRead::NotNow
        }
        fn read(&self, _: u64, _: usize, done: ReadDone) -> Ticket {
            self.0.send(done).unwrap();
            Ticket::new(|| ())
        }
    }

    /// A name that the kernel was told of, and whether a read of that torrent waited then.
    type Told = (String, bool);

    /// The thread over a mock of two torrents, with a read of `T` parked that is answered by what is given.
    struct Bed {
        mock: Arc<Mock>,
        torrents: [NodeId; 2],
        parked: Arc<ParkedReads>,
        answer: ReadDone,
        told: Receiver<Told>,
        stop: Arc<Flag>,
        worker: Worker,
    }

    impl Bed {
        fn new() -> Self {
            let mock = Mock::new(1 << 16).unwrap();
            let torrents = ["T", "U"].map(|name| mock.add(name, &[MockFile::new("a", 10)]));
            // What was added before the thread began isn't of interest.
            let events = mock.events().unwrap();
            while events.try_recv().is_ok() {}
            let parked = ParkedReads::new(16);
            let (sender, asked) = std::sync::mpsc::sync_channel(1);
            let node = mock.node(torrents[0], "a").unwrap();
            parked.park(&Keeps(sender), node, 0, 10, 0, Box::new(|_| ()));
            let answer = asked.recv().unwrap();
            let (tell, told) = std::sync::mpsc::sync_channel(8);
            let (seen, slot) = (parked.clone(), torrents[0].slot());
            let invalidate = Box::new(move |name: &OsStr| {
                tell.send((name.to_string_lossy().into_owned(), seen.any_in_slot(slot))).unwrap();
                Ok(())
            });
            let stop = Arc::new(Flag::new());
            let worker = start(mock.clone(), events, parked.clone(), invalidate, stop.clone()).unwrap();
            Self { mock, torrents, parked, answer, told, stop, worker }
        }
        fn end(mut self) {
            self.stop.raise();
            assert!(self.worker.join_until(Instant::now() + Duration::from_secs(20)));
            assert_eq!(self.told.try_recv().ok(), None, "nothing else was told");
        }
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn f9_the_kernel_is_told_when_the_last_read_has_been_answered() {
        let Bed { mock, torrents, parked, answer, told, stop, worker } = Bed::new();
        mock.remove(torrents[0]);
        // The content is late with its answer.
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "told while a read waits");
        assert!(parked.any_in_slot(torrents[0].slot()));
        answer(Err(ContentError::Gone));
        assert_eq!(told.recv_timeout(SOON).unwrap(), ("T".to_owned(), false));
        let answer: ReadDone = Box::new(|_| ());
        Bed { mock, torrents, parked, answer, told, stop, worker }.end();
    }

    #[test]
    fn f9_what_goes_while_another_is_waited_for_is_told_as_well() {
        let Bed { mock, torrents, parked, answer, told, stop, worker } = Bed::new();
        // The tree is without both when the thread hears of the first.
        mock.remove(torrents[0]);
        mock.remove(torrents[1]);
        answer(Err(ContentError::Gone));
        let mut names = [(); 2].map(|()| told.recv_timeout(SOON).unwrap());
        names.sort();
        assert_eq!(names.map(|(name, _)| name), ["T", "U"]);
        let answer: ReadDone = Box::new(|_| ());
        Bed { mock, torrents, parked, answer, told, stop, worker }.end();
    }

    #[test]
    fn f9_the_kernel_is_never_told_while_a_read_waits_on() {
        let bed = Bed::new();
        bed.mock.remove(bed.torrents[0]);
        bed.mock.remove(bed.torrents[1]);
        // The first is given up after its time, and it goes on with the second.
        assert_eq!(bed.told.recv_timeout(SOON).unwrap(), ("U".to_owned(), true));
        bed.end();
    }
}
