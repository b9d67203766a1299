//! The IP filter (`--ip-filter`): addresses whose peers are never dialled, whoever names them, and never answered.
//!
//! Parts: [`Filter`], sorted ranges of both families; the readers of the forms in which such lists are passed around.
//! Of eMule (`a.b.c.d - e.f.g.h , level , text`; a level below 128 blocks), of PeerGuardian (`text:a.b.c.d-e.f.g.h`,
//! where the text may hold colons, commas and dashes), and single addresses and networks (`2001:db8::/32`), with ranges
//! of IPv6 in all of them. Blank lines and those that begin with `#`, `;` or `//` say nothing. Forms may be mixed.
//!
//! Flow: [`Filter::load`] reads a list once, at the start, on a thread that may block; [`Filter::blocks`] is asked
//! before each dial and each answer, takes no lock, and costs a binary search. Lines that can't be read are passed over
//! and told by number ([`Skipped`]); a list of nothing else is refused, so that a wrong file isn't a filter that lets
//! all pass. What a list takes is bounded while it is read: ranges that touch are merged.
//!
//! Bytes are read as they are: the texts may be of any encoding. Nothing is exempt: a list that names private networks
//! blocks the peers in them.
//!
//! Not here: trackers, web servers and nodes of the DHT, which may be at any address; packed lists, lists from the web, and reading a list again while the program runs.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Ranges of IPv4 kept at most, 16 MiB; the largest lists have a few hundred thousand.
const V4_MAX: usize = 2 << 20;
/// Ranges of IPv6 kept at most, 16 MiB.
const V6_MAX: usize = 512 << 10;
/// Longer lines have another sense than ours.
const LINE_MAX: usize = 4096;
/// Longer lists are no lists: a million lines with long texts have a fifth of it.
const BYTES_MAX: u64 = 512 << 20;
/// Unreadable lines that are told one by one.
const TOLD_MAX: usize = 5;
/// Characters of an unreadable line that are told.
const SHOWN_MAX: usize = 60;
/// The longest an IPv6 address is written, with brackets and a blank or two.
const WRITTEN_MAX: usize = 64;
/// Of eMule's levels, those from here on let through.
const LEVEL_ALLOWED: u32 = 128;

/// How files begin that aren't text, and what is told of them.
const FOREIGN: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "it is packed by gzip; unpack it first"),
    (b"PK\x03\x04", "it is packed by zip; unpack it first"),
    (b"BZh", "it is packed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "it is packed by xz; unpack it first"),
    (b"7z\xbc\xaf", "it is packed by 7-Zip; unpack it first"),
    (b"\xff\xff\xff\xffP2B", "it is of the binary form P2B; take the same list as text"),
    (b"\xff\xfe", "it is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16; save it as UTF-8"),
];

/// Addresses whose peers are never spoken to. The default blocks none.
#[derive(Default, PartialEq, Eq)]
pub struct Filter {
    /// First and last address of each range; sorted, and none touches the next.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter of {} ranges", self.len())
    }
}

/// Why a list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It isn't text.
    #[error("{0}")]
    Foreign(&'static str),
    /// It doesn't end.
    #[error("it is longer than {} MiB", BYTES_MAX >> 20)]
    TooLong,
    /// It has more ranges than are kept.
    #[error("line {0}: it has more than {V4_MAX} ranges of IPv4, or {V6_MAX} of IPv6, that don't touch")]
    TooMany(u64),
    /// None of its lines can be read.
    #[error("it is no list of addresses: {0}")]
    Unreadable(Skipped),
}

/// Why a line can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// It is of no form that is known.
    #[error("no range of addresses")]
    Form,
    /// The range ends before it begins.
    #[error("its range ends before it begins")]
    Backwards,
    /// It begins in one family and ends in the other.
    #[error("its range goes from IPv4 to IPv6")]
    Families,
    /// The network has more bits than its family.
    #[error("its network has more bits than an address")]
    Prefix,
    /// It is too long to be of a list.
    #[error("longer than {LINE_MAX} bytes")]
    TooLong,
}

/// A line that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its number, from 1.
    pub line: u64,
    /// How it begins, with nothing in it that a terminal would act on.
    pub text: String,
    /// What is wrong with it.
    pub why: BadLine,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} (\"{}\"): {}", self.line, self.text, self.why)
    }
}

