//! The messages of the DHT (BEP 5, 32, 42, 43), read and written. Pure.
//!
//! [`decode`] takes what a stranger sent: it reads a bounded packet once, keeps nothing of it that isn't used, and
//! copies at most [`NODES_MAX`] nodes and [`VALUES_MAX`] addresses. What is missing or of the wrong kind in an answer
//! counts as not there; a question must be whole, and one that isn't can still be refused by its transaction.
//! [`encode`] writes dictionaries in order, so equal messages are equal bytes.
//!
//! Unknown questions that have a target are answered as `find_node` is, with a token, so that those of extensions get
//! somewhere. Not here: who gets which answer ([`super::node`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::id::{Contact, LEN, NodeId};
use crate::metainfo::bencode::{BencodeError, Encoder, Limits, Value, parse_with};

/// Bytes of the longest packet that is read: longer ones were cut on their way in any case.
pub const READ_MAX: usize = 2048;
/// Bytes of the longest packet that is sent: it passes every path in one piece, IPv6 tunnels included.
pub const PACKET_MAX: usize = 1200;
/// Nodes of one family that are taken from an answer: nodes send 8, some 16 or 20.
pub const NODES_MAX: usize = 32;
/// Addresses of peers that are taken from an answer: more don't fit into a packet.
pub const VALUES_MAX: usize = 256;
/// The longest token that is kept: they are 4 to 20 bytes long.
const TOKEN_MAX: usize = 64;
/// The longest transaction id that is answered: most have 2 bytes, some 4.
const TID_MAX: usize = 20;

/// Bytes of a node at an IPv4 address, and at an IPv6 one.
const NODE4: usize = LEN + 6;
const NODE6: usize = LEN + 18;

const LIMITS: Limits = Limits { size: READ_MAX, depth: 16, tokens: 1024 };

/// What we are, in `v`: two letters of the client and a version.
const VERSION: [u8; 4] = *b"TF\0\x01";

/// Code of an error: a message that isn't whole, or a bad token.
pub const PROTOCOL: i64 = 203;
/// Code of an error: a question that isn't known.
pub const UNKNOWN: i64 = 204;

/// What an answer has in common with its question: chosen by who asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tid {
    len: u8,
    bytes: [u8; TID_MAX],
}

impl Tid {
    /// One of someone else's; none if it is empty or too long.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > TID_MAX {
            return None;
        }
        let mut tid = Self { len: u8::try_from(bytes.len()).ok()?, bytes: [0; TID_MAX] };
        tid.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(tid)
    }

    /// One of ours: 4 bytes.
    pub fn of(number: u32) -> Self {
        let mut bytes = [0; TID_MAX];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        Self { len: 4, bytes }
    }

    /// The number, if it can be one of ours.
    pub fn number(&self) -> Option<u32> {
        self.bytes().try_into().ok().map(u32::from_be_bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes().escape_ascii())
    }
}

/// What a node gives to who asked for peers, to be shown when announcing: so that nobody is announced by another.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<[u8]>);

impl Token {
    /// None if it is empty or too long.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty() && bytes.len() <= TOKEN_MAX).then(|| Self(bytes.into()))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.0.len())
    }
}

/// Of which families nodes are wanted (BEP 32); with neither, of the one that the question came by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// IPv4.
    pub n4: bool,
    /// IPv6.
    pub n6: bool,
}

impl Want {
    /// Of both.
    pub const BOTH: Want = Want { n4: true, n6: true };
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Are you there?
    Ping,
    /// Who is near this place?
    FindNode {
        /// The place.
        target: [u8; LEN],
        /// Of which families.
        want: Want,
    },
    /// Who has this torrent, and who is near it?
    GetPeers {
        /// Its info-hash.
        info_hash: [u8; LEN],
        /// Nodes of which families.
        want: Want,
    },
    /// I have this torrent.
    AnnouncePeer {
        /// Its info-hash.
        info_hash: [u8; LEN],
        /// Where I listen; 0 is none.
        port: u16,
        /// Where I listen is where this comes from.
        implied: bool,
        /// What was got for asking.
        token: Option<Token>,
    },
    /// Something else.
    Other {
        /// The place that it is about.
        target: Option<[u8; LEN]>,
        /// Of which families.
        want: Want,
    },
}

/// An answer. It doesn't say to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who answers.
    pub id: NodeId,
    /// Nodes of both families.
    pub nodes: Vec<Contact>,
    /// Peers.
    pub values: Vec<SocketAddr>,
    /// To announce with.
    pub token: Option<Token>,
}

