//! Commands that talk to a running mount, over its control socket.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount as mount_over, umount2};
use nix::sys::signal::Signal;

use crate::common::{Ended, Mount, Sample, program, python, ran, skip, wait_until};
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

#[test]
fn the_socket_is_its_users_alone_and_goes_at_the_end() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = socket(&mount);
    let found = path.symlink_metadata().expect("it is there");
    let folder = path.parent().expect("a folder").metadata().expect("it is there");
    assert_eq!((found.permissions().mode() & 0o777, folder.permissions().mode() & 0o777), (0o600, 0o700));
    assert_eq!((found.uid(), folder.uid()), (nix::unistd::geteuid().as_raw(), found.uid()));
    mount.stop();
    assert!(!path.exists());
}

#[test]
fn status_tells_of_the_mount_and_its_torrents() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mut mount = Mount::sample(&sample).arg("--cache-size=64M").start();
    let one = asked("status", &mount, &["--json"]).json();
    assert_eq!(one["mountpoint"], mount.point().display().to_string());
    assert_eq!(one["pid"], mount.pid());
    assert_eq!(one["socket"], socket(&mount).display().to_string());
    assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(one["cache"]["dir"], mount.cache().display().to_string());
    assert_eq!(one["cache"]["bound"], 64 << 20);
    for number in ["uptime", "port", "rate_down", "rate_up", "downloaded", "uploaded"] {
        assert!(one[number].is_u64(), "{number} in {one}");
    }
    assert!(one["cache"]["free"].is_u64() && one["cache"]["kept"].is_u64(), "{one}");
    let torrent = &one["torrents"][0];
    assert_eq!(torrent["name"], sample.name);
    assert_eq!(torrent["infohash"], *sample.v1.as_ref().expect("v1"));
    assert_eq!((&torrent["state"], &torrent["here"]), (&"idle".into(), &0.into()));
    assert_eq!(torrent["size"], sample.total);
    assert!(torrent["error"].is_null() && torrent["metadata"].is_null(), "{torrent}");
    for number in ["peers", "connecting", "banned", "waiting_count"] {
        assert!(torrent[number].is_u64(), "{number} in {torrent}");
    }
    asked("status", &mount, &[]).said(0, &[&sample.name, "0%", "idle", "8.0 MiB", "NAME"]);
    // Without a mount point: all of this user, and this one among them.
    let all = ran(["status", "--json"]).json();
    let pid = mount.pid();
    let mine = |all: &serde_json::Value| {
        all["mounts"].as_array().expect("a list").iter().filter(|m| m["pid"] == pid).count()
    };
    assert_eq!(mine(&all), 1, "{all}");
    ran(["status"]).said(0, &[mount.point().to_str().expect("UTF-8")]);
    // What a killed one leaves is no mount.
    let path = socket(&mount);
    mount.signal(Signal::SIGKILL);
    mount.exited(MINUTE);
    assert!(path.exists(), "a kill leaves the socket");
    let all = ran(["status", "--json"]).json();
    assert_eq!(mine(&all), 0, "{all}");
    asked("status", &mount, &[]).said(4, &["dead mount", "umount -l"]);
}

#[test]
fn a_stale_socket_is_replaced() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mut first = Mount::sample(&sample).start();
    let stale = socket(&first);
    first.signal(Signal::SIGKILL);
    first.exited(MINUTE);
    assert!(stale.exists());
    let second = Mount::sample(&sample).start();
    assert!(!stale.exists(), "swept by the next");
    asked("status", &second, &["--json"]).json();
    second.stop();
}

