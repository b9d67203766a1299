//! uTP over a real UDP port: the task that owns all connections, dialling, accepting.
//!
//! **Flow.** The port's own task hands datagrams over ([`Receiver`]), streams and dials come by the [`Desk`]. The task takes
//! all that waits at once, gives it to the [`Mux`], then serves each connection concerned once: bytes from its stream to
//! the connection, what may be sent to the port, bytes that came to the stream. So a burst of datagrams costs one
//! acknowledgement and one wake. When the port is full, those who have more to send are served again when it isn't.
//!
//! **End.** When its scope is cancelled the task ends every connection, waits a moment until that is known on the other
//! side, and is gone; whoever still holds a stream reads an error. In whatever way the task ends, nobody is left waiting.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::conn::{End, State};
use super::desk::{Desk, Waiting};
use super::mux::{Event, Key, Limits, Mux};
use super::stream::{Pipe, Stream, kind};
use crate::net::filter::Filter;
use crate::net::sockets::canonical;
use crate::net::udp::{For, Keep, Receiver, SharedUdp};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;

/// Connections that were opened by others and not taken yet: all that can be half-open may open at once. Beyond it they are
/// refused.
const ACCEPTED: usize = 256;
/// Turns of serving one connection at once: as many of its queue as make up a whole window.
const TURNS: usize = 32;

/// The uTP side of a port; dials.
pub struct Socket {
    desk: Arc<Desk>,
    connections: Arc<AtomicUsize>,
    /// Whether the port speaks IPv4, and IPv6.
    families: [bool; 2],
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// Connections that others open.
pub struct Incoming {
    opened: mpsc::Receiver<Stream>,
}

impl Incoming {
    /// Waits for the next one; none comes after the end of the socket. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }
}

impl Receiver for Socket {
    fn received(&self, packet: &[u8], from: SocketAddr) {
        self.desk.packet(packet, from);
    }

    fn settled(&self) {
        self.desk.settled();
    }
}

impl Socket {
    /// Speaks uTP over `udp`, in a task of `scope`. Who is in `filter` isn't answered.
    pub fn start(
        scope: &TaskScope,
        udp: Arc<SharedUdp>,
        limits: Limits,
        filter: Arc<Filter>,
    ) -> (Arc<Self>, Incoming) {
        let desk = Desk::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let (opened, incoming) = mpsc::channel(ACCEPTED);
        let now = Instant::now().into_std();
        let task = Task {
            mux: Mux::new(limits, filter, Box::new(rand::random), now),
            pipes: HashMap::new(),
            blocked: BTreeSet::new(),
            desk: desk.clone(),
            // Who was told of the end says so through it.
            _keep: udp.keep(),
            udp: udp.clone(),
            opened,
            connections: connections.clone(),
        };
        let families = [false, true].map(|v6| udp.local_addr(v6).is_some());
        let socket = Arc::new(Self { desk, connections, families });
        udp.give(For::Utp, socket.clone());
        let token = scope.token().clone();
        scope.spawn_graceful("utp", async move {
            let mut task = task;
            let mut waiting = Waiting::default();
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = task.run(&mut waiting) => {}
            }
            // What they still have to say is little, and the end of the program doesn't wait for it long.
            let _ = timeout(timeouts::UTP_END, task.end(&mut waiting)).await;
        });
        (socket, Incoming { opened: incoming })
    }

    /// Connections, those that are just opened or ended included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Opens a connection; whoever waits bounds the time, which is [`timeouts::PEER_CONNECT`] at most by itself and a bit.
    /// Dropping it leaves nothing behind.
    ///
    /// # Errors
    /// Nobody answers, or answers no; there are too many connections; the port is closed, or speaks another family
    /// ([`io::ErrorKind::NetworkUnreachable`]).
    pub async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        // What comes from there is known by this address.
        let to = canonical(to);
        let [v4, v6] = self.families;
        if !(if to.is_ipv4() { v4 } else { v6 }) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let pipe = Pipe::new();
        let stream = Stream::new(pipe.clone(), self.desk.clone(), to);
        if !self.desk.dial(to, pipe) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        stream.opened().await?;
        Ok(stream)
    }
}

struct Task {
    mux: Mux,
    /// Those that a stream belongs to.
    pipes: HashMap<Key, Arc<Pipe>>,
    /// Those for which the port was full.
    blocked: BTreeSet<Key>,
    desk: Arc<Desk>,
    udp: Arc<SharedUdp>,
    /// It receives for as long as this task is there.
    _keep: Keep,
    opened: mpsc::Sender<Stream>,
    connections: Arc<AtomicUsize>,
}

/// In whatever way the task ends.
impl Drop for Task {
    fn drop(&mut self) {
        let mut rest = Waiting::default();
        self.desk.close(&mut rest);
        let dials = rest.dials.drain(..).map(|(_, pipe)| pipe);
        for pipe in self.pipes.drain().map(|(_, pipe)| pipe).chain(dials) {
            pipe.end(io::ErrorKind::ConnectionAborted);
        }
        self.connections.store(0, Ordering::Relaxed);
    }
}

