//! Row O9: many readers at once on a real mount, while peers come and go, the cache evicts and readers are killed.
//!
//! **Parts.** `worker`: one reader, a process of its own, which compares every byte it gets. `crew`: those that run,
//! and who kills some of them. `watchdog`: says what hangs, and ends it. `world`: torrents, peers, the mount, and what
//! has to be left of it all. `figures`: latencies and success. `rows`: what is shown. `cycles`: nothing is left over
//! time.
//!
//! **Flow.** The test itself never touches the mount, so that a hang can't take it along: workers do, and tell each
//! operation before and after it on their standard output. At the end of all workers the program has to hold no more
//! than before them, and then to end in order.
//!
//! **Deliberately not here:** speed. The latencies are printed; what is asserted is bounds far above them.
//!
//! `TORRENTFS_STRESS_SECONDS=30` gives each row the time that it is known by (`scripts/stress`); without it each takes
//! a few seconds. Luck follows from a seed that is printed; `TORRENTFS_SEED` repeats it.

mod crew;
mod cycles;
mod figures;
mod footprint;
mod rows;
mod watchdog;
mod worker;
mod world;

use std::time::Duration;

/// The longest row, by its name.
const LONGEST: u64 = 30;
/// Of each row, unless more was asked for.
const SHORT: Duration = Duration::from_secs(4);

/// How long a row lasts that is known by so many seconds.
fn lasting(seconds: u64) -> Duration {
    let told = std::env::var("TORRENTFS_STRESS_SECONDS").ok().and_then(|told| told.parse::<u64>().ok());
    let named = Duration::from_secs(seconds);
    told.map_or(named.min(SHORT), |told| named * told as u32 / LONGEST as u32)
}
