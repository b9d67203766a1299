//! The nodes that we know, in buckets by how near their names are to ours (BEP 5). Pure; one table per family.
//!
//! A bucket holds the [`K`] nodes that share exactly so many bits with our own name. Only who has answered us gets in.
//! A node is *good* while it answered, or asked us something, within a quarter of an hour; otherwise *questionable*;
//! *bad* after [`BAD`] questions in a row without an answer. Good nodes stay for as long as they are good: who was there
//! for long will be there for long, and newcomers can't drive them out. When a bucket is full, a newcomer takes the place
//! of a bad node, or of one whose name doesn't fit its address if its own does (BEP 42); otherwise it waits as a
//! substitute, and the least recently seen questionable node is to be asked whether it is still there.
//!
//! A bad node without a substitute stays, and isn't named to others: when our own line is down all nodes turn bad, and
//! must be there afterwards.
//!
//! One node per address, and one per network ([`network`]), so that nobody fills the table with names of his own.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::id::{BITS, Contact, LEN, NodeId, network};

/// Nodes of a bucket, and of an answer (BEP 5).
pub const K: usize = 8;
/// Newcomers that wait for a place in a bucket.
const SUBSTITUTES: usize = 8;
/// How long a node counts as good after it was heard of (BEP 5).
const GOOD: Duration = Duration::from_secs(15 * 60);
/// A bucket in which nothing happened for this long is refreshed (BEP 5).
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// So many questions in a row without an answer make a node bad.
const BAD: u8 = 2;
/// After so many a bad node goes even without a substitute.
const GONE: u8 = 8;

/// A node, and what is known of it.
#[derive(Debug, Clone)]
struct Entry {
    contact: Contact,
    fits: bool,
    /// When it last answered.
    answered: Instant,
    /// When it last answered or asked.
    heard: Instant,
    /// Questions in a row without an answer.
    failed: u8,
}

impl Entry {
    fn is_good(&self, now: Instant) -> bool {
        self.failed == 0 && now.saturating_duration_since(self.heard) < GOOD
    }

    fn is_bad(&self) -> bool {
        self.failed >= BAD
    }
}

#[derive(Debug)]
struct Bucket {
    nodes: Vec<Entry>,
    /// The latest last.
    substitutes: VecDeque<Entry>,
    /// When a node last came in or answered.
    changed: Option<Instant>,
}

/// What becomes of a node that answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in the table.
    In,
    /// Its bucket is full; it waits. If there is one, this node is to be asked whether it is still there.
    Waits(Option<Contact>),
    /// It isn't taken: it is us, or another at its address or in its network is here already.
    Refused,
}

/// The nodes of one family.
#[derive(Debug)]
pub struct Table {
    own: NodeId,
    buckets: Vec<Bucket>,
}

impl Table {
    /// An empty one, around our own name.
    pub fn new(own: NodeId) -> Self {
        let bucket = || Bucket { nodes: Vec::new(), substitutes: VecDeque::new(), changed: None };
        Self { own, buckets: std::iter::repeat_with(bucket).take(BITS).collect() }
    }

