//! Each fault of a webseed once: the right bytes, or EIO at the read's time-out; the reason in the status; and no more
//! requests than it takes.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::nginx::{Certificate, Nginx};
use super::server::{Act, Asked, Server};
use super::{MINUTE, Outcome, Seeded, read, wait_reason, wait_state, webseed};
use crate::common::{Mount, Proc, Sample, Seeder, cpu, wait_until};
use crate::needs;
use crate::no_peer::free_port;

const MIB: u64 = 1 << 20;
/// What a webseed may have under way at once, and a host.
const PERMITS: usize = 4;
const HOST_PERMITS: usize = 8;
/// How long a read waits where nothing is to come.
const READ: [&str; 2] = ["--read-timeout", "2s"];
/// The same where the webseed's own time-out is to come first: 15 s for an answer, 10 s for the rest.
const LONG_READ: [&str; 2] = ["--read-timeout", "20s"];

/// A mount whose only source is the tests' server.
struct Alone {
    sample: Sample,
    server: Server,
    url: String,
    mount: Mount,
}

impl Alone {
    /// A file of 8 MiB in pieces of 256 KiB, whose reads wait for [`READ`] only.
    fn of(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Sample::small(), &READ, script)
    }

    /// The same, whose reads wait for [`LONG_READ`].
    fn slow(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Sample::small(), &LONG_READ, script)
    }

    /// The same, whose reads wait as long as they do by default: for what has to work in the end.
    fn patient(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Sample::small(), &[], script)
    }

    fn with(sample: Sample, args: &[&str], script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let server = Server::start();
        let url = server.serve("seed", &sample, script);
        let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).args(args).start();
        Self { sample, server, url, mount }
    }

    /// Reads 4 KiB of the sample's only file.
    #[track_caller]
    fn read(&self, offset: u64) -> Outcome {
        read(&self.mount, &self.sample, &self.sample.name, offset, 4096)
    }

    /// Nothing can be read; the status says why, in these words; and no more was asked for than that takes.
    #[track_caller]
    fn fails(self, words: &[&str], requests: usize) {
        assert_eq!(self.read(4 * MIB), Outcome::Eio);
        let told = wait_reason(&self.mount, &self.url, words);
        eprintln!("{} requests: {}", self.server.count(), told["reason"]);
        assert!(self.server.count() <= requests, "{} requests", self.server.count());
        self.stop();
    }

    /// Everything is read right in the end, with no more requests than these.
    #[track_caller]
    fn works(self, requests: usize) {
        self.mount.check_sums(&self.sample);
        eprintln!("{} requests", self.server.count());
        assert!(self.server.count() <= requests, "{} requests", self.server.count());
        self.stop();
    }

    #[track_caller]
    fn stop(self) {
        self.mount.stop();
        wait_until("nothing under way", MINUTE, || self.server.under_way() == 0);
    }
}

/// Two files, each of whole pieces, so that each is on its own.
fn two_files() -> Sample {
    Sample::folder("two", &[("one.bin", 2 * MIB), ("two.bin", 2 * MIB)], 256 << 10)
}

// ----- statuses

#[test]
fn a_200_that_begins_where_we_asked_is_used() {
    needs!(Fuse, Libtorrent);
    let alone = Alone::of(|_| Act::Whole);
    assert_eq!(alone.read(0), Outcome::Right);
    assert_eq!(alone.read(4 * MIB), Outcome::Eio);
    let told = wait_reason(&alone.mount, &alone.url, &["parts"]);
    assert_eq!(told["refused_files"], 1, "{told}");
    assert!(alone.server.count() <= 2 * PERMITS, "{} requests", alone.server.count());
    // Not all of it each time.
    assert!(alone.server.sent() < 3 * alone.sample.total, "{} bytes sent", alone.server.sent());
    alone.stop();
}

