//! Local service discovery (BEP 14), between two hosts that know nothing else of each other, and never for private torrents.
//! With other people's clients: see [`crate::interop`].

use std::path::Path;
use std::time::Duration;

use crate::common::{Host, Line, Mount, MountBuilder, Sample, Seeder, lsd_listener as listener, magnet, ran};
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

fn hash(sample: &Sample) -> &str {
    sample.v1.as_deref().expect("v1")
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