impl Reply {
    /// One that tells nothing but that we are here.
    pub fn empty(id: NodeId) -> Self {
        Self { id, nodes: Vec::new(), values: Vec::new(), token: None }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Somebody asks.
    Query {
        /// To be repeated in the answer.
        tid: Tid,
        /// Who asks.
        id: NodeId,
        /// What.
        query: Query,
        /// Who asks answers nobody, and belongs in nobody's table (BEP 43).
        read_only: bool,
    },
    /// Somebody answers.
    Reply {
        /// As in the question.
        tid: Tid,
        /// What.
        reply: Reply,
        /// Where the question came from, as seen from there (BEP 42).
        ip: Option<SocketAddr>,
    },
    /// Somebody refuses.
    Error {
        /// As in the question.
        tid: Tid,
        /// Why.
        code: i64,
    },
}

/// Why a packet is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KrpcError {
    /// Not bencode, or too large.
    #[error(transparent)]
    Bencode(#[from] BencodeError),
    /// No transaction, or no kind.
    #[error("not a message of the DHT")]
    NoMessage,
    /// A question that can't be answered, though its transaction is known.
    #[error("a question that lacks something")]
    BadQuery(Tid),
    /// An answer without a name.
    #[error("an answer that lacks something")]
    BadReply,
}

/// Reads a packet.
///
/// # Errors
/// [`KrpcError`].
pub fn decode(packet: &[u8]) -> Result<Message, KrpcError> {
    let root = parse_with(packet, LIMITS)?;
    let tid = root.get("t").and_then(Value::as_bytes).and_then(Tid::new).ok_or(KrpcError::NoMessage)?;
    match root.get("y").and_then(Value::as_bytes) {
        Some(b"q") => {
            let (id, query) = query(root).ok_or(KrpcError::BadQuery(tid))?;
            let read_only = root.get("ro").and_then(Value::as_int) == Some(1);
            Ok(Message::Query { tid, id, query, read_only })
        }
        Some(b"r") => {
            let reply = root.get("r").and_then(reply).ok_or(KrpcError::BadReply)?;
            let ip = root.get("ip").and_then(Value::as_bytes).and_then(addr);
            Ok(Message::Reply { tid, reply, ip })
        }
        Some(b"e") => {
            let code = root.get("e").and_then(Value::list).and_then(|mut list| list.next()?.as_int());
            Ok(Message::Error { tid, code: code.unwrap_or(0) })
        }
        _ => Err(KrpcError::NoMessage),
    }
}

fn query(root: Value<'_>) -> Option<(NodeId, Query)> {
    let args = root.get("a")?;
    let id = NodeId(place(args, "id")?);
    let query = match root.get("q")?.as_bytes()? {
        b"ping" => Query::Ping,
        b"find_node" => Query::FindNode { target: place(args, "target")?, want: want(args) },
        b"get_peers" => Query::GetPeers { info_hash: place(args, "info_hash")?, want: want(args) },
        b"announce_peer" => Query::AnnouncePeer {
            info_hash: place(args, "info_hash")?,
            port: args.get("port").and_then(Value::as_int).and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
            implied: args.get("implied_port").and_then(Value::as_int).is_some_and(|n| n != 0),
            token: args.get("token").and_then(Value::as_bytes).and_then(Token::new),
        },
        _ => {
            let target = place(args, "target").or_else(|| place(args, "info_hash"));
            Query::Other { target, want: want(args) }
        }
    };
    Some((id, query))
}

fn place(args: Value<'_>, key: &str) -> Option<[u8; LEN]> {
    args.get(key)?.as_bytes()?.try_into().ok()
}

fn want(args: Value<'_>) -> Want {
    let mut want = Want::default();
    for family in args.get("want").and_then(Value::list).into_iter().flatten().take(4) {
        match family.as_bytes() {
            Some(b"n4") => want.n4 = true,
            Some(b"n6") => want.n6 = true,
            _ => {}
        }
    }
    want
}

fn reply(body: Value<'_>) -> Option<Reply> {
    let mut reply = Reply::empty(NodeId(place(body, "id")?));
    for (key, len) in [("nodes", NODE4), ("nodes6", NODE6)] {
        let bytes = body.get(key).and_then(Value::as_bytes).unwrap_or_default();
        reply.nodes.extend(contacts(bytes, len).take(NODES_MAX));
    }
    let values = body.get("values").and_then(Value::list).into_iter().flatten().take(VALUES_MAX);
    reply.values.extend(values.filter_map(|value| addr(value.as_bytes()?)));
    reply.token = body.get("token").and_then(Value::as_bytes).and_then(Token::new);
    Some(reply)
}

/// Nodes in the compact form, of `len` bytes each; what is left over at the end is none.
pub fn contacts(bytes: &[u8], len: usize) -> impl Iterator<Item = Contact> {
    bytes.chunks_exact(len).filter_map(|node| {
        let (id, at) = node.split_first_chunk::<LEN>()?;
        Some(Contact { id: NodeId(*id), addr: addr(at)? })
    })
}

/// Bytes of a node of the family of `addr` in the compact form.
pub const fn node_len(is_ipv4: bool) -> usize {
    if is_ipv4 { NODE4 } else { NODE6 }
}

/// An address in the compact form: 4 or 16 bytes and the port.
fn addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// The nodes of one family in the compact form.
pub fn compact(nodes: &[Contact], is_ipv4: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for node in nodes.iter().filter(|node| node.addr.is_ipv4() == is_ipv4) {
        out.extend_from_slice(&node.id.0);
        put_addr(&mut out, node.addr);
    }
    out
}

/// Writes a packet.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut e = Encoder::new();
    e.dict_begin();
    let (tid, kind) = match message {
        Message::Query { tid, id, query, read_only } => {
            put_query(&mut e, id, query);
            if *read_only {
                e.key("ro").int(1);
            }
            (tid, "q")
        }
        Message::Reply { tid, reply, ip } => {
            if let Some(ip) = ip {
                let mut bytes = Vec::with_capacity(18);
                put_addr(&mut bytes, *ip);
                e.key("ip").bytes(bytes);
            }
            e.key("r").dict_begin();
            put_reply(&mut e, reply);
            e.end();
            (tid, "r")
        }
        Message::Error { tid, code } => {
            let text = match *code {
                PROTOCOL => "Protocol Error",
                UNKNOWN => "Method Unknown",
                _ => "Error",
            };
            e.key("e").list_begin().int(*code).bytes(text).end();
            (tid, "e")
        }
    };
    e.key("t").bytes(tid.bytes()).key("v").bytes(VERSION).key("y").bytes(kind).end();
    e.finish()
}

