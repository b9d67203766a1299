//! What is shown on stderr: log lines, and below them, on a terminal, one live line per torrent, or one that tells
//! how far a job is.
//!
//! **Parts.** [`TorrentLine`] and [`line()`]: pure formatting. `Screen`: the bytes that bring a terminal from what
//! it shows to what it should show, pure as well. [`Display`]: the owner of the one thread that writes to stderr.
//! [`LogWriter`]: the way of log lines to that thread. [`Sink`]: where else it may put them.
//!
//! **Flow.** Log lines and updates are messages to the thread, over a bounded channel. It takes all that are
//! there, erases the live lines, writes the log lines, draws the live lines again, in a single write.
//!
//! **Why a thread.** A terminal may be stopped (Ctrl-S) or a pipe be full, and writing then blocks. If everyone
//! wrote for himself, under whatever lock he holds, that would stop the filesystem. Here it only fills the channel:
//! log lines are then counted instead of kept, and an update is dropped, for the next one to replace.
//!
//! **Not here.** No terminal library: all that is needed is "cursor up" and "erase". Widths are never
//! underestimated, so a line never wraps; a character taken for wider than it is costs a space.

pub use crate::storage::size::bytes;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::oneshot;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::progress::Progress;

/// Messages that wait for the terminal at most; with usual log lines that is under a megabyte.
const QUEUE: usize = 4096;
/// What is assumed when the terminal doesn't tell its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// What is shown of one torrent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TorrentLine {
    /// As shown in the mount; unique among those shown.
    pub name: String,
    /// `resolving`, `checking`, `idle`, `downloading`, `stalled`, `complete` or `error`.
    pub state: &'static str,
    /// Bytes here, verified.
    pub have: u64,
    /// Bytes in all; 0 while that isn't known.
    pub size: u64,
    /// Bytes a second, received.
    pub rate_down: u64,
    /// Bytes a second, sent.
    pub rate_up: u64,
    /// Connected peers.
    pub peers: u32,
    /// Peers that are being dialled.
    pub connecting: u32,
    /// Webseeds that may be asked.
    pub webseeds: u32,
    /// What readers wait for, the longest first, as in `movie.mkv @ 12.3 MiB for 3 s`.
    pub waiting: Vec<String>,
    /// Why the state is `error`.
    pub error: Option<String>,
}

/// Formats a torrent's line in at most `width` columns. What matters least goes first when room is short.
pub fn line(torrent: &TorrentLine, width: usize) -> String {
    let name_width = (width * 2 / 5).clamp(8, 32);
    let status = format!("{:<11} {:>4}", torrent.state, percent(torrent));
    if width < name_width + 2 + status.len() {
        // Too narrow for columns: the figure is worth more than the end of the name.
        return cut(&format!("{} {}", percent(torrent), clean(&torrent.name)), width).into_owned();
    }
    let mut parts = vec![status];
    let mut tail = None;
    if let Some(error) = &torrent.error {
        tail = Some(format!("error: {}", clean(error)));
    } else {
        if torrent.state != "complete" {
            parts.push(format!("{:>10}", rate(torrent.rate_down)));
        }
        if torrent.rate_up > 0 {
            parts.push(format!("up {}", rate(torrent.rate_up)));
        }
        parts.push(match (torrent.peers, torrent.connecting) {
            (1, 0) => "1 peer".to_owned(),
            (peers, 0) => format!("{peers} peers"),
            (peers, dialled) => format!("{peers} peers (+{dialled} dialled)"),
        });
        match torrent.webseeds {
            0 => {}
            1 => parts.push("1 webseed".to_owned()),
            webseeds => parts.push(format!("{webseeds} webseeds")),
        }
        if let Some((first, others)) = torrent.waiting.split_first() {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            tail = Some(format!("waits: {}{more}", clean(first)));
        }
    }
    let mut out = fit(&torrent.name, name_width);
    let mut left = width - name_width;
    for part in parts {
        if part.len() + 2 > left {
            return out;
        }
        left -= part.len() + 2;
        out.push_str("  ");
        out.push_str(&part);
    }
    // Less than this of a sentence says nothing.
    const SHORTEST_TAIL: usize = 12;
    if let Some(tail) = tail
        && left >= SHORTEST_TAIL + 2
    {
        out.push_str("  ");
        out.push_str(&cut(&tail, left - 2));
    }
    out
}

