//! One peer: its connection, its session, the messages and the extensions.
//!
//! Connections begin in [`connect`], and with encryption's handshake ([`mse`]) where that is wanted. A session ([`session`]) moves bytes: it knows nothing of what is wanted and decides nothing. What the
//! owner of the torrent wants it to say stands in its [`outbox`]; what the peer said goes to the owner as
//! [`event`]s, in one batch per socket read. Blocks don't travel: they lie in a [`buffer`], and the events
//! name them.

pub mod buffer;
pub mod connect;
pub mod event;
pub mod extension;
pub mod fast;
pub mod holepunch;
pub mod metadata;
pub mod mse;
pub mod outbox;
pub mod pex;
pub mod session;
pub mod wire;

/// Our own number for a connected peer, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(pub u64);
