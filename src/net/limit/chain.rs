//! Limits that hold at the same time: a torrent's own, and the program's for all torrents.

use std::net::IpAddr;
use std::sync::Arc;

use super::RateLimit;
use crate::net::hosts::is_private;

/// The limits that somebody is under, the lowest first. A clone is under the same ones.
#[derive(Clone)]
pub struct Chain {
    levels: Arc<[RateLimit]>,
}

impl Chain {
    /// Under these, from the lowest to the highest; under none, nothing ever waits.
    pub fn new(levels: impl IntoIterator<Item = RateLimit>) -> Self {
        Self { levels: levels.into_iter().collect() }
    }

    /// Whether any of them limits now.
    pub fn is_limited(&self) -> bool {
        self.levels.iter().any(RateLimit::is_limited)
    }

    /// How much to take at once for what comes bit by bit; `None` without a limit.
    pub(super) fn portion(&self) -> Option<u64> {
        self.levels.iter().filter_map(RateLimit::portion).min()
    }

    /// Waits until `n` bytes may pass all of them; see [`RateLimit::take`]. Dropping it leaves the line where it waits,
    /// and gives back what was taken below.
    pub async fn take(&self, n: u64) {
        let mut taken = Taken { passed: Vec::new(), n };
        for level in self.levels.iter() {
            if level.pass(n).await {
                taken.passed.push(level);
            }
        }
        taken.passed.clear();
    }

    /// Gives back what was taken and isn't used.
    pub fn give_back(&self, n: u64) {
        self.levels.iter().for_each(|level| level.give_back(n));
    }
}

/// What was taken of limits on the way; given back unless the way came to its end.
struct Taken<'a> {
    passed: Vec<&'a RateLimit>,
    n: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.passed.iter().for_each(|level| level.give_back(self.n));
    }
}

/// The limits on one torrent's peers, both ways.
#[derive(Clone)]
pub struct Limits {
    /// On what the torrent receives, and sends.
    pub torrent: (RateLimit, RateLimit),
    /// The same of all torrents together.
    pub program: (RateLimit, RateLimit),
    /// Peers of the local network are under no limit.
    pub spare_local: bool,
}

impl Limits {
    /// A torrent's, without any of its own.
    pub fn of_program(program: (RateLimit, RateLimit), spare_local: bool) -> Self {
        Self { torrent: (RateLimit::new(None), RateLimit::new(None)), program, spare_local }
    }

    /// What limits the receiving from a peer at this address.
    pub fn down(&self, peer: IpAddr) -> Chain {
        self.chain(peer, &self.torrent.0, &self.program.0)
    }

    /// What limits the sending to a peer at this address.
    pub fn up(&self, peer: IpAddr) -> Chain {
        self.chain(peer, &self.torrent.1, &self.program.1)
    }

    /// What limits the receiving from web servers, wherever they are.
    pub fn web(&self) -> Chain {
        Chain::new([self.torrent.0.clone(), self.program.0.clone()])
    }

