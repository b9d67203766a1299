//! Tests of the picker: tables of rows, and random events after each of which the invariant holds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::metainfo::geometry::BLOCK_LEN;
use crate::torrent::load::Has;
use bytes::Bytes;

pub(super) const KIB: u32 = 1024;
const S: Duration = Duration::from_secs(1);
pub(super) const PLENTY: u64 = 1 << 40;

fn geometry(piece_length: u32, pieces: u32) -> Arc<Geometry> {
    Arc::new(Geometry::contiguous(piece_length, &[u64::from(piece_length) * u64::from(pieces)]))
}

pub(super) fn picker(piece_length: u32, pieces: u32, budget: u64) -> Picker {
    Picker::new(geometry(piece_length, pieces), Memory::new(budget))
}

/// A seed that doesn't choke us and that nobody has measured.
pub(super) fn seed(now: Instant) -> PeerLoad {
    let mut load = PeerLoad::new(now);
    *load.has_mut() = Has::All;
    load.set_choked(false);
    load
}

/// A seed that has delivered `rate` bytes per second, with 100 ms of delay, for the ten seconds before `now`.
pub(super) fn measured(now: Instant, rate: u64) -> PeerLoad {
    has_delivered(seed(now - 10 * S), now, rate)
}

/// It has delivered `rate` bytes per second, with 100 ms of delay, for the ten seconds before `now`.
pub(super) fn has_delivered(mut load: PeerLoad, now: Instant, rate: u64) -> PeerLoad {
    let start = now - 10 * S;
    let block = BlockRef { piece: PieceIndex(u32::MAX), block: BlockIndex(0) };
    for tenth in 1..=100 {
        let at = start + S / 10 * tenth;
        load.request(block, at - S / 10);
        load.delivered(block, (rate / 10) as u32, at);
    }
    load
}

pub(super) fn read(id: u64) -> DemandId {
    DemandId::Waiter(id)
}

pub(super) fn deliver(picker: &mut Picker, from: &Assignment, now: Instant) -> Arrival {
    from.buffer.put(from.block.block, Bytes::from_static(b"data"), from.peer);
    picker.received(from.peer, from.block, &from.buffer, now)
}

fn peers_of(assignments: &[Assignment]) -> BTreeSet<u64> {
    assignments.iter().map(|a| a.peer.0).collect()
}

fn pieces_of(assignments: &[Assignment]) -> Vec<u32> {
    let mut pieces: Vec<u32> = assignments.iter().map(|a| a.block.piece.0).collect();
    pieces.dedup();
    pieces
}

#[test]
fn an_urgent_piece_is_spread_over_equal_peers() {
    let now = Instant::now();
    let mut picker = picker(1024 * KIB, 4, PLENTY);
    for key in 0..4 {
        picker.add_peer(PeerKey(key), measured(now, 8 << 20));
    }
    picker.want(PieceIndex(2), read(1), now);
    let out = picker.schedule(now);
    assert_eq!(out.len(), 64);
    for key in 0..4 {
        let share = out.iter().filter(|a| a.peer == PeerKey(key)).count();
        assert_eq!(share, 16, "peer {key}");
    }
    let blocks: BTreeSet<u32> = out.iter().map(|a| a.block.block.0).collect();
    assert_eq!(blocks.len(), 64, "each block once");
    assert!(picker.schedule(now).is_empty(), "nothing is asked for twice");
    picker.check().unwrap();
}

#[test]
fn a_faster_peer_gets_more_of_it() {
    let now = Instant::now();
    let mut picker = picker(1024 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), measured(now, 12 << 20));
    picker.add_peer(PeerKey(2), measured(now, 4 << 20));
    picker.want(PieceIndex(0), read(1), now);
    let out = picker.schedule(now);
    let fast = out.iter().filter(|a| a.peer == PeerKey(1)).count();
    assert!((44..=52).contains(&fast), "{fast} of 64");
}

