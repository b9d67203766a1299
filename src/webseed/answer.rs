//! What a response's status and headers make of its body (RFC 9110). Pure.
//!
//! Asked is always for a range. 206 must be of a range that holds it, of a file of the torrent's size. 200 is the whole
//! file: it is used when what was asked for stands near its beginning, so that little is thrown away, and otherwise
//! the server counts as giving no parts. What is compressed can't be used: ranges would be of other bytes.
//! BEP 17 answers a range of a piece with 200 and nothing but that range; [`judge_piece`] is for it.
//!
//! Lengths that the head announces are held against what was asked for; the body itself is the requester's to count,
//! since a head may say nothing of it.

use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderName};

use super::fault::Fault;

/// Bytes at the front of a body that are thrown away rather than giving up a file, on servers that give no parts.
const SKIP_MAX: u64 = 1 << 20;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// First byte in the file (BEP 17: in the piece).
    pub start: u64,
    /// Bytes, more than 0.
    pub len: u64,
    /// Bytes of the whole file (BEP 17: of the piece).
    pub file_len: u64,
}

/// Where in the body that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    /// Bytes to throw away first.
    pub skip: u64,
    /// Bytes to take then: what was asked for.
    pub take: u64,
    /// The body is larger than that, so reading stops before its end, which costs the connection.
    pub whole: bool,
}

/// Decides what to do with the response to a request for a part of a file, which came at `now`.
///
/// # Errors
/// What is wrong with it.
pub fn judge(asked: &Asked, status: u16, headers: &HeaderMap, now: SystemTime) -> Result<Body, Fault> {
    let content_length = number(headers, header::CONTENT_LENGTH);
    match status {
        206 => {
            encoded(headers)?;
            let range = ContentRange::read(headers).ok_or(Fault::NoContentRange)?;
            if let Some(found) = range.size.filter(|size| *size != asked.file_len) {
                return Err(Fault::WrongSize { found, expected: asked.file_len });
            }
            let len = range.last - range.first + 1;
            match content_length {
                Some(found) if found != len => return Err(Fault::WrongLength { found, expected: len }),
                _ => {}
            }
            let last = asked.start.saturating_add(asked.len).saturating_sub(1);
            let skip = asked.start.checked_sub(range.first).filter(|skip| *skip <= SKIP_MAX);
            match skip {
                Some(skip) if range.last >= last => {
                    Ok(Body { skip, take: asked.len, whole: skip + asked.len < len })
                }
                _ => Err(Fault::WrongRange {
                    found: format!("{}-{}", range.first, range.last),
                    asked: format!("{}-{last}", asked.start),
                }),
            }
        }
        200 => {
            encoded(headers)?;
            if let Some(found) = content_length.filter(|found| *found != asked.file_len) {
                return Err(Fault::WrongSize { found, expected: asked.file_len });
            }
            if asked.start > SKIP_MAX {
                return Err(Fault::NoRanges);
            }
            Ok(whole(asked))
        }
        _ => Err(refusal(status, headers, now)),
    }
}

/// The same for a part of a piece (BEP 17). A server that sends the whole piece is taken at its word, too.
///
/// # Errors
/// What is wrong with it; a server that won't serve this is none for the torrent ([`Fault::OfTorrent`]).
pub fn judge_piece(asked: &Asked, status: u16, headers: &HeaderMap, now: SystemTime) -> Result<Body, Fault> {
    let of_torrent = |fault| Fault::OfTorrent(Box::new(fault));
    if !matches!(status, 200 | 206) {
        return Err(of_torrent(refusal(status, headers, now)));
    }
    encoded(headers).map_err(of_torrent)?;
    match number(headers, header::CONTENT_LENGTH) {
        Some(found) if found == asked.file_len && found != asked.len => Ok(whole(asked)),
        Some(found) if found != asked.len => Err(Fault::WrongLength { found, expected: asked.len }),
        _ => Ok(Body { skip: 0, take: asked.len, whole: false }),
    }
}

/// Seconds to wait that a BEP 17 server names in the body of a 503, up to 16 bytes of it.
pub fn wait_in_body(body: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(body.get(..16).unwrap_or(body)).ok()?;
    digits(text.trim()).map(Duration::from_secs)
}

