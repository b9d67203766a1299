//! The UDP port that uTP and the DHT share: a socket per address family, and a task each that gives every datagram to who
//! understands it.
//!
//! Flow: a socket has something → all that is there, up to a batch, goes to its [`Receiver`]s → each is told that the batch
//! is over, so that it wakes whoever works on it once → the next. What nobody understands is dropped, as is what comes for a
//! part that doesn't run. Nothing waits here: a receiver that is behind drops datagrams, as the network does.
//!
//! End: with its scope, and not before who [keeps](SharedUdp::keep) it has said its last and heard the answers.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::sync::tasks::TaskScope;

/// The largest datagram there is.
const DATAGRAM: usize = 65_536;
/// Datagrams that are taken before others get a turn.
const BATCH: usize = 64;

/// Whom a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// A bencoded dictionary.
    Dht,
    /// Version 1 of uTP, of a known type.
    Utp,
    /// Neither.
    Nobody,
}

/// Whom a datagram is for, by its first bytes and its last.
pub fn sort(packet: &[u8]) -> For {
    match packet {
        [b'd', .., b'e'] => For::Dht,
        [first, _, ..] if first & 0x0f == 1 && first >> 4 <= 4 && packet.len() >= 20 => For::Utp,
        _ => For::Nobody,
    }
}

/// Takes datagrams.
pub trait Receiver: Send + Sync {
    /// A datagram came. Must not wait.
    fn received(&self, packet: &[u8], from: SocketAddr);
    /// Those that came at once were all handed over. Must not wait.
    fn settled(&self) {}
}

/// The shared port.
pub struct SharedUdp {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    dht: OnceLock<Arc<dyn Receiver>>,
    utp: OnceLock<Arc<dyn Receiver>>,
    /// How many keep it.
    keeps: watch::Sender<usize>,
}

/// Somebody who still needs what comes after the end was told: bounds that time itself.
pub struct Keep(Arc<SharedUdp>);

impl Drop for Keep {
    fn drop(&mut self) {
        self.0.keeps.send_modify(|keeps| *keeps -= 1);
    }
}

impl SharedUdp {
    /// Of sockets that are bound, one per family.
    pub fn new(v4: Option<UdpSocket>, v6: Option<UdpSocket>) -> Arc<Self> {
        Arc::new(Self { v4, v6, dht: OnceLock::new(), utp: OnceLock::new(), keeps: watch::Sender::new(0) })
    }

    /// Where the socket of a family is bound; `None` if there is none.
    pub fn local_addr(&self, v6: bool) -> Option<SocketAddr> {
        let socket = if v6 { &self.v6 } else { &self.v4 };
        socket.as_ref()?.local_addr().ok()
    }

    /// Datagrams of a kind go to `receiver` from here on. The first one stays.
    pub fn give(&self, which: For, receiver: Arc<dyn Receiver>) {
        let _ = match which {
            For::Dht => self.dht.set(receiver),
            For::Utp => self.utp.set(receiver),
            For::Nobody => Ok(()),
        };
    }

