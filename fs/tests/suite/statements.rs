//! docs/SEMANTICS.md on the operations and on a kernel mount of the mock.

use std::fs::File;
use std::path::Path;

use torrentfs_fs::MountOptions;
use torrentfs_fs::attr::AttrOptions;
use torrentfs_fs::content::Content;
use torrentfs_fs::mock::MockFile;
use torrentfs_fs::tree::NodeId;

use crate::common::{Bed, can_mount, until};
use crate::semantics::view::blocks_now;
use crate::semantics::{self, Control, LARGE, LATER, LONG, MANY, PROGRAM, Shown, Shrunk, TREE, UMASK, World};
use crate::subject::{Kernel, Layer, Subject};

struct Scripted<'a> {
    subject: &'a dyn Subject,
    /// The mount, and where its files' backing lies.
    mounted: Option<(&'a Bed, &'a Path)>,
    semantics: NodeId,
    single: NodeId,
}

impl<'a> Scripted<'a> {
    /// Fills the mock with what each subject shows.
    fn new(subject: &'a dyn Subject, mounted: Option<(&'a Bed, &'a Path)>) -> Self {
        let mock = subject.mock();
        let file = |(path, shown): &(&str, Shown)| match shown {
            Shown::File(size, _) => MockFile::new(path, *size),
            Shown::Program(true) => MockFile::new(path, PROGRAM.len() as u64).executable().here(),
            Shown::Program(false) => MockFile::new(path, PROGRAM.len() as u64).here(),
            Shown::Link(target) => MockFile::symlink(path, target),
        };
        let semantics = mock.add("semantics", &TREE.iter().map(file).collect::<Vec<_>>());
        for (path, shown) in &TREE {
            let node = mock.node(semantics, path).unwrap();
            match shown {
                Shown::File(_, pieces) => {
                    pieces.iter().for_each(|piece| mock.complete(node, *piece as usize))
                }
                Shown::Program(_) => mock.set_bytes(node, PROGRAM),
                Shown::Link(_) => {}
            }
        }
        let many: Vec<_> =
            (0..MANY).map(|number| MockFile::new(&format!("d000/file {number:06}"), 1)).collect();
        mock.add("many", &many);
        let single = mock.add_of(LATER, "single.bin", &[MockFile::new("single.bin", 7).here()]);
        Self { subject, mounted, semantics, single }
    }

    fn node(&self, path: &str) -> NodeId {
        match path.strip_prefix("semantics/") {
            Some(path) => self.subject.mock().node(self.semantics, path).unwrap(),
            None => self.single,
        }
    }

    fn run(&self, subject: semantics::Subject, point: Option<&Path>) {
        assert!(LONG.len() == 255);
        semantics::run(&World { subject, view: self.subject, point, control: self });
    }
}

impl Control for Scripted<'_> {
    fn bytes(&self, path: &str, offset: u64, len: usize) -> Vec<u8> {
        self.subject.mock().bytes(self.node(path), offset, len)
    }
    fn bring(&self, path: &str) {
        let (mock, node) = (self.subject.mock().clone(), self.node(&format!("semantics/{path}")));
        let bring = move || {
            until("a reader waits", || mock.waiting() > 0);
            mock.complete_all(node);
        };
        std::thread::Builder::new().name("bring".into()).spawn(bring).unwrap();
    }
    fn shrunk(&self) -> Shrunk {
        let (mock, path) = (self.subject.mock(), "semantics/growing.bin");
        let node = self.node(path);
        let told = || match self.mounted {
            Some((bed, _)) => blocks_now(&bed.path(path)),
            None => self.subject.stat(path).unwrap().blocks,
        };
        let before = told();
        mock.evict(node, 0);
        Shrunk { before, after: told(), here: mock.bytes_here(node) }
    }
    fn asked_for(&self, path: &str) {
        let mock = self.subject.mock();
        until("it is asked for", || mock.waiting() > 0);
        mock.complete_all(self.node(&format!("semantics/{path}")));
    }
    fn free(&self) -> u64 {
        1 << 30
    }
    fn add(&self, names: &[String]) {
        for name in names {
            self.subject.mock().add(name, &[MockFile::new("d/file", 100).here()]);
        }
    }
    fn remove(&self, names: &[String]) {
        let mock = self.subject.mock();
        for name in names {
            mock.remove(mock.tree().root_child(name).unwrap());
        }
    }
    fn open_whole(&self) -> (File, Vec<u8>, bool) {
        let (bed, folder) = self.mounted.expect("a mount");
        let root = bed.mock.add("whole", &[MockFile::new("large.bin", LARGE).here()]);
        let node = bed.mock.node(root, "large.bin").unwrap();
        let (bytes, behind) = (bed.mock.bytes(node, 0, LARGE as usize), folder.join("large.bin"));
        std::fs::write(&behind, &bytes).unwrap();
        bed.mock.set_backing(node, File::open(&behind).unwrap());
        let path = bed.path("whole/large.bin");
        until("it shows", || path.exists());
        let file = File::open(path).unwrap();
        let passed = bed.mounted().handles(node).passthrough == 1;
        (file, bytes, passed)
    }
}

#[test]
fn docs_semantics_holds_for_the_operations() {
    let (uid, gid) = semantics::owner();
    let options = AttrOptions { uid, gid, umask: UMASK as u16 };
    Scripted::new(&Layer::with(options), None).run(semantics::Subject::Operations, None);
}

#[test]
fn docs_semantics_holds_for_a_mount() {
    if can_mount("docs_semantics_holds_for_a_mount") {
        let (uid, gid) = semantics::owner();
        let behind = tempfile::tempdir().unwrap();
        let backing = Some(behind.path().to_owned());
        let kernel = Kernel::with(|o| MountOptions { uid, gid, umask: UMASK as u16, backing, ..o });
        let point = kernel.bed.root().to_owned();
        Scripted::new(&kernel, Some((&kernel.bed, behind.path())))
            .run(semantics::Subject::MockMount, Some(&point));
    }
}
