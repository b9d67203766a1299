//! Which waiting thread means to stop: the deciding part, pure, over what `/proc/<tid>/status` says.
//!
//! The kernel doesn't hand interrupts on in a form we could use, so the signals of a waiting thread are
//! looked at. A file system can't ask for a system call to be restarted, so EINTR reaches the program even
//! if it asked for restarts; a disk never does that to it. Hence these rules, of which [`judge`] decides the
//! thread's own part and [`choose`] the process's:
//! 1. *Fatal:* SIGKILL, or a signal that is pending, not blocked, not ignored and not caught, and whose
//!    default is to end the process: interrupted at once.
//! 2. A caught HUP, INT, QUIT or TERM: interrupted when it is seen in two looks in a row and the thread is in
//!    a system call that reads (an interrupted page fault would become SIGBUS). One that was sent to the
//!    process goes to one of its threads only.
//! 3. Any other caught signal: never. Its handler runs when the read ends.
//! 4. Kernel threads: never.

use std::time::{Duration, Instant};

/// A set of signals, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SigSet(pub u64);

impl SigSet {
    /// The set of these signals.
    pub const fn of(signals: &[i32]) -> SigSet {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= 1 << (signals[i] - 1);
            i += 1;
        }
        SigSet(bits)
    }
    /// In both.
    pub const fn and(self, other: SigSet) -> SigSet {
        SigSet(self.0 & other.0)
    }
    /// In either.
    pub const fn or(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }
    /// In this and not in the other.
    pub const fn without(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }
    /// None at all.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::fmt::Debug for SigSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((1..=64).filter(|n| self.0 >> (n - 1) & 1 == 1)).finish()
    }
}

const KILL: SigSet = SigSet::of(&[libc::SIGKILL]);

/// Signals whose default is to be ignored, or to stop or continue the process: not meant to end a read.
const HARMLESS: SigSet = SigSet::of(&[
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
]);

/// Signals that mean "stop what you do", also to a program that catches them.
const STOPPERS: SigSet = SigSet::of(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM]);

/// What a thread's status says of its signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The process it belongs to; equal to the thread's id for its first thread.
    pub tgid: u32,
    /// A thread of the kernel.
    pub kernel: bool,
    /// It has ended and only waits to be collected.
    pub dead: bool,
    /// It runs, waits for a processor, or is where a signal can't take it out (a read, for instance): what was done for
    /// it may still have to take effect.
    pub busy: bool,
    /// Pending for the thread.
    pub pending: SigSet,
    /// Pending for its process.
    pub shared: SigSet,
    /// Blocked by the thread.
    pub blocked: SigSet,
    /// Ignored by the process.
    pub ignored: SigSet,
    /// With a handler.
    pub caught: SigSet,
}

/// Reads the text of `/proc/<tid>/status`; `None` if it isn't one.
pub fn parse_status(text: &[u8]) -> Option<Status> {
    let mut status = Status::default();
    let mut seen = 0u32;
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (key, rest) = line.split_at(colon);
        let value = std::str::from_utf8(rest.get(1..).unwrap_or_default()).unwrap_or_default().trim();
        let set = || u64::from_str_radix(value, 16).ok().map(SigSet);
        match key {
            b"State" => {
                status.dead = value.starts_with(['Z', 'X', 'x']);
                status.busy = value.starts_with(['R', 'D']);
            }
            b"Tgid" => status.tgid = value.parse().ok()?,
            b"Kthread" => status.kernel = value == "1",
            b"SigPnd" => status.pending = set()?,
            b"ShdPnd" => status.shared = set()?,
            b"SigBlk" => status.blocked = set()?,
            b"SigIgn" => status.ignored = set()?,
            b"SigCgt" => status.caught = set()?,
            _ => continue,
        }
        seen += u32::from(key.starts_with(b"Sig") || key == b"ShdPnd" || key == b"Tgid");
    }
    // Tgid and the five sets.
    (seen == 6).then_some(status)
}

