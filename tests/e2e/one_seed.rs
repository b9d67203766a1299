//! A whole swarm from one seed: clients of ours and libtorrents, all of which fetch everything and serve each other as far as
//! their lines go.
//!
//! All of them announce themselves at one tracker, which also tells how long each took: from its first announce to the one
//! that says it is complete. A small swarm by default; `TORRENTFS_SWARM=30` is thirty of ours and four libtorrents with
//! 64 MiB, and beside it, of libtorrents alone, a swarm as large: the figures of `docs/BENCHMARKS.md`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Mount, Proc, Sample, Seeder, Tracker, python, ran, script, wait_until};
use crate::needs;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// What each client's line takes away from it, and the seed's from that, in bytes per second.
const UP: u64 = MIB;
/// The third byte of addresses of ours, and of libtorrents.
const OURS: u8 = 3;
const THEIRS: u8 = 4;

/// A client that is through.
struct Client {
    ours: bool,
    took: Duration,
    sent: u64,
    received: u64,
}

/// A swarm of which all are through.
struct Played {
    size: u64,
    clients: Vec<Client>,
    seed_sent: u64,
}

impl Played {
    /// Times in the order of length, of all or of some.
    fn times(&self, of: impl Fn(&Client) -> bool) -> Vec<Duration> {
        let mut times: Vec<_> = self.clients.iter().filter(|c| of(c)).map(|client| client.took).collect();
        times.sort_unstable();
        times
    }

    /// Times of some, and what they sent ÷ what they received, in a line of a table.
    fn line(&self, what: &str, of: impl Fn(&Client) -> bool + Copy) -> String {
        let times = self.times(of);
        let mut ratios: Vec<f64> = self.clients.iter().filter(|c| of(c)).map(Client::ratio).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let (Some(median), Some(least), Some(most)) = (median(&times), times.first(), times.last()) else {
            return String::new();
        };
        format!(
            "| {what} | {} | {:.1} ({:.1}–{:.1}) | {:.2} | {:.2} ({:.2}–{:.2}) | {:.2} |",
            times.len(),
            median.as_secs_f64(),
            least.as_secs_f64(),
            most.as_secs_f64(),
            most.as_secs_f64() / median.as_secs_f64(),
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1],
            self.seed_sent as f64 / self.size as f64,
        )
    }

    #[track_caller]
    fn check(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            eprintln!(
                "{} {number}: {:.1} s, ratio {:.2}, received {:.3} of the size",
                if client.ours { "torrentfs" } else { "libtorrent" },
                client.took.as_secs_f64(),
                client.ratio(),
                client.received as f64 / self.size as f64
            );
        }
        let times = self.times(|_| true);
        let (median, worst) = (median(&times).expect("somebody"), times[times.len() - 1]);
        assert!(worst <= median * 3, "somebody starved: {worst:?}, and half took {median:?}");
        // Of a small swarm it may not be more than half of everything.
        let most = if self.clients.len() > 16 { 3 * self.size } else { 4 * self.size };
        assert!(self.seed_sent <= most, "the seed sent {} for {}", self.seed_sent, self.size);
        let sent: u64 = self.seed_sent + self.clients.iter().map(|client| client.sent).sum::<u64>();
        let needed = self.size * self.clients.len() as u64;
        assert!(sent <= needed * 11 / 10, "{sent} bytes were sent for {needed}");
    }
}

impl Client {
    fn ratio(&self) -> f64 {
        self.sent as f64 / self.received.max(1) as f64
    }
}

fn median(sorted: &[Duration]) -> Option<Duration> {
    sorted.get(sorted.len() / 2).copied()
}

/// libtorrents that fetch a sample into folders below `save`.
fn libtorrents(sample: &Sample, save: &Path, count: usize, tracker: &Tracker) -> Proc {
    let mut command = Command::new(python().expect("python with libtorrent"));
    command.arg(script("swarm.py")).arg(&sample.torrent).arg(save);
    command.args(["--count", &count.to_string(), "--upload-limit", &UP.to_string()]);
    command.args(["--tracker", &tracker.http_url(), "--network", &format!("127.0.{THEIRS}")]);
    let mut process = Proc::spawn(command);
    process.line("ready", MINUTE);
    process
}

