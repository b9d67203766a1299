//! Message stream encryption (MSE, also called protocol encryption): a handshake before BitTorrent's own that hides it from
//! who looks at the line, and RC4 over what follows, if both want that. Pure: bytes in, bytes out.
//!
//! Parts: [`Initiator`] and [`Responder`], the two sides of the handshake; [`dh`], the exchange of keys; [`rc4`], the cipher;
//! [`Policy`], what we offer and take; [`Line`], what is left when the handshake is over, which a session reads and writes
//! through.
//!
//! Flow, of a dial. We send our public key and padding, whose end nobody knows. The other side answers with the same. From
//! both keys follows what only the two share. Then we send a mark that follows from it, where their search through our
//! padding ends; which torrent we mean, in a form that only who has that torrent can read ([`obscured`]); and, encrypted, what
//! we offer, padding, and our BitTorrent handshake. They answer, encrypted, with what they chose of it and padding. What follows
//! in either direction is encrypted, or plain, as they chose; what came before stays as it was, and the keystream goes on.
//!
//! What it is good for: lines that slow BitTorrent down, and peers that take nothing else. It is no secret kept: nobody
//! shows who he is, and who knows the torrent and sits on the line can read all. So [`Policy::Prefer`] hides the handshake and
//! chooses plain after it: RC4 costs a pass over each byte, and hides nothing more from who looks at beginnings.
//!
//! Bounds, for both sides work for strangers. Each frame says its length or has a bound, so after [`MOST_INPUT`] bytes either
//! side is over, most after 628. Padding is searched for 512 bytes and no further. Two powers are computed for a peer, about
//! 0.2 ms, and only once its whole key is there. How long it may take is the caller's to bound ([`crate::peer::connect`]).
//!
//! Traps, for who changes it. A stream cipher takes each byte once: nothing is decrypted before its frame is whole. The end
//! of the padding is found by what is expected there, as it looks encrypted. A key may begin like a plain handshake in up to
//! 19 bytes. Who answers can't wait for the end of the padding. What comes behind the last frame in one segment belongs to
//! the session ([`Line::early`]). Keys and what is shared always count with all their 96 bytes; libtorrent 2.0 forgets that in
//! one place, so one connection with it in 256 fails, in either direction, and is well with the next key.
//!
//! Deliberately not here: sockets, time, randomness (it is handed in), and whether to try again without.

mod dh;
mod initiator;
pub mod rc4;
mod responder;
#[cfg(test)]
mod tests;

use bytes::{Buf, BytesMut};
use thiserror::Error;

use super::wire::PROTOCOL;
use crate::hash::Sha1;
pub use dh::{KEY, SECRET};
pub use initiator::Initiator;
use rc4::Rc4;
pub use responder::Responder;

/// The longest padding, in bytes, of each of the four. Some descriptions say 511; clients send 512.
pub const PAD_MAX: usize = 512;
/// Bytes after which a handshake is over on either side, well or badly. The most is what a peer that dialled us may have us
/// read before we answer: its padding, the mark, the torrent, the offer, more padding, and 64 KiB that it says at once.
pub const MOST_INPUT: usize = KEY + PAD_MAX + 20 + 20 + OFFER + PAD_MAX + 2 + u16::MAX as usize;

/// Eight zeros, encrypted: who reads them has the right key.
const CHECK: [u8; 8] = [0; 8];
/// Bytes of the encrypted offer, without its padding: the check, the ways, the length of the padding.
const OFFER: usize = CHECK.len() + 4 + 2;

/// Whether connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// Tried first, and plain where that is refused. Of both ways that a peer offers, the handshake alone is hidden.
    #[default]
    Prefer,
    /// RC4, or no connection.
    Require,
    /// Never.
    Off,
}

/// How much of a connection is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Cover {
    /// Nothing.
    #[default]
    Plain,
    /// The handshakes.
    Handshake,
    /// Everything.
    Full,
}

impl Cover {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Handshake => "handshake",
            Self::Full => "rc4",
        }
    }
}

/// What may follow the handshake, as bits on the wire.
mod way {
    /// Plain text.
    pub const PLAIN: u32 = 1;
    /// RC4.
    pub const RC4: u32 = 2;
}

