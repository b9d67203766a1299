//! Nothing is left over time: readers that come, wait and go, hundreds of them, and what the program holds then.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::crew::Crew;
use super::worker::{Mix, Order, Until};
use super::world::World;
use crate::common::{Proc, Varied, memory};
use crate::needs;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Cycles before the first look: until then caches fill.
const BEFORE: usize = 50;
const CYCLES: usize = 200;
/// What the allocator may keep from hundreds of cycles; a leak of 64 KiB in each would be more.
const GROWTH: u64 = 8 * MIB;

/// Some that read what is here, and some that wait for what isn't until they are killed.
fn cycles(world: &mut World, count: usize) {
    let here = world.mount.path("here.bin");
    let missing = world.mount.path("missing.bin");
    let folder = tempfile::tempdir().expect("a folder");
    let truth = folder.path().join("truth");
    world.torrents[0].write(&truth, 0..16);
    for number in 0..count {
        let mut waiting = Proc::start("cat", [&missing]);
        let mut reading = Proc::start("cmp", [&here, &truth]);
        waiting.wait_parked();
        waiting.signal(*world.random.of(&[Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT]));
        waiting.ended(MINUTE);
        assert!(reading.ended(MINUTE).success(), "cycle {number}");
    }
}

#[test]
fn nothing_is_left_after_two_hundred_cycles() {
    needs!(Fuse);
    let cast = vec![(Varied::new("here.bin", 16, 1 << 16), 2), (Varied::new("missing.bin", 64, 1 << 16), 0)];
    let mut world = World::start(cast, &[]);
    let mut crew = Crew::new();
    let order = world.order(Mix::EachFile, Until::Operations(u64::MAX));
    crew.start(Order { under: Some("here.bin".to_owned()), ..order });
    world.watch(&mut crew, "fetching it", MINUTE, MINUTE);
    cycles(&mut world, BEFORE);
    world.settle();
    let before = memory(world.mount.pid(), "RssAnon");
    cycles(&mut world, CYCLES);
    world.settle();
    let after = memory(world.mount.pid(), "RssAnon");
    eprintln!("anonymous memory: {} KiB, {CYCLES} cycles later {} KiB", before / 1024, after / 1024);
    assert!(after < before + GROWTH, "{before} bytes became {after}");
    world.end();
}
