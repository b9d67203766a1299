//! Local service discovery (BEP 14), between two hosts that know nothing else of each other: with other people's clients in
//! both directions, and never for private torrents.

use std::path::Path;
use std::time::Duration;

use crate::common::{
    Host, Leecher, Line, Mount, MountBuilder, Proc, Sample, Seeder, aria2, magnet, python, ran, script,
    transmission, wait_until,
};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// A mount that knows of peers by local service discovery alone.
fn on(host: &Host, sample: &Sample) -> MountBuilder {
    Mount::sample(sample).inside(host).listen("0.0.0.0:0").lsd()
}

/// Has a mount fetch all of a sample into a cache folder, and stops it.
fn fill(line: &Line, sample: &Sample, cache: &Path) {
    let seeder = Seeder::on(&line.far, sample, &["--no-utp"]);
    let mount = Mount::sample(sample).inside(&line.near).listen("0.0.0.0:0").peer(seeder.addr);
    let mount = mount.cache(cache).start();
    mount.check_sums(sample);
    mount.stop();
}

/// Somebody who tells what is announced on a host's side of the line.
fn listener(host: &Host) -> Proc {
    let mut command = host.command(python().expect("python"));
    command.arg(script("lsd.py")).arg(host.ip.to_string());
    let mut listener = Proc::spawn(command);
    listener.line("ready", MINUTE);
    listener
}

fn hash(sample: &Sample) -> &str {
    sample.v1.as_deref().expect("v1")
}

/// Starts a client on the far host, waits until it has announced itself, and then starts a mount that has everything: its
/// own announce is the one that the client hears. An answer may take a minute, for it is never said more often.
fn fetching(
    line: &Line,
    sample: &Sample,
    mount: MountBuilder,
    client: impl FnOnce() -> Proc,
) -> (Proc, Mount) {
    let mut listener = listener(&line.near);
    let client = client();
    listener.line(&format!("heard {}", hash(sample)), MINUTE);
    (client, mount.start())
}

/// How many of the mount's peers are connected, and how many of those with encryption.
fn peers(mount: &Mount) -> (u64, u64) {
    let status = ran(["status", &mount.point().display().to_string(), "--json"]).json();
    let number = |name: &str| status["torrents"][0][name].as_u64().expect("a number");
    (number("peers"), number("encrypted"))
}

#[test]
fn a_mount_and_libtorrent_find_each_other() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::small();
    let line = Line::new();
    let kept = tempfile::tempdir().expect("a folder");
    let mount = on(&line.near, &sample).cache(kept.path()).start();
    let seeder = Seeder::on(&line.far, &sample, &["--lsd", "--no-utp"]);
    mount.check_sums(&sample);
    drop(seeder);
    mount.stop();
    let save = tempfile::tempdir().expect("a folder");
    let mount = on(&line.near, &sample).cache(kept.path());
    let (mut leecher, mount) =
        fetching(&line, &sample, mount, || Leecher::on(&line.far, &sample, save.path()));
    leecher.success(MINUTE * 2);
    sample.check_in(save.path());
    mount.stop();
}

#[test]
fn two_mounts_find_each_other_for_a_bare_magnet() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::small();
    let line = Line::new();
    let kept = tempfile::tempdir().expect("a folder");
    fill(&line, &sample, kept.path());
    let mut listener = listener(&line.near);
    let mut second = Mount::of(magnet(&sample, &[])).inside(&line.far).listen("0.0.0.0:0").lsd().start();
    listener.line(&format!("heard {}", hash(&sample)), MINUTE);
    let first = on(&line.near, &sample).cache(kept.path()).start();
    second.wait_entry(&sample.name, MINUTE);
    second.check_sums(&sample);
    second.stop();
    first.stop();
}

#[test]
fn two_mounts_find_each_other_by_link_local_addresses() {
    needs!(Fuse, Libtorrent, Netns);
    let sample = Sample::small();
    let line = Line::new();
    let kept = tempfile::tempdir().expect("a folder");
    fill(&line, &sample, kept.path());
    // The kernel makes sure first that nobody else has such an address.
    line.wait_link_local();
    let six = |host: &Host| Mount::sample(&sample).inside(host).listen("[::]:0").lsd();
    let second = six(&line.far).start();
    let first = six(&line.near).cache(kept.path()).start();
    second.check_sums(&sample);
    second.stop();
    first.stop();
}

