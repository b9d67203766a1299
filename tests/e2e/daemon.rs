//! `--daemon`: the caller waits until the mount is ready and learns why it isn't; what the background process is like;
//! what a service manager is told.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{
    Behaviour, Mount, Place, Proc, STOP, Sample, ScriptedPeer, is_gone, is_mounted, magnet, skip, torrentfs,
    wait_until,
};
use crate::lifecycle::wait_in_hand;
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// `torrentfs mount --daemon` with the options of every test.
fn daemon(place: &Place, more: &[&str]) -> Command {
    let mut command = torrentfs(["mount", "--daemon"]);
    command.args(place.options()).args(more);
    command
}

fn link(pid: u32, name: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/{name}")).expect("a link").to_string_lossy().into_owned()
}

#[test]
fn it_returns_when_ready_and_is_detached() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let place = Place::new();
    std::fs::copy(&sample.torrent, place.base.join("a.torrent")).expect("a copy");
    // All paths are as seen from where it was started.
    let peer = peer.addr().to_string();
    let mut command =
        torrentfs(["mount", "--daemon", "--cache-dir", "cache", "--log-file", "log", "--peer", &peer]);
    command.args(["--no-dht", "--listen", "127.0.0.1:0", "a.torrent", "mnt"]).current_dir(&place.base);
    // The caller's pipes are let go of: otherwise this wouldn't end.
    let said = Proc::spawn(command).success(MINUTE);
    assert_eq!(said, "", "with a log file, nothing is said");
    assert!(is_mounted(&place.point), "it returned before it was mounted");
    let file = place.point.join(&sample.name);
    assert!(
        std::fs::read(&file).expect("it reads")
            == std::fs::read(sample.data.join(&sample.name)).expect("source")
    );

    let pid = place.pid();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    assert_eq!(fields[3], pid.to_string(), "it leads a session of its own: {stat}");
    assert_eq!(fields[4], "0", "it has no terminal: {stat}");
    assert_eq!(link(pid, "cwd"), "/");
    for fd in 0..3 {
        assert_eq!(link(pid, &format!("fd/{fd}")), "/dev/null", "descriptor {fd}");
    }
    let log = || std::fs::read_to_string(place.base.join("log")).expect("a log");
    assert!(log().contains("ready: 1 torrent at"), "{}", log());
    place.signal(Signal::SIGTERM);
    place.gone(pid);
    assert!(!is_mounted(&place.point));
    assert!(log().contains("SIGTERM: ending") && log().contains("unmounted"), "{}", log());
}

#[test]
fn without_a_log_file_nothing_of_its_log_is_lost() {
    needs!(Fuse, Libtorrent);
    if Path::new("/dev/log").exists() {
        return skip("the machine has a system log, which isn't to be written to");
    }
    let sample = Sample::small();
    let place = Place::new();
    let torrent = sample.torrent.to_str().expect("UTF-8");
    let mut command = daemon(&place, &[torrent, place.point.to_str().expect("UTF-8")]);
    // Not even a quiet one keeps a report to itself.
    command.env("TORRENTFS_LOG", "torrentfs=warn");
    let said = Proc::spawn(command).success(MINUTE);
    assert!(!said.contains("the program is at"), "{said}");
    let log = || std::fs::read_to_string(place.cache.join("log")).unwrap_or_default();
    place.signal(Signal::SIGUSR1);
    wait_until("a report", MINUTE, || {
        log().contains("what the program is at:") && log().contains("storage:")
    });
    let pid = place.pid();
    place.signal(Signal::SIGTERM);
    place.gone(pid);
    assert!(!log().contains("SIGTERM"), "a report and no more, as was asked for: {}", log());
    // It is no stranger in the cache folder.
    let mut command = torrentfs(["cache", "list", "--cache-dir"]);
    command.arg(&place.cache);
    let said = Proc::spawn(command).success(MINUTE);
    assert!(!said.contains("log"), "{said}");
}

#[test]
fn a_start_that_fails_is_told_by_the_waiting_one() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let torrent = sample.torrent.to_str().expect("UTF-8");
    let place = Place::new();
    let point = place.point.to_str().expect("UTF-8");
    let taken = Mount::sample(&sample).start();
    let taken_cache = taken.cache().to_str().expect("UTF-8").to_owned();
    let rows: [(&[&str], i32, &str); 6] = [
        (&[torrent, "/no/such/folder"], 4, "it doesn't exist"),
        (&[torrent, taken.point().to_str().expect("UTF-8")], 4, "mounted there already"),
        (&["--cache-dir", &taken_cache, torrent, point], 5, "in use by another torrentfs"),
        (&["/no/such.torrent", point], 1, "/no/such.torrent"),
        (&["--log-file", "/no/such/log", torrent, point], 2, "can't write the log"),
        (&["--offline-uid", "no-such-user-here", torrent, point], 2, "there is no such user"),
    ];
    for (args, code, words) in rows {
        let (status, said) = Proc::spawn(daemon(&place, args)).finish(MINUTE);
        assert_eq!(status.code(), Some(code), "{args:?}: {said}");
        assert_eq!(said.matches(words).count(), 1, "{args:?}: {said}");
        assert!(!is_mounted(&place.point), "{args:?}");
    }
    taken.stop();
}

