//! How long each operation took, and how many came right.

use std::collections::BTreeMap;
use std::time::Duration;

/// What was counted so far.
#[derive(Default)]
pub struct Figures {
    /// By the operation's name.
    took: BTreeMap<String, Vec<Duration>>,
    /// Operations that failed as they had to.
    due: usize,
    /// Readers whose last operation was refused, since the mount ends.
    over: usize,
    /// Those that did what they must not.
    bad: Vec<String>,
    /// From the signal to the end, of readers that were killed.
    ended: Vec<Duration>,
}

impl Figures {
    /// An operation that came right.
    pub fn right(&mut self, operation: &str, took: Duration) {
        self.took.entry(operation.to_owned()).or_default().push(took);
    }

    /// An operation that failed as it had to.
    pub fn due(&mut self, operation: &str, took: Duration) {
        self.due += 1;
        self.took.entry(format!("{operation}, refused")).or_default().push(took);
    }

    /// The same, and its reader takes it for the end.
    pub fn last(&mut self, operation: &str, took: Duration) {
        self.over += 1;
        self.due(operation, took);
    }

    /// Something that must not be.
    pub fn bad(&mut self, what: String) {
        self.bad.push(what);
    }

    /// A reader ended after a signal.
    pub fn ended(&mut self, took: Duration) {
        self.ended.push(took);
    }

    /// How many operations came right or failed as they had to.
    pub fn done(&self) -> usize {
        self.took.values().map(Vec::len).sum()
    }

    /// How many of them failed as they had to.
    pub fn refused(&self) -> usize {
        self.due
    }

    /// How many readers were refused because the mount ends.
    pub fn refused_for_good(&self) -> usize {
        self.over
    }

    /// How many took longer than that.
    pub fn over(&self, bound: Duration) -> usize {
        self.took.values().flatten().filter(|took| **took > bound).count()
    }

    /// The longest that a reader took to end.
    pub fn longest_end(&self) -> Duration {
        self.ended.iter().max().copied().unwrap_or_default()
    }

    /// What must not be, and was.
    pub fn wrongs(&self) -> &[String] {
        &self.bad
    }

    /// Prints all of it.
    pub fn print(&self, what: &str) {
        let (done, bad) = (self.done(), self.bad.len());
        let rate = done as f64 / (done + bad).max(1) as f64 * 100.0;
        let refused = self.due;
        eprintln!(
            "{what}: {done} operations, {rate:.3} % right, {refused} of them refused as they had to be, {bad} bad"
        );
        for (operation, took) in &self.took {
            print_line(operation, took);
        }
        if !self.ended.is_empty() {
            print_line("end after a signal", &self.ended);
        }
    }
}

/// Prints how some times are spread.
pub fn print_line(what: &str, took: &[Duration]) {
    let mut took = took.to_vec();
    took.sort_unstable();
    let ms = |permille: usize| {
        let at = took.len().saturating_sub(1) * permille / 1000;
        took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    };
    let (p50, p95, p99, max) = (ms(500), ms(950), ms(990), ms(1000));
    eprintln!("  {what:<24}{:>8} p50 {p50:>9.3} p95 {p95:>9.3} p99 {p99:>9.3} max {max:>9.3} ms", took.len());
}
