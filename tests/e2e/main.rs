//! End to end: the real binary, a real kernel mount, real peers on loopback.
//!
//! One module per thing that is shown; one binary for all, since linking is what costs. Each test mounts for
//! itself and leaves nothing behind. What a test needs and the machine lacks is said by `needs!`: skipped by
//! name, a failure in CI.
//!
//! Bounds on time are five times what is promised, so that a busy machine doesn't fail them, and what took
//! how long is printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and its helpers are plain threads outside the program"
)]

#[path = "../common/mod.rs"]
mod common;

mod behind_our_back;
mod bounded;
mod cache_commands;
mod cat;
mod command_line;
mod control;
mod control_life;
mod control_torrents;
mod copies;
mod crash;
mod daemon;
mod demo;
mod dht;
mod diagnose;
mod encryption;
mod equal_names;
mod filtered;
mod folders;
mod full_disk;
mod goals;
mod harness;
mod hostile;
mod inspect;
mod interface;
mod interop;
mod kinds;
mod large;
mod lifecycle;
mod limits;
mod local_network;
mod magnets;
mod mount_helper;
mod moving;
mod no_peer;
mod offline;
mod one_seed;
mod parked;
mod passthrough;
mod port_mapping;
mod prefetch;
mod proxies;
mod punching;
mod restart;
mod resume;
mod runtimes;
mod scale;
mod scans;
mod seeks;
mod semantics;
mod shutdown;
mod signals;
mod stress;
mod swarm;
mod terms;
mod thousand;
mod tools;
mod transmission;
mod two_processes;
mod upload;
mod utp;
mod verify;
mod watched;
mod webseeds;
mod whole;
