//! What concerns the line as a whole: rate limits, and which hosts may be reached.
pub mod hosts;
pub mod limit;
