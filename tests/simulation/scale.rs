//! Scenarios of number: many files, very many pieces.

use std::time::Duration;

use super::clock::{Rng, Time};
use super::link::{Holds, PeerSpec};
use super::programs::{Copy, Script, Step};
use super::report::Report;
use super::scenario::{LATER, MIB, Scenario};
use super::seeking::sound;

#[test]
fn f5_a_scan_of_many_heads_fetches_the_pieces_it_touches() {
    // `file *`, `head -c 4096 *`: each file is opened, its head read, and closed. Small files share pieces.
    let sizes: Vec<u64> = (0..200).map(|n| 5 * MIB + n * 4321).collect();
    let mut steps = Vec::new();
    for file in 0..sizes.len() as u32 {
        steps.extend([Step::Open(0, file), Step::Read(0, 0, 4096), Step::Close(0)]);
    }
    let count = sizes.len() as u32;
    let report = Scenario::new("the heads of 200 files", MIB as u32, &sizes)
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Script::new(steps))
        .run();
    sound(&report);
    assert!(report.fetched <= report.touched + report.read, "{report}");
    // One after the other: each a seek from idle.
    let floor = Duration::from_secs_f64(1.0 / 8.0) + Duration::from_millis(40);
    let took = report.programs[0].took.unwrap();
    assert!(took <= floor * 13 / 10 * count, "{took:?}\n{report}");
}

#[test]
fn f5_a_scan_by_several_at_a_time() {
    // A thumbnailer with four threads, each reading a head in small steps and a bit from the middle.
    let sizes = vec![20 * MIB; 64];
    let mut scenario =
        Scenario::new("4 thumbnailers over 64 files", MIB as u32, &sizes).equal(8, PeerSpec::new(MIB));
    for thread in 0..4u32 {
        let mut steps = Vec::new();
        for file in (0..64).filter(|file| file % 4 == thread) {
            steps.push(Step::Open(0, file));
            steps.extend((0..8).map(|k| Step::Read(0, k * 8192, 8192)));
            steps.extend([Step::Read(0, 9 * MIB, 65536), Step::Close(0)]);
        }
        scenario = scenario.program(LATER, Script::new(steps));
    }
    let report = scenario.run();
    sound(&report);
    assert!(report.fetched - report.duplicate <= report.touched + report.read, "{report}");
    assert!(report.duplicates() <= 0.02, "{report}");
    assert!(report.idle() <= 0.25, "{report}");
}

/// Reads here and there in a torrent of so many pieces of 256 KiB, with partial peers and a seed that joins.
/// Returns the report, and the real time spent in the swarm for each event.
fn among_pieces(pieces: u64) -> (Report, Duration) {
    let size = pieces * MIB / 4;
    let mut rng = Rng::new(3);
    let mut steps = vec![Step::Open(0, 0)];
    // The same places whatever the size.
    steps.extend((0..60).map(|_| Step::Seek(0, rng.below(4000 * MIB / 4), 65536)));
    let parts = PeerSpec { holds: Holds::Some(|piece| piece % 3 != 0), ..PeerSpec::new(MIB) };
    let (report, spent) = Scenario::new(&format!("{pieces} pieces"), 256 << 10, &[size])
        .equal(20, parts)
        .equal(4, PeerSpec::new(MIB))
        .equal(1, PeerSpec { joins: Time::from_secs(4), ..PeerSpec::new(MIB) })
        .program(LATER, Script::new(steps))
        .program(LATER, Copy::new(0, 1000 * MIB / 4..1100 * MIB / 4))
        .run_timed();
    let each = spent / report.events as u32;
    (report, each)
}

#[test]
fn p1_very_many_pieces_change_nothing() {
    // Both above the size up to which debug builds check the picker after each event.
    let (few, cheap) = among_pieces(5_000);
    let (many, dear) = among_pieces(333_333);
    sound(&few);
    sound(&many);
    println!("    per event: {cheap:?} with 5,000 pieces, {dear:?} with 333,333");
    // What is done is the same, event by event.
    let nameless = |report: &Report| Report { name: String::new(), ..report.clone() };
    assert_eq!(nameless(&few), nameless(&many));
    // And what it costs: twice is the bound, and five times as much is asserted, since the machine is shared.
    assert!(dear <= cheap * 10, "{cheap:?} an event with 5,000 pieces, {dear:?} with 333,333");
}
