//! Files of a torrent as programs, databases, disks, and under a tester of disks.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Fixture, KIB, MIB, MINUTE, shell, things};
use crate::common::{Proc, Sample, wait_until};
use crate::needs;

#[test]
fn running_a_program() {
    needs!(Fuse, Libtorrent);
    let fixture = Fixture::new(Sample::filled("programs", 64 * KIB, &|root| {
        // A program proper, with all that the loader maps of it, and one that isn't marked as such.
        let program = std::fs::canonicalize("/usr/bin/sha256sum").expect("coreutils");
        std::fs::copy(&program, root.join("sum")).expect("a copy");
        std::fs::write(root.join("data"), "1234").expect("a file");
        std::fs::write(root.join("hello.sh"), "#!/bin/sh\necho hello \"$(cat \"${0%/*}/data\")\"\n")
            .expect("a file");
        std::fs::write(root.join("plain.sh"), "#!/bin/sh\necho no\n").expect("a file");
        shell("chmod 755 sum hello.sh; chmod 644 data plain.sh", root, &[]);
    }));
    fixture.same("./sum data sum");
    assert_eq!(fixture.same("./hello.sh"), "hello 1234\n");
    assert_eq!(fixture.same("sh plain.sh"), "no\n");
    // 126: found, and not to be run.
    fixture.same("./plain.sh 2>/dev/null || echo \"ended with $?\"");
    fixture.end();
}

#[test]
fn sqlite3_reads_a_database() {
    const MAKE: &str = "create table words (id integer primary key, word text unique, more blob); \
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
        insert into words select i, 'word ' || i, zeroblob(200) from n;";
    needs!(Fuse, Libtorrent, Sqlite);
    let fixture = Fixture::new(Sample::filled("database", 64 * KIB, &|root| {
        let make = format!("sqlite3 plain.db \"{MAKE}\"");
        shell(&make, root, &[]);
        // Its journal is what is written ahead, and all of that is in the database.
        shell("cp plain.db ahead.db; sqlite3 ahead.db 'pragma journal_mode=wal' >/dev/null", root, &[]);
    }));
    let ask = |database: &str, question: &str| {
        shell(&format!("sqlite3 \"{database}\" \"{question}\""), &fixture.root(), &[])
    };
    let one = "select id, length(more) from words where word = 'word 777'";
    // As it comes: it would open for writing, and is content with less. Then as one should ask.
    for database in
        ["plain.db", "file:plain.db?mode=ro", "file:plain.db?immutable=1", "file:ahead.db?immutable=1"]
    {
        assert_eq!(ask(database, one), "777|200\n", "{database}");
        assert_eq!(ask(database, "pragma integrity_check"), "ok\n", "{database}");
        assert_eq!(ask(database, "select count(*), sum(id) from words"), "20000|200010000\n", "{database}");
    }
    let refused = shell("sqlite3 plain.db 'delete from words' 2>&1 || true", &fixture.root(), &[]);
    assert!(refused.contains("readonly"), "{refused}");
    fixture.end();
}

/// A mount within the mount; taken away when it is dropped.
struct Image(PathBuf);

