//! When which torrents are announced to the local network, and which announcements of others count. Pure.
//!
//! Each torrent is announced at once, and then every [`INTERVAL`]; sooner when peers are wanted, when the network has
//! changed, or when somebody is heard who wasn't there before: he doesn't know of us, and may be the one who dials when
//! we, being complete, don't. Never twice within [`AGAIN`] (BEP 14), and who was heard is no news again while he goes on
//! announcing. So two who hear each other don't go on answering, and a stranger who makes up senders is worth one
//! announcement a minute.
//!
//! Few torrents get a packet each, since some clients read one name of a packet only; many share packets. Packets keep
//! [`GAP`] between them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::message::{HASHES_MAX, Search};

/// Between two announcements of a torrent, when nothing asks for one sooner.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Added to it, by torrent, so that those of one start don't stay together.
const SPREAD: Duration = Duration::from_secs(30);
/// Between two announcements of a torrent, whatever asks for one.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two packets: what a start with many torrents, or a stranger, can make us send.
const GAP: Duration = Duration::from_millis(200);
/// The longest wait before an answer. All who have the torrent hear the same packet, and not all should answer at once.
const ANSWER: Duration = Duration::from_secs(1);
/// With no more than this to be announced, each torrent gets a packet of its own.
const SINGLES: usize = 16;
/// Others that are remembered for each torrent; of more, none is news.
const OTHERS_MAX: usize = 32;
/// Who is silent for this long is forgotten: two announcements were missed.
const FORGOTTEN: Duration = Duration::from_secs(11 * 60);
/// Packets that are looked at in a second. A network with more has a flood.
const HEARD_MAX: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// What is announced, and when.
#[derive(Debug)]
pub struct Plan {
    /// By it our own packets are known, and our answers fall at another moment than others'.
    cookie: u32,
    followed: BTreeMap<[u8; 20], Followed>,
    /// Follows so far.
    follows: u64,
    /// No packet before this.
    quiet_until: Option<Instant>,
    /// Packets that came since then.
    heard: (Instant, u32),
}

#[derive(Debug)]
struct Followed {
    number: u64,
    /// Where peers reach us; 0 when they don't, and it isn't announced.
    port: u16,
    wanted: bool,
    due: Instant,
    said: Option<Instant>,
    /// Who else announces it, and when last.
    others: Vec<(u64, Instant)>,
}

impl Followed {
    /// It is to be announced soon, at this moment or as soon as may be.
    fn hurry(&mut self, at: Instant) {
        let soonest = self.said.map_or(at, |said| (said + AGAIN).max(at));
        self.due = self.due.min(soonest);
    }

    /// Notes somebody who announces it, too; true when he is new.
    fn meet(&mut self, other: u64, now: Instant) -> bool {
        self.others.retain(|(_, heard)| now.saturating_duration_since(*heard) < FORGOTTEN);
        if let Some((_, heard)) = self.others.iter_mut().find(|(known, _)| *known == other) {
            *heard = now;
            return false;
        }
        let room = self.others.len() < OTHERS_MAX;
        if room {
            self.others.push((other, now));
        }
        room
    }
}

impl Plan {
    /// Nothing is followed yet.
    pub fn new(cookie: u32, now: Instant) -> Self {
        Self { cookie, followed: BTreeMap::new(), follows: 0, quiet_until: None, heard: (now, 0) }
    }

    /// What our packets are marked with.
    pub fn cookie(&self) -> String {
        format!("{:08x}", self.cookie)
    }

    /// Follows a torrent from now on, announced with this port unless that is 0. Returns a number for
    /// [`Plan::unfollow`]; who followed it before doesn't any more.
    pub fn follow(&mut self, hash: [u8; 20], port: u16, now: Instant) -> u64 {
        self.follows += 1;
        let number = self.follows;
        let said = self.followed.get(&hash).and_then(|before| before.said);
        let mut followed =
            Followed { number, port, wanted: false, due: now + INTERVAL, said, others: Vec::new() };
        followed.hurry(now);
        self.followed.insert(hash, followed);
        number
    }

