//! Bencode (BEP 3): a checking parser that copies nothing, and an encoder.
//!
//! [`parse`] walks the whole input once, without recursion, against [`Limits`], and refuses what isn't
//! bencode with the byte where it went wrong. What it gives is a [`Value`]: the slice of the input that the
//! value takes, known to be well-formed. Reading a list or dictionary walks that slice again, so there is no
//! tree in memory however hostile the input is, and the exact bytes of every value (the info dictionary's
//! hash needs them) are there for free. A byte string is stepped over without looking at it, so a walk costs
//! what there are tokens, not bytes; [`Value::get`] is linear, which is right for dictionaries of a few keys.
//!
//! Integers are 64 bits wide and checked; `-0`, leading zeros and empty numbers are refused, because two
//! spellings of one value would be two info-hashes. Dictionaries may be unsorted and may repeat a key, since
//! real files do: the order of the file is kept, and the first of equal keys wins.
//!
//! Not here: mapping to Rust types (serde), and sorting keys on output: the caller writes them in order.

use std::fmt;

/// What a parse may cost. All are checked before anything is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of input that may be looked at.
    pub size: usize,
    /// Lists and dictionaries open at once.
    pub depth: usize,
    /// Values, keys and ends together.
    pub tokens: usize,
}

impl Limits {
    /// For `.torrent` files and metadata. 128 MiB hold four million pieces of v2 hashes, or six of v1. 128
    /// levels hold the deepest path that a file system takes in practice. 16 million tokens are about two
    /// million files, and take well under a second.
    pub const TORRENT: Limits = Limits { size: 128 << 20, depth: 128, tokens: 16 << 20 };

    /// For messages of peers and trackers: a reply with some thousand peers is well within.
    pub const MESSAGE: Limits = Limits { size: 2 << 20, depth: 16, tokens: 64 << 10 };
}

/// Parses the whole input as one value, within [`Limits::TORRENT`].
///
/// # Errors
/// What is wrong and at which byte; bytes behind the value are an error too.
pub fn parse(input: &[u8]) -> Result<Value<'_>, BencodeError> {
    parse_with(input, Limits::TORRENT)
}

/// Parses the whole input as one value, within `limits`.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(input: &[u8], limits: Limits) -> Result<Value<'_>, BencodeError> {
    if input.len() > limits.size {
        return Err(BencodeError { at: limits.size, kind: BencodeErrorKind::TooLarge(limits.size) });
    }
    let (value, consumed) = parse_prefix_with(input, limits)?;
    if consumed < input.len() {
        return Err(BencodeError { at: consumed, kind: BencodeErrorKind::Trailing });
    }
    Ok(value)
}

/// Parses one value at the start of the input, within [`Limits::TORRENT`], and says how many bytes it took
/// (BEP 9 data messages have the data behind).
///
/// # Errors
/// What is wrong and at which byte.
pub fn parse_prefix(input: &[u8]) -> Result<(Value<'_>, usize), BencodeError> {
    parse_prefix_with(input, Limits::TORRENT)
}

/// [`parse_prefix`] within `limits`; bytes behind the value don't count against the size.
///
/// # Errors
/// As [`parse_prefix`].
pub fn parse_prefix_with(input: &[u8], limits: Limits) -> Result<(Value<'_>, usize), BencodeError> {
    let cut = input.len() > limits.size;
    let seen = input.get(..limits.size).unwrap_or(input);
    match check(seen, limits) {
        Ok(end) => Ok((Value { raw: seen.get(..end).unwrap_or(seen) }, end)),
        Err(BencodeError { at, kind: BencodeErrorKind::Truncated }) if cut => {
            Err(BencodeError { at, kind: BencodeErrorKind::TooLarge(limits.size) })
        }
        Err(error) => Err(error),
    }
}

/// A well-formed value: the bytes it takes in the input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    raw: &'a [u8],
}

impl<'a> Value<'a> {
    /// The exact bytes of the value, from its first to its last.
    pub fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// The number, if it is one.
    pub fn as_int(self) -> Option<i64> {
        match token(self.raw, 0) {
            Ok((Token::Int(n), _)) => Some(n),
            _ => None,
        }
    }

