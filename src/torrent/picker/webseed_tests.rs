//! Tests of the picker with webseeds: their blocks follow each other, and everything else is as with peers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use super::tests::{KIB, PLENTY, deliver, has_delivered, measured, picker, read};
use super::*;

const S: Duration = Duration::from_secs(1);
const SEED: PeerKey = PeerKey(9);
const OTHER: PeerKey = PeerKey(8);

/// A webseed that has delivered so many bytes per second.
fn webseed(now: Instant, rate: u64) -> PeerLoad {
    has_delivered(PeerLoad::webseed(now - 10 * S), now, rate)
}

/// The blocks of one of them, as runs: the first of each, numbered through the torrent, and how many.
fn runs(out: &[Assignment], key: PeerKey, per_piece: u32) -> Vec<(u32, u32)> {
    let blocks = out.iter().filter(|a| a.peer == key);
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for at in blocks.map(|a| a.block.piece.0 * per_piece + a.block.block.0) {
        match runs.last_mut() {
            Some((first, len)) if *first + *len == at => *len += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}

#[test]
fn alone_it_is_asked_for_pieces_in_a_row() {
    let now = Instant::now();
    let mut picker = picker(256 * KIB, 64, PLENTY);
    picker.add_peer(SEED, PeerLoad::webseed(now));
    for piece in 0..64 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + S * piece / 10);
    }
    let out = picker.schedule(now);
    assert_eq!(runs(&out, SEED, 16), [(0, 256)], "four requests of 1 MiB, before anything was measured");
    // With each block that comes it may be asked for two more, and that is done in portions.
    let mut asked = Vec::new();
    for assignment in &out {
        deliver(&mut picker, assignment, now);
        let more = picker.schedule(now);
        assert!(more.is_empty() || more.len() >= 64, "{} at a time", more.len());
        asked.extend(more);
        picker.check().unwrap();
    }
    assert_eq!(runs(&asked, SEED, 16).len(), 1);
    assert!(asked.len() >= 256);
}

#[test]
fn an_urgent_piece_is_split_and_each_webseed_gets_one_run() {
    let now = Instant::now();
    // Rates of two peers and of one or two webseeds, in MiB per second.
    for (peers, webseeds) in [([1, 1], &[2u64][..]), ([4, 1], &[1]), ([1, 2], &[2, 3]), ([8, 8], &[8, 8])] {
        let mut picker = picker(1024 * KIB, 4, PLENTY);
        for (n, rate) in (1..).zip(peers) {
            picker.add_peer(PeerKey(n), measured(now, rate << 20));
        }
        for (key, rate) in [SEED, OTHER].into_iter().zip(webseeds) {
            picker.add_peer(key, webseed(now, rate << 20));
        }
        picker.want(PieceIndex(1), read(1), now);
        let out = picker.schedule(now);
        picker.check().unwrap();
        assert_eq!(out.len(), 64, "asked for whole");
        assert!(out.is_sorted_by_key(|a| a.block), "in order");
        let all: u64 = peers.iter().chain(webseeds).sum();
        for (key, rate) in [SEED, OTHER].into_iter().zip(webseeds) {
            let runs = runs(&out, key, 64);
            let &[(_, blocks)] = &runs[..] else { panic!("{peers:?} {webseeds:?}: {runs:?}") };
            let share = 64 * rate / all;
            assert!(u64::from(blocks).abs_diff(share) <= 6, "{blocks} of 64 blocks, {rate} of {all} MiB/s");
        }
        // What it gets of the next piece follows that, if it had the last block.
        picker.want(PieceIndex(2), read(2), now);
        let next = picker.schedule(now);
        let last = out.last().unwrap().peer;
        assert_eq!(next.first().unwrap().peer, last, "{peers:?} {webseeds:?}");
        assert_eq!(runs(&next, last, 64).len(), 1);
        picker.check().unwrap();
    }
}

