//! `mount -t torrentfs`, `/etc/fstab` and `umount`, with the real programs, and mounts of a user without rights by
//! `fusermount3`. All in a mount namespace: nothing of the machine is changed, and nothing is left behind.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{
    Behaviour, Namespace, Place, Proc, STOP, Sample, ScriptedPeer, Seeder, magnet, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// The options of every test, as `mount` takes them.
fn options(place: &Place, peer: SocketAddr) -> String {
    let cache = place.cache.display();
    format!("cache_dir={cache},listen=127.0.0.1:0,no_dht,no_lsd,no_port_mapping,peer={peer}")
}

/// All of a sample is there, at this place, and right.
fn check(space: &Namespace, place: &Place, sample: &Sample) {
    let got = std::fs::read(space.path(&place.point.join(&sample.name))).expect("it reads");
    assert!(got == std::fs::read(sample.data.join(&sample.name)).expect("the source"));
}

#[test]
fn mount_and_umount() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    for kind in ["torrentfs", "fuse.torrentfs"] {
        let place = Place::new();
        let torrent = sample.torrent.to_str().expect("UTF-8");
        let point = place.point.to_str().expect("UTF-8");
        // Nothing is in the environment, as when the machine starts.
        let bare = ["env", "-i", "/usr/bin/mount", "-t", kind, torrent, point, "-o"];
        space.success(bare.into_iter().chain([options(&place, peer.addr()).as_str()]));
        let line = space.mounted(&place.point).expect("it is mounted");
        for word in ["ro,nosuid,nodev,noatime", "fuse.torrentfs", torrent, "allow_other"] {
            assert!(line.contains(word), "{word} in {line}");
        }
        check(&space, &place, &sample);
        let pid = place.pid();
        space.success(["umount", point]);
        assert_eq!(space.mounted(&place.point), None);
        place.gone(pid);
    }
}

#[test]
fn lines_of_fstab() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let space = Namespace::new();
    let place = Place::new();
    let point = place.point.to_str().expect("UTF-8");
    // What is special to a list of mounts, to a list of options and to a link: a blank, commas, `&`.
    let link = magnet(&sample, &["dn=a,\\040film%20b".into()]);
    let more = r#"defaults,nofail,_netdev,x-systemd.automount,comment=a\040film,umask=0,tracker=http://127.0.0.1:1/a\,b"#;
    space.write("fstab", &format!("{link} {point} torrentfs {more},{} 0 0\n", options(&place, seeder.addr)));
    space.success(["mount", point]);
    check(&space, &place, &sample);
    let pid = place.pid();
    // What is mounted already is known by its source, and left alone.
    space.success(["mount", "-a"]);
    assert_eq!(place.pid(), pid);
    // One below the other wouldn't be what anybody wants.
    let (code, said) = space.run(["mount", point]);
    assert!(code.is_some_and(|code| code != 0), "{said}");
    let (code, said) = space.run(["mount", "-o", "remount,ro", point]);
    assert!(code.is_some_and(|code| code != 0), "{said}");
    space.success(["umount", point]);
    place.gone(pid);
    // Only looked at.
    space.success(["mount", "-f", point]);
    assert_eq!(space.mounted(&place.point), None);
}

#[test]
fn a_folder_with_a_blank_in_fstab() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = Place::new();
    let point = place.base.join("my films");
    std::fs::create_dir(&point).expect("a folder");
    let point = point.to_str().expect("UTF-8");
    // As such lists have it.
    let written = point.replace(' ', "\\040");
    let torrent = sample.torrent.display();
    space.write("fstab", &format!("{torrent} {written} torrentfs {} 0 0\n", options(&place, peer.addr())));
    space.success(["mount", point]);
    assert!(space.mounted(Path::new(&written)).is_some());
    let got = std::fs::read(space.path(&Path::new(point).join(&sample.name))).expect("it reads");
    assert!(got == std::fs::read(sample.data.join(&sample.name)).expect("the source"));
    let said = space.success(["/sbin/torrentfs", "status", point]);
    assert!(said.contains(point) && said.contains(&sample.name), "{said}");
    let pid = place.pid();
    space.success(["umount", point]);
    assert_eq!(space.mounted(Path::new(&written)), None);
    place.gone(pid);
    // How the helper is called, by whoever asks.
    assert!(space.success(["/sbin/mount.torrentfs", "--help"]).starts_with("mount.torrentfs SOURCE DIR "));
}