#[test]
fn metadata_that_does_not_come_is_a_warning() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let place = Place::new();
    let mut command = daemon(&place, &["--metadata-timeout", "500ms", &magnet(&sample, &[])]);
    let said = Proc::spawn({
        command.arg(&place.point);
        command
    })
    .success(MINUTE);
    assert!(said.contains("hasn't come within 500ms"), "{said}");
    assert!(is_mounted(&place.point));
    let pid = place.pid();
    umount2(&place.point, MntFlags::empty()).expect("it unmounts");
    place.gone(pid);
}

/// A start that waits for metadata for ever, with its mount up.
fn waiting(place: &Place, sample: &Sample) -> (Proc, u32) {
    let mut command = daemon(place, &["--metadata-timeout", "1h", &magnet(sample, &[])]);
    command.arg(&place.point);
    let parent = Proc::spawn(command);
    wait_until("the mount", MINUTE, || is_mounted(&place.point));
    let pid = place.pid();
    assert_ne!(pid, parent.pid());
    (parent, pid)
}

#[test]
fn who_gives_up_waiting_gives_up_the_mount() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let place = Place::new();
        let (mut parent, pid) = waiting(&place, &sample);
        parent.signal(signal);
        let status = parent.ended(STOP);
        let want = (signal != Signal::SIGKILL).then_some(130);
        assert_eq!(status.code(), want, "{signal}: {}", parent.output());
        place.gone(pid);
        assert!(!is_mounted(&place.point), "{signal}");
    }
}

#[test]
fn sigterm_at_any_moment_of_the_start() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let torrent = sample.torrent.to_str().expect("UTF-8");
    let mut mounted = 0;
    for pause in 0..24 {
        let place = Place::new();
        let mut parent = Proc::spawn(daemon(&place, &[torrent, place.point.to_str().expect("UTF-8")]));
        wait_in_hand(parent.pid(), || !parent.is_running());
        std::thread::sleep(Duration::from_millis(pause * pause));
        parent.signal(Signal::SIGTERM);
        match parent.finish(STOP) {
            // It was ready before: it goes on.
            (status, said) if status.success() => {
                assert!(is_mounted(&place.point), "after {pause}: {said}");
                mounted += 1;
            }
            (status, said) => {
                assert_eq!(status.code(), Some(130), "after {pause}: {said}");
                assert!(!is_mounted(&place.point), "after {pause}: {said}");
            }
        }
    }
    eprintln!("{mounted} of 24 were ready first");
}

#[test]
fn the_end_of_the_background_process_is_noticed() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let rows: [(Signal, i32, &str); 2] =
        [(Signal::SIGKILL, 70, "got SIGKILL"), (Signal::SIGTERM, 130, "before it was ready")];
    for (signal, code, words) in rows {
        let place = Place::new();
        let (mut parent, pid) = waiting(&place, &sample);
        place.signal(signal);
        let (status, said) = parent.finish(STOP);
        assert_eq!(status.code(), Some(code), "{signal}: {said}");
        assert!(said.contains(words), "{signal}: {said}");
        place.gone(pid);
        assert_eq!(is_mounted(&place.point), signal == Signal::SIGKILL);
    }
}

/// What a manager hears until a message with this text.
fn heard(socket: &UnixDatagram, last: &str) -> Vec<String> {
    socket.set_read_timeout(Some(MINUTE)).expect("a time-out");
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let len = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {last} after {all:?}: {error}"));
        all.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        if all.last().is_some_and(|message| message.contains(last)) {
            return all;
        }
    }
}

#[test]
fn a_service_manager_is_told() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for in_background in [false, true] {
        let place = Place::new();
        let path = place.base.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let mut command = torrentfs(["mount"]);
        command.args(place.options()).args(in_background.then_some("--daemon"));
        command.arg(&sample.torrent).arg(&place.point).env("NOTIFY_SOCKET", &path);
        let mut started = Proc::spawn(command);
        let told = heard(&socket, "READY=1");
        assert!(is_mounted(&place.point), "{told:?}");
        assert!(told.iter().any(|message| message.starts_with("STATUS=1 torrent at ")), "{told:?}");
        let pid = place.pid();
        let ready = if in_background { format!("MAINPID={pid}\nREADY=1") } else { "READY=1".into() };
        assert_eq!(told.last(), Some(&ready));
        if in_background {
            started.success(MINUTE);
        } else {
            assert_eq!(started.pid(), pid);
        }
        place.signal(Signal::SIGTERM);
        heard(&socket, "STOPPING=1");
        if !in_background {
            started.success(STOP);
        }
        place.gone(pid);
        assert!(is_gone(pid) && !is_mounted(&place.point) && Path::new(&path).exists());
    }
}
