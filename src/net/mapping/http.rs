//! As much of HTTP as a router's UPnP needs: addresses of its pages, requests, and answers read as they come. Pure;
//! hostile input welcome.
//!
//! By hand and not by the client that trackers and webseeds have: a router is told by its address alone, nothing is looked
//! up, no redirect is followed and nothing is kept open, so that a stranger in the local network who answers in the
//! router's place can make us call nobody but himself. And routers want a request in one segment, with the few headers
//! that they know.

use std::net::{IpAddr, SocketAddr};

/// The longest answer that is read. Descriptions of real routers have up to 30 KiB.
pub const MAX_ANSWER: usize = 64 << 10;
/// The longest head of an answer.
const MAX_HEAD: usize = 8 << 10;
/// Interim answers (`100 Continue`) that are read over.
const MAX_INTERIM: usize = 4;
/// The longest path of an address.
const MAX_PATH: usize = 1024;

/// Where a page of a router is: by its address, never by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whom to call.
    pub at: SocketAddr,
    /// Path and query, from its first `/` on.
    pub path: String,
}

impl Place {
    /// Reads an address. `None` for what isn't `http://` with an address in numbers, and for a path that couldn't stand in
    /// a request.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let (host, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let at = host.parse::<SocketAddr>().ok().or_else(|| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 80))
        })?;
        if at.port() == 0 {
            return None;
        }
        Some(Self { at, path: clean_path(path)? })
    }

    /// What a page of this place means by an address. `None` if it means another host: a router has its services itself.
    pub fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim();
        if reference.contains("://") {
            let other = Self::parse(reference)?;
            return (other.at.ip() == self.at.ip()).then_some(other);
        }
        if reference.starts_with("//") {
            return self.join(&format!("http:{reference}"));
        }
        let path = if reference.starts_with('/') {
            clean_path(reference)?
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = path.rfind('/').and_then(|at| path.get(..=at)).unwrap_or("/");
            clean_path(&format!("{folder}{reference}"))?
        };
        Some(Self { at: self.at, path })
    }
}

/// A path that can stand in the first line of a request.
fn clean_path(path: &str) -> Option<String> {
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic())).then_some(path)
}

/// A request for a page.
pub fn get(place: &Place) -> Vec<u8> {
    let Place { at, path } = place;
    format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: {AGENT}\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

/// A request to do something, in SOAP.
pub fn post(place: &Place, action: &str, body: &str) -> Vec<u8> {
    let Place { at, path } = place;
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: {AGENT}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         Content-Length: {length}\r\nSOAPAction: \"{action}\"\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The form that UPnP asks for: system, UPnP, program.
const AGENT: &str = concat!("Linux UPnP/1.1 torrentfs/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// It isn't HTTP.
    #[error("the answer isn't HTTP")]
    Malformed,
    /// More than [`MAX_ANSWER`].
    #[error("the answer has more than {} KiB", MAX_ANSWER >> 10)]
    TooLong,
    /// The connection ended before the answer did.
    #[error("the answer isn't whole")]
    Cut,
}

/// How the end of a body is told.
enum Length {
    Bytes(usize),
    Chunked,
    UntilClosed,
}

impl Response {
    /// Reads what has come so far; `None` wants more, and is said of [`MAX_ANSWER`] bytes at most, whatever is in them.
    /// `closed`: no more will come.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn read(bytes: &[u8], closed: bool) -> Result<Option<Self>, HttpError> {
        let more = |response| match (response, closed) {
            (None, true) => Err(HttpError::Cut),
            (None, false) if bytes.len() > MAX_ANSWER => Err(HttpError::TooLong),
            (response, _) => Ok(response),
        };
        let mut rest = bytes;
        for _ in 0..=MAX_INTERIM {
            let Some((head, body)) = split_head(rest) else {
                if rest.len() > MAX_HEAD {
                    return Err(HttpError::Malformed);
                }
                return more(None);
            };
            let (status, length) = read_head(head)?;
            if status < 200 {
                // The answer itself comes behind it.
                rest = body;
                continue;
            }
            let whole = match length {
                Length::Bytes(length) if length > MAX_ANSWER => return Err(HttpError::TooLong),
                Length::Bytes(length) => body.get(..length).map(<[u8]>::to_vec),
                Length::Chunked => unchunk(body)?,
                Length::UntilClosed => closed.then(|| body.to_vec()),
            };
            return more(whole.map(|body| Self { status, body }));
        }
        Err(HttpError::Malformed)
    }

    /// Its body as text; what isn't UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The head and what follows its empty line, with lines that end in CR LF or LF alone.
fn split_head(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        let rest = bytes.get(at + 1..)?;
        let skip = match rest {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => {
                from = at + 1;
                continue;
            }
        };
        return Some((bytes.get(..at)?, rest.get(skip..)?));
    }
}

/// The status, and how long the body is.
fn read_head(head: &[u8]) -> Result<(u16, Length), HttpError> {
    if head.len() > MAX_HEAD {
        return Err(HttpError::Malformed);
    }
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(status_of).ok_or(HttpError::Malformed)?;
    let mut length = Length::UntilClosed;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.trim(), value.trim());
        if name.eq_ignore_ascii_case("transfer-encoding") && value.to_ascii_lowercase().contains("chunked") {
            length = Length::Chunked;
        } else if name.eq_ignore_ascii_case("content-length") && !matches!(length, Length::Chunked) {
            length = Length::Bytes(value.parse().map_err(|_| HttpError::Malformed)?);
        }
    }
    if status == 204 || status == 304 {
        length = Length::Bytes(0);
    }
    Ok((status, length))
}

