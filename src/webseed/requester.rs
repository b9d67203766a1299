//! One requester of a webseed: sleeps until there is something to claim, claims one slice, fetches it, and lets go.
//!
//! Flow of a turn: claim a slice ([`super::desk`]) and enter it in the table; for each of its parts get a permit of the
//! host, ask, judge the answer, follow redirects, and read the body: what comes is cut into blocks, which go into their
//! buffers and are told in one batch per chunk. No lock is held meanwhile. What a turn holds (entry, permit, claim,
//! blocks that aren't told yet) belongs to objects that give it back in whatever way the turn ends: done, cut, failed,
//! cancelled at any await, or by a panic. So what wasn't brought is asked for again.
//!
//! Where redirects led for a file is remembered. A place on another host that fails is that host's matter: it is
//! forgotten, and the webseed itself is asked at once, which may lead elsewhere by now. Only what it leads to then is
//! waited for.
//!
//! A panic ends its turn and is told in the log; after [`PANICS_MAX`] the webseed is given up.
//!
//! Deliberately not here: what follows from a fault (`fault`, `hosts`), what the owner is told besides blocks
//! (`session`), and what an answer means (`answer`).

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::Notify;

use super::answer::{self, Asked, Body};
use super::assemble::Assembler;
use super::desk::{Desk, Place};
use super::fault::{Fault, Meaning, Phase};
use super::health::Busy;
use super::hosts::{Permit, host_of, now};
use super::slices::{Part, Slice};
use super::table::{Claim, Key, Progress};
use super::url::{self, Kind};
use super::wake::Level;
use super::{Context, Step};
use crate::metainfo::MAX_URL;
use crate::metainfo::geometry::{BLOCK_LEN, BlockRef, FileIndex};
use crate::peer::event::{Item, PeerEvent};
use crate::sync::timeouts;

/// Redirects in a row: browsers follow 20, and real ones are one or two.
const REDIRECTS_MAX: usize = 10;
/// Bodies of one file in a row that the server takes for whole and that are too short, before it isn't asked for that
/// file any more. One may be a page of a server that is being set up.
const SHORT_MAX: u32 = 3;
/// Characters of a URL's scheme that are told.
const SCHEME_SHOWN: usize = 20;
/// Bytes of a body that says nothing that are read to keep its connection; servers' pages of redirects and errors
/// are smaller.
const PAGE_MAX: usize = 16 * 1024;
/// Panics after which a webseed is given up: a bug that comes with each request would go on for ever.
pub(super) const PANICS_MAX: u32 = 8;

/// What the tasks of one webseed have in common.
pub(super) struct Shared {
    pub(super) ctx: Context,
    pub(super) base: Url,
    /// The URL as it stands in the torrent: for the table.
    pub(super) url: Arc<str>,
    pub(super) desk: Level<Desk>,
    /// Something is to be told: the session looks. Keeps one ring for a session that doesn't listen just now.
    pub(super) bell: Notify,
    pub(super) panics: AtomicU32,
}

impl Shared {
    /// Changes what stands on the desk; wakes requesters if there is something to claim then, and the session if there
    /// is something to tell.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Desk) -> R) -> R {
        let change = |desk: &mut Desk| {
            let result = change(desk);
            (result, desk.has_news())
        };
        let (result, news) = self.desk.change(change, Desk::is_ready);
        if news {
            self.bell.notify_one();
        }
        result
    }

    /// It isn't asked for anything any more.
    pub(super) fn end(&self, reason: String) {
        self.change(|desk| desk.end(reason));
    }

    /// It won't be asked for a file any more, for this reason; without any file left it is of no use.
    pub(super) fn refuse(&self, file: FileIndex, fault: &Fault) {
        let reason = fault.to_string();
        let new = self.change(|desk| {
            let new = desk.refuse(file);
            if !desk.is_of_use() {
                desk.end(reason.clone());
            }
            new
        });
        self.ctx.health.trouble(reason.clone(), false);
        if new {
            self.ctx.health.refuses(file, reason);
            let (seed, file) = (self.ctx.health.url(), file.0);
            tracing::info!(%seed, file, "a webseed won't be asked for a file any more: {fault}");
        }
    }

    /// Something urgent may be queued while all requesters are busy with what nobody waits for.
    pub(super) fn cut_for_urgent(&self) {
        if let Some(cut) = self.desk.with(|desk| desk.cut_for_urgent()) {
            cut.cancel();
        }
    }

    /// A request failed.
    fn failed(&self, fault: &Fault, file: FileIndex, permit: Option<&Permit>) {
        tracing::debug!(seed = self.ctx.health.url(), file = file.0, "a request failed: {fault}");
        match fault.means() {
            Meaning::DropFile => {
                // It answers: that is all that its host has to do with it.
                permit.inspect(|permit| permit.succeeded());
                self.refuse(file, fault);
            }
            Meaning::DropSeed => self.end(fault.to_string()),
            Meaning::Wait(_) | Meaning::Retry => {
                self.ctx.health.trouble(fault.to_string(), false);
                let until = match permit {
                    Some(permit) => permit.failed(fault, rand::random()),
                    // No host has to do with it, so none says when to try again.
                    None => Some(now() + timeouts::WEBSEED_RETRY_FIRST),
                };
                if let Some(until) = until {
                    self.change(|desk| desk.wait(until));
                }
            }
        }
    }
}