fn put_query(e: &mut Encoder, id: &NodeId, query: &Query) {
    e.key("a").dict_begin().key("id").bytes(id.0);
    let name = match query {
        Query::Ping => "ping",
        Query::FindNode { target, want } => {
            e.key("target").bytes(target);
            put_want(e, *want);
            "find_node"
        }
        Query::GetPeers { info_hash, want } => {
            e.key("info_hash").bytes(info_hash);
            put_want(e, *want);
            "get_peers"
        }
        Query::AnnouncePeer { info_hash, port, implied, token } => {
            e.key("implied_port").int(i64::from(*implied));
            e.key("info_hash").bytes(info_hash).key("port").int(i64::from(*port));
            if let Some(token) = token {
                e.key("token").bytes(token.bytes());
            }
            "announce_peer"
        }
        Query::Other { target, want } => {
            if let Some(target) = target {
                e.key("target").bytes(target);
            }
            put_want(e, *want);
            "other"
        }
    };
    e.end().key("q").bytes(name);
}

fn put_want(e: &mut Encoder, want: Want) {
    if want == Want::default() {
        return;
    }
    e.key("want").list_begin();
    if want.n4 {
        e.bytes("n4");
    }
    if want.n6 {
        e.bytes("n6");
    }
    e.end();
}

