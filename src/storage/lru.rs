//! Which pieces go when room is needed: those that were read longest ago, over all torrents. Pure.

use crate::metainfo::geometry::PieceIndex;

/// The pieces of a torrent, as far as it matters for their going. Looked at one by one while others change them.
pub trait Pieces {
    /// The torrent's number, never used twice.
    fn slot(&self) -> u32;
    /// Number of pieces.
    fn len(&self) -> u32;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether it takes room, or may.
    fn is_kept(&self, piece: PieceIndex) -> bool;
    /// Whether it could go at this moment.
    fn is_evictable(&self, piece: PieceIndex) -> bool;
    /// When it was read last; higher is later.
    fn stamp(&self, piece: PieceIndex) -> u64;
    /// Bytes that its going gives; 0 when it gives none.
    fn cost(&self, piece: PieceIndex) -> u64;
}
