//! The piece table: what state each piece is in. One writer, the torrent's owner; readers take no lock.
//!
//! `Unknown → Verifying → Complete | Missing`, and `Missing → Requested → Verifying`.
//! The enum is closed and matched exhaustively wherever a decision hangs on it: a state that nobody thought
//! of must not silently mean "never request" (row C1).

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::metainfo::geometry::PieceIndex;

/// The state of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceState {
    /// There may be data on disk, and nobody has looked. Settled on demand, by hashing.
    Unknown = 0,
    /// Not here; requestable.
    Missing = 1,
    /// Some of its blocks are requested or here.
    Requested = 2,
    /// Its hash is being computed, of received blocks or of data on disk.
    Verifying = 3,
    /// Here, verified, written.
    Complete = 4,
}

impl PieceState {
    fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Missing,
            2 => Self::Requested,
            3 => Self::Verifying,
            4 => Self::Complete,
            _ => Self::Unknown,
        }
    }
}

/// The states of all pieces of a torrent.
#[derive(Debug)]
pub struct PieceTable {
    states: Box<[AtomicU8]>,
    complete: AtomicU32,
}

impl PieceTable {
    /// A table of `pieces` pieces, all in `state`.
    pub fn new(pieces: u32, state: PieceState) -> Self {
        let states = (0..pieces).map(|_| AtomicU8::new(state as u8)).collect();
        let complete = if state == PieceState::Complete { pieces } else { 0 };
        Self { states, complete: AtomicU32::new(complete) }
    }

    /// Number of pieces.
    pub fn len(&self) -> u32 {
        self.states.len() as u32
    }

    /// Whether the torrent has no pieces.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The state of a piece; `Missing` for one that doesn't exist, which nothing can complete.
    pub fn state(&self, piece: PieceIndex) -> PieceState {
        match self.states.get(piece.0 as usize) {
            // Acquire pairs with the Release in `set`: who sees Complete sees the written data.
            Some(state) => PieceState::from_u8(state.load(Ordering::Acquire)),
            None => PieceState::Missing,
        }
    }

    /// Whether a piece is here.
    pub fn is_complete(&self, piece: PieceIndex) -> bool {
        self.state(piece) == PieceState::Complete
    }

    /// Whether all pieces of a range are here.
    pub fn all_complete(&self, pieces: std::ops::Range<u32>) -> bool {
        pieces.into_iter().all(|p| self.is_complete(PieceIndex(p)))
    }

    /// Number of complete pieces.
    pub fn complete_count(&self) -> u32 {
        self.complete.load(Ordering::Relaxed)
    }

    /// Changes a state. Only the torrent's owner calls this.
    pub fn set(&self, piece: PieceIndex, state: PieceState) {
        let Some(cell) = self.states.get(piece.0 as usize) else { return };
        let before = PieceState::from_u8(cell.swap(state as u8, Ordering::AcqRel));
        match (before == PieceState::Complete, state == PieceState::Complete) {
            (false, true) => {
                self.complete.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.complete.fetch_sub(1, Ordering::Relaxed);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// The complete pieces as a bitfield, first piece in the highest bit of the first byte (BEP 3).
    pub fn bitfield(&self) -> Vec<u8> {
        let mut bits = vec![0u8; self.states.len().div_ceil(8)];
        for (i, state) in self.states.iter().enumerate() {
            if PieceState::from_u8(state.load(Ordering::Acquire)) == PieceState::Complete {
                bits[i / 8] |= 0x80 >> (i % 8);
            }
        }
        bits
    }
}

/// Whether bit `piece` of a bitfield is set; false beyond its end.
pub fn bit(bits: &[u8], piece: u32) -> bool {
    bits.get(piece as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bits_follow_the_states() {
        let table = PieceTable::new(10, PieceState::Missing);
        table.set(PieceIndex(0), PieceState::Complete);
        table.set(PieceIndex(9), PieceState::Complete);
        table.set(PieceIndex(9), PieceState::Complete);
        table.set(PieceIndex(99), PieceState::Complete);
        assert_eq!(table.complete_count(), 2);
        assert_eq!(table.bitfield(), [0x80, 0x40]);
        assert!(bit(&table.bitfield(), 9) && !bit(&table.bitfield(), 8) && !bit(&[], 0));
        table.set(PieceIndex(9), PieceState::Missing);
        assert_eq!(table.complete_count(), 1);
        assert!(!table.all_complete(0..2) && table.all_complete(0..1));
    }

    #[test]
    fn c1_no_state_means_ignore() {
        // Every state says what a demand for the piece leads to; the match has no wildcard, so a new state
        // doesn't compile until somebody decides.
        let action = |state: PieceState| match state {
            PieceState::Unknown => "check",
            PieceState::Missing | PieceState::Requested => "request",
            PieceState::Verifying => "wait for the hash",
            PieceState::Complete => "serve",
        };
        for raw in 0..=u8::MAX {
            assert!(!action(PieceState::from_u8(raw)).is_empty());
        }
        assert_eq!(action(PieceState::from_u8(PieceState::Unknown as u8)), "check");
        assert_eq!(PieceTable::new(1, PieceState::Unknown).state(PieceIndex(0)), PieceState::Unknown);
    }
}
