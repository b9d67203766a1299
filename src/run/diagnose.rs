//! What the program is at, as text, for a person who looks for what hangs (row L5).
//!
//! **Flow.** [`report`] asks each part in turn and writes down what it says: locks, tasks, parked readers, torrents,
//! storage workers. It works while things hang: what could wait for a lock is looked at from a thread of its own, an owner is
//! asked by a message, and neither is waited for longer than [`ANSWER`]. Who doesn't answer is named as such, with what
//! can be seen of it from outside. What still hangs from an earlier report isn't looked at again ([`Parts`]), so asking
//! often leaves no more threads behind than asking once. Every list has a bound, and says how many more there are.
//!
//! A parked reader is shown with all that it waits for: who it is, where it reads, each missing piece with its blocks,
//! and the peers that have it. That is put together from two sides: the filesystem knows the reader, the torrent's
//! owner the peers.
//!
//! **Not here.** When it is asked for, and by whom: [`super::report`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use torrentfs_fs::lock::holders::{self, Look, Taking};
use torrentfs_fs::session::{Mounted, ParkedView};

use crate::client::{Client, View};
use crate::content::TorrentContent;
use crate::metainfo::geometry::{FileIndex, PieceIndex};
use crate::storage::size::bytes;
use crate::sync::tasks::TaskScope;
use crate::torrent::describe::{Description, Holder, PieceView};
use crate::torrent::table::PieceState;
use crate::torrent::{Command, Torrent};

/// How long each part may take to answer: thousands of times what it takes when nothing is wrong, and a person waits.
const ANSWER: Duration = Duration::from_millis(500);
/// Parked readers that are listed, the oldest first.
const READERS_MAX: usize = 64;
/// Torrents that are listed, those first whose readers are: no more readers than these are listed.
const TORRENTS_MAX: usize = READERS_MAX;
/// Tasks that are listed, those first that don't give way, then the oldest.
const TASKS_MAX: usize = 256;
/// Locks that are listed, and those who wait for each; a thread holds few, and there are few threads.
const LOCKS_MAX: usize = 64;
/// Peers that are listed of each torrent, and reads that its owner knows of.
const OF_TORRENT_MAX: usize = 32;
/// Pieces that are listed of one read: the kernel asks for 1 MiB at most, which is more only with tiny pieces.
const READ_PIECES_MAX: usize = 8;
/// Webseeds and peers that are listed with a piece.
const HOLDERS_MAX: usize = 10;

/// Why a part is missing from the report.
const SILENT: &str = "no answer within 0.5 s";
/// The same of what an earlier report waits for still.
const HANGS: &str = "it hasn't answered an earlier report yet";
/// The same of an owner that is gone.
const ENDED: &str = "it has ended";

/// What is looked at from threads of their own, since it may wait for a lock.
#[derive(Debug, Clone, Copy)]
enum Part {
    Tasks,
    Torrents,
    Counts,
    Parked,
    Webseeds,
    Workers,
    Room,
}

/// Which parts are being looked at; what hangs stays so.
#[derive(Debug, Default)]
pub struct Parts([AtomicBool; Part::Room as usize + 1]);

/// Held while a part is looked at.
struct Looking {
    parts: Arc<Parts>,
    part: Part,
}

impl Looking {
    /// `None` when it is looked at already.
    fn begin(parts: &Arc<Parts>, part: Part) -> Option<Self> {
        let flag = parts.0.get(part as usize)?;
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self { parts: parts.clone(), part })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let Some(flag) = self.parts.0.get(self.part as usize) {
            flag.store(false, Ordering::Release);
        }
    }
}