/// `45%`, rounded down so that only what is complete is 100 %; `-` while the size isn't known.
fn percent(torrent: &TorrentLine) -> String {
    match (torrent.have, torrent.size) {
        (_, 0) if torrent.state == "complete" => "100%".into(),
        (_, 0) => "-".into(),
        (have, size) => format!("{}%", u128::from(have.min(size)) * 100 / u128::from(size)),
    }
}

/// Bytes a second for people.
fn rate(n: u64) -> String {
    format!("{}/s", bytes(n))
}

/// Replaces what could drive a terminal or turn the reading order: control characters, line separators and
/// marks of direction. Names in torrents are written by strangers.
pub fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
    };
    if text.contains(bad) { text.replace(bad, "\u{fffd}").into() } else { text.into() }
}

/// Makes an event of the log harmless: of control characters only colours stay, the rest is written out. A line
/// break within is indented, so that no name or message from outside passes for a line of ours.
fn tame(event: &[u8]) -> Vec<u8> {
    let (body, end) = match event.split_last() {
        Some((b'\n', body)) => (body, b"\n".as_slice()),
        _ => (event, b"".as_slice()),
    };
    let mut out = Vec::with_capacity(event.len());
    let mut rest = body;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\n', _) => out.extend_from_slice(b"\n    "),
            (0x1b, [b'[', sequence @ ..]) => {
                let len = sequence.iter().take_while(|b| b.is_ascii_digit() || **b == b';').count();
                if sequence.get(len) == Some(&b'm') {
                    out.push(byte);
                } else {
                    out.extend_from_slice(b"\\x1b");
                }
            }
            // The upper control characters, as UTF-8.
            (0xc2, [second @ 0x80..=0x9f, tail @ ..]) => {
                out.extend_from_slice(format!("\\x{second:02x}").as_bytes());
                rest = tail;
            }
            (b'\t', _) => out.push(byte),
            (0..0x20 | 0x7f, _) => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.extend_from_slice(end);
    out
}

/// Columns that a character takes, or more, but never fewer: everything that may be wide counts as wide.
fn char_width(c: char) -> usize {
    match u32::from(c) {
        // Combining marks, joiners, jamo that follow another, selectors of variants.
        0x300..=0x36f | 0x200b..=0x200d | 0x1160..=0x11ff | 0x20d0..=0x20ff | 0xe0100..=0xe01ef => 0,
        // Jamo, symbols with emoji among them, CJK with its punctuation and forms, Hangul, and the planes of
        // emoji and ideographs.
        0x1100..=0x115f
        | 0x2300..=0x23ff
        | 0x25a0..=0x27bf
        | 0x2900..=0x297f
        | 0x2b00..=0x2bff
        | 0x2e80..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7ff
        | 0xf900..=0xfaff
        | 0xfe10..=0xfe19
        | 0xfe30..=0xfe6f
        | 0xff01..=0xff60
        | 0xffe0..=0xffe6
        | 0x16fe0..=0x1b2ff
        | 0x1d300..=0x1d37f
        | 0x1f000..=0x1faff
        | 0x20000..=0x3ffff => 2,
        _ => 1,
    }
}

/// Columns that a text takes, or more.
pub(super) fn text_width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// The text itself if it fits, otherwise its beginning and an ellipsis, in `width` columns.
pub(super) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text_width(text) <= width {
        return text.into();
    }
    let Some(room) = width.checked_sub(1) else { return "".into() };
    let mut used = 0;
    let mut out: String = text
        .chars()
        .take_while(|&c| {
            used += char_width(c);
            used <= room
        })
        .collect();
    out.push('…');
    out.into()
}

