//! What concerns the line as a whole: rate limits.
pub mod limit;