/// All of it, as lines, as far as it is up. Takes some seconds at most, and far less when nothing hangs; holds no lock
/// while it waits. `parts` is for all reports of the program.
pub async fn report(
    client: Option<&Arc<Client>>,
    mounted: Option<&Mounted>,
    scope: &TaskScope,
    parts: &Arc<Parts>,
) -> String {
    // What is held from here to the end is held for as long at least, whether anybody looked before or not.
    holders::look();
    let mut text = String::new();
    heading(&mut text, "tasks");
    tasks(&mut text, scope, parts).await;
    let readers = match mounted {
        Some(mounted) => {
            let view = mounted.view();
            Some(aside(parts, Part::Parked, move || view.parked(READERS_MAX)).await)
        }
        None => None,
    };
    let view = match client.cloned() {
        Some(client) => Some(aside(parts, Part::Torrents, move || client.view(ANSWER / 2)).await),
        None => None,
    };
    let mut torrents: Vec<Arc<Torrent>> = Vec::new();
    if let Some(Ok(view)) = &view {
        torrents.extend(view.torrents.iter().flatten().cloned());
    }
    if let Some(Ok((readers, _))) = &readers {
        let waited: BTreeSet<u32> = readers.iter().map(|reader| reader.what.node.slot()).collect();
        torrents.sort_by_key(|torrent| !waited.contains(&torrent.slot));
    }
    let more = torrents.len().saturating_sub(TORRENTS_MAX);
    torrents.truncate(TORRENTS_MAX);
    let torrents = ask_all(&torrents).await;
    if let (Some(mounted), Some(readers)) = (mounted, &readers) {
        heading(&mut text, &format!("mount at {}", mounted.path().display()));
        counts(&mut text, mounted, parts).await;
        parked(&mut text, readers, &torrents);
    }
    if let Some(view) = &view {
        heading(&mut text, "torrents");
        match view {
            Ok(View { torrents: Some(_), .. }) => {}
            Ok(_) => line(&mut text, 1, format_args!("the table of torrents is locked")),
            Err(why) => line(&mut text, 1, format_args!("the table of torrents: {why}")),
        }
        for (torrent, description) in &torrents {
            describe(&mut text, torrent, description);
        }
        and_more(&mut text, 1, more);
        if let Ok(view) = view {
            webseeds(&mut text, view, parts).await;
            heading(&mut text, "storage");
            storage(&mut text, view, parts).await;
        }
    }
    let mut first = String::new();
    heading(&mut first, "locks");
    locks(&mut first, &holders::look());
    first + &text
}

/// Who holds which lock, and who waits for it.
fn locks(text: &mut String, look: &Look) {
    line(text, 1, format_args!("{} taken since the start", look.taken));
    for held in look.held.iter().take(LOCKS_MAX) {
        line(text, 1, format_args!("{}", holder(held)));
        let mut waiting = look.waiting.iter().filter(|waits| waits.address == held.address);
        for waits in waiting.by_ref().take(LOCKS_MAX) {
            line(text, 2, format_args!("{}", waiter(waits)));
        }
        and_more(text, 2, waiting.count());
    }
    and_more(text, 1, look.held.len().saturating_sub(LOCKS_MAX));
    // Given back between the looks at the one and the other, or held by what isn't followed.
    let known = |waits: &&Taking| !look.held.iter().any(|held| held.address == waits.address);
    let mut others = look.waiting.iter().filter(known);
    for waits in others.by_ref().take(LOCKS_MAX) {
        line(text, 1, format_args!("`{}`: {}", waits.lock, waiter(waits)));
    }
    and_more(text, 1, others.count());
    if look.held.is_empty() && look.waiting.is_empty() {
        line(text, 1, format_args!("none is held"));
    }
}

/// A lock that is held, in words.
pub(super) fn holder(held: &Taking) -> String {
    let key = if held.key == 0 { String::new() } else { format!(" {}", held.key) };
    format!(
        "`{}`{key} is held by {} (tid {}) for {} at least, taken at {}",
        held.lock,
        held.thread,
        held.tid,
        time(held.since),
        held.site
    )
}

/// Who waits for a lock, in words.
pub(super) fn waiter(waits: &Taking) -> String {
    format!(
        "{} (tid {}) waits for it since {}, at {}",
        waits.thread,
        waits.tid,
        time(waits.since),
        waits.site
    )
}