/// Why a slice wasn't fetched to its end.
enum Stop {
    /// It is given up for something else.
    Cut,
    /// The host is left alone until then.
    Waits(Instant),
    /// Something went wrong with this file.
    Failed(Fault, FileIndex),
    /// Nobody listens any more.
    Closing,
}

/// Blocks that have come, until they are told.
struct Delivery<'a> {
    shared: &'a Shared,
    number: u64,
    places: std::vec::IntoIter<Place>,
    items: Vec<Item>,
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let items = std::mem::take(&mut self.items);
        if items.is_empty() && self.places.len() == 0 {
            return;
        }
        self.shared.change(|desk| {
            desk.came_not(self.number, &mut self.places);
            desk.leave(items);
        });
    }
}

/// A slice that is being fetched.
struct Turn<'a> {
    shared: &'a Shared,
    number: u64,
    slice: Slice,
    progress: Arc<Progress>,
    claim: Option<Claim>,
    permit: Option<Permit>,
    /// What comes is from there: a place on another host than the webseed's own, where redirects led before.
    led: Option<Url>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Whoever is woken by the last of these finds the others done.
        self.claim = None;
        self.permit = None;
        self.shared.change(|desk| desk.unclaim(self.number));
    }
}

/// An answer whose body is what was asked for.
struct Answer<'a> {
    response: Response,
    body: Body,
    /// When the request was made.
    asked: Instant,
    busy: Busy<'a>,
}

/// Runs a requester until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        if AssertUnwindSafe(turn(&shared)).catch_unwind().await.is_err() {
            let panics = shared.panics.fetch_add(1, Ordering::Relaxed) + 1;
            let reason = "its requests panicked; this is a bug, please report it";
            tracing::error!(seed = shared.ctx.health.url(), panics, "{reason}");
            if panics >= PANICS_MAX {
                shared.end(reason.to_owned());
            }
        }
    }
}

/// Claims a slice and fetches it.
async fn turn(shared: &Shared) {
    let table = &shared.ctx.hub.table;
    let number = table.generation();
    let (slice, progress) = shared.desk.until(|desk| desk.claim(number)).await;
    let mut turn = Turn { shared, number, slice, progress, claim: None, permit: None, led: None };
    shared.ctx.hub.step(Step::Claimed);
    let slice = turn.first_byte();
    let (torrent, kind) = (shared.ctx.torrent.info_hash, shared.ctx.seed.kind);
    let key = Key { torrent, url: shared.url.clone(), kind, slice };
    turn.claim = Some(table.claim(key, number, turn.progress.clone()));
    shared.ctx.hub.step(Step::Entered);
    shared.cut_for_urgent();
    match turn.fetch().await {
        Ok(()) | Err(Stop::Cut) => {}
        Err(Stop::Waits(until)) => {
            shared.ctx.health.trouble("its server failed, and is left alone for a while".to_owned(), true);
            shared.change(|desk| desk.wait(until));
        }
        Err(Stop::Failed(fault, file)) => match turn.led.take() {
            Some(at) if is_of_host(&fault) => turn.failed_elsewhere(&fault, &at),
            _ => shared.failed(&fault, file, turn.permit.as_ref()),
        },
        Err(Stop::Closing) => shared.end("the torrent is closing".to_owned()),
    }
    shared.ctx.hub.step(Step::Settled);
}

