//! Tasks and time-outs: what keeps the program from ever hanging.
pub mod tasks;
pub mod timeouts;
