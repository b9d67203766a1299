//! Whole contents from a `.torrent` file and a peer: a large file, and a tree of files that begin and end
//! inside pieces.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::{Mount, Reader, Sample, Seeder, bytes_at};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_file_of_256_mib_reads_right() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    let metadata = mount.path(&sample.name).metadata().expect("its attributes");
    assert_eq!(metadata.len(), sample.total);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn eight_readers_at_random_offsets_read_right() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    let path = mount.path(&sample.name);
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let (path, sample) = (&path, &sample);
            scope.spawn(move || {
                let file = File::open(path).expect("opens");
                for round in 0..40 {
                    let random =
                        u64::from_le_bytes(bytes_at(reader, round * 8, 8).try_into().expect("8 bytes"));
                    let offset = random % sample.total;
                    let length = ((random >> 32) % 300_000 + 1).min(sample.total - offset) as usize;
                    let mut buffer = vec![0; length];
                    file.read_exact_at(&mut buffer, offset).expect("reads");
                    assert!(
                        buffer == bytes_at(sample.seed, offset, length),
                        "wrong bytes at {offset}+{length}"
                    );
                }
            });
        }
    });
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_mapped_file_reads_right() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    let expected = Reader::mmap(&sample.source()).success(MINUTE);
    assert_eq!(Reader::mmap(&mount.path(&sample.name)).success(MINUTE * 2), expected);
    mount.stop();
}

#[test]
fn a_tree_of_files_reads_right() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    check_tree(&mount, &sample);
    mount.stop();
}

/// Every file is there with its bytes, and nothing else is.
pub fn check_tree(mount: &Mount, sample: &Sample) {
    mount.check_sums(sample);
    let list = |folder: &std::path::Path| {
        let output = std::process::Command::new("sh")
            .args(["-c", "find . -printf '%y %P\\n' | LC_ALL=C sort"])
            .current_dir(folder)
            .output()
            .expect("find runs");
        assert!(output.status.success(), "find: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert_eq!(list(&mount.path(&sample.name)), list(&sample.source()));
}

#[test]
fn readers_of_many_files_at_once_read_right() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::tree();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (mount, sample) = (&mount, &sample);
            scope.spawn(move || {
                for (path, size) in sample.files.iter().skip(reader * 5).step_by(3) {
                    let got =
                        std::fs::read(mount.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert_eq!(got.len() as u64, *size, "{path}");
                    assert!(got == std::fs::read(sample.data.join(path)).expect("the source"), "{path}");
                }
            });
        }
    });
    mount.stop();
}

/// Nothing has to be waited for: who mounts a `.torrent` file and then lists finds its content, never an
/// empty folder or a name that changes.
#[test]
fn a_torrent_file_is_in_the_tree_when_the_mount_shows() {
    needs!(Fuse, Libtorrent);
    let samples = [Sample::tree(), Sample::small()];
    for _ in 0..10 {
        let mount = Mount::sample(&samples[0]).source(&samples[1].torrent).start();
        assert_eq!(mount.names(), ["small.bin", "tree"]);
        mount.stop();
    }
}
