//! A node of the DHT (BEP 5, 32, 42, 43), for both families at once. Pure: packets and times go in, packets and finds
//! come out.
//!
//! **Parts.** Of each family a [`Half`]: its [`Table`], what others say of our address, whether we take part. In common:
//! questions under way, by transaction; walks ([`Lookup`]) and what each is for; searches, which are a walk in each
//! family; what others left with us. [`answer`] is what we say to those who ask.
//!
//! **Flow.** [`Node::search`] starts walks; [`Node::received`] takes packets and goes on with what they answer;
//! [`Node::tick`] does what is due: time-outs, refreshing, joining. Each writes what is to be done into an [`Out`], in
//! order. A question is matched by transaction and address, so who didn't get it can't answer it.
//!
//! **Joining** is a walk to our own name, from the nodes of the last run, or from entries: the caller is asked for those
//! ([`Out::enter`]) when too few nodes answer. Nodes of the other family that come along are used to join that (BEP 32).
//!
//! **Bounds.** Questions under way ([`UNDER_WAY`]), searches at a time ([`RUNNING`]), pings ([`PINGS`]), and those of each
//! part. When nothing at all is heard, nobody is called dead: our own line is.

mod answer;
mod walks;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::id::{Contact, Family, LEN, NodeId, is_public, may_name};
use super::krpc::{self, KrpcError, Message, Query, Reply, Tid, Want};
use super::lookup::Lookup;
use super::quota::Quota;
use super::recent::Recent;
use super::saved::{self, Saved};
use super::standing::Standing;
use super::store::{Peers, Tokens};
use super::table::{K, Placed, Table};
use crate::net::external::Votes;

/// After this a question no longer holds up its walk; most answers take a tenth.
const SLOW: Duration = Duration::from_secs(2);
/// After this no answer is expected.
const LOST: Duration = Duration::from_secs(8);
/// Questions under way.
const UNDER_WAY: usize = 1024;
/// Pings under way that nobody waits for.
const PINGS: usize = 32;
/// Searches at a time; others wait for their turn.
const RUNNING: usize = 16;
/// How long after the start searches wait for the first node of a family.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nodes of the last run have before entries are asked for.
const SAVED_FIRST: Duration = Duration::from_secs(3);
/// Pauses between two requests for entries while nobody answers.
const ENTER_FIRST: Duration = Duration::from_secs(5);
const ENTER_LONGEST: Duration = Duration::from_secs(60);
/// The longest while the other family has nodes: this one may not be there at all.
const ENTER_OTHER: Duration = Duration::from_secs(30 * 60);
/// The same while some nodes answer, though fewer than a bucket holds: it may be a small network.
const ENTER_FEW: Duration = Duration::from_secs(10 * 60);
/// Between two looks at what changes slowly.
const CHORES: Duration = Duration::from_secs(10);
/// For how long it is remembered whom we asked: as long as a router at home may let their packets in.
const ASKED: Duration = Duration::from_secs(3 * 60);
/// For how long somebody counts as being where it says: while a walk of its own lasts, and some more.
const PROVEN: Duration = Duration::from_secs(10 * 60);
/// How many of each are remembered.
const REMEMBERED: usize = 8192;

/// One search of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SearchId(u64);

/// How we are announced where a search leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnounceAs {
    /// Where we listen.
    pub port: u16,
    /// We listen where our packets come from; then routers may change the port.
    pub implied: bool,
}

/// How to make a node.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which families it speaks, by [`Family::index`].
    pub families: [bool; 2],
    /// Whether it takes part without having been reached by anybody: for networks of one's own.
    pub serve: bool,
    /// What all chance follows from: 32 random bytes.
    pub secret: [u8; 32],
    /// What was kept of the last run.
    pub saved: Saved,
}

