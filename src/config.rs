//! The settings, typed and checked, and the parsers of the values that stand for them.
//!
//! [`Config`] (a mount) and [`CatConfig`] are what the rest of the program sees, with [`ClientConfig`] in both;
//! [`VerifyConfig`] and [`CacheConfig`] are of commands that have no client. How they are written on a command line
//! is the business of [`crate::cli`]. Everything here is pure: text in, a value or a [`ValueError`] out. Nothing is
//! looked up, no name is resolved and no file is touched, so that a bad value is refused before anything has begun.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::metainfo::Source;
use crate::metainfo::source::SourceError;
use crate::net::connections::OPEN_MAX;
use crate::net::proxy::Proxy;
use crate::peer::mse::Policy;
use crate::storage::StorageKind;
use crate::sync::timeouts;
use crate::torrent::background::Prefetch;
use crate::torrent::goal::{Goals, Ratio};

/// Peers of one torrent at most, unless `--max-peers` says otherwise: more cost memory and system calls and
/// bring no rate, fewer starve rare pieces.
pub const MAX_PEERS: u32 = 80;
/// Connections of all torrents at most, unless `--max-connections` says otherwise.
pub const MAX_CONNECTIONS: u32 = OPEN_MAX as u32;
/// The least that `--cache-size` takes, in bytes. A piece is kept or dropped as a whole, and the one that is read and
/// the one that is being fetched have to fit at the same time; pieces of 4 to 8 MiB are common.
pub const CACHE_SIZE_MIN: u64 = 16 << 20;
/// What the memory store may take in bytes, unless `--cache-size` says otherwise: what every machine that plays
/// films has to spare.
pub const MEMORY_BUDGET: u64 = 256 << 20;
/// The longest duration that is accepted: ten years. `Instant + Duration` must not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The settings of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What to mount, in the order given, as it was written. [`parse_source`] reads one: what is wrong with a
    /// source is bad input, not a wrong command line.
    pub sources: Vec<OsString>,
    /// A folder whose `.torrent` and `.magnet` files are mounted as they come and go.
    pub watch: Option<PathBuf>,
    /// Where.
    pub mountpoint: PathBuf,
    /// How the client behind it is set up.
    pub client: ClientConfig,
    /// Whether other users see the mount; `None` when it wasn't said, see [`Config::allow_other`].
    pub allow_other: Option<bool>,
    /// Owner of all files shown; `None` for the user who runs the program.
    pub uid: Option<u32>,
    /// Group of all files shown; `None` for the group of the user who runs the program.
    pub gid: Option<u32>,
    /// Permission bits taken away from all files and folders shown; `None` for none beyond the write bits.
    pub umask: Option<u32>,
    /// Users for whom nothing is fetched.
    pub offline: Vec<UserRef>,
    /// Whether to go into the background when it is ready.
    pub daemon: bool,
    /// Where log lines go instead of stderr: they are added to this file.
    pub log_file: Option<PathBuf>,
    /// What `mount` and `df` show as the source; `None` for the program's name.
    pub fs_name: Option<String>,
    /// Options of mounts that are the kernel's business, one each, such as `noexec`.
    pub mount_options: Vec<String>,
    /// The mount namespace to mount in, as a file of `/proc`; `None` for the one that this runs in.
    pub namespace: Option<PathBuf>,
}

impl Config {
    /// The defaults, for these sources at this place.
    pub fn new(sources: Vec<OsString>, mountpoint: PathBuf) -> Self {
        Self {
            sources,
            watch: None,
            mountpoint,
            client: ClientConfig::default(),
            allow_other: None,
            uid: None,
            gid: None,
            umask: None,
            offline: Vec::new(),
            daemon: false,
            log_file: None,
            fs_name: None,
            mount_options: Vec::new(),
            namespace: None,
        }
    }

