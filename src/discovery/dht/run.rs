//! The node's task: packets, commands and time go into the pure node, and what comes out is carried out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::entries::Wanted;
use super::id::{Family, LEN};
use super::inlet::Mail;
use super::node::{AnnounceAs, Node, Out, SearchId, Setup};
use super::saved::Saved;
use super::{DhtOptions, DhtStatus, Keep, Shared};
use crate::net::udp::SharedUdp;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts::{DHT_BOOTSTRAP, DHT_SAVE};

/// When the nodes are kept first: a short run is to be of use to the next one, too.
const SAVE_FIRST: Duration = Duration::from_secs(60);
/// Packets that are taken before anything else gets its turn.
const AT_ONCE: usize = 64;
/// Answers of one search that wait to be taken: more than it can bring, with both families.
pub const ANSWERS: usize = 2 * super::lookup::ASKED;

/// A port that is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// The router maps it, so it is the one that counts, whatever port our packets come from.
    pub mapped: bool,
}

/// What others want of the node.
#[derive(Debug)]
pub enum Command {
    /// Search, and announce. The answers go there; the search is over when that is closed.
    Search {
        /// The info-hash.
        hash: [u8; LEN],
        /// The port to announce, if any.
        port: Option<Port>,
        /// Where the peers go.
        found: mpsc::Sender<Vec<SocketAddr>>,
    },
    /// Entries, as asked for, or why there are none.
    Enter(Result<Vec<SocketAddr>, String>),
    /// There may be nodes.
    Hint(Vec<SocketAddr>),
    /// It is known whether strangers reach our port.
    Public(Family, bool),
    /// Our addresses have changed.
    AddressChanged,
}

/// What the task has in hand.
pub struct Running {
    /// What the handle sees.
    pub shared: Arc<Shared>,
    /// Where its tasks are.
    pub scope: TaskScope,
    /// How it is to run.
    pub options: DhtOptions,
    /// Where its knowledge is kept.
    pub keep: Option<Arc<dyn Keep>>,
    /// What others want of it.
    pub commands: mpsc::Receiver<Command>,
    /// What it wants looked up.
    pub wanted: mpsc::Sender<Wanted>,
    /// What is spoken, by [`Family::index`].
    pub families: [bool; 2],
}

impl Running {
    /// Runs the node until the scope is cancelled; then keeps what is known.
    pub async fn run(self, udp: Arc<SharedUdp>, mail: mpsc::Receiver<Mail>) {
        let token = self.scope.token().clone();
        let load = async {
            match &self.keep {
                Some(keep) => keep.load().await,
                None => None,
            }
        };
        let saved = tokio::select! {
            () = token.cancelled() => return,
            saved = load => saved,
        };
        let saved = saved.map(|bytes| Saved::decode(&bytes)).unwrap_or_default();
        let setup =
            Setup { families: self.families, serve: self.options.serve, secret: rand::random(), saved };
        let node = Node::new(setup, Instant::now().into_std());
        let turn = Turns { node, out: Out::default(), searches: HashMap::new(), why: None, reached: None };
        turn.go_round(self, udp, mail).await;
    }
}

/// The node, and what is under way.
struct Turns {
    node: Node,
    out: Out,
    searches: HashMap<SearchId, mpsc::Sender<Vec<SocketAddr>>>,
    /// Why there are no entries.
    why: Option<String>,
    /// Whether anybody was reached, once that was said.
    reached: Option<bool>,
}

impl Turns {
    async fn go_round(mut self, mut running: Running, udp: Arc<SharedUdp>, mut mail: mpsc::Receiver<Mail>) {
        let token = running.scope.token().clone();
        let started = Instant::now();
        let mut save = started + SAVE_FIRST;
        let mut due = self.node.tick(started.into_std(), &mut self.out);
        loop {
            self.carry_out(&udp, &running);
            self.tell(&running.shared, started);
            due = due.min(self.node.due());
            tokio::select! {
                () = token.cancelled() => break,
                packet = mail.recv() => {
                    let Some((packet, from)) = packet else { break };
                    let now = Instant::now().into_std();
                    self.node.received(&packet, from, now, &mut self.out);
                    for _ in 1..AT_ONCE {
                        let Ok((packet, from)) = mail.try_recv() else { break };
                        self.node.received(&packet, from, now, &mut self.out);
                    }
                }
                command = running.commands.recv() => {
                    let Some(command) = command else { break };
                    self.command(command, running.options.implied);
                }
                () = sleep_until(due.into()) => {
                    let now = Instant::now().into_std();
                    self.give_up(now);
                    due = self.node.tick(now, &mut self.out);
                }
            }
            if Instant::now() >= save {
                save = Instant::now() + DHT_SAVE;
                drop(self.save(&running));
            }
        }
        // The workers stop soon after the last task.
        if let Some(saved) = self.save(&running) {
            saved.await;
        }
    }

