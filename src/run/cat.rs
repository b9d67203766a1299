//! `torrentfs cat`: one file of a torrent to standard output, without a mount.
//!
//! **Flow.** The client is started and the torrent added as for a mount. The file is found by its path, and read
//! with the same [`Reader`] that a mount's handles read with: what isn't here is fetched, what is asked for in
//! order is fetched ahead. Several reads are under way; their bytes go in order to the thread `stdout`, the only
//! one that waits for whoever takes them. At the end the same shutdown as of a mount records what is complete.
//!
//! **Bounds.** Bytes asked for and not yet taken are never more than what was taken before, nor than [`MOST`]
//! ([`next_read`]): so `| head -c 10` fetches little, and memory is bounded however slow the taker is.
//!
//! **The end.** Everything was taken; or the taker went away, which is no error; or a signal came; or a read or
//! a write failed. All of these also end a wait for peers.
//!
//! **Not here.** Nothing of FUSE. How what is fetched ahead is chosen: that is the torrent's.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::{mpsc, oneshot, watch};
use torrentfs_fs::tree::NodeKind;

use super::locate::{self, Astray, locate};
use super::shutdown::{Running, shut_down};
use super::signals::Signals;
use super::start::{DRAW, client_failure, line, load, sockets, start_client};
use crate::cli::cat as say;
use crate::cli::exit::{Exit, Failure};
use crate::cli::terminal::{self, Display, TorrentLine};
use crate::client::Client;
use crate::config::CatConfig;
use crate::content;
use crate::metainfo::geometry::FileIndex;
use crate::net::hosts::Reach;
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use crate::torrent::Torrent;
use crate::torrent::reads::{ReadError, ReadTicket, Reader, Shared};
use crate::torrent::status::{State, seed_words};

/// The first read, and the step of all: what the kernel asks for at once of a mounted file that is read in order.
const FIRST: u64 = 128 << 10;
/// The largest read: beyond this, handing one over costs little beside copying it.
const CHUNK: u64 = 1 << 20;
/// Bytes asked for and not yet taken at most: a few of the largest reads, so that one is copied while others are
/// read. The network's round trips are the business of what is fetched ahead.
const MOST: u64 = 4 * CHUNK;
/// Buffers that wait for the thread `stdout`: as many as [`MOST`] can be cut into, so that it is never full.
const QUEUE: usize = (MOST / FIRST) as usize + 1;
/// Before a read that timed out while it wasn't its turn yet is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// For so long such a read may go on failing at once: a torrent remembers for ten seconds what timed out.
const REMEMBERED: Duration = Duration::from_secs(11);

/// Prints the file, or the part of it that was asked for.
///
/// # Errors
/// What kept it from that, for the user.
pub fn run(config: &CatConfig) -> Result<Exit, Failure> {
    // On a terminal the live line would garble what is printed.
    let progress = terminal::is_live() && !io::stdout().is_terminal();
    let mut display = Display::new(progress);
    let client = &config.client;
    crate::cli::log::init(client.verbosity, client.log_format, display.writer(), terminal::is_live())?;
    let result = super::on_runtime(run_async(config, progress.then_some(&mut display)));
    display.finish();
    result
}

async fn run_async(config: &CatConfig, display: Option<&mut Display>) -> Result<Exit, Failure> {
    let scope = TaskScope::root();
    let signals = Signals::install(&scope)?;
    let mut running = Running::nothing(scope);
    let outcome = tokio::select! {
        outcome = print(config, &mut running, display) => outcome,
        () = signals.reached(1) => Ok(Exit::Forced),
        () = taker_gone() => Ok(Exit::Ok),
    };
    let down = tokio::select! {
        exit = shut_down(running, config.client.shutdown_timeout) => exit,
        () = signals.reached(2) => Exit::Forced,
    };
    match outcome? {
        Exit::Ok => Ok(down),
        other => Ok(other),
    }
}

