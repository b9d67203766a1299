//! What a run showed, in figures.

use std::fmt;
use std::time::Duration;

use super::clock::Time;
use super::webseed::Webseed;

/// A seek to a place that was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seek {
    /// How long it took.
    pub took: Duration,
    /// What physics needs: the missing pieces and what was on its way already, at the swarm's rate, and two round
    /// trips.
    pub floor: Duration,
}

impl Seek {
    /// How many times as long as physics needs.
    pub fn ratio(&self) -> f64 {
        self.took.as_secs_f64() / self.floor.as_secs_f64()
    }
}

/// What one program saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// From its first read to the answer.
    pub first_byte: Option<Duration>,
    /// From its start until a player began to play.
    pub started: Option<Duration>,
    /// The seeks it measured, as they came.
    pub seeks: Vec<Seek>,
    /// How long each stall of a player took.
    pub stalls: Vec<Duration>,
    /// Bytes it read.
    pub read: u64,
    /// From its start until it had done; `None` if it hadn't at the end.
    pub took: Option<Duration>,
}

impl Figures {
    /// Bytes per second that it read; 0 if it didn't come to an end.
    pub fn rate(&self) -> u64 {
        self.took.map_or(0, |took| (self.read as f64 / took.as_secs_f64().max(1e-9)) as u64)
    }

    /// The time that a share of the seeks didn't exceed.
    pub fn seek(&self, share: f64) -> Duration {
        let mut all: Vec<Duration> = self.seeks.iter().map(|s| s.took).collect();
        all.sort_unstable();
        at_share(&all, share).unwrap_or_default()
    }

    /// The same, as multiples of what physics needs.
    pub fn seek_ratio(&self, share: f64) -> f64 {
        let mut all: Vec<f64> = self.seeks.iter().map(Seek::ratio).collect();
        all.sort_unstable_by(f64::total_cmp);
        at_share(&all, share).unwrap_or_default()
    }

    /// The median of what physics needs.
    pub fn floor(&self) -> Duration {
        let mut all: Vec<Duration> = self.seeks.iter().map(|s| s.floor).collect();
        all.sort_unstable();
        at_share(&all, 0.5).unwrap_or_default()
    }
}

/// The value at this share of a sorted list (the nearest rank).
fn at_share<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// What one webseed did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Bytes that came from it.
    pub sent: u64,
    /// Requests made of it.
    pub requests: u64,
    /// Those of them that were cut.
    pub cut: u64,
    /// Files that were not believed of it.
    pub distrusted: Vec<u32>,
    /// It still takes part.
    pub stays: bool,
}

impl From<&Webseed> for Served {
    fn from(seed: &Webseed) -> Self {
        Self {
            sent: seed.sent,
            requests: seed.requests,
            cut: seed.cut,
            distrusted: seed.distrusted.clone(),
            stays: seed.key.is_some(),
        }
    }
}

impl Served {
    /// Bytes of each request.
    pub fn each(&self) -> u64 {
        self.sent / self.requests.max(1)
    }
}

/// What a run showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The scenario.
    pub name: String,
    /// By program.
    pub programs: Vec<Figures>,
    /// Bytes of blocks that came.
    pub fetched: u64,
    /// Of those, what had come before.
    pub duplicate: u64,
    /// Bytes that the filesystem was asked for and gave.
    pub read: u64,
    /// Bytes of the pieces in which those lay, and those of reads that were given up.
    pub touched: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Peers that we threw out.
    pub thrown_out: u64,
    /// What each webseed did.
    pub webseeds: Vec<Served>,
    /// Bytes that the links could have carried from the first read to the end.
    pub capacity: u64,
    /// When it ended.
    pub end: Time,
    /// Events applied, and effects carried out.
    pub events: u64,
    /// See above.
    pub effects: u64,
    /// What the engine logged as an error.
    pub errors: Vec<String>,
}

impl Report {
    /// Share of the links' time in which they carried nothing.
    pub fn idle(&self) -> f64 {
        1.0 - (self.fetched as f64 / self.capacity.max(1) as f64).min(1.0)
    }

    /// Bytes fetched for each byte of the pieces touched.
    pub fn overhead(&self) -> f64 {
        self.fetched as f64 / self.touched.max(1) as f64
    }

    /// Duplicate bytes for each byte fetched.
    pub fn duplicates(&self) -> f64 {
        self.duplicate as f64 / self.fetched.max(1) as f64
    }
}

/// One line of a table for each program.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| format!("{:.0}", d.as_secs_f64() * 1000.0);
        for (n, p) in self.programs.iter().enumerate() {
            let name = if n == 0 { self.name.as_str() } else { "" };
            let first = p.first_byte.map_or("never".to_owned(), ms);
            let stalled: Duration = p.stalls.iter().sum();
            write!(f, "{name:<44} | first {first:>6} ms")?;
            if !p.seeks.is_empty() {
                let (p50, p99) = (p.seek(0.5), p.seek(0.99));
                write!(
                    f,
                    " | {} seeks p50 {} p99 {} floor {} ms ({:.2}x {:.2}x)",
                    p.seeks.len(),
                    ms(p50),
                    ms(p99),
                    ms(p.floor()),
                    p.seek_ratio(0.5),
                    p.seek_ratio(0.99)
                )?;
            }
            if let Some(started) = p.started {
                write!(f, " | started {} ms, {} stalls {} ms", ms(started), p.stalls.len(), ms(stalled))?;
            }
            match p.took {
                Some(took) => {
                    write!(f, " | {:.2} s {:.2} MiB/s", took.as_secs_f64(), p.rate() as f64 / 1048576.0)?
                }
                None => write!(f, " | didn't end")?,
            }
            if n == 0 {
                let mib = |n: u64| n as f64 / 1048576.0;
                write!(
                    f,
                    " | read {:.1} touched {:.1} fetched {:.1} dup {:.1} MiB ({:.3}x of touched, {:.1} % dup) | idle {:.0} %",
                    mib(self.read),
                    mib(self.touched),
                    mib(self.fetched),
                    mib(self.duplicate),
                    self.overhead(),
                    self.duplicates() * 100.0,
                    self.idle() * 100.0
                )?;
            }
            writeln!(f)?;
        }
        for seed in &self.webseeds {
            writeln!(
                f,
                "    webseed: {:.1} MiB in {} requests of {} KiB, {} cut",
                seed.sent as f64 / 1048576.0,
                seed.requests,
                seed.each() >> 10,
                seed.cut
            )?;
        }
        for error in &self.errors {
            writeln!(f, "    error: {error}")?;
        }
        Ok(())
    }
}
