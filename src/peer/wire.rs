//! The peer wire protocol: messages, their frames, and the handshake (BEP 3, 6 and 10). Pure.
//!
//! Parts: [`Message`] and its encoding; [`Decoder`], which cuts frames off the head of a receive buffer;
//! [`Handshake`] with its [`Reserved`] bits; the bounds of what a peer may send ([`max_frame`]).
//!
//! Flow: the session reads into a `BytesMut`, calls [`Decoder::decode`] until it answers `None`, makes room
//! for [`Decoder::need`] more, and reads again. Once it knows the torrent, it holds every message against it
//! with [`Message::check`]. A block's data isn't copied: it is a slice of the buffer.
//!
//! Deliberately not here: sockets, timing, what a message means for the session, and the contents of extended
//! messages (see [`crate::peer::extension`], [`crate::peer::metadata`] and [`crate::peer::pex`]).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::metainfo::geometry::{Geometry, PieceIndex};

/// Bytes of the length that begins each frame.
const PREFIX: usize = 4;
/// Bytes of a block message before the data: id, piece, begin.
const PIECE_HEADER: usize = 9;
/// The longest block a peer may send us, in bytes. We ask for 16 KiB; room for one that rounds up.
pub const MAX_BLOCK: usize = 32 * 1024;
/// The longest block a peer may ask for, in bytes: the bound that clients have kept since the first one.
/// Whether to serve as much is the session's decision.
pub const MAX_REQUEST: u32 = 128 * 1024;
/// The longest extended or unknown message, in bytes: a metadata piece is 16 KiB and a header, a peer exchange
/// with a thousand addresses under 20 KiB, an extension handshake under 1 KiB in practice.
pub const MAX_EXTENDED: usize = 64 * 1024;
/// The bound on frames while the metadata, and so the number of pieces, isn't known: a bitfield of 2 MiB, which
/// is over 16 million pieces, more than any metadata we accept can describe.
pub const MAX_FRAME_BEFORE_METADATA: usize = 1 + 2 * 1024 * 1024;

/// The longest frame, in bytes after the length prefix, that a torrent of so many pieces can need.
pub fn max_frame(pieces: u32) -> usize {
    (1 + pieces.div_ceil(8) as usize).max(PIECE_HEADER + MAX_BLOCK).max(1 + MAX_EXTENDED)
}

/// What is wrong with bytes from a peer. Each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// The frame is longer than this torrent, or this kind of message, can need.
    #[error("the peer sent a frame of {len} bytes where {max} is the most that makes sense")]
    FrameTooLong {
        /// Announced bytes.
        len: usize,
        /// The bound that holds here.
        max: usize,
    },
    /// The message can't have this length.
    #[error("the peer sent a message of kind {id} with the wrong length, {len} bytes")]
    WrongLength {
        /// The message's id.
        id: u8,
        /// Bytes of the frame, the id included.
        len: usize,
    },
    /// A block of no bytes, too many, or past the end of its piece.
    #[error("the peer named an impossible block: piece {piece}, begin {begin}, {len} bytes")]
    BadBlock {
        /// Number of the piece.
        piece: u32,
        /// First byte within it.
        begin: u32,
        /// Bytes.
        len: u32,
    },
    /// A piece that the torrent doesn't have.
    #[error("the peer named piece {piece} of a torrent of {pieces} pieces")]
    NoSuchPiece {
        /// Number of the piece.
        piece: u32,
        /// Pieces in the torrent.
        pieces: u32,
    },
    /// A bitfield that isn't one bit for each piece.
    #[error("the peer sent a bitfield of {len} bytes for a torrent of {pieces} pieces")]
    BitfieldLength {
        /// Bytes of the bitfield.
        len: usize,
        /// Pieces in the torrent.
        pieces: u32,
    },
    /// A bitfield with bits set after the last piece's.
    #[error("the peer sent a bitfield with bits set past its last piece")]
    SpareBits,
    /// The handshake doesn't begin as BEP 3 says.
    #[error("the other side doesn't speak the BitTorrent protocol")]
    NotBitTorrent,
}

/// A part of a piece that is asked for, cancelled or rejected (BEP 3, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRequest {
    /// The piece.
    pub piece: PieceIndex,
    /// First byte within the piece.
    pub begin: u32,
    /// Bytes.
    pub len: u32,
}