#[test]
fn the_earliest_deadline_goes_first() {
    let now = Instant::now();
    // Orders of calls, and what comes out: deadlines of the pieces 0, 1 and 2 in seconds.
    for (dues, order) in [([3, 1, 2], [1, 2, 0]), ([0, 1, 2], [0, 1, 2]), ([5, 5, 1], [2, 0, 1])] {
        let mut picker = picker(32 * KIB, 3, PLENTY);
        for (piece, due) in dues.into_iter().enumerate() {
            picker.want(PieceIndex(piece as u32), DemandId::Stream(1), now + due * S);
        }
        picker.add_peer(PeerKey(1), seed(now));
        assert_eq!(pieces_of(&picker.schedule(now)), order, "{dues:?}");
    }
    // A later call replaces the deadline; of several demands the earliest counts.
    let mut picker = picker(32 * KIB, 2, PLENTY);
    picker.want(PieceIndex(0), DemandId::Stream(1), now + S);
    picker.want(PieceIndex(1), DemandId::Stream(1), now + 5 * S);
    picker.want(PieceIndex(1), read(2), now);
    picker.want(PieceIndex(0), DemandId::Stream(1), now + 9 * S);
    picker.check().unwrap();
    picker.add_peer(PeerKey(1), seed(now));
    assert_eq!(pieces_of(&picker.schedule(now)), [1, 0]);
}

#[test]
fn an_urgent_block_waits_for_the_fast_peer_rather_than_go_to_a_slow_one() {
    let now = Instant::now();
    let mut picker = picker(256 * KIB, 100, PLENTY);
    picker.add_peer(PeerKey(1), measured(now, 2 << 20));
    for piece in 10..40 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + 60 * S);
    }
    let bulk = picker.schedule(now).len();
    assert!(bulk > 20, "the fast one has all it takes: {bulk}");
    let mut slow = measured(now, 2 * 1024);
    *slow.has_mut() = Has::Bits(vec![0x80]);
    picker.add_peer(PeerKey(2), slow);
    picker.want(PieceIndex(0), read(1), now);
    let urgent: Vec<_> = picker.schedule(now).into_iter().filter(|a| a.block.piece.0 == 0).collect();
    assert_eq!(urgent.len(), 16, "asked for whole, however full the fast one's queue");
    assert_eq!(peers_of(&urgent), BTreeSet::from([1]), "8 s at the slow one against a fifth of one there");
    picker.check().unwrap();
    // Read-ahead that is due before the slow one would bring it waits for the fast one to have room…
    let mut slow = measured(now, 2 * 1024);
    *slow.has_mut() = Has::Bits(vec![0x40]);
    picker.add_peer(PeerKey(3), slow);
    picker.want(PieceIndex(1), DemandId::Stream(1), now + S);
    assert!(picker.schedule(now).iter().all(|a| a.block.piece.0 != 1));
    picker.check().unwrap();
    // …and what isn't due yet may go to the slow one.
    picker.want(PieceIndex(1), DemandId::Stream(1), now + 60 * S);
    assert_eq!(peers_of(&picker.schedule(now)), BTreeSet::from([3]));
}

#[test]
fn the_budget_holds_back_all_but_what_is_waited_for() {
    let now = Instant::now();
    let mut picker = picker(32 * KIB, 10, 64 * 1024);
    picker.add_peer(PeerKey(1), seed(now));
    for piece in 0..5 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now + S * (piece + 1));
    }
    let first = picker.schedule(now);
    assert_eq!(pieces_of(&first), [0, 1]);
    assert_eq!(picker.held(), 64 * 1024);
    picker.want(PieceIndex(9), read(1), now);
    assert_eq!(pieces_of(&picker.schedule(now)), [9], "beyond the budget");
    picker.check().unwrap();
    for assignment in &first[..2] {
        deliver(&mut picker, assignment, now);
    }
    picker.completed(PieceIndex(0));
    picker.completed(PieceIndex(9));
    assert_eq!(pieces_of(&picker.schedule(now)), [2], "room for one more");
    picker.check().unwrap();
}