    /// The same with all paths as seen from `folder`, so that they mean the same from another one.
    pub fn rooted(mut self, folder: &Path) -> Self {
        let rooted = |path: &mut PathBuf| *path = folder.join(&path);
        rooted(&mut self.mountpoint);
        self.client.cache_dir.iter_mut().for_each(rooted);
        self.client.ip_filter.iter_mut().for_each(rooted);
        self.log_file.iter_mut().for_each(rooted);
        self.watch.iter_mut().for_each(rooted);
        for given in &mut self.sources {
            if let Ok(Source::File(path)) = parse_source(given) {
                *given = folder.join(path).into();
            }
        }
        self
    }

    /// Whether other users see the mount: as said, and otherwise only what root mounts.
    pub fn allow_other(&self, is_root: bool) -> bool {
        self.allow_other.unwrap_or(is_root)
    }
}

/// The settings of `torrentfs cat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatConfig {
    /// The torrent, as it was written; see [`parse_source`].
    pub source: OsString,
    /// The file, as shown in a mount; `None` for the torrent's only one.
    pub path: Option<OsString>,
    /// Bytes of the file that are left out at its beginning. May lie beyond its end: then nothing is printed.
    pub offset: u64,
    /// Bytes that are printed at most; `None` for all up to the end.
    pub length: Option<u64>,
    /// How the client is set up.
    pub client: ClientConfig,
}

/// The settings of a client and of the program around it: what commands that fetch have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Where data and resume files are kept; `None` for the default of who runs this.
    pub cache_dir: Option<PathBuf>,
    /// Where peers reach us.
    pub listen: Listen,
    /// The interface that nothing but which is used, by its name. Checked by [`parse_interface`].
    pub interface: Option<String>,
    /// Through which all goes, and nothing past it.
    pub proxy: Option<Proxy>,
    /// Peers to try, in addition to those that are found.
    pub peers: Vec<HostPort>,
    /// Trackers to ask, in addition to those that the torrents name. Checked by [`parse_tracker`].
    pub trackers: Vec<String>,
    /// Whether to ask trackers at all.
    pub use_trackers: bool,
    /// Whether magnet links and `.torrent` files from the web may name trackers and webseeds in the local network, as
    /// local `.torrent` files may.
    pub allow_private_hosts: bool,
    /// Whether to use the DHT (BEP 5), for torrents that aren't private.
    pub use_dht: bool,
    /// Whether to exchange peers with peers (BEP 11), for torrents that aren't private.
    pub use_pex: bool,
    /// Whether connections to peers are encrypted.
    pub encryption: Policy,
    /// Whether to look for peers in the local network (BEP 14).
    pub use_lsd: bool,
    /// Whether to use uTP (BEP 29).
    pub use_utp: bool,
    /// Whether to ask the router to forward our port.
    pub use_port_mapping: bool,
    /// Where to enter the DHT; empty for the well-known nodes.
    pub dht_bootstrap: Vec<HostPort>,
    /// Since the last block of a piece that a read waits for; `None` waits for ever.
    pub read_timeout: Option<Duration>,
    /// How long the metadata of a source may take: until a mount counts as ready without it, and `cat` fails.
    pub metadata_timeout: Duration,
    /// Connected peers of one torrent at most; at least 1.
    pub max_peers: u32,
    /// Connections of all torrents together at most; at least 1.
    pub max_connections: u32,
    /// Bytes a second that are uploaded at most, all torrents together; `None` for no limit, never 0.
    pub upload_limit: Option<u64>,
    /// Bytes a second that are downloaded at most, all torrents together; `None` for no limit, never 0.
    pub download_limit: Option<u64>,
    /// Whether the limits leave out peers of the local network.
    pub unlimited_local_peers: bool,
    /// A list of addresses whose peers are never spoken to.
    pub ip_filter: Option<PathBuf>,
    /// Whether peers may fetch from us.
    pub upload: bool,
    /// When enough was given back of a torrent.
    pub goals: Goals,
    /// What is fetched beyond what is read.
    pub prefetch: Prefetch,
    /// The one deadline that all phases of the shutdown share; more than 0.
    pub shutdown_timeout: Duration,
    /// Where data is kept.
    pub storage: StorageKind,
    /// Bytes of data that all torrents together keep at most; `None` for no bound ([`ClientConfig::cache_size`]).
    /// At least [`CACHE_SIZE_MIN`].
    pub cache_size: Option<u64>,
    /// Bytes that are to stay free on the disk of the cache; `None` for a share of its size, 0 for none.
    pub min_free: Option<u64>,
    /// What to check of the data that is in the cache already.
    pub initial_check: InitialCheck,
    /// Whether what an earlier run recorded as complete is believed. Independent of `initial_check`.
    pub trust_resume: bool,
    /// How much is logged: 0 as usual, more with each `-v`, less with each `-q`.
    pub verbosity: i8,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            cache_dir: None,
            listen: Listen::default(),
            interface: None,
            proxy: None,
            peers: Vec::new(),
            trackers: Vec::new(),
            use_trackers: true,
            allow_private_hosts: false,
            use_dht: true,
            use_pex: true,
            encryption: Policy::Prefer,
            use_lsd: true,
            use_utp: true,
            use_port_mapping: true,
            dht_bootstrap: Vec::new(),
            read_timeout: Some(timeouts::READ),
            metadata_timeout: timeouts::METADATA,
            max_peers: MAX_PEERS,
            max_connections: MAX_CONNECTIONS,
            upload_limit: None,
            download_limit: None,
            unlimited_local_peers: false,
            ip_filter: None,
            upload: true,
            goals: Goals::default(),
            prefetch: Prefetch::None,
            shutdown_timeout: timeouts::SHUTDOWN,
            storage: StorageKind::File,
            cache_size: None,
            min_free: None,
            initial_check: InitialCheck::None,
            trust_resume: true,
            verbosity: 0,
            log_format: LogFormat::Text,
        }
    }
}

