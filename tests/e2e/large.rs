//! A torrent of 333,333 pieces: a bitfield of 42 KB and metadata of 6.7 MB (row R3).

use std::time::Duration;

use crate::common::{Mount, Reader, Sample, Seeder, magnet};
use crate::needs;

const MINUTE: Duration = Duration::from_secs(60);

/// The bytes of its marked pieces and of some others.
fn reads_right(mount: &Mount, sample: &Sample) {
    let path = mount.path(&sample.name);
    for piece in [0, sample.pieces / 3, sample.pieces / 2, sample.pieces - 1, 77_777] {
        let offset = piece * sample.piece_length;
        let read = |path| Reader::pread(path, offset, sample.piece_length as usize).success(MINUTE * 2);
        assert_eq!(read(&path), read(&sample.source()), "piece {piece}");
    }
}

#[test]
fn r3_a_seeder_with_333_333_pieces() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::huge();
    let seeder = Seeder::start(&sample);
    let mount = Mount::sample(&sample).peer(seeder.addr).start();
    reads_right(&mount, &sample);
    mount.stop();
}

#[test]
fn r3_metadata_of_6_7_mb_through_a_magnet() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::huge();
    let seeder = Seeder::start(&sample);
    let mut mount = Mount::of(magnet(&sample, &[])).peer(seeder.addr).start();
    mount.wait_entry(&sample.name, MINUTE);
    eprintln!("from the start to 6.7 MB of metadata: {:?}", mount.age());
    reads_right(&mount, &sample);
    mount.stop();
}
