//! Locks: what it costs that everybody who takes one writes it down, so that holders and waiters can be told (row L5).
//!
//! Nobody else wants the lock: what waiting costs is no matter of writing it down. One call is [`TAKINGS`] takings, so
//! that what the measuring itself costs is lost in it.

use divan::{Bencher, black_box};
use torrentfs_fs::lock::{Rank, RankedMutex};

/// Takings in one call.
const TAKINGS: u32 = 1_000;

/// A lock as all of the program's are: in builds for users its rank isn't looked at, and its holder is written down.
#[divan::bench]
fn take_1000_ranked(bencher: Bencher) {
    let lock = RankedMutex::new(Rank::Leaf, "measured", 0u64);
    bencher.bench(|| {
        for _ in 0..TAKINGS {
            *black_box(&lock).lock() += 1;
        }
    });
}

/// One of the standard library, of which nothing is known.
#[divan::bench]
#[allow(clippy::disallowed_types, reason = "what ours is set against")]
fn take_1000_plain(bencher: Bencher) {
    let lock = std::sync::Mutex::new(0u64);
    bencher.bench(|| {
        for _ in 0..TAKINGS {
            *black_box(&lock).lock().unwrap() += 1;
        }
    });
}