    /// The byte string, if it is one.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match token(self.raw, 0) {
            Ok((Token::Bytes(bytes), _)) => Some(bytes),
            _ => None,
        }
    }

    /// The byte string, if it is one and is valid UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The items, if it is a list.
    pub fn list(self) -> Option<List<'a>> {
        (self.raw.first() == Some(&b'l')).then(|| List { rest: self.raw.get(1..).unwrap_or_default() })
    }

    /// The entries in the order of the input, repeated keys included, if it is a dictionary.
    pub fn dict(self) -> Option<Dict<'a>> {
        self.is_dict().then(|| Dict { rest: self.raw.get(1..).unwrap_or_default() })
    }

    /// Whether it is a dictionary.
    pub fn is_dict(self) -> bool {
        self.raw.first() == Some(&b'd')
    }

    /// The first value under `key`, if it is a dictionary that has it. Linear in the entries.
    pub fn get(self, key: impl AsRef<[u8]>) -> Option<Value<'a>> {
        self.dict()?.find(|(k, _)| *k == key.as_ref()).map(|(_, value)| value)
    }
}

/// Shortened to what a log line can hold.
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.raw.get(..96).unwrap_or(self.raw);
        let more = if shown.len() < self.raw.len() { "…" } else { "" };
        write!(f, "Value({}{more}, {} bytes)", shown.escape_ascii(), self.raw.len())
    }
}

/// The items of a list.
#[derive(Debug, Clone)]
pub struct List<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for List<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let value = leading(self.rest)?;
        self.rest = self.rest.get(value.raw.len()..)?;
        Some(value)
    }
}

/// The entries of a dictionary, in the order of the input.
#[derive(Debug, Clone)]
pub struct Dict<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Dict<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<(&'a [u8], Value<'a>)> {
        let Ok((Token::Bytes(key), after)) = token(self.rest, 0) else { return None };
        let rest = self.rest.get(after..)?;
        let value = leading(rest)?;
        self.rest = rest.get(value.raw.len()..)?;
        Some((key, value))
    }
}

/// What is wrong with an input, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not valid bencode at byte {at}: {kind}")]
pub struct BencodeError {
    /// The byte, from 0, where it was noticed.
    pub at: usize,
    /// What it is.
    pub kind: BencodeErrorKind,
}

/// The kinds of [`BencodeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BencodeErrorKind {
    /// The input ends inside a value, or a string is said to be longer than the input.
    #[error("the input ends inside a value (truncated)")]
    Truncated,
    /// A byte that begins no value.
    #[error("unexpected byte 0x{0:02x}, no value begins with it")]
    Unexpected(u8),
    /// An end mark with nothing open, or a dictionary that ends after a key.
    #[error("an end mark where a value must stand")]
    StrayEnd,
    /// A dictionary key that isn't a byte string.
    #[error("a dictionary key that is not a string")]
    KeyNotString,
    /// Empty, `-0`, a leading zero or a byte that is no digit.
    #[error("a badly written number")]
    BadNumber,
    /// A number that 64 bits don't hold.
    #[error("a number that does not fit in 64 bits")]
    Overflow,
    /// [`Limits::depth`].
    #[error("nested more than {0} levels deep")]
    TooDeep(usize),
    /// [`Limits::tokens`].
    #[error("more than {0} values")]
    TooMany(usize),
    /// [`Limits::size`].
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// Something stands behind the value.
    #[error("bytes behind the end of the value")]
    Trailing,
}

/// One step of the input.
enum Token<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List,
    Dict,
    End,
}