/// A name, made harmless, in exactly `width` columns: the middle is left out when it is long, since what tells
/// two names apart stands at either end.
pub(super) fn fit(name: &str, width: usize) -> String {
    let name = clean(name);
    let full = text_width(&name);
    let mut out = if full <= width {
        name.into_owned()
    } else {
        let room = width.saturating_sub(1);
        let mut head = String::new();
        let mut used = 0;
        for c in name.chars() {
            if used + char_width(c) > room.div_ceil(2) {
                break;
            }
            used += char_width(c);
            head.push(c);
        }
        let mut tail = Vec::new();
        for c in name.chars().rev() {
            if used + char_width(c) > room {
                break;
            }
            used += char_width(c);
            tail.push(c);
        }
        head.push('…');
        head.extend(tail.into_iter().rev());
        head
    };
    let missing = width.saturating_sub(text_width(&out));
    out.extend(std::iter::repeat_n(' ', missing));
    out
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// How wide.
    pub columns: usize,
    /// How high.
    pub rows: usize,
}

/// What one live line is about.
#[derive(Debug)]
enum Live {
    Torrent(TorrentLine),
    Progress(Progress),
    Text(String),
}

impl Live {
    /// In at most `width` columns.
    fn line(&self, width: usize) -> String {
        match self {
            Self::Torrent(torrent) => line(torrent, width),
            Self::Progress(progress) => progress.line(width),
            Self::Text(text) => cut(text, width).into_owned(),
        }
    }
}

/// What the terminal shows below the log, and the bytes that change it.
#[derive(Debug, Default)]
pub struct Screen {
    live: Vec<Live>,
    /// Live lines on the terminal now; the cursor stands at the beginning of the line below them.
    drawn: usize,
}

impl Screen {
    /// Bytes that bring the terminal from the lines it shows to these, as far as they fit on it.
    pub fn redraw(&mut self, lines: Vec<String>, size: Size) -> Vec<u8> {
        self.live = lines.into_iter().map(Live::Text).collect();
        self.render(&[], size)
    }

    /// Bytes that write `log` (whole lines) above the live lines and bring those up to date.
    fn render(&mut self, log: &[u8], size: Size) -> Vec<u8> {
        let mut out = Vec::new();
        if self.drawn > 0 {
            out.extend_from_slice(format!("\x1b[{}A\r", self.drawn).as_bytes());
        }
        if !log.is_empty() {
            // Erased first: the log may be shorter than the lines that it takes the place of.
            if self.drawn > 0 {
                out.extend_from_slice(b"\x1b[J");
            }
            out.extend_from_slice(log);
            self.drawn = 0;
        }
        // The last column stays free (writing there wraps on some terminals), and so does a row for the cursor.
        let width = size.columns.saturating_sub(1);
        let room = size.rows.saturating_sub(1);
        let fits = if self.live.len() <= room { room } else { room.saturating_sub(1) };
        let mut lines: Vec<_> = self.live.iter().take(fits).map(|live| live.line(width)).collect();
        if lines.len() < self.live.len() && room > 0 {
            lines.push(cut(&format!("and {} more", self.live.len() - lines.len()), width).into_owned());
        }
        for line in &lines {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\x1b[K\n");
        }
        if lines.len() < self.drawn {
            out.extend_from_slice(b"\x1b[J");
        }
        self.drawn = lines.len();
        out
    }
}

/// Where log lines go that stderr isn't to have.
pub trait Sink: Send {
    /// Takes an event of the log, made harmless, with its line break. May wait, with a bound.
    fn take(&mut self, level: Level, event: &[u8]);
}

impl Sink for File {
    fn take(&mut self, _: Level, event: &[u8]) {
        // Nobody is left to tell when the disk is full, either.
        let _ = self.write_all(event);
    }
}

enum Message {
    /// A log line, with its line break.
    Log(Level, Vec<u8>),
    /// Where log lines go from now on.
    Divert(Box<dyn Sink>),
    /// What to show from now on.
    Lines(Vec<Live>),
    /// Look at the `finish` flag.
    Wake,
    /// Drop this when what came before is written.
    Written(oneshot::Sender<()>),
}

/// What the thread and its clients share. No lock: a log line may come from under any lock there is.
#[derive(Debug, Default)]
struct Shared {
    /// Log lines that found the channel full, not yet reported.
    lost: AtomicU64,
    /// Whether to end when the channel is empty.
    finish: AtomicBool,
}

/// The way of log lines to the terminal. Cheap to clone. Writing never waits, except after
/// [`Display::finish`], when it goes straight to stderr.
#[derive(Debug, Clone)]
pub struct LogWriter {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
    /// Of the event that is being written.
    level: Level,
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self {
        Self { level: *meta.level(), ..self.clone() }
    }
}

impl Write for LogWriter {
    /// Takes one event of the log, whole. What the channel has no room for is counted and reported later.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        match self.sender.try_send(Message::Log(self.level, tame(event))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(Message::Log(_, tamed))) => std::io::stderr().write_all(&tamed)?,
            Err(TrySendError::Disconnected(_)) => {}
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The live display, and the thread that writes to stderr. Dropping it is [`Display::finish`].
#[derive(Debug)]
pub struct Display {
    is_tty: bool,
    writer: LogWriter,
    /// Disconnected when the thread has ended. `None` once that was waited for.
    done: Option<Receiver<()>>,
    /// The state last logged of each torrent, when there is no terminal.
    states: BTreeMap<String, &'static str>,
    /// Tenths of a job that were logged.
    tenth: u64,
}

/// Whether stderr is a terminal that understands cursor movements: what [`Display::new`] wants to know.
pub fn is_live() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

impl Display {
    /// Starts the thread. With `is_tty`, updates are drawn; without, changes of state are logged.
    pub fn new(is_tty: bool) -> Self {
        Self::with_log(is_tty, None)
    }