/// What a status means that brings no bytes.
fn refusal(status: u16, headers: &HeaderMap, now: SystemTime) -> Fault {
    match status {
        408 | 421 | 425 | 429 | 500..=599 => Fault::Busy { status, after: retry_after(headers, now) },
        _ => Fault::Status(status),
    }
}

/// The whole, of which what was asked for is a part.
fn whole(asked: &Asked) -> Body {
    let end = asked.start.saturating_add(asked.len);
    Body { skip: asked.start, take: asked.len, whole: end < asked.file_len }
}

/// # Errors
/// The body is compressed.
fn encoded(headers: &HeaderMap) -> Result<(), Fault> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = codings.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut codings = codings.map(|coding| String::from_utf8_lossy(coding).trim().to_ascii_lowercase());
    match codings.find(|coding| !matches!(coding.as_str(), "" | "identity")) {
        Some(coding) => Err(Fault::Encoded(coding.chars().filter(|c| !c.is_control()).take(20).collect())),
        None => Ok(()),
    }
}

/// `Content-Range: bytes 0-99/1000`, the size being `*` where it isn't known.
struct ContentRange {
    first: u64,
    last: u64,
    size: Option<u64>,
}

impl ContentRange {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim();
        let (unit, rest) = value.split_at_checked("bytes".len())?;
        let rest = rest.strip_prefix([' ', '=']).filter(|_| unit.eq_ignore_ascii_case("bytes"))?;
        let (range, size) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (digits(first.trim())?, digits(last.trim())?);
        let size = match size.trim() {
            "*" => None,
            size => Some(digits(size)?),
        };
        // So the length of the range is a number, too.
        (first <= last && last < u64::MAX && size.is_none_or(|size| last < size)).then_some(Self {
            first,
            last,
            size,
        })
    }
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    digits(headers.get(name)?.to_str().ok()?.trim())
}

fn digits(text: &str) -> Option<u64> {
    let only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // What is too large for a number is as large as one can be.
    only.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `Retry-After`: seconds, or a date. That is held against the response's own date, so that neither clock matters, and
/// against ours where it has none.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = digits(value).or_else(|| {
        let ours = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let then = date(value, ours)?;
        let theirs = headers.get(header::DATE).and_then(|value| date(value.to_str().ok()?.trim(), ours));
        Some(then.saturating_sub(theirs.unwrap_or(ours)))
    });
    seconds.map(Duration::from_secs)
}

