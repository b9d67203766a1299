//! Signals in every state of a start and of an end, what is inherited from the caller, unmounting from outside while
//! files are open, and the options of the mount itself.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{
    Behaviour, Mount, Place, Proc, STOP, Sample, ScriptedPeer, Tracker, is_mounted, magnet, mount_line,
    program, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// Waits, without a pause, until a process that was just started has SIGTERM in hand. Panics at a minute, or when `has_ended`
/// tells that it is gone.
#[track_caller]
pub fn wait_in_hand(pid: u32, mut has_ended: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !has_in_hand(pid, Signal::SIGTERM) {
        assert!(!has_ended(), "it ended at its start");
        assert!(begun.elapsed() < MINUTE, "it never had SIGTERM in hand");
        std::thread::yield_now();
    }
}

/// Whether a process has taken a signal in hand: it keeps it back, or has a handler.
fn has_in_hand(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let is_in = |set: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(set)).unwrap_or("0").trim();
        u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
    };
    is_in("SigBlk:") || is_in("SigCgt:")
}

#[test]
fn sigterm_ends_a_start_wherever_it_is() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe.torrent");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/x.torrent", silent.local_addr().expect("bound"));
    let sources = [
        // Nobody ever writes into it: opening it waits.
        ("a file that can't be opened", pipe.to_str().expect("UTF-8").to_owned()),
        ("an address that doesn't answer", url),
        ("metadata", magnet(&sample, &[])),
    ];
    for (what, source) in sources {
        let mut mount = Mount::of(&source).launch();
        let pid = mount.pid();
        wait_until("it to run", MINUTE, || has_in_hand(pid, Signal::SIGTERM));
        if what == "metadata" {
            wait_until("the mount", MINUTE, || is_mounted(mount.point()));
        } else {
            // It has the cache folder: what comes then are the sources.
            wait_until("the cache folder", MINUTE, || mount.cache().join("lock").exists());
        }
        mount.signal(Signal::SIGTERM);
        let took = mount.clean_end(STOP);
        eprintln!("waiting for {what}: {took:?}");
    }
}

#[test]
fn sigterm_right_at_the_start_is_not_lost() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    // From the first moment at which the program can have it in hand.
    for pause in 0..20 {
        let mut mount = Mount::sample(&sample).launch();
        let pid = mount.pid();
        wait_in_hand(pid, || mount.has_ended());
        std::thread::sleep(Duration::from_millis(pause));
        mount.signal(Signal::SIGTERM);
        mount.clean_end(STOP);
    }
}

#[test]
fn what_is_inherited_of_signals() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let place = Place::new();
    // SIGHUP ignored, as by nohup; SIGTERM held back by a caller that forgot about it.
    let mut command = Command::new("env");
    command.args(["--ignore-signal=HUP", "--block-signal=TERM"]).arg(program()).arg("mount");
    command.args(place.options()).arg(&sample.torrent).arg(&place.point);
    let mut running = Proc::spawn(command);
    running.wait_for("ready", MINUTE);
    running.signal(Signal::SIGHUP);
    running.signal(Signal::SIGTERM);
    let said = running.success(STOP);
    assert!(said.contains("SIGTERM: ending") && !said.contains("SIGHUP"), "{said}");
    assert!(!is_mounted(&place.point));
}

#[test]
fn o7_a_second_signal_forces_an_end_that_hangs() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    // A tracker that knows us doesn't answer when it is told that we leave: two seconds in which the second signal comes.
    let tracker = Tracker::start(&[]);
    let mut mount = Mount::sample(&sample).arg("--tracker").arg(tracker.http_url()).start();
    let told = |event: &str| tracker.announces().iter().any(|announce| announce.event == event);
    mount.wait_tracker();
    tracker.fall_silent();
    mount.signal(Signal::SIGTERM);
    wait_until("the tracker to be told again", MINUTE, || told("stopped"));
    mount.signal(Signal::SIGINT);
    assert_eq!(mount.exited(STOP).code(), Some(130), "{}", mount.log());
    assert!(mount.log().contains("a second signal: leaving at once"), "{}", mount.log());
    assert!(!is_mounted(mount.point()));
}

