//! Scenarios of trouble: peers that stall, leave, choke, or come late.

use std::time::Duration;

use super::clock::Rng;
use super::link::{Holds, PeerSpec};
use super::programs::{Copy, Player, Script, Step};
use super::scenario::{LATER, MIB, Scenario};
use super::seeking::sound;

const S: Duration = Duration::from_secs(1);

#[test]
fn a_player_while_peers_stall_in_mid_piece() {
    // Two of eight go silent while they owe blocks; six are left, half as much again as it plays.
    let peers = (0..8).map(|n| PeerSpec {
        stalls: if n < 2 { vec![(S * 4 + S / 10 * n, S * 60)] } else { Vec::new() },
        ..PeerSpec::new(MIB)
    });
    let report = Scenario::large("player 4 of 8 MiB/s, 2 of 8 peers stall")
        .peers(peers)
        .program(LATER, Player::new(0, 0..80 * MIB, 4 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].stalls.is_empty(), "{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
}

#[test]
fn seeks_while_peers_stall_in_mid_piece() {
    // One peer after the other goes silent for six seconds. The first seek that meets one waits for its blocks to
    // be asked of another, not for the peer; the others ask it for nothing that is urgent.
    let peers = (0..8).map(|n| PeerSpec {
        stalls: (0..3).map(|k| (S * 8 + S * 6 * n + S * 48 * k + S / 20, S * 6)).collect(),
        ..PeerSpec::new(MIB)
    });
    let report = Scenario::gib("seeks, one of 8 peers always silent")
        .peers(peers)
        .program(LATER, Script::seeker(0, 1024 * MIB, 4096..131_072, (8, 80), S / 2, 1))
        .run();
    sound(&report);
    let figures = &report.programs[0];
    assert!(figures.seek_ratio(0.5) <= 1.3, "{report}");
    assert!(figures.seek(1.0) <= S, "{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
}

#[test]
fn copying_while_peers_stall_in_mid_piece() {
    let peers = (0..8).map(|n| PeerSpec {
        stalls: if n < 2 { vec![(S * 4, S * 60)] } else { Vec::new() },
        ..PeerSpec::new(MIB)
    });
    let report = Scenario::whole("cp 96 MiB, 2 of 8 peers stall", 96 * MIB)
        .peers(peers)
        .program(LATER, Copy::new(0, 0..96 * MIB))
        .run();
    sound(&report);
    assert!(report.overhead() <= 1.05, "{report}");
    assert!(report.programs[0].rate() as f64 >= 0.85 * 6.0 * MIB as f64, "{report}");
}

#[test]
fn a_player_while_peers_leave() {
    let peers =
        (0..8u32).map(|n| PeerSpec { leaves: (n < 4).then_some(S * (n + 3) + S / 3), ..PeerSpec::new(MIB) });
    let report = Scenario::large("player 3 of 8 MiB/s, 4 of 8 peers leave")
        .peers(peers)
        .program(LATER, Player::new(0, 0..60 * MIB, 3 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].stalls.is_empty(), "{report}");
    assert!(report.duplicates() <= 0.01, "{report}");
}

#[test]
fn a_player_while_all_choke_for_10_s() {
    let spec = PeerSpec { chokes: vec![(S * 5, S * 10)], ..PeerSpec::new(MIB) };
    for fast in [true, false] {
        let report = Scenario::large("player 4 of 8 MiB/s, all choke for 10 s")
            .equal(8, PeerSpec { fast, ..spec.clone() })
            .program(LATER, Player::new(0, 0..80 * MIB, 4 * MIB))
            .run();
        sound(&report);
        // What was read ahead carries it a while; then it stalls once, and not longer than the choke lasts and half
        // its buffer takes.
        let stalls = &report.programs[0].stalls;
        assert!(stalls.len() <= 1, "{report}");
        assert!(stalls.iter().sum::<Duration>() <= S * 10 + S / 2, "{report}");
        assert!(report.duplicates() <= 0.02, "{report}");
    }
}

#[test]
fn a_player_while_half_choke_for_10_s() {
    let peers = (0..8).map(|n| PeerSpec {
        chokes: if n < 4 { vec![(S * 5, S * 10)] } else { Vec::new() },
        ..PeerSpec::new(MIB)
    });
    let report = Scenario::large("player 3 of 8 MiB/s, half choke for 10 s")
        .peers(peers)
        .program(LATER, Player::new(0, 0..60 * MIB, 3 * MIB))
        .run();
    sound(&report);
    assert!(report.programs[0].stalls.is_empty(), "{report}");
    assert!(report.duplicates() <= 0.02, "{report}");
}

#[test]
fn a_seek_that_only_a_late_seed_can_answer() {
    // Four have a half each; nobody has every fifth piece until a seed comes after five seconds.
    let part = |holds| PeerSpec { holds: Holds::Some(holds), ..PeerSpec::new(MIB) };
    let report = Scenario::gib("seeks, a seed joins after 5 s")
        .equal(2, part(|piece| piece % 5 != 0 && piece % 2 == 0))
        .equal(2, part(|piece| piece % 5 != 0 && piece % 2 == 1))
        .equal(1, PeerSpec { joins: S * 5, ..PeerSpec::new(4 * MIB) })
        .program(LATER, Script::new([Step::Open(0, 0), Step::Read(0, 100 * MIB, 65536)]))
        .program(LATER * 2, Script::new([Step::Open(0, 0), Step::Seek(0, 101 * MIB, 65536)]))
        .program(LATER * 6, Script::seeker(0, 1024 * MIB, 4096..65536, (8, 40), S / 2, 9))
        .run();
    sound(&report);
    // The first waits for the seed: two round trips to connect, one to be let in, one to ask, and the piece from it
    // alone. The others had two peers of 1 MiB/s each at first.
    let first = report.programs[0].took.unwrap();
    assert!(first <= S * 4 + S / 4 * 13 / 10 + Duration::from_millis(120), "{first:?}\n{report}");
    let alone = report.programs[1].seek(1.0);
    assert!(alone <= S / 2 * 15 / 10, "{alone:?}\n{report}");
    // A piece comes from the seed and the two that have it, 6 MiB/s, or from the seed alone, 4 of them.
    let later = report.programs[2].seek(0.5);
    assert!(later <= (S / 6 + Duration::from_millis(40)) * 13 / 10, "{later:?}\n{report}");
    assert!(report.duplicates() <= 0.05, "{report}");
}

#[test]
fn copying_from_peers_that_have_parts_of_it() {
    let part = |holds| PeerSpec { holds: Holds::Some(holds), ..PeerSpec::new(MIB) };
    let report = Scenario::whole("cp 96 MiB, 8 peers with half each", 96 * MIB)
        .equal(4, part(|piece| piece % 2 == 0))
        .equal(4, part(|piece| piece % 2 == 1))
        .program(LATER, Copy::new(0, 0..96 * MIB))
        .run();
    sound(&report);
    assert!(report.overhead() <= 1.02, "{report}");
    assert!(report.programs[0].rate() as f64 >= 0.85 * 8.0 * MIB as f64, "{report}");
}

#[test]
fn seeks_while_copying_survives_everything_at_once() {
    // Peers come, stall, choke and leave, over links of all kinds; what is read arrives all the same.
    let mut rng = Rng::new(23);
    let peers: Vec<PeerSpec> = (0..16u32)
        .map(|n| PeerSpec {
            delay: Duration::from_millis(5 + rng.below(150)),
            jitter: Duration::from_millis(rng.below(40)),
            quota: (n % 5 == 0).then_some(S / 2),
            fast: n % 3 != 0,
            reqq: 20 + rng.below(300) as u32,
            lets_in_after: Duration::from_millis(rng.below(5000)),
            joins: Duration::from_millis(rng.below(10_000)),
            leaves: (n % 4 == 0).then(|| Duration::from_secs(12 + rng.below(10))),
            stalls: vec![(
                Duration::from_millis(5000 + rng.below(20_000)),
                Duration::from_millis(rng.below(6000)),
            )],
            chokes: vec![(
                Duration::from_millis(5000 + rng.below(20_000)),
                Duration::from_millis(rng.below(9000)),
            )],
            ..PeerSpec::new(MIB / 8 + rng.below(2 * MIB))
        })
        .collect();
    let report = Scenario::gib("everything at once")
        .peers(peers)
        .program(LATER, Copy::new(0, 0..64 * MIB))
        .program(LATER, Script::seeker(0, 1024 * MIB, 4096..131_072, (8, 40), S / 4, 2))
        .run();
    sound(&report);
    assert!(report.duplicates() <= 0.1, "{report}");
}