/// The lines that were passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first few of them.
    pub first: Vec<Unreadable>,
}

impl Skipped {
    fn add(&mut self, line: u64, text: &[u8], why: BadLine) {
        self.count += 1;
        if self.first.len() < TOLD_MAX {
            // Each byte a character, as in Latin-1: whatever the encoding, it shows where in the file to look.
            let shown = text.trim_ascii().iter().map(|byte| char::from(*byte)).take(SHOWN_MAX);
            let text = shown.map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            self.first.push(Unreadable { line, text, why });
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "a line can't be read")?,
            n => write!(f, "{n} lines can't be read")?,
        }
        for (n, line) in self.first.iter().enumerate() {
            write!(f, "{} {line}", if n == 0 { ":" } else { ";" })?;
        }
        if self.count > self.first.len() as u64 {
            write!(f, "; and so on")?;
        }
        Ok(())
    }
}

impl Filter {
    /// Reads a list from a file. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn load(path: &Path) -> Result<(Self, Skipped), FilterError> {
        Self::read(BufReader::with_capacity(256 << 10, File::open(path)?))
    }

    /// Reads a list. What was passed over of it is told beside it.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn read(text: impl BufRead) -> Result<(Self, Skipped), FilterError> {
        Self::read_within(text, BYTES_MAX)
    }

    fn read_within(text: impl BufRead, left: u64) -> Result<(Self, Skipped), FilterError> {
        let mut lines = Lines { text, line: Vec::with_capacity(LINE_MAX + 1), number: 0, left };
        let mut v4 = Ranges { all: Vec::new(), max: V4_MAX };
        let mut v6 = Ranges { all: Vec::new(), max: V6_MAX };
        let (mut skipped, mut readable) = (Skipped::default(), false);
        while let Some((number, line)) = lines.next()? {
            let said = match line {
                Ok(line) => entry(line).map_err(|why| (line, why)),
                Err(start) => Err((start, BadLine::TooLong)),
            };
            let room = match said {
                Ok(Entry::Nothing) => continue,
                Ok(Entry::Allowed) => Ok(()),
                Ok(Entry::Blocked(Range::V4(first, last))) => v4.add(first, last),
                Ok(Entry::Blocked(Range::V6(first, last))) => v6.add(first, last),
                Err((text, why)) => {
                    skipped.add(number, text, why);
                    continue;
                }
            };
            room.map_err(|Full| FilterError::TooMany(number))?;
            readable = true;
        }
        if !readable && skipped.count > 0 {
            return Err(FilterError::Unreadable(skipped));
        }
        Ok((Self { v4: v4.finish(), v6: v6.finish() }, skipped))
    }

    /// Whether an address is never to be spoken to. IPv4 within IPv6 is IPv4.
    pub fn blocks(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => within(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => within(&self.v6, ip.to_bits()),
        }
    }

    /// Ranges, merged.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether it blocks nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether one of sorted ranges that don't overlap has it.
fn within<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| ip <= *last)
}

/// There are more ranges than are kept.
struct Full;

/// Numbers that addresses are.
trait Address: Ord + Copy {
    /// The one after it; the last has none.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// The ranges of a family while they are read.
struct Ranges<T> {
    all: Vec<(T, T)>,
    max: usize,
}

impl<T: Address> Ranges<T> {
    fn add(&mut self, first: T, last: T) -> Result<(), Full> {
        if self.all.len() >= self.max {
            self.merge();
            // With less room than this gave, each few lines would have all of them sorted anew.
            if self.all.len() > self.max / 8 * 7 {
                return Err(Full);
            }
        }
        self.all.push((first, last));
        Ok(())
    }

    /// Sorts them, and makes one of those that overlap or touch.
    fn merge(&mut self) {
        self.all.sort_unstable();
        self.all.dedup_by(|(first, last), before| {
            let touches = before.1.next().is_none_or(|next| *first <= next);
            if touches {
                before.1 = before.1.max(*last);
            }
            touches
        });
    }

