//! The end: with readers waiting, under load, twice, by each of its signals (rows F3, O6, O7).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Mount, Proc, Reader, Sample, Seeder, Stops, Tracker, is_mounted};
use crate::needs;

/// The program's own deadline is 10 s; a little for the kernel.
const DEADLINE: Duration = Duration::from_secs(12);

/// SIGTERM with 50 readers waiting: they end with an error, the mount is gone, the exit code is 0.
fn with_fifty_readers(sample: &Sample, cache: &std::path::Path) {
    let mut mount = Mount::sample(sample).cache(cache).start();
    let path = mount.path(&sample.name);
    let mut readers: Vec<_> = (0..20).map(|_| Proc::start("cat", [&path])).collect();
    readers.push(Reader::many(&path, 29, 256 << 10));
    readers.push(Reader::fault(&path, 5 << 20));
    readers[..20].iter_mut().for_each(Proc::wait_parked);
    readers[20].wait_all_parked(29);
    readers[21].wait_faulting();
    mount.signal(Signal::SIGTERM);
    let took = mount.clean_end(DEADLINE);
    eprintln!("from SIGTERM with 50 waiting readers to the end: {took:?}");
    for reader in &mut readers {
        reader.ended(DEADLINE);
    }
    let said = readers[20].output();
    assert!(said.contains("done EIO=29"), "each read failed with EIO: {said}");
}

#[test]
fn f3_sigterm_with_fifty_waiting_readers_twice_in_a_row() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let cache = tempfile::tempdir().expect("a folder");
    with_fifty_readers(&sample, cache.path());
    with_fifty_readers(&sample, cache.path());
}

#[test]
fn o7_sigterm_under_load_twice() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::big();
    let seeder = Seeder::with(&sample, "127.0.0.2:0", &["--upload-limit", "20000000"]);
    // It knows us, and doesn't answer when it is told that we leave: so the first signal's end takes two seconds.
    let tracker = Tracker::start(&[]);
    let told = |event: &str| tracker.announces().iter().any(|announce| announce.event == event);
    let url = tracker.http_url();
    let mut mount = Mount::sample(&sample).peer(seeder.addr).args(&["--tracker", &url]).start();
    let path = mount.path(&sample.name);
    let mut readers: Vec<_> = (0..8).map(|_| Proc::start("sha256sum", [&path])).collect();
    mount.wait_tracker();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = Stops::new(&stop, mount.pid());
        scope.spawn(|| {
            // Errors are the end of the mount: then there is nothing left to stat.
            while !stop.load(Ordering::Relaxed) && path.metadata().is_ok() {
                std::thread::yield_now();
            }
        });
        crate::common::wait_until("some bytes", DEADLINE, || {
            std::os::unix::fs::MetadataExt::blocks(&path.metadata().expect("stat")) > 4_096
        });
        tracker.fall_silent();
        mount.signal(Signal::SIGTERM);
        let start = Instant::now();
        // Two that come at once are one: the second comes when the first has been heard.
        crate::common::wait_until("the tracker to be told", DEADLINE, || told("stopped"));
        mount.signal(Signal::SIGTERM);
        let status = mount.exited(DEADLINE);
        eprintln!("from the first of two SIGTERM under load to the end: {:?}", start.elapsed());
        assert_eq!(status.code(), Some(130), "{}", mount.log());
    });
    assert!(mount.log().contains("a second signal: leaving at once"), "{}", mount.log());
    assert!(!is_mounted(mount.point()));
    for reader in &mut readers {
        reader.ended(DEADLINE);
    }
}

#[test]
fn each_signal_that_ends_the_program_unmounts() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut mount = Mount::sample(&sample).start();
        mount.signal(signal);
        let took = mount.clean_end(DEADLINE);
        assert!(took < Duration::from_secs(5), "{signal}, with nobody waiting: {took:?}");
    }
}

#[test]
fn an_open_file_does_not_hold_up_the_end() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mut mount = Mount::sample(&sample).start();
    let held = std::fs::File::open(mount.path(&sample.name)).expect("opens");
    mount.signal(Signal::SIGTERM);
    mount.clean_end(DEADLINE);
    let error =
        std::os::unix::fs::FileExt::read_at(&held, &mut [0; 10], 0).expect_err("nobody is there to answer");
    assert!([Some(libc::EIO), Some(libc::ENOTCONN)].contains(&error.raw_os_error()), "{error}");
}

#[test]
fn an_unmount_from_outside_ends_the_program() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mut mount = Mount::sample(&sample).start();
    let program = if nix::unistd::geteuid().is_root() { "umount" } else { "fusermount3" };
    let args: &[&str] = if program == "umount" { &[] } else { &["-u"] };
    let point = mount.point().to_str().expect("UTF-8").to_owned();
    Proc::start(program, args.iter().copied().chain([point.as_str()])).success(DEADLINE);
    assert!(!is_mounted(mount.point()));
    mount.clean_end(DEADLINE);
}

#[test]
fn a_dead_mount_of_our_own_is_cleared_at_the_start() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let mut first = Mount::sample(&sample).start();
    first.signal(Signal::SIGKILL);
    first.exited(DEADLINE);
    assert!(is_mounted(first.point()), "a killed program leaves a dead mount");
    let point = first.point().to_str().expect("UTF-8").to_owned();
    let mut command =
        crate::common::torrentfs(["mount", "--no-dht", "--listen", "127.0.0.1:0", "--cache-dir"]);
    command.arg(first.cache()).arg(&sample.torrent).arg(&point);
    let mut second = Proc::spawn(command);
    crate::common::wait_until("the new mount", DEADLINE, || {
        assert!(second.is_running(), "{}", second.output());
        std::fs::metadata(first.path(&sample.name)).is_ok_and(|found| found.len() == sample.total)
    });
    second.signal(Signal::SIGTERM);
    second.success(DEADLINE);
    assert!(!is_mounted(first.point()));
}
