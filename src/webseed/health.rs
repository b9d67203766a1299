//! How a webseed is doing, for `status` and for people: [`Health`], written by its tasks, read by anyone.
//!
//! Bytes stand in the counters that it shares with the owner of its torrent; requests are counted here. What it does
//! just now is told from what was noted: dropped, waiting until a moment, fetching, or idle. The reason of the last
//! trouble stays until a request succeeds, so that a look between two tries finds it.
//!
//! Deliberately not here: what the trouble means and what is done about it (`fault`, `backoff`, `session`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Url;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::hosts::now;
use crate::metainfo::geometry::FileIndex;
use crate::peer::event::Counters;

/// What a webseed does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedState {
    /// Nothing is asked of it.
    Idle,
    /// Something is under way.
    Fetching,
    /// It, or its host, isn't asked for anything for this long.
    Waiting {
        /// Whole seconds, rounded up.
        seconds: u64,
    },
    /// It isn't asked for anything any more.
    Dropped,
}

/// A webseed, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedStatus {
    /// Its URL, without a user's name and password.
    pub url: String,
    /// What it does.
    pub state: SeedState,
    /// What was wrong last, if that wasn't followed by a success; otherwise why it won't serve the file that it refused
    /// last, if there is one. For one that was dropped, why.
    pub reason: Option<String>,
    /// How many files it won't serve.
    pub refused_files: usize,
    /// Requests made so far, redirected ones counted each.
    pub requests: u64,
    /// Bytes of blocks that came and were of use.
    pub bytes: u64,
}

#[derive(Default)]
struct Noted {
    reason: Option<String>,
    until: Option<Instant>,
    dropped: bool,
    refused: BTreeSet<FileIndex>,
    /// Of the last one that was refused.
    refusal: Option<String>,
}

/// See the module's text.
pub struct Health {
    url: String,
    noted: RankedMutex<Noted>,
    requests: AtomicU64,
    /// Requests under way.
    busy: AtomicU64,
    counters: Arc<Counters>,
}

/// How long a request may go without a byte before that is told when it is given up: its own time-outs are longer than
/// the patience of some readers.
const SILENT: Duration = Duration::from_secs(1);

/// A request under way; ends when it is dropped.
pub(super) struct Busy<'a> {
    health: &'a Health,
    /// When something came, or was asked for; `None` while we ourselves keep it waiting.
    heard: Option<Instant>,
}

impl Busy<'_> {
    /// Something came, and we are busy with it: the server isn't to blame for what that takes.
    pub(super) fn waits_for_us(&mut self) {
        self.heard = None;
    }

    /// Something came, and we are done with it: what is to come is the server's matter.
    pub(super) fn heard(&mut self) {
        self.heard = Some(now());
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.health.busy.fetch_sub(1, Ordering::Relaxed);
        let silent = self.heard.map_or(Duration::ZERO, |heard| now().saturating_duration_since(heard));
        if silent >= SILENT {
            let reason = format!("nothing came for {} s, until nobody waited for it", silent.as_secs());
            self.health.trouble(reason, true);
        }
    }
}

impl Health {
    /// Of a webseed that did nothing yet, known by this URL.
    pub fn new(url: &str, counters: Arc<Counters>) -> Self {
        Self {
            url: shown(url),
            noted: RankedMutex::new(Rank::Leaf, "webseed health", Noted::default()),
            requests: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            counters,
        }
    }

