//! Data files that somebody deletes, cuts, changes or replaces, while they are mounted and between two mounts
//! (row S1): noticed, checked, fetched again; and never a wrong byte.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{Behaviour, Mount, Sample, ScriptedPeer, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// The data file of a sample of one file, whole or not.
fn data(cache: &Path, sample: &Sample) -> PathBuf {
    let folder = cache.join(sample.v1.as_deref().expect("a v1 torrent")).join("data");
    let part = folder.join(format!("{}.part", sample.name));
    if part.exists() { part } else { folder.join(&sample.name) }
}

fn writable(path: &Path) -> File {
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("our own file");
    OpenOptions::new().write(true).open(path).expect("it opens")
}

/// What is done to the file; each row has its name.
type Harm = (&'static str, fn(&Path));

const HARM: [Harm; 5] = [
    ("deleted", |path| std::fs::remove_file(path).expect("it goes")),
    ("cut in the middle", |path| writable(path).set_len(3_000_000).expect("it is cut")),
    ("cut to nothing", |path| writable(path).set_len(0).expect("it is cut")),
    ("changed in the middle", |path| {
        writable(path).write_all_at(&[0xaa; 100_000], 4_000_000).expect("it is changed");
    }),
    ("replaced", |path| {
        let len = path.metadata().expect("it is there").len();
        std::fs::remove_file(path).expect("it goes");
        std::fs::write(path, vec![0x55; len as usize]).expect("another in its place");
    }),
];

/// Every byte of the file, past the kernel's pages.
fn read(mount: &Mount, sample: &Sample) -> std::io::Result<Vec<u8>> {
    let file = File::open(mount.path(&sample.name))?;
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .expect("fadvise");
    let mut bytes = vec![0; sample.total as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn start(sample: &Sample, cache: &Path, peer: Option<&ScriptedPeer>) -> Mount {
    let builder = Mount::sample(sample).cache(cache);
    match peer {
        Some(peer) => builder.peer(peer.addr()).start(),
        // Nobody will send anything: no use waiting for it.
        None => builder.arg("--read-timeout=300ms").start(),
    }
}

/// A cache with all of the sample, and a mount of it.
fn whole(sample: &Sample, peer: &ScriptedPeer, cache: &Path) -> Mount {
    let mount = start(sample, cache, Some(peer));
    let path = mount.path(&sample.name);
    assert!(std::fs::read(&path).expect("it reads") == std::fs::read(sample.source()).expect("the source"));
    wait_until("the file to be whole", MINUTE, || data(cache, sample).ends_with(&sample.name));
    mount
}

#[test]
fn s1_harmed_while_it_is_mounted() {
    needs!(Fuse, Libtorrent);
    // More than the program keeps in memory of what it verified last.
    let sample = Sample::file("harmed.bin", 32 << 20, 256 * 1024);
    let truth = std::fs::read(sample.source()).expect("the source");
    for (name, harm) in HARM {
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("cache");
        let mount = whole(&sample, &peer, &cache);
        harm(&data(&cache, &sample));
        // Noticed within a second or two of reading; until then pieces in memory are as right as ever.
        let served = peer.served();
        wait_until(&format!("what was {name} to be fetched again"), MINUTE, || {
            match read(&mount, &sample) {
                Ok(bytes) => assert!(bytes == truth || noticing(name), "{name}: wrong bytes"),
                Err(error) => panic!("{name}: {error}"),
            }
            peer.served() > served
        });
        assert!(read(&mount, &sample).expect("it reads") == truth, "{name}");
        wait_until("the file to be whole again", MINUTE, || {
            std::fs::read(data(&cache, &sample)).is_ok_and(|bytes| bytes == truth)
                && data(&cache, &sample).ends_with(&sample.name)
        });
        mount.stop();
    }
}

/// Whoever writes into a file of ours is noticed within a second: what is read before that is what is in the file.
fn noticing(name: &str) -> bool {
    matches!(name, "changed in the middle" | "replaced")
}

#[test]
fn s1_harmed_between_two_mounts() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let truth = std::fs::read(sample.source()).expect("the source");
    for killed in [false, true] {
        for (name, harm) in HARM {
            // What nobody can know: that a file of the same length isn't the same, when there was no clean end.
            if killed && noticing(name) {
                continue;
            }
            let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
            let folder = tempfile::tempdir().expect("a folder");
            let cache = folder.path().join("cache");
            let mut mount = whole(&sample, &peer, &cache);
            if killed {
                mount.signal(Signal::SIGKILL);
                let _ = mount.exited(MINUTE);
                let _ = umount2(mount.point(), MntFlags::MNT_DETACH);
                drop(mount);
            } else {
                mount.stop();
            }
            harm(&data(&cache, &sample));
            // Nobody to fetch from: an error, and never a wrong byte.
            let mount = start(&sample, &cache, None);
            wait_until("the file", MINUTE, || mount.path(&sample.name).exists());
            let file = File::open(mount.path(&sample.name)).expect("it opens");
            let (mut right, mut lost) = (0, 0);
            // Some places, one of them where it was changed: each that is lost takes a time-out.
            for at in [0, 1 << 20, 2_900_000, 3_100_000, 4_050_000, 8_000_000] {
                let expected = &truth[at as usize..at as usize + 1000];
                let mut got = vec![0; 1000];
                match file.read_exact_at(&mut got, at) {
                    Ok(()) => {
                        assert!(got == expected, "{name}, {killed}: wrong at {at}");
                        right += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
                        lost += 1;
                    }
                }
            }
            println!("{name}, {killed}: {right} places are here, {lost} are lost");
            assert!(lost > 0, "{name}, {killed}: something is lost");
            drop(file);
            mount.stop();
            let mount = start(&sample, &cache, Some(&peer));
            wait_until("the file", MINUTE, || mount.path(&sample.name).exists());
            assert!(read(&mount, &sample).expect("it reads") == truth, "{name}, {killed}");
            mount.stop();
        }
    }
}

#[test]
fn a_record_that_cannot_be_used_is_set_aside_and_nothing_is_lost() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let truth = std::fs::read(sample.source()).expect("the source");
    let newer = |good: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[8..12].copy_from_slice(&99u32.to_le_bytes());
        bytes
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let rows: [Damage<'_>; 4] = [
        ("cut", &|good: &[u8]| good[..good.len() / 2].to_vec()),
        ("empty", &|_: &[u8]| Vec::new()),
        ("a flipped bit", &|good: &[u8]| {
            let mut bytes = good.to_vec();
            bytes[good.len() / 2] ^= 4;
            bytes
        }),
        ("of another version", &newer),
    ];
    for (name, damage) in rows {
        let peer = ScriptedPeer::start(sample.clone(), Behaviour::default());
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("cache");
        whole(&sample, &peer, &cache).stop();
        let record = cache.join(sample.v1.as_deref().expect("a v1 torrent")).join("resume");
        let good = std::fs::read(&record).expect("a record");
        std::fs::write(&record, damage(&good)).expect("it is damaged");
        let served = peer.served();
        let mount = start(&sample, &cache, Some(&peer));
        wait_until("the file", MINUTE, || mount.path(&sample.name).exists());
        assert!(read(&mount, &sample).expect("it reads") == truth, "{name}");
        assert_eq!(peer.served(), served, "{name}: what is there is checked, not fetched");
        assert!(record.with_extension("bad").exists(), "{name}");
        assert!(mount.log().contains("set aside"), "{name}: {}", mount.log());
        mount.stop();
    }
}
