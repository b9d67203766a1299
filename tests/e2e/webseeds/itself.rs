//! The tests' own webseed does what its acts say: looked at over plain TCP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::MINUTE;
use super::server::{Act, Server};
use crate::common::{Sample, wait_until};
use crate::needs;

/// Silence for so long counts as hanging.
const SILENCE: Duration = Duration::from_millis(600);
/// What isn't silence.
const PAUSE: Duration = Duration::from_millis(30);

/// How a connection went on after what came.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Open,
}

/// What came for a request.
struct Came {
    head: String,
    body: Vec<u8>,
    ended: Ended,
}

fn get(url: &str, range: &str) -> Came {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = TcpStream::connect(host).expect("it listens");
    stream.set_read_timeout(Some(SILENCE)).expect("a time-out");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nRange: {range}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let (mut raw, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ended::Closed,
            Ok(got) => raw.extend_from_slice(&buffer[..got]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break Ended::Open,
            Err(_) => break Ended::Closed,
        }
    };
    let end = raw.windows(4).position(|end| end == b"\r\n\r\n").map_or(raw.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&raw[..end]).to_lowercase();
    Came { head, body: raw.split_off(end), ended }
}

#[test]
fn each_act_does_what_it_says() {
    use Ended::{Closed, Open};
    needs!(Libtorrent);
    let sample = Sample::small();
    let truth = std::fs::read(sample.source()).expect("the sample");
    let (from, length) = (1_000_000_usize, 100_000_usize);
    let part = &truth[from..from + length];
    let said = format!("content-range: bytes {from}-{}/{}\r\n", from + length - 1, truth.len());
    let count = format!("content-length: {length}\r\n");
    let server = Server::start();
    let check = |act: Act, words: &[&str], body: &dyn Fn(&[u8]) -> bool, ended: Ended| {
        let told = act.clone();
        let url = server.serve("seed", &sample, move |_| told.clone()) + &sample.name;
        let came = get(&url, &format!("bytes={from}-{}", from + length - 1));
        for word in words {
            assert!(came.head.contains(word), "{act:?}: no \"{word}\" in {}", came.head);
        }
        assert!(body(&came.body), "{act:?}: {} bytes", came.body.len());
        assert_eq!(came.ended, ended, "{act:?}");
    };
    let right = |body: &[u8]| body == part;
    check(Act::Serve, &["206 partial", &said, &count], &right, Open);
    check(Act::Late(PAUSE), &["206 partial", &said, &count], &right, Open);
    check(Act::status(410), &["410 gone"], &<[u8]>::is_empty, Open);
    check(Act::later(503, 7), &["503 ", "retry-after: 7\r\n"], &<[u8]>::is_empty, Open);
    check(Act::redirect(302, "/x"), &["302 ", "location: /x\r\n"], &<[u8]>::is_empty, Open);
    check(Act::Whole, &["200 ok"], &|body| body == truth, Open);
    check(Act::Says(Some("bytes 0-9/10".into())), &["206 ", "content-range: bytes 0-9/10\r\n"], &right, Open);
    let half = format!("content-length: {}\r\n", length / 2);
    check(Act::Half, &["206 ", &half], &|body| body == &part[..length / 2], Open);
    let double = format!("content-length: {}\r\n", 2 * length);
    check(Act::Double, &["206 ", &double], &|body| body == &truth[from..from + 2 * length], Open);
    check(Act::Short(70_000), &["206 ", &count], &|body| body == &part[..70_000], Closed);
    let more = |body: &[u8]| body.starts_with(part) && body.len() > length;
    check(Act::Long, &["206 ", &count], &more, Closed);
    let wrong = |body: &[u8]| {
        body.len() == length
            && body.chunks_exact(16 << 10).zip(part.chunks_exact(16 << 10)).all(|(one, other)| one != other)
    };
    check(Act::Corrupt, &["206 ", &count], &wrong, Open);
    check(Act::Encoded("gzip"), &["206 ", "content-encoding: gzip\r\n"], &right, Open);
    let packed = |body: &[u8]| {
        let mut gzip = std::process::Command::new("gzip");
        gzip.arg("-dc").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut gzip = gzip.spawn().expect("gzip");
        let mut stdin = gzip.stdin.take().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(body));
            gzip.wait_with_output().is_ok_and(|unpacked| unpacked.status.success() && unpacked.stdout == part)
        })
    };
    check(Act::Gzip, &["206 ", &said, "content-encoding: gzip\r\n"], &packed, Open);
    check(Act::Chunked, &["206 ", "transfer-encoding: chunked\r\n"], &|body| body.len() > length, Open);
    check(Act::Hang, &[], &<[u8]>::is_empty, Open);
    check(Act::Stall(70_000), &["206 ", &count], &|body| body == &part[..70_000], Open);
    check(Act::Trickle(50_000, PAUSE), &["206 ", &count], &right, Open);
    check(Act::Close(true), &["206 ", "connection: close\r\n"], &right, Closed);
    check(Act::Close(false), &["206 ", &count], &right, Closed);
    check(Act::Reset, &[], &<[u8]>::is_empty, Closed);
    check(Act::Garbage, &["ssh-2.0"], &<[u8]>::is_empty, Closed);
    check(Act::EndlessHead, &["206 ", "x-19999: "], &<[u8]>::is_empty, Closed);
    // Hung requests are over when their connections are.
    wait_until("nothing under way", MINUTE, || server.under_way() == 0);
    assert!(server.peak() >= 1 && server.peak_of("seed") >= 1);
}

#[test]
fn pieces_come_by_bep_17() {
    needs!(Libtorrent);
    let sample = Sample::small();
    let truth = std::fs::read(sample.source()).expect("the sample");
    let server = Server::start();
    let base = server.serve("seed", &sample, |_| Act::Serve);
    let hash = sample.v1.clone().expect("a v1 hash");
    let hash: String =
        hash.as_bytes().chunks(2).map(|two| format!("%{}", String::from_utf8_lossy(two))).collect();
    let url = format!("{}?info_hash={hash}&piece=3&ranges=100-299", base.trim_end_matches('/'));
    let came = get(&url, "none");
    let begin = 3 * sample.piece_length as usize;
    assert!(came.head.starts_with("http/1.1 200"), "{}", came.head);
    assert!(came.body == truth[begin + 100..begin + 300], "{} bytes", came.body.len());
    assert_eq!(server.asked()[0].path, "");
}
