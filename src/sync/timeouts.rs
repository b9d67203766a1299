//! Every time-out of waiting and of shutdown, in one place, each with its reason.

use std::time::Duration;

/// To connect to a peer, over TCP or uTP: longer hides dead peers, shorter loses far ones.
pub const PEER_CONNECT: Duration = Duration::from_secs(5);
/// How long TCP may try alone before uTP does, too: longer than a round trip to most peers, too short to be felt.
pub const PEER_UTP: Duration = Duration::from_millis(250);
/// Between two looks at the addresses of this machine, where the kernel doesn't tell when they change.
pub const ADDRESSES_LOOK: Duration = Duration::from_secs(30);
/// What a host's first address is given before that of the other family is tried, too (RFC 8305).
pub const PEER_FAMILY: Duration = Duration::from_millis(250);
/// For a peer's handshake after the connection: two round trips on the slowest line, with room.
pub const PEER_HANDSHAKE: Duration = Duration::from_secs(10);
/// For a dialled peer's key when encryption is only preferred: a client without it sees a broken handshake and mostly
/// closes at once, but some wait for more. Then it is dialled again, without.
pub const PEER_KEY: Duration = Duration::from_secs(4);
/// Silence after which we send a keep-alive; peers drop a silent connection after two minutes.
pub const PEER_KEEPALIVE: Duration = Duration::from_secs(90);
/// Silence after which a peer is dropped (BEP 3: generally two minutes; a margin for slow lines).
pub const PEER_IDLE: Duration = Duration::from_secs(150);
/// A socket write that makes no progress for this long means the peer is gone.
pub const PEER_WRITE_STALL: Duration = Duration::from_secs(60);
/// Between two tries to reach a peer that failed, first; doubled at each failure up to [`PEER_RETRY_MAX`].
pub const PEER_RETRY_FIRST: Duration = Duration::from_secs(2);
/// The longest wait between two tries to reach a peer.
pub const PEER_RETRY_MAX: Duration = Duration::from_secs(300);
/// For one HTTP tracker to answer: connect, TLS and answer.
pub const TRACKER_HTTP: Duration = Duration::from_secs(15);
/// First wait for a UDP tracker's answer before asking again. BEP 15 says 15 s; a reader waits, so 3 s.
pub const TRACKER_UDP_FIRST: Duration = Duration::from_secs(3);
/// How often a UDP request is sent again, each wait twice the one before.
pub const TRACKER_UDP_TRIES: u32 = 4;
/// For the last `stopped` announce at shutdown: useful to others, never worth a hang.
pub const TRACKER_STOPPED: Duration = Duration::from_secs(2);
/// Shortest pause between two announces to one tracker that failed; doubled up to [`TRACKER_RETRY_MAX`].
pub const TRACKER_RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest pause after failures of one tracker.
pub const TRACKER_RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// To connect to a webseed: its name, TCP, TLS. Longer than for a peer, since there are more round trips, and few others.
pub const WEBSEED_CONNECT: Duration = Duration::from_secs(10);
/// From a request to a webseed, its connection included, to the head of the answer: a busy server takes seconds.
pub const WEBSEED_FIRST_BYTE: Duration = Duration::from_secs(15);
/// A webseed that sends less than [`WEBSEED_STALL_BYTES`] in this time, not counting what it waits for us, has stalled.
pub const WEBSEED_STALL: Duration = Duration::from_secs(10);
/// A block: a server that takes [`WEBSEED_STALL`] for it serves nobody who reads.
pub const WEBSEED_STALL_BYTES: u64 = 16 * 1024;
/// Silence of an HTTP/2 connection to a webseed, while an answer is awaited, before the connection itself is asked whether
/// it still is one: all requests share it, so one that is dead would be used for the next as well.
pub const WEBSEED_PING: Duration = Duration::from_secs(5);
/// For the answer to that.
pub const WEBSEED_PONG: Duration = Duration::from_secs(5);
/// For the end of a webseed's body after its last byte that matters: it costs a connection, never the data.
pub const WEBSEED_BODY_END: Duration = Duration::from_millis(500);
/// For the requests of a webseed to end: they are dropped at their next await.
pub const WEBSEED_END: Duration = Duration::from_secs(5);
/// For a part of the start to notice that a signal came; one that blocks is left to itself.
pub const START_LEFT: Duration = Duration::from_millis(250);
/// The overall deadline of the shutdown sequence, unless `--shutdown-timeout` says otherwise.
pub const SHUTDOWN: Duration = Duration::from_secs(10);
/// For a removed torrent to record what is complete, and for what is just being written of it: at most 64 MiB are to be
/// synced. Who is slower has a disk that hangs.
pub const REMOVE_RECORD: Duration = Duration::from_secs(10);
/// For the tasks of a removed torrent to end: they are dropped at their next await.
pub const REMOVE_TASKS: Duration = Duration::from_secs(5);
/// For the disk to say whether a file that is opened can be lent to the kernel: who opens a file can't be killed. A disk
/// that is slower has it read through the mount.
pub const OPEN: Duration = Duration::from_millis(250);
/// Since the last block of a piece that a read waits for; see `--read-timeout`.
pub const READ: Duration = Duration::from_secs(300);
/// Until a magnet's metadata counts as late; see `--metadata-timeout`.
pub const METADATA: Duration = Duration::from_secs(60);
/// To resolve a tracker's or bootstrap node's name: the usual resolver asks a server again after 5 s.
pub const RESOLVE: Duration = Duration::from_secs(10);
/// For the other address family of a UDP tracker once one has answered: the answer is here, so no long wait.
pub const TRACKER_UDP_OTHER: Duration = Duration::from_secs(6);
/// A UDP tracker's connection id may be used this long (BEP 15: a minute).
pub const TRACKER_UDP_CONNECTION: Duration = Duration::from_secs(60);
/// Without any node known for this long after its start, the DHT counts as unreachable: three rounds of 2 s of
/// asking the bootstrap nodes, with room.
pub const DHT_BOOTSTRAP: Duration = Duration::from_secs(15);
/// Between two times that the DHT's nodes are kept for another start: they change slowly, and the end keeps them, too.
pub const DHT_SAVE: Duration = Duration::from_secs(10 * 60);
/// For the system to take a packet for the local network: what isn't said now is said in some minutes.
pub const LSD_SEND: Duration = Duration::from_millis(100);
/// For the ends of uTP connections to be known on the other side, of the shutdown's share: a round trip.
pub const UTP_END: Duration = Duration::from_millis(500);
/// For one HTTP exchange with a router, its connection included: the slowest of them take seconds to change their tables,
/// and nobody waits for it.
pub const MAPPING_HTTP: Duration = Duration::from_secs(8);
/// For the router to take its mappings back at shutdown. One that is left behind ends within the hour; that of a router
/// that knows no end stays.
pub const MAPPING_REMOVE: Duration = Duration::from_secs(2);
/// To connect to the proxy: it is meant to be near, or at least well connected.
pub const PROXY_CONNECT: Duration = Duration::from_secs(10);
/// For the proxy to do what it was asked: it looks a name up and dials, and gives up later than we would.
pub const PROXY_ANSWER: Duration = Duration::from_secs(20);
/// For a `.torrent` behind a URL: connect, TLS and body.
pub const TORRENT_URL: Duration = Duration::from_secs(60);
/// For the disk to tell what of the torrents is here, before the mount shows without it.
pub const SETTLE: Duration = Duration::from_secs(10);
/// For a line of a request at the control socket, from its first byte: the largest takes a second.
pub const CONTROL_LINE: Duration = Duration::from_secs(30);
/// Silence between requests after which a connection of the control socket is closed: who watches asks each second.
pub const CONTROL_IDLE: Duration = Duration::from_secs(60);
/// For a client to take an answer of the control socket: it is another process of this machine, and asked for it.
pub const CONTROL_WRITE: Duration = Duration::from_secs(10);
/// For a running mount to answer what takes no network and next to no disk: well under a second, but machines are busy.
pub const CONTROL_ANSWER: Duration = Duration::from_secs(10);
/// For a mount to say which one it is: that waits for nothing.
pub const CONTROL_WHO: Duration = Duration::from_secs(3);
/// For a torrent to be added to a running mount: [`TORRENT_URL`], [`RESOLVE`] and [`SETTLE`], with room.
pub const CONTROL_ADD: Duration = Duration::from_secs(90);
/// For a torrent to be removed from a running mount: many files may have to go.
pub const CONTROL_REMOVE: Duration = Duration::from_secs(60);
/// For what was added to show in the tree: a rebuild takes milliseconds.
pub const CONTROL_SHOWN: Duration = Duration::from_secs(2);
/// For the disk to tell what is free on it, before a status goes without.
pub const CONTROL_SPACE: Duration = Duration::from_secs(1);
/// What a client gives a process that ends, beyond the shutdown's own deadline: for what comes after the sequence.
pub const CONTROL_END: Duration = Duration::from_secs(5);
/// For the runtime to end after the shutdown sequence: nothing is left to run then.
pub const RUNTIME_END: Duration = Duration::from_millis(500);
/// What a second signal still gives to detaching the mount.
pub const FORCED: Duration = Duration::from_millis(500);
/// For the last lines to be written to the terminal. It takes them at once, unless it is stopped, and then the
/// user has other worries than the last log lines.
pub const TERMINAL: Duration = Duration::from_secs(1);
/// Pause after a webseed's server failed, first; doubled at each failure up to [`WEBSEED_RETRY_MAX`]. A reader waits, and a
/// server that is started anew is there within seconds.
pub const WEBSEED_RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause before a webseed's server is asked again, unless it asks for more itself.
pub const WEBSEED_RETRY_MAX: Duration = Duration::from_secs(60);
/// The longest pause that a webseed's server can ask for (`Retry-After`).
pub const WEBSEED_RETRY_LONGEST: Duration = Duration::from_secs(24 * 3600);
