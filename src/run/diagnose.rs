//! What the program is at, as text, for a person who looks for what hangs (row L5).
//!
//! **Flow.** [`report`] asks each part in turn and writes down what it says: locks, tasks, parked readers, torrents,
//! storage workers. It works while things hang: what could wait for a lock is looked at from a thread of its own, an owner is
//! asked by a message, and neither is waited for longer than [`ANSWER`]. Who doesn't answer is named as such, with what
//! can be seen of it from outside.
//!
//! A parked reader is shown with all that it waits for: who it is, where it reads, each missing piece with its blocks,
//! and the peers that have it. That is put together from two sides: the filesystem knows the reader, the torrent's
//! owner the peers.
//!
//! **Not here.** When it is asked for: [`super::watchdog`] and the control socket.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
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
/// Pieces that are listed of one read: the kernel asks for 1 MiB at most, which is more only with tiny pieces.
const READ_PIECES_MAX: usize = 8;
/// Webseeds and peers that are listed with a piece.
const HOLDERS_MAX: usize = 10;

/// Why a part is missing from the report.
const SILENT: &str = "no answer within 0.5 s";
/// The same of an owner that is gone.
const ENDED: &str = "it has ended";

/// All of it, as lines. Takes some seconds at most, and far less when nothing hangs; holds no lock while it waits.
pub async fn report(client: &Client, mounted: Option<&Mounted>, scope: &TaskScope) -> String {
    report_early(Some(client), mounted, scope).await
}

/// As [`report`], also before there is a client, or after it has gone.
pub(super) async fn report_early(
    client: Option<&Client>,
    mounted: Option<&Mounted>,
    scope: &TaskScope,
) -> String {
    // What is held from here to the end is held for as long at least, whether anybody looked before or not.
    holders::look();
    let mut text = String::new();
    heading(&mut text, "tasks");
    tasks(&mut text, scope).await;
    let view = client.map(|client| client.view(ANSWER));
    let torrents = match &view {
        Some(view) => ask_all(view).await,
        None => Vec::new(),
    };
    if let Some(mounted) = mounted {
        heading(&mut text, &format!("mount at {}", mounted.path().display()));
        readers(&mut text, mounted, &torrents).await;
    }
    if let Some(view) = &view {
        heading(&mut text, "torrents");
        if view.torrents.is_none() {
            line(&mut text, 1, format_args!("the table of torrents is locked; {SILENT}"));
        }
        for (torrent, description) in &torrents {
            describe(&mut text, torrent, description);
        }
        heading(&mut text, "storage");
        storage(&mut text, view).await;
    }
    let mut first = String::new();
    heading(&mut first, "locks");
    locks(&mut first, &holders::look());
    first + &text
}

/// Who holds which lock, and who waits for it.
fn locks(text: &mut String, look: &Look) {
    for held in &look.held {
        line(text, 1, format_args!("{}", holder(held)));
        for waits in look.waiting.iter().filter(|waits| waits.address == held.address) {
            line(text, 2, format_args!("{}", waiter(waits)));
        }
    }
    // Given back between the looks at the one and the other, or held by what isn't followed.
    let known = |waits: &&Taking| !look.held.iter().any(|held| held.address == waits.address);
    for waits in look.waiting.iter().filter(known) {
        line(text, 1, format_args!("`{}`: {}", waits.lock, waiter(waits)));
    }
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
async fn ask_all(view: &View) -> Vec<Asked> {
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
    futures_util::future::join_all(view.torrents.iter().flatten().map(ask)).await
}

/// Looks from a thread of its own, since it may wait for a lock; `None` when that takes too long.
async fn aside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(ANSWER, super::on_thread("report: aside", look)).await.ok()?
}

fn heading(text: &mut String, name: &str) {
    let _ = writeln!(text, "{name}:");
}

fn line(text: &mut String, depth: usize, what: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = writeln!(text, "{:width$}{what}", "", width = 2 * depth);
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

async fn tasks(text: &mut String, scope: &TaskScope) {
    let scope = scope.clone();
    match aside(move || scope.look(Instant::now())).await {
        None => line(text, 1, format_args!("the registry of tasks is locked; {SILENT}")),
        Some(tasks) => {
            for task in tasks {
                let runs =
                    task.runs.map(|since| format!(", runs without a pause for {} at least", time(since)));
                line(
                    text,
                    1,
                    format_args!("{}: {} old{}", task.name, time(task.age), runs.unwrap_or_default()),
                );
            }
        }
    }
}

async fn readers(text: &mut String, mounted: &Mounted, torrents: &[Asked]) {
    let view = mounted.view();
    let counts = aside({
        let view = view.clone();
        move || view.counts()
    });
    match counts.await {
        None => line(text, 1, format_args!("the tables of inodes and handles: {SILENT}")),
        Some(counts) => line(
            text,
            1,
            format_args!(
                "{} inodes known, {} handles open, {} reads parked",
                counts.inodes, counts.handles, counts.parked
            ),
        ),
    }
    let Some((readers, all)) = aside(move || view.parked(READERS_MAX)).await else {
        return line(text, 1, format_args!("the parked reads: {SILENT}"));
    };
    for reader in &readers {
        read(text, reader, torrents);
    }
    if readers.len() < all {
        line(text, 1, format_args!("and {} more", all - readers.len()));
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
    for wait in &swarm.waits {
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
    for peer in &swarm.peers {
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
}

async fn storage(text: &mut String, view: &View) {
    let workers = view.workers.clone();
    match aside(move || workers.view(Instant::now())).await {
        None => line(text, 1, format_args!("the queue of the workers: {SILENT}")),
        Some(workers) => {
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
    match aside(move || (room.need(), room.stuck())).await {
        None => line(text, 1, format_args!("needs of room: {SILENT}")),
        Some((need, stuck)) => {
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
