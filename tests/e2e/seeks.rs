//! What goes first on the wire: one fetch for many readers of a piece (row O1), and a seek before bulk.
//!
//! Everything is shown by the order of requests and answers at a scripted peer, nothing by time.

use std::time::{Duration, Instant};

use crate::common::{Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// For requests to be sent, which takes milliseconds. A peer that answers nothing for longer counts as silent.
const ASKED: Duration = Duration::from_secs(10);
/// So long without a request, and no more will come until something happens: four ticks of the owner.
const QUIET: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 16 << 10;

#[test]
fn o1_a_hundred_readers_of_one_piece_cause_one_fetch() {
    const READERS: usize = 100;
    needs!(Fuse, Libtorrent);
    let sample = Sample::file("one.bin", 8 * MIB, MIB);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(0..1);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    wait_until("the connection", MINUTE, || peer.connections() > 0);
    // Each at its own page: the kernel sends them all on.
    let mut readers = Reader::many(&mount.path(&sample.name), READERS, 8 << 10);
    readers.wait_all_parked(READERS);
    peer.release();
    let done = readers.success(MINUTE);
    assert!(done.contains("done 4096=100"), "{done}");
    mount.stop();
    let mut begins: Vec<_> = peer.requests().iter().map(|block| (block.piece, block.begin)).collect();
    begins.sort_unstable();
    let once: Vec<_> = (0..MIB / BLOCK).map(|block| (0, (block * BLOCK) as u32)).collect();
    assert_eq!(begins, once, "each block of the piece once, and of no other piece");
}

const PIECE: u64 = 256 << 10;
const BLOCKS: usize = (PIECE / BLOCK) as usize;
/// Far from what the bulk read and its window reach.
const PLACE: u32 = 100;

fn sample() -> Sample {
    Sample::file("seek.bin", 32 * MIB, PIECE)
}

/// A bulk read from the beginning, of which the peer answers so many pieces.
fn bulk(mount: &Mount, sample: &Sample) -> Proc {
    let input = format!("if={}", mount.path(&sample.name).display());
    Proc::start("dd", [input.as_str(), "of=/dev/null", "bs=128K", "status=none"])
}

/// A read of 4 KiB at the place.
fn seek(mount: &Mount, sample: &Sample) -> Proc {
    Reader::pread(&mount.path(&sample.name), u64::from(PLACE) * PIECE + 64 * 1024, 4096)
}

/// Waits until no more is asked of the peer, and returns how much was: with no answers, that is when as much is in
/// flight as may be.
fn quiet(peer: &ScriptedPeer) -> usize {
    let (mut asked, mut since) = (peer.requests().len(), Instant::now());
    wait_until("requests to come to an end", MINUTE, || {
        let now = peer.requests().len();
        if now != asked {
            (asked, since) = (now, Instant::now());
        }
        since.elapsed() > QUIET
    });
    asked
}

/// The peer answers nothing, so what is asked of it is all there is: first what the bulk read wants, as much as
/// it may have in flight, then the seek's blocks, and nothing for the bulk read before those.
#[test]
fn a_seek_asks_before_the_bulk_read_asks_on() {
    needs!(Fuse, Libtorrent);
    let sample = sample();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(16..sample.pieces as u32);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let mut reader = bulk(&mount, &sample);
    wait_until("the bulk read to ask for more", MINUTE, || peer.asked_for(16));
    reader.wait_parked();
    let before = quiet(&peer);
    let in_flight = peer.waiting();
    let mut seek = seek(&mount, &sample);
    let asked = || peer.requests().iter().skip(before).filter(|block| block.piece == PLACE).count();
    let end = Instant::now() + ASKED;
    while asked() < BLOCKS {
        let newer: Vec<_> = peer.requests().iter().skip(before).map(|block| block.piece).collect();
        assert!(
            Instant::now() < end,
            "{} of {BLOCKS} blocks of the seek were asked for in {ASKED:?}; {in_flight} blocks were in flight, \
             {} are; pieces asked for since: {newer:?}",
            asked(),
            peer.waiting()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let after: Vec<_> = peer.requests().iter().skip(before).map(|block| block.piece).collect();
    let in_front = after.iter().take_while(|piece| **piece != PLACE).count();
    let between = after.iter().skip(in_front).take(BLOCKS).filter(|piece| **piece != PLACE).count();
    let answered = peer.served();
    peer.release();
    seek.success(MINUTE);
    let answers = peer.answers();
    let waited = answers.iter().skip(answered).take_while(|block| block.piece != PLACE).count();
    reader.success(MINUTE);
    eprintln!(
        "{in_flight} blocks in flight at the seek, {in_front} asked for before it and {between} during it; \
         {waited} answered in front of it"
    );
    assert_eq!((in_front, between), (0, 0), "the bulk read asked on before the seek had asked");
    assert!(waited <= in_flight, "{waited} blocks in front of the seek, {in_flight} were in flight");
    mount.stop();
}

/// The same while the peer answers all along, at a limited rate.
#[test]
fn a_seek_goes_first_while_a_bulk_read_goes_on() {
    needs!(Fuse, Libtorrent);
    let sample = sample();
    let rate = Some(8 * MIB);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour { rate, ..Behaviour::default() });
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let mut reader = bulk(&mount, &sample);
    wait_until("the bulk read to be under way", MINUTE, || peer.served() >= 2 * 4 * BLOCKS);
    let mut seek = seek(&mount, &sample);
    seek.success(MINUTE);
    assert!(reader.is_running(), "the bulk read ended before the seek: the test shows nothing");
    let requests = peer.requests();
    let asked: Vec<_> = requests.iter().skip_while(|block| block.piece != PLACE).take(BLOCKS).collect();
    assert_eq!(asked.len(), BLOCKS);
    assert!(asked.iter().all(|block| block.piece == PLACE), "{asked:?}");
    reader.success(MINUTE);
    let total = peer.answers().len();
    eprintln!("{total} blocks answered for {} of content", sample.total / BLOCK);
    assert!(total as u64 * BLOCK <= sample.total * 102 / 100, "{total} blocks for {} bytes", sample.total);
    mount.stop();
}