    fn chain(&self, peer: IpAddr, torrent: &RateLimit, program: &RateLimit) -> Chain {
        match self.spare_local && is_private(peer) {
            true => Chain::new([]),
            false => Chain::new([torrent.clone(), program.clone()]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use futures_util::future::join_all;
    use futures_util::{FutureExt, poll};
    use tokio::time::{Instant, timeout};

    use super::*;

    const BLOCK: u64 = 16 * 1024;

    fn two(torrent: Option<u64>, program: Option<u64>) -> (Chain, RateLimit, RateLimit) {
        let (torrent, program) = (RateLimit::new(torrent), RateLimit::new(program));
        (Chain::new([torrent.clone(), program.clone()]), torrent, program)
    }

    /// Bytes that each of several takers, in takes of `n`, gets past a chain in `secs`.
    async fn taken(chains: &[&Chain], n: u64, secs: u64) -> Vec<u64> {
        let end = Instant::now() + Duration::from_secs(secs);
        join_all(chains.iter().map(|chain| async move {
            let mut sum = 0;
            while tokio::time::timeout_at(end, chain.take(n)).await.is_ok() {
                sum += n;
            }
            sum
        }))
        .await
    }

    /// Within 5 % of what is right.
    fn about(got: u64, wanted: u64) {
        assert!(got.abs_diff(wanted) * 20 <= wanted, "{got} where {wanted} is right");
    }

    #[tokio::test(start_paused = true)]
    async fn fifty_takers_keep_the_rate_of_either_level() {
        // (torrent, program): the lower one holds.
        for (torrent, program) in [
            (Some(2 << 20), Some(8 << 20)),
            (Some(8 << 20), Some(2 << 20)),
            (Some(2 << 20), None),
            (None, Some(2 << 20)),
        ] {
            let (chain, ..) = two(torrent, program);
            let each = taken(&[&chain; 50], BLOCK, 10).await;
            about(each.iter().sum(), 20 << 20);
            let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
            assert!(most - least <= 2 * BLOCK, "{each:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_long_run_takers_are_within_two_percent_of_each_other() {
        let (chain, ..) = two(Some(8 << 20), Some(4 << 20));
        let each = taken(&[&chain; 50], 4096, 60).await;
        about(each.iter().sum(), 240 << 20);
        let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
        assert!((most - least) * 50 <= *most, "{least} to {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn torrents_share_the_program_and_each_keeps_to_its_own() {
        let program = RateLimit::new(Some(3 << 20));
        let of = |own| Chain::new([RateLimit::new(own), program.clone()]);
        let (small, large) = (of(Some(1 << 20)), of(None));
        let chains: Vec<&Chain> = (0..50).map(|n| if n % 2 == 0 { &small } else { &large }).collect();
        let each = taken(&chains, BLOCK, 10).await;
        let of_small = each.iter().step_by(2).sum();
        about(of_small, 10 << 20);
        about(each.iter().sum::<u64>() - of_small, 20 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_at_the_program_holds_nobody_up_below() {
        let (chain, torrent, program) = two(Some(1 << 20), Some(0));
        let mut first = Box::pin(chain.take(1));
        assert!(poll!(&mut first).is_pending(), "it waits at the program");
        assert!(timeout(Duration::from_millis(1), torrent.take(1)).await.is_ok(), "its turn below is over");
        program.set(Some(1000));
        assert!(timeout(Duration::from_millis(1), first).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_at_the_higher_level_took_nothing_of_the_lower() {
        let (chain, torrent, program) = two(Some(1000), Some(1000));
        program.set(Some(0));
        let mut waiting = Box::pin(chain.take(1_000_000));
        assert!(poll!(&mut waiting).is_pending());
        let mut behind = Box::pin(torrent.take(1));
        assert!(poll!(&mut behind).is_pending(), "a thousand seconds of debt");
        drop(waiting);
        assert!(poll!(&mut behind).is_ready(), "given back, and the one at the head was told");
        program.set(Some(1000));
        assert!(timeout(Duration::from_millis(5), chain.take(1)).await.is_ok(), "nor of the higher");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_either_level_holds_for_who_is_waiting() {
        for level in 0..2 {
            let (chain, torrent, program) = two(Some(1000), Some(1000));
            let changed = [&torrent, &program][level];
            changed.set(Some(0));
            let mut all: Vec<_> = (0..50).map(|_| Box::pin(chain.take(10))).collect();
            for taker in &mut all {
                assert!(poll!(taker).is_pending());
            }
            tokio::time::advance(Duration::from_secs(1000)).await;
            assert!(poll!(&mut all[49]).is_pending(), "0 lets nothing pass");
            changed.set(Some(2000));
            let start = Instant::now();
            join_all(all).await;
            // 500 bytes, at the rate of the other.
            let took = start.elapsed();
            assert!((430..=510).contains(&took.as_millis()), "{took:?}");
        }
        let (chain, torrent, program) = two(Some(1), Some(1));
        chain.take(1000).await;
        let mut waiting = Box::pin(chain.take(1000));
        assert!(poll!(&mut waiting).is_pending());
        torrent.set(None);
        program.set(None);
        assert!(timeout(Duration::from_millis(1), waiting).await.is_ok());
        assert!(!chain.is_limited());
        assert!(chain.take(u64::MAX).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn peers_of_the_local_network_are_spared_if_that_is_wanted() {
        let program = || (RateLimit::new(Some(0)), RateLimit::new(Some(0)));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let passes = |chain: Chain| chain.take(1 << 30).now_or_never().is_some();
        let spare = Limits::of_program(program(), true);
        let strict = Limits::of_program(program(), false);
        for local in ["192.168.1.2", "10.0.0.1", "127.0.0.1", "fe80::1", "fd00::1", "::ffff:10.0.0.1"] {
            let local = ip(local);
            assert!(passes(spare.down(local)) && passes(spare.up(local)), "{local}");
            assert!(!passes(strict.down(local)) && !passes(strict.up(local)), "{local}");
        }
        for far in ["1.1.1.1", "2001:db8::1"] {
            assert!(!passes(spare.down(ip(far))) && !passes(spare.up(ip(far))), "{far}");
        }
        assert!(!passes(spare.web()));
        // A limit of the torrent's own holds, too; and one that comes later.
        let own = Limits::of_program((RateLimit::new(None), RateLimit::new(None)), true);
        let (down, up) = (own.down(ip("1.1.1.1")), own.up(ip("1.1.1.1")));
        assert!(passes(down.clone()) && passes(up.clone()));
        own.torrent.0.set(Some(0));
        assert!(!passes(down) && passes(up.clone()));
        own.program.1.set(Some(0));
        assert!(!passes(up));
    }
}