    fn save(&self, running: &Running) -> Option<impl Future<Output = ()> + use<>> {
        running.keep.as_ref().map(|keep| keep.store(self.node.save().encode()))
    }

    fn command(&mut self, command: Command, implied: bool) {
        let now = Instant::now().into_std();
        let out = &mut self.out;
        match command {
            Command::Search { hash, port, found } => {
                let announce =
                    port.map(|port| AnnounceAs { port: port.number, implied: implied && !port.mapped });
                let search = self.node.search(hash, announce, now, out);
                self.searches.insert(search, found);
            }
            Command::Enter(Ok(addrs)) => {
                self.why = None;
                self.node.enter(&addrs, now, out);
            }
            Command::Enter(Err(why)) => {
                if self.why.as_ref() != Some(&why) && self.reached != Some(true) {
                    tracing::warn!(
                        "the DHT is not available: {why}; peers come from trackers and --peer meanwhile"
                    );
                }
                self.why = Some(why);
            }
            Command::Hint(addrs) => addrs.into_iter().for_each(|addr| self.node.hint(addr, now, out)),
            Command::Public(family, public) => self.node.set_public(family, public, now),
            Command::AddressChanged => self.node.address_changed(),
        }
    }

    /// Lets go of searches that nobody listens to.
    fn give_up(&mut self, now: std::time::Instant) {
        let Self { node, out, searches, .. } = self;
        searches.retain(|search, found| {
            let listens = !found.is_closed();
            if !listens {
                node.cancel(*search, now, out);
            }
            listens
        });
    }

    fn carry_out(&mut self, udp: &SharedUdp, running: &Running) {
        for (to, packet) in self.out.packets.drain(..) {
            if running.options.filter.blocks(to.ip()) {
                continue;
            }
            if let Err(error) = udp.try_send(&packet, to) {
                tracing::trace!("a packet to {to} of the DHT is lost: {error}");
            }
        }
        for (search, addrs) in self.out.found.drain(..) {
            if let Some(found) = self.searches.get(&search) {
                // Meant never to be full; whoever doesn't listen any more misses nothing.
                let _ = found.try_send(addrs);
            }
        }
        for done in self.out.done.drain(..) {
            tracing::debug!(asked = done.asked, announced = done.announced, "searched the DHT");
            self.searches.remove(&done.search);
        }
        let now = Instant::now().into_std();
        for (said, by) in self.out.seen.drain(..) {
            running.options.ours.saw(said, by, now);
        }
        if std::mem::take(&mut self.out.enter) {
            // Full: it is being looked up already.
            let _ = running.wanted.try_send(Wanted::Entries);
        }
    }

    /// Notes how many nodes are known, and says so when none is.
    fn tell(&mut self, shared: &Shared, started: Instant) {
        let now = Instant::now().into_std();
        let [four, six] = Family::BOTH.map(|family| self.node.status(family, now));
        let good = [four, six].iter().flatten().map(|half| half.good).sum::<usize>();
        let status = match (&self.why, good) {
            (Some(why), 0) => DhtStatus::Failed(why.clone()),
            _ => DhtStatus::Running {
                nodes: four.map_or(0, |half| half.good),
                nodes6: six.map_or(0, |half| half.good),
                read_only: [four, six].iter().flatten().all(|half| half.read_only),
            },
        };
        shared.status.send_if_modified(|said| {
            let differs = *said != status;
            *said = status;
            differs
        });
        if good > 0 && self.reached != Some(true) {
            tracing::info!(nodes = good, "the DHT is reached");
            self.reached = Some(true);
        } else if good == 0 && self.reached != Some(false) && started.elapsed() > DHT_BOOTSTRAP {
            tracing::warn!(
                "the DHT can't be reached: none of its nodes answers. Is UDP blocked, or the network down? It is \
                 tried on; --dht-bootstrap names other nodes"
            );
            self.reached = Some(false);
        }
    }
}
