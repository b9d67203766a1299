//! Large folders of a real torrent: listed with all attributes, by one and by several at once (row O4).

use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Mount, Proc, Sample};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// A listing is promised within 2 s; five times that, for a busy machine.
const LISTED: Duration = Duration::from_secs(10);

/// Lists everything in a folder with its attributes, and how long that took.
fn ls(mount: &Mount, options: &str) -> (usize, Duration) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ls {options} | wc -l")]).current_dir(mount.point()).env("LC_ALL", "C");
    let began = Instant::now();
    let lines = Proc::spawn(command).success(5 * MINUTE);
    (lines.trim().parse().expect("a number"), began.elapsed())
}

#[test]
fn o4_a_hundred_thousand_files_are_listed_in_time() {
    needs!(Fuse);
    // Files, and folders that they lie in.
    for (files, folders) in [(100, 1), (10_000, 1), (10_000, 100), (100_000, 1), (100_000, 1_000)] {
        let sample = Sample::many(&format!("many-{folders}"), files, folders, None);
        let mount = Mount::sample(&sample).start();
        let mut took = Vec::new();
        for options in ["-lR", "-lR", "-fR", "-iR"] {
            let (lines, time) = ls(&mount, options);
            assert!(lines >= files, "ls {options}: {lines} lines for {files} files");
            took.push(time);
        }
        let [cold, warm, names, _] = took[..] else { unreachable!("four runs") };
        eprintln!(
            "{files} files in {folders} folders: ls -lR {cold:?}, again {warm:?}, names alone {names:?}"
        );
        assert!(took.iter().all(|time| *time < LISTED), "{took:?}");
        mount.stop();
    }
}

#[test]
fn o4_eight_look_at_a_large_folder_at_once() {
    const FILES: usize = 100_000;
    needs!(Fuse);
    let sample = Sample::many("many-1", FILES, 1, None);
    let mount = Mount::sample(&sample).start();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let folder = mount.path("many-1/d000");
            scope.spawn(move || {
                // Each looks every eighth file up, and one of them lists meanwhile.
                if thread == 0 {
                    assert_eq!(std::fs::read_dir(&folder).expect("a listing").count(), FILES);
                }
                for number in (thread..FILES).step_by(8) {
                    let path = folder.join(format!("file {number:06}"));
                    assert_eq!(path.symlink_metadata().expect("it is there").len(), 1);
                }
                let none = folder.join("none").symlink_metadata().expect_err("it isn't there");
                assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
            });
        }
    });
    eprintln!("{FILES} lookups by eight, beside a listing: {:?}", began.elapsed());
    assert!(began.elapsed() < 5 * LISTED, "{:?}", began.elapsed());
    mount.stop();
}
