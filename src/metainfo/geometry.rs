//! The geometry of a torrent: where pieces, blocks and files lie. One value type, pure arithmetic.
//!
//! All data of a torrent is one linear space of bytes ("torrent offset"). In a v1 torrent the files follow
//! each other without a gap (pad files are files); in a v2-only torrent every file begins at a piece
//! boundary, and the last piece of each file is short. Both are the same here: a file has an offset, and a
//! piece has a length.

use std::ops::Range;

/// The size of a block: the unit of a request (BEP 3: 16 KiB by universal practice).
pub const BLOCK_LEN: u32 = 16 * 1024;

/// Number of a piece, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceIndex(pub u32);

/// Number of a block within its piece, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIndex(pub u32);

/// Number of a file in the torrent's list, pad files and symlinks included, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIndex(pub u32);

/// A place in the torrent's linear space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TorrentOffset(pub u64);

/// A block of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRef {
    /// The piece.
    pub piece: PieceIndex,
    /// The block within it.
    pub block: BlockIndex,
}

/// Where a file lies: its first byte and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the torrent's linear space.
    pub offset: u64,
    /// Size in bytes; may be 0.
    pub len: u64,
}

/// A part of one file that a range of the torrent covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The file.
    pub file: FileIndex,
    /// First byte within the file.
    pub offset: u64,
    /// Bytes, more than 0.
    pub len: u64,
}

/// The geometry of one torrent. Made by the metainfo parser, which has checked its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    piece_length: u32,
    pieces: u32,
    /// End of the linear space, gaps included.
    end: u64,
    /// By file; offsets never decrease.
    files: Vec<Extent>,
    /// Whether files begin at piece boundaries with gaps between (v2 without v1).
    aligned: bool,
}

impl Geometry {
    /// Files one after another without gaps (v1, hybrid). The caller has checked: `piece_length > 0`, the
    /// sizes' sum doesn't overflow, and the number of pieces fits in 32 bits.
    pub fn contiguous(piece_length: u32, sizes: &[u64]) -> Self {
        let mut offset = 0;
        let files = sizes
            .iter()
            .map(|&len| {
                let extent = Extent { offset, len };
                offset += len;
                extent
            })
            .collect();
        let pieces = offset.div_ceil(u64::from(piece_length)) as u32;
        Self { piece_length, pieces, end: offset, files, aligned: false }
    }

    /// Each file that isn't empty begins at the next piece boundary (v2). Same preconditions.
    pub fn aligned(piece_length: u32, sizes: &[u64]) -> Self {
        let step = u64::from(piece_length);
        let mut offset = 0u64;
        let mut end = 0;
        let files = sizes
            .iter()
            .map(|&len| {
                let extent = Extent { offset, len };
                if len > 0 {
                    end = offset + len;
                    offset = end.next_multiple_of(step);
                }
                extent
            })
            .collect();
        let pieces = end.div_ceil(step) as u32;
        Self { piece_length, pieces, end, files, aligned: true }
    }

