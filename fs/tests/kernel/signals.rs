//! Signals to readers that wait.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use torrentfs_fs::mock::{Mock, MockFile};

use crate::common::{Bed, Helper, PIECE, SLACK, can_mount, until};

/// Reads 4 KiB at 32768 and prints a checksum. The signals named are caught: `exit` ends the program in its
/// handler, `count` goes on and prints at the end how many came.
const READER: &str = r#"
import os, signal, sys, zlib
path, how, names = sys.argv[1], sys.argv[2], sys.argv[3:]
counts = {}
def handler(number, frame):
    counts[number] = counts.get(number, 0) + 1
    if how == "exit":
        print("caught", number)
        os._exit(7)
for name in names:
    signal.signal(getattr(signal, name), handler)
file = os.open(path, os.O_RDONLY)
print("ready")
data = os.pread(file, 4096, 32768)
print(len(data), zlib.crc32(data), len(counts))
"#;

/// As Python's `zlib.crc32`.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn bed() -> Bed {
    let mock = Mock::new(PIECE).unwrap();
    mock.add("T", &[MockFile::new("missing", 64 * PIECE), MockFile::new("here", PIECE).here()]);
    Bed::new(mock)
}

const PROMPT: Duration = Duration::from_millis(500);

#[test]
fn f1_readers_without_handlers_end() {
    if !can_mount("f1_readers_without_handlers_end") {
        return;
    }
    let bed = bed();
    let path = bed.path("T/missing");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGQUIT, Signal::SIGHUP] {
        let mut reader = Helper::new("/bin/cat", &[path.to_str().unwrap()]);
        bed.parked(1);
        reader.signal(signal);
        let took = reader.gone();
        assert!(took < PROMPT * SLACK, "{signal}: {took:?}");
        until("its reads are withdrawn", || bed.mock.waiting() == 0);
    }
    until("nothing is parked", || bed.mounted().waiting_reads().is_empty());
}

#[test]
fn f1_readers_with_handlers_end() {
    if !can_mount("f1_readers_with_handlers_end") {
        return;
    }
    let bed = bed();
    let path = bed.path("T/missing");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let mut reader =
            Helper::python(READER, &[path.to_str().unwrap(), "exit", "SIGINT", "SIGTERM", "SIGHUP"]);
        bed.parked(1);
        reader.signal(signal);
        let took = reader.gone();
        assert!(took < PROMPT * SLACK, "{signal}: {took:?}");
        if signal != Signal::SIGKILL {
            assert_eq!(reader.line(), format!("caught {}", signal as i32));
        }
        until("its reads are withdrawn", || bed.mock.waiting() == 0);
    }
}

#[test]
fn f1_a_signal_to_a_process_of_many_readers_interrupts_one() {
    if !can_mount("f1_a_signal_to_a_process_of_many_readers_interrupts_one") {
        return;
    }
    // Threads that read beside the first one, which reads too; its handler goes on, so it reads again.
    const THREADS: &str = r#"
import os, signal, sys, threading
file = os.open(sys.argv[1], os.O_RDONLY)
interrupted = []
class Stop(Exception): pass
def handler(number, frame): raise Stop()
signal.signal(signal.SIGTERM, handler)
def read(at):
    try: os.pread(file, 4096, at * 65536 + 32768)
    except OSError as error: interrupted.append(error.errno)
for at in range(1, 9): threading.Thread(target=read, args=(at,), daemon=True).start()
print("ready")
try: os.pread(file, 4096, 32768)
except Stop: print("stopped", len(interrupted))
import time; time.sleep(60)
"#;
    let bed = bed();
    let mut reader = Helper::python(THREADS, &[bed.path("T/missing").to_str().unwrap()]);
    until("all wait", || bed.mock.waiting() == 9);
    let began = Instant::now();
    reader.signal(Signal::SIGTERM);
    assert_eq!(reader.line(), "stopped 0");
    assert!(began.elapsed() < PROMPT * SLACK, "{:?}", began.elapsed());
    // The reader may go on a moment before its read is withdrawn.
    until("its read is withdrawn", || bed.mock.waiting() < 9);
    assert_eq!(bed.mock.waiting(), 8, "the other threads wait on");
    reader.signal(Signal::SIGKILL);
    reader.gone();
    until("all are withdrawn", || bed.mock.waiting() == 0);
}

#[test]
fn f1_stalled_reads_stop_no_stat() {
    if !can_mount("f1_stalled_reads_stop_no_stat") {
        return;
    }
    let bed = bed();
    std::thread::scope(|scope| {
        for at in 0..64 {
            let path = bed.path("T/missing");
            scope.spawn(move || {
                let file = std::fs::File::open(path).unwrap();
                file.read_at(&mut [0; 4096], at * PIECE + 32768).unwrap_err();
            });
        }
        until("all wait", || bed.mock.waiting() == 64);
        let began = Instant::now();
        for path in ["T", "T/missing", "T/here"] {
            std::fs::metadata(bed.path(path)).unwrap();
        }
        assert_eq!(std::fs::read(bed.path("T/here")).unwrap().len() as u64, PIECE);
        let took = began.elapsed();
        bed.mounted().fail_reads();
        assert!(took < Duration::from_millis(100) * SLACK, "{took:?}");
    });
}

#[test]
fn f7_harmless_signals_leave_a_reader_waiting() {
    if !can_mount("f7_harmless_signals_leave_a_reader_waiting") {
        return;
    }
    let named = [
        Signal::SIGCHLD,
        Signal::SIGWINCH,
        Signal::SIGURG,
        Signal::SIGALRM,
        Signal::SIGPROF,
        Signal::SIGVTALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCONT,
        Signal::SIGTSTP,
        Signal::SIGIO,
        Signal::SIGPIPE,
    ];
    // And the first of the real-time ones.
    let harmless: Vec<i32> = named.iter().map(|signal| *signal as i32).chain([libc::SIGRTMIN()]).collect();
    let bed = bed();
    let root = bed.mock.node(torrentfs_fs::tree::NodeId::new(1, 0), "missing").unwrap();
    let path = bed.path("T/missing");
    let mut arguments = vec![path.to_str().unwrap(), "count"];
    arguments.extend(named.iter().map(|signal| signal.as_str()).chain(["SIGRTMIN"]));
    let mut readers: Vec<_> = (0..3).map(|_| Helper::python(READER, &arguments)).collect();
    // Of one page: one of them is parked, and the others wait for its answer.
    readers.iter_mut().for_each(|reader| reader.sleeps_in(libc::SYS_pread64));
    bed.parked(1);
    for _ in 0..1000 {
        for signal in &harmless {
            readers.iter().for_each(|reader| reader.signal_number(*signal));
        }
        // So that many looks fall between.
        std::thread::sleep(Duration::from_micros(300));
    }
    assert!(!bed.mounted().waiting_reads().is_empty());
    assert_eq!(bed.mock.counts().withdrawn, 0, "no read was interrupted");
    bed.mock.complete_all(root);
    let data = bed.mock.bytes(root, 32768, 4096);
    for reader in &mut readers {
        // Every kind came (but CONT, which a TSTP sent after it takes back), and the read took no harm.
        assert_eq!(reader.line(), format!("4096 {} {}", crc32(&data), harmless.len() - 1));
        reader.gone();
    }
}
