//! Scenarios with webseeds: alone, beside peers, failing, and lying.

use std::time::Duration;

use super::link::PeerSpec;
use super::programs::{Copy, Player, Script};
use super::scenario::{LATER, MIB, Scenario};
use super::seeking::sound;
use super::webseed::WebseedSpec;

const S: Duration = Duration::from_secs(1);
const LENS: std::ops::Range<u64> = 4096..131_072;

#[test]
fn copying_from_a_webseed_alone() {
    for rate in [2, 16, 200] {
        let report = Scenario::whole("cp 96 MiB, one webseed", 96 * MIB)
            .webseeds([WebseedSpec::new(rate * MIB)])
            .program(LATER, Copy::new(0, 0..96 * MIB))
            .run();
        sound(&report);
        assert!(report.overhead() <= 1.01 && report.duplicate == 0, "{report}");
        // At 200 MiB/s each request of the reader's window is over before the next is made.
        let least = if rate < 100 { 0.85 } else { 0.4 };
        assert!(report.programs[0].rate() as f64 >= least * (rate * MIB) as f64, "{report}");
        // Requests of some size, also for the piece that the reader waits for.
        assert!(report.webseeds[0].each() >= 128 << 10, "{report}");
        assert_eq!(report.webseeds[0].cut, 0, "{report}");
    }
}

#[test]
fn seeks_in_what_a_webseed_alone_has() {
    let report = Scenario::gib("seeks, one webseed")
        .webseeds([WebseedSpec::new(8 * MIB)])
        .program(LATER, Script::seeker(0, 1024 * MIB, LENS, (8, 80), S / 2, 1))
        .run();
    sound(&report);
    let figures = &report.programs[0];
    assert!(figures.seek_ratio(0.5) <= 1.3 && figures.seek_ratio(0.99) <= 2.0, "{report}");
    assert!(report.overhead() <= 1.0, "{report}");
}

#[test]
fn seeks_beside_a_copy_from_one_webseed() {
    // What the copy has under way is cut for each seek.
    let report = Scenario::gib("seeks beside cp, one webseed")
        .webseeds([WebseedSpec::new(8 * MIB)])
        .program(LATER, Script::seeker(0, 1024 * MIB, LENS, (8, 40), S / 2, 1))
        .program(LATER, Copy::new(0, 0..512 * MIB))
        .run();
    sound(&report);
    let figures = &report.programs[0];
    // The copy always waits for a piece, too: what is urgent shares the line with what is as urgent, and with one more
    // response that had begun.
    assert!(figures.seek_ratio(0.5) <= 2.5 && figures.seek_ratio(0.99) <= 4.5, "{report}");
    assert!(report.programs[1].rate() >= 6 * MIB, "{report}");
    assert!(report.duplicates() <= 0.02, "{report}");
}

