//! The interfaces of this machine and their addresses, as they are at the moment of asking; and [`Watch`], which tells when
//! those change that we may use.
//!
//! The kernel tells that something has changed, and not whether it matters to us: it is looked at what there is now. Where it
//! doesn't tell, that is done every half minute.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use socket2::Socket;
use tokio::io::unix::AsyncFd;

use super::sockets::Sockets;
use crate::sync::timeouts::ADDRESSES_LOOK;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number, from 1.
    pub index: u32,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
    /// It is the machine's own.
    pub loopback: bool,
    /// It carries multicast.
    pub multicast: bool,
}

/// The interfaces that are up and have an address. None when the kernel doesn't tell.
pub fn interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs().into_iter().flatten() {
        let Some(address) = entry.address.filter(|_| entry.flags.contains(InterfaceFlags::IFF_UP)) else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let Some(addr) = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()))) else {
            continue;
        };
        if let Some(known) = found.iter_mut().find(|known| known.name == entry.interface_name) {
            known.addrs.push(addr);
        } else if let Ok(index) = if_nametoindex(entry.interface_name.as_str()) {
            found.push(Interface {
                name: entry.interface_name,
                index,
                addrs: vec![addr],
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                multicast: entry.flags.contains(InterfaceFlags::IFF_MULTICAST),
            });
        }
    }
    found
}

/// Addresses that came and went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// What we have no more.
    pub lost: Vec<IpAddr>,
    /// What we have now.
    pub now: Vec<IpAddr>,
}

/// Tells when the addresses change that sockets may use.
pub struct Watch {
    sockets: Sockets,
    news: Option<AsyncFd<Socket>>,
    known: BTreeSet<IpAddr>,
}

impl Watch {
    /// Of the addresses that these sockets may use, as they are now.
    pub fn new(sockets: Sockets) -> Self {
        let news = Sockets::news();
        if let Err(error) = &news {
            tracing::debug!("the kernel doesn't tell of addresses that change: {error}");
        }
        let known = usable(&sockets);
        Self { sockets, news: news.ok(), known }
    }

    /// The addresses of now.
    pub fn known(&self) -> Vec<IpAddr> {
        self.known.iter().copied().collect()
    }

    /// Waits until they have changed. Cancel-safe.
    pub async fn changed(&mut self) -> Change {
        loop {
            let heard = async {
                match &mut self.news {
                    Some(news) => hear(news).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = heard => {}
                () = tokio::time::sleep(ADDRESSES_LOOK) => {}
            }
            let now = usable(&self.sockets);
            if let Some(change) = compare(&self.known, &now) {
                self.known = now;
                return change;
            }
        }
    }
}

/// Waits until the kernel says something, and takes in all that it has to say.
async fn hear(news: &mut AsyncFd<Socket>) {
    let Ok(mut ready) = news.readable_mut().await else { return };
    let mut bytes = [std::mem::MaybeUninit::uninit(); 4096];
    // What is said doesn't matter, nor that some of it was lost, which is an error once.
    while ready.try_io(|news| news.get_ref().recv(&mut bytes)).is_ok() {}
}

/// Addresses by which others may know us: of link-local ones every interface has its own, also those of containers that come
/// and go, and nobody reaches us by them from afar.
fn usable(sockets: &Sockets) -> BTreeSet<IpAddr> {
    let far = |ip: &IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    sockets.interfaces().into_iter().flat_map(|interface| interface.addrs).filter(far).collect()
}

/// What came of the addresses of before, if anything.
fn compare(before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) -> Option<Change> {
    let lost = before.difference(now).copied().collect();
    (before != now).then(|| Change { lost, now: now.iter().copied().collect() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_changed_is_told() {
        let set = |addrs: &[&str]| addrs.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        for (before, now, lost) in [
            (&["1.2.3.4"][..], &["1.2.3.4"][..], None),
            (&["1.2.3.4"], &[], Some(&["1.2.3.4"][..])),
            (&[], &["1.2.3.4"], Some(&[])),
            (&["1.2.3.4", "::1"], &["::1", "5.6.7.8"], Some(&["1.2.3.4"])),
        ] {
            let change = compare(&set(before), &set(now));
            let want = lost.map(|lost| Change {
                lost: set(lost).into_iter().collect(),
                now: set(now).into_iter().collect(),
            });
            assert_eq!(change, want, "{before:?} {now:?}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_of_changes_or_is_asked() {
        let mut watch = Watch::new(Sockets::default());
        assert_eq!(watch.known, usable(&Sockets::default()));
        // As if one had gone before.
        watch.known.insert("192.0.2.1".parse().unwrap());
        tokio::time::pause();
        let change = tokio::time::timeout(2 * ADDRESSES_LOOK, watch.changed()).await.unwrap();
        assert!(change.lost.contains(&"192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn loopback_is_there() {
        let all = interfaces();
        let lo = all.iter().find(|i| i.loopback).expect("every machine has one");
        assert!(lo.index > 0 && lo.addrs.contains(&"127.0.0.1".parse().unwrap()), "{lo:?}");
    }
}
