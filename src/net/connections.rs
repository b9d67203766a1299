//! How many connections there may be, of all torrents together, and how fast they are made: counts, and tokens that stand
//! for what is counted.
//!
//! Parts: [`Counts`], pure, which knows what may be begun at a moment; [`Connections`], which all share; and the tokens
//! [`Dialing`], [`Open`] and [`Greeting`], each of which gives back what it counts when it is dropped. Whatever ends a task,
//! the sums are right.
//!
//! Flow: a torrent takes a token for each dial it decides on, which becomes that of the connection once there is one; the
//! listener takes one for each who comes, and another when it is known for which torrent. Nobody waits here: who gets none
//! tries again later. A torrent that is *eager*, since somebody reads of it or its metadata isn't known, may use what others
//! leave; and when it finds all taken, the others are asked to give some up ([`Connections::pressed`]). Who isn't eager dials
//! a little less than it takes of those who come: some can't be dialled.
//!
//! Not here: how many connections one torrent may have, and which of them stay (`torrent::admission`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use torrentfs_fs::lock::{Rank, RankedMutex};

/// Connections of all torrents, unless the user says otherwise. Five busy torrents have all they may; and of the 1,024
/// descriptors that a process often has, most are left.
pub const OPEN_MAX: usize = 400;
/// Dials under way. Home routers keep a table of what goes through them, and dials to the dead stay in it for long.
pub const HALF_OPEN_MAX: usize = 100;
/// Dials a second, for the same reason; and as many at once. It takes a second to try as many as a torrent ever has
/// connections.
pub const DIALS_PER_SECOND: u32 = 50;
/// Connections of one address that haven't said yet what they want, of the 64 that there may be: whoever opens many and says
/// nothing holds up few. Loopback, where every peer of a test lives, isn't counted.
pub const GREETINGS_PER_ADDRESS: usize = 8;
/// One part of so many of everything is kept for eager torrents.
const SPARED: usize = 8;
/// For so long after an eager torrent found no room the others give some up.
const PRESSED: Duration = Duration::from_secs(20);

/// Sums, and what they allow. Pure.
#[derive(Debug)]
pub struct Counts {
    max: usize,
    open: usize,
    half_open: usize,
    /// Dials that may begin at once, as of when.
    dials: f64,
    filled: Option<Instant>,
    /// By what counts as one address.
    greetings: HashMap<IpAddr, usize>,
    pressed: Option<Instant>,
}

impl Counts {
    /// Nothing is there. `max` is how many connections there may be.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            open: 0,
            half_open: 0,
            dials: f64::from(DIALS_PER_SECOND),
            filled: None,
            greetings: HashMap::new(),
            pressed: None,
        }
    }

    /// How many connections more there may be.
    fn room(&self, eager: bool) -> usize {
        let spared = if eager { 0 } else { self.max / SPARED };
        (self.max - spared).saturating_sub(self.open + self.half_open)
    }

    /// How many dials may begin now.
    fn may_dial(&mut self, eager: bool, now: Instant) -> usize {
        if let Some(past) = self.filled.replace(now).map(|at| now.saturating_duration_since(at)) {
            let most = f64::from(DIALS_PER_SECOND);
            self.dials = (self.dials + past.as_secs_f64() * most).min(most);
        }
        let for_who_comes = if eager { 0 } else { self.max / SPARED };
        let room = self.room(eager).saturating_sub(for_who_comes);
        let spared = if eager { 0 } else { HALF_OPEN_MAX / SPARED };
        let half_open = (HALF_OPEN_MAX - spared).saturating_sub(self.half_open);
        let spared = if eager { 0 } else { DIALS_PER_SECOND as usize / SPARED };
        room.min(half_open).min((self.dials as usize).saturating_sub(spared))
    }

    /// A dial begins, if it may.
    fn dial(&mut self, eager: bool, now: Instant) -> bool {
        let may = self.may_dial(eager, now) > 0;
        if may {
            self.half_open += 1;
            self.dials -= 1.0;
        } else if eager {
            self.press(now);
        }
        may
    }

    fn accept(&mut self, eager: bool, now: Instant) -> bool {
        let may = self.room(eager) > 0;
        self.open += usize::from(may);
        if eager && !may {
            self.press(now);
        }
        may
    }

    /// An eager torrent could use another connection.
    fn press(&mut self, now: Instant) {
        if self.room(true) == 0 {
            self.pressed = Some(now);
        }
    }

    fn greet(&mut self, ip: IpAddr) -> bool {
        if ip.to_canonical().is_loopback() {
            return true;
        }
        let count = self.greetings.entry(household(ip)).or_default();
        let may = *count < GREETINGS_PER_ADDRESS;
        *count += usize::from(may);
        may
    }

    fn greeted(&mut self, ip: IpAddr) {
        let house = household(ip);
        if let Some(count) = self.greetings.get_mut(&house) {
            *count -= 1;
            if *count == 0 {
                self.greetings.remove(&house);
            }
        }
    }
}

