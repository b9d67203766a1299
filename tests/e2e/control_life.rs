//! The control socket when things go wrong: the end asked for twice, a socket that vanishes, a program that hangs or is
//! stopped, torrents added and removed at the same time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Ended, Mount, Place, Proc, STOP, Sample, Tracker, magnet, ran, torrentfs, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

fn socket(mount: &Mount) -> PathBuf {
    mount.xattr(mount.point(), "socket").expect("the root names its socket").into()
}

fn asked(command: &str, mount: &Mount, more: &[&str]) -> Ended {
    let mut args: Vec<String> = vec![command.into(), mount.point().display().to_string()];
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    ran(args)
}

/// A connection to a mount's socket.
struct Client(BufReader<UnixStream>);

impl Client {
    fn to(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("it takes connections");
        stream.set_read_timeout(Some(MINUTE)).expect("a time-out");
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, request: &str) -> serde_json::Value {
        self.0.get_mut().write_all(format!("{{\"v\":1,{request}}}\n").as_bytes()).expect("it reads");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

/// A tracker that knows us doesn't answer when it is told that we leave: two seconds in which a mount ends.
fn slow_to_end(sample: &Sample) -> (Mount, Tracker) {
    let tracker = Tracker::start(&[]);
    let mount = Mount::sample(sample).arg("--tracker").arg(tracker.http_url()).start();
    mount.wait_tracker();
    tracker.fall_silent();
    (mount, tracker)
}

#[test]
fn o7_an_end_that_is_asked_for_twice_is_not_forced() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    for signal_first in [true, false] {
        let (mut mount, _tracker) = slow_to_end(&sample);
        let mut client = Client::to(&socket(&mount));
        let mut other = Client::to(&socket(&mount));
        let pid = u64::from(mount.pid());
        if signal_first {
            mount.signal(Signal::SIGTERM);
            mount.wait_log(&["SIGTERM: ending"], MINUTE);
            // Nothing begins any more.
            let said = other.ask("\"do\":\"add\",\"source\":\"x\"");
            assert_eq!(said["error"]["code"], "ending", "{said}");
            assert_eq!(client.ask("\"do\":\"unmount\"")["ok"]["pid"], pid);
        } else {
            assert_eq!(client.ask("\"do\":\"unmount\"")["ok"]["pid"], pid);
            assert_eq!(other.ask("\"do\":\"unmount\"")["ok"]["pid"], pid);
            mount.signal(Signal::SIGTERM);
        }
        // Exit code 0, and nothing left.
        mount.clean_end(STOP);
        assert_eq!(client.0.read_line(&mut String::new()).expect("its end"), 0);
    }
}

#[test]
fn a_socket_that_vanishes_is_told_of_and_comes_back() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = socket(&mount);
    std::fs::remove_file(&path).expect("our own socket");
    // Right after a look it is away for some seconds: then it is said what is wrong.
    let ended = asked("status", &mount, &[]);
    if ended.code != Some(0) {
        let pid = format!("kill {}", mount.pid());
        ended.said(10, &["socket", "isn't there any more", "umount", &pid]);
    }
    wait_until("the socket", MINUTE, || path.exists());
    asked("status", &mount, &[]).said(0, &[&sample.name]);
    mount.wait_log(&["the control socket had gone"], MINUTE);
    mount.stop();
    assert!(!path.exists());
}

/// Threads of a process that stand still. They go on when this is dropped, or with the thread that holds it.
struct Held(Vec<libc::pid_t>);

impl Held {
    /// All threads of a process but those whose names these are.
    fn all_but(pid: u32, names: &[&str]) -> Self {
        let none = std::ptr::null_mut::<libc::c_void>();
        let mut held = Self(Vec::new());
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs") {
            let path = entry.expect("a thread").path();
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            if names.contains(&name.trim_end()) {
                continue;
            }
            let tid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let tid: libc::pid_t = tid.expect("a number");
            // SAFETY: no memory is passed; a thread of another process is traced, and stopped.
            unsafe {
                if libc::ptrace(libc::PTRACE_SEIZE, tid, none, none) != 0 {
                    continue;
                }
                libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none);
                libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL);
            }
            held.0.push(tid);
        }
        assert!(!held.0.is_empty());
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for tid in &self.0 {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: as above; the thread goes on.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, *tid, none, none) };
        }
    }
}