    /// Our own name.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Around another name of ours: all nodes find their places anew, and those without one go.
    pub fn rename(&mut self, own: NodeId) {
        let old = std::mem::replace(self, Self::new(own));
        let mut entries: Vec<_> = old.buckets.into_iter().flat_map(|bucket| bucket.nodes).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.answered));
        for entry in entries {
            if let Some(bucket) = self.bucket(&entry.contact.id)
                && bucket.nodes.len() < K
            {
                bucket.nodes.push(entry);
            }
        }
    }

    fn bucket(&mut self, id: &NodeId) -> Option<&mut Bucket> {
        self.buckets.get_mut(self.own.shared(&id.0))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.iter().flat_map(|bucket| &bucket.nodes)
    }

    /// A node answered.
    pub fn answered(&mut self, contact: Contact, now: Instant) -> Placed {
        if contact.id == self.own {
            return Placed::Refused;
        }
        let ip = contact.addr.ip();
        let entry = Entry { contact, fits: contact.id.fits(ip), answered: now, heard: now, failed: 0 };
        let mut same = None;
        for known in self.entries() {
            if known.contact.addr == contact.addr || known.contact.id == contact.id {
                if known.contact == contact {
                    same = Some(contact);
                } else if known.contact.addr != contact.addr && !known.is_bad() {
                    // Somebody else has this name, and hasn't been lost: it may well be stolen.
                    return Placed::Refused;
                }
            } else if shares_network(known.contact.addr.ip(), ip) && !known.is_bad() {
                return Placed::Refused;
            }
        }
        if same.is_none() {
            // Whoever had the name or the address before is no more.
            for bucket in &mut self.buckets {
                bucket.nodes.retain(|known| {
                    let known = known.contact;
                    known.addr != contact.addr
                        && known.id != contact.id
                        && !shares_network(known.addr.ip(), ip)
                });
            }
        }
        let Some(bucket) = self.bucket(&contact.id) else { return Placed::Refused };
        bucket
            .substitutes
            .retain(|known| known.contact.addr != contact.addr && known.contact.id != contact.id);
        bucket.changed = Some(now);
        if let Some(known) = bucket.nodes.iter_mut().find(|known| known.contact == contact) {
            *known = entry;
            return Placed::In;
        }
        if bucket.nodes.len() < K {
            bucket.nodes.push(entry);
            return Placed::In;
        }
        let replaced = bucket
            .nodes
            .iter()
            .position(Entry::is_bad)
            .or_else(|| bucket.nodes.iter().position(|known| entry.fits && !known.fits));
        if let Some(place) = replaced.and_then(|at| bucket.nodes.get_mut(at)) {
            *place = entry;
            return Placed::In;
        }
        if bucket.substitutes.len() >= SUBSTITUTES {
            bucket.substitutes.pop_front();
        }
        bucket.substitutes.push_back(entry);
        let doubtful = bucket.nodes.iter().filter(|known| !known.is_good(now));
        Placed::Waits(doubtful.min_by_key(|known| known.heard).map(|known| known.contact))
    }

    /// A node asked us something. True if it isn't known and there is a place for it: then it is worth a question.
    pub fn asked(&mut self, contact: Contact, now: Instant) -> bool {
        if contact.id == self.own {
            return false;
        }
        let ip = contact.addr.ip();
        let taken = self.entries().any(|known| {
            known.contact.addr == contact.addr
                || known.contact.id == contact.id
                || shares_network(known.contact.addr.ip(), ip)
        });
        let Some(bucket) = self.bucket(&contact.id) else { return false };
        if let Some(known) = bucket.nodes.iter_mut().find(|known| known.contact == contact) {
            // Only who has answered before is good for having asked.
            known.heard = now;
            return false;
        }
        !taken && (bucket.nodes.len() < K || bucket.nodes.iter().any(|known| !known.is_good(now)))
    }

    /// A question to that address went without an answer.
    pub fn failed(&mut self, addr: SocketAddr, now: Instant) {
        for bucket in &mut self.buckets {
            bucket.substitutes.retain(|known| known.contact.addr != addr);
            let Some(at) = bucket.nodes.iter().position(|known| known.contact.addr == addr) else { continue };
            let Some(known) = bucket.nodes.get_mut(at) else { continue };
            known.failed = known.failed.saturating_add(1);
            let (bad, gone) = (known.is_bad(), known.failed >= GONE);
            // A substitute that was silent for long is no better.
            while bad && let Some(substitute) = bucket.substitutes.pop_back() {
                if substitute.is_good(now)
                    && let Some(place) = bucket.nodes.get_mut(at)
                {
                    *place = substitute;
                    return self.drop_doubles();
                }
            }
            if gone {
                bucket.nodes.swap_remove(at);
            }
        }
    }

    /// A substitute came in without a look at the others: of two that may not both be here the first stays.
    fn drop_doubles(&mut self) {
        let mut seen: Vec<Contact> = Vec::new();
        for bucket in &mut self.buckets {
            bucket.nodes.retain(|known| {
                let new = known.contact;
                let double = seen.iter().any(|old| {
                    old.addr == new.addr || old.id == new.id || shares_network(old.addr.ip(), new.addr.ip())
                });
                if !double {
                    seen.push(new);
                }
                !double
            });
        }
    }

    /// The `most` nodes nearest to a place that aren't bad.
    pub fn closest(&self, target: &[u8; LEN], most: usize) -> Vec<Contact> {
        let mut found: Vec<_> = self
            .entries()
            .filter(|known| !known.is_bad())
            .map(|known| (known.contact.id.distance(target), known.contact))
            .collect();
        found.sort_unstable_by_key(|(distance, _)| *distance);
        found.into_iter().take(most).map(|(_, contact)| contact).collect()
    }

    /// The `most` nodes nearest to a place, bad ones too: to begin with when nobody better is known.
    pub fn everyone(&self, target: &[u8; LEN], most: usize) -> Vec<Contact> {
        let mut found: Vec<_> = self.entries().map(|known| known.contact).collect();
        found.sort_unstable_by_key(|contact| contact.id.distance(target));
        found.truncate(most);
        found
    }

    /// A place within a bucket where nothing happened for long, or never since the start: to be searched for. Those up to
    /// one beyond the last that holds a node; the rest is empty by nature. The bucket counts as refreshed from now on.
    pub fn stale(&mut self, draw: &mut Draw, now: Instant) -> Option<NodeId> {
        let last = self.buckets.iter().rposition(|bucket| !bucket.nodes.is_empty())?;
        let stale =
            |bucket: &Bucket| bucket.changed.is_none_or(|at| now.saturating_duration_since(at) >= REFRESH);
        let (at, bucket) =
            self.buckets.iter_mut().enumerate().take(last + 2).find(|(_, bucket)| stale(bucket))?;
        bucket.changed = Some(now);
        Some(self.own.apart(at, draw.bytes()))
    }

    /// All buckets that have room count as not refreshed: after joining, when our name is known to our neighbours only.
    pub fn refresh_sparse(&mut self) {
        self.buckets
            .iter_mut()
            .filter(|bucket| bucket.nodes.len() < K)
            .for_each(|bucket| bucket.changed = None);
    }

    /// Nodes, and how many of them are good.
    pub fn count(&self, now: Instant) -> (usize, usize) {
        self.entries().fold((0, 0), |(all, good), known| (all + 1, good + usize::from(known.is_good(now))))
    }

    /// Up to `most` nodes to begin with another time: those that answered, the latest first.
    pub fn best(&self, most: usize) -> Vec<Contact> {
        let mut found: Vec<_> = self.entries().filter(|known| !known.is_bad()).collect();
        found.sort_by_key(|known| (std::cmp::Reverse(known.answered), known.contact.addr));
        found.into_iter().take(most).map(|known| known.contact).collect()
    }

    /// What must always hold.
    #[cfg(test)]
    fn check(&self) {
        let mut seen: Vec<Contact> = Vec::new();
        for (shared, bucket) in self.buckets.iter().enumerate() {
            assert!(bucket.nodes.len() <= K && bucket.substitutes.len() <= SUBSTITUTES);
            for known in &bucket.nodes {
                let contact = known.contact;
                assert_eq!(self.own.shared(&contact.id.0), shared);
                for other in &seen {
                    assert_ne!(other.addr, contact.addr);
                    assert_ne!(other.id, contact.id);
                    assert!(!shares_network(other.addr.ip(), contact.addr.ip()), "{other:?} {contact:?}");
                }
                seen.push(contact);
            }
        }
    }
}