/// What of an address counts as one where connections are counted: a host with IPv6 has all of a /64.
pub fn household(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
        v4 => v4,
    }
}

/// The counts that all share; a clone is a handle on the same ones.
#[derive(Debug, Clone)]
pub struct Connections(Arc<RankedMutex<Counts>>);

impl Default for Connections {
    fn default() -> Self {
        Self::new(OPEN_MAX)
    }
}

impl Connections {
    /// Of all torrents together there may be `max` connections.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(RankedMutex::new(Rank::Leaf, "connections", Counts::new(max))))
    }

    /// How many dials may begin now.
    pub fn may_dial(&self, eager: bool, now: Instant) -> usize {
        self.0.lock().may_dial(eager, now)
    }

    /// A dial begins; `None` when none may.
    pub fn dial(&self, eager: bool, now: Instant) -> Option<Dialing> {
        let may = self.0.lock().dial(eager, now);
        may.then(|| Dialing(Some(self.clone())))
    }

    /// Somebody who came to a torrent is taken; `None` when there are enough.
    pub fn accept(&self, eager: bool, now: Instant) -> Option<Open> {
        let may = self.0.lock().accept(eager, now);
        may.then(|| Open(self.clone()))
    }

    /// Somebody comes, and will say what it wants; `None` when too many of its address haven't.
    pub fn greet(&self, ip: IpAddr) -> Option<Greeting> {
        let may = self.0.lock().greet(ip);
        may.then(|| Greeting(self.clone(), ip))
    }

    /// An eager torrent knows somebody to dial, and may not: if all connections are taken, others are to give some up.
    pub fn press(&self, now: Instant) {
        self.0.lock().press(now);
    }

    /// Whether an eager torrent has lately found all connections taken: who has some to spare gives one up.
    pub fn pressed(&self, now: Instant) -> bool {
        let pressed = self.0.lock().pressed;
        pressed.is_some_and(|at| now.saturating_duration_since(at) < PRESSED)
    }

    /// Connections, and dials under way.
    pub fn count(&self) -> (usize, usize) {
        let counts = self.0.lock();
        (counts.open, counts.half_open)
    }
}

/// A dial that is under way.
#[derive(Debug)]
pub struct Dialing(Option<Connections>);

