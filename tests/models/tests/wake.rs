//! On what requesters of webseeds sleep, through every order: something to claim comes while one looks, falls asleep, or
//! is dropped.
//!
//! Whatever comes first: nobody sleeps while there is something for him, each thing is claimed once, and who is dropped
//! takes no one's wake-up with him.
#![allow(clippy::unwrap_used, reason = "a model fails by panicking")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::{Condvar, Mutex};
use loom::thread;
use torrentfs_models::wake::Level;

/// As in the models of parked reads.
const PREEMPTIONS: usize = 3;

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A thread that sleeps until it is woken.
struct Sleeper {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// Runs a future on this thread. A model in which nobody can go on fails.
fn wait_for<F: Future>(future: F) -> F::Output {
    let sleeper = Arc::new(Sleeper { woken: Mutex::new(false), changed: Condvar::new() });
    let waker = Waker::from(sleeper.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        let mut woken = sleeper.woken.lock().unwrap();
        while !*woken {
            woken = sleeper.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

/// Takes one of what there is.
fn claim(left: &mut u32) -> Option<()> {
    *left = left.checked_sub(1)?;
    Some(())
}

#[test]
fn w2_a_wake_between_look_and_sleep_is_not_lost() {
    model(|| {
        let level = Arc::new(Level::new("desk", 0));
        let requesters: Vec<_> = (0..2)
            .map(|_| {
                let level = level.clone();
                thread::spawn(move || wait_for(level.until(claim)))
            })
            .collect();
        // One after another, and only the change that brings something is told.
        level.change(|left| *left += 1, |left| *left > 0);
        level.change(|left| *left += 1, |left| *left > 0);
        requesters.into_iter().for_each(|requester| requester.join().unwrap());
        assert_eq!(level.with(|left| *left), 0);
    });
}

#[test]
fn w2_who_is_dropped_asleep_keeps_nobody_else_asleep() {
    model(|| {
        let level = Arc::new(Level::new("desk", 0));
        let other = level.clone();
        let dropped = thread::spawn(move || {
            // Looks once, and is dropped, asleep or with what it found.
            let mut once = pin!(other.until(claim));
            let found = once.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            if found {
                // It gives back what it held.
                other.change(|left| *left += 1, |left| *left > 0);
            }
        });
        let waiting = level.clone();
        let requester = thread::spawn(move || wait_for(waiting.until(claim)));
        level.change(|left| *left += 1, |left| *left > 0);
        dropped.join().unwrap();
        requester.join().unwrap();
        assert_eq!(level.with(|left| *left), 0);
    });
}