/// Starts everything and prints. What is to be taken down afterwards is put into `running` as soon as it is up.
async fn print(
    config: &CatConfig,
    running: &mut Running,
    display: Option<&mut Display>,
) -> Result<Exit, Failure> {
    let reach = Reach::of(config.client.allow_private_hosts);
    let loaded = load(&config.source, reach, &sockets(&config.client)).await?;
    let client = start_client(&config.client, running.scope.child("client")).await?;
    running.clients.push(client.clone());
    let torrent = client.add(loaded).await.map_err(|error| client_failure(&error))?;
    let (taken, told) = watch::channel(0);
    // What is to be printed, once it is known.
    let goal: OnceCell<(String, u64)> = OnceCell::new();
    let work = async {
        let shared = metadata(&client, &torrent, config.client.metadata_timeout).await?;
        let path = config.path.as_deref().map(|path| path.to_string_lossy());
        let file = find(&torrent, path.as_deref())?;
        let range = part(config.offset, config.length, file.size);
        if range.is_empty() {
            return Ok(Exit::Ok);
        }
        let _ = goal.set((file.name.clone(), range.end - range.start));
        let reader = Reader::open(shared, file.index)
            .ok_or_else(|| Failure::internal(&file.name, "the torrent has lost its file"))?;
        let output = Output::start(taken, told.clone())?;
        let copied = copy(&reader, range, output, config.client.read_timeout).await;
        copied.map(|()| Exit::Ok).or_else(|fault| {
            if matches!(fault, Fault::Read(..)) {
                tell_webseeds(&torrent);
            }
            fault.explain(&file.name)
        })
    };
    let line = || match goal.get() {
        Some((name, size)) => {
            TorrentLine { name: name.clone(), have: *told.borrow(), size: *size, ..line(&torrent) }
        }
        None => line(&torrent),
    };
    shown(display, line, work).await
}

/// Says what is wrong with webseeds, when something came to nothing: there is no status to look at.
fn tell_webseeds(torrent: &Torrent) {
    for seed in torrent.webseeds().iter().filter(|seed| seed.reason.is_some()) {
        tracing::warn!("webseed {}: {}", seed.url, seed_words(seed));
    }
}

/// Does the work while the display, if there is one, shows how far it is.
async fn shown<T>(
    display: Option<&mut Display>,
    line: impl Fn() -> TorrentLine,
    work: impl Future<Output = T>,
) -> T {
    let Some(display) = display else { return work.await };
    tokio::pin!(work);
    let mut draw = tokio::time::interval(DRAW);
    draw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = draw.tick() => display.update(vec![line()]),
        }
    }
}

/// Waits for the metadata: for the disk, and then for peers, `limit` at most.
async fn metadata(client: &Client, torrent: &Torrent, limit: Duration) -> Result<Arc<Shared>, Failure> {
    // A disk that is slower than that has its turn below.
    let _ = tokio::time::timeout(timeouts::SETTLE, torrent.settled()).await;
    let came = async {
        loop {
            if let Some(shared) = torrent.live() {
                return Ok(shared.clone());
            }
            let status = torrent.status();
            if status.state == State::Error {
                let why = status.error.as_deref().unwrap_or("it is in an error state");
                return Err(Failure::new(Exit::Data, torrent.name(), why));
            }
            client.changed().await;
        }
    };
    match tokio::time::timeout(limit, came).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let why = format!("no peer sent its metadata within {limit:?}");
            Err(Failure::new(Exit::Data, torrent.name(), why)
                .hint("name a peer with --peer, or wait longer with --metadata-timeout"))
        }
    }
}

/// A file that was found.
struct Found {
    /// Its path in the torrent; of a torrent that is a single file, its name.
    name: String,
    index: FileIndex,
    size: u64,
}

fn find(torrent: &Torrent, path: Option<&str>) -> Result<Found, Failure> {
    let tree = content::subtree(torrent, torrent.live().map(|l| &**l), torrent.name());
    let given = path.unwrap_or_default();
    let node = locate(&tree, path).map_err(|astray| match astray {
        Astray::Missing(folder) => {
            let place = locate::path_of(&tree, folder);
            say::no_such_path(given, &place, locate::names(&tree, folder))
        }
        Astray::Folder(folder) => say::is_a_folder(given, locate::names(&tree, folder)),
        Astray::Link => say::broken_link(given),
    })?;
    let name = match locate::path_of(&tree, node) {
        path if path.is_empty() => torrent.name().to_owned(),
        path => path,
    };
    match tree.node(node).map(|node| &node.kind) {
        Some(NodeKind::File { size, file, .. }) => Ok(Found { name, index: FileIndex(*file), size: *size }),
        _ => Err(Failure::internal(name, "the torrent has lost its file")),
    }
}

