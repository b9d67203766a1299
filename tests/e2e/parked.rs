//! Many reads waiting, and what must go on beside them (rows F2, F8, O11).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

#[test]
fn f2_a_read_over_a_missing_piece_is_never_short() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(1..2);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    let length = 3 * sample.piece_length as usize;
    let expected = Reader::pread(&sample.source(), 0, length).success(MINUTE);
    let mut reader = Reader::pread(&path, 0, length);
    wait_until("the second piece to be wanted", MINUTE, || peer.asked_for(1));
    reader.wait_parked();
    peer.release();
    assert_eq!(reader.success(MINUTE), expected);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn o11_a_complete_file_reads_beside_a_thousand_waiting_readers() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::folder("thousand", &[("here.bin", 16 * MIB), ("missing.bin", 64 * MIB)], MIB);
    let peer = ScriptedPeer::start(sample.clone(), Behaviour { has: Some(0..16), ..Behaviour::default() });
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let here = mount.path("thousand/here.bin");
    let compare = || Proc::start("cmp", [&here, &sample.source().join("here.bin")]).success(MINUTE);
    compare();
    let mut many = Reader::many(&mount.path("thousand/missing.bin"), 1_000, 64 << 10);
    many.wait_all_parked(1_000);
    // Out of the page cache, so that the reads come to the program.
    let drop_cache = format!("if={}", here.display());
    Proc::start("dd", [drop_cache.as_str(), "iflag=nocache", "count=0"]).success(MINUTE);
    let start = Instant::now();
    compare();
    eprintln!("16 MiB beside 1,000 waiting readers: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    many.wait_all_parked(1_000);
    many.signal(Signal::SIGKILL);
    many.ended(Duration::from_secs(10));
    mount.stop();
}

#[test]
fn f8_a_second_process_at_a_page_that_is_awaited_can_be_killed() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::folder("mapped", &[("tool.run", 4 * MIB)], 256 << 10);
    let mount = Mount::sample(&sample).start();
    let path = mount.path("mapped/tool.run");
    let mut first = Reader::fault(&path, 0);
    first.wait_faulting();
    let mut second = Reader::fault(&path, 0);
    second.wait_faulting();
    let mut third = Reader::exec(&path);
    third.wait_executing();
    let mut fourth = Proc::start("cat", [&path]);
    fourth.wait_parked();
    Proc::start("ps", ["-eo", "pid,args"]).success(MINUTE);
    for process in [&mut second, &mut third, &mut fourth, &mut first] {
        let start = Instant::now();
        process.signal(Signal::SIGKILL);
        process.ended(Duration::from_secs(10));
        eprintln!("killed after {:?}", start.elapsed());
    }
    mount.stop();
}