#[test]
fn a_200_with_a_small_file_is_used_from_its_middle() {
    needs!(Fuse, Libtorrent);
    let files = [("one.bin", 100_000), ("two.bin", 65_000), ("three.bin", 90_000)];
    let alone = Alone::with(Sample::folder("little", &files, 16 << 10), &READ, |_| Act::Whole);
    for file in ["little/three.bin", "little/one.bin"] {
        assert_eq!(read(&alone.mount, &alone.sample, file, 80_000, 4096), Outcome::Right);
    }
    alone.mount.check_sums(&alone.sample);
    alone.stop();
}

#[test]
fn a_status_that_is_about_one_file_costs_that_file_only() {
    needs!(Fuse, Libtorrent);
    for status in [401, 403, 404, 410, 416, 451] {
        let alone = Alone::with(two_files(), &READ, move |asked| {
            if asked.path.ends_with("two.bin") { Act::status(status) } else { Act::Serve }
        });
        assert_eq!(read(&alone.mount, &alone.sample, "two/two.bin", MIB, 4096), Outcome::Eio, "{status}");
        assert_eq!(read(&alone.mount, &alone.sample, "two/one.bin", MIB, 4096), Outcome::Right, "{status}");
        let told = webseed(&alone.mount, &alone.url);
        assert_eq!(told["refused_files"], 1, "{status}: {told}");
        let reason = wait_reason(&alone.mount, &alone.url, &[&status.to_string()]);
        assert_ne!(reason["state"], "dropped", "{status}");
        let bad = alone.server.asked().into_iter().filter(|asked| asked.path.ends_with("two.bin")).count();
        assert!(bad <= PERMITS, "{status}: asked for {bad} times");
        alone.stop();
    }
}

#[test]
fn a_retry_after_is_honoured() {
    needs!(Fuse, Libtorrent);
    for status in [429, 503] {
        let alone =
            Alone::patient(move |asked| if asked.nth == 0 { Act::later(status, 2) } else { Act::Serve });
        let told = {
            let mut reader = Proc::start("cat", [alone.mount.path(&alone.sample.name)]);
            let told = wait_reason(&alone.mount, &alone.url, &[&status.to_string()]);
            assert_eq!(told["state"], "waiting", "{told}");
            reader.finish(MINUTE);
            told
        };
        let asked = alone.server.asked();
        let first = asked[0].at;
        // What was under way at the same time is another matter.
        let early = asked[1..].iter().filter(|asked| asked.at - first < Duration::from_millis(1_900)).count();
        assert!(early < HOST_PERMITS, "{status}: {early} requests before their time, {told}");
        assert!(asked[1..].iter().any(|asked| asked.at - first >= Duration::from_millis(1_900)), "{status}");
        alone.works(200);
    }
}

#[test]
fn a_long_retry_after_fails_the_reads_and_says_so() {
    needs!(Fuse, Libtorrent);
    let alone = Alone::of(|_| Act::later(503, 3600));
    assert_eq!(alone.read(0), Outcome::Eio);
    let told = wait_reason(&alone.mount, &alone.url, &["503"]);
    assert_eq!(told["state"], "waiting", "{told}");
    assert!(told["seconds"].as_u64().is_some_and(|seconds| seconds >= 60), "{told}");
    assert!(alone.server.count() <= PERMITS, "{} requests", alone.server.count());
    alone.stop();
}

#[test]
fn w3_a_server_that_fails_is_asked_more_and_more_seldom() {
    needs!(Fuse, Libtorrent);
    for status in [500, 502, 504] {
        let alone = Alone::of(move |_| Act::status(status));
        let since = Instant::now();
        for piece in 0..3 {
            assert_eq!(alone.read(piece * MIB), Outcome::Eio);
        }
        wait_reason(&alone.mount, &alone.url, &[&status.to_string()]);
        // Doubling from half a second on, with jitter.
        let (count, took) = (alone.server.count(), since.elapsed());
        assert!(count <= 2 * PERMITS + 2 * took.as_secs() as usize, "{status}: {count} requests in {took:?}");
        alone.stop();
    }
}

#[test]
fn a_server_that_fails_for_a_while_is_used_again() {
    needs!(Fuse, Libtorrent);
    Alone::patient(|asked| if asked.nth < 5 { Act::status(500) } else { Act::Serve }).works(200);
}

// ----- bodies