impl Image {
    fn mount(image: &Path, point: &Path) -> Self {
        // Made first: what fails below leaves nothing mounted.
        let guard = Self(point.to_owned());
        let options = ["-o".as_ref(), "loop,ro".as_ref(), "-t".as_ref(), "squashfs".as_ref()];
        Proc::start("mount", options.into_iter().chain([image.as_os_str(), point.as_os_str()]))
            .success(MINUTE);
        guard
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nothing may be mounted there any more, or not yet.
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn an_image_is_mounted_through_a_loop_device() {
    needs!(Fuse, Libtorrent, Squashfs);
    let inner = Sample::tree();
    let fixture = Fixture::new(Sample::filled("image", 64 * KIB, &|root| {
        shell(
            "mksquashfs \"$1\" image.squashfs -quiet -no-progress -no-xattrs >/dev/null",
            root,
            &[&inner.source()],
        );
    }));
    let point = tempfile::tempdir().expect("a folder");
    let of = fixture.root().join("image.squashfs");
    let image = Image::mount(&of, point.path());
    let here = "find . -type f -print0 | sort -z | xargs -0 sha256sum --; find . -printf '%y %P\\n' | sort";
    let listed = shell(here, point.path(), &[]);
    assert_eq!(listed, shell(here, &inner.source(), &[]));
    drop(image);
    wait_until("the loop device to let go", MINUTE, || {
        // Those of this mount: others may test the same at the same time.
        let mut list = Command::new("losetup");
        let devices =
            list.args(["--list", "--noheadings", "--output", "BACK-FILE"]).output().expect("losetup");
        let of = of.to_str().expect("UTF-8");
        !String::from_utf8_lossy(&devices.stdout).lines().any(|file| file.trim().starts_with(of))
    });
    fixture.end();
}

#[test]
fn fio_verifies_at_random_offsets() {
    needs!(Fuse, Libtorrent, Fio);
    const BLOCK: &str = "--bs=4k --size=16m --verify=crc32c --verify_fatal=1 --thread --name=job";
    let fixture = Fixture::new(Sample::filled("verified", 256 * KIB, &|root| {
        // Each block carries its place and a checksum.
        shell(&format!("fio {BLOCK} --rw=write --do_verify=0 --filename=blocks.bin >/dev/null"), root, &[]);
        let mut bytes = std::fs::read(root.join("blocks.bin")).expect("a file");
        assert_eq!(bytes.len() as u64, 16 * MIB);
        bytes[5_000_001] ^= 1;
        std::fs::write(root.join("harmed.bin"), bytes).expect("room");
    }));
    for how in ["--rw=randread", "--rw=randread --direct=1", "--rw=read", "--rw=randread --ioengine=mmap"] {
        let command = format!("fio {BLOCK} {how} --readonly --filename=blocks.bin --output-format=json");
        let said = shell(&command, &fixture.root(), &[]);
        // Before the JSON it may have notes.
        let json = said.find('{').map_or("", |begin| &said[begin..]);
        let report: serde_json::Value =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {said}"));
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{how}: {said}");
        assert_eq!(job["read"]["io_bytes"], 16 * MIB, "{how}: {said}");
        // The tester does look: one bit that is wrong in the torrent itself makes it fail.
        let harmed = format!("fio {BLOCK} {how} --readonly --filename=harmed.bin 2>&1 || echo it failed");
        let said = shell(&harmed, &fixture.root(), &[]);
        assert!(said.contains("verify") && said.ends_with("it failed\n"), "{how}: {said}");
    }
    fixture.end();
}

/// A tree as the lower layer of an overlay: what is written goes elsewhere, what is read comes from here.
#[test]
fn an_overlay_has_it_below() {
    needs!(Fuse, Libtorrent, Squashfs);
    let fixture = Fixture::new(things());
    let folder = tempfile::tempdir().expect("a folder");
    // An overlay's own layers can't lie on one: a file system of their own.
    let point = folder.path();
    // Made first, and dropped in the other order.
    let under = Image(point.to_owned());
    let over = Image(point.join("all"));
    let mounted = shell(
        "mount -t tmpfs none \"$PWD\" && cd \"$PWD\" && mkdir upper work all && \
         mount -t overlay overlay -o lowerdir=\"$1\",upperdir=upper,workdir=work all && echo yes",
        point,
        &[&fixture.root()],
    );
    assert_eq!(mounted, "yes\n");
    let all = point.join("all");
    assert_eq!(shell("cat read.txt; ./run.sh", &all, &[]), "needle\nit ran: \n");
    let written =
        "echo more >> read.txt; rm empty; mv deep/er/edge.bin moved; cat read.txt; cmp moved \"$1\"";
    let source = fixture.sample.source().join("deep/er/edge.bin");
    assert_eq!(shell(written, &all, &[&source]), "needle\nmore\n");
    drop(over);
    drop(under);
    assert_eq!(shell("cat read.txt", &fixture.root(), &[]), "needle\n");
    fixture.end();
}