/// How long each took that has said that it is complete.
fn through(tracker: &Tracker) -> BTreeMap<IpAddr, Duration> {
    let mut began: BTreeMap<IpAddr, Instant> = BTreeMap::new();
    let mut through = BTreeMap::new();
    for announce in tracker.announces() {
        let since = *began.entry(announce.from).or_insert(announce.at);
        if announce.event == "completed" {
            through.entry(announce.from).or_insert(announce.at.saturating_duration_since(since));
        }
    }
    through
}

/// Payload bytes that a mount says it has sent and received.
fn moved(mount: &Mount) -> (u64, u64) {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    let number = |name: &str| status[name].as_u64().expect("a number");
    (number("uploaded"), number("downloaded"))
}

/// A swarm of so many mounts and libtorrents, until all of them have everything, and it is right.
#[track_caller]
fn play(sample: &Sample, ours: u8, theirs: u8, limit: Duration) -> Played {
    let save = tempfile::tempdir().expect("a folder");
    let all = usize::from(ours) + usize::from(theirs);
    // Its line is as slow as theirs: all of it comes to one client or another once, at the earliest when everybody could have
    // everything if nobody's line were idle for a moment.
    let mut seed = Seeder::with(sample, "127.0.0.2:0", &["--upload-limit", &UP.to_string(), "--no-utp"]);
    let tracker = Tracker::of_swarm(&[seed.addr]);
    let start = |number: u8| {
        let up = UP.to_string();
        // Thirty of them that sync to one disk would wait for each other.
        Mount::sample(sample)
            .listen(format!("127.0.{OURS}.{number}:0"))
            .args(&["--storage", "memory", "--prefetch", "all"])
            .args(&["--upload-limit", &up, "--tracker", &tracker.http_url()])
            .start()
    };
    let mut mounts: Vec<Mount> = (1..=ours / 2).map(start).collect();
    // In the middle: neither has the advantage of having come first.
    let mut others = libtorrents(sample, save.path(), theirs.into(), &tracker);
    mounts.extend((ours / 2 + 1..=ours).map(start));
    wait_until("all to be complete", limit, || through(&tracker).len() >= all);
    let (times, seed_sent) = (through(&tracker), seed.uploaded());
    let took = |network, number| times[&IpAddr::V4(Ipv4Addr::new(127, 0, network, number))];
    let mut clients = Vec::new();
    for (mount, number) in mounts.iter().zip(1..) {
        let (sent, received) = moved(mount);
        clients.push(Client { ours: true, took: took(OURS, number), sent, received });
    }
    let line = others.ask("moved", MINUTE);
    for (pair, number) in line.split(' ').skip(1).zip(1..) {
        let (sent, received) = pair.split_once(':').expect("a pair");
        let number_of = |text: &str| text.parse().expect("a number");
        let (sent, received) = (number_of(sent), number_of(received));
        clients.push(Client { ours: false, took: took(THEIRS, number), sent, received });
    }
    assert_eq!(clients.len(), all);
    for mount in mounts {
        mount.check_sums(sample);
        mount.stop();
    }
    drop(others);
    for number in 1..=theirs {
        sample.check_in(&save.path().join(number.to_string()));
    }
    Played { size: sample.total, clients, seed_sent }
}

#[test]
fn all_of_a_swarm_get_everything_from_one_seed() {
    needs!(Fuse, Libtorrent);
    let ours = std::env::var("TORRENTFS_SWARM").ok().and_then(|count| count.parse().ok()).unwrap_or(6);
    let full = ours >= 30;
    let (theirs, mib, limit) = if full { (4, 64, MINUTE * 6) } else { (2, 8, MINUTE * 2) };
    let sample = Sample::file("swarm.bin", mib * MIB, 256 << 10);
    let mixed = play(&sample, ours, theirs, limit);
    let alone = full.then(|| play(&sample, 0, ours + theirs, limit));
    println!("| | clients | time, s | worst ÷ median | sent ÷ received | of the seed ÷ size |");
    println!("|---|---|---|---|---|---|");
    println!("{}", mixed.line("torrentfs", |client| client.ours));
    println!("{}", mixed.line("libtorrents among them", |client| !client.ours));
    println!("{}", mixed.line("all of them", |_| true));
    if let Some(alone) = &alone {
        println!("{}", alone.line("libtorrents alone", |_| true));
        alone.check();
    }
    mixed.check();
}