/// What a thread's signals ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing.
    Wait,
    /// It ends: interrupt all that the process waits for.
    Fatal,
    /// It has ended: interrupt what it waited for.
    Gone,
    /// It caught these and they mean to stop it.
    Stop {
        /// Sent to this very thread.
        private: SigSet,
        /// Sent to its process.
        shared: SigSet,
    },
}

/// Judges one thread. `None` stands for a thread that is gone.
pub fn judge(status: Option<&Status>) -> Judgement {
    let Some(status) = status else { return Judgement::Gone };
    if status.kernel {
        return Judgement::Wait;
    }
    if status.dead {
        return Judgement::Gone;
    }
    let arriving = |set: SigSet| set.without(status.blocked).without(status.ignored);
    let fatal = arriving(status.pending.or(status.shared)).without(status.caught).without(HARMLESS);
    if !status.pending.and(KILL).is_empty() || !fatal.is_empty() {
        return Judgement::Fatal;
    }
    let stops = |set: SigSet| arriving(set).and(status.caught).and(STOPPERS);
    let (private, shared) = (stops(status.pending), stops(status.shared));
    if private.is_empty() && shared.is_empty() {
        return Judgement::Wait;
    }
    Judgement::Stop { private, shared }
}

/// After this long without effect a signal sent to a process is offered to another of its waiting threads:
/// the kernel may have given it to one that we didn't choose. Long against a wake-up, short for a human.
pub const OFFER: Duration = Duration::from_millis(300);

/// The same, while the thread that it was offered to is seen to be busy: on a machine with more to do than it can
/// a thread may wait that long for its turn.
pub const OFFER_TO_BUSY: Duration = Duration::from_secs(5);

/// How often the same thread is offered it anew: the kernel repeats a read that was ahead, and page by page.
const AGAIN: u32 = 4;

/// To which thread of a process a signal was offered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    /// Threads it was offered to, the last one at the end, with the time of the offer.
    tried: Vec<(u32, Instant)>,
    /// How often the last one was offered it anew.
    again: u32,
}

impl Offers {
    /// Whether the last offer may still have its effect.
    pub fn is_recent(&self, now: Instant) -> bool {
        self.tried.last().is_some_and(|(_, at)| now.saturating_duration_since(*at) < 2 * OFFER)
    }
}

/// Chooses the thread that a signal sent to its process is for, out of those that wait in a reading system
/// call and have seen it twice: the first thread of the process, which the kernel prefers too, otherwise the
/// lowest; and stays with it for [`OFFER`], or longer while that one is `busy`, so that no two threads get it.
pub fn choose(tgid: u32, candidates: &[u32], offers: &mut Offers, busy: bool, now: Instant) -> Option<u32> {
    if let Some((tid, at)) = offers.tried.last_mut() {
        let passed = now.saturating_duration_since(*at);
        if candidates.contains(tid) {
            // Its next read, if it began another instead of returning.
            if offers.again < AGAIN {
                offers.again += 1;
                *at = now;
                return Some(*tid);
            }
            if passed < OFFER {
                return Some(*tid);
            }
        } else if passed < OFFER || busy && passed < OFFER_TO_BUSY {
            return None;
        }
    }
    offers.again = 0;
    let fresh = |tid: &&u32| !offers.tried.iter().any(|(tried, _)| tried == *tid);
    let pick = candidates.iter().filter(fresh).min_by_key(|tid| (**tid != tgid, **tid)).copied();
    let pick = match pick {
        Some(tid) => tid,
        None => {
            // All were tried: begin again.
            offers.tried.clear();
            *candidates.iter().min_by_key(|tid| (**tid != tgid, **tid))?
        }
    };
    offers.tried.push((pick, now));
    Some(pick)
}

/// System calls that read, in which an interruption is an ordinary answer.
const READS: [i64; 8] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
];

