//! What a user may name a torrent by, told apart by its look alone. Pure: whether a file is there is seen when
//! it is opened.

use std::fmt;
use std::path::PathBuf;

use super::id::{Id20, InfoHash, unhex};
use super::magnet::{Magnet, MagnetError};
use super::path;

/// Where a torrent comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A magnet link.
    Magnet(Magnet),
    /// The path of a `.torrent` file.
    File(PathBuf),
    /// The http or https address of a `.torrent` file.
    Url(String),
    /// A bare info-hash: 40 hex or 32 base32 digits, or 64 hex digits for v2.
    InfoHash(InfoHash),
}

/// Why a text names no torrent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing there.
    #[error("the source is empty: give a magnet link, a .torrent file, its URL, or an info-hash")]
    Empty,
    /// A magnet link that can't be used.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
    /// A URL of another kind.
    #[error(
        "cannot fetch \"{0}://\" addresses: give an http or https URL, a magnet link, a .torrent file or an info-hash"
    )]
    Scheme(String),
    /// Only hex digits, but not as many as a hash has.
    #[error(
        "an info-hash has 40 hex digits (64 for v2), or 32 base32 digits, but this has {0}; if it is a file, write ./ before it"
    )]
    HashLength(usize),
    /// A path can't hold it.
    #[error("the source holds a NUL byte")]
    Nul,
}

impl Source {
    /// Tells what `text` is. A file whose name looks like a hash or a link is named with `./` before it.
    ///
    /// # Errors
    /// It is empty, a magnet link that can't be used, a URL of an unknown scheme, or almost an info-hash.
    pub fn parse(text: &str) -> Result<Source, SourceError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(SourceError::Empty);
        }
        if trimmed.contains('\0') {
            return Err(SourceError::Nul);
        }
        if trimmed.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
            return Ok(Source::Magnet(Magnet::parse(trimmed)?));
        }
        if let Some(scheme) = scheme(trimmed) {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => Ok(Source::Url(trimmed.to_owned())),
                _ => Err(SourceError::Scheme(path::printable(scheme))),
            };
        }
        if let Ok(v1) = trimmed.parse::<Id20>() {
            return Ok(Source::InfoHash(InfoHash::from_v1(v1.0)));
        }
        if let Some(v2) = unhex(trimmed) {
            return Ok(Source::InfoHash(InfoHash::from_v2(v2)));
        }
        // Mistyped hashes would otherwise end as "no such file", which helps nobody.
        if trimmed.len() >= 30 && trimmed.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SourceError::HashLength(trimmed.len()));
        }
        // As it stands: a path may begin or end with a blank.
        Ok(Source::File(PathBuf::from(text)))
    }
}

/// The scheme of a URL (RFC 3986), if text looks like one.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let letters = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (letters && scheme.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(scheme)
}

/// As a message shows it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Magnet(magnet) => match &magnet.name {
                Some(name) => f.write_str(&path::printable(name)),
                None => write!(f, "{}", magnet.info_hash),
            },
            Source::File(file) => f.write_str(&path::printable(&file.to_string_lossy())),
            Source::Url(url) => f.write_str(&path::printable(url)),
            Source::InfoHash(hash) => write!(f, "{hash}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let hex = "30".repeat(20);
        let v2 = "Ab".repeat(32);
        let file = |p: &str| Ok(Source::File(PathBuf::from(p)));
        let v1 = InfoHash::from_v1([0x30; 20]);
        for (text, source) in [
            (hex.as_str(), Ok(Source::InfoHash(v1))),
            (&format!(" {hex}\n"), Ok(Source::InfoHash(v1))),
            ("GAYDAMBQGAYDAMBQGAYDAMBQGAYDAMBQ", Ok(Source::InfoHash(v1))),
            (&v2, Ok(Source::InfoHash(InfoHash::from_v2([0xab; 32])))),
            (&hex[1..], Err(SourceError::HashLength(39))),
            (&format!("./{hex}"), file(&format!("./{hex}"))),
            (&format!("Magnet:?xt=urn:btih:{hex}"), Ok(Source::Magnet(Magnet::new(v1)))),
            ("magnet:xt", Err(SourceError::Magnet(MagnetError::NotMagnet))),
            ("magnet:?dn=x", Err(SourceError::Magnet(MagnetError::NoHash))),
            ("https://x/y.torrent", Ok(Source::Url("https://x/y.torrent".to_owned()))),
            ("HTTP://x", Ok(Source::Url("HTTP://x".to_owned()))),
            ("ftp://x", Err(SourceError::Scheme("ftp".to_owned()))),
            ("a.torrent", file("a.torrent")),
            ("/a b/c.torrent", file("/a b/c.torrent")),
            ("été", file("été")),
            ("ab://c/d", Err(SourceError::Scheme("ab".to_owned()))),
            ("./ab://c/d", file("./ab://c/d")),
            ("", Err(SourceError::Empty)),
            ("  ", Err(SourceError::Empty)),
            ("a\0b", Err(SourceError::Nul)),
        ] {
            assert_eq!(Source::parse(text), source, "{text:?}");
        }
    }

    #[test]
    fn messages_are_one_line() {
        let file = Source::parse("a\nb").unwrap();
        assert_eq!(file.to_string(), "a\\nb");
    }
}