/// A search that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub search: SearchId,
    /// Nodes that were asked.
    pub asked: usize,
    /// Nodes that keep our announce.
    pub announced: usize,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Out {
    /// To be sent, in order.
    pub packets: Vec<(SocketAddr, Vec<u8>)>,
    /// Peers that a search found, in the order of the answers; the same ones may come again.
    pub found: Vec<(SearchId, Vec<SocketAddr>)>,
    /// Searches that are over.
    pub done: Vec<Done>,
    /// Who said that we are where: the address, and his own.
    pub seen: Vec<(IpAddr, IpAddr)>,
    /// Too few nodes answer: [`Node::enter`] is to be called with entries, if there are any.
    pub enter: bool,
}

/// How one family is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfStatus {
    /// In the table.
    pub nodes: usize,
    /// Of them, those that answered lately.
    pub good: usize,
    /// Whether we only ask.
    pub read_only: bool,
    /// Where others see us.
    pub external: Option<IpAddr>,
}

/// What belongs to one family.
struct Half {
    family: Family,
    table: Table,
    standing: Standing,
    votes: Votes,
    /// Nodes of the last run that weren't tried yet.
    saved: Vec<Contact>,
    /// The walk to our own name.
    join: Option<u32>,
    refresh: Option<u32>,
    enter_at: Instant,
    enter_pause: Duration,
    /// When nodes that the other family named are tried again.
    named_at: Instant,
    /// When anything came from anybody.
    heard: Option<Instant>,
    /// Whether our neighbours have been asked since we take part: so they know.
    shown: bool,
}

/// A question under way.
#[derive(Debug)]
struct Pending {
    to: SocketAddr,
    sent: Instant,
    slow: bool,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Whether it is there.
    Ping,
    /// A step of a walk.
    Walk(u32),
    /// At the end of a walk.
    Announce(u32),
}

/// A walk, and what it is for.
struct Walk {
    half: usize,
    lookup: Lookup,
    purpose: Purpose,
    /// Its announces are under way, so many.
    announcing: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Join,
    Refresh,
    Search(SearchId),
}

/// A search: a walk in each family.
struct Search {
    hash: [u8; LEN],
    announce: Option<AnnounceAs>,
    /// Families whose walk hasn't begun.
    waiting: [bool; 2],
    /// Walks under way.
    walks: usize,
    asked: usize,
    announced: usize,
}

/// The node.
pub struct Node {
    halves: [Option<Half>; 2],
    draw: Draw,
    pending: BTreeMap<u32, Pending>,
    walks: BTreeMap<u32, Walk>,
    next_walk: u32,
    searches: BTreeMap<SearchId, Search>,
    queue: VecDeque<(SearchId, [u8; LEN], Option<AnnounceAs>)>,
    next_search: u64,
    tokens: Tokens,
    peers: Peers,
    quota: Quota,
    /// Whom we asked: their questions don't show that strangers reach us.
    asked: Recent<IpAddr>,
    /// Who showed that it is where it says: longer answers are safe.
    proven: Recent<IpAddr>,
    saved: Saved,
    began: Instant,
    due: Instant,
    chores: Instant,
}

impl Node {
    /// A node that knows nobody yet. Nothing is sent before the first [`Node::tick`].
    pub fn new(setup: Setup, now: Instant) -> Self {
        let mut draw = Draw::new(setup.secret);
        let half = |family: Family, draw: &mut Draw| {
            let at = family.index();
            let own = setup.saved.ids[at].unwrap_or_else(|| NodeId::random(draw));
            let saved = setup.saved.nodes[at].clone();
            Half {
                family,
                table: Table::new(own),
                standing: Standing::new(setup.serve, now),
                votes: Votes::default(),
                enter_at: if saved.is_empty() { now } else { now + SAVED_FIRST },
                saved,
                join: None,
                refresh: None,
                enter_pause: ENTER_FIRST,
                named_at: now,
                heard: None,
                shown: setup.serve,
            }
        };
        let halves =
            Family::BOTH.map(|family| setup.families[family.index()].then(|| half(family, &mut draw)));
        Self {
            halves,
            tokens: Tokens::new(&mut draw, now),
            draw,
            pending: BTreeMap::new(),
            walks: BTreeMap::new(),
            next_walk: 0,
            searches: BTreeMap::new(),
            queue: VecDeque::new(),
            next_search: 0,
            peers: Peers::default(),
            quota: Quota::new(now),
            asked: Recent::new(ASKED, REMEMBERED, now),
            proven: Recent::new(PROVEN, REMEMBERED, now),
            saved: setup.saved,
            began: now,
            due: now,
            chores: now,
        }
    }

