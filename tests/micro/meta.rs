//! Bencode and metainfo: a small `.torrent`, one with very many pieces, and one with very many files.

use std::fmt;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use torrentfs::metainfo::{Info, Metainfo, TorrentBuilder, bencode};

const PIECE: u32 = 256 * 1024;

/// What a torrent is like.
#[derive(Clone, Copy)]
enum Kind {
    Small,
    ManyPieces,
    ManyFiles,
}

const KINDS: [Kind; 3] = [Kind::Small, Kind::ManyPieces, Kind::ManyFiles];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small",
            Self::ManyPieces => "333333-hashes",
            Self::ManyFiles => "10000-files",
        })
    }
}

impl Kind {
    fn builder(self) -> TorrentBuilder {
        let mut builder = TorrentBuilder::new("name of it", PIECE);
        builder.tracker("http://tracker.example/announce").created_by("bench");
        let pieces = match self {
            Self::Small => 100,
            Self::ManyPieces => 333_333,
            Self::ManyFiles => 10_000,
        };
        match self {
            Self::Small | Self::ManyPieces => _ = builder.single_file(u64::from(PIECE) * pieces),
            Self::ManyFiles => (0..pieces).for_each(|i| {
                builder.file(format!("folder {}/file {i}.txt", i / 100), PIECE.into());
            }),
        }
        builder.piece_hashes((0..pieces).map(|_| [0x5a; 20]));
        builder
    }
}

/// The bytes as a tree.
#[divan::bench(args = KINDS)]
fn bencode_parse(bencher: Bencher, kind: Kind) {
    let file = kind.builder().build().unwrap();
    bencher
        .counter(BytesCount::of_slice(&file))
        .bench(|| bencode::parse(black_box(&file)).unwrap().get("info").is_some());
}

/// The info dictionary, with its hash and the layout of the files.
#[divan::bench(args = KINDS)]
fn info_parse(bencher: Bencher, kind: Kind) {
    let info = kind.builder().info().unwrap();
    bencher.counter(BytesCount::of_slice(&info)).bench(|| Info::parse(black_box(&info), None).unwrap());
}

/// The whole file, as it is added.
#[divan::bench(args = KINDS)]
fn metainfo_parse(bencher: Bencher, kind: Kind) {
    let file = kind.builder().build().unwrap();
    bencher.counter(BytesCount::of_slice(&file)).bench(|| Metainfo::parse(black_box(&file)).unwrap());
}
