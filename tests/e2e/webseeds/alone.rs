//! nginx as the only source of a mounted torrent: files and folders, names, kinds of torrents, TLS, redirects; and
//! BEP 17, which nginx doesn't speak, from the tests' own server.
//!
//! What nginx was asked for is read from its access log.

use std::collections::BTreeSet;
use std::path::Path;

use super::nginx::{Certificate, Nginx, Seen};
use super::server::{Act, Server};
use super::{MINUTE, Outcome, Seeded, read, webseed};
use crate::common::{Made, Mount, Reader, Sample, TorrentKind, wait_until};
use crate::needs;
use crate::whole::check_tree;

/// What a webseed may have under way at once, and so how many connections HTTP/1.1 takes.
const PERMITS: usize = 4;

/// nginx over the folder that holds a sample's `data`.
fn nginx(sample: &Sample) -> Nginx {
    Nginx::start(above(sample))
}

fn above(sample: &Sample) -> &Path {
    sample.data.parent().expect("its folder")
}

/// A mount of a sample from these URLs alone.
fn mounted(sample: &Sample, urls: &[&str]) -> Mount {
    Mount::of(&Seeded::by(sample, urls).torrent).start()
}

/// Bytes of all its files, without what fills the gaps between them.
fn size_of(sample: &Sample) -> u64 {
    sample.files.iter().filter(|(path, _)| !path.contains("/.pad/")).map(|(_, size)| size).sum()
}

/// What nginx was asked for, once all that was read is in its log: it tells a request when it is over.
fn all_seen(nginx: &Nginx, sample: &Sample) -> Vec<Seen> {
    wait_until("the requests in the log", MINUTE, || nginx.sent() >= size_of(sample));
    nginx.seen()
}

/// Panics unless each request was for a range, was answered with it, and no more than the torrent was sent.
#[track_caller]
fn check_requests(seen: &[Seen], sample: &Sample) {
    let asked: Vec<_> = seen.iter().filter(|seen| seen.status != 499).collect();
    assert!(!asked.is_empty(), "nothing was asked for");
    for seen in &asked {
        assert_eq!(seen.status, 206, "{seen:?}");
        assert!(seen.range.is_some_and(|(_, length)| length > 0), "{seen:?}");
    }
    let sent: u64 = seen.iter().map(|seen| seen.bytes).sum();
    let size = size_of(sample);
    // Requests that were cut have sent something, too.
    assert!(sent >= size && sent <= size * 5 / 4, "{sent} bytes of {size}");
}

/// Connections are kept: there is one for each permit, however many requests, and another for each that was cut. One
/// that is still on its way back to the client's pool when the next request is made may get a companion: the pool holds
/// twice as many.
#[track_caller]
fn check_kept(nginx: &Nginx) {
    let seen = nginx.seen();
    let cut = seen.iter().filter(|seen| seen.range.is_none_or(|(_, length)| seen.bytes < length)).count();
    let connections = nginx.connections();
    assert!(
        connections <= 2 * PERMITS + cut,
        "{connections} connections, {cut} requests cut of {}",
        seen.len()
    );
}

#[test]
fn a_single_file_from_its_own_url_or_that_of_its_folder() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::small();
    for path in [format!("data/{}", sample.name), "data/".to_owned()] {
        let nginx = nginx(&sample);
        let url = nginx.url(&path);
        let mount = mounted(&sample, &[&url]);
        mount.check_sums(&sample);
        check_requests(&all_seen(&nginx, &sample), &sample);
        let seen = nginx.seen();
        assert!(seen.iter().all(|seen| seen.path == format!("/data/{}", sample.name)), "{seen:?}");
        check_kept(&nginx);
        let told = webseed(&mount, &url);
        assert!(told["downloaded"].as_u64().is_some_and(|bytes| bytes >= sample.total), "{told}");
        assert!(told["requests"].as_u64().is_some_and(|requests| requests >= seen.len() as u64), "{told}");
        assert!(told["reason"].is_null(), "{told}");
        mount.stop();
    }
}

