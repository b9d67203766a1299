//! What concerns the line as a whole: how sockets are made, the shared UDP port, uTP, what a connection runs over, rate
//! limits, how many connections there may be, which hosts may be reached, and which addresses never are, the ports that a
//! router lets through, and proxies.
pub mod addresses;
pub mod connections;
pub mod external;
pub mod filter;
pub mod hosts;
pub mod limit;
pub mod mapping;
pub mod ours;
pub mod proxy;
pub mod sockets;
pub mod transport;
pub mod udp;
pub mod utp;
