//! Listing a root that changes, and large folders (row O4).

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use torrentfs_fs::content::{BackingDone, Content, ContentError, ContentEvent, Space, Stream};
use torrentfs_fs::lock::{Rank, RankedMutex, RankedRwLock};
use torrentfs_fs::tree::{Leaf, NodeId, Subtree, SubtreeBuilder, Tree};
use torrentfs_fs::{MountOptions, mount};

use crate::common::{Raises, SLACK, SOON, can_mount, until};

/// A tree that is exchanged, of folders without anything in them and of what is given.
struct Changing {
    tree: RankedRwLock<Arc<Tree>>,
    next: AtomicU32,
    empty: Arc<Subtree>,
    /// A file for which the first who asks what is here of it waits, as long as somebody has the other end.
    held: RankedMutex<Option<(NodeId, Receiver<()>)>>,
    /// Whether he waits.
    waits: AtomicBool,
}

impl Changing {
    fn new() -> Arc<Self> {
        let empty = Arc::new(SubtreeBuilder::folder("empty", 0).build());
        Arc::new(Self {
            tree: RankedRwLock::new(Rank::Leaf, "changing tree", Arc::default()),
            next: AtomicU32::new(1),
            empty,
            held: RankedMutex::new(Rank::Leaf, "held file", None),
            waits: AtomicBool::new(false),
        })
    }

    /// These names from now on, each a new entry.
    fn show(&self, names: impl Iterator<Item = String>) {
        let entry = |name| (name, self.next.fetch_add(1, Ordering::Relaxed), self.empty.clone());
        *self.tree.write() = Arc::new(Tree::new(names.map(entry).collect(), 0));
    }
}

impl Content for Changing {
    fn tree(&self) -> Arc<Tree> {
        self.tree.read().clone()
    }
    fn bytes_here(&self, file: NodeId) -> u64 {
        let held = self.held.lock().take_if(|(held, _)| *held == file);
        if let Some((_, freed)) = held {
            self.waits.store(true, Ordering::SeqCst);
            let _ = freed.recv_timeout(SOON * 2);
            self.waits.store(false, Ordering::SeqCst);
        }
        0
    }
    fn open(&self, _: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        Err(ContentError::Gone)
    }
    fn open_here(&self, _: NodeId) -> Result<Box<dyn Stream>, ContentError> {
        Err(ContentError::Gone)
    }
    fn backing(&self, _: NodeId, done: BackingDone) {
        done(None);
    }
    fn xattr_names(&self, _: NodeId) -> Vec<String> {
        Vec::new()
    }
    fn xattr(&self, _: NodeId, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn space(&self) -> Space {
        Space::default()
    }
    fn events(&self) -> Option<Receiver<ContentEvent>> {
        None
    }
}

/// The names that the system gives for an open folder, from where it is.
fn names(dir: &std::fs::File, buffer: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut buffer = vec![0u64; buffer / 8];
    loop {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let got = unsafe {
            libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len() * 8)
        };
        assert!(got >= 0, "{}", std::io::Error::last_os_error());
        if got == 0 {
            return names;
        }
        let mut at = 0;
        while at < got as usize {
            // SAFETY: the kernel wrote entries up to `got`, each with its length, aligned to 8 bytes, and its name
            // ended by NUL.
            let (len, name) = unsafe {
                let entry = buffer.as_ptr().cast::<u8>().add(at).cast::<libc::dirent64>();
                let name = std::ptr::addr_of!((*entry).d_name).cast();
                ((*entry).d_reclen, CStr::from_ptr(name).to_string_lossy().into_owned())
            };
            if name != "." && name != ".." {
                names.push(name);
            }
            at += usize::from(len);
        }
    }
}