#[test]
fn what_is_begun_or_waited_for_does_not_queue_behind_what_cannot_begin() {
    let now = Instant::now();
    // The budget is used up by a piece whose peer left; an earlier one can't begin, and must not stand in the way
    // of the one that would give the memory back, nor of what a read waits for later than it.
    for (wanted, id) in [(1, DemandId::Stream(1)), (2, read(7))] {
        let mut picker = picker(32 * KIB, 3, 48 * 1024);
        let mut only_one = seed(now);
        *only_one.has_mut() = Has::Bits(vec![0x40]);
        picker.add_peer(PeerKey(1), only_one);
        picker.want(PieceIndex(1), DemandId::Stream(1), now + 2 * S);
        let begun = picker.schedule(now);
        deliver(&mut picker, &begun[0], now);
        picker.remove_peer(PeerKey(1));
        picker.want(PieceIndex(0), DemandId::Stream(1), now + S);
        picker.want(PieceIndex(wanted), id, now + 2 * S);
        picker.add_peer(PeerKey(2), seed(now));
        assert!(pieces_of(&picker.schedule(now)).contains(&wanted), "piece {wanted}");
        picker.check().unwrap();
    }
}

#[test]
fn what_nobody_wants_any_more_is_kept_until_the_room_is_needed() {
    let now = Instant::now();
    let mut picker = picker(32 * KIB, 4, 64 * 1024);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let out = picker.schedule(now);
    deliver(&mut picker, &out[0], now);
    // Given up and wanted again, many times: nothing grows, and the block is still there.
    for round in 0..1000 {
        picker.unwant(PieceIndex(0), read(round));
        picker.unwant(PieceIndex(0), read(1));
        picker.want(PieceIndex(0), read(1), now);
    }
    assert!(picker.orphans.len() <= 1);
    picker.unwant(PieceIndex(0), read(1));
    assert_eq!(picker.held(), 32 * 1024);
    picker.want(PieceIndex(0), read(1), now);
    assert_eq!(picker.schedule(now).len(), 1, "the other block alone");
    picker.unwant(PieceIndex(0), read(1));
    for piece in 1..4 {
        picker.want(PieceIndex(piece), DemandId::Stream(1), now);
    }
    assert_eq!(pieces_of(&picker.schedule(now)), [1, 2]);
    assert_eq!(picker.held(), 64 * 1024, "the orphan made room");
    picker.check().unwrap();
}