#[test]
fn an_urgent_range_is_split_over_webseeds_and_peers() {
    // Four peers and two webseeds, together 12 MiB/s: a seek's piece of 1 MiB comes from all of them.
    let report = Scenario::gib("seeks, 4 peers and 2 webseeds")
        .equal(4, PeerSpec::new(MIB))
        .webseeds([WebseedSpec::new(5 * MIB), WebseedSpec::new(3 * MIB)])
        .program(LATER, Script::seeker(0, 1024 * MIB, LENS, (8, 80), S / 2, 1))
        .run();
    sound(&report);
    let figures = &report.programs[0];
    assert!(figures.seek_ratio(0.5) <= 1.4, "{report}");
    assert!(figures.seek_ratio(0.99) <= 2.5, "{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
    // Each had its part, and a webseed one request for what it had of a piece.
    let by_http: u64 = report.webseeds.iter().map(|seed| seed.sent).sum();
    let share = by_http as f64 / report.fetched as f64;
    assert!((0.5..=0.85).contains(&share), "{share:.2} by HTTP\n{report}");
    for seed in &report.webseeds {
        assert!(seed.sent > 8 * MIB && seed.each() >= 128 << 10, "{report}");
    }
}

#[test]
fn copying_from_webseeds_and_peers() {
    let report = Scenario::whole("cp 192 MiB, 4 peers and a webseed", 192 * MIB)
        .equal(4, PeerSpec::new(MIB))
        .webseeds([WebseedSpec::new(4 * MIB)])
        .program(LATER, Copy::new(0, 0..192 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].rate() as f64 >= 0.85 * 8.0 * MIB as f64, "{report}");
    assert!(report.overhead() <= 1.02, "{report}");
    let share = report.webseeds[0].sent as f64 / report.fetched as f64;
    assert!((0.35..=0.65).contains(&share), "{share:.2} by HTTP\n{report}");
    // The reader is as fast as all of them, so it waits for each piece in the end.
    assert!(report.webseeds[0].each() >= 128 << 10, "runs of blocks, though peers take some\n{report}");
}

#[test]
fn a_player_while_its_webseed_fails_and_backs_off() {
    // Peers carry it while the webseed is away: they have half as much again as it plays. It is asked again afterwards.
    let spec = WebseedSpec { down: vec![(S * 6, S * 8), (S * 20, S / 2)], ..WebseedSpec::new(8 * MIB) };
    let report = Scenario::large("player 2 MiB/s, 3 peers, webseed away")
        .equal(3, PeerSpec::new(MIB))
        .webseeds([spec.clone()])
        .program(LATER, Player::new(0, 0..60 * MIB, 2 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].stalls.is_empty(), "{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
    // Without peers it stalls, and goes on when the webseed is back.
    let report = Scenario::large("player 4 MiB/s, a webseed alone, away for 8 s")
        .webseeds([spec])
        .program(LATER, Player::new(0, 0..80 * MIB, 4 * MIB))
        .run();
    sound(&report);
    let stalls: Duration = report.programs[0].stalls.iter().sum();
    assert!(stalls <= S * 11, "{report}");
}

#[test]
fn a_webseed_that_lies_about_one_file_is_asked_for_the_others() {
    // Two files of 32 MiB; what it sends of the second is wrong, and peers have it.
    let bad = |piece: u32| piece >= 32;
    let report = Scenario::new("two files, one is bad at the webseed", MIB as u32, &[32 * MIB, 32 * MIB])
        .equal(2, PeerSpec::new(MIB))
        .webseeds([WebseedSpec { bad, ..WebseedSpec::new(8 * MIB) }])
        .program(LATER, Copy::new(1, 0..32 * MIB))
        .program(LATER + S * 40, Copy::new(0, 0..32 * MIB))
        .run();
    sound(&report);
    assert_eq!(report.webseeds[0].distrusted, [1], "{report}");
    assert!(report.webseeds[0].stays && report.webseeds[0].sent > 20 * MIB, "{report}");
    // At most what was under way when it was found out.
    assert!(report.fetched <= 64 * MIB + 24 * MIB, "{report}");
}

#[test]
fn a_webseed_that_lies_about_all_is_dropped() {
    let report = Scenario::new("a bad webseed", MIB as u32, &[32 * MIB, 32 * MIB])
        .equal(2, PeerSpec::new(MIB))
        .webseeds([WebseedSpec { bad: |_| true, ..WebseedSpec::new(8 * MIB) }])
        .program(LATER, Copy::new(1, 0..32 * MIB))
        .program(LATER + S, Copy::new(0, 0..32 * MIB))
        .run();
    assert_eq!((report.failed, report.thrown_out), (0, 1), "{report}");
    assert!(!report.webseeds[0].stays && report.programs.iter().all(|p| p.took.is_some()), "{report}");
    assert!(report.fetched <= 64 * MIB + 32 * MIB, "{report}");
}

#[test]
fn webseeds_come_one_after_another_while_a_read_waits() {
    let report = Scenario::large("a copy that a late webseed answers")
        .webseeds((0..3).map(|n| WebseedSpec { joins: S * (5 + 4 * n), ..WebseedSpec::new(2 * MIB) }))
        .program(LATER, Copy::new(0, 0..64 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].first_byte.is_some_and(|at| at <= S * 5), "{report}");
    assert!(report.webseeds.iter().all(|seed| seed.sent > 8 * MIB), "{report}");
}
