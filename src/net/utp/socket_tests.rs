//! uTP over UDP sockets of this machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;
use crate::net::sockets::Sockets;

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A port with uTP on it.
struct Port {
    scope: TaskScope,
    socket: Arc<Socket>,
    incoming: Incoming,
    addr: SocketAddr,
}

fn port_at(ip: std::net::IpAddr) -> Port {
    let scope = TaskScope::root();
    let socket = Sockets::default().udp(SocketAddr::new(ip, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    let udp = match addr {
        SocketAddr::V4(_) => SharedUdp::new(Some(socket), None),
        SocketAddr::V6(_) => SharedUdp::new(None, Some(socket)),
    };
    let (socket, incoming) = Socket::start(&scope, udp.clone(), Limits::default(), Arc::default());
    udp.run(&scope);
    Port { scope, socket, incoming, addr }
}

fn port() -> Port {
    port_at(Ipv4Addr::LOCALHOST.into())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("it takes too long")
}

/// Waits until a port has so many connections.
async fn connections(port: &Port, n: usize) {
    soon(async {
        while port.socket.connections() != n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn bytes(n: usize, salt: usize) -> Vec<u8> {
    (0..n).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ (at >> 16) ^ salt) as u8).collect()
}

/// Sends `ours`, ends, and reads to the end.
async fn talk(stream: impl AsyncRead + AsyncWrite, ours: Vec<u8>) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(&ours).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut theirs = Vec::new();
    let read = async { reader.read_to_end(&mut theirs).await.map(drop).unwrap() };
    tokio::join!(write, read);
    theirs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_over_either_family() {
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let (a, mut b) = (port_at(ip), port_at(ip));
        let (there, back) = (bytes(3_000_000, 1), bytes(1_000_000, 2));
        let dial = async { talk(a.socket.connect(b.addr).await.unwrap(), there.clone()).await };
        let accept = async {
            let stream = b.incoming.accept().await.unwrap();
            assert_eq!(stream.peer_addr(), a.addr);
            talk(stream, back.clone()).await
        };
        let (got_back, got_there) = soon(async { tokio::join!(dial, accept) }).await;
        assert!(got_there == there && got_back == back);
        connections(&a, 0).await;
        connections(&b, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_flushed_shares_no_packet_with_what_follows() {
    const SYN: [u8; 20] = [0x41, 0, 0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0];
    let mut ours = port();
    let theirs = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    theirs.send_to(&SYN, ours.addr).await.unwrap();
    let mut packet = [0; 2000];
    soon(theirs.recv_from(&mut packet)).await.unwrap();
    assert_eq!(packet[0], 0x21, "the answer");
    // Nobody is let in who hasn't seen the answer: its number less one is what has come.
    let seen = u16::from_be_bytes([packet[16], packet[17]]).wrapping_sub(1).to_be_bytes();
    let ack = [0x21, 0, 0x12, 0x35, 0, 0, 0, 2, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, seen[0], seen[1]];
    theirs.send_to(&ack, ours.addr).await.unwrap();
    let mut stream = soon(ours.incoming.accept()).await.unwrap();
    for part in [&b"one"[..], b"two", b"three"] {
        stream.write_all(part).await.unwrap();
        soon(stream.flush()).await.unwrap();
    }
    let mut said = Vec::new();
    while said.len() < 3 {
        let (len, _) = soon(theirs.recv_from(&mut packet)).await.unwrap();
        // Data; once each.
        if packet[0] == 0x01 && !said.contains(&packet[20..len].to_vec()) {
            said.push(packet[20..len].to_vec());
        }
    }
    assert_eq!(said, [&b"one"[..], b"two", b"three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once() {
    let (a, mut b) = (port(), port());
    let scope = TaskScope::root();
    let addr = b.addr;
    for n in 0..200 {
        let socket = a.socket.clone();
        scope.spawn("dial", async move {
            let stream = socket.connect(addr).await.unwrap();
            let echo = talk(stream, bytes(20_000, n)).await;
            assert!(echo == bytes(20_000, n));
        });
    }
    for _ in 0..200 {
        let mut stream = soon(b.incoming.accept()).await.unwrap();
        scope.spawn("echo", async move {
            let mut buffer = vec![0; 20_000];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(&buffer).await.unwrap();
        });
    }
    assert!(soon(async { scope.join(LIMIT).await }).await.is_empty());
    connections(&a, 0).await;
    connections(&b, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_holds_the_writer_back() {
    let (a, mut b) = (port(), port());
    let mut writer = soon(a.socket.connect(b.addr)).await.unwrap();
    writer.write_all(b"x").await.unwrap();
    let mut reader = soon(b.incoming.accept()).await.unwrap();
    let mut written = 1;
    let chunk = vec![7; 64 << 10];
    while let Ok(n) = timeout(Duration::from_secs(1), writer.write(&chunk)).await {
        written += n.unwrap();
        assert!(written < 8 << 20, "there is no bound");
    }
    let mut got = 0;
    let mut buffer = vec![0; 100_000];
    soon(async {
        while got < written {
            got += reader.read(&mut buffer).await.unwrap();
        }
    })
    .await;
    // It goes on.
    soon(writer.write_all(&chunk)).await.unwrap();
    soon(reader.read_exact(&mut buffer[..chunk.len()])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_there_or_says_no_is_found_out() {
    let a = port();
    let silent = Sockets::default().udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let error = soon(a.socket.connect(silent.local_addr().unwrap())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    connections(&a, 0).await;
    // A family that the port doesn't speak isn't waited for.
    let error = soon(a.socket.connect("[::1]:9".parse().unwrap())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    // A dial that nobody waits for any more is gone at once.
    let far = silent.local_addr().unwrap();
    assert!(a.socket.connect(far).now_or_never().is_none());
    connections(&a, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_one_side_is_seen_on_the_other() {
    let (a, mut b) = (port(), port());
    let mut ours = soon(a.socket.connect(b.addr)).await.unwrap();
    ours.write_all(b"hello").await.unwrap();
    let mut theirs = soon(b.incoming.accept()).await.unwrap();
    drop(ours);
    let mut all = Vec::new();
    soon(theirs.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"hello");
    drop(theirs);
    connections(&a, 0).await;
    connections(&b, 0).await;
    // The end of a whole port.
    let mut ours = soon(a.socket.connect(b.addr)).await.unwrap();
    ours.write_all(b"hello").await.unwrap();
    let mut theirs = soon(b.incoming.accept()).await.unwrap();
    a.scope.cancel();
    let mut all = Vec::new();
    soon(theirs.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"hello");
    assert!(soon(a.scope.join(LIMIT)).await.is_empty());
    assert!(soon(ours.read_u8()).await.is_err());
    assert!(soon(ours.write_all(b"more")).await.is_err());
    assert_eq!(soon(a.socket.connect(b.addr)).await.unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_may_be_dropped_anywhere() {
    let (a, mut b) = (port(), port());
    let mut ours = soon(a.socket.connect(b.addr)).await.unwrap();
    ours.write_all(&[0]).await.unwrap();
    let mut theirs = soon(b.incoming.accept()).await.unwrap();
    let sent = bytes(2_000_000, 3);
    let write = async {
        let mut at = 0;
        while at < sent.len() {
            tokio::select! {
                biased;
                n = ours.write(&sent[at..]) => at += n.unwrap(),
                () = tokio::time::sleep(Duration::from_micros(50)) => {}
            }
        }
        at
    };
    let read = async {
        let mut got = bytes::BytesMut::new();
        while got.len() <= sent.len() {
            tokio::select! {
                biased;
                n = theirs.read_buf(&mut got) => assert!(n.unwrap() > 0),
                () = tokio::time::sleep(Duration::from_micros(50)) => {}
            }
        }
        got
    };
    let (_, got) = soon(async { tokio::join!(write, read) }).await;
    assert!(got[1..] == sent[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_costs_little_and_others_get_in() {
    let (a, mut b) = (port(), port());
    let flood = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut syn = [0u8; 20];
    for n in 0..10_000u16 {
        syn[0] = if n % 3 == 0 { 0x01 } else { 0x41 };
        syn[2..4].copy_from_slice(&n.to_be_bytes());
        let _ = flood.send_to(&syn, b.addr);
    }
    // Half-open ones of this machine take all places, for two seconds.
    let mut ours = soon(async {
        loop {
            if let Ok(stream) = a.socket.connect(b.addr).await {
                return stream;
            }
        }
    })
    .await;
    assert!(b.socket.connections() <= Limits::default().half_open + 1);
    ours.write_all(b"hello").await.unwrap();
    let mut theirs = soon(b.incoming.accept()).await.unwrap();
    let mut all = [0; 5];
    soon(theirs.read_exact(&mut all)).await.unwrap();
}

/// How fast one connection is over loopback: printed, and held against what even a busy machine does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_over_loopback() {
    let (a, mut b) = (port(), port());
    let size = std::env::var("UTP_BYTES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000_000usize);
    let mut ours = soon(a.socket.connect(b.addr)).await.unwrap();
    ours.write_all(&[0]).await.unwrap();
    let mut theirs = soon(b.incoming.accept()).await.unwrap();
    theirs.read_u8().await.unwrap();
    let begin = std::time::Instant::now();
    let write = async {
        let chunk = vec![1; 128 << 10];
        let mut left = size;
        while left > 0 {
            left -= ours.write(&chunk[..left.min(chunk.len())]).await.unwrap();
        }
    };
    let read = async {
        let mut buffer = vec![0; 128 << 10];
        let mut got = 0;
        while got < size {
            got += theirs.read(&mut buffer).await.unwrap();
        }
    };
    timeout(LIMIT * 5, async { tokio::join!(write, read) }).await.expect("it takes too long");
    let took = begin.elapsed().as_secs_f64();
    println!("{:.1} MB/s over loopback", size as f64 / took / 1e6);
}
