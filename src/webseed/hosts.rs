//! Permits and back-off per host, for all webseeds of the program together (rows W1, W3).
//!
//! A host is a name and a port. So many requests to it may be under way; who waits for a permit passes in the order in
//! which he came, those for whom a read waits first. When a host fails it is left alone for a while: its entry stays
//! meanwhile, so everybody who asks is told until when. After that one request at a time tries it, until one succeeds: a
//! body that came whole, or for who has no more to say, a redirect to another host.
//! What was sent before a failure that is known already says nothing new, neither by failing nor by succeeding: each
//! permit has the generation of its host's state.
//!
//! Flow: [`Hosts::acquire`]; then [`Permit::failed`] or [`Permit::succeeded`]; dropping the permit gives it back and
//! wakes who is next. One lock, a leaf, held for a few instructions.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use reqwest::Url;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::backoff::Backoff;
use super::fault::Fault;

/// Hosts that are remembered though nobody asks them: each redirect can name a new one.
const REMEMBERED_MAX: usize = 4096;

/// Who is next: those for whom a read waits, then by order of arrival.
type Turn = (bool, u64);

#[derive(Default)]
struct Host {
    busy: usize,
    waiting: BTreeMap<Turn, Waker>,
    backoff: Backoff,
    /// It failed, and nothing has succeeded since.
    failing: bool,
    generation: u64,
}

impl Host {
    fn has_room(&self, most: usize) -> bool {
        self.busy < if self.failing { 1 } else { most }
    }

    /// Until when it is left alone.
    fn until(&self, now: Instant) -> Option<Instant> {
        self.backoff.until().filter(|until| now < *until)
    }

    fn next(&self, most: usize) -> Option<Waker> {
        self.waiting.values().next().filter(|_| self.has_room(most)).cloned()
    }

    fn is_unused(&self) -> bool {
        self.busy == 0 && self.waiting.is_empty()
    }
}

struct Inner {
    hosts: HashMap<Arc<str>, Host>,
    next: u64,
}

/// See the module's text.
pub(super) struct Hosts {
    inner: RankedMutex<Inner>,
    most: usize,
}

/// A request to a host may be made.
pub(super) struct Permit {
    hosts: Arc<Hosts>,
    host: Arc<str>,
    generation: u64,
}

/// See [`Hosts::acquire`].
pub(super) struct Acquire {
    hosts: Arc<Hosts>,
    host: Arc<str>,
    urgent: bool,
    turn: Option<Turn>,
}

