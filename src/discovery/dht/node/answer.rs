//! What a node says to those who ask.
//!
//! A read-only node says nothing (BEP 43). Others are answered within a [`Quota`](super::super::quota::Quota), and at
//! length only where the address is shown to be the asker's: a question may carry anyone's address, and what is sent
//! there shouldn't be worth the while. Such a proof is an answer of theirs to us, or an announce with our token.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Node, Out};
use crate::discovery::dht::id::{Contact, Family, LEN, may_name};
use crate::discovery::dht::krpc::{self, Message, PACKET_MAX, Query, Reply, Tid, UNKNOWN, Want, encode};
use crate::discovery::dht::table::K;
use crate::discovery::usable_peer;

/// Bytes of an answer to who hasn't shown where it is: eight nodes and a token, and little more.
const UNPROVEN_MAX: usize = 512;
/// Bytes of an answer besides nodes and peers: names, a transaction, a token, an address.
const FRAME: usize = 150;
/// Peers in an answer.
const VALUES: usize = 100;
/// Bytes of a peer in an answer, by family.
const VALUE4: usize = 8;
const VALUE6: usize = 21;

impl Node {
    #[allow(clippy::too_many_arguments, reason = "all that a packet tells")]
    pub(super) fn query(
        &mut self,
        at: usize,
        tid: Tid,
        from: Contact,
        query: &Query,
        read_only: bool,
        now: Instant,
        out: &mut Out,
    ) {
        let unasked = !self.asked.has(&from.addr.ip(), now);
        let Some(half) = self.half(at) else { return };
        if unasked {
            half.standing.called(from.addr.ip(), now);
        }
        let silent = half.standing.is_read_only();
        if silent || !self.quota.admits(from.addr, now) {
            return;
        }
        let Some(half) = self.half(at) else { return };
        let own = half.table.own();
        if !read_only && may_name(from.addr.ip(), from.addr) && half.table.asked(from, now) {
            self.ping(from.addr, now, out);
        }
        let reply = match query {
            Query::Ping => Some(Reply::empty(own)),
            Query::FindNode { target, want } => self.nodes(at, from, target, *want, None, now),
            Query::GetPeers { info_hash, want } => {
                self.nodes(at, from, info_hash, *want, Some(info_hash), now)
            }
            Query::AnnouncePeer { info_hash, port, implied, token } => {
                let ip = from.addr.ip();
                let port = if *implied { from.addr.port() } else { *port };
                let peer = SocketAddr::new(ip, port);
                let known = token.as_ref().is_some_and(|token| self.tokens.knows(ip, token));
                if !known || !usable_peer(peer) {
                    return send_error(tid, krpc::PROTOCOL, from.addr, out);
                }
                self.proven.saw(ip, now);
                self.peers.add(*info_hash, peer, now);
                Some(Reply::empty(own))
            }
            Query::Other { target: Some(target), want } => {
                // Some look for whom to announce to by a question of their own (BEP 44's `get`).
                let token = self.tokens.give(from.addr.ip());
                self.nodes(at, from, target, *want, None, now).map(|reply| Reply { token, ..reply })
            }
            Query::Other { target: None, .. } => return send_error(tid, UNKNOWN, from.addr, out),
        };
        let Some(reply) = reply else { return };
        let packet = encode(&Message::Reply { tid, reply, ip: Some(from.addr) });
        debug_assert!(packet.len() <= PACKET_MAX, "{} bytes", packet.len());
        out.packets.push((from.addr, packet));
    }

    /// The nodes nearest to a place and, of a torrent, peers: as much as fits.
    fn nodes(
        &mut self,
        at: usize,
        from: Contact,
        target: &[u8; LEN],
        want: Want,
        hash: Option<&[u8; LEN]>,
        now: Instant,
    ) -> Option<Reply> {
        let own = self.half(at)?.table.own();
        let mut reply = Reply::empty(own);
        let proven = self.proven.has(&from.addr.ip(), now);
        let mut room = if proven { PACKET_MAX } else { UNPROVEN_MAX }.saturating_sub(FRAME);
        let want = match want {
            Want { n4: false, n6: false } => Want { n4: at == 0, n6: at == 1 },
            said => said,
        };
        let [first, second] = if at == 0 { Family::BOTH } else { [Family::V6, Family::V4] };
        self.name(first, target, want, from.addr, &mut room, &mut reply.nodes);
        if let Some(hash) = hash {
            reply.token = self.tokens.give(from.addr.ip());
            let each = if at == 0 { VALUE4 } else { VALUE6 };
            let most = VALUES.min(room / each);
            reply.values = self.peers.some(hash, at == 0, most, &mut self.draw, now);
            room -= reply.values.len() * each;
        }
        self.name(second, target, want, from.addr, &mut room, &mut reply.nodes);
        Some(reply)
    }

    /// Adds the nodes of a family that are nearest to a place, if they are wanted. Nobody is told of himself, nor
    /// strangers of our neighbours.
    fn name(
        &self,
        family: Family,
        target: &[u8; LEN],
        want: Want,
        to: SocketAddr,
        room: &mut usize,
        nodes: &mut Vec<Contact>,
    ) {
        let wanted = if family == Family::V4 { want.n4 } else { want.n6 };
        let Some(half) = self.halves[family.index()].as_ref().filter(|_| wanted) else { return };
        let each = krpc::node_len(family == Family::V4);
        let near = half.table.closest(target, 2 * K).into_iter();
        let near = near.filter(|node| node.addr != to && may_name(to.ip(), node.addr));
        let before = nodes.len();
        nodes.extend(near.take(K.min(*room / each)));
        *room -= (nodes.len() - before) * each;
    }

    /// Refuses a question that isn't whole.
    pub(super) fn refuse(
        &mut self,
        at: usize,
        tid: Tid,
        code: i64,
        to: SocketAddr,
        now: Instant,
        out: &mut Out,
    ) {
        let silent = self.half(at).is_none_or(|half| half.standing.is_read_only());
        if !silent && self.quota.admits(to, now) {
            send_error(tid, code, to, out);
        }
    }
}

fn send_error(tid: Tid, code: i64, to: SocketAddr, out: &mut Out) {
    out.packets.push((to, encode(&Message::Error { tid, code })));
}