/// One message between peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A frame of no bytes: the connection is alive.
    KeepAlive,
    /// The sender will not answer requests.
    Choke,
    /// The sender answers requests.
    Unchoke,
    /// The sender wants something that the receiver has.
    Interested,
    /// The sender wants nothing of the receiver.
    NotInterested,
    /// The sender has this piece now.
    Have(PieceIndex),
    /// What the sender has: a bit for each piece, the first piece in the highest bit of the first byte.
    Bitfield(Bytes),
    /// Asks for a block.
    Request(BlockRequest),
    /// A block's data.
    Piece {
        /// The piece.
        piece: PieceIndex,
        /// First byte within the piece.
        begin: u32,
        /// The data; never empty when decoded.
        data: Bytes,
    },
    /// Takes a request back.
    Cancel(BlockRequest),
    /// The UDP port of the sender's DHT node (BEP 5).
    Port(u16),
    /// The sender would like to be asked for this piece (BEP 6).
    Suggest(PieceIndex),
    /// The sender has every piece (BEP 6).
    HaveAll,
    /// The sender has no piece (BEP 6).
    HaveNone,
    /// A request that will not be answered (BEP 6).
    Reject(BlockRequest),
    /// A piece that may be asked for while choked (BEP 6).
    AllowedFast(PieceIndex),
    /// A message of the extension protocol (BEP 10).
    Extended {
        /// 0 for the extension handshake, else an id that the receiver gave out.
        id: u8,
        /// What follows the id.
        payload: Bytes,
    },
    /// A kind of message that we don't know, by its id; its contents are dropped.
    Unknown(u8),
}

mod id {
    pub(super) const CHOKE: u8 = 0;
    pub(super) const UNCHOKE: u8 = 1;
    pub(super) const INTERESTED: u8 = 2;
    pub(super) const NOT_INTERESTED: u8 = 3;
    pub(super) const HAVE: u8 = 4;
    pub(super) const BITFIELD: u8 = 5;
    pub(super) const REQUEST: u8 = 6;
    pub(super) const PIECE: u8 = 7;
    pub(super) const CANCEL: u8 = 8;
    pub(super) const PORT: u8 = 9;
    pub(super) const SUGGEST: u8 = 13;
    pub(super) const HAVE_ALL: u8 = 14;
    pub(super) const HAVE_NONE: u8 = 15;
    pub(super) const REJECT: u8 = 16;
    pub(super) const ALLOWED_FAST: u8 = 17;
    pub(super) const EXTENDED: u8 = 20;
}

impl Message {
    /// Appends the message with its length prefix.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::KeepAlive => out.put_u32(0),
            Self::Choke => frame(out, id::CHOKE, 0),
            Self::Unchoke => frame(out, id::UNCHOKE, 0),
            Self::Interested => frame(out, id::INTERESTED, 0),
            Self::NotInterested => frame(out, id::NOT_INTERESTED, 0),
            Self::Have(piece) => encode_index(id::HAVE, *piece, out),
            Self::Bitfield(bits) => {
                frame(out, id::BITFIELD, bits.len());
                out.put_slice(bits);
            }
            Self::Request(request) => encode_block(id::REQUEST, *request, out),
            Self::Piece { piece, begin, data } => {
                encode_piece_header(*piece, *begin, data.len() as u32, out);
                out.put_slice(data);
            }
            Self::Cancel(request) => encode_block(id::CANCEL, *request, out),
            Self::Port(port) => {
                frame(out, id::PORT, 2);
                out.put_u16(*port);
            }
            Self::Suggest(piece) => encode_index(id::SUGGEST, *piece, out),
            Self::HaveAll => frame(out, id::HAVE_ALL, 0),
            Self::HaveNone => frame(out, id::HAVE_NONE, 0),
            Self::Reject(request) => encode_block(id::REJECT, *request, out),
            Self::AllowedFast(piece) => encode_index(id::ALLOWED_FAST, *piece, out),
            Self::Extended { id, payload } => {
                frame(out, id::EXTENDED, 1 + payload.len());
                out.put_u8(*id);
                out.put_slice(payload);
            }
            Self::Unknown(id) => frame(out, *id, 0),
        }
    }

    /// Holds the message against the torrent that it speaks of; what names no piece always passes.
    ///
    /// # Errors
    /// A piece that doesn't exist, a block past its piece's end, a bitfield of the wrong size.
    pub fn check(&self, geometry: &Geometry) -> Result<(), WireError> {
        let pieces = geometry.pieces();
        let known = |piece: PieceIndex| match piece.0 < pieces {
            true => Ok(()),
            false => Err(WireError::NoSuchPiece { piece: piece.0, pieces }),
        };
        let within = |piece: PieceIndex, begin: u32, len: u32| {
            known(piece)?;
            match begin.checked_add(len) {
                Some(end) if end <= geometry.piece_len(piece) => Ok(()),
                _ => Err(WireError::BadBlock { piece: piece.0, begin, len }),
            }
        };
        match self {
            Self::Have(piece) | Self::Suggest(piece) | Self::AllowedFast(piece) => known(*piece),
            Self::Request(r) | Self::Cancel(r) | Self::Reject(r) => within(r.piece, r.begin, r.len),
            Self::Piece { piece, begin, data } => within(*piece, *begin, data.len() as u32),
            Self::Bitfield(bits) => check_bitfield(bits, pieces),
            Self::KeepAlive
            | Self::Choke
            | Self::Unchoke
            | Self::Interested
            | Self::NotInterested
            | Self::Port(_)
            | Self::HaveAll
            | Self::HaveNone
            | Self::Extended { .. }
            | Self::Unknown(_) => Ok(()),
        }
    }
}