impl<'a> Turn<'a> {
    fn first_byte(&self) -> u64 {
        let geometry = &self.shared.ctx.torrent.info.geometry;
        let at = |b: &BlockRef| geometry.piece_offset(b.piece) + u64::from(b.block.0) * u64::from(BLOCK_LEN);
        self.slice.blocks.first().map_or(0, at)
    }

    async fn fetch(&mut self) -> Result<(), Stop> {
        let cut = self.progress.cut.clone();
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(Stop::Cut),
            fetched = self.parts() => fetched,
        }
    }

    async fn parts(&mut self) -> Result<(), Stop> {
        let mut assembler = Assembler::new(&self.shared.ctx.torrent.info.geometry, &self.slice.blocks);
        for part in std::mem::take(&mut self.slice.parts) {
            let answer = self.open(&part).await?;
            self.progress.answered.store(true, Ordering::Relaxed);
            self.shared.ctx.hub.step(Step::Answered);
            let begun = answer.asked;
            let checked = self.read(&part, answer, &mut assembler).await?;
            let took = now().saturating_duration_since(begun).as_secs_f64();
            let rate = (part.len as f64 / took.max(1e-6)) as u64;
            self.shared.desk.with(|desk| {
                desk.whole(part.file);
                if part.len >= u64::from(BLOCK_LEN) {
                    desk.measured(rate);
                }
            });
            if let Some(permit) = &self.permit {
                permit.succeeded();
            }
            match checked {
                Ok(()) => self.shared.ctx.health.well(),
                // All that was asked for has come: that is worth a word, and nothing more.
                Err(fault) => self.shared.ctx.health.trouble(fault.to_string(), false),
            }
        }
        let mut done = Vec::new();
        assembler.finish(&mut done);
        self.deliver(&mut done).await
    }

    /// Asks for a part: where redirects led last for this file, or where it should be.
    async fn open(&mut self, part: &Part) -> Result<Answer<'a>, Stop> {
        let shared = self.shared;
        let torrent = &shared.ctx.torrent;
        let kind = shared.ctx.seed.kind;
        let failed = |fault| Stop::Failed(of_kind(kind, fault), part.file);
        let info = &torrent.info;
        let file_len = |file: FileIndex| info.geometry.files().get(file.0 as usize).map_or(0, |f| f.len);
        let (own, asked) = match kind {
            Kind::Url => {
                let own = url::file_url(&shared.base, info, part.file).map_err(failed)?;
                (own, Asked { start: part.offset, len: part.len, file_len: file_len(part.file) })
            }
            Kind::Http => {
                let Some(piece) = self.slice.blocks.first().map(|block| block.piece) else {
                    return Err(Stop::Cut);
                };
                let start = part.at.saturating_sub(info.geometry.piece_offset(piece));
                let own = url::piece_url(&shared.base, &torrent.info_hash, piece, start..start + part.len);
                let file_len = u64::from(info.geometry.piece_len(piece));
                (own, Asked { start, len: part.len, file_len })
            }
        };
        self.led = None;
        if let Some(remembered) = shared.desk.with(|desk| desk.redirect(part.file)) {
            let elsewhere = host_of(&remembered) != host_of(&own);
            match self.follow(remembered.clone(), false, &asked, part.file).await {
                // That a host fails to which it led is no reason not to ask itself: it may lead to another.
                Err(Stop::Waits(_)) if elsewhere => shared.desk.with(|desk| desk.forget_host(&remembered)),
                Err(Stop::Failed(fault, file)) => {
                    // Such an address may have been good for a while only.
                    shared.desk.with(|desk| desk.redirects(part.file, None));
                    if elsewhere && is_of_host(&fault) {
                        self.failed_elsewhere(&fault, &remembered);
                    } else if matches!(fault.means(), Meaning::Wait(_)) {
                        return Err(Stop::Failed(fault, file));
                    }
                }
                other => {
                    self.led = elsewhere.then_some(remembered);
                    return other;
                }
            }
        }
        self.follow(own, true, &asked, part.file).await
    }

    /// A request failed at a place of another host that was remembered. That is between us and that host: the webseed
    /// itself is asked again at once, which may lead elsewhere. If it leads there again, it waits.
    fn failed_elsewhere(&mut self, fault: &Fault, at: &Url) {
        let health = &self.shared.ctx.health;
        tracing::debug!(seed = health.url(), "a request failed where it led before: {fault}");
        health.trouble(fault.to_string(), false);
        let waits = self.permit.take().and_then(|permit| permit.failed(fault, rand::random()));
        if waits.is_some() {
            self.shared.desk.with(|desk| desk.forget_host(at));
        }
    }

    /// Asks at a URL, and where that redirects to.
    async fn follow(
        &mut self,
        mut at: Url,
        own: bool,
        asked: &Asked,
        file: FileIndex,
    ) -> Result<Answer<'a>, Stop> {
        let shared = self.shared;
        let ctx = &shared.ctx;
        let kind = ctx.seed.kind;
        let failed = |fault| Stop::Failed(of_kind(kind, fault), file);
        let mut before = Vec::new();
        loop {
            let redirected = !own || !before.is_empty();
            let mut request = ctx.hub.get(&at, ctx.seed.trusted, redirected).map_err(failed)?;
            self.permit_for(&at).await?;
            ctx.hub.step(Step::Permitted);
            let mut busy = ctx.health.request();
            self.progress.started.store(true, Ordering::Relaxed);
            self.progress.answered.store(false, Ordering::Relaxed);
            let time = now();
            request = request.header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if kind == Kind::Url {
                let last = asked.start + asked.len - 1;
                request = request.header(header::RANGE, format!("bytes={}-{last}", asked.start));
            }
            let response = match tokio::time::timeout(timeouts::WEBSEED_FIRST_BYTE, request.send()).await {
                Ok(response) => response.map_err(|error| failed(ctx.hub.fault(&error, &at, redirected)))?,
                Err(_) => return Err(failed(Fault::TimedOut(Phase::FirstByte))),
            };
            busy.heard();
            if let Some(to) = redirect(response.status(), response.headers()) {
                page(response).await;
                drop(busy);
                let next = next_place(&at, &to).map_err(failed)?;
                before.push(std::mem::replace(&mut at, next));
                check_redirect(&before, &at).map_err(failed)?;
                // That is all that is asked of it. Where it leads to a place of its own, that one tells how it is.
                let host = host_of(&at);
                self.permit.iter().filter(|permit| *permit.host() != host).for_each(Permit::succeeded);
                continue;
            }
            let status = response.status().as_u16();
            let (headers, clock) = (response.headers(), SystemTime::now());
            let judged = match kind {
                Kind::Url => answer::judge(asked, status, headers, clock),
                Kind::Http => answer::judge_piece(asked, status, headers, clock),
            };
            return match judged {
                Ok(body) => {
                    if kind == Kind::Url && !before.is_empty() {
                        shared.desk.with(|desk| desk.redirects(file, Some(at)));
                    }
                    Ok(Answer { response, body, asked: time, busy })
                }
                Err(fault) => {
                    let page = page(response).await;
                    Err(failed(if kind == Kind::Http { with_wait(fault, &page) } else { fault }))
                }
            };
        }
    }

    /// Has a permit for the host of this URL, and no other.
    async fn permit_for(&mut self, url: &Url) -> Result<(), Stop> {
        let host = host_of(url);
        if self.permit.as_ref().is_some_and(|permit| *permit.host() == host) {
            return Ok(());
        }
        // Given back first: who held one while waiting for another could wait for ever.
        self.permit = None;
        self.progress.started.store(false, Ordering::Relaxed);
        let hub = &self.shared.ctx.hub;
        if self.progress.is_urgent() && hub.hosts.is_full(&host) {
            let least = self.shared.desk.with(|desk| desk.worth_a_cut());
            hub.table.cut_for_urgent(&host, least);
        }
        let permit = hub.hosts.acquire(host.clone(), self.progress.is_urgent()).await.map_err(Stop::Waits)?;
        self.permit = Some(permit);
        if let Some(claim) = &self.claim {
            claim.goes_to(&host);
        }
        Ok(())
    }

    /// Reads a body. What is wrong with it after all that was asked for has come is told by the inner result.
    async fn read(
        &mut self,
        part: &Part,
        mut answer: Answer<'a>,
        assembler: &mut Assembler,
    ) -> Result<Result<(), Fault>, Stop> {
        let kind = self.shared.ctx.seed.kind;
        let failed = |fault| Stop::Failed(of_kind(kind, fault), part.file);
        let (mut skip, mut left, mut at) = (answer.body.skip, answer.body.take, part.at);
        let expected = skip + left;
        let limits = &self.shared.ctx.torrent.down_limits;
        let mut done = Vec::new();
        // Since when, our own pauses left out, and how many bytes have come since then.
        let (mut since, mut lately) = (now(), 0u64);
        let mut stall = std::pin::pin!(tokio::time::sleep(timeouts::WEBSEED_STALL));
        while left > 0 {
            let chunk = tokio::select! {
                biased;
                chunk = answer.response.chunk() => chunk,
                () = &mut stall => {
                    if now() >= since + timeouts::WEBSEED_STALL {
                        if lately < timeouts::WEBSEED_STALL_BYTES {
                            return Err(failed(Fault::TimedOut(Phase::Stall)));
                        }
                        (since, lately) = (now(), 0);
                    }
                    stall.as_mut().reset(tokio::time::Instant::from_std(since) + timeouts::WEBSEED_STALL);
                    continue;
                }
            };
            let found = expected - skip - left;
            let mut data = match chunk {
                Ok(Some(data)) => data,
                // The server takes it for whole. A file of which it does so again and again is another one there.
                Ok(None) => {
                    let times = self.shared.desk.with(|desk| desk.fell_short(part.file));
                    let often = times >= SHORT_MAX;
                    let fault = if often {
                        Fault::Stub { found, expected }
                    } else {
                        Fault::Short { found, expected }
                    };
                    return Err(failed(fault));
                }
                Err(error) => return Err(failed(broken(&error, answer.response.url(), found, expected))),
            };
            // From here on it is us who keep it waiting.
            let came = now();
            answer.busy.waits_for_us();
            let read = data.len() as u64;
            lately += read;
            let front = skip.min(read);
            skip -= front;
            let _ = data.split_to(front as usize);
            data.truncate(data.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let taken = data.len() as u64;
            left -= taken;
            self.progress.left.fetch_sub(taken, Ordering::Relaxed);
            assembler.feed(at, data, &mut done);
            at += taken;
            self.shared.ctx.hub.step(Step::Came);
            if !done.is_empty() {
                self.deliver(&mut done).await?;
            }
            limits.take(read).await;
            answer.busy.heard();
            since += now().saturating_duration_since(came);
            if lately >= timeouts::WEBSEED_STALL_BYTES && now() >= since + Duration::from_secs(1) {
                (since, lately) = (now(), 0);
            }
        }
        if answer.body.whole {
            return Ok(Ok(()));
        }
        // To the end of the body, so that its connection can be used again.
        match tokio::time::timeout(timeouts::WEBSEED_BODY_END, answer.response.chunk()).await {
            Ok(Ok(Some(more))) if !more.is_empty() => Ok(Err(Fault::Long { expected })),
            _ => Ok(Ok(())),
        }
    }

    /// Puts blocks into their buffers and tells the owner; waits while his channel is full.
    async fn deliver(&mut self, done: &mut Vec<(BlockRef, Bytes)>) -> Result<(), Stop> {
        let shared = self.shared;
        let ctx = &shared.ctx;
        let places = shared.change(|desk| desk.came(self.number, done.iter().map(|(block, _)| *block)));
        let items = Vec::with_capacity(places.len());
        let mut delivery = Delivery { shared, number: self.number, places: places.into_iter(), items };
        ctx.hub.step(Step::Taken);
        for (block, data) in done.drain(..) {
            let len = data.len() as u64;
            // Those that nobody asked for any more have no place.
            let ours = delivery.places.as_slice().first().is_some_and(|place| place.block == block);
            let buffer = if ours { delivery.places.next().and_then(|place| place.buffer) } else { None };
            let used = buffer.as_ref().is_some_and(|buffer| buffer.put(block.block, data, ctx.key));
            let counter = if used { &ctx.counters.down } else { &ctx.counters.wasted };
            counter.fetch_add(len, Ordering::Relaxed);
            match buffer {
                Some(buffer) => delivery.items.push(Item::Block { block, buffer }),
                None if ours => delivery.items.push(Item::Recalled(block)),
                None => {}
            }
        }
        ctx.hub.step(Step::Put);
        if delivery.items.is_empty() {
            return Ok(());
        }
        let permit = ctx.events.reserve().await.map_err(|_| Stop::Closing)?;
        permit.send(PeerEvent::Said { key: ctx.key, items: std::mem::take(&mut delivery.items) });
        Ok(())
    }
}