    /// As [`Display::new`], with the log lines in a file. What is drawn goes to stderr still.
    pub fn with_log(is_tty: bool, log: Option<File>) -> Self {
        Self::on(is_tty, std::io::stderr(), log.map(|file| Box::new(file) as Box<dyn Sink>), terminal_size)
    }

    /// Has log lines go there from now on. Never waits: with a full queue, which [`Display::written`] empties, they go
    /// where they went.
    pub fn divert(&self, sink: impl Sink + 'static) {
        let _ = self.writer.sender.try_send(Message::Divert(Box::new(sink)));
    }

    fn on(
        is_tty: bool,
        out: impl Write + Send + 'static,
        log: Option<Box<dyn Sink>>,
        size: fn() -> Size,
    ) -> Self {
        let (sender, messages) = sync_channel(QUEUE);
        let (ended, done) = sync_channel(0);
        let shared = Arc::new(Shared::default());
        let thread_shared = shared.clone();
        let thread = std::thread::Builder::new().name("terminal".into()).spawn(move || {
            run(&messages, &thread_shared, is_tty, out, log, size);
            drop((messages, ended));
        });
        // Without the thread its end of the channel is gone, and log lines go straight to stderr.
        drop(thread);
        Self {
            is_tty,
            writer: LogWriter { sender, shared, level: Level::INFO },
            done: Some(done),
            states: BTreeMap::new(),
            tenth: 0,
        }
    }

    /// Where log lines have to go, so that they and the live lines don't garble each other.
    pub fn writer(&self) -> LogWriter {
        self.writer.clone()
    }

    /// Whether live lines are drawn.
    pub fn is_live(&self) -> bool {
        self.is_tty
    }

    /// Waits until what was logged and shown so far is written, a second at most.
    pub async fn written(&self) {
        let (sender, receiver) = oneshot::channel();
        // With no room in the queue its end can't be seen: then nothing is waited for.
        if self.writer.sender.try_send(Message::Written(sender)).is_ok() {
            let _ = tokio::time::timeout(crate::sync::timeouts::TERMINAL, receiver).await;
        }
    }

