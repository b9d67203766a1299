//! A scripted [`Content`]: pieces that are here or not, complete on command, failing, or on a slow disk.
//!
//! With it the whole filesystem is tested without a network, on its operations and on a real mount. Bytes are
//! a function of file and offset, so that large files cost no memory and can be checked from anywhere.
//! It keeps the port's rules as any content must: nothing waits, answers are given with no lock held.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::content::{
    Backing, BackingDone, Content, ContentError, ContentEvent, ReadDone, Space, Stream, Ticket, TryRead,
};
use crate::lock::{Rank, RankedCondvar, RankedMutex};
use crate::tree::{Leaf, NodeId, NodeKind, Subtree, SubtreeBuilder, Tree};
use crate::worker::Worker;

/// The time of what is added without another.
pub const DATE: i64 = 1_500_000_000;
/// Room for events; when it is full an event is dropped, as the port allows.
const EVENTS: usize = 16;

/// A file of a mock torrent, to be added with [`Mock::add`].
#[derive(Debug, Clone)]
pub struct MockFile {
    path: Vec<String>,
    leaf: Leaf,
    here: bool,
}

impl MockFile {
    /// A file of so many bytes, all missing. The path's components are separated by `/`.
    pub fn new(path: &str, size: u64) -> Self {
        Self { path: components(path), leaf: Leaf::File { size, executable: false, file: 0 }, here: false }
    }
    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { path: components(path), leaf: Leaf::Symlink(target.into()), here: true }
    }
    /// All of it is here.
    pub fn here(self) -> Self {
        Self { here: true, ..self }
    }
    /// It is marked executable.
    pub fn executable(mut self) -> Self {
        if let Leaf::File { executable, .. } = &mut self.leaf {
            *executable = true;
        }
        self
    }
}

fn components(path: &str) -> Vec<String> {
    path.split('/').map(String::from).collect()
}

#[derive(Debug, Clone)]
enum Piece {
    Missing,
    Here,
    Failed(ContentError),
}

struct File {
    seed: u64,
    size: u64,
    pieces: Vec<Piece>,
    /// Bytes given instead of the pattern.
    bytes: Option<Arc<[u8]>>,
    /// How long a read of what is here takes; answered by the disk's thread.
    slow: Option<Duration>,
    /// How long each call takes its caller.
    dawdles: Option<Duration>,
    panics: bool,
    /// The file of the system that holds all of it.
    backing: Option<OwnedFd>,
}

struct Torrent {
    shown: String,
    subtree: Arc<Subtree>,
    files: Vec<File>,
}

struct Waiter {
    node: NodeId,
    offset: u64,
    len: usize,
    done: ReadDone,
    /// When the disk answers; `None` waits for pieces.
    due: Option<Instant>,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MockCounts {
    /// Streams opened, other than those of the next line.
    pub opened: u64,
    /// Streams opened for readers for whom nothing is fetched.
    pub opened_here: u64,
    /// Streams closed, of both kinds.
    pub closed: u64,
    /// Immediate attempts to read, by both kinds.
    pub tried: u64,
    /// Reads asked that could take long, of streams for which it would be fetched.
    pub asked: u64,
    /// Those withdrawn before they were answered.
    pub withdrawn: u64,
    /// Backing files asked for.
    pub backings: u64,
    /// Of those given, the ones that are held now.
    pub held: u64,
}

struct State {
    tree: Arc<Tree>,
    torrents: BTreeMap<u32, Torrent>,
    next_slot: u32,
    waiters: BTreeMap<u64, Waiter>,
    next_waiter: u64,
    counts: MockCounts,
    receiver: Option<Receiver<ContentEvent>>,
    /// While it is some, questions for backing files are kept here instead of being answered.
    kept: Option<Vec<(NodeId, BackingDone)>>,
    stop: bool,
}

struct Inner {
    piece: u64,
    /// Calls that take their time now.
    dawdling: AtomicUsize,
    state: RankedMutex<State>,
    /// Waiters or the stop flag changed.
    changed: RankedCondvar,
    events: SyncSender<ContentEvent>,
}

/// See the module. Dropping it ends its thread.
pub struct Mock {
    inner: Arc<Inner>,
    disk: Option<Worker>,
}

/// What a range of a file is like.
enum Range {
    Here,
    Missing,
    Failed(ContentError),
}

impl File {
    fn range(&self, piece: u64, offset: u64, len: usize) -> Range {
        let first = offset / piece;
        let last = (offset + len as u64).saturating_sub(1) / piece;
        for index in first..=last {
            match usize::try_from(index).ok().and_then(|index| self.pieces.get(index)) {
                Some(Piece::Here) => {}
                Some(Piece::Failed(error)) => return Range::Failed(error.clone()),
                _ => return Range::Missing,
            }
        }
        Range::Here
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) {
        if let Some(bytes) = &self.bytes {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(bytes) = bytes.get(from..).and_then(|bytes| bytes.get(..buf.len())) {
                buf.copy_from_slice(bytes);
            }
            return;
        }
        let mut word = [0u8; 8];
        for (at, byte) in (offset..).zip(buf) {
            let index = (at % 8) as usize;
            if index == 0 || at == offset {
                word = mix(self.seed ^ (at / 8)).to_le_bytes();
            }
            *byte = word[index];
        }
    }
}

/// A bijective scrambling of a number, so that no two places look alike.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl State {
    fn file(&self, node: NodeId) -> Option<&File> {
        let torrent = self.torrents.get(&node.slot())?;
        match torrent.subtree.node(node.index())?.kind {
            NodeKind::File { file, .. } => torrent.files.get(file as usize),
            _ => None,
        }
    }

