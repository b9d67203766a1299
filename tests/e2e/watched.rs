//! A folder that is watched: what is dropped there is mounted, what is taken away goes, whoever reads it; and how a
//! torrent is removed while readers wait (row F9), and metadata comes while somebody stands in its folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{Mount, MountBuilder, Proc, Reader, Sample, Seeder, home, magnet, wait_until};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);
/// A change of the folder shows within a second; five times that.
const SHOWS: Duration = Duration::from_secs(5);
/// A reader whose torrent is removed hears of it as soon as that is noticed.
const HEARS: Duration = Duration::from_secs(5);

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, sample: &Sample) -> PathBuf {
        let path = self.path(&format!("{}.torrent", sample.name));
        std::fs::copy(&sample.torrent, &path).expect("a copy");
        path
    }

    fn mount(&self) -> MountBuilder {
        Mount::empty().arg("--watch").arg(self.0.path())
    }
}

fn wait_names(mount: &Mount, names: &[&str], limit: Duration) {
    wait_until(&format!("{names:?}"), limit, || mount.names() == names);
}

fn errno(path: &Path) -> Option<i32> {
    path.symlink_metadata().err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_is_dropped_into_the_folder_is_mounted_and_what_is_taken_away_goes() {
    needs!(Fuse, Libtorrent);
    let (small, tree) = (Sample::small(), Sample::tree());
    let seeders = [Seeder::start(&small), Seeder::start(&tree)];
    let folder = Folder::new();
    folder.put(&small);
    let mount = folder.mount().peer(seeders[0].addr).peer(seeders[1].addr).start();
    assert_eq!(mount.names(), ["small.bin"], "there from the first moment");
    mount.check_sums(&small);
    // A file that nobody can use, and another one: with a warning the one, without delay the other.
    std::fs::write(folder.path("bad.torrent"), "no torrent at all").expect("written");
    folder.put(&tree);
    wait_names(&mount, &["small.bin", "tree"], SHOWS);
    mount.check_sums(&tree);
    mount.wait_log(&["bad.torrent", "left out"], MINUTE);
    // Replaced by a link to the same: nothing changes, and who reads reads on.
    let open = std::fs::File::open(mount.path("small.bin")).expect("it opens");
    std::fs::write(folder.path("link.magnet"), magnet(&small, &[])).expect("written");
    std::fs::remove_file(folder.path("small.bin.torrent")).expect("removed");
    // Replaced by another torrent.
    std::fs::remove_file(folder.path("tree.torrent")).expect("removed");
    wait_names(&mount, &["small.bin"], SHOWS);
    // The kernel is told to forget the name right behind that.
    wait_until("the name to be forgotten", SHOWS, || errno(&mount.path("tree")) == Some(libc::ENOENT));
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut byte, small.total - 1).expect("it reads on");
    drop(open);
    drop(seeders);
    // The data was kept: it comes back complete, with nobody to fetch from.
    assert!(home(&tree, mount.cache()).join("data").is_dir());
    folder.put(&tree);
    wait_names(&mount, &["small.bin", "tree"], SHOWS);
    mount.check_sums(&tree);
    for name in ["tree.torrent", "link.magnet"] {
        std::fs::remove_file(folder.path(name)).expect("removed");
    }
    wait_names(&mount, &[], SHOWS);
    assert_eq!(mount.log().matches("bad.torrent").count(), 1, "one warning:\n{}", mount.log());
    mount.stop();
}

