//! Scenarios of reading in sequence: players and copying.

use std::time::Duration;

use super::link::PeerSpec;
use super::programs::{Copy, Player};
use super::report::Report;
use super::scenario::{LATER, MIB, Scenario};
use super::seeking::sound;

/// A player never stalls, and begins within a second and the time of a piece.
fn plays_well(report: &Report, program: usize, piece: Duration) {
    let figures = &report.programs[program];
    assert!(figures.stalls.is_empty(), "{} stalls\n{report}", figures.stalls.len());
    let started = figures.started.unwrap_or(Duration::MAX);
    assert!(started <= Duration::from_secs(1) + piece, "it began after {started:?}\n{report}");
}

/// What a reader in sequence costs: at most as much again as was read, and hardly anything twice.
fn bounded(report: &Report) {
    assert!(report.fetched - report.duplicate <= report.touched + report.read, "{report}");
    assert!(report.duplicates() <= 0.02, "{report}");
}

/// Reading a whole file fetches at most 1.02 times its pieces.
fn copies_well(report: &Report, of_rate: f64) {
    sound(report);
    assert!(report.overhead() <= 1.02, "{report}");
    assert!(report.programs[0].rate() as f64 >= of_rate, "{report}");
}

#[test]
fn copying_a_file_from_equal_peers() {
    let report = Scenario::whole("cp 128 MiB, equal peers", 128 * MIB)
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Copy::new(0, 0..128 * MIB))
        .run();
    copies_well(&report, 0.9 * 8.0 * MIB as f64);
}

#[test]
fn copying_a_file_from_one_fast_and_nine_slow() {
    let report = Scenario::whole("cp 128 MiB, 1 fast and 9 slow", 128 * MIB)
        .equal(1, PeerSpec::new(8 * MIB))
        .equal(9, PeerSpec::new(MIB / 8))
        .program(LATER, Copy::new(0, 0..128 * MIB))
        .run();
    // The fast one alone would give 8 MiB/s.
    copies_well(&report, 0.9 * 8.0 * MIB as f64);
}

#[test]
fn copying_a_file_in_pieces_of_16_mib() {
    let report = Scenario::new("cp 192 MiB, pieces of 16 MiB", 16 << 20, &[192 * MIB, 65_536 * MIB])
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Copy::new(0, 0..192 * MIB))
        .run();
    copies_well(&report, 0.8 * 8.0 * MIB as f64);
}

#[test]
fn copying_a_file_with_200_ms_of_delay() {
    let report = Scenario::whole("cp 128 MiB, 200 ms each way", 128 * MIB)
        .equal(8, PeerSpec { delay: Duration::from_millis(200), ..PeerSpec::new(MIB) })
        .program(LATER * 5, Copy::new(0, 0..128 * MIB))
        .run();
    copies_well(&report, 0.8 * 8.0 * MIB as f64);
}

#[test]
fn copying_a_file_where_a_limiter_hands_out_quota() {
    let spec = PeerSpec { quota: Some(Duration::from_millis(500)), ..PeerSpec::new(2 * MIB) };
    let report = Scenario::whole("cp 128 MiB, 4 x 2 MiB/s with quota", 128 * MIB)
        .equal(4, spec)
        .program(LATER, Copy::new(0, 0..128 * MIB))
        .run();
    copies_well(&report, 0.8 * 8.0 * MIB as f64);
}

#[test]
fn a_player_at_4_of_6_mib() {
    let report = Scenario::large("player 4 of 6 MiB/s")
        .equal(3, PeerSpec::new(2 * MIB))
        .program(LATER, Player::new(0, 0..120 * MIB, 4 * MIB))
        .run();
    sound(&report);
    plays_well(&report, 0, Duration::from_secs_f64(1.0 / 6.0));
    bounded(&report);
}

#[test]
fn a_player_at_80_percent_of_the_swarm() {
    let report = Scenario::large("player 6.4 of 8 MiB/s")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Player::new(0, 0..160 * MIB, 64 * MIB / 10))
        .run();
    sound(&report);
    plays_well(&report, 0, Duration::from_secs_f64(1.0 / 8.0));
    bounded(&report);
}

#[test]
fn a_player_in_pieces_of_16_mib() {
    // A piece takes two seconds to come and four to play: the next must be begun in time.
    let report = Scenario::new("player 4 of 8 MiB/s, pieces of 16 MiB", 16 << 20, &[66_000 * MIB])
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Player::new(0, 0..128 * MIB, 4 * MIB))
        .run();
    sound(&report);
    plays_well(&report, 0, Duration::from_secs(2));
    bounded(&report);
}

#[test]
fn a_player_that_begins_in_the_middle() {
    let report = Scenario::large("player from the middle, 4 of 6 MiB/s")
        .equal(3, PeerSpec::new(2 * MIB))
        .program(LATER, Player::new(0, 500 * MIB + 300_000..580 * MIB, 4 * MIB))
        .run();
    sound(&report);
    plays_well(&report, 0, Duration::from_secs_f64(2.0 / 6.0));
    bounded(&report);
}

#[test]
fn two_players_far_apart() {
    let report = Scenario::large("two players, 2 x 3 of 8 MiB/s")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Player::new(0, 0..80 * MIB, 3 * MIB))
        .program(LATER * 2, Player::new(0, 600 * MIB..680 * MIB, 3 * MIB))
        .run();
    sound(&report);
    let piece = Duration::from_secs_f64(1.0 / 4.0);
    plays_well(&report, 0, piece);
    plays_well(&report, 1, piece);
    bounded(&report);
}

#[test]
fn a_player_beside_cp() {
    let report = Scenario::large("player 2 of 8 MiB/s beside cp")
        .equal(8, PeerSpec::new(MIB))
        .program(LATER, Copy::new(1, 0..120 * MIB))
        .program(LATER * 3, Player::new(0, 0..36 * MIB, 2 * MIB))
        .run();
    sound(&report);
    // It comes into a bulk read: what was on its way then comes first.
    plays_well(&report, 1, Duration::from_secs_f64(1.0 / 8.0) + Duration::from_secs(1));
    bounded(&report);
    // And the line stays full.
    assert!(report.idle() <= 0.1, "{report}");
}

#[test]
fn a_player_beside_cp_over_far_links() {
    // What is asked ahead for cp mustn't stand before the player's next piece. (At half the rate of the swarm, which
    // is its fair share, there is nothing to spare, and now and then a piece comes some tenths of a second late.)
    let spec = PeerSpec { delay: Duration::from_millis(50), ..PeerSpec::new(2 * MIB) };
    let report = Scenario::large("player 3 of 8 MiB/s beside cp, 50 ms")
        .equal(4, spec)
        .program(LATER, Copy::new(1, 0..64 * MIB))
        .program(LATER * 3, Player::new(0, 0..48 * MIB, 3 * MIB))
        .run();
    sound(&report);
    plays_well(&report, 1, Duration::from_secs_f64(1.0 / 8.0) + Duration::from_secs(1));
    bounded(&report);
}
