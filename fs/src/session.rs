//! A mount's life: its threads, the failing of its reads, unmounting, and noticing that it ended.
//!
//! **Threads.** `fs-session` runs fuser's own (which take the calls), `fs-signals` watches the threads that
//! wait, `fs-events` passes changes on to the kernel, `fs-unmount` lives while it is unmounted.
//!
//! **Unmounting.** Reads fail first, and stay so: that lets their readers go. Then the mount point is freed,
//! lazily if somebody still holds it. The session ends when the last holder is gone; that is waited for a
//! little, and then the connection is aborted, since nothing but errors could come of it any more. All of it
//! within one deadline, each wait bounded, calls that could hang on a thread of their own.
//!
//! **Not here.** What led to it: signals to this program are the program's.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno as Nix;
use nix::mount::{MntFlags, MsFlags, umount2};

use crate::adapter::Adapter;
use crate::attr::AttrOptions;
use crate::callers::Identity;
use crate::content::Content;
use crate::events;
use crate::inodes::HandleCounts;
use crate::lock::{Rank, RankedMutex};
use crate::mountinfo;
use crate::ops::{Counts, Operations};
use crate::parked::{ParkedRead, ParkedReads, WaitingRead};
use crate::tree::{NodeId, NodeKind};
use crate::watcher;
use crate::worker::{Flag, Worker};

/// How long the last holders of a freed mount may keep it before its connection is aborted. Readers whose
/// reads have failed need milliseconds; a shell that stands in it would never go.
const HOLDERS: Duration = Duration::from_secs(1);
/// For a mount that is dropped without having been unmounted.
const DROPPED: Duration = Duration::from_secs(5);
/// Where the kernel lists FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How a mount was taken down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detached {
    /// It was unmounted already, by this or by somebody else.
    Already,
    /// Nobody held it.
    Clean,
    /// Somebody held it: it is gone from the tree, and was given up by its holders in time.
    Lazily,
    /// Somebody held it, and the connection was aborted.
    Aborted,
    /// It couldn't be taken down; why.
    Failed(String),
}

/// What came of unmounting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmountReport {
    /// How the mount went.
    pub detached: Detached,
    /// Names of the threads that hadn't ended at the deadline, with where they are.
    pub left: Vec<String>,
}

impl UnmountReport {
    /// Whether the mount is gone and nothing of it is left.
    pub fn is_complete(&self) -> bool {
        self.left.is_empty() && !matches!(self.detached, Detached::Failed(_))
    }
}

type Callback = Box<dyn FnOnce() + Send>;

/// What is known of the session's end.
struct End {
    flag: Flag,
    /// To be called then; `None` when that has happened.
    callbacks: RankedMutex<Option<Vec<Callback>>>,
}

impl End {
    fn came(&self) {
        self.flag.raise();
        let callbacks = self.callbacks.lock().take();
        for callback in callbacks.into_iter().flatten() {
            callback();
        }
    }
}

/// A mount that is up. Dropping it unmounts it, which may take some seconds; better call
/// [`Mounted::unmount`].
pub struct Mounted {
    path: PathBuf,
    /// Number of its connection, by which it is known among mounts.
    connection: Option<u32>,
    ops: Arc<Operations>,
    parked: Arc<ParkedReads>,
    end: Arc<End>,
    unmounting: AtomicBool,
    voided: Arc<AtomicU64>,
    stop_events: Arc<Flag>,
    unmounter: RankedMutex<Option<fuser::SessionUnmounter>>,
    workers: RankedMutex<Vec<Worker>>,
}

