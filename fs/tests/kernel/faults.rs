//! Pages that are waited for: mappings, programs, and those who look at them.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use torrentfs_fs::mock::{Mock, MockFile};
use torrentfs_fs::tree::NodeId;

use crate::common::{Bed, Helper, PIECE, SLACK, can_mount, until};

const PROMPT: Duration = Duration::from_millis(500);

/// Maps the file, and with `touch` reads a byte of it. A caught SIGTERM is counted.
const MAPPER: &str = r#"
import mmap, os, signal, sys
caught = []
signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
file = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
print("ready")
if sys.argv[2] == "touch":
    byte = memory[40000]
    for _ in range(3): pass # Where handlers run.
    print(byte, len(caught))
"#;

/// Reads, and ends at a caught SIGTERM.
const LEAVER: &str = r#"
import os, signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
file = os.open(sys.argv[1], os.O_RDONLY)
print("ready")
os.pread(file, 4096, 32768)
"#;

fn bed() -> (Bed, NodeId) {
    let mock = Mock::new(PIECE).unwrap();
    let files = [MockFile::new("program", 2 * PIECE).executable(), MockFile::new("other", PIECE)];
    let root = mock.add("T", &files);
    let node = mock.node(root, "program").unwrap();
    let mut script = b"#!/bin/sh\nexit 3\n".to_vec();
    script.resize(2 * PIECE as usize, b'\n');
    mock.set_bytes(node, &script);
    (Bed::new(mock), node)
}

/// A list of all processes with their command lines, which are read from their memory.
fn ps() -> Duration {
    let began = Instant::now();
    let mut ps = Helper::new("/bin/ps", &["axww"]);
    while !ps.line().is_empty() {}
    ps.gone();
    began.elapsed()
}

#[test]
fn f8_a_waiting_fault_hangs_nobody_else() {
    if !can_mount("f8_a_waiting_fault_hangs_nobody_else") {
        return;
    }
    let (bed, _) = bed();
    let path = bed.path("T/program");
    let path = path.to_str().unwrap();
    let mut faulting = Helper::python(MAPPER, &[path, "touch"]);
    bed.parked(1);
    // A second process opens and maps the same file, and that doesn't wait.
    let mut mapping = Helper::python(MAPPER, &[path, "only"]);
    mapping.gone();
    // Another runs it, which waits for its beginning.
    let mut running = Helper::new("/bin/sh", &["-c", "exec \"$0\"", path]);
    let mut touching = Helper::python(MAPPER, &[path, "touch"]);
    running.sleeps_in(libc::SYS_execve);
    touching.sleeps_in(-1);
    assert!(ps() < Duration::from_secs(2) * SLACK);
    for helper in [&mut running, &mut touching, &mut faulting] {
        helper.signal(Signal::SIGKILL);
        let took = helper.gone();
        assert!(took < PROMPT * SLACK, "{took:?}");
    }
    until("nothing is parked", || bed.mounted().waiting_reads().is_empty());
}

#[test]
fn a_caught_signal_ends_no_fault() {
    if !can_mount("a_caught_signal_ends_no_fault") {
        return;
    }
    let (bed, node) = bed();
    let path = bed.path("T/program");
    let mut faulting = Helper::python(MAPPER, &[path.to_str().unwrap(), "touch"]);
    bed.parked(1);
    faulting.sleeps_in(-1);
    let waits = bed.mounted().waiting_reads();
    // Another that reads gets the same signal, later: when that has ended its read, both have been looked at often enough.
    let mut reading = Helper::python(LEAVER, &[bed.path("T/other").to_str().unwrap()]);
    reading.sleeps_in(libc::SYS_pread64);
    bed.parked(2);
    faulting.signal(Signal::SIGTERM);
    reading.signal(Signal::SIGTERM);
    reading.gone();
    until("its read is withdrawn", || bed.mock.waiting() == 1 && bed.mounted().waiting_reads().len() == 1);
    // Ending it would kill the process by SIGBUS.
    assert!(faulting.is_running());
    assert_eq!(bed.mounted().waiting_reads(), waits, "the one that waited before waits still");
    bed.mock.complete_all(node);
    assert_eq!(faulting.line(), format!("{} 1", b'\n'));
    faulting.gone();
}

#[test]
fn a_mapped_program_runs() {
    if !can_mount("a_mapped_program_runs") {
        return;
    }
    let (bed, node) = bed();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| Command::new("/bin/sh").arg(bed.path("T/program")).status().unwrap());
        bed.parked(1);
        bed.mock.complete_all(node);
        assert_eq!(run.join().unwrap().code(), Some(3));
    });
    assert_eq!(Command::new(bed.path("T/program")).status().unwrap().code(), Some(3));
}