impl Dialing {
    /// It came to a connection.
    pub fn connected(mut self) -> Option<Open> {
        let connections = self.0.take()?;
        {
            let mut counts = connections.0.lock();
            counts.half_open -= 1;
            counts.open += 1;
        }
        Some(Open(connections))
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if let Some(connections) = &self.0 {
            connections.0.lock().half_open -= 1;
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Open(Connections);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.lock().open -= 1;
    }
}

/// Somebody who hasn't said yet what it wants.
#[derive(Debug)]
pub struct Greeting(Connections, IpAddr);

impl Drop for Greeting {
    fn drop(&mut self) {
        if !self.1.to_canonical().is_loopback() {
            self.0.0.lock().greeted(self.1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn dials_are_bounded_in_number_and_in_time() {
        let now = Instant::now();
        let connections = Connections::new(1000);
        let begin = |eager, at| {
            let begun: Vec<_> = std::iter::from_fn(|| connections.dial(eager, at)).collect();
            begun
        };
        let first = begin(false, now);
        assert_eq!(first.len(), 44, "some are for who is in a hurry");
        let hurried = begin(true, now);
        assert_eq!(hurried.len(), 6);
        assert!(begin(true, now + Duration::from_millis(10)).is_empty());
        let more = begin(true, now + Duration::from_millis(200));
        assert_eq!(more.len(), 10);
        let many = begin(false, now + Duration::from_secs(60));
        assert_eq!(first.len() + hurried.len() + more.len() + many.len(), 88, "half-open");
        let rest = begin(true, now + Duration::from_secs(120));
        assert_eq!(rest.len(), 12);
        assert_eq!(connections.count(), (0, HALF_OPEN_MAX));
        drop((first, hurried, more, many, rest));
        assert_eq!(connections.count(), (0, 0));
    }

    #[test]
    fn connections_are_bounded_however_they_came() {
        let now = Instant::now();
        let connections = Connections::new(16);
        let mut dials: Vec<Dialing> = std::iter::from_fn(|| connections.dial(false, now)).collect();
        assert_eq!(dials.len(), 12, "some are for who comes");
        let mut open: Vec<Open> = std::iter::from_fn(|| connections.accept(false, now)).collect();
        assert_eq!(open.len(), 2);
        connections.press(now);
        assert!(!connections.pressed(now), "there is room for who is in a hurry");
        // However it comes.
        dials.extend(connections.dial(true, now));
        open.extend(connections.accept(true, now));
        assert_eq!(connections.count(), (3, 13));
        for by_dial in [true, false] {
            let later = now + if by_dial { Duration::ZERO } else { PRESSED };
            assert!(!connections.pressed(later));
            let none = if by_dial {
                connections.dial(true, later).is_none()
            } else {
                connections.accept(true, later).is_none()
            };
            assert!(none && connections.pressed(later) && !connections.pressed(later + PRESSED));
        }
        open.extend(dials.into_iter().filter_map(Dialing::connected));
        assert_eq!(connections.count(), (16, 0));
        drop(open);
        assert_eq!(connections.count(), (0, 0));
        // However few there may be, there may be that many.
        assert!(Connections::new(1).dial(false, now).is_some());
    }

    #[test]
    fn one_address_holds_few_greetings() {
        let connections = Connections::default();
        let of = |who: &str| std::iter::from_fn(|| connections.greet(ip(who))).take(100).collect::<Vec<_>>();
        let (one, other) = (of("1.2.3.4"), of("1.2.3.5"));
        assert_eq!((one.len(), other.len(), of("127.0.0.1").len(), of("::1").len()), (8, 8, 100, 100));
        let v6 = of("2001:db8::1");
        assert_eq!((v6.len(), of("2001:db8::2").len(), of("2001:db8:0:1::2").len()), (8, 0, 8));
        assert!(of("::ffff:1.2.3.4").is_empty());
        drop((one, other, v6));
        assert!(connections.0.lock().greetings.is_empty());
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_tokens(steps in proptest::collection::vec((0..5u8, any::<bool>(), 0..400u64), 0..300)) {
            let connections = Connections::new(20);
            let (mut dials, mut open, mut now) = (Vec::new(), Vec::new(), Instant::now());
            for (step, eager, ms) in steps {
                now += Duration::from_millis(ms);
                match step {
                    0 | 1 => dials.extend(connections.dial(eager, now)),
                    2 => open.extend(connections.accept(eager, now)),
                    3 => open.extend(dials.pop().and_then(Dialing::connected)),
                    _ => {
                        if eager { dials.pop(); } else { open.pop(); }
                    }
                }
                prop_assert_eq!(connections.count(), (open.len(), dials.len()));
                prop_assert!(open.len() + dials.len() <= 20);
            }
        }
    }
}