#[test]
fn a_mount_and_aria2_find_each_other_with_and_without_encryption() {
    needs!(Fuse, Libtorrent, Netns, Aria2);
    let sample = Sample::small();
    for (theirs, ours, encrypted) in [
        (&[][..], "off", 0),
        (&["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"], "prefer", 1),
        (&["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"], "require", 1),
        (&["--bt-require-crypto=true", "--bt-min-crypto-level=plain"], "prefer", 1),
    ] {
        let line = Line::new();
        let args: Vec<_> = theirs.iter().copied().chain(["--bt-enable-lpd=true"]).collect();
        let [kept, data, save] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
        // Before the seeder: it answers whoever comes, and looks for nobody itself.
        let mount = on(&line.near, &sample).cache(kept.path()).args(&["--encryption", ours]).start();
        let (mut seeder, _) = aria2(&line.far, &sample, Some(&sample.data), data.path(), &args);
        mount.check_sums(&sample);
        assert_eq!(peers(&mount), (1, encrypted), "{theirs:?} with {ours}");
        assert!(seeder.is_running(), "{}", seeder.output());
        drop(seeder);
        mount.stop();
        let mount = on(&line.near, &sample).cache(kept.path()).args(&["--encryption", ours]);
        let client = || aria2(&line.far, &sample, None, save.path(), &args).0;
        let (mut downloader, mount) = fetching(&line, &sample, mount, client);
        downloader.success(MINUTE * 2);
        sample.check_in(&save.path().join("data"));
        mount.stop();
    }
}

#[test]
fn a_mount_and_transmission_find_each_other_with_and_without_encryption() {
    needs!(Fuse, Libtorrent, Netns, Transmission);
    let sample = Sample::small();
    for (theirs, ours, encrypted) in [
        ("--encryption-tolerated", "off", 0),
        ("--encryption-required", "prefer", 1),
        ("--encryption-required", "require", 1),
    ] {
        let line = Line::new();
        let args = ["--lpd", theirs];
        let [kept, data, save] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
        let mount = on(&line.near, &sample).cache(kept.path()).args(&["--encryption", ours]).start();
        let (mut seeder, _) = transmission(&line.far, &sample, Some(&sample.data), data.path(), &args);
        mount.check_sums(&sample);
        assert_eq!(peers(&mount), (1, encrypted), "{theirs} with {ours}");
        assert!(seeder.is_running(), "{}", seeder.output());
        drop(seeder);
        mount.stop();
        let mount = on(&line.near, &sample).cache(kept.path()).args(&["--encryption", ours]);
        let client = || transmission(&line.far, &sample, None, save.path(), &args).0;
        let (mut downloader, mount) = fetching(&line, &sample, mount, client);
        let (saved, source) = (save.path().join("data").join(&sample.name), sample.source());
        wait_until("transmission to have all", MINUTE * 2, || {
            assert!(downloader.is_running(), "{}", downloader.output());
            saved.is_file() && std::fs::read(&saved).ok() == std::fs::read(&source).ok()
        });
        mount.stop();
    }
}

#[test]
fn private_torrents_are_neither_announced_nor_looked_for() {
    needs!(Fuse, Libtorrent, Netns);
    let line = Line::new();
    let [first, second, later] =
        ["first", "second", "later"].map(|name| Sample::file(name, 100_000, 16 << 10));
    let secret = Sample::private("secret", 100_000, 16 << 10);
    let mut other = listener(&line.far);
    let mount = on(&line.near, &first).source(&secret.torrent).source(&second.torrent).start();
    other.line(&format!("heard {}", hash(&first)), MINUTE);
    other.line(&format!("heard {}", hash(&second)), MINUTE);
    // What is added later is announced after all that was due before.
    let point = mount.point().display().to_string();
    ran(["add", &point, &later.torrent.display().to_string()]).said(0, &[&later.name]);
    other.line(&format!("heard {}", hash(&later)), MINUTE);
    // Who announces them is dialled for the public one, and not for the private one.
    other.say(&format!("say {}", hash(&secret)));
    other.say(&format!("say {}", hash(&first)));
    other.line(&format!("dialled {}", hash(&first)), MINUTE);
    other.say(&format!("say {}", hash(&secret)));
    other.say(&format!("say {}", hash(&second)));
    other.line(&format!("dialled {}", hash(&second)), MINUTE);
    assert!(!other.output().contains(hash(&secret)), "{}", other.output());
    mount.stop();
}

#[test]
fn a_magnet_that_turns_out_private_is_not_looked_for_any_more() {
    needs!(Fuse, Libtorrent, Netns);
    let line = Line::new();
    let secret = Sample::private("secret", 100_000, 16 << 10);
    let public = Sample::file("public", 100_000, 16 << 10);
    let mut other = listener(&line.far);
    // libtorrent tells nobody the metadata of a private torrent.
    let knows = Mount::sample(&secret).inside(&line.far).listen(format!("{}:7000", line.far.ip)).start();
    let mount = on(&line.near, &public).source(magnet(&secret, &[]));
    let mut mount = mount.peer((line.far.ip, 7000).into()).start();
    mount.wait_entry(&secret.name, MINUTE);
    let before = other.output().matches(hash(&secret)).count();
    other.say(&format!("say {}", hash(&secret)));
    other.say(&format!("say {}", hash(&public)));
    other.line(&format!("dialled {}", hash(&public)), MINUTE);
    assert!(!other.output().contains(&format!("dialled {}", hash(&secret))), "{}", other.output());
    assert_eq!(other.output().matches(hash(&secret)).count(), before, "{}", other.output());
    mount.stop();
    knows.stop();
}