    fn half(&mut self, at: usize) -> Option<&mut Half> {
        self.halves.get_mut(at)?.as_mut()
    }

    /// Searches for peers of an info-hash in each family, and announces us to the nodes that it leads to. It ends with a
    /// [`Done`].
    pub fn search(
        &mut self,
        hash: [u8; LEN],
        announce: Option<AnnounceAs>,
        now: Instant,
        out: &mut Out,
    ) -> SearchId {
        let id = SearchId(self.next_search);
        self.next_search += 1;
        self.queue.push_back((id, hash, announce));
        self.start_searches(now, out);
        id
    }

    /// Nobody wants it any more: no [`Done`] comes.
    pub fn cancel(&mut self, search: SearchId, now: Instant, out: &mut Out) {
        self.queue.retain(|(id, ..)| *id != search);
        self.searches.remove(&search);
        self.walks.retain(|_, walk| walk.purpose != Purpose::Search(search));
        self.start_searches(now, out);
    }

    /// Entries to the network, of which only the addresses are known.
    pub fn enter(&mut self, addrs: &[SocketAddr], now: Instant, out: &mut Out) {
        for family in Family::BOTH {
            let ours: Vec<_> = addrs.iter().copied().filter(|addr| Family::of(addr) == family).collect();
            if !ours.is_empty() && self.halves[family.index()].is_some() {
                self.join(family.index(), &[], &ours, now, out);
            }
        }
    }

    /// Somebody says that there is a node (BEP 5's PORT, a torrent's `nodes`). It is asked whether it is, unless there
    /// are too many to ask.
    pub fn hint(&mut self, addr: SocketAddr, now: Instant, out: &mut Out) {
        let at = Family::of(&addr).index();
        let Some(half) = self.half(at) else { return };
        if half.table.count(now).1 < K {
            self.join(at, &[], &[addr], now, out);
        } else {
            self.ping(addr, now, out);
        }
    }

    /// Whether it is known that strangers reach us at our port, in one family.
    pub fn set_public(&mut self, family: Family, public: bool, now: Instant) {
        if let Some(half) = self.half(family.index()) {
            half.standing.set_public(public, now);
        }
    }

    /// Our addresses have changed: what others said of them is void.
    pub fn address_changed(&mut self) {
        self.halves.iter_mut().flatten().for_each(|half| half.votes.reset());
    }

    /// When [`Node::tick`] is to be called next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// What is to be kept for another run.
    pub fn save(&self) -> Saved {
        let mut saved = self.saved.clone();
        for half in self.halves.iter().flatten() {
            let at = half.family.index();
            saved.ids[at] = Some(half.table.own());
            let best = half.table.best(saved::NODES);
            if !best.is_empty() {
                saved.nodes[at] = best;
            }
        }
        saved
    }

    /// How a family is doing; `None` if it isn't spoken.
    pub fn status(&self, family: Family, now: Instant) -> Option<HalfStatus> {
        let half = self.halves[family.index()].as_ref()?;
        let (nodes, good) = half.table.count(now);
        let read_only = half.standing.is_read_only();
        Some(HalfStatus { nodes, good, read_only, external: half.votes.believed().next() })
    }

    /// Torrents and peers that others left with us.
    pub fn stored(&self) -> (usize, usize) {
        self.peers.count()
    }

    /// Our name in a family.
    pub fn id(&self, family: Family) -> Option<NodeId> {
        self.halves[family.index()].as_ref().map(|half| half.table.own())
    }

