//! The signal watcher: one thread that looks at the threads that wait, and ends the reads of those that mean
//! to stop. What means that is decided in [`crate::signals`].
//!
//! **Cost.** Asleep while nothing is parked. Otherwise it looks every [`INTERVAL`], or less often, so that it
//! stays under [`SHARE`] of a core. Fatal signals and those sent to a process show in any of its threads, so
//! one thread of each process is looked at each time, the first one if it waits; of all other threads
//! [`MORE_LOOKS`] in turn, which finds what was sent to a single thread. A caught signal takes several looks;
//! whoever has one is looked at again every [`INTERVAL`], however rarely all of them are.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::callers::{Caller, Look};
use crate::errno::Errno;
use crate::parked::{ParkedRead, ParkedReads};
use crate::signals::{Judgement, Offers, Status, choose, judge};
use crate::worker::Worker;

/// Time between looks. A caught signal takes two, twice (the kernel retries what it had read ahead), so its
/// reader returns within 100 ms.
const INTERVAL: Duration = Duration::from_millis(25);
/// A look may take one part in so many of the time: 2 %.
const SHARE: u32 = 50;
/// Longest time between looks, however many wait: two thousand processes take so long, at 20 µs each.
const LONGEST: Duration = Duration::from_secs(2);
/// Threads looked at besides one of each process.
const MORE_LOOKS: usize = 64;
/// How often a process with a caught signal is looked at again between two looks at all. Four end a read and what the
/// kernel repeats of it. One that waits for a page of a mapping keeps its signal, and is left alone then.
const AGAIN: u8 = 8;
/// Processes looked at again at a time.
const MOST_AGAIN: usize = 64;

/// Starts the thread; it ends after [`ParkedReads::stop_watching`].
pub(crate) fn start(parked: Arc<ParkedReads>) -> io::Result<Worker> {
    Worker::spawn("fs-signals", move || {
        let mut memory = Memory::default();
        while parked.sleep_while_empty() {
            let began = Instant::now();
            memory.scan(&parked, began);
            let mut left = (began.elapsed() * SHARE).clamp(INTERVAL, LONGEST);
            while !left.is_zero() {
                let pause = if memory.has_suspects() { left.min(INTERVAL) } else { left };
                if !parked.pause(pause) {
                    return;
                }
                left -= pause;
                if !left.is_zero() {
                    memory.look_again(&parked, Instant::now());
                }
            }
        }
    })
}

/// A thread and all that it waits for.
struct Waiter {
    caller: Arc<Caller>,
    reads: Vec<Arc<ParkedRead>>,
}

/// What is remembered from look to look.
#[derive(Default)]
struct Memory {
    /// By process: the offers of what was sent to it, and who got the last one.
    offers: HashMap<u32, (Offers, Option<Arc<Caller>>)>,
    turn: usize,
    /// Processes with a caught signal that means to stop them, and how often they are looked at again.
    suspects: HashMap<u32, u8>,
}

impl Memory {
    /// Looks at all.
    fn scan(&mut self, parked: &ParkedReads, now: Instant) {
        let waiters = waiters(parked.all());
        let processes = self.look(parked, &waiters, now);
        let offered = |tgid: &u32| processes.get(tgid).is_some_and(|process: &Process| process.offered);
        self.offers.retain(|tgid, (offers, _)| offered(tgid) || offers.is_recent(now));
        let suspicious = |tgid: &u32| processes.get(tgid).is_some_and(|process: &Process| process.suspicious);
        self.suspects.retain(|tgid, _| suspicious(tgid));
        for (tgid, _) in processes.iter().filter(|(_, process)| process.suspicious) {
            self.suspects.entry(*tgid).or_insert(AGAIN);
        }
        if parked.callers().len() > waiters.len() * 2 {
            parked.callers().prune();
        }
    }

    fn has_suspects(&self) -> bool {
        self.suspects.values().any(|left| *left > 0)
    }

    /// Looks at some of the suspects.
    fn look_again(&mut self, parked: &ParkedReads, now: Instant) {
        let mut chosen = HashSet::new();
        for (tgid, left) in self.suspects.iter_mut().filter(|(_, left)| **left > 0).take(MOST_AGAIN) {
            *left -= 1;
            chosen.insert(*tgid);
        }
        if chosen.is_empty() {
            return;
        }
        let mut reads = parked.all();
        reads.retain(|read| {
            let process = read.caller.as_ref().and_then(|caller| caller.process());
            process.is_some_and(|tgid| chosen.contains(&tgid))
        });
        // Those are few; whose turn it is among all others stays.
        let turn = self.turn;
        self.look(parked, &waiters(reads), now);
        self.turn = turn;
    }

    /// Looks at these, and interrupts those that mean to stop.
    fn look(&mut self, parked: &ParkedReads, waiters: &[Waiter], now: Instant) -> HashMap<u32, Process> {
        let mut processes: HashMap<u32, Process> = HashMap::new();
        for index in self.pick(waiters) {
            let Some(waiter) = waiters.get(index) else { continue };
            let look = match waiter.caller.look() {
                Look::Alive(status) => Some(status),
                Look::Gone => None,
                Look::Unknown => continue,
            };
            self.weigh(parked, waiters, index, look, &mut processes);
        }
        for (tgid, process) in &processes {
            self.finish(parked, waiters, *tgid, process, now);
        }
        processes
    }

