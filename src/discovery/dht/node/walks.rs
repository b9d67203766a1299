//! The walks of a node: joining, refreshing, searching, announcing.

use std::net::SocketAddr;
use std::time::Instant;

use super::{
    AnnounceAs, Done, ENTER_FEW, ENTER_FIRST, ENTER_LONGEST, ENTER_OTHER, Node, Out, PATIENCE, Purpose,
    RUNNING, Search, SearchId, Walk, Why,
};
use crate::discovery::dht::id::{Contact, Family};
use crate::discovery::dht::krpc::{Query, Reply};
use crate::discovery::dht::lookup::Lookup;
use crate::discovery::dht::table::K;
use crate::discovery::usable_peer;

/// Nodes of the table that a walk begins with.
const SEEDS: usize = 2 * K;

impl Node {
    /// Starts a walk, or does without where nobody is known.
    fn walk(&mut self, at: usize, purpose: Purpose, lookup: Lookup, now: Instant, out: &mut Out) -> u32 {
        let key = self.next_walk;
        self.next_walk = self.next_walk.wrapping_add(1);
        self.walks.insert(key, Walk { half: at, lookup, purpose, announcing: None });
        self.go_on(key, now, out);
        key
    }

    /// Walks to our own name, from whoever is known and from these; or takes these along if that is under way.
    pub(super) fn join(
        &mut self,
        at: usize,
        nodes: &[Contact],
        entries: &[SocketAddr],
        now: Instant,
        out: &mut Out,
    ) {
        let next = self.next_walk;
        let Some(half) = self.half(at) else { return };
        if let Some(key) = half.join {
            if let Some(walk) = self.walks.get_mut(&key) {
                walk.lookup.heard_of(nodes);
                walk.lookup.enter_by(entries);
                self.go_on(key, now, out);
            }
            return;
        }
        let own = half.table.own().0;
        let mut known = half.table.everyone(&own, SEEDS);
        known.append(&mut half.saved);
        let mut lookup = Lookup::new(own, &known, now);
        lookup.heard_of(nodes);
        lookup.enter_by(entries);
        half.join = Some(next);
        self.walk(at, Purpose::Join, lookup, now, out);
    }

    /// Tries the nodes of the last run, then asks for entries, again and again while nobody answers.
    pub(super) fn enter_if_lonely(&mut self, now: Instant, out: &mut Out) {
        for family in Family::BOTH {
            let Some(half) = self.half(family.index()) else { continue };
            if !half.saved.is_empty() && half.join.is_none() {
                self.join(family.index(), &[], &[], now, out);
            }
            let other = self.halves[family.other().index()].as_ref();
            let other = other.is_some_and(|half| half.table.count(now).1 >= K);
            let longest = if other { ENTER_OTHER } else { ENTER_LONGEST };
            let Some(half) = self.half(family.index()) else { continue };
            let good = half.table.count(now).1;
            if good >= K || now < half.enter_at {
                if good >= K {
                    half.enter_pause = ENTER_FIRST;
                }
                continue;
            }
            let (pause, again) = if good > 0 {
                (ENTER_FEW, ENTER_FIRST)
            } else {
                (half.enter_pause.min(longest), (half.enter_pause * 2).min(longest))
            };
            half.enter_at = now + pause;
            half.enter_pause = again;
            let someone = half.table.count(now).0 > 0;
            out.enter = true;
            if someone {
                self.join(family.index(), &[], &[], now, out);
            }
        }
    }

    /// Walks to a place where nothing was heard for long, one at a time.
    pub(super) fn refresh(&mut self, now: Instant, out: &mut Out) {
        for at in 0..self.halves.len() {
            let Some(half) = self.halves.get_mut(at).and_then(Option::as_mut) else { continue };
            if half.refresh.is_some() || half.join.is_some() {
                continue;
            }
            let Some(target) = half.table.stale(&mut self.draw, now) else { continue };
            let lookup = Lookup::new(target.0, &half.table.closest(&target.0, SEEDS), now);
            half.refresh = Some(self.next_walk);
            self.walk(at, Purpose::Refresh, lookup, now, out);
        }
    }

    /// Starts searches whose turn it is, and their walks where somebody is known by now.
    pub(super) fn start_searches(&mut self, now: Instant, out: &mut Out) {
        loop {
            while self.searches.len() < RUNNING
                && let Some((id, hash, announce)) = self.queue.pop_front()
            {
                let waiting = [0, 1].map(|at: usize| self.halves[at].is_some());
                self.searches
                    .insert(id, Search { hash, announce, waiting, walks: 0, asked: 0, announced: 0 });
                self.due = self.due.min((self.began + PATIENCE).max(now));
            }
            let ids: Vec<_> = self.searches.keys().copied().collect();
            for id in ids {
                for at in 0..self.halves.len() {
                    self.start_walk(id, at, &[], now, out);
                }
                self.end_search(id, out);
            }
            if self.queue.is_empty() || self.searches.len() >= RUNNING {
                return;
            }
        }
    }

    /// Starts the walk of a search in one family, if somebody is known there, or was waited for long enough; then it has
    /// nowhere to go, and ends.
    fn start_walk(&mut self, id: SearchId, at: usize, nodes: &[Contact], now: Instant, out: &mut Out) {
        let Some(search) = self.searches.get_mut(&id) else { return };
        let Some(half) = self.halves.get(at).and_then(Option::as_ref) else { return };
        let known = half.table.closest(&search.hash, SEEDS);
        let impatient = now.saturating_duration_since(self.began) >= PATIENCE;
        if !search.waiting[at] || (known.is_empty() && !impatient) {
            return;
        }
        search.waiting[at] = false;
        search.walks += 1;
        let mut lookup = Lookup::new(search.hash, &known, now);
        if !known.is_empty() {
            lookup.heard_of(nodes);
        }
        self.walk(at, Purpose::Search(id), lookup, now, out);
    }

