//! Both directions against each other over loopback, and against peers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::net::transport::Kind;
use crate::net::udp::SharedUdp;
use crate::net::utp;
use crate::peer::mse::{self as codec, Pads};
use crate::peer::wire::Reserved;
use crate::sync::tasks::TaskScope;

const TORRENT: [u8; 20] = *b"the torrent's hash..";
const OTHER: [u8; 20] = *b"another one's hash..";

fn shake(info_hash: [u8; 20], peer_id: &[u8; 20]) -> Handshake {
    Handshake { reserved: Reserved::new().with_fast(), info_hash, peer_id: *peer_id }
}

fn ours() -> Handshake {
    shake(TORRENT, b"-XX0000-the dialler.")
}

fn theirs() -> Handshake {
    shake(TORRENT, b"-XX0000-the dialled.")
}

fn known(name: &[u8; 20]) -> Option<[u8; 20]> {
    let all = [OTHER, TORRENT];
    codec::find(name, &all.map(|torrent| codec::obscured(&torrent))).and_then(|place| all.get(place).copied())
}

/// What `encryption` says is overruled for each dial.
fn ways() -> Ways {
    Ways { sockets: Sockets::default(), utp: None, encryption: Policy::Prefer }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Takes connections until one comes to something; says how many there were, and what that one was.
async fn take(listener: &TcpListener, policy: Policy) -> (u32, TcpStream, Handshake, Line) {
    let mut count = 0;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        count += 1;
        if let Ok((said, mut line)) = greet(&mut stream, policy, known).await {
            answer(&mut stream, &mut line, &theirs()).await.unwrap();
            return (count, stream, said, line);
        }
    }
}

/// Writes or reads through a line, as a session does.
async fn say(stream: &mut (impl AsyncWrite + Unpin), line: &mut Line, text: &[u8]) {
    let mut bytes = text.to_vec();
    line.seal(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
}

async fn hear(stream: &mut (impl AsyncRead + Send + Unpin), line: &mut Line, len: usize) -> Vec<u8> {
    let mut input = std::mem::take(&mut line.early);
    while input.len() < len {
        let had = input.len();
        read_some(stream, &mut input).await.unwrap();
        line.open(&mut input[had..]);
    }
    input.to_vec()
}

#[tokio::test]
async fn policies_meet_over_loopback() {
    use Policy::{Off, Prefer, Require};
    let rows = [
        (Off, Off, Some((1, Cover::Plain))),
        (Off, Prefer, Some((1, Cover::Plain))),
        (Off, Require, None),
        (Prefer, Off, Some((2, Cover::Plain))),
        (Prefer, Prefer, Some((1, Cover::Handshake))),
        (Prefer, Require, Some((1, Cover::Full))),
        (Require, Off, None),
        (Require, Prefer, Some((1, Cover::Full))),
        (Require, Require, Some((1, Cover::Full))),
    ];
    for (dials, answers, want) in rows {
        let (listener, addr) = listener().await;
        let (ours, ways) = (ours(), ways());
        let (dialled, taken) = match want {
            Some(_) => {
                let (dialled, taken) =
                    tokio::join!(dial(addr, &ways, &ours, dials, Kind::Tcp), take(&listener, answers));
                (dialled, Some(taken))
            }
            None => {
                // Nobody is ever let in.
                let failed = async {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    assert!(greet(&mut stream, answers, known).await.is_err());
                };
                let (dialled, ()) = tokio::join!(dial(addr, &ways, &ours, dials, Kind::Tcp), failed);
                (dialled, None)
            }
        };
        assert_eq!(dialled.is_ok(), want.is_some(), "{dials:?} dials {answers:?}");
        let (Ok(mut near), Some((count, mut stream, said, mut line))) = (dialled, taken) else { continue };
        assert_eq!(Some((count, line.cover())), want, "{dials:?} dials {answers:?}");
        assert_eq!(near.line.cover(), line.cover());
        assert_eq!((said, near.theirs), (ours, theirs()));
        say(&mut near.stream, &mut near.line, b"a question").await;
        assert_eq!(hear(&mut stream, &mut line, 10).await, b"a question");
        say(&mut stream, &mut line, b"an answer").await;
        assert_eq!(hear(&mut near.stream, &mut near.line, 9).await, b"an answer");
    }
}

/// A port that speaks uTP; it ends with the scope.
fn utp_port(scope: &TaskScope) -> (SocketAddr, Arc<dyn Transport>, utp::Incoming) {
    let socket = Sockets::default().udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    let udp = SharedUdp::new(Some(socket), None);
    let (dials, incoming) =
        utp::Socket::start(scope, udp.clone(), utp::Limits::default(), Default::default());
    udp.run(scope);
    (addr, dials, incoming)
}

#[tokio::test]
async fn who_refuses_tcp_is_reached_over_utp_by_every_policy() {
    let scope = TaskScope::root();
    let (_, dials, _) = utp_port(&scope);
    for (policy, cover) in
        [(Policy::Off, Cover::Plain), (Policy::Prefer, Cover::Handshake), (Policy::Require, Cover::Full)]
    {
        let (addr, _, mut incoming) = utp_port(&scope);
        let ways = Ways { utp: Some(dials.clone()), ..ways() };
        let ours = ours();
        let far = async {
            let mut stream = incoming.accept().await.unwrap();
            let taken = if policy == Policy::Off { Policy::Prefer } else { policy };
            let (said, mut line) = greet(&mut stream, taken, known).await.unwrap();
            answer(&mut stream, &mut line, &theirs()).await.unwrap();
            assert_eq!(said, ours);
            say(&mut stream, &mut line, b"a bitfield").await;
            stream
        };
        let (near, _far) = tokio::join!(dial(addr, &ways, &ours, policy, Kind::Tcp), far);
        let mut near = near.unwrap();
        assert_eq!((near.stream.kind(), near.line.cover()), (Kind::Utp, cover));
        assert!(near.stream.socket().is_none());
        assert_eq!(hear(&mut near.stream, &mut near.line, 10).await, b"a bitfield");
    }
    scope.cancel();
    assert!(scope.join(Duration::from_secs(60)).await.is_empty());
}

#[tokio::test]
async fn who_answers_over_tcp_is_not_asked_over_utp() {
    let scope = TaskScope::root();
    let (_, dials, _) = utp_port(&scope);
    let (listener, addr) = listener().await;
    let heard = tokio::net::UdpSocket::bind(addr).await.unwrap();
    let (ours, ways) = (ours(), Ways { utp: Some(dials), ..ways() });
    let (near, _far) =
        tokio::join!(dial(addr, &ways, &ours, Policy::Off, Kind::Tcp), take(&listener, Policy::Off));
    let near = near.unwrap();
    assert_eq!(near.stream.kind(), Kind::Tcp);
    assert!(near.stream.socket().is_some());
    assert!(heard.try_recv(&mut [0; 64]).is_err(), "nothing was said over UDP");
    scope.cancel();
}

#[tokio::test]
async fn what_comes_right_behind_the_handshake_isnt_lost() {
    for policy in [Policy::Off, Policy::Prefer, Policy::Require] {
        let (listener, addr) = listener().await;
        let far = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let taken = match policy {
                Policy::Off => Policy::Prefer,
                other => other,
            };
            let (_, mut line) = greet(&mut stream, taken, known).await.unwrap();
            // In one segment.
            let mut bytes = theirs().encode().to_vec();
            bytes.extend(b"and a bitfield");
            line.seal(&mut bytes);
            stream.write_all(&bytes).await.unwrap();
            stream
        };
        let (ours, ways) = (ours(), ways());
        let (near, _far) = tokio::join!(dial(addr, &ways, &ours, policy, Kind::Tcp), far);
        let mut near = near.unwrap();
        assert_eq!(hear(&mut near.stream, &mut near.line, 14).await, b"and a bitfield", "{policy:?}");
    }
}