#[test]
fn late_blocks_are_asked_of_a_webseed_in_a_row() {
    let now = Instant::now();
    let mut picker = picker(512 * KIB, 2, PLENTY);
    picker.add_peer(PeerKey(1), measured(now, 64 << 10));
    picker.want(PieceIndex(0), read(1), now);
    let first = picker.schedule(now);
    assert_eq!(first.len(), 32);
    picker.add_peer(SEED, webseed(now, 8 << 20));
    picker.add_peer(PeerKey(2), measured(now, 8 << 20));
    let hedged = picker.hedge(now + S / 10);
    let mut of_seed: Vec<u32> = hedged.iter().filter(|a| a.peer == SEED).map(|a| a.block.block.0).collect();
    of_seed.sort_unstable();
    assert!(of_seed.len() > 4, "{hedged:?}");
    let gaps = of_seed.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    assert!(gaps <= 2, "{of_seed:?}");
    picker.check().unwrap();
}

#[test]
fn what_it_does_not_serve_goes_to_others_at_once() {
    let now = Instant::now();
    let mut picker = picker(64 * KIB, 8, PLENTY);
    picker.add_peer(SEED, webseed(now, 8 << 20));
    for piece in 0..8 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + S * piece);
    }
    assert_eq!(picker.schedule(now).len(), 32);
    let taken = picker.take_away(SEED, (2..4).chain([7]).map(PieceIndex));
    assert_eq!(taken.len(), 12);
    picker.check().unwrap();
    assert!(picker.is_servable(PieceIndex(1)) && !picker.is_servable(PieceIndex(2)));
    assert!(picker.schedule(now).is_empty(), "nobody has them");
    picker.add_peer(PeerKey(1), measured(now, 8 << 20));
    let again = picker.schedule(now);
    assert_eq!(again.len(), 12);
    assert!(again.iter().all(|a| a.peer == PeerKey(1) && [2, 3, 7].contains(&a.block.piece.0)));
    picker.check().unwrap();
}

#[test]
fn bulk_asked_of_a_webseed_gives_way_to_what_is_urgent() {
    let now = Instant::now();
    let mut picker = picker(1024 * KIB, 64, PLENTY);
    picker.add_peer(SEED, webseed(now, 4 << 20));
    for piece in 1..30 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + S * 60);
    }
    let bulk = picker.schedule(now).len();
    assert!(bulk >= 256, "{bulk} blocks");
    picker.want(PieceIndex(50), read(1), now);
    let urgent = picker.schedule(now);
    assert!(urgent[..64].iter().all(|a| a.block.piece.0 == 50 && a.urgent), "whole, and before all else");
    assert!(urgent[64..].iter().all(|a| !a.urgent));
    // All but what is on its way is taken back, and is asked for again when the webseed has said that it won't come.
    let void = picker.take_void();
    assert!(void.len() > bulk - 50, "{} of {bulk}", void.len());
    picker.check().unwrap();
    for (key, block) in &void {
        assert!(picker.settled(*key, *block));
    }
    picker.check().unwrap();
    for assignment in &urgent {
        deliver(&mut picker, assignment, now);
    }
    let again = picker.schedule(now);
    assert!(void.iter().any(|(_, block)| again.iter().any(|a| a.block == *block)));
}

#[test]
fn a_webseed_is_told_what_a_read_comes_to_wait_for() {
    let now = Instant::now();
    let mut picker = picker(64 * KIB, 8, PLENTY);
    picker.add_peer(SEED, webseed(now, 1 << 20));
    for piece in 0..8 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + S * piece / 10);
    }
    let asked = picker.schedule(now);
    assert!(asked.iter().all(|a| !a.urgent && a.peer == SEED));
    assert_eq!(picker.take_hurried(), []);
    picker.want(PieceIndex(3), read(1), now);
    let of_it: Vec<_> =
        asked.iter().filter(|a| a.block.piece == PieceIndex(3)).map(|a| (SEED, a.block)).collect();
    assert!(!of_it.is_empty());
    assert_eq!(picker.take_hurried(), of_it);
    // Once; another reader of the same changes nothing. A peer answers in order, and isn't told.
    picker.want(PieceIndex(3), read(2), now);
    assert_eq!(picker.take_hurried(), []);
    picker.remove_peer(SEED);
    picker.add_peer(PeerKey(1), measured(now, 1 << 20));
    assert!(!picker.schedule(now).is_empty());
    picker.want(PieceIndex(0), read(3), now);
    assert_eq!(picker.take_hurried(), []);
}