    /// Shows this from now on. Never waits; when the terminal is stopped the update is dropped, and a later
    /// one takes its place.
    pub fn update(&mut self, torrents: Vec<TorrentLine>) {
        if self.is_tty {
            let lines = torrents.into_iter().map(Live::Torrent).collect();
            let _ = self.writer.sender.try_send(Message::Lines(lines));
            return;
        }
        self.states.retain(|name, _| torrents.iter().any(|t| t.name == *name));
        for torrent in &torrents {
            if self.states.insert(torrent.name.clone(), torrent.state) != Some(torrent.state) {
                log_state(torrent);
            }
        }
    }

    /// Shows how far a job is, in place of all else; without a terminal, a log line for each tenth of it. Never waits.
    pub fn progress(&mut self, progress: Progress) {
        let tenth = progress.percent() / 10;
        if self.is_tty {
            let _ = self.writer.sender.try_send(Message::Lines(vec![Live::Progress(progress)]));
        } else if tenth > self.tenth {
            tracing::info!("{}", progress.sentence());
        }
        self.tenth = tenth;
    }

    /// Erases the live lines, writes what is queued, a second at most, and ends the thread. Later log lines
    /// go straight to stderr. A second call does nothing.
    pub fn finish(&mut self) {
        let Some(done) = self.done.take() else { return };
        // The flag first: whoever empties a full channel sees it then, and an empty one takes the nudge.
        self.writer.shared.finish.store(true, Ordering::Release);
        let _ = self.writer.sender.try_send(Message::Wake);
        // Nothing is ever sent: it is disconnected when the thread has ended.
        let _ = done.recv_timeout(crate::sync::timeouts::TERMINAL);
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Logs the state a torrent came to. What changes with every read is for those who debug.
fn log_state(torrent: &TorrentLine) {
    let progress = format!("{} of {}", bytes(torrent.have), bytes(torrent.size));
    let name = &torrent.name;
    match (torrent.state, &torrent.error, torrent.waiting.first()) {
        ("error", reason, _) => {
            tracing::error!(torrent = %name, "error: {}", reason.as_deref().unwrap_or("unknown"));
        }
        ("stalled", _, Some(waiting)) => {
            tracing::warn!(torrent = %name, peers = torrent.peers, "stalled, {progress}; waits: {waiting}");
        }
        ("stalled", _, None) => tracing::warn!(torrent = %name, peers = torrent.peers, "stalled, {progress}"),
        ("idle" | "downloading", ..) => tracing::debug!(torrent = %name, "{}, {progress}", torrent.state),
        ("resolving", ..) => tracing::info!(torrent = %name, "resolving"),
        (state, ..) => tracing::info!(torrent = %name, "{state}, {progress}"),
    }
}

/// The thread: the only one that writes to stderr. Waits for messages, and for the terminal.
fn run(
    messages: &Receiver<Message>,
    shared: &Shared,
    is_tty: bool,
    mut out: impl Write,
    mut sink: Option<Box<dyn Sink>>,
    size: fn() -> Size,
) {
    let mut screen = Screen::default();
    while let Ok(first) = messages.recv() {
        let mut log: Vec<(Level, Vec<u8>)> = Vec::new();
        let mut diverted = None;
        // Dropped when all of this is written.
        let mut written = Vec::new();
        for message in std::iter::once(first).chain(messages.try_iter().take(QUEUE)) {
            match message {
                Message::Log(level, line) => log.push((level, line)),
                // What came before it goes where it would have.
                Message::Divert(other) => diverted = Some((log.len(), other)),
                Message::Lines(live) => screen.live = live,
                Message::Wake => {}
                Message::Written(told) => written.push(told),
            }
        }
        let lost = shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("({lost} log lines were lost: they came faster than they could be written)\n");
            log.push((Level::WARN, text.into_bytes()));
        }
        let last = shared.finish.load(Ordering::Acquire);
        if last {
            // What came between the look at the channel and the look at the flag.
            log.extend(
                messages
                    .try_iter()
                    .filter_map(|m| if let Message::Log(level, l) = m { Some((level, l)) } else { None }),
            );
            screen.live.clear();
        }
        let (at, other) = diverted.map_or((log.len(), None), |(at, other)| (at, Some(other)));
        let mut shown = Vec::new();
        for (level, event) in log.iter().take(at) {
            match &mut sink {
                Some(sink) => sink.take(*level, event),
                None => shown.extend_from_slice(event),
            }
        }
        // Nobody is left to tell when stderr is gone; the program works on without it.
        let _ = out.write_all(&if is_tty { screen.render(&shown, size()) } else { shown });
        let _ = out.flush();
        if let Some(mut other) = other {
            log.iter().skip(at).for_each(|(level, event)| other.take(*level, event));
            sink = Some(other);
        }
        if last {
            return;
        }
    }
}

/// The size of the terminal at stderr.
fn terminal_size() -> Size {
    size_of(&std::io::stderr()).unwrap_or(USUAL_SIZE)
}

/// The size of a terminal; `None` for what isn't one. One that doesn't tell its size has the usual.
pub fn size_of(terminal: &(impl AsRawFd + IsTerminal)) -> Option<Size> {
    if !terminal.is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the address it is given, which is valid for that.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } == 0;
    Some(if done && size.ws_col > 0 && size.ws_row > 0 {
        Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
    } else {
        USUAL_SIZE
    })
}

/// For tests of others: what they log.
#[cfg(test)]
pub mod testing {
    use std::io::{self, Write};
    use std::sync::Arc;