#[test]
fn a_body_that_is_cut_short_is_asked_for_again() {
    needs!(Fuse, Libtorrent);
    Alone::patient(|asked| if asked.nth % 3 == 0 { Act::Short(100_000) } else { Act::Serve }).works(400);
}

#[test]
fn bodies_that_are_always_cut_short_come_to_nothing() {
    needs!(Fuse, Libtorrent);
    Alone::of(|_| Act::Short(1_000)).fails(&["sent 1000 bytes of"], 60);
}

#[test]
fn a_body_that_is_too_long_does_no_harm() {
    needs!(Fuse, Libtorrent);
    // More than was announced, and more than was asked for.
    Alone::patient(|_| Act::Long).works(400);
    let alone = Alone::of(|_| Act::Double);
    assert_eq!(alone.read(4 * MIB), Outcome::Right);
    alone.stop();
}

#[test]
fn less_than_was_asked_for_is_refused() {
    needs!(Fuse, Libtorrent);
    Alone::of(|_| Act::Half).fails(&["sends bytes", "when asked for"], PERMITS);
}

#[test]
fn a_wrong_content_range_is_not_believed() {
    needs!(Fuse, Libtorrent);
    let size = Sample::small().total;
    for (said, why) in [
        (Some("bytes 0-9/10".to_owned()), "the server's file has 10 bytes"),
        (Some("bytes 4194304-4456447/999".to_owned()), "without saying which"),
        (Some("bytes 4194304-4456447/8888888".to_owned()), "the server's file has 8888888 bytes"),
        (Some(format!("bytes 1-262144/{size}")), "when asked for"),
        (Some("bytes */8388608".to_owned()), "without saying which"),
        (Some("bytes 18446744073709551615-0/18446744073709551615".to_owned()), "without saying which"),
        (Some("nonsense".to_owned()), "without saying which"),
        (None, "without saying which"),
    ] {
        let told = said.clone();
        eprintln!("{said:?}");
        Alone::of(move |_| Act::Says(told.clone())).fails(&[why], 30);
    }
}

#[test]
fn a_compressed_body_was_not_asked_for() {
    needs!(Fuse, Libtorrent);
    // The first is as it says; for the others it is enough that they say so.
    let acts = ["br", "zstd", "deflate"].map(|how| (how, Act::Encoded(how)));
    for (how, act) in [("gzip", Act::Gzip)].into_iter().chain(acts) {
        let alone = Alone::of(move |_| act.clone());
        assert_eq!(alone.read(4 * MIB), Outcome::Eio, "{how}");
        wait_reason(&alone.mount, &alone.url, &[how]);
        let asked = alone.server.asked();
        let fine =
            asked.iter().all(|asked| asked.accepts.as_deref().is_none_or(|accepts| accepts == "identity"));
        assert!(fine && asked.len() <= 30, "{how}: {asked:?}");
        alone.stop();
    }
}

#[test]
fn a_body_without_its_length_is_taken() {
    needs!(Fuse, Libtorrent);
    Alone::patient(|_| Act::Chunked).works(400);
}

#[test]
fn a_corrupt_file_costs_that_file_and_a_second_the_webseed() {
    needs!(Fuse, Libtorrent);
    let alone = Alone::with(two_files(), &READ, |asked| {
        let good = asked.path.ends_with("one.bin") && asked.range.is_some_and(|(from, _)| from < MIB);
        if good { Act::Serve } else { Act::Corrupt }
    });
    let (mount, sample) = (&alone.mount, &alone.sample);
    assert_eq!(read(mount, sample, "two/two.bin", MIB, 4096), Outcome::Eio);
    let told = wait_reason(mount, &alone.url, &[]);
    assert_eq!((&told["refused_files"], told["state"] == "dropped"), (&1.into(), false), "{told}");
    let sent = alone.server.sent();
    assert!(sent <= 2 * MIB, "{sent} bytes for a file that is no good");
    assert_eq!(read(mount, sample, "two/one.bin", 0, 4096), Outcome::Right);
    assert_eq!(read(mount, sample, "two/one.bin", 2 * MIB - 4096, 4096), Outcome::Eio);
    wait_state(mount, &alone.url, "dropped");
    let count = alone.server.count();
    assert_eq!(read(mount, sample, "two/one.bin", MIB, 4096), Outcome::Eio);
    assert_eq!(alone.server.count(), count, "it was dropped");
    alone.stop();
}

