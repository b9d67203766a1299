//! Luck that can be repeated: numbers that follow from a seed, which is printed.

/// Numbers that differ from one to the next and are the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next one of all there are.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One from 0 to `n - 1`; 0 if `n` is.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// One of several.
    pub fn of<'a, T>(&mut self, several: &'a [T]) -> &'a T {
        &several[self.below(several.len() as u64) as usize]
    }
}

/// The seed of `TORRENTFS_SEED`, or one that differs from run to run; it is printed.
pub fn seed() -> u64 {
    let told = std::env::var("TORRENTFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    let seed = told.unwrap_or_else(|| Random(now ^ u64::from(std::process::id()) << 40).next());
    println!("TORRENTFS_SEED={seed}");
    seed
}