    /// Takes a packet.
    pub fn received(&mut self, packet: &[u8], from: SocketAddr, now: Instant, out: &mut Out) {
        let at = Family::of(&from).index();
        let Some(half) = self.half(at).filter(|_| from.port() != 0) else { return };
        half.heard = Some(now);
        match krpc::decode(packet) {
            Ok(Message::Query { tid, id, query, read_only }) => {
                let contact = Contact { id, addr: from };
                self.query(at, tid, contact, &query, read_only, now, out);
            }
            Err(KrpcError::BadQuery(tid)) => self.refuse(at, tid, krpc::PROTOCOL, from, now, out),
            Ok(Message::Reply { tid, reply, ip }) => {
                if let Some(pending) = self.take(tid, from) {
                    self.reply(at, pending, reply, ip, from, now, out);
                }
            }
            Ok(Message::Error { tid, .. }) => {
                if let Some(pending) = self.take(tid, from) {
                    self.without_answer(pending, from, now, out);
                }
            }
            Err(_) => {}
        }
    }

    /// The question that this answers, if that address was asked it.
    fn take(&mut self, tid: Tid, from: SocketAddr) -> Option<Pending> {
        let number = tid.number()?;
        self.pending.get(&number).filter(|pending| pending.to == from)?;
        self.pending.remove(&number)
    }

    #[allow(clippy::too_many_arguments, reason = "all that a packet tells")]
    fn reply(
        &mut self,
        at: usize,
        pending: Pending,
        mut reply: Reply,
        ip: Option<SocketAddr>,
        from: SocketAddr,
        now: Instant,
        out: &mut Out,
    ) {
        self.proven.saw(from.ip(), now);
        let Some(half) = self.half(at) else { return };
        if reply.id == half.table.own() {
            // Our own answer, or somebody who took our name.
            return self.without_answer(pending, from, now, out);
        }
        match half.table.answered(Contact { id: reply.id, addr: from }, now) {
            Placed::Waits(Some(doubtful)) => self.ping(doubtful.addr, now, out),
            Placed::In | Placed::Waits(None) | Placed::Refused => {}
        }
        if let Some(ip) = ip {
            self.seen_at(at, ip.ip(), from.ip(), now, out);
        }
        reply.nodes.retain(|node| may_name(from.ip(), node.addr));
        match pending.why {
            Why::Ping => {}
            Why::Walk(key) => self.step(key, from, reply, now, out),
            Why::Announce(key) => self.announced(key, true, now, out),
        }
        if self.searches.values().any(|search| search.waiting[at]) {
            // Now somebody is known.
            self.start_searches(now, out);
        }
    }

    /// Somebody says where we are. When enough do, we get a name that fits (BEP 42), and find our place anew.
    fn seen_at(&mut self, at: usize, said: IpAddr, by: IpAddr, now: Instant, out: &mut Out) {
        let rest = self.draw.bytes();
        let Some(half) = self.half(at) else { return };
        if !is_public(said) || Family::of_ip(said) != half.family {
            return;
        }
        out.seen.push((said, by));
        let Some(ip) = half.votes.saw(said, by, now) else { return };
        if half.table.own().fits(ip) {
            return;
        }
        half.table.rename(NodeId::for_ip(ip, rest[LEN - 1], rest));
        self.join(at, &[], &[], now, out);
    }

    /// A question was refused, or its answer is none.
    fn without_answer(&mut self, pending: Pending, from: SocketAddr, now: Instant, out: &mut Out) {
        match pending.why {
            Why::Ping => {}
            Why::Walk(key) => {
                if let Some(walk) = self.walks.get_mut(&key) {
                    walk.lookup.failed(from);
                }
                self.go_on(key, now, out);
            }
            Why::Announce(key) => self.announced(key, false, now, out),
        }
    }