#[test]
fn f9_removing_a_torrent_ends_its_waiting_readers_and_nothing_else() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::folder("gone", &[("missing.bin", 32 << 20), ("other.bin", 8 << 20)], 256 << 10);
    let stays = Sample::small();
    let seeder = Seeder::start(&stays);
    let folder = Folder::new();
    let file = folder.put(&sample);
    folder.put(&stays);
    // The seeder has the one alone.
    let mount = folder.mount().peer(seeder.addr).start();
    assert_eq!(mount.names(), ["gone", "small.bin"]);
    let path = mount.path("gone/missing.bin");
    // Twenty that read, one that touches a mapping, one that waits in another file; and one that only has it open.
    let mut readers: Vec<_> = (0..20).map(|n| Reader::pread(&path, n << 20, 100_000)).collect();
    let mut fault = Reader::fault(&path, 30 << 20);
    readers.push(Reader::pread(&mount.path("gone/other.bin"), 0, 4096));
    readers.iter_mut().for_each(Proc::wait_parked);
    fault.wait_faulting();
    let open = std::fs::File::open(&path).expect("it opens");
    let mut stands = Proc::start(
        "sh",
        [
            "-c",
            "cd \"$0\" && echo waiting && read line && ls . && ls missing.bin",
            &*mount.path("gone").to_string_lossy(),
        ],
    );
    stands.line("waiting", MINUTE);

    let began = Instant::now();
    std::fs::remove_file(&file).expect("removed");
    for reader in &mut readers {
        let said = reader.success(SHOWS + HEARS);
        assert!(said.contains("error ESTALE") || said.contains("error EIO"), "{said}");
    }
    fault.ended(SHOWS + HEARS);
    eprintln!("22 readers of a removed torrent ended after {:?}", began.elapsed());
    wait_names(&mount, &["small.bin"], SHOWS);
    wait_until("the kernel to know", SHOWS, || errno(&path) == Some(libc::ENOENT));
    assert_eq!(errno(&mount.path("gone")), Some(libc::ENOENT));
    let read = std::os::unix::fs::FileExt::read_at(&open, &mut [0; 10], 5).expect_err("it reads no more");
    assert!(matches!(read.raw_os_error(), Some(libc::ESTALE | libc::EIO)), "{read}");
    drop(open);
    stands.say("");
    let (status, _) = stands.finish(MINUTE);
    assert!(!status.success(), "who stands in its folder finds nothing");
    // The program lives, and does its work.
    mount.check_sums(&stays);
    std::fs::copy(&sample.torrent, &file).expect("back again");
    wait_names(&mount, &["gone", "small.bin"], SHOWS);
    assert_eq!(mount.path("gone/missing.bin").metadata().expect("stat").len(), 32 << 20);
    let mut again = Reader::pread(&path, 0, 4096);
    again.wait_parked();
    mount.stop();
    again.ended(MINUTE);
}

#[test]
fn one_bad_source_keeps_no_other_out() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let seeder = Seeder::start(&sample);
    let folder = Folder::new();
    std::fs::write(folder.path("bad.torrent"), "no torrent").expect("written");
    let mount = Mount::of(folder.path("bad.torrent"))
        .source(folder.path("absent.torrent"))
        .source("magnet:?xt=urn:btih:short")
        .source(&sample.torrent)
        .peer(seeder.addr)
        .start();
    assert_eq!(mount.names(), ["small.bin"]);
    mount.check_sums(&sample);
    for name in ["bad.torrent", "absent.torrent", "magnet"] {
        mount.wait_log(&["left out", name], MINUTE);
    }
    mount.stop();
    // With a folder to watch the mount comes up without any of them, and empty.
    let mut mount = folder.mount().source(folder.path("absent.torrent")).peer(seeder.addr).start();
    assert_eq!(mount.names(), [""; 0]);
    folder.put(&sample);
    mount.wait_entry("small.bin", SHOWS);
    // Named by somebody as well: it stays with the file gone. Started so that both do.
    mount.stop();
    let mount = folder.mount().source(&sample.torrent).peer(seeder.addr).start();
    std::fs::remove_file(folder.path("small.bin.torrent")).expect("removed");
    mount.wait_log(&["small.bin", "stays"], MINUTE);
    mount.check_sums(&sample);
    mount.stop();
    let (status, log) = Mount::empty().arg("--watch").arg(folder.path("nowhere")).fail(MINUTE);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("nowhere"), "{log}");
}

#[test]
fn metadata_that_comes_while_somebody_stands_in_the_folder() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::tree();
    let port = crate::no_peer::free_port();
    let folder = Folder::new();
    std::fs::write(folder.path("later.magnet"), magnet(&sample, &["dn=later".into()])).expect("written");
    let mut mount = folder.mount().arg("--peer").arg(format!("127.0.0.2:{port}")).start();
    assert_eq!(mount.names(), ["later.resolving"]);
    let resolving = mount.path("later.resolving");
    assert_eq!(mount.xattr(&resolving, "state").as_deref(), Some("resolving"));
    let script = "cd \"$0\" && echo waiting && read line; ls . ; echo $?; ls \"$0\"; echo $?";
    let mut stands = Proc::start("sh", ["-c", script, &*resolving.to_string_lossy()]);
    stands.line("waiting", MINUTE);
    assert_eq!(errno(&mount.path("tree")), Some(libc::ENOENT), "asked for before it is there");
    let _seeder = Seeder::with(&sample, &format!("127.0.0.2:{port}"), &[]);
    mount.wait_entry("tree", MINUTE);
    // As soon as the one is there the other isn't listed; the kernel may remember its name for a second at most.
    assert_eq!(mount.names(), ["tree"]);
    wait_until("the old name to be gone", SHOWS, || errno(&resolving) == Some(libc::ENOENT));
    mount.check_sums(&sample);
    stands.say("");
    let (_, said) = stands.finish(MINUTE);
    let failed = said.lines().filter(|line| line.parse::<i32>().is_ok_and(|status| status != 0)).count();
    assert!(failed >= 1, "{said}");
    assert!(!said.contains("Input/output"), "{said}");
    mount.stop();
}
