//! Torrents for the tests of this room: any names, byte for byte, and any sizes; their hashes are of nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::metainfo::Info;
use crate::metainfo::bencode::Encoder;

/// A file for [`torrent`]: its components, its size, and whether it is a pad file.
pub(super) type File<'a> = (&'a [&'a [u8]], u64, bool);

/// A v1 torrent; a single file if there is one without components.
pub(super) fn torrent(name: &[u8], piece_length: u32, files: &[File<'_>]) -> Info {
    let mut e = Encoder::new();
    e.dict_begin();
    match files {
        [([], size, _)] => {
            e.key("length").int(*size as i64);
        }
        _ => {
            e.key("files").list_begin();
            for (path, size, pad) in files {
                e.dict_begin();
                if *pad {
                    e.key("attr").bytes(b"p");
                }
                e.key("length").int(*size as i64).key("path").list_begin();
                for part in *path {
                    e.bytes(part);
                }
                e.end().end();
            }
            e.end();
        }
    }
    let total: u64 = files.iter().map(|(_, size, _)| size).sum();
    let pieces = total.div_ceil(u64::from(piece_length));
    e.key("name").bytes(name).key("piece length").int(i64::from(piece_length));
    e.key("pieces").bytes(vec![0; pieces as usize * 20]).end();
    Info::parse(&e.finish(), None).unwrap()
}

/// A torrent of v2 alone: each file begins at a piece. No file is larger than a piece.
pub(super) fn torrent_v2(piece_length: u32, sizes: &[u64]) -> Info {
    let mut e = Encoder::new();
    e.dict_begin().key("file tree").dict_begin();
    for (number, size) in sizes.iter().enumerate() {
        e.key(format!("f{number:03}")).dict_begin().key("").dict_begin();
        e.key("length").int(*size as i64);
        if *size > 0 {
            e.key("pieces root").bytes([7; 32]);
        }
        e.end().end();
    }
    e.end().key("meta version").int(2).key("name").bytes("n");
    e.key("piece length").int(i64::from(piece_length)).end();
    Info::parse(&e.finish(), None).unwrap()
}
