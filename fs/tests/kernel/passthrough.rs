//! Passthrough on a kernel mount: what the kernel makes of our opens, with real files behind them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use torrentfs_fs::MountOptions;
use torrentfs_fs::inodes::HandleCounts;
use torrentfs_fs::mock::{Mock, MockFile};
use torrentfs_fs::tree::NodeId;

use crate::common::{Bed, PIECE, SOON, can_mount_as_root, lacks, until};

const SIZE: u64 = 8 * PIECE + 1234;

/// A mount with a complete file `whole`, and `half` of which nothing is here, both with a real file behind them.
struct Setting {
    bed: Bed,
    whole: NodeId,
    half: NodeId,
    behind: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        Self::behind(tempfile::tempdir().unwrap())
    }
    /// With the real files in that folder.
    fn behind(behind: tempfile::TempDir) -> Self {
        let folder = behind.path().to_path_buf();
        Self::with(behind, &folder)
    }
    /// With the real files in one folder, and another named to the mount.
    fn with(behind: tempfile::TempDir, named: &Path) -> Self {
        let mock = Mock::new(PIECE).unwrap();
        let files = [MockFile::new("whole", SIZE).here().executable(), MockFile::new("half", SIZE)];
        let root = mock.add("T", &files);
        let node = |name: &str| {
            let node = mock.node(root, name).unwrap();
            let path = behind.path().join(name);
            std::fs::write(&path, mock.bytes(node, 0, SIZE as usize)).unwrap();
            mock.set_backing(node, File::open(&path).unwrap());
            node
        };
        let (whole, half) = (node("whole"), node("half"));
        let bed = Bed::with(mock, |o| MountOptions { backing: Some(named.to_path_buf()), ..o });
        Self { bed, whole, half, behind }
    }
    fn open(&self, name: &str) -> File {
        File::open(self.bed.path("T").join(name)).unwrap()
    }
    fn handles(&self, node: NodeId) -> HandleCounts {
        self.bed.mounted().handles(node)
    }
    fn kinds(&self, node: NodeId) -> (u64, u64) {
        let handles = self.handles(node);
        (handles.cached, handles.passthrough)
    }
    fn reads(&self) -> u64 {
        self.bed.mounted().counts().reads
    }
    fn bytes(&self, node: NodeId) -> Vec<u8> {
        self.bed.mock.bytes(node, 0, SIZE as usize)
    }
    /// Waits until the kernel has released all of them.
    fn all_released(&self) {
        until("all is released", || self.bed.mounted().counts().handles == 0);
        until("nothing is held", || self.bed.mock.counts().held == 0);
    }
}