impl ClientConfig {
    /// Bytes of data that are kept at most: as said, and otherwise bounded in memory only.
    pub fn cache_size(&self) -> Option<u64> {
        match self.storage {
            StorageKind::Memory => self.cache_size.or(Some(MEMORY_BUDGET)),
            StorageKind::File | StorageKind::Mmap => self.cache_size,
        }
    }
}

/// The settings of `torrentfs verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyConfig {
    /// The torrent, as it was written; see [`parse_source`].
    pub source: OsString,
    /// The folder of another client's data that is to be used in place; `None` for what is in the cache.
    pub data: Option<PathBuf>,
    /// Whether nothing is to be written below `data`.
    pub read_only: bool,
    /// As [`ClientConfig::cache_dir`].
    pub cache_dir: Option<PathBuf>,
    /// Whether the result is printed as one JSON object, instead of for people.
    pub json: bool,
    /// As [`ClientConfig::verbosity`].
    pub verbosity: i8,
    /// As [`ClientConfig::log_format`].
    pub log_format: LogFormat,
}

/// The settings of `torrentfs cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// As [`ClientConfig::cache_dir`].
    pub cache_dir: Option<PathBuf>,
    /// What to do with it.
    pub action: CacheAction,
}

/// What to do with a cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheAction {
    /// Say what lies in it.
    List {
        /// As one JSON object, instead of for people.
        json: bool,
    },
    /// Take torrents out, the least recently used first. At least one of the two bounds is there.
    Prune {
        /// Until what is left takes so many bytes on the disk.
        to: Option<u64>,
        /// Those that weren't used for so long.
        older_than: Option<Duration>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Take these torrents out, each by its name or its info-hash.
    Remove {
        /// As they were written; not empty.
        names: Vec<String>,
        /// Only say what would be done.
        dry_run: bool,
    },
}

/// Where peers reach us: an address of this machine, and a port for TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listen {
    /// `None` for all addresses, IPv4 and IPv6.
    pub addr: Option<IpAddr>,
    /// `None` for 6881 or the next free one; 0 for any that is free.
    pub port: Option<u16>,
}

/// A host, by name or by address, and a port that isn't 0. Written as `host:port`, or `[address]:port` in IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A user of the system. A name is looked up when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRef {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// What to check at the start of the data that is in the cache already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InitialCheck {
    /// Nothing: what is unknown is settled when it is wanted.
    #[default]
    None,
    /// Everything, in the background, while what is complete is served.
    Full,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a value was refused, in a sentence that says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(why.into()))
}

