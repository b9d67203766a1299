//! What the end-to-end tests stand on: the real binary on a real mount, and peers to fetch from.
//!
//! Parts: [`Mount`] runs the binary; [`Seeder`], [`Leecher`] are libtorrent; [`ScriptedPeer`] is a peer that
//! misbehaves as told; a [`Flood`] is one that says the same without end; a [`Crowd`] is many honest ones, [`Takers`] are many who fetch; [`Tracker`] and the dead ones; [`Sample`] is
//! deterministic content, [`Uniform`] and [`Varied`] content of any size; [`SmallDisk`] fills up soon;
//! a [`Line`] is a local network of two hosts, a [`Home`] one with a router, [`transmission`] and [`aria2`] are clients on one; a [`Place`] is for a mount in the background, a [`Namespace`] for one that the machine doesn't see; [`Proc`] is any
//! other process, [`Language`] readers of other runtimes; [`cpu`], [`memory`] are what one uses; [`Random`] is luck that
//! can be repeated. Whatever a test starts ends with it, also when it panics: no process and no mount is left behind.
//!
//! State is awaited with [`wait_until`] and a bound, never slept for. Bounds are generous (five times what is
//! expected and more), since the machine may be busy; they only turn a hang into a failure.
//!
//! It knows the program by its command line alone, not by its library.

mod clients;
mod command;
mod compiled;
mod crowd;
mod daemon;
mod disk;
mod hostile;
mod mount;
mod network;
mod peers;
mod process;
mod random;
mod sample;
mod scripted;
mod support;
mod takers;
mod tracker;
mod usage;

pub use clients::{ARIA2, TRANSMISSION, aria2, tell_transmission, transmission, transmission_of};
pub use command::{Ended, fetch, fetch_from, home, ran};
pub use compiled::{Language, fnv};
pub use crowd::{Crowd, Truth, Uniform, Varied};
pub use daemon::{Namespace, Place, is_gone, mount_line};
pub use disk::{SmallDisk, allocated, forget_pages};
pub use hostile::{
    Flood, Tale, Teller, Uses, be_let_in, connect, greet, handshake, is_closed, message, numbers, open_files,
};
pub use mount::{Mount, MountBuilder, STOP, is_mounted, program, torrentfs};
pub use network::{DEVICE, Home, Homes, Host, Line};
pub use peers::{
    Leecher, Seeder, TorrentKind, command_on, lsd_listener, magnet, make_torrent, python, script,
};
pub use process::{Proc, Reader};
pub use random::{Random, seed};
pub use sample::{Made, Sample, bytes_at};
pub use scripted::{Behaviour, ScriptedPeer};
pub use support::{Need, Stops, has_tool, missing, skip, wait_for, wait_until};
pub use takers::Takers;
pub use tracker::{DeadTracker, Tracker};
pub use usage::{Peak, bytes_read, cpu, cpu_of, memory, threads_named, wake_ups};

/// Returns from the test, reported as skipped by name, unless all of what it needs is here. In CI it fails.
#[macro_export]
macro_rules! needs {
    ($($need:ident),+ $(,)?) => {
        if let Some(reason) = $crate::common::missing(&[$($crate::common::Need::$need),+]) {
            $crate::common::skip(&reason);
            return;
        }
    };
}
