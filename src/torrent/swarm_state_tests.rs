//! When a torrent counts as stalled.

use super::*;
use crate::torrent::demands::STALLED;

/// What happens, and whether it is stalled after it.
type Step = (&'static str, fn(&mut World), bool);

#[test]
fn a_torrent_is_stalled_when_somebody_waits_and_no_block_comes() {
    const JUST: Duration = Duration::from_millis(1);
    let block = |w: &mut World| {
        let asked = w.asked.remove(0);
        w.hand_over(&asked, true);
    };
    let rows: [&[Step]; 5] = [
        // Nobody waits.
        &[("a seed", |w| w.seed(1), false), ("a minute", |w| w.tick(60 * S), false)],
        // Nobody to ask.
        &[
            ("a read", |w| w.want(7, &[0]), false),
            ("nine seconds", |w| w.tick(9 * S), false),
            ("one more", |w| w.tick(S), false),
            ("a moment more", |w| w.tick(JUST), true),
            ("a minute", |w| w.tick(60 * S), true),
            ("the reader goes", |w| w.apply(Event::Demands(vec![Demand::Withdraw { waiter: 7 }])), false),
        ],
        // The time counts from the last block, of whatever piece.
        &[
            ("a seed", |w| w.seed(1), false),
            (
                "two reads",
                |w| [(7, 0), (8, 1)].into_iter().for_each(|(id, piece)| w.want(id, &[piece])),
                false,
            ),
            ("nine seconds", |w| w.tick(9 * S), false),
            ("a block", block, false),
            ("nine seconds", |w| w.tick(9 * S), false),
            ("two more", |w| w.tick(2 * S), true),
            ("a block", block, false),
        ],
        // From the oldest of those that wait; who comes later lifts nothing.
        &[
            ("a read", |w| w.want(7, &[0]), false),
            ("six seconds", |w| w.tick(6 * S), false),
            ("another", |w| w.want(8, &[1]), false),
            ("five more", |w| w.tick(5 * S), true),
        ],
        // A block that came before anybody waited isn't one that was late.
        &[
            ("a seed", |w| w.seed(1), false),
            ("a read", |w| w.want(7, &[0]), false),
            ("its piece", |w| w.deliver_all(&[]), false),
            ("its hash", |w| assert!(w.hash_one(true)), false),
            ("an hour", |w| w.now += 3600 * S, false),
            ("another read", |w| w.want(8, &[1]), false),
            ("nine seconds", |w| w.tick(9 * S), false),
            ("two more", |w| w.tick(2 * S), true),
        ],
    ];
    assert_eq!(STALLED, 10 * S, "the rows are of that");
    for row in rows {
        let mut world = World::live(4);
        let mut story = String::new();
        for (what, happens, stalled) in row {
            happens(&mut world);
            story = format!("{story}, {what}");
            assert_eq!(world.swarm.demands().unwrap().is_stalled(world.now), *stalled, "{story}");
        }
    }
}