/// Reads the token at `at` and says where the next one begins.
fn token(input: &[u8], at: usize) -> Result<(Token<'_>, usize), BencodeError> {
    let fail = |at, kind| Err(BencodeError { at, kind });
    match input.get(at) {
        None => fail(input.len(), BencodeErrorKind::Truncated),
        Some(b'l') => Ok((Token::List, at + 1)),
        Some(b'd') => Ok((Token::Dict, at + 1)),
        Some(b'e') => Ok((Token::End, at + 1)),
        Some(b'i') => {
            let negative = input.get(at + 1) == Some(&b'-');
            let digits = at + 1 + usize::from(negative);
            let (magnitude, end) = number(input, digits, b'e')?;
            let value = match (negative, magnitude) {
                (true, 0) => return fail(at + 1, BencodeErrorKind::BadNumber),
                (true, m) => 0i64.checked_sub_unsigned(m),
                (false, m) => i64::try_from(m).ok(),
            };
            match value {
                Some(n) => Ok((Token::Int(n), end)),
                None => fail(at + 1, BencodeErrorKind::Overflow),
            }
        }
        Some(b'0'..=b'9') => {
            let (len, start) = number(input, at, b':')?;
            let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
            match end.and_then(|end| Some((input.get(start..end)?, end))) {
                Some((bytes, end)) => Ok((Token::Bytes(bytes), end)),
                None => fail(at, BencodeErrorKind::Truncated),
            }
        }
        Some(&other) => fail(at, BencodeErrorKind::Unexpected(other)),
    }
}

/// Reads decimal digits from `from` up to `stop`; gives the number and the place behind `stop`.
fn number(input: &[u8], from: usize, stop: u8) -> Result<(u64, usize), BencodeError> {
    let mut value = 0u64;
    let mut at = from;
    loop {
        match input.get(at) {
            None => return Err(BencodeError { at: input.len(), kind: BencodeErrorKind::Truncated }),
            Some(&digit @ b'0'..=b'9') => {
                let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')));
                value = next.ok_or(BencodeError { at: from, kind: BencodeErrorKind::Overflow })?;
                // Checked while reading, so that a megabyte of zeros ends at the second one.
                if at > from && input.get(from) == Some(&b'0') {
                    return Err(BencodeError { at: from, kind: BencodeErrorKind::BadNumber });
                }
                at += 1;
            }
            Some(&byte) if byte == stop && at > from => return Ok((value, at + 1)),
            Some(_) => return Err(BencodeError { at, kind: BencodeErrorKind::BadNumber }),
        }
    }
}

/// What may come next inside an open list or dictionary.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Item,
    Key,
    KeyedValue,
}

/// Checks one value at the start of `input` and gives its end.
fn check(input: &[u8], limits: Limits) -> Result<usize, BencodeError> {
    let mut open: Vec<Place> = Vec::new();
    let mut at = 0;
    let mut tokens = 0usize;
    loop {
        let (read, next) = token(input, at)?;
        let fail = |kind| Err(BencodeError { at, kind });
        tokens += 1;
        if tokens > limits.tokens {
            return fail(BencodeErrorKind::TooMany(limits.tokens));
        }
        match (&read, open.last()) {
            (Token::End, None | Some(Place::KeyedValue)) => return fail(BencodeErrorKind::StrayEnd),
            (Token::End, Some(Place::Item | Place::Key)) => {
                open.pop();
            }
            (Token::Bytes(_), Some(Place::Key)) => {}
            (_, Some(Place::Key)) => return fail(BencodeErrorKind::KeyNotString),
            _ => {}
        }
        // The token was a key, opened a container, or ended a value.
        match (&read, open.last_mut()) {
            (Token::Bytes(_), Some(place @ Place::Key)) => *place = Place::KeyedValue,
            (Token::List | Token::Dict, _) => {
                if open.len() >= limits.depth {
                    return fail(BencodeErrorKind::TooDeep(limits.depth));
                }
                open.push(if matches!(read, Token::List) { Place::Item } else { Place::Key });
            }
            (_, Some(place @ Place::KeyedValue)) => *place = Place::Key,
            (_, Some(_)) => {}
            (_, None) => return Ok(next),
        }
        at = next;
    }
}

/// The value at the start of bytes that were checked before; none at the end mark of what holds it.
fn leading(checked: &[u8]) -> Option<Value<'_>> {
    let (mut at, mut depth) = (0, 0usize);
    loop {
        let (read, next) = token(checked, at).ok()?;
        at = next;
        match read {
            Token::List | Token::Dict => depth += 1,
            Token::End => depth = depth.checked_sub(1)?,
            Token::Int(_) | Token::Bytes(_) => {}
        }
        if depth == 0 {
            return Some(Value { raw: checked.get(..at)? });
        }
    }
}