/// A torrent, and what its owner said, or why it said nothing.
type Asked = (Arc<Torrent>, Result<Box<Description>, &'static str>);

/// Asks all owners at once.
async fn ask_all(torrents: &[Arc<Torrent>]) -> Vec<Asked> {
    let ask = async |torrent: &Arc<Torrent>| {
        let (done, answer) = oneshot::channel();
        let asked = async {
            match torrent.command(Command::Describe { done }).await {
                true => answer.await.map_err(|_| ENDED),
                false => Err(ENDED),
            }
        };
        (torrent.clone(), tokio::time::timeout(ANSWER, asked).await.unwrap_or(Err(SILENT)))
    };
    futures_util::future::join_all(torrents.iter().map(ask)).await
}

/// Looks at a part from a thread of its own, since it may wait for a lock; why not, when that takes too long, or an
/// earlier look at it does still.
async fn aside<T: Send + 'static>(
    parts: &Arc<Parts>,
    part: Part,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, &'static str> {
    let looking = Looking::begin(parts, part).ok_or(HANGS)?;
    let look = move || {
        // To the end of the look, whether anybody waits for it still or not.
        let _looking = looking;
        look()
    };
    let seen = tokio::time::timeout(ANSWER, super::on_thread("report: aside", look)).await;
    seen.map_err(|_| SILENT)?.ok_or("it can't be looked at")
}

fn heading(text: &mut String, name: &str) {
    let _ = writeln!(text, "{name}:");
}

fn line(text: &mut String, depth: usize, what: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = writeln!(text, "{:width$}{what}", "", width = 2 * depth);
}

/// How many more there are than were listed, if any.
fn and_more(text: &mut String, depth: usize, more: usize) {
    if more > 0 {
        line(text, depth, format_args!("and {more} more"));
    }
}

/// A time as people read it.
pub(super) fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        _ if duration < Duration::from_secs(1) => format!("{} ms", duration.as_millis()),
        seconds if seconds < 100.0 => format!("{seconds:.1} s"),
        seconds if seconds < 6000.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

async fn tasks(text: &mut String, scope: &TaskScope, parts: &Arc<Parts>) {
    let scope = scope.clone();
    match aside(parts, Part::Tasks, move || scope.look(Instant::now())).await {
        Err(why) => line(text, 1, format_args!("the registry of tasks: {why}")),
        Ok(mut tasks) => {
            // Stable: the oldest stay in front.
            tasks.sort_by_key(|task| std::cmp::Reverse(task.runs));
            for task in tasks.iter().take(TASKS_MAX) {
                let runs =
                    task.runs.map(|since| format!(", runs without a pause for {} at least", time(since)));
                line(
                    text,
                    1,
                    format_args!("{}: {} old{}", task.name, time(task.age), runs.unwrap_or_default()),
                );
            }
            and_more(text, 1, tasks.len().saturating_sub(TASKS_MAX));
        }
    }
}

async fn counts(text: &mut String, mounted: &Mounted, parts: &Arc<Parts>) {
    let view = mounted.view();
    match aside(parts, Part::Counts, move || view.counts()).await {
        Err(why) => line(text, 1, format_args!("the tables of inodes and handles: {why}")),
        Ok(counts) => line(
            text,
            1,
            format_args!(
                "{} inodes known, {} handles open, {} reads parked",
                counts.inodes, counts.handles, counts.parked
            ),
        ),
    }
}

/// The parked reads that were found, of how many.
type Parked = Result<(Vec<ParkedView>, usize), &'static str>;

fn parked(text: &mut String, found: &Parked, torrents: &[Asked]) {
    match found {
        Err(why) => line(text, 1, format_args!("the parked reads: {why}")),
        Ok((readers, all)) => {
            for reader in readers {
                read(text, reader, torrents);
            }
            and_more(text, 1, all.saturating_sub(readers.len()));
        }
    }
}