/// The status in the first line of an answer.
pub fn status_of(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace();
    let version = words.next()?;
    if !version.get(..5)?.eq_ignore_ascii_case("HTTP/") {
        return None;
    }
    let status = words.next()?;
    (status.len() == 3).then(|| status.parse().ok()).flatten().filter(|status| *status >= 100)
}

/// A chunked body, if all of it is there.
fn unchunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, HttpError> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() > 256 { Err(HttpError::Malformed) } else { Ok(None) };
        };
        let line = rest.get(..end).unwrap_or_default();
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let digits = std::str::from_utf8(digits).map_err(|_| HttpError::Malformed)?;
        let length = usize::from_str_radix(digits, 16).map_err(|_| HttpError::Malformed)?;
        if length > MAX_ANSWER || body.len() + length > MAX_ANSWER {
            return Err(HttpError::TooLong);
        }
        if length == 0 {
            return Ok(Some(body));
        }
        let Some(chunk) = rest.get(end + 1..end + 1 + length) else { return Ok(None) };
        body.extend_from_slice(chunk);
        rest = match rest.get(end + 1 + length..).unwrap_or_default() {
            [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(HttpError::Malformed),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str) -> Option<String> {
        Place::parse(text).map(|place| format!("{}{}", place.at, place.path))
    }

    #[test]
    fn places_are_read_from_addresses_alone() {
        for (text, expected) in [
            ("http://192.168.1.1:5000/root.xml", Some("192.168.1.1:5000/root.xml")),
            (" HTTP://10.0.0.1/a?b=c#d ", Some("10.0.0.1:80/a?b=c")),
            ("http://10.0.0.1", Some("10.0.0.1:80/")),
            ("http://10.0.0.1?x", Some("10.0.0.1:80/?x")),
            ("http://[fe80::1]:49152/d.xml", Some("[fe80::1]:49152/d.xml")),
            ("http://[fe80::1]/d.xml", Some("[fe80::1]:80/d.xml")),
            ("http://router.local/d.xml", None),
            ("https://10.0.0.1/d.xml", None),
            ("http://user@10.0.0.1/", None),
            ("http://10.0.0.1:0/", None),
            ("http://10.0.0.1/a b", None),
            ("http://10.0.0.1/a\r\nX: y", None),
            ("http://10.0.0.1/\u{e9}", None),
            ("10.0.0.1/a", None),
            ("", None),
        ] {
            assert_eq!(place(text).as_deref(), expected, "{text}");
        }
        assert!(Place::parse(&format!("http://10.0.0.1/{}", "a".repeat(MAX_PATH))).is_none());
    }

    #[test]
    fn references_stay_on_their_host() {
        let base = Place::parse("http://10.0.0.1:5000/igd/root.xml?x=/y/").unwrap();
        for (reference, expected) in [
            ("/ctl/IPConn", Some("10.0.0.1:5000/ctl/IPConn")),
            ("ctl", Some("10.0.0.1:5000/igd/ctl")),
            ("http://10.0.0.1:1/c", Some("10.0.0.1:1/c")),
            ("//10.0.0.1:1/c", Some("10.0.0.1:1/c")),
            ("http://10.0.0.2:5000/c", None),
            ("//127.0.0.1/c", None),
            ("http://example.com/c", None),
            ("/a b", None),
            ("", Some("10.0.0.1:5000/igd/")),
        ] {
            let joined = base.join(reference).map(|place| format!("{}{}", place.at, place.path));
            assert_eq!(joined.as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn requests_say_what_routers_want_to_know() {
        let at = Place::parse("http://10.0.0.1:5000/c").unwrap();
        let text = String::from_utf8(post(&at, "urn:x#Y", "<a/>")).unwrap();
        assert!(text.starts_with("POST /c HTTP/1.1\r\nHost: 10.0.0.1:5000\r\n"));
        assert!(
            text.contains("\r\nSOAPAction: \"urn:x#Y\"\r\n") && text.contains("\r\nContent-Length: 4\r\n")
        );
        assert!(text.ends_with("\r\n\r\n<a/>"));
        let text = String::from_utf8(get(&at)).unwrap();
        assert!(text.starts_with("GET /c HTTP/1.1\r\n") && text.ends_with("\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn answers_are_read_as_they_come() {
        let good = |status, body: &str| Ok(Some(Response { status, body: body.as_bytes().to_vec() }));
        for (bytes, closed, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", false, good(200, "ab")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", false, good(200, "ab")),
            ("HTTP/1.1 200 OK\ncontent-length: 2\n\nab", false, good(200, "ab")),
            ("http/1.0 500 Oh\r\n\r\nab", true, good(500, "ab")),
            ("HTTP/1.1 200\r\n\r\nab", false, Ok(None)),
            ("HTTP/1.1 204 No\r\n\r\n", false, good(204, "")),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
                false,
                good(200, "a"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n2;x\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                false,
                good(200, "abc"),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", false, Ok(None)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
                false,
                Err(HttpError::Malformed),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nab",
                false,
                Err(HttpError::Malformed),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nab",
                false,
                Err(HttpError::TooLong),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", true, Err(HttpError::Cut)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false, Ok(None)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", false, Err(HttpError::TooLong)),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", false, Err(HttpError::Malformed)),
            ("HTTP/1.1 2000 OK\r\n\r\n", false, Err(HttpError::Malformed)),
            ("HTTP/1.1 099 OK\r\n\r\n", false, Err(HttpError::Malformed)),
            ("SSH-2.0\r\n\r\n", false, Err(HttpError::Malformed)),
            ("HTTP/1.1 200 OK\r\n", true, Err(HttpError::Cut)),
            ("", true, Err(HttpError::Cut)),
            ("", false, Ok(None)),
        ] {
            assert_eq!(Response::read(bytes.as_bytes(), closed), expected, "{bytes:?}");
        }
        assert_eq!(Response::read(&[b'a'; MAX_HEAD + 1], false), Err(HttpError::Malformed));
        let mut long = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        long.resize(MAX_ANSWER + 1, b'a');
        assert_eq!(Response::read(&long, false), Err(HttpError::TooLong));
    }

    #[test]
    fn interim_answers_have_an_end() {
        let interim = |count: usize, then: &str| format!("{}{then}", "HTTP/1.1 100 x\r\n\r\n".repeat(count));
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
        let read = |text: String| Response::read(text.as_bytes(), false);
        assert_eq!(read(interim(MAX_INTERIM, good)).unwrap().unwrap().body, b"a");
        assert_eq!(read(interim(MAX_INTERIM, "")), Ok(None));
        for count in [MAX_INTERIM + 1, 100_000] {
            assert_eq!(read(interim(count, "")), Err(HttpError::Malformed));
        }
        // Nor does one make room for an answer that is longer than others.
        let mut long =
            "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n".as_bytes().to_vec();
        long.resize(MAX_ANSWER + 1, b'a');
        assert_eq!(Response::read(&long, false), Err(HttpError::TooLong));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(
            head in "HTTP/1\\.1 [0-9]{3}( OK)?\r?\n(Content-Length: [0-9]{0,7}\r?\n|Transfer-Encoding: chunked\r?\n)?\r?\n",
            body in "([0-9a-f]{1,5}\r\n[a-z]{0,40}\r\n|[\\PC\r\n]{0,60})*",
            closed: bool,
            cut: proptest::sample::Index,
        ) {
            let bytes = format!("{head}{body}").into_bytes();
            let bytes = &bytes[..cut.index(bytes.len() + 1)];
            if let Ok(Some(response)) = Response::read(bytes, closed) {
                prop_assert!(response.body.len() <= bytes.len());
                // What is an answer already is the same one with more behind it, unless its end is the connection's.
                if let Ok(Some(before)) = Response::read(bytes, false) {
                    prop_assert_eq!(before, response);
                }
            }
        }

        #[test]
        fn references_never_leave_the_host(reference in "(http:)?/{0,3}[a-z0-9.:@\\[\\]/?#\r\n -]{0,40}") {
            let base = Place::parse("http://10.0.0.1:5000/a/b").unwrap();
            if let Some(place) = base.join(&reference) {
                prop_assert_eq!(place.at.ip(), base.at.ip());
                prop_assert!(place.path.starts_with('/') && place.path.bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }
}