/// Where a response redirects to, if it does.
fn redirect(status: StatusCode, headers: &HeaderMap) -> Option<String> {
    let location =
        headers.get(header::LOCATION).filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))?;
    Some(String::from_utf8_lossy(location.as_bytes()).into_owned())
}

/// The place that a redirect from `at` names.
///
/// # Errors
/// It is none, or longer than any that we would ask for.
fn next_place(at: &Url, to: &str) -> Result<Url, Fault> {
    let long = || Fault::Redirects("to a URL that is too long".to_owned());
    if to.len() > MAX_URL {
        return Err(long());
    }
    let next = at.join(to).map_err(|error| Fault::Redirects(error.to_string()))?;
    // What is relative adds to what was there, and some of it is escaped.
    if next.as_str().len() > MAX_URL { Err(long()) } else { Ok(next) }
}

/// Whether a fault is held against the host, which may be well later.
fn is_of_host(fault: &Fault) -> bool {
    matches!(fault.means(), Meaning::Wait(_) | Meaning::Retry)
}

/// What is wrong with an answer to a request for a piece (BEP 17) isn't of a file.
fn of_kind(kind: Kind, fault: Fault) -> Fault {
    match (kind, fault) {
        (Kind::Url, fault) | (Kind::Http, fault @ Fault::OfTorrent(_)) => fault,
        (Kind::Http, fault) => Fault::OfTorrent(Box::new(fault)),
    }
}

