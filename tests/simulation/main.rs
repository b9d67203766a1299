//! A deterministic simulation of swarms: what readers see of the engine, in figures.
//!
//! The pure heart of a torrent (`Swarm::apply`) runs among simulated peers, links, a kernel and programs, on a clock
//! of its own: no task, thread, socket or real time, and the same seed gives the same report. Parts: [`clock`];
//! [`link`], a peer and its line; [`webseed`], one of those; [`kernel`] and [`programs`], who reads; [`world`] and [`reading`], what goes on;
//! [`scenario`] and [`report`]; then the scenarios by subject. Bounds are in units of physics: the bytes that must
//! come at the swarm's rate, and round trips.
//!
//! `cargo nextest run --no-capture -E 'binary(simulation)'` prints the figures; `SIMULATION_TRACE=1` also says what was
//! asked of whom, and when.
//! Not here: sockets, disks, processor time. `scripts/bench` measures those.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and what breaks a simulation is a bug in it"
)]

mod clock;
mod kernel;
mod link;
mod playing;
mod programs;
mod reading;
mod report;
mod scale;
mod scenario;
mod seeking;
mod trouble;
mod webseed;
mod webseeds;
mod world;
