//! Flags that several commands have: of the client behind them, and of the log.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use crate::config::{self, ClientConfig, HostPort, InitialCheck, Listen, LogFormat};
use crate::net::proxy::Proxy;
use crate::peer::mse::Policy;
use crate::storage::StorageKind;
use crate::torrent::background::Prefetch;
use crate::torrent::goal::{Goals, Ratio};

/// What every command that fetches takes. The headings keep its parts apart in the help text.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// How data is kept
    #[arg(long, value_name = "KIND", default_value = "file", help_heading = "Storage")]
    storage: StorageArg,
    /// Keep no more data than this, of all torrents together: the pieces that were read longest ago go first, and
    /// are fetched again when they are wanted; 16M at least [default: no bound; 256M in memory]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_cache_size, help_heading = "Storage")]
    cache_size: Option<u64>,
    /// Leave so much of the cache's disk free, in the same way; 0 for nothing [default: 5 % of it, but 1 GiB at
    /// least and a quarter of it at most]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size, help_heading = "Storage")]
    min_free_space: Option<u64>,
    /// What to check at the start of the data that is in the cache already
    #[arg(long, value_name = "WHAT", default_value = "none", help_heading = "Storage")]
    initial_check: InitialCheckArg,
    /// Whether to believe what an earlier run recorded as complete
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, help_heading = "Storage")]
    trust_resume: bool,

    /// Where peers reach us [default: port 6881 or the next free one; :0 takes any]; an address is where all
    /// connections come from, too
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = config::parse_listen, help_heading = "Network")]
    listen: Option<Listen>,
    /// Use this network interface and no other, as it is named by `ip link`; names are looked up as the system does
    #[arg(long, value_name = "NAME", value_parser = config::parse_interface, help_heading = "Network")]
    interface: Option<String>,
    /// Go through this proxy, and never past it: socks5://[USER:PASSWORD@]HOST:PORT or http://…; names are looked up by it,
    /// and what it can't carry is off, as status tells. Others of this machine see a password here; --config hides it
    #[arg(long, value_name = "URL", value_parser = config::parse_proxy, help_heading = "Network")]
    proxy: Option<Proxy>,
    /// A peer to try; may be given several times
    #[arg(long = "peer", value_name = "HOST:PORT", value_parser = config::parse_host_port, help_heading = "Network")]
    peers: Vec<HostPort>,
    /// A tracker to ask as well; may be given several times
    #[arg(long = "tracker", value_name = "URL", value_parser = config::parse_tracker, help_heading = "Network")]
    trackers: Vec<String>,
    /// Ask no tracker
    #[arg(long, help_heading = "Network")]
    no_trackers: bool,
    /// Ask trackers and webseeds in the local network also when a magnet link, or a .torrent file from the web, names
    /// them; a local .torrent file and --tracker always may
    #[arg(long, help_heading = "Network")]
    allow_private_hosts: bool,
    /// Don't use the distributed hash table
    #[arg(long, help_heading = "Network")]
    no_dht: bool,
    /// Where to enter the distributed hash table, in place of the well-known nodes; may be given several times
    #[arg(long, value_name = "HOST:PORT", value_parser = config::parse_host_port, help_heading = "Network")]
    dht_bootstrap: Vec<HostPort>,
    /// Don't exchange peers with peers
    #[arg(long, help_heading = "Network")]
    no_pex: bool,
    /// Whether connections to peers are encrypted: it gets past lines that hold BitTorrent back, and keeps no secret
    #[arg(long, value_name = "HOW", default_value = "prefer", help_heading = "Network")]
    encryption: EncryptionArg,
    /// Don't look for peers in the local network; off as well with --listen at a loopback address
    #[arg(long, help_heading = "Network")]
    no_lsd: bool,
    /// Reach peers over TCP alone, and never over uTP, BitTorrent's transport over UDP
    #[arg(long, help_heading = "Network")]
    no_utp: bool,
    /// Don't ask the router to let peers through; off as well with --listen at a loopback address
    #[arg(long, help_heading = "Network")]
    no_port_mapping: bool,
    /// Connected peers of one torrent at most
    #[arg(long, value_name = "N", default_value_t = config::MAX_PEERS, help_heading = "Network",
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    max_peers: u32,
    /// Connections to peers at most, all torrents together
    #[arg(long, value_name = "N", default_value_t = config::MAX_CONNECTIONS, help_heading = "Network",
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    max_connections: u32,
    /// Download no faster than this, all torrents together
    #[arg(long, value_name = "RATE", value_parser = config::parse_rate, help_heading = "Network")]
    download_limit: Option<u64>,
    /// Upload no faster than this, all torrents together
    #[arg(long, value_name = "RATE", value_parser = config::parse_rate, help_heading = "Network")]
    upload_limit: Option<u64>,
    /// Leave peers of the local network out of both limits
    #[arg(long, help_heading = "Network")]
    unlimited_local_peers: bool,
    /// Never speak to peers at the addresses in this list: eMule's ipfilter.dat, PeerGuardian's .p2p, or an address, a range or
    /// a network on each line
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    ip_filter: Option<PathBuf>,
    /// Upload nothing
    #[arg(long, help_heading = "Network")]
    no_upload: bool,
    /// Send no more of a torrent when so many times has been sent what was received of it, or is here; counted over all
    /// runs with this option
    #[arg(long, value_name = "RATIO", value_parser = config::parse_ratio, help_heading = "Network")]
    seed_ratio: Option<Ratio>,
    /// Send no more of a torrent when something of it was here for so long while nothing was fetched; counted over all
    /// runs with this option
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration_nonzero, help_heading = "Network")]
    seed_time: Option<Duration>,

    /// After this long without a block of what it waits for, a read fails; 0 waits for ever
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = config::parse_duration, help_heading = "Time")]
    read_timeout: Duration,
    /// How long a magnet's metadata may take: then a mount counts as ready without it, and cat fails
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = config::parse_duration, help_heading = "Time")]
    metadata_timeout: Duration,
    /// How long unmounting and stopping may take in all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::parse_duration_nonzero, help_heading = "Time")]
    shutdown_timeout: Duration,
}

