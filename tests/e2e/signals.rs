//! Signals at waiting readers: those that mean to stop one end it (row F1), the others don't (row F7).

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Behaviour, Mount, Proc, Reader, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// A reader is gone within 500 ms; five times that, for a busy machine.
const GONE: Duration = Duration::from_millis(500 * 5);
/// `stat` answers within 100 ms beside stalled reads; five times that.
const AT_ONCE: Duration = Duration::from_millis(100 * 5);

const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL];

fn gone(reader: &mut Proc, signal: Signal) {
    let start = Instant::now();
    reader.signal(signal);
    reader.ended(GONE);
    eprintln!("{signal}: gone after {:?}", start.elapsed());
}

#[test]
fn f1_signals_end_waiting_readers() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = mount.path(&sample.name);
    for signal in ENDING {
        let mut reader = Proc::start("cat", [&path]);
        reader.wait_parked();
        gone(&mut reader, signal);
    }
    mount.stop();
}

#[test]
fn f1_signals_end_waiting_readers_that_have_handlers() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = mount.path(&sample.name);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut leaving = Reader::pread_with(&path, 1 << 20, 4096, &["--raise", "INT,TERM,HUP"]);
        leaving.wait_parked();
        gone(&mut leaving, signal);
        assert_eq!(leaving.ended(GONE).code(), Some(3), "its handler ended it");
        let mut counting = Reader::pread_with(&path, 1 << 20, 4096, &["--handle", "INT,TERM,HUP"]);
        counting.wait_parked();
        gone(&mut counting, signal);
        assert!(counting.success(GONE).contains("error EINTR"), "{}", counting.output());
    }
    let mut killed = Reader::pread_with(&path, 1 << 20, 4096, &["--handle", "INT,TERM,HUP"]);
    killed.wait_parked();
    gone(&mut killed, Signal::SIGKILL);
    mount.stop();
}

/// Ways of reading that don't wait where a plain `read` does.
const WAYS: [&str; 3] = ["direct", "sendfile", "splice"];

#[test]
fn f1_signals_end_readers_that_wait_in_other_calls() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = mount.path(&sample.name);
    for way in WAYS {
        // Each at a page of its own: who waits for a page that another has asked for waits for that one.
        for (signal, place) in ENDING.into_iter().zip(1..) {
            let mut reader = Reader::pread_with(&path, place << 20, 4096, &["--by", way]);
            reader.wait_parked();
            gone(&mut reader, signal);
        }
        let mut leaving = Reader::pread_with(&path, 4 << 20, 4096, &["--by", way, "--raise", "TERM"]);
        leaving.wait_parked();
        gone(&mut leaving, Signal::SIGTERM);
        assert_eq!(leaving.ended(GONE).code(), Some(3), "{way}: its handler ended it");
        let mut counting = Reader::pread_with(&path, 5 << 20, 4096, &["--by", way, "--handle", "TERM"]);
        counting.wait_parked();
        gone(&mut counting, Signal::SIGTERM);
        let said = counting.success(GONE);
        assert!(said.contains("error EINTR signals 1"), "{way}: {said}");
    }
    mount.stop();
}

#[test]
fn what_is_not_here_comes_by_every_call() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(0..sample.pieces as u32);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    // Across the border of two pieces; each of other ones.
    let mut readers: Vec<_> = WAYS
        .iter()
        .zip(1..)
        .map(|(way, place)| {
            let offset = 4 * place * sample.piece_length - 4096;
            let read = |path: &Path| Reader::pread_with(path, offset, 8192, &["--by", way]);
            let mut reader = read(&mount.path(&sample.name));
            reader.wait_parked();
            (way, reader, Reader::pread(&sample.source(), offset, 8192).success(MINUTE))
        })
        .collect();
    peer.release();
    for (way, reader, expected) in &mut readers {
        let said = reader.success(MINUTE);
        assert!(said.contains("read 8192 "), "{way}: {said}");
        assert_eq!(said, *expected, "{way}");
    }
    mount.stop();
}

#[test]
fn f1_sixty_four_stalled_reads_and_stat_answers() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = mount.path(&sample.name);
    let mut stalled = Reader::many(&path, 64, 128 << 10);
    stalled.wait_all_parked(64);
    let start = Instant::now();
    path.metadata().expect("stat");
    mount.names();
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    gone(&mut stalled, Signal::SIGKILL);
    mount.stop();
}

#[test]
fn f7_harmless_signals_do_not_end_a_read() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(4..5);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    let mut reader = Reader::pread_with(
        &path,
        4 * sample.piece_length,
        4096,
        &["--handle", "CHLD,WINCH,URG,ALRM,USR1,USR2"],
    );
    wait_until("its request", MINUTE, || peer.asked_for(4));
    let harmless = [
        Signal::SIGCHLD,
        Signal::SIGWINCH,
        Signal::SIGURG,
        Signal::SIGALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ];
    for round in 0..1_000 {
        harmless.iter().for_each(|signal| reader.signal(*signal));
        if round % 10 == 0 {
            // Equal signals that wait merge into one: a pause lets the watcher see many of them.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(reader.is_running(), "{}", reader.output());
    peer.release();
    let output = reader.success(MINUTE);
    assert!(output.contains("read 4096"), "{output}");
    mount.stop();
}