    fn finish(mut self) -> Box<[(T, T)]> {
        self.merge();
        self.all.into_boxed_slice()
    }
}

/// The lines of a text, each of bounded length, up to a bounded end.
struct Lines<R> {
    text: R,
    line: Vec<u8>,
    number: u64,
    /// Bytes that may still come.
    left: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line and its number; of one that is too long, its beginning as an error. None at the end.
    #[allow(
        clippy::type_complexity,
        reason = "a line or the head of one, an end, or a failure: each is used once"
    )]
    fn next(&mut self) -> Result<Option<(u64, Result<&[u8], &[u8]>)>, FilterError> {
        self.line.clear();
        self.number += 1;
        let part = |text: &mut R, line: &mut Vec<u8>| {
            text.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', line)
        };
        let mut read = part(&mut self.text, &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.count(read)?;
        let long = read > LINE_MAX && !self.line.ends_with(b"\n");
        let mut rest = Vec::new();
        while long && read > 0 && !rest.ends_with(b"\n") {
            rest.clear();
            read = part(&mut self.text, &mut rest)?;
            self.count(read)?;
        }
        let mut line = self.line.as_slice();
        if self.number == 1 {
            if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| line.starts_with(magic)) {
                return Err(FilterError::Foreign(what));
            }
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        Ok(Some((self.number, if long { Err(line) } else { Ok(line) })))
    }

    fn count(&mut self, read: usize) -> Result<(), FilterError> {
        self.left = self.left.checked_sub(read as u64).ok_or(FilterError::TooLong)?;
        Ok(())
    }
}

/// First and last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

impl Range {
    fn new(first: IpAddr, last: IpAddr) -> Result<Self, BadLine> {
        // Both ends, so that `::ffff:0:0/96` is all of IPv4, and `::/0` is IPv6.
        let range = match (first.to_canonical(), last.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Self::V4(first.to_bits(), last.to_bits()),
            _ => match (first, last) {
                (IpAddr::V6(first), IpAddr::V6(last)) => Self::V6(first.to_bits(), last.to_bits()),
                _ => return Err(BadLine::Families),
            },
        };
        match range {
            Self::V4(first, last) if first > last => Err(BadLine::Backwards),
            Self::V6(first, last) if first > last => Err(BadLine::Backwards),
            range => Ok(range),
        }
    }
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Blocked(Range),
    /// A range that eMule lets through: an account of who has it.
    Allowed,
    /// A comment, or blank.
    Nothing,
}

/// Reads a line.
fn entry(line: &[u8]) -> Result<Entry, BadLine> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") || line.starts_with(b"//") {
        return Ok(Entry::Nothing);
    }
    let Some(comma) = line.iter().position(|byte| *byte == b',') else {
        let bare = line.split(|byte| matches!(byte, b'#' | b';')).next().unwrap_or_default();
        return range(bare)
            .or_else(|why| peer_guardian(line).map_err(|other| worse(why, other)))
            .map(Entry::Blocked);
    };
    let (head, rest) = line.split_at(comma);
    let level =
        rest.get(1..).unwrap_or_default().split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    match range(head) {
        Ok(range) => match digits(level) {
            Some(level) if level >= LEVEL_ALLOWED => Ok(Entry::Allowed),
            Some(_) => Ok(Entry::Blocked(range)),
            // The comma may stand in a PeerGuardian text that begins with an address.
            None => Ok(Entry::Blocked(peer_guardian(line).unwrap_or(range))),
        },
        Err(why) => peer_guardian(line).map_err(|other| worse(why, other)).map(Entry::Blocked),
    }
}

/// Of what is wrong by two readings, the one that says more.
fn worse(one: BadLine, other: BadLine) -> BadLine {
    if one == BadLine::Form { other } else { one }
}

/// Reads `text:first-last`, from the right.
fn peer_guardian(line: &[u8]) -> Result<Range, BadLine> {
    let dash = line.iter().rposition(|byte| *byte == b'-').ok_or(BadLine::Form)?;
    let (before, last) = (&line[..dash], &line[dash + 1..]);
    let last = address(last).ok_or(BadLine::Form)?;
    let mut colons =
        before.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| &before[at + 1..]);
    let first = match last {
        IpAddr::V4(_) => colons.next_back().and_then(address).ok_or(BadLine::Form)?,
        // Where the text ends is known only from what can be an address: the longest that begins as the last one does, or
        // else the longest.
        IpAddr::V6(last) => {
            let mut all = colons.filter(|text| text.len() <= WRITTEN_MAX).filter_map(address);
            let alike = |first: &IpAddr| matches!(first, IpAddr::V6(first) if first.segments()[0] == last.segments()[0]);
            let longest = all.clone().next();
            all.find(alike).or(longest).ok_or(BadLine::Form)?
        }
    };
    Range::new(first, last)
}

