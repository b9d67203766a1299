//! The desk by itself: whatever is asked, taken back, claimed and refused in whatever order, each block is answered once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::metainfo::geometry::PieceIndex;
use crate::webseed::for_tests::torrent;

const BLOCKS: usize = 40;

/// What an owner knows of the blocks that it asked for.
struct Owner {
    desk: Desk,
    blocks: Vec<BlockRef>,
    buffers: Vec<Arc<PieceBuffer>>,
    /// Asked for, and not answered.
    asked: BTreeMap<BlockRef, bool>,
    claims: Vec<(u64, Vec<BlockRef>)>,
    next: u64,
    now: Instant,
}

#[derive(Debug, Clone)]
enum Op {
    Ask(usize, usize, bool),
    Cancel(usize, usize),
    Hurry(usize, usize),
    Claim,
    /// Of the n-th claim so many blocks come.
    Come(usize, usize),
    /// The n-th claim ends.
    End(usize),
    Refuse(u32),
    Wait,
    WaitOver,
    /// Blocks are taken off the desk and put back, as after a panic.
    Panic(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..BLOCKS, 1..12usize, any::<bool>()).prop_map(|(from, n, urgent)| Op::Ask(from, n, urgent)),
        2 => (0..BLOCKS, 1..6usize).prop_map(|(from, n)| Op::Cancel(from, n)),
        2 => (0..BLOCKS, 1..6usize).prop_map(|(from, n)| Op::Hurry(from, n)),
        4 => Just(Op::Claim),
        4 => (0..4usize, 1..8usize).prop_map(|(n, blocks)| Op::Come(n, blocks)),
        2 => (0..4usize).prop_map(Op::End),
        1 => (0..3u32).prop_map(Op::Refuse),
        1 => Just(Op::Wait),
        1 => Just(Op::WaitOver),
        1 => (0..4usize).prop_map(Op::Panic),
    ]
}

impl Owner {
    fn new() -> Self {
        let paths: [[&[u8]; 1]; 3] = [[b"a"], [b"b"], [b"c"]];
        let lens = [10, 20, 10].map(|blocks| blocks * u64::from(BLOCK_LEN) + 5);
        let files: Vec<_> = paths.iter().zip(lens).map(|(path, len)| (&path[..], len, false)).collect();
        let info = Arc::new(torrent(b"n", 8 * BLOCK_LEN, &files));
        let geometry = &info.geometry;
        let of = |piece: PieceIndex| {
            (0..geometry.blocks_in(piece)).map(move |n| BlockRef { piece, block: BlockIndex(n) })
        };
        let blocks = geometry.all_pieces().flat_map(of).collect();
        let buffers =
            geometry.all_pieces().map(|p| Arc::new(PieceBuffer::new(p, geometry.blocks_in(p)))).collect();
        Self {
            desk: Desk::new(info, Kind::Url, 3),
            blocks,
            buffers,
            asked: BTreeMap::new(),
            claims: Vec::new(),
            next: 1,
            now: Instant::now(),
        }
    }