/// # Errors
/// It has gone too far, in a circle, or to what isn't HTTP.
fn check_redirect(before: &[Url], next: &Url) -> Result<(), Fault> {
    let wrong = if !matches!(next.scheme(), "http" | "https") {
        // As long as a server likes.
        let scheme: String = next.scheme().chars().take(SCHEME_SHOWN).collect();
        format!("{scheme} is neither http nor https")
    } else if before.contains(next) {
        "in a circle".to_owned()
    } else if before.len() > REDIRECTS_MAX {
        format!("more than {REDIRECTS_MAX} of them")
    } else {
        return Ok(());
    };
    Err(Fault::Redirects(wrong))
}

/// Reads a body that says nothing to its end, so that its connection can be used again; what is longer or comes slowly
/// isn't worth it. Returns its first chunk.
async fn page(mut response: Response) -> Bytes {
    let mut first = Bytes::new();
    let rest = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if first.is_empty() {
                first = chunk;
            }
            if read > PAGE_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(timeouts::WEBSEED_BODY_END, rest).await;
    first
}

/// BEP 17: the body of a 503 is how many seconds to wait.
fn with_wait(fault: Fault, body: &[u8]) -> Fault {
    match fault {
        Fault::OfTorrent(inner) => Fault::OfTorrent(Box::new(with_wait(*inner, body))),
        Fault::Busy { status: 503, after: None } => {
            Fault::Busy { status: 503, after: answer::wait_in_body(body) }
        }
        other => other,
    }
}

/// What an error in a body is: a connection that ends before the body does is a short one.
fn broken(error: &reqwest::Error, asked: &Url, found: u64, expected: u64) -> Fault {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof) {
            return Fault::Short { found, expected };
        }
        next = cause.source();
    }
    match Fault::of(error, asked) {
        // The head was there in time.
        Fault::TimedOut(_) => Fault::TimedOut(Phase::Stall),
        other => other,
    }
}
