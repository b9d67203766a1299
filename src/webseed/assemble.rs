//! Cuts what comes of a slice into its blocks. Pure.
//!
//! A block that came in one chunk is a slice of it and isn't copied; others are gathered. What of a block is in no part
//! is filling, and zeros. Bytes come in ascending order; what nobody asked for is ignored.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, Geometry};

struct Want {
    block: BlockRef,
    /// First byte in the torrent's linear space.
    at: u64,
    len: usize,
}

/// See the module's text.
pub(super) struct Assembler {
    blocks: VecDeque<Want>,
    /// What has come of the first one.
    gathered: BytesMut,
}

impl Assembler {
    /// For these blocks, in the order of the torrent.
    pub(super) fn new(geometry: &Geometry, blocks: &[BlockRef]) -> Self {
        let want = |block: &BlockRef| Want {
            block: *block,
            at: geometry.piece_offset(block.piece) + u64::from(block.block.0) * u64::from(BLOCK_LEN),
            len: geometry.block_len(*block) as usize,
        };
        Self { blocks: blocks.iter().map(want).collect(), gathered: BytesMut::new() }
    }

    /// Takes in the bytes at `at` of the torrent's linear space; blocks that are whole now are added to `done`.
    pub(super) fn feed(&mut self, mut at: u64, mut data: Bytes, done: &mut Vec<(BlockRef, Bytes)>) {
        self.fill(at, done);
        while let Some(want) = self.blocks.front() {
            let here = want.at + self.gathered.len() as u64;
            let before = here.saturating_sub(at).min(data.len() as u64) as usize;
            let _ = data.split_to(before);
            at += before as u64;
            if data.is_empty() {
                return;
            }
            let missing = want.len - self.gathered.len();
            let taken = data.split_to(missing.min(data.len()));
            at += taken.len() as u64;
            if taken.len() == want.len {
                done.push((want.block, taken));
                self.blocks.pop_front();
            } else {
                self.gather(&taken, done);
            }
        }
    }

    /// Nothing more comes: what is missing is filling.
    pub(super) fn finish(&mut self, done: &mut Vec<(BlockRef, Bytes)>) {
        self.fill(u64::MAX, done);
    }

    /// Zeros up to `at`.
    fn fill(&mut self, at: u64, done: &mut Vec<(BlockRef, Bytes)>) {
        const ZEROS: [u8; BLOCK_LEN as usize] = [0; BLOCK_LEN as usize];
        while let Some(want) = self.blocks.front() {
            let here = want.at + self.gathered.len() as u64;
            let missing = want.len - self.gathered.len();
            let n = at.saturating_sub(here).min(missing as u64) as usize;
            match ZEROS.get(..n) {
                Some(zeros) if n > 0 => self.gather(zeros, done),
                _ => return,
            }
        }
    }

    fn gather(&mut self, bytes: &[u8], done: &mut Vec<(BlockRef, Bytes)>) {
        let Some(want) = self.blocks.front() else { return };
        self.gathered.reserve(want.len - self.gathered.len());
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() == want.len {
            done.push((want.block, self.gathered.split().freeze()));
            self.blocks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::metainfo::geometry::{BlockIndex, PieceIndex};

    const B: usize = BLOCK_LEN as usize;

    fn block(piece: u32, block: u32) -> BlockRef {
        BlockRef { piece: PieceIndex(piece), block: BlockIndex(block) }
    }

    #[test]
    fn a_block_in_one_chunk_is_not_copied() {
        let geometry = Geometry::contiguous(4 * BLOCK_LEN, &[10 * u64::from(BLOCK_LEN)]);
        let mut assembler = Assembler::new(&geometry, &[block(0, 2), block(0, 3), block(1, 0)]);
        let chunk = Bytes::from((0..3 * B).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let mut done = Vec::new();
        assembler.feed(2 * B as u64, chunk.slice(..2 * B + 5), &mut done);
        assert_eq!(done.iter().map(|(b, _)| *b).collect::<Vec<_>>(), [block(0, 2), block(0, 3)]);
        assert!(done.iter().enumerate().all(|(n, (_, data))| data.as_ptr() == chunk[n * B..].as_ptr()));
        assembler.feed((4 * B + 5) as u64, chunk.slice(2 * B + 5..), &mut done);
        assert_eq!(done[2], (block(1, 0), chunk.slice(2 * B..)));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_each_byte_is_in_its_place(
            chunks in prop::collection::vec(1..40_000usize, 1..20),
            (from, to) in (0..60_000usize, 70_000..100_000usize),
        ) {
            // One part from the middle of a block; before and behind it there is filling.
            let geometry = Geometry::contiguous(3 * BLOCK_LEN, &[100_000]);
            let all: Vec<BlockRef> = geometry
                .all_pieces()
                .flat_map(|p| (0..geometry.blocks_in(p)).map(move |b| block(p.0, b)))
                .collect();
            let mut wanted = vec![0u8; 100_000];
            (from..to).for_each(|n| wanted[n] = (n % 251) as u8 + 1);
            let mut assembler = Assembler::new(&geometry, &all);
            let mut done = Vec::new();
            let mut at = from;
            for chunk in chunks.iter().cycle() {
                let end = (at + chunk).min(to);
                assembler.feed(at as u64, Bytes::copy_from_slice(&wanted[at..end]), &mut done);
                at = end;
                if at == to {
                    break;
                }
            }
            assembler.finish(&mut done);
            prop_assert_eq!(done.iter().map(|(b, _)| *b).collect::<Vec<_>>(), all);
            prop_assert_eq!(done.iter().flat_map(|(_, data)| data.to_vec()).collect::<Vec<_>>(), wanted);
        }
    }
}