/// The host of a URL: its name and port.
pub(super) fn host_of(url: &Url) -> Arc<str> {
    let (name, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    format!("{name}:{port}").into()
}

/// The clock of back-offs; tests can stop it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Hosts {
    /// At most `most` requests to one host at a time.
    pub(super) fn new(most: usize) -> Arc<Self> {
        let inner = Inner { hosts: HashMap::new(), next: 0 };
        Arc::new(Self { inner: RankedMutex::new(Rank::Leaf, "webseed hosts", inner), most: most.max(1) })
    }

    /// Waits for a permit, as long as it takes; or tells until when the host is left alone. Dropping it leaves the line.
    pub(super) fn acquire(self: &Arc<Self>, host: Arc<str>, urgent: bool) -> Acquire {
        Acquire { hosts: self.clone(), host, urgent, turn: None }
    }

    /// Whether who asks now would have to wait for another's request to end.
    pub(super) fn is_full(&self, host: &str) -> bool {
        self.inner.lock().hosts.get(host).is_some_and(|h| h.until(now()).is_none() && !h.has_room(self.most))
    }

    /// Hosts that failed, and of which nothing has succeeded since.
    #[cfg(test)]
    pub(super) fn failing(&self) -> usize {
        self.inner.lock().hosts.values().filter(|host| host.failing).count()
    }

    /// Permits given and not given back.
    pub(super) fn busy(&self) -> usize {
        self.inner.lock().hosts.values().map(|host| host.busy).sum()
    }

    /// Changes a host and lets go of what need not be remembered; wakes outside of the lock.
    fn change<R>(&self, host: &Arc<str>, change: impl FnOnce(&mut Host) -> (R, Vec<Waker>)) -> R {
        let (result, wake) = {
            let mut inner = self.inner.lock();
            let state = inner.hosts.entry(host.clone()).or_default();
            let changed = change(state);
            if state.is_unused() && !state.failing && state.backoff.is_clean() {
                inner.hosts.remove(host);
            } else if inner.hosts.len() > REMEMBERED_MAX {
                let now = now();
                inner.hosts.retain(|_, host| !host.is_unused() || host.until(now).is_some());
                if inner.hosts.len() > REMEMBERED_MAX {
                    inner.hosts.retain(|_, host| !host.is_unused());
                }
            }
            changed
        };
        wake.into_iter().for_each(Waker::wake);
        result
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Instant>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (now, most) = (now(), this.hosts.most);
        let waker = cx.waker().clone();
        let mut inner = this.hosts.inner.lock();
        let Inner { hosts, next } = &mut *inner;
        let host = hosts.entry(this.host.clone()).or_default();
        let turn = this.turn.unwrap_or_else(|| {
            *next += 1;
            (!this.urgent, *next)
        });
        // Dropped when the lock is let go.
        let (wake, _old);
        let polled = if let Some(until) = host.until(now) {
            (wake, _old) = (None, host.waiting.remove(&turn));
            this.turn = None;
            Poll::Ready(Err(until))
        } else if host.has_room(most) && host.waiting.keys().next().is_none_or(|first| turn <= *first) {
            host.busy += 1;
            _old = host.waiting.remove(&turn);
            wake = host.next(most);
            this.turn = None;
            let generation = host.generation;
            Poll::Ready(Ok(Permit { hosts: this.hosts.clone(), host: this.host.clone(), generation }))
        } else {
            (wake, _old) = (None, host.waiting.insert(turn, waker));
            this.turn = Some(turn);
            Poll::Pending
        };
        drop(inner);
        wake.into_iter().for_each(Waker::wake);
        polled
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(turn) = self.turn else { return };
        let most = self.hosts.most;
        let _old = self.hosts.change(&self.host, |host| {
            let old = host.waiting.remove(&turn);
            // It may have been woken, and that in vain.
            (old, host.next(most).into_iter().collect())
        });
    }
}

impl Permit {
    /// The host it is for.
    pub(super) fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// The request failed. Returns until when the host is left alone, if it is; who waits for it is told as well.
    pub(super) fn failed(&self, fault: &Fault, jitter: f64) -> Option<Instant> {
        let now = now();
        self.hosts.change(&self.host, |host| {
            let before = host.backoff.until();
            if self.generation == host.generation || before.is_some_and(|until| now < until) {
                host.backoff.failed(now, fault, jitter);
            }
            if host.backoff.until() != before {
                host.generation += 1;
                host.failing = true;
            }
            let until = host.until(now);
            let wake = if until.is_some() { host.waiting.values().cloned().collect() } else { Vec::new() };
            (until, wake)
        })
    }

