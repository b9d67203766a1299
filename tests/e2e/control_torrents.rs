//! Torrents added to a running mount, taken out of it, and fetched whole on request.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::common::{
    Behaviour, Ended, Mount, Proc, Sample, ScriptedPeer, Seeder, home, magnet, ran, torrentfs, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
const PIECE: u64 = 64 << 10;
/// Every file begins with a piece of its own: `a` has pieces 0–3, `e` 4–7, `d/b` 8–15, `d/c` 16–23.
const FILES: &[(&str, u64)] =
    &[("a.bin", 4 * PIECE), ("e.bin", 4 * PIECE), ("d/b.bin", 8 * PIECE), ("d/c.bin", 8 * PIECE)];

fn sample() -> Sample {
    Sample::folder("control", FILES, PIECE)
}

fn asked(command: &str, mount: &Mount, more: &[&str]) -> Ended {
    let mut args: Vec<String> = vec![command.into(), mount.point().display().to_string()];
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    ran(args)
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Pieces asked of a peer, sorted.
fn pieces(peer: &ScriptedPeer) -> Vec<u32> {
    let mut all: Vec<_> = peer.requests().iter().map(|request| request.piece).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Waits until a torrent or file is in this state.
fn wait_state(mount: &Mount, path: &Path, state: &str) {
    wait_until(&format!("the state {state}"), MINUTE, || {
        mount.xattr(path, "state").as_deref() == Some(state)
    });
}

#[test]
fn what_is_added_is_one_like_the_others() {
    needs!(Fuse, Libtorrent, Attr);
    let (first, second) = (Sample::small(), sample());
    let peer = ScriptedPeer::start(second.clone(), Behaviour::default());
    let mount = Mount::sample(&first).peer(peer.addr()).arg("--prefetch=file").start();
    // By a path from the folder of who asks, which isn't that of the mount.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(&second.torrent, folder.path().join("x.torrent")).expect("a copy");
    let mut command = torrentfs(["add", &text(mount.point()), "x.torrent"]);
    command.current_dir(folder.path());
    let said = Proc::spawn(command).success(MINUTE);
    assert!(said.contains("added  control") && said.contains("0 B of 1.5 MiB here"), "{said}");
    // It is there when the command says so.
    assert_eq!(mount.names(), ["control", "small.bin"]);
    let one = asked("status", &mount, &["--json"]).json();
    let names: Vec<_> =
        one["torrents"].as_array().expect("a list").iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["small.bin", "control"], "in the order in which they were added");
    // The peer and the prefetching of the mount are its own as well.
    File::open(mount.path("control/d/b.bin"))
        .and_then(|mut file| file.read_exact(&mut [0; 10]))
        .expect("reads");
    wait_state(&mount, &mount.path("control/d/b.bin"), "complete");
    assert_eq!(pieces(&peer), (8..16).collect::<Vec<_>>());
    second.check_in(mount.point());
    asked("add", &mount, &[&text(&second.torrent)]).said(0, &["was there  control", "1.5 MiB of 1.5 MiB"]);
    assert_eq!(mount.names(), ["control", "small.bin"]);
    mount.stop();
}

#[test]
fn one_that_fails_does_not_keep_the_others_out() {
    needs!(Fuse, Libtorrent, Attr);
    let (first, second) = (Sample::small(), sample());
    let seeder = Seeder::start(&second);
    let mount = Mount::sample(&first).peer(seeder.addr).start();
    let folder = tempfile::tempdir().expect("a folder");
    let bad = folder.path().join("bad.torrent");
    std::fs::write(&bad, b"d4:infod4:name1:xee").expect("a file");
    let gone = text(&folder.path().join("gone.torrent"));
    let link = magnet(&second, &[]);
    let ended = asked("add", &mount, &[&gone, &text(&bad), "magnet:?dn=nothing", &link]);
    let ended = ended.said(1, &["gone.torrent", "no such file", "bad.torrent", "magnet", "added  "]);
    assert_eq!(ended.err.matches("torrentfs: ").count(), 3, "{ended:?}");
    // A magnet link shows at once, and becomes the torrent.
    wait_until("its metadata", MINUTE, || mount.names().contains(&"control".to_owned()));
    second.check_in(mount.point());
    let all_good = asked("add", &mount, &[&link]);
    all_good.said(0, &["was there  control"]);
    mount.stop();
}

#[test]
fn a_file_is_prefetched_whole_and_nothing_else() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = sample();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let file = mount.path("control/d/b.bin");
    ran(["prefetch", &text(&file)]).said(0, &["fetching", "1 file, 0 B of 512 KiB here"]);
    wait_state(&mount, &file, "complete");
    wait_state(&mount, &mount.path("control"), "idle");
    assert_eq!(pieces(&peer), (8..16).collect::<Vec<_>>());
    // A folder: what is missing of it. By a path that isn't absolute.
    let mut command = torrentfs(["prefetch", "."]);
    command.current_dir(mount.path("control/d"));
    let said = Proc::spawn(command).success(MINUTE);
    assert!(said.contains("2 files, 512 KiB of 1.0 MiB here"), "{said}");
    wait_state(&mount, &mount.path("control/d/c.bin"), "complete");
    wait_state(&mount, &mount.path("control"), "idle");
    assert_eq!(pieces(&peer), (8..24).collect::<Vec<_>>());
    // All of it; several may be given.
    let (root, torrent) = (text(mount.point()), text(&mount.path("control")));
    ran(["prefetch", &root, &torrent]).said(0, &["4 files, 1.0 MiB of 1.5 MiB here"]);
    wait_state(&mount, &mount.path("control"), "complete");
    let nothing = text(&mount.path("control/none"));
    ran(["prefetch", &nothing]).said(1, &[&nothing, "no such file"]);
    ran(["prefetch", "/etc"]).said(4, &["in no mount of torrentfs"]);
    mount.stop();
}