fn put_reply(e: &mut Encoder, reply: &Reply) {
    e.key("id").bytes(reply.id.0);
    for (key, is_ipv4) in [("nodes", true), ("nodes6", false)] {
        let bytes = compact(&reply.nodes, is_ipv4);
        if !bytes.is_empty() {
            e.key(key).bytes(bytes);
        }
    }
    if let Some(token) = &reply.token {
        e.key("token").bytes(token.bytes());
    }
    if !reply.values.is_empty() {
        e.key("values").list_begin();
        for value in &reply.values {
            let mut bytes = Vec::with_capacity(18);
            put_addr(&mut bytes, *value);
            e.bytes(bytes);
        }
        e.end();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn id(text: &[u8; LEN]) -> NodeId {
        NodeId(*text)
    }

    /// Our version and the answer's `ip` aside, the examples of BEP 5.
    #[test]
    fn the_examples_of_bep_5() {
        let tid = Tid::new(b"aa").unwrap();
        let (one, two) = (id(b"abcdefghij0123456789"), id(b"mnopqrstuvwxyz123456"));
        let query = |query| Message::Query { tid, id: one, query, read_only: false };
        let reply = |reply| Message::Reply { tid, reply, ip: None };
        let token = |text: &[u8]| Token::new(text);
        let want = Want::default();
        let peers = vec![addr(b"axje.u").unwrap(), addr(b"idhtnm").unwrap()];
        let node = Contact { id: one, addr: addr(b"axje.u").unwrap() };
        let near = [&b"abcdefghij0123456789axje.u"[..]].concat();
        let rows: Vec<(Message, Vec<u8>)> = vec![
            (query(Query::Ping), b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe".into()),
            (reply(Reply::empty(two)), b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re".into()),
            (
                query(Query::FindNode { target: two.0, want }),
                b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe"
                    .into(),
            ),
            (
                reply(Reply { nodes: vec![node], ..Reply::empty(two) }),
                [&b"d1:rd2:id20:mnopqrstuvwxyz1234565:nodes26:"[..], &near, b"e1:t2:aa1:y1:re"].concat(),
            ),
            (
                query(Query::GetPeers { info_hash: two.0, want }),
                b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe"
                    .into(),
            ),
            (
                reply(Reply { values: peers, token: token(b"aoeusnth"), ..Reply::empty(one) }),
                b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re"
                    .into(),
            ),
            (
                query(Query::AnnouncePeer {
                    info_hash: two.0,
                    port: 6881,
                    implied: true,
                    token: token(b"aoeusnth"),
                }),
                b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe"
                    .into(),
            ),
        ];
        for (message, bytes) in rows {
            let read = decode(&bytes);
            assert_eq!(read.as_ref(), Ok(&message), "{}", bytes.escape_ascii());
            let written = encode(&message);
            let ours = [b"1:v4:".as_slice(), &VERSION].concat();
            let at = written.windows(ours.len()).position(|window| window == ours).unwrap();
            let without = [&written[..at], &written[at + ours.len()..]].concat();
            assert_eq!(without, bytes, "{}", written.escape_ascii());
        }
        let error = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee";
        assert_eq!(decode(error), Ok(Message::Error { tid, code: 201 }));
    }

    #[test]
    fn further_fields_are_read_and_unknown_ones_passed_over() {
        let packet =
            b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz1234566:noseedi1e4:wantl2:n42:n6e\
            e1:q9:get_peers2:roi1e1:t4:\0\0\0\x011:v4:LT\x01\x021:y1:qe";
        let Ok(Message::Query { tid, query, read_only, .. }) = decode(packet) else { panic!() };
        assert_eq!((tid.number(), read_only), (Some(1), true));
        assert_eq!(query, Query::GetPeers { info_hash: *b"mnopqrstuvwxyz123456", want: Want::BOTH });
        let reply = b"d2:ip6:\x01\x02\x03\x04\x1a\xe11:rd2:id20:mnopqrstuvwxyz123456e1:t1:a1:y1:re";
        let Ok(Message::Reply { ip, .. }) = decode(reply) else { panic!() };
        assert_eq!(ip, Some("1.2.3.4:6881".parse().unwrap()));
        let get = b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q3:get1:t2:aa1:y1:qe";
        let Ok(Message::Query { query, .. }) = decode(get) else { panic!() };
        assert_eq!(query, Query::Other { target: Some(*b"mnopqrstuvwxyz123456"), want: Want::default() });
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let tid = Tid::new(b"aa").unwrap();
        let rows: [(&[u8], KrpcError); 9] = [
            (b"de", KrpcError::NoMessage),
            (b"le", KrpcError::NoMessage),
            (b"d1:t0:1:y1:qe", KrpcError::NoMessage),
            (b"d1:t21:0123456789012345678901:y1:qe", KrpcError::NoMessage),
            (b"d1:t2:aa1:y1:xe", KrpcError::NoMessage),
            (b"d1:q4:ping1:t2:aa1:y1:qe", KrpcError::BadQuery(tid)),
            (b"d1:ad2:id19:abcdefghij012345678e1:q4:ping1:t2:aa1:y1:qe", KrpcError::BadQuery(tid)),
            (b"d1:ad2:id20:abcdefghij0123456789e1:q9:find_node1:t2:aa1:y1:qe", KrpcError::BadQuery(tid)),
            (b"d1:rd2:id3:abce1:t2:aa1:y1:re", KrpcError::BadReply),
        ];
        for (packet, error) in rows {
            assert_eq!(decode(packet), Err(error), "{}", packet.escape_ascii());
        }
        assert!(matches!(decode(&[b'd'; READ_MAX + 1]), Err(KrpcError::Bencode(_))));
    }

    #[test]
    fn what_is_taken_is_bounded() {
        let nodes = [b'n'; NODE4 * 60 + 5];
        let mut e = Encoder::new();
        e.dict_begin()
            .key("r")
            .dict_begin()
            .key("id")
            .bytes([1; LEN])
            .key("nodes")
            .bytes(&nodes[..NODE4 * 60 + 5]);
        e.end().key("t").bytes("a").key("y").bytes("r").end();
        let Ok(Message::Reply { reply, .. }) = decode(&e.finish()) else { panic!() };
        assert_eq!(reply.nodes.len(), NODES_MAX);
        let mut e = Encoder::new();
        e.dict_begin().key("r").dict_begin().key("id").bytes([1; LEN]).key("token").bytes([7; TOKEN_MAX + 1]);
        e.key("values").list_begin();
        (0..200).for_each(|_| _ = e.bytes("short"));
        e.bytes("axje.u").int(3).end().end().key("t").bytes("a").key("y").bytes("r").end();
        let Ok(Message::Reply { reply, .. }) = decode(&e.finish()) else { panic!() };
        assert_eq!((reply.values.len(), reply.token), (1, None));
    }

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port))),
            (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port))),
        ]
    }

    fn any_want() -> impl Strategy<Value = Want> {
        (any::<bool>(), any::<bool>()).prop_map(|(n4, n6)| Want { n4, n6 })
    }

    fn any_query() -> impl Strategy<Value = Query> {
        let place = any::<[u8; LEN]>;
        prop_oneof![
            Just(Query::Ping),
            (place(), any_want()).prop_map(|(target, want)| Query::FindNode { target, want }),
            (place(), any_want()).prop_map(|(info_hash, want)| Query::GetPeers { info_hash, want }),
            (place(), any::<u16>(), any::<bool>(), vec(any::<u8>(), 1..=TOKEN_MAX)).prop_map(
                |(info_hash, port, implied, token)| Query::AnnouncePeer {
                    info_hash,
                    port,
                    implied,
                    token: Token::new(&token)
                }
            ),
            (proptest::option::of(place()), any_want())
                .prop_map(|(target, want)| Query::Other { target, want }),
        ]
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let tid = || vec(any::<u8>(), 1..=TID_MAX).prop_map(|bytes| Tid::new(&bytes).unwrap());
        let id = || any::<[u8; LEN]>().prop_map(NodeId);
        let node = (id(), any_addr()).prop_map(|(id, addr)| Contact { id, addr });
        let token = proptest::option::of(vec(any::<u8>(), 1..=TOKEN_MAX));
        let reply = (id(), vec(node, 0..17), vec(any_addr(), 0..40), token).prop_map(
            |(id, mut nodes, values, token)| {
                nodes.sort_by_key(|node| !node.addr.is_ipv4());
                Reply { id, nodes, values, token: token.and_then(|token| Token::new(&token)) }
            },
        );
        prop_oneof![
            (tid(), id(), any_query(), any::<bool>())
                .prop_map(|(tid, id, query, read_only)| Message::Query { tid, id, query, read_only }),
            (tid(), reply, proptest::option::of(any_addr())).prop_map(|(tid, reply, ip)| Message::Reply {
                tid,
                reply,
                ip
            }),
            (tid(), any::<i64>()).prop_map(|(tid, code)| Message::Error { tid, code }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in any_message()) {
            let bytes = encode(&message);
            if bytes.len() <= READ_MAX {
                prop_assert_eq!(decode(&bytes), Ok(message));
            }
        }

        #[test]
        fn no_packet_panics(packet in vec(any::<u8>(), 0..300)) {
            let _ = decode(&packet);
        }

        /// A message with a byte changed, taken away or put in, or cut.
        #[test]
        fn no_damaged_packet_panics(
            message in any_message(), at: prop::sample::Index, byte: u8, how in 0..4,
        ) {
            let mut bytes = encode(&message);
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => _ = bytes.remove(at),
                2 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
            if let Ok(Message::Reply { reply, .. }) = decode(&bytes) {
                prop_assert!(reply.nodes.len() <= 2 * NODES_MAX && reply.values.len() <= VALUES_MAX);
            }
        }
    }
}