/// Reads an address, `first - last`, or `address/bits`.
fn range(text: &[u8]) -> Result<Range, BadLine> {
    let split = |by: u8| text.iter().position(|byte| *byte == by).map(|at| (&text[..at], &text[at + 1..]));
    if let Some((first, last)) = split(b'-') {
        let (first, last) = address(first).zip(address(last)).ok_or(BadLine::Form)?;
        return Range::new(first, last);
    }
    if let Some((network, bits)) = split(b'/') {
        let (network, bits) = address(network).zip(digits(bits.trim_ascii())).ok_or(BadLine::Form)?;
        return match network {
            // Whatever stands behind the network's bits doesn't count, as in 10.1.2.3/8.
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(bits).unwrap_or(0);
                let first = ip.to_bits() & !host;
                let fits = bits <= 32;
                let ends = || Range::new(Ipv4Addr::from(first).into(), Ipv4Addr::from(first | host).into());
                if fits { ends() } else { Err(BadLine::Prefix) }
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(bits).unwrap_or(0);
                let first = ip.to_bits() & !host;
                let fits = bits <= 128;
                let ends = || Range::new(Ipv6Addr::from(first).into(), Ipv6Addr::from(first | host).into());
                if fits { ends() } else { Err(BadLine::Prefix) }
            }
        };
    }
    let only = address(text).ok_or(BadLine::Form)?;
    Range::new(only, only)
}

/// Reads an address, with blanks around it. IPv4 may have leading zeros, which lists mean as decimal; IPv6 brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = text.trim_ascii();
    if let Some(ip) = dotted(text) {
        return Some(IpAddr::V4(ip));
    }
    let bare = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text);
    if !bare.contains(&b':') {
        return None;
    }
    std::str::from_utf8(bare).ok()?.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// Four decimal numbers.