fn shares_network(one: IpAddr, two: IpAddr) -> bool {
    network(one).is_some_and(|net| network(two) == Some(net))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const OWN: NodeId = NodeId([0; LEN]);

    /// A node that shares `shared` bits with ours; each number has a network of its own, and a name that fits nothing.
    fn node(shared: usize, number: u8) -> Contact {
        let id = OWN.apart(shared, [number | 1; LEN]);
        Contact { id, addr: SocketAddr::from(([50 + shared as u8, number, 1, 1], 6881)) }
    }

    /// The same with a name that fits.
    fn fitting(number: u8) -> Contact {
        let addr = SocketAddr::from(([90, number, 1, 1], 6881));
        let id = (0..=255).map(|r| NodeId::for_ip(addr.ip(), r, [number; LEN]));
        Contact { id: id.into_iter().find(|id| OWN.shared(&id.0) == 0).unwrap(), addr }
    }

    fn minutes(start: Instant, minutes: u64) -> Instant {
        start + Duration::from_secs(60 * minutes)
    }

    fn full(start: Instant) -> Table {
        let mut table = Table::new(OWN);
        for number in 0..8 {
            assert_eq!(table.answered(node(3, number * 2), minutes(start, u64::from(number))), Placed::In);
        }
        table
    }

    #[test]
    fn good_nodes_stay() {
        let start = Instant::now();
        let mut table = full(start);
        let newcomer = node(3, 100);
        assert_eq!(table.answered(newcomer, minutes(start, 8)), Placed::Waits(None));
        assert_eq!(table.count(minutes(start, 8)), (8, 8));
        // The first is questionable after a quarter of an hour; the newcomer waits while it is asked.
        assert_eq!(table.answered(newcomer, minutes(start, 15)), Placed::Waits(Some(node(3, 0))));
        table.failed(node(3, 0).addr, minutes(start, 15));
        assert!(table.closest(&[0; LEN], 99).contains(&node(3, 0)));
        table.failed(node(3, 0).addr, minutes(start, 15));
        let known = table.closest(&[0; LEN], 99);
        assert!(known.contains(&newcomer) && !known.contains(&node(3, 0)) && known.len() == 8);
        table.check();
    }

    #[test]
    fn who_asks_stays_good_and_who_is_unknown_is_asked() {
        let start = Instant::now();
        let mut table = full(start);
        for number in 0..8 {
            assert!(!table.asked(node(3, number * 2), minutes(start, 14)));
        }
        assert_eq!(table.count(minutes(start, 28)), (8, 8));
        assert!(!table.asked(node(3, 100), minutes(start, 28)), "no place");
        assert!(table.asked(node(3, 100), minutes(start, 29)), "one may be gone");
        assert!(table.asked(node(4, 1), start), "room");
        assert!(!table.asked(Contact { id: OWN, ..node(4, 1) }, start), "us");
        assert!(!table.asked(Contact { id: node(4, 1).id, ..node(3, 0) }, start), "an address that is here");
        assert_eq!(table.count(start).0, 8, "nobody gets in by asking");
    }

    #[test]
    fn when_the_line_is_down_nodes_are_kept_and_not_named() {
        let start = Instant::now();
        let mut table = full(start);
        for _ in 0..BAD {
            (0..8).for_each(|number| table.failed(node(3, number * 2).addr, start));
        }
        assert_eq!((table.count(start), table.closest(&[0; LEN], 9).len()), ((8, 0), 0));
        table.answered(node(3, 0), start);
        assert_eq!((table.count(start), table.closest(&[0; LEN], 9).len()), ((8, 1), 1));
        (0..GONE).for_each(|_| table.failed(node(3, 2).addr, start));
        assert_eq!(table.count(start).0, 7);
    }

    #[test]
    fn names_that_fit_their_address_come_first() {
        let start = Instant::now();
        let mut table = Table::new(OWN);
        for number in 0..8 {
            assert_eq!(table.answered(node(0, number * 2), start), Placed::In);
        }
        for number in 0..8 {
            assert_eq!(table.answered(fitting(number), start), Placed::In);
        }
        assert_eq!(table.answered(fitting(8), start), Placed::Waits(None));
        assert_eq!(table.answered(node(0, 100), start), Placed::Waits(None));
        assert!(table.best(99).iter().all(|contact| contact.id.fits(contact.addr.ip())));
    }

    #[test]
    fn one_network_one_node() {
        let start = Instant::now();
        let mut table = Table::new(OWN);
        let at = |ip: [u8; 4], port, shared| Contact {
            id: OWN.apart(shared, [port as u8; LEN]),
            addr: SocketAddr::from((ip, port)),
        };
        let first = at([9, 9, 9, 1], 1, 3);
        for (contact, placed, why) in [
            (first, Placed::In, "the first"),
            (at([9, 9, 9, 1], 2, 4), Placed::Refused, "its host"),
            (at([9, 9, 9, 2], 3, 5), Placed::Refused, "its network"),
            (Contact { id: first.id, ..at([8, 8, 8, 8], 1, 3) }, Placed::Refused, "its name"),
            (at([9, 9, 8, 1], 4, 5), Placed::In, "another network"),
            (at([10, 0, 0, 1], 5, 6), Placed::In, "a local one"),
            (at([10, 0, 0, 1], 6, 7), Placed::In, "the same host"),
            (at([127, 0, 0, 1], 7, 8), Placed::In, "this machine"),
            (Contact { id: OWN, ..at([7, 7, 7, 7], 1, 3) }, Placed::Refused, "us"),
        ] {
            assert_eq!(table.answered(contact, start), placed, "{why}");
            table.check();
        }
        // At the same address under another name: it was started again.
        let renamed = Contact { id: OWN.apart(9, [9; LEN]), ..first };
        assert_eq!(table.answered(renamed, start), Placed::In);
        assert!(!table.best(99).contains(&first));
        // A name comes back from another address after it was lost at the first.
        (0..BAD).for_each(|_| table.failed(renamed.addr, start));
        let moved = Contact { id: renamed.id, ..at([6, 6, 6, 6], 1, 3) };
        assert_eq!(table.answered(moved, start), Placed::In);
        table.check();
    }

    #[test]
    fn quiet_buckets_are_refreshed_one_after_the_other() {
        let start = Instant::now();
        let mut draw = Draw::new([1; 32]);
        let mut table = Table::new(OWN);
        assert_eq!(table.stale(&mut draw, start), None, "nobody to ask");
        table.answered(node(2, 2), start);
        for shared in [0, 1, 3] {
            assert_eq!(OWN.shared(&table.stale(&mut draw, start).unwrap().0), shared);
        }
        assert_eq!(table.stale(&mut draw, minutes(start, 14)), None);
        table.answered(node(2, 2), minutes(start, 14));
        let mut again: Vec<_> = std::iter::from_fn(|| table.stale(&mut draw, minutes(start, 15))).collect();
        again.sort();
        assert_eq!(again.iter().map(|id| OWN.shared(&id.0)).collect::<Vec<_>>(), [3, 1, 0]);
        table.refresh_sparse();
        assert!(table.stale(&mut draw, minutes(start, 15)).is_some());
    }

    #[test]
    fn a_new_name_takes_the_nodes_along() {
        let start = Instant::now();
        let mut table = full(start);
        table.answered(node(0, 1), start);
        let own = NodeId([0xff; LEN]);
        table.rename(own);
        table.check();
        assert_eq!((table.own(), table.count(start).0), (own, 9));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Answered(u8, u8),
        Asked(u8, u8),
        Failed(u8),
        Wait(u16),
        Rename(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any::<u8>(), any::<u8>()).prop_map(|(id, addr)| Step::Answered(id, addr)),
            2 => (any::<u8>(), any::<u8>()).prop_map(|(id, addr)| Step::Asked(id, addr)),
            4 => any::<u8>().prop_map(Step::Failed),
            1 => (0u16..1200).prop_map(Step::Wait),
            1 => any::<u8>().prop_map(Step::Rename),
        ]
    }

    /// Few names, networks, hosts and ports, so that they meet.
    fn some_addr(number: u8) -> SocketAddr {
        let (net, host, port) = (number % 40, number / 40 % 2, number / 80);
        let ip = if number.is_multiple_of(8) { [10, 0, 0, 1] } else { [50, 1, net, host] };
        SocketAddr::from((
            ip,
            1000 + u16::from(port) + u16::from(number.is_multiple_of(8)) * u16::from(number),
        ))
    }

    fn some_id(number: u8) -> NodeId {
        OWN.apart(usize::from(number % 5), [number; LEN])
    }

    proptest! {
        #[test]
        fn the_table_holds_what_it_may(steps in proptest::collection::vec(step(), 0..400)) {
            let mut now = Instant::now();
            let mut table = Table::new(OWN);
            let mut draw = Draw::new([1; 32]);
            for step in steps {
                match step {
                    Step::Answered(id, addr) => {
                        let contact = Contact { id: some_id(id), addr: some_addr(addr) };
                        let placed = table.answered(contact, now);
                        prop_assert_eq!(placed == Placed::In, table.best(999).contains(&contact) );
                    }
                    Step::Asked(id, addr) => {
                        let before = table.count(now).0;
                        table.asked(Contact { id: some_id(id), addr: some_addr(addr) }, now);
                        prop_assert_eq!(table.count(now).0, before);
                    }
                    Step::Failed(addr) => table.failed(some_addr(addr), now),
                    Step::Wait(seconds) => {
                        now += Duration::from_secs(u64::from(seconds));
                        let _ = table.stale(&mut draw, now);
                    }
                    Step::Rename(id) => table.rename(some_id(id)),
                }
                table.check();
                let near = table.closest(&[3; LEN], 8);
                prop_assert!(near.len() <= 8);
                prop_assert!(near.is_sorted_by_key(|contact| contact.id.distance(&[3; LEN])));
            }
        }
    }
}
