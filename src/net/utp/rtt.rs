//! How long a round trip takes, and how long to wait before a packet counts as lost (BEP 29, RFC 6298).

use std::time::Duration;

/// The shortest time-out: BEP 29's, and well beyond what anybody delays an acknowledgement for.
pub const RTO_MIN: Duration = Duration::from_millis(500);
/// The longest: who hasn't answered by then is asked once more, in case the line was down.
pub const RTO_MAX: Duration = Duration::from_secs(16);
/// Before anything was measured.
pub const RTO_FIRST: Duration = Duration::from_secs(1);

/// What is known of a connection's round trips.
#[derive(Debug, Clone, Default)]
pub struct Rtt {
    measured: Option<(Duration, Duration)>,
    least: Option<Duration>,
}

impl Rtt {
    /// A packet that was sent once was acknowledged after this time.
    pub fn sample(&mut self, took: Duration) {
        self.least = Some(self.least.map_or(took, |least| least.min(took)));
        self.measured = Some(match self.measured {
            None => (took, took / 2),
            Some((mean, var)) => {
                let off = mean.abs_diff(took);
                ((mean * 7 + took) / 8, (var * 3 + off) / 4)
            }
        });
    }

    /// The smoothed round trip, once measured.
    pub fn mean(&self) -> Option<Duration> {
        self.measured.map(|(mean, _)| mean)
    }

    /// The shortest that was measured.
    pub fn least(&self) -> Option<Duration> {
        self.least
    }

    /// How long to wait before a packet counts as lost.
    pub fn timeout(&self) -> Duration {
        self.measured.map_or(RTO_FIRST, |(mean, var)| (mean + var * 4).clamp(RTO_MIN, RTO_MAX))
    }

    /// How long to wait before the last packet is sent once more, in case that it alone was lost: enough for an
    /// acknowledgement that is delayed. Nothing before anything was measured.
    pub fn probe(&self) -> Option<Duration> {
        self.measured.map(|(mean, var)| mean * 2 + var * 2 + Duration::from_millis(25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_follow_what_is_measured() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::default();
        assert_eq!((rtt.timeout(), rtt.mean(), rtt.probe()), (RTO_FIRST, None, None));
        rtt.sample(ms(100));
        assert_eq!((rtt.timeout(), rtt.mean()), (RTO_MIN, Some(ms(100))));
        for _ in 0..100 {
            rtt.sample(ms(1000));
        }
        let settled = rtt.timeout();
        assert!(settled > ms(990) && settled < ms(1100), "{settled:?}");
        assert_eq!(rtt.least(), Some(ms(100)));
        rtt.sample(Duration::from_secs(3600));
        assert_eq!(rtt.timeout(), RTO_MAX);
        (0..50).for_each(|n| rtt.sample(ms(if n % 2 == 0 { 100 } else { 900 })));
        assert!(rtt.timeout() > Duration::from_secs(1), "it varies: {:?}", rtt.timeout());
    }
}