/// Sends, or says false when the port is full. What is too long or leads nowhere counts as lost.
fn send(udp: &SharedUdp, bytes: &[u8], to: SocketAddr) -> bool {
    match udp.try_send(bytes, to) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => {
            tracing::trace!(peer = %to, "a datagram wasn't sent: {error}");
            true
        }
        Ok(()) => true,
    }
}

impl Task {
    async fn run(&mut self, waiting: &mut Waiting) {
        loop {
            self.turn(waiting);
            let due = self.mux.due().map(Instant::from_std);
            tokio::select! {
                () = self.desk.changed() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = self.udp.writable(), if !self.blocked.is_empty() => {}
            }
        }
    }

    /// Does all that there is to do now.
    fn turn(&mut self, waiting: &mut Waiting) {
        let now = Instant::now().into_std();
        waiting.clear();
        self.desk.take(waiting);
        let mut concerned = std::mem::take(&mut self.blocked);
        for (packet, from) in waiting.packets() {
            let udp = &self.udp;
            match self.mux.received(packet, from, now, &mut |bytes, to| send(udp, bytes, to)) {
                Event::None => {}
                Event::Happened(key) => _ = concerned.insert(key),
                Event::Opened(key) => {
                    self.accept(key, from);
                    concerned.insert(key);
                }
            }
        }
        for (to, pipe) in waiting.dials.drain(..) {
            concerned.extend(self.dial(to, pipe, now));
        }
        concerned.extend(waiting.pokes.drain(..).filter_map(|pipe| pipe.key()));
        while let Some(key) = self.mux.pop_due(now) {
            concerned.insert(key);
        }
        for key in concerned {
            self.serve(key, now);
        }
        self.connections.store(self.mux.len().0, Ordering::Relaxed);
    }

    fn dial(&mut self, to: SocketAddr, pipe: Arc<Pipe>, now: std::time::Instant) -> Option<Key> {
        if pipe.is_dropped() {
            return None;
        }
        let Some(key) = self.mux.connect(to, now) else {
            pipe.end(io::ErrorKind::ResourceBusy);
            return None;
        };
        pipe.set_key(key);
        self.pipes.insert(key, pipe);
        Some(key)
    }

    fn accept(&mut self, key: Key, from: SocketAddr) {
        let pipe = Pipe::new();
        pipe.set_key(key);
        let stream = Stream::new(pipe.clone(), self.desk.clone(), from);
        // Who isn't taken, or taken by nobody, is let go with its stream.
        self.pipes.insert(key, pipe);
        if let Err(refused) = self.opened.try_send(stream) {
            tracing::debug!(peer = %from, "a uTP connection was refused: nobody takes it");
            drop(refused);
        }
    }

    /// Moves bytes of one connection as far as they go.
    fn serve(&mut self, key: Key, now: std::time::Instant) {
        let udp = &self.udp;
        for _ in 0..TURNS {
            let Some(conn) = self.mux.conn(key) else { return };
            let before = conn.state();
            let mut more = false;
            if let Some(pipe) = self.pipes.get(&key) {
                let done = pipe.exchange(conn, before == State::Open, now);
                if done.dropped {
                    conn.let_go(now);
                }
                if done.finished && done.drained {
                    conn.close(now);
                }
                more = !done.drained;
            }
            let Some((state, blocked)) = self.mux.poll(key, now, &mut |bytes, to| send(udp, bytes, to))
            else {
                return;
            };
            if let State::Ended(end) = state {
                return self.ended(key, end, before == State::Dialling, now);
            }
            if blocked {
                self.blocked.insert(key);
                return;
            }
            if !more || self.mux.conn(key).is_none_or(|conn| conn.write_room() == 0) {
                return;
            }
        }
        // The rest when others had their turn.
        self.blocked.insert(key);
    }

    fn ended(&mut self, key: Key, end: End, dialling: bool, now: std::time::Instant) {
        if let Some(pipe) = self.pipes.remove(&key) {
            if let Some(conn) = self.mux.conn(key) {
                // What came before the end is still read.
                pipe.exchange(conn, false, now);
            }
            pipe.end(kind(end, dialling));
        }
        self.mux.remove(key);
    }

    /// Ends all connections, and waits until that is known.
    async fn end(&mut self, waiting: &mut Waiting) {
        let now = Instant::now().into_std();
        for key in self.mux.keys() {
            if let Some(conn) = self.mux.conn(key) {
                conn.let_go(now);
                conn.close(now);
            }
            self.serve(key, now);
        }
        while !self.mux.is_empty() {
            self.turn(waiting);
            let due = self.mux.due().map(Instant::from_std);
            tokio::select! {
                () = self.desk.changed() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
