//! Tools that copy whole trees, and compare them.

use super::{Fixture, is_copy, shell, things};
use crate::common::Sample;
use crate::needs;

#[test]
fn cp_a() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(things());
    let save = tempfile::tempdir().expect("a folder");
    let said = shell("cp -a \"$1\" .", save.path(), &[&fixture.root()]);
    assert_eq!(said, "", "nothing to complain of");
    is_copy(&save.path().join("things"), &fixture);
    fixture.end();
}

#[test]
fn rsync_a() {
    needs!(Fuse, Libtorrent, Rsync);
    let fixture = Fixture::new(things());
    let save = tempfile::tempdir().expect("a folder");
    shell("rsync -a \"$1\" .", save.path(), &[&fixture.root()]);
    is_copy(&save.path().join("things"), &fixture);
    // Again: neither times nor sizes have changed, so nothing is to be done; nor are the bytes any other.
    for more in ["", "--checksum"] {
        let again = shell(&format!("rsync -a -i {more} \"$1\" ."), save.path(), &[&fixture.root()]);
        assert_eq!(again, "", "{more}");
    }
    fixture.end();
}

#[test]
fn tar() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(things());
    let save = tempfile::tempdir().expect("a folder");
    // A file that changes while it is read is said to.
    let said = shell("tar -C \"$1\" -cf all.tar things", save.path(), &[fixture.mount.point()]);
    assert_eq!(said, "");
    assert_eq!(shell("tar -C \"$1\" -df all.tar", save.path(), &[fixture.mount.point()]), "", "compared");
    shell("tar -xpf all.tar", save.path(), &[]);
    is_copy(&save.path().join("things"), &fixture);
    fixture.end();
}

/// What was saved once isn't saved again: inode numbers, times and the mount's device say that nothing has changed.
#[test]
fn tar_of_what_is_new() {
    needs!(Fuse, Libtorrent);
    let sample = things();
    let cache = tempfile::tempdir().expect("a folder");
    let save = tempfile::tempdir().expect("a folder");
    let mut listed = Vec::new();
    for name in ["first.tar", "second.tar"] {
        let fixture = {
            let seeder = crate::common::Seeder::start(&sample);
            let mount = crate::common::Mount::sample(&sample).peer(seeder.addr).cache(cache.path()).start();
            Fixture { sample: sample.clone(), seeder, mount }
        };
        let command = format!("tar -C \"$1\" --no-check-device -g state -cf {name} things && tar -tf {name}");
        let files = shell(&command, save.path(), &[fixture.mount.point()]);
        listed.push(files.lines().filter(|line| !line.ends_with('/')).count());
        fixture.end();
    }
    assert_eq!(listed, [sample.files.len() + 2, 0], "files and links in each archive");
}

#[test]
fn cmp() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(Sample::tree());
    let command = "export SOURCE=\"$1\"; find . -type f -exec \
        sh -ec 'for file; do cmp \"$SOURCE/$file\" \"$file\"; done' sh {} +";
    assert_eq!(shell(command, &fixture.root(), &[&fixture.sample.source()]), "");
    // With an offset into each, and what differs is told.
    let other = "cmp -i 1000:1000 -n 5000 large/0.bin \"$1/large/0.bin\"; cmp -s large/0.bin large/1.bin || echo differs";
    assert_eq!(shell(other, &fixture.root(), &[&fixture.sample.source()]), "differs\n");
    fixture.end();
}
