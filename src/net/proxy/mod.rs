//! Through a proxy and never past it: SOCKS5, and HTTP with CONNECT.
//!
//! Parts: [`Proxy`] is what the user said; [`Dialer`] connects through it, and opens [`Association`]s for packets
//! ([`udp`]); [`socks5`] and [`http`] are the bytes (pure).
//!
//! Who uses a proxy wants not to be seen. So a name is looked up by the proxy, and here none is but the proxy's own; a
//! proxy that fails is a failure, said in `status`, and nothing goes another way instead. What a proxy can't carry (the
//! DHT, uTP, peers that call us) is switched off where the abilities of the network are decided.
//!
//! [`Sockets`] that stand behind a proxy connect through its dialer, and do nothing else.
//!
//! Not here: HTTP trackers, webseeds and `.torrent` files. Their client speaks to proxies itself, given [`Proxy::url`].

pub mod http;
pub mod socks5;
pub mod udp;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use self::http::HttpError;
use self::socks5::{Client, Command, Progress, Refusal, Socks5Error};
pub use self::udp::Association;
use super::hosts::{self, LookupError, Reach};
use super::sockets::Sockets;
use crate::sync::timeouts::{PROXY_ANSWER, PROXY_CONNECT};

/// The longest URL of a proxy.
const MAX_URL: usize = 1024;

/// What kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// SOCKS5, which carries packets as well.
    Socks5,
    /// HTTP with CONNECT, which carries connections only.
    Http,
}

/// A user of a proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// A proxy, as the user named it. Shown without the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What kind.
    pub kind: ProxyKind,
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who we are to it.
    pub auth: Option<Auth>,
}

/// Why that names no proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is written as socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT")]
pub struct NoProxy;

impl Proxy {
    /// Reads `socks5://` (also `socks5h://`, which is what we mean anyway) or `http://`, a user's name and password if
    /// need be, with `%` for what can't stand there, host and port. A port may be left out.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, NoProxy> {
        let (scheme, rest) = text.split_once("://").ok_or(NoProxy)?;
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
            "http" => (ProxyKind::Http, 8080),
            _ => return Err(NoProxy),
        };
        if text.len() > MAX_URL {
            return Err(NoProxy);
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (auth, place) = match rest.rsplit_once('@') {
            Some((auth, place)) => (Some(auth), place),
            None => (None, rest),
        };
        let auth = auth.map(|auth| {
            let (user, password) = auth.split_once(':').unwrap_or((auth, ""));
            Some(Auth { user: unescape(user)?, password: unescape(password)? })
        });
        let auth = match auth {
            None => None,
            Some(auth) => {
                let fits = |auth: &Auth| {
                    !auth.user.is_empty() && auth.user.len() <= 255 && auth.password.len() <= 255
                };
                Some(auth.filter(fits).ok_or(NoProxy)?)
            }
        };
        // A user's name with a colon can't be told from a password in HTTP.
        if kind == ProxyKind::Http && auth.as_ref().is_some_and(|auth| auth.user.contains(':')) {
            return Err(NoProxy);
        }
        let (host, port) = host_port(place, port).ok_or(NoProxy)?;
        Ok(Self { kind, host, port, auth })
    }

    /// For an HTTP client that goes through it, and leaves names to it. Holds the password: not for logs.
    pub fn url(&self) -> String {
        let scheme = match self.kind {
            ProxyKind::Socks5 => "socks5h",
            ProxyKind::Http => "http",
        };
        let auth =
            self.auth.as_ref().map(|auth| format!("{}:{}@", escape(&auth.user), escape(&auth.password)));
        let auth = auth.unwrap_or_default();
        format!("{scheme}://{auth}{}", self.place())
    }

    /// Host and port.
    fn place(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Socks5 => "socks5",
            ProxyKind::Http => "http",
        };
        write!(f, "{scheme}://{}", self.place())
    }
}

fn host_port(text: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(fits) {
            return None;
        }
        (host, port)
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        "" => usual,
        port if is_number => port.parse().ok().filter(|port| *port != 0)?,
        _ => return None,
    };
    Some((host.to_owned(), port))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        out.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(out).ok()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whom to reach through a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// By address.
    Addr(SocketAddr),
    /// By name, which the proxy looks up, and port.
    Name(String, u16),
}