fn read_all(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_complete_file_is_read_without_us() {
    if !can_mount_as_root("a_complete_file_is_read_without_us") {
        return;
    }
    let setting = Setting::new();
    let (first, second) = (setting.open("whole"), setting.open("whole"));
    assert_eq!(setting.kinds(setting.whole), (0, 2));
    assert!(read_all(&first) == setting.bytes(setting.whole));
    let mut part = [0; 100];
    second.read_exact_at(&mut part, PIECE - 50).unwrap();
    assert!(part == setting.bytes(setting.whole)[PIECE as usize - 50..][..100]);
    assert_eq!(setting.reads(), 0);
    // What is told of it is the mount's own.
    let stat = first.metadata().unwrap();
    assert_eq!(
        (stat.ino(), stat.size(), stat.mtime(), stat.atime()),
        (setting.whole.0, SIZE, 1_500_000_000, 1_500_000_000)
    );
    drop(first);
    until("one is released", || setting.kinds(setting.whole) == (0, 1));
    assert_eq!(setting.bed.mock.counts().held, 1);
    assert!(read_all(&second) == setting.bytes(setting.whole));
    drop(second);
    setting.all_released();
    assert_eq!((setting.reads(), setting.bed.mock.counts().opened), (0, 0));
}

#[test]
fn a_cached_handle_from_before_keeps_others_cached_until_it_goes() {
    if !can_mount_as_root("a_cached_handle_from_before_keeps_others_cached_until_it_goes") {
        return;
    }
    let setting = Setting::new();
    let before = setting.open("half");
    setting.bed.mock.complete_all(setting.half);
    let after = setting.open("half");
    assert_eq!(setting.kinds(setting.half), (2, 0));
    assert!(
        read_all(&before) == setting.bytes(setting.half) && read_all(&after) == setting.bytes(setting.half)
    );
    assert!(setting.reads() > 0);
    // A mapping keeps a cached handle open.
    let mapped = Mapping::new(&before, SIZE as usize, libc::MAP_SHARED);
    drop((before, after));
    until("one is released", || setting.kinds(setting.half) == (1, 0));
    let third = setting.open("half");
    assert_eq!(setting.kinds(setting.half), (2, 0));
    drop((mapped, third));
    setting.all_released();
    let reads = setting.reads();
    let last = setting.open("half");
    assert_eq!(setting.kinds(setting.half), (0, 1));
    assert!(read_all(&last) == setting.bytes(setting.half));
    // It loses a piece, as can happen to a file that somebody harmed: who opens it now has to join.
    setting.bed.mock.evict(setting.half, 0);
    let joins = setting.open("half");
    assert!(read_all(&joins) == setting.bytes(setting.half));
    assert_eq!((setting.kinds(setting.half), setting.reads()), ((0, 2), reads));
}

#[test]
fn all_ways_of_reading_go_by_passthrough() {
    if !can_mount_as_root("all_ways_of_reading_go_by_passthrough") {
        return;
    }
    // Where the disk allows direct I/O.
    let setting = Setting::new();
    let expected = setting.bytes(setting.whole);
    let file = setting.open("whole");
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        assert!(Mapping::new(&file, SIZE as usize, flags).bytes() == expected);
    }
    // sendfile, to a file; then a copy by whatever way the kernel has.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let target = File::create(&copy).unwrap();
    let mut left = SIZE as usize;
    while left > 0 {
        // SAFETY: both descriptors are open; no offset is given, so nothing is written to.
        let sent =
            unsafe { libc::sendfile(target.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left) };
        left -= usize::try_from(sent).ok().filter(|sent| *sent > 0).unwrap();
    }
    assert!(std::fs::read(&copy).unwrap() == expected);
    std::fs::copy(setting.bed.path("T/whole"), &copy).unwrap();
    assert!(std::fs::read(&copy).unwrap() == expected);
    // O_DIRECT beside the others; O_NONBLOCK means nothing.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK);
    let direct = options.open(setting.bed.path("T/whole")).unwrap();
    let mut room = vec![0u8; 8192 + 4096];
    let start = room.as_ptr().align_offset(4096);
    let page = room.get_mut(start..start + 8192).unwrap();
    assert_eq!(direct.read_at(page, 4096).unwrap(), 8192);
    assert!(page == &expected[4096..][..8192]);
    assert_eq!((setting.kinds(setting.whole), setting.reads()), ((0, 2), 0));
}

#[test]
fn a_program_runs_and_an_image_mounts() {
    if !can_mount_as_root("a_program_runs_and_an_image_mounts") {
        return;
    }
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|path| Path::new(path).exists());
    let Some(mke2fs) = mke2fs else {
        lacks("a_program_runs_and_an_image_mounts", "mke2fs (Debian: e2fsprogs)");
        return;
    };
    let mock = Mock::new(PIECE).unwrap();
    let behind = tempfile::tempdir().unwrap();
    // A program of the system, and an image made on the spot.
    let image = behind.path().join("image");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    assert!(Command::new(mke2fs).args(["-q", "-F"]).arg(&image).status().unwrap().success());
    let program = std::fs::read("/bin/ls").unwrap();
    let image_bytes = std::fs::read(&image).unwrap();
    let sizes = [("program", program.len() as u64), ("image", image_bytes.len() as u64)];
    let files = sizes.map(|(name, size)| MockFile::new(name, size).here().executable());
    let root = mock.add("T", &files);
    for (name, bytes) in [("program", program), ("image", image_bytes)] {
        let path = behind.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        mock.set_backing(mock.node(root, name).unwrap(), File::open(path).unwrap());
    }
    let folder = behind.path().to_path_buf();
    let bed = Bed::with(mock, |o| MountOptions { backing: Some(folder), ..o });
    let listed = Command::new(bed.path("T/program")).arg(bed.path("T")).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "image\nprogram\n");
    let at = Looped::new();
    let mut mount = Command::new("mount");
    assert!(
        mount.args(["-o", "loop,ro"]).arg(bed.path("T/image")).arg(at.0.path()).status().unwrap().success()
    );
    let found = std::fs::read_dir(at.0.path()).unwrap().count();
    assert!(at.unmount());
    assert_eq!(found, 1, "lost+found");
    assert_eq!(bed.mounted().counts().reads, 0);
    until("all is released", || bed.mounted().counts().handles == 0);
}

