//! The workers that run, what they say, and who kills some of them.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::figures::Figures;
use super::worker::{ENV, Order, TEST, Until};
use crate::common::Random;

/// Between two looks at what runs.
const LOOK: Duration = Duration::from_millis(5);
/// The signals that end a reader.
const ENDING: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT];

/// What is known of all workers; the watchdog looks at it, too.
#[derive(Default)]
pub struct Board {
    /// What was counted.
    pub figures: Mutex<Figures>,
    running: Mutex<Vec<Arc<Running>>>,
}

/// One worker that runs.
pub struct Running {
    /// Its process.
    pub pid: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    doing: Option<(String, Instant)>,
    killed: Option<(Signal, Instant)>,
}

impl Board {
    /// The figures, for a moment.
    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().expect("figures")
    }

    /// The workers that run now.
    pub fn running(&self) -> Vec<Arc<Running>> {
        self.running.lock().expect("workers").clone()
    }
}

impl Running {
    /// What it does, and for how long it has; a worker that was killed ends.
    pub fn doing(&self) -> Option<(String, Duration)> {
        let state = self.state.lock().expect("a worker");
        match (&state.killed, &state.doing) {
            (Some((signal, since)), _) => Some((format!("ending after {signal}"), since.elapsed())),
            (None, Some((what, since))) => Some((what.clone(), since.elapsed())),
            (None, None) => None,
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), signal);
    }
}

struct Member {
    child: Child,
    running: Arc<Running>,
    order: Order,
    pump: JoinHandle<()>,
}

/// The workers. Dropping it kills those that still run.
pub struct Crew {
    /// What is known of them.
    pub board: Arc<Board>,
    members: Vec<Member>,
    started: usize,
    killed: usize,
}

impl Crew {
    /// Nobody yet.
    pub fn new() -> Self {
        Self { board: Arc::default(), members: Vec::new(), started: 0, killed: 0 }
    }

    /// Starts a worker.
    pub fn start(&mut self, order: Order) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]);
        command.env(ENV, serde_json::to_string(&order).expect("JSON"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("a process");
        let running = Arc::new(Running { pid: child.id(), state: Mutex::default() });
        let (out, board, of) =
            (child.stdout.take().expect("its output"), self.board.clone(), running.clone());
        let pump = std::thread::spawn(move || listen(BufReader::new(out), &board, &of));
        self.board.running.lock().expect("workers").push(running.clone());
        self.members.push(Member { child, running, order, pump });
        self.started += 1;
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// How many were started, and how many of them were killed.
    pub fn tally(&self) -> (usize, usize) {
        (self.started, self.killed)
    }

    /// Kills one that wasn't told to yet, and starts another in its place.
    pub fn kill_one(&mut self, random: &mut Random, left: Duration) {
        let alive = |member: &&Member| member.running.state.lock().expect("a worker").killed.is_none();
        let alive: Vec<_> = self.members.iter().filter(alive).collect();
        let Some(victim) = alive.get(random.below(alive.len() as u64) as usize) else { return };
        let signal = *random.of(&ENDING);
        victim.running.state.lock().expect("a worker").killed = Some((signal, Instant::now()));
        victim.running.signal(signal);
        self.killed += 1;
        let until = Until::Millis(left.as_millis() as u64);
        let next = Order { seed: random.next(), until, ..victim.order.clone() };
        self.start(next);
    }

    /// Takes note of those that have ended.
    pub fn reap(&mut self) {
        let mut left = Vec::new();
        for mut member in std::mem::take(&mut self.members) {
            let Some(status) = member.child.try_wait().expect("wait") else {
                left.push(member);
                continue;
            };
            member.pump.join().expect("its output");
            self.board.running.lock().expect("workers").retain(|one| one.pid != member.running.pid);
            let killed = member.running.state.lock().expect("a worker").killed;
            let mut figures = self.board.figures();
            match killed {
                Some((signal, since)) if ended_by(status, signal) => figures.ended(since.elapsed()),
                // It was over before the signal came.
                _ if status.success() => {}
                _ => figures.bad(format!("a worker ended with {status}, told {killed:?}")),
            }
        }
        self.members = left;
    }

    /// Waits until all have ended. `check` is called all the time, and may panic.
    pub fn join(&mut self, mut check: impl FnMut()) {
        while !self.members.is_empty() {
            check();
            self.reap();
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
        }
        // One that can't be killed is left to the mount's end.
        let end = Instant::now() + Duration::from_secs(5);
        while self.members.iter_mut().any(|member| matches!(member.child.try_wait(), Ok(None)))
            && Instant::now() < end
        {
            std::thread::sleep(LOOK);
        }
    }
}

fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

/// Takes down what a worker says, until it ends.
fn listen(from: impl BufRead, board: &Board, worker: &Running) {
    for line in from.lines() {
        let Ok(line) = line else { break };
        let doing = if let Some(begun) = line.strip_prefix("> ") {
            Some((begun.to_owned(), Instant::now()))
        } else if let Some(over) = line.strip_prefix("< ") {
            note(over, board, worker);
            None
        } else {
            continue;
        };
        worker.state.lock().expect("a worker").doing = doing;
    }
}

/// `OPERATION MICROSECONDS WORD WHY`, of which the operation may have several words.
fn note(over: &str, board: &Board, worker: &Running) {
    let words: Vec<&str> = over.split(' ').collect();
    let number = words.iter().position(|word| word.parse::<u64>().is_ok()).expect("a number");
    let took = Duration::from_micros(words[number].parse().expect("a number"));
    let operation = words[..number].join(" ");
    let mut figures = board.figures();
    match words[number + 1] {
        "right" => figures.right(&operation, took),
        "due" => figures.due(&operation, took),
        "last" => figures.last(&operation, took),
        _ => {
            let what = worker.state.lock().expect("a worker").doing.clone().map(|(what, _)| what);
            figures.bad(format!("{what:?} after {took:?}: {}", words[number + 1..].join(" ")));
        }
    }
}