    fn socket(&self, to: SocketAddr) -> io::Result<&UdpSocket> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        socket.as_ref().ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }

    /// Sends a datagram, unless the socket is full: then [`SharedUdp::writable`] tells when to try again.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::NetworkUnreachable`] for a family that it doesn't speak.
    pub fn try_send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = self.socket(to)?;
        match socket.try_send_to(packet, to) {
            // The runtime knows only after a first look that a new socket is writable.
            Err(full) if full.kind() == io::ErrorKind::WouldBlock => {
                SockRef::from(socket).send_to(packet, &to.into()).map(drop)
            }
            sent => sent.map(drop),
        }
    }

    /// Waits until the sockets take something. Cancel-safe.
    pub async fn writable(&self) {
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            let _ = socket.writable().await;
        }
    }

    /// Has it receive until this is dropped, also when its scope has been cancelled.
    pub fn keep(self: &Arc<Self>) -> Keep {
        self.keeps.send_modify(|keeps| *keeps += 1);
        Keep(self.clone())
    }

    /// Receives, in tasks of `scope`.
    pub fn run(self: &Arc<Self>, scope: &TaskScope) {
        for (v6, name) in [(false, "udp v4"), (true, "udp v6")] {
            if self.local_addr(v6).is_some() {
                let (this, token) = (self.clone(), scope.token().clone());
                scope.spawn_graceful(name, async move {
                    let mut keeps = this.keeps.subscribe();
                    let ended = async {
                        token.cancelled().await;
                        let _ = keeps.wait_for(|keeps| *keeps == 0).await;
                    };
                    tokio::select! {
                        biased;
                        () = ended => {}
                        () = this.receive(v6) => {}
                    }
                });
            }
        }
    }

    /// Hands over what comes, until dropped.
    async fn receive(&self, v6: bool) {
        let Some(socket) = (if v6 { &self.v6 } else { &self.v4 }) else { return };
        let mut buffer = vec![0; DATAGRAM];
        while socket.readable().await.is_ok() {
            for _ in 0..BATCH {
                // Empty; or what an earlier datagram of ours met on its way, which says nothing of the next.
                let Ok((len, from)) = socket.try_recv_from(&mut buffer) else { break };
                let packet = buffer.get(..len).unwrap_or_default();
                let receiver = match sort(packet) {
                    For::Dht => self.dht.get(),
                    For::Utp => self.utp.get(),
                    For::Nobody => None,
                };
                if let Some(receiver) = receiver {
                    receiver.received(packet, from);
                }
            }
            for receiver in [&self.dht, &self.utp] {
                if let Some(receiver) = receiver.get() {
                    receiver.settled();
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::net::sockets::Sockets;

    #[test]
    fn datagrams_are_told_apart() {
        let utp = |first: u8, len: usize| {
            let mut bytes = vec![0; len];
            bytes[0] = first;
            bytes
        };
        for (packet, expected) in [
            (b"d1:y1:qe".to_vec(), For::Dht),
            (b"d1:y1:q".to_vec(), For::Nobody),
            (utp(0x01, 20), For::Utp),
            (utp(0x41, 1402), For::Utp),
            (utp(0x41, 19), For::Nobody),
            (utp(0x51, 20), For::Nobody),
            (utp(0x42, 20), For::Nobody),
            (vec![], For::Nobody),
            (vec![b'd'], For::Nobody),
        ] {
            assert_eq!(sort(&packet), expected, "{packet:?}");
        }
    }

    /// Notes what comes.
    struct Notes(mpsc::Sender<Option<(Vec<u8>, SocketAddr)>>);

    impl Receiver for Notes {
        fn received(&self, packet: &[u8], from: SocketAddr) {
            self.0.try_send(Some((packet.to_vec(), from))).unwrap();
        }

        fn settled(&self) {
            self.0.try_send(None).unwrap();
        }
    }

    /// At loopback, of the families that there are.
    fn bound() -> Arc<SharedUdp> {
        let [v4, v6] = ["127.0.0.1:0", "[::1]:0"].map(|at| Sockets::default().udp(at.parse().unwrap()));
        SharedUdp::new(Some(v4.unwrap()), v6.ok())
    }

    #[tokio::test]
    async fn each_gets_its_own_in_both_families() {
        let scope = TaskScope::root();
        let (here, there) = (bound(), bound());
        let (dht, mut to_dht) = mpsc::channel(32);
        let (utp, mut to_utp) = mpsc::channel(32);
        here.give(For::Dht, Arc::new(Notes(dht)));
        here.give(For::Utp, Arc::new(Notes(utp)));
        here.run(&scope);
        let limit = Duration::from_secs(60);
        for v6 in [false, true] {
            let (Some(to), Some(from)) = (here.local_addr(v6), there.local_addr(v6)) else { continue };
            let syn = [&[0x41, 0][..], &[7; 18]].concat();
            // The very first goes out, too, though the runtime hasn't seen the socket yet.
            for packet in [&b"neither"[..], b"", b"d1:y1:qe", &syn] {
                there.try_send(packet, to).unwrap();
            }
            for (queue, packet) in [(&mut to_dht, &b"d1:y1:qe"[..]), (&mut to_utp, &syn)] {
                let came = async {
                    loop {
                        if let Some(came) = queue.recv().await.unwrap() {
                            return came;
                        }
                    }
                };
                assert_eq!(timeout(limit, came).await.unwrap(), (packet.to_vec(), from));
                // The end of the batch is said behind it.
                assert_eq!(timeout(limit, queue.recv()).await.unwrap().unwrap(), None);
            }
        }
        timeout(limit, there.writable()).await.unwrap();
        scope.cancel();
        assert!(scope.join(limit).await.is_empty());
    }

    #[tokio::test]
    async fn it_receives_until_nobody_keeps_it() {
        let scope = TaskScope::root();
        let (here, there) = (bound(), bound());
        let (utp, mut came) = mpsc::channel(32);
        here.give(For::Utp, Arc::new(Notes(utp)));
        here.run(&scope);
        let keep = here.keep();
        scope.cancel();
        there.try_send(&[&[0x41, 0][..], &[7; 18]].concat(), here.local_addr(false).unwrap()).unwrap();
        let limit = Duration::from_secs(60);
        assert!(timeout(limit, came.recv()).await.unwrap().unwrap().is_some());
        drop(keep);
        assert!(scope.join(limit).await.is_empty());
    }

    #[tokio::test]
    async fn a_family_that_is_not_there_is_not_sent_to() {
        let four =
            SharedUdp::new(Some(Sockets::default().udp("127.0.0.1:0".parse().unwrap()).unwrap()), None);
        let failed = four.try_send(b"de", "[::1]:9".parse().unwrap()).unwrap_err();
        assert_eq!((failed.kind(), four.local_addr(true)), (io::ErrorKind::NetworkUnreachable, None));
        let scope = TaskScope::root();
        four.run(&scope);
        assert_eq!(scope.live(), ["udp v4"]);
        scope.cancel();
    }
}
