//! The protocol between peers: what taking messages off a receive buffer and writing requests costs.

use bytes::{Bytes, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use torrentfs::metainfo::geometry::{BLOCK_LEN, PieceIndex};
use torrentfs::peer::wire::{BlockRequest, Decoder, Limits, Message, max_frame};

/// A buffer of so many messages.
fn stream(count: u32, message: impl Fn(u32) -> Message) -> BytesMut {
    let mut out = BytesMut::new();
    (0..count).for_each(|i| message(i).encode(&mut out));
    out
}

/// Takes all messages off a buffer that isn't touched otherwise: making it isn't measured, dropping it is.
fn decode_all(bencher: Bencher, wire: &BytesMut, count: usize) {
    let decoder = Decoder::new(Limits { max_frame: max_frame(333_333) });
    let inputs = bencher
        .counter(BytesCount::new(wire.len()))
        .counter(ItemsCount::new(count))
        .with_inputs(|| BytesMut::from(&wire[..]));
    inputs.bench_local_refs(|buf| {
        let mut found = 0;
        while let Some(message) = decoder.decode(buf).unwrap() {
            black_box(message);
            found += 1;
        }
        assert_eq!(found, count);
    });
}

/// A megabyte of blocks; their bytes aren't copied.
#[divan::bench(sample_size = 4)]
fn decode_64_blocks(bencher: Bencher) {
    let data = Bytes::from(vec![7; BLOCK_LEN as usize]);
    let wire =
        stream(64, |i| Message::Piece { piece: PieceIndex(i), begin: i * BLOCK_LEN, data: data.clone() });
    decode_all(bencher, &wire, 64);
}

/// What a swarm says all the time.
#[divan::bench(sample_size = 4)]
fn decode_1000_haves(bencher: Bencher) {
    decode_all(bencher, &stream(1000, |i| Message::Have(PieceIndex(i * 7))), 1000);
}

/// A full pipeline's worth of requests into a buffer with room.
#[divan::bench]
fn encode_256_requests(bencher: Bencher) {
    let mut out = BytesMut::with_capacity(256 * 17);
    bencher.counter(ItemsCount::new(256usize)).bench_local(|| {
        out.clear();
        for i in 0..256 {
            let request = BlockRequest { piece: PieceIndex(9), begin: i * BLOCK_LEN, len: BLOCK_LEN };
            Message::Request(black_box(request)).encode(&mut out);
        }
        black_box(out.len())
    });
}