/// A folder where an image may be mounted; unmounted, with its loop device, when it is dropped.
struct Looped(tempfile::TempDir);

impl Looped {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn unmount(&self) -> bool {
        Command::new("umount").arg("-d").arg(self.0.path()).output().is_ok_and(|out| out.status.success())
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        self.unmount();
    }
}

#[test]
fn who_removes_the_file_or_the_torrent_takes_nothing_from_those_who_have_it_open() {
    if !can_mount_as_root("who_removes_the_file_or_the_torrent_takes_nothing_from_those_who_have_it_open") {
        return;
    }
    let setting = Setting::new();
    let expected = setting.bytes(setting.whole);
    let file = setting.open("whole");
    let behind = setting.behind.path().join("whole");
    std::fs::remove_file(&behind).unwrap();
    std::fs::write(&behind, b"another").unwrap();
    assert!(read_all(&file) == expected);
    setting.bed.mock.remove(NodeId::new(setting.whole.slot(), 0));
    until("it is gone", || !setting.bed.path("T").exists());
    assert!(read_all(&file) == expected);
    assert!(Mapping::new(&file, SIZE as usize, libc::MAP_PRIVATE).bytes() == expected);
    drop(file);
    setting.all_released();
}

#[test]
fn a_file_that_is_cut_ends_there() {
    if !can_mount_as_root("a_file_that_is_cut_ends_there") {
        return;
    }
    // Not what anybody wants; but no hang, and no bytes from elsewhere.
    let setting = Setting::new();
    let file = setting.open("whole");
    let cut = PIECE / 2;
    File::options().write(true).open(setting.behind.path().join("whole")).unwrap().set_len(cut).unwrap();
    assert!(read_all(&file) == setting.bytes(setting.whole)[..cut as usize]);
    assert_eq!(file.metadata().unwrap().len(), SIZE);
}

#[test]
fn f3_unmounting_with_passthrough_handles_open_is_clean() {
    if !can_mount_as_root("f3_unmounting_with_passthrough_handles_open_is_clean") {
        return;
    }
    let setting = Setting::new();
    let file = setting.open("whole");
    let mapping = Mapping::new(&file, SIZE as usize, libc::MAP_SHARED);
    let report = setting.bed.mounted().unmount(SOON);
    assert!(report.is_complete(), "{report:?}");
    // Whoever has it goes on reading, and nobody tells us any more when he is done: it is held until the mount's end.
    assert!(
        mapping.bytes() == setting.bytes(setting.whole) && read_all(&file) == setting.bytes(setting.whole)
    );
    drop((mapping, file));
    let Setting { bed, .. } = setting;
    let mock = bed.mock.clone();
    assert_eq!(mock.counts().held, 1);
    drop(bed);
    assert_eq!(mock.counts().held, 0);
}

#[test]
fn on_an_overlay_files_are_passed_through_and_where_the_kernel_refuses_they_are_cached() {
    let test = "on_an_overlay_files_are_passed_through_and_where_the_kernel_refuses_they_are_cached";
    if !can_mount_as_root(test) {
        return;
    }
    let overlay = Overlay::new();
    let setting = Setting::behind(tempfile::tempdir_in(&overlay.at).unwrap());
    let file = setting.open("whole");
    assert_eq!(setting.kinds(setting.whole), (0, 1));
    assert!(read_all(&file) == setting.bytes(setting.whole));
    assert_eq!(setting.reads(), 0);
    drop(file);
    drop(setting);
    // Files on it, with a mount that was told of another place.
    let plain = tempfile::tempdir().unwrap();
    let setting = Setting::with(tempfile::tempdir_in(&overlay.at).unwrap(), plain.path());
    for _ in 0..2 {
        let file = setting.open("whole");
        assert_eq!(setting.kinds(setting.whole), (1, 0));
        assert!(read_all(&file) == setting.bytes(setting.whole));
        drop(file);
        setting.all_released();
    }
    assert_eq!(setting.bed.mock.counts().backings, 1, "it was asked once");
}