    /// The request succeeded.
    pub(super) fn succeeded(&self) {
        let most = self.hosts.most;
        self.hosts.change(&self.host, |host| {
            if self.generation == host.generation {
                host.backoff.succeeded();
                host.failing = false;
            }
            ((), host.next(most).into_iter().collect())
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let most = self.hosts.most;
        self.hosts.change(&self.host, |host| {
            host.busy = host.busy.saturating_sub(1);
            ((), host.next(most).into_iter().collect())
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use futures_util::{FutureExt, poll};

    use super::*;

    const BUSY: Fault = Fault::Busy { status: 503, after: None };

    fn host() -> Arc<str> {
        "a.example:80".into()
    }

    fn take(hosts: &Arc<Hosts>) -> Result<Permit, Instant> {
        hosts.acquire(host(), false).now_or_never().expect("at once")
    }

    #[tokio::test(start_paused = true)]
    async fn w1_permits_pass_in_order_and_what_is_urgent_first() {
        let hosts = Hosts::new(2);
        let (one, two) = (take(&hosts).ok().unwrap(), take(&hosts).ok().unwrap());
        assert!(hosts.is_full(&host()) && !hosts.is_full("b.example:80"));
        assert!(hosts.acquire("b.example:80".into(), false).now_or_never().unwrap().is_ok());
        let mut first = Box::pin(hosts.acquire(host(), false));
        let mut second = Box::pin(hosts.acquire(host(), false));
        let mut urgent = Box::pin(hosts.acquire(host(), true));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut urgent).is_pending());
        drop(one);
        assert!(poll!(&mut first).is_pending(), "a read waits for another");
        let Poll::Ready(Ok(urgent)) = poll!(&mut urgent) else { panic!("its turn") };
        drop(two);
        // One that was woken and goes passes it on.
        drop(first);
        let Poll::Ready(Ok(second)) = poll!(&mut second) else { panic!("its turn") };
        assert_eq!(hosts.busy(), 2);
        drop((second, urgent));
        assert!(hosts.inner.lock().hosts.is_empty(), "nothing stays of a host that is well");
    }

    #[tokio::test(start_paused = true)]
    async fn w3_all_who_ask_a_failing_host_wait_together_and_one_tries_first() {
        let hosts = Hosts::new(4);
        let (one, two) = (take(&hosts).ok().unwrap(), take(&hosts).ok().unwrap());
        let until = one.failed(&BUSY, 1.0).expect("a wait");
        assert_eq!(two.failed(&BUSY, 1.0), Some(until), "the same trouble");
        two.succeeded();
        assert_eq!(take(&hosts).err(), Some(until), "what was asked before says nothing");
        drop((one, two));
        assert_eq!(take(&hosts).err(), Some(until), "it is remembered");
        tokio::time::sleep_until(until.into()).await;
        let tries = take(&hosts).unwrap_or_else(|until| panic!("it waits until {until:?}"));
        let mut next = Box::pin(hosts.acquire(host(), false));
        assert!(poll!(&mut next).is_pending(), "by one");
        let later = tries.failed(&BUSY, 1.0).expect("a longer wait");
        assert!(later.duration_since(now()) > Duration::from_secs(1));
        assert!(matches!(poll!(&mut next), Poll::Ready(Err(until)) if until == later), "who waits is told");
        drop(tries);
        tokio::time::sleep_until(later.into()).await;
        let tries = take(&hosts).unwrap_or_else(|until| panic!("it waits until {until:?}"));
        let mut next = Box::pin(hosts.acquire(host(), false));
        assert!(poll!(&mut next).is_pending());
        tries.succeeded();
        let next = next.now_or_never().expect("it is well again");
        drop((tries, next));
    }

    #[tokio::test(start_paused = true)]
    async fn w3_who_breaks_one_connection_after_another_is_left_alone() {
        // Nobody asks it between one and the next.
        let hosts = Hosts::new(4);
        let broken = Fault::Broken("closed".into());
        assert_eq!(take(&hosts).ok().unwrap().failed(&broken, 1.0), None, "once may happen");
        let until = take(&hosts).ok().unwrap().failed(&broken, 1.0).expect("a wait");
        assert_eq!(take(&hosts).err(), Some(until));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_is_forgotten_when_there_is_much_of_it() {
        let hosts = Hosts::new(1);
        for n in 0..2 * REMEMBERED_MAX {
            let permit = hosts.acquire(format!("{n}.example:80").into(), false).await.ok().unwrap();
            let until = permit.failed(&BUSY, 0.0).unwrap();
            drop(permit);
            if n % 2 == 0 {
                tokio::time::sleep_until(until.into()).await;
            }
        }
        assert!(hosts.inner.lock().hosts.len() <= REMEMBERED_MAX + 1);
    }
}