/// Whether a bitfield has one bit for each piece and nothing else.
///
/// # Errors
/// [`WireError::BitfieldLength`] or [`WireError::SpareBits`].
fn check_bitfield(bits: &[u8], pieces: u32) -> Result<(), WireError> {
    if bits.len() != pieces.div_ceil(8) as usize {
        return Err(WireError::BitfieldLength { len: bits.len(), pieces });
    }
    let spare = match pieces % 8 {
        0 => 0u8,
        used => 0xff >> used,
    };
    match bits.last() {
        Some(last) if last & spare != 0 => Err(WireError::SpareBits),
        _ => Ok(()),
    }
}

/// Appends what comes before a block's data, so that the data itself can be written without a copy.
pub fn encode_piece_header(piece: PieceIndex, begin: u32, len: u32, out: &mut BytesMut) {
    frame(out, id::PIECE, 8 + len as usize);
    out.put_u32(piece.0);
    out.put_u32(begin);
}

/// Appends length prefix and id of a message with so many bytes after its id. What we send is far below 4 GiB.
fn frame(out: &mut BytesMut, id: u8, body: usize) {
    debug_assert!(u32::try_from(body).is_ok_and(|n| n < u32::MAX), "a frame we send fits its length field");
    out.reserve(PREFIX + 1 + body.min(MAX_EXTENDED));
    out.put_u32(body as u32 + 1);
    out.put_u8(id);
}

fn encode_index(id: u8, piece: PieceIndex, out: &mut BytesMut) {
    frame(out, id, 4);
    out.put_u32(piece.0);
}

fn encode_block(id: u8, block: BlockRequest, out: &mut BytesMut) {
    frame(out, id, 12);
    out.put_u32(block.piece.0);
    out.put_u32(block.begin);
    out.put_u32(block.len);
}

/// The bounds of a [`Decoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest frame, in bytes after the length prefix; see [`max_frame`] and
    /// [`MAX_FRAME_BEFORE_METADATA`].
    pub max_frame: usize,
}

/// Cuts messages off the head of a receive buffer. All state is in the buffer.
#[derive(Debug, Clone)]
pub struct Decoder {
    limits: Limits,
}

impl Decoder {
    /// A decoder with these bounds.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Changes the bound on frames: when the metadata has come, to [`max_frame`] of its number of pieces.
    pub fn set_max_frame(&mut self, max_frame: usize) {
        self.limits.max_frame = max_frame;
    }

    /// The next message, taken off the head of the buffer; `None` when it isn't all there yet. Data of a
    /// message is a slice of the buffer's memory, which lives as long as the slice does.
    ///
    /// # Errors
    /// The peer broke the protocol. The buffer is as it was, and the connection is to be closed.
    pub fn decode(&self, buf: &mut BytesMut) -> Result<Option<Message>, WireError> {
        let Some(len) = self.head(buf)? else { return Ok(None) };
        if buf.len() < PREFIX + len {
            return Ok(None);
        }
        // Everything that can be wrong is found before the frame is taken.
        let id = buf.get(PREFIX).copied();
        if let Some(id) = id.filter(|_| len > 0) {
            check_blocks(id, len, buf.get(PREFIX + 1..PREFIX + len).unwrap_or_default())?;
        }
        let mut body = buf.split_to(PREFIX + len).freeze();
        body.advance(PREFIX);
        if body.is_empty() {
            return Ok(Some(Message::KeepAlive));
        }
        let id = body.get_u8();
        Ok(Some(parse(id, body, len)?))
    }

