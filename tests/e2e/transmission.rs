//! transmission-daemon as the seeder. It doesn't talk to loopback addresses, so it gets a host of its own.

use crate::common::{Line, Mount, Sample, transmission};
use crate::needs;
use crate::whole::check_tree;

#[test]
fn a_folder_from_transmission_reads_right() {
    needs!(Fuse, Libtorrent, Transmission, Netns);
    // Not the common tree: transmission seeds no file with a quotation mark in its name.
    let files = [
        ("a/Grüße.txt", 70_001),
        ("a/b/c", 1_000_000),
        ("empty", 0),
        ("large.bin", 20_000_000),
        ("z/日本", 1),
    ];
    let sample = Sample::folder("from transmission", &files, 64 << 10);
    let folder = tempfile::tempdir().expect("a folder");
    let line = Line::new();
    let (mut daemon, addr) = transmission(&line.far, &sample, Some(&sample.data), folder.path(), &[]);
    let mount = Mount::sample(&sample).inside(&line.near).listen("0.0.0.0:0").peer(addr).start();
    check_tree(&mount, &sample);
    assert!(daemon.is_running(), "{}", daemon.output());
    mount.stop();
}