#[test]
fn beside_a_seeder_corrupt_bodies_are_made_good() {
    needs!(Fuse, Libtorrent);
    let sample = two_files();
    let server = Server::start();
    let url = server.serve("seed", &sample, |_| Act::Corrupt);
    let mut seeder = Seeder::start(&sample);
    seeder.limit(2 * MIB);
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).peer(seeder.addr).start();
    mount.check_sums(&sample);
    assert!(server.count() > 0, "the webseed was never asked: the test shows nothing");
    assert!(!mount.log().contains("banned"), "the honest one is to blame for nothing");
    mount.stop();
}

// ----- connections and time

#[test]
fn a_server_that_closes_after_each_response() {
    needs!(Fuse, Libtorrent);
    for said in [true, false] {
        Alone::patient(move |_| Act::Close(said)).works(400);
    }
}

#[test]
fn a_connection_that_closes_without_an_answer() {
    needs!(Fuse, Libtorrent);
    Alone::of(|_| Act::Reset).fails(&[], 60);
    Alone::patient(|asked| if asked.nth % 3 == 0 { Act::Reset } else { Act::Serve }).works(400);
}

#[test]
fn what_is_no_http_is_refused() {
    needs!(Fuse, Libtorrent);
    Alone::of(|_| Act::Garbage).fails(&[], 60);
    Alone::of(|_| Act::EndlessHead).fails(&[], 60);
}

#[test]
fn no_answer_at_all() {
    needs!(Fuse, Libtorrent);
    Alone::slow(|_| Act::Hang).fails(&["no answer"], 2 * PERMITS);
}

#[test]
fn a_reader_that_goes_sooner_than_the_webseed_is_given_up_leaves_a_reason_all_the_same() {
    needs!(Fuse, Libtorrent);
    Alone::of(|_| Act::Hang).fails(&["nothing came"], 2 * PERMITS);
    Alone::of(|_| Act::Stall(1_000)).fails(&["nothing came"], 4 * PERMITS);
}

#[test]
fn a_late_answer_is_taken() {
    needs!(Fuse, Libtorrent);
    Alone::patient(|_| Act::Late(Duration::from_millis(300))).works(200);
}

#[test]
fn a_body_that_stalls_is_given_up() {
    needs!(Fuse, Libtorrent);
    Alone::slow(|_| Act::Stall(1_000)).fails(&["stopped sending"], 4 * PERMITS);
}

#[test]
fn a_body_that_stalls_once_is_asked_for_again() {
    needs!(Fuse, Libtorrent);
    Alone::patient(|asked| if asked.nth == 1 { Act::Stall(20_000) } else { Act::Serve }).works(200);
}

#[test]
fn a_body_that_trickles_is_given_up() {
    needs!(Fuse, Libtorrent);
    // Bytes that come keep a read waiting no longer: whole blocks would.
    let pace = Duration::from_millis(100);
    Alone::slow(move |_| Act::Trickle(1, pace)).fails(&["stopped sending"], 4 * PERMITS);
}

#[test]
fn nobody_listens() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let url = format!("http://127.0.0.1:{}/", free_port());
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).args(&READ).start();
    let before = cpu(mount.pid());
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    let told = wait_reason(&mount, &url, &["reached"]);
    assert!(told["requests"].as_u64().is_some_and(|requests| requests <= 20), "{told}");
    let used = cpu(mount.pid()) - before;
    assert!(used < Duration::from_secs(1), "it used the processor for {used:?} in two seconds of waiting");
    mount.stop();
}

/// A port at which connections are neither taken nor refused: its queue is full.
fn deaf() -> (socket2::Socket, Vec<TcpStream>, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    socket.listen(0).expect("it listens");
    let addr = socket.local_addr().expect("bound").as_socket().expect("an address");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        queued.push(stream);
    }
    (socket, queued, addr)
}