    /// How many bytes are still lacking for the frame at the head of the buffer, for making room; 0 when it is
    /// whole, or wrong (then [`Decoder::decode`] says so). It is what the peer announced, so a caller grows the
    /// buffer in bounded steps, as the data really comes.
    pub fn need(&self, buf: &BytesMut) -> usize {
        match self.head(buf) {
            Ok(Some(len)) => (PREFIX + len).saturating_sub(buf.len()),
            Ok(None) => PREFIX.saturating_sub(buf.len()),
            Err(_) => 0,
        }
    }

    /// Length of the frame at the head, checked as early as its id allows: before its data is waited for.
    fn head(&self, buf: &BytesMut) -> Result<Option<usize>, WireError> {
        let Some(prefix) = buf.first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > self.limits.max_frame {
            return Err(WireError::FrameTooLong { len, max: self.limits.max_frame });
        }
        if let Some(&id) = buf.get(PREFIX).filter(|_| len > 0) {
            check_length(id, len)?;
        }
        Ok(Some(len))
    }
}

/// Whether a message of this kind may have this length (with its id).
fn check_length(id: u8, len: usize) -> Result<(), WireError> {
    let exactly = |wanted: usize| match len == wanted {
        true => Ok(()),
        false => Err(WireError::WrongLength { id, len }),
    };
    let between = |min: usize, max: usize| match len {
        _ if len < min => Err(WireError::WrongLength { id, len }),
        _ if len > max => Err(WireError::FrameTooLong { len, max }),
        _ => Ok(()),
    };
    match id {
        id::CHOKE..=id::NOT_INTERESTED | id::HAVE_ALL | id::HAVE_NONE => exactly(1),
        id::HAVE | id::SUGGEST | id::ALLOWED_FAST => exactly(5),
        id::REQUEST | id::CANCEL | id::REJECT => exactly(13),
        id::PORT => exactly(3),
        // The decoder's own limit is the bitfield's.
        id::BITFIELD => Ok(()),
        // No request asks for no bytes, so no block is empty.
        id::PIECE => between(PIECE_HEADER + 1, PIECE_HEADER + MAX_BLOCK),
        id::EXTENDED => between(2, 1 + MAX_EXTENDED),
        _ => between(1, 1 + MAX_EXTENDED),
    }
}

/// Whether a message that names a block names one that could exist.
fn check_blocks(id: u8, len: usize, body: &[u8]) -> Result<(), WireError> {
    let number =
        |at: usize| body.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
    let (count, max) = match id {
        id::REQUEST | id::CANCEL | id::REJECT => (number(8), MAX_REQUEST),
        id::PIECE => ((len - PIECE_HEADER) as u32, MAX_BLOCK as u32),
        _ => return Ok(()),
    };
    let (piece, begin) = (number(0), number(4));
    if count == 0 || count > max || begin.checked_add(count).is_none() {
        return Err(WireError::BadBlock { piece, begin, len: count });
    }
    Ok(())
}

/// The message of a body whose length was checked. The `try_get`s can't fail then; were a length wrong all the
/// same, it is an error and not a panic.
fn parse(id: u8, mut body: Bytes, len: usize) -> Result<Message, WireError> {
    let wrong = |_| WireError::WrongLength { id, len };
    let index = |body: &mut Bytes| body.try_get_u32().map(PieceIndex).map_err(wrong);
    let block = |body: &mut Bytes| {
        Ok(BlockRequest {
            piece: index(body)?,
            begin: body.try_get_u32().map_err(wrong)?,
            len: body.try_get_u32().map_err(wrong)?,
        })
    };
    Ok(match id {
        id::CHOKE => Message::Choke,
        id::UNCHOKE => Message::Unchoke,
        id::INTERESTED => Message::Interested,
        id::NOT_INTERESTED => Message::NotInterested,
        id::HAVE => Message::Have(index(&mut body)?),
        id::BITFIELD => Message::Bitfield(body),
        id::REQUEST => Message::Request(block(&mut body)?),
        id::PIECE => {
            let piece = index(&mut body)?;
            let begin = body.try_get_u32().map_err(wrong)?;
            Message::Piece { piece, begin, data: body }
        }
        id::CANCEL => Message::Cancel(block(&mut body)?),
        id::PORT => Message::Port(body.try_get_u16().map_err(wrong)?),
        id::SUGGEST => Message::Suggest(index(&mut body)?),
        id::HAVE_ALL => Message::HaveAll,
        id::HAVE_NONE => Message::HaveNone,
        id::REJECT => Message::Reject(block(&mut body)?),
        id::ALLOWED_FAST => Message::AllowedFast(index(&mut body)?),
        id::EXTENDED => {
            let id = body.try_get_u8().map_err(wrong)?;
            Message::Extended { id, payload: body }
        }
        _ => Message::Unknown(id),
    })
}

