//! Where the shared UDP port puts what comes for the node.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::krpc::READ_MAX;
use crate::net::filter::Filter;
use crate::net::udp::Receiver;

/// Packets that wait for the node.
const WAITING: usize = 256;

/// A packet that came.
pub type Mail = (Vec<u8>, SocketAddr);

/// Takes packets for the node, and drops them when it is behind: the network resends nothing, and a flood must not fill
/// memory.
pub struct Inlet {
    to: mpsc::Sender<Mail>,
    filter: Arc<Filter>,
}

impl Inlet {
    /// An inlet, and where the node finds what was put in; nothing from addresses that `filter` blocks.
    pub fn new(filter: Arc<Filter>) -> (Self, mpsc::Receiver<Mail>) {
        let (to, taken) = mpsc::channel(WAITING);
        (Self { to, filter }, taken)
    }
}

impl Receiver for Inlet {
    fn received(&self, packet: &[u8], from: SocketAddr) {
        if packet.len() <= READ_MAX && !self.filter.blocks(from.ip()) {
            // Full or ended: it is lost.
            let _ = self.to.try_send((packet.to_vec(), from));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_flood_is_dropped_and_so_is_what_is_too_long_or_blocked() {
        let (filter, _) = Filter::read("9.9.9.8".as_bytes()).unwrap();
        let (inlet, mut mail) = Inlet::new(Arc::new(filter));
        let from: SocketAddr = "9.9.9.9:1".parse().unwrap();
        inlet.received(&[b'd'; READ_MAX + 1], from);
        inlet.received(b"de", "9.9.9.8:1".parse().unwrap());
        assert!(mail.try_recv().is_err());
        for _ in 0..10_000 {
            inlet.received(b"de", from);
        }
        assert_eq!(std::iter::from_fn(|| mail.try_recv().ok()).count(), WAITING);
    }
}