    fn file_mut(&mut self, node: NodeId) -> Option<&mut File> {
        let torrent = self.torrents.get_mut(&node.slot())?;
        match torrent.subtree.node(node.index())?.kind {
            NodeKind::File { file, .. } => torrent.files.get_mut(file as usize),
            _ => None,
        }
    }

    fn rebuild(&mut self) {
        let torrents = self.torrents.iter().map(|(slot, t)| (t.shown.clone(), *slot, t.subtree.clone()));
        let newest = self.torrents.values().map(|t| t.subtree.mtime()).max();
        self.tree = Arc::new(Tree::new(torrents.collect(), newest.unwrap_or_default()));
    }

    /// Takes out the waiters of which this holds.
    fn take(&mut self, mut which: impl FnMut(&State, &Waiter) -> bool) -> Vec<Waiter> {
        let mut waiters = std::mem::take(&mut self.waiters);
        let ids: Vec<u64> = waiters.iter().filter(|(_, w)| which(self, w)).map(|(id, _)| *id).collect();
        let taken = ids.iter().filter_map(|id| waiters.remove(id)).collect();
        self.waiters = waiters;
        taken
    }
}

/// What is held for a backing file that was given.
struct Held(Arc<Inner>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.lock().counts.held -= 1;
    }
}

impl Inner {
    fn bytes(&self, node: NodeId, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        if let Some(file) = self.state.lock().file(node) {
            file.fill(offset, &mut buf);
        }
        buf
    }