/// Seconds in a year, about.
const YEAR: u64 = 31_556_952;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 of a date in one of the three forms that RFC 9110 (5.6.7) has us read: as servers write it now
/// (`Sun, 06 Nov 1994 08:49:37 GMT`), and as old ones do (`Sunday, 06-Nov-94 08:49:37 GMT`, and
/// `Sun Nov  6 08:49:37 1994`). `now` tells the century of a year of two digits, in the same seconds.
fn date(text: &str, now: u64) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month, year, clock) = match *words.as_slice() {
        [_, day, month, year, clock, "GMT"] if year.len() > 2 => (day, month, digits(year)?, clock),
        [_, date, clock, "GMT"] => {
            let mut parts = date.split('-');
            let (day, month) = (parts.next()?, parts.next()?);
            let digits = digits(parts.next()?).filter(|year| *year < 100)?;
            // The last two of a year that is at most 50 ahead.
            let latest = 1970 + now / YEAR + 50;
            (day, month, (latest - digits) / 100 * 100 + digits, clock)
        }
        [_, month, day, clock, year] => (day, month, digits(year)?, clock),
        _ => return None,
    };
    let day = digits(day).filter(|day| (1..=31).contains(day))?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    let year = Some(year).filter(|year| (1970..10_000).contains(year))?;
    let mut clock = clock.split(':').map(digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The year is taken to begin in March, so that the day that comes and goes is its last.
    let month = month as u64 + 1;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leaps + (month * 153 + 2) / 5 + day - 1;
    // Days from the 1st of March of the year 0 to 1970.
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::super::fault::Meaning;
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    /// Of two files of 500 KB in a piece of 2 MB: the rest of the second from the middle of a block.
    const ASKED: Asked = Asked { start: 7_936, len: 492_064, file_len: 500_000 };

    /// Fri, 31 Dec 1999 23:59:52 GMT.
    const NOW: u64 = 946_684_792;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    type Row<'a> = (u16, &'a [(&'static str, &'a str)], Result<(u64, bool), &'a str>);

    #[test]
    fn w9_each_answer_once() {
        let wrong = "the server sends bytes 0-7935 when asked for 7936-499999";
        let rows: &[Row<'_>] = &[
            (
                206,
                &[("content-range", "bytes 7936-499999/500000"), ("content-length", "492064")],
                Ok((0, false)),
            ),
            (206, &[("content-range", "Bytes 7936-499999/*")], Ok((0, false))),
            (206, &[("content-range", "bytes=7936-499999/500000")], Ok((0, false))),
            // More than asked for, around it.
            (
                206,
                &[("content-range", "bytes 0-499999/500000"), ("content-length", "500000")],
                Ok((7_936, false)),
            ),
            (
                206,
                &[("content-encoding", "identity"), ("content-range", "bytes 7936-499999/500000")],
                Ok((0, false)),
            ),
            (206, &[("content-range", "bytes 0-7935/500000")], Err(wrong)),
            (
                206,
                &[("content-range", "bytes 7937-499999/500000")],
                Err("the server sends bytes 7937-499999 when asked for 7936-499999"),
            ),
            (
                206,
                &[("content-range", "bytes 7936-499998/500000")],
                Err("the server sends bytes 7936-499998 when asked for 7936-499999"),
            ),
            (
                206,
                &[("content-range", "bytes 7936-499999/600000")],
                Err("the server's file has 600000 bytes, the torrent's 500000"),
            ),
            (
                206,
                &[("content-range", "bytes 7936-499999/500000"), ("content-length", "5")],
                Err("the server announces 5 bytes where 492064 were asked for"),
            ),
            (206, &[], Err("the server sends a part without saying which")),
            (
                206,
                &[("content-type", "multipart/byteranges; boundary=x")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "bytes 9-8/500000")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "bytes */500000")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "bytes -1-5/500000")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "lines 7936-499999/500000")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "bytes 0-99999999999999999999/*")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-range", "bytes 0-500000/500000")],
                Err("the server sends a part without saying which"),
            ),
            (
                206,
                &[("content-encoding", "gzip"), ("content-range", "bytes 7936-499999/500000")],
                Err("the server sends the file compressed (gzip), unasked"),
            ),
            // The whole file, which is small.
            (200, &[("content-length", "500000")], Ok((7_936, false))),
            (200, &[], Ok((7_936, false))),
            (
                200,
                &[("content-length", "499999")],
                Err("the server's file has 499999 bytes, the torrent's 500000"),
            ),
            (
                200,
                &[("content-encoding", "identity, BR")],
                Err("the server sends the file compressed (br), unasked"),
            ),
            (204, &[], Err("the server answers 204 No Content")),
            (304, &[], Err("the server answers 304 Not Modified")),
            (401, &[], Err("the server answers 401 Unauthorized")),
            (403, &[], Err("the server answers 403 Forbidden")),
            (404, &[], Err("the server answers 404 Not Found")),
            (410, &[], Err("the server answers 410 Gone")),
            (416, &[("content-range", "bytes */7")], Err("the server answers 416 Range Not Satisfiable")),
            (451, &[], Err("the server answers 451 Unavailable For Legal Reasons")),
            (
                429,
                &[("retry-after", "7")],
                Err("the server answers 429 Too Many Requests and wants to be left alone for 7 s"),
            ),
            (500, &[], Err("the server answers 500 Internal Server Error")),
            (
                503,
                &[("retry-after", " 120 ")],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 120 s"),
            ),
            (503, &[("retry-after", "soon")], Err("the server answers 503 Service Unavailable")),
            (503, &[("retry-after", "-5")], Err("the server answers 503 Service Unavailable")),
            (
                503,
                &[
                    ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"),
                    ("date", "Fri, 31 Dec 1999 23:58:59 GMT"),
                ],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 60 s"),
            ),
            (
                503,
                &[
                    ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"),
                    ("date", "Sat, 01 Jan 2000 00:00:01 GMT"),
                ],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 0 s"),
            ),
            (
                503,
                &[("retry-after", "Friday, 31-Dec-99 23:59:59 GMT"), ("date", "Fri Dec 31 23:58:59 1999")],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 60 s"),
            ),
            // Without its own clock ours is all there is.
            (
                503,
                &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 7 s"),
            ),
            (
                503,
                &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"), ("date", "today")],
                Err("the server answers 503 Service Unavailable and wants to be left alone for 7 s"),
            ),
        ];
        for (status, lines, expected) in rows {
            let found = judge(&ASKED, *status, &headers(lines), now());
            let expected = expected.map(|(skip, whole)| Body { skip, take: 492_064, whole });
            assert_eq!(
                found.map_err(|fault| fault.to_string()),
                expected.map_err(str::to_owned),
                "{status} {lines:?}"
            );
        }
    }

    #[test]
    fn w9_the_whole_instead_of_a_part_is_used_near_its_beginning() {
        let large = |start| Asked { start, len: 100, file_len: 10 << 30 };
        let used = |skip| Ok(Body { skip, take: 100, whole: true });
        for (start, expected) in
            [(0, used(0)), (SKIP_MAX, used(SKIP_MAX)), (SKIP_MAX + 1, Err(Fault::NoRanges))]
        {
            assert_eq!(judge(&large(start), 200, &HeaderMap::new(), now()), expected, "{start}");
        }
        assert_eq!(Fault::NoRanges.means(), Meaning::DropFile);
        // The same for a part that begins long before what was asked for.
        let far = headers(&[("content-range", "bytes 0-5000000/*")]);
        assert!(matches!(judge(&large(4_000_000), 206, &far, now()), Err(Fault::WrongRange { .. })));
        let around = headers(&[("content-range", "bytes 4000000-5000000/*")]);
        assert_eq!(judge(&large(4_000_000), 206, &around, now()), used(0));
    }

    #[test]
    fn pieces_come_without_a_range() {
        let asked = Asked { start: 16384, len: 32768, file_len: 65536 };
        let taken = |skip, whole| Ok(Body { skip, take: 32768, whole });
        let length = |length: &str| headers(&[("content-length", length)]);
        for (status, headers, expected) in [
            (200, length("32768"), taken(0, false)),
            (206, length("32768"), taken(0, false)),
            (200, HeaderMap::new(), taken(0, false)),
            (200, length("65536"), taken(16384, true)),
            (200, length("5"), Err(Fault::WrongLength { found: 5, expected: 32768 })),
            (404, HeaderMap::new(), Err(Fault::OfTorrent(Box::new(Fault::Status(404))))),
        ] {
            assert_eq!(judge_piece(&asked, status, &headers, now()), expected);
        }
        let busy = judge_piece(&asked, 503, &HeaderMap::new(), now()).unwrap_err();
        assert_eq!(busy.means(), Meaning::Wait(None));
        for (body, seconds) in
            [(&b"60"[..], Some(60)), (b" 5\r\n", Some(5)), (b"", None), (b"<html>", None), (b"-1", None)]
        {
            assert_eq!(wait_in_body(body), seconds.map(Duration::from_secs));
        }
    }

    #[test]
    fn dates_are_read() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Sat, 21 Nov 2026 12:37:43 GMT", Some(1_795_264_663)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Saturday, 21-Nov-26 12:37:43 GMT", Some(1_795_264_663)),
            // Half a century ahead is the last that is meant so.
            ("Friday, 31-Dec-49 00:00:00 GMT", Some(2_524_521_600)),
            ("Sunday, 31-Dec-50 00:00:00 GMT", None),
            ("Sunday, 06-Nov-1994 08:49:37 GMT", None),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Sun Nov 16 08:49:37 1994", Some(784_975_777)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 40 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 99999 08:49:37 GMT", None),
            ("Sun, 06 Nov 94 08:49:37 GMT", None),
            ("Sun 6 Nov 08:49:37 1994", None),
            (", ", None),
        ] {
            assert_eq!(date(text, NOW), seconds, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics_and_what_is_taken_was_asked_for(
            status in prop_oneof![Just(200u16), Just(206), 100u16..999],
            start: u64, len in 1u64.., file_len: u64,
            range in "(bytes )?[0-9]{0,21}-[0-9]{0,21}/[0-9*]{0,21}", length in "[0-9]{0,21}", after in "\\PC{0,30}",
        ) {
            let mut map = headers(&[("content-length", &length)]);
            map.insert("content-range", range.parse().unwrap());
            if let Ok(after) = after.parse() {
                map.insert("retry-after", after);
            }
            let asked = Asked { start, len, file_len };
            for found in [judge(&asked, status, &map, now()), judge_piece(&asked, status, &map, now())].into_iter().flatten() {
                prop_assert_eq!(found.take, len);
            }
        }
    }
}