    /// How it is doing now. Takes a leaf lock for a moment.
    pub fn snapshot(&self) -> SeedStatus {
        let now = now();
        let busy = self.busy.load(Ordering::Relaxed) > 0;
        let noted = self.noted.lock();
        let left =
            noted.until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero());
        let state = match left {
            _ if noted.dropped => SeedState::Dropped,
            Some(left) => SeedState::Waiting { seconds: left.as_millis().div_ceil(1000) as u64 },
            None if busy => SeedState::Fetching,
            None => SeedState::Idle,
        };
        SeedStatus {
            url: self.url.clone(),
            state,
            reason: noted.reason.as_ref().or(noted.refusal.as_ref()).cloned(),
            refused_files: noted.refused.len(),
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.counters.down.load(Ordering::Relaxed),
        }
    }

    /// Its URL, as shown.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The host of its URL, or `?`: a short name for it.
    pub(super) fn host(&self) -> String {
        let url = Url::parse(&self.url).ok();
        url.as_ref().and_then(|url| url.host_str()).unwrap_or("?").to_owned()
    }

    /// A request is made.
    pub(super) fn request(&self) -> Busy<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { health: self, heard: Some(now()) }
    }

    /// A request went well. While it waits for something else that was wrong, the reason for that stays.
    pub(super) fn well(&self) {
        let now = now();
        let old = {
            let mut noted = self.noted.lock();
            let stays = noted.dropped || noted.until.is_some_and(|until| now < until);
            if stays { None } else { noted.reason.take() }
        };
        drop(old);
    }

    /// Something was wrong. With `first`, only if nothing is known yet.
    pub(super) fn trouble(&self, reason: String, first: bool) {
        let mut noted = self.noted.lock();
        let stays = noted.dropped || (first && noted.reason.is_some());
        if !stays {
            noted.reason = Some(reason);
        }
    }

    /// It isn't asked for anything before this moment; `None` when that is over.
    pub(super) fn waits(&self, until: Option<Instant>) {
        self.noted.lock().until = until;
    }

    /// It won't serve this file, for this reason.
    pub(super) fn refuses(&self, file: FileIndex, reason: String) {
        let mut noted = self.noted.lock();
        noted.refused.insert(file);
        noted.refusal = Some(reason);
    }

    /// It is over, for this reason. The first one stays.
    pub(super) fn dropped(&self, reason: &str) {
        let mut noted = self.noted.lock();
        if !noted.dropped {
            noted.dropped = true;
            noted.reason = Some(reason.to_owned());
        }
    }
}

/// A URL without a user's name and password; what isn't a URL, as it stands.
fn shown(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return url.to_owned() };
    if parsed.username().is_empty() && parsed.password().is_none() {
        return url.to_owned();
    }
    // Fails only for URLs that can't have any.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    parsed.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use super::*;

    fn health(url: &str) -> Health {
        Health::new(url, Arc::default())
    }

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("http://a.example/x", "http://a.example/x"),
            ("https://me:secret@a.example:8443/x y", "https://a.example:8443/x%20y"),
            ("http://me@a.example/", "http://a.example/"),
            ("no url: me:secret", "no url: me:secret"),
        ] {
            assert_eq!(health(url).snapshot().url, shown);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_does_is_told_from_what_was_noted() {
        let health = health("http://a.example/");
        assert_eq!(health.snapshot().state, SeedState::Idle);
        let busy = health.request();
        assert_eq!(health.snapshot().state, SeedState::Fetching);
        health.trouble("it is ill".into(), false);
        health.trouble("so are others".into(), true);
        health.waits(Some(now() + Duration::from_millis(2500)));
        assert_eq!(health.snapshot().state, SeedState::Waiting { seconds: 3 });
        tokio::time::advance(Duration::from_millis(2500)).await;
        assert_eq!(health.snapshot().state, SeedState::Fetching);
        assert_eq!(health.snapshot().reason.as_deref(), Some("it is ill"));
        drop(busy);
        health.well();
        assert_eq!(health.snapshot().reason, None);
        health.waits(Some(now() + Duration::from_secs(1)));
        health.trouble("again".into(), true);
        health.well();
        assert_eq!(health.snapshot().reason.as_deref(), Some("again"), "it waits for that");
        health.waits(None);
        health.well();
        let seen = health.snapshot();
        assert_eq!((seen.state, seen.reason, seen.requests), (SeedState::Idle, None, 1));
        [3, 5, 3].into_iter().for_each(|file| health.refuses(FileIndex(file), format!("no {file}")));
        health.well();
        assert_eq!(
            health.snapshot().reason.as_deref(),
            Some("no 3"),
            "other files being well says nothing of it"
        );
        health.dropped("it lies");
        health.trouble("later".into(), false);
        health.well();
        health.dropped("even later");
        let seen = health.snapshot();
        assert_eq!((seen.state, seen.refused_files), (SeedState::Dropped, 2));
        assert_eq!(seen.reason.as_deref(), Some("it lies"));
    }
}