/// Fetches 256 pieces in a way of its own; requests are for several of them each.
fn many_pieces(args: &[&str], fetch: impl FnOnce(&Mount, &Sample)) {
    let sample = Sample::file("shared.bin", 64 << 20, 256 << 10);
    let nginx = nginx(&sample);
    let seeded = Seeded::by(&sample, &[&nginx.url("data/")]);
    let mount = Mount::of(&seeded.torrent).args(args).start();
    fetch(&mount, &sample);
    let seen = all_seen(&nginx, &sample);
    eprintln!("{} requests for {} pieces", seen.len(), sample.pieces);
    check_requests(&seen, &sample);
    assert!(seen.len() < sample.pieces as usize / 2, "{} requests", seen.len());
    check_kept(&nginx);
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_request_is_for_many_pieces_where_nobody_waits() {
    needs!(Fuse, Libtorrent, Nginx, Attr);
    many_pieces(&["--prefetch", "all"], |mount, sample| {
        let path = mount.path(&sample.name);
        wait_until("all of it", MINUTE, || mount.xattr(&path, "state").as_deref() == Some("complete"));
    });
}

#[test]
fn a_request_is_for_many_pieces_ahead_of_a_reader() {
    needs!(Fuse, Libtorrent, Nginx);
    many_pieces(&[], |mount, sample| mount.check_sums(sample));
}

#[test]
fn a_folder_with_and_without_a_slash_at_the_end_of_its_url() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::tree();
    for path in ["data", "data/"] {
        let nginx = nginx(&sample);
        let mount = mounted(&sample, &[&nginx.url(path)]);
        check_tree(&mount, &sample);
        check_requests(&all_seen(&nginx, &sample), &sample);
        check_kept(&nginx);
        mount.stop();
    }
}

#[test]
fn names_that_mean_something_in_a_url() {
    needs!(Fuse, Libtorrent, Nginx);
    let files = [
        ("a folder/b c.bin", 100_001),
        ("Grüße/日本語 🎉.bin", 70_000),
        ("hash#tag.bin", 50_000),
        ("what?.bin", 50_001),
        ("q?a=b&c=d#e.bin", 20_000),
        ("100%.bin", 50_002),
        ("%41.bin", 50_003),
        ("%2e%2e/%2F.bin", 10_000),
        ("plus+and;semi,colon:at@.bin", 50_004),
        ("[brackets]{braces}.bin", 30_000),
        ("'single' \"double\" `back`.bin", 30_001),
        ("pipe|caret^less<more>.bin", 30_002),
        ("...dots..bin", 10_001),
        (" leading and trailing /space .bin", 10_002),
        ("http://not a url", 10_003),
        ("empty", 0),
    ];
    // The torrent's own name is a part of the path as well.
    let sample = Sample::folder("odd #1? 50% über", &files, 64 << 10);
    let nginx = nginx(&sample);
    let mount = mounted(&sample, &[&nginx.url("data/")]);
    mount.check_sums(&sample);
    check_requests(&all_seen(&nginx, &sample), &sample);
    let seen: BTreeSet<_> = nginx.seen().into_iter().map(|seen| seen.path).collect();
    for (file, size) in files {
        let path = format!("/data/{}/{file}", sample.name).replace("//", "/");
        let asked = seen.iter().any(|seen| seen.replace("//", "/") == path);
        assert_eq!(asked, size > 0, "{file}: {seen:?}");
    }
    mount.stop();
}