#[test]
fn l5_debug_answers_while_the_filesystem_and_the_runtime_hang() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    mount.wait_log(&["ready"], MINUTE);
    // The watchdog looks at locks ten times a second, with a lock of its own.
    let held = Held::all_but(mount.pid(), &["control", "watchdog"]);
    let told = asked("debug", &mount, &[]);
    // What isn't for when all hangs says whom to ask.
    let stuck = asked("status", &mount, &[]);
    drop(held);
    told.said(
        0,
        &["control/accept", "locks:", "its owner says nothing: no answer within 0.5 s", &sample.name],
    );
    stuck.said(10, &["isn't done within 10", "torrentfs debug"]);
    asked("status", &mount, &[]).said(0, &[&sample.name]);
    mount.stop();
}

#[test]
fn a_stopped_program_is_named() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mut mount = Mount::sample(&sample).start();
    let place = Place::new();
    mount.signal(Signal::SIGSTOP);
    let ended = asked("unmount", &mount, &[]);
    // Nor can anything be mounted there.
    let mut command = torrentfs(["mount"]);
    command.args(place.options()).arg(&sample.torrent).arg(mount.point());
    let (status, said) = Proc::spawn(command).finish(MINUTE);
    mount.signal(Signal::SIGCONT);
    ended.said(10, &["didn't answer within 10 s", "kill -USR1 "]);
    assert_eq!(status.code(), Some(4), "{said}");
    let point = mount.point().display();
    assert!(said.contains(&format!("what is mounted at {point} doesn't answer")), "{said}");
    assert!(said.contains(&format!("umount -l {point}")), "{said}");
    mount.signal(Signal::SIGTERM);
    mount.clean_end(STOP);
}

#[test]
fn adding_and_removing_the_same_torrent_at_once_leaves_one_or_none() {
    needs!(Fuse, Libtorrent, Attr);
    let (first, second) = (Sample::small(), Sample::tree());
    let mount = Mount::sample(&first).start();
    let path = socket(&mount);
    let hash = second.v1.clone().or_else(|| second.v2.clone()).expect("an info-hash");
    let source = magnet(&second, &[]);
    let (add, remove) = (
        format!("\"do\":\"add\",\"source\":\"{source}\""),
        format!("\"do\":\"remove\",\"delete_data\":true,\"torrent\":\"{hash}\""),
    );
    std::thread::scope(|scope| {
        for request in [&add, &remove, &add, &remove] {
            let path = &path;
            scope.spawn(move || {
                let mut client = Client::to(path);
                for _ in 0..25 {
                    let said = client.ask(request);
                    let fine = said["ok"].is_object() || said["error"]["code"] == "not_found";
                    assert!(fine, "{request}: {said}");
                }
            });
        }
    });
    // What is left is what the last one made of it, everywhere.
    let count = || {
        let one = asked("status", &mount, &["--json"]).json();
        let torrents = one["torrents"].as_array().expect("a list").clone();
        torrents.iter().filter(|torrent| torrent["infohash"] == *hash).count()
    };
    let before = count();
    assert!(before <= 1);
    wait_until("the tree to show the same", MINUTE, || mount.names().len() == 1 + before);
    let mut client = Client::to(&path);
    assert!(client.ask(&add)["ok"].is_object());
    assert_eq!((count(), mount.names().len()), (1, 2));
    assert!(client.ask(&remove)["ok"].is_object());
    assert_eq!((count(), mount.names().len()), (0, 1));
    mount.stop();
}