#[test]
fn fifty_clients_and_garbage_at_once() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let path = socket(&mount);
    let ask = |garbage: &[u8]| {
        let mut stream = UnixStream::connect(&path).expect("it takes connections");
        stream.set_read_timeout(Some(MINUTE)).expect("a time-out");
        for round in 0..20 {
            stream.write_all(garbage).expect("it reads");
            stream.write_all(b"\n").expect("it reads");
            stream
                .write_all(format!("{{\"v\":1,\"id\":{round},\"do\":\"status\"}}\n").as_bytes())
                .expect("it reads");
            let mut said = Vec::new();
            let mut buffer = [0; 4096];
            while said.iter().filter(|byte| **byte == b'\n').count() < 2 {
                let count = stream.read(&mut buffer).expect("an answer");
                assert!(count > 0, "closed after {}", String::from_utf8_lossy(&said));
                said.extend_from_slice(&buffer[..count]);
            }
            let said = String::from_utf8_lossy(&said);
            let (error, status) = said.split_once('\n').expect("two lines");
            assert!(error.contains("\"bad_request\""), "{error}");
            assert!(status.starts_with(&format!("{{\"v\":1,\"id\":{round},\"ok\":{{")), "{status}");
        }
    };
    std::thread::scope(|scope| {
        for client in 0..50u8 {
            scope.spawn(move || ask(&vec![client.wrapping_mul(37) | 0x80; 1 + usize::from(client) * 400]));
        }
    });
    mount.stop();
}

#[test]
fn errors_say_what_is_wrong() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().display().to_string();
    let missing = folder.path().join("missing").display().to_string();
    for command in ["status", "unmount"] {
        ran([command, &empty])
            .said(4, &[&empty, "nothing is mounted there by torrentfs", "torrentfs status"]);
        ran([command, &missing]).said(4, &[&missing, "no such folder"]);
        ran([command, "/proc"]).said(4, &["/proc", "isn't torrentfs's"]);
        let inside = mount.path(&sample.name).display().to_string();
        ran([command, &inside]).said(4, &["no mount point", &mount.point().display().to_string()]);
    }
    mount.stop();
}

/// A stopped program answers nothing; who asks gets away in time, and can be told to go before.
#[test]
fn a_mount_that_does_not_answer_is_waited_for_with_a_bound() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    mount.signal(Signal::SIGSTOP);
    let began = std::time::Instant::now();
    let ended = asked("status", &mount, &[]);
    mount.signal(Signal::SIGCONT);
    assert!(began.elapsed() < 5 * Duration::from_secs(10), "{:?}", began.elapsed());
    ended.said(10, &["didn't answer within 10 s"]);
    mount.stop();
}

#[test]
fn unmount_ends_it_as_sigterm_does() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mut mount = Mount::sample(&sample).start();
    let held = std::fs::File::open(mount.path(&sample.name)).expect("opens");
    let mut reader = crate::common::Proc::start("cat", [mount.path(&sample.name)]);
    reader.wait_parked();
    let path = socket(&mount);
    asked("unmount", &mount, &[]).said(0, &["unmounted", mount.point().to_str().expect("UTF-8")]);
    // It is gone when the command says so, not soon after.
    assert!(!crate::common::is_mounted(mount.point()) && !path.exists());
    mount.clean_end(Duration::from_secs(1));
    reader.ended(MINUTE);
    drop(held);
    asked("unmount", &mount, &[]).said(4, &["nothing is mounted there"]);
}

#[test]
fn debug_tells_who_waits_for_what() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let mut reader = crate::common::Proc::start("cat", [mount.path(&sample.name)]);
    reader.wait_parked();
    let said = asked("debug", &mount, &[]).said(0, &["control/accept", &sample.name]);
    assert!(said.out.contains(&reader.pid().to_string()), "{said:?}");
    mount.stop();
    reader.ended(MINUTE);
}

#[test]
fn watching_ends_with_the_mount() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let watch = |more: &[&str]| {
        let point = mount.point().display().to_string();
        let mut args = vec!["status", "--watch", point.as_str()];
        args.extend(more);
        crate::common::Proc::spawn(crate::common::torrentfs(args))
    };
    let (mut table, mut json) = (watch(&[]), watch(&["--json"]));
    for (watched, word) in [(&mut table, "NAME"), (&mut json, "\"torrents\"")] {
        wait_until("two rounds", MINUTE, || watched.output().matches(word).count() >= 2);
        assert!(watched.is_running() && !watched.output().contains('\x1b'), "{}", watched.output());
    }
    mount.stop();
    for watched in [&mut table, &mut json] {
        let said = watched.success(MINUTE);
        assert!(said.contains("the mount has ended"), "{said}");
    }
}

