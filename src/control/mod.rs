//! The language in which commands talk to a running mount: versioned JSON lines over a Unix socket. Pure.
//!
//! **Goal.** One request a line, one answer a line. A line that isn't understood is answered with what is wrong with
//! it, and the next one counts again. What is unknown within a line is ignored, so that either side may be the newer
//! one; what can't be ignored raises [`VERSION`].
//!
//! **Parts.** [`message`]: requests, answers, errors with their codes. [`status`]: what a mount tells of itself.
//! [`named`]: which torrent is meant. [`lines`]: lines out of bytes, with a bound. [`place`]: where sockets are.
//! `docs/CONTROL.md` tells all of it to those who write clients.
//!
//! **Not here.** Sockets, time-outs, and doing what is asked ([`crate::run`]).

pub mod lines;
pub mod message;
pub mod named;
pub mod place;
pub mod status;

use crate::client::sources::MAX_TORRENT;

/// The version of the language. A request that names another one is refused.
pub const VERSION: u32 = 1;
/// A line of so many bytes may be held for any client at any time: every request but one that brings a torrent along
/// is far shorter.
pub const LINE_SMALL: usize = 64 << 10;
/// No request is longer, in bytes: the largest `.torrent` there is, in base64, and what stands around it.
pub const REQUEST_MAX: usize = (MAX_TORRENT as usize).div_ceil(3) * 4 + LINE_SMALL;
/// No answer is longer, in bytes: the status of a hundred thousand torrents.
pub const ANSWER_MAX: usize = 64 << 20;