/// One parked read, and what it waits for.
fn read(text: &mut String, reader: &ParkedView, torrents: &[Asked]) {
    let what = &reader.what;
    let who = match &reader.who {
        Some(who) => format!("{} (pid {}, tid {})", who.name, who.process, what.tid),
        None => format!("tid {}", what.tid),
    };
    let path = reader.path.as_deref().unwrap_or("a file that is gone");
    line(
        text,
        1,
        format_args!(
            "{who} waits for {path}, {} bytes at {}, since {}",
            what.len,
            what.offset,
            time(what.since.elapsed())
        ),
    );
    let Some((torrent, description)) = torrents.iter().find(|(t, _)| t.slot == what.node.slot()) else {
        return line(text, 2, format_args!("its torrent isn't in the table"));
    };
    let (Some(shared), Some(file)) = (torrent.live(), reader.file) else { return };
    let geometry = &shared.info.geometry;
    let Some(extent) = geometry.files().get(file as usize) else { return };
    let pieces = geometry.pieces_of(extent.offset + what.offset, what.len as u64).map(PieceIndex);
    let missing: Vec<PieceIndex> = pieces.filter(|piece| !shared.table.is_complete(*piece)).collect();
    if missing.is_empty() {
        return line(text, 2, format_args!("all its pieces are here: it waits for a storage worker"));
    }
    let views: BTreeMap<PieceIndex, &PieceView> =
        description.iter().flat_map(|said| &said.swarm.pieces).map(|view| (view.piece, view)).collect();
    for index in missing.iter().take(READ_PIECES_MAX) {
        match views.get(index) {
            Some(view) => piece(text, view),
            None => line(text, 2, format_args!("piece {}: {}", index.0, state(shared.table.state(*index)))),
        }
    }
    if missing.len() > READ_PIECES_MAX {
        line(text, 2, format_args!("and {} pieces more", missing.len() - READ_PIECES_MAX));
    }
    if let Err(why) = description {
        line(text, 2, format_args!("its torrent's owner says no more: {why}"));
    }
}

fn state(state: PieceState) -> &'static str {
    match state {
        PieceState::Unknown => "unknown",
        PieceState::Missing => "missing",
        PieceState::Requested => "requested",
        PieceState::Verifying => "verifying",
        PieceState::Complete => "complete",
    }
}

/// A piece that is waited for, and who has it.
fn piece(text: &mut String, view: &PieceView) {
    let mut about = format!("piece {}: {}", view.piece.0, state(view.state));
    match &view.parts {
        None => about += ", none of its blocks asked for",
        Some(parts) => {
            let _ = write!(
                about,
                ", {} of {} blocks here, {} requested",
                parts.here, parts.blocks, parts.requested
            );
            if parts.recalled > 0 {
                let _ = write!(about, ", {} recalled", parts.recalled);
            }
            if parts.verifying {
                about += ", being hashed or written";
            }
            match parts.alone {
                None => {}
                Some(None) => about += ", to come from one peer alone",
                Some(Some(_)) => about += ", comes from one peer alone",
            }
        }
    }
    if let Some(ago) = view.last_block {
        let _ = write!(about, ", last block {} ago", time(ago));
    }
    if let Some(why) = &view.failing {
        let _ = write!(about, ", fails at once: {why}");
    }
    line(text, 2, format_args!("{about}"));
    if view.holders.is_empty() {
        line(text, 3, format_args!("no connected peer has it, and no webseed"));
    }
    for holder in view.holders.iter().take(HOLDERS_MAX) {
        let is_peer = matches!(holder.who, Holder::Peer(_));
        let words = [
            if holder.has { "has it" } else { "was asked though it hasn't got it" },
            match (is_peer, holder.chokes_us) {
                (true, true) => "chokes us",
                (true, false) => "lets us",
                (false, true) => "backs off",
                (false, false) => "",
            },
            match (is_peer, holder.interesting) {
                (true, true) => "we are interested",
                (true, false) => "we are not interested",
                (false, _) => "",
            },
            if holder.snubbed { "silent for long" } else { "" },
            if holder.has && !holder.chokes_us && !holder.serves { "refused it of late" } else { "" },
        ];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        line(
            text,
            3,
            format_args!(
                "{}: {}; {} of its blocks in flight, {} in all",
                holder.who,
                words.join(", "),
                holder.asked,
                holder.in_flight
            ),
        );
    }
    if view.holders.len() > HOLDERS_MAX {
        line(text, 3, format_args!("and {} more", view.holders.len() - HOLDERS_MAX));
    }
}