    /// Ends that, unless somebody has followed it anew since.
    pub fn unfollow(&mut self, hash: &[u8; 20], number: u64) {
        if self.followed.get(hash).is_some_and(|followed| followed.number == number) {
            self.followed.remove(hash);
        }
    }

    /// Whether peers are wanted for a torrent: when they begin to be, it is announced.
    pub fn want(&mut self, hash: &[u8; 20], wanted: bool, now: Instant) {
        if let Some(followed) = self.followed.get_mut(hash) {
            if wanted && !std::mem::replace(&mut followed.wanted, wanted) {
                followed.hurry(now);
            }
            followed.wanted = wanted;
        }
    }

    /// The network is another one: all is announced anew.
    pub fn network_changed(&mut self, now: Instant) {
        self.followed.values_mut().for_each(|followed| followed.hurry(now));
    }

    /// When [`Plan::take`] has something next.
    pub fn next(&self) -> Option<Instant> {
        let due = self
            .followed
            .values()
            .filter(|followed| followed.port != 0)
            .map(|followed| followed.due)
            .min()?;
        Some(self.quiet_until.map_or(due, |quiet| quiet.max(due)))
    }

    /// The packet that is due now, if one is: its port, and its torrents.
    pub fn take(&mut self, now: Instant) -> Option<(u16, Vec<[u8; 20]>)> {
        if self.next().is_none_or(|next| next > now) {
            return None;
        }
        let mut due: Vec<_> = self
            .followed
            .iter_mut()
            .filter(|(_, followed)| followed.port != 0 && followed.due <= now)
            .collect();
        due.sort_by_key(|(_, followed)| followed.due);
        let most = if due.len() <= SINGLES { 1 } else { HASHES_MAX };
        let port = due.first()?.1.port;
        let mut hashes = Vec::new();
        for (hash, followed) in due.into_iter().filter(|(_, followed)| followed.port == port).take(most) {
            followed.said = Some(now);
            followed.due = now + INTERVAL + SPREAD.mul_f64(fraction(hash, 0));
            hashes.push(*hash);
        }
        self.quiet_until = Some(now + GAP);
        Some((port, hashes))
    }

    /// Until when nothing is listened to: enough has come in this second.
    pub fn deaf_until(&self, now: Instant) -> Option<Instant> {
        let (since, count) = self.heard;
        (count >= HEARD_MAX && now < since + SECOND).then_some(since + SECOND)
    }

    /// A packet came from this address, which says this if anything. Returns those of its torrents that are followed.
    pub fn heard(&mut self, said: Option<&Search>, from: IpAddr, now: Instant) -> Vec<[u8; 20]> {
        if now >= self.heard.0 + SECOND {
            self.heard = (now, 0);
        }
        self.heard.1 = self.heard.1.saturating_add(1);
        if self.heard.1 > HEARD_MAX {
            return Vec::new();
        }
        let (own, cookie) = (self.cookie(), self.cookie);
        let Some(said) = said.filter(|said| said.cookie.as_deref() != Some(own.as_str())) else {
            return Vec::new();
        };
        // A program that was started anew has another cookie, and knows nothing of us.
        let mut other = DefaultHasher::new();
        (from, &said.cookie).hash(&mut other);
        let other = other.finish();
        let mut ours = Vec::new();
        for hash in &said.hashes {
            let Some(followed) = self.followed.get_mut(hash) else { continue };
            ours.push(*hash);
            if followed.meet(other, now) {
                followed.hurry(now + ANSWER.mul_f64(fraction(hash, cookie)));
            }
        }
        ours
    }
}

