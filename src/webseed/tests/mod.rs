//! A webseed as a whole, against a server on loopback that does as it is told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ends;
mod faults;
mod flow;
mod http2;
mod mirrors;
mod rig;
mod rows;
mod server;
mod wake;