/// The bytes of a file that are to be printed; none when the offset lies at its end or beyond.
fn part(offset: u64, length: Option<u64>, size: u64) -> Range<u64> {
    let start = offset.min(size);
    start..length.map_or(size, |length| start.saturating_add(length).min(size))
}

/// Where the next read ends, if it is time for one: `asked` is where the last one ended, `taken` how many bytes
/// whoever reads our output has taken since the beginning.
fn next_read(range: &Range<u64>, asked: u64, taken: u64) -> Option<u64> {
    // A quarter of what may be under way, so that there are several; ended at a multiple of the step, so that
    // an odd offset costs one odd read only.
    let len = (taken / 4).clamp(FIRST, CHUNK) / FIRST * FIRST;
    let end = (asked - asked % FIRST + len).min(range.end);
    let under_way = (asked - range.start).saturating_sub(taken);
    let fits = under_way == 0 || under_way + (end - asked) <= taken.clamp(FIRST, MOST);
    (asked < range.end && fits).then_some(end)
}

/// Why printing ended early.
#[derive(Debug)]
enum Fault {
    /// A read at this offset.
    Read(u64, ReadError),
    /// A write.
    Write(io::Error),
}

impl Fault {
    /// What it means for the user; nothing, when whoever took the output has gone away.
    fn explain(self, name: &str) -> Result<Exit, Failure> {
        let (at, error) = match self {
            Self::Write(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Exit::Ok),
            Self::Write(error) => {
                return Err(Failure::new(Exit::Data, "can't write to standard output", error));
            }
            Self::Read(at, error) => (at, error),
        };
        let what = format!("{name}: can't read at byte {at}");
        Err(match error {
            ReadError::TimedOut(_) => Failure::new(Exit::Data, what, error)
                .hint("name a peer with --peer, or wait longer with --read-timeout; what came is kept"),
            ReadError::Full => Failure::new(Exit::Cache, what, error)
                .hint("make room there, or keep the data elsewhere with --cache-dir"),
            ReadError::Io(_) | ReadError::Closed | ReadError::NotHere | ReadError::Removed => {
                Failure::new(Exit::Data, what, error)
            }
        })
    }
}

/// A read that was asked for.
struct Asked {
    range: Range<u64>,
    /// When it was asked for first.
    since: Instant,
    answer: Answer,
}

enum Answer {
    /// It was at hand.
    Here(Vec<u8>),
    /// It comes, unless the ticket is dropped before.
    Later(oneshot::Receiver<Result<Vec<u8>, ReadError>>, #[expect(dead_code, reason = "held")] ReadTicket),
}

impl Asked {
    fn new(reader: &Reader, range: Range<u64>) -> Self {
        let len = (range.end - range.start) as usize;
        let mut bytes = vec![0; len];
        let answer = match reader.try_read(range.start, &mut bytes) {
            true => Answer::Here(bytes),
            false => {
                let (sender, receiver) = oneshot::channel();
                // On a storage worker; nobody listens any more when we are about to end.
                let done = Box::new(move |result: Result<&[u8], ReadError>| {
                    let _ = sender.send(result.map(|read| {
                        bytes.copy_from_slice(read);
                        bytes
                    }));
                });
                Answer::Later(receiver, reader.read(range.start, len, done))
            }
        };
        Self { range, since: Instant::now(), answer }
    }

    /// Whether a time-out of it may be for want of its turn: with several reads under way the last may time out
    /// while the first still get their data. `moved` is when data came last, for any of them.
    fn waited_its_turn(&self, moved: Instant, limit: Option<Duration>) -> bool {
        moved > self.since && limit.is_none_or(|limit| moved.elapsed() < limit + REMEMBERED)
    }

