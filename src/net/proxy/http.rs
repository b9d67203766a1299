//! HTTP proxies: the request to CONNECT (RFC 9110), and the head of the answer. Pure; hostile input welcome.
//!
//! What follows the head is the peer's, so the head is read up to its very end and no further: [`head_end`] tells where
//! that is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Auth, Target};

/// The longest head of an answer. Proxies add a dozen headers, and explain a refusal in the body.
pub const MAX_HEAD: usize = 16 << 10;
/// The longest words of a proxy that are shown.
const MAX_WORDS: usize = 120;

/// What went wrong between the proxy and us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// It isn't HTTP, or more than [`MAX_HEAD`].
    #[error("the answer isn't HTTP")]
    Malformed,
    /// It wants something that we haven't got.
    #[error("the proxy wants a user's name and password")]
    WantsPassword,
    /// It doesn't like what we have.
    #[error("the proxy refuses the user's name and password")]
    WrongPassword,
    /// The target's name can't stand in a request.
    #[error("the host's name isn't one")]
    BadName,
    /// It refuses.
    #[error("the proxy refused: {words} ({status})")]
    Refused {
        /// The status.
        status: u16,
        /// Its words, made printable.
        words: String,
    },
}

impl HttpError {
    /// Whether it is about the target; otherwise it is about the proxy itself, though it may be by rules that let others
    /// pass ([`HttpError::is_by_rule`]).
    pub fn is_of_target(&self) -> bool {
        matches!(self, Self::BadName | Self::Refused { status: 404 | 410 | 500 | 502..=504, .. })
    }

    /// Whether rules of the proxy forbid it, as many do for all ports but 443.
    pub fn is_by_rule(&self) -> bool {
        matches!(self, Self::Refused { status: 403 | 405, .. })
    }
}

/// The request to connect to a target.
///
/// # Errors
/// [`HttpError::BadName`].
pub fn connect(target: &Target, auth: Option<&Auth>) -> Result<Vec<u8>, HttpError> {
    let host = match target {
        Target::Addr(addr) => {
            let mut addr = *addr;
            addr.set_ip(addr.ip().to_canonical());
            addr.to_string()
        }
        Target::Name(name, port) => {
            let fits = |byte: u8| byte.is_ascii_graphic() && !b"/?#@:[]".contains(&byte);
            if name.is_empty() || name.len() > 255 || !name.bytes().all(fits) {
                return Err(HttpError::BadName);
            }
            format!("{name}:{port}")
        }
    };
    let mut request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n");
    if let Some(Auth { user, password }) = auth {
        let secret = STANDARD.encode(format!("{user}:{password}"));
        request.push_str(&format!("Proxy-Authorization: Basic {secret}\r\n"));
    }
    request.push_str("\r\n");
    Ok(request.into_bytes())
}

/// Where the head ends whose first bytes are these, if its end is here; lines may end in LF alone.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        match bytes.get(at + 1..)? {
            [b'\n', ..] => return Some(at + 2),
            [b'\r', b'\n', ..] => return Some(at + 3),
            _ => from = at + 1,
        }
    }
}

/// Reads the head of an answer, all of it.
///
/// # Errors
/// Anything but a status of 2xx; see [`HttpError`].
pub fn answer(head: &[u8], with_password: bool) -> Result<(), HttpError> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line.get(..line.len().min(MAX_WORDS * 4)).unwrap_or(line));
    let mut words = line.trim().splitn(3, ' ');
    let is_http =
        words.next().and_then(|version| version.get(..5)).is_some_and(|v| v.eq_ignore_ascii_case("HTTP/"));
    let status = words.next().filter(|status| is_http && status.len() == 3);
    let status: u16 = status.and_then(|status| status.parse().ok()).ok_or(HttpError::Malformed)?;
    match status {
        200..300 => Ok(()),
        407 if with_password => Err(HttpError::WrongPassword),
        407 => Err(HttpError::WantsPassword),
        _ => {
            let words = words.next().unwrap_or_default();
            let words = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
            Err(HttpError::Refused { status, words })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn request(target: &Target, auth: Option<&Auth>) -> Result<String, HttpError> {
        connect(target, auth).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn requests_name_the_target() {
        for (target, host) in [
            (Target::Addr("1.2.3.4:80".parse().unwrap()), "1.2.3.4:80"),
            (Target::Addr("[::ffff:1.2.3.4]:80".parse().unwrap()), "1.2.3.4:80"),
            (Target::Addr("[2001:db8::1]:80".parse().unwrap()), "[2001:db8::1]:80"),
            (Target::Name("a.example".into(), 443), "a.example:443"),
        ] {
            let expected = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(request(&target, None), Ok(expected));
        }
        let auth = Auth { user: "Aladdin".into(), password: "open sesame".into() };
        let text = request(&Target::Name("a".into(), 1), Some(&auth)).unwrap();
        assert!(text.ends_with("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"));
        for name in ["", "a b", "a\r\nX: y", "a/b", "a:1", "\u{e9}", &"a".repeat(256)] {
            assert_eq!(request(&Target::Name(name.into(), 1), None), Err(HttpError::BadName), "{name}");
        }
    }

    #[test]
    fn heads_end_where_they_do() {
        for (bytes, end) in [
            ("HTTP/1.1 200 OK\r\n\r\n\x13Bit", Some(19)),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n\r\n", Some(25)),
            ("HTTP/1.1 200 OK\n\n\n", Some(17)),
            ("HTTP/1.1 200 OK\r\n\r", None),
            ("HTTP/1.1 200 OK\r\n", None),
            ("", None),
        ] {
            assert_eq!(head_end(bytes.as_bytes()), end, "{bytes:?}");
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let refused = |status, words: &str| Err(HttpError::Refused { status, words: words.to_owned() });
        for (head, with_password, expected) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", false, Ok(())),
            ("http/1.0 200\n\n", false, Ok(())),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false, Err(HttpError::WantsPassword)),
            ("HTTP/1.1 407 No\r\n\r\n", true, Err(HttpError::WrongPassword)),
            ("HTTP/1.1 403 For\u{7}bidden here\r\n\r\n", false, refused(403, "Forbidden here")),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n", false, refused(502, "Bad Gateway")),
            ("HTTP/1.1 301\r\n\r\n", false, refused(301, "")),
            ("HTTP/1.1 20 OK\r\n\r\n", false, Err(HttpError::Malformed)),
            ("\x05\x00\r\n\r\n", false, Err(HttpError::Malformed)),
            ("", false, Err(HttpError::Malformed)),
        ] {
            assert_eq!(answer(head.as_bytes(), with_password), expected, "{head:?}");
        }
        let long = format!("HTTP/1.1 500 {}\r\n\r\n", "\u{e9}".repeat(1000));
        assert!(
            matches!(answer(long.as_bytes(), false), Err(HttpError::Refused { words, .. }) if words.chars().count() <= MAX_WORDS)
        );
        assert!(HttpError::Refused { status: 502, words: String::new() }.is_of_target());
        assert!(!HttpError::Refused { status: 403, words: String::new() }.is_of_target());
    }

    proptest! {
        #[test]
        fn no_head_is_too_strange(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200), polite: bool) {
            let bytes = if polite { [b"HTTP/1.1 ", bytes.as_slice()].concat() } else { bytes };
            let _ = answer(&bytes, polite);
            if let Some(end) = head_end(&bytes) {
                prop_assert!(end <= bytes.len() && head_end(&bytes[..end]) == Some(end));
                prop_assert_eq!(head_end(&bytes[..end - 1]), None);
            }
        }
    }
}