#[test]
fn without_the_privilege_files_are_cached() {
    if !can_mount_as_root("without_the_privilege_files_are_cached") {
        return;
    }
    let setting = Setting::new();
    setting.bed.mock.keep_backings();
    std::thread::scope(|scope| {
        let opens = scope.spawn(|| setting.open("whole"));
        until("a backing file is asked for", || setting.bed.mock.backings_waiting() == 1);
        // Who answers tells the kernel; privileges are a thread's own.
        scope.spawn(|| {
            give_up_sys_admin();
            setting.bed.mock.answer_backings(true);
        });
        let file = opens.join().unwrap();
        assert_eq!(setting.kinds(setting.whole), (1, 0));
        assert!(read_all(&file) == setting.bytes(setting.whole));
    });
    setting.all_released();
    // The next could be told of again, by threads that may, but that isn't tried.
    let file = setting.open("whole");
    assert_eq!((setting.kinds(setting.whole), setting.bed.mock.counts().backings), ((1, 0), 1));
    assert!(read_all(&file) == setting.bytes(setting.whole));
}

/// Takes `CAP_SYS_ADMIN` from this thread (`capset(2)`, version 3 of its structures).
fn give_up_sys_admin() {
    const CAP_SYS_ADMIN: u32 = 21;
    let mut header = [0x2008_0522_u32, 0];
    // Effective, permitted, inheritable; for the lower 32 capabilities and the upper.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: both calls read the header, and read or write the six words of the sets, which outlive them.
    let done = unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
        sets[0][0] &= !(1 << CAP_SYS_ADMIN);
        libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_mut_ptr())
    };
    assert_eq!(done, 0);
}

#[test]
fn opens_of_all_kinds_at_once_never_fail() {
    if !can_mount_as_root("opens_of_all_kinds_at_once_never_fail") {
        return;
    }
    let setting = Setting::new();
    let expected = setting.bytes(setting.whole);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (setting, expected) = (&setting, &expected);
            scope.spawn(move || {
                for round in 0..300 {
                    if thread == 0 && round % 3 == 0 {
                        setting.bed.mock.evict(setting.whole, 8);
                    }
                    let file = setting.open("whole");
                    let mut bytes = [0; 4096];
                    let offset = (thread * 7919 + round * 104_729) % (8 * PIECE - 4096);
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    assert!(bytes == expected[offset as usize..][..4096]);
                    if thread == 0 && round % 3 == 0 {
                        setting.bed.mock.complete(setting.whole, 8);
                    }
                }
            });
        }
    });
    setting.all_released();
}

/// A mapping of a file's beginning, read as a slice.
struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize, flags: i32) -> Self {
        // SAFETY: a new mapping, for reading only, of a file that is open and at least so long.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at, len }
    }
    fn bytes(&self) -> Vec<u8> {
        // SAFETY: mapped for that length, and unmapped only when this is dropped; the file isn't cut meanwhile.
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.len) }.to_vec()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, of which no slice is left.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// An overlay over folders of a tmpfs; unmounted when it is dropped.
struct Overlay {
    at: PathBuf,
    folder: tempfile::TempDir,
}

impl Overlay {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Made first: what fails below leaves nothing mounted.
        let overlay = Self { at: folder.path().join("at"), folder };
        let path = |name: &str| overlay.folder.path().join(name);
        mount(Some("tmpfs"), overlay.folder.path(), "tmpfs", "");
        for name in ["lower", "upper", "work", "at"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| path(name).display().to_string());
        mount(
            Some("overlay"),
            &path("at"),
            "overlay",
            &format!("lowerdir={lower},upperdir={upper},workdir={work}"),
        );
        overlay
    }
}

fn mount(source: Option<&str>, at: &Path, kind: &str, data: &str) {
    nix::mount::mount(source, at, Some(kind), nix::mount::MsFlags::empty(), Some(data)).unwrap();
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for at in [self.at.as_path(), self.folder.path()] {
            let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