impl Mounted {
    /// Mounts and starts the threads.
    pub(crate) fn start(
        content: Arc<dyn Content>,
        attrs: AttrOptions,
        offline: Vec<u32>,
        stack_depth: Option<u32>,
        path: PathBuf,
        config: &fuser::Config,
    ) -> io::Result<Self> {
        let parked = ParkedReads::new(most_callers());
        let ops = Arc::new(Operations::new(content.clone(), attrs, parked.clone()).with_offline(offline));
        // If anything below fails, dropping the session unmounts it.
        let mut session = fuser::Session::new(Adapter::new(ops.clone(), stack_depth), &path, config)?;
        let connection = mountinfo::at(&path).map(|entry| entry.minor);
        let notifier = session.notifier();
        let unmounter = session.unmount_callable();
        let end = Arc::new(End {
            flag: Flag::new(),
            callbacks: RankedMutex::new(Rank::Leaf, "ends of the mount", Some(Vec::new())),
        });
        let mounted = Self {
            path,
            connection,
            ops,
            parked: parked.clone(),
            end: end.clone(),
            unmounting: AtomicBool::new(false),
            voided: Arc::new(AtomicU64::new(0)),
            stop_events: Arc::new(Flag::new()),
            unmounter: RankedMutex::new(Rank::Leaf, "unmounter", Some(unmounter)),
            workers: RankedMutex::new(Rank::Leaf, "threads of the mount", Vec::new()),
        };
        let runs = Worker::spawn("fs-session", move || {
            struct Over(Arc<ParkedReads>, Arc<End>);
            impl Drop for Over {
                fn drop(&mut self) {
                    // Nobody can be answered any more; what waits is let go.
                    self.0.refuse();
                    self.1.came();
                }
            }
            let _over = Over(parked, end);
            if let Err(error) = session.run() {
                tracing::debug!("the session ended: {error}");
            }
        })?;
        mounted.workers.lock().push(runs);
        let watches = watcher::start(mounted.parked.clone())?;
        mounted.workers.lock().push(watches);
        if let Some(receiver) = content.events() {
            let root = fuser::INodeNo(NodeId::ROOT.0);
            let voided = mounted.voided.clone();
            let invalidate = Box::new(move |name: &std::ffi::OsStr| {
                notifier.inval_entry(root, name)?;
                voided.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            let stop = mounted.stop_events.clone();
            let passes = events::start(content, receiver, mounted.parked.clone(), invalidate, stop)?;
            mounted.workers.lock().push(passes);
        }
        Ok(mounted)
    }

    /// Where it is mounted, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails every waiting read with EIO, and every later one. Doesn't wait, and can't be taken back.
    pub fn fail_reads(&self) {
        self.parked.refuse();
    }

    /// The reads that wait now.
    pub fn waiting_reads(&self) -> Vec<WaitingRead> {
        self.parked.waiting()
    }

    /// A way to look at what waits and what is open, from any thread.
    pub fn view(&self) -> View {
        View { ops: self.ops.clone(), parked: self.parked.clone() }
    }

    /// How much is open or waiting.
    pub fn counts(&self) -> Counts {
        self.ops.counts()
    }

    /// Of how many names that the kernel knew it was told that they are void, and took it.
    pub fn voided(&self) -> u64 {
        self.voided.load(Ordering::Relaxed)
    }

    /// The handles open on one node.
    pub fn handles(&self, node: NodeId) -> HandleCounts {
        self.ops.inodes().handles(node)
    }

    /// Whether the session has ended: unmounted, by us or from outside.
    pub fn has_ended(&self) -> bool {
        self.end.flag.is_raised()
    }

    /// Whether it was unmounted lazily while somebody uses it: it has no place any more and goes on until the last
    /// of them is done.
    pub fn is_detached(&self) -> bool {
        !self.has_ended() && self.connection.is_some_and(|minor| !mountinfo::has_place(minor))
    }

    /// Calls this once when the session ends, on its thread, or at once if it has. Must not block.
    pub fn on_end(&self, callback: impl FnOnce() + Send + 'static) {
        let mut callback: Option<Callback> = Some(Box::new(callback));
        if let Some(callbacks) = self.end.callbacks.lock().as_mut() {
            callbacks.extend(callback.take());
        }
        if let Some(callback) = callback {
            callback();
        }
    }

    /// Waits until the session ends, at most so long; whether it has.
    pub fn wait_end(&self, time: Duration) -> bool {
        self.end.flag.wait_until(Instant::now() + time)
    }

    /// Unmounts: fails all reads, frees the mount point, ends the threads. Takes at most `deadline`; called
    /// again, it waits for what is left and reports that.
    pub fn unmount(&self, deadline: Duration) -> UnmountReport {
        let until = Instant::now() + deadline;
        self.fail_reads();
        self.parked.stop_watching();
        self.stop_events.raise();
        let mut detached = Detached::Already;
        if !self.unmounting.swap(true, Ordering::SeqCst) {
            detached = self.detach(until);
        }
        let holders = until.min(Instant::now() + HOLDERS);
        if !self.end.flag.wait_until(holders) {
            match self.abort(until) {
                // What hung in unmounting goes on then.
                Ok(()) => {
                    self.end.flag.wait_until(until);
                    if !matches!(detached, Detached::Failed(_)) || !is_ours(&self.path, self.connection) {
                        detached = Detached::Aborted;
                    }
                }
                Err(error) => {
                    tracing::warn!("the connection of {} can't be aborted: {error}", self.path.display());
                }
            }
        }
        // Taken out, so that no lock is held while they are waited for.
        let mut workers = std::mem::take(&mut *self.workers.lock());
        workers.retain_mut(|worker| !worker.join_until(until));
        let left = workers.iter().map(Worker::whereabouts).collect();
        self.workers.lock().append(&mut workers);
        UnmountReport { detached, left }
    }

    /// Frees the mount point, on a thread of its own.
    fn detach(&self, until: Instant) -> Detached {
        let (path, connection) = (self.path.clone(), self.connection);
        let unmounter = self.unmounter.lock().take();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let spawned = Worker::spawn("fs-unmount", move || {
            // Room for it is there; whoever asked may have gone.
            let _ = sender.try_send(free(&path, connection, unmounter));
        });
        let mut worker = match spawned {
            Ok(worker) => worker,
            Err(error) => return Detached::Failed(error.to_string()),
        };
        let ended = worker.join_until(until);
        match receiver.try_recv() {
            Ok(detached) => detached,
            Err(_) => {
                if !ended {
                    self.workers.lock().push(worker);
                }
                Detached::Failed("unmounting takes too long".into())
            }
        }
    }

    /// The last resort: makes the kernel give the connection up.
    fn abort(&self, until: Instant) -> io::Result<()> {
        let Some(connection) = self.connection else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its number is not known"));
        };
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let mut worker = Worker::spawn("fs-abort", move || {
            let _ = sender.try_send(abort_connection(connection));
        })?;
        // Also past the deadline it gets a moment: without it, all that hangs goes on hanging.
        worker.join_until(until.max(Instant::now() + Duration::from_millis(100)));
        receiver.try_recv().unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }
}

/// A parked read, for a person.
#[derive(Debug, Clone)]
pub struct ParkedView {
    /// What it waits for.
    pub what: WaitingRead,
    /// Its file, from the root of the mount; `None` if it is gone.
    pub path: Option<String>,
    /// The content's own number of the file.
    pub file: Option<u32>,
    /// Who waits, as far as that may be seen.
    pub who: Option<Identity>,
}

/// What a mount is at. Looks may wait for its locks, which are held for instructions as long as nothing is wrong:
/// who looks because something may be wrong looks from a thread of its own.
#[derive(Clone)]
pub struct View {
    ops: Arc<Operations>,
    parked: Arc<ParkedReads>,
}

impl View {
    /// The parked reads, the oldest first; no more than `most` of them with path and caller looked up, and how many
    /// there are.
    pub fn parked(&self, most: usize) -> (Vec<ParkedView>, usize) {
        let mut reads = self.parked.all();
        reads.sort_by_key(|read| read.what.since);
        let all = reads.len();
        let tree = self.ops.tree();
        let view = |read: Arc<ParkedRead>| {
            let node = read.what.node;
            let file = match tree.node(node).map(|node| &node.kind) {
                Some(NodeKind::File { file, .. }) => Some(*file),
                _ => None,
            };
            let who = read.caller.as_ref().and_then(|caller| caller.identity());
            ParkedView { what: read.what, path: tree.path(node), file, who }
        };
        (reads.into_iter().take(most).map(view).collect(), all)
    }