/// Reads a SOURCE: a magnet link, a `.torrent` file, its URL, or an info-hash. What isn't UTF-8 is a path.
///
/// # Errors
/// As [`Source::parse`].
pub fn parse_source(text: &OsStr) -> Result<Source, SourceError> {
    match text.to_str() {
        Some(text) => Source::parse(text),
        None => Ok(Source::File(text.into())),
    }
}

/// Splits `1.5GiB` into its number, as a fraction (digits over a power of ten), and its unit.
fn split_number(text: &str) -> Option<(u128, u128, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // 20 digits hold any 64-bit number, and 9 more any fraction that makes sense: no overflow in 128 bits.
    let digits =
        |s: &str, most: usize| !s.is_empty() && s.len() <= most && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 20) || !digits(fraction, 9) {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let value = whole.parse::<u128>().ok()? * scale + fraction.parse::<u128>().ok()?;
    Some((value, scale, unit.trim_start()))
}

/// Reads a SIZE in bytes: `K`, `M`, `G`, `T`, `KiB`… are 1024-based, `KB`, `MB`… 1000-based; a number alone, or
/// with `B`, is bytes. Upper and lower case are the same; a fraction is rounded down to a byte.
///
/// # Errors
/// What isn't a size, or doesn't fit in 64 bits.
pub fn parse_size(text: &str) -> Result<u64, ValueError> {
    const FORM: &str =
        "a size is a number with K, M, G or T (times 1024) or KB, MB, GB or TB (times 1000), as in 512M";
    let Some((value, scale, unit)) = split_number(text.trim()) else { return refuse(FORM) };
    let unit = unit.to_ascii_lowercase();
    let factor: u128 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return refuse(FORM),
    };
    match value.checked_mul(factor).map(|v| u64::try_from(v / scale)) {
        Some(Ok(bytes)) => Ok(bytes),
        _ => refuse("that is more than 64 bits of bytes"),
    }
}

/// Reads the SIZE that bounds the data kept.
///
/// # Errors
/// As [`parse_size`], and what is less than [`CACHE_SIZE_MIN`].
pub fn parse_cache_size(text: &str) -> Result<u64, ValueError> {
    match parse_size(text)? {
        size if size < CACHE_SIZE_MIN => refuse(
            "less than 16M has no room for a piece that is read and one that is fetched; leave the option out for no bound",
        ),
        size => Ok(size),
    }
}

/// Reads a RATE in bytes a second: as a size, with `/s` after it or not.
///
/// # Errors
/// What isn't a rate, and 0: nobody could tell "no limit" from "nothing at all".
pub fn parse_rate(text: &str) -> Result<u64, ValueError> {
    let text = text.trim();
    let size = text.strip_suffix("/s").or_else(|| text.strip_suffix("/S")).unwrap_or(text);
    match parse_size(size) {
        Ok(0) => refuse("a limit of 0 would stop everything; leave the option out for no limit"),
        Ok(rate) => Ok(rate),
        Err(_) => refuse(
            "a rate is bytes a second: a number with K, M or G (times 1024) or KB, MB or GB (times 1000), as in 2M",
        ),
    }
}

/// Reads a RATIO: a number with a point or without, to a thousandth.
///
/// # Errors
/// What isn't a number, 0, and more than a thousand.
pub fn parse_ratio(text: &str) -> Result<Ratio, ValueError> {
    const FORM: &str = "a ratio is a number like 2 or 1.5: so many times what was received is sent";
    let Some((value, scale, "")) = split_number(text.trim()) else { return refuse(FORM) };
    let Some(thousandths) = value.checked_mul(1000).map(|n| n / scale) else { return refuse(FORM) };
    match u32::try_from(thousandths) {
        Ok(0) => refuse("a ratio of 0 would send nothing; say --no-upload for that"),
        Ok(thousandths @ ..=1_000_000) => Ok(Ratio(thousandths)),
        _ => refuse("a ratio of more than 1000 is never reached; leave the option out to send without end"),
    }
}

