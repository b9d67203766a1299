//! The port at which peers reach us, as it is at the moment: our own, or another that the router shows to the internet.
//!
//! It is read whenever it is told to somebody, and [`OurPort::changed`] wakes those who have told another.

use std::net::IpAddr;

use tokio::sync::watch;

use super::{Protocol, Status};
use crate::net::hosts::is_private;

/// Our port, to be told to others.
#[derive(Debug, Clone)]
pub struct OurPort {
    inside: Option<u16>,
    status: watch::Receiver<Status>,
}

impl OurPort {
    /// That of the listener, if there is one, behind a router that may map it.
    pub fn mapped(inside: Option<u16>, status: watch::Receiver<Status>) -> Self {
        Self { inside, status }
    }

    /// That of the listener, in this very machine.
    pub fn inside(&self) -> Option<u16> {
        self.inside
    }

    /// As the internet sees it over IPv4: what is told where one number has to do for both families.
    pub fn outside(&self) -> Option<u16> {
        self.inside.map(|inside| self.status.borrow().port(Protocol::Tcp).unwrap_or(inside))
    }

    /// Whether the router is known to map it: then it is the one that counts, whatever port our packets come from.
    pub fn is_mapped(&self) -> bool {
        self.inside.is_some() && self.status.borrow().port(Protocol::Tcp).is_some()
    }

    /// As one peer sees it: our own in the local network and over IPv6, where no router changes it.
    pub fn seen_by(&self, peer: IpAddr) -> Option<u16> {
        if peer.to_canonical().is_ipv4() && !is_private(peer) { self.outside() } else { self.inside }
    }

    /// Waits until the router maps other ports than before. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.status.changed().await.is_err() {
            // Nobody maps any.
            std::future::pending().await
        }
    }
}

impl Default for OurPort {
    /// None.
    fn default() -> Self {
        None.into()
    }
}

impl From<Option<u16>> for OurPort {
    /// A port that no router maps.
    fn from(inside: Option<u16>) -> Self {
        Self { inside, status: watch::channel(Status::default()).1 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt;

    use super::super::{Mapping, Method};
    use super::*;

    #[tokio::test]
    async fn the_internet_sees_what_the_router_maps() {
        let (tell, status) = watch::channel(Status::default());
        let mut port = OurPort::mapped(Some(6881), status.clone());
        assert_eq!((port.outside(), port.is_mapped()), (Some(6881), false));
        assert!(port.changed().now_or_never().is_none());
        let of = |protocol, external| Mapping {
            method: Method::Pcp,
            protocol,
            internal: 6881,
            external,
            address: Some([9, 9, 9, 9].into()),
        };
        let mappings = vec![of(Protocol::Udp, 7000), of(Protocol::Tcp, 7001)];
        tell.send_replace(Status { mappings, ..Status::default() });
        port.changed().await;
        assert_eq!((port.inside(), port.outside(), port.is_mapped()), (Some(6881), Some(7001), true));
        for (peer, seen) in [
            ("8.8.8.8", 7001),
            ("::ffff:8.8.8.8", 7001),
            ("192.168.1.2", 6881),
            ("127.0.0.1", 6881),
            ("2606:4700::1111", 6881),
        ] {
            assert_eq!(port.seen_by(peer.parse().unwrap()), Some(seen), "{peer}");
        }
        let none = OurPort::mapped(None, status);
        assert_eq!((none.outside(), none.is_mapped()), (None, false));
        drop(tell);
        assert!(port.changed().now_or_never().is_none(), "the end of it is no change");
    }
}
