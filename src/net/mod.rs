//! What concerns the line as a whole: how sockets are made, the shared UDP port, uTP, what a connection runs over, rate
//! limits, which hosts may be reached, and which addresses never are.
pub mod addresses;
pub mod filter;
pub mod hosts;
pub mod limit;
pub mod sockets;
pub mod transport;
pub mod udp;
pub mod utp;
