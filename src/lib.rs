//! torrentfs mounts torrents as ordinary read-only files; reading is what fetches.
//!
//! The rooms, each depending only on those below it: [`cli`] and [`run`] (the program), [`content`] (the
//! filesystem's port over the client), [`control`] (how commands talk to a running mount), [`client`] (the table of
//! torrents), [`torrent`] (one torrent's state and its owner), [`webseed`], [`peer`], [`discovery`], [`storage`],
//! [`net`], [`metainfo`] and [`hash`], [`sync`].
//! `docs/ARCHITECTURE.md` tells the whole; `docs/CONCURRENCY.md` the locks, the tasks and the shutdown.

pub mod cli;
pub mod client;
pub mod config;
pub mod content;
pub mod control;
pub mod discovery;
pub mod hash;
pub mod metainfo;
pub mod net;
pub mod peer;
pub mod run;
pub mod storage;
pub mod sync;
pub mod torrent;
pub mod webseed;