/// The program as another user ("nobody" on every Linux), who can read it wherever it was built.
fn as_nobody(folder: &Path, args: &[&str]) -> Ended {
    const NOBODY: u32 = 65534;
    let copy = folder.join("torrentfs");
    if !copy.exists() {
        std::fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("our own folder");
        std::fs::copy(program(), &copy).expect("a copy");
    }
    let mut command = Command::new(copy);
    command.args(args).env("XDG_RUNTIME_DIR", folder.join("none")).uid(NOBODY).gid(NOBODY);
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

#[test]
fn another_user_is_kept_out() {
    needs!(Fuse, Libtorrent, Attr);
    if !nix::unistd::geteuid().is_root() {
        return skip("to be another user takes root");
    }
    let sample = Sample::small();
    let folder = tempfile::tempdir().expect("a folder");
    for (option, reaches) in [("--no-allow-other", false), ("--allow-other", true)] {
        let mount = Mount::sample(&sample).arg(option).start();
        let base = mount.point().parent().expect("its folder");
        std::fs::set_permissions(base, Permissions::from_mode(0o755)).expect("our own folder");
        let point = mount.point().to_str().expect("UTF-8");
        for args in [&["status", point][..], &["unmount", point], &["remove", point, &sample.name]] {
            as_nobody(folder.path(), args).said(10, &["another user's"]);
        }
        let file = mount.path(&sample.name);
        as_nobody(folder.path(), &["prefetch", file.to_str().expect("UTF-8")]).said(10, &["another user's"]);
        // A folder that says nothing to strangers is no mount of anybody's.
        let (shut, passed) = (folder.path().join("shut"), folder.path().join("passed/open"));
        std::fs::create_dir_all(&shut).and_then(|()| std::fs::create_dir_all(&passed)).expect("folders");
        for (path, mode) in [(&shut, 0o700), (&folder.path().join("passed"), 0o711), (&passed, 0o755)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own folder");
        }
        let inside = shut.join("x");
        as_nobody(folder.path(), &["prefetch", inside.to_str().expect("UTF-8")])
            .said(4, &["Permission denied"]);
        as_nobody(folder.path(), &["status", inside.to_str().expect("UTF-8")])
            .said(4, &["Permission denied"]);
        as_nobody(folder.path(), &["prefetch", passed.to_str().expect("UTF-8")])
            .said(4, &["in no mount of torrentfs"]);
        as_nobody(folder.path(), &["status"]).said(0, &["Nothing of yours is mounted"]);
        assert_eq!(as_nobody(folder.path(), &["status", "--json"]).json()["mounts"], serde_json::json!([]));
        if reaches {
            // Also when somebody has opened the socket and could open the folder: then it is who he is that counts.
            let path = socket(&mount);
            std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("our own socket");
            let aside = folder.path().join("aside");
            std::fs::write(&aside, b"").expect("a file to mount over");
            mount_over(Some(&path), &aside, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .expect("a bind mount");
            let connect = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                          print(s.recv(4096))";
            let mut command = Command::new(python().expect("it is here"));
            let said =
                command.args(["-c", connect]).arg(&aside).uid(65534).gid(65534).output().expect("it runs");
            let _ = umount2(&aside, MntFlags::MNT_DETACH);
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert!(said.contains("\"code\":\"denied\"") && !said.contains("\"ok\""), "{said}");
        }
        mount.stop();
    }
}

#[test]
fn on_a_terminal_it_is_redrawn_in_place_with_bars() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::small();
    let mount = Mount::sample(&sample).start();
    let line = format!("{} status --watch {}", program().display(), mount.point().display());
    let mut watched = crate::common::Proc::start("script", ["-qefc", &line, "/dev/null"]);
    wait_until("three rounds", MINUTE, || {
        assert!(watched.is_running(), "{}", watched.output());
        watched.output().matches("NAME").count() >= 3
    });
    let said = watched.output();
    assert!(said.contains("[--------------------]"), "{said}");
    // Seven lines, drawn over each time.
    assert!(said.matches("\u{1b}[7A\r").count() >= 2, "{said:?}");
    mount.stop();
    assert!(watched.success(MINUTE).contains("the mount has ended"));
}
