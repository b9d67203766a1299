//! Where a webseed has a torrent's bytes: the URL of a file (BEP 19) or of a part of a piece (BEP 17). Pure.
//!
//! BEP 19 names a folder or a file. A torrent of several files is a folder of its own name in the folder that is named,
//! whether or not the URL ends with a slash. A single file is what the URL names, unless it ends with a slash: then it is
//! in there, under its name. Where a query asks for the name (it ends with `/`, or with a key and `=`), the names go there;
//! any other query, such as a token, stays behind them. BEP 17 adds the info-hash, the piece and the range to the query.
//!
//! Names are those of the metainfo, byte for byte, not those that were made safe for a file system: a server has the
//! files as their maker had them. All but what RFC 3986 calls unreserved is escaped, component by component. Only empty
//! components, `.` and `..` are left out, as in the mount: no server has files of such names, and they would climb.
//!
//! Not here: whether the host may be reached (`net::hosts`), and redirects.

use std::ops::Range;

use reqwest::Url;

use super::fault::Fault;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::metainfo::{Info, webseed_url};

/// How a webseed is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// For ranges of files (BEP 19; `url-list`, `ws=`).
    Url,
    /// For ranges of pieces (BEP 17; `httpseeds`).
    Http,
}

/// Reads the URL of a webseed as it stands in a torrent.
///
/// # Errors
/// It is no URL, or neither of HTTP nor of HTTPS.
pub fn base(text: &str) -> Result<Url, Fault> {
    let mut url = webseed_url(text).map_err(Fault::BadUrl)?;
    url.set_fragment(None);
    Ok(url)
}

/// Where a file is, below the webseed's URL (BEP 19).
///
/// # Errors
/// The torrent has no such file, or no name for it that a URL could have.
pub fn file_url(base: &Url, info: &Info, file: FileIndex) -> Result<Url, Fault> {
    let folder = ends_with_slash(base);
    if info.single_file && !folder {
        return Ok(base.clone());
    }
    let usable = |raw: &&[u8]| !matches!(*raw, b"" | b"." | b"..");
    let name = Some(info.raw_name()).filter(usable);
    let path: Vec<&[u8]> = info.raw_path(file).filter(usable).collect();
    // A torrent of several files may go without a name of its own, a file can't.
    if path.is_empty() && (name.is_none() || !info.single_file) {
        return Err(Fault::Unnamed);
    }
    let names: Vec<String> = name.into_iter().chain(path).map(escape).collect();
    let names = names.join("/");
    let mut url = base.clone();
    match base.query() {
        Some(query) if asks_for_name(query) => url.set_query(Some(&format!("{query}{names}"))),
        _ => {
            let slash = if base.path().ends_with('/') { "" } else { "/" };
            url.set_path(&format!("{}{slash}{names}", base.path()));
        }
    }
    Ok(url)
}

/// Where a range of a piece's bytes is (BEP 17). The range isn't empty.
pub fn piece_url(base: &Url, info_hash: &[u8; 20], piece: PieceIndex, range: Range<u64>) -> Url {
    let before = base.query().filter(|query| !query.is_empty()).map(|query| format!("{query}&"));
    let hash: String = info_hash.iter().map(|byte| format!("%{byte:02X}")).collect();
    let mut url = base.clone();
    url.set_query(Some(&format!(
        "{}info_hash={hash}&piece={}&ranges={}-{}",
        before.unwrap_or_default(),
        piece.0,
        range.start,
        range.end.saturating_sub(1)
    )));
    url
}

/// For a message: without user and password, which may stand in a URL.
pub fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs without a host, which have neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Whether a query is to be followed by a name: its last value is empty, or a folder. A signature or token may end with
/// `=` too, but then it stands behind another one.
fn asks_for_name(query: &str) -> bool {
    let last = query.rsplit(['&', ';']).next().unwrap_or(query);
    let empty = last.strip_suffix('=').is_some_and(|key| !key.is_empty() && !key.contains('='));
    empty || query.ends_with('/')
}

/// Whether a URL names a folder: what is in it is to be added.
fn ends_with_slash(url: &Url) -> bool {
    match url.query() {
        Some(query) if asks_for_name(query) => true,
        _ => url.path().ends_with('/'),
    }
}

