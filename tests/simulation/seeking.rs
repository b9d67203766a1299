//! Scenarios of seeks: from idle, beside bulk reading, in storms, over slow and far links.

use std::time::Duration;

use super::clock::{Rng, Time};
use super::link::PeerSpec;
use super::programs::{Copy, Script, Step};
use super::report::Report;
use super::scenario::{LATER, MIB, Scenario};

/// Between two seeks, so that nothing is on its way.
const PAUSE: Duration = Duration::from_millis(500);
/// Seeks that don't count, until the rates are known, and those that do.
const COUNT: (u32, u32) = (8, 100);
const LENS: std::ops::Range<u64> = 4096..131_072;

/// What every scenario holds: nothing fails, nobody is thrown out, and the engine finds nothing wrong with itself.
pub fn sound(report: &Report) {
    assert_eq!((report.failed, report.thrown_out), (0, 0), "{report}");
    assert!(report.errors.is_empty(), "{report}");
    for program in &report.programs {
        assert!(program.took.is_some(), "a program didn't come to its end\n{report}");
    }
}

/// The bounds on seeks: the median at most 1.3 times what physics needs, the 99th of 100 at most twice.
fn seeks_in_time(report: &Report, program: usize) {
    let figures = &report.programs[program];
    assert!(figures.seek_ratio(0.5) <= 1.3, "median {:.2}\n{report}", figures.seek_ratio(0.5));
    assert!(figures.seek_ratio(0.99) <= 2.0, "p99 {:.2}\n{report}", figures.seek_ratio(0.99));
}

/// What was fetched is what lies in the pieces that were touched, but for a few duplicates.
fn frugal(report: &Report) {
    let own = report.fetched - report.duplicate;
    assert!(own <= report.touched, "{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
}

fn seeker(size: u64, seed: u64) -> Box<Script> {
    Script::seeker(0, size, LENS, COUNT, PAUSE, seed)
}

fn equal_peers(seed: u64) -> Scenario {
    Scenario::gib("seeks, equal peers").equal(8, PeerSpec::new(MIB)).program(LATER, seeker(1024 * MIB, seed))
}

#[test]
fn seeks_among_equal_peers() {
    let report = equal_peers(1).run();
    sound(&report);
    seeks_in_time(&report, 0);
    frugal(&report);
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let storm = |seed| {
        let peers = (0..6).map(|n| PeerSpec {
            leaves: (n == 5).then_some(Time::from_secs(9)),
            stalls: if n == 4 { vec![(Time::from_secs(5), Time::from_secs(60))] } else { Vec::new() },
            ..PeerSpec::new(MIB)
        });
        Scenario::gib("the same again")
            .peers(peers)
            .program(LATER, seeker(1024 * MIB, seed))
            .program(LATER, Copy::new(0, 0..64 * MIB))
            .seed(seed)
            .run()
    };
    assert_eq!(storm(1), storm(1));
    assert_ne!(storm(1), storm(2));
}

#[test]
fn the_first_byte_of_a_cold_mount() {
    // Dialled, interested, let in, asked: four round trips and a bit; then a piece at the swarm's rate.
    let report = Scenario::gib("first byte, nobody connected")
        .equal(8, PeerSpec::new(MIB))
        .program(Time::ZERO, Script::new([Step::Open(0, 0), Step::Read(0, 300 * MIB, 4096)]))
        .run();
    sound(&report);
    frugal(&report);
    let floor = Duration::from_secs_f64(1.0 / 8.0) + Duration::from_millis(20) * 4;
    let took = report.programs[0].first_byte.unwrap();
    assert!(took <= floor * 3 / 2, "{took:?}, floor {floor:?}");
}

#[test]
fn the_first_byte_when_peers_are_connected() {
    let report = Scenario::gib("first byte, peers connected")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Script::new([Step::Open(0, 0), Step::Seek(0, 300 * MIB, 4096)]))
        .run();
    sound(&report);
    frugal(&report);
    // Nobody knows the rates yet.
    assert!(report.programs[0].seek_ratio(1.0) <= 1.5, "{report}");
}

#[test]
fn seeks_among_one_fast_and_nine_slow() {
    let report = Scenario::gib("seeks, 1 x 8 MiB/s and 9 x 128 KiB/s")
        .equal(1, PeerSpec::new(8 * MIB))
        .equal(9, PeerSpec::new(MIB / 8))
        .program(LATER, seeker(1024 * MIB, 1))
        .run();
    sound(&report);
    seeks_in_time(&report, 0);
    frugal(&report);
}

#[test]
fn the_first_seeks_among_one_fast_and_nine_slow() {
    // Nobody knows who is slow; the fast one has time to bring the slow ones' share as well.
    let report = Scenario::gib("first seeks, 1 fast and 9 slow")
        .equal(1, PeerSpec::new(8 * MIB))
        .equal(9, PeerSpec::new(MIB / 8))
        .program(LATER, Script::seeker(0, 1024 * MIB, LENS, (0, 8), PAUSE, 3))
        .run();
    sound(&report);
    assert!(report.programs[0].seek_ratio(1.0) <= 3.0, "{report}");
    assert!(report.duplicates() <= 0.15, "{report}");
}