    /// Which waiters to look at now.
    fn pick(&mut self, waiters: &[Waiter]) -> Vec<usize> {
        let mut of_process: HashMap<u32, usize> = HashMap::new();
        let mut rest = Vec::new();
        for (index, waiter) in waiters.iter().enumerate() {
            match waiter.caller.process() {
                None => rest.push(index),
                Some(tgid) => match of_process.entry(tgid) {
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(index);
                    }
                    // The first thread takes the place of another.
                    std::collections::hash_map::Entry::Occupied(mut entry) => {
                        let first = waiter.caller.tid == tgid;
                        rest.push(if first { entry.insert(index) } else { index });
                    }
                },
            }
        }
        let mut picked: Vec<usize> = of_process.into_values().collect();
        let from = if rest.len() > MORE_LOOKS { self.turn % rest.len() } else { 0 };
        self.turn = from + MORE_LOOKS;
        picked.extend(rest.iter().cycle().skip(from).take(MORE_LOOKS.min(rest.len())));
        picked
    }

    fn weigh(
        &self,
        parked: &ParkedReads,
        waiters: &[Waiter],
        index: usize,
        look: Option<Status>,
        processes: &mut HashMap<u32, Process>,
    ) {
        let Some(waiter) = waiters.get(index) else { return };
        let judgement = judge(look.as_ref());
        let tgid = look.map(|status| status.tgid).unwrap_or_default();
        match judgement {
            Judgement::Gone => interrupt(parked, waiter, "its thread is gone"),
            Judgement::Wait => {
                waiter.caller.seen_twice(Default::default());
                if !look.is_some_and(|status| status.kernel) {
                    processes.entry(tgid).or_default();
                }
            }
            Judgement::Fatal => processes.entry(tgid).or_default().fatal = true,
            Judgement::Stop { private, shared } => {
                let twice = waiter.caller.seen_twice(private.or(shared));
                let process = processes.entry(tgid).or_default();
                process.offered |= !shared.is_empty();
                process.suspicious = true;
                if twice.is_empty() || !waiter.caller.in_a_read() {
                    return;
                }
                if !twice.and(private).is_empty() {
                    interrupt(parked, waiter, "it caught a signal");
                } else {
                    process.candidates.push(index);
                }
            }
        }
    }

    /// What concerns a process as a whole.
    fn finish(
        &mut self,
        parked: &ParkedReads,
        waiters: &[Waiter],
        tgid: u32,
        process: &Process,
        now: Instant,
    ) {
        if process.fatal {
            for waiter in waiters.iter().filter(|waiter| waiter.caller.process() == Some(tgid)) {
                interrupt(parked, waiter, "its process ends");
            }
            return;
        }
        let found = |index: &usize| waiters.get(*index);
        let tids: Vec<u32> = process.candidates.iter().filter_map(found).map(|w| w.caller.tid).collect();
        if tids.is_empty() {
            return;
        }
        let (offers, last) = self.offers.entry(tgid).or_default();
        let busy = last.as_ref().is_some_and(|caller| matches!(caller.look(), Look::Alive(s) if s.busy));
        if let Some(tid) = choose(tgid, &tids, offers, busy, now) {
            *last = waiters.iter().find(|waiter| waiter.caller.tid == tid).map(|w| w.caller.clone());
            for waiter in process.candidates.iter().filter_map(found).filter(|w| w.caller.tid == tid) {
                interrupt(parked, waiter, "its process caught a signal");
            }
        }
    }
}

/// What one round of looks found of a process.
#[derive(Default)]
struct Process {
    fatal: bool,
    /// A caught signal sent to it is pending.
    offered: bool,
    /// The same, or one sent to one of its threads.
    suspicious: bool,
    /// Waiters that have seen that twice and are in a read.
    candidates: Vec<usize>,
}

/// The threads of these reads.
fn waiters(reads: Vec<Arc<ParkedRead>>) -> Vec<Waiter> {
    let mut waiters: Vec<Waiter> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for read in reads {
        let Some(caller) = read.caller.clone() else { continue };
        let place = *places.entry(Arc::as_ptr(&caller) as usize).or_insert(waiters.len());
        match waiters.get_mut(place) {
            Some(waiter) => waiter.reads.push(read),
            None => waiters.push(Waiter { caller, reads: vec![read] }),
        }
    }
    // The map gives them in any order; turns need one.
    waiters.sort_by_key(|waiter| waiter.caller.tid);
    waiters
}

fn interrupt(parked: &ParkedReads, waiter: &Waiter, why: &str) {
    for read in &waiter.reads {
        if parked.answer(read, Err(Errno::EINTR)) {
            tracing::debug!("interrupted a read of thread {}: {why}", waiter.caller.tid);
        }
    }
}