/// The first bytes of every connection (BEP 3): length and name of the protocol.
pub const PROTOCOL: [u8; 20] = *b"\x13BitTorrent protocol";

/// What a side says of itself at the start of a connection (BEP 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The extensions it has.
    pub reserved: Reserved,
    /// The torrent, as on the wire: SHA-1, or the first 20 bytes of a v2 torrent's SHA-256 (BEP 52).
    pub info_hash: [u8; 20],
    /// Its peer id.
    pub peer_id: [u8; 20],
}

impl Handshake {
    /// Bytes of a handshake.
    pub const LEN: usize = 68;

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let parts = PROTOCOL.iter().chain(&self.reserved.0).chain(&self.info_hash).chain(&self.peer_id);
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = *from;
        }
        bytes
    }

    /// Reads the other side's handshake. Whether its info-hash is one of ours is the caller's to check.
    ///
    /// # Errors
    /// [`WireError::NotBitTorrent`] when it is something else, an encrypted connection for one.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, WireError> {
        fn part<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], WireError> {
            bytes.get(at..).and_then(|b| b.first_chunk()).copied().ok_or(WireError::NotBitTorrent)
        }
        if part::<20>(bytes, 0)? != PROTOCOL {
            return Err(WireError::NotBitTorrent);
        }
        Ok(Self {
            reserved: Reserved(part(bytes, 20)?),
            info_hash: part(bytes, 28)?,
            peer_id: part(bytes, 48)?,
        })
    }
}

/// The eight reserved bytes of a handshake: one bit for each extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserved([u8; 8]);

impl Reserved {
    const EXTENSIONS: u64 = 0x10_0000;
    const FAST: u64 = 0x04;
    const DHT: u64 = 0x01;

    /// No extension.
    pub const fn new() -> Self {
        Self([0; 8])
    }
    /// These bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
    /// The bytes.
    pub const fn bytes(self) -> [u8; 8] {
        self.0
    }
    /// With the extension protocol (BEP 10).
    #[must_use]
    pub const fn with_extensions(self) -> Self {
        self.with(Self::EXTENSIONS)
    }
    /// With the fast extension (BEP 6).
    #[must_use]
    pub const fn with_fast(self) -> Self {
        self.with(Self::FAST)
    }
    /// With a DHT node of its own (BEP 5); not for private torrents.
    #[must_use]
    pub const fn with_dht(self) -> Self {
        self.with(Self::DHT)
    }
    /// Whether it speaks the extension protocol (BEP 10).
    pub const fn supports_extensions(self) -> bool {
        self.has(Self::EXTENSIONS)
    }
    /// Whether it speaks the fast extension (BEP 6).
    pub const fn supports_fast(self) -> bool {
        self.has(Self::FAST)
    }
    /// Whether it has a DHT node (BEP 5).
    pub const fn supports_dht(self) -> bool {
        self.has(Self::DHT)
    }

