//! What the keeper decides, as tables: what it sees, and the step that follows.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::*;
use crate::torrent::room::Room;

const M: u64 = 1 << 20;
const G: u64 = 1 << 30;
const S: Duration = Duration::from_secs(1);

/// What a plan sees, on a clock of its own.
struct World {
    plan: Plan,
    quota: Arc<Quota>,
    now: Instant,
    need: Option<Need>,
    unit: u64,
    coming: u64,
    disk: Option<(DiskSpace, u64)>,
}

impl World {
    fn new(bound: Option<u64>) -> Self {
        let quota = Arc::new(Quota::new(bound));
        let (plan, now) = (Plan::default(), Instant::now());
        Self { plan, quota, now, need: None, unit: M, coming: 0, disk: None }
    }

    fn step(&mut self) -> Step {
        let view = View {
            now: self.now,
            quota: &self.quota,
            need: self.need,
            unit: self.unit,
            coming: self.coming,
            disk: self.disk,
            writing: false,
        };
        self.plan.step(&view)
    }

    fn needs(&mut self, bytes: u64, since: Option<Instant>) {
        self.need = Some(Need { bytes, largest: 0, since });
        self.plan.woken();
    }

    /// The disk has so much, of which 10 MiB are to stay free.
    fn look(&mut self, free: u64) -> bool {
        let space = DiskSpace { free, total: G };
        self.disk = Some((space, 10 * M));
        self.quota.disk_has(self.quota.mark(), free, 10 * M);
        let believed = self.plan.looked(space, self.unit, self.now);
        if !believed {
            self.quota.disk_is_full();
        }
        believed
    }

    /// Sleeps, then takes steps until the next sleep, with sources that give nothing: those that were tried, and what
    /// came then.
    fn in_vain(&mut self) -> (Vec<Source>, Step) {
        self.plan.woken();
        let mut tried = Vec::new();
        loop {
            match self.step() {
                Step::Give(source, _) => {
                    tried.push(source);
                    self.plan.gave(0);
                }
                step => return (tried, step),
            }
        }
    }
}

const USUAL: [Source; 3] = [Source::Dormant, Source::Pieces, Source::Crumbs];

#[test]
fn what_stays_free_by_default_is_a_share_with_bounds() {
    let rows = [
        (None, 1000 * G, 50 * G),
        (None, 10 * G, G),
        (None, 64 << 20, 16 << 20),
        (Some(0), 1000 * G, 0),
        (Some(7), 64 << 20, 7),
    ];
    for (asked, total, expected) in rows {
        assert_eq!(floor(asked, total), expected, "{asked:?} of {total}");
    }
}

#[test]
fn with_room_there_is_nothing_to_do_but_to_say_so() {
    let mut world = World::new(Some(100 * M));
    assert_eq!(world.step(), Step::Rest(LOOK));
    world.needs(5 * M, None);
    assert_eq!(world.step(), Step::Offer);
    assert_eq!(world.step(), Step::Rest(LOOK), "said once");
    world.plan.woken();
    assert_eq!(world.step(), Step::Offer, "somebody still waits");
}

#[test]
fn what_gives_is_gone_back_to_and_what_does_not_is_passed_over() {
    let mut world = World::new(Some(160 * M));
    world.quota.charge(160 * M);
    world.needs(2 * M, Some(world.now));
    // A row is what is tried, and what it gives.
    let rows = [
        (Source::Dormant, 1),
        (Source::Dormant, 0),
        (Source::Pieces, 1),
        (Source::Dormant, 0),
        (Source::Pieces, 0),
        (Source::Crumbs, 1),
        (Source::Dormant, 0),
        (Source::Pieces, 0),
        (Source::Crumbs, 0),
    ];
    for (n, (source, gives)) in rows.into_iter().enumerate() {
        assert_eq!(world.step(), Step::Give(source, 10 * M), "row {n}: a sixteenth of the bound at least");
        world.plan.gave(gives);
    }
    assert_eq!(world.step(), Step::Rest(LOOK_USE));
    world.quota.release(2 * M);
    assert_eq!(world.step(), Step::Offer);
}