    /// Nominal bytes in a piece.
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }
    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }
    /// All pieces.
    pub fn all_pieces(&self) -> impl Iterator<Item = PieceIndex> + use<> {
        (0..self.pieces).map(PieceIndex)
    }
    /// Where each file lies.
    pub fn files(&self) -> &[Extent] {
        &self.files
    }
    /// End of the linear space: the sum of all sizes, and of the gaps of a v2 torrent.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// First byte of a piece.
    pub fn piece_offset(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_length)
    }

    /// Bytes in a piece: less than nominal for the last one of the torrent (v1) or of its file (v2); 0 for a
    /// piece that doesn't exist.
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        let start = self.piece_offset(piece);
        if piece.0 >= self.pieces {
            return 0;
        }
        let limit = if self.aligned {
            let file = self.files.partition_point(|f| f.offset <= start).saturating_sub(1);
            // Empty files share the next file's offset and come before or after it: find the one with data.
            let data = self.files[..=file].iter().rev().find(|f| f.len > 0);
            data.map_or(self.end, |f| f.offset + f.len)
        } else {
            self.end
        };
        limit.saturating_sub(start).min(u64::from(self.piece_length)) as u32
    }

    /// Number of blocks in a piece.
    pub fn blocks_in(&self, piece: PieceIndex) -> u32 {
        self.piece_len(piece).div_ceil(BLOCK_LEN)
    }

    /// Bytes in a block; 0 if it doesn't exist.
    pub fn block_len(&self, block: BlockRef) -> u32 {
        let start = u64::from(block.block.0) * u64::from(BLOCK_LEN);
        u64::from(self.piece_len(block.piece)).saturating_sub(start).min(u64::from(BLOCK_LEN)) as u32
    }

    /// The pieces that hold `len` bytes of the linear space from `offset`; empty when `len` is 0.
    pub fn pieces_of(&self, offset: u64, len: u64) -> Range<u32> {
        if len == 0 {
            return 0..0;
        }
        let step = u64::from(self.piece_length);
        let first = (offset / step) as u32;
        let last = ((offset + len - 1) / step) as u32;
        first..(last + 1).min(self.pieces)
    }

    /// The pieces that hold a file's bytes.
    pub fn file_pieces(&self, file: FileIndex) -> Range<u32> {
        match self.files.get(file.0 as usize) {
            Some(extent) => self.pieces_of(extent.offset, extent.len),
            None => 0..0,
        }
    }

    /// The parts of files that `len` bytes from `offset` cover, in order; gaps of a v2 torrent are left out.
    pub fn spans(&self, offset: u64, len: u64) -> impl Iterator<Item = Span> + '_ {
        let end = offset.saturating_add(len);
        let first = self.files.partition_point(|f| f.offset + f.len <= offset && f.offset < offset);
        self.files[first..].iter().enumerate().take_while(move |(_, f)| f.offset < end).filter_map(
            move |(i, f)| {
                let from = f.offset.max(offset);
                let to = (f.offset + f.len).min(end);
                (from < to).then(|| Span {
                    file: FileIndex((first + i) as u32),
                    offset: from - f.offset,
                    len: to - from,
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_files_share_pieces() {
        let g = Geometry::contiguous(100, &[50, 0, 160, 7]);
        assert_eq!(g.pieces(), 3);
        assert_eq!(g.piece_len(PieceIndex(2)), 17);
        assert_eq!(g.piece_len(PieceIndex(3)), 0);
        assert_eq!(g.file_pieces(FileIndex(1)), 0..0);
        assert_eq!(g.file_pieces(FileIndex(2)), 0..3);
        let spans: Vec<_> = g.spans(40, 175).map(|s| (s.file.0, s.offset, s.len)).collect();
        assert_eq!(spans, [(0, 40, 10), (2, 0, 160), (3, 0, 5)]);
    }

    #[test]
    fn v2_files_begin_at_pieces() {
        let g = Geometry::aligned(32768, &[40000, 0, 100, 0]);
        assert_eq!(g.pieces(), 3);
        assert_eq!(g.piece_len(PieceIndex(0)), 32768);
        assert_eq!(g.piece_len(PieceIndex(1)), 40000 - 32768);
        assert_eq!(g.piece_len(PieceIndex(2)), 100);
        assert_eq!(g.blocks_in(PieceIndex(0)), 2);
        let spans: Vec<_> = g.spans(0, 65536 + 100).map(|s| (s.file.0, s.offset, s.len)).collect();
        assert_eq!(spans, [(0, 0, 40000), (2, 0, 100)]);
    }

    #[test]
    fn every_byte_is_in_one_span_and_one_piece() {
        for sizes in [&[1u64, 2, 3, 0, 0, 70000][..], &[16384, 16384, 1][..], &[0, 0, 5, 0][..]] {
            for g in [Geometry::contiguous(16384, sizes), Geometry::aligned(16384, sizes)] {
                let total: u64 = sizes.iter().sum();
                assert_eq!(g.spans(0, g.end()).map(|s| s.len).sum::<u64>(), total);
                assert_eq!(g.all_pieces().map(|p| u64::from(g.piece_len(p))).sum::<u64>(), total);
                for p in g.all_pieces() {
                    let n = u64::from(g.piece_len(p));
                    assert_eq!(g.spans(g.piece_offset(p), n).map(|s| s.len).sum::<u64>(), n);
                }
            }
        }
    }
}