#[tokio::test]
async fn a_handshake_for_another_torrent_than_was_encrypted_for_is_refused() {
    let (mut near, mut far) = tokio::io::duplex(4096);
    let lying = async {
        // It is read with the key of one torrent, and names the other.
        let other = shake(OTHER, b"-XX0000-the dialler.");
        let (mut side, out) =
            codec::Initiator::new(TORRENT, Policy::Require, &other.encode(), [9; 20], Pads::default());
        near.write_all(&out).await.unwrap();
        let (mut input, mut out) = (BytesMut::new(), Vec::new());
        while !side.answered() {
            read_some(&mut near, &mut input).await.unwrap();
            side.feed(&mut input, &mut out).unwrap();
        }
        near.write_all(&out).await.unwrap();
        near
    };
    let (greeted, _near) = tokio::join!(greet(&mut far, Policy::Prefer, known), lying);
    assert!(matches!(greeted, Err(ConnectError::OtherTorrent)), "{greeted:?}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_waited_for_only_so_long() {
    for (policy, patience, again) in
        [(Policy::Prefer, timeouts::PEER_KEY, true), (Policy::Require, timeouts::PEER_HANDSHAKE, true)]
    {
        let (mut near, _far) = tokio::io::duplex(4096);
        let begun = Instant::now();
        let Err(failed) = mse::initiate(&mut near, &ours(), policy).await else { panic!("with whom?") };
        assert!(matches!(failed.error, ConnectError::TimedOut));
        assert_eq!(failed.plain_may_do, again);
        assert!(begun.elapsed() >= patience && begun.elapsed() < patience + Duration::from_secs(1));
    }
    let (mut near, _far) = tokio::io::duplex(4096);
    let begun = Instant::now();
    assert!(matches!(greet(&mut near, Policy::Prefer, known).await, Err(ConnectError::TimedOut)));
    assert!(begun.elapsed() < timeouts::PEER_HANDSHAKE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_byte_a_second_is_no_progress() {
    for first in [b"\x13BitTorrent protocol".to_vec(), vec![0x77]] {
        let (mut near, mut far) = tokio::io::duplex(4096);
        let trickle = async {
            for byte in first.into_iter().chain(std::iter::repeat(0x77)) {
                if far.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let begun = Instant::now();
        let greeted = async {
            let greeted = greet(&mut near, Policy::Prefer, known).await;
            let took = begun.elapsed();
            drop(near);
            (greeted, took)
        };
        let ((greeted, took), ()) = tokio::join!(greeted, trickle);
        assert!(matches!(greeted, Err(ConnectError::TimedOut)), "{greeted:?}");
        assert!(took < timeouts::PEER_HANDSHAKE + Duration::from_secs(1));
    }
}

#[tokio::test]
async fn who_shows_no_key_is_asked_again_and_who_shows_one_is_not() {
    // Closes at once; speaks plain; shows a key and closes; shows a key and garbage behind it.
    let key = {
        let (_, key) =
            codec::Initiator::new(TORRENT, Policy::Prefer, &ours().encode(), [3; 20], Pads::default());
        key
    };
    let garbage = [&key[..], &[1; 600]].concat();
    let plain = theirs().encode().to_vec();
    for (says, again) in [(Vec::new(), true), (plain, true), (key, false), (garbage, true)] {
        let (mut near, mut far) = tokio::io::duplex(8192);
        let far = async {
            let mut input = BytesMut::new();
            read_some(&mut far, &mut input).await.unwrap();
            far.write_all(&says).await.unwrap();
            drop(far);
        };
        let ours = ours();
        let (failed, ()) = tokio::join!(mse::initiate(&mut near, &ours, Policy::Prefer), far);
        let Err(failed) = failed else { panic!("with whom?") };
        assert_eq!(failed.plain_may_do, again, "{}", failed.error);
    }
}

#[tokio::test]
async fn who_takes_tcp_only_to_close_it_is_reached_over_utp_the_next_time() {
    let scope = TaskScope::root();
    let (_, dials, _) = utp_port(&scope);
    let (addr, _, mut incoming) = utp_port(&scope);
    let listener = TcpListener::bind(addr).await.unwrap();
    let (ours, ways) = (ours(), Ways { utp: Some(dials), ..ways() });
    let mut past = Past::default();
    let closes = async { drop(listener.accept().await.unwrap()) };
    let (failed, ()) = tokio::join!(dial(addr, &ways, &ours, Policy::Off, past.first(addr)), closes);
    assert!(failed.is_err());
    past.dialled(addr, None);
    let far = async {
        let mut stream = incoming.accept().await.unwrap();
        let (_, mut line) = greet(&mut stream, Policy::Off, known).await.unwrap();
        answer(&mut stream, &mut line, &theirs()).await.unwrap();
        stream
    };
    let (near, _far) = tokio::join!(dial(addr, &ways, &ours, Policy::Off, past.first(addr)), far);
    assert_eq!(near.unwrap().stream.kind(), Kind::Utp);
    scope.cancel();
}

#[test]
fn what_came_of_a_dial_is_remembered_for_a_while() {
    let at = |port: u16| SocketAddr::from(([192, 0, 2, 7], port));
    let mut past = Past::default();
    past.dialled(at(1), Some((Cover::Plain, Kind::Tcp)));
    past.dialled(at(2), Some((Cover::Handshake, Kind::Utp)));
    assert_eq!(past.policy(at(1), Policy::Prefer), Policy::Off);
    assert_eq!(past.policy(at(1), Policy::Require), Policy::Require, "a memory is no permission");
    assert_eq!(past.policy(at(2), Policy::Prefer), Policy::Prefer);
    assert_eq!([1, 2, 3].map(|port| past.first(at(port))), [Kind::Tcp, Kind::Utp, Kind::Tcp]);
    // The other, after each that failed.
    for (port, first) in [(1, Kind::Utp), (1, Kind::Tcp), (2, Kind::Tcp), (2, Kind::Utp)] {
        past.dialled(at(port), None);
        assert_eq!(past.first(at(port)), first);
    }
    assert_eq!(past.policy(at(1), Policy::Prefer), Policy::Prefer);
    for port in 0..1000 {
        past.dialled(at(port), Some((Cover::Plain, Kind::Utp)));
        past.dialled(at(port), Some((Cover::Plain, Kind::Utp)));
    }
    assert_eq!((past.plain.peers.len(), past.utp.peers.len()), (Few::MOST, Few::MOST));
    assert_eq!(past.policy(at(743), Policy::Prefer), Policy::Prefer);
    assert_eq!(past.policy(at(744), Policy::Prefer), Policy::Off);
    assert_eq!([743, 744].map(|port| past.first(at(port))), [Kind::Tcp, Kind::Utp]);
}