    /// Does what is due, and says when to come again. To be called at [`Node::due`]; sooner does no harm.
    pub fn tick(&mut self, now: Instant, out: &mut Out) -> Instant {
        self.time_out(now, out);
        self.enter_if_lonely(now, out);
        if now >= self.chores {
            self.chores = now + CHORES;
            self.tokens.tick(&mut self.draw, now);
            self.peers.expire(now);
            self.show(now, out);
            self.refresh(now, out);
        }
        // Walks end by time, too.
        let walks: Vec<_> = self.walks.keys().copied().collect();
        walks.into_iter().for_each(|key| self.go_on(key, now, out));
        self.start_searches(now, out);
        self.due = self.chores;
        let deadline = |pending: &Pending| pending.sent + if pending.slow { LOST } else { SLOW };
        let waits = self.searches.values().any(|search| search.waiting.contains(&true));
        let times = self.pending.values().map(deadline);
        let times = times.chain(waits.then_some(self.began + PATIENCE));
        let enters = self.halves.iter().flatten().filter(|half| half.table.count(now).1 == 0);
        let times = times.chain(enters.map(|half| half.enter_at)).filter(|time| *time > now);
        self.due = times.min().map_or(self.chores, |time| time.min(self.chores));
        self.due
    }

    /// When we begin to take part our neighbours learn of it: a walk to our own name, now without `ro`.
    fn show(&mut self, now: Instant, out: &mut Out) {
        for at in 0..self.halves.len() {
            let Some(half) = self.half(at) else { continue };
            half.standing.tick(now);
            let takes_part = !half.standing.is_read_only();
            if std::mem::replace(&mut half.shown, takes_part) != takes_part && takes_part {
                self.join(at, &[], &[], now, out);
            }
        }
    }

    fn time_out(&mut self, now: Instant, out: &mut Out) {
        let (mut slow, mut lost) = (Vec::new(), Vec::new());
        for (number, pending) in &mut self.pending {
            let age = now.saturating_duration_since(pending.sent);
            if age >= LOST {
                lost.push(*number);
            } else if age >= SLOW && !pending.slow {
                pending.slow = true;
                slow.push((pending.why, pending.to));
            }
        }
        for (why, to) in slow {
            if let Why::Walk(key) = why
                && let Some(walk) = self.walks.get_mut(&key)
            {
                walk.lookup.is_slow(to);
                self.go_on(key, now, out);
            }
        }
        for number in lost {
            let Some(pending) = self.pending.remove(&number) else { continue };
            let to = pending.to;
            if let Some(half) = self.half(Family::of(&to).index())
                && half.heard.is_some_and(|heard| heard >= pending.sent)
            {
                half.table.failed(to, now);
            }
            self.without_answer(pending, to, now, out);
        }
    }

    /// Sends a question; false when too many are under way.
    fn ask(&mut self, to: SocketAddr, query: Query, why: Why, now: Instant, out: &mut Out) -> bool {
        let at = Family::of(&to).index();
        if self.pending.len() >= UNDER_WAY {
            return false;
        }
        let mut number = self.draw.number();
        while self.pending.contains_key(&number) {
            number = self.draw.number();
        }
        let Some(half) = self.half(at) else { return false };
        let (id, read_only) = (half.table.own(), half.standing.is_read_only());
        let message = Message::Query { tid: Tid::of(number), id, query, read_only };
        out.packets.push((to, krpc::encode(&message)));
        self.asked.saw(to.ip(), now);
        self.pending.insert(number, Pending { to, sent: now, slow: false, why });
        self.due = self.due.min(now + SLOW);
        true
    }

    /// Asks a node whether it is there, unless it is being asked something.
    fn ping(&mut self, to: SocketAddr, now: Instant, out: &mut Out) {
        let pings = self.pending.values().filter(|pending| pending.why == Why::Ping).count();
        if pings < PINGS && !self.pending.values().any(|pending| pending.to == to) {
            self.ask(to, Query::Ping, Why::Ping, now, out);
        }
    }

    /// Nodes of which families are wanted: of both if both are spoken, otherwise it goes without saying.
    fn want(&self) -> Want {
        if self.halves.iter().all(Option::is_some) { Want::BOTH } else { Want::default() }
    }
}

#[cfg(test)]
mod tests;
