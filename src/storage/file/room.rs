//! What room bytes take, and which of it can be given back.

use std::io;
use std::ops::Range;

use super::{FileStore, StorageError};
use crate::metainfo::geometry::Span;

/// Bytes in which room is counted: the blocks of all common file systems, or several of them.
const BLOCK: u64 = 4096;

/// The room that a part of a file takes at most: that of all blocks it touches.
pub(super) fn of(span: &Span) -> u64 {
    let end = span.offset.saturating_add(span.len);
    end.div_ceil(BLOCK).saturating_sub(span.offset / BLOCK).saturating_mul(BLOCK)
}

impl FileStore {
    /// Gives the room of a part of a file back. `around` is in the torrent.
    pub(super) fn discard_span(&self, span: Span, around: &Range<u64>) -> Result<(), StorageError> {
        let file = span.file.0;
        let Some(open) = self.get_present(file)? else { return Ok(()) };
        self.alone(file, &*open)?;
        let (offset, full) = self.extent(file);
        let part = span.offset..span.offset + span.len;
        let within = around.start.saturating_sub(offset)..around.end.saturating_sub(offset).min(full);
        let block = open.stat().map_err(|e| self.error(file, "looking at", e))?.block;
        let Some(hole) = hole(part, within, full, block) else { return Ok(()) };
        loop {
            match open.punch(hole.clone()) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    return Err(StorageError::Unsupported {
                        path: self.path(file),
                        op: "giving back parts of",
                    });
                }
                Err(error) => return Err(self.error(file, "giving back parts of", error)),
            }
        }
    }
}

/// The hole to make for `part` of a file of `full` bytes, if any block can be given back for it: whole blocks, outward
/// as far as `within` allows, otherwise inward. Zeroing the rest of a block that others share would give nothing
/// back, and would write to what is theirs. `block` is what the file system says of itself.
fn hole(part: Range<u64>, within: Range<u64>, full: u64, block: u64) -> Option<Range<u64>> {
    // What a file system gives as its block may be what it likes to be read in; its real ones are then smaller.
    let blocks = [block.max(BLOCK), BLOCK];
    let start = blocks
        .iter()
        .map(|block| part.start - part.start % block)
        .find(|start| *start >= within.start)
        .unwrap_or(part.start.next_multiple_of(BLOCK));
    // The last block of a file ends behind it.
    let reaches_end = within.end >= full;
    let end = blocks
        .iter()
        .map(|block| part.end.next_multiple_of(*block))
        .find(|end| *end <= within.end || reaches_end)
        .unwrap_or(part.end - part.end % BLOCK);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::geometry::FileIndex;

    #[test]
    fn room_is_counted_in_blocks() {
        for ((offset, len), expected) in
            [((0, 1), 1), ((0, 4096), 1), ((0, 4097), 2), ((4095, 2), 2), ((4095, 1), 1), ((100, 16384), 5)]
        {
            assert_eq!(of(&Span { file: FileIndex(0), offset, len }), expected * BLOCK, "{len} at {offset}");
        }
    }

    #[test]
    fn whole_blocks_are_given_back_and_shared_ones_are_not() {
        const FULL: u64 = 100_000;
        const LAST: u64 = FULL.next_multiple_of(BLOCK);
        type Row = (Range<u64>, Range<u64>, Option<Range<u64>>);
        let rows: &[Row] = &[
            // Alone: only what is wholly within.
            (0..4096, 0..4096, Some(0..4096)),
            (0..4095, 0..4095, None),
            (100..5000, 100..5000, None),
            (100..9000, 100..9000, Some(4096..8192)),
            (4096..8193, 4096..8193, Some(4096..8192)),
            // More of it around: outward.
            (100..5000, 0..5000, Some(0..4096)),
            (100..5000, 100..8192, Some(4096..8192)),
            (100..5000, 0..8192, Some(0..8192)),
            (100..5000, 1..8191, None),
            (5000..5001, 4096..8192, Some(4096..8192)),
            // The end of the file.
            (99_000..FULL, 99_000..FULL, None),
            (98_304..FULL, 98_304..FULL, Some(98_304..LAST)),
            (99_000..FULL, 98_304..FULL, Some(98_304..LAST)),
            (99_000..99_500, 98_304..FULL, Some(98_304..LAST)),
            (99_000..99_500, 98_304..FULL - 1, None),
            (0..FULL, 0..FULL, Some(0..LAST)),
        ];
        for (part, within, expected) in rows {
            let hole = hole(part.clone(), within.clone(), FULL, 4096);
            assert_eq!(hole, *expected, "{part:?} within {within:?}");
        }
    }

    #[test]
    fn larger_blocks_are_given_back_where_they_can_be() {
        const FULL: u64 = 1 << 20;
        const LARGE: u64 = 131_072;
        assert_eq!(hole(5000..9000, 0..FULL, FULL, LARGE), Some(0..LARGE));
        assert_eq!(hole(5000..9000, 4096..FULL, FULL, LARGE), Some(4096..LARGE));
        assert_eq!(hole(5000..9000, 0..20_000, FULL, LARGE), Some(0..12_288));
        assert_eq!(hole(5000..20_000, 5000..20_000, FULL, LARGE), Some(8192..16_384));
        assert_eq!(hole(5000..20_000, 0..FULL, FULL, 0), Some(4096..20_480), "one that says nothing");
        assert_eq!(hole(5000..20_000, 0..FULL, FULL, 512), Some(4096..20_480), "a smaller one");
    }
}