#[test]
fn unmounting_lazily_lets_open_files_be_read_to_their_end() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mut mount = Mount::sample(&sample).peer(peer.addr()).start();
    let held = File::open(mount.path(&sample.name)).expect("it opens");
    if nix::unistd::geteuid().is_root() {
        umount2(mount.point(), MntFlags::MNT_DETACH).expect("it unmounts");
    } else {
        Proc::start("fusermount3", ["-u".as_ref(), "-z".as_ref(), mount.point().as_os_str()]).success(MINUTE);
    }
    assert!(!is_mounted(mount.point()));
    mount.wait_log(&["unmounted lazily"], MINUTE);
    let mut last = [0; 4096];
    held.read_exact_at(&mut last, sample.total - 4096).expect("who has it open reads on");
    let mut want = [0; 4096];
    let source = File::open(sample.data.join(&sample.name)).expect("the source");
    source.read_exact_at(&mut want, sample.total - 4096).expect("it reads");
    assert!(last == want);
    drop(held);
    mount.clean_end(STOP);
    assert!(mount.log().contains("unmounted from outside"), "{}", mount.log());
}

#[test]
fn owner_permissions_and_options_of_the_mount() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let root = nix::unistd::geteuid().is_root();
    let options =
        "ro,nosuid,x-systemd.automount,noexec,uid=1234,gid=2345,umask=027,read_timeout=1s,fsname=a b";
    let mut mount = Mount::sample(&sample).arg("-o").arg(options).start();
    let line = mount_line("/proc/self/mountinfo", mount.point()).expect("a line");
    let (place, kind) = line.split_once(" - ").expect("two parts");
    let flags: Vec<&str> = place.split(' ').nth(5).expect("options").split(',').collect();
    for flag in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(flags.contains(&flag), "{flag} in {line}");
    }
    assert!(kind.starts_with(r"fuse.torrentfs a\040b ro,"), "{line}");
    assert!(kind.contains("default_permissions") && kind.contains("allow_other") == root, "{line}");
    mount.wait_log(&["ready"], MINUTE);
    if root {
        let file = mount.path(&sample.name).metadata().expect("stat");
        let folder = mount.point().metadata().expect("stat");
        assert_eq!((file.uid(), file.gid()), (1234, 2345));
        assert_eq!(
            (file.permissions().mode() & 0o7777, folder.permissions().mode() & 0o7777),
            (0o440, 0o550)
        );
    }
    mount.signal(Signal::SIGTERM);
    mount.clean_end(STOP);
    for (options, words) in [("rw", "read-only"), ("cahce_size=1G", "no such option")] {
        let (status, said) = Mount::sample(&sample).arg("-o").arg(options).fail(MINUTE);
        assert_eq!(status.code(), Some(2), "{options}: {said}");
        assert!(said.contains(words), "{options}: {said}");
    }
}

#[test]
fn on_a_terminal_a_line_for_each_torrent_is_redrawn_in_place() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    peer.hold(0..sample.pieces as u32);
    let place = Place::new();
    let mut words = vec![program().to_string_lossy().into_owned(), "mount".into()];
    words.extend(place.options());
    words.extend(["--peer".into(), peer.addr().to_string()]);
    words.extend([&sample.torrent, &place.point].map(|path| path.display().to_string()));
    let mut mount = Proc::start("script", ["-qefc", &words.join(" "), "/dev/null"]);
    mount.wait_for("ready", MINUTE);
    // What is drawn of a torrent begins with its name; it is drawn over the line before it, and what is left of that erased.
    let drawn = |output: &str, state: &str| {
        output.split("\u{1b}[1A\r").skip(1).any(|line| {
            let line = line.lines().next().unwrap_or_default();
            line.starts_with(&sample.name) && line.contains(state) && line.contains("\u{1b}[K")
        })
    };
    wait_until("a line that says idle", MINUTE, || drawn(&mount.output(), " idle "));
    let mut reader = Proc::start("cat", [place.point.join(&sample.name)]);
    reader.wait_parked();
    wait_until("a line that says downloading", MINUTE, || drawn(&mount.output(), " downloading "));
    peer.release();
    reader.success(MINUTE);
    wait_until("a line that says complete", MINUTE, || drawn(&mount.output(), " complete "));
    place.signal(Signal::SIGTERM);
    let said = mount.success(STOP);
    assert!(said.contains("unmounted") && !said.contains("panicked"), "{said}");
    assert!(!is_mounted(&place.point));
}