#[test]
fn what_mount_is_told_when_it_fails() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = Place::new();
    let (torrent, point) = (sample.torrent.to_str().expect("UTF-8"), place.point.to_str().expect("UTF-8"));
    let common = options(&place, peer.addr());
    let rows = [
        ("/no/such.torrent", "no_pex", Some(32), "/no/such.torrent"),
        (torrent, "cahce_size=1G", Some(1), "no such option"),
        (torrent, "cache_size=1G,cache_size=much", Some(1), "a size is a number"),
        (torrent, "listen=203.0.113.1:1", Some(32), "203.0.113.1:1"),
    ];
    for (source, options, code, words) in rows {
        let list = format!("{common},{options}");
        let (got, said) = space.run(["mount", "-t", "torrentfs", source, point, "-o", &list]);
        assert_eq!(got, code, "{options}: {said}");
        assert!(said.contains(words), "{options}: {said}");
        assert_eq!(space.mounted(&place.point), None, "{options}");
    }
    // Sloppy: what isn't known is passed over.
    let list = format!("{common},cahce_size=1G");
    space.success(["mount", "-s", "-t", "torrentfs", torrent, point, "-o", &list]);
    let pid = place.pid();
    space.success(["umount", point]);
    place.gone(pid);
}

/// A place that belongs to the user without rights, with the torrent in it.
fn users_place(sample: &Sample) -> Place {
    let place = Place::new();
    let torrent = place.base.join("a.torrent");
    std::fs::copy(&sample.torrent, &torrent).expect("a copy");
    std::fs::set_permissions(&torrent, PermissionsExt::from_mode(0o644)).expect("its permissions");
    for path in [&place.base, &place.point] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("an owner");
    }
    place
}

fn users_mount(space: &Namespace, place: &Place, peer: &ScriptedPeer, more: &[&str]) -> Command {
    let mut command = space.as_user(&place.base, ["/sbin/torrentfs", "mount"]);
    command.args(place.options()).args(["--peer", &peer.addr().to_string()]).args(more);
    command.arg(place.base.join("a.torrent")).arg(&place.point);
    command
}

/// Runs a command of that user to its end.
fn by_user(space: &Namespace, home: &Path, args: &[&str]) -> (Option<i32>, String) {
    let (status, said) = Proc::spawn(space.as_user(home, args)).finish(MINUTE);
    (status.code(), said)
}