/// Reads a DURATION: a number with `ms`, `s`, `m`, `h` or `d`; `0` needs no unit.
///
/// # Errors
/// What isn't a duration, or is more than ten years.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    const FORM: &str = "a duration is a number with ms, s, m, h or d, as in 500ms, 10s or 5m";
    let Some((value, scale, unit)) = split_number(text.trim()) else { return refuse(FORM) };
    let nanos: u128 = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        "d" => 24 * 3600 * 1_000_000_000,
        "" if value == 0 => 1,
        "" => return refuse(format!("a unit is missing: for seconds write {}s", text.trim())),
        _ => return refuse(FORM),
    };
    let Some(nanos) = value.checked_mul(nanos).map(|n| n / scale) else { return refuse(FORM) };
    if nanos > LONGEST.as_nanos() {
        return refuse("that is more than ten years");
    }
    Ok(Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32))
}

/// Reads a DURATION that must not be 0.
///
/// # Errors
/// As [`parse_duration`], and 0.
pub fn parse_duration_nonzero(text: &str) -> Result<Duration, ValueError> {
    match parse_duration(text)? {
        Duration::ZERO => refuse("0 would leave no time at all; say for instance 10s"),
        duration => Ok(duration),
    }
}

fn parse_port(text: &str) -> Result<u16, ValueError> {
    // `parse` alone would take "+80".
    match text.parse() {
        Ok(port) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => refuse(format!("\"{text}\" is no port: a port is a number up to 65535")),
    }
}

/// Reads `ADDR[:PORT]`: an IP address of this machine, or a port after a colon, or both. IPv6 stands in brackets
/// when a port follows.
///
/// # Errors
/// What isn't an address; names aren't looked up.
pub fn parse_listen(text: &str) -> Result<Listen, ValueError> {
    const FORM: &str = "what to listen on is an IP address, :PORT or both, as in 192.0.2.1, :6881, 192.0.2.1:6881 or [2001:db8::1]:6881";
    if let Some(port) = text.strip_prefix(':')
        && !port.contains(':')
    {
        return Ok(Listen { addr: None, port: Some(parse_port(port)?) });
    }
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Ok(Listen { addr: Some(addr), port: None });
    }
    if let Some(inner) = text.strip_prefix('[') {
        let Some((addr, rest)) = inner.split_once(']') else { return refuse(FORM) };
        let Ok(addr) = addr.parse() else { return refuse(FORM) };
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if rest.is_empty() => None,
            None => return refuse(FORM),
        };
        return Ok(Listen { addr: Some(IpAddr::V6(addr)), port });
    }
    match text.rsplit_once(':').map(|(addr, port)| (addr.parse(), port)) {
        Some((Ok(addr), port)) => Ok(Listen { addr: Some(IpAddr::V4(addr)), port: Some(parse_port(port)?) }),
        _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            refuse(format!("for a port alone write :{text}"))
        }
        _ => refuse(FORM),
    }
}

/// Reads a proxy.
///
/// # Errors
/// It is none of those that are spoken to.
pub fn parse_proxy(text: &str) -> Result<Proxy, ValueError> {
    // Without what was given: it may hold a password.
    Proxy::parse(text).or_else(|error| refuse(error.to_string()))
}

/// Reads the name of a network interface. Whether there is one is found out when it is used.
///
/// # Errors
/// What no interface can be called.
pub fn parse_interface(text: &str) -> Result<String, ValueError> {
    let fits = (1..=15).contains(&text.len()) && !matches!(text, "." | "..");
    if fits && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':') {
        return Ok(text.to_owned());
    }
    refuse("an interface is named as ip link does, as in eth0")
}