/// Row W9: files that end inside a piece. The piece takes a request of each.
#[test]
fn w9_two_files_of_500_kb_in_pieces_of_2_mb() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::folder("pair", &[("one.bin", 500_000), ("two.bin", 500_000)], 2 << 20);
    assert_eq!(sample.pieces, 1);
    let nginx = nginx(&sample);
    let mount = mounted(&sample, &[&nginx.url("data/")]);
    assert_eq!(read(&mount, &sample, "pair/two.bin", 499_000, 1_000), Outcome::Right);
    mount.check_sums(&sample);
    let seen = all_seen(&nginx, &sample);
    check_requests(&seen, &sample);
    for file in ["one.bin", "two.bin"] {
        let of_file = seen.iter().filter(|seen| seen.path.ends_with(file));
        let inside =
            of_file.clone().all(|seen| seen.range.is_some_and(|(from, length)| from + length <= 500_000));
        assert!(inside && of_file.count() > 0, "{seen:?}");
    }
    mount.stop();
}

fn of_kind(kind: TorrentKind) {
    let sample = Sample::tree_of(kind);
    let nginx = nginx(&sample);
    let mount = mounted(&sample, &[&nginx.url("data/")]);
    check_tree(&mount, &sample);
    let seen = nginx.seen();
    // Pad files are nowhere: who asked for one got a 404.
    let strange: Vec<_> = seen.iter().filter(|seen| ![206, 499].contains(&seen.status)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(seen.iter().all(|seen| !seen.path.contains("/.pad/")), "a pad file was asked for");
    mount.stop();
}

#[test]
fn a_v1_torrent_from_nginx_alone() {
    needs!(Fuse, Libtorrent, Nginx);
    of_kind(TorrentKind::V1);
}

#[test]
fn a_v2_torrent_from_nginx_alone() {
    needs!(Fuse, Libtorrent, Nginx);
    of_kind(TorrentKind::V2);
}

#[test]
fn a_hybrid_torrent_from_nginx_alone() {
    needs!(Fuse, Libtorrent, Nginx);
    of_kind(TorrentKind::Hybrid);
}

#[test]
fn a_v2_and_a_hybrid_torrent_of_one_file() {
    needs!(Fuse, Libtorrent, Nginx);
    for kind in [TorrentKind::V2, TorrentKind::Hybrid] {
        // Its last piece isn't whole, nor is its last block.
        let sample = Sample::file_of(kind, "one.bin", 3_000_001, 64 << 10);
        for path in [format!("data/{}", sample.name), "data/".to_owned()] {
            let nginx = nginx(&sample);
            let mount = mounted(&sample, &[&nginx.url(&path)]);
            mount.check_sums(&sample);
            let seen = all_seen(&nginx, &sample);
            check_requests(&seen, &sample);
            assert!(seen.iter().all(|seen| seen.path == "/data/one.bin"), "{seen:?}");
            mount.stop();
        }
    }
}

#[test]
fn pad_files_are_never_requested() {
    needs!(Fuse, Nginx);
    let content = |seed: u64, size| Made::File(crate::common::bytes_at(seed, 0, size), false);
    let entries = [
        ("first.bin", content(1, 100_000)),
        ("second.bin", content(2, 65_536)),
        ("third.bin", content(3, 1)),
        ("fourth.bin", content(4, 300_000)),
    ];
    let sample = Sample::of("padded", &entries, 64 << 10, None);
    let nginx = nginx(&sample);
    let mount = mounted(&sample, &[&nginx.url("data/")]);
    mount.check_sums(&sample);
    let seen = nginx.seen();
    assert!(seen.iter().all(|seen| seen.status == 206 && !seen.path.contains("/.pad/")), "{seen:?}");
    mount.stop();
}

#[test]
fn what_is_not_read_is_not_asked_for() {
    needs!(Fuse, Libtorrent, Nginx);
    let sample = Sample::small();
    let nginx = nginx(&sample);
    let mount = mounted(&sample, &[&nginx.url("data/")]);
    let path = mount.path(&sample.name);
    std::fs::metadata(&path).expect("stat");
    let (piece, length) = (20, sample.piece_length);
    Reader::pread(&path, piece * length, 100).success(MINUTE);
    // nginx tells a request when it is over.
    wait_until("the request in the log", MINUTE, || nginx.sent() >= length);
    for seen in nginx.seen() {
        let (from, count) = seen.range.expect("a range");
        assert!(from >= piece * length && from + count <= (piece + 1) * length, "{seen:?}");
    }
    mount.stop();
}

#[test]
fn https_with_http_2_and_a_certificate_that_is_trusted() {
    needs!(Fuse, Libtorrent, Nginx, Openssl);
    let sample = Sample::small();
    let certificate = Certificate::make();
    let nginx = Nginx::secure(above(&sample), &certificate);
    let seeded = Seeded::by(&sample, &[&nginx.url("data/")]);
    let mount = Mount::of(&seeded.torrent).env("SSL_CERT_FILE", certificate.authority()).start();
    mount.check_sums(&sample);
    let seen = all_seen(&nginx, &sample);
    check_requests(&seen, &sample);
    assert!(seen.iter().all(|seen| seen.protocol == "HTTP/2.0"), "{seen:?}");
    // All requests share a connection; one more may have been begun before it was known to be HTTP/2.
    check_kept(&nginx);
    mount.stop();
}

#[test]
fn redirects_are_remembered_per_file() {
    needs!(Fuse, Libtorrent, Nginx);
    let files = [("a b.bin", 3_000_000), ("c?#%.bin", 3_000_000), ("d.bin", 3_000_000), ("e.bin", 3_000_000)];
    let sample = Sample::folder("moved", &files, 64 << 10);
    let nginx = nginx(&sample);
    let (server, to) = (Server::start(), nginx.url("data/"));
    // Each file by another kind of redirect; in small pieces, so that each file takes several requests.
    let url = server.serve("old", &sample, move |asked| {
        let status =
            [301, 302, 307, 308][files.iter().position(|(name, _)| asked.path.ends_with(name)).unwrap_or(0)];
        let escaped =
            asked.path.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20");
        Act::redirect(status, format!("{to}{escaped}"))
    });
    let mount = mounted(&sample, &[&url]);
    for (file, size) in files {
        for offset in (0..size).step_by(500_000) {
            assert_eq!(read(&mount, &sample, &format!("moved/{file}"), offset, 1_000), Outcome::Right);
        }
        let asked = server.asked().into_iter().filter(|asked| asked.path.ends_with(file)).count();
        let served = || nginx.seen().into_iter().filter(|seen| seen.path.ends_with(file)).count();
        wait_until(&format!("six requests for {file}"), MINUTE, || served() >= 6);
        // Those that were under way when the first answer came have been redirected as well.
        assert!((1..=PERMITS).contains(&asked), "{file}: redirected {asked} times");
    }
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn pieces_by_bep_17() {
    needs!(Fuse, Libtorrent);
    let pair = |kind| {
        let files = [("one.bin", 500_000), ("two.bin", 500_000), ("three.bin", 65_536)];
        Sample::folder_of(kind, "pair", &files, 64 << 10)
    };
    for sample in [
        Sample::small(),
        pair(TorrentKind::V1),
        pair(TorrentKind::V2),
        pair(TorrentKind::Hybrid),
        Sample::file_of(TorrentKind::V2, "one.bin", 3_000_001, 64 << 10),
    ] {
        let server = Server::start();
        let base = server.serve("seed", &sample, |_| Act::Serve);
        let url = base.trim_end_matches('/').to_owned();
        let mount = Mount::of(&Seeded::by_pieces(&sample, &[&url]).torrent).start();
        mount.check_sums(&sample);
        let asked = server.asked();
        assert!(
            !asked.is_empty() && asked.iter().all(|asked| asked.query.contains("info_hash=")),
            "{asked:?}"
        );
        let size = size_of(&sample);
        assert!(webseed(&mount, &url)["downloaded"].as_u64().is_some_and(|bytes| bytes >= size));
        mount.stop();
    }
}