    use torrentfs_fs::lock::{Rank, RankedMutex};

    /// Log lines of the thread that has subscribed.
    #[derive(Clone)]
    pub struct Captured(Arc<RankedMutex<Vec<u8>>>);

    impl Default for Captured {
        fn default() -> Self {
            Self(Arc::new(RankedMutex::new(Rank::Leaf, "captured log", Vec::new())))
        }
    }

    impl Captured {
        /// Takes what this thread logs, until the answer is dropped.
        pub fn subscribe(&self) -> tracing::subscriber::DefaultGuard {
            let log = self.clone();
            let all = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
            tracing::subscriber::set_default(all.finish())
        }

        /// What was logged since this was last called.
        pub fn take(&self) -> String {
            String::from_utf8_lossy(&std::mem::take(&mut *self.0.lock())).into_owned()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn sample() -> TorrentLine {
        TorrentLine {
            name: "movie.mkv".into(),
            state: "downloading",
            have: 45 << 20,
            size: 100 << 20,
            rate_down: 12_897_485,
            peers: 12,
            ..TorrentLine::default()
        }
    }

    #[test]
    fn lines() {
        let waits =
            TorrentLine { waiting: vec!["movie.mkv @ 12.3 MiB for 3 s".into(), "b".into()], ..sample() };
        let rows = [
            (sample(), 80, "movie.mkv                         downloading  45%  12.3 MiB/s  12 peers"),
            (sample(), 60, "movie.mkv                 downloading  45%  12.3 MiB/s"),
            (sample(), 40, "movie.mkv         downloading  45%"),
            (sample(), 20, "45% movie.mkv"),
            (sample(), 8, "45% mov…"),
            (sample(), 1, "…"),
            (sample(), 0, ""),
            (
                waits.clone(),
                120,
                "movie.mkv                         downloading  45%  12.3 MiB/s  12 peers  waits: movie.mkv @ 12.3 MiB for 3 s and 1 more",
            ),
            (
                waits,
                95,
                "movie.mkv                         downloading  45%  12.3 MiB/s  12 peers  waits: movie.mkv @ 1…",
            ),
            (
                TorrentLine { webseeds: 2, ..sample() },
                120,
                "movie.mkv                         downloading  45%  12.3 MiB/s  12 peers  2 webseeds",
            ),
            (
                TorrentLine { state: "complete", have: 100 << 20, rate_up: 2048, peers: 1, ..sample() },
                80,
                "movie.mkv                         complete    100%  up 2.0 KiB/s  1 peer",
            ),
            (
                TorrentLine {
                    state: "resolving",
                    size: 0,
                    have: 0,
                    rate_down: 0,
                    peers: 0,
                    connecting: 3,
                    ..sample()
                },
                90,
                "movie.mkv                         resolving      -       0 B/s  0 peers (+3 dialled)",
            ),
            (
                TorrentLine { state: "error", error: Some("no space left".into()), ..sample() },
                80,
                "movie.mkv                         error        45%  error: no space left",
            ),
        ];
        for (torrent, width, want) in rows {
            assert_eq!(line(&torrent, width), want, "at {width}");
        }
    }

    #[test]
    fn no_line_is_wider_than_asked() {
        let names = [
            "",
            "a",
            "映画のコレクション全集ですよ長い名前.mkv",
            "👩‍👩‍👧‍👦 family 🎬🎬🎬🎬🎬🎬🎬🎬🎬",
            "e\u{301}te\u{301} ".repeat(30).leak(),
            "x\x1b[31m\n",
        ];
        for name in names {
            for state in ["downloading", "complete", "error"] {
                let torrent = TorrentLine {
                    name: name.into(),
                    state,
                    rate_up: 5 << 30,
                    connecting: 30,
                    waiting: vec![format!("{name} @ 1 GiB for 100 s"); 3],
                    error: (state == "error").then(|| "理由".repeat(40)),
                    ..sample()
                };
                for width in 0..200 {
                    let line = line(&torrent, width);
                    assert!(text_width(&line) <= width, "{line:?} is wider than {width}");
                    assert!(!line.contains(char::is_control), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn names_are_fitted_by_columns() {
        let rows = [
            ("short", 8, "short   "),
            ("a-long-name.mkv", 9, "a-lo….mkv"),
            ("映画映画映画", 8, "映画…画 "),
            ("映画", 4, "映画"),
            ("a\x07b", 4, "a\u{fffd}b "),
            ("\u{202e}gpj.exe", 8, "\u{fffd}gpj.exe"),
        ];
        for (name, width, want) in rows {
            assert_eq!(fit(name, width), want);
            assert_eq!(text_width(&fit(name, width)), width);
        }
    }

    #[test]
    fn progress_is_rounded_down() {
        let rows = [
            (0, 0, "idle", "-"),
            (0, 0, "complete", "100%"),
            (999, 1000, "idle", "99%"),
            (7, 7, "complete", "100%"),
            (u64::MAX - 1, u64::MAX, "idle", "99%"),
        ];
        for (have, size, state, want) in rows {
            assert_eq!(percent(&TorrentLine { have, size, state, ..sample() }), want);
        }
    }

    #[test]
    fn the_log_drives_no_terminal() {
        let rows: &[(&str, &str)] = &[
            ("plain ü 映\n", "plain ü 映\n"),
            ("\x1b[2mtime\x1b[0m \x1b[1;31mred\x1b[m\n", "\x1b[2mtime\x1b[0m \x1b[1;31mred\x1b[m\n"),
            ("\x1b[2J\x1b]0;title\x07\x1b", "\\x1b[2J\\x1b]0;title\\x07\\x1b"),
            ("a\r\tb\u{9b}2J\x7f\n", "a\\x0d\tb\\x9b2J\\x7f\n"),
            ("name\n2026 WARN forged\n", "name\n    2026 WARN forged\n"),
            ("\n", "\n"),
            ("", ""),
        ];
        for (event, want) in rows {
            assert_eq!(String::from_utf8(tame(event.as_bytes())).unwrap(), *want);
        }
    }

    const WIDE: Size = Size { columns: 81, rows: 4 };

    /// What a terminal shows after these bytes: enough of an emulator for the four sequences that are used.
    fn shown(bytes: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(bytes).unwrap();
        let mut rows = vec![String::new()];
        let (mut row, mut chars) = (0usize, text.chars());
        let mut fresh = true;
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => {
                    let sequence: String = {
                        let mut s = String::new();
                        for c in chars.by_ref().skip(1) {
                            s.push(c);
                            if c.is_ascii_alphabetic() {
                                break;
                            }
                        }
                        s
                    };
                    match sequence.as_str() {
                        "J" => rows.truncate(row + 1),
                        "K" => {}
                        up => row -= up.trim_end_matches('A').parse::<usize>().unwrap(),
                    }
                    if sequence == "J" {
                        rows[row].clear();
                    }
                }
                '\r' => fresh = true,
                '\n' => {
                    row += 1;
                    fresh = true;
                    if rows.len() == row {
                        rows.push(String::new());
                    }
                }
                c => {
                    if std::mem::take(&mut fresh) {
                        rows[row].clear();
                    }
                    rows[row].push(c);
                }
            }
        }
        rows
    }

    fn named(name: &str) -> Live {
        Live::Torrent(TorrentLine { name: name.into(), ..sample() })
    }

    #[test]
    fn log_lines_and_live_lines_keep_apart() {
        let mut screen = Screen::default();
        let mut all = Vec::new();
        all.extend(screen.render(b"first log\n", WIDE));
        screen.live = vec![named("a"), named("b")];
        all.extend(screen.render(b"", WIDE));
        all.extend(screen.render(b"second log\n", WIDE));
        let rows = shown(&all);
        assert_eq!(rows[0], "first log");
        assert_eq!(rows[1], "second log");
        assert!(rows[2].starts_with("a ") && rows[3].starts_with("b "), "{rows:?}");
        screen.live = vec![named("c")];
        all.extend(screen.render(b"", WIDE));
        let rows = shown(&all);
        assert!(rows[2].starts_with("c ") && rows[3].is_empty() && rows.len() == 4, "{rows:?}");
        screen.live.clear();
        all.extend(screen.render(b"end\n", WIDE));
        assert_eq!(shown(&all), ["first log", "second log", "end", ""]);
    }

    #[test]
    fn more_torrents_than_rows() {
        let mut screen = Screen { live: (0..10).map(|i| named(&format!("t{i}"))).collect(), drawn: 0 };
        let rows = shown(&screen.render(b"", WIDE));
        assert_eq!(rows.len(), 4, "{rows:?}");
        assert!(rows[1].starts_with("t1 "));
        assert_eq!(rows[2], "and 8 more");
        screen.live.truncate(3);
        assert!(shown(&screen.render(b"", WIDE).split_off(5))[2].starts_with("t2 "));
        for rows in 0..2 {
            screen.render(b"x\n", Size { columns: 0, rows });
            assert!(screen.drawn <= rows);
        }
    }

    /// A writer that hands what it gets to the test, and blocks until told otherwise.
    struct Gate {
        go: Receiver<()>,
        written: SyncSender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.go.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stopped_terminal_stops_nobody() {
        let (open, go) = sync_channel(1);
        let (written, got) = sync_channel(16);
        let mut display = Display::on(false, Gate { go, written }, None, || USUAL_SIZE);
        let mut writer = display.writer();
        // Twice the channel, plus what the thread may have taken: none of these may wait.
        for _ in 0..3 * QUEUE {
            writer.write_all(b"line\n").unwrap();
        }
        drop(open);
        display.finish();
        let text = String::from_utf8(got.try_iter().flatten().collect()).unwrap();
        assert!(text.contains("log lines were lost"), "{}", text.len());
        assert!(text.matches("line\n").count() >= QUEUE);
        display.finish();
        writer.write_all(b"").unwrap();
    }

    #[test]
    fn what_is_queued_is_written_before_the_end() {
        let (open, go) = sync_channel(0);
        drop(open);
        let (written, got) = sync_channel(16);
        let mut display = Display::on(true, Gate { go, written }, None, || USUAL_SIZE);
        display.update(vec![TorrentLine { name: "a".into(), ..sample() }]);
        display.writer().write_all(b"last words\n").unwrap();
        display.finish();
        let rows = shown(&got.try_iter().flatten().collect::<Vec<_>>());
        assert_eq!(rows, ["last words", ""], "the live lines are gone, the log stays");
    }
}
