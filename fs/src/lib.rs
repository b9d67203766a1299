//! The filesystem of torrentfs: inodes, handles, parked reads and the kernel's side of it. Knows nothing of
//! BitTorrent.
//!
//! What it shows comes from a [`content::Content`]; [`mount()`] puts it under a mount point. The way of a call:
//! kernel, [`adapter`], [`ops`], content. A read that must wait is kept in [`parked`] without a thread, until
//! data, a signal ([`signals`]), a failure or the unmount ends it.
//!
//! Locks begin here too: [`lock`] has the ranks of the whole program.

pub mod adapter;
pub mod attr;
pub mod callers;
pub mod content;
pub mod errno;
mod events;
pub mod handles;
pub mod inodes;
pub mod lock;
pub mod mock;
pub mod mount;
pub mod mountinfo;
pub mod ops;
pub mod parked;
pub mod passthrough;
pub mod session;
pub mod signals;
pub mod tree;
mod watcher;
mod worker;

pub use mount::{MountError, MountOptions, mount};
pub use session::{Mounted, UnmountReport};