impl Target {
    /// A host as it is written: an address if it is one, else a name.
    pub fn of(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(ip) => Self::Addr(SocketAddr::new(ip, port)),
            Err(_) => Self::Name(host.to_owned(), port),
        }
    }

    /// The address, if that is how it is known.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Addr(addr) => Some(addr.ip()),
            Self::Name(..) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Why there is no connection through the proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy's own name isn't known.
    #[error("the proxy can't be found: {0}")]
    Resolve(#[from] LookupError),
    /// The proxy isn't reached.
    #[error("the proxy can't be reached: {0}")]
    Unreachable(io::Error),
    /// The proxy doesn't take a connection in time.
    #[error("the proxy can't be reached within {} s", PROXY_CONNECT.as_secs())]
    NoConnection,
    /// It took the connection and went away.
    #[error("the proxy ended the connection: {0}")]
    Lost(io::Error),
    /// It says nothing. It may be waiting for the target.
    #[error("the proxy didn't answer within {} s", PROXY_ANSWER.as_secs())]
    NoAnswer,
    /// SOCKS5 went wrong.
    #[error(transparent)]
    Socks5(#[from] Socks5Error),
    /// HTTP went wrong.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An HTTP proxy was to carry packets.
    #[error("an HTTP proxy carries no packets")]
    NoPackets,
}

impl ProxyError {
    /// Whether it is about the target, or may be; otherwise it is about the proxy itself, and nothing else will work
    /// either. That depends on what the proxy has shown by then.
    fn is_of_target(&self, shown: Shown) -> bool {
        match self {
            // Many say nothing of whatever it was that they failed at. But who never spoke may be no proxy at all.
            Self::NoAnswer | Self::Lost(_) => shown.speaks,
            Self::Socks5(Socks5Error::Refused(Refusal::General) | Socks5Error::TooLong) => true,
            Self::Socks5(Socks5Error::Refused(Refusal::Rules)) => shown.serves,
            Self::Socks5(Socks5Error::Refused(refusal)) => refusal.is_of_target(),
            Self::Http(error) => error.is_of_target() || error.is_by_rule() && shown.serves,
            Self::Resolve(_)
            | Self::Unreachable(_)
            | Self::NoConnection
            | Self::NoPackets
            | Self::Socks5(_) => false,
        }
    }
}

/// What a proxy has shown of itself so far.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    /// It speaks our protocol.
    speaks: bool,
    /// It has done what it was asked for, once at least.
    serves: bool,
}

/// Connects through a proxy. A clone is a handle on the same one.
#[derive(Clone)]
pub struct Dialer {
    inner: Arc<Inner>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialer").field(&self.inner.proxy).finish()
    }
}

struct Inner {
    proxy: Proxy,
    sockets: Sockets,
    /// Where the proxy is; empty until it was looked up, and after it wasn't reached there.
    places: watch::Sender<Vec<SocketAddr>>,
    speaks: AtomicBool,
    serves: AtomicBool,
    /// What is wrong with the proxy itself.
    trouble: watch::Sender<Option<String>>,
}

impl Dialer {
    /// Connects to nobody yet.
    pub fn new(proxy: Proxy, sockets: Sockets) -> Self {
        let (places, _) = watch::channel(Vec::new());
        let (trouble, _) = watch::channel(None);
        let [speaks, serves] = [false; 2].map(AtomicBool::new);
        Self { inner: Arc::new(Inner { proxy, sockets, places, speaks, serves, trouble }) }
    }

    /// The proxy.
    pub fn proxy(&self) -> &Proxy {
        &self.inner.proxy
    }