#[test]
fn how_much_goes_in_one_go() {
    // A row is the bound, what is used, what is waited for, the largest piece, what is on its way, and how much goes.
    let rows = [
        (1600 * M, 1600 * M, 10 * M, M, 0, Some(64 * M)),
        (16 * M, 16 * M, M, M, 0, Some(M)),
        (16 * M, 24 * M, 0, M, 0, Some(8 * M)),
        // Of a small bound a quarter, or a piece; not everything for what came in a moment.
        (16 * M, 16 * M, 24 * M, M, 0, Some(4 * M)),
        (16 * M, 16 * M, 24 * M, 6 * M, 0, Some(6 * M)),
        // What is on its way is waited for.
        (16 * M, 16 * M, 4 * M, M, 3 * M, Some(M)),
        (16 * M, 16 * M, 4 * M, M, 4 * M, None),
    ];
    for (n, (bound, used, need, unit, coming, gives)) in rows.into_iter().enumerate() {
        let mut world = World::new(Some(bound));
        world.quota.charge(used);
        (world.unit, world.coming) = (unit, coming);
        if need > 0 {
            world.needs(need, None);
        }
        let expected = gives.map_or(Step::Rest(LOOK_USE), |bytes| Step::Give(Source::Dormant, bytes));
        assert_eq!(world.step(), expected, "row {n}");
    }
    let mut world = World::new(None);
    world.look(9 * M);
    assert_eq!(world.step(), Step::Give(Source::Dormant, 64 * M), "below the floor, nobody has to ask");
}

#[test]
fn what_is_in_use_is_tried_again_before_it_is_called_stuck_and_the_oldest_reader_gets_on() {
    let mut world = World::new(Some(16 * M));
    world.quota.charge(16 * M);
    let since = world.now;
    world.needs(M, Some(since));
    assert_eq!(world.in_vain(), (USUAL.to_vec(), Step::Rest(LOOK_USE)));
    // Asked again at once: it has just been tried.
    assert_eq!(world.in_vain(), (vec![], Step::Rest(LOOK_USE)));
    let younger = [Source::Dormant, Source::Pieces, Source::Younger(since), Source::Crumbs];
    for _ in 0..3 {
        world.now += LOOK_USE;
        assert_eq!(world.in_vain(), (younger.to_vec(), Step::Rest(LOOK_USE)));
    }
    world.now += LOOK_USE;
    let (tried, step) = world.in_vain();
    let Step::Stick(stuck) = step else { panic!("{step:?}") };
    assert_eq!(tried, younger);
    assert!(!stuck.disk && stuck.reason.contains("--cache-size"), "{stuck:?}");
    assert!(stuck.reason.contains("16.0 MiB") && stuck.reason.contains("1.0 MiB more"), "{stuck:?}");
    world.now += LOOK_USE;
    assert_eq!(world.in_vain(), (younger.to_vec(), Step::Rest(LOOK_USE)), "said once");
    world.quota.release(M);
    assert_eq!(world.in_vain(), (vec![], Step::Offer));
    // Nobody waits any more: neither is anything stuck, nor does anything go.
    let mut world = World::new(Some(16 * M));
    world.quota.charge(16 * M);
    assert_eq!(world.in_vain(), (vec![], Step::Rest(LOOK)));
}

#[test]
fn room_for_a_part_of_it_is_offered() {
    let mut world = World::new(Some(64 * M));
    world.quota.charge(62 * M);
    world.needs(8 * M, None);
    assert_eq!(world.in_vain(), (USUAL.to_vec(), Step::Offer), "two pieces of eight");
    assert_eq!(world.step(), Step::Rest(LOOK_USE));
    world.quota.charge(2 * M);
    for _ in 0..3 {
        world.now += LOOK_USE;
        assert!(matches!(world.in_vain(), (_, Step::Rest(_))));
    }
    world.now += LOOK_USE;
    assert!(matches!(world.in_vain(), (_, Step::Stick(_))));
}

#[test]
fn a_full_disk_is_stuck_at_once_until_there_is_room_for_a_piece() {
    let mut world = World::new(None);
    world.unit = 4 * M;
    world.look(10 * M);
    world.needs(2 * M, None);
    let (tried, step) = world.in_vain();
    let Step::Stick(stuck) = step else { panic!("{step:?}") };
    assert_eq!(tried, USUAL);
    assert!(stuck.disk && stuck.reason.contains("--min-free-space"), "{stuck:?}");
    assert!(stuck.reason.contains("10.0 MiB are free, of which 10.0 MiB"), "{stuck:?}");
    assert_eq!(world.in_vain(), (vec![], Step::Rest(LOOK_DISK)));
    // A row is what is free a second later, and whether that changes anything. Nobody waits: fetching has stopped.
    world.need = None;
    for (free, goes_on) in [(10 * M, false), (9 * M, false), (13 * M, false), (14 * M, true)] {
        world.now += S;
        assert!(world.look(free));
        let expected = if goes_on { (vec![], Step::Offer) } else { (USUAL.to_vec(), Step::Rest(S)) };
        assert_eq!(world.in_vain(), expected, "{free}");
    }
    // Once it goes on, small change is enough.
    world.now += S;
    world.look(13 * M);
    world.needs(2 * M, None);
    assert_eq!(world.step(), Step::Offer);
}