#[test]
fn unwant_cancels_when_nobody_else_wants_it() {
    let now = Instant::now();
    let mut picker = picker(32 * KIB, 2, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    picker.want(PieceIndex(0), read(2), now);
    let out = picker.schedule(now);
    assert!(picker.unwant(PieceIndex(0), read(1)).is_empty(), "the other still wants it");
    assert!(picker.is_busy());
    let cancels = picker.unwant(PieceIndex(0), read(2));
    assert_eq!(cancels.len(), out.len());
    assert!(!picker.is_wanted(PieceIndex(0)) && !picker.is_busy() && picker.held() == 0);
    assert!(
        picker.unwant(PieceIndex(0), read(2)).is_empty() && picker.unwant(PieceIndex(1), read(2)).is_empty()
    );
    // A block that was on its way is harmless.
    assert!(deliver(&mut picker, &out[0], now).whole.is_none());
    picker.check().unwrap();
}

#[test]
fn what_a_peer_does_not_deliver_is_asked_of_another() {
    type Row = (&'static str, fn(&mut Picker, &[Assignment], Instant));
    let rows: [Row; 4] = [
        ("choked", |picker, out, _| {
            picker.peer(PeerKey(1)).unwrap().set_choked(true);
            assert_eq!(picker.release_all(PeerKey(1)).len(), out.len());
        }),
        ("rejected", |picker, out, now| {
            assert!(out.iter().all(|a| picker.rejected(a.peer, a.block, now)));
            assert!(!picker.rejected(out[0].peer, out[0].block, now), "once");
        }),
        ("gone", |picker, _, _| picker.remove_peer(PeerKey(1))),
        ("choked by a peer that rejects by name", |picker, out, now| {
            picker.peer(PeerKey(1)).unwrap().set_choked(true);
            out.iter().for_each(|a| assert!(picker.rejected(a.peer, a.block, now)));
        }),
    ];
    for (row, lose) in rows {
        let now = Instant::now();
        let mut picker = picker(64 * KIB, 1, PLENTY);
        picker.add_peer(PeerKey(1), seed(now));
        picker.want(PieceIndex(0), read(1), now);
        let out = picker.schedule(now);
        assert_eq!(out.len(), 4);
        lose(&mut picker, &out, now);
        picker.check().unwrap();
        assert!(picker.schedule(now).is_empty(), "{row}: not of the same one");
        picker.add_peer(PeerKey(2), measured(now, 20_000));
        let again = picker.schedule(now);
        assert_eq!(peers_of(&again), BTreeSet::from([2]), "{row}");
        picker.check().unwrap();
    }
}

#[test]
fn a_peer_that_refuses_everything_does_not_keep_blocks_from_others() {
    let now = Instant::now();
    let mut picker = picker(64 * KIB, 1, PLENTY);
    // Its queue is always empty, so it looks like the soonest; the honest one is slow.
    picker.add_peer(PeerKey(1), seed(now));
    picker.add_peer(PeerKey(2), measured(now, 50_000));
    picker.want(PieceIndex(0), read(1), now);
    let mut honest = BTreeSet::new();
    let mut refused = 0;
    for round in 0..100 {
        let at = now + S / 50 * round;
        for assignment in picker.schedule(at) {
            if assignment.peer == PeerKey(1) {
                picker.rejected(assignment.peer, assignment.block, at);
                refused += 1;
            } else {
                deliver(&mut picker, &assignment, at);
                honest.insert(assignment.block);
            }
        }
        picker.check().unwrap();
    }
    assert_eq!(honest.len(), 4);
    assert!(refused <= 4, "{refused}");
}

#[test]
fn a_refusal_is_forgiven() {
    let now = Instant::now();
    for unchoked in [false, true] {
        let mut picker = picker(16 * KIB, 1, PLENTY);
        picker.add_peer(PeerKey(1), seed(now));
        picker.want(PieceIndex(0), read(1), now);
        let out = picker.schedule(now);
        picker.rejected(PeerKey(1), out[0].block, now);
        picker.snub(now + 9 * S);
        assert!(picker.schedule(now + 9 * S).is_empty());
        if unchoked {
            picker.peer(PeerKey(1)).unwrap().set_choked(false);
            assert_eq!(picker.schedule(now + 9 * S).len(), 1);
        } else {
            picker.snub(now + 10 * S);
            assert_eq!(picker.schedule(now + 10 * S).len(), 1);
        }
    }
}

#[test]
fn a_stuck_peer_loses_its_blocks_and_is_asked_for_little_until_it_delivers() {
    let now = Instant::now();
    let mut picker = picker(64 * KIB, 2, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let first = picker.schedule(now);
    picker.add_peer(PeerKey(2), measured(now, 1 << 20));
    assert_eq!(picker.hedge(now + S).len(), 4);
    assert_eq!(picker.take_void().len(), 4, "they are cancelled where they don't come from");
    assert_eq!(picker.hedged(), 0, "and no waste");
    picker.check().unwrap();
    picker.remove_peer(PeerKey(2));
    assert_eq!(picker.schedule(now + S).len(), 1, "it is asked for a block at a time");
    // One that comes after all is welcome, and lifts the doubt.
    deliver(&mut picker, &first[3], now + S);
    assert_eq!(picker.schedule(now + S).len(), 2);
    picker.check().unwrap();
}

#[test]
fn hedging_asks_one_more_peer_for_a_late_block_and_the_loser_is_cancelled() {
    let now = Instant::now();
    for winner in [1, 2] {
        let mut picker = picker(16 * KIB, 3, PLENTY);
        let some = |rate| {
            let mut load = measured(now, rate);
            *load.has_mut() = Has::Bits(vec![0xc0]);
            load
        };
        picker.add_peer(PeerKey(1), some(16 << 10));
        picker.want(PieceIndex(0), read(1), now);
        picker.want(PieceIndex(1), DemandId::Stream(2), now + 60 * S);
        // Something that nobody here has: there is more to ask for, so what isn't due yet isn't looked at.
        picker.want(PieceIndex(2), DemandId::Stream(2), now + 60 * S);
        let first = picker.schedule(now);
        assert_eq!(first.len(), 2);
        assert!(picker.hedge(now).is_empty(), "there is nobody else");
        picker.add_peer(PeerKey(2), some(1 << 20));
        picker.add_peer(PeerKey(3), some(1 << 20));
        let second = picker.hedge(now + S / 10);
        assert_eq!(second.len(), 1, "what a read waits for, and nothing else");
        assert_eq!((second[0].block.piece, second[0].peer), (PieceIndex(0), PeerKey(2)));
        assert!(picker.hedge(now + S / 5).is_empty(), "no third");
        assert_eq!(picker.hedged(), 16 * 1024);
        picker.check().unwrap();
        let won = if winner == 1 { &first[0] } else { &second[0] };
        let arrival = deliver(&mut picker, won, now + 9 * S);
        assert_eq!(arrival.losers, [PeerKey(3 - winner)]);
        assert!(arrival.whole.is_some());
        picker.check().unwrap();
        // The loser's copy came all the same: nothing changes.
        let lost = if winner == 1 { &second[0] } else { &first[0] };
        let late = deliver(&mut picker, lost, now + 9 * S);
        assert!(late.whole.is_none() && late.losers.is_empty());
        picker.check().unwrap();
    }
}

#[test]
fn one_of_two_that_refuses_leaves_the_block_with_the_other() {
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let first = picker.schedule(now);
    picker.add_peer(PeerKey(2), seed(now));
    assert_eq!(picker.hedge(now + S).len(), 1);
    picker.rejected(PeerKey(1), first[0].block, now);
    assert!(picker.schedule(now + S).is_empty());
    picker.check().unwrap();
}

#[test]
fn a_silent_peer_is_snubbed_and_is_the_last_to_be_asked() {
    let now = Instant::now();
    let mut picker = picker(64 * KIB, 2, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    assert_eq!(picker.schedule(now).len(), 4);
    assert!(picker.snub(now + 15 * S).is_empty());
    let at = now + 16 * S;
    let snubbed = picker.snub(at);
    assert_eq!((snubbed.len(), snubbed[0].1.len()), (1, 4));
    picker.add_peer(PeerKey(2), measured(at, 30_000));
    let out = picker.schedule(at);
    // A peer that proved slow comes before one that proved silent.
    assert_eq!(out[0].peer, PeerKey(2));
    let silent = out.iter().filter(|a| a.peer == PeerKey(1)).count();
    assert!(silent <= 1, "{silent}");
    picker.check().unwrap();
    // A block of it makes it one like the others.
    let mut alone = self::picker(64 * KIB, 2, PLENTY);
    alone.add_peer(PeerKey(1), seed(now));
    alone.want(PieceIndex(0), read(1), now);
    alone.schedule(now);
    alone.snub(at);
    let one = alone.schedule(at);
    assert_eq!(one.len(), 1, "the only one there is still asked");
    deliver(&mut alone, &one[0], at + S);
    assert!(alone.schedule(at + S).len() > 1);
}

#[test]
fn pieces_that_no_peer_has_wait_and_others_do_not() {
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 3, PLENTY);
    let mut load = seed(now);
    *load.has_mut() = Has::Bits(vec![0b0010_0000]);
    picker.add_peer(PeerKey(1), load);
    for piece in 0..3 {
        picker.want(PieceIndex(piece), read(1), now);
    }
    assert_eq!(pieces_of(&picker.schedule(now)), [2]);
    picker.check().unwrap();
    picker.peer(PeerKey(1)).unwrap().has_mut().add(PieceIndex(0), 3);
    assert_eq!(pieces_of(&picker.schedule(now)), [0]);
    // One that chokes us serves what it allowed.
    picker.peer(PeerKey(1)).unwrap().has_mut().add(PieceIndex(1), 3);
    picker.peer(PeerKey(1)).unwrap().set_choked(true);
    assert!(picker.schedule(now).is_empty());
    picker.peer(PeerKey(1)).unwrap().allow_fast(PieceIndex(1));
    assert_eq!(pieces_of(&picker.schedule(now)), [1]);
}

#[test]
fn a_block_for_the_buffer_of_an_earlier_try_counts_for_the_rate_only() {
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let old = picker.schedule(now);
    picker.unwant(PieceIndex(0), read(1));
    picker.want(PieceIndex(0), read(1), now);
    let new = picker.schedule(now);
    assert!(!Arc::ptr_eq(&old[0].buffer, &new[0].buffer));
    let arrival = deliver(&mut picker, &old[0], now);
    assert!(arrival.whole.is_none());
    assert_eq!(picker.peer(PeerKey(1)).unwrap().delivered_total(), u64::from(BLOCK_LEN));
}

/// A piece of four blocks failed, and two peers had sent blocks of it; a reader waits for it.
fn failed_with_two(now: Instant) -> Picker {
    let mut picker = picker(64 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.add_peer(PeerKey(2), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let out = picker.schedule(now);
    assert_eq!(peers_of(&out).len(), 2);
    for assignment in &out {
        deliver(&mut picker, assignment, now);
    }
    let from = picker.failed(PieceIndex(0), true);
    assert_eq!(from.iter().flatten().collect::<BTreeSet<_>>().len(), 2);
    picker.check().unwrap();
    picker
}

#[test]
fn after_a_failure_of_several_one_peer_delivers_alone() {
    let now = Instant::now();
    let mut picker = failed_with_two(now);
    let out = picker.schedule(now);
    assert_eq!((out.len(), peers_of(&out).len()), (4, 1));
    assert!(picker.hedge(now + S / 5).is_empty(), "no second peer for a block of it");
    // A failure of one alone, or on the disk, doesn't make it so.
    for bad in [true, false] {
        let mut picker = self::picker(64 * KIB, 1, PLENTY);
        picker.add_peer(PeerKey(1), seed(now));
        picker.want(PieceIndex(0), read(1), now);
        for assignment in &picker.schedule(now) {
            // After as long as is assumed of a peer that nobody measured.
            deliver(&mut picker, assignment, now + S / 10);
        }
        picker.failed(PieceIndex(0), bad);
        picker.add_peer(PeerKey(2), seed(now));
        assert_eq!(peers_of(&picker.schedule(now + S / 10)).len(), 2);
    }
}

#[test]
fn whatever_the_one_does_that_delivers_alone_others_get_their_turn() {
    type Row = (&'static str, fn(&mut Picker, &[Assignment], Instant));
    let rows: [Row; 5] = [
        ("it refuses one block", |picker, out, now| {
            assert!(picker.rejected(out[0].peer, out[3].block, now));
            assert_eq!(picker.take_void().len(), 3, "the others are taken back");
        }),
        ("it chokes us", |picker, out, _| {
            picker.peer(out[0].peer).unwrap().set_choked(true);
            picker.release_all(out[0].peer);
        }),
        ("it delivered what it was asked for and chokes us", |picker, out, now| {
            // Nobody wants the piece for a moment, so nothing is asked of it when it chokes us.
            deliver(picker, &out[0], now);
            picker.unwant(PieceIndex(0), read(1));
            picker.peer(out[0].peer).unwrap().set_choked(true);
            picker.want(PieceIndex(0), read(1), now);
        }),
        ("it is silent", |picker, _, now| {
            assert_eq!(picker.snub(now + 16 * S).len(), 1);
        }),
        ("it leaves in the middle", |picker, out, now| {
            deliver(picker, &out[0], now);
            picker.remove_peer(out[0].peer);
        }),
    ];
    for (row, lose) in rows {
        let now = Instant::now();
        let mut picker = failed_with_two(now);
        let out = picker.schedule(now);
        let first = out[0].peer;
        lose(&mut picker, &out, now);
        picker.check().unwrap();
        let again = picker.schedule(now + 16 * S);
        assert_eq!(peers_of(&again), BTreeSet::from([3 - first.0]), "{row}");
        assert_eq!(again.len(), 4, "{row}: from the beginning, so that it is one peer's alone");
        picker.check().unwrap();
        for assignment in &again {
            deliver(&mut picker, assignment, now + 16 * S);
        }
        let from = picker.failed(PieceIndex(0), true);
        assert!(from.iter().all(|f| *f == Some(again[0].peer)), "{row}");
    }
}

#[test]
fn turns_go_round_for_ever() {
    // Both are silent, again and again: each turn ends, and neither is forgotten.
    let now = Instant::now();
    let mut picker = failed_with_two(now);
    let mut turns = Vec::new();
    for round in 0..6 {
        let at = now + 16 * S * round;
        let out = picker.schedule(at);
        assert_eq!(peers_of(&out).len(), 1);
        turns.push(out[0].peer);
        assert_eq!(picker.snub(at + 16 * S - S / 10).len(), 1);
        picker.check().unwrap();
    }
    assert!(turns.windows(2).filter(|t| t[0] != t[1]).count() >= 3, "{turns:?}");
}

#[test]
fn a_late_one_that_delivers_alone_is_replaced() {
    let now = Instant::now();
    let mut picker = failed_with_two(now);
    let out = picker.schedule(now);
    deliver(&mut picker, &out[0], now + S);
    // It trickles: never silent for long enough to be snubbed.
    let at = now + 12 * S;
    picker.hedge(at);
    let again = picker.schedule(at);
    assert_eq!(peers_of(&again), BTreeSet::from([3 - out[0].peer.0]));
    assert_eq!(picker.take_void().len(), 3);
    picker.check().unwrap();
}

#[test]
fn blocks_are_blamed_on_who_put_them_into_the_buffer() {
    // A bad peer's block lies in the buffer, and its session ended before the owner heard of it. The honest peer
    // that is asked next delivers the same block in vain, and must not be blamed for the other's bytes.
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let bad = picker.schedule(now);
    assert!(bad[0].buffer.put(BlockIndex(0), Bytes::from_static(b"bad"), PeerKey(1)));
    picker.remove_peer(PeerKey(1));
    picker.add_peer(PeerKey(2), seed(now));
    let good = picker.schedule(now);
    assert!(deliver(&mut picker, &good[0], now).whole.is_some());
    assert_eq!(picker.failed(PieceIndex(0), true), [Some(PeerKey(1))]);
}

#[test]
fn the_last_block_is_remembered_across_a_failure() {
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 1, PLENTY);
    picker.add_peer(PeerKey(1), seed(now));
    picker.want(PieceIndex(0), read(1), now);
    let out = picker.schedule(now);
    assert_eq!(picker.last_block(PieceIndex(0)), None);
    deliver(&mut picker, &out[0], now + S);
    picker.failed(PieceIndex(0), true);
    assert_eq!(picker.last_block(PieceIndex(0)), Some(now + S));
}

#[test]
fn p2_corruption_is_found() {
    type Corrupt = fn(&mut Picker);
    let rows: [(&str, Corrupt); 5] = [
        ("held", |p| p.held += 1),
        ("filled", |p| p.filled += 1),
        ("a wanted piece that isn't open", |p| p.open.clear()),
        ("a count of free blocks", |p| {
            let parts = p.pieces.values_mut().filter_map(|piece| piece.parts.as_mut()).next();
            parts.unwrap().free += 1;
        }),
        ("a request nobody knows of", |p| {
            let stray = BlockRef { piece: PieceIndex(3), block: BlockIndex(0) };
            p.peers.values_mut().next().unwrap().request(stray, Instant::now());
        }),
    ];
    for (what, corrupt) in rows {
        let now = Instant::now();
        let mut picker = picker(1024 * KIB, 4, PLENTY);
        picker.add_peer(PeerKey(1), seed(now));
        picker.want(PieceIndex(0), read(1), now);
        picker.schedule(now);
        picker.check().unwrap();
        corrupt(&mut picker);
        assert!(picker.check().is_err(), "{what}");
        // Reported, and no reason to panic later on.
        (picker.held, picker.filled) = (1 << 20, 16);
    }
}

#[test]
fn p1_wanting_and_scheduling_cost_what_changed() {
    // Not measured in time: a piece all of whose blocks are asked for isn't looked at again.
    let now = Instant::now();
    let mut picker = picker(16 * KIB, 1_000_000, PLENTY);
    let mut load = measured(now, 1 << 30);
    load.set_limit(512);
    picker.add_peer(PeerKey(1), load);
    for piece in 0..512 {
        picker.want(PieceIndex(piece * 1000), DemandId::Stream(1), now + S);
    }
    assert_eq!(picker.schedule(now).len(), 512);
    assert!(picker.open.is_empty() && picker.open_always.is_empty());
    assert_eq!(picker.pieces.len(), 512, "nothing is kept for pieces that nobody wants");
}
