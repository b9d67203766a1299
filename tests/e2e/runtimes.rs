//! Signals at readers of several runtimes, by `read` and by `mmap`: those meant to stop one end it (row F1), the others
//! harm none (row F7).
//!
//! C with handlers that ask for restarts, Go, whose runtime sends SIGURG to its own threads, and Python. `signals.rs` has
//! what is true of any program.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Behaviour, Language, Mount, Proc, Reader, Sample, ScriptedPeer, fnv, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// A reader is gone within 500 ms; five times that, for a busy machine.
const GONE: Duration = Duration::from_millis(500 * 5);
const READ: usize = 4096;

/// Starts a reader of 4 KiB: `kind` is "read" or "fault", `how` is what it does about signals.
fn compiled(language: Language, kind: &str, path: &Path, offset: u64, how: &str) -> Proc {
    let (offset, length) = (offset.to_string(), READ.to_string());
    let mut reader =
        language.reader([kind.as_ref(), path.as_os_str(), offset.as_ref(), length.as_ref(), how.as_ref()]);
    if kind == "fault" {
        reader.wait_faulting()
    } else {
        reader.wait_parked()
    }
    reader
}

/// Sends a signal to one thread of a process.
fn to_thread(process: u32, thread: u32, signal: Signal) {
    // SAFETY: numbers only; a thread that is gone is an error, which doesn't matter.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal as i32) };
}

#[test]
fn f7_a_thousand_harmless_signals_make_no_reader_of_any_runtime_fail() {
    const ROUNDS: u32 = 1_000;
    const HARMLESS: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGURG, Signal::SIGALRM, Signal::SIGWINCH];
    const COUNTED: [&str; 2] = ["--handle", "CHLD,URG,ALRM,WINCH"];
    needs!(Fuse, Libtorrent, Go);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    // A piece for each reader, so that each waits for a request of its own.
    let offset = |reader: usize| (4 + reader as u64) * sample.piece_length;
    peer.hold(4..10);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    let mut readers = vec![
        ("C, read", compiled(Language::C, "read", &path, offset(0), "count")),
        ("C, mmap", compiled(Language::C, "fault", &path, offset(1), "count")),
        ("Go, read", compiled(Language::Go, "read", &path, offset(2), "count")),
        ("Go, mmap", compiled(Language::Go, "fault", &path, offset(3), "count")),
        ("Python, read", Reader::pread_with(&path, offset(4), READ, &COUNTED)),
        ("Python, mmap", Reader::fault_with(&path, offset(5), &COUNTED)),
    ];
    readers[4].1.wait_parked();
    readers[5].1.wait_faulting();
    wait_until("a request", MINUTE, || peer.asked_for(4));
    let began = Instant::now();
    for _ in 0..ROUNDS {
        for (_, reader) in &readers {
            for signal in HARMLESS {
                reader.signal(signal);
                reader.threads().into_iter().for_each(|thread| to_thread(reader.pid(), thread, signal));
            }
        }
        // Equal signals that wait merge into one: a pause lets the watcher look in between.
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!(
        "{ROUNDS} of each of {HARMLESS:?}, to each process and each of its threads, in {:?}",
        began.elapsed()
    );
    for (what, reader) in &mut readers {
        assert!(reader.is_running(), "{what}: {}", reader.output());
        assert_eq!(reader.output(), "waiting\n", "{what}");
    }
    peer.release();
    for (number, (what, reader)) in readers.iter_mut().enumerate() {
        let output = reader.success(MINUTE);
        let said = output.lines().last().unwrap_or_default();
        eprintln!("{what}: {said}");
        let mut truth = [0; READ];
        sample.content(offset(number), &mut truth);
        let expected = match *what {
            "Python, read" => "read 4096 ".to_owned(),
            "Python, mmap" => format!("byte {} ", truth[0]),
            _ => format!("read {READ} {} ", fnv(&truth)),
        };
        assert!(said.starts_with(&expected), "{what}: {said}, expected {expected}");
        let caught =
            said.split_once("caught ").or(said.split_once("signals ")).map_or("", |(_, counts)| counts);
        let none = caught.is_empty() || caught.split(' ').any(|count| count == "0");
        assert!(!none, "{what}: each of its handlers has run: {said}");
    }
    mount.check_sums(&sample);
    mount.stop();
}

/// What a reader does about the signals that are meant to stop it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It ends.
    Ends,
    /// Its handler runs, and its read fails with EINTR.
    Fails,
}

#[test]
fn f1_signals_end_readers_of_every_runtime() {
    needs!(Fuse, Libtorrent, Go);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = mount.path(&sample.name);
    let all = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGKILL];
    let rows: [(Language, &str, &str, &[Signal], End); 6] = [
        (Language::C, "read", "plain", &all, End::Ends),
        (Language::C, "fault", "plain", &all, End::Ends),
        (Language::C, "read", "catch", &all[..4], End::Fails),
        (Language::C, "fault", "catch", &all[4..], End::Ends),
        (Language::Go, "read", "plain", &all, End::Ends),
        // Go has a handler for each but KILL. The kernel may hand a signal of the process to the thread that waits for
        // the page, and no interruption of that is possible without SIGBUS: then it comes when the wait is over.
        (Language::Go, "fault", "plain", &all[4..], End::Ends),
    ];
    let mut took = Vec::new();
    for (language, kind, how, signals, end) in rows {
        for signal in signals {
            let mut reader = compiled(language, kind, &path, 1 << 20, how);
            let start = Instant::now();
            reader.signal(*signal);
            let status = reader.ended(GONE);
            took.push(start.elapsed());
            eprintln!("{language:?}, {kind}, {how}: {signal}, {:?}", start.elapsed());
            match end {
                End::Ends => assert!(!status.success(), "{language:?}, {kind}: {}", reader.output()),
                End::Fails => {
                    let output = reader.success(GONE);
                    assert!(output.contains(&format!("error {}", libc::EINTR)), "{output}");
                }
            }
        }
    }
    took.sort_unstable();
    eprintln!(
        "{} readers, gone after {:?} at most, {:?} in the middle",
        took.len(),
        took[took.len() - 1],
        took[took.len() / 2]
    );
    mount.stop();
}

/// An interrupted page fault would be SIGBUS, which no disk does to a program that has a handler for SIGTERM.
#[test]
fn f7_a_caught_signal_is_no_bus_error_for_a_mapping() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(4..6);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let path = mount.path(&sample.name);
    let (mapped, read) = (4 * sample.piece_length, 5 * sample.piece_length);
    let mut fault = compiled(Language::C, "fault", &path, mapped, "catch");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        fault.signal(signal);
        // A read that is told to stop afterwards stops: the mapping was looked at as often by then.
        let mut other = compiled(Language::C, "read", &path, read, "catch");
        other.signal(signal);
        assert!(other.success(GONE).contains(&format!("error {}", libc::EINTR)), "{}", other.output());
        assert!(fault.is_running() && fault.is_faulting(), "{signal}: {}", fault.output());
    }
    peer.release();
    let mut truth = [0; READ];
    sample.content(mapped, &mut truth);
    let output = fault.success(MINUTE);
    assert!(output.contains(&format!("read {READ} {} caught 1 1 1 1", fnv(&truth))), "{output}");
    mount.stop();
}