/// One component, all but unreserved characters (RFC 3986) escaped.
fn escape(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    for &byte in raw {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::super::for_tests::torrent;
    use super::*;

    fn of(base_url: &str, info: &Info, file: u32) -> Result<String, Fault> {
        file_url(&base(base_url).unwrap(), info, FileIndex(file)).map(String::from)
    }

    #[test]
    fn a_single_file_is_what_is_named_or_in_what_is_named() {
        let info = torrent("a b#?%é.iso".as_bytes(), 16384, &[(&[], 5, false)]);
        for (base, url) in [
            ("http://h/x.iso", "http://h/x.iso"),
            ("http://h/x%20y.iso?v=1", "http://h/x%20y.iso?v=1"),
            ("https://h:8443/d/", "https://h:8443/d/a%20b%23%3F%25%C3%A9.iso"),
            ("http://h", "http://h/a%20b%23%3F%25%C3%A9.iso"),
            ("http://h/d/#there", "http://h/d/a%20b%23%3F%25%C3%A9.iso"),
            ("http://h/d/?key=k", "http://h/d/a%20b%23%3F%25%C3%A9.iso?key=k"),
            ("http://h/get?file=", "http://h/get?file=a%20b%23%3F%25%C3%A9.iso"),
            ("http://h/get?k=ab==&file=", "http://h/get?k=ab==&file=a%20b%23%3F%25%C3%A9.iso"),
            // Values that end so by chance, as signatures do.
            ("http://h/x.iso?sig=ab==", "http://h/x.iso?sig=ab=="),
            ("http://h/x.iso?k=1&sig=ab=", "http://h/x.iso?k=1&sig=ab="),
            ("http://h/d/?sig=ab==", "http://h/d/a%20b%23%3F%25%C3%A9.iso?sig=ab=="),
            ("http://u:p@h/d/", "http://u:p@h/d/a%20b%23%3F%25%C3%A9.iso"),
        ] {
            assert_eq!(of(base, &info, 0).as_deref(), Ok(url), "{base}");
        }
        // The name that the mount shows is another.
        let raw = torrent(b"\xff/x", 16384, &[(&[], 5, false)]);
        assert_eq!(raw.name, "\u{fffd}_x");
        assert_eq!(of("http://h/", &raw, 0).as_deref(), Ok("http://h/%FF%2Fx"));
        for name in [&b""[..], b".", b".."] {
            let nameless = torrent(name, 16384, &[(&[], 5, false)]);
            assert_eq!(of("http://h/", &nameless, 0), Err(Fault::Unnamed));
            assert_eq!(of("http://h/f", &nameless, 0).as_deref(), Ok("http://h/f"));
        }
    }

    #[test]
    fn several_files_are_in_a_folder_of_the_torrents_name() {
        let long = [b'l'; 300];
        let files: [(&[&[u8]], u64, bool); 9] = [
            (&[b"a b", b"c#d?e%f", "日.txt".as_bytes()], 1, false),
            (&[b"same"], 1, false),
            (&[b"same"], 1, false),
            (&[b"..", b"", b".", b"etc", b"passwd"], 1, false),
            (&[b"a/b\\c", b"\xe9\0"], 1, false),
            (&[b".."], 1, false),
            (&[b"..."], 1, false),
            (&[&long], 1, false),
            (&[b"%2e%2e", b".%2e", b"+&=:@;,!$'()*"], 1, false),
        ];
        let info = torrent("n ü".as_bytes(), 16384, &files);
        let long = "l".repeat(300);
        for (file, path) in [
            (0, Some("a%20b/c%23d%3Fe%25f/%E6%97%A5.txt")),
            (1, Some("same")),
            // Shown as "same (1)".
            (2, Some("same")),
            (3, Some("etc/passwd")),
            (4, Some("a%2Fb%5Cc/%E9%00")),
            (5, None),
            (6, Some("...")),
            (7, Some(long.as_str())),
            (8, Some("%252e%252e/.%252e/%2B%26%3D%3A%40%3B%2C%21%24%27%28%29%2A")),
            (9, None),
        ] {
            for base in ["http://h/d", "http://h/d/"] {
                let url = path.map(|path| format!("http://h/d/n%20%C3%BC/{path}"));
                assert_eq!(of(base, &info, file).ok(), url, "{file}");
            }
        }
        let first = "n%20%C3%BC/same";
        for (base, url) in [
            ("http://h", format!("http://h/{first}")),
            ("http://h/d?k=v", format!("http://h/d/{first}?k=v")),
            ("http://h/d?f=/pub/", format!("http://h/d?f=/pub/{first}")),
            ("http://h/d?f=", format!("http://h/d?f={first}")),
            ("http://h/d?sig=ab==", format!("http://h/d/{first}?sig=ab==")),
        ] {
            assert_eq!(of(base, &info, 1), Ok(url), "{base}");
        }
    }

    #[test]
    fn pieces_are_asked_for_by_a_query() {
        let hash: [u8; 20] = *b"0123456789abc \xff/?&#z";
        for (at, begin) in
            [("http://h/seed.php", "http://h/seed.php?"), ("http://h/s?k=v", "http://h/s?k=v&")]
        {
            let url = piece_url(&base(at).unwrap(), &hash, PieceIndex(7), 16384..32768);
            let escaped: String = hash.iter().map(|byte| format!("%{byte:02X}")).collect();
            assert_eq!(url.as_str(), format!("{begin}info_hash={escaped}&piece=7&ranges=16384-32767"));
        }
    }

    #[test]
    fn w9_bad_urls_are_told() {
        for bad in
            ["", "x", "/x", "http://", "ftp://h/", "file:///etc/passwd", "http://h:99999/", "http://[::1"]
        {
            assert!(matches!(base(bad), Err(Fault::BadUrl(_))), "{bad}");
        }
        let url = base("http://user:secret@h/d").unwrap();
        assert_eq!(without_password(&url), "http://h/d");
    }

    /// Undoes the escaping.
    fn unescape(text: &str) -> Vec<u8> {
        let mut bytes = text.bytes();
        let mut out = Vec::new();
        while let Some(byte) = bytes.next() {
            if byte == b'%' {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            } else {
                out.push(byte);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn names_come_back_from_urls(parts in proptest::collection::vec(any::<Vec<u8>>(), 1..5), in_query: bool) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            let other: &[&[u8]] = &[b"other"];
            let info = torrent(b"n", 16384, &[(&parts, 1, false), (other, 1, false)]);
            let at = if in_query { "http://h/get?f=" } else { "http://h/d/" };
            let kept: Vec<&[u8]> = parts.into_iter().filter(|part| !matches!(*part, b"" | b"." | b"..")).collect();
            match of(at, &info, 0) {
                Err(fault) => prop_assert!(kept.is_empty(), "{fault}"),
                Ok(url) => {
                    let path = url.strip_prefix(&format!("{at}n/")).unwrap();
                    let back: Vec<Vec<u8>> = path.split('/').map(unescape).collect();
                    prop_assert_eq!(back, kept);
                    let again = Url::parse(&url).unwrap();
                    prop_assert_eq!(again.as_str(), &url);
                }
            }
        }
    }
}
