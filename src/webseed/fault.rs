//! What can go wrong with a webseed, and what each means for what is asked of it next. Pure.
//!
//! The text of a [`Fault`] is what a user reads in the status: it names neither the URL, which stands beside it, nor a
//! password in it. What follows from one is its [`Meaning`], decided in one place.

use std::error::Error;
use std::time::Duration;

use reqwest::{StatusCode, Url};

use crate::net::hosts::{self, PrivateHost};

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The webseed's URL is none that can be asked.
    #[error("its URL can't be used: {0}")]
    BadUrl(String),
    /// The torrent's name for a file, or its own, is empty or made of dots.
    #[error("the torrent has no name for this file that a URL could have")]
    Unnamed,
    /// Its host, or one that it redirects to, is in the local network, and the torrent came from elsewhere.
    #[error(transparent)]
    Private(#[from] PrivateHost),
    /// A status that says no, of a file.
    #[error("the server answers {}", with_reason(*.0))]
    Status(u16),
    /// A status that says later: 408, 425, 429 and 5xx.
    #[error("the server answers {}{}", with_reason(*.status), wait(*.after))]
    Busy {
        /// The status.
        status: u16,
        /// How long it wants to be left alone (`Retry-After`).
        after: Option<Duration>,
    },
    /// A request of a part is answered by the whole, too far from its beginning.
    #[error("the server doesn't give parts of this file: it sends the whole")]
    NoRanges,
    /// The server's file isn't the torrent's.
    #[error("the server's file has {found} bytes, the torrent's {expected}")]
    WrongSize {
        /// On the server.
        found: u64,
        /// In the torrent.
        expected: u64,
    },
    /// 206 without `Content-Range`, or one that can't be read.
    #[error("the server sends a part without saying which")]
    NoContentRange,
    /// 206 for another range.
    #[error("the server sends bytes {found} when asked for {asked}")]
    WrongRange {
        /// First and last, as it says.
        found: String,
        /// First and last.
        asked: String,
    },
    /// `Content-Length` contradicts what was asked for.
    #[error("the server announces {found} bytes where {expected} were asked for")]
    WrongLength {
        /// As it says.
        found: u64,
        /// Bytes.
        expected: u64,
    },
    /// Compressed, which wasn't asked for: its ranges mean other bytes.
    #[error("the server sends the file compressed ({0}), unasked")]
    Encoded(String),
    /// The body ended early.
    #[error("the server sent {found} bytes of {expected}")]
    Short {
        /// Bytes that came.
        found: u64,
        /// Bytes that should have.
        expected: u64,
    },
    /// The same, of a body that the server takes for whole, and not for the first time.
    #[error(
        "the server has sent too little of this file time and again, {found} bytes of {expected} this time"
    )]
    Stub {
        /// Bytes that came.
        found: u64,
        /// Bytes that should have.
        expected: u64,
    },
    /// The body goes on behind what was asked for.
    #[error("the server sends more than the {expected} bytes that were asked for")]
    Long {
        /// Bytes that should have come.
        expected: u64,
    },
    /// Nobody listens, no route, no such name.
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    /// The certificate, or TLS otherwise.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// It took too long.
    #[error("{0}")]
    TimedOut(Phase),
    /// A connection ended, or what came over it is no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Too many redirects, in a circle, or to what isn't HTTP.
    #[error("its redirects lead nowhere: {0}")]
    Redirects(String),
    /// A piece failed its hash, and all of it that is of this file came from here.
    #[error("what it sent of this file failed the torrent's hash")]
    Corrupt,
    /// That happened in several files.
    #[error("what it sent failed the torrent's hashes in several files")]
    Distrusted,
    /// An answer to a request for a piece (BEP 17): it concerns the torrent, not a file.
    #[error(transparent)]
    OfTorrent(Box<Fault>),
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Phase {
    /// To connect, TLS included.
    #[error("no connection in time")]
    Connect,
    /// From the request to the response's head.
    #[error("no answer in time")]
    FirstByte,
    /// Without a byte of the body, or too slow over a while.
    #[error("the server stopped sending")]
    Stall,
}

/// What follows from a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It isn't asked for this file again.
    DropFile,
    /// It is left alone for a while: at least this long, if it said so.
    Wait(Option<Duration>),
    /// It isn't asked again.
    DropSeed,
    /// It may be asked again at once, unless that happens time and again.
    Retry,
}

impl Fault {
    /// What follows.
    pub fn means(&self) -> Meaning {
        match self {
            Self::Unnamed
            | Self::Status(_)
            | Self::NoRanges
            | Self::WrongSize { .. }
            | Self::NoContentRange
            | Self::WrongRange { .. }
            | Self::Encoded(_)
            | Self::Stub { .. }
            | Self::Redirects(_)
            | Self::Corrupt => Meaning::DropFile,
            Self::Busy { after, .. } => Meaning::Wait(*after),
            Self::WrongLength { .. }
            | Self::Short { .. }
            | Self::Long { .. }
            | Self::Unreachable(_)
            | Self::Tls(_)
            | Self::TimedOut(_) => Meaning::Wait(None),
            // A server may close a kept connection just when it is used again.
            Self::Broken(_) => Meaning::Retry,
            // A redirect may be of one file.
            Self::Private(private) if private.redirected => Meaning::DropFile,
            Self::BadUrl(_) | Self::Private(_) | Self::Distrusted => Meaning::DropSeed,
            Self::OfTorrent(fault) => match fault.means() {
                Meaning::DropFile => Meaning::DropSeed,
                other => other,
            },
        }
    }