#[test]
fn a_connection_that_never_comes_about() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let (_socket, _queued, addr) = deaf();
    let url = format!("http://{addr}/");
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).args(&LONG_READ).start();
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    wait_reason(&mount, &url, &["connection"]);
    mount.stop();
}

#[test]
fn a_certificate_that_is_not_trusted() {
    needs!(Fuse, Libtorrent, Nginx, Openssl);
    let sample = Sample::small();
    let (certificate, other) = (Certificate::make(), Certificate::make());
    let nginx = Nginx::secure(&sample.data, &certificate);
    let url = nginx.url("");
    let seeded = Seeded::by(&sample, &[&url]);
    let mount = Mount::of(&seeded.torrent).env("SSL_CERT_FILE", other.authority()).args(&READ).start();
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    wait_reason(&mount, &url, &["secure"]);
    assert!(nginx.sent() == 0, "{:?}", nginx.seen());
    mount.stop();
}

#[test]
fn a_server_that_speaks_no_tls() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let url = server.serve("seed", &sample, |_| Act::Serve).replace("http:", "https:");
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).args(&READ).start();
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    wait_reason(&mount, &url, &["secure"]);
    assert!(server.connections() <= 60, "{} connections", server.connections());
    mount.stop();
}

// ----- redirects

#[test]
fn redirects_that_lead_nowhere() {
    needs!(Fuse, Libtorrent);
    type Lead = fn(&Asked) -> Act;
    let table: [(&str, Lead, &str); 6] = [
        ("to itself", |asked| Act::redirect(302, format!("/seed/{}", asked.path)), "redirects"),
        (
            "to and fro",
            |asked| {
                Act::redirect(
                    307,
                    if asked.path.ends_with('x') { "/seed/small.bin" } else { "/seed/small.binx" },
                )
            },
            "redirects",
        ),
        ("ever further", |asked| Act::redirect(301, format!("/seed/{}x", asked.path)), "redirects"),
        ("to no web", |_| Act::redirect(302, "file:///etc/passwd"), "redirects"),
        ("to no address", |_| Act::redirect(302, "http://:::/"), "redirects"),
        ("without a place", |_| Act::status(302), "302"),
    ];
    for (what, lead, why) in table {
        eprintln!("{what}:");
        // What was begun at the same time goes its way as well, a dozen steps at most.
        Alone::of(lead).fails(&[why], 12 * PERMITS);
    }
}

#[test]
fn a_place_that_was_remembered_and_is_gone_is_asked_for_anew() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let moved = Arc::new(AtomicBool::new(false));
    let has_moved = |moved: &Arc<AtomicBool>| {
        let moved = moved.clone();
        move || moved.load(Ordering::SeqCst)
    };
    let (for_first, for_seed) = (has_moved(&moved), has_moved(&moved));
    let first =
        server.serve("first", &sample, move |_| if for_first() { Act::status(404) } else { Act::Serve });
    let second = server.serve("second", &sample, |_| Act::Serve);
    let url = server.serve("seed", &sample, move |asked| {
        Act::redirect(302, format!("{}{}", if for_seed() { &second } else { &first }, asked.path))
    });
    let mount = Mount::of(&Seeded::by(&sample, &[&url]).torrent).start();
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Right);
    wait_until("nothing under way", MINUTE, || server.under_way() == 0);
    moved.store(true, Ordering::SeqCst);
    mount.check_sums(&sample);
    mount.stop();
}

// ----- several

