//! Our own addresses, for all torrents: those of this machine, and those that others see us at.
//!
//! Peers say at which address they see us (BEP 10's `yourip`), and so do nodes of the DHT (BEP 42's `ip`); when enough of them agree ([`Votes`]), it is believed. Known
//! addresses aren't dialled, and stand for us where a connection's priority is reckoned (BEP 40).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::external::Votes;
use super::hosts::is_private;

/// What is known of our addresses; a clone is a handle on the same. By default nothing is.
#[derive(Debug, Clone, Default)]
pub struct Ours(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: RankedMutex<State>,
    known: watch::Sender<Vec<IpAddr>>,
}

#[derive(Debug, Default)]
struct State {
    votes: Votes,
    /// Of this machine.
    here: Vec<IpAddr>,
}

impl State {
    /// What others see comes first.
    fn known(&self) -> Vec<IpAddr> {
        self.votes.believed().chain(self.here.iter().copied()).collect()
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            state: RankedMutex::new(Rank::Leaf, "our addresses", State::default()),
            known: watch::Sender::default(),
        }
    }
}

impl Ours {
    /// The addresses of this machine.
    pub fn new(here: Vec<IpAddr>) -> Self {
        let known = watch::Sender::new(here.clone());
        let state = RankedMutex::new(Rank::Leaf, "our addresses", State { here, ..State::default() });
        Self(Arc::new(Inner { state, known }))
    }

    /// Somebody says that he sees us at this address. Neighbours see what the rest of the world doesn't.
    pub fn saw(&self, ip: IpAddr, by: IpAddr, now: Instant) {
        if is_private(by.to_canonical()) {
            return;
        }
        let news = {
            let mut state = self.0.state.lock();
            let news = state.votes.saw(ip, by, now);
            if news.is_some() {
                // Before anybody else can learn more: nothing older comes behind it. It wakes, and waits for nobody.
                self.0.known.send_replace(state.known());
            }
            news
        };
        if news.is_some() {
            tracing::info!("others see us at {ip}");
        }
    }

    /// The addresses of this machine have changed: what others saw is out of date.
    pub fn moved(&self, here: Vec<IpAddr>) {
        let mut state = self.0.state.lock();
        *state = State { here, ..State::default() };
        self.0.known.send_replace(state.known());
    }

    /// What is known now, and to be told when that changes.
    pub fn known(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.0.known.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_others_see_stands_before_what_we_have() {
        let ours = Ours::new(vec![ip("192.168.0.2")]);
        let known = ours.known();
        let now = Instant::now();
        for by in ["10.0.0.1", "192.168.0.1", "172.16.0.1", "1.1.1.1", "2.2.2.2"] {
            ours.saw(ip("9.9.9.9"), ip(by), now);
            assert_eq!(*known.borrow(), [ip("192.168.0.2")], "{by}");
        }
        ours.saw(ip("9.9.9.9"), ip("3.3.3.3"), now);
        assert_eq!(*known.borrow(), [ip("9.9.9.9"), ip("192.168.0.2")]);
        ours.moved(vec![ip("192.168.7.2")]);
        assert_eq!(*known.borrow(), [ip("192.168.7.2")]);
    }
}