impl ClientArgs {
    /// The settings that they stand for. What is prefetched is a matter of mounts, and none of theirs.
    pub(super) fn config(self, logging: &LoggingArgs) -> ClientConfig {
        ClientConfig {
            cache_dir: self.place.cache_dir,
            storage: match self.storage {
                StorageArg::File => StorageKind::File,
                StorageArg::Mmap => StorageKind::Mmap,
                StorageArg::Memory => StorageKind::Memory,
            },
            cache_size: self.cache_size,
            min_free: self.min_free_space,
            listen: self.listen.unwrap_or_default(),
            interface: self.interface,
            proxy: self.proxy,
            peers: self.peers,
            trackers: self.trackers,
            use_trackers: !self.no_trackers,
            allow_private_hosts: self.allow_private_hosts,
            use_dht: !self.no_dht,
            use_pex: !self.no_pex,
            encryption: match self.encryption {
                EncryptionArg::Prefer => Policy::Prefer,
                EncryptionArg::Require => Policy::Require,
                EncryptionArg::Off => Policy::Off,
            },
            use_lsd: !self.no_lsd,
            use_utp: !self.no_utp,
            use_port_mapping: !self.no_port_mapping,
            dht_bootstrap: self.dht_bootstrap,
            read_timeout: (!self.read_timeout.is_zero()).then_some(self.read_timeout),
            metadata_timeout: self.metadata_timeout,
            max_peers: self.max_peers,
            max_connections: self.max_connections,
            upload_limit: self.upload_limit,
            download_limit: self.download_limit,
            unlimited_local_peers: self.unlimited_local_peers,
            ip_filter: self.ip_filter,
            upload: !self.no_upload,
            goals: Goals { ratio: self.seed_ratio, time: self.seed_time },
            prefetch: Prefetch::None,
            shutdown_timeout: self.shutdown_timeout,
            initial_check: match self.initial_check {
                InitialCheckArg::None => InitialCheck::None,
                InitialCheckArg::Full => InitialCheck::Full,
            },
            trust_resume: self.trust_resume,
            verbosity: logging.verbosity(),
            log_format: logging.format(),
        }
    }
}

/// Which cache folder.
#[derive(Debug, Args)]
pub(super) struct PlaceArgs {
    /// Where data and resume files are kept [default: /var/cache/torrentfs for root, otherwise
    /// ~/.cache/torrentfs]
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    pub(super) cache_dir: Option<PathBuf>,
}

/// How much is logged, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LoggingArgs {
    /// Log more; -vv and -vvv still more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Log warnings and errors only; -qq errors only
    #[arg(short, long, action = ArgAction::Count)]
    quiet: u8,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormatArg,
}

impl LoggingArgs {
    /// See [`ClientConfig::verbosity`].
    pub(super) fn verbosity(&self) -> i8 {
        let count = |n: u8| i8::try_from(n).unwrap_or(i8::MAX);
        count(self.verbose).saturating_sub(count(self.quiet))
    }

    /// See [`ClientConfig::log_format`].
    pub(super) fn format(&self) -> LogFormat {
        match self.log_format {
            LogFormatArg::Text => LogFormat::Text,
            LogFormatArg::Json => LogFormat::Json,
        }
    }
}

// The settings themselves know nothing of clap, so these stand for them on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum InitialCheckArg {
    /// Nothing: what is unknown is checked when it is wanted
    None,
    /// Everything, in the background
    Full,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StorageArg {
    /// Sparse files
    File,
    /// Sparse files, mapped into memory
    Mmap,
    /// Memory alone: nothing is there after the end
    Memory,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EncryptionArg {
    /// Try it first, and go on without where a peer has none; of peers that take both, only the handshake is hidden
    Prefer,
    /// Encrypt everything, and have no other peers
    Require,
    /// Neither make nor take encrypted connections
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormatArg {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
