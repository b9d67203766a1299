//! A scenario: a torrent, peers and programs; running it gives a [`Report`].

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use torrentfs::metainfo::build::TorrentBuilder;
use torrentfs::metainfo::info::Info;

use super::clock::Time;
use super::link::PeerSpec;
use super::programs::{Program, Woken};
use super::reading::Process;
use super::report::{Report, Served};
use super::webseed::WebseedSpec;
use super::world::{Happening, World};

/// A MiB.
pub const MIB: u64 = 1 << 20;
/// Where a program begins that finds the peers connected and the mount idle.
pub const LATER: Time = Time::from_secs(1);

/// A scenario ends here whatever goes on: longer than any takes.
const UNTIL: Time = Time::from_secs(600);

/// See the module's text.
pub struct Scenario {
    name: String,
    info: Arc<Info>,
    peers: Vec<PeerSpec>,
    webseeds: Vec<WebseedSpec>,
    programs: Vec<(Time, Box<dyn Program>)>,
    seed: u64,
}

/// Takes the engine's log.
struct Log(Sender<String>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(line).trim().to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Scenario {
    /// A torrent of files of these sizes. Nobody looks at its data, so its hashes are made up.
    pub fn new(name: &str, piece_length: u32, sizes: &[u64]) -> Self {
        let mut builder = TorrentBuilder::new("t", piece_length);
        match sizes {
            [size] => {
                builder.single_file(*size);
            }
            sizes => {
                for (n, size) in sizes.iter().enumerate() {
                    builder.file(format!("{n}"), *size);
                }
            }
        }
        let pieces = sizes.iter().sum::<u64>().div_ceil(piece_length.into());
        builder.piece_hashes((0..pieces).map(|_| [0; 20]));
        let raw = builder.info().unwrap();
        let info = Arc::new(Info::parse(&raw, None).unwrap());
        Self {
            name: name.into(),
            info,
            peers: Vec::new(),
            webseeds: Vec::new(),
            programs: Vec::new(),
            seed: 1,
        }
    }

    /// A GiB in pieces of 1 MiB, one file.
    pub fn gib(name: &str) -> Self {
        Self::new(name, MIB as u32, &[1024 * MIB])
    }

    /// Two files of 4 GiB in pieces of 1 MiB: beyond the size up to which debug builds check the picker after each
    /// event, for scenarios in which very much happens.
    pub fn large(name: &str) -> Self {
        Self::new(name, MIB as u32, &[4096 * MIB, 4096 * MIB])
    }

    /// Likewise a file of `size` bytes that is read whole, and another beside it.
    pub fn whole(name: &str, size: u64) -> Self {
        Self::new(name, MIB as u32, &[size, 5120 * MIB])
    }

    /// With more peers.
    pub fn peers(mut self, peers: impl IntoIterator<Item = PeerSpec>) -> Self {
        self.peers.extend(peers);
        self
    }

    /// With more webseeds.
    pub fn webseeds(mut self, webseeds: impl IntoIterator<Item = WebseedSpec>) -> Self {
        self.webseeds.extend(webseeds);
        self
    }

    /// With `count` more peers that are all the same.
    pub fn equal(self, count: usize, spec: PeerSpec) -> Self {
        self.peers(std::iter::repeat_n(spec, count))
    }

    /// With a program that begins at `at`.
    pub fn program(mut self, at: Time, program: Box<dyn Program>) -> Self {
        self.programs.push((at, program));
        self
    }

    /// With other random numbers.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Runs it, and prints its figures.
    pub fn run(self) -> Report {
        self.run_timed().0
    }

    /// The same, with the real time that was spent in the swarm.
    pub fn run_timed(self) -> (Report, Duration) {
        let (sender, errors) = channel();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .without_time()
            .with_ansi(false)
            .with_writer(move || Log(sender.clone()))
            .finish();
        let (mut report, spent) = tracing::subscriber::with_default(subscriber, || self.run_silently());
        report.errors = errors.try_iter().collect();
        print!("{report}");
        let each = spent / report.events.max(1) as u32;
        println!(
            "    {} events, {} effects, {each:?} of real time for each event",
            report.events, report.effects
        );
        (report, spent)
    }

    fn run_silently(self) -> (Report, Duration) {
        let mut world = World::new(self.info, &self.peers, &self.webseeds, self.seed);
        for (n, (at, program)) in self.programs.into_iter().enumerate() {
            world.processes.push(Process::new(program));
            world.agenda.put(at, Happening::Go(n, Woken::Start, 0));
        }
        world.run(UNTIL);
        let end = world.now;
        let began = world.processes.iter().filter_map(Process::began).min().unwrap_or_default();
        let capacity = world.peers.iter().map(|p| {
            let spec = &p.link.spec;
            let from = spec.joins.max(began);
            let to = spec.leaves.unwrap_or(end).min(end);
            (to.saturating_sub(from).as_secs_f64() * spec.rate as f64) as u64
        });
        let by_http = world.webseeds.iter().map(|seed| {
            let from = seed.spec.joins.max(began);
            (end.saturating_sub(from).as_secs_f64() * seed.spec.rate as f64) as u64
        });
        let capacity = capacity.chain(by_http);
        let touched = world.touched.iter().map(|piece| {
            u64::from(world.geometry().piece_len(torrentfs::metainfo::geometry::PieceIndex(*piece)))
        });
        let report = Report {
            name: self.name,
            capacity: capacity.sum(),
            touched: touched.sum(),
            programs: world.processes.iter().map(|p| p.figures.clone()).collect(),
            fetched: world.fetched,
            duplicate: world.duplicate,
            read: world.read,
            failed: world.failed,
            thrown_out: world.thrown_out,
            webseeds: world.webseeds.iter().map(Served::from).collect(),
            end,
            events: world.events,
            effects: world.effects,
            errors: Vec::new(),
        };
        (report, world.spent)
    }
}
