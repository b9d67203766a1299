//! `torrentfs demo`: a newcomer sees it work without a network.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Proc, is_mounted, torrentfs, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// Frees a mount point if its program didn't.
struct Unmount<'a>(&'a std::path::Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        if is_mounted(self.0) {
            let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

#[test]
fn the_demo_mounts_reads_and_ends_on_ctrl_c() {
    needs!(Fuse);
    let folder = tempfile::tempdir().expect("a folder");
    let point = folder.path().canonicalize().expect("a path").join("demo");
    std::fs::create_dir(&point).expect("a mount point");
    let mut command = torrentfs(["demo".as_ref(), point.as_os_str()]);
    command.env("XDG_CACHE_HOME", folder.path().join("cache")).env("TMPDIR", folder.path());
    // Dropped after the program: whatever went wrong, no mount stays.
    let _clean = Unmount(&point);
    let mut demo = Proc::spawn(command);
    wait_until("the demo's mount", MINUTE, || {
        assert!(demo.is_running(), "{}", demo.output());
        is_mounted(&point)
    });
    let mut smallest = None;
    wait_until("the demo's files", MINUTE, || {
        assert!(demo.is_running(), "{}", demo.output());
        let list = Proc::start(
            "find",
            [point.as_os_str(), "-type".as_ref(), "f".as_ref(), "-printf".as_ref(), "%s %p\n".as_ref()],
        )
        .finish(MINUTE);
        let files = list.1.lines().filter_map(|line| line.split_once(' '));
        smallest = files
            .filter_map(|(size, path)| Some((size.parse::<u64>().ok()?, path.to_owned())))
            .filter(|(size, _)| *size > 0)
            .min();
        smallest.is_some()
    });
    let (size, path) = smallest.expect("a file");
    let text = Proc::start("cat", [&path]).success(MINUTE);
    assert_eq!(text.len() as u64, size);
    demo.signal(Signal::SIGINT);
    let output = demo.success(Duration::from_secs(15));
    assert!(!output.contains("panicked"), "{output}");
    assert!(output.contains(point.to_str().expect("UTF-8")), "it prints what to try: {output}");
    assert!(!is_mounted(&point));
}