#[test]
fn prefetching_is_called_off() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = sample();
    let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
    // Nothing is sent before it is called off, so nothing of it is on its way then.
    peer.hold(0..24);
    let mount = Mount::sample(&sample).peer(peer.addr()).start();
    let (a, b, torrent) = (mount.path("control/a.bin"), mount.path("control/d/b.bin"), mount.path("control"));
    ran(["prefetch", &text(&torrent)]).said(0, &["fetching", "4 files"]);
    wait_until("it to be asked for", MINUTE, || !peer.requests().is_empty());
    // All but two files: those go on, since everything was wanted.
    ran(["prefetch", "--off", &text(&mount.path("control/d")), &text(&mount.path("control/e.bin"))])
        .said(0, &["no longer fetching", "2 files", "1 file"]);
    peer.release();
    wait_state(&mount, &a, "complete");
    wait_state(&mount, &torrent, "idle");
    let here = |path: &Path| mount.xattr(path, "progress").expect("progress");
    // What was on its way may have come, and no more.
    assert_ne!(here(&b), format!("{0}/{0}", 8 * PIECE));
    let before = pieces(&peer);
    ran(["prefetch", "--off", &text(&torrent)]).said(0, &["no longer fetching"]);
    wait_state(&mount, &torrent, "idle");
    assert_eq!(pieces(&peer), before);
    ran(["prefetch", &text(&b)]).said(0, &["fetching"]);
    wait_state(&mount, &b, "complete");
    mount.stop();
}

#[test]
fn a_torrent_is_removed_with_its_data_and_without() {
    needs!(Fuse, Libtorrent, Attr);
    let (first, second) = (Sample::small(), sample());
    let peer = ScriptedPeer::start(second.clone(), Behaviour::default());
    let mount = Mount::sample(&first).source(&second.torrent).peer(peer.addr()).start();
    second.check_in(mount.point());
    let kept = home(&second, mount.cache());
    asked("remove", &mount, &["nothing"]).said(1, &["nothing", "there is no such torrent", "small.bin"]);
    asked("remove", &mount, &["control/"]).said(0, &["removed  control\n"]);
    assert_eq!(mount.names(), ["small.bin"]);
    assert!(kept.exists(), "its data stays");
    let served = peer.served();
    // Back again, with what was kept.
    asked("add", &mount, &[&text(&second.torrent)]).said(0, &["added  control", "1.5 MiB of 1.5 MiB here"]);
    second.check_in(mount.point());
    assert_eq!(peer.served(), served, "nothing was fetched again");
    // A reader that waits is let go.
    let mut reader = Proc::start("cat", [mount.path(&first.name)]);
    reader.wait_parked();
    let short: String = first.v1.as_ref().expect("v1").chars().take(8).collect();
    asked("remove", &mount, &["--delete-data", &short, "control"])
        .said(0, &["removed  small.bin, with its data", "removed  control, with its data"]);
    assert!(!reader.finish(MINUTE).0.success());
    assert_eq!(mount.names(), Vec::<String>::new());
    assert!(!kept.exists() && !home(&first, mount.cache()).exists());
    let one = asked("status", &mount, &["--json"]).json();
    assert_eq!(one["torrents"], serde_json::json!([]));
    asked("status", &mount, &[]).said(0, &["no torrents"]);
    mount.stop();
}

#[test]
fn a_name_that_fits_several_removes_none() {
    needs!(Fuse, Libtorrent, Attr);
    let one = Sample::file("twin.bin", 4 * PIECE, PIECE);
    let other = Sample::file("twin.bin", 5 * PIECE, PIECE);
    let mount = Mount::sample(&one).source(&other.torrent).start();
    let both = mount.names();
    assert_eq!(both.len(), 2, "{both:?}");
    asked("remove", &mount, &["twin.bin"]).said(1, &["several torrents", &both[0], &both[1]]);
    assert_eq!(mount.names(), both);
    asked("remove", &mount, &[&both[0]]).said(0, &["removed"]);
    assert_eq!(mount.names(), ["twin.bin"]);
    mount.stop();
}