    /// How much is open or waiting.
    pub fn counts(&self) -> Counts {
        self.ops.counts()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let report = self.unmount(DROPPED);
        if !report.is_complete() {
            tracing::error!("{} was not taken down entirely: {report:?}", self.path.display());
        }
    }
}

/// Whether our mount, not a later one of somebody else, is at that path.
fn is_ours(path: &Path, connection: Option<u32>) -> bool {
    mountinfo::at(path).is_some_and(|entry| connection.is_none_or(|minor| entry.minor == minor))
}

fn free(path: &Path, connection: Option<u32>, unmounter: Option<fuser::SessionUnmounter>) -> Detached {
    if !is_ours(path, connection) {
        return Detached::Already;
    }
    let Ok(target) = CString::new(path.as_os_str().as_bytes()) else {
        return Detached::Failed("its path holds a NUL".into());
    };
    let unmount = |flags| umount2(target.as_c_str(), flags | MntFlags::UMOUNT_NOFOLLOW);
    let outcome = match unmount(MntFlags::empty()) {
        Ok(()) => return Detached::Clean,
        Err(Nix::EBUSY) => unmount(MntFlags::MNT_DETACH),
        Err(other) => Err(other),
    };
    match outcome {
        Ok(()) => Detached::Lazily,
        // Somebody was quicker.
        Err(Nix::EINVAL | Nix::ENOENT) => Detached::Already,
        // As a user: the helper may.
        Err(Nix::EPERM) => {
            if let Some(mut unmounter) = unmounter
                && let Err(error) = unmounter.unmount()
            {
                return Detached::Failed(error.to_string());
            }
            match is_ours(path, connection) {
                false => Detached::Lazily,
                true => Detached::Failed("fusermount3 couldn't unmount it".into()),
            }
        }
        Err(error) => Detached::Failed(error.desc().to_string()),
    }
}

/// Writes to the connection's `abort`, with the file system that has it mounted for the moment if need be.
fn abort_connection(connection: u32) -> io::Result<()> {
    let file = Path::new(CONNECTIONS).join(connection.to_string()).join("abort");
    match std::fs::write(&file, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    nix::mount::mount(Some("fusectl"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), None::<&str>)?;
    let outcome = std::fs::write(&file, "1");
    // As it was before; what comes of it changes nothing.
    let _ = umount2(CONNECTIONS, MntFlags::MNT_DETACH);
    match outcome {
        // The connection is gone by itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// How many threads may be watched, each with a file open: half of all files this process may open, once
/// that is raised as far as it may be.
fn most_callers() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct they are given, which outlives them.
    let files = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 256;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 { limit.rlim_max } else { limit.rlim_cur }
    };
    usize::try_from(files / 2).unwrap_or(usize::MAX)
}