/// Writes bencode. The caller writes keys in ascending order and ends what it begins.
#[derive(Debug, Default, Clone)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a dictionary; ended by [`Encoder::end`].
    pub fn dict_begin(&mut self) -> &mut Self {
        self.out.push(b'd');
        self
    }

    /// Begins a list; ended by [`Encoder::end`].
    pub fn list_begin(&mut self) -> &mut Self {
        self.out.push(b'l');
        self
    }

    /// Ends the innermost list or dictionary.
    pub fn end(&mut self) -> &mut Self {
        self.out.push(b'e');
        self
    }

    /// Writes a dictionary key; its value comes next.
    pub fn key(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.bytes(key)
    }

    /// Writes a number.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.out.push(b'i');
        self.out.extend_from_slice(value.to_string().as_bytes());
        self.out.push(b'e');
        self
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.out.extend_from_slice(value.len().to_string().as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(value);
        self
    }

    /// Writes a value that is bencoded already.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.out.extend_from_slice(value);
        self
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_stands_there() {
        let input = b"d1:ai-7e4:listl3:abci0e0:dee1:zd1:q1:xee";
        let root = parse(input).unwrap();
        assert_eq!(root.raw(), input);
        assert_eq!(root.get("a").unwrap().as_int(), Some(-7));
        let items: Vec<_> = root.get("list").unwrap().list().unwrap().map(Value::raw).collect();
        assert_eq!(items, [&b"3:abc"[..], b"i0e", b"0:", b"de"]);
        assert_eq!(root.get("z").unwrap().get("q").unwrap().as_str(), Some("x"));
        assert_eq!(root.get("z").unwrap().raw(), b"d1:q1:xe");
        assert_eq!(root.get("missing"), None);
        assert_eq!(root.as_int(), None);
        assert!(root.list().is_none());
        let keys: Vec<_> = root.dict().unwrap().map(|(k, _)| k).collect();
        assert_eq!(keys, [&b"a"[..], b"list", b"z"]);
    }

    #[test]
    fn unsorted_and_repeated_keys_are_taken_and_the_first_wins() {
        let root = parse(b"d1:bi1e1:ai2e1:bi3ee").unwrap();
        assert_eq!(root.get("b").unwrap().as_int(), Some(1));
        assert_eq!(root.dict().unwrap().count(), 3);
    }

    #[test]
    fn numbers_at_the_edges() {
        for (text, value) in [
            ("i0e", 0),
            ("i9223372036854775807e", i64::MAX),
            ("i-9223372036854775808e", i64::MIN),
            ("i-1e", -1),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().as_int(), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_byte() {
        use BencodeErrorKind::*;
        for (input, at, kind) in [
            (&b""[..], 0, Truncated),
            (b"i12", 3, Truncated),
            (b"5:abc", 0, Truncated),
            (b"12", 2, Truncated),
            (b"d1:a", 4, Truncated),
            (b"li1e", 4, Truncated),
            (b"i-0e", 1, BadNumber),
            (b"i03e", 1, BadNumber),
            (b"i00e", 1, BadNumber),
            (b"ie", 1, BadNumber),
            (b"i-e", 2, BadNumber),
            (b"i+1e", 1, BadNumber),
            (b"i1.5e", 2, BadNumber),
            (b"03:abc", 0, BadNumber),
            (b"3abc", 1, BadNumber),
            (b"i9223372036854775808e", 1, Overflow),
            (b"i-9223372036854775809e", 1, Overflow),
            (b"i99999999999999999999999e", 1, Overflow),
            (b"18446744073709551615:a", 0, Truncated),
            (b"99999999999999999999999:a", 0, Overflow),
            (b"-1:a", 0, Unexpected(b'-')),
            (b"x", 0, Unexpected(b'x')),
            (b"e", 0, StrayEnd),
            (b"d1:ae", 4, StrayEnd),
            (b"di1ei2ee", 1, KeyNotString),
            (b"dlei2ee", 1, KeyNotString),
            (b"i1ei2e", 3, Trailing),
            (b"dee", 2, Trailing),
        ] {
            assert_eq!(parse(input), Err(BencodeError { at, kind }), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn every_cut_of_a_value_is_an_error() {
        let input = b"d1:ai-7e4:listl3:abci0e0:dee1:zd1:q1:xee";
        for cut in 0..input.len() {
            let error = parse(&input[..cut]).unwrap_err();
            assert_eq!(error.kind, BencodeErrorKind::Truncated, "cut at {cut}");
        }
    }

    #[test]
    fn limits_hold() {
        let deep = [vec![b'l'; 200_000], vec![b'e'; 200_000]].concat();
        let depth = Limits::TORRENT.depth;
        assert_eq!(parse(&deep), Err(BencodeError { at: depth, kind: BencodeErrorKind::TooDeep(depth) }));
        let fits = [vec![b'l'; depth], vec![b'e'; depth]].concat();
        assert_eq!(parse(&fits).unwrap().raw().len(), 2 * depth);

        let many = [&b"l"[..], &b"0:".repeat(1000), b"e"].concat();
        let limits = Limits { tokens: 1000, ..Limits::TORRENT };
        assert_eq!(parse_with(&many, limits).unwrap_err().kind, BencodeErrorKind::TooMany(1000));
        assert!(parse_with(&many, Limits { tokens: 1002, ..limits }).is_ok());

        let limits = Limits { size: 10, ..Limits::TORRENT };
        assert_eq!(parse_with(b"9:123456789", limits).unwrap_err().kind, BencodeErrorKind::TooLarge(10));
        assert_eq!(
            parse_prefix_with(b"9:123456789", limits).unwrap_err().kind,
            BencodeErrorKind::TooLarge(10)
        );
        assert_eq!(parse_prefix_with(b"i1eabcdefghijk", limits).unwrap().1, 3);
    }

    #[test]
    fn a_prefix_leaves_the_rest() {
        let (value, used) = parse_prefix(b"d8:msg_typei1eerest").unwrap();
        assert_eq!(used, 15);
        assert_eq!(value.get("msg_type").unwrap().as_int(), Some(1));
    }

    #[test]
    fn writes_what_it_reads() {
        let mut e = Encoder::new();
        e.dict_begin().key("a").int(-7).key("list").list_begin().bytes("abc").int(0).bytes("");
        e.dict_begin().end().end().key("z").raw(b"d1:q1:xe").end();
        assert_eq!(e.finish(), b"d1:ai-7e4:listl3:abci0e0:dee1:zd1:q1:xee");
    }

    /// Walks all of a value, as deep as it goes.
    fn walk(value: Value<'_>) -> usize {
        let mut left = vec![value];
        let mut seen = 0;
        while let Some(v) = left.pop() {
            seen += 1;
            left.extend(v.list().into_iter().flatten());
            left.extend(v.dict().into_iter().flatten().map(|(_, v)| v));
        }
        seen
    }

    proptest! {
        #[test]
        fn no_input_panics(input in proptest::collection::vec(
            prop_oneof![Just(b'i'), Just(b'e'), Just(b'l'), Just(b'd'), Just(b':'), Just(b'-'), b'0'..=b'9', any::<u8>()],
            0..64,
        )) {
            if let Ok((value, used)) = parse_prefix(&input) {
                prop_assert_eq!(value.raw().len(), used);
                prop_assert!(walk(value) > 0);
            }
            let _ = parse(&input);
        }

        #[test]
        fn lists_come_back(items in proptest::collection::vec((any::<i64>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..40)) {
            let mut e = Encoder::new();
            e.list_begin();
            for (n, bytes) in &items {
                e.int(*n).bytes(bytes);
            }
            e.end();
            let out = e.finish();
            let mut list = parse(&out).unwrap().list().unwrap();
            for (n, bytes) in &items {
                prop_assert_eq!(list.next().unwrap().as_int(), Some(*n));
                prop_assert_eq!(list.next().unwrap().as_bytes(), Some(&bytes[..]));
            }
            prop_assert!(list.next().is_none());
        }
    }
}