#[test]
fn a_write_that_failed_is_believed_more_than_the_disk() {
    let mut world = World::new(None);
    world.look(G);
    for pause in [1, 2, 4, 8, 16, 32, 32] {
        world.plan.found_full(0, world.now);
        assert!(!world.look(G), "it says that it has room");
        let (tried, step) = world.in_vain();
        assert_eq!(tried, USUAL, "something may go");
        assert!(matches!(&step, Step::Stick(stuck) if stuck.disk), "{step:?}");
        for _ in 1..pause {
            world.now += S;
            assert!(!world.look(G));
            assert!(matches!(world.in_vain(), (_, Step::Rest(_))), "{pause}");
        }
        world.now += S;
        assert_eq!(world.in_vain(), (vec![], Step::Offer), "tried after {pause} s");
    }
    // It worked for a while: then it is a new failure.
    world.plan.found_full(1, world.now);
    assert!(!world.look(G));
    assert!(matches!(world.in_vain(), (_, Step::Stick(_))));
    // It has more than before: that is new room.
    assert!(!world.look(G + M - 1) && world.look(G + M));
    assert_eq!(world.in_vain(), (vec![], Step::Offer));
    // Something went: that is room, too.
    world.plan.found_full(2, world.now);
    assert!(!world.look(G));
    world.plan.woken();
    assert!(matches!(world.step(), Step::Give(Source::Dormant, _)));
    world.plan.gave(M);
    assert!(world.look(G));
    assert_eq!(world.in_vain(), (vec![], Step::Rest(LOOK)));
}

#[test]
fn a_piece_that_never_fits_is_told() {
    let mut world = World::new(Some(16 * M));
    world.unit = 20 * M;
    world.needs(20 * M, None);
    assert_eq!(world.in_vain().1, Step::Rest(LOOK_USE));
    world.now += PATIENCE;
    let (_, step) = world.in_vain();
    let Step::Stick(stuck) = step else { panic!("{step:?}") };
    assert!(stuck.reason.contains("a single piece takes 20.0 MiB"), "{stuck:?}");
    assert!(reason(&View { disk: None, ..view(&world) }, true).reason.contains("can't be asked"));
}

fn view(world: &World) -> View<'_> {
    let World { quota, now, need, unit, coming, disk, .. } = world;
    View { now: *now, quota, need: *need, unit: *unit, coming: *coming, disk: *disk, writing: false }
}

#[test]
fn when_the_disk_is_looked_at() {
    let mut world = World::new(None);
    assert!(world.plan.look_due(&view(&world), 0), "it never was");
    world.look(20 * M);
    // A row is how long ago that is, what was written since, what is waited for, and whether it is looked at again.
    let rows = [
        (Duration::ZERO, 0, 0, false),
        (S, 0, 0, false),
        (S, 1, 0, true),
        (S / 2, 1, 0, false),
        (Duration::ZERO, LOOK_AFTER, 0, true),
        (LOOK, 0, 0, true),
        // It has room for ten.
        (S / 2, 0, 10 * M, false),
        (S / 2, 0, 11 * M, true),
        (Duration::ZERO, 0, 11 * M, false),
    ];
    let looked = world.now;
    for (age, written, need, due) in rows {
        world.now = looked + age;
        world.need = (need > 0).then_some(Need { bytes: need, largest: 0, since: None });
        assert_eq!(world.plan.look_due(&view(&world), written), due, "{age:?} {written} {need}");
    }
    // While it is full, each second.
    world.now = looked;
    world.look(M);
    assert!(matches!(world.in_vain(), (_, Step::Stick(_))));
    for (age, due) in [(S / 2, false), (S, true)] {
        world.now = looked + age;
        assert_eq!(world.plan.look_due(&view(&world), 0), due);
    }
}

#[test]
fn a_piece_larger_than_its_torrents_others_is_made_room_for() {
    // 63 MiB may be kept, one piece of 32 MiB is; another waits, of a torrent whose first piece takes next to nothing.
    let mut world = World::new(Some(63 * M));
    world.quota.charge(32 * M);
    world.need = Some(Need { bytes: 32 * M, largest: 32 * M, since: None });
    let room = Room::new(world.quota.clone());
    room.ask(1, Need { bytes: 32 * M, largest: 32 * M, since: None });
    world.unit = room.unit();
    assert!(world.quota.reserve(32 * M).is_none());
    for _ in 0..3 {
        // It waits again after each offer, which wakes the keeper.
        world.plan.woken();
        let step = world.step();
        assert!(matches!(step, Step::Give(..)), "offered what isn't enough, for ever: {step:?}");
    }
}
