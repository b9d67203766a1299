//! The state that tasks sleep on. Deliberately not here: its races; those are loom's (`tests/models`).

use futures_util::{FutureExt, poll};

use crate::webseed::wake::Level;

#[tokio::test]
async fn who_waits_is_woken_by_a_change_and_leaves_nothing_when_dropped() {
    let level = Level::new("test", 0);
    let mut one = Box::pin(level.until(|n| (*n >= 2).then_some(*n)));
    let mut gone = Box::pin(level.until(|n| (*n >= 2).then_some(*n)));
    assert!(poll!(&mut one).is_pending() && poll!(&mut gone).is_pending());
    drop(gone);
    level.with(|n| *n += 1);
    level.change(|n| *n += 1, |n| *n >= 3);
    assert!(poll!(&mut one).is_ready(), "it is seen all the same");
    let mut one = Box::pin(level.until(|n| (*n >= 3).then_some(*n)));
    assert!(poll!(&mut one).is_pending());
    level.change(|n| *n += 1, |n| *n >= 3);
    assert_eq!(one.as_mut().now_or_never(), Some(3));
    assert_eq!(level.sleepers(), 0);
}