impl Policy {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::Off => "off",
        }
    }

    /// The ways that we offer.
    fn offers(self) -> u32 {
        match self {
            Self::Prefer => way::PLAIN | way::RC4,
            Self::Require => way::RC4,
            Self::Off => 0,
        }
    }

    /// The way that we choose of those that are offered.
    ///
    /// # Errors
    /// None of them is ours.
    fn choose(self, offered: u32) -> Result<u32, MseError> {
        let common = self.offers() & offered;
        [way::PLAIN, way::RC4].into_iter().find(|way| common & way != 0).ok_or(MseError::NoCommonWay(offered))
    }

    /// Whether a connection of a peer that begins like this is taken.
    ///
    /// # Errors
    /// It is plain and must not be, or it is something else and may only be plain.
    pub fn takes(self, opening: Opening) -> Result<(), MseError> {
        match (opening, self) {
            (Opening::Plain, Self::Require) => Err(MseError::PlainRefused),
            (Opening::Other, Self::Off) => Err(MseError::NotPlain),
            _ => Ok(()),
        }
    }
}

/// What a peer's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Too few of them to tell.
    Unclear,
    /// BitTorrent's handshake.
    Plain,
    /// A key, or nothing that we know.
    Other,
}

impl Opening {
    /// Looks at what has come so far. All 20 bytes count: a key may begin with some of them.
    pub fn of(input: &[u8]) -> Self {
        match PROTOCOL.iter().zip(input).all(|(a, b)| a == b) {
            false => Self::Other,
            true if input.len() < PROTOCOL.len() => Self::Unclear,
            true => Self::Plain,
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MseError {
    /// The peer that we dialled began with BitTorrent's handshake.
    #[error("the peer has no encryption")]
    SpeaksPlain,
    /// What should be a public key is none, or is ours come back.
    #[error("the peer's key is none")]
    BadKey,
    /// 512 bytes of padding, and no end.
    #[error("the peer's padding has no end, so it doesn't speak the protocol or has another key")]
    NoMark,
    /// The peer asked for a torrent that isn't here.
    #[error("the peer asked for a torrent that isn't here")]
    UnknownTorrent,
    /// What the peer encrypted can't be read with the key that follows.
    #[error("what the peer encrypted can't be read")]
    Unreadable,
    /// Padding within the encrypted part that is longer than it may be.
    #[error("the peer announced a padding of {0} bytes")]
    PadTooLong(u16),
    /// Nothing that the peer offered is taken here.
    #[error("the peer offered no encryption that is taken here ({0:#x})")]
    NoCommonWay(u32),
    /// The peer chose what wasn't offered, or several things.
    #[error("the peer chose an encryption that wasn't offered ({0:#x})")]
    BadChoice(u32),
    /// Its connection is plain, and only encrypted ones are taken.
    #[error("the peer came without encryption, which is required")]
    PlainRefused,
    /// Its connection isn't plain, and only plain ones are taken.
    #[error("the peer came with encryption, which is switched off, or doesn't speak BitTorrent")]
    NotPlain,
    /// The handshake has ended, well or badly, and was fed all the same.
    #[error("the handshake is over")]
    Over,
}

/// How far a handshake is.
#[derive(Debug)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// It is over.
    Done {
        /// What the session reads and writes through.
        line: Line,
        /// The torrent that it is about, by its 20 bytes on the wire.
        skey: [u8; 20],
    },
}

/// The keystreams of a connection, one for each direction.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct Ciphers {
    /// For what comes.
    read: Rc4,
    /// For what goes.
    write: Rc4,
}

impl Ciphers {
    /// Those that follow from what is shared, for who dialled.
    fn new(shared: &[u8; KEY], skey: &[u8; 20]) -> Self {
        let key = |name: &[u8]| Rc4::new(&digest(&[name, shared, skey]));
        Self { read: key(b"keyB"), write: key(b"keyA") }
    }

    /// The same, for the other side.
    fn turned(self) -> Self {
        Self { read: self.write, write: self.read }
    }
}

/// What a session reads and writes through, when the handshake is over. There is no copy of it: a keystream that is used
/// twice shows what it hides.
#[derive(Debug, Default)]
pub struct Line {
    /// `None` on a plain one.
    ciphers: Option<Box<Ciphers>>,
    cover: Cover,
    /// What came already, in plain: the session begins with it.
    pub early: BytesMut,
}

impl Line {
    /// A plain connection, of which this was read already.
    pub fn plain(early: BytesMut) -> Self {
        Self { early, ..Self::default() }
    }