    /// Takes its caller's time, if that was asked for, with no lock held.
    fn dawdle(&self, node: NodeId) {
        let time = self.state.lock().file(node).and_then(|file| file.dawdles);
        if let Some(time) = time {
            self.dawdling.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(time);
            self.dawdling.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn backing(self: &Arc<Self>, node: NodeId) -> Option<Backing> {
        let mut state = self.state.lock();
        let file = state.file(node)?;
        let complete = file.pieces.iter().all(|piece| matches!(piece, Piece::Here));
        let backing = file.backing.as_ref().filter(|_| complete)?.try_clone().ok()?;
        state.counts.held += 1;
        Some(Backing { file: backing, hold: Box::new(Held(self.clone())) })
    }

    fn answer(&self, waiters: Vec<Waiter>, error: Option<&ContentError>) {
        for waiter in waiters {
            match error {
                Some(error) => (waiter.done)(Err(error.clone())),
                None => (waiter.done)(Ok(&self.bytes(waiter.node, waiter.offset, waiter.len))),
            }
        }
        // Whoever waits for the number of waiters to change.
        self.changed.notify_all();
    }

    fn disk(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            let now = Instant::now();
            let ready = state.take(|_, waiter| waiter.due.is_some_and(|due| due <= now));
            if !ready.is_empty() {
                drop(state);
                self.answer(ready, None);
                state = self.state.lock();
                continue;
            }
            match state.waiters.values().filter_map(|waiter| waiter.due).min() {
                Some(due) => {
                    self.changed.wait_timeout(&mut state, due.saturating_duration_since(now));
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl Mock {
    /// A content of no torrents, in pieces of so many bytes (of each file).
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new(piece: u64) -> std::io::Result<Arc<Self>> {
        let (events, receiver) = sync_channel(EVENTS);
        let state = State {
            tree: Arc::default(),
            torrents: BTreeMap::new(),
            next_slot: 1,
            waiters: BTreeMap::new(),
            next_waiter: 0,
            counts: MockCounts::default(),
            receiver: Some(receiver),
            kept: None,
            stop: false,
        };
        let inner = Arc::new(Inner {
            piece: piece.max(1),
            dawdling: AtomicUsize::new(0),
            state: RankedMutex::new(Rank::Leaf, "mock content", state),
            changed: RankedCondvar::new(),
            events,
        });
        let other = inner.clone();
        let disk = Worker::spawn("fs-mock-disk", move || other.disk())?;
        Ok(Arc::new(Self { inner, disk: Some(disk) }))
    }

    /// Adds a torrent and gives its root: a folder of these files, or with a single path that is `name`
    /// itself, that file. Publishes the event. Its time is [`DATE`].
    pub fn add(&self, name: &str, files: &[MockFile]) -> NodeId {
        self.add_of(DATE, name, files)
    }

    /// As [`Mock::add`], of another time, in seconds since the epoch.
    pub fn add_of(&self, date: i64, name: &str, files: &[MockFile]) -> NodeId {
        let mut own = Vec::new();
        let mut builder = SubtreeBuilder::folder(name, date);
        let mut single = None;
        let slot = {
            let mut state = self.inner.state.lock();
            let slot = state.next_slot;
            // Never given twice: the kernel may remember the pages of a node that is gone.
            state.next_slot += 1;
            slot
        };
        for spec in files {
            let mut leaf = spec.leaf.clone();
            if let Leaf::File { size, file, .. } = &mut leaf {
                *file = own.len() as u32;
                let pieces = size.div_ceil(self.inner.piece) as usize;
                own.push(File {
                    seed: mix(u64::from(slot) << 32 | own.len() as u64),
                    size: *size,
                    pieces: vec![if spec.here { Piece::Here } else { Piece::Missing }; pieces],
                    bytes: None,
                    slow: None,
                    dawdles: None,
                    panics: false,
                    backing: None,
                });
            }
            if files.len() == 1 && spec.path.len() == 1 && spec.path.iter().all(|only| only == name) {
                single = Some(SubtreeBuilder::single(name, date, leaf));
            } else {
                builder.add(&spec.path, leaf);
            }
        }
        let subtree = Arc::new(single.unwrap_or_else(|| builder.build()));
        let mut state = self.inner.state.lock();
        state.torrents.insert(slot, Torrent { shown: name.into(), subtree, files: own });
        state.rebuild();
        drop(state);
        self.publish(name);
        NodeId::new(slot, 0)
    }

    /// Removes a torrent: its waiting reads fail, later ones too. Publishes the event.
    pub fn remove(&self, root: NodeId) {
        let mut state = self.inner.state.lock();
        let Some(torrent) = state.torrents.remove(&root.slot()) else { return };
        state.rebuild();
        let waiters = state.take(|_, waiter| waiter.node.slot() == root.slot());
        drop(state);
        self.inner.answer(waiters, Some(&ContentError::Gone));
        self.publish(&torrent.shown);
    }

    fn publish(&self, name: &str) {
        // Full: dropped, which only delays a change's visibility.
        let _ = self.inner.events.try_send(ContentEvent::RootChanged { names: vec![name.into()] });
    }

    /// The node at a path below a torrent's root.
    pub fn node(&self, root: NodeId, path: &str) -> Option<NodeId> {
        let tree = self.tree();
        let subtree = tree.subtree(root.slot())?;
        let parts = path.split('/').filter(|part| !part.is_empty());
        let index = parts.into_iter().try_fold(root.index(), |at, part| subtree.child(at, part))?;
        Some(NodeId::new(root.slot(), index))
    }

    /// Gives a file other bytes than its pattern; those past its size are ignored.
    pub fn set_bytes(&self, node: NodeId, bytes: &[u8]) {
        if let Some(file) = self.inner.state.lock().file_mut(node) {
            let mut bytes = bytes.to_vec();
            bytes.resize(file.size as usize, 0);
            file.bytes = Some(bytes.into());
        }
    }

    /// Whatever a file holds, here or not.
    pub fn bytes(&self, node: NodeId, offset: u64, len: usize) -> Vec<u8> {
        self.inner.bytes(node, offset, len)
    }

    /// A piece of a file arrives; whoever waited for it is answered on this thread.
    pub fn complete(&self, node: NodeId, piece: usize) {
        self.change(node, Some(piece), Piece::Here);
    }

    /// The rest of a file arrives.
    pub fn complete_all(&self, node: NodeId) {
        self.change(node, None, Piece::Here);
    }

    /// A piece is lost again.
    pub fn evict(&self, node: NodeId, piece: usize) {
        self.change(node, Some(piece), Piece::Missing);
    }

    /// A piece can't be had: who waits for it, and asks for it from now on, gets this error.
    pub fn fail(&self, node: NodeId, piece: usize, error: ContentError) {
        self.change(node, Some(piece), Piece::Failed(error));
    }

    fn change(&self, node: NodeId, piece: Option<usize>, to: Piece) {
        let mut state = self.inner.state.lock();
        if let Some(file) = state.file_mut(node) {
            for (index, state) in file.pieces.iter_mut().enumerate() {
                if piece.is_none_or(|piece| piece == index) {
                    *state = to.clone();
                }
            }
        }
        let size = self.inner.piece;
        let is = |state: &State, waiter: &Waiter| {
            state.file(waiter.node).map(|file| file.range(size, waiter.offset, waiter.len))
        };
        let ready = state
            .take(|state, waiter| waiter.due.is_none() && matches!(is(state, waiter), Some(Range::Here)));
        let failed = state.take(|state, waiter| matches!(is(state, waiter), Some(Range::Failed(_))));
        drop(state);
        self.inner.answer(ready, None);
        if let Piece::Failed(error) = &to {
            self.inner.answer(failed, Some(error));
        }
    }

    /// From now on a read of what is here takes this long, as from a slow disk.
    pub fn slow_disk(&self, node: NodeId, time: Duration) {
        if let Some(file) = self.inner.state.lock().file_mut(node) {
            file.slow = Some(time);
        }
    }

    /// From now on each call for this file, to open it or to read it, takes its caller so long: a content that breaks the
    /// port's rule, which shows what its callers hold meanwhile.
    pub fn slow_calls(&self, node: NodeId, time: Duration) {
        if let Some(file) = self.inner.state.lock().file_mut(node) {
            file.dawdles = Some(time);
        }
    }

    /// How many such calls are under way.
    pub fn in_slow_calls(&self) -> usize {
        self.inner.dawdling.load(Ordering::SeqCst)
    }

    /// From now on an attempt to read this file panics.
    pub fn panic_on_read(&self, node: NodeId) {
        if let Some(file) = self.inner.state.lock().file_mut(node) {
            file.panics = true;
        }
    }

    /// The file of the system that holds all of this one.
    pub fn set_backing(&self, node: NodeId, backing: impl Into<OwnedFd>) {
        if let Some(file) = self.inner.state.lock().file_mut(node) {
            file.backing = Some(backing.into());
        }
    }

    /// From now on questions for backing files wait, as for a slow disk, until [`Mock::answer_backings`].
    pub fn keep_backings(&self) {
        self.inner.state.lock().kept.get_or_insert_default();
    }

    /// How many questions for backing files wait.
    pub fn backings_waiting(&self) -> usize {
        self.inner.state.lock().kept.as_ref().map_or(0, Vec::len)
    }

    /// Answers those that wait, on this thread, or drops them; later ones are answered at once again.
    pub fn answer_backings(&self, answer: bool) {
        let kept = self.inner.state.lock().kept.take();
        for (node, done) in kept.into_iter().flatten().filter(|_| answer) {
            done(self.inner.backing(node));
        }
    }

    /// How many reads wait now.
    pub fn waiting(&self) -> usize {
        self.inner.state.lock().waiters.len()
    }

    /// Waits until so many reads wait, exactly; whether it came to that within the time.
    pub fn wait_for_waiting(&self, count: usize, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.inner.state.lock();
        while state.waiters.len() != count {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.inner.changed.wait_timeout(&mut state, left);
        }
        true
    }

    /// What happened so far.
    pub fn counts(&self) -> MockCounts {
        self.inner.state.lock().counts
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.inner.state.lock().stop = true;
        self.inner.changed.notify_all();
        if let Some(mut disk) = self.disk.take() {
            // It is asleep or answering; if an answer hangs, its thread is left behind.
            disk.join_until(Instant::now() + Duration::from_secs(5));
        }
    }
}

impl Content for Mock {
    fn tree(&self) -> Arc<Tree> {
        self.inner.state.lock().tree.clone()
    }

    fn bytes_here(&self, file: NodeId) -> u64 {
        let state = self.inner.state.lock();
        let Some(file) = state.file(file) else { return 0 };
        let piece = self.inner.piece;
        let size = |index: usize| piece.min(file.size - index as u64 * piece);
        let here = file.pieces.iter().enumerate().filter(|(_, piece)| matches!(piece, Piece::Here));
        here.map(|(index, _)| size(index)).sum()
    }

    fn open(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        self.inner.dawdle(file);
        let mut state = self.inner.state.lock();
        if state.file(file).is_none() {
            return Err(ContentError::Gone);
        }
        state.counts.opened += 1;
        Ok(Box::new(MockStream { inner: self.inner.clone(), node: file, here: false }))
    }

    fn open_here(&self, file: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        self.inner.dawdle(file);
        let mut state = self.inner.state.lock();
        if state.file(file).is_none() {
            return Err(ContentError::Gone);
        }
        state.counts.opened_here += 1;
        Ok(Box::new(MockStream { inner: self.inner.clone(), node: file, here: true }))
    }

    fn backing(&self, file: NodeId, done: BackingDone) {
        let mut state = self.inner.state.lock();
        state.counts.backings += 1;
        match &mut state.kept {
            Some(kept) => kept.push((file, done)),
            None => {
                drop(state);
                done(self.inner.backing(file));
            }
        }
    }

    fn xattr_names(&self, _node: NodeId) -> Vec<String> {
        vec!["user.torrentfs.state".into(), "user.torrentfs.progress".into()]
    }

    fn xattr(&self, node: NodeId, name: &str) -> Option<Vec<u8>> {
        let here = self.bytes_here(node);
        let size = self.inner.state.lock().file(node).map(|file| file.size)?;
        match name {
            "user.torrentfs.state" => {
                Some(if here == size { b"complete".to_vec() } else { b"idle".to_vec() })
            }
            "user.torrentfs.progress" => Some(format!("{here}/{size}").into_bytes()),
            _ => None,
        }
    }

    fn space(&self) -> Space {
        let tree = self.tree();
        let subtrees: Vec<_> = tree.root().filter_map(|(_, node)| tree.subtree(node.slot())).collect();
        Space {
            total: subtrees.iter().map(|subtree| subtree.total()).sum(),
            free: 1 << 30,
            files: subtrees.iter().map(|subtree| subtree.files()).sum(),
        }
    }

    fn events(&self) -> Option<Receiver<ContentEvent>> {
        self.inner.state.lock().receiver.take()
    }
}

struct MockStream {
    inner: Arc<Inner>,
    node: NodeId,
    /// Gives only what is here.
    here: bool,
}

impl Drop for MockStream {
    fn drop(&mut self) {
        self.inner.state.lock().counts.closed += 1;
    }
}

impl Stream for MockStream {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> TryRead {
        self.inner.dawdle(self.node);
        let mut state = self.inner.state.lock();
        state.counts.tried += 1;
        let Some(file) = state.file(self.node) else { return TryRead::Failed(ContentError::Gone) };
        if file.panics {
            drop(state);
            std::panic::panic_any("a planned panic of the mock");
        }
        match file.range(self.inner.piece, offset, buf.len()) {
            Range::Here if file.slow.is_none() => {
                file.fill(offset, buf);
                TryRead::Filled
            }
            Range::Failed(error) => TryRead::Failed(error),
            _ => TryRead::NotNow,
        }
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) -> Ticket {
        self.inner.dawdle(self.node);
        let mut state = self.inner.state.lock();
        state.counts.asked += u64::from(!self.here);
        let (answer, due) = match state.file(self.node) {
            None => (Some(Err(ContentError::Gone)), None),
            Some(file) => match file.range(self.inner.piece, offset, len) {
                Range::Failed(error) => (Some(Err(error)), None),
                Range::Missing if self.here => (Some(Err(ContentError::NotHere)), None),
                Range::Missing => (None, None),
                Range::Here => match file.slow {
                    Some(time) => (None, Some(Instant::now() + time)),
                    None => (Some(Ok(())), None),
                },
            },
        };
        if let Some(answer) = answer {
            drop(state);
            match answer {
                Ok(()) => done(Ok(&self.inner.bytes(self.node, offset, len))),
                Err(error) => done(Err(error)),
            }
            return Ticket::new(|| ());
        }
        let id = state.next_waiter;
        state.next_waiter += 1;
        state.waiters.insert(id, Waiter { node: self.node, offset, len, done, due });
        drop(state);
        self.inner.changed.notify_all();
        let inner = self.inner.clone();
        Ticket::new(move || {
            let mut state = inner.state.lock();
            let waiter = state.waiters.remove(&id);
            state.counts.withdrawn += u64::from(waiter.is_some());
            drop(state);
            // Dropped here, with no lock held.
            drop(waiter);
            inner.changed.notify_all();
        })
    }
}