#[test]
fn w1_no_more_requests_at_once_than_permits() {
    needs!(Fuse, Libtorrent, Attr);
    let sample = Sample::file("permits.bin", 64 * MIB, 256 << 10);
    let server = Server::start();
    let roots = ["a", "b", "c", "d"];
    let urls = roots.map(|root| server.serve(root, &sample, |_| Act::Late(Duration::from_millis(20))));
    // Without a reader none is cut for something urgent: the server would count it until it hears of that.
    let seeded = Seeded::by(&sample, &urls.each_ref().map(String::as_str));
    let mount = Mount::of(&seeded.torrent).args(&["--prefetch", "all"]).start();
    let path = mount.path(&sample.name);
    wait_until("all of it", MINUTE, || mount.xattr(&path, "state").as_deref() == Some("complete"));
    mount.check_sums(&sample);
    for root in roots {
        let (all, of_root) = (server.peak(), server.peak_of(root));
        assert!(of_root <= PERMITS && all <= HOST_PERMITS, "{root}: {of_root} at once, {all} in all");
    }
    assert!(server.peak() >= 2, "they were asked one at a time");
    mount.stop();
}

#[test]
fn w6_it_ends_at_once_with_16_hung_responses() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::file("hung.bin", 64 * MIB, 256 << 10);
    let servers = [1, 2, 3, 4].map(|last| Server::start_at(Ipv4Addr::new(127, 0, 9, last)));
    let urls = servers.each_ref().map(|server| server.serve("seed", &sample, |_| Act::Hang));
    let seeded = Seeded::by(&sample, &urls.each_ref().map(String::as_str));
    let mount = Mount::of(&seeded.torrent).args(&["--prefetch", "all"]).start();
    let _reader = Proc::start("cat", [mount.path(&sample.name)]);
    let hung = || servers.iter().map(Server::under_way).sum::<usize>();
    wait_until("16 hung responses", MINUTE, || hung() >= 16);
    let took = mount.stop();
    eprintln!("it ended in {took:?}");
    // Five times the second that it may take.
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    wait_until("nothing under way", MINUTE, || hung() == 0);
}

#[test]
fn urls_that_are_none_are_passed_over() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let good = server.serve("seed", &sample, |_| Act::Serve);
    let bad = [
        "",
        "nonsense",
        "http://",
        "http:///x",
        "ftp://127.0.0.1/",
        "file:///etc/",
        "http://[::1/",
        "//host/",
    ];
    let urls: Vec<_> = bad.into_iter().chain([good.as_str()]).collect();
    let mount = Mount::of(&Seeded::by(&sample, &urls).torrent).start();
    mount.check_sums(&sample);
    mount.stop();
}

#[test]
fn a_bep_17_server_that_is_busy_or_lacks_the_torrent() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let mounted = |script: fn(&Asked) -> Act, args: &[&str]| {
        let url = server.serve("seed", &sample, script).trim_end_matches('/').to_owned();
        let mount = Mount::of(&Seeded::by_pieces(&sample, &[&url]).torrent).args(args).start();
        (mount, url)
    };
    // It says in the body how many seconds to wait.
    let (mount, _) = mounted(
        |asked| if asked.nth == 0 { Act::Answer(503, Vec::new(), "1".to_owned()) } else { Act::Serve },
        &[],
    );
    mount.check_sums(&sample);
    mount.stop();
    let before = server.count();
    let (mount, url) = mounted(|_| Act::status(404), &READ);
    assert_eq!(read(&mount, &sample, &sample.name, 0, 4096), Outcome::Eio);
    wait_reason(&mount, &url, &["404"]);
    assert!(server.count() - before <= PERMITS, "{} requests", server.count() - before);
    mount.stop();
}

#[test]
fn a_good_webseed_makes_up_for_bad_ones() {
    needs!(Fuse, Libtorrent);
    let sample = Sample::small();
    let server = Server::start();
    let acts =
        [Act::Hang, Act::Reset, Act::status(500), Act::Corrupt, Act::Trickle(1, Duration::from_millis(100))];
    let mut urls: Vec<_> = (0..)
        .zip(acts)
        .map(|(number, act)| server.serve(&format!("bad{number}"), &sample, move |_| act.clone()))
        .collect();
    // At an address of its own: the bad ones may use up what their host is granted.
    let good = Server::start_at(Ipv4Addr::new(127, 0, 0, 9));
    urls.push(good.serve("good", &sample, |_| Act::Serve));
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let mount = Mount::of(&Seeded::by(&sample, &urls).torrent).start();
    mount.check_sums(&sample);
    mount.stop();
}