    fn play(&mut self, op: &Op) {
        match *op {
            Op::Ask(from, n, urgent) => {
                let new = self.blocks[from..].iter().take(n).filter(|block| !self.asked.contains_key(block));
                let new: Vec<BlockRef> = new.copied().collect();
                let wanted = new.iter().map(|block| {
                    self.asked.insert(*block, urgent);
                    let len = self.desk.len(*block) as u32;
                    let begin = block.block.0 * BLOCK_LEN;
                    let request = BlockRequest { piece: block.piece, begin, len };
                    Wanted { request, buffer: self.buffers[block.piece.0 as usize].clone(), urgent }
                });
                let wanted = wanted.collect();
                self.desk.ask(wanted);
            }
            Op::Cancel(from, n) => {
                for block in self.blocks[from..].iter().take(n) {
                    // Also such as were never asked for, or have come.
                    self.asked.remove(block);
                    self.desk.cancel(*block);
                }
            }
            Op::Hurry(from, n) => {
                for block in self.blocks[from..].iter().take(n) {
                    if let Some(urgent) = self.asked.get_mut(block) {
                        *urgent = true;
                    }
                    self.desk.hurry(*block);
                }
            }
            Op::Claim => {
                if self.claims.len() < 3
                    && let Some((slice, progress)) = self.desk.claim(self.next)
                {
                    assert!(slice.blocks.iter().all(|block| self.asked.contains_key(block)), "it is wanted");
                    assert!(slice.blocks.iter().all(|block| !self.desk.is_refused(*block)));
                    let urgent = self.asked.values().any(|urgent| *urgent);
                    assert!(urgent || !progress.is_urgent());
                    self.claims.push((self.next, slice.blocks));
                    self.next += 1;
                }
            }
            Op::Come(n, _) | Op::Panic(n) if n >= self.claims.len() => {}
            Op::Come(n, blocks) => {
                let (number, left) = &mut self.claims[n];
                let come: Vec<BlockRef> = left.drain(..blocks.min(left.len())).collect();
                for place in self.desk.came(*number, come.into_iter()) {
                    // Taken back ones go into their buffers, too.
                    assert!(place.buffer.is_some());
                    let asked = self.asked.remove(&place.block).is_some();
                    assert_eq!(asked, place.urgent.is_some(), "asked for: {:?}", place.block);
                }
            }
            Op::Panic(n) => {
                let (number, left) = &self.claims[n];
                let places = self.desk.came(*number, left.iter().copied());
                self.desk.came_not(*number, places.into_iter());
                self.end(n);
            }
            Op::End(n) => {
                if n < self.claims.len() {
                    self.end(n);
                }
            }
            Op::Refuse(file) => _ = self.desk.refuse(FileIndex(file)),
            Op::Wait => self.desk.wait(self.now + Duration::from_secs(1)),
            Op::WaitOver => {
                self.now += Duration::from_secs(2);
                assert_eq!(self.desk.waits(self.now), None);
            }
        }
        let say = self.desk.take_say();
        for block in say.rejects {
            assert!(self.asked.remove(&block).is_some(), "{block:?} is rejected once");
        }
        // Blocks that were taken back may be asked for again meanwhile: then that says nothing.
        assert!(say.items.iter().all(|item| matches!(item, Item::Recalled(_))));
        self.check();
    }

    fn end(&mut self, n: usize) {
        let (number, _) = self.claims.swap_remove(n);
        self.desk.unclaim(number);
    }

    fn check(&self) {
        let (queued, claimed, claims) = self.desk.count();
        assert_eq!((queued + claimed, claims), (self.asked.len(), self.claims.len()));
        assert_eq!(queued, self.desk.queued.iter().sum::<usize>());
        let wanted: usize = self.desk.claims.values().map(|held| held.wanted).sum();
        assert_eq!(wanted, claimed, "wanted of the claims");
        if self.desk.waiting.is_some() {
            assert_eq!(queued, 0, "nothing is queued while it waits");
        }
    }
}

proptest! {
    #[test]
    fn w5_each_block_is_answered_once_whatever_happens(ops in prop::collection::vec(op(), 0..120)) {
        let mut owner = Owner::new();
        for op in &ops {
            owner.play(op);
        }
        while !owner.claims.is_empty() {
            owner.play(&Op::End(0));
        }
        owner.play(&Op::WaitOver);
        // What is queued can be claimed, all of it.
        while let Some((slice, _)) = owner.desk.claim(owner.next) {
            for block in &slice.blocks {
                prop_assert!(owner.asked.remove(block).is_some());
            }
            _ = owner.desk.came(owner.next, slice.blocks.into_iter());
            owner.desk.unclaim(owner.next);
            owner.next += 1;
        }
        prop_assert!(owner.asked.is_empty(), "{:?}", owner.asked);
        prop_assert!(owner.desk.claims.is_empty() && owner.desk.recalled.is_empty());
    }
}

#[test]
fn small_lots_are_gathered_while_others_are_under_way() {
    let mut owner = Owner::new();
    let b = u64::from(BLOCK_LEN);
    owner.play(&Op::Ask(0, 20, false));
    // GATHER at once, and then what is left only when it is nearly through.
    let (slice, progress) = owner.desk.claim(1).unwrap();
    assert_eq!(slice.blocks.len() as u64 * b, GATHER);
    assert!(owner.desk.claim(2).is_none());
    progress.left.store(NEARLY_DONE, Ordering::Relaxed);
    assert_eq!(owner.desk.claim(2).unwrap().0.blocks.len(), 4);
    // What somebody waits for is never kept.
    let mut owner = Owner::new();
    owner.play(&Op::Ask(0, 20, false));
    owner.play(&Op::Claim);
    owner.play(&Op::Ask(30, 1, true));
    let (slice, progress) = owner.desk.claim(9).unwrap();
    assert!(progress.is_urgent() && slice.blocks.len() == 1);
}

