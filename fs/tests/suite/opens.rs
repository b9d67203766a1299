//! How files are opened: by passthrough or cached, with a kernel that is played by the test.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use torrentfs_fs::attr::AttrOptions;
use torrentfs_fs::content::ContentError;
use torrentfs_fs::errno::Errno;
use torrentfs_fs::handles::HandleId;
use torrentfs_fs::lock::assert_none_held;
use torrentfs_fs::mock::{Mock, MockFile};
use torrentfs_fs::ops::{Calling, Operations};
use torrentfs_fs::parked::ParkedReads;
use torrentfs_fs::passthrough::{OpenReply, Registered, SMALLEST};
use torrentfs_fs::tree::NodeId;

use crate::common::{PIECE, SOON};
use crate::subject::OFFLINE;

/// How an open was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Cached(HandleId),
    /// With the number of the backing file.
    Passthrough(HandleId, usize),
    Error(Errno),
}

impl Answer {
    pub fn handle(self) -> HandleId {
        match self {
            Answer::Cached(handle) | Answer::Passthrough(handle, _) => handle,
            Answer::Error(errno) => panic!("not opened: {errno}"),
        }
    }
    fn backing(self) -> usize {
        match self {
            Answer::Passthrough(_, number) => number,
            other => panic!("not by passthrough: {other:?}"),
        }
    }
    fn is_cached(self) -> bool {
        matches!(self, Answer::Cached(_))
    }
}

/// Which backing files the kernel knows.
#[derive(Default)]
pub struct Known {
    given: AtomicUsize,
    live: AtomicUsize,
    /// With what it refuses them; 0 takes them.
    refuses: AtomicI32,
}

struct Id {
    number: usize,
    known: Arc<Known>,
}