/// Whether the text of `/proc/<tid>/syscall` shows a system call that reads. A page fault shows -1.
pub fn in_a_read(text: &[u8]) -> bool {
    let first = text.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    let number = std::str::from_utf8(first).ok().and_then(|first| first.parse::<i64>().ok());
    number.is_some_and(|number| READS.contains(&number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn text(fields: &[(&str, &str)]) -> String {
        let mut lines = String::from("Name:\tcat\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t70\nPid:\t71\n");
        let mut sets = [("SigPnd", "0"), ("ShdPnd", "0"), ("SigBlk", "0"), ("SigIgn", "0"), ("SigCgt", "0")];
        for (key, value) in fields {
            match sets.iter_mut().find(|(name, _)| name == key) {
                Some(set) => set.1 = value,
                None => lines.push_str(&format!("{key}:\t{value}\n")),
            }
        }
        for (key, value) in sets {
            lines.push_str(&format!("{key}:\t{value:0>16}\n"));
        }
        lines + "CapInh:\t0000000000000000\nSeccomp:\t0\n"
    }

    /// What it is, the fields of the status, and the judgement.
    type Row<'a> = (&'a str, Vec<(&'a str, &'a str)>, Judgement);

    fn bit(signal: i32) -> String {
        format!("{:x}", 1u64 << (signal - 1))
    }

    #[test]
    fn a_status_is_read() {
        let status = parse_status(text(&[("SigPnd", "100"), ("SigBlk", "4"), ("Kthread", "0")]).as_bytes());
        let status = status.unwrap();
        assert_eq!(status.tgid, 70);
        assert_eq!(status.pending, SigSet::of(&[libc::SIGKILL]));
        assert_eq!(status.blocked, SigSet::of(&[libc::SIGQUIT]));
        assert!(!status.kernel && !status.dead && !status.busy);
        for (state, busy) in [("R (running)", true), ("D (disk sleep)", true), ("T (stopped)", false)] {
            let status = parse_status(text(&[("State", state)]).as_bytes()).unwrap();
            assert_eq!(status.busy, busy, "{state}");
        }
        for broken in ["", "Tgid:\t3\n", "Name:\tx\nSigPnd:\tzz\n"] {
            assert_eq!(parse_status(broken.as_bytes()), None, "{broken:?}");
        }
        let own = std::fs::read("/proc/thread-self/status").unwrap();
        assert_eq!(parse_status(&own).unwrap().tgid, std::process::id());
    }

    #[test]
    fn f1_every_signal_is_judged_by_the_rules() {
        let (int, kill, term) = (bit(libc::SIGINT), bit(libc::SIGKILL), bit(libc::SIGTERM));
        let set = |signal| SigSet::of(&[signal]);
        let stop_private = |signal| Judgement::Stop { private: set(signal), shared: SigSet::default() };
        let stop_shared = |signal| Judgement::Stop { private: SigSet::default(), shared: set(signal) };
        #[rustfmt::skip]
        let rows: Vec<Row> = vec![
            ("nothing pending", vec![], Judgement::Wait),
            ("killed", vec![("SigPnd", &kill)], Judgement::Fatal),
            ("killed, whatever is blocked", vec![("SigPnd", &kill), ("SigBlk", "ffffffffffffffff")], Judgement::Fatal),
            ("default INT to the process", vec![("ShdPnd", &int)], Judgement::Fatal),
            ("default TERM to the thread", vec![("SigPnd", &term)], Judgement::Fatal),
            ("blocked INT", vec![("ShdPnd", &int), ("SigBlk", &int)], Judgement::Wait),
            ("ignored INT", vec![("ShdPnd", &int), ("SigIgn", &int)], Judgement::Wait),
            ("caught INT to the process", vec![("ShdPnd", &int), ("SigCgt", &int)], stop_shared(libc::SIGINT)),
            ("caught TERM to the thread", vec![("SigPnd", &term), ("SigCgt", &term)], stop_private(libc::SIGTERM)),
            ("caught but blocked", vec![("SigPnd", &term), ("SigCgt", &term), ("SigBlk", &term)], Judgement::Wait),
            ("default INT beside a caught TERM", vec![("ShdPnd", "4002"), ("SigCgt", &term)], Judgement::Fatal),
            ("a kernel thread", vec![("SigPnd", &kill), ("Kthread", "1")], Judgement::Wait),
            ("a zombie", vec![("State", "Z (zombie)")], Judgement::Gone),
            ("dead", vec![("State", "X (dead)")], Judgement::Gone),
        ];
        for (what, fields, expected) in rows {
            let status = parse_status(text(&fields).as_bytes()).unwrap();
            assert_eq!(judge(Some(&status)), expected, "{what}");
        }
        assert_eq!(judge(None), Judgement::Gone);
    }

    #[test]
    fn f7_harmless_signals_never_end_a_read() {
        let harmless = [
            libc::SIGCHLD,
            libc::SIGCONT,
            libc::SIGSTOP,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
            libc::SIGURG,
            libc::SIGWINCH,
        ];
        for signal in harmless {
            for caught in [0, u64::MAX] {
                let status = Status {
                    pending: SigSet::of(&[signal]),
                    shared: SigSet::of(&[signal]),
                    caught: SigSet(caught),
                    ..Status::default()
                };
                assert_eq!(judge(Some(&status)), Judgement::Wait, "signal {signal}, caught {caught:x}");
            }
        }
        // With a handler, also those whose default is fatal, but which don't ask to stop.
        for signal in [
            libc::SIGALRM,
            libc::SIGPROF,
            libc::SIGVTALRM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGPIPE,
            libc::SIGIO,
            34,
            64,
        ] {
            let status = Status {
                pending: SigSet::of(&[signal]),
                shared: SigSet::of(&[signal]),
                caught: SigSet(u64::MAX),
                ..Status::default()
            };
            assert_eq!(judge(Some(&status)), Judgement::Wait, "signal {signal}");
            assert_eq!(
                judge(Some(&Status { caught: SigSet(0), ..status })),
                Judgement::Fatal,
                "signal {signal} by default"
            );
        }
    }

    #[test]
    fn a_signal_to_a_process_is_for_one_thread() {
        let now = Instant::now();
        let mut offers = Offers::default();
        /// When in milliseconds, who waits, whether the last one is busy; who gets it.
        type Row<'a> = (&'a str, u64, &'a [u32], bool, Option<u32>);
        #[rustfmt::skip]
        let rows: [Row; 16] = [
            ("nobody", 0, &[], false, None),
            ("the first thread", 0, &[80, 70, 75], false, Some(70)),
            ("not to another one while it returns", 50, &[80, 75], false, None),
            ("the same one if it reads on", 100, &[80, 75, 70], false, Some(70)),
            ("which begins its time anew", 390, &[80, 75], false, None),
            ("it waits for a processor", 2000, &[80, 75], true, None),
            ("and reads on", 4000, &[80, 75, 70], true, Some(70)),
            ("and again", 4100, &[80, 75, 70], true, Some(70)),
            ("and again", 4200, &[80, 75, 70], true, Some(70)),
            ("that often no more", 4300, &[80, 75, 70], true, Some(70)),
            ("it had no effect: the next", 4501, &[80, 75, 70], true, Some(75)),
            ("a while", 4800, &[80, 70], false, None),
            ("it is elsewhere: the next", 4802, &[80, 70], false, Some(80)),
            ("all were tried, and this one is busy", 9801, &[70, 75], true, None),
            ("for too long", 9802, &[70, 75], true, Some(70)),
            ("from the beginning", 10103, &[75, 80], false, Some(75)),
        ];
        for (what, ms, candidates, busy, expected) in rows {
            let got = choose(70, candidates, &mut offers, busy, now + Duration::from_millis(ms));
            assert_eq!(got, expected, "{what}, at {ms}");
        }
    }

    #[test]
    fn only_a_reading_system_call_counts() {
        let read = format!("{} 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffc 0x7f11\n", libc::SYS_read);
        let pread = format!("{} 0x3\n", libc::SYS_pread64);
        let mmap = format!("{} 0x3\n", libc::SYS_mmap);
        let rows = [
            (read.as_str(), true),
            (pread.as_str(), true),
            (mmap.as_str(), false),
            ("-1 0x7ffc 0x7f11\n", false),
            ("running\n", false),
            ("", false),
        ];
        for (text, expected) in rows {
            assert_eq!(in_a_read(text.as_bytes()), expected, "{text:?}");
        }
    }
}