/// Reads HOST:PORT: a name or an IP address, and a port that isn't 0. IPv6 stands in brackets.
///
/// # Errors
/// What isn't of that form; names aren't looked up.
pub fn parse_host_port(text: &str) -> Result<HostPort, ValueError> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        match inner.split_once("]:") {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            _ => return refuse("an IPv6 address and a port are written as [2001:db8::1]:6881"),
        }
    } else {
        match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return refuse("an IPv6 address and a port are written as [2001:db8::1]:6881");
            }
            Some(parts) => parts,
            None => return refuse("the port is missing: write it as HOST:PORT, as in 192.0.2.1:6881"),
        }
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@' | '[' | ']');
    if host.is_empty() || host.contains(odd) {
        return refuse("the host is missing or malformed: write it as HOST:PORT, as in 192.0.2.1:6881");
    }
    match parse_port(port)? {
        0 => refuse("port 0 can't be connected to"),
        port => Ok(HostPort { host: host.into(), port }),
    }
}

/// Reads the URL of a tracker: `http`, `https` (BEP 3) or `udp` (BEP 15).
///
/// # Errors
/// Another scheme, or no host.
pub fn parse_tracker(text: &str) -> Result<String, ValueError> {
    const FORM: &str = "a tracker is an http, https or udp URL, as in udp://tracker.example:6969/announce";
    let Some((scheme, rest)) = text.split_once("://") else { return refuse(FORM) };
    let udp = scheme.eq_ignore_ascii_case("udp");
    if !(udp || scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")) {
        return refuse(FORM);
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return refuse(FORM);
    }
    if udp && let Err(why) = parse_host_port(host) {
        return refuse(format!("a udp tracker needs a host and a port: {why}"));
    }
    Ok(text.into())
}

/// Reads a user: a number, or a name as in `/etc/passwd`. Digits alone are a number.
///
/// # Errors
/// A number that no user can have, and what can't be a name. Names aren't looked up.
pub fn parse_user(text: &str) -> Result<UserRef, ValueError> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            // The last one means "nobody in particular" to the system.
            Ok(id) if id != u32::MAX => Ok(UserRef::Id(id)),
            _ => refuse("a user's number is less than 4294967295"),
        };
    }
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ',');
    if text.is_empty() || text.starts_with('-') || text.contains(odd) {
        return refuse("a user is a number or a name, as in 34 or backup");
    }
    Ok(UserRef::Name(text.into()))
}

