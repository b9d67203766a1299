//! Disks of a test's own, and what lies on them: small file systems that can be filled, the room that a folder
//! takes, and pages that are to be forgotten.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::{Proc, has_tool};

/// For making a small file system: well under a second.
const MAKE: Duration = Duration::from_secs(60);

/// A small file system. Dropping it unmounts it (lazily), and removes all that lay on it.
pub struct SmallDisk {
    point: PathBuf,
    _dir: TempDir,
}

impl SmallDisk {
    /// In memory, of so many bytes.
    pub fn tmpfs(size: u64) -> Self {
        let (disk, point) = Self::place();
        let options = format!("size={size}");
        mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("a tmpfs");
        disk
    }

    /// ext4 on a loop device, of so many bytes, its own tables included.
    pub fn ext4(size: u64) -> Self {
        let (disk, point) = Self::place();
        let image = disk._dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        let sbin = |name: &str| {
            let path = Path::new("/usr/sbin").join(name);
            if path.exists() { path } else { name.into() }
        };
        let mut command = Command::new(sbin("mkfs.ext4"));
        // No blocks are put by for root: what is free is free for all.
        command.args(["-q", "-F", "-m", "0"]).arg(&image);
        Proc::spawn(command).success(MAKE);
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(&image).arg(&point);
        Proc::spawn(command).success(MAKE);
        disk
    }

    /// Why there can't be any, if so.
    pub fn missing() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("mounting a small file system takes root".to_owned());
        }
        (!has_tool("mkfs.ext4")).then(|| "no mkfs.ext4 (Debian: e2fsprogs)".to_owned())
    }

    fn place() -> (Self, PathBuf) {
        let dir = tempfile::Builder::new().prefix("tfs-disk-").tempdir().expect("a temporary folder");
        let point = dir.path().canonicalize().expect("its real path").join("disk");
        std::fs::create_dir(&point).expect("a mount point");
        (Self { point: point.clone(), _dir: dir }, point)
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Bytes that are free for everybody.
    pub fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.point).expect("its figures");
        found.blocks_available() * found.fragment_size()
    }

    /// Fills it with a file, to the last byte; returns the file.
    pub fn fill(&self) -> PathBuf {
        let path = self.point.join("filler");
        let mut file = File::create(&path).expect("a file");
        // In ever smaller steps: the last block is taken, too.
        for step in [1 << 20, 4096, 1] {
            let bytes = vec![0xf1; step];
            while file.write_all(&bytes).is_ok() {}
        }
        file.sync_all().expect("what was taken is kept");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}

/// Bytes that everything below a folder takes on the disk, in whole blocks. What goes meanwhile is passed over. Files
/// are looked at one after another, and while one is looked at another may give back what this one takes: so each is
/// looked at twice, all of them before any again, and the lower of the two counts. That is never more than what all
/// took together in between.
pub fn allocated(folder: &Path) -> u64 {
    let (mut first, mut second) = (HashMap::new(), HashMap::new());
    each_allocated(folder, &mut first);
    each_allocated(folder, &mut second);
    second.iter().map(|(inode, size)| first.get(inode).map_or(0, |before| *size.min(before))).sum()
}

/// What each file takes, by its inode: it may get another name meanwhile.
fn each_allocated(folder: &Path, sizes: &mut HashMap<u64, u64>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().symlink_metadata() {
            Ok(meta) if meta.is_dir() => each_allocated(&entry.path(), sizes),
            Ok(meta) => _ = sizes.insert(meta.ino(), meta.blocks() * 512),
            Err(_) => {}
        }
    }
}

/// Has the kernel forget what it keeps in memory of a file, so that who reads it asks for it again.
#[track_caller]
pub fn forget_pages(path: &Path) {
    let file = File::open(path).expect("opens");
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("it forgets");
}