    /// An answer to a step of a walk.
    pub(super) fn step(&mut self, key: u32, from: SocketAddr, reply: Reply, now: Instant, out: &mut Out) {
        let Some(walk) = self.walks.get_mut(&key) else { return };
        let (at, purpose) = (walk.half, walk.purpose);
        let (ours, theirs): (Vec<_>, Vec<_>) =
            reply.nodes.into_iter().partition(|node| Family::of(&node.addr).index() == at);
        walk.lookup.answered(from, reply.id, reply.token, &ours);
        if let Purpose::Search(search) = purpose {
            let peers: Vec<_> = reply.values.into_iter().filter(|addr| usable_peer(*addr)).collect();
            if !peers.is_empty() {
                out.found.push((search, peers));
            }
        }
        if !theirs.is_empty() {
            self.heard_of_others(1 - at, purpose, &theirs, now, out);
        }
        self.go_on(key, now, out);
    }

    /// Nodes of the other family than the walk's. They help the same search there, and to join.
    fn heard_of_others(
        &mut self,
        at: usize,
        purpose: Purpose,
        nodes: &[Contact],
        now: Instant,
        out: &mut Out,
    ) {
        let Some(half) = self.half(at) else { return };
        if half.table.count(now).1 < K && (half.join.is_some() || now >= half.named_at) {
            // Not at each answer: where there is no IPv6, nobody that is named will ever answer.
            let pause = if half.heard.is_some() { ENTER_LONGEST } else { ENTER_FEW };
            half.named_at = now + pause;
            self.join(at, nodes, &[], now, out);
        }
        let Purpose::Search(id) = purpose else { return };
        let same = |walk: &Walk| walk.half == at && walk.purpose == purpose && walk.announcing.is_none();
        let sibling = self.walks.iter_mut().find(|(_, walk)| same(walk));
        if let Some((key, walk)) = sibling {
            let key = *key;
            walk.lookup.heard_of(nodes);
            self.go_on(key, now, out);
        } else {
            self.start_walk(id, at, nodes, now, out);
        }
    }

    /// Asks whoever is next on a walk, and ends it when nobody is.
    pub(super) fn go_on(&mut self, key: u32, now: Instant, out: &mut Out) {
        let want = self.want();
        loop {
            let Some(walk) = self.walks.get_mut(&key).filter(|walk| walk.announcing.is_none()) else {
                return;
            };
            let Some(to) = walk.lookup.next(now) else { break };
            let target = walk.lookup.target();
            let query = match walk.purpose {
                Purpose::Join | Purpose::Refresh => Query::FindNode { target, want },
                Purpose::Search(_) => Query::GetPeers { info_hash: target, want },
            };
            if !self.ask(to, query, Why::Walk(key), now, out)
                && let Some(walk) = self.walks.get_mut(&key)
            {
                walk.lookup.failed(to);
            }
        }
        let Some(walk) = self.walks.get_mut(&key).filter(|walk| walk.lookup.is_over(now)) else { return };
        let (at, purpose) = (walk.half, walk.purpose);
        let Purpose::Search(id) = purpose else {
            let heard = walk.lookup.heard();
            self.walks.remove(&key);
            let Some(half) = self.half(at) else { return };
            if purpose == Purpose::Refresh {
                half.refresh = None;
                return;
            }
            half.join = None;
            if heard > 0 {
                // Our neighbours know us now; the rest of the network follows bit by bit.
                half.table.refresh_sparse();
            }
            return;
        };
        let (asked, told) = (walk.lookup.asked(), walk.lookup.to_announce());
        walk.announcing = Some(0);
        let Some(search) = self.searches.get_mut(&id) else {
            self.walks.remove(&key);
            return;
        };
        search.asked += asked;
        let (hash, announce) = (search.hash, search.announce);
        let mut under_way = 0;
        if let Some(AnnounceAs { port, implied }) = announce {
            for (to, token) in told {
                let query = Query::AnnouncePeer { info_hash: hash, port, implied, token: Some(token) };
                under_way += usize::from(self.ask(to, query, Why::Announce(key), now, out));
            }
        }
        if under_way == 0 {
            return self.end_walk(key, id, out);
        }
        if let Some(walk) = self.walks.get_mut(&key) {
            walk.announcing = Some(under_way);
        }
    }

    /// An announce was taken, or wasn't.
    pub(super) fn announced(&mut self, key: u32, taken: bool, now: Instant, out: &mut Out) {
        let Some(walk) = self.walks.get_mut(&key) else { return };
        let Purpose::Search(id) = walk.purpose else { return };
        let left = walk.announcing.unwrap_or(0).saturating_sub(1);
        walk.announcing = Some(left);
        if let Some(search) = self.searches.get_mut(&id) {
            search.announced += usize::from(taken);
        }
        if left == 0 {
            self.end_walk(key, id, out);
            self.start_searches(now, out);
        }
    }

    fn end_walk(&mut self, key: u32, id: SearchId, out: &mut Out) {
        self.walks.remove(&key);
        if let Some(search) = self.searches.get_mut(&id) {
            search.walks = search.walks.saturating_sub(1);
        }
        self.end_search(id, out);
    }

    fn end_search(&mut self, id: SearchId, out: &mut Out) {
        let over = |search: &&Search| search.walks == 0 && !search.waiting.contains(&true);
        if let Some(search) = self.searches.get(&id).filter(over) {
            out.done.push(Done { search: id, asked: search.asked, announced: search.announced });
            self.searches.remove(&id);
        }
    }
}