    /// What an error of a guarded HTTP client is that was to get `asked`. Its text is that of the innermost cause, which
    /// doesn't repeat the URL.
    pub fn of(error: &reqwest::Error, asked: &Url) -> Self {
        if let Some(private) = hosts::refused(error, asked) {
            return Self::Private(private);
        }
        let mut chain = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = error.source();
        while let Some(cause) = next {
            chain.push(cause);
            next = cause.source();
        }
        let text = chain.last().map_or_else(|| "no reason is known".to_owned(), ToString::to_string);
        let tls = chain.iter().any(|cause| cause.downcast_ref().is_some_and(is_tls));
        if error.is_redirect() {
            Self::Redirects(text)
        } else if error.is_timeout() {
            Self::TimedOut(if error.is_connect() { Phase::Connect } else { Phase::FirstByte })
        } else if error.is_builder() {
            Self::BadUrl(text)
        } else if error.is_connect() {
            if tls { Self::Tls(text) } else { Self::Unreachable(text) }
        } else {
            Self::Broken(text)
        }
    }
}

/// Whether an error, before there is a connection, is of TLS: what its library says comes as invalid data, and within
/// another error, which doesn't name it as its source.
fn is_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref();
    error.kind() == std::io::ErrorKind::InvalidData
        || inner.and_then(|inner| inner.downcast_ref()).is_some_and(is_tls)
        || inner.is_some_and(|inner| inner.to_string().contains("tls"))
}

/// A status as a user knows it.
fn with_reason(code: u16) -> String {
    match StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason()) {
        Some(reason) => format!("{code} {reason}"),
        None => code.to_string(),
    }
}

fn wait(after: Option<Duration>) -> String {
    after.map(|after| format!(" and wants to be left alone for {} s", after.as_secs())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::net::hosts::{Guarded, Reach};

    #[test]
    fn what_a_user_reads_and_what_follows() {
        let hour = Duration::from_secs(3600);
        for (fault, text, meaning) in [
            (Fault::Status(404), "the server answers 404 Not Found", Meaning::DropFile),
            (Fault::Status(599), "the server answers 599", Meaning::DropFile),
            (
                Fault::Busy { status: 503, after: Some(hour) },
                "the server answers 503 Service Unavailable and wants to be left alone for 3600 s",
                Meaning::Wait(Some(hour)),
            ),
            (
                Fault::Busy { status: 429, after: None },
                "the server answers 429 Too Many Requests",
                Meaning::Wait(None),
            ),
            (
                Fault::Private(PrivateHost { host: "router".to_owned(), redirected: false, foreign: false }),
                "its host has a private address; use --allow-private-hosts if that is meant",
                Meaning::DropSeed,
            ),
            (
                Fault::Private(PrivateHost { host: "router".to_owned(), redirected: true, foreign: false }),
                "it redirects to router, which has a private address; use --allow-private-hosts if that is meant",
                Meaning::DropFile,
            ),
            (Fault::TimedOut(Phase::Stall), "the server stopped sending", Meaning::Wait(None)),
            (Fault::Broken("x".to_owned()), "the connection broke: x", Meaning::Retry),
            (
                Fault::OfTorrent(Box::new(Fault::Status(404))),
                "the server answers 404 Not Found",
                Meaning::DropSeed,
            ),
            (
                Fault::OfTorrent(Box::new(Fault::Broken("x".to_owned()))),
                "the connection broke: x",
                Meaning::Retry,
            ),
        ] {
            assert_eq!((fault.to_string().as_str(), fault.means()), (text, meaning));
        }
    }

    #[tokio::test]
    async fn errors_of_the_client_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let client = client.timeout(Duration::from_millis(200));
        let client = Guarded::new(client, Reach::Any, 2, &crate::net::sockets::Sockets::default()).unwrap();
        let ask = async |url: String| {
            let url = Url::parse(&url).unwrap();
            Fault::of(&client.get(url.clone()).unwrap().send().await.unwrap_err(), &url)
        };

        // It accepts and says nothing.
        assert_eq!(ask(format!("http://{at}/")).await, Fault::TimedOut(Phase::FirstByte));
        let said = async |answer: &'static [u8], scheme: &str| {
            let serve = async {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                stream.write_all(answer).await.unwrap();
            };
            // What was accepted by the kernel above is taken off first.
            let (fault, ()) = tokio::join!(ask(format!("{scheme}://{at}/")), serve);
            fault
        };
        drop(listener.accept().await.unwrap());
        assert!(matches!(said(b"no http\r\n\r\n", "http").await, Fault::Broken(_)));
        assert!(matches!(said(b"", "http").await, Fault::Broken(_)));
        assert!(matches!(said(b"no tls, either", "https").await, Fault::Tls(_)));
        let circle = b"HTTP/1.1 302 Found\r\nlocation: ftp://x/\r\ncontent-length: 0\r\n\r\n";
        let circle = said(circle, "http").await;
        assert!(matches!(circle, Fault::BadUrl(_) | Fault::Redirects(_)), "{circle:?}");
        drop(listener);
        assert!(matches!(ask(format!("http://{at}/")).await, Fault::Unreachable(_)));
    }
}
