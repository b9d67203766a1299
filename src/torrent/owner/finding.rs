//! How the owner of a torrent looks for peers: its trackers, the DHT and the local network, each followed for as long as
//! the torrent runs. A part of [`Owner`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Link, Owner};
use crate::discovery::tracker::Trackers;
use crate::discovery::{Announce, Crypto, PeerDiscovery, Progress};
use crate::peer::mse::Policy;
use crate::torrent::effects::Event;

/// From where to where a connection goes.
pub(super) struct Ends {
    /// Our address, if that is known.
    pub(super) local: Option<IpAddr>,
    pub(super) peer: IpAddr,
}

impl Ends {
    /// Whether it is over when these addresses of ours are gone. Where nobody knows which of ours it has, it may have one of
    /// those, if they are of its family.
    fn is_over(&self, lost: &[IpAddr]) -> bool {
        match self.local {
            Some(local) => lost.contains(&local),
            None => !self.peer.is_loopback() && lost.iter().any(|ip| ip.is_ipv4() == self.peer.is_ipv4()),
        }
    }
}

impl Owner {
    /// Our addresses have changed, and these are gone. Connections from there would hang until they time out.
    pub(super) fn moved(&mut self, lost: &[IpAddr]) {
        if let Some(trackers) = &self.trackers {
            trackers.moved();
        }
        self.torrent.sessions.moved();
        let over = |link: &Link| link.ends.as_ref().is_some_and(|ends| ends.is_over(lost));
        let lost = self.links.iter().filter(|(_, link)| over(link)).map(|(key, _)| *key).collect();
        self.apply(Event::Moved { lost });
    }

    /// Starts the search for peers: in a private torrent by its trackers alone (BEP 27).
    pub(super) fn discover(&mut self, private: bool) {
        let announce = Announce {
            info_hash: self.settings.info_hash,
            peer_id: self.settings.peer_id,
            port: self.settings.listen_port.inside().unwrap_or(0),
            key: rand::random(),
            crypto: match self.settings.encryption {
                Policy::Prefer => Crypto::Supported,
                Policy::Require => Crypto::Required,
                Policy::Off => Crypto::None,
            },
        };
        if let Some(options) = &self.env.trackers {
            let totals = self.totals.clone();
            let progress = Arc::new(move || Progress {
                uploaded: totals.up.load(Ordering::Relaxed),
                downloaded: totals.down.load(Ordering::Relaxed),
                left: totals.left.load(Ordering::Relaxed),
            });
            let mut options = options.clone();
            options.private = private;
            options.reach = self.reach;
            options.named.clone_from(&self.named_trackers);
            let tiers = self.tiers.clone();
            let trackers =
                Trackers::start(&self.scope, tiers, announce, progress, self.found.clone(), options);
            *self.torrent.trackers.lock() = Some(trackers.view());
            self.trackers = Some(trackers);
        }
        let dht = self.env.dht.as_deref().map(|dht| dht as &dyn PeerDiscovery);
        let lsd = self.env.lsd.as_deref().map(|lsd| lsd as &dyn PeerDiscovery);
        for network in dht.into_iter().chain(lsd).filter(|_| !private) {
            let following = network.follow(&self.scope, announce, self.found.clone());
            following.want_peers(true);
            self.following.push(following);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn connections_end_with_the_address_they_have() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (local, peer, lost, over) in [
            (Some("1.2.3.4"), "9.9.9.9", "1.2.3.4", true),
            (Some("1.2.3.4"), "9.9.9.9", "1.2.3.5", false),
            (None, "9.9.9.9", "1.2.3.5", true),
            (None, "9.9.9.9", "2001:db8::1", false),
            (None, "127.0.0.1", "1.2.3.5", false),
        ] {
            let ends = Ends { local: local.map(ip), peer: ip(peer) };
            assert_eq!(ends.is_over(&[ip(lost)]), over, "{local:?} {peer} {lost}");
            assert!(!ends.is_over(&[]));
        }
    }
}