#[test]
fn a_plain_user_mounts_by_fusermount() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = users_place(&sample);
    let point = place.point.to_str().expect("UTF-8");
    let file = place.point.join(&sample.name);
    let file = file.to_str().expect("UTF-8");

    let (status, said) = Proc::spawn(users_mount(&space, &place, &peer, &["--allow-other"])).finish(MINUTE);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("user_allow_other"), "{said}");
    assert_eq!(space.mounted(&place.point), None);

    let mut mount = Proc::spawn(users_mount(&space, &place, &peer, &["--umask", "077"]));
    mount.wait_for("ready", MINUTE);
    let line = space.mounted(&place.point).expect("it is mounted");
    for word in ["ro,nosuid,nodev,noatime", "fuse.torrentfs", "user_id=65534", "default_permissions"] {
        assert!(line.contains(word), "{word} in {line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    assert_eq!(by_user(&space, &place.base, &["sha256sum", file]).0, Some(0));
    let (_, said) = by_user(&space, &place.base, &["stat", "-c", "%u %g %a", file]);
    assert_eq!(said.trim(), "65534 65534 400");
    let (code, said) = space.run(["cat", file]);
    assert!(code != Some(0) && said.contains("Permission denied"), "not even root, by the kernel: {said}");
    assert_eq!(by_user(&space, &place.base, &["fusermount3", "-u", point]), (Some(0), String::new()));
    mount.success(STOP);

    space.write("fuse.conf", "user_allow_other\n");
    let mut mount = Proc::spawn(users_mount(&space, &place, &peer, &["-o", "allow_other"]));
    mount.wait_for("ready", MINUTE);
    assert!(space.mounted(&place.point).is_some_and(|line| line.contains("allow_other")));
    check(&space, &place, &sample);
    mount.signal(Signal::SIGTERM);
    mount.success(STOP);
    assert_eq!(space.mounted(&place.point), None);
}

/// What a user without rights tells a running mount, and is told of it, over the socket in `$XDG_RUNTIME_DIR`.
#[test]
fn a_plain_user_talks_to_the_mount_over_a_socket_in_the_runtime_folder() {
    needs!(Fuse, Libtorrent, Namespace, Attr);
    let (sample, other) = (Sample::small(), Sample::file("other.bin", 100_000, 16 << 10));
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = users_place(&sample);
    let added = place.base.join("b.torrent");
    std::fs::copy(&other.torrent, &added).expect("a copy");
    std::fs::set_permissions(&added, PermissionsExt::from_mode(0o644)).expect("its permissions");
    let run = place.base.join("run");
    std::fs::create_dir(&run).expect("a folder");
    std::fs::set_permissions(&run, PermissionsExt::from_mode(0o700)).expect("its permissions");
    std::os::unix::fs::chown(&run, Some(65534), Some(65534)).expect("an owner");
    let said = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (runtime, point) = (format!("XDG_RUNTIME_DIR={}", run.display()), said(&place.point));
    let file = said(&place.point.join(&sample.name));
    let here = |args: &[&str]| by_user(&space, &place.base, &[&[runtime.as_str()], args].concat());
    let asked = |args: &[&str]| here(&[&["/sbin/torrentfs"], args].concat());

    let mut command = space.as_user(&place.base, [runtime.as_str(), "/sbin/torrentfs", "mount"]);
    command.args(place.options()).args(["--peer", &peer.addr().to_string()]);
    command.arg(place.base.join("a.torrent")).arg(&place.point);
    let mut mount = Proc::spawn(command);
    mount.wait_for("ready", MINUTE);
    let pid = place.pid();

    // Where it is, whose it is, and that the mount names it.
    let socket = run.join(format!("torrentfs/{pid}.sock"));
    for (path, mode) in [(socket.as_path(), 0o600), (socket.parent().expect("its folder"), 0o700)] {
        let found = path.symlink_metadata().expect("it is there");
        assert_eq!((found.uid(), found.mode() & 0o777), (65534, mode), "{}", path.display());
    }
    let named =
        here(&["getfattr", "--absolute-names", "--only-values", "-n", "user.torrentfs.socket", &point]);
    assert_eq!(named, (Some(0), said(&socket)));

    // It is found with the mount point and without.
    let status = |args: &[&str]| {
        let (code, said) = asked(&[&["status", "--json"], args].concat());
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str::<serde_json::Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let all = status(&[]);
    let ours = |one: &&serde_json::Value| one["pid"] == pid && one["mountpoint"] == point;
    assert_eq!(all["mounts"].as_array().expect("a list").iter().filter(ours).count(), 1, "{all}");
    assert_eq!(status(&[&point])["socket"], said(&socket));
    // Other folders of the same user, as another session of his may have: the mount itself says where to ask.
    let (code, told) = by_user(&space, &place.base, &["/sbin/torrentfs", "status", &point]);
    assert!(code == Some(0) && told.contains(&sample.name), "{told}");

    let names = || {
        let list = status(&[&point])["torrents"].as_array().cloned().expect("a list");
        list.iter().map(|torrent| torrent["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let rows: [(&[&str], &str); 5] = [
        (&["add", &point, &said(&added)], "added  other.bin"),
        (&["add", &point, &said(&added)], "was there  other.bin"),
        (&["prefetch", &file], "fetching"),
        (&["debug", &point], "control/accept"),
        (&["remove", "--delete-data", &point, "other.bin"], "removed  other.bin, with its data"),
    ];
    for (number, (args, words)) in rows.into_iter().enumerate() {
        let (code, said) = asked(args);
        assert!(code == Some(0) && said.contains(words), "{args:?}: {code:?}: {said}");
        let expected: &[&str] = if number < 4 { &[&sample.name, "other.bin"] } else { &[&sample.name] };
        assert_eq!(names(), expected, "after {args:?}");
    }
    wait_until("what was prefetched to be here", MINUTE, || {
        let torrent = status(&[&point])["torrents"][0].clone();
        (&torrent["state"], &torrent["here"]) == (&"complete".into(), &sample.total.into())
    });

    let (code, told) = asked(&["unmount", &point]);
    assert!(code == Some(0) && told.contains("unmounted"), "{told}");
    assert_eq!(
        (space.mounted(&place.point), socket.exists()),
        (None, false),
        "gone when the command says so"
    );
    let told = mount.success(STOP);
    for bad in ["panicked at", "did not stop"] {
        assert!(!told.contains(bad), "{told}");
    }
}

#[test]
fn a_line_of_fstab_for_users() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = users_place(&sample);
    let point = place.point.to_str().expect("UTF-8");
    let torrent = place.base.join("a.torrent");
    let line =
        format!("{} {point} torrentfs noauto,user,{} 0 0\n", torrent.display(), options(&place, peer.addr()));
    space.write("fstab", &line);
    let (code, said) = by_user(&space, &place.base, &["mount", point]);
    assert_eq!(code, Some(0), "{said}");
    let line = space.mounted(&place.point).expect("it is mounted");
    assert!(line.contains("noexec") && line.contains("user_id=65534"), "{line}");
    let file = place.point.join(&sample.name);
    assert_eq!(by_user(&space, &place.base, &["cat", file.to_str().expect("UTF-8")]).0, Some(0));
    let pid = place.pid();
    let (code, said) = by_user(&space, &place.base, &["umount", point]);
    assert_eq!(code, Some(0), "{said}");
    place.gone(pid);
}

#[test]
fn the_install_script_installs_and_takes_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n").expect("a file");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("its permissions");
    let root = folder.path().join("root");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install");
    let install = |args: &[&str]| {
        let mut command = Command::new(&script);
        command.env("DESTDIR", &root).arg("--program").arg(&program).args(["--prefix", "/opt/t"]).args(args);
        Proc::spawn(command).finish(MINUTE)
    };
    let unit = root.join("opt/t/lib/systemd/system/torrentfs@.service");
    let links = ["mount.torrentfs", "mount.fuse.torrentfs"].map(|name| root.join("sbin").join(name));
    for _ in 0..2 {
        let (status, said) = install(&[]);
        assert!(status.success(), "{said}");
        for link in &links {
            assert_eq!(std::fs::read_link(link).expect("a link"), Path::new("/opt/t/bin/torrentfs"));
        }
        assert!(
            root.join("opt/t/bin/torrentfs").metadata().expect("it is there").permissions().mode() & 0o111
                != 0
        );
        assert!(
            std::fs::read_to_string(&unit).expect("a unit").contains("ExecStart=/opt/t/bin/torrentfs mount")
        );
    }
    let (status, said) = install(&["--uninstall"]);
    assert!(status.success(), "{said}");
    let left =
        Proc::start("find", [root.as_os_str(), "!".as_ref(), "-type".as_ref(), "d".as_ref()]).success(MINUTE);
    assert_eq!(left, "", "nothing is left");
    // What is somebody else's stays.
    std::fs::write(&links[0], "theirs").expect("a file");
    let (status, said) = install(&[]);
    assert!(!status.success() && said.contains("isn't ours"), "{said}");
    install(&["--uninstall"]);
    assert_eq!(std::fs::read_to_string(&links[0]).expect("it is there"), "theirs");
}

#[test]
fn a_plain_users_dead_mount_is_cleared_at_the_start() {
    needs!(Fuse, Libtorrent, Namespace);
    let sample = Sample::small();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let space = Namespace::new();
    let place = users_place(&sample);
    for daemon in [false, true] {
        let mut first = Proc::spawn(users_mount(&space, &place, &peer, &[]));
        first.wait_for("ready", MINUTE);
        first.signal(Signal::SIGKILL);
        first.ended(STOP);
        assert!(space.mounted(&place.point).is_some(), "a killed program leaves a dead mount");
        let args: &[&str] = if daemon { &["--daemon"] } else { &[] };
        let mut second = Proc::spawn(users_mount(&space, &place, &peer, args));
        if daemon {
            second.success(MINUTE);
        } else {
            second.wait_for("ready", MINUTE);
            assert!(second.output().contains("cleared a dead mount"), "{}", second.output());
        }
        let file = place.point.join(&sample.name);
        assert_eq!(by_user(&space, &place.base, &["cat", file.to_str().expect("UTF-8")]).0, Some(0));
        let pid = place.pid();
        place.signal(Signal::SIGTERM);
        place.gone(pid);
        wait_until("the mount to be gone", STOP, || space.mounted(&place.point).is_none());
    }
}
