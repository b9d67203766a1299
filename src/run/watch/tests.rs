//! Tests of the folder that is watched, with a client and without peers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use super::*;
use crate::client::for_tests::{LONG, Running, Sample, options};

/// A `.torrent` file of a sample.
fn torrent(sample: &Sample) -> Vec<u8> {
    [b"d4:info".as_slice(), &sample.info.raw, b"e"].concat()
}

fn magnet(sample: &Sample) -> String {
    format!("magnet:?xt=urn:btih:{}&dn=m", sample.key())
}

/// Info-hashes of what is mounted.
fn mounted(running: &Running) -> BTreeSet<String> {
    running.client.torrents().iter().map(|t| t.info_hash.to_string()).collect()
}

fn keys<const N: usize>(samples: [&Sample; N]) -> BTreeSet<String> {
    samples.iter().map(|sample| sample.key()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect(what);
}

struct World {
    running: Running,
    dir: tempfile::TempDir,
    _cache: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { running: Running::start(cache.path(), options()).await, dir, _cache: cache }
    }

    fn watch(&self) -> Watch {
        Watch::new(&self.running.client, self.dir.path()).unwrap()
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        // Another inode each time, so that it is another file also within the same tick of the clock.
        let aside = self.dir.path().join(".aside");
        std::fs::write(&aside, content).unwrap();
        std::fs::rename(aside, self.dir.path().join(name)).unwrap();
    }

    fn take(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    async fn until(&self, what: &str, expected: BTreeSet<String>) {
        until(what, || mounted(&self.running) == expected).await;
    }
}

#[test]
fn names_and_links_are_told_apart() {
    let rows = [
        ("a.torrent", Some(Kind::Torrent)),
        ("A.TORRENT", Some(Kind::Torrent)),
        ("b.magnet", Some(Kind::Magnet)),
        ("a.torrent.part", None),
        (".a.torrent", None),
        (".torrent", None),
        ("torrent", None),
        ("a.txt", None),
    ];
    for (name, kind) in rows {
        assert_eq!(kind_of(name.as_ref()), kind, "{name}");
    }
    let hash = "0123456789abcdef0123456789abcdef01234567";
    let link = format!("magnet:?xt=urn:btih:{hash}&dn=a");
    let rows: [(String, Result<&str, &str>); 10] = [
        (link.clone(), Ok("a")),
        (format!("\u{20}\n {link}\r\n\n"), Ok("a")),
        (hash.to_owned(), Ok(hash)),
        (String::new(), Err("it is empty")),
        ("\n \n".to_owned(), Err("it is empty")),
        (format!("{link}\n{link}"), Err("more than one line")),
        ("http://x/a.torrent".to_owned(), Err("no magnet link")),
        ("a.torrent".to_owned(), Err("no magnet link")),
        (hash[..39].to_owned(), Err("40 hex digits")),
        (hash[..32].repeat(2), Err("v2")),
    ];
    for (text, expected) in rows {
        match (link_in(&text), expected) {
            (Ok(loaded), Ok(hint)) => assert_eq!(loaded.hint, hint),
            (Err(why), Err(part)) => assert!(why.contains(part), "{text:?}: {why}"),
            (found, _) => panic!("{text:?}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn looking_follows_the_folder() {
    let world = World::new().await;
    let (one, two, three) = (Sample::new("1", &[]), Sample::new("2", &[]), Sample::new("3", &[]));
    world.put("1.torrent", torrent(&one));
    world.put("other.txt", torrent(&two));
    std::fs::create_dir(world.dir.path().join("folder.torrent")).unwrap();
    nix::unistd::mkfifo(&world.dir.path().join("pipe.torrent"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("nowhere", world.dir.path().join("link.torrent")).unwrap();
    world.put("bad.torrent", b"d4:info");
    let mut watch = world.watch();
    watch.look().await;
    assert_eq!(mounted(&world.running), keys([&one]), "one bad file keeps no other out");
    // Renamed, one more that is the same, and one by its link.
    std::fs::rename(world.dir.path().join("1.torrent"), world.dir.path().join("i.torrent")).unwrap();
    world.put("again.magnet", magnet(&one));
    world.put("2.magnet", magnet(&two));
    let before = world.running.client.torrents();
    watch.look().await;
    assert_eq!(mounted(&world.running), keys([&one, &two]));
    assert!(Arc::ptr_eq(&world.running.client.torrents()[0], &before[0]), "it is the same all the time");
    // A bad one gets good, a good one another.
    world.put("bad.torrent", torrent(&three));
    world.put("i.torrent", torrent(&two));
    watch.look().await;
    assert_eq!(mounted(&world.running), keys([&one, &two, &three]));
    world.take("again.magnet");
    watch.look().await;
    world.until("the last file of the first is gone", keys([&two, &three])).await;
    world.take("2.magnet");
    watch.look().await;
    assert_eq!(mounted(&world.running), keys([&two, &three]));
    for name in ["i.torrent", "bad.torrent"] {
        world.take(name);
    }
    watch.look().await;
    world.until("nothing", keys([])).await;
    // What is here of it stays, and it can come again as soon as its removal is over: until then it is put off.
    world.put("1.torrent", torrent(&one));
    let comes = async {
        while mounted(&world.running) != keys([&one]) {
            watch.look().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, comes).await.expect("it comes again");
    world.running.stop().await;
}

#[tokio::test]
async fn what_somebody_else_has_added_stays() {
    let world = World::new().await;
    let (before, after, never) = (Sample::new("1", &[]), Sample::new("2", &[]), Sample::new("3", &[]));
    for (name, sample) in [("1.torrent", &before), ("2.torrent", &after), ("3.torrent", &never)] {
        world.put(name, torrent(sample));
    }
    world.running.client.add(before.loaded()).await.unwrap();
    let mut watch = world.watch();
    watch.look().await;
    world.running.client.add(after.loaded()).await.unwrap();
    // Removed by somebody else: it stays away until its file is touched.
    let gone = world.running.client.torrents().into_iter().find(|t| t.name() == "3").unwrap();
    world.running.client.remove(&gone, false).await.unwrap();
    watch.look().await;
    assert_eq!(mounted(&world.running), keys([&before, &after]));
    for name in ["1.torrent", "2.torrent", "3.torrent"] {
        world.take(name);
    }
    watch.look().await;
    // The removals, if there were any, would be over.
    until("nothing is being removed", || {
        world.running.scope.live().iter().all(|name| !name.contains("remove"))
    })
    .await;
    assert_eq!(mounted(&world.running), keys([&before, &after]));
    world.running.stop().await;
}

#[tokio::test]
async fn changes_are_noticed() {
    let world = World::new().await;
    let mut watch = world.watch();
    watch.look().await;
    assert!(watch.watched.is_some(), "by inotify");
    watch.start();
    let samples: Vec<Sample> = (0..40).map(|n| Sample::new(&format!("{n}"), &[])).collect();
    // Written in two halves, one by one.
    for (n, sample) in samples.iter().enumerate() {
        let bytes = torrent(sample);
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let path = world.dir.path().join(format!("{n}.torrent"));
        std::fs::write(&path, first).unwrap();
        tokio::task::yield_now().await;
        let mut file = File::options().append(true).open(&path).unwrap();
        io::Write::write_all(&mut file, second).unwrap();
    }
    let all: BTreeSet<String> = samples.iter().map(Sample::key).collect();
    world.until("all of them", all).await;
    // The folder is replaced by another one.
    let aside = world.dir.path().with_extension("aside");
    std::fs::rename(world.dir.path(), &aside).unwrap();
    std::fs::create_dir(world.dir.path()).unwrap();
    world.put("7.torrent", torrent(&samples[7]));
    world.until("only what is in the new one", keys([&samples[7]])).await;
    world.put("8.torrent", torrent(&samples[8]));
    world.until("the new one is watched", keys([&samples[7], &samples[8]])).await;
    std::fs::remove_dir_all(aside).unwrap();
    world.running.stop().await;
}

#[tokio::test]
async fn a_file_that_is_edited_brings_and_takes_webseeds() {
    let world = World::new().await;
    let sample = Sample::new("1", &[]);
    let link = |names: &[&str]| {
        let seeds: String =
            names.iter().map(|name| format!("&ws=http%3A%2F%2F127.0.0.1%3A9%2F{name}")).collect();
        magnet(&sample) + &seeds
    };
    let urls = || {
        let torrents = world.running.client.torrents();
        let all = torrents.iter().flat_map(|torrent| torrent.webseeds());
        all.map(|seed| seed.url.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    world.put("1.torrent", torrent(&sample));
    world.put("2.magnet", link(&["a", "b"]));
    let mut watch = world.watch();
    watch.look().await;
    until("those of the link", || urls() == ["a", "b"]).await;
    world.put("2.magnet", link(&["b", "c"]));
    watch.look().await;
    until("those of the edited link", || urls() == ["b", "c"]).await;
    // Named by another file, too, and by the user.
    world.put("3.magnet", link(&["c", "d"]));
    watch.look().await;
    until("those of both", || urls() == ["b", "c", "d"]).await;
    let mine = sources::load_link(&Source::parse(&link(&["d"])).unwrap()).unwrap().unwrap();
    world.running.client.add(mine).await.unwrap();
    world.take("2.magnet");
    watch.look().await;
    until("one less", || urls() == ["c", "d"]).await;
    world.put("3.magnet", b"rubbish");
    watch.look().await;
    assert_eq!(urls(), ["c", "d"], "it stands for what it did");
    // Nothing of the folder is left: the torrent stays, being the user's, with what the user names.
    for name in ["1.torrent", "3.magnet"] {
        world.take(name);
    }
    watch.look().await;
    until("the user's", || urls() == ["d"]).await;
    assert_eq!(mounted(&world.running), keys([&sample]));
    world.running.stop().await;
}

#[tokio::test]
async fn while_the_folder_is_away_nothing_is_removed() {
    let world = World::new().await;
    let (one, two) = (Sample::new("1", &[]), Sample::new("2", &[]));
    world.put("1.torrent", torrent(&one));
    let mut watch = world.watch();
    watch.look().await;
    let aside = world.dir.path().with_extension("aside");
    std::fs::rename(world.dir.path(), &aside).unwrap();
    for _ in 0..2 {
        watch.look().await;
        assert!(watch.told && watch.watched.is_none());
        assert_eq!(mounted(&world.running), keys([&one]));
    }
    std::fs::write(aside.join("2.magnet"), magnet(&two)).unwrap();
    std::fs::rename(&aside, world.dir.path()).unwrap();
    watch.look().await;
    assert!(!watch.told && watch.watched.is_some());
    assert_eq!(mounted(&world.running), keys([&one, &two]));
    assert!(Watch::new(&world.running.client, &world.dir.path().join("absent")).is_err());
    assert!(Watch::new(&world.running.client, &world.dir.path().join("1.torrent")).is_err());
    world.running.stop().await;
}

#[tokio::test]
async fn a_thousand_files_come_and_go_each_read_once() {
    const COUNT: u32 = 1000;
    let world = World::new().await;
    for n in 0..COUNT {
        // They differ from the beginning on, as info-hashes do.
        world.put(&format!("{n}.magnet"), format!("{:08x}{n:032x}", n.wrapping_mul(0x9e37_79b9)));
    }
    let mut watch = world.watch();
    watch.look().await;
    assert_eq!(world.running.client.torrents().len(), COUNT as usize);
    // Nothing has changed: nothing is read.
    let listed = list(world.dir.path(), None, None).unwrap().0;
    assert!(watch.plan.seen(listed.files, &HashSet::new()).is_empty());
    (0..COUNT).for_each(|n| world.take(&format!("{n}.magnet")));
    watch.look().await;
    world.until("all gone", BTreeSet::new()).await;
    let removing = || world.running.scope.live().iter().any(|name| name.contains("remove"));
    until("nothing is left of them", || !removing()).await;
    world.running.stop().await;
}