fn describe(text: &mut String, torrent: &Torrent, said: &Result<Box<Description>, &'static str>) {
    let (events, commands) = torrent.queued();
    line(text, 1, format_args!("{} \"{}\" {}", torrent.slot, torrent.name(), torrent.info_hash));
    let Description { swarm, desk } = match said {
        Ok(description) => &**description,
        Err(why) => {
            return line(
                text,
                2,
                format_args!(
                    "its owner says nothing: {why}; left to it: {events} batches of its peers, {commands} commands"
                ),
            );
        }
    };
    match (swarm.states, swarm.metadata) {
        (Some([unknown, missing, requested, verifying, complete]), _) => line(
            text,
            2,
            format_args!(
                "pieces: {complete} complete, {verifying} verifying, {requested} requested, {missing} missing, \
                 {unknown} unknown"
            ),
        ),
        (None, Some((here, all))) => line(text, 2, format_args!("metadata: {here} of {all} bytes here")),
        (None, None) => line(text, 2, format_args!("metadata: nothing known yet")),
    }
    if let Some(error) = &swarm.error {
        line(text, 2, format_args!("error: {error}"));
    }
    line(
        text,
        2,
        format_args!(
            "wanted: {} pieces, {} with blocks to ask for, {} looked at on disk, {} fail at once; {} in the making; \
             {} handles open, {} reads wait{}",
            swarm.wanted,
            swarm.open,
            swarm.checks,
            swarm.failing,
            bytes(swarm.held),
            swarm.streams,
            swarm.waiting,
            swarm.last_block.map(|ago| format!("; last block {} ago", time(ago))).unwrap_or_default()
        ),
    );
    for wait in swarm.waits.iter().take(OF_TORRENT_MAX) {
        let pieces: Vec<String> = wait.pieces.iter().take(READ_PIECES_MAX).map(|p| p.0.to_string()).collect();
        line(
            text,
            3,
            format_args!(
                "\"{}\" at byte {} of the torrent: {} pieces ({}), since {}",
                TorrentContent::label(torrent, FileIndex(wait.file.0)),
                wait.offset,
                wait.pieces.len(),
                pieces.join(", "),
                time(wait.waited)
            ),
        );
    }
    and_more(text, 3, swarm.waits.len().saturating_sub(OF_TORRENT_MAX));
    line(
        text,
        2,
        format_args!(
            "queued: {events} batches of its peers, {commands} commands, {} answers of workers, {} finds; {} for \
             which workers had no room; under way: {} hashed or written, {} looked at, {} files opened anew",
            desk.answers, desk.finds, desk.backlog, desk.writing, desk.checking, desk.mending
        ),
    );
    let (pieces, crowd) = desk.crowd;
    line(
        text,
        2,
        format_args!(
            "room: {pieces} pieces with {} wait for some{}",
            bytes(crowd),
            desk.stuck.as_ref().map(|why| format!("; none to be had: {why}")).unwrap_or_default()
        ),
    );
    line(
        text,
        2,
        format_args!(
            "record: {}; {} not recorded yet{}{}",
            if desk.record.is_empty() { "none" } else { &desk.record },
            bytes(desk.dirty),
            desk.dirty_age.map(|age| format!(", for {}", time(age))).unwrap_or_default(),
            desk.record_failed.map(|ago| format!("; failed {} ago", time(ago))).unwrap_or_default()
        ),
    );
    line(
        text,
        2,
        format_args!(
            "peers: {} connected, {} being connected to, {} addresses known{}, {} banned",
            swarm.peers.len(),
            swarm.dialing,
            swarm.addresses,
            swarm.next_dial.map(|pause| format!(", the next try in {}", time(pause))).unwrap_or_default(),
            swarm.banned.len()
        ),
    );
    for peer in swarm.peers.iter().take(OF_TORRENT_MAX) {
        let words = [
            if peer.incoming { "incoming" } else { "outgoing" },
            if peer.chokes_us { "chokes us" } else { "lets us" },
            if peer.interesting { "we are interested" } else { "we are not interested" },
            if peer.choked { "choked" } else { "let in" },
            if peer.interested { "interested in us" } else { "not interested in us" },
            if peer.snubbed { "silent for long" } else { "" },
        ];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let has = peer.has.map_or_else(|| "all pieces".to_owned(), |has| format!("{has} pieces"));
        line(
            text,
            3,
            format_args!(
                "{}: {}; has {has}; {} blocks in flight, {} of them not sent yet; {}/s, {} delivered",
                peer.addr,
                words.join(", "),
                peer.in_flight,
                peer.unsent,
                bytes(peer.rate),
                bytes(peer.delivered)
            ),
        );
    }
    for seed in &swarm.webseeds {
        let has = seed.has.map_or_else(|| "all pieces".to_owned(), |has| format!("{has} pieces"));
        let words = [
            seed.doing.as_str(),
            if seed.waits { "backs off" } else { "" },
            if seed.dropped { "not asked any more" } else { "" },
            if seed.snubbed { "silent for long" } else { "" },
        ];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        line(
            text,
            3,
            format_args!(
                "webseed {}: {}; has {has}; {} blocks in flight, {} of them not taken in hand yet; {}/s, {} delivered",
                seed.url,
                words.join(", "),
                seed.in_flight,
                seed.unsent,
                bytes(seed.rate),
                bytes(seed.delivered)
            ),
        );
    }
    and_more(text, 3, swarm.peers.len().saturating_sub(OF_TORRENT_MAX));
}

