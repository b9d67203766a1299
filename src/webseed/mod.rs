//! Webseeds: HTTP servers that have a torrent's files (BEP 17, 19).
//!
//! Pure parts: [`url`] (where a file or a piece is), [`slices`] (what is asked for at once), [`answer`] (what a
//! response's status and headers make of its body), [`fault`] (what went wrong, and what follows), [`backoff`] (when
//! a server that failed is asked again).

pub mod answer;
pub mod backoff;
pub mod fault;
pub mod slices;
pub mod url;

pub use url::Kind;

#[cfg(test)]
mod for_tests;
