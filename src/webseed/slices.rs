//! What is asked of a webseed at once: runs of wanted blocks made into requests of one file each. Pure.
//!
//! A [`Slice`] is what one requester claims: blocks that follow each other, beginning with the most urgent, as many as
//! are worth one request at the server's rate. Its [`Part`]s are the requests: where a run crosses from one file into
//! the next, another begins. Pad files are zeros that are never requested, so bytes of a block that lie in no part are
//! zeros. BEP 17 asks for ranges of one piece: its parts may go over the borders of files, its slices not over those of
//! pieces.
//!
//! Not here: who has claimed what (`table`), and which blocks are wanted (the picker).

use std::collections::HashSet;

use super::url::Kind;
use crate::metainfo::geometry::{BLOCK_LEN, BlockIndex, BlockRef, FileIndex, PieceIndex};
use crate::metainfo::{FileKind, Info};

/// Requests of one slice, beyond those of its first block: small files are fetched side by side by several requesters,
/// rather than one after another by one.
const PARTS_MAX: usize = 4;
/// Assumed of a server before its rate is known: 1 MiB/s.
const RATE_GUESS: u64 = 1 << 20;
/// How long a request should take that nobody waits for, in seconds: its round trip is then a small part of it.
const BULK_SECONDS: u64 = 2;
/// The least that is asked for when nobody waits, in bytes: as above, at a far server.
const BULK_MIN: u64 = 512 * 1024;
/// The most that is asked for at once, in bytes: what comes behind it waits for it.
const BULK_MAX: u64 = 16 << 20;
/// The part of a second that a request should take that somebody waits for.
const URGENT_SHARE: u64 = 4;
/// The least that is asked for when somebody waits, in bytes: less takes no less time.
const URGENT_MIN: u64 = 128 * 1024;

/// Blocks that are asked for together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// In the order of the torrent, each following the one before; at least one.
    pub blocks: Vec<BlockRef>,
    /// The requests, in the same order; none if all blocks are filling. What of the blocks is in none of them is zeros.
    pub parts: Vec<Part>,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    /// The file; for BEP 17 the first one that it touches.
    pub file: FileIndex,
    /// First byte within that file.
    pub offset: u64,
    /// Bytes, more than 0. Within the file, but for BEP 17, where it may go on into the next ones.
    pub len: u64,
    /// The same first byte in the torrent's linear space.
    pub at: u64,
}

/// The next slice of what is wanted: the first of `wanted` (in the picker's order) and what follows it in the torrent and
/// is wanted too, up to `size` bytes (but at least one block). None when nothing is wanted.
pub fn next(wanted: &[BlockRef], info: &Info, kind: Kind, size: u64) -> Option<Slice> {
    let geometry = &info.geometry;
    let first = *wanted.iter().find(|block| geometry.block_len(**block) > 0)?;
    let all: HashSet<BlockRef> = wanted.iter().copied().collect();
    let mut slice = Slice { blocks: vec![first], parts: Vec::new() };
    add(&mut slice.parts, info, kind, first);
    let most = slice.parts.len().max(PARTS_MAX);
    let mut len = u64::from(geometry.block_len(first));
    let mut last = first;
    loop {
        let next = match BlockIndex(last.block.0 + 1) {
            block if block.0 < geometry.blocks_in(last.piece) => BlockRef { piece: last.piece, block },
            _ if kind == Kind::Http => break,
            _ => BlockRef { piece: PieceIndex(last.piece.0.saturating_add(1)), block: BlockIndex(0) },
        };
        len += u64::from(geometry.block_len(next));
        if !all.contains(&next) || geometry.block_len(next) == 0 || len > size {
            break;
        }
        let before = (slice.parts.len(), slice.parts.last().copied());
        add(&mut slice.parts, info, kind, next);
        if slice.parts.len() > most {
            slice.parts.truncate(before.0);
            if let (Some(end), Some(part)) = (slice.parts.last_mut(), before.1) {
                *end = part;
            }
            break;
        }
        slice.blocks.push(next);
        last = next;
    }
    Some(slice)
}

