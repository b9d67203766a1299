//! uTP, BitTorrent's transport over UDP (BEP 29): streams that give way to whatever else wants the line.
//!
//! **Parts.** Pure, with `now` as an argument: [`packet`] and [`seq`] (the wire), [`send`] and [`receive`] (the two sides of a
//! connection), [`ledbat`] and [`rtt`] (how much, and how long), [`conn`] (one connection), [`mux`] (all of a socket).
//! Around them: [`socket`] (the task that owns them, dialling, accepting), [`stream`] (what a user of a connection holds),
//! `desk` (what waits for the task).
//!
//! **Bounds.** A connection keeps 1 MiB that came and isn't read, 256 KiB that were written and wait, 64 KiB that are cut
//! next, and what is on the way, at most 1 MiB. A datagram of a stranger makes at most a half-open connection, and of
//! those there are few. Datagrams that the task doesn't keep up with are dropped.
//!
//! **Not here.** Looking for the largest packet that a path carries: packets begin at what nearly all carry, and where none of
//! that size ever arrives the next connection takes smaller ones. ECN. Pacing: acknowledgements pace well enough. Answering
//! from the address that was spoken to, where the machine has several and the port is bound to all: the system chooses.

pub mod conn;
mod desk;
pub mod ledbat;
pub mod mux;
pub mod packet;
pub mod receive;
pub mod rtt;
pub mod send;
pub mod seq;
pub mod socket;
pub mod stream;

pub use mux::Limits;
pub use socket::{Incoming, Socket};
pub use stream::Stream;
