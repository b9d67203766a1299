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
    Worker::spawn("fs-events", move || {
        let mut known = content.tree();
        while !stop.is_raised() {
            match events.recv_timeout(LOOK) {
                Ok(ContentEvent::RootChanged { names }) => {
                    let present = content.tree();
                    for (name, old) in void(&known, &present, &names) {
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

/// Of the changed names those that stood for a node which is gone.
fn void<'a>(known: &Tree, present: &Tree, names: &'a [String]) -> Vec<(&'a str, NodeId)> {
    let gone = |name: &'a String| {
        let old = known.root_child(name)?;
        present.subtree(old.slot()).is_none().then_some((name.as_str(), old))
    };
    names.iter().filter_map(gone).collect()
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
        let names: Vec<String> =
            ["gone", "renamed", "stays", "replaced", "new", "unheard"].map(String::from).to_vec();
        let void = void(&known, &present, &names);
        assert_eq!(void, [("gone", NodeId::new(1, 0)), ("replaced", NodeId::new(4, 0))]);
    }
}