fn dotted(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        *octet = u8::try_from(digits(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A number of one to three digits, and nothing else.
fn digits(text: &[u8]) -> Option<u32> {
    let fits = (1..=3).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    fits.then(|| text.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> (Filter, Skipped) {
        Filter::read(text).unwrap()
    }

    /// What a line blocks, as text; `-` for what it lets through, empty for nothing.
    fn shown(line: &[u8]) -> Result<String, BadLine> {
        Ok(match entry(line)? {
            Entry::Nothing => String::new(),
            Entry::Allowed => "-".to_owned(),
            Entry::Blocked(Range::V4(a, b)) => format!("{}-{}", Ipv4Addr::from(a), Ipv4Addr::from(b)),
            Entry::Blocked(Range::V6(a, b)) => format!("{}-{}", Ipv6Addr::from(a), Ipv6Addr::from(b)),
        })
    }

    #[test]
    fn lines_of_every_form() {
        let rows: &[(&[u8], Result<&str, BadLine>)] = &[
            // Blank, and comments.
            (b"", Ok("")),
            (b" \t\r\n", Ok("")),
            (b"# 1.2.3.4", Ok("")),
            (b"  // 1.2.3.4", Ok("")),
            (b"; 1.2.3.4", Ok("")),
            // eMule.
            (b"001.002.004.000 - 001.002.004.255 , 000 , Some Company\r\n", Ok("1.2.4.0-1.2.4.255")),
            (b"1.2.3.4-1.2.3.5,127,x", Ok("1.2.3.4-1.2.3.5")),
            (b"1.2.3.4 - 1.2.3.5 , 128 , let through", Ok("-")),
            (b"1.2.3.4 - 1.2.3.5 , 200", Ok("-")),
            (b"1.2.3.4 - 1.2.3.5 ,  , no level", Ok("1.2.3.4-1.2.3.5")),
            (b"1.2.3.4 - 1.2.3.5 , a text", Ok("1.2.3.4-1.2.3.5")),
            (b"1.2.3.4 - 1.2.3.5 , 000 , caf\xe9: a, b - c", Ok("1.2.3.4-1.2.3.5")),
            (b"2001:db8:: - 2001:db8::ffff , 0 , x", Ok("2001:db8::-2001:db8::ffff")),
            (b"1.2.3.4 , 000 , one", Ok("1.2.3.4-1.2.3.4")),
            (b"010.008.000.009 - 010.008.000.010", Ok("10.8.0.9-10.8.0.10")),
            // PeerGuardian.
            (b"Some Company:1.2.3.4-1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b"a: b-c, d:1.2.3.4-1.2.3.5\r", Ok("1.2.3.4-1.2.3.5")),
            (b"#1 in town:1.2.3.4-1.2.3.5", Ok("")),
            (b"Level #1:1.2.3.4-1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b"9.9.9.9, Inc:1.2.3.4-1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b"9.9.9.9:1.2.3.4-1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b":1.2.3.4-1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b"\xff\xfe\x00: 1.2.3.4 - 1.2.3.5", Ok("1.2.3.4-1.2.3.5")),
            (b"Six:2001:db8::1-2001:db8::2", Ok("2001:db8::1-2001:db8::2")),
            (b"a: b:2001:db8::1-2001:db8::2", Ok("2001:db8::1-2001:db8::2")),
            (b"x:[2001:db8::1]-[2001:db8::2]", Ok("2001:db8::1-2001:db8::2")),
            (b"fade:2001:db8::1-2001:db8::2", Ok("2001:db8::1-2001:db8::2")),
            (b"x:2001:db8::-2003::", Ok("2001:db8::-2003::")),
            // Addresses and networks.
            (b"1.2.3.4", Ok("1.2.3.4-1.2.3.4")),
            (b"1.2.3.4/24", Ok("1.2.3.0-1.2.3.255")),
            (b"1.2.3.0/24 ; SBL1", Ok("1.2.3.0-1.2.3.255")),
            (b"1.2.3.4 # why", Ok("1.2.3.4-1.2.3.4")),
            (b"0.0.0.0/0", Ok("0.0.0.0-255.255.255.255")),
            (b"1.2.3.4/32", Ok("1.2.3.4-1.2.3.4")),
            (b"2001:DB8::1", Ok("2001:db8::1-2001:db8::1")),
            (b"2001:db8::1/32", Ok("2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")),
            (b"::/0", Ok("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
            (b"fe80::1/128", Ok("fe80::1-fe80::1")),
            (b"::ffff:1.2.3.4", Ok("1.2.3.4-1.2.3.4")),
            (b"::ffff:1.2.3.0/120", Ok("1.2.3.0-1.2.3.255")),
            (b"::ffff:0:0/96", Ok("0.0.0.0-255.255.255.255")),
            // None of them.
            (b"1.2.3", Err(BadLine::Form)),
            (b"1.2.3.4.5", Err(BadLine::Form)),
            (b"1.2.3.256", Err(BadLine::Form)),
            (b"1.2.3.0004", Err(BadLine::Form)),
            (b"1.2.3.+4", Err(BadLine::Form)),
            (b"1.2.3.4-", Err(BadLine::Form)),
            (b"-1.2.3.4", Err(BadLine::Form)),
            (b"1.2.3.4/", Err(BadLine::Form)),
            (b"1.2.3.4/+8", Err(BadLine::Form)),
            (b"1.2.3.4/33", Err(BadLine::Prefix)),
            (b"::/129", Err(BadLine::Prefix)),
            (b"1.2.3.5 - 1.2.3.4 , 0 , x", Err(BadLine::Backwards)),
            (b"x:1.2.3.5-1.2.3.4", Err(BadLine::Backwards)),
            (b"::2-::1", Err(BadLine::Backwards)),
            (b"x:2001:db8::2-2001:db8::1", Err(BadLine::Backwards)),
            (b"1.2.3.4 - ::1", Err(BadLine::Families)),
            (b"fe80::1%eth0", Err(BadLine::Form)),
            (b"<html>", Err(BadLine::Form)),
            (b"bad.example", Err(BadLine::Form)),
            (b"-", Err(BadLine::Form)),
            (b":", Err(BadLine::Form)),
            (b",", Err(BadLine::Form)),
        ];
        for (line, want) in rows {
            let text = String::from_utf8_lossy(line);
            assert_eq!(shown(line), want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn a_list_of_all_forms_blocks_what_it_says() {
        let list = b"\xef\xbb\xbf1.0.0.0 - 1.0.0.255 , 0 , a\r\n# c\r\n\r\nb:1.0.1.0-1.0.1.255\n9.9.9.0/30\n::1\n5.5.5.5 - 5.5.5.9 , 130 , ok";
        let (filter, skipped) = read(list);
        assert_eq!((filter.len(), skipped), (3, Skipped::default()), "ranges that touch are one");
        for (ip, blocked) in [
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("1.0.1.255", true),
            ("1.0.2.0", false),
            ("::ffff:1.0.0.7", true),
            ("9.9.9.3", true),
            ("9.9.9.4", false),
            ("5.5.5.5", false),
            ("::1", true),
            ("::2", false),
            ("::", false),
        ] {
            assert_eq!(filter.blocks(ip.parse().unwrap()), blocked, "{ip}");
        }
        assert!(!Filter::default().blocks("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn ends_of_the_space_are_blocked_and_no_number_overflows() {
        let (filter, _) = read(b"255.255.255.255\n255.255.255.0/24\n0.0.0.0\nffff::/16\nffff::1\n::\n");
        assert_eq!(filter.len(), 4);
        for ip in ["255.255.255.255", "0.0.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"] {
            assert!(filter.blocks(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["255.255.254.255", "0.0.0.1", "fffe:ffff::", "::1"] {
            assert!(!filter.blocks(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn unreadable_lines_are_told_by_number_and_a_list_of_nothing_else_is_refused() {
        let (filter, skipped) = read(b"1.2.3.4\nno\x1b[2Jthing\n\n2.2.2.2-1.1.1.1\n");
        assert_eq!((filter.len(), skipped.count), (1, 2));
        assert_eq!(
            skipped.to_string(),
            "2 lines can't be read: line 2 (\"no\u{fffd}[2Jthing\"): no range of addresses; line 4 (\"2.2.2.2-1.1.1.1\"): its range ends before it begins"
        );
        let (_, skipped) = read(format!("1.1.1.1\n{}", "x\n".repeat(9)).as_bytes());
        assert_eq!((skipped.count, skipped.first.len()), (9, TOLD_MAX));
        assert!(skipped.to_string().ends_with("; and so on"), "{skipped}");

        let refused = |text: &[u8]| Filter::read(text).unwrap_err().to_string();
        assert_eq!(
            refused(b"<html>\n"),
            "it is no list of addresses: a line can't be read: line 1 (\"<html>\"): no range of addresses"
        );
        assert!(refused(b"\x1f\x8b\x08").contains("gzip"));
        assert!(refused(b"\xff\xff\xff\xffP2B\x01").contains("P2B"));
        // A list that blocks nothing is one all the same.
        assert!(read(b"").0.is_empty());
        assert!(read(b"# nothing\n").0.is_empty());
        assert!(read(b"1.1.1.1 - 1.1.1.2 , 255 , x\n").0.is_empty());
        assert!(matches!(Filter::load(Path::new("/nowhere")), Err(FilterError::Io(_))));
    }

    #[test]
    fn what_is_read_is_bounded() {
        // A long line is passed over, and so is one that is just too long; what follows is read.
        for (len, readable) in
            [(LINE_MAX, true), (LINE_MAX + 1, true), (LINE_MAX + 2, false), (3 * LINE_MAX + 5, false)]
        {
            let pad = |len: usize| format!("{:>len$}", "1.2.3.4");
            let (filter, skipped) = read(format!("{}\n9.9.9.9\n", pad(len - 1)).as_bytes());
            assert_eq!(
                (filter.len(), skipped.count),
                (1 + usize::from(readable), u64::from(!readable)),
                "{len}"
            );
            if let [line] = &skipped.first[..] {
                assert_eq!((line.line, line.why), (1, BadLine::TooLong));
            }
        }
        // Without an end.
        for bytes in [&[0; 5000][..], b"1.2.3.4\n"] {
            let endless = Filter::read_within(BufReader::new(Repeat { bytes, at: 0 }), 1 << 20);
            assert!(matches!(endless.unwrap_err(), FilterError::TooLong));
        }
        // Ranges that don't touch, beyond what is kept; those that do are merged on the way.
        let mut few = Ranges { all: Vec::new(), max: 64 };
        assert!((0..10_000u32).all(|n| few.add(n, n + 3).is_ok()));
        assert_eq!(few.finish().as_ref(), [(0, 10_002)]);
        let mut many = Ranges { all: Vec::new(), max: 64 };
        assert_eq!((0..10_000u32).take_while(|n| many.add(2 * n, 2 * n).is_ok()).count(), 64);
    }

    /// The same bytes without end.
    struct Repeat {
        bytes: &'static [u8],
        at: usize,
    }

    impl Read for Repeat {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = to.len().min(self.bytes.len() - self.at);
            to[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
            self.at = (self.at + n) % self.bytes.len();
            Ok(n)
        }
    }

    /// How long this thread has had a processor: other work of the machine isn't ours.
    fn on_cpu() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
    }

    #[test]
    fn half_a_million_ranges_are_read_and_looked_up_in_time() {
        let mut list = String::with_capacity(40 << 20);
        let at = |n: u32| Ipv4Addr::from(n.wrapping_mul(2_654_435_761));
        for n in 0..500_000u32 {
            use fmt::Write;
            let (first, last) = (at(n), Ipv4Addr::from(at(n).to_bits().saturating_add(99)));
            match n % 3 {
                0 => writeln!(list, "{first} - {last} , 000 , Some Company of a usual name").unwrap(),
                1 => writeln!(list, "Some Company: of a usual name:{first}-{last}").unwrap(),
                _ => writeln!(list, "2001:db8:{:x}:{:x}::/64", n >> 16, n & 0xffff).unwrap(),
            }
        }
        let start = on_cpu();
        let (filter, skipped) = read(list.as_bytes());
        let took = on_cpu() - start;
        assert_eq!(skipped.count, 0);
        assert!(filter.len() > 400_000, "{}", filter.len());
        let looks = 1_000_000u32;
        let ip = |n: u32| IpAddr::from(Ipv4Addr::from(n.wrapping_mul(747_796_405)));
        let start = on_cpu();
        let blocked = (0..looks).filter(|n| filter.blocks(ip(*n))).count();
        let each = (on_cpu() - start) / looks;
        println!("{} ranges in {took:?}, a look in {each:?}, {blocked} blocked", filter.len());
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(each < Duration::from_micros(2), "{each:?}");
    }

    proptest! {
        #[test]
        fn it_blocks_what_a_plain_list_blocks(
            ranges in prop::collection::vec((0u32..2000, 0u32..40, 0u8..4), 0..60),
            looks in prop::collection::vec(0u32..2100, 50),
        ) {
            let ip = |n: u32| Ipv4Addr::from(0x0a00_0000 + n);
            let mut list = String::new();
            for (first, len, form) in &ranges {
                let (a, b) = (ip(*first), ip(first + len));
                list += &match form {
                    0 => format!("{a} - {b} , 000 , x\n"),
                    1 => format!("x:{a}-{b}\n"),
                    2 => format!("{a}-{b}\n"),
                    _ => format!("::ffff:{a} - ::ffff:{b}\n"),
                };
            }
            let (filter, skipped) = read(list.as_bytes());
            prop_assert_eq!(skipped.count, 0);
            prop_assert!(filter.v4.windows(2).all(|w| w[0].1 + 1 < w[1].0), "sorted, and none touches the next");
            for look in looks {
                let plain = ranges.iter().any(|(first, len, _)| (*first..=first + len).contains(&look));
                prop_assert_eq!(filter.blocks(ip(look).into()), plain);
                prop_assert_eq!(filter.blocks(ip(look).to_ipv6_mapped().into()), plain);
            }
        }

        #[test]
        fn networks_of_ipv6_are_as_the_bits_say(net: u128, bits in 0u32..=128, look: u128, near in any::<bool>()) {
            let (filter, _) = read(format!("{}/{bits}", Ipv6Addr::from(net)).as_bytes());
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let look = if near { (net & !host) | (look & host) } else { look };
            let (net, ip) = (Ipv6Addr::from(net & !host), Ipv6Addr::from(look));
            // IPv4 has its own part of the list.
            prop_assume!(net.to_ipv4_mapped().is_none() && ip.to_ipv4_mapped().is_none());
            prop_assert_eq!(filter.blocks(ip.into()), look & !host == net.to_bits());
        }

        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>, parts in prop::collection::vec("[0-9a-f.:,/ #\\-\\[\\]]{0,40}", 0..8)) {
            let _ = Filter::read(&text[..]);
            let _ = Filter::read(parts.join("\n").as_bytes());
        }
    }
}