#[test]
fn o4_a_listing_goes_on_where_it_was_while_torrents_come_and_go() {
    if !can_mount("o4_a_listing_goes_on_where_it_was_while_torrents_come_and_go") {
        return;
    }
    let content = Changing::new();
    // Every third one changes in each round, so that places shift all the time.
    let shown = |round: usize| {
        (0..10_000).filter(move |n| !(n + round).is_multiple_of(3)).map(|n| format!("torrent {n:05}"))
    };
    content.show(shown(0));
    let folder = tempfile::tempdir().unwrap();
    let mounted = mount(content.clone(), MountOptions::new(folder.path())).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Raises(&over);
        scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                round += 1;
                content.show(shown(round));
            }
        });
        // By small and large steps; each list is that of one moment, whole and in order.
        for buffer in [512, 4096, 1 << 16] {
            let dir = std::fs::File::open(folder.path()).unwrap();
            let listed = names(&dir, buffer);
            let whole = (0..3).any(|round| shown(round).eq(listed.iter().cloned()));
            let unlike: BTreeSet<_> = listed.iter().collect();
            assert!(whole, "{} names, {} different ones, by {buffer}", listed.len(), unlike.len());
        }
    });
    // Rewound, it is the present one.
    let dir = std::fs::File::open(folder.path()).unwrap();
    names(&dir, 4096);
    content.show(["only".to_owned()].into_iter());
    std::io::Seek::rewind(&mut &dir).unwrap();
    assert_eq!(names(&dir, 4096), ["only"]);
    drop(dir);
    assert!(mounted.unmount(SOON).is_complete());
}

#[test]
fn o4_folders_of_any_size_are_listed_in_time() {
    if !can_mount("o4_folders_of_any_size_are_listed_in_time") {
        return;
    }
    let content = Changing::new();
    let sizes = [100, 1_000, 10_000, 100_000];
    let subtree = |size: u32| {
        let mut builder = SubtreeBuilder::folder("x", 0);
        for n in 0..size {
            builder.add(&[format!("file {n:06}")], Leaf::File { size: 1, executable: false, file: n });
        }
        (format!("{size}"), size, Arc::new(builder.build()))
    };
    *content.tree.write() = Arc::new(Tree::new(sizes.map(subtree).to_vec(), 0));
    let folder = tempfile::tempdir().unwrap();
    let mounted = mount(content.clone(), MountOptions::new(folder.path())).unwrap();
    for size in sizes {
        let began = Instant::now();
        let path = folder.path().join(format!("{size}"));
        let mut bytes = 0;
        for entry in std::fs::read_dir(path).unwrap() {
            bytes += entry.unwrap().metadata().unwrap().len();
        }
        assert_eq!(bytes, u64::from(size));
        println!("{size} entries with their attributes: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2) * SLACK, "{size}: {:?}", began.elapsed());
    }
    assert!(mounted.unmount(SOON).is_complete());
}

/// The kernel has lookups of one folder wait for each other unless it was told that they need not.
#[test]
fn o10_a_lookup_waits_for_no_other_in_the_same_folder() {
    if !can_mount("o10_a_lookup_waits_for_no_other_in_the_same_folder") {
        return;
    }
    let content = Changing::new();
    let mut builder = SubtreeBuilder::folder("T", 0);
    for (number, name) in ["slow", "other", "third"].into_iter().enumerate() {
        builder.add(&[name], Leaf::File { size: 1, executable: false, file: number as u32 });
    }
    let subtree = Arc::new(builder.build());
    let slow = NodeId::new(1, subtree.child(0, "slow").unwrap());
    *content.tree.write() = Arc::new(Tree::new(vec![("T".into(), 1, subtree)], 0));
    let folder = tempfile::tempdir().unwrap();
    let mounted = mount(content.clone(), MountOptions::new(folder.path())).unwrap();
    let at = folder.path().join("T");
    at.symlink_metadata().unwrap();
    let (free, freed) = channel();
    *content.held.lock() = Some((slow, freed));
    std::thread::scope(|scope| {
        // Let go on every way out: the others may wait for it.
        let free = free;
        let first = scope.spawn(|| at.join("slow").symlink_metadata().unwrap().len());
        until("the first lookup waits", || content.waits.load(Ordering::SeqCst));
        let (tell, told) = channel();
        let at = &at;
        scope.spawn(move || {
            let sizes = ["other", "third"].map(|name| at.join(name).symlink_metadata().unwrap().len());
            // Not a listing: with the attributes of a name that is just looked up, the kernel waits for that.
            let _ = tell.send((sizes, at.join("missing").symlink_metadata().is_err()));
        });
        let answer = told.recv_timeout(SOON);
        let waits = content.waits.load(Ordering::SeqCst);
        drop(free);
        assert_eq!(answer, Ok(([1, 1], true)), "looked up meanwhile");
        assert!(waits && first.join().unwrap() == 1);
    });
    assert!(mounted.unmount(SOON).is_complete());
}