    /// After a handshake: with the way that was chosen. `rest` is what came behind the last frame.
    fn after(way: u32, mut ciphers: Ciphers, mut early: BytesMut, mut rest: BytesMut) -> Self {
        let full = way == way::RC4;
        if full {
            ciphers.read.apply(&mut rest);
        }
        early.unsplit(rest);
        let cover = if full { Cover::Full } else { Cover::Handshake };
        Self { ciphers: full.then(|| Box::new(ciphers)), cover, early }
    }

    /// Both ends of an encrypted connection.
    #[cfg(test)]
    pub(crate) fn pair() -> (Self, Self) {
        let ciphers = Ciphers::new(&[7; KEY], &[1; 20]);
        let full = |ciphers| Self::after(way::RC4, ciphers, BytesMut::new(), BytesMut::new());
        (full(ciphers.clone()), full(ciphers.turned()))
    }

    /// How much is hidden.
    pub fn cover(&self) -> Cover {
        self.cover
    }

    /// Decrypts in place what was just read. Each byte once, in order; nothing to do on a plain one.
    pub fn open(&mut self, bytes: &mut [u8]) {
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.read.apply(bytes);
        }
    }

    /// Encrypts in place what is about to be written. Each byte once, in order; nothing to do on a plain one.
    pub fn seal(&mut self, bytes: &mut [u8]) {
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.write.apply(bytes);
        }
    }
}

/// The paddings of one side.
#[derive(Debug, Clone, Default)]
pub struct Pads {
    /// Behind the public key, random: it must look like the key.
    front: Vec<u8>,
    /// Bytes in the encrypted part. They are zeros there.
    back: u16,
}

impl Pads {
    /// Both paddings; each is cut to [`PAD_MAX`].
    pub fn new(mut front: Vec<u8>, back: usize) -> Self {
        front.truncate(PAD_MAX);
        Self { front, back: back.min(PAD_MAX) as u16 }
    }
}

/// What stands for a torrent where only who has it recognises it: before the connection's own mask is put on it. Made once
/// for each torrent, so that an incoming connection costs one comparison for each, and no hash.
pub fn obscured(skey: &[u8; 20]) -> [u8; 20] {
    digest(&[b"req2", skey])
}

/// Which of these is the one wanted, as its place. Looks at all of each, whatever it finds: how long it takes says nothing of
/// which torrents are here.
pub fn find<'a>(wanted: &[u8; 20], all: impl IntoIterator<Item = &'a [u8; 20]>) -> Option<usize> {
    let mut found = None;
    for (place, one) in all.into_iter().enumerate() {
        let differs = one.iter().zip(wanted).fold(0, |so_far, (a, b)| so_far | (a ^ b));
        if differs == 0 {
            found = Some(place);
        }
    }
    found
}

/// The SHA-1 of these, one behind the other.
fn digest(parts: &[&[u8]]) -> [u8; 20] {
    let mut hash = Sha1::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finish()
}

/// What hides the torrent's name on this connection; also its own opposite.
fn mask(shared: &[u8; KEY], mut name: [u8; 20]) -> [u8; 20] {
    let mask = digest(&[b"req3", shared]);
    name.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    name
}

/// Takes the next bytes off, if so many are there.
fn take<const N: usize>(input: &mut BytesMut) -> Option<[u8; N]> {
    let bytes = *input.first_chunk()?;
    input.advance(N);
    Some(bytes)
}

/// The same for a frame whose length was announced.
fn take_slice(input: &mut BytesMut, len: usize) -> Option<BytesMut> {
    (input.len() >= len).then(|| input.split_to(len))
}

/// Takes off the padding and the mark behind it. False when the mark may still come.
///
/// # Errors
/// [`MseError::NoMark`] when it doesn't come within the longest padding.
fn skip_to(mark: &[u8], input: &mut BytesMut) -> Result<bool, MseError> {
    // Begun anew with each segment: with one byte each that is 300,000 comparisons in all, and no state to get wrong.
    let reach = input.get(..PAD_MAX + mark.len()).unwrap_or(input);
    match reach.windows(mark.len()).position(|window| window == mark) {
        Some(at) => {
            input.advance(at + mark.len());
            Ok(true)
        }
        None if reach.len() == PAD_MAX + mark.len() => Err(MseError::NoMark),
        None => Ok(false),
    }
}

/// The length of a padding, if it may be so long.
fn pad_len(announced: [u8; 2]) -> Result<usize, MseError> {
    let len = u16::from_be_bytes(announced);
    if usize::from(len) > PAD_MAX { Err(MseError::PadTooLong(len)) } else { Ok(usize::from(len)) }
}