/// A number from 0 to 1 that a torrent has, with a salt.
fn fraction(hash: &[u8; 20], salt: u32) -> f64 {
    let [a, b, c, d, ..] = *hash;
    let mixed = (u32::from_be_bytes([a, b, c, d]) ^ salt).wrapping_mul(0x9e37_79b1);
    f64::from(mixed) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn hash(n: u16) -> [u8; 20] {
        let mut hash = [9; 20];
        hash[..2].copy_from_slice(&n.to_be_bytes());
        hash
    }

    fn search(hashes: &[[u8; 20]], cookie: &str) -> Search {
        Search { port: 1, hashes: hashes.to_vec(), cookie: Some(cookie.to_owned()) }
    }

    /// All packets up to then, with when each is sent.
    fn play(plan: &mut Plan, start: Instant, until: Duration) -> Vec<(Duration, Vec<[u8; 20]>)> {
        let mut sent = Vec::new();
        while let Some(next) = plan.next().filter(|next| *next <= start + until) {
            let (port, hashes) = plan.take(next).expect("it said so");
            assert_eq!(port, 6881);
            sent.push((next - start, hashes));
        }
        sent
    }

    const X: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_torrent_is_announced_at_once_and_every_five_minutes() {
        let start = Instant::now();
        let mut plan = Plan::new(7, start);
        assert_eq!((plan.next(), plan.take(start)), (None, None));
        plan.follow(hash(1), 6881, start);
        let sent = play(&mut plan, start, secs(3600));
        assert_eq!(sent[0], (secs(0), vec![hash(1)]));
        assert!((10..=12).contains(&(sent.len() - 1)), "{}", sent.len());
        for pair in sent.windows(2) {
            let pause = pair[1].0 - pair[0].0;
            assert!(pause >= INTERVAL && pause <= INTERVAL + SPREAD, "{pause:?}");
        }
    }

    #[test]
    fn nothing_makes_it_announce_a_torrent_twice_in_a_minute() {
        let start = Instant::now();
        let at = |n| start + secs(n);
        // What happens, and when the next announcement is.
        type Happens = fn(&mut Plan, Instant);
        let rows: [(Happens, bool); 5] = [
            (|plan, now| plan.want(&hash(1), true, now), true),
            (|plan, now| plan.network_changed(now), true),
            (|plan, now| _ = plan.follow(hash(1), 6881, now), true),
            (|plan, now| _ = plan.heard(Some(&search(&[hash(1)], "other")), X, now), true),
            (|plan, now| plan.want(&hash(1), false, now), false),
        ];
        for (row, (happens, hurries)) in rows.into_iter().enumerate() {
            let mut plan = Plan::new(7, start);
            plan.follow(hash(1), 6881, start);
            assert!(plan.take(start).is_some());
            happens(&mut plan, at(10));
            let next = plan.next().unwrap();
            assert_eq!(next == start + AGAIN, hurries, "row {row}: {:?}", next - start);
            assert!(hurries || next >= start + INTERVAL, "row {row}");
        }
        // Later than that it is said at once; peers that are wanted on and on are no reason again.
        let mut plan = Plan::new(7, start);
        plan.follow(hash(1), 6881, start);
        plan.take(start);
        plan.want(&hash(1), true, at(100));
        assert_eq!(plan.next(), Some(at(100)));
        plan.take(at(100));
        plan.want(&hash(1), true, at(200));
        assert!(plan.next() >= Some(at(400)));
    }

    #[test]
    fn who_announces_what_we_have_is_answered_and_two_do_not_go_on_answering() {
        let start = Instant::now();
        let (mut a, mut b) = (Plan::new(1, start), Plan::new(2, start));
        a.follow(hash(1), 6881, start);
        b.follow(hash(1), 6881, start);
        b.follow(hash(2), 6881, start);
        _ = (a.take(start), b.take(start), b.take(start + GAP));
        // Two minutes on, A says it anew; each hears the other from there on.
        a.network_changed(start + secs(120));
        let (mut said, end) = ([0, 0], start + secs(120) + secs(290));
        loop {
            let (from_a, next) = match (a.next(), b.next()) {
                (Some(x), Some(y)) if x <= y => (true, x),
                (_, Some(y)) => (false, y),
                _ => unreachable!("both follow"),
            };
            if next > end {
                break;
            }
            let (from, to) = if from_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let (_, hashes) = from.take(next).unwrap();
            said[usize::from(!from_a)] += usize::from(hashes == [hash(1)]);
            to.heard(Some(&search(&hashes, &from.cookie())), X, next);
        }
        // A spoke and met B, whom it tells when a minute is over; B has met A meanwhile, and so it ends.
        assert_eq!(said, [2, 1], "one question, one answer, and one more for who was new");
        assert!(a.heard(Some(&search(&[hash(1), hash(2)], "x")), X, end) == [hash(1)], "of what it has");
    }

    #[test]
    fn made_up_senders_are_bounded_and_who_was_long_silent_is_news() {
        let start = Instant::now();
        let mut plan = Plan::new(7, start);
        plan.follow(hash(1), 6881, start);
        let met = |plan: &mut Plan, cookie: &str, now| {
            plan.followed.get_mut(&hash(1)).unwrap().due = now + INTERVAL;
            plan.heard(Some(&search(&[hash(1)], cookie)), X, now);
            plan.followed[&hash(1)].due < now + INTERVAL
        };
        let news = (0..90).filter(|n| met(&mut plan, &n.to_string(), start)).count();
        assert_eq!((news, plan.followed[&hash(1)].others.len()), (OTHERS_MAX, OTHERS_MAX));
        assert!(!met(&mut plan, "0", start + secs(300)), "it goes on announcing");
        assert!(!met(&mut plan, "0", start + secs(900)));
        assert!(met(&mut plan, "1", start + secs(900)));
    }

    #[test]
    fn our_own_packets_and_a_flood_count_for_nothing() {
        let start = Instant::now();
        let mut plan = Plan::new(0xabc, start);
        plan.follow(hash(1), 6881, start);
        assert_eq!(plan.cookie(), "00000abc");
        assert!(plan.heard(Some(&search(&[hash(1)], "00000abc")), X, start).is_empty());
        assert_eq!(plan.heard(Some(&Search { cookie: None, ..search(&[hash(1)], "") }), X, start), [hash(1)]);
        // What can't be read costs as much.
        while plan.deaf_until(start).is_none() {
            assert!(plan.heard(None, X, start).is_empty());
        }
        assert_eq!((plan.deaf_until(start), plan.heard.1), (Some(start + SECOND), HEARD_MAX));
        assert!(plan.heard(Some(&search(&[hash(1)], "x")), X, start).is_empty());
        assert_eq!(plan.deaf_until(start + SECOND), None);
        assert_eq!(plan.heard(Some(&search(&[hash(1)], "x")), X, start + SECOND), [hash(1)]);
    }

    #[test]
    fn few_torrents_have_a_packet_each_and_many_share_them() {
        let start = Instant::now();
        for (torrents, packets) in [(SINGLES, SINGLES), (1000, 1000 / HASHES_MAX + SINGLES)] {
            let mut plan = Plan::new(7, start);
            (0..torrents as u16).for_each(|n| _ = plan.follow(hash(n), 6881, start));
            let sent = play(&mut plan, start, secs(100));
            assert!(sent.len() <= packets, "{} packets for {torrents}", sent.len());
            let mut all: Vec<_> = sent.iter().flat_map(|(_, hashes)| hashes).collect();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), torrents);
            assert!(sent.windows(2).all(|pair| pair[1].0 - pair[0].0 >= GAP));
            assert!(sent.iter().all(|(_, hashes)| hashes.len() <= HASHES_MAX));
        }
    }

    #[test]
    fn what_is_not_followed_any_more_or_can_not_be_reached_is_not_announced() {
        let start = Instant::now();
        let mut plan = Plan::new(7, start);
        let first = plan.follow(hash(1), 6881, start);
        let second = plan.follow(hash(1), 6881, start);
        plan.unfollow(&hash(1), first);
        assert!(plan.next().is_some(), "it was followed anew");
        plan.unfollow(&hash(1), second);
        assert_eq!(plan.next(), None);
        plan.follow(hash(2), 0, start);
        assert_eq!((plan.next(), plan.take(start)), (None, None));
        assert_eq!(
            plan.heard(Some(&search(&[hash(1), hash(2)], "x")), X, start),
            [hash(2)],
            "it still hears of others"
        );
        // Torrents of another port have packets of their own.
        (10..40).for_each(|n| _ = plan.follow(hash(n), 1000 + n % 2, start));
        let (port, hashes) = plan.take(start).unwrap();
        assert!(hashes.iter().all(|hash| 1000 + u16::from(hash[1]) % 2 == port) && hashes.len() > 1);
    }
}