impl Drop for Id {
    fn drop(&mut self) {
        assert_none_held("a backing file is taken back");
        self.known.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Hands its answer on.
pub struct OpenReplies {
    known: Arc<Known>,
    to: Sender<Answer>,
}

impl OpenReplies {
    pub fn new() -> (Box<Self>, Receiver<Answer>) {
        Self::of(&Arc::default())
    }
    fn of(known: &Arc<Known>) -> (Box<Self>, Receiver<Answer>) {
        let (to, answers) = channel();
        (Box::new(Self { known: known.clone(), to }), answers)
    }
    fn say(self, answer: Answer) {
        assert_none_held("the reply to an open");
        self.to.send(answer).unwrap();
    }
}

impl OpenReply for OpenReplies {
    fn register(&self, _: BorrowedFd<'_>) -> io::Result<Registered> {
        assert_none_held("telling of a backing file");
        match self.known.refuses.load(Ordering::SeqCst) {
            0 => {
                let number = self.known.given.fetch_add(1, Ordering::SeqCst) + 1;
                self.known.live.fetch_add(1, Ordering::SeqCst);
                Ok(Registered(Box::new(Id { number, known: self.known.clone() })))
            }
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }
    fn cached(self: Box<Self>, handle: HandleId) {
        self.say(Answer::Cached(handle));
    }
    fn passthrough(self: Box<Self>, handle: HandleId, file: &Registered) {
        let id = file.0.downcast_ref::<Id>().unwrap();
        let number = id.number;
        assert!(self.known.live.load(Ordering::SeqCst) > 0);
        self.say(Answer::Passthrough(handle, number));
    }
    fn error(self: Box<Self>, errno: Errno) {
        self.say(Answer::Error(errno));
    }
}

const SIZE: u64 = 4 * PIECE;

/// Operations over a mock with a complete file `whole` that has a backing file, and `half`, of which nothing is here.
struct Bench {
    mock: Arc<Mock>,
    ops: Arc<Operations>,
    parked: Arc<ParkedReads>,
    known: Arc<Known>,
    root: NodeId,
    whole: NodeId,
    half: NodeId,
}

impl Bench {
    fn new() -> Self {
        let mock = Mock::new(PIECE).unwrap();
        let files = [
            MockFile::new("whole", SIZE).here(),
            MockFile::new("half", SIZE),
            MockFile::new("small", 9).here(),
        ];
        let root = mock.add("T", &files);
        let node = |name| mock.node(root, name).unwrap();
        let (whole, half) = (node("whole"), node("half"));
        for node in [whole, half, node("small")] {
            mock.set_backing(node, File::open("/dev/null").unwrap());
        }
        let parked = ParkedReads::new(8);
        let ops = Operations::new(mock.clone(), AttrOptions { uid: 0, gid: 0, umask: 0 }, parked.clone());
        let ops = Arc::new(ops.with_offline(vec![OFFLINE]));
        ops.pass_through();
        Self { mock, ops, parked, known: Arc::default(), root, whole, half }
    }
    fn start(&self, node: NodeId, uid: u32) -> Receiver<Answer> {
        let (reply, answers) = OpenReplies::of(&self.known);
        self.ops.open(node, libc::O_RDONLY, uid, reply);
        answers
    }
    fn open(&self, node: NodeId) -> Answer {
        self.open_as(node, 0)
    }
    fn open_as(&self, node: NodeId, uid: u32) -> Answer {
        self.start(node, uid).recv_timeout(SOON).unwrap()
    }
    fn close(&self, answers: impl IntoIterator<Item = Answer>) {
        answers.into_iter().for_each(|answer| self.ops.release(answer.handle()));
    }
    fn live(&self) -> usize {
        self.known.live.load(Ordering::SeqCst)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let counts = self.ops.counts();
            assert_eq!((counts.inodes, counts.handles, counts.passthrough), (0, 0, 0), "something is left");
            let counts = self.mock.counts();
            assert_eq!(counts.opened + counts.opened_here, counts.closed, "a stream is left open");
            assert_eq!((counts.held, self.live()), (0, 0), "a backing file is left");
        }
    }
}

#[test]
fn a_complete_file_is_passed_through_and_its_handles_share_a_backing_file() {
    let bench = Bench::new();
    let (first, second) = (bench.open(bench.whole), bench.open(bench.whole));
    assert_eq!((first.backing(), second.backing()), (1, 1));
    assert_eq!((bench.live(), bench.mock.counts().held, bench.ops.counts().passthrough), (1, 1, 2));
    // An offline user's as well: nothing else would open.
    let third = bench.open_as(bench.whole, OFFLINE);
    assert_eq!(third.backing(), 1);
    bench.close([first, third]);
    assert_eq!(bench.live(), 1);
    // One that overtakes the release of the last.
    let fourth = bench.open(bench.whole);
    bench.close([second]);
    assert_eq!((fourth.backing(), bench.live(), bench.mock.counts().held), (1, 1, 1));
    bench.close([fourth]);
    assert_eq!((bench.live(), bench.mock.counts().held), (0, 0));
    // The next begins anew.
    let fifth = bench.open(bench.whole);
    assert_eq!(fifth.backing(), 2);
    bench.close([fifth]);
    // No stream was opened for any of it: nothing is fetched ahead for such readers.
    assert_eq!((bench.mock.counts().opened, bench.mock.counts().backings), (0, 2));
    let offline = bench.open_as(bench.whole, OFFLINE);
    assert_eq!(offline.backing(), 3, "an offline user's may be the first");
    bench.close([offline]);
}

#[test]
fn what_isnt_complete_or_worth_it_is_cached() {
    let bench = Bench::new();
    let small = bench.mock.node(bench.root, "small").unwrap();
    const { assert!(SIZE >= SMALLEST) };
    let opened = [bench.open(bench.half), bench.open(small), bench.open_as(bench.half, OFFLINE)];
    assert!(opened.iter().all(|answer| answer.is_cached()), "{opened:?}");
    assert_eq!(bench.mock.counts().backings, 0, "nobody had to look for one");
    bench.close(opened);
}

#[test]
fn a_file_that_completes_while_it_is_open_stays_cached_until_nobody_has_it_open() {
    let bench = Bench::new();
    let before = bench.open(bench.half);
    bench.mock.complete_all(bench.half);
    let after = bench.open(bench.half);
    assert!(before.is_cached() && after.is_cached());
    bench.close([before]);
    let later = bench.open(bench.half);
    assert!(later.is_cached());
    bench.close([after, later]);
    let last = bench.open(bench.half);
    assert_eq!(last.backing(), 1);
    // And one that is passed through stays so when it loses a piece.
    bench.mock.evict(bench.half, 0);
    let joining = bench.open(bench.half);
    assert_eq!(joining.backing(), 1);
    bench.close([last, joining]);
    let cached = bench.open(bench.half);
    assert!(cached.is_cached());
    bench.close([cached]);
}

#[test]
fn who_opens_while_a_backing_file_is_looked_for_waits_for_nobody() {
    let bench = Bench::new();
    // Two at once: the second has the first's, its own is dropped.
    bench.mock.keep_backings();
    let (first, second) = (bench.start(bench.whole, 0), bench.start(bench.whole, 0));
    assert_eq!(bench.mock.backings_waiting(), 2);
    assert!(first.try_recv().is_err() && bench.ops.counts().handles == 0);
    bench.ops.getattr(bench.whole).unwrap();
    bench.mock.answer_backings(true);
    let (first, second) = (first.recv().unwrap(), second.recv().unwrap());
    assert_eq!((first.backing(), second.backing(), bench.live()), (1, 1, 1));
    assert_eq!(bench.mock.counts().held, 1);
    bench.close([first, second]);
    // Somebody comes in cached meanwhile: a piece was lost and came back.
    bench.mock.keep_backings();
    let waits = bench.start(bench.whole, 0);
    bench.mock.evict(bench.whole, 1);
    let cached = bench.open(bench.whole);
    bench.mock.complete(bench.whole, 1);
    bench.mock.answer_backings(true);
    let late = waits.recv().unwrap();
    assert!(cached.is_cached() && late.is_cached());
    assert_eq!((bench.live(), bench.mock.counts().held), (0, 0));
    bench.close([cached, late]);
    // It is lost for good meanwhile; nobody answers; the torrent is gone.
    for (change, answer) in [(1, true), (2, false), (3, true)] {
        bench.mock.keep_backings();
        let waits = bench.start(bench.whole, 0);
        match change {
            1 => bench.mock.evict(bench.whole, 1),
            2 => {}
            _ => bench.mock.remove(bench.root),
        }
        bench.mock.answer_backings(answer);
        let late = waits.recv().unwrap();
        match change {
            3 => assert_eq!(late, Answer::Error(Errno::from(ContentError::Gone))),
            _ => {
                assert!(late.is_cached());
                bench.close([late]);
            }
        }
        if change == 1 {
            bench.mock.complete(bench.whole, 1);
        }
    }
}

#[test]
fn a_kernel_that_refuses_is_asked_once_and_one_that_was_short_again() {
    for (number, asked_again) in [(libc::EPERM, false), (libc::ELOOP, false), (libc::ENOMEM, true)] {
        let bench = Bench::new();
        bench.known.refuses.store(number, Ordering::SeqCst);
        let first = bench.open(bench.whole);
        assert!(first.is_cached());
        bench.close([first]);
        assert_eq!(bench.mock.counts().held, 0);
        bench.known.refuses.store(0, Ordering::SeqCst);
        let second = bench.open(bench.whole);
        assert_eq!(second.is_cached(), !asked_again, "{number}");
        assert_eq!(bench.mock.counts().backings, 1 + u64::from(asked_again));
        bench.close([second]);
    }
}

#[test]
fn reads_of_a_passthrough_handle_would_have_their_bytes() {
    // The kernel never asks for them.
    let bench = Bench::new();
    let open = bench.open(bench.whole);
    let (sender, receiver) = channel();
    let reply =
        Box::new(move |result: Result<&[u8], Errno>| sender.send(result.map(<[u8]>::to_vec)).unwrap());
    bench.ops.read(open.handle(), PIECE - 1, 2, Calling::default(), reply);
    assert_eq!(receiver.recv().unwrap(), Ok(bench.mock.bytes(bench.whole, PIECE - 1, 2)));
    assert_eq!(bench.ops.counts().reads, 1);
    bench.close([open]);
}

#[test]
fn f3_what_is_opened_while_reads_are_refused_is_cached() {
    let bench = Bench::new();
    bench.parked.refuse();
    let open = bench.open(bench.whole);
    assert!(open.is_cached());
    bench.close([open]);
}

#[test]
fn opens_and_releases_of_many_threads_never_mix() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..500 {
                    if thread == 0 && round % 5 == 0 {
                        bench.mock.evict(bench.whole, 0);
                        bench.mock.complete(bench.whole, 0);
                    }
                    let open = bench.open(bench.whole);
                    let handles = bench.ops.inodes().handles(bench.whole);
                    assert!(handles.cached == 0 || handles.passthrough == 0, "{handles:?}");
                    bench.close([open]);
                }
            });
        }
    });
}