    /// Waits for its bytes, which are given once. Cancel-safe.
    async fn bytes(&mut self) -> Result<Vec<u8>, ReadError> {
        match &mut self.answer {
            Answer::Here(bytes) => Ok(std::mem::take(bytes)),
            Answer::Later(receiver, _) => receiver
                .await
                .unwrap_or_else(|_| Err(ReadError::Io("the storage workers had no room for it".into()))),
        }
    }
}

/// Waits for the bytes of the oldest read; for ever when there is none. Cancel-safe.
async fn oldest(reads: &mut VecDeque<Asked>) -> Result<Vec<u8>, ReadError> {
    match reads.front_mut() {
        Some(read) => read.bytes().await,
        None => pending().await,
    }
}

/// Copies a part of the file to the output, in order. `limit` is the read time-out.
async fn copy(
    reader: &Reader,
    range: Range<u64>,
    mut output: Output,
    limit: Option<Duration>,
) -> Result<(), Fault> {
    let mut reads: VecDeque<Asked> = VecDeque::new();
    let mut asked = range.start;
    let mut moved = Instant::now();
    loop {
        let taken = *output.taken.borrow_and_update();
        while let Some(end) = next_read(&range, asked, taken) {
            reads.push_back(Asked::new(reader, asked..end));
            asked = end;
        }
        if reads.is_empty() && asked == range.end {
            // The thread writes what it has, and ends.
            output.queue = None;
        }
        tokio::select! {
            biased;
            ended = &mut output.ended => {
                let lost = || io::Error::other("the thread that writes it has died");
                return ended.unwrap_or_else(|_| Err(lost())).map_err(Fault::Write);
            }
            read = oldest(&mut reads) => match read {
                Ok(bytes) => {
                    moved = Instant::now();
                    reads.pop_front();
                    if let Some(queue) = &output.queue {
                        // An error is the end of the thread, and it says itself why.
                        let _ = queue.send(bytes).await;
                    }
                }
                Err(error) => match reads.front_mut() {
                    Some(read)
                        if matches!(error, ReadError::TimedOut(_)) && read.waited_its_turn(moved, limit) =>
                    {
                        tokio::time::sleep(AGAIN).await;
                        *read = Asked { since: read.since, ..Asked::new(reader, read.range.clone()) };
                    }
                    read => return Err(Fault::Read(read.map_or(asked, |read| read.range.start), error)),
                },
            },
            // The thread ends with this channel, and says so above.
            Ok(()) = output.taken.changed() => {}
        }
    }
}

/// The thread `stdout`, and the ways to and from it. Dropping it lets the thread end when its queue is empty;
/// one that is stuck in a write ends with the process.
struct Output {
    /// Buffers to write, in order; given up at the end. See [`QUEUE`].
    queue: Option<mpsc::Sender<Vec<u8>>>,
    /// Bytes taken so far.
    taken: watch::Receiver<u64>,
    /// What became of it.
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    fn start(taken: watch::Sender<u64>, told: watch::Receiver<u64>) -> Result<Self, Failure> {
        // Not through the standard library's buffer, which looks for line breaks.
        let own = io::stdout().as_fd().try_clone_to_owned();
        let out = own.map_err(|e| Failure::new(Exit::Data, "can't write to standard output", e))?;
        let (queue, mut buffers) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let write = move || {
            let mut out = std::fs::File::from(out);
            let written = write_all(&mut buffers, &mut out, &taken);
            // Some file systems tell only then that they have no room.
            let closed = nix::unistd::close(out).map_err(io::Error::from);
            // Told before `taken` is dropped, so that whoever waits for both learns of this.
            let _ = end.send(written.and(closed));
            drop(taken);
        };
        let thread = std::thread::Builder::new().name("stdout".into()).spawn(write);
        thread.map_err(|e| Failure::internal("can't start the thread that writes", e))?;
        Ok(Self { queue: Some(queue), taken: told, ended })
    }
}

/// Writes buffers until the queue is given up. Blocks as long as nobody takes what is written.
fn write_all(
    buffers: &mut mpsc::Receiver<Vec<u8>>,
    out: &mut impl Write,
    taken: &watch::Sender<u64>,
) -> io::Result<()> {
    while let Some(buffer) = buffers.blocking_recv() {
        let mut left = buffer.as_slice();
        while !left.is_empty() {
            match out.write(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    left = left.get(n..).unwrap_or_default();
                    taken.send_modify(|all| *all += n as u64);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Waits until nobody can take our output any more: the other end of a pipe was closed. So a wait for peers ends
/// with its reason, and not only at the next write. For ever where that can't be, as with a file.
async fn taker_gone() {
    // What can't be watched is no pipe.
    let own = io::stdout().as_fd().try_clone_to_owned().ok();
    // SAFETY: the descriptor is open, is owned by what is registered, and stays the same until that is dropped.
    let watched = own.and_then(|own| unsafe { AsyncFd::register_with_interest(own, Interest::ERROR) }.ok());
    if let Some(out) = watched {
        while let Ok(mut ready) = out.ready(Interest::ERROR).await {
            if ready.ready().is_error() {
                return;
            }
            ready.clear_ready();
        }
    }
    pending().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_part_that_is_printed() {
        let rows: &[(u64, Option<u64>, Range<u64>)] = &[
            (0, None, 0..100),
            (10, None, 10..100),
            (10, Some(20), 10..30),
            (90, Some(20), 90..100),
            (10, Some(0), 10..10),
            (100, None, 100..100),
            (101, Some(5), 100..100),
            (u64::MAX, Some(u64::MAX), 100..100),
            (1, Some(u64::MAX), 1..100),
        ];
        for (offset, length, want) in rows {
            assert_eq!(part(*offset, *length, 100), *want, "{offset} {length:?}");
        }
    }

    #[test]
    fn what_is_under_way_is_never_more_than_what_was_taken() {
        for range in [0..100 << 20, 12_345..(100 << 20) + 1, 5..6] {
            let (mut asked, mut taken) = (range.start, 0);
            let mut most = 0;
            let mut reads = 0;
            while taken < range.end - range.start {
                while let Some(end) = next_read(&range, asked, taken) {
                    assert!(end > asked && end - asked <= CHUNK && end <= range.end);
                    assert!(end == range.end || end % FIRST == 0, "{asked}..{end}");
                    (asked, reads) = (end, reads + 1);
                }
                let under_way = asked - range.start - taken;
                assert!(under_way > 0, "stuck at {taken} of {range:?}");
                assert!(under_way <= taken.clamp(FIRST, MOST), "{under_way} after {taken}");
                most = most.max(under_way);
                taken += under_way.min(64 << 10);
            }
            assert_eq!(next_read(&range, asked, taken), None);
            if range.end > MOST {
                assert!(most > MOST - CHUNK, "the whole of it is made use of: {most}");
                assert!(reads < 150, "{reads} reads");
            }
        }
    }

    #[test]
    fn a_short_write_is_gone_on_with_and_an_error_ends_it() {
        struct Slow(Vec<u8>, usize);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 {
                    2 => Err(ErrorKind::Interrupted.into()),
                    9 => Err(ErrorKind::StorageFull.into()),
                    _ => {
                        self.0.extend(bytes.iter().take(3));
                        Ok(bytes.len().min(3))
                    }
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, mut buffers) = mpsc::channel(4);
        let (taken, told) = watch::channel(0);
        let mut out = Slow(Vec::new(), 0);
        queue.blocking_send(b"0123456789".to_vec()).unwrap();
        queue.blocking_send(b"abcdefghijkl".to_vec()).unwrap();
        drop(queue);
        let error = write_all(&mut buffers, &mut out, &taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!((out.0.as_slice(), *told.borrow()), (b"0123456789abcdefghi".as_slice(), 19));
    }

    #[test]
    fn faults_and_their_codes() {
        let rows = [
            (Fault::Write(ErrorKind::BrokenPipe.into()), Ok(Exit::Ok), ""),
            (Fault::Write(ErrorKind::StorageFull.into()), Err(Exit::Data), "standard output"),
            (Fault::Read(7, ReadError::TimedOut("x".into())), Err(Exit::Data), "--read-timeout"),
            (Fault::Read(7, ReadError::Full), Err(Exit::Cache), "--cache-dir"),
            (
                Fault::Read(7, ReadError::Io("disk".into())),
                Err(Exit::Data),
                "a/b: can't read at byte 7: disk",
            ),
        ];
        for (fault, code, words) in rows {
            let outcome = fault.explain("a/b");
            if let Err(failure) = &outcome {
                assert!(failure.to_string().contains(words), "{failure}");
            }
            assert_eq!(outcome.map_err(|failure| failure.exit()), code);
        }
    }
}