/// Requests for a torrent that is read from front to back by a reader `ahead` bytes behind what is wanted, all of them
/// answered at the same pace.
fn requests_of_a_reader(ahead: u64, rate: u64) -> (u64, u64) {
    const PIECE: u32 = 16;
    const ALL: u64 = 64 << 20;
    let info = Arc::new(torrent(b"n", PIECE * BLOCK_LEN, &[(&[], ALL, false)]));
    let pieces = info.geometry.pieces();
    let mut desk = Desk::new(info.clone(), Kind::Url, 4);
    desk.measured(rate);
    let ask = |desk: &mut Desk, piece: u32| {
        let piece = PieceIndex(piece);
        let buffer = Arc::new(PieceBuffer::new(piece, PIECE));
        let wanted = (0..PIECE).map(|n| {
            let request = BlockRequest { piece, begin: n * BLOCK_LEN, len: BLOCK_LEN };
            Wanted { request, buffer: buffer.clone(), urgent: false }
        });
        desk.ask(wanted.collect());
    };
    let (mut asked, mut read, mut requests) = (0, 0, 0);
    let mut left = vec![PIECE; pieces as usize];
    let mut claims: Vec<(u64, VecDeque<BlockRef>, Arc<Progress>)> = Vec::new();
    while read < pieces {
        while asked < pieces && u64::from(asked - read) * u64::from(PIECE * BLOCK_LEN) < ahead {
            ask(&mut desk, asked);
            asked += 1;
        }
        while claims.len() < 4
            && let Some((slice, progress)) = desk.claim(requests)
        {
            claims.push((requests, slice.blocks.into(), progress));
            requests += 1;
        }
        assert!(!claims.is_empty(), "something is always under way");
        for (claim, blocks, progress) in &mut claims {
            let block = blocks.pop_front().unwrap();
            progress.left.fetch_sub(u64::from(BLOCK_LEN), Ordering::Relaxed);
            assert_eq!(desk.came(*claim, std::iter::once(block)).len(), 1);
            left[block.piece.0 as usize] -= 1;
        }
        claims.retain(|(claim, blocks, _)| {
            if blocks.is_empty() {
                desk.unclaim(*claim);
            }
            !blocks.is_empty()
        });
        while read < pieces && left[read as usize] == 0 {
            read += 1;
        }
    }
    (u64::from(pieces), requests)
}

#[test]
fn a_reader_far_behind_has_many_pieces_fetched_at_once() {
    let (pieces, requests) = requests_of_a_reader(8 << 20, 100 << 20);
    assert!(requests * 4 <= pieces, "{requests} requests for {pieces} pieces");
    // Of a slow server not more than it sends in a short time, and one close by gets them piece by piece.
    let (pieces, requests) = requests_of_a_reader(8 << 20, 128 << 10);
    assert!(requests * 2 <= pieces * 11 / 10, "{requests} requests for {pieces} pieces");
    assert!(requests * 3 >= pieces, "{requests} requests for {pieces} pieces");
    let (pieces, requests) = requests_of_a_reader(512 << 10, 100 << 20);
    assert!(requests >= pieces / 2, "{requests} requests for {pieces} pieces");
}

#[test]
fn what_a_read_comes_to_wait_for_is_not_kept_behind_what_nobody_waits_for() {
    let mut owner = Owner::new();
    owner.play(&Op::Ask(0, 30, false));
    let (_, stuck) = owner.desk.claim(1).unwrap();
    stuck.started.store(true, Ordering::Relaxed);
    // The rest is too little for a request of its own as long as so much is to come.
    assert!(owner.desk.claim(2).is_none());
    let block = owner.blocks[29];
    assert!(owner.desk.hurry(block).is_none());
    let (slice, progress) = owner.desk.claim(2).unwrap();
    assert!(slice.blocks == [block] && progress.is_urgent());
    // In a claim that is under way it isn't cut any more; one that isn't is made anew, sooner.
    let under_way = owner.blocks[1];
    assert!(stuck.spare().is_some());
    assert!(owner.desk.hurry(under_way).is_none());
    assert!(stuck.spare().is_none() && stuck.is_urgent());
    stuck.urgent.store(false, Ordering::Relaxed);
    stuck.started.store(false, Ordering::Relaxed);
    assert!(owner.desk.hurry(under_way).is_none(), "it is known already");
    assert!(owner.desk.hurry(owner.blocks[2]).is_some());
}