/// What is under way from all webseeds together. Without any it is nothing, which is worth knowing.
async fn webseeds(text: &mut String, view: &View, parts: &Arc<Parts>) {
    let hub = view.hub.clone();
    match aside(parts, Part::Webseeds, move || hub.under_way()).await {
        Err(why) => line(text, 1, format_args!("what is under way from webseeds: {why}")),
        Ok((slices, left, requests)) => line(
            text,
            1,
            format_args!(
                "under way from webseeds: {slices} slices, {left} bytes to come of them, {requests} requests"
            ),
        ),
    }
}

async fn storage(text: &mut String, view: &View, parts: &Arc<Parts>) {
    let workers = view.workers.clone();
    match aside(parts, Part::Workers, move || workers.view(Instant::now())).await {
        Err(why) => line(text, 1, format_args!("the queue of the workers: {why}")),
        Ok(workers) => {
            let lanes: Vec<String> = workers
                .lanes
                .iter()
                .map(|lane| {
                    let oldest = lane.oldest.map(|age| format!(", the oldest for {}", time(age)));
                    format!("{:?} {}{}", lane.class, lane.jobs, oldest.unwrap_or_default())
                })
                .collect();
            line(text, 1, format_args!("{} workers; jobs that wait: {}", workers.threads, lanes.join("; ")));
            for job in &workers.running {
                let since = time(job.since);
                line(
                    text,
                    2,
                    format_args!("{} runs a job of class {:?} since {since}", job.thread, job.class),
                );
            }
        }
    }
    let quota = view.room.quota();
    let bound = quota.bound().map(|bound| format!(" of {}", bytes(bound))).unwrap_or_default();
    line(text, 1, format_args!("kept: {}{bound}", bytes(quota.used())));
    let room = view.room.clone();
    match aside(parts, Part::Room, move || (room.need(), room.stuck())).await {
        Err(why) => line(text, 1, format_args!("needs of room: {why}")),
        Ok((need, stuck)) => {
            if let Some(need) = need {
                line(text, 1, format_args!("room is needed for {}", bytes(need.bytes)));
            }
            if let Some(stuck) = stuck {
                line(text, 1, format_args!("no room can be made: {}", stuck.reason));
            }
        }
    }
    line(
        text,
        1,
        format_args!(
            "memory of pieces in the making: {} of {}",
            bytes(view.memory.used()),
            bytes(view.memory.max())
        ),
    );
    if let Some(dht) = &view.dht {
        line(text, 1, format_args!("DHT: {:?}", dht.status()));
    }
}

#[cfg(test)]
#[path = "diagnose_tests.rs"]
mod tests;