#[test]
fn seeks_in_pieces_of_16_mib() {
    let report = Scenario::new("seeks, pieces of 16 MiB", 16 << 20, &[66_000 * MIB])
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Script::seeker(0, 4096 * MIB, LENS, (3, 40), PAUSE, 1))
        .run();
    sound(&report);
    seeks_in_time(&report, 0);
    frugal(&report);
}

#[test]
fn seeks_with_200_ms_of_delay() {
    let report = Scenario::gib("seeks, 200 ms each way")
        .equal(8, PeerSpec { delay: Duration::from_millis(200), ..PeerSpec::new(MIB) })
        .program(LATER * 5, seeker(1024 * MIB, 1))
        .run();
    sound(&report);
    seeks_in_time(&report, 0);
    frugal(&report);
}

#[test]
fn seeks_where_a_limiter_hands_out_quota_twice_a_second() {
    let spec = PeerSpec { quota: Some(Duration::from_millis(500)), ..PeerSpec::new(2 * MIB) };
    let report = Scenario::gib("seeks, 4 x 2 MiB/s with quota")
        .equal(4, spec)
        .program(LATER, seeker(1024 * MIB, 1))
        .run();
    sound(&report);
    frugal(&report);
    // Half of what the best rival takes with this limiter.
    assert!(report.programs[0].seek(0.5) <= Duration::from_millis(535), "{report}");
}

#[test]
fn seeks_beside_a_bulk_read() {
    let report = Scenario::large("seeks beside cp")
        .equal(4, PeerSpec::new(2 * MIB))
        .program(LATER, Copy::new(0, 0..256 * MIB))
        .program(LATER * 5, Script::seeker(1, 1024 * MIB, LENS, (0, 20), Duration::from_secs(1), 1))
        .run();
    sound(&report);
    seeks_in_time(&report, 1);
    assert!(report.duplicates() <= 0.05, "{report}");
}

#[test]
fn random_reads_fetch_the_pieces_they_touch() {
    let mut rng = Rng::new(7);
    let mut steps = vec![Step::Open(0, 0)];
    steps.extend((0..200).map(|_| Step::Seek(0, rng.below(1024 * MIB / 4096) * 4096, 4096)));
    let report = Scenario::gib("200 random reads of 4 KiB")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Script::new(steps))
        .run();
    sound(&report);
    frugal(&report);
    // One after the other, so that little may be on its way to nobody's use.
    assert!(report.programs[0].seek_ratio(0.5) <= 1.3, "{report}");
}

#[test]
fn a_seek_after_a_storm_of_seeks() {
    // Somebody drags the slider: fifty places, each given up after 50 ms; then they stay.
    let mut rng = Rng::new(11);
    let mut place = || rng.below(1000 * MIB);
    let mut steps = vec![Step::Open(0, 0)];
    for _ in 0..5 {
        steps.extend([Step::Read(0, place(), 65536), Step::Wait(PAUSE)]);
    }
    for _ in 0..8 {
        for _ in 0..50 {
            let wait = Step::Wait(Duration::from_millis(50));
            steps.extend([Step::Begin(0, place(), 65536), wait, Step::Abandon]);
        }
        steps.extend([Step::Seek(0, place(), 65536), Step::Wait(PAUSE)]);
    }
    let report = Scenario::gib("seeks after storms")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Script::new(steps))
        .run();
    sound(&report);
    // What is in the peers' buffers can't be called back: half a MiB here, a sixteenth of a second.
    let figures = &report.programs[0];
    for seek in &figures.seeks {
        assert!(seek.took <= seek.floor * 13 / 10 + Duration::from_millis(63), "{seek:?}\n{report}");
    }
}

#[test]
fn a_seek_after_idling_needs_no_unchoke() {
    // Peers that let in after ten seconds: while the handle is open we stay interested, so nobody waits again.
    let spec = PeerSpec { lets_in_after: Duration::from_secs(10), ..PeerSpec::new(MIB) };
    let mut rng = Rng::new(5);
    let mut steps = vec![Step::Open(0, 0)];
    for _ in 0..4 {
        steps.extend([Step::Seek(0, rng.below(1000 * MIB), 65536), Step::Wait(Duration::from_secs(30))]);
    }
    let report = Scenario::gib("seeks after 30 s of idling")
        .equal(8, spec)
        .program(LATER * 15, Script::new(steps))
        .run();
    sound(&report);
    assert!(report.programs[0].seek_ratio(1.0) <= 1.5, "{report}");
}

#[test]
fn the_head_and_the_tail_of_a_container() {
    // A player looks at the head, then for the index at the end, then plays: each jump costs one seek.
    let size = 1024 * MIB;
    let report = Scenario::gib("head, tail, head of a container")
        .equal(8, PeerSpec::new(MIB))
        .program(
            LATER,
            Script::new([
                Step::Open(0, 0),
                Step::Read(0, 0, 65536),
                Step::Seek(0, size - 300_000, 65536),
                Step::Seek(0, size / 2, 65536),
            ]),
        )
        .run();
    sound(&report);
    assert!(report.programs[0].seek_ratio(1.0) <= 1.5, "{report}");
    // The head was read in sequence, so as much again may come.
    assert!(report.fetched <= report.touched + report.read, "{report}");
}