    const fn with(self, bit: u64) -> Self {
        Self((u64::from_be_bytes(self.0) | bit).to_be_bytes())
    }
    const fn has(self, bit: u64) -> bool {
        u64::from_be_bytes(self.0) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn decoder(pieces: u32) -> Decoder {
        Decoder::new(Limits { max_frame: max_frame(pieces) })
    }

    fn encoded(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        out
    }

    fn block(piece: u32, begin: u32, len: u32) -> BlockRequest {
        BlockRequest { piece: PieceIndex(piece), begin, len }
    }

    /// Every kind of message, with its bytes.
    fn rows() -> Vec<(Message, &'static [u8])> {
        let p = PieceIndex;
        vec![
            (Message::KeepAlive, b"\0\0\0\0"),
            (Message::Choke, b"\0\0\0\x01\x00"),
            (Message::Unchoke, b"\0\0\0\x01\x01"),
            (Message::Interested, b"\0\0\0\x01\x02"),
            (Message::NotInterested, b"\0\0\0\x01\x03"),
            (Message::Have(p(258)), b"\0\0\0\x05\x04\0\0\x01\x02"),
            (Message::Bitfield(Bytes::from_static(b"\xff\x80")), b"\0\0\0\x03\x05\xff\x80"),
            (Message::Request(block(1, 2, 3)), b"\0\0\0\x0d\x06\0\0\0\x01\0\0\0\x02\0\0\0\x03"),
            (
                Message::Piece { piece: p(1), begin: 2, data: Bytes::from_static(b"abc") },
                b"\0\0\0\x0c\x07\0\0\0\x01\0\0\0\x02abc",
            ),
            (Message::Cancel(block(1, 2, 3)), b"\0\0\0\x0d\x08\0\0\0\x01\0\0\0\x02\0\0\0\x03"),
            (Message::Port(6881), b"\0\0\0\x03\x09\x1a\xe1"),
            (Message::Suggest(p(7)), b"\0\0\0\x05\x0d\0\0\0\x07"),
            (Message::HaveAll, b"\0\0\0\x01\x0e"),
            (Message::HaveNone, b"\0\0\0\x01\x0f"),
            (Message::Reject(block(1, 2, 3)), b"\0\0\0\x0d\x10\0\0\0\x01\0\0\0\x02\0\0\0\x03"),
            (Message::AllowedFast(p(9)), b"\0\0\0\x05\x11\0\0\0\x09"),
            (Message::Extended { id: 3, payload: Bytes::from_static(b"de") }, b"\0\0\0\x04\x14\x03de"),
            (Message::Unknown(21), b"\0\0\0\x01\x15"),
        ]
    }

    #[test]
    fn messages_have_their_bytes() {
        for (message, bytes) in rows() {
            assert_eq!(&encoded(&message)[..], bytes, "{message:?}");
            let mut buf = BytesMut::from(bytes);
            assert_eq!(decoder(16).decode(&mut buf), Ok(Some(message)));
            assert!(buf.is_empty());
        }
    }

    #[test]
    fn a_stream_may_be_cut_at_every_byte() {
        let all: Vec<u8> = rows().iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        let wanted: Vec<Message> = rows().into_iter().map(|(m, _)| m).collect();
        let decoder = decoder(16);
        for cut in 0..=all.len() {
            let mut buf = BytesMut::new();
            let mut got = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                buf.extend_from_slice(part);
                while let Some(message) = decoder.decode(&mut buf).unwrap() {
                    got.push(message);
                }
                assert!(buf.is_empty() || decoder.need(&buf) > 0);
            }
            assert_eq!(got, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn need_counts_the_bytes_that_lack() {
        let bytes = encoded(&Message::Have(PieceIndex(1)));
        let decoder = decoder(8);
        for n in 0..=bytes.len() {
            let wanted = if n < 4 { 4 - n } else { bytes.len() - n };
            assert_eq!(decoder.need(&BytesMut::from(&bytes[..n])), wanted, "after {n}");
        }
        assert_eq!(
            decoder.need(&BytesMut::from(&b"\xff\xff\xff\xff"[..])),
            0,
            "nothing is reserved for a lie"
        );
    }

    #[test]
    fn broken_frames_are_named() {
        let long = WireError::FrameTooLong { len: 0xffff_ffff, max: max_frame(16) };
        let wrong = |id, len| WireError::WrongLength { id, len };
        let bad = |piece, begin, len| WireError::BadBlock { piece, begin, len };
        #[rustfmt::skip]
        let rows: &[(&[u8], WireError)] = &[
            (b"\xff\xff\xff\xff", long),
            (b"\0\0\0\x02\x00", wrong(0, 2)),
            (b"\0\0\0\x01\x04", wrong(4, 1)),
            (b"\0\0\0\x06\x04", wrong(4, 6)),
            (b"\0\0\0\x0c\x06", wrong(6, 12)),
            (b"\0\0\0\x09\x07", wrong(7, 9)),
            (b"\0\0\0\x01\x14", wrong(20, 1)),
            (b"\0\0\0\x02\x09", wrong(9, 2)),
            (b"\0\0\x90\x00\x07", WireError::FrameTooLong { len: 0x9000, max: 9 + MAX_BLOCK }),
            (b"\0\0\0\x0d\x06\0\0\0\x01\0\0\0\x02\0\0\0\0", bad(1, 2, 0)),
            (b"\0\0\0\x0d\x06\0\0\0\x01\0\0\0\x02\0\x02\0\x01", bad(1, 2, 0x20001)),
            (b"\0\0\0\x0d\x08\0\0\0\x01\xff\xff\xff\xff\0\0\0\x01", bad(1, u32::MAX, 1)),
            (b"\0\0\0\x0d\x10\0\0\0\x01\xff\xff\xff\xff\0\0\0\x01", bad(1, u32::MAX, 1)),
            (b"\0\0\0\x0a\x07\0\0\0\x01\xff\xff\xff\xffx", bad(1, u32::MAX, 1)),
        ];
        for (bytes, error) in rows {
            let mut buf = BytesMut::from(*bytes);
            assert_eq!(decoder(16).decode(&mut buf), Err(*error), "{bytes:?}");
            assert_eq!(&buf[..], *bytes, "the buffer is untouched");
        }
    }

    #[test]
    fn a_wrong_length_is_found_before_the_data_comes() {
        let mut buf = BytesMut::from(&b"\0\0\xff\x00\x04"[..]);
        assert_eq!(decoder(16).decode(&mut buf), Err(WireError::WrongLength { id: 4, len: 0xff00 }));
        let mut buf = BytesMut::from(&b"\0\x01\x00\x02\x14"[..]);
        let mut wide = decoder(16);
        wide.set_max_frame(MAX_FRAME_BEFORE_METADATA);
        let error = WireError::FrameTooLong { len: 0x10002, max: 1 + MAX_EXTENDED };
        assert_eq!(wide.decode(&mut buf), Err(error));
    }

    #[test]
    fn r3_bitfields_of_a_million_pieces_fit() {
        for pieces in [0, 1, 8, 333_000, 333_333, 1_000_000, 16_000_000u32] {
            let mut bits = vec![0xff; pieces.div_ceil(8) as usize];
            if let (Some(last), true) = (bits.last_mut(), pieces % 8 != 0) {
                *last = 0xff << (8 - pieces % 8);
            }
            let message = Message::Bitfield(bits.into());
            let geometry = Geometry::contiguous(16384, &[u64::from(pieces) * 16384]);
            for max_frame in [max_frame(pieces), MAX_FRAME_BEFORE_METADATA] {
                let decoder = Decoder::new(Limits { max_frame });
                let mut buf = encoded(&message);
                assert_eq!(decoder.decode(&mut buf).unwrap().as_ref(), Some(&message));
            }
            assert_eq!(message.check(&geometry), Ok(()));
        }
        assert!(max_frame(8) > 16 * 1024 + 200, "a metadata piece fits whatever the torrent");
        assert!(max_frame(8) < 100_000, "and a small torrent's bound is small");
    }

    #[test]
    fn messages_are_held_against_the_torrent() {
        let geometry = Geometry::contiguous(32768, &[2 * 32768 + 100]);
        let p = PieceIndex;
        let none = |piece| Err(WireError::NoSuchPiece { piece, pieces: 3 });
        let bad = |piece, begin, len| Err(WireError::BadBlock { piece, begin, len });
        let bits = |b: &'static [u8]| Message::Bitfield(Bytes::from_static(b));
        let data = |n| Bytes::from(vec![0; n]);
        let rows = [
            (Message::Have(p(2)), Ok(())),
            (Message::Have(p(3)), none(3)),
            (Message::Suggest(p(u32::MAX)), none(u32::MAX)),
            (Message::AllowedFast(p(3)), none(3)),
            (Message::Request(block(2, 0, 100)), Ok(())),
            (Message::Request(block(2, 0, 101)), bad(2, 0, 101)),
            (Message::Request(block(0, 32767, 2)), bad(0, 32767, 2)),
            (Message::Cancel(block(3, 0, 1)), none(3)),
            (Message::Reject(block(0, u32::MAX, 2)), bad(0, u32::MAX, 2)),
            (Message::Piece { piece: p(2), begin: 99, data: data(1) }, Ok(())),
            (Message::Piece { piece: p(2), begin: 99, data: data(2) }, bad(2, 99, 2)),
            (bits(b"\xe0"), Ok(())),
            (bits(b"\xf0"), Err(WireError::SpareBits)),
            (bits(b"\xe0\0"), Err(WireError::BitfieldLength { len: 2, pieces: 3 })),
            (bits(b""), Err(WireError::BitfieldLength { len: 0, pieces: 3 })),
            (Message::HaveAll, Ok(())),
            (Message::Unknown(99), Ok(())),
        ];
        for (message, wanted) in rows {
            assert_eq!(message.check(&geometry), wanted, "{message:?}");
        }
    }

    #[test]
    fn block_data_is_not_copied() {
        let message = Message::Piece { piece: PieceIndex(0), begin: 0, data: vec![7; 16384].into() };
        let mut buf = encoded(&message);
        let at = buf.as_ptr() as usize + PREFIX + PIECE_HEADER;
        let Some(Message::Piece { data, .. }) = decoder(1).decode(&mut buf).unwrap() else {
            panic!("a piece")
        };
        assert_eq!(data.as_ptr() as usize, at);
    }

    #[test]
    fn the_handshake_has_its_bytes() {
        let reserved = Reserved::new().with_extensions().with_fast().with_dht();
        assert_eq!(reserved.bytes(), [0, 0, 0, 0, 0, 0x10, 0, 0x05]);
        let handshake = Handshake { reserved, info_hash: [1; 20], peer_id: [2; 20] };
        let bytes = handshake.encode();
        assert_eq!(&bytes[..20], b"\x13BitTorrent protocol");
        assert_eq!((bytes[28], bytes[47], bytes[48], bytes[67]), (1, 1, 2, 2));
        assert_eq!(Handshake::decode(&bytes), Ok(handshake));
        for at in 0..20 {
            let mut broken = bytes;
            broken[at] ^= 1;
            assert_eq!(Handshake::decode(&broken), Err(WireError::NotBitTorrent));
        }
    }

    #[test]
    fn reserved_bits_are_apart() {
        let none = Reserved::new();
        #[rustfmt::skip]
        let rows = [
            (none, false, false, false),
            (none.with_extensions(), true, false, false),
            (none.with_fast(), false, true, false),
            (none.with_dht(), false, false, true),
            (Reserved::from_bytes([0xff; 8]), true, true, true),
        ];
        for (reserved, extensions, fast, dht) in rows {
            assert_eq!(reserved.supports_extensions(), extensions);
            assert_eq!(reserved.supports_fast(), fast);
            assert_eq!(reserved.supports_dht(), dht);
        }
    }

    fn any_request() -> impl Strategy<Value = BlockRequest> {
        (any::<u32>(), 0..u32::MAX - MAX_REQUEST, 1..=MAX_REQUEST).prop_map(|(p, b, l)| block(p, b, l))
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = |from, to| proptest::collection::vec(any::<u8>(), from..to).prop_map(Bytes::from);
        let piece = || any::<u32>().prop_map(PieceIndex);
        prop_oneof![
            proptest::sample::select(vec![
                Message::KeepAlive,
                Message::Choke,
                Message::Unchoke,
                Message::Interested,
                Message::NotInterested,
                Message::HaveAll,
                Message::HaveNone,
                Message::Unknown(10),
                Message::Unknown(255),
            ]),
            piece().prop_map(Message::Have),
            piece().prop_map(Message::Suggest),
            piece().prop_map(Message::AllowedFast),
            any_request().prop_map(Message::Request),
            any_request().prop_map(Message::Cancel),
            any_request().prop_map(Message::Reject),
            any::<u16>().prop_map(Message::Port),
            bytes(0, 200).prop_map(Message::Bitfield),
            (piece(), 0..1u32 << 30, bytes(1, 300)).prop_map(|(piece, begin, data)| Message::Piece {
                piece,
                begin,
                data
            }),
            (any::<u8>(), bytes(0, 200)).prop_map(|(id, payload)| Message::Extended { id, payload }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(messages in proptest::collection::vec(any_message(), 0..8)) {
            let mut buf = BytesMut::new();
            messages.iter().for_each(|m| m.encode(&mut buf));
            let decoder = decoder(100);
            for message in messages {
                prop_assert_eq!(decoder.decode(&mut buf), Ok(Some(message)));
            }
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(
            id in any::<u8>(), len in 0u32..40, body in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let decoder = decoder(100);
            let geometry = Geometry::contiguous(16384, &[100 * 16384]);
            let mut framed = BytesMut::new();
            framed.put_u32(len);
            framed.put_u8(id);
            framed.put_slice(&body);
            for mut buf in [framed, BytesMut::from(&body[..])] {
                loop {
                    decoder.need(&buf);
                    match decoder.decode(&mut buf) {
                        Ok(Some(message)) => drop(message.check(&geometry)),
                        Ok(None) | Err(_) => break,
                    }
                }
            }
        }
    }
}