/// How much to ask for at once, in bytes: of a server that delivers `rate` bytes per second (0: not known yet), when
/// somebody waits for it or it is due soon (`urgent`), or when the reader is far behind.
pub fn size(rate: u64, urgent: bool, piece_len: u32) -> u64 {
    let piece = u64::from(piece_len).max(1);
    let rate = if rate == 0 { RATE_GUESS } else { rate };
    if urgent {
        let most = piece.max(URGENT_MIN);
        (rate / URGENT_SHARE).clamp(URGENT_MIN, most).next_multiple_of(u64::from(BLOCK_LEN))
    } else {
        let worth = rate.saturating_mul(BULK_SECONDS).clamp(BULK_MIN, BULK_MAX);
        // Whole pieces, so that each can be verified as soon as it may; a piece larger than the bound comes in several.
        match worth / piece {
            0 => worth.next_multiple_of(u64::from(BLOCK_LEN)),
            pieces => pieces * piece,
        }
    }
}

/// Adds what a block needs, to the last part where it goes on there.
fn add(parts: &mut Vec<Part>, info: &Info, kind: Kind, block: BlockRef) {
    let geometry = &info.geometry;
    let start = geometry.piece_offset(block.piece) + u64::from(block.block.0) * u64::from(BLOCK_LEN);
    for span in geometry.spans(start, u64::from(geometry.block_len(block))) {
        let file = info.files.get(span.file.0 as usize);
        if file.is_none_or(|file| file.kind == FileKind::Pad) {
            continue;
        }
        let extent = geometry.files().get(span.file.0 as usize);
        let at = extent.map_or(0, |extent| extent.offset) + span.offset;
        match parts.last_mut() {
            Some(last) if last.at + last.len == at && (last.file == span.file || kind == Kind::Http) => {
                last.len += span.len;
            }
            _ => parts.push(Part { file: span.file, offset: span.offset, len: span.len, at }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::super::for_tests::{torrent, torrent_v2};
    use super::*;

    const B: u64 = BLOCK_LEN as u64;

    /// All blocks of a torrent, in its order.
    fn blocks(info: &Info) -> Vec<BlockRef> {
        let of = |piece| {
            (0..info.geometry.blocks_in(piece)).map(move |b| BlockRef { piece, block: BlockIndex(b) })
        };
        info.geometry.all_pieces().flat_map(of).collect()
    }

    /// File, offset and length of a part.
    type Place = (u32, u64, u64);

    /// All slices one after another: how many blocks, and where the parts are.
    fn all(info: &Info, kind: Kind, size: u64) -> Vec<(usize, Vec<Place>)> {
        let mut wanted = blocks(info);
        let mut found = Vec::new();
        while let Some(slice) = next(&wanted, info, kind, size) {
            wanted.retain(|block| !slice.blocks.contains(block));
            let parts = slice.parts.iter().map(|part| (part.file.0, part.offset, part.len));
            found.push((slice.blocks.len(), parts.collect()));
        }
        found
    }

    #[test]
    fn w9_two_files_of_500_kb_in_pieces_of_2_mb() {
        // The second file begins in the middle of a block, and ends inside of the only piece.
        let names: [&[&[u8]]; 2] = [&[b"a"], &[b"b"]];
        let info = torrent(b"n", 2 << 20, &[(names[0], 500_000, false), (names[1], 500_000, false)]);
        let whole = vec![(62, vec![(0, 0, 500_000), (1, 0, 500_000)])];
        assert_eq!(all(&info, Kind::Url, 2 << 20), whole);
        assert_eq!(all(&info, Kind::Http, 2 << 20), [(62, vec![(0, 0, 1_000_000)])]);
        assert_eq!(
            all(&info, Kind::Url, 31 * B),
            [
                (31, vec![(0, 0, 500_000), (1, 0, 31 * B - 500_000)]),
                (31, vec![(1, 31 * B - 500_000, 1_000_000 - 31 * B)]),
            ]
        );
        // v2 lays them apart; then two slices touch one file each.
        let info = torrent_v2(2 << 20, &[500_000, 500_000]);
        assert_eq!(
            all(&info, Kind::Url, 500_000),
            [(31, vec![(0, 0, 500_000)]), (31, vec![(1, 0, 500_000)])]
        );
        assert_eq!(all(&info, Kind::Http, 4 << 20), all(&info, Kind::Url, 500_000));
        assert_eq!(all(&info, Kind::Url, 4 << 20), [(62, vec![(0, 0, 500_000), (1, 0, 500_000)])]);
    }

    #[test]
    fn a_run_begins_with_the_most_urgent_and_ends_where_nothing_is_wanted() {
        let info = torrent(b"n", 4 * BLOCK_LEN, &[(&[], 12 * B, false)]);
        let all = blocks(&info);
        let wanted = |numbers: &[usize]| numbers.iter().map(|&n| all[n]).collect::<Vec<_>>();
        for (order, size, run) in [
            (&[5, 4, 3, 6, 8][..], 100 * B, &[5, 6][..]),
            (&[3, 4, 5, 6, 7, 8], 100 * B, &[3, 4, 5, 6, 7, 8]),
            (&[3, 4, 5, 6, 7, 8], 3 * B, &[3, 4, 5]),
            (&[3, 4, 5, 6, 7, 8], 4 * B - 1, &[3, 4, 5]),
            (&[11, 10], 100 * B, &[11]),
            (&[2, 3], 0, &[2]),
        ] {
            assert_eq!(
                next(&wanted(order), &info, Kind::Url, size).unwrap().blocks,
                wanted(run),
                "{order:?}"
            );
        }
        let one_piece = next(&wanted(&[2, 3, 4]), &info, Kind::Http, 100 * B).unwrap();
        assert_eq!(one_piece.blocks, wanted(&[2, 3]));
        assert_eq!((one_piece.parts[0].at, one_piece.parts[0].len), (2 * B, 2 * B));
        assert_eq!(next(&[], &info, Kind::Url, B), None);
        let outside = BlockRef { piece: PieceIndex(u32::MAX), block: BlockIndex(u32::MAX) };
        assert_eq!(next(&[outside], &info, Kind::Url, B), None);
        assert_eq!(next(&[outside, all[0]], &info, Kind::Url, B).unwrap().blocks, [all[0]]);
    }

    #[test]
    fn filling_is_never_asked_for() {
        let [a, b]: [&[&[u8]]; 2] = [&[b"a"], &[b"b"]];
        let files = [(a, B + 5, false), (&[b".pad", b"1"], 3 * B - 5, true), (b, 10, false)];
        let info = torrent(b"n", 2 * BLOCK_LEN, &files);
        for kind in [Kind::Url, Kind::Http] {
            let all = all(&info, kind, B);
            assert_eq!(
                all,
                [(1, vec![(0, 0, B)]), (1, vec![(0, B, 5)]), (1, vec![]), (1, vec![]), (1, vec![(2, 0, 10)])]
            );
        }
        assert_eq!(all(&info, Kind::Url, 9 * B), [(5, vec![(0, 0, B + 5), (2, 0, 10)])]);
    }

    #[test]
    fn small_files_are_left_to_several_requesters() {
        let names: Vec<String> = (0..100).map(|n| format!("f{n}")).collect();
        let paths: Vec<[&[u8]; 1]> = names.iter().map(|name| [name.as_bytes()]).collect();
        let files: Vec<_> = paths.iter().map(|path| (&path[..], B, false)).collect();
        let info = torrent(b"n", 64 * BLOCK_LEN, &files);
        let found = all(&info, Kind::Url, 64 * B);
        assert!(found.iter().all(|(blocks, parts)| *blocks == PARTS_MAX && parts.len() == PARTS_MAX));
        // One block of sixteen files can't be had with fewer requests.
        let files: Vec<_> = paths.iter().map(|path| (&path[..], B / 16, false)).collect();
        let info = torrent(b"n", 64 * BLOCK_LEN, &files);
        let found = all(&info, Kind::Url, 64 * B);
        assert_eq!((found.len(), found[0].0, found[0].1.len()), (7, 1, 16));
        // BEP 17 knows of no files.
        assert_eq!(all(&info, Kind::Http, 64 * B).len(), 1);
    }

    #[test]
    fn requests_are_sized_by_rate() {
        const M: u64 = 1 << 20;
        for (rate, urgent, piece, bytes) in [
            // Nobody waits: two seconds' worth, in whole pieces.
            (0, false, M, 2 * M),
            (1, false, M, 512 * 1024),
            (10 * M, false, M, 16 * M),
            (3 * M, false, 4 * M, 4 * M),
            (300 * M, false, M, 16 * M),
            (300 * M, false, 64 * M, 16 * M),
            (M, false, 16384, 2 * M),
            (u64::MAX, false, 3 * M, 15 * M),
            // Somebody waits: a quarter of a second's worth, no more than a piece.
            (0, true, M, 256 * 1024),
            (1, true, 4 * M, 128 * 1024),
            (2 * M, true, 4 * M, 512 * 1024),
            (300 * M, true, M, M),
            (300 * M, true, 16384, 128 * 1024),
            (u64::MAX, true, 0, 128 * 1024),
        ] {
            assert_eq!(size(rate, urgent, piece as u32), bytes, "{rate} {urgent} {piece}");
        }
    }

    prop_compose! {
        fn any_torrent()(
            files in proptest::collection::vec((0u64..70_000, any::<bool>()), 1..30),
            piece in prop_oneof![Just(16384u32), Just(65536), 1000u32..100_000],
            v2: bool,
        ) -> Info {
            if v2 {
                let sizes: Vec<u64> = files.iter().map(|(size, _)| *size).collect();
                return torrent_v2(131_072, &sizes);
            }
            let names: Vec<String> = (0..files.len()).map(|n| n.to_string()).collect();
            let paths: Vec<[&[u8]; 1]> = names.iter().map(|name| [name.as_bytes()]).collect();
            let rows = paths.iter().zip(&files).map(|(path, (size, pad))| (&path[..], *size, *pad));
            torrent(b"n", piece, &rows.collect::<Vec<_>>())
        }
    }

    proptest! {
        #[test]
        fn each_wanted_block_is_in_one_slice_and_parts_are_its_bytes(
            info in any_torrent(),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..200),
            size in 0u64..600_000,
            http: bool,
        ) {
            let kind = if http { Kind::Http } else { Kind::Url };
            let geometry = &info.geometry;
            let all = blocks(&info);
            let mut wanted: Vec<BlockRef> = Vec::new();
            for block in picks.iter().filter(|_| !all.is_empty()).map(|pick| all[pick.index(all.len())]) {
                if !wanted.contains(&block) {
                    wanted.push(block);
                }
            }
            while let Some(slice) = next(&wanted, &info, kind, size) {
                prop_assert_eq!(slice.blocks[0], wanted[0]);
                let before = wanted.len();
                wanted.retain(|block| !slice.blocks.contains(block));
                prop_assert_eq!(before - wanted.len(), slice.blocks.len());

                // Byte for byte: what lies in regular files, each once, in order.
                let mut needed = Vec::new();
                for block in &slice.blocks {
                    let start = geometry.piece_offset(block.piece) + u64::from(block.block.0) * B;
                    for span in geometry.spans(start, u64::from(geometry.block_len(*block))) {
                        let file = span.file.0 as usize;
                        if info.files[file].kind != FileKind::Pad {
                            let at = geometry.files()[file].offset + span.offset;
                            needed.extend(at..at + span.len);
                        }
                    }
                }
                let asked: Vec<u64> = slice.parts.iter().flat_map(|part| part.at..part.at + part.len).collect();
                prop_assert!(asked == needed, "{slice:?}");
                for part in &slice.parts {
                    let extent = geometry.files()[part.file.0 as usize];
                    prop_assert_eq!(part.at, extent.offset + part.offset);
                    if http {
                        let piece = u64::from(geometry.piece_length());
                        prop_assert_eq!(part.at / piece, (part.at + part.len - 1) / piece);
                    } else {
                        prop_assert!(part.len > 0 && part.offset + part.len <= extent.len);
                    }
                }
                let len: u64 = slice.blocks.iter().map(|block| u64::from(geometry.block_len(*block))).sum();
                prop_assert!(len <= size || slice.blocks.len() == 1);
            }
            prop_assert!(wanted.is_empty());
        }
    }
}
