//! SIGUSR1: what the program is at, in its log (row L5), while readers wait and the mount goes on.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Behaviour, Mount, Reader, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const REPORT: &str = "what the program is at:";

/// How many reports were made, and the last one of them.
fn reports(mount: &Mount) -> (usize, String) {
    let log = mount.log();
    let last = log.rfind(REPORT).map(|at| log[at..].to_owned());
    (log.matches(REPORT).count(), last.unwrap_or_default())
}

/// Asks for reports until one has all of these lines, each in a line with all its words.
#[track_caller]
fn report_with(mount: &Mount, lines: &[&[&str]]) {
    let missing = |report: &str| {
        let found =
            |words: &&&[&str]| report.lines().any(|line| words.iter().all(|word| line.contains(word)));
        lines.iter().find(|words| !found(words)).map(|words| words.join("…"))
    };
    let mut seen = String::new();
    let end = std::time::Instant::now() + MINUTE;
    while let Some(line) = missing(&seen) {
        assert!(std::time::Instant::now() < end, "no line \"{line}\" in\n{seen}");
        let (before, _) = reports(mount);
        mount.signal(Signal::SIGUSR1);
        wait_until("a report", MINUTE, || {
            let (count, last) = reports(mount);
            seen = last;
            // Its last section is about storage.
            count > before && seen.contains("storage:")
        });
    }
}

#[test]
fn l5_a_report_names_waiting_readers_what_they_wait_for_and_which_peers_have_it() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let piece: u32 = 4;
    let offset = u64::from(piece) * sample.piece_length;
    let holding = ScriptedPeer::start(sample.clone(), Behaviour::default());
    holding.hold(piece..piece + 1);
    let choking =
        ScriptedPeer::start(sample.clone(), Behaviour { never_unchoke: true, ..Behaviour::default() });
    // Quiet: a report that was asked for is shown all the same.
    let mount = Mount::sample(&sample).peer(holding.addr()).peer(choking.addr()).arg("-qq").start();
    let mut reader = Reader::pread(&mount.path(&sample.name), offset, 4096);
    reader.wait_parked();
    wait_until("its request", MINUTE, || holding.asked_for(piece));
    let (pid, piece) =
        (format!("(pid {}, tid {})", reader.pid(), reader.pid()), format!("piece {piece}: requested"));
    let read = format!("4096 bytes at {offset}");
    let (holding_addr, choking_addr) = (holding.addr().to_string(), choking.addr().to_string());
    report_with(
        &mount,
        &[
            &["python", &pid, "waits for", &sample.name, &read],
            &[&piece, "0 of ", " blocks here"],
            &[&holding_addr, "has it, lets us, we are interested;", " of its blocks in flight"],
            &[&choking_addr, "has it, chokes us, we are interested; 0 of its blocks in flight"],
            &["locks:"],
            &["client/torrent ", "/owner: "],
            &["client/torrent ", "/peers/peer ", &holding_addr],
            &[" inodes known, 1 handles open, 1 reads parked"],
            &["peers: 2 connected"],
            &["workers; jobs that wait: Read 0"],
        ],
    );
    // Many at once are as good as one, and disturb nothing.
    let (before, _) = reports(&mount);
    (0..200).for_each(|_| mount.signal(Signal::SIGUSR1));
    wait_until("another report", MINUTE, || reports(&mount).0 > before);
    assert!(reader.is_running(), "{}", reader.output());
    holding.release();
    assert!(reader.success(MINUTE).contains("read 4096"));
    assert!(reports(&mount).0 < before + 100, "one at a time");
    mount.stop();
}