/// Reads a umask: up to three octal digits, with a 0 before them or not.
///
/// # Errors
/// What isn't octal, or is more than 0777.
pub fn parse_umask(text: &str) -> Result<u32, ValueError> {
    match u32::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(mask),
        _ => refuse("a umask is an octal number up to 777, as in 022"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn sizes() {
        let rows: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("1", Some(1)),
            ("100B", Some(100)),
            ("1K", Some(1024)),
            ("1k", Some(1024)),
            ("1KiB", Some(1024)),
            ("1KB", Some(1000)),
            ("3 MiB", Some(3 << 20)),
            ("2MB", Some(2_000_000)),
            ("1.5G", Some(3 << 29)),
            ("0.0001K", Some(0)),
            ("1T", Some(1 << 40)),
            ("7TB", Some(7_000_000_000_000)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("16777216T", None),
            ("99999999999999999999T", None),
            ("", None),
            ("K", None),
            ("-1", None),
            ("+1", None),
            ("1X", None),
            ("1.G", None),
            (".5G", None),
            ("1.2.3", None),
            ("1e3", None),
            ("0x10", None),
            ("٣", None),
            ("1.0000000001", None),
            ("000000000000000000000001", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_size(text).ok(), *want, "{text:?}");
        }
    }

    #[test]
    fn bounds_of_the_cache() {
        let rows: &[(&str, Result<u64, &str>)] = &[
            ("16M", Ok(16 << 20)),
            ("1.5GiB", Ok(3 << 29)),
            ("16MB", Err("no room for a piece")),
            ("0", Err("leave the option out for no bound")),
            ("16777215", Err("less than 16M")),
            ("much", Err("a size is a number")),
        ];
        for (text, want) in rows {
            match (parse_cache_size(text), want) {
                (Ok(size), Ok(want)) => assert_eq!(size, *want, "{text}"),
                (Err(why), Err(want)) => assert!(why.to_string().contains(want), "{text}: {why}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        let kept = |storage, cache_size| ClientConfig { storage, cache_size, ..ClientConfig::default() };
        let rows = [
            (StorageKind::File, None, None),
            (StorageKind::Mmap, None, None),
            (StorageKind::Memory, None, Some(MEMORY_BUDGET)),
            (StorageKind::File, Some(1 << 30), Some(1 << 30)),
            (StorageKind::Memory, Some(1 << 30), Some(1 << 30)),
        ];
        for (storage, said, want) in rows {
            assert_eq!(kept(storage, said).cache_size(), want, "{storage:?} {said:?}");
        }
    }

    #[test]
    fn rates() {
        let rows: &[(&str, Option<u64>)] = &[
            ("2M", Some(2 << 20)),
            ("2M/s", Some(2 << 20)),
            ("500KB/s", Some(500_000)),
            ("1", Some(1)),
            ("0", None),
            ("0/s", None),
            ("/s", None),
            ("2M/h", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_rate(text).ok(), *want, "{text:?}");
        }
        assert!(parse_rate("0").unwrap_err().to_string().contains("no limit"));
    }

    #[test]
    fn ratios() {
        for (text, want) in [
            ("2", Some(2000)),
            (" 1.5 ", Some(1500)),
            ("0.0014", Some(1)),
            ("1000", Some(1_000_000)),
            ("0", None),
            ("0.0001", None),
            ("1001", None),
            ("-1", None),
            ("2x", None),
            ("", None),
        ] {
            assert_eq!(parse_ratio(text).ok(), want.map(Ratio), "{text:?}");
        }
        assert!(parse_ratio("0").unwrap_err().to_string().contains("--no-upload"));
    }

    #[test]
    fn durations() {
        let rows: &[(&str, Option<u64>)] = &[
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("2d", Some(172_800_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1500)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("10", None),
            ("", None),
            ("s", None),
            ("-5s", None),
            ("5 weeks", None),
            ("9999999999h", None),
            ("99999999999999999999d", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_duration(text).ok(), want.map(Duration::from_millis), "{text:?}");
        }
        assert_eq!(parse_duration("10").unwrap_err().to_string(), "a unit is missing: for seconds write 10s");
        assert!(parse_duration_nonzero("0").is_err());
        assert!(parse_duration_nonzero("0.0s").is_err());
        assert_eq!(parse_duration_nonzero("1s"), Ok(Duration::from_secs(1)));
        // The longest one must not overflow the clock.
        assert!(std::time::Instant::now().checked_add(LONGEST).is_some());
    }

    #[test]
    fn listens() {
        let ip = |s: &str| Some(s.parse::<IpAddr>().unwrap());
        let at = |addr, port| Some(Listen { addr, port });
        let rows: &[(&str, Option<Listen>)] = &[
            (":0", at(None, Some(0))),
            (":6881", at(None, Some(6881))),
            ("127.0.0.1", at(ip("127.0.0.1"), None)),
            ("127.0.0.1:0", at(ip("127.0.0.1"), Some(0))),
            ("::", at(ip("::"), None)),
            ("::1", at(ip("::1"), None)),
            ("[::1]", at(ip("::1"), None)),
            ("[::1]:7000", at(ip("::1"), Some(7000))),
            ("", None),
            (":", None),
            ("6881", None),
            ("[::1", None),
            ("[::1]7000", None),
            ("[127.0.0.1]:1", None),
            ("localhost:1", None),
            ("127.0.0.1:65536", None),
            ("127.0.0.1:+1", None),
            ("1.2.3.4:5:6", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_listen(text).ok(), *want, "{text:?}");
        }
        assert_eq!(parse_listen("6881").unwrap_err().to_string(), "for a port alone write :6881");
    }

    #[test]
    fn interfaces() {
        for good in ["lo", "eth0", "enp3s0.100", "wg-home", "a23456789012345"] {
            assert_eq!(parse_interface(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", "a b", "a/b", "eth0:1", "a234567890123456", "ä", "a\n"] {
            assert!(parse_interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        let rows: &[(&str, Option<(&str, u16)>)] = &[
            ("127.0.0.1:6881", Some(("127.0.0.1", 6881))),
            ("seed.example:80", Some(("seed.example", 80))),
            ("[::1]:6881", Some(("::1", 6881))),
            ("::1:6881", None),
            ("[::1]", None),
            ("[zz]:1", None),
            ("localhost", None),
            (":6881", None),
            ("a:0", None),
            ("a:99999", None),
            ("a:", None),
            ("a b:1", None),
            ("http://a:1", None),
            ("", None),
        ];
        for (text, want) in rows {
            let got = parse_host_port(text);
            assert_eq!(got.as_ref().ok().map(|h| (h.host.as_str(), h.port)), *want, "{text:?}");
            if let Ok(host_port) = got {
                assert_eq!(host_port.to_string(), *text, "written as it was read");
            }
        }
    }

    #[test]
    fn trackers() {
        let rows: &[(&str, bool)] = &[
            ("http://t.example/announce", true),
            ("HTTPS://t.example:8443/a?b=c", true),
            ("udp://127.0.0.1:6969", true),
            ("udp://[::1]:6969/announce", true),
            ("udp://t.example/announce", false),
            ("wss://t.example", false),
            ("http://", false),
            ("http:///announce", false),
            ("t.example:80", false),
            ("http://t.example/a b", false),
        ];
        for (text, good) in rows {
            assert_eq!(parse_tracker(text).is_ok(), *good, "{text:?}");
        }
    }

    #[test]
    fn umasks() {
        for (text, want) in [
            ("022", Some(0o22)),
            ("0", Some(0)),
            ("0777", Some(0o777)),
            ("1000", None),
            ("8", None),
            ("", None),
            ("+7", None),
        ] {
            assert_eq!(parse_umask(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn users() {
        let name = |name: &str| Some(UserRef::Name(name.into()));
        let rows = [
            ("0", Some(UserRef::Id(0))),
            ("65534", Some(UserRef::Id(65534))),
            ("4294967294", Some(UserRef::Id(u32::MAX - 1))),
            ("4294967295", None),
            ("99999999999", None),
            ("backup", name("backup")),
            ("_apt", name("_apt")),
            ("0day", name("0day")),
            ("", None),
            ("-1", None),
            ("a b", None),
            ("a:b", None),
            ("1,2", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_user(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn paths_are_rooted_and_nothing_else() {
        let magnet = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
        let sources = ["a.torrent", "/b", "../c", "http://d/e", magnet].map(OsString::from);
        let mut config = Config::new(sources.into(), "m".into());
        config.client.cache_dir = Some("cache".into());
        config.log_file = Some("/var/log/x".into());
        config.watch = Some("w".into());
        config.client.ip_filter = Some("list.p2p".into());
        let rooted = config.rooted(Path::new("/home/u"));
        assert_eq!(rooted.mountpoint, Path::new("/home/u/m"));
        assert_eq!(rooted.client.cache_dir.as_deref(), Some(Path::new("/home/u/cache")));
        assert_eq!(rooted.log_file.as_deref(), Some(Path::new("/var/log/x")));
        assert_eq!(rooted.watch.as_deref(), Some(Path::new("/home/u/w")));
        assert_eq!(rooted.client.ip_filter.as_deref(), Some(Path::new("/home/u/list.p2p")));
        assert_eq!(rooted.sources, ["/home/u/a.torrent", "/b", "/home/u/../c", "http://d/e", magnet]);
    }

    #[test]
    fn a_path_need_not_be_text() {
        use std::os::unix::ffi::OsStrExt;
        let odd = OsStr::from_bytes(b"\xff.torrent");
        assert_eq!(parse_source(odd), Ok(Source::File(odd.into())));
        assert_eq!(parse_source(OsStr::new("a.torrent")), Ok(Source::File("a.torrent".into())));
        assert!(parse_source(OsStr::new("magnet:?xt=nothing")).is_err());
    }
}
