//! What of the network is kept from one run to the next: our names, and nodes to begin with. Pure.
//!
//! Bencode: `v` (1), `id4` and `id6` (20 bytes each), `nodes` and `nodes6` in the compact form. What can't be read is left
//! out; nobody's start fails for that. Nodes are asked anew, not believed.

use super::id::{Contact, Family, LEN, NodeId, is_public};
use super::krpc::{compact, contacts, node_len};
use crate::metainfo::bencode::{Encoder, Limits, Value, parse_with};

/// Nodes of one family that are kept: more than a table of a large network holds.
pub const NODES: usize = 200;
/// Bytes at most: two families, with room.
pub const SIZE_MAX: usize = 16 << 10;

const LIMITS: Limits = Limits { size: SIZE_MAX, depth: 4, tokens: 64 };

/// What is kept; by family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Our name.
    pub ids: [Option<NodeId>; 2],
    /// Nodes, the best first.
    pub nodes: [Vec<Contact>; 2],
}

impl Saved {
    /// As it is written.
    pub fn encode(&self) -> Vec<u8> {
        let [id4, id6] = &self.ids;
        let mut e = Encoder::new();
        e.dict_begin();
        for (key, id) in [("id4", id4), ("id6", id6)] {
            if let Some(id) = id {
                e.key(key).bytes(id.0);
            }
        }
        for (family, nodes) in Family::BOTH.into_iter().zip(&self.nodes) {
            let nodes = nodes.get(..NODES).unwrap_or(nodes);
            let is_ipv4 = family == Family::V4;
            e.key(if is_ipv4 { "nodes" } else { "nodes6" }).bytes(compact(nodes, is_ipv4));
        }
        e.key("v").int(1).end();
        e.finish()
    }

    /// What was written; nothing of what can't be read.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut saved = Self::default();
        let Ok(root) = parse_with(bytes, LIMITS) else { return saved };
        if root.get("v").and_then(Value::as_int) != Some(1) {
            return saved;
        }
        let id = |key: &str| <[u8; LEN]>::try_from(root.get(key)?.as_bytes()?).ok().map(NodeId);
        saved.ids = [id("id4"), id("id6")];
        let nodes = |key: &str, len| {
            let bytes = root.get(key).and_then(Value::as_bytes).unwrap_or_default();
            let usable = |node: &Contact| {
                let ip = node.addr.ip();
                node.addr.port() != 0 && (is_public(ip) || super::id::is_local(ip))
            };
            contacts(bytes, len).filter(usable).take(NODES).collect()
        };
        saved.nodes = [nodes("nodes", node_len(true)), nodes("nodes6", node_len(false))];
        saved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn some(count: u16) -> Saved {
        let node = |number: u16, v6: bool| {
            let [high, low] = number.to_be_bytes();
            let addr = if v6 {
                format!("[2001:db8::{number:x}]:{}", number + 1).parse().unwrap()
            } else {
                std::net::SocketAddr::from(([9, high, low, 1], number + 1))
            };
            Contact { id: NodeId([low; LEN]), addr }
        };
        Saved {
            ids: [Some(NodeId([1; LEN])), None],
            nodes: [false, true].map(|v6| (0..count).map(|number| node(number, v6)).collect()),
        }
    }

    #[test]
    fn what_is_written_is_read_within_bounds() {
        assert_eq!(Saved::decode(&some(5).encode()), some(5));
        let large = some(999).encode();
        assert!(large.len() <= SIZE_MAX, "{}", large.len());
        assert_eq!(Saved::decode(&large), some(NODES as u16));
    }

    #[test]
    fn what_is_damaged_is_left_out() {
        for bytes in [
            &b""[..],
            b"de",
            b"x",
            b"d1:vi2ee",
            b"d1:vi1ee",
            b"d3:id43:abc5:nodesi1e1:vi1ee",
            &[b'l'; 20_000],
        ] {
            assert_eq!(Saved::decode(bytes), Saved::default(), "{}", bytes.escape_ascii());
        }
        let bad: std::net::SocketAddr = "224.0.0.1:5".parse().unwrap();
        let mut saved = some(1);
        saved.nodes[0].push(Contact { id: NodeId([1; LEN]), addr: bad });
        assert_eq!(Saved::decode(&saved.encode()), some(1));
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics(at: prop::sample::Index, byte: u8, cut: bool) {
            let mut bytes = some(3).encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            prop_assert!(Saved::decode(&bytes).nodes[0].len() <= 3);
        }
    }
}
