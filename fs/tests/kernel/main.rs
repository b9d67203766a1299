//! What only a kernel mount can show: signals, page faults, passthrough, and the mount's own
//! life.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod life;
mod listing;
mod passthrough;
mod signals;