    /// What is wrong with the proxy, if anything is; for `status`. As the last attempts showed.
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble.borrow().clone()
    }

    /// A connection to a target. What comes first on it is the target's first byte. Bounded in time. Cancel-safe: dropping
    /// it closes what was opened.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn connect(&self, to: &Target) -> Result<TcpStream, ProxyError> {
        let connected = self.connect_once(to).await;
        self.note(connected.as_ref().err());
        connected
    }

    /// An association for packets. Bounded in time; as [`Dialer::connect`] otherwise.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn associate(&self) -> Result<Association, ProxyError> {
        let opened = self.associate_once().await;
        self.note(opened.as_ref().err());
        opened
    }

    async fn connect_once(&self, to: &Target) -> Result<TcpStream, ProxyError> {
        let Inner { proxy, speaks, .. } = &*self.inner;
        let (mut stream, _) = self.reach().await?;
        let ask = async {
            match proxy.kind {
                ProxyKind::Socks5 => {
                    let asked = (Command::Connect, to);
                    socks5(&mut stream, asked, proxy.auth.as_ref(), speaks).await.map(|_| ())
                }
                ProxyKind::Http => http_connect(&mut stream, to, proxy.auth.as_ref(), speaks).await,
            }
        };
        timeout(PROXY_ANSWER, ask).await.map_err(|_| ProxyError::NoAnswer)??;
        Ok(stream)
    }

    async fn associate_once(&self) -> Result<Association, ProxyError> {
        let Inner { proxy, sockets, speaks, .. } = &*self.inner;
        if proxy.kind == ProxyKind::Http {
            return Err(ProxyError::NoPackets);
        }
        let (mut stream, place) = self.reach().await?;
        // Where our packets will come from isn't known to us, behind a router, and needn't be to the proxy.
        let any = Target::Addr(SocketAddr::from(([0, 0, 0, 0], 0)));
        let ask = socks5(&mut stream, (Command::Associate, &any), proxy.auth.as_ref(), speaks);
        let bound = timeout(PROXY_ANSWER, ask).await.map_err(|_| ProxyError::NoAnswer)??;
        Association::new(sockets, stream, udp::relay(&bound, place)).await.map_err(ProxyError::Unreachable)
    }

    /// A connection to the proxy itself, and where it is.
    async fn reach(&self) -> Result<(TcpStream, SocketAddr), ProxyError> {
        let Inner { proxy, sockets, places, .. } = &*self.inner;
        let known = places.borrow().clone();
        let known = if known.is_empty() {
            let found = hosts::lookup(&proxy.host, proxy.port, Reach::Any).await?;
            places.send_replace(found.clone());
            found
        } else {
            known
        };
        let mut error = ProxyError::Unreachable(io::Error::other("it has no address"));
        // Of each its share: one that is silent takes it from no other.
        let share = PROXY_CONNECT / u32::try_from(known.len()).unwrap_or(u32::MAX).max(1);
        for place in &known {
            match timeout(share, sockets.connect_directly(*place)).await {
                Ok(Ok(stream)) => {
                    // The others are for when it fails.
                    places.send_if_modified(|places| match places.iter().position(|other| other == place) {
                        Some(at @ 1..) => {
                            places.swap(0, at);
                            true
                        }
                        _ => false,
                    });
                    return Ok((stream, *place));
                }
                Ok(Err(why)) => error = ProxyError::Unreachable(why),
                Err(_) => error = ProxyError::NoConnection,
            }
        }
        // It may be elsewhere by the next time.
        places.send_replace(Vec::new());
        Err(error)
    }

    /// Keeps what is wrong with the proxy, and says so once.
    fn note(&self, error: Option<&ProxyError>) {
        let Inner { speaks, serves, .. } = &*self.inner;
        if error.is_none() {
            serves.store(true, Ordering::Relaxed);
        }
        let shown = Shown { speaks: speaks.load(Ordering::Relaxed), serves: serves.load(Ordering::Relaxed) };
        let trouble = error.filter(|error| !error.is_of_target(shown)).map(ToString::to_string);
        if error.is_some() && trouble.is_none() && self.inner.trouble.borrow().is_some() {
            // It works again, though not for this target; unless nobody knows.
            let knows = !matches!(error, Some(ProxyError::Lost(_) | ProxyError::NoAnswer));
            if !knows {
                return;
            }
        }
        self.inner.trouble.send_if_modified(|before| {
            if *before == trouble {
                return false;
            }
            match &trouble {
                Some(why) => tracing::warn!(proxy = %self.inner.proxy, "{why}"),
                None => tracing::info!(proxy = %self.inner.proxy, "the proxy works again"),
            }
            *before = trouble;
            true
        });
    }
}

/// Has a SOCKS5 proxy do something. Reads its answers to their last byte, and no further.
async fn socks5(
    stream: &mut TcpStream,
    (command, to): (Command, &Target),
    auth: Option<&Auth>,
    speaks: &AtomicBool,
) -> Result<Target, ProxyError> {
    let mut out = Vec::new();
    let (mut client, mut progress) = Client::new(command, to, auth, &mut out)?;
    loop {
        let needed = match progress {
            Progress::Done(bound) => return Ok(bound),
            Progress::More(needed) => needed,
        };
        if !out.is_empty() {
            stream.write_all(&out).await.map_err(ProxyError::Lost)?;
            out.clear();
        }
        let mut some = [0; socks5::MAX_HEAD];
        let some = some.get_mut(..needed).ok_or(Socks5Error::Malformed)?;
        stream.read_exact(some).await.map_err(ProxyError::Lost)?;
        progress = client.feed(some, &mut out)?;
        speaks.store(true, Ordering::Relaxed);
    }
}

/// Has an HTTP proxy connect. Looks at what has come before it is taken, so that what follows the head stays there.
async fn http_connect(
    stream: &mut TcpStream,
    to: &Target,
    auth: Option<&Auth>,
    speaks: &AtomicBool,
) -> Result<(), ProxyError> {
    let request = http::connect(to, auth)?;
    stream.write_all(&request).await.map_err(ProxyError::Lost)?;
    let mut head = Vec::new();
    loop {
        let mut some = [0; 1024];
        let n = stream.peek(&mut some).await.map_err(ProxyError::Lost)?;
        if n == 0 {
            return Err(ProxyError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let before = head.len();
        head.extend_from_slice(some.get(..n).unwrap_or_default());
        let end = http::head_end(&head);
        let taken = end.unwrap_or(head.len()).saturating_sub(before);
        stream.read_exact(some.get_mut(..taken).unwrap_or_default()).await.map_err(ProxyError::Lost)?;
        if let Some(end) = end {
            let answer = http::answer(head.get(..end).unwrap_or_default(), auth.is_some());
            speaks.fetch_or(answer != Err(HttpError::Malformed), Ordering::Relaxed);
            return Ok(answer?);
        }
        if head.len() > http::MAX_HEAD {
            return Err(HttpError::Malformed.into());
        }
    }
}

#[cfg(test)]
mod tests;
